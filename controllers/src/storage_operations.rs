//! How long drivers and plugins of volumes take: what the controllers of volumes measure together.
//!
//! Upstream: pkg/volume/util/metrics.go, v1.37.

use std::time::Duration;

use component_base::metrics::make;
use prometheus::HistogramVec;

/// Upstream: `storageOperationMetric`.
pub(crate) fn buckets() -> Vec<f64> {
    vec![
        0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0,
    ]
}

component_base::metrics! {
    /// Shared by the controllers of one component.
    pub struct StorageOperations {
        seconds: HistogramVec = make::histograms(
            "storage_operation_duration_seconds",
            "Storage operation duration",
            &["volume_plugin", "operation_name", "status", "migrated"],
            buckets(),
        ),
    }
}

impl StorageOperations {
    /// Counts how long a plugin took.
    pub fn record(&self, plugin: &str, operation: &str, success: bool, took: Duration) {
        let status = if success { "success" } else { "fail-unknown" };
        self.seconds
            .with_label_values(&[plugin, operation, status, "false"])
            .observe(took.as_secs_f64());
    }
}
