//! The store on a thread of its own: SQLite blocks, and one writer at a time is what it does best.
//!
//! Jobs run one after another, so that what a job publishes comes in the order in which it was written.

use kftray_commons::store::{Directory, Store};
use kftray_commons::{Code, Problem};
use tokio::sync::{mpsc, oneshot};

/// Jobs that wait. A job takes milliseconds; who asks waits for room, and histories are dropped when there is none.
const QUEUE: usize = 256;

type Job = Box<dyn FnOnce(&mut Store) + Send>;

/// The way to the store. Cheap to clone; the thread ends with the last clone.
#[derive(Debug, Clone)]
pub(crate) struct Archive {
    /// host --Job--> store's thread
    jobs: mpsc::Sender<Job>,
}

impl Archive {
    /// Opens the store of a directory.
    ///
    /// # Errors
    /// What [`Store::open`] says.
    pub(crate) async fn open(directory: Directory) -> Result<Self, Problem> {
        let (jobs_tx, mut jobs_rx) = mpsc::channel::<Job>(QUEUE);
        let (opened_tx, opened_rx) = oneshot::channel();
        let work = move || {
            let mut store = match Store::open(&directory) {
                Ok(store) => store,
                Err(problem) => {
                    drop(opened_tx.send(Err(problem)));
                    return;
                }
            };
            drop(opened_tx.send(Ok(())));
            while let Some(job) = jobs_rx.blocking_recv() {
                job(&mut store);
            }
        };
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(work)
            .map_err(|error| Problem::new(Code::StoreFailed, format!("no thread for the store: {error}")))?;
        opened_rx.await.map_err(|_| gone())??;
        Ok(Self { jobs: jobs_tx })
    }

    /// Runs a job and waits for it. It runs to its end even if nobody waits any more.
    ///
    /// # Errors
    /// The job's own; `internal` if it panicked.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Store) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let (answer_tx, answer_rx) = oneshot::channel();
        let job: Job = Box::new(move |store| {
            // Who asked may be gone.
            drop(answer_tx.send(job(store)));
        });
        self.jobs.send(job).await.map_err(|_| gone())?;
        answer_rx.await.map_err(|_| gone())?
    }

    /// Runs a job some time soon, if there is room.
    pub(crate) fn soon(&self, job: impl FnOnce(&mut Store) + Send + 'static) {
        if self.jobs.try_send(Box::new(job)).is_err() {
            tracing::warn!("the store is busy: something less important was not written down");
        }
    }

    /// Waits until everything that was asked for is done.
    pub(crate) async fn flush(&self) {
        // It fails only without a thread, and then nothing is left to do.
        drop(self.call(|_| Ok(())).await);
    }
}

fn gone() -> Problem {
    Problem::new(Code::Internal, "the store's thread has ended by a fault of this program")
}
