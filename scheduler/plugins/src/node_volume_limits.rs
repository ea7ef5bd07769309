//! NodeVolumeLimits: no more volumes of a CSI driver on a node than the driver says it can attach there, and none where the driver is
//! not, if it says so (`preventPodSchedulingIfMissing`).
//!
//! Counts the volumes of the node's pods and what is attached to it besides. A volume that several pods use counts once. Upstream:
//! plugins/nodevolumelimits, v1.37.
//!
//! A node is judged again when its CSINode, its attachments or the claims of its pods change: whoever runs the scheduler marks it changed then.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use component_helpers::csi_migration::InTreePlugin;
use component_helpers::ephemeral::volume_is_for_pod;
use component_helpers::persistent_volume::{claim_class, volume_name};
use framework::pod_info::spec;
use framework::{
    ActionType, ClusterEventWithHint, CycleState, EnqueueExtensions, EventObject, EventResource,
    FilterPlugin, Fragments, Handle, NodeIndex, NodeInfo, Plugin, PluginError, PodInfo,
    PreFilterPlugin, PreFilterResult, QueueingHint, Sign, Snapshot, Status, Verdicts, VolumeState,
};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::api::storage::v1::CSINode;

use crate::names;
use crate::volume_claims::{after_claim_change, claim_not_found};

#[cfg(test)]
mod tests;

/// The node has as many as it can.
pub const ERR_REASON_MAX_VOLUME_COUNT_EXCEEDED: &str = "node(s) exceed max volume count";

/// Before the key of a claim without volume, in place of a volume handle; no handle begins so.
const UNBOUND: &str = "\0";

/// A volume by driver and handle. (Drivers and handles are what counts; which claim leads there does not.)
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Attachable {
    driver: String,
    handle: String,
}

struct NodeVolumeLimits {
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
    Ok(Arc::new(NodeVolumeLimits { handle }))
}

fn inline(volume: &Volume) -> Option<Attachable> {
    let plugin = InTreePlugin::of_inline(volume).filter(|p| p.is_scheduled_as_csi())?;
    Some(Attachable {
        driver: plugin.driver().to_owned(),
        handle: plugin.inline_handle(volume)?,
    })
}

/// What a claim attaches, or will attach when it is bound; `None` for what no CSI driver attaches.
fn of_claim(volumes: &VolumeState, claim: &PersistentVolumeClaim, key: &str) -> Option<Attachable> {
    if let Some(volume) = volumes.stored_volume(volume_name(claim)) {
        let (driver, handle) = volume.csi_source()?;
        return Some(Attachable {
            driver: driver.to_owned(),
            handle: handle.to_owned(),
        });
    }
    let class = volumes.storage_class(claim_class(claim))?;
    let driver = match InTreePlugin::of_name(&class.provisioner) {
        None => class.provisioner.clone(),
        Some(plugin) if plugin.is_scheduled_as_csi() => plugin.driver().to_owned(),
        Some(_) => return None,
    };
    Some(Attachable {
        driver,
        handle: format!("{UNBOUND}{key}"),
    })
}

/// The volumes a pod attaches. A claim that is not there is left out, unless the pod is to be scheduled.
///
/// # Errors
/// For claims that are not there, or not the pod's.
fn attachables(
    volumes: &VolumeState,
    pod: &PodInfo,
    is_new: bool,
) -> Result<BTreeSet<Attachable>, Status> {
    let mut all: BTreeSet<Attachable> = BTreeSet::new();
    if !pod.attaches {
        return Ok(all);
    }
    for used in &pod.claims {
        let Some(claim) = volumes.stored_claim(&used.key) else {
            if is_new {
                let reason = format!(
                    "looking up PVC {}: {}",
                    used.key,
                    claim_not_found(&used.name)
                );
                return Err(Status::unresolvable(reason));
            }
            continue;
        };
        if used.ephemeral {
            volume_is_for_pod(&pod.pod, claim).map_err(Status::error)?;
        }
        all.extend(of_claim(volumes, claim, &used.key));
    }
    let others = pod.spec().volumes.iter().flatten();
    all.extend(others.filter_map(inline));
    Ok(all)
}

fn limit(node: &CSINode, driver: &str) -> Option<i64> {
    let driver = node.spec.drivers.iter().find(|d| d.name == driver)?;
    driver.allocatable.as_ref()?.count.map(i64::from)
}

/// The driver of something new that the node lacks, though the driver wants no pods where it is not. Upstream: `checkCSIDriverOnNode`.
fn missing_driver<'a>(
    volumes: &VolumeState,
    new: &'a BTreeSet<Attachable>,
    csi_node: Option<&CSINode>,
) -> Option<&'a str> {
    let is_there = |driver: &str| {
        csi_node.is_some_and(|node| node.spec.drivers.iter().any(|d| d.name == driver))
    };
    let mut drivers = new.iter().map(|volume| volume.driver.as_str());
    drivers.find(|driver| {
        let object = volumes.csi_driver(driver);
        let wants = object.and_then(|d| d.spec.prevent_pod_scheduling_if_missing);
        wants == Some(true) && !is_there(driver)
    })
}

