//! The kubelet's HTTP server: pods, logs, exec, attach, port-forward, stats, metrics, health, configuration.
//!
//! Owns: the routes of ports 10250 and 10255 and what they answer. Never changes a pod; all it knows it asks the
//! [`ServerContext`]. Upstream: `pkg/kubelet/server`, v1.36.

mod attributes;
mod container;
mod container_logs;
mod error;
mod health;
mod metrics;
mod pods;
mod stats;
mod streams;
mod system_logs;

#[cfg(any(test, fuzzing))]
pub(crate) use container_logs::fuzz::container_log as fuzz_container_logs;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use runtime::api::Runtime;
use tokio_util::sync::CancellationToken;

use crate::cm::container_manager::ContainerManager;
use crate::paths::Paths;

pub use attributes::attributes;
use error::ApiError;

/// By UID and name; see [`ServerContext::driver_usages`].
pub type DriverUsages = HashMap<(String, String), Option<volumes::VolumeUsage>>;

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

    /// Where a pod's volume lies that is a claim, once it is set up. `None`: it is none, or is not.
    fn claim_directory(&self, pod_uid: &str, volume: &str) -> Option<PathBuf>;

    /// What drivers say that their volumes hold, by pod and volume; `None`: the driver does not say.
    fn driver_usages(&self) -> BoxFuture<'_, DriverUsages>;

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

/// What every handler gets.
#[derive(Clone)]
struct Server {
    context: Arc<dyn ServerContext>,
    options: ServerOptions,
    stats: Arc<stats::Stats>,
    /// What clients of exec, attach and port-forward sent and nobody has read.
    stream_memory: Arc<streaming::Pool>,
    shutdown: CancellationToken,
}

/// The routes of the secure port. Put [`attributes`] before them; `shutdown` ends open streams.
pub fn router(
    context: Arc<dyn ServerContext>,
    options: ServerOptions,
    shutdown: CancellationToken,
) -> Router {
    let server = Server {
        stats: Arc::new(stats::Stats::new(context.clone())),
        context,
        options: options.clone(),
        stream_memory: Arc::default(),
        shutdown,
    };
    let mut router = open_routes();
    if options.enable_debugging_handlers {
        router = router.merge(debugging_routes());
        router = if options.enable_system_log_handler {
            router
                .route("/logs", get(system_logs::root))
                .route("/logs/", get(system_logs::root))
                .route("/logs/{*path}", get(system_logs::path))
        } else {
            disabled(
                router,
                &["/logs", "/logs/", "/logs/{*path}"],
                "logs endpoint is disabled.",
            )
        };
        // Go's profiler and its log flags have no counterpart in this program.
        let profiling = ["/debug/pprof", "/debug/pprof/{*path}"];
        router = disabled(router, &profiling, "profiling endpoint is disabled.");
        router = disabled(router, &["/debug/flags/v"], "flags endpoint is disabled.");
    } else {
        let paths = [
            "/run/{*path}",
            "/exec/{*path}",
            "/attach/{*path}",
            "/portForward/{*path}",
            "/containerLogs/{*path}",
            "/runningpods",
            "/runningpods/",
            "/debug/pprof/{*path}",
            "/logs",
            "/logs/",
            "/logs/{*path}",
        ];
        router = disabled(router, &paths, "Debug endpoints are disabled.");
    }
    counted(router, "readwrite").with_state(server)
}

/// The routes of the read-only port, 10255.
pub fn read_only_router(context: Arc<dyn ServerContext>, shutdown: CancellationToken) -> Router {
    counted(open_routes(), "readonly").with_state(Server {
        stats: Arc::new(stats::Stats::new(context.clone())),
        context,
        options: ServerOptions::default(),
        stream_memory: Arc::default(),
        shutdown,
    })
}

fn counted(router: Router<Server>, server_type: &'static str) -> Router<Server> {
    router.layer(axum::middleware::from_fn(move |request, next| {
        metrics::count(server_type, request, next)
    }))
}

fn open_routes() -> Router<Server> {
    Router::new()
        .route("/healthz", get(health::all))
        .route("/healthz/", get(health::all))
        .route("/healthz/{check}", get(health::one))
        .route("/pods", get(pods::pods))
        .route("/pods/", get(pods::pods))
        .route("/stats/summary", get(stats::summary))
        .route("/metrics", get(metrics::process))
        .route("/metrics/cadvisor", get(metrics::cadvisor))
        .route("/metrics/resource", get(metrics::resource))
        .route("/metrics/probes", get(metrics::probes))
}

fn debugging_routes() -> Router<Server> {
    let exec = get(streams::exec).post(streams::exec);
    let attach = get(streams::attach).post(streams::attach);
    let port_forward = get(streams::port_forward).post(streams::port_forward);
    Router::new()
        .route("/run/{namespace}/{pod}/{container}", post(streams::run))
        .route(
            "/run/{namespace}/{pod}/{uid}/{container}",
            post(streams::run),
        )
        .route("/exec/{namespace}/{pod}/{container}", exec.clone())
        .route("/exec/{namespace}/{pod}/{uid}/{container}", exec)
        .route("/attach/{namespace}/{pod}/{container}", attach.clone())
        .route("/attach/{namespace}/{pod}/{uid}/{container}", attach)
        .route("/portForward/{namespace}/{pod}", port_forward.clone())
        .route("/portForward/{namespace}/{pod}/{uid}", port_forward)
        .route(
            "/containerLogs/{namespace}/{pod}/{container}",
            get(container_logs::container_logs),
        )
        .route("/configz", get(health::configz))
        .route("/runningpods", get(pods::running_pods))
        .route("/runningpods/", get(pods::running_pods))
        .route(
            "/checkpoint/{namespace}/{pod}/{container}",
            post(streams::checkpoint),
        )
}

fn disabled(mut router: Router<Server>, paths: &[&str], text: &'static str) -> Router<Server> {
    for path in paths {
        let refuse = move || async move { ApiError::method_not_allowed(text) };
        router = router.route(path, axum::routing::any(refuse));
    }
    router
}

#[cfg(test)]
mod tests;
