//! Requests, alternatives, constraints, taints, administrators, bounds.

use super::*;

fn selecting(request: Value, expression: &str) -> Value {
    with(
        request,
        "/exactly/selectors",
        json!([{"cel": {"expression": expression}}]),
    )
}

#[test]
fn how_many_and_which() {
    let two = || plain(&["d1", "d2"]);
    let one = |requests: Value| Cluster::new(two(), vec![claim("c1", requests)]);
    one(json!([exactly("r", 1)])).check("the first", &[&["r=d1"]]);
    one(json!([exactly("r", 2)])).check("both", &[&["r=d1", "r=d2"]]);
    one(json!([exactly("r", 3)])).check("more than there are", &[]);
    one(json!([exactly("r", 1), exactly("s", 1)])).check("each its own", &[&["r=d1", "s=d2"]]);
    one(json!([all("r")])).check("all", &[&["r=d1", "r=d2"]]);
    one(json!([])).check("nothing", &[&[]]);
    one(json!([exactly("r", 0)])).check("none of a request", &[&[]]);
    let two_claims = Cluster::new(
        two(),
        vec![
            claim("a", json!([exactly("r", 1)])),
            claim("b", json!([exactly("r", 1)])),
        ],
    );
    two_claims.check("one each", &[&["r=d1"], &["r=d2"]]);
    let taken = Cluster {
        taken: vec!["n/d1"],
        ..two_claims.clone()
    };
    taken.check("one is taken", &[]);
    let all_taken = Cluster {
        taken: vec!["n/d1"],
        ..one(json!([all("r")]))
    };
    all_taken.check("all, but one is taken", &[]);
    Cluster::new(json!([]), vec![claim("a", json!([all("r")]))]).check("all of nothing", &[]);
    assert_eq!(
        one(json!([exactly("r", 1)])).devices("other"),
        Ok(None),
        "devices are on their node"
    );
    let number = || selecting(exactly("first", 1), "true");
    let picky = selecting(
        exactly("second", 1),
        "device.attributes['dra.example.com'].n == 1",
    );
    let numbered = json!([{"name": "d1", "attributes": {"n": {"int": 1}}}, {"name": "d2", "attributes": {"n": {"int": 2}}}]);
    Cluster::new(numbered, vec![claim("a", json!([number(), picky]))]).check(
        "the first choice is given back for the second request",
        &[&["first=d2", "second=d1"]],
    );
}

