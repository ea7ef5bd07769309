//! The persistentvolumeclaim-protection controller: keeps claims that scheduled pods use.
//!
//! The key is a namespace: one pass decides over all its claims that wait, so that a namespace full of them costs one list of pods.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use component_helpers::pod;
use controller_runtime::{
    Action, ApiError, Controller, Executor, ObjectKey, Watches, WorkQueue, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

use super::sync::{
    PVC_PROTECTION_FINALIZER, finalizers, is_deletion_candidate, is_relevant, may_free_claims,
    need_to_add_finalizer, unused_claims,
};
use crate::context::{ControllerContext, Running, StartError};

struct PersistentVolumeClaimProtection {
    claims: Informer<PersistentVolumeClaim>,
    pods: Informer<Pod>,
    executor: Executor,
}

/// Builds the controller.
///
/// # Errors
/// When it gets no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let account = "pvc-protection-controller";
    let executor = context.executor(account, account).await?;
    let controller = Arc::new(PersistentVolumeClaimProtection {
        claims: context.informers.informer(InformerOptions::default()),
        pods: context.informers.informer(InformerOptions::default()),
        executor,
    });
    let queue = WorkQueue::new("pvcprotection");
    let mut watches = Watches::new(context.shutdown.clone());
    let keys = queue.clone();
    watches.on(&controller.claims, move |event| {
        let meta = &event.object().metadata;
        if !matches!(event, InformerEvent::Deleted(_))
            && is_relevant(meta, PVC_PROTECTION_FINALIZER)
        {
            keys.add(namespace_key(meta.namespace.as_deref().unwrap_or_default()));
        }
    });
    let (handler, keys) = (controller.clone(), queue.clone());
    watches.on(&controller.pods, move |event| {
        let freed = match &event {
            InformerEvent::Added(pod) => handler.frees_claim(pod, false),
            InformerEvent::Deleted(pod) => handler.frees_claim(pod, true),
            // An update may hide a deletion and a namesake's creation.
            InformerEvent::Updated { old, new } => {
                handler.frees_claim(new, false)
                    || pod::uid(old) != pod::uid(new) && handler.frees_claim(old, true)
            }
        };
        if freed {
            keys.add(namespace_key(pod::namespace(event.object())));
        }
    });
    Ok(run_controller(controller, queue, watches, 1, context.shutdown).boxed())
}

fn namespace_key(namespace: &str) -> ObjectKey {
    ObjectKey::new("", namespace)
}

impl PersistentVolumeClaimProtection {
    /// Whether a claim that waits to go may be free by this event. A claim that is deleted later brings its namespace itself.
    fn frees_claim(&self, pod: &Pod, deleted: bool) -> bool {
        may_free_claims(pod, deleted)
            && pod::volume_claim_names(pod).iter().any(|name| {
                let claim = self.claims.get(pod::namespace(pod), name);
                claim.is_some_and(|c| is_relevant(&c.metadata, PVC_PROTECTION_FINALIZER))
            })
    }

    /// Of the claims that are being deleted, those nobody uses: by the cache, then, to be sure, by the server.
    async fn unused(
        &self,
        namespace: &str,
        claims: &[Arc<PersistentVolumeClaim>],
    ) -> Result<BTreeSet<String>, ApiError> {
        let candidates: Vec<_> = claims
            .iter()
            .filter(|c| is_deletion_candidate(&c.metadata, PVC_PROTECTION_FINALIZER))
            .cloned()
            .collect();
        if candidates.is_empty() {
            return Ok(BTreeSet::new());
        }
        let mut unused = unused_claims(&candidates, &self.pods.list_namespace(namespace));
        if !unused.is_empty() {
            let live: Vec<Pod> = self.executor.list(namespace, "", "").await?;
            unused = unused_claims(&unused, &live);
        }
        let names = unused.iter().filter_map(|c| c.metadata.name.clone());
        Ok(names.collect())
    }
}

#[async_trait]
impl Controller for PersistentVolumeClaimProtection {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        "persistentvolumeclaim-protection-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let namespace = key.name.as_str();
        let claims = self.claims.list_namespace(namespace);
        // A claim without the finalizer is no reason to hold the others up, nor the other way round.
        let unused = self.unused(namespace, &claims).await;
        let mut failed = unused.as_ref().err().cloned();
        let unused = unused.unwrap_or_default();
        for claim in &claims {
            let meta = &claim.metadata;
            let free = meta.name.as_ref().is_some_and(|n| unused.contains(n));
            if !free && !need_to_add_finalizer(meta, PVC_PROTECTION_FINALIZER) {
                continue;
            }
            if let Some(list) = finalizers(meta, PVC_PROTECTION_FINALIZER, || !free) {
                let mut claim = (**claim).clone();
                claim.metadata.finalizers = Some(list);
                match self.executor.execute(&Action::update(&claim)).await {
                    Ok(_) | Err(ApiError::NotFound(_)) => {}
                    Err(error) => failed = Some(error),
                }
            }
        }
        failed.map_or(Ok(None), Err)
    }
}
