//! The Nodes of a zone that wait for their `NoExecute` taint, and how fast they get it. Pure: time is an argument.
//!
//! A Node is let through once until it was taken out: it must become ready, or its taint be taken away, to be queued again. Upstream:
//! `RateLimitedTimedQueue` in pkg/controller/nodelifecycle/scheduler.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

#[derive(Debug)]
pub(super) struct Evictor {
    queue: VecDeque<String>,
    /// Everything that was queued and not taken out, also what was let through.
    known: HashSet<String>,
    rate: f64,
    /// When the next Node may go; one may go at once (upstream's burst of 1).
    next: Duration,
}

impl Evictor {
    pub(super) fn new(rate: f64) -> Self {
        Self {
            queue: VecDeque::new(),
            known: HashSet::new(),
            rate,
            next: Duration::ZERO,
        }
    }

    /// Queues a Node; `false` when it is known already.
    pub(super) fn add(&mut self, node: &str) -> bool {
        if !self.known.insert(node.to_string()) {
            return false;
        }
        self.queue.push_back(node.to_string());
        true
    }

    /// Whether a Node waits in the queue.
    pub(super) fn is_waiting(&self, node: &str) -> bool {
        self.queue.iter().any(|queued| queued == node)
    }

    /// Takes a Node out; `false` when it was not there.
    pub(super) fn remove(&mut self, node: &str) -> bool {
        self.queue.retain(|queued| queued != node);
        self.known.remove(node)
    }

    /// Puts a Node back that could not be tainted.
    pub(super) fn put_back(&mut self, node: String) {
        if self.known.contains(&node) && !self.queue.contains(&node) {
            self.queue.push_back(node);
        }
    }

    /// Changes the rate, Nodes a second; 0 stops.
    pub(super) fn set_rate(&mut self, rate: f64, now: Duration) {
        if rate != self.rate {
            self.rate = rate;
            // A new limiter starts empty if the old one was waited for.
            if self.next > now && rate > 0.0 {
                self.next = now + Duration::from_secs_f64(1.0 / rate);
            }
        }
    }

    /// The next Node that may go now.
    pub(super) fn take(&mut self, now: Duration) -> Option<String> {
        if self.rate <= 0.0 || now < self.next {
            return None;
        }
        let node = self.queue.pop_front()?;
        self.next = now + Duration::from_secs_f64(1.0 / self.rate);
        Some(node)
    }

    /// When to ask again; `None` means after the queue or the rate changed.
    pub(super) fn next_at(&self) -> Option<Duration> {
        (self.rate > 0.0 && !self.queue.is_empty()).then_some(self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn one_at_a_time() {
        let mut evictor = Evictor::new(0.1);
        assert!(evictor.add("a") && evictor.add("b") && !evictor.add("a"));
        assert_eq!(evictor.take(second(0)).as_deref(), Some("a"));
        assert_eq!(evictor.take(second(9)), None);
        assert_eq!(evictor.next_at(), Some(second(10)));
        assert_eq!(evictor.take(second(10)).as_deref(), Some("b"));
        assert!(!evictor.add("a"), "let through already");
        assert!(evictor.remove("a") && evictor.add("a"));
        evictor.set_rate(0.0, second(11));
        assert_eq!((evictor.take(second(100)), evictor.next_at()), (None, None));
        evictor.set_rate(1.0, second(100));
        assert_eq!(evictor.take(second(100)).as_deref(), Some("a"));
    }
}
