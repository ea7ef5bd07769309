//! [`World`]: a cluster in memory that stands for the API server: what plugins read from and the scheduler writes to.
//!
//! A write takes effect at once, under a version of the world's own, and is handed to whoever plays ([`World::take_untold`]) to be told as a watch would. Never decides
//! anything. Of other components it plays what a binding waits for, and no more: a volume that was given to a claim is bound to it, and a claim that chose a node gets a
//! volume there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use component_helpers::persistent_volume::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, SELECTED_NODE, annotation, claim_class, claim_ref,
    claim_reference, set_annotation, volume_name,
};
use framework::{
    ApiWriteError, ApiWriter, BoxFuture, ClaimWriter, DeviceCache, Listers, NominatingInfo, Object,
    ObjectKind, PodGroupCache, VolumeCache,
};
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume,
    PersistentVolumeClaim, PersistentVolumeSpec, Pod, PodCondition, PodExtendedResourceClaimStatus,
    ReplicationController, Service, VolumeNodeAffinity,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::objects::Sources;
use crate::trace::object::{Kind, TraceObject};

/// The label of a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// An object before and after.
pub type Told = (Option<TraceObject>, Option<TraceObject>);

type Id = (Kind, String, String);

fn id(object: &TraceObject) -> Id {
    (
        object.kind(),
        object.namespace().to_owned(),
        object.name().to_owned(),
    )
}

#[derive(Default)]
struct Objects {
    by_id: BTreeMap<Id, TraceObject>,
    untold: Vec<Told>,
    /// The pods whose end was asked for because of another, by UID.
    preempted: Vec<String>,
}

/// See the module.
#[derive(Default)]
pub struct World {
    objects: Mutex<Objects>,
    version: AtomicU64,
    namespaces_revision: AtomicU64,
    services_revision: AtomicU64,
    volumes: VolumeCache,
    devices: DeviceCache,
    pod_groups: PodGroupCache,
}

impl World {
    /// An empty one; with groups of pods, if there are `pod_groups`; with placements of these, if `topology_aware`.
    pub fn new(pod_groups: bool, topology_aware: bool) -> Self {
        World {
            pod_groups: PodGroupCache::new(pod_groups).with_topology_aware(topology_aware),
            ..World::default()
        }
    }

    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object as it is now.
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<TraceObject> {
        let id = (kind, namespace.to_owned(), name.to_owned());
        self.lock().by_id.get(&id).cloned()
    }

    /// An object is this from now on; what it was before.
    pub fn set(&self, object: TraceObject) -> Told {
        let (old, new) = self.put(&mut self.lock(), object);
        self.count(Some(&new));
        (old, Some(new))
    }

    /// An object is gone; what it was.
    pub fn remove(&self, kind: Kind, namespace: &str, name: &str) -> Option<TraceObject> {
        let id = (kind, namespace.to_owned(), name.to_owned());
        let gone = self.lock().by_id.remove(&id);
        self.count(gone.as_ref());
        gone
    }

    fn put(
        &self,
        objects: &mut Objects,
        mut object: TraceObject,
    ) -> (Option<TraceObject>, TraceObject) {
        let version = self.version.fetch_add(1, Ordering::AcqRel) + 1;
        object.metadata_mut().resource_version = Some(version.to_string());
        let old = objects.by_id.insert(id(&object), object.clone());
        (old, object)
    }

    fn count(&self, changed: Option<&TraceObject>) {
        match changed {
            Some(TraceObject::Namespace(_)) => {
                self.namespaces_revision.fetch_add(1, Ordering::AcqRel);
            }
            Some(TraceObject::Service(_)) => {
                self.services_revision.fetch_add(1, Ordering::AcqRel);
            }
            _ => {}
        }
    }

    /// What was written since the last call, in order.
    pub fn take_untold(&self) -> Vec<Told> {
        std::mem::take(&mut self.lock().untold)
    }

