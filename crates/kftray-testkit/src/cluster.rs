//! [`FakeCluster`]: the handle from which everything hangs.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::api::auth::{Auth, Rule};
use crate::api::connections::Connections;
use crate::api::kinds::Kind;
use crate::api::rest::{Deletions as _, modify};
use crate::api::server::{self, Socket};
use crate::api::status::Status;
use crate::api::store::{Store, timestamp};
use crate::controller::{self, HELD_UNREADY, is_ready, set_ready, text};
use crate::counters::Counters;
use crate::faults::{FaultState, Faults};
use crate::kubeconfig::{Credentials, ExecPlugin, Kubeconfig};
use crate::pki::{Pki, PkiError};
use crate::pods::{Handler, Pods};
use crate::portforward::vices::Timings;
use crate::workload::{ServiceBuilder, WorkloadBuilder};

/// The user every cluster has, who may do everything.
pub const ADMIN: &str = "admin";

/// The namespace of helpers that do not name one.
pub const DEFAULT_NAMESPACE: &str = "default";

/// What all parts of the cluster share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    pub(crate) auth: Auth,
    pub(crate) pods: Pods,
    pub(crate) connections: Arc<Connections>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) faults: watch::Sender<FaultState>,
    pub(crate) timings: Timings,
    /// `None`: plain HTTP.
    pub(crate) pki: Option<Pki>,
    pub(crate) websocket_needs_create: bool,
}

/// Why a cluster could not start or do something.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A socket or file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The API refused.
    #[error(transparent)]
    Api(#[from] Status),
    /// Something did not happen in time.
    #[error("{0} did not happen within {1:?}")]
    TimedOut(String, Duration),
}

/// A user of the cluster.
#[derive(Clone, Debug)]
pub struct User {
    name: String,
    rules: Vec<Rule>,
}

impl User {
    /// A user who may nothing yet.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), rules: Vec::new() }
    }

    /// Allows something.
    #[must_use]
    pub fn may(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }
}

/// How a cluster is to be.
#[derive(Clone, Debug)]
pub struct Builder {
    timings: Timings,
    plain: bool,
    address: IpAddr,
    users: Vec<User>,
    namespaces: Vec<String>,
    websocket_needs_create: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            timings: Timings::default(),
            plain: false,
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            users: vec![User::new(ADMIN).may(Rule::anything())],
            namespaces: vec![DEFAULT_NAMESPACE.to_owned(), "kube-system".to_owned()],
            websocket_needs_create: true,
        }
    }
}

impl Builder {
    /// Other times than the true ones.
    #[must_use]
    pub fn timings(mut self, timings: Timings) -> Self {
        self.timings = timings;
        self
    }

