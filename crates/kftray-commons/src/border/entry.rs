//! From the fields of one entry to a [`ForwardSpec`].

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use super::Defaults;
use super::address::remote_address;
use super::fields::{Fields, Port};
use super::json::Value;
use crate::access::{self, Access, Network, Secret};
use crate::selector;
use crate::spec::{
    Certificate, Expose, ExposeProtocol, Exposure, ForwardId, ForwardSpec, HttpLogs, IssuerKind, Listen,
    LocalPort, Pods, Protocol, Via, Workload,
};
use crate::tags::Tags;
use crate::target::{ClusterRef, ContextRef, RemotePort, WorkloadKind};

/// What the reference assumes where a public expose names no issuer.
const DEFAULT_ISSUER: &str = "letsencrypt-prod";

/// What an entry gave: its alias even where the rest is faulty, so that the fault can be told by name.
pub(super) struct Read {
    pub(super) alias: Option<String>,
    pub(super) spec: Option<ForwardSpec>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Service,
    Pod,
    Owner(WorkloadKind),
    Proxy,
    Expose,
}

const KINDS: &[(&str, Kind)] = &[
    ("service", Kind::Service),
    ("pod", Kind::Pod),
    ("proxy", Kind::Proxy),
    ("expose", Kind::Expose),
    ("deployment", Kind::Owner(WorkloadKind::Deployment)),
    ("statefulset", Kind::Owner(WorkloadKind::StatefulSet)),
    ("daemonset", Kind::Owner(WorkloadKind::DaemonSet)),
    ("replicaset", Kind::Owner(WorkloadKind::ReplicaSet)),
    ("job", Kind::Owner(WorkloadKind::Job)),
];

/// Reads an entry. `None` as spec, or faults left in `fields`, mean that it cannot be used.
pub(super) fn read(fields: &mut Fields<'_>, id: ForwardId, defaults: &Defaults) -> Read {
    let alias = fields.text("alias");
    let kind = match fields.node("workload_type") {
        None => Some(Kind::Service),
        Some(_) => fields.word("workload_type", KINDS),
    };
    let protocol = match fields.node("protocol") {
        None => Some(Protocol::Tcp),
        Some(_) => fields.word("protocol", &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp)]),
    };
    let via = via(fields, kind, protocol);
    let cluster = cluster(fields, defaults);
    let namespace = fields.text("namespace").unwrap_or_else(|| defaults.namespace.clone());
    let tags = tags(fields);
    let http_logs = http_logs(fields);
    let domain_enabled = fields.flag("domain_enabled").unwrap_or(false);
    let auto_loopback = fields.flag("auto_loopback_address").unwrap_or(false);
    // An unknown protocol is told already; the rest of the entry is looked at all the same.
    let workload = kind.and_then(|kind| workload(fields, kind, protocol.unwrap_or_default()));
    let listen = match kind {
        Some(Kind::Expose) => Listen { auto_loopback, ..Listen::default() },
        Some(_) | None => listen(fields, auto_loopback, defaults),
    };
    let spec = workload.map(|workload| ForwardSpec {
        id,
        alias: alias.clone(),
        cluster,
        namespace: Some(namespace).filter(|namespace| !namespace.is_empty()),
        workload,
        protocol: protocol.unwrap_or_default(),
        via,
        listen,
        tags,
        domain_enabled,
        http_logs,
    });
    // Told as it will be checked everywhere else, with the places of this text.
    for fault in spec.iter().flat_map(ForwardSpec::check) {
        let field = match fault.field {
            "target" => fields.first_of(&["target", "service"]),
            "local_address" => fields.first_of(&["local_address", "bind_address"]),
            _ => None,
        };
        fields.fault(field.map_or(fault.field, |(name, _)| name), fault.message, fault.remedy);
    }
    Read { alias, spec }
}

