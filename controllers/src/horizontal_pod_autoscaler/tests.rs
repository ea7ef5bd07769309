//! Upstream's tables (replica_calculator_test.go, horizontal_test.go), as far as they hold for one metric or one rule, and the shell.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{from_value, json};

use super::calculator::*;

mod behavior;
mod evaluate;
mod shell;

fn now() -> Timestamp {
    "2026-01-10T12:00:00Z".parse().unwrap()
}

/// A pod of two containers that request this much each. Kinds: `r`eady, `u`nready since ever, `h`ot (just started), `p`ending, `f`ailed,
/// being `d`eleted.
fn pod(index: usize, kind: char, request: i64) -> Arc<Pod> {
    let ready = if matches!(kind, 'r' | 'h') {
        "True"
    } else {
        "False"
    };
    let phase = match kind {
        'p' => "Pending",
        'f' => "Failed",
        _ => "Running",
    };
    let started = if kind == 'h' {
        now()
    } else {
        now() - SignedDuration::from_mins(3)
    };
    // A pod that never was ready has had that condition since it started.
    let changed = started;
    let container = |name: &str| json!({ "name": name, "resources": { "requests": { "cpu": format!("{request}m"), "memory": "1Ki" } } });
    let mut pod: Pod = from_value(json!({
        "metadata": { "namespace": "ns", "name": format!("p{index}"), "labels": { "app": "x" } },
        "spec": { "containers": [container("c1"), container("c2")] },
        "status": {
            "phase": phase,
            "startTime": started.to_string(),
            "conditions": [{ "type": "Ready", "status": ready, "lastTransitionTime": changed.to_string() }],
        },
    }))
    .unwrap();
    if kind == 'd' {
        pod.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    }
    Arc::new(pod)
}

fn pods(kinds: &str) -> Vec<Arc<Pod>> {
    kinds
        .chars()
        .enumerate()
        .map(|(i, kind)| pod(i, kind, 1000))
        .collect()
}

fn metrics(values: &[i64]) -> PodMetrics {
    let of = |value: &i64| PodMetric {
        timestamp: now(),
        window: Duration::from_secs(60),
        value: *value,
    };
    values
        .iter()
        .enumerate()
        .map(|(i, v)| (format!("p{i}"), of(v)))
        .collect()
}

fn target<'a>(pods: &'a [Arc<Pod>], replicas: i32) -> Target<'a> {
    Target {
        pods,
        spec_replicas: replicas,
        status_replicas: replicas,
        tolerances: Tolerances {
            scale_down: 0.1,
            scale_up: 0.1,
        },
        now: now(),
        cpu_initialization_period: Duration::from_secs(120),
        initial_readiness_delay: Duration::from_secs(10),
    }
}

/// Kinds of pods, levels of each container, current replicas, target; replicas, utilization and raw value of a container.
fn check_cpu(kinds: &str, levels: &[i64], current: i32, of: i32, expect: (i32, i32, i64)) {
    let pods = pods(kinds);
    let target = target(&pods, current);
    let both: Vec<i64> = levels.iter().map(|level| 2 * level).collect();
    let wish = resource_replicas(&target, metrics(&both), "cpu", "", of).unwrap();
    assert_eq!(
        (wish.replicas, wish.utilization, wish.usage),
        (expect.0, expect.1, 2 * expect.2),
        "{kinds} {levels:?}"
    );
    let wish = resource_replicas(&target, metrics(levels), "cpu", "c2", of).unwrap();
    assert_eq!(
        (wish.replicas, wish.utilization, wish.usage),
        expect,
        "{kinds} {levels:?}, one container"
    );
}

#[test]
fn utilization_of_a_resource() {
    check_cpu("rrr", &[300, 500, 700], 3, 30, (5, 50, 500));
    check_cpu("urr", &[300, 500, 700], 3, 30, (4, 60, 600));
    check_cpu("hrr", &[300, 500, 700], 3, 30, (4, 60, 600));
    check_cpu("ruu", &[400, 500, 700], 3, 30, (3, 40, 400));
    check_cpu("rhh", &[400, 500, 700], 3, 30, (3, 40, 400));
    check_cpu("rrff", &[500, 700], 2, 30, (4, 60, 600));
    check_cpu("rrdd", &[500, 700], 2, 30, (4, 60, 600));
    check_cpu("rrrrr", &[100, 300, 500, 250, 250], 5, 50, (3, 28, 280));
    check_cpu("rrruu", &[100, 300, 500, 250, 250], 5, 50, (2, 30, 300));
    check_cpu("rpppp", &[100], 5, 50, (1, 10, 100));
    check_cpu("rrrhh", &[100, 300, 500, 250, 250], 5, 50, (2, 30, 300));
    check_cpu("rrrrrff", &[100, 300, 500, 250, 250], 5, 50, (3, 28, 280));
    check_cpu("rrrrrdd", &[100, 300, 500, 250, 250], 5, 50, (3, 28, 280));
    // Within the tolerance.
    check_cpu("rrr", &[1010, 1030, 1020], 3, 100, (3, 102, 1020));
}

