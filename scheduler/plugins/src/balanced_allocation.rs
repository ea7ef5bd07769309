//! NodeResourcesBalancedAllocation: prefers nodes where the pod makes the use of CPU, memory, … more even.
//!
//! Upstream: plugins/noderesources/balanced_allocation.go, v1.36.

use std::collections::BTreeSet;
use std::sync::Arc;

use framework::args::{NodeResourcesBalancedAllocationArgs, decode};
use framework::{
    CycleState, Fragments, Handle, MAX_NODE_SCORE, NodeInfo, NodeSet, Plugin, PluginError, PodInfo,
    PreScorePlugin, ScorePlugin, Sign, Snapshot, Status,
};

use crate::names;
use crate::resource_allocation::{Columns, Share, shares, wanted};

struct BalancedAllocation {
    args: NodeResourcesBalancedAllocationArgs,
}

/// Makes the plugin.
///
/// # Errors
/// For arguments that do not decode, name a resource twice, or give a weight other than 1.
pub fn new(
    args: Option<&serde_json::Value>,
    _handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    let plugin = names::NODE_RESOURCES_BALANCED_ALLOCATION;
    let args: NodeResourcesBalancedAllocationArgs = decode(plugin, args)?;
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, resource) in args.resources.iter().enumerate() {
        if !seen.insert(&resource.name) {
            problems.push(format!(
                "resources[{i}].name: Duplicate value: {:?}",
                resource.name
            ));
        }
        if resource.weight != 1 {
            problems.push(format!(
                "resources[{i}].weight: Invalid value: {}: must be 1",
                resource.weight
            ));
        }
    }
    if !problems.is_empty() {
        return Err(PluginError::Invalid { plugin, problems });
    }
    Ok(Arc::new(BalancedAllocation { args }))
}

/// How even the shares are: 100 when all fractions are equal, 50 at worst.
fn balance(shares: &[Share], used: impl Fn(&Share) -> i64) -> i64 {
    let fractions = shares
        .iter()
        .filter(|share| share.allocatable != 0)
        .map(|share| (used(share) as f64 / share.allocatable as f64).min(1.0));
    let (mut count, mut sum) = (0, 0.0);
    let (mut first, mut second) = (0.0, 0.0);
    for fraction in fractions.clone() {
        match count {
            0 => first = fraction,
            1 => second = fraction,
            _ => {}
        }
        count += 1;
        sum += fraction;
    }
    let deviation = match count {
        0 | 1 => 0.0,
        2 => f64::abs((first - second) / 2.0),
        _ => {
            let mean = sum / f64::from(count);
            (fractions
                .map(|fraction| (fraction - mean) * (fraction - mean))
                .sum::<f64>()
                / f64::from(count))
            .sqrt()
        }
    };
    ((1.0 - deviation) * MAX_NODE_SCORE as f64) as i64
}

/// 75 when the pod changes nothing, towards 100 when it evens out, towards 50 when it does the opposite.
fn improvement(shares: &[Share]) -> i64 {
    let with = balance(shares, |share| share.requested);
    let without = balance(shares, |share| share.allocated);
    MAX_NODE_SCORE / 2 + (MAX_NODE_SCORE / 2 + with - without) / 2
}

impl Plugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        names::NODE_RESOURCES_BALANCED_ALLOCATION
    }
    fn sign(&self, _pod: &PodInfo, _snapshot: &Snapshot) -> Option<Sign> {
        Some(Sign::node(Fragments::REQUESTS))
    }
    fn as_pre_score(&self) -> Option<&dyn PreScorePlugin> {
        Some(self)
    }
    fn as_score(&self) -> Option<&dyn ScorePlugin> {
        Some(self)
    }
}

