//! Gives resources back before the kernel takes them: thresholds, pressure, and which pod goes first.
//!
//! Owns: the decision and the manager. Upstream: `pkg/kubelet/eviction`, v1.36.

pub mod manager;
pub mod rank;
pub mod threshold;
