//! Deployments, replica sets, stateful sets, daemon sets and jobs: how many pods, of which template, and how one
//! generation replaces another.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{hash, is_deleting, is_ready, owned, owned_by, text};
use crate::api::kinds::Kind;
use crate::api::rest::Deletions;
use crate::api::store::{Store, suffix};

/// The only node.
pub(crate) const NODE: &str = "fake-node";
/// Label of pods and replica sets of a Deployment.
const TEMPLATE_HASH: &str = "pod-template-hash";
/// Label of pods of stateful and daemon sets.
const REVISION_HASH: &str = "controller-revision-hash";

/// Brings all workloads one step further; called again after every change it makes.
pub(super) fn reconcile(store: &Store, deletions: &impl Deletions) {
    let all = |kind| store.list(kind, None).0;
    for deployment in all(Kind::Deployment) {
        deploy(store, &deployment);
    }
    for set in all(Kind::ReplicaSet) {
        keep_replicas(
            store,
            deletions,
            Kind::ReplicaSet,
            &set,
            set["spec"]["replicas"].as_u64().unwrap_or(1),
        );
    }
    for job in all(Kind::Job) {
        keep_replicas(store, deletions, Kind::Job, &job, job["spec"]["parallelism"].as_u64().unwrap_or(1));
    }
    for set in all(Kind::StatefulSet) {
        keep_ordinals(store, deletions, &set);
    }
    for set in all(Kind::DaemonSet) {
        keep_one_per_node(store, deletions, &set);
    }
}

// Deployments.

fn deploy(store: &Store, deployment: &Value) {
    let namespace = text(&deployment["metadata"]["namespace"]);
    let hash = hash(&deployment["spec"]["template"]);
    let name = format!("{}-{hash}", text(&deployment["metadata"]["name"]));
    let desired = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
    let sets = owned(store, Kind::ReplicaSet, deployment);
    let (new, old): (Vec<_>, Vec<_>) =
        sets.into_iter().partition(|set| text(&set["metadata"]["name"]) == name);
    let Some(new) = new.into_iter().next() else {
        create_replica_set(store, deployment, &name, &hash);
        return;
    };
    let counts = Counts::of(store, &new, &old, desired);
    let recreate = deployment["spec"]["strategy"]["type"] == "Recreate";
    if recreate {
        for set in &old {
            scale(store, set, 0);
        }
        if counts.old_pods == 0 {
            scale(store, &new, desired);
        }
    } else {
        roll(store, deployment, &new, &old, &counts);
    }
    let status = json!({
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": counts.new_pods + counts.old_pods,
        "updatedReplicas": counts.new_pods,
        "readyReplicas": counts.new_ready + counts.old_ready,
        "availableReplicas": counts.new_ready + counts.old_ready,
    });
    store.update(Kind::Deployment, namespace, text(&deployment["metadata"]["name"]), |object| {
        object["status"] = status;
    });
}

fn create_replica_set(store: &Store, deployment: &Value, name: &str, hash: &str) {
    let mut template = deployment["spec"]["template"].clone();
    template["metadata"]["labels"][TEMPLATE_HASH] = json!(hash);
    let mut selector = deployment["spec"]["selector"].clone();
    selector["matchLabels"][TEMPLATE_HASH] = json!(hash);
    let set = json!({
        "metadata": {
            "name": name,
            "labels": template["metadata"]["labels"],
            "ownerReferences": owned_by(Kind::Deployment, deployment),
        },
        "spec": { "replicas": 0, "selector": selector, "template": template },
    });
    create(store, Kind::ReplicaSet, text(&deployment["metadata"]["namespace"]), set);
}

struct Counts {
    desired: u64,
    new_pods: u64,
    new_ready: u64,
    old_pods: u64,
    old_ready: u64,
}

impl Counts {
    fn of(store: &Store, new: &Value, old: &[Arc<Value>], desired: u64) -> Self {
        let new_pods = owned(store, Kind::Pod, new);
        let old_pods: Vec<_> = old.iter().flat_map(|set| owned(store, Kind::Pod, set)).collect();
        let ready = |pods: &[Arc<Value>]| count(pods.iter().filter(|pod| is_ready(pod) && !is_deleting(pod)));
        Self {
            desired,
            new_pods: count(new_pods.iter().filter(|pod| !is_deleting(pod))),
            new_ready: ready(&new_pods),
            old_pods: count(old_pods.iter()),
            old_ready: ready(&old_pods),
        }
    }
}

