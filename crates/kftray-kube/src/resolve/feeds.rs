//! All feeds of one cluster connection, and what it has denied.
//!
//! Denials are remembered here, so that the second forward does not ask again what the first was refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use kftray_commons::{Code, Problem};
use kftray_portforward::ports::ClusterId;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::feed::{Feed, FeedKey, Phase, Scope, Shared, Subscription, View};
use super::object::{Object, Pod, ReplicaSet, Service, Slice, Workload};
use super::reflect::Reflector;

/// Every waiting time, in one place so that tests can shorten them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// For an answer to begin. Long: a list of thousands of objects through a slow VPN; a dead connection is noticed by the
    /// client's own pings much earlier.
    pub(crate) answer: Duration,
    /// Longest life of one watch, in whole seconds, shortened by up to a sixth at random so that watches do not renew all
    /// together. Below the 5 minutes after which many load balancers cut idle connections.
    pub(crate) watch: Duration,
    /// A watch that is silent for this long after its end was due is dead.
    pub(crate) watch_grace: Duration,
    /// First and longest pause between attempts after a failure.
    pub(crate) retry: (Duration, Duration),
    /// Longest pause while there is no connection at all: an attempt costs the server nothing then, and a VPN that is back
    /// should not wait.
    pub(crate) unreachable: Duration,
    /// First and longest pause before asking again for what is forbidden: only an administrator can change that.
    pub(crate) denied: (Duration, Duration),
    /// A denial is believed for this long: hundreds of forwards that are denied the same thing ask once.
    pub(crate) denial_kept: Duration,
    /// Shortest distance between two reads of a feed without a watch: hints come from every failed connection.
    pub(crate) hint_gap: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            // Longer than a credential plugin may take, whose hanging would be told as the API server's otherwise.
            answer: Duration::from_secs(35),
            watch: Duration::from_secs(290),
            watch_grace: Duration::from_secs(10),
            retry: (Duration::from_secs(1), Duration::from_secs(30)),
            unreachable: Duration::from_secs(10),
            denied: (Duration::from_secs(10), Duration::from_secs(300)),
            denial_kept: Duration::from_secs(60),
            hint_gap: Duration::from_secs(1),
        }
    }
}

/// Exponential pauses with jitter.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new((first, longest): (Duration, Duration)) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// The next pause: half of the doubling value at least, so that clients spread out but none hurries.
    pub(crate) fn next(&mut self) -> Duration {
        let full = self.first.saturating_mul(1 << self.failures.min(16)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(rand::random_range(0.5..=1.0))
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// What a feed needs of its cluster.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) id: ClusterId,
    pub(crate) client: kube::Client,
    pub(crate) default_namespace: Arc<str>,
    /// Where feeds run: they may be opened from a thread without a runtime.
    pub(crate) runtime: Handle,
    pub(crate) timing: Timing,
    /// Counts up when the machine woke or changed network.
    pub(crate) kick: watch::Receiver<u64>,
}

/// All feeds of one cluster connection.
pub(crate) struct Feeds {
    pub(crate) link: Link,
    pub(crate) services: Arc<Registry<Service>>,
    pub(crate) slices: Arc<Registry<Slice>>,
    pub(crate) pods: Arc<Registry<Pod>>,
    pub(crate) workloads: Arc<Registry<Workload>>,
    pub(crate) replica_sets: Arc<Registry<ReplicaSet>>,
}

impl Feeds {
    pub(crate) fn new(link: Link) -> Self {
        Self {
            services: Registry::new(link.clone()),
            slices: Registry::new(link.clone()),
            pods: Registry::new(link.clone()),
            workloads: Registry::new(link.clone()),
            replica_sets: Registry::new(link.clone()),
            link,
        }
    }

    /// What the cluster denied at least this long ago may be allowed by now.
    pub(crate) fn forget_denials(&self, age: Duration) {
        self.services.forget_denials(age);
        self.slices.forget_denials(age);
        self.pods.forget_denials(age);
        self.workloads.forget_denials(age);
        self.replica_sets.forget_denials(age);
    }

    /// Has everything that is read without a watch in this namespace read again.
    pub(crate) fn hint(&self, namespace: &str) {
        self.services.hint(namespace);
        self.slices.hint(namespace);
        self.pods.hint(namespace);
        self.workloads.hint(namespace);
        self.replica_sets.hint(namespace);
    }
}

/// The feeds of one kind of object.
pub(crate) struct Registry<T: Object> {
    link: Link,
    feeds: Mutex<HashMap<FeedKey, Weak<Feed<T>>>>,
    denials: Mutex<HashMap<FeedKey, (Problem, Instant)>>,
}

impl<T: Object> Registry<T> {
    pub(crate) fn new(link: Link) -> Arc<Self> {
        Arc::new(Self { link, feeds: Mutex::default(), denials: Mutex::default() })
    }

    /// The feed of that key, started if nobody else follows it.
    pub(crate) fn open(self: &Arc<Self>, key: &FeedKey) -> Arc<Feed<T>> {
        let mut feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(feed) = feeds.get(key).and_then(Weak::upgrade) {
            return feed;
        }
        let shared = Arc::new(Shared::new(key.clone()));
        let task = Reflector::new(&self.link, Arc::clone(&shared)).run();
        let task = AbortOnDropHandle::new(self.link.runtime.spawn(task));
        let feed = Arc::new(Feed::new(shared, Arc::downgrade(self), task));
        feeds.insert(key.clone(), Arc::downgrade(&feed));
        feed
    }

    /// Called by a feed that ends. Another one may have taken its key meanwhile.
    pub(crate) fn forget_dead(&self, key: &FeedKey) {
        let mut feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        if feeds.get(key).is_some_and(|feed| feed.strong_count() == 0) {
            feeds.remove(key);
        }
    }

    fn hint(&self, namespace: &str) {
        let live: Vec<Arc<Feed<T>>> = {
            let feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
            feeds
                .iter()
                .filter(|(key, _)| *key.namespace == *namespace)
                .filter_map(|(_, feed)| feed.upgrade())
                .collect()
        };
        // Outside the lock: the last reference may be dropped here, and a feed's end takes the lock.
        for feed in live {
            feed.shared.hint.notify_one();
        }
    }

    fn denial(&self, key: &FeedKey) -> Option<Problem> {
        self.denials
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .map(|(problem, _)| problem.clone())
    }

    fn deny(&self, key: &FeedKey, problem: &Problem) {
        self.denials
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key.clone(), (problem.clone(), Instant::now()));
    }

    fn forget_denials(&self, age: Duration) {
        self.denials
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, (_, since)| since.elapsed() < age);
    }
}

