//! The service-lb controller: load balancers of the cloud for Services of type LoadBalancer without a class.
//!
//! Upstream: k8s.io/cloud-provider/controllers/service, v0.37.
//!
//! ```text
//! wanted ----> finalizer ----> the cloud's load balancer ----> status
//! not wanted, or going ----> no load balancer ----> no finalizer ----> no status
//! nodes change ----> the load balancers' nodes
//! ```

mod controller;
mod metrics;
pub mod sync;
#[cfg(test)]
mod tests;

pub use controller::start;
