//! Which endpoint the next connection goes to. Pure.
//!
//! Round robin is "the one that was chosen longest ago": it needs no cursor, stays fair while endpoints come and go, and a
//! new endpoint gets one connection early, not a burst.
//!
//! An endpoint that has just failed is a *suspect*: others are preferred for a moment. If there is no other, a suspect
//! whose transport failed is tried by one connection at once and then by one per [`PROBE_INTERVAL`], so that a crowd of
//! waiting clients does not storm a cluster that comes back. A byte from it clears it, and the crowd follows; so it does
//! when that one connection has *stood* for [`TRIAL`], since many a program says nothing before it is asked. A suspect
//! that *refused* (nothing listens on its port) may always be tried: that costs nothing but the try.
//!
//! Where the probes of all endpoints have just said what only a person can change (a login that has expired), nobody waits
//! for the next: everybody is told the same.

use std::time::{Duration, Instant};

use kftray_commons::{Cure, Problem};

use crate::config::Balance;
use crate::ports::{Condition, Endpoint};

/// How often a waiting crowd tries an endpoint whose transport failed: an unreachable cluster that comes back is found
/// within a second, at the price of one attempt per second while somebody waits.
pub(crate) const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// How long others are preferred to a suspect: about what a program takes from "ready" to listening, or a transport to be
/// replaced.
const AVOID: Duration = Duration::from_secs(1);

/// How long the connection that tries a suspect has to stand before others follow. A runtime that cannot reach its pod says
/// so within a round trip and a few milliseconds, and half of [`PROBE_INTERVAL`] is far above both.
pub(crate) const TRIAL: Duration = Duration::from_millis(500);

/// The endpoints of a target, as the chooser sees them.
#[derive(Debug)]
pub(crate) struct Choice {
    balance: Balance,
    seats: Vec<Seat>,
    /// Counts choices, for "longest ago".
    turn: u64,
}

#[derive(Debug)]
struct Seat {
    endpoint: Endpoint,
    last_turn: u64,
    suspect: Option<Suspect>,
}

#[derive(Debug, Clone)]
struct Suspect {
    kind: SuspectKind,
    failed: Instant,
    /// A connection has stood since: others may follow. But it is remembered until a byte comes, so that a crowd that fails
    /// after all waits for the next trial.
    stood: bool,
    /// Others are preferred until then.
    avoid_until: Instant,
    /// Not tried at all before.
    probe_at: Instant,
    /// What it said, if only a person can change it; nothing while somebody asks again.
    refusal: Option<Problem>,
}

/// What an endpoint did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SuspectKind {
    /// No transport to it, or it broke.
    Transport,
    /// Nothing listens on its port.
    Refused,
}

/// What to do with a new connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pick {
    /// Go there.
    Go(Endpoint),
    /// Wait: for the set to change, at the latest until the time when a suspect may be tried again.
    Wait(Option<Instant>),
    /// Every endpoint has just said what only a person can change: waiting would be in vain.
    Refuse(Problem),
    /// The endpoints cannot be looked up, which only a person can change. Wait for as long as it takes to notice that.
    Mend(Problem),
}

impl Choice {
    pub(crate) fn new(balance: Balance) -> Self {
        Self { balance, seats: Vec::new(), turn: 0 }
    }

    /// Takes a new set. What is known about endpoints that stay is kept. Returns whether the set of those that take new
    /// connections has changed.
    pub(crate) fn update(&mut self, endpoints: &[Endpoint]) -> bool {
        let before: Vec<Endpoint> = self.usable().cloned().collect();
        let old = std::mem::take(&mut self.seats);
        self.seats = endpoints
            .iter()
            .map(|endpoint| {
                let known = old.iter().find(|seat| same_pod(&seat.endpoint, endpoint));
                Seat {
                    endpoint: endpoint.clone(),
                    last_turn: known.map_or(0, |seat| seat.last_turn),
                    suspect: known.and_then(|seat| seat.suspect.clone()),
                }
            })
            .collect();
        !self.usable().eq(before.iter())
    }

    /// Endpoints that connections may go to by their own condition: the ready ones, else the draining ones.
    pub(crate) fn usable(&self) -> impl Iterator<Item = &Endpoint> {
        self.usable_seats(&[]).map(|(_, seat)| &seat.endpoint)
    }

    /// Whether a ready endpoint is there (draining ones do not count).
    pub(crate) fn any_ready(&self) -> bool {
        self.usable().any(|endpoint| endpoint.condition == Condition::Ready)
    }

