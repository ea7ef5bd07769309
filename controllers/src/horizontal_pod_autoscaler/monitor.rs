//! Metrics of the controller itself. Upstream: pkg/controller/podautoscaler/monitor, v1.37.

use std::sync::LazyLock;
use std::time::Duration;

use component_base::metrics::exponential_buckets;
use prometheus::{
    GaugeVec, HistogramVec, IntCounterVec, IntGauge, histogram_opts, register_gauge_vec,
    register_histogram_vec, register_int_counter_vec, register_int_gauge,
};

const PROVEN: &str = "the name is registered only here";

static RECONCILIATIONS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "horizontal_pod_autoscaler_controller_reconciliations_total",
        "Number of reconciliations of HPA controller. The label 'action' should be either 'scale_down', 'scale_up', or 'none'. Also, the label 'error' should be either 'spec', 'internal', or 'none'. Note that if both spec and internal errors happen during a reconciliation, the first one to occur is reported in `error` label.",
        &["action", "error"]
    )
    .expect(PROVEN)
});
static RECONCILIATION_SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    register_histogram_vec!(
        histogram_opts!(
            "horizontal_pod_autoscaler_controller_reconciliation_duration_seconds",
            "The time(seconds) that the HPA controller takes to reconcile once. The label 'action' should be either 'scale_down', 'scale_up', or 'none'. Also, the label 'error' should be either 'spec', 'internal', or 'none'. Note that if both spec and internal errors happen during a reconciliation, the first one to occur is reported in `error` label.",
            exponential_buckets(0.001, 2.0, 15)
        ),
        &["action", "error"]
    )
    .expect(PROVEN)
});
static COMPUTATIONS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "horizontal_pod_autoscaler_controller_metric_computation_total",
        "Number of metric computations. The label 'action' should be either 'scale_down', 'scale_up', or 'none'. Also, the label 'error' should be either 'spec', 'internal', or 'none'. The label 'metric_type' corresponds to HPA.spec.metrics[*].type",
        &["action", "error", "metric_type"]
    )
    .expect(PROVEN)
});
static COMPUTATION_SECONDS: LazyLock<HistogramVec> = LazyLock::new(|| {
    register_histogram_vec!(
        histogram_opts!(
            "horizontal_pod_autoscaler_controller_metric_computation_duration_seconds",
            "The time(seconds) that the HPA controller takes to calculate one metric. The label 'action' should be either 'scale_down', 'scale_up', or 'none'. The label 'error' should be either 'spec', 'internal', or 'none'. The label 'metric_type' corresponds to HPA.spec.metrics[*].type",
            exponential_buckets(0.001, 2.0, 15)
        ),
        &["action", "error", "metric_type"]
    )
    .expect(PROVEN)
});
static AUTOSCALERS: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!(
        "horizontal_pod_autoscaler_controller_num_horizontal_pod_autoscalers",
        "Current number of controlled HPA objects."
    )
    .expect(PROVEN)
});
static DESIRED: LazyLock<GaugeVec> = LazyLock::new(|| {
    register_gauge_vec!(
        "horizontal_pod_autoscaler_controller_desired_replicas",
        "Current desired replica count for HPA objects.",
        &["namespace", "hpa_name"]
    )
    .expect(PROVEN)
});
static STALE: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "horizontal_pod_autoscaler_controller_stale_sync_skips_total",
        "Total number of HPA syncs skipped due to a stale watch cache.",
        &["group", "resource"]
    )
    .expect(PROVEN)
});

/// `scale_up`, `scale_down` or `none`.
pub fn action(before: i32, after: i32) -> &'static str {
    match after.cmp(&before) {
        std::cmp::Ordering::Greater => "scale_up",
        std::cmp::Ordering::Less => "scale_down",
        std::cmp::Ordering::Equal => "none",
    }
}

/// `spec`, `internal` or `none`; `Some(true)` for an error of the specification.
pub fn error(error: Option<bool>) -> &'static str {
    match error {
        Some(true) => "spec",
        Some(false) => "internal",
        None => "none",
    }
}

/// A sync ended.
pub fn reconciled(action: &str, error: &str, took: Duration) {
    RECONCILIATIONS.with_label_values(&[action, error]).inc();
    RECONCILIATION_SECONDS
        .with_label_values(&[action, error])
        .observe(took.as_secs_f64());
}

/// A metric was computed.
pub fn computed(action: &str, error: &str, metric_type: &str, took: Duration) {
    let labels = [action, error, metric_type];
    COMPUTATIONS.with_label_values(&labels).inc();
    COMPUTATION_SECONDS
        .with_label_values(&labels)
        .observe(took.as_secs_f64());
}

/// So many autoscalers are there.
pub fn count(autoscalers: usize) {
    AUTOSCALERS.set(i64::try_from(autoscalers).unwrap_or(i64::MAX));
}

/// What an autoscaler wants.
pub fn desired(namespace: &str, name: &str, replicas: i32) {
    DESIRED
        .with_label_values(&[namespace, name])
        .set(f64::from(replicas));
}

/// An autoscaler is gone. (Upstream goes on showing what it wanted.)
pub fn forget(namespace: &str, name: &str) {
    // Nothing was shown of one that never was computed.
    let _ = DESIRED.remove_label_values(&[namespace, name]);
}

/// A sync was put off because the cache is older than what was written.
pub fn stale() {
    STALE
        .with_label_values(&["autoscaling", "horizontalpodautoscalers"])
        .inc();
}
