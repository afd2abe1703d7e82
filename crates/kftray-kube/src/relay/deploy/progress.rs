//! What the state of a relay's Job and pod means to the person who waits for it. Pure: objects in, words out.

use std::sync::Arc;

use kftray_commons::{Code, Problem};

use super::refusal::{quote, rule};
use super::seen::{Event, Job, Pod};
use crate::resolve::object::{ContainerStatus, Terminated};

/// How far a relay has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// On its way.
    Starting(Problem),
    /// On its way, but something keeps it from going on that a person can cure; the cluster tries on by itself.
    Stuck(Problem),
    /// Takes tunnels.
    Up,
    /// It has ended and will not come back.
    Over(Problem),
}

/// Before anything is known.
pub(super) fn searching(namespace: &str) -> Problem {
    starting(format!("the relay of namespace {namespace} is being looked for"))
}

fn starting(what: String) -> Problem {
    Problem::new(Code::RelayStarting, what)
}

/// The relay in words: `kftray-relay-jane-1a2b3c4d in namespace shop`.
pub(super) struct Scene<'a> {
    pub(super) namespace: &'a str,
    pub(super) job: &'a str,
    /// What the cluster does not let us see, one sentence each.
    pub(super) notes: &'a [String],
}

impl Scene<'_> {
    /// The best judgement of all that is seen. `pods` are those of this Job.
    pub(super) fn judge(&self, job: Option<&Job>, pods: &[Arc<Pod>], events: &[Arc<Event>]) -> Progress {
        let live = pods.iter().filter(|pod| !pod.is_over() && !pod.is_being_deleted());
        // The youngest: a Job may have replaced one.
        if let Some(pod) =
            live.max_by(|a, b| a.metadata.creation_timestamp.cmp(&b.metadata.creation_timestamp))
        {
            return self.pod(pod, events);
        }
        let ended = pods.iter().find(|pod| pod.is_over() || pod.is_being_deleted());
        match (ended, job.and_then(Job::end)) {
            (Some(pod), _) => Progress::Over(self.ended(pod)),
            (None, Some((reason, message))) => Progress::Over(self.job_ended(reason, message)),
            (None, None) if job.is_some_and(Job::is_being_deleted) => {
                Progress::Over(self.over("somebody has deleted it"))
            }
            (None, None) => self.no_pod(events),
        }
    }

    fn over(&self, why: &str) -> Problem {
        Problem::new(Code::RelayEnded, format!("the relay {}/{} ended: {why}", self.namespace, self.job))
    }

    fn job_ended(&self, reason: &str, message: &str) -> Problem {
        match reason {
            "" => self.over("it had no tunnel for a while"),
            "DeadlineExceeded" => self.over("its active deadline has passed"),
            reason => self.over(&format!("{reason}: {}", quote(message))),
        }
    }

    /// The Job is there and its pod is not: the Job's controller creates it, and tells in events if it may not.
    fn no_pod(&self, events: &[Arc<Event>]) -> Progress {
        let refused = latest(events, |event| event.reason == "FailedCreate");
        let Some(event) = refused else {
            let what = format!("its pod is being created (job {}/{})", self.namespace, self.job);
            return Progress::Starting(starting(self.noted(what)));
        };
        let message = quote(event.message.strip_prefix("Error creating: ").unwrap_or(&event.message));
        let (code, remedy) = rule(&message).unwrap_or((Code::RelayAdmission, None));
        let told = Problem::new(
            code,
            format!(
                "the cluster refuses the pod of relay {}/{} (event FailedCreate of its Job): {message}",
                self.namespace, self.job
            ),
        );
        Progress::Stuck(match remedy {
            Some(remedy) => told.with_remedy(remedy),
            None => told,
        })
    }

    fn pod(&self, pod: &Pod, events: &[Arc<Event>]) -> Progress {
        if pod.is_up() {
            return Progress::Up;
        }
        let name = format!("{}/{}", self.namespace, pod.metadata.meta.name);
        if let Some(message) = pod.condition("PodScheduled", "False") {
            return Progress::Stuck(Problem::new(
                Code::RelayUnschedulable,
                format!("no node takes the relay's pod {name} (condition PodScheduled): {}", quote(message)),
            ));
        }
        let Some(node) = pod.spec.node_name.as_deref() else {
            return Progress::Starting(starting(
                self.noted(format!("scheduling: pod {name} waits for a node")),
            ));
        };
        if let Some(container) = pod.container()
            && let Some(stuck) = self.container(container, pod, &name, events)
        {
            return Progress::Stuck(stuck);
        }
        // Only the newest of what the kubelet tells counts.
        let news = latest(events, |event| {
            matches!(event.reason.as_str(), "Pulling" | "Pulled" | "Created" | "Started")
                || is_trouble(&event.reason)
        });
        let running = pod.container().is_some_and(|container| container.state.running.is_some());
        Progress::Starting(starting(self.noted(match news {
            _ if running => format!("starting: pod {name} runs on node {node} and is not ready yet"),
            Some(event) if event.reason == "Pulling" => {
                format!("pulling: node {node} fetches image {} for pod {name}", pod.image())
            }
            Some(event) if is_trouble(&event.reason) => {
                let message = quote(&event.message);
                format!("starting: pod {name} on node {node} is held up (event {}): {message}", event.reason)
            }
            _ => format!("starting: pod {name} is being prepared on node {node}"),
        })))
    }

    /// What keeps the container from running.
    fn container(
        &self,
        container: &ContainerStatus,
        pod: &Pod,
        name: &str,
        events: &[Arc<Event>],
    ) -> Option<Problem> {
        let waiting = container.state.waiting.as_ref()?;
        let reason = &*waiting.reason;
        let message = quote(&waiting.message);
        match reason {
            "ErrImagePull"
            | "ImagePullBackOff"
            | "InvalidImageName"
            | "ErrImageNeverPull"
            | "ImageInspectError"
            | "RegistryUnavailable"
            | "SignatureValidationFailed" => {
                // "Back-off pulling image" says nothing of the cause; the event of the attempt does.
                let cause =
                    latest(events, |event| event.reason == "Failed" && event.message.contains("pull"))
                        .map(|event| quote(&event.message))
                        .filter(|_| reason == "ImagePullBackOff" && !message.contains(": "));
                let message = cause.unwrap_or(message);
                Some(Problem::new(
                    Code::RelayImagePull,
                    format!("image {} of pod {name} cannot be pulled ({reason}): {message}", pod.image()),
                ))
            }
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                let problem = Problem::new(
                    Code::RelayAdmission,
                    format!("the node cannot start the container of pod {name} ({reason}): {message}"),
                );
                Some(problem.with_remedy(
                    "Look at image and patch of the relay's settings; the node's administrator knows the rest.",
                ))
            }
            _ => None,
        }
    }

    /// Why a pod that had been there is none any more.
    fn ended(&self, pod: &Pod) -> Problem {
        let name = format!("pod {}/{}", self.namespace, pod.metadata.meta.name);
        let status = &pod.status;
        if !status.reason.is_empty() {
            return self.over(&format!("{name} was ended ({}): {}", status.reason, quote(&status.message)));
        }
        if let Some(message) = pod.condition("DisruptionTarget", "True") {
            return self.over(&format!("{name} was evicted: {}", quote(message)));
        }
        let terminated = pod.container().and_then(|container| container.state.terminated.as_ref());
        match terminated {
            Some(Terminated { reason, .. }) if &**reason == "OOMKilled" => {
                let problem = self.over(&format!("{name} used more memory than its limit (OOMKilled)"));
                problem.with_remedy("Raise the memory limit in the relay's resources if this happens again.")
            }
            Some(Terminated { exit_code: 0, .. }) => self.over(&format!("{name} has run to its end")),
            Some(Terminated { exit_code, reason }) => {
                let reason = if &**reason == "Error" { String::new() } else { format!(", {reason}") };
                let problem = self.over(&format!("{name} ended with exit code {exit_code}{reason}"));
                problem.with_remedy(format!(
                    "Look at its log: kubectl logs -n {} {}",
                    self.namespace, pod.metadata.meta.name
                ))
            }
            None if pod.is_being_deleted() => self.over(&format!("{name} is being deleted")),
            None => self.over(&format!("{name} has failed")),
        }
    }

    fn noted(&self, what: String) -> String {
        let text = format!("waiting for the relay: {what}");
        if self.notes.is_empty() { text } else { format!("{text} (note: {})", self.notes.join("; ")) }
    }
}

