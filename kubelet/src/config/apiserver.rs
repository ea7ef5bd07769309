//! Pods that the API server bound to this node.
//!
//! Owns: the one watch with `spec.nodeName=<node>`. Upstream: `pkg/kubelet/config/apiserver.go`, v1.36.

use std::sync::Arc;

use component_base::informer::{Informer, InformerEvent};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{PodUpdate, Source};
use crate::pod::{self, CONFIG_FIRST_SEEN_ANNOTATION, CONFIG_SOURCE_ANNOTATION};

/// The API server's pods say so; the mark is the kubelet's own and never written back.
fn mark(pod: &Arc<Pod>) -> Arc<Pod> {
    let mut pod = (**pod).clone();
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(CONFIG_SOURCE_ANNOTATION.to_owned(), "api".to_owned());
    annotations
        .entry(CONFIG_FIRST_SEEN_ANNOTATION.to_owned())
        .or_insert_with(|| jiff::Timestamp::now().to_string());
    Arc::new(pod)
}

/// Passes everything on until `shutdown`; says `Ready` once, after the first whole list.
pub async fn run(
    informer: Informer<Pod>,
    out: mpsc::Sender<PodUpdate>,
    shutdown: CancellationToken,
) {
    let mut events = informer.subscribe();
    let synced = informer.wait_for_sync();
    tokio::pin!(synced);
    let mut ready = false;
    loop {
        let event = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            event = events.recv() => event,
            // Only when nothing is queued: what the list held was passed on before.
            true = &mut synced, if !ready => {
                ready = true;
                while let Some(event) = events.try_recv() {
                    if !pass(event, &out).await {
                        return;
                    }
                }
                if out.send(PodUpdate::Ready(Source::Api)).await.is_err() {
                    return;
                }
                continue;
            }
        };
        let Some(event) = event else { return };
        if !pass(event, &out).await {
            return;
        }
    }
}

async fn pass(event: InformerEvent<Pod>, out: &mpsc::Sender<PodUpdate>) -> bool {
    let update = match event {
        InformerEvent::Added(pod) => PodUpdate::Set(mark(&pod)),
        InformerEvent::Updated { old, new } => {
            // Deleted and made again under the same name, and the watch saw only the last.
            let replaced = pod::uid(&old) != pod::uid(&new);
            if replaced && out.send(PodUpdate::Removed(mark(&old))).await.is_err() {
                return false;
            }
            PodUpdate::Set(mark(&new))
        }
        InformerEvent::Deleted(pod) => PodUpdate::Removed(mark(&pod)),
    };
    out.send(update).await.is_ok()
}
