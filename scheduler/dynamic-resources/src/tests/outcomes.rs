//! What is written into a claim's status; and which class an extended resource stands for.

use super::*;

#[test]
fn where_an_allocation_may_be_used() {
    let place = |place: Value, devices: Value| {
        let mut cluster = Cluster::new(devices, vec![claim("a", json!([exactly("r", 1)]))]);
        cluster.slices[0]["spec"]
            .as_object_mut()
            .expect("fields")
            .remove("nodeName");
        for (key, value) in place.as_object().expect("fields") {
            cluster.slices[0]["spec"][key] = value.clone();
        }
        let results = cluster.results("n").expect("no error").expect("found");
        serde_json::to_value(&results[0].node_selector).expect("JSON")
    };
    let here = json!({"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}]});
    let zone = json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["zone-n"]}]}]});
    assert_eq!(place(json!({"nodeName": "n"}), plain(&["d"])), here);
    assert_eq!(place(json!({"allNodes": true}), plain(&["d"])), Value::Null);
    assert_eq!(place(json!({"nodeSelector": zone}), plain(&["d"])), zone);
    assert_eq!(
        place(
            json!({"allNodes": true}),
            json!([{"name": "d", "bindsToNode": true}])
        ),
        here
    );
    assert_eq!(
        place(
            json!({"perDeviceNodeSelection": true}),
            json!([{"name": "d", "nodeSelector": zone}])
        ),
        zone
    );
    assert_eq!(
        place(
            json!({"perDeviceNodeSelection": true}),
            json!([{"name": "d", "nodeName": "n"}])
        ),
        here
    );
    let two =
        json!({"nodeSelectorTerms": [zone["nodeSelectorTerms"][0], zone["nodeSelectorTerms"][0]]});
    let mut cluster = Cluster::new(plain(&["d"]), vec![claim("a", json!([exactly("r", 1)]))]);
    cluster.slices[0]["spec"]["nodeName"] = Value::Null;
    cluster.slices[0]["spec"]["nodeSelector"] = two;
    cluster.check_error(
        "two terms",
        "unsupported ResourceSlice.NodeSelector with 2 terms",
    );
}

fn opaque(value: &str) -> Value {
    json!({"driver": DRIVER, "parameters": {"v": value}})
}

