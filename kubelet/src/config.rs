//! Where pods come from: the API server, and files.
//!
//! Owns: one shape for all news about desired pods. Never decides about them. Upstream: `pkg/kubelet/config`, v1.36.

pub mod api_references;
pub mod apiserver;
pub mod file;
pub mod manifest;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

/// A source of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    Api,
    File,
}

/// News of a source.
#[derive(Clone, Debug)]
pub enum PodUpdate {
    /// New, or another version of what was there.
    Set(Arc<Pod>),
    /// The source names the pod no longer.
    Removed(Arc<Pod>),
    /// The source has told of everything it had at first.
    Ready(Source),
}
