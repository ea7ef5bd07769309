//! How many replicas a metric asks for. Pure.
//!
//! Values are thousandths of the metric's unit. Upstream: replica_calculator.go, metrics/utilization.go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use component_helpers::pod;
use component_helpers::quantity::milli_value;
use component_helpers::resources::{
    PodResourcesOptions, is_pod_level_requests_set, is_restartable_init_container, pod_requests,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

/// A metric of one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodMetric {
    /// When it was measured.
    pub timestamp: Timestamp,
    /// Over how long.
    pub window: Duration,
    /// The value.
    pub value: i64,
}

/// By pods' names.
pub type PodMetrics = BTreeMap<String, PodMetric>;

/// Ratios between these are taken for 1. Upstream: `Tolerances`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerances {
    pub scale_down: f64,
    pub scale_up: f64,
}

impl Tolerances {
    fn is_within(self, ratio: f64) -> bool {
        (1.0 - self.scale_down) <= ratio && ratio <= (1.0 + self.scale_up)
    }
}

/// What every metric of a target is computed with.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The pods that the target's selector selects.
    pub pods: &'a [Arc<Pod>],
    /// What the target's specification says.
    pub spec_replicas: i32,
    /// What the target's status says.
    pub status_replicas: i32,
    pub tolerances: Tolerances,
    pub now: Timestamp,
    /// `--horizontal-pod-autoscaler-cpu-initialization-period`.
    pub cpu_initialization_period: Duration,
    /// `--horizontal-pod-autoscaler-initial-readiness-delay`.
    pub initial_readiness_delay: Duration,
}

/// What a metric asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// So many replicas.
    pub replicas: i32,
    /// The value that it follows from.
    pub usage: i64,
    /// In hundredths of what the pods request; of resources' utilization only.
    pub utilization: i32,
}

/// Upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CalculatorError {
    #[error("no pods returned by selector while calculating replica count")]
    NoPods,
    #[error("did not receive metrics for targeted pods (pods might be unready)")]
    NoMetrics,
    #[error("no metrics returned matched known pods")]
    NoneMatched,
    #[error("missing request for {resource} in container {container} of Pod {pod}")]
    NoRequest {
        resource: String,
        container: String,
        pod: String,
    },
    #[error("missing pod-level request for {resource} in Pod {pod}")]
    NoPodLevelRequest { resource: String, pod: String },
    #[error("container {container} not found in Pod {pod}")]
    NoContainer { container: String, pod: String },
}

type Calculated<T> = Result<T, CalculatorError>;

/// Which pods a metric counts for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

/// A resource's use against what the pods request. `container` counts alone if it is not empty.
///
/// # Errors
/// See [`CalculatorError`].
pub fn resource_replicas(
    target: &Target<'_>,
    mut metrics: PodMetrics,
    resource: &str,
    container: &str,
    target_utilization: i32,
) -> Calculated<Wish> {
    let groups = groups_with_metrics(target, &mut metrics, resource)?;
    let requests = requests(target.pods, container, resource)?;
    let (ratio, utilization, usage) = utilization_ratio(&metrics, &requests, target_utilization)?;
    let wish = |replicas| Wish {
        replicas,
        usage,
        utilization,
    };
    // Pods without metrics are taken for using all they request, or the target if that is more.
    let fallback = i64::from(target_utilization.max(100));
    let request = |pod: &str| requests.get(pod).copied().unwrap_or_default();
    let full = |pod: &str| request(pod).saturating_mul(fallback) / 100;
    let Some(metrics) = with_assumptions(&groups, metrics, ratio, full) else {
        return Ok(wish(plain(target, &groups, ratio)));
    };
    let (new_ratio, _, _) = utilization_ratio(&metrics, &requests, target_utilization)?;
    Ok(wish(reconsidered(target, ratio, new_ratio, metrics.len())))
}

/// A metric's average over the pods against a value. `resource` is `cpu` if the metric is that, which pods that start have no fair value of.
///
/// # Errors
/// See [`CalculatorError`].
pub fn raw_replicas(
    target: &Target<'_>,
    mut metrics: PodMetrics,
    resource: &str,
    target_usage: i64,
) -> Calculated<Wish> {
    let groups = groups_with_metrics(target, &mut metrics, resource)?;
    let (ratio, usage) = usage_ratio(&metrics, target_usage);
    let wish = |replicas| Wish {
        replicas,
        usage,
        utilization: 0,
    };
    let Some(metrics) = with_assumptions(&groups, metrics, ratio, |_| target_usage) else {
        return Ok(wish(plain(target, &groups, ratio)));
    };
    let (new_ratio, _) = usage_ratio(&metrics, target_usage);
    Ok(wish(reconsidered(target, ratio, new_ratio, metrics.len())))
}

