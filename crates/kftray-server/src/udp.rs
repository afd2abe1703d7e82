//! UDP flows: one connected socket each, so that only the target's datagrams come in and ICMP errors come back.
//!
//! Towards the client a flow waits for its tunnel at most 50 ms or 256 KiB, then the oldest datagrams go: a reliable
//! carrier must not become a delay line for traffic that was made to be lost. What is lost is counted and told.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::io::AsyncWrite as _;
use futures::stream::Stream as _;
use kftray_relay_proto::open::{Policy, Reply, Target};
use kftray_relay_proto::reason::EndKind;
use kftray_relay_proto::record::{Decoder, MAX_PAYLOAD, Record};
use kftray_relay_proto::token::TokenHash;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::dial;
use crate::metrics::Metrics;
use crate::relay::Core;
use crate::stream::{Dialled, refuse, while_dialling};

/// A flow that is silent this long ends (RFC 4787, REQ-5: not before 2 minutes).
const IDLE: Duration = Duration::from_secs(120);

/// A DNS client asks once per flow; after the answer nothing comes.
const IDLE_AFTER_DNS: Duration = Duration::from_secs(15);

/// The bounds of what a client may wish.
const SHORTEST_IDLE: Duration = Duration::from_secs(1);
const LONGEST_IDLE: Duration = Duration::from_secs(3600);

const DNS_PORT: u16 = 53;

/// What waits for the tunnel, per flow: bytes and age.
const QUEUE_BYTES: usize = 256 * 1024;
const QUEUE_AGE: Duration = Duration::from_millis(50);

/// What a datagram counts beside its payload: a queue of empty ones needs memory, too.
const OVERHEAD: usize = 64;

/// Datagrams that go to the stream at once: what one write of a carrier takes. A datagram of the largest size is beyond
/// it and goes alone.
const BATCH: usize = 60 * 1024;

/// Datagrams read before the stream is looked at again: a flood from one target must not starve everything else.
const READS_IN_A_ROW: usize = 64;

/// Where datagrams are received; one for all flows, since a poll is over before the next begins.
pub(crate) struct ReceiveBuffer(Mutex<Box<[u8]>>);

impl Default for ReceiveBuffer {
    fn default() -> Self {
        // One byte more than the largest payload over IPv4, to see that none is cut (IPv6 allows 20 bytes more, which no
        // record can carry: such a datagram is dropped and counted).
        Self(Mutex::new(vec![0; MAX_PAYLOAD + 1].into_boxed_slice()))
    }
}

/// Serves an open of kind UDP.
pub(crate) async fn serve(
    core: &Core,
    mut stream: yamux::Stream,
    rest: Bytes,
    user: TokenHash,
    target: &Target,
    policy: Policy,
) {
    let _permits = match core.bounds.flow(user) {
        Ok(permits) => permits,
        Err(refusal) => return refuse(core, stream, refusal).await,
    };
    let dialled = while_dialling(&mut stream, rest, dial::udp(core, target, policy)).await;
    let (socket, rest) = match dialled {
        Dialled::GivenUp => return,
        Dialled::Done(Err(refusal), _) => return refuse(core, stream, refusal).await,
        Dialled::Done(Ok(socket), rest) => (socket, rest),
    };
    let address = socket.peer_addr().map(|address| address.ip().to_string()).unwrap_or_default();
    let socket = Arc::new(socket);
    let idle = policy.idle.unwrap_or(IDLE).clamp(SHORTEST_IDLE, LONGEST_IDLE);
    let now = Instant::now();
    let mut flow = Flow {
        core,
        target,
        stream,
        icmp: icmp(Arc::clone(&socket)),
        socket,
        decoder: Decoder::datagrams(),
        chunk: rest,
        sending: None,
        queue: VecDeque::new(),
        queued: 0,
        batch: BytesMut::new(),
        dropped: 0,
        told: 0,
        idle,
        last: now,
        timer: Box::pin(sleep_until(now + idle)),
        ending: false,
    };
    Reply::Opened { address, port: target.port }.encode(&mut flow.batch);
    tokio::select! {
        () = std::future::poll_fn(|cx| flow.poll(cx)) => {}
        () = core.draining.cancelled() => {
            flow.end(EndKind::Draining, "the relay is going away".into());
            std::future::poll_fn(|cx| flow.poll(cx)).await;
        }
    }
}

