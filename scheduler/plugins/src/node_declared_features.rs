//! NodeDeclaredFeatures: a pod that needs a feature of its kubelet goes only where the node declares it.
//!
//! Upstream: plugins/nodedeclaredfeatures and k8s.io/component-helpers/nodedeclaredfeatures, v1.37.

use std::sync::Arc;

use framework::{
    ActionType, ClusterEventWithHint, CycleState, EnqueueExtensions, EventObject, EventResource,
    FilterPlugin, Fragments, Handle, NodeInfo, Plugin, PluginError, PodInfo, PreFilterPlugin,
    PreFilterResult, QueueingHint, Sign, Snapshot, Status, pod_info::spec,
};
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};

use crate::names;

/// Why a node is rejected.
pub const ERR_REASON: &str = "node(s) didn't match Pod's required features";

const STATE: &str = "PreFilterNodeDeclaredFeatures";

/// Does a pod need a feature?
type Needs = fn(&PodSpec) -> bool;

/// The features a pod can need to run at all; the others only matter to updates.
const FEATURES: &[(&str, Needs)] = &[
    (
        "RestartAllContainersOnContainerExits",
        restarts_all_containers,
    ),
    (
        "UserNamespacesHostNetworkSupport",
        user_namespace_on_host_network,
    ),
    ("VolumeBindMountOptions", bind_mount_options),
];

fn restarts_all_containers(spec: &PodSpec) -> bool {
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    containers
        .flat_map(|container| container.restart_policy_rules.iter().flatten())
        .any(|rule| rule.action == "RestartAllContainers")
}

fn user_namespace_on_host_network(spec: &PodSpec) -> bool {
    spec.host_network == Some(true) && spec.host_users == Some(false)
}

fn bind_mount_options(spec: &PodSpec) -> bool {
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .flat_map(|container| container.volume_mounts.iter().flatten());
    let ephemeral = spec
        .ephemeral_containers
        .iter()
        .flatten()
        .flat_map(|container| container.volume_mounts.iter().flatten());
    containers
        .chain(ephemeral)
        .any(|mount| mount.bind_mount_options.iter().flatten().next().is_some())
}

fn required(spec: &PodSpec) -> Vec<&'static str> {
    FEATURES
        .iter()
        .filter(|(_, needs)| needs(spec))
        .map(|(name, _)| *name)
        .collect()
}

fn declared(node: &Node) -> &[String] {
    node.status
        .as_ref()
        .and_then(|status| status.declared_features.as_deref())
        .unwrap_or_default()
}

struct NodeDeclaredFeatures;

/// Makes the plugin.
///
/// # Errors
/// Never.
pub fn new(
    _args: Option<&serde_json::Value>,
    _handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    Ok(Arc::new(NodeDeclaredFeatures))
}

impl Plugin for NodeDeclaredFeatures {
    fn name(&self) -> &'static str {
        names::NODE_DECLARED_FEATURES
    }
    fn sign(&self, _pod: &PodInfo, _snapshot: &Snapshot) -> Option<Sign> {
        Some(Sign::node(Fragments::NODE_FEATURES))
    }
    fn as_pre_filter(&self) -> Option<&dyn PreFilterPlugin> {
        Some(self)
    }
    fn as_filter(&self) -> Option<&dyn FilterPlugin> {
        Some(self)
    }
    fn as_enqueue_extensions(&self) -> Option<&dyn EnqueueExtensions> {
        Some(self)
    }
}

impl PreFilterPlugin for NodeDeclaredFeatures {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        _snapshot: &Snapshot,
    ) -> (PreFilterResult, Status) {
        let required = required(pod.spec());
        if required.is_empty() {
            return (PreFilterResult::default(), Status::skip());
        }
        state.write(STATE, required);
        (PreFilterResult::default(), Status::success())
    }
}

impl FilterPlugin for NodeDeclaredFeatures {
    fn filter(&self, state: &CycleState, pod: &Arc<PodInfo>, node: &NodeInfo) -> Status {
        let has = |name: &&str| declared(node.node()).iter().any(|have| have == name);
        let fits = match state.read::<Vec<&'static str>>(STATE) {
            Some(required) => required.iter().all(has),
            None => required(pod.spec()).iter().all(has),
        };
        if fits {
            Status::success()
        } else {
            Status::unresolvable(ERR_REASON)
        }
    }
}

impl EnqueueExtensions for NodeDeclaredFeatures {
    fn events_to_register(&self) -> Vec<ClusterEventWithHint> {
        vec![
            ClusterEventWithHint::with_hint(
                EventResource::Node,
                ActionType::ADD | ActionType::UPDATE_NODE_DECLARED_FEATURE,
                after_node_change,
            ),
            ClusterEventWithHint::with_hint(
                EventResource::Pod,
                ActionType::UPDATE,
                after_pod_update,
            ),
        ]
    }
}

fn after_node_change(
    _pod: &Arc<Pod>,
    old: Option<&EventObject>,
    new: Option<&EventObject>,
) -> QueueingHint {
    match (
        old.and_then(EventObject::node),
        new.and_then(EventObject::node),
    ) {
        (Some(old), Some(new)) if declared(old) == declared(new) => QueueingHint::QueueSkip,
        _ => QueueingHint::Queue,
    }
}

fn after_pod_update(
    pod: &Arc<Pod>,
    old: Option<&EventObject>,
    new: Option<&EventObject>,
) -> QueueingHint {
    match (
        old.and_then(EventObject::pod),
        new.and_then(EventObject::pod),
    ) {
        (_, Some(new)) if new.metadata.uid != pod.metadata.uid => QueueingHint::QueueSkip,
        (Some(old), Some(new)) if required(spec(old)) == required(spec(new)) => {
            QueueingHint::QueueSkip
        }
        _ => QueueingHint::Queue,
    }
}

#[cfg(test)]
mod tests {
    use framework::testing::{assert_forms_agree, make_node, make_pod, snapshot};

    use super::*;

    #[test]
    fn needs_and_declarations() {
        let plain = make_pod("p").info();
        let needs = make_pod("p").with(|pod| {
            let spec = pod.spec.as_mut().unwrap();
            (spec.host_network, spec.host_users) = (Some(true), Some(false));
        });
        let needs = needs.info();
        let old = make_node("old");
        let new = make_node("new").with(|node| {
            node.status.as_mut().unwrap().declared_features =
                Some(vec!["UserNamespacesHostNetworkSupport".into()])
        });
        let snapshot = snapshot([old.build(), new.build()], []);
        let mut state = CycleState::new();
        assert!(
            NodeDeclaredFeatures
                .pre_filter(&mut state, &plain, &snapshot)
                .1
                .is_skip()
        );
        assert!(
            NodeDeclaredFeatures
                .pre_filter(&mut state, &needs, &snapshot)
                .1
                .is_success()
        );
        assert_eq!(
            NodeDeclaredFeatures.filter(&state, &needs, snapshot.get("old").unwrap()),
            Status::unresolvable(ERR_REASON)
        );
        assert!(
            NodeDeclaredFeatures
                .filter(&state, &needs, snapshot.get("new").unwrap())
                .is_success()
        );
        assert_forms_agree(&NodeDeclaredFeatures, &needs, &snapshot);
    }
}
