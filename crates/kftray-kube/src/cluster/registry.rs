//! One [`Cluster`] per kubeconfig entry, however many forwards use it, replaced when the entry changes.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use kftray_commons::{ClusterRef, Code, Problem};
use kftray_portforward::ports::ClusterId;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Cluster;
use crate::config::login::Credentials;
use crate::config::{Entry, Environment, FileWatch, Loaded, kubeconfig_paths};
use crate::connect::{TransportChoice, TransportMemory};

/// Editors and `kubectl` touch a file several times in a row; one reading after the last touch is enough.
const SETTLE: Duration = Duration::from_millis(100);
/// A file that cannot be used may be half written: it gets this long before a working cluster is given up for it.
const HALF_WRITTEN: Duration = Duration::from_millis(500);

/// What is known about the cluster behind a [`ClusterRef`] now.
#[derive(Debug, Clone)]
pub enum ClusterState {
    /// The kubeconfig has not been read yet.
    Pending,
    /// The entry is usable. A new `Arc` with a new id whenever server, credentials, proxy, context or namespace changed.
    /// Says nothing about whether the server answers.
    Up(Arc<Cluster>),
    /// The kubeconfig or the context cannot be used; the files are watched and the next value follows a change.
    Failed(Problem),
}

impl ClusterState {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Pending, Self::Pending) => true,
            (Self::Up(a), Self::Up(b)) => Arc::ptr_eq(a, b),
            (Self::Failed(a), Self::Failed(b)) => a == b,
            (Self::Pending | Self::Up(_) | Self::Failed(_), _) => false,
        }
    }
}

/// The registry of clusters. Cheap to clone; all clones share clusters, credentials and file watches. Dropping the last clone
/// ends every file watch; clusters live on with those who hold them.
#[derive(Clone)]
pub struct Clusters {
    inner: Arc<Inner>,
}

