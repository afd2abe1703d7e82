//! From a Service to endpoints: which port is meant, and which pods stand behind it. Pure.
//!
//! The remote port is the Service's port first. Its container port is taken from the slices, port by *name*, because a
//! named `targetPort` may be another number in each slice.

use std::collections::BTreeMap;
use std::sync::Arc;

use kftray_commons::{Code, Problem, RemotePort};
use kftray_portforward::ports::{Condition, Endpoint, Route};

use super::explain;
use super::object::{
    Pod, Service, ServicePort, Slice, SliceEndpoint, SlicePort, TargetPort, TargetRef, is_tcp,
};
use super::pods::{self, Answer, Needs, PodPort, Scene};
use super::syntax;

/// What a remote port means for a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A port of the Service.
    Service {
        /// Its name, empty for a single unnamed port; the slices' ports carry the same name.
        name: Box<str>,
        /// Where it goes, by the Service alone.
        target: PodPort,
    },
    /// The Service has no such port: a port of the containers.
    Container(PodPort),
}

/// What must be known of the Service's pods to say more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PodsWanted {
    /// Nothing.
    No,
    /// Why none of them is ready.
    Reason,
    /// The number of a named container port; without it there is no endpoint.
    Port,
}

/// Decides what the remote port means.
///
/// # Errors
/// The Service as it is cannot be forwarded to on that port.
pub(super) fn meaning(scene: &Scene, service: &Service, port: &RemotePort) -> Result<Meaning, Problem> {
    if &*service.spec.kind == "ExternalName" {
        return Err(Problem::new(
            Code::TargetNotForwardable,
            format!(
                "{} is only another name for the host {}; it has no pods",
                scene.place(),
                service.spec.external_name
            ),
        )
        .with_remedy("Say \"via\": \"relay\": the relay reaches other hosts, too."));
    }
    let matches = |candidate: &&ServicePort| match port {
        RemotePort::Number(number) => candidate.port == number.get(),
        RemotePort::Name(name) => *candidate.name == **name,
    };
    // DNS has the same number twice, for UDP and TCP.
    let all: Vec<&ServicePort> = service.spec.ports.iter().filter(matches).collect();
    if let Some(found) = all.iter().find(|candidate| scene.way.carries(&candidate.protocol)) {
        return Ok(Meaning::Service { name: found.name.clone(), target: target(found) });
    }
    if let Some(found) = all.first() {
        let (place, ports) = (scene.place(), ports_text(service));
        let protocol = if found.protocol.is_empty() { "TCP" } else { &*found.protocol };
        return Err(if scene.way.udp {
            let message = format!("port {port} of {place} is {protocol} only ({ports})");
            Problem::new(Code::TargetPortMissing, message)
                .with_remedy("Use a UDP port, or leave out \"protocol\": \"udp\".")
        } else {
            let message =
                format!("port {port} of {place} is {protocol} only; a port-forward carries TCP ({ports})");
            Problem::new(Code::TargetPortMissing, message)
                .with_remedy("Use a TCP port; for UDP say \"protocol\": \"udp\".")
        });
    }
    Ok(Meaning::Container(PodPort::from(port)))
}

/// A Service that is only another name for a host, by way of the relay: the host itself, on the port as it is written.
pub(super) fn other_name(scene: &Scene, service: &Service, port: &RemotePort) -> Option<Answer> {
    let host = &*service.spec.external_name;
    if &*service.spec.kind != "ExternalName" || !scene.way.by_relay || host.is_empty() {
        return None;
    }
    let found = match port {
        RemotePort::Number(number) => Some(number.get()),
        RemotePort::Name(name) => {
            let named = |port: &&ServicePort| *port.name == **name && scene.way.carries(&port.protocol);
            service.spec.ports.iter().find(named).map(|port| port.port)
        }
    };
    let Some(port) = found else {
        let message = format!("{} has no port named {port}; {}", scene.place(), ports_text(service));
        return Some(Answer::Failed(Problem::new(Code::TargetPortMissing, message)));
    };
    let endpoint = Endpoint {
        cluster: scene.cluster,
        namespace: Arc::clone(&scene.namespace),
        pod: "".into(),
        uid: "".into(),
        node: None,
        port,
        condition: Condition::Ready,
        route: Route::Relay { host: host.into() },
    };
    Some(Answer::Endpoints(vec![endpoint], None))
}