fn via(fields: &mut Fields<'_>, kind: Option<Kind>, protocol: Option<Protocol>) -> Via {
    let words = [("direct", Via::Direct), ("relay", Via::Relay), ("auto", Via::Auto)];
    let Some(via) = fields.word("via", &words) else { return Via::default() };
    let why = match (kind, protocol) {
        (Some(Kind::Expose), _) => "`via` means nothing for an expose; it is ignored",
        (Some(Kind::Proxy), _) if via == Via::Direct => "a proxy always goes by way of the relay",
        (_, Some(Protocol::Udp)) if via == Via::Direct => "UDP always goes by way of the relay",
        _ => return via,
    };
    fields.warn("via", why);
    Via::default()
}

fn cluster(fields: &mut Fields<'_>, defaults: &Defaults) -> ClusterRef {
    let kubeconfig = fields.text("kubeconfig").or_else(|| defaults.kubeconfig.clone());
    // `@current` asks for the current context, a default does not overrule it; silence does not ask.
    let asks_for_current = fields.says("context", "@current");
    let default = defaults.context.clone().filter(|_| !asks_for_current);
    let context = fields.text("context").or(default);
    ClusterRef { kubeconfig, context: context.map_or(ContextRef::Current, ContextRef::Named) }
}

fn listen(fields: &mut Fields<'_>, auto_loopback: bool, defaults: &Defaults) -> Listen {
    let name = fields.first_of(&["local_address", "bind_address"]).map(|(name, _)| name);
    let hosts = match name.and_then(|name| fields.text(name)) {
        Some(text) => text.split(',').map(|host| unbracketed(host.trim()).to_owned()).collect(),
        None => defaults.hosts.clone(),
    };
    let port = match fields.port("local_port", false) {
        Some(Port::Number(port)) => LocalPort::Fixed(port),
        Some(Port::Any | Port::Name(_)) | None => LocalPort::Random,
    };
    Listen { hosts, port, auto_loopback }
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn workload(fields: &mut Fields<'_>, kind: Kind, protocol: Protocol) -> Option<Workload> {
    match kind {
        // The reference needs `remote_address` beside a UDP service and sends to it.
        Kind::Service if protocol == Protocol::Udp && fields.node("remote_address").is_some() => {
            proxy(fields)
        }
        Kind::Service => {
            if fields.node("remote_address").is_some() {
                fields.warn("remote_address", "`remote_address` means nothing for a service; it is ignored");
            }
            let name = object(fields, &["service"], "a service", "\"service\": \"web\"");
            let port = remote_port(fields);
            Some(Workload::Service { name: name?, port: port? })
        }
        Kind::Pod => {
            let text = object(fields, &["target", "service"], "a pod", "\"target\": \"app=web\"");
            let port = remote_port(fields);
            Some(Workload::Pod { pods: pods(text?), port: port? })
        }
        Kind::Owner(owner) => {
            let example = format!("\"target\": \"my-{}\"", owner.as_str());
            let name = object(fields, &["target", "service"], owner.as_str(), &example);
            let port = remote_port(fields);
            Some(Workload::Owner { owner, name: name?, port: port? })
        }
        Kind::Proxy => proxy(fields),
        Kind::Expose => expose(fields, protocol),
    }
}

fn object(fields: &mut Fields<'_>, names: &[&'static str], what: &str, example: &str) -> Option<String> {
    match fields.first_of(names) {
        Some((name, _)) => fields.text(name),
        None => {
            let name = names.first().copied().unwrap_or_default();
            fields.fault(
                name,
                format!("is missing; it says which {}", what.trim_start_matches("a ")),
                format!("Add {example}."),
            );
            None
        }
    }
}

fn pods(text: String) -> Pods {
    if selector::looks_like(&text) {
        // A comma behind a single key says that it is a selector, and nothing else.
        let selector = text.strip_suffix(',').map_or(text.as_str(), str::trim_end);
        return Pods::Selector(selector.to_owned());
    }
    let name = ["pod/", "pods/", "po/"].iter().find_map(|prefix| text.strip_prefix(prefix));
    Pods::Name(name.map_or(text.clone(), str::to_owned))
}

