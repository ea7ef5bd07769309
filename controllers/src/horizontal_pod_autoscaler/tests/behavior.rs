//! Windows and policies.

use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::{
    HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior,
};

use super::super::behavior::*;

const NOW: Duration = Duration::from_secs(100_000);
const MINUTE: Duration = Duration::from_secs(60);
const WINDOW: Duration = Duration::from_secs(300);

fn bounds(current: i32, min: i32, max: i32) -> Bounds {
    Bounds { min, max, current }
}

#[test]
fn without_behavior() {
    for (current, desired, min, max, expect, reason) in [
        (5, 7, 3, 8, 7, "DesiredWithinRange"),
        (3, 1, 2, 8, 2, "TooFewReplicas"),
        (1, 0, 0, 10, 0, "DesiredWithinRange"),
        (20, 1000, 1, 10, 10, "TooManyReplicas"),
        (3, 1000, 1, 2000, 6, "ScaleUpLimit"),
        (1, 1000, 1, 2000, 4, "ScaleUpLimit"),
    ] {
        let found = History::default().normalize(desired, bounds(current, min, max), WINDOW, NOW);
        assert_eq!((found.replicas, found.limit.0), (expect, reason));
        assert_eq!(found.limited, reason != "DesiredWithinRange");
    }
}

/// Recommendations so many minutes ago.
fn recommended(list: &[(i32, u32)]) -> History {
    let mut history = History::default();
    for (replicas, minutes) in list {
        history.recommend(*replicas, NOW - *minutes * MINUTE);
    }
    history
}

#[test]
fn the_highest_of_the_window() {
    for (list, desired, expect) in [
        (&[][..], 5, 5),
        (&[(4, 2), (5, 1)], 3, 5),
        (&[(1, 2), (2, 1)], 3, 3),
        (&[(10, 10), (9, 9)], 3, 3),
        (&[(10, 10), (4, 1), (5, 2), (9, 9)], 3, 5),
    ] {
        let found = recommended(list).normalize(desired, bounds(10, 1, 100), WINDOW, NOW);
        assert_eq!(found.replicas, expect);
        let reason = if expect == desired {
            "ReadyForNewScale"
        } else {
            "ScaleDownStabilized"
        };
        assert_eq!(found.able.0, reason);
    }
}

fn rules(pods: (i32, i32), percent: (i32, i32), window: i32) -> HPAScalingRules {
    let policy = |type_: &str, (value, period_seconds): (i32, i32)| HPAScalingPolicy {
        type_: type_.to_owned(),
        value,
        period_seconds,
    };
    let mut policies = Vec::new();
    if pods.0 != 0 {
        policies.push(policy("Pods", pods));
    }
    if percent.0 != 0 {
        policies.push(policy("Percent", percent));
    }
    HPAScalingRules {
        policies: Some(policies),
        select_policy: Some("Max".to_owned()),
        stabilization_window_seconds: Some(window),
        tolerance: None,
    }
}

#[test]
fn windows_of_both_directions() {
    for (list, current, desired, up, down, expect, reason) in [
        (&[][..], 100, 5, 0, 0, 5, "ReadyForNewScale"),
        (&[(4, 2), (5, 1)], 100, 3, 0, 180, 5, "ScaleDownStabilized"),
        (&[(4, 2), (5, 1)], 1, 7, 300, 0, 4, "ScaleUpStabilized"),
        (&[(1, 2), (2, 1)], 100, 3, 300, 0, 3, "ReadyForNewScale"),
        (&[(4, 2), (5, 1)], 1, 3, 0, 300, 3, "ReadyForNewScale"),
        (&[(10, 10), (9, 9)], 100, 3, 0, 0, 3, "ReadyForNewScale"),
        (&[(10, 10), (9, 9)], 1, 100, 0, 0, 100, "ReadyForNewScale"),
        (
            &[(10, 10), (4, 1), (5, 2), (9, 9)],
            100,
            3,
            0,
            180,
            5,
            "ScaleDownStabilized",
        ),
        (
            &[(10, 100), (6, 1), (5, 2), (9, 3)],
            1,
            100,
            300,
            0,
            5,
            "ScaleUpStabilized",
        ),
        (
            &[(2, 100), (3, 3)],
            2,
            1,
            300,
            300,
            2,
            "ScaleDownStabilized",
        ),
        (&[(2, 100), (1, 3)], 2, 3, 300, 300, 2, "ScaleUpStabilized"),
    ] {
        let behavior = HorizontalPodAutoscalerBehavior {
            scale_up: Some(rules((0, 0), (10_000, 60), up)),
            scale_down: Some(rules((0, 0), (100, 60), down)),
        };
        let mut history = recommended(list);
        let found =
            history.normalize_with(desired, bounds(current, 0, 1000), &behavior, WINDOW, NOW);
        assert_eq!((found.replicas, found.able.0), (expect, reason), "{list:?}");
    }
}

