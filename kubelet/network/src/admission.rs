//! Which other nodes' ranges of pods are believed. Pure.
//!
//! Whoever may write a Node may write any `spec.podCIDRs` into it (a bootstrap token makes a Node of its own), and a route for
//! them draws the traffic of this node's pods there. So a node with a range that is not a pod network's, or is somebody
//! else's, gets no routes at all.
//!
//! DIFFERS: of upstream's network plugins those that take ranges from Nodes (flannel, kindnet) set a route for whatever they find.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::plan::{Mac, tunnel_mac};
use crate::types::Peer;

/// What the ranges of others are held to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Own<'a> {
    /// This node's ranges.
    pub pod_cidrs: &'a [IpNet],
    /// The cluster's, where an administrator said which.
    pub cluster_cidrs: &'a [IpNet],
    /// Addresses of this node, each with the network of its link; none of pods' links.
    pub networks: &'a [IpNet],
}

/// Why a node has no routes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// No pod can have such addresses.
    NotForPods,
    NotOfCluster,
    /// The node's own ranges are private ones.
    Public,
    OfThisNode,
    /// It holds this address of a node.
    OfNode(IpAddr),
    /// Hosts on one of the node's links have such addresses.
    OnLink(IpNet),
    /// An older Node has it, or a part of it.
    Taken(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotForPods => f.write_str("not addresses that pods can have"),
            Self::NotOfCluster => f.write_str("not within --pod-network-cidr"),
            Self::Public => f.write_str(
                "public addresses, where this node's pods have private ones and no --pod-network-cidr is given",
            ),
            Self::OfThisNode => f.write_str("overlaps this node's own podCIDRs"),
            Self::OfNode(address) => write!(f, "holds {address}, the address of a node"),
            Self::OnLink(network) => write!(f, "overlaps {network}, the network of one of this node's links"),
            Self::Taken(node) => write!(f, "overlaps podCIDRs of the older node {node}"),
        }
    }
}

/// A range that is not believed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refused {
    pub node: String,
    pub range: IpNet,
    pub why: Refusal,
}

/// Whether each of `peers` is believed, in their order, and what of those is refused that are not.
pub fn admit(own: &Own<'_>, peers: &[Peer]) -> (Vec<bool>, BTreeSet<Refused>) {
    let mut by_age: Vec<usize> = (0..peers.len()).collect();
    by_age.sort_by_key(|&at| (peers[at].created_unix_s, &peers[at].node));
    let addresses = own.networks.iter().map(IpNet::addr);
    let nodes: BTreeSet<IpAddr> = addresses
        .chain(peers.iter().map(|peer| peer.internal_ip))
        .collect();
    let (mut believed, mut refused) = (vec![false; peers.len()], BTreeSet::new());
    let mut taken = Taken::default();
    for at in by_age {
        let peer = &peers[at];
        let of_range = |range: &IpNet| {
            let why = own.refusal(range);
            why.or_else(|| holds_a_node(range, &nodes))
                .or_else(|| taken.refusal(range))
                .map(|why| (*range, why))
        };
        let wrong = peer.pod_cidrs.iter().find_map(of_range);
        let wrong = wrong.or_else(|| taken.mac_refusal(own, peer));
        match wrong {
            None => {
                believed[at] = true;
                taken.take(peer);
            }
            Some((range, why)) => {
                let node = peer.node.clone();
                refused.insert(Refused { node, range, why });
            }
        }
    }
    (believed, refused)
}

impl Own<'_> {
    fn refusal(&self, range: &IpNet) -> Option<Refusal> {
        if !is_for_pods(range) {
            return Some(Refusal::NotForPods);
        }
        if self.pod_cidrs.iter().any(|own| overlap(own, range)) {
            return Some(Refusal::OfThisNode);
        }
        if !self.cluster_cidrs.is_empty() {
            let mut cluster = self.cluster_cidrs.iter();
            return (!cluster.any(|all| all.contains(range))).then_some(Refusal::NotOfCluster);
        }
        let mut of_family = (self.pod_cidrs.iter())
            .filter(|own| own.addr().is_ipv4() == range.addr().is_ipv4())
            .peekable();
        if of_family.peek().is_some() && of_family.all(is_private) && !is_private(range) {
            return Some(Refusal::Public);
        }
        // Where the node's own pods are within the network of a link, those of others are too.
        let apart = |net: &&IpNet| !self.pod_cidrs.iter().any(|own| overlap(own, net));
        let mut networks = self.networks.iter().filter(apart);
        let network = networks.find(|net| overlap(net, range))?;
        Some(Refusal::OnLink(network.trunc()))
    }
}

