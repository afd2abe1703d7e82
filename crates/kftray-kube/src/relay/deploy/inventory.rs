//! Every relay that is there, whosever; and the removal of own ones that nobody needs.

use futures::{AsyncBufRead, TryFutureExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kftray_commons::Problem;
use kube::api::LogParams;
use serde_json::Value;

use super::Identity;
use super::api::{Api, DEPLOYMENTS, JOBS, Kind, PODS, identity};
use super::life::{is_alive, is_stale};
use super::manifest::{MANAGER, PROGRAM, annotation, label};
use super::refusal::{self, Tried};
use crate::Cluster;

/// A relay as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayInfo {
    /// Its namespace.
    pub namespace: String,
    /// `Job` or `Deployment`.
    pub kind: &'static str,
    /// Name of that object.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// `relay`, `expose` or `installed`.
    pub purpose: String,
    /// The alias, for an expose.
    pub alias: Option<String>,
    /// Who made it, as the object says: `jane@laptop`.
    pub created_by: String,
    /// Whether this installation made it.
    pub own: bool,
    /// Version of the program.
    pub version: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// `running`, `starting`, `stale` (starting for too long), `ended` or `2/2 running`.
    pub state: String,
    /// Its pods.
    pub pods: Vec<String>,
}

/// What a sweep has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swept {
    /// Namespace of the relay.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Why it was removed: its state.
    pub state: String,
}

/// All relays in a namespace, or in all (`None`), by namespace and age.
pub(super) async fn list(
    cluster: &Cluster,
    by: &Identity,
    namespace: Option<&str>,
) -> Result<Vec<RelayInfo>, Problem> {
    let api = Api::new(cluster.client(), namespace.unwrap_or_default());
    let ours = format!("{}={MANAGER},{}={PROGRAM}", label::MANAGED_BY, label::NAME);
    let jobs = api.list(JOBS, &ours).await?;
    // Not everybody may see Deployments or pods of a whole cluster; the Jobs are what is asked for.
    let deployments = api.list(DEPLOYMENTS, &ours).await.unwrap_or_default();
    let pods = api.list(PODS, &ours).await.unwrap_or_default();
    let now = Timestamp::now();
    let mut list: Vec<RelayInfo> = jobs
        .iter()
        .map(|job| info(JOBS, job, by, job_state(job, now), &pods))
        .chain(
            deployments
                .iter()
                .map(|deployment| info(DEPLOYMENTS, deployment, by, deployment_state(deployment), &pods)),
        )
        .collect();
    list.sort_by(|a, b| (&a.namespace, &a.created, &a.name).cmp(&(&b.namespace, &b.created, &b.name)));
    Ok(list)
}

/// Deletes this installation's relays that have ended or never started; with `all` also those that run.
pub(super) async fn sweep(
    cluster: &Cluster,
    by: &Identity,
    namespace: Option<&str>,
    all: bool,
) -> Result<Vec<Swept>, Problem> {
    let mut swept = Vec::new();
    for relay in list(cluster, by, namespace).await? {
        let expired = matches!(relay.state.as_str(), "ended" | "stale");
        if !relay.own || relay.kind != JOBS.name || !(expired || all) {
            continue;
        }
        let api = Api::new(cluster.client(), &relay.namespace);
        if api.delete(JOBS, &relay.name, &relay.uid).await? {
            swept.push(Swept { namespace: relay.namespace, name: relay.name, state: relay.state });
        }
    }
    Ok(swept)
}

/// Which part of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogsOf {
    /// Only the last lines; `None` is all.
    pub tail: Option<i64>,
    /// Goes on until the pod ends.
    pub follow: bool,
}

/// The log of a relay's pod.
pub(super) async fn logs(
    cluster: &Cluster,
    namespace: &str,
    pod: &str,
    of: LogsOf,
) -> Result<impl AsyncBufRead + use<>, Problem> {
    let api: kube::Api<Pod> = kube::Api::namespaced(cluster.client(), namespace);
    let parameters = LogParams {
        container: Some(PROGRAM.to_owned()),
        follow: of.follow,
        tail_lines: of.tail,
        ..LogParams::default()
    };
    let tried = Tried { verb: "get", kind: PODS, namespace, name: pod };
    api.log_stream(pod, &parameters).map_err(|error| refusal::of_request(&error, &tried)).await
}

fn info(kind: Kind, object: &Value, by: &Identity, state: String, pods: &[Value]) -> RelayInfo {
    let metadata = &object["metadata"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (name, uid) = identity(object);
    let namespace = text(&metadata["namespace"]);
    let labels = &metadata["labels"];
    let belongs = |pod: &&Value| {
        let pod_labels = &pod["metadata"]["labels"];
        pod["metadata"]["namespace"] == namespace.as_str()
            && if kind == JOBS {
                pod_labels[label::NONCE].is_string() && pod_labels[label::NONCE] == labels[label::NONCE]
            } else {
                pod_labels[label::INSTALLED] == "true"
            }
    };
    RelayInfo {
        kind: kind.name,
        purpose: text(&labels[label::COMPONENT]),
        alias: metadata["annotations"][annotation::ALIAS].as_str().map(str::to_owned),
        created_by: text(&metadata["annotations"][annotation::CREATED_BY]),
        own: labels[label::INSTALLATION] == by.key.id(),
        version: text(&labels[label::VERSION]),
        created: text(&metadata["creationTimestamp"]),
        state,
        pods: pods.iter().filter(belongs).map(|pod| identity(pod).0).collect(),
        namespace,
        name,
        uid,
    }
}

fn job_state(job: &Value, now: Timestamp) -> String {
    let state = if !is_alive(job) {
        "ended"
    } else if is_stale(job, now) {
        "stale"
    } else if job["status"]["ready"].as_u64().unwrap_or_default() > 0 {
        "running"
    } else {
        "starting"
    };
    state.to_owned()
}

fn deployment_state(deployment: &Value) -> String {
    let ready = deployment["status"]["readyReplicas"].as_u64().unwrap_or_default();
    format!("{ready}/{} running", deployment["spec"]["replicas"].as_u64().unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn states_of_jobs() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let job = |created: &str, status: Value| json!({"metadata": {"creationTimestamp": created}, "status": status});
        let done = json!({"conditions": [{"type": "Complete", "status": "True"}]});
        for (created, status, expected) in [
            ("2026-01-01T00:59:00Z", json!({"active": 1, "ready": 0}), "starting"),
            ("2026-01-01T00:59:00Z", json!({}), "starting"),
            ("2026-01-01T00:30:00Z", json!({"active": 1, "ready": 0}), "stale"),
            ("2026-01-01T00:30:00Z", json!({"active": 1, "ready": 1}), "running"),
            ("2026-01-01T00:30:00Z", done, "ended"),
        ] {
            assert_eq!(job_state(&job(created, status.clone()), now), expected, "{created} {status}");
        }
    }
}
