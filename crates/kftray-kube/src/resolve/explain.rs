//! Why a pod is not ready, in the words of its status.
//!
//! Read from the watch that is there anyway: events would tell more, but need another permission and another watch.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use super::object::{ContainerStatus, Pod, PodCondition};

/// How many different reasons are worth a person's time; the rest is counted.
const REASONS_SHOWN: usize = 3;
/// Longest quoted message of the cluster, in characters: image pull errors can fill a screen.
const QUOTE_MAX: usize = 200;

/// Whether the pod has run to its end; such a pod serves nobody any more.
pub(super) fn is_over(pod: &Pod) -> bool {
    matches!(&*pod.status.phase, "Succeeded" | "Failed")
}

/// Whether the pod's Ready condition is true.
pub(super) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| &*ready.status == "True")
}

/// Whether a container of the pod runs. The phase alone does not tell: it stays `Running` between a crash and the restart.
pub(super) fn is_running(pod: &Pod) -> bool {
    let containers = &pod.status.container_statuses;
    &*pod.status.phase == "Running"
        && (containers.is_empty() || containers.iter().any(|container| container.state.running.is_some()))
}

/// Why new connections cannot go to this pod; `None` if they can.
pub(super) fn pod(pod: &Pod) -> Option<String> {
    let status = &pod.status;
    if &*status.phase == "Succeeded" {
        return Some("it has run to its end".to_owned());
    }
    if &*status.phase == "Failed" {
        let why = [&status.reason, &status.message].into_iter().filter(|text| !text.is_empty());
        let why = why.map(|text| quote(text)).collect::<Vec<_>>().join(": ");
        return Some(if why.is_empty() {
            "it has failed".to_owned()
        } else {
            format!("it has failed ({why})")
        });
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return Some("it is terminating".to_owned());
    }
    if is_ready(pod) {
        return None;
    }
    Some(
        unscheduled(pod)
            .or_else(|| status.init_container_statuses.iter().find_map(init_container))
            .or_else(|| status.container_statuses.iter().find_map(container))
            .or_else(|| condition_text(pod))
            .unwrap_or_else(|| phase_text(pod)),
    )
}

/// One sentence part about all pods: `web-1: container web is ... (and 2 more pods alike); web-4: it is terminating`.
/// Empty if there are no pods.
pub(super) fn pods<'a>(pods: impl IntoIterator<Item = &'a Arc<Pod>>) -> String {
    let mut reasons: BTreeMap<String, (Arc<str>, usize)> = BTreeMap::new();
    for one in pods {
        let reason = pod(one).unwrap_or_else(|| "it is ready, but not yet listed as an endpoint".to_owned());
        let entry = reasons.entry(reason).or_insert_with(|| (Arc::clone(&one.metadata.name), 0));
        entry.1 += 1;
    }
    let left_out = reasons.len().saturating_sub(REASONS_SHOWN);
    // The most frequent reason first: it is the likeliest to be the one to cure.
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, (_, count))| std::cmp::Reverse(*count));
    let mut parts: Vec<String> = reasons
        .into_iter()
        .take(REASONS_SHOWN)
        .map(|(reason, (name, count))| match count {
            1 => format!("{name}: {reason}"),
            2 => format!("{name}: {reason} (and 1 more pod alike)"),
            _ => format!("{name}: {reason} (and {} more pods alike)", count - 1),
        })
        .collect();
    if left_out > 0 {
        parts.push(format!("{left_out} more reasons for other pods"));
    }
    parts.join("; ")
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.conditions.iter().find(|condition| &*condition.kind == kind)
}

fn unscheduled(pod: &Pod) -> Option<String> {
    let scheduled = condition(pod, "PodScheduled").filter(|scheduled| &*scheduled.status == "False")?;
    Some(match &*scheduled.message {
        "" => "it cannot be scheduled".to_owned(),
        message => format!("it cannot be scheduled: {}", quote(message)),
    })
}

