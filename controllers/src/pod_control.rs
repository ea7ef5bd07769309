//! What controllers of pods have in common: whose pod an event is about, claiming, and writing pods with their events.
//!
//! Upstream: pkg/controller/controller_utils.go (RealPodControl) and controller_ref_manager.go, v1.36.

use std::sync::Arc;

use component_base::events::EventType;
use component_base::informer::{Informer, InformerEvent, Object};
use component_helpers::labels::Selector;
use component_helpers::owner_ref::{get_controller_of, new_controller_ref};
use component_helpers::pod::{name, namespace, uid};
use controller_runtime::executor::{Action, DeleteOptions, Executor};
use controller_runtime::{ApiError, ObjectKey};
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::controller_ref::{adopt_patch, claim, controlled_by, orphans, release_patch};

/// A kind that owns pods.
pub trait Owner:
    Object + kube::Resource<DynamicType = ()> + k8s_openapi::Resource + DeserializeOwned
{
}
impl<K: Object + kube::Resource<DynamicType = ()> + k8s_openapi::Resource + DeserializeOwned> Owner
    for K
{
}

/// The object that controls `meta`, if it is of this kind and still the same one.
pub fn resolve<K: Owner>(owners: &Informer<K>, meta: &ObjectMeta) -> Option<Arc<K>> {
    let owner = get_controller_of(meta).filter(|o| o.kind == <K as k8s_openapi::Resource>::KIND)?;
    let found = owners.get(meta.namespace.as_deref().unwrap_or_default(), &owner.name)?;
    (found.meta().uid.as_ref() == Some(&owner.uid)).then_some(found)
}

/// The owners that an event of a pod concerns: its controllers before and after; of an orphan that came or changed its labels all
/// that `selects` it.
pub fn concerned<K: Owner>(
    owners: &Informer<K>,
    event: &InformerEvent<Pod>,
    selects: impl Fn(&K, &Pod) -> bool,
) -> Vec<ObjectKey> {
    let mut keys = Vec::new();
    let mut add = |meta: &ObjectMeta| {
        keys.extend(resolve(owners, meta).map(|o| ObjectKey::of(&*o)));
    };
    let (pod, orphan_changed) = match event {
        InformerEvent::Added(pod) => (pod, true),
        InformerEvent::Deleted(pod) => (pod, false),
        InformerEvent::Updated { old, new } => {
            add(&old.metadata);
            let had_owner = get_controller_of(&old.metadata).is_some();
            (new, had_owner || old.metadata.labels != new.metadata.labels)
        }
    };
    add(&pod.metadata);
    if orphan_changed
        && get_controller_of(&pod.metadata).is_none()
        && pod.metadata.deletion_timestamp.is_none()
    {
        let candidates = owners.list_namespace(namespace(pod));
        keys.extend(
            candidates
                .iter()
                .filter(|o| selects(o, pod))
                .map(|o| ObjectKey::of(&**o)),
        );
    }
    keys.dedup();
    keys
}

/// Adopts and releases the pods for which `keep` holds. `None`: something changed, and the watch brings the owner back.
///
/// # Errors
/// What the server said; a retry may help.
pub async fn claim_pods<K: Owner>(
    executor: &Executor,
    pods: &Informer<Pod>,
    owner: &ObjectMeta,
    selector: &Selector,
    finalizer: Option<&str>,
    keep: impl Fn(&Pod) -> bool,
) -> Result<Option<Vec<Arc<Pod>>>, ApiError> {
    let owner_uid = owner.uid.as_deref().unwrap_or_default();
    let (ns, owner_name) = (
        owner.namespace.as_deref().unwrap_or_default(),
        owner.name.as_deref().unwrap_or_default(),
    );
    let candidates = controlled_by(pods, owner_uid)
        .into_iter()
        .chain(orphans(pods, ns));
    let claim = claim(owner, selector, candidates.filter(|p| keep(p)));
    if claim.is_settled() {
        return Ok(Some(claim.owned));
    }
    if !claim.adopt.is_empty() {
        // Past the cache: an owner that is being deleted must not adopt what the garbage collector is about to orphan.
        let fresh = executor.get::<K>(ns, owner_name).await?;
        let kind = <K as k8s_openapi::Resource>::KIND;
        let found = fresh
            .as_ref()
            .and_then(|o| o.meta().uid.as_deref())
            .unwrap_or_default();
        if found != owner_uid {
            return Err(ApiError::Conflict(format!(
                "original {kind} {ns}/{owner_name} is gone: got uid {found:?}, wanted {owner_uid:?}"
            )));
        }
        if fresh.is_some_and(|o| o.meta().deletion_timestamp.is_some()) {
            return Err(ApiError::Conflict(format!(
                "{kind} {ns}/{owner_name} is being deleted, it adopts nothing"
            )));
        }
    }
    let reference = new_controller_ref::<K>(owner);
    for pod in &claim.adopt {
        let mut patch = adopt_patch(&reference, uid(pod));
        if let Some(finalizer) = finalizer {
            patch["metadata"]["finalizers"] = serde_json::json!([finalizer]);
        }
        write_owner(executor, pod, patch).await?;
    }
    for pod in &claim.release {
        let mut patch = release_patch(owner_uid, uid(pod));
        if let Some(finalizer) = finalizer {
            patch["metadata"]["$deleteFromPrimitiveList/finalizers"] =
                serde_json::json!([finalizer]);
        }
        write_owner(executor, pod, patch).await?;
    }
    Ok(None)
}

