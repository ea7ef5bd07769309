//! The node-route controller: routes of the cloud's network to the pods of each Node.
//!
//! Upstream: k8s.io/cloud-provider/controllers/route, v0.37.

mod controller;
pub mod sync;
#[cfg(test)]
mod tests;

pub use controller::start;
