//! A port-forward connection as the byte pipe that yamux runs on.
//!
//! yamux writes header and body of a frame apart and flushes after each frame. Here writes only gather, and the driver
//! flushes once it has nothing more to do: many frames, one write of the session below.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use futures::io::{AsyncRead, AsyncWrite};
use kftray_commons::Problem;
use kftray_portforward::ports::Channel;
use kftray_relay_proto::hello::Purpose;
use kftray_relay_proto::pace::Pace;
use kftray_relay_proto::pings::Pings;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// Gathered bytes above which a write goes out before the driver's round is over: the session below cuts at 32 KiB, so two
/// of its frames, and an idle carrier's buffer stays small.
const GATHER: usize = 64 * 1024;

/// yamux' end of the pipe.
pub(super) struct Wire {
    shared: Arc<Mutex<State>>,
}

/// The driver's end of the pipe.
pub(super) struct WireHandle {
    shared: Arc<Mutex<State>>,
}

struct State {
    channel: Box<dyn Channel>,
    incoming: Bytes,
    outgoing: BytesMut,
    pings: Pings,
    /// When the ping that is held back is due.
    ping_due: Option<Pin<Box<Sleep>>>,
    pace: Pace,
    /// When what was gathered may go.
    turn: Option<Pin<Box<Sleep>>>,
    heard: Instant,
    ended: bool,
    problem: Option<Problem>,
}

/// Both ends; `left` was read behind the hello. Both are used by one task, so that the lock is never contended.
pub(super) fn pipe(channel: Box<dyn Channel>, left: Bytes, purpose: Purpose) -> (Wire, WireHandle) {
    let state = State {
        channel,
        incoming: left,
        outgoing: BytesMut::new(),
        pings: Pings::default(),
        ping_due: None,
        pace: Pace::of(purpose),
        turn: None,
        heard: Instant::now(),
        ended: false,
        problem: None,
    };
    let shared = Arc::new(Mutex::new(state));
    (Wire { shared: Arc::clone(&shared) }, WireHandle { shared })
}

impl WireHandle {
    /// Hands what was gathered to the session.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.shared).poll_flush(cx)
    }

    /// Resolves when what was gathered is due: at once, unless many streams share the carrier.
    pub(super) fn poll_turn(&self, streams: usize, cx: &mut Context<'_>) -> Poll<()> {
        lock(&self.shared).poll_turn(streams, cx)
    }

    /// Whether anything waits for a flush.
    pub(super) fn is_dirty(&self) -> bool {
        !lock(&self.shared).outgoing.is_empty()
    }

    /// When the relay was last heard.
    pub(super) fn heard(&self) -> Instant {
        lock(&self.shared).heard
    }

    /// Why the connection below has failed, if it has.
    pub(super) fn problem(&self) -> Option<Problem> {
        lock(&self.shared).problem.clone()
    }
}

impl State {
    fn poll_turn(&mut self, streams: usize, cx: &mut Context<'_>) -> Poll<()> {
        let Some(due) = self.pace.due(Instant::now().into_std(), streams) else { return Poll::Ready(()) };
        let turn = self.turn.get_or_insert_with(|| Box::pin(sleep_until(due.into())));
        turn.as_mut().poll(cx)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ping_due.as_mut().is_some_and(|due| due.as_mut().poll(cx).is_ready())
            && let Some(ping) = self.pings.release()
        {
            self.ping_due = None;
            self.outgoing.extend_from_slice(&ping);
        }
        if !self.outgoing.is_empty() {
            match ready!(self.channel.poll_send_ready(cx)) {
                Ok(()) => {
                    self.channel.send(self.outgoing.split().freeze());
                    self.turn = None;
                    self.pace.flushed(Instant::now().into_std());
                }
                Err(error) => return Poll::Ready(Err(self.failed(error.problem))),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn failed(&mut self, problem: Problem) -> io::Error {
        self.ended = true;
        let error = io::Error::new(io::ErrorKind::ConnectionReset, problem.message.clone());
        self.problem.get_or_insert(problem);
        error
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut state = lock(&self.shared);
        while state.incoming.is_empty() {
            if state.ended {
                return Poll::Ready(Ok(0));
            }
            match ready!(state.channel.poll_recv(cx)) {
                Ok(Some(bytes)) => {
                    state.incoming = bytes;
                    state.heard = Instant::now();
                }
                Ok(None) => state.ended = true,
                Err(error) => return Poll::Ready(Err(state.failed(error.problem))),
            }
        }
        let length = buffer.len().min(state.incoming.len());
        let (to, _) = buffer.split_at_mut(length);
        state.incoming.copy_to_slice(to);
        Poll::Ready(Ok(length))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = lock(&self.shared);
        if state.outgoing.len() >= GATHER {
            ready!(state.poll_flush(cx))?;
        }
        if state.pings.hold(bytes) {
            state.ping_due = Some(Box::pin(sleep(Pings::HOLD)));
            return Poll::Ready(Ok(bytes.len()));
        }
        if let Some(stream) = state.pings.passed(bytes) {
            state.pace.frame(stream);
        }
        state.outgoing.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = lock(&self.shared);
        ready!(state.poll_flush(cx))?;
        state.channel.finish();
        Poll::Ready(Ok(()))
    }
}

/// No change under this lock can panic half-way.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
