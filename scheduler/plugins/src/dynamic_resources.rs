//! DynamicResources: a pod goes where its ResourceClaims have devices or can get them, and its claims are allocated and reserved before it is bound.
//!
//! ```text
//!   PreEnqueue  the claims are there
//!   PreFilter   they can be used, their classes are there; what is taken now
//!   Filter      an allocated claim's node selector; for the others the allocator's first choice on the node, which is kept
//!   PostFilter  an allocation that no node can use is given up
//!   Score       earlier alternatives of prioritized lists are better
//!   Reserve     the choice of the node counts as taken from here on
//!   PreBind     finalizer, allocation and reservation are written; then devices with binding conditions are waited for
//!   Unreserve   what was taken is free; what was written is taken back
//! ```
//!
//! Extended resources that a DeviceClass stands for become a claim of their own (`extended`). A pod without claims and such resources costs a look at two empty lists.
//! Upstream: plugins/dynamicresources, v1.37.
//!
//! DIFFERS: writes of PostFilter and Unreserve go out behind the scheduling thread; binding conditions are waited for by watching, where upstream looks every 5 s.

use std::sync::Arc;
use std::time::Duration;

use ::dynamic_resources::Features;
use component_helpers::resource_claim::entries;
use framework::args::{DynamicResourcesArgs, GoDuration, decode};
use framework::{
    BoxFuture, CycleState, DeviceCache, EnqueueExtensions, FilterPlugin, Fragments, Handle,
    NodeInfo, NodeSet, NodeToStatus, NominatingInfo, Normalize, Plugin, PluginError, PodInfo,
    PostFilterPlugin, PreBindPlugin, PreBindPreFlightResult, PreEnqueuePlugin, PreFilterPlugin,
    PreFilterResult, PreScorePlugin, ReservePlugin, ScorePlugin, Sign, Snapshot, Status,
};
use k8s_openapi::api::core::v1::Pod;

use crate::names;

mod binding;
mod claims;
mod conditions;
mod extended;
mod filter;
mod hints;
mod reserve;
mod state;
#[cfg(test)]
mod tests;

use state::State;

const STATE: &str = "DynamicResources";

/// Upstream: `DynamicResourcesFilterTimeoutDefault`.
const FILTER_TIMEOUT: Duration = Duration::from_secs(10);
/// Upstream: `DynamicResourcesBindingTimeoutDefault`.
const BINDING_TIMEOUT: Duration = Duration::from_secs(600);

struct DynamicResources {
    handle: Arc<dyn Handle>,
    features: Features,
    /// How long the search on one node may take; zero: as long as it likes.
    filter_timeout: Duration,
    binding_timeout: Duration,
}

/// Makes the plugin.
///
/// # Errors
/// For arguments that do not decode or make no sense.
pub fn new(
    args: Option<&serde_json::Value>,
    handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    let args: DynamicResourcesArgs = decode(names::DYNAMIC_RESOURCES, args)?;
    let features = handle.listers().devices().features();
    let mut problems = Vec::new();
    let mut timeout =
        |field: &str, given: Option<GoDuration>, least: i64, gate: Option<&str>, must: &str| {
            let nanos = given.as_ref().map(GoDuration::nanos);
            match (nanos, gate) {
                (Some(_), Some(gate)) => {
                    problems.push(format!(
                        "{field}: Forbidden: {gate} feature gate is disabled"
                    ));
                }
                (Some(nanos), None) if nanos < least => {
                    problems.push(format!(
                        "{field}: Invalid value: {:?}: {must}",
                        given.map(|g| g.to_string()).unwrap_or_default()
                    ));
                }
                _ => {}
            }
            nanos
                .and_then(|nanos| u64::try_from(nanos).ok())
                .map(Duration::from_nanos)
        };
    let gate = (!features.scheduler_filter_timeout).then_some("DRASchedulingFilterTimeout");
    let filter = timeout(
        "filterTimeout",
        args.filter_timeout,
        0,
        gate,
        "must be zero or positive",
    );
    let gate = (!features.device_binding_conditions)
        .then_some("DRADeviceBindingConditions or DRAResourceClaimDeviceStatus");
    let binding = timeout(
        "bindingTimeout",
        args.binding_timeout,
        1_000_000_000,
        gate,
        "must be at least 1 second",
    );
    if !problems.is_empty() {
        return Err(PluginError::Invalid {
            plugin: names::DYNAMIC_RESOURCES,
            problems,
        });
    }
    let filter = filter.unwrap_or(FILTER_TIMEOUT);
    Ok(Arc::new(DynamicResources {
        handle,
        features,
        filter_timeout: if features.scheduler_filter_timeout {
            filter
        } else {
            Duration::ZERO
        },
        binding_timeout: binding.unwrap_or(BINDING_TIMEOUT),
    }))
}

impl DynamicResources {
    fn devices(&self) -> &DeviceCache {
        self.handle.listers().devices()
    }

    /// Has the pod claims, or might it get one for its extended resources?
    fn may_concern(pod: &PodInfo) -> bool {
        !entries(&pod.pod).is_empty() || !pod.requests.resource.scalar.is_empty()
    }

    fn state<'a>(&self, state: &'a CycleState) -> Option<&'a Arc<State>> {
        state.read::<Arc<State>>(STATE)
    }
}

