use std::collections::BTreeSet;

use cri_spec::v1;
use runtime::detail::{Detail, DeviceIo, Limits, Memory, Pressure, Processes, Throttling};
use runtime::{
    ContainerMetadata, ContainerState, ContainerStats, ContainerStatus, ImageStatus,
    InterfaceStats, Origin, PodSandboxMetadata, PodSandboxStats, PodSandboxStatus, Resources,
    SandboxState,
};

use super::*;

fn time(second: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(second).unwrap()
}

fn a_sandbox() -> PodSandboxStatus {
    PodSandboxStatus {
        id: "s".into(),
        metadata: PodSandboxMetadata {
            name: "pod".into(),
            uid: "uid".into(),
            namespace: "ns".into(),
            attempt: 0,
        },
        state: SandboxState::Ready,
        created_at: time(5),
        ips: vec!["10.0.0.1".into(), "fd00::1".into()],
        namespaces: Default::default(),
        labels: Default::default(),
        annotations: Default::default(),
        runtime_handler: String::new(),
        origin: Origin::Cri,
    }
}

fn a_container() -> ContainerStatus {
    ContainerStatus {
        id: "c".into(),
        sandbox_id: "s".into(),
        metadata: ContainerMetadata {
            name: "main".into(),
            attempt: 2,
        },
        state: ContainerState::Exited,
        created_at: time(1),
        started_at: Some(time(2)),
        finished_at: None,
        exit_code: 3,
        signal: None,
        reason: "Error".into(),
        message: String::new(),
        image: "busybox".into(),
        image_id: "sha256:1".into(),
        image_ref: "busybox@sha256:2".into(),
        labels: Default::default(),
        annotations: Default::default(),
        log_path: "/logs/main/0.log".into(),
        pid: None,
        resources: Resources {
            memory_limit_bytes: Some(100),
            ..Default::default()
        },
        user: Some((1, 2, vec![3])),
        stop_signal: "SIGRTMIN+3".into(),
        mounts: Vec::new(),
        origin: Origin::Cri,
    }
}

#[test]
fn statuses_have_what_clients_insist_on() {
    let status = sandbox_status(&a_sandbox());
    assert_eq!(status.created_at, 5_000_000_000);
    let network = status.network.unwrap();
    assert_eq!(network.ip, "10.0.0.1");
    assert_eq!(network.additional_ips[0].ip, "fd00::1");

    let status = container_status(&a_container());
    assert_eq!(status.state(), v1::ContainerState::ContainerExited);
    assert_eq!((status.started_at, status.finished_at), (2_000_000_000, 0));
    assert_eq!(status.image_id, "sha256:1");
    assert_eq!(status.image_ref, "busybox@sha256:2");
    assert_eq!(status.stop_signal(), v1::Signal::Sigrtminplus3);
    let user = status.user.unwrap().linux.unwrap();
    assert_eq!(user.supplemental_groups, [2, 3]);
}

#[test]
fn every_signal_of_the_cri_comes_back() {
    for number in 1..=65 {
        let signal = v1::Signal::try_from(number).unwrap();
        let mut config = crate::from_cri::NodeFacts::default();
        config.selinux = false;
        let wanted = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata {
                name: "c".into(),
                attempt: 0,
            }),
            image: Some(v1::ImageSpec {
                image: "i".into(),
                ..Default::default()
            }),
            stop_signal: number,
            ..Default::default()
        };
        let made = crate::from_cri::container_config(Some(&wanted), config).unwrap();
        let status = ContainerStatus {
            stop_signal: made.stop_signal.unwrap(),
            ..a_container()
        };
        assert_eq!(container_status(&status).stop_signal(), signal);
    }
}

#[test]
fn an_image_that_names_nobody_is_roots() {
    let check = |uid: Option<u32>, name: Option<&str>, expect: (Option<i64>, &str)| {
        let image = image(&ImageStatus {
            uid,
            username: name.map(str::to_owned),
            ..Default::default()
        });
        let told = (image.uid.map(|uid| uid.value), image.username.as_str());
        assert_eq!(told, expect);
    };
    check(Some(7), None, (Some(7), ""));
    check(None, Some("www"), (None, "www"));
    check(None, None, (Some(0), ""));
}

