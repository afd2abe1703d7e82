//! Everything a session knows, behind its one lock: streams, queues, budgets, liveness.
//!
//! No input or output and no clock of its own: the driver brings frames in and takes batches out, channels put bytes in and
//! take bytes out, each with the time. Wakers are collected and called by whoever held the lock, after it is released.

mod due;
mod intake;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use kftray_commons::Problem;
use kftray_portforward::ports::ChannelError;
use kftray_spdy::connection::{Client, OpenError, PairId};
use kftray_spdy::frame::{HEADER, ResetStatus};
use tokio::time::Instant;

use super::budget::Budget;
use super::limits::{
    BATCH_BYTES, BATCH_FRAMES, DOUBT_AFTER, OPEN_ANSWER, SESSION_QUEUE, SLICE, STREAM_BUDGET, STREAM_QUEUE,
};
use super::liveness::Liveness;
use super::stream::{Crossing, End, Local, Stream};
use crate::pool::Permit;

/// What the writer takes out at once. Reused, so that the steady state allocates nothing.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Encoded frames; first on the wire.
    pub(super) control: Vec<u8>,
    /// DATA frames.
    pub(super) items: Vec<Item>,
}

/// A part of a DATA frame.
#[derive(Debug)]
pub(super) enum Item {
    Header([u8; HEADER]),
    Piece(Bytes),
}

/// May new streams come here, as the pool sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Placement {
    /// Yes.
    Free,
    /// If nothing better is there: a stream here moves much.
    Bulk,
    /// No: a client does not read, the server does not, or it is not sure that the session lives.
    Quarantined,
    /// Never again: going away, out of ids, or lost.
    Closed,
}

/// Why a stream could not be opened: choose another session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed;

#[derive(Debug)]
pub(super) struct State {
    number: u64,
    /// `namespace/name`, for people.
    pod: Arc<str>,
    budget: Arc<Budget>,
    client: Client,
    streams: HashMap<PairId, Stream>,
    control: Vec<u8>,
    round: VecDeque<PairId>,
    timers: BTreeSet<(Instant, PairId)>,
    /// Opened, but the SYN is still in `control`.
    unsent: Vec<PairId>,
    /// The SYN is in the batch that is being written.
    writing: Vec<PairId>,
    /// Streams whose first bytes wait until something is heard.
    gated: Vec<PairId>,
    pub(super) life: Liveness,
    received: usize,
    sending: usize,
    over: usize,
    bulk: usize,
    retired: bool,
    /// The server has answered an opening.
    accepted: bool,
    suspect: bool,
    paused: Option<Instant>,
    idle_since: Instant,
    /// The pod is gone; the pool drops all its sessions.
    pub(super) pod_gone: Option<Problem>,
    pub(super) lost: Option<Problem>,
    /// Answered PINGs.
    pub(super) pongs: u64,
    /// The driver, when it sleeps.
    pub(super) driver: Option<Waker>,
    /// The driver, when there is work for it: to be called after the lock is released.
    pub(super) woken: Option<Waker>,
    /// Channels that the driver has work for: the same.
    pub(super) wakers: Vec<Waker>,
}

impl State {
    pub(super) fn new(now: Instant, number: u64, pod: Arc<str>, budget: Arc<Budget>) -> Self {
        Self {
            number,
            pod,
            budget,
            client: Client::new(),
            streams: HashMap::new(),
            control: Vec::new(),
            round: VecDeque::new(),
            timers: BTreeSet::new(),
            unsent: Vec::new(),
            writing: Vec::new(),
            gated: Vec::new(),
            life: Liveness::new(now),
            received: 0,
            sending: 0,
            over: 0,
            bulk: 0,
            retired: false,
            accepted: false,
            suspect: false,
            paused: None,
            idle_since: now,
            pod_gone: None,
            lost: None,
            pongs: 0,
            driver: None,
            woken: None,
            wakers: Vec::new(),
        }
    }

    // ---- the pool's side -------------------------------------------------------------------------------------------

    pub(super) fn placement(&self) -> Placement {
        if self.lost.is_some() || self.retired || self.pod_gone.is_some() || !self.client.can_open() {
            Placement::Closed
        } else if self.over > 0 || self.paused.is_some() || self.suspect || self.life.is_congested() {
            Placement::Quarantined
        } else if self.bulk > 0 {
            Placement::Bulk
        } else {
            Placement::Free
        }
    }

    pub(super) fn live(&self) -> usize {
        self.streams.len()
    }

    /// Live streams that will move bytes, as far as can be told: not those whose client has had its answer and ended, which
    /// only wait for the runtime to let go of them.
    pub(super) fn active(&self) -> usize {
        self.streams.values().filter(|stream| !stream.is_leaving()).count()
    }

