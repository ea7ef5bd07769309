//! VolumeRestrictions: a disk that one node may have once only, and claims that one pod may use alone (`ReadWriteOncePod`).
//!
//! Upstream: plugins/volumerestrictions, v1.36.
//!
//! DIFFERS: a claim in use by the ephemeral volume it was made for counts as used; upstream overlooks such a use.

use std::collections::BTreeSet;
use std::sync::Arc;

use framework::pod_info::spec;
use framework::{
    ActionType, ClusterEventWithHint, CycleState, EnqueueExtensions, EventObject, EventResource,
    FilterPlugin, Fragments, Handle, NodeInfo, Plugin, PluginError, PodClaim, PodInfo,
    PreFilterExtensions, PreFilterPlugin, PreFilterResult, QueueingHint, Sign, Snapshot, Status,
    Verdicts,
};
use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::names;
use crate::volume_claims::{after_claim_change, claim_not_found};

#[cfg(test)]
mod tests;

/// A disk is on the node already.
pub const ERR_REASON_DISK_CONFLICT: &str = "node(s) had no available disk";
/// A claim for one pod has its pod.
pub const ERR_REASON_READ_WRITE_ONCE_POD_CONFLICT: &str = "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod";

const STATE: &str = "PreFilterVolumeRestrictions";

#[derive(Clone, Default)]
struct State {
    /// The pod's claims that one pod may use alone.
    alone: Arc<BTreeSet<String>>,
    /// How often pods on nodes use them.
    conflicts: i64,
}

struct VolumeRestrictions {
    handle: Arc<dyn Handle>,
}

/// Makes the plugin.
///
/// # Errors
/// Never.
pub fn new(
    _args: Option<&serde_json::Value>,
    handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    Ok(Arc::new(VolumeRestrictions { handle }))
}

/// The volumes of a pod that a node may have once only.
fn disks(pod: &Pod) -> impl Iterator<Item = &Volume> {
    spec(pod).volumes.iter().flatten().filter(|v| {
        v.gce_persistent_disk.is_some()
            || v.aws_elastic_block_store.is_some()
            || v.rbd.is_some()
            || v.iscsi.is_some()
    })
}

/// Can the two not be on one node?
fn conflict(a: &Volume, b: &Volume) -> bool {
    let both_read_only = |a: Option<bool>, b: Option<bool>| a == Some(true) && b == Some(true);
    if let (Some(a), Some(b)) = (&a.gce_persistent_disk, &b.gce_persistent_disk)
        && a.pd_name == b.pd_name
        && !both_read_only(a.read_only, b.read_only)
    {
        return true;
    }
    if let (Some(a), Some(b)) = (&a.aws_elastic_block_store, &b.aws_elastic_block_store)
        && a.volume_id == b.volume_id
    {
        return true;
    }
    if let (Some(a), Some(b)) = (&a.iscsi, &b.iscsi)
        && a.iqn == b.iqn
        && !both_read_only(a.read_only, b.read_only)
    {
        return true;
    }
    if let (Some(a), Some(b)) = (&a.rbd, &b.rbd) {
        let pool = |pool: &Option<String>| pool.clone().filter(|p| !p.is_empty());
        return a.monitors.iter().any(|m| b.monitors.contains(m))
            && pool(&a.pool) == pool(&b.pool)
            && a.image == b.image
            && !both_read_only(a.read_only, b.read_only);
    }
    false
}

fn disks_conflict(pod: &Pod, others: &Pod) -> bool {
    let others = || spec(others).volumes.iter().flatten();
    disks(pod).any(|disk| others().any(|other| conflict(disk, other)))
}

fn uses(pod: &PodInfo, state: &State, namespace: &str) -> i64 {
    let counts = |claim: &&PodClaim| state.alone.contains(&claim.name);
    if pod.namespace() == namespace {
        pod.claims.iter().filter(counts).count() as i64
    } else {
        0
    }
}

impl VolumeRestrictions {
    /// # Errors
    /// A claim that is not there.
    fn state(&self, pod: &PodInfo, snapshot: &Snapshot) -> Result<State, Status> {
        if pod.claims.is_empty() {
            return Ok(State::default());
        }
        let mut alone = BTreeSet::new();
        let mut conflicts = 0;
        let volumes = self.handle.listers().volumes().read();
        for used in pod.claims.iter().filter(|claim| !claim.ephemeral) {
            let Some(claim) = volumes.claim(&used.key) else {
                return Err(Status::unresolvable(claim_not_found(&used.name)));
            };
            let modes = claim.spec.as_ref().and_then(|s| s.access_modes.as_ref());
            if modes.into_iter().flatten().any(|m| m == "ReadWriteOncePod")
                && alone.insert(used.name.clone())
            {
                conflicts += i64::from(snapshot.is_claim_used(&used.key));
            }
        }
        Ok(State {
            alone: Arc::new(alone),
            conflicts,
        })
    }
}

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        names::VOLUME_RESTRICTIONS
    }
    fn sign(&self, pod: &PodInfo, snapshot: &Snapshot) -> Option<Sign> {
        if pod.claims.is_empty() && disks(&pod.pod).next().is_none() {
            return Some(Sign::node(Fragments::NONE));
        }
        self.state(pod, snapshot).ok()?;
        Some(Sign::node(Fragments::MORE))
    }
    fn sign_more(&self, pod: &PodInfo, snapshot: &Snapshot, key: &mut Vec<u8>) {
        let conflicts = self.state(pod, snapshot).map_or(0, |state| state.conflicts);
        key.push(u8::from(conflicts > 0));
        let source = |v: &Volume| {
            serde_json::to_vec(&(
                &v.gce_persistent_disk,
                &v.aws_elastic_block_store,
                &v.rbd,
                &v.iscsi,
            ))
            .expect("API types serialise into memory")
        };
        disks(&pod.pod).for_each(|disk| key.extend(source(disk)));
    }
    fn as_pre_filter(&self) -> Option<&dyn PreFilterPlugin> {
        Some(self)
    }
    fn as_filter(&self) -> Option<&dyn FilterPlugin> {
        Some(self)
    }
    fn as_enqueue_extensions(&self) -> Option<&dyn EnqueueExtensions> {
        Some(self)
    }
}

