//! The relay's life in the cluster: found, started, replaced, explained, cleaned up; and the objects that make a local
//! program reachable.
//!
//! Layers, each testable alone: [`settings`] and [`manifest`] (pure: what is wanted), [`progress`] and [`refusal`] (pure:
//! what the cluster's answers mean), [`api`] (requests), [`life`] (one relay kept up), [`installed`] (one that is there for
//! all), [`expose`] (Service and Ingress). Tokens come from [`key`]. What an administrator does by hand: [`install`],
//! [`roles`], [`inventory`].

mod api;
mod expose;
mod install;
mod installed;
mod inventory;
mod key;
mod life;
mod manifest;
mod merge;
mod progress;
mod refusal;
mod roles;
mod seen;
mod settings;
#[cfg(test)]
mod tests;
mod yaml;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures::AsyncBufRead;
use kftray_commons::Problem;
use kftray_commons::spec::Expose;
use kftray_portforward::ports::ClusterId;
use kftray_relay_proto::token::Token;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

pub use install::{Access, Installation, Installed};
pub use inventory::{LogsOf, RelayInfo, Swept};
pub use key::{InstallationKey, KeyError};
pub use roles::{Sheet, SubjectKind, rbac};
pub use settings::{IMAGE_VARIABLE, PullPolicy, RelaySettings, RelaySpec};

use self::life::{Life, Need, Shared};
use crate::Cluster;

/// The port on which the relay takes tunnels, on the pod's loopback only.
const TUNNEL_PORT: u16 = 9999;
/// The port with health and metrics.
const HEALTH_PORT: u16 = 9998;
/// The port on which an expose's relay listens for the cluster.
const EXPOSE_PORT: u16 = 8080;
/// Who we are to the clusters, and what relays are to be like.
#[derive(Debug, Clone)]
pub struct RelayOptions {
    /// The secret from which tokens are derived.
    pub key: InstallationKey,
    /// The person's name on this machine, for labels and names of objects.
    pub owner: String,
    /// Who makes them, for an administrator who wonders: `jane@laptop`.
    pub created_by: String,
    /// What relays are to be like.
    pub settings: RelaySettings,
}

impl RelayOptions {
    /// Options of a process that leaves no file: its relays are not found again by the next.
    #[must_use]
    pub fn ephemeral() -> Self {
        Self {
            key: InstallationKey::ephemeral(),
            owner: String::new(),
            created_by: "kftray".to_owned(),
            settings: RelaySettings::default(),
        }
    }
}

/// Who we are to the cluster.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) key: InstallationKey,
    pub(crate) owner: String,
    pub(crate) created_by: String,
}

/// A pod that carries tunnels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayPod {
    /// Its namespace, which may be another than the target's.
    pub namespace: Arc<str>,
    /// Its name.
    pub pod: Arc<str>,
    /// Its UID.
    pub uid: Arc<str>,
    /// The node, if known.
    pub node: Option<Arc<str>>,
    /// Version of the program in it, as its label says; empty if it says nothing.
    pub version: Arc<str>,
    /// The port for tunnels, on the pod's loopback.
    pub port: u16,
    /// What it is told in the hello; `None`: it asks for nothing, its position is its guard.
    pub token: Option<Token>,
}

/// What is known about a relay now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayState {
    /// It is being found or started; the problem ([`kftray_commons::Code::RelayStarting`]) says what it waits for.
    Starting(Problem),
    /// It takes tunnels: at least one pod, several if an installed relay has replicas. Whoever opens several tunnels spreads
    /// them over the pods in this order, which is another one for each installation.
    Up(Arc<[RelayPod]>),
    /// It cannot be had for this reason. In every case the cluster is watched or asked again, and the next value follows.
    Failed(Problem),
}

/// The name under which a program of this machine shall be reachable in the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ExposeName {
    /// Namespace of the Service.
    pub namespace: String,
    /// The alias: name of the Service for an internal expose, host name for a public one.
    pub alias: String,
}

