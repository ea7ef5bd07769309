//! One pass: drafts of the ReplicaSets and of the Deployment, and what becomes of their differences to what was observed.

use std::sync::Arc;
use std::time::Duration;

use component_helpers::names::compute_hash;
use component_helpers::owner_ref::new_controller_ref;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::reason;
use super::replica_sets::*;
use super::revision::{self, set_new_replica_set_annotations};

/// DNS-1123 subdomain.
const MAX_NAME_LENGTH: usize = 253;

/// What the caches hold about one Deployment.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Controlled by the Deployment and selected by it.
    pub replica_sets: Vec<Arc<ReplicaSet>>,
    /// Controlled by those.
    pub pods: Vec<Arc<Pod>>,
}

/// An event about the Deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
}

/// One write. Each is done once, in order; the first that fails ends the pass.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// If it exists already: [`resolve_name_conflict`]; if it fails: [`record_create_failure`].
    CreateReplicaSet {
        replica_set: Box<ReplicaSet>,
        notice: Option<Notice>,
    },
    UpdateReplicaSet {
        replica_set: Box<ReplicaSet>,
        notice: Option<Notice>,
    },
    DeleteReplicaSet {
        replica_set: Arc<ReplicaSet>,
    },
    /// Status and the revision annotation; the API server takes both by the status subresource.
    UpdateStatus {
        deployment: Box<Deployment>,
    },
    /// Only to roll back.
    UpdateDeployment {
        deployment: Box<Deployment>,
    },
    Event(Notice),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// Look again then, for the progress deadline.
    pub requeue_after: Option<Duration>,
}

/// A ReplicaSet of the pass: as observed, and as it shall be.
pub(super) struct Draft {
    /// `None`: to be created.
    pub observed: Option<Arc<ReplicaSet>>,
    pub rs: ReplicaSet,
    pub notice: Option<Notice>,
    pub delete: bool,
}

/// The state of one pass.
pub(super) struct Pass<'a> {
    pub observed: &'a Deployment,
    pub deployment: Deployment,
    /// Oldest first.
    pub sets: Vec<Draft>,
    /// The index of the ReplicaSet with the Deployment's template.
    pub new: Option<usize>,
    pub now: Time,
    pub events: Vec<Notice>,
    pub requeue_after: Option<Duration>,
    /// The Deployment itself is to be written, not only its status.
    pub write_spec: bool,
}

impl<'a> Pass<'a> {
    pub fn new(deployment: &'a Deployment, observed: &Observed, now: Timestamp) -> Self {
        let draft = |rs: &Arc<ReplicaSet>| Draft {
            observed: Some(rs.clone()),
            rs: (**rs).clone(),
            notice: None,
            delete: false,
        };
        let mut sets: Vec<Draft> = observed.replica_sets.iter().map(draft).collect();
        sets.sort_by(|a, b| by_creation(&a.rs, &b.rs));
        let wanted = &deployment.spec.template;
        // After an upgrade more than one may have the template: the oldest is it, always the same.
        let new = sets
            .iter()
            .position(|s| template(&s.rs).is_some_and(|t| equal_ignore_hash(t, wanted)));
        Self {
            observed: deployment,
            deployment: deployment.clone(),
            sets,
            new,
            now: Time(Timestamp::from_second(now.as_second()).unwrap_or(now)),
            events: Vec::new(),
            requeue_after: None,
            write_spec: false,
        }
    }

    pub fn new_rs(&self) -> Option<&ReplicaSet> {
        self.new.map(|i| &self.sets[i].rs)
    }

    pub fn all(&self) -> impl Iterator<Item = &ReplicaSet> {
        self.sets.iter().map(|s| &s.rs)
    }

    /// Indexes of the others, oldest first.
    pub fn old(&self) -> Vec<usize> {
        (0..self.sets.len())
            .filter(|i| Some(*i) != self.new)
            .collect()
    }

    /// Those of `indexes` that shall have pods.
    pub fn active(&self, indexes: Vec<usize>) -> Vec<usize> {
        indexes
            .into_iter()
            .filter(|i| replicas(&self.sets[*i].rs) > 0)
            .collect()
    }

    pub fn replica_count(&self) -> i32 {
        self.all().map(replicas).fold(0, i32::saturating_add)
    }

    pub fn available_count(&self) -> i32 {
        self.all().map(available).sum()
    }

