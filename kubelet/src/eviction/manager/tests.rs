//! Rounds of eviction over an assembled kubelet, and what is told of them.

use std::sync::atomic::{AtomicU64, Ordering};

use host::DiskUsage;
use serde_json::json;

use super::super::threshold::ThresholdValue;
use super::super::usage::ContainerUsage;
use super::*;
use crate::app::world::World;

#[test]
fn messages_say_what_was_short_and_who_took_it() {
    let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {"containers": [
        {"name": "c", "resources": {"requests": {"ephemeral-storage": "1Mi"}}},
    ]}}))
    .unwrap();
    let usage = PodUsage {
        containers: vec![ContainerUsage {
            name: "c".into(),
            rootfs: DiskUsage {
                bytes: 2 << 20,
                ..DiskUsage::default()
            },
            ..ContainerUsage::default()
        }],
        ..PodUsage::default()
    };
    let threshold = |signal| Threshold {
        signal,
        value: ThresholdValue::Percentage(0.1),
        grace_period: Duration::ZERO,
        min_reclaim: None,
    };
    let seen = Observation {
        available: 512,
        capacity: 10240,
    };
    for (signal, expect) in [
        (
            Signal::NodeFsAvailable,
            "The node was low on resource: ephemeral-storage. Threshold quantity: 1Ki, available: 512. Container c was using 2Mi, request is 1Mi, has larger consumption of ephemeral-storage. ",
        ),
        (
            Signal::NodeFsInodesFree,
            "The node was low on resource: inodes. Threshold quantity: 1024, available: 512. ",
        ),
    ] {
        let text = message(
            &threshold(signal),
            &[(signal, seen)].into(),
            &pod,
            Some(&usage),
        );
        assert_eq!(text, expect);
    }
}

/// A node with as much memory left as the test says.
#[derive(Clone, Default)]
struct Scripted {
    available_bytes: Arc<AtomicU64>,
}

#[async_trait]
impl Observer for Scripted {
    async fn observe(&self, _: &Kubelet) -> Observed {
        let seen = Observation {
            available: self.available_bytes.load(Ordering::SeqCst),
            capacity: 8 << 30,
        };
        Observed {
            signals: [(Signal::MemoryAvailable, seen)].into(),
            dedicated_image_fs: false,
        }
    }
}

const PLENTY: u64 = 4 << 30;
const LITTLE: u64 = 10 << 20;

#[tokio::test(start_paused = true)]
async fn a_node_short_of_memory_evicts_one_pod_and_says_so() {
    let world = World::start(|config| {
        // No rounds but those of this test.
        config.eviction_hard = Some(BTreeMap::new());
        config.local_storage_capacity_isolation = false;
    })
    .await;
    let thresholds = parse_threshold_config(
        true,
        &[("memory.available".to_owned(), "100Mi".to_owned())].into(),
        &BTreeMap::new(),
        &BTreeMap::new(),
        &BTreeMap::new(),
    );
    let scripted = Scripted::default();
    scripted.available_bytes.store(PLENTY, Ordering::SeqCst);
    let mut manager = Manager {
        kubelet: world.kubelet.clone(),
        observer: Arc::new(scripted.clone()),
        thresholds,
        tracker: Tracker::default(),
        counts: Arc::default(),
    };
    let resources =
        json!({"requests": {"memory": "1Gi", "cpu": "1"}, "limits": {"memory": "1Gi", "cpu": "1"}});
    let guaranteed = json!([{"name": "c", "image": "image", "resources": resources}]);
    world.create_pod(
        "precious",
        json!({"spec": {"containers": guaranteed, "priority": 1}}),
    );
    world.create_pod("cheap", json!({}));
    world.until_phase("precious", "Running").await;
    world.until_phase("cheap", "Running").await;

    let changed = Notify::new();
    assert!(manager.synchronize(&changed).await.is_empty());
    scripted.available_bytes.store(LITTLE, Ordering::SeqCst);
    let evicted = manager.synchronize(&changed).await;
    assert_eq!(evicted.len(), 1);
    assert_eq!(pod::name(&evicted[0]), "cheap");
    // The node's status is to be written.
    changed.notified().await;
    assert!(world.kubelet.node.under_pressure("MemoryPressure"));
    let failed = world.until_phase("cheap", "Failed").await;
    let status = failed.status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    world.until_event("cheap", "Evicted").await;
    manager.wait_for_cleanup(&evicted).await;

    // Nobody is admitted that asks for nothing.
    world.create_pod("late", json!({}));
    let rejected = world.until_phase("late", "Failed").await;
    assert_eq!(rejected.status.unwrap().reason.as_deref(), Some("Evicted"));

    // The pressure is said to last for its transition period.
    scripted.available_bytes.store(PLENTY, Ordering::SeqCst);
    assert!(manager.synchronize(&changed).await.is_empty());
    assert!(world.kubelet.node.under_pressure("MemoryPressure"));
    let period = world.kubelet.config.eviction_pressure_transition_period.0;
    world.clock.sleep(period + Duration::from_secs(1)).await;
    assert!(manager.synchronize(&changed).await.is_empty());
    assert!(!world.kubelet.node.under_pressure("MemoryPressure"));
    let precious = world.pod("precious").unwrap();
    assert_eq!(pod::phase(&precious), "Running");
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_beyond_its_own_limit_fails_and_is_not_disrupted() {
    let world = World::start(|config| {
        config.eviction_hard = Some(BTreeMap::new());
        config.local_storage_capacity_isolation = false;
    })
    .await;
    let nothing = BTreeMap::new();
    let manager = Manager {
        kubelet: world.kubelet.clone(),
        observer: Arc::new(Scripted::default()),
        thresholds: parse_threshold_config(true, &nothing, &nothing, &nothing, &nothing),
        tracker: Tracker::default(),
        counts: Arc::default(),
    };
    for (name, disrupted) in [("its-own", false), ("the-nodes", true)] {
        world.create_pod(name, json!({}));
        let running = Arc::new(world.until_phase(name, "Running").await);
        let message = "too much".to_owned();
        assert!(manager.evict(&running, 1, message, "signal", disrupted));
        let failed = world.until_phase(name, "Failed").await.status.unwrap();
        assert_eq!(failed.reason.as_deref(), Some("Evicted"));
        let conditions = failed.conditions.unwrap();
        let target = conditions.iter().find(|c| c.type_ == "DisruptionTarget");
        let told = target.and_then(|c| c.message.as_deref());
        assert_eq!(told, disrupted.then_some("too much"), "{name}");
    }
    world.end().await;
}
