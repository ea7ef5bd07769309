//! [`Decisions`]: the last decisions, for whoever looks.
//!
//! The scheduling loop writes names and numbers into slots that are used again and again: nothing is formatted, and once the ring is full nothing is allocated
//! for a node that was chosen. What is read of it is a copy.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use framework::PodInfo;

/// So many are kept.
pub const KEPT: usize = 1024;

/// What became of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Counts the decisions of the process, from 0.
    pub sequence: u64,
    /// When the attempt began.
    pub began: Instant,
    /// How long it took to decide.
    pub took: Duration,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// What was decided.
    pub outcome: Outcome,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The pod has its place on a node; what binds it is under way.
    Node {
        /// The node.
        node: Arc<str>,
        /// Its score; `None` where none was given: the pod was nominated to the node, or is one of a group.
        score: Option<i64>,
        /// On how many nodes the pod would have fitted; `None` for a pod of a group.
        feasible_nodes: Option<usize>,
    },
    /// The pod goes back to the queue.
    Failed {
        /// Something went wrong; otherwise it fits nowhere, or a plugin rejected it.
        error: bool,
        /// Who rejected it.
        plugins: Vec<&'static str>,
        /// In the words of its event.
        message: String,
    },
}

/// What is new for a reader.
#[derive(Debug, Default)]
pub struct News {
    /// So many came and went before they could be read.
    pub missed: u64,
    /// The others, oldest first.
    pub decisions: Vec<Decision>,
    /// Where to go on.
    pub next: u64,
}

#[derive(Default)]
struct Ring {
    /// The sequence of the next.
    next: u64,
    /// The decision of sequence `s` is at `s % KEPT`.
    slots: Vec<Decision>,
}

/// See the module.
#[derive(Default)]
pub struct Decisions {
    ring: Mutex<Ring>,
}

impl Decisions {
    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node was chosen and taken.
    pub fn chose(
        &self,
        pod: &PodInfo,
        node: &Arc<str>,
        (score, feasible_nodes): (Option<i64>, Option<usize>),
        (began, now): (Instant, Instant),
    ) {
        let outcome = Outcome::Node {
            node: Arc::clone(node),
            score,
            feasible_nodes,
        };
        self.lock().push(pod, outcome, began, now);
    }

    /// The pod goes back. `message` is kept as it is: it has a bound.
    pub fn failed(
        &self,
        pod: &PodInfo,
        error: bool,
        plugins: &BTreeSet<&'static str>,
        message: String,
        (began, now): (Instant, Instant),
    ) {
        let plugins = plugins.iter().copied().collect();
        let outcome = Outcome::Failed {
            error,
            plugins,
            message,
        };
        self.lock().push(pod, outcome, began, now);
    }

    /// The decisions from `next` on. One that has not come yet stands for all: its reader knew another process.
    pub fn since(&self, next: u64) -> News {
        let ring = self.lock();
        let from = if next > ring.next { 0 } else { next };
        let oldest = ring.next - ring.slots.len() as u64;
        let decisions = (from.max(oldest)..ring.next)
            .map(|sequence| ring.slots[place(sequence)].clone())
            .collect();
        News {
            missed: oldest.saturating_sub(from),
            decisions,
            next: ring.next,
        }
    }

    /// The oldest that is kept.
    pub fn oldest(&self) -> u64 {
        let ring = self.lock();
        ring.next - ring.slots.len() as u64
    }
}

fn place(sequence: u64) -> usize {
    (sequence % KEPT as u64) as usize
}

impl Ring {
    fn push(&mut self, pod: &PodInfo, outcome: Outcome, began: Instant, now: Instant) {
        let sequence = self.next;
        self.next += 1;
        let took = now.saturating_duration_since(began);
        let Some(slot) = self.slots.get_mut(place(sequence)) else {
            self.slots.push(Decision {
                sequence,
                began,
                took,
                namespace: pod.namespace().to_owned(),
                name: pod.name().to_owned(),
                outcome,
            });
            return;
        };
        (slot.sequence, slot.began, slot.took) = (sequence, began, took);
        slot.outcome = outcome;
        // Their room is used again.
        pod.namespace().clone_into(&mut slot.namespace);
        pod.name().clone_into(&mut slot.name);
    }
}

#[cfg(test)]
mod tests {
    use framework::testing::make_pod;

    use super::*;

    fn chose(decisions: &Decisions, name: &str) {
        let now = std::time::Instant::now();
        let pod = make_pod(name).uid(name).info();
        let times = (now, now + Duration::from_micros(7));
        decisions.chose(&pod, &"n".into(), (Some(3), Some(2)), times);
    }

    #[test]
    fn a_reader_gets_what_is_new_once() {
        let decisions = Decisions::default();
        assert_eq!(decisions.since(0).decisions, []);
        chose(&decisions, "a");
        let news = decisions.since(0);
        assert_eq!((news.missed, news.next), (0, 1));
        assert_eq!(news.decisions[0].name, "a");
        assert_eq!(news.decisions[0].took, Duration::from_micros(7));
        assert_eq!(decisions.since(news.next).decisions, []);
        // Of another process.
        assert_eq!(decisions.since(9).decisions.len(), 1);
    }

    #[test]
    fn what_was_overwritten_is_counted() {
        let decisions = Decisions::default();
        for i in 0..KEPT + 5 {
            chose(&decisions, &format!("pod-{i}"));
        }
        let news = decisions.since(2);
        assert_eq!((news.missed, news.decisions.len()), (3, KEPT));
        assert_eq!(decisions.oldest(), 5);
        let last = news.decisions.last().expect("there are some");
        assert_eq!(last.name, format!("pod-{}", KEPT + 4));
        assert!(
            news.decisions
                .windows(2)
                .all(|two| two[0].sequence + 1 == two[1].sequence)
        );
    }
}
