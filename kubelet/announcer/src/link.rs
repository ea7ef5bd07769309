//! This node's links of Ethernet, and the news that they changed.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use futures::stream::Stream;
use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;

use crate::packet::Mac;

/// Upstream: `linux/if_arp.h`.
const ARPHRD_ETHER: u16 = 1;
/// Links, addresses of IPv4, addresses of IPv6. Upstream: `RTMGRP_*` in `linux/rtnetlink.h`.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number of it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its address.
    pub mac: Mac,
    /// It is up and has a carrier.
    pub running: bool,
    /// Its IP addresses with their subnets.
    pub addresses: Vec<IpNet>,
}

impl Link {
    /// Whether an address is in one of its subnets.
    pub fn reaches(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|net| net.contains(&address))
    }

    /// Its link-local address.
    pub fn link_local(&self) -> Option<Ipv6Addr> {
        self.addresses.iter().find_map(|net| match net.addr() {
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(v6),
            _ => None,
        })
    }
}

fn ip(storage: Option<&SockaddrStorage>) -> Option<IpAddr> {
    let storage = storage?;
    let v4 = storage.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| storage.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
}

/// All links of Ethernet but those to nowhere.
///
/// # Errors
/// The kernel's list cannot be read.
pub fn read() -> io::Result<Vec<Link>> {
    let all: Vec<_> = getifaddrs()?.collect();
    let mut links: BTreeMap<&str, Link> = BTreeMap::new();
    for interface in &all {
        let Some(hardware) = interface.address.as_ref().and_then(|a| a.as_link_addr()) else {
            continue;
        };
        let mac = Mac(hardware.addr().unwrap_or_default());
        let flags = interface.flags;
        if hardware.hatype() != ARPHRD_ETHER
            || !mac.is_host()
            || flags.intersects(InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_NOARP)
        {
            continue;
        }
        let link = Link {
            index: hardware.ifindex() as u32,
            name: interface.interface_name.clone(),
            mac,
            running: flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING),
            addresses: Vec::new(),
        };
        links.insert(&interface.interface_name, link);
    }
    for interface in &all {
        let Some(link) = links.get_mut(&*interface.interface_name) else {
            continue;
        };
        let (Some(address), Some(mask)) = (
            ip(interface.address.as_ref()),
            ip(interface.netmask.as_ref()),
        ) else {
            continue;
        };
        let prefix = ipnet::ip_mask_to_prefix(mask).ok();
        link.addresses
            .extend(prefix.and_then(|p| IpNet::new(address, p).ok()));
    }
    let mut links: Vec<Link> = links.into_values().collect();
    links.sort_by_key(|link| link.index);
    Ok(links)
}

/// An item whenever links or addresses changed; what changed is to be read.
///
/// # Errors
/// The kernel gives no socket.
pub fn changes() -> io::Result<impl Stream<Item = ()>> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    socket.socket_mut().bind(&SocketAddr::new(0, GROUPS))?;
    Ok(futures::stream::unfold(socket, |socket| async move {
        // An overrun (ENOBUFS) is news, too.
        if let Err(error) = socket.recv_from_full().await {
            tracing::debug!(%error, "News of links were lost");
        }
        Some(((), socket))
    }))
}
