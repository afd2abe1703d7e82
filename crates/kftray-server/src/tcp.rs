//! TCP connections: a stream of records on one side, a socket on the other, each direction with its own end.

use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use futures::io::AsyncWrite as _;
use futures::stream::{Stream as _, StreamExt as _};
use kftray_relay_proto::open::{Policy, Reply, Target};
use kftray_relay_proto::reason::{EndKind, Refusal, RefusalKind};
use kftray_relay_proto::record::{DATA_HEADER, Decoder, Record, data_header};
use socket2::SockRef;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::dial::{self, KEEPALIVE};
use crate::kept::Kept;
use crate::limits::Bounds;
use crate::metrics::Metrics;
use crate::mux::FRAME;
use crate::relay::Core;
use crate::stalls::Stall;
use crate::stream::{Dialled, refuse, while_dialling};

/// One record with its header is one frame.
pub(crate) const RECORD: usize = FRAME;

/// Where there is no memory, targets are not read for so long: streams that are stuck are given up meanwhile.
const PAUSE: Duration = Duration::from_millis(50);

/// Most connections are over before this. The others are asked for a sign of life from time to time; to arrange that for each
/// would cost four system calls of some twenty.
const SHORT: Duration = Duration::from_secs(10);

/// Buffers that are kept for the next read. Reads happen one at a time; more are out only while streams are blocked.
const KEPT_BUFFERS: usize = 16;

/// Read buffers, lent for as long as bytes are in them: a thousand idle connections hold none.
#[derive(Default)]
pub(crate) struct Scratch(Mutex<Vec<Box<[u8]>>>);

impl Scratch {
    fn take(&self) -> Box<[u8]> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| vec![0; RECORD].into_boxed_slice())
    }

    fn give(&self, buffer: Box<[u8]>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT_BUFFERS {
            kept.push(buffer);
        }
    }
}

/// Serves an open of kind TCP.
pub(crate) async fn serve(
    core: &Core,
    mut stream: yamux::Stream,
    rest: Bytes,
    target: &Target,
    policy: Policy,
) {
    // The first bytes often come in a frame of their own, in the read that brought the open.
    let rest = match rest.is_empty().then(|| stream.next().now_or_never()).flatten() {
        Some(Some(Ok(packet))) => Bytes::from_owner(packet),
        Some(Some(Err(_)) | None) => return,
        None => rest,
    };
    let dial = dial::tcp(core, target, policy, !rest.is_empty());
    let dialled = while_dialling(&mut stream, rest, dial).await;
    let ((socket, address), rest) = match dialled {
        Dialled::GivenUp => return,
        Dialled::Done(Err(refusal), _) => return refuse(core, stream, refusal).await,
        Dialled::Done(Ok(dialled), rest) => (dialled, rest),
    };
    let mut pump = Pump::new(core, stream, socket, rest);
    Reply::Opened { address: address.to_string(), port: target.port }.encode(&mut pump.head);
    if timeout(SHORT, &mut pump).await.is_err() {
        // A refinement: a socket that refuses it still works.
        SockRef::from(&pump.socket).set_tcp_keepalive(&KEEPALIVE).ok();
        pump.await;
    }
}

/// Moves bytes until both directions have ended or one was cut off.
pub(crate) struct Pump<'a> {
    metrics: &'a Metrics,
    scratch: &'a Scratch,
    stream: yamux::Stream,
    socket: TcpStream,
    decoder: Decoder,
    /// The client's bytes that are not taken apart yet.
    chunk: Bytes,
    /// The client's bytes that the socket has not taken yet.
    payload: Bytes,
    up: Up,
    /// Why the socket takes no more. The kernel tells an error once: afterwards the socket reads as if it had ended in order.
    broken_by: Option<io::ErrorKind>,
    /// What goes to the client before anything else: a reply, an end.
    pub(crate) head: BytesMut,
    /// The socket's bytes that the stream has not taken yet.
    data: Option<Data>,
    down: Down,
    /// The client's reply to an incoming connection is still to come; what there is of it.
    reply: Option<BytesMut>,
    /// What a caller has sent, as long as another client may have it instead.
    kept: Option<Kept>,
    bounds: &'a Bounds,
    /// The target is not read for a while.
    pause: Option<Pin<Box<Sleep>>>,
    /// Since the last poll.
    moved_up: bool,
    moved_down: bool,
    /// Bytes for the socket, or for the client, that are not taken.
    stuck_up: Option<Stall<'a>>,
    stuck_down: Option<Stall<'a>>,
}

