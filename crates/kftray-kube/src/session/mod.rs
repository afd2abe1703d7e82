//! One session: many forwarded connections (streams) over one upgraded connection (carrier) to a pod's runtime.
//!
//! * [`driver`]: the task that owns the carrier; reads and writes in one loop.
//! * [`state`]: what all share, behind one lock; no input or output, no clock.
//! * [`stream`]: one connection; [`channel`]: its owner's handle.
//! * [`liveness`]: is the other end still there; [`budget`]: how much may wait for slow clients.
//! * [`classify`]: what the runtime's error texts mean; [`wire`]: frames to bytes; [`limits`]: every number and its reason.
//! * [`legacy`]: the channel protocol, one connection for each carrier.
//!
//! What the protocol does not have decides the design: **no flow control** (a stalled reader stalls its session, so there
//! are budgets, quarantine and a session of their own for bulk streams), **no half-close** that the runtime would pass on
//! (so a client's end is withheld while an answer may come), and **no liveness** but PING (so it has a deadline).
//!
//! Withholding a client's end follows one rule more than the design: a client that ends after an answer, with nothing sent
//! since, has nearly always closed altogether; its end is passed on after a quarter of a second of silence. Withheld for
//! the full minute, a thousand short connections per second would pin sixty thousand threads on the node.

mod budget;
mod channel;
mod classify;
mod driver;
mod legacy;
mod limits;
mod liveness;
mod state;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod wire;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use kftray_commons::Problem;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

pub(crate) use budget::Budget;
pub(crate) use channel::SessionChannel;
pub(crate) use legacy::LegacyChannel;
pub(crate) use limits::{DOUBT_HEDGE, DOUBT_LIMIT};
pub(crate) use state::Placement;

use crate::connect::{Carrier, Protocol};
use crate::pool::Permit;
use driver::Driver;
use limits::{DOUBT_AFTER, PING_DEADLINE_MAX};
use state::State;

/// Who is told of a session's changes: the pool. Called from the session's own task, never with its lock held.
pub(crate) trait Observer: Send + Sync {
    /// Its placement has changed, or it is over.
    fn changed(&self);

    /// It has had no streams for a long time; may it close?
    fn may_close(&self, number: u64) -> bool;
}

/// A session. Dropping the last handle, channels included, closes the carrier.
pub(crate) struct Session {
    shared: Arc<Shared>,
    protocol: Protocol,
    _driver: AbortOnDropHandle<()>,
}

struct Shared {
    number: u64,
    state: Mutex<State>,
    lost: watch::Sender<Option<Problem>>,
    pongs: watch::Sender<u64>,
}

/// What the pool needs to know to choose.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) placement: Placement,
    /// Live streams.
    pub(crate) streams: usize,
}

/// Numbers for sessions, so that the pool can name them.
#[derive(Debug, Default)]
pub(crate) struct Numbers(AtomicU64);

impl Numbers {
    pub(crate) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

impl Session {
    /// Starts a session on a carrier that is not [`Protocol::Legacy`]. `pod` is `namespace/name`, for people.
    pub(crate) fn start(
        carrier: Carrier,
        number: u64,
        pod: Arc<str>,
        budget: Arc<Budget>,
        observer: Weak<dyn Observer>,
    ) -> Arc<Self> {
        let shared = Arc::new(Shared {
            number,
            state: Mutex::new(State::new(Instant::now(), number, pod, budget)),
            lost: watch::Sender::new(None),
            pongs: watch::Sender::new(0),
        });
        let websocket = carrier.protocol == Protocol::WebSocketTunnel;
        let driver = Driver::new(Arc::clone(&shared), observer, carrier.io, websocket);
        let driver = AbortOnDropHandle::new(tokio::runtime::Handle::current().spawn(driver));
        Arc::new(Self { shared, protocol: carrier.protocol, _driver: driver })
    }

    /// What carries it.
    pub(crate) fn protocol(&self) -> Protocol {
        self.protocol
    }

    pub(crate) fn number(&self) -> u64 {
        self.shared.number
    }

    pub(crate) fn load(&self) -> Load {
        let state = self.shared.lock();
        Load { placement: state.placement(), streams: state.active() }
    }

