//! Feeds nodes and equal pods through the real path: queue, snapshot, decision, assumption, a binding that does nothing.
//!
//! Measures CPU of the whole process over the scheduling phase alone, after the caches are filled. The peer that runs upstream's scheduler prints the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use component_base::clock::Clock;
use framework::*;
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Node, PersistentVolume, PersistentVolumeClaim, Pod, PodCondition, ReplicationController,
    Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use tokio_util::sync::CancellationToken;

use crate::config::{KubeSchedulerConfiguration, default_profiles};
use crate::metrics::Metrics;
use crate::profile::ProfileError;
use crate::runtime::Shared;
use crate::schedule_one::SchedulingLoop;
use crate::scheduler::{POD_MAX_IN_UNSCHEDULABLE_PODS_DURATION, Scheduler};

/// What the pods ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// Nothing but CPU and memory.
    Identical,
    /// A topology spread constraint over zones, skew 1, `DoNotSchedule`.
    ZoneSpread,
    /// No two on one node.
    HostAntiAffinity,
    /// As identical, but no two pods ask for the same: nothing can be kept from one for the next.
    Distinct,
}

/// The result, as JSON.
#[derive(Debug, serde::Serialize)]
pub struct Report {
    /// How many nodes.
    pub nodes: usize,
    /// How many pods were bound.
    pub pods: usize,
    /// User and system CPU of the process while scheduling.
    pub cpu_seconds: f64,
    /// The bar.
    pub decisions_per_cpu_second: f64,
    /// Half of the decisions took at most this, in microseconds.
    pub p50_us: f64,
    /// 99 of 100 took at most this.
    pub p99_us: f64,
}

/// Nothing but the pods being scheduled.
#[derive(Default)]
pub struct NoObjects {
    pods: std::sync::Mutex<BTreeMap<(String, String), Arc<Pod>>>,
    nodes: std::sync::Mutex<BTreeMap<String, Arc<Node>>>,
    volumes: VolumeCache,
    devices: DeviceCache,
    pod_groups: PodGroupCache,
}

impl Listers for NoObjects {
    fn namespace_labels(&self, _: &str) -> Arc<BTreeMap<String, String>> {
        Arc::default()
    }
    fn namespaces(&self) -> Vec<String> {
        vec!["default".to_owned()]
    }
    fn namespaces_revision(&self) -> u64 {
        0
    }
    fn pod_disruption_budgets(&self) -> Vec<Arc<PodDisruptionBudget>> {
        Vec::new()
    }
    fn services(&self, _: &str) -> Vec<Arc<Service>> {
        Vec::new()
    }
    fn services_revision(&self) -> u64 {
        0
    }
    fn replication_controller(&self, _: &str, _: &str) -> Option<Arc<ReplicationController>> {
        None
    }
    fn replica_set(&self, _: &str, _: &str) -> Option<Arc<ReplicaSet>> {
        None
    }
    fn stateful_set(&self, _: &str, _: &str) -> Option<Arc<StatefulSet>> {
        None
    }
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let pods = self
            .pods
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        pods.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }
    fn node(&self, name: &str) -> Option<Arc<Node>> {
        let nodes = self.nodes.lock();
        let nodes = nodes.unwrap_or_else(std::sync::PoisonError::into_inner);
        nodes.get(name).cloned()
    }
    fn volumes(&self) -> &VolumeCache {
        &self.volumes
    }
    fn devices(&self) -> &DeviceCache {
        &self.devices
    }
    fn pod_groups(&self) -> &PodGroupCache {
        &self.pod_groups
    }
}

impl NoObjects {
    /// Knows these pods.
    pub fn with_pods(pods: impl IntoIterator<Item = Arc<Pod>>) -> Self {
        let key = |pod: &Pod| {
            (
                pod.metadata.namespace.clone().unwrap_or_default(),
                pod.metadata.name.clone().unwrap_or_default(),
            )
        };
        NoObjects {
            pods: std::sync::Mutex::new(pods.into_iter().map(|pod| (key(&pod), pod)).collect()),
            ..NoObjects::default()
        }
    }

    /// Knows these pods, and groups of pods; `topology_aware`: these have placements.
    pub fn with_pod_groups(pods: impl IntoIterator<Item = Arc<Pod>>, topology_aware: bool) -> Self {
        NoObjects {
            pod_groups: PodGroupCache::new(true).with_topology_aware(topology_aware),
            ..NoObjects::with_pods(pods)
        }
    }

    /// Knows this node, too.
    pub fn add_node(&self, node: Arc<Node>) {
        let nodes = self.nodes.lock();
        let mut nodes = nodes.unwrap_or_else(std::sync::PoisonError::into_inner);
        nodes.insert(node.metadata.name.clone().unwrap_or_default(), node);
    }
}

/// Counts bindings and does nothing.
#[derive(Default)]
pub struct CountingWriter {
    /// Pods bound.
    pub bound: AtomicUsize,
    /// Pods whose status was to be written.
    pub failed: AtomicUsize,
}

