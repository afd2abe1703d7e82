//! What stands in the way of forwards: every context and every forward looked at, one by one, without changing anything.
//!
//! Works without a store and without a running engine, so that a face can look when the host cannot be started.

mod forward;

use std::collections::BTreeMap;

use futures::future::join_all;
use jiff::Timestamp;
use kftray_commons::api::{DoctorReport, DoctorRequest};
use kftray_commons::{ClusterRef, ContextRef, ForwardSpec};
use kftray_kube::{KubePorts, diagnose};

/// A forward to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patient {
    /// What it shall be.
    pub spec: ForwardSpec,
    /// Where it listens now, `address:port`; empty if it does not run.
    pub addresses: Vec<String>,
}

/// Looks at what is asked for. Takes as long as the slowest cluster's login and answer, at most about a minute.
pub async fn collect(ports: &KubePorts, request: &DoctorRequest, patients: Vec<Patient>) -> DoctorReport {
    let patients: Vec<Patient> =
        patients.into_iter().filter(|patient| is_meant(request, &patient.spec)).collect();
    // Each context once, in a stable order, however many forwards use it.
    let mut contexts: BTreeMap<(Option<String>, Option<String>), ClusterRef> = BTreeMap::new();
    let wanted = request.contexts.iter().map(|name| ClusterRef {
        kubeconfig: request.kubeconfig.clone(),
        context: if name == CURRENT { ContextRef::Current } else { ContextRef::Named(name.clone()) },
    });
    let used = patients.iter().map(|patient| patient.spec.cluster.clone());
    for cluster in wanted.chain(used) {
        contexts.entry(key(&cluster)).or_insert(cluster);
    }
    if contexts.is_empty() {
        let current = ClusterRef { kubeconfig: request.kubeconfig.clone(), context: ContextRef::Current };
        contexts.insert(key(&current), current);
    }
    let looked = contexts.into_iter().map(|(key, cluster)| async move {
        let (report, cluster) = diagnose::context(ports.clusters(), &cluster).await;
        (key, report, cluster)
    });
    let looked = join_all(looked).await;
    let forwards = patients.iter().map(|patient| {
        let cluster = looked.iter().find(|(known, ..)| *known == key(&patient.spec.cluster));
        let cluster = cluster.and_then(|(_, _, cluster)| cluster.as_deref());
        forward::look(ports, cluster, patient)
    });
    let forwards = join_all(forwards).await;
    DoctorReport {
        at: u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        contexts: looked.into_iter().map(|(_, report, _)| report).collect(),
        forwards,
    }
}

/// The name under which the current context is asked for.
const CURRENT: &str = "@current";

fn is_meant(request: &DoctorRequest, spec: &ForwardSpec) -> bool {
    let by_context = request.contexts.is_empty()
        || match &spec.cluster.context {
            ContextRef::Named(name) => request.contexts.contains(name),
            ContextRef::Current => request.contexts.iter().any(|name| name == CURRENT),
        };
    let by_label = request.labels.is_empty() || request.labels.contains(&spec.label());
    by_context && by_label
}

fn key(cluster: &ClusterRef) -> (Option<String>, Option<String>) {
    let context = match &cluster.context {
        ContextRef::Current => None,
        ContextRef::Named(name) => Some(name.clone()),
    };
    (cluster.kubeconfig.clone(), context)
}
