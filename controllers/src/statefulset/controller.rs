//! The shell: watches StatefulSets, their pods and revisions, and carries out what [`super::sync`] decides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::events::{EventType, object_reference};
use component_base::informer::{Factory, Informer, InformerOptions};
use component_base::shutdown::Shutdown;
use component_helpers::pod::{available_at, label};
use controller_runtime::executor::{Action, Executor};
use controller_runtime::{
    ApiError, Controller, ObjectKey, Queues, Watches, WorkQueue, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;
use serde_json::json;

use super::claims::{claims_of, is_claim_of};
use super::metrics::Metrics;
use super::sync::{self, Observed, Step, ordinal};
use super::text::{Said, outcome};
use crate::context::{ControllerContext, Running, StartError};
use crate::controller_ref::index_by_controller;
use crate::controller_ref_manager::{claim_objects, concerned};
use crate::history::HASH_LABEL;
use crate::history::revisions::{Revisioned as _, Revisions};
use crate::pod_control::{delete, record};

/// Whether a rolling update heeds `maxUnavailable`.
pub const MAX_UNAVAILABLE: &str = "MaxUnavailableStatefulSet";

/// Starts the controller under its own account.
///
/// # Errors
/// When it has no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let executor = context
        .executor("statefulset-controller", "statefulset-controller")
        .await?;
    let workers = context.options.workers("statefulset");
    let (controller, queue, watches) = StatefulSetController::new(
        &context.queues,
        &context.informers,
        executor,
        Metrics::register(&context.metrics)?,
        context.clock.clone(),
        context.features.enabled(MAX_UNAVAILABLE),
        &context.shutdown,
    );
    Ok(run_controller(
        controller,
        queue,
        watches,
        workers,
        context.shutdown.clone(),
    )
    .boxed())
}

/// What is done to an object.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Create,
    Update,
    Delete,
}

/// Reconciles StatefulSets by key.
pub struct StatefulSetController {
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    revisions: Revisions,
    claims: Informer<PersistentVolumeClaim>,
    executor: Executor,
    clock: Clock,
    /// Gate MaxUnavailableStatefulSet.
    max_unavailable: bool,
    metrics: Metrics,
}

impl StatefulSetController {
    /// The controller, its queue, and the watches that fill it; run them with [`controller_runtime::run_controller`].
    pub fn new(
        queues: &Queues,
        factory: &Factory,
        executor: Executor,
        metrics: Metrics,
        clock: Clock,
        max_unavailable: bool,
        shutdown: &Shutdown,
    ) -> (Arc<Self>, WorkQueue, Watches) {
        let controller = Arc::new(Self {
            sets: factory.informer(InformerOptions::default()),
            pods: factory.informer(InformerOptions::default()),
            revisions: Revisions::new(factory, executor.clone()),
            claims: factory.informer(InformerOptions::default()),
            executor,
            clock,
            max_unavailable,
            metrics,
        });
        index_by_controller(&controller.pods);
        let queue = queues.queue("statefulset");
        let mut watches = Watches::new(shutdown.clone());
        let keys = queue.clone();
        watches.on(&controller.sets, move |event| {
            keys.add(ObjectKey::of(&**event.object()))
        });
        let (handler, keys) = (controller.clone(), queue.clone());
        watches.on(&controller.pods, move |event| {
            let selects = |set: &StatefulSet, pod: &Pod| {
                set.selector()
                    .is_some_and(|s| s.matches(&pod.metadata.labels))
            };
            concerned(&handler.sets, &event, selects)
                .into_iter()
                .for_each(|key| keys.add(key));
        });
        let owners = controller.sets.clone();
        controller
            .revisions
            .watch(&mut watches, owners, queue.clone());
        let (handler, keys) = (controller.clone(), queue.clone());
        watches.on(&controller.claims, move |event| {
            let claim = event.object();
            handler
                .sets
                .list_namespace(claim.metadata.namespace.as_deref().unwrap_or_default())
                .iter()
                .filter(|set| is_claim_of(set, &claim.name_any()))
                .for_each(|set| keys.add(ObjectKey::of(&**set)));
        });
        (controller, queue, watches)
    }

