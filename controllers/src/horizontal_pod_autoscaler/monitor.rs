//! Metrics of the controller itself. Upstream: pkg/controller/podautoscaler/monitor, v1.37.

use std::time::Duration;

use component_base::metrics::{exponential_buckets, make};
use prometheus::{GaugeVec, HistogramVec, IntCounterVec, IntGauge};

component_base::metrics! {
    /// What the controller counts and measures.
    pub struct Monitor {
        reconciliations: IntCounterVec = make::counters(
            "horizontal_pod_autoscaler_controller_reconciliations_total",
            "Number of reconciliations of HPA controller. The label 'action' should be either 'scale_down', 'scale_up', or 'none'. Also, the label 'error' should be either 'spec', 'internal', or 'none'. Note that if both spec and internal errors happen during a reconciliation, the first one to occur is reported in `error` label.",
            &["action", "error"],
        ),
        reconciliation_seconds: HistogramVec = make::histograms(
            "horizontal_pod_autoscaler_controller_reconciliation_duration_seconds",
            "The time(seconds) that the HPA controller takes to reconcile once. The label 'action' should be either 'scale_down', 'scale_up', or 'none'. Also, the label 'error' should be either 'spec', 'internal', or 'none'. Note that if both spec and internal errors happen during a reconciliation, the first one to occur is reported in `error` label.",
            &["action", "error"],
            exponential_buckets(0.001, 2.0, 15),
        ),
        computations: IntCounterVec = make::counters(
            "horizontal_pod_autoscaler_controller_metric_computation_total",
            "Number of metric computations. The label 'action' should be either 'scale_down', 'scale_up', or 'none'. Also, the label 'error' should be either 'spec', 'internal', or 'none'. The label 'metric_type' corresponds to HPA.spec.metrics[*].type",
            &["action", "error", "metric_type"],
        ),
        computation_seconds: HistogramVec = make::histograms(
            "horizontal_pod_autoscaler_controller_metric_computation_duration_seconds",
            "The time(seconds) that the HPA controller takes to calculate one metric. The label 'action' should be either 'scale_down', 'scale_up', or 'none'. The label 'error' should be either 'spec', 'internal', or 'none'. The label 'metric_type' corresponds to HPA.spec.metrics[*].type",
            &["action", "error", "metric_type"],
            exponential_buckets(0.001, 2.0, 15),
        ),
        autoscalers: IntGauge = make::int_gauge(
            "horizontal_pod_autoscaler_controller_num_horizontal_pod_autoscalers",
            "Current number of controlled HPA objects.",
        ),
        desired: GaugeVec = make::gauges(
            "horizontal_pod_autoscaler_controller_desired_replicas",
            "Current desired replica count for HPA objects.",
            &["namespace", "hpa_name"],
        ),
        stale: IntCounterVec = make::counters(
            "horizontal_pod_autoscaler_controller_stale_sync_skips_total",
            "Total number of HPA syncs skipped due to a stale watch cache.",
            &["group", "resource"],
        ),
    }
}

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

impl Monitor {
    /// A sync ended.
    pub fn reconciled(&self, action: &str, error: &str, took: Duration) {
        let labels = [action, error];
        self.reconciliations.with_label_values(&labels).inc();
        self.reconciliation_seconds
            .with_label_values(&labels)
            .observe(took.as_secs_f64());
    }

    /// A metric was computed.
    pub fn computed(&self, action: &str, error: &str, metric_type: &str, took: Duration) {
        let labels = [action, error, metric_type];
        self.computations.with_label_values(&labels).inc();
        self.computation_seconds
            .with_label_values(&labels)
            .observe(took.as_secs_f64());
    }

    /// So many autoscalers are there.
    pub fn count(&self, autoscalers: usize) {
        let count = i64::try_from(autoscalers).unwrap_or(i64::MAX);
        self.autoscalers.set(count);
    }

    /// What an autoscaler wants.
    pub fn desired(&self, namespace: &str, name: &str, replicas: i32) {
        self.desired
            .with_label_values(&[namespace, name])
            .set(f64::from(replicas));
    }

    /// An autoscaler is gone. (Upstream goes on showing what it wanted.)
    pub fn forget(&self, namespace: &str, name: &str) {
        // Nothing was shown of one that never was computed.
        let _ = self.desired.remove_label_values(&[namespace, name]);
    }

    /// A sync was put off because the cache is older than what was written.
    pub fn stale(&self) {
        self.stale
            .with_label_values(&["autoscaling", "horizontalpodautoscalers"])
            .inc();
    }
}
