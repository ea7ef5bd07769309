//! Nodes where preemption would help, and the choice among them.

use std::cmp::Reverse;
use std::sync::Arc;

use framework::{PodInfo, Victims};
use jiff::Timestamp;

/// A node and the pods that would have to go.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The node's name.
    pub node: Arc<str>,
    /// The pods to end, the most important first; never empty.
    pub victims: Vec<Arc<PodInfo>>,
    /// How many of them are under a disruption budget that does not allow it.
    pub num_pdb_violations: usize,
}

impl From<Candidate> for (Arc<str>, Victims) {
    fn from(candidate: Candidate) -> Self {
        let victims = Victims {
            pods: candidate.victims,
            num_pdb_violations: candidate.num_pdb_violations,
        };
        (candidate.node, victims)
    }
}

impl From<(Arc<str>, Victims)> for Candidate {
    fn from((node, victims): (Arc<str>, Victims)) -> Self {
        Candidate {
            node,
            victims: victims.pods,
            num_pdb_violations: victims.num_pdb_violations,
        }
    }
}

impl Candidate {
    fn highest_priority(&self) -> i32 {
        self.victims.first().map_or(i32::MIN, |pod| pod.priority)
    }

    /// Shifted so that each pod adds something: a few pods of negative priority are not worth more than one.
    fn sum_of_priorities(&self) -> i64 {
        self.victims
            .iter()
            .map(|pod| i64::from(pod.priority) + i64::from(i32::MAX) + 1)
            .sum()
    }

    /// When the first of the most important victims started.
    fn earliest_start_time(&self, now: Timestamp) -> Timestamp {
        let highest = self.highest_priority();
        let top = self.victims.iter().filter(|pod| pod.priority == highest);
        top.map(|pod| component_helpers::pod::start_time(&pod.pod, now))
            .min()
            .unwrap_or(now)
    }
}

/// The best: fewest budgets broken, then the least important of the most important victims, then the smallest sum of priorities, then the fewest victims,
/// then the latest start of the most important victims, then the first.
pub(super) fn pick_one_node_for_preemption(
    candidates: Vec<Candidate>,
    now: Timestamp,
) -> Option<Candidate> {
    candidates.into_iter().min_by_key(|c| {
        (
            c.num_pdb_violations,
            c.highest_priority(),
            c.sum_of_priorities(),
            c.victims.len(),
            Reverse(c.earliest_start_time(now)),
        )
    })
}
