//! Zones of volumes and of nodes, old labels and new.

use framework::testing::{assert_forms_agree, make_node, make_pod, snapshot};
use serde_json::{Value, json};

use super::*;
use crate::testing::handle_with;

const ZONE: &str = "topology.kubernetes.io/zone";
const BETA_ZONE: &str = "failure-domain.beta.kubernetes.io/zone";
const REGION: &str = "topology.kubernetes.io/region";

fn volume(name: &str, label: &str, value: &str) -> Value {
    json!({"kind": "PersistentVolume", "metadata": {"name": name, "labels": {label: value}}})
}

fn claim(name: &str, volume: &str, class: &str) -> Value {
    json!({"kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "default"},
        "spec": {"volumeName": volume, "storageClassName": class}})
}

fn class(name: &str, mode: &str) -> Value {
    json!({"kind": "StorageClass", "metadata": {"name": name}, "provisioner": "p", "volumeBindingMode": mode})
}

#[test]
fn where_a_volume_is() {
    for (what, label, value, (node_label, node_value), fits) in [
        ("its zone", ZONE, "a", (ZONE, "a"), true),
        ("another", ZONE, "a", (ZONE, "b"), false),
        ("one of its zones", ZONE, "a__b", (ZONE, "b"), true),
        (
            "an old label, a new node",
            BETA_ZONE,
            "a",
            (ZONE, "a"),
            true,
        ),
        (
            "an old label, another zone",
            BETA_ZONE,
            "a",
            (ZONE, "b"),
            false,
        ),
        (
            "a new label, an old node",
            ZONE,
            "a",
            (BETA_ZONE, "a"),
            false,
        ),
        ("a node that says nothing", ZONE, "a", ("x", "a"), true),
        (
            "a node that tells its region alone",
            ZONE,
            "a",
            (REGION, "a"),
            false,
        ),
        ("an empty part", ZONE, "a__", (ZONE, "b"), true),
    ] {
        let objects = [volume("v", label, value), claim("c", "v", "")];
        let plugin = VolumeZone {
            handle: handle_with(&objects),
        };
        let node = make_node("n").label(node_label, node_value);
        let snapshot = snapshot([node.build(), make_node("plain").build()], []);
        let pod = make_pod("p").claim("c").info();
        let mut state = CycleState::new();
        let before = plugin.pre_filter(&mut state, &pod, &snapshot).1;
        let on = |node: &str| plugin.filter(&state, &pod, snapshot.get(node).expect("there"));
        let expect = match fits {
            true => Status::success(),
            false => Status::unresolvable(ERR_REASON_CONFLICT),
        };
        assert!(before.is_success() || value.ends_with("__"), "{what}");
        assert_eq!(on("n"), expect, "{what}");
        assert!(on("plain").is_success(), "{what}");
        assert_forms_agree(&plugin, &pod, &snapshot);
    }
}

#[test]
fn claims_without_a_volume() {
    let objects = [
        claim("gone", "gone", ""),
        claim("none", "", ""),
        claim("waits", "", "waits"),
        claim("immediate", "", "immediate"),
        claim("lost", "", "lost"),
        class("waits", "WaitForFirstConsumer"),
        class("immediate", "Immediate"),
    ];
    let plugin = VolumeZone {
        handle: handle_with(&objects),
    };
    let snapshot = snapshot([make_node("n").build()], []);
    let check = |name: &str, expect: Status| {
        let pod = make_pod("p").claim(name).info();
        let status = plugin.pre_filter(&mut CycleState::new(), &pod, &snapshot).1;
        assert_eq!(status, expect, "{name}");
        assert_eq!(
            plugin.sign(&pod, &snapshot).is_some(),
            status.is_skip(),
            "{name}"
        );
    };
    check("waits", Status::skip());
    check(
        "none",
        Status::unresolvable("PersistentVolumeClaim had no pv name and storageClass name"),
    );
    check(
        "immediate",
        Status::unresolvable("PersistentVolume had no name"),
    );
    check(
        "gone",
        Status::unresolvable("persistentvolume \"gone\" not found"),
    );
    check(
        "lost",
        Status::unresolvable("storageclass.storage.k8s.io \"lost\" not found"),
    );
    check(
        "nobody's",
        Status::unresolvable("persistentvolumeclaim \"nobody's\" not found"),
    );
    let plain = make_pod("p").info();
    assert!(
        plugin
            .pre_filter(&mut CycleState::new(), &plain, &snapshot)
            .1
            .is_skip()
    );
}

#[test]
fn pods_whose_volumes_are_in_one_place_share() {
    let objects = [
        volume("v1", ZONE, "a"),
        volume("v2", ZONE, "a"),
        volume("v3", ZONE, "b"),
        claim("c1", "v1", ""),
        claim("c2", "v2", ""),
        claim("c3", "v3", ""),
    ];
    let plugin = VolumeZone {
        handle: handle_with(&objects),
    };
    let snapshot = snapshot([make_node("n").build()], []);
    let key = |claim: &str| {
        let mut key = Vec::new();
        plugin.sign_more(&make_pod("p").claim(claim).info(), &snapshot, &mut key);
        key
    };
    assert_eq!(key("c1"), key("c2"));
    assert_ne!(key("c1"), key("c3"));
}

#[test]
fn hints() {
    use framework::testing::storage_object;
    let pod = make_pod("p").claim("c").build();
    let (old, new) = (
        storage_object(&volume("v", ZONE, "a")),
        storage_object(&volume("v", ZONE, "b")),
    );
    assert_eq!(
        after_volume_change(&pod, Some(&old), Some(&old)),
        QueueingHint::QueueSkip
    );
    assert_eq!(
        after_volume_change(&pod, Some(&old), Some(&new)),
        QueueingHint::Queue
    );
    assert_eq!(
        after_volume_change(&pod, None, Some(&new)),
        QueueingHint::Queue
    );
    let of_mode =
        |mode: &str| after_class_added(&pod, None, Some(&storage_object(&class("c", mode))));
    assert_eq!(of_mode("Immediate"), QueueingHint::QueueSkip);
    assert_eq!(of_mode("WaitForFirstConsumer"), QueueingHint::Queue);
    let change =
        |name: &str| after_claim_change(&pod, Some(&storage_object(&claim(name, "", ""))), false);
    assert_eq!(
        (change("c"), change("d")),
        (QueueingHint::Queue, QueueingHint::QueueSkip)
    );
}
