//! [`Snapshot`]: the cluster as one scheduling cycle sees it.
//!
//! Nodes have dense indexes and columns. Each change is appended to a bounded log, so that whoever keeps results can ask which nodes changed since it last
//! looked. The cache writes a snapshot between cycles; during a cycle it is read only. Nodes unknown to the API server are never in it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use crate::columns::{LabelColumn, NodeColumns};
use crate::node_info::NodeInfo;
use crate::node_set::{NodeIndex, NodeSet};

/// The log keeps this many changes, or twice the number of nodes where that is more.
pub const MIN_CHANGE_LOG: usize = 16_384;

/// The cluster at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    nodes: Vec<Option<Arc<NodeInfo>>>,
    by_name: HashMap<Arc<str>, NodeIndex>,
    free: Vec<NodeIndex>,
    columns: NodeColumns,
    order: OnceLock<Vec<NodeIndex>>,
    log: VecDeque<NodeIndex>,
    last_change: Vec<u64>,
    version: u64,
    num_pods: usize,
    /// The nodes with pods that use a claim.
    claims: HashMap<String, Vec<NodeIndex>>,
}

impl Snapshot {
    /// An empty cluster.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many nodes there are.
    pub fn num_nodes(&self) -> usize {
        self.by_name.len()
    }

    /// How many pods are on them.
    pub fn num_pods(&self) -> usize {
        self.num_pods
    }

