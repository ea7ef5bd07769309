//! How good a node is for a guaranteed pod: by the NUMA node it would get, or by how many it needs. Pure.
//!
//! Upstream: pkg/noderesourcetopology (score.go, least_allocated.go, most_allocated.go, balanced_allocation.go, least_numa.go).

use std::collections::BTreeMap;

use component_helpers::qos::QosClass;
use component_helpers::quantity::Amount;
use component_helpers::resources::Amounts;
use framework::{MAX_NODE_SCORE, MIN_NODE_SCORE};

use super::fit::Shape;
use super::topology::{ManagerScope, NumaNode, Topology, suits};
use crate::args::TopologyScoringStrategyType;

/// A distance that is not known (ACPI SLIT).
const UNKNOWN_DISTANCE: i64 = 255;
/// With more NUMA nodes than this their combinations are not tried.
// DIFFERS: upstream tries them all; with 64 NUMA nodes, which a report may claim, that never ends.
const MAX_COMBINED: usize = 16;

/// The rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Which strategy.
    pub strategy: TopologyScoringStrategyType,
    /// Weights of resources; 1 for those not named.
    pub weights: BTreeMap<String, i64>,
}

/// The score of a node.
pub fn score(rule: &Rule, shape: &Shape, topology: &Topology) -> i64 {
    let scope = topology.manager.scope;
    if rule.strategy == TopologyScoringStrategyType::LeastNUMANodes {
        return match scope {
            ManagerScope::Pod => least_numa_nodes(shape, topology, &[&shape.pod]),
            ManagerScope::Container => {
                let init = shape.init.iter().map(|(_, init)| init);
                let all: Vec<&Amounts> = init.chain(&shape.containers).collect();
                least_numa_nodes(shape, topology, &all)
            }
        };
    }
    if !topology.manager.single_numa_node {
        return MIN_NODE_SCORE;
    }
    let worst = |wanted: &Amounts| worst_numa_node(rule, wanted, &topology.numa_nodes);
    match scope {
        ManagerScope::Pod => worst(&shape.pod),
        ManagerScope::Container => {
            let init = shape.init.iter().map(|(_, init)| init);
            let scores: Vec<i64> = init.chain(&shape.containers).map(worst).collect();
            scores.iter().sum::<i64>() / (scores.len() as i64).max(1)
        }
    }
}

/// The lowest score of a NUMA node that could take it; which of them the kubelet takes is not known.
fn worst_numa_node(rule: &Rule, wanted: &Amounts, numa_nodes: &[NumaNode]) -> i64 {
    let scores = numa_nodes.iter().map(|numa| one(rule, wanted, numa));
    scores.filter(|score| *score != 0).min().unwrap_or(0)
}

fn one(rule: &Rule, wanted: &Amounts, numa: &NumaNode) -> i64 {
    use TopologyScoringStrategyType::{BalancedAllocation, MostAllocated};
    let available = |name: &str| numa.available.get(name).copied().unwrap_or_default();
    if rule.strategy == BalancedAllocation {
        return balanced(wanted, available);
    }
    let (mut sum, mut weights) = (0i128, 0i128);
    for (name, &wanted) in wanted {
        let (capacity, weight) = (available(name), rule.weights.get(name).copied());
        let weight = i128::from(weight.unwrap_or(1).max(1));
        if capacity > Amount::ZERO && wanted <= capacity {
            let (wanted, capacity) = (i128::from(wanted.value()), i128::from(capacity.value()));
            let counted = match rule.strategy {
                MostAllocated => wanted,
                _ => capacity - wanted,
            };
            sum += weight * (counted * i128::from(MAX_NODE_SCORE) / capacity);
        }
        weights += weight;
    }
    (sum / weights.max(1)) as i64
}

/// 100 where all resources are used to the same share; 0 where one is not there.
fn balanced(wanted: &Amounts, available: impl Fn(&str) -> Amount) -> i64 {
    let share = |(name, wanted): (&String, &Amount)| match available(name).value() {
        0 => 1.0,
        capacity => wanted.value() as f64 / capacity as f64,
    };
    let shares: Vec<f64> = wanted.iter().map(share).collect();
    if shares.iter().any(|share| *share > 1.0) {
        return 0;
    }
    let mean = shares.iter().sum::<f64>() / (shares.len() as f64).max(1.0);
    let squares: f64 = shares.iter().map(|share| (share - mean).powi(2)).sum();
    // The variance of a sample; one alone has none.
    let variance = squares / (shares.len() as f64 - 1.0).max(1.0);
    ((1.0 - variance) * MAX_NODE_SCORE as f64) as i64
}

