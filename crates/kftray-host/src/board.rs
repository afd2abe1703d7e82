//! What everybody sees: the one copy of the published state, and the stream of its changes.
//!
//! Every change is numbered, applied and sent under one lock, so that a client that subscribes gets a snapshot and exactly
//! the changes after it. A change is turned into bytes once, however many clients there are.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use kftray_commons::ForwardId;
use kftray_commons::api::{Calls, Change, Config, Delta, ForwardState, Settings, Snapshot, Tally};
use tokio::sync::{broadcast, watch};

/// Changes kept for clients that come back, and for those that read slowly: a minute of a busy host. A client that is
/// further behind gets a snapshot.
const KEPT: usize = 1024;

/// Bytes of kept changes, so that a few very large configs do not fill the memory.
const KEPT_BYTES: usize = 8 * 1024 * 1024;

/// The published state.
#[derive(Debug)]
pub(crate) struct Board {
    instance: String,
    inner: Mutex<Inner>,
    frames: broadcast::Sender<Frame>,
    /// How many clients follow.
    followers: watch::Sender<usize>,
    /// How many forwards are active.
    active: watch::Sender<usize>,
    settings: watch::Sender<Arc<Settings>>,
}

#[derive(Debug, Default)]
struct Inner {
    seq: u64,
    configs: BTreeMap<ForwardId, Arc<Config>>,
    forwards: BTreeMap<ForwardId, Arc<ForwardState>>,
    settings: Arc<Settings>,
    kept: VecDeque<Frame>,
    kept_bytes: usize,
}

/// One change, ready to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) seq: u64,
    /// A whole server-sent event.
    pub(crate) event: Bytes,
    /// Nothing comes after it.
    pub(crate) last: bool,
}

/// A client's place in the stream.
#[derive(Debug)]
pub(crate) struct Subscription {
    /// What it gets first.
    pub(crate) first: Vec<Bytes>,
    /// Changes after that.
    pub(crate) frames: broadcast::Receiver<Frame>,
    _follower: Follower,
}

