//! Claims and nodes, what is assumed, written and waited for, and which pods share what was found.

use std::task::{Context, Poll, Waker};

use framework::testing::{
    PodBuilder, assert_forms_agree, make_node, make_pod, snapshot, storage_object,
};
use framework::{Code, EventObject, QueueingHint};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::*;
use crate::testing::{FakeHandle, handle_with};

const ZONE: &str = "topology.kubernetes.io/zone";

fn class(name: &str, provisioner: &str, mode: &str) -> Value {
    json!({"kind": "StorageClass", "metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode})
}

/// A claim of a class and size.
fn claim(name: &str, class: &str, size: &str) -> Value {
    json!({"kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "resourceVersion": "1"},
        "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}})
}

fn bound(name: &str, volume: &str) -> Value {
    let mut claim = claim(name, "", "1Gi");
    claim["spec"]["volumeName"] = volume.into();
    claim["metadata"]["annotations"] = json!({"pv.kubernetes.io/bind-completed": "yes"});
    claim
}

/// A volume on nodes with a zone; everywhere if it is empty.
fn volume(name: &str, class: &str, size: &str, zone: &str) -> Value {
    let affinity = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": ZONE, "operator": "In", "values": [zone]}]}]}});
    json!({"kind": "PersistentVolume", "metadata": {"name": name, "resourceVersion": "1"},
        "spec": {"storageClassName": class, "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"],
            "nodeAffinity": if zone.is_empty() { Value::Null } else { affinity }},
        "status": {"phase": "Available"}})
}

fn with(mut object: Value, path: &str, value: Value) -> Value {
    *object.pointer_mut(path).unwrap_or_else(|| panic!("{path}")) = value;
    object
}

fn classes() -> Vec<Value> {
    let topologies = json!([{"matchLabelExpressions": [{"key": ZONE, "values": ["a"]}]}]);
    let mut zoned = class("zoned", "driver", "WaitForFirstConsumer");
    zoned["allowedTopologies"] = topologies;
    vec![
        class(
            "static",
            "kubernetes.io/no-provisioner",
            "WaitForFirstConsumer",
        ),
        class("dynamic", "driver", "WaitForFirstConsumer"),
        class("immediate", "driver", "Immediate"),
        class("measured", "measuring", "WaitForFirstConsumer"),
        json!({"kind": "CSIDriver", "metadata": {"name": "measuring"}, "spec": {"storageCapacity": true}}),
        zoned,
    ]
}

fn capacity(name: &str, zone: &str, field: &str, size: &str) -> Value {
    json!({"kind": "CSIStorageCapacity", "metadata": {"name": name, "namespace": "default"}, "storageClassName": "measured",
        field: size, "nodeTopology": {"matchLabels": {ZONE: zone}}})
}

fn plugin(handle: &Arc<FakeHandle>) -> VolumeBinding {
    VolumeBinding {
        handle: Arc::clone(handle) as Arc<dyn Handle>,
        bind_timeout: Duration::from_secs(600),
    }
}

fn pod(claims: &[&str]) -> Arc<PodInfo> {
    claims
        .iter()
        .fold(make_pod("p").uid("uid-p"), |pod, claim| pod.claim(claim))
        .info()
}

/// Nodes `a` and `b` in the zones of their names.
fn zones() -> Snapshot {
    snapshot(
        ["a", "b"].map(|zone| make_node(zone).zone(zone).build()),
        [],
    )
}

#[test]
fn claims_that_keep_a_pod_waiting() {
    let phase = |phase: &str| {
        let mut claim = bound("c", "v");
        claim["status"] = json!({"phase": phase});
        claim
    };
    let mut deleted = claim("c", "dynamic", "1Gi");
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    let prebound = {
        let mut claim = claim("c", "static", "1Gi");
        claim["spec"]["volumeName"] = "v".into();
        claim
    };
    for (what, object, expect) in [
        ("none", None, "persistentvolumeclaim \"c\" not found"),
        (
            "lost",
            Some(phase("Lost")),
            "persistentvolumeclaim \"c\" bound to non-existent persistentvolume \"v\"",
        ),
        (
            "deleted",
            Some(deleted),
            "persistentvolumeclaim \"c\" is being deleted",
        ),
        (
            "immediate",
            Some(claim("c", "immediate", "1Gi")),
            ERR_REASON_UNBOUND_IMMEDIATE,
        ),
        (
            "without class",
            Some(claim("c", "", "1Gi")),
            ERR_REASON_UNBOUND_IMMEDIATE,
        ),
        (
            "of a class that is not there",
            Some(claim("c", "nowhere", "1Gi")),
            ERR_REASON_UNBOUND_IMMEDIATE,
        ),
        (
            "that names its volume",
            Some(prebound),
            ERR_REASON_UNBOUND_IMMEDIATE,
        ),
    ] {
        let handle = handle_with(&[classes(), object.into_iter().collect()].concat());
        let plugin = plugin(&handle);
        let status = plugin
            .pre_filter(&mut CycleState::new(), &pod(&["c"]), &zones())
            .1;
        assert_eq!(status, Status::unresolvable(expect), "{what}");
        assert_eq!(plugin.sign(&pod(&["c"]), &zones()), None, "{what}");
    }
    let ephemeral = make_pod("p")
        .volume(json!({"ephemeral": {"volumeClaimTemplate": {"spec": {}}}}))
        .info();
    let check = |objects: &[Value], expect: &str| {
        let status = plugin(&handle_with(objects))
            .pre_filter(&mut CycleState::new(), &ephemeral, &zones())
            .1;
        assert_eq!(status, Status::unresolvable(expect));
    };
    check(
        &[],
        "waiting for ephemeral volume controller to create the persistentvolumeclaim \"p-v0\"",
    );
    check(
        &[claim("p-v0", "dynamic", "1Gi")],
        "PVC default/p-v0 was not created for pod default/p (pod is not owner)",
    );
    let plain = make_pod("p").info();
    let plugin = plugin(&handle_with(&[]));
    assert!(
        plugin
            .pre_filter(&mut CycleState::new(), &plain, &zones())
            .1
            .is_skip()
    );
    assert!(!plugin.concerns(&plain));
}

#[test]
fn which_nodes_will_do() {
    const NODE: &str = ERR_REASON_NODE_CONFLICT;
    const BIND: &str = ERR_REASON_BIND_CONFLICT;
    const SPACE: &str = ERR_REASON_NOT_ENOUGH_SPACE;
    const GONE: &str = ERR_REASON_PV_NOT_EXIST;
    let selected = |claim: Value, node: &str| {
        let mut claim = claim;
        claim["metadata"]["annotations"] = json!({"volume.kubernetes.io/selected-node": node});
        claim
    };
    let meant = |volume: Value, claim: &str| {
        let mut volume = volume;
        volume["spec"]["claimRef"] = json!({"namespace": "default", "name": claim});
        volume
    };
    let small = || claim("c", "static", "1Gi");
    let ebs = || {
        let mut volume = volume("v", "", "1Gi", "");
        volume["metadata"]["labels"] = json!({ZONE: "a"});
        volume["spec"]["awsElasticBlockStore"] = json!({"volumeID": "vol-1"});
        volume
    };
    let migrated = |node: &str| {
        json!({"kind": "CSINode", "metadata": {"name": node, "annotations": {
            "storage.alpha.kubernetes.io/migrated-plugins": "kubernetes.io/aws-ebs"}}, "spec": {"drivers": []}})
    };
    type Row<'a> = (
        &'a str,
        Vec<Value>,
        Vec<&'a str>,
        Vec<&'a str>,
        Vec<&'a str>,
    );
    let rows: Vec<Row<'_>> = vec![
        (
            "bound, in a",
            vec![bound("c", "v"), volume("v", "", "1Gi", "a")],
            vec!["c"],
            vec![],
            vec![NODE],
        ),
        (
            "bound, anywhere",
            vec![bound("c", "v"), volume("v", "", "1Gi", "")],
            vec!["c"],
            vec![],
            vec![],
        ),
        (
            "bound to what is gone",
            vec![bound("c", "v")],
            vec!["c"],
            vec![GONE],
            vec![GONE],
        ),
        (
            "one elsewhere, one gone",
            vec![
                bound("c", "v"),
                bound("d", "w"),
                volume("v", "", "1Gi", "a"),
            ],
            vec!["c", "d"],
            vec![GONE],
            vec![NODE],
        ),
        (
            "bound, of a plugin moved to CSI on a and b",
            vec![bound("c", "v"), ebs(), migrated("a"), migrated("b")],
            vec!["c"],
            vec![NODE],
            vec![NODE],
        ),
        (
            "bound, of a plugin that is not moved there",
            vec![bound("c", "v"), ebs(), migrated("b")],
            vec!["c"],
            vec![],
            vec![NODE],
        ),
        (
            "a volume in a",
            vec![small(), volume("v", "static", "1Gi", "a")],
            vec!["c"],
            vec![],
            vec![BIND],
        ),
        (
            "no volume",
            vec![small()],
            vec!["c"],
            vec![BIND],
            vec![BIND],
        ),
        (
            "too small",
            vec![
                claim("c", "static", "2Gi"),
                volume("v", "static", "1Gi", "a"),
            ],
            vec!["c"],
            vec![BIND],
            vec![BIND],
        ),
        (
            "of another mode of access",
            vec![
                with(small(), "/spec/accessModes/0", "ReadWriteMany".into()),
                volume("v", "static", "1Gi", ""),
            ],
            vec!["c"],
            vec![BIND],
            vec![BIND],
        ),
        (
            "two claims, one volume in each zone",
            vec![
                small(),
                claim("d", "static", "1Gi"),
                volume("v", "static", "1Gi", "a"),
                volume("w", "static", "1Gi", "b"),
            ],
            vec!["c", "d"],
            vec![BIND],
            vec![BIND],
        ),
        (
            "two claims, two volumes in a",
            vec![
                small(),
                claim("d", "static", "2Gi"),
                volume("v", "static", "2Gi", "a"),
                volume("w", "static", "1Gi", "a"),
            ],
            vec!["d", "c"],
            vec![],
            vec![BIND],
        ),
        (
            "meant for it, in b, though others are in a",
            vec![
                small(),
                volume("v", "static", "1Gi", "a"),
                meant(volume("w", "static", "9Gi", "b"), "c"),
            ],
            vec!["c"],
            vec![BIND],
            vec![],
        ),
        (
            "meant for another",
            vec![small(), meant(volume("v", "static", "1Gi", "a"), "d")],
            vec!["c"],
            vec![BIND],
            vec![BIND],
        ),
        (
            "made where it may be",
            vec![claim("c", "zoned", "1Gi")],
            vec!["c"],
            vec![],
            vec![BIND],
        ),
        (
            "made anywhere",
            vec![claim("c", "dynamic", "1Gi")],
            vec!["c"],
            vec![],
            vec![],
        ),
        (
            "being made for b",
            vec![selected(claim("c", "dynamic", "1Gi"), "b")],
            vec!["c"],
            vec![BIND],
            vec![],
        ),
        (
            "made where there is room",
            vec![
                claim("c", "measured", "2Gi"),
                capacity("x", "a", "capacity", "1Gi"),
                capacity("y", "b", "capacity", "3Gi"),
            ],
            vec!["c"],
            vec![SPACE],
            vec![],
        ),
        (
            "the largest volume counts, not the room",
            vec![claim("c", "measured", "2Gi"), {
                let mut x = capacity("x", "a", "capacity", "9Gi");
                x["maximumVolumeSize"] = "1Gi".into();
                x
            }],
            vec!["c"],
            vec![SPACE],
            vec![SPACE],
        ),
        (
            "all at once: bound in b, free in a",
            vec![
                bound("b", "w"),
                volume("w", "", "1Gi", "b"),
                small(),
                volume("v", "static", "1Gi", "a"),
            ],
            vec!["b", "c"],
            vec![NODE],
            vec![BIND],
        ),
        (
            "and both reasons on one node",
            vec![bound("b", "w"), volume("w", "", "1Gi", "b"), small()],
            vec!["b", "c"],
            vec![NODE, BIND],
            vec![BIND],
        ),
    ];
    for (what, objects, claims, on_a, on_b) in rows {
        let handle = handle_with(&[classes(), objects].concat());
        let (plugin, pod, snapshot) = (plugin(&handle), pod(&claims), zones());
        let mut state = CycleState::new();
        assert!(
            plugin
                .pre_filter(&mut state, &pod, &snapshot)
                .1
                .is_success(),
            "{what}"
        );
        for (node, expect) in [("a", on_a), ("b", on_b)] {
            let status = plugin.filter(&state, &pod, snapshot.get(node).expect("there"));
            assert_eq!(status.reasons(), expect, "{what}, on {node}");
            let rejected = status.code() == Code::UnschedulableAndUnresolvable;
            assert_eq!(rejected, !expect.is_empty(), "{what}");
        }
        assert_forms_agree(&plugin, &pod, &snapshot);
    }
}

/// A scheduler with nodes a and b, and a pod it knows.
fn bed(objects: Vec<Value>) -> (Arc<FakeHandle>, VolumeBinding) {
    let handle = handle_with(&[classes(), objects].concat());
    let nodes = ["a", "b"].map(|zone| make_node(zone).zone(zone).build());
    handle.nodes.lock().expect("no panic").extend(nodes);
    handle
        .pods
        .lock()
        .expect("no panic")
        .push(Arc::clone(&pod(&[]).pod));
    let plugin = plugin(&handle);
    (handle, plugin)
}

fn filtered(plugin: &VolumeBinding, pod: &Arc<PodInfo>) -> CycleState {
    let mut state = CycleState::new();
    assert!(plugin.pre_filter(&mut state, pod, &zones()).1.is_success());
    state
}

fn reserved(plugin: &VolumeBinding, pod: &Arc<PodInfo>, node: &str) -> CycleState {
    let mut state = filtered(plugin, pod);
    assert_eq!(plugin.reserve(&mut state, pod, node), Status::success());
    state
}

#[test]
fn the_smallest_volume_is_assumed_and_given_back() {
    let objects = vec![
        claim("c", "static", "1Gi"),
        claim("d", "static", "1Gi"),
        volume("large", "static", "5Gi", "a"),
        volume("small", "static", "2Gi", "a"),
    ];
    let (handle, plugin) = bed(objects);
    let free = || {
        let volumes = handle.volumes.read();
        volumes
            .unclaimed("static")
            .map(|v| v.name().to_owned())
            .collect::<Vec<_>>()
    };
    let first = pod(&["c"]);
    let mut state = reserved(&plugin, &first, "a");
    assert_eq!(free(), ["large"]);
    assert!(
        plugin
            .pre_bind_pre_flight(&state, &first, "a")
            .1
            .is_success()
    );
    // The next pod gets the other, and a third that uses the first's claim goes where the first went.
    let second = reserved(&plugin, &pod(&["d"]), "a");
    assert!(free().is_empty());
    let third = pod(&["c"]);
    let judged = filtered(&plugin, &third);
    let on = |node: &str| {
        plugin
            .filter(&judged, &third, zones().get(node).expect("there"))
            .is_success()
    };
    assert_eq!((on("a"), on("b")), (true, false));
    plugin.unreserve(&mut state, &first, "a");
    assert_eq!(free(), ["small"]);
    plugin.unreserve(&mut state, &first, "a");
    let mut second = second;
    plugin.unreserve(&mut second, &pod(&["d"]), "a");
    assert_eq!(free(), ["large", "small"]);
    assert!(handle.api.writes.lock().expect("no panic").is_empty());
}

#[test]
fn a_node_that_will_not_do_any_more_is_tried_again() {
    let (handle, plugin) = bed(vec![
        claim("c", "static", "1Gi"),
        volume("v", "static", "1Gi", "a"),
    ]);
    let pod = pod(&["c"]);
    let mut state = filtered(&plugin, &pod);
    let gone = storage_object(&volume("v", "static", "1Gi", "a"));
    handle.volumes.apply(Some(&gone), None);
    let status = plugin.reserve(&mut state, &pod, "a");
    assert!(status.is_error(), "{status}");
    assert!(plugin.pre_bind_pre_flight(&state, &pod, "a").1.is_skip());
}

fn poll<'a>(future: &mut BoxFuture<'a, Status>) -> Option<Status> {
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(status) => Some(status),
        Poll::Pending => None,
    }
}