#[test]
fn all_that_match() {
    let devices = json!([{"name": "d1", "attributes": {"big": {"bool": true}}}, {"name": "d2", "attributes": {"big": {"bool": false}}},
        {"name": "d3", "attributes": {"big": {"bool": true}}}]);
    let big = selecting(all("r"), "device.attributes['dra.example.com'].big");
    Cluster::new(devices.clone(), vec![claim("a", json!([big.clone()]))])
        .check("all big ones", &[&["r=d1", "r=d3"]]);
    let both = json!([exactly("s", 1), big]);
    Cluster::new(devices, vec![claim("a", both)])
        .check("another request leaves them", &[&["s=d2", "r=d1", "r=d3"]]);
    let many: Vec<String> = (0..33).map(|i| format!("d{i:02}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    Cluster::new(plain(&many), vec![claim("a", json!([all("r")]))]).check_error(
        "more than a claim holds",
        "adding 33 devices exceeds the claim limit of 32, with 0 already accounted for",
    );
    Cluster::new(plain(&many), vec![claim("a", json!([exactly("r", 20), exactly("s", 13)]))])
        .check_error("together", "claim ns/a, request s: adding 13 devices exceeds the claim limit of 32, with 20 already accounted for");
    Cluster::new(
        plain(&many),
        vec![claim("a", json!([exactly("r", i64::MAX)]))],
    )
    .check_error("far too many", "exceeds the claim limit");
}

fn alternatives(name: &str, subs: &[(&str, i64, &str)]) -> Value {
    let subs: Vec<Value> = subs
        .iter()
        .map(|(name, count, expression)| {
            json!({"name": name, "deviceClassName": "c", "allocationMode": "ExactCount", "count": count,
                "selectors": [{"cel": {"expression": expression}}]})
        })
        .collect();
    json!({"name": name, "firstAvailable": subs})
}

#[test]
fn the_first_alternative_that_works() {
    let devices = json!([{"name": "d1", "attributes": {"n": {"int": 1}}}, {"name": "d2", "attributes": {"n": {"int": 2}}},
        {"name": "d3", "attributes": {"n": {"int": 2}}}]);
    let n = |n: i64| format!("device.attributes['dra.example.com'].n == {n}");
    let check = |what: &str, requests: Value, expect: &[&str]| {
        Cluster::new(devices.clone(), vec![claim("a", requests)]).check(what, &[expect]);
    };
    check(
        "the first",
        json!([alternatives("r", &[("x", 1, &n(2)), ("y", 1, &n(1))])]),
        &["r/x=d2"],
    );
    check(
        "the second",
        json!([alternatives("r", &[("x", 1, &n(3)), ("y", 2, &n(2))])]),
        &["r/y=d2", "r/y=d3"],
    );
    check(
        "for the sake of the next request",
        json!([
            alternatives("r", &[("x", 1, &n(1)), ("y", 1, &n(2))]),
            alternatives("s", &[("x", 1, &n(1))])
        ]),
        &["r/y=d2", "s/x=d1"],
    );
    Cluster::new(
        devices.clone(),
        vec![claim("a", json!([alternatives("r", &[("x", 1, &n(3))])]))],
    )
    .check("none", &[]);
    let many: Vec<String> = (0..40).map(|i| format!("d{i:02}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let found = Cluster::new(
        plain(&many),
        vec![claim(
            "a",
            json!([
                alternatives("r", &[("x", 30, "true"), ("y", 1, "true")]),
                exactly("s", 5)
            ]),
        )],
    );
    let devices = found
        .devices("n")
        .expect("no error")
        .expect("the smaller one fits beside the rest");
    assert_eq!((devices[0].len(), devices[0][0].as_str()), (6, "r/y=d00"));
}

#[test]
fn constraints() {
    let device = |name: &str, attributes: Value| json!({"name": name, "attributes": attributes});
    let devices = json!([
        device("d1", json!({"numa": {"int": 1}, "model": {"string": "x"}})),
        device("d2", json!({"numa": {"int": 2}, "model": {"string": "x"}})),
        device("d3", json!({"numa": {"int": 2}, "model": {"string": "y"}})),
        device("d4", json!({"model": {"version": "1.0.0"}})),
    ]);
    let check = |what: &str, requests: Value, constraints: Value, expect: &[&str]| {
        let claim = with(
            claim("a", requests),
            "/spec/devices/constraints",
            constraints,
        );
        let expect: Vec<&[&str]> = if expect.is_empty() {
            vec![]
        } else {
            vec![expect]
        };
        Cluster::new(devices.clone(), vec![claim]).check(what, &expect);
    };
    let numa = || json!([{"matchAttribute": "dra.example.com/numa"}]);
    check(
        "on one node of memory",
        json!([exactly("r", 2)]),
        numa(),
        &["r=d2", "r=d3"],
    );
    check(
        "across requests",
        json!([exactly("r", 1), exactly("s", 1)]),
        numa(),
        &["r=d2", "s=d3"],
    );
    check("three have no such", json!([exactly("r", 3)]), numa(), &[]);
    check(
        "of one request only",
        json!([exactly("r", 1), exactly("s", 2)]),
        json!([{"matchAttribute": "dra.example.com/numa", "requests": ["s"]}]),
        &["r=d1", "s=d2", "s=d3"],
    );
    check(
        "of another domain",
        json!([exactly("r", 1)]),
        json!([{"matchAttribute": "other.example.com/numa"}]),
        &[],
    );
    check(
        "distinct",
        json!([exactly("r", 2)]),
        json!([{"distinctAttribute": "dra.example.com/model"}]),
        &["r=d1", "r=d3"],
    );
    check(
        "distinct, of two kinds",
        json!([exactly("r", 3)]),
        json!([{"distinctAttribute": "dra.example.com/model"}]),
        &["r=d1", "r=d3", "r=d4"],
    );
    check(
        "both",
        json!([exactly("r", 2)]),
        json!([{"matchAttribute": "dra.example.com/numa"}, {"distinctAttribute": "dra.example.com/model"}]),
        &["r=d2", "r=d3"],
    );
    let sub = json!([alternatives("r", &[("x", 2, "true")])]);
    check(
        "of a subrequest",
        sub.clone(),
        json!([{"matchAttribute": "dra.example.com/numa", "requests": ["r/x"]}]),
        &["r/x=d2", "r/x=d3"],
    );
    check(
        "of its request",
        sub,
        json!([{"matchAttribute": "dra.example.com/numa", "requests": ["r"]}]),
        &["r/x=d2", "r/x=d3"],
    );
    let all = with(
        claim("a", json!([all("r")])),
        "/spec/devices/constraints",
        numa(),
    );
    Cluster::new(devices.clone(), vec![all]).check_error(
        "all devices never can",
        "because a claim constraint would not be satisfied",
    );
    let unknown = with(
        claim("a", json!([exactly("r", 1)])),
        "/spec/devices/constraints",
        json!([{}]),
    );
    Cluster::new(devices.clone(), vec![unknown])
        .check_error("unknown", "claim ns/a, constraint #0: empty constraint");
}

#[test]
fn taints_and_tolerations() {
    let tainted = |effect: &str| json!([{"name": "d1", "taints": [{"key": "k", "value": "v", "effect": effect}]}, {"name": "d2"}]);
    let tolerating =
        |tolerations: Value| with(exactly("r", 1), "/exactly/tolerations", tolerations);
    let check = |effect: &str, tolerations: Value, expect: &str| {
        let cluster = Cluster::new(
            tainted(effect),
            vec![claim("a", json!([tolerating(tolerations)]))],
        );
        cluster.check(effect, &[&[expect]]);
    };
    check("NoSchedule", json!([]), "r=d2");
    check("NoExecute", json!([]), "r=d2");
    check("None", json!([]), "r=d1");
    check("Newer", json!([]), "r=d1");
    check(
        "NoSchedule",
        json!([{"key": "k", "operator": "Exists"}]),
        "r=d1",
    );
    check(
        "NoSchedule",
        json!([{"key": "k", "operator": "Equal", "value": "w"}]),
        "r=d2",
    );
    check(
        "NoSchedule",
        json!([{"operator": "Exists", "effect": "NoExecute"}]),
        "r=d2",
    );
    let off = Cluster {
        features: Features {
            device_taints: false,
            ..Features::default()
        },
        ..Cluster::new(
            tainted("NoSchedule"),
            vec![claim("a", json!([exactly("r", 1)]))],
        )
    };
    off.check("with the gate off", &[&["r=d1"]]);
    let rule = json!({"metadata": {"name": "rule"}, "spec": {"taint": {"key": "k", "effect": "NoSchedule"},
        "deviceSelector": {"driver": DRIVER, "pool": "n", "device": "d2"}}});
    let before: Arc<ResourceSlice> = Arc::new(read(&slice("n", plain(&["d1", "d2"]))));
    let after = apply_rules(&before, [&Arc::new(read(&rule))]);
    let taints = |slice: &ResourceSlice, index: usize| {
        slice.spec.devices.as_ref().expect("two")[index]
            .taints
            .clone()
            .unwrap_or_default()
            .len()
    };
    assert_eq!([taints(&after, 0), taints(&after, 1)], [0, 1]);
    let elsewhere = with(rule.clone(), "/spec/deviceSelector/pool", "m".into());
    assert!(Arc::ptr_eq(
        &before,
        &apply_rules(&before, [&Arc::new(read(&elsewhere))])
    ));
    let nowhere = with(rule, "/spec/deviceSelector", Value::Null);
    assert!(Arc::ptr_eq(
        &before,
        &apply_rules(&before, [&Arc::new(read(&nowhere))])
    ));
}

#[test]
fn administrators_share() {
    let admin = with(exactly("r", 1), "/exactly/adminAccess", true.into());
    let cluster = Cluster {
        taken: vec!["n/d1"],
        ..Cluster::new(plain(&["d1"]), vec![claim("a", json!([admin.clone()]))])
    };
    cluster.check("a device others have", &[&["r=d1"]]);
    let results = cluster.results("n").expect("no error").expect("found");
    let devices = results[0]
        .devices
        .as_ref()
        .and_then(|d| d.results.as_ref())
        .expect("one");
    assert_eq!(devices[0].admin_access, Some(true));
    let mut state = AllocatedState::default();
    state.add(&results[0], true);
    assert!(state.is_empty(), "and takes nothing");
    let twice = with(admin, "/exactly/count", 2.into());
    Cluster::new(plain(&["d1"]), vec![claim("a", json!([twice]))])
        .check("not twice in a claim", &[]);
}

#[test]
fn requests_that_make_no_sense() {
    let check = |what: &str, request: Value, expect: &str| {
        Cluster::new(plain(&["d1"]), vec![claim("a", json!([request]))]).check_error(what, expect);
    };
    check(
        "class",
        with(exactly("r", 1), "/exactly/deviceClassName", "nope".into()),
        "could not retrieve device class nope",
    );
    check(
        "no class",
        with(exactly("r", 1), "/exactly/deviceClassName", "".into()),
        "missing device class name",
    );
    check(
        "mode",
        with(exactly("r", 1), "/exactly/allocationMode", "Some".into()),
        "unsupported count mode Some",
    );
    check(
        "selector",
        with(exactly("r", 1), "/exactly/selectors", json!([{}])),
        "selector #0: CEL expression empty",
    );
    check("kind", json!({"name": "r"}), "unknown request type");
    let derived = json!([{"name": "dra.example.com/x", "cel": {"expression": "1"}}]);
    check(
        "derived",
        with(exactly("r", 1), "/exactly/derivedAttributes", derived),
        "derived attributes",
    );
    check(
        "expression",
        selecting(exactly("r", 1), "device.nope"),
        "claim ns/a: selector #0 on device dra.example.com/n/d1: CEL runtime error: no such key: nope",
    );
    let broken = Cluster {
        classes: vec![with(
            class("c"),
            "/spec/selectors/0/cel/expression",
            "(".into(),
        )],
        ..Cluster::new(plain(&["d1"]), vec![claim("a", json!([exactly("r", 1)]))])
    };
    broken.check_error(
        "class's expression",
        "class c: selector #0: CEL compile error",
    );
    let off = Cluster {
        features: Features {
            consumable_capacity: false,
            ..Features::default()
        },
        ..Cluster::new(
            plain(&["d1"]),
            vec![claim(
                "a",
                json!([with(
                    exactly("r", 1),
                    "/exactly/capacity",
                    json!({"requests": {"m": "1"}})
                )]),
            )],
        )
    };
    off.check_error(
        "capacity",
        "has capacity requests, but the DRAConsumableCapacity feature is disabled",
    );
}

#[test]
fn a_search_ends() {
    // Every pair of one model fails only at the last request: the number of choices explodes.
    let names: Vec<String> = (0..24).map(|i| format!("d{i:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let last = selecting(exactly("z", 1), "false");
    let cluster = Cluster::new(
        plain(&names),
        vec![claim("a", json!([exactly("r", 12), last]))],
    );
    let asked = Cell::new(0);
    let interrupted = || {
        asked.set(asked.get() + 1);
        asked.get() > 10
    };
    assert_eq!(
        cluster.ask("n", &interrupted),
        Err(AllocateError::Interrupted)
    );
    // None is taken, so no step is made: the devices alone take the time. Nor is one for a request for all.
    for request in [exactly("r", 1), all("r")] {
        let none = Cluster::new(
            plain(&names),
            vec![claim("a", json!([selecting(request, "false")]))],
        );
        asked.set(0);
        assert_eq!(none.ask("n", &interrupted), Err(AllocateError::Interrupted));
    }
    let claims: Vec<Value> = (0..40)
        .map(|i| claim(&format!("c{i}"), json!([exactly("r", 30)])))
        .collect();
    let names: Vec<String> = (0..1200).map(|i| format!("d{i:04}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let deep = Cluster::new(plain(&names), claims);
    assert!(matches!(
        deep.ask("n", &|| false),
        Err(AllocateError::TooDeep { .. })
    ));
}
