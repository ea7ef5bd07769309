//! The scheduler's metrics, by upstream's names, in a registry that is handed in: two schedulers in a process have their own.
//!
//! Owns the times, too: what is measured is measured by one clock. Upstream: pkg/scheduler/metrics/metrics.go, v1.36.
//! DIFFERS: Filter and Score have no `plugin_execution_duration_seconds`: plugins judge all nodes at once, or not at all where the result is known.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backend::{Cache, SchedulingQueue};
use component_base::clock::Clock;
use component_base::metrics::{RegisterError, Registry, exponential_buckets as buckets, make};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
};

#[cfg(test)]
mod tests;

component_base::metrics! {
    struct Families {
        /// Attempts by result (`scheduled`, `unschedulable`, `error`) and profile.
        schedule_attempts: IntCounterVec = make::counters(
            "scheduler_schedule_attempts_total",
            "Number of attempts to schedule pods, by the result. 'unschedulable' means a pod could not be scheduled, while 'error' means an internal scheduler problem.",
            &["result", "profile"]
        ),
        /// Algorithm and binding.
        scheduling_attempt_duration: HistogramVec = make::histograms(
            "scheduler_scheduling_attempt_duration_seconds",
            "Scheduling attempt latency in seconds (scheduling algorithm + binding)",
            &["result", "profile"],
            buckets(0.001, 2.0, 15)
        ),
        /// Algorithm alone.
        scheduling_algorithm_duration: Histogram = make::histogram(
            "scheduler_scheduling_algorithm_duration_seconds",
            "Scheduling algorithm latency in seconds",
            buckets(0.001, 2.0, 15)
        ),
        /// From first entering the queue to bound.
        pod_scheduling_sli_duration: HistogramVec = make::histograms(
            "scheduler_pod_scheduling_sli_duration_seconds",
            "E2e latency for a pod being scheduled, from the time the pod enters the scheduling queue and might involve multiple scheduling attempts.",
            &["attempts"],
            buckets(0.01, 2.0, 20)
        ),
        /// Attempts of pods that were scheduled.
        pod_scheduling_attempts: Histogram = make::histogram(
            "scheduler_pod_scheduling_attempts",
            "Number of attempts to successfully schedule a pod.",
            buckets(1.0, 2.0, 5)
        ),
        /// Pods that only the timeout brought back.
        pod_scheduled_after_flush: IntCounter = make::counter(
            "scheduler_pod_scheduled_after_flush_total",
            "Number of pods that were successfully scheduled after being flushed from unschedulablePods due to timeout. This metric helps detect potential queueing hint misconfigurations or event handling issues."
        ),
        /// Devices with binding conditions that were allocated, by outcome.
        binding_conditions_allocations: IntCounterVec = make::counters(
            "scheduler_dra_bindingconditions_allocations_total",
            "Number of allocations using devices with BindingConditions, counted per driver per scheduling attempt",
            &["profile", "driver", "status"]
        ),
        /// How long pods waited for their devices.
        binding_conditions_wait: HistogramVec = make::histograms(
            "scheduler_dra_bindingconditions_wait_duration_seconds",
            "Time in seconds spent waiting for BindingConditions to be satisfied during PreBind.",
            &["profile", "driver", "status"],
            buckets(0.1, 2.0, 14)
        ),
        /// Claims made for extended resources.
        resource_claim_creates: IntCounterVec = make::counters(
            "dynamic_resource_allocation_resourceclaim_creates_total",
            "Number of ResourceClaims creation requests, categorized by creation status, admin access, and owning API group and kind (either Pod or scheduling.k8s.io/PodGroup)",
            &["status", "admin_access", "owner_api_group", "owner_api_kind"]
        ),
        /// Failures of volume scheduling by stage (`predicate`, `assume`, `bind`).
        volume_stage_errors: IntCounterVec = make::counters(
            "scheduler_volume_scheduling_stage_error_total",
            "Volume scheduling stage error count",
            &["operation"]
        ),
        /// By extension point.
        framework_extension_point_duration: HistogramVec = make::histograms(
            "scheduler_framework_extension_point_duration_seconds",
            "Latency for running all plugins of a specific extension point.",
            &["extension_point", "status", "profile"],
            buckets(0.0001, 2.0, 12)
        ),
        /// By plugin, for the points that run once a pod.
        plugin_execution_duration: HistogramVec = make::histograms(
            "scheduler_plugin_execution_duration_seconds",
            "Duration for running a plugin at a specific extension point.",
            &["plugin", "extension_point", "status"],
            buckets(0.00001, 1.5, 20)
        ),
        /// PostFilter calls of DefaultPreemption.
        preemption_attempts: IntCounter = make::counter(
            "scheduler_preemption_attempts_total",
            "Total preemption attempts in the cluster till now"
        ),
        /// Victims of each preemption.
        preemption_victims: Histogram = make::histogram(
            "scheduler_preemption_victims",
            "Number of selected preemption victims",
            buckets(1.0, 2.0, 7)
        ),
        /// By part of the queue and event.
        queue_incoming_pods: IntCounterVec = make::counters(
            "scheduler_queue_incoming_pods_total",
            "Number of pods added to scheduling queues by event and queue type.",
            &["queue", "event"]
        ),
        /// Waiting on Permit.
        permit_wait_duration: HistogramVec = make::histograms(
            "scheduler_permit_wait_duration_seconds",
            "Duration of waiting on permit.",
            &["result"],
            buckets(0.001, 2.0, 15)
        ),
        /// Informer events.
        event_handling_duration: HistogramVec = make::histograms(
            "scheduler_event_handling_duration_seconds",
            "Event handling latency in seconds.",
            &["event"],
            buckets(0.0001, 2.0, 12)
        ),
        /// Binding tasks under way.
        goroutines: IntGaugeVec = make::int_gauges(
            "scheduler_goroutines",
            "Number of running goroutines split by the work they do such as binding.",
            &["operation"]
        ),
        /// Looks at a changed configuration file, by what became of them (`success`, `error`). Not upstream's: it never looks again.
        config_reloads: IntCounterVec = make::counters(
            "scheduler_config_reloads_total",
            "Number of times the changed configuration file was loaded again, by the result. After an 'error' the configuration before it stays.",
            &["result"]
        ),
        /// 0: the configuration file cannot be used, an older one is in force.
        config_last_reload_successful: IntGauge = make::int_gauge(
            "scheduler_config_last_reload_successful",
            "Whether the configuration file as it is now is the one in force (1) or could not be used (0)."
        ),
    }
}

