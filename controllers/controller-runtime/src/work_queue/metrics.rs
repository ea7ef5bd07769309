//! `workqueue_*`, under upstream's names, in a registry that is handed in.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use component_base::metrics::{RegisterError, Registry, exponential_buckets, make};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec};

component_base::metrics! {
    struct Families {
        depth: GaugeVec = make::gauges(
            "workqueue_depth",
            "Current depth of workqueue by workqueue",
            &["name"],
        ),
        adds: IntCounterVec = make::counters(
            "workqueue_adds_total",
            "Total number of adds handled by workqueue",
            &["name"],
        ),
        retries: IntCounterVec = make::counters(
            "workqueue_retries_total",
            "Total number of retries handled by workqueue",
            &["name"],
        ),
        queue: HistogramVec = make::histograms(
            "workqueue_queue_duration_seconds",
            "How long in seconds an item stays in workqueue before being requested.",
            &["name"],
            exponential_buckets(1e-8, 10.0, 10),
        ),
        work: HistogramVec = make::histograms(
            "workqueue_work_duration_seconds",
            "How long in seconds processing an item from workqueue takes.",
            &["name"],
            exponential_buckets(1e-8, 10.0, 10),
        ),
    }
}

/// What workers of one queue do at the moment: seconds all together, seconds of the longest; `None` when the queue is gone.
pub(super) type InProgress = Box<dyn Fn() -> Option<(f64, f64)> + Send + Sync>;

/// Work in progress by the name of its queue.
#[derive(Clone, Default)]
struct Watched(Arc<Mutex<HashMap<String, InProgress>>>);

impl Watched {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, InProgress>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of all queues of one component.
pub(super) struct Metrics {
    families: Families,
    watched: Watched,
}

impl Metrics {
    /// # Errors
    /// The registry has those of other queues.
    pub(super) fn register(registry: &Registry) -> Result<Self, RegisterError> {
        let watched = Watched::default();
        registry.register(Box::new(Unfinished::new(watched.clone())?))?;
        Ok(Self {
            families: Families::register(registry)?,
            watched,
        })
    }

    pub(super) fn of_queue(&self, name: &str) -> QueueMetrics {
        let families = &self.families;
        QueueMetrics {
            depth: families.depth.with_label_values(&[name]),
            adds: families.adds.with_label_values(&[name]),
            retries: families.retries.with_label_values(&[name]),
            work: families.work.with_label_values(&[name]),
            queue: families.queue.with_label_values(&[name]),
        }
    }

    /// Reports a queue's work in progress whenever somebody scrapes. A queue of the same name takes its place.
    pub(super) fn watch(&self, name: &str, in_progress: InProgress) {
        self.watched.lock().insert(name.to_string(), in_progress);
    }
}

pub(super) struct QueueMetrics {
    pub(super) depth: Gauge,
    pub(super) adds: IntCounter,
    pub(super) retries: IntCounter,
    pub(super) work: Histogram,
    queue: Histogram,
}

impl QueueMetrics {
    pub(super) fn got(&self, waited: Duration, depth: usize) {
        self.queue.observe(waited.as_secs_f64());
        self.depth.set(depth as f64);
    }
}

struct Unfinished {
    watched: Watched,
    unfinished: GaugeVec,
    longest: GaugeVec,
}

impl Unfinished {
    fn new(watched: Watched) -> Result<Self, RegisterError> {
        Ok(Self {
            watched,
            unfinished: make::gauges(
                "workqueue_unfinished_work_seconds",
                "How many seconds of work has done that is in progress and hasn't been observed by work_duration.",
                &["name"],
            )?,
            longest: make::gauges(
                "workqueue_longest_running_processor_seconds",
                "How many seconds has the longest running processor for workqueue been running.",
                &["name"],
            )?,
        })
    }
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
        let mut queues = self.watched.lock();
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
