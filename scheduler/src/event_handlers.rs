//! What the informers tell goes into the cache and the queue.
//!
//! One task handles the events of all kinds, so that a pod never reaches the cache before what was told earlier. Upstream: pkg/scheduler/eventhandlers.go, v1.36.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use component_base::informer::{Informer, InformerEvent, Receiver};
use component_base::shutdown::Shutdown;
use framework::event::{node_scheduling_properties_change, pod_scheduling_properties_change};
use framework::pod_groups::min_count;
use framework::*;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use tokio::sync::mpsc;

use crate::listers::{Informers, Revisions};
use crate::objects::Change;
use crate::retreat::tell_of_retreat;
use crate::scheduler::Scheduler;
use crate::trace::object::TraceObject;
use crate::trace::recorder::TraceRecorder;

mod devices;
mod recording;
mod storage;
#[cfg(test)]
mod tests;

use devices::DeviceEvents;
use recording::{Recording, initial};
use storage::StorageEvents;

/// Feeds the cache and the queue.
pub struct EventHandlers {
    scheduler: Arc<Scheduler>,
    revisions: Arc<Revisions>,
    pods: Receiver<Pod>,
    nodes: Receiver<Node>,
    namespaces: Receiver<Namespace>,
    services: Receiver<Service>,
    storage: StorageEvents,
    devices: DeviceEvents,
    pod_groups: Option<Receiver<PodGroup>>,
    objects: mpsc::Receiver<Change>,
    recording: Option<Recording>,
}

impl EventHandlers {
    /// Subscribes. `recorder` is told of everything, too.
    pub fn new(
        scheduler: Arc<Scheduler>,
        informers: &Informers,
        revisions: Arc<Revisions>,
        objects: mpsc::Receiver<Change>,
        recorder: Option<TraceRecorder>,
    ) -> Self {
        EventHandlers {
            recording: recorder.map(|recorder| Recording::new(recorder, informers)),
            scheduler,
            revisions,
            pods: informers.pods.subscribe(),
            nodes: informers.nodes.subscribe(),
            namespaces: informers.namespaces.subscribe(),
            services: informers.services.subscribe(),
            storage: StorageEvents::new(&informers.storage),
            devices: DeviceEvents::new(&informers.devices),
            pod_groups: informers.pod_groups.as_ref().map(Informer::subscribe),
            objects,
        }
    }

    /// Takes in all that is there already: to be called after the informers have synced and before the first pod is scheduled.
    pub fn handle_initial(&mut self) {
        let scheduler = Arc::clone(&self.scheduler);
        if self.recording.is_some() {
            self.record_what_is_read();
        }
        let recorder = self.recording.as_ref().map(|recording| &recording.recorder);
        let there = |object: Option<&EventObject>| {
            if let (Some(recorder), Some(object)) = (recorder, object) {
                recorder.initial(TraceObject::of_event(object));
            }
        };
        self.storage.drain(|change| {
            there(change.as_ref().and_then(|change| change.objects().1));
            storage::handle(&scheduler, change);
        });
        self.devices.drain(|change| {
            there(change.as_ref().and_then(|(_, new)| new.as_ref()));
            devices::handle(&scheduler, change);
        });
        let observers = scheduler.shared.observers();
        observers.tell_objects();
        if let Some(recorder) = recorder {
            for object in observers.objects() {
                recorder.initial(TraceObject::Custom(object));
            }
        }
        while let Some(event) = self.nodes.try_recv() {
            recorder.inspect(|recorder| initial(recorder, &event));
            handle_node(&scheduler, event);
        }
        while let Some(event) = self.pod_groups.as_mut().and_then(Receiver::try_recv) {
            recorder.inspect(|recorder| initial(recorder, &event));
            handle_pod_group(&scheduler, event);
        }
        let groups = scheduler.shared.listers().pod_groups();
        let mut pods = Vec::new();
        while let Some(event) = self.pods.try_recv() {
            recorder.inspect(|recorder| initial(recorder, &event));
            // A group is complete before the first of its pods asks.
            groups.set_pod(event.object());
            pods.push(event);
        }
        for event in pods {
            handle_pod(&scheduler, event);
        }
        if let Some(recorder) = recorder {
            recorder.synced();
        }
    }

