//! `workqueue_*`, under upstream's names.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, Once};
use std::time::Duration;

use component_base::metrics::exponential_buckets;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
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

/// What workers of one queue do at the moment: seconds all together, seconds of the longest; `None` when the queue is gone.
pub(super) type InProgress = Box<dyn Fn() -> Option<(f64, f64)> + Send + Sync>;

static QUEUES: LazyLock<Mutex<HashMap<String, InProgress>>> = LazyLock::new(Mutex::default);

/// Reports a queue's work in progress whenever somebody scrapes. A queue of the same name takes its place.
pub(super) fn watch(name: &str, in_progress: InProgress) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let gauge = |name: &str, help: &str| {
            GaugeVec::new(prometheus::Opts::new(name, help), &["name"]).expect("the name and label are well-formed")
        };
        let collector = Unfinished {
            unfinished: gauge(
                "workqueue_unfinished_work_seconds",
                "How many seconds of work has done that is in progress and hasn't been observed by work_duration.",
            ),
            longest: gauge(
                "workqueue_longest_running_processor_seconds",
                "How many seconds has the longest running processor for workqueue been running.",
            ),
        };
        // Refused only if a second one is registered; this runs once.
        let _ = prometheus::register(Box::new(collector));
    });
    QUEUES
        .lock()
        .expect("no panic while the lock is held")
        .insert(name.to_string(), in_progress);
}

struct Unfinished {
    unfinished: GaugeVec,
    longest: GaugeVec,
}

impl Collector for Unfinished {
    fn desc(&self) -> Vec<&Desc> {
        self.unfinished
            .desc()
            .into_iter()
            .chain(self.longest.desc())
            .collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut queues = QUEUES.lock().expect("no panic while the lock is held");
        queues.retain(|name, in_progress| match in_progress() {
            Some((unfinished, longest)) => {
                self.unfinished.with_label_values(&[name]).set(unfinished);
                self.longest.with_label_values(&[name]).set(longest);
                true
            }
            None => false,
        });
        drop(queues);
        self.unfinished
            .collect()
            .into_iter()
            .chain(self.longest.collect())
            .collect()
    }
}
