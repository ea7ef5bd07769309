//! Gives resources back before the kernel takes them: thresholds, pressure, and which pod goes first.
//!
//! Owns: the decision and the manager. Upstream: `pkg/kubelet/eviction`, v1.36.

pub mod local_storage;
pub mod manager;
pub mod observe;
pub mod rank;
pub mod threshold;
pub mod tracker;
pub mod usage;
