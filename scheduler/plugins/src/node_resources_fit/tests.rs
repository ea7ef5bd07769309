use framework::testing::{PodBuilder, assert_forms_agree, make_node, make_pod, snapshot};

use super::*;
use crate::testing::{Random, handle};

fn plugin(args: serde_json::Value) -> Arc<dyn Plugin> {
    new(Some(&args), handle()).expect("valid arguments")
}

fn pod(requests: &[(&str, &str)]) -> PodBuilder {
    make_pod("p").req(requests)
}

#[test]
fn reasons() {
    let fit = plugin(
        serde_json::json!({"ignoredResources": ["example.com/skip"], "ignoredResourceGroups": ["ignored.com"]}),
    );
    let node = || {
        make_node("a").capacity(&[
            ("cpu", "10"),
            ("memory", "20"),
            ("ephemeral-storage", "20"),
            ("example.com/gpu", "5"),
            ("pods", "32"),
        ])
    };
    let check = |wanted: &[(&str, &str)], used: &[(&str, &str)], code: Code, reasons: &[&str]| {
        let node = node().info([pod(used).info()]);
        let status =
            fit.as_filter()
                .unwrap()
                .filter(&CycleState::new(), &pod(wanted).info(), &node);
        assert_eq!(
            (status.code(), status.reasons().to_vec()),
            (code, reasons.iter().map(|r| r.to_string()).collect()),
            "{wanted:?}"
        );
    };
    let full = [("cpu", "10"), ("memory", "20")];
    check(&[], &full, Code::Success, &[]);
    check(
        &[("cpu", "1"), ("memory", "1")],
        &full,
        Code::Unschedulable,
        &["Insufficient cpu", "Insufficient memory"],
    );
    check(
        &[("cpu", "11")],
        &[],
        Code::UnschedulableAndUnresolvable,
        &["Insufficient cpu"],
    );
    check(
        &[("cpu", "1"), ("memory", "1")],
        &[("cpu", "5"), ("memory", "5")],
        Code::Success,
        &[],
    );
    check(
        &[("memory", "1")],
        &[("cpu", "10"), ("memory", "19")],
        Code::Success,
        &[],
    );
    check(
        &[("ephemeral-storage", "25")],
        &[],
        Code::UnschedulableAndUnresolvable,
        &["Insufficient ephemeral-storage"],
    );
    check(
        &[("example.com/gpu", "3")],
        &[("example.com/gpu", "3")],
        Code::Unschedulable,
        &["Insufficient example.com/gpu"],
    );
    check(
        &[("example.com/other", "1")],
        &[],
        Code::UnschedulableAndUnresolvable,
        &["Insufficient example.com/other"],
    );
    check(
        &[("example.com/skip", "1"), ("ignored.com/x", "1")],
        &[],
        Code::Success,
        &[],
    );

    let crowded = make_node("b").with(|node| {
        node.status
            .as_mut()
            .unwrap()
            .allocatable
            .as_mut()
            .unwrap()
            .insert(
                "pods".into(),
                k8s_openapi::apimachinery::pkg::api::resource::Quantity("1".into()),
            );
    });
    let status = fit.as_filter().unwrap().filter(
        &CycleState::new(),
        &pod(&[]).info(),
        &crowded.info([pod(&[]).info()]),
    );
    assert_eq!(status, Status::unschedulable("Too many pods"));
}

