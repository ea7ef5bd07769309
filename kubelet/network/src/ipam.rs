//! Which address a new pod gets. Pure; the reservations are the sandbox records on disk.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The address that the node itself has in a range of pods: the first one after the network's.
pub fn gateway(range: &IpNet) -> IpAddr {
    from_number(range, number(range.network()) + 1)
}

/// The next free address of the range after `last`, going round, so that an address rests as long as it can
/// before it is used again. `None`: the range is full.
pub fn allocate(range: &IpNet, used: &BTreeSet<IpAddr>, last: Option<IpAddr>) -> Option<IpAddr> {
    let network = number(range.network());
    let broadcast = number(range.broadcast());
    // The network's and the gateway's addresses are never given out, nor is IPv4's broadcast.
    let first = network.checked_add(2)?;
    let end = if range.network().is_ipv4() {
        broadcast.checked_sub(1)?
    } else {
        broadcast
    };
    if first > end {
        return None;
    }
    let last = last.filter(|last| range.contains(last)).map(number);
    let start = last.map_or(first, |last| {
        if last >= end || last < first {
            first
        } else {
            last + 1
        }
    });
    // At most one more candidate than there are used ones needs a look.
    let free = |candidate: &u128| !used.contains(&from_number(range, *candidate));
    (start..=end)
        .chain(first..start)
        .take(used.len() + 1)
        .find(free)
        .map(|found| from_number(range, found))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn from_number(range: &IpNet, number: u128) -> IpAddr {
    match range {
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(
            u32::try_from(number).expect("within an IPv4 range"),
        )),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(range: &str, used: &[&str], last: Option<&str>, expect: Option<&str>) {
        let used = used.iter().map(|a| a.parse().unwrap()).collect();
        let last = last.map(|a| a.parse().unwrap());
        let got = allocate(&range.parse().unwrap(), &used, last);
        assert_eq!(
            got,
            expect.map(|a| a.parse().unwrap()),
            "{range} used {used:?} last {last:?}"
        );
    }

    #[test]
    fn addresses_go_round() {
        check("10.244.1.0/24", &[], None, Some("10.244.1.2"));
        check("10.244.1.0/24", &[], Some("10.244.1.2"), Some("10.244.1.3"));
        check(
            "10.244.1.0/24",
            &["10.244.1.3", "10.244.1.4"],
            Some("10.244.1.2"),
            Some("10.244.1.5"),
        );
        check(
            "10.244.1.0/24",
            &[],
            Some("10.244.1.254"),
            Some("10.244.1.2"),
        );
        // A range that was given anew: what was last there does not matter.
        check("10.244.2.0/24", &[], Some("10.244.1.9"), Some("10.244.2.2"));
    }

    #[test]
    fn full_ranges() {
        check("10.0.0.0/30", &[], None, Some("10.0.0.2"));
        check("10.0.0.0/30", &["10.0.0.2"], None, None);
        check("10.0.0.0/30", &["10.0.0.2"], Some("10.0.0.2"), None);
        check(
            "10.0.0.0/29",
            &["10.0.0.5", "10.0.0.6"],
            Some("10.0.0.4"),
            Some("10.0.0.2"),
        );
        check("10.0.0.0/31", &[], None, None);
    }

    #[test]
    fn ipv6() {
        check("fd00:1::/64", &[], None, Some("fd00:1::2"));
        check(
            "fd00:1::/64",
            &["fd00:1::3"],
            Some("fd00:1::2"),
            Some("fd00:1::4"),
        );
        assert_eq!(
            gateway(&"fd00:1::/64".parse().unwrap()),
            "fd00:1::1".parse::<IpAddr>().unwrap()
        );
    }
}
