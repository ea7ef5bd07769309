//! What to do about an autoscaler, and what its status says. Pure.
//!
//! Upstream: horizontal.go (`reconcileAutoscaler`, `computeReplicasForMetrics`, `setCondition`).

use std::time::Duration;

use component_helpers::quantity::amount;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus,
    MetricStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::behavior::{Bounds, History};
use super::calculator::Tolerances;
use super::evaluate::{Failure, Proposal};

/// Whether the target can be scaled at all.
pub const ABLE_TO_SCALE: &str = "AbleToScale";
/// Whether metrics say how far.
pub const SCALING_ACTIVE: &str = "ScalingActive";
/// Whether a limit holds the wish back.
pub const SCALING_LIMITED: &str = "ScalingLimited";
/// Whether the controller, and nobody else, scaled the target to zero.
pub const SCALED_TO_ZERO: &str = "ScaledToZero";

/// Settings, from flags and gates.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `--horizontal-pod-autoscaler-sync-period`.
    pub sync_period: Duration,
    /// `--horizontal-pod-autoscaler-downscale-stabilization`.
    pub downscale_stabilization: Duration,
    /// `--horizontal-pod-autoscaler-tolerance`.
    pub tolerance: f64,
    /// `--horizontal-pod-autoscaler-cpu-initialization-period`.
    pub cpu_initialization_period: Duration,
    /// `--horizontal-pod-autoscaler-initial-readiness-delay`.
    pub initial_readiness_delay: Duration,
    /// Gate HPAScaleToZero.
    pub scale_to_zero: bool,
    /// Gate HPAGeneration.
    pub generation: bool,
    /// Gate StaleControllerConsistencyHPA.
    pub consistency: bool,
}

/// The tolerances of an autoscaler: its own, else the flag's.
pub fn tolerances(autoscaler: &HorizontalPodAutoscaler, default: f64) -> Tolerances {
    let behavior = autoscaler.spec.behavior.as_ref();
    let down = behavior.and_then(|b| b.scale_down.as_ref()?.tolerance.as_ref());
    let up = behavior.and_then(|b| b.scale_up.as_ref()?.tolerance.as_ref());
    Tolerances {
        scale_down: down.map_or(default, |t| amount(t).as_f64()),
        scale_up: up.map_or(default, |t| amount(t).as_f64()),
    }
}

/// The smallest number of replicas; 1 unless it says another.
pub fn min_replicas(autoscaler: &HorizontalPodAutoscaler) -> i32 {
    autoscaler.spec.min_replicas.unwrap_or(1)
}

/// What is known without any metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum First {
    /// The target was set to zero by somebody: nothing is done.
    Disabled,
    /// It is out of its bounds.
    Bound(i32, &'static str),
    /// Metrics decide.
    Metrics,
}

/// What is known without any metric.
pub fn first(autoscaler: &HorizontalPodAutoscaler, current: i32, settings: &Settings) -> First {
    let (min, max) = (min_replicas(autoscaler), autoscaler.spec.max_replicas);
    if current == 0 {
        let to_zero = was_scaled_to_zero(autoscaler, settings);
        let wakes = to_zero && has_object_or_external(autoscaler);
        return match (min != 0 && to_zero) || wakes {
            true => First::Metrics,
            false => First::Disabled,
        };
    }
    if current > max {
        return First::Bound(max, "Current number of replicas above Spec.MaxReplicas");
    }
    if current < min {
        return First::Bound(min, "Current number of replicas below Spec.MinReplicas");
    }
    First::Metrics
}

fn was_scaled_to_zero(autoscaler: &HorizontalPodAutoscaler, settings: &Settings) -> bool {
    let conditions = autoscaler
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_ref());
    let is_set =
        |c: &HorizontalPodAutoscalerCondition| c.type_ == SCALED_TO_ZERO && c.status == "True";
    settings.scale_to_zero && conditions.is_some_and(|list| list.iter().any(is_set))
}

fn has_object_or_external(autoscaler: &HorizontalPodAutoscaler) -> bool {
    let mut metrics = autoscaler.spec.metrics.iter().flatten();
    metrics.any(|metric| matches!(metric.type_.as_str(), "Object" | "External"))
}

/// What all metrics together ask for: the most of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Combined {
    /// `None` if nothing can be done by these metrics.
    pub replicas: Option<i32>,
    /// The metric that asks for the most.
    pub name: String,
    /// Of all of them; those that failed are empty.
    pub statuses: Vec<MetricStatus>,
    /// The first failure, and whether the specification is to blame.
    pub error: Option<(String, bool)>,
    /// Reason and message of ScalingActive, which is true if there are replicas.
    pub reason: &'static str,
    pub message: String,
}

