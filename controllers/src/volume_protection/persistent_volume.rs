//! The persistentvolume-protection controller: keeps volumes that are bound.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use controller_runtime::{
    Action, ApiError, Controller, Executor, ObjectKey, Watches, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::PersistentVolume;

use super::sync::{PV_PROTECTION_FINALIZER, finalizers, is_bound, is_relevant};
use crate::context::{ControllerContext, Running, StartError};

struct PersistentVolumeProtection {
    volumes: Informer<PersistentVolume>,
    executor: Executor,
}

/// Builds the controller.
///
/// # Errors
/// When it gets no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let account = "pv-protection-controller";
    let executor = context.executor(account, account).await?;
    let volumes: Informer<PersistentVolume> =
        context.informers.informer(InformerOptions::default());
    let queue = context.queues.queue("pvprotection");
    let mut watches = Watches::new(context.shutdown.clone());
    let keys = queue.clone();
    watches.on(&volumes, move |event| {
        let volume = event.object();
        if !matches!(event, InformerEvent::Deleted(_))
            && is_relevant(&volume.metadata, PV_PROTECTION_FINALIZER)
        {
            keys.add(ObjectKey::of(&**volume));
        }
    });
    let controller = Arc::new(PersistentVolumeProtection { volumes, executor });
    Ok(run_controller(controller, queue, watches, 1, context.shutdown).boxed())
}

#[async_trait]
impl Controller for PersistentVolumeProtection {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        "persistentvolume-protection-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let Some(volume) = self.volumes.get_key(key) else {
            return Ok(None);
        };
        let in_use = || is_bound(&volume);
        let Some(list) = finalizers(&volume.metadata, PV_PROTECTION_FINALIZER, in_use) else {
            return Ok(None);
        };
        let mut volume = (*volume).clone();
        volume.metadata.finalizers = Some(list);
        match self.executor.execute(&Action::update(&volume)).await {
            Err(ApiError::NotFound(_)) => Ok(None),
            result => result.map(|_| None),
        }
    }
}
