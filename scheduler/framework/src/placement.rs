//! Placements: sets of nodes that a group of pods may go to together, who makes them and who scores them.
//!
//! The scheduling loop asks one [`PlacementGeneratePlugin`] for the placements of a group, tries the group in each of them, and takes the one that the
//! [`PlacementScorePlugin`]s like best. With the gate `TopologyAwareWorkloadScheduling` alone. Upstream: kube-scheduler framework/interface.go
//! (PlacementGeneratePlugin, PlacementScorePlugin), v1.37.

use std::sync::Arc;

use k8s_openapi::api::scheduling::v1beta1::PodGroup;

use crate::node_set::NodeSet;
use crate::plugin::Plugin;
use crate::pod_info::PodInfo;
use crate::snapshot::Snapshot;
use crate::status::Status;

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

/// Makes the placements of a group of pods. A profile has one such plugin at most.
pub trait PlacementGeneratePlugin: Plugin {
    /// Parts of `parent` that the whole group may go to, in the order in which they are tried. None at all: the group is unschedulable.
    ///
    /// # Errors
    /// The status that becomes the group's.
    fn generate_placements(
        &self,
        group: &PodGroup,
        snapshot: &Snapshot,
        parent: Placement,
    ) -> Result<Vec<Placement>, Status>;
}

/// Scores placements in which a group of pods can come together.
pub trait PlacementScorePlugin: Plugin {
    /// The score of one placement; between [`crate::MIN_NODE_SCORE`] and [`crate::MAX_NODE_SCORE`] after [`PlacementScorePlugin::normalize_placement_scores`].
    ///
    /// # Errors
    /// A failure, which becomes the group's.
    fn score_placement(
        &self,
        group: &PodGroup,
        snapshot: &Snapshot,
        assignments: PodGroupAssignments<'_>,
    ) -> Result<i64, Status>;

    /// Brings the scores of all placements into the range of scores; by default they are in it.
    fn normalize_placement_scores(&self, _group: &PodGroup, _scores: &mut [i64]) -> Status {
        Status::success()
    }
}
