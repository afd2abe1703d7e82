//! The object store: what etcd and the watch cache are to a real API server.
//!
//! One counter, the resource version, orders every change of every kind. A log of recent changes lets a watch resume
//! from a version; what fell out of the log (or was compacted on purpose) is answered with 410 Gone.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::kinds::Kind;
use super::status::Status;
use crate::sync::lock;

/// Changes kept for resuming watches. A real watch cache keeps at least 100 per kind; tests count on not losing any
/// unless they ask for it.
const LOG_LENGTH: usize = 10_000;

/// First resource version; well above 1, so that a client that asks for version 1 is told that it is too old.
const FIRST_VERSION: u64 = 1_000;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Added,
    Modified,
    Deleted,
}

/// A change in the log.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) version: u64,
    pub(crate) kind: Kind,
    pub(crate) change: Change,
    pub(crate) object: Arc<Value>,
    /// Before the change; tells a watch with a selector that an object has left its view.
    pub(crate) before: Option<Arc<Value>>,
}

/// Namespace (empty for cluster-scoped kinds) and name.
type Key = (Kind, String, String);

#[derive(Debug)]
struct State {
    objects: BTreeMap<Key, Arc<Value>>,
    log: VecDeque<Event>,
    version: u64,
    /// Versions below this cannot be resumed from.
    oldest: u64,
}

/// The store.
#[derive(Debug)]
pub(crate) struct Store {
    state: Mutex<State>,
    version: watch::Sender<u64>,
}

impl Store {
    pub(crate) fn new() -> Self {
        let state = State {
            objects: BTreeMap::new(),
            log: VecDeque::new(),
            version: FIRST_VERSION,
            oldest: FIRST_VERSION,
        };
        Self { state: Mutex::new(state), version: watch::Sender::new(FIRST_VERSION) }
    }

    /// Fires with the newest version after every change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub(crate) fn version(&self) -> u64 {
        lock(&self.state).version
    }

    pub(crate) fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<Value>> {
        lock(&self.state).objects.get(&(kind, namespace.to_owned(), name.to_owned())).cloned()
    }

    /// All objects of a kind, by namespace and name, and the version of the snapshot. `None`: all namespaces.
    pub(crate) fn list(&self, kind: Kind, namespace: Option<&str>) -> (Vec<Arc<Value>>, u64) {
        let state = lock(&self.state);
        let objects = state
            .objects
            .range((kind, String::new(), String::new())..)
            .take_while(|((other, _, _), _)| *other == kind)
            .filter(|((_, within, _), _)| namespace.is_none_or(|namespace| namespace == within))
            .map(|(_, object)| Arc::clone(object))
            .collect();
        (objects, state.version)
    }

    /// Creates an object; fills in what the API server would.
    pub(crate) fn create(
        &self,
        kind: Kind,
        namespace: &str,
        mut object: Value,
    ) -> Result<Arc<Value>, Status> {
        let mut state = lock(&self.state);
        let name = complete(kind, namespace, &mut object)?;
        let key = (kind, namespace.to_owned(), name.clone());
        if state.objects.contains_key(&key) {
            return Err(Status::exists(kind, &name));
        }
        let in_namespace =
            state.objects.contains_key(&(Kind::Namespace, String::new(), namespace.to_owned()));
        if kind.namespaced() && !in_namespace {
            return Err(Status::not_found(Kind::Namespace, namespace));
        }
        Ok(self.put(&mut state, key, object))
    }

    /// Changes an object in place; no change, no event. `None` if there is no such object.
    pub(crate) fn update(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) -> Option<Arc<Value>> {
        let mut state = lock(&self.state);
        let key = (kind, namespace.to_owned(), name.to_owned());
        let before = state.objects.get(&key)?;
        let mut object = (**before).clone();
        change(&mut object);
        if object == **before {
            return Some(Arc::clone(before));
        }
        Some(self.put(&mut state, key, object))
    }

    /// Removes an object at once.
    pub(crate) fn remove(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let mut state = lock(&self.state);
        let before = state.objects.remove(&(kind, namespace.to_owned(), name.to_owned()))?;
        state.version += 1;
        let version = state.version;
        let mut last = (*before).clone();
        set_version(&mut last, version);
        let object = Arc::new(last);
        let event = Event {
            version,
            kind,
            change: Change::Deleted,
            object: Arc::clone(&object),
            before: Some(before),
        };
        self.log(&mut state, event);
        Some(object)
    }

    /// The changes after `version`, oldest first, or 410 if they are not known any more.
    pub(crate) fn since(&self, version: u64, kind: Kind) -> Result<Vec<Event>, Status> {
        let state = lock(&self.state);
        if version < state.oldest {
            return Err(Status::expired(version, state.oldest));
        }
        let start = state.log.partition_point(|event| event.version <= version);
        Ok(state.log.range(start..).filter(|event| event.kind == kind).cloned().collect())
    }

    /// Forgets the log: every version from before now is too old.
    pub(crate) fn compact(&self) {
        let mut state = lock(&self.state);
        // A gap, so that even the newest version handed out is too old, as after a long etcd compaction.
        state.version += 1;
        state.oldest = state.version;
        state.log.clear();
        self.version.send_replace(state.version);
    }

    fn put(&self, state: &mut State, key: Key, mut object: Value) -> Arc<Value> {
        state.version += 1;
        let version = state.version;
        set_version(&mut object, version);
        let object = Arc::new(object);
        let kind = key.0;
        let before = state.objects.insert(key, Arc::clone(&object));
        let change = if before.is_some() { Change::Modified } else { Change::Added };
        self.log(state, Event { version, kind, change, object: Arc::clone(&object), before });
        object
    }

    fn log(&self, state: &mut State, event: Event) {
        if state.log.len() >= LOG_LENGTH
            && let Some(dropped) = state.log.pop_front()
        {
            state.oldest = dropped.version;
        }
        state.log.push_back(event);
        self.version.send_replace(state.version);
    }
}

