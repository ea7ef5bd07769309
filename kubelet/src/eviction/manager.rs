//! Watches the node's resources and evicts.
//!
//! Owns: observing the node, limits of local storage, reclaiming, and one eviction a round for what the node is short of.
//! Upstream: `pkg/kubelet/eviction/eviction_manager.go`, v1.36.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_helpers::quantity::{Amount, amount};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::local_storage;
use super::observe::{Observed, observe};
use super::rank::{Usage, rank};
use super::threshold::{Observation, Signal, Threshold, parse_threshold_config, thresholds_met};
use super::tracker::Tracker;
use super::usage::{Parts, PodUsage, Wanted, measure};
use crate::disk_usage::DiskUsages;
use crate::events::{Type, reason};
use crate::kubelet::Kubelet;
use crate::metrics;
use crate::pod;
use crate::pod_workers::Update;
use crate::status::generate::ForcedFailure;

/// Upstream: `evictionMonitoringPeriod`.
const PERIOD: Duration = Duration::from_secs(10);

/// How long an evicted pod may take to go before the next round. Upstream: `podCleanupTimeout`, `podCleanupPollFreq`.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(30);
const CLEANUP_POLL: Duration = Duration::from_secs(1);
/// Grace of a pod that must go at once. Upstream: `immediateEvictionGracePeriodSeconds`.
const IMMEDIATE_GRACE_SECONDS: i64 = 1;

/// Where the signals come from.
#[async_trait]
pub trait Observer: Send + Sync {
    async fn observe(&self, kubelet: &Kubelet) -> Observed;
}

/// The machine's own.
pub struct OfTheMachine;

#[async_trait]
impl Observer for OfTheMachine {
    async fn observe(&self, kubelet: &Kubelet) -> Observed {
        observe(kubelet).await
    }
}

struct Manager {
    kubelet: Arc<Kubelet>,
    observer: Arc<dyn Observer>,
    thresholds: Vec<Threshold>,
    tracker: Tracker,
    counts: Arc<DiskUsages>,
}

/// Looks every ten seconds until `shutdown`; `changed` wakes the node's status.
pub async fn run(
    observer: Arc<dyn Observer>,
    kubelet: Arc<Kubelet>,
    changed: Arc<Notify>,
    shutdown: CancellationToken,
) {
    let config = &kubelet.config;
    let thresholds = parse_threshold_config(
        config
            .enforce_node_allocatable()
            .iter()
            .any(|k| k == "pods"),
        &config.eviction_hard(),
        &config.eviction_soft,
        &config.eviction_soft_grace_period,
        &config.eviction_minimum_reclaim,
    );
    if thresholds.is_empty() && !config.local_storage_capacity_isolation {
        return shutdown.cancelled().await;
    }
    let mut manager = Manager {
        kubelet: kubelet.clone(),
        observer,
        thresholds,
        tracker: Tracker::default(),
        counts: Arc::default(),
    };
    let mut ticker = tokio::time::interval(PERIOD);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticker.tick() => {}
        }
        let evicted = manager.synchronize(&changed).await;
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = manager.wait_for_cleanup(&evicted) => {}
        }
    }
}

impl Manager {
    /// One round; the pods evicted in it.
    async fn synchronize(&mut self, changed: &Notify) -> Vec<Arc<Pod>> {
        let seen = self.observer.observe(&self.kubelet).await;
        let period = self.kubelet.config.eviction_pressure_transition_period.0;
        let now = self.kubelet.clock.monotonic();
        let round = self
            .tracker
            .round(&self.thresholds, &seen.signals, now, period);
        if **self.kubelet.node.pressure.load() != round.conditions {
            self.kubelet.node.pressure.store(Arc::new(round.conditions));
            changed.notify_one();
        }
        if self.kubelet.config.local_storage_capacity_isolation {
            let evicted = self.local_storage_eviction(seen.dedicated_image_fs).await;
            if !evicted.is_empty() {
                return evicted;
            }
        }
        let Some(threshold) = round.due.first() else {
            return vec![];
        };
        self.reclaim(threshold, &seen).await
    }

