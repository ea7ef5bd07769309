//! [`FrameworkHandle`]: the [`Handle`] plugins get, and [`Shared`], what lies behind it for all profiles.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use component_base::clock::Clock;
use component_base::tasks;

use backend::SchedulingQueue;
use framework::*;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{Framework, WaitingPods, WeakFramework};
use crate::decisions::Decisions;
use crate::fetch::Fetcher;
use crate::metrics::Metrics;
use crate::objects::Observers;

/// Takes event records; never blocks.
pub type RecordFn = Arc<dyn Fn(EventRecord) + Send + Sync>;

/// What the profiles of one scheduler share.
pub struct Shared {
    listers: Arc<dyn Listers>,
    api: Arc<dyn ApiWriter>,
    record: RecordFn,
    tasks: tokio::runtime::Handle,
    end: CancellationToken,
    clock: Clock,
    metrics: Arc<Metrics>,
    queue: OnceLock<Arc<SchedulingQueue>>,
    waiting_pods: WaitingPods,
    in_pre_bind: Mutex<HashMap<Arc<str>, CancellationToken>>,
    observers: Observers,
    fetcher: OnceLock<Fetcher>,
    /// Nodes that something has changed about, beside the node and its pods.
    touched: Mutex<BTreeSet<String>>,
    any_touched: AtomicBool,
    decisions: Decisions,
}

impl Shared {
    /// `end` stops what plugins have spawned. Plugins and waiting pods go by `clock`.
    pub fn new(
        listers: Arc<dyn Listers>,
        api: Arc<dyn ApiWriter>,
        record: RecordFn,
        tasks: tokio::runtime::Handle,
        end: CancellationToken,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Shared {
            listers,
            api,
            record,
            tasks,
            end,
            queue: OnceLock::new(),
            waiting_pods: WaitingPods::new(clock.clone()),
            clock,
            metrics,
            in_pre_bind: Mutex::default(),
            observers: Observers::default(),
            fetcher: OnceLock::new(),
            touched: Mutex::default(),
            any_touched: AtomicBool::new(false),
            decisions: Decisions::default(),
        })
    }

    /// The queue; it is made after the plugins, since it sorts by one of them. Set once.
    pub fn set_queue(&self, queue: Arc<SchedulingQueue>) {
        // A second queue would be a fault of the program; the first stays.
        let _ = self.queue.set(queue);
    }

    /// Plugins may ask by HTTP from now on. Set once.
    pub fn set_fetcher(&self, fetcher: Fetcher) {
        // A second one would be a fault of the program; the first stays.
        let _ = self.fetcher.set(fetcher);
    }

    /// The plugins that hear of what changes.
    pub fn observers(&self) -> &Observers {
        &self.observers
    }

    /// The nodes touched since the last call.
    pub fn take_touched(&self) -> BTreeSet<String> {
        if !self.any_touched.swap(false, Ordering::AcqRel) {
            return BTreeSet::new();
        }
        std::mem::take(&mut *self.touched.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Pods nominated to a node.
    pub fn nominated_pods_for_node(&self, node_name: &str) -> Vec<Arc<PodInfo>> {
        self.queue
            .get()
            .map_or_else(Vec::new, |queue| queue.nominator().pods_for_node(node_name))
    }

    /// Pods that Permit plugins made wait.
    pub fn waiting_pods(&self) -> &WaitingPods {
        &self.waiting_pods
    }

    /// Cached reads.
    pub fn listers(&self) -> &dyn Listers {
        &*self.listers
    }

    /// Writes.
    pub fn api(&self) -> &Arc<dyn ApiWriter> {
        &self.api
    }

    /// Records an event.
    pub fn record(&self, event: EventRecord) {
        (self.record)(event);
    }

    /// What is counted and measured.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// What time it is.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The last decisions.
    pub fn decisions(&self) -> &Decisions {
        &self.decisions
    }

    /// The end of the scheduler.
    pub fn end(&self) -> &CancellationToken {
        &self.end
    }

    /// The runtime tasks run on.
    pub fn tasks(&self) -> &tokio::runtime::Handle {
        &self.tasks
    }

    /// A pod enters PreBind; its binding ends when the token is cancelled.
    pub fn start_pre_bind(&self, uid: &Arc<str>) -> CancellationToken {
        let token = CancellationToken::new();
        self.in_pre_bind
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(Arc::clone(uid), token.clone());
        token
    }

    /// Stops the binding of a pod that is in PreBind; false when it is not.
    pub fn cancel_pre_bind(&self, uid: &str, reason: &str) -> bool {
        let pods = self.in_pre_bind.lock();
        let pods = pods.unwrap_or_else(PoisonError::into_inner);
        let Some(token) = pods.get(uid) else {
            return false;
        };
        tracing::info!(uid, reason, "binding cancelled");
        token.cancel();
        true
    }

    /// A pod leaves PreBind; false when it was cancelled.
    pub fn end_pre_bind(&self, uid: &str) -> bool {
        let token = self
            .in_pre_bind
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid);
        token.is_none_or(|token| !token.is_cancelled())
    }
}

/// What plugins hold.
pub struct FrameworkHandle {
    profile_name: String,
    shared: Arc<Shared>,
    framework: OnceLock<WeakFramework>,
}

impl FrameworkHandle {
    /// A handle for the plugins of a profile, before its framework is there.
    pub fn new(profile_name: &str, shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(FrameworkHandle {
            profile_name: profile_name.to_owned(),
            shared,
            framework: OnceLock::new(),
        })
    }

    pub(super) fn set_framework(&self, framework: WeakFramework) {
        // Set once, by the framework the handle was made for.
        let _ = self.framework.set(framework);
    }