    /// The UIDs of pods that are being ended to make room, since the last call.
    pub fn take_preempted(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().preempted)
    }

    /// All objects of a kind, in the order of their names.
    pub fn all(&self, kind: Kind) -> Vec<TraceObject> {
        let from = (kind, String::new(), String::new());
        let objects = self.lock();
        let of_kind = objects.by_id.range(from..);
        let of_kind = of_kind.take_while(|((k, ..), _)| *k == kind);
        of_kind.map(|(_, object)| object.clone()).collect()
    }

    /// Writes an object that is there, if it still is the one meant.
    fn write(
        &self,
        kind: Kind,
        meta: &ObjectMeta,
        change: impl FnOnce(&mut TraceObject),
    ) -> Result<TraceObject, ApiWriteError> {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let id = (kind, text(&meta.namespace), text(&meta.name));
        let mut objects = self.lock();
        let known = objects.by_id.get(&id);
        let Some(mut object) = known.filter(|o| o.metadata().uid == meta.uid).cloned() else {
            return Err(ApiWriteError::NotFound(format!(
                "{} {:?} not found",
                kind.name(),
                id.2
            )));
        };
        change(&mut object);
        let (old, new) = self.put(&mut objects, object);
        objects.untold.push((old, Some(new.clone())));
        Ok(new)
    }

    fn create(&self, object: TraceObject) -> TraceObject {
        let mut objects = self.lock();
        let (old, new) = self.put(&mut objects, object);
        objects.untold.push((old, Some(new.clone())));
        new
    }

    /// Plays the volume controllers for what was written; what comes of it is written, too.
    pub fn bind_volumes(&self, written: &[Told]) {
        for (_, new) in written {
            match new {
                Some(TraceObject::PersistentVolume(volume)) => self.bind_claim(volume),
                Some(TraceObject::PersistentVolumeClaim(claim)) => self.provision(claim),
                _ => {}
            }
        }
    }

    fn claim_of(&self, volume: &PersistentVolume) -> Option<Arc<PersistentVolumeClaim>> {
        let reference = claim_ref(volume)?;
        let (namespace, name) = (reference.namespace.as_deref()?, reference.name.as_deref()?);
        match self.get(Kind::PersistentVolumeClaim, namespace, name)? {
            TraceObject::PersistentVolumeClaim(claim) if volume_name(&claim).is_empty() => {
                Some(claim)
            }
            _ => None,
        }
    }

    fn bind_claim(&self, volume: &PersistentVolume) {
        let Some(claim) = self.claim_of(volume) else {
            return;
        };
        let name = volume.metadata.name.clone();
        // What is gone needs no volume.
        let _ = self.write(Kind::PersistentVolumeClaim, &claim.metadata, |object| {
            if let TraceObject::PersistentVolumeClaim(claim) = object {
                let claim = Arc::make_mut(claim);
                claim.spec.get_or_insert_default().volume_name = name;
                claim.status.get_or_insert_default().phase = Some("Bound".to_owned());
                set_annotation(&mut claim.metadata, BIND_COMPLETED, "yes");
                set_annotation(&mut claim.metadata, BOUND_BY_CONTROLLER, "yes");
            }
        });
        let _ = self.write(Kind::PersistentVolume, &volume.metadata, |object| {
            if let TraceObject::PersistentVolume(volume) = object {
                let status = &mut Arc::make_mut(volume).status;
                status.get_or_insert_default().phase = Some("Bound".to_owned());
            }
        });
    }

    /// A claim that chose a node gets a volume in the node's zone, or on the node where there are no zones.
    fn provision(&self, claim: &PersistentVolumeClaim) {
        let chosen = annotation(&claim.metadata, SELECTED_NODE);
        let (Some(node), true) = (chosen, volume_name(claim).is_empty()) else {
            return;
        };
        let Some(TraceObject::Node(node)) = self.get(Kind::Node, "", node) else {
            return;
        };
        let name = format!("replay-{}", claim.metadata.uid.as_deref().unwrap_or("none"));
        if self.get(Kind::PersistentVolume, "", &name).is_some() {
            return;
        }
        let labels = node.metadata.labels.as_ref();
        let (key, value) = match labels.and_then(|labels| labels.get(ZONE)) {
            Some(zone) => (ZONE, zone.clone()),
            None => (
                "kubernetes.io/hostname",
                labels
                    .and_then(|labels| labels.get("kubernetes.io/hostname"))
                    .cloned()
                    .or_else(|| node.metadata.name.clone())
                    .unwrap_or_default(),
            ),
        };
        let spec = claim.spec.as_ref();
        let here = NodeSelectorTerm {
            match_expressions: Some(vec![NodeSelectorRequirement {
                key: key.to_owned(),
                operator: "In".to_owned(),
                values: Some(vec![value]),
            }]),
            match_fields: None,
        };
        let volume = PersistentVolume {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                uid: Some(name),
                ..ObjectMeta::default()
            },
            spec: Some(PersistentVolumeSpec {
                access_modes: spec.and_then(|spec| spec.access_modes.clone()),
                capacity: spec
                    .and_then(|spec| spec.resources.as_ref())
                    .and_then(|resources| resources.requests.clone()),
                claim_ref: Some(claim_reference(claim)),
                storage_class_name: Some(claim_class(claim).to_owned()),
                volume_mode: spec.and_then(|spec| spec.volume_mode.clone()),
                node_affinity: Some(VolumeNodeAffinity {
                    required: Some(NodeSelector {
                        node_selector_terms: vec![here],
                    }),
                }),
                ..PersistentVolumeSpec::default()
            }),
            status: None,
        };
        let created = self.create(TraceObject::PersistentVolume(Arc::new(volume)));
        if let TraceObject::PersistentVolume(volume) = created {
            self.bind_claim(&volume);
        }
    }
}

