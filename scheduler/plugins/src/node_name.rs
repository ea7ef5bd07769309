//! NodeName: a pod that names its node goes nowhere else.
//!
//! Upstream: plugins/nodename, v1.36.

use std::sync::Arc;

use framework::{
    ActionType, ClusterEventWithHint, CycleState, EnqueueExtensions, EventResource, FilterPlugin,
    Fragments, Handle, NodeInfo, Plugin, PluginError, PodInfo, Sign, Snapshot, Status, Verdicts,
};

use crate::names;

/// Why a node is rejected.
pub const ERR_REASON: &str = "node(s) didn't match the requested node name";

struct NodeName;

/// Makes the plugin.
///
/// # Errors
/// Never.
pub fn new(
    _args: Option<&serde_json::Value>,
    _handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    Ok(Arc::new(NodeName))
}

fn wanted(pod: &PodInfo) -> Option<&str> {
    pod.spec()
        .node_name
        .as_deref()
        .filter(|name| !name.is_empty())
}

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        names::NODE_NAME
    }
    fn sign(&self, _pod: &PodInfo, _snapshot: &Snapshot) -> Option<Sign> {
        Some(Sign::node(Fragments::NODE_NAME))
    }
    fn as_filter(&self) -> Option<&dyn FilterPlugin> {
        Some(self)
    }
    fn as_enqueue_extensions(&self) -> Option<&dyn EnqueueExtensions> {
        Some(self)
    }
}

impl FilterPlugin for NodeName {
    fn filter(&self, _state: &CycleState, pod: &Arc<PodInfo>, node: &NodeInfo) -> Status {
        match wanted(pod) {
            Some(name) if *name != **node.name() => Status::unresolvable(ERR_REASON),
            _ => Status::success(),
        }
    }

    fn filter_all(
        &self,
        _state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        verdicts: &mut Verdicts,
    ) -> bool {
        if let Some(name) = wanted(pod) {
            let only = snapshot.index(name);
            verdicts.reject_where(
                || Status::unresolvable(ERR_REASON),
                |node| Some(node) != only,
            );
        }
        true
    }
}

impl EnqueueExtensions for NodeName {
    fn events_to_register(&self) -> Vec<ClusterEventWithHint> {
        vec![ClusterEventWithHint::always(
            EventResource::Node,
            ActionType::ADD,
        )]
    }
}

#[cfg(test)]
mod tests {
    use framework::testing::{assert_forms_agree, make_node, make_pod, snapshot};

    use super::*;

    #[test]
    fn only_the_named_node() {
        let on = |name: &'static str| {
            make_pod("p")
                .with(move |pod| pod.spec.get_or_insert_default().node_name = Some(name.into()))
                .info()
        };
        let node = make_node("a").info([]);
        let state = CycleState::new();
        assert!(
            NodeName
                .filter(&state, &make_pod("p").info(), &node)
                .is_success()
        );
        assert!(NodeName.filter(&state, &on("a"), &node).is_success());
        assert_eq!(
            NodeName.filter(&state, &on("b"), &node),
            Status::unresolvable(ERR_REASON)
        );
        let snapshot = snapshot(["a", "b", "c"].map(|name| make_node(name).build()), []);
        for pod in [on("b"), on("x"), make_pod("p").info()] {
            assert_forms_agree(&NodeName, &pod, &snapshot);
        }
    }
}
