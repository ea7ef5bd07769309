//! kube-proxy: Services, as nftables rules of this node.
//!
//! Owns the nft tables `kube-proxy` of both families, the health-check node ports, the health and metrics pages, and
//! the conntrack entries of UDP Services. Never links the kubelet and never touches the pod network's table.
//!
//! The rules are flat maps: (address, protocol, port) leads to a chain that all Services with as many endpoints share,
//! and from there (address, protocol, port, random number) to the endpoint. There is no chain per Service, except
//! for those with session affinity.
//!
//! ```text
//! informers ─► state (changes) ─► render (pure) ─► wanted table ─► nftables::Syncer ─► one transaction
//! ```
//!
//! What a kube-proxy of iptables or ipvs left on the node goes after the first sync: see [`leftovers`].
//!
//! Upstream: cmd/kube-proxy and pkg/proxy/nftables, v1.36. Chains and sets that upstream has keep its names.

#![forbid(unsafe_code)]

pub mod config;
pub mod conntrack;
mod endpoint;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod healthcheck;
pub mod leftovers;
mod local_detector;
mod metrics;
mod node;
pub mod options;
mod proxier;
pub mod render;
pub mod server;
pub mod service;
mod state;
mod sysctl;
mod topology;

pub use endpoint::Endpoint;
pub use local_detector::LocalDetector;
