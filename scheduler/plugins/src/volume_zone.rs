//! VolumeZone: a pod goes where the zone and region labels of its volumes say.
//!
//! Upstream: plugins/volumezone, v1.36.

use std::collections::BTreeSet;
use std::sync::Arc;

use component_helpers::csi_migration::LABEL_MULTI_ZONE_DELIMITER;
use component_helpers::persistent_volume::{claim_class, volume_name};
use framework::{
    ActionType, ClusterEventWithHint, CycleState, EnqueueExtensions, EventObject, EventResource,
    FilterPlugin, Fragments, Handle, NodeIndex, NodeInfo, Plugin, PluginError, PodInfo,
    PreFilterPlugin, PreFilterResult, QueueingHint, Sign, Snapshot, Status, Verdicts,
};
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};

use crate::names;
use crate::volume_claims::{
    after_claim_change, claim_not_found, class_not_found, volume_not_found,
};

#[cfg(test)]
mod tests;

/// The node is elsewhere.
pub const ERR_REASON_CONFLICT: &str = "node(s) had no available volume zone";

const STATE: &str = "PreFilterVolumeZone";
const WAIT_FOR_FIRST_CONSUMER: &str = "WaitForFirstConsumer";
/// Labels of volumes and nodes, the old ones first, each with the one that came after it.
const TOPOLOGY_LABELS: [(&str, &str); 4] = [
    (
        "failure-domain.beta.kubernetes.io/zone",
        "topology.kubernetes.io/zone",
    ),
    (
        "failure-domain.beta.kubernetes.io/region",
        "topology.kubernetes.io/region",
    ),
    ("topology.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    (
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/region",
    ),
];

/// What a volume's label asks of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Topology {
    key: &'static str,
    /// Stands in where a node has no such label.
    newer_key: &'static str,
    values: BTreeSet<String>,
}

/// A label that has an empty part means nothing.
fn topologies(volume: &PersistentVolume) -> impl Iterator<Item = Topology> {
    let labels = volume.metadata.labels.as_ref();
    TOPOLOGY_LABELS.iter().filter_map(move |(key, newer_key)| {
        let value = labels?.get(*key)?;
        let values = value.split(LABEL_MULTI_ZONE_DELIMITER).map(str::trim);
        let values: BTreeSet<String> = values.map(ToOwned::to_owned).collect();
        (!values.contains("")).then_some(Topology {
            key,
            newer_key,
            values,
        })
    })
}

struct VolumeZone {
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
    Ok(Arc::new(VolumeZone { handle }))
}

impl VolumeZone {
    /// # Errors
    /// Upstream's rejection of a claim it cannot follow to a volume.
    fn topologies(&self, pod: &PodInfo) -> Result<Vec<Topology>, Status> {
        let mut all = Vec::new();
        if pod.claims.is_empty() {
            return Ok(all);
        }
        let volumes = self.handle.listers().volumes().read();
        for used in pod.claims.iter().filter(|claim| !claim.ephemeral) {
            if used.name.is_empty() {
                return Err(Status::unresolvable("PersistentVolumeClaim had no name"));
            }
            let Some(claim) = volumes.stored_claim(&used.key) else {
                return Err(Status::unresolvable(claim_not_found(&used.name)));
            };
            let name = volume_name(claim);
            if !name.is_empty() {
                let Some(volume) = volumes.stored_volume(name) else {
                    return Err(Status::unresolvable(volume_not_found(name)));
                };
                all.extend(topologies(&volume.object));
                continue;
            }
            let class = claim_class(claim);
            if class.is_empty() {
                let reason = "PersistentVolumeClaim had no pv name and storageClass name";
                return Err(Status::unresolvable(reason));
            }
            let Some(found) = volumes.storage_class(class) else {
                return Err(Status::unresolvable(class_not_found(class)));
            };
            match found.volume_binding_mode.as_deref() {
                Some(WAIT_FOR_FIRST_CONSUMER) => {}
                Some(_) => return Err(Status::unresolvable("PersistentVolume had no name")),
                None => {
                    let reason = format!("VolumeBindingMode not set for StorageClass {class:?}");
                    return Err(Status::unresolvable(reason));
                }
            }
        }
        Ok(all)
    }
}

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        names::VOLUME_ZONE
    }
    fn sign(&self, pod: &PodInfo, _snapshot: &Snapshot) -> Option<Sign> {
        if pod.claims.is_empty() {
            return Some(Sign::node(Fragments::NONE));
        }
        self.topologies(pod).ok()?;
        Some(Sign::node(Fragments::MORE))
    }
    fn sign_more(&self, pod: &PodInfo, _snapshot: &Snapshot, key: &mut Vec<u8>) {
        let mut topologies = self.topologies(pod).unwrap_or_default();
        topologies.sort();
        topologies.dedup();
        for topology in topologies {
            // Neither is in a label's key or value.
            key.extend(topology.key.as_bytes());
            for value in &topology.values {
                key.push(1);
                key.extend(value.as_bytes());
            }
            key.push(0);
        }
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

impl PreFilterPlugin for VolumeZone {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        _snapshot: &Snapshot,
    ) -> (PreFilterResult, Status) {
        let status = match self.topologies(pod) {
            Err(status) => status,
            Ok(topologies) if topologies.is_empty() => Status::skip(),
            Ok(topologies) => {
                state.write(STATE, Arc::new(topologies));
                Status::success()
            }
        };
        (PreFilterResult::default(), status)
    }
}

