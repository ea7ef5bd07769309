//! SchedulingGates: a pod with gates stays out of the queue until the last one is taken away.
//!
//! Upstream: plugins/schedulinggates, v1.36.

use std::sync::Arc;

use framework::{
    ActionType, ClusterEventWithHint, EnqueueExtensions, EventObject, EventResource, Handle,
    Plugin, PluginError, PreEnqueuePlugin, QueueingHint, Status,
};
use k8s_openapi::api::core::v1::Pod;

use crate::names;

struct SchedulingGates;

/// Makes the plugin.
///
/// # Errors
/// Never.
pub fn new(
    _args: Option<&serde_json::Value>,
    _handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    Ok(Arc::new(SchedulingGates))
}

impl Plugin for SchedulingGates {
    fn name(&self) -> &'static str {
        names::SCHEDULING_GATES
    }
    fn as_pre_enqueue(&self) -> Option<&dyn PreEnqueuePlugin> {
        Some(self)
    }
    fn as_enqueue_extensions(&self) -> Option<&dyn EnqueueExtensions> {
        Some(self)
    }
}

impl PreEnqueuePlugin for SchedulingGates {
    fn pre_enqueue(&self, pod: &Arc<Pod>) -> Status {
        let gates = pod
            .spec
            .iter()
            .flat_map(|spec| spec.scheduling_gates.iter().flatten());
        let gates: Vec<&str> = gates.map(|gate| gate.name.as_str()).collect();
        if gates.is_empty() {
            return Status::success();
        }
        Status::unresolvable(format!(
            "waiting for scheduling gates: [{}]",
            gates.join(" ")
        ))
    }
}

impl EnqueueExtensions for SchedulingGates {
    fn events_to_register(&self) -> Vec<ClusterEventWithHint> {
        let own = |pod: &Arc<Pod>, _: Option<&EventObject>, new: Option<&EventObject>| match new
            .and_then(EventObject::pod)
        {
            Some(new) if new.metadata.uid == pod.metadata.uid => QueueingHint::Queue,
            _ => QueueingHint::QueueSkip,
        };
        vec![ClusterEventWithHint::with_hint(
            EventResource::Pod,
            ActionType::UPDATE_POD_SCHEDULING_GATES_ELIMINATED,
            own,
        )]
    }
}

#[cfg(test)]
mod tests {
    use framework::testing::make_pod;
    use k8s_openapi::api::core::v1::PodSchedulingGate;

    use super::*;

    #[test]
    fn gates_hold_a_pod_back() {
        let free = make_pod("p").build();
        assert!(SchedulingGates.pre_enqueue(&free).is_success());
        let gated = make_pod("p").with(|pod| {
            let gates = ["a", "b"].map(|name| PodSchedulingGate { name: name.into() });
            pod.spec.get_or_insert_default().scheduling_gates = Some(gates.into());
        });
        let status = SchedulingGates.pre_enqueue(&gated.build());
        assert_eq!(status.message(), "waiting for scheduling gates: [a b]");
    }
}
