//! Metrics of claims and volumes, and how long it takes to provision, bind and delete.
//!
//! Upstream: persistentvolume/metrics/metrics.go, pkg/volume/util/metrics.go, v1.36.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use component_base::clock::Clock;
use component_base::metrics::{RegisterError, Registry, make};
use component_helpers::persistent_volume::{
    claim_attributes_class, claim_class, claim_phase, volume_mode, volume_phase,
};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, HistogramVec, IntCounter, IntCounterVec};

use super::cache::Cache;
use super::provisioning::{NOT_AVAILABLE, plugin_name};
use crate::storage_operations::buckets;

component_base::metrics! {
    /// What is counted as it happens.
    pub struct Metrics {
        end_to_end_seconds: HistogramVec = make::histograms(
            "volume_operation_total_seconds",
            "Storage operation end to end duration in seconds",
            &["plugin_name", "operation_name"],
            buckets(),
        ),
        errors_deprecated: IntCounterVec = make::counters(
            "volume_operation_total_errors",
            "Total volume operation errors",
            &["plugin_name", "operation_name"],
        ),
        errors: IntCounterVec = make::counters(
            "volume_operation_errors_total",
            "Total volume operation errors",
            &["plugin_name", "operation_name"],
        ),
        retroactive: IntCounter = make::counter(
            "retroactive_storageclass_total",
            "Total number of retroactive StorageClass assignments to persistent volume claim",
        ),
        retroactive_errors: IntCounter = make::counter(
            "retroactive_storageclass_errors_total",
            "Total number of failed retroactive StorageClass assignments to persistent volume claim",
        ),
    }
}

impl Metrics {
    /// Counts an assignment of the default class.
    pub fn record_class_assignment(&self, success: bool) {
        self.retroactive.inc();
        if !success {
            self.retroactive_errors.inc();
        }
    }
}

/// Since when claims are being provisioned (by key) and volumes deleted (by name).
pub struct OperationTimes {
    clock: Clock,
    metrics: Arc<Metrics>,
    started: Mutex<HashMap<String, Started>>,
}

struct Started {
    plugin: String,
    operation: &'static str,
    at: Duration,
}

impl OperationTimes {
    /// Nothing has started.
    pub fn new(clock: Clock, metrics: Arc<Metrics>) -> Self {
        Self {
            clock,
            metrics,
            started: Mutex::default(),
        }
    }

    /// Notes that something starts, unless it has before.
    pub fn start(&self, key: &str, plugin: &str, operation: &'static str) {
        let at = self.clock.monotonic();
        let mut started = self.lock();
        if !started.contains_key(key) {
            let plugin = plugin.to_owned();
            let entry = Started {
                plugin,
                operation,
                at,
            };
            started.insert(key.to_owned(), entry);
        }
    }

    /// Forgets what will not end.
    pub fn forget(&self, key: &str) {
        self.lock().remove(key);
    }

    /// Whether something goes on.
    #[cfg(test)]
    pub fn has(&self, key: &str) -> bool {
        self.lock().contains_key(key)
    }

    /// Counts an error of what goes on; it goes on.
    pub fn failed(&self, key: &str) {
        if let Some(started) = self.lock().get(key) {
            let plugin = match started.plugin.as_str() {
                "" => NOT_AVAILABLE,
                plugin => plugin,
            };
            for metric in [&self.metrics.errors, &self.metrics.errors_deprecated] {
                metric.with_label_values(&[plugin, started.operation]).inc();
            }
        }
    }

