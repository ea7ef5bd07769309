use super::*;

fn port(internal_local: bool, external_local: bool, node_port: u16) -> ServicePort {
    ServicePort {
        cluster_ip: "10.96.0.1".parse().unwrap(),
        port: 80,
        protocol: nftables::Protocol::Tcp,
        node_port,
        external_ips: Vec::new(),
        load_balancer_vips: Vec::new(),
        load_balancer_source_ranges: Vec::new(),
        affinity: None,
        external_policy_local: external_local,
        internal_policy_local: internal_local,
        health_check_node_port: None,
    }
}

/// `number flags hints`: R ready, S serving, T terminating, L local; `zX` and `nX` hints.
fn endpoints(texts: &[&str]) -> Vec<Endpoint> {
    let one = |text: &&str| {
        let words: Vec<_> = text.split(' ').collect();
        let flag = |c| words[1].contains(c);
        let hints = |start| {
            words[2..]
                .iter()
                .filter_map(|w| w.strip_prefix(start))
                .map(str::to_owned)
                .collect()
        };
        Endpoint {
            address: format!("10.0.0.{}", words[0]).parse().unwrap(),
            port: 80,
            is_local: flag('L'),
            ready: flag('R'),
            serving: flag('S'),
            terminating: flag('T'),
            zone_hints: hints('z'),
            node_hints: hints('n'),
        }
    };
    texts.iter().map(one).collect()
}

#[track_caller]
fn check(port: ServicePort, given: &[&str], cluster: &[u8], local: &[u8], has_any: bool) {
    let place = Place {
        node: "me".into(),
        zone: "a".into(),
    };
    let given = endpoints(given);
    let got = categorize_endpoints(&given, &port, &place);
    let numbers = |list: &[&Endpoint]| -> Vec<u8> {
        list.iter()
            .map(|e| {
                e.address
                    .to_string()
                    .rsplit('.')
                    .next()
                    .unwrap()
                    .parse()
                    .unwrap()
            })
            .collect()
    };
    assert_eq!(
        (numbers(&got.cluster), numbers(&got.local), got.has_any),
        (cluster.to_vec(), local.to_vec(), has_any)
    );
}

#[test]
fn policies() {
    let given = ["1 RS", "2 RSL", "3 ST", "4 STL"];
    check(port(false, false, 0), &given, &[1, 2], &[], true);
    check(port(true, false, 0), &given, &[], &[2], true);
    // External Local needs both, but only if there is external traffic at all.
    check(port(false, true, 30000), &given, &[1, 2], &[2], true);
    check(port(false, true, 0), &given, &[1, 2], &[], true);
    check(port(true, false, 0), &["1 RS"], &[], &[], true);
    check(port(false, false, 0), &[], &[], &[], false);
}

#[test]
fn terminating_endpoints_are_the_last_resort() {
    check(
        port(false, false, 0),
        &["1 ST", "2 STL", "3 T"],
        &[1, 2],
        &[],
        true,
    );
    check(port(true, false, 0), &["1 RS", "2 STL"], &[], &[2], true);
    check(
        port(false, true, 30000),
        &["1 RS", "2 STL"],
        &[1],
        &[2],
        true,
    );
    check(port(false, false, 0), &["1 T", "2 -"], &[], &[], false);
}

#[test]
fn hints() {
    let zones = ["1 RS za", "2 RS zb", "3 RS za zb"];
    check(port(false, false, 0), &zones, &[1, 3], &[], true);
    check(
        port(false, false, 0),
        &["1 RS za", "2 RS"],
        &[1, 2],
        &[],
        true,
    );
    check(
        port(false, false, 0),
        &["1 RS zb", "2 RS zc"],
        &[1, 2],
        &[],
        true,
    );
    check(
        port(false, false, 0),
        &["1 RS nme za", "2 RS nyou za"],
        &[1],
        &[],
        true,
    );
    check(
        port(false, false, 0),
        &["1 RS nyou za", "2 RS nyou zb"],
        &[1],
        &[],
        true,
    );
    // Endpoints that are not ready have no say.
    check(
        port(false, false, 0),
        &["1 RS za", "2 S", "3 RS zb"],
        &[1],
        &[],
        true,
    );
}
