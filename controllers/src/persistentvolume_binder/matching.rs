//! Which volume serves a claim. Pure.
//!
//! Volumes are grouped by their access modes; a claim looks at groups that have at least its modes, the fewest modes first. Within a
//! group a volume that is the claim's already comes first, then the smallest that is free, large enough and fits. Every question is
//! answered from an order, not from a walk over all volumes. Upstream: persistentvolume/index.go and `FindMatchingVolume`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use component_base::informer::ObjectKey;
use component_helpers::labels::{Selector, SelectorError};
use component_helpers::persistent_volume::{
    AccessModes, claim_attributes_class, claim_class, claim_ref, is_volume_bound_to_claim,
    requested_storage, volume_attributes_class, volume_capacity, volume_class, volume_modes_differ,
    volume_phase,
};
use component_helpers::quantity::Amount;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

/// The volumes that are known, in the orders that claims ask for.
#[derive(Default)]
pub struct VolumeIndex {
    by_name: HashMap<String, Arc<PersistentVolume>>,
    groups: BTreeMap<AccessModes, Group>,
}

/// The volumes of one set of access modes, by name.
#[derive(Default)]
struct Group {
    /// Those that name a claim.
    claimed: HashMap<ObjectKey, BTreeSet<String>>,
    /// Those that name none, the smallest first.
    free: BTreeSet<(Amount, String)>,
}

impl Group {
    fn is_empty(&self) -> bool {
        self.claimed.is_empty() && self.free.is_empty()
    }
}

/// The claim a volume names.
pub fn claim_key(volume: &PersistentVolume) -> Option<ObjectKey> {
    claim_ref(volume).map(|reference| {
        ObjectKey::new(
            reference.namespace.as_deref().unwrap_or_default(),
            reference.name.as_deref().unwrap_or_default(),
        )
    })
}

fn name_of(volume: &PersistentVolume) -> String {
    volume.metadata.name.clone().unwrap_or_default()
}

impl VolumeIndex {
    /// The volume of a name.
    pub fn get(&self, name: &str) -> Option<&Arc<PersistentVolume>> {
        self.by_name.get(name)
    }

    /// Every volume, in no order.
    pub fn list(&self) -> impl Iterator<Item = &Arc<PersistentVolume>> {
        self.by_name.values()
    }

    /// Puts a volume in the place of its older self.
    pub fn insert(&mut self, volume: Arc<PersistentVolume>) {
        let name = name_of(&volume);
        self.remove(&name);
        let group = self
            .groups
            .entry(AccessModes::of_volume(&volume))
            .or_default();
        match claim_key(&volume) {
            Some(claim) => drop(group.claimed.entry(claim).or_default().insert(name.clone())),
            None => drop(group.free.insert((volume_capacity(&volume), name.clone()))),
        }
        self.by_name.insert(name, volume);
    }

    /// Takes a volume out.
    pub fn remove(&mut self, name: &str) -> Option<Arc<PersistentVolume>> {
        let old = self.by_name.remove(name)?;
        let modes = AccessModes::of_volume(&old);
        if let Some(group) = self.groups.get_mut(&modes) {
            match claim_key(&old) {
                Some(claim) => {
                    if let Some(names) = group.claimed.get_mut(&claim) {
                        names.remove(name);
                        if names.is_empty() {
                            group.claimed.remove(&claim);
                        }
                    }
                }
                None => drop(group.free.remove(&(volume_capacity(&old), name.to_owned()))),
            }
            if group.is_empty() {
                self.groups.remove(&modes);
            }
        }
        Some(old)
    }

    /// The volume that serves the claim best. With `delay_binding`, only one that is the claim's already: which free one it gets is
    /// the scheduler's to say.
    ///
    /// # Errors
    /// When the claim's selector is none; the claim has to be changed.
    pub fn find_best_match(
        &self,
        claim: &PersistentVolumeClaim,
        delay_binding: bool,
    ) -> Result<Option<&Arc<PersistentVolume>>, SelectorError> {
        let wanted = Wanted::new(claim)?;
        let groups = self.groups.iter();
        let fitting = groups.filter(|(modes, _)| modes.contains(wanted.modes));
        for (_, group) in fitting {
            let mut found = self.find_own(group, &wanted);
            if found.is_none() && !delay_binding {
                found = self.find_free(group, &wanted);
            }
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn find_own(&self, group: &Group, wanted: &Wanted<'_>) -> Option<&Arc<PersistentVolume>> {
        let names = group.claimed.get(&wanted.key)?;
        let volumes = names.iter().filter_map(|name| self.by_name.get(name));
        volumes.into_iter().find(|volume| {
            is_volume_bound_to_claim(volume, wanted.claim)
                && volume_capacity(volume) >= wanted.storage
                && wanted.is_served_by(volume)
        })
    }

    fn find_free(&self, group: &Group, wanted: &Wanted<'_>) -> Option<&Arc<PersistentVolume>> {
        let from = (wanted.storage, String::new());
        let large_enough = group.free.range((Bound::Included(from), Bound::Unbounded));
        let volumes = large_enough.filter_map(|(_, name)| self.by_name.get(name));
        volumes.into_iter().find(|volume| {
            // A volume in another phase gets available, or it does not; until then somebody is at it.
            volume_phase(volume) == "Available"
                && volume_class(volume) == claim_class(wanted.claim)
                && wanted.is_served_by(volume)
                && wanted.is_selected(volume)
        })
    }
}

/// What a claim asks for.
struct Wanted<'a> {
    claim: &'a PersistentVolumeClaim,
    key: ObjectKey,
    modes: AccessModes,
    storage: Amount,
    selector: Option<Selector>,
}

impl<'a> Wanted<'a> {
    fn new(claim: &'a PersistentVolumeClaim) -> Result<Self, SelectorError> {
        let selector = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        Ok(Self {
            claim,
            key: ObjectKey::of(claim),
            modes: AccessModes::of_claim(claim),
            storage: requested_storage(claim),
            selector: selector.map(Selector::new).transpose()?,
        })
    }

    fn is_served_by(&self, volume: &PersistentVolume) -> bool {
        !volume_modes_differ(self.claim, volume)
            && claim_attributes_class(self.claim) == volume_attributes_class(volume)
            && volume.metadata.deletion_timestamp.is_none()
    }

    fn is_selected(&self, volume: &PersistentVolume) -> bool {
        let selector = self.selector.as_ref();
        selector.is_none_or(|selector| selector.matches(&volume.metadata.labels))
    }
}
