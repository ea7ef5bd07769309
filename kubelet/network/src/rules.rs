//! The nft tables of the pod network: masquerading, host ports, and the guards of 127.0.0.0/8 and of the pods'
//! source addresses. Pure.
//!
//! Flat maps, as kube-proxy's: one look-up from (address,) protocol and port to the pod.

use std::net::IpAddr;

use ipnet::IpNet;
use nftables::{Family, Field, HookKind, HookPoint, Set, Statement, Table, Type, Value, priority};

use crate::store::SandboxRecord;
use crate::{NetworkError, PortMapping, Protocol};

const BY_ADDRESS: &str = "hostports-by-address";
const ANY_ADDRESS: &str = "hostports";
const HAIRPIN: &str = "hairpin";
const LOCAL_PODS: &str = "local-pods";
const CLUSTER_PODS: &str = "cluster-pods";
const HOSTPORTS: &str = "hostports-dnat";

/// After kube-proxy's -100: an address of a Service is more exact than "every address of this node".
const HOSTPORT_PRIORITY: i32 = priority::DSTNAT + 5;
/// nft's name for it is "raw": before connection tracking, when answers have not been translated back.
const RAW_PRIORITY: i32 = -300;

/// The group of the node's ends of pods' links: "pods" in ASCII. Groups of this size are nobody's by custom.
pub const POD_LINK_GROUP: u32 = 0x706f_6473;

/// The table of one family.
///
/// `cluster` are the addresses of all pods of the cluster: what goes there keeps its source.
pub fn table<'r>(
    family: Family,
    name: &str,
    pod_cidrs: &[IpNet],
    cluster: &[IpNet],
    records: impl IntoIterator<Item = &'r SandboxRecord>,
) -> Table {
    let mut table = Table::new(family, name);
    host_port_sets(&mut table, family, records);
    table.add_set(LOCAL_PODS, ranges(family, pod_cidrs));
    table.add_set(CLUSTER_PODS, ranges(family, cluster));
    host_port_rules(&mut table);
    masquerade(&mut table, family);
    guard(&mut table, family);
    table
}

/// The sets that host ports are looked up in.
fn host_port_sets<'r>(
    table: &mut Table,
    family: Family,
    records: impl IntoIterator<Item = &'r SandboxRecord>,
) {
    let address = family.address_type();
    let port_key = [address, Type::Protocol, Type::Port];

    let mut by_address = Set::map(&port_key, &[address, Type::Port]);
    let mut any_address = Set::map(&port_key[1..], &[address, Type::Port]);
    let mut hairpin = Set::plain(&[address, address]);
    for record in records {
        let Some(pod) = record.addresses.iter().find(|a| Family::of(a) == family) else {
            continue;
        };
        for mapping in record.port_mappings.iter().filter(|m| applies(m, family)) {
            let to = vec![Value::Address(*pod), Value::Port(mapping.container_port)];
            let mut key = vec![
                Value::Protocol(protocol(mapping.protocol)),
                Value::Port(mapping.host_port),
            ];
            match specific(mapping.host_ip) {
                None => any_address.insert_values(key, to),
                Some(host_ip) => {
                    key.insert(0, Value::Address(host_ip));
                    by_address.insert_values(key, to);
                }
            }
            hairpin.insert(vec![Value::Address(*pod), Value::Address(*pod)]);
        }
    }
    table.add_set(BY_ADDRESS, by_address);
    table.add_set(ANY_ADDRESS, any_address);
    table.add_set(HAIRPIN, hairpin);
}

/// What comes for a host port goes to its pod, from outside and from the node itself.
fn host_port_rules(table: &mut Table) {
    use Field::{DestinationAddress, DestinationPort, Protocol as L4};
    table.rule(
        HOSTPORTS,
        [Statement::dnat_map(
            &[DestinationAddress, L4, DestinationPort],
            BY_ADDRESS,
        )],
    );
    table.rule(
        HOSTPORTS,
        [Statement::dnat_map(&[L4, DestinationPort], ANY_ADDRESS)],
    );
    for (chain, point) in [
        ("nat-prerouting", HookPoint::Prerouting),
        ("nat-output", HookPoint::Output),
    ] {
        table.base_chain(chain, HookKind::Nat, point, HOSTPORT_PRIORITY);
        table.rule(
            chain,
            [Statement::DestinationIsLocal, Statement::jump(HOSTPORTS)],
        );
    }
}