fn target(port: &ServicePort) -> PodPort {
    match &port.target_port {
        None | Some(TargetPort::Number(0)) => PodPort::Number(port.port),
        Some(TargetPort::Number(number)) => PodPort::Number(*number),
        Some(TargetPort::Name(name)) => PodPort::Name(name.clone()),
    }
}

/// `its ports: http 80 -> 8080, metrics 9090`
fn ports_text(service: &Service) -> String {
    let one = |port: &ServicePort| {
        let name = if port.name.is_empty() { String::new() } else { format!("{} ", port.name) };
        let target = match target(port) {
            PodPort::Number(number) if number == port.port => String::new(),
            PodPort::Number(number) => format!(" -> {number}"),
            PodPort::Name(target) => format!(" -> {target}"),
        };
        let protocol = if is_tcp(&port.protocol) { String::new() } else { format!("/{}", port.protocol) };
        format!("{name}{}{protocol}{target}", port.port)
    };
    match service.spec.ports.len() {
        0 => "it has no ports".to_owned(),
        _ => format!("its ports: {}", service.spec.ports.iter().map(one).collect::<Vec<_>>().join(", ")),
    }
}

/// The endpoints by the Service's EndpointSlices. `pods` are those of its selector, if they have been looked up.
pub(super) fn by_slices(
    scene: &Scene,
    service: &Service,
    meaning: &Meaning,
    slices: &[Arc<Slice>],
    pods: Option<&[Arc<Pod>]>,
) -> (Answer, PodsWanted) {
    if let Meaning::Container(PodPort::Name(name)) = meaning {
        return named_container_port(scene, service, name, slices, pods);
    }
    let mut behind = Behind::default();
    let mut portless = false;
    for slice in slices {
        match slice_port(scene, slice, meaning) {
            Some(port) => behind.add(scene, slice, Some(port), |_| Some(port)),
            None => portless |= slice.endpoints.iter().any(|endpoint| pod_of(endpoint).is_some()),
        }
    }
    if behind.endpoints.is_empty() && portless {
        return (Answer::Failed(no_pod_has_it(scene, service, meaning)), PodsWanted::No);
    }
    finish(scene, service, behind, pods)
}

/// A name that the Service does not know: perhaps a container port's, which only the pods can tell.
fn named_container_port(
    scene: &Scene,
    service: &Service,
    name: &str,
    slices: &[Arc<Slice>],
    pods: Option<&[Arc<Pod>]>,
) -> (Answer, PodsWanted) {
    let missing = || {
        Answer::Failed(Problem::new(
            Code::TargetPortMissing,
            format!(
                "{} has no port named {name}, nor have its pods' containers; {}",
                scene.place(),
                ports_text(service)
            ),
        ))
    };
    if service.spec.selector.is_empty() {
        return (missing(), PodsWanted::No);
    }
    let Some(known) = pods else {
        let why =
            || Problem::new(Code::NoReadyPods, format!("the pods of {} are still being read", scene.place()));
        return (Answer::endpoints(Vec::new(), why), PodsWanted::Port);
    };
    let port = PodPort::Name(name.into());
    let mut alive = known.iter().filter(|pod| !explain::is_over(pod)).peekable();
    if alive.peek().is_some() && alive.all(|pod| port.of(pod, scene.way).is_none()) {
        return (missing(), PodsWanted::Port);
    }
    let by_uid: BTreeMap<&str, &Arc<Pod>> = known.iter().map(|pod| (&*pod.metadata.uid, pod)).collect();
    let mut behind = Behind::default();
    for slice in slices {
        behind.add(scene, slice, None, |pod| port.of(by_uid.get(&*pod.uid)?, scene.way));
    }
    (finish(scene, service, behind, pods).0, PodsWanted::Port)
}

/// The endpoints by the pods of the Service's selector, where its slices may not be read.
pub(super) fn by_pods(scene: &Scene, service: &Service, meaning: &Meaning, pods: &[Arc<Pod>]) -> Answer {
    let (Meaning::Service { target: port, .. } | Meaning::Container(port)) = meaning;
    let needs = if service.spec.publish_not_ready_addresses { Needs::Existence } else { Needs::Readiness };
    let answer = pods::answer(scene, pods, port, needs, || {
        pods::none_ready(scene, pods, || selects_nothing(scene, service))
    });
    match (answer, meaning) {
        (Answer::Failed(problem), Meaning::Service { .. }) if problem.code == Code::TargetPortMissing => {
            Answer::Failed(no_pod_has_it(scene, service, meaning))
        }
        (answer, _) => answer,
    }
}

