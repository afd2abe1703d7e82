//! One shared look at objects of one kind: who follows, what is known, and who has to hear of a change.
//!
//! A feed over a whole namespace serves all Services in it, so changes are delivered by group (the Service's name): an
//! event about one Service wakes only its followers. The list-and-watch itself is in [`super::reflect`].

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use kftray_commons::Problem;
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;

use super::feeds::Registry;
use super::object::Object;

/// A kind of object, as its URL and its permissions spell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    /// Group and version, as the path has it.
    pub(crate) api: &'static str,
    /// Last part of the path.
    pub(crate) plural: &'static str,
    /// Resource with its group, as people and Roles name it.
    pub(crate) resource: &'static str,
    /// Ask for metadata only.
    pub(crate) metadata: bool,
}

macro_rules! kinds {
    ($($name:ident = $api:literal, $plural:literal, $resource:literal, $metadata:literal;)+) => {
        $(pub(crate) const $name: Kind =
            Kind { api: $api, plural: $plural, resource: $resource, metadata: $metadata };)+
    };
}

kinds! {
    SERVICES = "api/v1", "services", "services", false;
    PODS = "api/v1", "pods", "pods", false;
    ENDPOINT_SLICES = "apis/discovery.k8s.io/v1", "endpointslices", "endpointslices.discovery.k8s.io", false;
    DEPLOYMENTS = "apis/apps/v1", "deployments", "deployments.apps", false;
    STATEFUL_SETS = "apis/apps/v1", "statefulsets", "statefulsets.apps", false;
    DAEMON_SETS = "apis/apps/v1", "daemonsets", "daemonsets.apps", false;
    REPLICA_SETS = "apis/apps/v1", "replicasets", "replicasets.apps", false;
    // Only the owner references are read, of many objects.
    REPLICA_SET_OWNERS = "apis/apps/v1", "replicasets", "replicasets.apps", true;
    JOBS = "apis/batch/v1", "jobs", "jobs.batch", false;
    EVENTS = "api/v1", "events", "events", false;
    INGRESSES = "apis/networking.k8s.io/v1", "ingresses", "ingresses.networking.k8s.io", false;
    // Of the cluster, not of a namespace: its feeds have an empty one.
    INGRESS_CLASSES = "apis/networking.k8s.io/v1", "ingressclasses", "ingressclasses.networking.k8s.io", false;
    CERTIFICATES = "apis/cert-manager.io/v1", "certificates", "certificates.cert-manager.io", false;
    // Only that it is there: what is in it concerns nobody here.
    SECRET_NAMES = "api/v1", "secrets", "secrets", true;
}

/// Which objects of the kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// All of the namespace.
    All,
    /// One by name.
    Named(Arc<str>),
    /// By label selector.
    Labels(Arc<str>),
    /// By field selector.
    Fields(Arc<str>),
}

/// How to get at them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    /// List, then watch.
    Watch,
    /// One `get` (for [`Scope::Named`]), again only upon a hint.
    Once,
}

/// What makes two followers share a feed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct FeedKey {
    pub(crate) kind: Kind,
    /// Empty for kinds that are in none.
    pub(crate) namespace: Arc<str>,
    pub(crate) scope: Scope,
    pub(crate) access: Access,
}

/// How good the objects of a view are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No answer yet.
    Loading,
    /// A watch keeps them current. They also stay while the cluster cannot be reached: the pods may well be.
    Live,
    /// Right when they were read; nothing tells of changes. With the denial if a watch was tried.
    Static(Option<Problem>),
    /// Never had an answer, and this is why. Being retried.
    Broken(Problem),
    /// Not permitted.
    Denied(Problem),
}

/// What a follower sees of a feed.
#[derive(Debug)]
pub(crate) struct View<T> {
    pub(crate) phase: Phase,
    /// Objects of the group, by name.
    pub(crate) objects: Arc<[Arc<T>]>,
}

impl<T> Clone for View<T> {
    fn clone(&self) -> Self {
        Self { phase: self.phase.clone(), objects: Arc::clone(&self.objects) }
    }
}

impl<T> View<T> {
    /// The phase's problem, if it keeps the objects from being known.
    pub(crate) fn broken(&self) -> Option<&Problem> {
        match &self.phase {
            Phase::Broken(problem) | Phase::Denied(problem) => Some(problem),
            Phase::Loading | Phase::Live | Phase::Static(_) => None,
        }
    }

