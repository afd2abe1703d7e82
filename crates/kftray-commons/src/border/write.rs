//! The way back: a [`ForwardSpec`] as the flat object that the border reads.
//!
//! What equals the default is left out, as people leave it out; reading the object with [`Defaults::open`] gives the same
//! spec again. Fields that this version does not know come back as they were.

use serde_json::{Map, Value, json};

use super::Defaults;
use crate::access::Access;
use crate::selector;
use crate::spec::{
    Certificate, Expose, ExposeProtocol, Exposure, ForwardSpec, HttpLogs, IssuerKind, Listen, LocalPort,
    Pods, Via, Workload,
};
use crate::target::{ContextRef, RemotePort};

/// What the reference calls the kubeconfig's current context.
const CURRENT: &str = "@current";

/// A spec in the shape that the reference reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compatible {
    /// The entry.
    pub object: Map<String, Value>,
    /// What means something else there, each a clause without full stop.
    pub warnings: Vec<String>,
}

/// The entry of a spec, with the fields that only other versions know. Where both have a field, the spec counts.
#[must_use]
pub fn object(spec: &ForwardSpec, extra: &Map<String, Value>) -> Map<String, Value> {
    // Taken apart completely, so that a new field cannot be forgotten here.
    let ForwardSpec {
        id: _,
        alias,
        cluster,
        namespace,
        workload,
        protocol,
        via,
        listen,
        tags,
        domain_enabled,
        http_logs,
    } = spec;
    let mut entry = Map::new();
    put_some(&mut entry, "alias", alias.clone());
    put_workload(&mut entry, workload);
    put_some(&mut entry, "namespace", namespace.clone());
    let context = match &cluster.context {
        ContextRef::Current => CURRENT.to_owned(),
        ContextRef::Named(name) => name.clone(),
    };
    entry.insert("context".into(), context.into());
    put_some(&mut entry, "kubeconfig", cluster.kubeconfig.clone());
    entry.insert("protocol".into(), protocol.to_string().into());
    match via {
        Via::Direct => {}
        Via::Relay => put_some(&mut entry, "via", Some("relay".to_owned())),
        Via::Auto => put_some(&mut entry, "via", Some("auto".to_owned())),
    }
    put_listen(&mut entry, workload, listen);
    put_true(&mut entry, "domain_enabled", *domain_enabled);
    if !tags.is_empty() {
        let tags: Map<String, Value> = tags.iter().map(|(key, value)| (key.into(), value.into())).collect();
        entry.insert("tags".into(), tags.into());
    }
    put_http_logs(&mut entry, http_logs);
    for (name, value) in extra {
        entry.entry(name.clone()).or_insert_with(|| value.clone());
    }
    entry
}

/// The entry as the reference reads it.
///
/// # Errors
/// What it cannot express, a clause without full stop. Its importer refuses a whole list for one such entry, so the
/// entry must be left out of the list.
pub fn compatible(spec: &ForwardSpec, extra: &Map<String, Value>) -> Result<Compatible, String> {
    if let Workload::Expose(Expose { access, .. }) = &spec.workload
        && *access != Access::default()
    {
        // Without them it would be open to everybody there, for as long as it runs; and they may be secrets.
        return Err("its limits on who may call, and for how long, are kept by this program only".to_owned());
    }
    if let Workload::Expose(expose) = &spec.workload
        && expose.protocol() == ExposeProtocol::H2c
    {
        return Err("it says `h2c`, which only this program knows".to_owned());
    }
    let (Workload::Service { port, .. } | Workload::Pod { port, .. } | Workload::Owner { port, .. }) =
        &spec.workload
    else {
        return Ok(shared(spec, extra));
    };
    if let Workload::Owner { owner, .. } = &spec.workload {
        return Err(format!("it forwards to a {} by name, which only this program can", owner.as_str()));
    }
    if let RemotePort::Name(name) = port {
        return Err(format!("its remote port is the name `{name}`, which only this program can look up"));
    }
    Ok(shared(spec, extra))
}

/// The entry with what the reference needs and we do not.
fn shared(spec: &ForwardSpec, extra: &Map<String, Value>) -> Compatible {
    let mut warnings = Vec::new();
    let mut entry = object(spec, extra);
    entry.entry("namespace").or_insert_with(|| Defaults::default().namespace.into());
    if let Workload::Pod { pods: Pods::Name(name), .. } = &spec.workload {
        warnings.push(format!("the pod's name `{name}` is taken for a label there"));
    }
    if let Workload::Pod { pods: Pods::Selector(selector), .. } = &spec.workload
        && !selector::looks_like(selector)
    {
        // The API server, to which the reference passes it on, takes no comma at the end; this means the same.
        entry.insert("target".into(), format!("{selector},{selector}").into());
    }
    if let Workload::Expose(Expose { local_host, local_tls: true, .. }) = &spec.workload {
        entry.insert("local_address".into(), local_host.as_str().into());
        warnings.push("its local program is called without TLS there".to_owned());
    }
    if let [first, _, ..] = spec.listen.hosts.as_slice() {
        entry.insert("local_address".into(), first.as_str().into());
        warnings.push(format!("it listens on {first} only there"));
    }
    if let Workload::Proxy { host, .. } = &spec.workload
        && host.contains(':')
    {
        warnings.push(format!("the IPv6 address {host} is not understood there"));
    }
    Compatible { object: entry, warnings }
}

fn put_some(entry: &mut Map<String, Value>, name: &str, value: Option<String>) {
    if let Some(value) = value {
        entry.insert(name.into(), value.into());
    }
}

