//! The two queues' workers, and the start of it all.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use controller_runtime::{Controller, Watches, run_controller};
use futures::FutureExt as _;

use super::collector::{CollectError, Collector};
use super::monitors::Monitors;
use crate::context::{ControllerContext, Running, StartError};

/// The service account it acts as.
const ACCOUNT: &str = "generic-garbage-collector";

/// Starts the controller under its own account; with `--enable-garbage-collector=false` it only waits for the end.
///
/// # Errors
/// When it has no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let shutdown = context.shutdown.clone();
    if !context.options.enable_garbage_collector {
        return Ok(async move { shutdown.triggered().await }.boxed());
    }
    let executor = context
        .executor(ACCOUNT, "garbage-collector-controller")
        .await?;
    let discovery = Arc::new(context.client(ACCOUNT).await?);
    let collector = Arc::new(Collector::new(executor, &context.queues));
    let mut monitors = Monitors::new(
        context.informers.clone(),
        discovery,
        collector.clone(),
        shutdown.clone(),
    );
    let workers = context.options.workers("gc");
    Ok(async move {
        if !monitors.start().await {
            return;
        }
        let delete = run_controller(
            Arc::new(AttemptToDelete(collector.clone())),
            collector.attempt_to_delete.clone(),
            Watches::new(shutdown.clone()),
            workers,
            shutdown.clone(),
        );
        let orphan = run_controller(
            Arc::new(AttemptToOrphan(collector.clone())),
            collector.attempt_to_orphan.clone(),
            Watches::new(shutdown.clone()),
            workers,
            shutdown.clone(),
        );
        tokio::join!(monitors.run(), delete, orphan);
    }
    .boxed())
}

struct AttemptToDelete(Arc<Collector>);

#[async_trait]
impl Controller for AttemptToDelete {
    type Key = String;
    type Error = CollectError;

    fn name(&self) -> &'static str {
        "garbage-collector-controller"
    }

    async fn reconcile(&self, uid: &String) -> Result<Option<Duration>, CollectError> {
        self.0.delete_attempt(uid).await
    }
}

struct AttemptToOrphan(Arc<Collector>);

#[async_trait]
impl Controller for AttemptToOrphan {
    type Key = String;
    type Error = CollectError;

    fn name(&self) -> &'static str {
        "garbage-collector-controller-orphans"
    }

    async fn reconcile(&self, uid: &String) -> Result<Option<Duration>, CollectError> {
        self.0.orphan_attempt(uid).await.map(|()| None)
    }
}
