//! The shell: watches Deployments, ReplicaSets and Pods, observes, and carries out what [`super::sync`] decides.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::events::EventType;
use component_base::informer::{Factory, Informer, InformerEvent, InformerOptions};
use component_base::shutdown::Shutdown;
use component_helpers::labels::{Selector, SelectorError};
use component_helpers::owner_ref::is_controlled_by;
use controller_runtime::executor::{self, DeleteOptions, Executor};
use controller_runtime::{
    ApiError, Controller, ObjectKey, Queues, Watches, WorkQueue, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;

use super::replica_sets::strategy_type;
use super::revision::REVISION;
use super::sync::{self, Action, Notice, Observed};
use crate::context::{ControllerContext, Running, StartError};
use crate::controller_ref::{controlled_by, index_by_controller};
use crate::controller_ref_manager::{claim_objects, concerned, resolve};

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
        queues: &Queues,
        factory: &Factory,
        executor: Executor,
        clock: Clock,
        shutdown: &Shutdown,
    ) -> (Arc<Self>, WorkQueue, Watches) {
        let deployments = factory.informer(InformerOptions::default());
        let replica_sets = factory.informer(InformerOptions::default());
        let pods = factory.informer(InformerOptions::default());
        Self::over(
            queues,
            deployments,
            replica_sets,
            pods,
            executor,
            clock,
            shutdown,
        )
    }

    fn over(
        queues: &Queues,
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
        let queue = queues.queue("deployment");
        let mut watches = Watches::new(shutdown.clone());
        let (handler, keys) = (controller.clone(), queue.clone());
        watches.on(&controller.deployments, move |event| {
            keys.add(ObjectKey::of(&**event.object()))
        });
        let keys = queue.clone();
        watches.on(&controller.replica_sets, move |event| {
            concerned(&handler.deployments, &event, selects)
                .into_iter()
                .for_each(|key| keys.add(key));
        });
        let (handler, keys) = (controller.clone(), queue.clone());
        watches.on(&controller.pods, move |event| {
            if let InformerEvent::Deleted(pod) = event {
                handler.on_pod_deleted(&keys, &pod);
            }
        });
        (controller, queue, watches)
    }

    /// `Recreate` waits for the last old pod to be gone.
    fn on_pod_deleted(&self, queue: &WorkQueue, pod: &Pod) {
        let Some(rs) = resolve(&self.replica_sets, &pod.metadata) else {
            return;
        };
        if let Some(deployment) =
            resolve(&self.deployments, &rs.metadata).filter(|d| strategy_type(d) == "Recreate")
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

    /// The Deployment's ReplicaSets by the server's word.
    async fn live(&self, deployment: &Deployment) -> Result<Vec<Arc<ReplicaSet>>, ApiError> {
        let meta = &deployment.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let uid = meta.uid.as_deref().unwrap_or_default();
        // It was parsed before.
        let selector = selector(deployment).map_or_else(|_| String::new(), |s| s.to_string());
        let found: Vec<ReplicaSet> = self.executor.list(namespace, &selector, "").await?;
        let own = |rs: &ReplicaSet| is_controlled_by(&rs.metadata, uid);
        Ok(found.into_iter().filter(own).map(Arc::new).collect())
    }

    fn pods_of(&self, sets: &[Arc<ReplicaSet>]) -> Vec<Arc<Pod>> {
        sets.iter()
            .filter_map(|rs| rs.metadata.uid.as_deref())
            .flat_map(|uid| controlled_by(&self.pods, uid))
            .collect()
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

/// Whether a ReplicaSet would be made, or the Deployment's revision become another.
///
/// DIFFERS: upstream numbers by its cache, which may lack what was written a moment ago; then two ReplicaSets have one number, and a
/// rollback finds the wrong one. Here the server is asked before, once a rollout.
fn gives_a_number(deployment: &Deployment, actions: &[Action]) -> bool {
    fn number(deployment: &Deployment) -> Option<&String> {
        deployment.metadata.annotations.as_ref()?.get(REVISION)
    }
    actions.iter().any(|action| match action {
        Action::CreateReplicaSet { .. } => true,
        Action::UpdateStatus { deployment: new } | Action::UpdateDeployment { deployment: new } => {
            number(new) != number(deployment)
        }
        _ => false,
    })
}

fn selector(deployment: &Deployment) -> Result<Selector, SelectorError> {
    Selector::new(&deployment.spec.selector)
}

/// Whether the Deployment would adopt this orphan; an empty selector adopts nothing.
fn selects(deployment: &Deployment, rs: &ReplicaSet) -> bool {
    selector(deployment).is_ok_and(|s| !s.is_everything() && s.matches(&rs.metadata.labels))
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
        let selects_all = deployment.spec.selector == Default::default();
        let replica_sets = match selects_all {
            // Nothing is claimed; the sync only says so.
            true => Vec::new(),
            false => {
                let selector =
                    selector(&deployment).map_err(|source| DeploymentError::Selector {
                        key: key.clone(),
                        source,
                    })?;
                let claimed = claim_objects::<Deployment, ReplicaSet>(
                    &self.executor,
                    &self.replica_sets,
                    &deployment.metadata,
                    &selector,
                    None,
                    |_| true,
                );
                match claimed.await? {
                    Some(owned) => owned,
                    None => return Ok(None),
                }
            }
        };
        let decide = |replica_sets: Vec<Arc<ReplicaSet>>| {
            // Only who waits for old pods to be gone looks at pods.
            let pods = match strategy_type(&deployment) {
                "Recreate" => self.pods_of(&replica_sets),
                _ => Vec::new(),
            };
            let observed = Observed { replica_sets, pods };
            sync::sync(&deployment, &observed, self.clock.now())
        };
        let mut plan = decide(replica_sets);
        if gives_a_number(&deployment, &plan.actions) {
            plan = decide(self.live(&deployment).await?);
        }
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
