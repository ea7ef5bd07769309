//! [`VolumeState`]: what is known, with its indexes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use component_helpers::persistent_volume::{claim_class, claim_ref, volume_name};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, StorageClass, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Capacity, Touched, Volume, key};

/// An object as stored by the API server, and as assumed on top of that very version.
#[derive(Debug)]
struct Kept<T> {
    stored: Arc<T>,
    assumed: Option<Arc<T>>,
}

impl<T> Kept<T> {
    fn current(&self) -> &Arc<T> {
        self.assumed.as_ref().unwrap_or(&self.stored)
    }
}

/// Objects and when they last changed.
#[derive(Debug)]
struct Part<T> {
    revision: u64,
    objects: BTreeMap<String, Arc<T>>,
}

impl<T> Default for Part<T> {
    fn default() -> Self {
        Part {
            revision: 0,
            objects: BTreeMap::new(),
        }
    }
}

/// More parts than this, and those without objects go.
const MAX_PARTS: usize = 1024;

/// A map of parts. A part that is not there counts as changed when parts last went.
#[derive(Debug)]
struct Parts<T> {
    parts: HashMap<String, Part<T>>,
    gone: u64,
}

impl<T> Default for Parts<T> {
    fn default() -> Self {
        Parts {
            parts: HashMap::new(),
            gone: 0,
        }
    }
}

impl<T> Parts<T> {
    fn set(&mut self, part: &str, name: &str, object: Option<Arc<T>>, revision: u64) {
        let entry = self.parts.entry(part.to_owned()).or_default();
        entry.revision = revision;
        match object {
            Some(object) => _ = entry.objects.insert(name.to_owned(), object),
            None => _ = entry.objects.remove(name),
        }
        if entry.objects.is_empty() && self.parts.len() > MAX_PARTS {
            self.parts.retain(|_, part| !part.objects.is_empty());
            self.gone = revision;
        }
    }

    fn revision(&self, part: &str) -> u64 {
        self.parts.get(part).map_or(self.gone, |p| p.revision)
    }

    fn iter(&self, part: &str) -> impl Iterator<Item = &Arc<T>> {
        self.parts
            .get(part)
            .into_iter()
            .flat_map(|p| p.objects.values())
    }
}

/// What the scheduler knows of volumes. Claims go by `namespace/name`.
#[derive(Debug, Default)]
pub struct VolumeState {
    revision: u64,
    volumes: HashMap<String, Kept<Volume>>,
    claims: HashMap<String, Kept<PersistentVolumeClaim>>,
    /// Volumes that name no claim, by class.
    unclaimed: Parts<Volume>,
    /// Names of volumes that name a claim, by the claim.
    meant_for: HashMap<String, BTreeSet<String>>,
    /// How many volumes share a CSI volume.
    shared: HashMap<(String, String), usize>,
    classes: HashMap<String, Arc<StorageClass>>,
    csi_drivers: HashMap<String, Arc<CSIDriver>>,
    settings_revision: u64,
    csi_nodes: HashMap<String, Arc<CSINode>>,
    capacities: Parts<Capacity>,
    attachments: HashMap<String, BTreeMap<String, Arc<VolumeAttachment>>>,
    /// Nodes a volume is attached to, or is to be.
    attached_to: HashMap<String, BTreeSet<String>>,
    pub(super) touched: Touched,
}

pub(super) fn version(meta: &ObjectMeta) -> &str {
    meta.resource_version.as_deref().unwrap_or_default()
}

fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

/// The key of a claim.
pub(super) fn claim_key(claim: &PersistentVolumeClaim) -> String {
    let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
    key(namespace, name(&claim.metadata))
}

impl VolumeState {
    /// The volume, as assumed where it is.
    pub fn volume(&self, name: &str) -> Option<&Arc<Volume>> {
        self.volumes.get(name).map(Kept::current)
    }

    /// The volume, as the API server has it.
    pub fn stored_volume(&self, name: &str) -> Option<&Arc<Volume>> {
        self.volumes.get(name).map(|kept| &kept.stored)
    }

    /// The claim, as assumed where it is.
    pub fn claim(&self, key: &str) -> Option<&Arc<PersistentVolumeClaim>> {
        self.claims.get(key).map(Kept::current)
    }

    /// The claim, as the API server has it.
    pub fn stored_claim(&self, key: &str) -> Option<&Arc<PersistentVolumeClaim>> {
        self.claims.get(key).map(|kept| &kept.stored)
    }

    /// Volumes of a class that name no claim, by name.
    pub fn unclaimed(&self, class: &str) -> impl Iterator<Item = &Arc<Volume>> {
        self.unclaimed.iter(class)
    }

    /// Grows when volumes of the class that name no claim do, or did, change.
    pub fn unclaimed_revision(&self, class: &str) -> u64 {
        self.unclaimed.revision(class)
    }

