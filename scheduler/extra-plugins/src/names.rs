//! The plugins' names, as configuration, metrics and statuses carry them.

/// Elastic quotas of namespaces.
pub const CAPACITY_SCHEDULING: &str = "CapacityScheduling";
/// Groups of pods that are scheduled together or not at all.
pub const COSCHEDULING: &str = "Coscheduling";
/// Prefers nodes whose load is low and even.
pub const LOAD_VARIATION_RISK_BALANCING: &str = "LoadVariationRiskBalancing";
/// Prefers nodes where limits and load promise no overuse.
pub const LOW_RISK_OVER_COMMITMENT: &str = "LowRiskOverCommitment";
/// Room on one NUMA node.
pub const NODE_RESOURCE_TOPOLOGY_MATCH: &str = "NodeResourceTopologyMatch";
/// Prefers small nodes, or large ones.
pub const NODE_RESOURCES_ALLOCATABLE: &str = "NodeResourcesAllocatable";
/// Preemption that priority classes may tolerate.
pub const PREEMPTION_TOLERATION: &str = "PreemptionToleration";
/// Packs nodes up to a load.
pub const TARGET_LOAD_PACKING: &str = "TargetLoadPacking";