#[test]
fn a_window_that_is_not_given_is_the_flags() {
    let behavior = HorizontalPodAutoscalerBehavior {
        scale_up: Some(rules((0, 0), (100, 60), 0)),
        scale_down: Some(HPAScalingRules {
            stabilization_window_seconds: None,
            ..rules((0, 0), (100, 60), 0)
        }),
    };
    let found = recommended(&[(5, 4)]).normalize_with(3, bounds(6, 1, 10), &behavior, WINDOW, NOW);
    assert_eq!(found.replicas, 5);
}

/// Changes that lie evenly in the last two minutes.
fn events(changes: &[i32]) -> Vec<(i32, Duration)> {
    let step = 120.0 / (changes.len() as f64 + 1.0);
    let at = |i: usize| NOW - Duration::from_secs_f64(120.0 - step * (i as f64 + 1.0));
    changes
        .iter()
        .enumerate()
        .map(|(i, change)| (*change, at(i)))
        .collect()
}

type Up = ((i32, i32), (i32, i32));

fn check_up(
    ups: &[i32],
    downs: &[i32],
    (min, max): (i32, i32),
    policies: Up,
    current: i32,
    desired: i32,
    expect: (i32, &str),
) {
    let behavior = HorizontalPodAutoscalerBehavior {
        scale_up: Some(rules(policies.0, policies.1, 0)),
        scale_down: Some(rules((0, 0), (100, 15), 0)),
    };
    let mut history = History::with_events(events(ups), events(downs));
    let found = history.normalize_with(desired, bounds(current, min, max), &behavior, WINDOW, NOW);
    assert_eq!((found.replicas, found.limit.0), expect, "{policies:?}");
}

#[test]
fn policies_of_scaling_up() {
    let wide = (1, 1000);
    check_up(
        &[],
        &[],
        (3, 8),
        ((4, 15), (100, 15)),
        5,
        7,
        (7, "DesiredWithinRange"),
    );
    check_up(
        &[],
        &[],
        (1, 10),
        ((4, 15), (100, 15)),
        20,
        1000,
        (10, "TooManyReplicas"),
    );
    check_up(
        &[],
        &[],
        (100, 150),
        ((4, 15), (100, 15)),
        100,
        1000,
        (150, "TooManyReplicas"),
    );
    check_up(
        &[],
        &[],
        (1, 2000),
        ((0, 0), (1, 60)),
        3,
        1000,
        (4, "ScaleUpLimit"),
    );
    check_up(
        &[],
        &[],
        wide,
        ((4, 15), (100, 15)),
        10,
        50,
        (20, "ScaleUpLimit"),
    );
    check_up(
        &[],
        &[],
        wide,
        ((100, 60), (100, 60)),
        10,
        500,
        (110, "ScaleUpLimit"),
    );
    check_up(
        &[],
        &[],
        wide,
        ((2, 60), (100, 60)),
        10,
        500,
        (20, "ScaleUpLimit"),
    );
    check_up(
        &[],
        &[],
        wide,
        ((100, 60), (0, 0)),
        10,
        50,
        (50, "DesiredWithinRange"),
    );
    check_up(
        &[],
        &[],
        wide,
        ((30, 60), (0, 0)),
        10,
        50,
        (40, "ScaleUpLimit"),
    );
    check_up(
        &[],
        &[],
        wide,
        ((0, 0), (200, 60)),
        10,
        50,
        (30, "ScaleUpLimit"),
    );
    let lately = &[1, 5, 9];
    check_up(
        lately,
        &[],
        (1, 200),
        ((300, 60), (0, 0)),
        100,
        500,
        (200, "TooManyReplicas"),
    );
    check_up(
        lately,
        &[],
        (1, 200),
        ((0, 0), (10_000, 60)),
        100,
        500,
        (200, "TooManyReplicas"),
    );
    check_up(
        lately,
        &[],
        wide,
        ((5, 120), (0, 0)),
        100,
        500,
        (100, "ScaleUpLimit"),
    );
    check_up(
        lately,
        &[],
        wide,
        ((150, 120), (0, 0)),
        100,
        500,
        (235, "ScaleUpLimit"),
    );
    check_up(
        lately,
        &[],
        wide,
        ((0, 0), (200, 120)),
        100,
        500,
        (255, "ScaleUpLimit"),
    );
    check_up(
        &[4],
        &[2],
        wide,
        ((0, 0), (300, 300)),
        6,
        24,
        (16, "ScaleUpLimit"),
    );
}

