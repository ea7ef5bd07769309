//! Where pods wait and how, for people.

use std::sync::Arc;
use std::time::{Duration, Instant};

use framework::PodInfo;

use super::{PodInQueue, QueuedPodInfo, SchedulingQueue};

/// A pod that waits.
#[derive(Debug, Clone)]
pub struct WaitingPod {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// Where and how it waits.
    pub queued: PodInQueue,
    /// Since its first attempt might have begun; a pod that is kept out: since it came.
    pub waited: Duration,
}

impl QueuedPodInfo {
    fn in_queue(&self, place: &'static str, now: Instant) -> PodInQueue {
        let backoff = self.backoff_expiration;
        PodInQueue {
            place,
            attempts: self.attempts,
            rejected_by: self.rejectors().collect(),
            gated_by: self.gating_plugin,
            backoff: backoff.map(|end| end.saturating_duration_since(now)),
        }
    }

    fn waiting(&self, place: &'static str, now: Instant) -> WaitingPod {
        let since = self.initial_attempt_timestamp.unwrap_or(self.timestamp);
        WaitingPod {
            pod: Arc::clone(&self.pod),
            queued: self.in_queue(place, now),
            waited: now.saturating_duration_since(since),
        }
    }

    /// The part of those that wait for an event.
    fn place(&self) -> &'static str {
        match self.gated() {
            true => "gated",
            false => "unschedulable",
        }
    }
}

impl SchedulingQueue {
    /// Where a pod waits; `None` when it does not.
    pub fn find(&self, uid: &str) -> Option<PodInQueue> {
        let state = self.lock();
        let now = (self.config.now)();
        if state.in_flight.contains(uid) {
            return Some(PodInQueue {
                place: "inFlight",
                ..PodInQueue::default()
            });
        }
        let heaps = [
            ("active", &state.active),
            ("backoff", &state.backoff),
            ("backoff", &state.error_backoff),
        ];
        for (place, heap) in heaps {
            if let Some(queued) = heap.get(uid) {
                return Some(queued.in_queue(place, now));
            }
        }
        let queued = state.unschedulable.get(uid)?;
        Some(queued.in_queue(queued.place(), now))
    }

    /// The pods that wait, at most `most` of each part (those that are kept out count to those that wait for an event), in no order.
    pub fn waiting(&self, most: usize) -> Vec<WaitingPod> {
        let state = self.lock();
        let now = (self.config.now)();
        let active = state.active.iter().map(|queued| ("active", queued));
        let backoff = state.backoff.iter().chain(state.error_backoff.iter());
        let backoff = backoff.map(|queued| ("backoff", queued));
        // Both kinds count as one: to look for one among a million of the other would hold the lock for long.
        let others = state.unschedulable.values();
        let others = others.map(|queued| (queued.place(), &**queued));
        let all = active.take(most).chain(backoff.take(most));
        all.chain(others.take(most))
            .map(|(place, queued)| queued.waiting(place, now))
            .collect()
    }
}
