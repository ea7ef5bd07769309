//! PodGroupPodsCount: of the placements of a group, those that hold more of its pods are better.
//!
//! Upstream: plugins/podgrouppodscount, v1.37 (CompositePodGroup off).

use std::sync::Arc;

use framework::{
    Handle, MAX_NODE_SCORE, PlacementScorePlugin, Plugin, PluginError, PodGroupAssignments,
    Snapshot, Status,
};
use k8s_openapi::api::scheduling::v1beta1::PodGroup;

use crate::names;
use crate::topology_placement::{needs_gate, of};

struct PodGroupPodsCount {
    handle: Arc<dyn Handle>,
}

/// Makes the plugin.
///
/// # Errors
/// With the feature gate `TopologyAwareWorkloadScheduling` off.
pub fn new(
    _args: Option<&serde_json::Value>,
    handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    needs_gate(&*handle, names::POD_GROUP_PODS_COUNT)?;
    Ok(Arc::new(PodGroupPodsCount { handle }))
}

impl Plugin for PodGroupPodsCount {
    fn name(&self) -> &'static str {
        names::POD_GROUP_PODS_COUNT
    }
    fn as_placement_score(&self) -> Option<&dyn PlacementScorePlugin> {
        Some(self)
    }
}

impl PlacementScorePlugin for PodGroupPodsCount {
    /// Pods that have a node already count, too: one more or less then makes a smaller difference.
    fn score_placement(
        &self,
        group: &PodGroup,
        _snapshot: &Snapshot,
        assignments: PodGroupAssignments<'_>,
    ) -> Result<i64, Status> {
        let groups = self.handle.listers().pod_groups();
        let pods = groups.counts(of(group)).scheduled + assignments.proposed.len();
        Ok(i64::try_from(pods).unwrap_or(i64::MAX / MAX_NODE_SCORE))
    }

    /// The placement with the most pods has the best score.
    fn normalize_placement_scores(&self, _group: &PodGroup, scores: &mut [i64]) -> Status {
        let most = scores.iter().copied().max().unwrap_or(0);
        if most == 0 {
            return Status::error(
                "no pods from pod group are assigned to any of the candidate placements",
            );
        }
        for score in scores {
            *score = *score * MAX_NODE_SCORE / most;
        }
        Status::success()
    }
}

#[cfg(test)]
mod tests {
    use framework::Placement;
    use framework::testing::make_pod;

    use super::*;
    use crate::topology_placement::tests_support::{group, handle, member};

    #[test]
    fn more_pods_are_better() {
        let handle = handle();
        let plugin = new(None, Arc::clone(&handle) as _).expect("the gate is on");
        let plugin = plugin.as_placement_score().expect("scores");
        let there = member("there").build();
        let raw = |proposed: usize| {
            let pods = (0..proposed).map(|i| (make_pod(&format!("p{i}")).info(), "n".into()));
            let proposed: Vec<_> = pods.collect();
            let assignments = PodGroupAssignments {
                placement: &Placement::default(),
                proposed: &proposed,
            };
            plugin
                .score_placement(&group(None), &Snapshot::new(), assignments)
                .expect("counts")
        };
        assert_eq!([raw(0), raw(3)], [0, 3]);
        handle.pod_groups.set_pod(&there);
        assert_eq!(raw(3), 3, "it has no node yet");
        handle.pod_groups.assume(&there, "n");
        assert_eq!(raw(3), 4);

        let normal = |scores: &[i64]| {
            let mut scores = scores.to_vec();
            let status = plugin.normalize_placement_scores(&group(None), &mut scores);
            (status.is_success(), scores)
        };
        assert_eq!(normal(&[4, 2, 1, 3]), (true, vec![100, 50, 25, 75]));
        assert_eq!(normal(&[3, 2]), (true, vec![100, 66]));
        assert!(!normal(&[0, 0]).0);
    }
}
