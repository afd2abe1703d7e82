//! Is the other end still there? Pure: what was heard and written goes in with its time, verdicts come out.
//!
//! SPDY's PING is answered by the runtime's streaming server, so it tests every hop but the pod. The clients of Go send it
//! and ignore its absence; we give it a deadline.

use std::time::Duration;

use tokio::time::Instant;

use super::limits::{
    CONGESTED_LIMIT, LARGE_UPLOAD, OVERSLEPT, PING_DEADLINE, PING_DEADLINE_MAX, PING_DEADLINE_SUSPECT,
    PING_IDLE, PING_UNANSWERED,
};

/// What a moment means for the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing to do before [`Liveness::next`].
    Quiet,
    /// Send a PING and tell [`Liveness::pinged`].
    Ping,
    /// The PING is late behind a large upload: the server is blocked. Take no new streams, wait.
    Congested,
    /// The path is dead.
    Dead,
}

#[derive(Debug, Clone, Copy)]
struct Outstanding {
    id: u32,
    sent: Instant,
    deadline: Instant,
    /// Something came since it was sent: alive, however late the answer.
    heard: bool,
}

/// The liveness of one session.
#[derive(Debug)]
pub(super) struct Liveness {
    heard: Instant,
    /// First write since something was heard, PINGs apart.
    unanswered: Option<Instant>,
    unanswered_bytes: u64,
    ping: Option<Outstanding>,
    /// A PING is wanted now, and its answer within this time.
    wanted: Option<Duration>,
    congested_since: Option<Instant>,
    rtt: Option<Duration>,
}

