//! The providers that are built in, by name.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use component_base::clock::Clock;
use component_base::shutdown::Shutdown;
use controller_runtime::Queues;
use kubelet_provider::{Provider, ProviderError};

use crate::configuration::VirtualKubeletConfiguration;
use crate::process::Processes;
use crate::remote::{Endpoint, EndpointError, Remote};
use crate::simulated::scripted::Scripted;
use crate::simulated::stage::{StageError, load};
use crate::simulated::staged::{self, Staged};

/// Names for `--provider`.
pub const NAMES: &[&str] = &["simulated", "process", "remote"];

/// Why there is no provider.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("invalid argument {0:?} for \"--provider\" flag: there are {names}", names = NAMES.join(", "))]
    Unknown(String),
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error("remote.endpoint: {0}")]
    Endpoint(#[from] EndpointError),
    #[error("remote.endpoint: {0}: {1}")]
    Info(String, #[source] ProviderError),
}

/// What a provider of ours may need.
pub struct Needs<'a> {
    pub name: &'a str,
    pub config: &'a VirtualKubeletConfiguration,
    /// What relative paths in the configuration are relative to.
    pub directory: &'a Path,
    pub client: kube::Client,
    pub node_ip: Option<IpAddr>,
    pub port: i32,
    pub clock: Clock,
    pub queues: Queues,
    pub shutdown: Shutdown,
}

/// The provider of this name.
///
/// # Errors
/// There is none, or its configuration cannot be used.
pub async fn build(needs: Needs<'_>) -> Result<Arc<dyn Provider>, BuildError> {
    let simulated = &needs.config.simulated;
    match needs.name {
        "simulated" if simulated.stages.is_empty() => Ok(Arc::new(Scripted::new(
            simulated.clone(),
            needs.clock,
            needs.shutdown,
        ))),
        "simulated" => {
            let mut stages = Vec::new();
            for file in &simulated.stages {
                stages.extend(load(&needs.directory.join(file))?);
            }
            Ok(Arc::new(Staged::new(staged::Parts {
                stages,
                client: needs.client,
                pod_cidr: simulated.pod_cidr,
                node_ip: needs.node_ip,
                port: needs.port,
                clock: needs.clock,
                queues: needs.queues,
                shutdown: needs.shutdown,
            })))
        }
        "remote" => {
            let endpoint = Endpoint::parse(&needs.config.remote.endpoint)?;
            let connected = Remote::connect(endpoint, needs.shutdown).await;
            let text = || needs.config.remote.endpoint.clone();
            Ok(Arc::new(
                connected.map_err(|e| BuildError::Info(text(), e))?,
            ))
        }
        "process" => Ok(Arc::new(Processes::new(
            needs.config.process.root.clone(),
            needs.node_ip,
            needs.shutdown,
        ))),
        other => Err(BuildError::Unknown(other.to_owned())),
    }
}