/// Counts a follower until it is dropped.
#[derive(Debug)]
struct Follower(watch::Sender<usize>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Board {
    pub(crate) fn new(instance: String) -> Self {
        Self {
            instance,
            inner: Mutex::default(),
            frames: broadcast::Sender::new(KEPT),
            followers: watch::Sender::new(0),
            active: watch::Sender::new(0),
            settings: watch::Sender::default(),
        }
    }

    /// Drawn anew with every start of a host.
    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    /// How many clients follow, now and as it changes.
    pub(crate) fn followers(&self) -> watch::Receiver<usize> {
        self.followers.subscribe()
    }

    /// How many forwards are active, now and as it changes.
    pub(crate) fn active(&self) -> watch::Receiver<usize> {
        self.active.subscribe()
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.inner().snapshot()
    }

    pub(crate) fn config(&self, id: ForwardId) -> Option<Arc<Config>> {
        self.inner().configs.get(&id).cloned()
    }

    pub(crate) fn configs(&self) -> Vec<Arc<Config>> {
        self.inner().configs.values().cloned().collect()
    }

    pub(crate) fn forward(&self, id: ForwardId) -> Option<Arc<ForwardState>> {
        self.inner().forwards.get(&id).cloned()
    }

    pub(crate) fn forwards(&self) -> Vec<Arc<ForwardState>> {
        self.inner().forwards.values().cloned().collect()
    }

    /// The settings, now and as they change.
    pub(crate) fn settings_changes(&self) -> watch::Receiver<Arc<Settings>> {
        self.settings.subscribe()
    }

    pub(crate) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.inner().settings)
    }

    /// Publishes a config, unless it is as it was.
    pub(crate) fn put_config(&self, config: Arc<Config>) {
        let mut inner = self.inner();
        if inner.configs.get(&config.id).is_none_or(|known| *known != config) {
            inner.configs.insert(config.id, Arc::clone(&config));
            self.publish(&mut inner, Change::ConfigPut { config });
        }
    }

    pub(crate) fn remove_config(&self, id: ForwardId) {
        let mut inner = self.inner();
        if inner.configs.remove(&id).is_some() {
            self.publish(&mut inner, Change::ConfigGone { id });
        }
    }

    /// Publishes the state of a forward.
    pub(crate) fn put_forward(&self, forward: ForwardState) {
        self.with_forwards(|board, inner| {
            let forward = Arc::new(forward);
            inner.forwards.insert(forward.id, Arc::clone(&forward));
            board.publish(inner, Change::ForwardPut { forward });
        });
    }

    /// Changes the state of a forward, if it is known, and publishes it, if that made a difference.
    pub(crate) fn change_forward(&self, id: ForwardId, change: impl FnOnce(&mut ForwardState)) {
        self.with_forwards(|board, inner| {
            let Some(known) = inner.forwards.get_mut(&id) else { return };
            let mut changed = ForwardState::clone(known);
            change(&mut changed);
            if changed != **known {
                let forward = Arc::new(changed);
                *known = Arc::clone(&forward);
                board.publish(inner, Change::ForwardPut { forward });
            }
        });
    }

    pub(crate) fn remove_forward(&self, id: ForwardId) {
        self.with_forwards(|board, inner| {
            if inner.forwards.remove(&id).is_some() {
                board.publish(inner, Change::ForwardGone { id });
            }
        });
    }

    /// Publishes counters, of forwards that are known.
    pub(crate) fn put_tallies(&self, tallies: Vec<Tally>) {
        let mut inner = self.inner();
        for tally in &tallies {
            if let Some(forward) = inner.forwards.get_mut(&tally.id) {
                let forward = Arc::make_mut(forward);
                forward.counters = tally.counters;
                forward.idle_limit_at = tally.idle_limit_at;
            }
        }
        self.publish(&mut inner, Change::CountersPut { tallies });
    }

    /// Publishes the calls of an expose that is known.
    pub(crate) fn put_calls(&self, id: ForwardId, calls: Calls) {
        let mut inner = self.inner();
        let known = inner.forwards.get_mut(&id).and_then(|forward| Arc::make_mut(forward).exposed.as_mut());
        let Some(exposed) = known else { return };
        exposed.calls = calls.clone();
        self.publish(&mut inner, Change::CallsPut { id, calls });
    }

    pub(crate) fn put_settings(&self, settings: Settings) {
        let mut inner = self.inner();
        if *inner.settings != settings {
            let settings = Arc::new(settings);
            inner.settings = Arc::clone(&settings);
            self.settings.send_replace(Arc::clone(&settings));
            self.publish(&mut inner, Change::SettingsPut { settings });
        }
    }

    /// Says goodbye to all clients.
    pub(crate) fn end(&self, successor: bool) {
        let mut inner = self.inner();
        self.publish(&mut inner, Change::HostEnding { successor });
    }

    /// A place in the stream. With the id of the last event that the client has seen it goes on there, if that is still
    /// known.
    pub(crate) fn subscribe(&self, last_event: Option<&str>) -> Subscription {
        self.followers.send_modify(|count| *count += 1);
        let follower = Follower(self.followers.clone());
        let (missed, snapshot, frames) = {
            let inner = self.inner();
            // Under the lock: no change can come between what is taken here and the first one received.
            let frames = self.frames.subscribe();
            let missed = last_event.and_then(|id| self.missed(&inner, id));
            let snapshot = missed.is_none().then(|| inner.snapshot());
            (missed, snapshot, frames)
        };
        let first = match (missed, snapshot) {
            (Some(missed), _) => std::iter::once(self.event("resumed", None, "{}")).chain(missed).collect(),
            (None, Some(snapshot)) => vec![self.snapshot_event(&snapshot)],
            (None, None) => Vec::new(),
        };
        Subscription { first, frames, _follower: follower }
    }

    /// A snapshot for a client that has fallen behind, and the place after it.
    pub(crate) fn resync(&self) -> (Bytes, broadcast::Receiver<Frame>) {
        let (snapshot, frames) = {
            let inner = self.inner();
            (inner.snapshot(), self.frames.subscribe())
        };
        (self.snapshot_event(&snapshot), frames)
    }

    /// The changes after that event, if all of them are still known.
    fn missed(&self, inner: &Inner, last_event: &str) -> Option<Vec<Bytes>> {
        let (instance, seq) = last_event.rsplit_once('.')?;
        let seq: u64 = seq.parse().ok()?;
        if instance != self.instance || seq > inner.seq {
            return None;
        }
        let oldest = inner.kept.front().map_or(inner.seq + 1, |frame| frame.seq);
        (oldest <= seq + 1)
            .then(|| inner.kept.iter().filter(|f| f.seq > seq).map(|f| f.event.clone()).collect())
    }

    fn with_forwards(&self, work: impl FnOnce(&Self, &mut Inner)) {
        let active = {
            let mut inner = self.inner();
            work(self, &mut inner);
            inner.forwards.values().filter(|forward| forward.is_active()).count()
        };
        self.active.send_if_modified(|known| std::mem::replace(known, active) != active);
    }

    fn publish(&self, inner: &mut Inner, change: Change) {
        inner.seq += 1;
        let last = matches!(change, Change::HostEnding { .. });
        let delta = Delta { seq: inner.seq, change };
        let event = self.event("delta", Some(delta.seq), &json(&delta));
        let frame = Frame { seq: delta.seq, event, last };
        inner.kept_bytes += frame.event.len();
        inner.kept.push_back(frame.clone());
        while inner.kept.len() > KEPT || inner.kept_bytes > KEPT_BYTES {
            let Some(oldest) = inner.kept.pop_front() else { break };
            inner.kept_bytes -= oldest.event.len();
        }
        // Without a receiver nobody wants to know.
        drop(self.frames.send(frame));
    }

    fn snapshot_event(&self, snapshot: &Snapshot) -> Bytes {
        self.event("snapshot", Some(snapshot.seq), &json(snapshot))
    }

    /// JSON has no line breaks here, so that it is one line of data.
    fn event(&self, name: &str, seq: Option<u64>, data: &str) -> Bytes {
        let id = seq.map(|seq| format!("id: {}.{seq}\n", self.instance)).unwrap_or_default();
        Bytes::from(format!("{id}event: {name}\ndata: {data}\n\n"))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic while it was held leaves plain values behind.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn snapshot(&self) -> Snapshot {
        Snapshot {
            seq: self.seq,
            configs: self.configs.values().cloned().collect(),
            forwards: self.forwards.values().cloned().collect(),
            settings: Arc::clone(&self.settings),
        }
    }
}

