//! How long to wait before the next attempt.

use std::time::Duration;

/// First wait: long enough that a restarted API server is not hammered by all its clients, short enough that a person
/// does not notice.
const FIRST: Duration = Duration::from_secs(1);

/// Longest wait: a laptop that comes back without a wake-up signal is served again within half a minute.
pub(crate) const LONGEST: Duration = Duration::from_secs(30);

/// The wait after the given number of failures in a row (from 1), doubling from one second to thirty. `jitter` in 0..=1
/// takes up to half of it away, so that forwards that failed together do not come back together.
pub(crate) fn delay(failures: u32, jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(5);
    let full = (FIRST * (1 << doublings)).min(LONGEST);
    full.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_from_one_second_to_thirty() {
        let seconds: Vec<u64> = (1..=8).map(|failures| delay(failures, 0.0).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30, 30]);
    }

    #[test]
    fn jitter_takes_at_most_half() {
        assert_eq!(delay(3, 1.0), Duration::from_secs(2));
        assert_eq!(delay(3, 7.0), Duration::from_secs(2));
        assert_eq!(delay(u32::MAX, -1.0), LONGEST);
    }
}
