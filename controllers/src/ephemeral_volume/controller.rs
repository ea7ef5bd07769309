//! The shell: watches Pods and claims, and creates claims.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::events::EventType;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use component_base::metrics::make;
use component_helpers::pod;
use controller_runtime::{
    Action, ApiError, Controller, Executor, ObjectKey, Watches, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use prometheus::IntCounter;

use super::sync::{NotForPod, is_relevant, sync, volume_claim_name, volumes};
use crate::context::{ControllerContext, Running, StartError};
use crate::pods_by_claim;

/// Why a volume has no claim; a retry may help.
#[derive(Debug, thiserror::Error)]
enum VolumeError {
    #[error(transparent)]
    NotForPod(#[from] NotForPod),
    #[error("create PVC {claim}: {source}")]
    Create {
        claim: String,
        #[source]
        source: ApiError,
    },
}

/// The first volume of a Pod that has no claim.
#[derive(Debug, thiserror::Error)]
#[error("ephemeral volume {volume}: {source}")]
struct EphemeralVolumeError {
    volume: String,
    #[source]
    source: VolumeError,
}

component_base::metrics! {
    struct Metrics {
        attempts: IntCounter = make::counter(
            "ephemeral_volume_controller_create_total",
            "Number of PersistentVolumeClaim creation requests",
        ),
        failures: IntCounter = make::counter(
            "ephemeral_volume_controller_create_failures_total",
            "Number of PersistentVolumeClaim creation requests that failed",
        ),
    }
}

struct EphemeralVolume {
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    executor: Executor,
    metrics: Metrics,
}

/// Builds the controller.
///
/// # Errors
/// When it gets no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let executor = context
        .executor("ephemeral-volume-controller", "ephemeral_volume")
        .await?;
    let controller = Arc::new(EphemeralVolume {
        pods: context.informers.informer(InformerOptions::default()),
        claims: context.informers.informer(InformerOptions::default()),
        executor,
        metrics: Metrics::register(&context.metrics)?,
    });
    pods_by_claim::add_index(&controller.pods);
    let queue = context.queues.queue("ephemeral_volume");
    let mut watches = Watches::new(context.shutdown.clone());
    let keys = queue.clone();
    watches.on(&controller.pods, move |event| {
        // A Pod's volumes never change; a namesake may hide in an update.
        let new = match &event {
            InformerEvent::Added(_) => true,
            InformerEvent::Updated { old, new } => pod::uid(old) != pod::uid(new),
            InformerEvent::Deleted(_) => false,
        };
        if new && is_relevant(event.object()) {
            keys.add(ObjectKey::of(&**event.object()));
        }
    });
    let (handler, keys) = (controller.clone(), queue.clone());
    watches.on(&controller.claims, move |event| {
        if let InformerEvent::Deleted(claim) = event {
            let users = pods_by_claim::users(&handler.pods, &ObjectKey::of(&*claim));
            for pod in users.iter().filter(|p| is_relevant(p)) {
                keys.add(ObjectKey::of(&**pod));
            }
        }
    });
    let workers = context.options.workers("ephemeralvolume");
    Ok(run_controller(controller, queue, watches, workers, context.shutdown).boxed())
}

impl EphemeralVolume {
    async fn handle_volume(&self, pod: &Pod, volume: &Volume) -> Result<(), VolumeError> {
        let name = volume_claim_name(pod, volume);
        let existing = self.claims.get(pod::namespace(pod), &name);
        let Some(claim) = sync(pod, volume, existing.as_deref())? else {
            return Ok(());
        };
        self.metrics.attempts.inc();
        let created = self.executor.execute(&Action::create(&claim)).await;
        created.map(drop).map_err(|source| {
            self.metrics.failures.inc();
            VolumeError::Create {
                claim: name,
                source,
            }
        })
    }
}

#[async_trait]
impl Controller for EphemeralVolume {
    type Key = ObjectKey;
    type Error = EphemeralVolumeError;

    fn name(&self) -> &'static str {
        "ephemeral-volume-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, EphemeralVolumeError> {
        let Some(pod) = self.pods.get_key(key).filter(|pod| is_relevant(pod)) else {
            return Ok(None);
        };
        for volume in volumes(&pod) {
            if let Err(source) = self.handle_volume(&pod, volume).await {
                let error = EphemeralVolumeError {
                    volume: volume.name.clone(),
                    source,
                };
                let event = Action::event(
                    &*pod,
                    EventType::Warning,
                    "FailedBinding",
                    error.to_string(),
                );
                // Recording only queues; it has no failure that anyone could act on.
                let _ = self.executor.execute(&event).await;
                return Err(error);
            }
        }
        Ok(None)
    }
}
