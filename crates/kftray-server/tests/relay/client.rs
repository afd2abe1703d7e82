//! A client: the hello, yamux, and channels that speak records.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use futures::{AsyncWriteExt as _, StreamExt as _};
use kftray_relay_proto::handshake::{ClientHandshake, HandshakeError};
use kftray_relay_proto::hello::{ClientHello, Purpose, ServerHello};
use kftray_relay_proto::open::{Open, Policy, Reply, Target};
use kftray_relay_proto::reason::Refusal;
use kftray_relay_proto::record::{Decoder, Record};
use kftray_relay_proto::token::Token;
use kftray_relay_proto::version::SUPPORTED;
use kftray_server::mux::Carrier;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::SOON;

pub(crate) struct Client {
    pub(crate) hello: ServerHello,
    opener: mpsc::Sender<oneshot::Sender<yamux::Stream>>,
    inbound: mpsc::Receiver<yamux::Stream>,
    frozen: Arc<AtomicBool>,
    _task: AbortOnDropHandle<()>,
}

pub(crate) fn hello(token: Token) -> ClientHello {
    ClientHello { versions: SUPPORTED, token, client: "test".into(), purpose: Purpose::Tcp }
}

pub(crate) fn target(address: SocketAddr) -> Target {
    Target { host: address.ip().to_string(), port: address.port() }
}

pub(crate) fn tcp(address: SocketAddr) -> Open {
    Open::Tcp { target: target(address), policy: Policy::default() }
}

pub(crate) fn udp(address: SocketAddr) -> Open {
    Open::Udp { target: target(address), policy: Policy::default() }
}

pub(crate) fn named(host: &str, port: u16) -> Open {
    Open::Tcp { target: Target { host: host.into(), port }, policy: Policy::default() }
}

impl Client {
    pub(crate) async fn new(relay: SocketAddr) -> Self {
        Self::with(relay, hello(crate::token())).await.unwrap()
    }

    pub(crate) async fn with(relay: SocketAddr, hello: ClientHello) -> Result<Self, HandshakeError> {
        let mut socket = TcpStream::connect(relay).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let (mut out, purpose) = (BytesMut::new(), hello.purpose);
        let handshake = ClientHandshake::new(&hello, &mut out);
        socket.write_all(&out).await.unwrap();
        let mut input = BytesMut::new();
        let hello = loop {
            if let Some(hello) = handshake.advance(&mut input)? {
                break hello;
            }
            let read = timeout(SOON, socket.read_buf(&mut input)).await.unwrap().unwrap();
            assert!(read > 0, "the relay closed without an answer");
        };
        let mut carrier = Carrier::new(socket, &input, yamux::Mode::Client, purpose, Instant::now());
        let (opener, mut requests) = mpsc::channel::<oneshot::Sender<yamux::Stream>>(16);
        let (accepted, inbound) = mpsc::channel(64);
        let mut waiting: Option<oneshot::Sender<yamux::Stream>> = None;
        let frozen = Arc::new(AtomicBool::new(false));
        let is_frozen = Arc::clone(&frozen);
        let task = tokio::runtime::Handle::current().spawn(async move {
            loop {
                let stream = poll_fn(|cx| {
                    if is_frozen.load(Ordering::Relaxed) {
                        return Poll::Pending;
                    }
                    loop {
                        if waiting.is_none() {
                            match requests.poll_recv(cx) {
                                Poll::Ready(Some(request)) => waiting = Some(request),
                                Poll::Ready(None) => return Poll::Ready(None),
                                Poll::Pending => break,
                            }
                        }
                        match carrier.poll_outbound(cx) {
                            Poll::Ready(Ok(stream)) => drop(waiting.take().unwrap().send(stream)),
                            Poll::Ready(Err(_)) => return Poll::Ready(None),
                            Poll::Pending => break,
                        }
                    }
                    carrier.poll_inbound(cx).map(|stream| stream.and_then(Result::ok))
                });
                let Some(stream) = stream.await else { return };
                if accepted.send(stream).await.is_err() {
                    return;
                }
            }
        });
        Ok(Self { hello, opener, inbound, frozen, _task: AbortOnDropHandle::new(task) })
    }

    /// Holds its connection, and reads and writes nothing any more: a machine that sleeps.
    pub(crate) fn freeze(&self) {
        self.frozen.store(true, Ordering::Relaxed);
    }