fn remote_port(fields: &mut Fields<'_>) -> Option<RemotePort> {
    if fields.node("remote_port").is_none() {
        fields.fault(
            "remote_port",
            "is missing",
            "Add the port of the service or pod, for example \"remote_port\": 80.",
        );
        return None;
    }
    match fields.port("remote_port", true)? {
        Port::Number(port) => Some(RemotePort::Number(port)),
        Port::Name(name) => Some(RemotePort::Name(name)),
        Port::Any => {
            fields.fault(
                "remote_port",
                "0 is not a port",
                "Write the port of the service or pod, from 1 to 65535.",
            );
            None
        }
    }
}

fn proxy(fields: &mut Fields<'_>) -> Option<Workload> {
    const REMEDY: &str = "Write a host that the cluster reaches, for example \"db.internal:5432\".";
    let Some(_) = fields.node("remote_address") else {
        fields.fault("remote_address", "is missing; it says where the cluster shall connect to", REMEDY);
        return None;
    };
    let text = fields.text("remote_address")?;
    let address = match remote_address(&text) {
        Ok(address) => address,
        Err(fault) => {
            fields.fault("remote_address", format!("`{text}` {fault}"), REMEDY);
            return None;
        }
    };
    if let Some(port) = address.port {
        return Some(Workload::Proxy { host: address.host, port });
    }
    let written = fields.node("remote_port").is_some();
    let port = match fields.port("remote_port", false) {
        Some(Port::Number(port)) => Some(port),
        Some(Port::Any | Port::Name(_)) | None => address.scheme_port.filter(|_| !written),
    };
    if port.is_none() && !written {
        fields.fault("remote_port", "is missing", "Add it, or write the port into remote_address.");
    } else if port.is_none() {
        fields.fault("remote_port", "is not a port to connect to", "Write a number from 1 to 65535.");
    }
    Some(Workload::Proxy { host: address.host, port: port? })
}

fn expose(fields: &mut Fields<'_>, protocol: Protocol) -> Option<Workload> {
    #[derive(Clone, Copy, PartialEq)]
    enum To {
        Internal,
        Public,
    }
    if protocol == Protocol::Udp {
        fields.fault("protocol", "an expose carries TCP only", "Write \"tcp\", or leave it out.");
    }
    // `cluster` is what the reference's exporter calls internal.
    let words = [("internal", To::Internal), ("public", To::Public), ("cluster", To::Internal)];
    let to = match fields.node("exposure_type") {
        None => Some(To::Internal),
        Some(_) => fields.word("exposure_type", &words),
    };
    let words = [
        ("http", ExposeProtocol::Http),
        ("tcp", ExposeProtocol::Tcp),
        ("h2c", ExposeProtocol::H2c),
        ("grpc", ExposeProtocol::H2c),
    ];
    let carries = fields.word("exposure_protocol", &words).unwrap_or_default();
    let program = local_program(fields);
    let access = access(fields);
    let exposure = match to? {
        To::Internal => Exposure::Internal { protocol: carries },
        To::Public => Exposure::Public {
            protocol: carries,
            ingress_class: fields.text("ingress_class"),
            annotations: annotations(fields),
            certificate: certificate(fields),
        },
    };
    let (local_host, local_port, local_tls) = program?;
    Some(Workload::Expose(Expose { local_host, local_port, local_tls, exposure, access }))
}

