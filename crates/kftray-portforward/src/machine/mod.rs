//! The lifecycle of a forward as a pure state machine: inputs and the time go in, effects come out (design section 4).
//!
//! ```text
//! Stopped -> Binding -> Waiting <-> Warming <-> Ready          any -> Stopping -> Stopped
//!               |                    |    ^
//!            Unbound              Backoff | NeedsUser
//! ```
//!
//! It owns no socket, task or clock. The supervisor is its shell: it carries the effects out and feeds back what became
//! of them. Whether an attempt is repeated is decided here alone, by the cure of the problem's code:
//!
//! * A *resolver's* problem never needs a timer: the resolver watches and tells when it has changed.
//! * A *transport's* problem is retried with backoff, unless a person is needed. [`Cure::Wait`] counts as a retry here:
//!   the resolver, which decides what there is, still says that a pod is ready, so one of the two lags.
//! * Whatever suggests that the cause has gone (a new resolution, a wake-up, another network, a person's word, a connection
//!   that was served) ends a wait at once, but never sets the backoff back: only proof of life does.

pub(crate) mod backoff;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use kftray_commons::{Code, Cure, Problem, Status};

/// A transport that has lasted longer than the longest wait counts as proved even if no client used it: repeating at that
/// pace cannot hammer anybody, and an idle forward whose session is recycled now and then must not creep to long waits.
const STABLE: Duration = backoff::LONGEST;

/// An attempt that has not answered by then is given up. Transports have shorter limits of their own; this one holds
/// where they fail, and leaves time for a login in a browser.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(60);

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Input {
    /// Run.
    Start,
    /// Stop for good.
    Stop,
    /// Every listener is open.
    Bound,
    /// None is.
    BindFailed(Problem),
    /// What there is to connect to has changed.
    Supply(Supply),
    /// The transport asked for is up and has answered a PING.
    WarmOk,
    /// It could not be had.
    WarmFailed(Problem),
    /// The transport held is gone.
    TransportLost(Problem),
    /// The deadline has passed.
    Timer,
    /// The machine woke up or changed network.
    NetworkChanged,
    /// A person asks to try again.
    Retry,
    /// A connection got its first byte from upstream: proof of life.
    Served,
    /// After a stop: the last connection has ended.
    Drained,
}

/// What there is to connect to, in short.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Supply {
    /// Not known yet.
    Pending,
    /// At least one endpoint is ready.
    Ready {
        /// The endpoint last chosen for a [`Effect::Warm`] is one of them.
        chosen: bool,
    },
    /// None is ready.
    Empty(Option<Problem>),
    /// It cannot be looked up.
    Failed(Problem),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Effect {
    /// Open the listeners.
    Bind,
    /// Close the listeners, or stop opening them.
    Close,
    /// Choose a ready endpoint and bring a transport to it up, instead of any attempt under way. The transport held so far
    /// is kept until the new one is up.
    Warm,
    /// Give up the transport held and the attempt under way.
    DropWarm,
    /// Tell the status.
    Publish(Status),
}

