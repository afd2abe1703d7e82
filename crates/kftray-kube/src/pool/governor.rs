//! A limit per node on what we ask of its container runtime.
//!
//! containerd and CRI-O pin one OS thread for each forwarded connection, for its whole life and up to one second more
//! (they wait that long for the other direction after one has ended). Go aborts at 10,000 threads, and with the runtime
//! goes every `exec`, `logs` and probe of the node. So a fast client can kill a node, and this is never off.

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use kftray_commons::{Code, Problem};
use kftray_portforward::ports::{ClusterId, Endpoint};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// Live and lingering connections per node: a fifth of the threads at which Go aborts, since others use the node, too.
pub(super) const MAX_THREADS: usize = 2_000;
/// How long the runtime keeps a thread after we ended a connection.
const LINGER: Duration = Duration::from_secs(1);
/// New connections per second. The limit above is what protects the node: with the linger it allows fewer than this for
/// longer than a second. This one only flattens bursts, so that thread starts (30 us each) take at most a tenth of a core.
const RATE: f64 = 3_000.0;
/// Connections that may start at once: a browser, a load test's start, a pool that reconnects.
const BURST: f64 = 500.0;
/// How long a connection may wait for its turn. Clients give up connecting after 5 to 30 s.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// How long a connection waits before it counts as held back: longer than any burst takes to be flattened (the largest that
/// [`MAX_THREADS`] allows takes half a second), so that only a node that is full is told of.
const NOTICED: Duration = Duration::from_secs(1);
/// Shortest nap of the pacer: below it the timer's own resolution (1 ms) rules.
const MIN_NAP: Duration = Duration::from_millis(2);

/// A node of a cluster; unknown nodes of one cluster count as one.
pub(crate) type NodeKey = (ClusterId, Option<Arc<str>>);

/// Where an endpoint's connections count.
pub(super) fn node_of(endpoint: &Endpoint) -> NodeKey {
    (endpoint.cluster, endpoint.node.clone())
}

/// All nodes.
#[derive(Debug, Default)]
pub(crate) struct Governor {
    nodes: Mutex<HashMap<NodeKey, Arc<Node>>>,
}

#[derive(Debug)]
struct Node {
    state: Mutex<State>,
    /// A place came free while somebody waits.
    freed: Arc<Notify>,
    /// How many have waited for [`NOTICED`] and still wait.
    held_back: watch::Sender<usize>,
}

#[derive(Debug)]
struct State {
    live: usize,
    /// When each lingering thread is gone, in order.
    lingering: VecDeque<Instant>,
    tokens: f64,
    filled: Instant,
    waiters: VecDeque<oneshot::Sender<Permit>>,
    pacer: Option<AbortOnDropHandle<()>>,
}

/// The right to one connection on a node. Dropping it gives the place back: at once if the remote ended the connection
/// (the runtime has let go already), after the runtime's second otherwise.
#[derive(Debug)]
pub(crate) struct Permit {
    node: Arc<Node>,
    lingers: bool,
}

impl Governor {
    /// Waits for a place on the node, in order of arrival.
    ///
    /// # Errors
    /// [`Code::Overloaded`] after [`MAX_WAIT`].
    pub(crate) async fn admit(&self, key: &NodeKey) -> Result<Permit, Problem> {
        let node = self.node(key);
        let turn = {
            let mut state = node.lock();
            if state.waiters.is_empty() && state.admit(Instant::now()) {
                return Ok(Permit::new(&node));
            }
            let (turn, waiter) = oneshot::channel();
            state.waiters.push_back(turn);
            state.pacer.get_or_insert_with(|| pacer(&node));
            waiter
        };
        let mut turn = pin!(tokio::time::timeout(MAX_WAIT, turn));
        let turn = match tokio::time::timeout(NOTICED, &mut turn).await {
            Ok(turn) => turn,
            Err(_) => {
                let _counts = HeldBack::new(&node);
                turn.await
            }
        };
        match turn {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => {
                let name = key.1.as_deref().unwrap_or("of the pod");
                let message = format!(
                    "node {name} already serves {MAX_THREADS} forwarded connections, the most its runtime is asked for"
                );
                Err(Problem::new(Code::Overloaded, message))
            }
        }
    }

