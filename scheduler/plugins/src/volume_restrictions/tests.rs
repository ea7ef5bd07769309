//! Disks a node has once, and claims a pod has alone.

use framework::testing::{assert_forms_agree, make_node, make_pod, snapshot};
use serde_json::{Value, json};

use super::*;
use crate::testing::handle_with;

fn claim(name: &str, mode: &str) -> Value {
    json!({"kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "default"}, "spec": {"accessModes": [mode]}})
}

#[test]
fn disks_that_a_node_has_once() {
    let gce = |name: &str, read_only: bool| json!({"gcePersistentDisk": {"pdName": name, "readOnly": read_only}});
    let ebs = |id: &str| json!({"awsElasticBlockStore": {"volumeID": id, "readOnly": true}});
    let iscsi = |iqn: &str, read_only: bool| json!({"iscsi": {"iqn": iqn, "targetPortal": "t", "lun": 0, "readOnly": read_only}});
    let rbd = |monitor: &str, pool: &str, read_only: bool| json!({"rbd": {"monitors": [monitor, "m0"], "pool": pool, "image": "i", "readOnly": read_only}});
    for (what, ours, theirs, fits) in [
        ("another disk", gce("a", false), gce("b", false), true),
        ("the same", gce("a", false), gce("a", true), false),
        ("both only read", gce("a", true), gce("a", true), true),
        ("EBS even then", ebs("a"), ebs("a"), false),
        ("other kinds", ebs("a"), gce("a", false), true),
        ("iSCSI", iscsi("q", false), iscsi("q", true), false),
        ("iSCSI read", iscsi("q", true), iscsi("q", true), true),
        (
            "RBD by one monitor",
            rbd("m1", "p", false),
            rbd("m2", "p", false),
            false,
        ),
        (
            "another pool",
            rbd("m1", "p", false),
            rbd("m1", "q", false),
            true,
        ),
        ("RBD read", rbd("m1", "p", true), rbd("m1", "p", true), true),
    ] {
        let plugin = VolumeRestrictions {
            handle: handle_with(&[]),
        };
        let other = make_pod("other").node("n").volume(theirs).info();
        let snapshot = snapshot(
            [make_node("n").build(), make_node("empty").build()],
            [other],
        );
        let pod = make_pod("p").volume(ours).info();
        let mut state = CycleState::new();
        assert!(
            plugin
                .pre_filter(&mut state, &pod, &snapshot)
                .1
                .is_success(),
            "{what}"
        );
        let on = |node: &str| plugin.filter(&state, &pod, snapshot.get(node).expect("there"));
        let expect = match fits {
            true => Status::success(),
            false => Status::unschedulable(ERR_REASON_DISK_CONFLICT),
        };
        assert_eq!(on("n"), expect, "{what}");
        assert!(on("empty").is_success(), "{what}");
        assert_forms_agree(&plugin, &pod, &snapshot);
    }
}

#[test]
fn a_claim_for_one_pod() {
    let objects = [
        claim("alone", "ReadWriteOncePod"),
        claim("shared", "ReadWriteOnce"),
    ];
    let plugin = VolumeRestrictions {
        handle: handle_with(&objects),
    };
    let user = |name: &str, claim: &str| make_pod(name).node("n").claim(claim).info();
    let nodes = || ["n", "m"].map(|name| make_node(name).build());
    let cluster = |pods: Vec<Arc<PodInfo>>| snapshot(nodes(), pods);
    let pod = make_pod("p").claim("alone").claim("shared").info();
    let before = |pods| {
        let snapshot = cluster(pods);
        let mut state = CycleState::new();
        let status = plugin.pre_filter(&mut state, &pod, &snapshot).1;
        (snapshot, state, status)
    };
    assert!(before(vec![]).2.is_skip());
    assert!(before(vec![user("a", "shared")]).2.is_skip());
    let other_namespace = make_pod("a")
        .namespace("other")
        .node("n")
        .claim("alone")
        .info();
    assert!(before(vec![other_namespace]).2.is_skip());
    let holder = user("a", "alone");
    let (snapshot, mut state, status) = before(vec![Arc::clone(&holder)]);
    assert!(status.is_success());
    let rejected = Status::unschedulable(ERR_REASON_READ_WRITE_ONCE_POD_CONFLICT);
    let (n, m) = (
        snapshot.get("n").expect("there"),
        snapshot.get("m").expect("there"),
    );
    assert_eq!(plugin.filter(&state, &pod, m), rejected, "on every node");
    assert_forms_agree(&plugin, &pod, &snapshot);
    // Preemption: without the holder it fits, and with it back it does not.
    let extensions = plugin.extensions().expect("some");
    assert!(
        extensions
            .remove_pod(&mut state, &pod, &holder, n)
            .is_success()
    );
    assert!(plugin.filter(&state, &pod, n).is_success());
    assert!(
        extensions
            .add_pod(&mut state, &pod, &holder, n)
            .is_success()
    );
    assert_eq!(plugin.filter(&state, &pod, n), rejected);
    let missing = make_pod("q").claim("nowhere").info();
    let status = plugin
        .pre_filter(&mut CycleState::new(), &missing, &snapshot)
        .1;
    assert_eq!(
        status,
        Status::unresolvable("persistentvolumeclaim \"nowhere\" not found")
    );
}

#[test]
fn which_pods_share_what_was_found() {
    let objects = [
        claim("a", "ReadWriteOncePod"),
        claim("b", "ReadWriteOncePod"),
    ];
    let plugin = VolumeRestrictions {
        handle: handle_with(&objects),
    };
    let holder = make_pod("holder").node("n").claim("a").info();
    let snapshot = snapshot([make_node("n").build()], [holder]);
    let key = |pod: &PodInfo| {
        let mut key = Vec::new();
        let sign = plugin.sign(pod, &snapshot)?;
        plugin.sign_more(pod, &snapshot, &mut key);
        Some((sign, key))
    };
    let (a, b) = (
        make_pod("p").claim("a").info(),
        make_pod("p").claim("b").info(),
    );
    assert_ne!(key(&a), key(&b), "one is in use");
    assert_eq!(key(&b), key(&make_pod("q").claim("b").info()));
    assert_eq!(key(&make_pod("q").claim("c").info()), None);
    let plain = plugin.sign(&make_pod("q").info(), &snapshot);
    assert_eq!(plain, Some(Sign::node(Fragments::NONE)));
}

#[test]
fn hints() {
    let pod = make_pod("p")
        .claim("a")
        .volume(json!({"gcePersistentDisk": {"pdName": "d"}}))
        .build();
    let after =
        |deleted: Arc<Pod>| after_pod_deletion(&pod, Some(&EventObject::Pod(deleted)), None);
    assert_eq!(after(make_pod("x").claim("a").build()), QueueingHint::Queue);
    assert_eq!(
        after(make_pod("x").claim("b").build()),
        QueueingHint::QueueSkip
    );
    assert_eq!(
        after(make_pod("x").namespace("o").claim("a").build()),
        QueueingHint::QueueSkip
    );
    let disk = make_pod("x").volume(json!({"gcePersistentDisk": {"pdName": "d"}}));
    assert_eq!(after(disk.build()), QueueingHint::Queue);
}