    async fn carry_out(&self, set: &StatefulSet, steps: Vec<Step>) -> Result<(), ApiError> {
        let about = object_reference(set);
        for step in steps {
            let (what, verb, result) = match &step {
                Step::Delete(pod) => match delete(&self.executor, pod).await {
                    Ok(false) => continue,
                    result => (Said::Pod(pod.name_any()), Verb::Delete, result.map(drop)),
                },
                Step::TellConflict(claim) => {
                    let reason = "ConflictingController";
                    record(
                        &self.executor,
                        &about,
                        EventType::Warning,
                        reason,
                        conflict(claim),
                    )
                    .await;
                    continue;
                }
                Step::Create(pod) => (
                    Said::Pod(pod.name_any()),
                    Verb::Create,
                    self.executor.create(&**pod).await.map(drop),
                ),
                Step::Update(pod) => (
                    Said::Pod(pod.name_any()),
                    Verb::Update,
                    self.executor.execute(&relabel(pod)).await.map(drop),
                ),
                Step::CreateClaim(claim) => (
                    Said::Claim(claim.name_any()),
                    Verb::Create,
                    self.executor.create(&**claim).await.map(drop),
                ),
                Step::UpdateClaim(claim) => (
                    Said::Claim(claim.name_any()),
                    Verb::Update,
                    self.executor.update(&**claim).await.map(drop),
                ),
            };
            match &result {
                // The cache does not have it yet, or it is a stranger's: then its going brings us back.
                Err(error) if verb == Verb::Create && error.is_already_exists() => continue,
                Err(ApiError::NamespaceTerminating(_)) => return Ok(()),
                _ => self.tell(set, &about, &what, verb, &result).await,
            }
            result?;
        }
        Ok(())
    }

    async fn tell(
        &self,
        set: &StatefulSet,
        about: &ObjectReference,
        what: &Said,
        verb: Verb,
        result: &Result<(), ApiError>,
    ) {
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let (done, failed) = match verb {
            Verb::Create => ("SuccessfulCreate", "FailedCreate"),
            Verb::Update => ("SuccessfulUpdate", "FailedUpdate"),
            Verb::Delete => ("SuccessfulDelete", "FailedDelete"),
        };
        let (event_type, reason) = match result {
            Ok(()) => (EventType::Normal, done),
            Err(_) => (EventType::Warning, failed),
        };
        let message = outcome(name, what, verb, result.as_ref().err());
        record(&self.executor, about, event_type, reason, message).await;
    }

    /// The claims of the pods there are and of those there should be, by name.
    fn claims(
        &self,
        set: &StatefulSet,
        pods: &[Arc<Pod>],
    ) -> BTreeMap<String, Arc<PersistentVolumeClaim>> {
        let wanted = sync::wanted_names(set, pods);
        let names = pods.iter().map(|p| p.name_any()).chain(wanted);
        names
            .flat_map(|name| claims_of(set, &name))
            .filter_map(|(_, claim)| {
                let found = self.claims.get_key(&ObjectKey::of(&claim))?;
                Some((claim.name_any(), found))
            })
            .collect()
    }

    async fn clean_up(
        &self,
        set: &StatefulSet,
        existing: &[Arc<ControllerRevision>],
        observed: &Observed,
    ) -> Result<(), ApiError> {
        let used: BTreeSet<&str> = observed
            .pods
            .iter()
            .filter_map(|p| label(p, HASH_LABEL))
            .collect();
        let kept = [&observed.current, &observed.update].map(|r| r.metadata.name.clone());
        let is_live = |r: &ControllerRevision| {
            kept.contains(&r.metadata.name)
                || r.metadata.name.as_deref().is_some_and(|n| used.contains(n))
        };
        self.revisions.truncate(set, existing, is_live).await
    }
}

