//! An API server without sockets, so that the clock can be paused: lists, watches with history, permissions, outages.
//!
//! Only what watches need, and every request on record. `kftray-testkit` has the cluster with real connections.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// The server; clones are the same one.
#[derive(Clone, Default)]
pub(super) struct Api {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<(String, String), Value>,
    history: Vec<(u64, &'static str, String, Value)>,
    /// Watches from before this version get 410.
    compacted: u64,
    watches: Vec<Watch>,
    denied: HashSet<(String, String)>,
    requests: Vec<String>,
    outage: Option<Outage>,
    /// Watches that are closed at once.
    closes_at_once: bool,
}

struct Watch {
    plural: String,
    query: HashMap<String, String>,
    body: mpsc::UnboundedSender<io::Result<Bytes>>,
    stalled: bool,
}

/// How the server fails to answer.
#[derive(Clone, Copy)]
pub(super) enum Outage {
    /// Connections are refused.
    Refused,
    /// Nothing comes back at all.
    BlackHole,
    /// This status for every request.
    Status(u16),
}

impl Api {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "default")
    }

    /// Creates or replaces an object of a kind (`pods`).
    pub(super) fn put(&self, plural: &str, mut object: Value) {
        let mut state = self.lock();
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let old = state.objects.insert((plural.to_owned(), name), object.clone());
        state.event(if old.is_some() { "MODIFIED" } else { "ADDED" }, plural, object);
    }

    pub(super) fn delete(&self, plural: &str, name: &str) {
        let mut state = self.lock();
        state.version += 1;
        let mut object = state.objects.remove(&(plural.to_owned(), name.to_owned())).unwrap();
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        state.event("DELETED", plural, object);
    }

    /// Takes or gives permissions: `deny(&["list"], "pods")`.
    pub(super) fn deny(&self, verbs: &[&str], plural: &str) {
        self.lock().denied.extend(verbs.iter().map(|verb| ((*verb).to_owned(), plural.to_owned())));
    }

    pub(super) fn allow_all(&self) {
        self.lock().denied.clear();
    }

    pub(super) fn set_outage(&self, outage: Option<Outage>) {
        let mut state = self.lock();
        state.outage = outage;
        if matches!(outage, Some(Outage::Refused)) {
            state.end_watches(true);
        }
    }

    /// Ends all watches, in good order or by a reset.
    pub(super) fn end_watches(&self, reset: bool) {
        self.lock().end_watches(reset);
    }

    /// Open watches never deliver anything any more, without being closed.
    pub(super) fn stall_watches(&self) {
        self.lock().watches.iter_mut().for_each(|watch| watch.stalled = true);
    }

    pub(super) fn close_watches_at_once(&self, yes: bool) {
        self.lock().closes_at_once = yes;
    }

    /// Forgets history: a watch from an older version gets 410.
    pub(super) fn compact(&self) {
        let mut state = self.lock();
        state.compacted = state.version;
        state.history.clear();
    }

    pub(super) fn open_watches(&self) -> usize {
        let mut state = self.lock();
        state.watches.retain(|watch| !watch.body.is_closed());
        state.watches.len()
    }

    /// Requests since the last call, as `list pods`, `watch pods`, `get pods/x`; selectors after a `?`.
    pub(super) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().requests)
    }

    fn answer(&self, request: &Request<kube::client::Body>) -> Option<Result<Response<TestBody>, io::Error>> {
        let mut state = self.lock();
        let (plural, name) = collection(request.uri().path());
        let query: HashMap<String, String> =
            url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes())
                .into_owned()
                .collect();
        let verb = match name {
            Some(_) => "get",
            None if query.contains_key("watch") => "watch",
            None => "list",
        };
        let selector = query.get("labelSelector").or_else(|| query.get("fieldSelector"));
        let what =
            name.map(|name| format!("/{name}")).or_else(|| selector.map(|selector| format!("?{selector}")));
        state.requests.push(format!("{verb} {plural}{}", what.unwrap_or_default()));
        match state.outage {
            Some(Outage::Refused) => return Some(Err(io::ErrorKind::ConnectionRefused.into())),
            Some(Outage::BlackHole) => return None,
            Some(Outage::Status(code)) => {
                return Some(Ok(failure(code, "Outage", "the server is out of order")));
            }
            None => {}
        }
        if state.denied.contains(&(verb.to_owned(), plural.clone())) {
            let message = format!("{plural} is forbidden: User \"jane\" cannot {verb} resource \"{plural}\"");
            return Some(Ok(failure(403, "Forbidden", &message)));
        }
        Some(Ok(match (verb, name) {
            ("get", Some(name)) => match state.objects.get(&(plural, name.to_owned())) {
                Some(object) => full(200, object),
                None => failure(404, "NotFound", "not found"),
            },
            ("watch", _) => state.watch(plural, query),
            _ => {
                let items: Vec<&Value> = state
                    .objects
                    .iter()
                    .filter(|((kind, _), object)| *kind == plural && selected(object, &query))
                    .map(|(_, object)| object)
                    .collect();
                full(
                    200,
                    &json!({"metadata": {"resourceVersion": state.version.to_string()}, "items": items}),
                )
            }
        }))
    }
}

