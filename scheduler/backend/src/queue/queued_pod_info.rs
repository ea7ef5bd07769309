//! A pod as the queue holds it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use framework::PodInfo;

/// Where and how a pod waits, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodInQueue {
    /// `active`, `backoff`, `unschedulable`, `gated` or `inFlight`.
    pub place: &'static str,
    /// How often it was popped.
    pub attempts: u32,
    /// Plugins that rejected it last time.
    pub rejected_by: Vec<&'static str>,
    /// The PreEnqueue plugin that keeps it out.
    pub gated_by: Option<&'static str>,
    /// How long it backs off still.
    pub backoff: Option<Duration>,
}

/// A pod in the queue.
#[derive(Debug, Clone)]
pub struct QueuedPodInfo {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// When it was last put into the queue.
    pub timestamp: Instant,
    /// How often it was popped.
    pub attempts: u32,
    /// How often it was found unschedulable; gives the backoff.
    pub unschedulable_count: u32,
    /// How often in a row it failed with an error; gives the backoff, too.
    pub consecutive_errors_count: u32,
    /// When it first entered the active queue; starts the pod's SLI duration.
    pub initial_attempt_timestamp: Option<Instant>,
    /// Plugins that rejected it last time.
    pub unschedulable_plugins: BTreeSet<&'static str>,
    /// Plugins that answered `Pending` last time.
    pub pending_plugins: BTreeSet<&'static str>,
    /// The PreEnqueue plugin that keeps it out.
    pub gating_plugin: Option<&'static str>,
    /// Did it come back only because it had waited so long?
    pub was_flushed_from_unschedulable: bool,
    pub(super) backoff_expiration: Option<Instant>,
}

impl QueuedPodInfo {
    pub(super) fn new(pod: Arc<PodInfo>, now: Instant) -> Self {
        QueuedPodInfo {
            pod,
            timestamp: now,
            attempts: 0,
            unschedulable_count: 0,
            consecutive_errors_count: 0,
            initial_attempt_timestamp: None,
            unschedulable_plugins: BTreeSet::new(),
            pending_plugins: BTreeSet::new(),
            gating_plugin: None,
            was_flushed_from_unschedulable: false,
            backoff_expiration: None,
        }
    }

    /// Kept out by PreEnqueue?
    pub fn gated(&self) -> bool {
        self.gating_plugin.is_some()
    }

    pub(super) fn rejectors(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.unschedulable_plugins
            .union(&self.pending_plugins)
            .copied()
    }
}
