//! The shell: looks every 20 s at all Pods and Nodes in the cache.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use component_base::clock::Clock;
use component_base::informer::{Informer, InformerOptions};
use component_base::metrics::make;
use component_helpers::pod as pod_helpers;
use controller_runtime::{Action, ApiError, DeleteOptions, Executor};
use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use prometheus::IntCounterVec;
use serde_json::json;

use super::sync::{Reason, missing_nodes, sync};
use crate::context::{ControllerContext, Running, StartError};

const CHECK_PERIOD: Duration = Duration::from_secs(20);
/// How long a Node must be missing before its Pods are orphans.
const QUARANTINE: Duration = Duration::from_secs(40);
/// Deletions at once.
const PARALLEL: usize = 16;

component_base::metrics! {
    struct Metrics {
        deleted: IntCounterVec = make::counters(
            "pod_gc_collector_force_delete_pods_total",
            "Number of pods that are being forcefully deleted since the Pod GC Controller started.",
            &["namespace", "reason"],
        ),
        failed: IntCounterVec = make::counters(
            "pod_gc_collector_force_delete_pod_errors_total",
            "Number of errors encountered when forcefully deleting the pods since the Pod GC Controller started.",
            &["namespace", "reason"],
        ),
    }
}

struct PodGarbageCollector {
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    executor: Executor,
    threshold: usize,
    clock: Clock,
    metrics: Metrics,
    /// Missing Nodes, and since when.
    quarantine: HashMap<String, Duration>,
}

/// Builds the controller.
///
/// # Errors
/// When no client can be had.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let mut collector = PodGarbageCollector {
        pods: context.informers.informer(InformerOptions::default()),
        nodes: context.informers.informer(InformerOptions::default()),
        executor: context
            .executor("pod-garbage-collector", "pod-garbage-collector")
            .await?,
        threshold: context.options.terminated_pod_gc_threshold,
        clock: context.clock.clone(),
        metrics: Metrics::register(&context.metrics)?,
        quarantine: HashMap::new(),
    };
    let shutdown = context.shutdown.clone();
    Ok(async move {
        let (pods, nodes) = (collector.pods.clone(), collector.nodes.clone());
        let synced = async { pods.wait_for_sync().await && nodes.wait_for_sync().await };
        if shutdown.run_until(synced).await != Some(true) {
            return;
        }
        loop {
            let round = async {
                collector.gc().await;
                collector.clock.sleep(CHECK_PERIOD).await;
            };
            if shutdown.run_until(round).await.is_none() {
                return;
            }
        }
    }
    .boxed())
}

impl PodGarbageCollector {
    async fn gc(&mut self) {
        let (pods, nodes) = (self.pods.list(), self.nodes.list());
        let gone = self.deleted_nodes(missing_nodes(&pods, &nodes)).await;
        let found = sync(&pods, &nodes, &gone, self.threshold);
        let (executor, clock, metrics) = (&self.executor, &self.clock, &self.metrics);
        futures::stream::iter(found)
            .for_each_concurrent(PARALLEL, |(pod, reason)| async move {
                let namespace = pod_helpers::namespace(&pod);
                tracing::info!(
                    pod = pod_helpers::key(&pod),
                    reason = reason.as_str(),
                    "PodGC is force deleting Pod"
                );
                metrics
                    .deleted
                    .with_label_values(&[namespace, reason.as_str()])
                    .inc();
                if let Err(error) = delete(executor, &pod, reason, clock.now()).await {
                    tracing::warn!(pod = pod_helpers::key(&pod), %error, "Failed to delete pod");
                    metrics
                        .failed
                        .with_label_values(&[namespace, reason.as_str()])
                        .inc();
                }
            })
            .await;
    }

