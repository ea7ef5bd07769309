use component_base::clock::Clock;
use std::sync::Arc;

use component_base::events::{RecordedEvent, Recorder};
use component_base::shutdown::Shutdown;
use controller_runtime::testing::FakeApi;
use controller_runtime::{Controller as _, ObjectKey, Queues, Watches};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::CSIDriver;
use serde_json::{Value, from_value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::cache::{Use, Volumes};
use super::controller::SeLinuxWarning;
use super::label::{conflicts, label, of_inline, of_persistent_volume};
use crate::testing::{Feed, settle};

/// A Pod that mounts `claim` as `vol`; `level` and `policy` are for the whole Pod.
fn pod(name: &str, claim: &str, level: &str, policy: Option<&str>) -> Pod {
    let options = if level.is_empty() {
        json!(null)
    } else {
        json!({ "level": level })
    };
    from_value(json!({ "metadata": { "name": name, "namespace": "ns", "uid": format!("uid-{name}") }, "spec": {
        "securityContext": { "seLinuxOptions": options, "seLinuxChangePolicy": policy },
        "containers": [{ "name": "c", "volumeMounts": [{ "name": "vol", "mountPath": "/vol" }] }],
        "volumes": [{ "name": "vol", "persistentVolumeClaim": { "claimName": claim } }] } }))
    .unwrap()
}

fn claim(name: &str, volume: &str) -> PersistentVolumeClaim {
    let phase = if volume.is_empty() {
        "Pending"
    } else {
        "Bound"
    };
    from_value(
        json!({ "metadata": { "name": name, "namespace": "ns", "uid": format!("uid-{name}") },
        "spec": { "volumeName": volume }, "status": { "phase": phase } }),
    )
    .unwrap()
}

fn volume(name: &str, claim: &str, source: Value) -> PersistentVolume {
    let reference = json!({ "namespace": "ns", "name": claim, "uid": format!("uid-{claim}") });
    let mut spec = json!({ "claimRef": reference, "accessModes": ["ReadWriteMany"] });
    spec.as_object_mut()
        .unwrap()
        .extend(source.as_object().unwrap().clone());
    from_value(json!({ "metadata": { "name": name }, "spec": spec })).unwrap()
}

fn csi() -> Value {
    json!({ "csi": { "driver": "drv", "volumeHandle": "h" } })
}

fn driver(labels: bool) -> CSIDriver {
    from_value(json!({ "metadata": { "name": "drv" }, "spec": { "seLinuxMount": labels } }))
        .unwrap()
}

struct Cluster {
    pods: Feed<Pod>,
    claims: Feed<PersistentVolumeClaim>,
    volumes: Feed<PersistentVolume>,
    drivers: Feed<CSIDriver>,
    controller: Arc<SeLinuxWarning>,
    events: UnboundedReceiver<RecordedEvent>,
    _watches: Watches,
}

/// A cluster with claim `c`, bound to a volume of driver `drv`, which takes labels.
async fn cluster() -> Cluster {
    let (recorder, events) = Recorder::fake();
    let (pods, pod_informer) = Feed::new();
    let (claims, claim_informer) = Feed::new();
    let (volumes, volume_informer) = Feed::new();
    let (drivers, driver_informer) = Feed::new();
    let controller = Arc::new(SeLinuxWarning {
        pods: pod_informer,
        claims: claim_informer,
        volumes: volume_informer,
        drivers: driver_informer,
        used: Arc::default(),
        queue: Queues::unread(Clock::real()).queue("test"),
        executor: FakeApi::new().executor_with(recorder),
    });
    let mut watches = controller.watch(&Shutdown::new());
    assert!(watches.wait_for_sync().await);
    drivers.apply(driver(true));
    volumes.apply(volume("v", "c", csi()));
    claims.apply(claim("c", "v"));
    settle().await;
    Cluster {
        pods,
        claims,
        volumes,
        drivers,
        controller,
        events,
        _watches: watches,
    }
}

impl Cluster {
    /// What was told after all changes were looked at: `POD TYPE REASON: MESSAGE`, in order.
    async fn told(&mut self) -> Vec<String> {
        settle().await;
        while !self.controller.queue.is_empty() {
            let key = self.controller.queue.get().await.unwrap();
            assert_eq!(self.controller.reconcile(&key).await, Ok(None));
            self.controller.queue.done(&key);
        }
        let mut told = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            let pod = event.regarding.name.unwrap();
            told.push(format!(
                "{pod} {} {}: {}",
                event.event_type.as_str(),
                event.reason,
                event.message
            ));
        }
        told.sort();
        told
    }
}

