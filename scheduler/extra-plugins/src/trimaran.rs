//! What the three load-aware plugins share: [`Collector`], which keeps what is measured of the nodes, and the sums over pods they score by.
//!
//! Measurements come every 30 s, from metrics.k8s.io, from Prometheus, or from a load-watcher; between two, a score is a function of the pod, the node and what was
//! measured, so answers are kept. A node without measurements scores 0. Upstream: pkg/trimaran and github.com/paypal/load-watcher.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use component_helpers::resources::{PodResourcesOptions, pod_limits};
use framework::{Handle, NodeInfo, PluginError, PodInfo};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::args::MetricProviderSpec;

pub mod beta;
pub mod load_variation;
pub mod low_risk;
pub mod measurements;
pub mod target_load;

use measurements::{Kind, Measurements, Source};

/// Upstream: `metricsUpdateIntervalSeconds`.
const UPDATE_INTERVAL: Duration = Duration::from_secs(30);

/// Keeps the newest measurements.
pub struct Collector {
    source: Source,
    newest: RwLock<Arc<Measurements>>,
    revision: AtomicU64,
}

impl Collector {
    fn new(
        plugin: &'static str,
        provider: &MetricProviderSpec,
        watcher_address: Option<&str>,
    ) -> Result<Arc<Self>, PluginError> {
        let source = Source::new(provider, watcher_address);
        let invalid = |problem| PluginError::Invalid {
            plugin,
            problems: vec![problem],
        };
        Ok(Arc::new(Collector {
            source: source.map_err(invalid)?,
            newest: RwLock::default(),
            revision: AtomicU64::new(1),
        }))
    }

    /// Measures until the plugin is gone.
    fn begin(self: &Arc<Self>, plugin: &'static str, handle: &Arc<dyn Handle>) {
        let (this, handle) = (Arc::downgrade(self), Arc::clone(handle));
        handle.clone().spawn(Box::pin(async move {
            while let Some(collector) = this.upgrade() {
                match collector.source.measure(&*handle, handle.wall_time()).await {
                    Ok(measured) => collector.set(measured),
                    Err(error) => tracing::error!(plugin, %error, "Unable to update metrics"),
                }
                drop(collector);
                handle.sleep(UPDATE_INTERVAL).await;
            }
        }));
    }

    fn set(&self, measured: Measurements) {
        *self.newest.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(measured);
        self.revision.fetch_add(1, Ordering::AcqRel);
    }

    /// What was measured last.
    pub fn newest(&self) -> Arc<Measurements> {
        Arc::clone(&self.newest.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Another one after each measurement.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }
}

/// CPU in thousandths and memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuAndMemory {
    /// Thousandths of a CPU.
    pub milli_cpu: i64,
    /// Bytes.
    pub memory: i64,
}

impl CpuAndMemory {
    fn get(self, kind: Kind) -> i64 {
        match kind {
            Kind::Cpu => self.milli_cpu,
            Kind::Memory => self.memory,
        }
    }

    fn add(&mut self, other: CpuAndMemory) {
        self.milli_cpu += other.milli_cpu;
        self.memory += other.memory;
    }

    fn min(self, other: CpuAndMemory) -> Self {
        CpuAndMemory {
            milli_cpu: self.milli_cpu.min(other.milli_cpu),
            memory: self.memory.min(other.memory),
        }
    }

    fn max(self, other: CpuAndMemory) -> Self {
        CpuAndMemory {
            milli_cpu: self.milli_cpu.max(other.milli_cpu),
            memory: self.memory.max(other.memory),
        }
    }
}

/// What a pod asks for. DIFFERS: the scheduler's own figures, which know sidecars and resizes.
fn requests(pod: &PodInfo) -> CpuAndMemory {
    CpuAndMemory {
        milli_cpu: pod.requests.resource.milli_cpu,
        memory: pod.requests.resource.memory,
    }
}

/// What a pod is bounded by, at least what it asks for.
fn limits(pod: &PodInfo) -> CpuAndMemory {
    let limits = pod_limits(&pod.pod, &PodResourcesOptions::default());
    let get = |name: &str| limits.get(name).copied().unwrap_or_default();
    let limits = CpuAndMemory {
        milli_cpu: get("cpu").milli_value(),
        memory: get("memory").value(),
    };
    limits.max(requests(pod))
}

fn allocatable(node: &NodeInfo) -> CpuAndMemory {
    CpuAndMemory {
        milli_cpu: node.allocatable().milli_cpu,
        memory: node.allocatable().memory,
    }
}

fn milli_cpu(list: Option<&BTreeMap<String, Quantity>>) -> Option<i64> {
    let cpu = list.and_then(|list| list.get("cpu"));
    cpu.map(component_helpers::quantity::milli_value)
}

/// Mean and deviation of a resource's load as shares (0–1) of what the node has, with `request` on top of the mean. `None`: not measured. Upstream:
/// `CreateResourceStats` and `GetMuSigma`.
fn mu_sigma(
    measured: &Measurements,
    node: &NodeInfo,
    kind: Kind,
    request: i64,
) -> Option<(f64, f64)> {
    let (mean, deviation) = measured.load(node.name(), kind)?;
    let capacity = allocatable(node).get(kind) as f64;
    if capacity <= 0.0 {
        return Some((0.0, 0.0));
    }
    let share = |value: f64| value.clamp(0.0, 1.0);
    let used = share(mean / 100.0);
    let mu = share(used + request.max(0) as f64 / capacity);
    Some((mu, share(deviation / 100.0)))
}
