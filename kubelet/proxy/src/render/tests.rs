//! Packets run over rendered tables. The cases follow upstream's pkg/proxy/nftables/proxier_test.go in spirit.

use std::collections::BTreeSet;
use std::time::Duration;

use nftables::{Decision, Operation, Origin, Outcome, Packet, Protocol, Tracer, diff};

use super::*;

const NODE: &str = "192.168.0.2";
const CLIENT: &str = "203.0.113.9";
const POD: &str = "10.244.1.5";
const REMOTE_POD: &str = "10.244.2.9";
const CLUSTER_IP: &str = "10.96.0.41";

fn options() -> RenderOptions {
    RenderOptions {
        family: Family::Ip,
        masquerade_all: false,
        masquerade_mark: 0x4000,
        local_detector: LocalDetector::Source("10.244.0.0/16".parse().unwrap()),
        node_port_addresses: None,
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        place: Place {
            node: "me".into(),
            zone: String::new(),
        },
        node_ip: Some(NODE.parse().unwrap()),
    }
}

fn port() -> ServicePort {
    ServicePort {
        cluster_ip: CLUSTER_IP.parse().unwrap(),
        port: 80,
        protocol: Protocol::Tcp,
        node_port: 0,
        external_ips: Vec::new(),
        load_balancer_vips: Vec::new(),
        load_balancer_source_ranges: Vec::new(),
        affinity: None,
        external_policy_local: false,
        internal_policy_local: false,
        health_check_node_port: None,
    }
}

/// Ready endpoints at port 8080; those in 10.244.1.0/24 are on this node.
fn endpoints(addresses: &[&str]) -> Vec<Endpoint> {
    addresses
        .iter()
        .map(|address| endpoint(address, true, true, false))
        .collect()
}

fn endpoint(address: &str, ready: bool, serving: bool, terminating: bool) -> Endpoint {
    let address: IpAddr = address.parse().unwrap();
    let is_local = address.to_string().starts_with("10.244.1.")
        || address.to_string().starts_with("fd00:244:1:");
    let (zone_hints, node_hints) = Default::default();
    Endpoint {
        address,
        port: 8080,
        is_local,
        ready,
        serving,
        terminating,
        zone_hints,
        node_hints,
    }
}

type Services = BTreeMap<NamespacedName, ServiceEntry>;

fn add(services: &mut Services, name: &str, port: ServicePort, endpoints: Vec<Endpoint>) {
    let name = NamespacedName {
        namespace: "ns".into(),
        name: name.into(),
    };
    let port_name = PortName {
        port: "p".into(),
        protocol: port.protocol,
    };
    let entry = services.entry(name).or_default();
    entry.ports.insert(port_name.clone(), port);
    entry.endpoints.insert(port_name, endpoints);
}

fn one(port: ServicePort, endpoints: Vec<Endpoint>) -> Services {
    let mut services = Services::new();
    add(&mut services, "svc", port, endpoints);
    services
}

fn rendered(options: &RenderOptions, services: &Services) -> Table {
    let table = render(options, services, &mut Slots::default()).table;
    assert_eq!(table.dangling(), BTreeSet::new());
    table
}

fn packet(protocol: Protocol, source: &str, destination: &str, destination_port: u16) -> Packet {
    let source: IpAddr = source.parse().unwrap();
    let text = source.to_string();
    let origin = if text == NODE || source.is_loopback() {
        Origin::Local
    } else if text.starts_with("10.244.1.") || text.starts_with("fd00:244:1:") {
        Origin::Interface("veth1".into())
    } else {
        Origin::Interface("eth0".into())
    };
    let destination = destination.parse().unwrap();
    Packet {
        source,
        source_port: 40_000,
        destination,
        destination_port,
        protocol,
        origin,
    }
}

/// What can become of the packet, over all that chance may say. Sorted; `masq` marks masquerading.
fn outcomes(table: &Table, packet: &Packet) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for chance in 0..8 {
        let local = [NODE, "fd00:192::2"].map(|ip| ip.parse().unwrap());
        let mut tracer = Tracer::new([table], local).with_random(move |_| chance);
        all.insert(describe(&tracer.trace(packet)));
    }
    all
}