    /// Evicts every pod that passed a limit of its own.
    async fn local_storage_eviction(&self, dedicated_image_fs: bool) -> Vec<Arc<Pod>> {
        let limited: Vec<(Arc<Pod>, Wanted)> = self
            .candidates()
            .into_iter()
            .filter_map(|pod| local_storage::wanted(&pod).map(|wanted| (pod, wanted)))
            .collect();
        if limited.is_empty() {
            return vec![];
        }
        let wanted = Wanted {
            runtime: limited.iter().any(|(_, wanted)| wanted.runtime),
            disks: true,
        };
        let pods = limited.into_iter().map(|(pod, _)| pod).collect();
        let measured = measure(&self.kubelet, pods, wanted, &self.counts).await;
        let mut evicted = vec![];
        for (pod, usage) in measured {
            if let Some(found) = local_storage::violation(&pod, &usage, dedicated_image_fs)
                && self.evict(
                    &pod,
                    IMMEDIATE_GRACE_SECONDS,
                    found.message,
                    found.signal,
                    false,
                )
            {
                evicted.push(pod);
            }
        }
        evicted
    }

    /// Active pods that are not on their way out already.
    fn candidates(&self) -> Vec<Arc<Pod>> {
        let mut pods = self.kubelet.active_pods();
        pods.retain(|pod| !self.kubelet.workers.is_termination_requested(pod::uid(pod)));
        pods
    }

    async fn reclaim(&mut self, threshold: &Threshold, seen: &Observed) -> Vec<Arc<Pod>> {
        let signal = threshold.signal;
        tracing::warn!(
            signal = signal.as_str(),
            "eviction manager: attempting to reclaim"
        );
        self.kubelet.recorder.node(
            Type::Warning,
            "EvictionThresholdMet",
            format!("Attempting to reclaim {}", signal.resource()),
        );
        let node_fs = matches!(signal, Signal::NodeFsAvailable | Signal::NodeFsInodesFree);
        // A disk of the images' own gains the node's nothing.
        if signal.node_condition() == "DiskPressure" && !(seen.dedicated_image_fs && node_fs) {
            // Whatever is short, bytes or inodes: what ended and every image nobody uses goes, as upstream's.
            self.kubelet.delete_all_unused_containers().await;
            if let Err(error) = self.kubelet.image_gc.delete_unused_images().await {
                tracing::warn!(%error, "eviction manager: cannot remove images");
            }
            let after = self.observer.observe(&self.kubelet).await;
            if thresholds_met(&self.thresholds, &after.signals, true).is_empty() {
                tracing::info!(
                    "eviction manager: able to reduce resource pressure without evicting pods"
                );
                return vec![];
            }
        }
        let wanted = Wanted {
            runtime: true,
            disks: signal.node_condition() == "DiskPressure",
        };
        let measured = measure(&self.kubelet, self.candidates(), wanted, &self.counts).await;
        let parts = Parts::behind(signal, seen.dedicated_image_fs);
        let usage = measured.iter().map(|(pod, usage)| Usage {
            pod: pod.clone(),
            used: used(signal, usage, parts),
        });
        for victim in rank(usage.collect(), signal) {
            let of = measured
                .iter()
                .find(|(pod, _)| Arc::ptr_eq(pod, &victim.pod));
            let of = of.map(|(_, usage)| usage);
            let grace = self.grace(threshold, &victim.pod);
            let message = message(threshold, &seen.signals, &victim.pod, of);
            if self.evict(&victim.pod, grace, message, signal.as_str(), true) {
                return vec![victim.pod];
            }
        }
        tracing::error!("eviction manager: there is no pod to evict");
        vec![]
    }

    fn grace(&self, threshold: &Threshold, pod: &Pod) -> i64 {
        if threshold.is_hard() {
            return IMMEDIATE_GRACE_SECONDS;
        }
        let most = i64::from(self.kubelet.config.eviction_max_pod_grace_period);
        let own = pod
            .spec
            .as_ref()
            .and_then(|s| s.termination_grace_period_seconds);
        own.map_or(most, |own| own.min(most))
    }

