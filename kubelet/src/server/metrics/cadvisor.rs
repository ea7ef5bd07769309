//! `/metrics/cadvisor`: what dashboards know by cadvisor's names.

use super::super::stats::{ContainerSnapshot, PodSnapshot, Snapshot};
use super::exposition::Page;
use crate::pod;

/// The node, a pod, or a container of a pod.
type Of<'a> = Option<(&'a PodSnapshot, Option<&'a ContainerSnapshot>)>;
type Labels<'a> = [(&'a str, &'a str); 6];

/// Renders the page.
pub(super) fn render(snapshot: &Snapshot) -> String {
    let mut page = Page::default();
    page.family(
        "cadvisor_version_info",
        "gauge",
        "A metric with a constant '1' value labeled by kernel version, OS version, docker version, cadvisor version & cadvisor revision.",
    )
    .sample(&[("cadvisorVersion", ""), ("kernelVersion", &kernel())], 1.0, None);
    rows(&mut page, snapshot);
    containers(&mut page, snapshot);
    networks(&mut page, snapshot);
    let machine = [
        ("machine_cpu_cores", "Number of logical CPU cores.", cpus()),
        (
            "machine_memory_bytes",
            "Amount of memory installed on the machine.",
            snapshot.memory_capacity_bytes as f64,
        ),
    ];
    for (name, help, value) in machine {
        page.family(name, "gauge", help).sample(&[], value, None);
    }
    page.finish()
}

fn kernel() -> String {
    let name = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    name.unwrap_or_default()
}

fn cpus() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64)
}

