//! [`SchedulingQueue`]: the pods without a node.
//!
//! ```text
//!   add --> PreEnqueue --ok--> active --pop--> in flight --bound--> done
//!              |                 ^  ^              |
//!            gated               |  |            failed: events since pop replayed on it
//!              v                 |  |              |
//!        unschedulable --event and hint--> backoff <--+--> unschedulable
//!        (5 min at most)            (1 s doubling to 10 s)
//! ```
//!
//! An event is offered only to pods that a plugin rejected which registered for it, and that plugin's hint decides. When nothing is active, pods still
//! backing off are popped (except those that failed with an error).
//! Upstream: pkg/scheduler/backend/queue, v1.36 (SchedulerQueueingHints, SchedulerPopFromBackoffQ on).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use framework::event::pod_scheduling_properties_change;
use framework::{ClusterEvent, EventObject, NominatingInfo, Plugin, PodInfo, QueuedPod};

mod config;
mod heap;
mod in_flight;
mod nominator;
mod queued_pod_info;
mod reconfigure;
mod requeue;
mod state;
#[cfg(test)]
mod tests;
mod waiting;

pub use config::{IncomingObserver, LiveQueueConfig, ProfileQueueing, QueueConfig};
use heap::{Heap, Less};
use in_flight::{InFlight, InFlightEvent};
pub use nominator::Nominator;
pub use queued_pod_info::{PodInQueue, QueuedPodInfo};
use requeue::Strategy;
use state::State;
pub use waiting::WaitingPod;

/// Pods popped close together are ordered by priority within this window (upstream's `backoffQOrderingWindowDuration`).
pub const BACKOFF_ORDERING_WINDOW: Duration = Duration::from_secs(1);

/// Numbers of the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// In the active queue.
    pub active: usize,
    /// Backing off.
    pub backoff: usize,
    /// Waiting for an event, gated ones not counted.
    pub unschedulable: usize,
    /// Kept out by PreEnqueue.
    pub gated: usize,
    /// Popped and undecided.
    pub in_flight_pods: usize,
    /// Events kept for those.
    pub in_flight_events: usize,
}

/// The queue. Shared; every method locks shortly.
pub struct SchedulingQueue {
    config: QueueConfig,
    /// Replaced under the lock of `state`.
    live: ArcSwap<LiveQueueConfig>,
    epoch: Instant,
    state: Mutex<State>,
    ready: Condvar,
    nominator: Arc<Nominator>,
}

const FAILED_ATTEMPT: &str = "ScheduleAttemptFailure";
const BACKOFF_COMPLETE: &str = "BackoffComplete";
const POP_FROM_BACKOFF: &str = "PopFromBackoffQ";

impl SchedulingQueue {
    /// An empty queue.
    pub fn new(config: QueueConfig) -> Self {
        let (less, by_backoff, by_error_backoff) = orders(&config.live.queue_sort);
        SchedulingQueue {
            epoch: (config.now)(),
            state: Mutex::new(State {
                active: Heap::new(less),
                backoff: Heap::new(by_backoff),
                error_backoff: Heap::new(by_error_backoff),
                unschedulable: HashMap::new(),
                rejected_by: HashMap::new(),
                gated: 0,
                in_flight: InFlight::default(),
                closed: false,
                waker: None,
            }),
            ready: Condvar::new(),
            nominator: Arc::default(),
            live: ArcSwap::from_pointee(config.live.clone()),
            config,
        }
    }

