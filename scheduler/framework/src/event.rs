//! Cluster events: what changed, and whether that may help a pod that was rejected before.
//!
//! Upstream: kube-scheduler framework/types.go and pkg/scheduler/framework/events.go, v1.36.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};
use std::sync::Arc;

use component_helpers::resource_claim::{extended_status, statuses};
use component_helpers::resources::{PodResourcesOptions, pod_requests};
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::resource::v1::{DeviceClass, DeviceTaintRule, ResourceClaim, ResourceSlice};
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use k8s_openapi::api::storage::v1::{
    CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment,
};

use crate::objects::{Object, ObjectKind};

/// A set of kinds of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ActionType(u32);

macro_rules! action_types {
    ($($(#[$doc:meta])* $name:ident = $bit:expr, $text:literal;)*) => {
        impl ActionType {
            $($(#[$doc])* pub const $name: ActionType = ActionType(1 << $bit);)*
            const NAMES: &'static [(ActionType, &'static str)] = &[$((ActionType::$name, $text)),*];
        }
    };
}

action_types! {
    /// Something was added.
    ADD = 0, "Add";
    /// Something was deleted.
    DELETE = 1, "Delete";
    /// A node's allocatable resources.
    UPDATE_NODE_ALLOCATABLE = 2, "UpdateNodeAllocatable";
    /// A node's labels.
    UPDATE_NODE_LABEL = 3, "UpdateNodeLabel";
    /// A node's taints, or `spec.unschedulable`.
    UPDATE_NODE_TAINT = 4, "UpdateNodeTaint";
    /// A node's conditions.
    UPDATE_NODE_CONDITION = 5, "UpdateNodeCondition";
    /// A node's annotations.
    UPDATE_NODE_ANNOTATION = 6, "UpdateNodeAnnotation";
    /// A node's declared features.
    UPDATE_NODE_DECLARED_FEATURE = 7, "UpdateNodeDeclaredFeature";
    /// A pod's labels.
    UPDATE_POD_LABEL = 8, "UpdatePodLabel";
    /// A pod requests less of some resource.
    UPDATE_POD_SCALE_DOWN = 9, "UpdatePodScaleDown";
    /// A pod got a toleration.
    UPDATE_POD_TOLERATION = 10, "UpdatePodToleration";
    /// The last scheduling gate of a pod is gone.
    UPDATE_POD_SCHEDULING_GATES_ELIMINATED = 11, "UpdatePodSchedulingGatesEliminated";
    /// The resource claims generated for a pod.
    UPDATE_POD_GENERATED_RESOURCE_CLAIM = 12, "UpdatePodGeneratedResourceClaim";
}

impl ActionType {
    /// Nothing.
    pub const NONE: ActionType = ActionType(0);
    /// Everything.
    pub const ALL: ActionType = ActionType((1 << 13) - 1);
    /// Any update.
    pub const UPDATE: ActionType = ActionType(Self::ALL.0 & !Self::ADD.0 & !Self::DELETE.0);

    /// The names of the kinds in it.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let known = Self::NAMES.iter();
        known
            .filter(move |(action, _)| self.intersects(*action))
            .map(|(_, name)| *name)
    }

    /// Is any kind in both?
    pub const fn intersects(self, other: ActionType) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for ActionType {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        ActionType(self.0 | other.0)
    }
}

impl BitOrAssign for ActionType {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl fmt::Display for ActionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            ActionType::ALL => "All",
            ActionType::UPDATE => "Update",
            one => Self::NAMES
                .iter()
                .find(|(action, _)| *action == one)
                .map_or("", |(_, name)| name),
        };
        f.write_str(name)
    }
}

