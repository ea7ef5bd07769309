//! The ttl controller: tells kubelets, by an annotation of their Node, how long they may keep ConfigMaps and Secrets.
//!
//! The more nodes, the longer, so that the API server is not asked too often. Upstream: pkg/controller/ttl, v1.36.

mod controller;
pub mod sync;

pub use controller::start;