/// The state of one forward.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Machine {
    phase: Phase,
    supply: Supply,
    /// Failures in a row since the last proof of life.
    failures: u32,
    /// The last thing that went wrong since it was ready.
    cause: Option<Problem>,
    /// It was ready once on this cluster.
    was_ready: bool,
    /// A served connection has already ended a wait since it was last ready. Once is enough: where connections are served
    /// and transports cannot be proved, every connection would cost an attempt.
    served_cut: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Phase {
    Stopped,
    Binding,
    /// The listeners could not be opened; tried again at `until`, or when somebody asks.
    Unbound {
        until: Option<Instant>,
        cause: Problem,
    },
    /// Bound; the resolver has nothing to connect to.
    Waiting,
    /// Bound; an attempt is under way.
    Warming {
        since: Instant,
    },
    /// Bound; the next attempt comes at `until`.
    Backoff {
        until: Instant,
        cause: Problem,
    },
    /// Bound; attempts are useless until something changes.
    NeedsUser {
        cause: Problem,
    },
    /// A transport is up since `since`.
    Ready {
        since: Instant,
        /// A byte from upstream has come over it.
        proved: bool,
        /// Its endpoint should get no new connections; an attempt to replace it is under way since then.
        moving: Option<Instant>,
    },
    Stopping,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Stopped,
            supply: Supply::Pending,
            failures: 0,
            cause: None,
            was_ready: false,
            served_cut: false,
        }
    }

    /// When [`Input::Timer`] is wanted.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Backoff { until, .. } => Some(*until),
            Phase::Unbound { until, .. } => *until,
            Phase::Warming { since } => Some(*since + ATTEMPT_LIMIT),
            Phase::Ready { moving, .. } => moving.map(|since| since + ATTEMPT_LIMIT),
            Phase::Stopped | Phase::Binding | Phase::Waiting | Phase::NeedsUser { .. } | Phase::Stopping => {
                None
            }
        }
    }

    /// Whether [`Input::Served`] would tell anything new.
    pub(crate) fn wants_proof(&self) -> bool {
        match self.phase {
            Phase::Ready { proved, .. } => !proved,
            Phase::Backoff { .. } | Phase::NeedsUser { .. } => !self.served_cut,
            Phase::Stopped
            | Phase::Binding
            | Phase::Unbound { .. }
            | Phase::Waiting
            | Phase::Warming { .. }
            | Phase::Stopping => false,
        }
    }

    /// Takes one input. `jitter` in 0..=1 is used if a wait begins.
    pub(crate) fn step(&mut self, input: Input, now: Instant, jitter: f64) -> Vec<Effect> {
        let mut step = Step { now, jitter, effects: Vec::new() };
        match input {
            Input::Start => self.start(&mut step),
            Input::Stop => self.stop(&mut step),
            Input::Drained if self.phase == Phase::Stopping => self.enter(Phase::Stopped, &mut step),
            Input::Drained => {}
            Input::Bound if self.phase == Phase::Binding => self.seek(&mut step),
            Input::Bound => {}
            Input::BindFailed(problem) => self.bind_failed(problem, &mut step),
            Input::Supply(supply) => self.supply(supply, &mut step),
            Input::WarmOk => self.warm_ok(&mut step),
            Input::WarmFailed(problem) => self.warm_failed(problem, &mut step),
            Input::TransportLost(problem) => self.lost(problem, &mut step),
            Input::Timer => self.timer(&mut step),
            Input::NetworkChanged => self.hurry(true, &mut step),
            Input::Retry => self.hurry(false, &mut step),
            Input::Served => self.served(&mut step),
        }
        step.effects
    }

    fn start(&mut self, step: &mut Step) {
        if self.phase == Phase::Stopped {
            *self = Self { supply: self.supply.clone(), ..Self::new() };
            self.bind(step);
        }
    }

    fn bind(&mut self, step: &mut Step) {
        step.effects.push(Effect::Bind);
        self.enter(Phase::Binding, step);
    }

    fn stop(&mut self, step: &mut Step) {
        if matches!(self.phase, Phase::Stopped | Phase::Stopping) {
            return;
        }
        step.effects.extend([Effect::Close, Effect::DropWarm]);
        self.enter(Phase::Stopping, step);
    }

    fn bind_failed(&mut self, problem: Problem, step: &mut Step) {
        if self.phase != Phase::Binding {
            return;
        }
        let until = match problem.code.cure() {
            Cure::User => None,
            Cure::Retry | Cure::Wait => Some(self.failed(step)),
        };
        self.enter(Phase::Unbound { until, cause: problem }, step);
    }

    fn supply(&mut self, supply: Supply, step: &mut Step) {
        let chosen = match &supply {
            Supply::Ready { chosen } => Some(*chosen),
            Supply::Pending => {
                // Another cluster: what went wrong on the last one is no news about this one.
                self.was_ready = false;
                self.cause = None;
                None
            }
            Supply::Empty(why) => {
                self.cause = self.was_ready.then(|| why.clone().unwrap_or_else(no_pods));
                None
            }
            Supply::Failed(problem) => {
                self.cause = self.was_ready.then(|| problem.clone());
                None
            }
        };
        self.supply = supply;
        match (&mut self.phase, chosen) {
            (Phase::Stopped | Phase::Binding | Phase::Unbound { .. } | Phase::Stopping, _) => {}
            (Phase::Waiting | Phase::Backoff { .. } | Phase::NeedsUser { .. }, Some(_)) => self.warm(step),
            (Phase::Warming { .. } | Phase::Ready { .. }, Some(true)) => {}
            (Phase::Warming { .. }, Some(false)) => self.warm(step),
            (Phase::Ready { moving, .. }, Some(false)) => {
                *moving = Some(step.now);
                step.effects.push(Effect::Warm);
            }
            (Phase::Waiting, None) => self.enter(Phase::Waiting, step),
            (
                Phase::Warming { .. } | Phase::Ready { .. } | Phase::Backoff { .. } | Phase::NeedsUser { .. },
                None,
            ) => {
                self.settle(step.now);
                step.effects.push(Effect::DropWarm);
                self.enter(Phase::Waiting, step);
            }
        }
    }

    fn warm_ok(&mut self, step: &mut Step) {
        let replaces = matches!(self.phase, Phase::Ready { moving: Some(_), .. });
        if !replaces && !matches!(self.phase, Phase::Warming { .. }) {
            return;
        }
        self.settle(step.now);
        self.cause = None;
        self.was_ready = true;
        self.served_cut = false;
        self.enter(Phase::Ready { since: step.now, proved: false, moving: None }, step);
    }

    fn warm_failed(&mut self, problem: Problem, step: &mut Step) {
        match self.phase {
            Phase::Warming { .. } => {}
            Phase::Ready { moving: Some(_), .. } => {
                self.settle(step.now);
                step.effects.push(Effect::DropWarm);
            }
            Phase::Ready { moving: None, .. }
            | Phase::Stopped
            | Phase::Binding
            | Phase::Unbound { .. }
            | Phase::Waiting
            | Phase::Backoff { .. }
            | Phase::NeedsUser { .. }
            | Phase::Stopping => return,
        }
        self.give_up(problem, step);
    }

    fn lost(&mut self, problem: Problem, step: &mut Step) {
        let Phase::Ready { moving, .. } = self.phase else { return };
        let proved = self.settle(step.now);
        self.cause = Some(problem.clone());
        if let Some(since) = moving {
            // Its replacement is on the way already.
            self.enter(Phase::Warming { since }, step);
        } else if proved && problem.code.cure() != Cure::User {
            self.warm(step);
        } else {
            // Lost before it had proved anything: a failure like one at the beginning, or the two would alternate at
            // full speed.
            self.give_up(problem, step);
        }
    }

    /// An attempt has failed.
    fn give_up(&mut self, problem: Problem, step: &mut Step) {
        self.cause = Some(problem.clone());
        let until = self.failed(step);
        let phase = match problem.code.cure() {
            Cure::User => Phase::NeedsUser { cause: problem },
            Cure::Retry | Cure::Wait => Phase::Backoff { until, cause: problem },
        };
        self.enter(phase, step);
    }

    fn timer(&mut self, step: &mut Step) {
        if self.deadline().is_none_or(|deadline| step.now < deadline) {
            return;
        }
        match self.phase {
            Phase::Backoff { .. } => self.warm(step),
            Phase::Unbound { .. } => self.bind(step),
            Phase::Warming { .. } => {
                step.effects.push(Effect::DropWarm);
                self.give_up(no_answer(), step);
            }
            Phase::Ready { .. } => self.warm_failed(no_answer(), step),
            Phase::Stopped | Phase::Binding | Phase::Waiting | Phase::NeedsUser { .. } | Phase::Stopping => {}
        }
    }

    /// Something suggests that waiting longer is pointless. `restart` also gives up an attempt under way: it may hang on
    /// a network that is gone.
    fn hurry(&mut self, restart: bool, step: &mut Step) {
        match &mut self.phase {
            Phase::Unbound { .. } => self.bind(step),
            Phase::Backoff { .. } | Phase::NeedsUser { .. } => self.warm(step),
            Phase::Warming { .. } if restart => self.warm(step),
            Phase::Ready { moving: moving @ Some(_), .. } if restart => {
                *moving = Some(step.now);
                step.effects.push(Effect::Warm);
            }
            Phase::Stopped
            | Phase::Binding
            | Phase::Waiting
            | Phase::Warming { .. }
            | Phase::Ready { .. }
            | Phase::Stopping => {}
        }
    }

    fn served(&mut self, step: &mut Step) {
        match &mut self.phase {
            Phase::Ready { proved, .. } => *proved = true,
            Phase::Backoff { .. } | Phase::NeedsUser { .. } if !self.served_cut => {
                self.served_cut = true;
                self.failures = 0;
                self.warm(step);
            }
            Phase::Stopped
            | Phase::Binding
            | Phase::Unbound { .. }
            | Phase::Waiting
            | Phase::Warming { .. }
            | Phase::Backoff { .. }
            | Phase::NeedsUser { .. }
            | Phase::Stopping => {}
        }
    }

    /// Bound, and nothing under way: what next?
    fn seek(&mut self, step: &mut Step) {
        match self.supply {
            Supply::Ready { .. } => self.warm(step),
            Supply::Pending | Supply::Empty(_) | Supply::Failed(_) => self.enter(Phase::Waiting, step),
        }
    }

    fn warm(&mut self, step: &mut Step) {
        step.effects.push(Effect::Warm);
        self.enter(Phase::Warming { since: step.now }, step);
    }

    /// Counts a failure; returns when to try again.
    fn failed(&mut self, step: &Step) -> Instant {
        self.failures = self.failures.saturating_add(1);
        step.now + backoff::delay(self.failures, step.jitter)
    }

    /// A transport ends, in whatever way: if it has proved itself, the failures before it are forgotten.
    fn settle(&mut self, now: Instant) -> bool {
        let Phase::Ready { since, proved, .. } = self.phase else { return false };
        let proved = proved || now.saturating_duration_since(since) >= STABLE;
        if proved {
            self.failures = 0;
        }
        proved
    }

    fn enter(&mut self, phase: Phase, step: &mut Step) {
        self.phase = phase;
        step.effects.push(Effect::Publish(self.status(step.now)));
    }

    fn status(&self, now: Instant) -> Status {
        let attempt = self.failures.max(1);
        let recovering = |cause: &Problem, until: Option<Instant>| Status::Recovering {
            attempt,
            retry_in_ms: until.map(|until| {
                u64::try_from(until.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX)
            }),
            cause: cause.clone(),
        };
        match &self.phase {
            Phase::Stopped => Status::Stopped,
            Phase::Binding => Status::Binding,
            Phase::Unbound { until: None, cause } | Phase::NeedsUser { cause } => {
                Status::NeedsUser { cause: cause.clone() }
            }
            Phase::Unbound { until, cause } => recovering(cause, *until),
            Phase::Backoff { until, cause } => recovering(cause, Some(*until)),
            Phase::Waiting => match &self.supply {
                Supply::Failed(cause) if cause.code.cure() == Cure::User => {
                    Status::NeedsUser { cause: cause.clone() }
                }
                Supply::Failed(cause) | Supply::Empty(Some(cause)) if self.was_ready => {
                    recovering(cause, None)
                }
                Supply::Failed(cause) | Supply::Empty(Some(cause)) => {
                    Status::Resolving { waiting_for: Some(cause.clone()) }
                }
                Supply::Empty(None) if self.was_ready => recovering(&no_pods(), None),
                Supply::Empty(None) => Status::Resolving { waiting_for: Some(no_pods()) },
                Supply::Pending | Supply::Ready { .. } => Status::Resolving { waiting_for: None },
            },
            Phase::Warming { .. } => match &self.cause {
                Some(cause) => recovering(cause, None),
                None => Status::Resolving { waiting_for: None },
            },
            Phase::Ready { .. } => Status::Ready,
            Phase::Stopping => Status::Stopping,
        }
    }
}

/// One step's surroundings and what comes of it.
struct Step {
    now: Instant,
    jitter: f64,
    effects: Vec<Effect>,
}

fn no_answer() -> Problem {
    let seconds = ATTEMPT_LIMIT.as_secs();
    Problem::new(Code::ClusterUnreachable, format!("the cluster did not answer within {seconds} s"))
}

fn no_pods() -> Problem {
    Problem::new(Code::NoReadyPods, "no pod is ready")
}
