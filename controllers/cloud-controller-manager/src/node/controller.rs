//! The shell: Nodes in; labels, provider ids, addresses out. The cloud is asked for addresses every `--node-status-update-frequency`, as
//! it has no events.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cloud_provider::{Cloud, CloudError, InstanceMetadata, Instances};
use component_base::clock::Clock;
use component_base::events::EventType;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use component_base::metrics::{exponential_buckets, make};
use controller_runtime::{
    Action, ApiError, Controller, Executor, ObjectKey, Watches, run_controller,
};
use futures::{FutureExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::{Node, NodeAddress};
use prometheus::Histogram;
use serde_json::json;

use super::sync::{AddressError, initialized, is_uninitialized, new_addresses, stale_labels};
use crate::context::{Context, Running, StartError};

const NAME: &str = "cloud-node-controller";

component_base::metrics! {
    pub(super) struct Metrics {
        taint_removal: Histogram = make::histogram(
            "node_controller_cloud_provider_taint_removal_delay_seconds",
            "Number of seconds after node creation when NodeController removed the cloud-provider taint of a single node.",
            exponential_buckets(1.0, 4.0, 6),
        ),
        initial_sync: Histogram = make::histogram(
            "node_controller_initial_node_sync_delay_seconds",
            "Number of seconds after node creation when NodeController finished the initial synchronization of a single node.",
            exponential_buckets(1.0, 4.0, 6),
        ),
    }
}

/// Why a Node is not initialized yet.
#[derive(Debug, thiserror::Error)]
pub(super) enum NodeError {
    #[error("failed to get instance metadata for node {node}: {source}")]
    Metadata {
        node: String,
        #[source]
        source: CloudError,
    },
    #[error("cloud provider does not set node provider ID for node {0}")]
    NoProviderId(String),
    #[error("failed to get zone from cloud provider: {0}")]
    Zone(#[source] CloudError),
    #[error(
        "failed to get node modifiers from cloud provider: provided node ip for node {node:?} is not valid: {source}"
    )]
    NodeIp {
        node: String,
        #[source]
        source: AddressError,
    },
    #[error(transparent)]
    Api(#[from] ApiError),
}

pub(super) struct Nodes {
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
    // It shares the account of the lifecycle controller, as upstream's.
    let executor = context.executor("node-controller", NAME).await?;
    let controller = Arc::new(Nodes {
        nodes: context.informers.informer(InformerOptions::default()),
        cloud: context.cloud.clone(),
        executor,
        clock: context.clock.clone(),
        metrics: Metrics::register(&context.metrics)?,
    });
    let queue = context.queues.queue("Nodes");
    let mut watches = Watches::new(context.shutdown.clone());
    let keys = queue.clone();
    watches.on(&controller.nodes, move |event| {
        if !matches!(event, InformerEvent::Deleted(_)) {
            keys.add(ObjectKey::of(&**event.object()));
        }
    });
    let options = context.options;
    let shutdown = context.shutdown.clone();
    let follow = {
        let (controller, shutdown) = (controller.clone(), shutdown.clone());
        let pause = options.node_status_update_frequency;
        let at_once = options.concurrent_node_status_updates;
        async move {
            controller.nodes.wait_for_sync().await;
            loop {
                let round = controller.follow_addresses(at_once);
                let round = async { (round.await, controller.clock.sleep(pause).await) };
                if shutdown.run_until(round).await.is_none() {
                    return;
                }
            }
        }
    };
    let workers = options.concurrent_node_syncs;
    let run = run_controller(controller, queue, watches, workers, shutdown);
    Ok(futures::future::join(run, follow).map(drop).boxed())
}

impl Nodes {
    fn instances(&self) -> Result<&dyn Instances, CloudError> {
        self.cloud.instances().ok_or(CloudError::NotImplemented)
    }

    /// What the cloud knows, with zone and region, and a provider id; `None` when the Node is none of its business.
    async fn metadata(
        &self,
        node: &Node,
        name: &str,
    ) -> Result<Option<InstanceMetadata>, NodeError> {
        let wrap = |source| NodeError::Metadata {
            node: name.to_owned(),
            source,
        };
        let instances = self.instances().map_err(wrap)?;
        let Some(mut metadata) = instances.metadata(node).await.map_err(wrap)? else {
            return Ok(None);
        };
        let own = node.spec.as_ref().and_then(|s| s.provider_id.as_deref());
        if metadata.provider_id.is_empty() && own.unwrap_or_default().is_empty() {
            // It is set now or never: the field cannot be changed, and load balancers need it.
            return Err(NodeError::NoProviderId(name.to_owned()));
        }
        if let Some(zones) = self.cloud.zones().filter(|_| metadata.zone.is_empty()) {
            let zone = zones.zone(node).await.map_err(NodeError::Zone)?;
            metadata.zone = zone.failure_domain;
            if metadata.region.is_empty() {
                metadata.region = zone.region;
            }
        }
        Ok(Some(metadata))
    }

    async fn initialize(&self, node: &Node, name: &str) -> Result<(), NodeError> {
        let Some(metadata) = self.metadata(node, name).await? else {
            tracing::info!(
                node = name,
                "Skip sync node because cloud provided nil metadata"
            );
            return Ok(());
        };
        let wanted = initialized(node, &metadata).map_err(|source| NodeError::NodeIp {
            node: name.to_owned(),
            source,
        })?;
        let written = self.executor.update(&wanted).await?;
        let created = node.metadata.creation_timestamp.as_ref();
        let observe = |histogram: &Histogram| {
            if let Some(created) = created {
                let age = self.clock.now().duration_since(created.0);
                histogram.observe(age.as_secs_f64());
            }
        };
        observe(&self.metrics.taint_removal);
        // Nobody should have to wait a round for the addresses.
        self.write_addresses(&written, name, &metadata.node_addresses)
            .await;
        tracing::info!(
            node = name,
            "Successfully initialized node with cloud provider"
        );
        let event = Action::event(
            node,
            EventType::Normal,
            "Synced",
            "Node synced successfully",
        );
        self.executor.execute(&event).await?;
        observe(&self.metrics.initial_sync);
        Ok(())
    }

    async fn write_addresses(&self, node: &Node, name: &str, known: &[NodeAddress]) {
        let wanted = match new_addresses(node, known) {
            Ok(Some(wanted)) => wanted,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(node = name, %error, "Failed to update node addresses");
                return;
            }
        };
        // Addresses are a list that is replaced, not merged.
        let patch = json!({ "metadata": { "uid": node.metadata.uid }, "status": { "addresses": replace(&wanted) } });
        let patch = Action::status_patch::<Node>("", name, patch);
        if let Err(error) = self.executor.execute(&patch).await {
            tracing::error!(node = name, %error, "Error patching node with cloud ip addresses");
        }
    }

    /// Asks the cloud for the addresses of all initialized Nodes, some at a time.
    pub(super) async fn follow_addresses(&self, at_once: usize) {
        let mut nodes = self.nodes.list();
        nodes.retain(|node| !is_uninitialized(node));
        futures::stream::iter(nodes)
            .for_each_concurrent(at_once, |node| async move { self.follow(&node).await })
            .await;
    }

    async fn follow(&self, node: &Node) {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let known = match self.instances() {
            Ok(instances) => instances.metadata(node).await,
            Err(error) => Err(error),
        };
        match known {
            Ok(Some(metadata)) => {
                self.write_addresses(node, name, &metadata.node_addresses)
                    .await;
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(node = name, %error, "Error getting instance metadata for node addresses");
            }
        }
    }
}

/// A strategic merge patch merges addresses by type; this one replaces them all, as two may be of one type.
fn replace(addresses: &[NodeAddress]) -> serde_json::Value {
    let mut all: Vec<serde_json::Value> = addresses.iter().map(|a| json!(a)).collect();
    all.push(json!({ "$patch": "replace" }));
    all.into()
}

#[async_trait]
impl Controller for Nodes {
    type Key = ObjectKey;
    type Error = NodeError;

    fn name(&self) -> &'static str {
        NAME
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, NodeError> {
        let Some(node) = self.nodes.get_key(key) else {
            return Ok(None);
        };
        if is_uninitialized(&node) {
            self.initialize(&node, &key.name).await?;
            return Ok(None);
        }
        let stale = stale_labels(&node);
        if !stale.is_empty() {
            let patch = json!({ "metadata": { "uid": node.metadata.uid, "labels": stale } });
            let patch = Action::strategic_patch::<Node>("", &key.name, patch);
            self.executor.execute(&patch).await?;
        }
        Ok(None)
    }

    fn is_conflict(&self, error: &NodeError) -> bool {
        matches!(error, NodeError::Api(error) if error.is_conflict())
    }
}
