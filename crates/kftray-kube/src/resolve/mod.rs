//! From targets to endpoints: follows Services, pods and workloads by shared watches and publishes which ports of which
//! pods they lead to.
//!
//! Layers, each testable alone: [`object`] (what is read of an object), [`service`], [`pods`] and [`explain`] (pure: objects
//! in, endpoints and reasons out), [`reflect`] and [`feed`] (one watch and its followers), [`feeds`] (all watches of a
//! cluster and the steps down where it denies one), [`follow`] and [`lookup`] (one target). A target whose last follower is gone costs
//! nothing: its task and, if nobody else needs them, its watches end.

mod explain;
pub(crate) mod feed;
pub(crate) mod feeds;
mod follow;
mod lookup;
pub(crate) mod object;
mod pods;
mod reflect;
mod refusal;
mod service;
mod syntax;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use kftray_commons::{ClusterRef, RemotePort, Target};
use kftray_portforward::ports::{ClusterId, Endpoint, Resolution};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use self::feeds::{Feeds, Link, Timing};
use self::follow::{Connection, Follower, Published};
use self::object::is_tcp;
use crate::cluster::{Cluster, ClusterState, Clusters};

/// Follows targets on real clusters. Dropping it ends every watch; its followers then keep their last value.
pub struct Resolver {
    root: Arc<Root>,
}

/// Where clusters come from.
trait Source: Send + Sync {
    fn follow(&self, root: &Weak<Root>, cluster: &ClusterRef) -> BoxStream<'static, Connection>;
    /// Connections that may be dead are not to be used again.
    fn reset(&self, id: ClusterId);
}

/// Which way connections take to what is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Way {
    /// UDP, else TCP: of two ports with one number it is the one with this protocol.
    pub(crate) udp: bool,
    /// By the relay, which needs addresses; else by a port-forward, which needs pods.
    pub(crate) by_relay: bool,
}

impl Way {
    /// Whether a port with this protocol, as objects spell it, is one that is meant.
    fn carries(self, protocol: &str) -> bool {
        if self.udp { protocol == "UDP" } else { is_tcp(protocol) }
    }

    /// The protocol, for people.
    fn protocol(self) -> &'static str {
        if self.udp { "UDP" } else { "TCP" }
    }
}

struct Root {
    source: Box<dyn Source>,
    runtime: Handle,
    timing: Timing,
    kick: watch::Sender<u64>,
    feeds: Mutex<HashMap<ClusterId, Weak<Feeds>>>,
    followers: Mutex<HashMap<FollowKey, Followed>>,
}

type FollowKey = (Target, RemotePort, Way);

struct Followed {
    out: Arc<Published>,
    _task: AbortOnDropHandle<()>,
}

impl Resolver {
    /// A resolver over these clusters. Must be called within a tokio runtime, on which all watches run.
    #[must_use]
    pub fn new(clusters: Clusters) -> Self {
        Self::over(Box::new(clusters), Timing::default())
    }

    fn over(source: Box<dyn Source>, timing: Timing) -> Self {
        Self {
            root: Arc::new(Root {
                source,
                runtime: Handle::current(),
                timing,
                kick: watch::Sender::new(0),
                feeds: Mutex::default(),
                followers: Mutex::default(),
            }),
        }
    }

    /// A session to this endpoint was lost, could not be opened, or is back. Where a watch runs nothing happens, since it
    /// tells by itself; where objects could only be read once, they are read again, and where a watch waits for its next
    /// attempt, that is made, both at most once per second.
    pub fn refresh(&self, endpoint: &Endpoint) {
        let feeds = lock(&self.root.feeds).get(&endpoint.cluster).and_then(Weak::upgrade);
        if let Some(feeds) = feeds {
            feeds.hint(&endpoint.namespace);
        }
    }

