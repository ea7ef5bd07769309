//! Watches over Nodes: a Node that went silent becomes `Unknown`, its Pods not ready, and it is tainted, zone by zone and not too fast.
//!
//! - [`health`]: is a Node alive, by its status and its lease (every `--node-monitor-period`);
//! - [`zone`]: how disrupted is a zone, and how fast may its Nodes be tainted `NoExecute`;
//! - [`taints`]: which taints follow from conditions, and which labels are derived;
//! - [`evictor`]: the rate-limited queue of a zone.
//!
//! Who evicts Pods of tainted Nodes is the taint-eviction controller. Upstream: pkg/controller/nodelifecycle, v1.37.

mod controller;
mod evictor;
mod health;
mod monitor;
mod taints;
mod zone;

pub use controller::{LEASE_CIRCUIT_BREAKER, start};
