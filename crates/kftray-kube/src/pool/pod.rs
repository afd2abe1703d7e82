//! The sessions of one pod: which one a new connection gets, when another is opened, when the pod is given up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use kftray_commons::{Code, Problem};
use kftray_portforward::ports::{ClusterId, Delivery, DialError, Endpoint};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::upgrade::Upgrade;
use crate::session::{Budget, Load, Numbers, Observer, Placement, Session};

/// Sessions per pod that are opened to spread load: while there are fewer, a new connection that finds all in use has one
/// opened for itself. The protocol has no flow control, so a client that does not read holds up what shares its
/// session: most connections should share with nobody. Each session costs the API server, the kubelet and the runtime some
/// 70 KiB and a dozen goroutines, and more than a handful gain nothing in throughput.
const SPREAD: usize = 8;
/// Sessions per pod, those included that are held up by clients who do not read. Beyond it connections are refused.
const MOST: usize = 32;
/// How long a new connection waits for a session of its own while there are fewer than [`SPREAD`] and all are in use: three
/// round trips to a cluster of the same region. Further away it shares one at first, and most such neighbours are short.
const ALONE: Duration = Duration::from_millis(100);
/// How long no further session is opened for those that can share one, after one could not be opened.
const REST: Duration = Duration::from_secs(5);

/// Rounds of choosing before giving up: others may take what was opened, up to [`SPREAD`] times.
const ROUNDS: usize = 2 * SPREAD;

/// A pod of a cluster; the uid tells a StatefulSet's successor from its predecessor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct PodKey {
    pub(super) cluster: ClusterId,
    pub(super) namespace: Arc<str>,
    pub(super) pod: Arc<str>,
    pub(super) uid: Arc<str>,
}

impl From<&Endpoint> for PodKey {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            cluster: endpoint.cluster,
            namespace: Arc::clone(&endpoint.namespace),
            pod: Arc::clone(&endpoint.pod),
            uid: Arc::clone(&endpoint.uid),
        }
    }
}

/// What all pods share.
pub(super) struct Tools {
    pub(super) upgrade: Arc<dyn Upgrade>,
    pub(super) budget: Arc<Budget>,
    pub(super) numbers: Numbers,
}

/// Called when a pod has nothing left that is worth remembering.
pub(super) type Forget = Box<dyn Fn(&PodKey, &Weak<Pod>) + Send + Sync>;

/// One pod.
pub(super) struct Pod {
    me: Weak<Pod>,
    key: PodKey,
    /// `namespace/name`, for people.
    pub(super) name: Arc<str>,
    endpoint: Endpoint,
    tools: Arc<Tools>,
    forget: Forget,
    state: Mutex<State>,
    /// Why the pod is given up, or its legacy connections fail.
    trouble: watch::Sender<Option<Problem>>,
}

#[derive(Default)]
struct State {
    sessions: Vec<Arc<Session>>,
    opening: Option<Opening>,
    /// By session: how many hold it warm.
    warm: HashMap<u64, usize>,
    /// When a session was last found to be over. Resets come in company, so that the others have to prove themselves anew.
    lost: Option<Instant>,
    /// When a session could not be opened, unless one could since.
    failed: Option<Instant>,
    gone: bool,
}

/// A session being opened, once for all who wait.
struct Opening {
    number: u64,
    result: watch::Receiver<Option<Result<Transport, DialError>>>,
    _task: AbortOnDropHandle<()>,
}

/// What a pod can be reached by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Sessions,
    Legacy,
}

/// A session for a new connection.
#[derive(Debug)]
pub(super) enum Found {
    Session(Arc<Session>),
    Legacy,
}

enum Choice {
    Take(Arc<Session>),
    /// Wait for a new one; if that fails, this one.
    Open(Option<Arc<Session>>),
    /// Wait a little for a new one; if that takes long or fails, this one.
    Share(Arc<Session>),
    Refuse,
}

