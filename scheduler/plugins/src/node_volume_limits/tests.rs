//! How many volumes a node takes, and what counts.

use framework::testing::{assert_forms_agree, make_node, make_pod, snapshot, storage_object};
use serde_json::{Value, json};

use super::*;
use crate::testing::handle_with;

fn csi_node(name: &str, driver: &str, count: Option<i32>) -> Value {
    let allocatable = count.map(|count| json!({"count": count}));
    json!({"kind": "CSINode", "metadata": {"name": name},
        "spec": {"drivers": [{"name": driver, "nodeID": name, "allocatable": allocatable}]}})
}

fn volume(name: &str, driver: &str, handle: &str) -> Value {
    json!({"kind": "PersistentVolume", "metadata": {"name": name}, "spec": {"csi": {"driver": driver, "volumeHandle": handle}}})
}

fn claim(name: &str, volume: &str, class: &str) -> Value {
    json!({"kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "default"},
        "spec": {"volumeName": volume, "storageClassName": class}})
}

fn class(name: &str, provisioner: &str) -> Value {
    json!({"kind": "StorageClass", "metadata": {"name": name}, "provisioner": provisioner})
}

fn driver(name: &str, prevents: Option<bool>) -> Value {
    json!({"kind": "CSIDriver", "metadata": {"name": name}, "spec": {"preventPodSchedulingIfMissing": prevents}})
}

fn attachment(name: &str, node: &str, volume: &str) -> Value {
    json!({"kind": "VolumeAttachment", "metadata": {"name": name},
        "spec": {"attacher": "d", "nodeName": node, "source": {"persistentVolumeName": volume}}})
}

fn objects() -> Vec<Value> {
    let mut objects = vec![
        class("d", "d"),
        class("other", "e"),
        class("ebs", "kubernetes.io/aws-ebs"),
        claim("new1", "", "d"),
        claim("new2", "", "d"),
        claim("other", "", "other"),
        claim("ebs", "", "ebs"),
        volume("same", "d", "h1"),
        claim("same", "same", ""),
        json!({"kind": "PersistentVolume", "metadata": {"name": "nfs"}, "spec": {"nfs": {"server": "s", "path": "/"}}}),
        claim("nfs", "nfs", ""),
    ];
    for i in 1..=3 {
        objects.push(volume(&format!("v{i}"), "d", &format!("h{i}")));
        objects.push(claim(&format!("c{i}"), &format!("v{i}"), ""));
    }
    objects
}

#[test]
fn what_counts() {
    let full = Status::unschedulable(ERR_REASON_MAX_VOLUME_COUNT_EXCEEDED);
    let fits = Status::success();
    let missing = Status::unschedulable("d CSI driver is not installed on the node");
    let limit = |count| csi_node("n", "d", Some(count));
    let lookup = "looking up PVC default/nowhere: persistentvolumeclaim \"nowhere\" not found";
    for (what, more, on_node, new, expect) in [
        ("room", vec![limit(3)], vec!["c1", "c2"], vec!["c3"], &fits),
        ("none", vec![limit(2)], vec!["c1", "c2"], vec!["c3"], &full),
        (
            "the volume is there already",
            vec![limit(2)],
            vec!["c1", "c2"],
            vec!["c2"],
            &fits,
        ),
        (
            "by another claim",
            vec![limit(2)],
            vec!["c1", "c2"],
            vec!["same"],
            &fits,
        ),
        (
            "no limit",
            vec![csi_node("n", "d", None)],
            vec!["c1"],
            vec!["c2", "c3"],
            &fits,
        ),
        ("no CSINode", vec![], vec!["c1"], vec!["c2", "c3"], &fits),
        (
            "no CSINode, and the driver wants to be there",
            vec![driver("d", Some(true))],
            vec![],
            vec!["c1"],
            &missing,
        ),
        (
            "another driver than the one that wants to be there",
            vec![csi_node("n", "e", None), driver("d", Some(true))],
            vec![],
            vec!["new1"],
            &missing,
        ),
        (
            "the driver is there",
            vec![csi_node("n", "d", None), driver("d", Some(true))],
            vec![],
            vec!["c1"],
            &fits,
        ),
        (
            "it does not mind",
            vec![driver("d", Some(false))],
            vec![],
            vec!["c1"],
            &fits,
        ),
        (
            "another driver",
            vec![limit(1)],
            vec!["c1"],
            vec!["other"],
            &fits,
        ),
        (
            "no CSI volume",
            vec![limit(1)],
            vec!["c1"],
            vec!["nfs"],
            &fits,
        ),
        (
            "to be provisioned",
            vec![limit(2)],
            vec!["c1"],
            vec!["new1"],
            &fits,
        ),
        (
            "two to be provisioned",
            vec![limit(2)],
            vec!["c1"],
            vec!["new1", "new2"],
            &full,
        ),
        (
            "one to be provisioned there",
            vec![limit(1)],
            vec!["new1"],
            vec!["c1"],
            &full,
        ),
        (
            "the claim of a pod there is gone",
            vec![limit(1)],
            vec!["nowhere"],
            vec!["c1"],
            &fits,
        ),
        (
            "attached besides",
            vec![limit(2), attachment("a", "n", "v2")],
            vec!["c1"],
            vec!["c3"],
            &full,
        ),
        (
            "attached for the pod there",
            vec![limit(2), attachment("a", "n", "v1")],
            vec!["c1"],
            vec!["c3"],
            &fits,
        ),
        (
            "attached elsewhere",
            vec![limit(2), attachment("a", "m", "v2")],
            vec!["c1"],
            vec!["c3"],
            &fits,
        ),
        (
            "an in-tree class counts for its driver",
            vec![csi_node("n", "ebs.csi.aws.com", Some(0))],
            vec![],
            vec!["ebs"],
            &full,
        ),
        (
            "a claim that is not there",
            vec![limit(9)],
            vec![],
            vec!["nowhere"],
            &Status::unresolvable(lookup),
        ),
    ] {
        let handle = handle_with(&[objects(), more].concat());
        let plugin = NodeVolumeLimits { handle };
        let with = |pod, claims: Vec<&str>| {
            claims
                .into_iter()
                .fold(pod, framework::testing::PodBuilder::claim)
        };
        let there = with(make_pod("there").node("n"), on_node).info();
        let nodes = ["n", "m"].map(|name| make_node(name).build());
        let snapshot = snapshot(nodes, [there]);
        let pod = with(make_pod("p"), new).info();
        let mut state = CycleState::new();
        assert!(
            plugin
                .pre_filter(&mut state, &pod, &snapshot)
                .1
                .is_success(),
            "{what}"
        );
        let node = snapshot.get("n").expect("there");
        assert_eq!(plugin.filter(&state, &pod, node), *expect, "{what}");
        assert_forms_agree(&plugin, &pod, &snapshot);
    }
}

