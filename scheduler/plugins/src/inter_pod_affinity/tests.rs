use framework::testing::{
    PodBuilder, assert_forms_agree, labels, make_node, make_pod, normalized, run_view, selector,
    snapshot,
};
use framework::{Code, EventObject};

use super::*;
use crate::testing::{FakeHandle, Random, handle};

const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";

fn plugin() -> InterPodAffinity {
    InterPodAffinity {
        args: InterPodAffinityArgs::default(),
        handle: handle(),
    }
}

fn on(pod: PodBuilder, node: &str) -> Arc<PodInfo> {
    let node = node.to_owned();
    pod.with(move |pod| pod.spec.as_mut().unwrap().node_name = Some(node))
        .info()
}

fn web() -> PodBuilder {
    make_pod("web").label("app", "web")
}

fn app(name: &str) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector {
    selector(&[("app", name)])
}

/// a and b in zone 1, c in zone 2, lone without a zone.
fn cluster(pods: Vec<Arc<PodInfo>>) -> Snapshot {
    let zoned =
        [("a", "1"), ("b", "1"), ("c", "2")].map(|(name, zone)| make_node(name).zone(zone).build());
    snapshot(zoned.into_iter().chain([make_node("lone").build()]), pods)
}

fn verdicts(pod: &Arc<PodInfo>, snapshot: &Snapshot) -> Vec<(String, Status)> {
    let plugin = plugin();
    assert_forms_agree(&plugin, pod, snapshot);
    let mut state = CycleState::new();
    let skipped = plugin.pre_filter(&mut state, pod, snapshot).1.is_skip();
    let status = |node: &NodeInfo| {
        if skipped {
            Status::success()
        } else {
            plugin.filter(&state, pod, node)
        }
    };
    let mut all: Vec<_> = snapshot
        .iter()
        .map(|(_, node)| (node.name().to_string(), status(node)))
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn fit(pod: PodBuilder, placed: Vec<Arc<PodInfo>>) -> String {
    let all = verdicts(&pod.info(), &cluster(placed));
    all.into_iter()
        .filter(|(_, status)| status.is_success())
        .map(|(name, _)| name)
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn filters() {
    let db = || make_pod("db").label("app", "db");
    for (what, pod, placed, expect) in [
        ("no rules", web(), vec![on(db(), "a")], "a b c lone"),
        (
            "near",
            web().pod_affinity(ZONE, app("db")),
            vec![on(db(), "a")],
            "a b",
        ),
        (
            "on the same node",
            web().pod_affinity(HOST, app("db")),
            vec![on(db(), "a")],
            "a",
        ),
        (
            "nobody there",
            web().pod_affinity(ZONE, app("db")),
            vec![],
            "",
        ),
        (
            "the first of its kind",
            web().pod_affinity(ZONE, app("web")),
            vec![],
            "a b c",
        ),
        (
            "the second of its kind",
            web().pod_affinity(ZONE, app("web")),
            vec![on(web(), "c")],
            "c",
        ),
        (
            "far",
            web().pod_anti_affinity(ZONE, app("db")),
            vec![on(db(), "a")],
            "c lone",
        ),
        (
            "not on the same node",
            web().pod_anti_affinity(HOST, app("db")),
            vec![on(db(), "a")],
            "b c lone",
        ),
        (
            "the placed one objects",
            web(),
            vec![on(db().pod_anti_affinity(ZONE, app("web")), "c")],
            "a b lone",
        ),
        (
            "the placed one does not mind",
            web(),
            vec![on(db().pod_anti_affinity(ZONE, app("x")), "c")],
            "a b c lone",
        ),
        (
            "near one and far from another",
            web()
                .pod_affinity(ZONE, app("db"))
                .pod_anti_affinity(HOST, app("x")),
            vec![on(db(), "a"), on(make_pod("x").label("app", "x"), "b")],
            "a",
        ),
        (
            "one pod must match all terms",
            web()
                .pod_affinity(ZONE, app("db"))
                .pod_affinity(HOST, app("x")),
            vec![on(db(), "a"), on(make_pod("x").label("app", "x"), "a")],
            "",
        ),
        (
            "another namespace",
            web().namespace("n").pod_anti_affinity(ZONE, app("db")),
            vec![on(db(), "a")],
            "a b c lone",
        ),
    ] {
        assert_eq!(fit(pod, placed), expect, "{what}");
    }
}

#[test]
fn reasons() {
    let db = || {
        on(
            make_pod("db")
                .label("app", "db")
                .pod_anti_affinity(HOST, app("web")),
            "a",
        )
    };
    let check = |pod: PodBuilder, node: usize, code: Code, reason: &str| {
        let status = &verdicts(&pod.info(), &cluster(vec![db()]))[node].1;
        assert_eq!((status.code(), status.message().as_str()), (code, reason));
    };
    check(
        web(),
        0,
        Code::Unschedulable,
        ERR_REASON_EXISTING_ANTI_AFFINITY_RULES_NOT_MATCH,
    );
    check(
        web().pod_anti_affinity(ZONE, app("db")),
        1,
        Code::Unschedulable,
        ERR_REASON_ANTI_AFFINITY_RULES_NOT_MATCH,
    );
    check(
        web().pod_affinity(ZONE, app("db")),
        2,
        Code::UnschedulableAndUnresolvable,
        ERR_REASON_AFFINITY_RULES_NOT_MATCH,
    );
}

#[test]
fn namespaces_by_label() {
    let namespaces = [("team", "a"), ("other", "b")]
        .map(|(name, team)| (name.to_string(), labels(&[("team", team)])));
    let handle: Arc<dyn Handle> = Arc::new(FakeHandle {
        namespaces: namespaces.into(),
        ..Default::default()
    });
    let plugin = InterPodAffinity {
        args: InterPodAffinityArgs::default(),
        handle,
    };
    let repel = |pod: PodBuilder, team: &str| {
        let team = selector(&[("team", team)]);
        pod.pod_anti_affinity(HOST, app("web")).with(|pod| {
            let anti = pod
                .spec
                .as_mut()
                .unwrap()
                .affinity
                .as_mut()
                .unwrap()
                .pod_anti_affinity
                .as_mut()
                .unwrap();
            anti.required_during_scheduling_ignored_during_execution
                .as_mut()
                .unwrap()[0]
                .namespace_selector = Some(team);
        })
    };
    // Both ways: what the pod asks of others, and what others ask of it.
    for (pod, placed) in [
        (repel(web(), "a"), web().namespace("team")),
        (web().namespace("team"), repel(web(), "a")),
    ] {
        let (pod, snapshot) = (pod.info(), cluster(vec![on(placed, "a")]));
        assert_forms_agree(&plugin, &pod, &snapshot);
        let mut state = CycleState::new();
        assert!(
            plugin
                .pre_filter(&mut state, &pod, &snapshot)
                .1
                .is_success()
        );
        assert!(
            !plugin
                .filter(&state, &pod, snapshot.get("a").unwrap())
                .is_success()
        );
        assert!(
            plugin
                .filter(&state, &pod, snapshot.get("b").unwrap())
                .is_success()
        );
    }
    let elsewhere = cluster(vec![on(web().namespace("other"), "a")]);
    let pod = repel(web(), "a").info();
    let mut state = CycleState::new();
    let _ = plugin.pre_filter(&mut state, &pod, &elsewhere);
    assert!(
        plugin
            .filter(&state, &pod, elsewhere.get("a").unwrap())
            .is_success()
    );
}

#[test]
fn preemption_tries_pods_away() {
    let snapshot = cluster(vec![on(web(), "a")]);
    let pod = web().pod_anti_affinity(ZONE, app("web")).info();
    let plugin = plugin();
    let mut state = CycleState::new();
    let _ = plugin.pre_filter(&mut state, &pod, &snapshot);
    let (a, b) = (snapshot.get("a").unwrap(), snapshot.get("b").unwrap());
    assert!(!plugin.filter(&state, &pod, b).is_success());
    let mut tried = state.clone();
    let _ = plugin.remove_pod(&mut tried, &pod, &a.pods()[0], a);
    assert!(plugin.filter(&tried, &pod, b).is_success());
    let _ = plugin.add_pod(&mut tried, &pod, &a.pods()[0], a);
    assert!(!plugin.filter(&tried, &pod, b).is_success());
}

fn scores(pod: PodBuilder, placed: Vec<Arc<PodInfo>>) -> Option<Vec<i64>> {
    let (plugin, pod, snapshot) = (plugin(), pod.info(), cluster(placed));
    assert_forms_agree(&plugin, &pod, &snapshot);
    let mut state = CycleState::new();
    let all = snapshot.columns().live();
    if plugin.pre_score(&mut state, &pod, &snapshot, all).is_skip() {
        return None;
    }
    let raw: Vec<i64> = snapshot
        .iter()
        .map(|(_, node)| plugin.score(&state, &pod, node).unwrap())
        .collect();
    let mut named: Vec<_> = normalized(&plugin, &state, &pod, &snapshot, all, &raw)
        .into_iter()
        .map(|s| (snapshot.node(s.node).unwrap().name().to_string(), s.score))
        .collect();
    named.sort();
    Some(named.into_iter().map(|(_, score)| score).collect())
}

#[test]
fn scores_as_upstream() {
    let db = || make_pod("db").label("app", "db");
    for (what, pod, placed, expect) in [
        ("nothing to say", web(), vec![on(db(), "a")], None),
        (
            "near",
            web().preferred_pod_affinity(5, ZONE, app("db")),
            vec![on(db(), "a")],
            Some(vec![100, 100, 0, 0]),
        ),
        (
            "far",
            web().preferred_pod_anti_affinity(5, ZONE, app("db")),
            vec![on(db(), "a")],
            Some(vec![0, 0, 100, 100]),
        ),
        (
            "both",
            web()
                .preferred_pod_affinity(8, ZONE, app("db"))
                .preferred_pod_anti_affinity(4, HOST, app("db")),
            vec![on(db(), "a")],
            Some(vec![50, 100, 0, 0]),
        ),
        (
            "the placed one would like it",
            web(),
            vec![on(db().preferred_pod_affinity(3, ZONE, app("web")), "c")],
            Some(vec![0, 0, 100, 0]),
        ),
        (
            "the placed one would rather not",
            web(),
            vec![on(
                db().preferred_pod_anti_affinity(3, ZONE, app("web")),
                "c",
            )],
            Some(vec![100, 100, 0, 100]),
        ),
        (
            "the placed one insists",
            web(),
            vec![on(db().pod_affinity(ZONE, app("web")), "c")],
            Some(vec![0, 0, 100, 0]),
        ),
        (
            "the placed one speaks of others",
            web(),
            vec![on(db().pod_affinity(ZONE, app("x")), "c")],
            None,
        ),
    ] {
        assert_eq!(scores(pod, placed), expect, "{what}");
    }
}

#[test]
fn existing_preferences_may_be_ignored() {
    let args = serde_json::json!({"ignorePreferredTermsOfExistingPods": true});
    let plugin = new(Some(&args), handle()).unwrap();
    let snapshot = cluster(vec![on(
        make_pod("db").preferred_pod_affinity(3, ZONE, app("web")),
        "c",
    )]);
    assert_forms_agree(plugin.as_ref(), &web().info(), &snapshot);
    let status = plugin.as_pre_score().unwrap().pre_score(
        &mut CycleState::new(),
        &web().info(),
        &snapshot,
        snapshot.columns().live(),
    );
    assert!(status.is_skip());
    assert!(
        new(
            Some(&serde_json::json!({"hardPodAffinityWeight": 101})),
            handle()
        )
        .is_err()
    );
}

fn random_pod(random: &mut Random) -> PodBuilder {
    let key = |random: &mut Random| if random.below(2) == 0 { ZONE } else { HOST };
    let name = |random: &mut Random| ["web", "db", "x"][random.below(3) as usize];
    let mut pod = make_pod("p").label("app", name(random));
    if random.below(4) == 0 {
        pod = pod.pod_affinity(key(random), app(name(random)));
    }
    if random.below(4) == 0 {
        pod = pod.pod_anti_affinity(key(random), app(name(random)));
    }
    if random.below(3) == 0 {
        pod =
            pod.preferred_pod_affinity(random.below(9) as i32 + 1, key(random), app(name(random)));
    }
    if random.below(3) == 0 {
        pod = pod.preferred_pod_anti_affinity(
            random.below(9) as i32 + 1,
            key(random),
            app(name(random)),
        );
    }
    pod
}

#[test]
fn the_view_follows_the_cluster() {
    let mut random = Random::new(5);
    let plugin = plugin();
    for round in 0..40 {
        let mut snapshot = Snapshot::new();
        let node = |random: &mut Random, i: u64| {
            let mut node = make_node(&format!("n{i}"));
            if random.below(6) > 0 {
                node = node.zone(&format!("z{}", random.below(3)));
            }
            let pods: Vec<_> = (0..random.below(4))
                .map(|_| random_pod(random).info())
                .collect();
            Arc::new(node.info(pods))
        };
        for i in 0..random.below(10) + 1 {
            snapshot.set_node(node(&mut random, i));
        }
        let pod = random_pod(&mut random).info();
        let mut view = plugin.incremental(&pod, &snapshot).expect("has a view");
        for step in 0..6 {
            let before = snapshot.version();
            for _ in 0..random.below(3) + 1 {
                let i = random.below(10);
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
            let (verdicts, scores) = run_view(view.as_mut(), &snapshot, &all);
            let (expect_verdicts, expect_scores) = run_view(fresh.as_mut(), &snapshot, &all);
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
    let near = web().pod_affinity(ZONE, app("db")).build();
    let far = web().pod_anti_affinity(ZONE, app("db")).build();
    let placed = |name: &str| {
        Some(EventObject::Pod(Arc::clone(
            &on(make_pod("q").uid("q").label("app", name), "a").pod,
        )))
    };
    let change = |pod, old: Option<EventObject>, new: Option<EventObject>| {
        hints::after_pod_change(handle().listers(), pod, old.as_ref(), new.as_ref())
    };
    assert!(change(&near, None, placed("db")) && change(&near, placed("x"), placed("db")));
    assert!(!change(&near, None, placed("x")) && !change(&near, placed("db"), None));
    assert!(change(&far, placed("db"), None) && change(&far, placed("db"), placed("x")));
    assert!(!change(&far, None, placed("db")) && !change(&far, placed("x"), None));
    assert!(!change(
        &near,
        None,
        Some(EventObject::Pod(make_pod("q").label("app", "db").build()))
    ));
    let hostile = Some(EventObject::Pod(Arc::clone(
        &on(make_pod("h").pod_anti_affinity(ZONE, app("web")), "a").pod,
    )));
    assert!(change(&web().build(), hostile, None));

    let node = |zone: Option<&str>| {
        let node = make_node("a");
        Some(EventObject::Node(
            zone.map_or(node.clone(), |zone| node.zone(zone)).build(),
        ))
    };
    let change = |pod, old: Option<EventObject>, new: Option<EventObject>| {
        hints::after_node_change(pod, old.as_ref(), new.as_ref())
    };
    assert!(
        change(&near, None, node(Some("1")))
            && change(&near, node(None), node(Some("1")))
            && change(&near, node(Some("2")), node(Some("1")))
    );
    assert!(!change(&near, None, node(None)) && !change(&near, node(Some("1")), node(Some("1"))));
    assert!(change(&far, None, node(None)) && change(&far, node(Some("1")), node(None)));
    assert!(!change(&far, node(None), node(Some("1"))));
    // Who asks for nothing was kept away by others: those are not on a new node, nor on one that left their domain.
    let plain = web().build();
    assert!(change(&plain, None, node(Some("1"))));
    assert!(change(&plain, node(Some("1")), node(Some("2"))));
    assert!(!change(&plain, node(None), node(Some("1"))));
}

#[test]
fn a_pod_is_woken_by_any_of_the_terms_that_kept_it_away() {
    let namespaces = [("default".to_string(), labels(&[("team", "a")]))];
    let handle = FakeHandle {
        namespaces: namespaces.into(),
        ..Default::default()
    };
    let placed = |pod: PodBuilder| EventObject::Pod(Arc::clone(&on(pod.uid("q"), "a").pod));
    let gone = |pod: &PodBuilder, other: PodBuilder| {
        let pod = pod.clone().build();
        hints::after_pod_change(&handle, &pod, Some(&placed(other)), None)
    };
    let two = |pod: PodBuilder| {
        pod.pod_anti_affinity(ZONE, app("db"))
            .pod_anti_affinity(HOST, app("cache"))
    };
    let db = || make_pod("q").label("app", "db");
    let cache = || make_pod("q").label("app", "cache");
    let pod = two(web());
    assert!(gone(&pod, db()) && gone(&pod, cache()) && !gone(&pod, web()));
    assert!(gone(&db(), two(web())) && !gone(&web(), two(web())));
    let (before, after) = (placed(db()), placed(web()));
    let pod = pod.build();
    assert!(hints::after_pod_change(
        &handle,
        &pod,
        Some(&before),
        Some(&after)
    ));

    let elsewhere = |pod: PodBuilder, team: &str| {
        let team = selector(&[("team", team)]);
        pod.pod_anti_affinity(ZONE, app("db")).with(|pod| {
            let affinity = pod.spec.as_mut().unwrap().affinity.as_mut().unwrap();
            let anti = affinity.pod_anti_affinity.as_mut().unwrap();
            let terms = &mut anti.required_during_scheduling_ignored_during_execution;
            terms.as_mut().unwrap()[0].namespace_selector = Some(team);
        })
    };
    let pod = web().namespace("other");
    assert!(gone(&elsewhere(pod.clone(), "a"), db()));
    assert!(!gone(&elsewhere(pod.clone(), "b"), db()));
    assert!(gone(&db(), elsewhere(pod, "a")));
}
