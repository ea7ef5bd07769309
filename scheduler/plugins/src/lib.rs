//! The plugins in tree: one module each, and the list of them.
//!
//! A plugin sees what `framework` offers and nothing else, just as one out of tree would. Each gives upstream's reasons word for word, says which
//! events may help a pod it rejected, and, where speed asks for it, judges all nodes at once in a form that must agree with the one for a single node.
//! Upstream: pkg/scheduler/framework/plugins, v1.36.
#![forbid(unsafe_code)]

pub mod balanced_allocation;
pub mod default_binder;
pub mod default_preemption;
pub mod dynamic_resources;
pub mod gang_scheduling;
pub mod image_locality;
pub mod inter_pod_affinity;
pub mod names;
pub mod node_affinity;
pub mod node_declared_features;
pub mod node_name;
pub mod node_ports;
pub mod node_resources_fit;
pub mod node_unschedulable;
pub mod node_volume_limits;
pub mod pod_group_pods_count;
pub mod pod_topology_spread;
pub mod preemption;
pub mod priority_sort;
pub mod registry;
mod resource_allocation;
pub mod scheduling_gates;
pub mod taint_toleration;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod topology_placement;
#[cfg(test)]
mod upstream_tests;
pub mod volume_binding;
mod volume_claims;
pub mod volume_restrictions;
pub mod volume_zone;

/// Whether tolerations may compare numbers (`Lt`, `Gt`). Feature gate `TaintTolerationComparisonOperators`: alpha and off in 1.37.
const COMPARISON_OPERATORS: bool = false;
