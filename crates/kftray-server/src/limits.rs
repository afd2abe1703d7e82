//! The bounds on what clients may hold, and the memory the process may grow to.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use kftray_relay_proto::reason::{Refusal, RefusalKind};
use kftray_relay_proto::token::TokenHash;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tracing::warn;

use crate::mux::FRAME;
use crate::settings::Limits;
use crate::stalls::Stalls;

/// Carriers that have not said hello yet. They cost a buffer each and are gone after seconds.
const STRANGERS: usize = 32;

/// How old a reading of the memory may be. It costs some 20 us.
const MEMORY_AGE: Duration = Duration::from_millis(20);

/// How far behind it may be, in bytes that were taken in since: targets fill a gigabyte each second.
const MEMORY_BEHIND: u64 = 2 << 20;

/// What cutting off a stuck stream is expected to give back: a record that is on its way. More often it is a window.
const STUCK: u64 = FRAME as u64;

/// One in so many UDP flows is not for whoever has the others already.
const KEPT_FREE: usize = 4;

/// The share of the container's limit that is used, in quarters; the rest is for what is open already.
const QUARTERS: u64 = 3;

/// Counters with a bound each.
pub(crate) struct Bounds {
    pub(crate) strangers: Arc<Semaphore>,
    pub(crate) carriers: Arc<Semaphore>,
    flows: Arc<Semaphore>,
    /// Of which one user has so many at most: questions to a DNS come by the hundred.
    flows_each: usize,
    flows_of: Mutex<HashMap<TokenHash, Weak<Semaphore>>>,
    pub(crate) streams_per_carrier: usize,
    /// What may be cut off.
    pub(crate) stalls: Stalls,
    memory: Memory,
    /// The reading on which streams were cut off.
    relieved_at: AtomicU64,
    /// Whether any were.
    relieving: AtomicBool,
}

/// Held as long as what it counts.
pub(crate) type Permit = OwnedSemaphorePermit;

impl Bounds {
    pub(crate) fn new(limits: &Limits, now: Instant) -> Self {
        Self {
            strangers: Arc::new(Semaphore::new(STRANGERS)),
            carriers: Arc::new(Semaphore::new(limits.carriers)),
            flows: Arc::new(Semaphore::new(limits.flows)),
            flows_each: limits.flows - limits.flows / KEPT_FREE,
            flows_of: Mutex::default(),
            streams_per_carrier: limits.streams,
            stalls: Stalls::default(),
            relieved_at: AtomicU64::new(u64::MAX),
            relieving: AtomicBool::new(false),
            memory: Memory::new(limits.memory.or_else(container_limit), now),
        }
    }

    /// Where more memory is used than there is: cuts off streams that are stuck. Says whether that gives some back, so that
    /// it is worth waiting for. To be called whenever bytes move.
    pub(crate) fn relieve(&self, now: Instant) -> bool {
        let Some((used, limit)) = self.memory.beyond(now) else { return false };
        // Only once for each reading: what is cut off gives its memory back later.
        let read_at = self.memory.read_at.load(Ordering::Relaxed);
        if self.relieved_at.swap(read_at, Ordering::Relaxed) != read_at {
            let count = usize::try_from((used - limit) / STUCK + 1).unwrap_or(usize::MAX);
            let cut = self.stalls.cut(count);
            self.relieving.store(cut > 0, Ordering::Relaxed);
            if cut > 0 {
                let (used, limit) = (used >> 20, limit >> 20);
                warn!(
                    "{cut} streams that nobody reads are cut off: {used} MiB are used, the limit is {limit}"
                );
            }
        }
        self.relieving.load(Ordering::Relaxed)
    }

    /// Takes a UDP flow for a user, whatever the number of their carriers.
    pub(crate) fn flow(&self, user: TokenHash) -> Result<(Permit, Permit), Refusal> {
        let mut users = self.flows_of.lock().unwrap_or_else(PoisonError::into_inner);
        users.retain(|_, share| share.strong_count() > 0);
        let share = users.get(&user).and_then(Weak::upgrade);
        let share = share.unwrap_or_else(|| Arc::new(Semaphore::new(self.flows_each)));
        users.insert(user, Arc::downgrade(&share));
        drop(users);
        Ok((take(&share, "UDP flows of one user")?, take(&self.flows, "UDP flows")?))
    }

    /// So many bytes of a target were taken in.
    pub(crate) fn took(&self, bytes: usize) {
        self.memory.behind.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Whether there is memory for one more of anything.
    pub(crate) fn check_memory(&self, now: Instant) -> Result<(), Refusal> {
        let Some((used, limit)) = self.memory.beyond(now) else { return Ok(()) };
        let mib = |bytes: u64| bytes >> 20;
        Err(Refusal::new(
            RefusalKind::Busy,
            format!("the relay uses {} MiB of memory and takes no more beyond {} MiB", mib(used), mib(limit)),
        ))
    }
}

/// Takes one of `what`, or says that there are too many.
pub(crate) fn take(bound: &Arc<Semaphore>, what: &str) -> Result<Permit, Refusal> {
    Arc::clone(bound)
        .try_acquire_owned()
        .map_err(|_| Refusal::new(RefusalKind::Busy, format!("the relay has as many {what} as it takes")))
}

struct Memory {
    limit: Option<u64>,
    begin: Instant,
    /// Milliseconds after `begin` of the last reading.
    read_at: AtomicU64,
    used: AtomicU64,
    /// Bytes taken in since.
    behind: AtomicU64,
}

impl Memory {
    fn new(limit: Option<u64>, now: Instant) -> Self {
        Self {
            limit,
            begin: now,
            read_at: AtomicU64::new(0),
            used: AtomicU64::new(0),
            behind: AtomicU64::new(0),
        }
    }

