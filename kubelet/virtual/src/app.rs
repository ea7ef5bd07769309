//! Puts a virtual kubelet together and runs it.
//!
//! Owns: the order of the start, who asks the API server by which client, and who gets what.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use component_base::client::ClientConfig;
use component_base::clock::Clock;
use component_base::events::Recorder;
use component_base::flags::Flags;
use component_base::health::{Health, Kind};
use component_base::informer::{Informer, InformerOptions};
use component_base::process;
use component_base::serving::{
    AccessControl, Authorization, DelegatedAuthentication, DelegatedAuthorization, SecureServer,
    listen, serve_insecure,
};
use component_base::shutdown::Shutdown;
use component_base::tls::{ServerTls, TlsOptions};
use controller_runtime::Queues;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::runtime::{WatchStreamExt as _, watcher};
use kubelet_provider::{PodEvents, Provider};

use crate::configuration::{self, VirtualKubeletConfiguration};
use crate::metrics;
use crate::nodes::object::Process;
use crate::nodes::{Heartbeat, Nodes};
use crate::options::{COMPONENT, Options, flag_set};
use crate::pods::{self, Pods};
use crate::providers::{self, Needs};
use crate::server::{self, Serving};

/// Events a second, for all nodes together; upstream's kubelet has 50 and 100 for one.
const EVENTS: (f32, u32) = (50.0, 100);

/// Runs the process; returns its exit code.
pub fn main() -> i32 {
    process::run(&flag_set(), run)
}

/// Each has connections and a rate limit of its own.
struct Clients {
    /// Pods, registration.
    main: kube::Client,
    /// Leases and node statuses: no limit, and no longer wait than the next beat.
    heartbeat: kube::Client,
    events: kube::Client,
    /// Reviews of tokens and accesses, which strangers cause.
    reviews: kube::Client,
}

impl Clients {
    async fn build(
        base: &ClientConfig,
        lease_seconds: i32,
    ) -> anyhow::Result<(Self, kube::Config)> {
        let credentials = base.load().await?;
        let client = |config: ClientConfig| config.build_from(credentials.clone());
        let lease = Duration::from_secs(u64::try_from(lease_seconds).unwrap_or(40));
        let clients = Self {
            main: client(base.clone())?,
            heartbeat: client(ClientConfig {
                qps: 0.0,
                timeout: Some(lease.min(Duration::from_secs(10))),
                ..base.clone()
            })?,
            events: client(ClientConfig {
                qps: EVENTS.0,
                burst: EVENTS.1,
                ..base.clone()
            })?,
            reviews: client(base.clone())?,
        };
        Ok((clients, credentials))
    }
}

async fn run(flags: Flags, shutdown: Shutdown) -> anyhow::Result<()> {
    let options = Options::from_flags(&flags)?;
    let file = options.provider_config.clone();
    let loaded = tokio::task::spawn_blocking(move || configuration::load(file.as_deref())).await?;
    let config = loaded?;
    metrics::init();
    tracing::info!(
        version = component_base::version::GIT_VERSION,
        provider = options.provider,
        nodes = options.node_names.len(),
        "Starting virtual kubelet"
    );
    let (clients, credentials) =
        Clients::build(&options.client, config.node_lease_duration_seconds).await?;
    let node_ip = options
        .node_ip
        .or_else(|| own_address(&credentials.cluster_url));
    let clock = Clock::real();
    let queues = Queues::register(prometheus::default_registry(), clock.clone())?;
    let port = options
        .address
        .map_or(0, |address| i32::from(address.port()));
    let directory = options.provider_config.as_deref().and_then(Path::parent);
    let provider = providers::build(Needs {
        name: &options.provider,
        config: &config,
        directory: directory.unwrap_or(Path::new(".")),
        client: clients.main.clone(),
        node_ip,
        port,
        clock: clock.clone(),
        queues: queues.clone(),
        shutdown: shutdown.clone(),
    })
    .await?;
    let (sender, events) = PodEvents::channel();
    provider
        .start(sender)
        .await
        .context("starting the provider")?;
    let nodes = nodes(
        &options,
        &config,
        provider.as_ref(),
        &clients,
        node_ip,
        port,
        &clock,
    )
    .await?;
    let recorder = Recorder::core_v1(clients.events.clone(), COMPONENT, "", &shutdown);
    let pods = Pods::new(pods::Parts {
        provider: provider.clone(),
        client: clients.main.clone(),
        recorder,
        host_ip: node_ip,
        nodes: nodes.clone(),
        clock,
        queues,
    });
    serve(
        &options, &clients, node_ip, &pods, &nodes, &provider, &shutdown,
    )
    .await?;
    nodes.start(&shutdown);
    // One watch for all nodes: whatever has a node, of which ours are chosen here. A selector can name one node alone.
    let selection = match nodes.only() {
        Some(name) => format!("spec.nodeName={name}"),
        None => "spec.nodeName!=".to_owned(),
    };
    let api: kube::Api<Pod> = kube::Api::all(clients.main.clone());
    let watch = watcher(api, watcher::Config::default().fields(&selection)).default_backoff();
    pods.run(watch, events, shutdown).await;
    tracing::info!("virtual kubelet ends; its pods stay as they are");
    Ok(())
}

