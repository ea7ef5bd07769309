//! The parts of the queue, each pod in one of them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::task::Waker;

use super::QueuedPodInfo;
use super::heap::Heap;
use super::in_flight::InFlight;

/// What the lock guards.
pub(super) struct State {
    pub(super) active: Heap,
    pub(super) backoff: Heap,
    pub(super) error_backoff: Heap,
    pub(super) unschedulable: HashMap<Arc<str>, Box<QueuedPodInfo>>,
    pub(super) rejected_by: HashMap<&'static str, HashSet<Arc<str>>>,
    pub(super) gated: usize,
    pub(super) in_flight: InFlight,
    pub(super) closed: bool,
    /// Of who polls for a pod.
    pub(super) waker: Option<Waker>,
}

impl State {
    pub(super) fn contains(&self, uid: &str) -> bool {
        self.active.contains(uid)
            || self.backoff.contains(uid)
            || self.error_backoff.contains(uid)
            || self.unschedulable.contains_key(uid)
    }

    pub(super) fn put_unschedulable(&mut self, queued: Box<QueuedPodInfo>) {
        for plugin in queued.rejectors() {
            self.rejected_by
                .entry(plugin)
                .or_default()
                .insert(Arc::clone(&queued.pod.uid));
        }
        self.gated += usize::from(queued.gated());
        self.unschedulable
            .insert(Arc::clone(&queued.pod.uid), queued);
    }

    pub(super) fn take_unschedulable(&mut self, uid: &str) -> Option<Box<QueuedPodInfo>> {
        let queued = self.unschedulable.remove(uid)?;
        for plugin in queued.rejectors() {
            if let Some(pods) = self.rejected_by.get_mut(plugin) {
                pods.remove(uid);
            }
        }
        self.gated -= usize::from(queued.gated());
        Some(queued)
    }
}