/// A rolling update as the deployment controller does it: up while the surge allows, down while enough are available.
fn roll(store: &Store, deployment: &Value, new: &Value, old: &[Arc<Value>], counts: &Counts) {
    let desired = counts.desired;
    let (surge, unavailable) = budget(&deployment["spec"]["strategy"]["rollingUpdate"], desired);
    let replicas = |set: &Value| set["spec"]["replicas"].as_u64().unwrap_or_default();
    let in_new = replicas(new);
    let in_old: u64 = old.iter().map(|set| replicas(set)).sum();
    if in_new > desired {
        scale(store, new, desired);
        return;
    }
    let room = (desired + surge).saturating_sub(in_new + in_old);
    if in_new < desired && room > 0 {
        scale(store, new, in_new + room.min(desired - in_new));
        return;
    }
    let minimum = desired.saturating_sub(unavailable);
    let new_unavailable = in_new.saturating_sub(counts.new_ready);
    let mut removable = (in_new + in_old).saturating_sub(minimum + new_unavailable);
    // Old pods that are not ready cost nothing; ready ones only above the minimum.
    let mut spare_ready = (counts.new_ready + counts.old_ready).saturating_sub(minimum);
    for set in old {
        let current = replicas(set);
        let ready =
            count(owned(store, Kind::Pod, set).iter().filter(|pod| is_ready(pod) && !is_deleting(pod)));
        let broken = current.saturating_sub(ready).min(removable);
        let healthy = (current - broken).min(spare_ready).min(removable - broken);
        removable -= broken + healthy;
        spare_ready -= healthy;
        scale(store, set, current - broken - healthy);
    }
}