fn told(pod: &str, property: &str, value: &str, other: &str, other_value: &str) -> String {
    format!(
        "{pod} Normal {property}Conflict: {property} \"{value}\" conflicts with pod {other} that uses the same volume as this pod with {property} \"{other_value}\". If both pods land on the same node, only one of them may access the volume."
    )
}

#[tokio::test]
async fn two_labels_for_one_volume() {
    let mut cluster = cluster().await;
    cluster.pods.apply(pod("a", "c", "s0:c1", None));
    assert_eq!(cluster.told().await, [""; 0]);
    cluster.pods.apply(pod("b", "c", "s0:c2", None));
    let expect = [
        told("a", "SELinuxLabel", ":::s0:c1", "b", ":::s0:c2"),
        told("b", "SELinuxLabel", ":::s0:c2", "a", ":::s0:c1"),
    ];
    assert_eq!(cluster.told().await, expect);
    // Once is enough.
    let mut changed = pod("b", "c", "s0:c2", None);
    changed.metadata.resource_version = Some("2".into());
    changed.status = from_value(json!({ "phase": "Running" })).unwrap();
    cluster.pods.apply(changed.clone());
    cluster.controller.queue.add(ObjectKey::new("ns", "b"));
    assert_eq!(cluster.told().await, [""; 0]);
    // One that has ended has given its volumes back.
    changed.metadata.resource_version = Some("3".into());
    changed.status = from_value(json!({ "phase": "Succeeded" })).unwrap();
    cluster.pods.apply(changed.clone());
    cluster.pods.apply(pod("d", "c", "s0:c1", None));
    assert_eq!(cluster.told().await, [""; 0]);
    for gone in [
        changed,
        pod("a", "c", "s0:c1", None),
        pod("d", "c", "s0:c1", None),
    ] {
        cluster.pods.delete(gone);
    }
    cluster.told().await;
    assert!(cluster.controller.used.lock().unwrap().is_empty());
}

#[tokio::test]
async fn two_policies_for_one_volume() {
    let check = async |a: (&str, Option<&str>), b: (&str, Option<&str>), conflict: bool| {
        let mut cluster = cluster().await;
        cluster.pods.apply(pod("a", "c", a.0, a.1));
        cluster.pods.apply(pod("b", "c", b.0, b.1));
        let effective = |(level, policy): (&str, Option<&str>)| match policy {
            Some("Recursive") => "Recursive",
            _ if level.is_empty() => "Recursive",
            _ => "MountOption",
        };
        let policies = (effective(a), effective(b));
        let expect = match conflict {
            true => vec![
                told("a", "SELinuxChangePolicy", policies.0, "b", policies.1),
                told("b", "SELinuxChangePolicy", policies.1, "a", policies.0),
            ],
            false => Vec::new(),
        };
        assert_eq!(cluster.told().await, expect, "{a:?} {b:?}");
    };
    let (recursive, mount) = (Some("Recursive"), Some("MountOption"));
    check(("s0:c1", recursive), ("s0:c2", recursive), false).await;
    check(("s0:c1", recursive), ("s0:c1", mount), true).await;
    check(("s0:c1", recursive), ("s0:c2", None), true).await;
    // Without a label there is nothing to mount with.
    check(("", mount), ("", recursive), false).await;
    check(("", mount), ("s0:c1", mount), true).await;
}