/// Events of the kubelet that hold a pod up and do not show in its status.
fn is_trouble(reason: &str) -> bool {
    matches!(
        reason,
        "FailedMount"
            | "FailedAttachVolume"
            | "FailedCreatePodSandBox"
            | "NetworkNotReady"
            | "FailedCreatePodContainer"
    )
}

fn latest(events: &[Arc<Event>], is: impl Fn(&Event) -> bool) -> Option<&Arc<Event>> {
    // Of several in one second the one that comes last by name, which is made from a rising number.
    events
        .iter()
        .filter(|event| is(event))
        .max_by(|a, b| (a.when(), &a.metadata.meta.name).cmp(&(b.when(), &b.metadata.meta.name)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: Value) -> Arc<Pod> {
        let spec =
            json!({"nodeName": "n1", "containers": [{"name": "kftray-server", "image": "r.example/x:1"}]});
        let metadata = json!({"name": "relay-1-x", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"});
        Arc::new(
            serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap(),
        )
    }

    fn event(reason: &str, message: &str, time: &str) -> Arc<Event> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": format!("e.{time}")}, "reason": reason,
                "message": message, "lastTimestamp": format!("2026-01-01T00:00:{time}Z")}))
            .unwrap(),
        )
    }

    fn judge(pods: &[Arc<Pod>], events: &[Arc<Event>]) -> Progress {
        Scene { namespace: "shop", job: "relay-1", notes: &[] }.judge(Some(&Job::default()), pods, events)
    }

    fn text(progress: &Progress) -> String {
        match progress {
            Progress::Starting(problem) => format!("starting {}: {}", problem.code, problem.message),
            Progress::Stuck(problem) => format!("stuck {}: {}", problem.code, problem.message),
            Progress::Up => "up".to_owned(),
            Progress::Over(problem) => format!("over {}: {}", problem.code, problem.message),
        }
    }

    /// What is seen, under a name.
    type Case = (&'static str, Vec<Arc<Pod>>, Vec<Arc<Event>>);

    fn waiting(reason: &str, message: &str) -> Value {
        json!({"phase": "Pending", "containerStatuses": [{"name": "kftray-server",
            "state": {"waiting": {"reason": reason, "message": message}}}]})
    }

    #[test]
    fn every_stage_and_every_failure_has_its_words() {
        let creating = || waiting("ContainerCreating", "");
        let ended = |state: Value| json!({"phase": "Failed", "containerStatuses": [{"name": "kftray-server", "state": {"terminated": state}}]});
        let unscheduled = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
            "reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient memory."}]});
        let quota = "Error creating: pods \"relay-1-x\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1";
        let cases: Vec<Case> = vec![
            ("no pod yet", vec![], vec![]),
            ("quota", vec![], vec![event("FailedCreate", quota, "01")]),
            (
                "webhook",
                vec![],
                vec![event(
                    "FailedCreate",
                    "Error creating: admission webhook \"w\" denied the request: no",
                    "01",
                )],
            ),
            ("unscheduled", vec![pod(unscheduled)], vec![]),
            ("being prepared", vec![pod(creating())], vec![event("Scheduled", "", "01")]),
            ("pulling", vec![pod(creating())], vec![event("Pulling", "Pulling image", "02")]),
            (
                "pulled",
                vec![pod(creating())],
                vec![event("Pulling", "Pulling image", "02"), event("Pulled", "done", "03")],
            ),
            ("no network", vec![pod(creating())], vec![event("FailedCreatePodSandBox", "cni says no", "02")]),
            (
                "image",
                vec![pod(waiting(
                    "ErrImagePull",
                    "failed to resolve reference \"r.example/x:1\": not found",
                ))],
                vec![],
            ),
            (
                "back-off, cause in the event",
                vec![pod(waiting("ImagePullBackOff", "Back-off pulling image \"r.example/x:1\""))],
                vec![event("Failed", "Failed to pull image \"r.example/x:1\": no such host", "02")],
            ),
            (
                "root",
                vec![pod(waiting(
                    "CreateContainerConfigError",
                    "container has runAsNonRoot and image will run as root",
                ))],
                vec![],
            ),
            (
                "not ready",
                vec![pod(
                    json!({"phase": "Running", "containerStatuses": [{"name": "kftray-server", "started": false,
                    "state": {"running": {}}}]}),
                )],
                vec![event("Started", "", "03")],
            ),
            (
                "up although callers would find nobody",
                vec![pod(
                    json!({"phase": "Running", "containerStatuses": [{"name": "kftray-server", "started": true,
                    "ready": false, "state": {"running": {}}}]}),
                )],
                vec![],
            ),
            ("memory", vec![pod(ended(json!({"exitCode": 137, "reason": "OOMKilled"})))], vec![]),
            ("crash", vec![pod(ended(json!({"exitCode": 101, "reason": "Error"})))], vec![]),
            ("idle", vec![pod(ended(json!({"exitCode": 0, "reason": "Completed"})))], vec![]),
            (
                "evicted",
                vec![pod(
                    json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}),
                )],
                vec![],
            ),
            (
                "drained",
                vec![pod(
                    json!({"phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "True",
                    "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting"}]}),
                )],
                vec![],
            ),
        ];
        let lines: Vec<String> = cases
            .iter()
            .map(|(case, pods, events)| format!("{case}: {}", text(&judge(pods, events))))
            .collect();
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn a_job_that_ended_or_is_gone_needs_no_pod_to_say_so() {
        let job = |value: Value| serde_json::from_value::<Job>(value).unwrap();
        let scene = Scene { namespace: "shop", job: "relay-1", notes: &[] };
        let deadline = job(json!({"status": {"conditions": [{"type": "Failed", "status": "True",
            "reason": "DeadlineExceeded", "message": "Job was active longer than specified deadline"}]}}));
        assert!(text(&scene.judge(Some(&deadline), &[], &[])).contains("deadline has passed"));
        let deleted = job(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
        assert!(text(&scene.judge(Some(&deleted), &[], &[])).contains("deleted"));
    }

    #[test]
    fn what_may_not_be_seen_is_noted_while_waiting() {
        let notes = ["may not list events in namespace shop".to_owned()];
        let scene = Scene { namespace: "shop", job: "relay-1", notes: &notes };
        assert!(
            text(&scene.judge(None, &[], &[])).ends_with("(note: may not list events in namespace shop)")
        );
    }
}
