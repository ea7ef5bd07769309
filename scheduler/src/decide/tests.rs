//! What is kept for a signature must lead to the very node that judging everything anew would choose, whatever happens to the cluster.

use std::sync::Arc;

use backend::Cache;
use component_base::clock::Clock;
use framework::testing::{PodBuilder, make_node, make_pod, selector};
use framework::*;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::bench::{CountingWriter, NoObjects};
use crate::config::{KubeSchedulerConfiguration, default_profiles};
use crate::metrics::Metrics;
use crate::runtime::Shared;
use crate::scheduler::{POD_MAX_IN_UNSCHEDULABLE_PODS_DURATION, Scheduler};

pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        splitmix64(self.0) % n
    }
}

fn scheduler() -> Arc<Scheduler> {
    scheduler_with(Arc::default())
}

fn scheduler_with(objects: Arc<NoObjects>) -> Arc<Scheduler> {
    scheduler_of(KubeSchedulerConfiguration::default(), objects)
}

pub(super) fn scheduler_of(
    mut config: KubeSchedulerConfiguration,
    objects: Arc<NoObjects>,
) -> Arc<Scheduler> {
    default_profiles(&mut config);
    let tasks = tokio::runtime::Handle::current();
    let shared = Shared::new(
        objects,
        Arc::new(CountingWriter::default()),
        Arc::new(|_| {}),
        tasks,
        CancellationToken::new(),
        Clock::real(),
        Metrics::unread(Clock::real()),
    );
    Scheduler::new(
        &config,
        &plugins::registry::in_tree(),
        shared,
        POD_MAX_IN_UNSCHEDULABLE_PODS_DURATION,
    )
    .expect("defaults are valid")
}

fn pod(kind: u64, serial: usize) -> PodBuilder {
    let app = |pod: PodBuilder, app: &str| pod.label("app", app);
    let pod = make_pod(&format!("pod-{serial}"));
    let small: &[(&str, &str)] = &[("cpu", "500m"), ("memory", "1Gi")];
    match kind {
        0 => app(pod, "a").req(small),
        1 => app(pod, "b").req(&[("cpu", "2"), ("memory", "1Gi")]),
        2 => app(pod, "a")
            .req(small)
            .toleration("dedicated", "Exists", "", ""),
        3 => app(pod, "a")
            .req(small)
            .preferred_node_affinity(10, "disk", &["ssd"])
            .preferred_node_affinity(3, "disk", &["hdd"]),
        4 => app(pod, "spread").req(small).spread(
            1,
            "topology.kubernetes.io/zone",
            "DoNotSchedule",
            selector(&[("app", "spread")]),
        ),
        5 => app(pod, "soft").req(small).spread(
            1,
            "kubernetes.io/hostname",
            "ScheduleAnyway",
            selector(&[("app", "soft")]),
        ),
        6 => app(pod, "alone")
            .req(small)
            .pod_anti_affinity("kubernetes.io/hostname", selector(&[("app", "alone")])),
        7 => app(pod, "near").req(small).preferred_pod_affinity(
            5,
            "topology.kubernetes.io/zone",
            selector(&[("app", "a")]),
        ),
        8 => app(pod, "port").req(small).host_port("", "", 8080),
        9 => app(pod, "named")
            .req(small)
            .node_name_affinity(&["node-3", "node-5"]),
        _ => app(pod, "zone")
            .req(small)
            .node_affinity_in("topology.kubernetes.io/zone", &["z1"]),
    }
}

fn node(i: u64, random: &mut Random) -> Arc<k8s_openapi::api::core::v1::Node> {
    let mut node = make_node(&format!("node-{i}"))
        .zone(&format!("z{}", i % 3))
        .capacity(&[("cpu", "8"), ("memory", "32Gi"), ("pods", "20")]);
    if random.below(5) == 0 {
        node = node.taint(
            "dedicated",
            "x",
            if random.below(2) == 0 {
                "NoSchedule"
            } else {
                "PreferNoSchedule"
            },
        );
    }
    node = match random.below(3) {
        0 => node.label("disk", "ssd"),
        1 => node.label("disk", "hdd"),
        _ => node,
    };
    node.unschedulable(random.below(12) == 0).build()
}