fn describe(outcome: &Outcome) -> String {
    let masqueraded = if outcome.masqueraded { " masq" } else { "" };
    match outcome.decision {
        Decision::Dropped => "drop".into(),
        Decision::Rejected => "reject".into(),
        _ if !outcome.translated => format!("untouched{masqueraded}"),
        _ => format!(
            "{}:{}{masqueraded}",
            outcome.destination, outcome.destination_port
        ),
    }
}

#[track_caller]
fn check(table: &Table, source: &str, destination: &str, port: u16, expect: &[&str]) {
    let got = outcomes(table, &packet(Protocol::Tcp, source, destination, port));
    let expect: BTreeSet<_> = expect.iter().map(ToString::to_string).collect();
    assert_eq!(got, expect, "{source} -> {destination}:{port}");
}

#[test]
fn cluster_ip() {
    let services = one(port(), endpoints(&[POD, REMOTE_POD, "10.244.2.10"]));
    let table = rendered(&options(), &services);
    let all = ["10.244.1.5:8080", "10.244.2.9:8080", "10.244.2.10:8080"];
    check(&table, "10.244.1.7", CLUSTER_IP, 80, &all);
    check(&table, REMOTE_POD, CLUSTER_IP, 80, &all);
    // From outside of the pods' range, and from the node itself: answers must come back by this node.
    let masq = [
        "10.244.1.5:8080 masq",
        "10.244.2.9:8080 masq",
        "10.244.2.10:8080 masq",
    ];
    check(&table, CLIENT, CLUSTER_IP, 80, &masq);
    check(&table, NODE, CLUSTER_IP, 80, &masq);
    // A pod that reaches itself.
    check(
        &table,
        POD,
        CLUSTER_IP,
        80,
        &["10.244.1.5:8080 masq", all[1], all[2]],
    );
    // Wrong ports, and addresses that nobody has.
    check(&table, POD, CLUSTER_IP, 81, &["reject"]);
    check(&table, POD, "10.96.7.7", 80, &["drop"]);
    check(&table, POD, CLIENT, 80, &["untouched"]);
    let udp = packet(Protocol::Udp, POD, CLUSTER_IP, 80);
    assert_eq!(outcomes(&table, &udp), ["reject".to_string()].into());

    let everything = RenderOptions {
        masquerade_all: true,
        ..options()
    };
    check(
        &rendered(&everything, &services),
        "10.244.1.7",
        CLUSTER_IP,
        80,
        &masq,
    );
    let nothing = RenderOptions {
        local_detector: LocalDetector::None,
        ..options()
    };
    check(&rendered(&nothing, &services), CLIENT, CLUSTER_IP, 80, &all);
    let by_link = RenderOptions {
        local_detector: LocalDetector::Interface("veth*".into()),
        ..options()
    };
    check(
        &rendered(&by_link, &services),
        "10.244.1.7",
        CLUSTER_IP,
        80,
        &all,
    );
    check(
        &rendered(&by_link, &services),
        REMOTE_POD,
        CLUSTER_IP,
        80,
        &masq,
    );
}

#[test]
fn without_endpoints() {
    let mut wanted = port();
    wanted.node_port = 30_080;
    wanted.external_ips = vec!["198.51.100.7".parse().unwrap()];
    wanted.load_balancer_vips = vec!["198.51.100.8".parse().unwrap()];
    let table = rendered(&options(), &one(wanted, endpoints(&[])));
    for (to, port) in [(CLUSTER_IP, 80), ("198.51.100.7", 80), ("198.51.100.8", 80)] {
        check(&table, POD, to, port, &["reject"]);
        check(&table, NODE, to, port, &["reject"]);
    }
    check(&table, CLIENT, NODE, 30_080, &["reject"]);
    check(&table, CLIENT, NODE, 30_081, &["untouched"]);
}

#[test]
fn external_with_policy_cluster() {
    let mut wanted = port();
    wanted.node_port = 30_080;
    wanted.external_ips = vec!["198.51.100.7".parse().unwrap()];
    wanted.load_balancer_vips = vec!["198.51.100.8".parse().unwrap()];
    let table = rendered(
        &options(),
        &one(wanted.clone(), endpoints(&[POD, REMOTE_POD])),
    );
    let masq = ["10.244.1.5:8080 masq", "10.244.2.9:8080 masq"];
    for (to, port) in [("198.51.100.7", 80), ("198.51.100.8", 80), (NODE, 30_080)] {
        for from in [CLIENT, "10.244.1.7", NODE] {
            check(&table, from, to, port, &masq);
        }
    }
    check(&table, POD, CLUSTER_IP, 30_080, &["reject"]);
    check(&table, "127.0.0.1", "127.0.0.1", 30_080, &["untouched"]);

    // Node ports at chosen addresses only.
    let chosen = RenderOptions {
        node_port_addresses: Some(vec!["192.168.0.99".parse().unwrap()]),
        ..options()
    };
    check(
        &rendered(&chosen, &one(wanted, endpoints(&[POD]))),
        CLIENT,
        NODE,
        30_080,
        &["untouched"],
    );
}

