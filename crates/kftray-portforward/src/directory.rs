//! What a forward's connections and its supervisor share about the target: the endpoints, who is suspect, why there is
//! none, and a bell that rings when any of that changes for the better.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kftray_commons::{Code, Cure, Problem};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::choice::{Choice, Pick, SuspectKind};
use crate::config::Balance;
use crate::machine::Supply;
use crate::ports::{Endpoint, Resolution};

/// How long a connection waits where only a person can help the look-up. Whoever has just corrected a kubeconfig or logged
/// in connects at once, while files settle (`kftray-kube`: at most 600 ms) and the cluster is asked again; nobody
/// corrects them in a shorter time than it takes to read what is wrong.
pub(crate) const MENDING: Duration = Duration::from_secs(2);

/// The target as known now.
#[derive(Debug)]
pub(crate) struct Directory {
    known: Mutex<Known>,
    /// Rings for connections that wait.
    bell: watch::Sender<u64>,
    /// The supervisor wants to hear of the next connection that gets a byte from a pod.
    proof_wanted: AtomicBool,
    /// connection --got a byte--> supervisor
    proof: Notify,
}

#[derive(Debug)]
struct Known {
    choice: Choice,
    /// Why no endpoint is usable, or what the resolver has trouble with.
    why: Option<Problem>,
    /// It cannot be looked up, and [`Self::why`] is for a person.
    needs_user: bool,
    /// Nothing has been told to the machine since the resolver last failed or started anew.
    fresh: bool,
    pinned: Option<Arc<str>>,
    /// Where the transport leads that was last asked for.
    chosen: Option<Endpoint>,
}

impl Directory {
    pub(crate) fn new(balance: Balance) -> Self {
        let pinned = match &balance {
            Balance::Pin(pod) => Some(Arc::clone(pod)),
            Balance::RoundRobin | Balance::Sticky => None,
        };
        let choice = Choice::new(balance);
        let known = Known { choice, why: None, needs_user: false, fresh: true, pinned, chosen: None };
        Self {
            known: Mutex::new(known),
            bell: watch::Sender::new(0),
            proof_wanted: AtomicBool::new(false),
            proof: Notify::new(),
        }
    }

    /// Takes what the resolver says. Returns what the machine should hear of it: nothing if nothing has changed for it.
    pub(crate) fn update(&self, resolution: &Resolution) -> Option<Supply> {
        let supply = self.known().update(resolution);
        self.ring();
        supply
    }

    /// A receiver of the bell. Take it before [`Self::pick`], so that no ring is missed.
    pub(crate) fn bell(&self) -> watch::Receiver<u64> {
        self.bell.subscribe()
    }

    /// Chooses for a connection, never one of `except`.
    pub(crate) fn pick(&self, except: &[Endpoint]) -> Pick {
        let mut known = self.known();
        match (known.choice.pick(except, now()), &known.why) {
            (Pick::Wait(_), Some(why)) if known.needs_user => Pick::Mend(why.clone()),
            (pick, _) => pick,
        }
    }

    /// Chooses the endpoint to keep a transport to, and remembers it.
    pub(crate) fn choose_for_transport(&self) -> Option<Endpoint> {
        let mut known = self.known();
        known.chosen = known.choice.for_transport(now());
        known.chosen.clone()
    }

    /// Whether a ready endpoint is there.
    pub(crate) fn any_ready(&self) -> bool {
        self.known().choice.any_ready()
    }

    /// Why nothing is there to connect to, if known.
    pub(crate) fn why(&self) -> Option<Problem> {
        self.known().why.clone()
    }

    /// An endpoint has failed a connection or a transport.
    pub(crate) fn suspect(&self, endpoint: &Endpoint, kind: SuspectKind, problem: &Problem) {
        let is_refusal = self.known().choice.suspect(endpoint, kind, problem, now());
        if is_refusal {
            self.ring();
        }
    }

    /// Whether others wait for what becomes of a connection to an endpoint, see [`Self::stood`].
    pub(crate) fn is_on_trial(&self, endpoint: &Endpoint) -> bool {
        self.known().choice.is_on_trial(endpoint)
    }

    /// A connection to an endpoint, opened at that time, has stood for as long as a trial takes.
    pub(crate) fn stood(&self, endpoint: &Endpoint, opened: Instant) {
        let follow = self.known().choice.stood(endpoint, opened.into_std());
        if follow {
            self.ring();
        }
    }

    /// A connection has got its first byte from an endpoint.
    pub(crate) fn served(&self, endpoint: &Endpoint) {
        self.clear(endpoint);
        // The load keeps the word "no" cheap for the thousands of connections that prove nothing new.
        if self.proof_wanted.load(Relaxed) && self.proof_wanted.swap(false, Relaxed) {
            self.proof.notify_one();
        }
    }

