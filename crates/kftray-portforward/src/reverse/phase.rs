//! The lifecycle of an expose as a pure state machine: what the publication says, time and people go in; a status and
//! what is to be done come out.
//!
//! ```text
//! Pending <-> Up          Pending, Up -> Failed -> Pending (retry)          any -> Expired -> Pending (retry)
//! ```
//!
//! The publication mends itself where it can; only after [`PublicationState::Failed`] it rests, and this machine says when
//! it tries again: by backoff, or at a person's word where the code's cure says so.

use std::time::{Duration, Instant};

use kftray_commons::{Code, Cure, Problem, Status};

use crate::machine::backoff;
use crate::ports::PublicationState;

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Input {
    /// The publication says how far it is.
    State(PublicationState),
    /// The deadline has passed.
    Timer,
    /// A person asks to try again.
    Retry,
    /// The machine woke up or changed network.
    NetworkChanged,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Effect {
    /// Publish, for the first time or after a withdrawal.
    Publish,
    /// Tell the publication to try again.
    Retry,
    /// Withdraw, and cut off who is connected.
    Withdraw,
}

/// The state of one expose.
#[derive(Debug)]
pub(crate) struct Phases {
    phase: Phase,
    /// When it is to be closed, from its last publishing.
    open_for: Option<Duration>,
    expires: Option<Instant>,
    /// Failures in a row since it was last up for long.
    failures: u32,
    was_up: bool,
}

#[derive(Debug)]
enum Phase {
    Pending(Option<Problem>),
    Up {
        since: Instant,
    },
    /// It rests; tried again at `until`, or when somebody asks.
    Failed {
        until: Option<Instant>,
        cause: Problem,
    },
    Expired,
}

impl Phases {
    /// Begins to publish; `open_for` is the time after which it closes.
    pub(crate) fn new(open_for: Option<Duration>, now: Instant) -> Self {
        let expires = open_for.map(|open_for| now + open_for);
        Self { phase: Phase::Pending(None), open_for, expires, failures: 0, was_up: false }
    }

    /// When [`Input::Timer`] is wanted.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Expired => None,
            Phase::Failed { until: Some(until), .. } => {
                Some(self.expires.map_or(*until, |expires| expires.min(*until)))
            }
            Phase::Pending(_) | Phase::Up { .. } | Phase::Failed { until: None, .. } => self.expires,
        }
    }

    /// Takes one input. `jitter` in 0..=1 is used if a wait begins.
    pub(crate) fn step(&mut self, input: Input, now: Instant, jitter: f64) -> Option<Effect> {
        match input {
            Input::State(state) => {
                self.told(state, now, jitter);
                None
            }
            Input::Timer if self.expires.is_some_and(|expires| expires <= now) => {
                self.expires = None;
                self.phase = Phase::Expired;
                Some(Effect::Withdraw)
            }
            Input::Timer => match self.phase {
                Phase::Failed { until: Some(until), .. } if until <= now => self.again(),
                Phase::Failed { .. } | Phase::Pending(_) | Phase::Up { .. } | Phase::Expired => None,
            },
            Input::Retry if matches!(self.phase, Phase::Expired) => {
                *self = Self::new(self.open_for, now);
                Some(Effect::Publish)
            }
            Input::Retry | Input::NetworkChanged => match self.phase {
                Phase::Failed { .. } => self.again(),
                Phase::Pending(_) | Phase::Up { .. } | Phase::Expired => None,
            },
        }
    }

    fn told(&mut self, state: PublicationState, now: Instant, jitter: f64) {
        if matches!(self.phase, Phase::Expired) {
            return;
        }
        if let Phase::Up { since } = self.phase
            && now.saturating_duration_since(since) >= backoff::LONGEST
        {
            self.failures = 0;
        }
        self.phase = match state {
            PublicationState::Pending(why) => Phase::Pending(why),
            PublicationState::Up { .. } => {
                self.was_up = true;
                let since = if let Phase::Up { since } = self.phase { since } else { now };
                Phase::Up { since }
            }
            PublicationState::Failed(cause) => {
                self.failures = self.failures.saturating_add(1);
                let until = match cause.code.cure() {
                    Cure::User => None,
                    Cure::Retry | Cure::Wait => Some(now + backoff::delay(self.failures, jitter)),
                };
                Phase::Failed { until, cause }
            }
        };
    }

    fn again(&mut self) -> Option<Effect> {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Expired) {
            // What went wrong stays in sight until the next news.
            Phase::Failed { cause, .. } => Phase::Pending(Some(cause)),
            other @ (Phase::Pending(_) | Phase::Up { .. } | Phase::Expired) => other,
        };
        Some(Effect::Retry)
    }

    /// How it stands, for everybody.
    pub(crate) fn status(&self, now: Instant) -> Status {
        let recovering = |cause: &Problem, until: Option<Instant>| Status::Recovering {
            attempt: self.failures.max(1),
            retry_in_ms: until.map(|until| {
                u64::try_from(until.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX)
            }),
            cause: cause.clone(),
        };
        match &self.phase {
            Phase::Pending(why) if self.was_up || self.failures > 0 => {
                recovering(&why.clone().unwrap_or_else(tunnel_lost), None)
            }
            Phase::Pending(why) => Status::Resolving { waiting_for: why.clone() },
            Phase::Up { .. } => Status::Ready,
            Phase::Failed { until: until @ Some(_), cause } => recovering(cause, *until),
            Phase::Failed { until: None, cause } => Status::NeedsUser { cause: cause.clone() },
            Phase::Expired => Status::NeedsUser { cause: expired(self.open_for) },
        }
    }
}

