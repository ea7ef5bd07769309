//! The container runtime: what the kubelet asks of it (the verbs of the CRI), and the Linux
//! provider that carries them out with one shim a pod and libcontainer.
//!
//! Owns: pod sandboxes, containers, their logs and exit codes. Never reads or writes the
//! Kubernetes API and never decides what should run; that is the kubelet's `pod_actions`.
//!
//! Upstream: k8s.io/cri-api/pkg/apis/runtime/v1, v1.36.

pub mod api;
pub mod detail;
pub mod fake;
pub mod linux;
pub mod spec;

pub use api::*;
