//! CapacityScheduling: namespaces share a cluster by quotas (`scheduling.x-k8s.io` ElasticQuota) that have a promised and a largest part.
//!
//! A namespace may use more than it is promised while others use less, up to its max; what others lend it they take back by preemption. Within its
//! own promise a namespace's pods preempt those of namespaces that use more than theirs; beyond it, less important ones of its own. Pods of namespaces without a
//! quota and those with one do not preempt each other. Configured as in upstream's manifests: at `multiPoint`, and alone at `postFilter`.
//! Upstream: pkg/capacityscheduling.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use framework::args::decode;
use framework::{
    ActionType, ClusterEventWithHint, CycleState, EnqueueExtensions, EventObject, EventResource,
    Fragments, Handle, NodeIndex, NodeInfo, NodeToStatus, NominatingInfo, ObjectKind, Observer,
    Plugin, PluginError, PodInfo, PostFilterPlan, PostFilterPlugin, PreEnqueuePlugin,
    PreFilterExtensions, PreFilterPlugin, PreFilterResult, ReservePlugin, Resource, Sign, Snapshot,
    Status,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use plugins::preemption::{Evaluator, Preemptor, pod_eligible_to_preempt_others};

use crate::kinds::ELASTIC_QUOTA;
use crate::names;
use crate::observed::Observed;

pub mod quotas;
#[cfg(test)]
mod tests;

use quotas::{Ledger, Quotas};

/// The arguments: there are none.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NoArgs {}

struct CapacityScheduling {
    quotas: Arc<Mutex<Quotas>>,
    handle: Arc<dyn Handle>,
    evaluator: Evaluator,
}

/// What PreFilter found, for preemption.
#[derive(Debug, Clone)]
struct State {
    ledger: Ledger,
    /// What the pod asks for.
    own: Resource,
    /// With the nominated pods of its namespace that are no less important.
    in_quota: Resource,
    /// With those of namespaces within their promise, too.
    in_all: Resource,
}

/// Makes the plugin.
///
/// # Errors
/// For arguments: it has none.
pub fn new(
    args: Option<&serde_json::Value>,
    handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    let NoArgs {} = decode(names::CAPACITY_SCHEDULING, args)?;
    Ok(Arc::new(CapacityScheduling {
        quotas: Arc::default(),
        evaluator: Evaluator::new(names::CAPACITY_SCHEDULING, Arc::clone(&handle)),
        handle,
    }))
}

impl CapacityScheduling {
    fn quotas(&self) -> MutexGuard<'_, Quotas> {
        self.quotas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How things are for the pod. Nominated pods will use their quotas, too.
    fn state(&self, pod: &PodInfo) -> State {
        let ledger = self.quotas().ledger();
        let own = pod.requests.resource.clone();
        let (mut in_quota, mut in_all) = (own.clone(), own.clone());
        if ledger.quota(pod.namespace()).is_some() {
            for nominated in self.handle.nominated_pods() {
                let Some(quota) = ledger.quota(nominated.namespace()) else {
                    continue;
                };
                if nominated.uid == pod.uid {
                    continue;
                }
                let same = nominated.namespace() == pod.namespace();
                if same && nominated.priority >= pod.priority {
                    in_quota.add(&nominated.requests.resource, 1);
                    in_all.add(&nominated.requests.resource, 1);
                } else if !same && !quota.used_over_min() {
                    in_all.add(&nominated.requests.resource, 1);
                }
            }
        }
        State {
            ledger,
            own,
            in_quota,
            in_all,
        }
    }
}

impl State {
    /// # Errors
    /// Why the quotas do not let the pod in, in upstream's words.
    fn check(&self, pod: &PodInfo) -> Result<(), String> {
        let (namespace, name) = (pod.namespace(), pod.name());
        let Some(quota) = self.ledger.quota(namespace) else {
            return Ok(());
        };
        if quota.used_over_max_with(&self.in_quota) {
            return Err(format!(
                "Pod {namespace}/{name} is rejected in PreFilter because ElasticQuota {namespace} is more than Max"
            ));
        }
        if self.ledger.aggregated_used_over_min_with(&self.in_all) {
            return Err(format!(
                "Pod {namespace}/{name} is rejected in PreFilter because total ElasticQuota used is more than min"
            ));
        }
        Ok(())
    }
}

impl Plugin for CapacityScheduling {
    fn name(&self) -> &'static str {
        names::CAPACITY_SCHEDULING
    }
    // A pod that the quotas let in may go where it could without them; for any other no answer is kept.
    fn sign(&self, pod: &PodInfo, _snapshot: &Snapshot) -> Option<Sign> {
        let free = !self.quotas().has_quota(pod.namespace());
        (free || self.state(pod).check(pod).is_ok()).then(|| Sign::node(Fragments::NONE))
    }
    fn as_pre_enqueue(&self) -> Option<&dyn PreEnqueuePlugin> {
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
    fn as_observer(&self) -> Option<&dyn Observer> {
        Some(self)
    }
}

impl Observer for CapacityScheduling {
    fn kinds(&self) -> Vec<ObjectKind> {
        vec![ELASTIC_QUOTA]
    }

    fn observe(&self, old: Option<&EventObject>, new: Option<&EventObject>) {
        use component_helpers::pod::{namespace, node_name, uid};
        let mut quotas = self.quotas();
        match Observed::new(old, new) {
            Some(Observed::Object(quota)) => quotas.set_quota(quota),
            Some(Observed::ObjectGone(quota)) => quotas.delete_quota(quota),
            Some(Observed::Pod { new: pod, .. }) if node_name(pod).is_some() => {
                quotas.set_pod(namespace(pod), uid(pod), quotas::request(pod));
            }
            Some(Observed::PodGone(pod)) => quotas.delete_pod(namespace(pod), uid(pod)),
            Some(Observed::Pod { .. }) | None => {}
        }
    }
}

impl PreEnqueuePlugin for CapacityScheduling {
    fn pre_enqueue(&self, pod: &Arc<Pod>) -> Status {
        self.evaluator.pre_enqueue(pod)
    }
}

impl EnqueueExtensions for CapacityScheduling {
    fn events_to_register(&self) -> Vec<ClusterEventWithHint> {
        let always = ClusterEventWithHint::always;
        // Any pod that ends gives its quota back, and with it what all have together.
        vec![
            always(
                EventResource::Pod,
                ActionType::DELETE | ActionType::UPDATE_POD_SCALE_DOWN,
            ),
            always(EventResource::Custom(ELASTIC_QUOTA), ActionType::ALL),
        ]
    }
}

impl PreFilterPlugin for CapacityScheduling {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        _snapshot: &Snapshot,
    ) -> (PreFilterResult, Status) {
        let found = self.state(pod);
        let checked = found.check(pod);
        state.write(names::CAPACITY_SCHEDULING, found);
        let status = match checked {
            Ok(()) => Status::success(),
            Err(reason) => Status::unschedulable(reason),
        };
        (PreFilterResult::default(), status)
    }

    fn extensions(&self) -> Option<&dyn PreFilterExtensions> {
        Some(self)
    }
}

