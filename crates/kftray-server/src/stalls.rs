//! Streams that hold bytes which nobody takes: what is given up when memory runs out.
//!
//! yamux lets each stream hold a window of bytes that its target does not take, and thousands of streams together more than
//! a container has. A window cannot be taken back once it is granted, so beyond the memory limit the streams that have been
//! stuck longest are cut off. Those that move are left alone.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

/// The directions of streams that are stuck now.
#[derive(Default)]
pub(crate) struct Stalls(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    next: u64,
    /// In the order in which they got stuck.
    stuck: BTreeMap<u64, Waker>,
}

/// One direction that is stuck, as long as it is.
pub(crate) struct Stall<'a> {
    stalls: &'a Stalls,
    number: u64,
}

impl Stalls {
    /// Keeps `stall` in step with a direction: whether it is `stuck`, and whether it has `moved` since the last time.
    pub(crate) fn note<'a>(
        &'a self,
        stall: &mut Option<Stall<'a>>,
        stuck: bool,
        moved: bool,
        cx: &Context<'_>,
    ) {
        if !stuck || moved {
            *stall = None;
        }
        if stuck && stall.is_none() {
            let mut queue = self.lock();
            let number = queue.next;
            queue.next += 1;
            queue.stuck.insert(number, cx.waker().clone());
            *stall = Some(Stall { stalls: self, number });
        }
    }

    /// Cuts off up to `count` of them; says how many.
    pub(crate) fn cut(&self, count: usize) -> usize {
        let mut queue = self.lock();
        let cut: Vec<Waker> =
            std::iter::from_fn(|| queue.stuck.pop_first()).take(count).map(|(_, waker)| waker).collect();
        drop(queue);
        let count = cut.len();
        cut.into_iter().for_each(Waker::wake);
        count
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stall<'_> {
    /// Whether its stream is to end.
    pub(crate) fn is_cut(&self) -> bool {
        !self.stalls.lock().stuck.contains_key(&self.number)
    }
}

impl Drop for Stall<'_> {
    fn drop(&mut self) {
        self.stalls.lock().stuck.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_stuck_go_first() {
        let stalls = Stalls::default();
        let cx = Context::from_waker(Waker::noop());
        let [mut first, mut second, mut third] = [None, None, None];
        stalls.note(&mut first, true, false, &cx);
        stalls.note(&mut second, true, false, &cx);
        stalls.note(&mut third, true, false, &cx);
        // It moves, and is stuck anew: the youngest.
        stalls.note(&mut first, true, true, &cx);
        // Nothing new.
        stalls.note(&mut second, true, false, &cx);
        assert_eq!(stalls.cut(1), 1);
        let is_cut = |stall: &Option<Stall<'_>>| stall.as_ref().unwrap().is_cut();
        assert_eq!([&first, &second, &third].map(is_cut), [false, true, false]);
        // It is not stuck any more.
        stalls.note(&mut third, false, true, &cx);
        assert_eq!(stalls.cut(9), 1);
        assert!(is_cut(&first) && third.is_none());
        drop((first, second));
        assert!(stalls.lock().stuck.is_empty());
    }
}