macro_rules! typed {
    ($object:expr, $kind:ident) => {
        match $object {
            TraceObject::$kind(object) => Some(object),
            _ => None,
        }
    };
}

impl Listers for World {
    fn namespace_labels(&self, namespace: &str) -> Arc<BTreeMap<String, String>> {
        let object = self.get(Kind::Namespace, "", namespace);
        let labels = object.and_then(|object| object.metadata().labels.clone());
        Arc::new(labels.unwrap_or_default())
    }
    fn namespaces(&self) -> Vec<String> {
        let all = self.all(Kind::Namespace);
        all.iter().map(|object| object.name().to_owned()).collect()
    }
    fn namespaces_revision(&self) -> u64 {
        self.namespaces_revision.load(Ordering::Acquire)
    }
    fn pod_disruption_budgets(&self) -> Vec<Arc<PodDisruptionBudget>> {
        let all = self.all(Kind::PodDisruptionBudget).into_iter();
        all.filter_map(|object| typed!(object, PodDisruptionBudget))
            .collect()
    }
    fn services(&self, namespace: &str) -> Vec<Arc<Service>> {
        let from = (Kind::Service, namespace.to_owned(), String::new());
        let objects = self.lock();
        let there = objects.by_id.range(from..);
        there
            .take_while(|((kind, ns, _), _)| *kind == Kind::Service && ns == namespace)
            .filter_map(|(_, object)| typed!(object, Service).cloned())
            .collect()
    }
    fn services_revision(&self) -> u64 {
        self.services_revision.load(Ordering::Acquire)
    }
    fn replication_controller(
        &self,
        namespace: &str,
        name: &str,
    ) -> Option<Arc<ReplicationController>> {
        let object = self.get(Kind::ReplicationController, namespace, name)?;
        typed!(object, ReplicationController)
    }
    fn replica_set(&self, namespace: &str, name: &str) -> Option<Arc<ReplicaSet>> {
        typed!(self.get(Kind::ReplicaSet, namespace, name)?, ReplicaSet)
    }
    fn stateful_set(&self, namespace: &str, name: &str) -> Option<Arc<StatefulSet>> {
        typed!(self.get(Kind::StatefulSet, namespace, name)?, StatefulSet)
    }
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        typed!(self.get(Kind::Pod, namespace, name)?, Pod)
    }
    fn node(&self, name: &str) -> Option<Arc<Node>> {
        typed!(self.get(Kind::Node, "", name)?, Node)
    }
    fn volumes(&self) -> &VolumeCache {
        &self.volumes
    }
    fn devices(&self) -> &DeviceCache {
        &self.devices
    }
    fn pod_groups(&self) -> &PodGroupCache {
        &self.pod_groups
    }
}

