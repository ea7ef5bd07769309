//! Reserve and PreBind: what is assumed, written, and waited for.

use std::sync::Arc;
use std::time::Duration;

use component_helpers::persistent_volume::{
    SELECTED_NODE, annotation, bind_volume_to_claim, claim_ref, set_annotation, volume_name,
};
use framework::volumes::{OutOfSyncError, Volume};
use framework::{ApiWriteError, Handle, Listers, PodInfo, Status, VolumeCache, VolumeState};
use futures::future::{Either, select};
use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::claims::{Claim, PodVolumeClaims, is_fully_bound};
use super::plan::{NodeView, Plan, Reasons};
use crate::volume_claims::name;

/// A volume that goes to a claim.
#[derive(Debug)]
pub(super) struct Binding {
    /// As it is to be.
    pub(super) volume: Arc<PersistentVolume>,
    pub(super) claim: Claim,
    /// Must it be written? (Its maker may have named the claim in full.)
    pub(super) dirty: bool,
}

/// What was assumed for a pod.
#[derive(Debug, Default)]
pub(super) struct Reserved {
    /// Nothing was, and nothing is to be done.
    pub(super) all_bound: bool,
    pub(super) bindings: Vec<Binding>,
    /// Claims as they are to be.
    pub(super) provisions: Vec<Claim>,
}

impl Reserved {
    /// Takes all of it back; what has changed since is left alone.
    pub(super) fn restore(&self, volumes: &VolumeCache) {
        for binding in self.bindings.iter().filter(|binding| binding.dirty) {
            volumes.restore_volume(&binding.volume);
        }
        for claim in &self.provisions {
            volumes.restore_claim(&claim.object);
        }
    }
}

fn labels(node: &Node) -> &std::collections::BTreeMap<String, String> {
    static NONE: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();
    node.metadata.labels.as_ref().unwrap_or(&NONE)
}

/// Looks at the node for the pod's own claims, and assumes what is found.
///
/// # Errors
/// When the node will not do after all: volumes changed since it was judged; a retry helps.
pub(super) fn reserve(
    handle: &dyn Handle,
    pod: &PodInfo,
    plan: Option<Arc<Plan>>,
    node_name: &str,
) -> Result<Reserved, Status> {
    let (listers, cache) = (handle.listers(), handle.listers().volumes());
    let found = {
        let volumes = cache.read();
        let claims = PodVolumeClaims::of_pod(&volumes, pod)
            .map_err(|status| Status::error(status.message()))?;
        if claims.all_bound() {
            return Ok(Reserved {
                all_bound: true,
                ..Reserved::default()
            });
        }
        let Some(node) = listers.node(node_name) else {
            return Err(Status::error(no_node(node_name)));
        };
        let plan = match plan {
            Some(plan) => plan,
            None => Arc::new(Plan::new(&volumes, &claims)?),
        };
        let view = NodeView {
            name: node_name,
            labels: labels(&node),
            csi_node: volumes.csi_node(node_name).map(|node| &**node),
        };
        let (reasons, found) = plan.find(&volumes, &view)?;
        if reasons != Reasons::NONE {
            return Err(Status::error(reasons.status().message()));
        }
        found
    };
    let mut reserved = Reserved::default();
    let assume = |reserved: &mut Reserved| -> Result<(), OutOfSyncError> {
        for (claim, volume) in found.bindings {
            let bound = bind_volume_to_claim(&volume.object, &claim.object).map(Arc::new);
            let dirty = bound.is_some();
            let volume = bound.unwrap_or_else(|| Arc::clone(&volume.object));
            if dirty {
                cache.assume_volume(Arc::clone(&volume))?;
            }
            reserved.bindings.push(Binding {
                volume,
                claim,
                dirty,
            });
        }
        for Claim { key, object } in found.provisions {
            let mut chosen = (*object).clone();
            set_annotation(&mut chosen.metadata, SELECTED_NODE, node_name);
            let object = Arc::new(chosen);
            cache.assume_claim(Arc::clone(&object))?;
            reserved.provisions.push(Claim { key, object });
        }
        Ok(())
    };
    if let Err(error) = assume(&mut reserved) {
        reserved.restore(cache);
        return Err(Status::error(error));
    }
    Ok(reserved)
}

