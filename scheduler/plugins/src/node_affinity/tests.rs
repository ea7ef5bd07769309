use framework::testing::{assert_forms_agree, make_node, make_pod, snapshot};
use k8s_openapi::serde_json::{Value, from_value, json};

use super::*;
use crate::testing::handle;

fn pod(spec: Value) -> Arc<PodInfo> {
    make_pod("p")
        .with(|pod| pod.spec = Some(from_value(spec).expect("a pod spec")))
        .info()
}

fn required(terms: Value) -> Value {
    json!({"containers": [], "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
}

fn nodes() -> Snapshot {
    snapshot(
        [
            make_node("a").zone("x").label("cpus", "4").build(),
            make_node("b").zone("y").label("cpus", "8").build(),
            make_node("c").label("disk", "").build(),
        ],
        [],
    )
}

#[test]
fn filters() {
    let zone = "topology.kubernetes.io/zone";
    let plugin = NodeAffinity(Arc::default());
    let snapshot = nodes();
    for (spec, expect) in [
        (json!({"containers": [], "nodeSelector": {zone: "x"}}), "a"),
        (
            json!({"containers": [], "nodeSelector": {zone: "x", "cpus": "8"}}),
            "",
        ),
        (
            required(
                json!([{"matchExpressions": [{"key": zone, "operator": "In", "values": ["x", "y"]}]}]),
            ),
            "ab",
        ),
        (
            required(
                json!([{"matchExpressions": [{"key": zone, "operator": "NotIn", "values": ["x"]}]}]),
            ),
            "bc",
        ),
        (
            required(
                json!([{"matchExpressions": [{"key": "cpus", "operator": "Gt", "values": ["4"]}]}]),
            ),
            "b",
        ),
        (
            required(json!([{"matchExpressions": [{"key": "disk", "operator": "Exists"}]}])),
            "c",
        ),
        (
            required(
                json!([{"matchExpressions": [{"key": "disk", "operator": "DoesNotExist"}, {"key": "cpus", "operator": "Lt", "values": ["8"]}]}]),
            ),
            "a",
        ),
        (
            required(
                json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}]),
            ),
            "b",
        ),
        (
            required(
                json!([{"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["b"]}]}]),
            ),
            "ac",
        ),
        (
            required(
                json!([{"matchExpressions": [{"key": "nowhere", "operator": "Exists"}]}, {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["c"]}]}]),
            ),
            "c",
        ),
        (required(json!([{}])), ""),
        (required(json!([])), ""),
    ] {
        let pod = pod(spec.clone());
        let mut state = CycleState::new();
        let (_, status) = plugin.pre_filter(&mut state, &pod, &snapshot);
        assert!(status.is_success(), "{spec}: {status}");
        let fit: String = ["a", "b", "c"]
            .into_iter()
            .filter(|name| {
                plugin
                    .filter(&state, &pod, snapshot.get(name).unwrap())
                    .is_success()
            })
            .collect();
        assert_eq!(fit, expect, "{spec}");
        assert_forms_agree(&plugin, &pod, &snapshot);
    }
}

#[test]
fn pre_filter_narrows() {
    let name = |names: Value| json!({"key": "metadata.name", "operator": "In", "values": names});
    let plugin = NodeAffinity(Arc::default());
    let check = |spec: Value, expect: Result<Option<&[&str]>, &str>| {
        let (result, status) =
            plugin.pre_filter(&mut CycleState::new(), &pod(spec.clone()), &nodes());
        let expect =
            expect.map(|names| names.map(|names| names.iter().map(|n| n.to_string()).collect()));
        match expect {
            Ok(names) => assert_eq!(
                (result.node_names, status),
                (names, Status::success()),
                "{spec}"
            ),
            Err(reason) => assert_eq!(status, Status::unresolvable(reason), "{spec}"),
        }
    };
    check(
        required(
            json!([{"matchFields": [name(json!(["a"]))]}, {"matchFields": [name(json!(["b"]))]}]),
        ),
        Ok(Some(&["a", "b"])),
    );
    check(
        required(
            json!([{"matchFields": [name(json!(["a"]))]}, {"matchExpressions": [{"key": "x", "operator": "Exists"}]}]),
        ),
        Ok(None),
    );
    check(
        required(json!([{"matchFields": [name(json!(["a"])), name(json!(["b"]))]}])),
        Err(ERR_REASON_CONFLICT),
    );
    let (_, status) = plugin.pre_filter(&mut CycleState::new(), &make_pod("p").info(), &nodes());
    assert!(status.is_skip());
}

#[test]
fn scores_and_added_affinity() {
    let added = json!({"addedAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "cpus", "operator": "Exists"}]}]},
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 10, "preference": {"matchExpressions": [{"key": "cpus", "operator": "In", "values": ["8"]}]}}]
    }});
    let snapshot = nodes();
    let plugin = new(Some(&added), handle()).unwrap();
    let pod = make_pod("p")
        .preferred_node_affinity(5, "topology.kubernetes.io/zone", &["x", "y"])
        .info();
    assert_forms_agree(plugin.as_ref(), &pod, &snapshot);
    assert_forms_agree(&NodeAffinity(Arc::default()), &pod, &snapshot);
    let mut state = CycleState::new();
    assert!(
        plugin
            .as_pre_score()
            .unwrap()
            .pre_score(&mut state, &pod, &snapshot, snapshot.columns().live())
            .is_success()
    );
    let score = |name| {
        plugin
            .as_score()
            .unwrap()
            .score(&state, &pod, snapshot.get(name).unwrap())
            .unwrap()
    };
    assert_eq!(["a", "b", "c"].map(score), [5, 15, 0]);
    let status = plugin
        .as_filter()
        .unwrap()
        .filter(&state, &pod, snapshot.get("c").unwrap());
    assert_eq!(status, Status::unresolvable(ERR_REASON_ENFORCED));
    let wrong = json!({"addedAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Near"}]}]}}});
    assert!(new(Some(&wrong), handle()).is_err());
}

#[test]
fn hints() {
    let pod = make_pod("p")
        .with(|pod| {
            pod.spec.as_mut().unwrap().node_selector =
                Some([("zone".to_string(), "x".to_string())].into())
        })
        .build();
    let node = |zone: &str| make_node("a").label("zone", zone).build();
    for (old, new, expect) in [
        (None, node("x"), QueueingHint::Queue),
        (None, node("y"), QueueingHint::QueueSkip),
        (Some(node("y")), node("x"), QueueingHint::Queue),
        (Some(node("x")), node("x"), QueueingHint::QueueSkip),
    ] {
        assert_eq!(
            after_node_change(&Inner::default(), &pod, old.as_ref(), &new),
            expect
        );
    }
}