impl Sources for World {
    fn watch(&self, _: ObjectKind) {}
    fn objects(&self, kind: ObjectKind) -> Vec<Arc<Object>> {
        let all = self.all(Kind::Custom(kind)).into_iter();
        all.filter_map(|object| typed!(object, Custom)).collect()
    }
    fn pods(&self) -> Vec<Arc<Pod>> {
        let all = self.all(Kind::Pod).into_iter();
        all.filter_map(|object| typed!(object, Pod)).collect()
    }
}

fn version(object: &TraceObject) -> String {
    object
        .metadata()
        .resource_version
        .clone()
        .unwrap_or_default()
}

type Done<'a, T> = BoxFuture<'a, Result<T, ApiWriteError>>;

fn done<'a, T: Send + 'a>(result: Result<T, ApiWriteError>) -> Done<'a, T> {
    Box::pin(std::future::ready(result))
}

impl ApiWriter for World {
    fn claims(&self) -> Option<&dyn ClaimWriter> {
        Some(self)
    }
    fn bind<'a>(&'a self, pod: &'a Pod, node_name: &'a str) -> Done<'a, ()> {
        let bound = self.write(Kind::Pod, &pod.metadata, |object| {
            if let TraceObject::Pod(pod) = object {
                let spec = &mut Arc::make_mut(pod).spec;
                spec.get_or_insert_default().node_name = Some(node_name.to_owned());
            }
        });
        done(bound.map(|_| ()))
    }
    fn delete_pod<'a>(&'a self, pod: &'a Pod) -> Done<'a, ()> {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let id = (
            Kind::Pod,
            text(&pod.metadata.namespace),
            text(&pod.metadata.name),
        );
        let mut objects = self.lock();
        let known = objects.by_id.get(&id);
        if known.is_none_or(|known| known.metadata().uid != pod.metadata.uid) {
            return done(Err(ApiWriteError::NotFound(format!(
                "pods {:?} not found",
                id.2
            ))));
        }
        let gone = objects.by_id.remove(&id);
        objects.preempted.push(text(&pod.metadata.uid));
        objects.untold.push((gone, None));
        done(Ok(()))
    }
    fn bind_volume<'a>(&'a self, volume: &'a PersistentVolume) -> Done<'a, String> {
        let written = self.write(Kind::PersistentVolume, &volume.metadata, |object| {
            if let TraceObject::PersistentVolume(known) = object {
                let known = Arc::make_mut(known);
                let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.clone());
                known.spec.get_or_insert_default().claim_ref = reference;
                known
                    .metadata
                    .annotations
                    .clone_from(&volume.metadata.annotations);
            }
        });
        done(written.map(|object| version(&object)))
    }
    fn annotate_claim<'a>(&'a self, claim: &'a PersistentVolumeClaim) -> Done<'a, String> {
        let written = self.write(Kind::PersistentVolumeClaim, &claim.metadata, |object| {
            let annotations = &claim.metadata.annotations;
            object.metadata_mut().annotations.clone_from(annotations);
        });
        done(written.map(|object| version(&object)))
    }
    fn patch_pod_status<'a>(
        &'a self,
        pod: &'a Pod,
        _: Option<PodCondition>,
        nominating: NominatingInfo,
    ) -> Done<'a, ()> {
        // Conditions are for people: nothing decides by them.
        let NominatingInfo::Override(node) = nominating else {
            return done(Ok(()));
        };
        let known = |pod: &Pod| {
            component_helpers::pod::nominated_node_name(pod)
                .unwrap_or_default()
                .to_owned()
        };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let now = Listers::pod(self, namespace, name);
        if now.is_some_and(|now| known(&now) == node) {
            return done(Ok(()));
        }
        let written = self.write(Kind::Pod, &pod.metadata, |object| {
            if let TraceObject::Pod(pod) = object {
                let status = &mut Arc::make_mut(pod).status;
                let node = Some(node).filter(|node| !node.is_empty());
                status.get_or_insert_default().nominated_node_name = node;
            }
        });
        done(written.map(|_| ()))
    }
}

