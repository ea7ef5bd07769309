//! As many CPUs of every NUMA node, where one node has not enough.
//!
//! Upstream: `takeByTopologyNUMADistributed`, v1.37; the algorithm is KEP-2902's.

use std::collections::BTreeMap;

use super::{Accumulator, AssignmentError, Strategy, packed, without_caches};
use crate::cpu_set::CpuSet;
use crate::numa_mask::combinations;
use crate::topology::{CpuTopology, Level};

/// The nodes that CPUs are taken of, and how even what is left is.
#[derive(Clone, Debug)]
struct Best {
    nodes: Vec<usize>,
    /// Those that give a group more.
    remainder: Vec<usize>,
    balance: f64,
    in_one_socket: bool,
}

/// The fewest nodes that can give the same number each, but for groups that remain; of those the ones after which the nodes of the
/// machine have most nearly as many CPUs left. Where there are none, CPUs are packed.
pub(super) fn take(
    topology: &CpuTopology,
    available: &CpuSet,
    count: usize,
    group: usize,
    strategy: Strategy,
) -> Result<CpuSet, AssignmentError> {
    let mut acc = Accumulator::new(topology, available, count, strategy.spread_over_cores)?;
    if count == 0 {
        return Ok(CpuSet::default());
    }
    let search = Search {
        topology,
        free: free_by_node(&acc),
        count,
        group,
        align_by_socket: strategy.align_by_socket,
    };
    let nodes = acc.sorted(Level::NumaNode);
    let (least, most) = range(&acc, count, group);
    let best = (least..=most).find_map(|size| search.best_of(&nodes, size));
    match best {
        Some(best) => hand_out(&mut acc, &best, group, strategy),
        None => packed(topology, available, count, without_caches(strategy)),
    }
}

fn free_by_node(acc: &Accumulator<'_>) -> BTreeMap<usize, usize> {
    let nodes = acc.details.ids(Level::NumaNode).into_iter();
    nodes
        .map(|node| (node, acc.details.count_in(Level::NumaNode, node)))
        .collect()
}

/// How many nodes it may take, the fewest and the most. Upstream: `rangeNUMANodesNeededToSatisfy`.
fn range(acc: &Accumulator<'_>, count: usize, group: usize) -> (usize, usize) {
    let nodes = acc.topology.num_numa_nodes.max(1);
    let groups = acc.topology.details.cpus().len().div_ceil(group);
    let needed = count.div_ceil(group);
    let least = needed.div_ceil(groups.div_ceil(nodes).max(1));
    let with_free = acc.details.ids(Level::NumaNode).len();
    (least, needed.min(with_free))
}

struct Search<'a> {
    topology: &'a CpuTopology,
    free: BTreeMap<usize, usize>,
    count: usize,
    group: usize,
    align_by_socket: bool,
}

