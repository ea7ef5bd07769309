//! Another configuration while pods wait.

use std::sync::Arc;

use framework::{ClusterEvent, PodInfo};

use super::config::LiveQueueConfig;
use super::in_flight::InFlightEvent;
use super::requeue::Strategy;
use super::state::State;
use super::{SchedulingQueue, orders};

impl SchedulingQueue {
    /// Works by `live` from now on: sorts anew, forgets pods whose profile is gone, and tries all others again, since who rejected them may no longer be there.
    pub fn reconfigure(&self, live: LiveQueueConfig) {
        let (less, by_backoff, by_error_backoff) = orders(&live.queue_sort);
        let mut state = self.lock();
        self.live.store(Arc::new(live));
        let gone = |pod: &PodInfo| self.profile(pod).is_none();
        let State {
            active,
            backoff,
            error_backoff,
            ..
        } = &mut *state;
        for (heap, less) in [
            (active, less),
            (backoff, by_backoff),
            (error_backoff, by_error_backoff),
        ] {
            for pod in heap.set_less(less, |queued| !gone(&queued.pod)) {
                self.nominator.delete(&pod.pod.uid);
            }
        }
        let event = ClusterEvent::CONFIGURATION_RELOADED;
        let waiting: Vec<Arc<str>> = state.unschedulable.keys().cloned().collect();
        for uid in waiting {
            let Some(queued) = state.take_unschedulable(&uid) else {
                continue;
            };
            if gone(&queued.pod) {
                self.nominator.delete(&uid);
            } else {
                self.requeue(&mut state, queued, Strategy::AfterBackoff, &event.label());
            }
        }
        let told = || InFlightEvent {
            event,
            old: None,
            new: None,
        };
        state.in_flight.add(told);
    }
}