/// Why what is new cannot be on the node; `None`: there is room.
///
/// # Errors
/// When the pods of the node cannot be counted.
fn refusal(
    volumes: &VolumeState,
    new: &BTreeSet<Attachable>,
    node: &NodeInfo,
) -> Result<Option<String>, Status> {
    let csi_node = volumes.csi_node(node.name());
    if let Some(driver) = missing_driver(volumes, new, csi_node.map(|node| &**node)) {
        return Ok(Some(format!(
            "{driver} CSI driver is not installed on the node"
        )));
    }
    let full = !has_room(volumes, new, node)?;
    Ok(full.then(|| ERR_REASON_MAX_VOLUME_COUNT_EXCEEDED.to_owned()))
}

/// Is there room on the node for what is new?
///
/// # Errors
/// When the pods of the node cannot be counted.
fn has_room(
    volumes: &VolumeState,
    new: &BTreeSet<Attachable>,
    node: &NodeInfo,
) -> Result<bool, Status> {
    let Some(csi_node) = volumes.csi_node(node.name()) else {
        return Ok(true);
    };
    if !new.iter().any(|v| limit(csi_node, &v.driver).is_some()) {
        return Ok(true);
    }
    let mut attached = BTreeSet::new();
    for pod in node.pods().iter().filter(|pod| pod.attaches) {
        attached.extend(attachables(volumes, pod, false)?);
    }
    let mut counts: HashMap<&str, i64> = HashMap::new();
    let added: Vec<&str> = new.difference(&attached).map(|v| &*v.driver).collect();
    let besides: BTreeSet<Attachable> = volumes
        .attachments(node.name())
        .filter_map(|attachment| {
            let volume = attachment.spec.source.persistent_volume_name.as_deref()?;
            let volume = volumes.stored_volume(volume)?;
            let csi = volume.object.spec.as_ref()?.csi.as_ref()?;
            Some(Attachable {
                driver: attachment.spec.attacher.clone(),
                handle: csi.volume_handle.clone(),
            })
        })
        .filter(|v| !v.driver.is_empty())
        .collect();
    for volume in attached.union(&besides) {
        *counts.entry(&volume.driver).or_default() += 1;
    }
    for driver in &added {
        *counts.entry(driver).or_default() += 1;
    }
    let fits = |driver: &&str| {
        let count = counts.get(driver).copied().unwrap_or(0);
        limit(csi_node, driver).is_none_or(|limit| count <= limit)
    };
    Ok(added.iter().all(fits))
}

