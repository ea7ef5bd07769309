//! What the node's links, routes, addresses and neighbours should be, and what must change. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::ipam;
use crate::rules::POD_LINK_GROUP;
use crate::store::SandboxRecord;

/// Links of ours are known again by this beginning of their alias; the sandbox's id follows.
pub const ALIAS_PREFIX: &str = "gantry:";
/// The node's end of the tunnel to nodes on other links.
pub const VXLAN: &str = "gantry-vxlan";
/// What VXLAN over IPv4 adds to a packet: IP 20, UDP 8, VXLAN 8, inner Ethernet 14 bytes.
const VXLAN_OVERHEAD_BYTES: u32 = 50;
/// The same over IPv6, whose header has 40 bytes.
const VXLAN6_OVERHEAD_BYTES: u32 = 70;

pub type Mac = [u8; 6];

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// To whoever is at the other end of this link.
    Link(String),
    /// By a neighbour on one of the node's own links.
    Via(IpAddr),
    /// Through the VXLAN, to the node with this address in it.
    Tunnel(IpAddr),
    /// Nobody has these addresses: say so at once.
    Unreachable,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub destination: IpNet,
    pub target: Target,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    pub id: u32,
    pub port: u16,
    pub mac: Mac,
    pub mtu: u32,
}

/// How another node is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is on one of this node's own links.
    OnLink,
    Tunnel,
}

/// Another node, and the way to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedPeer {
    pub internal_ip: IpAddr,
    pub pod_cidrs: Vec<IpNet>,
    pub way: Way,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    pub vxlan: Option<Vxlan>,
    pub addresses: BTreeSet<(String, IpAddr)>,
    pub routes: BTreeSet<Route>,
    /// On the VXLAN: who has this address.
    pub neighbours: BTreeSet<(IpAddr, Mac)>,
    /// On the VXLAN: at which node this MAC address is.
    pub forwarding: BTreeSet<(Mac, IpAddr)>,
    /// The sandboxes that may have links.
    pub sandboxes: BTreeSet<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub alias: String,
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub group: u32,
}

/// The largest packets that fit: (those of pods, those of the tunnel).
///
/// `node` is the MTU of the node's own way out; `configured` is what an administrator wants pods to have, who has
/// counted a tunnel already. Without one, pods have the tunnel's as soon as another node is reached by it.
pub fn mtus(node: u32, configured: Option<u32>, peers: &[ResolvedPeer]) -> (u32, u32) {
    if let Some(mtu) = configured {
        return (mtu, mtu);
    }
    let mut tunnelled = peers
        .iter()
        .filter(|peer| peer.way == Way::Tunnel)
        .peekable();
    let in_use = tunnelled.peek().is_some();
    let overhead = if tunnelled.any(|peer| peer.internal_ip.is_ipv6()) {
        VXLAN6_OVERHEAD_BYTES
    } else {
        VXLAN_OVERHEAD_BYTES
    };
    let tunnel = node.saturating_sub(overhead);
    (if in_use { tunnel } else { node }, tunnel)
}

/// Pods whose links let larger packets in than now fit: they were connected before there was a tunnel.
pub fn too_wide<'r>(
    records: &'r [SandboxRecord],
    observed: &Observed,
    pod_mtu: u32,
) -> Vec<&'r SandboxRecord> {
    records
        .iter()
        .filter(|record| {
            record.connected
                && observed
                    .links
                    .get(&record.link)
                    .is_some_and(|link| link.mtu > pod_mtu)
        })
        .collect()
}

/// What the kernel has of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    pub links: BTreeMap<String, Link>,
    pub addresses: BTreeSet<(String, IpAddr)>,
    /// Addresses on links that are not ours, each with its link's network.
    pub networks: Vec<IpNet>,
    pub routes: BTreeSet<Route>,
    pub neighbours: BTreeSet<(IpAddr, Mac)>,
    pub forwarding: BTreeSet<(Mac, IpAddr)>,
}

/// One step. In the order in which [`diff`] gives them they can be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    DeleteLink(String),
    /// Links of an earlier version are in no group yet, and packets that come in there are not looked at.
    SetPodGroup(String),
    CreateVxlan(Vxlan),
    AddAddress {
        link: String,
        address: IpAddr,
    },
    DeleteRoute(Route),
    DeleteNeighbour(IpAddr, Mac),
    DeleteForwarding(Mac, IpAddr),
    AddNeighbour(IpAddr, Mac),
    AddForwarding(Mac, IpAddr),
    AddRoute(Route),
}

/// The MAC address of a node's end of the VXLAN: computed from its first pod range, so that nodes need not tell
/// each other. Locally administered, unicast.
pub fn tunnel_mac(pod_cidr: &IpNet) -> Mac {
    let hash = match pod_cidr.network() {
        IpAddr::V4(v4) => u32::from(v4),
        IpAddr::V6(v6) => v6.segments().iter().fold(0x811c_9dc5, |hash: u32, part| {
            (hash ^ u32::from(*part)).wrapping_mul(16_777_619)
        }),
    };
    let [a, b, c, d] = hash.to_be_bytes();
    [0x0a, 0x58, a, b, c, d]
}

