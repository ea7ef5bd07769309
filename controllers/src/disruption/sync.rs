//! The decision: a PodDisruptionBudget's status, and which pods wear a stale `DisruptionTarget`. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use component_base::events::EventType;
use component_helpers::intstr::{InvalidPercentage, scaled_value};
use component_helpers::{conditions, pod as pod_helpers};
use controller_runtime::{Action, Plan};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{
    PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;

/// How long a pod may stand in `disruptedPods` without being deleted. Upstream: `DeletionTimeout`.
pub const DELETION_TIMEOUT: SignedDuration = SignedDuration::from_mins(2);
/// How long a pod may wear `DisruptionTarget` without being deleted. Upstream: `stalePodDisruptionTimeout`.
pub const STALE_POD_DISRUPTION_TIMEOUT: SignedDuration = SignedDuration::from_mins(2);

/// The condition of a budget.
pub const DISRUPTION_ALLOWED_CONDITION: &str = "DisruptionAllowed";
const SUFFICIENT_PODS: &str = "SufficientPods";
const INSUFFICIENT_PODS: &str = "InsufficientPods";
const SYNC_FAILED: &str = "SyncFailed";
/// The reason of a kubelet's own `DisruptionTarget`: it may take any time until such a pod is deleted.
const TERMINATION_BY_KUBELET: &str = "TerminationByKubelet";

/// Whether the budget counts against what the pods' controllers want, instead of the pods there are.
pub fn needs_scale(spec: &PodDisruptionBudgetSpec) -> bool {
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
}

/// How many pods there should be and how many of them healthy. `scale` is what the controllers want together, read only if
/// [`needs_scale`].
///
/// # Errors
/// A text that is no percentage.
pub fn expected_pod_count(
    spec: &PodDisruptionBudgetSpec,
    pods: usize,
    scale: i32,
) -> Result<(i32, i32), InvalidPercentage> {
    if let Some(max) = &spec.max_unavailable {
        let desired = scale.saturating_sub(scaled_value(max, scale, true)?);
        return Ok((scale, desired.max(0)));
    }
    match &spec.min_available {
        Some(IntOrString::Int(min)) => Ok((i32::try_from(pods).unwrap_or(i32::MAX), *min)),
        Some(min) => Ok((scale, scaled_value(min, scale, true)?)),
        None => Ok((0, 0)),
    }
}

/// What is to be written about a budget whose selector selects `pods`, and when to look again.
///
/// # Errors
/// A text that is no percentage.
pub fn sync(
    pdb: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    scale: i32,
    now: Timestamp,
) -> Result<Plan, InvalidPercentage> {
    let (expected, desired) = match &pdb.spec {
        Some(spec) => expected_pod_count(spec, pods.len(), scale)?,
        None => (0, 0),
    };
    let mut plan = Plan::none();
    let disrupted = build_disrupted_pod_map(pdb, pods, now, &mut plan);
    let healthy = count_healthy_pods(pods, &disrupted);
    // Nothing expected means nothing allowed: a budget without pods is closed when its first pods appear.
    let allowed = if expected > 0 {
        healthy.saturating_sub(desired).max(0)
    } else {
        0
    };

    let old = pdb.status.clone().unwrap_or_default();
    let mut status = PodDisruptionBudgetStatus {
        current_healthy: Some(healthy),
        desired_healthy: Some(desired),
        expected_pods: Some(expected),
        disruptions_allowed: Some(allowed),
        disrupted_pods: Some(disrupted).filter(|pods| !pods.is_empty()),
        observed_generation: pdb.metadata.generation,
        conditions: old.conditions.clone(),
    };
    let (word, reason) = if allowed > 0 {
        ("True", SUFFICIENT_PODS)
    } else {
        ("False", INSUFFICIENT_PODS)
    };
    let settled = same_counts(&old, &status)
        && conditions::find(
            old.conditions.iter().flatten(),
            DISRUPTION_ALLOWED_CONDITION,
        )
        .is_some_and(|c| c.status == word && c.reason == reason);
    if !settled {
        set_condition(&mut status, word, reason, String::new(), now);
        plan.push(update(pdb, status));
    }
    Ok(plan)
}

/// Closes a budget that could not be counted, so that no eviction passes which may not be safe. `None`: it is closed already.
pub fn fail_safe(pdb: &PodDisruptionBudget, error: String, now: Timestamp) -> Option<Action> {
    let old = pdb.status.clone().unwrap_or_default();
    let mut status = old.clone();
    status.disruptions_allowed = Some(0);
    set_condition(&mut status, "False", SYNC_FAILED, error, now);
    (status != old).then(|| update(pdb, status))
}

/// What is left until the pod's `DisruptionTarget` is stale; zero: it is. `None`: it wears none that could become stale.
pub fn stale_disruption_after(pod: &Pod, now: Timestamp) -> Option<Duration> {
    if pod_helpers::is_terminating(pod) || pod_helpers::is_terminal(pod) {
        return None;
    }
    let condition = pod_helpers::get_condition(pod, pod_helpers::condition::DISRUPTION_TARGET)
        .filter(|c| c.status == "True" && c.reason.as_deref() != Some(TERMINATION_BY_KUBELET))?;
    let since = condition.last_transition_time.as_ref();
    let age = since.map_or(STALE_POD_DISRUPTION_TIMEOUT, |time| {
        now.duration_since(time.0)
    });
    Some(Duration::try_from(STALE_POD_DISRUPTION_TIMEOUT - age).unwrap_or(Duration::ZERO))
}

/// Takes `DisruptionTarget` back, from this version of the pod only.
pub fn reset_disruption_target(pod: &Pod, now: Timestamp) -> Action {
    let condition = json!({
        "type": pod_helpers::condition::DISRUPTION_TARGET, "status": "False", "reason": null, "message": null,
        "observedGeneration": pod.metadata.generation, "lastTransitionTime": Time(now),
    });
    let patch = json!({
        "metadata": { "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version },
        "status": { "conditions": [condition] },
    });
    Action::status_patch::<Pod>(pod_helpers::namespace(pod), pod_helpers::name(pod), patch)
}

/// Of the pods that an eviction noted, those still to be deleted. Who is not deleted in time is named by an event.
fn build_disrupted_pod_map(
    pdb: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    now: Timestamp,
    plan: &mut Plan,
) -> BTreeMap<String, Time> {
    let noted = pdb.status.as_ref().and_then(|s| s.disrupted_pods.as_ref());
    let mut still = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !pod_helpers::is_terminating(pod)) {
        let name = pod_helpers::name(pod);
        let Some(time) = noted.and_then(|noted| noted.get(name)) else {
            continue;
        };
        match Duration::try_from(DELETION_TIMEOUT - now.duration_since(time.0)) {
            Ok(left) if !left.is_zero() => {
                plan.requeue(left);
                still.insert(name.to_owned(), time.clone());
            }
            _ => {
                let meta = &pdb.metadata;
                let message = format!(
                    "Pod was expected by PDB {}/{} to be deleted but it wasn't",
                    meta.namespace.as_deref().unwrap_or_default(),
                    meta.name.as_deref().unwrap_or_default()
                );
                plan.push(Action::event(
                    &**pod,
                    EventType::Warning,
                    "NotDeleted",
                    message,
                ));
            }
        }
    }
    still
}

fn count_healthy_pods(pods: &[Arc<Pod>], disrupted: &BTreeMap<String, Time>) -> i32 {
    let healthy = pods.iter().filter(|pod| {
        !pod_helpers::is_terminating(pod)
            && !disrupted.contains_key(pod_helpers::name(pod))
            && pod_helpers::is_pod_ready(pod)
    });
    i32::try_from(healthy.count()).unwrap_or(i32::MAX)
}

/// Equal but for the conditions; what is left out is zero or empty.
fn same_counts(old: &PodDisruptionBudgetStatus, new: &PodDisruptionBudgetStatus) -> bool {
    let counts = |s: &PodDisruptionBudgetStatus| {
        [
            s.current_healthy,
            s.desired_healthy,
            s.expected_pods,
            s.disruptions_allowed,
        ]
        .map(Option::unwrap_or_default)
    };
    counts(old) == counts(new)
        && old.observed_generation.unwrap_or_default()
            == new.observed_generation.unwrap_or_default()
        && old.disrupted_pods.clone().unwrap_or_default()
            == new.disrupted_pods.clone().unwrap_or_default()
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    word: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let now = Time(now);
    let condition = Condition {
        type_: DISRUPTION_ALLOWED_CONDITION.into(),
        status: word.into(),
        reason: reason.into(),
        message,
        observed_generation: status.observed_generation,
        last_transition_time: now.clone(),
    };
    conditions::set(status.conditions.get_or_insert_default(), condition, &now);
}

fn update(pdb: &PodDisruptionBudget, status: PodDisruptionBudgetStatus) -> Action {
    Action::update_status(&PodDisruptionBudget {
        status: Some(status),
        ..pdb.clone()
    })
}
