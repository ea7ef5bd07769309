use serde_json::{Value, json};

use super::*;
use crate::features::FEATURES;

fn plan(config: Value, gates_off: &[&str]) -> Option<Plan> {
    let mut gates = FeatureGates::new(FEATURES);
    let off = gates_off.iter();
    let off = off.map(|name| ((*name).to_owned(), "false".to_owned()));
    gates.set(&off.collect()).unwrap();
    Plan::of(&serde_json::from_value(config).unwrap(), &gates)
}

fn pod(name: &str, priority: Option<i32>) -> Arc<Pod> {
    let pod = json!({"metadata": {"name": name}, "spec": {"priority": priority, "containers": []}});
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn periods(config: Value, gates_off: &[&str]) -> Vec<(i32, i64)> {
    let plan = plan(config, gates_off);
    let periods = plan.iter().flat_map(|p| p.periods().to_vec());
    periods.map(|p| (p.priority, p.seconds)).collect()
}

#[test]
fn what_the_configuration_asks_for() {
    let both = [
        GRACEFUL_NODE_SHUTDOWN,
        GRACEFUL_NODE_SHUTDOWN_BASED_ON_POD_PRIORITY,
    ];
    let check = |config: Value, gates_off: &[&str], expect: &[(i32, i64)]| {
        assert_eq!(periods(config.clone(), gates_off), expect, "{config}");
    };
    check(json!({}), &[], &[]);
    let seconds = json!({"shutdownGracePeriod": "30s"});
    let critical = SYSTEM_CRITICAL_PRIORITY;
    check(seconds.clone(), &[], &[(0, 30), (critical, 0)]);
    check(seconds.clone(), &both[1..], &[(0, 30), (critical, 0)]);
    check(seconds, &both, &[]);
    let parts = json!({"shutdownGracePeriod": "30.9s", "shutdownGracePeriodCriticalPods": "10.5s"});
    check(parts, &[], &[(0, 20), (critical, 10)]);
    let wrong = json!({"shutdownGracePeriod": "1s", "shutdownGracePeriodCriticalPods": "10s"});
    check(wrong, &[], &[]);
    let listed = json!({"shutdownGracePeriodByPodPriority": [
        {"priority": 1000, "shutdownGracePeriodSeconds": 20},
        {"priority": -5, "shutdownGracePeriodSeconds": 3},
        {"priority": 0, "shutdownGracePeriodSeconds": 0},
    ]});
    check(listed.clone(), &[], &[(-5, 3), (0, 0), (1000, 20)]);
    check(listed.clone(), &both[1..], &[]);
    assert_eq!(plan(listed, &[]).unwrap().requested().as_secs(), 23);
    let forever = [1, 2, 3].map(|n| json!({"priority": n, "shutdownGracePeriodSeconds": i64::MAX}));
    let forever = json!({"shutdownGracePeriodByPodPriority": forever});
    assert_eq!(plan(forever, &[]).unwrap().requested(), Duration::MAX);
}

#[test]
fn times_are_told_where_priorities_count() {
    let config = || json!({"shutdownGracePeriod": "30s"});
    assert!(plan(config(), &[]).unwrap().tells_times);
    let off = [GRACEFUL_NODE_SHUTDOWN_BASED_ON_POD_PRIORITY];
    assert!(!plan(config(), &off).unwrap().tells_times);
}

#[test]
fn a_pod_is_of_the_highest_priority_that_is_not_above_its_own() {
    let listed = |priorities: &[i32]| {
        let list: Vec<Value> = priorities
            .iter()
            .map(|p| json!({"priority": p, "shutdownGracePeriodSeconds": 1}))
            .collect();
        plan(json!({"shutdownGracePeriodByPodPriority": list}), &[]).unwrap()
    };
    let check = |priorities: &[i32], pods: &[Option<i32>], expect: &[&[&str]]| {
        let names: Vec<String> = pods.iter().map(|p| format!("{p:?}")).collect();
        let pods = names.iter().zip(pods).map(|(name, p)| pod(name, *p));
        let groups = listed(priorities).group_by_priority(pods.collect());
        let got: Vec<Vec<&str>> = groups
            .iter()
            .map(|g| {
                let names = g.pods.iter().map(|p| p.metadata.name.as_deref().unwrap());
                names.collect()
            })
            .collect();
        assert_eq!(got, expect, "{priorities:?}");
    };
    check(&[0], &[None, Some(7)], &[&["None", "Some(7)"]]);
    check(
        &[10, 100, 1000],
        &[
            Some(-1),
            None,
            Some(10),
            Some(99),
            Some(100),
            Some(101),
            Some(1000),
            Some(2_000_001_000),
        ],
        &[
            &["Some(-1)", "None", "Some(10)", "Some(99)"],
            &["Some(100)", "Some(101)"],
            &["Some(1000)", "Some(2000001000)"],
        ],
    );
    // The first of two alike.
    check(
        &[5, 5, 9],
        &[Some(5), Some(6)],
        &[&["Some(5)"], &["Some(6)"], &[]],
    );
}

#[test]
fn a_pod_has_no_longer_than_its_spec_says() {
    let period = Period {
        priority: 0,
        seconds: 20,
    };
    for (own, expect) in [(None, 20), (Some(5), 5), (Some(20), 20), (Some(60), 20)] {
        let spec = json!({"terminationGracePeriodSeconds": own, "containers": []});
        let pod: Pod = serde_json::from_value(json!({ "spec": spec })).unwrap();
        assert_eq!(period.grace_period_seconds(&pod), expect, "{own:?}");
    }
}
