use super::*;
use crate::SandboxNetwork;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn record(id: &str, link: &str, address: &str) -> SandboxRecord {
    let sandbox = SandboxNetwork {
        sandbox_id: id.into(),
        ..Default::default()
    };
    SandboxRecord::new(&sandbox, link.into(), vec![ip(address)])
}

fn peer(node: &str, range: &str, way: Way) -> ResolvedPeer {
    ResolvedPeer {
        internal_ip: ip(node),
        pod_cidrs: vec![net(range)],
        way,
    }
}

const VXLAN_OPTIONS: (u32, u16, u32) = (4096, 8472, 1450);

/// What the kernel has once every change was carried out.
fn carry_out(mut observed: Observed, changes: &[Change]) -> Observed {
    for change in changes {
        match change.clone() {
            Change::DeleteLink(link) => {
                observed
                    .links
                    .remove(&link)
                    .expect("only what is there is deleted");
                observed.addresses.retain(|(on, _)| *on != link);
                observed.routes.retain(|route| match &route.target {
                    Target::Link(on) => *on != link,
                    Target::Tunnel(_) => link != VXLAN,
                    _ => true,
                });
                if link == VXLAN {
                    observed.neighbours.clear();
                    observed.forwarding.clear();
                }
            }
            Change::SetPodGroup(link) => {
                observed.links.get_mut(&link).unwrap().group = POD_LINK_GROUP;
            }
            Change::CreateVxlan(vxlan) => {
                let link = Link {
                    alias: String::new(),
                    mac: Some(vxlan.mac),
                    mtu: vxlan.mtu,
                    group: 0,
                };
                assert!(observed.links.insert(VXLAN.into(), link).is_none());
            }
            Change::AddAddress { link, address } => {
                assert!(observed.addresses.insert((link, address)))
            }
            Change::DeleteRoute(route) => assert!(observed.routes.remove(&route)),
            Change::DeleteNeighbour(a, m) => assert!(observed.neighbours.remove(&(a, m))),
            Change::DeleteForwarding(m, a) => assert!(observed.forwarding.remove(&(m, a))),
            Change::AddNeighbour(a, m) => assert!(observed.neighbours.insert((a, m))),
            Change::AddForwarding(m, a) => assert!(observed.forwarding.insert((m, a))),
            Change::AddRoute(route) => assert!(observed.routes.insert(route)),
        }
    }
    observed
}

fn with_link(mut observed: Observed, name: &str, sandbox: &str) -> Observed {
    observed.links.insert(
        name.into(),
        Link {
            alias: format!("{ALIAS_PREFIX}{sandbox}"),
            mac: None,
            mtu: 1500,
            group: POD_LINK_GROUP,
        },
    );
    observed
}

#[test]
fn a_second_look_finds_nothing_to_do() {
    let ranges = [net("10.244.1.0/24")];
    let peers = [
        peer("192.168.0.2", "10.244.2.0/24", Way::OnLink),
        peer("172.16.0.9", "10.244.3.0/24", Way::Tunnel),
        // This node itself, should a caller name it.
        peer("192.168.0.1", "10.244.1.0/24", Way::OnLink),
    ];
    let records = [record("a", "veth-a", "10.244.1.2")];
    let wanted = desired(&ranges, &peers, &records, VXLAN_OPTIONS);
    let before = with_link(Observed::default(), "veth-a", "a");
    let after = carry_out(before, &diff(&wanted, &after_nothing(&wanted)));
    assert_eq!(diff(&wanted, &after), []);
    let routes: Vec<_> = after
        .routes
        .iter()
        .map(|r| (r.destination, r.target.clone()))
        .collect();
    assert_eq!(
        routes,
        [
            (net("10.244.1.0/24"), Target::Unreachable),
            (net("10.244.1.2/32"), Target::Link("veth-a".into())),
            (net("10.244.2.0/24"), Target::Via(ip("192.168.0.2"))),
            (net("10.244.3.0/24"), Target::Tunnel(ip("10.244.3.0"))),
        ]
    );
    assert!(
        after
            .addresses
            .contains(&("veth-a".into(), ip("10.244.1.1")))
    );
}

fn after_nothing(_: &Desired) -> Observed {
    with_link(Observed::default(), "veth-a", "a")
}

