//! The kubelet: pods start, become ready, and end, each after its time.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{is_deleting, text};
use crate::api::kinds::Kind;
use crate::api::rest::Deletions as _;
use crate::api::store::timestamp;
use crate::cluster::Shared;

/// Annotation: the pod fails its readiness probe.
pub(crate) const HELD_UNREADY: &str = "testkit.kftray/unready";
/// Annotations with times in milliseconds that replace those of [`Timings`](crate::Timings).
pub(crate) const START_AFTER: &str = "testkit.kftray/start-after-ms";
pub(crate) const READY_AFTER: &str = "testkit.kftray/ready-after-ms";
pub(crate) const STOP_AFTER: &str = "testkit.kftray/stop-after-ms";

/// What happens to a pod next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Start,
    Ready,
    Unready,
    Stop,
}

/// The times at which pods take their next step.
#[derive(Debug, Default)]
pub(super) struct Kubelet {
    /// By uid.
    clocks: HashMap<String, (Step, Instant)>,
    /// Addresses given out.
    addresses: u32,
}

impl Kubelet {
    /// Takes all steps that are due; the time of the next.
    pub(super) fn reconcile(&mut self, shared: &Shared, now: Instant) -> Option<Instant> {
        let (pods, _) = shared.store.list(Kind::Pod, None);
        let mut seen = HashSet::new();
        let mut next: Option<Instant> = None;
        for pod in pods {
            let uid = text(&pod["metadata"]["uid"]).to_owned();
            let Some((step, after)) = next_step(&pod, shared) else { continue };
            seen.insert(uid.clone());
            let clock = self.clocks.entry(uid.clone()).or_insert((step, now + after));
            if clock.0 != step {
                *clock = (step, now + after);
            }
            let due = clock.1;
            if due <= now {
                self.clocks.remove(&uid);
                self.take(shared, &pod, step);
            } else {
                next = Some(next.map_or(due, |next| next.min(due)));
            }
        }
        self.clocks.retain(|uid, _| seen.contains(uid));
        next
    }

    fn take(&mut self, shared: &Shared, pod: &Value, step: Step) {
        let metadata = &pod["metadata"];
        let (namespace, name) = (text(&metadata["namespace"]), text(&metadata["name"]));
        match step {
            Step::Start => {
                if pod["status"]["podIP"].is_null() {
                    self.addresses += 1;
                }
                let address = format!("10.244.{}.{}", self.addresses / 250, self.addresses % 250 + 1);
                // Before the object says so: who sees it running must be able to connect.
                shared.pods.start(pod);
                shared.store.update(Kind::Pod, namespace, name, |pod| started(pod, &address));
            }
            Step::Ready | Step::Unready => {
                shared.store.update(Kind::Pod, namespace, name, |pod| set_ready(pod, step == Step::Ready));
            }
            Step::Stop => {
                shared.delete(Kind::Pod, namespace, name, Some(0));
            }
        }
    }
}

fn next_step(pod: &Value, shared: &Shared) -> Option<(Step, Duration)> {
    let timings = &shared.timings;
    let annotations = &pod["metadata"]["annotations"];
    let own = |name: &str| text(&annotations[name]).parse().ok().map(Duration::from_millis);
    let held = annotations[HELD_UNREADY] == "true";
    if is_deleting(pod) {
        let grace = pod["metadata"]["deletionGracePeriodSeconds"].as_u64().unwrap_or(30);
        let stop = own(STOP_AFTER).unwrap_or(timings.pod_stop).min(Duration::from_secs(grace));
        Some((Step::Stop, stop))
    } else if !pod["status"]["containerStatuses"][0]["started"].as_bool().unwrap_or(false) {
        Some((Step::Start, own(START_AFTER).unwrap_or(timings.pod_start)))
    } else if held && is_ready(pod) {
        Some((Step::Unready, Duration::ZERO))
    } else if !held && !is_ready(pod) {
        Some((Step::Ready, own(READY_AFTER).unwrap_or(timings.pod_ready)))
    } else {
        None
    }
}

/// The pod's Ready condition.
pub(crate) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Sets the Ready condition and what goes with it.
pub(crate) fn set_ready(pod: &mut Value, ready: bool) {
    let status = if ready { "True" } else { "False" };
    let now = timestamp();
    let condition =
        |kind: &str, status: &str| json!({ "type": kind, "status": status, "lastTransitionTime": now });
    pod["status"]["conditions"] = json!([
        condition("PodScheduled", "True"),
        condition("Initialized", "True"),
        condition("ContainersReady", status),
        condition("Ready", status),
    ]);
    for container in pod["status"]["containerStatuses"].as_array_mut().into_iter().flatten() {
        container["ready"] = json!(ready);
    }
}

fn started(pod: &mut Value, address: &str) {
    let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or_default();
    let containers = pod["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let statuses: Vec<Value> = containers
        .iter()
        .map(|container| {
            json!({
                "name": container["name"],
                "image": container["image"],
                "imageID": "",
                "ready": false,
                "started": true,
                "restartCount": restarts,
                "state": { "running": { "startedAt": timestamp() } },
            })
        })
        .collect();
    let address = pod["status"]["podIP"].as_str().unwrap_or(address).to_owned();
    pod["status"] = json!({
        "phase": "Running",
        "hostIP": "192.168.0.1",
        "podIP": address,
        "podIPs": [{ "ip": address }],
        "startTime": timestamp(),
        "containerStatuses": statuses,
    });
    set_ready(pod, false);
}
