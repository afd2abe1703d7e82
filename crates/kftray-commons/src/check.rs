//! Whether a [`ForwardSpec`] can work, told field by field before anything is started.

use crate::access::Access;
use crate::names::{self, NameFault};
use crate::selector;
use crate::spec::{Expose, ExposeProtocol, Exposure, ForwardSpec, HttpLogs, Pods, Workload};
use crate::target::{ContextRef, RemotePort};

/// Longest alias, in characters: what fits a host name, so that `domain_enabled` can be turned on later.
const ALIAS_MAX: usize = names::SUBDOMAIN_MAX;

/// One thing that would not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecFault {
    /// The field of the reference's JSON that it belongs to.
    pub field: &'static str,
    /// What is wrong; a clause without full stop that does not repeat the field's name.
    pub message: String,
    /// What to write instead.
    pub remedy: String,
}

impl SpecFault {
    fn new(field: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { field, message: message.into(), remedy: remedy.into() }
    }

    fn name(field: &'static str, value: &str, fault: &NameFault, remedy: &str) -> Self {
        Self::new(field, format!("`{value}` {fault}"), remedy)
    }
}

impl ForwardSpec {
    /// Everything that would not work, in the order in which people write the fields. Empty means valid.
    #[must_use]
    pub fn check(&self) -> Vec<SpecFault> {
        let mut faults = Vec::new();
        self.check_workload(&mut faults);
        self.check_place(&mut faults);
        self.check_alias(&mut faults);
        self.check_logs(&mut faults);
        faults
    }

    fn check_workload(&self, faults: &mut Vec<SpecFault>) {
        let mut name = |field, value: &str, check: fn(&str) -> Result<(), NameFault>| {
            if let Err(fault) = check(value) {
                faults.push(SpecFault::name(
                    field,
                    value,
                    &fault,
                    "Use the object's name as kubectl prints it.",
                ));
            }
        };
        match &self.workload {
            Workload::Service { name: service, port } => {
                name("service", service, names::label);
                check_port(port, faults);
            }
            Workload::Pod { pods: Pods::Name(pod), port } => {
                name("target", pod, names::subdomain);
                check_port(port, faults);
            }
            Workload::Pod { pods: Pods::Selector(text), port } => {
                if let Err(fault) = selector::check(text) {
                    let remedy = "Write a label selector such as app=web, or a pod's name.";
                    faults.push(SpecFault::new("target", fault.to_string(), remedy));
                }
                check_port(port, faults);
            }
            Workload::Owner { owner: _, name: object, port } => {
                name("target", object, names::subdomain);
                check_port(port, faults);
            }
            Workload::Proxy { host, port: _ } => {
                if let Err(fault) = names::host(host) {
                    let remedy = "Write a host name or an IP address that the cluster can reach.";
                    faults.push(SpecFault::name("remote_address", host, &fault, remedy));
                }
            }
            Workload::Expose(expose) => self.check_expose(expose, faults),
        }
    }

    fn check_expose(&self, expose: &Expose, faults: &mut Vec<SpecFault>) {
        if let Err(fault) = names::host(&expose.local_host) {
            let remedy = "Write the host on which your program listens, such as localhost.";
            faults.push(SpecFault::name("local_address", &expose.local_host, &fault, remedy));
        }
        match &self.alias {
            None => faults.push(SpecFault::new(
                "alias",
                "an expose needs an alias: it becomes the name in the cluster",
                "Add \"alias\", for example \"myapp\" (internal) or \"myapp.example.com\" (public).",
            )),
            Some(alias) => {
                if let Err(fault) = names::subdomain(alias) {
                    let remedy = "Use a host name in lower case.";
                    faults.push(SpecFault::name("alias", alias, &fault, remedy));
                }
            }
        }
        check_access(expose, faults);
        if expose.is_public() && expose.protocol() == ExposeProtocol::Tcp {
            let remedy = "Use \"internal\" for TCP; an Ingress carries HTTP only.";
            faults.push(SpecFault::new("exposure_protocol", "`tcp` cannot be public", remedy));
        }
        if let Exposure::Public { certificate: Some(certificate), .. } = &expose.exposure
            && let Err(fault) = names::subdomain(&certificate.issuer)
        {
            let remedy = "Use the name of a cert-manager issuer, such as letsencrypt-prod.";
            faults.push(SpecFault::name("cert_issuer", &certificate.issuer, &fault, remedy));
        }
    }

    fn check_place(&self, faults: &mut Vec<SpecFault>) {
        if let Some(namespace) = &self.namespace
            && let Err(fault) = names::label(namespace)
        {
            let remedy = "Use a name that `kubectl get namespaces` prints.";
            faults.push(SpecFault::name("namespace", namespace, &fault, remedy));
        }
        if let ContextRef::Named(context) = &self.cluster.context
            && context.trim().is_empty()
        {
            let remedy = "Leave it out to follow the current context.";
            faults.push(SpecFault::new("context", "the name is empty", remedy));
        }
        if self.listen.hosts.is_empty() {
            let remedy = "Write localhost, 127.0.0.1 or another address of this machine.";
            faults.push(SpecFault::new("local_address", "there is no address to listen on", remedy));
        }
        for host in &self.listen.hosts {
            if let Err(fault) = names::host(host) {
                let remedy = "Write localhost, 127.0.0.1 or another address of this machine, without a port.";
                faults.push(SpecFault::name("local_address", host, &fault, remedy));
            }
        }
    }