#[test]
fn a_peer_that_moves_changes_only_its_own() {
    let ranges = [net("10.244.1.0/24")];
    let one = [
        peer("192.168.0.2", "10.244.2.0/24", Way::OnLink),
        peer("192.168.0.3", "10.244.3.0/24", Way::OnLink),
    ];
    let two = [
        peer("192.168.0.2", "10.244.2.0/24", Way::OnLink),
        peer("192.168.0.4", "10.244.3.0/24", Way::OnLink),
    ];
    let before = desired(&ranges, &one, [], VXLAN_OPTIONS);
    let kernel = carry_out(Observed::default(), &diff(&before, &Observed::default()));
    let changes = diff(&desired(&ranges, &two, [], VXLAN_OPTIONS), &kernel);
    let route = |via| Route {
        destination: net("10.244.3.0/24"),
        target: Target::Via(ip(via)),
    };
    assert_eq!(
        changes,
        [
            Change::DeleteRoute(route("192.168.0.3")),
            Change::AddRoute(route("192.168.0.4"))
        ]
    );
}

#[test]
fn the_tunnel_comes_and_goes() {
    let ranges = [net("10.244.1.0/24")];
    let far = [peer("172.16.0.9", "10.244.3.0/24", Way::Tunnel)];
    let wanted = desired(&ranges, &far, [], VXLAN_OPTIONS);
    let kernel = carry_out(Observed::default(), &diff(&wanted, &Observed::default()));
    assert_eq!(diff(&wanted, &kernel), []);
    assert_eq!(kernel.forwarding.len(), 1);
    let alone = desired(&ranges, &[], [], VXLAN_OPTIONS);
    let kernel = carry_out(kernel, &diff(&alone, &kernel_of(&wanted)));
    assert!(kernel.links.is_empty() && kernel.neighbours.is_empty());
    assert_eq!(kernel.routes.len(), 1);
}

fn kernel_of(wanted: &Desired) -> Observed {
    carry_out(Observed::default(), &diff(wanted, &Observed::default()))
}

#[test]
fn leaked_links_go() {
    let kernel = with_link(Observed::default(), "veth-a", "a");
    let kernel = with_link(kernel, "veth-b", "b");
    let wanted = desired(
        &[net("10.244.1.0/24")],
        &[],
        &[record("b", "veth-b", "10.244.1.3")],
        VXLAN_OPTIONS,
    );
    let changes = diff(&wanted, &kernel);
    assert_eq!(changes[0], Change::DeleteLink("veth-a".into()));
    assert!(!changes.contains(&Change::DeleteLink("veth-b".into())));
}

#[test]
fn a_tunnel_takes_its_part_of_the_mtu() {
    let v4 = |way| peer("192.168.0.2", "10.244.2.0/24", way);
    let v6 = peer("fd00::2", "10.244.3.0/24", Way::Tunnel);
    for (configured, peers, expected) in [
        (None, vec![], (1500, 1450)),
        (None, vec![v4(Way::OnLink)], (1500, 1450)),
        (None, vec![v4(Way::OnLink), v4(Way::Tunnel)], (1450, 1450)),
        (None, vec![v4(Way::Tunnel), v6.clone()], (1430, 1430)),
        (None, vec![v6], (1430, 1430)),
        (Some(1400), vec![v4(Way::Tunnel)], (1400, 1400)),
    ] {
        assert_eq!(mtus(1500, configured, &peers), expected, "{peers:?}");
    }

    let mut connected = record("a", "veth-a", "10.244.1.2");
    connected.connected = true;
    let records = [connected, record("b", "veth-b", "10.244.1.3")];
    let mut observed = Observed::default();
    for name in ["veth-a", "veth-b"] {
        let link = Link {
            mtu: 1500,
            ..Default::default()
        };
        observed.links.insert(name.into(), link);
    }
    let wide = |mtu| -> Vec<String> {
        let found = too_wide(&records, &observed, mtu);
        found.iter().map(|r| r.sandbox_id.clone()).collect()
    };
    assert_eq!(wide(1450), ["a"]);
    assert!(wide(1500).is_empty());
}

#[test]
fn links_of_an_earlier_version_get_their_group() {
    let records = [record("a", "veth-a", "10.244.1.2")];
    let wanted = desired(&[net("10.244.1.0/24")], &[], &records, VXLAN_OPTIONS);
    let mut observed = Observed::default();
    let link = Link {
        alias: format!("{ALIAS_PREFIX}a"),
        ..Default::default()
    };
    observed.links.insert("veth-a".into(), link);
    let set = Change::SetPodGroup("veth-a".into());
    assert!(diff(&wanted, &observed).contains(&set));
    observed.links.get_mut("veth-a").unwrap().group = POD_LINK_GROUP;
    assert!(!diff(&wanted, &observed).contains(&set));
}