/// The kind of object an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum EventResource {
    /// Any pod (matches the next two).
    Pod,
    /// A pod with a node. Only in incoming events.
    AssignedPod,
    /// A pod without one. Only in incoming events.
    UnscheduledPod,
    /// A node.
    Node,
    /// A PersistentVolume.
    PersistentVolume,
    /// A PersistentVolumeClaim.
    PersistentVolumeClaim,
    /// A CSINode.
    CSINode,
    /// A CSIDriver.
    CSIDriver,
    /// A CSIStorageCapacity.
    CSIStorageCapacity,
    /// A StorageClass.
    StorageClass,
    /// A VolumeAttachment.
    VolumeAttachment,
    /// A ResourceClaim.
    ResourceClaim,
    /// A ResourceSlice.
    ResourceSlice,
    /// A DeviceClass.
    DeviceClass,
    /// A group of pods.
    PodGroup,
    /// A kind that only plugins know.
    Custom(ObjectKind),
    /// Everything.
    WildCard,
}

impl EventResource {
    /// Upstream's text.
    pub const fn as_str(self) -> &'static str {
        match self {
            EventResource::Pod => "Pod",
            EventResource::AssignedPod => "AssignedPod",
            EventResource::UnscheduledPod => "UnschedulablePod",
            EventResource::Node => "Node",
            EventResource::PersistentVolume => "PersistentVolume",
            EventResource::PersistentVolumeClaim => "PersistentVolumeClaim",
            EventResource::CSINode => "storage.k8s.io/CSINode",
            EventResource::CSIDriver => "storage.k8s.io/CSIDriver",
            EventResource::CSIStorageCapacity => "storage.k8s.io/CSIStorageCapacity",
            EventResource::StorageClass => "storage.k8s.io/StorageClass",
            EventResource::VolumeAttachment => "storage.k8s.io/VolumeAttachment",
            EventResource::ResourceClaim => "resource.k8s.io/ResourceClaim",
            EventResource::ResourceSlice => "resource.k8s.io/ResourceSlice",
            EventResource::DeviceClass => "resource.k8s.io/DeviceClass",
            EventResource::PodGroup => "scheduling.k8s.io/PodGroup",
            EventResource::Custom(kind) => kind.event,
            EventResource::WildCard => "*",
        }
    }
}

/// What happened to what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClusterEvent {
    /// The kind of object.
    pub resource: EventResource,
    /// The kind of change.
    pub action: ActionType,
    /// Replaces the label in logs and metrics; empty for none.
    pub custom_label: &'static str,
}

impl ClusterEvent {
    /// A retry because the pod has waited as long as `podMaxInUnschedulablePodsDuration`.
    pub const UNSCHEDULABLE_TIMEOUT: ClusterEvent = Self::wild_card("UnschedulableTimeout");
    /// A retry because a plugin asked for it.
    pub const FORCE_ACTIVATE: ClusterEvent = Self::wild_card("ForceActivate");
    /// A retry because the scheduler's configuration was loaded again.
    pub const CONFIGURATION_RELOADED: ClusterEvent = Self::wild_card("ConfigurationReloaded");
    /// A pod with a node was added.
    pub const ASSIGNED_POD_ADD: ClusterEvent =
        Self::new(EventResource::AssignedPod, ActionType::ADD);
    /// A pod with a node went away, or gave the node back.
    pub const ASSIGNED_POD_DELETE: ClusterEvent =
        Self::new(EventResource::AssignedPod, ActionType::DELETE);
    /// A pod without a node was added.
    pub const UNSCHEDULED_POD_ADD: ClusterEvent =
        Self::new(EventResource::UnscheduledPod, ActionType::ADD);
    /// A pod without a node changed.
    pub const UNSCHEDULED_POD_UPDATE: ClusterEvent =
        Self::new(EventResource::UnscheduledPod, ActionType::UPDATE);
    /// A pod without a node went away.
    pub const UNSCHEDULED_POD_DELETE: ClusterEvent =
        Self::new(EventResource::UnscheduledPod, ActionType::DELETE);

    /// An event.
    pub const fn new(resource: EventResource, action: ActionType) -> Self {
        ClusterEvent {
            resource,
            action,
            custom_label: "",
        }
    }

