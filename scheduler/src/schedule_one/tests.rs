//! A pod's way from the queue to a binding or back, without an API server.

use std::sync::atomic::Ordering;

use framework::testing::{PodBuilder, make_node, make_pod};

use crate::testing::{Bed, UNRESERVED};

fn pod(label: &str, value: &str) -> PodBuilder {
    make_pod("p")
        .uid("p")
        .label(label, value)
        .req(&[("cpu", "1")])
}

async fn bed(pod: PodBuilder, nodes: usize) -> Bed {
    let info = pod.info();
    let mut bed = Bed::new(std::slice::from_ref(&info));
    for i in 0..nodes {
        bed.scheduler.cache.add_node(
            make_node(&format!("n{i}"))
                .capacity(&[("cpu", "2")])
                .build(),
        );
    }
    bed.scheduler.queue.add(info);
    bed.settle().await;
    bed
}

#[tokio::test]
async fn a_pod_that_fits_is_bound() {
    let bed = bed(pod("a", "b"), 1).await;
    assert_eq!(*bed.writes.bound.lock().unwrap(), ["p -> n0"]);
    assert_eq!(
        *bed.events.lock().unwrap(),
        ["Scheduled Successfully assigned default/p to n0"]
    );
    assert!(bed.scheduler.cache.is_assumed_pod("p"));
    assert_eq!(bed.scheduler.queue.counts().in_flight_pods, 0);
}

#[tokio::test]
async fn what_stops_a_pod_says_so_and_takes_all_back() {
    for (what, pod, nodes, condition, plugin) in [
        (
            "no nodes",
            pod("a", "b"),
            0,
            "p Unschedulable no nodes available to schedule pods",
            None,
        ),
        (
            "too large",
            pod("a", "b").req(&[("cpu", "4")]),
            2,
            "p Unschedulable 0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.",
            Some("NodeResourcesFit"),
        ),
        (
            "a claim that is not there",
            pod("a", "b").claim("c"),
            1,
            "p Unschedulable 0/1 nodes are available: persistentvolumeclaim \"c\" not found. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
            Some("VolumeRestrictions"),
        ),
        (
            "Reserve rejects",
            pod("reserve", "reject"),
            2,
            "p Unschedulable 0/1 nodes are available: 1 no.",
            Some("Scripted"),
        ),
        (
            "Reserve fails",
            pod("reserve", "error"),
            1,
            "p SchedulerError running Reserve plugin \"Scripted\": boom",
            None,
        ),
        (
            "Permit rejects",
            pod("permit", "reject"),
            1,
            "p Unschedulable 0/1 nodes are available: 1 no.",
            Some("Scripted"),
        ),
        (
            "PreBind rejects",
            pod("prebind", "reject"),
            1,
            "p Unschedulable 0/1 nodes are available: 1 no.",
            Some("Scripted"),
        ),
        (
            "PreBind fails",
            pod("prebind", "error"),
            1,
            "p SchedulerError running PreBind plugin \"Scripted\": boom",
            None,
        ),
        (
            "Bind fails",
            pod("bind", "error"),
            1,
            "p SchedulerError running Bind plugin \"DefaultBinder\": the server is away",
            None,
        ),
    ] {
        let bed = bed(pod, nodes).await;
        assert_eq!(
            *bed.writes.conditions.lock().unwrap(),
            [condition],
            "{what}"
        );
        let note = condition.splitn(3, ' ').nth(2).expect("a message");
        assert_eq!(
            *bed.events.lock().unwrap(),
            [format!("FailedScheduling {note}")],
            "{what}"
        );
        assert!(bed.writes.bound.lock().unwrap().is_empty(), "{what}");
        assert_eq!(
            bed.scheduler.cache.counts().pods,
            0,
            "{what}: the assumption is taken back"
        );
        let counts = bed.scheduler.queue.counts();
        assert_eq!(
            (counts.in_flight_pods, counts.unschedulable + counts.backoff),
            (0, 1),
            "{what}: {counts:?}"
        );
        let rejected_by = bed.scheduler.queue.rejected_by();
        let waits_for = rejected_by
            .iter()
            .find(|(_, pods)| *pods > 0)
            .map(|(plugin, _)| *plugin);
        // A rejection after the pod left flight backs off instead of waiting for an event.
        if what != "PreBind rejects" {
            assert_eq!(waits_for, plugin, "{what}");
        }
    }
    assert!(UNRESERVED.load(Ordering::Acquire) >= 5);
}