    /// What nobody waits for, but somebody may read.
    fn record_what_is_read(&mut self) {
        let Some(recording) = &mut self.recording else {
            return;
        };
        recording.drain();
        while let Some(event) = self.namespaces.try_recv() {
            initial(&recording.recorder, &event);
            self.revisions.namespaces.fetch_add(1, Ordering::AcqRel);
        }
        while let Some(event) = self.services.try_recv() {
            initial(&recording.recorder, &event);
            self.revisions.services.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Handles events until shutdown.
    pub async fn run(mut self, shutdown: Shutdown) {
        loop {
            tokio::select! {
                biased;
                () = shutdown.triggered() => return,
                Some(event) = self.nodes.recv() => {
                    self.record(|recording| recording.recorder.informed(&event));
                    handle_node(&self.scheduler, event);
                }
                Some(event) = self.pods.recv() => {
                    self.record(|recording| recording.recorder.informed(&event));
                    handle_pod(&self.scheduler, event);
                }
                Some(event) = next_pod_group(&mut self.pod_groups) => {
                    self.record(|recording| recording.recorder.informed(&event));
                    handle_pod_group(&self.scheduler, event);
                }
                Some(change) = self.storage.next() => {
                    if let Some(change) = &change {
                        self.record(|recording| recording.change(change.objects()));
                    }
                    storage::handle(&self.scheduler, change);
                }
                Some(change) = self.devices.next() => {
                    if let Some((old, new)) = &change {
                        self.record(|recording| recording.change((old.as_ref(), new.as_ref())));
                    }
                    devices::handle(&self.scheduler, change);
                }
                Some(change) = self.objects.recv() => {
                    let object = |object: &Option<Arc<Object>>| object.clone().map(EventObject::Custom);
                    let (old, new) = (object(&change.0), object(&change.1));
                    self.record(|recording| recording.change((old.as_ref(), new.as_ref())));
                    handle_object(&self.scheduler, old, new);
                }
                Some(event) = self.namespaces.recv() => {
                    self.record(|recording| recording.recorder.informed(&event));
                    self.revisions.namespaces.fetch_add(1, Ordering::AcqRel);
                }
                Some(event) = self.services.recv() => {
                    self.record(|recording| recording.recorder.informed(&event));
                    self.revisions.services.fetch_add(1, Ordering::AcqRel);
                }
                Some(()) = Recording::next(&mut self.recording) => {}
                else => return,
            }
        }
    }

    fn record(&self, record: impl FnOnce(&Recording)) {
        if let Some(recording) = &self.recording {
            record(recording);
        }
    }
}

/// `None` where nobody watches groups of pods. May be dropped and asked again.
async fn next_pod_group(
    groups: &mut Option<Receiver<PodGroup>>,
) -> Option<InformerEvent<PodGroup>> {
    match groups {
        Some(groups) => groups.recv().await,
        None => None,
    }
}

/// A group of pods changed.
pub(crate) fn handle_pod_group(scheduler: &Scheduler, event: InformerEvent<PodGroup>) {
    let (old, new) = match event {
        InformerEvent::Added(new) => (None, Some(new)),
        InformerEvent::Updated { old, new }
            if old.metadata.resource_version == new.metadata.resource_version =>
        {
            return;
        }
        InformerEvent::Updated { old, new } => (Some(old), Some(new)),
        InformerEvent::Deleted(old) => (Some(old), None),
    };
    let object = |group: Option<Arc<PodGroup>>| group.map(EventObject::PodGroup);
    handle_object(scheduler, object(old), object(new));
}

/// What happened to an object.
fn action<T>(old: &Option<T>, new: &Option<T>) -> ActionType {
    match (old, new) {
        (None, _) => ActionType::ADD,
        (_, None) => ActionType::DELETE,
        _ => ActionType::UPDATE,
    }
}

/// An object of storage, of devices, or of a kind that only plugins know, changed: into its cache, then to the queue.
pub(crate) fn handle_stored(
    scheduler: &Scheduler,
    resource: EventResource,
    old: Option<EventObject>,
    new: Option<EventObject>,
) {
    match resource {
        EventResource::Custom(_) => handle_object(scheduler, old, new),
        EventResource::ResourceClaim
        | EventResource::ResourceSlice
        | EventResource::DeviceClass => {
            devices::handle(scheduler, Some((old, new)));
        }
        resource => storage::handle(scheduler, Some(storage::Change::new(resource, old, new))),
    }
}

fn observe(scheduler: &Scheduler, event: &ClusterEvent, start: Instant) {
    let metrics = scheduler.shared.metrics();
    metrics.observe_event(&event.label(), start);
}

fn node_object(node: &Arc<Node>) -> Option<EventObject> {
    Some(EventObject::Node(Arc::clone(node)))
}

fn pod_object(pod: &Arc<Pod>) -> Option<EventObject> {
    Some(EventObject::Pod(Arc::clone(pod)))
}

pub(crate) fn handle_node(scheduler: &Scheduler, event: InformerEvent<Node>) {
    let start = scheduler.shared.metrics().start();
    let (cache, queue) = (&scheduler.cache, &scheduler.queue);
    match event {
        InformerEvent::Added(node) => {
            let event = ClusterEvent::new(EventResource::Node, ActionType::ADD);
            cache.add_node(Arc::clone(&node));
            queue.move_all_to_active_or_backoff_queue(event, None, node_object(&node), None);
            observe(scheduler, &event, start);
        }
        InformerEvent::Updated { old, new } => {
            let events = node_scheduling_properties_change(&new, &old);
            // Heartbeats and the like change nothing that plugins look at, but for images.
            let images = |node: &Node| node.status.as_ref().and_then(|s| s.images.clone());
            let unschedulable = |node: &Node| {
                node.spec
                    .as_ref()
                    .and_then(|s| s.unschedulable)
                    .unwrap_or(false)
            };
            if !events.is_empty()
                || unschedulable(&old) != unschedulable(&new)
                || images(&old) != images(&new)
            {
                cache.update_node(Arc::clone(&new));
            }
            if old.metadata.labels != new.metadata.labels {
                // Volumes that pods wait for may not be usable there any more.
                scheduler.shared.listers().volumes().wake_all();
            }
            for event in events {
                queue.move_all_to_active_or_backoff_queue(
                    event,
                    node_object(&old),
                    node_object(&new),
                    None,
                );
                observe(scheduler, &event, start);
            }
        }
        InformerEvent::Deleted(node) => {
            let event = ClusterEvent::new(EventResource::Node, ActionType::DELETE);
            scheduler.shared.listers().volumes().wake_all();
            queue.move_all_to_active_or_backoff_queue(event, node_object(&node), None, None);
            if let Err(error) = cache.remove_node(node.metadata.name.as_deref().unwrap_or_default())
            {
                tracing::error!(%error, "Scheduler cache RemoveNode failed");
            }
            observe(scheduler, &event, start);
        }
    }
}

/// A group of pods, or an object of a kind that only plugins know.
fn handle_object(scheduler: &Scheduler, old: Option<EventObject>, new: Option<EventObject>) {
    let start = scheduler.shared.metrics().start();
    let groups = scheduler.shared.listers().pod_groups();
    let resource = match (&old, &new) {
        (_, Some(EventObject::PodGroup(group))) => {
            groups.set_group(group);
            EventResource::PodGroup
        }
        (Some(EventObject::PodGroup(group)), None) => {
            groups.delete_group(group);
            EventResource::PodGroup
        }
        (_, Some(EventObject::Custom(object))) | (Some(EventObject::Custom(object)), None) => {
            let observers = scheduler.shared.observers();
            observers.tell_object(object.kind, old.as_ref(), new.as_ref());
            EventResource::Custom(object.kind)
        }
        _ => return,
    };
    let event = ClusterEvent::new(resource, action(&old, &new));
    scheduler
        .queue
        .move_all_to_active_or_backoff_queue(event, old, new, None);
    observe(scheduler, &event, start);
}

pub(crate) fn handle_pod(scheduler: &Scheduler, event: InformerEvent<Pod>) {
    let observers = scheduler.shared.observers();
    match &event {
        InformerEvent::Added(pod) => observers.tell_pod(None, Some(pod)),
        InformerEvent::Updated { old, new } if old.metadata.uid != new.metadata.uid => {
            observers.tell_pod(Some(old), None);
            observers.tell_pod(None, Some(new));
        }
        InformerEvent::Updated { old, new } => observers.tell_pod(Some(old), Some(new)),
        InformerEvent::Deleted(pod) => observers.tell_pod(Some(pod), None),
    }
    let groups = scheduler.shared.listers().pod_groups();
    match &event {
        InformerEvent::Added(pod) => groups.set_pod(pod),
        InformerEvent::Updated { old, new } => {
            if old.metadata.uid != new.metadata.uid {
                groups.delete_pod(old);
            }
            groups.set_pod(new);
        }
        InformerEvent::Deleted(pod) => groups.delete_pod(pod),
    }
    match event {
        InformerEvent::Added(pod) => add_pod(scheduler, &pod),
        InformerEvent::Updated { old, new } if old.metadata.uid != new.metadata.uid => {
            delete_pod(scheduler, &old);
            add_pod(scheduler, &new);
        }
        InformerEvent::Updated { old, new } => update_pod(scheduler, &old, &new),
        InformerEvent::Deleted(pod) => delete_pod(scheduler, &pod),
    }
}

fn assigned(pod: &Pod) -> bool {
    framework::pod_info::spec(pod)
        .node_name
        .as_deref()
        .is_some_and(|node| !node.is_empty())
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn info(pod: &Arc<Pod>) -> Option<Arc<PodInfo>> {
    match PodInfo::new(Arc::clone(pod)) {
        Ok(info) => Some(Arc::new(info)),
        Err(error) => {
            tracing::error!(%error, "the pod cannot be scheduled or counted");
            None
        }
    }
}

fn add_pod(scheduler: &Scheduler, pod: &Arc<Pod>) {
    let start = scheduler.shared.metrics().start();
    if assigned(pod) {
        add_assigned_pod_to_cache(scheduler, pod, start);
    } else if scheduler.responsible_for_pod(pod)
        && let Some(info) = info(pod)
    {
        scheduler.queue.add(info);
        group_may_be_complete(scheduler, pod);
        observe(scheduler, &ClusterEvent::UNSCHEDULED_POD_ADD, start);
    }
}

/// A pod of a group came: it may be the one that others waited for.
fn group_may_be_complete(scheduler: &Scheduler, pod: &Arc<Pod>) {
    let groups = scheduler.shared.listers().pod_groups();
    let Some(of) = groups.group_of(pod) else {
        return;
    };
    let needed = groups.group(of).and_then(|group| min_count(&group));
    // DIFFERS: while it is not, nobody is asked; upstream asks every pod that waits each time.
    if needed.is_some_and(|needed| groups.counts(of).all < needed) {
        return;
    }
    scheduler.queue.move_all_to_active_or_backoff_queue(
        ClusterEvent::UNSCHEDULED_POD_ADD,
        None,
        pod_object(pod),
        None,
    );
}

fn add_assigned_pod_to_cache(scheduler: &Scheduler, pod: &Arc<Pod>, start: Instant) {
    let Some(info) = info(pod) else { return };
    scheduler.cache.add_pod(info);
    scheduler.queue.move_all_to_active_or_backoff_queue(
        ClusterEvent::ASSIGNED_POD_ADD,
        None,
        pod_object(pod),
        None,
    );
    observe(scheduler, &ClusterEvent::ASSIGNED_POD_ADD, start);
}

fn update_pod(scheduler: &Scheduler, old: &Arc<Pod>, new: &Arc<Pod>) {
    let start = scheduler.shared.metrics().start();
    if assigned(old) {
        let known = scheduler.cache.get_pod(uid(new));
        let newest = known.map_or_else(
            || PodInfo::new(Arc::clone(new)),
            |known| known.with_updated_pod(Arc::clone(new)),
        );
        match newest {
            Ok(info) => {
                if let Err(error) = scheduler.cache.update_pod(Arc::new(info)) {
                    tracing::error!(%error, "Scheduler cache UpdatePod failed");
                }
            }
            Err(error) => tracing::error!(%error, "the pod cannot be counted"),
        }
        for event in pod_scheduling_properties_change(new, old) {
            scheduler.queue.move_all_to_active_or_backoff_queue(
                event,
                pod_object(old),
                pod_object(new),
                None,
            );
            observe(scheduler, &event, start);
        }
    } else if assigned(new) {
        add_assigned_pod_to_cache(scheduler, new, start);
        scheduler.queue.delete(uid(old));
    } else if scheduler.responsible_for_pod(old)
        && old.metadata.resource_version != new.metadata.resource_version
    {
        update_pod_in_scheduling_queue(scheduler, old, new, start);
    }
}

fn update_pod_in_scheduling_queue(
    scheduler: &Scheduler,
    old: &Arc<Pod>,
    new: &Arc<Pod>,
    start: Instant,
) {
    if scheduler.cache.is_assumed_pod(uid(new)) {
        if new.metadata.deletion_timestamp.is_some() && old.metadata.deletion_timestamp.is_none() {
            handle_assumed_pod_deletion(scheduler, new);
        }
        return;
    }
    let (Some(old_info), Some(new_info)) = (info(old), info(new)) else {
        return;
    };
    scheduler.queue.update(&old_info, new_info.clone());
    let old_node = old_info.nominated_node_name();
    if !old_node.is_empty() && old_node != new_info.nominated_node_name() {
        room_for_lower(scheduler, old, old_info.priority);
    }
    observe(scheduler, &ClusterEvent::UNSCHEDULED_POD_UPDATE, start);
}

/// A nomination is gone: pods of no higher priority may use the room.
fn room_for_lower(scheduler: &Scheduler, pod: &Arc<Pod>, priority: i32) {
    let check = |other: &PodInfo| other.priority <= priority;
    scheduler.queue.move_all_to_active_or_backoff_queue(
        ClusterEvent::ASSIGNED_POD_DELETE,
        pod_object(pod),
        None,
        Some(&check),
    );
}

fn handle_assumed_pod_deletion(scheduler: &Scheduler, pod: &Arc<Pod>) {
    let Some((assumed, node)) = scheduler.cache.get_placed_pod(uid(pod)) else {
        return;
    };
    let waiting = scheduler.shared.waiting_pods().get(uid(pod));
    // A waiting pod's binding task forgets it; of one further on, Bind will fail; who waits for volumes need not.
    scheduler
        .shared
        .cancel_pre_bind(uid(pod), "the pod was deleted");
    let rejected = waiting.is_some_and(|waiting| WaitingPod::reject(&*waiting, "", "removed"));
    if !rejected && let Err(error) = scheduler.cache.forget_pod(&assumed) {
        tracing::warn!(%error, "Scheduler cache ForgetPod failed");
    }
    tell_of_retreat(scheduler, pod, &node, None);
}

fn delete_pod(scheduler: &Scheduler, pod: &Arc<Pod>) {
    let start = scheduler.shared.metrics().start();
    // Whoever bound it may have done so unseen, between two events: it can be in the queue still.
    scheduler.queue.delete(uid(pod));
    if assigned(pod) {
        if let Err(error) = scheduler.cache.remove_pod(uid(pod)) {
            tracing::debug!(%error, "Scheduler cache RemovePod failed");
        }
        scheduler.queue.move_all_to_active_or_backoff_queue(
            ClusterEvent::ASSIGNED_POD_DELETE,
            pod_object(pod),
            None,
            None,
        );
        observe(scheduler, &ClusterEvent::ASSIGNED_POD_DELETE, start);
    } else if scheduler.responsible_for_pod(pod) {
        if scheduler.cache.is_assumed_pod(uid(pod)) {
            handle_assumed_pod_deletion(scheduler, pod);
        } else if let Some(info) = info(pod)
            && !info.nominated_node_name().is_empty()
        {
            room_for_lower(scheduler, pod, info.priority);
        }
        observe(scheduler, &ClusterEvent::UNSCHEDULED_POD_DELETE, start);
    }
}
