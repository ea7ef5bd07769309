//! Where pods come from: the API server, files, and a URL.
//!
//! Owns: one shape for all news about desired pods. Never decides about them. Upstream: `pkg/kubelet/config`, v1.36.

pub mod api_references;
pub mod apiserver;
pub mod file;
pub mod http;
pub mod manifest;
pub mod static_pod;
pub mod validation;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::pod;

/// A source of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    Api,
    File,
    Http,
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

/// What a source of static pods tells when it has `now` instead of `before`: what went, then what is new. A pod of another
/// content has another UID.
fn changes(before: impl IntoIterator<Item = Arc<Pod>>, now: &[Arc<Pod>]) -> Vec<PodUpdate> {
    let before: Vec<Arc<Pod>> = before.into_iter().collect();
    let has = |pods: &[Arc<Pod>], uid: &str| pods.iter().any(|p| pod::uid(p) == uid);
    let gone = before.iter().filter(|p| !has(now, pod::uid(p)));
    let new = now.iter().filter(|p| !has(&before, pod::uid(p)));
    gone.map(|p| PodUpdate::Removed(p.clone()))
        .chain(new.map(|p| PodUpdate::Set(p.clone())))
        .collect()
}
