use framework::Object;
use framework::testing::{PodBuilder, assert_forms_agree, make_node, make_pod, snapshot};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use plugins::testing::FakeHandle;
use serde_json::{Value, json};

use super::*;

/// A report of the node `n`: what each NUMA node has free.
fn report(policy: &str, scope: &str, zones: &[&[(&str, &str)]]) -> Value {
    let zone = |(i, resources): (usize, &&[(&str, &str)])| {
        let resource = |(name, available): &(&str, &str)| json!({"name": name, "capacity": available, "allocatable": available, "available": available});
        let resources: Vec<Value> = resources.iter().map(resource).collect();
        let cost = |to: usize| json!({"name": format!("node-{to}"), "value": if to == i { 10 } else { 11 + to.abs_diff(i) }});
        let costs: Vec<Value> = (0..zones.len()).map(cost).collect();
        json!({"name": format!("node-{i}"), "type": "Node", "resources": resources, "costs": costs})
    };
    let zones: Vec<Value> = zones.iter().enumerate().map(zone).collect();
    json!({"zones": zones, "attributes": [
        {"name": "topologyManagerPolicy", "value": policy},
        {"name": "topologyManagerScope", "value": scope},
    ]})
}

fn object(data: Value) -> Arc<Object> {
    Arc::new(Object {
        kind: NODE_RESOURCE_TOPOLOGY,
        metadata: ObjectMeta {
            name: Some("n".into()),
            ..ObjectMeta::default()
        },
        data,
    })
}

/// Limits as requests: a guaranteed pod where CPU and memory are among them.
fn guaranteed(pod: PodBuilder) -> PodBuilder {
    pod.with(|pod| {
        let spec = pod.spec.as_mut().unwrap();
        for container in spec
            .init_containers
            .iter_mut()
            .flatten()
            .chain(&mut spec.containers)
        {
            let resources = container.resources.as_mut().unwrap();
            resources.limits = resources.requests.clone();
        }
    })
}

fn pod(name: &str) -> PodBuilder {
    make_pod(name).uid(name)
}

struct Bed {
    plugin: Arc<dyn Plugin>,
    handle: Arc<FakeHandle>,
    snapshot: Snapshot,
}

impl Bed {
    fn new(args: Value) -> Self {
        let handle = Arc::new(FakeHandle::default());
        let capacity = [
            ("cpu", "64"),
            ("memory", "64Gi"),
            ("pods", "100"),
            ("example.com/nic", "8"),
            ("hugepages-2Mi", "1Gi"),
        ];
        let node = make_node("n").capacity(&capacity).build();
        Bed {
            plugin: new(Some(&args), Arc::clone(&handle) as _).expect("valid"),
            handle,
            snapshot: snapshot([node], []),
        }
    }

    fn tell(&self, old: Option<EventObject>, new: Option<EventObject>) {
        self.plugin
            .as_observer()
            .unwrap()
            .observe(old.as_ref(), new.as_ref());
    }

    fn report(&self, data: Value) -> &Self {
        self.tell(None, Some(EventObject::Custom(object(data))));
        self
    }

    /// Why the pod does not fit; empty where it does. With its score.
    fn judge(&self, pod: &PodBuilder) -> (String, i64) {
        let pod = pod.clone().info();
        assert_forms_agree(&*self.plugin, &pod, &self.snapshot);
        let mut state = CycleState::new();
        let node = self.snapshot.get("n").unwrap();
        let _ = self
            .plugin
            .as_pre_filter()
            .unwrap()
            .pre_filter(&mut state, &pod, &self.snapshot);
        let status = self.plugin.as_filter().unwrap().filter(&state, &pod, node);
        let score = self.plugin.as_score().unwrap().score(&state, &pod, node);
        (status.message(), score.expect("scores"))
    }

    fn touched(&self) -> usize {
        std::mem::take(&mut *self.handle.touched.lock().unwrap()).len()
    }
}

