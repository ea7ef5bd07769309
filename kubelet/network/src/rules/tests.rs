use nftables::{Decision, Origin, Outcome, Packet, Tracer};

use super::*;
use crate::SandboxNetwork;

const NODE: &str = "192.168.0.1";
const POD_A: &str = "10.244.1.2";
const POD_B: &str = "10.244.1.3";
const REMOTE_POD: &str = "10.244.2.7";

fn mapping(
    protocol: Protocol,
    host_ip: Option<&str>,
    host_port: u16,
    container_port: u16,
) -> PortMapping {
    PortMapping {
        protocol,
        container_port,
        host_port,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
    }
}

fn record(id: &str, address: &str, port_mappings: Vec<PortMapping>) -> SandboxRecord {
    let sandbox = SandboxNetwork {
        sandbox_id: id.into(),
        port_mappings,
        ..Default::default()
    };
    SandboxRecord::new(
        &sandbox,
        format!("veth-{id}"),
        vec![address.parse().unwrap()],
    )
}

fn rendered() -> Table {
    let records = [
        record(
            "a",
            POD_A,
            vec![
                mapping(Protocol::Tcp, None, 8080, 80),
                mapping(Protocol::Udp, Some(NODE), 53, 5353),
            ],
        ),
        record(
            "b",
            POD_B,
            vec![mapping(Protocol::Tcp, Some("127.0.0.1"), 9090, 90)],
        ),
    ];
    let own: IpNet = "10.244.1.0/24".parse().unwrap();
    let other: IpNet = "10.244.2.0/24".parse().unwrap();
    table(Family::Ip, "gantry-pods", &[own], &[own, other], &records)
}

fn trace(protocol: nftables::Protocol, from: &str, to: &str, port: u16) -> Outcome {
    let table = rendered();
    assert_eq!(table.dangling(), Default::default());
    let source: IpAddr = from.parse().unwrap();
    let origin = if from == NODE || source.is_loopback() {
        Origin::Local
    } else if from.starts_with("10.244.1.") {
        Origin::Interface("veth".into())
    } else {
        Origin::Interface("eth0".into())
    };
    let packet = Packet {
        source,
        source_port: 40000,
        destination: to.parse().unwrap(),
        destination_port: port,
        protocol,
        origin,
    };
    Tracer::new(
        [&table],
        [NODE.parse().unwrap(), "10.244.1.1".parse().unwrap()],
    )
    .trace(&packet)
}

#[track_caller]
fn check(
    protocol: nftables::Protocol,
    from: &str,
    to: &str,
    port: u16,
    expect: (Decision, &str, u16, bool),
) {
    let outcome = trace(protocol, from, to, port);
    let got = (
        outcome.decision,
        outcome.destination.to_string(),
        outcome.destination_port,
        outcome.masqueraded,
    );
    assert_eq!(
        got,
        (expect.0, expect.1.to_owned(), expect.2, expect.3),
        "{from} -> {to}:{port}"
    );
}

#[test]
fn host_ports() {
    use Decision::{Delivered, Dropped, Forwarded};
    use nftables::Protocol::{Tcp, Udp};
    // From outside, by any address of the node; the source stays.
    check(
        Tcp,
        "203.0.113.9",
        NODE,
        8080,
        (Forwarded, POD_A, 80, false),
    );
    check(Tcp, REMOTE_POD, NODE, 8080, (Forwarded, POD_A, 80, false));
    // By the named address only.
    check(
        Udp,
        "203.0.113.9",
        NODE,
        53,
        (Forwarded, POD_A, 5353, false),
    );
    check(
        Udp,
        POD_B,
        "10.244.1.1",
        53,
        (Delivered, "10.244.1.1", 53, false),
    );
    check(Tcp, "203.0.113.9", NODE, 53, (Delivered, NODE, 53, false));
    // From the node, and from localhost (which cannot leave with its own address).
    check(Tcp, NODE, NODE, 8080, (Forwarded, POD_A, 80, false));
    check(
        Tcp,
        "127.0.0.1",
        "127.0.0.1",
        8080,
        (Forwarded, POD_A, 80, true),
    );
    check(
        Tcp,
        "127.0.0.1",
        "127.0.0.1",
        9090,
        (Forwarded, POD_B, 90, true),
    );
    // A pod that reaches itself.
    check(Tcp, POD_A, NODE, 8080, (Forwarded, POD_A, 80, true));
    check(Tcp, POD_B, NODE, 8080, (Forwarded, POD_A, 80, false));
    // Somebody else's port 8080 is none of ours.
    check(
        Tcp,
        POD_A,
        "203.0.113.9",
        8080,
        (Forwarded, "203.0.113.9", 8080, true),
    );
    // The node's loopback is closed to pods.
    check(
        Tcp,
        POD_A,
        "127.0.0.1",
        8080,
        (Dropped, "127.0.0.1", 8080, false),
    );
}