/// Compares the choice by signature with the choice from scratch; each third time on a part of the nodes alone.
pub(super) fn check(
    decider: &mut Decider,
    scheduler: &Scheduler,
    snapshot: &Snapshot,
    pod: &Arc<PodInfo>,
) -> Option<Arc<str>> {
    let framework = &scheduler.profiles()["default-scheduler"];
    let nominator = scheduler.queue.nominator();
    let random =
        splitmix64(decider.seed ^ (decider.decisions + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let nominated = relevant_nominations(nominator, snapshot, pod);
    let start = Cell::new(decider.next_start);
    let part = splitmix64(decider.decisions);
    let in_part = |(index, _): &(NodeIndex, _)| part >> (index % 60) & 1 == 1;
    let part: NodeSet = snapshot.list().filter(in_part).map(|(i, _)| i).collect();
    let within = (decider.decisions % 3 == 0 && !part.is_empty()).then_some(&part);
    let kept = decider.decide_within(framework, snapshot, pod, nominator, within);
    let fresh = from_scratch(&Request {
        framework,
        snapshot,
        pod,
        random,
        nominated,
        extenders: Vec::new(),
        sample: framework.num_feasible_nodes_to_find(snapshot.num_nodes()),
        start,
        within,
    });
    match (kept, fresh) {
        (Ok(kept), Ok(fresh)) => {
            assert_eq!(
                (&kept.node_name, kept.feasible_nodes),
                (&fresh.node_name, fresh.feasible_nodes),
                "{:?}",
                pod.labels()
            );
            let inside = |within: &NodeSet| {
                let index = snapshot.index(&kept.node_name);
                within.contains(index.expect("there"))
            };
            assert!(within.is_none_or(inside), "{}", kept.node_name);
            Some(kept.node_name)
        }
        (Err(NotChosen::NoFit(kept)), Err(NotChosen::NoFit(fresh))) => {
            assert_eq!(kept.message(), fresh.message());
            assert_eq!(
                kept.diagnosis.unschedulable_plugins,
                fresh.diagnosis.unschedulable_plugins
            );
            None
        }
        (kept, fresh) => panic!("by signature: {kept:?}\nfrom scratch: {fresh:?}"),
    }
}

#[tokio::test]
async fn what_is_kept_agrees_with_judging_anew() {
    for seed in 0..12 {
        let mut random = Random(seed);
        let scheduler = scheduler();
        let cache = Cache::new();
        let (mut snapshot, mut decider) = (Snapshot::new(), Decider::new(seed));
        for i in 0..12 {
            cache.add_node(node(i, &mut random));
        }
        let mut placed: Vec<Arc<PodInfo>> = Vec::new();
        let mut chosen = 0;
        for serial in 0..300 {
            match random.below(10) {
                0 => cache.update_node(node(random.below(14), &mut random)),
                1 => _ = cache.remove_node(&format!("node-{}", random.below(14))),
                2 if !placed.is_empty() => {
                    let gone = placed.swap_remove(random.below(placed.len() as u64) as usize);
                    cache.remove_pod(&gone.uid).expect("placed");
                }
                3 => {
                    scheduler.queue.nominator().delete("nominated");
                    let nominated = pod(1, serial).uid("nominated").priority(10).info();
                    let node = format!("node-{}", random.below(14));
                    scheduler
                        .queue
                        .nominator()
                        .add(&nominated, &NominatingInfo::Override(node));
                }
                _ => {}
            }
            cache.update_snapshot(&mut snapshot);
            if snapshot.num_nodes() == 0 {
                continue;
            }
            let info = pod(random.below(11), serial).info();
            if let Some(node) = check(&mut decider, &scheduler, &snapshot, &info) {
                chosen += 1;
                if random.below(4) != 0 {
                    cache.assume_pod(Arc::clone(&info), &node).expect("new");
                    placed.push(info);
                }
            }
        }
        assert!(chosen > 100, "only {chosen} pods were placed");
    }
}

/// A change of storage, or none.
fn storage_event(scheduler: &Scheduler, random: &mut Random, serial: usize) {
    use serde_json::json;
    let zone = format!("z{}", random.below(3));
    let place = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "topology.kubernetes.io/zone", "operator": "In", "values": [zone]}]}]}});
    let object = match random.below(6) {
        0 | 1 => {
            json!({"kind": "PersistentVolume", "metadata": {"name": format!("local-{serial}"), "resourceVersion": "1"},
            "spec": {"storageClassName": "local", "nodeAffinity": place,
                "capacity": {"storage": format!("{}Gi", 1 + random.below(3))}},
            "status": {"phase": "Available"}})
        }
        2 => json!({"kind": "CSINode", "metadata": {"name": format!("node-{}", random.below(14))},
            "spec": {"drivers": [{"name": "d", "nodeID": "n", "allocatable": {"count": random.below(5)}}]}}),
        3 => json!({"kind": "VolumeAttachment", "metadata": {"name": format!("a-{serial}")},
            "spec": {"attacher": "d", "nodeName": format!("node-{}", random.below(14)),
                "source": {"persistentVolumeName": format!("bound-{}", random.below(1 + serial as u64))}}}),
        4 => {
            json!({"kind": "CSIStorageCapacity", "metadata": {"name": format!("room-{serial}"), "namespace": "default"},
            "storageClassName": "measured", "capacity": "2Gi",
            "nodeTopology": {"matchLabels": {"topology.kubernetes.io/zone": zone}}})
        }
        _ => return,
    };
    let object = framework::testing::storage_object(&object);
    let volumes = scheduler.shared.listers().volumes();
    volumes.apply(None, Some(&object));
}