impl Pod {
    pub(super) fn new(endpoint: &Endpoint, tools: Arc<Tools>, forget: Forget) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            key: PodKey::from(endpoint),
            name: format!("{}/{}", endpoint.namespace, endpoint.pod).into(),
            endpoint: endpoint.clone(),
            tools,
            forget,
            state: Mutex::default(),
            trouble: watch::Sender::new(None),
        })
    }

    /// A session for a new connection, but not one of `avoid`; opens one if need be.
    pub(super) async fn session(&self, avoid: &[u64]) -> Result<Found, DialError> {
        let patience = Instant::now() + ALONE;
        for _ in 0..ROUNDS {
            let (mut result, fallback, hurry) = {
                let mut state = self.lock();
                match Self::choose(&mut state, avoid) {
                    Choice::Take(session) => return Ok(Found::Session(session)),
                    Choice::Open(fallback) => (self.open(&mut state), fallback, false),
                    Choice::Share(session) => (self.open(&mut state), Some(session), true),
                    Choice::Refuse => return Err(self.crowded()),
                }
            };
            let opened = async { result.wait_for(Option::is_some).await.map(|opened| opened.clone()) };
            let opened = if hurry { timeout_at(patience, opened).await } else { Ok(opened.await) };
            let opened = match (opened, &fallback) {
                (Ok(Ok(opened)), _) => opened,
                (Err(_), Some(session)) => return Ok(Found::Session(Arc::clone(session))),
                // The opening was abandoned (network change): choose again.
                (Ok(Err(_)) | Err(_), _) => continue,
            };
            match (opened, fallback) {
                (Some(Ok(Transport::Legacy)), _) => return Ok(Found::Legacy),
                (Some(Err(_)), Some(session)) => return Ok(Found::Session(session)),
                (Some(Err(error)), None) => return Err(error),
                (Some(Ok(Transport::Sessions)) | None, _) => {}
            }
        }
        let message = format!("no connection to pod {} stays up", self.name);
        Err(DialError { problem: Problem::new(Code::ConnectionLost, message), delivery: Delivery::Nothing })
    }

    fn choose(state: &mut State, avoid: &[u64]) -> Choice {
        drop(state.prune());
        let loads: Vec<(Load, &Arc<Session>)> = state
            .sessions
            .iter()
            .filter(|session| !avoid.contains(&session.number()))
            .map(|session| (session.load(), session))
            .collect();
        let emptiest = |placement| {
            let fitting = loads.iter().filter(|(load, _)| load.placement == placement);
            fitting
                .min_by_key(|(load, session)| (load.streams, session.number()))
                .map(|(load, s)| (*load, Arc::clone(s)))
        };
        let free = emptiest(Placement::Free);
        let bulk = emptiest(Placement::Bulk).map(|(_, session)| session);
        let count = state.sessions.len();
        let may_open = count < SPREAD && !state.rests();
        match (free, bulk) {
            (Some((load, session)), _) if load.streams > 0 && may_open => Choice::Share(session),
            (Some((_, session)), _) => Choice::Take(session),
            (None, bulk) if count < SPREAD => Choice::Open(bulk),
            (None, Some(bulk)) => Choice::Take(bulk),
            (None, None) if count < MOST => Choice::Open(None),
            (None, None) => Choice::Refuse,
        }
    }

    /// Opens a session in the background, unless one is being opened already.
    fn open(&self, state: &mut State) -> watch::Receiver<Option<Result<Transport, DialError>>> {
        if let Some(opening) = &state.opening {
            return opening.result.clone();
        }
        let number = self.tools.numbers.next();
        let (sender, result) = watch::channel(None);
        let upgraded = self.tools.upgrade.session(&self.endpoint);
        let pod = self.me.clone();
        let task = tokio::runtime::Handle::current().spawn(async move {
            let carrier = upgraded.await;
            let Some(pod) = pod.upgrade() else { return };
            let opened = {
                let mut state = pod.lock();
                state.opening.take_if(|opening| opening.number == number);
                state.failed = carrier.is_err().then(Instant::now);
                match carrier {
                    Ok(Some(carrier)) => {
                        let observer: Weak<dyn Observer> = pod.me.clone();
                        let (name, budget) = (Arc::clone(&pod.name), Arc::clone(&pod.tools.budget));
                        state.sessions.push(Session::start(carrier, number, name, budget, observer));
                        Ok(Transport::Sessions)
                    }
                    Ok(None) => Ok(Transport::Legacy),
                    Err(error) => Err(error),
                }
            };
            sender.send_replace(Some(opened));
            pod.forget_if_unused();
        });
        let task = AbortOnDropHandle::new(task);
        state.opening = Some(Opening { number, result: result.clone(), _task: task });
        result
    }

    /// Makes sure that another session than this one can be had soon.
    pub(super) fn hedge(&self, number: u64) {
        let mut state = self.lock();
        if let Choice::Open(_) | Choice::Share(_) = Self::choose(&mut state, &[number]) {
            self.open(&mut state);
        }
    }

    /// The network has changed: sessions must prove themselves, what is being dialled is dialled anew.
    pub(super) fn network_changed(&self) {
        let (sessions, abandoned) = {
            let mut state = self.lock();
            (state.sessions.clone(), state.opening.take())
        };
        for session in sessions {
            session.challenge();
        }
        drop(abandoned);
    }

    /// A legacy connection could not be opened.
    pub(super) fn legacy_failed(&self, problem: &Problem) {
        self.trouble.send_replace(Some(problem.clone()));
    }

    /// When a session was last found to be over.
    pub(super) fn lost_at(&self) -> Option<Instant> {
        self.lock().lost
    }

    /// Resolves when the pod is given up.
    pub(super) fn trouble(&self) -> impl Future<Output = Problem> + Send + use<> {
        let mut trouble = self.trouble.subscribe();
        trouble.mark_unchanged();
        async move {
            loop {
                if trouble.changed().await.is_err() {
                    return std::future::pending().await;
                }
                let problem = trouble.borrow_and_update().clone();
                if let Some(problem) = problem {
                    return problem;
                }
            }
        }
    }

    /// Holds a session warm until the guard is dropped.
    pub(super) fn keep(self: &Arc<Self>, number: u64) -> Kept {
        *self.lock().warm.entry(number).or_default() += 1;
        Kept { pod: Arc::clone(self), number }
    }

    fn forget_if_unused(&self) {
        let unused = {
            let mut state = self.lock();
            drop(state.prune());
            state.gone || (state.sessions.is_empty() && state.opening.is_none() && state.warm.is_empty())
        };
        if unused {
            (self.forget)(&self.key, &self.me);
        }
    }

    fn crowded(&self) -> DialError {
        let message = format!(
            "all {MOST} connections to pod {} are held up by downloads that their clients do not read",
            self.name
        );
        let problem = Problem::new(Code::Overloaded, message)
            .with_remedy("Read those downloads to the end or close them.");
        DialError { problem, delivery: Delivery::Nothing }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sessions that take connections or may again.
    #[cfg(test)]
    pub(super) fn sessions(&self) -> Vec<Arc<Session>> {
        self.lock().sessions.clone()
    }
}

