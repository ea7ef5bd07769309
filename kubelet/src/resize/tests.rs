//! Resizes by story, and the pure parts by tables.

use std::sync::Arc;

use component_helpers::resources::ResourceList;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, Pod, PodCondition, PodSpec, PodStatus, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use runtime::api as cri;

use super::*;

fn list(pairs: &[(&str, &str)]) -> Option<ResourceList> {
    let of = |(k, v): &(&str, &str)| ((*k).to_owned(), Quantity((*v).to_owned()));
    (!pairs.is_empty()).then(|| pairs.iter().map(of).collect())
}

fn requirements(
    requests: &[(&str, &str)],
    limits: &[(&str, &str)],
) -> Option<ResourceRequirements> {
    Some(ResourceRequirements {
        requests: list(requests),
        limits: list(limits),
        ..Default::default()
    })
}

fn pod_with(uid: &str, resources: Option<ResourceRequirements>) -> Pod {
    let mut pod = Pod {
        spec: Some(PodSpec {
            containers: vec![Container {
                name: "c".into(),
                resources,
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    pod.metadata.uid = Some(uid.into());
    pod.metadata.generation = Some(1);
    pod
}

fn pod(uid: &str, cpu: &str) -> Arc<Pod> {
    Arc::new(pod_with(uid, requirements(&[("cpu", cpu)], &[])))
}

fn with(p: &Arc<Pod>, change: impl FnOnce(&mut Pod)) -> Arc<Pod> {
    let mut p = (**p).clone();
    change(&mut p);
    Arc::new(p)
}

/// Another version of the pod that asks for that much.
fn resized(p: &Arc<Pod>, cpu: &str) -> Arc<Pod> {
    with(p, |p| {
        p.metadata.generation = p.metadata.generation.map(|g| g + 1);
        p.spec.as_mut().unwrap().containers[0].resources = requirements(&[("cpu", cpu)], &[]);
    })
}

fn cpu_of(p: &Pod) -> String {
    let resources = pod::containers(p)[0].resources.as_ref().unwrap();
    resources.requests.as_ref().unwrap()["cpu"].0.clone()
}

fn node(cpu: &str) -> ResourceList {
    list(&[("cpu", cpu), ("memory", "1Gi")]).unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// What changed, as `uid Granted|Deferred|Infeasible|Reverted`.
fn resolve(
    m: &AllocationManager,
    active: &[Arc<Pod>],
    node: &ResourceList,
    now: i64,
) -> Vec<String> {
    m.resolve(active, node, Pinned::default(), at(now))
        .into_iter()
        .map(|(p, change)| {
            let what = match change {
                Change::Granted => "Granted".to_owned(),
                Change::Pending(p) => p.reason,
                Change::Reverted => "Reverted".to_owned(),
            };
            format!("{} {what}", pod::uid(&p))
        })
        .collect()
}

#[test]
fn a_resize_waits_for_room_and_is_told_once() {
    let m = AllocationManager::default();
    let (a, b) = (pod("a", "100m"), pod("b", "500m"));
    m.add(&a);
    m.add(&b);
    assert!(!m.is_pending(&a));
    let more = resized(&a, "600m");
    assert!(m.is_pending(&more));
    let active = [more.clone(), b.clone()];
    assert_eq!(resolve(&m, &active, &node("1"), 1), ["a Deferred"]);
    assert!(resolve(&m, &active, &node("1"), 2).is_empty());
    assert_eq!(cpu_of(&m.granted(&more)), "100m");
    let urgent = with(&more, |p| p.spec.as_mut().unwrap().priority = Some(7));
    let waits = Counts {
        pending: [(("deferred".to_owned(), "medium"), 1)].into(),
        in_progress: 0,
    };
    assert_eq!(m.counts(&[urgent, b.clone()]), waits);
    let told = m.conditions("a");
    assert_eq!(told[0].reason.as_deref(), Some("Deferred"));
    assert_eq!(told[0].observed_generation, Some(2));
    assert_eq!(
        told[0].message.as_deref(),
        Some("Node didn't have enough resource: cpu, requested: 600, used: 500, capacity: 1000")
    );
    // b has ended.
    assert_eq!(resolve(&m, &[more.clone()], &node("1"), 3), ["a Granted"]);
    assert_eq!(cpu_of(&m.granted(&more)), "600m");
    assert_eq!(m.conditions("a")[0].type_, "PodResizeInProgress");
    let under_way = Counts {
        pending: Default::default(),
        in_progress: 1,
    };
    assert_eq!(m.counts(std::slice::from_ref(&more)), under_way);
    // The kernel has it only after a while.
    assert_eq!(m.progress(&more, true), None);
    assert_eq!(m.failed(&more, "busy"), Some(Some(2)));
    assert_eq!(m.failed(&more, "busy"), None);
    assert_eq!(m.conditions("a")[0].reason.as_deref(), Some("Error"));
    assert_eq!(m.progress(&more, false), Some(Some(2)));
    assert_eq!(m.progress(&more, false), None);
    assert!(m.conditions("a").is_empty());
    // Never to be had, and taken back.
    let huge = resized(&more, "2");
    assert_eq!(resolve(&m, &[huge], &node("1"), 4), ["a Infeasible"]);
    assert_eq!(resolve(&m, &[more], &node("1"), 5), ["a Reverted"]);
    assert!(m.conditions("a").is_empty());
}

#[test]
fn priorities_are_counted_in_buckets() {
    for (priority, expect) in [
        (Some(2_000_001_000), "system-critical"),
        (Some(2_000_000_000), "system-critical"),
        (Some(1_999_999_999), "high"),
        (Some(100_000), "high"),
        (Some(99_999), "medium"),
        (Some(1), "medium"),
        (Some(0), "normal"),
        (None, "normal"),
        (Some(-1), "low"),
        (Some(-999), "low"),
        (Some(-1000), "very-low"),
    ] {
        let pod = with(&pod("a", "1"), |p| {
            p.spec.as_mut().unwrap().priority = priority
        });
        assert_eq!(allocation::priority_bucket(&pod), expect, "{priority:?}");
    }
}

#[test]
fn guaranteed_pods_are_not_resized_alongside_the_policy_static() {
    let sized = |cpu: &str, memory: &str| {
        with(&pod("a", cpu), |p| {
            let full: &[(&str, &str)] = &[("cpu", cpu), ("memory", memory)];
            p.spec.as_mut().unwrap().containers[0].resources = requirements(full, full);
        })
    };
    let check = |to: (&str, &str), of_managers: Pinned, expect: &str| {
        let m = AllocationManager::default();
        m.add(&sized("100m", "1Mi"));
        let active = [sized(to.0, to.1)];
        let changes = m.resolve(&active, &node("1"), of_managers, at(1));
        let told: Vec<String> = changes
            .into_iter()
            .map(|(_, change)| match change {
                Change::Pending(p) => {
                    let detail = p.reason_detail.unwrap_or_default();
                    format!("{detail} {}: {}", p.reason, p.message)
                }
                other => format!("{other:?}"),
            })
            .collect();
        assert_eq!(told, [expect]);
    };
    let (cpu, memory) = (
        Pinned {
            cpu: true,
            memory: false,
        },
        Pinned {
            cpu: false,
            memory: true,
        },
    );
    check(("200m", "1Mi"), Pinned::default(), "Granted");
    check(
        ("200m", "1Mi"),
        cpu,
        "guaranteed_pod_cpu_manager_static_policy Infeasible: Resize is infeasible for Guaranteed Pods alongside CPU Manager policy \"static\"",
    );
    check(("100m", "2Mi"), cpu, "Granted");
    check(
        ("100m", "2Mi"),
        memory,
        "guaranteed_pod_memory_manager_static_policy Infeasible: Resize is infeasible for Guaranteed Pods alongside Memory Manager policy \"Static\"",
    );
    // A burstable pod has nothing of its own.
    let m = AllocationManager::default();
    let small = pod("b", "100m");
    m.add(&small);
    let changes = m.resolve(&[resized(&small, "200m")], &node("1"), cpu, at(1));
    assert_eq!(changes[0].1, Change::Granted);
}

#[test]
fn waiting_resizes_are_looked_at_in_order() {
    let m = AllocationManager::default();
    let old = |uid| pod(uid, "100m");
    let names = ["late", "early", "guaranteed", "important", "shrinks"];
    for name in names {
        m.add(&old(name));
    }
    let guaranteed = with(&resized(&old("guaranteed"), "200m"), |p| {
        let full: &[(&str, &str)] = &[("cpu", "200m"), ("memory", "1Mi")];
        p.spec.as_mut().unwrap().containers[0].resources = requirements(full, full);
    });
    let important = with(&resized(&old("important"), "200m"), |p| {
        p.spec.as_mut().unwrap().priority = Some(10);
    });
    let early = resized(&old("early"), "200m");
    let late = resized(&old("late"), "200m");
    // Nothing fits at first; both are noted, one after the other.
    assert_eq!(
        resolve(&m, std::slice::from_ref(&early), &node("150m"), 1),
        ["early Infeasible"]
    );
    assert_eq!(
        resolve(&m, &[late.clone(), early.clone()], &node("150m"), 2),
        ["late Infeasible"]
    );
    let shrinks = resized(&old("shrinks"), "50m");
    let active = [late, early, guaranteed, important, shrinks];
    assert_eq!(
        resolve(&m, &active, &node("10"), 3),
        [
            "shrinks Granted",
            "important Granted",
            "guaranteed Granted",
            "early Granted",
            "late Granted"
        ]
    );
}

#[test]
fn the_room_of_one_is_not_given_twice() {
    let m = AllocationManager::default();
    for name in ["a", "b"] {
        m.add(&pod(name, "100m"));
    }
    let active = ["a", "b"].map(|n| resized(&pod(n, "100m"), "500m"));
    assert_eq!(
        resolve(&m, &active, &node("700m"), 1),
        ["a Granted", "b Deferred"]
    );
}

#[tokio::test]
async fn what_was_granted_outlives_the_kubelet() {
    let dir = tempfile::tempdir().unwrap();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let m = Arc::new(AllocationManager::load(dir.path()));
    let of_pod = |cpu: &str| {
        with(&pod("a", "100m"), |p| {
            p.spec.as_mut().unwrap().resources = requirements(&[("cpu", cpu)], &[("cpu", "1")]);
        })
    };
    m.add(&of_pod("300m"));
    shutdown.cancel();
    m.run(dir.path().to_path_buf(), shutdown).await;

    // While it was down, more was asked for, and the status had been told of an older wish.
    let again = AllocationManager::load(dir.path());
    let more = with(&of_pod("600m"), |p| {
        p.status = Some(PodStatus {
            conditions: Some(vec![PodCondition {
                type_: "PodResizePending".into(),
                status: "True".into(),
                reason: Some("Deferred".into()),
                observed_generation: Some(1),
                ..Default::default()
            }]),
            ..Default::default()
        });
    });
    again.add(&more);
    let granted = again.granted(&more);
    let of_pod = granted.spec.as_ref().unwrap().resources.as_ref().unwrap();
    assert_eq!(of_pod.requests, list(&[("cpu", "300m")]));
    // Known already: no second event.
    assert!(resolve(&again, &[more.clone(), pod("b", "500m")], &node("1"), 1).is_empty());
    assert_eq!(resolve(&again, &[more], &node("1"), 2), ["a Granted"]);

    std::fs::write(dir.path().join(checkpoint::FILE), "torn").unwrap();
    assert!(!AllocationManager::load(dir.path()).has_pending());
}

#[test]
fn differences_name_the_resource() {
    let of = |shares, memory| cri::Resources {
        cpu_shares: Some(shares),
        memory_limit_bytes: Some(memory),
        ..Default::default()
    };
    let (cpu, memory) = (true, true);
    for (wanted, actual, expect) in [
        (of(102, 5), of(102, 5), Difference::default()),
        (of(102, 5), of(102, 4), Difference { cpu: false, memory }),
        (of(102, 5), of(51, 5), Difference { cpu, memory: false }),
    ] {
        assert_eq!(difference(&wanted, &actual), expect);
    }
}

#[test]
fn no_limit_goes_below_what_is_used() {
    let limit = |desired, current, usage| MemoryLimit {
        desired,
        current,
        usage,
    };
    let one = |l| vec![("c".to_owned(), l)];
    let check = |pod, containers: &[(String, MemoryLimit)], expect: Result<(), &str>| {
        let got = check_memory_decrease(pod, containers);
        assert_eq!(got, expect.map_err(str::to_owned));
    };
    check(None, &[], Ok(()));
    check(None, &one(limit(10, Some(5), Some(20))), Ok(()));
    check(None, &one(limit(5, Some(10), Some(4))), Ok(()));
    check(
        None,
        &one(limit(5, Some(10), Some(5))),
        Err(
            "cannot decrease memory limits: attempting to set container \"c\" memory limit (5) below current usage (5)",
        ),
    );
    check(
        None,
        &one(limit(5, None, Some(9))),
        Err(
            "cannot decrease memory limits: attempting to set container \"c\" memory limit (5) below current usage (9)",
        ),
    );
    check(
        Some(limit(5, Some(10), Some(7))),
        &one(limit(5, Some(10), None)),
        Err(
            "cannot decrease memory limits: [attempting to set pod memory limit (5) below current usage (7), missing container \"c\" memory usage]",
        ),
    );
}

#[test]
fn events_name_what_is_asked_for() {
    let mut p = pod_with("a", requirements(&[("cpu", "1")], &[("memory", "1Gi")]));
    p.spec.as_mut().unwrap().init_containers = Some(vec![Container {
        name: "i".into(),
        ..Default::default()
    }]);
    assert_eq!(
        event_message("Pod resize Deferred", &p, Some(3), "no room"),
        "Pod resize Deferred: {\"initContainers\":[{\"name\":\"i\",\"resources\":{}}],\"containers\":[{\"name\":\"c\",\"resources\":{\"limits\":{\"memory\":\"1Gi\"},\"requests\":{\"cpu\":\"1\"}}}],\"generation\":3,\"error\":\"no room\"}"
    );
}

#[test]
fn the_status_shows_the_pod_as_a_whole() {
    use crate::cm::resources::resource_config_for_pod;
    let full: &[(&str, &str)] = &[("cpu", "200m"), ("memory", "64Mi")];
    let check = |p: &Pod, phase: &str, requests: &[(&str, &str)], limits: &[(&str, &str)]| {
        let config = resource_config_for_pod(p, true, std::time::Duration::from_millis(100));
        let (resources, allocated) =
            pod_level_status(p, &config, true, phase, &PodStatus::default());
        let resources = resources.unwrap_or_default();
        assert_eq!(resources.requests, list(requests), "{phase}");
        assert_eq!(resources.limits, list(limits), "{phase}");
        assert_eq!(allocated, list(requests), "{phase}");
    };
    let best_effort = pod_with("a", None);
    check(&best_effort, "Running", &[], &[]);
    let guaranteed = pod_with("a", requirements(full, full));
    check(&guaranteed, "Pending", full, full);
    check(&guaranteed, "Running", full, full);
    // A container without a limit: the pod has none.
    let mut open = pod_with("a", requirements(full, full));
    let other = pod_with("a", requirements(&[], &[]))
        .spec
        .unwrap()
        .containers
        .remove(0);
    open.spec.as_mut().unwrap().containers.push(other);
    check(&open, "Running", full, &[]);
    let mut whole = pod_with("a", None);
    whole.spec.as_mut().unwrap().resources = requirements(full, &[("cpu", "1")]);
    check(&whole, "Running", full, &[("cpu", "1")]);

    // Not in force yet: what was shown before is still so.
    let config = resource_config_for_pod(&whole, true, std::time::Duration::from_millis(100));
    let old = PodStatus {
        resources: requirements(&[("cpu", "100m")], &[]),
        ..Default::default()
    };
    let (resources, allocated) = pod_level_status(&whole, &config, false, "Running", &old);
    assert_eq!(resources, old.resources);
    assert_eq!(allocated, list(full));
}
