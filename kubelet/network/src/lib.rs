//! The pod network: addresses, links, routes, masquerading and host ports of a node's pods.
//!
//! Owns the bridge, the pods' veth pairs, the routes (or the VXLAN) to other nodes' pods, the address
//! reservations on disk and the nft table `gantry-pods`. Where `/etc/cni/net.d` holds a configuration,
//! the CNI plugins named there do a pod's part instead.
//! Never talks to the API server (the kubelet feeds it) and never touches kube-proxy's table.
//!
//! The decision (what links, routes, addresses and nft objects there should be) is pure, in [`plan`];
//! the doing is a thin shell that compares with what the kernel has and changes only the difference.

mod error;
mod types;

pub use error::NetworkError;
pub use types::{Bandwidth, NetworkConfig, Peer, PortMapping, Protocol, SandboxNetwork};

mod pod_network;
pub use pod_network::PodNetwork;