#[tokio::test]
async fn a_permit_plugin_may_delay_a_pod() {
    for (allow, bound) in [(true, 1), (false, 0)] {
        let mut bed = bed(pod("permit", "wait"), 1).await;
        assert!(bed.writes.bound.lock().unwrap().is_empty());
        assert_eq!(
            *bed.writes.nominations.lock().unwrap(),
            ["p -> n0"],
            "others see where it is going"
        );
        let waiting = bed.scheduler.shared.waiting_pods().get("p").expect("waits");
        let waiting: &dyn framework::WaitingPod = &*waiting;
        if allow {
            waiting.allow("Scripted")
        } else {
            _ = waiting.reject("Scripted", "changed my mind")
        };
        bed.settle().await;
        assert_eq!(bed.writes.bound.lock().unwrap().len(), bound);
        assert_eq!(bed.scheduler.cache.is_assumed_pod("p"), allow);
        if !allow {
            assert_eq!(
                *bed.writes.conditions.lock().unwrap(),
                ["p Unschedulable 0/1 nodes are available: 1 changed my mind."]
            );
        }
    }
}

#[tokio::test]
async fn a_pod_being_deleted_is_left_alone() {
    let deleted = pod("a", "b").with(|pod| {
        let now = k8s_openapi::jiff::Timestamp::UNIX_EPOCH;
        pod.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
    });
    let bed = bed(deleted, 1).await;
    assert_eq!(
        *bed.events.lock().unwrap(),
        ["FailedScheduling skip schedule deleting pod: default/p"]
    );
    assert_eq!(
        bed.scheduler.queue.counts(),
        backend::queue::QueueCounts::default()
    );
}

#[tokio::test]
async fn room_that_comes_back_brings_waiting_pods_back() {
    let mut bed = bed(pod("a", "b").req(&[("cpu", "4")]), 1).await;
    assert_eq!(bed.scheduler.queue.counts().unschedulable, 1);
    let node = make_node("large").capacity(&[("cpu", "8")]).build();
    bed.scheduler.cache.add_node(node.clone());
    let event =
        framework::ClusterEvent::new(framework::EventResource::Node, framework::ActionType::ADD);
    bed.scheduler.queue.move_all_to_active_or_backoff_queue(
        event,
        None,
        Some(framework::EventObject::Node(node)),
        None,
    );
    bed.settle().await;
    assert_eq!(*bed.writes.bound.lock().unwrap(), ["p -> large"]);
}

#[tokio::test]
async fn a_pod_that_cannot_be_bound_leaves_its_room_to_those_who_wait() {
    for (point, how) in [("bind", "error"), ("prebind", "reject")] {
        let named = |name: &str| make_pod(name).uid(name).req(&[("cpu", "2")]);
        let pods = [named("p").label(point, how).info(), named("q").info()];
        let mut bed = Bed::new(&pods);
        let node = make_node("n").capacity(&[("cpu", "2")]).build();
        bed.scheduler.cache.add_node(node);
        for pod in pods {
            bed.scheduler.queue.add(pod);
        }
        bed.settle().await;
        assert!(bed.writes.bound.lock().unwrap().is_empty());
        let counts = bed.scheduler.queue.counts();
        assert_eq!(
            (counts.backoff, counts.unschedulable),
            (2, 0),
            "{point}: nobody else will tell q of the room"
        );
    }
}

fn told(bed: &Bed, old: Option<&serde_json::Value>, new: &serde_json::Value) {
    let object = framework::testing::storage_object;
    let (old, new) = (old.map(object), object(new));
    let volumes = bed.scheduler.shared.listers().volumes();
    volumes.apply(old.as_ref(), Some(&new));
}

