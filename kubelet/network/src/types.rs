//! The plain types that the pod network's callers hand in.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Who connects the node's pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// CNI plugins where there is a configuration when a pod comes, else the built-in network.
    #[default]
    Auto,
    /// The built-in network, whatever is in the directory of configurations.
    BuiltIn,
    /// CNI plugins alone: no pod is connected before there is a configuration.
    Cni,
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "builtin" => Ok(Self::BuiltIn),
            "cni" => Ok(Self::Cni),
            _ => Err("must be auto, builtin or cni".to_owned()),
        }
    }
}

/// What the network is made from. `Default` gives a node's usual paths.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    pub mode: Mode,
    /// Durable state: address reservations and sandbox records. Created if missing.
    pub state_dir: PathBuf,
    /// Where CNI configurations are looked for; the first by name wins.
    pub cni_conf_dir: PathBuf,
    /// Where CNI plugins are looked for, in this order.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// The addresses of all pods of the cluster: a peer with others is not believed. Empty: learnt from the pod CIDRs of this node
    /// and its peers.
    pub cluster_cidrs: Vec<IpNet>,
    /// This node's name, for logs.
    pub node_name: String,
    /// The bridge's name (at most 15 bytes).
    /// MTU of the pods' links. `None`: that of the link with the default route (less the VXLAN header where one is used).
    pub mtu: Option<u32>,
    /// The VXLAN network identifier and UDP port, for nodes that are not on the same link.
    pub vxlan_id: u32,
    pub vxlan_port: u16,
    /// Name of the nft table, the same in both families.
    pub table: String,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            state_dir: "/var/lib/gantry/network".into(),
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dirs: vec!["/opt/cni/bin".into()],
            cluster_cidrs: Vec::new(),
            node_name: String::new(),
            mtu: None,
            vxlan_id: 4096,
            // As flannel's and upstream's kernels: 8472 is Linux's old default, 4789 the IANA's.
            vxlan_port: 8472,
            table: "gantry-pods".into(),
        }
    }
}

/// Another node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    pub node: String,
    /// When the Node was made, in seconds since 1970: of two with the same range the older one has it.
    #[serde(default)]
    pub created_unix_s: i64,
    /// The node's InternalIP of the family that carries pod traffic.
    pub internal_ip: IpAddr,
    pub pod_cidrs: Vec<IpNet>,
}

#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// One host port of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    pub protocol: Protocol,
    pub container_port: u16,
    pub host_port: u16,
    /// `None`: every address of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

/// From the annotations `kubernetes.io/ingress-bandwidth` and `kubernetes.io/egress-bandwidth`, seen from the pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Bits per second towards the pod. `None`: unlimited.
    pub ingress_bits_per_second: Option<u64>,
    /// Bits per second from the pod. `None`: unlimited.
    pub egress_bits_per_second: Option<u64>,
}

/// The sandbox to connect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxNetwork {
    pub sandbox_id: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// The pinned network namespace.
    pub netns: PathBuf,
    pub port_mappings: Vec<PortMapping>,
    pub bandwidth: Bandwidth,
}
