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
use std::time::{Duration, Instant};

use framework::event::pod_scheduling_properties_change;
use framework::{
    ClusterEvent, ClusterEventWithHint, EventObject, NominatingInfo, Plugin, PodInfo, QueuedPod,
    QueueingHint,
};

mod heap;
mod in_flight;
mod nominator;
#[cfg(test)]
mod tests;

use heap::Heap;
use in_flight::{InFlight, InFlightEvent};
pub use nominator::Nominator;

/// Pods popped close together are ordered by priority within this window (upstream's `backoffQOrderingWindowDuration`).
pub const BACKOFF_ORDERING_WINDOW: Duration = Duration::from_secs(1);

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
    backoff_expiration: Option<Instant>,
}

impl QueuedPodInfo {
    fn new(pod: Arc<PodInfo>, now: Instant) -> Self {
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

    fn rejectors(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.unschedulable_plugins
            .union(&self.pending_plugins)
            .copied()
    }
}

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
    /// The QueueSort plugin.
    pub queue_sort: Arc<dyn Plugin>,
    /// By `schedulerName`.
    pub profiles: HashMap<String, ProfileQueueing>,
    /// The first backoff; 1 s.
    pub pod_initial_backoff: Duration,
    /// The longest backoff; 10 s. Zero turns backoff off.
    pub pod_max_backoff: Duration,
    /// A pod waits this long for an event before it is tried anyway; 5 min.
    pub pod_max_in_unschedulable_pods_duration: Duration,
    /// The clock.
    pub now: Arc<dyn Fn() -> Instant + Send + Sync>,
    /// For metrics.
    pub incoming: IncomingObserver,
}

impl QueueConfig {
    /// Upstream's defaults.
    pub fn new(queue_sort: Arc<dyn Plugin>) -> Self {
        QueueConfig {
            queue_sort,
            profiles: HashMap::new(),
            pod_initial_backoff: Duration::from_secs(1),
            pod_max_backoff: Duration::from_secs(10),
            pod_max_in_unschedulable_pods_duration: Duration::from_secs(300),
            now: Arc::new(Instant::now),
            incoming: Arc::new(|_, _| {}),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Strategy {
    Skip,
    AfterBackoff,
    Immediately,
}

struct State {
    active: Heap,
    backoff: Heap,
    error_backoff: Heap,
    unschedulable: HashMap<Arc<str>, Box<QueuedPodInfo>>,
    rejected_by: HashMap<&'static str, HashSet<Arc<str>>>,
    gated: usize,
    in_flight: InFlight,
    closed: bool,
}

/// The queue. Shared; every method locks shortly.
pub struct SchedulingQueue {
    config: QueueConfig,
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
        let sort = Arc::clone(&config.queue_sort);
        let less = move |a: &QueuedPodInfo, b: &QueuedPodInfo| {
            let (a, b) = (
                QueuedPod {
                    pod: &a.pod,
                    timestamp: a.timestamp,
                },
                QueuedPod {
                    pod: &b.pod,
                    timestamp: b.timestamp,
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
        SchedulingQueue {
            epoch: (config.now)(),
            state: Mutex::new(State {
                active: Heap::new(Box::new(less)),
                backoff: Heap::new(Box::new(by_backoff)),
                error_backoff: Heap::new(Box::new(by_error_backoff)),
                unschedulable: HashMap::new(),
                rejected_by: HashMap::new(),
                gated: 0,
                in_flight: InFlight::default(),
                closed: false,
            }),
            ready: Condvar::new(),
            nominator: Arc::default(),
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

    /// The next pod to schedule, now in flight; `None` when there is none.
    pub fn try_pop(&self) -> Option<Box<QueuedPodInfo>> {
        self.try_pop_locked(&mut self.lock())
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
        let candidates: Vec<Arc<str>> = if event.is_wild_card() {
            state.unschedulable.keys().cloned().collect()
        } else {
            let plugins: BTreeSet<&'static str> = self
                .config
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
        let uids: Vec<_> = state
            .unschedulable
            .iter()
            .filter(|(_, q)| !q.gated() && too_long(q))
            .map(|(uid, _)| Arc::clone(uid))
            .collect();
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
        self.ready.notify_all();
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

    fn requeue(
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

    fn move_to_active(
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
        self.ready.notify_one();
    }

    fn move_to_backoff(&self, state: &mut State, mut queued: Box<QueuedPodInfo>, event: &str) {
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
            self.ready.notify_one();
        }
    }

    fn run_pre_enqueue_plugins(&self, queued: &mut QueuedPodInfo) {
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

    fn profile(&self, pod: &PodInfo) -> Option<&ProfileQueueing> {
        self.config.profiles.get(
            pod.spec()
                .scheduler_name
                .as_deref()
                .unwrap_or("default-scheduler"),
        )
    }

    fn plugin_registered(&self, plugin: &str, pod: &PodInfo, event: &ClusterEvent) -> bool {
        event.is_wild_card()
            || self.profile(pod).is_some_and(|p| {
                p.hints
                    .iter()
                    .any(|(name, hint)| *name == plugin && hint.event.matches(event))
            })
    }

    fn is_event_of_interest(&self, event: &ClusterEvent) -> bool {
        event.is_wild_card()
            || self
                .config
                .profiles
                .values()
                .any(|p| p.hints.iter().any(|(_, hint)| hint.event.matches(event)))
    }

    fn is_pod_worth_requeuing(
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

    fn backoff_expiration(&self, queued: &QueuedPodInfo) -> Option<Instant> {
        if queued.backoff_expiration.is_some() {
            return queued.backoff_expiration;
        }
        let count = if queued.consecutive_errors_count > 0 {
            queued.consecutive_errors_count
        } else {
            queued.unschedulable_count
        };
        if count == 0 || self.config.pod_max_backoff.is_zero() {
            return None;
        }
        let doubled = 2u32
            .checked_pow(count - 1)
            .and_then(|factor| self.config.pod_initial_backoff.checked_mul(factor));
        let backoff = doubled
            .unwrap_or(Duration::MAX)
            .min(self.config.pod_max_backoff);
        Some(self.align_to_window(queued.timestamp + backoff))
    }

    fn is_pod_backing_off(&self, expiration: Option<Instant>) -> bool {
        expiration.is_some_and(|expiration| expiration >= self.align_to_window((self.config.now)()))
    }

    fn align_to_window(&self, time: Instant) -> Instant {
        let windows = time.saturating_duration_since(self.epoch).as_nanos()
            / BACKOFF_ORDERING_WINDOW.as_nanos();
        self.epoch + BACKOFF_ORDERING_WINDOW * windows as u32
    }
}

impl State {
    fn contains(&self, uid: &str) -> bool {
        self.active.contains(uid)
            || self.backoff.contains(uid)
            || self.error_backoff.contains(uid)
            || self.unschedulable.contains_key(uid)
    }

    fn put_unschedulable(&mut self, queued: Box<QueuedPodInfo>) {
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

    fn take_unschedulable(&mut self, uid: &str) -> Option<Box<QueuedPodInfo>> {
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
