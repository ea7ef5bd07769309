//! What the table has before any Service is in it: hooks, fixed chains and empty maps.
//!
//! Upstream: setupNFTables in pkg/proxy/nftables/proxier.go. A name of upstream's is used only for a thing of its very shape, so
//! that either kube-proxy can take over the table of the other.

use ipnet::IpNet;
use nftables::{
    Family, Field, HookKind, HookPoint, Set, Statement, Table, Type, Value, Verdict, priority,
};

use super::{RenderOptions, TABLE};

pub const SERVICES_CHAIN: &str = "services";
pub const REJECT_CHAIN: &str = "reject-chain";
pub const HAIRPIN_CONNECTIONS: &str = "hairpin-connections";
pub const CLUSTER_IPS: &str = "cluster-ips";
pub const FIREWALL_IPS: &str = "firewall-guarded";
pub const FIREWALL_ALLOWED: &str = "firewall-allowed";
const NODE_PORT_IPS: &str = "nodeport-ips";
const MASQUERADING_CHAIN: &str = "masquerading";
const CLUSTER_IPS_CHECK: &str = "cluster-ips-check";
const FIREWALL_CHECK: &str = "firewall-check";

/// Names of what there is twice: for fronts known by their address, and for node ports.
pub struct Names {
    pub fields: &'static [Field],
    /// Front to chain.
    pub dispatch: &'static str,
    /// Front to chain, once it is known to be external traffic for the Cluster (Local) endpoints.
    pub external_cluster: &'static str,
    pub external_local: &'static str,
    /// Front and slot to endpoint: the number of endpoints follows.
    pub endpoints: &'static str,
    pub local_endpoints: &'static str,
    /// Front to drop or reject.
    pub no_endpoints: &'static str,
    pub endpoints_check: &'static str,
    /// Chains, shared by all.
    pub external_chain: &'static str,
    pub external_local_chain: &'static str,
    /// Chains, shared by all with as many endpoints: the number follows.
    pub endpoints_chain: &'static str,
    pub local_endpoints_chain: &'static str,
}

const BY_ADDRESS: Names = Names {
    fields: &[
        Field::DestinationAddress,
        Field::Protocol,
        Field::DestinationPort,
    ],
    dispatch: "service-ips",
    external_cluster: "external-ips-cluster",
    external_local: "external-ips-local",
    endpoints: "service-endpoints",
    local_endpoints: "external-local-endpoints",
    no_endpoints: "no-endpoint-services",
    endpoints_check: "service-endpoints-check",
    external_chain: "external",
    external_local_chain: "external-local",
    endpoints_chain: "endpoints",
    local_endpoints_chain: "local-endpoints",
};

const BY_NODE_PORT: Names = Names {
    fields: &[Field::Protocol, Field::DestinationPort],
    dispatch: "service-nodeports",
    external_cluster: "nodeports-cluster",
    external_local: "nodeports-local",
    endpoints: "nodeport-endpoints",
    local_endpoints: "nodeport-local-endpoints",
    no_endpoints: "no-endpoint-nodeports",
    endpoints_check: "nodeport-endpoints-check",
    external_chain: "nodeport-external",
    external_local_chain: "nodeport-external-local",
    endpoints_chain: "nodeport-endpoints",
    local_endpoints_chain: "nodeport-local-endpoints",
};

pub fn names(node_port: bool) -> Names {
    if node_port { BY_NODE_PORT } else { BY_ADDRESS }
}

/// The shared chain that takes one of `count` endpoints at random, and its map; made if missing.
///
/// A map for each count, since nft takes such a rule only together with its map (see nftables' `diff.rs`).
pub fn pick_chain(
    table: &mut Table,
    prefix: &str,
    names: &Names,
    endpoints: &str,
    count: usize,
) -> (String, String) {
    let (chain, map) = (format!("{prefix}-{count}"), format!("{endpoints}-{count}"));
    if !table.chains.contains_key(&chain) {
        let modulus = u32::try_from(count).expect("endpoints are fewer than 2^32");
        let fields: Vec<_> = names
            .fields
            .iter()
            .copied()
            .chain([Field::Random(modulus)])
            .collect();
        let address = table.family.address_type();
        let key = fields.iter().map(|field| match field {
            Field::DestinationAddress => address,
            Field::Protocol => Type::Protocol,
            Field::Random(_) => Type::Number,
            _ => Type::Port,
        });
        let key: Vec<_> = key.collect();
        table.add_set(map.as_str(), Set::map(&key, &[address, Type::Port]));
        table.rule(&chain, [Statement::dnat_map(&fields, map.as_str())]);
    }
    (chain, map)
}

