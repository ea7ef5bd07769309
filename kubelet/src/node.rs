//! What the parts of the kubelet know of their node.
//!
//! Owns: the node's name, addresses, capacity and allocatable resources, shared and replaced as a whole. Never asks anybody.

use std::sync::Arc;

use arc_swap::ArcSwap;
use component_helpers::resources::ResourceList;
use k8s_openapi::api::core::v1::Node;

use crate::cm::machine::MachineInfo;

/// Cheap to read; one writer each.
pub struct NodeState {
    pub name: String,
    pub machine: MachineInfo,
    /// Primary first; empty until known.
    pub host_ips: ArcSwap<Vec<String>>,
    pub capacity: ArcSwap<ResourceList>,
    pub allocatable: ArcSwap<ResourceList>,
    /// The Node object as the API server has it; `None` until it was seen.
    pub node: ArcSwap<Option<Arc<Node>>>,
    /// Conditions of pressure that eviction found, by type.
    pub pressure: ArcSwap<Vec<&'static str>>,
}

impl NodeState {
    pub fn new(
        name: String,
        machine: MachineInfo,
        capacity: ResourceList,
        allocatable: ResourceList,
    ) -> Self {
        Self {
            name,
            machine,
            host_ips: ArcSwap::default(),
            capacity: ArcSwap::from_pointee(capacity),
            allocatable: ArcSwap::from_pointee(allocatable),
            node: ArcSwap::default(),
            pressure: ArcSwap::default(),
        }
    }

    pub fn under_pressure(&self, condition: &str) -> bool {
        self.pressure.load().contains(&condition)
    }
}
