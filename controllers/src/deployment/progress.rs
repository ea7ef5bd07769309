//! Status and conditions: how far a rollout is, and whether it is stuck.

use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};

use super::pass::{Pass, new_condition, set_deployment_condition};
use super::reason;
use super::replica_sets::*;

/// Zero is absent, as the API server stores it.
fn count(n: i32) -> Option<i32> {
    (n != 0).then_some(n)
}

/// The status as the ReplicaSets have it, with the conditions of the draft.
fn calculate_status(pass: &Pass<'_>) -> DeploymentStatus {
    let current = pass.deployment.status.clone().unwrap_or_default();
    let available = pass.available_count();
    let mut conditions = current.conditions.unwrap_or_default();
    let has_minimum = available >= desired_replicas(pass.observed) - max_unavailable(pass.observed);
    let condition = if has_minimum {
        (
            "True",
            reason::MINIMUM_REPLICAS_AVAILABLE,
            "Deployment has minimum availability.",
        )
    } else {
        (
            "False",
            reason::MINIMUM_REPLICAS_UNAVAILABLE,
            "Deployment does not have minimum availability.",
        )
    };
    let (status, why, message) = condition;
    set_deployment_condition(
        &mut conditions,
        new_condition(
            reason::AVAILABLE,
            status,
            why,
            message.to_owned(),
            &pass.now,
        ),
    );
    DeploymentStatus {
        observed_generation: pass.observed.metadata.generation.filter(|g| *g != 0),
        replicas: count(pass.all().map(actual).sum()),
        updated_replicas: count(pass.new_rs().map_or(0, actual)),
        ready_replicas: count(pass.all().map(ready).sum()),
        available_replicas: count(available),
        unavailable_replicas: count((pass.replica_count() - available).max(0)),
        terminating_replicas: terminating(pass.all()),
        collision_count: current.collision_count,
        conditions: Some(conditions),
    }
}

pub(super) fn sync_deployment_status(pass: &mut Pass<'_>) {
    pass.deployment.status = Some(calculate_status(pass));
}

/// Pausing stops the clock of the progress deadline and resuming starts it anew.
pub(super) fn check_paused_conditions(pass: &mut Pass<'_>) {
    if progress_deadline_seconds(pass.observed).is_none() {
        return;
    }
    let why = pass
        .condition(reason::PROGRESSING)
        .and_then(|c| c.reason.clone());
    if why.as_deref() == Some(reason::TIMED_OUT) {
        return;
    }
    let paused = pass.observed.spec.paused.unwrap_or(false);
    let reported = why.as_deref() == Some(reason::PAUSED);
    if paused && !reported {
        pass.set_condition(
            reason::PROGRESSING,
            "Unknown",
            reason::PAUSED,
            "Deployment is paused".to_owned(),
        );
    } else if !paused && reported {
        pass.set_condition(
            reason::PROGRESSING,
            "Unknown",
            reason::RESUMED,
            "Deployment is resumed".to_owned(),
        );
    }
}

/// All desired replicas are new and available, and no old ones are left.
fn deployment_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let desired = desired_replicas(deployment);
    let is = |n: Option<i32>| n.unwrap_or(0) == desired;
    is(status.updated_replicas)
        && is(status.replicas)
        && is(status.available_replicas)
        && status.observed_generation.unwrap_or(0) >= deployment.metadata.generation.unwrap_or(0)
}

/// By the status that is written already: history is only cut once everyone can see that the rollout is over.
pub(super) fn is_complete_now(pass: &Pass<'_>) -> bool {
    pass.observed
        .status
        .as_ref()
        .is_some_and(|status| deployment_complete(pass.observed, status))
}