impl State {
    /// A further session has just been refused: a cluster that is asked for more than it can give is not asked for each
    /// connection that has a session to share.
    fn rests(&self) -> bool {
        self.failed.is_some_and(|failed| failed.elapsed() < REST)
    }

    /// Takes out the sessions that take no streams any more; their channels keep them while they live.
    fn prune(&mut self) -> Vec<Arc<Session>> {
        let is_over = |session: &mut Arc<Session>| session.load().placement == Placement::Closed;
        let over: Vec<_> = self.sessions.extract_if(.., is_over).collect();
        if !over.is_empty() {
            self.lost = Some(Instant::now());
        }
        over
    }
}

impl Observer for Pod {
    fn changed(&self) {
        let dropped = {
            let mut state = self.lock();
            if let Some(problem) = state.sessions.iter().find_map(|session| session.pod_gone()) {
                state.gone = true;
                self.trouble.send_replace(Some(problem));
                for session in &state.sessions {
                    session.retire();
                }
            }
            let loads: Vec<Load> = state.sessions.iter().map(|session| session.load()).collect();
            let in_use = loads.iter().any(|load| load.placement != Placement::Closed && load.streams > 0);
            let has_free = loads.iter().any(|load| load.placement == Placement::Free);
            let count = loads.iter().filter(|load| load.placement != Placement::Closed).count();
            // The last free session has turned bulk or is held up: the next connection shall not have to wait.
            if in_use && !has_free && count < SPREAD && !state.gone && !state.rests() {
                self.open(&mut state);
            }
            state.prune()
        };
        // The last handle of a session may be among them, and this may run in its own task.
        drop(dropped);
        self.forget_if_unused();
    }

    fn may_close(&self, number: u64) -> bool {
        !self.lock().warm.contains_key(&number)
    }
}

/// Keeps a session from being closed for idleness.
pub(super) struct Kept {
    pod: Arc<Pod>,
    number: u64,
}

impl Drop for Kept {
    fn drop(&mut self) {
        {
            let mut state = self.pod.lock();
            if let Some(count) = state.warm.get_mut(&self.number) {
                *count -= 1;
                if *count == 0 {
                    state.warm.remove(&self.number);
                }
            }
        }
        self.pod.forget_if_unused();
    }
}
