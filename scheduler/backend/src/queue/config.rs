//! How a queue works, and what profiles bring to it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use framework::{ClusterEventWithHint, Plugin};

/// What a profile brings to the queue.
#[derive(Default, Clone)]
pub struct ProfileQueueing {
    /// PreEnqueue plugins, in order.
    pub pre_enqueue: Vec<Arc<dyn Plugin>>,
    /// Which plugin wants to hear which event.
    pub hints: Vec<(&'static str, ClusterEventWithHint)>,
}

/// Called for each pod that enters a part of the queue (`active`, `backoff`, `unschedulable`, `gated`), with the event's label.
pub type IncomingObserver = Arc<dyn Fn(&'static str, &str) + Send + Sync>;

/// How a queue works.
#[derive(Clone)]
pub struct QueueConfig {
    /// What may change while it works.
    pub live: LiveQueueConfig,
    /// A pod waits this long for an event before it is tried anyway; 5 min.
    pub pod_max_in_unschedulable_pods_duration: Duration,
    /// The clock.
    pub now: Arc<dyn Fn() -> Instant + Send + Sync>,
    /// For metrics.
    pub incoming: IncomingObserver,
}

/// What may change while a queue works.
#[derive(Clone)]
pub struct LiveQueueConfig {
    /// The QueueSort plugin.
    pub queue_sort: Arc<dyn Plugin>,
    /// By `schedulerName`.
    pub profiles: HashMap<String, Arc<ProfileQueueing>>,
    /// The first backoff; 1 s.
    pub pod_initial_backoff: Duration,
    /// The longest backoff; 10 s. Zero turns backoff off.
    pub pod_max_backoff: Duration,
}

impl LiveQueueConfig {
    /// Upstream's defaults, no profiles.
    pub fn new(queue_sort: Arc<dyn Plugin>) -> Self {
        LiveQueueConfig {
            queue_sort,
            profiles: HashMap::new(),
            pod_initial_backoff: Duration::from_secs(1),
            pod_max_backoff: Duration::from_secs(10),
        }
    }
}

impl QueueConfig {
    /// Upstream's defaults, by this clock.
    pub fn new(queue_sort: Arc<dyn Plugin>, now: Arc<dyn Fn() -> Instant + Send + Sync>) -> Self {
        QueueConfig {
            live: LiveQueueConfig::new(queue_sort),
            pod_max_in_unschedulable_pods_duration: Duration::from_secs(300),
            now,
            incoming: Arc::new(|_, _| {}),
        }
    }
}
