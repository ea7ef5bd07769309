//! VolumeBinding: a pod goes where its volumes are or can be, and its claims are bound before it is.
//!
//! ```text
//!   PreFilter   claims: bound, waiting for their node, or (rejected) waiting for their volume
//!   Filter      the volumes' node affinity; for a waiting claim the smallest free volume, or a place where one can be made
//!   Reserve     assume: the volume is the claim's, the claim's volume is made for the node
//!   PreBind     write that, and wait until the binder has finished
//!   Unreserve   assume no more
//! ```
//!
//! What is found for one pod serves every pod whose claims ask for the same; Reserve looks at the chosen node once more, for the pod's own claims.
//! Upstream: plugins/volumebinding, v1.36.
//!
//! DIFFERS: no Score (`StorageCapacityScoring` is alpha and off). PreBind wakes when a claim or volume changes; upstream looks once a second.

use std::sync::Arc;
use std::time::Duration;

use component_helpers::persistent_volume::{
    SELECTED_NODE, annotation, claim_class, requested_storage,
};
use framework::args::{VolumeBindingArgs, decode};
use framework::{
    BoxFuture, CycleState, EnqueueExtensions, FilterPlugin, Fragments, Handle, NodeIndex, NodeInfo,
    NodeSet, Plugin, PluginError, PodInfo, PreBindPlugin, PreBindPreFlightResult, PreFilterPlugin,
    PreFilterResult, ReservePlugin, Sign, Snapshot, Status, Verdicts, VolumeCache, VolumeState,
};

use crate::names;
use crate::node_affinity::matching;

mod binding;
mod claims;
mod hints;
mod matching;
mod plan;
#[cfg(test)]
mod tests;

use binding::Reserved;
use claims::{Claim, PodVolumeClaims};
pub use plan::{
    ERR_REASON_BIND_CONFLICT, ERR_REASON_NODE_CONFLICT, ERR_REASON_NOT_ENOUGH_SPACE,
    ERR_REASON_PV_NOT_EXIST,
};
use plan::{NodeView, Plan, Reasons};

/// A claim's class binds at once, and it is not bound.
pub const ERR_REASON_UNBOUND_IMMEDIATE: &str = "pod has unbound immediate PersistentVolumeClaims";

const STATE: &str = "VolumeBinding";
const RESERVED: &str = "VolumeBinding/reserved";

/// What PreFilter leaves.
#[derive(Clone)]
struct State {
    /// Whose claims the plan is of; pods of one signature share it for filtering.
    uid: Arc<str>,
    plan: Arc<Plan>,
}

struct VolumeBinding {
    handle: Arc<dyn Handle>,
    bind_timeout: Duration,
}

/// Makes the plugin.
///
/// # Errors
/// For arguments that do not decode or make no sense.
pub fn new(
    args: Option<&serde_json::Value>,
    handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    let args: VolumeBindingArgs = decode(names::VOLUME_BINDING, args)?;
    let mut problems = Vec::new();
    let seconds = u64::try_from(args.bind_timeout_seconds).unwrap_or_else(|_| {
        problems.push(format!(
            "bindTimeoutSeconds: Invalid value: {}: invalid BindTimeoutSeconds, should not be a negative value",
            args.bind_timeout_seconds
        ));
        0
    });
    if args.shape.is_some() {
        problems.push(
            "shape: Invalid value: unexpected field `shape`, remove it or turn on the feature gate StorageCapacityScoring"
                .to_owned(),
        );
    }
    if !problems.is_empty() {
        return Err(PluginError::Invalid {
            plugin: names::VOLUME_BINDING,
            problems,
        });
    }
    Ok(Arc::new(VolumeBinding {
        handle,
        bind_timeout: Duration::from_secs(seconds),
    }))
}

fn view<'a>(volumes: &'a VolumeState, node: &'a NodeInfo) -> NodeView<'a> {
    NodeView {
        name: node.name(),
        labels: node.labels(),
        csi_node: volumes.csi_node(node.name()).map(|node| &**node),
    }
}

/// Text with its length, so that no two sequences of texts have equal bytes.
fn text(key: &mut Vec<u8>, bytes: &[u8]) {
    key.extend((bytes.len() as u32).to_le_bytes());
    key.extend(bytes);
}

impl VolumeBinding {
    fn volumes(&self) -> &VolumeCache {
        self.handle.listers().volumes()
    }

