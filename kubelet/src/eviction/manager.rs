//! Watches the node's resources and evicts.
//!
//! Owns: observing, the grace of soft thresholds, node conditions with their transition period, and one eviction a round.
//! Upstream: `pkg/kubelet/eviction/eviction_manager.go`, v1.36.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::rank::{Usage, rank};
use super::threshold::{Observation, Signal, Threshold, parse_threshold_config, thresholds_met};
use crate::cm::machine::{fs_stats, meminfo};
use crate::events::{Type, reason};
use crate::kubelet::Kubelet;
use crate::metrics;
use crate::pod;
use crate::pod_workers::Update;
use crate::status::generate::ForcedFailure;

/// Upstream: `evictionMonitoringPeriod`.
const PERIOD: Duration = Duration::from_secs(10);

struct Manager {
    kubelet: Arc<Kubelet>,
    thresholds: Vec<Threshold>,
    first_met: BTreeMap<Signal, Instant>,
    /// When a condition was last seen.
    last_seen: BTreeMap<&'static str, Instant>,
}

/// Looks every ten seconds until `shutdown`; `changed` wakes the node's status.
pub async fn run(kubelet: Arc<Kubelet>, changed: Arc<Notify>, shutdown: CancellationToken) {
    let config = &kubelet.config;
    let thresholds = parse_threshold_config(
        &config.eviction_hard(),
        &config.eviction_soft,
        &config.eviction_soft_grace_period,
        &config.eviction_minimum_reclaim,
    );
    if thresholds.is_empty() {
        return;
    }
    let mut manager = Manager {
        kubelet: kubelet.clone(),
        thresholds,
        first_met: BTreeMap::new(),
        last_seen: BTreeMap::new(),
    };
    let mut ticker = tokio::time::interval(PERIOD);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticker.tick() => {}
        }
        manager.synchronize(&changed).await;
    }
}

impl Manager {
    async fn synchronize(&mut self, changed: &Notify) {
        let observations = observe(&self.kubelet).await;
        let now = Instant::now();
        let met = thresholds_met(&self.thresholds, &observations, false);
        self.first_met
            .retain(|signal, _| met.iter().any(|t| t.signal == *signal));
        for threshold in &met {
            self.first_met.entry(threshold.signal).or_insert(now);
        }
        for threshold in &met {
            self.last_seen
                .insert(threshold.signal.node_condition(), now);
        }
        let period = self.kubelet.config.eviction_pressure_transition_period.0;
        self.last_seen
            .retain(|_, at| now.duration_since(*at) < period);
        let mut conditions: Vec<&'static str> = self.last_seen.keys().copied().collect();
        conditions.sort_unstable();
        if **self.kubelet.node.pressure.load() != conditions {
            self.kubelet.node.pressure.store(Arc::new(conditions));
            changed.notify_one();
        }
        let mut due: Vec<Threshold> = met
            .into_iter()
            .filter(|t| {
                t.is_hard()
                    || self
                        .first_met
                        .get(&t.signal)
                        .is_some_and(|at| now.duration_since(*at) >= t.grace_period)
            })
            .collect();
        // Memory first: it kills fastest.
        due.sort_by_key(|t| (t.signal != Signal::MemoryAvailable, t.signal));
        let Some(threshold) = due.into_iter().next() else {
            return;
        };
        let Some(seen) = observations.get(&threshold.signal).copied() else {
            return;
        };
        self.reclaim(&threshold, seen).await;
    }

    async fn reclaim(&mut self, threshold: &Threshold, seen: Observation) {
        tracing::warn!(
            signal = threshold.signal.as_str(),
            available = seen.available,
            "eviction manager: attempting to reclaim"
        );
        if threshold.signal.node_condition() == "DiskPressure" {
            let wanted = threshold
                .value
                .resolve(seen.capacity)
                .saturating_sub(seen.available);
            match self.kubelet.image_gc.delete_unused_images().await {
                Ok(freed) if freed >= wanted => return,
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "eviction manager: cannot remove images"),
            }
        }
        let usage = usage(&self.kubelet, threshold.signal).await;
        let Some(victim) = rank(usage, threshold.signal).into_iter().next() else {
            tracing::error!("eviction manager: there is no pod to evict");
            return;
        };
        self.evict(threshold, seen, &victim);
    }

    fn evict(&self, threshold: &Threshold, seen: Observation, victim: &Usage) {
        let resource = threshold.signal.resource();
        let quantity = match threshold.signal {
            Signal::MemoryAvailable
            | Signal::NodeFsAvailable
            | Signal::ImageFsAvailable
            | Signal::ContainerFsAvailable => |n: u64| format!("{}Ki", n / 1024),
            _ => |n: u64| n.to_string(),
        };
        let message = format!(
            "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
            quantity(threshold.value.resolve(seen.capacity)),
            quantity(seen.available)
        );
        let config = &self.kubelet.config;
        let grace = if threshold.is_hard() {
            1
        } else {
            i64::from(config.eviction_max_pod_grace_period)
        };
        metrics::EVICTIONS
            .with_label_values(&[threshold.signal.as_str()])
            .inc();
        self.kubelet
            .recorder
            .pod(&victim.pod, Type::Warning, reason::EVICTED, message.clone());
        tracing::info!(pod = %pod::format(&victim.pod), message, "eviction manager: evicting pod");
        let forced = ForcedFailure {
            reason: "Evicted".to_owned(),
            message,
            disruption: Some("TerminationByKubelet".to_owned()),
        };
        let kill = Update::Kill {
            pod: victim.pod.clone(),
            grace_period_seconds: Some(grace),
            forced: Some(forced),
        };
        self.kubelet.workers.update_pod(pod::uid(&victim.pod), kill);
    }
}