    /// Whether the objects are an answer of the cluster.
    pub(crate) fn is_known(&self) -> bool {
        matches!(self.phase, Phase::Live | Phase::Static(_))
    }
}

/// What the watching task and the followers share.
pub(crate) struct Shared<T> {
    key: FeedKey,
    store: Mutex<Store<T>>,
    /// Followers that cannot go on with what the feed has, see [`Subscription::set_unsettled`].
    unsettled: AtomicUsize,
    unsettled_changed: Notify,
    /// Somebody has a reason to believe that static objects are out of date.
    pub(crate) hint: Notify,
}

struct Store<T> {
    phase: Phase,
    objects: BTreeMap<Arc<str>, Arc<T>>,
    groups: HashMap<Arc<str>, Group<T>>,
}

struct Group<T> {
    sender: watch::Sender<View<T>>,
    followers: usize,
}

impl<T: Object> Shared<T> {
    pub(crate) fn new(key: FeedKey) -> Self {
        let store = Store { phase: Phase::Loading, objects: BTreeMap::new(), groups: HashMap::new() };
        Self {
            key,
            store: Mutex::new(store),
            unsettled: AtomicUsize::new(0),
            unsettled_changed: Notify::new(),
            hint: Notify::new(),
        }
    }

    pub(crate) fn key(&self) -> &FeedKey {
        &self.key
    }

    fn with<R>(&self, f: impl FnOnce(&mut Store<T>) -> R) -> R {
        // Every change of the store is complete before anything can panic.
        f(&mut self.store.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Only a feed over everything has groups; the others have one, `""`.
    fn group_of<'a>(&self, object: &'a T) -> &'a str {
        if self.key.scope == Scope::All { object.group() } else { "" }
    }

    /// The objects are these and no others. Returns whether that is new.
    pub(crate) fn replace(&self, objects: Vec<T>, phase: Phase) -> bool {
        self.with(|store| {
            let mut old = std::mem::take(&mut store.objects);
            let mut changed = false;
            for object in objects {
                let name = Arc::clone(&object.meta().name);
                // The old allocation is kept where nothing changed, so that views compare equal by pointer.
                let kept = old.remove(&name).filter(|known| **known == object);
                changed |= kept.is_none();
                store.objects.insert(name, kept.unwrap_or_else(|| Arc::new(object)));
            }
            changed |= !old.is_empty();
            store.phase = phase;
            self.publish_all(store);
            changed
        })
    }

    /// One object was added or changed.
    pub(crate) fn apply(&self, object: T) {
        self.with(|store| {
            let object = Arc::new(object);
            let old = store.objects.insert(Arc::clone(&object.meta().name), Arc::clone(&object));
            if old.as_ref().is_some_and(|old| **old == *object) {
                return;
            }
            let group = self.group_of(&object);
            self.publish(store, group);
            if let Some(old) = old.as_ref().map(|old| self.group_of(old)).filter(|old| *old != group) {
                self.publish(store, old);
            }
        });
    }

    /// One object is gone.
    pub(crate) fn remove(&self, name: &str) {
        self.with(|store| {
            if let Some(old) = store.objects.remove(name) {
                self.publish(store, self.group_of(&old));
            }
        });
    }

    /// The objects stay, their standing changes.
    pub(crate) fn set_phase(&self, phase: Phase) {
        self.with(|store| {
            if store.phase != phase {
                store.phase = phase;
                self.publish_all(store);
            }
        });
    }

    /// An attempt failed: that matters only as long as nothing is known.
    pub(crate) fn set_broken(&self, problem: Problem) {
        let known = self.with(|store| matches!(store.phase, Phase::Live | Phase::Static(_)));
        if !known {
            self.set_phase(Phase::Broken(problem));
        }
    }

    fn view(&self, store: &Store<T>, group: &str) -> View<T> {
        let members = store.objects.values().filter(|object| self.group_of(object) == group).cloned();
        View { phase: store.phase.clone(), objects: members.collect() }
    }

    fn publish(&self, store: &Store<T>, group: &str) {
        if let Some(known) = store.groups.get(group) {
            send(&known.sender, self.view(store, group));
        }
    }

