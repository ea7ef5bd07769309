//! A pod's veth pair and what is inside its network namespace.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use ipnet::IpNet;

use crate::netlink::Netlink;
use crate::plan::{ALIAS_PREFIX, Change, Route, Target};
use crate::store::SandboxRecord;
use crate::{NetworkError, bandwidth, ipam, namespace};

/// The pod's end; fixed by long custom (CNI's CNI_IFNAME too).
pub const POD_LINK: &str = "eth0";

/// The name of the node's end: a hash of the sandbox's id in the 15 bytes that a name may have.
pub fn link_name(sandbox_id: &str) -> String {
    let hash = sandbox_id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("veth{:011x}", hash >> 20)
}

/// Makes the pair anew and brings it up on both sides. The alias comes last: with it, the pair is whole.
pub async fn connect(
    netlink: &Netlink,
    record: &SandboxRecord,
    pod_cidrs: &[IpNet],
    mtu: u32,
) -> Result<(), NetworkError> {
    let in_namespace = |source| NetworkError::Namespace {
        sandbox_id: record.sandbox_id.clone(),
        path: record.netns.clone(),
        source,
    };
    let namespace = File::open(&record.netns).map_err(in_namespace)?;
    // What a crash left half made. The pod's end goes with it.
    netlink.delete_link(&record.link).await?;
    netlink
        .create_veth(&record.link, POD_LINK, namespace.as_raw_fd(), mtu)
        .await?;
    let index = netlink.index(&record.link).await?.ok_or_else(|| {
        NetworkError::io(
            format!("link {}", record.link),
            std::io::Error::from_raw_os_error(libc::ENODEV),
        )
    })?;

    let pairs: Vec<(IpAddr, IpAddr)> = record
        .addresses
        .iter()
        .filter_map(|address| {
            let range = pod_cidrs.iter().find(|range| range.contains(address))?;
            Some((*address, ipam::gateway(range)))
        })
        .collect();
    if pairs.iter().any(|(address, _)| address.is_ipv4()) {
        // Strict: a pod sends with its own address. `rules.rs` does the same where "all" is set to loose, and for IPv6.
        write_sysctl(&format!("net/ipv4/conf/{}/rp_filter", record.link), "1")?;
        allow_localhost(&record.link)?;
    }
    for (address, gateway) in &pairs {
        netlink.add_address(index, *gateway).await?;
        let target = Target::Link(record.link.clone());
        netlink
            .carry_out(&Change::AddRoute(Route {
                destination: IpNet::from(*address),
                target,
            }))
            .await?;
    }
    if let Some(rate) = record.bandwidth.ingress_bits_per_second {
        bandwidth::limit(netlink.handle(), index, rate).await?;
    }
    let egress = record.bandwidth.egress_bits_per_second;
    namespace::run_in(&record.netns, move || inside(pairs, egress))
        .await
        .map_err(in_namespace)??;
    netlink
        .set_alias(index, &format!("{ALIAS_PREFIX}{}", record.sandbox_id))
        .await
}

/// The pod's side: loopback, address, routes.
async fn inside(pairs: Vec<(IpAddr, IpAddr)>, egress: Option<u64>) -> Result<(), NetworkError> {
    let netlink = Netlink::open()?;
    set_loopback_up(&netlink).await?;
    let missing = || NetworkError::io(POD_LINK, std::io::Error::from_raw_os_error(libc::ENODEV));
    let index = netlink.index(POD_LINK).await?.ok_or_else(missing)?;
    for (address, _) in &pairs {
        netlink.add_address(index, *address).await?;
    }
    if let Some(rate) = egress {
        bandwidth::limit(netlink.handle(), index, rate).await?;
    }
    netlink.set_up(index).await?;
    for (_, gateway) in &pairs {
        netlink.add_default_route(index, *gateway).await?;
    }
    Ok(())
}

/// Changes the MTU of both ends of a pod's link.
pub async fn set_mtu(
    netlink: &Netlink,
    record: &SandboxRecord,
    mtu: u32,
) -> Result<(), NetworkError> {
    let missing = |link: &str| {
        NetworkError::io(
            format!("link {link}"),
            std::io::Error::from_raw_os_error(libc::ENODEV),
        )
    };
    namespace::run_in(&record.netns, move || async move {
        let netlink = Netlink::open()?;
        let index = netlink.index(POD_LINK).await?;
        let index = index.ok_or_else(|| missing(POD_LINK))?;
        netlink.set_mtu(index, mtu).await
    })
    .await
    .map_err(|source| NetworkError::Namespace {
        sandbox_id: record.sandbox_id.clone(),
        path: record.netns.clone(),
        source,
    })??;
    let index = netlink.index(&record.link).await?;
    let index = index.ok_or_else(|| missing(&record.link))?;
    netlink.set_mtu(index, mtu).await
}

/// Brings `lo` up, in the namespace of the netlink socket.
pub async fn set_loopback_up(netlink: &Netlink) -> Result<(), NetworkError> {
    match netlink.index("lo").await? {
        Some(index) => netlink.set_up(index).await,
        None => Ok(()),
    }
}

/// Lets 127.0.0.1 on the node reach the pod's host ports. Guarded in `rules.rs`.
fn allow_localhost(link: &str) -> Result<(), NetworkError> {
    write_sysctl(&format!("net/ipv4/conf/{link}/route_localnet"), "1")
}

/// Sets a sysctl of this process's network namespace, if it differs.
pub fn write_sysctl(name: &str, value: &str) -> Result<(), NetworkError> {
    let path = format!("/proc/sys/{name}");
    let current =
        std::fs::read_to_string(&path).map_err(|e| NetworkError::io(format!("read {path}"), e))?;
    if current.trim() == value {
        return Ok(());
    }
    std::fs::write(&path, value)
        .map_err(|e| NetworkError::io(format!("write {value} to {path}"), e))
}
