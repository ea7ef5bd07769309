//! cloud-controller-manager: what a cloud knows of Nodes, load balancers for Services, and routes, in one process, one of which
//! leads at a time.
//!
//! The cloud is `cloud-provider`'s; each controller is a module of the same shape as those of kube-controller-manager. Upstream:
//! k8s.io/cloud-provider, v0.37.
#![forbid(unsafe_code)]

pub mod app;
pub mod context;
pub mod options;
pub mod registry;

pub mod node;
pub mod node_lifecycle;
pub mod node_route;
pub mod service_lb;
#[cfg(test)]
mod testing;