/// What there should be.
///
/// `records` are the sandboxes of this node that we (not CNI plugins) connect.
pub fn desired<'r>(
    pod_cidrs: &[IpNet],
    peers: &[ResolvedPeer],
    records: impl IntoIterator<Item = &'r SandboxRecord>,
    vxlan: (u32, u16, u32),
) -> Desired {
    let mut desired = Desired::default();
    for range in pod_cidrs {
        desired.routes.insert(Route {
            destination: range.trunc(),
            target: Target::Unreachable,
        });
    }
    for record in records {
        desired.sandboxes.insert(record.sandbox_id.clone());
        for address in &record.addresses {
            if let Some(range) = pod_cidrs.iter().find(|range| range.contains(address)) {
                desired
                    .addresses
                    .insert((record.link.clone(), ipam::gateway(range)));
            }
            let target = Target::Link(record.link.clone());
            desired.routes.insert(Route {
                destination: IpNet::from(*address),
                target,
            });
        }
    }
    for peer in peers {
        let own = |range: &&IpNet| !pod_cidrs.contains(range);
        match peer.way {
            Way::OnLink => {
                for range in peer.pod_cidrs.iter().filter(own) {
                    // A route's gateway must be of its own family; IPv4 ranges of an IPv6 node go by the tunnel.
                    if range.addr().is_ipv4() == peer.internal_ip.is_ipv4() {
                        let target = Target::Via(peer.internal_ip);
                        desired.routes.insert(Route {
                            destination: range.trunc(),
                            target,
                        });
                    } else {
                        tunnel(&mut desired, peer, range);
                    }
                }
            }
            Way::Tunnel => peer
                .pod_cidrs
                .iter()
                .filter(own)
                .for_each(|range| tunnel(&mut desired, peer, range)),
        }
    }
    if let Some(first) = pod_cidrs.first()
        && !desired.forwarding.is_empty()
    {
        let (id, port, mtu) = vxlan;
        desired.vxlan = Some(Vxlan {
            id,
            port,
            mac: tunnel_mac(first),
            mtu,
        });
        for range in pod_cidrs {
            desired
                .addresses
                .insert((VXLAN.to_owned(), range.network()));
        }
    }
    desired
}

fn tunnel(desired: &mut Desired, peer: &ResolvedPeer, range: &IpNet) {
    let Some(first) = peer.pod_cidrs.first() else {
        return;
    };
    let mac = tunnel_mac(first);
    let destination = range.trunc();
    desired.routes.insert(Route {
        destination,
        target: Target::Tunnel(range.network()),
    });
    desired.neighbours.insert((range.network(), mac));
    desired.forwarding.insert((mac, peer.internal_ip));
}

/// The steps from what is to what should be. Nothing that is right is touched.
pub fn diff(desired: &Desired, observed: &Observed) -> Vec<Change> {
    let mut changes = Vec::new();
    for (name, link) in &observed.links {
        if let Some(sandbox) = link.alias.strip_prefix(ALIAS_PREFIX) {
            if !desired.sandboxes.contains(sandbox) {
                changes.push(Change::DeleteLink(name.clone()));
            } else if link.group != POD_LINK_GROUP {
                changes.push(Change::SetPodGroup(name.clone()));
            }
        }
    }
    let existing = observed.links.get(VXLAN);
    let keep = match (&desired.vxlan, existing) {
        (Some(wanted), Some(link)) => link.mac == Some(wanted.mac) && link.mtu == wanted.mtu,
        (None, None) => true,
        _ => false,
    };
    if !keep {
        if existing.is_some() {
            changes.push(Change::DeleteLink(VXLAN.to_owned()));
        }
        changes.extend(desired.vxlan.clone().map(Change::CreateVxlan));
    }
    // With the VXLAN goes what was on it.
    let gone = |link: &str| link == VXLAN && !keep;
    let there =
        |link: &str| link == VXLAN && desired.vxlan.is_some() || observed.links.contains_key(link);

    for (link, address) in &desired.addresses {
        let has = observed.addresses.contains(&(link.clone(), *address)) && !gone(link);
        if !has && there(link) {
            changes.push(Change::AddAddress {
                link: link.clone(),
                address: *address,
            });
        }
    }
    let on_vxlan = |route: &Route| matches!(route.target, Target::Tunnel(_));
    for route in observed.routes.difference(&desired.routes) {
        let deleted_with_link = match &route.target {
            Target::Link(link) => changes.contains(&Change::DeleteLink(link.clone())),
            Target::Tunnel(_) => !keep,
            Target::Via(_) | Target::Unreachable => false,
        };
        if !deleted_with_link {
            changes.push(Change::DeleteRoute(route.clone()));
        }
    }
    if keep {
        let gone = observed.neighbours.difference(&desired.neighbours);
        changes.extend(gone.map(|(address, mac)| Change::DeleteNeighbour(*address, *mac)));
        let gone = observed.forwarding.difference(&desired.forwarding);
        changes.extend(gone.map(|(mac, node)| Change::DeleteForwarding(*mac, *node)));
    }
    for pair in &desired.neighbours {
        if !keep || !observed.neighbours.contains(pair) {
            changes.push(Change::AddNeighbour(pair.0, pair.1));
        }
    }
    for pair in &desired.forwarding {
        if !keep || !observed.forwarding.contains(pair) {
            changes.push(Change::AddForwarding(pair.0, pair.1));
        }
    }
    for route in &desired.routes {
        let has = observed.routes.contains(route) && (keep || !on_vxlan(route));
        let possible = match &route.target {
            Target::Link(link) => there(link),
            _ => true,
        };
        if !has && possible {
            changes.push(Change::AddRoute(route.clone()));
        }
    }
    changes
}

#[cfg(test)]
mod tests;