#[tokio::test]
async fn a_driver_that_takes_no_labels() {
    let mut cluster = cluster().await;
    cluster.drivers.apply(driver(false));
    cluster.pods.apply(pod("a", "c", "s0:c1", None));
    cluster.pods.apply(pod("b", "c", "s0:c2", None));
    assert_eq!(cluster.told().await, [""; 0]);
    // It learns to; the Pods are looked at anew.
    cluster.drivers.apply(driver(true));
    let first = cluster.told().await;
    let labels = told("b", "SELinuxLabel", ":::s0:c2", "a", ":::s0:c1");
    assert!(first.contains(&labels), "{first:?}");
    assert_eq!(cluster.controller.used.lock().unwrap().conflicts().len(), 2);
    // Without a CSIDriver, none are taken.
    cluster.drivers.delete(driver(true));
    cluster.told().await;
    assert!(
        cluster
            .controller
            .used
            .lock()
            .unwrap()
            .conflicts()
            .is_empty()
    );
}

#[tokio::test]
async fn volumes_that_come_later() {
    let mut cluster = cluster().await;
    for name in ["a", "b"] {
        cluster.pods.apply(pod(
            name,
            "late",
            if name == "a" { "s0:c1" } else { "s0:c2" },
            None,
        ));
    }
    cluster.claims.apply(claim("late", ""));
    assert_eq!(cluster.told().await, [""; 0]);
    cluster.volumes.apply(volume("w", "late", csi()));
    assert_eq!(cluster.told().await, [""; 0]);
    cluster.claims.apply(claim("late", "w"));
    assert_eq!(cluster.told().await.len(), 2);
    // The other way round: the claim first.
    cluster.pods.apply(pod("d", "other", "s0:c3", None));
    cluster.claims.apply(claim("other", "x"));
    assert_eq!(cluster.told().await, [""; 0]);
    cluster.volumes.apply(volume("x", "other", csi()));
    assert_eq!(cluster.told().await.len(), 4);
}

#[tokio::test]
async fn two_labels_inside_a_pod() {
    let mut cluster = cluster().await;
    let mut two = pod("a", "c", "s0:c1", None);
    let spec = two.spec.as_mut().unwrap();
    let mount =
        json!([{ "name": "vol", "mountPath": "/vol" }, { "name": "tmp", "mountPath": "/tmp" }]);
    let own = json!({ "seLinuxOptions": { "level": "s0:c9" } });
    spec.containers[0].volume_mounts = from_value(mount.clone()).unwrap();
    spec.init_containers =
        from_value(json!([{ "name": "i", "volumeMounts": mount, "securityContext": own }]))
            .unwrap();
    spec.volumes
        .as_mut()
        .unwrap()
        .push(from_value(json!({ "name": "tmp", "emptyDir": {} })).unwrap());
    spec.volumes
        .as_mut()
        .unwrap()
        .push(from_value(json!({ "name": "unused", "emptyDir": {} })).unwrap());
    cluster.pods.apply(two);
    let words = |volume: &str| {
        format!(
            "a Warning MultipleSELinuxLabels: Volume \"{volume}\" is mounted twice with different SELinux labels inside this pod"
        )
    };
    assert_eq!(cluster.told().await, [words("tmp"), words("vol")]);
    assert!(cluster.controller.used.lock().unwrap().is_empty());
}

