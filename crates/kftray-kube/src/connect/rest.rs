//! The connection for objects and watches, behind a `kube::Client`.
//!
//! kube-rs' own stack speaks HTTP/1.1, so that each watch costs a connection and a black hole is noticed by none of them.
//! Here the requests of a cluster share one HTTP/2 connection that is pinged, and another only when that one is full; a server
//! or gateway without HTTP/2 gets a pool of HTTP/1.1 connections.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{AUTHORIZATION, HOST, USER_AGENT as USER_AGENT_HEADER};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioIo, TokioTimer};
use kftray_commons::Problem;
use kube::client::Body;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::{BoxError, Service};

use super::carrier::CarrierIo;
use super::dial::Dialer;
use super::tls::Alpn;
use super::{USER_AGENT, answer, tcp};
use crate::config::login::{Credentials, Login};

/// PING after this much silence on the shared connection, whether or not a watch is open: with the timeout below a black
/// hole is noticed within 10 s.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// An unanswered PING ends the connection after this.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle HTTP/1.1 connections are closed before the usual gateway does it (60 s).
const IDLE: Duration = Duration::from_secs(50);
/// Requests and open watches on one HTTP/2 connection. API servers allow 100 unless configured otherwise, and one too many makes
/// every later request wait until some watch ends; the rest is for streams whose end the server has not heard of yet.
const STREAMS: usize = 90;
/// How often a request that was not sent is tried: all connections may end at the same moment.
const TRIES: usize = 3;

/// Sends requests to one API server.
#[derive(Clone)]
pub(crate) struct Rest {
    shared: Arc<Shared>,
}

struct Shared {
    dialer: Arc<Dialer>,
    credentials: Arc<Credentials>,
    /// Impersonation.
    extra: HeaderMap,
    context: String,
    state: Mutex<State>,
    /// Held while a connection is being dialled: those who find no room meanwhile share what comes of it.
    gate: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    /// Oldest first. The first with room is taken, so that the later ones run empty.
    links: Vec<Link>,
    /// Cancelled and replaced by a reset, so that a dial into a dead network is given up.
    epoch: CancellationToken,
}

#[derive(Clone)]
enum Link {
    Http2 { sender: SendRequest<Body>, streams: Arc<Semaphore>, tasks: Arc<Tasks>, generation: u64 },
    Http1 { client: Box<legacy::Client<Http1Connector, Body>>, tasks: Arc<Tasks>, generation: u64 },
}

impl Link {
    fn is_usable(&self) -> bool {
        match self {
            Self::Http2 { sender, .. } => !sender.is_closed(),
            Self::Http1 { .. } => true,
        }
    }

    /// How many more requests it takes.
    fn room(&self) -> usize {
        match self {
            Self::Http2 { sender, .. } if sender.is_closed() => 0,
            Self::Http2 { streams, .. } => streams.available_permits(),
            Self::Http1 { .. } => STREAMS,
        }
    }

    /// Nothing is open on it; what the HTTP/1.1 pool has open is not known here.
    fn is_idle(&self) -> bool {
        match self {
            Self::Http2 { streams, .. } => streams.available_permits() == STREAMS,
            Self::Http1 { .. } => false,
        }
    }

    /// Of the login whose certificate it was opened with.
    fn generation(&self) -> u64 {
        match self {
            Self::Http2 { generation, .. } | Self::Http1 { generation, .. } => *generation,
        }
    }

    fn abort(&self) {
        match self {
            Self::Http2 { tasks, .. } | Self::Http1 { tasks, .. } => tasks.abort(),
        }
    }

    fn seat(&self) -> Seat {
        let stream = match self {
            Self::Http2 { streams, .. } => Arc::clone(streams).try_acquire_owned().ok(),
            Self::Http1 { .. } => None,
        };
        Seat { link: self.clone(), stream }
    }
}

/// A connection with room for one request, which is kept until the answer's body has ended.
struct Seat {
    link: Link,
    stream: Option<OwnedSemaphorePermit>,
}