    /// Nodes that were missing through the quarantine, and that the server does not know either.
    async fn deleted_nodes(&mut self, missing: HashSet<String>) -> HashSet<String> {
        let now = self.clock.monotonic();
        self.quarantine.retain(|name, _| missing.contains(name));
        for name in missing {
            self.quarantine.entry(name).or_insert(now);
        }
        let mut gone = HashSet::new();
        for (name, since) in &self.quarantine {
            if now.saturating_sub(*since) < QUARANTINE {
                continue;
            }
            match self.executor.get::<Node>("", name).await {
                Ok(None) => drop(gone.insert(name.clone())),
                Ok(Some(_)) => {}
                Err(error) => tracing::warn!(node = name, %error, "Error while getting node"),
            }
        }
        gone
    }
}

/// Marks the Pod failed, since nobody else will, and deletes it without grace.
async fn delete(
    executor: &Executor,
    pod: &Pod,
    reason: Reason,
    now: Timestamp,
) -> Result<(), ApiError> {
    let (namespace, name) = (pod_helpers::namespace(pod), pod_helpers::name(pod));
    if !pod_helpers::is_terminal(pod) {
        let mut status = pod.status.clone().unwrap_or_default();
        // Only the one condition: the others are the kubelet's, and may be newer on the server.
        let mut conditions = Vec::new();
        if reason == Reason::Orphaned {
            let condition = PodCondition {
                type_: "DisruptionTarget".into(),
                status: "True".into(),
                reason: Some("DeletionByPodGC".into()),
                message: Some("PodGC: node no longer exists".into()),
                observed_generation: pod.metadata.generation,
                ..PodCondition::default()
            };
            pod_helpers::update_pod_condition(&mut status, condition, &Time(now));
            conditions.extend(pod_helpers::get_pod_condition(&status, "DisruptionTarget"));
        }
        let patch = json!({
            "metadata": { "uid": pod.metadata.uid },
            "status": { "phase": "Failed", "observedGeneration": pod.metadata.generation, "conditions": conditions },
        });
        match executor
            .execute(&Action::status_patch::<Pod>(namespace, name, patch))
            .await
        {
            // Gone, or replaced by a namesake (the UID differs).
            Err(ApiError::NotFound(_) | ApiError::Conflict(_)) => return Ok(()),
            result => result.map(drop)?,
        }
    }
    let options = DeleteOptions {
        uid: pod.metadata.uid.clone(),
        grace_period_seconds: Some(0),
        ..DeleteOptions::default()
    };
    match executor
        .execute(&Action::delete::<Pod>(namespace, name, options))
        .await
    {
        Err(ApiError::Conflict(_)) => Ok(()),
        result => result.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use controller_runtime::testing::FakeApi;

    #[tokio::test]
    async fn marks_failed_then_deletes() {
        let api = FakeApi::new();
        let value = json!({ "metadata": { "name": "p", "namespace": "ns", "uid": "u" },
            "spec": { "containers": [] }, "status": { "phase": "Running" } });
        let pod: Pod = serde_json::from_value(value).unwrap();
        api.insert(&pod);
        delete(
            &api.executor(),
            &pod,
            Reason::Orphaned,
            Timestamp::UNIX_EPOCH,
        )
        .await
        .unwrap();
        let writes = api.writes();
        assert_eq!(writes.len(), 2);
        assert_eq!(writes[0].body["status"]["phase"], "Failed");
        assert_eq!(
            writes[0].body["status"]["conditions"][0]["reason"],
            "DeletionByPodGC"
        );
        assert_eq!(writes[1].body["gracePeriodSeconds"], 0);
        assert!(api.list::<Pod>().is_empty());
        // A namesake is left alone.
        let other: Pod = Pod {
            metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                uid: Some("v".into()),
                ..pod.metadata.clone()
            },
            ..pod.clone()
        };
        api.insert(&other);
        let failed = Pod {
            status: serde_json::from_value(json!({ "phase": "Failed" })).unwrap(),
            ..pod
        };
        delete(
            &api.executor(),
            &failed,
            Reason::Terminated,
            Timestamp::UNIX_EPOCH,
        )
        .await
        .unwrap();
        assert_eq!(api.list::<Pod>().len(), 1);
    }
}
