//! The plugins' names, as configuration, metrics and statuses carry them.

/// Binds by the API.
pub const DEFAULT_BINDER: &str = "DefaultBinder";
/// Makes room by ending pods of lower priority.
pub const DEFAULT_PREEMPTION: &str = "DefaultPreemption";
/// Claims to devices, allocated and reserved.
pub const DYNAMIC_RESOURCES: &str = "DynamicResources";
/// Pods of a gang get nodes together. With the feature gate `GenericWorkload` alone.
pub const GANG_SCHEDULING: &str = "GangScheduling";
/// Of the placements of a group, those that hold more of its pods. With the feature gate `TopologyAwareWorkloadScheduling` alone.
pub const POD_GROUP_PODS_COUNT: &str = "PodGroupPodsCount";
/// A group's placements: the domains of its topology. With the feature gate `TopologyAwareWorkloadScheduling` alone.
pub const TOPOLOGY_PLACEMENT_GENERATOR: &str = "TopologyPlacementGenerator";
/// Prefers nodes that have the images.
pub const IMAGE_LOCALITY: &str = "ImageLocality";
/// Near to, or far from, other pods.
pub const INTER_POD_AFFINITY: &str = "InterPodAffinity";
/// Node selectors and node affinity.
pub const NODE_AFFINITY: &str = "NodeAffinity";
/// Features a pod needs of its kubelet.
pub const NODE_DECLARED_FEATURES: &str = "NodeDeclaredFeatures";
/// A pod that names its node.
pub const NODE_NAME: &str = "NodeName";
/// Host ports.
pub const NODE_PORTS: &str = "NodePorts";
/// CPU and memory used in proportion.
pub const NODE_RESOURCES_BALANCED_ALLOCATION: &str = "NodeResourcesBalancedAllocation";
/// Enough of every resource.
pub const NODE_RESOURCES_FIT: &str = "NodeResourcesFit";
/// Cordoned nodes.
pub const NODE_UNSCHEDULABLE: &str = "NodeUnschedulable";
/// Pods spread over zones and nodes.
pub const POD_TOPOLOGY_SPREAD: &str = "PodTopologySpread";
/// The order of the queue.
pub const PRIORITY_SORT: &str = "PrioritySort";
/// Pods held back by gates.
pub const SCHEDULING_GATES: &str = "SchedulingGates";
/// Taints and tolerations.
pub const TAINT_TOLERATION: &str = "TaintToleration";
/// No more volumes of a driver on a node than it can attach.
pub const NODE_VOLUME_LIMITS: &str = "NodeVolumeLimits";
/// Where volumes are or can be made, and binding them.
pub const VOLUME_BINDING: &str = "VolumeBinding";
/// Disks a node has once, claims a pod has alone.
pub const VOLUME_RESTRICTIONS: &str = "VolumeRestrictions";
/// Zones of volumes.
pub const VOLUME_ZONE: &str = "VolumeZone";
