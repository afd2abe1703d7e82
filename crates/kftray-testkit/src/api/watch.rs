//! Watches: a response that never ends by itself, one JSON event per line.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::kinds::Kind;
use super::rest::Query;
use super::selector::Selector;
use super::status::Status;
use super::store::{Change, Event, Store};
use crate::counters::Entered;
use crate::faults::FaultState;

/// A watch without `timeoutSeconds` ends after this long; the API server picks 30 to 60 minutes at random.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// One open watch.
pub(crate) struct Watch {
    store: Arc<Store>,
    kind: Kind,
    namespace: Option<String>,
    selector: Selector,
    /// The newest version that was looked at.
    version: u64,
    lines: VecDeque<Bytes>,
    finished: bool,
    bookmarks: bool,
    bookmark_every: Duration,
    next_bookmark: Instant,
    end: Instant,
    changes: watch::Receiver<u64>,
    faults: watch::Receiver<FaultState>,
    watch_generation: u64,
    gone_generation: u64,
    _entered: Entered,
}

/// How a watch is set up.
pub(crate) struct Setup<'a> {
    pub(crate) store: &'a Arc<Store>,
    pub(crate) kind: Kind,
    pub(crate) namespace: Option<&'a str>,
    pub(crate) query: &'a Query,
    pub(crate) faults: watch::Receiver<FaultState>,
    pub(crate) bookmark_every: Duration,
    pub(crate) entered: Entered,
}

impl Watch {
    pub(crate) fn open(setup: Setup<'_>) -> Result<Self, Status> {
        let Setup { store, kind, namespace, query, faults, bookmark_every, entered } = setup;
        let now = Instant::now();
        let timeout = query.number("timeoutSeconds")?.map_or(DEFAULT_TIMEOUT, Duration::from_secs);
        let asked = match query.get("resourceVersion") {
            None | Some("" | "0") => None,
            Some(_) => query.number("resourceVersion")?,
        };
        let initial = query.get("sendInitialEvents").map(|value| value == "true");
        let (watch_generation, gone_generation) = {
            let faults = faults.borrow();
            (faults.watch_generation, faults.gone_generation)
        };
        let mut watch = Self {
            changes: store.subscribe(),
            version: asked.unwrap_or_default(),
            store: Arc::clone(store),
            kind,
            namespace: namespace.map(str::to_owned),
            selector: query.selector()?,
            lines: VecDeque::new(),
            finished: false,
            bookmarks: query.is_true("allowWatchBookmarks"),
            bookmark_every,
            next_bookmark: now + bookmark_every,
            end: now + timeout,
            faults,
            watch_generation,
            gone_generation,
            _entered: entered,
        };
        // Without a version a watch begins with what exists; with `sendInitialEvents` as well, then marks their end.
        if initial.unwrap_or(asked.is_none()) {
            watch.send_all();
            if initial == Some(true) {
                watch.bookmark(true);
            }
        }
        Ok(watch)
    }

    /// The response body.
    pub(crate) fn into_stream(self) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send {
        futures::stream::unfold(self, |mut watch| async move {
            let line = watch.next_line().await?;
            Some((Ok(Frame::data(line)), watch))
        })
    }

    fn send_all(&mut self) {
        let (objects, version) = self.store.list(self.kind, self.namespace.as_deref());
        self.version = version;
        for object in objects.iter().filter(|object| self.selector.matches(object)) {
            self.lines.push_back(line("ADDED", object));
        }
    }

    async fn next_line(&mut self) -> Option<Bytes> {
        loop {
            if self.is_stalled() {
                self.faults.changed().await.ok()?;
                continue;
            }
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if self.finished {
                return None;
            }
            self.collect();
            if !self.lines.is_empty() || self.finished {
                continue;
            }
            let next_bookmark = self.next_bookmark;
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                changed = self.faults.changed() => changed.ok()?,
                () = tokio::time::sleep_until(self.end) => self.finished = true,
                () = tokio::time::sleep_until(next_bookmark), if self.bookmarks => self.bookmark(false),
            }
        }
    }

    fn is_stalled(&self) -> bool {
        let faults = self.faults.borrow();
        faults.stall_watches
            && faults.watch_generation == self.watch_generation
            && faults.gone_generation == self.gone_generation
    }

    /// Looks at what has happened since.
    fn collect(&mut self) {
        let (watch_generation, gone_generation) = {
            let faults = self.faults.borrow_and_update();
            (faults.watch_generation, faults.gone_generation)
        };
        if watch_generation != self.watch_generation {
            self.finished = true;
            return;
        }
        self.changes.mark_unchanged();
        let events = self.store.since(self.version, self.kind);
        let gone = gone_generation != self.gone_generation;
        match events {
            Ok(events) if !gone => {
                for event in events {
                    self.version = event.version;
                    self.lines.extend(self.view(&event));
                }
            }
            Err(status) => self.fail(&status),
            Ok(_) => self.fail(&Status::expired(self.version, self.store.version())),
        }
    }

    fn fail(&mut self, status: &Status) {
        self.lines.push_back(line("ERROR", &status.to_json()));
        self.finished = true;
    }

    /// The event as this watch sees it: entering the view is ADDED, leaving it DELETED.
    fn view(&self, event: &Event) -> Option<Bytes> {
        let inside = |object: &Value| {
            self.namespace.as_deref().is_none_or(|namespace| object["metadata"]["namespace"] == namespace)
                && self.selector.matches(object)
        };
        let was = event.before.as_deref().is_some_and(inside);
        let is = event.change != Change::Deleted && inside(&event.object);
        match (was, is) {
            (false, true) => Some(line("ADDED", &event.object)),
            (true, true) => Some(line("MODIFIED", &event.object)),
            (true, false) => Some(line("DELETED", &event.object)),
            (false, false) => None,
        }
    }

    fn bookmark(&mut self, initial_end: bool) {
        self.next_bookmark = Instant::now() + self.bookmark_every;
        // Everything up to now has been looked at, or `collect` would not be idle.
        let version = if initial_end { self.version } else { self.store.version().max(self.version) };
        let mut object = json!({
            "kind": self.kind.name(),
            "apiVersion": self.kind.api_version(),
            "metadata": { "resourceVersion": version.to_string(), "creationTimestamp": null },
        });
        if initial_end {
            object["metadata"]["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        self.lines.push_back(line("BOOKMARK", &object));
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
    let mut text = json!({ "type": kind, "object": object }).to_string();
    text.push('\n');
    Bytes::from(text)
}
