//! [`play`]: decides a trace again by a configuration; [`recorded`]: how it went when it was recorded.
//!
//! Runs the very cache, queue, profiles, scheduling loop and binding tasks of the running scheduler on a runtime whose clock stands still until nobody has anything to do, and
//! then jumps to the next event, the next tick of the queue or the next timeout. A decision takes no time, a binding a millisecond.
//!
//! What others do is the trace's: pods end when they ended. A pod that is preempted here is gone at once, and nobody makes another in its place; so is one whose node goes.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backend::queue::BACKOFF_ORDERING_WINDOW;
use component_base::clock::Clock;
use component_base::informer::InformerEvent;
use component_helpers::pod::{
    condition::DISRUPTION_TARGET, get_condition, is_terminal, node_name, uid,
};
use framework::{EventRecord, Registration};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::overlay::Overlay;
use super::tally::{Played, Tally};
use super::world::{Told, World};
use crate::config::KubeSchedulerConfiguration;
use crate::event_handlers;
use crate::metrics::Metrics;
use crate::profile::ProfileError;
use crate::runtime::Shared;
use crate::schedule_one::SchedulingLoop;
use crate::scheduler::{
    FLUSH_UNSCHEDULABLE_PERIOD, POD_MAX_IN_UNSCHEDULABLE_PODS_DURATION, Scheduler,
};
use crate::trace::object::{Kind, TraceObject};
use crate::trace::{Change, Trace, TraceEvent};

/// The least step of the clock, and how long a binding takes.
const STEP: Duration = Duration::from_millis(1);
/// The reason in the condition of pods that a scheduler ended. Upstream: `PodReasonPreemptionByScheduler`.
const PREEMPTION_BY_SCHEDULER: &str = "PreemptionByScheduler";

/// How to play.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Settles ties between nodes.
    pub seed: u64,
    /// How long to go on after the last event.
    pub after: Duration,
    /// The gate `GenericWorkload` is on; the plugins are to be those of it, too.
    pub pod_groups: bool,
    /// The gate `TopologyAwareWorkloadScheduling` is on; it needs the other.
    pub topology_aware: bool,
}

