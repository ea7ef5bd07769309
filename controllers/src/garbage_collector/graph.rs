//! Who owns whom: pure, no client, no clock. A change goes in, [`Effects`] come out.
//!
//! A node is *virtual* while only a reference speaks of it; its coordinates are then those that the reference claims, and
//! may be wrong (another namespace, another kind) though the UID is right. Dependents that disagree are judged one by one.
//!
//! **Invariant:** a node's `dependents` are exactly the nodes whose `owners` name its UID.
//!
//! Every object of a cluster has a node, so names are held once: a UID by its node and all its owners, the references by all that one
//! owner has made.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::{FINALIZER_DELETE_DEPENDENTS, FINALIZER_ORPHAN_DEPENDENTS};

/// Which object, by all its coordinates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    pub kind: Arc<str>,
    pub api_version: Arc<str>,
    /// Empty for cluster objects.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub uid: Arc<str>,
}

impl Identity {
    /// The owner that `reference`, in an object of `namespace`, claims.
    pub fn of_owner(reference: &OwnerReference, namespace: &str) -> Self {
        Self {
            kind: reference.kind.as_str().into(),
            api_version: reference.api_version.as_str().into(),
            namespace: namespace.into(),
            name: reference.name.as_str().into(),
            uid: reference.uid.as_str().into(),
        }
    }

    /// Whether `reference` means this object, namespaces aside.
    fn matches(&self, reference: &OwnerReference) -> bool {
        *self.uid == *reference.uid
            && *self.name == *reference.name
            && *self.kind == *reference.kind
            && *self.api_version == *reference.api_version
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            api_version,
            kind,
            namespace,
            name,
            uid,
        } = self;
        write!(
            f,
            "[{api_version}/{kind}, namespace: {namespace}, name: {name}, uid: {uid}]"
        )
    }
}

/// What an object's metadata says about its deletion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeletionState {
    pub being_deleted: bool,
    pub delete_dependents: bool,
    pub orphan_dependents: bool,
}

impl DeletionState {
    pub fn of(meta: &ObjectMeta) -> Self {
        let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|f| f == finalizer);
        Self {
            being_deleted: meta.deletion_timestamp.is_some(),
            delete_dependents: has(FINALIZER_DELETE_DEPENDENTS),
            orphan_dependents: has(FINALIZER_ORPHAN_DEPENDENTS),
        }
    }

    fn waits_for_deletion(self) -> bool {
        self.being_deleted && self.delete_dependents
    }

    fn waits_for_orphaning(self) -> bool {
        self.being_deleted && self.orphan_dependents
    }
}

/// What a change leads to, by UID. Repetitions are harmless: queues drop them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Attempt to delete.
    pub delete: Vec<String>,
    /// The same, with backoff.
    pub delete_later: Vec<String>,
    /// Attempt to orphan.
    pub orphan: Vec<String>,
    /// These owners do not exist.
    pub absent: Vec<Identity>,
    /// The dependent names an owner that is in another namespace: tell its user.
    pub invalid_namespace: Vec<(Identity, Identity)>,
}

/// One object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    pub identity: Identity,
    /// Shared by dependents with the same owners; `None`: it has none.
    owners: Option<Arc<[OwnerReference]>>,
    pub dependents: BTreeSet<Arc<str>>,
    /// What was seen last; 0: not a number, or nobody saw it.
    version: u64,
    /// What its metadata said of its deletion then.
    state: DeletionState,
    pub being_deleted: bool,
    /// It waits for its dependents to be deleted.
    pub deleting_dependents: bool,
    /// Nobody saw it, a reference names it.
    pub is_virtual: bool,
    /// How often it was looked for in vain.
    tries: u32,
}

impl Node {
    /// Its references.
    pub fn owners(&self) -> &[OwnerReference] {
        self.owners.as_deref().unwrap_or_default()
    }

    /// The metadata it had when it was seen last, as far as a judgement needs it; `None`: the server has to be asked.
    pub fn seen(&self) -> Option<ObjectMeta> {
        let finalizer = |has: bool, name: &str| has.then(|| name.to_owned());
        let finalizers = [
            finalizer(self.state.delete_dependents, FINALIZER_DELETE_DEPENDENTS),
            finalizer(self.state.orphan_dependents, FINALIZER_ORPHAN_DEPENDENTS),
        ];
        (!self.is_virtual && self.version != 0).then(|| ObjectMeta {
            name: Some(self.identity.name.to_string()),
            uid: Some(self.identity.uid.to_string()),
            resource_version: Some(self.version.to_string()),
            owner_references: self.owners.as_ref().map(|owners| owners.to_vec()),
            finalizers: Some(finalizers.into_iter().flatten().collect()),
            ..ObjectMeta::default()
        })
    }
}