    /// Volumes that name the claim, by name.
    pub fn meant_for(&self, claim: &str) -> impl Iterator<Item = &Arc<Volume>> {
        let names = self.meant_for.get(claim).into_iter().flatten();
        names.filter_map(|name| self.volume(name))
    }

    /// How many volumes stand for this one of a CSI driver.
    pub fn sharers(&self, driver: &str, handle: &str) -> usize {
        let id = (driver.to_owned(), handle.to_owned());
        self.shared.get(&id).copied().unwrap_or(0)
    }

    /// The class.
    pub fn storage_class(&self, name: &str) -> Option<&Arc<StorageClass>> {
        self.classes.get(name)
    }

    /// The driver's own settings.
    pub fn csi_driver(&self, name: &str) -> Option<&Arc<CSIDriver>> {
        self.csi_drivers.get(name)
    }

    /// Grows when a class or a driver changes.
    pub fn settings_revision(&self) -> u64 {
        self.settings_revision
    }

    /// What CSI drivers say of the node.
    pub fn csi_node(&self, node: &str) -> Option<&Arc<CSINode>> {
        self.csi_nodes.get(node)
    }

    /// Where, and how much, can be provisioned of a class.
    pub fn capacities(&self, class: &str) -> impl Iterator<Item = &Arc<Capacity>> {
        self.capacities.iter(class)
    }

    /// Grows when the capacities of a class change.
    pub fn capacities_revision(&self, class: &str) -> u64 {
        self.capacities.revision(class)
    }

    /// What is attached to a node, or is to be.
    pub fn attachments(&self, node: &str) -> impl Iterator<Item = &Arc<VolumeAttachment>> {
        self.attachments
            .get(node)
            .into_iter()
            .flat_map(BTreeMap::values)
    }