fn fits(report: Value, pod: PodBuilder) -> String {
    Bed::new(json!({})).report(report).judge(&pod).0
}

#[test]
fn all_of_it_on_one_numa_node() {
    let zones: &[&[(&str, &str)]] = &[
        &[("cpu", "4"), ("memory", "8Gi"), ("example.com/nic", "1")],
        &[("cpu", "8"), ("memory", "4Gi")],
    ];
    let of = |scope| report("single-numa-node", scope, zones);
    let asks = |requests: &[(&str, &str)]| guaranteed(pod("p").req(requests));
    for (what, requests, expect) in [
        ("on the first", vec![("cpu", "4"), ("memory", "8Gi")], true),
        ("on the second", vec![("cpu", "8"), ("memory", "4Gi")], true),
        ("on neither", vec![("cpu", "5"), ("memory", "5Gi")], false),
        (
            "beside the device",
            vec![("cpu", "4"), ("memory", "1Gi"), ("example.com/nic", "1")],
            true,
        ),
        (
            "not beside it",
            vec![("cpu", "5"), ("memory", "1Gi"), ("example.com/nic", "1")],
            false,
        ),
        (
            "a device the node has not",
            vec![("cpu", "1"), ("memory", "1Gi"), ("example.com/none", "1")],
            false,
        ),
        (
            "none of it",
            vec![("cpu", "1"), ("memory", "1Gi"), ("example.com/none", "0")],
            true,
        ),
        (
            "storage is nowhere and everywhere",
            vec![
                ("cpu", "1"),
                ("memory", "1Gi"),
                ("ephemeral-storage", "1Gi"),
            ],
            true,
        ),
        (
            "huge pages that no NUMA node reports",
            vec![("cpu", "1"), ("memory", "1Gi"), ("hugepages-2Mi", "2Mi")],
            false,
        ),
    ] {
        let (pod_scope, container_scope) = match expect {
            true => ("", ""),
            false => ("cannot align pod", "cannot align container"),
        };
        assert_eq!(fits(of("pod"), asks(&requests)), pod_scope, "{what}");
        assert_eq!(
            fits(of("container"), asks(&requests)),
            container_scope,
            "{what}"
        );
    }
}

#[test]
fn containers_one_after_the_other() {
    let zones: &[&[(&str, &str)]] = &[
        &[("cpu", "4"), ("memory", "4Gi")],
        &[("cpu", "4"), ("memory", "4Gi")],
    ];
    let two = |cpu| {
        let requests = [("cpu", cpu), ("memory", "1Gi")];
        guaranteed(pod("p").req(&requests).req(&requests))
    };
    // A NUMA node for each; together they fit on none.
    assert_eq!(
        fits(report("single-numa-node", "container", zones), two("3")),
        ""
    );
    assert_eq!(
        fits(report("single-numa-node", "pod", zones), two("3")),
        "cannot align pod"
    );
    let three = two("3").req(&[("cpu", "3"), ("memory", "1Gi")]);
    assert_eq!(
        fits(
            report("single-numa-node", "container", zones),
            guaranteed(three)
        ),
        "cannot align container"
    );
    // What init containers had is free again.
    let init = |cpu, always| {
        let requests = [("cpu", cpu), ("memory", "1Gi")];
        guaranteed(
            two("4")
                .init_req(&requests, always)
                .init_req(&requests, always),
        )
    };
    assert_eq!(
        fits(
            report("single-numa-node", "container", zones),
            init("4", false)
        ),
        ""
    );
    assert_eq!(
        fits(
            report("single-numa-node", "container", zones),
            init("5", false)
        ),
        "cannot align init container"
    );
    assert_eq!(
        fits(
            report("single-numa-node", "container", zones),
            init("5", true)
        ),
        "cannot align sidecar container"
    );
}

