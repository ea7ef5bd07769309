//! The virtual kubelet: nodes that are no Linux machine, many of them in one process, with a kubelet's loops.
//!
//! ```text
//! app -> nodes (registration, Leases, statuses)
//!     -> pods  (one watch -> record, pure -> provider, status, pure -> API server)
//!     -> server (logs, exec, attach, port-forward, stats, metrics)
//!     -> providers: simulated (scripts, kwok's stages), process (child processes), remote (gRPC); others by `kubelet-provider`
//! ```
// One call of tokio's has no safe counterpart (`process/child.rs`).
#![deny(unsafe_code)]

pub mod app;
pub mod configuration;
mod metrics;
pub mod nodes;
pub mod options;
pub mod pods;
pub mod process;
pub mod providers;
pub mod remote;
pub mod server;
pub mod simulated;
#[cfg(test)]
mod testing;
