//! Whether a Node is alive: its Ready condition's heartbeat or its lease must move, by this controller's clock. Pure.

use std::time::Duration;

use component_helpers::node::get_node_condition;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

/// Conditions the kubelet keeps, that nobody knows when it is silent. `NetworkUnavailable` is the control plane's.
const KUBELET_CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// What was last seen of a Node.
#[derive(Clone, Debug, PartialEq, Default)]
pub(super) struct NodeHealth {
    /// When it last gave a sign of life.
    pub(super) probe: Timestamp,
    /// Its Ready condition then.
    pub(super) ready: Option<NodeCondition>,
    lease_renewed: Option<MicroTime>,
}

/// What a look at a Node found.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Checked {
    pub(super) health: NodeHealth,
    /// Status of Ready as the Node said it.
    pub(super) observed: String,
    /// Status of Ready after this look; `None` when a new Node never said one.
    pub(super) current: Option<String>,
    /// Conditions to write, when the Node was silent for too long.
    pub(super) update: Option<Vec<NodeCondition>>,
}

/// Grace periods.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grace {
    pub(super) monitor: Duration,
    pub(super) startup: Duration,
}

/// Looks at a Node once.
pub(super) fn check(
    node: &Node,
    lease: Option<&Lease>,
    saved: Option<&NodeHealth>,
    now: Timestamp,
    grace: Grace,
) -> Checked {
    let created = node
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or(now, |t| t.0);
    let ready = get_node_condition(node, "Ready").cloned();
    let grace_period = if ready.is_some() {
        grace.monitor
    } else {
        grace.startup
    };
    let lease_renewed = lease
        .and_then(|l| l.spec.as_ref())
        .and_then(|s| s.renew_time.clone());
    let fresh = |probe| NodeHealth {
        probe,
        ready: ready.clone(),
        lease_renewed: None,
    };
    let mut health = match saved {
        // Never seen, and it never spoke: its time runs from its creation.
        None if ready.is_none() => fresh(created),
        None => fresh(now),
        Some(saved) => match (&saved.ready, &ready) {
            (None, None) => saved.clone(),
            (Some(old), Some(new)) if old.last_heartbeat_time == new.last_heartbeat_time => {
                NodeHealth {
                    ready: ready.clone(),
                    ..saved.clone()
                }
            }
            _ => NodeHealth {
                lease_renewed: saved.lease_renewed.clone(),
                ..fresh(now)
            },
        },
    };
    let renewed = match (&health.lease_renewed, &lease_renewed) {
        (Some(old), Some(new)) => old.0 < new.0,
        (None, Some(_)) => true,
        _ => false,
    };
    if renewed {
        health.lease_renewed = lease_renewed;
        health.probe = now;
    }
    let observed = ready
        .as_ref()
        .map_or_else(|| "Unknown".to_string(), |c| c.status.clone());
    let silent = now.duration_since(health.probe).as_secs_f64();
    if silent <= grace_period.as_secs_f64() {
        return Checked {
            health,
            observed,
            current: ready.map(|c| c.status),
            update: None,
        };
    }
    let update = unknown_conditions(node, created, now);
    let changed_ready = update.iter().find(|c| c.type_ == "Ready").cloned();
    if changed_ready.is_some() {
        health.ready = changed_ready;
    }
    Checked {
        health,
        observed,
        current: Some("Unknown".into()),
        update: Some(update).filter(|u| !u.is_empty()),
    }
}

/// Whether the lease that was just read is newer than the cached one that made a Node look silent.
pub(super) fn has_moved(live: Option<&Lease>, cached: Option<&Lease>) -> bool {
    let version = |lease: &Lease| lease.metadata.resource_version.clone();
    live.is_some_and(|live| version(live) != cached.and_then(version))
}

