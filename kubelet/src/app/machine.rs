//! What the kubelet asks of the machine it starts on, and does to itself.
//!
//! Owns: refusing a machine it cannot run on, and finding the node's addresses.

use std::net::{IpAddr, UdpSocket};

use super::AppError;
use crate::cm::cgroup::CgroupManager;
use crate::cm::machine::swap_is_on;
use crate::configuration::KubeletConfiguration;
use crate::options::Options;

/// `--node-ip`, else the address the machine would use towards the outside. Nothing is sent.
pub(super) fn node_addresses(options: &Options) -> Vec<IpAddr> {
    let given: Vec<IpAddr> = options
        .node_ips
        .iter()
        .copied()
        .filter(|ip| !ip.is_unspecified())
        .collect();
    if !given.is_empty() {
        return given;
    }
    let probe = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        // Connecting a datagram socket only looks up the route.
        socket.connect("192.0.2.1:9")?;
        Ok(socket.local_addr()?.ip())
    };
    match probe() {
        Ok(ip) => vec![ip],
        Err(error) => {
            tracing::warn!(%error, "no address of this node was found, use --node-ip");
            vec![]
        }
    }
}

pub(super) fn check_machine(
    config: &KubeletConfiguration,
    cgroups: &CgroupManager,
) -> Result<(), AppError> {
    if config.fail_swap_on && swap_is_on() {
        return Err(AppError::SwapOn);
    }
    if !cgroups.is_v2() {
        if config.fail_cgroup_v1 {
            return Err(AppError::CgroupV1);
        }
        tracing::warn!("{}", crate::cm::container_manager::CGROUP_V1_WARNING);
    }
    cgroups.require_controllers()?;
    Ok(())
}

/// Upstream: the kubelet is the last to be killed. Not everywhere may a process say so.
pub(super) fn protect_from_oom(score: i32) {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        tracing::warn!(score, %error, "failed to set the kubelet's own oom_score_adj");
    }
}
