//! NodeResourcesAllocatable: prefers nodes that have the least allocatable resources, or the most; what is used of them does not count.
//!
//! Best and worst of the feasible nodes get 100 and 0, so a score depends on all of them; the sums are kept, node by node. Upstream: pkg/noderesources.

use std::sync::Arc;

use framework::args::{ResourceSpec, decode};
use framework::{
    CycleState, Fragments, Handle, Incremental, MAX_NODE_SCORE, NodeIndex, NodeInfo, NodeScore,
    NodeSet, Normalize, Plugin, PluginError, PodInfo, ScorePlugin, Sign, Snapshot, Status,
    Verdicts,
};

use crate::args::{ModeType, NodeResourcesAllocatableArgs};
use crate::names;

struct Allocatable(Arc<NodeResourcesAllocatableArgs>);

/// Makes the plugin.
///
/// # Errors
/// For arguments that do not decode, or a weight that is not positive.
pub fn new(
    args: Option<&serde_json::Value>,
    _handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    let plugin = names::NODE_RESOURCES_ALLOCATABLE;
    let args: NodeResourcesAllocatableArgs = decode(plugin, args)?;
    let problem = |(i, resource): (usize, &ResourceSpec)| {
        let (name, weight) = (&resource.name, resource.weight);
        (weight <= 0).then(|| {
            format!("resources[{i}].weight: Invalid value: {weight}: resource weight of {name} should be a positive value, got :{weight}")
        })
    };
    let problems: Vec<String> = args
        .resources
        .iter()
        .enumerate()
        .filter_map(problem)
        .collect();
    if !problems.is_empty() {
        return Err(PluginError::Invalid { plugin, problems });
    }
    Ok(Arc::new(Allocatable(Arc::new(args))))
}

/// The weighted mean of what the node has, less than none where little is good.
fn raw(args: &NodeResourcesAllocatableArgs, node: &NodeInfo) -> i64 {
    let (mut sum, mut weights) = (0i128, 0i128);
    for resource in &args.resources {
        let has = match resource.name.as_str() {
            // Upstream counts no pods here.
            "pods" => 0,
            name => node.allocatable().get(name),
        };
        sum += i128::from(has) * i128::from(resource.weight);
        weights += i128::from(resource.weight);
    }
    let mean = i64::try_from(sum / weights).unwrap_or(i64::MAX);
    match args.mode {
        ModeType::Least => -mean,
        ModeType::Most => mean,
    }
}

/// 0 for the worst, 100 for the best, all 0 when all are alike.
fn normalized(raw: i64, worst: i64, best: i64) -> i64 {
    let (range, above) = (
        i128::from(best) - i128::from(worst),
        i128::from(raw) - i128::from(worst),
    );
    match range {
        0 => 0,
        range => (above * i128::from(MAX_NODE_SCORE) / range) as i64,
    }
}

impl Plugin for Allocatable {
    fn name(&self) -> &'static str {
        names::NODE_RESOURCES_ALLOCATABLE
    }
    fn sign(&self, _pod: &PodInfo, _snapshot: &Snapshot) -> Option<Sign> {
        Some(Sign::cluster(Fragments::NONE))
    }
    fn incremental(
        &self,
        _pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
    ) -> Option<Box<dyn Incremental>> {
        let mut view = View {
            args: Arc::clone(&self.0),
            raw: Vec::new(),
        };
        let nodes: Vec<NodeIndex> = snapshot.iter().map(|(index, _)| index).collect();
        view.update(snapshot, &nodes);
        Some(Box::new(view))
    }
    fn as_score(&self) -> Option<&dyn ScorePlugin> {
        Some(self)
    }
}

impl ScorePlugin for Allocatable {
    fn score(
        &self,
        _state: &CycleState,
        _pod: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Result<i64, Status> {
        Ok(raw(&self.0, node))
    }

    fn normalize(&self) -> Normalize {
        Normalize::Custom
    }

    fn normalize_score(
        &self,
        _state: &CycleState,
        _pod: &Arc<PodInfo>,
        _snapshot: &Snapshot,
        scores: &mut [NodeScore],
    ) -> Status {
        let raw = || scores.iter().map(|score| score.score);
        if let (Some(worst), Some(best)) = (raw().min(), raw().max()) {
            for score in scores {
                score.score = normalized(score.score, worst, best);
            }
        }
        Status::success()
    }
}

/// The raw score of each node.
struct View {
    args: Arc<NodeResourcesAllocatableArgs>,
    raw: Vec<i64>,
}

impl Incremental for View {
    fn update(&mut self, snapshot: &Snapshot, changed: &[NodeIndex]) {
        self.raw.resize(snapshot.columns().len(), 0);
        for &index in changed {
            if let Some(node) = snapshot.node(index) {
                self.raw[index as usize] = raw(&self.args, node);
            }
        }
    }

