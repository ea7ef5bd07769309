//! The cloud-node controller: gives a new Node what its cloud knows of it, takes the taint `uninitialized` off, and follows its addresses.
//!
//! Upstream: k8s.io/cloud-provider/controllers/node, v0.37.

mod controller;
pub mod sync;
#[cfg(test)]
mod tests;

pub use controller::start;
