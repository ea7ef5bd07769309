//! [`PodNetwork`]: the thin shell that carries plans out.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{NetworkConfig, NetworkError, Peer, SandboxNetwork};

/// The node's pod network. Cheap to clone; every method may be called from several tasks at once.
#[derive(Clone)]
pub struct PodNetwork {
    _config: std::sync::Arc<NetworkConfig>,
}

impl PodNetwork {
    /// Reads the state directory and, where one is there, the CNI configuration. Changes nothing in the kernel.
    pub async fn open(config: NetworkConfig) -> Result<Self, NetworkError> {
        Ok(Self {
            _config: std::sync::Arc::new(config),
        })
    }

    /// Tells the ranges of this node's pods (Node `.spec.podCIDRs`) and brings the kernel in line.
    pub async fn set_pod_cidrs(&self, _pod_cidrs: Vec<IpNet>) -> Result<(), NetworkError> {
        Err(not_built())
    }

    /// Tells all other nodes; routes (or VXLAN entries) of nodes that are not named are removed.
    pub async fn set_peers(&self, _peers: Vec<Peer>) -> Result<(), NetworkError> {
        Err(not_built())
    }

    /// `Ok` when sandboxes can be connected; otherwise the text for `NetworkReady=false`.
    pub async fn ready(&self) -> Result<(), NetworkError> {
        Err(not_built())
    }

    /// Connects a sandbox and returns its addresses, the primary one first. A second call for the same sandbox
    /// returns the same addresses.
    pub async fn setup(&self, _sandbox: &SandboxNetwork) -> Result<Vec<IpAddr>, NetworkError> {
        Err(not_built())
    }

    /// The addresses of a sandbox that is connected, from the records on disk.
    pub async fn addresses(&self, _sandbox_id: &str) -> Option<Vec<IpAddr>> {
        None
    }

    /// Disconnects a sandbox and frees its addresses. Idempotent; the namespace may be gone already.
    pub async fn teardown(&self, _sandbox_id: &str) -> Result<(), NetworkError> {
        Err(not_built())
    }

    /// After a restart: frees the addresses, links and host ports of sandboxes that are not named.
    pub async fn reconcile(&self, _live_sandbox_ids: &[String]) -> Result<(), NetworkError> {
        Err(not_built())
    }
}

fn not_built() -> NetworkError {
    NetworkError::NotReady("the pod network is not built yet".into())
}
