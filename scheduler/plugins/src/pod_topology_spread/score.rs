//! Scoring by soft constraints: the fewer matching pods in a node's domains, the better.

use framework::{MAX_NODE_SCORE, NodeInfo, NodeSet, PodInfo};

use super::constraint::Constraint;
use super::counter::{Counter, is_hostname};

/// What scoring needs: the counts, and what a pod weighs for each constraint.
pub(super) struct SoftState {
    pub counter: Counter,
    pub weights: Vec<f64>,
}

/// The more domains there are to choose from, the more a pod weighs: else topologies of many domains would drown the others.
fn topology_normalizing_weight(domains: usize) -> f64 {
    ((domains + 2) as f64).ln()
}

fn score_for_count(pods: i64, constraint: &Constraint, weight: f64) -> f64 {
    pods as f64 * weight + (constraint.max_skew - 1) as f64
}

/// The weight of each constraint, from the domains that candidates are in. A candidate without the label counts as in a domain of its own kind.
pub(super) fn normalizing_weights(counter: &Counter, nodes: &NodeSet) -> Vec<f64> {
    let may_ignore = counter.may_ignore();
    let counted = || {
        nodes
            .iter()
            .filter(|node| !may_ignore || !counter.ignores(*node))
    };
    let of = |(constraint, domains): (&Constraint, &super::Domains)| {
        if is_hostname(constraint) {
            return topology_normalizing_weight(if may_ignore {
                counted().count()
            } else {
                nodes.len()
            });
        }
        let mut seen = vec![false; domains.ids()];
        let mut len = 0;
        for node in counted() {
            let seen = &mut seen[domains.of(node) as usize];
            len += usize::from(!*seen);
            *seen = true;
        }
        topology_normalizing_weight(len)
    };
    counter.each().map(of).collect()
}

impl SoftState {
    /// The raw score of one node.
    pub(super) fn score(&self, _pod: &PodInfo, node: &NodeInfo) -> i64 {
        let has_keys = || {
            self.counter
                .each()
                .all(|(constraint, _)| node.labels().contains_key(&constraint.topology_key))
        };
        if self.counter.may_ignore() && !has_keys() {
            return 0;
        }
        let mut score = 0.0;
        for ((constraint, domains), weight) in self.counter.each().zip(&self.weights) {
            let Some(value) = node.labels().get(&constraint.topology_key) else {
                continue;
            };
            let pods = if is_hostname(constraint) {
                node.pods()
                    .iter()
                    .filter(|other| constraint.counts(other, self.counter.namespace()))
                    .count() as i64
            } else {
                domains.id(value).map_or(0, |id| domains.pods(id))
            };
            score += score_for_count(pods, constraint, *weight);
        }
        score.round() as i64
    }
}

/// The raw scores of all `nodes`.
pub(super) fn raw_scores(counter: &Counter, weights: &[f64], nodes: &NodeSet, scores: &mut [i64]) {
    // By domain where they are few; by node where each node is one.
    let tables: Vec<Option<Vec<f64>>> = counter
        .each()
        .zip(weights)
        .map(|((constraint, domains), weight)| {
            (!is_hostname(constraint)).then(|| {
                (0..domains.ids() as u32)
                    .map(|id| score_for_count(domains.pods(id), constraint, *weight))
                    .collect()
            })
        })
        .collect();
    let constraints: Vec<_> = counter
        .each()
        .zip(weights)
        .zip(&tables)
        .enumerate()
        .collect();
    let may_ignore = counter.may_ignore();
    for node in nodes.iter() {
        if may_ignore && counter.ignores(node) {
            scores[node as usize] = 0;
            continue;
        }
        let mut score = 0.0;
        for (i, (((constraint, domains), weight), table)) in &constraints {
            let id = domains.of(node);
            if id == 0 {
                continue;
            }
            score += match table {
                Some(table) => table[id as usize],
                None => score_for_count(counter.pods_on(node, *i), constraint, **weight),
            };
        }
        scores[node as usize] = score.round() as i64;
    }
}

/// The smallest and the largest raw score.
#[derive(Clone, Copy)]
pub(super) struct Range {
    min: i64,
    max: i64,
}

impl Range {
    pub(super) fn of(scores: impl Iterator<Item = i64>) -> Self {
        scores.fold(
            Range {
                min: i64::MAX,
                max: 0,
            },
            |range, score| Range {
                min: range.min.min(score),
                max: range.max.max(score),
            },
        )
    }

    /// Few pods score high: the smallest raw score becomes 100.
    #[inline]
    pub(super) fn normalize(self, score: i64) -> i64 {
        if self.max == 0 {
            MAX_NODE_SCORE
        } else {
            MAX_NODE_SCORE * (self.max + self.min - score) / self.max
        }
    }

    /// All scores there can be, so that a division is made once for each.
    pub(super) fn table(self) -> Option<Vec<i64>> {
        (self.max < 4096).then(|| (0..=self.max).map(|score| self.normalize(score)).collect())
    }
}