/// The table without any Service.
pub fn table(options: &RenderOptions) -> Table {
    let mut table = Table::new(options.family, TABLE);
    sets(&mut table, options);
    hooks(&mut table);
    services(&mut table, options);
    for names in [BY_ADDRESS, BY_NODE_PORT] {
        external(&mut table, options, &names);
    }
    masquerading(&mut table, options);
    checks(&mut table, options);
    table
}

fn sets(table: &mut Table, options: &RenderOptions) {
    let address = table.family.address_type();
    let by_address = vec![address, Type::Protocol, Type::Port];
    for (names, key) in [
        (BY_ADDRESS, by_address.clone()),
        (BY_NODE_PORT, by_address[1..].to_vec()),
    ] {
        for map in [
            names.dispatch,
            names.external_cluster,
            names.external_local,
            names.no_endpoints,
        ] {
            table.add_set(map, Set::verdict_map(&key));
        }
    }
    table.add_set(CLUSTER_IPS, Set::plain(&[address]));
    table.add_set(
        HAIRPIN_CONNECTIONS,
        Set::plain(&[address, address, Type::Protocol, Type::Port]),
    );
    table.add_set(FIREWALL_IPS, Set::plain(&by_address));
    let allowed: Vec<_> = by_address.into_iter().chain([address]).collect();
    table.add_set(FIREWALL_ALLOWED, Set::interval_set(&allowed));
    if let Some(addresses) = &options.node_port_addresses {
        let set = table.add_set(NODE_PORT_IPS, Set::plain(&[address]));
        // Node ports on loopback are never offered.
        let usable = |ip: &&std::net::IpAddr| Family::of(ip) == options.family && !ip.is_loopback();
        addresses
            .iter()
            .filter(usable)
            .for_each(|ip| set.insert(vec![(*ip).into()]));
    }
}

fn hooks(table: &mut Table) {
    use HookKind::{Filter, Nat};
    use HookPoint::{Forward, Input, Output, Postrouting, Prerouting};
    let before_dnat = priority::DSTNAT - 10;
    table.base_chain(
        "filter-prerouting-pre-dnat",
        Filter,
        Prerouting,
        before_dnat,
    );
    table.base_chain("filter-output-pre-dnat", Filter, Output, before_dnat);
    table.base_chain("filter-input", Filter, Input, priority::FILTER);
    table.base_chain("filter-forward", Filter, Forward, priority::FILTER);
    table.base_chain("filter-output", Filter, Output, priority::FILTER);
    table.base_chain("nat-prerouting", Nat, Prerouting, priority::DSTNAT);
    table.base_chain("nat-output", Nat, Output, priority::DSTNAT);
    table.base_chain("nat-postrouting", Nat, Postrouting, priority::SRCNAT);

    let new_to = |to: &'static str| [Statement::CtStateNew, Statement::jump(to)];
    table.rule("filter-input", new_to(BY_NODE_PORT.endpoints_check));
    for chain in ["filter-input", "filter-forward", "filter-output"] {
        table.rule(chain, new_to(BY_ADDRESS.endpoints_check));
    }
    for chain in ["filter-prerouting-pre-dnat", "filter-output-pre-dnat"] {
        table.rule(chain, new_to(FIREWALL_CHECK));
    }
    for chain in ["filter-forward", "filter-output"] {
        table.rule(chain, new_to(CLUSTER_IPS_CHECK));
    }
    for chain in ["nat-prerouting", "nat-output"] {
        table.rule(chain, [Statement::jump(SERVICES_CHAIN)]);
    }
    table.rule("nat-postrouting", [Statement::jump(MASQUERADING_CHAIN)]);
}

fn services(table: &mut Table, options: &RenderOptions) {
    let to_cluster_ip = Statement::in_set(&[Field::DestinationAddress], CLUSTER_IPS);
    let mark = Statement::MarkOr(options.masquerade_mark);
    if options.masquerade_all {
        table.rule(SERVICES_CHAIN, [to_cluster_ip, mark]);
    } else if let Some(from_outside) = options.local_detector.if_not_local() {
        // A route for the Service range to any node makes that node a bridge into the Service.
        table.rule(SERVICES_CHAIN, [to_cluster_ip, from_outside, mark]);
    }
    table.rule(
        SERVICES_CHAIN,
        [Statement::verdict_map(
            BY_ADDRESS.fields,
            BY_ADDRESS.dispatch,
        )],
    );
    let lookup = Statement::verdict_map(BY_NODE_PORT.fields, BY_NODE_PORT.dispatch);
    let mut rule = to_node_port(options);
    if options.node_port_addresses.is_none() {
        rule.insert(0, Statement::DestinationIsLocal);
    }
    rule.push(lookup);
    table.rule(SERVICES_CHAIN, rule);
}