    /// The machine woke up or changed network: every watch is re-established at once from where it was, and what was
    /// denied is tried again. What is known stays published meanwhile.
    pub fn network_changed(&self) {
        let live: Vec<(ClusterId, Arc<Feeds>)> =
            lock(&self.root.feeds).iter().filter_map(|(id, feeds)| Some((*id, feeds.upgrade()?))).collect();
        for (id, feeds) in live {
            self.root.source.reset(id);
            feeds.forget_denials(Duration::ZERO);
        }
        self.root.kick.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// A person asks for another try: what was denied is asked for again.
    pub fn try_again(&self) {
        let live: Vec<Arc<Feeds>> = lock(&self.root.feeds).values().filter_map(Weak::upgrade).collect();
        for feeds in live {
            feeds.forget_denials(Duration::ZERO);
        }
        self.root.kick.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Follows the pods behind a target, for TCP by a port-forward to the pod itself; the rules are those of
    /// [`Resolve::follow`](kftray_portforward::ports::Resolve::follow).
    pub fn follow(&self, target: &Target, port: &RemotePort) -> watch::Receiver<Resolution> {
        self.follow_by(target, port, Way::default())
    }

    /// The same for any way.
    pub(crate) fn follow_by(
        &self,
        target: &Target,
        port: &RemotePort,
        way: Way,
    ) -> watch::Receiver<Resolution> {
        self.root.follow(target, port, way)
    }

    /// How the target is looked up where the best way is not permitted: one sentence per denial. Empty if all is well or
    /// nobody follows it.
    #[must_use]
    pub fn notes(&self, target: &Target, port: &RemotePort) -> Vec<String> {
        let followers = lock(&self.root.followers);
        let mut all = Vec::new();
        for ((known, known_port, _), followed) in followers.iter() {
            if known == target && known_port == port {
                all.extend(lock(&followed.out.notes).iter().cloned());
            }
        }
        all.sort();
        all.dedup();
        all
    }
}

impl Root {
    fn follow(self: &Arc<Self>, target: &Target, port: &RemotePort, way: Way) -> watch::Receiver<Resolution> {
        let key = (target.clone(), port.clone(), way);
        let mut followers = lock(&self.followers);
        if let Some(followed) = followers.get(&key) {
            return followed.out.sender.subscribe();
        }
        let out = Arc::new(Published::new());
        let receiver = out.sender.subscribe();
        let connections = self.source.follow(&Arc::downgrade(self), &target.cluster);
        let follower = Follower { target: target.clone(), port: port.clone(), way, out: Arc::clone(&out) };
        let task =
            until_unused(Arc::downgrade(self), key.clone(), Arc::clone(&out), follower.run(connections));
        let task = AbortOnDropHandle::new(self.runtime.spawn(task));
        followers.insert(key, Followed { out, _task: task });
        receiver
    }

    /// The feeds of a connection, shared by all targets on it.
    fn feeds(&self, id: ClusterId, link: impl FnOnce() -> Link) -> Arc<Feeds> {
        let mut all = lock(&self.feeds);
        if let Some(feeds) = all.get(&id).and_then(Weak::upgrade) {
            return feeds;
        }
        all.retain(|_, feeds| feeds.strong_count() > 0);
        let feeds = Arc::new(Feeds::new(link()));
        all.insert(id, Arc::downgrade(&feeds));
        feeds
    }
}

/// Drives a follower until nobody has a receiver any more, then takes it out of the registry.
async fn until_unused(
    root: Weak<Root>,
    key: FollowKey,
    out: Arc<Published>,
    run: impl Future<Output = ()> + Send,
) {
    let mut run = std::pin::pin!(run);
    loop {
        tokio::select! {
            () = &mut run => return,
            () = out.sender.closed() => {}
        }
        let Some(root) = root.upgrade() else { return };
        let unused = {
            let mut followers = lock(&root.followers);
            // New receivers are handed out under this lock only.
            if out.sender.receiver_count() == 0 { followers.remove(&key) } else { None }
        };
        if unused.is_some() {
            return;
        }
    }
}

impl Source for Clusters {
    fn follow(&self, root: &Weak<Root>, cluster: &ClusterRef) -> BoxStream<'static, Connection> {
        let mut states = Clusters::follow(self, cluster);
        states.mark_changed();
        let root = Weak::clone(root);
        futures::stream::unfold((states, root), |(mut states, root)| async move {
            states.changed().await.ok()?;
            let state = states.borrow_and_update().clone();
            let connection = match state {
                ClusterState::Pending => Connection::Pending,
                ClusterState::Failed(problem) => Connection::Failed(problem),
                ClusterState::Up(cluster) => {
                    let strong = root.upgrade()?;
                    Connection::Up(strong.feeds(cluster.id(), || link(&strong, &cluster)))
                }
            };
            Some((connection, (states, root)))
        })
        .boxed()
    }

    fn reset(&self, id: ClusterId) {
        if let Some(cluster) = self.get(id) {
            cluster.reset_connections();
        }
    }
}

fn link(root: &Root, cluster: &Arc<Cluster>) -> Link {
    Link {
        id: cluster.id(),
        client: cluster.client(),
        default_namespace: cluster.default_namespace().into(),
        runtime: root.runtime.clone(),
        timing: root.timing,
        kick: root.kick.subscribe(),
    }
}

/// No change under these locks can panic half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
