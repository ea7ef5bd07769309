//! [`DeviceCache`]: devices, claims to them and their classes, with what the scheduler has assumed of them.
//!
//! Told of every change by the scheduler's event handlers, before the queue is; it says what the queue is to be told. Plugins read it, and tell it of allocations under
//! way. An allocation counts from the moment it is chosen until its claim is gone or deallocated:
//!
//! ```text
//!   chosen (Reserve) --> pending --written (PreBind)--> assumed --told by the API server--> stored
//!                           |                              (stands until a version as new comes)
//!                           +-- given up (Unreserve)
//! ```
//!
//! All under one lock, so that no device falls between two of these. Never here: requests to the API, the choice of devices (that is the crate `dynamic-resources`).
//! Upstream: plugins/dynamicresources/{dra_manager,allocateddevices}.go, util/assumecache and dynamic-resource-allocation/resourceslice/tracker, v1.37.
//!
//! DIFFERS: the state is one, where upstream looks again when a part of it changed while it read another.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use component_helpers::resource_claim::{EXTENDED_RESOURCE_CLAIM_ANNOTATION, is_allocated};
use dynamic_resources::{
    AllocatedState, Classes, Features, Inventory, Selectors, Slice, apply_rules, rule_concerns,
};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceClass, DeviceTaintRule, ResourceClaim, ResourceSlice,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::event::{ActionType, ClusterEvent, EventObject, EventResource};
use crate::volumes::{OutOfSyncError, key};
use crate::watch::{Watch, Watches};

#[cfg(test)]
mod tests;

/// A change as the queue is to be told of it.
#[derive(Debug, Clone)]
pub struct DeviceEvent {
    /// What happened.
    pub event: ClusterEvent,
    /// The object before.
    pub old: Option<EventObject>,
    /// The object now.
    pub new: Option<EventObject>,
}

#[derive(Default)]
struct ClaimEntry {
    stored: Option<Arc<ResourceClaim>>,
    assumed: Option<Arc<ResourceClaim>>,
}

impl ClaimEntry {
    fn visible(&self) -> Option<&Arc<ResourceClaim>> {
        self.assumed.as_ref().or(self.stored.as_ref())
    }
}

/// See the module.
#[derive(Default)]
pub struct DeviceState {
    features: Features,
    claims: HashMap<String, ClaimEntry>,
    /// Claims made for extended resources, by the UID of their pod.
    extended: HashMap<String, BTreeSet<String>>,
    pending: HashMap<String, Arc<ResourceClaim>>,
    /// Of each claim (by UID), the allocation that is in `allocated`.
    counted: HashMap<String, AllocationResult>,
    allocated: Arc<AllocatedState>,
    /// As published.
    slices: BTreeMap<String, Arc<ResourceSlice>>,
    rules: BTreeMap<String, Arc<DeviceTaintRule>>,
    /// With the taints of rules.
    ready: BTreeMap<String, Arc<Slice>>,
    /// Made at the first look after a change.
    inventory: Option<Arc<Inventory>>,
    classes: Arc<Classes>,
    classes_revision: u64,
}

fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

fn uid(claim: &ResourceClaim) -> &str {
    claim.metadata.uid.as_deref().unwrap_or_default()
}

/// `namespace/name` of a claim.
pub fn claim_key(claim: &ResourceClaim) -> String {
    key(
        claim.metadata.namespace.as_deref().unwrap_or_default(),
        name(&claim.metadata),
    )
}

fn version(claim: &ResourceClaim) -> u64 {
    let version = claim.metadata.resource_version.as_deref();
    version.and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}

/// The UID of the pod a claim was made for, because of the extended resources it asks for.
fn extended_owner(claim: &ResourceClaim) -> Option<&str> {
    let annotations = claim.metadata.annotations.as_ref()?;
    if annotations.get(EXTENDED_RESOURCE_CLAIM_ANNOTATION)? != "true" {
        return None;
    }
    let mut owners = claim.metadata.owner_references.iter().flatten();
    let owner = owners.find(|owner| owner.controller == Some(true))?;
    Some(&owner.uid)
}

impl DeviceState {
    /// A claim, as it is assumed to be.
    pub fn claim(&self, namespace: &str, name: &str) -> Option<&Arc<ResourceClaim>> {
        self.claims.get(&key(namespace, name))?.visible()
    }

