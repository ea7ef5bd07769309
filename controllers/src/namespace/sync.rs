//! The pure part: what is left of a namespace -> conditions, and how long to wait.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;

use super::FINALIZER;

/// What an object with a foreign finalizer is given to go.
pub const FINALIZER_ESTIMATE_SECONDS: i64 = 15;

const DISCOVERY_FAILURE: &str = "NamespaceDeletionDiscoveryFailure";
const GROUP_VERSION_PARSING_FAILURE: &str = "NamespaceDeletionGroupVersionParsingFailure";
const CONTENT_FAILURE: &str = "NamespaceDeletionContentFailure";
const CONTENT_REMAINING: &str = "NamespaceContentRemaining";
const FINALIZERS_REMAINING: &str = "NamespaceFinalizersRemaining";

/// Type, reason and message of each condition when there is nothing to complain about.
const ALL_WELL: [(&str, &str, &str); 5] = [
    (
        DISCOVERY_FAILURE,
        "ResourcesDiscovered",
        "All resources successfully discovered",
    ),
    (
        GROUP_VERSION_PARSING_FAILURE,
        "ParsedGroupVersions",
        "All legacy kube types successfully parsed",
    ),
    (
        CONTENT_FAILURE,
        "ContentDeleted",
        "All content successfully deleted, may be waiting on finalization",
    ),
    (
        CONTENT_REMAINING,
        "ContentRemoved",
        "All content successfully removed",
    ),
    (
        FINALIZERS_REMAINING,
        "ContentHasNoFinalizers",
        "All content-preserving finalizers finished",
    ),
];

/// What one pass over a namespace found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Why discovery is incomplete.
    pub discovery: Option<String>,
    /// Why content was not deleted.
    pub errors: Vec<String>,
    /// `pods.` or `widgets.example.com` -> how many are left.
    pub remaining: BTreeMap<String, usize>,
    /// Finalizer -> how many wait for it.
    pub finalizers: BTreeMap<String, usize>,
    /// Seconds until it may be worth to look again; 0: everything is gone, or nobody knows.
    pub estimate_seconds: i64,
}

impl Findings {
    /// Adds what is left of one resource.
    pub fn add(&mut self, resource: &str, remaining: &Remaining) {
        self.estimate_seconds = self.estimate_seconds.max(remaining.estimate_seconds);
        if remaining.count > 0 {
            self.remaining.insert(resource.to_owned(), remaining.count);
            for (finalizer, count) in &remaining.finalizers {
                *self.finalizers.entry(finalizer.clone()).or_default() += count;
            }
        }
    }

    /// `totals`: also tell of what remains. Upstream does not while pods remain.
    fn condition(&self, type_: &str, totals: bool) -> Option<(&'static str, String)> {
        let listed = |items: Vec<String>| items.join(", ");
        match type_ {
            DISCOVERY_FAILURE => self
                .discovery
                .clone()
                .map(|message| ("DiscoveryFailed", message)),
            CONTENT_FAILURE if !self.errors.is_empty() => {
                let mut errors = self.errors.clone();
                errors.sort();
                let count = errors.len();
                Some((
                    "ContentDeletionFailed",
                    format!(
                        "Failed to delete all resource types, {count} remaining: {}",
                        listed(errors)
                    ),
                ))
            }
            CONTENT_REMAINING if totals && !self.remaining.is_empty() => {
                let items = self
                    .remaining
                    .iter()
                    .map(|(resource, n)| format!("{resource} has {n} resource instances"))
                    .collect();
                Some((
                    "SomeResourcesRemain",
                    format!("Some resources are remaining: {}", listed(items)),
                ))
            }
            FINALIZERS_REMAINING if totals && !self.finalizers.is_empty() => {
                let items = self
                    .finalizers
                    .iter()
                    .map(|(finalizer, n)| format!("{finalizer} in {n} resource instances"))
                    .collect();
                Some((
                    "SomeFinalizersRemain",
                    format!(
                        "Some content in the namespace has finalizers remaining: {}",
                        listed(items)
                    ),
                ))
            }
            _ => None,
        }
    }
}