    const fn wild_card(custom_label: &'static str) -> Self {
        ClusterEvent {
            resource: EventResource::WildCard,
            action: ActionType::ALL,
            custom_label,
        }
    }

    /// For logs and metrics.
    pub fn label(&self) -> String {
        if self.custom_label.is_empty() {
            format!("{}{}", self.resource.as_str(), self.action)
        } else {
            self.custom_label.to_owned()
        }
    }

    /// Does it stand for everything?
    pub fn is_wild_card(&self) -> bool {
        self.resource == EventResource::WildCard && self.action == ActionType::ALL
    }

    /// Does this (registered) event cover `incoming`, that is: is `incoming` the same or more specific?
    pub fn matches(&self, incoming: &ClusterEvent) -> bool {
        use EventResource::{AssignedPod, Pod, UnscheduledPod, WildCard};
        let resource = self.resource == WildCard
            || self.resource == incoming.resource
            || (self.resource == Pod && matches!(incoming.resource, AssignedPod | UnscheduledPod));
        self.is_wild_card()
            || (resource
                && self.action.intersects(incoming.action)
                && incoming.action <= self.action)
    }
}

/// The object of an event, before and after.
#[derive(Debug, Clone)]
pub enum EventObject {
    /// A pod.
    Pod(Arc<Pod>),
    /// A node.
    Node(Arc<Node>),
    /// A namespace.
    Namespace(Arc<Namespace>),
    /// A volume.
    PersistentVolume(Arc<PersistentVolume>),
    /// A claim.
    PersistentVolumeClaim(Arc<PersistentVolumeClaim>),
    /// A class.
    StorageClass(Arc<StorageClass>),
    /// What drivers say of a node.
    CSINode(Arc<CSINode>),
    /// A driver's settings.
    CSIDriver(Arc<CSIDriver>),
    /// Where, and how much, a driver can provision.
    CSIStorageCapacity(Arc<CSIStorageCapacity>),
    /// A volume on its way to a node.
    VolumeAttachment(Arc<VolumeAttachment>),
    /// A claim to devices.
    ResourceClaim(Arc<ResourceClaim>),
    /// Devices.
    ResourceSlice(Arc<ResourceSlice>),
    /// A kind of devices.
    DeviceClass(Arc<DeviceClass>),
    /// A taint on devices.
    DeviceTaintRule(Arc<DeviceTaintRule>),
    /// A group of pods.
    PodGroup(Arc<PodGroup>),
    /// An object of a kind that only plugins know.
    Custom(Arc<Object>),
}

macro_rules! object_accessors {
    ($($method:ident, $variant:ident, $type:ty, $doc:literal;)*) => {
        impl EventObject {
            $(
                #[doc = $doc]
                pub fn $method(&self) -> Option<&Arc<$type>> {
                    if let EventObject::$variant(object) = self {
                        Some(object)
                    } else {
                        None
                    }
                }
            )*
        }
    };
}

object_accessors! {
    volume, PersistentVolume, PersistentVolume, "The volume, when it is one.";
    claim, PersistentVolumeClaim, PersistentVolumeClaim, "The claim, when it is one.";
    storage_class, StorageClass, StorageClass, "The class, when it is one.";
    csi_node, CSINode, CSINode, "The CSINode, when it is one.";
    csi_driver, CSIDriver, CSIDriver, "The CSIDriver, when it is one.";
    csi_storage_capacity, CSIStorageCapacity, CSIStorageCapacity, "The CSIStorageCapacity, when it is one.";
    volume_attachment, VolumeAttachment, VolumeAttachment, "The VolumeAttachment, when it is one.";
    resource_claim, ResourceClaim, ResourceClaim, "The ResourceClaim, when it is one.";
    resource_slice, ResourceSlice, ResourceSlice, "The ResourceSlice, when it is one.";
    device_class, DeviceClass, DeviceClass, "The DeviceClass, when it is one.";
    device_taint_rule, DeviceTaintRule, DeviceTaintRule, "The DeviceTaintRule, when it is one.";
    pod_group, PodGroup, PodGroup, "The group of pods, when it is one.";
    custom, Custom, Object, "The object, when it is of a kind that only plugins know.";
}

