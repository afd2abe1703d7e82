//! The EndpointSlice controller: which pods stand behind each Service, and on which ports.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{hash, is_deleting, is_ready, owned_by, text};
use crate::api::kinds::Kind;
use crate::api::store::Store;

/// Label with the name of a slice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label that says who keeps a slice; slices of others are left alone.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const CONTROLLER: &str = "endpointslice-controller.k8s.io";

/// Brings the slices of all Services with a selector up to date.
pub(super) fn reconcile(store: &Store) {
    for service in store.list(Kind::Service, None).0 {
        assign_address(store, &service);
        if service["spec"]["selector"].as_object().is_some_and(|selector| !selector.is_empty()) {
            reconcile_service(store, &service);
        }
    }
}

/// A cluster address from the Service's uid; real ones come from an allocator, nobody here connects to them.
fn assign_address(store: &Store, service: &Value) {
    if !service["spec"]["clusterIP"].is_null() {
        return;
    }
    let hash = hash(&service["metadata"]["uid"]);
    let byte = |range| hash.get(range).and_then(|hex| u8::from_str_radix(hex, 16).ok()).unwrap_or(1);
    let address = format!("10.96.{}.{}", byte(0..2), byte(2..4).max(1));
    let metadata = &service["metadata"];
    store.update(Kind::Service, text(&metadata["namespace"]), text(&metadata["name"]), |service| {
        service["spec"]["clusterIP"] = json!(address);
    });
}

/// Pods that resolve the Service's ports alike share a slice.
type Groups = BTreeMap<String, (Value, Vec<Value>)>;

fn reconcile_service(store: &Store, service: &Value) {
    let namespace = text(&service["metadata"]["namespace"]);
    let name = text(&service["metadata"]["name"]);
    let mut groups = Groups::new();
    for pod in store.list(Kind::Pod, Some(namespace)).0 {
        if !selects(service, &pod) || pod["status"]["podIP"].is_null() {
            continue;
        }
        let ports = resolve_ports(service, &pod);
        let group = groups.entry(hash(&ports)).or_insert_with(|| (ports, Vec::new()));
        group.1.push(endpoint(service, &pod));
    }
    let existing: Vec<Arc<Value>> = store
        .list(Kind::EndpointSlice, Some(namespace))
        .0
        .into_iter()
        .filter(|slice| {
            let labels = &slice["metadata"]["labels"];
            labels[SERVICE_NAME] == name && labels[MANAGED_BY] == CONTROLLER
        })
        .collect();
    let mut wanted: BTreeMap<String, (Value, Vec<Value>)> =
        groups.into_iter().map(|(suffix, group)| (format!("{name}-{suffix}"), group)).collect();
    if wanted.is_empty() {
        // A Service without pods keeps one empty slice, with the ports it had.
        let (slice, ports) = existing.first().map_or_else(
            || (format!("{name}-empty"), json!([])),
            |slice| (text(&slice["metadata"]["name"]).to_owned(), slice["ports"].clone()),
        );
        wanted.insert(slice, (ports, Vec::new()));
    }
    for slice in existing {
        let slice = text(&slice["metadata"]["name"]);
        if !wanted.contains_key(slice) {
            store.remove(Kind::EndpointSlice, namespace, slice);
        }
    }
    for (slice, (ports, endpoints)) in wanted {
        put(store, service, &slice, &ports, &endpoints);
    }
}

fn put(store: &Store, service: &Value, name: &str, ports: &Value, endpoints: &[Value]) {
    let namespace = text(&service["metadata"]["namespace"]);
    let change = |slice: &mut Value| {
        slice["ports"] = ports.clone();
        slice["endpoints"] = json!(endpoints);
    };
    if store.update(Kind::EndpointSlice, namespace, name, change).is_some() {
        return;
    }
    let slice = json!({
        "metadata": {
            "name": name,
            "labels": { SERVICE_NAME: service["metadata"]["name"], MANAGED_BY: CONTROLLER },
            "ownerReferences": owned_by(Kind::Service, service),
        },
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": endpoints,
    });
    if let Err(error) = store.create(Kind::EndpointSlice, namespace, slice) {
        tracing::debug!(%error, "endpoint slice not created");
    }
}

fn selects(service: &Value, pod: &Value) -> bool {
    let labels = &pod["metadata"]["labels"];
    let selector = service["spec"]["selector"].as_object();
    selector.is_some_and(|selector| selector.iter().all(|(name, value)| labels[name] == *value))
}

/// The Service's ports as this pod has them; a named target port that the pod lacks is left out.
fn resolve_ports(service: &Value, pod: &Value) -> Value {
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let resolved: Vec<Value> = ports
        .iter()
        .filter_map(|port| {
            let target = match &port["targetPort"] {
                Value::String(name) => container_port(pod, name)?,
                Value::Number(number) => json!(number),
                Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => port["port"].clone(),
            };
            let mut entry = json!({ "port": target, "protocol": port["protocol"].as_str().unwrap_or("TCP") });
            entry["name"] = json!(text(&port["name"]));
            if !port["appProtocol"].is_null() {
                entry["appProtocol"] = port["appProtocol"].clone();
            }
            Some(entry)
        })
        .collect();
    json!(resolved)
}

fn container_port(pod: &Value, name: &str) -> Option<Value> {
    let containers = pod["spec"]["containers"].as_array()?;
    let mut ports = containers.iter().filter_map(|container| container["ports"].as_array()).flatten();
    ports.find(|port| port["name"] == name).map(|port| port["containerPort"].clone())
}

/// `ready` is false while terminating, `serving` says what readiness alone would.
fn endpoint(service: &Value, pod: &Value) -> Value {
    let (ready, deleting) = (is_ready(pod), is_deleting(pod));
    let always = service["spec"]["publishNotReadyAddresses"].as_bool().unwrap_or(false);
    json!({
        "addresses": [pod["status"]["podIP"]],
        "conditions": { "ready": always || (ready && !deleting), "serving": ready, "terminating": deleting },
        "nodeName": pod["spec"]["nodeName"],
        "targetRef": {
            "kind": "Pod",
            "namespace": pod["metadata"]["namespace"],
            "name": pod["metadata"]["name"],
            "uid": pod["metadata"]["uid"],
        },
    })
}