/// Ranges and tunnels' ends of those that are believed.
#[derive(Default)]
struct Taken<'p> {
    /// By the first address; none overlaps another: the last address, and whose it is.
    ranges: BTreeMap<IpAddr, (IpAddr, &'p str)>,
    macs: BTreeMap<Mac, &'p str>,
}

impl<'p> Taken<'p> {
    fn refusal(&self, range: &IpNet) -> Option<Refusal> {
        let (_, (last, node)) = self.ranges.range(..=range.broadcast()).next_back()?;
        let same_family = last.is_ipv4() == range.addr().is_ipv4();
        (same_family && *last >= range.network()).then(|| Refusal::Taken((*node).to_owned()))
    }

    /// Two nodes with one address of the tunnel's are one to the kernel.
    fn mac_refusal(&self, own: &Own<'_>, peer: &Peer) -> Option<(IpNet, Refusal)> {
        let first = peer.pod_cidrs.first()?;
        let mac = tunnel_mac(first);
        if own.pod_cidrs.first().map(tunnel_mac) == Some(mac) {
            return Some((*first, Refusal::OfThisNode));
        }
        let node = self.macs.get(&mac)?;
        Some((*first, Refusal::Taken((*node).to_owned())))
    }

    fn take(&mut self, peer: &'p Peer) {
        for range in &peer.pod_cidrs {
            let of = (range.broadcast(), &*peer.node);
            self.ranges.insert(range.network(), of);
        }
        if let Some(first) = peer.pod_cidrs.first() {
            self.macs.insert(tunnel_mac(first), &peer.node);
        }
    }
}