#[test]
fn configuration_of_class_and_claim() {
    let configured = |name: &str| {
        with(
            class(name),
            "/spec/config",
            json!([{"opaque": opaque(name)}]),
        )
    };
    let of_class = |request: &str, class: &str| {
        with(
            exactly(request, 1),
            "/exactly/deviceClassName",
            class.into(),
        )
    };
    let check = |what: &str, requests: Value, config: Value, expect: &[(&str, &str, &[&str])]| {
        let claim = with(claim("a", requests), "/spec/devices/config", config);
        let cluster = Cluster {
            classes: vec![configured("c"), configured("e"), class("none")],
            ..Cluster::new(plain(&["d1", "d2", "d3"]), vec![claim])
        };
        let results = cluster.results("n").expect("no error").expect("found");
        let config = results[0]
            .devices
            .as_ref()
            .and_then(|d| d.config.clone())
            .unwrap_or_default();
        let told: Vec<(String, String, Vec<String>)> = config
            .iter()
            .map(|c| {
                let parameters = &c.opaque.as_ref().expect("opaque").parameters.0;
                (
                    c.source.clone(),
                    parameters["v"].as_str().unwrap_or_default().to_owned(),
                    c.requests.clone().unwrap_or_default(),
                )
            })
            .collect();
        let expect: Vec<(String, String, Vec<String>)> = expect
            .iter()
            .map(|(source, value, requests)| {
                (
                    source.to_string(),
                    value.to_string(),
                    requests.iter().map(ToString::to_string).collect(),
                )
            })
            .collect();
        assert_eq!(told, expect, "{what}");
    };
    check(
        "one class",
        json!([of_class("r", "c")]),
        json!([]),
        &[("FromClass", "c", &[])],
    );
    check(
        "once for two requests",
        json!([of_class("r", "c"), of_class("s", "c")]),
        json!([]),
        &[("FromClass", "c", &[])],
    );
    check(
        "two classes",
        json!([of_class("r", "c"), of_class("s", "e")]),
        json!([]),
        &[("FromClass", "c", &["r"]), ("FromClass", "e", &["s"])],
    );
    check(
        "some of three",
        json!([
            of_class("r", "c"),
            of_class("s", "none"),
            of_class("t", "c")
        ]),
        json!([]),
        &[("FromClass", "c", &["r", "t"])],
    );
    check(
        "the claim's",
        json!([of_class("r", "none"), of_class("s", "none")]),
        json!([{"requests": ["r"], "opaque": opaque("1")}, {"opaque": opaque("2")}, {"requests": ["other"], "opaque": opaque("3")}]),
        &[("FromClaim", "1", &["r"]), ("FromClaim", "2", &[])],
    );
    let sub = |name: &str, class: &str, expression: &str| {
        json!({"name": name, "deviceClassName": class, "allocationMode": "ExactCount", "count": 1,
        "selectors": [{"cel": {"expression": expression}}]})
    };
    let prioritized = json!([{"name": "r", "firstAvailable": [sub("x", "c", "false"), sub("y", "e", "true")]}, of_class("s", "none")]);
    check(
        "of the alternative that was taken",
        prioritized,
        json!([{"requests": ["r/x"], "opaque": opaque("1")}, {"requests": ["r/y"], "opaque": opaque("2")}, {"requests": ["r"], "opaque": opaque("3")}]),
        &[
            ("FromClass", "e", &["r/y"]),
            ("FromClaim", "2", &["r/y"]),
            ("FromClaim", "3", &["r"]),
        ],
    );
}

#[test]
fn conditions_and_tolerations_are_kept() {
    let devices = json!([{"name": "d", "bindingConditions": ["ready"], "bindingFailureConditions": ["failed"]}]);
    let tolerations = json!([{"key": "k", "operator": "Exists"}]);
    let request = with(exactly("r", 1), "/exactly/tolerations", tolerations.clone());
    let results = Cluster::new(devices, vec![claim("a", json!([request]))])
        .results("n")
        .expect("no error")
        .expect("found");
    let result = serde_json::to_value(&results[0]).expect("JSON");
    assert_eq!(
        result["devices"]["results"],
        json!([{"request": "r", "driver": DRIVER, "pool": "n", "device": "d", "tolerations": tolerations,
        "bindingConditions": ["ready"], "bindingFailureConditions": ["failed"]}])
    );
}

#[test]
fn classes_of_extended_resources() {
    let class = |name: &str, resource: &str, made: &str| json!({"metadata": {"name": name, "creationTimestamp": made}, "spec": {"extendedResourceName": resource}});
    let of = |classes: &[Value], resource: &str| {
        let classes = Classes::new(classes.iter().map(|c| Arc::new(read(c))));
        classes
            .of_resource(resource)
            .and_then(|c| c.metadata.name.clone())
    };
    let all = [
        class("old", "example.com/gpu", "2026-01-01T00:00:00Z"),
        class("new-b", "example.com/gpu", "2026-02-01T00:00:00Z"),
        class("new-a", "example.com/gpu", "2026-02-01T00:00:00Z"),
    ];
    assert_eq!(
        of(&all, "example.com/gpu").as_deref(),
        Some("new-a"),
        "the newest, then the first by name"
    );
    assert_eq!(
        of(&all, "deviceclass.resource.kubernetes.io/old").as_deref(),
        Some("old")
    );
    assert_eq!(of(&all, "deviceclass.resource.kubernetes.io/none"), None);
    assert_eq!(of(&all, "example.com/fpga"), None);
}
