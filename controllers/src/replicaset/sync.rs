//! The decision: how many pods to create or which to delete, and the status. Pure.

use std::sync::Arc;
use std::time::Duration;

use component_helpers::labels::is_subset;
use component_helpers::pod::{available_at, is_pod_available, is_pod_ready};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};

use super::ranking::pods_to_delete;
use super::reason;

/// At most so many creations or deletions a pass, upstream's `BurstReplicas`.
pub const BURST_REPLICAS: usize = 500;

/// DNS-1123 subdomain.
const MAX_NAME_LENGTH: usize = 253;

/// What the caches hold about one ReplicaSet.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Controlled, selected, and neither ended nor being deleted.
    pub active: Vec<Arc<Pod>>,
    /// Controlled and selected, being deleted, and not ended.
    pub terminating: Vec<Arc<Pod>>,
    /// Pods of all ReplicaSets of the same owner, for ranking.
    pub related: Vec<Arc<Pod>>,
    /// All that was done before has been seen: pods may be created and deleted.
    pub expectations_met: bool,
}

/// What to do about the pods. The status comes after, by [`calculate_status`], as it tells of failures.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// So many, all alike.
    pub create: usize,
    pub delete: Vec<Arc<Pod>>,
}

/// Decides one pass.
pub fn sync(rs: &ReplicaSet, observed: &Observed, now: Timestamp) -> Plan {
    if !observed.expectations_met || rs.metadata.deletion_timestamp.is_some() {
        return Plan::default();
    }
    let (have, want) = (observed.active.len(), desired(rs));
    if have < want {
        return Plan {
            create: (want - have).min(BURST_REPLICAS),
            delete: Vec::new(),
        };
    }
    let excess = (have - want).min(BURST_REPLICAS);
    Plan {
        create: 0,
        delete: pods_to_delete(observed.active.clone(), &observed.related, excess, now),
    }
}

fn desired(rs: &ReplicaSet) -> usize {
    usize::try_from(rs.spec.replicas.unwrap_or(1)).unwrap_or(0)
}

pub fn min_ready_seconds(rs: &ReplicaSet) -> i32 {
    rs.spec.min_ready_seconds.unwrap_or(0)
}

/// A pod of the template, to be created with a generated name.
pub fn pod_from_template(rs: &ReplicaSet, owner: OwnerReference) -> Pod {
    let template = rs.spec.template.clone().unwrap_or_default();
    let of_template = template.metadata.unwrap_or_default();
    let name = rs.metadata.name.as_deref().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            namespace: rs.metadata.namespace.clone(),
            generate_name: Some(pods_prefix(name)),
            labels: of_template.labels,
            annotations: of_template.annotations,
            finalizers: of_template.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// The name and a dash; without the dash where that would be no valid name. The API server cuts it to fit.
fn pods_prefix(name: &str) -> String {
    if name.len() < MAX_NAME_LENGTH {
        format!("{name}-")
    } else {
        name.to_owned()
    }
}

/// What came of the plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The first write that failed, in the API server's words.
    pub error: Option<String>,
}

/// The status by what is observed now; pods just created do not count before they are seen.
pub fn calculate_status(
    rs: &ReplicaSet,
    observed: &Observed,
    outcome: &Outcome,
    now: Timestamp,
) -> ReplicaSetStatus {
    let nonzero = |n: usize| i32::try_from(n).ok().filter(|n| *n != 0);
    let count = |test: &dyn Fn(&Pod) -> bool| observed.active.iter().filter(|p| test(p)).count();
    let labels = rs
        .spec
        .template
        .as_ref()
        .and_then(|s| s.metadata.as_ref()?.labels.clone())
        .unwrap_or_default();
    let min_ready = min_ready_seconds(rs);
    let old = rs.status.clone().unwrap_or_default();
    let conditions = conditions(
        rs,
        old.conditions.unwrap_or_default(),
        observed.active.len(),
        outcome,
        now,
    );
    ReplicaSetStatus {
        replicas: i32::try_from(observed.active.len()).unwrap_or(i32::MAX),
        fully_labeled_replicas: nonzero(count(&|p| is_subset(&labels, &p.metadata.labels))),
        ready_replicas: nonzero(count(&is_pod_ready)),
        available_replicas: nonzero(count(&|p| is_pod_available(p, min_ready, now))),
        terminating_replicas: i32::try_from(observed.terminating.len()).ok(),
        observed_generation: rs.metadata.generation.filter(|g| *g != 0),
        conditions: (!conditions.is_empty()).then_some(conditions),
    }
}

fn conditions(
    rs: &ReplicaSet,
    mut conditions: Vec<ReplicaSetCondition>,
    have: usize,
    outcome: &Outcome,
    now: Timestamp,
) -> Vec<ReplicaSetCondition> {
    let is_failure = |c: &ReplicaSetCondition| c.type_.as_deref() == Some(reason::REPLICA_FAILURE);
    let reported = conditions.iter().any(is_failure);
    match &outcome.error {
        None => conditions.retain(|c| !is_failure(c)),
        Some(error) if !reported => conditions.push(ReplicaSetCondition {
            type_: Some(reason::REPLICA_FAILURE.to_owned()),
            status: Some("True".to_owned()),
            reason: Some(
                if have < desired(rs) {
                    reason::FAILED_CREATE
                } else {
                    reason::FAILED_DELETE
                }
                .to_owned(),
            ),
            message: Some(error.clone()),
            last_transition_time: Some(Time(
                Timestamp::from_second(now.as_second()).unwrap_or(now),
            )),
        }),
        Some(_) => {}
    }
    conditions
}

/// When the next ready pod becomes available; `None`: there is none to wait for.
pub fn next_availability_check(
    rs: &ReplicaSet,
    observed: &Observed,
    now: Timestamp,
) -> Option<Duration> {
    let min_ready = min_ready_seconds(rs);
    if min_ready <= 0 {
        return None;
    }
    let times = observed
        .active
        .iter()
        .filter_map(|p| available_at(p, min_ready))
        .filter(|at| *at > now);
    Duration::try_from(times.min()?.duration_since(now)).ok()
}