/// A value for all pods together against a target for all of them.
///
/// # Errors
/// When the target has no pods, unless it is scaled to zero.
pub fn value_replicas(target: &Target<'_>, usage: i64, target_usage: i64) -> Calculated<Wish> {
    let ratio = usage as f64 / target_usage as f64;
    let replicas = if target.spec_replicas == 0 {
        ratio.ceil() as i32
    } else if target.tolerances.is_within(ratio) {
        target.spec_replicas
    } else {
        (ratio * ready_pods(target.pods)? as f64).ceil() as i32
    };
    Ok(Wish {
        replicas,
        usage,
        utilization: 0,
    })
}

/// A value for all pods together against a target for each of them.
pub fn per_pod_replicas(target: &Target<'_>, usage: i64, target_average: i64) -> Wish {
    let replicas = target.status_replicas;
    let ratio = usage as f64 / (target_average as f64 * f64::from(replicas));
    let replicas = if target.tolerances.is_within(ratio) {
        replicas
    } else {
        (usage as f64 / target_average as f64).ceil() as i32
    };
    let usage = match usage {
        i64::MAX => i64::MAX,
        // A division by zero is the largest value.
        usage => (usage as f64 / f64::from(target.status_replicas)).ceil() as i64,
    };
    Wish {
        replicas,
        usage,
        utilization: 0,
    }
}

/// All values together; no more than fits.
pub fn sum(values: &[i64]) -> i64 {
    values
        .iter()
        .fold(0, |sum, value| sum.saturating_add(*value))
}

fn groups_with_metrics(
    target: &Target<'_>,
    metrics: &mut PodMetrics,
    resource: &str,
) -> Calculated<Groups> {
    if target.pods.is_empty() {
        return Err(CalculatorError::NoPods);
    }
    let groups = group_pods(target, metrics, resource);
    metrics.retain(|pod, _| !groups.ignored.contains(pod) && !groups.unready.contains(pod));
    if metrics.is_empty() {
        return Err(CalculatorError::NoMetrics);
    }
    Ok(groups)
}

/// Upstream: `groupPods`.
fn group_pods(target: &Target<'_>, metrics: &PodMetrics, resource: &str) -> Groups {
    let mut groups = Groups::default();
    for pod in target.pods {
        let name = pod::name(pod).to_owned();
        if pod::is_terminating(pod) || pod::phase(pod) == "Failed" {
            groups.ignored.insert(name);
        } else if pod::phase(pod) == "Pending" {
            groups.unready.insert(name);
        } else {
            match metrics.get(&name) {
                None => drop(groups.missing.insert(name)),
                Some(metric) if resource == "cpu" && is_starting(target, pod, metric) => {
                    groups.unready.insert(name);
                }
                Some(_) => groups.ready += 1,
            }
        }
    }
    groups
}

/// Whether what a pod uses of the CPU says nothing yet.
fn is_starting(target: &Target<'_>, pod: &Pod, metric: &PodMetric) -> bool {
    let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref());
    let condition = pod::get_condition(pod, "Ready");
    let (Some(started), Some(condition)) = (started, condition) else {
        return true;
    };
    let not_ready = condition.status == "False";
    let changed = condition
        .last_transition_time
        .as_ref()
        .map_or(Timestamp::MIN, |t| t.0);
    let after =
        |time: Timestamp, period: Duration| time.saturating_add(period).unwrap_or(Timestamp::MAX);
    if after(started.0, target.cpu_initialization_period) > target.now {
        // Not ready, or not measured for a whole window since.
        not_ready || metric.timestamp < after(changed, metric.window)
    } else {
        // Not ready, and never was.
        not_ready && after(started.0, target.initial_readiness_delay) > changed
    }
}

/// The metrics with what is assumed of pods that have none; `None` if nothing has to be assumed.
fn with_assumptions(
    groups: &Groups,
    mut metrics: PodMetrics,
    ratio: f64,
    when_scaling_down: impl Fn(&str) -> i64,
) -> Option<PodMetrics> {
    let up_with_unready = !groups.unready.is_empty() && ratio > 1.0;
    if !up_with_unready && groups.missing.is_empty() {
        return None;
    }
    let of = |value| PodMetric {
        timestamp: Timestamp::MIN,
        window: Duration::ZERO,
        value,
    };
    for pod in &groups.missing {
        if ratio < 1.0 {
            metrics.insert(pod.clone(), of(when_scaling_down(pod)));
        } else if ratio > 1.0 {
            metrics.insert(pod.clone(), of(0));
        }
    }
    if up_with_unready {
        let unready = groups.unready.iter().map(|pod| (pod.clone(), of(0)));
        metrics.extend(unready);
    }
    Some(metrics)
}

