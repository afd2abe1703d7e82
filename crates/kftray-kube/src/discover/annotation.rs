//! What the annotations of a Service say. Pure.

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Exactly `true` asks for it.
const ENABLED: &str = "kftray.app/enabled";
/// What is asked for; absent: every port.
const CONFIGS: &str = "kftray.app/configs";

/// One forward that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) alias: String,
    /// `None`: the same as the remote one.
    pub(super) local: Option<u16>,
    pub(super) goes: Goes,
}

/// Where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Goes {
    Number(u16),
    /// A container port by name, which only the pods can tell; else the Service's own number does.
    Container {
        name: String,
        service_port: u16,
    },
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Read {
    pub(super) items: Vec<Item>,
    /// What was passed over, one sentence each.
    pub(super) warnings: Vec<String>,
}

/// Reads a Service; one that asks for nothing gives nothing.
pub(super) fn read(service: &Service) -> Read {
    let annotation = |name: &str| service.metadata.annotations.as_ref()?.get(name).map(String::as_str);
    if annotation(ENABLED) != Some("true") {
        return Read::default();
    }
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    match annotation(CONFIGS).map(str::trim).filter(|text| !text.is_empty()) {
        None => every_port(service, ports),
        Some(text) => {
            let mut read = Read::default();
            for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
                match item(part, ports) {
                    Ok(item) => read.items.push(item),
                    Err(why) => read.warnings.push(format!("`{part}` in {CONFIGS} is passed over: {why}")),
                }
            }
            read
        }
    }
}

fn every_port(service: &Service, ports: &[ServicePort]) -> Read {
    let mut read = Read::default();
    let alias = service.metadata.name.clone().unwrap_or_default();
    for port in ports {
        match (is_tcp(port), goes(port)) {
            (true, Some(goes)) => read.items.push(Item { alias: alias.clone(), local: None, goes }),
            (true, None) => read.warnings.push(format!("port {} is no port; it is passed over", port.port)),
            (false, _) => {
                let protocol = port.protocol.as_deref().unwrap_or_default();
                read.warnings.push(format!("port {} is {protocol}; only TCP ports are taken", port.port));
            }
        }
    }
    read
}

/// `alias-localPort-remotePort`. Alias and port name may hold dashes themselves: the local port is the last number that has
/// a port after it.
fn item(text: &str, ports: &[ServicePort]) -> Result<Item, String> {
    let parts: Vec<&str> = text.split('-').collect();
    let mut unknown = None;
    for at in (1..parts.len().saturating_sub(1)).rev() {
        let (Some(before), Some(local), Some(after)) = (parts.get(..at), parts.get(at), parts.get(at + 1..))
        else {
            continue;
        };
        let (alias, remote) = (before.join("-"), after.join("-"));
        let Some(local) = number(local).filter(|_| !alias.is_empty() && !remote.is_empty()) else { continue };
        if let Some(remote) = number(&remote).filter(|remote| *remote > 0) {
            return Ok(Item { alias, local: Some(local), goes: Goes::Number(remote) });
        }
        let named = |port: &&ServicePort| port.name.as_deref() == Some(remote.as_str()) && is_tcp(port);
        match ports.iter().find(named).and_then(goes) {
            Some(goes) => return Ok(Item { alias, local: Some(local), goes }),
            None => unknown = Some(remote),
        }
    }
    Err(match unknown {
        Some(name) => format!("the Service has no TCP port named `{name}`"),
        None => "it is not alias-localPort-remotePort".to_owned(),
    })
}

fn number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

fn is_tcp(port: &ServicePort) -> bool {
    port.protocol.as_deref().is_none_or(|protocol| protocol.is_empty() || protocol == "TCP")
}

fn goes(port: &ServicePort) -> Option<Goes> {
    let own = u16::try_from(port.port).ok().filter(|port| *port > 0)?;
    Some(match &port.target_port {
        None | Some(IntOrString::Int(0)) => Goes::Number(own),
        Some(IntOrString::Int(number)) => Goes::Number(u16::try_from(*number).ok()?),
        Some(IntOrString::String(text)) => match number(text) {
            Some(number) => Goes::Number(number),
            None => Goes::Container { name: text.clone(), service_port: own },
        },
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(configs: Option<&str>) -> Service {
        let mut annotations = json!({ ENABLED: "true" });
        if let Some(configs) = configs {
            annotations[CONFIGS] = json!(configs);
        }
        serde_json::from_value(json!({
            "metadata": { "name": "web", "annotations": annotations },
            "spec": { "ports": [
                { "name": "http", "port": 80, "targetPort": 8080 },
                { "name": "http-alt", "port": 81, "targetPort": "alt" },
                { "name": "metrics", "port": 9090 },
                { "name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53 },
            ] },
        }))
        .expect("a Service")
    }

    fn told(read: &Read) -> Vec<String> {
        let item = |item: &Item| {
            let local = item.local.map_or("=".to_owned(), |port| port.to_string());
            match &item.goes {
                Goes::Number(port) => format!("{} {local} {port}", item.alias),
                Goes::Container { name, service_port } => {
                    format!("{} {local} {name}/{service_port}", item.alias)
                }
            }
        };
        read.items.iter().map(item).chain(read.warnings.iter().cloned()).collect()
    }

    #[test]
    fn only_exactly_true_asks() {
        let mut asks = service(None);
        for other in ["True", "1", "yes", ""] {
            asks.metadata.annotations.as_mut().expect("some").insert(ENABLED.to_owned(), other.to_owned());
            assert_eq!(read(&asks), Read::default(), "{other}");
        }
        assert_eq!(read(&Service::default()), Read::default());
    }

    #[test]
    fn every_tcp_port_without_configs() {
        let expected =
            ["web = 8080", "web = alt/81", "web = 9090", "port 53 is UDP; only TCP ports are taken"];
        assert_eq!(told(&read(&service(None))), expected);
        assert_eq!(told(&read(&service(Some("  ")))), expected);
    }

    #[test]
    fn items_are_read_from_the_right() {
        let read = read(&service(Some(
            "web-8000-80, my-web-8001-http,,a-8002-http-alt, b-1-2-8003-9090, c-0-metrics, x-8004-nope, y-http, -1-2, z-99999-80, q-8005-dns",
        )));
        assert_eq!(
            told(&read),
            [
                "web 8000 80",
                "my-web 8001 8080",
                "a 8002 alt/81",
                "b-1-2 8003 9090",
                "c 0 9090",
                "`x-8004-nope` in kftray.app/configs is passed over: the Service has no TCP port named `nope`",
                "`y-http` in kftray.app/configs is passed over: it is not alias-localPort-remotePort",
                "`-1-2` in kftray.app/configs is passed over: it is not alias-localPort-remotePort",
                "`z-99999-80` in kftray.app/configs is passed over: it is not alias-localPort-remotePort",
                "`q-8005-dns` in kftray.app/configs is passed over: the Service has no TCP port named `dns`",
            ]
        );
    }
}