    fn bump(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    pub(super) fn set_volume(&mut self, name: &str, stored: Option<Arc<Volume>>) {
        let old = self.volume(name).cloned();
        let source = |volume: &Option<Arc<Volume>>| {
            let of = |volume: &Arc<Volume>| {
                volume
                    .csi_source()
                    .map(|(driver, handle)| (driver.to_owned(), handle.to_owned()))
            };
            volume.as_ref().and_then(of)
        };
        let (had, has) = (source(&old), source(&stored));
        if had != has || old.is_some() != stored.is_some() {
            self.share(had, has);
            let claims = [old.as_ref(), stored.as_ref()];
            let claims = claims.into_iter().flatten();
            for claim in claims.filter_map(|volume| volume.claim_key()) {
                self.touched.claim(claim);
            }
            for node in self.attached_to.get(name).into_iter().flatten() {
                self.touched.node(node.clone());
            }
        }
        match stored {
            None => _ = self.volumes.remove(name),
            Some(stored) => {
                let same = |kept: &Kept<Volume>| {
                    version(&kept.stored.object.metadata) == version(&stored.object.metadata)
                };
                let kept = self.volumes.remove(name).filter(same);
                let assumed = kept.and_then(|kept| kept.assumed);
                let kept = Kept { stored, assumed };
                self.volumes.insert(name.to_owned(), kept);
            }
        }
        self.index(name, old.as_ref());
    }

    fn share(&mut self, had: Option<(String, String)>, has: Option<(String, String)>) {
        if let Some(had) = had
            && let Some(count) = self.shared.get_mut(&had)
        {
            *count -= 1;
            if *count == 0 {
                self.shared.remove(&had);
            }
        }
        if let Some(has) = has {
            *self.shared.entry(has).or_default() += 1;
        }
    }

    /// Brings the indexes from `old` to what the volume is now.
    fn index(&mut self, name: &str, old: Option<&Arc<Volume>>) {
        let new = self.volume(name).cloned();
        if let (Some(old), Some(new)) = (old, &new)
            && Arc::ptr_eq(old, new)
        {
            return;
        }
        let revision = self.bump();
        if let Some(old) = old {
            match old.claim_key() {
                None => self.unclaimed.set(old.class(), name, None, revision),
                Some(claim) => {
                    if let Some(names) = self.meant_for.get_mut(&claim) {
                        names.remove(name);
                        if names.is_empty() {
                            self.meant_for.remove(&claim);
                        }
                    }
                }
            }
        }
        let Some(new) = new else { return };
        match new.claim_key() {
            None => {
                let class = new.class().to_owned();
                self.unclaimed.set(&class, name, Some(new), revision);
            }
            Some(claim) => {
                self.meant_for
                    .entry(claim)
                    .or_default()
                    .insert(name.to_owned());
            }
        }
    }

    /// False: not there, or there in another version.
    pub(super) fn assume_volume(&mut self, volume: Volume) -> bool {
        let name = volume.name().to_owned();
        let old = self.volume(&name).cloned();
        let Some(kept) = self.volumes.get_mut(&name) else {
            return false;
        };
        if version(&kept.stored.object.metadata) != version(&volume.object.metadata) {
            return false;
        }
        kept.assumed = Some(Arc::new(volume));
        self.index(&name, old.as_ref());
        true
    }

    pub(super) fn restore_volume(&mut self, name: &str, of_version: &str) {
        let old = self.volume(name).cloned();
        let Some(kept) = self.volumes.get_mut(name) else {
            return;
        };
        if version(&kept.stored.object.metadata) == of_version {
            kept.assumed = None;
            self.index(name, old.as_ref());
        }
    }

    pub(super) fn set_claim(&mut self, key: &str, stored: Option<Arc<PersistentVolumeClaim>>) {
        self.bump();
        let counts = |claim: &Arc<PersistentVolumeClaim>| {
            (
                volume_name(claim).to_owned(),
                claim_class(claim).to_owned(),
                claim.metadata.owner_references.clone(),
            )
        };
        let old = self.stored_claim(key);
        if old.map(counts) != stored.as_ref().map(counts) {
            self.touched.claim(key.to_owned());
        }
        match stored {
            None => _ = self.claims.remove(key),
            Some(stored) => {
                let same = |kept: &Kept<PersistentVolumeClaim>| {
                    version(&kept.stored.metadata) == version(&stored.metadata)
                };
                let kept = self.claims.remove(key).filter(same);
                let assumed = kept.and_then(|kept| kept.assumed);
                self.claims.insert(key.to_owned(), Kept { stored, assumed });
            }
        }
    }

    /// False: not there, or there in another version.
    pub(super) fn assume_claim(&mut self, claim: Arc<PersistentVolumeClaim>) -> bool {
        self.bump();
        let Some(kept) = self.claims.get_mut(&claim_key(&claim)) else {
            return false;
        };
        let same = version(&kept.stored.metadata) == version(&claim.metadata);
        if same {
            kept.assumed = Some(claim);
        }
        same
    }

    pub(super) fn restore_claim(&mut self, claim: &PersistentVolumeClaim) {
        self.bump();
        if let Some(kept) = self.claims.get_mut(&claim_key(claim))
            && version(&kept.stored.metadata) == version(&claim.metadata)
        {
            kept.assumed = None;
        }
    }

    pub(super) fn set_class(&mut self, name: &str, class: Option<Arc<StorageClass>>) {
        self.settings_revision = self.bump();
        put(&mut self.classes, name, class);
    }

    pub(super) fn set_csi_driver(&mut self, name: &str, driver: Option<Arc<CSIDriver>>) {
        self.settings_revision = self.bump();
        put(&mut self.csi_drivers, name, driver);
    }

    pub(super) fn set_csi_node(&mut self, name: &str, node: Option<Arc<CSINode>>) {
        self.bump();
        self.touched.node(name.to_owned());
        put(&mut self.csi_nodes, name, node);
    }

    pub(super) fn set_capacity(&mut self, class: &str, key: &str, capacity: Option<Arc<Capacity>>) {
        let revision = self.bump();
        self.capacities.set(class, key, capacity, revision);
    }

    pub(super) fn set_attachment(
        &mut self,
        name: &str,
        old: Option<&VolumeAttachment>,
        new: Option<&Arc<VolumeAttachment>>,
    ) {
        let spec = |attachment: &VolumeAttachment| attachment.spec.clone();
        if old.map(spec) == new.map(|new| spec(new)) {
            return;
        }
        self.bump();
        let volume = |a: &VolumeAttachment| a.spec.source.persistent_volume_name.clone();
        if let Some(old) = old {
            let node = &old.spec.node_name;
            self.touched.node(node.clone());
            if let Some(of_node) = self.attachments.get_mut(node) {
                of_node.remove(name);
                if of_node.is_empty() {
                    self.attachments.remove(node);
                }
            }
            if let Some(volume) = volume(old)
                && let Some(nodes) = self.attached_to.get_mut(&volume)
            {
                nodes.remove(node);
                if nodes.is_empty() {
                    self.attached_to.remove(&volume);
                }
            }
        }
        if let Some(new) = new {
            let node = new.spec.node_name.clone();
            self.touched.node(node.clone());
            if let Some(volume) = volume(new) {
                let nodes = self.attached_to.entry(volume).or_default();
                nodes.insert(node.clone());
            }
            let of_node = self.attachments.entry(node).or_default();
            of_node.insert(name.to_owned(), Arc::clone(new));
        }
    }

    /// Is the volume free of any claim, as far as is known or assumed?
    pub fn is_unclaimed(&self, name: &str) -> bool {
        let volume = self.volume(name);
        volume.is_some_and(|volume| claim_ref(&volume.object).is_none())
    }
}

fn put<T>(map: &mut HashMap<String, Arc<T>>, name: &str, object: Option<Arc<T>>) {
    match object {
        Some(object) => _ = map.insert(name.to_owned(), object),
        None => _ = map.remove(name),
    }
}
