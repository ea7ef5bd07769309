//! What a pass starts from, and what it has come to.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::Pod;

use super::backoff::Backoff;
use super::index::Indexes;

/// What the caches hold about one Job.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Controlled and selected, ended ones too.
    pub pods: Vec<Arc<Pod>>,
    /// All that was created and deleted before has been seen.
    pub expectations_met: bool,
    /// UIDs of pods whose finalizer was taken off, which the cache may not show yet.
    pub finalizer_removed: HashSet<String>,
    /// The failures before.
    pub backoff: Backoff,
}

/// What to do about the pods, and what the status will say after it.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    /// With start time, indexes and the condition `Suspended`.
    pub job: Job,
    /// The condition the Job will end by.
    pub finished: Option<JobCondition>,
    /// Delete, and leave the finalizer for later: the Job is over.
    pub delete: Vec<Arc<Pod>>,
    /// Too many: take off the finalizer, so they are not counted, and delete.
    pub remove: Vec<Arc<Pod>>,
    pub create: Vec<Pod>,
    pub active: i32,
    pub ready: i32,
    pub terminating: i32,
    pub backoff: Backoff,
    pub requeue_after: Option<Duration>,
    /// For an event: suspended or resumed.
    pub suspension: Option<bool>,
    pub(super) succeeded: i32,
    /// May complete, if nothing stays active.
    pub(super) may_complete: bool,
    pub(super) previous_succeeded: Indexes,
    /// By index: the last failed pod, whose back-off delays the next.
    pub(super) delayed: BTreeMap<i32, Arc<Pod>>,
    pub(super) expectations_met: bool,
}