/// Why a trace cannot be played by a configuration.
#[derive(Debug, thiserror::Error)]
pub enum PlayError {
    /// A profile cannot work.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// It calls others.
    #[error("extenders: Forbidden: a replay calls nobody; leave them out")]
    Extenders,
    /// The machine.
    #[error("starting the runtime: {0}")]
    Runtime(#[from] std::io::Error),
}

/// See the module. `name` is what the result is called.
///
/// # Errors
/// When the configuration cannot be played.
pub fn play(
    trace: &Trace,
    name: &str,
    config: &KubeSchedulerConfiguration,
    registry: &[Registration],
    settings: Settings,
) -> Result<Played, PlayError> {
    if !config.extenders.is_empty() {
        return Err(PlayError::Extenders);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    runtime.block_on(async {
        let player = Player::new(name, config, registry, settings)?;
        Ok(player.run(trace, settings).await)
    })
}

/// From the beginning of the trace.
fn since(start: Timestamp, time: Timestamp) -> Duration {
    Duration::try_from(time.duration_since(start)).unwrap_or_default()
}

/// Pods by UID and why they have no node.
type Reasons = Arc<Mutex<Vec<(String, String)>>>;

struct Player {
    world: Arc<World>,
    scheduler: Arc<Scheduler>,
    scheduling: SchedulingLoop,
    overlay: Overlay,
    tally: Tally,
    reasons: Reasons,
    began: Instant,
    /// What decisions are measured by.
    machine: Clock,
    flushed_unschedulable: Duration,
    end: CancellationToken,
}

impl Player {
    fn new(
        name: &str,
        config: &KubeSchedulerConfiguration,
        registry: &[Registration],
        settings: Settings,
    ) -> Result<Self, ProfileError> {
        let world = Arc::new(World::new(settings.pod_groups, settings.topology_aware));
        let (reasons, end) = (Reasons::default(), CancellationToken::new());
        let noted = Arc::clone(&reasons);
        let record = move |event: EventRecord| {
            if event.reason == "FailedScheduling" {
                let uid = uid(&event.regarding).to_owned();
                let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
                noted.push((uid, event.note));
            }
        };
        let shared = Shared::new(
            Arc::clone(&world) as _,
            Arc::clone(&world) as _,
            Arc::new(record),
            tokio::runtime::Handle::current(),
            end.clone(),
            Clock::real(),
            Metrics::unread(Clock::real()),
        );
        shared.observers().set_sources(Arc::clone(&world) as _);
        // The moment at which a sleep of no time ends, by the runtime's clock.
        let began = tokio::time::sleep(Duration::ZERO).deadline();
        // Pods that come at one moment of the trace come one after the other all the same.
        let asked = AtomicU64::new(0);
        let now = move || {
            let number = asked.fetch_add(1, Ordering::AcqRel);
            began.into_std() + began.elapsed() + Duration::from_nanos(number)
        };
        let scheduler = Scheduler::with_queue_clock(
            config,
            registry,
            shared,
            POD_MAX_IN_UNSCHEDULABLE_PODS_DURATION,
            Arc::new(now),
        )?;
        Ok(Player {
            scheduling: SchedulingLoop::new(Arc::clone(&scheduler), settings.seed),
            world,
            scheduler,
            overlay: Overlay::default(),
            tally: Tally::new(name),
            reasons,
            began,
            machine: Clock::real(),
            flushed_unschedulable: Duration::ZERO,
            end,
        })
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    async fn run(mut self, trace: &Trace, settings: Settings) -> Played {
        let Some((start, end)) = trace.span() else {
            return self.tally.finish(Duration::ZERO);
        };
        for (number, event) in trace.events.iter().enumerate() {
            let at = since(start, event.time);
            if number == trace.initial {
                self.scheduler.shared.observers().tell_objects();
            }
            if number >= trace.initial {
                self.run_until(at).await;
            }
            self.take(event, at);
        }
        let length = since(start, end) + settings.after;
        self.run_until(length).await;
        self.end.cancel();
        self.tally.finish(length)
    }

    async fn run_until(&mut self, until: Duration) {
        while self.now() < until {
            if self.step().await {
                continue;
            }
            let next = self.next(until);
            tokio::time::sleep_until(self.began + next).await;
            self.flush();
        }
    }

    /// When something may happen of itself: the queue moves pods on once a second, if it has any.
    fn next(&self, until: Duration) -> Duration {
        let counts = self.scheduler.queue.counts();
        let waiting = counts.active + counts.backoff + counts.unschedulable + counts.in_flight_pods;
        if waiting == 0 && self.scheduler.cache.counts().assumed_pods == 0 {
            return until;
        }
        let ticks = self.now().as_secs() / BACKOFF_ORDERING_WINDOW.as_secs() + 1;
        let tick = Duration::from_secs(ticks * BACKOFF_ORDERING_WINDOW.as_secs());
        tick.min(until)
    }

    fn flush(&mut self) {
        self.scheduler.queue.flush_backoff_queue_completed();
        if self.now() - self.flushed_unschedulable >= FLUSH_UNSCHEDULABLE_PERIOD {
            self.flushed_unschedulable = self.now();
            self.scheduler.queue.flush_unschedulable_pods_leftover();
        }
    }

    /// Decides all that can be decided now, and lets what follows happen; false when there was nothing.
    async fn step(&mut self) -> bool {
        let mut any = self.hear();
        while let Some(queued) = self.scheduler.queue.try_pop() {
            any = true;
            let uid = queued.pod.uid.to_string();
            let start = self.machine.monotonic();
            self.scheduling.schedule_one(queued);
            let took = self.machine.monotonic().saturating_sub(start);
            self.tally.decided(&uid, took);
        }
        if any {
            // The clock moves only when no task has anything left to do.
            tokio::time::sleep(STEP).await;
            self.hear();
        }
        any
    }

    /// Tells of what was written; false when nothing was.
    fn hear(&mut self) -> bool {
        let noted =
            std::mem::take(&mut *self.reasons.lock().unwrap_or_else(PoisonError::into_inner));
        for (uid, reason) in noted {
            self.tally.note(&uid, |record| record.reason = reason);
        }
        let mut any = false;
        loop {
            let told = self.world.take_untold();
            let preempted: BTreeSet<String> = self.world.take_preempted().into_iter().collect();
            if told.is_empty() {
                return any;
            }
            any = true;
            self.world.bind_volumes(&told);
            for change in told {
                self.written(change, &preempted);
            }
        }
    }

    fn written(&mut self, (old, new): Told, preempted: &BTreeSet<String>) {
        let at = self.now();
        match (&old, &new) {
            (_, Some(TraceObject::Pod(pod))) => self.tally.bound(pod, at),
            (Some(TraceObject::Pod(pod)), None) => {
                let uid = uid(pod).to_owned();
                self.tally.gone(&uid, at);
                let victim = preempted.contains(&uid);
                self.tally.note(&uid, |record| record.preempted = victim);
                self.overlay.end(&uid);
                self.world.release_claims(pod);
            }
            (_, Some(object)) => self.overlay.wrote(object),
            (Some(object), None) => self.overlay.forget(object),
            (None, None) => {}
        }
        self.tell(old, new);
    }

    /// An event of the trace.
    fn take(&mut self, event: &TraceEvent, at: Duration) {
        let object = &event.object;
        let ends = object.pod().is_some_and(|pod| is_terminal(pod));
        if event.change == Change::Deleted || ends {
            self.remove(object, at);
            return;
        }
        let known = self
            .world
            .get(object.kind(), object.namespace(), object.name());
        if let Some(known) = known.filter(|known| known.uid() != object.uid()) {
            // Another of its name, and nobody told of the end of the first.
            self.remove(&known, at);
        }
        let scheduler = &self.scheduler;
        let responsible = |pod: &Pod| scheduler.responsible_for_pod(pod);
        let Some(here) = self.overlay.apply(&self.world, object, responsible) else {
            return;
        };
        match &here {
            TraceObject::Node(node) => self.tally.node(object.name(), Some(node), at),
            TraceObject::Pod(pod) if self.tally.knows(uid(pod)) => self.tally.bound(pod, at),
            TraceObject::Pod(pod) => {
                let given = !self.overlay.decides(uid(pod));
                self.tally.arrived(pod, given, at);
            }
            _ => {}
        }
        let (old, new) = self.world.set(here);
        self.tell(old, new);
    }

    fn remove(&mut self, object: &TraceObject, at: Duration) {
        if self.overlay.has_ended(object.uid()) {
            return;
        }
        let known = self
            .world
            .get(object.kind(), object.namespace(), object.name());
        if known.is_none_or(|known| known.uid() != object.uid()) {
            return;
        }
        let gone = self
            .world
            .remove(object.kind(), object.namespace(), object.name());
        self.overlay.forget(object);
        match object {
            TraceObject::Pod(pod) => {
                self.tally.gone(uid(pod), at);
                self.world.release_claims(pod);
            }
            TraceObject::Node(_) => self.tally.node(object.name(), None, at),
            _ => {}
        }
        self.tell(gone, None);
        if let TraceObject::Node(_) = object {
            self.lose(object.name(), at);
        }
    }

    /// Pods of a node that is gone are gone, too: where the trace has others there, their end may be told of later or never.
    fn lose(&mut self, node: &str, at: Duration) {
        for lost in self.tally.on(node) {
            let pods = self.world.all(Kind::Pod);
            let Some(pod) = pods.into_iter().find(|pod| pod.uid() == lost) else {
                continue;
            };
            self.tally.note(&lost, |record| record.lost = true);
            self.remove(&pod, at);
            self.overlay.end(&lost);
        }
    }

    fn tell(&self, old: Option<TraceObject>, new: Option<TraceObject>) {
        let scheduler = &self.scheduler;
        let Some(object) = new.as_ref().or(old.as_ref()) else {
            return;
        };
        if let Some((resource, _)) = object.event_object() {
            let event = |object: Option<TraceObject>| object.and_then(|o| o.event_object());
            let object = |o: Option<(_, framework::EventObject)>| o.map(|(_, object)| object);
            let (old, new) = (object(event(old)), object(event(new)));
            event_handlers::handle_stored(scheduler, resource, old, new);
            return;
        }
        match (old, new) {
            (None, Some(TraceObject::Pod(pod))) => {
                event_handlers::handle_pod(scheduler, InformerEvent::Added(pod));
            }
            (Some(TraceObject::Pod(old)), Some(TraceObject::Pod(new))) => {
                event_handlers::handle_pod(scheduler, InformerEvent::Updated { old, new });
            }
            (Some(TraceObject::Pod(pod)), None) => {
                event_handlers::handle_pod(scheduler, InformerEvent::Deleted(pod));
            }
            (None, Some(TraceObject::Node(node))) => {
                event_handlers::handle_node(scheduler, InformerEvent::Added(node));
            }
            (Some(TraceObject::Node(old)), Some(TraceObject::Node(new))) => {
                event_handlers::handle_node(scheduler, InformerEvent::Updated { old, new });
            }
            (Some(TraceObject::Node(node)), None) => {
                event_handlers::handle_node(scheduler, InformerEvent::Deleted(node));
            }
            (None, Some(TraceObject::PodGroup(group))) => {
                event_handlers::handle_pod_group(scheduler, InformerEvent::Added(group));
            }
            (Some(TraceObject::PodGroup(old)), Some(TraceObject::PodGroup(new))) => {
                event_handlers::handle_pod_group(scheduler, InformerEvent::Updated { old, new });
            }
            (Some(TraceObject::PodGroup(group)), None) => {
                event_handlers::handle_pod_group(scheduler, InformerEvent::Deleted(group));
            }
            // Read when it is needed; nobody waits for it.
            _ => {}
        }
    }
}

/// How things went when the trace was recorded.
pub fn recorded(trace: &Trace, after: Duration) -> Played {
    let mut tally = Tally::new("recorded");
    let Some((start, end)) = trace.span() else {
        return tally.finish(Duration::ZERO);
    };
    for event in &trace.events {
        let at = since(start, event.time);
        let gone = event.change == Change::Deleted;
        match &event.object {
            TraceObject::Node(node) => {
                let name = event.object.name();
                tally.node(name, (!gone).then_some(node), at);
            }
            TraceObject::Pod(pod) => {
                let uid = uid(pod);
                if !tally.knows(uid) {
                    if gone || is_terminal(pod) {
                        continue;
                    }
                    tally.arrived(pod, node_name(pod).is_some(), at);
                } else {
                    tally.bound(pod, at);
                }
                let target = get_condition(pod, DISRUPTION_TARGET);
                let reason = target.and_then(|condition| condition.reason.as_deref());
                if reason == Some(PREEMPTION_BY_SCHEDULER) {
                    tally.note(uid, |record| record.preempted = true);
                }
                if gone || is_terminal(pod) {
                    tally.gone(uid, at);
                }
            }
            _ => {}
        }
    }
    tally.finish(since(start, end) + after)
}
