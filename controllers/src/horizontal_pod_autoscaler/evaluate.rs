//! What one metric of a specification asks for, what the status says of it, and what is wrong. Pure.
//!
//! Upstream: horizontal.go (`computeReplicasForMetric`, `computeStatusFor*`).

use component_helpers::labels::{Selector, SelectorError};
use component_helpers::quantity::{Amount, Format, milli_value};
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, MetricIdentifier, MetricSpec,
    MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricStatus, PodsMetricStatus,
    ResourceMetricStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::calculator::{
    CalculatorError, PodMetrics, Target, Wish, per_pod_replicas, raw_replicas, resource_replicas,
    sum, value_replicas,
};
use super::metrics_api::MetricsError;

/// What was read for a metric.
#[derive(Clone, Debug, PartialEq)]
pub enum Readings {
    /// Of each pod: for Resource, ContainerResource and Pods.
    Pods(PodMetrics),
    /// Of one object.
    Object(i64),
    /// Of something outside.
    External(Vec<i64>),
}

/// Why nothing was read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ReadError {
    /// The metric's own selector is not valid.
    #[error("{0}")]
    Selector(SelectorError),
    /// The described object's kind has no resource.
    #[error("unable to fetch metrics from custom metrics API: unable to map kind {0} to resource")]
    NoKind(String),
    /// The API did not answer, or said nothing.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
}

/// What a metric asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    pub replicas: i32,
    /// What it follows from, for people.
    pub name: String,
    pub status: MetricStatus,
}

/// A metric that says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Of the event and the condition.
    pub reason: &'static str,
    /// Of the event; the condition says more before it.
    pub message: String,
    /// What the whole sync is told.
    pub error: String,
    /// Whether the specification is to blame.
    pub is_spec: bool,
}

/// A metric's own selector; no selector selects everything.
///
/// # Errors
/// When it is not valid.
pub fn metric_selector(selector: Option<&LabelSelector>) -> Result<Selector, SelectorError> {
    match selector {
        None => Ok(Selector::default()),
        Some(selector) => Selector::new(selector),
    }
}

/// What the metric asks for.
///
/// # Errors
/// See [`Failure`].
pub fn evaluate(
    spec: &MetricSpec,
    readings: Result<Readings, ReadError>,
    target: &Target<'_>,
    namespace: &str,
) -> Result<Proposal, Failure> {
    match spec.type_.as_str() {
        "Resource" => evaluate_resource(spec, readings, target),
        "ContainerResource" => evaluate_container(spec, readings, target),
        "Pods" => evaluate_pods(spec, readings, target),
        "Object" => evaluate_object(spec, readings, target, namespace),
        "External" => evaluate_external(spec, readings, target, namespace),
        other => {
            let message = format!("unknown metric source type {other:?}");
            Err(Failure {
                reason: "InvalidMetricSourceType",
                error: message.clone(),
                message,
                is_spec: true,
            })
        }
    }
}

fn status(spec: &MetricSpec) -> MetricStatus {
    MetricStatus {
        type_: spec.type_.clone(),
        ..MetricStatus::default()
    }
}

fn failure(reason: &'static str, message: String, before: &str) -> Failure {
    Failure {
        reason,
        error: format!("{before}: {message}"),
        message,
        is_spec: false,
    }
}

fn pods_of(readings: Result<Readings, ReadError>) -> Result<PodMetrics, String> {
    match readings.map_err(|e| e.to_string())? {
        Readings::Pods(metrics) => Ok(metrics),
        _ => Ok(PodMetrics::new()),
    }
}

/// A quantity of the status; memory has binary suffixes, as the metrics server gives them. Upstream: `buildQuantity`.
fn quantity(milli: i64, resource: &str) -> Quantity {
    let amount = if resource == "memory" && milli % 1000 == 0 {
        Amount::new(milli / 1000, Format::BinarySI)
    } else {
        Amount::from_milli(milli)
    };
    Quantity(amount.canonical())
}

