//! What is asked of the metrics APIs, and what their answers say. Pure but for the trait.
//!
//! Upstream: metrics/client.go, k8s.io/metrics/pkg/client/{custom_metrics,external_metrics}.

use std::time::Duration;

use async_trait::async_trait;
use component_helpers::quantity::milli_value;
use controller_runtime::ApiError;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Client;
use serde_json::Value;

use super::calculator::{PodMetric, PodMetrics};

/// Of a custom metric that does not say over how long it is measured. Upstream: `metricServerDefaultMetricWindow`.
const DEFAULT_WINDOW: Duration = Duration::from_secs(60);

/// Reads a path of the API server; a fake in tests.
#[async_trait]
pub trait MetricsApi: Send + Sync + 'static {
    /// The object at a path with its query.
    ///
    /// # Errors
    /// What the server said.
    async fn get(&self, path: &str) -> Result<Value, ApiError>;
}

#[async_trait]
impl MetricsApi for Client {
    async fn get(&self, path: &str) -> Result<Value, ApiError> {
        let request = http::Request::get(path)
            .header("accept", "application/json")
            .body(Vec::new())
            .map_err(|e| ApiError::Decode(e.to_string()))?;
        Ok(self.request(request).await?)
    }
}

/// One of the APIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    Resource,
    Custom,
    External,
}

impl Api {
    const fn name(self) -> &'static str {
        match self {
            Self::Resource => "resource",
            Self::Custom => "custom",
            Self::External => "external",
        }
    }
}

/// Why there is no metric; upstream's words.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MetricsError {
    #[error("unable to fetch metrics from {} metrics API: {source}", api.name())]
    Fetch {
        api: Api,
        #[source]
        source: ApiError,
    },
    #[error("unable to fetch metrics from {} metrics API: {message}", api.name())]
    Answer { api: Api, message: String },
    #[error("no metrics returned from {} metrics API", api.name())]
    None { api: Api },
}

/// A query's value in a path.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(char::from(byte));
            }
            other => escaped += &format!("%{other:02X}"),
        }
    }
    escaped
}

/// Where the resources that pods use are.
pub fn resource_path(namespace: &str, selector: &str) -> String {
    let selector = escape(selector);
    format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods?labelSelector={selector}")
}

/// Where a custom metric of an object is; `name` may be `*` for those that `selector` selects. An empty resource means the namespace itself.
pub fn custom_path(
    version: &str,
    namespace: &str,
    (resource, name): (&str, &str),
    metric: &str,
    selector: Option<&str>,
    metric_selector: &str,
) -> String {
    let object = match resource {
        "" => "metrics".to_owned(),
        resource => format!(
            "{resource}/{}",
            if name == "*" {
                "*".to_owned()
            } else {
                escape(name)
            }
        ),
    };
    let selector = selector.map(|s| format!("labelSelector={}&", escape(s)));
    format!(
        "/apis/custom.metrics.k8s.io/{version}/namespaces/{namespace}/{object}/{}?{}metricLabelSelector={}",
        escape(metric),
        selector.unwrap_or_default(),
        escape(metric_selector)
    )
}

/// Where an external metric is.
pub fn external_path(namespace: &str, metric: &str, selector: &str) -> String {
    format!(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{}?labelSelector={}",
        escape(metric),
        escape(selector)
    )
}

fn milli(value: &Value) -> Option<i64> {
    Some(milli_value(&Quantity(value.as_str()?.to_owned())))
}

fn items(api: Api, answer: &Value) -> Result<&[Value], MetricsError> {
    match answer["items"].as_array().map(Vec::as_slice) {
        None | Some([]) => Err(MetricsError::None { api }),
        Some(items) => Ok(items),
    }
}

fn timestamp(value: &Value) -> Timestamp {
    let text = value["timestamp"].as_str().unwrap_or_default();
    text.parse().unwrap_or(Timestamp::MIN)
}

/// What pods, or one container of each, use of a resource. A pod of which a container says nothing is left out.
///
/// # Errors
/// When the answer has no pod.
pub fn pod_resources(
    answer: &Value,
    resource: &str,
    container: &str,
) -> Result<PodMetrics, MetricsError> {
    let mut found = PodMetrics::new();
    for pod in items(Api::Resource, answer)? {
        let containers = pod["containers"].as_array().map_or(&[][..], Vec::as_slice);
        let counted = containers
            .iter()
            .filter(|c| container.is_empty() || c["name"] == container);
        let values: Option<Vec<i64>> = counted.map(|c| milli(&c["usage"][resource])).collect();
        let Some(values) = values.filter(|values| !values.is_empty()) else {
            tracing::debug!(pod = %pod["metadata"]["name"], resource, container, "Missing resource metric");
            continue;
        };
        let window = pod["window"].as_str().unwrap_or_default();
        let metric = PodMetric {
            timestamp: timestamp(pod),
            window: component_base::duration::parse(window).unwrap_or_default(),
            value: super::calculator::sum(&values),
        };
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        found.insert(name.to_owned(), metric);
    }
    Ok(found)
}

/// Custom metrics of pods.
///
/// # Errors
/// When the answer has no pod.
pub fn pod_values(answer: &Value) -> Result<PodMetrics, MetricsError> {
    let values = items(Api::Custom, answer)?.iter().map(|item| {
        // `window` in v1beta1.
        let seconds = item["windowSeconds"].as_u64().or(item["window"].as_u64());
        let metric = PodMetric {
            timestamp: timestamp(item),
            window: seconds.map_or(DEFAULT_WINDOW, Duration::from_secs),
            value: milli(&item["value"]).unwrap_or_default(),
        };
        let name = item["describedObject"]["name"].as_str().unwrap_or_default();
        (name.to_owned(), metric)
    });
    Ok(values.collect())
}

/// A custom metric of one object.
///
/// # Errors
/// When the answer has not exactly one.
pub fn object_value(answer: &Value) -> Result<i64, MetricsError> {
    let items = answer["items"].as_array().map_or(&[][..], Vec::as_slice);
    let [item] = items else {
        let message = format!(
            "the custom metrics API server returned {} results when we asked for exactly one",
            items.len()
        );
        let api = Api::Custom;
        return Err(MetricsError::Answer { api, message });
    };
    Ok(milli(&item["value"]).unwrap_or_default())
}

/// The values of an external metric.
///
/// # Errors
/// When the answer has none.
pub fn external_values(answer: &Value) -> Result<Vec<i64>, MetricsError> {
    let items = items(Api::External, answer)?;
    Ok(items
        .iter()
        .map(|item| milli(&item["value"]).unwrap_or_default())
        .collect())
}