fn disk(path: &Path, bytes: Signal, inodes: Signal, out: &mut BTreeMap<Signal, Observation>) {
    let Ok(stats) = fs_stats(path) else { return };
    out.insert(
        bytes,
        Observation {
            available: stats.available_bytes,
            capacity: stats.capacity_bytes,
        },
    );
    if stats.inodes > 0 {
        out.insert(
            inodes,
            Observation {
                available: stats.inodes_free,
                capacity: stats.inodes,
            },
        );
    }
}

async fn observe(kubelet: &Kubelet) -> BTreeMap<Signal, Observation> {
    let mut out = BTreeMap::new();
    if let (Some(available), Some(capacity)) = (meminfo("MemAvailable"), meminfo("MemTotal")) {
        out.insert(
            Signal::MemoryAvailable,
            Observation {
                available,
                capacity,
            },
        );
    }
    disk(
        kubelet.paths.root(),
        Signal::NodeFsAvailable,
        Signal::NodeFsInodesFree,
        &mut out,
    );
    if let Ok(info) = kubelet.runtime.runtime().image_fs_info().await {
        disk(
            &info.mountpoint,
            Signal::ImageFsAvailable,
            Signal::ImageFsInodesFree,
            &mut out,
        );
        disk(
            &info.mountpoint,
            Signal::ContainerFsAvailable,
            Signal::ContainerFsInodesFree,
            &mut out,
        );
    }
    if let Some((available, capacity)) = pids() {
        out.insert(
            Signal::PidAvailable,
            Observation {
                available,
                capacity,
            },
        );
    }
    out
}

fn pids() -> Option<(u64, u64)> {
    let max: u64 = std::fs::read_to_string("/proc/sys/kernel/pid_max")
        .ok()?
        .trim()
        .parse()
        .ok()?;
    // `0.1 0.2 0.3 running/total last`
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    let total: u64 = load
        .split_whitespace()
        .nth(3)?
        .split('/')
        .nth(1)?
        .parse()
        .ok()?;
    Some((max.saturating_sub(total), max))
}

/// What each active pod uses of the resource behind the signal.
async fn usage(kubelet: &Kubelet, signal: Signal) -> Vec<Usage> {
    let stats = kubelet
        .runtime
        .runtime()
        .list_pod_sandbox_stats()
        .await
        .unwrap_or_default();
    let sandboxes = kubelet.runtime.pods().await.unwrap_or_default();
    let mut out = vec![];
    for pod in kubelet.active_pods() {
        let uid = pod::uid(&pod);
        if kubelet.workers.is_termination_requested(uid) {
            continue;
        }
        let ids: Vec<&str> = sandboxes
            .get(uid)
            .into_iter()
            .flat_map(|p| p.sandboxes.iter().map(|s| s.id.as_str()))
            .collect();
        let containers = stats
            .iter()
            .filter(|s| ids.contains(&s.id.as_str()))
            .flat_map(|s| &s.containers);
        let mut used: u64 = match signal {
            Signal::MemoryAvailable => containers.map(|c| c.memory_working_set_bytes).sum(),
            Signal::PidAvailable => stats
                .iter()
                .filter(|s| ids.contains(&s.id.as_str()))
                .map(|s| s.process_count)
                .sum(),
            Signal::NodeFsInodesFree
            | Signal::ImageFsInodesFree
            | Signal::ContainerFsInodesFree => {
                containers.map(|c| c.writable_layer_inodes_used).sum()
            }
            _ => containers.map(|c| c.writable_layer_used_bytes).sum(),
        };
        if signal == Signal::NodeFsAvailable
            && let Ok(volumes) = kubelet.volumes.usage(uid).await
        {
            used += volumes.values().map(|v| v.bytes).sum::<u64>();
        }
        out.push(Usage { pod, used });
    }
    out
}
