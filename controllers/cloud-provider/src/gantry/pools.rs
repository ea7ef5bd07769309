//! The file of the provider `gantry`: pools of addresses, and where each is announced. Pure but for reading it.
//!
//! The cloud-controller-manager gives addresses out by it; `gantry-announcer` on the nodes announces no address that is in none of its
//! pools, whatever a Service's status says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use serde::Deserialize;

use crate::config::{ConfigError, read};

/// The class of Services (`spec.loadBalancerClass`) that are this provider's, beside those without one.
pub const CLASS: &str = "loadbalancer.gantry/announced";

/// Addresses from a first to a last, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    first: IpAddr,
    last: IpAddr,
}

impl Range {
    /// `a-b`, a CIDR, or one address.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let address = |text: &str| text.trim().parse::<IpAddr>();
        let range = if let Some((first, last)) = text.split_once('-') {
            match (address(first), address(last)) {
                (Ok(first), Ok(last)) => Self { first, last },
                _ => return Err("is no range of addresses"),
            }
        } else if text.contains('/') {
            let net: ipnet::IpNet = text.trim().parse().map_err(|_| "is no CIDR")?;
            if net.addr() != net.network() {
                return Err("has bits set behind its prefix");
            }
            Self {
                first: net.network(),
                last: net.broadcast(),
            }
        } else {
            let one = address(text).map_err(|_| "is no address, range or CIDR")?;
            Self {
                first: one,
                last: one,
            }
        };
        if range.first.is_ipv4() != range.last.is_ipv4() {
            return Err("begins and ends in different families");
        }
        if range.first > range.last {
            return Err("ends before it begins");
        }
        for end in [range.first, range.last] {
            if end.is_unspecified() || end.is_loopback() || end.is_multicast() {
                return Err("has addresses that no host can have");
            }
        }
        Ok(range)
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && self.first <= address && address <= self.last
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }

    /// Its first address that is not taken. The work is that of the taken ones it holds, however large the range is.
    fn first_free(&self, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        let mut next = self.first;
        for used in taken.range(self.first..=self.last) {
            if *used != next {
                break;
            }
            if next == self.last {
                return None;
            }
            next = successor(next)?;
        }
        Some(next)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// The address behind an address; `None` behind the last of its family.
fn successor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => u32::from(v4).checked_add(1).map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(v6) => u128::from(v6).checked_add(1).map(|n| IpAddr::V6(n.into())),
    }
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name, for the annotation and for messages.
    pub name: String,
    /// What it holds.
    pub ranges: Vec<Range>,
    /// Whether Services that ask for nothing get addresses of it.
    pub auto_assign: bool,
    /// Namespaces whose Services may have its addresses; empty for all.
    pub namespaces: BTreeSet<String>,
    /// Names of the nodes' links that its addresses are announced on. Empty: links with an address whose subnet holds the
    /// announced one.
    pub interfaces: BTreeSet<String>,
    /// Labels of the Nodes that announce its addresses; empty for all.
    pub nodes: BTreeMap<String, String>,
}

impl Pool {
    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
    }

    /// Whether Services of a namespace may have its addresses.
    pub fn admits(&self, namespace: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.contains(namespace)
    }

    /// Its first address of a family that is not taken.
    pub fn first_free(&self, v4: bool, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        let ranges = self.ranges.iter().filter(|r| r.first.is_ipv4() == v4);
        ranges.into_iter().find_map(|range| range.first_free(taken))
    }

    /// Whether it has any address of a family.
    pub fn has_family(&self, v4: bool) -> bool {
        self.ranges.iter().any(|r| r.first.is_ipv4() == v4)
    }
}

/// All pools, in the order in which they are tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pools(Vec<Pool>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    pools: Vec<FilePool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct FilePool {
    name: String,
    addresses: Vec<String>,
    #[serde(default = "yes")]
    auto_assign: bool,
    #[serde(default)]
    namespaces: BTreeSet<String>,
    #[serde(default)]
    interfaces: BTreeSet<String>,
    #[serde(default)]
    nodes: BTreeMap<String, String>,
    #[serde(default)]
    ip_mode: Option<String>,
}

fn yes() -> bool {
    true
}

impl Pools {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read, or is not right: the message names field and value.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read(path)?).map_err(|message| ConfigError::invalid(path, message))
    }

    /// Pools of a text in YAML.
    ///
    /// # Errors
    /// What is wrong, with field and value.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        if file.pools.is_empty() {
            return Err("pools: must not be empty".into());
        }
        let mut pools: Vec<Pool> = Vec::new();
        for (i, pool) in file.pools.into_iter().enumerate() {
            let pool = check(i, pool)?;
            for (j, other) in pools.iter().enumerate() {
                if other.name == pool.name {
                    return Err(format!("pools[{i}].name: {:?} is there twice", pool.name));
                }
                for (k, range) in pool.ranges.iter().enumerate() {
                    if other.ranges.iter().any(|o| o.overlaps(range)) {
                        return Err(format!(
                            "pools[{i}].addresses[{k}]: \"{range}\" overlaps with pools[{j}]"
                        ));
                    }
                }
            }
            pools.push(pool);
        }
        Ok(Self(pools))
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.0.iter()
    }

    /// The pool an address is in.
    pub fn of(&self, address: IpAddr) -> Option<&Pool> {
        self.iter().find(|pool| pool.contains(address))
    }

    /// The pool of a name.
    pub fn named(&self, name: &str) -> Option<&Pool> {
        self.iter().find(|pool| pool.name == name)
    }
}