/// Changes an object to its form at the version written, and further.
fn update(handle: &FakeHandle, old: &Value, change: impl FnOnce(&mut Value)) {
    let mut new = old.clone();
    new["metadata"]["resourceVersion"] = "100".into();
    change(&mut new);
    handle
        .volumes
        .apply(Some(&storage_object(old)), Some(&storage_object(&new)));
}

#[test]
fn pre_bind_writes_and_waits_for_the_binder() {
    let (c, v) = (
        claim("c", "static", "1Gi"),
        volume("v", "static", "1Gi", "a"),
    );
    let completed = |c: &mut Value| {
        c["spec"]["volumeName"] = "v".into();
        c["metadata"]["annotations"] = json!({"pv.kubernetes.io/bind-completed": "yes"});
    };
    let claimed = |v: &mut Value| {
        v["spec"]["claimRef"] = json!({"namespace": "default", "name": "c", "uid": "uid-c"});
    };
    let (handle, plugin) = bed(vec![c.clone(), v.clone()]);
    let pod = pod(&["c"]);
    let state = reserved(&plugin, &pod, "a");
    let mut binding = plugin.pre_bind(&state, &pod, "a");
    assert_eq!(poll(&mut binding), None);
    assert_eq!(
        *handle.api.writes.lock().expect("no panic"),
        ["volume v to c"]
    );
    update(&handle, &c, completed);
    assert_eq!(
        poll(&mut binding),
        None,
        "the volume as written has not come by"
    );
    update(&handle, &v, claimed);
    assert_eq!(poll(&mut binding), Some(Status::success()));
    drop(binding);

    // The binder took the claim off the volume.
    let (handle, plugin) = bed(vec![c.clone(), v.clone()]);
    let state = reserved(&plugin, &pod, "a");
    let mut binding = plugin.pre_bind(&state, &pod, "a");
    assert_eq!(poll(&mut binding), None);
    update(&handle, &v, |_| {});
    let failed = |text: &str| Some(Status::error(format!("binding volumes: {text}")));
    assert_eq!(
        poll(&mut binding),
        failed("ClaimRef got reset for pv \"v\"")
    );
    drop(binding);

    // The pod went away; the node's labels changed.
    let (handle, plugin) = bed(vec![c.clone(), v.clone()]);
    let state = reserved(&plugin, &pod, "a");
    let mut binding = plugin.pre_bind(&state, &pod, "a");
    assert_eq!(poll(&mut binding), None);
    update(&handle, &v, claimed);
    *handle.nodes.lock().expect("no panic") = vec![make_node("a").zone("z").build()];
    assert_eq!(
        poll(&mut binding),
        failed("pv \"v\" node affinity doesn't match node \"a\": no matching NodeSelectorTerms")
    );
    drop(binding);
    let (handle, plugin) = bed(vec![c, v]);
    let state = reserved(&plugin, &pod, "a");
    handle.pods.lock().expect("no panic").clear();
    let mut binding = plugin.pre_bind(&state, &pod, "a");
    assert_eq!(
        poll(&mut binding),
        failed("pod does not exist any more: pod \"p\" not found")
    );
}

