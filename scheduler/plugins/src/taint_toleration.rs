//! TaintToleration: nodes whose taints a pod does not tolerate are out; `PreferNoSchedule` taints count against a node.
//!
//! Distinct sets of taints are few, so over all nodes each set is judged once. Upstream: plugins/tainttoleration, v1.36.

use std::sync::Arc;

use component_helpers::pod::tolerations;
use component_helpers::taints::{
    PREFER_NO_SCHEDULE, do_not_schedule, find_matching_untolerated_taint,
    tolerations_tolerate_taint,
};
use framework::{
    ActionType, ClusterEventWithHint, CycleState, EnqueueExtensions, EventObject, EventResource,
    FilterPlugin, Fragments, Handle, NodeInfo, NodeSet, Normalize, Plugin, PluginError, PodInfo,
    QueueingHint, ScorePlugin, Sign, Snapshot, Status, Verdicts,
};
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};

use crate::{COMPARISON_OPERATORS, names};

/// Why a node is rejected.
pub const ERR_REASON: &str = "node(s) had untolerated taint(s)";

struct TaintToleration;

/// Makes the plugin.
///
/// # Errors
/// Never.
pub fn new(
    _args: Option<&serde_json::Value>,
    _handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    Ok(Arc::new(TaintToleration))
}

fn untolerated(taints: &[Taint], pod: &Pod) -> bool {
    find_matching_untolerated_taint(
        taints,
        tolerations(pod),
        do_not_schedule,
        COMPARISON_OPERATORS,
    )
    .is_some()
}

/// The tolerations that may count for `PreferNoSchedule`: those for it, and those for every effect.
fn soft_tolerations(pod: &Pod) -> Vec<Toleration> {
    let soft = |t: &&Toleration| {
        t.effect
            .as_deref()
            .is_none_or(|effect| effect.is_empty() || effect == PREFER_NO_SCHEDULE)
    };
    tolerations(pod).iter().filter(soft).cloned().collect()
}

fn count_intolerable(taints: &[Taint], tolerations: &[Toleration]) -> i64 {
    let soft = taints
        .iter()
        .filter(|taint| taint.effect == PREFER_NO_SCHEDULE);
    soft.filter(|taint| !tolerations_tolerate_taint(tolerations, taint, COMPARISON_OPERATORS))
        .count() as i64
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        names::TAINT_TOLERATION
    }
    fn sign(&self, _pod: &PodInfo, _snapshot: &Snapshot) -> Option<Sign> {
        Some(Sign::node(Fragments::TOLERATIONS))
    }
    fn as_filter(&self) -> Option<&dyn FilterPlugin> {
        Some(self)
    }
    fn as_score(&self) -> Option<&dyn ScorePlugin> {
        Some(self)
    }
    fn as_enqueue_extensions(&self) -> Option<&dyn EnqueueExtensions> {
        Some(self)
    }
}

impl FilterPlugin for TaintToleration {
    fn filter(&self, _state: &CycleState, pod: &Arc<PodInfo>, node: &NodeInfo) -> Status {
        if untolerated(node.taints(), &pod.pod) {
            Status::unresolvable(ERR_REASON)
        } else {
            Status::success()
        }
    }

    fn filter_all(
        &self,
        _state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        verdicts: &mut Verdicts,
    ) -> bool {
        let columns = snapshot.columns();
        let unfit: Vec<bool> = (0..columns.num_taint_sets())
            .map(|id| untolerated(columns.taints(id as u32), &pod.pod))
            .collect();
        if unfit.contains(&true) {
            verdicts.reject_where(
                || Status::unresolvable(ERR_REASON),
                |node| unfit[columns.taint_set[node as usize] as usize],
            );
        }
        true
    }
}

