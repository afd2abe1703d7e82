//! Datagrams of one local peer that wait for their flow: bounded, oldest dropped first, none lost without being counted.
//!
//! The queue itself is pure. Around it is what the listener's task (which pushes) and the flow's task (which pops) share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

/// What may wait for one flow, in bytes, overhead included: four of the largest datagrams, or the burst that a relay
/// takes in one round trip.
pub(crate) const FLOW_BYTES: usize = 256 * 1024;

/// What one datagram costs beside its payload, so that empty ones are not free: entry, `Bytes` and allocation, about.
const OVERHEAD: usize = 96;

/// Datagrams that wait, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    queue: VecDeque<(Instant, Bytes)>,
    bytes: usize,
}

impl Backlog {
    /// Takes a datagram; returns how many older ones had to go. One that is too large for the limit alone is refused.
    pub(crate) fn push(&mut self, datagram: Bytes, now: Instant, limit: usize) -> u64 {
        let cost = cost(&datagram);
        if cost > limit {
            return 1;
        }
        let mut dropped = 0;
        while self.bytes + cost > limit && self.drop_oldest() {
            dropped += 1;
        }
        self.bytes += cost;
        self.queue.push_back((now, datagram));
        dropped
    }

    /// The oldest datagram that has not waited longer than `age`, and how many have.
    pub(crate) fn pop(&mut self, now: Instant, age: Duration) -> (Option<Bytes>, u64) {
        let mut dropped = 0;
        while let Some((since, datagram)) = self.queue.pop_front() {
            self.bytes -= cost(&datagram);
            if now.saturating_duration_since(since) <= age {
                return (Some(datagram), dropped);
            }
            dropped += 1;
        }
        (None, dropped)
    }

    fn drop_oldest(&mut self) -> bool {
        let Some((_, datagram)) = self.queue.pop_front() else { return false };
        self.bytes -= cost(&datagram);
        true
    }
}

fn cost(datagram: &Bytes) -> usize {
    datagram.len() + OVERHEAD
}

/// Room for waiting datagrams of the whole process, in bytes.
#[derive(Debug)]
pub(crate) struct Room {
    used: AtomicUsize,
    limit: usize,
}

impl Room {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), limit })
    }

    /// Bytes that one flow may hold now, besides the `held` it has: less where many wait.
    fn for_flow(&self, held: usize) -> usize {
        let left = self.limit.saturating_sub(self.used.load(Relaxed));
        (held + left).min(FLOW_BYTES)
    }

    fn set(&self, before: usize, after: usize) {
        if after >= before {
            self.used.fetch_add(after - before, Relaxed);
        } else {
            self.used.fetch_sub(before - after, Relaxed);
        }
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Relaxed)
    }
}

/// The door between the listener and one flow.
#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    room: Arc<Room>,
}

#[derive(Debug, Default)]
struct State {
    backlog: Backlog,
    /// The flow's task, while it waits.
    waker: Option<Waker>,
    /// The flow has ended; the next datagram needs another one.
    closed: bool,
}

impl Inbox {
    pub(crate) fn new(room: Arc<Room>) -> Self {
        Self { state: Mutex::default(), room }
    }

    /// Gives a datagram to the flow. Returns how many were dropped for it, or the datagram if the flow has ended.
    pub(crate) fn push(&self, datagram: Bytes, now: Instant) -> Result<u64, Bytes> {
        let mut state = self.state();
        if state.closed {
            return Err(datagram);
        }
        let before = state.backlog.bytes;
        let limit = self.room.for_flow(before);
        let dropped = state.backlog.push(datagram, now, limit);
        self.room.set(before, state.backlog.bytes);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(dropped)
    }