    /// The nominations.
    pub fn nominator(&self) -> &Arc<Nominator> {
        &self.nominator
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod without a node appeared.
    pub fn add(&self, pod: Arc<PodInfo>) {
        let mut state = self.lock();
        if state.contains(&pod.uid) || state.in_flight.contains(&pod.uid) {
            return;
        }
        self.nominator.add(&pod, &NominatingInfo::Noop);
        let queued = Box::new(QueuedPodInfo::new(pod, (self.config.now)()));
        self.move_to_active(
            &mut state,
            queued,
            &ClusterEvent::UNSCHEDULED_POD_ADD.label(),
            false,
        );
    }

    /// A pod without a node changed. `new` is its newest form.
    pub fn update(&self, old: &PodInfo, new: Arc<PodInfo>) {
        let mut state = self.lock();
        self.nominator.update(old.nominated_node_name(), &new);
        let events = pod_scheduling_properties_change(&new.pod, &old.pod);
        let objects = || {
            (
                Some(EventObject::Pod(Arc::clone(&old.pod))),
                Some(EventObject::Pod(Arc::clone(&new.pod))),
            )
        };
        if state.in_flight.contains(&new.uid) {
            for event in events {
                let (old, new) = objects();
                state.in_flight.add(|| InFlightEvent { event, old, new });
            }
            return;
        }
        let State {
            active,
            backoff,
            error_backoff,
            ..
        } = &mut *state;
        for heap in [active, backoff, error_backoff] {
            if let Some(mut queued) = heap.remove(&new.uid) {
                queued.pod = new;
                heap.push(queued);
                return;
            }
        }
        if let Some(mut queued) = state.take_unschedulable(&new.uid) {
            queued.pod = Arc::clone(&new);
            let (old, new) = objects();
            for event in &events {
                let strategy =
                    self.is_pod_worth_requeuing(&queued, event, old.as_ref(), new.as_ref());
                if strategy != Strategy::Skip {
                    self.requeue(&mut state, queued, strategy, &event.label());
                    return;
                }
            }
            state.put_unschedulable(queued);
            return;
        }
        let queued = Box::new(QueuedPodInfo::new(new, (self.config.now)()));
        self.move_to_active(
            &mut state,
            queued,
            &ClusterEvent::UNSCHEDULED_POD_UPDATE.label(),
            false,
        );
    }

    /// A pod is gone, or has a node.
    pub fn delete(&self, uid: &str) {
        let mut state = self.lock();
        self.nominator.delete(uid);
        let State {
            active,
            backoff,
            error_backoff,
            ..
        } = &mut *state;
        if [active, backoff, error_backoff]
            .into_iter()
            .any(|heap| heap.remove(uid).is_some())
        {
            return;
        }
        state.take_unschedulable(uid);
    }

    /// The next pod to schedule, now in flight; waits for one. `None` once the queue is closed.
    pub fn pop(&self) -> Option<Box<QueuedPodInfo>> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(popped) = self.try_pop_locked(&mut state) {
                return Some(popped);
            }
            state = self
                .ready
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// As [`SchedulingQueue::pop`], for a loop in a task; the last that polled is woken.
    pub fn poll_pop(&self, context: &mut Context<'_>) -> Poll<Option<Box<QueuedPodInfo>>> {
        let mut state = self.lock();
        if state.closed {
            return Poll::Ready(None);
        }
        if let Some(popped) = self.try_pop_locked(&mut state) {
            return Poll::Ready(Some(popped));
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }

    /// There is a pod to pop, or never will be again.
    fn wake(&self, state: &mut State) {
        self.ready.notify_all();
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// The next pod to schedule, now in flight; `None` when there is none.
    pub fn try_pop(&self) -> Option<Box<QueuedPodInfo>> {
        self.try_pop_locked(&mut self.lock())
    }

    /// The pod that was popped with those of the others that wait and that nothing keeps out, in the order of the queue; all of them in flight now. For pods that are decided together.
    pub fn pop_with<'a>(
        &self,
        popped: Box<QueuedPodInfo>,
        uids: impl IntoIterator<Item = &'a str>,
    ) -> Vec<Box<QueuedPodInfo>> {
        let mut state = self.lock();
        let mut all = vec![popped];
        for uid in uids {
            let State {
                active,
                backoff,
                error_backoff,
                ..
            } = &mut *state;
            let heaps = [active, backoff, error_backoff];
            let found = heaps.into_iter().find_map(|heap| heap.remove(uid));
            let Some(mut queued) = found.or_else(|| state.take_unschedulable(uid)) else {
                continue;
            };
            if queued.gated() {
                // What kept it out may be over, and nobody has looked yet.
                self.run_pre_enqueue_plugins(&mut queued);
            }
            if queued.gated() || !state.in_flight.start(&queued.pod.uid) {
                state.put_unschedulable(queued);
                continue;
            }
            let now = (self.config.now)();
            queued.initial_attempt_timestamp.get_or_insert(now);
            queued.attempts += 1;
            all.push(queued);
        }
        state.active.sort(&mut all);
        all
    }

    fn try_pop_locked(&self, state: &mut State) -> Option<Box<QueuedPodInfo>> {
        loop {
            let mut queued = match state.active.pop() {
                Some(queued) => queued,
                None => {
                    let queued = state.backoff.pop()?;
                    (self.config.incoming)("active", POP_FROM_BACKOFF);
                    queued
                }
            };
            queued.attempts += 1;
            if state.in_flight.start(&queued.pod.uid) {
                return Some(queued);
            }
            tracing::error!(
                pod = queued.pod.name(),
                "the same pod is tracked in multiple places in the scheduler; discarded"
            );
        }
    }

    /// A popped pod needs no further tracking: it is being bound, or is gone.
    pub fn done(&self, uid: &str) {
        self.lock().in_flight.done(uid);
    }

    /// Puts a popped pod that failed back; where to depends on what happened since it was popped. Calls [`SchedulingQueue::done`].
    pub fn add_unschedulable_if_not_present(&self, mut queued: Box<QueuedPodInfo>) {
        let mut state = self.lock();
        let uid = Arc::clone(&queued.pod.uid);
        let events = state.in_flight.events_since_start(&uid);
        state.in_flight.done(&uid);
        if state.contains(&uid) {
            tracing::debug!(
                pod = queued.pod.name(),
                "Pod is already present in the scheduling queue"
            );
            return;
        }
        let no_rejectors =
            queued.unschedulable_plugins.is_empty() && queued.pending_plugins.is_empty();
        if no_rejectors {
            queued.consecutive_errors_count += 1;
        } else {
            queued.unschedulable_count += 1;
            queued.consecutive_errors_count = 0;
        }
        queued.timestamp = (self.config.now)();
        queued.backoff_expiration = None;
        queued.was_flushed_from_unschedulable = false;
        let strategy = match events {
            Some(events) if !no_rejectors => self.replay(&queued, &events),
            _ => Strategy::AfterBackoff,
        };
        self.requeue(&mut state, queued, strategy, FAILED_ATTEMPT);
    }

    fn replay(&self, queued: &QueuedPodInfo, events: &[InFlightEvent]) -> Strategy {
        let mut strategy = Strategy::Skip;
        for e in events {
            match self.is_pod_worth_requeuing(queued, &e.event, e.old.as_ref(), e.new.as_ref()) {
                Strategy::Skip => {}
                Strategy::Immediately => return Strategy::Immediately,
                Strategy::AfterBackoff => {
                    strategy = Strategy::AfterBackoff;
                    if queued.pending_plugins.is_empty() {
                        break;
                    }
                }
            }
        }
        strategy
    }

    /// Something happened: pods it may help move to the active queue, or to backoff where theirs is not over.
    pub fn move_all_to_active_or_backoff_queue(
        &self,
        event: ClusterEvent,
        old: Option<EventObject>,
        new: Option<EventObject>,
        pre_check: Option<&dyn Fn(&PodInfo) -> bool>,
    ) {
        if !self.is_event_of_interest(&event) {
            return;
        }
        let mut state = self.lock();
        let mut candidates: Vec<Arc<str>> = if event.is_wild_card() {
            state.unschedulable.keys().cloned().collect()
        } else {
            let plugins: BTreeSet<&'static str> = self
                .live
                .load()
                .profiles
                .values()
                .flat_map(|profile| &profile.hints)
                .filter(|(_, hint)| hint.event.matches(&event))
                .map(|(plugin, _)| *plugin)
                .collect();
            let uids: HashSet<&Arc<str>> = plugins
                .iter()
                .filter_map(|plugin| state.rejected_by.get(plugin))
                .flatten()
                .collect();
            uids.into_iter().cloned().collect()
        };
        // No order of a map's may decide who goes first.
        candidates.sort_unstable();
        for uid in candidates {
            let Some(queued) = state.unschedulable.get(&uid) else {
                continue;
            };
            if pre_check.is_some_and(|check| !check(&queued.pod)) {
                continue;
            }
            if let Some(gate) = queued.gating_plugin
                && !self.plugin_registered(gate, &queued.pod, &event)
            {
                continue;
            }
            let strategy = self.is_pod_worth_requeuing(queued, &event, old.as_ref(), new.as_ref());
            if strategy == Strategy::Skip {
                continue;
            }
            if let Some(queued) = state.take_unschedulable(&uid) {
                self.requeue(&mut state, queued, strategy, &event.label());
            }
        }
        state.in_flight.add(|| InFlightEvent { event, old, new });
    }

    /// Moves these pods to the active queue whatever they wait for; for those in flight the wish is remembered.
    pub fn activate<'a>(&self, uids: impl IntoIterator<Item = &'a str>) {
        let mut state = self.lock();
        for uid in uids {
            let (queued, from_backoff) = match state.take_unschedulable(uid) {
                Some(queued) => (Some(queued), false),
                None => (
                    state
                        .backoff
                        .remove(uid)
                        .or_else(|| state.error_backoff.remove(uid)),
                    true,
                ),
            };
            match queued {
                Some(queued) => self.move_to_active(
                    &mut state,
                    queued,
                    &ClusterEvent::FORCE_ACTIVATE.label(),
                    from_backoff,
                ),
                None if state.in_flight.contains(uid) => {
                    state.in_flight.add(|| InFlightEvent {
                        event: ClusterEvent::FORCE_ACTIVATE,
                        old: None,
                        new: None,
                    });
                }
                None => {}
            }
        }
    }

    /// Moves pods whose backoff is over to the active queue. To be called once per [`BACKOFF_ORDERING_WINDOW`].
    pub fn flush_backoff_queue_completed(&self) {
        let mut state = self.lock();
        for error in [false, true] {
            loop {
                let heap = if error {
                    &mut state.error_backoff
                } else {
                    &mut state.backoff
                };
                if heap
                    .peek()
                    .is_none_or(|queued| self.is_pod_backing_off(queued.backoff_expiration))
                {
                    break;
                }
                let Some(queued) = heap.pop() else { break };
                self.move_to_active(&mut state, queued, BACKOFF_COMPLETE, true);
            }
        }
    }

    /// Moves pods that have waited for an event too long. To be called every 30 s.
    pub fn flush_unschedulable_pods_leftover(&self) {
        let mut state = self.lock();
        let now = (self.config.now)();
        let too_long = |queued: &QueuedPodInfo| {
            now.saturating_duration_since(queued.timestamp)
                > self.config.pod_max_in_unschedulable_pods_duration
        };
        let mut uids: Vec<_> = state
            .unschedulable
            .iter()
            .filter(|(_, q)| !q.gated() && too_long(q))
            .map(|(uid, _)| Arc::clone(uid))
            .collect();
        uids.sort_unstable();
        for uid in uids {
            if let Some(mut queued) = state.take_unschedulable(&uid) {
                queued.was_flushed_from_unschedulable = true;
                self.requeue(
                    &mut state,
                    queued,
                    Strategy::AfterBackoff,
                    &ClusterEvent::UNSCHEDULABLE_TIMEOUT.label(),
                );
            }
        }
    }

    /// Ends all waiting; [`SchedulingQueue::pop`] gives `None` from now on.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.in_flight.clear();
        self.wake(&mut state);
    }