#[test]
fn who_is_not_tied_to_a_numa_node() {
    let full = || {
        report(
            "single-numa-node",
            "container",
            &[&[("cpu", "0"), ("memory", "0"), ("example.com/nic", "1")]],
        )
    };
    assert_eq!(fits(full(), pod("p")), "", "asks for nothing");
    assert_eq!(
        fits(full(), pod("p").req(&[("cpu", "1"), ("memory", "1Gi")])),
        "",
        "burstable"
    );
    assert_eq!(
        fits(full(), pod("p").req(&[("example.com/nic", "2")])),
        "cannot align container"
    );
    assert_eq!(fits(full(), pod("p").req(&[("example.com/nic", "1")])), "");
    // Other policies align as well as they can.
    for policy in ["none", "best-effort", "restricted"] {
        let other = report(policy, "container", &[&[("cpu", "0"), ("memory", "0")]]);
        let asks = guaranteed(pod("p").req(&[("cpu", "1"), ("memory", "1Gi")]));
        assert_eq!(fits(other, asks), "", "{policy}");
    }
    let bed = Bed::new(json!({}));
    let asks = guaranteed(pod("p").req(&[("cpu", "1"), ("memory", "1Gi")]));
    assert_eq!(bed.judge(&asks), (String::new(), 0), "no report");
}

#[test]
fn reports_of_any_kind() {
    use topology::{ManagerScope, Topology};
    let manager = |data: Value| Topology::of(&object(data)).expect("reads").manager;
    let old = |policy: &str| manager(json!({"topologyPolicies": [policy], "zones": []}));
    assert!(old("SingleNUMANodePodLevel").single_numa_node);
    assert_eq!(old("SingleNUMANodePodLevel").scope, ManagerScope::Pod);
    assert_eq!(
        old("SingleNUMANodeContainerLevel").scope,
        ManagerScope::Container
    );
    assert!(!old("RestrictedPodLevel").single_numa_node);
    let attributes = |name: &str, value: &str| {
        manager(
            json!({"topologyPolicies": ["SingleNUMANodePodLevel"], "attributes": [{"name": name, "value": value}], "zones": []}),
        )
    };
    assert!(
        !attributes("topologyManagerPolicy", "none").single_numa_node,
        "attributes go first"
    );
    assert!(attributes("topologyManagerPolicy", "nonsense").single_numa_node);
    for (value, expect) in [
        ("4", 4),
        ("1", 8),
        ("0", 8),
        ("-1", 8),
        ("x", 8),
        ("9999", 1024),
    ] {
        assert_eq!(
            attributes("topologyManagerMaxNUMANodes", value).max_numa_nodes,
            expect,
            "{value}"
        );
    }
    let zones = json!({"zones": [
        {"name": "node-3", "type": "Node"}, {"name": "node-3", "type": "Node"}, {"name": "node-64", "type": "Node"},
        {"name": "node-x", "type": "Node"}, {"name": "core-0", "type": "Core"}, {"name": "node--1", "type": "Node"},
    ]});
    let read = Topology::of(&object(zones)).expect("reads");
    assert_eq!(
        read.numa_nodes
            .iter()
            .map(|numa| numa.id)
            .collect::<Vec<_>>(),
        [3]
    );
    assert!(Topology::of(&object(json!({"zones": 1}))).is_err());
    // One that cannot be read changes nothing.
    let bed = Bed::new(json!({}));
    bed.report(json!({"zones": 1}));
    assert_eq!(bed.touched(), 0);
}