    /// The claim made for the extended resources of a pod, if there is one.
    pub fn extended_claim(&self, pod_name: &str, pod_uid: &str) -> Option<&Arc<ResourceClaim>> {
        let of_pod = |claim: &&Arc<ResourceClaim>| {
            let mut owners = claim.metadata.owner_references.iter().flatten();
            owners.any(|o| o.controller == Some(true) && o.uid == pod_uid && o.name == pod_name)
        };
        let keys = self.extended.get(pod_uid)?;
        keys.iter()
            .filter_map(|key| self.claims.get(key)?.visible())
            .find(of_pod)
    }

    /// Is an allocation of the claim with this UID under way?
    pub fn is_pending(&self, uid: &str) -> bool {
        self.pending.contains_key(uid)
    }

    /// What is taken now.
    pub fn allocated(&self) -> Arc<AllocatedState> {
        Arc::clone(&self.allocated)
    }

    /// The classes.
    pub fn classes(&self) -> &Arc<Classes> {
        &self.classes
    }

    /// Changes with any class.
    pub fn classes_revision(&self) -> u64 {
        self.classes_revision
    }

    /// Does some class stand for this resource?
    pub fn is_extended_resource(&self, resource: &str) -> bool {
        self.classes.of_resource(resource).is_some()
    }

    /// Counts the allocation of a claim that holds now: what is visible, or else what is under way.
    fn settle(&mut self, uid: &str, visible: Option<&Arc<ResourceClaim>>) {
        let visible = visible.filter(|claim| self::uid(claim) == uid);
        let of_visible = visible.and_then(|claim| allocation(claim));
        let pending = self.pending.get(uid).and_then(|claim| allocation(claim));
        let now = of_visible.or(pending).cloned();
        let before = self.counted.get(uid);
        if before == now.as_ref() {
            return;
        }
        let consumable = self.features.consumable_capacity;
        let state = Arc::make_mut(&mut self.allocated);
        if let Some(before) = before {
            state.remove(before, consumable);
        }
        match now {
            Some(now) => {
                state.add(&now, consumable);
                self.counted.insert(uid.to_owned(), now);
            }
            None => _ = self.counted.remove(uid),
        }
    }

    fn set_claim(&mut self, key: &str, change: impl FnOnce(&mut ClaimEntry)) {
        let entry = self.claims.entry(key.to_owned()).or_default();
        let before = entry.visible().cloned();
        change(entry);
        let after = entry.visible().cloned();
        if after.is_none() {
            self.claims.remove(key);
        }
        if let Some(before) = &before {
            if let Some(owner) = extended_owner(before)
                && let Some(keys) = self.extended.get_mut(owner)
            {
                keys.remove(key);
                if keys.is_empty() {
                    self.extended.remove(owner);
                }
            }
            self.settle(uid(before), after.as_ref());
        }
        if let Some(after) = &after {
            if let Some(owner) = extended_owner(after) {
                let keys = self.extended.entry(owner.to_owned()).or_default();
                keys.insert(key.to_owned());
            }
            self.settle(uid(after), Some(after));
        }
    }

    /// The claim before the change, for the queue.
    fn apply_claim(
        &mut self,
        key: &str,
        old: Option<Arc<ResourceClaim>>,
        new: Option<&Arc<ResourceClaim>>,
    ) -> Option<Arc<ResourceClaim>> {
        let before = self
            .claims
            .get(key)
            .and_then(|entry| entry.visible().cloned());
        self.set_claim(key, |entry| {
            let newer = |assumed: &Arc<ResourceClaim>, new: &ResourceClaim| {
                uid(assumed) == uid(new) && version(assumed) > version(new)
            };
            entry.assumed = entry
                .assumed
                .take()
                .filter(|assumed| new.is_some_and(|new| newer(assumed, new)));
            entry.stored = new.cloned();
        });
        // An allocation that came and went unseen has taken devices all the same.
        let unseen = before
            .filter(|before| is_allocated(before) && !new.is_some_and(|new| is_allocated(new)));
        unseen.or(old)
    }

