//! Brings the wishes of several resources together: one set of NUMA nodes for a container or a pod.
//!
//! Owns: hints, how they are merged, and whether a policy admits what comes of it; pure. Who gives hints and what is allocated by the
//! outcome is not known here. Upstream: pkg/kubelet/cm/topologymanager, v1.37.

mod merge;

use std::collections::BTreeMap;

use crate::numa_mask::NumaMask;
use crate::options::{OptionsError, TopologyOptions};
use crate::topology::NumaNode;

/// NUMA nodes that could give what is asked for. `affinity`: `None` for no preference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopologyHint {
    pub affinity: Option<NumaMask>,
    /// No fewer nodes could.
    pub preferred: bool,
}

/// What one provider has to say, by resource. `None`: any nodes will do for that; an empty list: none will.
pub type Hints = BTreeMap<String, Option<Vec<TopologyHint>>>;

/// `topologyManagerPolicy`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    None,
    BestEffort,
    Restricted,
    SingleNumaNode,
}

/// `topologyManagerScope`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The policy is none.
    None,
    Container,
    Pod,
}

/// The topology manager cannot be had. Another start says the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyManagerError {
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error("cannot discover NUMA topology: error getting NUMA distances from cadvisor")]
    NoDistances,
    #[error("unsupported on machines with more than {0} NUMA Nodes")]
    TooManyNodes(usize),
    #[error("unknown policy: {0:?}")]
    UnknownPolicy(String),
    #[error("unknown scope: {0:?}")]
    UnknownScope(String),
}

/// A policy on a machine.
#[derive(Clone, Debug, PartialEq)]
pub struct TopologyManager {
    policy: Policy,
    scope: Scope,
    options: TopologyOptions,
    nodes: Vec<usize>,
    /// From a node to every node, by their places in `nodes`; empty where they do not count.
    distances: BTreeMap<usize, Vec<u64>>,
}

impl TopologyManager {
    /// # Errors
    /// The machine, a name or an option does not fit.
    pub fn new(
        policy: &str,
        scope: &str,
        options: &BTreeMap<String, String>,
        nodes: &[NumaNode],
    ) -> Result<Self, TopologyManagerError> {
        let none = Self {
            policy: Policy::None,
            scope: Scope::None,
            options: TopologyOptions::default(),
            nodes: Vec::new(),
            distances: BTreeMap::new(),
        };
        let policy = match policy {
            // Upstream looks at nothing else then.
            "none" => return Ok(none),
            "best-effort" => Policy::BestEffort,
            "restricted" => Policy::Restricted,
            "single-numa-node" => Policy::SingleNumaNode,
            other => return Err(TopologyManagerError::UnknownPolicy(other.to_owned())),
        };
        let options = TopologyOptions::parse(options)?;
        if nodes.len() > options.max_allowable_numa_nodes {
            let most = options.max_allowable_numa_nodes;
            return Err(TopologyManagerError::TooManyNodes(most));
        }
        let distances = match options.prefer_closest_numa {
            true if nodes.iter().any(|node| node.distances.len() < nodes.len()) => {
                return Err(TopologyManagerError::NoDistances);
            }
            true => nodes.iter().map(|n| (n.id, n.distances.clone())).collect(),
            false => BTreeMap::new(),
        };
        let scope = match scope {
            "container" => Scope::Container,
            "pod" => Scope::Pod,
            other => return Err(TopologyManagerError::UnknownScope(other.to_owned())),
        };
        Ok(Self {
            policy,
            scope,
            options,
            nodes: nodes.iter().map(|node| node.id).collect(),
            distances,
        })
    }

    pub fn policy(&self) -> Policy {
        self.policy
    }

    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// Whether what is admitted is aligned for sure. Upstream: `IsAlignmentGuaranteed`.
    pub fn guarantees_alignment(&self) -> bool {
        self.policy == Policy::SingleNumaNode
    }

    fn all_nodes(&self) -> NumaMask {
        NumaMask::of(self.nodes.iter().copied())
    }

    /// The one hint that serves all providers best, and whether the policy admits it.
    pub fn merge(&self, providers: &[Hints]) -> (TopologyHint, bool) {
        if self.policy == Policy::None {
            return (TopologyHint::default(), true);
        }
        let mut hints = merge::filter_providers_hints(providers);
        if self.policy == Policy::SingleNumaNode {
            merge::keep_single_numa(&mut hints);
        }
        let mut best = merge::merge(self, &hints);
        if self.policy == Policy::SingleNumaNode && best.affinity == Some(self.all_nodes()) {
            // All of them mean no preference. On a machine of one node that is what comes out always, as upstream.
            best.affinity = None;
        }
        (best, self.policy == Policy::BestEffort || best.preferred)
    }

    /// The better of two masks of different nodes.
    fn fitter(&self, a: NumaMask, b: NumaMask) -> NumaMask {
        let closest = self.options.prefer_closest_numa && self.policy != Policy::SingleNumaNode;
        if closest && a.count() == b.count() {
            let (from_a, from_b) = (self.average_distance(a), self.average_distance(b));
            if from_a != from_b {
                return if from_a < from_b { a } else { b };
            }
        }
        if a.is_narrower_than(b) { a } else { b }
    }

    fn average_distance(&self, mask: NumaMask) -> f64 {
        // A column of the table is a place, not an id: nodes need not be numbered without gaps.
        //
        // DIFFERS: upstream takes the id for the place, and reads beyond the table where ids have gaps.
        let places: Vec<usize> = mask
            .nodes()
            .filter_map(|id| self.nodes.iter().position(|node| *node == id))
            .collect();
        let of = |from: usize, to: usize| {
            let row = self.distances.get(&self.nodes[from]);
            row.and_then(|row| row.get(to)).copied().unwrap_or(0) as f64
        };
        let all = places
            .iter()
            .flat_map(|from| places.iter().map(|to| of(*from, *to)));
        let count = places.len() * places.len();
        if count == 0 {
            0.0
        } else {
            all.sum::<f64>() / count as f64
        }
    }
}

#[cfg(test)]
mod tests;
