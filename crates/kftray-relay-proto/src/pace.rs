//! When gathered frames are handed on: at once while few streams use a carrier, every other millisecond while many do.
//!
//! Between client and relay each write is copied by the API server, the kubelet and the container runtime, which costs them
//! 30 to 60 us of processor time each, however many frames are in it. With dozens of connections at once that was half of
//! what a connection cost. A carrier of few streams never waits, so that the wait cannot bound what they move.

use std::time::{Duration, Instant};

use crate::hello::Purpose;

/// Follows the frames of one direction of a carrier and says when they are due.
#[derive(Debug)]
pub struct Pace {
    /// Whether frames may wait at all.
    gathers: bool,
    /// The stream of the frame before.
    stream: u32,
    /// How often another stream than before has written since `since`.
    turns: u32,
    since: Option<Instant>,
    /// Many streams write, or did so until lately.
    crowded_until: Option<Instant>,
    /// When frames were handed on last.
    flushed: Option<Instant>,
}

impl Pace {
    /// How far apart writes are on a crowded carrier.
    const INTERVAL: Duration = Duration::from_millis(2);

    /// Streams from which on a carrier can be crowded: so many move some 4,000 requests a second even if each waits in both
    /// directions.
    const MANY: usize = 16;
    /// So many turns within [`SPAN`](Self::SPAN) are a crowd: idle streams are none.
    const CROWD: u32 = 4;
    const SPAN: Duration = Duration::from_millis(1);
    /// Frames come in bursts: a crowd is one until nothing was seen of it for so long.
    const MEMORY: Duration = Duration::from_millis(10);

    /// For a carrier. Datagrams are never kept waiting.
    #[must_use]
    pub fn of(purpose: Purpose) -> Self {
        Self {
            gathers: purpose != Purpose::Udp,
            stream: 0,
            turns: 0,
            since: None,
            crowded_until: None,
            flushed: None,
        }
    }

    /// Takes note of a frame of a stream.
    pub fn frame(&mut self, stream: u32) {
        if stream != self.stream {
            self.stream = stream;
            self.turns = self.turns.saturating_add(1);
        }
    }

    /// When what was gathered is due, if not now, on a carrier with so many streams.
    #[must_use]
    pub fn due(&mut self, now: Instant, streams: usize) -> Option<Instant> {
        if self.turns >= Self::CROWD {
            self.crowded_until = Some(now + Self::MEMORY);
        }
        if self.since.is_none_or(|since| now >= since + Self::SPAN) {
            self.turns = 0;
            self.since = Some(now);
        }
        let crowded =
            self.gathers && streams >= Self::MANY && self.crowded_until.is_some_and(|until| now < until);
        self.flushed.map(|flushed| flushed + Self::INTERVAL).filter(|due| crowded && now < *due)
    }

    /// What was gathered has been handed on.
    pub fn flushed(&mut self, now: Instant) {
        self.flushed = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_micros(100);

    #[expect(clippy::disallowed_methods, reason = "an instant can be had from the clock only")]
    fn any_moment() -> Instant {
        Instant::now()
    }

    /// Lets `streams` write in turn, a frame every 100 us for 20 ms, and flushes when due; returns how many flushes there were.
    fn flushes(purpose: Purpose, streams: u32) -> u32 {
        let mut pace = Pace::of(purpose);
        let mut flushes = 0;
        let mut now = any_moment();
        for step in 0..200 {
            now += STEP;
            pace.frame(1 + step % streams);
            if pace.due(now, usize::try_from(streams).unwrap()).is_none() {
                pace.flushed(now);
                flushes += 1;
            }
        }
        flushes
    }

    #[test]
    fn few_streams_never_wait() {
        assert_eq!(flushes(Purpose::Tcp, 1), 200);
        assert_eq!(flushes(Purpose::Tcp, 15), 200);
    }

    #[test]
    fn datagrams_never_wait() {
        assert_eq!(flushes(Purpose::Udp, 50), 200);
    }

    #[test]
    fn many_streams_share_a_write() {
        let flushes = flushes(Purpose::Tcp, 50);
        assert!((10..=20).contains(&flushes), "{flushes}");
    }

    #[test]
    fn idle_streams_are_no_crowd_and_a_crowd_is_forgotten() {
        let mut pace = Pace::of(Purpose::Tcp);
        let mut now = any_moment();
        for stream in 1..=Pace::CROWD {
            pace.frame(stream);
        }
        assert_eq!(pace.due(now, Pace::MANY), None, "nothing was written lately");
        pace.flushed(now);
        pace.frame(1);
        assert_eq!(pace.due(now, Pace::MANY), Some(now + Pace::INTERVAL));
        assert_eq!(pace.due(now + Pace::INTERVAL, Pace::MANY), None);
        pace.flushed(now);
        now += Pace::MEMORY;
        for _ in 0..10 {
            pace.frame(1);
            assert_eq!(pace.due(now, 1_000), None);
            pace.flushed(now);
            now += STEP;
        }
    }
}
