//! One forward from its start to its end: what happens to it goes to the board and into its history, and what ends it by
//! itself is watched for here.

use std::sync::Arc;
use std::time::Duration;

use kftray_commons::api::{Ended, EndedBy, Exposed, ForwardState, HistoryKind, Millis, ReadyVia};
use kftray_commons::{Code, Counters, ForwardId, ForwardSpec, Problem, Status, Workload};
use kftray_kube::KubePorts;
use kftray_portforward::ports::{Resolution, Resolve as _};
use kftray_portforward::{Config, Event, Forward};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::board::Board;
use crate::forwards::calls::{CallLog, micros};
use crate::forwards::plan::Lifetime;
use crate::history::Chronicle;
use crate::{clock, endpoint};

/// How long open connections may finish when a forward ends: enough for an answer that is under way, too short to annoy.
const GRACE: Duration = Duration::from_millis(250);

/// A failed connection is told at most this often: a program that retries in a loop would fill the history with one cause.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// Everything one forward's task needs.
pub(super) struct Runner {
    pub(super) id: ForwardId,
    pub(super) forward: Arc<Forward>,
    pub(super) board: Arc<Board>,
    pub(super) chronicle: Chronicle,
    pub(super) kube: KubePorts,
    pub(super) calls: Arc<CallLog>,
    pub(super) lifetime: Lifetime,
    pub(super) started: Instant,
    /// It goes when it ends.
    pub(super) ad_hoc: bool,
    /// What is said beside the adapter's notes.
    pub(super) notes: Vec<String>,
    pub(super) last_failure: Option<Instant>,
    pub(super) last_kind: Option<HistoryKind>,
}

impl Runner {
    /// Runs until it is told to end, or ends by itself. Answers by what it ended.
    pub(super) async fn run(mut self, stop: oneshot::Receiver<EndedBy>) -> EndedBy {
        let by = self.until_the_end(stop).await;
        let counters = self.forward.stop(GRACE).await;
        self.ended(by, counters);
        by
    }

    async fn until_the_end(&mut self, mut stop: oneshot::Receiver<EndedBy>) -> EndedBy {
        let mut events = self.forward.events();
        let (_nothing, mut resolution) = match self.forward.config() {
            Config::Forward(config) => (None, self.kube.follow(&config.wanted())),
            // An expose leads to no pods.
            Config::Expose(_) => {
                let (nothing, resolution) = watch::channel(Resolution::Pending);
                (Some(nothing), resolution)
            }
        };
        self.resolved(&mut resolution);
        loop {
            let deadline = self.deadline();
            tokio::select! {
                biased;
                by = &mut stop => return by.unwrap_or(EndedBy::Other),
                event = events.recv() => match event {
                    Ok(event) => self.happened(event),
                    Err(RecvError::Lagged(_)) => self.catch_up(&mut events),
                    Err(RecvError::Closed) => return EndedBy::Other,
                },
                Ok(()) = resolution.changed() => self.resolved(&mut resolution),
                () = sleep_until(deadline.unwrap_or(self.started)), if deadline.is_some() => {
                    if let Some(by) = self.due(Instant::now()) {
                        return by;
                    }
                }
            }
        }
    }

    /// When to look whether it shall end.
    fn deadline(&self) -> Option<Instant> {
        let ttl = self.lifetime.ttl.map(|ttl| self.started + ttl);
        let idle = self.lifetime.idle.map(|idle| self.last_traffic() + idle);
        ttl.into_iter().chain(idle).min()
    }

    fn due(&self, now: Instant) -> Option<EndedBy> {
        if self.lifetime.ttl.is_some_and(|ttl| now >= self.started + ttl) {
            return Some(EndedBy::Ttl);
        }
        // Traffic may have moved it since.
        self.lifetime.idle.filter(|idle| now >= self.last_traffic() + *idle).map(|_| EndedBy::Idle)
    }

    /// The last byte, or the start.
    fn last_traffic(&self) -> Instant {
        let now = Instant::now();
        let idle = self.forward.counters().idle_ms.map(Duration::from_millis);
        idle.and_then(|idle| now.checked_sub(idle)).map_or(self.started, |last| last.max(self.started))
    }

