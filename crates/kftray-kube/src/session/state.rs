//! Everything a session knows, behind its one lock: streams, queues, budgets, liveness.
//!
//! No input or output and no clock of its own: the driver brings frames in and takes batches out, channels put bytes in and
//! take bytes out, each with the time. Wakers are collected and called by whoever held the lock, after it is released.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use kftray_commons::{Code, Problem};
use kftray_portforward::ports::{ChannelError, Delivery};
use kftray_spdy::connection::{Client, Event, OpenError, PairId};
use kftray_spdy::frame::{Frame, HEADER, ResetStatus};
use tokio::time::Instant;

use super::budget::Budget;
use super::classify::classify;
use super::limits::{
    AFTER_FINISH, BATCH_BYTES, BATCH_FRAMES, DOUBT_AFTER, ERROR_TEXT_WAIT, IDLE_CLOSE, SESSION_BUDGET,
    SESSION_QUEUE, SLICE, STALL_LIMIT, STARVING_SESSION, STREAM_BUDGET, STREAM_QUEUE,
};
use super::liveness::{Liveness, Verdict};
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
    /// Streams whose first bytes wait until something is heard.
    gated: Vec<PairId>,
    pub(super) life: Liveness,
    received: usize,
    sending: usize,
    over: usize,
    bulk: usize,
    retired: bool,
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
            gated: Vec::new(),
            life: Liveness::new(now),
            received: 0,
            sending: 0,
            over: 0,
            bulk: 0,
            retired: false,
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
        }
    }

    // ---- the driver's side -----------------------------------------------------------------------------------------

    /// Any bytes came. Call before their frames.
    pub(super) fn heard(&mut self, now: Instant) {
        self.life.heard(now);
        self.suspect = false;
        for pair in std::mem::take(&mut self.gated) {
            let Some(stream) = self.streams.get_mut(&pair) else { continue };
            stream.gated = false;
            stream.wake_reader(&mut self.wakers);
            if stream.has_output() && !stream.queued {
                stream.queued = true;
                self.round.push_back(pair);
            }
        }
    }

    pub(super) fn frame(&mut self, now: Instant, frame: Frame) {
        for event in self.client.on_frame(frame, &mut self.control) {
            match event {
                Event::Data { pair, payload } => self.received_data(now, pair, payload),
                Event::RemoteEnd { pair, error_pending } => self.remote_end(now, pair, error_pending),
                Event::ErrorEnd { pair, text } => self.error_end(pair, text.as_deref()),
                Event::Reset { pair, status } => self.remote_reset(pair, status),
                Event::Pong { id } => {
                    self.pongs += u64::from(self.life.ponged(now, id));
                }
                Event::GoAway { last_good, .. } => self.go_away(last_good),
                Event::Accepted { .. } | Event::Ended { .. } => {}
            }
        }
    }

    fn received_data(&mut self, now: Instant, pair: PairId, payload: Bytes) {
        // A stream that is released is reset in the same breath, so its late frames end in the codec.
        let Some(stream) = self.streams.get_mut(&pair).filter(|stream| stream.end.is_none()) else { return };
        let bytes = payload.len();
        self.received += bytes;
        self.budget.take(bytes);
        if stream.receive(now, payload, STREAM_BUDGET) == Crossing::Over {
            self.over += 1;
        }
        if stream.turns_bulk() {
            self.bulk += 1;
        }
        stream.wake_reader(&mut self.wakers);
    }

    fn remote_end(&mut self, now: Instant, pair: PairId, error_pending: bool) {
        let Some(stream) = self.streams.get_mut(&pair) else { return };
        stream.remote_ended = true;
        self.sending -= stream.drop_outbox();
        if stream.local != Local::Passed {
            stream.local = Local::Passed;
            // The runtime has closed the connection before it says so: nothing we could send would arrive.
            if self.client.finish(pair, &mut self.control).is_err() {
                tracing::debug!(%pair, "the pair had ended before its end");
            }
        }
        if error_pending {
            self.arm(pair, now + ERROR_TEXT_WAIT);
        } else {
            self.conclude(pair);
        }
    }

    fn error_end(&mut self, pair: PairId, text: Option<&str>) {
        let Some(stream) = self.streams.get_mut(&pair) else { return };
        if let Some(text) = text {
            let error = classify(text, &self.pod, stream.port, stream.received);
            if error.problem.code == Code::PodGone {
                self.pod_gone.get_or_insert_with(|| error.problem.clone());
            }
            stream.error = Some(error);
        }
        if stream.remote_ended || stream.error.is_some() {
            self.conclude(pair);
        }
    }

    fn remote_reset(&mut self, pair: PairId, status: ResetStatus) {
        let Some(stream) = self.streams.get_mut(&pair) else { return };
        let pod = &self.pod;
        stream.error.get_or_insert_with(|| ChannelError {
            problem: Problem::new(
                Code::ConnectionLost,
                format!("the cluster reset the connection to port {} of pod {pod} ({status})", stream.port),
            ),
            delivery: Delivery::Unknown,
        });
        self.conclude(pair);
    }

    /// The remote side is over; the client may still take what came.
    fn conclude(&mut self, pair: PairId) {
        let Some(stream) = self.streams.get_mut(&pair) else { return };
        if stream.end.is_none() {
            stream.end = Some(stream.error.take().map_or(End::Orderly, End::Broken));
            if let Some(permit) = &mut stream.permit {
                permit.remote_ended();
            }
            // The node's thread is gone, whatever the client does with the rest; and that grows no more.
            stream.permit = None;
            self.over -= usize::from(std::mem::take(&mut stream.over));
        }
        self.sending -= stream.drop_outbox();
        stream.wake_reader(&mut self.wakers);
        stream.wake_writer(&mut self.wakers);
        self.disarm(pair);
    }

    fn go_away(&mut self, last_good: u32) {
        self.retired = true;
        let beyond: Vec<PairId> =
            self.streams.keys().copied().filter(|pair| pair.is_beyond(last_good)).collect();
        for pair in beyond {
            // Some servers say 0 whatever they did; a stream that has answered was processed.
            if self.streams.get(&pair).is_some_and(|stream| !stream.received && last_good > 0) {
                let problem = Problem::new(Code::ConnectionLost, "the cluster closes this transport");
                self.break_stream(pair, ChannelError { problem, delivery: Delivery::Nothing });
            }
        }
    }

    fn break_stream(&mut self, pair: PairId, error: ChannelError) {
        let Some(stream) = self.streams.get_mut(&pair) else { return };
        stream.error.get_or_insert(error);
        self.client.reset(pair, ResetStatus::CANCEL, &mut self.control);
        // We ended it, so the runtime's thread lingers: the permit must not hear of an end by the remote.
        stream.permit = None;
        self.conclude(pair);
    }

    /// The carrier is gone: every stream breaks.
    pub(super) fn lose(&mut self, problem: &Problem) {
        if self.lost.is_some() {
            return;
        }
        self.lost = Some(problem.clone());
        for stream in self.streams.values_mut().filter(|stream| stream.end.is_none()) {
            let delivery = if stream.on_wire { Delivery::Unknown } else { Delivery::Nothing };
            let error = stream.error.take();
            stream.end = Some(End::Broken(
                error.unwrap_or_else(|| ChannelError { problem: problem.clone(), delivery }),
            ));
            self.sending -= stream.drop_outbox();
            stream.permit = None;
            stream.wake_reader(&mut self.wakers);
            stream.wake_writer(&mut self.wakers);
        }
        self.client = Client::new();
        self.control = Vec::new();
        self.round.clear();
        self.timers.clear();
        self.budget.leave(self.number);
    }

    /// Takes out what is to be written next; false if there is nothing.
    pub(super) fn drain(&mut self, now: Instant, batch: &mut Batch) -> bool {
        std::mem::swap(&mut self.control, &mut batch.control);
        for pair in self.unsent.drain(..) {
            if let Some(stream) = self.streams.get_mut(&pair) {
                stream.on_wire = true;
            }
        }
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

    /// Whether the carrier must not be read now.
    fn must_pause(&self) -> bool {
        let resumed_at = |limit: usize| if self.paused.is_some() { limit / 2 } else { limit };
        // Nobody else lives here who would suffer.
        (self.over > 0 && self.over == self.streams.len())
            || self.received >= resumed_at(SESSION_BUDGET)
            || (self.budget.is_gone() && self.received >= STARVING_SESSION)
    }

    /// Decides whether the carrier is read. True if it is.
    pub(super) fn reads(&mut self, now: Instant, driver: &Waker) -> bool {
        match (self.must_pause(), self.paused) {
            (true, _) => {
                self.paused.get_or_insert(now);
                self.budget.wait(self.number, self.longest_stall(now), driver);
                false
            }
            (false, Some(_)) => {
                self.paused = None;
                self.budget.leave(self.number);
                self.life.deaf(now);
                for stream in self.streams.values_mut() {
                    stream.starved = false;
                }
                true
            }
            (false, None) => true,
        }
    }

    fn longest_stall(&self, now: Instant) -> Instant {
        let waiting = self.streams.values().filter(|stream| stream.inbox_bytes() > 0);
        waiting.map(|stream| stream.taken).min().unwrap_or(now)
    }

    /// Everything that is due. `backlog`: the carrier does not take what was written.
    pub(super) fn tick(&mut self, now: Instant, backlog: bool) {
        while let Some((at, pair)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, pair));
            self.stream_due(now, pair);
        }
        if self.lost.is_some() {
            return;
        }
        if self.paused.is_some() {
            self.cut_stalled(now);
            return;
        }
        match self.life.judge(now, backlog) {
            Verdict::Quiet | Verdict::Congested => {}
            Verdict::Ping => {
                let id = self.client.ping(&mut self.control);
                self.life.pinged(now, id);
            }
            Verdict::Dead => {
                let silence = now.saturating_duration_since(self.life.last_heard()).as_secs();
                let message =
                    format!("the connection to pod {} fell silent ({silence} s without an answer)", self.pod);
                self.lose(&Problem::new(Code::ConnectionLost, message));
            }
        }
    }

    fn stream_due(&mut self, now: Instant, pair: PairId) {
        let Some(stream) = self.streams.get_mut(&pair) else { return };
        stream.timer = None;
        match stream.local {
            _ if stream.remote_ended => self.conclude(pair),
            Local::Open => {}
            Local::Withheld { answered } => {
                let due = stream.activity + stream.withhold_for(answered);
                if due > now || stream.has_output() {
                    let again = due.max(now + Duration::from_millis(10));
                    self.arm(pair, again);
                    return;
                }
                stream.local = Local::Passed;
                if self.client.finish(pair, &mut self.control).is_err() {
                    tracing::debug!(%pair, "the pair had ended before our end");
                }
                self.arm(pair, now + AFTER_FINISH);
            }
            Local::Passed => {
                let due = stream.activity + AFTER_FINISH;
                if due > now {
                    self.arm(pair, due);
                } else {
                    self.client.reset(pair, ResetStatus::CANCEL, &mut self.control);
                    self.conclude(pair);
                }
            }
        }
    }

    /// Cuts off the client that has been stalled longest, if others suffer from it for too long.
    fn cut_stalled(&mut self, now: Instant) {
        if self.stall_due().is_none_or(|due| due > now) {
            return;
        }
        let stalled = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.inbox_bytes() > 0)
            .min_by_key(|(pair, stream)| (stream.taken, **pair))
            .map(|(pair, stream)| (*pair, stream.port));
        let Some((pair, port)) = stalled else { return };
        let message = format!(
            "a download from port {port} of pod {} was cut off: its client took nothing for {} s while others waited",
            self.pod,
            STALL_LIMIT.as_secs()
        );
        let problem = Problem::new(Code::Overloaded, message)
            .with_remedy("Read downloads to the end or close them; many that wait exhaust the memory.");
        tracing::warn!(code = %problem.code, "{problem}");
        if let Some(stream) = self.streams.get_mut(&pair) {
            let dropped = stream.drop_inbox();
            self.received -= dropped;
            self.over -= usize::from(std::mem::take(&mut stream.over));
            self.budget.give(dropped);
        }
        self.break_stream(pair, ChannelError { problem, delivery: Delivery::Unknown });
        self.budget.leave(self.number);
        self.budget.wake();
    }

    /// When the longest stalled client is cut off; `None` while nobody suffers.
    fn stall_due(&self) -> Option<Instant> {
        let since = self.paused?;
        let starved = self.streams.values().any(|stream| stream.starved && stream.end.is_none());
        let exhausted = self.budget.is_gone() && self.budget.is_oldest(self.number);
        if !starved && !exhausted {
            return None;
        }
        let waiting = self.streams.values().filter(|stream| stream.inbox_bytes() > 0);
        let stalled = waiting.map(|stream| stream.taken).min()?;
        Some(stalled.max(since) + STALL_LIMIT)
    }

    /// When to call [`Self::tick`] again if nothing happens before.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        let main = if self.paused.is_some() { self.stall_due() } else { Some(self.life.next()) };
        let idle = self.streams.is_empty().then(|| self.idle_since + IDLE_CLOSE);
        let stream = self.timers.first().map(|(at, _)| *at);
        [main, idle, stream].into_iter().flatten().min()
    }

    /// Without streams for so long that it may be closed; asked again after the same time.
    pub(super) fn is_idle(&mut self, now: Instant) -> bool {
        let idle = self.streams.is_empty() && now >= self.idle_since + IDLE_CLOSE;
        if idle {
            self.idle_since = now;
        }
        idle
    }

    fn arm(&mut self, pair: PairId, at: Instant) {
        let Some(stream) = self.streams.get_mut(&pair) else { return };
        if let Some(old) = stream.timer.replace(at) {
            self.timers.remove(&(old, pair));
        }
        self.timers.insert((at, pair));
    }

    fn disarm(&mut self, pair: PairId) {
        if let Some(at) = self.streams.get_mut(&pair).and_then(|stream| stream.timer.take()) {
            self.timers.remove(&(at, pair));
        }
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
            + self.gated.len()
            + self.received
            + self.sending
    }
}