/// What is known about an expose's objects now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExposeState {
    /// The relay or the objects are on their way; the problem says what they wait for.
    Starting(Problem),
    /// Relay and objects are there.
    Up(Exposed),
    /// It cannot be done for this reason; tried again where that can help.
    Failed(Problem),
}

/// An expose whose objects are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposed {
    /// The relay that is its own.
    pub relay: RelayPod,
    /// The port on which the relay listens inside the pod.
    pub listen: u16,
    /// Where callers reach it.
    pub urls: Vec<String>,
    /// What a person should know about it.
    pub notes: Vec<String>,
}

/// The relays of every cluster that somebody wants. Cheap to clone; all clones share them. Dropping the last clone ends every
/// task; what is in the clusters then ends by itself.
#[derive(Clone)]
pub struct Relays {
    inner: Arc<Inner>,
}

type SharedKey = (ClusterId, Arc<str>);
type ExposeKey = (ClusterId, ExposeName);

struct Inner {
    identity: Arc<Identity>,
    settings: watch::Sender<RelaySettings>,
    /// Counts up when the machine woke or changed network.
    kick: watch::Sender<u64>,
    /// UIDs of pods that a tunnel could not use.
    doubts: watch::Sender<HashSet<Arc<str>>>,
    runtime: Handle,
    relays: Mutex<HashMap<SharedKey, Running<RelayState>>>,
    exposes: Mutex<HashMap<ExposeKey, (watch::Sender<Expose>, Running<ExposeState>)>>,
    /// How many exposes are not yet out of their cluster.
    exposed: watch::Sender<usize>,
}

struct Running<T> {
    state: Arc<watch::Sender<T>>,
    _task: AbortOnDropHandle<()>,
}

