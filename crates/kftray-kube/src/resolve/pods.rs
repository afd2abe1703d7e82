//! From pods to endpoints: ownership, container ports by name, conditions. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use kftray_commons::{Code, Problem, RemotePort};
use kftray_portforward::ports::{ClusterId, Condition, Endpoint, Route};

use super::object::{Container, ContainerPort, Pod, ReplicaSet, Workload, is_tcp};
use super::{Way, explain};

/// Where and for whom endpoints are computed.
#[derive(Debug, Clone)]
pub(super) struct Scene {
    /// Goes into every endpoint.
    pub(super) cluster: ClusterId,
    /// Namespace of the target.
    pub(super) namespace: Arc<str>,
    /// The target as people write it: `service/web`, `pod/x`, `app=web`.
    pub(super) what: Arc<str>,
    /// How it is to be reached.
    pub(super) way: Way,
}

impl Scene {
    /// `service/web in namespace shop`
    pub(super) fn place(&self) -> String {
        format!("{} in namespace {}", self.what, self.namespace)
    }
}

/// The endpoints of a target, or why there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// Sorted by pod name; with the reason if none is ready.
    Endpoints(Vec<Endpoint>, Option<Problem>),
    /// The target as it is cannot be forwarded to.
    Failed(Problem),
}

impl Answer {
    /// Endpoints in their stable order; `why` is asked only if none is ready.
    pub(super) fn endpoints(mut endpoints: Vec<Endpoint>, why: impl FnOnce() -> Problem) -> Self {
        endpoints.sort_by(|a, b| (&a.pod, &a.uid, a.port).cmp(&(&b.pod, &b.uid, b.port)));
        let none_ready = !endpoints.iter().any(|endpoint| endpoint.condition == Condition::Ready);
        Self::Endpoints(endpoints, none_ready.then(why))
    }

    /// Whether a connection can be opened now.
    pub(super) fn has_ready(&self) -> bool {
        matches!(self, Self::Endpoints(_, None))
    }
}

/// A port to be found in each pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PodPort {
    /// This one, declared by a container or not: declarations are for information only.
    Number(u16),
    /// The container port of that name, which may differ from pod to pod.
    Name(Box<str>),
}

impl From<&RemotePort> for PodPort {
    fn from(port: &RemotePort) -> Self {
        match port {
            RemotePort::Number(number) => Self::Number(number.get()),
            RemotePort::Name(name) => Self::Name(name.as_str().into()),
        }
    }
}

impl PodPort {
    /// The number in this pod, if it has such a port for that way.
    pub(super) fn of(&self, pod: &Pod, way: Way) -> Option<u16> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Name(name) => container_ports(pod)
                .find(|port| port.name == *name && way.carries(&port.protocol))
                .map(|port| port.container_port),
        }
    }
}

/// Ports of everything that runs as long as the pod does: containers and sidecars.
fn container_ports(pod: &Pod) -> impl Iterator<Item = &ContainerPort> {
    let lasting = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = pod.spec.init_containers.iter().filter(lasting);
    pod.spec.containers.iter().chain(sidecars).flat_map(|container| &container.ports)
}

/// What a pod needs for new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// To be ready, as the pods behind a workload or a selector: some other pod may be.
    Readiness,
    /// To run. A pod that a person has named is meant as it is, and the one that fails its probe is the one to debug;
    /// `kubectl port-forward` asks no more.
    Running,
    /// To exist (a Service's `publishNotReadyAddresses`).
    Existence,
}

/// Endpoints of pods that were found without a Service's slices. `why` is asked if none can be connected to.
pub(super) fn answer(
    scene: &Scene,
    pods: &[Arc<Pod>],
    port: &PodPort,
    needs: Needs,
    why: impl FnOnce() -> Problem,
) -> Answer {
    let alive: Vec<&Arc<Pod>> = pods.iter().filter(|pod| !explain::is_over(pod)).collect();
    let endpoints: Vec<Endpoint> = alive
        .iter()
        .filter_map(|pod| Some(endpoint(scene, pod, port.of(pod, scene.way)?, condition(pod, needs))))
        .collect();
    if endpoints.is_empty()
        && !alive.is_empty()
        && let PodPort::Name(name) = port
    {
        return Answer::Failed(no_named_port(scene, name, pods));
    }
    Answer::endpoints(endpoints, why)
}

/// None of several pods is ready; `none` is for no pods at all.
pub(super) fn none_ready(scene: &Scene, pods: &[Arc<Pod>], none: impl FnOnce() -> Problem) -> Problem {
    match explain::pods(pods) {
        reasons if reasons.is_empty() => none(),
        reasons => {
            Problem::new(Code::NoReadyPods, format!("no pod of {} is ready: {reasons}", scene.place()))
        }
    }
}