/// An init container holds the pod up while it waits, runs or has failed; one that ended well does not.
fn init_container(status: &ContainerStatus) -> Option<String> {
    if let Some(text) = waiting(status).or_else(|| failed(status)) {
        return Some(format!("init {text}"));
    }
    // A sidecar counts as done with its start once it has `started`.
    let busy = status.state.running.is_some() && status.started != Some(true);
    busy.then(|| format!("init container {} is still running", status.name))
}

fn container(status: &ContainerStatus) -> Option<String> {
    waiting(status).or_else(|| failed(status)).or_else(|| unready(status))
}

fn waiting(status: &ContainerStatus) -> Option<String> {
    let waiting = status.state.waiting.as_ref()?;
    let mut text = match &*waiting.reason {
        "ContainerCreating" => format!("container {} is being created", status.name),
        // Waits for the init containers; those say why.
        "PodInitializing" => return None,
        "" => format!("container {} is waiting", status.name),
        reason => format!("container {} is in {reason}", status.name),
    };
    if &*waiting.reason == "CrashLoopBackOff" {
        // Its message only repeats the name of the pod and the delay.
        let _infallible = write!(text, " ({}{})", restarts(status.restart_count), last_exit(status));
    } else if !waiting.message.is_empty() {
        let _infallible = write!(text, ": {}", quote(&waiting.message));
    }
    Some(text)
}

fn failed(status: &ContainerStatus) -> Option<String> {
    let terminated = status.state.terminated.as_ref()?;
    if terminated.exit_code == 0 && &*terminated.reason == "Completed" && status.ready {
        return None;
    }
    if terminated.exit_code == 0 && &*terminated.reason == "Completed" {
        return (status.restart_count > 0)
            .then(|| format!("container {} ended ({})", status.name, restarts(status.restart_count)));
    }
    Some(format!(
        "container {} ended with exit code {}{} ({})",
        status.name,
        terminated.exit_code,
        reason_of_exit(&terminated.reason),
        restarts(status.restart_count)
    ))
}

fn unready(status: &ContainerStatus) -> Option<String> {
    if status.ready || status.state.running.is_none() {
        return None;
    }
    let what = if status.started == Some(false) {
        "has not passed its startup probe yet"
    } else {
        "runs but does not pass its readiness probe"
    };
    let mut text = format!("container {} {what}", status.name);
    if status.restart_count > 0 {
        let _infallible = write!(text, " ({}{})", restarts(status.restart_count), last_exit(status));
    }
    Some(text)
}

/// All containers are fine and still the pod is not: a readiness gate, or a node that does not answer.
fn condition_text(pod: &Pod) -> Option<String> {
    let ready = condition(pod, "Ready")?;
    // The node controller takes the pods of a silent node out of service without a word, while the kubelet always has a reason.
    let wordless = ready.message.is_empty() && ready.reason.is_empty();
    if &*ready.status == "Unknown" || wordless && is_running(pod) {
        return Some("its node does not report any more".to_owned());
    }
    [&ready.message, &ready.reason].into_iter().find(|text| !text.is_empty()).map(|text| quote(text))
}

fn phase_text(pod: &Pod) -> String {
    match &*pod.status.phase {
        "" => "it has no status yet".to_owned(),
        phase => format!("it is {}", phase.to_lowercase()),
    }
}

fn restarts(count: u32) -> String {
    match count {
        1 => "1 restart".to_owned(),
        _ => format!("{count} restarts"),
    }
}

fn last_exit(status: &ContainerStatus) -> String {
    status.last_state.terminated.as_ref().map_or_else(String::new, |last| {
        format!(", last exit code {}{}", last.exit_code, reason_of_exit(&last.reason))
    })
}

/// `Error` and `Completed` say nothing that the exit code does not.
fn reason_of_exit(reason: &str) -> String {
    match reason {
        "" | "Error" | "Completed" => String::new(),
        reason => format!(", {reason}"),
    }
}