    fn usable_seats<'a>(&'a self, except: &'a [Endpoint]) -> impl Iterator<Item = (usize, &'a Seat)> {
        let admitted = move |seat: &Seat| {
            let pinned = match &self.balance {
                Balance::Pin(pod) => seat.endpoint.pod == *pod,
                Balance::RoundRobin | Balance::Sticky => true,
            };
            pinned && !except.iter().any(|other| same_pod(other, &seat.endpoint))
        };
        let ready =
            self.seats.iter().any(|seat| admitted(seat) && seat.endpoint.condition == Condition::Ready);
        let wanted = if ready { Condition::Ready } else { Condition::Draining };
        self.seats
            .iter()
            .enumerate()
            .filter(move |(_, seat)| seat.endpoint.condition == wanted && admitted(seat))
    }

    /// Chooses for a connection, never one of `except`.
    pub(crate) fn pick(&mut self, except: &[Endpoint], now: Instant) -> Pick {
        let sound = |seat: &Seat| seat.suspect.as_ref().is_none_or(|suspect| suspect.avoid_until <= now);
        let probe = |seat: &Seat| seat.suspect.as_ref().is_none_or(|suspect| suspect.probe_at <= now);
        let chosen = self.first(except, sound).or_else(|| self.first(except, probe));
        let Some(seat) = chosen.and_then(|index| self.seats.get_mut(index)) else {
            let suspects = || self.usable_seats(except).map(|(_, seat)| seat.suspect.as_ref());
            let refusals: Option<Vec<&Problem>> =
                suspects().map(|suspect| suspect?.refusal.as_ref()).collect();
            if let Some(&problem) = refusals.as_deref().and_then(<[_]>::first) {
                return Pick::Refuse(problem.clone());
            }
            return Pick::Wait(suspects().flatten().map(|suspect| suspect.probe_at).min());
        };
        self.turn += 1;
        seat.last_turn = self.turn;
        if let Some(suspect) = &mut seat.suspect
            && suspect.is_on_trial()
        {
            // This connection is the probe; the next one may try after a pause.
            suspect.probe_at = now + PROBE_INTERVAL;
            suspect.avoid_until = now + AVOID;
            suspect.refusal = None;
        }
        Pick::Go(seat.endpoint.clone())
    }

    /// The ready endpoint to keep a transport to: where the next connection would go, else any ready one.
    pub(crate) fn for_transport(&self, now: Instant) -> Option<Endpoint> {
        let ready = |seat: &Seat| seat.endpoint.condition == Condition::Ready;
        let sound = |seat: &Seat| {
            ready(seat) && seat.suspect.as_ref().is_none_or(|suspect| suspect.avoid_until <= now)
        };
        let index = self.first(&[], sound).or_else(|| {
            // The one that has been left alone longest.
            let suspects = self.usable_seats(&[]).filter(|(_, seat)| ready(seat));
            suspects
                .min_by_key(|(_, seat)| seat.suspect.as_ref().map(|s| s.avoid_until))
                .map(|(index, _)| index)
        })?;
        self.seats.get(index).map(|seat| seat.endpoint.clone())
    }

    /// Whether an endpoint is among those that are ready.
    pub(crate) fn is_ready(&self, endpoint: &Endpoint) -> bool {
        self.usable().any(|usable| usable.condition == Condition::Ready && same_pod(usable, endpoint))
    }

    /// The usable seat whose turn it is, among those that `fit`.
    fn first(&self, except: &[Endpoint], fit: impl Fn(&Seat) -> bool) -> Option<usize> {
        let fitting = self.usable_seats(except).filter(|(_, seat)| fit(seat));
        let key = |(index, seat): &(usize, &Seat)| match self.balance {
            // The one in use stays in use.
            Balance::Sticky => (u64::MAX - seat.last_turn, *index),
            Balance::RoundRobin | Balance::Pin(_) => (seat.last_turn, *index),
        };
        fitting.min_by_key(key).map(|(index, _)| index)
    }

    /// An endpoint has failed a connection or a transport. Returns whether those who wait may be told so now.
    pub(crate) fn suspect(
        &mut self,
        endpoint: &Endpoint,
        kind: SuspectKind,
        problem: &Problem,
        now: Instant,
    ) -> bool {
        let Some(seat) = self.seat(endpoint) else { return false };
        // Many connections report the loss of one transport: only the first allows a probe at once.
        let probe_at = match &seat.suspect {
            Some(known) if known.kind == kind && known.stood => now + PROBE_INTERVAL,
            Some(known) if known.kind == kind => known.probe_at,
            Some(_) | None => now,
        };
        let refusal = Some(problem).filter(|problem| problem.code.cure() == Cure::User).cloned();
        let is_refusal = refusal.is_some();
        seat.suspect =
            Some(Suspect { kind, failed: now, stood: false, avoid_until: now + AVOID, probe_at, refusal });
        is_refusal
    }

    /// Whether what becomes of a connection to an endpoint is of interest to [`Self::stood`].
    pub(crate) fn is_on_trial(&self, endpoint: &Endpoint) -> bool {
        let seat = self.seats.iter().find(|seat| same_pod(&seat.endpoint, endpoint));
        seat.and_then(|seat| seat.suspect.as_ref()).is_some_and(Suspect::is_on_trial)
    }

    /// A connection that was opened at that time has stood for [`TRIAL`]. Returns whether somebody may be waiting for that.
    pub(crate) fn stood(&mut self, endpoint: &Endpoint, opened: Instant) -> bool {
        let suspect = self.seat(endpoint).and_then(|seat| seat.suspect.as_mut());
        let Some(suspect) = suspect.filter(|suspect| suspect.is_on_trial() && suspect.failed <= opened)
        else {
            return false;
        };
        (suspect.avoid_until, suspect.probe_at) = (opened, opened);
        (suspect.stood, suspect.refusal) = (true, None);
        true
    }

    /// An endpoint works. Returns whether it was a suspect: then somebody may be waiting for it.
    pub(crate) fn clear(&mut self, endpoint: &Endpoint) -> bool {
        self.seat(endpoint).is_some_and(|seat| seat.suspect.take().is_some())
    }

    /// What failed may work again now: forget all suspicion.
    pub(crate) fn clear_all(&mut self) {
        for seat in &mut self.seats {
            seat.suspect = None;
        }
    }

    fn seat(&mut self, endpoint: &Endpoint) -> Option<&mut Seat> {
        self.seats.iter_mut().find(|seat| same_pod(&seat.endpoint, endpoint))
    }
}

