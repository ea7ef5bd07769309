//! The page of a node with one pod of one container.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use runtime::api::{
    ContainerMetadata, ContainerState, ContainerStats, ContainerStatus, FsUsage, InterfaceStats,
    PodSandboxStats,
};

use super::super::super::stats::{Detail, Pressure, Throttling};
use super::*;
use crate::cm::machine::FsStats;

fn container() -> ContainerSnapshot {
    ContainerSnapshot {
        status: ContainerStatus {
            id: "c1".into(),
            sandbox_id: "s1".into(),
            metadata: ContainerMetadata {
                name: "main".into(),
                attempt: 0,
            },
            state: ContainerState::Running,
            created_at: Timestamp::UNIX_EPOCH,
            started_at: Some(Timestamp::UNIX_EPOCH),
            finished_at: None,
            exit_code: 0,
            signal: None,
            reason: String::new(),
            message: String::new(),
            image: "busybox".into(),
            image_id: String::new(),
            image_ref: String::new(),
            labels: Default::default(),
            annotations: Default::default(),
            log_path: Default::default(),
            pid: Some(1),
            resources: Default::default(),
            user: None,
            stop_signal: String::new(),
            mounts: Vec::new(),
            origin: Default::default(),
        },
        stats: ContainerStats {
            id: "c1".into(),
            sandbox_id: "s1".into(),
            name: "main".into(),
            timestamp: Timestamp::UNIX_EPOCH,
            cpu_usage_core_nanoseconds: 2_500_000_000,
            memory_usage_bytes: 30,
            memory_working_set_bytes: 20,
            memory_rss_bytes: 10,
            page_faults: 1,
            major_page_faults: 0,
            writable_layer_used_bytes: 4096,
            writable_layer_inodes_used: 1,
        },
        logs_bytes: 0,
        logs_inodes: 0,
    }
}

fn detail() -> Detail {
    let mut detail = Detail {
        cpu_user_nanoseconds: Some(1_000_000_000),
        cpu_system_nanoseconds: Some(1_000_000_000),
        throttling: Some(Throttling {
            periods: 10,
            throttled_periods: 6,
            ..Throttling::default()
        }),
        devices: BTreeMap::from([(
            "/dev/vda".to_owned(),
            DeviceIo {
                number: (254, 0),
                read_bytes: 4096,
                ..DeviceIo::default()
            },
        )]),
        oom_kills: Some(1),
        pressure: Some(Pressure::default()),
        ..Detail::default()
    };
    detail.limits.cpu_quota_us = Some(50_000);
    detail.limits.cpu_period_us = Some(100_000);
    detail.limits.cpu_shares = Some(512);
    let memory = &mut detail.memory;
    for value in [
        &mut memory.cache,
        &mut memory.kernel,
        &mut memory.mapped_file,
        &mut memory.swap,
        &mut memory.fail_count,
        &mut memory.max_usage,
        &mut memory.active_file,
        &mut memory.inactive_file,
        &mut memory.page_faults.0,
        &mut memory.page_faults.1,
        &mut memory.major_page_faults.0,
        &mut memory.major_page_faults.1,
    ] {
        *value = Some(1);
    }
    detail.processes.threads = Some(2);
    detail.processes.open_files_limit = Some(1024);
    detail
}

fn page() -> String {
    let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "web", "namespace": "prod", "uid": "u1"},
        "spec": {"containers": [{"name": "main"}]},
    }))
    .unwrap();
    let interface = InterfaceStats {
        name: "eth0".into(),
        rx_packets: 7,
        ..InterfaceStats::default()
    };
    let snapshot = Snapshot {
        time: Timestamp::UNIX_EPOCH,
        node_name: "node-1".into(),
        boot_time: Timestamp::UNIX_EPOCH,
        node: Usage::default(),
        memory_capacity_bytes: 1 << 30,
        interfaces: vec![interface.clone()],
        all_pods: None,
        kubelet: None,
        root_fs: FsStats::default(),
        image_fs: Some((
            FsUsage {
                mountpoint: "/".into(),
                used_bytes: 0,
                inodes_used: 0,
            },
            FsStats {
                capacity_bytes: 100,
                available_bytes: 40,
                inodes: 50,
                inodes_free: 20,
            },
        )),
        image_device: "/dev/vda".into(),
        classes: vec![("/kubepods".into(), Usage::default())],
        processes: (None, None),
        pods: vec![PodSnapshot {
            pod: Arc::new(pod),
            started_at: Some(Timestamp::UNIX_EPOCH),
            cgroup: "/kubepods/podu1".into(),
            usage: Some(Usage::default()),
            sandbox: Some(PodSandboxStats {
                id: "s1".into(),
                interfaces: vec![interface],
                ..PodSandboxStats::default()
            }),
            containers: vec![container()],
            volumes: Vec::new(),
            hosts_bytes: 0,
        }],
    };
    let details = ["/", "/kubepods", "/kubepods/podu1", "/kubepods/podu1/c1"]
        .map(|id| (id.to_owned(), detail()));
    render(&snapshot, &HashMap::from(details))
}

