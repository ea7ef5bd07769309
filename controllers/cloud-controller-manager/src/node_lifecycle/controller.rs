//! The shell: every `--node-monitor-period` the cloud is asked for Nodes that are not ready; it has no events.

use std::sync::Arc;

use cloud_provider::{Cloud, CloudError};
use component_base::clock::Clock;
use component_base::events::EventType;
use component_base::informer::{Informer, InformerOptions};
use component_base::metrics::{exponential_buckets, make};
use controller_runtime::{Action, ApiError, DeleteOptions, Executor};
use futures::{FutureExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::Node;
use prometheus::{Histogram, IntCounterVec};

use super::sync::{is_ready, taint};
use crate::context::{Context, Running, StartError};

const NAME: &str = "cloud-node-lifecycle-controller";

component_base::metrics! {
    pub(super) struct Metrics {
        duration: Histogram = make::histogram(
            "cloud_node_lifecycle_controller_monitor_nodes_duration_seconds",
            "A metric measuring the duration in seconds of a single MonitorNodes loop execution.",
            exponential_buckets(0.001, 2.0, 15),
        ),
        calls: IntCounterVec = make::counters(
            "cloud_node_lifecycle_controller_cloud_provider_calls_total",
            "The total number of cloud provider API calls, labeled by operation and result.",
            &["operation", "result"],
        ),
    }
}

impl Metrics {
    fn observe(&self, operation: &str, error: Option<&CloudError>) {
        let result = match error {
            None => "success",
            Some(CloudError::NotImplemented) => "not_implemented",
            Some(CloudError::InstanceNotFound) => "instance_not_found",
            Some(_) => "error",
        };
        self.calls.with_label_values(&[operation, result]).inc();
    }
}

pub(super) struct Lifecycle {
    pub(super) nodes: Informer<Node>,
    pub(super) cloud: Arc<dyn Cloud>,
    pub(super) executor: Executor,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
}

/// Builds the controller; a cloud without instances gives it nothing to do.
///
/// # Errors
/// When no client can be had.
pub async fn start(context: Context) -> Result<Running, StartError> {
    if context.cloud.instances().is_none() {
        return Ok(context.nothing_to_do(NAME, "the cloud provider does not support instances"));
    }
    let controller = Lifecycle {
        nodes: context.informers.informer(InformerOptions::default()),
        cloud: context.cloud.clone(),
        executor: context.executor("node-controller", NAME).await?,
        clock: context.clock.clone(),
        metrics: Metrics::register(&context.metrics)?,
    };
    let (options, shutdown) = (context.options, context.shutdown);
    Ok(async move {
        tracing::info!(controller = NAME, "Starting controller");
        controller.nodes.wait_for_sync().await;
        loop {
            let round = async {
                controller
                    .monitor(options.concurrent_node_lifecycle_syncs)
                    .await;
                controller.clock.sleep(options.node_monitor_period).await;
            };
            if shutdown.run_until(round).await.is_none() {
                return;
            }
        }
    }
    .boxed())
}

impl Lifecycle {
    /// Looks at all Nodes, some at a time.
    pub(super) async fn monitor(&self, at_once: usize) {
        let begin = self.clock.monotonic();
        futures::stream::iter(self.nodes.list())
            .for_each_concurrent(at_once, |node| async move {
                if let Err(error) = self.look_at(&node).await {
                    let name = node.metadata.name.as_deref().unwrap_or_default();
                    tracing::error!(node = name, %error, "error patching node taints");
                }
            })
            .await;
        let took = self.clock.monotonic().saturating_sub(begin);
        self.metrics.duration.observe(took.as_secs_f64());
    }

    async fn look_at(&self, node: &Node) -> Result<(), ApiError> {
        if is_ready(node) {
            return self.carry_out(taint(node, false)).await;
        }
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let Some(instances) = self.cloud.instances() else {
            return Ok(());
        };
        let exists = match instances.exists(node).await {
            // A cloud may say it either way.
            Ok(false) | Err(CloudError::InstanceNotFound) => {
                self.metrics
                    .observe("instance_exists", Some(&CloudError::InstanceNotFound));
                false
            }
            Ok(true) => {
                self.metrics.observe("instance_exists", None);
                true
            }
            Err(error) => {
                self.metrics.observe("instance_exists", Some(&error));
                tracing::error!(node = name, %error, "error checking if node exists");
                return Ok(());
            }
        };
        if !exists {
            self.delete(node, name).await;
            return Ok(());
        }
        let shut_down = instances.is_shut_down(node).await;
        self.metrics
            .observe("instance_shutdown", shut_down.as_ref().err());
        match shut_down {
            Ok(true) => self.carry_out(taint(node, true)).await,
            Ok(false) | Err(CloudError::NotImplemented) => Ok(()),
            Err(error) => {
                tracing::error!(node = name, %error, "error checking if node is shutdown");
                Ok(())
            }
        }
    }

    async fn carry_out(&self, action: Option<Action>) -> Result<(), ApiError> {
        match action {
            Some(action) => self.executor.execute(&action).await.map(drop),
            None => Ok(()),
        }
    }

    async fn delete(&self, node: &Node, name: &str) {
        tracing::info!(
            node = name,
            "deleting node since it is no longer present in cloud provider"
        );
        self.tell(
            node,
            EventType::Normal,
            "DeletingNode",
            format!("Deleting node {name} because it does not exist in the cloud provider"),
        )
        .await;
        // A namesake that has come meanwhile is another.
        let options = DeleteOptions {
            uid: node.metadata.uid.clone(),
            ..DeleteOptions::default()
        };
        let delete = Action::delete::<Node>("", name, options);
        match self.executor.execute(&delete).await {
            Ok(_) | Err(ApiError::Conflict(_)) => {}
            Err(error) => {
                tracing::error!(node = name, %error, "unable to delete node");
                let message = format!("Failed deleting node {name}: {error}");
                self.tell(node, EventType::Warning, "DeletingNodeFailed", message)
                    .await;
            }
        }
    }

    async fn tell(
        &self,
        node: &Node,
        event_type: EventType,
        reason: &'static str,
        message: String,
    ) {
        // Recording only queues; it has no failure that anyone could act on.
        let event = Action::event(node, event_type, reason, message);
        let _ = self.executor.execute(&event).await;
    }
}