fn check(i: usize, pool: FilePool) -> Result<Pool, String> {
    if pool.name.is_empty() {
        return Err(format!("pools[{i}].name: must not be empty"));
    }
    if pool.addresses.is_empty() {
        return Err(format!("pools[{i}].addresses: must not be empty"));
    }
    match pool.ip_mode.as_deref() {
        None | Some("VIP") => {}
        Some(mode) => {
            return Err(format!(
                "pools[{i}].ipMode: {mode:?} is not supported, must be \"VIP\": packets come to the nodes with the announced address, and kube-proxy takes them by it"
            ));
        }
    }
    let mut ranges: Vec<Range> = Vec::new();
    for (j, text) in pool.addresses.iter().enumerate() {
        let range = Range::parse(text)
            .map_err(|reason| format!("pools[{i}].addresses[{j}]: {text:?} {reason}"))?;
        if ranges.iter().any(|other| other.overlaps(&range)) {
            return Err(format!(
                "pools[{i}].addresses[{j}]: {text:?} overlaps with one before"
            ));
        }
        ranges.push(range);
    }
    Ok(Pool {
        name: pool.name,
        ranges,
        auto_assign: pool.auto_assign,
        namespaces: pool.namespaces,
        interfaces: pool.interfaces,
        nodes: pool.nodes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_and_what_is_free_of_them() {
        let pools = Pools::parse(
            "pools:\n- {name: a, addresses: [10.0.0.1-10.0.0.3, 10.0.1.0/31, 'fd00::/64', 255.255.255.255]}",
        )
        .unwrap();
        let pool = pools.named("a").unwrap();
        assert!(pool.contains(ip("10.0.0.3")) && !pool.contains(ip("10.0.0.4")));
        assert!(pool.contains(ip("fd00::ffff:1")) && !pool.contains(ip("fd00:0:0:1::")));
        let mut taken = BTreeSet::new();
        let mut given = Vec::new();
        while let Some(free) = pool.first_free(true, &taken) {
            taken.insert(free);
            given.push(free.to_string());
        }
        let expect = [
            "10.0.0.1",
            "10.0.0.2",
            "10.0.0.3",
            "10.0.1.0",
            "10.0.1.1",
            "255.255.255.255",
        ];
        assert_eq!(given, expect);
        // A gap is filled first, and other families are not in the way.
        taken.remove(&ip("10.0.0.2"));
        assert_eq!(pool.first_free(true, &taken), Some(ip("10.0.0.2")));
        assert_eq!(pool.first_free(false, &taken), Some(ip("fd00::")));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expect) in [
            ("pools: []", "pools: must not be empty"),
            (
                "pools: [{name: '', addresses: [10.0.0.1]}]",
                "pools[0].name: must not be empty",
            ),
            (
                "pools: [{name: a, addresses: []}]",
                "pools[0].addresses: must not be empty",
            ),
            (
                "pools: [{name: a, addresses: [10.0.0.1]}, {name: a, addresses: [10.0.0.2]}]",
                "pools[1].name: \"a\" is there twice",
            ),
            (
                "pools: [{name: a, addresses: [10.0.0.0/24]}, {name: b, addresses: [10.0.0.7]}]",
                "pools[1].addresses[0]: \"10.0.0.7\" overlaps with pools[0]",
            ),
            (
                "pools: [{name: a, addresses: [10.0.0.1-10.0.0.9, 10.0.0.9-10.0.0.12]}]",
                "pools[0].addresses[1]: \"10.0.0.9-10.0.0.12\" overlaps with one before",
            ),
            (
                "pools: [{name: a, addresses: [10.0.0.1/24]}]",
                "pools[0].addresses[0]: \"10.0.0.1/24\" has bits set behind its prefix",
            ),
            (
                "pools: [{name: a, addresses: [10.0.0.9-10.0.0.1]}]",
                "\"10.0.0.9-10.0.0.1\" ends before it begins",
            ),
            (
                "pools: [{name: a, addresses: ['10.0.0.9-fd00::1']}]",
                "begins and ends in different families",
            ),
            (
                "pools: [{name: a, addresses: [224.0.0.1]}]",
                "no host can have",
            ),
            (
                "pools: [{name: a, addresses: [x]}]",
                "pools[0].addresses[0]: \"x\" is no address, range or CIDR",
            ),
            (
                "pools: [{name: a, addresses: [10.0.0.1], ipMode: Proxy}]",
                "pools[0].ipMode: \"Proxy\" is not supported",
            ),
            ("pools: [{name: a, addresses: [10.0.0.1], bgp: {}}]", "bgp"),
            ("peers: []", "peers"),
        ] {
            let error = Pools::parse(text).expect_err(text);
            assert!(error.contains(expect), "{text}: {error}");
        }
    }
}
