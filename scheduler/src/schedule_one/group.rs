//! One cycle for a whole group of pods (`scheduling.k8s.io` PodGroup): all that wait are tried, each as if those before it were bound, and then bound together, or none is.
//!
//! ```text
//! pop one -> take the others of its group out of the queue -> valid? -> for each: feasible still? decide, assume, Reserve
//!    feasible:     Permit -> a binding task each; those without a node go back
//!    not feasible: take all back, last first; each goes back, with its own reason or the group's
//! ```
//! What a group's fate was is written to its condition `PodGroupInitiallyScheduled`. Where placements are is
//! [`super::placement`]. Upstream: pkg/scheduler/schedule_one_podgroup.go, v1.37, without composite groups and the preemption of a group: pods of groups preempt
//! nobody.
//!
//! DIFFERS: upstream takes all back in either case and reserves once more to bind; what was reserved stays here, so that it cannot be lost in between.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use backend::QueuedPodInfo;
use component_base::tasks;
use component_helpers::pod::pod_priority;
use framework::pod_groups::PodGroupCache;
use framework::*;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use super::{SchedulingLoop, permit, reserve, skip_pod_schedule, touch};
use crate::binding_cycle::{self, BindingCycle};
use crate::decide::Chosen;
use crate::failure::{Failure, handle_scheduling_failure};
use crate::retreat::unreserve_and_forget;
use crate::runtime::Framework;
use crate::scheduler::{Scheduler, scheduler_name};

#[cfg(test)]
pub(super) mod tests;

/// The condition of a group. Upstream: `PodGroupInitiallyScheduled`.
const INITIALLY_SCHEDULED: &str = "PodGroupInitiallyScheduled";

/// Where a pod of the group could go.
pub(super) struct Placed {
    pub(super) node_name: Arc<str>,
    pub(super) state: CycleState,
}

/// What came of trying a pod; `None`: it was not tried, or nothing of it is kept.
pub(super) type Outcome = Option<Result<Placed, Failure>>;

/// What came of trying a pod of the group; `None`: it was not tried.
struct Tried {
    queued: Box<QueuedPodInfo>,
    outcome: Outcome,
}

fn clear() -> NominatingInfo {
    NominatingInfo::Override(String::new())
}

impl SchedulingLoop {
    /// Schedules the group `of` a pod that was popped; the attempt began at `start`.
    pub(super) fn schedule_group(
        &mut self,
        of: (&str, &str),
        first: Box<QueuedPodInfo>,
        start: Instant,
    ) {
        let scheduler = Arc::clone(&self.scheduler);
        let groups = scheduler.shared.listers().pod_groups();
        let waiting = groups.unscheduled(of);
        let uids = waiting.iter().map(|pod| component_helpers::pod::uid(pod));
        let queued = scheduler.queue.pop_with(first, uids);
        scheduler.cache.update_snapshot(&mut self.snapshot);
        touch(&scheduler, &mut self.snapshot);
        let group = groups.group(of);
        let valid = match &group {
            None => Err(format!("podgroups.scheduling.k8s.io {:?} not found", of.1)),
            Some(group) => validate(&scheduler, group, groups, of, &queued),
        };
        let framework = match valid {
            Ok(framework) => framework,
            Err(error) => return fail_before(&scheduler, group.as_ref(), queued, error, start),
        };
        let Some(group) = group else { return };
        let queued: Vec<_> = queued
            .into_iter()
            .filter(|queued| {
                let skip = skip_pod_schedule(&scheduler, &queued.pod);
                if skip {
                    scheduler.queue.done(&queued.pod.uid);
                }
                !skip
            })
            .collect();
        if queued.is_empty() {
            return;
        }
        let progress = GroupProgress {
            scheduled: groups.counts(of).scheduled,
            remaining: queued.len(),
        };
        let (status, outcomes) = match groups.topology_aware() {
            true => self.try_placements(&framework, &group, progress, &queued),
            false => self.try_group(&framework, &group, progress, &queued, |_| None),
        };
        let tried = queued.into_iter().zip(outcomes);
        let tried = tried.map(|(queued, outcome)| Tried { queued, outcome });
        let tried: Vec<_> = tried.collect();
        let metrics = scheduler.shared.metrics();
        metrics.observe_group_algorithm(start);
        let result = match () {
            () if status.is_success() => "scheduled",
            () if status.is_rejected() => "unschedulable",
            () => "error",
        };
        metrics.observe_group_attempt(result, framework.profile_name(), start);
        tell_condition(&scheduler, &group, &status);
        if status.is_success() {
            commit(&scheduler, &framework, tried, start);
        } else {
            take_back(&scheduler, &framework, &status, tried, start);
        }
    }