    /// The node of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<NodeInfo>> {
        self.node(self.index(name)?)
    }

    /// The node at that index.
    pub fn node(&self, index: NodeIndex) -> Option<&Arc<NodeInfo>> {
        self.nodes.get(index as usize)?.as_ref()
    }

    /// The index of the node of that name.
    pub fn index(&self, name: &str) -> Option<NodeIndex> {
        self.by_name.get(name).copied()
    }

    /// All nodes, zones taking turns, each zone's by name.
    pub fn list(&self) -> impl Iterator<Item = (NodeIndex, &Arc<NodeInfo>)> {
        let order = self.order.get_or_init(|| self.interleave_zones());
        order
            .iter()
            .filter_map(|&index| Some((index, self.node(index)?)))
    }

    /// All nodes by index: the cheapest order.
    pub fn iter(&self) -> impl Iterator<Item = (NodeIndex, &Arc<NodeInfo>)> {
        self.nodes
            .iter()
            .enumerate()
            .filter_map(|(index, node)| Some((index as NodeIndex, node.as_ref()?)))
    }

    /// The nodes as columns.
    pub fn columns(&self) -> &NodeColumns {
        &self.columns
    }

    /// The column of a node label; made at the first call for a key (which looks at every node) and kept up to date.
    pub fn label_column(&self, key: &str) -> Arc<LabelColumn> {
        self.columns.label(key, &self.nodes)
    }

    /// Nodes with a pod that has inter-pod affinity of any kind.
    pub fn nodes_with_affinity(&self) -> &NodeSet {
        &self.columns.with_affinity
    }

    /// Nodes with a pod that has required anti-affinity.
    pub fn nodes_with_required_anti_affinity(&self) -> &NodeSet {
        &self.columns.with_required_anti_affinity
    }

    /// Grows with every change of a node: a position in the change log.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Calls `changed` once for each node that changed after `version` (gone ones included); false when the log does not reach back so far and
    /// nothing was called.
    pub fn changes_since(&self, version: u64, mut changed: impl FnMut(NodeIndex)) -> bool {
        let back = (self.version - version.min(self.version)) as usize;
        if back > self.log.len() {
            return false;
        }
        let first = self.log.len() - back;
        for (at, &index) in self.log.iter().enumerate().skip(first) {
            let this = self.version - (self.log.len() - 1 - at) as u64;
            if self.last_change[index as usize] == this {
                changed(index);
            }
        }
        true
    }

    /// Puts a node in, or replaces it; imaginary nodes are taken out.
    pub fn set_node(&mut self, node: Arc<NodeInfo>) {
        if !node.exists() {
            self.remove_node(&Arc::clone(node.name()));
            return;
        }
        let (index, known) = match self.by_name.get(node.name()) {
            Some(&index) => (index, true),
            None => {
                let index = self.free.pop().unwrap_or_else(|| {
                    self.nodes.push(None);
                    self.last_change.push(0);
                    (self.nodes.len() - 1) as NodeIndex
                });
                self.by_name.insert(Arc::clone(node.name()), index);
                (index, false)
            }
        };
        let old = self.nodes[index as usize].replace(Arc::clone(&node));
        self.set_claims(index, old.as_deref(), Some(&node));
        self.columns.set(index, old.as_deref(), Some(&node));
        self.num_pods =
            self.num_pods + node.pods().len() - old.as_ref().map_or(0, |n| n.pods().len());
        if !known || old.is_some_and(|old| zone(&old) != zone(&node)) {
            self.order.take();
        }
        self.record(index);
    }

    /// Takes a node out; its index becomes free.
    pub fn remove_node(&mut self, name: &str) {
        let Some(index) = self.by_name.remove(name) else {
            return;
        };
        let old = self.nodes[index as usize].take();
        self.set_claims(index, old.as_deref(), None);
        self.columns.set(index, old.as_deref(), None);
        self.num_pods -= old.map_or(0, |n| n.pods().len());
        self.free.push(index);
        self.order.take();
        self.record(index);
    }

    /// Does a pod on some node use the claim (`namespace/name`)?
    pub fn is_claim_used(&self, claim: &str) -> bool {
        self.claims.contains_key(claim)
    }

    /// Counts the node as changed: something it is judged by did, though not the node or its pods.
    pub fn touch_node(&mut self, name: &str) {
        if let Some(index) = self.index(name) {
            self.record(index);
        }
    }

    /// Counts the nodes as changed that have pods which use the claim (`namespace/name`).
    pub fn touch_claim(&mut self, claim: &str) {
        for index in self.claims.get(claim).cloned().unwrap_or_default() {
            self.record(index);
        }
    }

    /// Counts all nodes as changed.
    pub fn touch_all(&mut self) {
        let nodes: Vec<NodeIndex> = self.by_name.values().copied().collect();
        nodes.into_iter().for_each(|index| self.record(index));
    }

    fn set_claims(&mut self, index: NodeIndex, old: Option<&NodeInfo>, new: Option<&NodeInfo>) {
        static NONE: BTreeMap<String, u32> = BTreeMap::new();
        let (old, new) = (
            old.map_or(&NONE, NodeInfo::pvc_ref_counts),
            new.map_or(&NONE, NodeInfo::pvc_ref_counts),
        );
        if old.is_empty() && new.is_empty() {
            return;
        }
        for claim in old.keys().filter(|claim| !new.contains_key(*claim)) {
            if let Some(nodes) = self.claims.get_mut(claim) {
                nodes.retain(|node| *node != index);
                if nodes.is_empty() {
                    self.claims.remove(claim);
                }
            }
        }
        for claim in new.keys().filter(|claim| !old.contains_key(*claim)) {
            self.claims.entry(claim.clone()).or_default().push(index);
        }
    }

    fn record(&mut self, index: NodeIndex) {
        self.version += 1;
        self.last_change[index as usize] = self.version;
        self.log.push_back(index);
        if self.log.len() > MIN_CHANGE_LOG.max(2 * self.nodes.len()) {
            self.log.pop_front();
        }
    }

    fn interleave_zones(&self) -> Vec<NodeIndex> {
        let mut zones: BTreeMap<(&str, &str), Vec<(&str, NodeIndex)>> = BTreeMap::new();
        for (index, node) in self.iter() {
            zones
                .entry(zone(node))
                .or_default()
                .push((node.name(), index));
        }
        let mut zones: Vec<_> = zones.into_values().collect();
        for nodes in &mut zones {
            nodes.sort_unstable();
        }
        let longest = zones.iter().map(Vec::len).max().unwrap_or(0);
        (0..longest)
            .flat_map(|i| {
                zones
                    .iter()
                    .filter_map(move |nodes| nodes.get(i).map(|&(_, index)| index))
            })
            .collect()
    }
}

fn zone(node: &NodeInfo) -> (&str, &str) {
    let label = |keys: [&str; 2]| {
        keys.iter()
            .find_map(|&key| node.labels().get(key))
            .map_or("", String::as_str)
    };
    (
        label([
            "topology.kubernetes.io/region",
            "failure-domain.beta.kubernetes.io/region",
        ]),
        label([
            "topology.kubernetes.io/zone",
            "failure-domain.beta.kubernetes.io/zone",
        ]),
    )
}
