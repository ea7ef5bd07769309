//! A group of pods is tried in one placement after the other, and goes to the best in which it comes together.
//!
//! ```text
//! PlacementGenerate -> for each placement: try the group on its nodes, note who would go where, take all back
//!    none feasible: the first one's outcome is told of; what rejected pods in any of them wakes the group
//!    some feasible: PlacementScore -> the best -> the group again, each pod on the node it had found
//! ```
//! One placement alone (a group without a topology, or one that is there already) is tried once, and what it took stays.
//!
//! Upstream: pkg/scheduler/schedule_one_podgroup.go (podGroupSchedulingPlacementAlgorithm), v1.37.

use std::collections::BTreeSet;
use std::sync::Arc;

use backend::QueuedPodInfo;
use framework::*;
use k8s_openapi::api::scheduling::v1beta1::PodGroup;

use super::SchedulingLoop;
use super::group::Outcome;
use crate::failure::Failure;
use crate::retreat::unreserve_and_forget;
use crate::runtime::Framework;

#[cfg(test)]
mod tests;

/// A placement in which the group comes together.
struct Feasible {
    placement: Placement,
    /// By pod; `None`: it found none.
    nodes: Vec<Option<Arc<str>>>,
}

impl Feasible {
    fn proposed(&self, queued: &[Box<QueuedPodInfo>]) -> Vec<(Arc<PodInfo>, Arc<str>)> {
        let pods = queued.iter().zip(&self.nodes);
        pods.filter_map(|(queued, node)| Some((Arc::clone(&queued.pod), node.clone()?)))
            .collect()
    }
}

/// No placement of so many will do.
fn none_available(placements: usize, first: &Status) -> Status {
    let why = format!("0/{placements} placements are available, first placement status: {first}");
    Status::unschedulable(why).by(first.plugin())
}

impl SchedulingLoop {
    /// Tries the group where it may go. What is reserved after a success is where it goes; after anything else nothing is, but where one placement was all there was.
    pub(super) fn try_placements(
        &mut self,
        framework: &Arc<Framework>,
        group: &PodGroup,
        progress: GroupProgress,
        queued: &[Box<QueuedPodInfo>],
    ) -> (Status, Vec<Outcome>) {
        let all = Placement {
            name: String::new(),
            nodes: self.snapshot.columns().live().clone(),
        };
        let generated = framework.run_placement_generate_plugins(group, &self.snapshot, all);
        let placements = match generated {
            Ok(placements) => placements,
            Err(status) => return (status, queued.iter().map(|_| None).collect()),
        };
        let metrics = Arc::clone(self.scheduler.shared.metrics());
        metrics.observe_placements(framework.profile_name(), placements.len());
        if let [only] = &placements[..] {
            let start = metrics.start();
            let part = only.nodes.len() < self.snapshot.num_nodes();
            let within = part.then_some(&only.nodes);
            let (status, outcomes) = self.try_group(framework, group, progress, queued, |_| within);
            if status.is_error() {
                return (status, outcomes);
            }
            let feasible = status.is_success();
            metrics.observe_placement(feasible, framework.profile_name(), start);
            return match feasible {
                true => (status, outcomes),
                false => (none_available(1, &status), outcomes),
            };
        }
        self.try_each(framework, group, progress, queued, placements)
    }

