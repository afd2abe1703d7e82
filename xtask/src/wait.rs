//! Waiting for other programs that offer no event to wait for (a socket that appears, a process that ends).

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two looks: short against everything waited for here (seconds), long against the cost of one look (a millisecond).
const INTERVAL: Duration = Duration::from_millis(50);

/// Looks again and again until `done` says yes; fails with `what` after `limit`.
pub(crate) fn until(what: &str, limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = now();
    while !done()? {
        if start.elapsed() > limit {
            bail!("{what}: not within {} s", limit.as_secs());
        }
        pause(INTERVAL);
    }
    Ok(())
}

/// The present moment.
#[expect(clippy::disallowed_methods, reason = "the border: this program measures real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "no event to wait for, no async worker to block")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
