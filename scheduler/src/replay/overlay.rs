//! [`Overlay`]: what of a trace was the recorded scheduler's doing, and is left to the one that plays.
//!
//! A pod that came without a node gets none by the trace; a claim that came unbound and waits for its first consumer gets no volume by it, and a claim to devices that
//! came without any gets none. What was written here stands before what the trace tells of the same object later; its end is the trace's.

use std::collections::BTreeSet;
use std::sync::Arc;

use component_helpers::persistent_volume::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, SELECTED_NODE, claim_class, claim_ref, remove_annotation,
    volume_name,
};
use component_helpers::pod::{node_name, uid};
use component_helpers::resource_claim::is_allocated;
use framework::Listers as _;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::resource::v1::ResourceClaim;

use super::world::World;
use crate::trace::object::{Kind, TraceObject};

type Id = (Kind, String, String);

fn id(object: &TraceObject) -> Id {
    (
        object.kind(),
        object.namespace().to_owned(),
        object.name().to_owned(),
    )
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    /// Pods to be decided here, by UID.
    pods: BTreeSet<String>,
    /// Pods that have ended here before their time in the trace, by UID.
    ended: BTreeSet<String>,
    /// Claims of both kinds that came with nothing, and volumes that came with no claim.
    open: BTreeSet<Id>,
    /// Written here.
    written: BTreeSet<Id>,
}

impl Overlay {
    /// Is the pod decided here?
    pub(super) fn decides(&self, uid: &str) -> bool {
        self.pods.contains(uid)
    }

    /// Has the pod ended here?
    pub(super) fn has_ended(&self, uid: &str) -> bool {
        self.ended.contains(uid)
    }

    /// A pod ended here.
    pub(super) fn end(&mut self, uid: &str) {
        self.ended.insert(uid.to_owned());
    }

    /// An object was written here.
    pub(super) fn wrote(&mut self, object: &TraceObject) {
        self.written.insert(id(object));
    }

    /// An object is gone.
    pub(super) fn forget(&mut self, object: &TraceObject) {
        let id = id(object);
        self.open.remove(&id);
        self.written.remove(&id);
    }

    /// The object as it is to be here; `None` where what the trace tells does not count. `responsible`: is such a pod to be decided here?
    pub(super) fn apply(
        &mut self,
        world: &World,
        object: &TraceObject,
        responsible: impl FnOnce(&Pod) -> bool,
    ) -> Option<TraceObject> {
        match object {
            TraceObject::Pod(pod) => self.pod(world, pod, responsible),
            TraceObject::PersistentVolumeClaim(claim) => self.claim(world, object, claim),
            TraceObject::PersistentVolume(volume) => self.volume(world, object, volume),
            TraceObject::ResourceClaim(claim) => self.devices(world, object, claim),
            other => Some(other.clone()),
        }
    }

    fn pod(
        &mut self,
        world: &World,
        pod: &Arc<Pod>,
        responsible: impl FnOnce(&Pod) -> bool,
    ) -> Option<TraceObject> {
        let uid = uid(pod);
        if self.ended.contains(uid) {
            return None;
        }
        let meta = &pod.metadata;
        let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
        let known = world.pod(namespace.unwrap_or_default(), name.unwrap_or_default());
        let known = known.filter(|known| known.metadata.uid == pod.metadata.uid);
        if known.is_none() && node_name(pod).is_none() && responsible(pod) {
            self.pods.insert(uid.to_owned());
        }
        if !self.pods.contains(uid) {
            return Some(TraceObject::Pod(Arc::clone(pod)));
        }
        let mut here = Pod::clone(pod);
        let known = known.as_deref();
        let spec = known.and_then(|known| known.spec.as_ref());
        here.spec.get_or_insert_default().node_name = spec.and_then(|s| s.node_name.clone());
        let status = known.and_then(|known| known.status.as_ref());
        let told = here.status.get_or_insert_default();
        told.nominated_node_name = status.and_then(|s| s.nominated_node_name.clone());
        told.extended_resource_claim_status =
            status.and_then(|s| s.extended_resource_claim_status.clone());
        Some(TraceObject::Pod(Arc::new(here)))
    }

    /// Does the trace's version of the object not count?
    fn stands(&self, world: &World, object: &TraceObject) -> bool {
        self.written.contains(&id(object)) && same(world, object)
    }

    fn claim(
        &mut self,
        world: &World,
        object: &TraceObject,
        claim: &PersistentVolumeClaim,
    ) -> Option<TraceObject> {
        if self.stands(world, object) {
            return None;
        }
        let id = id(object);
        if !same(world, object) {
            let waits = volume_name(claim).is_empty() && waits(world, claim_class(claim));
            note(&mut self.open, id.clone(), waits);
        }
        if !self.open.contains(&id) {
            return Some(object.clone());
        }
        let mut here = claim.clone();
        if let Some(spec) = &mut here.spec {
            spec.volume_name = None;
        }
        if let Some(status) = &mut here.status {
            status.phase = Some("Pending".to_owned());
            status.capacity = None;
        }
        for key in [BIND_COMPLETED, BOUND_BY_CONTROLLER, SELECTED_NODE] {
            remove_annotation(&mut here.metadata, key);
        }
        Some(TraceObject::PersistentVolumeClaim(Arc::new(here)))
    }

    fn volume(
        &mut self,
        world: &World,
        object: &TraceObject,
        volume: &PersistentVolume,
    ) -> Option<TraceObject> {
        if self.stands(world, object) {
            return None;
        }
        let id = id(object);
        let reference = claim_ref(volume);
        if !same(world, object) {
            note(&mut self.open, id.clone(), reference.is_none());
        }
        let Some(reference) = reference else {
            return Some(object.clone());
        };
        let claim = (
            Kind::PersistentVolumeClaim,
            reference.namespace.clone().unwrap_or_default(),
            reference.name.clone().unwrap_or_default(),
        );
        if !self.open.contains(&claim) {
            return Some(object.clone());
        }
        if !self.open.contains(&id) {
            // Made for the node that the recorded scheduler chose.
            return None;
        }
        let mut here = volume.clone();
        if let Some(spec) = &mut here.spec {
            spec.claim_ref = None;
        }
        here.status.get_or_insert_default().phase = Some("Available".to_owned());
        Some(TraceObject::PersistentVolume(Arc::new(here)))
    }

    fn devices(
        &mut self,
        world: &World,
        object: &TraceObject,
        claim: &ResourceClaim,
    ) -> Option<TraceObject> {
        if self.stands(world, object) {
            return None;
        }
        let id = id(object);
        if !same(world, object) {
            note(&mut self.open, id.clone(), !is_allocated(claim));
        }
        if !self.open.contains(&id) {
            return Some(object.clone());
        }
        let mut here = claim.clone();
        here.status = None;
        Some(TraceObject::ResourceClaim(Arc::new(here)))
    }
}

fn note(set: &mut BTreeSet<Id>, id: Id, is_in: bool) {
    if is_in {
        set.insert(id);
    } else {
        set.remove(&id);
    }
}

/// Does the world have this very object already?
fn same(world: &World, object: &TraceObject) -> bool {
    let known = world.get(object.kind(), object.namespace(), object.name());
    known.is_some_and(|known| known.uid() == object.uid())
}

/// Do claims of the class wait for their first consumer?
fn waits(world: &World, class: &str) -> bool {
    match world.get(Kind::StorageClass, "", class) {
        Some(TraceObject::StorageClass(class)) => {
            class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
        }
        // Of no class, or of one that nobody provisions for: a volume that is there is bound at once.
        _ => false,
    }
}