    /// Brings the new ReplicaSet's annotations and the Deployment's revision into line, if there is a new one.
    pub fn sync_revision(&mut self) {
        let Some(new) = self.new else { return };
        let next = self.next_revision();
        let min_ready_seconds = self.observed.spec.min_ready_seconds;
        let rs = &mut self.sets[new].rs;
        set_new_replica_set_annotations(self.observed, rs, next, true);
        if rs.spec.min_ready_seconds.unwrap_or(0) != min_ready_seconds.unwrap_or(0) {
            rs.spec.min_ready_seconds = min_ready_seconds;
        }
        let name = rs.metadata.name.clone().unwrap_or_default();
        let revision = rs
            .metadata
            .annotations
            .as_ref()
            .and_then(|a| a.get(revision::REVISION))
            .cloned()
            .unwrap_or_default();
        revision::set_deployment_revision(&mut self.deployment, &revision);
        if progress_deadline_seconds(self.observed).is_some()
            && self.condition(reason::PROGRESSING).is_none()
        {
            let message = format!("Found new replica set {name:?}");
            self.set_condition(reason::PROGRESSING, "True", reason::FOUND_NEW_RS, message);
        }
    }

    /// Like [`sync_revision`](Self::sync_revision), but drafts the new ReplicaSet if there is none.
    pub fn ensure_new_replica_set(&mut self) -> usize {
        if let Some(new) = self.new {
            self.sync_revision();
            return new;
        }
        let next = self.next_revision();
        let rs = new_replica_set(self.observed);
        let name = rs.metadata.name.clone().unwrap_or_default();
        self.sets.push(Draft {
            observed: None,
            rs,
            notice: None,
            delete: false,
        });
        let new = self.sets.len() - 1;
        self.new = Some(new);
        let size = new_rs_new_replicas(self, new);
        let draft = &mut self.sets[new];
        draft.rs.spec.replicas = Some(size);
        set_new_replica_set_annotations(self.observed, &mut draft.rs, next, false);
        if size > 0 {
            draft.notice = Some(scaled(&name, 0, size));
        }
        revision::set_deployment_revision(&mut self.deployment, &next.to_string());
        if progress_deadline_seconds(self.observed).is_some() {
            let message = format!("Created new replica set {name:?}");
            self.set_condition(
                reason::PROGRESSING,
                "True",
                reason::NEW_REPLICA_SET,
                message,
            );
        }
        new
    }

    fn next_revision(&self) -> i64 {
        revision::max_revision(self.old().into_iter().map(|i| &self.sets[i].rs)) + 1
    }

    /// Drafts a new size. Returns whether it differs. `force`: refresh the annotations even if the size stays.
    pub fn scale_replica_set(&mut self, index: usize, size: i32, force: bool) -> bool {
        let draft = &mut self.sets[index];
        let old = replicas(&draft.rs);
        if old == size && !force {
            return false;
        }
        draft.rs.spec.replicas = Some(size);
        revision::set_replicas_annotations(self.observed, &mut draft.rs);
        if old == size {
            return false;
        }
        let from = draft.observed.as_deref().map_or(0, replicas);
        draft.notice = (from != size).then(|| {
            scaled(
                draft.rs.metadata.name.as_deref().unwrap_or_default(),
                from,
                size,
            )
        });
        true
    }

    pub fn condition(&self, type_: &str) -> Option<&DeploymentCondition> {
        self.deployment
            .status
            .as_ref()?
            .conditions
            .as_ref()?
            .iter()
            .find(|c| c.type_.as_deref() == Some(type_))
    }

    pub fn set_condition(&mut self, type_: &str, status: &str, reason: &str, message: String) {
        let condition = new_condition(type_, status, reason, message, &self.now);
        let status = self.deployment.status.get_or_insert_default();
        set_deployment_condition(status.conditions.get_or_insert_default(), condition);
    }

    pub fn selecting_all(&mut self) {
        self.events.push(Notice {
            warning: true,
            reason: reason::SELECTING_ALL,
            message: "This deployment is selecting all pods. A non-empty selector is required."
                .to_owned(),
        });
        self.deployment
            .status
            .get_or_insert_default()
            .observed_generation = self.observed.metadata.generation;
    }

    /// Differences become writes.
    pub fn finish(self) -> Plan {
        let mut actions = Vec::new();
        for draft in self.sets {
            match draft.observed {
                None => actions.push(Action::CreateReplicaSet {
                    replica_set: Box::new(draft.rs),
                    notice: draft.notice,
                }),
                Some(observed) if draft.delete => actions.push(Action::DeleteReplicaSet {
                    replica_set: observed,
                }),
                Some(observed) if *observed != draft.rs => {
                    actions.push(Action::UpdateReplicaSet {
                        replica_set: Box::new(draft.rs),
                        notice: draft.notice,
                    });
                }
                Some(_) => {}
            }
        }
        // A new ReplicaSet first: it may meet a name conflict, and then nothing else may happen.
        actions.sort_by_key(|a| !matches!(a, Action::CreateReplicaSet { .. }));
        if self.write_spec {
            actions.push(Action::UpdateDeployment {
                deployment: Box::new(self.deployment),
            });
        } else if *self.observed != self.deployment {
            actions.push(Action::UpdateStatus {
                deployment: Box::new(self.deployment),
            });
        }
        actions.extend(self.events.into_iter().map(Action::Event));
        Plan {
            actions,
            requeue_after: self.requeue_after,
        }
    }
}