#[test]
fn pre_bind_has_volumes_made() {
    let c = claim("c", "dynamic", "1Gi");
    let pod = pod(&["c"]);
    let (handle, plugin) = bed(vec![c.clone()]);
    let state = reserved(&plugin, &pod, "b");
    let assumed = handle
        .volumes
        .read()
        .claim("default/c")
        .cloned()
        .expect("there");
    assert_eq!(annotation(&assumed.metadata, SELECTED_NODE), Some("b"));
    let mut binding = plugin.pre_bind(&state, &pod, "b");
    assert_eq!(poll(&mut binding), None);
    let expect = "claim c {\"volume.kubernetes.io/selected-node\": \"b\"}";
    assert_eq!(*handle.api.writes.lock().expect("no panic"), [expect]);
    let chosen = |c: &mut Value, more: Value| {
        c["metadata"]["annotations"] = json!({"volume.kubernetes.io/selected-node": "b", "pv.kubernetes.io/bind-completed": more});
        c["spec"]["volumeName"] = "made".into();
    };
    update(&handle, &c, |c| chosen(c, "yes".into()));
    assert_eq!(poll(&mut binding), None, "the volume has not come by");
    let mut made = volume("made", "dynamic", "1Gi", "b");
    made["spec"]["claimRef"] = json!({"namespace": "default", "name": "c", "uid": "uid-c"});
    handle.volumes.apply(None, Some(&storage_object(&made)));
    assert_eq!(poll(&mut binding), Some(Status::success()));
    drop(binding);

    // The provisioner gave up on the node.
    let (handle, plugin) = bed(vec![c.clone()]);
    let state = reserved(&plugin, &pod, "b");
    let mut binding = plugin.pre_bind(&state, &pod, "b");
    assert_eq!(poll(&mut binding), None);
    update(&handle, &c, |_| {});
    let failed = Status::error("binding volumes: provisioning failed for PVC \"c\"");
    assert_eq!(poll(&mut binding), Some(failed));
}

