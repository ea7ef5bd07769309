//! What the kubelet asks of the machine it starts on, and does to itself.
//!
//! Owns: refusing a machine it cannot run on, and finding the node's addresses.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use super::AppError;
use crate::cm::cgroup::CgroupManager;
use crate::cm::machine::swap_is_on;
use crate::configuration::KubeletConfiguration;
use crate::options::Options;

/// How long a name server may take to say where the node is.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// The addresses that `--node-ip` names.
pub(super) fn given_addresses(options: &Options) -> Vec<IpAddr> {
    let all = options.node_ips.iter().copied();
    all.filter(|ip| !ip.is_unspecified()).collect()
}

/// `--node-ip`; else the name, if it is an address; else the machine's address that the name stands for; else the one it would use
/// towards the outside (nothing is sent). IPv4 comes first, but for `--node-ip ::`. Upstream: `NodeAddress` in
/// `pkg/kubelet/nodestatus/setters.go`.
pub(super) async fn node_addresses(options: &Options) -> Vec<IpAddr> {
    let given = given_addresses(options);
    if !given.is_empty() {
        return given;
    }
    if let Ok(ip) = options.node_name.parse() {
        return vec![ip];
    }
    let prefers_v6 = options.node_ips.first().is_some_and(IpAddr::is_ipv6);
    let lookup = tokio::net::lookup_host((options.node_name.clone(), 0));
    let named: Vec<IpAddr> = match tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await {
        Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
        // Most names of nodes stand in no name server.
        Ok(Err(_)) | Err(_) => vec![],
    };
    let found = choose(&named, &own_addresses(), prefers_v6)
        .or_else(|| outward(prefers_v6))
        .or_else(|| outward(!prefers_v6));
    if found.is_none() {
        tracing::warn!("no address of this node was found, use --node-ip");
    }
    found.into_iter().collect()
}

/// Of the addresses that the name stands for one that is the machine's own and can be a node's, if possible of the family that is
/// preferred.
fn choose(named: &[IpAddr], own: &[IpAddr], prefers_v6: bool) -> Option<IpAddr> {
    let can_be = |ip: &&IpAddr| {
        let link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        !(ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || link_local)
            && own.contains(ip)
    };
    let usable = || named.iter().filter(can_be);
    usable()
        .find(|ip| ip.is_ipv6() == prefers_v6)
        .or_else(|| usable().next())
        .copied()
}

fn own_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return vec![];
    };
    let addresses = interfaces.filter_map(|interface| interface.address);
    addresses
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            let v6 = || address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()));
            v4.or_else(v6)
        })
        .collect()
}

/// The address of the default route of a family.
fn outward(v6: bool) -> Option<IpAddr> {
    // Of ranges for documentation: connecting a datagram socket only looks up the route.
    let (any, somewhere) = match v6 {
        true => ("[::]:0", "[2001:db8::1]:9"),
        false => ("0.0.0.0:0", "192.0.2.1:9"),
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(somewhere).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_an_address_of_the_machines_own() {
        let ips = |texts: &[&str]| -> Vec<IpAddr> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let own = ips(&[
            "127.0.0.1",
            "127.0.1.1",
            "10.0.2.15",
            "192.168.56.10",
            "169.254.1.1",
            "fd00::1",
            "fe80::1",
        ]);
        let check = |named: &[&str], prefers_v6: bool, expect: Option<&str>| {
            let got = choose(&ips(named), &own, prefers_v6).map(|ip| ip.to_string());
            assert_eq!(got.as_deref(), expect, "{named:?}");
        };
        // As Debian writes /etc/hosts: the node is not on its loopback.
        check(&["127.0.1.1"], false, None);
        check(
            &["127.0.1.1", "192.168.56.10"],
            false,
            Some("192.168.56.10"),
        );
        check(&["203.0.113.1"], false, None);
        check(&["169.254.1.1", "fe80::1"], false, None);
        check(&["fd00::1", "10.0.2.15"], false, Some("10.0.2.15"));
        check(&["10.0.2.15", "fd00::1"], true, Some("fd00::1"));
        check(&["fd00::1"], false, Some("fd00::1"));
    }
}
