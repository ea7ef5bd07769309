//! The shell: watches claims, looks their volumes up, tells and annotates.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::events::EventType;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use component_helpers::persistent_volume::volume_name;
use controller_runtime::{
    Action, ApiError, Controller, Executor, ObjectKey, Watches, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::sync::{EXTERNAL_EXPANDING, Expansion, NotBound, has_grown, is_bound, sync};
use crate::context::{ControllerContext, Running, StartError};

/// Upstream's `defaultWorkerCount`.
const WORKERS: usize = 10;

/// Why a claim could not be dealt with; a retry may help.
#[derive(Debug, thiserror::Error)]
enum ExpandError {
    #[error("failed to get PV \"{0}\": not in the cache")]
    NoVolume(String),
    #[error(transparent)]
    NotBound(#[from] NotBound),
    #[error("error setting resizer annotation to pvc {claim}, with error {source}")]
    Resizer {
        claim: ObjectKey,
        #[source]
        source: ApiError,
    },
}

struct Expander {
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    executor: Executor,
}

/// Builds the controller.
///
/// # Errors
/// When it gets no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let executor = context
        .executor("expand-controller", "volume_expand")
        .await?;
    let controller = Arc::new(Expander {
        claims: context.informers.informer(InformerOptions::default()),
        volumes: context.informers.informer(InformerOptions::default()),
        executor,
    });
    let queue = context.queues.queue("volume_expand");
    let mut watches = Watches::new(context.shutdown.clone());
    let keys = queue.clone();
    watches.on(&controller.claims, move |event| {
        let may_grow = match &event {
            InformerEvent::Added(_) => true,
            InformerEvent::Updated { old, new } => has_grown(old, new),
            InformerEvent::Deleted(_) => false,
        };
        if may_grow && is_bound(event.object()) {
            keys.add(ObjectKey::of(&**event.object()));
        }
    });
    watches.wait_for(&controller.volumes);
    Ok(run_controller(controller, queue, watches, WORKERS, context.shutdown).boxed())
}

impl Expander {
    async fn carry_out(
        &self,
        claim: &PersistentVolumeClaim,
        expansion: Expansion,
    ) -> Result<(), ExpandError> {
        for event in expansion.event.iter() {
            // Recording only queues; it has no failure that anyone could act on.
            let _ = self.executor.execute(event).await;
        }
        let Some(resizer) = expansion.resizer else {
            return Ok(());
        };
        let Err(source) = self.executor.execute(&resizer).await else {
            return Ok(());
        };
        let claim_key = ObjectKey::of(claim);
        let error = ExpandError::Resizer {
            claim: claim_key,
            source,
        };
        let message = error.to_string();
        let event = Action::event(claim, EventType::Warning, EXTERNAL_EXPANDING, message);
        let _ = self.executor.execute(&event).await;
        Err(error)
    }
}

#[async_trait]
impl Controller for Expander {
    type Key = ObjectKey;
    type Error = ExpandError;

    fn name(&self) -> &'static str {
        "persistentvolume-expander-controller"
    }

    // DIFFERS: upstream reads the volume of every bound claim from the server; here the cache says whether there is anything to do.
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ExpandError> {
        let Some(claim) = self.claims.get_key(key) else {
            return Ok(None);
        };
        let name = volume_name(&claim);
        let volume = self.volumes.get("", name);
        let volume = volume.ok_or_else(|| ExpandError::NoVolume(name.to_owned()))?;
        let expansion = sync(&claim, &volume)?;
        self.carry_out(&claim, expansion).await?;
        Ok(None)
    }

    fn is_conflict(&self, error: &ExpandError) -> bool {
        matches!(error, ExpandError::Resizer { source, .. } if source.is_conflict())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use component_base::events::Recorder;
    use controller_runtime::testing::FakeApi;
    use serde_json::{from_value, json};

    use crate::testing::{Feed, settle};

    #[tokio::test]
    async fn a_migrated_claim_is_given_its_resizer() {
        let api = FakeApi::new();
        let (recorder, mut events) = Recorder::fake();
        let ((claims, claims_informer), (volumes, volumes_informer)) = (Feed::new(), Feed::new());
        let expander = Expander {
            claims: claims_informer,
            volumes: volumes_informer,
            executor: api.executor_with(recorder),
        };
        let claim: PersistentVolumeClaim = from_value(json!({
            "metadata": { "namespace": "ns", "name": "c", "uid": "u" },
            "spec": { "volumeName": "v", "resources": { "requests": { "storage": "2Gi" } } },
            "status": { "phase": "Bound", "capacity": { "storage": "1Gi" } },
        }))
        .unwrap();
        api.insert(&claim);
        claims.apply(claim);
        settle().await;
        let key = ObjectKey::new("ns", "c");
        let error = expander.reconcile(&key).await.unwrap_err();
        assert!(matches!(error, ExpandError::NoVolume(_)));
        let volume = json!({
            "metadata": { "name": "v" },
            "spec": {
                "claimRef": { "namespace": "ns", "name": "c", "uid": "u" },
                "gcePersistentDisk": { "pdName": "d" },
            },
        });
        volumes.apply(from_value(volume).unwrap());
        settle().await;
        let refused = ApiError::Forbidden("no".into());
        api.fail(|r| r.subresource == "status", refused);
        expander.reconcile(&key).await.unwrap_err();
        assert!(
            events
                .try_recv()
                .unwrap()
                .message
                .contains("kubernetes.io/gce-pd")
        );
        let warning = events.try_recv().unwrap().message;
        assert_eq!(
            warning,
            "error setting resizer annotation to pvc ns/c, with error no"
        );
        api.heal();
        expander.reconcile(&key).await.unwrap();
        let claim: PersistentVolumeClaim = api.get("ns", "c").unwrap();
        let annotations = claim.metadata.annotations.unwrap();
        assert_eq!(
            annotations["volume.kubernetes.io/storage-resizer"],
            "pd.csi.storage.gke.io"
        );
    }
}