#[test]
fn waiting_has_an_end() {
    let mut handle = handle_with(&[classes(), vec![claim("c", "dynamic", "1Gi")]].concat());
    let of = Arc::get_mut(&mut handle).expect("one owner");
    of.time_is_up = true;
    of.nodes
        .lock()
        .expect("no panic")
        .push(make_node("a").build());
    let pod = pod(&["c"]);
    of.pods.lock().expect("no panic").push(Arc::clone(&pod.pod));
    let plugin = plugin(&handle);
    let state = reserved(&plugin, &pod, "a");
    let timeout = Status::error("binding volumes: context deadline exceeded");
    assert_eq!(poll(&mut plugin.pre_bind(&state, &pod, "a")), Some(timeout));
}

#[test]
fn which_pods_share_what_was_found() {
    let large = |name: &str| claim(name, "static", "2Gi");
    let objects = vec![
        claim("s1", "static", "1Gi"),
        claim("s2", "static", "1Gi"),
        large("s3"),
        claim("d1", "dynamic", "1Gi"),
        claim("d2", "dynamic", "1Gi"),
        bound("b1", "v1"),
        bound("b2", "v2"),
        bound("b3", "v3"),
        volume("v1", "", "1Gi", "a"),
        volume("v2", "", "1Gi", "a"),
        volume("v3", "", "1Gi", "b"),
        volume("free", "static", "1Gi", "a"),
    ];
    let (handle, plugin) = bed(objects);
    let key = |claims: &[&str]| {
        let mut key = Vec::new();
        plugin.sign_more(&pod(claims), &zones(), &mut key);
        (plugin.sign(&pod(claims), &zones()), key)
    };
    for (a, b, same) in [
        (["s1"], ["s2"], true),
        (["s1"], ["s3"], false),
        (["s1"], ["d1"], false),
        (["d1"], ["d2"], true),
        (["b1"], ["b2"], true),
        (["b1"], ["b3"], false),
        (["b1"], ["s1"], false),
    ] {
        assert_eq!(key(&a) == key(&b), same, "{a:?} {b:?}");
    }
    assert_ne!(key(&["b1", "s1"]), key(&["b1"]));
    // What is found for the first holds for the second until a volume is taken; claims that get new ones take none.
    let before = key(&["s2"]);
    let dynamic = key(&["d2"]);
    let mut state = reserved(&plugin, &pod(&["d1"]), "a");
    assert_eq!(key(&["d2"]), dynamic);
    let mut taken = reserved(&plugin, &pod(&["s1"]), "a");
    assert_ne!(key(&["s2"]), before);
    assert_eq!(key(&["d2"]), dynamic);
    plugin.unreserve(&mut taken, &pod(&["s1"]), "a");
    plugin.unreserve(&mut state, &pod(&["d1"]), "a");
    let mut meant = volume("meant", "static", "9Gi", "b");
    meant["spec"]["claimRef"] = json!({"namespace": "default", "name": "s2"});
    handle.volumes.apply(None, Some(&storage_object(&meant)));
    assert_ne!(key(&["s1"]), key(&["s2"]), "one has a volume of its own");
    let plain = plugin.sign(&make_pod("p").info(), &zones());
    assert_eq!(plain, Some(Sign::node(Fragments::NONE)));
}

