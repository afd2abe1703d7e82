//! The socket and the connections: from `accept` to the answer of each request.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::connections::{Connection, Ending};
use super::rest::{Attributes, Query};
use super::status::Status;
use super::watch::{Setup, Watch};
use super::{link, rest, reviews};
use crate::cluster::Shared;
use crate::faults::take_request_fault;
use crate::portforward;
use crate::sync::Tasks;

/// Request bodies are small objects; etcd's own limit is 1.5 MiB.
const MAX_BODY: usize = 3 << 20;

/// Connections the kernel accepts ahead of us; a burst of a thousand must not be refused by chance.
const BACKLOG: u32 = 4096;

/// What a session without a connection gets beyond the linger of its last streams.
const AFTERLIFE: Duration = Duration::from_secs(3);

/// Body of every answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A session that takes a connection over after its 101; runs inside the connection's task.
pub(crate) type Session = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The server's side of a connection, after TLS.
pub(crate) struct ApiStream {
    io: Box<dyn Stream>,
    /// Bytes read since something was last written.
    since_write: usize,
    /// Read ahead by the HTTP server; comes before what is still to be read.
    ahead: Bytes,
}

impl ApiStream {
    fn new(io: impl Stream + 'static) -> Self {
        Self { io: Box::new(io), since_write: 0, ahead: Bytes::new() }
    }