    /// Makes the slice ready; the one before and the one now.
    fn ready(&mut self, name: &str) -> (Option<Arc<Slice>>, Option<Arc<Slice>>) {
        let rules = self.features.device_taint_rules.then_some(&self.rules);
        let patched = self.slices.get(name).map(|slice| {
            let rules = rules.into_iter().flat_map(BTreeMap::values);
            Arc::new(Slice::new(apply_rules(slice, rules)))
        });
        self.inventory = None;
        let before = match &patched {
            Some(slice) => self.ready.insert(name.to_owned(), Arc::clone(slice)),
            None => self.ready.remove(name),
        };
        (before, patched)
    }

    fn slice_event(&mut self, name: &str) -> Option<DeviceEvent> {
        let (old, new) = self.ready(name);
        let action = match (&old, &new) {
            (None, None) => return None,
            (None, Some(_)) => ActionType::ADD,
            (Some(_), Some(_)) => ActionType::UPDATE,
            (Some(_), None) => ActionType::DELETE,
        };
        let object = |slice: Arc<Slice>| EventObject::ResourceSlice(Arc::clone(slice.object()));
        Some(DeviceEvent {
            event: ClusterEvent::new(EventResource::ResourceSlice, action),
            old: old.map(object),
            new: new.map(object),
        })
    }

    fn apply_rule(
        &mut self,
        old: Option<&Arc<DeviceTaintRule>>,
        new: Option<&Arc<DeviceTaintRule>>,
    ) -> Vec<DeviceEvent> {
        let Some(rule) = new.or(old) else {
            return Vec::new();
        };
        let rule_name = name(&rule.metadata).to_owned();
        let known = match new {
            Some(new) => self.rules.insert(rule_name, Arc::clone(new)),
            None => self.rules.remove(&rule_name),
        };
        if !self.features.device_taint_rules {
            return Vec::new();
        }
        let rules = [known.as_ref(), old, new];
        let concerns = |slice: &ResourceSlice| {
            rules
                .iter()
                .flatten()
                .any(|rule| rule_concerns(rule, slice))
        };
        let slices = self.slices.iter().filter(|(_, slice)| concerns(slice));
        let names: Vec<String> = slices.map(|(name, _)| name.clone()).collect();
        names
            .iter()
            .filter_map(|name| self.slice_event(name))
            .collect()
    }

    fn apply_class(&mut self, name: &str, new: Option<&Arc<DeviceClass>>) {
        let others = self
            .classes
            .iter()
            .filter(|class| self::name(&class.metadata) != name);
        self.classes = Arc::new(Classes::new(others.chain(new).cloned()));
        self.classes_revision += 1;
    }
}

/// See the module.
#[derive(Default)]
pub struct DeviceCache {
    features: Features,
    state: RwLock<DeviceState>,
    selectors: Arc<Selectors>,
    watches: Watches,
}

impl DeviceCache {
    /// An empty cache, with these gates.
    pub fn new(features: Features) -> Self {
        let state = DeviceState {
            features,
            ..DeviceState::default()
        };
        DeviceCache {
            features,
            state: RwLock::new(state),
            ..DeviceCache::default()
        }
    }

    /// The gates.
    pub fn features(&self) -> Features {
        self.features
    }

    /// The compiled expressions of classes and claims.
    pub fn selectors(&self) -> &Arc<Selectors> {
        &self.selectors
    }

    /// What is known, for as long as the guard is kept: not across a wait.
    pub fn read(&self) -> RwLockReadGuard<'_, DeviceState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, DeviceState> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// All devices.
    pub fn inventory(&self) -> Arc<Inventory> {
        if let Some(known) = &self.read().inventory {
            return Arc::clone(known);
        }
        let mut state = self.write();
        if let Some(known) = &state.inventory {
            return Arc::clone(known);
        }
        let made = Arc::new(Inventory::new(state.ready.values().cloned()));
        state.inventory = Some(Arc::clone(&made));
        made
    }

