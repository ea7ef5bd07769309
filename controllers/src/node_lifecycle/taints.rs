//! Which taints and labels follow from a Node's conditions. Pure.

use std::collections::BTreeMap;

use component_helpers::node::get_node_condition;
use component_helpers::taints::taint_exists;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub(super) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(super) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const NO_SCHEDULE: &str = "NoSchedule";
const NO_EXECUTE: &str = "NoExecute";

/// Condition, status, taint.
const CONDITION_TAINTS: &[(&str, &str, &str)] = &[
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    (
        "MemoryPressure",
        "True",
        "node.kubernetes.io/memory-pressure",
    ),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    (
        "NetworkUnavailable",
        "True",
        "node.kubernetes.io/network-unavailable",
    ),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// A change of a Node's taints: keys to add (with effect) and to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Swap {
    pub(super) add: Vec<(&'static str, &'static str)>,
    pub(super) remove: Vec<(&'static str, &'static str)>,
}

impl Swap {
    pub(super) fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }

    /// The Node's taints after the swap; `None` when nothing changes.
    pub(super) fn apply(&self, node: &Node, now: Timestamp) -> Option<Vec<Taint>> {
        let before = taints(node);
        let mut after: Vec<Taint> = before
            .iter()
            .filter(|t| {
                !self
                    .remove
                    .iter()
                    .any(|(key, effect)| t.key == *key && t.effect == *effect)
            })
            .cloned()
            .collect();
        for (key, effect) in &self.add {
            if !taint_exists(&after, key, effect) {
                let time_added = Some(Time(now));
                after.push(Taint {
                    key: key.to_string(),
                    effect: effect.to_string(),
                    time_added,
                    ..Taint::default()
                });
            }
        }
        (after != before).then_some(after)
    }
}

fn taints(node: &Node) -> &[Taint] {
    node.spec
        .as_ref()
        .and_then(|s| s.taints.as_deref())
        .unwrap_or_default()
}

/// `NoSchedule` taints follow conditions and `spec.unschedulable` at once.
pub(super) fn no_schedule(node: &Node) -> Swap {
    let mut wanted: Vec<&'static str> = CONDITION_TAINTS
        .iter()
        .filter(|(type_, status, _)| {
            get_node_condition(node, type_).is_some_and(|c| c.status == *status)
        })
        .map(|(_, _, key)| *key)
        .collect();
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        wanted.push(UNSCHEDULABLE);
    }
    let ours = CONDITION_TAINTS
        .iter()
        .map(|(_, _, key)| *key)
        .chain([UNSCHEDULABLE]);
    let mut swap = Swap::default();
    for key in ours {
        match (
            wanted.contains(&key),
            taint_exists(taints(node), key, NO_SCHEDULE),
        ) {
            (true, false) => swap.add.push((key, NO_SCHEDULE)),
            (false, true) => swap.remove.push((key, NO_SCHEDULE)),
            _ => {}
        }
    }
    swap
}

/// The `NoExecute` swap for a status of Ready: the two taints exclude each other, and `True` takes both away.
pub(super) fn no_execute(ready: &str) -> Swap {
    let (not_ready, unreachable) = ((NOT_READY, NO_EXECUTE), (UNREACHABLE, NO_EXECUTE));
    match ready {
        "False" => Swap {
            add: vec![not_ready],
            remove: vec![unreachable],
        },
        "Unknown" => Swap {
            add: vec![unreachable],
            remove: vec![not_ready],
        },
        _ => Swap {
            add: Vec::new(),
            remove: vec![not_ready, unreachable],
        },
    }
}

/// Whether the Node has the `NoExecute` taint opposite to a status of Ready: it is swapped at once then, without a rate limit.
pub(super) fn has_opposite(node: &Node, ready: &str) -> bool {
    let opposite = if ready == "False" {
        UNREACHABLE
    } else {
        NOT_READY
    };
    taint_exists(taints(node), opposite, NO_EXECUTE)
}

/// Whether the Node has what [`no_execute`] would add.
pub(super) fn is_tainted(node: &Node, ready: &str) -> bool {
    no_execute(ready)
        .add
        .iter()
        .all(|(key, effect)| taint_exists(taints(node), key, effect))
}

/// The old operating system and architecture labels, where they differ from the stable ones.
pub(super) fn reconcile_labels(node: &Node) -> BTreeMap<&'static str, String> {
    let labels = node.metadata.labels.as_ref();
    let label = |key: &str| labels.and_then(|l| l.get(key));
    let mut changed = BTreeMap::new();
    for (primary, secondary) in [
        ("kubernetes.io/os", "beta.kubernetes.io/os"),
        ("kubernetes.io/arch", "beta.kubernetes.io/arch"),
    ] {
        if let Some(value) = label(primary)
            && label(secondary) != Some(value)
        {
            changed.insert(secondary, value.clone());
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(conditions: &[(&str, &str)], taints: &[(&str, &str)], unschedulable: bool) -> Node {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(t, s)| json!({ "type": t, "status": s }))
            .collect();
        let taints: Vec<_> = taints
            .iter()
            .map(|(k, e)| json!({ "key": k, "effect": e }))
            .collect();
        let value = json!({ "metadata": { "labels": { "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
            "beta.kubernetes.io/arch": "amd64" } },
            "spec": { "taints": taints, "unschedulable": unschedulable }, "status": { "conditions": conditions } });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn no_schedule_follows_conditions() {
        let swap = no_schedule(&node(
            &[("Ready", "Unknown")],
            &[(NOT_READY, NO_SCHEDULE), ("mine", NO_SCHEDULE)],
            true,
        ));
        assert_eq!(
            swap.add,
            [(UNREACHABLE, NO_SCHEDULE), (UNSCHEDULABLE, NO_SCHEDULE)]
        );
        assert_eq!(swap.remove, [(NOT_READY, NO_SCHEDULE)]);
        assert!(
            no_schedule(&node(
                &[("Ready", "True"), ("DiskPressure", "False")],
                &[],
                false
            ))
            .is_empty()
        );
    }

    #[test]
    fn no_execute_taints_exclude_each_other() {
        let down = node(&[], &[(NOT_READY, NO_EXECUTE), ("mine", NO_EXECUTE)], false);
        let after = no_execute("Unknown")
            .apply(&down, Timestamp::UNIX_EPOCH)
            .unwrap();
        let keys: Vec<&str> = after.iter().map(|t| t.key.as_str()).collect();
        assert_eq!(keys, ["mine", UNREACHABLE]);
        assert!(has_opposite(&down, "Unknown") && is_tainted(&down, "False"));
        assert_eq!(
            no_execute("True").apply(
                &node(&[], &[("mine", NO_EXECUTE)], false),
                Timestamp::UNIX_EPOCH
            ),
            None
        );
    }

    #[test]
    fn labels() {
        let changed = reconcile_labels(&node(&[], &[], false));
        assert_eq!(
            changed,
            BTreeMap::from([("beta.kubernetes.io/os", "linux".to_string())])
        );
    }
}
