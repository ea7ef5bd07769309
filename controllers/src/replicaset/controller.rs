//! The shell: watches ReplicaSets (or ReplicationControllers) and Pods, keeps expectations, and carries out what [`super::sync`] decides.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::events::{EventType, object_reference};
use component_base::informer::{Factory, Informer, InformerEvent, InformerOptions};
use component_base::shutdown::Shutdown;
use component_helpers::labels::{Selector, SelectorError};
use component_helpers::owner_ref::{get_controller_of, new_controller_ref};
use component_helpers::pod::{is_active, is_pod_ready, is_terminal, is_terminating, uid};
use controller_runtime::executor::{Action, DeleteOptions, Executor};
use controller_runtime::expectations::Expectations;
use controller_runtime::{
    ApiError, Controller, ObjectKey, Queues, Watches, WorkQueue, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::kind::Replicated;
use super::reason;
use super::sync::{self, Observed, Outcome, Plan};
use crate::context::{ControllerContext, Running, StartError};
use crate::controller_ref::{controlled_by, index_by_controller};
use crate::controller_ref_manager::{claim_objects, resolve};

/// Starts the controller under its own account.
///
/// # Errors
/// When it has no client.
pub async fn start<K: Replicated>(context: ControllerContext) -> Result<Running, StartError> {
    let executor = context.executor(K::CONTROLLER, K::CONTROLLER).await?;
    let workers = context.options.workers(K::SYNCS);
    let (controller, queue, watches) = ReplicaSetController::<K>::new(
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

/// Reconciles ReplicaSets, or what is like them, by key.
pub struct ReplicaSetController<K: Replicated> {
    replica_sets: Informer<K>,
    pods: Informer<Pod>,
    expectations: Expectations,
    executor: Executor,
    clock: Clock,
}

/// Pods up to which each change is looked at by itself.
const SMALL_SET: u64 = 100;
/// What a pass takes, about.
const PASS_PER_POD: Duration = Duration::from_micros(10);
/// A change is looked at after this time, however large the set.
const LONGEST_GATHERING: Duration = Duration::from_millis(100);

impl<K: Replicated> ReplicaSetController<K> {
    /// The controller, its queue, and the watches that fill it; run them with [`controller_runtime::run_controller`].
    pub fn new(
        queues: &Queues,
        factory: &Factory,
        executor: Executor,
        clock: Clock,
        shutdown: &Shutdown,
    ) -> (Arc<Self>, WorkQueue, Watches) {
        let replica_sets = factory.informer(InformerOptions::default());
        let pods = factory.informer(InformerOptions::default());
        Self::over(queues, replica_sets, pods, executor, clock, shutdown)
    }

    fn over(
        queues: &Queues,
        replica_sets: Informer<K>,
        pods: Informer<Pod>,
        executor: Executor,
        clock: Clock,
        shutdown: &Shutdown,
    ) -> (Arc<Self>, WorkQueue, Watches) {
        let controller = Arc::new(Self {
            replica_sets,
            pods,
            expectations: Expectations::new(clock.clone()),
            executor,
            clock,
        });
        index_by_controller(&controller.replica_sets);
        index_by_controller(&controller.pods);
        let queue = queues.queue(K::QUEUE);
        let mut watches = Watches::new(shutdown.clone());
        let (handler, keys) = (controller.clone(), queue.clone());
        watches.on(&controller.replica_sets, move |event| {
            handler.on_replica_set(&keys, &event)
        });
        let (handler, keys) = (controller.clone(), queue.clone());
        watches.on(&controller.pods, move |event| handler.on_pod(&keys, &event));
        (controller, queue, watches)
    }

    fn on_replica_set(&self, queue: &WorkQueue, event: &InformerEvent<K>) {
        let key = ObjectKey::of(&**event.object());
        match event {
            InformerEvent::Deleted(_) => self.expectations.delete(&key),
            // Deleted and created again between two looks: what was expected of the old one will never come.
            InformerEvent::Updated { old, new } if old.meta().uid != new.meta().uid => {
                self.expectations.delete(&key)
            }
            InformerEvent::Added(_) | InformerEvent::Updated { .. } => {}
        }
        queue.add(key);
    }

    fn on_pod(&self, queue: &WorkQueue, event: &InformerEvent<Pod>) {
        match event {
            InformerEvent::Added(pod) if is_terminating(pod) => self.on_pod_gone(queue, pod),
            InformerEvent::Added(pod) => match get_controller_of(&pod.metadata) {
                Some(_) => {
                    if let Some(key) = self.owner_of(&pod.metadata) {
                        let waited = !self.expectations.satisfied(&key);
                        self.expectations.creation_observed(&key);
                        self.enqueue(queue, key, waited);
                    }
                }
                None => self.enqueue_matching(queue, &pod.metadata),
            },
            InformerEvent::Updated { old, new } => self.on_pod_updated(queue, old, new),
            InformerEvent::Deleted(pod) => self.on_pod_gone(queue, pod),
        }
    }

    fn on_pod_updated(&self, queue: &WorkQueue, old: &Pod, new: &Pod) {
        let labels_changed = old.metadata.labels != new.metadata.labels;
        if is_terminating(new) {
            // It counts as gone the moment its deletion is seen; the final event comes long after.
            self.on_pod_gone(queue, new);
            if labels_changed {
                self.on_pod_gone(queue, old);
            }
            return;
        }
        let (old_owner, owner) = (
            get_controller_of(&old.metadata),
            get_controller_of(&new.metadata),
        );
        if old_owner != owner
            && let Some(key) = self.owner_of(&old.metadata)
        {
            queue.add(key);
        }
        if owner.is_none() {
            if labels_changed || old_owner.is_some() {
                self.enqueue_matching(queue, &new.metadata);
            }
            return;
        }
        let Some(key) = self.owner_of(&new.metadata) else {
            return;
        };
        let min_ready = self
            .replica_sets
            .get_key(&key)
            .map_or(0, |rs| sync::min_ready_seconds(&rs.view()));
        if !is_pod_ready(old) && is_pod_ready(new) && min_ready > 0 {
            queue.add_after(
                key.clone(),
                Duration::from_secs(u64::try_from(min_ready).unwrap_or(0)),
            );
        }
        self.enqueue(queue, key, false);
    }

    fn on_pod_gone(&self, queue: &WorkQueue, pod: &Pod) {
        if let Some(key) = self.owner_of(&pod.metadata) {
            let waited = !self.expectations.satisfied(&key);
            self.expectations.deleted_uid_observed(&key, uid(pod));
            self.enqueue(queue, key, waited);
        }
    }

    /// Queues the owner of a pod that came, went or changed. `waited`: nothing was done before the event came.
    ///
    /// DIFFERS: upstream looks at all pods of a ReplicaSet, and writes its status, at each change of one: the work of a rollout grows
    /// with the square of its size. Here a pass waits for others of its like as long as it takes itself, some 10 µs a pod; what was
    /// expected last is acted upon at once, and small sets always.
    fn enqueue(&self, queue: &WorkQueue, key: ObjectKey, waited: bool) {
        let acts = waited && self.expectations.satisfied(&key);
        let found = self.replica_sets.get_key(&key).filter(|_| !acts);
        let size = found.map_or(0, |object| {
            let rs = object.view();
            let now = rs.status.as_ref().map_or(0, |status| status.replicas);
            rs.spec.replicas.unwrap_or(1).max(now)
        });
        queue.add_after(key, gathering_time(size));
    }

    /// The ReplicaSet that controls this, if it is still the same one.
    fn owner_of(&self, meta: &ObjectMeta) -> Option<ObjectKey> {
        resolve(&self.replica_sets, meta).map(|rs| ObjectKey::of(&*rs))
    }

    /// An orphan: whoever selects it may want to adopt it.
    fn enqueue_matching(&self, queue: &WorkQueue, meta: &ObjectMeta) {
        let Some(labels) = meta.labels.as_ref().filter(|l| !l.is_empty()) else {
            return;
        };
        for rs in self
            .replica_sets
            .list_namespace(meta.namespace.as_deref().unwrap_or_default())
        {
            if selector(&rs.view()).is_ok_and(|s| !s.is_everything() && s.matches(labels)) {
                queue.add(ObjectKey::of(&*rs));
            }
        }
    }

    fn observe(
        &self,
        rs: &ReplicaSet,
        selector: &Selector,
        active: Vec<Arc<Pod>>,
        expectations_met: bool,
    ) -> Observed {
        let controlled = controlled_by(&self.pods, rs.metadata.uid.as_deref().unwrap_or_default());
        let terminating = controlled
            .into_iter()
            .filter(|p| {
                is_terminating(p) && !is_terminal(p) && selector.matches(&p.metadata.labels)
            })
            .collect();
        let want = rs.spec.replicas.unwrap_or(1);
        // Only deleting some of them needs to know their neighbours.
        let related = if usize::try_from(want).unwrap_or(0) < active.len() {
            self.related(rs)
        } else {
            Vec::new()
        };
        Observed {
            active,
            terminating,
            related,
            expectations_met,
        }
    }

    /// The pods of all ReplicaSets with the same owner.
    fn related(&self, rs: &ReplicaSet) -> Vec<Arc<Pod>> {
        let Some(owner) = get_controller_of(&rs.metadata) else {
            return Vec::new();
        };
        let siblings = controlled_by(&self.replica_sets, &owner.uid);
        siblings
            .iter()
            .filter_map(|s| s.meta().uid.as_deref())
            .flat_map(|uid| controlled_by(&self.pods, uid))
            .collect()
    }

    async fn carry_out(&self, key: &ObjectKey, object: &K, plan: Plan) -> Option<ApiError> {
        if plan.create > 0 {
            self.create_pods(key, object, plan.create).await
        } else if !plan.delete.is_empty() {
            self.delete_pods(key, object, &plan.delete).await
        } else {
            None
        }
    }

    async fn create_pods(&self, key: &ObjectKey, object: &K, count: usize) -> Option<ApiError> {
        let about = object_reference(object);
        let owner = new_controller_ref::<K>(object.meta());
        let pod = sync::pod_from_template(&object.view(), owner);
        let actions = vec![Action::create(&pod); count];
        self.expectations.expect_creations(key, count);
        let results = self.executor.slow_start_batch(&actions).await;
        let mut created = 0;
        let mut first_error = None;
        for result in results {
            match result {
                Ok(pod) => {
                    created += 1;
                    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
                    self.record(
                        &about,
                        EventType::Normal,
                        reason::SUCCESSFUL_CREATE,
                        format!("Created pod: {name}"),
                    )
                    .await;
                }
                // Nothing can be created there any more, and nobody wants to hear of it.
                Err(ApiError::NamespaceTerminating(_)) => {}
                Err(error) => {
                    self.record(
                        &about,
                        EventType::Warning,
                        reason::FAILED_CREATE,
                        format!("Error creating: {error}"),
                    )
                    .await;
                    first_error.get_or_insert(error);
                }
            }
        }
        // What failed and what was not tried will never be seen.
        for _ in created..count {
            self.expectations.creation_observed(key);
        }
        first_error
    }

    async fn delete_pods(
        &self,
        key: &ObjectKey,
        object: &K,
        pods: &[Arc<Pod>],
    ) -> Option<ApiError> {
        let about = object_reference(object);
        self.expectations
            .expect_deleted_uids(key, pods.iter().map(|p| uid(p).to_owned()));
        let deletions = pods.iter().map(|pod| async move {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let options = DeleteOptions {
                uid: pod.metadata.uid.clone(),
                ..DeleteOptions::default()
            };
            (
                pod,
                name,
                self.executor
                    .execute(&Action::delete::<Pod>(&key.namespace, name, options))
                    .await,
            )
        });
        let mut first_error = None;
        for (pod, name, result) in futures::future::join_all(deletions).await {
            match result {
                // Null: it was gone already, so no event of ours will come.
                Ok(answer) if answer.is_null() => {
                    self.expectations.deleted_uid_observed(key, uid(pod))
                }
                Ok(_) => {
                    self.record(
                        &about,
                        EventType::Normal,
                        reason::SUCCESSFUL_DELETE,
                        format!("Deleted pod: {name}"),
                    )
                    .await
                }
                Err(error) => {
                    self.expectations.deleted_uid_observed(key, uid(pod));
                    // A namesake: ours is gone.
                    if error.is_conflict() {
                        continue;
                    }
                    self.record(
                        &about,
                        EventType::Warning,
                        reason::FAILED_DELETE,
                        format!("Error deleting: {error}"),
                    )
                    .await;
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error
    }

    async fn record(
        &self,
        about: &ObjectReference,
        event_type: EventType,
        reason: &'static str,
        message: String,
    ) {
        // Recording only queues; it has no failure that anyone could act on.
        let regarding = Box::new(about.clone());
        let event = Action::Event {
            regarding,
            event_type,
            reason,
            message,
        };
        let _ = self.executor.execute(&event).await;
    }

    async fn update_status(
        &self,
        object: &K,
        observed: &Observed,
        outcome: &Outcome,
        now: jiff::Timestamp,
    ) -> Result<(), ApiError> {
        let rs = object.view();
        let mut status = sync::calculate_status(&rs, observed, outcome, now);
        if !K::COUNTS_TERMINATING {
            status.terminating_replicas = None;
        }
        if rs.status.as_ref() == Some(&status) {
            return Ok(());
        }
        match self
            .executor
            .update_status(&object.with_status(status.clone()))
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if error.is_conflict() => {
                // Once more on a fresh copy, with the generation that was acted on, as upstream.
                let (namespace, name) = (
                    rs.metadata.namespace.as_deref().unwrap_or_default(),
                    rs.metadata.name.as_deref().unwrap_or_default(),
                );
                match self.executor.get::<K>(namespace, name).await? {
                    Some(fresh) if fresh.meta().uid == rs.metadata.uid => {
                        let fresh = fresh.with_status(status);
                        self.executor.update_status(&fresh).await.map(drop)
                    }
                    _ => Ok(()),
                }
            }
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// How long changes of the pods of a set of this size are gathered.
fn gathering_time(size: i32) -> Duration {
    match u64::try_from(size) {
        Ok(size) if size > SMALL_SET => {
            let pods = u32::try_from(size).unwrap_or(u32::MAX);
            PASS_PER_POD.saturating_mul(pods).min(LONGEST_GATHERING)
        }
        _ => Duration::ZERO,
    }
}

fn selector(rs: &ReplicaSet) -> Result<Selector, SelectorError> {
    Selector::new(&rs.spec.selector)
}

#[async_trait]
impl<K: Replicated> Controller for ReplicaSetController<K> {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        K::CONTROLLER
    }

    fn is_conflict(&self, error: &ApiError) -> bool {
        error.is_conflict()
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let Some(object) = self.replica_sets.get_key(key) else {
            self.expectations.delete(key);
            return Ok(None);
        };
        let rs = object.view();
        // Before the pods are read: what is seen in between is then in the pods.
        let expectations_met = self.expectations.satisfied(key);
        let selector = match selector(&rs) {
            Ok(selector) => selector,
            Err(error) => {
                // No retry helps; a change of the object brings it back.
                tracing::error!(replica_set = %key, %error, "error converting pod selector to selector");
                return Ok(None);
            }
        };
        let claimed = claim_objects::<K, Pod>(
            &self.executor,
            &self.pods,
            &rs.metadata,
            &selector,
            None,
            is_active,
        );
        let Some(active) = claimed.await? else {
            return Ok(None);
        };
        let observed = self.observe(&rs, &selector, active, expectations_met);
        let now = self.clock.now();
        let plan = sync::sync(&rs, &observed, now);
        let error = self.carry_out(key, &object, plan).await;
        let outcome = Outcome {
            error: error.as_ref().map(ApiError::to_string),
        };
        self.update_status(&object, &observed, &outcome, now)
            .await?;
        match error {
            Some(error) => Err(error),
            None => Ok(sync::next_availability_check(&rs, &observed, now)),
        }
    }
}

#[cfg(test)]
#[path = "controller/tests.rs"]
mod tests;
