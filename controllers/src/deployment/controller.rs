//! The shell: watches Deployments, ReplicaSets and Pods, observes, and carries out what [`super::sync`] decides.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::events::EventType;
use component_base::informer::{Factory, Informer, InformerEvent, InformerOptions};
use component_base::shutdown::Shutdown;
use component_helpers::labels::{Selector, SelectorError};
use component_helpers::owner_ref::{get_controller_of, new_controller_ref};
use controller_runtime::executor::{self, DeleteOptions, Executor};
use controller_runtime::{ApiError, Controller, ObjectKey, Watches, WorkQueue, run_controller};
use futures::FutureExt as _;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::replica_sets::strategy_type;
use super::sync::{self, Action, Notice, Observed};
use crate::context::{ControllerContext, Running, StartError};
use crate::controller_ref::{
    adopt_patch, claim, controlled_by, index_by_controller, orphans, release_patch,
};

/// Upstream's: 5 ms doubling 15 times is a bit more than 80 s.
const MAX_RETRIES: u32 = 15;

/// Starts the controller under its own account.
///
/// # Errors
/// When it has no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let executor = context
        .executor("deployment-controller", "deployment-controller")
        .await?;
    let workers = context.options.workers("deployment");
    let (controller, queue, watches) = DeploymentController::new(
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

/// Why one pass failed; a retry may help.
#[derive(Debug, thiserror::Error)]
pub enum DeploymentError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("deployment {key}: invalid selector: {source}")]
    Selector {
        key: ObjectKey,
        #[source]
        source: SelectorError,
    },
    #[error("deployment {0} is being deleted, it adopts nothing")]
    Deleting(ObjectKey),
    #[error("original Deployment {key} is gone: got uid {found:?}, wanted {wanted:?}")]
    Replaced {
        key: ObjectKey,
        found: String,
        wanted: String,
    },
}

/// Reconciles Deployments by key.
pub struct DeploymentController {
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    executor: Executor,
    clock: Clock,
}

impl DeploymentController {
    /// The controller, its queue, and the watches that fill it; run them with [`controller_runtime::run_controller`].
    pub fn new(
        factory: &Factory,
        executor: Executor,
        clock: Clock,
        shutdown: &Shutdown,
    ) -> (Arc<Self>, WorkQueue, Watches) {
        let deployments = factory.informer(InformerOptions::default());
        let replica_sets = factory.informer(InformerOptions::default());
        let pods = factory.informer(InformerOptions::default());
        Self::over(deployments, replica_sets, pods, executor, clock, shutdown)
    }

    fn over(
        deployments: Informer<Deployment>,
        replica_sets: Informer<ReplicaSet>,
        pods: Informer<Pod>,
        executor: Executor,
        clock: Clock,
        shutdown: &Shutdown,
    ) -> (Arc<Self>, WorkQueue, Watches) {
        let controller = Arc::new(Self {
            deployments,
            replica_sets,
            pods,
            executor,
            clock,
        });
        index_by_controller(&controller.replica_sets);
        index_by_controller(&controller.pods);
        let queue = WorkQueue::new("deployment");
        let mut watches = Watches::new(shutdown.clone());
        let (handler, keys) = (controller.clone(), queue.clone());
        watches.on(&controller.deployments, move |event| {
            keys.add(ObjectKey::of(&**event.object()))
        });
        let keys = queue.clone();
        watches.on(&controller.replica_sets, move |event| {
            handler.on_replica_set(&keys, &event)
        });
        let (handler, keys) = (controller.clone(), queue.clone());
        watches.on(&controller.pods, move |event| {
            if let InformerEvent::Deleted(pod) = event {
                handler.on_pod_deleted(&keys, &pod);
            }
        });
        (controller, queue, watches)
    }

    fn on_replica_set(&self, queue: &WorkQueue, event: &InformerEvent<ReplicaSet>) {
        let (old, new) = match event {
            InformerEvent::Added(new) => (None, new),
            InformerEvent::Updated { old, new } => (Some(old), new),
            InformerEvent::Deleted(last) => return self.enqueue_controller(queue, &last.metadata),
        };
        let owner = get_controller_of(&new.metadata);
        if let Some(old) = old
            && get_controller_of(&old.metadata) != owner
        {
            self.enqueue_controller(queue, &old.metadata);
        }
        match (owner, old) {
            (Some(_), _) => self.enqueue_controller(queue, &new.metadata),
            (None, Some(old))
                if old.metadata.labels == new.metadata.labels
                    && get_controller_of(&old.metadata).is_none() => {}
            (None, _) => self.enqueue_matching(queue, &new.metadata),
        }
    }

    fn enqueue_controller(&self, queue: &WorkQueue, meta: &ObjectMeta) {
        if let Some(deployment) =
            get_controller_of(meta).and_then(|owner| self.resolve_controller_ref(meta, owner))
        {
            queue.add(ObjectKey::of(&*deployment));
        }
    }

