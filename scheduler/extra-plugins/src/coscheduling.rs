//! Coscheduling: pods of a group (`scheduling.x-k8s.io` PodGroup, by a label) get nodes together, or none does.
//!
//! ```text
//! PreFilter: enough pods? not given up just now? room for minResources? -> Filter … -> Permit: wait until minMember have a node
//!    the last one lets all go;   one that fits nowhere (PostFilter), or waits too long (Unreserve), sends all back
//! ```
//! What is known of groups is in [`groups`], a pure core; here are the extension points. A pod whose group may be tried has the signature it would have without
//! one. Upstream: pkg/coscheduling.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use framework::args::decode;
use framework::{
    ActionType, ClusterEventWithHint, CycleState, EnqueueExtensions, EventObject, EventResource,
    Fragments, Handle, NodeToStatus, NominatingInfo, ObjectKind, Observer, PermitPlugin, Plugin,
    PluginError, PodInfo, PostFilterPlugin, PreFilterPlugin, PreFilterResult, QueueSortPlugin,
    QueuedPod, QueueingHint, ReservePlugin, Sign, Snapshot, Status, WaitingPod,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::args::CoschedulingArgs;
use crate::kinds::{POD_GROUP, POD_GROUP_LABEL};
use crate::names;
use crate::observed::Observed;

pub mod groups;
#[cfg(test)]
mod tests;

use groups::{Groups, Permitted};

/// Where neither the group nor the arguments say how long to wait. Upstream: `DefaultWaitTime`.
const DEFAULT_WAIT_TIME: Duration = Duration::from_secs(60);

struct Coscheduling {
    args: CoschedulingArgs,
    groups: Arc<Mutex<Groups>>,
    handle: Arc<dyn Handle>,
    /// Pods may wait that the plugin of a configuration before this one let wait.
    inherited: AtomicBool,
    /// One moment on both clocks: groups have times of day, the queue has instants.
    started: (Instant, Timestamp),
}

/// Makes the plugin.
///
/// # Errors
/// For arguments that do not decode or are out of range.
pub fn new(
    args: Option<&serde_json::Value>,
    handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    let plugin = names::COSCHEDULING;
    let args: CoschedulingArgs = decode(plugin, args)?;
    let mut problems = Vec::new();
    for (field, seconds) in [
        ("permitWaitingTimeSeconds", args.permit_waiting_time_seconds),
        ("podGroupBackoffSeconds", args.pod_group_backoff_seconds),
    ] {
        if seconds < 0 {
            problems.push(format!(
                "{field}: Invalid value: {seconds}: must be greater than 0"
            ));
        }
    }
    let percentage = args.pod_group_reject_percentage;
    if !(0..=100).contains(&percentage) {
        problems.push(format!(
            "podGroupRejectPercentage: Invalid value: {percentage}: must be between 0 and 100"
        ));
    }
    if !problems.is_empty() {
        return Err(PluginError::Invalid { plugin, problems });
    }
    Ok(Arc::new(Coscheduling {
        args,
        groups: Arc::default(),
        started: (handle.now(), handle.wall_time()),
        handle,
        inherited: AtomicBool::new(false),
    }))
}

/// The group a pod names; `None` for a pod without one.
fn group_name(pod: &Pod) -> Option<&str> {
    component_helpers::pod::label(pod, POD_GROUP_LABEL).filter(|name| !name.is_empty())
}

/// `namespace/name` of the group a pod names.
fn group_key(pod: &Pod) -> Option<String> {
    let namespace = component_helpers::pod::namespace(pod);
    group_name(pod).map(|name| format!("{namespace}/{name}"))
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

impl Coscheduling {
    fn groups(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pods of the group that wait in Permit, those of a configuration before this one included.
    fn waiting(&self, key: &str) -> Vec<Arc<dyn WaitingPod>> {
        let mut waiting = self.handle.waiting_pods();
        waiting.retain(|pod| group_key(&pod.pod().pod).as_deref() == Some(key));
        waiting
    }

    /// Sends the group's waiting pods back, and lets others go first.
    fn give_up(&self, key: &str, message: &str) {
        for waiting in self.waiting(key) {
            waiting.reject(names::COSCHEDULING, message);
        }
        self.groups().failed(key, self.handle.wall_time());
    }

    /// Not before `backoff` is over is the group tried again, and then at once.
    fn back_off(&self, key: &str, backoff: Duration) {
        let until = self.handle.now() + backoff;
        if !self.groups().back_off(key, until) {
            return;
        }
        let (groups, handle) = (Arc::downgrade(&self.groups), Arc::clone(&self.handle));
        let (key, sleep) = (key.to_owned(), self.handle.sleep(backoff));
        // DIFFERS: upstream's pods wait for the next event, or 5 min.
        self.handle.spawn(Box::pin(async move {
            sleep.await;
            let Some(groups) = Weak::upgrade(&groups) else {
                return;
            };
            let pods = {
                let mut groups = groups.lock().unwrap_or_else(PoisonError::into_inner);
                groups.end_back_off(&key);
                groups.pods(&key)
            };
            handle.activate(pods);
        }));
    }

    /// What the order of the queue goes by: the group's time, or when the pod was first tried.
    fn sort_time(&self, pod: &QueuedPod<'_>) -> Timestamp {
        if let Some(key) = group_key(&pod.pod.pod)
            && let Some(time) = self.groups().time(&key)
        {
            return time;
        }
        let (instant, wall) = self.started;
        let first = pod.initial_attempt_timestamp.unwrap_or(pod.timestamp);
        let moved = match first.checked_duration_since(instant) {
            Some(later) => {
                wall.checked_add(jiff::SignedDuration::try_from(later).unwrap_or_default())
            }
            None => wall.checked_sub(
                jiff::SignedDuration::try_from(instant.duration_since(first)).unwrap_or_default(),
            ),
        };
        moved.unwrap_or(wall)
    }
}

impl Plugin for Coscheduling {
    fn name(&self) -> &'static str {
        names::COSCHEDULING
    }
    // A group that may be tried has no say in which node is chosen; of any other no answer is kept.
    fn sign(&self, pod: &PodInfo, snapshot: &Snapshot) -> Option<Sign> {
        let Some(key) = group_key(&pod.pod) else {
            return Some(Sign::node(Fragments::NONE));
        };
        let tried = self
            .groups()
            .check(&key, pod.name(), snapshot, self.handle.now());
        tried.is_ok().then(|| Sign::node(Fragments::NONE))
    }
    fn as_queue_sort(&self) -> Option<&dyn QueueSortPlugin> {
        Some(self)
    }
    fn as_enqueue_extensions(&self) -> Option<&dyn EnqueueExtensions> {
        Some(self)
    }
    fn as_pre_filter(&self) -> Option<&dyn PreFilterPlugin> {
        Some(self)
    }
    fn as_post_filter(&self) -> Option<&dyn PostFilterPlugin> {
        Some(self)
    }
    fn as_reserve(&self) -> Option<&dyn ReservePlugin> {
        Some(self)
    }
    fn as_permit(&self) -> Option<&dyn PermitPlugin> {
        Some(self)
    }
    fn as_observer(&self) -> Option<&dyn Observer> {
        Some(self)
    }
}

impl Observer for Coscheduling {
    fn kinds(&self) -> Vec<ObjectKind> {
        vec![POD_GROUP]
    }

    fn begin(&self) {
        let any = !self.handle.waiting_pods().is_empty();
        self.inherited.store(any, Ordering::Release);
    }

    fn observe(&self, old: Option<&EventObject>, new: Option<&EventObject>) {
        use component_helpers::pod::uid;
        let mut groups = self.groups();
        match Observed::new(old, new) {
            Some(Observed::Object(group)) => groups.set_group(group),
            Some(Observed::ObjectGone(group)) => groups.delete_group(&group.key()),
            Some(Observed::Pod { old, new }) => {
                let key = group_key(new);
                let left = old.and_then(|old| Some((old, group_key(old)?)));
                if let Some((old, left)) = left.filter(|(_, left)| Some(left) != key.as_ref()) {
                    groups.delete_pod(&left, uid(old));
                }
                if let Some(key) = key {
                    groups.set_pod(&key, Arc::clone(new));
                }
            }
            Some(Observed::PodGone(pod)) => {
                if let Some(key) = group_key(pod) {
                    groups.delete_pod(&key, uid(pod));
                }
            }
            None => {}
        }
    }
}

impl QueueSortPlugin for Coscheduling {
    fn less(&self, a: &QueuedPod<'_>, b: &QueuedPod<'_>) -> bool {
        let name = |pod: &QueuedPod<'_>| component_helpers::pod::key(&pod.pod.pod);
        let by_priority = b.pod.priority.cmp(&a.pod.priority);
        by_priority
            .then_with(|| self.sort_time(a).cmp(&self.sort_time(b)))
            .then_with(|| name(a).cmp(&name(b)))
            .is_lt()
    }
}

impl EnqueueExtensions for Coscheduling {
    fn events_to_register(&self) -> Vec<ClusterEventWithHint> {
        let of_group = |pod: &Arc<Pod>, _: Option<&EventObject>, new: Option<&EventObject>| {
            let other = new.and_then(EventObject::pod);
            let same = other.is_some_and(|other| group_key(other) == group_key(pod));
            hint(same && group_key(pod).is_some())
        };
        let is_its_group = |pod: &Arc<Pod>, _: Option<&EventObject>, new: Option<&EventObject>| {
            let group = new.and_then(EventObject::custom);
            hint(group.is_some_and(|group| group_key(pod) == Some(group.key())))
        };
        // DIFFERS: upstream's pods of a group that found no room wait 5 min for it: those that waited were sent back by this plugin, not for want
        // of room, and nothing of the cluster wakes them.
        let groups = Arc::clone(&self.groups);
        let room = move |pod: &Arc<Pod>, _: Option<&EventObject>, _: Option<&EventObject>| {
            let groups = groups.lock().unwrap_or_else(PoisonError::into_inner);
            hint(group_key(pod).is_some_and(|key| groups.wants_room(&key)))
        };
        vec![
            ClusterEventWithHint::with_hint(
                EventResource::Pod,
                ActionType::ADD | ActionType::UPDATE_POD_SCHEDULING_GATES_ELIMINATED,
                of_group,
            ),
            ClusterEventWithHint::with_hint(
                EventResource::Custom(POD_GROUP),
                ActionType::ADD | ActionType::UPDATE,
                is_its_group,
            ),
            ClusterEventWithHint::with_hint(EventResource::Pod, ActionType::DELETE, room.clone()),
            ClusterEventWithHint::with_hint(
                EventResource::Node,
                ActionType::ADD | ActionType::UPDATE_NODE_ALLOCATABLE,
                room,
            ),
        ]
    }
}

fn hint(may_help: bool) -> QueueingHint {
    match may_help {
        true => QueueingHint::Queue,
        false => QueueingHint::QueueSkip,
    }
}

impl PreFilterPlugin for Coscheduling {
    fn pre_filter(
        &self,
        _state: &mut CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
    ) -> (PreFilterResult, Status) {
        let all = PreFilterResult::default();
        let Some(key) = group_key(&pod.pod) else {
            return (all, Status::success());
        };
        let now = self.handle.now();
        let mut groups = self.groups();
        match groups.check(&key, pod.name(), snapshot, now) {
            Ok(()) => {
                let timeout = seconds(self.args.permit_waiting_time_seconds);
                groups.room_was_found(&key, now + timeout);
                (all, Status::success())
            }
            // Nobody is ended for a group that cannot run.
            Err(reason) => (all, Status::unresolvable(reason)),
        }
    }
}

impl PostFilterPlugin for Coscheduling {
    fn reads_state(&self, _pod: &Arc<PodInfo>, _snapshot: &Snapshot) -> bool {
        false
    }

    fn post_filter(
        &self,
        _state: &mut CycleState,
        pod: &Arc<PodInfo>,
        _snapshot: &Snapshot,
        _statuses: &NodeToStatus,
    ) -> (Option<NominatingInfo>, Status) {
        let key = group_key(&pod.pod).unwrap_or_default();
        let missing = self.groups().missing(&key);
        let Some((missing, min_member)) = missing else {
            return (None, Status::unschedulable("can not find pod group"));
        };
        // Enough have a node, or so many that the next one may do.
        let percentage = i64::from(self.args.pod_group_reject_percentage);
        if missing <= 0 || missing * 100 <= percentage * min_member {
            return (
                None,
                Status::with_reasons(framework::Code::Unschedulable, Vec::new()),
            );
        }
        // One that fits nowhere speaks for the others of its group.
        self.give_up(&key, "optimistic rejection in PostFilter");
        let backoff = seconds(self.args.pod_group_backoff_seconds);
        if !backoff.is_zero() && self.groups().is_complete(&key) {
            self.back_off(&key, backoff);
        }
        let name = pod.name();
        let why = format!(
            "PodGroup {key} gets rejected due to Pod {name} is unschedulable even after PostFilter"
        );
        (None, Status::unschedulable(why))
    }
}

impl PermitPlugin for Coscheduling {
    fn permit(
        &self,
        _state: &mut CycleState,
        pod: &Arc<PodInfo>,
        _node_name: &str,
    ) -> (Status, Duration) {
        let Some(key) = group_key(&pod.pod) else {
            return (Status::success(), Duration::ZERO);
        };
        let inherited = match self.inherited.load(Ordering::Acquire) {
            true => self.waiting(&key),
            false => Vec::new(),
        };
        let uids = inherited
            .iter()
            .map(|waiting| Arc::clone(&waiting.pod().uid));
        let permitted = self.groups().permit(&key, &pod.uid, uids);
        match permitted {
            Permitted::NoGroup => (Status::unschedulable("PodGroup not found"), Duration::ZERO),
            Permitted::Enough => {
                for waiting in self.waiting(&key) {
                    waiting.allow(names::COSCHEDULING);
                }
                (Status::success(), Duration::ZERO)
            }
            Permitted::Wait { first, timeout } => {
                if first {
                    let mut others = self.groups().pods(&key);
                    others.retain(|other| component_helpers::pod::uid(other) != &*pod.uid);
                    self.handle.activate(others);
                }
                let by_args = match seconds(self.args.permit_waiting_time_seconds) {
                    Duration::ZERO => DEFAULT_WAIT_TIME,
                    time => time,
                };
                let timeout = timeout.filter(|timeout| !timeout.is_zero());
                (Status::wait(), timeout.unwrap_or(by_args))
            }
        }
    }
}

impl ReservePlugin for Coscheduling {
    fn concerns(&self, pod: &PodInfo) -> bool {
        group_name(&pod.pod).is_some()
    }

    fn reserve(&self, _state: &mut CycleState, _pod: &Arc<PodInfo>, _node_name: &str) -> Status {
        Status::success()
    }

    fn unreserve(&self, _state: &mut CycleState, pod: &Arc<PodInfo>, _node_name: &str) {
        let Some(key) = group_key(&pod.pod) else {
            return;
        };
        let first = self.groups().unreserve(&key, &pod.uid);
        if first {
            self.give_up(&key, "rejection in Unreserve");
        }
    }
}