/// The ways to get at the same objects, best first; goes one down at each denial.
pub(crate) struct Ladder<T: Object> {
    registry: Arc<Registry<T>>,
    rungs: Vec<FeedKey>,
    group: Arc<str>,
    at: usize,
    current: Option<Subscription<T>>,
    denials: Vec<Problem>,
    /// On this rung objects may be read, but not watched.
    unwatched: Option<Problem>,
}

impl<T: Object> Ladder<T> {
    /// `group` is whom the objects of a feed over everything must belong to.
    pub(crate) fn new(registry: &Arc<Registry<T>>, group: &str, rungs: Vec<FeedKey>) -> Self {
        Self {
            registry: Arc::clone(registry),
            rungs,
            group: group.into(),
            at: 0,
            current: None,
            denials: Vec::new(),
            unwatched: None,
        }
    }

    /// What is known now on the best rung that is not denied.
    ///
    /// # Errors
    /// Every way is denied; the last denial.
    pub(crate) fn view(&mut self) -> Result<View<T>, Problem> {
        loop {
            let Some(key) = self.rungs.get(self.at) else {
                // A ladder has at least one rung, so that reaching the end means a denial.
                return Err(self
                    .denials
                    .last()
                    .cloned()
                    .unwrap_or_else(|| Problem::new(Code::Internal, "no way to read objects was given")));
            };
            if self.current.is_none() {
                if let Some(denial) = self.registry.denial(key) {
                    self.step_down(denial);
                    continue;
                }
                let group = if key.scope == Scope::All { &*self.group } else { "" };
                self.current = Some(self.registry.open(key).subscribe(group));
            }
            let Some(current) = &mut self.current else { continue };
            let view = current.view();
            match &view.phase {
                Phase::Denied(denial) => {
                    self.registry.deny(key, denial);
                    tracing::info!(resource = key.kind.resource, %denial, "stepping down");
                    self.step_down(denial.clone());
                }
                Phase::Static(denial) => {
                    self.unwatched.clone_from(denial);
                    return Ok(view);
                }
                Phase::Loading | Phase::Live | Phase::Broken(_) => return Ok(view),
            }
        }
    }

    /// Denials met on the way, one sentence each.
    pub(crate) fn notes(&self) -> impl Iterator<Item = String> {
        self.denials.iter().chain(&self.unwatched).map(|denial| denial.message.clone())
    }

    fn step_down(&mut self, denial: Problem) {
        self.denials.push(denial);
        self.current = None;
        self.at += 1;
    }

    /// Resolves when [`Self::view`] has something new to say; never after the last rung was denied.
    pub(crate) async fn changed(&mut self) {
        match &mut self.current {
            Some(current) => current.changed().await,
            None => std::future::pending().await,
        }
    }

    /// See [`Subscription::names`].
    pub(crate) fn names(&self) -> Vec<Arc<str>> {
        self.current.as_ref().map(Subscription::names).unwrap_or_default()
    }

    /// See [`Subscription::set_unsettled`].
    pub(crate) fn set_unsettled(&mut self, unsettled: bool) {
        if let Some(current) = &mut self.current {
            current.set_unsettled(unsettled);
        }
    }
}

/// Resolves like [`Ladder::changed`]; never without a ladder.
pub(crate) async fn changed<T: Object>(ladder: Option<&mut Ladder<T>>) {
    match ladder {
        Some(ladder) => ladder.changed().await,
        None => std::future::pending().await,
    }
}