impl World {
    fn write_claim(
        &self,
        claim: &ResourceClaim,
        change: impl FnOnce(&mut ResourceClaim),
    ) -> Result<ResourceClaim, ApiWriteError> {
        let written = self.write(Kind::ResourceClaim, &claim.metadata, |object| {
            if let TraceObject::ResourceClaim(claim) = object {
                change(Arc::make_mut(claim));
            }
        })?;
        match written {
            TraceObject::ResourceClaim(claim) => Ok(ResourceClaim::clone(&claim)),
            _ => Err(ApiWriteError::Failed("not a claim".to_owned())),
        }
    }

    /// A pod is gone: claims are no longer kept for it, and those nobody has are given back.
    pub fn release_claims(&self, pod: &Pod) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        for object in self.all(Kind::ResourceClaim) {
            let TraceObject::ResourceClaim(claim) = object else {
                continue;
            };
            let reserved = component_helpers::resource_claim::reserved_for(&claim);
            if reserved.iter().all(|consumer| consumer.uid != uid) {
                continue;
            }
            // What is gone meanwhile has nothing to give back.
            let _ = self.write_claim(&claim, |claim| {
                let Some(status) = &mut claim.status else {
                    return;
                };
                if let Some(reserved) = &mut status.reserved_for {
                    reserved.retain(|consumer| consumer.uid != uid);
                    if reserved.is_empty() {
                        status.allocation = None;
                    }
                }
            });
        }
    }
}

impl ClaimWriter for World {
    fn create<'a>(&'a self, claim: &'a ResourceClaim) -> Done<'a, ResourceClaim> {
        let mut claim = claim.clone();
        let number = self.version.load(Ordering::Acquire);
        if claim.metadata.name.is_none() {
            let prefix = claim.metadata.generate_name.clone().unwrap_or_default();
            claim.metadata.name = Some(format!("{prefix}{number}"));
        }
        claim
            .metadata
            .uid
            .get_or_insert_with(|| format!("replay-claim-{number}"));
        match World::create(self, TraceObject::ResourceClaim(Arc::new(claim))) {
            TraceObject::ResourceClaim(claim) => done(Ok(ResourceClaim::clone(&claim))),
            _ => done(Err(ApiWriteError::Failed("not a claim".to_owned()))),
        }
    }
    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> Done<'a, ResourceClaim> {
        match World::get(self, Kind::ResourceClaim, namespace, name) {
            Some(TraceObject::ResourceClaim(claim)) => done(Ok(ResourceClaim::clone(&claim))),
            _ => done(Err(ApiWriteError::NotFound(name.to_owned()))),
        }
    }
    fn write_finalizers<'a>(&'a self, claim: &'a ResourceClaim) -> Done<'a, ResourceClaim> {
        let finalizers = claim.metadata.finalizers.clone();
        done(self.write_claim(claim, |known| known.metadata.finalizers = finalizers))
    }
    fn write_status<'a>(&'a self, claim: &'a ResourceClaim) -> Done<'a, ResourceClaim> {
        let status = claim.status.clone();
        done(self.write_claim(claim, |known| known.status = status))
    }
    fn unreserve<'a>(&'a self, claim: &'a ResourceClaim, uid: &'a str) -> Done<'a, ResourceClaim> {
        done(self.write_claim(claim, |known| {
            let reserved = known.status.as_mut().and_then(|s| s.reserved_for.as_mut());
            if let Some(reserved) = reserved {
                reserved.retain(|consumer| consumer.uid != uid);
            }
        }))
    }
    fn delete<'a>(&'a self, claim: &'a ResourceClaim) -> Done<'a, ()> {
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        if let Some(gone) = self.remove(Kind::ResourceClaim, namespace, name) {
            self.lock().untold.push((Some(gone), None));
        }
        done(Ok(()))
    }
    fn write_extended_status<'a>(
        &'a self,
        pod: &'a Pod,
        status: &'a PodExtendedResourceClaimStatus,
    ) -> Done<'a, ()> {
        let written = self.write(Kind::Pod, &pod.metadata, |object| {
            if let TraceObject::Pod(pod) = object {
                let known = Arc::make_mut(pod).status.get_or_insert_default();
                known.extended_resource_claim_status = Some(status.clone());
            }
        });
        done(written.map(|_| ()))
    }
}
