//! The shell: taints and Pods in, deletions out. Timers are delayed keys of the work queue.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::events::EventType;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use component_base::metrics::make;
use component_helpers::pod as pod_helpers;
use controller_runtime::{
    Action, ApiError, Controller, DeleteOptions, Executor, ObjectKey, Watches, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use prometheus::IntCounter;
use serde_json::json;

use super::sync::{Decision, Scheduled, no_execute_taints, sync};
use crate::context::{ControllerContext, Running, StartError};

/// Upstream's `UpdateWorkerSize`.
const WORKERS: usize = 8;
/// The index of Pods by Node.
const BY_NODE: &str = "spec.nodeName";

component_base::metrics! {
    struct Metrics {
        deleted: IntCounter = make::counter(
            "taint_eviction_controller_pod_deletions_total",
            "Total number of Pods deleted by TaintEvictionController since its start.",
        ),
    }
}

struct TaintEviction {
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    scheduled: Mutex<HashMap<ObjectKey, Scheduled>>,
    executor: Executor,
    clock: Clock,
    metrics: Metrics,
}

/// Builds the controller.
///
/// # Errors
/// When no client can be had.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let pods: Informer<Pod> = context.informers.informer(InformerOptions::default());
    pods.add_index(BY_NODE, |pod| {
        pod_helpers::node_name(pod)
            .map(ToString::to_string)
            .into_iter()
            .collect()
    });
    let nodes: Informer<Node> = context.informers.informer(InformerOptions::default());
    let executor = context
        .executor("node-controller", "taint-eviction-controller")
        .await?;
    let queue = context.queues.queue("noexec_taint_pod");
    let mut watches = Watches::new(context.shutdown.clone());
    let add = queue.clone();
    watches.on(&pods, move |event| {
        if let InformerEvent::Updated { old, new } = &event
            && old.spec.as_ref().map(|s| (&s.node_name, &s.tolerations))
                == new.spec.as_ref().map(|s| (&s.node_name, &s.tolerations))
            && old.metadata.uid == new.metadata.uid
        {
            return;
        }
        add.add(ObjectKey::of(&**event.object()));
    });
    let (add, index) = (queue.clone(), pods.clone());
    watches.on(&nodes, move |event| {
        let changed = match &event {
            InformerEvent::Updated { old, new } => no_execute_taints(old) != no_execute_taints(new),
            InformerEvent::Added(node) => !no_execute_taints(node).is_empty(),
            InformerEvent::Deleted(_) => true,
        };
        if changed {
            let name = event.object().metadata.name.as_deref().unwrap_or_default();
            index
                .by_index(BY_NODE, name)
                .iter()
                .for_each(|pod| add.add(ObjectKey::of(&**pod)));
        }
    });
    let controller = Arc::new(TaintEviction {
        pods,
        nodes,
        scheduled: Mutex::default(),
        executor,
        clock: context.clock.clone(),
        metrics: Metrics::register(&context.metrics)?,
    });
    Ok(run_controller(controller, queue, watches, WORKERS, context.shutdown).boxed())
}

fn event(key: &ObjectKey, message: String) -> Action {
    Action::Event {
        regarding: Box::new(ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: Some(key.name.clone()),
            namespace: Some(key.namespace.clone()),
            ..ObjectReference::default()
        }),
        event_type: EventType::Normal,
        reason: "TaintManagerEviction",
        message,
    }
}

impl TaintEviction {
    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectKey, Scheduled>> {
        self.scheduled
            .lock()
            .expect("no panic while the lock is held")
    }

    async fn cancel(&self, key: &ObjectKey) -> Result<(), ApiError> {
        let was = self.lock().remove(key);
        if was.is_some_and(|scheduled| !scheduled.fired) {
            self.executor
                .execute(&event(key, format!("Cancelling deletion of Pod {key}")))
                .await?;
        }
        Ok(())
    }

    /// Says why in a condition, then deletes.
    async fn delete(&self, key: &ObjectKey, uid: &str) -> Result<(), ApiError> {
        let Some(pod) = self.executor.get::<Pod>(&key.namespace, &key.name).await? else {
            return Ok(());
        };
        if pod_helpers::uid(&pod) != uid {
            return Ok(());
        }
        let mut status = pod.status.clone().unwrap_or_default();
        let condition = PodCondition {
            type_: "DisruptionTarget".into(),
            status: "True".into(),
            reason: Some("DeletionByTaintManager".into()),
            message: Some("Taint manager: deleting due to NoExecute taint".into()),
            observed_generation: pod.metadata.generation,
            ..PodCondition::default()
        };
        if pod_helpers::update_pod_condition(&mut status, condition, &Time(self.clock.now())) {
            // Only the one condition: the others are the kubelet's, and may be newer on the server.
            let condition = pod_helpers::get_pod_condition(&status, "DisruptionTarget");
            let patch =
                json!({ "metadata": { "uid": uid }, "status": { "conditions": [condition] } });
            match self
                .executor
                .execute(&Action::status_patch::<Pod>(
                    &key.namespace,
                    &key.name,
                    patch,
                ))
                .await
            {
                Err(ApiError::NotFound(_)) => return Ok(()),
                result => result.map(drop)?,
            }
        }
        let options = DeleteOptions {
            uid: Some(uid.to_string()),
            ..DeleteOptions::default()
        };
        match self
            .executor
            .execute(&Action::delete::<Pod>(&key.namespace, &key.name, options))
            .await
        {
            // A namesake is there now.
            Err(ApiError::Conflict(_)) => Ok(()),
            result => result.map(drop),
        }
    }
}

#[async_trait]
impl Controller for TaintEviction {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        "taint-eviction-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let Some(pod) = self.pods.get_key(key) else {
            self.cancel(key).await?;
            return Ok(None);
        };
        let uid = pod_helpers::uid(&pod).to_string();
        let taints = match pod_helpers::node_name(&pod) {
            Some(node) => self
                .nodes
                .get("", node)
                .map(|node| no_execute_taints(&node))
                .unwrap_or_default(),
            None => Vec::new(),
        };
        let now = self.clock.monotonic();
        let decision = {
            let mut scheduled = self.lock();
            if scheduled.get(key).is_some_and(|s| s.uid != uid) {
                scheduled.remove(key);
            }
            let decision = sync(&pod, &taints, scheduled.get(key), now);
            if let Decision::Schedule { fire_at } = decision {
                scheduled.insert(
                    key.clone(),
                    Scheduled {
                        uid: uid.clone(),
                        fire_at,
                        fired: false,
                    },
                );
            }
            decision
        };
        match decision {
            Decision::Idle => Ok(None),
            Decision::Cancel => self.cancel(key).await.map(|()| None),
            Decision::Schedule { fire_at } => Ok(Some(fire_at.saturating_sub(now))),
            // The delayed key is in the queue already; this covers a key that was taken before its time.
            Decision::Keep => Ok(self
                .lock()
                .get(key)
                .filter(|s| !s.fired)
                .map(|s| s.fire_at.saturating_sub(now))),
            Decision::Delete => {
                tracing::info!(pod = %key, "Deleting pod");
                self.executor
                    .execute(&event(key, format!("Marking for deletion Pod {key}")))
                    .await?;
                self.delete(key, &uid).await?;
                self.metrics.deleted.inc();
                self.lock().insert(
                    key.clone(),
                    Scheduled {
                        uid,
                        fire_at: now,
                        fired: true,
                    },
                );
                Ok(None)
            }
        }
    }
}
