//! [`SchedulingLoop`]: pops one pod after the other, decides, assumes, and hands over to a binding task.
//!
//! Runs on a thread of its own and never waits but for the queue. Upstream: pkg/scheduler/schedule_one.go, v1.36.

use std::collections::HashMap;
use std::sync::Arc;

use component_base::tasks;

use backend::QueuedPodInfo;
use framework::*;

use crate::binding_cycle::{self, BindingCycle};
use crate::decide::{Chosen, Decider, NotChosen};
use crate::failure::{Failure, handle_scheduling_failure};
use crate::retreat::unreserve_and_forget;
use crate::runtime::Framework;
use crate::scheduler::Scheduler;

mod group;
mod placement;
#[cfg(test)]
mod tests;

/// The loop's own state: the snapshot, and what was decided before.
pub struct SchedulingLoop {
    scheduler: Arc<Scheduler>,
    snapshot: Snapshot,
    /// With the framework each remembers for: another one of the same name begins anew.
    deciders: HashMap<String, (Arc<Framework>, Decider)>,
    seed: u64,
}

impl SchedulingLoop {
    /// `seed` settles ties: the same seed and the same history give the same placement.
    pub fn new(scheduler: Arc<Scheduler>, seed: u64) -> Self {
        SchedulingLoop {
            scheduler,
            snapshot: Snapshot::new(),
            deciders: HashMap::new(),
            seed,
        }
    }

    /// Schedules until the queue is closed.
    pub fn run(&mut self) {
        let queue = Arc::clone(&self.scheduler.queue);
        while let Some(queued) = queue.pop() {
            self.schedule_one(queued);
        }
    }

    /// The same in a task; others have their turn after each pod.
    pub async fn run_in_task(mut self) {
        let queue = Arc::clone(&self.scheduler.queue);
        while let Some(queued) = std::future::poll_fn(|context| queue.poll_pop(context)).await {
            self.schedule_one(queued);
            tokio::task::yield_now().await;
        }
    }

    /// Schedules one popped pod.
    pub fn schedule_one(&mut self, queued: Box<QueuedPodInfo>) {
        let scheduler = Arc::clone(&self.scheduler);
        let metrics = scheduler.shared.metrics();
        let start = metrics.start();
        let pod = Arc::clone(&queued.pod);
        if let Some(of) = scheduler.shared.listers().pod_groups().group_of(&pod.pod) {
            return self.schedule_group(of, queued, start);
        }
        let Some(framework) = scheduler.framework_for_pod(&pod) else {
            tracing::error!(
                pod = pod.name(),
                namespace = pod.namespace(),
                "profile not found for the pod's schedulerName"
            );
            scheduler.queue.done(&pod.uid);
            return;
        };
        if skip_pod_schedule(&scheduler, &pod) {
            scheduler.queue.done(&pod.uid);
            return;
        }
        scheduler.cache.update_snapshot(&mut self.snapshot);
        touch(&scheduler, &mut self.snapshot);
        let chosen = self.scheduling_algorithm(&framework, &pod);
        let times = (start, metrics.observe_algorithm(start));
        let Chosen {
            node_name,
            evaluated_nodes,
            feasible_nodes,
            score,
            mut state,
        } = match chosen {
            Ok(chosen) => chosen,
            Err((failure, nominating)) => {
                handle_scheduling_failure(
                    &scheduler,
                    &framework,
                    queued,
                    failure,
                    &nominating,
                    start,
                );
                return;
            }
        };
        let mut status = reserve(&scheduler, &framework, &mut state, &pod, &node_name);
        if status.is_success() {
            status = permit(&scheduler, &framework, &mut state, &pod, &node_name);
        }
        if !status.is_success() {
            let failure = Failure::on_node(status, &node_name);
            handle_scheduling_failure(
                &scheduler,
                &framework,
                queued,
                failure,
                &NominatingInfo::Override(String::new()),
                start,
            );
            return;
        }
        tracing::debug!(
            pod = pod.name(),
            namespace = pod.namespace(),
            node = &*node_name,
            evaluated_nodes,
            feasible_nodes,
            "Node chosen"
        );
        let decisions = scheduler.shared.decisions();
        decisions.chose(&pod, &node_name, (score, Some(feasible_nodes)), times);
        let cycle = BindingCycle {
            scheduler: Arc::clone(&scheduler),
            framework,
            queued,
            node_name,
            state,
            start,
        };
        let binding = tasks::vital("binding cycle", binding_cycle::run(cycle));
        scheduler.shared.tasks().spawn(binding);
    }

    fn scheduling_algorithm(
        &mut self,
        framework: &Arc<Framework>,
        pod: &Arc<PodInfo>,
    ) -> Result<Chosen, (Failure, NominatingInfo)> {
        let clear = || NominatingInfo::Override(String::new());
        match self.choose(framework, pod, None) {
            Ok(chosen) => Ok(chosen),
            Err(Failure::Fit(Code::Unschedulable, fit)) => {
                Err(self.post_filter(framework, pod, fit))
            }
            Err(failure) => Err((failure, clear())),
        }
    }

