//! Volumes, claims, classes and what storage drivers tell: into the volume cache, then to the queue.

use std::sync::Arc;

use component_base::informer::{InformerEvent, Receiver};
use framework::{ActionType, ClusterEvent, EventObject, EventResource};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{
    CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment,
};
use kube::Resource;

use super::observe;
use crate::listers::StorageInformers;
use crate::scheduler::Scheduler;

/// A change of an object of any of these kinds.
pub(super) struct Change {
    event: ClusterEvent,
    old: Option<EventObject>,
    new: Option<EventObject>,
}

/// `None` for what is told again and has not changed.
fn change<K: Resource>(
    event: InformerEvent<K>,
    resource: EventResource,
    object: fn(Arc<K>) -> EventObject,
) -> Option<Change> {
    let version = |o: &Arc<K>| o.meta().resource_version.clone();
    let (action, old, new) = match event {
        InformerEvent::Added(new) => (ActionType::ADD, None, Some(new)),
        InformerEvent::Updated { old, new } if version(&old) == version(&new) => return None,
        InformerEvent::Updated { old, new } => (ActionType::UPDATE, Some(old), Some(new)),
        InformerEvent::Deleted(old) => (ActionType::DELETE, Some(old), None),
    };
    Some(Change {
        event: ClusterEvent::new(resource, action),
        old: old.map(object),
        new: new.map(object),
    })
}

/// What the informers tell of storage.
pub(super) struct StorageEvents {
    volumes: Receiver<PersistentVolume>,
    claims: Receiver<PersistentVolumeClaim>,
    classes: Receiver<StorageClass>,
    csi_nodes: Receiver<CSINode>,
    csi_drivers: Receiver<CSIDriver>,
    capacities: Receiver<CSIStorageCapacity>,
    attachments: Receiver<VolumeAttachment>,
}

impl StorageEvents {
    pub(super) fn new(informers: &StorageInformers) -> Self {
        StorageEvents {
            volumes: informers.volumes.subscribe(),
            claims: informers.claims.subscribe(),
            classes: informers.classes.subscribe(),
            csi_nodes: informers.csi_nodes.subscribe(),
            csi_drivers: informers.csi_drivers.subscribe(),
            capacities: informers.capacities.subscribe(),
            attachments: informers.attachments.subscribe(),
        }
    }

    /// The next change, the inner `None` for one of nothing; the outer when the informers have ended. May be dropped and asked again.
    pub(super) async fn next(&mut self) -> Option<Option<Change>> {
        tokio::select! {
            Some(e) = self.volumes.recv() => Some(volume(e)),
            Some(e) = self.claims.recv() => Some(claim(e)),
            Some(e) = self.classes.recv() => Some(class(e)),
            Some(e) = self.csi_nodes.recv() => Some(csi_node(e)),
            Some(e) = self.csi_drivers.recv() => Some(csi_driver(e)),
            Some(e) = self.capacities.recv() => Some(capacity(e)),
            Some(e) = self.attachments.recv() => Some(attachment(e)),
            else => None,
        }
    }

    /// Hands over all that is there already.
    pub(super) fn drain(&mut self, mut handle: impl FnMut(Option<Change>)) {
        while let Some(e) = self.volumes.try_recv() {
            handle(volume(e));
        }
        while let Some(e) = self.claims.try_recv() {
            handle(claim(e));
        }
        while let Some(e) = self.classes.try_recv() {
            handle(class(e));
        }
        while let Some(e) = self.csi_nodes.try_recv() {
            handle(csi_node(e));
        }
        while let Some(e) = self.csi_drivers.try_recv() {
            handle(csi_driver(e));
        }
        while let Some(e) = self.capacities.try_recv() {
            handle(capacity(e));
        }
        while let Some(e) = self.attachments.try_recv() {
            handle(attachment(e));
        }
    }
}

pub(super) fn volume(e: InformerEvent<PersistentVolume>) -> Option<Change> {
    let resource = EventResource::PersistentVolume;
    change(e, resource, EventObject::PersistentVolume)
}

pub(super) fn claim(e: InformerEvent<PersistentVolumeClaim>) -> Option<Change> {
    let resource = EventResource::PersistentVolumeClaim;
    change(e, resource, EventObject::PersistentVolumeClaim)
}

pub(super) fn class(e: InformerEvent<StorageClass>) -> Option<Change> {
    change(e, EventResource::StorageClass, EventObject::StorageClass)
}

fn csi_node(e: InformerEvent<CSINode>) -> Option<Change> {
    change(e, EventResource::CSINode, EventObject::CSINode)
}

fn csi_driver(e: InformerEvent<CSIDriver>) -> Option<Change> {
    change(e, EventResource::CSIDriver, EventObject::CSIDriver)
}

fn capacity(e: InformerEvent<CSIStorageCapacity>) -> Option<Change> {
    let resource = EventResource::CSIStorageCapacity;
    change(e, resource, EventObject::CSIStorageCapacity)
}

fn attachment(e: InformerEvent<VolumeAttachment>) -> Option<Change> {
    let resource = EventResource::VolumeAttachment;
    change(e, resource, EventObject::VolumeAttachment)
}

impl Change {
    pub(super) fn new(
        resource: EventResource,
        old: Option<EventObject>,
        new: Option<EventObject>,
    ) -> Self {
        let event = ClusterEvent::new(resource, super::action(&old, &new));
        Change { event, old, new }
    }

    /// The object before and after.
    pub(super) fn objects(&self) -> (Option<&EventObject>, Option<&EventObject>) {
        (self.old.as_ref(), self.new.as_ref())
    }
}

pub(super) fn handle(scheduler: &Scheduler, change: Option<Change>) {
    let Some(Change { event, old, new }) = change else {
        return;
    };
    let start = scheduler.shared.metrics().start();
    // Before the queue hears of it: a pod that is tried again shall find it.
    let volumes = scheduler.shared.listers().volumes();
    volumes.apply(old.as_ref(), new.as_ref());
    scheduler
        .queue
        .move_all_to_active_or_backoff_queue(event, old, new, None);
    observe(scheduler, &event, start);
}
