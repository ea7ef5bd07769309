//! The pod network: addresses, links, routes, masquerading and host ports of a node's pods.
//!
//! Owns the pods' veth pairs, the routes (or the VXLAN) to other nodes' pods, the address reservations on disk and
//! the nft tables `gantry-pods`. Where `/etc/cni/net.d` holds a configuration, the CNI plugins named there do all
//! of this instead ([`Mode`] says otherwise: never, or nobody before them). The directory is read for every pod, so that a
//! configuration that comes, changes or goes counts from the next pod on.
//! Never talks to the API server (the kubelet feeds it) and never touches kube-proxy's table.
//!
//! Pods are routed, not bridged: each has a point-to-point veth pair, a /32 (or /128) address and a host route.
//! So whatever a pod sends passes the node's routing and its nft hooks: translated answers find their way back
//! without br_netfilter, a pod can reach itself through a Service, and a policy sees traffic within the node too.
//!
//! ```text
//! pod eth0 10.244.1.5/32 ── default via 10.244.1.1 ──► veth (10.244.1.1/32) ─ node ─┬─ same link: via the node's address
//!                                                                                  └─ else: VXLAN, one hop
//! ```
//!
//! The decision (whose ranges are believed, what routes, addresses, neighbours and nft objects there should be) is pure, in
//! `admission.rs`, `plan.rs` and `rules.rs`; the doing is a thin shell that compares with what the kernel has and changes only the difference.

mod admission;
mod bandwidth;
mod cni;
mod error;
mod ipam;
mod namespace;
mod netlink;
mod plan;
mod pod_link;
mod pod_network;
mod rules;
mod stale_flows;
mod store;
mod types;

pub use error::NetworkError;
pub use pod_network::PodNetwork;
pub use types::{Bandwidth, Mode, NetworkConfig, Peer, PortMapping, Protocol, SandboxNetwork};