impl Relays {
    /// Touches no cluster yet. Must be called within a tokio runtime, on which everything runs.
    #[must_use]
    pub fn new(options: RelayOptions) -> Self {
        let RelayOptions { key, owner, created_by, settings } = options;
        let inner = Inner {
            identity: Arc::new(Identity { key, owner, created_by }),
            settings: watch::Sender::new(settings),
            kick: watch::Sender::new(0),
            doubts: watch::Sender::new(HashSet::new()),
            runtime: Handle::current(),
            relays: Mutex::default(),
            exposes: Mutex::default(),
            exposed: watch::Sender::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Follows the relay for forwards in this namespace until every clone of the receiver is dropped: an installed one, else
    /// this installation's own, which is started if it is not there. It is kept up: started again after an eviction,
    /// replaced when the settings change. All followers share one. When nobody follows any more, an own relay ends by
    /// itself once it has had no tunnel for a while.
    pub fn ensure(&self, cluster: &Arc<Cluster>, namespace: &str) -> watch::Receiver<RelayState> {
        let key: SharedKey = (cluster.id(), namespace.into());
        let mut relays = lock(&self.inner.relays);
        if let Some(running) = relays.get(&key) {
            return running.state.subscribe();
        }
        let state = Arc::new(watch::Sender::new(RelayState::Starting(progress::searching(namespace))));
        let receiver = state.subscribe();
        let life = self.life(cluster, namespace, Need::Forwards);
        let task = until_unused(Arc::downgrade(&self.inner), key.clone(), Arc::clone(&state), life);
        let task = AbortOnDropHandle::new(self.inner.runtime.spawn(task));
        relays.insert(key, Running { state, _task: task });
        receiver
    }

    /// The relay's pods, if [`Self::ensure`] keeps one up for that namespace just now. Asks nobody.
    #[must_use]
    pub fn known(&self, cluster: ClusterId, namespace: &str) -> Option<Arc<[RelayPod]>> {
        let relays = lock(&self.inner.relays);
        let running = relays.get(&(cluster, namespace.into()))?;
        match &*running.state.borrow() {
            RelayState::Up(pods) => Some(Arc::clone(pods)),
            RelayState::Starting(_) | RelayState::Failed(_) => None,
        }
    }

    /// Whether a relay is there that [`Self::ensure`] would use without starting one. Asks the cluster; what it denies
    /// counts as not there.
    pub async fn exists(&self, cluster: &Arc<Cluster>, namespace: &str) -> bool {
        if self.known(cluster.id(), namespace).is_some() {
            return true;
        }
        self.life(cluster, namespace, Need::Forwards).exists().await
    }

    /// A tunnel could not use this relay for a reason that does not pass: an own one is replaced, an installed one is
    /// left alone from now on.
    pub fn doubt(&self, relay: &RelayPod, problem: &Problem) {
        tracing::info!(%problem, pod = %relay.pod, namespace = %relay.namespace, "a relay cannot be used");
        self.inner.doubts.send_if_modified(|doubts| doubts.insert(Arc::clone(&relay.uid)));
    }

    /// Makes a program of this machine reachable under a name, until every clone of the receiver is dropped; then the objects
    /// are deleted, and the same name waits for that. Its relay is one of its own, in the same namespace. One name is
    /// exposed once.
    pub fn expose(
        &self,
        cluster: &Arc<Cluster>,
        name: &ExposeName,
        expose: &Expose,
    ) -> watch::Receiver<ExposeState> {
        let key: ExposeKey = (cluster.id(), name.clone());
        let mut exposes = lock(&self.inner.exposes);
        if let Some((wish, running)) = exposes.get(&key) {
            // Nobody looks any more: it is being withdrawn, and may begin anew with whatever is wished then.
            if running.state.receiver_count() > 0 && *wish.borrow() != *expose {
                // The sender may go: a receiver keeps its last value.
                return watch::Sender::new(ExposeState::Failed(expose::twice(name))).subscribe();
            }
            wish.send_replace(expose.clone());
            return running.state.subscribe();
        }
        let state = Arc::new(watch::Sender::new(ExposeState::Starting(progress::searching(&name.namespace))));
        let receiver = state.subscribe();
        let (wish, wished) = watch::channel(expose.clone());
        let life = self.life(cluster, &name.namespace, Need::Expose(name.alias.clone()));
        let publishing = expose::Publishing::new(life, name.clone(), wished);
        self.inner.exposed.send_modify(|count| *count += 1);
        let task = until_withdrawn(Arc::downgrade(&self.inner), key.clone(), Arc::clone(&state), publishing);
        let task = AbortOnDropHandle::new(self.inner.runtime.spawn(task));
        exposes.insert(key, (wish, Running { state, _task: task }));
        receiver
    }

    /// Resolves when no expose is left in any cluster: for the end of a program, after all receivers were dropped. A cluster
    /// that does not answer is given up after 10 s; its relays then end by themselves.
    pub async fn withdrawn(&self) {
        let mut exposed = self.inner.exposed.subscribe();
        // Cannot fail: the sender is in `self`.
        let _never_closed = exposed.wait_for(|count| *count == 0).await;
    }

    /// New settings: relays that they would make differently are replaced; the old ones end once their tunnels have.
    pub fn set_settings(&self, settings: RelaySettings) {
        self.inner.settings.send_if_modified(|current| {
            let new = *current != settings;
            *current = settings;
            new
        });
    }

    /// The settings in use.
    #[must_use]
    pub fn settings(&self) -> RelaySettings {
        self.inner.settings.borrow().clone()
    }

    /// The machine woke up or changed network: watches are re-established, and what failed is tried at once.
    pub fn network_changed(&self) {
        self.inner.kick.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// All relays of a namespace, or of all (`None`).
    ///
    /// # Errors
    /// Where Jobs may not be listed, or the cluster cannot be reached.
    pub async fn list(&self, cluster: &Cluster, namespace: Option<&str>) -> Result<Vec<RelayInfo>, Problem> {
        inventory::list(cluster, &self.inner.identity, namespace).await
    }

    /// Deletes this installation's relays that have ended or never started, with `all` also those that run.
    ///
    /// # Errors
    /// As [`Self::list`], and where Jobs may not be deleted.
    pub async fn sweep(
        &self,
        cluster: &Cluster,
        namespace: Option<&str>,
        all: bool,
    ) -> Result<Vec<Swept>, Problem> {
        inventory::sweep(cluster, &self.inner.identity, namespace, all).await
    }

    /// The log of a relay's pod.
    ///
    /// # Errors
    /// Where logs may not be read, or the pod is gone.
    pub async fn logs(
        &self,
        cluster: &Cluster,
        namespace: &str,
        pod: &str,
        of: LogsOf,
    ) -> Result<impl AsyncBufRead + use<>, Problem> {
        inventory::logs(cluster, namespace, pod, of).await
    }

    /// Installs a relay for all, or brings the installed one up to this.
    ///
    /// # Errors
    /// Names that are somebody else's (nothing is changed then); what the cluster refuses.
    pub async fn install(&self, cluster: &Cluster, wanted: &Installation) -> Result<Vec<Installed>, Problem> {
        install::install(cluster, &self.inner.identity, wanted).await
    }

    /// Removes an installed relay; its namespace only if asked for.
    ///
    /// # Errors
    /// What the cluster refuses.
    pub async fn uninstall(
        &self,
        cluster: &Cluster,
        wanted: &Installation,
        namespace_too: bool,
    ) -> Result<Vec<Installed>, Problem> {
        install::uninstall(cluster, &self.inner.identity, wanted, namespace_too).await
    }
}

impl Relays {
    fn life(&self, cluster: &Arc<Cluster>, namespace: &str, need: Need) -> Life {
        let inner = &self.inner;
        let shared = Shared {
            identity: Arc::clone(&inner.identity),
            settings: inner.settings.subscribe(),
            kick: inner.kick.subscribe(),
            doubts: inner.doubts.subscribe(),
        };
        Life::new(Arc::clone(cluster), namespace, need, shared)
    }
}

impl fmt::Debug for Relays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relays").field("identity", &self.inner.identity).finish_non_exhaustive()
    }
}

/// Keeps a relay up until nobody has a receiver any more, then takes it out of the registry.
async fn until_unused(
    inner: Weak<Inner>,
    key: SharedKey,
    state: Arc<watch::Sender<RelayState>>,
    mut life: Life,
) {
    loop {
        tokio::select! {
            never = life.keep(&state) => match never {},
            () = state.closed() => {}
        }
        life.abandon().await;
        let Some(inner) = inner.upgrade() else { return };
        // New receivers are handed out under this lock only. Removing the entry ends this task.
        let mut relays = lock(&inner.relays);
        if state.receiver_count() == 0 {
            let _ended = relays.remove(&key);
            return;
        }
    }
}

/// Keeps an expose up until nobody has a receiver any more, then deletes what it has made.
async fn until_withdrawn(
    inner: Weak<Inner>,
    key: ExposeKey,
    state: Arc<watch::Sender<ExposeState>>,
    mut publishing: expose::Publishing,
) {
    loop {
        tokio::select! {
            never = publishing.keep(&state) => match never {},
            () = state.closed() => {}
        }
        publishing.withdraw().await;
        let Some(inner) = inner.upgrade() else { return };
        let mut exposes = lock(&inner.exposes);
        if state.receiver_count() == 0 {
            inner.exposed.send_modify(|count| *count -= 1);
            let _ended = exposes.remove(&key);
            return;
        }
        // Somebody came while it was being withdrawn.
        state.send_replace(ExposeState::Starting(progress::searching(&key.1.namespace)));
    }
}

/// No change under these locks can panic half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
