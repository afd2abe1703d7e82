//! The process's share of memory for bytes that slow clients have not taken yet, and who is cut off first when it is gone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::time::Instant;

use super::limits::PROCESS_BUDGET;

/// Received bytes of all sessions that wait for their clients.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    used: AtomicUsize,
    stalled: Mutex<HashMap<u64, Stall>>,
}

/// A session that is not read.
#[derive(Debug)]
struct Stall {
    /// Since when its slowest client has taken nothing.
    since: Instant,
    /// Its driver, until it is woken.
    waker: Option<Waker>,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(PROCESS_BUDGET)
    }
}

impl Budget {
    /// A budget of `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, used: AtomicUsize::new(0), stalled: Mutex::default() }
    }

    /// Nothing is left.
    pub(crate) fn is_gone(&self) -> bool {
        self.used.load(Ordering::Relaxed) >= self.limit
    }

    /// Bytes in use.
    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn take(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives bytes back; wakes the waiting sessions when there is room again.
    pub(super) fn give(&self, bytes: usize) {
        let before = self.used.fetch_sub(bytes, Ordering::Relaxed);
        if before >= self.limit && before - bytes < self.limit {
            self.wake();
        }
    }

    /// A session stopped reading; its slowest client has taken nothing since then. `waker` is called when it may matter.
    pub(super) fn wait(&self, session: u64, since: Instant, waker: &Waker) {
        self.lock().insert(session, Stall { since, waker: Some(waker.clone()) });
    }

    /// A session reads again, or is no more.
    pub(super) fn leave(&self, session: u64) {
        self.lock().remove(&session);
    }

    /// Nobody has been stalled for longer than this session.
    pub(super) fn is_oldest(&self, session: u64) -> bool {
        let stalled = self.lock();
        let own = stalled.get(&session);
        own.is_some_and(|own| stalled.values().all(|other| own.since <= other.since))
    }

    /// Lets every waiting session look again.
    pub(super) fn wake(&self) {
        let waiting: Vec<Waker> = self.lock().values_mut().filter_map(|stall| stall.waker.take()).collect();
        for waker in waiting {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Stall>> {
        self.stalled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