impl Suspect {
    /// Connections go there one at a time.
    fn is_on_trial(&self) -> bool {
        self.kind == SuspectKind::Transport && !self.stood
    }
}

/// The same port of the same pod over the same cluster connection, whatever its condition.
pub(crate) fn same_pod(a: &Endpoint, b: &Endpoint) -> bool {
    a.port == b.port
        && a.route == b.route
        && a.pod == b.pod
        && a.uid == b.uid
        && a.namespace == b.namespace
        && a.cluster == b.cluster
}

/// An endpoint of a pod by name, for tests.
#[cfg(test)]
pub(crate) fn endpoint(pod: &str, condition: Condition) -> Endpoint {
    Endpoint {
        cluster: crate::ports::ClusterId(1),
        namespace: "ns".into(),
        pod: pod.into(),
        uid: format!("uid-{pod}").into(),
        node: None,
        port: 80,
        condition,
        route: crate::ports::Route::Direct,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kftray_commons::Code;
    use proptest::prelude::*;

    use super::*;

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn choice(balance: Balance, pods: &[(&str, Condition)]) -> Choice {
        let mut choice = Choice::new(balance);
        choice.update(&pods.iter().map(|(pod, condition)| endpoint(pod, *condition)).collect::<Vec<_>>());
        choice
    }

    fn lost() -> Problem {
        Problem::new(Code::ClusterUnreachable, "it was lost")
    }

    fn go(choice: &mut Choice, now: Instant) -> String {
        match choice.pick(&[], now) {
            Pick::Go(endpoint) => endpoint.pod.to_string(),
            Pick::Wait(until) => panic!("nothing to go to until {until:?}"),
            Pick::Refuse(problem) | Pick::Mend(problem) => panic!("{problem}"),
        }
    }

    use Condition::{Draining, NotReady, Ready};

    #[test]
    fn sticky_stays_and_moves_only_when_it_must() {
        let now = now();
        let mut choice = choice(Balance::Sticky, &[("a", Ready), ("b", Ready)]);
        assert_eq!([go(&mut choice, now), go(&mut choice, now)], ["a", "a"]);
        choice.suspect(&endpoint("a", Ready), SuspectKind::Transport, &lost(), now);
        assert_eq!(go(&mut choice, now), "b");
        choice.clear_all();
        assert_eq!(go(&mut choice, now), "b", "no way back without need");
    }

    #[test]
    fn pin_waits_for_its_pod() {
        let now = now();
        let mut choice = choice(Balance::Pin(Arc::from("b")), &[("a", Ready), ("b", NotReady)]);
        assert_eq!(choice.pick(&[], now), Pick::Wait(None));
        assert!(choice.update(&[endpoint("a", Ready), endpoint("b", Ready)]));
        assert_eq!(go(&mut choice, now), "b");
    }

    #[test]
    fn draining_only_when_nothing_else_and_not_ready_never() {
        let now = now();
        let mut choice = choice(Balance::RoundRobin, &[("a", Draining), ("b", NotReady)]);
        assert_eq!([go(&mut choice, now), go(&mut choice, now)], ["a", "a"]);
        assert!(!choice.any_ready());
        choice.update(&[endpoint("a", Draining), endpoint("b", Ready)]);
        assert_eq!([go(&mut choice, now), go(&mut choice, now)], ["b", "b"]);
        choice.update(&[endpoint("b", NotReady)]);
        assert_eq!(choice.pick(&[], now), Pick::Wait(None));
    }

    #[test]
    fn a_broken_endpoint_is_probed_at_once_and_then_by_one_connection_per_interval() {
        let now = now();
        let mut choice = choice(Balance::RoundRobin, &[("a", Ready)]);
        for _ in 0..3 {
            choice.suspect(&endpoint("a", Ready), SuspectKind::Transport, &lost(), now);
        }
        assert_eq!(go(&mut choice, now), "a", "the probe");
        let next = now + PROBE_INTERVAL;
        assert_eq!(choice.pick(&[], now), Pick::Wait(Some(next)));
        choice.suspect(&endpoint("a", Ready), SuspectKind::Transport, &lost(), now);
        assert_eq!(choice.pick(&[], now), Pick::Wait(Some(next)), "the probe failed");
        assert_eq!(go(&mut choice, next), "a");
        assert_eq!(choice.pick(&[], next), Pick::Wait(Some(next + PROBE_INTERVAL)));
        assert!(choice.clear(&endpoint("a", Ready)));
        assert_eq!(go(&mut choice, next), "a");
    }

    #[test]
    fn others_follow_a_connection_that_stands_but_not_after_it_has_failed() {
        let now = now();
        let a = endpoint("a", Ready);
        let mut choice = choice(Balance::RoundRobin, &[("a", Ready)]);
        assert!(!choice.is_on_trial(&a));
        choice.suspect(&a, SuspectKind::Transport, &lost(), now);
        assert_eq!(go(&mut choice, now), "a", "the trial");
        assert!(choice.is_on_trial(&a));
        let stood = now + TRIAL;
        assert_eq!(choice.pick(&[], stood), Pick::Wait(Some(now + PROBE_INTERVAL)));
        assert!(!choice.stood(&a, now - TRIAL), "opened before the failure");
        assert!(choice.stood(&a, now));
        assert!(!choice.stood(&a, now), "once");
        for _ in 0..3 {
            assert_eq!(go(&mut choice, stood), "a");
        }
        // All of them fail in the end, and then only one tries again.
        for _ in 0..4 {
            choice.suspect(&a, SuspectKind::Transport, &lost(), stood);
        }
        let next = stood + PROBE_INTERVAL;
        assert_eq!(choice.pick(&[], stood), Pick::Wait(Some(next)));
        assert_eq!(go(&mut choice, next), "a");
        assert!(matches!(choice.pick(&[], next), Pick::Wait(Some(_))));
        // After a byte all is as if nothing had been.
        choice.clear(&a);
        choice.suspect(&a, SuspectKind::Transport, &lost(), next);
        assert_eq!(go(&mut choice, next), "a");
    }

    #[test]
    fn what_only_a_person_can_change_is_told_to_all() {
        let now = now();
        let (a, b) = (endpoint("a", Ready), endpoint("b", Ready));
        let expired = Problem::new(Code::Unauthorized, "the login has expired");
        let transport = SuspectKind::Transport;
        let mut choice = choice(Balance::RoundRobin, &[("a", Ready), ("b", Ready)]);
        for pod in [&a, &b] {
            assert!(choice.suspect(pod, transport, &expired, now));
        }
        assert_eq!([go(&mut choice, now), go(&mut choice, now)], ["a", "b"]);
        assert!(matches!(choice.pick(&[], now), Pick::Wait(Some(_))), "both have been asked again");
        choice.suspect(&a, transport, &expired, now);
        assert!(matches!(choice.pick(&[], now), Pick::Wait(Some(_))), "b may still serve");
        choice.suspect(&b, transport, &expired, now);
        assert_eq!(choice.pick(&[], now), Pick::Refuse(expired.clone()));
        assert_eq!(choice.pick(std::slice::from_ref(&a), now), Pick::Refuse(expired.clone()));
        let next = now + PROBE_INTERVAL;
        assert_eq!(go(&mut choice, next), "a", "asked again");
        assert!(!choice.suspect(&a, transport, &lost(), next));
        assert_eq!(go(&mut choice, next), "b");
        choice.suspect(&b, transport, &expired, next);
        assert!(matches!(choice.pick(&[], next), Pick::Wait(Some(_))), "a may come back by itself");
    }

    #[test]
    fn a_broken_endpoint_is_avoided_and_comes_back_by_itself() {
        let now = now();
        let mut choice = choice(Balance::RoundRobin, &[("a", Ready), ("b", Ready)]);
        choice.suspect(&endpoint("a", Ready), SuspectKind::Transport, &lost(), now);
        assert_eq!([go(&mut choice, now), go(&mut choice, now)], ["b", "b"]);
        let later = now + AVOID;
        assert_eq!(
            [go(&mut choice, later), go(&mut choice, later)],
            ["a", "b"],
            "one probe, then the others"
        );
    }

    #[test]
    fn the_transport_goes_where_the_next_connection_goes() {
        let now = now();
        let mut choice = choice(Balance::RoundRobin, &[("a", Ready), ("b", Ready), ("c", Draining)]);
        assert_eq!(choice.for_transport(now), Some(endpoint("a", Ready)));
        choice.suspect(&endpoint("a", Ready), SuspectKind::Transport, &lost(), now);
        assert_eq!(choice.for_transport(now), Some(endpoint("b", Ready)));
        choice.suspect(&endpoint("b", Ready), SuspectKind::Transport, &lost(), now + AVOID / 2);
        assert_eq!(choice.for_transport(now + AVOID / 2), Some(endpoint("a", Ready)));
        choice.update(&[endpoint("c", Draining)]);
        assert_eq!(choice.for_transport(now), None);
    }

    #[test]
    fn a_refusing_endpoint_is_avoided_but_not_locked() {
        let now = now();
        let mut choice = choice(Balance::RoundRobin, &[("a", Ready), ("b", Ready)]);
        choice.suspect(&endpoint("a", Ready), SuspectKind::Refused, &lost(), now);
        assert_eq!([go(&mut choice, now), go(&mut choice, now)], ["b", "b"]);
        assert_eq!(choice.pick(&[endpoint("b", Ready)], now), Pick::Go(endpoint("a", Ready)));
        assert_eq!(choice.pick(&[endpoint("a", Ready), endpoint("b", Ready)], now), Pick::Wait(None));
    }

    #[test]
    fn a_successor_of_the_same_name_is_another_pod() {
        let now = now();
        let mut choice = choice(Balance::RoundRobin, &[("db-0", Ready)]);
        choice.suspect(&endpoint("db-0", Ready), SuspectKind::Transport, &lost(), now);
        let successor = Endpoint { uid: Arc::from("new"), ..endpoint("db-0", Ready) };
        assert!(choice.update(std::slice::from_ref(&successor)));
        assert_eq!(choice.pick(&[], now), Pick::Go(successor));
    }

    fn any_set() -> impl Strategy<Value = Vec<Endpoint>> {
        let condition = prop::sample::select(vec![Ready, Ready, Ready, Draining, NotReady]);
        prop::collection::btree_map(0u8..8, condition, 0..8).prop_map(|pods| {
            pods.into_iter().map(|(pod, condition)| endpoint(&format!("pod-{pod}"), condition)).collect()
        })
    }

    proptest! {
        /// While a set stays, any two of its usable endpoints differ by at most one connection, whatever came before; and
        /// nothing that is not usable is ever chosen.
        #[test]
        fn fair_while_a_set_stays(sets in prop::collection::vec((any_set(), 0usize..40), 1..12)) {
            let (mut choice, now) = (Choice::new(Balance::RoundRobin), now());
            for (set, picks) in sets {
                choice.update(&set);
                let ready: Vec<_> = set.iter().filter(|e| e.condition == Ready).collect();
                let usable: Vec<_> = match ready.is_empty() {
                    false => ready,
                    true => set.iter().filter(|e| e.condition == Draining).collect(),
                };
                let mut counts = vec![0usize; usable.len()];
                for _ in 0..picks {
                    match choice.pick(&[], now) {
                        Pick::Go(chosen) => {
                            let index = usable.iter().position(|e| **e == chosen);
                            prop_assert!(index.is_some(), "{chosen} is not usable");
                            counts[index.expect("checked")] += 1;
                        }
                        Pick::Wait(until) => prop_assert!(usable.is_empty() && until.is_none()),
                        Pick::Refuse(problem) | Pick::Mend(problem) => prop_assert!(false, "{problem}"),
                    }
                }
                let (low, high) = (counts.iter().min(), counts.iter().max());
                prop_assert!(high.unwrap_or(&0) - low.unwrap_or(&0) <= 1, "{counts:?}");
            }
        }
    }
}