impl ScorePlugin for TaintToleration {
    fn score(
        &self,
        _state: &CycleState,
        pod: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Result<i64, Status> {
        if node.taints().is_empty() {
            return Ok(0);
        }
        Ok(count_intolerable(
            node.taints(),
            &soft_tolerations(&pod.pod),
        ))
    }

    fn score_all(
        &self,
        _state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        nodes: &NodeSet,
        scores: &mut [i64],
    ) -> bool {
        let columns = snapshot.columns();
        let tolerations = soft_tolerations(&pod.pod);
        let counts: Vec<i64> = (0..columns.num_taint_sets())
            .map(|id| count_intolerable(columns.taints(id as u32), &tolerations))
            .collect();
        for node in nodes.iter() {
            scores[node as usize] = counts[columns.taint_set[node as usize] as usize];
        }
        true
    }

    fn normalize(&self) -> Normalize {
        Normalize::ByMax { reverse: true }
    }
}

impl EnqueueExtensions for TaintToleration {
    fn events_to_register(&self) -> Vec<ClusterEventWithHint> {
        vec![
            ClusterEventWithHint::with_hint(
                EventResource::Node,
                ActionType::ADD | ActionType::UPDATE_NODE_TAINT,
                after_node_change,
            ),
            ClusterEventWithHint::with_hint(
                EventResource::Pod,
                ActionType::UPDATE_POD_TOLERATION,
                after_toleration_change,
            ),
        ]
    }
}

fn after_node_change(
    pod: &Arc<Pod>,
    old: Option<&EventObject>,
    new: Option<&EventObject>,
) -> QueueingHint {
    let rejects = |node: &Arc<Node>| {
        untolerated(
            node.spec
                .as_ref()
                .and_then(|spec| spec.taints.as_deref())
                .unwrap_or_default(),
            pod,
        )
    };
    let was = old.and_then(EventObject::node).is_none_or(rejects);
    match new.and_then(EventObject::node) {
        Some(new) if was && !rejects(new) => QueueingHint::Queue,
        _ => QueueingHint::QueueSkip,
    }
}

fn after_toleration_change(
    pod: &Arc<Pod>,
    _old: Option<&EventObject>,
    new: Option<&EventObject>,
) -> QueueingHint {
    match new.and_then(EventObject::pod) {
        Some(new) if new.metadata.uid == pod.metadata.uid => QueueingHint::Queue,
        _ => QueueingHint::QueueSkip,
    }
}

#[cfg(test)]
mod tests {
    use component_helpers::taints;
    use framework::testing::{assert_forms_agree, make_node, make_pod, snapshot};

    use super::*;

    fn toleration(key: &str, effect: &str) -> Toleration {
        Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some(effect.into()),
            ..Default::default()
        }
    }

    fn pod(tolerations: Vec<Toleration>) -> Arc<PodInfo> {
        make_pod("p")
            .with(|pod| pod.spec.get_or_insert_default().tolerations = Some(tolerations))
            .info()
    }

    #[test]
    fn filters_and_scores() {
        let nodes = [
            make_node("plain"),
            make_node("hard").taint("gpu", "yes", taints::NO_SCHEDULE),
            make_node("evicting").taint("gone", "", taints::NO_EXECUTE),
            make_node("soft").taint("old", "", PREFER_NO_SCHEDULE),
            make_node("softer")
                .taint("old", "", PREFER_NO_SCHEDULE)
                .taint("slow", "", PREFER_NO_SCHEDULE),
        ];
        let snapshot = snapshot(nodes.map(|node| node.build()), []);
        let check = |tolerations: Vec<Toleration>, expect: [Option<i64>; 5]| {
            let pod = pod(tolerations);
            assert_forms_agree(&TaintToleration, &pod, &snapshot);
            for (name, expect) in ["plain", "hard", "evicting", "soft", "softer"]
                .iter()
                .zip(expect)
            {
                let node = snapshot.get(name).unwrap();
                let status = TaintToleration.filter(&CycleState::new(), &pod, node);
                let score = TaintToleration
                    .score(&CycleState::new(), &pod, node)
                    .unwrap();
                assert_eq!(
                    status.is_success().then_some(score),
                    expect,
                    "{name}: {status}"
                );
            }
        };
        check(vec![], [Some(0), None, None, Some(1), Some(2)]);
        check(
            vec![toleration("gpu", "NoSchedule")],
            [Some(0), Some(0), None, Some(1), Some(2)],
        );
        check(
            vec![toleration("old", "")],
            [Some(0), None, None, Some(0), Some(1)],
        );
        check(
            vec![toleration("", "")],
            [Some(0), Some(0), Some(0), Some(0), Some(0)],
        );
        check(
            vec![toleration("", "NoSchedule")],
            [Some(0), Some(0), None, Some(1), Some(2)],
        );
    }

    #[test]
    fn hints() {
        let pod = make_pod("p").build();
        let clean = Some(EventObject::Node(make_node("a").build()));
        let tainted = Some(EventObject::Node(
            make_node("a").taint("x", "", taints::NO_SCHEDULE).build(),
        ));
        for (old, new, expect) in [
            (None, &clean, QueueingHint::Queue),
            (None, &tainted, QueueingHint::QueueSkip),
            (tainted.as_ref(), &clean, QueueingHint::Queue),
            (clean.as_ref(), &clean, QueueingHint::QueueSkip),
        ] {
            assert_eq!(after_node_change(&pod, old, new.as_ref()), expect);
        }
    }
}
