//! The ports: 10250 with delegated access, 10255 where asked for, 10248 for health.
//!
//! Owns: certificates and access of the secure port. Upstream: `pkg/kubelet/server/auth.go`, `cmd/kubelet/app/auth.go`, v1.36.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use component_base::health::{Health, Kind};
use component_base::serving::{
    AccessControl, Authorization, DelegatedAuthentication, DelegatedAuthorization, SecureServer,
    listen, serve_insecure,
};
use component_base::tls::{ServerTls, TlsOptions};

use super::assemble::Parts;
use super::{AppError, io};
use crate::certificate::{FileStore, Request};
use crate::server::{self, ServerContext, ServerOptions};
use crate::{pod_resources, pods_api};

/// Pause between two tries to get a serving certificate.
const SERVING_RETRY: Duration = Duration::from_secs(10);

pub(super) async fn start(parts: &Parts) -> Result<(), AppError> {
    let config = &parts.config;
    let context: Arc<dyn ServerContext> = parts.kubelet.clone();
    if config.healthz_port > 0 {
        let address = socket(&config.healthz_bind_address, config.healthz_port);
        let listener = listen(address).await?;
        let health = Health::new();
        let checked = context.clone();
        health.add("syncloop", Kind::Live, move || checked.sync_loop_health());
        let serving = serve_insecure(listener, health.router(), parts.shutdown.clone());
        parts.essential("health server", serving);
    }
    serve_pods(parts)?;
    serve_pod_resources(parts)?;
    if !config.enable_server {
        return Ok(());
    }
    let token = parts.shutdown.token().clone();
    if config.read_only_port > 0 {
        let listener = listen(socket(&config.address, config.read_only_port)).await?;
        let router = server::read_only_router(context.clone(), token.clone());
        let serving = serve_insecure(listener, router, parts.shutdown.clone());
        parts.essential("read-only server", serving);
    }
    let tls = server_tls(parts)?;
    let options = ServerOptions {
        enable_debugging_handlers: config.enable_debugging_handlers,
        enable_system_log_handler: config.enable_system_log_handler,
        streaming_idle_timeout: config.streaming_connection_idle_timeout.0,
    };
    let server = SecureServer {
        listener: listen(socket(&config.address, config.port)).await?,
        tls,
        access: access(parts),
    };
    let router = server::router(context, options, token);
    parts.essential("server", server.serve(router, parts.shutdown.clone()));
    Ok(())
}

/// The node's pods for its agents, on a socket for root alone.
fn serve_pods(parts: &Parts) -> Result<(), AppError> {
    if !parts.pods_api {
        return Ok(());
    }
    let path = parts.kubelet.paths.pods_api();
    let listener = cri::listen(&path).map_err(io(format!("listen on {}", path.display())))?;
    let source = Arc::new(pods_api::Source(parts.kubelet.clone()));
    let changes = parts.kubelet.status.watchers().clone();
    let ending = parts.shutdown.token().clone().cancelled_owned();
    parts.essential("pods API", async move {
        if let Err(error) = ::pods_api::serve(listener, source, changes, ending).await {
            tracing::error!(%error, "Failed to serve the pods API");
        }
    });
    Ok(())
}

fn socket(address: &str, port: i32) -> SocketAddr {
    // Both were validated with the configuration.
    let ip: IpAddr = address.parse().unwrap_or(IpAddr::from([0, 0, 0, 0]));
    SocketAddr::new(ip, u16::try_from(port).unwrap_or(0))
}

fn access(parts: &Parts) -> AccessControl {
    let config = &parts.config;
    let reviews = parts.clients.as_ref().map(|c| &c.reviews);
    let tokens = reviews
        .filter(|_| config.authentication.webhook.enabled)
        .map(|c| {
            DelegatedAuthentication::new(c.clone(), config.authentication.webhook.cache_ttl.0)
        });
    let webhook = &config.authorization.webhook;
    let authorization = match (reviews, config.authorization.mode.as_str()) {
        (_, "AlwaysAllow") => Authorization::AlwaysAllow,
        (Some(client), _) => Authorization::Delegated(DelegatedAuthorization::new(
            client.clone(),
            webhook.cache_authorized_ttl.0,
            webhook.cache_unauthorized_ttl.0,
        )),
        // Nobody could be asked.
        (None, _) => Authorization::AllowNone,
    };
    let node = parts.options.node_name.clone();
    AccessControl::new(
        tokens,
        config.authentication.anonymous.enabled,
        authorization,
    )
    // Upstream's kubelet asks the API server about everybody.
    .always_allow_groups([""; 0])
    .attributes(move |request| server::attributes(&node, &request.method, request.uri.path()))
}