fn scaled(name: &str, from: i32, to: i32) -> Notice {
    let direction = if from < to { "up" } else { "down" };
    Notice {
        warning: false,
        reason: reason::SCALING_REPLICA_SET,
        message: format!("Scaled {direction} replica set {name} from {from} to {to}"),
    }
}

/// The ReplicaSet of the Deployment's template: its name, labels and selector carry the template's hash.
fn new_replica_set(deployment: &Deployment) -> ReplicaSet {
    let spec = deployment.spec.clone();
    let hash = template_hash(
        &spec.template,
        deployment.status.as_ref().and_then(|s| s.collision_count),
    );
    let mut template = spec.template;
    let labels = template
        .metadata
        .get_or_insert_default()
        .labels
        .get_or_insert_default();
    labels.insert(POD_TEMPLATE_HASH.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector;
    selector
        .match_labels
        .get_or_insert_default()
        .insert(POD_TEMPLATE_HASH.to_owned(), hash.clone());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(generate_replica_set_name(
                deployment.metadata.name.as_deref().unwrap_or_default(),
                &hash,
            )),
            namespace: deployment.metadata.namespace.clone(),
            owner_references: Some(vec![new_controller_ref::<Deployment>(&deployment.metadata)]),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        },
        status: None,
    }
}

fn template_hash(template: &PodTemplateSpec, collision_count: Option<i32>) -> String {
    let json = serde_json::to_vec(template).expect("a pod template is plain data with text keys");
    compute_hash(&json, collision_count)
}

fn generate_replica_set_name(deployment: &str, hash: &str) -> String {
    let mut end = deployment.len().min(MAX_NAME_LENGTH - 1 - hash.len());
    while !deployment.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}-{hash}", &deployment[..end])
}

/// Deletes the oldest revisions beyond `revisionHistoryLimit`, those without pods.
pub(super) fn cleanup_deployment(pass: &mut Pass<'_>) {
    let Some(limit) = revision_history_limit(pass.observed) else {
        return;
    };
    let alive = |rs: &ReplicaSet| rs.metadata.deletion_timestamp.is_none();
    let mut cleanable: Vec<usize> = pass
        .old()
        .into_iter()
        .filter(|i| alive(&pass.sets[*i].rs))
        .collect();
    let excess = cleanable
        .len()
        .saturating_sub(usize::try_from(limit).unwrap_or(0));
    // Oldest first among equals: `old` is sorted by age and this sort is stable.
    cleanable.sort_by_key(|i| revision::revision(&pass.sets[*i].rs).unwrap_or(0));
    for index in cleanable.into_iter().take(excess) {
        let rs = &pass.sets[index].rs;
        let observed_generation = rs
            .status
            .as_ref()
            .and_then(|s| s.observed_generation)
            .unwrap_or(0);
        let busy = actual(rs) != 0
            || replicas(rs) != 0
            || rs.metadata.generation.unwrap_or(0) > observed_generation;
        pass.sets[index].delete = !busy;
    }
}

pub(super) fn new_condition(
    type_: &str,
    status: &str,
    reason: &str,
    message: String,
    now: &Time,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: Some(type_.to_owned()),
        status: Some(status.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now.clone()),
    }
}

/// Replaces the condition of this type unless status and reason are the same; the transition time stays with the status.
pub(super) fn set_deployment_condition(
    conditions: &mut Vec<DeploymentCondition>,
    mut condition: DeploymentCondition,
) {
    if let Some(current) = conditions.iter().find(|c| c.type_ == condition.type_)
        && current.status == condition.status
    {
        if current.reason == condition.reason {
            return;
        }
        condition.last_transition_time = current.last_transition_time.clone();
    }
    conditions.retain(|c| c.type_ != condition.type_);
    conditions.push(condition);
}

/// How large the new ReplicaSet may be now.
pub(super) fn new_rs_new_replicas(pass: &Pass<'_>, new: usize) -> i32 {
    let desired = desired_replicas(pass.observed);
    if !is_rolling_update(pass.observed) {
        return desired;
    }
    let size = replicas(&pass.sets[new].rs);
    let most = desired.saturating_add(max_surge(pass.observed));
    let room = most.saturating_sub(pass.replica_count());
    if room <= 0 {
        size
    } else {
        size + room.min(desired - size)
    }
}