    /// Returns whether the pod may be evicted at all.
    ///
    /// `disrupted`: the pod gets the condition `DisruptionTarget` with this message. What goes beyond its own limit of storage is not disrupted, it fails: a Job counts it.
    fn evict(
        &self,
        pod: &Arc<Pod>,
        grace: i64,
        message: String,
        signal: &str,
        disrupted: bool,
    ) -> bool {
        if pod::is_critical(pod) {
            tracing::error!(pod = %pod::format(pod), "eviction manager: cannot evict a critical pod");
            return false;
        }
        metrics::EVICTIONS.with_label_values(&[signal]).inc();
        self.kubelet
            .recorder
            .pod(pod, Type::Warning, reason::EVICTED, message.clone());
        tracing::info!(pod = %pod::format(pod), message, "eviction manager: evicting pod");
        let forced = ForcedFailure {
            reason: "Evicted".to_owned(),
            disruption: disrupted.then(|| message.clone()),
            message,
            spares_success: false,
        };
        let kill = Update::Kill {
            pod: pod.clone(),
            grace_period_seconds: Some(grace),
            forced: Some(forced),
        };
        self.kubelet.workers.update_pod(pod::uid(pod), kill);
        true
    }

    /// What evicted pods held must be free before more of them go.
    async fn wait_for_cleanup(&self, evicted: &[Arc<Pod>]) {
        let gone = |pod: &Arc<Pod>| {
            let work = self.kubelet.workers.status(pod::uid(pod));
            work.is_none_or(|work| work.finished)
        };
        let all_gone = async {
            while !evicted.iter().all(gone) {
                tokio::time::sleep(CLEANUP_POLL).await;
            }
        };
        if tokio::time::timeout(CLEANUP_TIMEOUT, all_gone)
            .await
            .is_err()
        {
            tracing::info!("eviction manager: timed out waiting for pods to be cleaned up");
        }
    }
}

fn used(signal: Signal, usage: &PodUsage, parts: Parts) -> u64 {
    match signal {
        Signal::MemoryAvailable | Signal::AllocatableMemoryAvailable => usage.memory_bytes(),
        Signal::PidAvailable => usage.processes,
        Signal::NodeFsAvailable | Signal::ImageFsAvailable | Signal::ContainerFsAvailable => {
            usage.disk(parts).bytes
        }
        Signal::NodeFsInodesFree | Signal::ImageFsInodesFree | Signal::ContainerFsInodesFree => {
            usage.disk(parts).inodes
        }
    }
}

/// Upstream: `evictionMessage`.
fn message(
    threshold: &Threshold,
    observations: &BTreeMap<Signal, Observation>,
    pod: &Pod,
    usage: Option<&PodUsage>,
) -> String {
    let signal = threshold.signal;
    let resource = signal.resource();
    let quantity = |n: u64| match resource {
        "inodes" | "pids" => n.to_string(),
        _ => bytes(n),
    };
    let mut message = format!("The node was low on resource: {resource}. ");
    if let Some(seen) = observations.get(&signal) {
        message.push_str(&format!(
            "Threshold quantity: {}, available: {}. ",
            quantity(threshold.value.resolve(seen.capacity)),
            quantity(seen.available)
        ));
    }
    if !matches!(resource, "memory" | "ephemeral-storage") {
        return message;
    }
    for container in usage.iter().flat_map(|usage| &usage.containers) {
        let mut specs = pod::containers(pod).iter().chain(pod::init_containers(pod));
        let Some(spec) = specs.find(|spec| spec.name == container.name) else {
            continue;
        };
        let requests = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
        let request = requests
            .and_then(|r| r.get(resource))
            .map_or(Amount::ZERO, amount);
        let used = match resource {
            "memory" => container.memory_bytes,
            _ => container.rootfs.bytes + container.logs.bytes,
        };
        if i128::from(used) > i128::from(request.value()) {
            message.push_str(&format!(
                "Container {} was using {}, request is {request}, has larger consumption of {resource}. ",
                container.name,
                bytes(used)
            ));
        }
    }
    message
}

/// As upstream writes an amount of bytes: in the largest binary unit that divides it.
fn bytes(n: u64) -> String {
    let units = ["Ki", "Mi", "Gi", "Ti", "Pi"];
    let (mut n, mut unit) = (n, "");
    for next in units {
        if n == 0 || n % 1024 != 0 {
            break;
        }
        (n, unit) = (n / 1024, next);
    }
    format!("{n}{unit}")
}

#[cfg(test)]
mod tests;