/// Of a resource, all containers or one. Upstream: `computeStatusForResourceMetricGeneric`.
fn of_resource(
    of: &MetricTarget,
    (resource, container): (&str, &str),
    readings: Result<Readings, ReadError>,
    target: &Target<'_>,
) -> Result<(i32, String, MetricValueStatus), String> {
    let read = |readings| {
        pods_of(readings).map_err(|e| format!("unable to get metrics for resource {resource}: {e}"))
    };
    if let Some(average) = &of.average_value {
        let wish = read(readings).and_then(|metrics| {
            let wish = raw_replicas(target, metrics, resource, milli_value(average));
            wish.map_err(|e| e.to_string())
        });
        let wish = wish.map_err(|e| format!("failed to get {resource} usage: {e}"))?;
        let status = MetricValueStatus {
            average_value: Some(quantity(wish.usage, resource)),
            ..MetricValueStatus::default()
        };
        return Ok((wish.replicas, format!("{resource} resource"), status));
    }
    let Some(utilization) = of.average_utilization else {
        return Err("invalid resource metric source: neither an average utilization target nor an average value (usage) target was set".to_owned());
    };
    let wish = read(readings).and_then(|metrics| {
        let wish = resource_replicas(target, metrics, resource, container, utilization);
        wish.map_err(|e| e.to_string())
    });
    let wish = wish.map_err(|e| format!("failed to get {resource} utilization: {e}"))?;
    let kind = if container.is_empty() {
        ""
    } else {
        "container "
    };
    let name = format!("{resource} {kind}resource utilization (percentage of request)");
    let status = MetricValueStatus {
        average_utilization: Some(wish.utilization),
        average_value: Some(quantity(wish.usage, resource)),
        ..MetricValueStatus::default()
    };
    Ok((wish.replicas, name, status))
}

fn evaluate_resource(
    spec: &MetricSpec,
    readings: Result<Readings, ReadError>,
    target: &Target<'_>,
) -> Result<Proposal, Failure> {
    let source = spec.resource.clone().unwrap_or_default();
    let found = of_resource(&source.target, (&source.name, ""), readings, target);
    let (replicas, name, current) = found.map_err(|message| {
        let before = format!("failed to get {} resource metric value", source.name);
        failure("FailedGetResourceMetric", message, &before)
    })?;
    let mut status = status(spec);
    status.resource = Some(ResourceMetricStatus {
        current,
        name: source.name,
    });
    Ok(Proposal {
        replicas,
        name,
        status,
    })
}

fn evaluate_container(
    spec: &MetricSpec,
    readings: Result<Readings, ReadError>,
    target: &Target<'_>,
) -> Result<Proposal, Failure> {
    let source = spec.container_resource.clone().unwrap_or_default();
    let of = (source.name.as_str(), source.container.as_str());
    let found = of_resource(&source.target, of, readings, target);
    let (replicas, name, current) = found.map_err(|message| {
        let before = format!("failed to get {} container metric value", source.container);
        failure("FailedGetContainerResourceMetric", message, &before)
    })?;
    let mut status = status(spec);
    status.container_resource = Some(ContainerResourceMetricStatus {
        container: source.container,
        current,
        name: source.name,
    });
    Ok(Proposal {
        replicas,
        name,
        status,
    })
}

fn evaluate_pods(
    spec: &MetricSpec,
    readings: Result<Readings, ReadError>,
    target: &Target<'_>,
) -> Result<Proposal, Failure> {
    let source = spec.pods.clone().unwrap_or_default();
    let name = &source.metric.name;
    let average = source.target.average_value.as_ref().map_or(0, milli_value);
    let wish = pods_of(readings)
        .map_err(|e| format!("unable to get metric {name}: {e}"))
        .and_then(|metrics| raw_replicas(target, metrics, "", average).map_err(|e| e.to_string()));
    let wish = wish.map_err(|message| {
        failure(
            "FailedGetPodsMetric",
            message,
            "failed to get pods metric value",
        )
    })?;
    let mut status = status(spec);
    status.pods = Some(PodsMetricStatus {
        current: MetricValueStatus {
            average_value: Some(quantity(wish.usage, "")),
            ..MetricValueStatus::default()
        },
        metric: source.metric.clone(),
    });
    Ok(Proposal {
        replicas: wish.replicas,
        name: format!("pods metric {name}"),
        status,
    })
}

/// A value for all pods against one for all or for each.
fn of_value(
    of: &MetricTarget,
    wants_average: bool,
    target: &Target<'_>,
    usage: i64,
) -> Result<(Wish, MetricValueStatus), CalculatorError> {
    let mut status = MetricValueStatus::default();
    let wish = if wants_average {
        let average = of.average_value.as_ref().map_or(0, milli_value);
        let wish = per_pod_replicas(target, usage, average);
        status.average_value = Some(quantity(wish.usage, ""));
        wish
    } else {
        let value = of.value.as_ref().map_or(0, milli_value);
        let wish = value_replicas(target, usage, value)?;
        status.value = Some(quantity(wish.usage, ""));
        wish
    };
    Ok((wish, status))
}

/// Upstream: `getUsageRatioReplicaCount` wraps what it gets.
fn ready_pods_error(error: &CalculatorError) -> String {
    format!("unable to calculate ready pods: {error}")
}