#[test]
fn rates_need_two_looks() {
    let mut rates = Rates::default();
    let second = 1_000_000_000;
    assert_eq!(rates.observe("c", second, 0), None);
    // At once again: too short to tell.
    assert_eq!(rates.observe("c", second + 1, 50), None);
    assert_eq!(
        rates.observe("c", 3 * second, second as u64),
        Some(500_000_000)
    );
    // The counter began anew.
    assert_eq!(rates.observe("c", 4 * second, 5), None);
    rates.retain(|_| false);
    assert_eq!(rates.observe("c", 5 * second, 10), None);
}

fn usage() -> PodSandboxStats {
    PodSandboxStats {
        id: "s".into(),
        interfaces: vec![InterfaceStats {
            name: "eth0".into(),
            rx_bytes: 9,
            ..Default::default()
        }],
        process_count: 4,
        containers: vec![ContainerStats {
            id: "c".into(),
            sandbox_id: "s".into(),
            name: "main".into(),
            timestamp: time(7),
            memory_working_set_bytes: 30,
            ..Default::default()
        }],
    }
}

#[test]
fn a_sandboxs_usage_is_its_containers() {
    let (status, usage) = (a_container(), usage());
    let of = StatsOf {
        status: &status,
        stats: &usage.containers[0],
        nano_cores: Some(8),
        mountpoint: "/var",
    };
    let container = container_stats(&of);
    let memory = container.memory.clone().unwrap();
    assert_eq!(memory.available_bytes.unwrap().value, 70);
    let stats = sandbox_stats(&a_sandbox(), &usage, vec![container], 1);
    let linux = stats.linux.unwrap();
    assert_eq!(linux.cpu.unwrap().usage_nano_cores.unwrap().value, 8);
    assert_eq!(linux.memory.unwrap().working_set_bytes.unwrap().value, 30);
    assert_eq!(linux.process.unwrap().process_count.unwrap().value, 4);
    let network = linux.network.unwrap();
    assert_eq!(
        network.default_interface.unwrap().rx_bytes.unwrap().value,
        9
    );
}

/// Of a kernel that counts everything.
fn everything() -> Detail {
    let one = (Some(1), Some(2));
    Detail {
        cpu_user_nanoseconds: Some(1),
        cpu_system_nanoseconds: Some(1),
        throttling: Some(Throttling::default()),
        limits: Limits {
            cpu_shares: Some(2),
            cpu_quota_us: Some(1),
            cpu_period_us: Some(1),
            ..Default::default()
        },
        memory: Memory {
            cache: Some(1),
            kernel: Some(1),
            mapped_file: Some(1),
            swap: Some(1),
            fail_count: Some(1),
            max_usage: Some(1),
            active_file: Some(1),
            inactive_file: Some(1),
            page_faults: one,
            major_page_faults: one,
        },
        devices: [("/dev/vda".to_owned(), DeviceIo::default())].into(),
        oom_kills: Some(0),
        processes: Processes {
            threads: Some(1),
            open_files_limit: Some(1024),
            ..Default::default()
        },
        pressure: Some(Pressure::default()),
    }
}

#[test]
fn every_metric_has_a_descriptor_with_as_many_labels() {
    let described = descriptors();
    let (status, usage, detail) = (a_container(), usage(), everything());
    let of = |_: &str| Some((&status, &detail));
    let metrics = sandbox_metrics(&a_sandbox(), &usage, of, FsFacts::default(), 1);
    let all: Vec<_> = metrics
        .metrics
        .iter()
        .chain(&metrics.container_metrics[0].metrics)
        .collect();
    for metric in &all {
        let descriptor = described.iter().find(|d| d.name == metric.name);
        let labels = descriptor.map(|d| d.label_keys.len());
        assert_eq!(labels, Some(metric.label_values.len()), "{}", metric.name);
    }
    let told: BTreeSet<&str> = all.iter().map(|metric| metric.name.as_str()).collect();
    assert_eq!(told.len(), described.len());
}