fn put_true(entry: &mut Map<String, Value>, name: &str, flag: bool) {
    if flag {
        entry.insert(name.into(), true.into());
    }
}

fn put_workload(entry: &mut Map<String, Value>, workload: &Workload) {
    entry.insert("workload_type".into(), workload.kind().into());
    match workload {
        Workload::Service { name, port } => {
            entry.insert("service".into(), name.as_str().into());
            put_port(entry, port);
        }
        Workload::Pod { pods, port } => {
            let target = match pods {
                Pods::Name(name) => name.clone(),
                Pods::Selector(selector) => unmistakable(selector),
            };
            entry.insert("target".into(), target.into());
            put_port(entry, port);
        }
        Workload::Owner { owner: _, name, port } => {
            entry.insert("target".into(), name.as_str().into());
            put_port(entry, port);
        }
        Workload::Proxy { host, port } => {
            entry.insert("remote_address".into(), host.as_str().into());
            entry.insert("remote_port".into(), port.get().into());
        }
        Workload::Expose(expose) => put_expose(entry, expose),
    }
}

/// A selector that asks only for a key (`app`) reads like a pod's name; with a comma behind it, it does not.
fn unmistakable(selector: &str) -> String {
    if selector::looks_like(selector) { selector.to_owned() } else { format!("{selector},") }
}

fn put_port(entry: &mut Map<String, Value>, port: &RemotePort) {
    let port = match port {
        RemotePort::Number(number) => Value::from(number.get()),
        RemotePort::Name(name) => name.as_str().into(),
    };
    entry.insert("remote_port".into(), port);
}

fn put_expose(entry: &mut Map<String, Value>, expose: &Expose) {
    let Expose { local_host, local_port, local_tls, exposure, access } = expose;
    if *local_tls {
        let host = if local_host.contains(':') { format!("[{local_host}]") } else { local_host.clone() };
        entry.insert("local_address".into(), format!("https://{host}:{local_port}").into());
    } else if local_host != Listen::DEFAULT_HOST {
        entry.insert("local_address".into(), local_host.as_str().into());
    }
    entry.insert("local_port".into(), local_port.get().into());
    put_access(entry, access);
    match exposure {
        Exposure::Internal { protocol } => {
            entry.insert("exposure_type".into(), "internal".into());
            put_exposure_protocol(entry, *protocol);
        }
        Exposure::Public { protocol, ingress_class, annotations, certificate } => {
            entry.insert("exposure_type".into(), "public".into());
            put_exposure_protocol(entry, *protocol);
            put_some(entry, "ingress_class", ingress_class.clone());
            if !annotations.is_empty() {
                // The reference wants the object as a text.
                entry.insert("ingress_annotations".into(), json!(annotations).to_string().into());
            }
            if let Some(Certificate { issuer, kind }) = certificate {
                let kind = match kind {
                    IssuerKind::Issuer => "Issuer",
                    IssuerKind::ClusterIssuer => "ClusterIssuer",
                };
                entry.insert("cert_manager_enabled".into(), true.into());
                entry.insert("cert_issuer".into(), issuer.as_str().into());
                entry.insert("cert_issuer_kind".into(), kind.into());
            }
        }
    }
}

fn put_exposure_protocol(entry: &mut Map<String, Value>, protocol: ExposeProtocol) {
    let word = match protocol {
        ExposeProtocol::Http => return,
        ExposeProtocol::H2c => "h2c",
        ExposeProtocol::Tcp => "tcp",
    };
    entry.insert("exposure_protocol".into(), word.into());
}

fn put_access(entry: &mut Map<String, Value>, access: &Access) {
    let Access { basic, bearer, allow, expires_after } = access;
    put_some(entry, "exposure_basic_auth", basic.as_ref().map(|secret| secret.reveal().to_owned()));
    put_some(entry, "exposure_bearer_token", bearer.as_ref().map(|secret| secret.reveal().to_owned()));
    if !allow.is_empty() {
        let networks: Vec<Value> = allow.iter().map(|network| network.to_string().into()).collect();
        entry.insert("exposure_allow".into(), networks.into());
    }
    put_some(entry, "exposure_expires_after", expires_after.map(|seconds| format!("{seconds}s")));
}

fn put_listen(entry: &mut Map<String, Value>, workload: &Workload, listen: &Listen) {
    let Listen { hosts, port, auto_loopback } = listen;
    put_true(entry, "auto_loopback_address", *auto_loopback);
    // These two names mean the local program there.
    if matches!(workload, Workload::Expose(_)) {
        return;
    }
    if *hosts != [Listen::DEFAULT_HOST] {
        entry.insert("local_address".into(), hosts.join(",").into());
    }
    if let LocalPort::Fixed(port) = port {
        entry.insert("local_port".into(), port.get().into());
    }
}

fn put_http_logs(entry: &mut Map<String, Value>, logs: &HttpLogs) {
    let usual = HttpLogs::default();
    let HttpLogs { enabled, max_file_size, retention_days, auto_cleanup } = logs;
    put_true(entry, "http_logs_enabled", *enabled);
    if *max_file_size != usual.max_file_size {
        entry.insert("http_logs_max_file_size".into(), (*max_file_size).into());
    }
    if *retention_days != usual.retention_days {
        entry.insert("http_logs_retention_days".into(), (*retention_days).into());
    }
    if *auto_cleanup != usual.auto_cleanup {
        entry.insert("http_logs_auto_cleanup".into(), (*auto_cleanup).into());
    }
}
