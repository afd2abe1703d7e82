//! One yamux stream, written to from two sides: at once by whoever has bytes, and by the carrier's driver for what did not
//! fit into the stream's window then.
//!
//! The engine's channels queue without waiting and without a task context, and may be dropped with bytes still queued;
//! yamux knows neither. The driver makes up for both.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use futures::Stream as _;
use futures::io::AsyncWrite as _;
use kftray_relay_proto::record;
use tokio::time::{Instant, timeout};

use super::carrier::{Carrier, Live, Shared as CarrierShared};
use super::queue::DatagramQueue;

/// Queued bytes above which no more are asked for. yamux holds up to twelve frames per stream itself, within its window; this
/// only bridges the time until the driver runs.
const ROOM: usize = 64 * 1024;
/// Datagrams are written together up to this much: beyond it a larger write gains nothing, and what is written can no longer be
/// dropped.
const BATCH: usize = 16 * 1024;
/// What was queued when its owner left gets this long to arrive, and what still comes back is thrown away for as long
/// (the engine's own limit for transports that do not take this over).
const LINGER: Duration = Duration::from_secs(60);

/// The owner's handle of a stream. Dropping it resets the stream, unless it was left in good order ([`Lane::leave`]).
pub(super) struct Lane {
    shared: Arc<Shared>,
    carrier: Arc<Carrier>,
}

/// What owner and driver share.
pub(super) struct Shared {
    state: Mutex<State>,
    carrier: Arc<CarrierShared>,
    _live: Live,
}

struct State {
    /// `None` once it was reset.
    stream: Option<yamux::Stream>,
    out: BytesMut,
    datagrams: DatagramQueue,
    fin: Fin,
    /// The owner has left it to the driver.
    left: bool,
    /// Nothing can be written any more; reading tells the rest.
    broken: bool,
    /// The driver has it in hand.
    with_driver: bool,
    driver: Option<Waker>,
    /// Who waits for room.
    owner: Option<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fin {
    Open,
    Wanted,
    Sent,
}

impl Shared {
    /// A stream with its first bytes, which go out at once as far as the window allows.
    pub(super) fn new(stream: yamux::Stream, first: BytesMut, carrier: &Arc<CarrierShared>) -> Arc<Self> {
        let state = State {
            stream: Some(stream),
            out: first,
            datagrams: DatagramQueue::default(),
            fin: Fin::Open,
            left: false,
            broken: false,
            with_driver: false,
            driver: None,
            owner: None,
        };
        let live = carrier.live();
        let shared = Arc::new(Self { state: Mutex::new(state), carrier: Arc::clone(carrier), _live: live });
        shared.push(|_| {});
        shared
    }

    /// Adds to what is to be written, and writes what can be written now.
    fn push(self: &Arc<Self>, add: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        add(&mut state);
        if state.with_driver {
            return;
        }
        if state.pump(&mut Context::from_waker(Waker::noop())).is_pending() {
            state.with_driver = true;
            drop(state);
            self.to_driver();
        }
    }

    fn to_driver(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        self.carrier.give(Box::pin(std::future::poll_fn(move |cx| shared.poll_pump(cx))));
    }

    fn poll_pump(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.pump(cx).is_pending() {
            state.driver = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.with_driver = false;
        Poll::Ready(())
    }

    /// Writes what is left and throws away what comes, until nothing is left and the other side has ended.
    async fn linger(self: Arc<Self>) {
        let drained = std::future::poll_fn(|cx| {
            let mut state = self.lock();
            let written = state.pump(cx).is_ready();
            if written && state.fin == Fin::Sent {
                return Poll::Ready(());
            }
            while ready!(state.poll_read(cx)).is_some() {}
            Poll::Ready(())
        });
        if timeout(LINGER, drained).await.is_err() {
            tracing::debug!("a stream of the relay was left and did not end");
        }
        self.lock().reset();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Lets go of the stream: unless both sides have ended it, yamux resets it. The relay takes a stream without an end
    /// record for cut off.
    fn reset(&mut self) {
        self.stream = None;
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    /// Writes until nothing is left or the stream takes no more.
    fn pump(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(()) };
        let mut stream = std::pin::Pin::new(stream);
        while !self.broken {
            if self.out.is_empty() {
                refill(&mut self.datagrams, &mut self.out);
            }
            if self.out.is_empty() {
                break;
            }
            match ready!(stream.as_mut().poll_write(cx, &self.out)) {
                Ok(length) => self.out.advance(length),
                Err(_) => self.broken = true,
            }
            if self.out.len() < ROOM
                && let Some(owner) = self.owner.take()
            {
                owner.wake();
            }
        }
        if self.broken {
            self.out = BytesMut::new();
            return Poll::Ready(());
        }
        if self.out.is_empty() {
            // An idle stream holds no buffer.
            self.out = BytesMut::new();
        }
        if self.fin == Fin::Wanted {
            self.broken |= ready!(stream.poll_close(cx)).is_err();
            self.fin = Fin::Sent;
        }
        Poll::Ready(())
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        match ready!(std::pin::Pin::new(stream).poll_next(cx)) {
            Some(Ok(packet)) => Poll::Ready(Some(Bytes::from_owner(packet))),
            Some(Err(_)) | None => Poll::Ready(None),
        }
    }
}

/// Takes datagrams that are still worth sending.
fn refill(datagrams: &mut DatagramQueue, out: &mut BytesMut) {
    while out.len() < BATCH {
        let Some(datagram) = datagrams.pull(Instant::now()) else { return };
        out.extend_from_slice(&record::data_header(datagram.len()));
        out.extend_from_slice(&datagram);
    }
}

impl Lane {
    pub(super) fn new(shared: Arc<Shared>, carrier: Arc<Carrier>) -> Self {
        Self { shared, carrier }
    }

    /// The carrier it runs on.
    pub(super) fn carrier(&self) -> &Arc<Carrier> {
        &self.carrier
    }

    /// Appends bytes of the stream; never waits.
    pub(super) fn write(&self, encode: impl FnOnce(&mut BytesMut)) {
        self.shared.push(|state| encode(&mut state.out));
    }

    /// Appends a datagram; never waits. Written by the driver, so that a burst becomes few frames.
    pub(super) fn write_datagram(&self, datagram: Bytes) {
        let mut state = self.shared.lock();
        state.datagrams.push(Instant::now(), datagram);
        if !std::mem::replace(&mut state.with_driver, true) {
            drop(state);
            self.shared.to_driver();
        }
    }

    /// Datagrams that waited too long, or were too many.
    pub(super) fn datagrams_dropped(&self) -> u64 {
        self.shared.lock().datagrams.dropped()
    }

    /// Ready when more may be written.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.shared.lock();
        if state.out.len() < ROOM || state.broken {
            return Poll::Ready(());
        }
        state.owner = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The next bytes; `None` when nothing will come any more, for whatever reason.
    pub(super) fn poll_read(&self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.shared.lock().poll_read(cx)
    }

    /// Leaves the stream in good order: what is queued still arrives, and what comes is thrown away. If `ended`, both
    /// directions have ended, and yamux' own end follows; else the other side's end is waited for.
    pub(super) fn leave(&self, ended: bool) {
        let mut first = false;
        self.shared.push(|state| {
            first = !std::mem::replace(&mut state.left, true);
            if ended && state.fin == Fin::Open {
                state.fin = Fin::Wanted;
            }
        });
        if first && self.shared.lock().fin != Fin::Sent {
            self.shared.carrier.give(Box::pin(Arc::clone(&self.shared).linger()));
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if !state.left {
            state.reset();
        }
    }
}
