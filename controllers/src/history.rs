//! ControllerRevisions: the templates a DaemonSet or StatefulSet has had, numbered. Pure; [`revisions`] carries it out.
//!
//! Upstream: pkg/controller/history, v1.36.

pub mod revisions;

use std::sync::Arc;

use component_helpers::names::{compute_hash, revision_hash};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde_json::{Value, json};

/// The label of pods that tells which template they are of, and of the revisions of a DaemonSet.
pub const HASH_LABEL: &str = "controller-revision-hash";
/// The label of the revisions of a StatefulSet.
pub const REVISION_HASH_LABEL: &str = "controller.kubernetes.io/hash";
/// A name longer than this leaves no room for a hash.
const MAX_PREFIX: usize = 223;

/// What to do to have a revision of the present template.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// It is there.
    Use(Arc<ControllerRevision>),
    /// It is there and not the newest: a rollback.
    Renumber(Box<ControllerRevision>),
    /// There is none.
    Create(Box<ControllerRevision>),
}

/// Finds or makes the revision of `template`; a new one has its hash in the label `hash_label`.
pub fn next(
    hash_label: &str,
    owner: &ObjectMeta,
    reference: OwnerReference,
    template: &PodTemplateSpec,
    existing: &[Arc<ControllerRevision>],
    collision_count: Option<i32>,
) -> Next {
    let data = data(template);
    let same = existing
        .iter()
        .filter(|r| r.data.0 == data)
        .max_by_key(|r| number(r));
    let last = existing
        .iter()
        .filter(|r| same.is_none_or(|s| s.metadata.uid != r.metadata.uid))
        .map(|r| number(r))
        .max()
        .unwrap_or(0);
    if let Some(same) = same {
        return match number(same) > last {
            true => Next::Use(same.clone()),
            false => Next::Renumber(Box::new(ControllerRevision {
                revision: Some(last + 1),
                ..(**same).clone()
            })),
        };
    }
    // Sorted, without blanks, and escaped: the bytes that are stored.
    let stored = component_base::json::escape(data.to_string().as_bytes());
    let hash = match hash_label {
        REVISION_HASH_LABEL => revision_hash(&stored, collision_count.unwrap_or(0)),
        _ => compute_hash(&stored, collision_count),
    };
    let mut labels = template
        .metadata
        .as_ref()
        .and_then(|m| m.labels.clone())
        .unwrap_or_default();
    labels.insert(hash_label.to_owned(), hash.clone());
    let prefix = owner.name.as_deref().unwrap_or_default();
    let prefix = prefix.get(..MAX_PREFIX).unwrap_or(prefix);
    Next::Create(Box::new(ControllerRevision {
        data: RawExtension(data),
        metadata: ObjectMeta {
            name: Some(format!("{prefix}-{hash}")),
            namespace: owner.namespace.clone(),
            labels: Some(labels),
            annotations: owner.annotations.clone(),
            owner_references: Some(vec![reference]),
            ..ObjectMeta::default()
        },
        revision: Some(last + 1),
    }))
}

/// Its place in the order; the API server lets none without one through.
pub fn number(revision: &ControllerRevision) -> i64 {
    revision.revision.unwrap_or(0)
}

/// A strategic merge patch that puts the template back.
fn data(template: &PodTemplateSpec) -> Value {
    let mut value =
        serde_json::to_value(template).expect("API types have string keys and serialize");
    value["$patch"] = json!("replace");
    json!({"spec": {"template": value}})
}

/// The hash a revision of a DaemonSet is labelled with.
pub fn hash(revision: &ControllerRevision) -> &str {
    let labels = revision.metadata.labels.as_ref();
    labels
        .and_then(|l| l.get(HASH_LABEL))
        .map_or("", String::as_str)
}

/// The oldest revisions beyond `limit` of those that are not in use.
pub fn surplus(
    existing: &[Arc<ControllerRevision>],
    is_live: impl Fn(&ControllerRevision) -> bool,
    limit: usize,
) -> Vec<Arc<ControllerRevision>> {
    let mut idle: Vec<_> = existing.iter().filter(|r| !is_live(r)).cloned().collect();
    idle.sort_by_key(|r| number(r));
    let excess = idle.len().saturating_sub(limit);
    idle.truncate(excess);
    idle
}