/// Fills in name, namespace, uid and timestamps; returns the name.
fn complete(kind: Kind, namespace: &str, object: &mut Value) -> Result<String, Status> {
    if !object.is_object() {
        return Err(Status::bad_request("the body is not an object"));
    }
    object["apiVersion"] = json!(kind.api_version());
    object["kind"] = json!(kind.name());
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    let metadata = &mut object["metadata"];
    if metadata["name"].as_str().is_none_or(str::is_empty) {
        let Some(prefix) = metadata["generateName"].as_str() else {
            return Err(Status::new(
                http::StatusCode::UNPROCESSABLE_ENTITY,
                "name or generateName is required",
            ));
        };
        metadata["name"] = json!(format!("{prefix}{}", suffix()));
    }
    if kind.namespaced() {
        metadata["namespace"] = json!(namespace);
    }
    metadata["uid"] = json!(uid());
    metadata["generation"] = json!(1);
    metadata["creationTimestamp"] = json!(timestamp());
    Ok(metadata["name"].as_str().unwrap_or_default().to_owned())
}

fn set_version(object: &mut Value, version: u64) {
    object["metadata"]["resourceVersion"] = json!(version.to_string());
}

/// Five characters as Kubernetes appends them to generated names (no vowels: no words).
pub(crate) fn suffix() -> String {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut random: u64 = rand::random();
    let mut name = String::new();
    for _ in 0..5 {
        let index = usize::try_from(random % 27).unwrap_or_default();
        name.push(char::from(*LETTERS.get(index).unwrap_or(&b'x')));
        random /= 27;
    }
    name
}

/// A random UUID, version 4.
pub(crate) fn uid() -> String {
    let bits: u128 = (rand::random::<u128>() & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0..8), part(8..12), part(12..16), part(16..20), part(20..32))
}

/// Now, to the second, as `metav1.Time` is written.
pub(crate) fn timestamp() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
