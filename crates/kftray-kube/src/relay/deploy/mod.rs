//! The relay's life in the cluster: found, started, replaced, explained, cleaned up; and the objects that make a local
//! program reachable.
//!
//! Layers, each testable alone: `settings` and `manifest` (pure: what is wanted), `progress` and `refusal` (pure:
//! what the cluster's answers mean), `api` (requests), `life` (one relay kept up), `installed` (one that is there for
//! all), `expose` (Service and Ingress), `outside` (what else the world needs to get in). Tokens come from `key`. What an administrator does by hand: `install`,
//! `roles`, `inventory`.

mod api;
mod expose;
mod install;
mod installed;
mod inventory;
mod key;
mod life;
mod manifest;
mod merge;
mod outside;
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
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures::future::BoxFuture;
use futures::{AsyncBufRead, FutureExt as _};
use kftray_commons::{ClusterRef, Code, Problem};
use kftray_portforward::ports::Offer;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

pub use install::{Access, Installation, Installed};
pub use inventory::{LogsOf, RelayInfo, Swept};
pub use key::{InstallationKey, KeyError};
pub use roles::{Sheet, SubjectKind, rbac};
pub use settings::{IMAGE_VARIABLE, PullPolicy, RelaySettings, RelaySpec, with_environment};

use self::api::Api;
use self::life::{Life, Shared, publish};
use super::{Exposed, Need, RelayPod, RelayState, Relays};
use crate::{Cluster, ClusterState, Clusters, Environment};

/// The port on which the relay takes tunnels, on the pod's loopback only.
const TUNNEL_PORT: u16 = 9999;
/// The port with health and metrics.
const HEALTH_PORT: u16 = 9998;
/// The port on which an expose's relay listens for the cluster.
const EXPOSE_PORT: u16 = 8080;
/// The installation's key, in the directory of its files.
const KEY_FILE: &str = "relay.key";

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
    /// Of the installation that keeps its files in `directory`, as the user whom the environment names. Reads the key, or
    /// makes it; blocks on the disk.
    ///
    /// # Errors
    /// [`KeyError`] if the key cannot be read or made.
    pub fn of(environment: &Environment, directory: &Path) -> Result<Self, KeyError> {
        Ok(Self {
            key: InstallationKey::load(&directory.join(KEY_FILE))?,
            owner: environment.user().to_owned(),
            created_by: created_by(environment),
            settings: with_environment(RelaySettings::default(), environment),
        })
    }

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

/// Who makes objects, as far as the system tells: `jane@laptop`.
#[must_use]
pub fn created_by(environment: &Environment) -> String {
    let user = Some(environment.user()).filter(|user| !user.is_empty()).unwrap_or("somebody");
    let host = ["HOSTNAME", "COMPUTERNAME"].iter().find_map(|name| environment.text(name)).map(str::to_owned);
    let host = host.or_else(|| std::fs::read_to_string("/etc/hostname").ok()).unwrap_or_default();
    match host.trim() {
        "" => user.to_owned(),
        host => format!("{user}@{host}"),
    }
}

/// Who we are to the cluster.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) key: InstallationKey,
    pub(crate) owner: String,
    pub(crate) created_by: String,
}

/// The relays of all clusters. Cheap to clone; all clones share them. Dropping the last clone ends every task; what is in
/// the clusters then ends by itself.
#[derive(Clone)]
pub struct Deploy {
    inner: Arc<Inner>,
}

type Key = (ClusterRef, Option<Arc<str>>, Need);

struct Inner {
    clusters: Clusters,
    identity: Arc<Identity>,
    settings: watch::Sender<RelaySettings>,
    /// Counts up when the machine woke or changed network.
    kick: watch::Sender<u64>,
    doubts: watch::Sender<HashSet<Arc<str>>>,
    started: watch::Sender<u64>,
    /// How many deletions are under way.
    withdrawing: watch::Sender<usize>,
    /// What is exposed stays: another process of this installation goes on with it.
    leaves: AtomicBool,
    /// How many exposes have objects in a cluster, those that are being deleted included.
    exposed: watch::Sender<usize>,
    runtime: Handle,
    lives: Mutex<HashMap<Key, Running>>,
    tidying: Mutex<JoinSet<()>>,
}

struct Running {
    state: Arc<watch::Sender<RelayState>>,
    _task: AbortOnDropHandle<()>,
}

