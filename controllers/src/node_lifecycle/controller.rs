//! The shell: three loops over shared informers. Every 5 s the pass over all Nodes; at their rate the `NoExecute` taints; and, as events
//! come, `NoSchedule` taints, labels, and Pods that land on dead Nodes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use component_base::shutdown::Shutdown;
use component_helpers::pod as pod_helpers;
use controller_runtime::{Action, ApiError, Controller, ObjectKey, Watches, run_controller};
use futures::FutureExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;
use tokio::sync::Notify;

use super::health::Grace;
use super::monitor::{BY_NODE, Metrics, Monitor, Shell};
use super::taints::{no_schedule, reconcile_labels};
use super::zone::Rates;
use crate::context::{ControllerContext, Running, StartError};

/// Whether a lease is read once more before its Node is called silent.
pub const LEASE_CIRCUIT_BREAKER: &str = "NodeControllerLeaseCircuitBreaker";
/// Upstream's `nodeUpdateWorkerSize`.
const WORKERS: usize = 8;
/// Upstream's `NodeEvictionPeriod`: the shortest pause between two tainting passes.
const EVICTION_PERIOD: Duration = Duration::from_millis(100);

/// Builds the controller.
///
/// # Errors
/// When no client can be had.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let options = context.options.node_lifecycle.clone();
    let nodes: Informer<Node> = context.informers.informer(InformerOptions::default());
    let pods: Informer<Pod> = context.informers.informer(InformerOptions::default());
    pods.add_index(BY_NODE, |pod| {
        pod_helpers::node_name(pod)
            .map(ToString::to_string)
            .into_iter()
            .collect()
    });
    let leases: Informer<Lease> = context
        .informers
        .namespaced_informer("kube-node-lease", InformerOptions::default());
    let shell = Shell {
        nodes: nodes.clone(),
        pods: pods.clone(),
        leases: leases.clone(),
        lease_circuit_breaker: context.features.enabled(LEASE_CIRCUIT_BREAKER),
        executor: context
            .executor("node-controller", "node-controller")
            .await?,
        grace: Grace {
            monitor: options.monitor_grace_period,
            startup: options.startup_grace_period,
        },
        rates: Rates {
            primary: options.eviction_rate,
            secondary: options.secondary_eviction_rate,
            large_cluster_threshold: options.large_cluster_size_threshold,
            unhealthy_zone_threshold: options.unhealthy_zone_threshold,
        },
        clock: context.clock.clone(),
        metrics: Arc::new(Metrics::register(&context.metrics)?),
        shared: Arc::default(),
        changed: Arc::new(Notify::new()),
    };
    let queue = context.queues.queue("node_lifecycle_controller");
    let mut watches = Watches::new(context.shutdown.clone());
    watches.wait_for(&leases);
    let add = queue.clone();
    watches.on(&nodes, move |event| {
        if !matches!(event, InformerEvent::Deleted(_)) {
            add.add(ObjectKey::of(&**event.object()));
        }
    });
    let add = queue.clone();
    watches.on(&pods, move |event| {
        let placed = match &event {
            InformerEvent::Added(pod) => pod_helpers::node_name(pod).is_some(),
            InformerEvent::Updated { old, new } => {
                pod_helpers::node_name(old) != pod_helpers::node_name(new)
            }
            InformerEvent::Deleted(_) => false,
        };
        if placed {
            add.add(ObjectKey::of(&**event.object()));
        }
    });
    let shutdown = context.shutdown;
    Ok(async move {
        let synced = async {
            nodes.wait_for_sync().await
                && pods.wait_for_sync().await
                && leases.wait_for_sync().await
        };
        if shutdown.run_until(synced).await != Some(true) {
            return;
        }
        let controller = Arc::new(NodeLifecycle {
            shell: shell.clone(),
        });
        tokio::join!(
            run_controller(controller, queue, watches, WORKERS, shutdown.clone()),
            monitor(shell.clone(), options.monitor_period, shutdown.clone()),
            taint(shell, shutdown.clone()),
        );
    }
    .boxed())
}

async fn monitor(shell: Shell, period: Duration, shutdown: Shutdown) {
    let mut monitor = Monitor::default();
    loop {
        let pass = async {
            let leadership = shell.executor.leadership();
            if !leadership.is_leading() && leadership.wait().await {
                monitor.forget_silence(shell.clock.now());
            }
            monitor.monitor_node_health(&shell).await;
            shell.clock.sleep(period).await;
        };
        if shutdown.run_until(pass).await.is_none() {
            return;
        }
    }
}

async fn taint(shell: Shell, shutdown: Shutdown) {
    loop {
        let pass = async {
            let next = shell.do_no_execute_tainting_pass().await;
            match next {
                Some(at) => {
                    let pause = at
                        .saturating_sub(shell.clock.monotonic())
                        .max(EVICTION_PERIOD);
                    tokio::select! {
                        () = shell.clock.sleep(pause) => {}
                        () = shell.changed.notified() => {}
                    }
                }
                None => shell.changed.notified().await,
            }
        };
        if shutdown.run_until(pass).await.is_none() {
            return;
        }
    }
}

/// The event-driven part. Keys with a namespace are Pods, those without are Nodes.
struct NodeLifecycle {
    shell: Shell,
}

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
pub enum NodeLifecycleError {
    #[error("failed to swap taints of node {0}")]
    Taints(String),
    #[error("unable to mark the pod NotReady")]
    Pod,
    #[error(transparent)]
    Api(#[from] ApiError),
}

#[async_trait]
impl Controller for NodeLifecycle {
    type Key = ObjectKey;
    type Error = NodeLifecycleError;

    fn name(&self) -> &'static str {
        "node-lifecycle-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, NodeLifecycleError> {
        if !key.namespace.is_empty() {
            return self.process_pod(key).await;
        }
        let Some(node) = self.shell.nodes.get_key(key) else {
            return Ok(None);
        };
        let swap = no_schedule(&node);
        if !swap.is_empty() && !self.shell.swap(&node, &swap).await {
            return Err(NodeLifecycleError::Taints(key.name.clone()));
        }
        let labels = reconcile_labels(&node);
        if !labels.is_empty() {
            let patch = json!({ "metadata": { "labels": labels } });
            match self
                .shell
                .executor
                .execute(&Action::merge_patch::<Node>("", &key.name, patch))
                .await
            {
                Err(ApiError::NotFound(_)) => {}
                result => result.map(drop)?,
            }
        }
        Ok(None)
    }
}

impl NodeLifecycle {
    /// A Pod that lands on a Node that is not ready is not ready.
    async fn process_pod(&self, key: &ObjectKey) -> Result<Option<Duration>, NodeLifecycleError> {
        let Some(pod) = self.shell.pods.get_key(key) else {
            return Ok(None);
        };
        let Some(node) = pod_helpers::node_name(&pod) else {
            return Ok(None);
        };
        let ready = self.shell.lock().ready.get(node).cloned().flatten();
        let dead = ready.is_some_and(|status| status != "True");
        if dead && !self.shell.mark_pod_not_ready(&pod).await {
            return Err(NodeLifecycleError::Pod);
        }
        Ok(None)
    }
}