/// What we publish has only text keys and finite numbers: it can always be written.
fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(idle_minutes: u32) -> Settings {
        Settings { idle_minutes, ..Settings::default() }
    }

    fn text(bytes: &[Bytes]) -> Vec<String> {
        bytes.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }

    #[tokio::test]
    async fn a_snapshot_and_exactly_the_changes_after_it() {
        let board = Board::new("i".to_owned());
        board.put_settings(settings(1));
        let mut subscription = board.subscribe(None);
        assert_eq!(*board.followers().borrow(), 1);
        assert!(text(&subscription.first)[0].starts_with("id: i.1\nevent: snapshot\n"));
        board.put_settings(settings(2));
        board.put_settings(settings(2));
        board.put_settings(settings(3));
        assert_eq!(subscription.frames.recv().await.expect("a change").seq, 2);
        assert_eq!(subscription.frames.recv().await.expect("a change").seq, 3);
        drop(subscription);
        assert_eq!(*board.followers().borrow(), 0);
    }

    #[test]
    fn a_client_that_comes_back_gets_what_it_missed() {
        let board = Board::new("i".to_owned());
        for minutes in 1..=3 {
            board.put_settings(settings(minutes));
        }
        let first = text(&board.subscribe(Some("i.1")).first);
        assert!(first[0].starts_with("event: resumed"), "{first:?}");
        assert!(
            first[1].starts_with("id: i.2\nevent: delta") && first[2].starts_with("id: i.3"),
            "{first:?}"
        );
        assert_eq!(text(&board.subscribe(Some("i.3")).first).len(), 1, "nothing was missed");
        for strange in ["other.1", "i.9", "i.x", "", "i"] {
            let first = text(&board.subscribe(Some(strange)).first);
            assert!(first[0].contains("event: snapshot"), "{strange}: {first:?}");
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let board = Board::new("i".to_owned());
        for minutes in 0..3000 {
            board.put_settings(settings(minutes % 7 + 1));
        }
        assert!(board.inner().kept.len() <= KEPT);
        let first = text(&board.subscribe(Some("i.5")).first);
        assert!(first[0].contains("event: snapshot"), "{first:?}");
    }
}
