//! One forwarded connection inside a session: what waits in both directions and how far its end has come.

use std::collections::VecDeque;
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use kftray_portforward::ports::ChannelError;
use tokio::time::Instant;

use super::limits::{BULK, OPEN_ANSWER, WITHHOLD_ANSWERED, WITHHOLD_IDLE, WITHHOLD_PRESSURE};
use crate::pool::Permit;

/// How a connection ended.
#[derive(Debug, Clone)]
pub(super) enum End {
    /// The remote ended it.
    Orderly,
    /// It broke.
    Broken(ChannelError),
}

/// Our direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Local {
    Open,
    /// The client has ended; the pod is not told yet. `answered`: it ended after an answer, with nothing sent since.
    Withheld {
        answered: bool,
    },
    /// The pod was told.
    Passed,
}

/// What a budget check after a change of the inbox says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Crossing {
    None,
    Over,
    Under,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) port: u16,
    pub(super) permit: Option<Permit>,

    inbox: VecDeque<Bytes>,
    inbox_bytes: usize,
    /// Above the stream's budget, until half of it is left.
    pub(super) over: bool,
    /// When the client last took something, or the first byte it has not taken came.
    pub(super) taken: Instant,
    /// A byte of the pod has come.
    pub(super) received: bool,

    outbox: VecDeque<Bytes>,
    pub(super) outbox_bytes: usize,
    /// Stands in the session's round.
    pub(super) queued: bool,
    /// The client's bytes are withheld until the session hears something.
    pub(super) gated: bool,
    /// Its SYN was handed to the carrier.
    pub(super) on_wire: bool,
    /// The server has answered the SYN.
    pub(super) accepted: bool,
    /// Until when it has to, or a byte has to come.
    pub(super) answer_due: Instant,
    /// Waits for an answer that cannot come while the session is not read.
    pub(super) starved: bool,
    /// The last bytes went to the pod.
    asked: bool,

    pub(super) local: Local,
    /// Since when nobody reads what the pod says.
    pub(super) gone: Option<Instant>,
    /// The data stream has ended, the error stream not yet.
    pub(super) remote_ended: bool,
    /// What the error stream said.
    pub(super) error: Option<ChannelError>,
    pub(super) end: Option<End>,

    moved: u64,
    pub(super) bulk: bool,
    pub(super) activity: Instant,
    pub(super) timer: Option<Instant>,

    waker: Option<Waker>,
    wants_bytes: bool,
    wants_room: bool,
}

impl Stream {
    pub(super) fn new(now: Instant, port: u16, permit: Option<Permit>) -> Self {
        Self {
            port,
            permit,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            over: false,
            taken: now,
            received: false,
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            queued: false,
            gated: false,
            on_wire: false,
            accepted: false,
            answer_due: now + OPEN_ANSWER,
            starved: false,
            asked: false,
            local: Local::Open,
            gone: None,
            remote_ended: false,
            error: None,
            end: None,
            moved: 0,
            bulk: false,
            activity: now,
            timer: None,
            waker: None,
            wants_bytes: false,
            wants_room: false,
        }
    }

    /// Bytes that wait for the client.
    pub(super) fn inbox_bytes(&self) -> usize {
        self.inbox_bytes
    }

    /// Bytes came from the pod.
    pub(super) fn receive(&mut self, now: Instant, payload: Bytes, budget: usize) -> Crossing {
        if self.inbox.is_empty() {
            self.taken = now;
        }
        self.inbox_bytes += payload.len();
        self.moved += payload.len() as u64;
        self.inbox.push_back(payload);
        self.received = true;
        self.asked = false;
        self.activity = now;
        if !self.over && self.inbox_bytes >= budget {
            self.over = true;
            return Crossing::Over;
        }
        Crossing::None
    }

    /// The client takes bytes.
    pub(super) fn take(&mut self, now: Instant, budget: usize) -> Option<(Bytes, Crossing)> {
        let payload = self.inbox.pop_front()?;
        self.inbox_bytes -= payload.len();
        self.taken = now;
        if self.inbox.is_empty() && self.inbox.capacity() > 64 {
            self.inbox = VecDeque::new();
        }
        if self.over && self.inbox_bytes <= budget / 2 {
            self.over = false;
            return Some((payload, Crossing::Under));
        }
        Some((payload, Crossing::None))
    }

    /// Drops what the client has not taken; returns how much that was.
    pub(super) fn drop_inbox(&mut self) -> usize {
        self.inbox = VecDeque::new();
        std::mem::take(&mut self.inbox_bytes)
    }