/// A record on its way to the client.
struct Data {
    buffer: Box<[u8]>,
    begin: usize,
    end: usize,
}

impl Data {
    /// Of so many payload bytes, which are behind the place of the header.
    fn new(mut buffer: Box<[u8]>, length: usize) -> Self {
        if let Some(place) = buffer.get_mut(..DATA_HEADER) {
            place.copy_from_slice(&data_header(length));
        }
        Self { buffer, begin: 0, end: DATA_HEADER + length }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Up {
    Open,
    /// The client has finished; the socket's sending side is to be shut down.
    Finishing,
    /// The socket takes no more; the client's bytes are thrown away until its end.
    Broken,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Down {
    Open,
    /// The last record is written; `true` if it ends both directions.
    Ending {
        both: bool,
    },
    Done,
}

/// How a connection came out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Both directions ended, or the target reset it and the client was told.
    Ended,
    /// The client reset it, or is gone; the socket was reset too.
    CutOff,
    /// The client refuses an incoming connection.
    Refused(Refusal),
}

impl<'a> Pump<'a> {
    /// For a stream that has had its first message from the client; `rest` is what came behind it.
    pub(crate) fn new(core: &'a Core, stream: yamux::Stream, socket: TcpStream, rest: Bytes) -> Self {
        // However this ends before its time, also by the end of its task: the target must not take half a request for a
        // whole one.
        abrupt(&socket, true);
        Self {
            metrics: &core.metrics,
            scratch: &core.scratch,
            stream,
            socket,
            decoder: Decoder::stream(),
            chunk: rest,
            payload: Bytes::new(),
            up: Up::Open,
            broken_by: None,
            head: BytesMut::new(),
            data: None,
            down: Down::Open,
            reply: None,
            kept: None,
            bounds: &core.bounds,
            pause: None,
            moved_up: false,
            moved_down: false,
            stuck_up: None,
            stuck_down: None,
        }
    }

    /// For a caller of an exposure: the client replies first. What the caller has sent before goes to it.
    pub(crate) fn expect_reply(mut self, kept: Kept) -> Self {
        self.reply = Some(BytesMut::new());
        let bytes = kept.bytes();
        if !bytes.is_empty() {
            let mut buffer = self.scratch.take();
            let end = DATA_HEADER + bytes.len();
            // They came out of such a buffer and fit.
            if let Some(place) = buffer.get_mut(DATA_HEADER..end) {
                place.copy_from_slice(bytes);
            }
            self.data = Some(Data::new(buffer, bytes.len()));
        }
        self.kept = Some(kept);
        self
    }

    /// Whether the client has yet to say that it takes the caller, and another may be asked instead.
    pub(crate) fn may_move(&self) -> bool {
        self.reply.is_some() && self.kept.is_some()
    }

    /// The caller, to be offered to another client; `None` if that might do harm.
    pub(crate) fn into_caller(self) -> Option<(TcpStream, Kept)> {
        let kept = self.kept?;
        // How it ends is for whoever has it next to say.
        abrupt(&self.socket, false);
        Some((self.socket, kept))
    }

    /// The socket, after a refusal.
    pub(crate) fn into_socket(self) -> TcpStream {
        abrupt(&self.socket, false);
        self.socket
    }

    /// Polls to the end; the pump keeps what it holds.
    pub(crate) fn poll_pump(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        if [&self.stuck_up, &self.stuck_down].into_iter().flatten().any(Stall::is_cut) {
            return Poll::Ready(Outcome::CutOff);
        }
        let outcome = self.poll_both(cx);
        let moved = std::mem::take(&mut self.moved_up);
        self.bounds.stalls.note(&mut self.stuck_up, !self.payload.is_empty(), moved, cx);
        let moved = std::mem::take(&mut self.moved_down);
        self.bounds.stalls.note(&mut self.stuck_down, self.data.is_some(), moved, cx);
        outcome
    }

    fn poll_both(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        // Neither direction waits for the other; a `Pending` of one has registered its wakers.
        let up = self.poll_up(cx);
        if let Poll::Ready(Err(outcome)) = up {
            return Poll::Ready(outcome);
        }
        let down = self.poll_down(cx);
        match (up, down) {
            (_, Poll::Ready(Err(outcome))) => Poll::Ready(outcome),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => {
                // yamux' FIN, once both directions have had their end records.
                ready!(Pin::new(&mut self.stream).poll_close(cx)).ok();
                abrupt(&self.socket, false);
                Poll::Ready(Outcome::Ended)
            }
            (_, Poll::Ready(Ok(())) | Poll::Pending) => Poll::Pending,
        }
    }

    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Outcome>> {
        loop {
            match self.up {
                // Its end before the answer's is a reset, or that of the carrier.
                Up::Done if self.down != Down::Done => match Pin::new(&mut self.stream).poll_next(cx) {
                    Poll::Ready(Some(Ok(_))) => continue,
                    Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Err(Outcome::CutOff)),
                    Poll::Pending => return Poll::Ready(Ok(())),
                },
                Up::Done => return Poll::Ready(Ok(())),
                Up::Finishing => {
                    // A target that is gone already cannot be told.
                    ready!(Pin::new(&mut self.socket).poll_shutdown(cx)).ok();
                    self.up = Up::Done;
                    continue;
                }
                Up::Broken => self.payload = Bytes::new(),
                Up::Open if !self.payload.is_empty() => {
                    match ready!(Pin::new(&mut self.socket).poll_write(cx, &self.payload)) {
                        Ok(written) if written > 0 => {
                            self.moved_up = true;
                            self.metrics.to_cluster.inc_by(written as u64);
                            drop(self.payload.split_to(written));
                        }
                        // The other direction may still have bytes to read, and then tells the client why.
                        result => {
                            // After its own orderly end the target is merely gone.
                            let reason = result.err().map(|error| error.kind());
                            self.broken_by = reason.filter(|kind| *kind != io::ErrorKind::BrokenPipe);
                            self.up = Up::Broken;
                        }
                    }
                    continue;
                }
                Up::Open => {}
            }
            if let Some(outcome) = self.take_reply() {
                return Poll::Ready(Err(outcome));
            }
            let record = if self.reply.is_some() { Ok(None) } else { self.decoder.next(&mut self.chunk) };
            match record {
                Ok(Some(Record::Data(payload))) => {
                    self.kept = None;
                    self.payload = payload;
                }
                Ok(Some(Record::End { kind: EndKind::Finished, .. })) => {
                    self.kept = None;
                    self.up = if self.up == Up::Broken { Up::Done } else { Up::Finishing };
                }
                Ok(Some(Record::End { .. })) | Err(_) => {
                    self.kept = None;
                    return Poll::Ready(Err(Outcome::CutOff));
                }
                Ok(Some(Record::Dropped(_))) => {}
                Ok(None) => match ready!(Pin::new(&mut self.stream).poll_next(cx)) {
                    Some(Ok(packet)) => self.chunk = Bytes::from_owner(packet),
                    Some(Err(_)) | None => return Poll::Ready(Err(Outcome::CutOff)),
                },
            }
        }
    }

    /// Looks for the client's reply to an incoming connection in what has come.
    fn take_reply(&mut self) -> Option<Outcome> {
        let reply = self.reply.as_mut()?;
        reply.extend_from_slice(&std::mem::take(&mut self.chunk));
        loop {
            match Reply::decode(reply) {
                Ok(Some(Reply::Pending)) => {}
                Ok(Some(Reply::Opened { .. })) => {
                    self.chunk = reply.split().freeze();
                    self.reply = None;
                    return None;
                }
                Ok(Some(Reply::Refused(refusal))) => return Some(Outcome::Refused(refusal)),
                Ok(None) => return None,
                Err(error) => {
                    return Some(Outcome::Refused(Refusal::new(RefusalKind::Invalid, error.to_string())));
                }
            }
        }
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Outcome>> {
        loop {
            if !self.head.is_empty() {
                match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.head)) {
                    Ok(written) => drop(self.head.split_to(written)),
                    Err(_) => return Poll::Ready(Err(Outcome::CutOff)),
                }
                continue;
            }
            if let Some(data) = &mut self.data {
                if self.reply.is_some() && self.kept.as_ref().is_some_and(Kept::must_wait) {
                    // The reply wakes this task.
                    return Poll::Pending;
                }
                // From now on the client may have some of it.
                self.kept.take_if(|kept| !kept.may_be_repeated());
                let bytes = data.buffer.get(data.begin..data.end).unwrap_or_default();
                match ready!(Pin::new(&mut self.stream).poll_write(cx, bytes)) {
                    Ok(written) => {
                        self.moved_down = true;
                        data.begin += written;
                    }
                    Err(_) => return Poll::Ready(Err(Outcome::CutOff)),
                }
                if data.begin >= data.end
                    && let Some(data) = self.data.take()
                {
                    self.scratch.give(data.buffer);
                }
                continue;
            }
            match self.down {
                Down::Done => return Poll::Ready(Ok(())),
                Down::Ending { both: true } => {
                    ready!(Pin::new(&mut self.stream).poll_close(cx)).ok();
                    return Poll::Ready(Err(Outcome::Ended));
                }
                Down::Ending { both: false } => self.down = Down::Done,
                Down::Open => ready!(self.poll_read(cx)),
            }
        }
    }