#[test]
fn scores() {
    let shape = serde_json::json!({"shape": [{"utilization": 0, "score": 10}, {"utilization": 100, "score": 0}]});
    let [least, most, ratio] = [
        serde_json::json!({}),
        serde_json::json!({"scoringStrategy": {"type": "MostAllocated", "resources": [{"name": "cpu", "weight": 1}, {"name": "memory", "weight": 1}]}}),
        serde_json::json!({"scoringStrategy": {"type": "RequestedToCapacityRatio", "resources": [{"name": "cpu"}, {"name": "memory"}], "requestedToCapacityRatio": shape}}),
    ]
    .map(plugin);
    let score = |plugin: &Arc<dyn Plugin>, wanted: &[(&str, &str)], cpu: &str, memory: &str| {
        let node = make_node("a")
            .capacity(&[("cpu", cpu), ("memory", memory)])
            .info([]);
        plugin
            .as_score()
            .unwrap()
            .score(&CycleState::new(), &pod(wanted).info(), &node)
            .unwrap()
    };
    // As in upstream: 3000m of 4000m and 5000 of 10000 leave (25 + 50) / 2.
    let wanted = [("cpu", "3"), ("memory", "5000")];
    assert_eq!(score(&least, &wanted, "4", "10000"), 37);
    assert_eq!(score(&most, &wanted, "4", "10000"), 62);
    assert_eq!(score(&ratio, &wanted, "4", "10000"), 38);
    assert_eq!(score(&least, &wanted, "6", "10000"), 50);
    assert_eq!(
        score(&least, &[("cpu", "0"), ("memory", "0")], "4", "10000"),
        100
    );
    assert_eq!(
        score(&least, &[("cpu", "5"), ("memory", "0")], "4", "10000"),
        50
    );
}

#[test]
fn rejected_arguments() {
    for (args, expect) in [
        (
            serde_json::json!({"ignoredResourceGroups": ["a/b"]}),
            "ignoredResourceGroups[0]",
        ),
        (
            serde_json::json!({"scoringStrategy": {"resources": [{"name": "cpu", "weight": 101}]}}),
            "not in valid range (0, 100]",
        ),
        (
            serde_json::json!({"scoringStrategy": {"type": "RequestedToCapacityRatio"}}),
            "must be specified",
        ),
        (
            serde_json::json!({"scoringStrategy": {"type": "Nope"}}),
            "Nope",
        ),
        (serde_json::json!({"nope": 1}), "nope"),
    ] {
        let error = new(Some(&args), handle())
            .err()
            .expect("must be refused")
            .to_string();
        assert!(error.contains(expect), "{error}");
    }
}

#[test]
fn forms_agree() {
    let plugins = [
        serde_json::json!({}),
        serde_json::json!({"ignoredResourceGroups": ["example.com"], "scoringStrategy": {"type": "MostAllocated", "resources": [{"name": "cpu"}, {"name": "example.com/gpu", "weight": 5}]}}),
    ]
    .map(plugin);
    let mut random = Random::new(7);
    for _ in 0..50 {
        let mut nodes = Vec::new();
        let mut pods = Vec::new();
        let amounts = |random: &mut Random| -> Vec<(&'static str, String)> {
            let mut list = vec![
                ("cpu", format!("{}m", random.below(4000))),
                ("memory", format!("{}Mi", random.below(4096))),
            ];
            if random.below(3) == 0 {
                list.push(("example.com/gpu", random.below(4).to_string()));
            }
            if random.below(4) == 0 {
                list.push(("ephemeral-storage", format!("{}Mi", random.below(4096))));
            }
            list
        };
        for i in 0..random.below(20) + 1 {
            let capacity = amounts(&mut random);
            let capacity: Vec<(&str, &str)> = capacity
                .iter()
                .map(|(k, v)| (*k, v.as_str()))
                .chain([("pods", "3")])
                .collect();
            nodes.push(make_node(&format!("n{i}")).capacity(&capacity).build());
            for _ in 0..random.below(4) {
                let used = amounts(&mut random);
                let used: Vec<(&str, &str)> = used.iter().map(|(k, v)| (*k, v.as_str())).collect();
                pods.push(
                    pod(&used)
                        .with(|pod| pod.spec.as_mut().unwrap().node_name = Some(format!("n{i}")))
                        .info(),
                );
            }
        }
        let snapshot = snapshot(nodes, pods);
        let wanted = amounts(&mut random);
        let wanted: Vec<(&str, &str)> = wanted.iter().map(|(k, v)| (*k, v.as_str())).collect();
        for plugin in &plugins {
            assert_forms_agree(plugin.as_ref(), &pod(&wanted).info(), &snapshot);
        }
    }
}