    fn check_alias(&self, faults: &mut Vec<SpecFault>) {
        let (Some(alias), false) = (&self.alias, matches!(self.workload, Workload::Expose(_))) else {
            return;
        };
        if alias.trim().is_empty() {
            faults.push(SpecFault::new("alias", "is empty", "Leave it out, or give it a name."));
        } else if alias.chars().any(char::is_control) {
            faults.push(SpecFault::new(
                "alias",
                "has a control character",
                "Use letters, digits and hyphens.",
            ));
        } else if alias.chars().count() > ALIAS_MAX {
            let message = format!("is longer than {ALIAS_MAX} characters");
            faults.push(SpecFault::new("alias", message, "Shorten it."));
        } else if self.domain_enabled
            && let Err(fault) = names::subdomain(alias)
        {
            let remedy = "With domain_enabled the alias becomes a host name: use lower-case letters, digits, - and dots.";
            faults.push(SpecFault::name("alias", alias, &fault, remedy));
        }
    }

    fn check_logs(&self, faults: &mut Vec<SpecFault>) {
        let logs = &self.http_logs;
        if !(1..=HttpLogs::FILE_SIZE_MAX).contains(&logs.max_file_size) {
            let message = format!("{} is outside 1 to {} bytes", logs.max_file_size, HttpLogs::FILE_SIZE_MAX);
            faults.push(SpecFault::new("http_logs_max_file_size", message, "10485760 (10 MiB) is usual."));
        }
        if !(1..=HttpLogs::RETENTION_MAX).contains(&logs.retention_days) {
            let message = format!("{} is outside 1 to {} days", logs.retention_days, HttpLogs::RETENTION_MAX);
            faults.push(SpecFault::new("http_logs_retention_days", message, "7 is usual."));
        }
    }
}

fn check_access(expose: &Expose, faults: &mut Vec<SpecFault>) {
    let Access { basic, bearer, allow, expires_after } = &expose.access;
    for (field, secret) in [("exposure_basic_auth", basic), ("exposure_bearer_token", bearer)] {
        let Some(secret) = secret else { continue };
        let text = secret.reveal();
        if expose.protocol() == ExposeProtocol::H2c {
            let remedy = "Have the program check its callers, or expose HTTP/1.";
            faults.push(SpecFault::new(field, "cannot be checked in HTTP/2, which this exposes", remedy));
        } else if !expose.is_http() {
            let remedy = "Use exposure_allow for TCP, or expose HTTP.";
            faults.push(SpecFault::new(field, "is a matter of HTTP, and this exposes TCP", remedy));
        } else if text.chars().any(char::is_control) {
            faults.push(SpecFault::new(field, "has a control character", "Remove it."));
        }
    }
    if !allow.is_empty() && expose.is_public() && expose.protocol() == ExposeProtocol::H2c {
        let message = "cannot be checked in HTTP/2: all callers come from the Ingress controller";
        let remedy = "Use an annotation of the Ingress controller for it, or expose HTTP/1.";
        faults.push(SpecFault::new("exposure_allow", message, remedy));
    }
    if let Some(basic) = basic
        && basic
            .reveal()
            .split_once(':')
            .is_none_or(|(user, password)| user.is_empty() || password.is_empty())
    {
        let remedy = "Write \"user:password\".";
        faults.push(SpecFault::new("exposure_basic_auth", "has no user, colon and password", remedy));
    }
    // The characters of a token (RFC 6750, section 2.1).
    let token = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
    if let Some(bearer) = bearer
        && (bearer.reveal().is_empty() || !bearer.reveal().bytes().all(token))
    {
        let message = "has characters that a bearer token cannot have";
        faults.push(SpecFault::new(
            "exposure_bearer_token",
            message,
            "Use letters, digits and -._~+/= only.",
        ));
    }
    if let Some(seconds) = expires_after
        && !(1..=Access::EXPIRES_MAX).contains(seconds)
    {
        let message = format!("{seconds} s is outside 1 s to a year");
        faults.push(SpecFault::new("exposure_expires_after", message, "Write for example \"8h\"."));
    }
}

