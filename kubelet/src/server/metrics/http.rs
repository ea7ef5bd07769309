//! Requests to this server, counted.
//!
//! Upstream: `pkg/kubelet/server/metrics`.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use prometheus::{
    HistogramVec, IntCounterVec, IntGaugeVec, histogram_opts, opts, register_histogram_vec,
    register_int_counter_vec, register_int_gauge_vec,
};

const ONCE: &str = "registered once, with a valid name";
const LABELS: [&str; 4] = ["method", "path", "server_type", "long_running"];

static REQUESTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        opts!(
            "kubelet_http_requests_total",
            "Number of the http requests received since the server started"
        ),
        &LABELS
    )
    .expect(ONCE)
});
static DURATION: LazyLock<HistogramVec> = LazyLock::new(|| {
    register_histogram_vec!(
        histogram_opts!(
            "kubelet_http_requests_duration_seconds",
            "Duration in seconds to serve http requests"
        ),
        &LABELS
    )
    .expect(ONCE)
});
static INFLIGHT: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    register_int_gauge_vec!(
        opts!(
            "kubelet_http_inflight_requests",
            "Number of the inflight http requests"
        ),
        &LABELS
    )
    .expect(ONCE)
});

/// Counts a request; `server_type` is `readwrite` or `readonly`.
pub(in super::super) async fn count(
    server_type: &'static str,
    request: Request,
    next: Next,
) -> Response {
    let method = method(request.method().as_str());
    let path = bucket(request.uri().path());
    let long_running = if is_long_running(path) {
        "true"
    } else {
        "false"
    };
    let labels = [method, path, server_type, long_running];
    REQUESTS.with_label_values(&labels).inc();
    let inflight = INFLIGHT.with_label_values(&labels);
    inflight.inc();
    let started = Instant::now();
    let response = next.run(request).await;
    let took: Duration = started.elapsed();
    inflight.dec();
    DURATION
        .with_label_values(&labels)
        .observe(took.as_secs_f64());
    response
}

fn method(method: &str) -> &'static str {
    const KNOWN: [&str; 8] = [
        "OPTIONS", "GET", "HEAD", "POST", "PUT", "DELETE", "TRACE", "CONNECT",
    ];
    KNOWN
        .into_iter()
        .find(|known| *known == method)
        .unwrap_or("other")
}

/// The path's first part, or two below `metrics`; paths of a client's invention are one.
fn bucket(path: &str) -> &'static str {
    const KNOWN: [&str; 17] = [
        "metrics/cadvisor",
        "metrics/probes",
        "metrics/resource",
        "metrics",
        "healthz",
        "pods",
        "stats",
        "run",
        "exec",
        "attach",
        "portForward",
        "containerLogs",
        "configz",
        "runningpods",
        "checkpoint",
        "logs",
        "debug",
    ];
    let path = path.trim_matches('/');
    KNOWN
        .into_iter()
        .find(|known| {
            path.strip_prefix(known)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
        .unwrap_or("other")
}

fn is_long_running(path: &str) -> bool {
    matches!(
        path,
        "exec" | "attach" | "portForward" | "containerLogs" | "debug"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets() {
        for (path, expect) in [
            ("/metrics/cadvisor", "metrics/cadvisor"),
            ("/metrics", "metrics"),
            ("/exec/a/b/c", "exec"),
            ("/runningpods/", "runningpods"),
            ("/execute", "other"),
            ("/", "other"),
        ] {
            assert_eq!(bucket(path), expect, "{path}");
        }
        assert_eq!(method("BREW"), "other");
    }
}
