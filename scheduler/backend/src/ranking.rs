//! [`Ranking`]: nodes ordered by score, where changing one node costs the logarithm of the number of nodes.
//!
//! A tournament tree: each inner place knows the best score below it and how many leaves have it, so that one of the equally best can be picked evenly
//! without listing them.

use framework::{NodeIndex, NodeSet};

const EMPTY: (i64, u32) = (i64::MIN, 0);

/// Scores of nodes, best first.
#[derive(Debug, Clone, Default)]
pub struct Ranking {
    // places[1] is the root; the leaf of node i is places[leaves + i].
    places: Vec<(i64, u32)>,
    leaves: usize,
}

impl Ranking {
    /// The ranking of `nodes` by `scores[index]`.
    pub fn new(nodes: &NodeSet, scores: &[i64]) -> Self {
        let leaves = scores.len().next_power_of_two();
        let mut places = vec![EMPTY; 2 * leaves];
        for node in nodes.iter() {
            places[leaves + node as usize] = (scores[node as usize], 1);
        }
        for at in (1..leaves).rev() {
            places[at] = better(places[2 * at], places[2 * at + 1]);
        }
        Ranking { places, leaves }
    }

    /// Ranks `node` by `score`; `None` takes it out.
    pub fn set(&mut self, node: NodeIndex, score: Option<i64>) {
        if node as usize >= self.leaves {
            self.grow(node as usize + 1);
        }
        let mut at = self.leaves + node as usize;
        let leaf = score.map_or(EMPTY, |score| (score, 1));
        if self.places[at] == leaf {
            return;
        }
        self.places[at] = leaf;
        while at > 1 {
            at /= 2;
            let best = better(self.places[2 * at], self.places[2 * at + 1]);
            if self.places[at] == best {
                break;
            }
            self.places[at] = best;
        }
    }

    /// The score of `node`; `None` when it is not ranked.
    pub fn score(&self, node: NodeIndex) -> Option<i64> {
        let (score, count) = *self
            .places
            .get(self.leaves + node as usize)
            .filter(|_| (node as usize) < self.leaves)?;
        (count > 0).then_some(score)
    }

    /// The best score; `None` when no node is ranked.
    pub fn best(&self) -> Option<i64> {
        let (score, count) = *self.places.get(1)?;
        (count > 0).then_some(score)
    }

    /// One of the nodes with the best score: the `random`-th, counted around. The same number picks the same node.
    pub fn pick(&self, random: u64) -> Option<NodeIndex> {
        let (best, count) = *self.places.get(1)?;
        if count == 0 {
            return None;
        }
        let mut nth = (random % u64::from(count)) as u32;
        let mut at = 1;
        while at < self.leaves {
            at *= 2;
            let (score, count) = self.places[at];
            let here = if score == best { count } else { 0 };
            if nth >= here {
                nth -= here;
                at += 1;
            }
        }
        Some((at - self.leaves) as NodeIndex)
    }

    fn grow(&mut self, len: usize) {
        let leaves = len.next_power_of_two().max(2 * self.leaves);
        let mut places = vec![EMPTY; 2 * leaves];
        if self.leaves > 0 {
            places[leaves..leaves + self.leaves].copy_from_slice(&self.places[self.leaves..]);
        }
        for at in (1..leaves).rev() {
            places[at] = better(places[2 * at], places[2 * at + 1]);
        }
        *self = Ranking { places, leaves };
    }
}

#[inline]
fn better(a: (i64, u32), b: (i64, u32)) -> (i64, u32) {
    match a.0.cmp(&b.0) {
        std::cmp::Ordering::Less => b,
        std::cmp::Ordering::Greater => a,
        std::cmp::Ordering::Equal => (a.0, a.1 + b.1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn agrees_with_sorting_whatever_happens() {
        let mut ranking = Ranking::default();
        let mut model: BTreeMap<NodeIndex, i64> = BTreeMap::new();
        let mut seed = 42u64;
        let mut random = move || {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            seed >> 33
        };
        for _ in 0..5000 {
            let node = (random() % 100) as NodeIndex;
            let score = (random() % 4 != 0).then(|| (random() % 5) as i64);
            ranking.set(node, score);
            match score {
                Some(score) => model.insert(node, score),
                None => model.remove(&node),
            };
            let best = model.values().max().copied();
            assert_eq!(ranking.best(), best);
            let ties: Vec<_> = model
                .iter()
                .filter(|(_, s)| Some(**s) == best)
                .map(|(n, _)| *n)
                .collect();
            let r = random();
            assert_eq!(
                ranking.pick(r),
                (!ties.is_empty()).then(|| ties[r as usize % ties.len()])
            );
            assert_eq!(ranking.score(node), score);
        }
        let nodes: NodeSet = model.keys().copied().collect();
        let mut scores = vec![0; 100];
        model.iter().for_each(|(n, s)| scores[*n as usize] = *s);
        assert_eq!(Ranking::new(&nodes, &scores).pick(7), ranking.pick(7));
    }
}