    /// What a claim that waits asks for, and where its volume might come from.
    fn sign_delayed(volumes: &VolumeState, claim: &Claim, key: &mut Vec<u8>) {
        let class = claim_class(&claim.object);
        text(key, class.as_bytes());
        let spec = claim.object.spec.as_ref();
        let asks = (
            spec.map(|s| (&s.access_modes, &s.volume_mode, &s.selector)),
            spec.map(|s| &s.volume_attributes_class_name),
            annotation(&claim.object.metadata, SELECTED_NODE),
        );
        let asks = serde_json::to_vec(&asks).expect("API types serialise into memory");
        text(key, &asks);
        let has_size = spec.and_then(|s| s.resources.as_ref()?.requests.as_ref()?.get("storage"));
        key.push(u8::from(has_size.is_some()));
        key.extend(requested_storage(&claim.object).nano_value().to_le_bytes());
        let mut of_class = Vec::new();
        if let Some(class) = volumes.storage_class(class) {
            plan::class_key(class, &mut of_class);
        }
        text(key, &of_class);
        match matching::prebound(volumes, claim) {
            Ok(Some(volume)) => text(key, volume.nodes_key()),
            Ok(None) | Err(_) => key.push(0xff),
        }
    }

    /// When what decides about the claims that wait last changed.
    fn inputs(volumes: &VolumeState, claims: &PodVolumeClaims) -> u64 {
        let of = |claim: &Claim| {
            let class = claim_class(&claim.object);
            let settings = volumes.settings_revision();
            let revisions = [
                settings,
                volumes.unclaimed_revision(class),
                volumes.capacities_revision(class),
            ];
            // The largest grows with each: they all count in one row.
            revisions.into_iter().max().unwrap_or(0)
        };
        claims.delayed.iter().map(of).max().unwrap_or(0)
    }

    /// The nodes a volume may be used on, of `among`.
    fn nodes_of(
        volumes: &VolumeState,
        volume: &framework::volumes::Volume,
        snapshot: &Snapshot,
        among: &NodeSet,
    ) -> NodeSet {
        let terms = volume.affinity_on(None);
        if !volume.depends_on_csi_node() {
            match terms.map(|terms| terms.terms()) {
                None => return among.clone(),
                Some(terms) if !terms.iter().any(|term| term.has_fields()) => {
                    return matching(terms, snapshot, among);
                }
                Some(_) => {}
            }
        }
        let allowed = |index: &NodeIndex| {
            snapshot.node(*index).is_some_and(|node| {
                let view = view(volumes, node);
                volume.allows(view.labels, view.csi_node)
            })
        };
        among.iter().filter(allowed).collect()
    }

    /// What bound claims say of all nodes of `among`: those that are wrong, and those where a volume is missing.
    fn check_bound_all(
        volumes: &VolumeState,
        plan: &Plan,
        snapshot: &Snapshot,
        among: &NodeSet,
    ) -> (NodeSet, NodeSet) {
        let mut fit = among.clone();
        let mut missing = NodeSet::default();
        for volume in &plan.bound {
            match volume {
                Some(volume) => fit = Self::nodes_of(volumes, volume, snapshot, &fit),
                None => {
                    missing = fit.clone();
                    break;
                }
            }
        }
        let mut wrong = among.clone();
        wrong.subtract(&fit);
        (wrong, missing)
    }
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        names::VOLUME_BINDING
    }
    fn sign(&self, pod: &PodInfo, _snapshot: &Snapshot) -> Option<Sign> {
        if pod.claims.is_empty() {
            return Some(Sign::node(Fragments::NONE));
        }
        let volumes = self.volumes().read();
        let claims = PodVolumeClaims::of_pod(&volumes, pod).ok()?;
        let gone = |claim: &Claim| {
            let name = component_helpers::persistent_volume::volume_name(&claim.object);
            volumes.volume(name).is_none()
        };
        if !claims.immediate.is_empty() || claims.bound.iter().any(gone) {
            return None;
        }
        Some(Sign {
            inputs: Self::inputs(&volumes, &claims),
            ..Sign::node(Fragments::MORE)
        })
    }
    fn sign_more(&self, pod: &PodInfo, _snapshot: &Snapshot, key: &mut Vec<u8>) {
        if pod.claims.is_empty() {
            return;
        }
        let volumes = self.volumes().read();
        let claims = PodVolumeClaims::of_pod(&volumes, pod).unwrap_or_default();
        key.extend((claims.bound.len() as u32).to_le_bytes());
        for claim in &claims.bound {
            let name = component_helpers::persistent_volume::volume_name(&claim.object);
            text(key, volumes.volume(name).map_or(&[], |v| v.nodes_key()));
        }
        for claim in &claims.delayed {
            Self::sign_delayed(&volumes, claim, key);
        }
    }
    fn as_pre_filter(&self) -> Option<&dyn PreFilterPlugin> {
        Some(self)
    }
    fn as_filter(&self) -> Option<&dyn FilterPlugin> {
        Some(self)
    }
    fn as_reserve(&self) -> Option<&dyn ReservePlugin> {
        Some(self)
    }
    fn as_pre_bind(&self) -> Option<&dyn PreBindPlugin> {
        Some(self)
    }
    fn as_enqueue_extensions(&self) -> Option<&dyn EnqueueExtensions> {
        Some(self)
    }
}