    /// Chooses a node, and does nothing else.
    fn choose(
        &mut self,
        framework: &Arc<Framework>,
        pod: &Arc<PodInfo>,
        within: Option<&NodeSet>,
    ) -> Result<Chosen, Failure> {
        if let Some((plugin, reason)) = not_supported(framework, pod) {
            return Err(Failure::Fit(
                Code::UnschedulableAndUnresolvable,
                Box::new(unsupported(plugin, reason, self.snapshot.num_nodes())),
            ));
        }
        let seed = self.seed;
        let decider = self
            .deciders
            .entry(framework.profile_name().to_owned())
            .or_insert_with(|| (Arc::clone(framework), Decider::new(seed)));
        if !Arc::ptr_eq(&decider.0, framework) {
            *decider = (Arc::clone(framework), Decider::new(seed));
        }
        let (_, decider) = decider;
        let nominator = self.scheduler.queue.nominator();
        match decider.decide_within(framework, &self.snapshot, pod, nominator, within) {
            Ok(chosen) => Ok(chosen),
            Err(NotChosen::NoNodes) => Err(Failure::NoNodes),
            Err(NotChosen::Error(status)) => Err(Failure::Status(status)),
            Err(NotChosen::NoFit(fit)) => Err(Failure::Fit(Code::Unschedulable, fit)),
        }
    }

    /// No node fits: PostFilter (preemption) may make room.
    fn post_filter(
        &self,
        framework: &Arc<Framework>,
        pod: &Arc<PodInfo>,
        mut fit: Box<FitError>,
    ) -> (Failure, NominatingInfo) {
        if framework.points().post_filter.is_empty() {
            return (
                Failure::Fit(Code::Unschedulable, fit),
                NominatingInfo::Override(String::new()),
            );
        }
        // What was kept for the signature has no state for plugins that look at the whole cluster; preemption needs all of it.
        let mut state = CycleState::new();
        let reads = |plugin: &Arc<dyn Plugin>| {
            let post_filter = plugin.as_post_filter();
            post_filter.is_some_and(|p| p.reads_state(pod, &self.snapshot))
        };
        if framework.points().post_filter.iter().any(reads) {
            let _ = framework.run_pre_filter_plugins(&mut state, pod, &self.snapshot);
        }
        let (nominating, status) = framework.run_post_filter_plugins(
            &mut state,
            pod,
            &self.snapshot,
            &fit.diagnosis.node_to_status,
        );
        if status.is_error() {
            tracing::error!(pod = pod.name(), namespace = pod.namespace(), %status, "Status after running PostFilter plugins for pod");
        }
        fit.diagnosis.post_filter_msg = status.message();
        (
            Failure::Fit(Code::Unschedulable, fit),
            nominating.unwrap_or_default(),
        )
    }
}

/// Nodes whose volumes changed, or something else a plugin judges them by, count as changed.
pub(crate) fn touch(scheduler: &Scheduler, snapshot: &mut Snapshot) {
    for node in scheduler.shared.take_touched() {
        snapshot.touch_node(&node);
    }
    let Some(touched) = scheduler.shared.listers().volumes().take_touched() else {
        return;
    };
    if touched.all {
        snapshot.touch_all();
        return;
    }
    touched
        .nodes
        .iter()
        .for_each(|node| snapshot.touch_node(node));
    touched
        .claims
        .iter()
        .for_each(|claim| snapshot.touch_claim(claim));
}

fn skip_pod_schedule(scheduler: &Scheduler, pod: &Arc<PodInfo>) -> bool {
    if pod.is_terminating() {
        scheduler.shared.record(EventRecord {
            regarding: Arc::clone(&pod.pod),
            related: None,
            warning: true,
            reason: "FailedScheduling",
            action: "Scheduling",
            note: format!(
                "skip schedule deleting pod: {}/{}",
                pod.namespace(),
                pod.name()
            ),
        });
        return true;
    }
    // An update while the pod was being bound can bring it back into the queue.
    scheduler.cache.is_assumed_pod(&pod.uid)
}

/// Counts the pod to its node and runs Reserve. On failure all is undone.
fn reserve(
    scheduler: &Scheduler,
    framework: &Framework,
    state: &mut CycleState,
    pod: &Arc<PodInfo>,
    node_name: &str,
) -> Status {
    if let Err(error) = scheduler.cache.assume_pod(Arc::clone(pod), node_name) {
        tracing::error!(%error, "Scheduler cache AssumePod failed");
        return Status::error(error);
    }
    scheduler
        .shared
        .listers()
        .pod_groups()
        .assume(&pod.pod, node_name);
    scheduler.queue.nominator().delete(&pod.uid);
    let status = framework.run_reserve_plugins_reserve(state, pod, node_name);
    if !status.is_success() {
        unreserve_and_forget(scheduler, framework, state, pod, node_name);
    }
    status
}

/// Runs Permit. On failure what was reserved is undone; a pod that is to wait is a success.
fn permit(
    scheduler: &Scheduler,
    framework: &Framework,
    state: &mut CycleState,
    pod: &Arc<PodInfo>,
    node_name: &str,
) -> Status {
    let status = framework.run_permit_plugins(state, pod, node_name);
    if status.is_wait() {
        return Status::success();
    }
    if !status.is_success() {
        unreserve_and_forget(scheduler, framework, state, pod, node_name);
    }
    status
}

/// What a pod needs that no plugin of its profile can give: such a pod waits, and is never bound blindly.
fn not_supported(framework: &Framework, pod: &PodInfo) -> Option<(&'static str, &'static str)> {
    let plugin = plugins::names::DYNAMIC_RESOURCES;
    let has_claims = !component_helpers::resource_claim::entries(&pod.pod).is_empty();
    let mut judges = framework.judges().iter();
    if has_claims && !judges.any(|judge| judge.plugin.name() == plugin) {
        return Some((
            plugin,
            "the pod has resource claims, and its profile is without the plugin DynamicResources",
        ));
    }
    None
}

fn unsupported(plugin: &'static str, reason: &str, num_all_nodes: usize) -> FitError {
    let diagnosis = Diagnosis {
        pre_filter_msg: reason.to_owned(),
        unschedulable_plugins: [plugin].into(),
        ..Diagnosis::default()
    };
    FitError {
        num_all_nodes,
        diagnosis,
    }
}
