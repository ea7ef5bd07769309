use super::*;

/// As nft 1.0.6 prints it.
const LISTING: &str = r#"{"nftables": [
  {"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}},
  {"table": {"family": "ip", "name": "t", "handle": 1}},
  {"set": {"family": "ip", "name": "ranges", "table": "t", "type": ["ipv4_addr", "inet_proto", "inet_service", "ipv4_addr"], "handle": 2, "flags": ["interval"], "elem": [{"concat": ["1.2.3.4", "tcp", 80, {"prefix": {"addr": "10.0.0.0", "len": 8}}]}]}},
  {"set": {"family": "ip", "name": "one", "table": "t", "type": "ipv4_addr", "handle": 3, "flags": ["interval"], "elem": ["10.1.2.3", {"prefix": {"addr": "10.2.0.0", "len": 16}}, {"range": ["0.0.0.0", "255.255.255.255"]}]}},
  {"map": {"family": "ip", "name": "to", "table": "t", "type": ["inet_proto", "inet_service", "integer"], "handle": 4, "map": "ipv4_addr . inet_service", "elem": [[{"concat": [132, 53, 1]}, {"concat": ["10.244.0.2", 8080]}]]}},
  {"map": {"family": "ip", "name": "verdicts", "table": "t", "type": ["inet_proto", "inet_service"], "handle": 5, "map": "verdict", "elem": [[{"concat": ["udp", 1]}, {"goto": {"target": "c"}}], [{"concat": ["udp", 2]}, {"drop": null}]]}},
  {"set": {"family": "ip", "name": "learnt", "table": "t", "type": "ipv4_addr", "handle": 6, "flags": ["timeout", "dynamic"], "timeout": 100, "size": 65535, "elem": [{"elem": {"val": "10.0.0.9", "timeout": 100, "expires": 50}}]}},
  {"chain": {"family": "ip", "table": "t", "name": "pre", "handle": 7, "type": "nat", "hook": "prerouting", "prio": -100, "policy": "accept"}},
  {"chain": {"family": "ip", "table": "t", "name": "c", "handle": 8}},
  {"rule": {"family": "ip", "table": "t", "chain": "c", "handle": 9, "comment": "00000000000000ff", "expr": [{"reject": null}]}},
  {"rule": {"family": "ip", "table": "t", "chain": "c", "handle": 10, "expr": [{"drop": null}]}}
]}"#;

#[test]
fn everything_that_we_make() {
    let table = table(Family::Ip, "t", LISTING).unwrap();
    assert_eq!(table_names(Family::Ip, LISTING).unwrap(), ["t"]);
    assert_eq!(
        table_names(Family::Ip6, LISTING).unwrap(),
        Vec::<String>::new()
    );
    let address = |text: &str| Value::Address(text.parse().unwrap());
    let net = |text: &str| Value::Net(text.parse().unwrap());
    let tcp = Value::Protocol(Protocol::Tcp);
    let ranges = &table.sets["ranges"];
    assert!(ranges.shape.interval);
    let held = vec![
        address("1.2.3.4"),
        tcp.clone(),
        Value::Port(80),
        net("10.0.0.0/8"),
    ];
    assert_eq!(ranges.elements.keys().collect::<Vec<_>>(), [&held]);
    assert!(
        ranges
            .lookup(&[
                address("1.2.3.4"),
                tcp,
                Value::Port(80),
                address("10.9.9.9")
            ])
            .is_some()
    );
    let one: Vec<_> = table.sets["one"]
        .elements
        .keys()
        .flatten()
        .cloned()
        .collect();
    assert_eq!(
        one,
        [address("10.1.2.3"), net("0.0.0.0/0"), net("10.2.0.0/16")]
    );
    let to = vec![address("10.244.0.2"), Value::Port(8080)];
    let sctp = vec![
        Value::Protocol(Protocol::Sctp),
        Value::Port(53),
        Value::Number(1),
    ];
    assert_eq!(
        table.sets["to"].elements.get(&sctp),
        Some(&Data::Values(to))
    );
    let verdicts: Vec<_> = table.sets["verdicts"].elements.values().cloned().collect();
    assert_eq!(
        verdicts,
        [
            Data::Verdict(Verdict::goto("c")),
            Data::Verdict(Verdict::Drop)
        ]
    );
    // What rules learnt is the kernel's own.
    let learnt = &table.sets["learnt"];
    assert_eq!(
        (learnt.shape.timeout, learnt.elements.len()),
        (Some(Duration::from_secs(100)), 0)
    );
    let hook = Hook {
        kind: HookKind::Nat,
        point: HookPoint::Prerouting,
        priority: -100,
    };
    assert_eq!(table.chains["pre"].hook, Some(hook));
    assert_eq!(
        table.chains["c"].rules,
        [Rule::adopted(255), Rule::adopted(0)]
    );
}

#[test]
fn what_we_never_make_is_an_error() {
    let set = |inner: &str| format!(r#"{{"nftables": [{{"set": {{"name": "s", {inner}}}}}]}}"#);
    assert!(table(Family::Ip, "t", &set(r#""type": "ether_addr""#)).is_err());
    assert!(
        table(
            Family::Ip,
            "t",
            &set(r#""type": "ipv4_addr", "elem": ["x"]"#)
        )
        .is_err()
    );
    assert!(table(Family::Ip, "t", "no JSON").is_err());
}