    /// The next datagram that is not older than `age`; counts those that are.
    pub(crate) fn poll_pop(
        &self,
        cx: &Context<'_>,
        now: Instant,
        age: Duration,
        dropped: &mut u64,
    ) -> Poll<Bytes> {
        let mut state = self.state();
        let before = state.backlog.bytes;
        let (datagram, late) = state.backlog.pop(now, age);
        self.room.set(before, state.backlog.bytes);
        *dropped += late;
        match datagram {
            Some(datagram) => Poll::Ready(datagram),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Waits until something is there, without taking it. Cancel-safe.
    pub(crate) async fn filled(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.state();
            if state.backlog.queue.is_empty() {
                state.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
    }

    /// Closes it if nothing waits in it. Whether it is closed.
    pub(crate) fn close_if_empty(&self) -> bool {
        let mut state = self.state();
        state.closed |= state.backlog.queue.is_empty();
        state.closed
    }

    /// Closes it; returns how many datagrams go down with it.
    pub(crate) fn close(&self) -> u64 {
        let mut state = self.state();
        state.closed = true;
        let backlog = std::mem::take(&mut state.backlog);
        self.room.set(backlog.bytes, 0);
        backlog.queue.len() as u64
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held leaves plain values behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let bytes = self.state().backlog.bytes;
        self.room.set(bytes, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn numbered(number: usize, length: usize) -> Bytes {
        let mut bytes = vec![0; length.max(8)];
        bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
        bytes.into()
    }

    #[tokio::test(start_paused = true)]
    async fn the_room_of_the_process_is_given_back() {
        let room = Room::new(2_000);
        let inbox = Inbox::new(Arc::clone(&room));
        let now = Instant::now();
        for number in 0..100 {
            let dropped = inbox.push(numbered(number, 100), now).expect("open");
            assert!(room.used() <= 2_000);
            assert_eq!(dropped, u64::from(number >= 10), "{number}");
        }
        let other = Inbox::new(Arc::clone(&room));
        assert_eq!(other.push(numbered(0, 1_000), now), Ok(1), "no room: it is dropped itself");
        assert_eq!(inbox.close(), 10);
        assert!(inbox.push(numbered(0, 1), now).is_err());
        assert_eq!(room.used(), 0);
        other.push(numbered(0, 1_000), now).expect("open");
        drop(other);
        assert_eq!(room.used(), 0);
    }

    #[test]
    fn an_empty_inbox_closes_and_a_filled_one_does_not() {
        let inbox = Inbox::new(Room::new(10_000));
        let now = Instant::now();
        inbox.push(Bytes::new(), now).expect("open");
        assert!(!inbox.close_if_empty());
        inbox.close();
        assert!(inbox.close_if_empty());
    }

    proptest! {
        /// Against a list that knows no limits: order is kept, nothing is lost without being counted, the bound holds, and
        /// what is dropped is the oldest.
        #[test]
        fn the_oldest_go_first_and_every_loss_is_counted(
            script in prop::collection::vec((0usize..3, 0usize..4_000, 0u64..4_000), 1..200),
        ) {
            let limit = 10_000;
            let age = Duration::from_secs(5);
            let begin = Instant::now();
            let (mut backlog, mut model) = (Backlog::default(), VecDeque::new());
            let (mut now, mut pushed, mut popped, mut dropped) = (begin, 0u64, 0u64, 0u64);
            for (number, (what, length, millis)) in script.into_iter().enumerate() {
                if what < 2 {
                    let datagram = numbered(number, length);
                    pushed += 1;
                    dropped += backlog.push(datagram.clone(), now, limit);
                    model.push_back((now, datagram));
                    while model.len() as u64 > pushed - popped - dropped {
                        model.pop_front();
                    }
                } else {
                    now += Duration::from_millis(millis);
                    let (found, late) = backlog.pop(now, age);
                    for _ in 0..late {
                        let (since, _) = model.pop_front().expect("it was there");
                        prop_assert!(now - since > age);
                    }
                    dropped += late;
                    prop_assert_eq!(&found, &model.pop_front().map(|(_, datagram)| datagram));
                    popped += u64::from(found.is_some());
                }
                prop_assert!(backlog.bytes <= limit);
                prop_assert_eq!(backlog.queue.len() as u64, pushed - popped - dropped);
                prop_assert!(backlog.queue.iter().eq(model.iter()));
            }
        }
    }
}