fn check_port(port: &RemotePort, faults: &mut Vec<SpecFault>) {
    if let RemotePort::Name(name) = port
        && let Err(fault) = names::port_name(name)
    {
        let remedy = "Write a number from 1 to 65535, or the name of a port.";
        faults.push(SpecFault::name("remote_port", name, &fault, remedy));
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::access::Secret;
    use crate::spec::ForwardId;

    fn spec(workload: Workload) -> ForwardSpec {
        ForwardSpec::new(ForwardId(1), workload)
    }

    fn service(name: &str) -> ForwardSpec {
        spec(Workload::Service { name: name.into(), port: RemotePort::Name("http".into()) })
    }

    fn fields(spec: &ForwardSpec) -> Vec<&'static str> {
        spec.check().into_iter().map(|fault| fault.field).collect()
    }

    #[test]
    fn a_plain_one_is_valid() {
        assert_eq!(service("web").check(), []);
    }

    #[test]
    fn every_field_is_looked_at() {
        let mut bad = service("Web");
        bad.workload = Workload::Service { name: "Web".into(), port: RemotePort::Name("Http".into()) };
        bad.namespace = Some("a b".into());
        bad.cluster.context = ContextRef::Named(" ".into());
        bad.listen.hosts = vec!["localhost:80".into()];
        bad.alias = Some("a\nb".into());
        bad.http_logs.max_file_size = 0;
        bad.http_logs.retention_days = 366;
        assert_eq!(
            fields(&bad),
            [
                "service",
                "remote_port",
                "namespace",
                "context",
                "local_address",
                "alias",
                "http_logs_max_file_size",
                "http_logs_retention_days"
            ]
        );
        for fault in bad.check() {
            assert!(fault.remedy.ends_with('.'), "{fault:?}");
            assert!(!fault.message.ends_with('.'), "{fault:?}");
        }
    }

    #[test]
    fn an_alias_is_free_text_unless_it_becomes_a_host_name() {
        let mut web = service("web");
        web.alias = Some("My Web".into());
        assert_eq!(web.check(), []);
        web.domain_enabled = true;
        assert_eq!(fields(&web), ["alias"]);
    }

    #[test]
    fn an_expose_needs_a_name() {
        let expose = Expose {
            local_host: "localhost".into(),
            local_port: NonZeroU16::MIN,
            local_tls: false,
            exposure: Exposure::Internal { protocol: ExposeProtocol::Http },
            access: Access::default(),
        };
        let mut spec = spec(Workload::Expose(expose));
        assert_eq!(fields(&spec), ["alias"]);
        spec.alias = Some("My_App".into());
        assert_eq!(fields(&spec), ["alias"]);
        spec.alias = Some("myapp.example.com".into());
        assert_eq!(spec.check(), []);
    }

    #[test]
    fn access_rules() {
        let expose = |protocol, access| {
            let expose = Expose {
                local_host: "localhost".into(),
                local_port: NonZeroU16::MIN,
                local_tls: false,
                exposure: Exposure::Internal { protocol },
                access,
            };
            let mut spec = spec(Workload::Expose(expose));
            spec.alias = Some("app".into());
            fields(&spec)
        };
        let secret = |text: &str| Some(Secret::new(text));
        let good = Access { basic: secret("a:b"), bearer: secret("x.y-z"), ..Access::default() };
        assert!(expose(ExposeProtocol::Http, good.clone()).is_empty());
        for unseen in [ExposeProtocol::Tcp, ExposeProtocol::H2c] {
            let faults = expose(unseen, good.clone());
            assert_eq!(faults, ["exposure_basic_auth", "exposure_bearer_token"], "{unseen:?}");
        }
        let bad = Access {
            basic: secret("user"),
            bearer: secret("a b"),
            expires_after: Some(0),
            ..Access::default()
        };
        let faults = expose(ExposeProtocol::Http, bad);
        assert_eq!(faults, ["exposure_basic_auth", "exposure_bearer_token", "exposure_expires_after"]);
    }

    #[test]
    fn what_cannot_be_public() {
        let public = |protocol, allow: &[&str]| {
            let exposure = Exposure::Public {
                protocol,
                ingress_class: None,
                annotations: std::collections::BTreeMap::new(),
                certificate: None,
            };
            let allow = allow.iter().map(|net| net.parse().unwrap()).collect();
            let expose = Expose {
                local_host: "localhost".into(),
                local_port: NonZeroU16::MIN,
                local_tls: false,
                exposure,
                access: Access { allow, ..Access::default() },
            };
            let mut spec = spec(Workload::Expose(expose));
            spec.alias = Some("app.example.com".into());
            fields(&spec)
        };
        let net = ["192.0.2.0/24"];
        assert!(public(ExposeProtocol::Http, &net).is_empty());
        assert!(public(ExposeProtocol::H2c, &[]).is_empty());
        assert_eq!(public(ExposeProtocol::H2c, &net), ["exposure_allow"], "nobody could check it");
        assert_eq!(public(ExposeProtocol::Tcp, &[]), ["exposure_protocol"]);
    }

    #[test]
    fn selectors_and_hosts() {
        let pods = |text: &str| {
            spec(Workload::Pod {
                pods: Pods::Selector(text.into()),
                port: RemotePort::Number(NonZeroU16::MIN),
            })
        };
        assert_eq!(pods("app=web").check(), []);
        assert_eq!(fields(&pods("app in (")), ["target"]);
        let proxy = spec(Workload::Proxy { host: "a b".into(), port: NonZeroU16::MIN });
        assert_eq!(fields(&proxy), ["remote_address"]);
    }
}