#[test]
fn scores() {
    let zones: &[&[(&str, &str)]] = &[
        &[("cpu", "10"), ("memory", "10Gi")],
        &[("cpu", "20"), ("memory", "40Gi")],
    ];
    let check = |strategy: Value, scope: &str, pod: PodBuilder, expect: i64| {
        let bed = Bed::new(json!({"scoringStrategy": strategy}));
        bed.report(report("single-numa-node", scope, zones));
        assert_eq!(bed.judge(&pod).1, expect, "{strategy} {scope}");
    };
    let asks = |cpu, memory| guaranteed(pod("p").req(&[("cpu", cpu), ("memory", memory)]));
    let of = |strategy: &str| json!({"type": strategy});
    // The worse of both NUMA nodes counts: (80 + 50) / 2 on the first, (90 + 87) / 2 on the second.
    check(of("LeastAllocated"), "pod", asks("2", "5Gi"), 65);
    check(of("MostAllocated"), "pod", asks("2", "5Gi"), 11);
    let weighted = json!({"type": "LeastAllocated", "resources": [{"name": "cpu", "weight": 3}]});
    check(weighted, "pod", asks("2", "5Gi"), 72);
    // 20 % and 50 % of the first; 10 % and 12 % of the second.
    check(of("BalancedAllocation"), "pod", asks("2", "5Gi"), 95);
    // Too much for the first: the second alone counts.
    check(of("LeastAllocated"), "pod", asks("15", "20Gi"), 37);
    // The mean over containers, of which each is judged by itself.
    let two = guaranteed(
        pod("p")
            .req(&[("cpu", "2"), ("memory", "5Gi")])
            .req(&[("cpu", "4"), ("memory", "1Gi")]),
    );
    check(of("LeastAllocated"), "container", two, (65 + 75) / 2);
    check(
        of("LeastAllocated"),
        "pod",
        pod("p").req(&[("cpu", "1")]),
        100,
    );
    let none = Bed::new(json!({}));
    none.report(report("none", "pod", zones));
    assert_eq!(none.judge(&asks("2", "5Gi")).1, 0);
}

#[test]
fn the_fewer_numa_nodes_the_better() {
    let zone: &[(&str, &str)] = &[("cpu", "4"), ("memory", "4Gi")];
    let four: &[&[(&str, &str)]] = &[zone; 4];
    let check = |zones: &[&[(&str, &str)]], scope: &str, pod: PodBuilder, expect: i64| {
        let bed = Bed::new(json!({"scoringStrategy": {"type": "LeastNUMANodes"}}));
        bed.report(report("none", scope, zones));
        assert_eq!(bed.judge(&pod).1, expect, "{scope}");
    };
    let asks = |cpu| guaranteed(pod("p").req(&[("cpu", cpu), ("memory", "1Gi")]));
    // 12 for each NUMA node of eight; 6 back where no others are nearer.
    check(four, "pod", asks("4"), 100 - 12 + 6);
    check(four, "pod", asks("5"), 100 - 24 + 6);
    check(four, "pod", asks("16"), 100 - 48 + 6);
    check(four, "pod", asks("17"), 0);
    // The two that are left are not the nearest.
    let apart: &[&[(&str, &str)]] = &[
        &[("cpu", "4"), ("memory", "4Gi")],
        &[("cpu", "0"), ("memory", "4Gi")],
        &[("cpu", "4"), ("memory", "4Gi")],
    ];
    check(apart, "pod", asks("8"), 100 - 24);
    // Each container takes from what the one before left: two on the first NUMA node, the third on two.
    let three = guaranteed(
        pod("p")
            .req(&[("cpu", "4"), ("memory", "1Gi")])
            .req(&[("cpu", "4"), ("memory", "1Gi")])
            .req(&[("cpu", "6"), ("memory", "1Gi")]),
    );
    check(four, "container", three, 100 - 24 + 6);
    let many: Vec<&[(&str, &str)]> = vec![&[("cpu", "4"), ("memory", "4Gi")]; 17];
    check(&many, "pod", asks("4"), 0);
}

