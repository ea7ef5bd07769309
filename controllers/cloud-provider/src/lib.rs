//! What the cloud-controller-manager wants of a cloud, and three clouds: pools of addresses that the nodes announce, a file, and
//! whatever answers over HTTP.
//!
//! Owns the traits and the providers; knows no API server. A cloud is a [`Cloud`] that has some of [`Instances`], [`Zones`],
//! [`LoadBalancer`] and [`Routes`]; `inventory.rs` is one in a file, to begin another from. Upstream: k8s.io/cloud-provider, v0.37.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{LoadBalancerStatus, Node, NodeAddress, Service};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

mod config;
pub mod gantry;
pub mod http;
pub mod inventory;

pub use config::ConfigError;

/// Why a cloud did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloudError {
    /// The instance is not there.
    #[error("instance not found")]
    InstanceNotFound,
    /// The cloud has no such thing.
    #[error("unimplemented")]
    NotImplemented,
    /// Another controller does it; nothing is wrong.
    #[error("implemented by alternate to cloud provider")]
    ImplementedElsewhere,
    /// Come back later, not before.
    #[error("{message}")]
    RetryAfter {
        /// For people.
        message: String,
        /// When to come back.
        after: Duration,
    },
    /// Anything else; a retry may help.
    #[error("{0}")]
    Failed(String),
}

/// What a cloud knows of a Node's instance. Upstream: `InstanceMetadata`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct InstanceMetadata {
    /// `PROVIDER://…`; empty where the Node has its own.
    #[serde(rename = "providerID")]
    pub provider_id: String,
    /// Of the label `node.kubernetes.io/instance-type`; empty for none.
    pub instance_type: String,
    /// All addresses of the instance.
    pub node_addresses: Vec<NodeAddress>,
    /// Of the label `topology.kubernetes.io/zone`; empty for none.
    pub zone: String,
    /// Of the label `topology.kubernetes.io/region`; empty for none.
    pub region: String,
    /// More labels; those of Kubernetes' own domains are left out.
    pub additional_labels: BTreeMap<String, String>,
}

/// Where an instance is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Zone {
    /// Empty for none.
    pub failure_domain: String,
    /// Empty for none.
    pub region: String,
}

/// A route of the cloud's network to a Node's pods.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Route {
    /// The cloud's name of it.
    pub name: String,
    /// The Node's name; empty where the cloud does not know.
    pub target_node: String,
    /// Whether `target_node_addresses` count: a route to other addresses is then made anew.
    pub enable_node_addresses: bool,
    /// Where packets go.
    pub target_node_addresses: Vec<NodeAddress>,
    /// The range of pods.
    #[serde(rename = "destinationCIDR")]
    pub destination_cidr: String,
    /// It leads nowhere, as its instance is gone.
    pub blackhole: bool,
}

/// A cloud. What it lacks is `None`, and the controller for it does not run.
pub trait Cloud: Send + Sync + 'static {
    /// The name, as in `--cloud-provider`.
    fn name(&self) -> &str;
    /// Its instances.
    fn instances(&self) -> Option<&dyn Instances>;
    /// Where its instances are, if [`Instances::metadata`] does not say.
    fn zones(&self) -> Option<&dyn Zones> {
        None
    }
    /// Its load balancers.
    fn load_balancer(&self) -> Option<&dyn LoadBalancer> {
        None
    }
    /// The routes of its network.
    fn routes(&self) -> Option<&dyn Routes> {
        None
    }
    /// Where all Services can be seen, for a cloud that must know the others to serve one. Called once before anything is asked of
    /// [`Cloud::load_balancer`]. Upstream: `InformerUser`.
    fn use_services(&self, _: ServiceLister) {}
}

/// All Services of the cluster, as they are known now.
pub type ServiceLister = Arc<dyn Fn() -> Vec<Arc<Service>> + Send + Sync>;

/// The machines of Nodes. Upstream: `InstancesV2`.
#[async_trait]
pub trait Instances: Send + Sync {
    /// Whether the Node's instance is there. A Node that is not ready and has none is deleted.
    async fn exists(&self, node: &Node) -> Result<bool, CloudError>;
    /// Whether the Node's instance is shut down.
    async fn is_shut_down(&self, node: &Node) -> Result<bool, CloudError>;
    /// What is known of the Node's instance; `None` means that the Node is none of this cloud's business.
    async fn metadata(&self, node: &Node) -> Result<Option<InstanceMetadata>, CloudError>;
}

/// Places.
#[async_trait]
pub trait Zones: Send + Sync {
    /// Where the Node's instance is.
    async fn zone(&self, node: &Node) -> Result<Zone, CloudError>;
}

/// Load balancers for Services. Every call may be repeated.
#[async_trait]
pub trait LoadBalancer: Send + Sync {
    /// The class (`spec.loadBalancerClass`) of Services that are this cloud's, too; those without a class always are.
    fn class(&self) -> Option<&'static str> {
        None
    }
    /// Changes when something became free that a Service may have been refused for; `None` where clouds are only asked again
    /// after a pause.
    fn freed(&self) -> Option<watch::Receiver<u64>> {
        None
    }
    /// The status of a Service's load balancer; `None` when there is none.
    async fn get(
        &self,
        cluster: &str,
        service: &Service,
    ) -> Result<Option<LoadBalancerStatus>, CloudError>;
    /// Makes a Service's load balancer, or changes it to what is wanted.
    async fn ensure(
        &self,
        cluster: &str,
        service: &Service,
        nodes: &[Arc<Node>],
    ) -> Result<LoadBalancerStatus, CloudError>;
    /// Points a Service's load balancer to other Nodes.
    async fn update(
        &self,
        cluster: &str,
        service: &Service,
        nodes: &[Arc<Node>],
    ) -> Result<(), CloudError>;
    /// Sees to it that a Service has no load balancer.
    async fn ensure_deleted(&self, cluster: &str, service: &Service) -> Result<(), CloudError>;
}

/// Routes of the cloud's network.
#[async_trait]
pub trait Routes: Send + Sync {
    /// All routes of the cluster.
    async fn list(&self, cluster: &str) -> Result<Vec<Route>, CloudError>;
    /// Makes a route; `hint` is the Node's uid, for its name.
    async fn create(&self, cluster: &str, hint: &str, route: &Route) -> Result<(), CloudError>;
    /// Deletes a route of [`Routes::list`].
    async fn delete(&self, cluster: &str, route: &Route) -> Result<(), CloudError>;
}

/// The providers of this build.
pub const PROVIDERS: &[&str] = &[gantry::NAME, http::NAME, inventory::NAME];

/// The cloud of a name (`--cloud-provider`) and a configuration file (`--cloud-config`).
///
/// # Errors
/// When nobody knows the name, or the file is not right.
pub async fn open(name: &str, config: &Path) -> Result<Arc<dyn Cloud>, ConfigError> {
    match name {
        inventory::NAME => Ok(Arc::new(inventory::Inventory::open(config)?)),
        gantry::NAME => Ok(Arc::new(gantry::Gantry::open(config)?)),
        http::NAME => Ok(Arc::new(http::HttpCloud::open(config).await?)),
        _ => Err(ConfigError::Unknown {
            name: name.to_owned(),
            known: PROVIDERS,
        }),
    }
}
