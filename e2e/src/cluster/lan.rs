//! The network the machines share: a bridge in a namespace of its own, a veth to each node.

use std::process::Command;

use anyhow::Result;

use super::layout::{self, Layout, netns_path};
use crate::step::output;

/// The switch.
pub const BRIDGE: &str = "lan0";

/// Makes the control plane's namespace with the bridge.
///
/// # Errors
/// A link cannot be made.
pub fn create(layout: &Layout) -> Result<()> {
    let lan = layout.lan_netns();
    ip(None, &["netns", "add", &lan])?;
    ip(Some(&lan), &["link", "set", "lo", "up"])?;
    ip(Some(&lan), &["link", "add", BRIDGE, "type", "bridge"])?;
    ip(
        Some(&lan),
        &[
            "addr",
            "add",
            &format!("{}/24", layout::CONTROL_PLANE_IP),
            "dev",
            BRIDGE,
        ],
    )?;
    for member in 0..layout::MAX_CONTROL_PLANES {
        let address = format!("{}/24", layout::member_ip(member));
        ip(Some(&lan), &["addr", "add", &address, "dev", BRIDGE])?;
    }
    ip(Some(&lan), &["link", "set", BRIDGE, "up"])?;
    sysctl(&lan, &["net.ipv4.ip_forward=1"])
}

/// Makes a node's namespace and its link to the bridge.
///
/// # Errors
/// A link cannot be made.
pub fn add_node(layout: &Layout, index: u8) -> Result<()> {
    let (lan, name) = (layout.lan_netns(), layout::node_name(index));
    let node = layout.node_netns(&name);
    ip(None, &["netns", "add", &node])?;
    ip(Some(&node), &["link", "set", "lo", "up"])?;
    let port = format!("port{index}");
    ip(
        Some(&lan),
        &[
            "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &node,
        ],
    )?;
    ip(Some(&lan), &["link", "set", &port, "master", BRIDGE, "up"])?;
    ip(
        Some(&node),
        &[
            "addr",
            "add",
            &format!("{}/24", layout::node_ip(index)),
            "dev",
            "eth0",
        ],
    )?;
    ip(Some(&node), &["link", "set", "eth0", "up"])?;
    ip(
        Some(&node),
        &[
            "route",
            "add",
            "default",
            "via",
            &layout::CONTROL_PLANE_IP.to_string(),
        ],
    )?;
    sysctl(
        &node,
        &[
            "net.ipv4.ip_forward=1",
            "net.ipv4.conf.all.rp_filter=0",
            "net.ipv4.conf.default.rp_filter=0",
            "net.bridge.bridge-nf-call-iptables=1",
            "net.ipv4.ip_unprivileged_port_start=1024",
        ],
    )
}

/// Cuts or mends a node's cable.
///
/// # Errors
/// The link cannot be set.
pub fn set_cable(layout: &Layout, index: u8, plugged: bool) -> Result<()> {
    let state = if plugged { "up" } else { "down" };
    ip(
        Some(&layout.lan_netns()),
        &["link", "set", &format!("port{index}"), state],
    )
}

/// Tells the control plane's machine (and, with upstream's kubelets, the other nodes) where a node's pods are.
///
/// # Errors
/// The route cannot be set.
pub fn route_pods(netns: &str, pod_cidr: &str, node_ip: &str) -> Result<()> {
    ip(Some(netns), &["route", "replace", pod_cidr, "via", node_ip])
}

/// Removes every namespace of the cluster, and with them their links.
///
/// # Errors
/// A namespace cannot be removed.
pub fn destroy(layout: &Layout) -> Result<()> {
    let prefix = format!("{}-", layout.name);
    let Ok(entries) = std::fs::read_dir("/run/netns") else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = name.strip_prefix(&prefix).is_some_and(|rest| {
            rest == "lan"
                || rest
                    .strip_prefix("node-")
                    .is_some_and(|index| index.parse::<u8>().is_ok())
        });
        if ours {
            ip(None, &["netns", "delete", &name])?;
        }
    }
    Ok(())
}

/// Runs `ip`, in a namespace if one is named. `nsenter`, not `ip -n`/`ip netns exec`: the latter
/// remounts /sys and hides the cgroups.
pub fn ip(netns: Option<&str>, args: &[&str]) -> Result<()> {
    let mut command = match netns {
        Some(netns) => {
            let mut command = Command::new("nsenter");
            command
                .arg(format!("--net={}", netns_path(netns).display()))
                .args(["--", "ip"]);
            command
        }
        None => Command::new("ip"),
    };
    output(command.args(args)).map(drop)
}

fn sysctl(netns: &str, settings: &[&str]) -> Result<()> {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", netns_path(netns).display()))
        .args(["--", "sysctl", "-qw"]);
    output(command.args(settings)).map(drop)
}