    /// Reads from the socket into `data`, or writes the direction's end into `head`.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        if self.bounds.relieve(Instant::now()) {
            let pause = self.pause.insert(Box::pin(sleep(PAUSE)));
            ready!(pause.as_mut().poll(cx));
        }
        let mut buffer = self.scratch.take();
        let mut space = ReadBuf::new(buffer.get_mut(DATA_HEADER..).unwrap_or_default());
        let read = Pin::new(&mut self.socket).poll_read(cx, &mut space);
        let read = match read {
            Poll::Ready(read) => read.map(|()| space.filled().len()),
            Poll::Pending => {
                self.scratch.give(buffer);
                return Poll::Pending;
            }
        };
        let read = match (read, self.broken_by) {
            (Ok(0), Some(kind)) => Err(kind.into()),
            (read, _) => read,
        };
        match read {
            Ok(0) => self.end(&Record::finished(), false),
            Ok(length) => {
                self.metrics.to_client.inc_by(length as u64);
                self.bounds.took(length);
                let bytes = buffer.get(DATA_HEADER..DATA_HEADER + length).unwrap_or_default();
                self.kept.take_if(|kept| !kept.add(bytes));
                self.data = Some(Data::new(buffer, length));
                return Poll::Ready(());
            }
            Err(error) => {
                let kind =
                    if error.kind() == io::ErrorKind::TimedOut { EndKind::TimedOut } else { EndKind::Reset };
                self.end(&Record::End { kind, message: String::new() }, true);
            }
        }
        self.scratch.give(buffer);
        Poll::Ready(())
    }

    fn end(&mut self, record: &Record, both: bool) {
        record.encode(&mut self.head);
        self.down = Down::Ending { both };
    }
}

/// Whether closing the socket resets the connection, or ends it in order.
fn abrupt(socket: &TcpStream, yes: bool) {
    // It fails on sockets that are gone already, where it does not matter.
    SockRef::from(socket).set_linger(yes.then_some(Duration::ZERO)).ok();
}

impl Future for Pump<'_> {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        self.poll_pump(cx)
    }
}