impl Plugin for NodeVolumeLimits {
    fn name(&self) -> &'static str {
        names::NODE_VOLUME_LIMITS
    }
    fn sign(&self, pod: &PodInfo, _snapshot: &Snapshot) -> Option<Sign> {
        if !pod.attaches {
            return Some(Sign::node(Fragments::NONE));
        }
        let volumes = self.handle.listers().volumes().read();
        attachables(&volumes, pod, true).ok()?;
        Some(Sign {
            // Classes tell the drivers of claims without volumes, those of the pods on the nodes included.
            inputs: volumes.settings_revision(),
            ..Sign::node(Fragments::MORE)
        })
    }
    fn sign_more(&self, pod: &PodInfo, snapshot: &Snapshot, key: &mut Vec<u8>) {
        if !pod.attaches {
            return;
        }
        let volumes = self.handle.listers().volumes().read();
        let new = attachables(&volumes, pod, true).unwrap_or_default();
        // A volume that no node can have already is as good as any other of its driver.
        let unused = pod.claims.iter().all(|c| !snapshot.is_claim_used(&c.key));
        let mut listed = pod.spec().volumes.iter().flatten();
        let inlines = listed.any(|volume| inline(volume).is_some());
        let alone = |v: &Attachable| volumes.sharers(&v.driver, &v.handle) <= 1;
        if unused && !inlines && new.iter().all(alone) {
            let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
            new.iter()
                .for_each(|v| *counts.entry(&v.driver).or_default() += 1);
            for (driver, count) in counts {
                key.extend(driver.as_bytes());
                key.push(0xff);
                key.extend(count.to_le_bytes());
            }
            return;
        }
        for volume in &new {
            key.push(0xfe);
            key.extend(volume.driver.as_bytes());
            key.push(0xff);
            key.extend(volume.handle.as_bytes());
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

impl PreFilterPlugin for NodeVolumeLimits {
    fn pre_filter(
        &self,
        _state: &mut CycleState,
        pod: &Arc<PodInfo>,
        _snapshot: &Snapshot,
    ) -> (PreFilterResult, Status) {
        let status = if pod.attaches {
            Status::success()
        } else {
            Status::skip()
        };
        (PreFilterResult::default(), status)
    }
}

impl FilterPlugin for NodeVolumeLimits {
    // What is new is read off the pod itself, never off a state that other pods of its signature share: a volume counts once where it is already.
    fn filter(&self, _state: &CycleState, pod: &Arc<PodInfo>, node: &NodeInfo) -> Status {
        let volumes = self.handle.listers().volumes().read();
        let verdict =
            attachables(&volumes, pod, true).and_then(|new| refusal(&volumes, &new, node));
        match verdict {
            Ok(None) => Status::success(),
            Ok(Some(reason)) => Status::unschedulable(reason),
            Err(status) => status,
        }
    }

    fn filter_all(
        &self,
        _state: &CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        verdicts: &mut Verdicts,
    ) -> bool {
        let volumes = self.handle.listers().volumes().read();
        let Ok(new) = attachables(&volumes, pod, true) else {
            return false;
        };
        let mut refused: BTreeMap<String, Vec<NodeIndex>> = BTreeMap::new();
        for index in verdicts.feasible().iter() {
            let Some(node) = snapshot.node(index) else {
                continue;
            };
            match refusal(&volumes, &new, node) {
                Ok(None) => {}
                Ok(Some(reason)) => refused.entry(reason).or_default().push(index),
                Err(_) => return false,
            }
        }
        for (reason, nodes) in refused {
            verdicts.reject_all(&nodes.into_iter().collect(), Status::unschedulable(reason));
        }
        true
    }
}

impl EnqueueExtensions for NodeVolumeLimits {
    fn events_to_register(&self) -> Vec<ClusterEventWithHint> {
        vec![
            ClusterEventWithHint::always(EventResource::CSINode, ActionType::ADD),
            ClusterEventWithHint::with_hint(
                EventResource::CSINode,
                ActionType::UPDATE,
                after_csi_node_update,
            ),
            // DIFFERS: upstream's pod that waits for a driver does not notice that the driver waits for it no more.
            ClusterEventWithHint::always(
                EventResource::CSIDriver,
                ActionType::UPDATE | ActionType::DELETE,
            ),
            ClusterEventWithHint::with_hint(
                EventResource::Pod,
                ActionType::DELETE,
                after_pod_deletion,
            ),
            ClusterEventWithHint::with_hint(
                EventResource::PersistentVolumeClaim,
                ActionType::ADD,
                |pod, _, new| after_claim_change(pod, new, true),
            ),
            ClusterEventWithHint::with_hint(
                EventResource::VolumeAttachment,
                ActionType::DELETE,
                after_attachment_deletion,
            ),
        ]
    }
}

fn after_csi_node_update(
    _pod: &Arc<Pod>,
    old: Option<&EventObject>,
    new: Option<&EventObject>,
) -> QueueingHint {
    let (Some(old), Some(new)) = (
        old.and_then(EventObject::csi_node),
        new.and_then(EventObject::csi_node),
    ) else {
        return QueueingHint::Queue;
    };
    let of = |node: &CSINode, driver: &str| limit(node, driver).unwrap_or(0);
    let had = |driver: &str| old.spec.drivers.iter().any(|d| d.name == driver);
    let mut drivers = new.spec.drivers.iter().map(|driver| &driver.name);
    // DIFFERS: upstream looks at limits alone; a pod that waits for a driver without one would wait on.
    if drivers.any(|driver| !had(driver) || of(new, driver) > of(old, driver)) {
        QueueingHint::Queue
    } else {
        QueueingHint::QueueSkip
    }
}

fn after_pod_deletion(
    _pod: &Arc<Pod>,
    old: Option<&EventObject>,
    _new: Option<&EventObject>,
) -> QueueingHint {
    let Some(deleted) = old.and_then(EventObject::pod) else {
        return QueueingHint::Queue;
    };
    let placed = component_helpers::pod::node_name(deleted).is_some()
        || component_helpers::pod::nominated_node_name(deleted).is_some();
    let mut volumes = spec(deleted).volumes.iter().flatten();
    let attaches = |v: &Volume| {
        v.persistent_volume_claim.is_some()
            || v.ephemeral.is_some()
            || InTreePlugin::of_inline(v).is_some()
    };
    if placed && volumes.any(attaches) {
        QueueingHint::Queue
    } else {
        QueueingHint::QueueSkip
    }
}

fn after_attachment_deletion(
    pod: &Arc<Pod>,
    old: Option<&EventObject>,
    _new: Option<&EventObject>,
) -> QueueingHint {
    let Some(deleted) = old.and_then(EventObject::volume_attachment) else {
        return QueueingHint::Queue;
    };
    let mut volumes = spec(pod).volumes.iter().flatten();
    let helps = |v: &Volume| {
        v.persistent_volume_claim.is_some()
            || InTreePlugin::of_inline(v).is_some_and(|p| p.driver() == deleted.spec.attacher)
    };
    if volumes.any(helps) {
        QueueingHint::Queue
    } else {
        QueueingHint::QueueSkip
    }
}