    /// Takes back what the HTTP server has read beyond the head of the request it answered with an upgrade, but only what came
    /// *after* that answer: what the client sent before the 101 is lost, as in the API server's proxy, which ignores the
    /// buffer of the connection that it hijacks.
    pub(crate) fn give_back(&mut self, mut read_ahead: Bytes) {
        self.ahead = read_ahead.split_off(read_ahead.len().saturating_sub(self.since_write));
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl AsyncRead for ApiStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ahead.is_empty() {
            buf.put_slice(&this.ahead.split_to(this.ahead.len().min(buf.remaining())));
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let result = Pin::new(&mut this.io).poll_read(cx, buf);
        this.since_write += buf.filled().len() - before;
        result
    }
}

impl AsyncWrite for ApiStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.since_write = 0;
        Pin::new(&mut this.io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

/// The address, reserved for as long as the cluster lives.
pub(crate) struct Socket {
    address: SocketAddr,
    state: Bound,
}

enum Bound {
    Listening(TcpListener),
    /// Bound but not listening: connections are refused, and nobody else gets the port.
    Reserved(#[expect(dead_code, reason = "held for its address")] TcpSocket),
}

impl Socket {
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = bind(address)?.listen(BACKLOG)?;
        Ok(Self { address: listener.local_addr()?, state: Bound::Listening(listener) })
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Listens or refuses from now on.
    fn set(self, listen: bool) -> io::Result<Self> {
        let address = self.address;
        // The address must be free before it can be bound again.
        drop(self.state);
        let socket = bind(address)?;
        let state = if listen { Bound::Listening(socket.listen(BACKLOG)?) } else { Bound::Reserved(socket) };
        Ok(Self { address, state })
    }

    async fn accept(&self) -> io::Result<TcpStream> {
        match &self.state {
            Bound::Listening(listener) => listener.accept().await.map(|(tcp, _)| tcp),
            Bound::Reserved(_) => std::future::pending().await,
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Connections of the past in TIME_WAIT must not keep a restarted server off its port.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Accepts connections until dropped.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    mut socket: Socket,
    mut listening: watch::Receiver<bool>,
    bound: watch::Sender<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            changed = listening.changed() => {
                let listen = *listening.borrow_and_update();
                match changed.map_err(io::Error::other).and_then(|()| socket.set(listen)) {
                    Ok(set) => socket = set,
                    Err(error) => {
                        tracing::error!(%error, "the fake API server has lost its port");
                        return;
                    }
                }
                bound.send_replace(listen);
            }
            accepted = socket.accept() => match accepted {
                Ok(tcp) => {
                    connections.spawn(serve_connection(Arc::clone(&shared), tcp));
                }
                Err(error) => tracing::debug!(%error, "accept failed"),
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_connection(shared: Arc<Shared>, mut tcp: TcpStream) {
    let frozen = shared.faults.borrow().freeze_new;
    let registered = shared.connections.register(frozen);
    let connection = Arc::clone(&registered.0);
    let _entered = shared.counters.connections.enter();
    tcp.set_nodelay(true).ok();
    let (inner, outer) = tokio::io::duplex(link::PIPE);
    let wire = link::run(&mut tcp, outer, &shared.faults, connection.frozen());
    let work = async {
        let serving = serve_stream(&shared, &connection, inner);
        tokio::pin!(serving, wire);
        tokio::select! {
            () = &mut serving => wire.await,
            // Sessions linger after their connection, but not for ever.
            () = &mut wire => {
                tokio::time::timeout(shared.timings.linger * 2 + AFTERLIFE, serving).await.ok();
            }
        }
    };
    let ending = tokio::select! {
        () = work => None,
        ending = connection.ended() => Some(ending),
    };
    if ending == Some(Ending::Reset) {
        tcp.set_zero_linger().ok();
    }
}

async fn serve_stream(shared: &Arc<Shared>, connection: &Arc<Connection>, stream: DuplexStream) {
    let Some(pki) = &shared.pki else {
        return serve_http(shared, connection, ApiStream::new(stream), None, false).await;
    };
    let certificate = shared.faults.borrow().certificate;
    let acceptor = TlsAcceptor::from(pki.server(certificate));
    match acceptor.accept(stream).await {
        Ok(tls) => {
            shared.counters.tls_handshakes.add(1);
            let (_, session) = tls.get_ref();
            let peer = session
                .peer_certificates()
                .and_then(|chain| chain.first())
                .map(|certificate| certificate.to_vec());
            let http2 = session.alpn_protocol() == Some(b"h2");
            serve_http(shared, connection, ApiStream::new(tls), peer, http2).await;
        }
        Err(error) => {
            shared.counters.tls_failures.add(1);
            tracing::debug!(%error, "TLS handshake failed");
        }
    }
}

async fn serve_http(
    shared: &Arc<Shared>,
    connection: &Arc<Connection>,
    stream: ApiStream,
    certificate: Option<Vec<u8>>,
    http2: bool,
) {
    // The connection's own task runs the session that an upgrade starts: nothing is spawned, nothing outlives it.
    let (session_tx, mut session_rx) = mpsc::channel::<Session>(1);
    // Owns the sender: when serving is over, no session can come any more.
    let serving = async move {
        let certificate = certificate.map(Arc::new);
        let service = service_fn(|request| {
            let asked = Exchange {
                shared: Arc::clone(shared),
                connection: Arc::clone(connection),
                certificate: certificate.clone(),
                session_tx: session_tx.clone(),
            };
            async move { Ok::<_, Infallible>(asked.answer(request).await) }
        });
        let io = TokioIo::new(stream);
        let result = if http2 {
            let mut builder = hyper::server::conn::http2::Builder::new(Spawn::default());
            builder.max_concurrent_streams(100); // the API server's own number, unless configured
            builder.serve_connection(io, service).await
        } else {
            hyper::server::conn::http1::Builder::new().serve_connection(io, service).with_upgrades().await
        };
        if let Err(error) = result {
            tracing::debug!(%error, "connection ended");
        }
    };
    let session = async {
        if let Some(session) = session_rx.recv().await {
            session.await;
        }
    };
    tokio::join!(serving, session);
}

/// HTTP/2 streams run beside their connection and end with it.
#[derive(Clone, Debug, Default)]
struct Spawn(Arc<Tasks>);

impl<F> hyper::rt::Executor<F> for Spawn
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        self.0.start(async {
            task.await;
        });
    }
}

/// One request on its way to an answer.
pub(crate) struct Exchange {
    pub(crate) shared: Arc<Shared>,
    pub(crate) connection: Arc<Connection>,
    certificate: Option<Arc<Vec<u8>>>,
    /// request --session after the 101--> connection task
    pub(crate) session_tx: mpsc::Sender<Session>,
}

impl Exchange {
    async fn answer(self, request: Request<Incoming>) -> Response<Body> {
        let query = Query::parse(request.uri());
        let asked = Attributes::parse(request.method(), request.uri().path(), &query);
        self.shared.counters.count_request(asked.verb, &asked.resource());
        let delay = self.shared.faults.borrow().request_delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let mut response = match self.handle(request, &asked, &query).await {
            Ok(response) => response,
            Err(status) => refuse(&status),
        };
        let ahead = self.shared.faults.borrow().clock_ahead;
        if ahead != 0 {
            let date = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(ahead);
            // IMF-fixdate (RFC 9110, section 5.6.7).
            let text = date.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
            if let Ok(value) = HeaderValue::try_from(text) {
                response.headers_mut().insert(header::DATE, value);
            }
        }
        response
    }

    async fn handle(
        &self,
        request: Request<Incoming>,
        asked: &Attributes,
        query: &Query,
    ) -> Result<Response<Body>, Status> {
        let shared = &self.shared;
        if let Some(fault) = take_request_fault(&shared.faults, asked.verb, &asked.resource()) {
            return Err(Status {
                retry_after: fault.retry_after,
                ..Status::new(fault.status, fault.message)
            });
        }
        let certificate = self.certificate.as_deref().map(Vec::as_slice);
        let user = match shared.auth.user(certificate, request.headers()) {
            Ok(user) if !shared.faults.borrow().unauthorized => user,
            Ok(_) | Err(_) => {
                shared.counters.unauthorized.add(1);
                return Err(Status::unauthorized());
            }
        };
        if let Some(resource) = reviews::asked(&asked.path) {
            let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
            let body = body.map_err(|error| Status::bad_request(error.to_string()))?.to_bytes();
            let (code, answer) = shared.review(&user, resource, &body)?;
            return Ok(object(code, &answer));
        }
        let Some(kind) = asked.kind else {
            return rest::discover(&asked.path)
                .map(|body| object(StatusCode::OK, &body))
                .ok_or_else(Status::no_such_path);
        };
        shared.authorize(&user, asked.verb, asked)?;
        if asked.subresource.as_deref() == Some("portforward") {
            return portforward::upgrade(self, request, &user, asked, query).await;
        }
        if asked.verb == "watch" {
            return self.watch(asked, query);
        }
        let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
        let body = body.map_err(|error| Status::bad_request(error.to_string()))?.to_bytes();
        let (code, answer) = rest::answer(&shared.store, &**shared, kind, asked, query, &body)?;
        Ok(object(code, &answer))
    }

    fn watch(&self, asked: &Attributes, query: &Query) -> Result<Response<Body>, Status> {
        let Some(kind) = asked.kind else { return Err(Status::no_such_path()) };
        let watch = Watch::open(Setup {
            store: &self.shared.store,
            kind,
            namespace: asked.namespace.as_deref(),
            query,
            faults: self.shared.faults.subscribe(),
            bookmark_every: self.shared.timings.bookmark,
            entered: self.shared.counters.watches.enter(),
        })?;
        let mut response = Response::new(StreamBody::new(watch.into_stream().boxed()).boxed_unsync());
        json_type(&mut response);
        Ok(response)
    }
}

/// A refusal as the API sends it.
pub(crate) fn refuse(status: &Status) -> Response<Body> {
    let mut response = object(status.code, &status.to_json());
    if let Some(seconds) = status.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn object(code: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())).boxed_unsync());
    *response.status_mut() = code;
    json_type(&mut response);
    response
}

fn json_type(response: &mut Response<Body>) {
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
}

/// No body.
pub(crate) fn empty() -> Body {
    http_body_util::Empty::new().boxed_unsync()
}
