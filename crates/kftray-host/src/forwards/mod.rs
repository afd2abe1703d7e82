//! All forwards of the host: starting and stopping them, one decision at a time for each, many forwards at once.

mod calls;
mod plan;
mod runner;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use kftray_commons::api::{AD_HOC_IDS, ActionOutcome, EndedBy, HistoryKind, LeaseId, Origin, Tally};
use kftray_commons::{Counters, ForwardId, ForwardSpec, Problem};
use kftray_kube::KubePorts;
use kftray_portforward::{Engine, Forward};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::board::Board;
use crate::clock;
use crate::history::Chronicle;

use calls::CallLog;
pub(crate) use plan::{Lifetime, left_out, plan};
use runner::Runner;

/// How often counters are told while somebody looks: smooth for an eye, nothing for a machine.
const COUNTING: Duration = Duration::from_millis(500);

/// A forward that shall run.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) id: ForwardId,
    pub(crate) spec: ForwardSpec,
    pub(crate) origin: Origin,
    pub(crate) lifetime: Lifetime,
    /// Listeners of an older host, in place of new ones.
    pub(crate) listeners: Vec<TcpListener>,
}

/// The forwards.
pub(crate) struct Fleet {
    engine: Engine,
    kube: KubePorts,
    board: Arc<Board>,
    chronicle: Chronicle,
    /// Decisions about one forward come one after another.
    slots: Mutex<HashMap<ForwardId, Arc<Slot>>>,
    alive: Mutex<BTreeMap<ForwardId, Alive>>,
    next_ad_hoc: AtomicU64,
    /// forward --ended by itself--> host
    ended: mpsc::UnboundedSender<(ForwardId, EndedBy)>,
}

#[derive(Default)]
struct Slot(tokio::sync::Mutex<Option<Running>>);

struct Running {
    stop: oneshot::Sender<EndedBy>,
    task: JoinSet<()>,
}

/// What counting needs of a running forward.
struct Alive {
    forward: Arc<Forward>,
    /// Empty but of an expose.
    calls: Arc<CallLog>,
    spec: ForwardSpec,
    origin: Origin,
    lifetime: Lifetime,
    started_at: u64,
    /// The leases that want it; it ends when the last of them does. None: nobody's end ends it.
    holders: BTreeSet<LeaseId>,
    /// Totals that were told last.
    told: Counters,
}

/// A running forward, for those who hand it over.
pub(crate) struct Passenger {
    pub(crate) id: ForwardId,
    pub(crate) spec: ForwardSpec,
    pub(crate) origin: Origin,
    /// What is left of it.
    pub(crate) lifetime: Lifetime,
    /// The leases that want it.
    pub(crate) holders: Vec<LeaseId>,
    pub(crate) forward: Arc<Forward>,
}

impl Fleet {
    /// Without any forward. `ended` hears of those that end by themselves.
    pub(crate) fn new(
        engine: Engine,
        kube: KubePorts,
        board: Arc<Board>,
        chronicle: Chronicle,
        ended: mpsc::UnboundedSender<(ForwardId, EndedBy)>,
    ) -> Self {
        Self {
            engine,
            kube,
            board,
            chronicle,
            slots: Mutex::default(),
            alive: Mutex::default(),
            next_ad_hoc: AtomicU64::new(AD_HOC_IDS),
            ended,
        }
    }

    /// The engine.
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The clusters.
    pub(crate) fn kube(&self) -> &KubePorts {
        &self.kube
    }

    /// A number for a forward without a config.
    pub(crate) fn ad_hoc_id(&self) -> ForwardId {
        ForwardId(self.next_ad_hoc.fetch_add(1, Ordering::Relaxed))
    }

    /// Starts a forward, unless it runs: then it tries again now, if it waits.
    ///
    /// # Errors
    /// `unsupported` for kinds that this build does not serve. Everything else is told by its state.
    pub(crate) async fn start(self: &Arc<Self>, wanted: Wanted) -> Result<ActionOutcome, Problem> {
        let slot = self.slot(wanted.id);
        let mut running = slot.0.lock().await;
        if running.as_ref().is_some_and(|running| !running.stop.is_closed()) {
            self.join(wanted.id, wanted.origin);
            return Ok(ActionOutcome::AlreadyRunning);
        }
        // One that is about to end by itself still has its port.
        end(running.take(), EndedBy::Other).await;
        *running = Some(self.launch(wanted)?);
        Ok(ActionOutcome::Started)
    }