/// Where the local program listens and whether it speaks TLS: `localhost`, `127.0.0.1`, `https://localhost`,
/// `http://[::1]:3000`.
fn local_program(fields: &mut Fields<'_>) -> Option<(String, NonZeroU16, bool)> {
    let name = fields.first_of(&["local_address", "bind_address"]).map(|(name, _)| name);
    let written = name.and_then(|name| fields.text(name));
    let (name, text) = (name.unwrap_or("local_address"), written.as_deref().unwrap_or(Listen::DEFAULT_HOST));
    let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    let local_tls = matches!(scheme.as_deref(), Some("https" | "wss"));
    if scheme.is_none() {
        // A port without a scheme is told by the check of the host.
        return Some((unbracketed(text).to_owned(), local_program_port(fields)?, false));
    }
    let address = match remote_address(text) {
        Ok(address) => address,
        Err(fault) => {
            let remedy = "Write a host, or a URL such as https://localhost.";
            fields.fault(name, format!("`{text}` {fault}"), remedy);
            return None;
        }
    };
    match address.port {
        Some(port) if fields.node("local_port").is_none() => Some((address.host, port, local_tls)),
        Some(port) => {
            let local_port = local_program_port(fields)?;
            if port != local_port {
                let message = format!("names port {port}, and local_port is {local_port}");
                fields.fault(name, message, "Write the port once, or the same.");
            }
            Some((address.host, local_port, local_tls))
        }
        None => Some((address.host, local_program_port(fields)?, local_tls)),
    }
}

fn access(fields: &mut Fields<'_>) -> Access {
    let secret = |text: Option<String>| text.map(Secret::new);
    Access {
        basic: secret(fields.text("exposure_basic_auth")),
        bearer: secret(fields.text("exposure_bearer_token")),
        allow: allow(fields),
        expires_after: expires_after(fields),
    }
}

/// A list of addresses, or a text with commas.
fn allow(fields: &mut Fields<'_>) -> Vec<Network> {
    const NAME: &str = "exposure_allow";
    const REMEDY: &str = "Write [\"203.0.113.7\", \"10.0.0.0/8\"].";
    let Some(node) = fields.node(NAME) else { return Vec::new() };
    let texts: Option<Vec<&str>> = match &node.value {
        Value::Text(text) => Some(text.split(',').collect()),
        Value::List(nodes) => nodes.iter().map(|node| plain_text(&node.value)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    };
    let Some(texts) = texts else {
        fields.fault(NAME, "expected a list of texts", REMEDY);
        return Vec::new();
    };
    if texts.is_empty() {
        // "Nobody" is not what an empty list can mean, and "everybody" must not be understood by mistake.
        fields.fault(NAME, "is empty", "Leave it out to let everybody in, or list addresses.");
    }
    let mut networks = Vec::new();
    for text in texts {
        match text.parse() {
            Ok(network) => networks.push(network),
            Err(fault) => fields.fault(NAME, format!("`{}` {fault}", text.trim()), REMEDY),
        }
    }
    networks
}

fn plain_text(value: &Value) -> Option<&str> {
    match value {
        Value::Text(text) => Some(text),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::List(_) | Value::Object(_) => None,
    }
}

fn expires_after(fields: &mut Fields<'_>) -> Option<u64> {
    const NAME: &str = "exposure_expires_after";
    let text = fields.text(NAME)?;
    let found = access::duration(&text).map(|duration| duration.as_secs());
    if found.is_none() {
        fields.fault(NAME, format!("`{text}` is no length of time"), "Write for example \"30m\" or \"8h\".");
    }
    found
}

fn local_program_port(fields: &mut Fields<'_>) -> Option<NonZeroU16> {
    const REMEDY: &str = "Write the port on which your program listens.";
    if fields.node("local_port").is_none() {
        fields.fault("local_port", "is missing", REMEDY);
        return None;
    }
    match fields.port("local_port", false)? {
        Port::Number(port) => Some(port),
        Port::Any | Port::Name(_) => {
            fields.fault("local_port", "0 is not a port to connect to", REMEDY);
            None
        }
    }
}

fn certificate(fields: &mut Fields<'_>) -> Option<Certificate> {
    let wanted = fields.flag("cert_manager_enabled").unwrap_or(false);
    let issuer = fields.text("cert_issuer").unwrap_or_else(|| DEFAULT_ISSUER.to_owned());
    let words = [("Issuer", IssuerKind::Issuer), ("ClusterIssuer", IssuerKind::ClusterIssuer)];
    let kind = fields.word("cert_issuer_kind", &words).unwrap_or_default();
    wanted.then_some(Certificate { issuer, kind })
}

/// A JSON object inside a text, as the reference writes it, or the object itself.
fn annotations(fields: &mut Fields<'_>) -> BTreeMap<String, String> {
    const NAME: &str = "ingress_annotations";
    const REMEDY: &str = "Write {\"key\": \"value\"}; every value is a text.";
    let mut found = BTreeMap::new();
    let Some(node) = fields.node(NAME) else { return found };
    let read: serde_json::Map<String, serde_json::Value> = match &node.value {
        Value::Text(text) => match serde_json::from_str(text) {
            Ok(map) => map,
            Err(_) => {
                fields.fault(NAME, "expected a JSON object in a text", REMEDY);
                return found;
            }
        },
        Value::Object(members) => {
            members.iter().map(|member| (member.key.clone(), scalar(&member.node.value))).collect()
        }
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::List(_)) => {
            fields.fault(NAME, format!("expected an object, found {}", other.kind()), REMEDY);
            return found;
        }
    };
    for (key, value) in read {
        match value {
            serde_json::Value::String(value) => {
                found.insert(key, value);
            }
            serde_json::Value::Bool(_) | serde_json::Value::Number(_) => {
                found.insert(key, value.to_string());
            }
            serde_json::Value::Null | serde_json::Value::Array(_) | serde_json::Value::Object(_) => {
                fields.fault(NAME, format!("the value of `{key}` is not a text"), REMEDY);
            }
        }
    }
    found
}