    /// Plain HTTP instead of TLS.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.plain = true;
        self
    }

    /// Listens on `::1` instead of `127.0.0.1`.
    #[must_use]
    pub fn ipv6(mut self) -> Self {
        self.address = IpAddr::V6(Ipv6Addr::LOCALHOST);
        self
    }

    /// Adds a user beside [`ADMIN`].
    #[must_use]
    pub fn user(mut self, user: User) -> Self {
        self.users.push(user);
        self
    }

    /// Adds a namespace beside `default` and `kube-system`.
    #[must_use]
    pub fn namespace(mut self, name: &str) -> Self {
        self.namespaces.push(name.to_owned());
        self
    }

    /// Before 1.35 a WebSocket port-forward needed only `get`; from then on (the default here) `create` as well.
    #[must_use]
    pub fn websocket_needs_create(mut self, needs: bool) -> Self {
        self.websocket_needs_create = needs;
        self
    }

    /// Starts the cluster. Must be called in a tokio runtime with time and I/O enabled.
    ///
    /// # Errors
    /// No free port, no temporary directory, no randomness for keys.
    #[expect(clippy::unused_async, reason = "asks for the runtime that the tasks need")]
    pub async fn start(self) -> Result<FakeCluster, ClusterError> {
        let pki = if self.plain { None } else { Some(Pki::new()?) };
        let socket = Socket::bind(SocketAddr::new(self.address, 0))?;
        let address = socket.address();
        let directory = tempfile::Builder::new().prefix("fake-cluster-").tempdir()?;
        let shared = Arc::new(Shared {
            store: Arc::new(Store::new()),
            auth: Auth::default(),
            pods: Pods::default(),
            connections: Arc::new(Connections::default()),
            counters: Arc::new(Counters::default()),
            faults: watch::Sender::new(FaultState::default()),
            timings: self.timings,
            pki,
            websocket_needs_create: self.websocket_needs_create,
        });
        for name in &self.namespaces {
            let namespace = json!({ "metadata": { "name": name }, "status": { "phase": "Active" } });
            shared.store.create(Kind::Namespace, "", namespace)?;
        }
        let node = json!({
            "metadata": { "name": crate::controller::NODE },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
        });
        shared.store.create(Kind::Node, "", node)?;
        let mut credentials = Vec::new();
        for user in self.users {
            shared.auth.set_rules(&user.name, user.rules);
            credentials.push(Credentials::issue(&shared, directory.path(), &user.name)?);
        }
        let listening = watch::Sender::new(true);
        let bound = watch::Sender::new(true);
        let faults = Faults::new(
            shared.faults.clone(),
            listening.clone(),
            bound.subscribe(),
            Arc::clone(&shared.connections),
            Arc::clone(&shared.store),
        );
        let mut tasks = JoinSet::new();
        tasks.spawn(server::serve(Arc::clone(&shared), socket, listening.subscribe(), bound));
        tasks.spawn(controller::run(Arc::clone(&shared)));
        let cluster = FakeCluster { shared, address, faults, credentials, directory, _tasks: tasks };
        Kubeconfig::of_all_users(&cluster).write(&cluster, &cluster.kubeconfig_path())?;
        Ok(cluster)
    }
}

/// A Kubernetes cluster in this process. Dropping it ends everything: sockets, pods, files.
#[derive(Debug)]
pub struct FakeCluster {
    pub(crate) shared: Arc<Shared>,
    address: SocketAddr,
    faults: Faults,
    pub(crate) credentials: Vec<Credentials>,
    directory: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl FakeCluster {
    /// Sets one up.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// One with all defaults.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub async fn start() -> Result<Self, ClusterError> {
        Self::builder().start().await
    }

    // Reaching it.

    /// Where the API server listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The API server's URL with the numeric address.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.shared.pki.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The authority's certificate, PEM; empty without TLS.
    #[must_use]
    pub fn authority(&self) -> &str {
        self.shared.pki.as_ref().map(Pki::authority).unwrap_or_default()
    }

    /// A kubeconfig with several contexts for each user; the current one is `admin`, with a client certificate. See
    /// [`Kubeconfig::of_all_users`] for their names.
    #[must_use]
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    /// A directory that lives as long as the cluster, for further files of a test.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The exec plugin of a user; `None` if there is no such user.
    #[must_use]
    pub fn exec_plugin(&self, user: &str) -> Option<&ExecPlugin> {
        self.credentials
            .iter()
            .find(|credentials| credentials.user == user)
            .map(|credentials| &credentials.plugin)
    }

    // Watching it and breaking it.

    /// The switches for everything that can go wrong.
    #[must_use]
    pub const fn faults(&self) -> &Faults {
        &self.faults
    }

    /// What the cluster has seen.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Replaces what a user may do.
    pub fn set_rules(&self, user: &str, rules: Vec<Rule>) {
        self.shared.auth.set_rules(user, rules);
    }

    /// Makes a token good for `user`, for `life` or for ever.
    pub fn add_token(&self, user: &str, token: &str, life: Option<Duration>) {
        self.shared.auth.add_token(user, token, life.map(|life| Instant::now() + life));
    }

    /// Makes every token of `user` invalid, those of its exec plugin too.
    pub fn revoke_tokens(&self, user: &str) {
        self.shared.auth.revoke_tokens(user);
    }

    // Objects.

