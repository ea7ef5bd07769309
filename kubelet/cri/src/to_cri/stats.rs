//! Usage of containers and sandboxes.

use std::collections::HashMap;

use cri_spec::v1;
use runtime::{ContainerStats, ContainerStatus, InterfaceStats, PodSandboxStats, PodSandboxStatus};

use super::nanoseconds;

/// What is remembered of counters, so that a rate can be told at the next look.
#[derive(Debug, Default)]
pub struct Rates {
    last: HashMap<String, (i64, u64)>,
}

/// A counter that is looked at again sooner gives the rate since the look before.
const SHORTEST: i64 = 100_000_000;

impl Rates {
    /// Nanocores since the last look; `None` at the first one, or at once after another.
    pub fn observe(&mut self, key: &str, time: i64, nanoseconds: u64) -> Option<u64> {
        let Some((before, counted)) = self.last.get(key).copied() else {
            self.last.insert(key.to_owned(), (time, nanoseconds));
            return None;
        };
        let elapsed = time - before;
        if elapsed < SHORTEST {
            return None;
        }
        self.last.insert(key.to_owned(), (time, nanoseconds));
        let used = nanoseconds.checked_sub(counted)?;
        let rate = u128::from(used) * 1_000_000_000 / u128::try_from(elapsed).ok()?;
        u64::try_from(rate).ok()
    }

    /// Forgets what is not there any more.
    pub fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.last.retain(|key, _| is_there(key));
    }
}

/// What stats are of.
pub struct StatsOf<'a> {
    pub status: &'a ContainerStatus,
    pub stats: &'a ContainerStats,
    pub nano_cores: Option<u64>,
    /// Where writable layers lie.
    pub mountpoint: &'a str,
}

pub(super) fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

pub fn container_stats(of: &StatsOf<'_>) -> v1::ContainerStats {
    let (status, stats) = (of.status, of.stats);
    let timestamp = nanoseconds(stats.timestamp);
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: stats.id.clone(),
            metadata: Some(v1::ContainerMetadata {
                name: status.metadata.name.clone(),
                attempt: status.metadata.attempt,
            }),
            labels: status.labels.clone().into_iter().collect(),
            annotations: status.annotations.clone().into_iter().collect(),
        }),
        cpu: Some(v1::CpuUsage {
            timestamp,
            usage_core_nano_seconds: value(stats.cpu_usage_core_nanoseconds),
            usage_nano_cores: of.nano_cores.and_then(value),
            psi: None,
        }),
        memory: Some(v1::MemoryUsage {
            timestamp,
            working_set_bytes: value(stats.memory_working_set_bytes),
            available_bytes: available(status, stats).and_then(value),
            usage_bytes: value(stats.memory_usage_bytes),
            rss_bytes: value(stats.memory_rss_bytes),
            page_faults: value(stats.page_faults),
            major_page_faults: value(stats.major_page_faults),
            psi: None,
        }),
        writable_layer: Some(v1::FilesystemUsage {
            timestamp,
            fs_id: Some(v1::FilesystemIdentifier {
                mountpoint: of.mountpoint.to_owned(),
            }),
            used_bytes: value(stats.writable_layer_used_bytes),
            inodes_used: value(stats.writable_layer_inodes_used),
        }),
        // Not measured: absent, not zero.
        swap: None,
        io: None,
    }
}

/// What is left below the limit; `None` without one.
fn available(status: &ContainerStatus, stats: &ContainerStats) -> Option<u64> {
    let limit = u64::try_from(status.resources.memory_limit_bytes?).ok()?;
    Some(limit.saturating_sub(stats.memory_working_set_bytes))
}

/// `containers` are those of the sandbox.
pub fn sandbox_stats(
    status: &PodSandboxStatus,
    stats: &PodSandboxStats,
    containers: Vec<v1::ContainerStats>,
    timestamp: i64,
) -> v1::PodSandboxStats {
    let sum = |of: fn(&ContainerStats) -> u64| stats.containers.iter().map(of).sum();
    let rates: Vec<u64> = containers
        .iter()
        .filter_map(|c| c.cpu.as_ref()?.usage_nano_cores.as_ref())
        .map(|cores| cores.value)
        .collect();
    let interfaces: Vec<_> = stats.interfaces.iter().map(interface).collect();
    v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            id: status.id.clone(),
            metadata: super::sandbox(status).metadata,
            labels: status.labels.clone().into_iter().collect(),
            annotations: status.annotations.clone().into_iter().collect(),
        }),
        linux: Some(v1::LinuxPodSandboxStats {
            cpu: Some(v1::CpuUsage {
                timestamp,
                usage_core_nano_seconds: value(sum(|c| c.cpu_usage_core_nanoseconds)),
                usage_nano_cores: (!containers.is_empty() && rates.len() == containers.len())
                    .then(|| rates.iter().sum())
                    .and_then(value),
                psi: None,
            }),
            memory: Some(v1::MemoryUsage {
                timestamp,
                working_set_bytes: value(sum(|c| c.memory_working_set_bytes)),
                available_bytes: None,
                usage_bytes: value(sum(|c| c.memory_usage_bytes)),
                rss_bytes: value(sum(|c| c.memory_rss_bytes)),
                page_faults: value(sum(|c| c.page_faults)),
                major_page_faults: value(sum(|c| c.major_page_faults)),
                psi: None,
            }),
            network: (!interfaces.is_empty()).then(|| v1::NetworkUsage {
                timestamp,
                default_interface: interfaces.first().cloned(),
                interfaces: interfaces.iter().skip(1).cloned().collect(),
            }),
            process: Some(v1::ProcessUsage {
                timestamp,
                process_count: value(stats.process_count),
            }),
            containers,
            io: None,
        }),
        windows: None,
    }
}

fn interface(stats: &InterfaceStats) -> v1::NetworkInterfaceUsage {
    v1::NetworkInterfaceUsage {
        name: stats.name.clone(),
        rx_bytes: value(stats.rx_bytes),
        rx_errors: value(stats.rx_errors),
        tx_bytes: value(stats.tx_bytes),
        tx_errors: value(stats.tx_errors),
    }
}
