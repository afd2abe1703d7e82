//! The counters of one forward: written by many connections without locks on the byte path, read by faces.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kftray_commons::Counters;
use tokio::time::Instant;

/// How many of the last openings the percentiles cover: enough for a 99th percentile that is not one outlier, small
/// enough (2 KiB) for thousands of forwards.
const SAMPLES: usize = 512;

/// The running counters.
#[derive(Debug)]
pub(crate) struct Tally {
    started: Instant,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    connections: AtomicU64,
    open: AtomicU64,
    failed: AtomicU64,
    datagrams_up: AtomicU64,
    datagrams_down: AtomicU64,
    datagrams_dropped: AtomicU64,
    flows_refused: AtomicU64,
    /// Milliseconds from `started` to the last byte, plus one; 0 before the first.
    last_byte: AtomicU64,
    opening: Mutex<Samples>,
}

impl Tally {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            started: now,
            bytes_up: AtomicU64::new(0),
            bytes_down: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            open: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            datagrams_up: AtomicU64::new(0),
            datagrams_down: AtomicU64::new(0),
            datagrams_dropped: AtomicU64::new(0),
            flows_refused: AtomicU64::new(0),
            last_byte: AtomicU64::new(0),
            opening: Mutex::default(),
        }
    }

    /// Counts an accepted connection as open until the guard is dropped.
    pub(crate) fn accepted(&self) -> OpenGuard<'_> {
        self.connections.fetch_add(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
        OpenGuard(self)
    }

    pub(crate) fn failed(&self) {
        self.failed.fetch_add(1, Relaxed);
    }

    pub(crate) fn up(&self, bytes: usize, now: Instant) {
        self.bytes_up.fetch_add(bytes as u64, Relaxed);
        self.touch(now);
    }

    pub(crate) fn down(&self, bytes: usize, now: Instant) {
        self.bytes_down.fetch_add(bytes as u64, Relaxed);
        self.touch(now);
    }

    /// A datagram of a local peer was passed on.
    pub(crate) fn datagram_up(&self, bytes: usize, now: Instant) {
        self.datagrams_up.fetch_add(1, Relaxed);
        self.up(bytes, now);
    }

    /// A datagram was given to a local peer.
    pub(crate) fn datagram_down(&self, bytes: usize, now: Instant) {
        self.datagrams_down.fetch_add(1, Relaxed);
        self.down(bytes, now);
    }

    /// Datagrams were lost on this machine.
    pub(crate) fn dropped(&self, datagrams: u64) {
        if datagrams > 0 {
            self.datagrams_dropped.fetch_add(datagrams, Relaxed);
        }
    }

    pub(crate) fn flow_refused(&self) {
        self.flows_refused.fetch_add(1, Relaxed);
    }

    fn touch(&self, now: Instant) {
        self.last_byte.fetch_max(millis(now - self.started) + 1, Relaxed);
    }

    /// A connection's stream was open this long after its accept.
    pub(crate) fn opened(&self, after: Duration) {
        self.opening.lock().unwrap_or_else(PoisonError::into_inner).push(after);
    }

    pub(crate) fn read(&self, now: Instant) -> Counters {
        let [open_p50_us, open_p99_us] =
            self.opening.lock().unwrap_or_else(PoisonError::into_inner).percentiles([50, 99]);
        Counters { open_p50_us, open_p99_us, ..self.totals(now) }
    }

    /// All but the percentiles, which are 0: costs a few loads.
    pub(crate) fn totals(&self, now: Instant) -> Counters {
        let last = self.last_byte.load(Relaxed);
        Counters {
            bytes_up: self.bytes_up.load(Relaxed),
            bytes_down: self.bytes_down.load(Relaxed),
            connections: self.connections.load(Relaxed),
            open: self.open.load(Relaxed),
            failed: self.failed.load(Relaxed),
            open_p50_us: 0,
            open_p99_us: 0,
            idle_ms: last.checked_sub(1).map(|at| millis(now - self.started).saturating_sub(at)),
            datagrams_up: self.datagrams_up.load(Relaxed),
            datagrams_down: self.datagrams_down.load(Relaxed),
            datagrams_dropped: self.datagrams_dropped.load(Relaxed),
            flows_refused: self.flows_refused.load(Relaxed),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// One open connection, counted.
pub(crate) struct OpenGuard<'a>(&'a Tally);

impl Drop for OpenGuard<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// The last openings, as a ring of microseconds.
#[derive(Debug, Default)]
struct Samples {
    ring: Vec<u32>,
    next: usize,
}

impl Samples {
    fn push(&mut self, sample: Duration) {
        let micros = u32::try_from(sample.as_micros()).unwrap_or(u32::MAX);
        match self.ring.get_mut(self.next) {
            Some(slot) => *slot = micros,
            None => self.ring.push(micros),
        }
        self.next = (self.next + 1) % SAMPLES;
    }

    /// Nearest-rank percentiles; 0 without samples.
    fn percentiles<const N: usize>(&self, percents: [usize; N]) -> [u64; N] {
        let mut sorted = self.ring.clone();
        sorted.sort_unstable();
        percents.map(|percent| {
            let rank = (sorted.len() * percent).div_ceil(100).max(1);
            sorted.get(rank - 1).copied().map_or(0, u64::from)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn percentiles_cover_the_last_samples_only() {
        let tally = Tally::new(Instant::now());
        for _ in 0..SAMPLES {
            tally.opened(Duration::from_secs(9));
        }
        for micros in 1..=SAMPLES as u64 {
            tally.opened(Duration::from_micros(micros));
        }
        let read = tally.read(Instant::now());
        assert_eq!((read.open_p50_us, read.open_p99_us), (256, 507));
    }

    #[tokio::test(start_paused = true)]
    async fn idle_time_counts_from_the_last_byte() {
        let tally = Tally::new(Instant::now());
        assert_eq!(tally.read(Instant::now()).idle_ms, None);
        tokio::time::advance(Duration::from_millis(5)).await;
        tally.up(3, Instant::now());
        tokio::time::advance(Duration::from_millis(40)).await;
        let read = tally.read(Instant::now());
        assert_eq!((read.idle_ms, read.bytes_up, read.bytes_down), (Some(40), 3, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn open_connections_are_counted_while_their_guard_lives() {
        let tally = Tally::new(Instant::now());
        let guard = tally.accepted();
        assert_eq!(tally.read(Instant::now()).open, 1);
        drop(guard);
        let read = tally.read(Instant::now());
        assert_eq!((read.open, read.connections), (0, 1));
    }
}
