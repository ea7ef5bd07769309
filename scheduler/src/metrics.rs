//! The scheduler's metrics, by upstream's names, in the process registry.
//!
//! Upstream: pkg/scheduler/metrics/metrics.go, v1.36.
//! DIFFERS: Filter and Score have no `plugin_execution_duration_seconds`: plugins judge all nodes at once, or not at all where the result is known.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use backend::{Cache, SchedulingQueue};
use component_base::metrics::exponential_buckets;
use prometheus::core::{Collector, Desc};
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, opts, proto::MetricFamily, register_histogram, register_histogram_vec,
    register_int_counter, register_int_counter_vec, register_int_gauge, register_int_gauge_vec,
};

macro_rules! metric {
    ($(#[$doc:meta])* $name:ident: $type:ty = $register:expr) => {
        $(#[$doc])*
        pub static $name: LazyLock<$type> = LazyLock::new(|| $register.expect("each metric is registered once"));
    };
}

fn buckets(start: f64, factor: f64, count: usize) -> Vec<f64> {
    exponential_buckets(start, factor, count)
}

metric! {
    /// Attempts by result (`scheduled`, `unschedulable`, `error`) and profile.
    SCHEDULE_ATTEMPTS: IntCounterVec = register_int_counter_vec!(
        "scheduler_schedule_attempts_total",
        "Number of attempts to schedule pods, by the result. 'unschedulable' means a pod could not be scheduled, while 'error' means an internal scheduler problem.",
        &["result", "profile"]
    )
}
metric! {
    /// Algorithm and binding.
    SCHEDULING_ATTEMPT_DURATION: HistogramVec = register_histogram_vec!(
        "scheduler_scheduling_attempt_duration_seconds",
        "Scheduling attempt latency in seconds (scheduling algorithm + binding)",
        &["result", "profile"],
        buckets(0.001, 2.0, 15)
    )
}
metric! {
    /// Algorithm alone.
    SCHEDULING_ALGORITHM_DURATION: Histogram = register_histogram!(
        "scheduler_scheduling_algorithm_duration_seconds",
        "Scheduling algorithm latency in seconds",
        buckets(0.001, 2.0, 15)
    )
}
metric! {
    /// From first entering the queue to bound.
    POD_SCHEDULING_SLI_DURATION: HistogramVec = register_histogram_vec!(
        "scheduler_pod_scheduling_sli_duration_seconds",
        "E2e latency for a pod being scheduled, from the time the pod enters the scheduling queue and might involve multiple scheduling attempts.",
        &["attempts"],
        buckets(0.01, 2.0, 20)
    )
}
metric! {
    /// Attempts of pods that were scheduled.
    POD_SCHEDULING_ATTEMPTS: Histogram = register_histogram!(
        "scheduler_pod_scheduling_attempts",
        "Number of attempts to successfully schedule a pod.",
        buckets(1.0, 2.0, 5)
    )
}
metric! {
    /// Pods that only the timeout brought back.
    POD_SCHEDULED_AFTER_FLUSH: IntCounter = register_int_counter!(
        "scheduler_pod_scheduled_after_flush_total",
        "Number of pods that were successfully scheduled after being flushed from unschedulablePods due to timeout. This metric helps detect potential queueing hint misconfigurations or event handling issues."
    )
}
metric! {
    /// Devices with binding conditions that were allocated, by outcome.
    BINDING_CONDITIONS_ALLOCATIONS: IntCounterVec = register_int_counter_vec!(
        "scheduler_dra_bindingconditions_allocations_total",
        "Number of allocations using devices with BindingConditions, counted per driver per scheduling attempt",
        &["profile", "driver", "status"]
    )
}
metric! {
    /// How long pods waited for their devices.
    BINDING_CONDITIONS_WAIT: HistogramVec = register_histogram_vec!(
        "scheduler_dra_bindingconditions_wait_duration_seconds",
        "Time in seconds spent waiting for BindingConditions to be satisfied during PreBind.",
        &["profile", "driver", "status"],
        buckets(0.1, 2.0, 14)
    )
}
metric! {
    /// Claims made for extended resources.
    RESOURCE_CLAIM_CREATES: IntCounterVec = register_int_counter_vec!(
        "dynamic_resource_allocation_resourceclaim_creates_total",
        "Number of ResourceClaims creation requests, categorized by creation status, admin access, and owning API group and kind (either Pod or scheduling.k8s.io/PodGroup)",
        &["status", "admin_access", "owner_api_group", "owner_api_kind"]
    )
}
metric! {
    /// Failures of volume scheduling by stage (`predicate`, `assume`, `bind`).
    VOLUME_STAGE_ERRORS: IntCounterVec = register_int_counter_vec!(
        "scheduler_volume_scheduling_stage_error_total",
        "Volume scheduling stage error count",
        &["operation"]
    )
}
metric! {
    /// By extension point.
    FRAMEWORK_EXTENSION_POINT_DURATION: HistogramVec = register_histogram_vec!(
        "scheduler_framework_extension_point_duration_seconds",
        "Latency for running all plugins of a specific extension point.",
        &["extension_point", "status", "profile"],
        buckets(0.0001, 2.0, 12)
    )
}
metric! {
    /// By plugin, for the points that run once a pod.
    PLUGIN_EXECUTION_DURATION: HistogramVec = register_histogram_vec!(
        "scheduler_plugin_execution_duration_seconds",
        "Duration for running a plugin at a specific extension point.",
        &["plugin", "extension_point", "status"],
        buckets(0.00001, 1.5, 20)
    )
}
metric! {
    /// PostFilter calls of DefaultPreemption.
    PREEMPTION_ATTEMPTS: IntCounter = register_int_counter!(
        "scheduler_preemption_attempts_total",
        "Total preemption attempts in the cluster till now"
    )
}
metric! {
    /// Victims of each preemption.
    PREEMPTION_VICTIMS: Histogram = register_histogram!(
        "scheduler_preemption_victims",
        "Number of selected preemption victims",
        buckets(1.0, 2.0, 7)
    )
}
metric! {
    /// By part of the queue and event.
    QUEUE_INCOMING_PODS: IntCounterVec = register_int_counter_vec!(
        "scheduler_queue_incoming_pods_total",
        "Number of pods added to scheduling queues by event and queue type.",
        &["queue", "event"]
    )
}
metric! {
    /// Waiting on Permit.
    PERMIT_WAIT_DURATION: HistogramVec = register_histogram_vec!(
        "scheduler_permit_wait_duration_seconds",
        "Duration of waiting on permit.",
        &["result"],
        buckets(0.001, 2.0, 15)
    )
}
metric! {
    /// Informer events.
    EVENT_HANDLING_DURATION: HistogramVec = register_histogram_vec!(
        "scheduler_event_handling_duration_seconds",
        "Event handling latency in seconds.",
        &["event"],
        buckets(0.0001, 2.0, 12)
    )
}
metric! {
    /// Binding tasks under way.
    GOROUTINES: IntGaugeVec = register_int_gauge_vec!(
        "scheduler_goroutines",
        "Number of running goroutines split by the work they do such as binding.",
        &["operation"]
    )
}

metric! {
    /// Looks at a changed configuration file, by what became of them (`success`, `error`). Not upstream's: it never looks again.
    CONFIG_RELOADS: IntCounterVec = register_int_counter_vec!(
        "scheduler_config_reloads_total",
        "Number of times the changed configuration file was loaded again, by the result. After an 'error' the configuration before it stays.",
        &["result"]
    )
}
metric! {
    /// 0: the configuration file cannot be used, an older one is in force.
    CONFIG_LAST_RELOAD_SUCCESSFUL: IntGauge = register_int_gauge!(
        "scheduler_config_last_reload_successful",
        "Whether the configuration file as it is now is the one in force (1) or could not be used (0)."
    )
}

/// Counts a reload of the configuration.
pub fn observe_reload(successful: bool) {
    let result = if successful { "success" } else { "error" };
    CONFIG_RELOADS.with_label_values(&[result]).inc();
    CONFIG_LAST_RELOAD_SUCCESSFUL.set(i64::from(successful));
}

metric! {
    /// Groups of pods, by what became of the attempt.
    POD_GROUP_SCHEDULE_ATTEMPTS: IntCounterVec = register_int_counter_vec!(
        "scheduler_podgroup_schedule_attempts_total",
        "Number of attempts to schedule pod group, by the result. 'unschedulable' means a pod group could not be scheduled, while 'error' means an internal scheduler problem.",
        &["result", "profile"]
    )
}
metric! {
    /// The same, how long they took.
    POD_GROUP_SCHEDULING_ATTEMPT_DURATION: HistogramVec = register_histogram_vec!(
        "scheduler_podgroup_scheduling_attempt_duration_seconds",
        "Pod group scheduling attempt latency in seconds",
        &["result", "profile"],
        buckets(0.001, 2.0, 15)
    )
}
metric! {
    /// The decisions of a group alone.
    POD_GROUP_SCHEDULING_ALGORITHM_DURATION: Histogram = register_histogram!(
        "scheduler_podgroup_scheduling_algorithm_duration_seconds",
        "Pod group scheduling algorithm latency in seconds",
        buckets(0.001, 2.0, 15)
    )
}

/// Counts an attempt for a group of pods and its duration.
pub fn observe_group_attempt(result: &str, profile: &str, duration: Duration) {
    POD_GROUP_SCHEDULE_ATTEMPTS
        .with_label_values(&[result, profile])
        .inc();
    POD_GROUP_SCHEDULING_ATTEMPT_DURATION
        .with_label_values(&[result, profile])
        .observe(duration.as_secs_f64());
}

/// Counts an attempt and its duration.
pub fn observe_attempt(result: &str, profile: &str, duration: Duration) {
    SCHEDULE_ATTEMPTS
        .with_label_values(&[result, profile])
        .inc();
    SCHEDULING_ATTEMPT_DURATION
        .with_label_values(&[result, profile])
        .observe(duration.as_secs_f64());
}

/// Observes an extension point.
pub fn observe_extension_point(point: &str, status: &str, profile: &str, duration: Duration) {
    FRAMEWORK_EXTENSION_POINT_DURATION
        .with_label_values(&[point, status, profile])
        .observe(duration.as_secs_f64());
}

/// Gauges that are read from the queue and the cache when somebody asks.
pub struct StateCollector {
    queue: Arc<SchedulingQueue>,
    cache: Arc<Cache>,
    pending_pods: GaugeVec,
    inflight_events: Gauge,
    cache_size: GaugeVec,
    unschedulable_pods: GaugeVec,
    profile: String,
}

impl StateCollector {
    /// Registers the collector; `profile` labels `unschedulable_pods` (pods of all profiles are under the first one's name).
    pub fn register(queue: Arc<SchedulingQueue>, cache: Arc<Cache>, profile: &str) {
        let vec = |name: &str, help: &str, labels: &[&str]| {
            GaugeVec::new(Opts::new(name, help), labels).expect("names and labels are valid")
        };
        let collector = StateCollector {
            queue,
            cache,
            pending_pods: vec(
                "scheduler_pending_pods",
                "Number of pending pods, by the queue type. 'active' means number of pods in activeQ; 'backoff' means number of pods in backoffQ; 'unschedulable' means number of pods in unschedulablePods that the scheduler attempted to schedule and failed; 'gated' is the number of unschedulable pods that the scheduler never attempted to schedule because they are gated.",
                &["queue"],
            ),
            inflight_events: Gauge::with_opts(opts!(
                "scheduler_inflight_events",
                "Number of events currently tracked in the scheduling queue."
            ))
            .expect("name is valid"),
            cache_size: vec(
                "scheduler_cache_size",
                "Number of nodes, pods, and assumed (bound) pods in the scheduler cache.",
                &["type"],
            ),
            unschedulable_pods: vec(
                "scheduler_unschedulable_pods",
                "The number of unschedulable pods broken down by plugin name. A pod will increment the gauge for all plugins that caused it to not schedule and so this metric have meaning only when broken down by plugin.",
                &["plugin", "profile"],
            ),
            profile: profile.to_owned(),
        };
        if let Err(error) = prometheus::default_registry().register(Box::new(collector)) {
            tracing::error!(%error, "metrics of the queue cannot be registered");
        }
    }
}

impl Collector for StateCollector {
    fn desc(&self) -> Vec<&Desc> {
        let collectors: [&dyn Collector; 4] = [
            &self.pending_pods,
            &self.inflight_events,
            &self.cache_size,
            &self.unschedulable_pods,
        ];
        collectors.into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let counts = self.queue.counts();
        let queues = [
            ("active", counts.active),
            ("backoff", counts.backoff),
            ("unschedulable", counts.unschedulable),
            ("gated", counts.gated),
        ];
        for (queue, pods) in queues {
            self.pending_pods
                .with_label_values(&[queue])
                .set(pods as f64);
        }
        self.inflight_events.set(counts.in_flight_events as f64);
        let cache = self.cache.counts();
        for (kind, count) in [
            ("nodes", cache.nodes),
            ("pods", cache.pods),
            ("assumed_pods", cache.assumed_pods),
        ] {
            self.cache_size.with_label_values(&[kind]).set(count as f64);
        }
        for (plugin, pods) in self.queue.rejected_by() {
            self.unschedulable_pods
                .with_label_values(&[plugin, &self.profile])
                .set(pods as f64);
        }
        let collectors: [&dyn Collector; 4] = [
            &self.pending_pods,
            &self.inflight_events,
            &self.cache_size,
            &self.unschedulable_pods,
        ];
        collectors
            .into_iter()
            .flat_map(Collector::collect)
            .collect()
    }
}

/// Makes every metric appear from the start.
pub fn init() {
    LazyLock::force(&SCHEDULE_ATTEMPTS);
    LazyLock::force(&SCHEDULING_ATTEMPT_DURATION);
    LazyLock::force(&SCHEDULING_ALGORITHM_DURATION);
    LazyLock::force(&POD_SCHEDULING_SLI_DURATION);
    LazyLock::force(&POD_SCHEDULING_ATTEMPTS);
    LazyLock::force(&POD_SCHEDULED_AFTER_FLUSH);
    LazyLock::force(&VOLUME_STAGE_ERRORS);
    LazyLock::force(&FRAMEWORK_EXTENSION_POINT_DURATION);
    LazyLock::force(&PLUGIN_EXECUTION_DURATION);
    LazyLock::force(&PREEMPTION_ATTEMPTS);
    LazyLock::force(&PREEMPTION_VICTIMS);
    LazyLock::force(&QUEUE_INCOMING_PODS);
    LazyLock::force(&PERMIT_WAIT_DURATION);
    LazyLock::force(&EVENT_HANDLING_DURATION);
    LazyLock::force(&GOROUTINES);
    LazyLock::force(&CONFIG_RELOADS);
    CONFIG_LAST_RELOAD_SUCCESSFUL.set(1);
}