/// A pod with one or two claims, which are made with it.
fn pod_with_claims(scheduler: &Scheduler, random: &mut Random, serial: usize) -> Arc<PodInfo> {
    use serde_json::json;
    let volumes = scheduler.shared.listers().volumes();
    let tell = |object: serde_json::Value| {
        let object = framework::testing::storage_object(&object);
        volumes.apply(None, Some(&object));
    };
    let mut pod = pod(0, serial);
    for i in 0..=random.below(2) {
        let name = format!("claim-{serial}-{i}");
        let mut claim = json!({"kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": "default", "uid": name, "resourceVersion": "1"},
            "spec": {"resources": {"requests": {"storage": format!("{}Gi", 1 + random.below(3))}}}});
        match random.below(5) {
            0 => {
                let volume = format!("bound-{serial}");
                tell(json!({"kind": "PersistentVolume",
                    "metadata": {"name": volume, "resourceVersion": "1", "labels": {"topology.kubernetes.io/zone": "z1__z2"}},
                    "spec": {"csi": {"driver": "d", "volumeHandle": volume}, "claimRef": {"namespace": "default", "name": name}}}));
                claim["spec"]["volumeName"] = volume.into();
                claim["metadata"]["annotations"] =
                    json!({"pv.kubernetes.io/bind-completed": "yes"});
            }
            1 => claim["spec"]["storageClassName"] = "local".into(),
            2 => claim["spec"]["storageClassName"] = "measured".into(),
            _ => claim["spec"]["storageClassName"] = "dynamic".into(),
        }
        tell(claim);
        pod = pod.claim(&name);
    }
    if random.below(6) == 0 && serial > 0 {
        // Somebody else's claim, if there is such a one.
        pod = pod.claim(&format!("claim-{}-0", random.below(serial as u64)));
    }
    pod.info()
}

#[tokio::test]
async fn what_is_kept_of_volumes_agrees_with_judging_anew() {
    for seed in 0..12 {
        let mut random = Random(seed);
        let objects = Arc::new(NoObjects::default());
        let scheduler = scheduler_with(Arc::clone(&objects));
        for (class, provisioner) in [
            ("local", "kubernetes.io/no-provisioner"),
            ("dynamic", "d"),
            ("measured", "measuring"),
        ] {
            let class = serde_json::json!({"kind": "StorageClass", "metadata": {"name": class},
                "provisioner": provisioner, "volumeBindingMode": "WaitForFirstConsumer"});
            let driver = serde_json::json!({"kind": "CSIDriver", "metadata": {"name": "measuring"}, "spec": {"storageCapacity": true}});
            for object in [class, driver] {
                let object = framework::testing::storage_object(&object);
                scheduler
                    .shared
                    .listers()
                    .volumes()
                    .apply(None, Some(&object));
            }
        }
        let cache = Cache::new();
        let (mut snapshot, mut decider) = (Snapshot::new(), Decider::new(seed));
        for i in 0..12 {
            let node = node(i, &mut random);
            objects.add_node(Arc::clone(&node));
            cache.add_node(node);
        }
        let mut placed: Vec<Arc<PodInfo>> = Vec::new();
        let mut chosen = 0;
        for serial in 0..200 {
            storage_event(&scheduler, &mut random, serial);
            if random.below(8) == 0 && !placed.is_empty() {
                let gone = placed.swap_remove(random.below(placed.len() as u64) as usize);
                cache.remove_pod(&gone.uid).expect("placed");
            }
            let info = match random.below(4) {
                0 => pod(random.below(11), serial).info(),
                _ => pod_with_claims(&scheduler, &mut random, serial),
            };
            cache.update_snapshot(&mut snapshot);
            crate::schedule_one::touch(&scheduler, &mut snapshot);
            let Some(node) = check(&mut decider, &scheduler, &snapshot, &info) else {
                continue;
            };
            chosen += 1;
            cache.assume_pod(Arc::clone(&info), &node).expect("new");
            placed.push(Arc::clone(&info));
            let framework = &scheduler.profiles()["default-scheduler"];
            let mut state = CycleState::new();
            let status = framework.run_reserve_plugins_reserve(&mut state, &info, &node);
            assert!(status.is_success(), "{status}");
            if random.below(5) == 0 {
                framework.run_reserve_plugins_unreserve(&mut state, &info, &node);
            }
        }
        assert!(chosen > 60, "only {chosen} pods were placed");
    }
}

