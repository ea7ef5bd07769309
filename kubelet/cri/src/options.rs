//! The command line of `gantry-cri`.

use std::path::PathBuf;

use component_base::flags::{FlagSet, Flags};
use runtime::linux::SHIM_CGROUP;

/// How the program was started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where clients find the CRI.
    pub listen: PathBuf,
    /// As the kubelet's flags of the same names; both must say the same.
    pub runtime_root_dir: PathBuf,
    pub runtime_state_dir: PathBuf,
    pub runtime_handlers: Vec<String>,
    pub pod_network: network::Mode,
    /// What other nodes' podCIDRs, which a kubelet told, are held to.
    pub pod_network_cidr: Vec<ipnet::IpNet>,
    /// Where shims live that this program starts, as a path below every hierarchy's root.
    pub shim_cgroup: String,
    pub registry_config_dir: PathBuf,
    /// Ranges of pods' addresses, on a node that no kubelet has told any.
    pub pod_cidrs: Vec<String>,
    /// The shim's program; `None`: next to this one.
    pub shim_path: Option<PathBuf>,
}

pub fn flag_set() -> FlagSet {
    let mut set = FlagSet::new(
        "gantry-cri",
        "Serves the Container Runtime Interface (v1) on a unix socket. While the kubelet runs, the kubelet's runtime answers; otherwise this program does.",
    );
    set.string(
        "listen",
        "/run/containerd/containerd.sock",
        "The unix socket to serve, if the service manager passes none.",
    );
    set.string(
        "runtime-root-dir",
        "/var/lib/gantry",
        "Directory of the container runtime: images, containers, sandboxes. As the kubelet's.",
    );
    set.string(
        "runtime-state-dir",
        "/run/gantry",
        "Directory of the container runtime's volatile state: sockets, pinned namespaces. As the kubelet's.",
    );
    set.list(
        "runtime-handlers",
        &["runc", "youki"],
        "Handlers a pod sandbox may name, all of them the one runtime.",
    );
    set.string(
        "pod-network",
        "auto",
        "Who connects pods: builtin, cni or auto. As the kubelet's.",
    );
    set.string(
        "shim-cgroup",
        SHIM_CGROUP,
        "The cgroup of shims that this program starts: they are not in its own, which may be killed as a whole.",
    );
    set.string(
        "registry-config-dir",
        "/etc/containerd/certs.d",
        "Directory of registry hosts (certs.d/<host>/hosts.toml).",
    );
    set.list(
        "pod-network-cidr",
        &[],
        "Ranges of all pods of the cluster, as the kubelet's flag of this name has them.",
    );
    set.list(
        "pod-cidr",
        &[],
        "Ranges for the addresses of pods where no kubelet has told any and there is no CNI configuration.",
    );
    set
}

/// A command line that makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("invalid argument {value:?} for \"--{flag}\" flag: {reason}")]
pub struct OptionsError {
    flag: &'static str,
    value: String,
    reason: String,
}

impl Options {
    /// # Errors
    /// A flag's value is none of those there are.
    pub fn from_flags(flags: &Flags) -> Result<Self, OptionsError> {
        let invalid = |flag, reason: &str| OptionsError {
            flag,
            value: flags.string(flag).to_owned(),
            reason: reason.to_owned(),
        };
        let pod_network = flags
            .string("pod-network")
            .parse()
            .map_err(|reason: String| invalid("pod-network", &reason))?;
        let ranges = flags.list("pod-network-cidr").iter();
        let pod_network_cidr = ranges.map(|range| range.trim().parse()).collect();
        let pod_network_cidr: Result<Vec<ipnet::IpNet>, _> = pod_network_cidr;
        let pod_network_cidr = pod_network_cidr.map_err(|error| OptionsError {
            flag: "pod-network-cidr",
            value: flags.list("pod-network-cidr").join(","),
            reason: error.to_string(),
        })?;
        let shim_cgroup = flags.string("shim-cgroup").to_owned();
        if !shim_cgroup.starts_with('/') || shim_cgroup.split('/').any(|part| part == "..") {
            return Err(invalid("shim-cgroup", "must be an absolute path"));
        }
        Ok(Self {
            listen: flags.string("listen").into(),
            runtime_root_dir: flags.string("runtime-root-dir").into(),
            runtime_state_dir: flags.string("runtime-state-dir").into(),
            runtime_handlers: flags.list("runtime-handlers").to_vec(),
            registry_config_dir: flags.string("registry-config-dir").into(),
            pod_cidrs: flags.list("pod-cidr").to_vec(),
            pod_network,
            pod_network_cidr,
            shim_cgroup,
            shim_path: None,
        })
    }
}
