//! Why a call of the pod network failed.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

/// A failed call. Unless a variant says otherwise, a retry may help.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Neither a pod CIDR nor a CNI configuration is there yet. Upstream: `NetworkPluginNotReady`.
    #[error("{0}")]
    NotReady(String),
    /// The configuration is wrong; a retry does not help.
    #[error("invalid {field}: {value:?}: {reason}")]
    Invalid {
        field: &'static str,
        value: String,
        reason: String,
    },
    #[error("no free address left in {range}")]
    NoFreeAddress { range: IpNet },
    /// Another sandbox of this node has the host port; a retry helps once that pod is gone.
    #[error("host port {protocol} {host_ip}:{host_port} is in use by sandbox {owner}")]
    HostPortConflict {
        protocol: String,
        host_ip: String,
        host_port: u16,
        owner: String,
    },
    #[error("sandbox {sandbox_id}: network namespace {path}: {source}")]
    Namespace {
        sandbox_id: String,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{context}: {source}")]
    Netlink {
        context: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(transparent)]
    Nft(#[from] nftables::NftError),
    /// A CNI plugin refused or failed. `code` is the plugin's own (0: it gave none).
    #[error("plugin type={plugin:?} failed ({command}): {message}")]
    Cni {
        plugin: String,
        command: &'static str,
        code: u32,
        message: String,
    },
    #[error("{path}: {reason}")]
    CniConfig { path: PathBuf, reason: String },
    #[error("{context}: {source}")]
    Io {
        context: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{path}: {reason}")]
    State { path: PathBuf, reason: String },
    #[error("no way to node {node} at {address}: {reason}")]
    Peer {
        node: String,
        address: IpAddr,
        reason: String,
    },
    /// Cleanup went on past these; what is left is found again by the next `reconcile`.
    #[error("{} errors while cleaning up: {}", .0.len(), .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Cleanup(Vec<NetworkError>),
}

impl NetworkError {
    pub(crate) fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io {
            context: context.into(),
            source,
        }
    }

    pub(crate) fn netlink(
        context: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Netlink {
            context: context.into(),
            source: Box::new(source),
        }
    }
}
