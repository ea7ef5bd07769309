use framework::testing::{
    PodBuilder, assert_forms_agree, labels, make_node, make_pod, normalized, selector, snapshot,
};
use framework::{Code, EventObject};
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::*;
use crate::testing::{FakeHandle, Random, handle};

const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";

fn plugin() -> PodTopologySpread {
    PodTopologySpread {
        source: Arc::new(Source::new(PodTopologySpreadArgs::default(), handle())),
    }
}

fn foo() -> PodBuilder {
    make_pod("p").label("foo", "")
}

fn on(pod: PodBuilder, node: &str) -> Arc<PodInfo> {
    let node = node.to_owned();
    pod.with(move |pod| pod.spec.as_mut().unwrap().node_name = Some(node))
        .info()
}

fn constraint(max_skew: i32, key: &str) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        max_skew,
        topology_key: key.into(),
        when_unsatisfiable: "DoNotSchedule".into(),
        label_selector: Some(selector(&[("foo", "")])),
        ..Default::default()
    }
}

/// Two zones of two nodes.
fn cluster(counts: [usize; 4]) -> Snapshot {
    let names = ["a", "b", "x", "y"];
    let nodes = names
        .iter()
        .zip(["zone1", "zone1", "zone2", "zone2"])
        .map(|(name, zone)| make_node(name).zone(zone).build());
    let pods = names
        .iter()
        .zip(counts)
        .flat_map(|(name, count)| (0..count).map(|_| on(foo(), name)));
    snapshot(nodes, pods.collect::<Vec<_>>())
}

fn fit(pod: &Arc<PodInfo>, snapshot: &Snapshot) -> String {
    let plugin = plugin();
    assert_forms_agree(&plugin, pod, snapshot);
    let mut state = CycleState::new();
    if plugin.pre_filter(&mut state, pod, snapshot).1.is_skip() {
        return "skip".into();
    }
    snapshot
        .list()
        .filter(|(_, node)| plugin.filter(&state, pod, node).is_success())
        .map(|(_, node)| node.name().to_string())
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect()
}

#[test]
fn filters() {
    let sel = || selector(&[("foo", "")]);
    let zone = |skew| foo().spread(skew, ZONE, "DoNotSchedule", sel()).info();
    let host = |skew| foo().spread(skew, HOST, "DoNotSchedule", sel()).info();
    for (what, pod, counts, expect) in [
        ("no constraint", foo().info(), [1, 0, 0, 0], "skip"),
        ("nothing placed yet", zone(1), [0, 0, 0, 0], "abxy"),
        ("the other zone", zone(1), [1, 0, 0, 0], "xy"),
        ("a larger skew", zone(2), [1, 1, 1, 0], "abxy"),
        ("the least node", host(1), [2, 1, 0, 3], "x"),
        ("hosts with skew 2", host(2), [2, 1, 0, 3], "bx"),
        (
            "both",
            foo()
                .spread(1, ZONE, "DoNotSchedule", sel())
                .spread(1, HOST, "DoNotSchedule", sel())
                .info(),
            [1, 0, 0, 1],
            "bx",
        ),
        (
            "does not match itself",
            make_pod("p").spread(1, ZONE, "DoNotSchedule", sel()).info(),
            [1, 0, 0, 0],
            "abxy",
        ),
        (
            "soft constraints do not filter",
            foo().spread(1, ZONE, "ScheduleAnyway", sel()).info(),
            [9, 0, 0, 0],
            "skip",
        ),
        (
            "another namespace",
            foo()
                .namespace("other")
                .spread(1, ZONE, "DoNotSchedule", sel())
                .info(),
            [9, 0, 0, 0],
            "abxy",
        ),
    ] {
        assert_eq!(fit(&pod, &cluster(counts)), expect, "{what}");
    }
}