    /// Opens a connection to a port of the pod. `first` goes out in the same write, unless the session has been silent for
    /// a while: then only once it is heard, see [`SessionChannel::heard`].
    ///
    /// # Errors
    /// `None`: the session takes no more streams. Nothing was written.
    pub(crate) fn open(
        self: &Arc<Self>,
        port: u16,
        first: Bytes,
        permit: Option<Permit>,
    ) -> Option<SessionChannel> {
        let opened = self.shared.with(|state| state.open(Instant::now(), port, first, permit));
        match opened {
            Ok(pair) => Some(SessionChannel::new(Arc::clone(self), pair)),
            Err((state::Closed, mut permit)) => {
                if let Some(permit) = &mut permit {
                    permit.remote_ended();
                }
                None
            }
        }
    }

    /// Waits until the session has proved that it lives, and returns the round trip. What it said up to `doubted` is no proof.
    ///
    /// # Errors
    /// Why it is lost.
    pub(crate) async fn prove(&self, doubted: Option<Instant>) -> Result<Duration, Problem> {
        let mut pongs = self.shared.pongs.subscribe();
        let mut lost = self.shared.lost.subscribe();
        let fresh = self.shared.with(|state| {
            let now = Instant::now();
            let heard = state.life.last_heard();
            let trusted = now < heard + DOUBT_AFTER && doubted.is_none_or(|doubted| heard > doubted);
            if let Some(rtt) = state.life.rtt().filter(|_| trusted) {
                return Some(rtt);
            }
            pongs.mark_unchanged();
            state.challenge(now, false);
            None
        });
        if let Some(rtt) = fresh {
            return Ok(rtt);
        }
        let answered = tokio::select! {
            biased;
            problem = reason(&mut lost) => Err(problem),
            answered = pongs.changed() => Ok(answered.is_ok()),
            // Not judged while it is not read or blocked: then it lives, and the last round trip has to do.
            () = tokio::time::sleep(PING_DEADLINE_MAX) => Ok(false),
        };
        answered?;
        Ok(self.shared.lock().life.rtt().unwrap_or_default())
    }

    /// Resolves when the session is lost.
    pub(crate) fn lost(&self) -> impl Future<Output = Problem> + Send + use<> {
        let mut lost = self.shared.lost.subscribe();
        async move { reason(&mut lost).await }
    }

    /// Silence where an answer was due.
    pub(crate) fn suspect(&self) {
        self.shared.with(|state| state.suspect(Instant::now()));
    }

    /// The network has changed: answer soon or be replaced.
    pub(crate) fn challenge(&self) {
        self.shared.with(|state| state.challenge(Instant::now(), true));
    }

    /// No new streams; live ones go on.
    pub(crate) fn retire(&self) {
        self.shared.with(State::retire);
    }

    /// The pod is gone, as an error text said.
    pub(crate) fn pod_gone(&self) -> Option<Problem> {
        self.shared.lock().pod_gone.clone()
    }

    /// The larger of `floor` and `factor` round trips.
    pub(crate) fn patience(&self, floor: Duration, factor: u32) -> Duration {
        self.shared.lock().life.scaled(floor, factor)
    }

    #[cfg(test)]
    fn entries(&self) -> usize {
        self.shared.lock().entries()
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("number", &self.shared.number)
            .field("load", &self.load())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works on the state and wakes the driver afterwards, if there is work for it.
    fn with<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        let (result, woken) = {
            let mut state = self.lock();
            (work(&mut state), state.woken.take())
        };
        if let Some(driver) = woken {
            driver.wake();
        }
        result
    }

    /// Publishes why the session is over, for those who hold it warm.
    fn end(&self, problem: &Problem) {
        self.lost.send_replace(Some(problem.clone()));
    }

    /// Closes for idleness, unless a stream was opened meanwhile.
    fn close_if_unused(&self, problem: Problem) -> Option<Problem> {
        let mut state = self.lock();
        if state.live() > 0 {
            return None;
        }
        state.lose(&problem);
        Some(problem)
    }
}

/// Resolves with the reason; never, if the session is dropped without one (its holders are gone then).
async fn reason(lost: &mut watch::Receiver<Option<Problem>>) -> Problem {
    match lost.wait_for(Option::is_some).await.map(|problem| problem.clone()) {
        Ok(Some(problem)) => problem,
        Ok(None) | Err(_) => std::future::pending().await,
    }
}