    /// Creates any object from JSON as `kubectl create` would; the kind must be one that the cluster knows.
    ///
    /// # Errors
    /// What the API would answer.
    pub fn create(&self, object: Value) -> Result<Value, Status> {
        let kind = Kind::by_name(text(&object["kind"]))
            .ok_or_else(|| Status::bad_request(format!("no kind {}", object["kind"])))?;
        let namespace = match kind.namespaced() {
            true => object["metadata"]["namespace"].as_str().unwrap_or(DEFAULT_NAMESPACE).to_owned(),
            false => String::new(),
        };
        self.shared.store.create(kind, &namespace, object).map(|object| (*object).clone())
    }

    /// An object as the API shows it.
    #[must_use]
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Value> {
        self.shared.store.get(kind, namespace, name).map(|object| (*object).clone())
    }

    /// All objects of a kind in a namespace.
    #[must_use]
    pub fn list(&self, kind: Kind, namespace: &str) -> Vec<Value> {
        let (objects, _) = self.shared.store.list(kind, Some(namespace));
        objects.iter().map(|object| (**object).clone()).collect()
    }

    /// Applies a JSON merge patch; false if there is no such object.
    pub fn patch(&self, kind: Kind, namespace: &str, name: &str, patch: &Value) -> bool {
        self.shared.store.update(kind, namespace, name, |object| modify(object, patch)).is_some()
    }

    /// Deletes an object as `kubectl delete` would: a pod ends in its own time. False if there is none.
    pub fn delete(&self, kind: Kind, namespace: &str, name: &str) -> bool {
        self.shared.delete(kind, namespace, name, None).is_some()
    }

    // Workloads and pods.