    /// How many pods are where.
    pub fn counts(&self) -> QueueCounts {
        let state = self.lock();
        let (in_flight_pods, in_flight_events) = state.in_flight.counts();
        QueueCounts {
            active: state.active.len(),
            backoff: state.backoff.len() + state.error_backoff.len(),
            unschedulable: state.unschedulable.len() - state.gated,
            gated: state.gated,
            in_flight_pods,
            in_flight_events,
        }
    }

    /// How many waiting pods each plugin rejected.
    pub fn rejected_by(&self) -> Vec<(&'static str, usize)> {
        self.lock()
            .rejected_by
            .iter()
            .map(|(plugin, pods)| (*plugin, pods.len()))
            .collect()
    }

    /// The pods that wait, for debugging.
    pub fn pending_pods(&self) -> Vec<Arc<PodInfo>> {
        let state = self.lock();
        let heaps = state
            .active
            .iter()
            .chain(state.backoff.iter())
            .chain(state.error_backoff.iter());
        heaps
            .chain(state.unschedulable.values().map(|q| &**q))
            .map(|q| Arc::clone(&q.pod))
            .collect()
    }
}

/// The orders of the active queue and of both backoff queues.
fn orders(sort: &Arc<dyn Plugin>) -> (Less, Less, Less) {
    let sort = Arc::clone(sort);
    let less = move |a: &QueuedPodInfo, b: &QueuedPodInfo| {
        let (a, b) = (
            QueuedPod {
                pod: &a.pod,
                timestamp: a.timestamp,
                initial_attempt_timestamp: a.initial_attempt_timestamp,
            },
            QueuedPod {
                pod: &b.pod,
                timestamp: b.timestamp,
                initial_attempt_timestamp: b.initial_attempt_timestamp,
            },
        );
        sort.as_queue_sort().is_some_and(|sort| sort.less(&a, &b))
    };
    let by_backoff = {
        let less = less.clone();
        move |a: &QueuedPodInfo, b: &QueuedPodInfo| match a
            .backoff_expiration
            .cmp(&b.backoff_expiration)
        {
            std::cmp::Ordering::Equal => less(a, b),
            order => order.is_lt(),
        }
    };
    let by_error_backoff =
        |a: &QueuedPodInfo, b: &QueuedPodInfo| a.backoff_expiration < b.backoff_expiration;
    (
        Box::new(less),
        Box::new(by_backoff),
        Box::new(by_error_backoff),
    )
}