#[test]
fn hints() {
    let waiting = pod(&[("cpu", "2")]).build();
    let on = |node: Option<&str>, cpu: &str, uid: &str| {
        let node = node.map(str::to_owned);
        Some(EventObject::Pod(
            pod(&[("cpu", cpu)])
                .uid(uid)
                .with(|pod| pod.spec.as_mut().unwrap().node_name = node)
                .build(),
        ))
    };
    for (old, new, expect) in [
        (on(Some("a"), "1", "x"), None, QueueingHint::Queue),
        (on(None, "1", "x"), None, QueueingHint::QueueSkip),
        (
            on(Some("a"), "2", "x"),
            on(Some("a"), "1", "x"),
            QueueingHint::Queue,
        ),
        (
            on(Some("a"), "1", "x"),
            on(Some("a"), "1", "x"),
            QueueingHint::QueueSkip,
        ),
        (
            on(None, "2", "x"),
            on(None, "1", "x"),
            QueueingHint::QueueSkip,
        ),
    ] {
        assert_eq!(
            after_pod_event(&waiting, old.as_ref(), new.as_ref()),
            expect,
            "{old:?} {new:?}"
        );
    }
    let node = |cpu: &str| make_node("a").capacity(&[("cpu", cpu)]).build();
    for (old, new, expect) in [
        (None, node("2"), true),
        (None, node("1"), false),
        (Some(node("2")), node("3"), true),
        (Some(node("2")), node("2"), false),
        (Some(node("3")), node("2"), false),
    ] {
        assert_eq!(
            may_fit(
                &*crate::testing::handle(),
                &waiting,
                old.as_ref(),
                &new,
                &Ignored::default()
            ),
            expect
        );
    }
}

/// Whoever may make pods may name a node himself and ask for all that a number holds, many times over; a node says it has as
/// much. Nothing of that ends the scheduler, makes room where there is none, or stays when the pods are gone.
#[test]
fn the_largest_numbers_end_nothing() {
    const ALL: &str = "9223372036854775807";
    let resources = ["cpu", "memory", "ephemeral-storage", "example.com/gpu"];
    let all = resources.map(|name| (name, ALL));
    let small = resources.map(|name| (name, "2"));
    let capacity = [all.as_slice(), &[("pods", "110")]].concat();
    let fit = plugin(serde_json::json!({}));
    let filter = |wanted: &PodBuilder, node: &NodeInfo| {
        let pod = wanted.clone().info();
        let filter = fit.as_filter().unwrap();
        filter.filter(&CycleState::new(), &pod, node).code()
    };

    let mut node = make_node("a")
        .capacity(&capacity)
        .info([pod(&small).info()]);
    let before = node.requested().clone();
    let greedy: Vec<_> = (0..3).map(|_| pod(&all).info()).collect();
    for pod in &greedy {
        node.add_pod(Arc::clone(pod));
    }
    assert_eq!(filter(&pod(&small), &node), Code::Unschedulable);
    for pod in &greedy {
        node.remove_pod(&pod.uid).unwrap();
    }
    assert_eq!(*node.requested(), before);
    assert_eq!(filter(&pod(&small), &node), Code::Success);

    let on = |pod: PodBuilder, node: &str| {
        let node = node.to_owned();
        pod.with(|pod| pod.spec.as_mut().unwrap().node_name = Some(node))
            .info()
    };
    let nodes = ["a", "b"].map(|name| make_node(name).capacity(&capacity).build());
    let pods = [pod(&all), pod(&all), pod(&small)].map(|pod| on(pod, "a"));
    let snapshot = snapshot(nodes, pods);
    for strategy in ["LeastAllocated", "MostAllocated"] {
        let resources = resources.map(|name| serde_json::json!({"name": name, "weight": 100}));
        let args =
            serde_json::json!({"scoringStrategy": {"type": strategy, "resources": resources}});
        for wanted in [&small, &all] {
            assert_forms_agree(
                plugin(args.clone()).as_ref(),
                &pod(wanted).info(),
                &snapshot,
            );
        }
    }
    let balanced = crate::balanced_allocation::new(None, handle()).unwrap();
    assert_forms_agree(balanced.as_ref(), &pod(&all).info(), &snapshot);
}