fn plain(target: &Target<'_>, groups: &Groups, ratio: f64) -> i32 {
    if target.tolerances.is_within(ratio) {
        return target.spec_replicas;
    }
    (ratio * groups.ready as f64).ceil() as i32
}

/// What follows from assumptions, unless they turn the direction.
fn reconsidered(target: &Target<'_>, ratio: f64, new_ratio: f64, count: usize) -> i32 {
    let current = target.spec_replicas;
    let turned = (ratio < 1.0 && new_ratio > 1.0) || (ratio > 1.0 && new_ratio < 1.0);
    if target.tolerances.is_within(new_ratio) || turned {
        return current;
    }
    let replicas = (new_ratio * count as f64).ceil() as i32;
    if (new_ratio < 1.0 && replicas > current) || (new_ratio > 1.0 && replicas < current) {
        return current;
    }
    replicas
}

/// Upstream: `GetResourceUtilizationRatio`.
fn utilization_ratio(
    metrics: &PodMetrics,
    requests: &BTreeMap<String, i64>,
    target: i32,
) -> Calculated<(f64, i32, i64)> {
    let (mut used, mut requested, mut count) = (0i128, 0i128, 0i128);
    for (pod, metric) in metrics {
        if let Some(request) = requests.get(pod) {
            used += i128::from(metric.value);
            requested += i128::from(*request);
            count += 1;
        }
    }
    if requested == 0 {
        return Err(CalculatorError::NoneMatched);
    }
    let utilization = i32::try_from(used * 100 / requested).unwrap_or(i32::MAX);
    let average = i64::try_from(used / count).unwrap_or(i64::MAX);
    Ok((
        f64::from(utilization) / f64::from(target),
        utilization,
        average,
    ))
}

/// Upstream: `GetMetricUsageRatio`.
fn usage_ratio(metrics: &PodMetrics, target: i64) -> (f64, i64) {
    let total: i128 = metrics
        .values()
        .map(|metric| i128::from(metric.value))
        .sum();
    let average = total / metrics.len().max(1) as i128;
    let average = i64::try_from(average).unwrap_or(i64::MAX);
    (average as f64 / target as f64, average)
}

fn ready_pods(pods: &[Arc<Pod>]) -> Calculated<usize> {
    if pods.is_empty() {
        return Err(CalculatorError::NoPods);
    }
    let ready = |pod: &&Arc<Pod>| pod::phase(pod) == "Running" && pod::is_pod_ready(pod);
    Ok(pods.iter().filter(ready).count())
}

/// What each pod requests. Upstream: `calculateRequests`.
fn requests(
    pods: &[Arc<Pod>],
    container: &str,
    resource: &str,
) -> Calculated<BTreeMap<String, i64>> {
    let of = |pod: &Arc<Pod>| {
        let request = if container.is_empty() && is_pod_level_requests_set(pod) {
            let all = pod_requests(pod, &PodResourcesOptions::default());
            let request = all.get(resource).map(|amount| amount.milli_value());
            request.ok_or_else(|| CalculatorError::NoPodLevelRequest {
                resource: resource.to_owned(),
                pod: pod::name(pod).to_owned(),
            })?
        } else {
            container_requests(pod, container, resource)?
        };
        Ok((pod::name(pod).to_owned(), request))
    };
    pods.iter().map(of).collect()
}

fn container_requests(pod: &Pod, only: &str, resource: &str) -> Calculated<i64> {
    let spec = pod.spec.as_ref();
    let init = spec
        .into_iter()
        .flat_map(|s| s.init_containers.iter().flatten());
    let sidecars = init.filter(|container| is_restartable_init_container(container));
    let containers = spec.into_iter().flat_map(|s| &s.containers).chain(sidecars);
    let (mut total, mut found) = (0i64, false);
    for container in containers {
        if !only.is_empty() && only != container.name {
            continue;
        }
        found = true;
        let requests = container
            .resources
            .as_ref()
            .and_then(|r| r.requests.as_ref());
        let request = requests.and_then(|requests| requests.get(resource));
        let request = request.ok_or_else(|| CalculatorError::NoRequest {
            resource: resource.to_owned(),
            container: container.name.clone(),
            pod: pod::name(pod).to_owned(),
        })?;
        total = total.saturating_add(milli_value(request));
    }
    if !only.is_empty() && !found {
        return Err(CalculatorError::NoContainer {
            container: only.to_owned(),
            pod: pod::name(pod).to_owned(),
        });
    }
    Ok(total)
}