impl Search<'_> {
    fn free(&self, node: usize) -> usize {
        self.free.get(&node).copied().unwrap_or(0)
    }

    /// DIFFERS: upstream's best choice of four nodes and more is overwritten by the search that goes on (its slices share memory), so
    /// that it may take CPUs of nodes that were not the best.
    fn best_of(&self, nodes: &[usize], size: usize) -> Option<Best> {
        let mut best: Option<Best> = None;
        combinations(nodes, size, &mut |chosen| {
            let perfect = best.as_ref().is_some_and(|best| {
                best.balance == 0.0 && (!self.align_by_socket || best.in_one_socket)
            });
            if perfect {
                return false;
            }
            if let Some(candidate) = self.weigh(chosen)
                && self.is_better(&candidate, best.as_ref())
            {
                best = Some(candidate);
            }
            true
        });
        best
    }

    fn is_better(&self, candidate: &Best, best: Option<&Best>) -> bool {
        let (balance, in_one_socket) =
            best.map_or((f64::MAX, false), |best| (best.balance, best.in_one_socket));
        match self.align_by_socket && candidate.in_one_socket != in_one_socket {
            true => candidate.in_one_socket,
            false => candidate.balance < balance,
        }
    }

    /// `None`: these nodes cannot give the same number each.
    fn weigh(&self, nodes: &[usize]) -> Option<Best> {
        let all: usize = nodes.iter().map(|node| self.free(*node)).sum();
        let whole = |node: &usize| self.free(*node) / self.group * self.group;
        if all < self.count || nodes.iter().map(whole).sum::<usize>() < self.count {
            return None;
        }
        let mut each = self.count / nodes.len() / self.group * self.group;
        if self.align_by_socket {
            each = nodes.iter().map(whole).fold(each, usize::min);
        }
        if nodes.iter().any(|node| self.free(*node) < each) {
            return None;
        }
        let mut left = self.free.clone();
        for node in nodes {
            if let Some(left) = left.get_mut(node) {
                *left -= each;
            }
        }
        let remainder = self.count - each * nodes.len();
        let (balance, giving) = match remainder {
            0 => (standard_deviation(&left), Vec::new()),
            _ => self.weigh_remainder(nodes, &left, remainder)?,
        };
        Some(Best {
            nodes: nodes.to_vec(),
            remainder: giving,
            balance,
            in_one_socket: self.align_by_socket && self.topology.details.are_in_one_socket(nodes),
        })
    }

    /// Which of the nodes give a group more: as many of them as can be.
    fn weigh_remainder(
        &self,
        nodes: &[usize],
        left: &BTreeMap<usize, usize>,
        remainder: usize,
    ) -> Option<(f64, Vec<usize>)> {
        let of = |left: &BTreeMap<usize, usize>, node: usize| left.get(&node).copied().unwrap_or(0);
        let able = nodes.iter().copied();
        let able: Vec<usize> = able.filter(|node| of(left, *node) >= self.group).collect();
        let mut best: Option<(f64, Vec<usize>)> = None;
        for size in (1..=able.len()).rev() {
            combinations(&able, size, &mut |subset| {
                let has: usize = subset
                    .iter()
                    .map(|node| of(left, *node) / self.group * self.group)
                    .sum();
                if has < remainder {
                    return true;
                }
                let after = self.hand_out_remainder(subset, left.clone(), remainder);
                let balance = standard_deviation(&after);
                if best.as_ref().is_none_or(|(best, _)| balance < *best) {
                    best = Some((balance, subset.to_vec()));
                }
                true
            });
        }
        best
    }

    fn hand_out_remainder(
        &self,
        nodes: &[usize],
        mut left: BTreeMap<usize, usize>,
        mut remainder: usize,
    ) -> BTreeMap<usize, usize> {
        while remainder > 0 {
            for node in nodes {
                let Some(left) = left.get_mut(node).filter(|left| **left >= self.group) else {
                    continue;
                };
                if remainder > 0 {
                    *left -= self.group;
                    remainder -= self.group;
                }
            }
        }
        left
    }
}

fn hand_out(
    acc: &mut Accumulator<'_>,
    best: &Best,
    group: usize,
    strategy: Strategy,
) -> Result<CpuSet, AssignmentError> {
    let strategy = without_caches(strategy);
    let whole = |node: &usize| acc.details.count_in(Level::NumaNode, *node) / group * group;
    let each = acc.needed / best.nodes.len() / group * group;
    let each = best.nodes.iter().map(whole).fold(each, usize::min);
    for node in &best.nodes {
        take_of_node(acc, *node, each, strategy)?;
    }
    while acc.needed > 0 {
        let before = acc.needed;
        for node in &best.remainder {
            if acc.needed > 0 && acc.details.count_in(Level::NumaNode, *node) >= group {
                take_of_node(acc, *node, group, strategy)?;
            }
        }
        if acc.needed == before {
            return Err(AssignmentError::Accounting(acc.needed));
        }
    }
    Ok(acc.taken.clone())
}

fn take_of_node(
    acc: &mut Accumulator<'_>,
    node: usize,
    count: usize,
    strategy: Strategy,
) -> Result<(), AssignmentError> {
    let free = acc.details.cpus_in(Level::NumaNode, node);
    let cpus = packed(acc.topology, &free, count, strategy)?;
    acc.take(&cpus);
    Ok(())
}

/// To three digits, so that what differs by less is the same.
fn standard_deviation(counts: &BTreeMap<usize, usize>) -> f64 {
    let round = |value: f64| (value * 1000.0).round() / 1000.0;
    let number = counts.len().max(1) as f64;
    let mean = round(counts.values().map(|count| *count as f64).sum::<f64>() / number);
    let squares = counts.values().map(|count| (*count as f64 - mean).powi(2));
    round((squares.sum::<f64>() / number).sqrt())
}