/// The fewer NUMA nodes are needed the better, and a little better where they are the nearest to each other.
fn least_numa_nodes(shape: &Shape, topology: &Topology, parts: &[&Amounts]) -> i64 {
    let mut numa_nodes = topology.numa_nodes.clone();
    if numa_nodes.len() > MAX_COMBINED {
        return MIN_NODE_SCORE;
    }
    let (mut most, mut nearest) = (0, true);
    for wanted in parts {
        let has = |numa: &NumaNode| wanted.keys().any(|name| numa.available.contains_key(name));
        if !numa_nodes.iter().any(has) {
            continue;
        }
        let Some((chosen, near)) = required(shape.qos, wanted, &numa_nodes) else {
            return MIN_NODE_SCORE;
        };
        nearest &= near;
        most = most.max(chosen.len());
        take_across(wanted, &mut numa_nodes, &chosen);
    }
    if most == 0 {
        return MAX_NODE_SCORE;
    }
    let each = MAX_NODE_SCORE / topology.manager.max_numa_nodes.max(1);
    let score = MAX_NODE_SCORE - most as i64 * each + if nearest { each / 2 } else { 0 };
    score.clamp(MIN_NODE_SCORE, MAX_NODE_SCORE)
}

/// The fewest NUMA nodes (by place) that have it together, of those the nearest to each other; and whether no other so many are nearer.
fn required(
    qos: QosClass,
    wanted: &Amounts,
    numa_nodes: &[NumaNode],
) -> Option<(Vec<usize>, bool)> {
    for size in 1..=numa_nodes.len() {
        let mut nearest_of_all = f64::from(UNKNOWN_DISTANCE as i32);
        let mut best: Option<(f64, Vec<usize>)> = None;
        for_each_combination(numa_nodes.len(), size, |combination| {
            let distance = mean_distance(numa_nodes, combination);
            nearest_of_all = nearest_of_all.min(distance);
            let better = best.as_ref().is_none_or(|(known, _)| distance < *known);
            if better && together_have(qos, wanted, numa_nodes, combination) {
                best = Some((distance, combination.to_vec()));
            }
        });
        if let Some((distance, combination)) = best {
            return Some((combination, distance <= nearest_of_all));
        }
    }
    None
}

/// Calls with each choice of `size` places out of so many, the lowest first.
fn for_each_combination(places: usize, size: usize, mut call: impl FnMut(&[usize])) {
    let mut chosen: Vec<usize> = (0..size).collect();
    loop {
        call(&chosen);
        let Some(at) = (0..size).rev().find(|at| chosen[*at] < places - size + *at) else {
            return;
        };
        chosen[at] += 1;
        for next in at + 1..size {
            chosen[next] = chosen[next - 1] + 1;
        }
    }
}

fn mean_distance(numa_nodes: &[NumaNode], combination: &[usize]) -> f64 {
    let mut sum = 0;
    for from in combination {
        for to in combination {
            let cost = numa_nodes[*from].costs.get(&numa_nodes[*to].id);
            sum += cost.copied().unwrap_or(UNKNOWN_DISTANCE);
        }
    }
    sum as f64 / (combination.len() * combination.len()) as f64
}

fn together_have(
    qos: QosClass,
    wanted: &Amounts,
    numa_nodes: &[NumaNode],
    combination: &[usize],
) -> bool {
    wanted.iter().all(|(name, &amount)| {
        let each = combination
            .iter()
            .map(|at| numa_nodes[*at].available.get(name));
        // One that has no such resource is of no use to the others.
        let together: Option<Amount> = each.map(|available| available.copied()).sum();
        together.is_some_and(|together| amount.is_zero() || suits(qos, name, amount, together))
    })
}

/// Takes from one after the other until all is taken.
fn take_across(taken: &Amounts, numa_nodes: &mut [NumaNode], chosen: &[usize]) {
    for (name, &amount) in taken {
        let mut left = amount;
        for at in chosen {
            if let Some(available) = numa_nodes[*at].available.get_mut(name) {
                let part = left.min(*available);
                *available -= part;
                left -= part;
            }
        }
    }
}