/// The one pod meant does not run.
pub(super) fn not_running(scene: &Scene, pods: &[Arc<Pod>]) -> Problem {
    let reason = pods.iter().find_map(|pod| explain::pod(pod)).unwrap_or_default();
    Problem::new(Code::NoReadyPods, format!("{} does not run: {reason}", scene.place()))
        .with_remedy("Look at the pod's events; the forward starts when it runs.")
}

/// No pod declares a container port of that name.
pub(super) fn no_named_port(scene: &Scene, name: &str, pods: &[Arc<Pod>]) -> Problem {
    let declared: BTreeSet<String> =
        pods.iter().flat_map(|pod| container_ports(pod)).map(port_text).collect();
    let declared = match declared.len() {
        0 => "they declare no ports".to_owned(),
        _ => format!("they declare {}", declared.into_iter().collect::<Vec<_>>().join(", ")),
    };
    Problem::new(
        Code::TargetPortMissing,
        format!(
            "the pods of {} have no {} container port named {name}; {declared}",
            scene.place(),
            scene.way.protocol(),
        ),
    )
    .with_remedy("Use one of the names listed, or a port number.")
}

fn port_text(port: &ContainerPort) -> String {
    let protocol = if is_tcp(&port.protocol) { String::new() } else { format!("/{}", port.protocol) };
    match &*port.name {
        "" => format!("{}{protocol}", port.container_port),
        name => format!("{name} ({}{protocol})", port.container_port),
    }
}

fn endpoint(scene: &Scene, pod: &Pod, port: u16, condition: Condition) -> Endpoint {
    let host: Arc<str> = Arc::from(&*pod.status.pod_ip);
    // The relay cannot reach what has no address yet.
    let condition = match condition {
        Condition::Ready | Condition::Draining if scene.way.by_relay && host.is_empty() => {
            Condition::NotReady
        }
        Condition::Ready | Condition::Draining | Condition::NotReady => condition,
    };
    Endpoint {
        cluster: scene.cluster,
        namespace: Arc::clone(&scene.namespace),
        pod: Arc::clone(&pod.metadata.name),
        uid: Arc::clone(&pod.metadata.uid),
        node: pod.spec.node_name.clone(),
        port,
        condition,
        route: if scene.way.by_relay { Route::Relay { host } } else { Route::Direct },
    }
}

/// A pod stays "ready" while it terminates until its probe or its containers say otherwise: that is what serving means.
fn condition(pod: &Pod, needs: Needs) -> Condition {
    let ready = explain::is_ready(pod);
    let enough = match needs {
        Needs::Readiness => ready,
        Needs::Running => ready || explain::is_running(pod),
        Needs::Existence => true,
    };
    match (pod.metadata.deletion_timestamp.is_some(), enough) {
        (true, _) if ready => Condition::Draining,
        (false, true) => Condition::Ready,
        (true | false, _) => Condition::NotReady,
    }
}

/// Whose pods a workload's are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner<'a> {
    /// Kind as owner references spell it: `StatefulSet`.
    pub(super) kind: &'a str,
    /// The workload itself.
    pub(super) workload: &'a Workload,
}

/// The pods that belong to the workload. A selector alone is not enough: two workloads may select the same labels.
///
/// For a Deployment the second value says that some pods are controlled by ReplicaSets whose names do not tell their
/// owner (adopted ones), and that `replica_sets` is needed to know.
pub(super) fn owned(
    owner: Owner<'_>,
    pods: &[Arc<Pod>],
    replica_sets: Option<&[Arc<ReplicaSet>]>,
) -> (Vec<Arc<Pod>>, bool) {
    let meta = &owner.workload.metadata;
    let mut unknown = false;
    let ours = pods
        .iter()
        .filter(|pod| {
            let Some(controller) = pod.metadata.controller() else { return false };
            if owner.kind != "Deployment" {
                return *controller.kind == *owner.kind && controller.uid == meta.uid;
            }
            if &*controller.kind != "ReplicaSet" {
                return false;
            }
            // The controller names its ReplicaSets after Deployment and template hash, so that usually no look-up is
            // needed (kubernetes/kubernetes pkg/controller/deployment/sync.go, getNewReplicaSet).
            let hash = pod.metadata.labels.pod_template_hash.as_deref().unwrap_or_default();
            if controller.name.strip_suffix(hash).and_then(|rest| rest.strip_suffix('-')) == Some(&*meta.name)
            {
                return true;
            }
            unknown = true;
            let set = replica_sets.unwrap_or_default().iter().find(|set| set.metadata.uid == controller.uid);
            set.and_then(|set| set.metadata.controller()).is_some_and(|above| above.uid == meta.uid)
        })
        .cloned()
        .collect();
    (ours, unknown)
}
