//! Leases: each is held by a connection or by renewals, and its end is told once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kftray_commons::api::{Lease, LeaseId};
use kftray_commons::{Code, Problem};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;
use utoipa::ToSchema;

use crate::clock;

/// Leases at the same time: more than clients.
const LEASES: usize = 4096;

/// The longest a lease may last without a renewal: a day.
pub(crate) const LONGEST: u32 = 86_400;

/// How long a lease that was handed over waits for its client: it looks for the new host at once.
const CLAIM: Duration = Duration::from_secs(30);

/// A lease that one host hands over to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Offered {
    /// Its number, which stays.
    #[schema(value_type = u64)]
    pub(crate) id: LeaseId,
    /// What each renewal adds; none where a connection holds it.
    #[serde(default)]
    pub(crate) seconds: Option<u32>,
}

/// All leases. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Leases {
    inner: Arc<Mutex<Inner>>,
    /// lease --ended--> host
    ended: mpsc::UnboundedSender<LeaseId>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    known: HashMap<LeaseId, Hold>,
}

/// What keeps a lease.
#[derive(Debug)]
enum Hold {
    /// A connection.
    Connection,
    /// A client of the host before, which comes for it or not.
    Unclaimed { _timer: JoinSet<()> },
    /// Renewals: so long each, and the task that waits for the end.
    Renewals { each: Duration, _timer: JoinSet<()> },
}

/// Keeps a lease until it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) lease: Lease,
    leases: Leases,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.leases.end(self.lease.id);
    }
}

impl Leases {
    pub(crate) fn new(ended: mpsc::UnboundedSender<LeaseId>) -> Self {
        Self { inner: Arc::default(), ended }
    }

    /// A lease for as long as the value lives.
    ///
    /// # Errors
    /// `too_many_clients`.
    pub(crate) fn hold(&self) -> Result<Held, Problem> {
        let id = self.inner().add(|_| Hold::Connection)?;
        Ok(Held { lease: Lease { id, expires_at: None }, leases: self.clone() })
    }

    /// All that are held, for the next host.
    pub(crate) fn offered(&self) -> Vec<Offered> {
        let one = |(id, hold): (&LeaseId, &Hold)| {
            let seconds = match hold {
                Hold::Renewals { each, .. } => u32::try_from(each.as_secs()).ok(),
                Hold::Connection | Hold::Unclaimed { .. } => None,
            };
            Offered { id: *id, seconds }
        };
        self.inner().known.iter().map(one).collect()
    }

    /// Takes over what the host before held. Those of connections end unless they are claimed.
    pub(crate) fn inherit(&self, offered: &[Offered]) {
        let mut inner = self.inner();
        for Offered { id, seconds } in offered.iter().copied() {
            let hold = match seconds.map(|seconds| Duration::from_secs(u64::from(seconds))) {
                Some(each) => Hold::Renewals { each, _timer: self.timer(id, each) },
                None => Hold::Unclaimed { _timer: self.timer(id, CLAIM) },
            };
            inner.next = inner.next.max(id.0);
            inner.known.insert(id, hold);
        }
    }

    /// A lease of the host before, for as long as the value lives.
    ///
    /// # Errors
    /// `not_found` if there is none of that number that waits for its client.
    pub(crate) fn claim(&self, id: LeaseId) -> Result<Held, Problem> {
        let mut inner = self.inner();
        match inner.known.get_mut(&id) {
            Some(hold @ Hold::Unclaimed { .. }) => *hold = Hold::Connection,
            Some(Hold::Connection | Hold::Renewals { .. }) | None => return Err(unknown(id)),
        }
        Ok(Held { lease: Lease { id, expires_at: None }, leases: self.clone() })
    }

    /// A lease for so long, and for as long again with every renewal.
    ///
    /// # Errors
    /// `request_invalid` for a time out of range, `too_many_clients`.
    pub(crate) fn rent(&self, seconds: u32) -> Result<Lease, Problem> {
        if !(1..=LONGEST).contains(&seconds) {
            let message = format!("a lease lasts 1 to {LONGEST} seconds, not {seconds}");
            return Err(Problem::new(Code::RequestInvalid, message));
        }
        let each = Duration::from_secs(u64::from(seconds));
        let id = self.inner().add(|id| Hold::Renewals { each, _timer: self.timer(id, each) })?;
        Ok(Lease { id, expires_at: Some(clock::now() + clock::millis(each)) })
    }

