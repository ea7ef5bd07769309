//! What the parts of the kubelet know of their node.
//!
//! Owns: the node's name, addresses, capacity and allocatable resources, shared and replaced as a whole. Never asks anybody.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use component_helpers::resources::ResourceList;
use k8s_openapi::api::core::v1::Node;
use tokio::sync::watch;

use crate::cm::machine::MachineInfo;

/// Cheap to read; one writer each.
pub struct NodeState {
    pub name: String,
    pub machine: MachineInfo,
    /// Primary first; empty until known.
    pub host_ips: ArcSwap<Vec<String>>,
    pub capacity: ArcSwap<ResourceList>,
    pub allocatable: ArcSwap<ResourceList>,
    /// The Node object as the API server has it; `None` until it was seen. Written by [`NodeState::set_node`].
    pub node: ArcSwap<Option<Arc<Node>>>,
    /// As it registers; what is decided by while there is no other.
    pub initial: Node,
    read: watch::Sender<bool>,
    /// Counts what was set.
    changes: watch::Sender<u64>,
    /// Conditions of pressure that eviction found, by type.
    pub pressure: ArcSwap<Vec<&'static str>>,
    shutting_down: AtomicBool,
}

impl NodeState {
    pub fn new(
        name: String,
        machine: MachineInfo,
        capacity: ResourceList,
        allocatable: ResourceList,
        initial: Node,
    ) -> Self {
        Self {
            initial,
            read: watch::Sender::new(false),
            changes: watch::Sender::new(0),
            name,
            machine,
            host_ips: ArcSwap::default(),
            capacity: ArcSwap::from_pointee(capacity),
            allocatable: ArcSwap::from_pointee(allocatable),
            node: ArcSwap::default(),
            pressure: ArcSwap::default(),
            shutting_down: AtomicBool::new(false),
        }
    }

    /// Takes the object as it was read.
    pub fn set_node(&self, node: Arc<Node>) {
        self.node.store(Arc::new(Some(node)));
        self.set_read();
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Resolves once the object is as `condition` says; cancel-safe.
    pub async fn until(&self, condition: &(dyn for<'a> Fn(&'a Node) -> bool + Send + Sync)) {
        let mut changes = self.changes.subscribe();
        let met = |_: &u64| {
            let node = self.node.load();
            node.as_ref().as_ref().is_some_and(|node| condition(node))
        };
        // The sender is ours.
        let _ = changes.wait_for(met).await;
    }

    /// Nothing is to be waited for: the object was read, or there is none to read.
    pub fn set_read(&self) {
        self.read.send_replace(true);
    }

    /// Whether the API server's Node is known, if there is one.
    pub fn is_read(&self) -> bool {
        *self.read.borrow()
    }

    /// Resolves once [`NodeState::is_read`]; cancel-safe.
    pub async fn until_read(&self) {
        // The sender is ours.
        let _ = self.read.subscribe().wait_for(|read| *read).await;
    }

    /// The machine is about to go down: no pod is taken any more.
    pub fn is_shutting_down(&self) -> bool {
        self.shutting_down.load(Ordering::Acquire)
    }

    pub fn set_shutting_down(&self, shutting_down: bool) {
        self.shutting_down.store(shutting_down, Ordering::Release);
    }

    pub fn under_pressure(&self, condition: &str) -> bool {
        self.pressure.load().contains(&condition)
    }
}
