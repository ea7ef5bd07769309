//! The shell: PodDisruptionBudgets and Pods in, statuses out. Two queues: budgets, and pods whose `DisruptionTarget` may be stale.

use std::sync::{Arc, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::events::{EventType, object_reference};
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use component_helpers::intstr::InvalidPercentage;
use component_helpers::labels::{Selector, SelectorError};
use component_helpers::pod as pod_helpers;
use controller_runtime::{
    Action, ApiError, Controller, Executor, ObjectKey, Watches, WorkQueue, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use super::scale::{ScaleError, Scales};
use super::sync::{fail_safe, needs_scale, reset_disruption_target, stale_disruption_after, sync};
use crate::context::{ControllerContext, Running, StartError};

const NAME: &str = "disruption-controller";
/// The component that its events name.
const COMPONENT: &str = "controllermanager";
/// One for each queue, as upstream.
const WORKERS: usize = 1;

/// Starts the controller under its own account.
///
/// # Errors
/// When it has no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let executor = context.executor(NAME, COMPONENT).await?;
    let discovery = Arc::new(context.client(NAME).await?);
    let informers = &context.informers;
    let clock = context.clock.clone();
    let scales = Scales {
        controllers: informers.informer(InformerOptions::default()),
        replica_sets: informers.informer(InformerOptions::default()),
        deployments: informers.informer(InformerOptions::default()),
        stateful_sets: informers.informer(InformerOptions::default()),
        executor: executor.clone(),
        discovery,
        known: RwLock::default(),
    };
    let pods: Informer<Pod> = informers.informer(InformerOptions::default());
    let budgets = Arc::new(DisruptionController {
        pdbs: informers.informer(InformerOptions::default()),
        pods: pods.clone(),
        scales,
        executor: executor.clone(),
        clock: clock.clone(),
    });
    let queue = context.queues.queue("disruption");
    let mut watches = Watches::new(context.shutdown.clone());
    budgets.watch(&mut watches, &queue);
    let workers = context.options.workers("disruption");
    let budgets = run_controller(budgets, queue, watches, workers, context.shutdown.clone());

    let stale = Arc::new(StalePodDisruption {
        pods,
        executor,
        clock,
    });
    let queue = context.queues.queue("stale_pod_disruption");
    let mut watches = Watches::new(context.shutdown.clone());
    stale.watch(&mut watches, &queue);
    let stale = run_controller(stale, queue, watches, WORKERS, context.shutdown);
    Ok(futures::future::join(budgets, stale).map(drop).boxed())
}

/// Why a budget could not be counted.
#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error(transparent)]
    Selector(#[from] SelectorError),
    #[error(transparent)]
    Scale(#[from] ScaleError),
    #[error(transparent)]
    Percentage(#[from] InvalidPercentage),
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// Reconciles PodDisruptionBudgets by key.
pub(super) struct DisruptionController {
    pub(super) pdbs: Informer<PodDisruptionBudget>,
    pub(super) pods: Informer<Pod>,
    pub(super) scales: Scales,
    pub(super) executor: Executor,
    pub(super) clock: Clock,
}

impl DisruptionController {
    fn watch(self: &Arc<Self>, watches: &mut Watches, queue: &WorkQueue) {
        let keys = queue.clone();
        watches.on(&self.pdbs, move |event| {
            keys.add(ObjectKey::of(&**event.object()));
        });
        let (this, keys) = (self.clone(), queue.clone());
        watches.on(&self.pods, move |event| {
            if let InformerEvent::Updated { old, new } = &event
                && old.metadata.labels != new.metadata.labels
            {
                this.pdbs_of(old).into_iter().for_each(|key| keys.add(key));
            }
            let found = this.pdbs_of(event.object());
            if found.len() > 1 && !matches!(event, InformerEvent::Deleted(_)) {
                this.tell_of_many(event.object());
            }
            found.into_iter().for_each(|key| keys.add(key));
        });
        watches.wait_for(&self.scales.controllers);
        watches.wait_for(&self.scales.replica_sets);
        watches.wait_for(&self.scales.deployments);
        watches.wait_for(&self.scales.stateful_sets);
    }

    /// The budgets that select a pod. A selector that is not valid selects nothing; its own sync says so.
    pub(super) fn pdbs_of(&self, pod: &Pod) -> Vec<ObjectKey> {
        let pdbs = self.pdbs.list_namespace(pod_helpers::namespace(pod));
        pdbs.iter()
            .filter(|pdb| selector(pdb).is_ok_and(|s| s.matches(&pod.metadata.labels)))
            .map(|pdb| ObjectKey::of(&**pdb))
            .collect()
    }

    /// The eviction API refuses such a pod.
    fn tell_of_many(&self, pod: &Pod) {
        let (namespace, name) = (pod_helpers::namespace(pod), pod_helpers::name(pod));
        let reason = "MultiplePodDisruptionBudgets";
        let message = format!("Pod {namespace:?}/{name:?} matches multiple PodDisruptionBudgets.");
        self.executor.recorder().event(
            &object_reference(pod),
            EventType::Warning,
            reason,
            reason,
            message,
        );
    }

    async fn tell(
        &self,
        pdb: &PodDisruptionBudget,
        event_type: EventType,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Result<(), ApiError> {
        let event = Action::event(pdb, event_type, reason, message);
        self.executor.execute(&event).await.map(drop)
    }

    async fn try_sync(&self, pdb: &PodDisruptionBudget) -> Result<Option<Duration>, SyncError> {
        let selector = match selector(pdb) {
            Ok(selector) => selector,
            Err(error) => {
                let message = format!("Failed to get pods: {error}");
                self.tell(pdb, EventType::Warning, "NoPods", message)
                    .await?;
                return Err(error.into());
            }
        };
        let namespace = pdb.metadata.namespace.as_deref().unwrap_or_default();
        let mut pods = self.pods.list_namespace(namespace);
        pods.retain(|pod| selector.matches(&pod.metadata.labels));
        if pods.is_empty() {
            let message = "No matching pods found";
            self.tell(pdb, EventType::Normal, "NoPods", message).await?;
        }
        match self.count(pdb, &pods, &selector).await {
            Ok(plan) => Ok(self.executor.carry_out(&plan).await?),
            Err(error) => {
                let reason = "CalculateExpectedPodCountFailed";
                let message = format!("Failed to calculate the number of expected pods: {error}");
                self.tell(pdb, EventType::Warning, reason, message).await?;
                Err(error)
            }
        }
    }

    async fn count(
        &self,
        pdb: &PodDisruptionBudget,
        pods: &[Arc<Pod>],
        selector: &Selector,
    ) -> Result<controller_runtime::Plan, SyncError> {
        let mut scale = 0;
        if pdb.spec.as_ref().is_some_and(needs_scale) {
            let expected = self.scales.expected_scale(pods).await?;
            scale = expected.scale;
            if !expected.unmanaged.is_empty() {
                let message = format!(
                    "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a result, \
                     the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for \
                     these pods please set \".spec.minAvailable\" field of the PDB to an integer value."
                );
                self.tell(pdb, EventType::Warning, "UnmanagedPods", message)
                    .await?;
            }
        }
        Ok(sync(pdb, pods, scale, self.clock.now())?)
    }
}

#[async_trait]
impl Controller for DisruptionController {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        NAME
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let Some(pdb) = self.pdbs.get_key(key) else {
            return Ok(None);
        };
        let error = match self.try_sync(&pdb).await {
            Ok(again) => return Ok(again),
            // Decided on old knowledge: the newer budget comes by the watch.
            Err(SyncError::Api(error @ (ApiError::Conflict(_) | ApiError::NotLeading))) => {
                return Err(error);
            }
            Err(SyncError::Api(ApiError::NotFound(_))) => return Ok(None),
            Err(error) => error,
        };
        tracing::warn!(pdb = %key, %error, "Failed to sync PDB");
        if let Some(action) = fail_safe(&pdb, error.to_string(), self.clock.now()) {
            match self.executor.execute(&action).await {
                Ok(_) | Err(ApiError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        match error {
            SyncError::Api(error) | SyncError::Scale(ScaleError::Api(error)) => Err(error),
            _ => Ok(None),
        }
    }
}

fn selector(pdb: &PodDisruptionBudget) -> Result<Selector, SelectorError> {
    Selector::from_optional(pdb.spec.as_ref().and_then(|s| s.selector.as_ref()))
}

/// Takes `DisruptionTarget` back from pods that were not deleted.
pub(super) struct StalePodDisruption {
    pub(super) pods: Informer<Pod>,
    pub(super) executor: Executor,
    pub(super) clock: Clock,
}

impl StalePodDisruption {
    fn watch(&self, watches: &mut Watches, queue: &WorkQueue) {
        let (clock, keys) = (self.clock.clone(), queue.clone());
        watches.on(&self.pods, move |event| {
            if !matches!(event, InformerEvent::Deleted(_))
                && let Some(left) = stale_disruption_after(event.object(), clock.now())
            {
                keys.add_after(ObjectKey::of(&**event.object()), left);
            }
        });
    }
}

#[async_trait]
impl Controller for StalePodDisruption {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        NAME
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let Some(pod) = self.pods.get_key(key) else {
            return Ok(None);
        };
        let now = self.clock.now();
        match stale_disruption_after(&pod, now) {
            None => return Ok(None),
            Some(left) if !left.is_zero() => return Ok(Some(left)),
            Some(_) => {}
        }
        match self
            .executor
            .execute(&reset_disruption_target(&pod, now))
            .await
        {
            Ok(_) => {
                tracing::info!(pod = %key, "Reset stale DisruptionTarget condition to False");
                Ok(None)
            }
            Err(ApiError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
