//! Transports to pods, shared by all forwards: the engine's [`Dial`] over sessions.
//!
//! * [`upgrade`]: where carriers come from; [`pod`]: the sessions of one pod; [`governor`]: the limit per node.
//!
//! A connection is retried in here only while it certainly has delivered nothing: before its opening is written, or while
//! its bytes are withheld on a session that has fallen silent. Everything else is the engine's decision.

mod governor;
mod pod;
#[cfg(test)]
mod tests;
mod upgrade;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use kftray_commons::{Code, Problem};
use kftray_portforward::ports::{Channel, Delivery, Dial, DialError, Endpoint, Warm};
use tokio::time::Instant;

pub(crate) use governor::Permit;
pub(crate) use upgrade::Upgrade;

use crate::connect::Protocol;
use crate::session::{Budget, DOUBT_HEDGE, DOUBT_LIMIT, LegacyChannel, Numbers, Session, SessionChannel};
use governor::Governor;
use pod::{Found, Pod, PodKey, Tools};

/// Sessions tried for one connection before it fails: a stale one, its replacement, and one more that died meanwhile.
const ATTEMPTS: usize = 4;

/// All transports of the process. Clones share them; dropping the last closes those without connections.
#[derive(Clone)]
pub(crate) struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    tools: Arc<Tools>,
    governor: Governor,
    pods: Mutex<HashMap<PodKey, Arc<Pod>>>,
}

impl Pool {
    /// A pool that gets its carriers from `upgrade`. Its methods need a tokio runtime with time.
    #[must_use]
    pub(crate) fn new(upgrade: Arc<dyn Upgrade>) -> Self {
        let tools =
            Arc::new(Tools { upgrade, budget: Arc::new(Budget::default()), numbers: Numbers::default() });
        Self { inner: Arc::new(Inner { tools, governor: Governor::default(), pods: Mutex::default() }) }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("pods", &self.inner.lock().len()).finish_non_exhaustive()
    }
}

impl Inner {
    fn pod(self: &Arc<Self>, endpoint: &Endpoint) -> Arc<Pod> {
        let key = PodKey::from(endpoint);
        let mut pods = self.lock();
        if let Some(pod) = pods.get(&key) {
            return Arc::clone(pod);
        }
        let inner = Arc::downgrade(self);
        let forget = Box::new(move |key: &PodKey, pod: &Weak<Pod>| {
            let Some(inner) = inner.upgrade() else { return };
            let mut pods = inner.lock();
            let removed = match pods.get(key) {
                Some(known) if std::ptr::eq(Arc::as_ptr(known), pod.as_ptr()) => pods.remove(key),
                Some(_) | None => None,
            };
            drop(pods);
            drop(removed);
        });
        let pod = Pod::new(endpoint, Arc::clone(&self.tools), forget);
        pods.insert(key, Arc::clone(&pod));
        pod
    }

    async fn dial(
        &self,
        pod: Arc<Pod>,
        endpoint: Endpoint,
        first: Bytes,
    ) -> Result<Box<dyn Channel>, DialError> {
        let node = governor::node_of(&endpoint);
        let mut avoid = Vec::new();
        for _ in 0..ATTEMPTS {
            let session = match pod.session(&avoid).await? {
                Found::Session(session) => session,
                Found::Legacy => return self.dial_single(&pod, &endpoint, first).await,
            };
            let permit = self.governor.admit(&node).await.map_err(certain)?;
            let Some(channel) = session.open(endpoint.port, first.clone(), Some(permit)) else { continue };
            match listen(&pod, &session, channel).await {
                Ok(channel) => return Ok(Box::new(channel)),
                Err(Silent) => avoid.push(session.number()),
            }
        }
        let message = format!("no connection to pod {} stays up", pod.name);
        Err(certain(Problem::new(Code::ConnectionLost, message)))
    }