impl PreFilterPlugin for VolumeRestrictions {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
    ) -> (PreFilterResult, Status) {
        let status = match self.state(pod, snapshot) {
            Err(status) => status,
            Ok(of_pod) if of_pod.conflicts == 0 && disks(&pod.pod).next().is_none() => {
                Status::skip()
            }
            Ok(of_pod) => {
                state.write(STATE, of_pod);
                Status::success()
            }
        };
        (PreFilterResult::default(), status)
    }

    fn extensions(&self) -> Option<&dyn PreFilterExtensions> {
        Some(self)
    }
}

fn correct(state: &mut CycleState, pod: &Arc<PodInfo>, other: &Arc<PodInfo>, sign: i64) -> Status {
    let Some(state) = state.read_mut::<State>(STATE) else {
        return no_state();
    };
    state.conflicts += sign * uses(other, state, pod.namespace());
    Status::success()
}

fn no_state() -> Status {
    Status::error(format!("cannot read {STATE:?} from cycleState"))
}

impl PreFilterExtensions for VolumeRestrictions {
    fn add_pod(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        to_add: &Arc<PodInfo>,
        _node: &NodeInfo,
    ) -> Status {
        correct(state, pod, to_add, 1)
    }
    fn remove_pod(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        to_remove: &Arc<PodInfo>,
        _node: &NodeInfo,
    ) -> Status {
        correct(state, pod, to_remove, -1)
    }
}

impl FilterPlugin for VolumeRestrictions {
    fn filter(&self, state: &CycleState, pod: &Arc<PodInfo>, node: &NodeInfo) -> Status {
        let others = node.pods().iter();
        if others.map(|p| &p.pod).any(|p| disks_conflict(&pod.pod, p)) {
            return Status::unschedulable(ERR_REASON_DISK_CONFLICT);
        }
        match state.read::<State>(STATE) {
            None => no_state(),
            Some(state) if state.conflicts > 0 => {
                Status::unschedulable(ERR_REASON_READ_WRITE_ONCE_POD_CONFLICT)
            }
            Some(_) => Status::success(),
        }
    }

    fn filter_all(
        &self,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        verdicts: &mut Verdicts,
    ) -> bool {
        let Some(state) = state.read::<State>(STATE) else {
            return false;
        };
        if disks(&pod.pod).next().is_some() {
            let has_conflict = |index| {
                let node = snapshot.node(index);
                let mut pods = node.into_iter().flat_map(|node| node.pods());
                pods.any(|other| disks_conflict(&pod.pod, &other.pod))
            };
            verdicts.reject_where(
                || Status::unschedulable(ERR_REASON_DISK_CONFLICT),
                has_conflict,
            );
        }
        if state.conflicts > 0 {
            let reason = ERR_REASON_READ_WRITE_ONCE_POD_CONFLICT;
            verdicts.reject_where(|| Status::unschedulable(reason), |_| true);
        }
        true
    }
}

impl EnqueueExtensions for VolumeRestrictions {
    fn events_to_register(&self) -> Vec<ClusterEventWithHint> {
        vec![
            ClusterEventWithHint::with_hint(
                EventResource::Pod,
                ActionType::DELETE,
                after_pod_deletion,
            ),
            ClusterEventWithHint::always(EventResource::Node, ActionType::ADD),
            ClusterEventWithHint::with_hint(
                EventResource::PersistentVolumeClaim,
                ActionType::ADD,
                |pod, _, new| after_claim_change(pod, new, false),
            ),
        ]
    }
}

fn after_pod_deletion(
    pod: &Arc<Pod>,
    old: Option<&EventObject>,
    _new: Option<&EventObject>,
) -> QueueingHint {
    let Some(deleted) = old.and_then(EventObject::pod) else {
        return QueueingHint::Queue;
    };
    if deleted.metadata.namespace != pod.metadata.namespace {
        return QueueingHint::QueueSkip;
    }
    let claims = |pod: &Pod| -> BTreeSet<String> {
        let volumes = spec(pod).volumes.iter().flatten();
        let claim = |v: &Volume| Some(v.persistent_volume_claim.as_ref()?.claim_name.clone());
        volumes.filter_map(claim).collect()
    };
    if disks_conflict(pod, deleted) || !claims(pod).is_disjoint(&claims(deleted)) {
        QueueingHint::Queue
    } else {
        QueueingHint::QueueSkip
    }
}