#[test]
fn policies_and_domains() {
    let with = |change: fn(&mut TopologySpreadConstraint)| {
        let mut one = constraint(1, ZONE);
        change(&mut one);
        foo().spread_constraint(one)
    };
    // Fewer domains than asked for: the missing ones count as empty.
    assert_eq!(
        fit(
            &with(|c| c.min_domains = Some(3)).info(),
            &cluster([1, 0, 1, 0])
        ),
        ""
    );
    assert_eq!(
        fit(
            &with(|c| c.min_domains = Some(2)).info(),
            &cluster([1, 0, 1, 0])
        ),
        "abxy"
    );
    // Only pods of the same revision count.
    let keyed = with(|c| c.match_label_keys = Some(vec!["rev".into()])).label("rev", "2");
    assert_eq!(fit(&keyed.info(), &cluster([3, 0, 0, 0])), "abxy");
    // Nodes the pod cannot go to anyway count, or not.
    let selected = |policy: Option<&str>| {
        let mut one = constraint(1, ZONE);
        one.node_affinity_policy = policy.map(Into::into);
        foo()
            .spread_constraint(one)
            .with(|pod| pod.spec.as_mut().unwrap().node_selector = Some(labels(&[(ZONE, "zone1")])))
            .info()
    };
    assert_eq!(fit(&selected(None), &cluster([1, 0, 0, 0])), "abxy");
    assert_eq!(fit(&selected(Some("Ignore")), &cluster([1, 0, 0, 0])), "xy");
    let tainted = |policy: &str| {
        let mut one = constraint(1, ZONE);
        one.node_taints_policy = Some(policy.into());
        let nodes = [
            make_node("a").zone("zone1").build(),
            make_node("x")
                .zone("zone2")
                .taint("t", "", "NoSchedule")
                .build(),
        ];
        fit(
            &foo().spread_constraint(one).info(),
            &snapshot(nodes, [on(foo(), "a")]),
        )
    };
    assert_eq!(tainted("Ignore"), "x");
    assert_eq!(tainted("Honor"), "ax");
}

#[test]
fn a_node_in_no_domain() {
    let snapshot = snapshot(
        [make_node("a").zone("z").build(), make_node("lone").build()],
        [],
    );
    let pod = foo().spread_constraint(constraint(1, ZONE)).info();
    let plugin = plugin();
    let mut state = CycleState::new();
    let _ = plugin.pre_filter(&mut state, &pod, &snapshot);
    let status = plugin.filter(&state, &pod, snapshot.get("lone").unwrap());
    assert_eq!(
        (status.code(), status.message().as_str()),
        (
            Code::UnschedulableAndUnresolvable,
            ERR_REASON_NODE_LABEL_NOT_MATCH
        )
    );
    assert_forms_agree(&plugin, &pod, &snapshot);
}

#[test]
fn preemption_tries_pods_away() {
    let snapshot = cluster([1, 0, 0, 0]);
    let pod = foo().spread_constraint(constraint(1, ZONE)).info();
    let plugin = plugin();
    let mut state = CycleState::new();
    let _ = plugin.pre_filter(&mut state, &pod, &snapshot);
    let a = snapshot.get("a").unwrap();
    assert_eq!(
        plugin.filter(&state, &pod, a),
        Status::unschedulable(ERR_REASON_CONSTRAINTS_NOT_MATCH)
    );
    let mut tried = state.clone();
    assert!(
        plugin
            .remove_pod(&mut tried, &pod, &a.pods()[0], a)
            .is_success()
    );
    assert!(plugin.filter(&tried, &pod, a).is_success());
    assert!(
        plugin
            .add_pod(&mut tried, &pod, &a.pods()[0], a)
            .is_success()
    );
    assert!(!plugin.filter(&tried, &pod, a).is_success());
    assert!(
        !plugin.filter(&state, &pod, a).is_success(),
        "the original state stays"
    );
}

fn scores(
    plugin: &PodTopologySpread,
    pod: &Arc<PodInfo>,
    snapshot: &Snapshot,
) -> Vec<(String, i64)> {
    let mut state = CycleState::new();
    let all = snapshot.columns().live();
    assert!(
        plugin
            .pre_score(&mut state, pod, snapshot, all)
            .is_success()
    );
    let mut raw = vec![0; snapshot.columns().len()];
    for (index, node) in snapshot.iter() {
        raw[index as usize] = plugin.score(&state, pod, node).unwrap();
    }
    let name = |index| snapshot.node(index).unwrap().name().to_string();
    let mut scores: Vec<_> = normalized(plugin, &state, pod, snapshot, all, &raw)
        .into_iter()
        .map(|s| (name(s.node), s.score))
        .collect();
    scores.sort();
    scores
}