fn optional(path: &str) -> Option<PathBuf> {
    (!path.is_empty()).then(|| PathBuf::from(path))
}

fn server_tls(parts: &Parts) -> Result<ServerTls, AppError> {
    let config = &parts.config;
    let ca_file = optional(&config.authentication.x509.client_ca_file);
    let client_ca = match &ca_file {
        Some(path) => Some(std::fs::read(path).map_err(io(format!(
            "unable to load client CA file {}",
            path.display()
        )))?),
        None => None,
    };
    let mut names = vec![parts.options.node_name.clone()];
    names.extend(parts.addresses.iter().map(ToString::to_string));
    let bootstrap = config.server_tls_bootstrap && parts.client.is_some();
    let options = TlsOptions {
        cert_file: optional(&config.tls_cert_file),
        key_file: optional(&config.tls_private_key_file),
        cert_dir: (!bootstrap).then(|| parts.options.cert_dir.clone()),
        pair_name: "kubelet".to_owned(),
        names,
        min_version: config.tls_min_version.clone(),
        cipher_suites: config.tls_cipher_suites.clone(),
    };
    let tls = ServerTls::new(options, client_ca)?;
    tls.watch_files(ca_file, &parts.shutdown)?;
    if bootstrap {
        let rotating = rotate_serving(parts_for_rotation(parts), tls.clone());
        parts.essential("serving certificate", rotating);
    }
    Ok(tls)
}

/// Which devices the pods have, on a socket for root alone.
fn serve_pod_resources(parts: &Parts) -> Result<(), AppError> {
    let path = parts.kubelet.paths.pod_resources();
    let listener = cri::listen(&path).map_err(io(format!("listen on {}", path.display())))?;
    let list = Arc::new(pod_resources::Source(parts.kubelet.clone()));
    let manager = parts.kubelet.devices.clone();
    let ending = parts.shutdown.token().clone().cancelled_owned();
    parts.essential("PodResources API", async move {
        let serving = devices::pod_resources::serve_pod_resources(listener, manager, list, ending);
        if let Err(error) = serving.await {
            tracing::error!(%error, "Failed to serve the podresources API");
        }
    });
    Ok(())
}

struct Rotation {
    client: kube::Client,
    store: FileStore,
    node_name: String,
    hostname: String,
    addresses: Vec<IpAddr>,
    shutdown: component_base::shutdown::Shutdown,
}

fn parts_for_rotation(parts: &Parts) -> Option<Rotation> {
    Some(Rotation {
        client: parts.client.clone()?,
        store: FileStore::server(&parts.options.cert_dir),
        node_name: parts.options.node_name.clone(),
        hostname: parts
            .options
            .hostname_override
            .clone()
            .unwrap_or_else(|| parts.options.node_name.clone()),
        addresses: parts.addresses.clone(),
        shutdown: parts.shutdown.clone(),
    })
}

/// Asks for a serving certificate and renews it in time. Until the first is there, a self-signed one serves.
async fn rotate_serving(rotation: Option<Rotation>, tls: ServerTls) {
    let Some(r) = rotation else { return };
    let apply = |pem: Vec<u8>| {
        if let Err(error) = tls.set_certificate(pem.clone(), pem) {
            tracing::error!(%error, "the serving certificate cannot be used");
        }
    };
    loop {
        let now = jiff::Timestamp::now();
        let wait = match r.store.current() {
            Ok((pem, validity)) if validity.is_valid(now) => {
                apply(pem);
                let deadline = validity.rotation_deadline(rand::random());
                u64::try_from(deadline - now.as_second()).unwrap_or(0)
            }
            _ => 0,
        };
        if r.shutdown
            .run_until(tokio::time::sleep(Duration::from_secs(wait)))
            .await
            .is_none()
        {
            return;
        }
        let request = Request::serving(&r.node_name, &r.hostname, &r.addresses);
        let Some(obtained) = r.shutdown.run_until(request.obtain(&r.client)).await else {
            return;
        };
        let kept = match obtained {
            Ok(pem) => r.store.update(&pem).map(|path| log_kept(&path)),
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            crate::metrics::SERVER_RENEW_ERRORS.inc();
            tracing::error!(%error, "cannot get a serving certificate, will retry");
            if r.shutdown
                .run_until(tokio::time::sleep(SERVING_RETRY))
                .await
                .is_none()
            {
                return;
            }
        }
    }
}

fn log_kept(path: &Path) {
    tracing::info!(path = %path.display(), "rotated serving certificate");
}
