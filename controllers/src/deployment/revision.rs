//! Revisions and the annotations that carry them. `kubectl rollout history|undo` reads and relies on them.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::replica_sets::{desired_replicas, max_surge};

pub const REVISION: &str = "deployment.kubernetes.io/revision";
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
pub const DEPRECATED_ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";
const LAST_APPLIED_CONFIG: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// About 100 revisions.
const MAX_REVISION_HISTORY_CHARS: usize = 2000;

/// Annotations of a Deployment or ReplicaSet that are never copied to the other.
fn is_skipped(key: &str) -> bool {
    [
        LAST_APPLIED_CONFIG,
        REVISION,
        REVISION_HISTORY,
        DESIRED_REPLICAS,
        MAX_REPLICAS,
        DEPRECATED_ROLLBACK_TO,
    ]
    .contains(&key)
}

fn annotation<'a>(rs: &'a ReplicaSet, key: &str) -> Option<&'a str> {
    rs.metadata
        .annotations
        .as_ref()?
        .get(key)
        .map(String::as_str)
}

/// `None` if the annotation is no number; 0 without one.
pub fn revision(rs: &ReplicaSet) -> Option<i64> {
    annotation(rs, REVISION).map_or(Some(0), |v| v.parse().ok())
}

pub fn max_revision<'a>(sets: impl IntoIterator<Item = &'a ReplicaSet>) -> i64 {
    sets.into_iter()
        .filter_map(revision)
        .max()
        .unwrap_or(0)
        .max(0)
}

/// The second highest.
pub fn last_revision<'a>(sets: impl IntoIterator<Item = &'a ReplicaSet>) -> i64 {
    let (mut max, mut second) = (0, 0);
    for revision in sets.into_iter().filter_map(revision) {
        if revision >= max {
            (second, max) = (max, revision);
        } else if revision > second {
            second = revision;
        }
    }
    second
}

/// Copies the Deployment's annotations and moves the revision up, keeping the old one in the history.
/// `exists`: the ReplicaSet is not about to be created.
pub fn set_new_replica_set_annotations(
    deployment: &Deployment,
    rs: &mut ReplicaSet,
    new_revision: i64,
    exists: bool,
) {
    let annotations = rs.metadata.annotations.get_or_insert_default();
    for (key, value) in deployment
        .metadata
        .annotations
        .iter()
        .flatten()
        .filter(|(k, _)| !is_skipped(k))
    {
        annotations.insert(key.clone(), value.clone());
    }
    let old = annotations.get(REVISION).cloned();
    let old_number = match old.as_deref().unwrap_or_default() {
        "" => 0,
        text => match text.parse::<i64>() {
            Ok(number) => number,
            // Someone else's annotation: hands off.
            Err(_) => return,
        },
    };
    // Never down: old ReplicaSets may have been deleted since.
    if old_number < new_revision {
        annotations.insert(REVISION.to_owned(), new_revision.to_string());
        if let Some(old) = old {
            append_history(annotations, &old);
        }
    }
    if !exists {
        set_replicas_annotations(deployment, rs);
    }
    if rs
        .metadata
        .annotations
        .as_ref()
        .is_some_and(BTreeMap::is_empty)
    {
        rs.metadata.annotations = None;
    }
}

fn append_history(annotations: &mut BTreeMap<String, String>, old: &str) {
    let history = annotations
        .get(REVISION_HISTORY)
        .cloned()
        .unwrap_or_default();
    if history.is_empty() {
        annotations.insert(REVISION_HISTORY.to_owned(), old.to_owned());
        return;
    }
    let mut revisions: Vec<&str> = history.split(',').collect();
    let mut length = history.len() + old.len() + 1;
    while length > MAX_REVISION_HISTORY_CHARS && !revisions.is_empty() {
        length -= revisions.remove(0).len() + 1;
    }
    if length <= MAX_REVISION_HISTORY_CHARS {
        revisions.push(old);
        annotations.insert(REVISION_HISTORY.to_owned(), revisions.join(","));
    }
}

/// The Deployment's size at this moment, for proportional scaling later. Returns whether anything changed.
pub fn set_replicas_annotations(deployment: &Deployment, rs: &mut ReplicaSet) -> bool {
    let desired = desired_replicas(deployment);
    let annotations = rs.metadata.annotations.get_or_insert_default();
    let mut changed = false;
    for (key, value) in [
        (DESIRED_REPLICAS, desired),
        (MAX_REPLICAS, desired.saturating_add(max_surge(deployment))),
    ] {
        let value = value.to_string();
        changed |= annotations.insert(key.to_owned(), value.clone()) != Some(value);
    }
    changed
}

/// `None` without the annotation, or if it is no count.
pub fn desired_replicas_annotation(rs: &ReplicaSet) -> Option<i32> {
    annotation(rs, DESIRED_REPLICAS)?
        .parse()
        .ok()
        .filter(|n| *n >= 0)
}

pub fn max_replicas_annotation(rs: &ReplicaSet) -> Option<i32> {
    annotation(rs, MAX_REPLICAS)?
        .parse()
        .ok()
        .filter(|n| *n >= 0)
}

pub fn set_deployment_revision(deployment: &mut Deployment, revision: &str) {
    deployment
        .metadata
        .annotations
        .get_or_insert_default()
        .insert(REVISION.to_owned(), revision.to_owned());
}

/// The revision that a rollback of the removed beta APIs asks for; 0: the last one.
pub fn rollback_to(deployment: &Deployment) -> Option<i64> {
    deployment
        .metadata
        .annotations
        .as_ref()?
        .get(DEPRECATED_ROLLBACK_TO)?
        .parse()
        .ok()
}

pub fn clear_rollback_to(deployment: &mut Deployment) {
    if let Some(annotations) = &mut deployment.metadata.annotations {
        annotations.remove(DEPRECATED_ROLLBACK_TO);
    }
}

/// Rolling back to `rs` also brings its annotations (the change cause) back.
pub fn set_deployment_annotations_to(deployment: &mut Deployment, rs: &ReplicaSet) {
    let annotations = deployment.metadata.annotations.get_or_insert_default();
    annotations.retain(|key, _| is_skipped(key));
    for (key, value) in rs
        .metadata
        .annotations
        .iter()
        .flatten()
        .filter(|(k, _)| !is_skipped(k))
    {
        annotations.insert(key.clone(), value.clone());
    }
}