#[test]
fn scores_as_upstream() {
    let sel = || selector(&[("foo", "")]);
    let check = |pod: PodBuilder, counts, expect: [i64; 4]| {
        let (pod, snapshot) = (pod.info(), cluster(counts));
        assert_forms_agree(&plugin(), &pod, &snapshot);
        let got: Vec<i64> = scores(&plugin(), &pod, &snapshot)
            .into_iter()
            .map(|(_, score)| score)
            .collect();
        assert_eq!(got, expect);
    };
    check(
        foo().spread(1, HOST, "ScheduleAnyway", sel()),
        [0, 0, 0, 0],
        [100, 100, 100, 100],
    );
    check(
        foo().spread(1, HOST, "ScheduleAnyway", sel()),
        [2, 1, 0, 3],
        [20, 60, 100, 0],
    );
    check(
        foo().spread(1, ZONE, "ScheduleAnyway", sel()),
        [2, 2, 1, 0],
        [16, 16, 100, 100],
    );
    let lone = snapshot(
        [make_node("a").zone("z").build(), make_node("lone").build()],
        [on(foo(), "a")],
    );
    let pod = foo().spread(1, ZONE, "ScheduleAnyway", sel()).info();
    assert_forms_agree(&plugin(), &pod, &lone);
    assert_eq!(scores(&plugin(), &pod, &lone)[1], ("lone".to_string(), 0));
}

#[test]
fn defaults_follow_the_owner() {
    let set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some("rs".into()),
            namespace: Some("default".into()),
            ..Default::default()
        },
        spec: ReplicaSetSpec {
            selector: selector(&[("foo", "")]),
            ..Default::default()
        },
        ..Default::default()
    };
    let owning: Arc<dyn Handle> = Arc::new(FakeHandle {
        replica_sets: vec![Arc::new(set)],
        ..Default::default()
    });
    let plugin = PodTopologySpread {
        source: Arc::new(Source::new(PodTopologySpreadArgs::default(), owning)),
    };
    let pod = foo().owner("ReplicaSet", "rs", "u").info();
    let snapshot = cluster([1, 0, 0, 0]);
    assert_forms_agree(&plugin, &pod, &snapshot);
    let got = scores(&plugin, &pod, &snapshot);
    assert!(
        got[2].1 == 100 && got[0].1 < got[1].1 && got[1].1 < got[2].1,
        "{got:?}"
    );
    assert_eq!(
        plugin.sign(&pod, &snapshot).unwrap().scope,
        framework::Scope::Cluster
    );
    let lonely = foo().info();
    assert_eq!(
        plugin.sign(&lonely, &snapshot).unwrap().scope,
        framework::Scope::Node
    );
    assert!(
        plugin
            .pre_score(
                &mut CycleState::new(),
                &lonely,
                &snapshot,
                snapshot.columns().live()
            )
            .is_skip()
    );
}