/// Waits for an error of the socket. An error makes a socket neither readable nor writable for tokio, so nothing else wakes.
fn icmp(socket: Arc<UdpSocket>) -> BoxFuture<'static, io::Error> {
    Box::pin(async move {
        loop {
            if let Err(error) = socket.ready(Interest::ERROR).await {
                return error;
            }
            let taken = socket.try_io(Interest::ERROR, || {
                socket.take_error()?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
            });
            match taken {
                Ok(error) => return error,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return error,
            }
        }
    })
}

struct Flow<'a> {
    core: &'a Core,
    target: &'a Target,
    stream: yamux::Stream,
    socket: Arc<UdpSocket>,
    /// Ready with what ICMP says, and with other errors of the socket.
    icmp: BoxFuture<'static, io::Error>,
    decoder: Decoder,
    /// The client's bytes that are not taken apart yet.
    chunk: Bytes,
    /// The client's datagram that the socket has not taken yet.
    sending: Option<Bytes>,
    /// Datagrams for the client, oldest first, and when they came.
    queue: VecDeque<(Instant, Bytes)>,
    /// Their bytes.
    queued: usize,
    /// Records on their way to the client.
    batch: BytesMut,
    dropped: u64,
    /// What the client knows of `dropped`.
    told: u64,
    idle: Duration,
    /// When the last datagram passed, in either direction.
    last: Instant,
    timer: Pin<Box<Sleep>>,
    /// The end record is in `batch`: nothing more is read.
    ending: bool,
}