impl ApiWriter for CountingWriter {
    fn bind<'a>(&'a self, _: &'a Pod, _: &'a str) -> BoxFuture<'a, Result<(), ApiWriteError>> {
        self.bound.fetch_add(1, Ordering::AcqRel);
        Box::pin(async { Ok(()) })
    }
    fn delete_pod<'a>(&'a self, _: &'a Pod) -> BoxFuture<'a, Result<(), ApiWriteError>> {
        Box::pin(async { Ok(()) })
    }
    fn bind_volume<'a>(
        &'a self,
        volume: &'a PersistentVolume,
    ) -> BoxFuture<'a, Result<String, ApiWriteError>> {
        let version = volume.metadata.resource_version.clone();
        Box::pin(async { Ok(version.unwrap_or_default()) })
    }
    fn annotate_claim<'a>(
        &'a self,
        claim: &'a PersistentVolumeClaim,
    ) -> BoxFuture<'a, Result<String, ApiWriteError>> {
        let version = claim.metadata.resource_version.clone();
        Box::pin(async { Ok(version.unwrap_or_default()) })
    }
    fn patch_pod_status<'a>(
        &'a self,
        _: &'a Pod,
        _: Option<PodCondition>,
        _: NominatingInfo,
    ) -> BoxFuture<'a, Result<(), ApiWriteError>> {
        self.failed.fetch_add(1, Ordering::AcqRel);
        Box::pin(async { Ok(()) })
    }
}

/// Runs the measurement.
///
/// # Errors
/// When the default profile cannot be made.
pub fn run(
    nodes: usize,
    pods: usize,
    workload: Workload,
    tasks: &tokio::runtime::Handle,
) -> Result<Report, ProfileError> {
    let mut config = KubeSchedulerConfiguration::default();
    default_profiles(&mut config);
    let writer = Arc::new(CountingWriter::default());
    let infos: Vec<_> = (0..pods).map(|i| pod(i, workload)).collect();
    let listers = Arc::new(NoObjects::with_pods(
        infos.iter().map(|info| Arc::clone(&info.pod)),
    ));
    let clock = Clock::real();
    let shared = Shared::new(
        listers,
        writer.clone(),
        Arc::new(|_| {}),
        tasks.clone(),
        CancellationToken::new(),
        clock.clone(),
        Metrics::unread(clock.clone()),
    );
    let scheduler = Scheduler::new(
        &config,
        &plugins::registry::in_tree(),
        shared,
        POD_MAX_IN_UNSCHEDULABLE_PODS_DURATION,
    )?;
    for i in 0..nodes {
        let node = testing::make_node(&format!("node-{i}")).zone(&format!("zone-{}", i % 3));
        scheduler.cache.add_node(
            node.capacity(&[("cpu", "32"), ("memory", "256Gi"), ("pods", "110")])
                .build(),
        );
    }
    infos.into_iter().for_each(|info| scheduler.queue.add(info));
    let mut scheduling = SchedulingLoop::new(Arc::clone(&scheduler), 1);
    let mut times = Vec::with_capacity(pods);
    let cpu = cpu_time();
    while let Some(queued) = scheduler.queue.try_pop() {
        let start = clock.instant();
        scheduling.schedule_one(queued);
        times.push(clock.instant() - start);
        if times.len() == pods {
            break;
        }
    }
    let deadline = clock.instant() + Duration::from_secs(60);
    while writer.bound.load(Ordering::Acquire) + writer.failed.load(Ordering::Acquire) < times.len()
        && clock.instant() < deadline
    {
        std::thread::yield_now();
    }
    let cpu = (cpu_time() - cpu).as_secs_f64();
    times.sort_unstable();
    let at = |share: f64| {
        times
            .get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1)))
            .map_or(0.0, |t| t.as_secs_f64() * 1e6)
    };
    let bound = writer.bound.load(Ordering::Acquire);
    Ok(Report {
        nodes,
        pods: bound,
        cpu_seconds: cpu,
        decisions_per_cpu_second: bound as f64 / cpu,
        p50_us: at(0.5),
        p99_us: at(0.99),
    })
}

fn pod(i: usize, workload: Workload) -> Arc<PodInfo> {
    let milli_cpu = if workload == Workload::Distinct {
        100 + i
    } else {
        100
    };
    let pod = testing::make_pod(&format!("pod-{i}"))
        .uid(&format!("uid-{i}"))
        .label("app", "bench")
        .req(&[("cpu", &format!("{milli_cpu}m")), ("memory", "128Mi")]);
    let selector = || testing::selector(&[("app", "bench")]);
    match workload {
        Workload::Identical | Workload::Distinct => pod.info(),
        Workload::ZoneSpread => pod
            .spread(
                1,
                "topology.kubernetes.io/zone",
                "DoNotSchedule",
                selector(),
            )
            .info(),
        Workload::HostAntiAffinity => pod
            .pod_anti_affinity("kubernetes.io/hostname", selector())
            .info(),
    }
}

fn cpu_time() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF);
    let seconds = |time: nix::sys::time::TimeVal| {
        Duration::new(time.tv_sec().unsigned_abs(), (time.tv_usec() * 1000) as u32)
    };
    usage.map_or(Duration::ZERO, |usage| {
        seconds(usage.user_time()) + seconds(usage.system_time())
    })
}