#[test]
fn a_node_a_pod_is_on_its_way_to_is_passed_over() {
    let bed = Bed::new(json!({"discardReservedNodes": true, "cacheResyncPeriodSeconds": 5}));
    let asks = guaranteed(pod("p").req(&[("cpu", "1"), ("memory", "1Gi")]));
    bed.report(report(
        "single-numa-node",
        "pod",
        &[&[("cpu", "4"), ("memory", "4Gi")]],
    ));
    assert_eq!(bed.touched(), 1);
    let (reserve, coming) = (bed.plugin.as_reserve().unwrap(), pod("coming").info());
    let state = &mut CycleState::new();
    let _ = reserve.reserve(state, &coming, "n");
    assert_eq!(bed.judge(&asks).0, "invalid node topology data");
    reserve.unreserve(state, &coming, "n");
    assert_eq!((bed.judge(&asks).0.as_str(), bed.touched()), ("", 1));
    let _ = reserve.reserve(state, &coming, "n");
    bed.plugin
        .as_post_bind()
        .unwrap()
        .post_bind(state, &coming, "n");
    assert_eq!((bed.judge(&asks).0.as_str(), bed.touched()), ("", 1));
}

fn running(pod: PodBuilder, scheduler: &str) -> EventObject {
    let pod = pod.node("n").scheduler_name(scheduler);
    EventObject::Pod(
        pod.with(|pod| pod.status.as_mut().unwrap().phase = Some("Running".into()))
            .build(),
    )
}

/// A report about the pods of these names in the namespace `default`.
fn about(pods: &[&str], cpu: &str) -> Value {
    let mut data = report(
        "single-numa-node",
        "pod",
        &[&[("cpu", cpu), ("memory", "40Gi")]],
    );
    let sign = fingerprint::sign(pods.iter().map(|name| ("default", *name)));
    let attributes = data["attributes"].as_array_mut().unwrap();
    attributes.push(json!({"name": "nodeTopologyPodsFingerprint", "value": sign}));
    data
}

#[test]
fn what_was_placed_counts_until_a_report_knows_it() {
    let bed = Bed::new(json!({"cacheResyncPeriodSeconds": 5}));
    let asks =
        |name: &str, cpu: &str| guaranteed(pod(name).req(&[("cpu", cpu), ("memory", "1Gi")]));
    let fits = |cpu: &str| bed.judge(&asks("p", cpu)).0.is_empty();
    bed.report(about(&[], "4"));
    assert!(fits("4"));
    let placed = asks("placed", "3");
    let _ = bed.plugin.as_reserve().unwrap().reserve(
        &mut CycleState::new(),
        &placed.clone().info(),
        "n",
    );
    assert!(fits("1") && !fits("2"), "3 of 4 may be taken");
    // A report about other pods is too old, or too new.
    bed.report(about(&["somebody"], "9"));
    assert!(!fits("2"));
    bed.report(about(&["placed"], "5"));
    assert!(!fits("2"), "it is not known to run yet");
    bed.touched();
    bed.tell(None, Some(running(placed.clone(), "default-scheduler")));
    assert!(bed.touched() > 0, "kept answers are stale");
    assert!(fits("5"), "the report counts, and nothing beside it");
    // Undone, and gone.
    let other = asks("other", "5");
    let reserve = bed.plugin.as_reserve().unwrap();
    let _ = reserve.reserve(&mut CycleState::new(), &other.clone().info(), "n");
    assert!(!fits("1"));
    reserve.unreserve(&mut CycleState::new(), &other.clone().info(), "n");
    assert!(fits("5"));
    let _ = reserve.reserve(&mut CycleState::new(), &other.clone().info(), "n");
    bed.tell(Some(running(other, "default-scheduler")), None);
    assert!(fits("5"));
}

