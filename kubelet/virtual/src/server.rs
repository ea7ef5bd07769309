//! The HTTPS port of all nodes of the process: logs, exec, attach, port-forward, stats, metrics, health.
//!
//! The API server names a node by address and port, which all nodes here share: which node is meant follows from the pod in the
//! path, and permission is asked for at that node. What is about a node and no pod takes `?node=NAME`. Upstream:
//! `pkg/kubelet/server`, v1.36.

mod logs;
mod streams;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use component_base::health::Health;
use component_base::serving::Attributes;
use http::{Method, StatusCode};
use kubelet_provider::{Provider, ProviderError};
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::metrics;
use crate::nodes::Nodes;
use crate::pods::{Found, Pods};

/// What the server needs.
pub struct Serving {
    pub pods: Pods,
    pub nodes: Arc<Nodes>,
    pub provider: Arc<dyn Provider>,
    pub health: Health,
    /// Upstream: `streamingConnectionIdleTimeout`.
    pub streaming_idle_timeout: Duration,
    /// Ends open streams.
    pub shutdown: CancellationToken,
}

/// What every handler gets.
#[derive(Clone)]
struct Server {
    pods: Pods,
    nodes: Arc<Nodes>,
    provider: Arc<dyn Provider>,
    streaming_idle_timeout: Duration,
    /// What clients sent and nobody has read.
    stream_memory: Arc<streaming::Pool>,
    shutdown: CancellationToken,
}

/// A status and a text.
#[derive(Debug)]
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

