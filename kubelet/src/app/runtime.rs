//! The runtime that pods run in, and what it knows of those that run already.

use std::sync::Arc;

use component_base::shutdown::Shutdown;
use cri::from_cri::NodeFacts;
use cri::front::runtime_socket;
use cri::{CriService, ServiceOptions};
use runtime::api::Runtime;
use runtime::linux::{LinuxRuntime, LinuxRuntimeConfig, OpenFiles, Ownership, SHIM_CGROUP};

use super::AppError;
use crate::configuration::KubeletConfiguration;
use crate::off_thread::spawn_blocking;
use crate::options::Options;
use crate::paths::Paths;
use crate::rlimit;
use crate::user_namespaces::{KubeletMappings, UserNamespaceManager};

/// The one that the built-in runtime has.
const CGROUP_DRIVER: &str = "cgroupfs";

/// The ids of pods that run, or ran and were not cleaned up, are theirs still.
pub(super) async fn load_user_namespaces(
    paths: &Paths,
    config: &KubeletConfiguration,
    runtime: &Arc<dyn Runtime>,
) -> Result<UserNamespaceManager, AppError> {
    let (paths, ids_per_pod) = (paths.clone(), config.ids_per_pod());
    let max_pods = u32::try_from(config.max_pods).unwrap_or_default();
    let manager = spawn_blocking(move || {
        let mappings = KubeletMappings::of_this_node(ids_per_pod)?;
        UserNamespaceManager::load(paths, mappings, ids_per_pod, max_pods)
    })
    .await
    .map_err(|error| AppError::Io {
        what: "read the user namespaces' records".to_owned(),
        source: std::io::Error::other(error),
    })??;
    for sandbox in runtime.list_pod_sandboxes().await? {
        if let Some(user) = &sandbox.namespaces.user {
            manager.reserve(&sandbox.metadata.uid, user);
        }
    }
    Ok(manager)
}

pub(super) async fn open_runtime(
    options: &Options,
    config: &KubeletConfiguration,
    open_files: Option<rlimit::Limits>,
) -> Result<LinuxRuntime, AppError> {
    // Whoever asked the CRI's server for something while there was no kubelet made it have the runtime.
    let ownership =
        Ownership::acquire(&options.runtime_root_dir, &options.runtime_state_dir).await?;
    let images = images::ImageStore::open(images::ImageStoreConfig {
        root: options.runtime_root_dir.join("images"),
        registry_config_dir: options.registry_config_dir.clone(),
        ..images::ImageStoreConfig::default()
    })
    .await?;
    let network = network::PodNetwork::open(network::NetworkConfig {
        state_dir: options.runtime_root_dir.join("network"),
        node_name: options.node_name.clone(),
        mode: options.pod_network,
        cluster_cidrs: options.pod_network_cidr.clone(),
        ..network::NetworkConfig::default()
    })
    .await?;
    let config = LinuxRuntimeConfig {
        root_dir: options.runtime_root_dir.clone(),
        state_dir: options.runtime_state_dir.clone(),
        shim_cgroup: Some(shim_cgroup(&config.cgroup_root)),
        handlers: options.runtime_handlers.clone(),
        // Containers have what the kubelet had before it raised its own.
        open_files: open_files.map(|l| OpenFiles {
            soft: l.soft,
            hard: l.hard,
        }),
        ownership: Some(Arc::new(ownership)),
        ..LinuxRuntimeConfig::default()
    };
    Ok(LinuxRuntime::open(config, images, network).await?)
}

/// The runtime's word counts, whatever `cgroupDriver` says, and is what `/configz` shows. Upstream: `getCgroupDriverFromCRI`, v1.37.
pub(super) fn take_cgroup_driver(config: &mut KubeletConfiguration) {
    tracing::info!(
        cgroup_driver = CGROUP_DRIVER,
        configured = config.cgroup_driver,
        "Using cgroup driver setting received from the CRI runtime"
    );
    config.cgroup_driver = CGROUP_DRIVER.to_owned();
}

/// Where shims live: beside the pods, so that a service manager that kills all of the kubelet's own cgroup
/// (`KillMode=control-group`, systemd's default) ends no pod.
fn shim_cgroup(cgroup_root: &str) -> String {
    format!("{}{SHIM_CGROUP}", cgroup_root.trim_end_matches('/'))
}

/// Answers the CRI for as long as the kubelet has the runtime: `gantry-cri` sends its clients here.
///
/// # Errors
/// The socket cannot be made.
pub(super) fn serve_cri(
    options: &Options,
    runtime: &LinuxRuntime,
    shutdown: &Shutdown,
) -> Result<(), AppError> {
    let ending = shutdown.token().clone();
    let service = CriService::new(
        Arc::new(runtime.clone()),
        runtime.images().clone(),
        ServiceOptions {
            node: NodeFacts::detect(),
            state_dir: options.runtime_state_dir.clone(),
            root_dir: options.runtime_root_dir.clone(),
            pod_cidrs_by_cri: false,
        },
        ending.clone(),
    );
    let path = runtime_socket(&options.runtime_state_dir);
    cri::serve_socket(&path, service, ending)?;
    Ok(())
}