#[tokio::test]
async fn a_pod_is_bound_after_its_claim() {
    let info = pod("a", "b").claim("c").info();
    let mut bed = Bed::new(std::slice::from_ref(&info));
    let zoned = |name: &str| make_node(name).capacity(&[("cpu", "2")]).zone(name).build();
    for node in ["a", "b"].map(zoned) {
        bed.objects.add_node(std::sync::Arc::clone(&node));
        bed.scheduler.cache.add_node(node);
    }
    let class = serde_json::json!({"kind": "StorageClass", "metadata": {"name": "local"},
        "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"});
    let claim = serde_json::json!({"kind": "PersistentVolumeClaim",
        "metadata": {"name": "c", "namespace": "default", "uid": "c", "resourceVersion": "1"},
        "spec": {"storageClassName": "local", "resources": {"requests": {"storage": "1Gi"}}}});
    let volume = serde_json::json!({"kind": "PersistentVolume", "metadata": {"name": "v", "resourceVersion": "1"},
        "spec": {"storageClassName": "local", "capacity": {"storage": "1Gi"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["b"]}]}]}}},
        "status": {"phase": "Available"}});
    for object in [&class, &claim, &volume] {
        told(&bed, None, object);
    }
    bed.scheduler.queue.add(info);
    bed.settle().await;
    assert_eq!(*bed.writes.volumes.lock().unwrap(), ["v -> c"]);
    assert!(
        bed.writes.bound.lock().unwrap().is_empty(),
        "the binder has not finished"
    );
    let mut claimed = volume.clone();
    claimed["metadata"]["resourceVersion"] = "100".into();
    claimed["spec"]["claimRef"] =
        serde_json::json!({"namespace": "default", "name": "c", "uid": "c"});
    told(&bed, Some(&volume), &claimed);
    let mut completed = claim.clone();
    completed["metadata"]["resourceVersion"] = "101".into();
    completed["metadata"]["annotations"] =
        serde_json::json!({"pv.kubernetes.io/bind-completed": "yes"});
    completed["spec"]["volumeName"] = "v".into();
    told(&bed, Some(&claim), &completed);
    bed.settle().await;
    assert_eq!(*bed.writes.bound.lock().unwrap(), ["p -> b"]);
    assert_eq!(
        *bed.writes.nominations.lock().unwrap(),
        ["p -> b"],
        "others see where it goes"
    );
}

#[tokio::test]
async fn a_pod_that_is_deleted_waits_for_no_volume() {
    let info = pod("a", "b").claim("c").info();
    let mut bed = Bed::new(std::slice::from_ref(&info));
    let node = make_node("n").capacity(&[("cpu", "2")]).build();
    bed.objects.add_node(std::sync::Arc::clone(&node));
    bed.scheduler.cache.add_node(node);
    let class = serde_json::json!({"kind": "StorageClass", "metadata": {"name": "dynamic"},
        "provisioner": "d", "volumeBindingMode": "WaitForFirstConsumer"});
    let claim = serde_json::json!({"kind": "PersistentVolumeClaim",
        "metadata": {"name": "c", "namespace": "default", "uid": "c", "resourceVersion": "1"},
        "spec": {"storageClassName": "dynamic", "resources": {"requests": {"storage": "1Gi"}}}});
    told(&bed, None, &class);
    told(&bed, None, &claim);
    bed.scheduler.queue.add(info);
    bed.settle().await;
    assert_eq!(*bed.writes.volumes.lock().unwrap(), ["c -> n"]);
    assert!(
        bed.scheduler
            .shared
            .cancel_pre_bind("p", "the pod was deleted")
    );
    bed.settle().await;
    assert!(bed.writes.bound.lock().unwrap().is_empty());
    let volumes = bed.scheduler.shared.listers().volumes().read();
    let claim = volumes.claim("default/c").expect("there");
    assert!(
        claim.metadata.annotations.is_none(),
        "what was assumed is taken back"
    );
}