#[test]
fn metrics_that_are_missing() {
    check_cpu(
        "rrrr",
        &[4000, 9500, 3000, 7000, 3200, 2000],
        4,
        100,
        (24, 587, 5875),
    );
    check_cpu("rr", &[1000], 2, 100, (2, 100, 1000));
    check_cpu("rr", &[1900], 2, 100, (2, 190, 1900));
    check_cpu("rr", &[600], 2, 100, (2, 60, 600));
    check_cpu("urr", &[100, 450], 3, 50, (3, 45, 450));
    check_cpu("hrr", &[100, 450], 3, 50, (3, 45, 450));
    check_cpu("urr", &[100, 2000], 3, 50, (4, 200, 2000));
    check_cpu("hrr", &[100, 2000], 3, 50, (4, 200, 2000));
    check_cpu("urrr", &[100, 100, 100], 4, 50, (3, 10, 100));
    check_cpu("rrr", &[100, 100], 2, 50, (2, 10, 100));
    let pods = pods("rrrr");
    let wish = resource_replicas(&target(&pods, 4), metrics(&[800, 190]), "cpu", "", 100).unwrap();
    assert_eq!((wish.replicas, wish.utilization, wish.usage), (3, 24, 495));
}

#[test]
fn targets_over_a_hundred_percent() {
    let pods: Vec<_> = [('u', 1000), ('r', 1000), ('r', 2000), ('r', 2000)]
        .into_iter()
        .enumerate()
        .map(|(i, (kind, request))| pod(i, kind, request))
        .collect();
    let wish =
        resource_replicas(&target(&pods, 4), metrics(&[400, 200, 200]), "cpu", "", 300).unwrap();
    assert_eq!((wish.replicas, wish.utilization, wish.usage), (2, 6, 200));
}

#[test]
fn what_cannot_be_computed() {
    let check = |pods: &[Arc<Pod>], metrics, container, expect: &str| {
        let error =
            resource_replicas(&target(pods, 1), metrics, "cpu", container, 100).unwrap_err();
        assert_eq!(error.to_string(), expect);
    };
    check(
        &[],
        metrics(&[1]),
        "",
        "no pods returned by selector while calculating replica count",
    );
    check(
        &pods("p"),
        metrics(&[1]),
        "",
        "did not receive metrics for targeted pods (pods might be unready)",
    );
    let mut other = metrics(&[1]);
    let metric = other.remove("p0").unwrap();
    other.insert("an-older-pod".into(), metric);
    check(
        &pods("r"),
        other,
        "",
        "no metrics returned matched known pods",
    );
    check(
        &pods("r"),
        metrics(&[1]),
        "c3",
        "container c3 not found in Pod p0",
    );
    let mut bare = (*pod(0, 'r', 1)).clone();
    bare.spec.as_mut().unwrap().containers[1].resources = None;
    check(
        &[Arc::new(bare)],
        metrics(&[1]),
        "",
        "missing request for cpu in container c2 of Pod p0",
    );
}

#[test]
fn requests_of_the_whole_pod() {
    let mut whole = (*pod(0, 'r', 1000)).clone();
    let resources = json!({ "requests": { "cpu": "4" } });
    whole.spec.as_mut().unwrap().resources = Some(from_value(resources).unwrap());
    let pods = [Arc::new(whole)];
    let wish = resource_replicas(&target(&pods, 1), metrics(&[2000]), "cpu", "", 25).unwrap();
    assert_eq!((wish.replicas, wish.utilization), (2, 50));
    // One container's request is its own.
    let wish = resource_replicas(&target(&pods, 1), metrics(&[500]), "cpu", "c1", 25).unwrap();
    assert_eq!((wish.replicas, wish.utilization), (2, 50));
}