    /// Renews a lease that is held by renewals.
    ///
    /// # Errors
    /// `not_found` if it has ended, or is held by a connection.
    pub(crate) fn renew(&self, id: LeaseId) -> Result<Lease, Problem> {
        let mut inner = self.inner();
        let each = match inner.known.get(&id) {
            Some(Hold::Renewals { each, .. }) => *each,
            Some(Hold::Connection | Hold::Unclaimed { .. }) | None => return Err(unknown(id)),
        };
        inner.known.insert(id, Hold::Renewals { each, _timer: self.timer(id, each) });
        Ok(Lease { id, expires_at: Some(clock::now() + clock::millis(each)) })
    }

    /// Ends a lease; whether there was one.
    pub(crate) fn end(&self, id: LeaseId) -> bool {
        // The timer must not be dropped under the lock: it may be the one who asks.
        let known = self.inner().known.remove(&id);
        if known.is_some() {
            // Without a host nobody has to hear it.
            self.ended.send(id).ok();
        }
        known.is_some()
    }

    /// Whether it has not ended.
    pub(crate) fn is_held(&self, id: LeaseId) -> bool {
        self.inner().known.contains_key(&id)
    }

    fn timer(&self, id: LeaseId, after: Duration) -> JoinSet<()> {
        let leases = self.clone();
        let mut timer = JoinSet::new();
        timer.spawn(async move {
            sleep(after).await;
            leases.end(id);
        });
        timer
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn add(&mut self, hold: impl FnOnce(LeaseId) -> Hold) -> Result<LeaseId, Problem> {
        if self.known.len() >= LEASES {
            return Err(Problem::new(Code::TooManyClients, format!("there are {LEASES} leases already")));
        }
        self.next += 1;
        let id = LeaseId(self.next);
        self.known.insert(id, hold(id));
        Ok(id)
    }
}

/// Why a lease cannot be used.
pub(crate) fn unknown(id: LeaseId) -> Problem {
    Problem::new(Code::NotFound, format!("there is no lease {id}, or it has ended"))
        .with_remedy("Take a new lease.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_rented_lease_ends_unless_it_is_renewed() {
        let (ended_tx, mut ended) = mpsc::unbounded_channel();
        let leases = Leases::new(ended_tx);
        let lease = leases.rent(10).expect("room");
        sleep(Duration::from_secs(7)).await;
        leases.renew(lease.id).expect("held");
        sleep(Duration::from_secs(7)).await;
        assert!(leases.is_held(lease.id));
        assert!(ended.try_recv().is_err());
        sleep(Duration::from_secs(4)).await;
        assert_eq!(ended.recv().await, Some(lease.id));
        assert_eq!(leases.renew(lease.id).expect_err("ended").code, Code::NotFound);
        for wrong in [0, LONGEST + 1] {
            assert_eq!(leases.rent(wrong).expect_err("out of range").code, Code::RequestInvalid);
        }
    }

    #[tokio::test]
    async fn a_held_lease_ends_with_its_holder_and_once() {
        let (ended_tx, mut ended) = mpsc::unbounded_channel();
        let leases = Leases::new(ended_tx);
        let held = leases.hold().expect("room");
        let id = held.lease.id;
        assert_eq!(leases.renew(id).expect_err("a connection holds it").code, Code::NotFound);
        drop(held);
        assert_eq!(ended.recv().await, Some(id));
        assert!(!leases.end(id));
        assert!(ended.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_host_goes_on_with_them() {
        let (ended_tx, mut old_ended) = mpsc::unbounded_channel();
        let old = Leases::new(ended_tx);
        let (held, other) = (old.hold().expect("room"), old.hold().expect("room"));
        let rented = old.rent(600).expect("room");
        let (ended_tx, mut ended) = mpsc::unbounded_channel();
        let new = Leases::new(ended_tx);
        new.inherit(&old.offered());
        assert!(old_ended.try_recv().is_err());
        let claimed = new.claim(held.lease.id).expect("it waits for its client");
        assert_eq!(new.claim(held.lease.id).expect_err("claimed").code, Code::NotFound);
        assert_eq!(new.claim(LeaseId(99)).expect_err("never given").code, Code::NotFound);
        assert!(new.renew(rented.id).is_ok());
        assert!(new.hold().expect("room").lease.id.0 > rented.id.0, "numbers are not given twice");
        ended.recv().await.expect("the one that was just dropped");
        sleep(CLAIM * 2).await;
        assert_eq!(ended.recv().await, Some(other.lease.id), "nobody came for it");
        assert!(new.is_held(claimed.lease.id) && new.is_held(rented.id));
    }
}