#[tokio::test]
async fn a_volume_that_was_chosen_for_a_pod_that_is_deleted_is_there_for_others() {
    let named = |name: &str| make_pod(name).uid(name).claim(name).info();
    let (first, second) = (named("p"), named("q"));
    let mut bed = Bed::new(&[first.clone(), second.clone()]);
    let node = make_node("n").capacity(&[("cpu", "2")]).build();
    bed.objects.add_node(std::sync::Arc::clone(&node));
    bed.scheduler.cache.add_node(node);
    let class = serde_json::json!({"kind": "StorageClass", "metadata": {"name": "local"},
        "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"});
    let volume = serde_json::json!({"kind": "PersistentVolume", "metadata": {"name": "v", "resourceVersion": "1"},
        "spec": {"storageClassName": "local", "capacity": {"storage": "1Gi"}}, "status": {"phase": "Available"}});
    told(&bed, None, &class);
    told(&bed, None, &volume);
    for name in ["p", "q"] {
        let claim = serde_json::json!({"kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": "default", "uid": name, "resourceVersion": "1"},
            "spec": {"storageClassName": "local", "resources": {"requests": {"storage": "1Gi"}}}});
        told(&bed, None, &claim);
    }
    bed.scheduler.queue.add(std::sync::Arc::clone(&first));
    bed.settle().await;
    assert_eq!(*bed.writes.volumes.lock().unwrap(), ["v -> p"]);
    bed.scheduler.queue.add(second);
    bed.settle().await;
    assert_eq!(bed.scheduler.queue.counts().unschedulable, 1);
    let deleted = component_base::informer::InformerEvent::Deleted(first.pod.clone());
    crate::event_handlers::handle_pod(&bed.scheduler, deleted);
    bed.until("the binder gave up", |bed| {
        let volumes = bed.scheduler.shared.listers().volumes().read();
        let volume = volumes.volume("v").expect("there");
        volume.claim_key().is_none()
    })
    .await;
    bed.settle().await;
    let pending = bed.scheduler.queue.counts();
    assert_eq!(pending.unschedulable, 0, "{pending:?}");
}

/// The device cache hears of it, then the queue.
fn told_of_device(bed: &Bed, old: Option<&serde_json::Value>, new: &serde_json::Value) {
    let object = framework::testing::storage_object;
    let (old, new) = (old.map(object), object(new));
    let devices = bed.scheduler.shared.listers().devices();
    for told in devices.apply(old.as_ref(), Some(&new)) {
        let queue = &bed.scheduler.queue;
        queue.move_all_to_active_or_backoff_queue(told.event, told.old, told.new, None);
    }
}

fn with_claim(name: &str) -> std::sync::Arc<framework::PodInfo> {
    let entries = serde_json::json!([{"name": "c", "resourceClaimName": name}]);
    let claims = move |pod: &mut k8s_openapi::api::core::v1::Pod| {
        let entries = serde_json::from_value(entries).expect("entries");
        pod.spec.get_or_insert_default().resource_claims = Some(entries);
    };
    make_pod(name)
        .uid(name)
        .scheduler_name("default-scheduler")
        .with(claims)
        .info()
}

#[tokio::test]
async fn pods_wait_for_claims_and_devices_and_are_bound_with_them() {
    let pods = ["first", "second"].map(with_claim);
    let mut bed = Bed::new(&pods);
    for name in ["a", "b"] {
        let node = make_node(name)
            .capacity(&[("cpu", "2"), ("pods", "10")])
            .build();
        bed.objects.add_node(std::sync::Arc::clone(&node));
        bed.scheduler.cache.add_node(node);
    }
    for pod in &pods {
        bed.scheduler.queue.add(std::sync::Arc::clone(pod));
    }
    bed.settle().await;
    assert_eq!(
        bed.scheduler.queue.counts().gated,
        2,
        "the claims are not there"
    );
    let claim = |name: &str| {
        serde_json::json!({"kind": "ResourceClaim",
            "metadata": {"name": name, "namespace": "default", "uid": name, "resourceVersion": "1"},
            "spec": {"devices": {"requests": [{"name": "r", "exactly":
                {"deviceClassName": "c", "allocationMode": "ExactCount", "count": 1}}]}}})
    };
    let class = serde_json::json!({"kind": "DeviceClass", "metadata": {"name": "c"}, "spec": {}});
    told_of_device(&bed, None, &class);
    told_of_device(&bed, None, &claim("first"));
    told_of_device(&bed, None, &claim("second"));
    bed.settle().await;
    assert!(
        bed.writes.bound.lock().unwrap().is_empty(),
        "there is no device"
    );
    let slice = serde_json::json!({"kind": "ResourceSlice", "metadata": {"name": "s"},
        "spec": {"driver": "d", "nodeName": "b", "pool": {"name": "b", "generation": 1, "resourceSliceCount": 1},
            "devices": [{"name": "x"}]}});
    told_of_device(&bed, None, &slice);
    // Those that were looked at back off; nothing else is to be done.
    bed.settle().await;
    assert_eq!(*bed.writes.bound.lock().unwrap(), ["first -> b"]);
    assert_eq!(
        *bed.writes.claims.lock().unwrap(),
        ["finalizers first", "status first"]
    );
    let taken = bed
        .scheduler
        .shared
        .listers()
        .devices()
        .read()
        .allocated()
        .len();
    assert_eq!(taken, 1);
}