    /// Resolves when a connection to the node has waited for [`NOTICED`] and still waits.
    pub(crate) fn held_back(&self, key: &NodeKey) -> impl Future<Output = ()> + Send + use<> {
        let node = self.node(key);
        async move {
            // The sender lives in the node.
            drop(node.held_back.subscribe().wait_for(|count| *count > 0).await);
        }
    }

    fn node(&self, key: &NodeKey) -> Arc<Node> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = nodes.get(key) {
            return Arc::clone(node);
        }
        // A good moment to forget nodes that nobody uses: new ones are rare.
        nodes.retain(|_, node| Arc::strong_count(node) > 1 || !node.lock().is_idle(Instant::now()));
        let node = Arc::new(Node {
            state: Mutex::new(State::new(Instant::now())),
            freed: Arc::default(),
            held_back: watch::Sender::default(),
        });
        nodes.insert(key.clone(), Arc::clone(&node));
        node
    }

    /// Live and lingering connections of a node.
    #[cfg(test)]
    pub(crate) fn threads(&self, key: &NodeKey) -> usize {
        let node = self.node(key);
        let mut state = node.lock();
        state.expire(Instant::now());
        state.threads()
    }
}

impl Node {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(now: Instant) -> Self {
        Self {
            live: 0,
            lingering: VecDeque::new(),
            tokens: BURST,
            filled: now,
            waiters: VecDeque::new(),
            pacer: None,
        }
    }

    fn threads(&self) -> usize {
        self.live + self.lingering.len()
    }

    fn is_idle(&mut self, now: Instant) -> bool {
        self.expire(now);
        self.threads() == 0 && self.waiters.is_empty()
    }

    fn expire(&mut self, now: Instant) {
        while self.lingering.front().is_some_and(|gone| *gone <= now) {
            self.lingering.pop_front();
        }
    }

    fn admit(&mut self, now: Instant) -> bool {
        self.expire(now);
        self.tokens =
            (self.tokens + now.saturating_duration_since(self.filled).as_secs_f64() * RATE).min(BURST);
        self.filled = now;
        if self.threads() >= MAX_THREADS || self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        self.live += 1;
        true
    }

    /// When the first waiter may be admitted: a thread ends, or a token comes. `None` if only a release can help.
    fn next(&self) -> Option<Instant> {
        if self.threads() >= MAX_THREADS {
            return self.lingering.front().copied();
        }
        Some(self.filled + Duration::from_secs_f64((1.0 - self.tokens).max(0.0) / RATE))
    }
}

impl Permit {
    fn new(node: &Arc<Node>) -> Self {
        Self { node: Arc::clone(node), lingers: true }
    }

    /// The remote ended the connection: the runtime's thread is gone.
    pub(crate) fn remote_ended(&mut self) {
        self.lingers = false;
    }

    /// More than half of the node's places are taken.
    pub(crate) fn is_pressed(&self) -> bool {
        self.node.lock().threads() > MAX_THREADS / 2
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.node.lock();
        state.live = state.live.saturating_sub(1);
        if self.lingers {
            state.lingering.push_back(Instant::now() + LINGER);
        }
        if !state.waiters.is_empty() {
            self.node.freed.notify_one();
        }
    }
}

/// One connection that has waited for [`NOTICED`], as long as it waits.
struct HeldBack<'a>(&'a Node);

impl<'a> HeldBack<'a> {
    fn new(node: &'a Node) -> Self {
        node.held_back.send_modify(|count| *count += 1);
        Self(node)
    }
}

impl Drop for HeldBack<'_> {
    fn drop(&mut self) {
        self.0.held_back.send_modify(|count| *count -= 1);
    }
}

