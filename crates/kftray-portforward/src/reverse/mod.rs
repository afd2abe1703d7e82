//! Expose: a local program made reachable in the cluster. One task owns the publication, its callers and its status.
//!
//! ```text
//! caller -> (Service, Ingress) -> relay == tunnel == publication --Inbound--> [this task] -> caller's task -> program
//! ```
//!
//! What is carried is bytes. Where it is HTTP/1, the heads of requests are looked at on the way ([`http`]): to tell the
//! program who calls, to turn callers away who may not call, and to tell people what is going on.

mod caller;
mod http;
mod local;
mod phase;
mod pump;

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use kftray_commons::Status;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, error, info};

use crate::config::ExposeConfig;
use crate::engine::Process;
use crate::forward::{About, StopSignal};
use crate::ports::{Inbound, Publication, PublicationState};
use phase::{Effect, Input, Phases};

/// Callers that are connected at the same time; further ones wait at the relay. More than the 200 that a page with its
/// pictures and a test run make, and each costs a local socket and up to about 300 KiB.
const CALLERS: usize = 1_000;

/// What all callers of an expose share.
pub(crate) struct Shared {
    pub(crate) about: Arc<About>,
    pub(crate) config: ExposeConfig,
    rules: http::Rules,
}

/// Runs an expose from its start to the end of its last caller.
pub(crate) async fn run(process: Arc<Process>, about: Arc<About>, config: ExposeConfig) {
    let open_for = config.offer.expose.access.expires_after.map(Duration::from_secs);
    let rules = http::Rules::of(&config.offer);
    let shared = Arc::new(Shared { about: Arc::clone(&about), config, rules });
    let mut expose = Expose {
        publication: None,
        phases: Phases::new(open_for, Instant::now().into_std()),
        callers: JoinSet::new(),
        permit: None,
        process,
        shared,
    };
    let mut stop = about.stop_signal();
    expose.run(&mut stop).await;
    about.publish(Status::Stopping);
    let drained = async { while expose.callers.join_next().await.is_some() {} };
    if timeout(stop.grace(), drained).await.is_err() {
        expose.callers.shutdown().await;
    }
    drop(expose.publication);
    about.publish_stopped();
}

struct Expose {
    process: Arc<Process>,
    shared: Arc<Shared>,
    /// `None` after its time is over.
    publication: Option<Box<dyn Publication>>,
    phases: Phases,
    callers: JoinSet<()>,
    /// For the next caller.
    permit: Option<OwnedSemaphorePermit>,
}

/// What woke the task.
enum Wake {
    Stop,
    CallerEnded,
    Retry,
    Network,
    State(PublicationState),
    Permit(OwnedSemaphorePermit),
    Inbound(Inbound),
    Deadline,
}

impl Expose {
    async fn run(&mut self, stop: &mut StopSignal) {
        let about = Arc::clone(&self.shared.about);
        let mut network = self.process.network.subscribe();
        let mut state = self.publish();
        about.publish(self.phases.status(now()));
        loop {
            let deadline = self.phases.deadline();
            let room = self.callers.len() < CALLERS;
            let wake = tokio::select! {
                biased;
                () = stop.stopped() => Wake::Stop,
                Some(ended) = self.callers.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        about.tally.failed();
                        error!(forward = about.name(), %error, "a caller's task panicked");
                    }
                    Wake::CallerEnded
                }
                () = about.retry.notified() => Wake::Retry,
                _ = network.changed() => Wake::Network,
                Ok(()) = state.changed() => Wake::State(state.borrow_and_update().clone()),
                Ok(permit) = Arc::clone(&self.process.open).acquire_owned(), if room && self.permit.is_none() => {
                    Wake::Permit(permit)
                }
                inbound = accept(&mut self.publication), if room && self.permit.is_some() => Wake::Inbound(inbound),
                () = sleep_until(deadline.map_or_else(Instant::now, Instant::from)), if deadline.is_some() => {
                    Wake::Deadline
                }
            };
            if matches!(wake, Wake::Stop) {
                return;
            }
            let Some(input) = self.take(wake) else { continue };
            match self.step(input) {
                None => {}
                Some(Effect::Publish) => state = self.publish(),
                Some(Effect::Retry) => {
                    if let Some(publication) = &mut self.publication {
                        publication.retry();
                    }
                }
                Some(Effect::Withdraw) => {
                    self.publication = None;
                    self.shared.about.set_urls(Vec::new(), Vec::new());
                    self.callers.shutdown().await;
                }
            }
        }
    }

    /// Does what needs no thought; returns what the phases have to hear.
    fn take(&mut self, wake: Wake) -> Option<Input> {
        match wake {
            Wake::Stop | Wake::CallerEnded => None,
            Wake::Permit(permit) => {
                self.permit = Some(permit);
                None
            }
            Wake::Inbound(inbound) => {
                let permit = self.permit.take()?;
                self.callers.spawn(caller::serve(Arc::clone(&self.shared), inbound, permit));
                None
            }
            Wake::State(news) => {
                self.told(&news);
                Some(Input::State(news))
            }
            Wake::Retry => Some(Input::Retry),
            Wake::Network => Some(Input::NetworkChanged),
            Wake::Deadline => Some(Input::Timer),
        }
    }

    fn publish(&mut self) -> tokio::sync::watch::Receiver<PublicationState> {
        let publication = self.process.dial.publish(&self.shared.config.offer);
        let mut state = publication.state();
        // What it says already is news, too.
        state.mark_changed();
        self.publication = Some(publication);
        state
    }

    fn told(&self, news: &PublicationState) {
        let about = &self.shared.about;
        match news {
            PublicationState::Up { urls, notes } => {
                info!(forward = about.name(), ?urls, "published");
                about.set_urls(urls.clone(), notes.clone());
            }
            PublicationState::Pending(_) | PublicationState::Failed(_) => {
                about.set_urls(Vec::new(), Vec::new());
            }
        }
    }

    fn step(&mut self, input: Input) -> Option<Effect> {
        let effect = self.phases.step(input, now(), rand::random());
        let status = self.phases.status(now());
        debug!(forward = self.shared.about.name(), status = status.name());
        self.shared.about.publish(status);
        effect
    }
}

async fn accept(publication: &mut Option<Box<dyn Publication>>) -> Inbound {
    match publication {
        Some(publication) => poll_fn(|cx| publication.poll_accept(cx)).await,
        None => std::future::pending().await,
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