impl PreFilterPlugin for VolumeBinding {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        _snapshot: &Snapshot,
    ) -> (PreFilterResult, Status) {
        let all = PreFilterResult::default;
        if pod.claims.is_empty() {
            return (all(), Status::skip());
        }
        let volumes = self.volumes().read();
        let claims = match PodVolumeClaims::of_pod(&volumes, pod) {
            Ok(claims) => claims,
            Err(status) => return (all(), status),
        };
        if !claims.immediate.is_empty() {
            return (all(), Status::unresolvable(ERR_REASON_UNBOUND_IMMEDIATE));
        }
        match Plan::new(&volumes, &claims) {
            Ok(plan) => {
                let (uid, plan) = (Arc::clone(&pod.uid), Arc::new(plan));
                state.write(STATE, State { uid, plan });
                (all(), Status::success())
            }
            Err(status) => (all(), status),
        }
    }
}

impl FilterPlugin for VolumeBinding {
    fn filter(&self, state: &CycleState, _pod: &Arc<PodInfo>, node: &NodeInfo) -> Status {
        let Some(state) = state.read::<State>(STATE) else {
            return Status::error(format!("cannot read {STATE:?} from cycleState"));
        };
        let volumes = self.volumes().read();
        match state.plan.find(&volumes, &view(&volumes, node)) {
            Ok((reasons, _)) => reasons.status(),
            Err(status) => {
                self.handle.observe_volume_failure("predicate");
                status
            }
        }
    }

    fn filter_all(
        &self,
        state: &CycleState,
        _pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        verdicts: &mut Verdicts,
    ) -> bool {
        let Some(State { plan, .. }) = state.read::<State>(STATE) else {
            return false;
        };
        let volumes = self.volumes().read();
        let among = verdicts.feasible().clone();
        let (wrong, missing) = Self::check_bound_all(&volumes, plan, snapshot, &among);
        if plan.is_bound() {
            if !wrong.is_empty() {
                verdicts.reject_all(&wrong, Reasons::NODE_CONFLICT.status());
            }
            if !missing.is_empty() {
                verdicts.reject_all(&missing, Reasons::PV_NOT_EXIST.status());
            }
            return true;
        }
        let mut unfit: Vec<(NodeIndex, Reasons)> = Vec::new();
        for index in among.iter() {
            let Some(node) = snapshot.node(index) else {
                continue;
            };
            let Ok((mut reasons, _)) = plan.find_delayed(&volumes, &view(&volumes, node)) else {
                // The form for one node says it.
                return false;
            };
            if wrong.contains(index) {
                reasons.add(Reasons::NODE_CONFLICT);
            }
            if missing.contains(index) {
                reasons.add(Reasons::PV_NOT_EXIST);
            }
            if reasons != Reasons::NONE {
                unfit.push((index, reasons));
            }
        }
        for (index, reasons) in unfit {
            let rejection = verdicts.rejection(reasons.status());
            verdicts.reject(index, rejection);
        }
        true
    }
}

impl ReservePlugin for VolumeBinding {
    fn concerns(&self, pod: &PodInfo) -> bool {
        !pod.claims.is_empty()
    }

    fn reserve(&self, state: &mut CycleState, pod: &Arc<PodInfo>, node_name: &str) -> Status {
        let own = state.read::<State>(STATE).filter(|of| of.uid == pod.uid);
        let plan = own.map(|state| Arc::clone(&state.plan));
        match binding::reserve(&*self.handle, pod, plan, node_name) {
            Ok(reserved) => {
                state.write(RESERVED, Arc::new(reserved));
                Status::success()
            }
            Err(status) => {
                self.handle.observe_volume_failure("assume");
                status
            }
        }
    }

    fn unreserve(&self, state: &mut CycleState, _pod: &Arc<PodInfo>, _node_name: &str) {
        if let Some(reserved) = state.read::<Arc<Reserved>>(RESERVED) {
            reserved.restore(self.volumes());
        }
    }
}

impl PreBindPlugin for VolumeBinding {
    fn pre_bind_pre_flight(
        &self,
        state: &CycleState,
        _pod: &Arc<PodInfo>,
        _node_name: &str,
    ) -> (PreBindPreFlightResult, Status) {
        let reserved = state.read::<Arc<Reserved>>(RESERVED);
        let nothing = reserved.is_none_or(|reserved| reserved.all_bound);
        let result = PreBindPreFlightResult {
            allow_parallel: true,
        };
        let status = if nothing {
            Status::skip()
        } else {
            Status::success()
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
            let Some(reserved) = state.read::<Arc<Reserved>>(RESERVED) else {
                return Status::error(format!("no pod volume found for node {node_name:?}"));
            };
            if reserved.all_bound {
                return Status::success();
            }
            let bound = binding::bind(&*self.handle, reserved, pod, node_name, self.bind_timeout);
            match bound.await {
                Ok(()) => Status::success(),
                Err(error) => {
                    self.handle.observe_volume_failure("bind");
                    Status::error(error)
                }
            }
        })
    }
}