fn holds_a_node(range: &IpNet, nodes: &BTreeSet<IpAddr>) -> Option<Refusal> {
    let mut within = nodes.range(range.network()..=range.broadcast());
    within.next().map(|address| Refusal::OfNode(*address))
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// Unicast addresses of some reach: no whole family, no loopback, link-local or multicast.
fn is_for_pods(range: &IpNet) -> bool {
    const NOT: [&str; 9] = [
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/3",
        "::/127",
        "::ffff:0:0/96",
        "64:ff9b::/96",
        "fe80::/10",
        "ff00::/8",
    ];
    !any_overlaps(&NOT, range)
}

/// RFC 1918, RFC 6598, RFC 4193.
fn is_private(range: &IpNet) -> bool {
    const PRIVATE: [&str; 5] = [
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "fc00::/7",
    ];
    parsed(&PRIVATE).any(|private| private.contains(range))
}

fn any_overlaps(these: &[&str], range: &IpNet) -> bool {
    parsed(these).any(|one| overlap(&one, range))
}

fn parsed(texts: &[&str]) -> impl Iterator<Item = IpNet> {
    texts
        .iter()
        .map(|text| text.parse().expect("constants are ranges"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn peer(node: &str, created_unix_s: i64, address: &str, ranges: &[&str]) -> Peer {
        Peer {
            node: node.to_owned(),
            created_unix_s,
            internal_ip: address.parse().unwrap(),
            pod_cidrs: nets(ranges),
        }
    }

    /// What is said of one other node by a node 192.0.2.1/24 with pods in 10.244.1.0/24 and fd00:1::/64.
    fn refusal(cluster: &[&str], ranges: &[&str]) -> Option<Refusal> {
        let own = Own {
            pod_cidrs: &nets(&["10.244.1.0/24", "fd00:1::/64"]),
            cluster_cidrs: &nets(cluster),
            networks: &nets(&[
                "127.0.0.1/8",
                "192.0.2.1/24",
                "10.88.0.1/16",
                "2001:db8::1/64",
            ]),
        };
        let peers = [peer("other", 2, "192.0.2.2", ranges)];
        let (believed, refused) = admit(&own, &peers);
        assert_eq!(believed, [refused.is_empty()]);
        refused.into_iter().next().map(|refused| refused.why)
    }

    #[test]
    fn a_range_is_a_pod_networks() {
        let check = |cluster: &[&str], ranges: &[&str], expect| {
            assert_eq!(refusal(cluster, ranges), expect, "{cluster:?} {ranges:?}");
        };
        let address = |text: &str| text.parse().unwrap();
        check(&[], &["10.244.2.0/24"], None);
        check(&[], &["10.244.2.0/24", "fd00:2::/64"], None);
        check(&[], &["100.64.3.0/24"], None);
        check(&[], &["0.0.0.0/0"], Some(Refusal::NotForPods));
        check(&[], &["::/0"], Some(Refusal::NotForPods));
        check(&[], &["169.254.169.0/24"], Some(Refusal::NotForPods));
        check(&[], &["240.0.0.0/8"], Some(Refusal::NotForPods));
        check(&[], &["::ffff:10.0.0.0/104"], Some(Refusal::NotForPods));
        check(
            &[],
            &["10.244.2.0/24", "fe80::/64"],
            Some(Refusal::NotForPods),
        );
        // An eighth of the Internet, and a part of it.
        check(&[], &["64.0.0.0/3"], Some(Refusal::Public));
        check(&[], &["198.51.100.0/24"], Some(Refusal::Public));
        check(&[], &["2001:db8:1::/64"], Some(Refusal::Public));
        check(&[], &["10.244.1.128/25"], Some(Refusal::OfThisNode));
        check(&[], &["10.244.0.0/16"], Some(Refusal::OfThisNode));
        check(&[], &["fd00:1::/80"], Some(Refusal::OfThisNode));
        let on_link = Refusal::OnLink("10.88.0.0/16".parse().unwrap());
        check(&[], &["10.88.5.0/24"], Some(on_link));

        // An administrator's word goes before what is only likely.
        let cluster = ["10.244.0.0/16", "198.51.100.0/24"];
        check(&cluster, &["198.51.100.0/26"], None);
        check(&cluster, &["10.244.2.0/24"], None);
        check(&cluster, &["10.245.2.0/24"], Some(Refusal::NotOfCluster));
        check(&cluster, &["10.244.1.0/24"], Some(Refusal::OfThisNode));
        let cluster = ["192.0.2.0/24", "10.0.0.0/8"];
        check(
            &cluster,
            &["192.0.2.0/25"],
            Some(Refusal::OfNode(address("192.0.2.1"))),
        );
        check(
            &cluster,
            &["192.0.2.2/32"],
            Some(Refusal::OfNode(address("192.0.2.2"))),
        );
        check(&cluster, &["10.88.5.0/24"], None);
    }

    /// Then its links' network says nothing of what is a pod's.
    #[test]
    fn pods_may_be_within_the_network_of_the_nodes() {
        let own = Own {
            pod_cidrs: &nets(&["10.244.1.0/24"]),
            cluster_cidrs: &[],
            networks: &nets(&["10.0.0.1/8"]),
        };
        let peers = [peer("b", 1, "10.0.0.2", &["10.244.2.0/24"])];
        assert_eq!(admit(&own, &peers).0, [true]);
    }

    #[test]
    fn the_older_node_keeps_its_range() {
        let own = Own {
            pod_cidrs: &nets(&["10.244.1.0/24"]),
            ..Own::default()
        };
        let peers = [
            peer("thief", 9, "192.0.2.9", &["10.244.2.64/26"]),
            peer("greedy", 8, "192.0.2.8", &["10.244.2.0/23"]),
            peer("next", 7, "192.0.2.7", &["10.244.3.0/24"]),
            peer("old", 3, "192.0.2.3", &["10.244.2.0/24"]),
            peer("same-time", 3, "192.0.2.4", &["10.244.2.0/24"]),
        ];
        let (believed, refused) = admit(&own, &peers);
        assert_eq!(believed, [false, false, true, true, false]);
        let told: Vec<String> = refused
            .iter()
            .map(|r| format!("{} {}: {}", r.node, r.range, r.why))
            .collect();
        assert_eq!(
            told,
            [
                "greedy 10.244.2.0/23: overlaps podCIDRs of the older node next",
                "same-time 10.244.2.0/24: overlaps podCIDRs of the older node old",
                "thief 10.244.2.64/26: overlaps podCIDRs of the older node old",
            ]
        );
    }

    /// Ranges of IPv6 are hashed into the tunnel's addresses: whoever finds another range of the same hash gets no traffic by it.
    #[test]
    fn an_address_of_the_tunnel_has_one_node() {
        let range = |n: u64| {
            let bits = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            format!(
                "fd00:{:x}:{:x}:{:x}::/64",
                bits >> 48,
                bits >> 32 & 0xffff,
                bits >> 16 & 0xffff
            )
        };
        let mut seen = BTreeMap::new();
        let pair = (0..10_000_000).find_map(|n| {
            let before = seen.insert(tunnel_mac(&range(n).parse().unwrap()), n)?;
            Some((before, n))
        });
        let (one, other) = pair.expect("32 bits are soon met twice");
        let peers = [
            peer("one", 1, "192.0.2.2", &[&range(one)]),
            peer("other", 2, "192.0.2.3", &[&range(other)]),
        ];
        let (believed, refused) = admit(&Own::default(), &peers);
        assert_eq!(believed, [true, false]);
        let why = refused.into_iter().next().unwrap().why;
        assert_eq!(why, Refusal::Taken("one".to_owned()));
    }
}
