//! Deletes Pods nobody else will: orphans of Nodes that are gone, terminating Pods that were never scheduled or whose Node is out of
//! service, and terminated Pods beyond a number.
//!
//! Upstream: pkg/controller/podgc, v1.36.

mod controller;
mod sync;

pub use controller::start;
