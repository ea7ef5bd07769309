//! The kubelet: runs the pods the API server bound to this node, and says how they are.
//!
//! Owns: the node's pods from their sources to their statuses. Never runs a container itself (crate `runtime`
//! does) and never schedules. Start reading at `sync_loop`. Upstream: `pkg/kubelet`, v1.36.

pub mod active_deadline;
pub mod admission;
pub mod app;
pub mod backoff;
pub mod certificate;
pub mod cm;
pub mod config;
pub mod configuration;
pub mod container_config;
pub mod container_log;
pub mod csi_node;
pub mod device_plugins;
pub mod disk_usage;
pub mod dns;
pub mod dynamic_resources;
pub mod environment;
pub mod events;
pub mod eviction;
pub mod features;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod hosts;
pub mod image_gc;
pub mod image_manager;
pub mod kubelet;
pub mod kuberuntime;
pub mod lifecycle;
pub mod memory;
pub mod metrics;
pub mod mirror;
pub mod node;
pub mod node_network;
pub mod node_shutdown;
pub mod node_status;
pub mod object_cache;
pub mod off_thread;
pub mod options;
pub mod paths;
pub mod pending;
pub mod pleg;
pub mod pod;
pub mod pod_actions;
pub mod pod_certificate;
pub mod pod_manager;
pub mod pod_resources;
pub mod pod_status;
pub mod pod_workers;
pub mod pods_api;
pub mod preemption;
pub mod prober;
pub mod resize;
pub mod resource_managers;
pub mod restart_all;
pub mod rlimit;
pub mod runtime_class;
pub mod sandbox_config;
pub mod security_context;
pub mod server;
pub mod status;
pub mod sync_loop;
pub mod termination;
pub mod user_namespaces;
mod volume_metrics;