/// All objects, by UID.
#[derive(Debug, Default)]
pub struct Graph {
    nodes: HashMap<Arc<str>, Node>,
}

impl Graph {
    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The dependents of a node, as they are now.
    pub fn dependents(&self, uid: &str) -> Vec<Identity> {
        self.dependent_nodes(uid)
            .map(|n| n.identity.clone())
            .collect()
    }

    /// Whether a dependent itself waits for its dependents: perhaps a circle.
    pub fn has_waiting_dependent(&self, uid: &str) -> bool {
        self.dependent_nodes(uid).any(|n| n.deleting_dependents)
    }

    /// UIDs of the dependents that hold the owner's foreground deletion up; the second value says which of them are not
    /// being deleted in the foreground themselves.
    pub fn blocking_dependents(&self, uid: &str) -> Vec<(String, bool)> {
        let blocks = |node: &&Node| {
            node.owners()
                .iter()
                .any(|o| o.uid == uid && o.block_owner_deletion == Some(true))
        };
        self.dependent_nodes(uid)
            .filter(blocks)
            .map(|n| (n.identity.uid.to_string(), !n.deleting_dependents))
            .collect()
    }

    /// How long to wait before looking for a virtual node again: doubles each time, from 5 ms to 1000 s.
    pub fn next_look(&mut self, uid: &str) -> Option<Duration> {
        let node = self.nodes.get_mut(uid).filter(|n| n.is_virtual)?;
        node.tries += 1;
        let millis = 5u64.saturating_mul(1 << (node.tries - 1).min(20));
        Some(Duration::from_millis(millis).min(Duration::from_secs(1000)))
    }

    /// Which version of an object was seen last.
    pub fn note_version(&mut self, uid: &str, version: Option<&str>) {
        if let Some(node) = self.nodes.get_mut(uid) {
            node.version = version.and_then(|v| v.parse().ok()).unwrap_or(0);
        }
    }

    /// An object was added or changed; `old`: its state before, `None` if it was not known.
    pub fn observe(
        &mut self,
        identity: Identity,
        owners: &[OwnerReference],
        old: Option<DeletionState>,
        new: DeletionState,
    ) -> Effects {
        let mut effects = Effects::default();
        let uid = identity.uid.clone();
        if self.nodes.contains_key(&uid) {
            self.confirm(&identity, &mut effects);
            self.update_owners(&uid, owners, &mut effects);
            if let Some(node) = self.nodes.get_mut(&uid) {
                node.being_deleted |= new.being_deleted;
                node.state = new;
            }
        } else {
            let node = Node {
                identity,
                owners: self.shared(owners),
                state: new,
                being_deleted: new.being_deleted,
                deleting_dependents: new.waits_for_deletion(),
                ..Node::default()
            };
            self.nodes.insert(uid.clone(), node);
            self.add_dependent_to_owners(&uid, owners, &mut effects);
        }
        self.process_transitions(&uid, old.unwrap_or_default(), new, &mut effects);
        effects
    }

    /// The references as a sibling has them, so that they are held once.
    fn shared(&self, owners: &[OwnerReference]) -> Option<Arc<[OwnerReference]>> {
        let first = self.nodes.get(owners.first()?.uid.as_str());
        let sibling = first.and_then(|owner| self.nodes.get(owner.dependents.first()?));
        let held = sibling.and_then(|s| s.owners.clone());
        held.filter(|held| **held == *owners)
            .or_else(|| Some(owners.into()))
    }

    /// An object is gone.
    pub fn delete(&mut self, identity: &Identity) -> Effects {
        let mut effects = Effects::default();
        if self.nodes.contains_key(&identity.uid) {
            self.remove(identity, &mut effects);
        }
        effects
    }

