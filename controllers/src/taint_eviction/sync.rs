//! The decision about one Pod. Pure.

use std::time::Duration;

use component_helpers::taints::{Eviction, eviction};
use k8s_openapi::api::core::v1::{Node, Pod, Taint};

/// An eviction that was decided before; times are of the controller's monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scheduled {
    pub(super) uid: String,
    pub(super) fire_at: Duration,
    /// The Pod is being deleted; it is not deleted twice.
    pub(super) fired: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nothing is scheduled and nothing is to be.
    Idle,
    /// What was scheduled is off.
    Cancel,
    /// Delete now.
    Delete,
    /// Delete at this time.
    Schedule { fire_at: Duration },
    /// What was scheduled stands.
    Keep,
}

/// The `NoExecute` taints of a Node.
pub(super) fn no_execute_taints(node: &Node) -> Vec<Taint> {
    let taints = node
        .spec
        .as_ref()
        .and_then(|s| s.taints.as_deref())
        .unwrap_or_default();
    taints
        .iter()
        .filter(|taint| taint.effect == "NoExecute")
        .cloned()
        .collect()
}

/// What to do about a Pod on a Node with these `NoExecute` taints.
pub(super) fn sync(
    pod: &Pod,
    taints: &[Taint],
    scheduled: Option<&Scheduled>,
    now: Duration,
) -> Decision {
    if scheduled.is_some_and(|s| s.fired) {
        return Decision::Keep;
    }
    let cancel = if scheduled.is_some() {
        Decision::Cancel
    } else {
        Decision::Idle
    };
    if taints.is_empty() {
        return cancel;
    }
    let tolerations = pod
        .spec
        .as_ref()
        .and_then(|s| s.tolerations.as_deref())
        .unwrap_or_default();
    match eviction(taints, tolerations, false) {
        Eviction::Never => cancel,
        Eviction::Now => Decision::Delete,
        Eviction::AfterSeconds(seconds) => match scheduled {
            // The time counts from when the taint was first seen; a later taint does not prolong it.
            Some(scheduled) if now >= scheduled.fire_at => Decision::Delete,
            Some(_) => Decision::Keep,
            None => Decision::Schedule {
                fire_at: now + Duration::from_secs(u64::try_from(seconds).unwrap_or(0)),
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(
        tolerations: serde_json::Value,
        taints: &[&str],
        scheduled: Option<u64>,
        now: u64,
        expect: Decision,
    ) {
        let value =
            json!({ "metadata": {}, "spec": { "containers": [], "tolerations": tolerations } });
        let pod: Pod = serde_json::from_value(value).unwrap();
        let taints: Vec<Taint> = taints
            .iter()
            .map(|key| Taint {
                key: key.to_string(),
                effect: "NoExecute".into(),
                ..Default::default()
            })
            .collect();
        let scheduled = scheduled.map(|s| Scheduled {
            uid: String::new(),
            fire_at: Duration::from_secs(s),
            fired: false,
        });
        assert_eq!(
            sync(&pod, &taints, scheduled.as_ref(), Duration::from_secs(now)),
            expect
        );
    }

    #[test]
    fn decisions() {
        let forever = json!([{ "operator": "Exists" }]);
        let minute = json!([{ "key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60 }]);
        let at = |s| Decision::Schedule {
            fire_at: Duration::from_secs(s),
        };
        check(json!([]), &[], None, 0, Decision::Idle);
        check(json!([]), &["a"], None, 0, Decision::Delete);
        check(forever.clone(), &["a"], None, 0, Decision::Idle);
        check(forever, &["a"], Some(60), 0, Decision::Cancel);
        check(minute.clone(), &["a"], None, 5, at(65));
        check(minute.clone(), &["a"], Some(65), 30, Decision::Keep);
        check(minute.clone(), &["a"], Some(65), 65, Decision::Delete);
        check(minute.clone(), &[], Some(65), 30, Decision::Cancel);
        check(minute, &["a", "b"], Some(65), 30, Decision::Delete);
    }
}
