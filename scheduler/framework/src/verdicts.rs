//! [`Verdicts`]: which nodes are feasible for a pod, and why the others are not.
//!
//! A rejection is interned: thousands of nodes that are full share one [`Status`].

use std::collections::HashMap;

use crate::node_set::{NodeIndex, NodeSet};
use crate::status::Status;

/// An interned rejection within one [`Verdicts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RejectionId(u32);

/// The outcome of filtering over the nodes of a snapshot. The first plugin that rejects a node gives the reason, as upstream.
#[derive(Debug, Clone, Default)]
pub struct Verdicts {
    feasible: NodeSet,
    judged: NodeSet,
    rejection: Vec<u32>,
    statuses: Vec<Status>,
    counts: Vec<u32>,
    lookup: HashMap<Status, u32>,
    plugin: &'static str,
}

impl Verdicts {
    /// All of `nodes` feasible; `len` is the length of the snapshot's columns.
    pub fn new(nodes: NodeSet, len: usize) -> Self {
        Verdicts {
            judged: nodes.clone(),
            feasible: nodes,
            rejection: vec![0; len],
            ..Self::default()
        }
    }

    /// Becomes equal to `other`, keeping the memory at hand: copying what is large costs no allocation.
    pub fn copy_from(&mut self, other: &Verdicts) {
        self.feasible.copy_from(&other.feasible);
        self.judged.copy_from(&other.judged);
        self.rejection.clone_from(&other.rejection);
        self.statuses.clone_from(&other.statuses);
        self.counts.clone_from(&other.counts);
        self.lookup.clone_from(&other.lookup);
        self.plugin = other.plugin;
    }

    /// The same about the nodes of `within` alone, as if no others had been judged.
    pub fn restricted_to(&self, within: &NodeSet) -> Verdicts {
        let mut restricted = self.clone();
        restricted.judged.intersect_with(within);
        restricted.feasible.intersect_with(within);
        restricted.rejection = vec![0; self.rejection.len()];
        restricted.counts.fill(0);
        for node in restricted.judged.iter() {
            let id = self.rejection[node as usize];
            if id != 0 {
                restricted.rejection[node as usize] = id;
                restricted.counts[id as usize - 1] += 1;
            }
        }
        restricted
    }

    /// Names the plugin whose rejections follow (the runtime does this).
    pub fn set_plugin(&mut self, plugin: &'static str) {
        self.plugin = plugin;
    }

    /// The nodes not rejected so far.
    pub fn feasible(&self) -> &NodeSet {
        &self.feasible
    }

    /// All nodes under judgement, feasible or not.
    pub fn judged(&self) -> &NodeSet {
        &self.judged
    }

    /// Interns a rejection for many calls of [`Verdicts::reject`].
    pub fn rejection(&mut self, status: Status) -> RejectionId {
        let status = status.by(self.plugin);
        if let Some(&id) = self.lookup.get(&status) {
            return RejectionId(id);
        }
        self.statuses.push(status.clone());
        self.counts.push(0);
        let id = self.statuses.len() as u32;
        self.lookup.insert(status, id);
        RejectionId(id)
    }

    /// Rejects a feasible node; no effect on others.
    #[inline]
    pub fn reject(&mut self, node: NodeIndex, id: RejectionId) {
        if self.feasible.remove(node) {
            self.rejection[node as usize] = id.0;
            self.counts[id.0 as usize - 1] += 1;
        }
    }

    /// Rejects every feasible node of `nodes`.
    pub fn reject_all(&mut self, nodes: &NodeSet, status: Status) {
        let id = self.rejection(status);
        for node in nodes.iter() {
            self.reject(node, id);
        }
    }

    /// Rejects every feasible node for which `unfit` holds.
    pub fn reject_where(
        &mut self,
        status: impl FnOnce() -> Status,
        unfit: impl Fn(NodeIndex) -> bool,
    ) {
        let rejected: Vec<NodeIndex> = self.feasible.iter().filter(|&node| unfit(node)).collect();
        if rejected.is_empty() {
            return;
        }
        let id = self.rejection(status());
        for node in rejected {
            self.reject(node, id);
        }
    }

    /// Opens the judgement on `node` again: feasible, or (when `exists` is false) not judged at all.
    pub fn reset(&mut self, node: NodeIndex, exists: bool) {
        if self.rejection.len() <= node as usize {
            self.rejection.resize(node as usize + 1, 0);
        }
        let old = std::mem::take(&mut self.rejection[node as usize]);
        if old != 0 {
            self.counts[old as usize - 1] -= 1;
        }
        self.judged.set(node, exists);
        self.feasible.set(node, exists);
    }

    /// Why `node` was rejected; `None` when it was not.
    pub fn status(&self, node: NodeIndex) -> Option<&Status> {
        match self.rejection.get(node as usize) {
            None | Some(0) => None,
            Some(&id) => Some(&self.statuses[id as usize - 1]),
        }
    }

    /// Every rejection in use and how many nodes it hit.
    pub fn rejections(&self) -> impl Iterator<Item = (&Status, usize)> {
        self.statuses
            .iter()
            .zip(&self.counts)
            .filter(|(_, n)| **n > 0)
            .map(|(status, &n)| (status, n as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rejection_stands_until_reset() {
        let mut verdicts = Verdicts::new([0, 1, 2].into_iter().collect(), 3);
        verdicts.set_plugin("A");
        verdicts.reject_where(|| Status::unschedulable("full"), |n| n < 2);
        verdicts.set_plugin("B");
        verdicts.reject_all(
            &[0, 2].into_iter().collect(),
            Status::unresolvable("tainted"),
        );
        assert_eq!(verdicts.status(0).map(Status::plugin), Some("A"));
        assert_eq!(verdicts.status(2).map(Status::plugin), Some("B"));
        assert_eq!(
            verdicts
                .rejections()
                .map(|(s, n)| (s.message(), n))
                .collect::<Vec<_>>(),
            [("full".into(), 2), ("tainted".into(), 1)]
        );
        let part = verdicts.restricted_to(&[1, 2, 7].into_iter().collect());
        assert_eq!(part.judged().len(), 2);
        assert_eq!(part.status(0), None, "it was not judged there");
        let rejections = part.rejections().map(|(s, n)| (s.message(), n));
        assert_eq!(
            rejections.collect::<Vec<_>>(),
            [("full".into(), 1), ("tainted".into(), 1)]
        );
        verdicts.reset(1, true);
        verdicts.reset(0, false);
        assert_eq!(verdicts.feasible().iter().collect::<Vec<_>>(), [1]);
        assert_eq!(verdicts.rejections().count(), 1);
    }
}