/// A message of the cluster on one line and not too long.
fn quote(text: &str) -> String {
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((cut, _)) = line.char_indices().nth(QUOTE_MAX) {
        line.truncate(cut);
        line.push_str("...");
    }
    line.trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn named(name: &str, status: Value) -> Arc<Pod> {
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "status": status})).unwrap())
    }

    fn reason(status: Value) -> Option<String> {
        pod(&named("p", status))
    }

    fn unready_with(containers: Value) -> Value {
        json!({"phase": "Running", "conditions": [
            {"type": "Ready", "status": "False", "reason": "ContainersNotReady",
             "message": "containers with unready status: [web]"}],
            "containerStatuses": containers})
    }

    #[test]
    fn every_state_has_its_words() {
        let table = [
            (json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}), None),
            (
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
                    "reason": "Unschedulable", "message": "0/1 nodes are available:\n1 Insufficient cpu."}]}),
                Some("it cannot be scheduled: 0/1 nodes are available: 1 Insufficient cpu"),
            ),
            (json!({"phase": "Pending"}), Some("it is pending")),
            (json!({}), Some("it has no status yet")),
            (json!({"phase": "Succeeded"}), Some("it has run to its end")),
            (
                json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory."}),
                Some("it has failed (Evicted: The node was low on memory)"),
            ),
            (
                unready_with(json!([{"name": "web", "state": {"waiting":
                    {"reason": "ImagePullBackOff", "message": "Back-off pulling image \"x\""}}}])),
                Some("container web is in ImagePullBackOff: Back-off pulling image \"x\""),
            ),
            (
                unready_with(json!([{"name": "web", "restartCount": 7,
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting"}},
                    "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}])),
                Some("container web is in CrashLoopBackOff (7 restarts, last exit code 137, OOMKilled)"),
            ),
            (
                unready_with(json!([{"name": "web", "restartCount": 1,
                    "state": {"terminated": {"exitCode": 2, "reason": "Error"}}, "lastState": {}}])),
                Some("container web ended with exit code 2 (1 restart)"),
            ),
            (
                unready_with(json!([{"name": "web", "ready": false, "started": true,
                    "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}])),
                Some("container web runs but does not pass its readiness probe"),
            ),
            (
                unready_with(
                    json!([{"name": "web", "ready": false, "started": false, "state": {"running": {}}}]),
                ),
                Some("container web has not passed its startup probe yet"),
            ),
            (
                unready_with(json!([{"name": "web", "ready": true, "state": {"running": {}}}])),
                Some("containers with unready status: [web]"),
            ),
            (
                json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "Unknown"}]}),
                Some("its node does not report any more"),
            ),
            (
                json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}],
                    "containerStatuses": [{"name": "web", "ready": true, "state": {"running": {}}}]}),
                Some("its node does not report any more"),
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [
                    {"name": "done", "ready": true, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
                    {"name": "migrate", "state": {"running": {}}}],
                    "containerStatuses": [{"name": "web", "state": {"waiting": {"reason": "PodInitializing"}}}]}),
                Some("init container migrate is still running"),
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [
                    {"name": "migrate", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                     "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}),
                Some("init container migrate is in CrashLoopBackOff (2 restarts, last exit code 1)"),
            ),
        ];
        for (status, expected) in table {
            assert_eq!(reason(status.clone()).as_deref(), expected, "{status}");
        }
    }

    #[test]
    fn deletion_wins_over_readiness() {
        let gone: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}))
        .unwrap();
        assert_eq!(pod(&gone).as_deref(), Some("it is terminating"));
    }

    #[test]
    fn alike_pods_are_counted_not_repeated() {
        let pending = || json!({"phase": "Pending"});
        let all = [
            named("a", json!({"phase": "Succeeded"})),
            named("b", pending()),
            named("c", pending()),
            named("d", pending()),
        ];
        assert_eq!(pods(&all), "b: it is pending (and 2 more pods alike); a: it has run to its end");
        assert_eq!(pods(&[]), "");
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let text = reason(json!({"phase": "Failed", "message": "ü".repeat(1000)})).unwrap();
        assert!(text.chars().count() < QUOTE_MAX + 40, "{text}");
    }
}
