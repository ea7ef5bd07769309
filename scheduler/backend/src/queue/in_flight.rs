//! Pods that were popped and not put back or bound, and the events that came meanwhile.
//!
//! A pod that fails is not sent to wait for an event that has already happened: the events since it was popped are replayed on it. An event is kept only as
//! long as a pod popped before it is in flight.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use framework::{ClusterEvent, EventObject};

/// An event with its object.
#[derive(Clone)]
pub(super) struct InFlightEvent {
    pub(super) event: ClusterEvent,
    pub(super) old: Option<EventObject>,
    pub(super) new: Option<EventObject>,
}

#[derive(Default)]
pub(super) struct InFlight {
    pods: HashMap<Arc<str>, u64>,
    starts: BTreeSet<u64>,
    events: VecDeque<(u64, InFlightEvent)>,
    next: u64,
}

impl InFlight {
    pub(super) fn contains(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    /// False when the pod is in flight already.
    pub(super) fn start(&mut self, uid: &Arc<str>) -> bool {
        if self.contains(uid) {
            return false;
        }
        self.next += 1;
        self.starts.insert(self.next);
        self.pods.insert(Arc::clone(uid), self.next);
        true
    }

    pub(super) fn done(&mut self, uid: &str) {
        let Some(start) = self.pods.remove(uid) else {
            return;
        };
        self.starts.remove(&start);
        let oldest = self.starts.first().copied().unwrap_or(u64::MAX);
        while self.events.front().is_some_and(|(at, _)| *at < oldest) {
            self.events.pop_front();
        }
    }

    /// Notes an event, if any pod is in flight.
    pub(super) fn add(&mut self, event: impl FnOnce() -> InFlightEvent) {
        if !self.pods.is_empty() {
            self.next += 1;
            self.events.push_back((self.next, event()));
        }
    }

    /// The events since the pod was popped; `None` when it is not in flight.
    pub(super) fn events_since_start(&self, uid: &str) -> Option<Vec<InFlightEvent>> {
        let start = *self.pods.get(uid)?;
        let first = self.events.partition_point(|(at, _)| *at < start);
        Some(
            self.events
                .range(first..)
                .map(|(_, event)| event.clone())
                .collect(),
        )
    }

    pub(super) fn clear(&mut self) {
        *self = InFlight::default();
    }

    pub(super) fn counts(&self) -> (usize, usize) {
        (self.pods.len(), self.events.len())
    }
}
