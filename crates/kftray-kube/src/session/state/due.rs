//! What time brings: withheld ends, PINGs and their deadlines, and who is cut off when budgets are gone.

use std::task::Waker;
use std::time::Duration;

use kftray_commons::{Code, Problem};
use kftray_portforward::ports::{ChannelError, Delivery};
use kftray_spdy::connection::PairId;
use tokio::time::Instant;

use super::State;
use crate::session::limits::{
    AFTER_FINISH, IDLE_CLOSE, NEIGHBOUR_LIMIT, OPEN_ANSWER, SESSION_BUDGET, STALL_LIMIT, STARVING_SESSION,
};
use crate::session::liveness::Verdict;
use crate::session::stream::Local;

impl State {
    /// Whether the carrier must not be read now.
    pub(super) fn must_pause(&self) -> bool {
        let resumed_at = |limit: usize| if self.paused.is_some() { limit / 2 } else { limit };
        // Nobody else lives here who would suffer.
        (self.over > 0 && self.over == self.streams.len())
            || self.received >= resumed_at(SESSION_BUDGET)
            || (self.budget.is_gone() && self.received >= STARVING_SESSION)
    }

    /// Decides whether the carrier is read. True if it is.
    pub(in crate::session) fn reads(&mut self, now: Instant, driver: &Waker) -> bool {
        match (self.must_pause(), self.paused) {
            (true, paused) => {
                if paused.is_none() {
                    self.paused = Some(now);
                    for stream in self.streams.values_mut() {
                        stream.starved = stream.awaits_answer() && !stream.over;
                    }
                }
                self.budget.wait(self.number, self.longest_stall(now), driver);
                false
            }
            (false, Some(_)) => {
                self.paused = None;
                self.budget.leave(self.number);
                self.life.deaf(now);
                for stream in self.streams.values_mut() {
                    stream.starved = false;
                    // What the pod could not say meanwhile is still on its way.
                    stream.activity = now;
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
    pub(in crate::session) fn tick(&mut self, now: Instant, backlog: bool) {
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
        let paused = self.paused.is_some();
        let Some(stream) = self.streams.get_mut(&pair) else { return };
        stream.timer = None;
        if paused && now >= stream.answer_due {
            // While nothing is read the answer may lie there.
            stream.answer_due = now + OPEN_ANSWER;
        }
        match stream.local {
            _ if stream.remote_ended => self.conclude(pair),
            // Whether its client has ended meanwhile or not.
            _ if stream.is_unanswered() && now >= stream.answer_due => {
                let message = format!(
                    "pod {} did not answer the opening of a connection to port {} within {} s",
                    self.pod,
                    stream.port,
                    OPEN_ANSWER.as_secs()
                );
                let problem = Problem::new(Code::ConnectionLost, message);
                self.break_stream(pair, ChannelError { problem, delivery: Delivery::Unknown });
            }
            Local::Open if stream.is_unanswered() => {
                let due = stream.answer_due;
                self.arm(pair, due);
            }
            Local::Open => {}
            Local::Withheld { answered } => {
                let due = stream.silent_at(now, paused, stream.withhold_for(answered));
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
                let due = stream.silent_at(now, paused, AFTER_FINISH);
                if due > now {
                    self.arm(pair, due);
                } else {
                    // No end in order: of an answer that was lost here nobody must take the rest for the whole.
                    let message = format!(
                        "pod {} did not end a connection to port {} within {} s of its client's end",
                        self.pod,
                        stream.port,
                        AFTER_FINISH.as_secs()
                    );
                    let problem = Problem::new(Code::ConnectionLost, message);
                    self.break_stream(pair, ChannelError { problem, delivery: Delivery::Unknown });
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
            "a download from port {port} of pod {} was cut off: its client took nothing while others waited",
            self.pod
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
        let limit = match (starved, exhausted) {
            (true, _) => NEIGHBOUR_LIMIT,
            (false, true) => STALL_LIMIT,
            (false, false) => return None,
        };
        let waiting = self.streams.values().filter(|stream| stream.inbox_bytes() > 0);
        let stalled = waiting.map(|stream| stream.taken).min()?;
        Some(stalled.max(since) + limit)
    }

    /// When to call [`Self::tick`] again if nothing happens before.
    pub(in crate::session) fn next_tick(&self) -> Option<Instant> {
        let main = if self.paused.is_some() { self.stall_due() } else { Some(self.life.next()) };
        let idle = self.streams.is_empty().then(|| self.idle_since + IDLE_CLOSE);
        let stream = self.timers.first().map(|(at, _)| *at);
        [main, idle, stream].into_iter().flatten().min()
    }

    /// Without streams for so long that it may be closed; asked again after the same time.
    pub(in crate::session) fn is_idle(&mut self, now: Instant) -> bool {
        let idle = self.streams.is_empty() && now >= self.idle_since + IDLE_CLOSE;
        if idle {
            self.idle_since = now;
        }
        idle
    }

    /// Calls at this time, or before if the opening is to be answered before.
    pub(super) fn arm(&mut self, pair: PairId, at: Instant) {
        let Some(stream) = self.streams.get_mut(&pair) else { return };
        let at = if stream.is_unanswered() { at.min(stream.answer_due) } else { at };
        if let Some(old) = stream.timer.replace(at) {
            self.timers.remove(&(old, pair));
        }
        self.timers.insert((at, pair));
    }

    pub(super) fn disarm(&mut self, pair: PairId) {
        if let Some(at) = self.streams.get_mut(&pair).and_then(|stream| stream.timer.take()) {
            self.timers.remove(&(at, pair));
        }
    }
}
