//! The kinds that keep a number of pods: ReplicaSet, and ReplicationController, its predecessor, which is the same to
//! this controller but for names and a few fields. Upstream: pkg/controller/replication wraps the replicaset controller too.

use std::borrow::Cow;
use std::fmt::Debug;

use k8s_openapi::api::apps::v1::{
    ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus,
};
use k8s_openapi::api::core::v1::{
    ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A kind that the controller keeps the pods of, seen as a ReplicaSet.
pub trait Replicated:
    kube::Resource<DynamicType = ()>
    + k8s_openapi::Resource
    + k8s_openapi::Metadata<Ty = ObjectMeta>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// The controller's name, its service account, and the source of its events.
    const CONTROLLER: &'static str;
    /// The name of its queue in metrics.
    const QUEUE: &'static str;
    /// The middle word of its `--concurrent-*-syncs`.
    const SYNCS: &'static str;
    /// Whether the status counts pods that are being deleted.
    const COUNTS_TERMINATING: bool;

    fn view(&self) -> Cow<'_, ReplicaSet>;
    fn with_status(&self, status: ReplicaSetStatus) -> Self;
}

impl Replicated for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset-controller";
    const QUEUE: &'static str = "replicaset";
    const SYNCS: &'static str = "replicaset";
    const COUNTS_TERMINATING: bool = true;

    fn view(&self) -> Cow<'_, ReplicaSet> {
        Cow::Borrowed(self)
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        Self {
            status: Some(status),
            ..self.clone()
        }
    }
}

impl Replicated for ReplicationController {
    const CONTROLLER: &'static str = "replication-controller";
    const QUEUE: &'static str = "replicationmanager";
    const SYNCS: &'static str = "rc";
    const COUNTS_TERMINATING: bool = false;

    fn view(&self) -> Cow<'_, ReplicaSet> {
        let spec = self.spec.clone().unwrap_or_default();
        let labels_of_template = || spec.template.as_ref()?.metadata.as_ref()?.labels.clone();
        let selector = spec
            .selector
            .clone()
            .filter(|s| !s.is_empty())
            .or_else(labels_of_template);
        Cow::Owned(ReplicaSet {
            metadata: self.metadata.clone(),
            spec: ReplicaSetSpec {
                min_ready_seconds: spec.min_ready_seconds,
                replicas: spec.replicas,
                selector: LabelSelector {
                    match_labels: selector,
                    match_expressions: None,
                },
                template: spec.template,
            },
            status: self.status.clone().map(|s| ReplicaSetStatus {
                available_replicas: s.available_replicas,
                conditions: s
                    .conditions
                    .map(|all| all.into_iter().map(condition).collect()),
                fully_labeled_replicas: s.fully_labeled_replicas,
                observed_generation: s.observed_generation,
                ready_replicas: s.ready_replicas,
                replicas: s.replicas,
                terminating_replicas: None,
            }),
        })
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        let back = |c: ReplicaSetCondition| ReplicationControllerCondition {
            type_: c.type_.unwrap_or_default(),
            status: c.status.unwrap_or_default(),
            reason: c.reason,
            message: c.message,
            last_transition_time: c.last_transition_time,
        };
        Self {
            status: Some(ReplicationControllerStatus {
                available_replicas: status.available_replicas,
                conditions: status
                    .conditions
                    .map(|all| all.into_iter().map(back).collect()),
                fully_labeled_replicas: status.fully_labeled_replicas,
                observed_generation: status.observed_generation,
                ready_replicas: status.ready_replicas,
                replicas: status.replicas,
            }),
            ..self.clone()
        }
    }
}

fn condition(c: ReplicationControllerCondition) -> ReplicaSetCondition {
    ReplicaSetCondition {
        type_: Some(c.type_),
        status: Some(c.status),
        reason: c.reason,
        message: c.message,
        last_transition_time: c.last_transition_time,
    }
}
