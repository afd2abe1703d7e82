//! Work that goes on although the client who asked for it went away: half a restart helps nobody.

use std::sync::{Mutex, MutexGuard, PoisonError};

use kftray_commons::{Code, Problem};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// Tasks that end with this value at the latest.
#[derive(Debug, Default)]
pub(crate) struct Tasks(Mutex<JoinSet<()>>);

impl Tasks {
    /// Starts a task that nobody waits for.
    pub(crate) fn start(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(work);
    }

    /// Runs work to its end, whether or not the returned future is awaited to its own.
    ///
    /// # Errors
    /// `internal` if the work panicked, `host_ending` if the host ended meanwhile.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Problem> {
        let (done_tx, done_rx) = oneshot::channel();
        self.start(async move {
            // Nobody may be left to hear it.
            drop(done_tx.send(work.await));
        });
        done_rx.await.map_err(|_| Problem::new(Code::Internal, "the work ended by a fault of this program"))
    }

    /// Ends all tasks now.
    pub(crate) fn abort(&self) {
        self.tasks().abort_all();
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn work_goes_on_without_the_one_who_asked() {
        let tasks = Tasks::default();
        let (go_tx, go_rx) = oneshot::channel::<()>();
        let done = Arc::new(tokio::sync::Notify::new());
        let told = Arc::clone(&done);
        let asked = tasks.run(async move {
            drop(go_rx.await);
            told.notify_one();
        });
        drop(tokio::time::timeout(std::time::Duration::ZERO, asked).await);
        go_tx.send(()).expect("the work still waits");
        done.notified().await;
    }

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        let tasks = Tasks::default();
        let answer = tasks.run(async { panic!("on purpose") }).await;
        let answer: Result<(), _> = answer;
        assert_eq!(answer.expect_err("a panic").code, Code::Internal);
    }
}
