//! The controllers and the kubelet: what makes the objects move.
//!
//! One loop looks at all objects after every change and at the next due time. That is wasteful on a real cluster and
//! exactly right for a dozen pods: there is no state besides the objects and a clock for each pod.

mod endpoints;
mod pods;
mod workloads;

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api::kinds::Kind;
use crate::api::rest::Deletions;
use crate::api::store::{Store, timestamp};
use crate::cluster::Shared;

pub(crate) use pods::{HELD_UNREADY, READY_AFTER, START_AFTER, STOP_AFTER, is_ready, set_ready};
pub(crate) use workloads::NODE;

/// Runs until dropped.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut changes = shared.store.subscribe();
    let mut kubelet = pods::Kubelet::default();
    loop {
        changes.mark_unchanged();
        let next = reconcile(&shared, &mut kubelet, Instant::now());
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = sleep_until(next) => {}
        }
    }
}

/// One look at everything; the time of the next step that is due without a change.
fn reconcile(shared: &Shared, kubelet: &mut pods::Kubelet, now: Instant) -> Option<Instant> {
    collect_garbage(shared);
    workloads::reconcile(&shared.store, shared);
    let next = kubelet.reconcile(shared, now);
    endpoints::reconcile(&shared.store);
    next
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Deletes what has lost its owner or its namespace.
fn collect_garbage(shared: &Shared) {
    let mut alive = HashSet::new();
    for kind in Kind::ALL {
        for object in shared.store.list(kind, None).0 {
            alive.insert(text(&object["metadata"]["uid"]).to_owned());
        }
    }
    for kind in Kind::ALL.into_iter().filter(|kind| kind.namespaced()) {
        for object in shared.store.list(kind, None).0 {
            let metadata = &object["metadata"];
            let (namespace, name) = (text(&metadata["namespace"]), text(&metadata["name"]));
            let homeless = shared.store.get(Kind::Namespace, "", namespace).is_none();
            let owners = metadata["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
            let orphan =
                !owners.is_empty() && owners.iter().all(|owner| !alive.contains(text(&owner["uid"])));
            if homeless || orphan {
                shared.delete(kind, namespace, name, homeless.then_some(0));
            }
        }
    }
}

impl Deletions for Shared {
    fn delete(&self, kind: Kind, namespace: &str, name: &str, grace: Option<u64>) -> Option<Arc<Value>> {
        let object = self.store.get(kind, namespace, name)?;
        if kind != Kind::Pod {
            return self.store.remove(kind, namespace, name);
        }
        let grace = grace.or_else(|| object["spec"]["terminationGracePeriodSeconds"].as_u64()).unwrap_or(30);
        if grace == 0 {
            self.pods.stop(text(&object["metadata"]["uid"]));
            return self.store.remove(kind, namespace, name);
        }
        self.store.update(kind, namespace, name, |pod| {
            if pod["metadata"]["deletionTimestamp"].is_null() {
                pod["metadata"]["deletionTimestamp"] = json!(timestamp());
                pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
            }
        })
    }
}

/// A string field, or nothing.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// An `ownerReferences` list with one controller.
fn owned_by(kind: Kind, owner: &Value) -> Value {
    json!([{
        "apiVersion": kind.api_version(),
        "kind": kind.name(),
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": true,
        "blockOwnerDeletion": true,
    }])
}

fn is_owned_by(object: &Value, owner: &Value) -> bool {
    let owners = object["metadata"]["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
    owners.iter().any(|reference| reference["uid"] == owner["metadata"]["uid"])
}

fn is_deleting(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// Objects of a kind that `owner` controls.
fn owned(store: &Store, kind: Kind, owner: &Value) -> Vec<Arc<Value>> {
    let (objects, _) = store.list(kind, Some(text(&owner["metadata"]["namespace"])));
    objects.into_iter().filter(|object| is_owned_by(object, owner)).collect()
}

/// Ten characters that depend on the value alone.
fn hash(value: &Value) -> String {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};

    let mut hasher = DefaultHasher::new();
    value.to_string().hash(&mut hasher);
    format!("{:010x}", hasher.finish() & 0xff_ffff_ffff)
}