/// Matches the addresses that accept node ports.
fn to_node_port(options: &RenderOptions) -> Vec<Statement> {
    match &options.node_port_addresses {
        None => vec![Statement::is_not(
            Field::DestinationAddress,
            [Value::net(loopback(options.family))],
        )],
        Some(_) => vec![Statement::in_set(
            &[Field::DestinationAddress],
            NODE_PORT_IPS,
        )],
    }
}

fn loopback(family: Family) -> IpNet {
    let text = if family == Family::Ip {
        "127.0.0.0/8"
    } else {
        "::1/128"
    };
    text.parse().expect("written above")
}

/// The two chains for external traffic, of policy Cluster and of policy Local.
fn external(table: &mut Table, options: &RenderOptions, names: &Names) {
    let mark = Statement::MarkOr(options.masquerade_mark);
    let to_cluster = Statement::verdict_map(names.fields, names.external_cluster);
    // It may go on to another node, and must come back by this one.
    table.rule(names.external_chain, [mark.clone(), to_cluster.clone()]);

    let chain = names.external_local_chain;
    // A pod's traffic takes the short cut: as if it had gone out to the balancer and come back in.
    if let Some(from_pod) = options.local_detector.if_local() {
        table.rule(chain, [from_pod, to_cluster.clone()]);
    }
    // So does the node's own, which has the external address as its source.
    table.rule(chain, [Statement::SourceIsLocal, mark, to_cluster]);
    table.rule(
        chain,
        [Statement::verdict_map(names.fields, names.external_local)],
    );
}

fn masquerading(table: &mut Table, options: &RenderOptions) {
    let bit = options.masquerade_mark;
    table.rule(
        MASQUERADING_CHAIN,
        [
            Statement::MarkHas(bit),
            Statement::MarkXor(bit),
            Statement::Masquerade,
        ],
    );
    // A pod that reached itself through a Service must see an answer from there.
    let fields = [
        Field::SourceAddress,
        Field::DestinationAddress,
        Field::Protocol,
        Field::DestinationPort,
    ];
    let to_itself = Statement::in_set(&fields, HAIRPIN_CONNECTIONS);
    table.rule(
        MASQUERADING_CHAIN,
        [Statement::CtStatusDnat, to_itself, Statement::Masquerade],
    );
}

fn checks(table: &mut Table, options: &RenderOptions) {
    table.rule(REJECT_CHAIN, [Statement::Reject]);
    let lookup = |names: &Names| Statement::verdict_map(names.fields, names.no_endpoints);
    table.rule(BY_ADDRESS.endpoints_check, [lookup(&BY_ADDRESS)]);
    let mut rule = to_node_port(options);
    rule.push(lookup(&BY_NODE_PORT));
    table.rule(BY_NODE_PORT.endpoints_check, rule);

    let from: Vec<_> = BY_ADDRESS
        .fields
        .iter()
        .copied()
        .chain([Field::SourceAddress])
        .collect();
    let guarded = Statement::in_set(BY_ADDRESS.fields, FIREWALL_IPS);
    let not_allowed = Statement::not_in_set(&from, FIREWALL_ALLOWED);
    table.rule(
        FIREWALL_CHECK,
        [guarded, not_allowed, Statement::Verdict(Verdict::Drop)],
    );

    // Wrong ports of cluster addresses, and cluster addresses that nobody has.
    let to_cluster_ip = Statement::in_set(&[Field::DestinationAddress], CLUSTER_IPS);
    table.rule(CLUSTER_IPS_CHECK, [to_cluster_ip, Statement::Reject]);
    let own = options
        .service_cidrs
        .iter()
        .filter(|cidr| Family::of(&cidr.addr()) == options.family);
    let ranges: Vec<_> = IpNet::aggregate(&own.copied().collect::<Vec<_>>())
        .into_iter()
        .map(Value::net)
        .collect();
    if !ranges.is_empty() {
        let unallocated = Statement::is(Field::DestinationAddress, ranges);
        table.rule(
            CLUSTER_IPS_CHECK,
            [unallocated, Statement::Verdict(Verdict::Drop)],
        );
    }
}
