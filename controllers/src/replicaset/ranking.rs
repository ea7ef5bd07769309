//! Which pods go first when there are too many: those that do least good.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use component_helpers::pod::{
    annotation, condition, get_condition, is_active, is_pod_ready, node_name, phase, uid,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

/// A number; pods with a lower one are deleted first. Not set: 0.
pub const POD_DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The first `count` of `pods` to delete. `related`: all pods of the same application; of those that share a node with
/// many, some go first.
pub fn pods_to_delete(
    mut pods: Vec<Arc<Pod>>,
    related: &[Arc<Pod>],
    count: usize,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    if count < pods.len() {
        let mut on_node: HashMap<&str, usize> = HashMap::new();
        for pod in related.iter().filter(|p| is_active(p)) {
            *on_node
                .entry(node_name(pod).unwrap_or_default())
                .or_default() += 1;
        }
        let rank = |pod: &Pod| {
            on_node
                .get(node_name(pod).unwrap_or_default())
                .copied()
                .unwrap_or(0)
        };
        pods.sort_by(|a, b| compare(a, rank(a), b, rank(b), now));
    }
    pods.truncate(count);
    pods
}

/// `Less`: `a` goes before `b`. Rule by rule as upstream's `ActivePodsWithRanks`.
// DIFFERS: among pods that have been ready equally long (to a power of two) upstream lets the UID decide unless the times
// are exactly equal, which is no order at all (a before b before c before a). Ours asks all other rules first.
fn compare(a: &Pod, rank_a: usize, b: &Pod, rank_b: usize, now: Timestamp) -> Ordering {
    let unassigned_first = node_name(a).is_some().cmp(&node_name(b).is_some());
    let ready_age = |pod: &Pod| is_pod_ready(pod).then(|| age(ready_time(pod), now));
    unassigned_first
        .then_with(|| phase_ordinal(a).cmp(&phase_ordinal(b)))
        .then_with(|| is_pod_ready(a).cmp(&is_pod_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| rank_b.cmp(&rank_a))
        .then_with(|| ready_age(a).cmp(&ready_age(b)))
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| age(created(a), now).cmp(&age(created(b), now)))
        .then_with(|| uid(a).cmp(uid(b)))
}

fn phase_ordinal(pod: &Pod) -> u8 {
    match phase(pod) {
        "Unknown" => 1,
        "Running" => 2,
        _ => 0,
    }
}

/// A text that is no number, or one that the API would refuse (a leading `+` or `0`), counts as 0.
fn deletion_cost(pod: &Pod) -> i32 {
    let text = annotation(pod, POD_DELETION_COST).unwrap_or("0");
    let digits = text.strip_prefix('-').unwrap_or(text);
    if text.starts_with('+') || (digits.starts_with('0') && text != "0") {
        return 0;
    }
    text.parse().unwrap_or(0)
}

fn ready_time(pod: &Pod) -> Option<Timestamp> {
    get_condition(pod, condition::READY)
        .and_then(|c| c.last_transition_time.as_ref())
        .map(|t| t.0)
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|t| t.0)
}

/// Younger is less, but ages of the same power of two (in nanoseconds) count as the same, so that it is not always the
/// newest that goes. Unknown is youngest, then what lies in the future.
fn age(time: Option<Timestamp>, now: Timestamp) -> Option<i64> {
    let age = now.as_nanosecond() - time?.as_nanosecond();
    Some(if age < 0 {
        i64::MIN
    } else {
        i64::from(age.checked_ilog2().unwrap_or(0))
    })
}

