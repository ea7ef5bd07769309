//! Ownership, carried out: whose object an event is about, and claiming what selectors match. Shell over
//! [`crate::controller_ref`].
//!
//! Upstream: pkg/controller/controller_ref_manager.go, v1.36.

use std::sync::Arc;

use component_base::informer::{Informer, InformerEvent, Object};
use component_helpers::labels::Selector;
use component_helpers::owner_ref::{get_controller_of, new_controller_ref};
use controller_runtime::executor::{Action, Executor};
use controller_runtime::{ApiError, ObjectKey};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::controller_ref::{adopt_patch, claim, controlled_by, orphans, release_patch};

/// A kind that controls others or is controlled.
pub trait Kind:
    Object + kube::Resource<DynamicType = ()> + k8s_openapi::Resource + DeserializeOwned
{
}
impl<K: Object + kube::Resource<DynamicType = ()> + k8s_openapi::Resource + DeserializeOwned> Kind
    for K
{
}

/// The object that controls `meta`, if it is of this kind and still the same one.
pub fn resolve<K: Kind>(owners: &Informer<K>, meta: &ObjectMeta) -> Option<Arc<K>> {
    let owner = get_controller_of(meta).filter(|o| o.kind == <K as k8s_openapi::Resource>::KIND)?;
    let found = owners.get(meta.namespace.as_deref().unwrap_or_default(), &owner.name)?;
    (found.meta().uid.as_ref() == Some(&owner.uid)).then_some(found)
}

/// The owners that an event of an object concerns: its controllers before and after; of an orphan that came or changed its
/// labels all that `selects` it.
pub fn concerned<K: Kind, C: Kind>(
    owners: &Informer<K>,
    event: &InformerEvent<C>,
    selects: impl Fn(&K, &C) -> bool,
) -> Vec<ObjectKey> {
    let mut keys = Vec::new();
    let mut add = |meta: &ObjectMeta| {
        keys.extend(resolve(owners, meta).map(|o| ObjectKey::of(&*o)));
    };
    let (object, orphan_changed) = match event {
        InformerEvent::Added(object) => (object, true),
        InformerEvent::Deleted(object) => (object, false),
        InformerEvent::Updated { old, new } => {
            let (old, new_meta) = (old.meta(), new.meta());
            add(old);
            let had_owner = get_controller_of(old).is_some();
            (new, had_owner || old.labels != new_meta.labels)
        }
    };
    let meta = object.meta();
    add(meta);
    if orphan_changed && get_controller_of(meta).is_none() && meta.deletion_timestamp.is_none() {
        let candidates = owners.list_namespace(meta.namespace.as_deref().unwrap_or_default());
        keys.extend(
            candidates
                .iter()
                .filter(|o| selects(o, object))
                .map(|o| ObjectKey::of(&**o)),
        );
    }
    keys.dedup();
    keys
}

/// Adopts and releases the objects for which `keep` holds. `None`: something changed, and the watch brings the owner back.
/// `finalizer` comes and goes with the ownership. Needs [`crate::controller_ref::index_by_controller`].
///
/// # Errors
/// What the server said; a retry may help.
pub async fn claim_objects<K: Kind, C: Kind>(
    executor: &Executor,
    objects: &Informer<C>,
    owner: &ObjectMeta,
    selector: &Selector,
    finalizer: Option<&str>,
    keep: impl Fn(&C) -> bool,
) -> Result<Option<Vec<Arc<C>>>, ApiError> {
    let owner_uid = owner.uid.as_deref().unwrap_or_default();
    let candidates = controlled_by(objects, owner_uid).into_iter().chain(orphans(
        objects,
        owner.namespace.as_deref().unwrap_or_default(),
    ));
    let claim = claim(owner, selector, candidates.filter(|o| keep(o)));
    if claim.is_settled() {
        return Ok(Some(claim.owned));
    }
    if !claim.adopt.is_empty() {
        can_adopt::<K>(executor, owner).await?;
    }
    let reference = new_controller_ref::<K>(owner);
    for object in &claim.adopt {
        let mut patch = adopt_patch(&reference, uid(&**object));
        if let Some(finalizer) = finalizer {
            patch["metadata"]["finalizers"] = json!([finalizer]);
        }
        write_owner(executor, &**object, patch).await?;
    }
    for object in &claim.release {
        let mut patch = release_patch(owner_uid, uid(&**object));
        if let Some(finalizer) = finalizer {
            patch["metadata"]["$deleteFromPrimitiveList/finalizers"] = json!([finalizer]);
        }
        write_owner(executor, &**object, patch).await?;
    }
    Ok(None)
}

/// Past the cache: an owner that is being deleted must not adopt what the garbage collector is about to orphan.
async fn can_adopt<K: Kind>(executor: &Executor, owner: &ObjectMeta) -> Result<(), ApiError> {
    let (ns, name) = (
        owner.namespace.as_deref().unwrap_or_default(),
        owner.name.as_deref().unwrap_or_default(),
    );
    let wanted = owner.uid.as_deref().unwrap_or_default();
    let kind = <K as k8s_openapi::Resource>::KIND;
    let fresh = executor.get::<K>(ns, name).await?;
    let found = fresh.as_ref().map_or("", |o| uid(o));
    if found != wanted {
        return Err(ApiError::Conflict(format!(
            "original {kind} {ns}/{name} is gone: got uid {found:?}, wanted {wanted:?}"
        )));
    }
    match fresh.is_some_and(|o| o.meta().deletion_timestamp.is_some()) {
        true => Err(ApiError::Conflict(format!(
            "{kind} {ns}/{name} is being deleted, it adopts nothing"
        ))),
        false => Ok(()),
    }
}

async fn write_owner<C: Kind>(
    executor: &Executor,
    object: &C,
    patch: Value,
) -> Result<(), ApiError> {
    let key = ObjectKey::of(object);
    let action = Action::strategic_patch::<C>(&key.namespace, &key.name, patch);
    match executor.execute(&action).await {
        // Gone, or a namesake by now.
        Ok(_) | Err(ApiError::NotFound(_) | ApiError::Invalid(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

fn uid<K: Kind>(object: &K) -> &str {
    object.meta().uid.as_deref().unwrap_or_default()
}