impl EventObject {
    /// The pod, when it is one.
    pub fn pod(&self) -> Option<&Arc<Pod>> {
        if let EventObject::Pod(pod) = self {
            Some(pod)
        } else {
            None
        }
    }

    /// The node, when it is one.
    pub fn node(&self) -> Option<&Arc<Node>> {
        if let EventObject::Node(node) = self {
            Some(node)
        } else {
            None
        }
    }
}

/// May the event make the pod schedulable?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueingHint {
    /// No.
    QueueSkip,
    /// Perhaps: try again.
    Queue,
}

/// Looks at a rejected pod and the object before and after (`None`: it was added, deleted). Must be fast; runs under the queue's lock.
pub type QueueingHintFn = Arc<
    dyn Fn(&Arc<Pod>, Option<&EventObject>, Option<&EventObject>) -> QueueingHint + Send + Sync,
>;

/// An event a plugin wants to hear about, for pods it rejected.
#[derive(Clone)]
pub struct ClusterEventWithHint {
    /// Which event.
    pub event: ClusterEvent,
    /// `None` means always `Queue`.
    pub queueing_hint: Option<QueueingHintFn>,
}

impl ClusterEventWithHint {
    /// An event that always queues.
    pub fn always(resource: EventResource, action: ActionType) -> Self {
        ClusterEventWithHint {
            event: ClusterEvent::new(resource, action),
            queueing_hint: None,
        }
    }

    /// An event with a hint.
    pub fn with_hint(
        resource: EventResource,
        action: ActionType,
        hint: impl Fn(&Arc<Pod>, Option<&EventObject>, Option<&EventObject>) -> QueueingHint
        + Send
        + Sync
        + 'static,
    ) -> Self {
        ClusterEventWithHint {
            event: ClusterEvent::new(resource, action),
            queueing_hint: Some(Arc::new(hint)),
        }
    }
}

/// The specific events in the update of a pod; a plain `Update` when none is recognised.
pub fn pod_scheduling_properties_change(new: &Pod, old: &Pod) -> Vec<ClusterEvent> {
    let spec = |pod: &'_ Pod| pod.spec.clone().unwrap_or_default();
    let (new_spec, old_spec) = (spec(new), spec(old));
    let resource = if new_spec.node_name.as_deref().is_none_or(str::is_empty) {
        EventResource::UnscheduledPod
    } else {
        EventResource::AssignedPod
    };
    let mut actions = Vec::new();
    if new.metadata.labels != old.metadata.labels {
        actions.push(ActionType::UPDATE_POD_LABEL);
    }
    if scaled_down(new, old) {
        actions.push(ActionType::UPDATE_POD_SCALE_DOWN);
    }
    let gates = |spec: &k8s_openapi::api::core::v1::PodSpec| {
        spec.scheduling_gates.as_ref().map_or(0, Vec::len)
    };
    if gates(&new_spec) == 0 && gates(&old_spec) != 0 {
        actions.push(ActionType::UPDATE_POD_SCHEDULING_GATES_ELIMINATED);
    }
    let tolerations =
        |spec: &k8s_openapi::api::core::v1::PodSpec| spec.tolerations.as_ref().map_or(0, Vec::len);
    if tolerations(&new_spec) != tolerations(&old_spec) {
        actions.push(ActionType::UPDATE_POD_TOLERATION);
    }
    if statuses(new) != statuses(old) || extended_status(new) != extended_status(old) {
        actions.push(ActionType::UPDATE_POD_GENERATED_RESOURCE_CLAIM);
    }
    if actions.is_empty() {
        actions.push(ActionType::UPDATE);
    }
    actions
        .into_iter()
        .map(|action| ClusterEvent::new(resource, action))
        .collect()
}