    /// The API server says that there is no object with these coordinates.
    pub fn delete_virtually(&mut self, identity: &Identity) -> Effects {
        let mut effects = Effects::default();
        let Some(node) = self.nodes.get(&identity.uid) else {
            return effects;
        };
        let (matching, nonmatching) = self.partition_dependents(&identity.uid, identity);
        if node.is_virtual && !nonmatching.is_empty() {
            self.absent_for(identity, &matching, &mut effects);
            // Others claim other coordinates for this UID: look there.
            if node.identity == *identity
                && let Some(alternate) = self.alternate_owner_identity(&nonmatching, identity)
                && let Some(node) = self.nodes.get_mut(&identity.uid)
            {
                node.identity = alternate;
                effects.delete_later.push(identity.uid.to_string());
            }
        } else if !node.is_virtual && node.identity != *identity {
            // It exists, elsewhere: only those that looked here lack their owner.
            self.absent_for(identity, &matching, &mut effects);
        } else {
            self.remove(identity, &mut effects);
        }
        effects
    }

    fn absent_for(&self, identity: &Identity, matching: &[String], effects: &mut Effects) {
        if !matching.is_empty() {
            effects.absent.push(identity.clone());
            effects.delete.extend_from_slice(matching);
        }
    }

    fn dependent_nodes(&self, uid: &str) -> impl Iterator<Item = &Node> {
        self.nodes
            .get(uid)
            .into_iter()
            .flat_map(|n| &n.dependents)
            .filter_map(|uid| self.nodes.get(uid))
    }

    /// What was virtual is real now, with coordinates that may differ from what references claimed.
    fn confirm(&mut self, observed: &Identity, effects: &mut Effects) {
        let Some(node) = self.nodes.get(&observed.uid) else {
            return;
        };
        if !node.is_virtual {
            return;
        }
        if node.identity != *observed {
            for dependent in self.partition_dependents(&observed.uid, observed).1 {
                let identity = self.nodes[dependent.as_str()].identity.clone();
                if !observed.namespace.is_empty() && identity.namespace != observed.namespace {
                    self.report_invalid_namespace(&identity, &observed.uid, effects);
                }
                effects.delete.push(dependent);
            }
        }
        if let Some(node) = self.nodes.get_mut(&observed.uid) {
            node.identity = observed.clone();
            node.is_virtual = false;
        }
    }

    fn update_owners(&mut self, uid: &str, owners: &[OwnerReference], effects: &mut Effects) {
        if self
            .nodes
            .get(uid)
            .is_none_or(|node| node.owners() == owners)
        {
            return;
        }
        let now = self.shared(owners);
        let Some(node) = self.nodes.get_mut(uid) else {
            return;
        };
        let old = std::mem::replace(&mut node.owners, now);
        let old = old.as_deref().unwrap_or_default();
        let find = |list: &[OwnerReference], uid: &str| list.iter().find(|o| o.uid == uid).cloned();
        let blocks = |reference: &OwnerReference| reference.block_owner_deletion == Some(true);
        let added: Vec<_> = owners
            .iter()
            .filter(|o| find(old, &o.uid).is_none())
            .cloned()
            .collect();
        for reference in old {
            let now = find(owners, &reference.uid);
            // It does not hold its owner up any more.
            if blocks(reference)
                && !now.as_ref().is_some_and(blocks)
                && self.nodes.contains_key(reference.uid.as_str())
            {
                effects.delete.push(reference.uid.clone());
            }
            if now.is_none()
                && let Some(owner) = self.nodes.get_mut(reference.uid.as_str())
            {
                owner.dependents.remove(uid);
            }
        }
        self.add_dependent_to_owners(uid, &added, effects);
    }

    fn add_dependent_to_owners(
        &mut self,
        uid: &str,
        owners: &[OwnerReference],
        effects: &mut Effects,
    ) {
        let dependent = self.nodes[uid].identity.clone();
        let mut doubtful = false;
        for reference in owners {
            let Some(owner) = self.nodes.get_mut(reference.uid.as_str()) else {
                let node = Node {
                    identity: Identity::of_owner(reference, &dependent.namespace),
                    dependents: BTreeSet::from([dependent.uid.clone()]),
                    is_virtual: true,
                    ..Node::default()
                };
                self.nodes.insert(node.identity.uid.clone(), node);
                // Perhaps it does not exist.
                effects.delete.push(reference.uid.clone());
                continue;
            };
            owner.dependents.insert(dependent.uid.clone());
            let (owner, is_virtual) = (owner.identity.clone(), owner.is_virtual);
            let namespaced = !owner.namespace.is_empty();
            if namespaced && owner.namespace != dependent.namespace {
                if !is_virtual {
                    self.report_invalid_namespace(&dependent, &reference.uid, effects);
                }
                doubtful = true;
            } else if !owner.matches(reference)
                || (!namespaced && !dependent.namespace.is_empty() && is_virtual)
            {
                doubtful = true;
            }
        }
        if doubtful {
            effects.delete.push(uid.to_owned());
        }
    }

