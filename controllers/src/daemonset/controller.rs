//! The shell: watches DaemonSets, their pods and revisions, and Nodes, and carries out what [`super::sync`] decides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::events::{EventType, object_reference};
use component_base::informer::{Factory, Informer, InformerEvent, InformerOptions};
use component_base::shutdown::Shutdown;
use component_helpers::pod::{available_at, is_terminating, label, name, namespace, phase, uid};
use controller_runtime::executor::Executor;
use controller_runtime::expectations::Expectations;
use controller_runtime::{
    ApiError, Controller, ObjectKey, Queues, Watches, WorkQueue, run_controller,
};
use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};

use super::backoff::{self, Backoff};
use super::sync::{self, Observed, Plan};
use crate::context::{ControllerContext, Running, StartError};
use crate::controller_ref::index_by_controller;
use crate::controller_ref_manager::{claim_objects, concerned, resolve};
use crate::history::revisions::{Revisioned as _, Revisions};
use crate::history::{self, HASH_LABEL};
use crate::pod_control::{create_pods, delete_pod, record};

/// Starts the controller under its own account.
///
/// # Errors
/// When it has no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let executor = context
        .executor("daemon-set-controller", "daemonset-controller")
        .await?;
    let workers = context.options.workers("daemonset");
    let (controller, queue, watches) = DaemonSetController::new(
        &context.queues,
        &context.informers,
        executor,
        context.clock.clone(),
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

/// Reconciles DaemonSets by key.
pub struct DaemonSetController {
    daemon_sets: Informer<DaemonSet>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    revisions: Revisions,
    expectations: Expectations,
    backoff: Backoff,
    executor: Executor,
    clock: Clock,
}

impl DaemonSetController {
    /// The controller, its queue, and the watches that fill it; run them with [`controller_runtime::run_controller`].
    pub fn new(
        queues: &Queues,
        factory: &Factory,
        executor: Executor,
        clock: Clock,
        shutdown: &Shutdown,
    ) -> (Arc<Self>, WorkQueue, Watches) {
        let daemon_sets = factory.informer(InformerOptions::default());
        let pods = factory.informer(InformerOptions::default());
        let nodes = factory.informer(InformerOptions::default());
        let revisions = Revisions::new(factory, executor.clone());
        Self::over(
            queues,
            (daemon_sets, pods, nodes),
            revisions,
            executor,
            clock,
            shutdown,
        )
    }

    fn over(
        queues: &Queues,
        (daemon_sets, pods, nodes): (Informer<DaemonSet>, Informer<Pod>, Informer<Node>),
        revisions: Revisions,
        executor: Executor,
        clock: Clock,
        shutdown: &Shutdown,
    ) -> (Arc<Self>, WorkQueue, Watches) {
        let controller = Arc::new(Self {
            daemon_sets,
            pods,
            nodes,
            revisions,
            expectations: Expectations::new(clock.clone()),
            backoff: Backoff::default(),
            executor,
            clock,
        });
        index_by_controller(&controller.pods);
        let queue = queues.queue("daemonset");
        let mut watches = Watches::new(shutdown.clone());
        let (handler, keys) = (controller.clone(), queue.clone());
        watches.on(&controller.daemon_sets, move |event| {
            let key = ObjectKey::of(&**event.object());
            if matches!(event, InformerEvent::Deleted(_)) {
                // What was expected of it will never come, and a namesake must not wait for it.
                handler.expectations.delete(&key);
            }
            keys.add(key);
        });
        let (handler, keys) = (controller.clone(), queue.clone());
        watches.on(&controller.pods, move |event| handler.on_pod(&keys, &event));
        let owners = controller.daemon_sets.clone();
        controller
            .revisions
            .watch(&mut watches, owners, queue.clone());
        let (handler, keys) = (controller.clone(), queue.clone());
        watches.on(&controller.nodes, move |event| {
            handler.on_node(&keys, &event)
        });
        (controller, queue, watches)
    }

    fn on_pod(&self, queue: &WorkQueue, event: &InformerEvent<Pod>) {
        let pod = event.object();
        if let Some(ds) = resolve(&self.daemon_sets, &pod.metadata) {
            let key = ObjectKey::of(&*ds);
            match event {
                InformerEvent::Added(pod) if !is_terminating(pod) => {
                    self.expectations.creation_observed(&key)
                }
                InformerEvent::Updated { new, .. } if !is_terminating(new) => {}
                _ => self.expectations.deleted_uid_observed(&key, uid(pod)),
            }
        }
        let selects = |ds: &DaemonSet, pod: &Pod| {
            ds.selector()
                .is_some_and(|s| s.matches(&pod.metadata.labels))
        };
        concerned(&self.daemon_sets, event, selects)
            .into_iter()
            .for_each(|key| queue.add(key));
    }

    fn on_node(&self, queue: &WorkQueue, event: &InformerEvent<Node>) {
        if let InformerEvent::Updated { old, new } = event {
            // A heartbeat changes nothing for us.
            let taints = |n: &Node| n.spec.as_ref().and_then(|s| s.taints.clone());
            if old.metadata.labels == new.metadata.labels && taints(old) == taints(new) {
                return;
            }
        }
        self.daemon_sets
            .list()
            .iter()
            .for_each(|ds| queue.add(ObjectKey::of(&**ds)));
    }

    /// Tells of ended pods that are about to go, and lets the next failed one on the same node wait.
    async fn tell_of_ended(&self, ds: &DaemonSet, plan: &Plan, now: Timestamp) {
        let about = object_reference(ds);
        for pod in &plan.delete {
            let (event_type, reason, state, verb) = match phase(pod) {
                "Failed" => (EventType::Warning, "FailedDaemonPod", "failed", "kill"),
                "Succeeded" => (
                    EventType::Normal,
                    "SucceededDaemonPod",
                    "succeeded",
                    "delete",
                ),
                _ => continue,
            };
            let node = sync::target_node(pod).unwrap_or_default();
            let message = format!(
                "Found {state} daemon pod {}/{} on node {node}, will try to {verb} it",
                namespace(pod),
                name(pod)
            );
            record(&self.executor, &about, event_type, reason, message).await;
            if reason == "FailedDaemonPod" {
                self.backoff.next(backoff_key(ds, node), now);
            }
        }
    }

    async fn carry_out(&self, key: &ObjectKey, ds: &DaemonSet, plan: Plan) -> Option<ApiError> {
        let about = object_reference(ds);
        if !plan.delete.is_empty() {
            self.expectations
                .expect_deleted_uids(key, plan.delete.iter().map(|p| uid(p).to_owned()));
            let deletions = plan.delete.iter().map(|p| {
                let about = &about;
                async move { (p, delete_pod(&self.executor, about, p).await) }
            });
            let mut first_error = None;
            for (pod, result) in futures::future::join_all(deletions).await {
                match result {
                    Ok(true) => {}
                    Ok(false) => self.expectations.deleted_uid_observed(key, uid(pod)),
                    Err(error) => {
                        self.expectations.deleted_uid_observed(key, uid(pod));
                        first_error.get_or_insert(error);
                    }
                }
            }
            // What is to be created comes with the next pass, which their events bring.
            return first_error;
        }
        if plan.create.is_empty() {
            return None;
        }
        self.expectations.expect_creations(key, plan.create.len());
        let created = create_pods(&self.executor, &about, &plan.create).await;
        for _ in created.count..plan.create.len() {
            self.expectations.creation_observed(key);
        }
        created.error
    }

    async fn clean_up(
        &self,
        ds: &DaemonSet,
        existing: &[Arc<ControllerRevision>],
        observed: &Observed,
    ) -> Result<(), ApiError> {
        let mut live: BTreeSet<String> = observed
            .pods
            .iter()
            .filter_map(|p| label(p, HASH_LABEL).map(str::to_owned))
            .collect();
        live.insert(observed.hash.clone());
        let is_live = |r: &ControllerRevision| live.contains(history::hash(r));
        self.revisions.truncate(ds, existing, is_live).await
    }
}

fn backoff_key(ds: &DaemonSet, node: String) -> backoff::Key {
    let generation = ds.status.as_ref().and_then(|s| s.observed_generation);
    let uid = ds.metadata.uid.clone().unwrap_or_default();
    (uid, generation.unwrap_or(0), node)
}

#[async_trait]
impl Controller for DaemonSetController {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        "daemonset-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let Some(ds) = self.daemon_sets.get_key(key) else {
            self.expectations.delete(key);
            return Ok(None);
        };
        let expectations_met = self.expectations.satisfied(key);
        let Some(selector) = ds.selector() else {
            // No retry helps; a change of the object brings it back.
            tracing::error!(daemon_set = %key, "the selector is empty or invalid");
            return Ok(None);
        };
        if ds.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let claimed = claim_objects::<DaemonSet, Pod>(
            &self.executor,
            &self.pods,
            &ds.metadata,
            &selector,
            None,
            |_| true,
        );
        let Some(pods) = claimed.await? else {
            return Ok(None);
        };
        let Some(revisions) = self.revisions.claim(&*ds, &selector).await? else {
            return Ok(None);
        };
        let Some(revision) = self.revisions.of_template(&*ds, &revisions).await? else {
            return Ok(None);
        };
        let hash = history::hash(&revision).to_owned();
        let now = self.clock.now();
        let held_back: BTreeMap<String, Duration> = pods
            .iter()
            .filter(|p| phase(p) == "Failed")
            .filter_map(|p| sync::target_node(p))
            .filter_map(|node| {
                let left = self
                    .backoff
                    .remaining(&backoff_key(&ds, node.clone()), now)?;
                Some((node, left))
            })
            .collect();
        let observed = Observed {
            nodes: self.nodes.list(),
            pods,
            hash,
            expectations_met,
            held_back: held_back.keys().cloned().collect(),
        };
        let plan = sync::sync(&ds, &observed, now);
        self.tell_of_ended(&ds, &plan, now).await;
        let error = self.carry_out(key, &ds, plan).await;
        let status = sync::calculate_status(&ds, &observed, now);
        if ds.status.as_ref() != Some(&status) {
            let updated = DaemonSet {
                status: Some(status),
                ..(*ds).clone()
            };
            match self.executor.update_status(&updated).await {
                Ok(_) | Err(ApiError::NotFound(_)) => {}
                Err(status_error) => return Err(error.unwrap_or(status_error)),
            }
        }
        if let Some(error) = error {
            return Err(error);
        }
        self.clean_up(&ds, &revisions, &observed).await?;
        let min_ready = sync::min_ready_seconds(&ds);
        let next = observed
            .pods
            .iter()
            .filter_map(|p| available_at(p, min_ready))
            .filter(|at| *at > now)
            .min();
        let next = next.and_then(|at| Duration::try_from(at.duration_since(now)).ok());
        Ok(next.into_iter().chain(held_back.into_values()).min())
    }
}

#[cfg(test)]
#[path = "controller/tests.rs"]
mod tests;
