//! The task of one session: owns the carrier and does all its reads and writes in one loop, so that no lock is ever held
//! around the TLS stream.
//!
//! One turn: read until the carrier has nothing or a batch is full; under the lock hand the frames out, look at the clock,
//! take out what waits to be written; wake the channels; write. It sleeps only when the carrier blocks both ways or there
//! is nothing to write.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};

use kftray_commons::{Code, Problem};
use kftray_spdy::frame::Frame;
use tokio::time::{Instant, Sleep};

use super::limits::{PING_IDLE, PING_UNANSWERED, READ_BATCH, TLS_RECORD};
use super::state::{Batch, Placement};
use super::wire::Wire;
use super::{Observer, Shared};
use crate::connect::CarrierIo;

pub(super) struct Driver {
    shared: Arc<Shared>,
    observer: Weak<dyn Observer>,
    io: Box<dyn CarrierIo>,
    wire: Wire,
    frames: Vec<Frame>,
    batch: Batch,
    wakers: Vec<Waker>,
    output: Output,
    /// The budgets allow reading.
    reading: bool,
    sleep: Pin<Box<Sleep>>,
    placement: Placement,
    pongs: u64,
}

/// Bytes on their way into the carrier.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    written: usize,
    unflushed: bool,
}

/// What a read brought.
#[derive(Default)]
struct Intake {
    bytes: usize,
    /// The batch was full before the carrier was empty.
    more: bool,
    failure: Option<Problem>,
    /// The failure was the write of a batch of which certainly nothing arrived.
    unwritten: bool,
}

/// Why a batch could not be written.
struct WriteFailure {
    problem: Problem,
    /// Certainly nothing of it arrived.
    unwritten: bool,
}

impl Driver {
    pub(super) fn new(
        shared: Arc<Shared>,
        observer: Weak<dyn Observer>,
        io: Box<dyn CarrierIo>,
        websocket: bool,
    ) -> Self {
        Self {
            shared,
            observer,
            io,
            wire: Wire::new(websocket),
            frames: Vec::new(),
            batch: Batch::default(),
            wakers: Vec::new(),
            output: Output::default(),
            reading: true,
            sleep: Box::pin(tokio::time::sleep(PING_IDLE)),
            placement: Placement::Free,
            pongs: 0,
        }
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Intake {
        let mut intake = Intake::default();
        if !self.reading {
            return intake;
        }
        let result = loop {
            if intake.bytes >= READ_BATCH {
                intake.more = true;
                break Ok(());
            }
            let input = self.wire.input();
            match tokio_util::io::poll_read_buf(Pin::new(&mut *self.io), cx, input) {
                Poll::Pending => break Ok(()),
                Poll::Ready(Ok(0)) => break Err("the cluster closed the connection".to_owned()),
                Poll::Ready(Ok(bytes)) => intake.bytes += bytes,
                Poll::Ready(Err(error)) => break Err(breakage(&error)),
            }
            if self.wire.is_full() {
                intake.failure = self.wire.parse(&mut self.frames).err();
                if intake.failure.is_some() {
                    return intake;
                }
            }
        };
        let parsed = self.wire.parse(&mut self.frames);
        let broken = result.map_err(|message| Problem::new(Code::ConnectionLost, message));
        intake.failure = parsed.and(broken).err();
        intake
    }

    /// The part under the lock.
    fn exchange(&mut self, cx: &Context<'_>, intake: Intake) -> Turn {
        let now = Instant::now();
        let mut guard = self.shared.lock();
        let state = &mut *guard;
        state.driver = None;
        if intake.bytes > 0 {
            state.heard(now);
        }
        for frame in self.frames.drain(..) {
            state.frame(now, frame);
        }
        if let Some(problem) = &intake.failure {
            if intake.unwritten {
                state.unwritten();
            }
            state.lose(problem);
        }
        let backlog = self.output.is_pending();
        state.tick(now, backlog);
        let was_reading = std::mem::replace(&mut self.reading, state.reads(now, cx.waker()));
        let drained = !backlog && state.lost.is_none() && state.drain(now, &mut self.batch);
        let write = drained || (!backlog && self.wire.has_answers());
        let more = intake.more || (self.reading && !was_reading);
        if !write && !more {
            state.driver = Some(cx.waker().clone());
        }
        std::mem::swap(&mut state.wakers, &mut self.wakers);
        let turn = Turn {
            write,
            more,
            wake_at: state.next_tick(),
            quiet: now >= state.life.last_heard() + PING_UNANSWERED,
            idle: state.is_idle(now),
            lost: state.lost.clone(),
            placement: state.placement(),
            pongs: state.pongs,
        };
        drop(guard);
        for waker in self.wakers.drain(..) {
            waker.wake();
        }
        turn
    }

    /// Tells whoever is interested. True if the session is over.
    fn announce(&mut self, turn: &Turn) -> bool {
        if self.pongs != turn.pongs {
            self.pongs = turn.pongs;
            self.shared.pongs.send_replace(turn.pongs);
        }
        let mut lost = turn.lost.clone();
        if lost.is_none() && turn.idle && self.may_close() {
            let problem =
                Problem::new(Code::ConnectionLost, "the connection was closed because nobody used it");
            lost = self.shared.close_if_unused(problem);
        }
        if let Some(problem) = &lost {
            self.shared.end(problem);
        }
        if lost.is_some() || self.placement != turn.placement {
            self.placement = turn.placement;
            if let Some(observer) = self.observer.upgrade() {
                observer.changed();
            }
        }
        lost.is_some()
    }

    fn may_close(&self) -> bool {
        self.observer.upgrade().is_none_or(|observer| observer.may_close(self.shared.number))
    }

    /// Sleeps until the next deadline; ready if it has passed already.
    fn nap(&mut self, cx: &mut Context<'_>, turn: &Turn) -> Poll<()> {
        let elapsed = self.sleep.is_elapsed();
        if elapsed && turn.quiet && !self.output.is_pending() {
            // Nothing has been going on for a while; idle sessions are many.
            self.wire.shrink();
            self.output.bytes = Vec::new();
            self.batch = Batch::default();
            self.frames = Vec::new();
        }
        let Some(at) = turn.wake_at else { return Poll::Pending };
        // A timer that is due earlier than needed may fire in vain; that is cheaper than to move it with each frame.
        if elapsed || at < self.sleep.deadline() {
            self.sleep.as_mut().reset(at);
            return self.sleep.as_mut().poll(cx);
        }
        Poll::Pending
    }
}

struct Turn {
    /// A batch was taken out, or an answer waits.
    write: bool,
    /// The carrier may hold more.
    more: bool,
    wake_at: Option<Instant>,
    /// Nothing has been heard for a while.
    quiet: bool,
    idle: bool,
    lost: Option<Problem>,
    placement: Placement,
    pongs: u64,
}

impl Output {
    fn is_pending(&self) -> bool {
        self.written < self.bytes.len() || self.unflushed
    }