#[test]
fn pods_of_others_make_a_node_stale() {
    let check = |cache: Value, foreign: PodBuilder, expect: &str| {
        let bed = Bed::new(json!({"cacheResyncPeriodSeconds": 5, "cache": cache}));
        bed.report(about(&[], "4"));
        bed.tell(None, Some(running(foreign.clone(), "another")));
        let asks = guaranteed(pod("p").req(&[("cpu", "1"), ("memory", "1Gi")]));
        assert_eq!(bed.judge(&asks).0, expect, "{cache}");
        // Once a report knows of it all is well.
        let name = foreign.build().metadata.name.clone().unwrap_or_default();
        let named = [name.as_str()];
        let known: &[&str] = match cache["resyncMethod"].as_str() {
            Some("OnlyExclusiveResources") => &[],
            _ => &named,
        };
        bed.report(about(known, "4"));
        assert_eq!(bed.judge(&asks).0, "");
    };
    let (stale, fine) = ("invalid node topology data", "");
    let shared = || pod("f").req(&[("cpu", "1"), ("memory", "1Gi")]);
    check(json!({}), shared(), stale);
    check(json!({"foreignPodsDetect": "None"}), shared(), fine);
    check(
        json!({"foreignPodsDetect": "OnlyExclusiveResources"}),
        shared(),
        fine,
    );
    check(
        json!({"foreignPodsDetect": "OnlyExclusiveResources"}),
        guaranteed(shared()),
        stale,
    );
    check(
        json!({"resyncMethod": "OnlyExclusiveResources"}),
        shared(),
        stale,
    );
}

#[test]
fn other_settings_of_the_kubelet_count_at_once() {
    let asks = guaranteed(pod("p").req(&[("cpu", "9"), ("memory", "1Gi")]));
    for (scope, expect) in [("All", ""), ("OnlyResources", "cannot align pod")] {
        let bed = Bed::new(json!({"cacheResyncPeriodSeconds": 5, "cache": {"resyncScope": scope}}));
        bed.report(about(&["x"], "4"));
        let mut other = report("none", "pod", &[&[("cpu", "4"), ("memory", "4Gi")]]);
        other["attributes"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "nodeTopologyPodsFingerprint", "value": "y"}));
        bed.report(other);
        assert_eq!(bed.judge(&asks).0, expect, "{scope}");
    }
}

#[test]
fn exclusive_resources() {
    let resources = [("example.com/nic".to_owned())].into();
    let check = |pod: PodBuilder, expect| {
        assert_eq!(
            topology::has_exclusive_resources(&pod.build(), &resources),
            expect
        );
    };
    let asks = |requests: &[(&str, &str)]| pod("p").req(requests);
    check(guaranteed(asks(&[("cpu", "2"), ("memory", "1Gi")])), true);
    check(asks(&[("cpu", "2"), ("memory", "1Gi")]), false);
    check(asks(&[("example.com/nic", "1")]), true);
    check(asks(&[("example.com/other", "1")]), false);
    // Memory is a guaranteed pod's own; a part of a CPU is not.
    check(
        guaranteed(asks(&[("cpu", "500m"), ("memory", "1Gi")])),
        true,
    );
}

#[test]
fn pods_of_another_shape_have_another_signature() {
    let key = |pod: PodBuilder| {
        let mut key = Vec::new();
        Shape::of(&pod.info()).encode(&mut key);
        key
    };
    let one = || pod("p").req(&[("cpu", "2"), ("memory", "1Gi")]);
    let halves = || {
        pod("p")
            .req(&[("cpu", "1"), ("memory", "512Mi")])
            .req(&[("cpu", "1"), ("memory", "512Mi")])
    };
    assert_eq!(
        key(one()),
        key(pod("other").req(&[("cpu", "2000m"), ("memory", "1024Mi")]))
    );
    assert_ne!(key(one()), key(halves()));
    assert_ne!(key(one()), key(guaranteed(one())));
    assert_eq!(key(pod("a")), key(pod("b")));
}

#[test]
fn what_is_not_built_is_refused() {
    let args = json!({"preemptionMode": "Enabled"});
    let error = new(Some(&args), plugins::testing::handle()).err();
    let error = error.expect("refused").to_string();
    assert!(
        error.contains("preemptionMode: Unsupported value: \"Enabled\""),
        "{error}"
    );
    let args = json!({"scoringStrategy": {"type": "Best"}});
    assert!(new(Some(&args), plugins::testing::handle()).is_err());
}
