//! What kube-proxy serves over HTTP, and the watch on its configuration file.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use component_base::health::Health;
use component_base::informer::Informer;
use component_base::serving::{listen, serve_insecure};
use component_base::shutdown::Shutdown;
use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use k8s_openapi::api::core::v1::Node;

use super::{ServerError, socket_address};
use crate::config::KubeProxyConfiguration;
use crate::healthcheck::ProxyHealth;
use crate::metrics::METRICS;

/// Between two tries to listen, where a failure is not fatal. Upstream: 5 s.
const RETRY_PERIOD: Duration = Duration::from_secs(5);

/// Serves `/healthz` and `/livez` at one address and metrics at the other.
///
/// # Errors
/// An address that cannot be had, if `bindAddressHardFail` is set; otherwise it is tried again.
pub async fn serve(
    config: &KubeProxyConfiguration,
    health: &ProxyHealth,
    nodes: Informer<Node>,
    node_name: &str,
    shutdown: &Shutdown,
) -> Result<(), ServerError> {
    std::sync::LazyLock::force(&METRICS);
    let configz = serde_json::json!({ "kubeproxy.config.k8s.io": config }).to_string();
    let json = [(axum::http::header::CONTENT_TYPE, "application/json")];
    let metrics = component_base::metrics::router()
        .merge(Health::new().router())
        .route("/proxyMode", get(|| async { "nftables" }))
        .route("/configz", get(move || async move { (json, configz) }));
    let health = health.router(nodes, node_name.to_owned());
    for (address, router) in [
        (&config.healthz_bind_address, health),
        (&config.metrics_bind_address, metrics),
    ] {
        if !address.is_empty() {
            serve_at(address, router, config.bind_address_hard_fail, shutdown).await?;
        }
    }
    Ok(())
}

async fn serve_at(
    address: &str,
    router: Router,
    hard_fail: bool,
    shutdown: &Shutdown,
) -> Result<(), ServerError> {
    // Validated before.
    let Some(address) = socket_address(address) else {
        return Ok(());
    };
    match listen(address).await {
        Ok(listener) => {
            shutdown.spawn_guarded(
                "server of pages",
                serve_insecure(listener, router, shutdown.clone()),
            );
        }
        Err(error) if hard_fail => return Err(error.into()),
        Err(error) => {
            tracing::error!(%error, "Serving failed, will retry");
            let shutdown = shutdown.clone();
            let owner = shutdown.clone();
            owner.spawn_guarded("server of pages", async move {
                while shutdown
                    .run_until(tokio::time::sleep(RETRY_PERIOD))
                    .await
                    .is_some()
                {
                    match listen(address).await {
                        Ok(listener) => return serve_insecure(listener, router, shutdown).await,
                        Err(error) => tracing::error!(%error, "Serving failed, will retry"),
                    }
                }
            });
        }
    }
    Ok(())
}

/// Resolves when the file was written to or moved. Never, where there is no file.
///
/// Upstream ends the process then, for its supervisor to start it with the new content.
pub fn watch_config(file: Option<&Path>) -> Result<impl Future<Output = ()> + use<>, ServerError> {
    let stream = match file {
        None => None,
        Some(file) => {
            let watch = || {
                let inotify = Inotify::init()?;
                inotify
                    .watches()
                    .add(file, WatchMask::MODIFY | WatchMask::MOVE_SELF)?;
                inotify.into_event_stream([0; 4096])
            };
            Some(watch().map_err(ServerError::io(format!("watch {}", file.display())))?)
        }
    };
    Ok(async move {
        match stream {
            Some(mut stream) => {
                stream.next().await;
            }
            None => futures::future::pending().await,
        }
    })
}