/// Admits waiters as places come free; ends when nobody waits.
fn pacer(node: &Arc<Node>) -> AbortOnDropHandle<()> {
    let (node, freed) = (Arc::downgrade(node), Arc::clone(&node.freed));
    AbortOnDropHandle::new(tokio::runtime::Handle::current().spawn(async move {
        while let Some(next) = pace(&node) {
            match next {
                Some(at) => drop(tokio::time::timeout_at(at, freed.notified()).await),
                None => freed.notified().await,
            }
        }
    }))
}

/// One round. `None` when nobody waits any more, else when the next is due (`None`: when a place comes free).
#[expect(clippy::option_option, reason = "both absences are said in the line above")]
fn pace(node: &Weak<Node>) -> Option<Option<Instant>> {
    let node = node.upgrade()?;
    let mut turns = Vec::new();
    let next = {
        let mut state = node.lock();
        let now = Instant::now();
        state.waiters.retain(|waiter| !waiter.is_closed());
        while !state.waiters.is_empty() && state.admit(now) {
            turns.extend(state.waiters.pop_front());
        }
        if state.waiters.is_empty() {
            state.pacer = None;
            None
        } else {
            Some(state.next().map(|at| at.max(now + MIN_NAP)))
        }
    };
    // Outside of the lock: a waiter that has left drops its permit right here.
    for turn in turns {
        if let Err(mut unused) = turn.send(Permit::new(&node)) {
            unused.remote_ended();
        }
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeKey {
        (ClusterId(1), Some("node".into()))
    }

    #[tokio::test(start_paused = true)]
    async fn ended_by_us_lingers_a_second_ended_by_the_remote_does_not() {
        let governor = Governor::default();
        let mut ended = governor.admit(&node()).await.unwrap();
        let reset = governor.admit(&node()).await.unwrap();
        assert_eq!(governor.threads(&node()), 2);
        ended.remote_ended();
        drop((ended, reset));
        assert_eq!(governor.threads(&node()), 1);
        tokio::time::advance(LINGER).await;
        assert_eq!(governor.threads(&node()), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn full_node_admits_in_order_and_then_refuses() {
        let governor = Arc::new(Governor::default());
        let mut held = VecDeque::new();
        for _ in 0..MAX_THREADS {
            held.push_back(governor.admit(&node()).await.unwrap());
        }
        assert!(held[0].is_pressed());
        // Others are not concerned.
        governor.admit(&(ClusterId(1), None)).await.unwrap();

        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiting = tokio::task::JoinSet::new();
        for number in 0..3 {
            let (governor, order) = (Arc::clone(&governor), Arc::clone(&order));
            waiting.spawn(async move {
                let permit = governor.admit(&node()).await;
                order.lock().unwrap().push((number, permit.is_ok()));
                permit
            });
            tokio::task::yield_now().await;
        }
        let start = Instant::now();
        // The first place is free at once, the second after its linger, the third never.
        held.pop_front().unwrap().remote_ended();
        drop(held.pop_front());
        let mut kept = Vec::new();
        while let Some(result) = waiting.join_next().await {
            kept.push(result.unwrap());
        }
        assert_eq!(*order.lock().unwrap(), [(0, true), (1, true), (2, false)]);
        assert_eq!(kept[2].as_ref().unwrap_err().code, Code::Overloaded);
        assert!(start.elapsed() >= MAX_WAIT && start.elapsed() < MAX_WAIT * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_flattened() {
        let governor = Governor::default();
        let start = Instant::now();
        let mut held = Vec::new();
        for _ in 0..1_000 {
            held.push(governor.admit(&node()).await.unwrap());
        }
        let expected = Duration::from_secs_f64((1_000.0 - BURST) / RATE);
        assert!(start.elapsed() >= expected, "{:?}", start.elapsed());
        // Each of the 500 naps may be as long as the shortest one, with the timer's millisecond.
        assert!(start.elapsed() < expected + Duration::from_secs(2), "{:?}", start.elapsed());
    }
}