impl Plugin for DynamicResources {
    fn name(&self) -> &'static str {
        names::DYNAMIC_RESOURCES
    }
    // DIFFERS: upstream signs pods whose extended resources devices stand for; what is free of them is not in a node.
    fn sign(&self, pod: &PodInfo, _snapshot: &Snapshot) -> Option<Sign> {
        if !Self::may_concern(pod) {
            return Some(Sign::node(Fragments::NONE));
        }
        let devices = self.devices().read();
        if !entries(&pod.pod).is_empty() || extended::is_asked_for(&devices, pod) {
            return None;
        }
        Some(Sign {
            inputs: devices.classes_revision(),
            ..Sign::node(Fragments::REQUESTS)
        })
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
    fn as_filter(&self) -> Option<&dyn FilterPlugin> {
        Some(self)
    }
    fn as_post_filter(&self) -> Option<&dyn PostFilterPlugin> {
        Some(self)
    }
    fn as_pre_score(&self) -> Option<&dyn PreScorePlugin> {
        Some(self)
    }
    fn as_score(&self) -> Option<&dyn ScorePlugin> {
        Some(self)
    }
    fn as_reserve(&self) -> Option<&dyn ReservePlugin> {
        Some(self)
    }
    fn as_pre_bind(&self) -> Option<&dyn PreBindPlugin> {
        Some(self)
    }
}

impl PreEnqueuePlugin for DynamicResources {
    fn pre_enqueue(&self, pod: &Arc<Pod>) -> Status {
        if entries(pod).is_empty() {
            return Status::success();
        }
        match claims::of_pod(&self.devices().read(), pod) {
            Ok(_) => Status::success(),
            Err(error) => Status::unresolvable(error.to_string()),
        }
    }
}

impl PreFilterPlugin for DynamicResources {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        _snapshot: &Snapshot,
    ) -> (PreFilterResult, Status) {
        let all = PreFilterResult::default();
        state.delete(STATE);
        if !Self::may_concern(pod) {
            return (all, Status::skip());
        }
        match state::prepare(self.devices(), pod) {
            Ok(Some(prepared)) => {
                state.write(STATE, Arc::new(prepared));
                (all, Status::success())
            }
            Ok(None) => (all, Status::skip()),
            Err(status) => (all, status),
        }
    }
}

impl FilterPlugin for DynamicResources {
    fn filter(&self, state: &CycleState, pod: &Arc<PodInfo>, node: &NodeInfo) -> Status {
        match self.state(state) {
            Some(state) => self.filter_node(state, pod, node),
            None => Status::success(),
        }
    }
}

impl PostFilterPlugin for DynamicResources {
    fn reads_state(&self, pod: &Arc<PodInfo>, _snapshot: &Snapshot) -> bool {
        Self::may_concern(pod)
    }

    fn post_filter(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        statuses: &NodeToStatus,
    ) -> (Option<NominatingInfo>, Status) {
        let nothing = || Status::with_reasons(framework::Code::Unschedulable, Vec::new());
        let status = match self.state(state) {
            Some(state) => self.give_up_allocation(state, pod, snapshot, statuses),
            None => None,
        };
        (None, status.unwrap_or_else(nothing))
    }
}

impl PreScorePlugin for DynamicResources {
    fn pre_score(
        &self,
        state: &mut CycleState,
        _pod: &Arc<PodInfo>,
        _snapshot: &Snapshot,
        _nodes: &NodeSet,
    ) -> Status {
        match self.state(state) {
            Some(_) => Status::success(),
            None => Status::skip(),
        }
    }
}

impl ScorePlugin for DynamicResources {
    fn score(
        &self,
        state: &CycleState,
        _pod: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Result<i64, Status> {
        Ok(self
            .state(state)
            .map_or(0, |state| filter::score(state, node.name())))
    }

    fn normalize(&self) -> Normalize {
        Normalize::ByMax { reverse: false }
    }
}

impl ReservePlugin for DynamicResources {
    fn concerns(&self, pod: &PodInfo) -> bool {
        Self::may_concern(pod)
    }

    fn reserve(&self, state: &mut CycleState, _pod: &Arc<PodInfo>, node_name: &str) -> Status {
        match self.state(state) {
            Some(state) => reserve::reserve(self.devices(), state, node_name),
            None => Status::success(),
        }
    }

    fn unreserve(&self, state: &mut CycleState, pod: &Arc<PodInfo>, _node_name: &str) {
        if let Some(state) = self.state(state) {
            self.take_back(state, pod);
        }
    }
}

impl PreBindPlugin for DynamicResources {
    fn pre_bind_pre_flight(
        &self,
        state: &CycleState,
        _pod: &Arc<PodInfo>,
        _node_name: &str,
    ) -> (PreBindPreFlightResult, Status) {
        let result = PreBindPreFlightResult {
            allow_parallel: true,
        };
        let status = match self.state(state) {
            Some(_) => Status::success(),
            None => Status::skip(),
        };
        (result, status)
    }

    fn pre_bind<'a>(
        &'a self,
        state: &'a CycleState,
        pod: &'a Arc<PodInfo>,
        node_name: &'a str,
    ) -> BoxFuture<'a, Status> {
        Box::pin(async move {
            let Some(state) = self.state(state) else {
                return Status::success();
            };
            match self.bind_claims(state, pod, node_name).await {
                Ok(()) => Status::success(),
                Err(error) => Status::error(error),
            }
        })
    }
}
