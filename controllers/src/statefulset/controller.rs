//! The shell: watches StatefulSets, their pods and revisions, and carries out what [`super::sync`] decides.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::events::{EventType, object_reference};
use component_base::informer::{Factory, Informer, InformerOptions};
use component_base::shutdown::Shutdown;
use component_helpers::labels::Selector;
use component_helpers::owner_ref::new_controller_ref;
use component_helpers::pod::{available_at, label};
use controller_runtime::executor::{Action, DeleteOptions, Executor};
use controller_runtime::{ApiError, Controller, ObjectKey, Watches, WorkQueue, run_controller};
use futures::FutureExt as _;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

use super::sync::{self, Observed, Step, ordinal};
use crate::context::{ControllerContext, Running, StartError};
use crate::controller_ref::{controlled_by, index_by_controller};
use crate::history::{self, HASH_LABEL, Next, REVISION_HASH_LABEL};
use crate::pod_control::{claim_pods, concerned, delete_pod, record};

/// `spec.revisionHistoryLimit` as the API server defaults it.
const HISTORY_LIMIT: i32 = 10;

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
        &context.informers,
        executor,
        Clock::real(),
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

/// Reconciles StatefulSets by key.
pub struct StatefulSetController {
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    revisions: Informer<ControllerRevision>,
    claims: Informer<PersistentVolumeClaim>,
    executor: Executor,
    clock: Clock,
}

impl StatefulSetController {
    /// The controller, its queue, and the watches that fill it; run them with [`controller_runtime::run_controller`].
    pub fn new(
        factory: &Factory,
        executor: Executor,
        clock: Clock,
        shutdown: &Shutdown,
    ) -> (Arc<Self>, WorkQueue, Watches) {
        let controller = Arc::new(Self {
            sets: factory.informer(InformerOptions::default()),
            pods: factory.informer(InformerOptions::default()),
            revisions: factory.informer(InformerOptions::default()),
            claims: factory.informer(InformerOptions::default()),
            executor,
            clock,
        });
        index_by_controller(&controller.pods);
        index_by_controller(&controller.revisions);
        let queue = WorkQueue::new("statefulset");
        let mut watches = Watches::new(shutdown.clone());
        let keys = queue.clone();
        watches.on(&controller.sets, move |event| {
            keys.add(ObjectKey::of(&**event.object()))
        });
        let (handler, keys) = (controller.clone(), queue.clone());
        watches.on(&controller.pods, move |event| {
            let selects = |set: &StatefulSet, pod: &Pod| {
                selector(set).is_some_and(|s| s.matches(&pod.metadata.labels))
            };
            concerned(&handler.sets, &event, selects)
                .into_iter()
                .for_each(|key| keys.add(key));
        });
        watches.wait_for(&controller.revisions);
        watches.wait_for(&controller.claims);
        (controller, queue, watches)
    }

    /// The revision of the present template; `None`: nothing can be created there any more.
    async fn revision(
        &self,
        set: &StatefulSet,
        existing: &[Arc<ControllerRevision>],
    ) -> Result<Option<Arc<ControllerRevision>>, ApiError> {
        let template = set
            .spec
            .as_ref()
            .map(|s| s.template.clone())
            .unwrap_or_default();
        let collisions = set.status.as_ref().and_then(|s| s.collision_count);
        let reference = new_controller_ref::<StatefulSet>(&set.metadata);
        match history::next(
            REVISION_HASH_LABEL,
            &set.metadata,
            reference,
            &template,
            existing,
            collisions,
        ) {
            Next::Use(revision) => Ok(Some(revision)),
            Next::Renumber(revision) => Ok(Some(Arc::new(self.executor.update(&*revision).await?))),
            Next::Create(revision) => match self.executor.create(&*revision).await {
                Ok(created) => Ok(Some(Arc::new(created))),
                Err(ApiError::NamespaceTerminating(_)) => Ok(None),
                Err(error) if error.is_already_exists() => {
                    let meta = &revision.metadata;
                    let (ns, name) = (
                        meta.namespace.as_deref().unwrap_or_default(),
                        meta.name.as_deref().unwrap_or_default(),
                    );
                    let found = self.executor.get::<ControllerRevision>(ns, name).await?;
                    if let Some(found) = found.filter(|f| f.data == revision.data) {
                        return Ok(Some(Arc::new(found)));
                    }
                    let mut set = set.clone();
                    let status = set.status.get_or_insert_default();
                    status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
                    self.executor.update_status(&set).await?;
                    Err(error)
                }
                Err(error) => Err(error),
            },
        }
    }

