//! Which changes may help a pod that VolumeBinding rejected.

use std::sync::Arc;

use component_helpers::csi_migration::MIGRATED_PLUGINS_ANNOTATION;
use component_helpers::persistent_volume::annotation;
use framework::pod_info::spec;
use framework::volumes::volume_limit;
use framework::{
    ActionType, ClusterEventWithHint, EnqueueExtensions, EventObject, EventResource, QueueingHint,
};
use k8s_openapi::api::core::v1::{Pod, Volume};
use k8s_openapi::api::storage::v1::CSIDriver;

use super::VolumeBinding;
use crate::volume_claims::{after_claim_change, name};

impl EnqueueExtensions for VolumeBinding {
    fn events_to_register(&self) -> Vec<ClusterEventWithHint> {
        let both = ActionType::ADD | ActionType::UPDATE;
        let node = ActionType::ADD | ActionType::UPDATE_NODE_LABEL;
        let claim = |pod: &Arc<Pod>, _: Option<&EventObject>, new: Option<&EventObject>| {
            after_claim_change(pod, new, true)
        };
        vec![
            ClusterEventWithHint::with_hint(EventResource::StorageClass, both, after_class_change),
            ClusterEventWithHint::with_hint(EventResource::PersistentVolumeClaim, both, claim),
            ClusterEventWithHint::always(EventResource::PersistentVolume, both),
            ClusterEventWithHint::with_hint(EventResource::Pod, ActionType::DELETE, |_, old, _| {
                after_retreat(old)
            }),
            ClusterEventWithHint::always(EventResource::Node, node),
            ClusterEventWithHint::with_hint(EventResource::CSINode, both, after_csi_node_change),
            ClusterEventWithHint::with_hint(
                EventResource::CSIDriver,
                ActionType::UPDATE,
                after_csi_driver_change,
            ),
            ClusterEventWithHint::with_hint(
                EventResource::CSIStorageCapacity,
                both,
                after_capacity_change,
            ),
        ]
    }
}

fn queue_if(helps: bool) -> QueueingHint {
    if helps {
        QueueingHint::Queue
    } else {
        QueueingHint::QueueSkip
    }
}

type Change<'a> = Option<&'a EventObject>;

/// A pod that had chosen volumes goes without its node after all: they are free, and none of them was ever written.
// DIFFERS: upstream's pods that wanted them wait for another event, or 5 min.
pub(super) fn after_retreat(old: Change<'_>) -> QueueingHint {
    let Some(old) = old.and_then(EventObject::pod) else {
        return QueueingHint::Queue;
    };
    // One that was bound had its volumes bound before.
    let bound = component_helpers::pod::node_name(old).is_some();
    let mut volumes = spec(old).volumes.iter().flatten();
    let claims = volumes.any(|v| v.persistent_volume_claim.is_some() || v.ephemeral.is_some());
    queue_if(!bound && claims)
}

pub(super) fn after_class_change(
    _pod: &Arc<Pod>,
    old: Change<'_>,
    new: Change<'_>,
) -> QueueingHint {
    let topologies = |class: Change<'_>| {
        let class = class.and_then(EventObject::storage_class);
        class.map(|class| class.allowed_topologies.clone())
    };
    queue_if(old.is_none() || topologies(old) != topologies(new))
}

pub(super) fn after_csi_node_change(
    _pod: &Arc<Pod>,
    old: Change<'_>,
    new: Change<'_>,
) -> QueueingHint {
    let migrated = |node: Change<'_>| {
        let node = node.and_then(EventObject::csi_node)?;
        annotation(&node.metadata, MIGRATED_PLUGINS_ANNOTATION).map(ToOwned::to_owned)
    };
    queue_if(old.is_none() || migrated(old) != migrated(new))
}

pub(super) fn after_csi_driver_change(
    pod: &Arc<Pod>,
    old: Change<'_>,
    new: Change<'_>,
) -> QueueingHint {
    let (Some(old), Some(new)) = (
        old.and_then(EventObject::csi_driver),
        new.and_then(EventObject::csi_driver),
    ) else {
        return QueueingHint::Queue;
    };
    let tells = |driver: &CSIDriver| driver.spec.storage_capacity == Some(true);
    let of_driver = |v: &Volume| {
        let csi = v.csi.as_ref();
        csi.is_some_and(|csi| csi.driver == name(&new.metadata))
    };
    let uses = spec(pod).volumes.iter().flatten().any(of_driver);
    queue_if(uses && tells(old) && !tells(new))
}

pub(super) fn after_capacity_change(
    _pod: &Arc<Pod>,
    old: Change<'_>,
    new: Change<'_>,
) -> QueueingHint {
    let limit = |capacity: Change<'_>| {
        let capacity = capacity.and_then(EventObject::csi_storage_capacity)?;
        volume_limit(capacity)
    };
    // Nothing is less than any limit.
    queue_if(old.is_none() || limit(new) > limit(old))
}