    /// No new streams; live ones go on.
    pub(super) fn retire(&mut self) {
        self.retired = true;
        self.wake_driver();
    }

    /// Silence where an answer was due: no new streams until it speaks, and it has to speak soon.
    pub(super) fn suspect(&mut self, now: Instant) {
        if self.lost.is_none() && self.paused.is_none() {
            self.suspect = true;
            self.life.doubt(now, true);
            self.wake_driver();
        }
    }

    /// Must prove itself now.
    pub(super) fn challenge(&mut self, now: Instant, suspect: bool) {
        if self.lost.is_none() && self.paused.is_none() {
            self.life.doubt(now, suspect);
            self.wake_driver();
        }
    }

    /// Opens a stream; its SYN, and `first` if the session is known to be alive, go out in the next write.
    pub(super) fn open(
        &mut self,
        now: Instant,
        port: u16,
        first: Bytes,
        permit: Option<Permit>,
    ) -> Result<PairId, (Closed, Option<Permit>)> {
        if self.placement() == Placement::Closed {
            return Err((Closed, permit));
        }
        let gated = self.suspect || now >= self.life.last_heard() + DOUBT_AFTER;
        let ride = if gated || first.len() > SLICE { 0 } else { first.len() };
        let pair = match self.client.open(port, first.get(..ride).unwrap_or_default(), &mut self.control) {
            Ok(pair) => pair,
            Err(OpenError::IdsExhausted | OpenError::GoingAway | OpenError::PortZero) => {
                return Err((Closed, permit));
            }
        };
        let mut stream = Stream::new(now, port, permit);
        self.life.wrote(now, ride as u64);
        if ride > 0 {
            stream.note_sent(now, ride);
        } else if !first.is_empty() {
            self.sending += first.len();
            stream.push(now, first);
        }
        if gated {
            stream.gated = true;
            self.gated.push(pair);
            self.life.doubt(now, false);
        } else if stream.has_output() {
            stream.queued = true;
            self.round.push_back(pair);
        }
        self.streams.insert(pair, stream);
        self.unsent.push(pair);
        self.arm(pair, now + OPEN_ANSWER);
        self.wake_driver();
        Ok(pair)
    }

    // ---- the channel's side ----------------------------------------------------------------------------------------

    /// Ready when the session has been heard since the stream was opened, or is lost. True if it was heard.
    pub(super) fn poll_heard(&mut self, pair: PairId, cx: &Context<'_>) -> Poll<bool> {
        match self.streams.get_mut(&pair) {
            Some(stream) if stream.gated && stream.end.is_none() => {
                stream.await_bytes(cx);
                Poll::Pending
            }
            Some(stream) => Poll::Ready(!stream.gated),
            None => Poll::Ready(false),
        }
    }

    pub(super) fn poll_recv(
        &mut self,
        now: Instant,
        pair: PairId,
        cx: &Context<'_>,
    ) -> Poll<Result<Option<Bytes>, ChannelError>> {
        let Some(stream) = self.streams.get_mut(&pair) else { return Poll::Ready(Ok(None)) };
        if let Some((payload, crossing)) = stream.take(now, STREAM_BUDGET) {
            self.received -= payload.len();
            if crossing == Crossing::Under {
                self.over -= 1;
            }
            self.budget.give(payload.len());
            if self.paused.is_some() && !self.must_pause() {
                self.wake_driver();
            }
            return Poll::Ready(Ok(Some(payload)));
        }
        match &stream.end {
            Some(End::Orderly) => Poll::Ready(Ok(None)),
            Some(End::Broken(error)) => Poll::Ready(Err(error.clone())),
            None => {
                stream.await_bytes(cx);
                Poll::Pending
            }
        }
    }