    fn filter_all(&mut self, _snapshot: &Snapshot, _verdicts: &mut Verdicts) {}

    fn score_all(&mut self, _snapshot: &Snapshot, nodes: &NodeSet, scores: &mut [i64]) -> bool {
        let raw = || nodes.iter().map(|node| self.raw[node as usize]);
        let (Some(worst), Some(best)) = (raw().min(), raw().max()) else {
            return true;
        };
        for node in nodes.iter() {
            scores[node as usize] = normalized(self.raw[node as usize], worst, best);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use framework::testing::{assert_forms_agree, make_node, make_pod, snapshot};
    use serde_json::json;

    use super::*;

    /// The scores of nodes with so much (cpu, memory).
    fn check(args: serde_json::Value, nodes: &[(&str, &str)], expect: &[i64]) {
        let plugin = new(Some(&args), plugins::testing::handle()).expect("valid");
        let nodes = nodes.iter().enumerate().map(|(i, (cpu, memory))| {
            let node = make_node(&format!("n{i}"));
            node.capacity(&[("cpu", cpu), ("memory", memory)]).build()
        });
        let snapshot = snapshot(nodes, []);
        let pod = make_pod("p").req(&[("cpu", "1")]).info();
        assert_forms_agree(&*plugin, &pod, &snapshot);
        let score = plugin.as_score().expect("scores");
        let mut scores: Vec<NodeScore> = (0..expect.len())
            .map(|i| {
                let node = snapshot.index(&format!("n{i}")).expect("is there");
                let info = snapshot.node(node).expect("is there");
                let raw = score.score(&CycleState::new(), &pod, info);
                NodeScore {
                    node,
                    score: raw.expect("scores"),
                }
            })
            .collect();
        let _ = score.normalize_score(&CycleState::new(), &pod, &snapshot, &mut scores);
        let scores: Vec<i64> = scores.iter().map(|score| score.score).collect();
        assert_eq!(scores, expect, "{args}");
    }

    #[test]
    fn the_least_or_the_most_is_best() {
        let nodes = [("4", "10000"), ("6", "10000"), ("8", "10000")];
        check(json!({}), &nodes, &[100, 50, 0]);
        check(json!({"mode": "Most"}), &nodes, &[0, 50, 100]);
        check(json!({"mode": "Least"}), &nodes[..1], &[0]);
        check(
            json!({"mode": "Most"}),
            &[("4", "1Gi"), ("4", "1Gi")],
            &[0, 0],
        );
        let memory = json!({"resources": [{"name": "memory", "weight": 1}]});
        check(
            memory,
            &[("4", "3Gi"), ("1", "1Gi"), ("9", "2Gi")],
            &[0, 100, 50],
        );
        // A millicore counts as much as a mebibyte.
        check(json!({}), &[("1", "0"), ("0", "1000Mi")], &[0, 0]);
        let unknown = json!({"resources": [{"name": "example.com/none", "weight": 3}]});
        check(unknown, &nodes, &[0, 0, 0]);
    }

    #[test]
    fn weights_are_positive() {
        let args =
            json!({"resources": [{"name": "cpu", "weight": 0}, {"name": "memory", "weight": -1}]});
        let error = new(Some(&args), plugins::testing::handle()).err();
        let error = error.expect("refused").to_string();
        for words in [
            "resources[0].weight: Invalid value: 0",
            "resources[1].weight: Invalid value: -1",
        ] {
            assert!(error.contains(words), "{error}");
        }
        let args = json!({"mode": "Middle"});
        let error = new(Some(&args), plugins::testing::handle()).err();
        assert!(error.expect("refused").to_string().contains("Middle"));
    }
}
