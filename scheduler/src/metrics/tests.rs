//! What a scrape shows, by name; and that two schedulers count apart.

use prometheus::proto::MetricType;

use super::*;

/// Names with kind, labels and how many buckets there are. Those before there was one registry a scheduler, in the order of a scrape.
const SHOWN: &[&str] = &[
    "dynamic_resource_allocation_resourceclaim_creates_total COUNTER [admin_access owner_api_group owner_api_kind status]",
    "scheduler_config_last_reload_successful GAUGE []",
    "scheduler_config_reloads_total COUNTER [result]",
    "scheduler_dra_bindingconditions_allocations_total COUNTER [driver profile status]",
    "scheduler_dra_bindingconditions_wait_duration_seconds HISTOGRAM [driver profile status] 14",
    "scheduler_event_handling_duration_seconds HISTOGRAM [event] 12",
    "scheduler_framework_extension_point_duration_seconds HISTOGRAM [extension_point profile status] 12",
    "scheduler_generated_placements_total COUNTER [profile]",
    "scheduler_goroutines GAUGE [operation]",
    "scheduler_permit_wait_duration_seconds HISTOGRAM [result] 15",
    "scheduler_placement_evaluation_duration_seconds HISTOGRAM [profile result] 15",
    "scheduler_placement_evaluations_total COUNTER [profile result]",
    "scheduler_plugin_execution_duration_seconds HISTOGRAM [extension_point plugin status] 20",
    "scheduler_pod_scheduled_after_flush_total COUNTER []",
    "scheduler_pod_scheduling_attempts HISTOGRAM [] 5",
    "scheduler_pod_scheduling_sli_duration_seconds HISTOGRAM [attempts] 20",
    "scheduler_podgroup_schedule_attempts_total COUNTER [profile result]",
    "scheduler_podgroup_scheduling_algorithm_duration_seconds HISTOGRAM [] 15",
    "scheduler_podgroup_scheduling_attempt_duration_seconds HISTOGRAM [profile result] 15",
    "scheduler_preemption_attempts_total COUNTER []",
    "scheduler_preemption_victims HISTOGRAM [] 7",
    "scheduler_queue_incoming_pods_total COUNTER [event queue]",
    "scheduler_schedule_attempts_total COUNTER [profile result]",
    "scheduler_scheduling_algorithm_duration_seconds HISTOGRAM [] 15",
    "scheduler_scheduling_attempt_duration_seconds HISTOGRAM [profile result] 15",
    "scheduler_volume_scheduling_stage_error_total COUNTER [operation]",
];

fn shown(registry: &Registry) -> Vec<String> {
    let families = registry.gather().into_iter();
    let line = |family: MetricFamily| {
        let metric = &family.get_metric()[0];
        let labels = metric.get_label().iter();
        let labels: Vec<&str> = labels.map(|label| label.name()).collect();
        let kind = family.get_field_type();
        let buckets = match kind {
            MetricType::HISTOGRAM => format!(" {}", metric.get_histogram().get_bucket().len()),
            _ => String::new(),
        };
        format!("{} {kind:?} [{}]{buckets}", family.name(), labels.join(" "))
    };
    families.map(line).collect()
}

fn touch_all(metrics: &Metrics) {
    let start = metrics.start();
    metrics.observe_attempt("scheduled", "p", start);
    metrics.observe_algorithm(start);
    metrics.observe_bound(15, Some(start), true);
    metrics.observe_group_attempt("scheduled", "p", start);
    metrics.observe_group_algorithm(start);
    metrics.observe_placements("p", 2);
    metrics.observe_placement(true, "p", start);
    metrics.observe_extension_point("Filter", "Success", "p", start);
    metrics.observe_plugin("Fit", "PreFilter", "Success", start);
    metrics.observe_permit_wait("Success", start);
    metrics.observe_event("NodeAdd", start);
    metrics.count_incoming("active", "PodAdd");
    drop(metrics.running("binding"));
    metrics.observe_reload(true);
    metrics.count_volume_failure("bind");
    metrics.observe_binding_conditions(["p", "d", "success"], Duration::ZERO);
    metrics.count_binding_conditions(["p", "d", "success"]);
    metrics.count_claim(true);
    metrics.observe_preemption(None);
    metrics.observe_preemption(Some(1));
}

#[test]
fn every_metric_has_its_name_labels_and_buckets() {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry, Clock::real(), true, true).unwrap();
    touch_all(&metrics);
    assert_eq!(shown(&registry), SHOWN);
}

#[test]
fn without_the_gate_nothing_is_said_of_groups() {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry, Clock::real(), false, false).unwrap();
    touch_all(&metrics);
    let shown = shown(&registry);
    let of_groups = |line: &String| line.contains("podgroup") || line.contains("placement");
    assert!(!shown.iter().any(of_groups));
    assert_eq!(shown.len(), SHOWN.len() - 6);
}

#[test]
fn two_schedulers_count_apart_and_a_registry_has_one() {
    let (one, two) = (Registry::new(), Registry::new());
    let register = |registry| Metrics::register(registry, Clock::real(), false, false);
    let (first, second) = (register(&one).unwrap(), register(&two).unwrap());
    first.observe_preemption(None);
    first.observe_preemption(None);
    second.observe_preemption(None);
    let attempts = |registry: &Registry| {
        let families = registry.gather();
        let name = "scheduler_preemption_attempts_total";
        let family = families.iter().find(|f| f.name() == name).unwrap();
        family.get_metric()[0].get_counter().get_value()
    };
    assert_eq!((attempts(&one), attempts(&two)), (2.0, 1.0));
    assert!(register(&one).is_err());
}
