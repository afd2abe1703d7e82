//! The relay's life in the cluster: found, started, replaced, explained, cleaned up; and the objects that make a local
//! program reachable.
//!
//! Layers, each testable alone: [`settings`] and [`manifest`] (pure: what is wanted), [`progress`] and [`refusal`] (pure:
//! what the cluster's answers mean), [`api`] (requests), [`life`] (one relay kept up), [`expose`] (Service and Ingress).
//! Tokens: [`key`]. What an administrator does once: [`install`] and [`roles`].

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

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use kftray_commons::{Expose, Problem};
use kftray_portforward::ports::ClusterId;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

pub use install::{Access, Installation, Installed};
pub use inventory::{LogsOf, RelayInfo, Swept};
pub use key::{InstallationKey, KeyError, Token};
pub use roles::{Sheet, rbac};
pub use settings::{IMAGE_VARIABLE, PullPolicy, RelaySettings, RelaySpec};

use crate::Cluster;

/// The port on which the relay takes tunnels, on the pod's loopback only.
pub const TUNNEL_PORT: u16 = 9999;
/// The port with health and metrics.
pub const HEALTH_PORT: u16 = 9998;
/// The port on which an expose's relay listens for the cluster.
pub const EXPOSE_PORT: u16 = 8080;

/// Who we are to the cluster, and what relays are to be like.
#[derive(Debug, Clone)]
pub struct RelayOptions {
    /// The secret from which tokens are derived.
    pub key: InstallationKey,
    /// The person's name on this machine, for labels and names of objects.
    pub owner: String,
    /// Who made it, for an administrator who wonders: `jane@laptop`.
    pub created_by: String,
    /// What relays are to be like.
    pub settings: RelaySettings,
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
    /// What it asks for in the hello; `None`: it asks for nothing, its position is its guard.
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

/// A program of this machine that shall be reachable in the cluster.
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

/// The relays of every cluster that somebody wants. Cheap to clone; all clones share them. Must be made and used within a
/// tokio runtime. Dropping the last clone ends every task; what is in the cluster then ends by itself.
#[derive(Clone)]
pub struct Relays {
    inner: Arc<Inner>,
}

type SharedKey = (ClusterId, Arc<str>);
type ExposeKey = (ClusterId, ExposeName);

struct Inner {
    identity: Identity,
    settings: watch::Sender<RelaySettings>,
    /// Counts up when the machine woke or changed network.
    kick: watch::Sender<u64>,
    runtime: Handle,
    shared: Mutex<HashMap<SharedKey, Running<RelayState>>>,
    exposes: Mutex<HashMap<ExposeKey, (Expose, Running<ExposeState>)>>,
    /// Exposes that are not yet out of the cluster.
    exposed: watch::Sender<usize>,
    tasks: Mutex<JoinSet<()>>,
}

/// Who we are to the cluster.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) key: InstallationKey,
    pub(crate) owner: String,
    pub(crate) created_by: String,
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
            identity: Identity { key, owner, created_by },
            settings: watch::Sender::new(settings),
            kick: watch::Sender::new(0),
            runtime: Handle::current(),
            shared: Mutex::default(),
            exposes: Mutex::default(),
            exposed: watch::Sender::new(0),
            tasks: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Follows the relay for forwards in this namespace until every clone of the receiver is dropped: an installed one, else
    /// this installation's own, which is started if it is not there. It is kept up: started again after an eviction,
    /// replaced when the settings change. All followers share one. When nobody follows any more, an own relay ends by
    /// itself once it has had no tunnel for a while.
    pub fn ensure(&self, cluster: &Arc<Cluster>, namespace: &str) -> watch::Receiver<RelayState> {
        let key: SharedKey = (cluster.id(), namespace.into());
        let mut shared = lock(&self.inner.shared);
        if let Some(running) = shared.get(&key) {
            return running.state.subscribe();
        }
        let state = Arc::new(watch::Sender::new(RelayState::Starting(progress::searching(namespace))));
        let receiver = state.subscribe();
        let life = self.life(cluster, namespace, life::Purpose::Shared);
        let task = until_unused(Arc::downgrade(&self.inner), key.clone(), Arc::clone(&state), life);
        let task = AbortOnDropHandle::new(self.inner.runtime.spawn(task));
        shared.insert(key, Running { state, _task: task });
        receiver
    }

