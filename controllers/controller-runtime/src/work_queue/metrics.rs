//! `workqueue_*`, under upstream's names.

use std::sync::LazyLock;
use std::time::Duration;

use component_base::metrics::exponential_buckets;
use prometheus::{Counter, CounterVec, Gauge, GaugeVec, Histogram, HistogramVec};
use prometheus::{
    histogram_opts, register_counter_vec, register_gauge_vec, register_histogram_vec,
};

const PROVEN: &str = "the name is registered only here";

static DEPTH: LazyLock<GaugeVec> = LazyLock::new(|| {
    register_gauge_vec!(
        "workqueue_depth",
        "Current depth of workqueue by workqueue",
        &["name"]
    )
    .expect(PROVEN)
});
static ADDS: LazyLock<CounterVec> = LazyLock::new(|| {
    register_counter_vec!(
        "workqueue_adds_total",
        "Total number of adds handled by workqueue",
        &["name"]
    )
    .expect(PROVEN)
});
static RETRIES: LazyLock<CounterVec> = LazyLock::new(|| {
    register_counter_vec!(
        "workqueue_retries_total",
        "Total number of retries handled by workqueue",
        &["name"]
    )
    .expect(PROVEN)
});
static QUEUE: LazyLock<HistogramVec> = LazyLock::new(|| {
    register_histogram_vec!(
        histogram_opts!(
            "workqueue_queue_duration_seconds",
            "How long in seconds an item stays in workqueue before being requested.",
            exponential_buckets(1e-8, 10.0, 10)
        ),
        &["name"]
    )
    .expect(PROVEN)
});
static WORK: LazyLock<HistogramVec> = LazyLock::new(|| {
    register_histogram_vec!(
        histogram_opts!(
            "workqueue_work_duration_seconds",
            "How long in seconds processing an item from workqueue takes.",
            exponential_buckets(1e-8, 10.0, 10)
        ),
        &["name"]
    )
    .expect(PROVEN)
});

pub(super) struct QueueMetrics {
    pub(super) depth: Gauge,
    pub(super) adds: Counter,
    pub(super) retries: Counter,
    pub(super) work: Histogram,
    queue: Histogram,
}

impl QueueMetrics {
    pub(super) fn new(name: &str) -> Self {
        Self {
            depth: DEPTH.with_label_values(&[name]),
            adds: ADDS.with_label_values(&[name]),
            retries: RETRIES.with_label_values(&[name]),
            work: WORK.with_label_values(&[name]),
            queue: QUEUE.with_label_values(&[name]),
        }
    }

    pub(super) fn got(&self, waited: Duration, depth: usize) {
        self.queue.observe(waited.as_secs_f64());
        self.depth.set(depth as f64);
    }
}
