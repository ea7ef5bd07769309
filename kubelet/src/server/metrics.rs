//! `/metrics` of the process, of the containers (`/cadvisor`), of resources, of probes.
//!
//! Upstream: `pkg/kubelet/metrics/collectors`, cadvisor's `metrics/prometheus.go`.

mod cadvisor;
mod exposition;
mod http;
mod resource;
mod volume;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use prometheus::{Encoder as _, TextEncoder};

use super::{ApiError, Server};
pub(super) use http::count;

use crate::metrics::{PROBE_DURATION, PROBE_RESULTS};
use crate::off_thread::spawn_blocking;

const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

fn text(body: String) -> Response {
    ([(::http::header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response()
}

/// What this process counts, without the probes, which have a page of their own, and what the claims of its pods hold.
pub(super) async fn process(State(server): State<Server>) -> Result<Response, ApiError> {
    component_base::metrics::init();
    let families: Vec<_> = prometheus::gather()
        .into_iter()
        .filter(|family| !is_probe(family.name()))
        .collect();
    let context = server.context.clone();
    let drivers = context.driver_usages().await;
    let claims = spawn_blocking(move || volume::render(context.as_ref(), &drivers))
        .await
        .map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(text(encode(&families)? + &claims))
}

/// `prober_probe_total` and its durations.
pub(super) async fn probes() -> Result<Response, ApiError> {
    std::sync::LazyLock::force(&PROBE_RESULTS);
    std::sync::LazyLock::force(&PROBE_DURATION);
    let families: Vec<_> = prometheus::gather()
        .into_iter()
        .filter(|family| is_probe(family.name()) || family.name() == "process_start_time_seconds")
        .collect();
    encode(&families).map(text)
}

fn is_probe(name: &str) -> bool {
    name.starts_with("prober_probe_")
}

fn encode(families: &[prometheus::proto::MetricFamily]) -> Result<String, ApiError> {
    let mut buffer = Vec::new();
    TextEncoder::new()
        .encode(families, &mut buffer)
        .map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(String::from_utf8_lossy(&buffer).into_owned())
}

/// CPU and memory of node, pods and containers: what metrics-server reads.
pub(super) async fn resource(State(server): State<Server>) -> Response {
    text(resource::render(
        server.stats.snapshot(false).await.ok().as_ref(),
    ))
}

/// Containers in detail, by cadvisor's names.
pub(super) async fn cadvisor(State(server): State<Server>) -> Result<Response, ApiError> {
    let (snapshot, details) = server.stats.detailed().await?;
    Ok(text(cadvisor::render(&snapshot, &details)))
}