#[test]
fn masquerading() {
    use Decision::{Delivered, Forwarded};
    use nftables::Protocol::Tcp;
    check(Tcp, POD_A, POD_B, 80, (Forwarded, POD_B, 80, false));
    check(
        Tcp,
        POD_A,
        REMOTE_POD,
        80,
        (Forwarded, REMOTE_POD, 80, false),
    );
    check(Tcp, REMOTE_POD, POD_A, 80, (Forwarded, POD_A, 80, false));
    check(
        Tcp,
        POD_A,
        "203.0.113.9",
        443,
        (Forwarded, "203.0.113.9", 443, true),
    );
    check(
        Tcp,
        POD_A,
        "192.168.0.2",
        443,
        (Forwarded, "192.168.0.2", 443, true),
    );
    check(Tcp, POD_A, NODE, 443, (Delivered, NODE, 443, false));
    check(Tcp, NODE, POD_A, 80, (Forwarded, POD_A, 80, false));
    check(
        Tcp,
        POD_A,
        "224.0.0.251",
        5353,
        (Forwarded, "224.0.0.251", 5353, false),
    );
}

#[test]
fn conflicts() {
    let taken = [record(
        "a",
        POD_A,
        vec![
            mapping(Protocol::Tcp, None, 80, 80),
            mapping(Protocol::Tcp, Some(NODE), 81, 80),
        ],
    )];
    let check = |sandbox: &str, wanted: PortMapping, free: bool| {
        assert_eq!(
            check_host_ports(sandbox, std::slice::from_ref(&wanted), &taken).is_ok(),
            free,
            "{wanted:?}"
        );
    };
    check("b", mapping(Protocol::Tcp, None, 80, 1), false);
    check("b", mapping(Protocol::Tcp, Some("127.0.0.1"), 80, 1), false);
    check("b", mapping(Protocol::Udp, None, 80, 1), true);
    check("b", mapping(Protocol::Tcp, Some("127.0.0.1"), 81, 1), true);
    check("b", mapping(Protocol::Tcp, Some("0.0.0.0"), 81, 1), false);
    check("a", mapping(Protocol::Tcp, None, 80, 1), true);
}

#[test]
fn a_pod_sends_with_its_own_address_and_no_other() {
    let v4 = rendered();
    let own: IpNet = "fd00:244:1::/64".parse().unwrap();
    let pods = [record("six", "fd00:244:1::2", vec![])];
    let v6 = table(Family::Ip6, "gantry-pods", &[own], &[own], &pods);
    let decide = |interface: &str, from: &str, to: &str| {
        let host = |address: &str| {
            let address: std::net::IpAddr = address.parse().unwrap();
            IpNet::from(address)
        };
        let mut tracer = Tracer::new([&v4, &v6], [NODE.parse().unwrap()])
            .with_route(host(POD_A), "veth-a")
            .with_route(host(POD_B), "veth-b")
            .with_route(host("fd00:244:1::2"), "veth-six");
        for name in ["veth-a", "veth-b", "veth-six"] {
            tracer = tracer.with_group(name, POD_LINK_GROUP);
        }
        let packet = Packet {
            source: from.parse().unwrap(),
            source_port: 40_000,
            destination: to.parse().unwrap(),
            destination_port: 80,
            protocol: nftables::Protocol::Udp,
            origin: Origin::Interface(interface.into()),
        };
        tracer.trace(&packet).decision
    };
    for (interface, from, to, expected) in [
        ("veth-a", POD_A, REMOTE_POD, Decision::Forwarded),
        ("veth-a", POD_B, REMOTE_POD, Decision::Dropped),
        ("veth-a", REMOTE_POD, POD_B, Decision::Dropped),
        ("veth-a", "8.8.8.8", POD_B, Decision::Dropped),
        ("veth-a", NODE, POD_B, Decision::Dropped),
        // The node's other links are not our business.
        ("eth1", "8.8.8.8", POD_A, Decision::Forwarded),
        (
            "veth-six",
            "fd00:244:1::2",
            "fd00:244:2::2",
            Decision::Forwarded,
        ),
        (
            "veth-six",
            "fd00:244:1::3",
            "fd00:244:2::2",
            Decision::Dropped,
        ),
    ] {
        assert_eq!(
            decide(interface, from, to),
            expected,
            "{from} at {interface}"
        );
    }
}