fn check_pods(kinds: &str, levels: &[i64], current: i32, of: i64, expect: (i32, i64)) {
    let pods = pods(kinds);
    let wish = raw_replicas(&target(&pods, current), metrics(levels), "", of).unwrap();
    assert_eq!((wish.replicas, wish.usage), expect, "{kinds} {levels:?}");
}

#[test]
fn averages_of_custom_metrics() {
    check_pods("rrr", &[20000, 10000, 30000], 3, 15000, (4, 20000));
    // Only of the CPU is it known that pods that start use more.
    check_pods("rru", &[50000, 10000, 30000], 3, 15000, (6, 30000));
    check_pods("uru", &[50000, 15000, 30000], 3, 15000, (7, 31666));
    check_pods("rrrrr", &[12000; 5], 5, 20000, (3, 12000));
    check_pods("rrr", &[20000, 21000, 21000], 3, 20000, (3, 20666));
    check_pods("rrrrr", &[20000, 19000, 21000], 5, 20000, (5, 20000));
    check_pods("rrr", &[10000, 10000], 2, 17000, (2, 10000));
    let pods = pods("rrr");
    let mut narrow = target(&pods, 3);
    narrow.tolerances.scale_up = 0.01;
    let wish = raw_replicas(&narrow, metrics(&[20000, 21000, 21000]), "", 20000).unwrap();
    assert_eq!(wish.replicas, 4);
}

#[test]
fn values_of_objects_and_of_what_is_outside() {
    let check = |kinds: &str, usage, current, of, expect: (i32, i64)| {
        let pods = pods(kinds);
        let wish = value_replicas(&target(&pods, current), usage, of).unwrap();
        assert_eq!((wish.replicas, wish.usage), expect, "{kinds} {usage}");
    };
    check("rrr", 20000, 3, 15000, (4, 20000));
    check("rrr", i64::MAX, 3, 1, (i32::MAX, i64::MAX));
    check("uru", 8600, 3, 4400, (2, 8600));
    check("rrrrr", 8600, 5, 14334, (3, 8600));
    // From zero, pods and tolerance do not count.
    check("", 1000, 0, 900, (2, 1000));
    check("", 0, 0, 900, (0, 0));
    value_replicas(&target(&[], 1), 9000, 1).unwrap_err();
}

#[test]
fn values_for_each_pod() {
    let check = |usage, current, of, expect: (i32, i64)| {
        let wish = per_pod_replicas(&target(&[], current), usage, of);
        assert_eq!((wish.replicas, wish.usage), expect, "{usage}");
    };
    check(20000, 3, 5000, (4, 6667));
    check(6000, 5, 2000, (3, 1200));
    check(20166, 4, 5000, (4, 5042));
    check(i64::MAX, 1, 1, (i32::MAX, i64::MAX));
    check(3000, 0, 1000, (3, i64::MAX));
    assert_eq!(sum(&[i64::MAX, 1]), i64::MAX);
}

#[test]
fn which_pods_start() {
    let at = |seconds: i64| now() - SignedDuration::from_secs(seconds);
    // Started, condition, its last change, measured at; whether its CPU counts.
    for (started, ready, changed, measured, expect) in [
        (Some(60), Some("True"), 60, 0, true),
        // Not measured for a whole window since it was ready.
        (Some(60), Some("True"), 30, 0, false),
        (Some(60), Some("False"), 60, 0, false),
        (Some(180), Some("False"), 180, 0, false),
        // It was ready once.
        (Some(180), Some("False"), 60, 0, true),
        (Some(180), Some("True"), 10, 0, true),
        (None, Some("True"), 60, 0, false),
        (Some(180), None, 0, 0, false),
    ] {
        let conditions = ready.map(|status| {
            json!([{ "type": "Ready", "status": status, "lastTransitionTime": at(changed).to_string() }])
        });
        let pod: Pod = from_value(json!({
            "metadata": { "name": "p0" },
            "status": {
                "phase": "Running",
                "startTime": started.map(|s| at(s).to_string()),
                "conditions": conditions,
            },
        }))
        .unwrap();
        let mut metrics = metrics(&[1]);
        metrics.get_mut("p0").unwrap().timestamp = at(measured);
        let pods = [Arc::new(pod)];
        let counts = raw_replicas(&target(&pods, 1), metrics, "cpu", 1).is_ok();
        assert_eq!(counts, expect, "{started:?} {ready:?} {changed}");
    }
}