fn evaluate_object(
    spec: &MetricSpec,
    readings: Result<Readings, ReadError>,
    target: &Target<'_>,
    namespace: &str,
) -> Result<Proposal, Failure> {
    const REASON: &str = "FailedGetObjectMetric";
    const BEFORE: &str = "failed to get object metric value";
    let source = spec.object.clone().unwrap_or_default();
    let (name, of) = (&source.metric.name, &source.target);
    let object = &source.described_object;
    let wants_value = of.type_ == "Value" && of.value.is_some();
    let wants_average = of.type_ == "AverageValue" && of.average_value.is_some();
    if !wants_value && !wants_average {
        let message = "invalid object metric source: neither a value target nor an average value target was set";
        return Err(failure(REASON, message.to_owned(), BEFORE));
    }
    let usage = match readings {
        Ok(Readings::Object(usage)) => Ok(usage),
        Ok(_) => Ok(0),
        // A selector that is not valid is told as it is.
        Err(ReadError::Selector(error)) => {
            return Err(failure(REASON, error.to_string(), BEFORE));
        }
        Err(error) => Err(format!(
            "unable to get metric {name} on {} {namespace}/{}: {error}",
            object.kind, object.name
        )),
    };
    let found = usage.and_then(|usage| {
        of_value(of, wants_average, target, usage).map_err(|e| ready_pods_error(&e))
    });
    let (wish, current) = found.map_err(|message| {
        let mut failure = failure(REASON, message, BEFORE);
        if wants_average {
            // The event has it bare.
            failure.error = format!(
                "{BEFORE}: failed to get {name} object metric: {}",
                failure.message
            );
        }
        failure
    })?;
    let proposal_name = if wants_average {
        format!(
            "external metric {name}({})",
            show(source.metric.selector.as_ref())
        )
    } else {
        format!("{} metric {name}", object.kind)
    };
    let mut status = status(spec);
    status.object = Some(ObjectMetricStatus {
        current,
        described_object: object.clone(),
        metric: source.metric.clone(),
    });
    Ok(Proposal {
        replicas: wish.replicas,
        name: proposal_name,
        status,
    })
}

fn evaluate_external(
    spec: &MetricSpec,
    readings: Result<Readings, ReadError>,
    target: &Target<'_>,
    namespace: &str,
) -> Result<Proposal, Failure> {
    const REASON: &str = "FailedGetExternalMetric";
    let source = spec.external.clone().unwrap_or_default();
    let (metric, of) = (&source.metric, &source.target);
    let name = &metric.name;
    let before = format!("failed to get {name} external metric value");
    let wants_average = of.average_value.is_some();
    if !wants_average && of.value.is_none() {
        let message = "invalid external metric source: neither a value target nor an average value target was set";
        return Err(failure(REASON, message.to_owned(), &before));
    }
    let usage = match readings {
        Ok(Readings::External(values)) => Ok(sum(&values)),
        Ok(_) => Ok(0),
        Err(ReadError::Selector(error)) => Err(error.to_string()),
        Err(error) => Err(format!(
            "unable to get external metric {namespace}/{name}/{}: {error}",
            show(metric.selector.as_ref())
        )),
    };
    let found = usage.and_then(|usage| {
        of_value(of, wants_average, target, usage).map_err(|e| ready_pods_error(&e))
    });
    let (wish, current) = found.map_err(|message| {
        let inner = match wants_average {
            true => format!("failed to get {name} external metric: {message}"),
            false => format!("failed to get external metric {name}: {message}"),
        };
        Failure {
            error: format!("{before}: {inner}"),
            ..failure(REASON, message, &before)
        }
    })?;
    let mut status = status(spec);
    status.external = Some(ExternalMetricStatus {
        current,
        metric: MetricIdentifier {
            name: name.clone(),
            selector: metric.selector.clone(),
        },
    });
    Ok(Proposal {
        replicas: wish.replicas,
        name: format!("external metric {name}({})", show(metric.selector.as_ref())),
        status,
    })
}

/// A selector as Go prints one.
fn show(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else {
        return "nil".to_owned();
    };
    let labels = selector.match_labels.iter().flatten();
    let labels: String = labels
        .map(|(key, value)| format!("{key}: {value},"))
        .collect();
    let expressions = selector.match_expressions.iter().flatten();
    let expressions: String = expressions
        .map(|e| {
            let values = e.values.as_deref().unwrap_or_default().join(" ");
            format!(
                "LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},",
                e.key, e.operator
            )
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
}
