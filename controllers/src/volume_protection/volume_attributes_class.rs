//! The volumeattributesclass-protection controller: keeps classes that volumes or claims name.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::informer::{Informer, InformerEvent, InformerOptions, Object};
use controller_runtime::{
    Action, ApiError, Controller, Executor, ObjectKey, Watches, WorkQueue, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;

use super::sync::{
    VAC_PROTECTION_FINALIZER, classes_of_claim, classes_of_volume, finalizers, is_relevant,
};
use crate::context::{ControllerContext, Running, StartError};

/// The index of volumes and claims by the classes they name.
const BY_CLASS: &str = "volume-attributes-class";

struct VolumeAttributesClassProtection {
    classes: Informer<VolumeAttributesClass>,
    volumes: Informer<PersistentVolume>,
    claims: Informer<PersistentVolumeClaim>,
    executor: Executor,
}

/// Builds the controller.
///
/// # Errors
/// When it gets no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let account = "volumeattributesclass-protection-controller";
    let executor = context.executor(account, account).await?;
    let controller = Arc::new(VolumeAttributesClassProtection {
        classes: context.informers.informer(InformerOptions::default()),
        volumes: context.informers.informer(InformerOptions::default()),
        claims: context.informers.informer(InformerOptions::default()),
        executor,
    });
    let queue = context.queues.queue("vacprotection");
    let mut watches = Watches::new(context.shutdown.clone());
    let keys = queue.clone();
    watches.on(&controller.classes, move |event| {
        let class = event.object();
        if !matches!(event, InformerEvent::Deleted(_))
            && is_relevant(&class.metadata, VAC_PROTECTION_FINALIZER)
        {
            keys.add(ObjectKey::of(&**class));
        }
    });
    watch_users(&mut watches, &queue, &controller.volumes, classes_of_volume);
    watch_users(&mut watches, &queue, &controller.claims, classes_of_claim);
    Ok(run_controller(controller, queue, watches, 1, context.shutdown).boxed())
}

/// Indexes objects by the classes they name, and looks at a class again when one of them ceases to.
fn watch_users<K: Object>(
    watches: &mut Watches,
    queue: &WorkQueue,
    informer: &Informer<K>,
    classes_of: fn(&K) -> BTreeSet<String>,
) {
    informer.add_index(BY_CLASS, move |object| {
        classes_of(object).into_iter().collect()
    });
    let keys = queue.clone();
    watches.on(informer, move |event| {
        let left = match &event {
            InformerEvent::Added(_) => return,
            InformerEvent::Deleted(object) => classes_of(object),
            InformerEvent::Updated { old, new } => &classes_of(old) - &classes_of(new),
        };
        for class in left {
            keys.add(ObjectKey::new("", class));
        }
    });
}

#[async_trait]
impl Controller for VolumeAttributesClassProtection {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        "volumeattributesclass-protection-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let Some(class) = self.classes.get_key(key) else {
            return Ok(None);
        };
        let in_use = || {
            !self.volumes.by_index(BY_CLASS, &key.name).is_empty()
                || !self.claims.by_index(BY_CLASS, &key.name).is_empty()
        };
        let Some(list) = finalizers(&class.metadata, VAC_PROTECTION_FINALIZER, in_use) else {
            return Ok(None);
        };
        let mut class = (*class).clone();
        class.metadata.finalizers = Some(list);
        match self.executor.execute(&Action::update(&class)).await {
            Err(ApiError::NotFound(_)) => Ok(None),
            result => result.map(|_| None),
        }
    }
}