    /// One connection with a carrier of its own.
    async fn dial_single(
        &self,
        pod: &Pod,
        endpoint: &Endpoint,
        first: Bytes,
    ) -> Result<Box<dyn Channel>, DialError> {
        let node = governor::node_of(endpoint);
        let permit = self.governor.admit(&node).await.map_err(certain)?;
        let carrier = self
            .tools
            .upgrade
            .single(endpoint)
            .await
            .inspect_err(|error| pod.legacy_failed(&error.problem))?;
        let name = Arc::clone(&pod.name);
        let channel =
            LegacyChannel::new(carrier.io, name, endpoint.port, first, Some(permit)).map_err(certain)?;
        Ok(Box::new(channel))
    }

    async fn warm(pod: Arc<Pod>) -> Result<Warm, DialError> {
        let start = Instant::now();
        let mut problem = None;
        for _ in 0..ATTEMPTS {
            let gone = pod.trouble();
            let session = match pod.session(&[]).await? {
                Found::Session(session) => session,
                Found::Legacy => {
                    // Nothing can be kept open without dialling the application; that the API server answered has to do.
                    return Ok(Warm {
                        transport: Protocol::Legacy.as_str(),
                        rtt: start.elapsed(),
                        lost: gone.boxed(),
                    });
                }
            };
            let kept = pod.keep(session.number());
            match session.prove(pod.lost_at()).await {
                Ok(rtt) => {
                    let transport = session.protocol().as_str();
                    let lost = session.lost();
                    drop(session);
                    let lost = async move {
                        let _kept = kept;
                        tokio::select! {
                            biased;
                            problem = gone => problem,
                            problem = lost => problem,
                        }
                    };
                    return Ok(Warm { transport, rtt, lost: lost.boxed() });
                }
                Err(lost) => problem = Some(lost),
            }
        }
        let otherwise =
            || Problem::new(Code::ConnectionLost, format!("no connection to pod {} stays up", pod.name));
        Err(certain(problem.unwrap_or_else(otherwise)))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PodKey, Arc<Pod>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The session has not answered; what the connection wanted to say was withheld.
struct Silent;

/// Waits until the session of a new connection is known to be alive, which mostly it is. Meanwhile a replacement is dialled;
/// whichever answers first after the limit gets the connection.
async fn listen(pod: &Pod, session: &Session, channel: SessionChannel) -> Result<SessionChannel, Silent> {
    let heard = async { if channel.heard().await { Ok(()) } else { Err(Silent) } };
    let otherwise = async {
        let start = Instant::now();
        tokio::time::sleep(session.patience(DOUBT_HEDGE, 2)).await;
        pod.hedge(session.number());
        tokio::time::sleep_until(start + session.patience(DOUBT_LIMIT, 4)).await;
        session.suspect();
        // Success or not: the caller asks again, and gets the answer at once.
        if let Err(error) = pod.session(&[session.number()]).await {
            tracing::debug!(%error, "no replacement for a silent session");
        }
        Err(Silent)
    };
    tokio::select! {
        biased;
        result = heard => result?,
        result = otherwise => result?,
    }
    Ok(channel)
}

/// An error before anything was sent.
fn certain(problem: Problem) -> DialError {
    DialError { problem, delivery: Delivery::Nothing }
}

impl Dial for Pool {
    fn warm(&self, endpoint: &Endpoint) -> BoxFuture<'static, Result<Warm, DialError>> {
        let pod = self.inner.pod(endpoint);
        Inner::warm(pod).boxed()
    }

    fn dial(
        &self,
        endpoint: &Endpoint,
        first: Bytes,
    ) -> BoxFuture<'static, Result<Box<dyn Channel>, DialError>> {
        let (inner, pod, endpoint) = (Arc::clone(&self.inner), self.inner.pod(endpoint), endpoint.clone());
        async move { inner.dial(pod, endpoint, first).await }.boxed()
    }

    fn held_back(&self, endpoint: &Endpoint) -> BoxFuture<'static, ()> {
        self.inner.governor.held_back(&governor::node_of(endpoint)).boxed()
    }

    fn network_changed(&self) {
        let pods: Vec<Arc<Pod>> = self.inner.lock().values().cloned().collect();
        for pod in pods {
            pod.network_changed();
        }
    }
}