    fn try_each(
        &mut self,
        framework: &Arc<Framework>,
        group: &PodGroup,
        progress: GroupProgress,
        queued: &[Box<QueuedPodInfo>],
        placements: Vec<Placement>,
    ) -> (Status, Vec<Outcome>) {
        let metrics = Arc::clone(self.scheduler.shared.metrics());
        let count = placements.len();
        let mut first: Option<(Status, Vec<Outcome>)> = None;
        let mut feasible: Vec<Feasible> = Vec::new();
        let mut rejectors: BTreeSet<&'static str> = BTreeSet::new();
        for placement in placements {
            let start = metrics.start();
            let within = Some(&placement.nodes);
            let (status, mut outcomes) =
                self.try_group(framework, group, progress, queued, |_| within);
            let nodes = self.give_back(framework, queued, &mut outcomes);
            if status.is_error() {
                return (status, outcomes);
            }
            let profile = framework.profile_name();
            metrics.observe_placement(status.is_success(), profile, start);
            if status.is_success() {
                feasible.push(Feasible { placement, nodes });
                continue;
            }
            for outcome in outcomes.iter().flatten() {
                if let Err(Failure::Fit(_, fit)) = outcome {
                    rejectors.extend(&fit.diagnosis.unschedulable_plugins);
                }
            }
            first.get_or_insert((status, outcomes));
        }
        if let Some(best) = self.best(framework, group, queued, &feasible) {
            return match best {
                Ok(best) => self.go(framework, group, progress, queued, &feasible[best]),
                Err(status) => (status, queued.iter().map(|_| None).collect()),
            };
        }
        let Some((status, mut outcomes)) = first else {
            let status = Status::unschedulable("no feasible placements found");
            return (status, queued.iter().map(|_| None).collect());
        };
        for outcome in outcomes.iter_mut().flatten() {
            if let Err(Failure::Fit(_, fit)) = outcome {
                // Room in any of the placements may help.
                fit.diagnosis.unschedulable_plugins.extend(&rejectors);
            }
        }
        (none_available(count, &status), outcomes)
    }

    /// The best of the placements; `None` where there are none.
    fn best(
        &mut self,
        framework: &Arc<Framework>,
        group: &PodGroup,
        queued: &[Box<QueuedPodInfo>],
        feasible: &[Feasible],
    ) -> Option<Result<usize, Status>> {
        if feasible.len() < 2 {
            return (!feasible.is_empty()).then_some(Ok(0));
        }
        let proposed: Vec<_> = feasible.iter().map(|one| one.proposed(queued)).collect();
        let assignments = feasible.iter().zip(&proposed);
        let assignments = assignments.map(|(one, proposed)| PodGroupAssignments {
            placement: &one.placement,
            proposed,
        });
        let assignments: Vec<_> = assignments.collect();
        let scores =
            match framework.run_placement_score_plugins(group, &self.snapshot, &assignments) {
                Ok(scores) => scores,
                Err(status) => return Some(Err(status)),
            };
        let top = scores.iter().copied().max()?;
        let ties: Vec<usize> = (0..scores.len()).filter(|i| scores[*i] == top).collect();
        let decider = self.deciders.get_mut(framework.profile_name());
        let random = decider.map_or(0, |(_, decider)| decider.draw());
        let tie = usize::try_from(random % ties.len() as u64).unwrap_or(0);
        Some(Ok(ties[tie]))
    }

    /// The group goes there: each pod is decided once more, on the node it had found.
    fn go(
        &mut self,
        framework: &Arc<Framework>,
        group: &PodGroup,
        progress: GroupProgress,
        queued: &[Box<QueuedPodInfo>],
        to: &Feasible,
    ) -> (Status, Vec<Outcome>) {
        let own = |node: &Option<Arc<str>>| {
            let index = self.snapshot.index(node.as_deref()?)?;
            Some(NodeSet::from_iter([index]))
        };
        let own: Vec<Option<NodeSet>> = to.nodes.iter().map(own).collect();
        self.try_group(framework, group, progress, queued, |i| {
            Some(own[i].as_ref().unwrap_or(&to.placement.nodes))
        })
    }

    /// Takes back what pods have, last first, and says which nodes they had.
    fn give_back(
        &mut self,
        framework: &Arc<Framework>,
        queued: &[Box<QueuedPodInfo>],
        outcomes: &mut [Outcome],
    ) -> Vec<Option<Arc<str>>> {
        let mut nodes = vec![None; queued.len()];
        for (i, outcome) in outcomes.iter_mut().enumerate().rev() {
            match outcome.take() {
                Some(Ok(mut placed)) => {
                    let (node, pod) = (placed.node_name, &queued[i].pod);
                    let state = &mut placed.state;
                    unreserve_and_forget(&self.scheduler, framework, state, pod, &node);
                    nodes[i] = Some(node);
                }
                failed => *outcome = failed,
            }
        }
        self.look_again();
        nodes
    }
}
