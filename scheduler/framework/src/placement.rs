//! Placements: sets of nodes that a group of pods may go to together.
//!
//! The scheduling loop asks one [`crate::PlacementGeneratePlugin`] for the placements of a group, tries the group in each of them, and takes the one that the
//! [`crate::PlacementScorePlugin`]s like best. With the gate `TopologyAwareWorkloadScheduling` alone. Upstream: kube-scheduler framework/interface.go
//! (PlacementGeneratePlugin, PlacementScorePlugin), v1.37.

use std::sync::Arc;

use crate::node_set::NodeSet;
use crate::pod_info::PodInfo;

/// Nodes that a group of pods may go to together.
#[derive(Debug, Clone, Default)]
pub struct Placement {
    /// Such as the domain; empty for the placement of all nodes.
    pub name: String,
    /// Of the snapshot that it was made for.
    pub nodes: NodeSet,
}

/// Where the pods of a group would go in a placement.
#[derive(Debug, Clone, Copy)]
pub struct PodGroupAssignments<'a> {
    /// The placement.
    pub placement: &'a Placement,
    /// The pods that found a node in it, and the node's name. They are not in the snapshot.
    pub proposed: &'a [(Arc<PodInfo>, Arc<str>)],
}
