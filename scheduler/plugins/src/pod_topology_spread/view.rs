//! The view kept for the pods of one signature.

use framework::{Incremental, NodeIndex, NodeSet, PodInfo, Snapshot, Verdicts};

use super::constraint::Constraint;
use super::counter::Counter;
use super::score::{Range, normalizing_weights, raw_scores};

/// The counts for the hard and for the soft constraints; `None` where there are none.
pub(super) struct View {
    hard: Option<Counter>,
    soft: Option<Counter>,
}

impl View {
    pub(super) fn new(
        pod: &PodInfo,
        hard: Vec<Constraint>,
        soft: Vec<Constraint>,
        require_all: bool,
        snapshot: &Snapshot,
    ) -> Self {
        let counter = |constraints: Vec<Constraint>, require_all| {
            (!constraints.is_empty()).then(|| Counter::new(pod, constraints, require_all, snapshot))
        };
        View {
            hard: counter(hard, true),
            soft: counter(soft, require_all),
        }
    }
}

impl Incremental for View {
    fn update(&mut self, snapshot: &Snapshot, changed: &[NodeIndex]) {
        for counter in self.hard.iter_mut().chain(&mut self.soft) {
            counter.update(snapshot, changed);
        }
    }

    fn filter_all(&mut self, _snapshot: &Snapshot, verdicts: &mut Verdicts) {
        for (constraint, domains) in self.hard.iter().flat_map(Counter::each) {
            domains.filter_all(constraint, verdicts);
        }
    }

    fn score_all(&mut self, _snapshot: &Snapshot, nodes: &NodeSet, scores: &mut [i64]) -> bool {
        let Some(counter) = &self.soft else {
            return false;
        };
        let weights = normalizing_weights(counter, nodes);
        raw_scores(counter, &weights, nodes, scores);
        let may_ignore = counter.may_ignore();
        let ignored = |node| may_ignore && counter.ignores(node);
        let range = Range::of(
            nodes
                .iter()
                .filter(|node| !ignored(*node))
                .map(|node| scores[node as usize]),
        );
        let table = range.table();
        for node in nodes.iter() {
            let score = &mut scores[node as usize];
            *score = match &table {
                _ if ignored(node) => 0,
                Some(table) => table[*score as usize],
                None => range.normalize(*score),
            };
        }
        true
    }
}
