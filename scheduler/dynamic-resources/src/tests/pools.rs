//! Pools: generations, completeness, where devices are.

use super::*;

fn in_pool(
    name: &str,
    pool: &str,
    generation: i64,
    count: i64,
    place: Value,
    devices: Value,
) -> Value {
    let mut slice = json!({"metadata": {"name": name}, "spec": {"driver": DRIVER,
        "pool": {"name": pool, "generation": generation, "resourceSliceCount": count}, "devices": devices}});
    for (key, value) in place.as_object().expect("fields") {
        slice["spec"][key] = value.clone();
    }
    slice
}

fn asking(requests: Value, slices: Vec<Value>) -> Cluster {
    Cluster {
        slices,
        ..Cluster::new(json!([]), vec![claim("a", requests)])
    }
}

fn one() -> Value {
    json!([exactly("r", 1)])
}

#[test]
fn generations_and_completeness() {
    let on_n = || json!({"nodeName": "n"});
    let part = |name: &str, generation, count, device: &str| {
        in_pool(name, "n", generation, count, on_n(), plain(&[device]))
    };
    asking(
        one(),
        vec![part("s1", 1, 2, "old"), part("s2", 2, 1, "new")],
    )
    .check("the newest", &[&["r=new"]]);
    asking(one(), vec![part("s1", 1, 2, "d1")]).check("a slice is missing", &[]);
    asking(json!([all("r")]), vec![part("s1", 1, 2, "d1")]).check_error(
        "all of an incomplete pool",
        "asks for all devices, but resource pool dra.example.com/n is currently being updated",
    );
    asking(one(), vec![part("s2", 1, 2, "d2"), part("s1", 1, 2, "d1")])
        .check("by the names of slices", &[&["r=d1"]]);
    let elsewhere = |generation, count| {
        in_pool(
            "s9",
            "n",
            generation,
            count,
            json!({"nodeName": "m"}),
            plain(&["m1"]),
        )
    };
    asking(one(), vec![part("s1", 1, 2, "d1"), elsewhere(1, 2)])
        .check("the other slice is another node's", &[&["r=d1"]]);
    asking(one(), vec![part("s1", 1, 1, "d1"), elsewhere(2, 1)])
        .check("complete in itself, though it is old", &[&["r=d1"]]);
    asking(one(), vec![part("s1", 1, 2, "d1"), elsewhere(2, 2)])
        .check("a newer one is on its way", &[]);
    asking(one(), vec![part("s1", 1, 2, "d1"), part("s2", 1, 2, "d1")])
        .check_error("a name twice", "invalid resource pools were encountered");
    asking(
        json!([all("r")]),
        vec![part("s1", 1, 2, "d1"), part("s2", 1, 2, "d1")],
    )
    .check_error("all", "is currently invalid");
    let good = in_pool("g", "z", 1, 1, on_n(), plain(&["g1"]));
    asking(
        one(),
        vec![part("s1", 1, 2, "d1"), part("s2", 1, 2, "d1"), good],
    )
    .check("another pool does", &[&["r=z/g1"]]);
}

#[test]
fn places() {
    let selector = |zone: &str| json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]}]});
    let check = |what: &str, place: Value, found: bool| {
        let slices = vec![in_pool("s", "p", 1, 1, place, plain(&["d"]))];
        let expect: Vec<&[&str]> = if found { vec![&["r=p/d"]] } else { vec![] };
        asking(one(), slices).check(what, &expect);
    };
    check("all nodes", json!({"allNodes": true}), true);
    check("not all", json!({"allNodes": false}), false);
    check("nothing said", json!({}), false);
    check("another node", json!({"nodeName": "m"}), false);
    check(
        "its zone",
        json!({"nodeSelector": selector("zone-n")}),
        true,
    );
    check(
        "another zone",
        json!({"nodeSelector": selector("zone-m")}),
        false,
    );
    let wrong = json!({"nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "Near"}]}]}});
    asking(one(), vec![in_pool("s", "p", 1, 1, wrong, plain(&["d"]))]).check_error(
        "no selector",
        "gather pool information: failed to perform node selection for slice s",
    );
    let each = json!([{"name": "m", "nodeName": "m"}, {"name": "zone", "nodeSelector": selector("zone-n")}, {"name": "all", "allNodes": true},
        {"name": "nowhere"}]);
    let per_device = || json!({"perDeviceNodeSelection": true});
    let slices = vec![in_pool("s", "p", 1, 1, per_device(), each)];
    let cluster = asking(json!([all("r")]), slices.clone());
    cluster.check("each where it says", &[&["r=p/zone", "r=p/all"]]);
    assert_eq!(
        cluster.devices("m"),
        Ok(Some(vec![vec!["r=p/m".to_owned(), "r=p/all".into()]]))
    );
    let off = Cluster {
        features: Features {
            partitionable_devices: false,
            ..Features::default()
        },
        ..asking(one(), slices)
    };
    off.check("with the gate off", &[]);
    let none_here = in_pool(
        "s",
        "p",
        1,
        1,
        per_device(),
        json!([{"name": "m", "nodeName": "m"}]),
    );
    asking(json!([all("r")]), vec![none_here]).check("none here", &[]);
}

#[test]
fn the_order_of_pools() {
    let on_n = || json!({"nodeName": "n"});
    let conditional = json!([{"name": "c", "bindingConditions": ["ready"], "bindingFailureConditions": ["failed"]}]);
    let slices = || {
        vec![
            in_pool("s3", "b", 1, 1, on_n(), plain(&["b"])),
            in_pool("s2", "a", 1, 1, on_n(), conditional.clone()),
            in_pool("s1", "c", 1, 1, on_n(), plain(&["c"])),
        ]
    };
    asking(json!([exactly("r", 3)]), slices()).check(
        "those with binding conditions last",
        &[&["r=b/b", "r=c/c", "r=a/c"]],
    );
    let off = Cluster {
        features: Features {
            device_binding_conditions: false,
            ..Features::default()
        },
        ..asking(json!([exactly("r", 3)]), slices())
    };
    off.check("never with the gate off", &[]);
    let grouped = json!([{"name": "g", "consumesCounters": [{"counterSet": "s", "counters": {"c": {"value": "1"}}, "compatibilityGroups": ["x"]}]}]);
    asking(one(), vec![in_pool("s1", "p", 1, 1, on_n(), grouped)])
        .check("compatibility groups are not known", &[]);
}
