//! The persistentvolumeclaim-protection controller: keeps claims that scheduled pods use.
//!
//! The key is a namespace: one pass decides over all its claims that wait, so that a namespace full of them costs one list of pods.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use component_helpers::pod;
use controller_runtime::{
    Action, ApiError, Controller, Executor, ObjectKey, Watches, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

use super::sync::{
    PVC_PROTECTION_FINALIZER, finalizers, is_deletion_candidate, is_relevant, is_tracked,
    may_free_claims, need_to_add_finalizer, references, says_unused, unused_claims, uses,
    with_unused,
};
use crate::context::{ControllerContext, Running, StartError};

/// The gate of the condition `Unused` on claims.
pub const UNUSED_SINCE_TIME: &str = "PersistentVolumeClaimUnusedSinceTime";

struct PersistentVolumeClaimProtection {
    claims: Informer<PersistentVolumeClaim>,
    pods: Informer<Pod>,
    executor: Executor,
    clock: Clock,
    /// The condition `Unused` is kept.
    tracks: bool,
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
        clock: context.clock.clone(),
        tracks: context.features.enabled(UNUSED_SINCE_TIME),
    });
    let queue = context.queues.queue("pvcprotection");
    let mut watches = Watches::new(context.shutdown.clone());
    let (handler, keys) = (controller.clone(), queue.clone());
    watches.on(&controller.claims, move |event| {
        let claim = event.object();
        if !matches!(event, InformerEvent::Deleted(_)) && handler.asks(claim) {
            let namespace = claim.metadata.namespace.as_deref();
            keys.add(namespace_key(namespace.unwrap_or_default()));
        }
    });
    let (handler, keys) = (controller.clone(), queue.clone());
    watches.on(&controller.pods, move |event| {
        let freed = match &event {
            InformerEvent::Added(pod) => {
                handler.frees_claim(pod, false) || handler.turns_claim(pod, false)
            }
            InformerEvent::Deleted(pod) => {
                handler.frees_claim(pod, true) || handler.turns_claim(pod, true)
            }
            // An update may hide a deletion and a namesake's creation.
            InformerEvent::Updated { old, new } => {
                handler.frees_claim(new, false)
                    || handler.turns_claim(new, false)
                    || pod::uid(old) != pod::uid(new)
                        && (handler.frees_claim(old, true) || handler.turns_claim(old, true))
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

    /// Whether there is something to do for this claim, whatever its pods are.
    fn asks(&self, claim: &PersistentVolumeClaim) -> bool {
        is_relevant(&claim.metadata, PVC_PROTECTION_FINALIZER)
            || self.tracks
                && is_tracked(claim)
                && !says_unused(claim, true)
                && !says_unused(claim, false)
    }

    /// Whether a claim's condition may be wrong after this event.
    fn turns_claim(&self, pod: &Pod, deleted: bool) -> bool {
        let unused = deleted || pod::is_terminal(pod);
        self.tracks
            && pod::volume_claim_names(pod).iter().any(|name| {
                let claim = self.claims.get(pod::namespace(pod), name);
                claim.is_some_and(|c| is_tracked(&c) && !says_unused(&c, unused))
            })
    }

    /// Sets the conditions of claims that are wrong. That no pod names a claim is asked of the server before it is said.
    async fn track(
        &self,
        namespace: &str,
        claims: &[Arc<PersistentVolumeClaim>],
    ) -> Result<(), ApiError> {
        let tracked: Vec<_> = claims.iter().filter(|c| is_tracked(c)).cloned().collect();
        let pods = self.pods.list_namespace(namespace);
        let mut unused = unused_claims(&tracked, &pods, references);
        let cached = names(&unused);
        unused.retain(|claim| !says_unused(claim, true));
        if !unused.is_empty() {
            let live: Vec<Pod> = self.executor.list(namespace, "", "").await?;
            unused = unused_claims(&unused, &live, references);
        }
        let now = self.clock.now();
        let used = tracked
            .iter()
            .filter(|c| !cached.contains(c.metadata.name.as_deref().unwrap_or_default()))
            .filter(|claim| !says_unused(claim, false))
            .map(|claim| with_unused(claim, false, now));
        let unused = unused.iter().map(|claim| with_unused(claim, true, now));
        for claim in used.chain(unused) {
            match self.executor.execute(&Action::update_status(&claim)).await {
                Ok(_) | Err(ApiError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
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
        let mut unused = unused_claims(&candidates, &self.pods.list_namespace(namespace), uses);
        if !unused.is_empty() {
            let live: Vec<Pod> = self.executor.list(namespace, "", "").await?;
            unused = unused_claims(&unused, &live, uses);
        }
        Ok(names(&unused))
    }
}

fn names(claims: &[Arc<PersistentVolumeClaim>]) -> BTreeSet<String> {
    let names = claims.iter().filter_map(|c| c.metadata.name.clone());
    names.collect()
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
        if self.tracks
            && let Err(error) = self.track(namespace, &claims).await
        {
            failed = Some(error);
        }
        failed.map_or(Ok(None), Err)
    }
}