fn check_down(
    ups: &[i32],
    downs: &[i32],
    min: i32,
    policies: Up,
    current: i32,
    desired: i32,
    expect: (i32, &str),
) {
    let behavior = HorizontalPodAutoscalerBehavior {
        scale_up: Some(rules((4, 15), (100, 15), 0)),
        scale_down: Some(rules(policies.0, policies.1, 0)),
    };
    let mut history = History::with_events(events(ups), events(downs));
    let found = history.normalize_with(desired, bounds(current, min, 1000), &behavior, WINDOW, NOW);
    assert_eq!((found.replicas, found.limit.0), expect, "{policies:?}");
}

#[test]
fn policies_of_scaling_down() {
    check_down(
        &[],
        &[],
        2,
        ((0, 0), (100, 15)),
        3,
        1,
        (2, "TooFewReplicas"),
    );
    check_down(
        &[],
        &[],
        0,
        ((0, 0), (100, 15)),
        1,
        0,
        (0, "DesiredWithinRange"),
    );
    check_down(
        &[],
        &[],
        1,
        ((20, 60), (1, 60)),
        100,
        2,
        (80, "ScaleDownLimit"),
    );
    check_down(
        &[],
        &[],
        1,
        ((2, 60), (1, 60)),
        100,
        2,
        (98, "ScaleDownLimit"),
    );
    check_down(
        &[],
        &[],
        1,
        ((100, 60), (0, 0)),
        10,
        0,
        (1, "TooFewReplicas"),
    );
    check_down(
        &[],
        &[],
        5,
        ((0, 0), (100, 60)),
        10,
        2,
        (5, "TooFewReplicas"),
    );
    check_down(&[], &[], 1, ((5, 60), (0, 0)), 10, 2, (5, "ScaleDownLimit"));
    check_down(
        &[],
        &[],
        1,
        ((0, 0), (50, 60)),
        10,
        5,
        (5, "DesiredWithinRange"),
    );
    let lately = &[1, 5, 9];
    check_down(
        &[],
        lately,
        1,
        ((115, 120), (0, 0)),
        100,
        0,
        (1, "TooFewReplicas"),
    );
    check_down(
        &[],
        lately,
        5,
        ((130, 120), (0, 0)),
        100,
        0,
        (5, "TooFewReplicas"),
    );
    check_down(
        &[],
        lately,
        1,
        ((5, 120), (0, 0)),
        100,
        2,
        (100, "ScaleDownLimit"),
    );
    check_down(
        &[],
        &[2, 4, 6],
        1,
        ((0, 0), (50, 120)),
        100,
        0,
        (56, "ScaleDownLimit"),
    );
    check_down(
        &[2],
        &[4],
        1,
        ((0, 0), (50, 180)),
        10,
        1,
        (6, "ScaleDownLimit"),
    );
    check_down(
        &[],
        &[10, 10, 10],
        1,
        ((0, 0), (10, 120)),
        100,
        0,
        (100, "ScaleDownLimit"),
    );
    check_down(
        &[],
        &[10, 10, 10],
        1,
        ((0, 0), (1000, 120)),
        10,
        5,
        (5, "DesiredWithinRange"),
    );
}

#[test]
fn which_policy_counts() {
    for (select, up, down) in [("Max", 20, 5), ("Min", 14, 6), ("Disabled", 10, 10)] {
        let with = |mut rules: HPAScalingRules| {
            rules.select_policy = Some(select.to_owned());
            Some(rules)
        };
        let behavior = HorizontalPodAutoscalerBehavior {
            scale_up: with(rules((4, 60), (100, 60), 0)),
            scale_down: with(rules((4, 60), (50, 60), 0)),
        };
        let bounds = bounds(10, 0, 100);
        let found = History::default().normalize_with(100, bounds, &behavior, WINDOW, NOW);
        assert_eq!(found.replicas, up, "{select}");
        let found = History::default().normalize_with(0, bounds, &behavior, WINDOW, NOW);
        assert_eq!(found.replicas, down, "{select}");
    }
}

#[test]
fn what_was_done_counts_for_the_longest_period() {
    let behavior = HorizontalPodAutoscalerBehavior {
        scale_up: Some(rules((4, 60), (0, 0), 0)),
        scale_down: None,
    };
    let mut history = History::default();
    history.scaled(Some(&behavior), 1, 5, NOW);
    let bounds = bounds(5, 1, 100);
    let mut at = |seconds| {
        let now = NOW + Duration::from_secs(seconds);
        history
            .normalize_with(100, bounds, &behavior, WINDOW, now)
            .replicas
    };
    assert_eq!(at(59), 5);
    assert_eq!(at(60), 9);
}