fn tunnel_lost() -> Problem {
    Problem::new(Code::ConnectionLost, "the tunnel to the relay was lost")
}

fn expired(open_for: Option<Duration>) -> Problem {
    let seconds = open_for.map_or(0, |open_for| open_for.as_secs());
    Problem::new(Code::ExposeExpired, format!("the time of {seconds} s for which it was exposed is over"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(code: Code) -> Problem {
        Problem::new(code, code.as_str())
    }

    fn up() -> Input {
        Input::State(PublicationState::Up { urls: vec!["http://app".to_owned()], notes: Vec::new() })
    }

    fn pending(code: Code) -> Input {
        Input::State(PublicationState::Pending(Some(problem(code))))
    }

    fn failed(code: Code) -> Input {
        Input::State(PublicationState::Failed(problem(code)))
    }

    fn name(phases: &Phases, now: Instant) -> &'static str {
        phases.status(now).name()
    }

    #[tokio::test(start_paused = true)]
    async fn the_waiting_is_explained_and_the_loss_is_a_recovery() {
        let now = tokio::time::Instant::now().into_std();
        let mut phases = Phases::new(None, now);
        assert_eq!(phases.status(now), Status::Resolving { waiting_for: None });
        phases.step(pending(Code::RelayStarting), now, 0.0);
        assert_eq!(phases.status(now).problem().map(|p| p.code), Some(Code::RelayStarting));
        phases.step(up(), now, 0.0);
        assert_eq!(name(&phases, now), "ready");
        phases.step(Input::State(PublicationState::Pending(None)), now, 0.0);
        assert_eq!(phases.status(now).problem().map(|p| p.code), Some(Code::ConnectionLost));
        assert_eq!(name(&phases, now), "recovering");
        assert_eq!(phases.deadline(), None, "the publication mends itself");
    }

    #[tokio::test(start_paused = true)]
    async fn what_can_be_retried_is_with_backoff_and_what_cannot_waits_for_a_person() {
        let now = tokio::time::Instant::now().into_std();
        let mut phases = Phases::new(None, now);
        let mut at = now;
        for seconds in [1, 2, 4] {
            phases.step(failed(Code::ClusterUnreachable), at, 0.0);
            assert_eq!(phases.deadline(), Some(at + Duration::from_secs(seconds)));
            assert_eq!(phases.step(Input::Timer, at, 0.0), None, "not before its time");
            at += Duration::from_secs(seconds);
            assert_eq!(phases.step(Input::Timer, at, 0.0), Some(Effect::Retry));
            assert_eq!(name(&phases, at), "recovering");
        }
        phases.step(failed(Code::Forbidden), at, 0.0);
        assert_eq!((name(&phases, at), phases.deadline()), ("needs_user", None));
        assert_eq!(phases.step(Input::Retry, at, 0.0), Some(Effect::Retry));
        phases.step(up(), at, 0.0);
        let later = at + backoff::LONGEST;
        phases.step(failed(Code::ClusterUnreachable), later, 0.0);
        assert_eq!(phases.deadline(), Some(later + Duration::from_secs(1)), "it had been up for long");
        assert_eq!(phases.step(Input::NetworkChanged, later, 0.0), Some(Effect::Retry));
        assert_eq!(phases.step(Input::NetworkChanged, later, 0.0), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_limit_closes_in_every_state_and_a_person_opens_again() {
        let now = tokio::time::Instant::now().into_std();
        for before in [up(), pending(Code::RelayStarting), failed(Code::Forbidden)] {
            let hour = Duration::from_secs(3600);
            let mut phases = Phases::new(Some(hour), now);
            phases.step(before, now, 0.0);
            assert_eq!(phases.deadline(), Some(now + hour));
            assert_eq!(phases.step(Input::Timer, now + hour, 0.0), Some(Effect::Withdraw));
            assert_eq!(phases.status(now).problem().map(|p| p.code), Some(Code::ExposeExpired));
            phases.step(up(), now + hour, 0.0);
            assert_eq!(name(&phases, now + hour), "needs_user", "late news change nothing");
            assert_eq!(phases.step(Input::NetworkChanged, now + hour, 0.0), None);
            assert_eq!(phases.step(Input::Retry, now + hour, 0.0), Some(Effect::Publish));
            assert_eq!(phases.deadline(), Some(now + 2 * hour));
            assert_eq!(name(&phases, now), "resolving");
        }
    }
}