/// New pods came, became ready or available, or old ones went.
fn deployment_progressing(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = |n: Option<i32>| n.unwrap_or(0);
    let outdated = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || outdated(new) < outdated(old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

fn find<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status
        .conditions
        .as_ref()?
        .iter()
        .find(|c| c.type_.as_deref() == Some(type_))
}

fn has_reason(condition: Option<&DeploymentCondition>, reason: &str) -> bool {
    condition.and_then(|c| c.reason.as_deref()) == Some(reason)
}

/// When the last progress that was recorded is too old.
fn deadline(condition: &DeploymentCondition, seconds: i32) -> Option<jiff::Timestamp> {
    let from = condition.last_update_time.as_ref()?.0;
    from.saturating_add(SignedDuration::from_secs(seconds.into()))
        .ok()
}

fn deployment_timed_out(pass: &Pass<'_>, status: &DeploymentStatus, seconds: i32) -> bool {
    let Some(condition) = find(status, reason::PROGRESSING) else {
        return false;
    };
    match condition.reason.as_deref() {
        // A finished rollout has no deadline; the next one starts a new condition.
        Some(reason::NEW_RS_AVAILABLE) => false,
        Some(reason::TIMED_OUT) => true,
        _ => deadline(condition, seconds).is_some_and(|d| d < pass.now.0),
    }
}

/// The status during a rollout, with progress estimated against the deadline.
pub(super) fn sync_rollout_status(pass: &mut Pass<'_>) {
    let mut status = calculate_status(pass);
    let seconds = progress_deadline_seconds(pass.observed);
    let conditions = status.conditions.get_or_insert_default();
    if seconds.is_none() {
        conditions.retain(|c| c.type_.as_deref() != Some(reason::PROGRESSING));
    }
    let current = pass.condition(reason::PROGRESSING).cloned();
    let is_complete = status.replicas == status.updated_replicas
        && has_reason(current.as_ref(), reason::NEW_RS_AVAILABLE);
    if let Some(seconds) = seconds
        && !is_complete
    {
        estimate_progress(pass, &mut status, current.as_ref(), seconds);
    }
    let failure = replica_failure(pass);
    let conditions = status.conditions.get_or_insert_default();
    match failure {
        Some(failure) => set_deployment_condition(conditions, failure),
        None => conditions.retain(|c| c.type_.as_deref() != Some(reason::REPLICA_FAILURE)),
    }
    let changed = pass.observed.status.as_ref() != Some(&status);
    pass.deployment.status = Some(status);
    if !changed && let Some(seconds) = seconds {
        pass.requeue_after = requeue_stuck_deployment(pass, seconds);
    }
}

fn estimate_progress(
    pass: &Pass<'_>,
    status: &mut DeploymentStatus,
    current: Option<&DeploymentCondition>,
    seconds: i32,
) {
    let subject = match pass.new_rs() {
        Some(rs) => format!(
            "ReplicaSet {:?}",
            rs.metadata.name.as_deref().unwrap_or_default()
        ),
        None => format!(
            "Deployment {:?}",
            pass.observed.metadata.name.as_deref().unwrap_or_default()
        ),
    };
    let old = pass.observed.status.clone().unwrap_or_default();
    let condition = |status: &str, why: &str, what: &str| {
        new_condition(
            reason::PROGRESSING,
            status,
            why,
            format!("{subject} {what}"),
            &pass.now,
        )
    };
    if deployment_complete(pass.observed, status) {
        let condition = condition(
            "True",
            reason::NEW_RS_AVAILABLE,
            "has successfully progressed.",
        );
        set_deployment_condition(status.conditions.get_or_insert_default(), condition);
    } else if deployment_progressing(&old, status) {
        let mut condition = condition("True", reason::REPLICA_SET_UPDATED, "is progressing.");
        if let Some(current) = current.filter(|c| c.status.as_deref() == Some("True")) {
            condition.last_transition_time = current.last_transition_time.clone();
        }
        // Also with the same reason: the time of the last progress is what the deadline counts from.
        let conditions = status.conditions.get_or_insert_default();
        conditions.retain(|c| c.type_.as_deref() != Some(reason::PROGRESSING));
        conditions.push(condition);
    } else if deployment_timed_out(pass, status, seconds) {
        let condition = condition("False", reason::TIMED_OUT, "has timed out progressing.");
        set_deployment_condition(status.conditions.get_or_insert_default(), condition);
    }
}

/// A ReplicaSet that cannot make its pods, the new one first.
fn replica_failure(pass: &Pass<'_>) -> Option<DeploymentCondition> {
    let of = |rs: &ReplicaSet| {
        let failure = rs
            .status
            .as_ref()?
            .conditions
            .as_ref()?
            .iter()
            .find(|c| c.type_.as_deref() == Some(reason::REPLICA_FAILURE))?
            .clone();
        Some(DeploymentCondition {
            type_: failure.type_,
            status: failure.status,
            reason: failure.reason,
            message: failure.message,
            last_update_time: failure.last_transition_time.clone(),
            last_transition_time: failure.last_transition_time,
        })
    };
    pass.new_rs()
        .and_then(of)
        .or_else(|| pass.all().find_map(of))
}

/// When to look whether the deadline has passed; `None`: nothing to wait for.
fn requeue_stuck_deployment(pass: &Pass<'_>, seconds: i32) -> Option<Duration> {
    let status = pass.observed.status.as_ref()?;
    let condition = find(status, reason::PROGRESSING)?;
    if deployment_complete(pass.observed, status) || has_reason(Some(condition), reason::TIMED_OUT)
    {
        return None;
    }
    let left = deadline(condition, seconds)?.duration_since(pass.now.0);
    // One more second: times in the API have no fractions.
    Some(Duration::try_from(left).unwrap_or(Duration::ZERO) + Duration::from_secs(1))
}