    /// Tries one pod after the other, each on the nodes that `within` has for it (`None`: all), for as long as the group may come together. One outcome a pod.
    pub(super) fn try_group<'a>(
        &mut self,
        framework: &Arc<Framework>,
        group: &PodGroup,
        mut progress: GroupProgress,
        queued: &[Box<QueuedPodInfo>],
        within: impl Fn(usize) -> Option<&'a NodeSet>,
    ) -> (Status, Vec<Outcome>) {
        let feasible = |progress| {
            let status = framework.run_placement_feasible_plugins(group, progress);
            match status.is_error() {
                true => Status::error(format!(
                    "failed to evaluate placement feasibility: {status}"
                )),
                false => status,
            }
        };
        let mut status = feasible(progress);
        let (mut outcomes, mut any) = (Vec::with_capacity(queued.len()), false);
        for (i, queued) in queued.iter().enumerate() {
            if !status.is_success() && !status.is_wait() {
                outcomes.push(None);
                continue;
            }
            let outcome = self.try_pod(framework, &queued.pod, within(i));
            progress.remaining -= 1;
            let failed = outcome.as_ref().err();
            let error = failed.filter(|failure| !failure.is_rejected());
            let error = error.map(Failure::message);
            if outcome.is_ok() {
                progress.scheduled += 1;
                any = true;
            }
            outcomes.push(Some(outcome));
            status = match error {
                Some(error) => Status::error(format!(
                    "failed to schedule other pod from a pod group: {error}"
                )),
                None => feasible(progress),
            };
        }
        if status.is_wait() {
            status = Status::with_reasons(Code::Unschedulable, status.reasons().to_vec());
        } else if status.is_success() && !any {
            status = Status::unschedulable("pod group is unschedulable");
        }
        (status, outcomes)
    }

    fn try_pod(
        &mut self,
        framework: &Arc<Framework>,
        pod: &Arc<PodInfo>,
        within: Option<&NodeSet>,
    ) -> Result<Placed, Failure> {
        let scheduler = Arc::clone(&self.scheduler);
        let Chosen {
            node_name,
            mut state,
            ..
        } = self.choose(framework, pod, within)?;
        let status = reserve(&scheduler, framework, &mut state, pod, &node_name);
        // The next pod of the group shall find it there, or gone again.
        self.look_again();
        if !status.is_success() {
            return Err(Failure::on_node(status, &node_name));
        }
        Ok(Placed { node_name, state })
    }

    /// Brings the snapshot up to date with what this cycle did.
    pub(super) fn look_again(&mut self) {
        self.scheduler.cache.update_snapshot(&mut self.snapshot);
        touch(&self.scheduler, &mut self.snapshot);
    }
}

/// Upstream's checks of what all pods of a group have in common; the profile that decides.
///
/// # Errors
/// What is not alike, in upstream's words.
fn validate(
    scheduler: &Scheduler,
    group: &PodGroup,
    groups: &PodGroupCache,
    of: (&str, &str),
    queued: &[Box<QueuedPodInfo>],
) -> Result<Arc<Framework>, String> {
    let policy = |pod: &Pod| {
        let spec = framework::pod_info::spec(pod);
        let policy = spec.preemption_policy.as_deref();
        policy.unwrap_or("PreemptLowerPriority").to_owned()
    };
    let Some(first) = queued.first() else {
        return Err("the pod group has no pods".to_owned());
    };
    let (name, first_policy) = (scheduler_name(&first.pod.pod), policy(&first.pod.pod));
    let group_priority = group.spec.priority.unwrap_or(0);
    let scheduled = groups.scheduled(of);
    let pods = queued
        .iter()
        .map(|queued| &queued.pod.pod)
        .chain(&scheduled);
    for pod in pods {
        let (other, priority) = (scheduler_name(pod), pod_priority(pod));
        if other != name {
            return Err(format!(
                "all pods in a single pod group should have the same .spec.schedulerName set, got: {other:?} and {name:?}"
            ));
        }
        if priority != group_priority {
            return Err(format!(
                "all pods in a single pod group should have the same priority as the pod group's priority, got {priority} and {group_priority}"
            ));
        }
        let policy = policy(pod);
        if policy != first_policy {
            return Err(format!(
                "all pods in a single pod group should have the same preemption policy, got {policy} and {first_policy}"
            ));
        }
    }
    let framework = scheduler.framework_for_pod(&first.pod);
    framework.ok_or_else(|| format!("profile not found for scheduler name {name:?}"))
}

/// The group cannot be tried: all its pods go back.
fn fail_before(
    scheduler: &Arc<Scheduler>,
    group: Option<&Arc<PodGroup>>,
    queued: Vec<Box<QueuedPodInfo>>,
    error: String,
    start: Instant,
) {
    let status = Status::error(error);
    for queued in queued {
        let Some(framework) = scheduler.framework_for_pod(&queued.pod) else {
            scheduler.queue.done(&queued.pod.uid);
            continue;
        };
        let failure = Failure::Status(status.clone());
        handle_scheduling_failure(scheduler, &framework, queued, failure, &clear(), start);
    }
    if let Some(group) = group {
        tell_condition(scheduler, group, &status);
    }
}

