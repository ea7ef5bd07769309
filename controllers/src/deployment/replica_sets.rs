//! The ReplicaSets of a Deployment: numbers, order, and which of them is the new one.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use component_helpers::intstr::scaled_value;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The label that tells the pods of one ReplicaSet from those of another.
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// `spec.replicas` as the API server defaults it.
pub fn replicas(rs: &ReplicaSet) -> i32 {
    rs.spec.replicas.unwrap_or(1)
}

pub fn desired_replicas(deployment: &Deployment) -> i32 {
    deployment.spec.replicas.unwrap_or(1)
}

pub fn actual(rs: &ReplicaSet) -> i32 {
    rs.status.as_ref().map_or(0, |s| s.replicas)
}

pub fn available(rs: &ReplicaSet) -> i32 {
    rs.status
        .as_ref()
        .and_then(|s| s.available_replicas)
        .unwrap_or(0)
}

pub fn ready(rs: &ReplicaSet) -> i32 {
    rs.status
        .as_ref()
        .and_then(|s| s.ready_replicas)
        .unwrap_or(0)
}

/// The sum over all; `None` as long as one that a controller has seen does not tell.
pub fn terminating<'a>(sets: impl IntoIterator<Item = &'a ReplicaSet>) -> Option<i32> {
    let mut total = 0;
    for rs in sets {
        let status = rs.status.as_ref();
        match (
            status.and_then(|s| s.terminating_replicas),
            status.and_then(|s| s.observed_generation).unwrap_or(0),
        ) {
            (Some(count), _) => total += count,
            (None, 0) => {}
            (None, _) => return None,
        }
    }
    Some(total)
}

pub fn is_rolling_update(deployment: &Deployment) -> bool {
    strategy_type(deployment) == "RollingUpdate"
}

pub fn strategy_type(deployment: &Deployment) -> &str {
    deployment
        .spec
        .strategy
        .as_ref()
        .and_then(|s| s.type_.as_deref())
        .unwrap_or("RollingUpdate")
}

/// How many pods may be above the desired number.
pub fn max_surge(deployment: &Deployment) -> i32 {
    if is_rolling_update(deployment) {
        resolve_fenceposts(deployment).0
    } else {
        0
    }
}

/// How many of the desired pods may be unavailable.
pub fn max_unavailable(deployment: &Deployment) -> i32 {
    let desired = desired_replicas(deployment);
    if !is_rolling_update(deployment) || desired == 0 {
        return 0;
    }
    resolve_fenceposts(deployment).1.min(desired)
}

/// Surge rounds up and unavailability down; if both come to nothing, one pod may be unavailable, or no rollout could
/// ever move. Not a number nor a percentage (validation lets none through) counts as 0.
fn resolve_fenceposts(deployment: &Deployment) -> (i32, i32) {
    let rolling = deployment
        .spec
        .strategy
        .as_ref()
        .and_then(|s| s.rolling_update.as_ref());
    let desired = desired_replicas(deployment);
    let resolve = |value: Option<&IntOrString>, round_up| {
        value.map_or(0, |v| scaled_value(v, desired, round_up).unwrap_or(0))
    };
    // Without `rollingUpdate` at all the API server's defaults apply: 25 % each.
    let quarter = IntOrString::String("25%".to_owned());
    let (surge, unavailable) = match rolling {
        Some(rolling) => (
            resolve(rolling.max_surge.as_ref(), true),
            resolve(rolling.max_unavailable.as_ref(), false),
        ),
        None => (
            resolve(Some(&quarter), true),
            resolve(Some(&quarter), false),
        ),
    };
    if surge == 0 && unavailable == 0 {
        (0, 1)
    } else {
        (surge, unavailable)
    }
}

/// Equal but for the hash label: hashes change with versions and between implementations.
pub fn equal_ignore_hash(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let labels = |t: &PodTemplateSpec| -> BTreeMap<String, String> {
        let mut labels = t
            .metadata
            .as_ref()
            .and_then(|m| m.labels.clone())
            .unwrap_or_default();
        labels.remove(POD_TEMPLATE_HASH);
        labels
    };
    let rest = |t: &PodTemplateSpec| {
        let mut meta = t.metadata.clone().unwrap_or_default();
        meta.labels = None;
        meta.annotations = meta.annotations.filter(|a| !a.is_empty());
        meta
    };
    a.spec == b.spec && labels(a) == labels(b) && rest(a) == rest(b)
}

pub fn template(rs: &ReplicaSet) -> Option<&PodTemplateSpec> {
    rs.spec.template.as_ref()
}

/// Older first; of the same age by name.
pub fn by_creation(a: &ReplicaSet, b: &ReplicaSet) -> Ordering {
    let key = |rs: &ReplicaSet| {
        (
            rs.metadata.creation_timestamp.as_ref().map(|t| t.0),
            rs.metadata.name.clone(),
        )
    };
    key(a).cmp(&key(b))
}

pub fn by_size_older(a: &ReplicaSet, b: &ReplicaSet) -> Ordering {
    replicas(b)
        .cmp(&replicas(a))
        .then_with(|| by_creation(a, b))
}

pub fn by_size_newer(a: &ReplicaSet, b: &ReplicaSet) -> Ordering {
    replicas(b)
        .cmp(&replicas(a))
        .then_with(|| by_creation(b, a))
}

/// `None` or `i32::MAX`: no deadline.
pub fn progress_deadline_seconds(deployment: &Deployment) -> Option<i32> {
    deployment
        .spec
        .progress_deadline_seconds
        .filter(|s| *s != i32::MAX)
}

/// `None` or `i32::MAX`: keep all.
pub fn revision_history_limit(deployment: &Deployment) -> Option<i32> {
    deployment
        .spec
        .revision_history_limit
        .filter(|l| *l != i32::MAX)
}
