//! Everything between a kubeconfig and a permitted port-forward, looked at one by one, for people whose forward does not
//! come up. What is told holds no secret: it is made to be pasted into tickets.

mod permissions;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kftray_commons::api::ContextReport;
use kftray_commons::{ClusterRef, Code, ContextRef, Problem};
use kube::client::Body;
use serde::Deserialize;
use tokio::time::Instant;

use crate::cluster::{ClusterState, Clusters};
use crate::connect::{Asked, request_problem};
use crate::{Cluster, Protocol};

pub use permissions::{judge, judge_relay, permissions};

/// How long the disk may take for the kubeconfig: home folders may be on a network.
const KUBECONFIG: Duration = Duration::from_secs(10);

/// How long login and server may take together: a plugin alone may take 30 s.
const SERVER: Duration = Duration::from_secs(40);

/// Tokens are refused when the clocks differ by more than about this; certificates made just now as well.
const SKEW_SECONDS: i64 = 60;

/// Looks at one context: kubeconfig, login, way to the server, the server itself. The cluster comes along where the
/// kubeconfig could be used, for further questions.
pub async fn context(clusters: &Clusters, reference: &ClusterRef) -> (ContextReport, Option<Arc<Cluster>>) {
    let paths = clusters.kubeconfig_paths(reference.kubeconfig.as_deref());
    let mut report = ContextReport {
        asked: match &reference.context {
            ContextRef::Current => None,
            ContextRef::Named(name) => Some(name.clone()),
        },
        kubeconfig: reference.kubeconfig.clone(),
        paths: paths.iter().map(|path| path.display().to_string()).collect(),
        ..ContextReport::default()
    };
    let cluster = match usable(clusters, reference).await {
        Ok(cluster) => cluster,
        Err(problem) => {
            report.problems.push(problem);
            return (report, None);
        }
    };
    report.name = Some(cluster.context().to_owned());
    report.cluster = Some(cluster.name().to_owned());
    report.user = cluster.user().map(str::to_owned);
    report.namespace = Some(cluster.default_namespace().to_owned());
    report.server = Some(cluster.server());
    report.route = Some(cluster.route());
    server(&cluster, &mut report).await;
    // After the question, which has logged in and may have taught something about transports.
    let transport = cluster.transport();
    report.transport = Some(transport.protocol.to_string());
    report.transport_reason = Some(transport.reason);
    if transport.protocol == Protocol::Legacy {
        let message =
            format!("context {}: only the legacy protocol is left, one connection each", cluster.context());
        report.problems.push(Problem::new(Code::TransportRefused, message));
    }
    report.login = Some(cluster.login_report());
    (report, Some(cluster))
}

async fn usable(clusters: &Clusters, reference: &ClusterRef) -> Result<Arc<Cluster>, Problem> {
    let mut states = clusters.follow(reference);
    let settled = states.wait_for(|state| !matches!(state, ClusterState::Pending));
    let state = tokio::time::timeout(KUBECONFIG, settled).await;
    match state.as_ref().map(|known| known.as_deref()) {
        Ok(Ok(ClusterState::Up(cluster))) => Ok(Arc::clone(cluster)),
        Ok(Ok(ClusterState::Failed(problem))) => Err(problem.clone()),
        Ok(Ok(ClusterState::Pending) | Err(_)) | Err(_) => {
            let waited = KUBECONFIG.as_secs();
            let message = format!("the kubeconfig could not be read within {waited} s");
            Err(Problem::new(Code::KubeconfigMissing, message))
        }
    }
}

/// As much of `/version` as is told.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    git_version: String,
}

/// Asks the server who it is, which needs no permission but a login that works.
async fn server(cluster: &Cluster, report: &mut ContextReport) {
    let begun = Instant::now();
    match tokio::time::timeout(SERVER, ask(cluster)).await {
        Ok(Ok(answer)) => {
            let took = begun.elapsed();
            report.answered_ms = u64::try_from(took.as_millis()).ok();
            report.server_version = answer.version;
            report.clock_skew_seconds = answer.date.map(|date| {
                // The server wrote it about half way.
                let here = Timestamp::now().checked_sub(took / 2).unwrap_or(Timestamp::MIN);
                date.as_second() - here.as_second()
            });
            report.problems.extend(report.clock_skew_seconds.and_then(skewed));
        }
        Ok(Err(problem)) => report.problems.push(problem),
        Err(_) => {
            let message = format!(
                "context {}: {} has not answered for {} s",
                cluster.context(),
                cluster.server(),
                SERVER.as_secs()
            );
            report.problems.push(Problem::new(Code::ClusterUnreachable, message));
        }
    }
}

struct Answer {
    version: Option<String>,
    date: Option<Timestamp>,
}

async fn ask(cluster: &Cluster) -> Result<Answer, Problem> {
    let asked = Asked { verb: "get", resource: "/version", group: "", namespace: None };
    let told = |error: &kube::Error| request_problem(error, asked, cluster.context());
    let internal = |error: http::Error| Problem::new(Code::Internal, error.to_string());
    let request = http::Request::get("/version").body(Body::empty()).map_err(internal)?;
    let response = cluster.client().send(request).await.map_err(|error| told(&error))?;
    let header = response.headers().get(http::header::DATE).and_then(|value| value.to_str().ok());
    let date = header.and_then(|text| jiff::fmt::rfc2822::parse(text).ok()).map(|zoned| zoned.timestamp());
    let status = response.status();
    if !status.is_success() && status != http::StatusCode::FORBIDDEN {
        let message =
            format!("context {}: {} answers {status} to /version", cluster.context(), cluster.server());
        return Err(Problem::new(Code::ClusterError, message));
    }
    let body = response.into_body().collect_bytes().await.map_err(|error| told(&error))?;
    let version = serde_json::from_slice::<Version>(&body).ok().map(|version| version.git_version);
    Ok(Answer { version, date })
}

fn skewed(seconds: i64) -> Option<Problem> {
    if seconds.abs() <= SKEW_SECONDS {
        return None;
    }
    let (how_far, which) = (seconds.unsigned_abs(), if seconds > 0 { "behind" } else { "ahead of" });
    let message = format!("this machine's clock is {how_far} s {which} the API server's");
    Some(Problem::new(Code::ClockWrong, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_differences_of_clocks_are_no_fault() {
        assert_eq!(skewed(0), None);
        assert_eq!(skewed(-60), None);
        let ahead = skewed(-90).expect("a problem");
        assert_eq!(ahead.message, "this machine's clock is 90 s ahead of the API server's");
        assert_eq!(
            skewed(61).expect("a problem").message,
            "this machine's clock is 61 s behind the API server's"
        );
    }
}