/// The group has come together: its pods are bound; those it can do without go back.
fn commit(
    scheduler: &Arc<Scheduler>,
    framework: &Arc<Framework>,
    tried: Vec<Tried>,
    start: Instant,
) {
    for Tried { queued, outcome } in tried {
        let mut placed = match outcome {
            Some(Ok(placed)) => placed,
            Some(Err(failure)) => {
                handle_scheduling_failure(scheduler, framework, queued, failure, &clear(), start);
                continue;
            }
            // Of a group that came together all were tried.
            None => {
                scheduler.queue.done(&queued.pod.uid);
                continue;
            }
        };
        let pod = Arc::clone(&queued.pod);
        let Placed { node_name, state } = &mut placed;
        let status = permit(scheduler, framework, state, &pod, node_name);
        if !status.is_success() {
            let failure = Failure::on_node(status, node_name);
            handle_scheduling_failure(scheduler, framework, queued, failure, &clear(), start);
            continue;
        }
        let times = (start, scheduler.shared.metrics().start());
        let decisions = scheduler.shared.decisions();
        decisions.chose(&pod, node_name, (None, None), times);
        let cycle = BindingCycle {
            scheduler: Arc::clone(scheduler),
            framework: Arc::clone(framework),
            queued,
            node_name: placed.node_name,
            state: placed.state,
            start,
        };
        let binding = tasks::vital("binding cycle", binding_cycle::run(cycle));
        scheduler.shared.tasks().spawn(binding);
    }
}

/// The group has not come together: nothing was, and all go back.
fn take_back(
    scheduler: &Arc<Scheduler>,
    framework: &Arc<Framework>,
    status: &Status,
    mut tried: Vec<Tried>,
    start: Instant,
) {
    let mut rejectors: BTreeSet<&'static str> = BTreeSet::new();
    for tried in tried.iter_mut().rev() {
        match &mut tried.outcome {
            Some(Ok(Placed { node_name, state })) => {
                unreserve_and_forget(scheduler, framework, state, &tried.queued.pod, node_name);
            }
            Some(Err(Failure::Fit(_, fit))) => {
                rejectors.extend(&fit.diagnosis.unschedulable_plugins);
            }
            _ => {}
        }
    }
    if rejectors.is_empty() {
        // It lacks pods, or a placement.
        rejectors.insert(match status.plugin() {
            "" => plugins::names::GANG_SCHEDULING,
            plugin => plugin,
        });
    }
    for Tried { queued, outcome } in tried {
        let own = match outcome {
            Some(Err(failure)) => Some(failure),
            _ => None,
        };
        let failure = match own {
            // An error of another pod is everybody's; a rejection is one's own.
            Some(failure) if !status.is_error() || !failure.is_rejected() => failure,
            _ if status.is_error() => Failure::Status(status.clone()),
            // What wakes those that found no node wakes these: they are tried together.
            _ => Failure::Group(status.message(), rejectors.clone()),
        };
        handle_scheduling_failure(scheduler, framework, queued, failure, &clear(), start);
    }
}

/// What is to be written of the group's fate; `None` when it is written already.
fn condition(group: &PodGroup, status: &Status, now: Timestamp) -> Option<Condition> {
    let (value, reason) = match () {
        () if status.is_success() => ("True", "Scheduled"),
        () if status.is_rejected() => ("False", "Unschedulable"),
        () => ("False", "SchedulerError"),
    };
    let conditions = group.status.as_ref().and_then(|s| s.conditions.as_ref());
    let mut known = conditions.into_iter().flatten();
    let known = known.find(|known| known.type_ == INITIALLY_SCHEDULED);
    // More pods of a group that was scheduled once do not make it one that was not.
    if known.is_some_and(|known| known.status == "True" && value != "True") {
        return None;
    }
    let mut condition = Condition {
        type_: INITIALLY_SCHEDULED.to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message: status.message(),
        observed_generation: group.metadata.generation,
        last_transition_time: Time(now),
    };
    if let Some(known) = known {
        if known.status == condition.status {
            condition.last_transition_time = known.last_transition_time.clone();
        }
        if *known == condition {
            return None;
        }
    }
    Some(condition)
}

fn tell_condition(scheduler: &Scheduler, group: &Arc<PodGroup>, status: &Status) {
    let Some(condition) = condition(group, status, scheduler.shared.clock().now()) else {
        return;
    };
    let (api, group) = (Arc::clone(scheduler.shared.api()), Arc::clone(group));
    let patch = async move {
        if let Err(error) = api.patch_pod_group(&group, condition).await {
            let (name, namespace) = (&group.metadata.name, &group.metadata.namespace);
            tracing::error!(podGroup = name, namespace, %error, "Failed to update PodGroup status");
        }
    };
    let patch = tasks::vital("pod group condition", patch);
    scheduler.shared.tasks().spawn(patch);
}