/// The conditions that change when nobody knows about the Node any more.
fn unknown_conditions(node: &Node, created: Timestamp, now: Timestamp) -> Vec<NodeCondition> {
    let mut changed = Vec::new();
    for type_ in KUBELET_CONDITIONS {
        match get_node_condition(node, type_) {
            None => changed.push(NodeCondition {
                type_: type_.into(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_heartbeat_time: Some(Time(created)),
                last_transition_time: Some(Time(now)),
            }),
            Some(condition) if condition.status != "Unknown" => changed.push(NodeCondition {
                status: "Unknown".into(),
                reason: Some("NodeStatusUnknown".into()),
                message: Some("Kubelet stopped posting node status.".into()),
                last_transition_time: Some(Time(now)),
                ..condition.clone()
            }),
            Some(_) => {}
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const GRACE: Grace = Grace {
        monitor: Duration::from_secs(50),
        startup: Duration::from_secs(60),
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn node(ready: Option<(&str, i64)>) -> Node {
        let conditions = match ready {
            Some((status, beat)) => {
                json!([{ "type": "Ready", "status": status, "lastHeartbeatTime": at(beat).to_string() }])
            }
            None => json!([]),
        };
        let value = json!({ "metadata": { "name": "n", "creationTimestamp": at(0).to_string() },
            "status": { "conditions": conditions } });
        serde_json::from_value(value).unwrap()
    }

    fn lease(renewed: i64) -> Lease {
        let spec = k8s_openapi::api::coordination::v1::LeaseSpec {
            renew_time: Some(MicroTime(at(renewed))),
            ..Default::default()
        };
        Lease {
            spec: Some(spec),
            ..Default::default()
        }
    }

    #[test]
    fn a_cache_that_is_behind_is_no_silence() {
        let at_version = |version: &str| {
            let mut lease = lease(0);
            lease.metadata.resource_version = Some(version.to_owned());
            lease
        };
        let (old, new) = (at_version("1"), at_version("2"));
        assert!(has_moved(Some(&new), Some(&old)));
        assert!(has_moved(Some(&new), None));
        assert!(!has_moved(Some(&old), Some(&old)));
        assert!(!has_moved(None, Some(&old)));
        assert!(!has_moved(None, None));
    }

    #[test]
    fn a_lease_keeps_a_node_alive() {
        let node = node(Some(("True", 0)));
        let mut health = check(&node, Some(&lease(0)), None, at(0), GRACE).health;
        for second in [40, 80, 120] {
            let checked = check(
                &node,
                Some(&lease(second)),
                Some(&health),
                at(second),
                GRACE,
            );
            assert_eq!(
                (checked.current.as_deref(), checked.update),
                (Some("True"), None)
            );
            health = checked.health;
        }
        let checked = check(&node, Some(&lease(120)), Some(&health), at(171), GRACE);
        assert_eq!(
            (checked.observed.as_str(), checked.current.as_deref()),
            ("True", Some("Unknown"))
        );
        let update = checked.update.unwrap();
        assert_eq!(update.len(), 4);
        assert_eq!(update[0].reason.as_deref(), Some("NodeStatusUnknown"));
        assert_eq!(update[1].reason.as_deref(), Some("NodeStatusNeverUpdated"));
    }

    #[test]
    fn after_a_restart_the_grace_period_starts_anew() {
        let checked = check(
            &node(Some(("True", 0))),
            Some(&lease(0)),
            None,
            at(10_000),
            GRACE,
        );
        assert_eq!(checked.current.as_deref(), Some("True"));
    }

    #[test]
    fn a_new_node_has_the_startup_grace() {
        let checked = check(&node(None), None, None, at(59), GRACE);
        assert_eq!((checked.current, checked.update), (None, None));
        let checked = check(&node(None), None, Some(&checked.health), at(61), GRACE);
        assert_eq!(checked.current.as_deref(), Some("Unknown"));
        assert_eq!(checked.update.unwrap().len(), 4);
    }

    #[test]
    fn nothing_is_written_twice() {
        let mut silent = node(Some(("Unknown", 0)));
        let conditions = silent.status.as_mut().unwrap().conditions.as_mut().unwrap();
        for type_ in &KUBELET_CONDITIONS[1..] {
            conditions.push(NodeCondition {
                type_: type_.to_string(),
                status: "Unknown".into(),
                ..Default::default()
            });
        }
        let first = check(&silent, None, None, at(0), GRACE);
        let later = check(&silent, None, Some(&first.health), at(500), GRACE);
        assert_eq!(
            (
                later.observed.as_str(),
                later.current.as_deref(),
                later.update
            ),
            ("Unknown", Some("Unknown"), None)
        );
    }
}
