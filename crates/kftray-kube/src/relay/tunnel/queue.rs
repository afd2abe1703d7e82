//! What waits of a UDP flow: bounded in bytes and in age, and what is too much is dropped from the old end. Pure.
//!
//! The carrier below is reliable and so never loses anything, but it can stall. A queue without limits would then turn a
//! lossy network into a delay line, which is worse for everything that uses UDP.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

/// Most bytes that wait (research/datapath.md 5): at least four datagrams of the largest size.
pub(super) const MOST_BYTES: usize = 256 * 1024;
/// Most age of what waits, unless nothing newer does (research/datapath.md 5): beyond it voice and games have no use for it,
/// and DNS has asked again before long.
pub(super) const MOST_AGE: Duration = Duration::from_millis(50);
/// What a datagram counts beside its payload: a queue of empty ones needs memory, too.
const OVERHEAD: usize = 64;

/// The datagrams of one flow in one direction, oldest first.
#[derive(Debug, Default)]
pub(super) struct DatagramQueue {
    waiting: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    dropped: u64,
}

impl DatagramQueue {
    /// Appends a datagram; drops the oldest ones if it would be too much.
    pub(super) fn push(&mut self, now: Instant, datagram: Bytes) {
        self.bytes += datagram.len() + OVERHEAD;
        self.waiting.push_back((now, datagram));
        while self.bytes > MOST_BYTES {
            self.drop_front();
        }
    }

    /// The oldest datagram that is not too old, or the newest if all are.
    pub(super) fn pull(&mut self, now: Instant) -> Option<Bytes> {
        while self.waiting.len() > 1
            && self.waiting.front().is_some_and(|(since, _)| now.duration_since(*since) > MOST_AGE)
        {
            self.drop_front();
        }
        self.take_front()
    }

    /// Datagrams dropped so far.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    fn drop_front(&mut self) {
        if self.take_front().is_some() {
            self.dropped += 1;
        }
    }

    fn take_front(&mut self) -> Option<Bytes> {
        let (_, datagram) = self.waiting.pop_front()?;
        self.bytes -= datagram.len() + OVERHEAD;
        Some(datagram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(number: usize, length: usize) -> Bytes {
        let mut bytes = vec![0; length.max(8)];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        Bytes::from(bytes)
    }

    fn number(datagram: &Bytes) -> usize {
        usize::from_be_bytes(datagram[..8].try_into().expect("eight bytes"))
    }

    fn drain(queue: &mut DatagramQueue) -> Vec<usize> {
        std::iter::from_fn(|| queue.pull(Instant::now())).map(|datagram| number(&datagram)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn order_is_kept_and_empty_datagrams_exist() {
        let mut queue = DatagramQueue::default();
        queue.push(Instant::now(), Bytes::new());
        queue.push(Instant::now(), datagram(1, 8));
        assert_eq!(queue.pull(Instant::now()), Some(Bytes::new()));
        assert_eq!(drain(&mut queue), [1]);
        assert_eq!(queue.pull(Instant::now()), None);
        assert_eq!((queue.dropped(), queue.bytes), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn too_much_drops_the_oldest() {
        let mut queue = DatagramQueue::default();
        for index in 0..10 {
            queue.push(Instant::now(), datagram(index, 60_000));
        }
        // Four of 60,000 bytes fit into 256 KiB.
        assert_eq!(drain(&mut queue), [6, 7, 8, 9]);
        assert_eq!(queue.dropped(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn empty_ones_are_bounded_too() {
        let mut queue = DatagramQueue::default();
        for _ in 0..100_000 {
            queue.push(Instant::now(), Bytes::new());
        }
        assert_eq!(queue.waiting.len(), MOST_BYTES / OVERHEAD);
        assert_eq!(queue.dropped(), 100_000 - (MOST_BYTES / OVERHEAD) as u64);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_old_is_dropped_but_the_newest_is_kept() {
        let mut queue = DatagramQueue::default();
        queue.push(Instant::now(), datagram(0, 100));
        queue.push(Instant::now(), datagram(1, 100));
        tokio::time::advance(MOST_AGE).await;
        queue.push(Instant::now(), datagram(2, 100));
        assert_eq!(queue.pull(Instant::now()).map(|datagram| number(&datagram)), Some(0), "just in time");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(drain(&mut queue), [2]);
        assert_eq!(queue.dropped(), 1);

        // A single request outlives any stall: somebody waits for its answer.
        queue.push(Instant::now(), datagram(3, 100));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(drain(&mut queue), [3]);
        assert_eq!(queue.dropped(), 1);
    }
}