    fn happened(&mut self, event: Event) {
        match event {
            Event::Listening { addresses, notes } => {
                self.note(notes);
                let notes = self.all_notes();
                self.board.change_forward(self.id, |state| {
                    state.addresses = addresses.iter().map(ToString::to_string).collect();
                    state.notes = notes;
                });
            }
            Event::Status(status) => self.status(status),
            Event::Ready(via) => {
                let pod = via.endpoint.to_string();
                let ready_via = ReadyVia {
                    pod: pod.clone(),
                    transport: via.transport.to_owned(),
                    rtt_us: micros(via.rtt),
                };
                let message = format!("connected to {pod} by {}", via.transport);
                self.board.change_forward(self.id, |state| state.ready_via = Some(ready_via));
                self.tell(HistoryKind::Ready, message, None);
            }
            Event::ConnectionFailed { peer, problem } => self.connection_failed(&peer.to_string(), problem),
            Event::Published { urls, notes } => {
                self.note(notes);
                let message = format!("reachable at {}", urls.join(", "));
                self.reachable(urls);
                self.tell(HistoryKind::Ready, message, None);
            }
            Event::Called(call) => self.calls.called(call),
            Event::CallFailed { caller, problem } => {
                self.calls.failed(caller.clone(), problem.clone());
                self.connection_failed(&caller, problem);
            }
            Event::Note(problem) => {
                self.note(vec![format!("{}. {}", problem.message, problem.remedy)]);
                let notes = self.all_notes();
                self.board.change_forward(self.id, |state| state.notes = notes);
            }
            Event::Stopped { .. } => {}
        }
    }

    fn status(&mut self, status: Status) {
        let status = self.explained(status);
        let problem = status.problem().cloned();
        let ready = matches!(status, Status::Ready);
        let kind = match &status {
            Status::Recovering { .. } => Some(HistoryKind::Recovering),
            Status::NeedsUser { .. } => Some(HistoryKind::NeedsUser),
            Status::Stopped
            | Status::Binding
            | Status::Resolving { .. }
            | Status::Ready
            | Status::Stopping => None,
        };
        if let (Some(kind), Some(problem)) = (kind, &problem) {
            // One entry per trouble, not one per attempt.
            if self.last_kind != Some(kind) {
                self.tell(kind, problem.message.clone(), Some(problem.clone()));
            }
        }
        let now = clock::now();
        self.board.change_forward(self.id, |state| {
            if state.status.name() != status.name() {
                state.since = now;
            }
            state.status = status;
            if !ready {
                state.ready_via = None;
            }
            if problem.is_some() {
                state.last_problem = problem;
            }
        });
    }

    /// A busy port names this process; which of its forwards it is says more.
    fn explained(&self, status: Status) -> Status {
        let Status::NeedsUser { mut cause } = status else { return status };
        if cause.code == Code::PortInUse
            && let Config::Forward(config) = self.forward.config()
            && let Some(port) = config.local_port
        {
            let ending = format!(":{port}");
            let holder = self.board.forwards().into_iter().find(|other| {
                other.id != self.id && other.addresses.iter().any(|address| address.ends_with(&ending))
            });
            if let Some(holder) = holder {
                cause.message = format!("local port {port} is in use by the forward {}", holder.label);
                cause.remedy = "Stop that forward, or give one of them another local port.".to_owned();
            }
        }
        Status::NeedsUser { cause }
    }

    fn connection_failed(&mut self, peer: &str, problem: Problem) {
        let now = Instant::now();
        if self.last_failure.is_some_and(|last| now < last + FAILURE_PAUSE) {
            return;
        }
        self.last_failure = Some(now);
        let message = format!("a connection from {peer} failed: {}", problem.message);
        self.chronicle.tell(self.id, HistoryKind::ConnectionFailed, message, Some(problem.clone()));
        self.board.change_forward(self.id, |state| state.last_problem = Some(problem));
    }

    fn resolved(&mut self, resolution: &mut watch::Receiver<Resolution>) {
        let endpoints = match &*resolution.borrow_and_update() {
            Resolution::Pending | Resolution::Failed(_) => Vec::new(),
            Resolution::Endpoints { endpoints, .. } => endpoints.iter().map(endpoint::info).collect(),
        };
        let notes = self.all_notes();
        self.board.change_forward(self.id, |state| {
            state.endpoints = endpoints;
            state.notes = notes;
        });
    }

