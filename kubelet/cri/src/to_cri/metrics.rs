//! Metrics of pods, by the names that the kubelet's `/metrics/cadvisor` has them by.
//!
//! One table says them all: a descriptor without a value, or the other way round, cannot be. A value that this kernel does not
//! count is left out, its descriptor is not. The CRI's values are whole numbers: seconds are cut.

use cri_spec::v1;
use cri_spec::v1::MetricType::{Counter, Gauge};
use runtime::detail::{Detail, DeviceIo};
use runtime::{ContainerStats, ContainerStatus, InterfaceStats, PodSandboxStats, PodSandboxStatus};

use super::stats::value;

const NANOSECONDS: u64 = 1_000_000_000;
const MICROSECONDS: u64 = 1_000_000;

/// The file system of writable layers.
#[derive(Clone, Copy, Debug, Default)]
pub struct FsFacts {
    pub capacity_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// What a container's metrics are read from.
struct Facts<'a> {
    status: &'a ContainerStatus,
    usage: &'a ContainerStats,
    detail: &'a Detail,
    fs: FsFacts,
}

/// Name, help, kind, value.
type Metric = (
    &'static str,
    &'static str,
    v1::MetricType,
    fn(&Facts<'_>) -> Option<u64>,
);

/// Of every metric. Upstream: cadvisor's labels of a container.
const LABELS: &[&str] = &["id", "name", "image", "namespace", "pod", "container"];

/// Periods are told only where a quota is set, as cadvisor does.
fn throttling(facts: &Facts<'_>) -> Option<runtime::detail::Throttling> {
    facts.detail.limits.cpu_quota_us?;
    facts.detail.throttling
}

fn stalled(facts: &Facts<'_>, of: fn(&runtime::detail::Pressure) -> u64) -> Option<u64> {
    Some(of(facts.detail.pressure.as_ref()?) / MICROSECONDS)
}

#[rustfmt::skip]
const CONTAINER: &[Metric] = &[
    ("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.", Counter, |f| Some(f.usage.cpu_usage_core_nanoseconds / NANOSECONDS)),
    ("container_cpu_user_seconds_total", "Cumulative user cpu time consumed in seconds.", Counter, |f| Some(f.detail.cpu_user_nanoseconds? / NANOSECONDS)),
    ("container_cpu_system_seconds_total", "Cumulative system cpu time consumed in seconds.", Counter, |f| Some(f.detail.cpu_system_nanoseconds? / NANOSECONDS)),
    ("container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", Counter, |f| Some(throttling(f)?.periods)),
    ("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", Counter, |f| Some(throttling(f)?.throttled_periods)),
    ("container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.", Counter, |f| Some(throttling(f)?.throttled_nanoseconds / NANOSECONDS)),
    ("container_memory_cache", "Number of bytes of page cache memory.", Gauge, |f| f.detail.memory.cache),
    ("container_memory_rss", "Size of RSS in bytes.", Gauge, |f| Some(f.usage.memory_rss_bytes)),
    ("container_memory_kernel_usage", "Size of kernel memory allocated in bytes.", Gauge, |f| f.detail.memory.kernel),
    ("container_memory_mapped_file", "Size of memory mapped files in bytes.", Gauge, |f| f.detail.memory.mapped_file),
    ("container_memory_swap", "Container swap usage in bytes.", Gauge, |f| f.detail.memory.swap),
    ("container_memory_failcnt", "Number of memory usage hits limits.", Counter, |f| f.detail.memory.fail_count),
    ("container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed.", Gauge, |f| Some(f.usage.memory_usage_bytes)),
    ("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes.", Gauge, |f| f.detail.memory.max_usage),
    ("container_memory_working_set_bytes", "Current working set in bytes.", Gauge, |f| Some(f.usage.memory_working_set_bytes)),
    ("container_processes", "Number of processes running inside the container.", Gauge, |f| Some(f.detail.processes.count)),
    ("container_file_descriptors", "Number of open file descriptors for the container.", Gauge, |f| Some(f.detail.processes.descriptors)),
    ("container_sockets", "Number of open sockets for the container.", Gauge, |f| Some(f.detail.processes.sockets)),
    ("container_threads_max", "Maximum number of threads allowed inside the container, infinity if value is zero.", Gauge, |f| Some(f.detail.processes.threads_max.unwrap_or(0))),
    ("container_threads", "Number of threads running inside the container.", Gauge, |f| f.detail.processes.threads),
    ("container_oom_events_total", "Count of out of memory events observed for the container.", Counter, |f| f.detail.oom_kills),
    ("container_pressure_cpu_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to CPU congestion.", Counter, |f| stalled(f, |p| p.cpu.1)),
    ("container_pressure_cpu_waiting_seconds_total", "Total time duration tasks in the container have waited due to CPU congestion.", Counter, |f| stalled(f, |p| p.cpu.0)),
    ("container_pressure_memory_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to memory congestion.", Counter, |f| stalled(f, |p| p.memory.1)),
    ("container_pressure_memory_waiting_seconds_total", "Total time duration tasks in the container have waited due to memory congestion.", Counter, |f| stalled(f, |p| p.memory.0)),
    ("container_pressure_io_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to IO congestion.", Counter, |f| stalled(f, |p| p.io.1)),
    ("container_pressure_io_waiting_seconds_total", "Total time duration tasks in the container have waited due to IO congestion.", Counter, |f| stalled(f, |p| p.io.0)),
    ("container_spec_cpu_period", "CPU period of the container.", Gauge, |f| f.detail.limits.cpu_period_us),
    ("container_spec_cpu_quota", "CPU quota of the container.", Gauge, |f| f.detail.limits.cpu_quota_us),
    ("container_spec_cpu_shares", "CPU share of the container.", Gauge, |f| f.detail.limits.cpu_shares),
    ("container_spec_memory_limit_bytes", "Memory limit for the container.", Gauge, |f| Some(f.detail.limits.memory_bytes.unwrap_or(0))),
    ("container_spec_memory_swap_limit_bytes", "Memory swap limit for the container.", Gauge, |f| Some(f.detail.limits.memory_and_swap_bytes.unwrap_or(0))),
    ("container_spec_memory_reservation_limit_bytes", "Memory reservation limit for the container.", Gauge, |f| Some(f.detail.limits.memory_reservation_bytes.unwrap_or(0))),
    ("container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", Gauge, |f| Some(f.usage.writable_layer_used_bytes)),
    ("container_fs_limit_bytes", "Number of bytes that can be consumed by the container on this filesystem.", Gauge, |f| Some(f.fs.capacity_bytes)),
    ("container_fs_inodes_total", "Number of Inodes.", Gauge, |f| Some(f.fs.inodes)),
    ("container_fs_inodes_free", "Number of available Inodes.", Gauge, |f| Some(f.fs.inodes_free)),
    ("container_start_time_seconds", "Start time of the container since unix epoch in seconds.", Gauge, |f| u64::try_from(f.status.started_at?.as_second()).ok()),
    ("container_last_seen", "Last time a container was seen by the exporter.", Gauge, |f| u64::try_from(f.usage.timestamp.as_second()).ok()),
];

/// Name, help, value, of each of several; with one more label, which.
type MetricOfEach<T> = (&'static str, &'static str, fn(&T) -> u64);

/// The label is the device.
#[rustfmt::skip]
const DEVICES: &[MetricOfEach<DeviceIo>] = &[
    ("container_fs_reads_bytes_total", "Cumulative count of bytes read.", |io| io.read_bytes),
    ("container_fs_reads_total", "Cumulative count of reads completed.", |io| io.reads),
    ("container_fs_writes_bytes_total", "Cumulative count of bytes written.", |io| io.written_bytes),
    ("container_fs_writes_total", "Cumulative count of writes completed.", |io| io.writes),
];

/// With the device, its numbers and the operation.
const BLKIO: (&str, &str) = (
    "container_blkio_device_usage_total",
    "Blkio device bytes usage.",
);

/// With the type of the fault, and whether it is the container's alone.
const FAILURES: (&str, &str) = (
    "container_memory_failures_total",
    "Cumulative count of memory allocation failures.",
);

/// With what is limited.
const ULIMITS: (&str, &str) = (
    "container_ulimits_soft",
    "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice.",
);

/// The label is the interface.
#[rustfmt::skip]
const INTERFACE: &[MetricOfEach<InterfaceStats>] = &[
    ("container_network_receive_bytes_total", "Cumulative count of bytes received.", |s| s.rx_bytes),
    ("container_network_receive_packets_total", "Cumulative count of packets received.", |s| s.rx_packets),
    ("container_network_receive_packets_dropped_total", "Cumulative count of packets dropped while receiving.", |s| s.rx_dropped),
    ("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving.", |s| s.rx_errors),
    ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted.", |s| s.tx_bytes),
    ("container_network_transmit_packets_total", "Cumulative count of packets transmitted.", |s| s.tx_packets),
    ("container_network_transmit_packets_dropped_total", "Cumulative count of packets dropped while transmitting.", |s| s.tx_dropped),
    ("container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting.", |s| s.tx_errors),
];

/// What [`sandbox_metrics`] tells.
pub fn descriptors() -> Vec<v1::MetricDescriptor> {
    let descriptor = |name: &str, help: &str, more: &[&str]| v1::MetricDescriptor {
        name: name.to_owned(),
        help: help.to_owned(),
        label_keys: LABELS
            .iter()
            .chain(more)
            .map(|key| (*key).to_owned())
            .collect(),
    };
    let containers = CONTAINER.iter().map(|m| descriptor(m.0, m.1, &[]));
    let devices = DEVICES.iter().map(|m| descriptor(m.0, m.1, &["device"]));
    let interfaces = INTERFACE
        .iter()
        .map(|m| descriptor(m.0, m.1, &["interface"]));
    containers
        .chain(devices)
        .chain(interfaces)
        .chain([
            descriptor(BLKIO.0, BLKIO.1, &["device", "major", "minor", "operation"]),
            descriptor(FAILURES.0, FAILURES.1, &["failure_type", "scope"]),
            descriptor(ULIMITS.0, ULIMITS.1, &["ulimit"]),
        ])
        .collect()
}

/// The labels that every metric of one thing has, and the time.
struct Labelled {
    labels: Vec<String>,
    timestamp: i64,
}

impl Labelled {
    fn metric(&self, name: &str, kind: v1::MetricType, more: &[&str], number: u64) -> v1::Metric {
        let more = more.iter().map(|label| (*label).to_owned());
        v1::Metric {
            name: name.to_owned(),
            timestamp: self.timestamp,
            metric_type: kind.into(),
            label_values: self.labels.iter().cloned().chain(more).collect(),
            value: value(number),
        }
    }
}

fn container_metrics(of: &Labelled, facts: &Facts<'_>) -> Vec<v1::Metric> {
    let mut metrics: Vec<v1::Metric> = CONTAINER
        .iter()
        .filter_map(|(name, _, kind, read)| Some(of.metric(name, *kind, &[], read(facts)?)))
        .collect();
    for (device, io) in &facts.detail.devices {
        for (name, _, read) in DEVICES {
            metrics.push(of.metric(name, Counter, &[device], read(io)));
        }
        let (major, minor) = (io.number.0.to_string(), io.number.1.to_string());
        for (operation, bytes) in [("Read", io.read_bytes), ("Write", io.written_bytes)] {
            let labels = [device.as_str(), &major, &minor, operation];
            metrics.push(of.metric(BLKIO.0, Counter, &labels, bytes));
        }
    }
    let memory = &facts.detail.memory;
    for (kind, (own, all)) in [
        ("pgfault", memory.page_faults),
        ("pgmajfault", memory.major_page_faults),
    ] {
        for (scope, count) in [("container", own), ("hierarchy", all)] {
            if let Some(count) = count {
                metrics.push(of.metric(FAILURES.0, Counter, &[kind, scope], count));
            }
        }
    }
    if let Some(files) = facts.detail.processes.open_files_limit {
        metrics.push(of.metric(ULIMITS.0, Gauge, &["max_open_files"], files));
    }
    metrics
}

/// `containers` are those of the sandbox, with what is counted of them.
pub fn sandbox_metrics<'a>(
    sandbox: &PodSandboxStatus,
    stats: &'a PodSandboxStats,
    containers: impl Fn(&str) -> Option<(&'a ContainerStatus, &'a Detail)>,
    fs: FsFacts,
    timestamp: i64,
) -> v1::PodSandboxMetrics {
    let labelled = |id: &str, image: &str, container: &str| {
        let pod = &sandbox.metadata;
        let name = if container.is_empty() { &pod.name } else { id };
        Labelled {
            labels: [id, name, image, &pod.namespace, &pod.name, container]
                .map(str::to_owned)
                .into(),
            timestamp,
        }
    };
    let of_pod = labelled(&sandbox.id, "", "");
    let metrics = stats
        .interfaces
        .iter()
        .flat_map(|interface| {
            let of_pod = &of_pod;
            INTERFACE.iter().map(move |(name, _, read)| {
                of_pod.metric(name, Counter, &[&interface.name], read(interface))
            })
        })
        .collect();
    let container_metrics = stats
        .containers
        .iter()
        .filter_map(|usage| {
            let (status, detail) = containers(&usage.id)?;
            let facts = Facts {
                status,
                usage,
                detail,
                fs,
            };
            let of = labelled(&usage.id, &status.image, &usage.name);
            Some(v1::ContainerMetrics {
                container_id: usage.id.clone(),
                metrics: container_metrics(&of, &facts),
            })
        })
        .collect();
    v1::PodSandboxMetrics {
        pod_sandbox_id: sandbox.id.clone(),
        metrics,
        container_metrics,
    }
}
