//! Which endpoint the next connection goes to. Pure.
//!
//! Round robin is "the one that was chosen longest ago": it needs no cursor, stays fair while endpoints come and go, and a
//! new endpoint gets one connection early, not a burst.
//!
//! An endpoint that has just failed is a *suspect*. A suspect whose transport failed may be tried by one connection per
//! [`PROBE_INTERVAL`], so that a crowd of waiting clients does not storm a cluster that comes back, and one success clears
//! it. A suspect that *refused* (nothing listens on its port) is merely avoided while there is another.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::Balance;
use crate::ports::{Condition, Endpoint};

/// How often a waiting crowd tries an endpoint whose transport failed: an unreachable cluster that comes back is found
/// within a second, at the price of one attempt per second while somebody waits.
pub(crate) const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// How long an endpoint that refused is avoided: about what a program takes from "ready" to listening.
const AVOID_REFUSED: Duration = Duration::from_secs(1);

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

#[derive(Debug, Clone, Copy)]
struct Suspect {
    until: Instant,
    kind: SuspectKind,
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
                    suspect: known.and_then(|seat| seat.suspect),
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
        let sound = |seat: &Seat| seat.suspect.is_none_or(|suspect| suspect.until <= now);
        let refused = |seat: &Seat| seat.suspect.is_some_and(|suspect| suspect.kind == SuspectKind::Refused);
        let chosen = self.first(except, sound).or_else(|| self.first(except, refused));
        let Some(index) = chosen else {
            let waits = self.usable_seats(except).filter_map(|(_, seat)| Some(seat.suspect?.until));
            return Pick::Wait(waits.min());
        };
        self.turn += 1;
        let turn = self.turn;
        let Some(seat) = self.seats.get_mut(index) else { return Pick::Wait(None) };
        seat.last_turn = turn;
        if let Some(Suspect { until, kind: SuspectKind::Transport }) = &mut seat.suspect {
            // This connection is the probe; the next one may try after the same pause.
            *until = now + PROBE_INTERVAL;
        }
        Pick::Go(seat.endpoint.clone())
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

    /// An endpoint has failed a connection.
    pub(crate) fn suspect(&mut self, endpoint: &Endpoint, kind: SuspectKind, now: Instant) {
        let pause = match kind {
            SuspectKind::Transport => PROBE_INTERVAL,
            SuspectKind::Refused => AVOID_REFUSED,
        };
        if let Some(seat) = self.seat(endpoint) {
            seat.suspect = Some(Suspect { until: now + pause, kind });
        }
    }

    /// An endpoint works. Returns whether it was a suspect for its transport: then somebody may be waiting for it.
    pub(crate) fn clear(&mut self, endpoint: &Endpoint, kind: SuspectKind) -> bool {
        let Some(seat) = self.seat(endpoint) else { return false };
        let cleared = seat.suspect.take_if(|suspect| suspect.kind == kind);
        cleared.is_some_and(|suspect| suspect.kind == SuspectKind::Transport)
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

/// The same port of the same pod over the same cluster connection, whatever its condition.
pub(crate) fn same_pod(a: &Endpoint, b: &Endpoint) -> bool {
    a.port == b.port
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
        namespace: Arc::from("ns"),
        pod: Arc::from(pod),
        uid: Arc::from(format!("uid-{pod}")),
        node: None,
        port: 80,
        condition,
    }
}

#[cfg(test)]
mod tests {
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

    fn go(choice: &mut Choice, now: Instant) -> String {
        match choice.pick(&[], now) {
            Pick::Go(endpoint) => endpoint.pod.to_string(),
            Pick::Wait(until) => panic!("nothing to go to until {until:?}"),
        }
    }

    use Condition::{Draining, NotReady, Ready};

    #[test]
    fn sticky_stays_and_moves_only_when_it_must() {
        let now = now();
        let mut choice = choice(Balance::Sticky, &[("a", Ready), ("b", Ready)]);
        assert_eq!([go(&mut choice, now), go(&mut choice, now)], ["a", "a"]);
        choice.suspect(&endpoint("a", Ready), SuspectKind::Transport, now);
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
    fn a_broken_endpoint_is_probed_by_one_connection_per_interval() {
        let now = now();
        let mut choice = choice(Balance::RoundRobin, &[("a", Ready)]);
        choice.suspect(&endpoint("a", Ready), SuspectKind::Transport, now);
        let next = now + PROBE_INTERVAL;
        assert_eq!(choice.pick(&[], now), Pick::Wait(Some(next)));
        assert_eq!(go(&mut choice, next), "a");
        assert_eq!(choice.pick(&[], next), Pick::Wait(Some(next + PROBE_INTERVAL)), "the probe is under way");
        assert!(choice.clear(&endpoint("a", Ready), SuspectKind::Transport));
        assert_eq!(go(&mut choice, next), "a");
    }

    #[test]
    fn a_refusing_endpoint_is_avoided_but_not_locked() {
        let now = now();
        let mut choice = choice(Balance::RoundRobin, &[("a", Ready), ("b", Ready)]);
        choice.suspect(&endpoint("a", Ready), SuspectKind::Refused, now);
        assert_eq!([go(&mut choice, now), go(&mut choice, now)], ["b", "b"]);
        assert_eq!(choice.pick(&[endpoint("b", Ready)], now), Pick::Go(endpoint("a", Ready)));
        assert_eq!(choice.pick(&[endpoint("a", Ready), endpoint("b", Ready)], now), Pick::Wait(None));
    }

    #[test]
    fn a_successor_of_the_same_name_is_another_pod() {
        let now = now();
        let mut choice = choice(Balance::RoundRobin, &[("db-0", Ready)]);
        choice.suspect(&endpoint("db-0", Ready), SuspectKind::Transport, now);
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
                    }
                }
                let (low, high) = (counts.iter().min(), counts.iter().max());
                prop_assert!(high.unwrap_or(&0) - low.unwrap_or(&0) <= 1, "{counts:?}");
            }
        }
    }
}
