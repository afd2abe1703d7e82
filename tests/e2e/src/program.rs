//! A program of this machine, to be exposed: it answers, streams and upgrades as web programs do.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::stream::period;

/// A body of either side.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// An HTTP/1.1 program. It ends, with its connections, when it is dropped.
///
/// | request | answer |
/// |---|---|
/// | `GET /bytes?n=N` | N bytes of the deterministic stream |
/// | `GET /events?n=N` | N server-sent events: the first at once, each other when [`Program::emit`] is called |
/// | `GET /slow?ms=N` | like any other, N ms later |
/// | `GET /socket` | a WebSocket that echoes |
/// | any other | method, path, head, length and SHA-256 of the body, as JSON |
pub struct Program {
    /// Where it listens, on localhost.
    pub port: u16,
    events: watch::Sender<u64>,
    _tasks: JoinSet<()>,
}

impl Program {
    /// Listens on a port of localhost; 0 is any.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn listen(port: u16) -> Result<Self> {
        Self::start(port, None).await
    }

    /// The same behind TLS, with a certificate that it has signed itself.
    ///
    /// # Errors
    /// When there is no port left.
    pub async fn listen_tls() -> Result<Self> {
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
        let mut config =
            crate::https::server_builder()?.with_single_cert(vec![own.cert.der().clone()], key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self::start(0, Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn start(port: u16, tls: Option<TlsAcceptor>) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port))
            .await
            .with_context(|| format!("port {port} of this machine, which the test needs"))?;
        let port = listener.local_addr()?.port();
        let events = watch::Sender::new(0);
        let mut tasks = JoinSet::new();
        let heard = events.subscribe();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (tls, heard) = (tls.clone(), heard.clone());
                connections.spawn(async move {
                    socket.set_nodelay(true).ok();
                    match tls {
                        Some(tls) => {
                            if let Ok(socket) = tls.accept(socket).await {
                                serve(socket, heard).await;
                            }
                        }
                        None => serve(socket, heard).await,
                    }
                });
            }
        });
        Ok(Self { port, events, _tasks: tasks })
    }

    /// One more event for everybody who listens to `/events`.
    pub fn emit(&self) {
        self.events.send_modify(|count| *count += 1);
    }
}

async fn serve(socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, events: watch::Receiver<u64>) {
    let mut upgraded = JoinSet::new();
    let (sender, mut sockets) = tokio::sync::mpsc::unbounded_channel();
    let service = service_fn(move |request| {
        let (events, sender) = (events.clone(), sender.clone());
        async move { answer(request, events, &sender).await }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    loop {
        tokio::select! {
            // A caller that breaks off is a matter of the test.
            ended = &mut connection => { ended.ok(); break }
            Some(upgrade) = sockets.recv() => { upgraded.spawn(echo(upgrade)); }
        }
    }
    while let Ok(upgrade) = sockets.try_recv() {
        upgraded.spawn(echo(upgrade));
    }
    upgraded.join_all().await;
}

async fn answer(
    mut request: Request<Incoming>,
    events: watch::Receiver<u64>,
    sockets: &tokio::sync::mpsc::UnboundedSender<hyper::upgrade::OnUpgrade>,
) -> io::Result<Response<Body>> {
    let path = request.uri().path().to_owned();
    let number = |name: &str| {
        let query = request.uri().query().unwrap_or_default();
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse::<u64>().ok())
    };
    let (method, n, ms) = (request.method().clone(), number("n"), number("ms"));
    let response = Response::builder();
    let response = match (&method, path.as_str()) {
        (&Method::GET, "/bytes") => {
            let total = n.unwrap_or(0);
            response.header("Content-Length", total).body(bytes(total))
        }
        (&Method::GET, "/events") => {
            let events = follow(events, n.unwrap_or(1));
            response.header(CONTENT_TYPE, "text/event-stream").body(events)
        }
        (&Method::GET, "/socket") => {
            let key = request.headers().get(SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
            let accept = key.ok_or_else(|| io::Error::other("no key of a WebSocket"))?;
            sockets.send(hyper::upgrade::on(&mut request)).ok();
            response
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header(CONNECTION, "Upgrade")
                .header(UPGRADE, "websocket")
                .header(SEC_WEBSOCKET_ACCEPT, accept)
                .body(Body::default())
        }
        _ => {
            tokio::time::sleep(Duration::from_millis(ms.unwrap_or(0))).await;
            let report = report(request).await?;
            response
                .header(CONTENT_TYPE, "application/json")
                .body(Full::from(report.to_string()).boxed_unsync())
        }
    };
    response.map_err(io::Error::other)
}

async fn report(request: Request<Incoming>) -> io::Result<Value> {
    let (head, mut body) = request.into_parts();
    let (mut count, mut sum) = (0_u64, Sha256::new());
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame.map_err(io::Error::other)?.data_ref() {
            count += data.len() as u64;
            sum.update(data);
        }
    }
    let mut headers = serde_json::Map::new();
    for (name, value) in &head.headers {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        // Of several the last one: that there is only one is looked at where it matters.
        headers.insert(name.to_string(), value.into());
        let counted = format!("{name} (count)");
        headers.insert(counted, head.headers.get_all(name).iter().count().into());
    }
    Ok(json!({
        "method": head.method.as_str(),
        "path": head.uri.to_string(),
        "headers": headers,
        "count": count,
        "sha256": hex(&sum.finalize()),
    }))
}

/// As the report has it.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A body of the deterministic stream's first `total` bytes.
#[must_use]
pub fn bytes(total: u64) -> Body {
    const PIECE: usize = 64 << 10;
    let pieces = stream::unfold(0_u64, move |offset| async move {
        let at = usize::try_from(offset % period().len() as u64).unwrap_or(0);
        let left = usize::try_from(total - offset).unwrap_or(usize::MAX);
        let length = PIECE.min(period().len() - at).min(left);
        let piece = Bytes::from_static(&period()[at..at + length]);
        (length > 0).then(|| (Ok(Frame::data(piece)), offset + length as u64))
    });
    StreamBody::new(pieces).boxed_unsync()
}

fn follow(events: watch::Receiver<u64>, total: u64) -> Body {
    let begin = *events.borrow();
    let events = stream::unfold((events, 0), move |(mut events, sent)| async move {
        if sent == total {
            return None;
        }
        events.wait_for(|count| *count >= begin + sent).await.ok()?;
        let event = Bytes::from(format!("data: {sent}\n\n"));
        Some((Ok(Frame::data(event)), (events, sent + 1)))
    });
    StreamBody::new(events).boxed_unsync()
}

async fn echo(upgrade: hyper::upgrade::OnUpgrade) {
    let Ok(socket) = upgrade.await else { return };
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(socket), Role::Server, None).await;
    while let Some(Ok(message)) = socket.next().await {
        if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
            return;
        }
    }
}
