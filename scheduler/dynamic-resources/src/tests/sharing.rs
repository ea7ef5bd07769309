//! Partitions that draw from counters, and devices shared by capacity.

use super::*;

fn drawing(name: &str, amount: &str) -> Value {
    json!({"name": name, "consumesCounters": [{"counterSet": "gpu", "counters": {"memory": {"value": amount}}}]})
}

fn partitions(devices: Value) -> Vec<Value> {
    let counters = json!({"metadata": {"name": "counters"}, "spec": {"driver": DRIVER, "nodeName": "n",
        "pool": {"name": "n", "generation": 1, "resourceSliceCount": 2},
        "sharedCounters": [{"name": "gpu", "counters": {"memory": {"value": "40Gi"}}}]}});
    vec![
        counters,
        with(
            slice("n", devices),
            "/spec/pool/resourceSliceCount",
            2.into(),
        ),
    ]
}

#[test]
fn counters_are_not_overdrawn() {
    let devices = || {
        json!([
            drawing("whole", "40Gi"),
            drawing("half-1", "20Gi"),
            drawing("half-2", "20Gi"),
            drawing("small", "1Gi")
        ])
    };
    let check = |what: &str, count: i64, taken: &[&'static str], expect: &[&str]| {
        let cluster = Cluster {
            slices: partitions(devices()),
            taken: taken.to_vec(),
            ..Cluster::new(json!([]), vec![claim("a", json!([exactly("r", count)]))])
        };
        let expect: Vec<&[&str]> = if expect.is_empty() {
            vec![]
        } else {
            vec![expect]
        };
        cluster.check(what, &expect);
    };
    check("one", 1, &[], &["r=whole"]);
    check("two halves", 2, &[], &["r=half-1", "r=half-2"]);
    check("beside a half", 1, &["n/half-1"], &["r=half-2"]);
    check("beside both", 1, &["n/half-1", "n/half-2"], &[]);
    check("three never", 3, &[], &[]);
    check("overdrawn already", 1, &["n/whole", "n/half-1"], &[]);
    let off = Cluster {
        slices: partitions(devices()),
        features: Features {
            partitionable_devices: false,
            ..Features::default()
        },
        ..Cluster::new(json!([]), vec![claim("a", json!([exactly("r", 1)]))])
    };
    off.check("with the gate off the pool is not whole", &[]);
}

#[test]
fn counters_that_are_not_there() {
    let ask = |slices: Vec<Value>| Cluster {
        slices,
        ..Cluster::new(json!([]), vec![claim("a", json!([exactly("r", 1)]))])
    };
    let unknown_set = with(
        drawing("d", "1"),
        "/consumesCounters/0/counterSet",
        "other".into(),
    );
    ask(partitions(json!([unknown_set])))
        .check_error("set", "invalid resource pools were encountered");
    let unknown = with(
        drawing("d", "1"),
        "/consumesCounters/0/counters",
        json!({"cores": {"value": "1"}}),
    );
    ask(partitions(json!([unknown])))
        .check_error("counter", "invalid resource pools were encountered");
    let mut twice = partitions(json!([drawing("d", "1")]));
    let mut second = with(twice[0].clone(), "/metadata/name", "counters-2".into());
    for slice in twice.iter_mut().chain([&mut second]) {
        slice["spec"]["pool"]["resourceSliceCount"] = 3.into();
    }
    twice.push(second);
    ask(twice).check_error("set twice", "invalid resource pools were encountered");
}

fn shared(capacity: Value) -> Value {
    json!([{"name": "d", "allowMultipleAllocations": true, "capacity": capacity}])
}

fn wanting(name: &str, amounts: Value) -> Value {
    with(
        exactly(name, 1),
        "/exactly/capacity",
        json!({"requests": amounts}),
    )
}

fn share(amount: &str, id: &str) -> Value {
    json!([{"driver": DRIVER, "pool": "n", "device": "d", "request": "r", "shareID": id, "consumedCapacity": {"memory": amount}}])
}