#[test]
fn external_with_policy_local() {
    let mut wanted = port();
    wanted.external_policy_local = true;
    wanted.node_port = 30_080;
    wanted.load_balancer_vips = vec!["198.51.100.8".parse().unwrap()];
    let both = ["10.244.1.5:8080", "10.244.2.9:8080"];
    let table = rendered(
        &options(),
        &one(wanted.clone(), endpoints(&[POD, REMOTE_POD])),
    );
    for (to, port) in [("198.51.100.8", 80), (NODE, 30_080)] {
        check(&table, CLIENT, to, port, &["10.244.1.5:8080"]);
        // Pods and the node itself take the short cut to all endpoints.
        check(&table, "10.244.1.7", to, port, &both);
        check(
            &table,
            NODE,
            to,
            port,
            &["10.244.1.5:8080 masq", "10.244.2.9:8080 masq"],
        );
    }
    check(&table, "10.244.1.7", CLUSTER_IP, 80, &both);

    let table = rendered(&options(), &one(wanted.clone(), endpoints(&[REMOTE_POD])));
    for (to, port) in [("198.51.100.8", 80), (NODE, 30_080)] {
        check(&table, CLIENT, to, port, &["drop"]);
        check(&table, "10.244.1.7", to, port, &["10.244.2.9:8080"]);
        check(&table, NODE, to, port, &["10.244.2.9:8080 masq"]);
    }
    let result = render(
        &options(),
        &one(wanted, endpoints(&[REMOTE_POD])),
        &mut Slots::default(),
    );
    assert_eq!(
        (
            result.no_local_endpoints_internal,
            result.no_local_endpoints_external
        ),
        (0, 1)
    );
}

#[test]
fn internal_policy_local() {
    let mut wanted = port();
    wanted.internal_policy_local = true;
    let table = rendered(
        &options(),
        &one(wanted.clone(), endpoints(&[POD, REMOTE_POD])),
    );
    check(&table, "10.244.1.7", CLUSTER_IP, 80, &["10.244.1.5:8080"]);
    let table = rendered(&options(), &one(wanted.clone(), endpoints(&[REMOTE_POD])));
    check(&table, "10.244.1.7", CLUSTER_IP, 80, &["drop"]);
    // Node ports go by their own policy.
    wanted.node_port = 30_080;
    let table = rendered(&options(), &one(wanted, endpoints(&[REMOTE_POD])));
    check(&table, CLIENT, NODE, 30_080, &["10.244.2.9:8080 masq"]);
}

#[test]
fn terminating_endpoints() {
    let leaving = vec![
        endpoint(POD, false, true, true),
        endpoint(REMOTE_POD, false, false, true),
    ];
    check(
        &rendered(&options(), &one(port(), leaving)),
        "10.244.1.7",
        CLUSTER_IP,
        80,
        &["10.244.1.5:8080"],
    );
    let mut local = port();
    local.external_policy_local = true;
    local.node_port = 30_080;
    let mixed = vec![
        endpoint(POD, false, true, true),
        endpoint(REMOTE_POD, true, true, false),
    ];
    let table = rendered(&options(), &one(local, mixed));
    check(&table, CLIENT, NODE, 30_080, &["10.244.1.5:8080"]);
    check(&table, "10.244.1.7", CLUSTER_IP, 80, &["10.244.2.9:8080"]);
}

