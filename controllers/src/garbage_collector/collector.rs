//! The shell around the graph: reads the API server, decides, deletes, patches.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use component_base::events::EventType;
use controller_runtime::executor::{Executor, PatchKind, Target};
use controller_runtime::transport::Verb;
use controller_runtime::{ApiError, ObjectKey, Queues, WorkQueue};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use super::absent_owners::AbsentOwners;
use super::decide::{References, Verdict, decide};
use super::graph::{DeletionState, Effects, Graph, Identity, Node};
use super::{FINALIZER_DELETE_DEPENDENTS, FINALIZER_ORPHAN_DEPENDENTS};
use crate::discovery::{ApiResources, Discovered};

/// Tries of a patch that others contend for.
const MAX_CONFLICTS: usize = 5;
/// Dependents released at the same time.
const PARALLEL: usize = 16;

/// Why an attempt failed; a retry may help.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Discovery does not know the kind, or not yet.
    #[error("unable to get REST mapping for {api_version}/{kind}.")]
    RestMapping { api_version: String, kind: String },
    #[error("failed to orphan dependents of owner {owner}, got errors: {}", errors.join(", "))]
    Orphan {
        owner: Identity,
        errors: Vec<String>,
    },
}

/// What an attempt at one item came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    Done,
    /// It does not exist; the graph knows now.
    Absent,
}