component_base::metrics! {
    /// Upstream has them where the gate `GenericWorkload` is on.
    struct GroupFamilies {
        /// Groups of pods, by what became of the attempt.
        pod_group_schedule_attempts: IntCounterVec = make::counters(
            "scheduler_podgroup_schedule_attempts_total",
            "Number of attempts to schedule pod group, by the result. 'unschedulable' means a pod group could not be scheduled, while 'error' means an internal scheduler problem.",
            &["result", "profile"]
        ),
        /// The same, how long they took.
        pod_group_scheduling_attempt_duration: HistogramVec = make::histograms(
            "scheduler_podgroup_scheduling_attempt_duration_seconds",
            "Pod group scheduling attempt latency in seconds",
            &["result", "profile"],
            buckets(0.001, 2.0, 15)
        ),
        /// The decisions of a group alone.
        pod_group_scheduling_algorithm_duration: Histogram = make::histogram(
            "scheduler_podgroup_scheduling_algorithm_duration_seconds",
            "Pod group scheduling algorithm latency in seconds",
            buckets(0.001, 2.0, 15)
        ),
    }
}

component_base::metrics! {
    /// Upstream has them where the gate `TopologyAwareWorkloadScheduling` is on.
    struct PlacementFamilies {
        /// Placements that were made.
        generated_placements: IntCounterVec = make::counters(
            "scheduler_generated_placements_total",
            "Number of candidate placements generated when scheduling pod groups.",
            &["profile"]
        ),
        /// Placements that a group was tried in.
        placement_evaluations: IntCounterVec = make::counters(
            "scheduler_placement_evaluations_total",
            "Number of candidate placements evaluated when scheduling pod groups, by result. 'feasible' means the pod group fit into the placement, while 'infeasible' means it did not.",
            &["result", "profile"]
        ),
        /// The same, how long each took.
        placement_evaluation_duration: HistogramVec = make::histograms(
            "scheduler_placement_evaluation_duration_seconds",
            "Latency in seconds of evaluating a single candidate placement when scheduling pod groups, by result. 'feasible' means the pod group fit into the placement, while 'infeasible' means it did not.",
            &["result", "profile"],
            buckets(0.001, 2.0, 15)
        ),
    }
}

/// What one scheduler counts and measures.
pub struct Metrics {
    clock: Clock,
    families: Families,
    /// `None`: groups of pods are no groups here.
    groups: Option<GroupFamilies>,
    /// `None`: groups have no placements here.
    placements: Option<PlacementFamilies>,
}