    async fn carry_out(&self, set: &StatefulSet, steps: Vec<Step>) -> Result<(), ApiError> {
        let about = object_reference(set);
        let name = set.metadata.name.as_deref().unwrap_or_default();
        for step in steps {
            match step {
                Step::Delete(pod) => {
                    delete_pod(&self.executor, &about, &pod).await?;
                }
                Step::Create { pod, claims } => {
                    for claim in claims {
                        if self.claims.get_key(&ObjectKey::of(&claim)).is_some() {
                            continue;
                        }
                        match self.executor.create(&claim).await {
                            Ok(_) => {}
                            Err(error) if error.is_already_exists() => {}
                            Err(error) => return Err(error),
                        }
                    }
                    let pod_name = pod.metadata.name.clone().unwrap_or_default();
                    match self.executor.create(&*pod).await {
                        Ok(_) => {
                            let message =
                                format!("create Pod {pod_name} in StatefulSet {name} successful");
                            record(
                                &self.executor,
                                &about,
                                EventType::Normal,
                                "SuccessfulCreate",
                                message,
                            )
                            .await;
                        }
                        // The cache does not have it yet, or it is a stranger's: then its going brings us back.
                        Err(error) if error.is_already_exists() => {}
                        Err(ApiError::NamespaceTerminating(_)) => return Ok(()),
                        Err(error) => {
                            let message = format!(
                                "create Pod {pod_name} in StatefulSet {name} failed error: {error}"
                            );
                            record(
                                &self.executor,
                                &about,
                                EventType::Warning,
                                "FailedCreate",
                                message,
                            )
                            .await;
                            return Err(error);
                        }
                    }
                }
            }
        }
        Ok(())
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
        let limit = set
            .spec
            .as_ref()
            .and_then(|s| s.revision_history_limit)
            .unwrap_or(HISTORY_LIMIT);
        let limit = usize::try_from(limit).unwrap_or(0);
        for revision in history::surplus(existing, is_live, limit) {
            let key = ObjectKey::of(&*revision);
            let options = DeleteOptions {
                uid: revision.metadata.uid.clone(),
                ..DeleteOptions::default()
            };
            self.executor
                .execute(&Action::delete::<ControllerRevision>(
                    &key.namespace,
                    &key.name,
                    options,
                ))
                .await?;
        }
        Ok(())
    }
}

fn selector(set: &StatefulSet) -> Option<Selector> {
    let selector = Selector::new(&set.spec.as_ref()?.selector).ok()?;
    (!selector.is_everything()).then_some(selector)
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
            return Ok(None);
        };
        let Some(selector) = selector(&set) else {
            // No retry helps; a change of the object brings it back.
            tracing::error!(stateful_set = %key, "the selector is empty or invalid");
            return Ok(None);
        };
        let ours = |pod: &Pod| {
            ordinal(&key.name, pod.metadata.name.as_deref().unwrap_or_default()).is_some()
        };
        let claimed = claim_pods::<StatefulSet>(
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
        let revisions = controlled_by(
            &self.revisions,
            set.metadata.uid.as_deref().unwrap_or_default(),
        );
        let Some(update) = self.revision(&set, &revisions).await? else {
            return Ok(None);
        };
        let current = set
            .status
            .as_ref()
            .and_then(|s| s.current_revision.as_ref());
        let current = revisions
            .iter()
            .find(|r| r.metadata.name.as_ref() == current)
            .unwrap_or(&update)
            .clone();
        let observed = Observed {
            pods,
            current,
            update,
        };
        let now = self.clock.now();
        let result = self.carry_out(&set, sync::sync(&set, &observed, now)).await;
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
