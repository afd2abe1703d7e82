//! An endpoint as the API tells it.

use kftray_commons::api::{EndpointInfo, PodCondition};
use kftray_portforward::ports::{Condition, Endpoint};

/// For everybody to see.
pub(crate) fn info(endpoint: &Endpoint) -> EndpointInfo {
    EndpointInfo {
        pod: endpoint.pod.to_string(),
        namespace: endpoint.namespace.to_string(),
        port: endpoint.port,
        node: endpoint.node.as_deref().map(str::to_owned),
        condition: match endpoint.condition {
            Condition::Ready => PodCondition::Ready,
            Condition::Draining => PodCondition::Draining,
            Condition::NotReady => PodCondition::NotReady,
        },
    }
}