struct Inner {
    environment: Environment,
    choice: TransportChoice,
    memory: Arc<TransportMemory>,
    files: FileWatch,
    next: AtomicU64,
    follows: Mutex<HashMap<ClusterRef, Arc<watch::Sender<ClusterState>>>>,
    clusters: Mutex<Vec<Weak<Cluster>>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Clusters {
    /// An empty registry. `memory` holds what earlier processes learned about transports, if anything.
    #[must_use]
    pub fn new(environment: Environment, choice: TransportChoice, memory: TransportMemory) -> Self {
        let inner = Inner {
            environment,
            choice,
            memory: Arc::new(memory),
            files: FileWatch::new(),
            next: AtomicU64::new(1),
            follows: Mutex::default(),
            clusters: Mutex::default(),
            tasks: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The cluster of that number, as long as somebody follows or holds it.
    #[must_use]
    pub fn get(&self, id: ClusterId) -> Option<Arc<Cluster>> {
        locked(&self.inner.clusters).iter().filter_map(Weak::upgrade).find(|cluster| cluster.id == id)
    }

    /// Follows a kubeconfig entry until every clone of the receiver is dropped. Followers of one entry share one cluster.
    /// Must be called on a tokio runtime.
    pub fn follow(&self, cluster: &ClusterRef) -> watch::Receiver<ClusterState> {
        let mut follows = locked(&self.inner.follows);
        if let Some(sender) = follows.get(cluster) {
            return sender.subscribe();
        }
        let sender = Arc::new(watch::Sender::new(ClusterState::Pending));
        let receiver = sender.subscribe();
        follows.insert(cluster.clone(), Arc::clone(&sender));
        let mut tasks = locked(&self.inner.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(follow(Arc::downgrade(&self.inner), cluster.clone(), sender));
        receiver
    }

    /// The files that count for a path list, in order, there or not.
    #[must_use]
    pub fn kubeconfig_paths(&self, list: Option<&str>) -> Vec<PathBuf> {
        kubeconfig_paths(list, &self.inner.environment)
    }

    /// What was learned about transports, to be stored.
    #[must_use]
    pub fn transport_memory(&self) -> &TransportMemory {
        &self.inner.memory
    }

    /// The machine woke up or changed network: connections for objects and watches are opened anew, remembered login failures
    /// are forgotten, and the kubeconfig files are read again.
    pub fn network_changed(&self) {
        let clusters: Vec<_> = locked(&self.inner.clusters).iter().filter_map(Weak::upgrade).collect();
        for cluster in clusters {
            cluster.reset_connections();
        }
        self.inner.files.nudge();
    }
}

impl fmt::Debug for Clusters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clusters").field("choice", &self.inner.choice).finish_non_exhaustive()
    }
}

/// Keeps one entry's state up to date until nobody looks.
async fn follow(inner: Weak<Inner>, reference: ClusterRef, sender: Arc<watch::Sender<ClusterState>>) {
    let Some(mut hints) = inner.upgrade().map(|inner| inner.files.hints()) else { return };
    loop {
        hints.mark_unchanged();
        let mut state = read(&inner, &reference).await;
        let was_up = matches!(*sender.borrow(), ClusterState::Up(_));
        if was_up && matches!(state, ClusterState::Failed(_)) {
            tokio::time::sleep(HALF_WRITTEN).await;
            state = read(&inner, &reference).await;
        }
        sender.send_if_modified(|known| {
            let changed = !known.is_same(&state);
            *known = state;
            changed
        });
        loop {
            tokio::select! {
                changed = hints.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    tokio::time::sleep(SETTLE).await;
                    break;
                }
                () = sender.closed() => {
                    let Some(inner) = inner.upgrade() else { return };
                    let mut follows = locked(&inner.follows);
                    // Somebody may have come just now; under the lock nobody can.
                    if sender.receiver_count() == 0 {
                        follows.remove(&reference);
                        return;
                    }
                }
            }
        }
    }
}

/// Reads the files and finds or makes the cluster, off the runtime's own threads: home folders may be on a network.
async fn read(inner: &Weak<Inner>, reference: &ClusterRef) -> ClusterState {
    let Some(inner) = inner.upgrade() else { return ClusterState::Pending };
    let reference = reference.clone();
    match tokio::task::spawn_blocking(move || inner.settle(&reference)).await {
        Ok(Ok(cluster)) => ClusterState::Up(cluster),
        Ok(Err(problem)) => ClusterState::Failed(problem),
        Err(error) => ClusterState::Failed(Problem::new(
            Code::Internal,
            format!("reading the kubeconfig failed: {error}"),
        )),
    }
}

impl Inner {
    fn settle(&self, reference: &ClusterRef) -> Result<Arc<Cluster>, Problem> {
        let paths = kubeconfig_paths(reference.kubeconfig.as_deref(), &self.environment);
        self.files.cover(&paths);
        let mut entry = self.entry(&paths, reference)?;
        if !entry.files.is_empty() {
            // Watched from now on, so read again: they may have changed in between.
            self.files.cover(&entry.files);
            entry = self.entry(&paths, reference)?;
        }
        self.intern(entry)
    }

    fn entry(&self, paths: &[PathBuf], reference: &ClusterRef) -> Result<Entry, Problem> {
        let loaded = Loaded::read(paths)?;
        // A folder's files are watched through it; a link inside leads elsewhere.
        self.files.cover(&loaded.files);
        Entry::choose(&loaded, &reference.context)
    }

    /// The cluster of an equal entry, or a new one; an equal login is shared in any case.
    fn intern(&self, entry: Entry) -> Result<Arc<Cluster>, Problem> {
        let mut clusters = locked(&self.clusters);
        clusters.retain(|cluster| cluster.strong_count() > 0);
        let alive: Vec<Arc<Cluster>> = clusters.iter().filter_map(Weak::upgrade).collect();
        if let Some(cluster) = alive.iter().find(|cluster| cluster.entry == entry) {
            // A hint that changed nothing may still be a login in another terminal.
            cluster.credentials.forget_failure();
            return Ok(Arc::clone(cluster));
        }
        let credentials = match alive.iter().find(|cluster| cluster.entry.same_login(&entry)) {
            Some(cluster) => Arc::clone(&cluster.credentials),
            None => Arc::new(Credentials::new(&entry, &self.environment)?),
        };
        let id = ClusterId(self.next.fetch_add(1, Ordering::Relaxed));
        let memory = Arc::clone(&self.memory);
        let cluster = Arc::new(Cluster::new(id, entry, credentials, &self.environment, self.choice, memory)?);
        clusters.push(Arc::downgrade(&cluster));
        Ok(cluster)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