/// Why volumes were not bound. The pod is tried again.
#[derive(Debug, thiserror::Error)]
pub(super) enum BindError {
    /// The API server did not take it.
    #[error(transparent)]
    Write(#[from] ApiWriteError),
    /// The binding came to nothing.
    #[error("binding volumes: {0}")]
    Undone(String),
    /// It took too long.
    #[error("binding volumes: context deadline exceeded")]
    Timeout,
}

/// Versions at least this new have to come by before they are looked at.
struct Written {
    /// By binding.
    volumes: Vec<u64>,
    /// By provision.
    claims: Vec<u64>,
}

fn number(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}

fn version(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_deref().map_or(0, number)
}

/// Writes what was assumed and waits until the binder has finished.
///
/// # Errors
/// See [`BindError`].
pub(super) async fn bind(
    handle: &dyn Handle,
    reserved: &Reserved,
    pod: &PodInfo,
    node_name: &str,
    timeout: Duration,
) -> Result<(), BindError> {
    let (api, listers) = (handle.api(), handle.listers());
    let bound = reserved.bindings.iter().map(|b| b.claim.key.clone());
    let provided = reserved.provisions.iter().map(|claim| claim.key.clone());
    let mut watch = listers.volumes().watch(bound.chain(provided).collect());
    let mut written = Written {
        volumes: Vec::new(),
        claims: Vec::new(),
    };
    for binding in &reserved.bindings {
        written.volumes.push(if binding.dirty {
            number(&api.bind_volume(&binding.volume).await?)
        } else {
            version(&binding.volume.metadata)
        });
    }
    for claim in &reserved.provisions {
        let version = api.annotate_claim(&claim.object).await?;
        written.claims.push(number(&version));
    }
    let mut deadline = handle.sleep(timeout);
    loop {
        let done = {
            let volumes = listers.volumes().read();
            check(&volumes, listers, reserved, &written, pod, node_name)
        };
        if done.map_err(BindError::Undone)? {
            return Ok(());
        }
        let changed = std::pin::pin!(watch.changed());
        match select(changed, deadline).await {
            Either::Left(((), rest)) => deadline = rest,
            Either::Right(_) => return Err(BindError::Timeout),
        }
    }
}

fn no_node(name: &str) -> String {
    format!("failed to get node {name:?}: node {name:?} not found")
}

fn no_claim(claim: &Claim) -> String {
    format!("persistentvolumeclaims {:?} not found", claim.key)
}

fn check_place(volume: &Volume, view: &NodeView<'_>) -> Result<(), String> {
    if volume.allows(view.labels, view.csi_node) {
        return Ok(());
    }
    Err(format!(
        "pv {:?} node affinity doesn't match node {:?}: no matching NodeSelectorTerms",
        volume.name(),
        view.name
    ))
}

/// Is all bound? Looks at what the API server has, not at what is assumed: the next pod may have assumed more by now.
///
/// # Errors
/// When it never will be, and the pod is to be scheduled anew.
fn check(
    volumes: &VolumeState,
    listers: &dyn Listers,
    reserved: &Reserved,
    written: &Written,
    pod: &PodInfo,
    node_name: &str,
) -> Result<bool, String> {
    let Some(node) = listers.node(node_name) else {
        return Err(no_node(node_name));
    };
    let view = NodeView {
        name: node_name,
        labels: labels(&node),
        csi_node: volumes.csi_node(node_name).map(|node| &**node),
    };
    if listers.pod(pod.namespace(), pod.name()).is_none() {
        return Err(format!(
            "pod does not exist any more: pod {:?} not found",
            pod.name()
        ));
    }
    for (binding, wrote) in reserved.bindings.iter().zip(&written.volumes) {
        let called = name(&binding.volume.metadata);
        let Some(volume) = volumes.stored_volume(called) else {
            return Err(format!(
                "failed to check binding: persistentvolumes {called:?} not found"
            ));
        };
        let Some(claim) = volumes.stored_claim(&binding.claim.key) else {
            return Err(format!(
                "failed to check binding: {}",
                no_claim(&binding.claim)
            ));
        };
        if version(&volume.object.metadata) < *wrote {
            return Ok(false);
        }
        check_place(volume, &view)?;
        let uid = claim_ref(&volume.object).and_then(|r| r.uid.as_deref());
        if uid.is_none_or(str::is_empty) {
            return Err(format!("ClaimRef got reset for pv {called:?}"));
        }
        if !is_fully_bound(claim) {
            return Ok(false);
        }
    }
    for (provision, wrote) in reserved.provisions.iter().zip(&written.claims) {
        let Some(claim) = volumes.stored_claim(&provision.key) else {
            let reason = no_claim(provision);
            return Err(format!("failed to check provisioning pvc: {reason}"));
        };
        if version(&claim.metadata) < *wrote {
            return Ok(false);
        }
        // Whoever failed to provision takes the choice back.
        if annotation(&claim.metadata, SELECTED_NODE) != Some(node_name) {
            let called = name(&claim.metadata);
            return Err(format!("provisioning failed for PVC {called:?}"));
        }
        let volume = volume_name(claim);
        if !volume.is_empty() {
            match volumes.stored_volume(volume) {
                // It may be on its way; if it was deleted, the claim will be unbound.
                None => return Ok(false),
                Some(volume) => check_place(volume, &view)?,
            }
        }
        if !is_fully_bound(claim) {
            return Ok(false);
        }
    }
    Ok(true)
}