    /// Opens a stream; `first` follows at once, in the same write.
    pub(crate) async fn open(&self, open: &Open, first: &[Record]) -> Channel {
        let mut out = BytesMut::new();
        open.encode(&mut out);
        first.iter().for_each(|record| record.encode(&mut out));
        self.open_with(&out, matches!(open, Open::Udp { .. })).await
    }

    /// Opens a stream with these bytes, whatever they are.
    pub(crate) async fn open_with(&self, bytes: &[u8], datagrams: bool) -> Channel {
        let (sender, receiver) = oneshot::channel();
        self.opener.send(sender).await.unwrap();
        let mut channel = Channel::new(timeout(SOON, receiver).await.unwrap().unwrap(), datagrams);
        channel.stream.write_all(bytes).await.unwrap();
        channel
    }

    /// Opens and waits for the reply.
    pub(crate) async fn opened(&self, open: &Open) -> Channel {
        let mut channel = self.open(open, &[]).await;
        channel.reply().await.unwrap();
        channel
    }

    /// Opens what must be refused.
    pub(crate) async fn refused(&self, open: &Open) -> Refusal {
        self.open(open, &[]).await.reply().await.unwrap_err()
    }

    /// The next stream that the relay opens, and what it announces.
    pub(crate) async fn incoming(&mut self) -> (Channel, kftray_relay_proto::open::Incoming) {
        let stream = timeout(SOON, self.inbound.recv()).await.unwrap().unwrap();
        let mut channel = Channel::new(stream, false);
        loop {
            if let Some(open) = Open::decode(&mut channel.input).unwrap() {
                let Open::Incoming(incoming) = open else { panic!("{open:?}") };
                return (channel, incoming);
            }
            assert!(channel.more().await, "the stream ended");
        }
    }
}

/// One stream.
pub(crate) struct Channel {
    pub(crate) stream: yamux::Stream,
    input: BytesMut,
    decoder: Decoder,
    chunk: Bytes,
    /// `pending` replies that came.
    pub(crate) pending: usize,
}

impl Channel {
    fn new(stream: yamux::Stream, datagrams: bool) -> Self {
        let decoder = if datagrams { Decoder::datagrams() } else { Decoder::stream() };
        Self { stream, input: BytesMut::new(), decoder, chunk: Bytes::new(), pending: 0 }
    }

    async fn more(&mut self) -> bool {
        match timeout(SOON, self.stream.next()).await.unwrap() {
            Some(Ok(packet)) => {
                self.input.extend_from_slice(packet.as_ref());
                true
            }
            _ => false,
        }
    }

    pub(crate) async fn reply(&mut self) -> Result<(String, u16), Refusal> {
        loop {
            match Reply::decode(&mut self.input).unwrap() {
                Some(Reply::Pending) => self.pending += 1,
                Some(Reply::Opened { address, port }) => return Ok((address, port)),
                Some(Reply::Refused(refusal)) => return Err(refusal),
                None => assert!(self.more().await, "the stream ended without a reply"),
            }
        }
    }

    pub(crate) async fn send_reply(&mut self, reply: &Reply) {
        let mut out = BytesMut::new();
        reply.encode(&mut out);
        self.stream.write_all(&out).await.unwrap();
    }

    pub(crate) async fn send(&mut self, record: &Record) {
        let mut out = BytesMut::new();
        record.encode(&mut out);
        timeout(SOON, self.stream.write_all(&out)).await.unwrap().unwrap();
    }

    pub(crate) async fn data(&mut self, bytes: &[u8]) {
        self.send(&Record::Data(Bytes::copy_from_slice(bytes))).await;
    }

    /// The next record; `None` if the stream is cut off.
    pub(crate) async fn next(&mut self) -> Option<Record> {
        loop {
            if self.chunk.is_empty() && !self.input.is_empty() {
                self.chunk = self.input.split().freeze();
            }
            if let Some(record) = self.decoder.next(&mut self.chunk).unwrap() {
                return Some(record);
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// All bytes up to the end record, and the end record (`None` if the stream is cut off).
    pub(crate) async fn rest(&mut self) -> (Vec<u8>, Option<Record>) {
        let mut bytes = Vec::new();
        loop {
            match self.next().await {
                Some(Record::Data(data)) => bytes.extend_from_slice(&data),
                other => return (bytes, other),
            }
        }
    }

    /// Exactly so many bytes.
    pub(crate) async fn read(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            match self.next().await {
                Some(Record::Data(data)) => bytes.extend_from_slice(&data),
                other => panic!("{other:?} after {} bytes", bytes.len()),
            }
        }
        assert_eq!(bytes.len(), length);
        bytes
    }
}