    /// Asks for the next proof of life.
    pub(crate) fn want_proof(&self) {
        self.proof_wanted.store(true, Relaxed);
    }

    /// Waits for it.
    pub(crate) async fn proof(&self) {
        self.proof.notified().await;
    }

    /// An endpoint works.
    pub(crate) fn clear(&self, endpoint: &Endpoint) {
        let cleared = self.known().choice.clear(endpoint);
        if cleared {
            self.ring();
        }
    }

    /// What failed may work again.
    pub(crate) fn clear_all(&self) {
        self.known().choice.clear_all();
        self.ring();
    }

    fn ring(&self) {
        self.bell.send_modify(|rings| *rings = rings.wrapping_add(1));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // A panic while it was held leaves plain values behind.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn update(&mut self, resolution: &Resolution) -> Option<Supply> {
        self.needs_user =
            matches!(resolution, Resolution::Failed(problem) if problem.code.cure() == Cure::User);
        match resolution {
            Resolution::Pending => {
                self.choice.update(&[]);
                self.why = None;
                self.fresh = true;
                Some(Supply::Pending)
            }
            Resolution::Endpoints { endpoints, why_none } => {
                let changed = self.choice.update(endpoints);
                let ready = self.choice.any_ready();
                let why = if ready { None } else { why_none.clone().or_else(|| self.pinned_is_missing()) };
                let fresh = std::mem::take(&mut self.fresh);
                let news = fresh || changed || self.why != why;
                self.why = why;
                news.then(|| match ready {
                    true => Supply::Ready { chosen: self.chosen_is_ready() },
                    false => Supply::Empty(self.why.clone()),
                })
            }
            Resolution::Failed(problem) => {
                self.choice.update(&[]);
                self.why = Some(problem.clone());
                self.fresh = true;
                Some(Supply::Failed(problem.clone()))
            }
        }
    }

    fn chosen_is_ready(&self) -> bool {
        self.chosen.as_ref().is_some_and(|chosen| self.choice.is_ready(chosen))
    }

    fn pinned_is_missing(&self) -> Option<Problem> {
        let pod = self.pinned.as_ref()?;
        Some(Problem::new(Code::NoReadyPods, format!("the chosen pod {pod} is not ready")))
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::endpoint;
    use crate::ports::Condition::{self, NotReady, Ready};

    fn pods(pods: &[(&str, Condition)]) -> Resolution {
        let endpoints = pods.iter().map(|(pod, condition)| endpoint(pod, *condition)).collect();
        Resolution::Endpoints { endpoints, why_none: None }
    }

    fn failed(code: Code) -> Resolution {
        Resolution::Failed(Problem::new(code, "x"))
    }

    #[test]
    fn only_news_reach_the_machine() {
        let directory = Directory::new(Balance::RoundRobin);
        assert_eq!(directory.update(&Resolution::Pending), Some(Supply::Pending));
        assert_eq!(directory.update(&pods(&[("a", Ready)])), Some(Supply::Ready { chosen: false }));
        assert_eq!(directory.choose_for_transport(), Some(endpoint("a", Ready)));
        assert_eq!(directory.update(&pods(&[("a", Ready), ("b", NotReady)])), None);
        let grown = directory.update(&pods(&[("a", Ready), ("b", Ready)]));
        assert_eq!(grown, Some(Supply::Ready { chosen: true }));
        assert_eq!(directory.update(&pods(&[("b", Ready)])), Some(Supply::Ready { chosen: false }));
        assert_eq!(directory.update(&pods(&[("b", NotReady)])), Some(Supply::Empty(None)));
    }

    #[test]
    fn another_cluster_or_a_failed_look_up_voids_the_endpoints_and_their_return_is_news() {
        let directory = Directory::new(Balance::RoundRobin);
        let failures = [Code::Unauthorized, Code::TargetMissing, Code::ClusterUnreachable].map(failed);
        for news in [Resolution::Pending].into_iter().chain(failures) {
            assert!(directory.update(&pods(&[("a", Ready)])).is_some());
            assert!(directory.update(&news).is_some());
            let expected = match &news {
                Resolution::Failed(problem) if problem.code == Code::Unauthorized => {
                    Pick::Mend(problem.clone())
                }
                Resolution::Failed(_) | Resolution::Pending | Resolution::Endpoints { .. } => {
                    Pick::Wait(None)
                }
            };
            assert_eq!(directory.pick(&[]), expected, "{news:?}");
        }
    }

    #[test]
    fn a_missing_pinned_pod_is_the_reason() {
        let directory = Directory::new(Balance::Pin("b".into()));
        let supply = directory.update(&pods(&[("a", Ready)]));
        let Some(Supply::Empty(Some(why))) = supply else { panic!("{supply:?}") };
        assert!(why.message.contains('b'), "{}", why.message);
    }
}