async fn nodes(
    options: &Options,
    config: &VirtualKubeletConfiguration,
    provider: &dyn Provider,
    clients: &Clients,
    node_ip: Option<IpAddr>,
    port: i32,
    clock: &Clock,
) -> anyhow::Result<Arc<Nodes>> {
    let mut descriptions = Vec::with_capacity(options.node_names.len());
    for name in &options.node_names {
        let address = node_ip.filter(|_| port > 0);
        let mut description = config.node.describe(name, provider.name(), address);
        let configured = provider.configure_node(&mut description).await;
        configured.with_context(|| format!("configuring node {name}"))?;
        description.name.clone_from(name);
        descriptions.push(description);
    }
    let process = Process {
        provider: provider.name().to_owned(),
        version: provider.version(),
        port,
    };
    let times = Heartbeat {
        lease_seconds: config.node_lease_duration_seconds,
        status_period: config.node_status_report_frequency.0,
    };
    Ok(Arc::new(Nodes::new(
        descriptions,
        process,
        times,
        clients.main.clone(),
        clients.heartbeat.clone(),
        clock.clone(),
    )))
}

/// The address that this machine reaches the API server from.
fn own_address(server: &http::Uri) -> Option<IpAddr> {
    use std::net::ToSocketAddrs as _;
    let host = server.host()?.trim_matches(['[', ']']);
    let to = (host, server.port_u16().unwrap_or(443))
        .to_socket_addrs()
        .ok()?
        .next()?;
    let any: SocketAddr = match to.is_ipv4() {
        true => ([0, 0, 0, 0], 0).into(),
        false => ([0_u16; 8], 0).into(),
    };
    // Connecting a datagram socket asks for the route and sends nothing.
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(to).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Takes the CA of clients from the cluster, now and whenever it changes: the API server shows a certificate of it. Upstream's other
/// components do so (`--authentication-skip-lookup`), its kubelet wants the file.
fn follow_client_ca(client: kube::Client, tls: ServerTls, shutdown: &Shutdown) {
    let api: kube::Api<ConfigMap> = kube::Api::namespaced(client, "kube-system");
    let name = "metadata.name=extension-apiserver-authentication";
    let informer = Informer::start(api, &InformerOptions::default().fields(name), shutdown);
    let ends = shutdown.clone();
    shutdown.spawn_guarded("client CA of the cluster", async move {
        let mut events = informer.subscribe();
        while let Some(Some(event)) = ends.run_until(events.recv()).await {
            let data = event.object().data.as_ref();
            let Some(pem) = data.and_then(|d| d.get("client-ca-file")) else {
                continue;
            };
            if let Err(error) = tls.set_client_ca(Some(pem.clone().into_bytes())) {
                tracing::warn!(%error, "The cluster's client CA cannot be used, the old one stays");
            }
        }
    });
}

async fn serve(
    options: &Options,
    clients: &Clients,
    node_ip: Option<IpAddr>,
    pods: &Pods,
    nodes: &Arc<Nodes>,
    provider: &Arc<dyn Provider>,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let health = Health::new();
    let (synced, registered) = (pods.clone(), nodes.clone());
    health.add("pods-synced", Kind::Ready, move || {
        match synced.has_synced() {
            true => Ok(()),
            false => Err("the pods were not listed yet".into()),
        }
    });
    health.add("nodes-registered", Kind::Ready, move || {
        match registered.count() {
            (all, there) if all == there => Ok(()),
            (all, there) => Err(format!("{there} of {all} nodes are registered")),
        }
    });
    if let Some(address) = options.healthz {
        let serving = serve_insecure(listen(address).await?, health.router(), shutdown.clone());
        shutdown.spawn_essential("health server", serving);
    }
    let Some(address) = options.address else {
        return Ok(());
    };
    let client_ca = match &options.client_ca_file {
        Some(path) => {
            let read = tokio::fs::read(path).await;
            let what = || format!("unable to load client CA file {}", path.display());
            Some(read.with_context(what)?)
        }
        None => None,
    };
    let tls = ServerTls::new(
        TlsOptions {
            cert_file: options.tls_cert_file.clone(),
            key_file: options.tls_private_key_file.clone(),
            cert_dir: Some(options.cert_dir.clone()),
            pair_name: COMPONENT.to_owned(),
            names: node_ip.iter().map(ToString::to_string).collect(),
            ..TlsOptions::default()
        },
        client_ca,
    )?;
    tls.watch_files(options.client_ca_file.clone(), shutdown)?;
    if options.client_ca_file.is_none() {
        follow_client_ca(clients.main.clone(), tls.clone(), shutdown);
    }
    let tokens = options
        .token_webhook
        .then(|| DelegatedAuthentication::new(clients.reviews.clone(), options.token_ttl));
    let authorization = match options.always_allow {
        true => Authorization::AlwaysAllow,
        false => Authorization::Delegated(DelegatedAuthorization::new(
            clients.reviews.clone(),
            options.allow_ttl,
            options.deny_ttl,
        )),
    };
    let asked = pods.clone();
    let only = nodes.only();
    let access = AccessControl::new(tokens, options.anonymous, authorization)
        // As upstream's kubelet: the API server is asked about everybody.
        .always_allow_groups([""; 0])
        .attributes(move |request| server::attributes(&asked, only.as_deref(), request));
    let router = server::router(Serving {
        pods: pods.clone(),
        nodes: nodes.clone(),
        provider: provider.clone(),
        health,
        streaming_idle_timeout: options.streaming_idle_timeout,
        shutdown: shutdown.token().clone(),
    });
    let server = SecureServer {
        listener: listen(address).await?,
        tls,
        access,
    };
    shutdown.spawn_essential("server", server.serve(router, shutdown.clone()));
    Ok(())
}