impl PreScorePlugin for BalancedAllocation {
    fn pre_score(
        &self,
        _state: &mut CycleState,
        pod: &Arc<PodInfo>,
        _snapshot: &Snapshot,
        _nodes: &NodeSet,
    ) -> Status {
        // Best-effort pods would all go to the same node.
        let best_effort = wanted(pod, &self.args.resources, false)
            .iter()
            .all(|resource| resource.request == 0);
        if best_effort {
            Status::skip()
        } else {
            Status::success()
        }
    }
}

impl ScorePlugin for BalancedAllocation {
    fn score(
        &self,
        _state: &CycleState,
        pod: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Result<i64, Status> {
        let wanted = wanted(pod, &self.args.resources, false);
        let mut out = Vec::with_capacity(wanted.len());
        shares(node, &wanted, false, &mut out);
        Ok(improvement(&out))
    }

    fn score_all(
        &self,
        _state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        nodes: &NodeSet,
        scores: &mut [i64],
    ) -> bool {
        let wanted = wanted(pod, &self.args.resources, false);
        let columns = Columns::new(snapshot.columns(), &wanted, false);
        let mut out = Vec::with_capacity(wanted.len());
        for node in nodes.iter() {
            columns.shares(node, &mut out);
            scores[node as usize] = improvement(&out);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use framework::testing::{assert_forms_agree, make_node, make_pod, snapshot};

    use super::*;
    use crate::testing::{Random, handle};

    #[test]
    fn evenness() {
        let share = |allocatable, allocated, request| Share {
            allocatable,
            allocated,
            requested: allocated + request,
        };
        for (shares, expect) in [
            // Nothing used, the pod takes the same share of both.
            (vec![share(4000, 0, 1000), share(4000, 0, 1000)], 75),
            // From even to uneven, and back.
            (vec![share(10000, 0, 3000), share(10000, 0, 5000)], 70),
            (vec![share(10000, 6000, 0), share(10000, 0, 6000)], 90),
            (vec![share(10000, 0, 3000)], 75),
            (vec![share(0, 0, 0), share(10000, 0, 6000)], 75),
            (vec![], 75),
        ] {
            assert_eq!(improvement(&shares), expect);
        }
    }

    #[test]
    fn forms_agree_and_best_effort_is_skipped() {
        let args = serde_json::json!({"resources": [{"name": "cpu"}, {"name": "memory"}, {"name": "example.com/gpu"}]});
        let plugins = [
            new(None, handle()).unwrap(),
            new(Some(&args), handle()).unwrap(),
        ];
        let mut random = Random::new(11);
        for _ in 0..30 {
            let mut amounts = |limit: u64| {
                [
                    ("cpu", format!("{}m", random.below(limit))),
                    ("memory", random.below(limit).to_string()),
                    ("example.com/gpu", random.below(4).to_string()),
                ]
            };
            let nodes: Vec<_> = (0..8)
                .map(|i| {
                    make_node(&format!("n{i}"))
                        .capacity(&amounts(9000).each_ref().map(|(k, v)| (*k, v.as_str())))
                        .build()
                })
                .collect();
            let pods: Vec<_> = (0..8)
                .map(|i| {
                    make_pod("u")
                        .req(&amounts(4000).each_ref().map(|(k, v)| (*k, v.as_str())))
                        .with(|pod| pod.spec.as_mut().unwrap().node_name = Some(format!("n{i}")))
                        .info()
                })
                .collect();
            let snapshot = snapshot(nodes, pods);
            let pod = make_pod("p")
                .req(&amounts(3000).each_ref().map(|(k, v)| (*k, v.as_str())))
                .info();
            for plugin in &plugins {
                assert_forms_agree(plugin.as_ref(), &pod, &snapshot);
            }
        }
        let status = plugins[0].as_pre_score().unwrap().pre_score(
            &mut CycleState::new(),
            &make_pod("p").info(),
            &Snapshot::new(),
            &NodeSet::default(),
        );
        assert!(status.is_skip());
        let twice =
            serde_json::json!({"resources": [{"name": "cpu"}, {"name": "cpu", "weight": 2}]});
        assert!(new(Some(&twice), handle()).is_err());
    }
}