#[test]
fn strangers_learn_no_names() {
    let mut volumes = Volumes::default();
    let used = |level: &str| Use {
        label: format!(":::{level}"),
        change_policy: "MountOption".into(),
    };
    let (a, b) = (
        ObjectKey::new("ns", "a"),
        ObjectKey::new("secret-ns", "secret"),
    );
    volumes.add("v", Some("drv"), &a, used("s1"));
    let found = volumes.add("v", Some("drv"), &b, used("s2"));
    let message = found.iter().find(|c| c.pod == a).unwrap().message();
    let expect = "SELinuxLabel \":::s1\" conflicts with another pod that uses the same volume as this pod with a different SELinuxLabel. If both pods land on the same node, only one of them may access the volume.";
    assert_eq!(message, expect);
    // A third one, and the first one goes: two are left in conflict.
    assert_eq!(
        volumes
            .add("v", Some("drv"), &ObjectKey::new("ns", "d"), used("s2"))
            .len(),
        2
    );
    assert_eq!(volumes.pods_of_driver("drv").len(), 3);
    assert_eq!(volumes.conflicts().len(), 4);
    volumes.remove(&b);
    assert_eq!(volumes.conflicts().len(), 2);
    // Another volume's are its own.
    volumes.add("w", None, &a, used("s1"));
    volumes.add("w", None, &b, used("s9"));
    volumes.remove(&ObjectKey::new("ns", "d"));
    assert_eq!(volumes.conflicts().len(), 2);
    // A use that changes takes its old conflicts along.
    assert!(volumes.add("w", None, &b, used("s1")).is_empty());
    assert!(volumes.conflicts().is_empty());
}

#[test]
fn labels() {
    let of = |options: Value| label(&from_value(options).unwrap());
    assert_eq!(of(json!({})), "");
    assert_eq!(
        of(json!({ "user": "u", "role": "r", "type": "t", "level": "s0:c0,c1" })),
        "u:r:t:s0:c0,c1"
    );
    assert_eq!(of(json!({ "type": "t", "level": "s0" })), "::t:s0");
    for (a, b, expect) in [
        ("", "", false),
        ("", "u:r:t", false),
        ("", "u:r:t:s0:c1", true),
        (":::", "u:r:t", false),
        ("u:r:t:", "u:r", false),
        ("u:r:other:", "u:r:t", true),
        ("::other", "::t", true),
        ("u::t", ":r::", false),
        (":::s0:c1", "u:r:t:s0:c1", false),
        (":::s0:c1", "u:r:t:s0:c2", true),
        ("u:r:t:s0", "v:r:t:s0", true),
        ("u:r:t:s0", "u:q:t:s0", true),
    ] {
        assert_eq!(
            (conflicts(a, b), conflicts(b, a)),
            (expect, expect),
            "{a:?} {b:?}"
        );
    }
}

#[test]
fn names_of_volumes() {
    let name = |source: Value| {
        of_persistent_volume(&volume("v", "c", source)).map(|l| (l.unique_name, l.driver))
    };
    let with = |name: &str, driver: &str| Some((name.to_owned(), Some(driver.to_owned())));
    assert_eq!(name(csi()), with("kubernetes.io/csi/drv^h", "drv"));
    let disk = json!({ "awsElasticBlockStore": { "volumeID": "vol-1" } });
    assert_eq!(
        name(disk),
        with("kubernetes.io/csi/ebs.csi.aws.com^vol-1", "ebs.csi.aws.com")
    );
    let without = |name: &str| Some((name.to_owned(), None));
    let iscsi = json!({ "targetPortal": "10.0.0.1", "iqn": "iqn.x", "lun": 1 });
    assert_eq!(
        name(json!({ "iscsi": iscsi })),
        without("kubernetes.io/iscsi/10.0.0.1:3260:iqn.x:1")
    );
    let fc = json!({ "targetWWNs": ["a", "b"], "lun": 2 });
    assert_eq!(
        name(json!({ "fc": fc })),
        without("kubernetes.io/fc/[a b]:2")
    );
    assert_eq!(
        name(json!({ "fc": { "wwids": ["w"] } })),
        without("kubernetes.io/fc/[w]")
    );
    assert_eq!(name(json!({ "fc": {} })), None);
    assert_eq!(name(json!({ "hostPath": { "path": "/x" } })), None);
    // The same disk, whether by a PersistentVolume or in the Pod.
    let inline = of_inline(&from_value(json!({ "name": "x", "iscsi": iscsi })).unwrap());
    assert_eq!(
        inline.map(|l| (l.unique_name, l.driver)),
        without("kubernetes.io/iscsi/10.0.0.1:3260:iqn.x:1")
    );
    assert_eq!(
        of_inline(&from_value(json!({ "name": "x", "csi": { "driver": "drv" } })).unwrap()),
        None
    );
}