    /// The relay's pods, if [`Self::ensure`] keeps one up for that namespace just now. Asks nobody.
    #[must_use]
    pub fn known(&self, cluster: ClusterId, namespace: &str) -> Option<Arc<[RelayPod]>> {
        let shared = lock(&self.inner.shared);
        let running = shared.get(&(cluster, namespace.into()))?;
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
        self.life(cluster, namespace, life::Purpose::Shared).exists().await
    }

    /// Makes a program of this machine reachable under a name, until every clone of the receiver is dropped; then the objects
    /// are deleted. Its relay is one of its own, in the same namespace. One name is exposed once.
    pub fn expose(
        &self,
        cluster: &Arc<Cluster>,
        name: &ExposeName,
        expose: &Expose,
    ) -> watch::Receiver<ExposeState> {
        let key: ExposeKey = (cluster.id(), name.clone());
        let mut exposes = lock(&self.inner.exposes);
        if let Some((known, running)) = exposes.get(&key) {
            if known == expose {
                return running.state.subscribe();
            }
            // The sender may go: a receiver keeps its last value.
            return watch::Sender::new(ExposeState::Failed(expose::twice(name))).subscribe();
        }
        let state = Arc::new(watch::Sender::new(ExposeState::Starting(progress::searching(&name.namespace))));
        let receiver = state.subscribe();
        let life = self.life(cluster, &name.namespace, life::Purpose::Expose(expose::id(name)));
        let publishing = expose::Publishing::new(life, name.clone(), expose.clone());
        self.inner.exposed.send_modify(|count| *count += 1);
        let task = until_withdrawn(Arc::downgrade(&self.inner), key.clone(), Arc::clone(&state), publishing);
        let task = AbortOnDropHandle::new(self.inner.runtime.spawn(task));
        exposes.insert(key, (expose.clone(), Running { state, _task: task }));
        receiver
    }

    /// Resolves when no expose is left in any cluster. For the end of a program, after all receivers were dropped; give it a
    /// limit, since a cluster that is not reached cannot be tidied (its relays then end by themselves).
    pub async fn withdrawn(&self) {
        // Cannot fail: the sender is in `self`.
        let _never_closed = self.inner.exposed.subscribe().wait_for(|count| *count == 0).await;
    }

    /// New settings: relays that they would make differently are replaced, the old ones end once their tunnels have.
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

    fn life(&self, cluster: &Arc<Cluster>, namespace: &str, purpose: life::Purpose) -> life::Life {
        life::Life::new(
            cluster,
            namespace,
            purpose,
            self.inner.identity.clone(),
            self.inner.settings.subscribe(),
            self.inner.kick.subscribe(),
        )
    }
}

impl std::fmt::Debug for Relays {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relays").field("identity", &self.inner.identity).finish_non_exhaustive()
    }
}

/// Keeps a shared relay up until nobody has a receiver any more, then takes it out of the registry.
async fn until_unused(
    inner: Weak<Inner>,
    key: SharedKey,
    state: Arc<watch::Sender<RelayState>>,
    mut life: life::Life,
) {
    let kept = watch::Sender::new(life::Kept::starting(&key.1));
    let publish = async {
        let mut news = kept.subscribe();
        loop {
            let next = news.borrow_and_update().state.clone();
            state.send_if_modified(|current| {
                let new = *current != next;
                *current = next;
                new
            });
            if news.changed().await.is_err() {
                return;
            }
        }
    };
    let mut work = std::pin::pin!(futures::future::join(life.keep(&kept), publish));
    loop {
        tokio::select! {
            _never = &mut work => return,
            () = state.closed() => {}
        }
        let Some(inner) = inner.upgrade() else { return };
        let mut shared = lock(&inner.shared);
        // New receivers are handed out under this lock only. Dropping the entry ends this task at its next await.
        if state.receiver_count() == 0 {
            shared.remove(&key);
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
    tokio::select! {
        () = publishing.keep(&state) => {}
        () = state.closed() => {}
    }
    let Some(strong) = inner.upgrade() else { return };
    // From here on a new wish starts anew; the objects of the old one are recognised by their owner.
    let ended = lock(&strong.exposes).remove(&key);
    let finish = async move {
        publishing.withdraw().await;
        if let Some(inner) = inner.upgrade() {
            inner.exposed.send_modify(|count| *count -= 1);
        }
    };
    let mut tasks = lock(&strong.tasks);
    while tasks.try_join_next().is_some() {}
    tasks.spawn_on(finish, &strong.runtime);
    drop(tasks);
    drop(ended);
}

/// No change under these locks can panic half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
