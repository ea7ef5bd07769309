//! Reads what a metric is computed from: asks the metrics API that it is of.

use std::sync::{Arc, Mutex};

use component_helpers::labels::Selector;
use controller_runtime::{ApiError, Resource};
use k8s_openapi::api::autoscaling::v2::MetricSpec;
use serde_json::Value;

use super::evaluate::{ReadError, Readings, metric_selector};
use super::metrics_api::{
    Api, MetricsApi, MetricsError, custom_path, external_path, external_values, object_value,
    pod_resources, pod_values, resource_path,
};
use crate::discovery::{ApiResources, Discovery};

/// Where kinds and metrics are asked for.
pub(super) struct Reader {
    discovery: Arc<dyn Discovery>,
    metrics: Arc<dyn MetricsApi>,
    /// What was discovered last; looked up again when a kind is not in it.
    known: Mutex<Arc<ApiResources>>,
}

impl Reader {
    pub(super) fn new(discovery: Arc<dyn Discovery>, metrics: Arc<dyn MetricsApi>) -> Self {
        Self {
            discovery,
            metrics,
            known: Mutex::default(),
        }
    }

    /// The resources of a kind, in the versions that the server prefers. Asks the server when none is known.
    pub(super) async fn resources_of(
        &self,
        group: &str,
        kind: &str,
    ) -> Result<Vec<Resource>, ApiError> {
        let of = |known: &ApiResources| -> Vec<Resource> {
            let is_it = |r: &&Resource| r.group == group && r.kind == kind;
            let preferred = known
                .resources
                .iter()
                .filter(|d| d.preferred)
                .map(|d| &d.resource);
            preferred.filter(is_it).cloned().collect()
        };
        let found = of(&self.known.lock().expect("nobody panics with it"));
        if !found.is_empty() {
            return Ok(found);
        }
        let fresh = Arc::new(self.discovery.resources().await?);
        let found = of(&fresh);
        *self.known.lock().expect("nobody panics with it") = fresh;
        Ok(found)
    }

    /// Asks the metrics API that a metric is of.
    pub(super) async fn read(
        &self,
        spec: &MetricSpec,
        namespace: &str,
        selector: &Selector,
    ) -> Result<Readings, ReadError> {
        let selector = selector.to_string();
        if let Some(source) = &spec.resource {
            return self
                .read_resource(namespace, &selector, &source.name, "")
                .await;
        }
        if let Some(source) = &spec.container_resource {
            return self
                .read_resource(namespace, &selector, &source.name, &source.container)
                .await;
        }
        let own =
            |metric: &Option<_>| metric_selector(metric.as_ref()).map_err(ReadError::Selector);
        if let Some(source) = &spec.pods {
            let of = own(&source.metric.selector)?.to_string();
            let path = |version: &str| {
                custom_path(
                    version,
                    namespace,
                    ("pods", "*"),
                    &source.metric.name,
                    Some(&selector),
                    &of,
                )
            };
            return Ok(Readings::Pods(pod_values(&self.custom(path).await?)?));
        }
        if let Some(source) = &spec.object {
            let of = own(&source.metric.selector)?.to_string();
            let object = &source.described_object;
            let resource = self
                .qualified(object.api_version.as_deref(), &object.kind)
                .await?;
            let path = |version: &str| {
                let object = (resource.as_str(), object.name.as_str());
                custom_path(version, namespace, object, &source.metric.name, None, &of)
            };
            return Ok(Readings::Object(object_value(&self.custom(path).await?)?));
        }
        if let Some(source) = &spec.external {
            let of = own(&source.metric.selector)?.to_string();
            let path = external_path(namespace, &source.metric.name, &of);
            let resource = format!("{}.external.metrics.k8s.io", source.metric.name);
            let answer = self.fetch(Api::External, &path, &resource).await?;
            return Ok(Readings::External(external_values(&answer)?));
        }
        // Told of by `evaluate`.
        Ok(Readings::External(Vec::new()))
    }

    async fn read_resource(
        &self,
        namespace: &str,
        selector: &str,
        resource: &str,
        container: &str,
    ) -> Result<Readings, ReadError> {
        let path = resource_path(namespace, selector);
        let answer = self
            .fetch(Api::Resource, &path, "pods.metrics.k8s.io")
            .await?;
        Ok(Readings::Pods(pod_resources(&answer, resource, container)?))
    }

    /// The answer to a path; `resource` is what it asks for, named where no server has it, as client-go does.
    async fn fetch(&self, api: Api, path: &str, resource: &str) -> Result<Value, MetricsError> {
        let answer = self.metrics.get(path).await;
        answer.map_err(|source| {
            let source = match source {
                ApiError::NotFound(said) if said == ApiError::NO_SUCH_RESOURCE => {
                    ApiError::NotFound(format!("{said} (get {resource})"))
                }
                other => other,
            };
            MetricsError::Fetch { api, source }
        })
    }

    /// A custom metric, in the newest version that the server has.
    async fn custom(
        &self,
        path: impl Fn(&str) -> String + Send + Sync,
    ) -> Result<Value, MetricsError> {
        let api = Api::Custom;
        let fetch = |source| MetricsError::Fetch { api, source };
        let newest = match self.metrics.get(&path("v1beta2")).await {
            Err(ApiError::NotFound(newest)) => newest,
            answer => return answer.map_err(fetch),
        };
        match self.metrics.get(&path("v1beta1")).await {
            Err(ApiError::NotFound(said)) => {
                let nowhere = [&newest, &said]
                    .iter()
                    .all(|said| *said == ApiError::NO_SUCH_RESOURCE);
                if nowhere {
                    let message = "no custom metrics API (custom.metrics.k8s.io) registered";
                    let message = message.to_owned();
                    return Err(MetricsError::Answer { api, message });
                }
                // What the first said says more where neither is there.
                Err(fetch(ApiError::NotFound(newest)))
            }
            answer => answer.map_err(fetch),
        }
    }

    /// `deployments.apps` for a kind; empty for namespaces.
    async fn qualified(&self, api_version: Option<&str>, kind: &str) -> Result<String, ReadError> {
        let api_version = api_version.unwrap_or_default();
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        if group.is_empty() && kind == "Namespace" {
            return Ok(String::new());
        }
        let unknown = || {
            ReadError::NoKind(if group.is_empty() {
                kind.to_owned()
            } else {
                format!("{kind}.{group}")
            })
        };
        let found = self.resources_of(group, kind).await.map_err(|source| {
            ReadError::Metrics(MetricsError::Fetch {
                api: Api::Custom,
                source,
            })
        })?;
        let resource = found.first().ok_or_else(unknown)?;
        Ok(match group {
            "" => resource.plural.to_string(),
            group => format!("{}.{group}", resource.plural),
        })
    }
}