impl PreFilterExtensions for CapacityScheduling {
    fn add_pod(
        &self,
        state: &mut CycleState,
        _pod: &Arc<PodInfo>,
        to_add: &Arc<PodInfo>,
        _node: &NodeInfo,
    ) -> Status {
        if let Some(state) = state.read_mut::<State>(names::CAPACITY_SCHEDULING) {
            state.ledger.add(to_add);
        }
        Status::success()
    }

    fn remove_pod(
        &self,
        state: &mut CycleState,
        _pod: &Arc<PodInfo>,
        to_remove: &Arc<PodInfo>,
        _node: &NodeInfo,
    ) -> Status {
        if let Some(state) = state.read_mut::<State>(names::CAPACITY_SCHEDULING) {
            state.ledger.remove(to_remove);
        }
        Status::success()
    }
}

impl PostFilterPlugin for CapacityScheduling {
    fn post_filter(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        statuses: &NodeToStatus,
    ) -> (Option<NominatingInfo>, Status) {
        self.evaluator
            .post_filter(self, state, pod, snapshot, statuses)
    }

    fn dry_run(
        &self,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        statuses: &NodeToStatus,
    ) -> Option<PostFilterPlan> {
        let plan = self.evaluator.dry_run(self, state, pod, snapshot, statuses);
        Some(plan)
    }
}

fn state_of(state: &CycleState) -> Option<&State> {
    state.read::<State>(names::CAPACITY_SCHEDULING)
}

impl State {
    /// Whether `pod` may end `other` by the rules of quotas.
    fn may_end(&self, pod: &PodInfo, other: &PodInfo) -> bool {
        let less_important = other.priority < pod.priority;
        let same = other.namespace() == pod.namespace();
        let (own, others) = (
            self.ledger.quota(pod.namespace()),
            self.ledger.quota(other.namespace()),
        );
        match (own, others) {
            (None, None) => less_important,
            (Some(own), Some(_)) if own.used_over_min_with(&self.in_quota) => {
                same && less_important
            }
            (Some(_), Some(others)) => !same && others.used_over_min(),
            _ => false,
        }
    }
}

impl Preemptor for CapacityScheduling {
    fn eligible(
        &self,
        state: &CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
        statuses: &NodeToStatus,
    ) -> Result<(), &'static str> {
        let Some(state) = state_of(state) else {
            return Err("not eligible due to failed to read from cycleState");
        };
        pod_eligible_to_preempt_others(pod, snapshot, statuses, |other| {
            other.is_terminating() && state.may_end(pod, other)
        })
    }

    fn may_have_victims(&self, _pod: &PodInfo, snapshot: &Snapshot, node: NodeIndex) -> bool {
        // Priorities do not tell: a promise stands above them.
        (snapshot.node(node)).is_some_and(|node| !node.pods().is_empty())
    }

    fn is_potential_victim(
        &self,
        state: &CycleState,
        pod: &PodInfo,
        other: &PodInfo,
        _now: Timestamp,
    ) -> Result<bool, Status> {
        Ok(state_of(state).is_some_and(|state| state.may_end(pod, other)))
    }

    fn admits(&self, state: &CycleState, pod: &PodInfo) -> Result<(), Status> {
        let exceeded = state_of(state).is_some_and(|state| {
            let quota = state.ledger.quota(pod.namespace());
            quota.is_some_and(|quota| {
                quota.used_over_max_with(&state.own)
                    || state.ledger.aggregated_used_over_min_with(&state.own)
            })
        });
        match exceeded {
            true => Err(Status::unschedulable("global quota max exceeded")),
            false => Ok(()),
        }
    }

    fn spares(&self, state: &CycleState, pod: &PodInfo) -> bool {
        state_of(state).is_none_or(|state| state.check(pod).is_ok())
    }

    fn num_candidates(&self, nodes: usize) -> usize {
        nodes
    }
}

impl ReservePlugin for CapacityScheduling {
    fn reserve(&self, _state: &mut CycleState, pod: &Arc<PodInfo>, _node_name: &str) -> Status {
        let request = pod.requests.resource.clone();
        self.quotas().set_pod(pod.namespace(), &pod.uid, request);
        Status::success()
    }

    fn unreserve(&self, _state: &mut CycleState, pod: &Arc<PodInfo>, _node_name: &str) {
        self.quotas().delete_pod(pod.namespace(), &pod.uid);
    }
}