impl Metrics {
    /// Makes all of them, at zero, and adds them to the registry. `pod_groups`: the gate `GenericWorkload` is on; `topology_aware`: `TopologyAwareWorkloadScheduling` is.
    ///
    /// # Errors
    /// The registry has one of them already: it is another scheduler's.
    pub fn register(
        registry: &Registry,
        clock: Clock,
        pod_groups: bool,
        topology_aware: bool,
    ) -> Result<Arc<Self>, RegisterError> {
        let families = Families::register(registry)?;
        families.config_last_reload_successful.set(1);
        let groups = pod_groups.then(|| GroupFamilies::register(registry));
        let placements = topology_aware.then(|| PlacementFamilies::register(registry));
        Ok(Arc::new(Metrics {
            clock,
            families,
            groups: groups.transpose()?,
            placements: placements.transpose()?,
        }))
    }

    /// Those that nobody reads: of replays, benchmarks and tests.
    pub fn unread(clock: Clock) -> Arc<Self> {
        Self::register(&Registry::new(), clock, false, false).expect("the registry is empty")
    }

    /// The moment from which something is measured.
    pub fn start(&self) -> Instant {
        self.clock.instant()
    }

    fn since(&self, start: Instant) -> Duration {
        self.clock.instant().saturating_duration_since(start)
    }

    /// Counts an attempt and its duration, by result (`scheduled`, `unschedulable`, `error`) and profile.
    pub fn observe_attempt(&self, result: &str, profile: &str, start: Instant) {
        let families = &self.families;
        let took = self.since(start).as_secs_f64();
        families
            .schedule_attempts
            .with_label_values(&[result, profile])
            .inc();
        families
            .scheduling_attempt_duration
            .with_label_values(&[result, profile])
            .observe(took);
    }

    /// The choice of a node took so long, whatever came of it; when it ended.
    pub fn observe_algorithm(&self, start: Instant) -> Instant {
        let took = self.since(start);
        let families = &self.families;
        families
            .scheduling_algorithm_duration
            .observe(took.as_secs_f64());
        start + took
    }

    /// A pod was bound that entered the queue at `first`.
    pub fn observe_bound(&self, attempts: u32, first: Option<Instant>, was_flushed: bool) {
        let families = &self.families;
        families
            .pod_scheduling_attempts
            .observe(f64::from(attempts));
        if let Some(first) = first {
            let attempts = match attempts {
                15.. => "15+".to_owned(),
                few => few.to_string(),
            };
            families
                .pod_scheduling_sli_duration
                .with_label_values(&[&attempts])
                .observe(self.since(first).as_secs_f64());
        }
        if was_flushed {
            families.pod_scheduled_after_flush.inc();
        }
    }

    /// Counts an attempt for a group of pods and its duration.
    pub fn observe_group_attempt(&self, result: &str, profile: &str, start: Instant) {
        let Some(groups) = &self.groups else { return };
        groups
            .pod_group_schedule_attempts
            .with_label_values(&[result, profile])
            .inc();
        groups
            .pod_group_scheduling_attempt_duration
            .with_label_values(&[result, profile])
            .observe(self.since(start).as_secs_f64());
    }

    /// So many placements were made for a group.
    pub fn observe_placements(&self, profile: &str, count: usize) {
        if let Some(placements) = &self.placements {
            placements
                .generated_placements
                .with_label_values(&[profile])
                .inc_by(count as u64);
        }
    }

    /// A group was tried in a placement; `feasible`: it comes together there.
    pub fn observe_placement(&self, feasible: bool, profile: &str, start: Instant) {
        let Some(placements) = &self.placements else {
            return;
        };
        let result = match feasible {
            true => "feasible",
            false => "infeasible",
        };
        placements
            .placement_evaluations
            .with_label_values(&[result, profile])
            .inc();
        placements
            .placement_evaluation_duration
            .with_label_values(&[result, profile])
            .observe(self.since(start).as_secs_f64());
    }

    /// The decisions of a group took so long.
    pub fn observe_group_algorithm(&self, start: Instant) {
        if let Some(groups) = &self.groups {
            let took = self.since(start).as_secs_f64();
            groups.pod_group_scheduling_algorithm_duration.observe(took);
        }
    }

    /// Observes an extension point.
    pub fn observe_extension_point(
        &self,
        point: &str,
        status: &str,
        profile: &str,
        start: Instant,
    ) {
        self.families
            .framework_extension_point_duration
            .with_label_values(&[point, status, profile])
            .observe(self.since(start).as_secs_f64());
    }

