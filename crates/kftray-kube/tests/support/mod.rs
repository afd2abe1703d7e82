//! What the tests of this crate share: following a kubeconfig, waiting, and programs to run against.
#![expect(dead_code, reason = "each test binary uses a part")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kftray_commons::{ClusterRef, ContextRef, Problem};
use kftray_kube::{Cluster, ClusterState, Clusters, Environment, TransportChoice, TransportMemory};
use tokio::sync::watch;

/// Generous: these machines are shared.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn environment(variables: &[(&str, &str)]) -> Environment {
    let mut all = vec![("PATH", "/usr/local/bin:/usr/bin:/bin"), ("HOME", "/nonexistent")];
    all.extend_from_slice(variables);
    Environment::new(all, "/")
}

pub(crate) fn clusters() -> Clusters {
    clusters_in(environment(&[]))
}

pub(crate) fn clusters_in(environment: Environment) -> Clusters {
    Clusters::new(environment, TransportChoice::Auto, TransportMemory::default())
}

pub(crate) fn entry(path: &Path, context: &str) -> ClusterRef {
    ClusterRef {
        kubeconfig: Some(path.display().to_string()),
        context: ContextRef::Named(context.to_owned()),
    }
}

pub(crate) fn current(path: &Path) -> ClusterRef {
    ClusterRef { kubeconfig: Some(path.display().to_string()), context: ContextRef::Current }
}

/// The next state that satisfies the condition.
pub(crate) async fn wait(
    states: &mut watch::Receiver<ClusterState>,
    mut condition: impl FnMut(&ClusterState) -> bool,
) -> ClusterState {
    tokio::time::timeout(PATIENCE, states.wait_for(|state| condition(state)))
        .await
        .expect("the state within 30 s")
        .expect("the registry lives")
        .clone()
}

pub(crate) async fn settled(clusters: &Clusters, reference: &ClusterRef) -> Result<Arc<Cluster>, Problem> {
    let mut states = clusters.follow(reference);
    match wait(&mut states, |state| !matches!(state, ClusterState::Pending)).await {
        ClusterState::Up(cluster) => Ok(cluster),
        ClusterState::Failed(problem) => Err(problem),
        ClusterState::Pending => unreachable!("waited for another state"),
    }
}

pub(crate) async fn up(clusters: &Clusters, path: &Path, context: &str) -> Arc<Cluster> {
    settled(clusters, &entry(path, context)).await.expect("a usable entry")
}

/// The smallest request there is.
pub(crate) async fn version(cluster: &Cluster) -> Result<(), Problem> {
    let request = http::Request::get("/version").body(Vec::new()).unwrap();
    let asked = kftray_kube::Asked { verb: "get", resource: "version", group: "", namespace: None };
    match tokio::time::timeout(PATIENCE, cluster.client().request_text(request))
        .await
        .expect("an answer within 30 s")
    {
        Ok(_) => Ok(()),
        Err(error) => Err(kftray_kube::request_problem(&error, asked, cluster.context())),
    }
}

/// `host:port` of the API server.
pub(crate) fn address(fake: &kftray_testkit::FakeCluster) -> String {
    fake.url().split_once("://").expect("a URL").1.to_owned()
}

/// Replaces a file the way editors do.
pub(crate) fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}

/// Writes an executable script.
#[cfg(unix)]
pub(crate) fn script(folder: &Path, name: &str, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let (path, new) = (folder.join(name), folder.join(format!("{name}.new")));
    std::fs::write(&new, text).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(&new, &path).unwrap();
    path
}

/// Runs a program from the system's packages to its end.
pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = std::process::Command::new(program).args(arguments).output().unwrap_or_else(|error| {
        panic!("{program} is needed for this test (cargo xtask setup installs it): {error}")
    });
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