    /// Pushes the bytes into the carrier and on to the network.
    fn poll_write(&mut self, cx: &mut Context<'_>, io: &mut dyn CarrierIo) -> Poll<io::Result<()>> {
        while let Some(rest) = self.bytes.get(self.written..).filter(|rest| !rest.is_empty()) {
            let written = ready!(Pin::new(&mut *io).poll_write(cx, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(io).poll_flush(cx))?;
            self.unflushed = false;
        }
        self.bytes.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let mut write_failed: Option<WriteFailure> = None;
        loop {
            let mut intake = this.read(cx);
            if let Some(WriteFailure { problem, unwritten }) = write_failed.take() {
                intake.failure.get_or_insert(problem);
                intake.unwritten = unwritten;
            }
            // What was blocked goes first; if it still is, nothing new is taken out.
            if intake.failure.is_none()
                && this.output.is_pending()
                && let Poll::Ready(Err(error)) = this.output.poll_write(cx, &mut *this.io)
            {
                intake.failure = Some(broken(&error));
            }
            let turn = this.exchange(cx, intake);
            if this.announce(&turn) {
                return Poll::Ready(());
            }
            if turn.write {
                let begin = this.wire.encode(&mut this.batch, &mut this.output.bytes);
                this.output.written = begin;
                if let Poll::Ready(Err(error)) = this.output.poll_write(cx, &mut *this.io) {
                    // Within one TLS record: either all of it was handed to the system or the other end cannot read it.
                    let unwritten = this.output.written == begin
                        && this.output.bytes.len() - begin <= TLS_RECORD
                        && !this.output.unflushed;
                    write_failed = Some(WriteFailure { problem: broken(&error), unwritten });
                }
                continue;
            }
            if turn.more {
                continue;
            }
            if this.nap(cx, &turn).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

fn broken(error: &io::Error) -> Problem {
    Problem::new(Code::ConnectionLost, breakage(error))
}

/// How a carrier broke, in words for people: the TLS layer's own for a missing farewell point to its manual.
pub(super) fn breakage(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return "the cluster closed the connection".to_owned();
    }
    format!("the connection to the cluster broke: {error}")
}