impl Seat {
    /// The failure says that the request was not sent, or hit a connection that was just ending.
    async fn send(mut self, request: Request<Body>) -> Result<Response<Counted>, (BoxError, bool)> {
        let response = match &mut self.link {
            Link::Http2 { sender, .. } => {
                sender.ready().await.map_err(|error| (error.into(), true))?;
                sender.send_request(request).await.map_err(|error| {
                    let unsent = error.is_canceled() || error.is_closed();
                    (error.into(), unsent)
                })?
            }
            Link::Http1 { client, .. } => {
                client.request(request).await.map_err(|error| (flatten(error), false))?
            }
        };
        Ok(response.map(|body| Counted { body, stream: self.stream }))
    }
}

/// The body of an answer, which counts on its connection for as long as it is open.
pub(crate) struct Counted {
    body: Incoming,
    stream: Option<OwnedSemaphorePermit>,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(None | Some(Err(_))) = frame {
            self.stream = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Rest {
    pub(crate) fn new(
        dialer: Arc<Dialer>,
        credentials: Arc<Credentials>,
        extra: HeaderMap,
        context: String,
    ) -> Self {
        let shared = Shared {
            dialer,
            credentials,
            extra,
            context,
            state: Mutex::default(),
            gate: tokio::sync::Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Ends every connection; running requests and watches fail at once, new ones dial anew.
    pub(crate) fn reset(&self) {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut state.epoch).cancel();
        state.links.drain(..).for_each(|link| link.abort());
    }
}

impl Service<Request<Body>> for Rest {
    type Response = Response<Counted>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { shared.request(request).await })
    }
}

impl Shared {
    async fn request(&self, request: Request<Body>) -> Result<Response<Counted>, BoxError> {
        let login = self.credentials.current().await?;
        let again = copy(&request);
        let response = self.send(request, &login).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let Some(again) = again else { return Ok(response) };
        if let Some(login) = self.credentials.renew(login.generation).await? {
            let response = self.send(again, &login).await?;
            if response.status() != StatusCode::UNAUTHORIZED {
                return Ok(response);
            }
        }
        Err(Box::new(answer::unauthorized(&self.context, &self.credentials.describe())))
    }

    async fn send(
        &self,
        mut request: Request<Body>,
        login: &Arc<Login>,
    ) -> Result<Response<Counted>, BoxError> {
        self.complete(&mut request, login)?;
        let mut tries = TRIES;
        loop {
            let again = copy(&request);
            tries -= 1;
            match (self.seat(login).await?.send(request).await, again) {
                (Ok(response), _) => return Ok(response),
                // The connection was ending: once more on another one.
                (Err((_, true)), Some(again)) if tries > 0 => request = again,
                (Err((error, _)), _) => return Err(error),
            }
        }
    }

    /// kube-rs builds paths only; who and where is added here.
    fn complete(&self, request: &mut Request<Body>, login: &Login) -> Result<(), BoxError> {
        let origin = &self.dialer.origin;
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = format!("{}{path}", origin.url()).parse::<Uri>()?;
        let headers = request.headers_mut();
        headers.remove(HOST);
        headers.insert(USER_AGENT_HEADER, HeaderValue::from_static(USER_AGENT));
        for (name, value) in &self.extra {
            headers.append(name, value.clone());
        }
        if let Some(value) = &login.authorization {
            headers.insert(AUTHORIZATION, value.clone());
        }
        Ok(())
    }

    fn usable(&self, login: &Login) -> (Option<Seat>, CancellationToken) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // A connection is bound to the client certificate it was opened with; a token goes with each request.
        let stale = |link: &Link| login.certificate.is_some() && link.generation() < login.generation;
        // One that takes no more requests (GOAWAY) finishes those it has.
        state.links.retain(|link| !stale(link) && (link.is_usable() || !link.is_idle()));
        // One that has run empty goes when another has much room: at the first free place it would soon be dialled again.
        while let [rest @ .., last] = state.links.as_slice()
            && last.is_idle()
            && rest.iter().any(|link| link.room() >= STREAMS / 2)
        {
            state.links.pop();
        }
        (state.links.iter().find(|link| link.room() > 0).map(Link::seat), state.epoch.clone())
    }

