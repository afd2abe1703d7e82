//! Locks that survive a panic of their holder: a test that panics inside a handler must fail for its own reason, not for
//! a poisoned mutex somewhere else.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;

/// Locks, ignoring poison.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tasks that end with their owner.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    set: Mutex<JoinSet<()>>,
}

impl Tasks {
    /// Starts a task that is aborted when `self` is dropped.
    pub(crate) fn start(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut set = lock(&self.set);
        // Forget the finished ones, so that a long run does not collect them.
        while set.try_join_next().is_some() {}
        set.spawn(task);
    }

    /// Aborts all tasks at once.
    pub(crate) fn abort(&self) {
        lock(&self.set).abort_all();
    }

    /// Waits for all tasks, at most `limit`; then aborts what is left.
    pub(crate) async fn drain(&self, limit: Duration) {
        let mut set = std::mem::take(&mut *lock(&self.set));
        tokio::time::timeout(limit, async { while set.join_next().await.is_some() {} }).await.ok();
        set.shutdown().await;
    }
}
