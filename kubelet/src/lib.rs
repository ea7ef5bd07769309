//! The kubelet: runs the pods the API server bound to this node, and says how they are.
//!
//! Owns: the node's pods from their sources to their statuses. Never runs a container itself (crate `runtime`
//! does) and never schedules. Start reading at `sync_loop`. Upstream: `pkg/kubelet`, v1.36.

pub mod cm;
pub mod configuration;
pub mod dns;
pub mod environment;
pub mod eviction;
pub mod hosts;
pub mod options;
pub mod pod;
pub mod pod_actions;
pub mod pod_manager;
pub mod pod_status;
pub mod security_context;
pub mod status;