#[test]
fn arguments() {
    let make = |args: Value| {
        let made = new(Some(&args), handle_with(&[]));
        made.err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    assert_eq!(make(json!({"bindTimeoutSeconds": 10})), "");
    assert!(
        make(json!({"bindTimeoutSeconds": -1})).contains("bindTimeoutSeconds: Invalid value: -1")
    );
    assert!(
        make(json!({"shape": [{"utilization": 0, "score": 0}]})).contains("StorageCapacityScoring")
    );
    assert!(make(json!({"bindTimeout": 1})).contains("bindTimeout"));
}

#[test]
fn hints() {
    let pod: Arc<Pod> = PodBuilder::claim(make_pod("p"), "c")
        .volume(json!({"csi": {"driver": "measuring"}}))
        .build();
    let object = |value: Value| storage_object(&value);
    type Hint = fn(&Arc<Pod>, Option<&EventObject>, Option<&EventObject>) -> QueueingHint;
    let check = |what: &str, hint: Hint, old: Option<Value>, new: Value, helps: bool| {
        let (old, new) = (old.map(object), object(new));
        let expect = if helps {
            QueueingHint::Queue
        } else {
            QueueingHint::QueueSkip
        };
        assert_eq!(hint(&pod, old.as_ref(), Some(&new)), expect, "{what}");
    };
    let zoned = || classes().pop().expect("some");
    let unzoned = || class("zoned", "driver", "WaitForFirstConsumer");
    check(
        "a new class",
        hints::after_class_change,
        None,
        zoned(),
        true,
    );
    check(
        "other topologies",
        hints::after_class_change,
        Some(unzoned()),
        zoned(),
        true,
    );
    check(
        "the same",
        hints::after_class_change,
        Some(zoned()),
        zoned(),
        false,
    );
    let room = |size: &str| capacity("x", "a", "capacity", size);
    check(
        "new room",
        hints::after_capacity_change,
        None,
        room("1Gi"),
        true,
    );
    check(
        "more room",
        hints::after_capacity_change,
        Some(room("1Gi")),
        room("2Gi"),
        true,
    );
    check(
        "less room",
        hints::after_capacity_change,
        Some(room("2Gi")),
        room("1Gi"),
        false,
    );
    let driver = |tells: bool| json!({"kind": "CSIDriver", "metadata": {"name": "measuring"}, "spec": {"storageCapacity": tells}});
    check(
        "a driver that tells no more",
        hints::after_csi_driver_change,
        Some(driver(true)),
        driver(false),
        true,
    );
    check(
        "a driver that tells now",
        hints::after_csi_driver_change,
        Some(driver(false)),
        driver(true),
        false,
    );
    let node = |plugins: &str| {
        json!({"kind": "CSINode", "metadata": {"name": "n", "annotations": {
            "storage.alpha.kubernetes.io/migrated-plugins": plugins}}, "spec": {"drivers": []}})
    };
    check(
        "plugins moved",
        hints::after_csi_node_change,
        Some(node("")),
        node("kubernetes.io/aws-ebs"),
        true,
    );
    check(
        "none moved",
        hints::after_csi_node_change,
        Some(node("x")),
        node("x"),
        false,
    );
}

#[test]
fn a_pod_that_never_came_to_its_node_leaves_its_volumes() {
    let after = |pod: &PodBuilder| {
        let pod = EventObject::Pod(pod.clone().build());
        hints::after_retreat(Some(&pod)) == QueueingHint::Queue
    };
    let plain = make_pod("p");
    let user = PodBuilder::claim(plain.clone(), "c");
    assert!(after(&user) && !after(&plain));
    assert!(!after(&user.node("n")), "its volumes are bound");
}