async fn write_owner(executor: &Executor, pod: &Pod, patch: Value) -> Result<(), ApiError> {
    let action = Action::strategic_patch::<Pod>(namespace(pod), name(pod), patch);
    match executor.execute(&action).await {
        // Gone, or a namesake by now.
        Ok(_) | Err(ApiError::NotFound(_) | ApiError::Invalid(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A pod of a template, controlled by `owner`; `generate_name` may be replaced by a name.
pub fn pod_from_template(
    template: &PodTemplateSpec,
    ns: Option<String>,
    generate_name: String,
    owner: OwnerReference,
) -> Pod {
    let of_template = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            namespace: ns,
            generate_name: Some(generate_name),
            labels: of_template.labels,
            annotations: of_template.annotations,
            finalizers: of_template.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// What became of pods that were to be created.
#[derive(Debug, Default)]
pub struct Created {
    /// How many there are now.
    pub count: usize,
    /// The first failure; a namespace that is going is none.
    pub error: Option<ApiError>,
}

/// Creates pods in a slow start, and tells of each in an event about `about`.
pub async fn create_pods(executor: &Executor, about: &ObjectReference, pods: &[Pod]) -> Created {
    let actions: Vec<_> = pods.iter().map(Action::create).collect();
    let mut created = Created::default();
    for result in executor.slow_start_batch(&actions).await {
        match result {
            Ok(pod) => {
                created.count += 1;
                let name = pod["metadata"]["name"].as_str().unwrap_or_default();
                record(
                    executor,
                    about,
                    EventType::Normal,
                    "SuccessfulCreate",
                    format!("Created pod: {name}"),
                )
                .await;
            }
            // Nothing can be created there any more, and nobody wants to hear of it.
            Err(ApiError::NamespaceTerminating(_)) => {}
            Err(error) => {
                record(
                    executor,
                    about,
                    EventType::Warning,
                    "FailedCreate",
                    format!("Error creating: {error}"),
                )
                .await;
                created.error.get_or_insert(error);
            }
        }
    }
    created
}

/// Deletes this incarnation of a pod and tells so. `Ok(false)`: it was gone before.
///
/// # Errors
/// What the server said; a retry may help.
pub async fn delete_pod(
    executor: &Executor,
    about: &ObjectReference,
    pod: &Pod,
) -> Result<bool, ApiError> {
    let options = DeleteOptions {
        uid: pod.metadata.uid.clone(),
        ..DeleteOptions::default()
    };
    match executor
        .execute(&Action::delete::<Pod>(namespace(pod), name(pod), options))
        .await
    {
        Ok(answer) if answer.is_null() => Ok(false),
        Ok(_) => {
            record(
                executor,
                about,
                EventType::Normal,
                "SuccessfulDelete",
                format!("Deleted pod: {}", name(pod)),
            )
            .await;
            Ok(true)
        }
        // A namesake: ours is gone.
        Err(error) if error.is_conflict() => Ok(false),
        Err(error) => {
            record(
                executor,
                about,
                EventType::Warning,
                "FailedDelete",
                format!("Error deleting: {error}"),
            )
            .await;
            Err(error)
        }
    }
}

/// Records an event; recording only queues, it has no failure that anyone could act on.
pub async fn record(
    executor: &Executor,
    about: &ObjectReference,
    event_type: EventType,
    reason: &'static str,
    message: impl Into<String>,
) {
    let regarding = Box::new(about.clone());
    let event = Action::Event {
        regarding,
        event_type,
        reason,
        message: message.into(),
    };
    let _ = executor.execute(&event).await;
}