impl From<ProviderError> for Refused {
    fn from(error: ProviderError) -> Self {
        let status = match error {
            ProviderError::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            ProviderError::NotFound => StatusCode::NOT_FOUND,
            ProviderError::Invalid { .. } => StatusCode::BAD_REQUEST,
            ProviderError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

/// The routes.
pub fn router(serving: Serving) -> Router {
    let health = serving.health.router();
    let server = Server {
        pods: serving.pods,
        nodes: serving.nodes,
        provider: serving.provider,
        streaming_idle_timeout: serving.streaming_idle_timeout,
        stream_memory: Arc::default(),
        shutdown: serving.shutdown,
    };
    let exec = get(streams::exec).post(streams::exec);
    let attach = get(streams::attach).post(streams::attach);
    let port_forward = get(streams::port_forward).post(streams::port_forward);
    let mut router = Router::new()
        .route(
            "/containerLogs/{namespace}/{pod}/{container}",
            get(logs::container_logs),
        )
        .route("/exec/{namespace}/{pod}/{container}", exec.clone())
        .route("/exec/{namespace}/{pod}/{uid}/{container}", exec)
        .route("/attach/{namespace}/{pod}/{container}", attach.clone())
        .route("/attach/{namespace}/{pod}/{uid}/{container}", attach)
        .route("/portForward/{namespace}/{pod}", port_forward.clone())
        .route("/portForward/{namespace}/{pod}/{uid}", port_forward)
        .route("/stats/summary", get(stats))
        .route("/runningpods", get(running_pods))
        .route("/runningpods/", get(running_pods))
        .route("/metrics", get(process_metrics));
    for (path, why) in [
        ("/pods", "whole pods are not kept here: ask the API server"),
        ("/pods/", "whole pods are not kept here: ask the API server"),
        (
            "/run/{*path}",
            "run is not supported by virtual nodes: use exec",
        ),
        (
            "/checkpoint/{*path}",
            "checkpoints are not supported by virtual nodes",
        ),
        ("/logs/{*path}", "virtual nodes have no logs of a system"),
        ("/metrics/cadvisor", "virtual nodes have no cadvisor"),
    ] {
        let refuse = move || async move { Refused(StatusCode::NOT_IMPLEMENTED, why.to_owned()) };
        router = router.route(path, any(refuse));
    }
    router.with_state(server).merge(health)
}

/// What a request means to authorization: a subresource of the node whose pod is meant, or of all nodes.
pub fn attributes(
    pods: &Pods,
    only: Option<&str>,
    request: &http::request::Parts,
) -> Vec<Attributes> {
    let verb = match request.method {
        Method::POST => "create",
        Method::GET => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    };
    let path = request.uri.path();
    let mut parts = path.split('/').skip(1);
    let root = parts.next().unwrap_or_default();
    let of_pod = ["containerLogs", "exec", "attach", "portForward"].contains(&root);
    let named = of_pod.then(|| {
        (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        )
    });
    let asked = request.uri.query().and_then(|query| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .filter(|(key, _)| *key == "node")
            .map(|(_, node)| node)
            .next()
    });
    let node = match (named, only) {
        (_, Some(only)) => only.to_owned(),
        // Of a pod that is not here nothing is told without permission at every node.
        (Some((namespace, name)), None) => pods
            .find(namespace, name)
            .map_or(String::new(), |found| found.id.node.to_string()),
        // What is encoded could mean another node to the handler.
        (None, None) if root == "stats" => asked
            .filter(|node| !node.contains(['%', '+']))
            .unwrap_or_default()
            .to_owned(),
        (None, None) => String::new(),
    };
    let subresources: &[&str] = match root {
        "pods" | "runningpods" => &["pods", "proxy"],
        "healthz" | "livez" | "readyz" => &["healthz", "proxy"],
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        _ => &["proxy"],
    };
    subresources
        .iter()
        .map(|subresource| Attributes::Resource {
            verb: verb.to_owned(),
            group: String::new(),
            version: "v1".to_owned(),
            resource: "nodes".to_owned(),
            subresource: (*subresource).to_owned(),
            namespace: String::new(),
            name: node.clone(),
        })
        .collect()
}

impl Server {
    /// The pod of a request's path. `uid`, if given, must be the pod's.
    fn pod(&self, namespace: &str, name: &str, uid: Option<&str>) -> Result<Found, Refused> {
        let found = self.pods.find(namespace, name);
        let missing = || {
            Refused(
                StatusCode::NOT_FOUND,
                format!("pod {name:?} does not exist"),
            )
        };
        let found = found.ok_or_else(missing)?;
        match uid {
            Some(uid) if *found.id.uid != *uid => {
                Err(Refused(StatusCode::NOT_FOUND, "pod not found".to_owned()))
            }
            _ => Ok(found),
        }
    }

    fn container(&self, found: &Found, container: &str) -> Result<(), Refused> {
        match found.shape.has_container(container) {
            true => Ok(()),
            false => {
                let text = format!(
                    "container {container:?} not found in pod {:?}",
                    &*found.id.name
                );
                Err(Refused(StatusCode::NOT_FOUND, text))
            }
        }
    }
}

#[derive(Deserialize)]
struct OfNode {
    node: Option<String>,
}

/// `/stats/summary?node=NAME`; the name may be left out where there is one node.
async fn stats(
    State(server): State<Server>,
    Query(query): Query<OfNode>,
) -> Result<Response, Refused> {
    let only = server.nodes.only();
    let name = query.node.as_deref().or(only.as_deref()).ok_or_else(|| {
        let text = "several nodes are served here: say which one by ?node=NAME";
        Refused(StatusCode::BAD_REQUEST, text.to_owned())
    })?;
    let missing = || {
        Refused(
            StatusCode::NOT_FOUND,
            format!("node {name:?} is not served here"),
        )
    };
    let name = server.nodes.name(name).ok_or_else(missing)?;
    let began = Instant::now();
    let usages = server.provider.stats(&name).await;
    metrics::called("stats", began, usages.is_ok());
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    let usage = |usage: &kubelet_provider::Usage| {
        json!({
            "cpu": { "time": now, "usageCoreNanoSeconds": usage.cpu_nanoseconds },
            "memory": { "time": now, "workingSetBytes": usage.memory_working_set_bytes },
        })
    };
    let pods: Vec<_> = usages?
        .iter()
        .map(|pod| {
            let containers: Vec<_> = pod
                .containers
                .iter()
                .map(|(name, of)| {
                    let mut value = usage(of);
                    value["name"] = name.as_str().into();
                    value
                })
                .collect();
            let reference = json!({ "name": &*pod.pod.name, "namespace": &*pod.pod.namespace, "uid": &*pod.pod.uid });
            json!({ "podRef": reference, "containers": containers })
        })
        .collect();
    Ok(Json(json!({ "node": { "nodeName": &*name }, "pods": pods })).into_response())
}

/// The pods that run, with no more than their containers' names.
async fn running_pods(State(server): State<Server>) -> Response {
    let items: Vec<_> = server
        .pods
        .running()
        .iter()
        .map(|found| {
            let containers = found.shape.containers.iter();
            let containers: Vec<_> = containers
                .map(|c| json!({ "name": &*c.name, "image": &*c.image }))
                .collect();
            let id = &found.id;
            json!({
                "metadata": { "name": &*id.name, "namespace": &*id.namespace, "uid": &*id.uid },
                "spec": { "nodeName": &*id.node, "containers": containers },
                "status": {},
            })
        })
        .collect();
    Json(json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items }))
        .into_response()
}

async fn process_metrics(State(server): State<Server>) -> Response {
    let (known, running) = server.pods.count();
    metrics::scraped(server.nodes.count().1, known, running);
    let content_type = (
        http::header::CONTENT_TYPE,
        component_base::metrics::CONTENT_TYPE,
    );
    ([content_type], component_base::metrics::text()).into_response()
}