    /// The Deployment of this reference, if it is still the same one.
    fn resolve_controller_ref(
        &self,
        meta: &ObjectMeta,
        owner: &OwnerReference,
    ) -> Option<Arc<Deployment>> {
        if owner.kind != "Deployment" {
            return None;
        }
        let deployment = self
            .deployments
            .get(meta.namespace.as_deref().unwrap_or_default(), &owner.name)?;
        (deployment.metadata.uid.as_ref() == Some(&owner.uid)).then_some(deployment)
    }

    /// An orphan: whoever selects it may want to adopt it.
    fn enqueue_matching(&self, queue: &WorkQueue, meta: &ObjectMeta) {
        let Some(labels) = meta.labels.as_ref().filter(|l| !l.is_empty()) else {
            return;
        };
        for deployment in self
            .deployments
            .list_namespace(meta.namespace.as_deref().unwrap_or_default())
        {
            if selector(&deployment).is_ok_and(|s| !s.is_everything() && s.matches(labels)) {
                queue.add(ObjectKey::of(&*deployment));
            }
        }
    }

    /// `Recreate` waits for the last old pod to be gone.
    fn on_pod_deleted(&self, queue: &WorkQueue, pod: &Pod) {
        let Some(owner) = get_controller_of(&pod.metadata).filter(|o| o.kind == "ReplicaSet")
        else {
            return;
        };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let Some(rs) = self.replica_sets.get(namespace, &owner.name) else {
            return;
        };
        let deployment = get_controller_of(&rs.metadata)
            .and_then(|owner| self.resolve_controller_ref(&rs.metadata, owner));
        if let Some(deployment) = deployment.filter(|d| strategy_type(d) == "Recreate")
            && self.pods_of(&self.controlled(&deployment)).is_empty()
        {
            queue.add(ObjectKey::of(&*deployment));
        }
    }

    fn controlled(&self, deployment: &Deployment) -> Vec<Arc<ReplicaSet>> {
        controlled_by(
            &self.replica_sets,
            deployment.metadata.uid.as_deref().unwrap_or_default(),
        )
    }

    fn pods_of(&self, sets: &[Arc<ReplicaSet>]) -> Vec<Arc<Pod>> {
        sets.iter()
            .filter_map(|rs| rs.metadata.uid.as_deref())
            .flat_map(|uid| controlled_by(&self.pods, uid))
            .collect()
    }

