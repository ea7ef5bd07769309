//! The pod's status as the API server shows it.
//!
//! Owns: computing it ([`generate`], pure) and writing it ([`manager`]). Upstream: `pkg/kubelet/status`,
//! `kubelet_pods.go`, v1.36.

pub mod conditions;
pub mod containers;
pub mod generate;
pub mod manager;
pub mod phase;
#[cfg(test)]
mod tests;