#[tokio::test]
async fn the_same_seed_and_history_give_the_same_placement() {
    let place = |seed| {
        let scheduler = scheduler();
        let (mut snapshot, mut decider) = (Snapshot::new(), Decider::new(seed));
        for i in 0..30 {
            scheduler.cache.add_node(
                make_node(&format!("node-{i}"))
                    .capacity(&[("cpu", "8"), ("memory", "32Gi")])
                    .build(),
            );
        }
        let mut nodes = Vec::new();
        for serial in 0..40 {
            scheduler.cache.update_snapshot(&mut snapshot);
            let info = pod(0, serial).info();
            let chosen = decider
                .decide(
                    &scheduler.profiles()["default-scheduler"],
                    &snapshot,
                    &info,
                    scheduler.queue.nominator(),
                )
                .expect("fits");
            scheduler
                .cache
                .assume_pod(info, &chosen.node_name)
                .expect("new");
            nodes.push(chosen.node_name);
        }
        nodes
    };
    assert_eq!(place(1), place(1));
    assert_ne!(place(1), place(2));
}

#[tokio::test]
async fn says_why_nothing_fits_in_upstreams_words() {
    let scheduler = scheduler();
    let mut snapshot = Snapshot::new();
    scheduler
        .cache
        .add_node(make_node("full").capacity(&[("cpu", "1")]).build());
    scheduler.cache.add_node(
        make_node("tainted")
            .capacity(&[("cpu", "8")])
            .taint("k", "v", "NoSchedule")
            .build(),
    );
    scheduler.cache.update_snapshot(&mut snapshot);
    let mut decider = Decider::new(1);
    let info = make_pod("p").req(&[("cpu", "2")]).info();
    let framework = &scheduler.profiles()["default-scheduler"];
    let error = decider
        .decide(framework, &snapshot, &info, scheduler.queue.nominator())
        .expect_err("does not fit");
    let NotChosen::NoFit(fit) = error else {
        panic!("{error:?}")
    };
    assert_eq!(
        fit.message(),
        "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s)."
    );
}

#[tokio::test]
async fn a_sample_is_enough_where_the_configuration_says_so() {
    let percentage = |of_all: i32, of_profile: Option<i32>| KubeSchedulerConfiguration {
        percentage_of_nodes_to_score: of_all,
        profiles: vec![crate::config::KubeSchedulerProfile {
            percentage_of_nodes_to_score: of_profile,
            ..Default::default()
        }],
        ..KubeSchedulerConfiguration::default()
    };
    for (of_all, of_profile, nodes, want) in [
        (0, None, 5000, None),
        (100, None, 5000, None),
        (30, None, 500, Some(150)),
        (30, Some(50), 500, Some(250)),
        (30, Some(0), 500, None),
        (5, None, 300, Some(100)),
        (50, None, 99, None),
    ] {
        let scheduler = scheduler_of(percentage(of_all, of_profile), Arc::default());
        let framework = &scheduler.profiles()["default-scheduler"];
        assert_eq!(framework.num_feasible_nodes_to_find(nodes), want);
    }
    // Over a history: what is kept agrees with judging anew, and each sample begins where the last ended.
    for seed in 0..3 {
        let mut random = Random(seed);
        let scheduler = scheduler_of(percentage(5, None), Arc::default());
        let cache = Cache::new();
        let (mut snapshot, mut decider) = (Snapshot::new(), Decider::new(seed));
        for i in 0..150 {
            cache.add_node(node(i, &mut random));
        }
        let mut starts = std::collections::BTreeSet::new();
        for serial in 0..60 {
            if random.below(5) == 0 {
                cache.update_node(node(random.below(150), &mut random));
            }
            cache.update_snapshot(&mut snapshot);
            let info = pod(random.below(11), serial).info();
            starts.insert(decider.next_start);
            if let Some(node) = check(&mut decider, &scheduler, &snapshot, &info) {
                cache.assume_pod(info, &node).expect("new");
            }
        }
        assert!(starts.len() > 20, "{starts:?}");
        let plain = make_pod("plain").req(&[("cpu", "1m")]).info();
        let framework = &scheduler.profiles()["default-scheduler"];
        let chosen = decider
            .decide(framework, &snapshot, &plain, scheduler.queue.nominator())
            .expect("fits");
        assert_eq!(chosen.feasible_nodes, 100);
    }
}
