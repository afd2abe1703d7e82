//! A raw port-forward client: just enough to see what the server side really sends.
#![allow(clippy::allow_attributes, reason = "an expectation cannot hold for every test binary")]
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test's way to say what it needs")]

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kftray_spdy::connection::{Client, Event, PairId};
use kftray_spdy::{frame, ws};
use kftray_testkit::{ADMIN, FakeCluster, Protocol};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Long enough for a busy machine; nothing here takes that long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A TLS (or plain) connection to the API server.
pub(crate) async fn dial(cluster: &FakeCluster) -> std::io::Result<Box<dyn Io>> {
    let tcp = TcpStream::connect(cluster.address()).await?;
    tcp.set_nodelay(true)?;
    if cluster.authority().is_empty() {
        return Ok(Box::new(tcp));
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(cluster.authority().as_bytes()).unwrap()).unwrap();
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("localhost").unwrap();
    Ok(Box::new(connector.connect(name, tcp).await?))
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// Sends an upgrade request and reads the answer's head (and the body of a refusal).
pub(crate) async fn upgrade(
    io: &mut Box<dyn Io>,
    protocol: Protocol,
    pod: &str,
    ports: &str,
    extra: &[u8],
) -> std::io::Result<Answer> {
    let path = format!("/api/v1/namespaces/default/pods/{pod}/portforward");
    let headers = match protocol {
        Protocol::Spdy => format!(
            "POST {path} HTTP/1.1\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\nContent-Length: 0\r\n"
        ),
        Protocol::WebSocketTunnel => {
            format!("GET {path} HTTP/1.1\r\n{}", websocket("SPDY/3.1+portforward.k8s.io"))
        }
        Protocol::Legacy => {
            format!(
                "GET {path}?ports={ports} HTTP/1.1\r\n{}",
                websocket("v5.channel.k8s.io, v4.channel.k8s.io")
            )
        }
    };
    let mut request =
        format!("{headers}Host: localhost\r\nConnection: Upgrade\r\nAuthorization: Bearer raw\r\n\r\n")
            .into_bytes();
    request.extend_from_slice(extra);
    io.write_all(&request).await?;
    io.flush().await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.parse().unwrap());
    let mut body = vec![0; length];
    io.read_exact(&mut body).await?;
    Ok(Answer { status, head, body: String::from_utf8(body).unwrap() })
}

fn websocket(protocol: &str) -> String {
    format!(
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {protocol}\r\n"
    )
}

/// A SPDY session, direct or tunnelled.
pub(crate) struct Session {
    pub(crate) io: Box<dyn Io>,
    ws: Option<ws::Parser>,
    frames: frame::Parser,
    pub(crate) client: Client,
    buffer: BytesMut,
    pub(crate) events: std::collections::VecDeque<Event>,
    /// (payload length, begins, ends) of WebSocket data events; only with tunnels.
    pub(crate) fragments: Vec<(usize, bool, bool)>,
}

impl Session {
    pub(crate) async fn open(cluster: &FakeCluster, protocol: Protocol, pod: &str) -> Self {
        cluster.add_token(ADMIN, "raw", None);
        let mut io = dial(cluster).await.unwrap();
        let answer = upgrade(&mut io, protocol, pod, "", b"").await.unwrap();
        assert_eq!(answer.status, 101, "{} {}", answer.head, answer.body);
        Self::on(io, protocol)
    }

    pub(crate) fn on(io: Box<dyn Io>, protocol: Protocol) -> Self {
        let ws = (protocol == Protocol::WebSocketTunnel).then(|| ws::Parser::new(ws::Role::Client, u64::MAX));
        Self {
            io,
            ws,
            frames: frame::Parser::client(frame::Limits::default()),
            client: Client::new(),
            buffer: BytesMut::new(),
            events: std::collections::VecDeque::new(),
            fragments: Vec::new(),
        }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let mut out = Vec::new();
        match self.ws {
            Some(_) => ws::put_binary(&mut out, ws::Role::Client, bytes),
            None => out.extend_from_slice(bytes),
        }
        self.io.write_all(&out).await?;
        self.io.flush().await
    }

    pub(crate) async fn connect(&mut self, port: u16, first: &[u8]) -> PairId {
        let mut out = Vec::new();
        let pair = self.client.open(port, first, &mut out).unwrap();
        self.send(&out).await.unwrap();
        pair
    }

    pub(crate) async fn write(&mut self, pair: PairId, bytes: &[u8]) -> std::io::Result<()> {
        let mut out = Vec::new();
        self.client.data(pair, bytes, &mut out).unwrap();
        self.send(&out).await
    }

    pub(crate) async fn finish(&mut self, pair: PairId) {
        let mut out = Vec::new();
        self.client.finish(pair, &mut out).unwrap();
        self.send(&out).await.unwrap();
    }

    pub(crate) async fn ping(&mut self) -> u32 {
        let mut out = Vec::new();
        let id = self.client.ping(&mut out);
        self.send(&out).await.unwrap();
        id
    }

    /// The next event; `None` at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            self.buffer.reserve(64 * 1024);
            match self.io.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
            let answers = self.parse();
            if !answers.is_empty() {
                self.send(&answers).await.ok();
            }
        }
    }

    fn parse(&mut self) -> Vec<u8> {
        let mut chunks: Vec<Bytes> = Vec::new();
        match &mut self.ws {
            None => chunks.push(self.buffer.split().freeze()),
            Some(parser) => {
                while let Some(event) = parser.next(&mut self.buffer).expect("valid WebSocket frames") {
                    if let ws::Event::Data { payload, begins, ends } = event {
                        self.fragments.push((payload.len(), begins, ends));
                        chunks.push(payload);
                    }
                }
            }
        }
        let mut out = Vec::new();
        for mut chunk in chunks {
            while let Some(frame) = self.frames.next(&mut chunk).expect("valid SPDY frames") {
                self.events.extend(self.client.on_frame(frame, &mut out));
            }
        }
        out
    }

    /// Everything that arrives on `pair` until its end or its error: data, error text, how it ended.
    pub(crate) async fn drain(&mut self, pair: PairId) -> (Vec<u8>, Option<String>, End) {
        let mut data = Vec::new();
        let mut text = None;
        while let Some(event) = self.next().await {
            match event {
                Event::Data { pair: of, payload } if of == pair => data.extend_from_slice(&payload),
                Event::ErrorEnd { pair: of, text: Some(error) } if of == pair => text = Some(error),
                Event::RemoteEnd { pair: of, .. } if of == pair => return (data, text, End::Finished),
                Event::Reset { pair: of, .. } if of == pair => return (data, text, End::Reset),
                _ => {}
            }
        }
        (data, text, End::ConnectionLost)
    }

    /// Reads until `pair` has brought `len` bytes.
    pub(crate) async fn read(&mut self, pair: PairId, len: usize) -> Vec<u8> {
        let mut data = Vec::new();
        while data.len() < len {
            match self.next().await.expect("the session lives") {
                Event::Data { pair: of, payload } if of == pair => data.extend_from_slice(&payload),
                _ => {}
            }
        }
        data
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Finished,
    Reset,
    ConnectionLost,
}

/// Fails a test that hangs.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("within the time limit")
}
