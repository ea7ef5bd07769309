//! The shell: watches Namespaces and gives those that are being deleted to the deleter.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::informer::{Factory, Informer, InformerEvent, InformerOptions};
use component_base::shutdown::Shutdown;
use controller_runtime::executor::Executor;
use controller_runtime::work_queue::RateLimit;
use controller_runtime::{Controller, ObjectKey, Queues, Watches, WorkQueue, run_controller};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Namespace, Pod};

use super::deleter::{Deleter, DeletionError, Progress};
use crate::context::{ControllerContext, Running, StartError};
use crate::discovery::Discovery;

/// Other API servers have time to see the deletion, and what was just created to arrive.
const DELETION_GRACE_PERIOD: Duration = Duration::from_secs(5);
/// Retries at least every minute.
const BACK_OFF: RateLimit = RateLimit {
    base: Duration::from_millis(5),
    max: Duration::from_secs(60),
    qps: 10.0,
    burst: 100,
};

/// Starts the controller under its own account.
///
/// # Errors
/// When it has no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let context = context.fast();
    let executor = context
        .executor("namespace-controller", "namespace-controller")
        .await?;
    let discovery = Arc::new(context.client("namespace-controller").await?);
    let (controller, queue, watches) = NamespaceController::new(
        &context.queues,
        &context.informers,
        executor,
        discovery,
        context.clock.clone(),
        &context.shutdown,
    );
    let namespaces = context
        .informers
        .informer::<Namespace>(InformerOptions::default());
    let resyncing = resync(
        namespaces,
        queue.clone(),
        context.options.namespace_sync_period,
        context.shutdown.clone(),
    );
    context
        .shutdown
        .spawn_essential("namespace resync", resyncing);
    let workers = context.options.workers("namespace");
    Ok(run_controller(
        controller,
        queue,
        watches,
        workers,
        context.shutdown.clone(),
    )
    .boxed())
}

/// Takes up the namespaces that are being deleted again every `--namespace-sync-period`, whatever was told of them. A period of
/// zero: never.
async fn resync(
    namespaces: Informer<Namespace>,
    queue: WorkQueue,
    period: Duration,
    shutdown: Shutdown,
) {
    loop {
        let wait = async {
            match period.is_zero() {
                true => std::future::pending().await,
                false => tokio::time::sleep(period).await,
            }
        };
        if shutdown.run_until(wait).await.is_none() {
            return;
        }
        for namespace in namespaces.list() {
            if namespace.metadata.deletion_timestamp.is_some() {
                queue.add_after(ObjectKey::of(&*namespace), DELETION_GRACE_PERIOD);
            }
        }
    }
}

/// Reconciles Namespaces by name.
pub struct NamespaceController {
    deleter: Deleter,
}

impl NamespaceController {
    /// The controller, its queue, and the watch that fills it; run them with [`controller_runtime::run_controller`].
    pub fn new(
        queues: &Queues,
        factory: &Factory,
        executor: Executor,
        discovery: Arc<dyn Discovery>,
        clock: Clock,
        shutdown: &Shutdown,
    ) -> (Arc<Self>, WorkQueue, Watches) {
        let queue = queues.queue_with("namespace", BACK_OFF);
        let mut watches = Watches::new(shutdown.clone());
        let keys = queue.clone();
        watches.on(
            &factory.informer::<Namespace>(InformerOptions::default()),
            move |event| {
                if let InformerEvent::Added(namespace)
                | InformerEvent::Updated { new: namespace, .. } = event
                    && namespace.metadata.deletion_timestamp.is_some()
                {
                    keys.add_after(ObjectKey::of(&*namespace), DELETION_GRACE_PERIOD);
                }
            },
        );
        // Everything else waits for the pods: with the last one gone there is no reason to wait longer.
        let namespaces = factory.informer::<Namespace>(InformerOptions::default());
        let pods = factory.informer::<Pod>(InformerOptions::default());
        let (keys, left) = (queue.clone(), pods.clone());
        watches.on(&pods, move |event| {
            if let InformerEvent::Deleted(pod) = event
                && let Some(name) = pod.metadata.namespace.as_deref()
                && namespaces.get("", name).is_some_and(|n| finalizes_now(&n))
                && left.list_namespace(name).is_empty()
            {
                keys.add(ObjectKey::new("", name));
            }
        });
        (
            Arc::new(Self {
                deleter: Deleter {
                    executor,
                    discovery,
                    clock,
                },
            }),
            queue,
            watches,
        )
    }
}

/// Being deleted, and seen as such by the first pass: its grace period is over.
fn finalizes_now(namespace: &Namespace) -> bool {
    let conditions = namespace
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_ref());
    namespace.metadata.deletion_timestamp.is_some() && conditions.is_some_and(|c| !c.is_empty())
}

#[async_trait]
impl Controller for NamespaceController {
    type Key = ObjectKey;
    type Error = DeletionError;

    fn name(&self) -> &'static str {
        "namespace-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, DeletionError> {
        match self.deleter.delete(&key.name).await? {
            Progress::Done => Ok(None),
            Progress::Remaining { estimate_seconds } => {
                let seconds = u64::try_from(estimate_seconds / 2 + 1).unwrap_or(1);
                tracing::debug!(
                    namespace = key.name,
                    seconds,
                    "Content remaining in namespace"
                );
                Ok(Some(Duration::from_secs(seconds)))
            }
        }
    }
}