fn scalar(value: &Value) -> serde_json::Value {
    match value {
        Value::Text(text) | Value::Number(text) => text.clone().into(),
        Value::Bool(flag) => (*flag).into(),
        Value::Null | Value::List(_) | Value::Object(_) => serde_json::Value::Null,
    }
}

fn tags(fields: &mut Fields<'_>) -> Tags {
    const REMEDY: &str = "Write {\"team\": \"blue\"}.";
    let mut tags = Tags::new();
    let Some(node) = fields.node("tags") else { return tags };
    let mut faults = Vec::new();
    match &node.value {
        Value::Text(text) => match Tags::from_text(text) {
            Ok(read) => tags = read,
            Err(fault) => faults.push(fault.to_string()),
        },
        Value::Object(members) => {
            for member in members {
                let value = match &member.node.value {
                    Value::Null => String::new(),
                    Value::Text(text) | Value::Number(text) => text.clone(),
                    Value::Bool(flag) => flag.to_string(),
                    other @ (Value::List(_) | Value::Object(_)) => {
                        faults.push(format!("the value of `{}` is {}, not a text", member.key, other.kind()));
                        continue;
                    }
                };
                if let Err(fault) = tags.insert(&member.key, &value) {
                    faults.push(fault.to_string());
                }
            }
        }
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::List(_)) => {
            faults.push(format!("expected an object, found {}", other.kind()));
        }
    }
    for fault in faults {
        fields.fault("tags", fault, REMEDY);
    }
    tags
}

fn http_logs(fields: &mut Fields<'_>) -> HttpLogs {
    let usual = HttpLogs::default();
    let days = fields.count("http_logs_retention_days").map(|days| u16::try_from(days).map_err(|_| days));
    let retention_days = match days {
        None => usual.retention_days,
        Some(Ok(days)) => days,
        Some(Err(days)) => {
            let message = format!("{days} is outside 1 to {} days", HttpLogs::RETENTION_MAX);
            fields.fault("http_logs_retention_days", message, "7 is usual.");
            usual.retention_days
        }
    };
    HttpLogs {
        enabled: fields.flag("http_logs_enabled").unwrap_or(usual.enabled),
        max_file_size: fields.count("http_logs_max_file_size").unwrap_or(usual.max_file_size),
        retention_days,
        auto_cleanup: fields.flag("http_logs_auto_cleanup").unwrap_or(usual.auto_cleanup),
    }
}
