//! The kubelet: runs the pods the API server bound to this node, and says how they are.
//!
//! Owns: the node's pods from their sources to their statuses. Never runs a container itself (crate `runtime`
//! does) and never schedules. Start reading at `sync_loop`. Upstream: `pkg/kubelet`, v1.36.

pub mod atomic_file;
pub mod backoff;
pub mod cm;
pub mod configuration;
pub mod container_config;
pub mod dns;
pub mod environment;
pub mod events;
pub mod eviction;
pub mod hosts;
pub mod image_manager;
pub mod lifecycle;
pub mod metrics;
pub mod options;
pub mod paths;
pub mod pod;
pub mod pod_actions;
pub mod pod_manager;
pub mod pod_status;
pub mod prober;
pub mod sandbox_config;
pub mod security_context;
pub mod server;
pub mod status;
pub mod termination;
pub mod user_namespaces;