/// What a request for `amounts` takes of a device with `capacity`.
fn consumed(
    capacity: Value,
    amounts: Value,
    allocated: Vec<Value>,
) -> Result<Option<BTreeMap<String, String>>, String> {
    let cluster = Cluster {
        allocated,
        ..Cluster::new(
            shared(capacity),
            vec![claim("a", json!([wanting("r", amounts)]))],
        )
    };
    let results = cluster.results("n")?;
    Ok(results.map(|results| {
        let result = &results[0]
            .devices
            .as_ref()
            .and_then(|d| d.results.as_ref())
            .expect("one")[0];
        assert_eq!(result.share_id.as_deref(), Some("share-1"));
        let consumed = result.consumed_capacity.clone().unwrap_or_default();
        consumed
            .into_iter()
            .map(|(name, quantity)| (name, quantity.0))
            .collect()
    }))
}

#[test]
fn capacity_is_shared() {
    let memory = || json!({"memory": {"value": "10Gi"}});
    let takes = |amount: &str| {
        Ok(Some(BTreeMap::from([(
            "memory".to_owned(),
            amount.to_owned(),
        )])))
    };
    assert_eq!(
        consumed(memory(), json!({"memory": "4Gi"}), vec![]),
        takes("4Gi")
    );
    assert_eq!(
        consumed(memory(), json!({"memory": "4Gi"}), vec![share("6Gi", "x")]),
        takes("4Gi")
    );
    assert_eq!(
        consumed(
            memory(),
            json!({"memory": "4Gi"}),
            vec![share("6Gi", "x"), share("1Gi", "y")]
        ),
        Ok(None)
    );
    assert_eq!(
        consumed(memory(), json!({}), vec![]),
        takes("10Gi"),
        "all of it where nothing is asked"
    );
    assert_eq!(
        consumed(memory(), json!({"cores": "1"}), vec![]),
        Ok(None),
        "there is no such"
    );
    assert_eq!(
        consumed(memory(), json!({"memory": "-1"}), vec![])
            .map_err(|e| e.contains("capacity value is negative")),
        Err(true)
    );
    let two = |a: &str, b: &str| {
        let requests = json!([
            wanting("r", json!({"memory": a})),
            wanting("s", json!({"memory": b}))
        ]);
        Cluster::new(shared(memory()), vec![claim("a", requests)])
    };
    two("5Gi", "5Gi").check("two of a claim", &[&["r=d", "s=d"]]);
    two("5Gi", "6Gi").check("too much together", &[]);
    let off = Cluster {
        allocated: vec![share("1Gi", "x")],
        features: Features {
            consumable_capacity: false,
            ..Features::default()
        },
        ..Cluster::new(shared(memory()), vec![claim("a", json!([exactly("r", 1)]))])
    };
    off.check("with the gate off a share takes the device", &[]);
    let dedicated = json!([{"name": "d", "capacity": memory()}]);
    Cluster::new(
        dedicated.clone(),
        vec![claim("a", json!([wanting("r", json!({"memory": "11Gi"}))]))],
    )
    .check("not shared: must be enough", &[]);
    Cluster::new(
        dedicated,
        vec![claim("a", json!([wanting("r", json!({"memory": "1Gi"}))]))],
    )
    .check("not shared", &[&["r=d"]]);
    let everything = json!([with(
        all("r"),
        "/exactly/capacity",
        json!({"requests": {"memory": "6Gi"}})
    )]);
    let blocked = Cluster {
        allocated: vec![share("6Gi", "x")],
        ..Cluster::new(shared(memory()), vec![claim("a", everything)])
    };
    blocked.check("all, of which one is too full", &[]);
}