/// Names of upstream's page on a node with PSI and a pod with a quota. Source: the collectors that
/// `pkg/kubelet/server/server.go` of v1.36 turns on (CPU, memory, disk and its use, network, processes, OOM, pressure).
const UPSTREAM: &[&str] = &[
    "cadvisor_version_info",
    "container_blkio_device_usage_total",
    "container_cpu_cfs_burst_periods_total",
    "container_cpu_cfs_burst_seconds_total",
    "container_cpu_cfs_periods_total",
    "container_cpu_cfs_throttled_periods_total",
    "container_cpu_cfs_throttled_seconds_total",
    "container_cpu_system_seconds_total",
    "container_cpu_usage_seconds_total",
    "container_cpu_user_seconds_total",
    "container_file_descriptors",
    "container_fs_inodes_free",
    "container_fs_inodes_total",
    "container_fs_limit_bytes",
    "container_fs_reads_bytes_total",
    "container_fs_reads_total",
    "container_fs_usage_bytes",
    "container_fs_writes_bytes_total",
    "container_fs_writes_total",
    "container_last_seen",
    "container_memory_cache",
    "container_memory_failcnt",
    "container_memory_failures_total",
    "container_memory_kernel_usage",
    "container_memory_mapped_file",
    "container_memory_max_usage_bytes",
    "container_memory_rss",
    "container_memory_swap",
    "container_memory_total_active_file_bytes",
    "container_memory_total_inactive_file_bytes",
    "container_memory_usage_bytes",
    "container_memory_working_set_bytes",
    "container_network_receive_bytes_total",
    "container_network_receive_errors_total",
    "container_network_receive_packets_dropped_total",
    "container_network_receive_packets_total",
    "container_network_transmit_bytes_total",
    "container_network_transmit_errors_total",
    "container_network_transmit_packets_dropped_total",
    "container_network_transmit_packets_total",
    "container_oom_events_total",
    "container_pressure_cpu_stalled_seconds_total",
    "container_pressure_cpu_waiting_seconds_total",
    "container_pressure_io_stalled_seconds_total",
    "container_pressure_io_waiting_seconds_total",
    "container_pressure_memory_stalled_seconds_total",
    "container_pressure_memory_waiting_seconds_total",
    "container_processes",
    "container_scrape_error",
    "container_sockets",
    "container_spec_cpu_period",
    "container_spec_cpu_quota",
    "container_spec_cpu_shares",
    "container_spec_memory_limit_bytes",
    "container_spec_memory_reservation_limit_bytes",
    "container_spec_memory_swap_limit_bytes",
    "container_start_time_seconds",
    "container_threads",
    "container_threads_max",
    "container_ulimits_soft",
    "machine_cpu_cores",
    "machine_cpu_physical_cores",
    "machine_cpu_sockets",
    "machine_memory_bytes",
    "machine_swap_bytes",
];

#[test]
fn every_name_of_upstream_has_a_sample() {
    let page = page();
    let told: BTreeSet<&str> = page
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    let missing: Vec<_> = UPSTREAM
        .iter()
        .filter(|name| !told.contains(**name))
        .collect();
    assert!(missing.is_empty(), "missing: {missing:?}");
    let more: Vec<_> = told
        .iter()
        .filter(|name| !UPSTREAM.contains(name))
        .collect();
    assert!(more.is_empty(), "not upstream's: {more:?}");
}

#[test]
fn labels_and_values() {
    let page = page();
    let check = |line: &str| assert!(page.contains(line), "{line}\nis not in\n{page}");
    let labels = r#"container="main",id="/kubepods/podu1/c1",image="busybox",name="c1",namespace="prod",pod="web""#;
    check(&format!(
        "container_cpu_cfs_throttled_periods_total{{{labels}}} 6 0"
    ));
    check(&format!("container_oom_events_total{{{labels}}} 1 0"));
    check(&format!("container_spec_cpu_quota{{{labels}}} 50000\n"));
    check(
        r#"container_cpu_usage_seconds_total{container="main",cpu="total",id="/kubepods/podu1/c1",image="busybox",name="c1",namespace="prod",pod="web"} 2.5 0"#,
    );
    check(
        r#"container_memory_failures_total{container="main",failure_type="pgmajfault",id="/kubepods/podu1/c1",image="busybox",name="c1",namespace="prod",pod="web",scope="hierarchy"} 1 0"#,
    );
    check(
        r#"container_network_receive_packets_total{container="",id="/kubepods/podu1",image="",interface="eth0",name="",namespace="prod",pod="web"} 7 0"#,
    );
    check(
        r#"container_fs_inodes_total{container="main",device="/dev/vda",id="/kubepods/podu1/c1",image="busybox",name="c1",namespace="prod",pod="web"} 50 0"#,
    );
    check(
        r#"container_fs_usage_bytes{container="",device="/dev/vda",id="/",image="",name="",namespace="",pod=""} 60 0"#,
    );
    check(
        r#"container_blkio_device_usage_total{container="",device="/dev/vda",id="/",image="",major="254",minor="0",name="",namespace="",operation="Read",pod=""} 4096 0"#,
    );
}