#[test]
fn load_balancer_source_ranges() {
    let mut wanted = port();
    let vip = "198.51.100.8";
    wanted.load_balancer_vips = vec![vip.parse().unwrap()];
    wanted.node_port = 30_080;
    wanted.load_balancer_source_ranges = vec![
        "203.0.113.0/25".parse().unwrap(),
        "203.0.113.0/28".parse().unwrap(),
    ];
    let table = rendered(&options(), &one(wanted.clone(), endpoints(&[POD])));
    check(&table, CLIENT, vip, 80, &["10.244.1.5:8080 masq"]);
    check(&table, "203.0.113.200", vip, 80, &["drop"]);
    check(&table, NODE, vip, 80, &["drop"]);
    check(
        &table,
        "203.0.113.200",
        NODE,
        30_080,
        &["10.244.1.5:8080 masq"],
    );
    // The node is allowed: so is the address that it would then have as its source.
    wanted
        .load_balancer_source_ranges
        .push("192.168.0.0/24".parse().unwrap());
    let table = rendered(&options(), &one(wanted, endpoints(&[POD])));
    check(&table, NODE, vip, 80, &["10.244.1.5:8080 masq"]);
    check(&table, vip, vip, 80, &["10.244.1.5:8080 masq"]);
}

/// Whoever may write a Service's status can give it an address that another has.
#[test]
fn source_ranges_of_two_services_with_one_address_never_overlap() {
    let vip = "198.51.100.8";
    let with = |ranges: &[&str]| {
        let mut port = port();
        port.load_balancer_vips = vec![vip.parse().unwrap()];
        port.load_balancer_source_ranges = ranges.iter().map(|r| r.parse().unwrap()).collect();
        port
    };
    let mut services = Services::new();
    let first = with(&["203.0.0.0/8", "10.0.0.0/8"]);
    add(&mut services, "a", first, endpoints(&[POD]));
    let second = with(&["203.0.113.0/28"]);
    add(&mut services, "b", second, endpoints(&[REMOTE_POD]));
    let table = rendered(&options(), &services);
    let allowed: Vec<_> = table.sets[skeleton::FIREWALL_ALLOWED]
        .elements
        .keys()
        .map(|key| key.last().unwrap().to_string())
        .collect();
    assert_eq!(allowed, ["203.0.113.0/28"]);
    check(&table, CLIENT, vip, 80, &["10.244.2.9:8080 masq"]);
    check(&table, "203.0.113.200", vip, 80, &["drop"]);
    // A later one without ranges leaves those of the first.
    add(&mut services, "b", with(&[]), endpoints(&[REMOTE_POD]));
    let table = rendered(&options(), &services);
    check(&table, "203.0.113.200", vip, 80, &["10.244.2.9:8080 masq"]);
    check(&table, "192.0.2.1", vip, 80, &["drop"]);
}

#[test]
fn session_affinity() {
    let mut wanted = port();
    wanted.affinity = Some(Duration::from_secs(100));
    wanted.node_port = 30_080;
    wanted.external_policy_local = true;
    let all = endpoints(&[POD, "10.244.1.6", REMOTE_POD]);
    let table = rendered(&options(), &one(wanted.clone(), all));
    let chance = std::sync::atomic::AtomicU32::new(2);
    let less = rendered(&options(), &one(wanted, endpoints(&["10.244.1.6", POD])));
    let mut tracer = Tracer::new([&table], [NODE.parse().unwrap()])
        .with_random(|_| chance.load(std::sync::atomic::Ordering::Relaxed));
    let ask = |tracer: &mut Tracer<'_>, from, to, port| {
        describe(&tracer.trace(&packet(Protocol::Tcp, from, to, port)))
    };
    assert_eq!(
        ask(&mut tracer, "10.244.1.7", CLUSTER_IP, 80),
        "10.244.2.9:8080"
    );
    // Chance has no more say for this client, by whatever address it comes; it has for others.
    chance.store(0, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(
        ask(&mut tracer, "10.244.1.7", CLUSTER_IP, 80),
        "10.244.2.9:8080"
    );
    assert_eq!(
        ask(&mut tracer, "10.244.1.7", NODE, 30_080),
        "10.244.2.9:8080"
    );
    assert_eq!(
        ask(&mut tracer, "10.244.1.8", CLUSTER_IP, 80),
        "10.244.1.5:8080"
    );
    assert_eq!(ask(&mut tracer, CLIENT, NODE, 30_080), "10.244.1.5:8080");
    // Each use renews it; without use it ends.
    tracer.advance(Duration::from_secs(90));
    assert_eq!(
        ask(&mut tracer, "10.244.1.7", CLUSTER_IP, 80),
        "10.244.2.9:8080"
    );
    tracer.advance(Duration::from_secs(90));
    assert_eq!(
        ask(&mut tracer, "10.244.1.7", CLUSTER_IP, 80),
        "10.244.2.9:8080"
    );
    tracer.advance(Duration::from_secs(101));
    assert_eq!(
        ask(&mut tracer, "10.244.1.7", CLUSTER_IP, 80),
        "10.244.1.5:8080"
    );
    // An endpoint that is gone is forgotten; the others' clients stay where they are.
    chance.store(1, std::sync::atomic::Ordering::Relaxed);
    tracer.set_tables([&less]);
    assert_eq!(
        ask(&mut tracer, "10.244.1.7", CLUSTER_IP, 80),
        "10.244.1.5:8080"
    );
}