#[test]
fn inline_disks_count_for_their_drivers() {
    let handle = handle_with(&[csi_node("n", "ebs.csi.aws.com", Some(1))]);
    let plugin = NodeVolumeLimits { handle };
    let disk = |name: &str, id: &str| {
        make_pod(name).volume(json!({"awsElasticBlockStore": {"volumeID": id}}))
    };
    let there = disk("there", "vol-1").node("n").info();
    let snapshot = snapshot([make_node("n").build()], [there]);
    let node = snapshot.get("n").expect("there");
    let on = |pod: Arc<PodInfo>| plugin.filter(&CycleState::new(), &pod, node).is_success();
    assert!(on(disk("p", "aws:///vol-1").info()));
    assert!(!on(disk("p", "vol-2").info()));
    let plain = make_pod("p").volume(json!({"emptyDir": {}})).info();
    assert!(
        plugin
            .pre_filter(&mut CycleState::new(), &plain, &snapshot)
            .1
            .is_skip()
    );
}

#[test]
fn which_pods_share_what_was_found() {
    let plugin = NodeVolumeLimits {
        handle: handle_with(&objects()),
    };
    let there = make_pod("there").node("n").claim("c2").info();
    let snapshot = snapshot([make_node("n").build()], [there]);
    let key = |claims: &[&str]| {
        let pod = claims
            .iter()
            .fold(make_pod("p"), |pod, claim| pod.claim(claim))
            .info();
        let mut key = Vec::new();
        let sign = plugin.sign(&pod, &snapshot)?;
        plugin.sign_more(&pod, &snapshot, &mut key);
        Some((sign, key))
    };
    assert_eq!(
        key(&["new1"]),
        key(&["new2"]),
        "both count one of the driver"
    );
    assert_eq!(
        key(&["new1"]),
        key(&["c3"]),
        "a volume nobody has is like one to be made"
    );
    assert_ne!(key(&["c3"]), key(&["new1", "new2"]));
    assert_ne!(key(&["c3"]), key(&["other"]));
    assert_ne!(key(&["c3"]), key(&["c2"]), "this one is on a node already");
    assert_ne!(key(&["c3"]), key(&["c1"]), "two objects stand for this one");
    assert_eq!(key(&["nowhere"]), None);
}

#[test]
fn hints() {
    let object = |value: Value| storage_object(&value);
    let pod = make_pod("p").claim("c").build();
    let update = |old, new| {
        let (old, new) = (
            object(csi_node("n", "d", old)),
            object(csi_node("n", "d", new)),
        );
        after_csi_node_update(&pod, Some(&old), Some(&new))
    };
    assert_eq!(update(Some(1), Some(2)), QueueingHint::Queue);
    assert_eq!(update(Some(2), Some(1)), QueueingHint::QueueSkip);
    let (old, new) = (
        object(csi_node("n", "d", None)),
        object(csi_node("n", "e", None)),
    );
    let registered = after_csi_node_update(&pod, Some(&old), Some(&new));
    assert_eq!(registered, QueueingHint::Queue, "a driver came");
    let deleted =
        |pod: Arc<Pod>| after_pod_deletion(&pod, Some(&EventObject::Pod(Arc::clone(&pod))), None);
    assert_eq!(
        deleted(make_pod("x").node("n").claim("c").build()),
        QueueingHint::Queue
    );
    assert_eq!(
        deleted(make_pod("x").claim("c").build()),
        QueueingHint::QueueSkip
    );
    assert_eq!(
        deleted(make_pod("x").node("n").build()),
        QueueingHint::QueueSkip
    );
    let detached = object(attachment("a", "n", "v"));
    assert_eq!(
        after_attachment_deletion(&pod, Some(&detached), None),
        QueueingHint::Queue
    );
    let plain = make_pod("p").build();
    assert_eq!(
        after_attachment_deletion(&plain, Some(&detached), None),
        QueueingHint::QueueSkip
    );
}