impl Flow<'_> {
    fn metrics(&self) -> &Metrics {
        &self.core.metrics
    }

    /// Ready when the flow is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.ending && self.poll_idle(cx).is_ready() {
            self.end(EndKind::Idle, String::new());
        }
        // What is read may be written at once, and what is written may make room to read: until neither goes on.
        loop {
            if !self.ending && self.poll_up(cx).is_ready() {
                return Poll::Ready(());
            }
            let mut more = false;
            if !self.ending {
                more = self.poll_receive(cx);
            }
            match self.poll_down(cx) {
                Poll::Ready(Ok(())) if self.ending => {
                    ready!(Pin::new(&mut self.stream).poll_close(cx)).ok();
                    return Poll::Ready(());
                }
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(())) => return Poll::Ready(()),
                Poll::Pending if !more => return Poll::Pending,
                Poll::Pending => {}
            }
            if !more && !self.ending {
                return Poll::Pending;
            }
        }
    }

    /// Ready when nothing has passed for long enough.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let due = self.last + self.idle;
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(due);
        }
    }

    fn passed(&mut self) {
        self.last = Instant::now();
    }

    fn drop_one(&mut self) {
        self.dropped += 1;
        self.metrics().datagrams_dropped.inc();
    }

    /// Sends the client's datagrams; ready when the client has ended the flow.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(datagram) = &self.sending {
                let result = ready!(self.socket.poll_send(cx, datagram));
                self.sending = None;
                self.passed();
                match result {
                    Ok(length) => {
                        self.metrics().datagrams_to_cluster.inc();
                        self.metrics().to_cluster.inc_by(length as u64);
                    }
                    Err(error) => {
                        // The error is of an earlier datagram (ICMP) or of this one: either way this one is gone.
                        self.drop_one();
                        if self.failed(&error) {
                            return Poll::Pending;
                        }
                    }
                }
            }
            match self.decoder.next(&mut self.chunk) {
                Ok(Some(Record::Data(datagram))) => self.sending = Some(datagram),
                Ok(Some(Record::Dropped(_))) => {}
                Ok(Some(Record::End { .. })) | Err(_) => return Poll::Ready(()),
                Ok(None) => match ready!(Pin::new(&mut self.stream).poll_next(cx)) {
                    Some(Ok(packet)) => self.chunk = Bytes::from_owner(packet),
                    Some(Err(_)) | None => return Poll::Ready(()),
                },
            }
        }
    }

    /// Empties the socket into the queue; true if there may be more at once.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> bool {
        let core = self.core;
        while let Poll::Ready(error) = self.icmp.as_mut().poll(cx) {
            if self.failed(&error) {
                return false;
            }
            self.icmp = icmp(Arc::clone(&self.socket));
        }
        let mut buffer = core.receive.0.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..READS_IN_A_ROW {
            match self.socket.poll_recv_ready(cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    self.failed(&error);
                    return false;
                }
            }
            match self.socket.try_recv(&mut buffer) {
                Ok(length) if length > MAX_PAYLOAD => self.drop_one(),
                Ok(length) => {
                    self.passed();
                    self.metrics().datagrams_to_client.inc();
                    self.metrics().to_client.inc_by(length as u64);
                    self.queued += length + OVERHEAD;
                    let datagram = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
                    self.queue.push_back((self.last, datagram));
                    if self.target.port == DNS_PORT {
                        self.idle = self.idle.min(IDLE_AFTER_DNS);
                        // The timer only ever fires early for the new expiry's sake.
                        let due = self.last + self.idle;
                        if due < self.timer.deadline() {
                            self.timer.as_mut().reset(due);
                        }
                    }
                    while self.queued > QUEUE_BYTES {
                        self.drop_oldest();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    if self.failed(&error) {
                        return false;
                    }
                }
            }
        }
        true
    }

    fn drop_oldest(&mut self) {
        if let Some((_, datagram)) = self.queue.pop_front() {
            self.queued -= datagram.len() + OVERHEAD;
            self.drop_one();
        }
    }

    /// Writes the queue to the client; an error when the stream is gone, ready when nothing is left.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
        loop {
            if self.batch.is_empty() && !self.fill() {
                return Poll::Ready(Ok(()));
            }
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.batch)) {
                Ok(written) => self.batch.advance(written),
                Err(_) => return Poll::Ready(Err(())),
            }
        }
    }

    /// Moves the queue into the batch; false if there is nothing to say.
    fn fill(&mut self) -> bool {
        let now = Instant::now();
        // The newest is kept whatever its age: somebody may wait for a single answer.
        while self.queue.len() > 1 && self.queue.front().is_some_and(|(came, _)| now - *came > QUEUE_AGE) {
            self.drop_oldest();
        }
        if self.told < self.dropped {
            self.told = self.dropped;
            Record::Dropped(self.dropped).encode(&mut self.batch);
        }
        while let Some((_, datagram)) = self.queue.front() {
            if !self.batch.is_empty() && self.batch.len() + datagram.len() > BATCH {
                break;
            }
            self.queued -= datagram.len() + OVERHEAD;
            if let Some((_, datagram)) = self.queue.pop_front() {
                Record::Data(datagram).encode(&mut self.batch);
            }
        }
        !self.batch.is_empty()
    }

    /// What an error of the socket means; true if it ends the flow.
    fn failed(&mut self, error: &io::Error) -> bool {
        let Target { host, port } = self.target;
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "an error of any other kind concerns one datagram only"
        )]
        match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                self.end(EndKind::Refused, format!("nothing listens on UDP port {port} of {host}"));
            }
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => {
                self.end(EndKind::Unreachable, format!("no way leads from the relay to {host}: {error}"));
            }
            _ => return false,
        }
        true
    }

    /// Ends the flow with a reason; what waits for the client goes first.
    fn end(&mut self, kind: EndKind, message: String) {
        while !self.queue.is_empty() || self.told < self.dropped {
            let before = self.batch.split();
            let filled = self.fill();
            let after = self.batch.split();
            self.batch = before;
            self.batch.unsplit(after);
            if !filled {
                break;
            }
        }
        Record::End { kind, message }.encode(&mut self.batch);
        self.ending = true;
    }
}