    /// Ends a forward; when this is done it has ended.
    pub(crate) async fn stop(&self, id: ForwardId, by: EndedBy) -> ActionOutcome {
        let Some(slot) = self.known_slot(id) else { return ActionOutcome::NotRunning };
        let mut running = slot.0.lock().await;
        end(running.take(), by).await
    }

    /// Ends a forward and starts it anew.
    ///
    /// # Errors
    /// As [`Self::start`]; the forward has ended then.
    pub(crate) async fn restart(self: &Arc<Self>, wanted: Wanted) -> Result<ActionOutcome, Problem> {
        let slot = self.slot(wanted.id);
        let mut running = slot.0.lock().await;
        let ended = end(running.take(), EndedBy::Request).await;
        *running = Some(self.launch(wanted)?);
        Ok(if ended == ActionOutcome::Stopped { ActionOutcome::Restarted } else { ActionOutcome::Started })
    }

    /// Ends all forwards.
    pub(crate) async fn stop_all(&self, by: EndedBy) {
        let ids: Vec<ForwardId> = self.slots().keys().copied().collect();
        join_all(ids.into_iter().map(|id| self.stop(id, by))).await;
    }

    /// Whether it runs or tries to.
    pub(crate) fn is_running(&self, id: ForwardId) -> bool {
        self.alive().contains_key(&id)
    }

    /// The spec with which it runs.
    pub(crate) fn running_spec(&self, id: ForwardId) -> Option<(ForwardSpec, Origin)> {
        self.alive().get(&id).map(|alive| (alive.spec.clone(), alive.origin))
    }

    /// A lease has ended. Answers what ran for it alone, and is to end now.
    pub(crate) fn release(&self, lease: LeaseId) -> Vec<ForwardId> {
        let mut alone = Vec::new();
        for (id, alive) in self.alive().iter_mut() {
            if !alive.holders.remove(&lease) {
                continue;
            }
            match alive.holders.first().copied() {
                None => alone.push(*id),
                Some(other) => self.change_origin(*id, alive, Some(other)),
            }
        }
        alone
    }

    /// Somebody wants what runs already: it tries again now if it waits, and ends with the last who wants it. Who wants
    /// it without a lease wants it to stay.
    fn join(&self, id: ForwardId, origin: Origin) {
        let mut alive = self.alive();
        let Some(alive) = alive.get_mut(&id) else { return };
        alive.forward.retry();
        self.kube.try_again();
        match origin.lease() {
            None if !alive.holders.is_empty() => {
                alive.holders.clear();
                self.change_origin(id, alive, None);
            }
            Some(lease) if !alive.holders.is_empty() => {
                alive.holders.insert(lease);
            }
            None | Some(_) => {}
        }
    }

    /// These leases want it, too, if any does.
    pub(crate) fn hold(&self, id: ForwardId, leases: Vec<LeaseId>) {
        if let Some(alive) = self.alive().get_mut(&id).filter(|alive| !alive.holders.is_empty()) {
            alive.holders.extend(leases);
        }
    }

    fn change_origin(&self, id: ForwardId, alive: &mut Alive, lease: Option<LeaseId>) {
        alive.origin = alive.origin.with_lease(lease);
        self.board.change_forward(id, |state| state.origin = alive.origin);
    }

    /// Everything that runs.
    pub(crate) fn passengers(&self) -> Vec<Passenger> {
        let alive = self.alive();
        let now = clock::now();
        let passenger = |(id, alive): (&ForwardId, &Alive)| Passenger {
            id: *id,
            spec: alive.spec.clone(),
            origin: alive.origin,
            lifetime: alive.lifetime.after(Duration::from_millis(now.saturating_sub(alive.started_at))),
            holders: alive.holders.iter().copied().collect(),
            forward: Arc::clone(&alive.forward),
        };
        alive.iter().map(passenger).collect()
    }