    /// Takes in a change of an object (`None`: it was not there, it is gone); what the queue is to be told. Objects of other kinds are none of its business.
    pub fn apply(&self, old: Option<&EventObject>, new: Option<&EventObject>) -> Vec<DeviceEvent> {
        let Some(object) = new.or(old) else {
            return Vec::new();
        };
        let action = match (old, new) {
            (None, _) => ActionType::ADD,
            (_, None) => ActionType::DELETE,
            _ => ActionType::UPDATE,
        };
        let mut state = self.write();
        match object {
            EventObject::ResourceClaim(object) => {
                let key = claim_key(object);
                let told = old.and_then(EventObject::resource_claim).cloned();
                let before =
                    state.apply_claim(&key, told, new.and_then(EventObject::resource_claim));
                drop(state);
                self.watches.notify([&key]);
                vec![DeviceEvent {
                    event: ClusterEvent::new(EventResource::ResourceClaim, action),
                    old: before
                        .filter(|_| old.is_some() || new.is_none())
                        .map(EventObject::ResourceClaim),
                    new: new.cloned(),
                }]
            }
            EventObject::ResourceSlice(object) => {
                let name = name(&object.metadata).to_owned();
                match new.and_then(EventObject::resource_slice) {
                    Some(new) => _ = state.slices.insert(name.clone(), Arc::clone(new)),
                    None => _ = state.slices.remove(&name),
                }
                state.slice_event(&name).into_iter().collect()
            }
            EventObject::DeviceTaintRule(_) => state.apply_rule(
                old.and_then(EventObject::device_taint_rule),
                new.and_then(EventObject::device_taint_rule),
            ),
            EventObject::DeviceClass(object) => {
                let name = name(&object.metadata).to_owned();
                state.apply_class(&name, new.and_then(EventObject::device_class));
                vec![DeviceEvent {
                    event: ClusterEvent::new(EventResource::DeviceClass, action),
                    old: old.cloned(),
                    new: new.cloned(),
                }]
            }
            _ => Vec::new(),
        }
    }

    /// An allocation of `claim` (with that in its status) is under way, under this UID.
    ///
    /// # Errors
    /// When one is already, or the claim has one, or is not there any more (unless `is_new`). A retry helps.
    pub fn begin_allocation(
        &self,
        uid: &str,
        claim: Arc<ResourceClaim>,
        is_new: bool,
    ) -> Result<(), OutOfSyncError> {
        let mut state = self.write();
        let key = claim_key(&claim);
        let visible = state
            .claims
            .get(&key)
            .and_then(|entry| entry.visible().cloned());
        let free = visible
            .as_ref()
            .is_some_and(|v| self::uid(v) == uid && !is_allocated(v));
        if state.pending.contains_key(uid) || !(free || is_new) {
            return Err(OutOfSyncError { name: key });
        }
        state.pending.insert(uid.to_owned(), claim);
        state.settle(uid, visible.as_ref());
        Ok(())
    }

    /// The allocation is not under way any more: it is written, or given up. True if one was.
    pub fn end_allocation(&self, uid: &str) -> bool {
        let mut state = self.write();
        let Some(claim) = state.pending.remove(uid) else {
            return false;
        };
        let visible = state.claims.get(&claim_key(&claim));
        let visible = visible.and_then(|entry| entry.visible().cloned());
        state.settle(uid, visible.as_ref());
        true
    }

    /// Assumes a claim to be as it was just written, until the API server tells of a version as new.
    ///
    /// # Errors
    /// When another claim has its name by now, or it is gone. A claim that nobody has told of yet is taken in if `is_new`.
    pub fn assume(&self, claim: Arc<ResourceClaim>, is_new: bool) -> Result<(), OutOfSyncError> {
        let key = claim_key(&claim);
        let mut state = self.write();
        let stored = state
            .claims
            .get(&key)
            .and_then(|entry| entry.stored.as_ref());
        match stored {
            Some(stored) if self::uid(stored) != self::uid(&claim) => {
                return Err(OutOfSyncError { name: key });
            }
            None if !is_new => return Err(OutOfSyncError { name: key }),
            Some(stored) if version(stored) >= version(&claim) => return Ok(()),
            _ => {}
        }
        state.set_claim(&key, |entry| entry.assumed = Some(claim));
        Ok(())
    }

    /// Forgets what was assumed of a claim.
    pub fn restore(&self, key: &str) {
        let mut state = self.write();
        if state.claims.contains_key(key) {
            state.set_claim(key, |entry| entry.assumed = None);
        }
    }

    /// Watches claims, by key, for change.
    pub fn watch(&self, claims: Vec<String>) -> Watch<'_> {
        self.watches.watch(claims)
    }
}