fn slice_port(scene: &Scene, slice: &Slice, meaning: &Meaning) -> Option<u16> {
    let (name, target) = match meaning {
        Meaning::Container(PodPort::Number(number)) => return Some(*number),
        Meaning::Container(PodPort::Name(_)) => return None,
        Meaning::Service { name, target } => (name, target),
    };
    let named = |port: &&SlicePort| {
        port.name.as_deref().unwrap_or_default() == &**name
            && scene.way.carries(port.protocol.as_deref().unwrap_or_default())
    };
    let found = slice.ports.iter().find(named)?;
    match (found.port, target) {
        (Some(number), _) => Some(number),
        // "All ports": then the Service's own number holds.
        (None, PodPort::Number(number)) => Some(*number),
        (None, PodPort::Name(_)) => None,
    }
}

fn pod_of(endpoint: &SliceEndpoint) -> Option<&TargetRef> {
    endpoint.target_ref.as_ref().filter(|reference| &*reference.kind == "Pod")
}

/// Namespace, name and uid.
type PodId = (Arc<str>, Arc<str>, Arc<str>);

/// What stands behind a Service, gathered slice by slice.
#[derive(Default)]
struct Behind {
    /// By pod: a dual-stack Service lists every pod once per address family.
    endpoints: BTreeMap<PodId, Endpoint>,
    /// Addresses that are not pods.
    others: Vec<Box<str>>,
}

impl Behind {
    /// `other` is the port of what is no pod.
    fn add(
        &mut self,
        scene: &Scene,
        slice: &Slice,
        other: Option<u16>,
        port: impl Fn(&TargetRef) -> Option<u16>,
    ) {
        for listed in &slice.endpoints {
            let Some(pod) = pod_of(listed) else {
                match other {
                    Some(port) if scene.way.by_relay => self.add_others(scene, listed, port),
                    Some(_) | None => self.others.extend(listed.addresses.iter().cloned()),
                }
                continue;
            };
            let Some(port) = port(pod) else { continue };
            let route = match listed.addresses.first() {
                _ if !scene.way.by_relay => Route::Direct,
                Some(address) => Route::Relay { host: Arc::from(&**address) },
                None => continue,
            };
            let namespace = pod.namespace.clone().unwrap_or_else(|| Arc::clone(&scene.namespace));
            let endpoint = Endpoint {
                cluster: scene.cluster,
                namespace: Arc::clone(&namespace),
                pod: Arc::clone(&pod.name),
                uid: Arc::clone(&pod.uid),
                node: listed.node_name.clone(),
                port,
                condition: condition(listed),
                route,
            };
            let key = (namespace, Arc::clone(&pod.name), Arc::clone(&pod.uid));
            let known = self.endpoints.entry(key).or_insert_with(|| endpoint.clone());
            // The families' slices are written one after the other: believe the one that knows of the termination, and
            // for the rest the one that has seen the pod become ready. The lower port keeps the choice stable.
            if preference(&endpoint) < preference(known) {
                *known = endpoint;
            }
        }
    }

    /// Addresses that are no pods; the relay connects to them all the same.
    fn add_others(&mut self, scene: &Scene, listed: &SliceEndpoint, port: u16) {
        for address in &listed.addresses {
            let host: Arc<str> = Arc::from(&**address);
            let endpoint = Endpoint {
                cluster: scene.cluster,
                namespace: Arc::clone(&scene.namespace),
                pod: "".into(),
                uid: "".into(),
                node: None,
                port,
                condition: condition(listed),
                route: Route::Relay { host: Arc::clone(&host) },
            };
            self.endpoints.insert((Arc::clone(&scene.namespace), "".into(), host), endpoint);
        }
    }
}

/// Lower is preferred. IPv4 before IPv6: what listens on all addresses listens there.
fn preference(endpoint: &Endpoint) -> (u8, u16, bool) {
    let rank = match endpoint.condition {
        Condition::Draining => 0,
        Condition::Ready => 1,
        Condition::NotReady => 2,
    };
    let is_v6 = matches!(&endpoint.route, Route::Relay { host } if host.contains(':'));
    (rank, endpoint.port, is_v6)
}