    /// Observes a plugin, at a point that runs once a pod.
    pub fn observe_plugin(&self, plugin: &str, point: &str, status: &str, start: Instant) {
        self.families
            .plugin_execution_duration
            .with_label_values(&[plugin, point, status])
            .observe(self.since(start).as_secs_f64());
    }

    /// A pod has waited on Permit.
    pub fn observe_permit_wait(&self, result: &str, start: Instant) {
        self.families
            .permit_wait_duration
            .with_label_values(&[result])
            .observe(self.since(start).as_secs_f64());
    }

    /// An informer's event was handled.
    pub fn observe_event(&self, event: &str, start: Instant) {
        self.families
            .event_handling_duration
            .with_label_values(&[event])
            .observe(self.since(start).as_secs_f64());
    }

    /// A pod entered a part of the queue.
    pub fn count_incoming(&self, queue: &str, event: &str) {
        self.families
            .queue_incoming_pods
            .with_label_values(&[queue, event])
            .inc();
    }

    /// Counts what runs at a time, by the work it does, until it is dropped.
    pub fn running(&self, operation: &str) -> Running {
        let gauge = self.families.goroutines.with_label_values(&[operation]);
        gauge.inc();
        Running(gauge)
    }

    /// Counts a reload of the configuration.
    pub fn observe_reload(&self, successful: bool) {
        let result = if successful { "success" } else { "error" };
        self.families
            .config_reloads
            .with_label_values(&[result])
            .inc();
        self.families
            .config_last_reload_successful
            .set(i64::from(successful));
    }

    /// Volume scheduling failed, by its stage.
    pub fn count_volume_failure(&self, stage: &str) {
        self.families
            .volume_stage_errors
            .with_label_values(&[stage])
            .inc();
    }

    /// A pod has waited for devices to be made ready.
    pub fn observe_binding_conditions(&self, labels: [&str; 3], waited: Duration) {
        self.families
            .binding_conditions_wait
            .with_label_values(&labels)
            .observe(waited.as_secs_f64());
    }

    /// A device that has to be made ready was allocated.
    pub fn count_binding_conditions(&self, labels: [&str; 3]) {
        self.families
            .binding_conditions_allocations
            .with_label_values(&labels)
            .inc();
    }

    /// A claim was made for extended resources, or was not.
    pub fn count_claim(&self, succeeded: bool) {
        let status = if succeeded { "success" } else { "failure" };
        self.families
            .resource_claim_creates
            .with_label_values(&[status, "false", "", "Pod"])
            .inc();
    }

    /// A preemption: `None` an attempt, a number the victims chosen.
    pub fn observe_preemption(&self, victims: Option<usize>) {
        match victims {
            None => self.families.preemption_attempts.inc(),
            Some(victims) => self.families.preemption_victims.observe(victims as f64),
        }
    }

    #[cfg(test)]
    pub(crate) fn last_reload_successful(&self) -> i64 {
        self.families.config_last_reload_successful.get()
    }
}

/// See [`Metrics::running`].
pub struct Running(IntGauge);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
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
    /// Adds the collector to the registry; `profile` labels `unschedulable_pods` (pods of all profiles are under the first one's name).
    ///
    /// # Errors
    /// The registry has these metrics already.
    pub fn register(
        registry: &Registry,
        queue: Arc<SchedulingQueue>,
        cache: Arc<Cache>,
        profile: &str,
    ) -> Result<(), RegisterError> {
        let collector = StateCollector {
            queue,
            cache,
            pending_pods: make::gauges(
                "scheduler_pending_pods",
                "Number of pending pods, by the queue type. 'active' means number of pods in activeQ; 'backoff' means number of pods in backoffQ; 'unschedulable' means number of pods in unschedulablePods that the scheduler attempted to schedule and failed; 'gated' is the number of unschedulable pods that the scheduler never attempted to schedule because they are gated.",
                &["queue"],
            )?,
            inflight_events: make::gauge(
                "scheduler_inflight_events",
                "Number of events currently tracked in the scheduling queue.",
            )?,
            cache_size: make::gauges(
                "scheduler_cache_size",
                "Number of nodes, pods, and assumed (bound) pods in the scheduler cache.",
                &["type"],
            )?,
            unschedulable_pods: make::gauges(
                "scheduler_unschedulable_pods",
                "The number of unschedulable pods broken down by plugin name. A pod will increment the gauge for all plugins that caused it to not schedule and so this metric have meaning only when broken down by plugin.",
                &["plugin", "profile"],
            )?,
            profile: profile.to_owned(),
        };
        registry.register(Box::new(collector))
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