    fn publish_all(&self, store: &Store<T>) {
        // One pass over the objects, not one per group.
        let mut members: HashMap<&str, Vec<Arc<T>>> =
            store.groups.keys().map(|group| (&**group, Vec::new())).collect();
        for object in store.objects.values() {
            if let Some(list) = members.get_mut(self.group_of(object)) {
                list.push(Arc::clone(object));
            }
        }
        for (group, known) in &store.groups {
            let objects = members.remove(&**group).unwrap_or_default().into();
            send(&known.sender, View { phase: store.phase.clone(), objects });
        }
    }

    /// Resolves when some follower cannot go on with what the feed has.
    pub(crate) async fn some_unsettled(&self) {
        loop {
            let changed = self.unsettled_changed.notified();
            if self.unsettled.load(Ordering::Acquire) > 0 {
                return;
            }
            changed.await;
        }
    }

    fn count_unsettled(&self, more: bool) {
        if more {
            self.unsettled.fetch_add(1, Ordering::AcqRel);
        } else {
            self.unsettled.fetch_sub(1, Ordering::AcqRel);
        }
        // One waiter: the feed's task. A permit is kept if it is not waiting just now.
        self.unsettled_changed.notify_one();
    }
}

fn send<T: Object>(sender: &watch::Sender<View<T>>, view: View<T>) {
    sender.send_if_modified(|current| {
        let same = current.phase == view.phase
            && current.objects.len() == view.objects.len()
            && current.objects.iter().zip(view.objects.iter()).all(|(a, b)| Arc::ptr_eq(a, b) || a == b);
        if !same {
            *current = view;
        }
        !same
    });
}

/// A running feed; its task ends with the last [`Subscription`].
pub(crate) struct Feed<T: Object> {
    pub(crate) shared: Arc<Shared<T>>,
    registry: Weak<Registry<T>>,
    _task: AbortOnDropHandle<()>,
}

impl<T: Object> Feed<T> {
    pub(crate) fn new(
        shared: Arc<Shared<T>>,
        registry: Weak<Registry<T>>,
        task: AbortOnDropHandle<()>,
    ) -> Self {
        Self { shared, registry, _task: task }
    }

    /// Follows one group: the name of a Service in a feed over everything, else `""`.
    pub(crate) fn subscribe(self: &Arc<Self>, group: &str) -> Subscription<T> {
        let view = self.shared.with(|store| {
            if let Some(known) = store.groups.get_mut(group) {
                known.followers += 1;
                return known.sender.subscribe();
            }
            let sender = watch::Sender::new(self.shared.view(store, group));
            let receiver = sender.subscribe();
            store.groups.insert(group.into(), Group { sender, followers: 1 });
            receiver
        });
        Subscription { view, group: group.into(), unsettled: false, feed: Arc::clone(self) }
    }
}

impl<T: Object> Drop for Feed<T> {
    fn drop(&mut self) {
        if let Some(registry) = self.registry.upgrade() {
            registry.forget_dead(&self.shared.key);
        }
    }
}

/// One follower's end of a feed; keeps it running.
pub(crate) struct Subscription<T: Object> {
    view: watch::Receiver<View<T>>,
    group: Arc<str>,
    unsettled: bool,
    feed: Arc<Feed<T>>,
}

impl<T: Object> Subscription<T> {
    /// What is known now; marks it as seen.
    pub(crate) fn view(&mut self) -> View<T> {
        self.view.borrow_and_update().clone()
    }

    /// Resolves when there is something unseen.
    pub(crate) async fn changed(&mut self) {
        if self.view.changed().await.is_err() {
            // The sender lives in the feed, which lives in `self`.
            std::future::pending::<()>().await;
        }
    }

    /// Names of everything that the feed knows, whoever it belongs to.
    pub(crate) fn names(&self) -> Vec<Arc<str>> {
        self.feed.shared.with(|store| store.objects.keys().cloned().collect())
    }

    /// Says whether the follower can go on with what the feed has. As long as one cannot, a feed without a watch looks
    /// again with backoff: nothing else would ever tell it that the pod has become ready.
    pub(crate) fn set_unsettled(&mut self, unsettled: bool) {
        if self.unsettled != unsettled {
            self.unsettled = unsettled;
            self.feed.shared.count_unsettled(unsettled);
        }
    }
}

impl<T: Object> Drop for Subscription<T> {
    fn drop(&mut self) {
        self.set_unsettled(false);
        self.feed.shared.with(|store| {
            if let Some(known) = store.groups.get_mut(&self.group) {
                known.followers -= 1;
                if known.followers == 0 {
                    store.groups.remove(&self.group);
                }
            }
        });
    }
}
