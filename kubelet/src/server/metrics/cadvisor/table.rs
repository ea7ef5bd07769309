//! The metrics of a cgroup, a line each.

use super::{Detail, DeviceIo, Page, Row, Snapshot};

/// Nanoseconds in a second.
const NANOSECONDS: f64 = 1e9;
/// Microseconds in a second.
const MICROSECONDS: f64 = 1e6;

/// Name, kind, help, value.
type Metric = (
    &'static str,
    &'static str,
    &'static str,
    fn(&Row<'_>) -> Option<f64>,
);

fn detail(row: &Row<'_>, value: impl FnOnce(&Detail) -> Option<u64>) -> Option<f64> {
    Some(value(row.detail?)? as f64)
}

fn seconds(row: &Row<'_>, value: impl FnOnce(&Detail) -> Option<u64>) -> Option<f64> {
    Some(detail(row, value)? / NANOSECONDS)
}

fn stalled(
    row: &Row<'_>,
    value: impl FnOnce(&super::super::super::stats::Pressure) -> u64,
) -> Option<f64> {
    Some(value(row.detail?.pressure.as_ref()?) as f64 / MICROSECONDS)
}

#[rustfmt::skip]
const CPU: &[Metric] = &[
    ("container_cpu_user_seconds_total", "counter", "Cumulative user cpu time consumed in seconds.", |r| seconds(r, |d| d.cpu_user_nanoseconds)),
    ("container_cpu_system_seconds_total", "counter", "Cumulative system cpu time consumed in seconds.", |r| seconds(r, |d| d.cpu_system_nanoseconds)),
    ("container_cpu_cfs_periods_total", "counter", "Number of elapsed enforcement period intervals.", |r| detail(r, |d| Some(limited(d)?.periods))),
    ("container_cpu_cfs_throttled_periods_total", "counter", "Number of throttled period intervals.", |r| detail(r, |d| Some(limited(d)?.throttled_periods))),
    ("container_cpu_cfs_throttled_seconds_total", "counter", "Total time duration the container has been throttled.", |r| seconds(r, |d| Some(limited(d)?.throttled_nanoseconds))),
    ("container_cpu_cfs_burst_periods_total", "counter", "Number of periods when burst occurs.", |r| detail(r, |d| Some(limited(d)?.burst_periods))),
    ("container_cpu_cfs_burst_seconds_total", "counter", "Total time duration the container has been bursted.", |r| seconds(r, |d| Some(limited(d)?.burst_nanoseconds))),
];

/// Periods are told only where a quota is set, as cadvisor does.
fn limited(detail: &Detail) -> Option<super::super::super::stats::Throttling> {
    detail.limits.cpu_quota_us?;
    detail.throttling
}

#[rustfmt::skip]
const MEMORY: &[Metric] = &[
    ("container_memory_cache", "gauge", "Number of bytes of page cache memory.", |r| detail(r, |d| d.memory.cache)),
    ("container_memory_rss", "gauge", "Size of RSS in bytes.", |r| Some(r.usage.rss_bytes? as f64)),
    ("container_memory_kernel_usage", "gauge", "Size of kernel memory allocated in bytes.", |r| detail(r, |d| d.memory.kernel)),
    ("container_memory_mapped_file", "gauge", "Size of memory mapped files in bytes.", |r| detail(r, |d| d.memory.mapped_file)),
    ("container_memory_swap", "gauge", "Container swap usage in bytes.", |r| detail(r, |d| d.memory.swap)),
    ("container_memory_failcnt", "counter", "Number of memory usage hits limits", |r| detail(r, |d| d.memory.fail_count)),
    ("container_memory_usage_bytes", "gauge", "Current memory usage in bytes, including all memory regardless of when it was accessed", |r| Some(r.usage.memory_bytes? as f64)),
    ("container_memory_max_usage_bytes", "gauge", "Maximum memory usage recorded in bytes", |r| detail(r, |d| d.memory.max_usage)),
    ("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", |r| Some(r.usage.working_set_bytes? as f64)),
    ("container_memory_total_active_file_bytes", "gauge", "Current total active file in bytes.", |r| detail(r, |d| d.memory.active_file)),
    ("container_memory_total_inactive_file_bytes", "gauge", "Current total inactive file in bytes.", |r| detail(r, |d| d.memory.inactive_file)),
];

#[rustfmt::skip]
const PROCESSES: &[Metric] = &[
    ("container_processes", "gauge", "Number of processes running inside the container.", |r| detail(r, |d| Some(d.processes.count))),
    ("container_file_descriptors", "gauge", "Number of open file descriptors for the container.", |r| detail(r, |d| Some(d.processes.descriptors))),
    ("container_sockets", "gauge", "Number of open sockets for the container.", |r| detail(r, |d| Some(d.processes.sockets))),
    ("container_threads_max", "gauge", "Maximum number of threads allowed inside the container, infinity if value is zero", |r| detail(r, |d| Some(d.processes.threads_max.unwrap_or(0)))),
    ("container_threads", "gauge", "Number of threads running inside the container", |r| detail(r, |d| d.processes.threads)),
    ("container_oom_events_total", "counter", "Count of out of memory events observed for the container", |r| detail(r, |d| d.oom_kills)),
];

#[rustfmt::skip]
const PRESSURE: &[Metric] = &[
    ("container_pressure_cpu_stalled_seconds_total", "counter", "Total time duration no tasks in the container could make progress due to CPU congestion.", |r| stalled(r, |p| p.cpu.1)),
    ("container_pressure_cpu_waiting_seconds_total", "counter", "Total time duration tasks in the container have waited due to CPU congestion.", |r| stalled(r, |p| p.cpu.0)),
    ("container_pressure_memory_stalled_seconds_total", "counter", "Total time duration no tasks in the container could make progress due to memory congestion.", |r| stalled(r, |p| p.memory.1)),
    ("container_pressure_memory_waiting_seconds_total", "counter", "Total time duration tasks in the container have waited due to memory congestion.", |r| stalled(r, |p| p.memory.0)),
    ("container_pressure_io_stalled_seconds_total", "counter", "Total time duration no tasks in the container could make progress due to IO congestion.", |r| stalled(r, |p| p.io.1)),
    ("container_pressure_io_waiting_seconds_total", "counter", "Total time duration tasks in the container have waited due to IO congestion.", |r| stalled(r, |p| p.io.0)),
];

#[rustfmt::skip]
const SPEC: &[Metric] = &[
    ("container_spec_cpu_period", "gauge", "CPU period of the container.", |r| detail(r, |d| d.limits.cpu_period_us)),
    ("container_spec_cpu_quota", "gauge", "CPU quota of the container.", |r| detail(r, |d| d.limits.cpu_quota_us)),
    ("container_spec_cpu_shares", "gauge", "CPU share of the container.", |r| detail(r, |d| d.limits.cpu_shares)),
    ("container_spec_memory_limit_bytes", "gauge", "Memory limit for the container.", |r| detail(r, |d| Some(d.limits.memory_bytes.unwrap_or(0)))),
    ("container_spec_memory_swap_limit_bytes", "gauge", "Memory swap limit for the container.", |r| detail(r, |d| Some(d.limits.memory_and_swap_bytes.unwrap_or(0)))),
    ("container_spec_memory_reservation_limit_bytes", "gauge", "Memory reservation limit for the container.", |r| detail(r, |d| Some(d.limits.memory_reservation_bytes.unwrap_or(0)))),
];

/// Of block devices.
type DeviceMetric = (&'static str, &'static str, fn(&DeviceIo) -> u64);

#[rustfmt::skip]
const DEVICES: &[DeviceMetric] = &[
    ("container_fs_reads_bytes_total", "Cumulative count of bytes read", |io| io.read_bytes),
    ("container_fs_reads_total", "Cumulative count of reads completed", |io| io.reads),
    ("container_fs_writes_bytes_total", "Cumulative count of bytes written", |io| io.written_bytes),
    ("container_fs_writes_total", "Cumulative count of writes completed", |io| io.writes),
];

/// Renders them all.
pub(super) fn render(page: &mut Page, snapshot: &Snapshot, rows: &[Row<'_>]) {
    let time = Some(snapshot.time);
    let mut family = page.family(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed in seconds.",
    );
    for row in rows {
        if let Some(nanoseconds) = row.usage.cpu_nanoseconds {
            family.sample(
                &row.labels(&[("cpu", "total")]),
                nanoseconds as f64 / NANOSECONDS,
                time,
            );
        }
    }
    for metrics in [CPU, MEMORY, PROCESSES, PRESSURE] {
        plain(page, rows, metrics, time);
    }
    // Limits have no time of reading, as upstream's.
    plain(page, rows, SPEC, None);
    faults(page, snapshot, rows);
    devices(page, snapshot, rows);
    file_systems(page, snapshot, rows);
    limits_of_processes(page, snapshot, rows);
    lives(page, snapshot, rows);
}

fn plain(page: &mut Page, rows: &[Row<'_>], metrics: &[Metric], time: Option<jiff::Timestamp>) {
    for (name, kind, help, value) in metrics {
        let mut family = page.family(name, kind, help);
        for row in rows {
            if let Some(value) = value(row) {
                family.sample(&row.labels(&[]), value, time);
            }
        }
    }
}

fn faults(page: &mut Page, snapshot: &Snapshot, rows: &[Row<'_>]) {
    let mut family = page.family(
        "container_memory_failures_total",
        "counter",
        "Cumulative count of memory allocation failures.",
    );
    for row in rows {
        let Some(detail) = row.detail else { continue };
        let memory = &detail.memory;
        for (kind, scope, value) in [
            ("pgfault", "container", memory.page_faults.0),
            ("pgmajfault", "container", memory.major_page_faults.0),
            ("pgfault", "hierarchy", memory.page_faults.1),
            ("pgmajfault", "hierarchy", memory.major_page_faults.1),
        ] {
            if let Some(value) = value {
                let labels = row.labels(&[("failure_type", kind), ("scope", scope)]);
                family.sample(&labels, value as f64, Some(snapshot.time));
            }
        }
    }
}

fn devices(page: &mut Page, snapshot: &Snapshot, rows: &[Row<'_>]) {
    for (name, help, value) in DEVICES {
        let mut family = page.family(name, "counter", help);
        for row in rows {
            for (device, io) in row.detail.iter().flat_map(|detail| &detail.devices) {
                let labels = row.labels(&[("device", device)]);
                family.sample(&labels, value(io) as f64, Some(snapshot.time));
            }
        }
    }
    let mut family = page.family(
        "container_blkio_device_usage_total",
        "counter",
        "Blkio Device bytes usage",
    );
    for row in rows {
        for (device, io) in row.detail.iter().flat_map(|detail| &detail.devices) {
            for (operation, bytes) in [("Read", io.read_bytes), ("Write", io.written_bytes)] {
                let (major, minor) = io.number;
                let labels = [
                    ("device", device.as_str()),
                    ("major", &major.to_string()),
                    ("minor", &minor.to_string()),
                    ("operation", operation),
                ];
                family.sample(&row.labels(&labels), bytes as f64, Some(snapshot.time));
            }
        }
    }
}

/// What lies on disk: of the node its file system, of a container its writable layer on that of the images.
fn file_systems(page: &mut Page, snapshot: &Snapshot, rows: &[Row<'_>]) {
    let Some((_, stats)) = &snapshot.image_fs else {
        return;
    };
    let device = snapshot.image_device.as_str();
    type Value = fn(&Of<'_>) -> u64;
    struct Of<'a> {
        fs: &'a crate::cm::machine::FsStats,
        used_bytes: u64,
    }
    let metrics: [(&'static str, &str, Value); 4] = [
        (
            "container_fs_inodes_free",
            "Number of available Inodes",
            |of| of.fs.inodes_free,
        ),
        ("container_fs_inodes_total", "Number of Inodes", |of| {
            of.fs.inodes
        }),
        (
            "container_fs_limit_bytes",
            "Number of bytes that can be consumed by the container on this filesystem.",
            |of| of.fs.capacity_bytes,
        ),
        (
            "container_fs_usage_bytes",
            "Number of bytes that are consumed by the container on this filesystem.",
            |of| of.used_bytes,
        ),
    ];
    for (name, help, value) in metrics {
        let mut family = page.family(name, "gauge", help);
        for row in rows {
            let used_bytes = match (row.pod, row.container) {
                (None, None) if row.id == "/" => {
                    stats.capacity_bytes.saturating_sub(stats.available_bytes)
                }
                (_, Some(container)) => container.stats.writable_layer_used_bytes,
                _ => continue,
            };
            let of = Of {
                fs: stats,
                used_bytes,
            };
            let labels = row.labels(&[("device", device)]);
            family.sample(&labels, value(&of) as f64, Some(snapshot.time));
        }
    }
}

fn limits_of_processes(page: &mut Page, snapshot: &Snapshot, rows: &[Row<'_>]) {
    let mut family = page.family(
        "container_ulimits_soft",
        "gauge",
        "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice",
    );
    for row in rows.iter().filter(|row| row.container.is_some()) {
        let Some(limit) = row
            .detail
            .and_then(|detail| detail.processes.open_files_limit)
        else {
            continue;
        };
        let labels = row.labels(&[("ulimit", "max_open_files")]);
        family.sample(&labels, limit as f64, Some(snapshot.time));
    }
}

/// When it began, and when it was last seen.
fn lives(page: &mut Page, snapshot: &Snapshot, rows: &[Row<'_>]) {
    let mut family = page.family(
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds.",
    );
    for row in rows {
        let started = match (row.pod, row.container) {
            (_, Some(container)) => {
                let status = &container.status;
                status.started_at.unwrap_or(status.created_at).as_second()
            }
            (Some(pod), None) => match pod.started_at {
                Some(time) => time.as_second(),
                None => continue,
            },
            (None, None) => snapshot.boot_time.as_second(),
        };
        family.sample(&row.labels(&[]), started as f64, None);
    }
    let mut family = page.family(
        "container_last_seen",
        "gauge",
        "Last time a container was seen by the exporter",
    );
    for row in rows {
        family.sample(
            &row.labels(&[]),
            snapshot.time.as_second() as f64,
            Some(snapshot.time),
        );
    }
}