#[test]
fn udp_and_sctp() {
    let mut services = Services::new();
    for (name, protocol) in [("u", Protocol::Udp), ("s", Protocol::Sctp)] {
        let mut wanted = port();
        wanted.protocol = protocol;
        wanted.affinity = (name == "s").then_some(Duration::from_secs(10));
        add(
            &mut services,
            name,
            wanted,
            endpoints(&[if name == "u" { POD } else { REMOTE_POD }]),
        );
    }
    let table = rendered(&options(), &services);
    let udp = outcomes(&table, &packet(Protocol::Udp, "10.244.1.7", CLUSTER_IP, 80));
    assert_eq!(udp, ["10.244.1.5:8080".to_string()].into());
    let sctp = outcomes(
        &table,
        &packet(Protocol::Sctp, "10.244.1.7", CLUSTER_IP, 80),
    );
    assert_eq!(sctp, ["10.244.2.9:8080".to_string()].into());
    check(&table, POD, CLUSTER_IP, 80, &["reject"]);
}

#[test]
fn ipv6() {
    let six = RenderOptions {
        family: Family::Ip6,
        local_detector: LocalDetector::Source("fd00:244::/32".parse().unwrap()),
        service_cidrs: vec!["fd00:96::/108".parse().unwrap()],
        ..options()
    };
    let mut wanted = port();
    wanted.cluster_ip = "fd00:96::41".parse().unwrap();
    wanted.node_port = 30_080;
    let table = rendered(&six, &one(wanted, endpoints(&["fd00:244:1::5"])));
    check(
        &table,
        "fd00:244:1::7",
        "fd00:96::41",
        80,
        &["fd00:244:1::5:8080"],
    );
    check(
        &table,
        "2001:db8::1",
        "fd00:192::2",
        30_080,
        &["fd00:244:1::5:8080 masq"],
    );
    check(&table, "fd00:244:1::7", "fd00:96::42", 80, &["drop"]);
}

/// 100 Services of three endpoints; what one change costs.
#[test]
fn a_change_costs_what_changed() {
    let mut services = Services::new();
    for i in 0..100u8 {
        let mut wanted = port();
        wanted.cluster_ip = IpAddr::from([10, 96, 1, i]);
        let addresses: Vec<_> = (0..3).map(|n| format!("10.244.{n}.{i}")).collect();
        add(
            &mut services,
            &format!("s{i}"),
            wanted,
            addresses
                .iter()
                .map(|a| endpoint(a, true, true, false))
                .collect(),
        );
    }
    let mut slots = Slots::default();
    let before = render(&options(), &services, &mut slots).table;
    assert!(before.chains.len() < 30, "no chain per Service");
    let again = render(&options(), &services, &mut slots).table;
    assert!(diff(Some(&before), &again).transaction.is_empty());

    let name = NamespacedName {
        namespace: "ns".into(),
        name: "s50".into(),
    };
    let list = services
        .get_mut(&name)
        .unwrap()
        .endpoints
        .values_mut()
        .next()
        .unwrap();
    list.remove(0);
    list.push(endpoint("10.244.9.9", true, true, false));
    let after = render(&options(), &services, &mut slots).table;
    let touched: usize = diff(Some(&before), &after)
        .transaction
        .operations
        .iter()
        .map(|operation| match operation {
            Operation::AddElements { elements, .. } => elements.len(),
            Operation::DeleteElements { keys, .. } => keys.len(),
            other => panic!("{other:?}"),
        })
        .sum();
    assert!(touched <= 5, "{touched} elements touched");
}
