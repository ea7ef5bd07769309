//! Which changes may help a pod that DynamicResources rejected.

use std::sync::Arc;

use component_helpers::resource_claim::{entries, is_allocated};
use component_helpers::resources::is_extended_resource_name;
use framework::{
    ActionType, ClusterEventWithHint, EnqueueExtensions, EventObject, EventResource, Handle,
    QueueingHint,
};
use k8s_openapi::api::core::v1::Pod;

use super::DynamicResources;
use super::claims::{of_pod, uid};

type Change<'a> = Option<&'a EventObject>;

impl EnqueueExtensions for DynamicResources {
    fn events_to_register(&self) -> Vec<ClusterEventWithHint> {
        let both = ActionType::ADD | ActionType::UPDATE;
        let node =
            ActionType::ADD | ActionType::UPDATE_NODE_LABEL | ActionType::UPDATE_NODE_ALLOCATABLE;
        let (claims, pods) = (Arc::clone(&self.handle), Arc::clone(&self.handle));
        vec![
            ClusterEventWithHint::always(EventResource::Node, node),
            ClusterEventWithHint::with_hint(
                EventResource::ResourceClaim,
                both | ActionType::DELETE,
                move |pod, old, new| after_claim_change(&*claims, pod, old, new),
            ),
            ClusterEventWithHint::with_hint(
                EventResource::Pod,
                ActionType::UPDATE_POD_GENERATED_RESOURCE_CLAIM,
                move |pod, _, new| after_pod_change(&*pods, pod, new),
            ),
            ClusterEventWithHint::with_hint(EventResource::Pod, ActionType::DELETE, |_, old, _| {
                after_retreat(old)
            }),
            ClusterEventWithHint::always(EventResource::DeviceClass, both),
            ClusterEventWithHint::always(EventResource::ResourceSlice, both),
        ]
    }
}

/// A claim of the pod's came or changed, or devices are free again.
pub(super) fn after_claim_change(
    handle: &dyn Handle,
    pod: &Arc<Pod>,
    old: Change<'_>,
    new: Change<'_>,
) -> QueueingHint {
    let queue_if = |helps: bool| match helps {
        true => QueueingHint::Queue,
        false => QueueingHint::QueueSkip,
    };
    let old = old.and_then(EventObject::resource_claim);
    let was_allocated = old.is_some_and(|old| is_allocated(old));
    let Some(new) = new.and_then(EventObject::resource_claim) else {
        return queue_if(was_allocated);
    };
    // A pod whose claims are not all there has more to wait for.
    let Ok(claims) = of_pod(&handle.listers().devices().read(), pod) else {
        return QueueingHint::QueueSkip;
    };
    if was_allocated && !is_allocated(new) {
        return QueueingHint::Queue;
    }
    let uses = claims.iter().any(|claim| uid(claim) == uid(new));
    queue_if(uses && old.is_none_or(|old| old.status != new.status))
}

/// A pod that had chosen devices goes without its node after all: they are free, and no claim was ever written that could tell so.
// DIFFERS: upstream's pods that wanted them wait for another event, or 5 min.
pub(super) fn after_retreat(old: Change<'_>) -> QueueingHint {
    let Some(old) = old.and_then(EventObject::pod) else {
        return QueueingHint::Queue;
    };
    // One that was bound has its devices until its claim says otherwise. What is assumed has no node in its spec.
    let bound = component_helpers::pod::node_name(old).is_some();
    let resources = old
        .spec
        .iter()
        .flat_map(component_helpers::pod::init_and_containers);
    let mut requests = resources.filter_map(|c| c.resources.as_ref()?.requests.as_ref());
    let extended = requests.any(|list| list.keys().any(|name| is_extended_resource_name(name)));
    match !bound && (extended || !entries(old).is_empty()) {
        true => QueueingHint::Queue,
        false => QueueingHint::QueueSkip,
    }
}

/// The pod itself was told of the claims that were made for it.
pub(super) fn after_pod_change(
    handle: &dyn Handle,
    pod: &Arc<Pod>,
    new: Change<'_>,
) -> QueueingHint {
    let Some(new) = new.and_then(EventObject::pod) else {
        return QueueingHint::Queue;
    };
    if new.metadata.uid != pod.metadata.uid {
        return QueueingHint::QueueSkip;
    }
    match of_pod(&handle.listers().devices().read(), new) {
        Ok(_) => QueueingHint::Queue,
        Err(_) => QueueingHint::QueueSkip,
    }
}