/// The garbage collector's state and verbs. Its queues hold UIDs.
pub struct Collector {
    graph: Mutex<Graph>,
    absent: Mutex<AbsentOwners>,
    kinds: RwLock<ApiResources>,
    executor: Executor,
    pub attempt_to_delete: WorkQueue<String>,
    pub attempt_to_orphan: WorkQueue<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Collector {
    pub fn new(executor: Executor, queues: &Queues) -> Self {
        Self {
            graph: Mutex::default(),
            absent: Mutex::default(),
            kinds: RwLock::default(),
            executor,
            attempt_to_delete: queues.queue("garbage_collector_attempt_to_delete"),
            attempt_to_orphan: queues.queue("garbage_collector_attempt_to_orphan"),
        }
    }

    /// The kinds that references may name.
    pub fn set_kinds(&self, kinds: ApiResources) {
        *self.kinds.write().unwrap_or_else(PoisonError::into_inner) = kinds;
    }

    /// An object was added or changed.
    pub fn observe(&self, identity: Identity, old: Option<&ObjectMeta>, new: &ObjectMeta) {
        let owners = new.owner_references.as_deref().unwrap_or_default();
        let uid = identity.uid.clone();
        let effects = {
            let mut graph = lock(&self.graph);
            let before = old.map(DeletionState::of);
            let effects = graph.observe(identity, owners, before, DeletionState::of(new));
            graph.note_version(&uid, new.resource_version.as_deref());
            effects
        };
        self.apply(effects);
    }

    /// An object changed in nothing that the graph is made of.
    pub fn note_version(&self, new: &ObjectMeta) {
        let uid = new.uid.as_deref().unwrap_or_default();
        lock(&self.graph).note_version(uid, new.resource_version.as_deref());
    }

    /// An object is gone.
    pub fn deleted(&self, identity: &Identity) {
        let effects = lock(&self.graph).delete(identity);
        self.apply(effects);
    }

    fn absent_by_api(&self, identity: &Identity) {
        let effects = lock(&self.graph).delete_virtually(identity);
        self.apply(effects);
    }

    fn apply(&self, effects: Effects) {
        if !effects.absent.is_empty() {
            let mut absent = lock(&self.absent);
            effects
                .absent
                .into_iter()
                .for_each(|owner| absent.add(owner));
        }
        effects
            .delete
            .into_iter()
            .for_each(|uid| self.attempt_to_delete.add(uid));
        effects
            .delete_later
            .into_iter()
            .for_each(|uid| self.attempt_to_delete.add_rate_limited(uid));
        effects
            .orphan
            .into_iter()
            .for_each(|uid| self.attempt_to_orphan.add(uid));
        for (dependent, owner) in effects.invalid_namespace {
            let message = format!(
                "ownerRef {owner} does not exist in namespace {:?}",
                dependent.namespace
            );
            let reference = ObjectReference {
                api_version: Some(dependent.api_version.to_string()),
                kind: Some(dependent.kind.to_string()),
                namespace: Some(dependent.namespace.to_string()),
                name: Some(dependent.name.to_string()),
                uid: Some(dependent.uid.to_string()),
                ..ObjectReference::default()
            };
            self.executor.recorder().event(
                &reference,
                EventType::Warning,
                "OwnerRefInvalidNamespace",
                "",
                message,
            );
        }
    }

    /// One item of the queue. `Some`: look again then.
    ///
    /// # Errors
    /// A retry may help.
    pub async fn delete_attempt(&self, uid: &str) -> Result<Option<Duration>, CollectError> {
        let Some(node) = lock(&self.graph).get(uid).cloned() else {
            return Ok(None);
        };
        match self.attempt_to_delete_item(&node).await? {
            Attempt::Absent => Ok(None),
            // It may have come and gone while a watch was down: then no event will ever tell.
            Attempt::Done => Ok(lock(&self.graph).next_look(uid)),
        }
    }

    async fn attempt_to_delete_item(&self, node: &Node) -> Result<Attempt, CollectError> {
        // On its way; its dependents come after it.
        if node.being_deleted && !node.deleting_dependents {
            return Ok(Attempt::Done);
        }
        let Some(resource) = self.mapping(&node.identity)? else {
            return Ok(Attempt::Done);
        };
        // DIFFERS: upstream asks for each object before it is judged. What the graph saw is judged here first: if it is to be deleted,
        // the deletion is for that version alone, so it says no where the object has changed; anything else is decided anew below.
        if !node.deleting_dependents
            && let Some(seen) = node.seen()
            && let verdict = self.judge(node, &seen).await?
            && matches!(verdict, Verdict::Delete { .. })
        {
            return self.act(node, &resource, &seen, verdict).await;
        }
        let latest = self.get_object(&resource, &node.identity).await?;
        let Some(latest) = latest.filter(|meta| meta.uid.as_deref() == Some(&*node.identity.uid))
        else {
            self.absent_by_api(&node.identity);
            return Ok(Attempt::Absent);
        };
        if node.deleting_dependents {
            self.process_deleting_dependents_item(&resource, node)
                .await?;
            return Ok(Attempt::Done);
        }
        let verdict = self.judge(node, &latest).await?;
        self.act(node, &resource, &latest, verdict).await
    }

    /// What is to become of the node whose object is as `latest` says.
    async fn judge(&self, node: &Node, latest: &ObjectMeta) -> Result<Verdict, CollectError> {
        let owners = latest.owner_references.as_deref().unwrap_or_default();
        if owners.is_empty() {
            return Ok(Verdict::Keep);
        }
        let Some(references) = self.classify_references(&node.identity, owners).await? else {
            return Ok(Verdict::Keep);
        };
        let (has_dependents, has_waiting) = {
            let graph = lock(&self.graph);
            let uid = &node.identity.uid;
            (
                graph.get(uid).is_some_and(|n| !n.dependents.is_empty()),
                graph.has_waiting_dependent(uid),
            )
        };
        Ok(decide(&references, has_dependents, has_waiting, latest))
    }

    /// Carries a verdict out.
    async fn act(
        &self,
        node: &Node,
        resource: &Discovered,
        latest: &ObjectMeta,
        verdict: Verdict,
    ) -> Result<Attempt, CollectError> {
        match verdict {
            Verdict::Keep => Ok(Attempt::Done),
            Verdict::RemoveReferences(uids) => {
                tracing::debug!(item = %node.identity, ?uids, "remove dangling references and waiting references for item");
                self.remove_owner_references(resource, &node.identity, &uids)
                    .await
                    .map(|()| Attempt::Done)
            }
            Verdict::Delete {
                policy,
                unblock_owners,
            } => {
                if unblock_owners {
                    self.unblock_owner_references(resource, &node.identity)
                        .await?;
                }
                tracing::info!(item = %node.identity, policy, "Deleting item");
                if self
                    .delete_object(resource, &node.identity, latest, policy)
                    .await?
                {
                    return Ok(Attempt::Done);
                }
                self.absent_by_api(&node.identity);
                Ok(Attempt::Absent)
            }
        }
    }

    /// The resource of an item's kind; `None`: its coordinates can never be right, a cluster object named a namespaced owner.
    fn mapping(&self, identity: &Identity) -> Result<Option<Discovered>, CollectError> {
        let resource = self.resource(&identity.api_version, &identity.kind)?;
        Ok(Some(resource).filter(|r| !r.namespaced || !identity.namespace.is_empty()))
    }

    fn resource(&self, api_version: &str, kind: &str) -> Result<Discovered, CollectError> {
        let kinds = self.kinds.read().unwrap_or_else(PoisonError::into_inner);
        kinds
            .of_kind(api_version, kind)
            .cloned()
            .ok_or_else(|| CollectError::RestMapping {
                api_version: api_version.to_owned(),
                kind: kind.to_owned(),
            })
    }

    /// Asks the API server about each owner. `None`: a cluster object names a namespaced owner, which no retry cures.
    async fn classify_references(
        &self,
        item: &Identity,
        owners: &[OwnerReference],
    ) -> Result<Option<References>, CollectError> {
        let mut references = References::default();
        for reference in owners {
            if self.is_known_absent(reference, item) {
                references.dangling.push(reference.clone());
                continue;
            }
            let resource = self.resource(&reference.api_version, &reference.kind)?;
            if resource.namespaced && item.namespace.is_empty() {
                tracing::info!(%item, owner = %reference.uid, "item is cluster-scoped, but refers to a namespaced owner");
                return Ok(None);
            }
            let namespace = if resource.namespaced {
                &*item.namespace
            } else {
                ""
            };
            let owner = Identity::of_owner(reference, namespace);
            match self.get_object(&resource, &owner).await? {
                Some(meta) if meta.uid.as_ref() == Some(&reference.uid) => {
                    let state = DeletionState::of(&meta);
                    let waits = state.being_deleted && state.delete_dependents;
                    if waits {
                        references.waiting.push(reference.clone())
                    } else {
                        references.solid.push(reference.clone())
                    }
                }
                _ => {
                    lock(&self.absent).add(owner);
                    references.dangling.push(reference.clone());
                }
            }
        }
        Ok(Some(references))
    }

    fn is_known_absent(&self, reference: &OwnerReference, item: &Identity) -> bool {
        let absent = lock(&self.absent);
        absent.has(&Identity::of_owner(reference, ""))
            || absent.has(&Identity::of_owner(reference, &item.namespace))
    }

    /// It waits for its dependents: without blocking ones it may go, else they are next.
    async fn process_deleting_dependents_item(
        &self,
        resource: &Discovered,
        node: &Node,
    ) -> Result<(), CollectError> {
        let blocking = lock(&self.graph).blocking_dependents(&node.identity.uid);
        if blocking.is_empty() {
            return self
                .remove_finalizer(resource, &node.identity, FINALIZER_DELETE_DEPENDENTS)
                .await;
        }
        for (uid, _) in blocking.into_iter().filter(|(_, not_waiting)| *not_waiting) {
            self.attempt_to_delete.add(uid);
        }
        Ok(())
    }

    /// Releases the dependents of one item of the queue, then lets it go.
    ///
    /// # Errors
    /// A retry may help.
    pub async fn orphan_attempt(&self, uid: &str) -> Result<(), CollectError> {
        let (owner, dependents) = {
            let graph = lock(&self.graph);
            let Some(node) = graph.get(uid) else {
                return Ok(());
            };
            (node.identity.clone(), graph.dependents(uid))
        };
        let uids = [owner.uid.to_string()];
        let uids = &uids[..];
        let results: Vec<_> = futures::stream::iter(dependents)
            .map(|dependent| async move {
                let Some(resource) = self.mapping(&dependent)? else {
                    return Ok(());
                };
                self.remove_owner_references(&resource, &dependent, uids)
                    .await
            })
            .buffer_unordered(PARALLEL)
            .collect()
            .await;
        let errors: Vec<_> = results
            .into_iter()
            .filter_map(Result::err)
            .map(|e: CollectError| e.to_string())
            .collect();
        if !errors.is_empty() {
            return Err(CollectError::Orphan { owner, errors });
        }
        match self.mapping(&owner)? {
            Some(resource) => {
                self.remove_finalizer(&resource, &owner, FINALIZER_ORPHAN_DEPENDENTS)
                    .await
            }
            None => Ok(()),
        }
    }

    async fn get_object(
        &self,
        resource: &Discovered,
        identity: &Identity,
    ) -> Result<Option<ObjectMeta>, CollectError> {
        Ok(self
            .executor
            .get_metadata(&target(resource, identity))
            .await?)
    }

    /// Deletes exactly what was judged. `false`: it is gone.
    async fn delete_object(
        &self,
        resource: &Discovered,
        identity: &Identity,
        judged: &ObjectMeta,
        policy: &str,
    ) -> Result<bool, CollectError> {
        let options = |version: Option<&String>| {
            let mut preconditions = json!({"uid": &*identity.uid});
            if let Some(version) = version {
                preconditions["resourceVersion"] = json!(version);
            }
            json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": preconditions, "propagationPolicy": policy})
        };
        let target = target(resource, identity);
        let first = self
            .executor
            .write(
                Verb::Delete,
                &target,
                options(judged.resource_version.as_ref()),
            )
            .await;
        let result = match first {
            Err(error) if error.is_conflict() => {
                let live = self.get_object(resource, identity).await?;
                match live {
                    None => return Ok(false),
                    // Changed, but not in what was judged: frequent writes must not keep it alive.
                    Some(live)
                        if live.uid.as_deref() == Some(&*identity.uid)
                            && live.owner_references == judged.owner_references =>
                    {
                        self.executor
                            .write(Verb::Delete, &target, options(None))
                            .await
                    }
                    Some(_) => Err(error),
                }
            }
            other => other,
        };
        match result {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes references away; what is gone needs none taken.
    async fn remove_owner_references(
        &self,
        resource: &Discovered,
        identity: &Identity,
        uids: &[String],
    ) -> Result<(), CollectError> {
        let gone: Vec<_> = uids
            .iter()
            .map(|uid| json!({"$patch": "delete", "uid": uid}))
            .collect();
        let patch = json!({"metadata": {"ownerReferences": gone, "uid": &*identity.uid}});
        self.patch_owners(resource, identity, patch, |owners| {
            owners.retain(|o| !uids.contains(&o.uid))
        })
        .await
    }

    async fn unblock_owner_references(
        &self,
        resource: &Discovered,
        identity: &Identity,
    ) -> Result<(), CollectError> {
        let mut owners = lock(&self.graph)
            .get(&identity.uid)
            .map(|n| n.owners().to_vec())
            .unwrap_or_default();
        let unblock = |owners: &mut Vec<OwnerReference>| {
            for owner in owners
                .iter_mut()
                .filter(|o| o.block_owner_deletion == Some(true))
            {
                owner.block_owner_deletion = Some(false);
            }
        };
        owners.retain(|o| o.block_owner_deletion == Some(true));
        unblock(&mut owners);
        let patch = json!({"metadata": {"ownerReferences": owners, "uid": &*identity.uid}});
        self.patch_owners(resource, identity, patch, unblock).await
    }

    /// A strategic merge patch; where the server has none (custom resources), the whole list at the version it was read at.
    async fn patch_owners(
        &self,
        resource: &Discovered,
        identity: &Identity,
        patch: Value,
        change: impl Fn(&mut Vec<OwnerReference>),
    ) -> Result<(), CollectError> {
        match self
            .executor
            .write(
                Verb::Patch(PatchKind::Strategic),
                &target(resource, identity),
                patch,
            )
            .await
        {
            Ok(_) => return Ok(()),
            Err(error) if error.is_not_found() => return Ok(()),
            Err(ApiError::Server { code: 415, .. }) => {}
            Err(error) => return Err(error.into()),
        }
        self.merge_patch(resource, identity, |meta| {
            let old = meta.owner_references.clone().unwrap_or_default();
            let mut owners = old.clone();
            change(&mut owners);
            (owners != old).then(|| json!({ "ownerReferences": owners }))
        })
        .await
    }

    async fn remove_finalizer(
        &self,
        resource: &Discovered,
        identity: &Identity,
        finalizer: &str,
    ) -> Result<(), CollectError> {
        self.merge_patch(resource, identity, |meta| {
            let old = meta.finalizers.clone().unwrap_or_default();
            let left: Vec<_> = old.iter().filter(|f| *f != finalizer).collect();
            (left.len() != old.len()).then(|| json!({ "finalizers": left }))
        })
        .await
    }

    /// Patches metadata at the version it was read at, again after a conflict. `change` gives `None` if nothing is to change.
    async fn merge_patch(
        &self,
        resource: &Discovered,
        identity: &Identity,
        change: impl Fn(&ObjectMeta) -> Option<Value>,
    ) -> Result<(), CollectError> {
        let target = target(resource, identity);
        for attempt in 0.. {
            let latest = self.get_object(resource, identity).await?;
            let Some(latest) = latest.filter(|meta| meta.uid.as_deref() == Some(&*identity.uid))
            else {
                return Ok(());
            };
            let Some(mut metadata) = change(&latest) else {
                return Ok(());
            };
            metadata["resourceVersion"] = json!(latest.resource_version);
            let patch = json!({ "metadata": metadata });
            match self
                .executor
                .write(Verb::Patch(PatchKind::Merge), &target, patch)
                .await
            {
                Ok(_) => return Ok(()),
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) if error.is_conflict() && attempt < MAX_CONFLICTS => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn target(resource: &Discovered, identity: &Identity) -> Target {
    let namespace = if resource.namespaced {
        &*identity.namespace
    } else {
        ""
    };
    Target {
        resource: resource.resource.clone(),
        key: ObjectKey::new(namespace, &*identity.name),
        subresource: "",
    }
}