/// Gives a Pod its labels; of Pods the cache has a part, which must not be written back as the whole.
fn relabel(pod: &Pod) -> Action {
    let meta = &pod.metadata;
    let patch = json!({"metadata": {
        "uid": meta.uid, "resourceVersion": meta.resource_version, "labels": meta.labels,
    }});
    let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
    let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
    Action::strategic_patch::<Pod>(namespace, name, patch)
}

/// Upstream's words.
fn conflict(claim: &str) -> String {
    format!(
        "PersistentVolumeClaim {claim} has a conflicting OwnerReference that acts as a manging controller, the retention policy is ignored for this claim"
    )
}

#[async_trait]
impl Controller for StatefulSetController {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        "statefulset-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let Some(set) = self
            .sets
            .get_key(key)
            .filter(|s| s.metadata.deletion_timestamp.is_none())
        else {
            self.metrics.forget(key);
            return Ok(None);
        };
        if sync::is_recreate(&set) {
            // No retry helps; a change of the object brings it back.
            let about = object_reference(&*set);
            let message = format!(
                "statefulset {key} uses Recreate strategy but feature gate StatefulSetRecreateStrategy is disabled"
            );
            tracing::error!(stateful_set = %key, "{message}");
            let reason = "UnknownStrategy";
            record(&self.executor, &about, EventType::Warning, reason, message).await;
            return Ok(None);
        }
        let Some(selector) = set.selector() else {
            // No retry helps; a change of the object brings it back.
            tracing::error!(stateful_set = %key, "the selector is empty or invalid");
            return Ok(None);
        };
        let ours = |pod: &Pod| {
            ordinal(&key.name, pod.metadata.name.as_deref().unwrap_or_default()).is_some()
        };
        let claimed = claim_objects::<StatefulSet, Pod>(
            &self.executor,
            &self.pods,
            &set.metadata,
            &selector,
            None,
            ours,
        );
        let Some(pods) = claimed.await? else {
            return Ok(None);
        };
        let Some(revisions) = self.revisions.claim(&*set, &selector).await? else {
            return Ok(None);
        };
        let Some(update) = self.revisions.of_template(&*set, &revisions).await? else {
            return Ok(None);
        };
        let current = set
            .status
            .as_ref()
            .and_then(|s| s.current_revision.as_deref())
            .filter(|name| Some(*name) != update.metadata.name.as_deref());
        // DIFFERS: upstream takes the new one for the current one while its cache lacks that, and ends a rollout before it began.
        let current = match current {
            Some(name) if !name.is_empty() => self.revisions.named(&*set, name, &revisions).await?,
            _ => None,
        };
        let current = current.unwrap_or_else(|| update.clone());
        let observed = Observed {
            claims: self.claims(&set, &pods),
            pods,
            current,
            update,
        };
        let now = self.clock.now();
        let steps = sync::sync(&set, &observed, self.max_unavailable, now);
        if self.max_unavailable {
            self.metrics.observe(&set, &observed.pods, now);
        }
        let result = self.carry_out(&set, steps).await;
        let status = sync::calculate_status(&set, &observed, now);
        if set.status.as_ref() != Some(&status) {
            let updated = StatefulSet {
                status: Some(status),
                ..(*set).clone()
            };
            match self.executor.update_status(&updated).await {
                Ok(_) | Err(ApiError::NotFound(_)) => {}
                Err(error) => return Err(result.err().unwrap_or(error)),
            }
        }
        result?;
        self.clean_up(&set, &revisions, &observed).await?;
        let min_ready = sync::min_ready_seconds(&set);
        let next = observed
            .pods
            .iter()
            .filter_map(|p| available_at(p, min_ready))
            .filter(|at| *at > now)
            .min();
        Ok(next.and_then(|at| Duration::try_from(at.duration_since(now)).ok()))
    }
}