impl FilterPlugin for VolumeZone {
    fn filter(&self, state: &CycleState, pod: &Arc<PodInfo>, node: &NodeInfo) -> Status {
        let known = state.read::<Arc<Vec<Topology>>>(STATE).cloned();
        let topologies = match known.map_or_else(|| self.topologies(pod).map(Arc::new), Ok) {
            Ok(topologies) => topologies,
            Err(status) => return status,
        };
        let labels = node.labels();
        // A node that says nothing of its place is taken to be everywhere: a cluster of one zone.
        if !TOPOLOGY_LABELS
            .iter()
            .any(|(key, _)| labels.contains_key(*key))
        {
            return Status::success();
        }
        let pleased = |topology: &Topology| {
            let value = labels.get(topology.key);
            let value = value.or_else(|| labels.get(topology.newer_key));
            value.is_some_and(|value| topology.values.contains(value))
        };
        if topologies.iter().all(pleased) {
            Status::success()
        } else {
            Status::unresolvable(ERR_REASON_CONFLICT)
        }
    }

    fn filter_all(
        &self,
        state: &CycleState,
        _pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        verdicts: &mut Verdicts,
    ) -> bool {
        let Some(topologies) = state.read::<Arc<Vec<Topology>>>(STATE) else {
            return false;
        };
        let columns = TOPOLOGY_LABELS.map(|(key, _)| snapshot.label_column(key));
        let id = |column: usize, node: NodeIndex| {
            let ids = &columns[column].ids;
            ids.get(node as usize).copied().unwrap_or(0)
        };
        let column = |key: &str| TOPOLOGY_LABELS.iter().position(|(label, _)| *label == key);
        // Which value ids please, by topology, for its own label and for the newer one.
        let pleasing: Vec<[(usize, Vec<bool>); 2]> = topologies
            .iter()
            .map(|topology| {
                [topology.key, topology.newer_key].map(|key| {
                    let column = column(key).expect("one of the labels");
                    let values = columns[column].values.iter();
                    let pleases = values.map(|value| topology.values.contains(&**value));
                    (column, pleases.collect())
                })
            })
            .collect();
        let unfit = |node: NodeIndex| {
            (0..columns.len()).any(|column| id(column, node) != 0)
                && !pleasing.iter().all(|[(own, by_own), (newer, by_newer)]| {
                    match (id(*own, node), id(*newer, node)) {
                        (0, 0) => false,
                        (0, id) => by_newer[id as usize],
                        (id, _) => by_own[id as usize],
                    }
                })
        };
        verdicts.reject_where(|| Status::unresolvable(ERR_REASON_CONFLICT), unfit);
        true
    }
}

impl EnqueueExtensions for VolumeZone {
    fn events_to_register(&self) -> Vec<ClusterEventWithHint> {
        vec![
            ClusterEventWithHint::with_hint(
                EventResource::StorageClass,
                ActionType::ADD,
                after_class_added,
            ),
            ClusterEventWithHint::always(
                EventResource::Node,
                ActionType::ADD | ActionType::UPDATE_NODE_LABEL,
            ),
            ClusterEventWithHint::with_hint(
                EventResource::PersistentVolumeClaim,
                ActionType::ADD | ActionType::UPDATE,
                |pod, _, new| after_claim_change(pod, new, false),
            ),
            ClusterEventWithHint::with_hint(
                EventResource::PersistentVolume,
                ActionType::ADD | ActionType::UPDATE,
                after_volume_change,
            ),
        ]
    }
}

fn after_class_added(
    _pod: &Arc<Pod>,
    _old: Option<&EventObject>,
    new: Option<&EventObject>,
) -> QueueingHint {
    match new.and_then(EventObject::storage_class) {
        Some(class) if class.volume_binding_mode.as_deref() != Some(WAIT_FOR_FIRST_CONSUMER) => {
            QueueingHint::QueueSkip
        }
        _ => QueueingHint::Queue,
    }
}

fn after_volume_change(
    _pod: &Arc<Pod>,
    old: Option<&EventObject>,
    new: Option<&EventObject>,
) -> QueueingHint {
    match (
        old.and_then(EventObject::volume),
        new.and_then(EventObject::volume),
    ) {
        (Some(old), Some(new)) if topologies(old).eq(topologies(new)) => QueueingHint::QueueSkip,
        _ => QueueingHint::Queue,
    }
}