#[test]
fn the_view_follows_the_cluster() {
    let mut random = Random::new(3);
    let plugin = plugin();
    for round in 0..40 {
        let mut snapshot = Snapshot::new();
        let node = |random: &mut Random, i: u64| {
            let mut node = make_node(&format!("n{i}"));
            if random.below(6) > 0 {
                node = node.zone(&format!("z{}", random.below(3)));
            }
            if random.below(5) == 0 {
                node = node.taint("t", "", "NoSchedule");
            }
            let pods = (0..random.below(3)).map(|_| {
                if random.below(4) > 0 {
                    foo().info()
                } else {
                    make_pod("other").info()
                }
            });
            Arc::new(node.info(pods.collect::<Vec<_>>()))
        };
        for i in 0..random.below(12) + 1 {
            snapshot.set_node(node(&mut random, i));
        }
        let mut hard = constraint(random.below(2) as i32 + 1, ZONE);
        hard.node_taints_policy = (random.below(2) == 0).then(|| "Honor".into());
        hard.min_domains = Some(random.below(4) as i32 + 1);
        let pod = foo()
            .spread_constraint(hard)
            .spread(2, HOST, "DoNotSchedule", selector(&[("foo", "")]))
            .spread(1, ZONE, "ScheduleAnyway", selector(&[("foo", "")]))
            .spread(1, HOST, "ScheduleAnyway", selector(&[("foo", "")]))
            .info();
        let mut view = plugin.incremental(&pod, &snapshot).expect("has a view");
        for step in 0..6 {
            let before = snapshot.version();
            for _ in 0..random.below(3) + 1 {
                let i = random.below(12);
                if random.below(5) == 0 {
                    snapshot.remove_node(&format!("n{i}"))
                } else {
                    snapshot.set_node(node(&mut random, i))
                }
            }
            let mut changed = Vec::new();
            assert!(snapshot.changes_since(before, |index| changed.push(index)));
            view.update(&snapshot, &changed);
            let mut fresh = plugin.incremental(&pod, &snapshot).expect("has a view");
            let all = snapshot.columns().live().clone();
            let (verdicts, scores) = framework::testing::run_view(view.as_mut(), &snapshot, &all);
            let (expect_verdicts, expect_scores) =
                framework::testing::run_view(fresh.as_mut(), &snapshot, &all);
            assert_eq!(
                verdicts.feasible(),
                expect_verdicts.feasible(),
                "round {round} step {step}"
            );
            assert_eq!(scores, expect_scores, "round {round} step {step}");
            assert_forms_agree(&plugin, &pod, &snapshot);
        }
    }
}

#[test]
fn hints_for_pods_and_nodes() {
    let source = Source::new(PodTopologySpreadArgs::default(), handle());
    let waiting = foo().spread_constraint(constraint(1, ZONE)).build();
    let placed = |label: &str| {
        Some(EventObject::Pod(Arc::clone(
            &on(make_pod("q").uid("q").label(label, ""), "a").pod,
        )))
    };
    let pod = |old: Option<EventObject>, new: Option<EventObject>| {
        hints::after_pod_change(&source, &waiting, old.as_ref(), new.as_ref())
    };
    assert!(
        pod(None, placed("foo")) && pod(placed("foo"), None) && pod(placed("foo"), placed("bar"))
    );
    assert!(!pod(None, placed("bar")) && !pod(placed("bar"), placed("baz")));
    assert!(
        !pod(None, Some(EventObject::Pod(foo().build()))),
        "an unplaced pod spreads nothing"
    );
    let node = |zone: Option<&str>| {
        let node = make_node("a");
        Some(EventObject::Node(
            zone.map_or(node.clone(), |zone| node.zone(zone)).build(),
        ))
    };
    let change = |old: Option<EventObject>, new: Option<EventObject>| {
        hints::after_node_change(&source, &waiting, old.as_ref(), new.as_ref())
    };
    assert!(
        change(None, node(Some("z")))
            && change(node(Some("z")), None)
            && change(node(Some("z")), node(Some("y")))
            && change(node(None), node(Some("y")))
    );
    assert!(!change(None, node(None)) && !change(node(Some("z")), node(Some("z"))));
}

#[test]
fn rejected_arguments() {
    for (args, expect) in [
        (
            serde_json::json!({"defaultConstraints": [{"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}]}),
            "defaultingType",
        ),
        (
            serde_json::json!({"defaultingType": "List", "defaultConstraints": [{"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}]}),
            "maxSkew",
        ),
        (
            serde_json::json!({"defaultingType": "List", "defaultConstraints": [{"maxSkew": 1, "topologyKey": "", "whenUnsatisfiable": "Never"}]}),
            "whenUnsatisfiable",
        ),
        (
            serde_json::json!({"defaultingType": "List", "defaultConstraints": [{"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}]}),
            "labelSelector",
        ),
    ] {
        let error = new(Some(&args), handle())
            .err()
            .expect("must be refused")
            .to_string();
        assert!(error.contains(expect), "{error}");
    }
}
