//! Why a pod did not fit: per node, per plugin, and as the text users see.
//!
//! Upstream: pkg/scheduler/framework/types.go (Diagnosis, FitError), v1.36. The words are part of the contract.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::node_set::NodeIndex;
use crate::snapshot::Snapshot;
use crate::status::{Code, Status};
use crate::verdicts::Verdicts;

/// The status of each node that was looked at; nodes not named have one status in common.
#[derive(Debug, Clone)]
pub struct NodeToStatus {
    named: HashMap<Arc<str>, Status>,
    verdicts: Option<Arc<Verdicts>>,
    absent: Status,
}

impl Default for NodeToStatus {
    fn default() -> Self {
        NodeToStatus {
            named: HashMap::new(),
            verdicts: None,
            absent: Status::with_reasons(Code::UnschedulableAndUnresolvable, Vec::new()),
        }
    }
}

impl NodeToStatus {
    /// From the outcome of filtering.
    pub fn from_verdicts(verdicts: Arc<Verdicts>) -> Self {
        NodeToStatus {
            verdicts: Some(verdicts),
            ..Self::default()
        }
    }

    /// The status of nodes that were not looked at.
    pub fn set_absent_nodes_status(&mut self, status: Status) {
        self.absent = status;
    }

    /// The status of nodes that were not looked at; `UnschedulableAndUnresolvable` without reasons at first.
    pub fn absent_nodes_status(&self) -> &Status {
        &self.absent
    }

    /// Sets one node's status.
    pub fn set(&mut self, node: impl Into<Arc<str>>, status: Status) {
        self.named.insert(node.into(), status);
    }

    /// One node's status.
    pub fn get(&self, node: &str, snapshot: &Snapshot) -> &Status {
        self.at(snapshot.index(node), node)
    }

    fn at(&self, index: Option<NodeIndex>, node: &str) -> &Status {
        if !self.named.is_empty()
            && let Some(status) = self.named.get(node)
        {
            return status;
        }
        let verdict = index.and_then(|index| self.verdicts.as_ref()?.status(index));
        verdict.unwrap_or(&self.absent)
    }

    /// The snapshot's nodes with that status code, in the snapshot's order; those not looked at count as the absent status.
    pub fn nodes_for_status_code<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        code: Code,
    ) -> Vec<(NodeIndex, &'a Arc<crate::node_info::NodeInfo>)> {
        let list = snapshot.list();
        list.filter(|(index, node)| self.at(Some(*index), node.name()).code() == code)
            .collect()
    }

    /// How many nodes have a status of their own.
    pub fn len(&self) -> usize {
        self.named.len()
            + self
                .verdicts
                .as_ref()
                .map_or(0, |v| v.judged().len() - v.feasible().len())
    }

    /// No node has a status of its own.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every distinct status and on how many nodes it stands.
    pub fn statuses(&self) -> impl Iterator<Item = (&Status, usize)> {
        let verdicts = self.verdicts.iter().flat_map(|v| v.rejections());
        self.named
            .values()
            .map(|status| (status, 1))
            .chain(verdicts)
    }
}

/// The details of a failure to schedule.
#[derive(Debug, Clone, Default)]
pub struct Diagnosis {
    /// Per node.
    pub node_to_status: NodeToStatus,
    /// Plugins that rejected the pod; their events bring it back.
    pub unschedulable_plugins: BTreeSet<&'static str>,
    /// Plugins that answered `Pending`.
    pub pending_plugins: BTreeSet<&'static str>,
    /// What PreFilter said; replaces the nodes' reasons in the text.
    pub pre_filter_msg: String,
    /// What PostFilter said; goes to the end of the text.
    pub post_filter_msg: String,
}

impl Diagnosis {
    /// Notes the plugin of a rejection.
    pub fn add_plugin_status(&mut self, status: &Status) {
        if status.plugin().is_empty() {
            return;
        }
        if status.is_rejected() {
            self.unschedulable_plugins.insert(status.plugin());
        }
        if status.code() == Code::Pending {
            self.pending_plugins.insert(status.plugin());
        }
    }
}

/// A pod fits nowhere.
#[derive(Debug, Clone)]
pub struct FitError {
    /// How many nodes there are.
    pub num_all_nodes: usize,
    /// Why.
    pub diagnosis: Diagnosis,
}

impl FitError {
    /// `0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s). preemption: …`
    pub fn message(&self) -> String {
        let d = &self.diagnosis;
        let mut text = format!("0/{} nodes are available:", self.num_all_nodes);
        if d.pre_filter_msg.is_empty() {
            let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
            for (status, nodes) in d.node_to_status.statuses() {
                for reason in status.reasons() {
                    *reasons.entry(reason).or_default() += nodes;
                }
            }
            if d.node_to_status.len() < self.num_all_nodes {
                for reason in d.node_to_status.absent_nodes_status().reasons() {
                    *reasons.entry(reason).or_default() +=
                        self.num_all_nodes - d.node_to_status.len();
                }
            }
            let mut counted: Vec<String> = reasons
                .iter()
                .map(|(reason, nodes)| format!("{nodes} {reason}"))
                .collect();
            counted.sort();
            if !counted.is_empty() {
                text.push_str(&format!(" {}.", counted.join(", ")));
            }
        } else {
            text.push_str(&format!(" {}.", d.pre_filter_msg));
        }
        if !d.post_filter_msg.is_empty() {
            text.push_str(&format!(" {}", d.post_filter_msg));
        }
        text
    }
}

impl std::fmt::Display for FitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_why_in_upstreams_words() {
        let mut error = FitError {
            num_all_nodes: 4,
            diagnosis: Diagnosis::default(),
        };
        let statuses = &mut error.diagnosis.node_to_status;
        statuses.set("a", Status::unschedulable("Insufficient cpu"));
        statuses.set(
            "b",
            Status::with_reasons(
                Code::Unschedulable,
                vec!["Insufficient cpu".into(), "Too many pods".into()],
            ),
        );
        statuses.set(
            "c",
            Status::unresolvable("node(s) had untolerated taint(s)"),
        );
        let expect = "0/4 nodes are available: 1 Too many pods, 1 node(s) had untolerated taint(s), 2 Insufficient cpu.";
        assert_eq!(error.message(), expect);
        error.diagnosis.post_filter_msg = "preemption: not eligible".into();
        assert_eq!(
            error.message(),
            format!("{expect} preemption: not eligible")
        );
        error.diagnosis.pre_filter_msg = "pod has unbound immediate PersistentVolumeClaims".into();
        error.diagnosis.post_filter_msg.clear();
        assert_eq!(
            error.message(),
            "0/4 nodes are available: pod has unbound immediate PersistentVolumeClaims."
        );
    }
}