/// Upstream: `computeReplicasForMetrics`. One failed metric is enough not to scale down.
pub fn combine(proposals: Vec<Result<Proposal, Failure>>, spec_replicas: i32) -> Combined {
    let count = proposals.len();
    let (mut replicas, mut name) = (0, String::new());
    let (mut statuses, mut failures) = (Vec::with_capacity(count), Vec::new());
    for proposal in proposals {
        match proposal {
            Ok(proposal) => {
                if replicas == 0 || proposal.replicas > replicas {
                    replicas = proposal.replicas;
                    name = proposal.name;
                }
                statuses.push(proposal.status);
            }
            Err(failure) => {
                statuses.push(MetricStatus::default());
                failures.push(failure);
            }
        }
    }
    let invalid = failures.len();
    let error = failures.first().map(|first| {
        let error = &first.error;
        let message =
            format!("invalid metrics ({invalid} invalid out of {count}), first error is: {error}");
        (message, first.is_spec)
    });
    let fails = invalid >= count || (invalid > 0 && replicas < spec_replicas);
    match failures.first() {
        Some(first) if fails => Combined {
            replicas: None,
            name: String::new(),
            statuses,
            error,
            reason: first.reason,
            message: format!(
                "the HPA was unable to compute the replica count: {}",
                first.message
            ),
        },
        _ => Combined {
            replicas: Some(replicas),
            message: format!(
                "the HPA was able to successfully calculate a replica count from {name}"
            ),
            name,
            statuses,
            error,
            reason: "ValidMetricFound",
        },
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub replicas: i32,
    /// For the event.
    pub reason: String,
}

/// From what metrics ask for to what is done, with limits; sets AbleToScale and ScalingLimited.
pub fn decide(
    autoscaler: &mut HorizontalPodAutoscaler,
    history: &mut History,
    (wanted, metric): (i32, &str),
    current: i32,
    settings: &Settings,
    (monotonic, now): (Duration, Timestamp),
) -> Decision {
    let min = min_replicas(autoscaler);
    let bounds = Bounds {
        min,
        max: autoscaler.spec.max_replicas,
        current,
    };
    let wanted = wanted.max(0);
    let mut reason = match wanted.cmp(&current) {
        std::cmp::Ordering::Greater => format!("{metric} above target"),
        std::cmp::Ordering::Less => "All metrics below target".to_owned(),
        std::cmp::Ordering::Equal => String::new(),
    };
    let window = settings.downscale_stabilization;
    let normalized = match &autoscaler.spec.behavior {
        None => history.normalize(wanted, bounds, window, monotonic),
        Some(behavior) => history.normalize_with(wanted, bounds, behavior, window, monotonic),
    };
    let woken = current == 0 && min != 0 && was_scaled_to_zero(autoscaler, settings);
    let status = autoscaler.status.get_or_insert_default();
    let (able, limit) = (normalized.able, normalized.limit);
    set_condition(status, ABLE_TO_SCALE, true, able.0, able.1, now);
    set_condition(
        status,
        SCALING_LIMITED,
        normalized.limited,
        limit.0,
        limit.1,
        now,
    );
    let mut replicas = normalized.replicas;
    if woken && replicas < min {
        replicas = min;
        if reason.is_empty() {
            reason = "Current number of replicas below Spec.MinReplicas".to_owned();
        }
    }
    Decision { replicas, reason }
}

/// Whether a scale that was written is the controller's own way to zero; sets ScaledToZero.
pub fn note_zero(
    autoscaler: &mut HorizontalPodAutoscaler,
    (before, after): (i32, i32),
    settings: &Settings,
    now: Timestamp,
) {
    let to_zero = before > 0
        && after == 0
        && min_replicas(autoscaler) == 0
        && has_object_or_external(autoscaler);
    let status = autoscaler.status.get_or_insert_default();
    if !settings.scale_to_zero {
        remove_condition(status, SCALED_TO_ZERO);
        return;
    }
    let (reason, message) = match to_zero {
        true => (
            "ScaledToZero",
            "the HPA controller scaled the workload to zero",
        ),
        false => (
            "NotScaledToZero",
            "the HPA controller did not scale the workload to zero",
        ),
    };
    set_condition(status, SCALED_TO_ZERO, to_zero, reason, message, now);
}

/// Fills the status in. `rescaled` sets the time.
pub fn set_status(
    autoscaler: &mut HorizontalPodAutoscaler,
    (current, desired): (i32, i32),
    statuses: Vec<MetricStatus>,
    rescaled: bool,
    settings: &Settings,
    now: Timestamp,
) {
    let generation = autoscaler.metadata.generation;
    let status = autoscaler.status.get_or_insert_default();
    status.current_replicas = Some(current);
    status.desired_replicas = desired;
    status.current_metrics = Some(statuses).filter(|list| !list.is_empty());
    status.observed_generation = generation.filter(|_| settings.generation);
    if rescaled {
        status.last_scale_time = Some(seconds(now));
    }
}

fn seconds(now: Timestamp) -> Time {
    let whole = Timestamp::from_second(now.as_second());
    Time(whole.unwrap_or(now))
}

/// Sets a condition; its time changes only with its status.
pub fn set_condition(
    status: &mut HorizontalPodAutoscalerStatus,
    type_: &str,
    is_true: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    let value = if is_true { "True" } else { "False" };
    let at = conditions.iter().position(|c| c.type_ == type_);
    let at = at.unwrap_or_else(|| {
        conditions.push(HorizontalPodAutoscalerCondition {
            type_: type_.to_owned(),
            ..HorizontalPodAutoscalerCondition::default()
        });
        conditions.len() - 1
    });
    let condition = &mut conditions[at];
    if condition.status != value {
        condition.last_transition_time = Some(seconds(now));
    }
    condition.status = value.to_owned();
    condition.reason = Some(reason.to_owned());
    condition.message = Some(message.to_owned());
}

/// Takes a condition away.
pub fn remove_condition(status: &mut HorizontalPodAutoscalerStatus, type_: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != type_);
    }
}