/// Whose source becomes the node's address.
fn masquerade(table: &mut Table, family: Family) {
    use Field::{DestinationAddress, SourceAddress};
    let post = "nat-postrouting";
    table.base_chain(
        post,
        HookKind::Nat,
        HookPoint::Postrouting,
        priority::SRCNAT,
    );
    // A pod that reaches itself by its host port must see an answer from there.
    let pair = Statement::in_set(&[SourceAddress, DestinationAddress], HAIRPIN);
    table.rule(post, [Statement::CtStatusDnat, pair, Statement::Masquerade]);
    // From localhost to a host port: a loopback source cannot leave the node.
    let from_loopback = Statement::is(SourceAddress, [Value::net(loopback(family))]);
    let pod_is_here = Statement::in_set(&[DestinationAddress], LOCAL_PODS);
    table.rule(
        post,
        [
            Statement::CtStatusDnat,
            from_loopback,
            pod_is_here,
            Statement::Masquerade,
        ],
    );
    // What leaves the cluster has the node's address.
    table.rule(
        post,
        [
            Statement::in_set(&[SourceAddress], LOCAL_PODS),
            Statement::not_in_set(&[DestinationAddress], CLUSTER_PODS),
            Statement::is_not(DestinationAddress, [Value::net(multicast(family))]),
            Statement::Masquerade,
        ],
    );
}

/// What no pod may send.
fn guard(table: &mut Table, family: Family) {
    use Field::{DestinationAddress, SourceAddress};
    let guard = "guard-prerouting";
    table.base_chain(guard, HookKind::Filter, HookPoint::Prerouting, RAW_PRIORITY);
    // A pod sends with its own address and no other, before connection tracking believes it. The kernel's rp_filter
    // does so for IPv4 where no administrator has loosened it; for IPv6 there is none. What looks for neighbours
    // before it has an address is let through.
    let mut spoofed = vec![Statement::InputGroup(POD_LINK_GROUP)];
    if family == Family::Ip6 {
        let unspecified: IpNet = "::/128".parse().expect("written here");
        spoofed.push(Statement::is_not(SourceAddress, [Value::net(unspecified)]));
    }
    spoofed.extend([
        Statement::NoReversePath,
        Statement::Verdict(nftables::Verdict::Drop),
    ]);
    table.rule(guard, spoofed);
    if family == Family::Ip {
        // Host ports from localhost need route_localnet, which must not open 127.0.0.0/8 to the pods
        // (CVE-2020-8558).
        table.rule(
            guard,
            [
                Statement::is_not(Field::InputInterface, [Value::Name("lo".into())]),
                Statement::is(DestinationAddress, [Value::net(loopback(family))]),
                Statement::Verdict(nftables::Verdict::Drop),
            ],
        );
    }
}

/// Fails when a host port of `wanted` is taken by another sandbox.
pub fn check_host_ports<'r>(
    sandbox_id: &str,
    wanted: &[PortMapping],
    records: impl IntoIterator<Item = &'r SandboxRecord>,
) -> Result<(), NetworkError> {
    for record in records
        .into_iter()
        .filter(|record| record.sandbox_id != sandbox_id)
    {
        for taken in &record.port_mappings {
            if let Some(mapping) = wanted.iter().find(|mapping| collide(mapping, taken)) {
                return Err(NetworkError::HostPortConflict {
                    protocol: mapping.protocol.as_str().into(),
                    host_ip: mapping
                        .host_ip
                        .map_or_else(|| "*".into(), |ip| ip.to_string()),
                    host_port: mapping.host_port,
                    owner: record.sandbox_id.clone(),
                });
            }
        }
    }
    Ok(())
}

/// Upstream: HostPortInfo.CheckConflict of the scheduler; the wildcard address collides with every one.
fn collide(one: &PortMapping, other: &PortMapping) -> bool {
    let addresses = match (specific(one.host_ip), specific(other.host_ip)) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    };
    one.protocol == other.protocol && one.host_port == other.host_port && addresses
}

/// 0.0.0.0 and :: mean every address.
fn specific(host_ip: Option<IpAddr>) -> Option<IpAddr> {
    host_ip.filter(|ip| !ip.is_unspecified())
}

fn applies(mapping: &PortMapping, family: Family) -> bool {
    mapping.host_port != 0 && mapping.host_ip.is_none_or(|ip| Family::of(&ip) == family)
}

fn protocol(protocol: Protocol) -> nftables::Protocol {
    match protocol {
        Protocol::Tcp => nftables::Protocol::Tcp,
        Protocol::Udp => nftables::Protocol::Udp,
        Protocol::Sctp => nftables::Protocol::Sctp,
    }
}

/// The ranges of this family as an interval set; nft takes none that overlap.
fn ranges(family: Family, ranges: &[IpNet]) -> Set {
    let mut set = Set::interval_set(&[family.address_type()]);
    let own: Vec<_> = ranges
        .iter()
        .copied()
        .filter(|range| Family::of(&range.addr()) == family)
        .collect();
    for range in IpNet::aggregate(&own) {
        set.insert(vec![Value::net(range)]);
    }
    set
}

fn loopback(family: Family) -> IpNet {
    match family {
        Family::Ip => "127.0.0.0/8",
        Family::Ip6 => "::1/128",
    }
    .parse()
    .expect("written above")
}

fn multicast(family: Family) -> IpNet {
    match family {
        Family::Ip => "224.0.0.0/4",
        Family::Ip6 => "ff00::/8",
    }
    .parse()
    .expect("written above")
}

#[cfg(test)]
mod tests;