fn condition(listed: &SliceEndpoint) -> Condition {
    let conditions = &listed.conditions;
    let ready = conditions.ready.unwrap_or(true);
    match (conditions.terminating.unwrap_or(false), ready) {
        (false, true) => Condition::Ready,
        (true, _) if conditions.serving.unwrap_or(ready) => Condition::Draining,
        (true | false, _) => Condition::NotReady,
    }
}

fn finish(
    scene: &Scene,
    service: &Service,
    behind: Behind,
    pods: Option<&[Arc<Pod>]>,
) -> (Answer, PodsWanted) {
    if behind.endpoints.is_empty() && !behind.others.is_empty() {
        return (Answer::Failed(not_pods(scene, behind.others)), PodsWanted::No);
    }
    let answer =
        Answer::endpoints(behind.endpoints.into_values().collect(), || none_ready(scene, service, pods));
    let wanted = if answer.has_ready() || syntax::of_map(&service.spec.selector).is_none() {
        PodsWanted::No
    } else {
        PodsWanted::Reason
    };
    (answer, wanted)
}

fn none_ready(scene: &Scene, service: &Service, pods: Option<&[Arc<Pod>]>) -> Problem {
    match pods {
        Some(pods) => pods::none_ready(scene, pods, || selects_nothing(scene, service)),
        None if service.spec.selector.is_empty() => selects_nothing(scene, service),
        None => Problem::new(Code::NoReadyPods, format!("no pod of {} is ready", scene.place())),
    }
}

fn selects_nothing(scene: &Scene, service: &Service) -> Problem {
    let place = scene.place();
    match syntax::of_map(&service.spec.selector) {
        Some(selector) => Problem::new(
            Code::NoReadyPods,
            format!("no pod matches the selector of {place} ({selector})"),
        )
        .with_remedy("Compare the Service's selector with the pods' labels; the forward starts when a pod matches and is ready."),
        None => Problem::new(
            Code::NoReadyPods,
            format!("{place} has no selector, and no EndpointSlice lists a ready pod for it"),
        )
        .with_remedy("Give the Service a selector, or EndpointSlices that name pods; the forward starts when one is ready."),
    }
}

/// There is no such Service; `others` are the names of those that are known to be there.
pub(super) fn missing(scene: &Scene, name: &str, mut others: Vec<Arc<str>>) -> Problem {
    // A typing error leaves most of the name right.
    let alike = |other: &str| name.chars().zip(other.chars()).take_while(|(a, b)| a == b).count();
    others.sort_by_key(|other| (std::cmp::Reverse(alike(other)), Arc::clone(other)));
    let there = listed(&others).map(|list| format!("; there are {list}")).unwrap_or_default();
    Problem::new(Code::TargetMissing, format!("{} does not exist{there}", scene.place()))
}

/// The first few of many, and how many more: enough to recognise what it is. `None` for nothing.
fn listed<T: AsRef<str>>(names: &[T]) -> Option<String> {
    const SHOWN: usize = 3;
    let shown = names.iter().take(SHOWN).map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => None,
        count if count <= SHOWN => Some(shown),
        count => Some(format!("{shown} and {} more", count - SHOWN)),
    }
}

fn not_pods(scene: &Scene, mut addresses: Vec<Box<str>>) -> Problem {
    addresses.sort();
    addresses.dedup();
    Problem::new(
        Code::TargetNotForwardable,
        format!(
            "{} leads to addresses that are not pods ({}); a port-forward reaches only pods",
            scene.place(),
            listed(&addresses).unwrap_or_default()
        ),
    )
    .with_remedy("Say \"via\": \"relay\": the relay reaches other addresses, too.")
}

fn no_pod_has_it(scene: &Scene, service: &Service, meaning: &Meaning) -> Problem {
    let goes_to = match meaning {
        Meaning::Service { target: PodPort::Name(target), .. } => {
            format!("goes to the container port named {target}, which none of its pods declares")
        }
        Meaning::Service { .. } | Meaning::Container(_) => "is in none of its EndpointSlices".to_owned(),
    };
    Problem::new(
        Code::TargetPortMissing,
        format!("the port of {} {goes_to}; {}", scene.place(), ports_text(service)),
    )
    .with_remedy(
        "Correct targetPort in the Service or the port's name in the pods, or use a container port number.",
    )
}