    /// Used and limit, if more is used.
    fn beyond(&self, now: Instant) -> Option<(u64, u64)> {
        let limit = self.limit?;
        let millis = u64::try_from((now - self.begin).as_millis()).unwrap_or(u64::MAX);
        let age = Duration::from_millis(millis.saturating_sub(self.read_at.load(Ordering::Relaxed)));
        let behind = self.behind.load(Ordering::Relaxed);
        if age >= MEMORY_AGE || behind >= MEMORY_BEHIND || self.used.load(Ordering::Relaxed) == 0 {
            self.behind.store(0, Ordering::Relaxed);
            self.read_at.store(millis, Ordering::Relaxed);
            self.used.store(resident().unwrap_or(0), Ordering::Relaxed);
        }
        let used = self.used.load(Ordering::Relaxed);
        (used > limit).then_some((used, limit))
    }
}

/// The container's memory limit as seen from inside: cgroup v2, v1.
const CONTAINER_LIMITS: [&str; 2] =
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// Three quarters of the container's memory limit, if it has one.
fn container_limit() -> Option<u64> {
    // "max" (v2) is no number; "no limit" of v1 is a number that nothing reaches.
    let limit = |path: &&str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    Some(CONTAINER_LIMITS.iter().find_map(limit)? / 4 * QUARTERS)
}

/// Resident memory of this process, bytes (proc(5), `VmRSS` of `status`: in kB whatever the page size).
pub(crate) fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use kftray_relay_proto::token::Token;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn memory_is_read_again_after_a_while() {
        let memory = Memory::new(Some(u64::MAX), Instant::now());
        assert_eq!(memory.beyond(Instant::now()), None);
        assert!(memory.used.load(Ordering::Relaxed) > 1 << 20, "a process has a megabyte");
        memory.used.store(1, Ordering::Relaxed);
        memory.beyond(Instant::now());
        assert_eq!(memory.used.load(Ordering::Relaxed), 1, "too soon");
        tokio::time::advance(MEMORY_AGE).await;
        memory.beyond(Instant::now());
        assert!(memory.used.load(Ordering::Relaxed) > 1);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_read_again_when_much_came_in() {
        let bounds = Bounds::new(&Limits { memory: Some(u64::MAX), ..Limits::default() }, Instant::now());
        bounds.memory.beyond(Instant::now());
        bounds.memory.used.store(1, Ordering::Relaxed);
        for more in [MEMORY_BEHIND / 2, MEMORY_BEHIND / 2 - 1] {
            bounds.took(usize::try_from(more).unwrap());
            bounds.memory.beyond(Instant::now());
            assert_eq!(bounds.memory.used.load(Ordering::Relaxed), 1, "too little");
        }
        bounds.took(1);
        bounds.memory.beyond(Instant::now());
        assert!(bounds.memory.used.load(Ordering::Relaxed) > 1);
        assert_eq!(bounds.memory.behind.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn nobody_takes_all_flows() {
        let bounds = Bounds::new(&Limits { flows: 8, ..Limits::default() }, Instant::now());
        let [one, other] = [[1; 32], [2; 32]].map(|secret| Token::new(secret).hash());
        let mut held: Vec<_> = (0..6).map(|_| bounds.flow(one).unwrap()).collect();
        let refusal = bounds.flow(one).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Busy);
        assert!(refusal.message.contains("of one user"), "{}", refusal.message);
        let others = [bounds.flow(other).unwrap(), bounds.flow(other).unwrap()];
        assert!(!bounds.flow(other).unwrap_err().message.contains("of one user"));
        held.pop();
        held.push(bounds.flow(one).unwrap());
        drop((held, others));
        held = (0..6).map(|_| bounds.flow(other).unwrap()).collect();
        assert_eq!(bounds.flows_of.lock().unwrap().len(), 1, "who holds none is forgotten");
        drop(held);
    }

    #[tokio::test]
    async fn beyond_the_limit_is_busy() {
        let bounds = Bounds::new(&Limits { memory: Some(1), ..Limits::default() }, Instant::now());
        assert_eq!(bounds.check_memory(Instant::now()).unwrap_err().kind, RefusalKind::Busy);
        let one = Arc::new(Semaphore::new(1));
        let held = take(&one, "flows").unwrap();
        assert_eq!(take(&one, "flows").unwrap_err().kind, RefusalKind::Busy);
        drop(held);
        assert!(take(&one, "flows").is_ok());
    }
}
