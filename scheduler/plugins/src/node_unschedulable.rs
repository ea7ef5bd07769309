//! NodeUnschedulable: cordoned nodes take no pods but those that tolerate it.
//!
//! Upstream: plugins/nodeunschedulable, v1.36.

use std::sync::Arc;

use component_helpers::{node::is_unschedulable, taints};
use framework::{
    ActionType, ClusterEventWithHint, CycleState, EnqueueExtensions, EventObject, EventResource,
    FilterPlugin, Fragments, Handle, NodeInfo, Plugin, PluginError, PodInfo, QueueingHint, Sign,
    Snapshot, Status, Verdicts,
};
use k8s_openapi::api::core::v1::{Pod, Taint};

use crate::{COMPARISON_OPERATORS, names};

/// Why a node is rejected.
pub const ERR_REASON_UNSCHEDULABLE: &str = "node(s) were unschedulable";

struct NodeUnschedulable;

/// Makes the plugin.
///
/// # Errors
/// Never.
pub fn new(
    _args: Option<&serde_json::Value>,
    _handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    Ok(Arc::new(NodeUnschedulable))
}

fn tolerates(pod: &Pod) -> bool {
    let taint = Taint {
        key: taints::keys::UNSCHEDULABLE.into(),
        effect: taints::NO_SCHEDULE.into(),
        ..Taint::default()
    };
    taints::tolerations_tolerate_taint(
        component_helpers::pod::tolerations(pod),
        &taint,
        COMPARISON_OPERATORS,
    )
}

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        names::NODE_UNSCHEDULABLE
    }
    fn sign(&self, _pod: &PodInfo, _snapshot: &Snapshot) -> Option<Sign> {
        Some(Sign::node(Fragments::TOLERATIONS))
    }
    fn as_filter(&self) -> Option<&dyn FilterPlugin> {
        Some(self)
    }
    fn as_enqueue_extensions(&self) -> Option<&dyn EnqueueExtensions> {
        Some(self)
    }
}

impl FilterPlugin for NodeUnschedulable {
    fn filter(&self, _state: &CycleState, pod: &Arc<PodInfo>, node: &NodeInfo) -> Status {
        if !node.unschedulable() || tolerates(&pod.pod) {
            return Status::success();
        }
        Status::unresolvable(ERR_REASON_UNSCHEDULABLE)
    }

    fn filter_all(
        &self,
        _state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        verdicts: &mut Verdicts,
    ) -> bool {
        let cordoned = &snapshot.columns().unschedulable;
        if !cordoned.is_empty() && !tolerates(&pod.pod) {
            verdicts.reject_all(cordoned, Status::unresolvable(ERR_REASON_UNSCHEDULABLE));
        }
        true
    }
}

impl EnqueueExtensions for NodeUnschedulable {
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
    _pod: &Arc<Pod>,
    old: Option<&EventObject>,
    new: Option<&EventObject>,
) -> QueueingHint {
    let cordoned = |object: Option<&EventObject>| {
        object
            .and_then(EventObject::node)
            .map(|node| is_unschedulable(node))
    };
    match (cordoned(old), cordoned(new)) {
        (Some(true) | None, Some(false)) => QueueingHint::Queue,
        _ => QueueingHint::QueueSkip,
    }
}

fn after_toleration_change(
    pod: &Arc<Pod>,
    _old: Option<&EventObject>,
    new: Option<&EventObject>,
) -> QueueingHint {
    match new.and_then(EventObject::pod) {
        Some(new) if new.metadata.uid == pod.metadata.uid && tolerates(new) => QueueingHint::Queue,
        _ => QueueingHint::QueueSkip,
    }
}

#[cfg(test)]
mod tests {
    use framework::testing::{assert_forms_agree, make_node, make_pod, snapshot};
    use k8s_openapi::api::core::v1::Toleration;

    use super::*;

    #[test]
    fn cordoned_nodes() {
        let tolerant = make_pod("p").with(|pod| {
            let toleration = Toleration {
                key: Some(taints::keys::UNSCHEDULABLE.into()),
                operator: Some("Exists".into()),
                ..Default::default()
            };
            pod.spec.get_or_insert_default().tolerations = Some(vec![toleration]);
        });
        let (plain, tolerant) = (make_pod("p").info(), tolerant.info());
        let state = CycleState::new();
        let cordoned = make_node("a").unschedulable(true);
        assert_eq!(
            NodeUnschedulable
                .filter(&state, &plain, &cordoned.clone().info([]))
                .message(),
            ERR_REASON_UNSCHEDULABLE
        );
        assert!(
            NodeUnschedulable
                .filter(&state, &tolerant, &cordoned.clone().info([]))
                .is_success()
        );
        assert!(
            NodeUnschedulable
                .filter(&state, &plain, &make_node("b").info([]))
                .is_success()
        );
        let snapshot = snapshot([cordoned.build(), make_node("b").build()], []);
        assert_forms_agree(&NodeUnschedulable, &plain, &snapshot);
        assert_forms_agree(&NodeUnschedulable, &tolerant, &snapshot);
    }

    #[test]
    fn hints() {
        let pod = make_pod("p").build();
        let node = |cordoned| {
            Some(EventObject::Node(
                make_node("a").unschedulable(cordoned).build(),
            ))
        };
        for (old, new, expect) in [
            (None, node(false), QueueingHint::Queue),
            (None, node(true), QueueingHint::QueueSkip),
            (node(true), node(false), QueueingHint::Queue),
            (node(false), node(false), QueueingHint::QueueSkip),
        ] {
            assert_eq!(after_node_change(&pod, old.as_ref(), new.as_ref()), expect);
        }
    }
}
