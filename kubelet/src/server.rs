//! The kubelet's HTTP server: pods, logs, exec, attach, port-forward, stats, metrics, health, configuration.
//!
//! Owns: the routes of ports 10250 and 10255 and what they answer. Never changes a pod; all it knows it asks the
//! [`ServerContext`]. Upstream: `pkg/kubelet/server`, v1.36.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use runtime::api::Runtime;

use crate::cm::container_manager::ContainerManager;
use crate::paths::Paths;

/// What the server knows of its kubelet.
pub trait ServerContext: Send + Sync + 'static {
    fn node_name(&self) -> &str;

    fn runtime(&self) -> &Arc<dyn Runtime>;

    /// Every pod this kubelet runs, static pods instead of their mirrors, each with its newest status.
    fn pods(&self) -> Vec<Arc<Pod>>;

    /// The pod of this name, the static pod instead of its mirror, with its newest status.
    fn pod_by_name(&self, namespace: &str, name: &str) -> Option<Arc<Pod>>;

    /// `Err` says why the sync loop is not well, e.g. how long it has not turned.
    fn sync_loop_health(&self) -> Result<(), String>;

    /// The configuration in effect, as `KubeletConfiguration` JSON.
    fn configz(&self) -> serde_json::Value;

    fn paths(&self) -> &Paths;

    fn container_manager(&self) -> &ContainerManager;

    /// What `/logs/` shows. Upstream: `/var/log`.
    fn system_log_directory(&self) -> &Path {
        Path::new("/var/log")
    }
}

/// Which routes are served, and their bounds.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// `enableDebuggingHandlers`: exec, attach, port-forward, logs, run, configz.
    pub enable_debugging_handlers: bool,
    /// `enableSystemLogHandler`: `/logs/`.
    pub enable_system_log_handler: bool,
    /// `streamingConnectionIdleTimeout`.
    pub streaming_idle_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            enable_debugging_handlers: true,
            enable_system_log_handler: true,
            streaming_idle_timeout: Duration::from_secs(4 * 3600),
        }
    }
}