fn scaled_down(new: &Pod, old: &Pod) -> bool {
    let options = PodResourcesOptions {
        use_status_resources: true,
        ..PodResourcesOptions::default()
    };
    let (new, old) = (pod_requests(new, &options), pod_requests(old, &options));
    old.iter().any(|(name, old)| {
        new.get(name)
            .is_none_or(|new| old.milli_value() > new.milli_value())
    })
}

/// The specific events in the update of a node; none when nothing that matters to scheduling changed.
pub fn node_scheduling_properties_change(new: &Node, old: &Node) -> Vec<ClusterEvent> {
    let unschedulable = |node: &Node| {
        node.spec
            .as_ref()
            .and_then(|s| s.unschedulable)
            .unwrap_or(false)
    };
    let mut actions = Vec::new();
    if unschedulable(old) && !unschedulable(new) {
        actions.push(ActionType::UPDATE_NODE_TAINT);
    }
    let (new_status, old_status) = (new.status.as_ref(), old.status.as_ref());
    if new_status.and_then(|s| s.allocatable.as_ref())
        != old_status.and_then(|s| s.allocatable.as_ref())
    {
        actions.push(ActionType::UPDATE_NODE_ALLOCATABLE);
    }
    if new.metadata.labels != old.metadata.labels {
        actions.push(ActionType::UPDATE_NODE_LABEL);
    }
    if new.spec.as_ref().and_then(|s| s.taints.as_ref())
        != old.spec.as_ref().and_then(|s| s.taints.as_ref())
    {
        actions.push(ActionType::UPDATE_NODE_TAINT);
    }
    let conditions = |node: &Node| -> std::collections::BTreeMap<String, String> {
        let conditions = node
            .status
            .iter()
            .flat_map(|s| s.conditions.iter().flatten());
        conditions
            .map(|c| (c.type_.clone(), c.status.clone()))
            .collect()
    };
    if conditions(new) != conditions(old) {
        actions.push(ActionType::UPDATE_NODE_CONDITION);
    }
    if new.metadata.annotations != old.metadata.annotations {
        actions.push(ActionType::UPDATE_NODE_ANNOTATION);
    }
    if new_status.and_then(|s| s.declared_features.as_ref())
        != old_status.and_then(|s| s.declared_features.as_ref())
    {
        actions.push(ActionType::UPDATE_NODE_DECLARED_FEATURE);
    }
    actions
        .into_iter()
        .map(|action| ClusterEvent::new(EventResource::Node, action))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use EventResource::*;

    #[test]
    fn registered_events_cover_the_same_and_the_more_specific() {
        let check = |registered, incoming, expect| {
            assert_eq!(
                ClusterEvent::matches(&registered, &incoming),
                expect,
                "{registered:?} {incoming:?}"
            );
        };
        let event = ClusterEvent::new;
        check(
            event(Pod, ActionType::DELETE),
            ClusterEvent::ASSIGNED_POD_DELETE,
            true,
        );
        check(
            event(Pod, ActionType::ADD),
            ClusterEvent::ASSIGNED_POD_DELETE,
            false,
        );
        check(
            event(Node, ActionType::UPDATE),
            event(Node, ActionType::UPDATE_NODE_LABEL),
            true,
        );
        check(
            event(Node, ActionType::UPDATE_NODE_LABEL),
            event(Node, ActionType::UPDATE),
            false,
        );
        check(
            event(WildCard, ActionType::ALL),
            event(Node, ActionType::ADD),
            true,
        );
        check(
            event(Node, ActionType::ALL),
            ClusterEvent::FORCE_ACTIVATE,
            false,
        );
        assert_eq!(
            event(Node, ActionType::UPDATE_NODE_TAINT).label(),
            "NodeUpdateNodeTaint"
        );
        assert_eq!(
            event(AssignedPod, ActionType::UPDATE).label(),
            "AssignedPodUpdate"
        );
    }
}