impl Deploy {
    /// Touches no cluster yet. Must be called within a tokio runtime, on which everything runs.
    #[must_use]
    pub fn new(clusters: Clusters, options: RelayOptions) -> Self {
        let RelayOptions { key, owner, created_by, settings } = options;
        let inner = Inner {
            clusters,
            identity: Arc::new(Identity { key, owner, created_by }),
            settings: watch::Sender::new(settings),
            kick: watch::Sender::new(0),
            doubts: watch::Sender::new(HashSet::new()),
            started: watch::Sender::new(0),
            withdrawing: watch::Sender::new(0),
            leaves: AtomicBool::new(false),
            exposed: watch::Sender::new(0),
            runtime: Handle::current(),
            lives: Mutex::default(),
            tidying: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Resolves when nothing is left to be deleted: for the end of a program, after everything was dropped (what an aborted
    /// task holds is dropped a moment later, and waited for). Each deletion is given up after 10 s.
    pub async fn withdrawn(&self) {
        let mut withdrawing = self.inner.withdrawing.subscribe();
        let mut exposed = self.inner.exposed.subscribe();
        loop {
            let ends = |(_, _, need): &Key, running: &Running| {
                matches!(need, Need::Expose(_)) || running.state.receiver_count() == 0
            };
            let ending = lock(&self.inner.lives).iter().any(|(key, running)| ends(key, running));
            if !ending && *withdrawing.borrow_and_update() == 0 && *exposed.borrow_and_update() == 0 {
                return;
            }
            // Neither can fail: the senders are in `self`. Lives that end touch the first, too.
            tokio::select! {
                _ = withdrawing.changed() => {}
                _ = exposed.changed() => {}
            }
        }
    }

    /// From now on nothing of an expose is deleted with it: another process of this installation has taken over.
    pub fn leave_exposed(&self) {
        self.inner.leaves.store(true, Ordering::Relaxed);
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

    /// The machine woke up or changed network, or a person asks for another try: watches are re-established, and what failed
    /// or was refused is tried at once.
    pub fn try_again(&self) {
        self.inner.kick.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// All relays of a namespace, or of all (`None`).
    ///
    /// # Errors
    /// Where Jobs may not be listed, or the cluster cannot be reached.
    pub async fn list(&self, cluster: &Cluster, namespace: Option<&str>) -> Result<Vec<RelayInfo>, Problem> {
        inventory::list(cluster, &self.inner.identity, namespace).await
    }

    /// Whether a relay is installed for all that this user can see and that the settings let be used.
    pub async fn is_installed(&self, cluster: &Cluster) -> bool {
        let settings = self.settings();
        if settings.use_installed == Some(false) {
            return false;
        }
        let api = Api::new(cluster.client(), settings.system_namespace());
        api.list(api::PODS, &installed::selector()).await.is_ok_and(|pods| !pods.is_empty())
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

/// The Job of a relay on demand as YAML, for whoever wants to see or to vet it. Its nonce is a new one, so it is nobody's.
///
/// # Errors
/// [`Code::SpecInvalid`] for settings that cannot be.
pub fn job_manifest(options: &RelayOptions, namespace: &str) -> Result<String, Problem> {
    let spec = options.settings.resolve()?;
    let identity = Identity {
        key: options.key.clone(),
        owner: options.owner.clone(),
        created_by: options.created_by.clone(),
    };
    let wanted = manifest::Wanted {
        spec: &spec,
        identity: &identity,
        server: "",
        namespace,
        purpose: &manifest::Use::Forwards,
    };
    Ok(yaml::to_yaml(&wanted.job(&key::nonce())))
}

impl Relays for Deploy {
    fn follow(
        &self,
        cluster: &ClusterRef,
        namespace: Option<&str>,
        need: Need,
    ) -> watch::Receiver<RelayState> {
        let key: Key = (cluster.clone(), namespace.map(Arc::from), need);
        let mut lives = lock(&self.inner.lives);
        if let Some(running) = lives.get(&key) {
            return running.state.subscribe();
        }
        let state = Arc::new(watch::Sender::new(RelayState::Pending));
        let receiver = state.subscribe();
        let inner = &self.inner;
        let following = Following {
            inner: Arc::downgrade(inner),
            key: key.clone(),
            out: Arc::clone(&state),
            shared: Shared {
                identity: Arc::clone(&inner.identity),
                settings: inner.settings.subscribe(),
                kick: inner.kick.subscribe(),
                doubts: inner.doubts.subscribe(),
                started: inner.started.clone(),
                withdrawing: inner.withdrawing.subscribe(),
            },
        };
        let task = following.until_unused(inner.clusters.follow(cluster));
        let task = AbortOnDropHandle::new(inner.runtime.spawn(task));
        lives.insert(key, Running { state, _task: task });
        receiver
    }

    fn doubt(&self, relay: &RelayPod, problem: &Problem) {
        tracing::info!(%problem, pod = %relay.pod, namespace = %relay.namespace, "a relay cannot be used");
        self.inner.doubts.send_if_modified(|doubts| doubts.insert(Arc::clone(&relay.uid)));
    }

    fn expose(&self, relay: &RelayPod, offer: &Offer) -> BoxFuture<'static, Result<Exposed, Problem>> {
        let (inner, relay, offer) = (Arc::clone(&self.inner), relay.clone(), offer.clone());
        async move {
            let cluster = inner.clusters.get(relay.cluster).ok_or_else(|| {
                Problem::new(Code::ConnectionLost, "the kubeconfig entry behind the relay has changed")
            })?;
            let api = Api::new(cluster.client(), &relay.namespace);
            let owner = expose::owner(&api, &relay).await?;
            // Before anything is made: who is cancelled halfway leaves nothing behind either.
            let withdrawal = Withdrawal::new(&inner, api.clone(), owner.clone());
            let made = match expose::make(&api, &inner.identity, &relay.namespace, &offer, &owner).await {
                Ok(made) => made,
                Err(problem) => {
                    withdrawal.forget();
                    return Err(problem);
                }
            };
            let (outside, watching) = match made.needs {
                Some(needs) => {
                    let link = life::link(&cluster, inner.runtime.clone(), inner.kick.subscribe());
                    let (outside, task) = outside::follow(&link, needs).await;
                    (outside, Some(task))
                }
                None => (watch::Sender::new(None).subscribe(), None),
            };
            Ok(Exposed {
                port: EXPOSE_PORT,
                urls: made.urls,
                notes: made.notes,
                outside,
                guard: Box::new((withdrawal, watching)),
            })
        }
        .boxed()
    }
}

impl fmt::Debug for Deploy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deploy").field("identity", &self.inner.identity).finish_non_exhaustive()
    }
}

/// Deletes the Job that owns an expose's objects when it is dropped.
struct Withdrawal {
    inner: Weak<Inner>,
    api: Api,
    owner: expose::Owner,
}

impl Withdrawal {
    fn new(inner: &Arc<Inner>, api: Api, owner: expose::Owner) -> Self {
        inner.exposed.send_modify(|count| *count += 1);
        Self { inner: Arc::downgrade(inner), api, owner }
    }

    /// Nothing of it is there: the relay stays for the next try.
    fn forget(mut self) {
        if let Some(inner) = std::mem::take(&mut self.inner).upgrade() {
            inner.exposed.send_modify(|count| *count -= 1);
        }
    }
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        let Some(inner) = self.inner.upgrade() else { return };
        if inner.leaves.load(Ordering::Relaxed) {
            inner.exposed.send_modify(|count| *count -= 1);
            return;
        }
        let (api, owner) = (self.api.clone(), self.owner.clone());
        let (withdrawing, exposed) = (inner.withdrawing.clone(), inner.exposed.clone());
        withdrawing.send_modify(|count| *count += 1);
        let work = async move {
            expose::remove(&api, &owner).await;
            withdrawing.send_modify(|count| *count -= 1);
            exposed.send_modify(|count| *count -= 1);
        };
        let mut tidying = lock(&inner.tidying);
        while tidying.try_join_next().is_some() {}
        tidying.spawn_on(work, &inner.runtime);
    }
}

/// One wish for a relay, from cluster to cluster.
struct Following {
    inner: Weak<Inner>,
    key: Key,
    out: Arc<watch::Sender<RelayState>>,
    shared: Shared,
}

impl Following {
    /// Keeps the relay up until nobody has a receiver any more, then takes itself out of the registry.
    async fn until_unused(self, mut clusters: watch::Receiver<ClusterState>) {
        let mut life: Option<Life> = None;
        clusters.mark_changed();
        loop {
            let wanted = tokio::select! {
                Ok(()) = clusters.changed() => true,
                never = keep(&mut life, &self.out) => match never {},
                () = self.out.closed() => false,
            };
            if wanted {
                let state = clusters.borrow_and_update().clone();
                life = self.on(state, life).await;
                continue;
            }
            if let Some(life) = &mut life {
                life.abandon().await;
            }
            let Some(inner) = self.inner.upgrade() else { return };
            // New receivers are handed out under this lock only. Removing the entry ends this task.
            let mut lives = lock(&inner.lives);
            if self.out.receiver_count() == 0 {
                let _ended = lives.remove(&self.key);
                inner.withdrawing.send_modify(|_| {});
                return;
            }
        }
    }

    async fn on(&self, state: ClusterState, before: Option<Life>) -> Option<Life> {
        if let Some(mut before) = before {
            before.abandon().await;
        }
        match state {
            ClusterState::Pending => publish(&self.out, RelayState::Pending),
            ClusterState::Failed(problem) => publish(&self.out, RelayState::Failed(problem)),
            ClusterState::Up(cluster) => {
                // What was known of another cluster is void.
                publish(&self.out, RelayState::Pending);
                let (_, namespace, need) = &self.key;
                let namespace =
                    namespace.as_deref().unwrap_or_else(|| cluster.default_namespace()).to_owned();
                return Some(Life::new(cluster, &namespace, need.clone(), self.shared.clone()));
            }
        }
        None
    }
}

async fn keep(life: &mut Option<Life>, out: &watch::Sender<RelayState>) -> std::convert::Infallible {
    match life {
        Some(life) => life.keep(out).await,
        None => std::future::pending().await,
    }
}

/// No change under these locks can panic half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