    /// Adopts and releases ReplicaSets. Returns those that are owned, or `None` if something changed: then the
    /// watch brings the Deployment back.
    async fn claim(
        &self,
        key: &ObjectKey,
        deployment: &Deployment,
    ) -> Result<Option<Vec<Arc<ReplicaSet>>>, DeploymentError> {
        let selector = selector(deployment).map_err(|source| DeploymentError::Selector {
            key: key.clone(),
            source,
        })?;
        let candidates = self
            .controlled(deployment)
            .into_iter()
            .chain(orphans(&self.replica_sets, &key.namespace));
        let claim = claim(&deployment.metadata, &selector, candidates);
        if claim.is_settled() {
            return Ok(Some(claim.owned));
        }
        let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
        if !claim.adopt.is_empty() {
            self.recheck(key, uid).await?;
        }
        let owner = new_controller_ref::<Deployment>(&deployment.metadata);
        let adopt = claim.adopt.iter().map(|rs| {
            (
                rs,
                adopt_patch(&owner, rs.metadata.uid.as_deref().unwrap_or_default()),
            )
        });
        let release = claim.release.iter().map(|rs| {
            (
                rs,
                release_patch(uid, rs.metadata.uid.as_deref().unwrap_or_default()),
            )
        });
        for (rs, patch) in adopt.chain(release) {
            let name = rs.metadata.name.as_deref().unwrap_or_default();
            match self
                .executor
                .execute(&executor::Action::strategic_patch::<ReplicaSet>(
                    &key.namespace,
                    name,
                    patch,
                ))
                .await
            {
                // Gone, or a namesake by now.
                Ok(_) | Err(ApiError::NotFound(_) | ApiError::Invalid(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Past the cache: a Deployment that is being deleted must not adopt what the garbage collector is about to orphan.
    async fn recheck(&self, key: &ObjectKey, uid: &str) -> Result<(), DeploymentError> {
        let fresh = self
            .executor
            .get::<Deployment>(&key.namespace, &key.name)
            .await?;
        let found = fresh
            .as_ref()
            .and_then(|d| d.metadata.uid.clone())
            .unwrap_or_default();
        if found != uid {
            return Err(DeploymentError::Replaced {
                key: key.clone(),
                found,
                wanted: uid.to_owned(),
            });
        }
        match fresh.is_some_and(|d| d.metadata.deletion_timestamp.is_some()) {
            true => Err(DeploymentError::Deleting(key.clone())),
            false => Ok(()),
        }
    }

    async fn carry_out(
        &self,
        deployment: &Deployment,
        actions: Vec<Action>,
    ) -> Result<(), DeploymentError> {
        for action in actions {
            let (action, notice) = match action {
                Action::CreateReplicaSet {
                    replica_set,
                    notice,
                } => {
                    if !self.create(deployment, &replica_set).await? {
                        return Ok(());
                    }
                    (None, notice)
                }
                Action::UpdateReplicaSet {
                    replica_set,
                    notice,
                } => (Some(executor::Action::update(&*replica_set)), notice),
                Action::DeleteReplicaSet { replica_set } => (Some(delete(&replica_set)), None),
                Action::UpdateStatus { deployment } => {
                    (Some(executor::Action::update_status(&*deployment)), None)
                }
                Action::UpdateDeployment { deployment } => {
                    (Some(executor::Action::update(&*deployment)), None)
                }
                Action::Event(notice) => (None, Some(notice)),
            };
            if let Some(action) = action {
                self.executor.execute(&action).await?;
            }
            if let Some(notice) = notice {
                self.executor.execute(&event(deployment, notice)).await?;
            }
        }
        Ok(())
    }

    /// Returns whether the pass may go on.
    async fn create(
        &self,
        deployment: &Deployment,
        rs: &ReplicaSet,
    ) -> Result<bool, DeploymentError> {
        let error = match self.executor.create(rs).await {
            Ok(_) => return Ok(true),
            Err(ApiError::NamespaceTerminating(_)) => return Ok(false),
            Err(error) => error,
        };
        let (namespace, name) = (
            rs.metadata.namespace.as_deref().unwrap_or_default(),
            rs.metadata.name.as_deref().unwrap_or_default(),
        );
        if !error.is_already_exists() {
            for action in
                sync::record_create_failure(deployment, name, &error.to_string(), self.clock.now())
            {
                // The failure itself is what matters; it is returned, and this is written again with the next try.
                let action = match action {
                    Action::UpdateStatus { deployment } => {
                        executor::Action::update_status(&*deployment)
                    }
                    Action::Event(notice) => event(deployment, notice),
                    _ => continue,
                };
                if let Err(error) = self.executor.execute(&action).await {
                    tracing::warn!(namespace, deployment = name, %error, "Failed to record that the new replica set was not created");
                }
            }
            return Err(error.into());
        }
        let Some(existing) = self.executor.get::<ReplicaSet>(namespace, name).await? else {
            return Err(error.into());
        };
        match sync::resolve_name_conflict(deployment, &existing) {
            // Our own, which the cache does not have yet: its event brings us back.
            None => Ok(false),
            Some(Action::UpdateStatus { deployment }) => {
                tracing::info!(
                    namespace,
                    replica_set = name,
                    "Found a hash collision, bumping collisionCount to resolve it"
                );
                self.executor
                    .execute(&executor::Action::update_status(&*deployment))
                    .await?;
                Err(error.into())
            }
            Some(_) => Err(error.into()),
        }
    }
}

fn selector(deployment: &Deployment) -> Result<Selector, SelectorError> {
    match &deployment.spec {
        Some(spec) => Selector::new(&spec.selector),
        None => Selector::from_optional(None),
    }
}

fn delete(rs: &ReplicaSet) -> executor::Action {
    let meta = &rs.metadata;
    let options = DeleteOptions {
        uid: meta.uid.clone(),
        ..DeleteOptions::default()
    };
    executor::Action::delete::<ReplicaSet>(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
        options,
    )
}

fn event(deployment: &Deployment, notice: Notice) -> executor::Action {
    let event_type = if notice.warning {
        EventType::Warning
    } else {
        EventType::Normal
    };
    executor::Action::event(deployment, event_type, notice.reason, notice.message)
}

#[async_trait]
impl Controller for DeploymentController {
    type Key = ObjectKey;
    type Error = DeploymentError;

    fn name(&self) -> &'static str {
        "deployment-controller"
    }

    fn is_conflict(&self, error: &DeploymentError) -> bool {
        matches!(error, DeploymentError::Api(source) if source.is_conflict())
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, DeploymentError> {
        let Some(deployment) = self.deployments.get_key(key) else {
            return Ok(None);
        };
        let selects_all = deployment
            .spec
            .as_ref()
            .is_none_or(|s| s.selector == Default::default());
        let replica_sets = match selects_all {
            // Nothing is claimed; the sync only says so.
            true => Vec::new(),
            false => match self.claim(key, &deployment).await? {
                Some(owned) => owned,
                None => return Ok(None),
            },
        };
        let pods = self.pods_of(&replica_sets);
        let plan = sync::sync(
            &deployment,
            &Observed { replica_sets, pods },
            self.clock.now(),
        );
        self.carry_out(&deployment, plan.actions).await?;
        Ok(plan.requeue_after)
    }

    fn max_retries(&self) -> Option<u32> {
        Some(MAX_RETRIES)
    }
}

#[cfg(test)]
#[path = "controller/tests.rs"]
mod tests;