/// The most restarts of a regular container, then of a sidecar.
fn restarts(pod: &Pod) -> (i32, i32) {
    let Some(status) = &pod.status else {
        return (0, 0);
    };
    let regular = status
        .container_statuses
        .iter()
        .flatten()
        .map(|s| s.restart_count)
        .max()
        .unwrap_or(0);
    let init = pod
        .spec
        .iter()
        .flat_map(|s| s.init_containers.iter().flatten());
    let sidecars: Vec<&str> = init
        .filter(|c| c.restart_policy.as_deref() == Some("Always"))
        .map(|c| c.name.as_str())
        .collect();
    let of_sidecars = status
        .init_container_statuses
        .iter()
        .flatten()
        .filter(|s| sidecars.contains(&s.name.as_str()));
    (
        regular,
        of_sidecars.map(|s| s.restart_count).max().unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn pod(name: &str, value: Value) -> Arc<Pod> {
        let mut value = value;
        value["metadata"]["name"] = json!(name);
        value["metadata"]["uid"] = json!(name);
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn at(age: i64) -> String {
        Timestamp::from_second(NOW - age).unwrap().to_string()
    }

    /// Running and ready on `node` since `age` seconds.
    fn ready(name: &str, node: &str, age: i64, more: Value) -> Arc<Pod> {
        let mut value = json!({
            "metadata": {"creationTimestamp": at(age + 1)},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at(age)}]},
        });
        for (key, fields) in more.as_object().unwrap() {
            value[key]
                .as_object_mut()
                .unwrap()
                .extend(fields.as_object().unwrap().clone());
        }
        pod(name, value)
    }

    fn check(pods: Vec<Arc<Pod>>, related: &[Arc<Pod>], expect: &[&str]) {
        let mut reversed = pods.clone();
        reversed.reverse();
        let count = pods.len();
        for mut pods in [pods, reversed] {
            // All of them in order: one more that always survives makes the sort happen.
            pods.push(ready(
                "survivor",
                "far",
                1 << 40 >> 20,
                json!({"metadata": {"annotations": {POD_DELETION_COST: "2147483647"}}}),
            ));
            let order = pods_to_delete(pods, related, count, Timestamp::from_second(NOW).unwrap());
            let names: Vec<_> = order
                .iter()
                .map(|p| p.metadata.name.clone().unwrap())
                .collect();
            assert_eq!(names, expect);
        }
    }

    #[test]
    fn rules_in_their_order() {
        let unassigned = pod("unassigned", json!({"status": {"phase": "Pending"}}));
        let pending = pod(
            "pending",
            json!({"spec": {"nodeName": "n", "containers": []}, "status": {"phase": "Pending"}}),
        );
        let unknown = pod(
            "unknown",
            json!({"spec": {"nodeName": "n", "containers": []}, "status": {"phase": "Unknown"}}),
        );
        let unready = pod(
            "unready",
            json!({"spec": {"nodeName": "n", "containers": []}, "status": {"phase": "Running"}}),
        );
        let cheap = ready(
            "cheap",
            "n",
            4000,
            json!({"metadata": {"annotations": {POD_DELETION_COST: "-5"}}}),
        );
        let usual = ready("usual", "n", 4000, json!({}));
        let dear = ready(
            "dear",
            "n",
            1,
            json!({"metadata": {"annotations": {POD_DELETION_COST: "7"}}}),
        );
        check(
            vec![dear, usual, cheap, unready, unknown, pending, unassigned],
            &[],
            &[
                "unassigned",
                "pending",
                "unknown",
                "unready",
                "cheap",
                "usual",
                "dear",
            ],
        );
    }

    #[test]
    fn crowded_nodes_younger_pods_and_restarts() {
        let crowd: Vec<_> = (0..3)
            .map(|i| ready(&format!("r{i}"), "crowded", 10, json!({})))
            .collect();
        check(
            vec![
                ready("b", "calm", 10, json!({})),
                ready("a", "crowded", 5000, json!({})),
            ],
            &crowd,
            &["a", "b"],
        );
        check(
            vec![
                ready("old", "n", 5000, json!({})),
                ready("young", "n", 10, json!({})),
            ],
            &[],
            &["young", "old"],
        );
        // Nearly the same age: the UID decides, whichever is older.
        check(
            vec![
                ready("y", "n", 1100, json!({})),
                ready("x", "n", 1900, json!({})),
            ],
            &[],
            &["x", "y"],
        );
        let failing = json!({"status": {"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 4}]}});
        check(
            vec![
                ready("fine", "n", 10, json!({})),
                ready("restarting", "n", 10, failing),
            ],
            &[],
            &["restarting", "fine"],
        );
    }

    #[test]
    fn costs_that_are_no_numbers_count_as_zero() {
        for (text, cost) in [
            ("5", 5),
            ("-5", -5),
            ("0", 0),
            ("+5", 0),
            ("05", 0),
            ("x", 0),
            ("99999999999", 0),
            ("-0", 0),
        ] {
            let pod = pod(
                "p",
                json!({"metadata": {"annotations": {POD_DELETION_COST: text}}}),
            );
            assert_eq!(deletion_cost(&pod), cost, "{text}");
        }
    }

    #[test]
    fn the_order_is_one() {
        // Sorting panics on an order that contradicts itself; many alike pods in many ages find one out.
        let now = Timestamp::from_second(NOW).unwrap();
        for step in [1, 3, 7] {
            let pods: Vec<_> = (0..300)
                .map(|i| {
                    let restarts = json!({"status": {"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": i % 3}]}});
                    ready(&format!("p{}", i * 7919 % 300), "n", i % (5 * step) * step, restarts)
                })
                .collect();
            let sorted = pods_to_delete(pods, &[], 299, now);
            for pair in sorted.windows(2) {
                assert_eq!(compare(&pair[0], 0, &pair[1], 0, now), Ordering::Less);
            }
        }
    }
}
