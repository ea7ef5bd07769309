//! `/metrics/resource`. Upstream: `pkg/kubelet/metrics/collectors/resource_metrics.go`.

use jiff::Timestamp;

use super::super::stats::{ContainerSnapshot, PodSnapshot, Snapshot};
use super::exposition::Page;
use crate::pod;

const NANOSECONDS: f64 = 1e9;

/// Renders the page. `None`: the numbers could not be read, and the page says so.
pub(super) fn render(snapshot: Option<&Snapshot>) -> String {
    let mut page = Page::default();
    if let Some(snapshot) = snapshot {
        containers(&mut page, snapshot);
        node_and_pods(&mut page, snapshot);
    }
    let failed = if snapshot.is_some() { 0.0 } else { 1.0 };
    page.family(
        "resource_scrape_error",
        "gauge",
        "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
    )
    .sample(&[], failed, None);
    page.finish()
}

fn containers(page: &mut Page, snapshot: &Snapshot) {
    type Value = fn(&ContainerSnapshot) -> (f64, Option<Timestamp>);
    let metrics: [(&'static str, &str, &str, Value); 3] = [
        (
            "container_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
            |container| {
                let stats = &container.stats;
                (
                    stats.cpu_usage_core_nanoseconds as f64 / NANOSECONDS,
                    Some(stats.timestamp),
                )
            },
        ),
        (
            "container_memory_working_set_bytes",
            "gauge",
            "[STABLE] Current working set of the container in bytes",
            |container| {
                let stats = &container.stats;
                (stats.memory_working_set_bytes as f64, Some(stats.timestamp))
            },
        ),
        (
            "container_start_time_seconds",
            "gauge",
            "[STABLE] Start time of the container since unix epoch in seconds",
            |container| {
                let started = container
                    .status
                    .started_at
                    .unwrap_or(container.status.created_at);
                (started.as_millisecond() as f64 / 1e3, None)
            },
        ),
    ];
    for (name, kind, help, value) in metrics {
        let mut family = page.family(name, kind, help);
        for pod in &snapshot.pods {
            for container in &pod.containers {
                let (value, time) = value(container);
                let labels = [
                    ("container", container.status.metadata.name.as_str()),
                    ("namespace", pod::namespace(&pod.pod)),
                    ("pod", pod::name(&pod.pod)),
                ];
                family.sample(&labels, value, time);
            }
        }
    }
}

fn node_and_pods(page: &mut Page, snapshot: &Snapshot) {
    let time = Some(snapshot.time);
    let seconds = |nanoseconds: u64| nanoseconds as f64 / NANOSECONDS;
    let node = &snapshot.node;
    for (name, kind, help, value) in [
        (
            "node_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
            node.cpu_nanoseconds.map(seconds),
        ),
        (
            "node_memory_working_set_bytes",
            "gauge",
            "[STABLE] Current working set of the node in bytes",
            node.working_set_bytes.map(|bytes| bytes as f64),
        ),
        (
            "node_swap_usage_bytes",
            "gauge",
            "[ALPHA] Current swap usage of the node in bytes. Reported only on non-windows systems",
            node.swap_bytes.map(|bytes| bytes as f64),
        ),
    ] {
        if let Some(value) = value {
            page.family(name, kind, help).sample(&[], value, time);
        }
    }
    type Value = fn(&PodSnapshot) -> Option<f64>;
    let metrics: [(&'static str, &str, &str, Value); 3] = [
        (
            "pod_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
            |pod| Some(pod.usage?.cpu_nanoseconds? as f64 / NANOSECONDS),
        ),
        (
            "pod_memory_working_set_bytes",
            "gauge",
            "[STABLE] Current working set of the pod in bytes",
            |pod| Some(pod.usage?.working_set_bytes? as f64),
        ),
        (
            "pod_swap_usage_bytes",
            "gauge",
            "[ALPHA] Current amount of the pod swap usage in bytes. Reported only on non-windows systems",
            |pod| Some(pod.usage?.swap_bytes? as f64),
        ),
    ];
    for (name, kind, help, value) in metrics {
        let mut family = page.family(name, kind, help);
        for pod in &snapshot.pods {
            let labels = [
                ("namespace", pod::namespace(&pod.pod)),
                ("pod", pod::name(&pod.pod)),
            ];
            if let Some(value) = value(pod) {
                family.sample(&labels, value, time);
            }
        }
    }
}