    /// Bytes for the pod.
    pub(super) fn push(&mut self, now: Instant, data: Bytes) {
        self.note_sent(now, data.len());
        self.outbox_bytes += data.len();
        self.outbox.push_back(data);
    }

    /// Bytes for the pod that were queued elsewhere.
    pub(super) fn note_sent(&mut self, now: Instant, bytes: usize) {
        self.moved += bytes as u64;
        self.asked = true;
        self.activity = now;
    }

    /// Nothing has come back yet, not even the answer to the SYN.
    pub(super) fn is_unanswered(&self) -> bool {
        !self.accepted && !self.received
    }

    /// The last bytes went to the pod.
    pub(super) fn awaits_answer(&self) -> bool {
        self.asked && self.end.is_none()
    }

    /// The client has ended after its answer, or either end is over.
    pub(super) fn is_leaving(&self) -> bool {
        self.remote_ended
            || self.end.is_some()
            || matches!(self.local, Local::Passed | Local::Withheld { answered: true })
    }

    /// Takes up to `most` bytes to write, as pieces.
    pub(super) fn pull(&mut self, most: usize, mut piece: impl FnMut(Bytes)) -> usize {
        let mut pulled = 0;
        while pulled < most {
            let Some(front) = self.outbox.front_mut() else { break };
            if front.len() <= most - pulled {
                pulled += front.len();
                piece(std::mem::take(front));
                self.outbox.pop_front();
            } else {
                piece(front.split_to(most - pulled));
                pulled = most;
            }
        }
        self.outbox_bytes -= pulled;
        pulled
    }

    /// Bytes that the next [`Self::pull`] of `most` yields.
    pub(super) fn pullable(&self, most: usize) -> usize {
        self.outbox_bytes.min(most)
    }

    /// Drops what was not written; returns how much that was.
    pub(super) fn drop_outbox(&mut self) -> usize {
        self.outbox = VecDeque::new();
        std::mem::take(&mut self.outbox_bytes)
    }

    /// Becomes bulk now.
    pub(super) fn turns_bulk(&mut self) -> bool {
        !self.bulk && self.moved > BULK && {
            self.bulk = true;
            true
        }
    }

    /// The client has sent all; when to look whether the pod may be told.
    pub(super) fn withhold(&mut self) -> Instant {
        let answered = self.received && !self.asked;
        self.local = Local::Withheld { answered };
        self.activity + self.withhold_for(answered)
    }

    /// How long without activity the client's end is withheld.
    pub(super) fn withhold_for(&self, answered: bool) -> Duration {
        if answered {
            WITHHOLD_ANSWERED
        } else if self.received || self.asked {
            if self.permit.as_ref().is_some_and(Permit::is_pressed) {
                WITHHOLD_PRESSURE
            } else {
                WITHHOLD_IDLE
            }
        } else {
            // Never a byte in either direction: a check whether the port is open, or a client that waits for a greeting.
            WITHHOLD_PRESSURE
        }
    }

    /// When the pod has been silent for `hold`. While the session is not read the silence is ours; and what the pod goes on
    /// saying to a client that is gone is no reason to wait.
    pub(super) fn silent_at(&self, now: Instant, paused: bool, hold: Duration) -> Instant {
        let silent = if paused { now } else { self.activity } + hold;
        self.gone.map_or(silent, |gone| silent.min(gone + hold.max(WITHHOLD_PRESSURE)))
    }

    pub(super) fn await_bytes(&mut self, cx: &Context<'_>) {
        self.wants_bytes = true;
        self.keep(cx);
    }

    pub(super) fn await_room(&mut self, cx: &Context<'_>) {
        self.wants_room = true;
        self.keep(cx);
    }

    fn keep(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waker = Some(cx.waker().clone()),
        }
    }

    /// Bytes or an end came.
    pub(super) fn wake_reader(&mut self, wakers: &mut Vec<Waker>) {
        if std::mem::take(&mut self.wants_bytes) {
            self.wake(wakers);
        }
    }

    /// Room in the outbox, or an end.
    pub(super) fn wake_writer(&mut self, wakers: &mut Vec<Waker>) {
        if std::mem::take(&mut self.wants_room) {
            self.wake(wakers);
        }
    }

    fn wake(&mut self, wakers: &mut Vec<Waker>) {
        // One task waits for both: woken once, it looks at both.
        (self.wants_bytes, self.wants_room) = (false, false);
        wakers.extend(self.waker.take());
    }

    /// Whether anything waits to be written.
    pub(super) fn has_output(&self) -> bool {
        self.outbox.iter().any(Buf::has_remaining)
    }
}
