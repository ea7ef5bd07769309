//! How full the nodes of a placement would be with a group of pods: fuller is better, whatever the strategy for nodes, so that large holes stay whole.
//!
//! Upstream: plugins/noderesources/fit.go (ScorePlacement), resource_allocation.go (scorePlacement), v1.37.

use framework::{PlacementScorePlugin, PodGroupAssignments, Snapshot, Status};
use k8s_openapi::api::scheduling::v1beta1::PodGroup;

use super::NodeResourcesFit;
use super::scorer::Scorer;
use crate::resource_allocation::{Columns, Share, wanted_by_all};

impl PlacementScorePlugin for NodeResourcesFit {
    fn score_placement(
        &self,
        _group: &PodGroup,
        snapshot: &Snapshot,
        assignments: PodGroupAssignments<'_>,
    ) -> Result<i64, Status> {
        let resources = &self.args.scoring_strategy.resources;
        let pods = assignments.proposed.iter().map(|(pod, _)| &**pod);
        let wanted = wanted_by_all(pods, resources, true);
        let columns = Columns::new(snapshot.columns(), &wanted, true);
        let mut sums = vec![Share::default(); wanted.len()];
        let mut of_node = Vec::with_capacity(wanted.len());
        for node in assignments.placement.nodes.iter() {
            columns.shares(node, &mut of_node);
            for (sum, share) in sums.iter_mut().zip(&of_node) {
                sum.allocatable = sum.allocatable.saturating_add(share.allocatable);
                sum.allocated = sum.allocated.saturating_add(share.allocated);
            }
        }
        for (sum, resource) in sums.iter_mut().zip(&wanted) {
            sum.requested = sum.allocated.saturating_add(resource.request);
        }
        Ok(Scorer::MostAllocated.score(&wanted, &sums))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use framework::testing::{make_node, make_pod};
    use framework::{NodeSet, Placement};

    use super::*;

    /// The score of all nodes, each (CPU there, CPU taken by a pod), with a group of pods of these CPUs.
    fn check(nodes: &[(&str, &str)], group: &[&str], args: &str, expect: i64) {
        let mut snapshot = Snapshot::new();
        for (i, (there, taken)) in nodes.iter().enumerate() {
            let node = make_node(&format!("n{i}")).capacity(&[("cpu", there), ("memory", "10Gi")]);
            let pod = make_pod(&format!("on{i}")).req(&[("cpu", *taken), ("memory", "1Gi")]);
            let pods = (!taken.is_empty()).then(|| pod.info());
            snapshot.set_node(Arc::new(node.info(pods)));
        }
        let pod = |(i, cpu): (usize, &&str)| {
            let pod = make_pod(&format!("p{i}")).req(&[("cpu", *cpu), ("memory", "1Gi")]);
            (pod.info(), "n0".into())
        };
        let proposed: Vec<_> = group.iter().enumerate().map(pod).collect();
        let placement = Placement {
            name: "all".into(),
            nodes: snapshot.columns().live().clone(),
        };
        let args: serde_json::Value = serde_json::from_str(args).expect("JSON");
        let plugin = super::super::new(Some(&args), crate::testing::handle()).expect("valid");
        let score = plugin.as_placement_score().expect("scores placements");
        let assignments = PodGroupAssignments {
            placement: &placement,
            proposed: &proposed,
        };
        let scored = score.score_placement(&PodGroup::default(), &snapshot, assignments);
        assert_eq!(scored, Ok(expect), "{nodes:?} {group:?} {args}");
        // Nodes that are no part of the placement do not count.
        let none = Placement {
            nodes: NodeSet::default(),
            ..placement.clone()
        };
        let assignments = PodGroupAssignments {
            placement: &none,
            proposed: &proposed,
        };
        let nowhere = score.score_placement(&PodGroup::default(), &snapshot, assignments);
        assert_eq!(nowhere, Ok(0));
    }

    #[test]
    fn fuller_placements_are_better() {
        let cpu = r#"{"scoringStrategy": {"type": "LeastAllocated", "resources": [{"name": "cpu", "weight": 1}]}}"#;
        check(&[("4", ""), ("4", "")], &["1", "1"], cpu, 25);
        check(&[("4", ""), ("4", "2")], &["1", "1"], cpu, 50);
        check(&[("4", "4")], &["1"], cpu, 100);
        check(&[("8", ""), ("2", "1")], &[], cpu, 10);
        let both = r#"{"scoringStrategy": {"type": "LeastAllocated", "resources": [{"name": "cpu", "weight": 3}, {"name": "memory", "weight": 1}]}}"#;
        // CPU: 50, memory: 2 of 20 Gi, 10.
        check(&[("4", ""), ("4", "")], &["2", "2"], both, 40);
        let extended = r#"{"scoringStrategy": {"type": "LeastAllocated", "resources": [{"name": "cpu", "weight": 1}, {"name": "example.com/gpu", "weight": 1}]}}"#;
        check(&[("4", "")], &["1"], extended, 25);
    }
}
