//! Where a pod goes: whether an event is worth a retry, PreEnqueue, and the backoff.

use std::sync::Arc;
use std::time::{Duration, Instant};

use framework::{ClusterEvent, EventObject, PodInfo, QueueingHint};

use super::state::State;
use super::{BACKOFF_ORDERING_WINDOW, ProfileQueueing, QueuedPodInfo, SchedulingQueue};

/// What follows from an event for one pod.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Strategy {
    Skip,
    AfterBackoff,
    Immediately,
}

impl SchedulingQueue {
    pub(super) fn requeue(
        &self,
        state: &mut State,
        queued: Box<QueuedPodInfo>,
        strategy: Strategy,
        event: &str,
    ) {
        match strategy {
            Strategy::Skip => {
                (self.config.incoming)("unschedulable", event);
                state.put_unschedulable(queued);
            }
            Strategy::AfterBackoff => {
                let mut queued = queued;
                queued.backoff_expiration = self.backoff_expiration(&queued);
                if self.is_pod_backing_off(queued.backoff_expiration) {
                    self.move_to_backoff(state, queued, event);
                } else {
                    self.move_to_active(state, queued, event, false);
                }
            }
            Strategy::Immediately => self.move_to_active(state, queued, event, false),
        }
    }

    pub(super) fn move_to_active(
        &self,
        state: &mut State,
        mut queued: Box<QueuedPodInfo>,
        event: &str,
        from_backoff: bool,
    ) {
        if !from_backoff {
            self.run_pre_enqueue_plugins(&mut queued);
        }
        if queued.gated() {
            (self.config.incoming)("gated", event);
            state.put_unschedulable(queued);
            return;
        }
        queued
            .initial_attempt_timestamp
            .get_or_insert_with(|| (self.config.now)());
        (self.config.incoming)("active", event);
        state.active.push(queued);
        self.wake(state);
    }

    pub(super) fn move_to_backoff(
        &self,
        state: &mut State,
        mut queued: Box<QueuedPodInfo>,
        event: &str,
    ) {
        self.run_pre_enqueue_plugins(&mut queued);
        if queued.gated() {
            (self.config.incoming)("gated", event);
            state.put_unschedulable(queued);
            return;
        }
        (self.config.incoming)("backoff", event);
        if queued.unschedulable_plugins.is_empty() && queued.pending_plugins.is_empty() {
            state.error_backoff.push(queued);
        } else {
            state.backoff.push(queued);
            self.wake(state);
        }
    }

    pub(super) fn run_pre_enqueue_plugins(&self, queued: &mut QueuedPodInfo) {
        let Some(profile) = self.profile(&queued.pod) else {
            return;
        };
        let first = queued.gating_plugin.take();
        let gate_first = profile
            .pre_enqueue
            .iter()
            .filter(|plugin| Some(plugin.name()) == first);
        let others = profile
            .pre_enqueue
            .iter()
            .filter(|plugin| Some(plugin.name()) != first);
        for plugin in gate_first.chain(others) {
            let Some(pre_enqueue) = plugin.as_pre_enqueue() else {
                continue;
            };
            let status = pre_enqueue.pre_enqueue(&queued.pod.pod);
            if !status.is_success() {
                if status.is_error() {
                    tracing::error!(pod = queued.pod.name(), plugin = plugin.name(), %status, "Unexpected error running PreEnqueue plugin");
                }
                queued.unschedulable_plugins.insert(plugin.name());
                queued.gating_plugin = Some(plugin.name());
                return;
            }
        }
    }

    pub(super) fn profile(&self, pod: &PodInfo) -> Option<Arc<ProfileQueueing>> {
        let name = pod.spec().scheduler_name.as_deref();
        let live = self.live.load();
        live.profiles
            .get(name.unwrap_or("default-scheduler"))
            .cloned()
    }

    pub(super) fn plugin_registered(
        &self,
        plugin: &str,
        pod: &PodInfo,
        event: &ClusterEvent,
    ) -> bool {
        event.is_wild_card()
            || self.profile(pod).is_some_and(|p| {
                p.hints
                    .iter()
                    .any(|(name, hint)| *name == plugin && hint.event.matches(event))
            })
    }

    pub(super) fn is_event_of_interest(&self, event: &ClusterEvent) -> bool {
        event.is_wild_card()
            || self
                .live
                .load()
                .profiles
                .values()
                .any(|p| p.hints.iter().any(|(_, hint)| hint.event.matches(event)))
    }

    pub(super) fn is_pod_worth_requeuing(
        &self,
        queued: &QueuedPodInfo,
        event: &ClusterEvent,
        old: Option<&EventObject>,
        new: Option<&EventObject>,
    ) -> Strategy {
        if queued.rejectors().next().is_none() || event.is_wild_card() {
            return Strategy::AfterBackoff;
        }
        let Some(profile) = self.profile(&queued.pod) else {
            return Strategy::AfterBackoff;
        };
        let mut strategy = Strategy::Skip;
        for (plugin, registered) in &profile.hints {
            let pending = queued.pending_plugins.contains(plugin);
            if !registered.event.matches(event)
                || !(pending || queued.unschedulable_plugins.contains(plugin))
            {
                continue;
            }
            let hint = registered
                .queueing_hint
                .as_ref()
                .map_or(QueueingHint::Queue, |hint| hint(&queued.pod.pod, old, new));
            if hint == QueueingHint::QueueSkip {
                continue;
            }
            if pending {
                return Strategy::Immediately;
            }
            strategy = Strategy::AfterBackoff;
            if queued.pending_plugins.is_empty() {
                return strategy;
            }
        }
        strategy
    }

    pub(super) fn backoff_expiration(&self, queued: &QueuedPodInfo) -> Option<Instant> {
        if queued.backoff_expiration.is_some() {
            return queued.backoff_expiration;
        }
        let count = if queued.consecutive_errors_count > 0 {
            queued.consecutive_errors_count
        } else {
            queued.unschedulable_count
        };
        let live = self.live.load();
        if count == 0 || live.pod_max_backoff.is_zero() {
            return None;
        }
        let doubled = 2u32
            .checked_pow(count - 1)
            .and_then(|factor| live.pod_initial_backoff.checked_mul(factor));
        let backoff = doubled.unwrap_or(Duration::MAX).min(live.pod_max_backoff);
        Some(self.align_to_window(queued.timestamp + backoff))
    }

    pub(super) fn is_pod_backing_off(&self, expiration: Option<Instant>) -> bool {
        expiration.is_some_and(|expiration| expiration >= self.align_to_window((self.config.now)()))
    }

    pub(super) fn align_to_window(&self, time: Instant) -> Instant {
        let windows = time.saturating_duration_since(self.epoch).as_nanos()
            / BACKOFF_ORDERING_WINDOW.as_nanos();
        self.epoch + BACKOFF_ORDERING_WINDOW * windows as u32
    }
}