    /// An expose is reached under these URLs now.
    fn reachable(&self, urls: Vec<String>) {
        let notes = self.all_notes();
        self.board.change_forward(self.id, |state| {
            state.addresses = urls;
            state.notes = notes;
        });
    }

    /// Keeps what was not said before: some of it comes with every return to readiness.
    fn note(&mut self, notes: Vec<String>) {
        for note in notes {
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
    }

    fn all_notes(&self) -> Vec<String> {
        let mut notes = self.notes.clone();
        if let Config::Forward(config) = self.forward.config() {
            notes.extend(self.kube.notes(&config.target, &config.remote_port));
        }
        notes
    }

    /// Events were missed: what they said is in the snapshot.
    fn catch_up(&mut self, events: &mut broadcast::Receiver<Event>) {
        *events = self.forward.events();
        let snapshot = self.forward.snapshot();
        match self.forward.config() {
            Config::Forward(_) => {
                self.happened(Event::Listening { addresses: snapshot.addresses, notes: Vec::new() });
            }
            Config::Expose(_) => self.reachable(snapshot.urls),
        }
        self.status(snapshot.status);
        if let Some(via) = snapshot.ready {
            self.happened(Event::Ready(via));
        }
    }

    fn tell(&mut self, kind: HistoryKind, message: String, problem: Option<Problem>) {
        self.last_kind = Some(kind);
        self.chronicle.tell(self.id, kind, message, problem);
    }

    fn ended(&mut self, by: EndedBy, counters: Counters) {
        let message = match by {
            EndedBy::Request => "stopped".to_owned(),
            EndedBy::Ttl => "its time was over".to_owned(),
            EndedBy::Idle => "there was no traffic for its idle limit".to_owned(),
            EndedBy::Lease => "the client that wanted it went away".to_owned(),
            EndedBy::Removed => "its config was removed".to_owned(),
            EndedBy::Other => "the host ended".to_owned(),
        };
        self.tell(HistoryKind::Ended, message, None);
        if self.ad_hoc {
            self.board.remove_forward(self.id);
            return;
        }
        let at = clock::now();
        self.board.change_forward(self.id, |state| {
            state.status = Status::Stopped;
            state.since = at;
            state.addresses.clear();
            state.endpoints.clear();
            state.ready_via = None;
            state.counters = counters;
            if let Some(exposed) = &mut state.exposed {
                exposed.calls = self.calls.all();
            }
            state.expires_at = None;
            state.idle_limit_at = None;
            state.ended = Some(Ended { at, by });
        });
    }
}

/// When a forward with such a limit ends if nothing more comes.
pub(super) fn idle_limit_at(
    state_started: Millis,
    now: Millis,
    idle: Duration,
    counters: &Counters,
) -> Millis {
    let last = counters.idle_ms.map_or(state_started, |idle_ms| now.saturating_sub(idle_ms));
    last.max(state_started) + clock::millis(idle)
}

/// A state of a forward that is about to start.
pub(super) fn first_state(
    id: ForwardId,
    spec: &ForwardSpec,
    origin: kftray_commons::api::Origin,
    lifetime: Lifetime,
    notes: Vec<String>,
) -> ForwardState {
    let now = clock::now();
    ForwardState {
        id,
        label: spec.label(),
        target: spec.workload.to_string(),
        origin,
        status: Status::Binding,
        since: now,
        addresses: Vec::new(),
        ready_via: None,
        endpoints: Vec::new(),
        exposed: match &spec.workload {
            Workload::Expose(expose) => Some(Exposed::of(expose)),
            Workload::Service { .. }
            | Workload::Pod { .. }
            | Workload::Owner { .. }
            | Workload::Proxy { .. } => None,
        },
        counters: Counters::default(),
        notes,
        started_at: now,
        expires_at: lifetime.ttl.map(|ttl| now + clock::millis(ttl)),
        idle_limit_at: lifetime.idle.map(|idle| now + clock::millis(idle)),
        last_problem: None,
        ended: None,
    }
}