    /// Counts how long it took, if it had started.
    pub fn done(&self, key: &str) {
        if let Some(started) = self.lock().remove(key) {
            let took = self.clock.monotonic().saturating_sub(started.at);
            self.metrics
                .end_to_end_seconds
                .with_label_values(&[started.plugin.as_str(), started.operation])
                .observe(took.as_secs_f64());
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Started>> {
        self.started
            .lock()
            .expect("no panic while the lock is held")
    }
}

/// Counts what `cache` holds at each scrape, until it is gone.
///
/// # Errors
/// The registry counts another already.
pub fn watch(registry: &Registry, cache: &Arc<Cache>) -> Result<(), RegisterError> {
    registry.register(Box::new(Counts::new(cache)?))
}

struct Counts {
    cache: Weak<Cache>,
    total: GaugeVec,
    bound_volumes: GaugeVec,
    unbound_volumes: GaugeVec,
    bound_claims: GaugeVec,
    unbound_claims: GaugeVec,
}

impl Counts {
    fn new(cache: &Arc<Cache>) -> Result<Self, RegisterError> {
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            make::gauges(&format!("pv_collector_{name}"), help, labels)
        };
        let of_claim = ["namespace", "storage_class", "volume_attributes_class"];
        Ok(Self {
            cache: Arc::downgrade(cache),
            total: gauge(
                "total_pv_count",
                "Gauge measuring total number of persistent volumes",
                &["plugin_name", "volume_mode"],
            )?,
            bound_volumes: gauge(
                "bound_pv_count",
                "Gauge measuring number of persistent volume currently bound",
                &["storage_class"],
            )?,
            unbound_volumes: gauge(
                "unbound_pv_count",
                "Gauge measuring number of persistent volume currently unbound",
                &["storage_class"],
            )?,
            bound_claims: gauge(
                "bound_pvc_count",
                "Gauge measuring number of persistent volume claim currently bound",
                &of_claim,
            )?,
            unbound_claims: gauge(
                "unbound_pvc_count",
                "Gauge measuring number of persistent volume claim currently unbound",
                &of_claim,
            )?,
        })
    }

    fn all(&self) -> [&GaugeVec; 5] {
        [
            &self.total,
            &self.bound_volumes,
            &self.unbound_volumes,
            &self.bound_claims,
            &self.unbound_claims,
        ]
    }

    fn count(&self, cache: &Cache) {
        cache.read(|state| {
            for volume in state.volumes.list() {
                let labels = [plugin_name(volume), volume_mode(volume)];
                self.total.with_label_values(&labels).inc();
                let spec = volume.spec.as_ref();
                let class = spec.and_then(|spec| spec.storage_class_name.as_deref());
                let gauge = match volume_phase(volume) {
                    "Bound" => &self.bound_volumes,
                    _ => &self.unbound_volumes,
                };
                gauge.with_label_values(&[class.unwrap_or_default()]).inc();
            }
            for (key, claim) in &state.claims {
                let gauge = match claim_phase(claim) {
                    "Bound" => &self.bound_claims,
                    _ => &self.unbound_claims,
                };
                let labels = [
                    key.namespace.as_str(),
                    claim_class(claim),
                    claim_attributes_class(claim),
                ];
                gauge.with_label_values(&labels).inc();
            }
        });
    }
}

impl Collector for Counts {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let cache = self.cache.upgrade();
        for gauge in self.all() {
            gauge.reset();
        }
        if let Some(cache) = cache {
            self.count(&cache);
        }
        self.all()
            .into_iter()
            .flat_map(Collector::collect)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use component_base::clock::FakeClock;
    use jiff::Timestamp;

    #[test]
    fn what_started_is_counted_once() {
        let clock = FakeClock::new(Timestamp::UNIX_EPOCH);
        let metrics = Arc::new(Metrics::unread());
        let times = OperationTimes::new(clock.clock(), metrics.clone());
        let labels = ["tested", "provision"];
        let errors = || metrics.errors.with_label_values(&labels).get();
        times.failed("a/b");
        times.start("a/b", "tested", "provision");
        clock.advance(Duration::from_secs(3));
        times.start("a/b", "other", "provision");
        times.failed("a/b");
        assert_eq!(errors(), 1);
        times.done("a/b");
        times.done("a/b");
        let taken = metrics.end_to_end_seconds.with_label_values(&labels);
        assert_eq!((taken.get_sample_count(), taken.get_sample_sum()), (1, 3.0));
        times.start("a/b", "tested", "provision");
        times.forget("a/b");
        assert!(!times.has("a/b"));
    }
}