/// maxSurge (rounded up) and maxUnavailable (rounded down); both 25 % by default, never both zero.
fn budget(strategy: &Value, desired: u64) -> (u64, u64) {
    let resolve = |value: &Value, up: bool| {
        if let Some(number) = value.as_u64() {
            return number;
        }
        let percent: u64 = value.as_str().unwrap_or("25%").trim_end_matches('%').parse().unwrap_or(25);
        if up { (desired * percent).div_ceil(100) } else { desired * percent / 100 }
    };
    let (surge, unavailable) =
        (resolve(&strategy["maxSurge"], true), resolve(&strategy["maxUnavailable"], false));
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

fn scale(store: &Store, set: &Value, replicas: u64) {
    let metadata = &set["metadata"];
    store.update(Kind::ReplicaSet, text(&metadata["namespace"]), text(&metadata["name"]), |set| {
        set["spec"]["replicas"] = json!(replicas);
    });
}

// Pods of a set.

/// Replica sets and jobs: any `desired` pods. Terminating ones do not count, so replacements start at once.
fn keep_replicas(store: &Store, deletions: &impl Deletions, kind: Kind, set: &Value, desired: u64) {
    let mut pods: Vec<_> = owned(store, Kind::Pod, set).into_iter().filter(|pod| !is_deleting(pod)).collect();
    for _ in count(pods.iter())..desired {
        let name = format!("{}-{}", text(&set["metadata"]["name"]), suffix());
        create_pod(store, kind, set, &name, None);
    }
    // The unready first, as the real controller ranks them.
    pods.sort_by_key(|pod| is_ready(pod));
    let excess = count(pods.iter()).saturating_sub(desired);
    for pod in pods.iter().take(usize::try_from(excess).unwrap_or(usize::MAX)) {
        delete_pod(deletions, pod);
    }
    set_status(store, kind, set);
}

/// Stateful sets: `name-0`, `name-1`, ... in order, each ready before the next; updates from the last to the first.
fn keep_ordinals(store: &Store, deletions: &impl Deletions, set: &Value) {
    let desired = set["spec"]["replicas"].as_u64().unwrap_or(1);
    let base = text(&set["metadata"]["name"]);
    let revision = hash(&set["spec"]["template"]);
    let pods = owned(store, Kind::Pod, set);
    let pod = |ordinal: u64| {
        let name = format!("{base}-{ordinal}");
        pods.iter().find(|pod| text(&pod["metadata"]["name"]) == name)
    };
    set_status(store, Kind::StatefulSet, set);
    for ordinal in 0..desired {
        match pod(ordinal) {
            None => {
                create_pod(store, Kind::StatefulSet, set, &format!("{base}-{ordinal}"), Some(&revision));
                return;
            }
            Some(pod) if is_deleting(pod) || !is_ready(pod) => return,
            Some(_) => {}
        }
    }
    let last = pods.iter().filter(|pod| {
        let ordinal =
            text(&pod["metadata"]["name"]).rsplit('-').next().and_then(|text| text.parse::<u64>().ok());
        ordinal.is_some_and(|ordinal| ordinal >= desired)
    });
    last.for_each(|pod| delete_pod(deletions, pod));
    let outdated =
        (0..desired).rev().filter_map(pod).find(|pod| pod["metadata"]["labels"][REVISION_HASH] != revision);
    if let Some(pod) = outdated {
        delete_pod(deletions, pod);
    }
}

/// Daemon sets: one pod, since there is one node; an update deletes first (maxUnavailable 1).
fn keep_one_per_node(store: &Store, deletions: &impl Deletions, set: &Value) {
    let revision = hash(&set["spec"]["template"]);
    let pods = owned(store, Kind::Pod, set);
    if pods.is_empty() {
        let name = format!("{}-{}", text(&set["metadata"]["name"]), suffix());
        create_pod(store, Kind::DaemonSet, set, &name, Some(&revision));
    }
    for pod in pods.iter().filter(|pod| pod["metadata"]["labels"][REVISION_HASH] != revision) {
        delete_pod(deletions, pod);
    }
    set_status(store, Kind::DaemonSet, set);
}

fn create_pod(store: &Store, kind: Kind, set: &Value, name: &str, revision: Option<&str>) {
    let template = &set["spec"]["template"];
    let mut pod = json!({
        "metadata": template["metadata"],
        "spec": template["spec"],
        "status": { "phase": "Pending" },
    });
    pod["metadata"]["name"] = json!(name);
    pod["metadata"]["ownerReferences"] = owned_by(kind, set);
    pod["spec"]["nodeName"] = json!(NODE);
    if let Some(revision) = revision {
        pod["metadata"]["labels"][REVISION_HASH] = json!(revision);
    }
    create(store, Kind::Pod, text(&set["metadata"]["namespace"]), pod);
}

fn delete_pod(deletions: &impl Deletions, pod: &Value) {
    let metadata = &pod["metadata"];
    deletions.delete(Kind::Pod, text(&metadata["namespace"]), text(&metadata["name"]), None);
}

fn create(store: &Store, kind: Kind, namespace: &str, object: Value) {
    if let Err(error) = store.create(kind, namespace, object) {
        tracing::debug!(%error, "not created");
    }
}

fn set_status(store: &Store, kind: Kind, set: &Value) {
    let pods: Vec<_> = owned(store, Kind::Pod, set).into_iter().filter(|pod| !is_deleting(pod)).collect();
    let (total, ready) = (count(pods.iter()), count(pods.iter().filter(|pod| is_ready(pod))));
    let status = match kind {
        Kind::DaemonSet => json!({
            "desiredNumberScheduled": 1, "currentNumberScheduled": total, "numberReady": ready,
            "numberAvailable": ready, "updatedNumberScheduled": total, "numberMisscheduled": 0,
        }),
        Kind::Job => json!({ "active": total, "ready": ready }),
        Kind::Namespace
        | Kind::Node
        | Kind::Pod
        | Kind::Service
        | Kind::EndpointSlice
        | Kind::Deployment
        | Kind::ReplicaSet
        | Kind::StatefulSet
        | Kind::Event
        | Kind::Secret
        | Kind::Ingress
        | Kind::IngressClass
        | Kind::NetworkPolicy
        | Kind::Role
        | Kind::RoleBinding => {
            json!({ "replicas": total, "readyReplicas": ready, "availableReplicas": ready })
        }
    };
    let metadata = &set["metadata"];
    store.update(kind, text(&metadata["namespace"]), text(&metadata["name"]), |set| {
        set["status"] = status;
        set["status"]["observedGeneration"] = set["metadata"]["generation"].clone();
    });
}

fn count(pods: impl Iterator) -> u64 {
    u64::try_from(pods.count()).unwrap_or(u64::MAX)
}
