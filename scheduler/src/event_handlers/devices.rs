//! Claims to devices, devices, their classes and taints: into the device cache, then to the queue.

use component_base::informer::{InformerEvent, Receiver};
use framework::EventObject;
use k8s_openapi::api::resource::v1::{DeviceClass, DeviceTaintRule, ResourceClaim, ResourceSlice};
use kube::Resource;

use super::observe;
use crate::listers::DeviceInformers;
use crate::scheduler::Scheduler;

/// A change of an object of any of these kinds.
pub(super) type Change = (Option<EventObject>, Option<EventObject>);

/// `None` for what is told again and has not changed.
fn change<K: Resource>(
    event: InformerEvent<K>,
    object: fn(std::sync::Arc<K>) -> EventObject,
) -> Option<Change> {
    Some(match event {
        InformerEvent::Added(new) => (None, Some(object(new))),
        InformerEvent::Updated { old, new }
            if old.meta().resource_version == new.meta().resource_version =>
        {
            return None;
        }
        InformerEvent::Updated { old, new } => (Some(object(old)), Some(object(new))),
        InformerEvent::Deleted(old) => (Some(object(old)), None),
    })
}

/// What the informers tell of devices.
pub(super) struct DeviceEvents {
    claims: Receiver<ResourceClaim>,
    slices: Receiver<ResourceSlice>,
    classes: Receiver<DeviceClass>,
    taint_rules: Option<Receiver<DeviceTaintRule>>,
}

impl DeviceEvents {
    pub(super) fn new(informers: &DeviceInformers) -> Self {
        DeviceEvents {
            claims: informers.claims.subscribe(),
            slices: informers.slices.subscribe(),
            classes: informers.classes.subscribe(),
            taint_rules: informers
                .taint_rules
                .as_ref()
                .map(|rules| rules.subscribe()),
        }
    }

    /// The next change, the inner `None` for one of nothing; the outer when the informers have ended. May be dropped and asked again.
    pub(super) async fn next(&mut self) -> Option<Option<Change>> {
        let rules = &mut self.taint_rules;
        let rule = async {
            match rules {
                Some(rules) => rules.recv().await,
                None => None,
            }
        };
        tokio::select! {
            Some(e) = self.claims.recv() => Some(change(e, EventObject::ResourceClaim)),
            Some(e) = self.slices.recv() => Some(change(e, EventObject::ResourceSlice)),
            Some(e) = self.classes.recv() => Some(change(e, EventObject::DeviceClass)),
            Some(e) = rule => Some(change(e, EventObject::DeviceTaintRule)),
            else => None,
        }
    }

    /// Hands over all that is there already.
    pub(super) fn drain(&mut self, mut handle: impl FnMut(Option<Change>)) {
        while let Some(e) = self.taint_rules.as_mut().and_then(Receiver::try_recv) {
            handle(change(e, EventObject::DeviceTaintRule));
        }
        while let Some(e) = self.slices.try_recv() {
            handle(change(e, EventObject::ResourceSlice));
        }
        while let Some(e) = self.classes.try_recv() {
            handle(change(e, EventObject::DeviceClass));
        }
        while let Some(e) = self.claims.try_recv() {
            handle(change(e, EventObject::ResourceClaim));
        }
    }
}

pub(super) fn handle(scheduler: &Scheduler, change: Option<Change>) {
    let Some((old, new)) = change else { return };
    let start = scheduler.shared.metrics().start();
    // Before the queue hears of it: a pod that is tried again shall find it.
    let devices = scheduler.shared.listers().devices();
    for told in devices.apply(old.as_ref(), new.as_ref()) {
        let event = told.event;
        scheduler
            .queue
            .move_all_to_active_or_backoff_queue(event, told.old, told.new, None);
        observe(scheduler, &event, start);
    }
}