    /// Tells counters of forwards with traffic, and calls, as long as somebody follows. Never ends.
    pub(crate) async fn count(&self) {
        let mut followers = self.board.followers();
        loop {
            // The board lives as long as this.
            drop(followers.wait_for(|count| *count > 0).await);
            let mut ticks = interval(COUNTING);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while *followers.borrow_and_update() > 0 {
                tokio::select! {
                    _ = ticks.tick() => self.tell_traffic(),
                    _ = followers.changed() => {}
                }
            }
        }
    }

    /// Tells what has been counted since it was told last: for those who ask once and do not follow.
    pub(crate) fn tell_traffic(&self) {
        let now = clock::now();
        let (mut tallies, mut called) = (Vec::new(), Vec::new());
        for (id, alive) in self.alive().iter_mut() {
            called.extend(alive.calls.news().map(|calls| (*id, calls)));
            // Most forwards rest most of the time: whether one has moved must cost next to nothing.
            let totals = Counters { idle_ms: None, ..alive.forward.totals() };
            if totals == alive.told {
                continue;
            }
            alive.told = totals;
            let counters = alive.forward.counters();
            let idle_limit_at =
                alive.lifetime.idle.map(|idle| runner::idle_limit_at(alive.started_at, now, idle, &counters));
            tallies.push(Tally { id: *id, counters, idle_limit_at });
        }
        if !tallies.is_empty() {
            self.board.put_tallies(tallies);
        }
        for (id, calls) in called {
            self.board.put_calls(id, calls);
        }
    }

    fn launch(self: &Arc<Self>, wanted: Wanted) -> Result<Running, Problem> {
        let Wanted { id, spec, origin, lifetime, listeners } = wanted;
        let config = plan(&spec, &spec.label());
        let notes = left_out(&spec);
        let state = runner::first_state(id, &spec, origin, lifetime, notes.clone());
        let started_at = state.started_at;
        self.board.put_forward(state);
        let forward = Arc::new(self.engine.start_with(config, listeners));
        self.chronicle.tell(id, HistoryKind::Started, "started".to_owned(), None);
        let calls = Arc::new(CallLog::default());
        let runner = Runner {
            id,
            forward: Arc::clone(&forward),
            board: Arc::clone(&self.board),
            chronicle: self.chronicle.clone(),
            kube: self.kube.clone(),
            calls: Arc::clone(&calls),
            lifetime,
            started: Instant::now(),
            ad_hoc: matches!(origin, Origin::AdHoc { .. }),
            notes,
            last_failure: None,
            last_kind: None,
        };
        let told = Counters::default();
        let holders = origin.lease().into_iter().collect();
        self.alive().insert(id, Alive { forward, calls, spec, origin, lifetime, started_at, holders, told });
        let (stop_tx, stop_rx) = oneshot::channel();
        let fleet = Arc::downgrade(self);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let by = runner.run(stop_rx).await;
            let Some(fleet) = fleet.upgrade() else { return };
            fleet.alive().remove(&id);
            if matches!(by, EndedBy::Ttl | EndedBy::Idle) {
                // Without a host nobody keeps books any more.
                fleet.ended.send((id, by)).ok();
            }
        });
        Ok(Running { stop: stop_tx, task })
    }

    fn slot(&self, id: ForwardId) -> Arc<Slot> {
        Arc::clone(self.slots().entry(id).or_default())
    }

    fn known_slot(&self, id: ForwardId) -> Option<Arc<Slot>> {
        self.slots().get(&id).cloned()
    }

    /// Forgets the slot of a forward that will not come back.
    pub(crate) fn forget(&self, id: ForwardId) {
        self.slots().remove(&id);
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<ForwardId, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self) -> MutexGuard<'_, BTreeMap<ForwardId, Alive>> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells a forward's task to end and waits for it.
async fn end(running: Option<Running>, by: EndedBy) -> ActionOutcome {
    let Some(Running { stop, mut task }) = running else { return ActionOutcome::NotRunning };
    let ran = stop.send(by).is_ok();
    while task.join_next().await.is_some() {}
    if ran { ActionOutcome::Stopped } else { ActionOutcome::NotRunning }
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fleet").field("running", &self.alive().len()).finish_non_exhaustive()
    }
}