impl State {
    fn event(&mut self, kind: &'static str, plural: &str, object: Value) {
        for watch in self.watches.iter().filter(|watch| watch.plural == plural && !watch.stalled) {
            watch.send(kind, &object);
        }
        self.history.push((self.version, kind, plural.to_owned(), object));
    }

    fn watch(&mut self, plural: String, query: HashMap<String, String>) -> Response<TestBody> {
        let (body, receiver) = mpsc::unbounded_channel();
        let watch = Watch { plural, query, body, stalled: false };
        let from: u64 = watch.query["resourceVersion"].parse().unwrap();
        if from < self.compacted {
            let status = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old", "status": "Failure"});
            watch.send("ERROR", &status);
            return Response::new(TestBody::Stream(receiver));
        }
        for (version, kind, plural, object) in &self.history {
            if *version > from && *plural == watch.plural {
                watch.send(kind, object);
            }
        }
        if !self.closes_at_once {
            self.watches.push(watch);
        }
        Response::new(TestBody::Stream(receiver))
    }

    fn end_watches(&mut self, reset: bool) {
        for watch in self.watches.drain(..) {
            if reset {
                let _closed = watch.body.send(Err(io::ErrorKind::ConnectionReset.into()));
            }
        }
    }
}

impl Watch {
    fn send(&self, kind: &str, object: &Value) {
        if kind == "ERROR" || selected(object, &self.query) {
            let line = format!("{}\n", json!({"type": kind, "object": object}));
            let _closed = self.body.send(Ok(line.into()));
        }
    }
}

/// Kind and, for a single object, name of a path.
fn collection(path: &str) -> (String, Option<&str>) {
    let (_, path) = path.split_once("/namespaces/").unwrap();
    let mut parts = path.split('/').skip(1);
    (parts.next().unwrap().to_owned(), parts.next())
}

/// `a=b,c=d` and `metadata.name=x` are enough here.
fn selected(object: &Value, query: &HashMap<String, String>) -> bool {
    let labels = query.get("labelSelector").is_none_or(|selector| {
        selector.split(',').all(|term| {
            let (key, value) = term.split_once('=').unwrap();
            object["metadata"]["labels"][key] == value
        })
    });
    let name = query.get("fieldSelector").and_then(|selector| selector.strip_prefix("metadata.name="));
    labels && name.is_none_or(|name| object["metadata"]["name"] == name)
}

fn full(code: u16, body: &Value) -> Response<TestBody> {
    Response::builder().status(code).body(TestBody::Full(Some(body.to_string().into()))).unwrap()
}

fn failure(code: u16, reason: &str, message: &str) -> Response<TestBody> {
    full(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message}),
    )
}

pub(super) enum TestBody {
    Full(Option<Bytes>),
    Stream(mpsc::UnboundedReceiver<io::Result<Bytes>>),
}

impl hyper::body::Body for TestBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut *self {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => stream.poll_recv(cx).map(|next| next.map(|bytes| bytes.map(Frame::data))),
        }
    }
}

impl tower::Service<Request<kube::client::Body>> for Api {
    type Response = Response<TestBody>;
    type Error = io::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let answer = self.answer(&request);
        Box::pin(async move {
            match answer {
                Some(answer) => answer,
                None => match std::future::pending::<Infallible>().await {},
            }
        })
    }
}