    fn report_invalid_namespace(
        &self,
        dependent: &Identity,
        owner_uid: &str,
        effects: &mut Effects,
    ) {
        let owners = self
            .nodes
            .get(&dependent.uid)
            .map(Node::owners)
            .unwrap_or_default();
        if let Some(reference) = owners.iter().find(|o| o.uid == owner_uid) {
            let claimed = Identity::of_owner(reference, &dependent.namespace);
            effects.invalid_namespace.push((dependent.clone(), claimed));
        }
    }

    fn process_transitions(
        &mut self,
        uid: &str,
        old: DeletionState,
        new: DeletionState,
        effects: &mut Effects,
    ) {
        if new.waits_for_orphaning() && !old.waits_for_orphaning() {
            effects.orphan.push(uid.to_owned());
        } else if new.waits_for_deletion()
            && !old.waits_for_deletion()
            && let Some(node) = self.nodes.get_mut(uid)
        {
            node.deleting_dependents = true;
            let dependents = node.dependents.iter();
            effects.delete.extend(dependents.map(ToString::to_string));
            effects.delete.push(uid.to_owned());
        }
    }

    fn remove(&mut self, identity: &Identity, effects: &mut Effects) {
        let Some(node) = self.nodes.remove(&identity.uid) else {
            return;
        };
        for owner in node.owners() {
            if let Some(owner) = self.nodes.get_mut(owner.uid.as_str()) {
                owner.dependents.remove(&identity.uid);
                // Perhaps it waited for this one alone.
                if owner.deleting_dependents {
                    effects.delete.push(owner.identity.uid.to_string());
                }
            }
        }
        if !node.dependents.is_empty() {
            effects.absent.push(identity.clone());
            let dependents = node.dependents.iter();
            effects.delete.extend(dependents.map(ToString::to_string));
        }
    }

    /// The dependents whose reference means `owner`, and those whose reference has its UID and means something else.
    fn partition_dependents(&self, uid: &str, owner: &Identity) -> (Vec<String>, Vec<String>) {
        let (mut matching, mut nonmatching) = (Vec::new(), Vec::new());
        for node in self.dependent_nodes(uid) {
            let elsewhere =
                !owner.namespace.is_empty() && owner.namespace != node.identity.namespace;
            let references: Vec<_> = node
                .owners()
                .iter()
                .filter(|o| *o.uid == *owner.uid)
                .collect();
            if !elsewhere && references.iter().any(|r| owner.matches(r)) {
                matching.push(node.identity.uid.to_string());
            }
            if elsewhere || references.iter().any(|r| !owner.matches(r)) {
                nonmatching.push(node.identity.uid.to_string());
            }
        }
        (matching, nonmatching)
    }

    /// The next coordinates that some dependent claims for this UID, in a fixed order and round and round.
    fn alternate_owner_identity(
        &self,
        dependents: &[String],
        absent: &Identity,
    ) -> Option<Identity> {
        let is_cluster_scoped = absent.namespace.is_empty();
        let mut alternates = BTreeSet::new();
        for node in dependents
            .iter()
            .filter_map(|uid| self.nodes.get(uid.as_str()))
        {
            for reference in node.owners().iter().filter(|o| *o.uid == *absent.uid) {
                if absent.matches(reference)
                    && (is_cluster_scoped || absent.namespace == node.identity.namespace)
                {
                    continue;
                }
                let mut alternate = Identity::of_owner(reference, &node.identity.namespace);
                if is_cluster_scoped
                    && alternate.api_version == absent.api_version
                    && alternate.kind == absent.kind
                {
                    alternate.namespace = "".into();
                }
                alternates.insert(alternate);
            }
        }
        alternates.remove(absent);
        let following = alternates.range(absent.clone()..).next().cloned();
        following.or_else(|| alternates.first().cloned())
    }
}