    async fn seat(&self, login: &Arc<Login>) -> Result<Seat, Problem> {
        if let (Some(seat), _) = self.usable(login) {
            return Ok(seat);
        }
        let _one_at_a_time = self.gate.lock().await;
        loop {
            let (seat, epoch) = self.usable(login);
            if let Some(seat) = seat {
                return Ok(seat);
            }
            let dialled = tokio::select! {
                dialled = self.open(login) => dialled,
                () = epoch.cancelled() => continue,
            };
            let dialled = match dialled {
                Ok(dialled) => dialled,
                // Without another connection, what became free meanwhile does as well.
                Err(problem) => return self.usable(login).0.ok_or(problem),
            };
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if !epoch.is_cancelled() {
                let seat = dialled.seat();
                state.links.push(dialled);
                return Ok(seat);
            }
        }
    }

    async fn open(&self, login: &Arc<Login>) -> Result<Link, Problem> {
        let generation = login.generation;
        let dialled = self.dialer.dial(login, Alpn::Rest, tcp::REQUEST_STALL).await?;
        if dialled.http2 {
            let tasks = Arc::new(Tasks::default());
            let (sender, connection) = http2::Builder::new(tasks.executor())
                .timer(TokioTimer::new())
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .keep_alive_while_idle(true)
                .handshake(TokioIo::new(dialled.io))
                .await
                .map_err(|error| self.dialer.unreachable(&format!("HTTP/2 failed: {error}")))?;
            let server = self.dialer.origin.target();
            tasks.spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(server, %error, "the connection for watches ended");
                }
            });
            let streams = Arc::new(Semaphore::new(STREAMS));
            return Ok(Link::Http2 { sender, streams, tasks, generation });
        }
        let connector = Http1Connector {
            dialer: Arc::clone(&self.dialer),
            login: Arc::clone(login),
            first: Arc::new(Mutex::new(Some(dialled.io))),
        };
        let tasks = Arc::new(Tasks::default());
        let client = legacy::Client::builder(tasks.executor())
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Link::Http1 { client: Box::new(client), tasks, generation })
    }
}

/// Request bodies of kube-rs are in memory; a stream cannot be sent twice.
fn copy(request: &Request<Body>) -> Option<Request<Body>> {
    let mut copy = Request::new(request.body().try_clone()?);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// The legacy client wraps a connector's error twice; the [`Problem`] inside is what matters.
fn flatten(error: legacy::Error) -> BoxError {
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        if let Some(problem) = inner.downcast_ref::<Problem>() {
            return Box::new(problem.clone());
        }
        source = inner.source();
    }
    Box::new(error)
}

/// The tasks that drive connections; they end with the link that owns this.
#[derive(Default)]
struct Tasks {
    running: Arc<Mutex<JoinSet<()>>>,
}

impl Tasks {
    /// Weak, because the tasks themselves hold their executor.
    fn executor(&self) -> Executor {
        Executor { running: Arc::downgrade(&self.running) }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        hyper::rt::Executor::execute(&self.executor(), task);
    }

    fn abort(&self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

#[derive(Clone)]
struct Executor {
    running: Weak<Mutex<JoinSet<()>>>,
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Executor {
    fn execute(&self, task: F) {
        let Some(running) = self.running.upgrade() else { return };
        let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
        while running.try_join_next().is_some() {}
        running.spawn(task);
    }
}

/// Dials for the HTTP/1.1 pool. The connection by which HTTP/1.1 was found out is its first.
#[derive(Clone)]
struct Http1Connector {
    dialer: Arc<Dialer>,
    login: Arc<Login>,
    first: Arc<Mutex<Option<Box<dyn CarrierIo>>>>,
}

impl Service<Uri> for Http1Connector {
    type Response = Http1Io;
    type Error = Problem;
    type Future = BoxFuture<'static, Result<Http1Io, Problem>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Problem>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { dialer, login, first } = self.clone();
        Box::pin(async move {
            let kept = first.lock().unwrap_or_else(PoisonError::into_inner).take();
            let io = match kept {
                Some(io) => io,
                None => dialer.dial(&login, Alpn::Upgrade, tcp::REQUEST_STALL).await?.io,
            };
            Ok(Http1Io(TokioIo::new(io)))
        })
    }
}

struct Http1Io(TokioIo<Box<dyn CarrierIo>>);

impl Connection for Http1Io {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Http1Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for Http1Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