    /// A Deployment of one replica; set it up and `create` it.
    pub fn deployment(&self, name: &str) -> WorkloadBuilder<'_> {
        WorkloadBuilder::new(self, Some(Kind::Deployment), name)
    }

    /// A StatefulSet.
    pub fn stateful_set(&self, name: &str) -> WorkloadBuilder<'_> {
        WorkloadBuilder::new(self, Some(Kind::StatefulSet), name)
    }

    /// A DaemonSet; there is one node.
    pub fn daemon_set(&self, name: &str) -> WorkloadBuilder<'_> {
        WorkloadBuilder::new(self, Some(Kind::DaemonSet), name)
    }

    /// A ReplicaSet without a Deployment.
    pub fn replica_set(&self, name: &str) -> WorkloadBuilder<'_> {
        WorkloadBuilder::new(self, Some(Kind::ReplicaSet), name)
    }

    /// A Job whose pods never complete.
    pub fn job(&self, name: &str) -> WorkloadBuilder<'_> {
        WorkloadBuilder::new(self, Some(Kind::Job), name)
    }

    /// A single pod that nobody replaces.
    pub fn pod(&self, name: &str) -> WorkloadBuilder<'_> {
        WorkloadBuilder::new(self, None, name)
    }

    /// A Service; its selector is `app=NAME` unless set.
    pub fn service(&self, name: &str) -> ServiceBuilder<'_> {
        ServiceBuilder::new(self, name)
    }

    /// Replaces the program behind a container port of a workload; new connections of its running pods see it.
    pub fn set_handler(&self, namespace: &str, workload: &str, port: u16, handler: Handler) {
        self.shared.pods.set_handler(&format!("{namespace}/{workload}"), port, handler);
    }

    /// Names of the pods with label `app=NAME` that are not terminating, sorted.
    #[must_use]
    pub fn pods(&self, namespace: &str, app: &str) -> Vec<String> {
        let pods = self.list(Kind::Pod, namespace);
        pods.iter()
            .filter(|pod| {
                pod["metadata"]["labels"]["app"] == app && pod["metadata"]["deletionTimestamp"].is_null()
            })
            .map(|pod| text(&pod["metadata"]["name"]).to_owned())
            .collect()
    }

    /// The node of a pod loses it: connections end and the object is gone at once. False if there is no such pod.
    pub fn kill_pod(&self, namespace: &str, pod: &str) -> bool {
        self.shared.delete(Kind::Pod, namespace, pod, Some(0)).is_some()
    }

    /// `kubectl delete pod`: terminating first, gone after [`Timings::pod_stop`]. False if there is no such pod.
    pub fn terminate_pod(&self, namespace: &str, pod: &str) -> bool {
        self.delete(Kind::Pod, namespace, pod)
    }

    /// The pod's program crashes: connections end, the pod is not ready, its ports refuse, and the container starts
    /// again in the same pod. False if there is no such pod.
    pub fn crash_pod(&self, namespace: &str, pod: &str) -> bool {
        let Some(object) = self.shared.store.get(Kind::Pod, namespace, pod) else { return false };
        self.shared.pods.crash(text(&object["metadata"]["uid"]));
        let update = self.shared.store.update(Kind::Pod, namespace, pod, |pod| {
            set_ready(pod, false);
            for container in pod["status"]["containerStatuses"].as_array_mut().into_iter().flatten() {
                let restarts = container["restartCount"].as_u64().unwrap_or_default();
                container["restartCount"] = json!(restarts + 1);
                container["started"] = json!(false);
                container["state"] = json!({ "waiting": { "reason": "CrashLoopBackOff" } });
            }
        });
        update.is_some()
    }

    /// The pod fails (or passes again) its readiness probe; its program goes on. False if there is no such pod.
    pub fn hold_unready(&self, namespace: &str, pod: &str, unready: bool) -> bool {
        let value = if unready { json!("true") } else { Value::Null };
        let patch = json!({ "metadata": { "annotations": { HELD_UNREADY: value } } });
        let known = self.patch(Kind::Pod, namespace, pod, &patch);
        if known && unready {
            // At once, not at the controller's next turn: a test that looks right after must see it.
            self.shared.store.update(Kind::Pod, namespace, pod, |pod| set_ready(pod, false));
        }
        known
    }

    /// `kubectl rollout restart`: every pod of the workload is replaced. False if there is no such workload.
    pub fn rollout_restart(&self, kind: Kind, namespace: &str, name: &str) -> bool {
        // The time alone has seconds; two restarts within one must be two.
        let stamp = format!("{} {}", timestamp(), crate::api::store::uid());
        let annotations = json!({ "kubectl.kubernetes.io/restartedAt": stamp });
        let patch = json!({ "spec": { "template": { "metadata": { "annotations": annotations } } } });
        self.patch(kind, namespace, name, &patch)
    }

    /// `kubectl scale`. False if there is no such workload.
    pub fn scale(&self, kind: Kind, namespace: &str, name: &str, replicas: u64) -> bool {
        self.patch(kind, namespace, name, &json!({ "spec": { "replicas": replicas } }))
    }

    /// Waits until `count` pods with label `app=NAME` are ready and no other pod of it exists, terminating ones
    /// included.
    ///
    /// # Errors
    /// [`ClusterError::TimedOut`] after 30 s.
    pub async fn wait_ready(&self, namespace: &str, app: &str, count: usize) -> Result<(), ClusterError> {
        self.wait_for(&format!("{count} ready pods of {namespace}/{app}"), |cluster| {
            let pods = cluster.list(Kind::Pod, namespace);
            let pods: Vec<_> = pods.iter().filter(|pod| pod["metadata"]["labels"]["app"] == app).collect();
            let good = pods
                .iter()
                .filter(|pod| is_ready(pod) && pod["metadata"]["deletionTimestamp"].is_null())
                .count();
            pods.len() == count && good == count
        })
        .await
    }

    /// Waits until the objects satisfy `condition`, looked at after every change. `what` names it in the error.
    ///
    /// # Errors
    /// [`ClusterError::TimedOut`] after 30 s.
    pub async fn wait_for(&self, what: &str, condition: impl Fn(&Self) -> bool) -> Result<(), ClusterError> {
        // Longer than any sequence of pod timings in use, shorter than a test runner's patience.
        const LIMIT: Duration = Duration::from_secs(30);
        let mut changes = self.shared.store.subscribe();
        let waiting = async {
            loop {
                changes.mark_unchanged();
                if condition(self) || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let timed_out = |_| ClusterError::TimedOut(what.to_owned(), LIMIT);
        tokio::time::timeout(LIMIT, waiting).await.map_err(timed_out)
    }
}