    pub(super) fn poll_send_ready(
        &mut self,
        pair: PairId,
        cx: &Context<'_>,
    ) -> Poll<Result<(), ChannelError>> {
        let full = self.sending >= SESSION_QUEUE;
        let Some(stream) = self.streams.get_mut(&pair) else { return Poll::Ready(Ok(())) };
        match &stream.end {
            // What it sends now goes nowhere, as behind a closed socket.
            Some(End::Orderly) => return Poll::Ready(Ok(())),
            Some(End::Broken(error)) => return Poll::Ready(Err(error.clone())),
            None => {}
        }
        // Over the session's limit a stream waits for its own queue to drain: an empty queue may always take one piece.
        if stream.outbox_bytes >= STREAM_QUEUE || (full && stream.outbox_bytes > 0) {
            stream.await_room(cx);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn send(&mut self, now: Instant, pair: PairId, data: Bytes) {
        let Some(stream) = self.streams.get_mut(&pair) else { return };
        if data.is_empty() || stream.end.is_some() || stream.remote_ended || stream.local != Local::Open {
            return;
        }
        self.sending += data.len();
        stream.push(now, data);
        if self.paused.is_some() && !stream.over {
            stream.starved = true;
        }
        if !stream.queued && !stream.gated {
            stream.queued = true;
            self.round.push_back(pair);
        }
        if stream.turns_bulk() {
            self.bulk += 1;
        }
        self.wake_driver();
    }

    pub(super) fn finish(&mut self, pair: PairId) {
        let Some(stream) = self.streams.get_mut(&pair) else { return };
        if stream.end.is_some() || stream.remote_ended || stream.local != Local::Open {
            return;
        }
        let at = stream.withhold();
        self.arm(pair, at);
        self.wake_driver();
    }

    /// The client reads no more. The timer that [`Self::finish`] has armed takes it into account.
    pub(super) fn close(&mut self, now: Instant, pair: PairId) {
        if let Some(stream) = self.streams.get_mut(&pair) {
            stream.gone.get_or_insert(now);
        }
    }

    /// The channel is dropped.
    pub(super) fn release(&mut self, now: Instant, pair: PairId) {
        let Some(mut stream) = self.streams.remove(&pair) else { return };
        self.forget(&mut stream, pair);
        if self.lost.is_some() {
            return;
        }
        self.client.reset(pair, ResetStatus::CANCEL, &mut self.control);
        if self.streams.is_empty() {
            self.idle_since = now;
            // A thousand connections at once must not be remembered for ever by the capacity they needed.
            self.streams.shrink_to(64);
            self.round.shrink_to(64);
        }
        self.wake_driver();
    }

    /// Gives everything back that a stream holds in the session.
    fn forget(&mut self, stream: &mut Stream, pair: PairId) {
        let received = stream.drop_inbox();
        self.received -= received;
        self.budget.give(received);
        self.sending -= stream.drop_outbox();
        self.over -= usize::from(std::mem::take(&mut stream.over));
        self.bulk -= usize::from(std::mem::take(&mut stream.bulk));
        if let Some(at) = stream.timer.take() {
            self.timers.remove(&(at, pair));
        }
        if std::mem::take(&mut stream.queued) {
            self.round.retain(|other| *other != pair);
        }
        if std::mem::take(&mut stream.gated) {
            self.gated.retain(|other| *other != pair);
        }
        if !stream.on_wire {
            self.unsent.retain(|other| *other != pair);
            self.writing.retain(|other| *other != pair);
        }
    }

    // ---- the driver's side -----------------------------------------------------------------------------------------

    /// Takes out what is to be written next; false if there is nothing.
    pub(super) fn drain(&mut self, now: Instant, batch: &mut Batch) -> bool {
        std::mem::swap(&mut self.control, &mut batch.control);
        self.written();
        std::mem::swap(&mut self.unsent, &mut self.writing);
        let (mut frames, mut bytes) = (0, 0);
        while frames < BATCH_FRAMES && bytes < BATCH_BYTES {
            let Some(pair) = self.round.pop_front() else { break };
            let Some(stream) = self.streams.get_mut(&pair) else { continue };
            let len = stream.pullable(SLICE);
            match self.client.data_header(pair, len) {
                Ok(header) if len > 0 => {
                    batch.items.push(Item::Header(header));
                    bytes += stream.pull(SLICE, |piece| batch.items.push(Item::Piece(piece)));
                    self.sending -= len;
                    frames += 1;
                }
                Ok(_) | Err(_) => self.sending -= stream.drop_outbox(),
            }
            stream.queued = stream.has_output();
            if stream.queued {
                self.round.push_back(pair);
            }
            if stream.outbox_bytes <= STREAM_QUEUE / 2 {
                stream.wake_writer(&mut self.wakers);
            }
        }
        if bytes > 0 {
            self.life.wrote(now, bytes as u64);
        }
        !batch.control.is_empty() || !batch.items.is_empty()
    }

    /// The batch that was taken out last has gone to the carrier, or a part of it.
    fn written(&mut self) {
        for pair in self.writing.drain(..) {
            if let Some(stream) = self.streams.get_mut(&pair) {
                stream.on_wire = true;
            }
        }
    }

    /// Of the batch that was taken out last certainly nothing has arrived.
    pub(super) fn unwritten(&mut self) {
        self.writing.clear();
    }

    fn wake_driver(&mut self) {
        if let Some(driver) = self.driver.take() {
            self.woken = Some(driver);
        }
    }

    /// What would leak if it grew: entries in every table and queue.
    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        self.streams.len()
            + self.client.live()
            + self.control.len()
            + self.round.len()
            + self.timers.len()
            + self.unsent.len()
            + self.writing.len()
            + self.gated.len()
            + self.received
            + self.sending
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // Or it would stay the oldest stalled session for ever.
        self.budget.leave(self.number);
    }
}