    fn with<T>(&self, run: impl FnOnce(&Framework) -> T, gone: impl FnOnce() -> T) -> T {
        match self.framework.get().and_then(WeakFramework::upgrade) {
            Some(framework) => run(&framework),
            None => gone(),
        }
    }
}

fn gone() -> Status {
    Status::error("the scheduler is not running")
}

impl Handle for FrameworkHandle {
    fn profile_name(&self) -> &str {
        &self.profile_name
    }
    fn listers(&self) -> &dyn Listers {
        self.shared.listers()
    }
    fn api(&self) -> Arc<dyn ApiWriter> {
        Arc::clone(self.shared.api())
    }
    fn record(&self, event: EventRecord) {
        self.shared.record(event);
    }
    fn spawn(&self, future: BoxFuture<'static, ()>) {
        let end = self.shared.end.clone();
        let work = async move {
            tokio::select! {
                () = end.cancelled() => {}
                () = future => {}
            }
        };
        self.shared.tasks.spawn(tasks::vital("plugin task", work));
    }
    fn now(&self) -> Instant {
        self.shared.clock.instant()
    }
    fn wall_time(&self) -> Timestamp {
        self.shared.clock.now()
    }
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        let clock = self.shared.clock.clone();
        Box::pin(async move { clock.sleep(time).await })
    }
    fn run_pre_filter_extension_add_pod(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        to_add: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Status {
        self.with(
            |f| f.run_pre_filter_extension_add_pod(state, pod, to_add, node),
            gone,
        )
    }
    fn run_pre_filter_extension_remove_pod(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        to_remove: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Status {
        self.with(
            |f| f.run_pre_filter_extension_remove_pod(state, pod, to_remove, node),
            gone,
        )
    }
    fn run_filter_plugins(
        &self,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Status {
        self.with(|f| f.run_filter_plugins(state, pod, node), gone)
    }
    fn run_filter_plugins_with_nominated_pods(
        &self,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Status {
        self.with(
            |f| f.run_filter_plugins_with_nominated_pods(state, pod, node),
            gone,
        )
    }
    fn fetch(&self, fetch: Fetch) -> BoxFuture<'static, Result<serde_json::Value, FetchError>> {
        match self.shared.fetcher.get() {
            Some(fetcher) => fetcher.fetch(fetch),
            None => Box::pin(async { Err(FetchError("this scheduler has no network".into())) }),
        }
    }
    fn touch_node(&self, node_name: &str) {
        let touched = self.shared.touched.lock();
        let mut touched = touched.unwrap_or_else(PoisonError::into_inner);
        touched.insert(node_name.to_owned());
        self.shared.any_touched.store(true, Ordering::Release);
    }
    fn nominated_pods(&self) -> Vec<Arc<PodInfo>> {
        let queue = self.shared.queue.get();
        queue.map_or_else(Vec::new, |queue| queue.nominator().pods())
    }
    fn nominated_pods_for_node(&self, node_name: &str) -> Vec<Arc<PodInfo>> {
        self.shared.nominated_pods_for_node(node_name)
    }
    fn add_nominated_pod(&self, pod: &Arc<PodInfo>, nominating: &NominatingInfo) {
        if let Some(queue) = self.shared.queue.get() {
            queue.nominator().add(pod, nominating);
        }
    }
    fn delete_nominated_pod_if_exists(&self, pod: &Pod) {
        if let Some(queue) = self.shared.queue.get() {
            queue
                .nominator()
                .delete(pod.metadata.uid.as_deref().unwrap_or_default());
        }
    }
    fn extenders(&self) -> Vec<Arc<dyn Extender>> {
        let all = |f: &Framework| {
            let extenders = f.extenders().iter();
            extenders
                .map(|e| Arc::clone(e) as Arc<dyn Extender>)
                .collect()
        };
        self.with(all, Vec::new)
    }
    fn waiting_pod(&self, uid: &str) -> Option<Arc<dyn WaitingPod>> {
        self.shared
            .waiting_pods
            .get(uid)
            .map(|pod| pod as Arc<dyn WaitingPod>)
    }
    fn waiting_pods(&self) -> Vec<Arc<dyn WaitingPod>> {
        self.shared
            .waiting_pods
            .list()
            .into_iter()
            .map(|pod| pod as Arc<dyn WaitingPod>)
            .collect()
    }
    fn reject_waiting_pod(&self, uid: &str) -> bool {
        self.shared
            .waiting_pods
            .get(uid)
            .is_some_and(|pod| pod.reject("", "removed"))
    }
    fn cancel_pod_in_pre_bind(&self, uid: &str, reason: &str) -> bool {
        self.shared.cancel_pre_bind(uid, reason)
    }
    fn observe_volume_failure(&self, stage: &'static str) {
        self.shared.metrics.count_volume_failure(stage);
    }
    fn observe_binding_conditions(
        &self,
        status: &'static str,
        waited: Duration,
        drivers: &[&str],
        conditional: &[&str],
    ) {
        let metrics = &self.shared.metrics;
        for driver in drivers {
            metrics.observe_binding_conditions([&self.profile_name, driver, status], waited);
        }
        for driver in conditional {
            metrics.count_binding_conditions([&self.profile_name, driver, status]);
        }
    }
    fn observe_claim_creation(&self, succeeded: bool) {
        self.shared.metrics.count_claim(succeeded);
    }
    fn observe_preemption(&self, victims: Option<usize>) {
        self.shared.metrics.observe_preemption(victims);
    }
    fn activate(&self, pods: Vec<Arc<Pod>>) {
        if let Some(queue) = self.shared.queue.get() {
            queue.activate(pods.iter().filter_map(|pod| pod.metadata.uid.as_deref()));
        }
    }
}