/// What is left of one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remaining {
    pub count: usize,
    pub finalizers: BTreeMap<String, usize>,
    pub estimate_seconds: i64,
}

impl Remaining {
    /// Of the objects a list shows after the deletion; `estimate_seconds` is that of their graceful end. The second
    /// value says that they should be gone: nothing keeps them.
    pub fn of(items: &[Value], estimate_seconds: i64) -> (Self, bool) {
        let mut remaining = Self {
            count: items.len(),
            finalizers: BTreeMap::new(),
            estimate_seconds: 0,
        };
        if items.is_empty() {
            return (remaining, false);
        }
        for finalizer in items
            .iter()
            .filter_map(|i| i["metadata"]["finalizers"].as_array())
            .flatten()
            .filter_map(Value::as_str)
        {
            *remaining
                .finalizers
                .entry(finalizer.to_owned())
                .or_default() += 1;
        }
        remaining.estimate_seconds = match estimate_seconds {
            0 if !remaining.finalizers.is_empty() => FINALIZER_ESTIMATE_SECONDS,
            seconds => seconds,
        };
        let stuck = remaining.estimate_seconds == 0;
        (remaining, stuck)
    }
}

/// How long the longest grace period of a pod that still runs can take; 0 once that is over since `deleted_at`.
pub fn estimate_graceful_termination(pods: &[Value], deleted_at: Timestamp, now: Timestamp) -> i64 {
    let running = pods
        .iter()
        .filter(|p| !matches!(p["status"]["phase"].as_str(), Some("Succeeded" | "Failed")));
    let longest = running
        .filter_map(|p| p["spec"]["terminationGracePeriodSeconds"].as_i64())
        .max()
        .unwrap_or(0);
    if now.duration_since(deleted_at).as_secs() >= longest {
        0
    } else {
        longest
    }
}

/// Puts the conditions in. `None` if they are as they should be.
pub fn update_conditions(
    namespace: &Namespace,
    findings: &Findings,
    totals: bool,
    now: Timestamp,
) -> Option<Namespace> {
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let mut updated = namespace.clone();
    let conditions = updated
        .status
        .get_or_insert_default()
        .conditions
        .get_or_insert_default();
    for (type_, ok_reason, ok_message) in ALL_WELL {
        let (status, reason, message) = match findings.condition(type_, totals) {
            Some((reason, message)) => ("True", reason, message),
            None => ("False", ok_reason, ok_message.to_owned()),
        };
        match conditions.iter_mut().find(|c| c.type_ == type_) {
            Some(old) => {
                if old.status != status {
                    old.last_transition_time = Some(now.clone());
                }
                old.status = status.to_owned();
                old.reason = Some(reason.to_owned());
                old.message = Some(message);
            }
            None => conditions.push(NamespaceCondition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_transition_time: Some(now.clone()),
            }),
        }
    }
    (updated.status != namespace.status).then_some(updated)
}

/// The namespace in phase `Terminating`; `None` if it is.
pub fn mark_terminating(namespace: &Namespace) -> Option<Namespace> {
    if namespace.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Terminating") {
        return None;
    }
    let mut updated = namespace.clone();
    updated.status.get_or_insert_default().phase = Some("Terminating".to_owned());
    Some(updated)
}

/// Whether nobody holds the namespace back any more.
pub fn finalized(namespace: &Namespace) -> bool {
    namespace
        .spec
        .as_ref()
        .is_none_or(|s| s.finalizers.iter().flatten().next().is_none())
}

/// The namespace without our finalizer.
pub fn finalize(namespace: &Namespace) -> Namespace {
    let mut updated = namespace.clone();
    if let Some(finalizers) = updated.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
        finalizers.retain(|f| f != FINALIZER);
        finalizers.sort();
    }
    updated
}