#[test]
fn policies_of_requests() {
    let ranged = |range: Value| json!({"memory": {"value": "100", "requestPolicy": {"default": "10", "validRange": range}}});
    let takes = |capacity: Value, amount: &str| {
        let found = consumed(capacity, json!({"memory": amount}), vec![]);
        found.map(|found| found.map(|of| of["memory"].clone()))
    };
    let some = |amount: &str| Ok(Some(amount.to_owned()));
    let steps = || ranged(json!({"min": "10", "max": "50", "step": "5"}));
    assert_eq!(takes(steps(), "1"), some("10"), "the least");
    assert_eq!(takes(steps(), "12"), some("15"), "the next step");
    assert_eq!(takes(steps(), "15"), some("15"));
    assert_eq!(takes(steps(), "51"), Ok(None), "more than may be asked");
    assert_eq!(takes(ranged(json!({"min": "10"})), "12"), some("12"));
    assert_eq!(
        consumed(steps(), json!({}), vec![]).map(|f| f.map(|of| of["memory"].clone())),
        some("10"),
        "the default"
    );
    assert_eq!(
        takes(ranged(json!({"min": "0", "step": "500m"})), "1200m"),
        some("1500m"),
        "finer than one"
    );
    let huge = takes(
        ranged(json!({"min": "0", "step": "9000000000000000000"})),
        "9000000000000000001",
    );
    assert!(huge.is_err_and(|error| error.contains("cannot be represented")));
    let values = json!({"memory": {"value": "100", "requestPolicy": {"default": "10", "validValues": ["10", "20", "40"]}}});
    assert_eq!(takes(values.clone(), "11"), some("20"));
    assert_eq!(takes(values, "41"), Ok(None));
    let whole = Cluster {
        features: Features {
            fractional_capacity_range: false,
            ..Features::default()
        },
        ..Cluster::new(
            shared(ranged(json!({"min": "0", "step": "2"}))),
            vec![claim(
                "a",
                json!([wanting("r", json!({"memory": "1200m"}))]),
            )],
        )
    };
    let results = whole.results("n").expect("no error").expect("found");
    let result = &results[0]
        .devices
        .as_ref()
        .and_then(|d| d.results.as_ref())
        .expect("one")[0];
    assert_eq!(
        result.consumed_capacity.as_ref().expect("some")["memory"].0,
        "2",
        "in whole units with the gate off"
    );
}

#[test]
fn a_further_share_draws_no_counters() {
    let device = |name: &str| {
        with(
            with(
                drawing(name, "30Gi"),
                "/allowMultipleAllocations",
                true.into(),
            ),
            "/capacity",
            json!({"memory": {"value": "10Gi"}}),
        )
    };
    let ask = |requests: Value, allocated: Vec<Value>| Cluster {
        slices: partitions(json!([device("d"), device("e")])),
        allocated,
        ..Cluster::new(json!([]), vec![claim("a", requests)])
    };
    let want = |name: &str, amount: &str| wanting(name, json!({"memory": amount}));
    ask(json!([want("r", "5Gi"), want("s", "5Gi")]), vec![])
        .check("both of the first", &[&["r=d", "s=d"]]);
    ask(json!([want("r", "5Gi"), want("s", "6Gi")]), vec![])
        .check("the second has no counters left", &[]);
    ask(json!([want("r", "5Gi")]), vec![share("5Gi", "x")])
        .check("beside another claim's", &[&["r=d"]]);
    ask(json!([want("r", "6Gi")]), vec![share("5Gi", "x")]).check("no room, no counters", &[]);
}

#[test]
fn what_is_taken_is_given_back() {
    let mut state = AllocatedState::default();
    let allocation =
        |results: Value| read::<AllocationResult>(&json!({"devices": {"results": results}}));
    let whole = allocation(json!([{"driver": DRIVER, "pool": "n", "device": "e", "request": "r"}]));
    let part = allocation(share("1Gi", "x"));
    for taken in [&whole, &whole, &part] {
        state.add(taken, true);
    }
    assert_eq!(state.len(), 2);
    state.remove(&whole, true);
    assert!(
        state.is_taken(&DeviceId::new(DRIVER, "n", "e")),
        "another has it still"
    );
    state.remove(&whole, true);
    state.remove(&part, true);
    assert_eq!(state, AllocatedState::default());
}
