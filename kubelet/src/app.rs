//! Puts a kubelet together and runs it.
//!
//! Owns: the order of the start, and who gets what. Upstream: `cmd/kubelet/app/server.go`, v1.36.

mod clients;
mod drivers;
mod features;
mod images;
mod machine;
mod runtime;
mod servers;

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ::runtime::api::Runtime;
use ::runtime::linux::LinuxRuntime;
use arc_swap::ArcSwap;
use component_base::events::Recorder;
use component_base::features::FeatureGates;
use component_base::informer::{Factory, InformerOptions};
use component_base::shutdown::Shutdown;
use k8s_openapi::api::core::v1::{NodeStatus, Pod, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::storage::v1::CSIDriver;
use tokio::sync::{Notify, mpsc};
use volumes::{CsiHost, VolumeManager};

use self::clients::{ApiClients, api_clients};
use self::features::{
    CLUSTER_TRUST_BUNDLE_PROJECTION, CRASH_LOOP_BACK_OFF_MAX, MEMORY_QOS, POD_CERTIFICATE_REQUEST,
    PODS_API, REDUCE_CRASH_LOOP_BACK_OFF, feature_gates,
};
use self::images::{credential_providers, pull_manager};
use self::machine::{check_machine, node_addresses, protect_from_oom};
use self::runtime::{load_user_namespaces, open_runtime, serve_cri, take_cgroup_driver};
use crate::backoff::Backoff;
use crate::cm::cgroup::{CgroupError, CgroupManager};
use crate::cm::machine::{MachineInfo, fs_stats};
use crate::cm::{ContainerManager, allocatable, kernel_tunables};
use crate::config::http::UrlSource;
use crate::config::{Source, apiserver, file};
use crate::configuration::KubeletConfiguration;
use crate::configuration::load::{LoadError, load};
use crate::csi_node::Exhausted;
use crate::events::{KubeletRecorder, Type, reason};
use crate::image_gc::{ImageGcManager, ImageGcPolicy};
use crate::image_manager::ImageManager;
use crate::image_manager::credentials::Keyring;
use crate::kubelet::Kubelet;
use crate::kuberuntime::gc::GcPolicy;
use crate::kuberuntime::{Dependencies, RuntimeManager};
use crate::node::NodeState;
use crate::node_status::register::Registration;
use crate::node_status::{lease, report};
use crate::object_cache::{FromApi, ObjectCache, Strategy};
use crate::options::{Options, OptionsError, flag_set};
use crate::paths::Paths;
use crate::pending::Pending;
use crate::pod_certificate::PodCertificateManager;
use crate::pod_manager::PodManager;
use crate::pod_workers::PodWorkers;
use crate::prober::ProbeManager;
use crate::resize::AllocationManager;
use crate::security_context::NodeSecurity;
use crate::status::manager::StatusManager;
use crate::sync_loop::{CONFIG_QUEUE, Channels, SyncLoop};
use crate::{
    certificate, container_log, eviction, metrics, node_network, pleg, pod_certificate, rlimit,
    runtime_class,
};

/// Why the kubelet does not run.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    Flags(#[from] component_base::flags::FlagError),
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error(transparent)]
    Configuration(#[from] LoadError),
    #[error(transparent)]
    Features(#[from] component_base::features::FeatureError),
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Client(#[from] component_base::client::ClientError),
    #[error(
        "failed to run Kubelet: running with swap on is not supported, please disable swap or set --fail-swap-on flag to false"
    )]
    SwapOn,
    #[error(
        "failed to run Kubelet: kubelet is configured to not run on a host using cgroup v1. cgroup v1 support is \
         unsupported and will be removed in a future release; set failCgroupV1: false to run anyway"
    )]
    CgroupV1,
    #[error("failed to run Kubelet: failed to start ContainerManager: {0}")]
    KernelTunables(#[from] crate::cm::kernel_tunables::TunablesError),
    #[error("failed to run Kubelet: {0}")]
    Cgroup(#[from] CgroupError),
    #[error("failed to run Kubelet: image store: {0}")]
    Images(#[from] ::images::ImageStoreError),
    #[error("failed to run Kubelet: pod network: {0}")]
    Network(#[from] network::NetworkError),
    #[error("failed to run Kubelet: container runtime: {0}")]
    Runtime(#[from] ::runtime::api::RuntimeError),
    #[error("failed to run Kubelet: serve the CRI: {0}")]
    Cri(#[from] cri::ServeError),
    #[error("failed to run Kubelet: create user namespace manager: {0}")]
    UserNamespaces(#[from] crate::user_namespaces::UserNamespaceError),
    #[error(transparent)]
    Tls(#[from] component_base::tls::TlsError),
    #[error(transparent)]
    Serving(#[from] component_base::serving::ServingError),
    #[error("failed to run Kubelet: failed to register CRI auth plugins: {0}")]
    CredentialProviders(#[from] crate::image_manager::credential_provider::ProvidersError),
    #[error("failed to run Kubelet: {0}")]
    UrlSource(#[from] crate::config::http::UrlSourceError),
    #[error("image pull records: {0}")]
    PullRecords(#[from] crate::image_manager::pull_record::RecordError),
    #[error("preloadedImagesVerificationAllowlist: {0}")]
    Allowlist(#[from] crate::image_manager::verification::PatternError),
    #[error(transparent)]
    Task(#[from] component_base::tasks::TaskError),
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> AppError {
    let what = what.into();
    move |source| AppError::Io { what, source }
}

/// Reads the command line of the process, then runs until SIGTERM.
///
/// # Errors
/// Whatever keeps it from starting; nothing of it goes away by itself.
pub async fn run() -> Result<(), AppError> {
    let flags = flag_set().parse_or_exit();
    let options = Options::from_flags(&flags)?;
    let loaded = load(
        options.config.as_deref(),
        options.config_dir.as_deref(),
        options.config_overrides.clone(),
    )?;
    let logging = &loaded.config.logging;
    flags.init_logs_with(&logging.format, logging.verbosity)?;
    for field in &loaded.unused {
        tracing::warn!(
            field,
            "The configuration field is accepted and not used by this build"
        );
    }
    let mut config = loaded.config;
    take_cgroup_driver(&mut config);
    // Nothing of it is secret: headers of a URL for static pods are refused.
    let shown = serde_json::to_string(&config).unwrap_or_default();
    tracing::info!(config = shown, "Effective KubeletConfiguration");
    let config = Arc::new(config);
    let gates = feature_gates(&options, &config)?;
    let shutdown = Shutdown::on_signals().map_err(io("install signal handlers"))?;
    metrics::init(&options.node_name);
    let work = async {
        Parts::build(options, config, &gates, shutdown.clone())
            .await?
            .run()
            .await
    };
    shutdown.supervise(work).await
}

/// Replaces this program by itself, with the same command line. Returns only if that failed.
fn start_anew() -> AppError {
    use std::os::unix::process::CommandExt;
    tracing::info!("starting anew with the new client certificate");
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    // The name it was started by: the file behind it may be a newer version, and that one is wanted.
    let named = PathBuf::from(&name);
    let program = match std::env::current_exe() {
        Ok(path) if !named.is_absolute() => path,
        _ => named,
    };
    io("start anew")(std::process::Command::new(program).args(args).exec())
}

/// Everything, made and not yet running.
struct Parts {
    /// Agents of the node may ask for its pods.
    pods_api: bool,
    options: Options,
    config: Arc<KubeletConfiguration>,
    shutdown: Shutdown,
    client: Option<kube::Client>,
    clients: Option<ApiClients>,
    registration: Registration,
    factory: Option<Factory>,
    linux: LinuxRuntime,
    runtime: Arc<dyn Runtime>,
    kubelet: Arc<Kubelet>,
    addresses: Vec<IpAddr>,
    channels: Channels,
    config_updates: mpsc::Sender<crate::config::PodUpdate>,
    pleg_events: Arc<Pending<String>>,
    drivers: Arc<csi::Drivers>,
}

impl Parts {
    async fn build(
        options: Options,
        config: Arc<KubeletConfiguration>,
        gates: &FeatureGates,
        shutdown: Shutdown,
    ) -> Result<Self, AppError> {
        let paths = Paths::new(
            options.root_dir.clone(),
            PathBuf::from(&config.pod_logs_dir),
        );
        for dir in [
            paths.root().to_path_buf(),
            paths.pods(),
            paths.plugins(),
            paths.plugins_registry(),
            paths.pod_logs_root().to_path_buf(),
        ] {
            std::fs::create_dir_all(&dir).map_err(io(format!("create {}", dir.display())))?;
        }
        // As upstream makes it: what Secrets hold lies below.
        for dir in [paths.pods(), paths.plugins()] {
            std::fs::set_permissions(&dir, Permissions::from_mode(0o750))
                .map_err(io(format!("chmod {}", dir.display())))?;
        }
        let cgroups = CgroupManager::detect()?;
        check_machine(&config, &cgroups)?;
        kernel_tunables::set_up(config.protect_kernel_defaults)?;
        let open_files = rlimit::set_num_files(config.max_open_files);
        protect_from_oom(config.oom_score_adj);

        let machine = MachineInfo::read();
        let root_fs = fs_stats(paths.root()).map_err(|e| AppError::Io {
            what: format!("statfs {}", paths.root().display()),
            source: e.into(),
        })?;
        let capacity = allocatable::capacity(&machine, root_fs, &config);
        let allocatable = allocatable::allocatable(&capacity, &config);
        let container_manager = Arc::new(ContainerManager::new(
            &config,
            cgroups,
            gates.enabled(MEMORY_QOS),
        ));
        container_manager.setup_node(&capacity)?;
        let registration = registration(&options, &config, &machine);
        let node = Arc::new(NodeState::new(
            options.node_name.clone(),
            machine,
            capacity,
            allocatable,
            registration.initial_node(NodeStatus::default()),
        ));
        if options.kubeconfig.is_none() {
            // There is no other than the node's own word.
            node.set_read();
        }
        let addresses = node_addresses(&options).await;
        node.host_ips.store(Arc::new(
            addresses.iter().map(ToString::to_string).collect(),
        ));

        // The runtime first: what runs is found again whether or not the API server is there.
        let linux = open_runtime(&options, &config, open_files).await?;
        serve_cri(&options, &linux, &shutdown)?;
        let runtime: Arc<dyn Runtime> = Arc::new(linux.clone());
        if options.kubeconfig.is_none() && !config.pod_cidr.is_empty() {
            // With an API server the Node says it.
            let cidrs = config.pod_cidr.split(',').map(str::to_owned).collect();
            runtime.update_pod_cidrs(cidrs).await?;
        }
        let clients = api_clients(&options, &config, &shutdown).await?;
        let client = clients.as_ref().map(|c| c.main.clone());
        let factory = client
            .as_ref()
            .map(|c| Factory::new(c.clone(), shutdown.clone()));

        let events = match &clients {
            Some(clients) => Recorder::core_v1(
                clients.events.clone(),
                "kubelet",
                &options.node_name,
                &shutdown,
            ),
            None => Recorder::discard(),
        };
        let recorder = KubeletRecorder::new(events, &options.node_name);
        let (config_updates, config_rx) = mpsc::channel(CONFIG_QUEUE);
        let pleg_events = Arc::new(Pending::default());
        let probe_updates = Arc::new(Pending::default());
        let object_changes = Arc::new(Pending::default());
        let finished = Arc::new(Pending::default());

        let pods = Arc::new(PodManager::default());
        let status = Arc::new(StatusManager::new(pods.clone(), client.clone()));
        let token = shutdown.token().clone();
        let probes = Arc::new(ProbeManager::new(
            runtime.clone(),
            status.clone(),
            recorder.clone(),
            probe_updates.clone(),
            token.clone(),
        ));
        let from_api = factory.as_ref().map(|f| {
            let certificates = gates.enabled(POD_CERTIFICATE_REQUEST).then(|| {
                let client = f.client().clone();
                PodCertificateManager::new(
                    client,
                    node.clone(),
                    recorder.clone(),
                    object_changes.clone(),
                    shutdown.clone(),
                )
            });
            if let Some(certificates) = &certificates {
                pod_certificate::register_metric(certificates);
            }
            FromApi {
                client: f.client().clone(),
                services: f.informer::<Service>(InformerOptions::default()),
                csi_drivers: f.informer::<CSIDriver>(InformerOptions::default()),
                trust_bundles: gates.enabled(CLUSTER_TRUST_BUNDLE_PROJECTION),
                certificates,
            }
        });
        let objects = Arc::new(ObjectCache::new(
            from_api,
            node.clone(),
            paths.clone(),
            object_changes.clone(),
            Strategy::of(&config.config_map_and_secret_change_detection_strategy),
            &shutdown,
        ));
        let drivers = Arc::new(csi::Drivers::new(Arc::new(metrics::observe_csi_call)));
        let host = CsiHost {
            drivers: drivers.clone(),
            node_name: options.node_name.clone(),
        };
        let volumes = VolumeManager::observed(
            paths.root().to_path_buf(),
            objects.clone(),
            host,
            Arc::new(metrics::observe_volume_mount),
        );
        objects.set_volumes(volumes.clone());
        crate::volume_metrics::register(&volumes);
        let classes = factory.as_ref().map(|f| {
            (
                f.informer::<RuntimeClass>(InformerOptions::default()),
                f.client().clone(),
            )
        });
        let user_namespaces = Arc::new(load_user_namespaces(&paths, &config, &runtime).await?);
        let security = Arc::new(NodeSecurity::read());
        let allocation = Arc::new(AllocationManager::load(paths.root()));
        let keyring = Arc::new(Keyring::for_node(paths.root()));
        let providers = credential_providers(gates, &options, &objects, &volumes)?;
        let pulls = pull_manager(gates, &config, &paths, &runtime).await?;
        let images = Arc::new(ImageManager::new(
            runtime.clone(),
            recorder.clone(),
            keyring,
            providers,
            pulls.clone(),
            &config,
        ));
        let image_gc = Arc::new(ImageGcManager::new(
            runtime.clone(),
            recorder.clone(),
            pulls,
            ImageGcPolicy::from(config.as_ref()),
        ));
        let runtime_manager = Arc::new(RuntimeManager::new(Dependencies {
            runtime: runtime.clone(),
            recorder: recorder.clone(),
            images,
            volumes: volumes.clone(),
            objects: objects.clone(),
            runtime_classes: Arc::new(runtime_class::Manager::new(classes)),
            container_manager: container_manager.clone(),
            user_namespaces: user_namespaces.clone(),
            probes: probes.clone(),
            node: node.clone(),
            paths: paths.clone(),
            crash_loop: Backoff::of_crash_loops(
                gates.enabled(REDUCE_CRASH_LOOP_BACK_OFF),
                gates
                    .enabled(CRASH_LOOP_BACK_OFF_MAX)
                    .then(|| config.max_container_restart_period()),
            ),
            config: config.clone(),
            supports_rro: true,
            supports_user_namespaces: true,
            security: security.clone(),
        }));
        let workers = Arc::new(PodWorkers::new(config.sync_frequency.0, token));
        let kubelet = Arc::new(Kubelet {
            node,
            pods,
            status,
            workers: workers.clone(),
            runtime: runtime_manager,
            probes,
            volumes,
            objects,
            container_manager,
            user_namespaces,
            image_gc,
            security,
            recorder,
            paths,
            config: config.clone(),
            client: client.clone(),
            runtime_state: ArcSwap::default(),
            runtime_handlers: ArcSwap::default(),
            finished: finished.clone(),
            gc_policy: GcPolicy {
                min_age: options.minimum_container_ttl,
                max_per_container: options.max_dead_containers_per_container,
            },
            supports_rro: true,
            allocation,
            declared_features: crate::features::declared(gates),
            loop_turned: ArcSwap::default(),
            // There is none to make without an API server.
            sources_told: AtomicBool::default(),
            exhausted_drivers: Exhausted::default(),
            storage_error: Arc::new(ArcSwap::from_pointee(
                client
                    .as_ref()
                    .map(|_| "CSINode is not yet initialized".to_owned()),
            )),
        });
        workers.set_syncer(kubelet.clone());
        let channels = Channels {
            config: config_rx,
            pleg: pleg_events.clone(),
            probes: probe_updates,
            objects: object_changes,
            finished,
        };
        Ok(Self {
            pods_api: gates.enabled(PODS_API),
            options,
            config,
            shutdown,
            client,
            clients,
            registration,
            factory,
            linux,
            runtime,
            kubelet,
            addresses,
            channels,
            config_updates,
            pleg_events,
            drivers,
        })
    }

    /// Whatever the kubelet cannot do its work without.
    fn essential(&self, name: &str, task: impl Future<Output = ()> + Send + 'static) {
        self.shutdown.spawn_essential(name, task);
    }

    async fn run(self) -> Result<(), AppError> {
        let token = self.shutdown.token().clone();
        let kubelet = self.kubelet.clone();
        servers::start(&self).await?;
        let renewed = self.start_rotation();

        let (changed, nudge) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        // Subscribed before anything is asked: no exit falls between.
        let events = self.runtime.events();
        let watching = report::watch_runtime(
            kubelet.clone(),
            self.runtime.clone(),
            changed.clone(),
            nudge.clone(),
            token.clone(),
        );
        self.essential("runtime status", watching);
        let pleg = pleg::run(
            kubelet.runtime.clone(),
            events,
            self.pleg_events.clone(),
            token.clone(),
        );
        self.essential("pod lifecycle events", pleg);
        let status = kubelet.status.clone();
        self.essential(
            "pod status",
            status.run(kubelet.workers.clone(), token.clone()),
        );
        self.essential(
            "container logs",
            container_log::run(kubelet.clone(), token.clone()),
        );
        self.essential("memory", crate::memory::run(token.clone()));
        self.essential("image garbage", kubelet.image_gc.clone().run(token.clone()));
        let allocation = kubelet.allocation.clone();
        let root = kubelet.paths.root().to_path_buf();
        self.essential("resize allocation", allocation.run(root, token.clone()));
        let eviction = eviction::manager::run(kubelet.clone(), changed.clone(), token.clone());
        self.essential("eviction", eviction);
        if let (Some(clients), Some(factory)) = (&self.clients, &self.factory) {
            self.start_node(clients, factory, &changed, &nudge);
        }
        kubelet
            .recorder
            .node(Type::Normal, reason::STARTING, "Starting kubelet.");
        kubelet.container_manager.tell(&kubelet.recorder);

        let adopted: BTreeSet<String> = match kubelet.runtime.pods().await {
            Ok(pods) => pods
                .into_iter()
                .filter(|(_, p)| p.has_live_container())
                .map(|(uid, _)| uid)
                .collect(),
            Err(error) => {
                tracing::error!(%error, "cannot list what runs on this node");
                BTreeSet::new()
            }
        };
        tracing::info!(pods = adopted.len(), "adopted running pods");
        let sources = self.start_sources()?;
        SyncLoop::new(kubelet, sources, adopted)
            .run(self.channels, token)
            .await;
        if renewed.load(Ordering::Relaxed) {
            return Err(start_anew());
        }
        tracing::info!("kubelet ends; its pods run on");
        Ok(())
    }

    /// DIFFERS: upstream closes its connections and goes on with the new certificate; here the program replaces itself
    /// (same process id), which costs the pods nothing.
    fn start_rotation(&self) -> Arc<AtomicBool> {
        let renewed = Arc::new(AtomicBool::new(false));
        if let (true, Some(client), Some(kubeconfig)) = (
            self.config.rotate_certificates,
            self.client.clone(),
            self.options.kubeconfig.clone(),
        ) {
            let (options, shutdown, flag) =
                (self.options.clone(), self.shutdown.clone(), renewed.clone());
            let ends = shutdown.clone();
            ends.spawn_guarded("client certificate", async move {
                let (dir, node) = (&options.cert_dir, &options.node_name);
                if certificate::rotate_client_cert(&client, &kubeconfig, dir, node, &shutdown).await
                {
                    flag.store(true, Ordering::Relaxed);
                    shutdown.trigger();
                }
            });
        }
        renewed
    }

    fn start_sources(&self) -> Result<BTreeSet<Source>, AppError> {
        let token = self.shutdown.token().clone();
        let mut sources = BTreeSet::new();
        if let Some(factory) = &self.factory {
            sources.insert(Source::Api);
            let options = InformerOptions::default()
                .fields(format!("spec.nodeName={}", self.options.node_name));
            let informer = factory.informer::<Pod>(options);
            let source = apiserver::run(informer, self.config_updates.clone(), token.clone());
            self.essential("pods of the API server", source);
        }
        if !self.config.static_pod_path.is_empty() {
            sources.insert(Source::File);
            let path = PathBuf::from(&self.config.static_pod_path);
            let source = file::run(
                path,
                self.options.node_name.clone(),
                self.config_updates.clone(),
                token.clone(),
            );
            self.essential("pods of files", source);
        }
        let (config, node_name) = (&self.config, &self.options.node_name);
        if !config.static_pod_url.is_empty() {
            sources.insert(Source::Http);
            let (url, period) = (&config.static_pod_url, config.http_check_frequency.0);
            let source = UrlSource::new(url, &config.static_pod_url_header, period, node_name)?;
            tracing::info!(url, "Adding pod URL");
            let source = source.run(self.config_updates.clone(), token);
            self.essential("pods of a URL", source);
        }
        Ok(sources)
    }

    fn start_node(
        &self,
        clients: &ApiClients,
        factory: &Factory,
        changed: &Arc<Notify>,
        nudge: &Arc<Notify>,
    ) {
        let token = self.shutdown.token().clone();
        let (options, config, kubelet) = (&self.options, &self.config, &self.kubelet);
        let reporter = report::Reporter {
            kubelet: kubelet.clone(),
            runtime: self.runtime.clone(),
            client: clients.main.clone(),
            heartbeat: clients.heartbeat.clone(),
            config: config.clone(),
            registration: self.registration.clone(),
            addresses: self.addresses.clone(),
            recorder: kubelet.recorder.clone(),
            changed: changed.clone(),
        };
        self.essential("node status", reporter.run(token.clone()));
        let lease = lease::run(
            clients.heartbeat.clone(),
            kubelet.node.clone(),
            config.node_lease_duration_seconds,
            token.clone(),
        );
        self.essential("node lease", lease);
        let own_node = node_network::watch_own_node(
            factory.clone(),
            kubelet.node.clone(),
            config.register_node,
            self.runtime.clone(),
            nudge.clone(),
            token.clone(),
        );
        self.essential("own node", own_node);
        self.start_drivers(clients, factory, changed);
        let network = self.linux.network().clone();
        let node_name = options.node_name.clone();
        let peers = node_network::watch_peers(factory.clone(), node_name, network, token);
        self.essential("routes to other nodes", peers);
    }
}

/// What the node says of itself.
fn registration(
    options: &Options,
    config: &KubeletConfiguration,
    machine: &MachineInfo,
) -> Registration {
    let name = options.node_name.clone();
    Registration {
        hostname: options
            .hostname_override
            .clone()
            .unwrap_or_else(|| name.clone()),
        name,
        architecture: machine.architecture.clone(),
        labels: options.node_labels.clone(),
        taints: options
            .register_with_taints
            .clone()
            .unwrap_or_else(|| config.register_with_taints.clone()),
        provider_id: config.provider_id.clone(),
        external_cloud_provider: options.cloud_provider_external,
        has_node_ip: !options.node_ips.is_empty(),
        node_ips: machine::given_addresses(options),
    }
}