impl Liveness {
    /// Right after the upgrade, whose answer counts as heard. A PING is wanted at once: it proves the inner hops.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            heard: now,
            unanswered: None,
            unanswered_bytes: 0,
            ping: None,
            wanted: Some(PING_DEADLINE),
            congested_since: None,
            rtt: None,
        }
    }

    /// Bytes came from the server.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.unanswered = None;
        self.unanswered_bytes = 0;
        self.congested_since = None;
        if let Some(ping) = &mut self.ping {
            ping.heard = true;
        }
    }

    /// Bytes went to the carrier.
    pub(super) fn wrote(&mut self, now: Instant, bytes: u64) {
        self.unanswered.get_or_insert(now);
        self.unanswered_bytes += bytes;
    }

    /// A PING was queued, as [`Verdict::Ping`] asked.
    pub(super) fn pinged(&mut self, now: Instant, id: u32) {
        let within = self.wanted.take().unwrap_or(PING_DEADLINE);
        let limit = self.scaled(within, 4).min(PING_DEADLINE_MAX);
        self.ping = Some(Outstanding { id, sent: now, deadline: now + limit, heard: false });
    }

    /// The answer to a PING. True if it was the one waited for.
    pub(super) fn ponged(&mut self, now: Instant, id: u32) -> bool {
        let Some(ping) = self.ping.filter(|ping| ping.id == id) else { return false };
        self.ping = None;
        let sample = now.saturating_duration_since(ping.sent);
        // Smoothed as TCP does it (RFC 6298), one eighth at a time.
        self.rtt = Some(self.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8));
        true
    }

    /// Ask now: somebody doubts the session. With `suspect` the answer has to come sooner.
    pub(super) fn doubt(&mut self, now: Instant, suspect: bool) {
        let within = if suspect { PING_DEADLINE_SUSPECT } else { PING_DEADLINE };
        let limit = self.scaled(within, 4).min(PING_DEADLINE_MAX);
        match &mut self.ping {
            None => self.wanted = Some(within),
            // One that is under way is good enough, but not for longer.
            Some(ping) if !ping.heard => ping.deadline = ping.deadline.min(now + limit),
            Some(_) => {
                self.ping = None;
                self.wanted = Some(within);
            }
        }
    }

    /// Nothing is read for a while because of the budgets: silence means nothing.
    pub(super) fn deaf(&mut self, now: Instant) {
        self.heard(now);
        self.ping = None;
        self.wanted = None;
    }

    /// What `now` means. `backlog`: bytes wait that the carrier does not take.
    pub(super) fn judge(&mut self, now: Instant, backlog: bool) -> Verdict {
        if self.congested_since.is_some_and(|since| now >= since + CONGESTED_LIMIT) {
            return Verdict::Dead;
        }
        if self.wanted.is_some() {
            return Verdict::Ping;
        }
        if let Some(ping) = self.ping {
            if now < ping.deadline || self.congested_since.is_some() {
                return Verdict::Quiet;
            }
            if ping.heard || now >= ping.deadline + OVERSLEPT {
                self.ping = None;
                self.wanted = Some(if ping.heard { PING_DEADLINE } else { PING_DEADLINE_SUSPECT });
                return Verdict::Ping;
            }
            if backlog || self.unanswered_bytes > LARGE_UPLOAD {
                self.congested_since = Some(now);
                return Verdict::Congested;
            }
            return Verdict::Dead;
        }
        if now >= self.ping_due() {
            self.wanted = Some(PING_DEADLINE);
            return Verdict::Ping;
        }
        Verdict::Quiet
    }

    /// When to ask [`Self::judge`] again if nothing happens before.
    pub(super) fn next(&self) -> Instant {
        match (self.congested_since, self.ping) {
            (Some(since), _) => since + CONGESTED_LIMIT,
            (None, Some(ping)) => ping.deadline,
            (None, None) => self.ping_due(),
        }
    }

    /// When something was last heard.
    pub(super) fn last_heard(&self) -> Instant {
        self.heard
    }

    /// The server is blocked behind a large upload.
    pub(super) fn is_congested(&self) -> bool {
        self.congested_since.is_some()
    }

    /// Smoothed round trip, once a PING was answered.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// The larger of `floor` and `factor` round trips.
    pub(super) fn scaled(&self, floor: Duration, factor: u32) -> Duration {
        self.rtt.map_or(floor, |rtt| floor.max(rtt * factor))
    }

    fn ping_due(&self) -> Instant {
        let idle = self.heard + PING_IDLE;
        self.unanswered.map_or(idle, |since| idle.min(since + PING_UNANSWERED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn answered(now: Instant, rtt: Duration) -> Liveness {
        let mut life = Liveness::new(now);
        assert_eq!(life.judge(now, false), Verdict::Ping);
        life.pinged(now, 1);
        life.heard(now + rtt);
        assert!(life.ponged(now + rtt, 1));
        life
    }

    #[test]
    fn idle_black_hole_is_found_below_fifteen_seconds() {
        let start = Instant::now();
        let mut life = answered(start, MS);
        let mut now = start + MS;
        let mut pings = 0;
        let found = loop {
            match life.judge(now, false) {
                Verdict::Dead => break now,
                Verdict::Ping => {
                    pings += 1;
                    life.pinged(now, 3);
                }
                Verdict::Quiet => now = life.next(),
                Verdict::Congested => panic!("nothing was uploaded"),
            }
        };
        assert_eq!(pings, 1);
        assert_eq!(found - start, MS + PING_IDLE + PING_DEADLINE);
        assert!(found - start < Duration::from_secs(15));
    }

    #[test]
    fn an_unanswered_write_is_asked_about_after_a_second() {
        let start = Instant::now();
        let mut life = answered(start, MS);
        life.wrote(start + 10 * MS, 100);
        assert_eq!(life.next(), start + 10 * MS + PING_UNANSWERED);
        life.heard(start + 20 * MS);
        assert_eq!(life.next(), start + 20 * MS + PING_IDLE);
    }

    #[test]
    fn late_behind_an_upload_is_congestion_until_it_speaks() {
        let start = Instant::now();
        let mut life = answered(start, MS);
        life.wrote(start, LARGE_UPLOAD + 1);
        let now = life.next();
        assert_eq!(life.judge(now, false), Verdict::Ping);
        life.pinged(now, 3);
        let late = life.next();
        assert_eq!(life.judge(late, false), Verdict::Congested);
        assert!(life.is_congested());
        assert_eq!(life.judge(late + PING_IDLE, false), Verdict::Quiet);
        life.heard(late + PING_IDLE);
        assert!(!life.is_congested());
        let forever = late + PING_IDLE + CONGESTED_LIMIT;
        assert_ne!(life.judge(forever, false), Verdict::Dead);
    }

    #[test]
    fn alive_if_anything_came_since_the_ping() {
        let start = Instant::now();
        let mut life = answered(start, MS);
        let now = life.next();
        assert_eq!(life.judge(now, false), Verdict::Ping);
        life.pinged(now, 3);
        life.heard(now + MS);
        assert_eq!(life.judge(life.next(), false), Verdict::Ping);
    }

    #[test]
    fn a_process_that_did_not_run_asks_again() {
        let start = Instant::now();
        let mut life = answered(start, MS);
        let now = life.next();
        assert_eq!(life.judge(now, false), Verdict::Ping);
        life.pinged(now, 3);
        let woken = now + Duration::from_secs(3600);
        assert_eq!(life.judge(woken, false), Verdict::Ping);
        life.pinged(woken, 5);
        assert_eq!(life.judge(woken + PING_DEADLINE_SUSPECT, false), Verdict::Dead);
    }

    #[test]
    fn doubt_shortens_what_is_under_way_and_long_paths_get_more() {
        let start = Instant::now();
        let mut life = answered(start, Duration::from_millis(800));
        let now = start + Duration::from_secs(2);
        life.doubt(now, true);
        assert_eq!(life.judge(now, false), Verdict::Ping);
        life.pinged(now, 3);
        assert_eq!(life.next(), now + Duration::from_millis(3200));
        life.doubt(now + MS, true);
        assert_eq!(life.next(), now + Duration::from_millis(3200));
        assert_eq!(life.rtt(), Some(Duration::from_millis(800)));
    }
}