/// CPU and memory of the node, of pods and of containers: the same metric with fewer labels filled in.
fn rows(page: &mut Page, snapshot: &Snapshot) {
    struct Row {
        cpu_seconds: Option<f64>,
        usage: Option<u64>,
        working_set: Option<u64>,
        rss: Option<u64>,
    }
    let mut rows: Vec<(Of<'_>, Row)> = Vec::new();
    let of_usage = |usage: &super::super::stats::Usage| Row {
        cpu_seconds: usage.cpu_nanoseconds.map(|n| n as f64 / 1e9),
        usage: usage.memory_bytes,
        working_set: usage.working_set_bytes,
        rss: usage.rss_bytes,
    };
    rows.push((None, of_usage(&snapshot.node)));
    for pod in &snapshot.pods {
        if let Some(usage) = &pod.usage {
            rows.push((Some((pod, None)), of_usage(usage)));
        }
        for container in &pod.containers {
            let stats = &container.stats;
            let row = Row {
                cpu_seconds: Some(stats.cpu_usage_core_nanoseconds as f64 / 1e9),
                usage: Some(stats.memory_usage_bytes),
                working_set: Some(stats.memory_working_set_bytes),
                rss: Some(stats.memory_rss_bytes),
            };
            rows.push((Some((pod, Some(container))), row));
        }
    }
    let time = Some(snapshot.time);
    let mut family = page.family(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed in seconds.",
    );
    for (of, row) in &rows {
        let Some(value) = row.cpu_seconds else {
            continue;
        };
        let id = id(*of);
        let [container, rest @ ..] = labels(*of, &id);
        let mut all = vec![container, ("cpu", "total")];
        all.extend(rest);
        family.sample(&all, value, time);
    }
    type Value = fn(&Row) -> Option<u64>;
    let metrics: [(&'static str, &str, Value); 3] = [
        (
            "container_memory_usage_bytes",
            "Current memory usage in bytes, including all memory regardless of when it was accessed",
            |row| row.usage,
        ),
        (
            "container_memory_working_set_bytes",
            "Current working set in bytes.",
            |row| row.working_set,
        ),
        ("container_memory_rss", "Size of RSS in bytes.", |row| {
            row.rss
        }),
    ];
    for (name, help, value) in metrics {
        let mut family = page.family(name, "gauge", help);
        for (of, row) in &rows {
            let Some(value) = value(row) else { continue };
            let id = id(*of);
            family.sample(&labels(*of, &id), value as f64, time);
        }
    }
}

fn id(of: Of<'_>) -> String {
    match of {
        None => "/".to_owned(),
        Some((pod, None)) => pod.cgroup.clone(),
        Some((pod, Some(container))) => format!("{}/{}", pod.cgroup, container.status.id),
    }
}

fn labels<'a>(of: Of<'a>, id: &'a str) -> Labels<'a> {
    let (pod, container) = (
        of.map(|(pod, _)| pod),
        of.and_then(|(_, container)| container),
    );
    [
        (
            "container",
            container.map_or("", |c| c.status.metadata.name.as_str()),
        ),
        ("id", id),
        ("image", container.map_or("", |c| c.status.image.as_str())),
        ("name", container.map_or("", |c| c.status.id.as_str())),
        ("namespace", pod.map_or("", |p| pod::namespace(&p.pod))),
        ("pod", pod.map_or("", |p| pod::name(&p.pod))),
    ]
}

/// What only containers have.
fn containers(page: &mut Page, snapshot: &Snapshot) {
    type Value = fn(&ContainerSnapshot) -> Option<f64>;
    let metrics: [(&'static str, &str, &str, Value); 9] = [
        (
            "container_fs_usage_bytes",
            "gauge",
            "Number of bytes that are consumed by the container on this filesystem.",
            |c| Some(c.stats.writable_layer_used_bytes as f64),
        ),
        (
            "container_fs_inodes_total",
            "gauge",
            "Number of Inodes",
            |c| Some(c.stats.writable_layer_inodes_used as f64),
        ),
        (
            "container_memory_failures_total",
            "counter",
            "Cumulative count of memory allocation failures.",
            |c| Some(c.stats.major_page_faults as f64),
        ),
        (
            "container_start_time_seconds",
            "gauge",
            "Start time of the container since unix epoch in seconds.",
            |c| {
                let started = c.status.started_at.unwrap_or(c.status.created_at);
                Some(started.as_second() as f64)
            },
        ),
        (
            "container_last_seen",
            "gauge",
            "Last time a container was seen by the exporter",
            |c| Some(c.stats.timestamp.as_second() as f64),
        ),
        (
            "container_spec_cpu_period",
            "gauge",
            "CPU period of the container.",
            |c| Some(c.status.resources.cpu_period_us? as f64),
        ),
        (
            "container_spec_cpu_quota",
            "gauge",
            "CPU quota of the container.",
            |c| Some(c.status.resources.cpu_quota_us.filter(|quota| *quota > 0)? as f64),
        ),
        (
            "container_spec_cpu_shares",
            "gauge",
            "CPU share of the container.",
            |c| Some(c.status.resources.cpu_shares? as f64),
        ),
        (
            "container_spec_memory_limit_bytes",
            "gauge",
            "Memory limit for the container.",
            |c| Some(c.status.resources.memory_limit_bytes.unwrap_or(0).max(0) as f64),
        ),
    ];
    for (name, kind, help, value) in metrics {
        let mut family = page.family(name, kind, help);
        for pod in &snapshot.pods {
            for container in &pod.containers {
                let Some(value) = value(container) else {
                    continue;
                };
                let of = Some((pod, Some(container)));
                family.sample(&labels(of, &id(of)), value, Some(snapshot.time));
            }
        }
    }
}

/// A pod's network is its sandbox's, so it is told once a pod.
fn networks(page: &mut Page, snapshot: &Snapshot) {
    type Value = fn(&runtime::api::PodSandboxStats) -> u64;
    let metrics: [(&'static str, &str, Value); 4] = [
        (
            "container_network_receive_bytes_total",
            "Cumulative count of bytes received",
            |s| s.rx_bytes,
        ),
        (
            "container_network_receive_errors_total",
            "Cumulative count of errors encountered while receiving",
            |s| s.rx_errors,
        ),
        (
            "container_network_transmit_bytes_total",
            "Cumulative count of bytes transmitted",
            |s| s.tx_bytes,
        ),
        (
            "container_network_transmit_errors_total",
            "Cumulative count of errors encountered while transmitting",
            |s| s.tx_errors,
        ),
    ];
    for (name, help, value) in metrics {
        let mut family = page.family(name, "counter", help);
        for pod in &snapshot.pods {
            let Some(sandbox) = &pod.sandbox else {
                continue;
            };
            if pod::is_host_network(&pod.pod) {
                continue;
            }
            let of = Some((pod, None));
            let id = id(of);
            let [container, id, image, name, namespace, pod_name] = labels(of, &id);
            let all = [
                container,
                id,
                image,
                ("interface", "eth0"),
                name,
                namespace,
                pod_name,
            ];
            family.sample(&all, value(sandbox) as f64, Some(snapshot.time));
        }
    }
    let mut family = page.family(
        "container_processes",
        "gauge",
        "Number of processes running inside the container.",
    );
    for pod in &snapshot.pods {
        let Some(sandbox) = &pod.sandbox else {
            continue;
        };
        let of = Some((pod, None));
        family.sample(
            &labels(of, &id(of)),
            sandbox.process_count as f64,
            Some(snapshot.time),
        );
    }
}
