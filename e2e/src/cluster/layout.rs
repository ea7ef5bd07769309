//! Names, addresses and paths of one cluster. Nothing here touches the machine.

use std::net::Ipv4Addr;
use std::path::PathBuf;

/// The pod network, a /24 a node.
pub const CLUSTER_CIDR: &str = "10.244.0.0/16";
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
pub const KUBERNETES_SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
pub const DNS_SERVICE_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The control plane's machine.
pub const CONTROL_PLANE_IP: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
/// Of several control planes, the one of number N (from 0) has 172.30.0.(2+N); clients know [`CONTROL_PLANE_IP`], which passes them on.
const MEMBER_IP_BASE: u8 = 2;
/// As many as etcd is run with.
pub const MAX_CONTROL_PLANES: u8 = 5;
pub const API_SERVER_PORT: u16 = 6443;
pub const REGISTRY_PORT: u16 = 5000;
/// Node N has 172.30.0.(10+N).
const NODE_IP_BASE: u8 = 10;
pub const MAX_NODES: u8 = 200;

/// Where a cluster lives.
#[derive(Clone, Debug)]
pub struct Layout {
    pub name: String,
}

impl Layout {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
        }
    }

    /// Everything that is kept on disk; removed by `down`.
    pub fn dir(&self) -> PathBuf {
        PathBuf::from("/var/lib/gantry-e2e").join(&self.name)
    }

    /// Pinned namespaces and the lock.
    pub fn run_dir(&self) -> PathBuf {
        PathBuf::from("/run/gantry-e2e").join(&self.name)
    }

    pub fn lock(&self) -> PathBuf {
        PathBuf::from("/run/gantry-e2e").join(format!("{}.lock", self.name))
    }

    pub fn state(&self) -> PathBuf {
        self.dir().join("state.json")
    }

    pub fn logs(&self) -> PathBuf {
        self.dir().join("logs")
    }

    pub fn log(&self, process: &str) -> PathBuf {
        self.logs().join(format!("{process}.log"))
    }

    pub fn pki(&self, file: &str) -> PathBuf {
        self.dir().join("pki").join(file)
    }

    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.dir().join("kubeconfig").join(format!("{user}.conf"))
    }

    /// For people: reaches the API server from the machine's own network.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.kubeconfig("admin")
    }

    pub fn node_dir(&self, node: &str) -> PathBuf {
        self.dir().join("nodes").join(node)
    }

    pub fn lan_netns(&self) -> String {
        format!("{}-lan", self.name)
    }

    pub fn node_netns(&self, node: &str) -> String {
        format!("{}-{node}", self.name)
    }

    /// The cluster's directory in every cgroup hierarchy, without a leading slash.
    pub fn cgroup(&self) -> String {
        format!("gantry-e2e/{}", self.name)
    }

    pub fn node_cgroup(&self, node: &str) -> String {
        format!("{}/{node}", self.cgroup())
    }
}

pub fn node_name(index: u8) -> String {
    format!("node-{index}")
}

/// `index` counts from 1.
pub fn node_ip(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, NODE_IP_BASE + index)
}

/// The address of one of several control planes; `index` counts from 0.
pub fn member_ip(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, MEMBER_IP_BASE + index)
}

pub fn netns_path(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}
