//! Makes a kubelet of what it stands on.
//!
//! Owns: who gets what. Takes nothing from the machine or the process itself: all of it comes as [`Seams`], so that the same kubelet
//! runs on a fake runtime and an API server in memory (`tests`). Starts nothing: `start` does.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ::runtime::api::Runtime;
use arc_swap::ArcSwap;
use component_base::clock::Clock;
use component_base::events::Recorder;
use component_base::features::FeatureGates;
use component_base::informer::{Factory, InformerOptions};
use component_base::shutdown::Shutdown;
use k8s_openapi::api::core::v1::{NodeStatus, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::storage::v1::CSIDriver;
use network::PodNetwork;
use resource_managers::{ResourceManagers, Topology};
use systemd::logind::Logind;
use tokio::sync::mpsc;
use volumes::{CsiHost, VolumeManager};

use super::AppError;
use super::clients::ApiClients;
use super::features::{
    CLUSTER_TRUST_BUNDLE_PROJECTION, CONTAINER_STOP_SIGNALS, CRASH_LOOP_BACK_OFF_MAX,
    DRA_OPTIONAL_NODE_OPERATIONS, GRACEFUL_NODE_SHUTDOWN,
    GRACEFUL_NODE_SHUTDOWN_BASED_ON_POD_PRIORITY, POD_CERTIFICATE_REQUEST, PODS_API,
    REDUCE_CRASH_LOOP_BACK_OFF, RESOURCE_HEALTH_STATUS, RESOURCE_HEALTH_STATUS_MESSAGE,
};
use super::images::{credential_providers, pull_manager};
use super::machine::given_addresses;
use super::runtime::load_user_namespaces;
use crate::backoff::Backoff;
use crate::cm::machine::{FsStats, MachineInfo};
use crate::cm::{ContainerManager, allocatable};
use crate::config::PodUpdate;
use crate::configuration::KubeletConfiguration;
use crate::csi_node::{Exhausted, StorageError};
use crate::device_plugins::Watcher;
use crate::dynamic_resources::{self, ClaimSlices, DynamicResources};
use crate::events::KubeletRecorder;
use crate::eviction::manager::Observer;
use crate::image_gc::{ImageGcManager, ImageGcPolicy};
use crate::image_manager::ImageManager;
use crate::image_manager::credentials::Keyring;
use crate::kubelet::{Kubelet, Pinning};
use crate::kuberuntime::gc::GcPolicy;
use crate::kuberuntime::{Dependencies, RuntimeManager};
use crate::node::NodeState;
use crate::node_shutdown::plan::Plan;
use crate::node_shutdown::state::State;
use crate::node_status::register::Registration;
use crate::object_cache::{FromApi, ObjectCache, Strategy};
use crate::options::Options;
use crate::paths::Paths;
use crate::pending::Pending;
use crate::pod_certificate::PodCertificateManager;
use crate::pod_manager::PodManager;
use crate::pod_workers::PodWorkers;
use crate::prober::ProbeManager;
use crate::resize::AllocationManager;
use crate::resource_managers::{Counter, settings};
use crate::security_context::NodeSecurity;
use crate::status::manager::StatusManager;
use crate::sync_loop::{CONFIG_QUEUE, Channels};
use crate::{metrics, pod_certificate, runtime_class};

/// Everything a kubelet stands on.
pub(super) struct Seams {
    pub(super) options: Options,
    pub(super) config: Arc<KubeletConfiguration>,
    pub(super) paths: Paths,
    pub(super) gates: FeatureGates,
    pub(super) clock: Clock,
    pub(super) shutdown: Shutdown,
    /// `None`: no API server, the kubelet runs alone.
    pub(super) clients: Option<ApiClients>,
    pub(super) runtime: Arc<dyn Runtime>,
    /// Where routes to other nodes' pods are set; `None`: nowhere.
    pub(super) network: Option<PodNetwork>,
    /// Who holds the machine's shutdown up; asked only if the configuration wants that.
    pub(super) logind: Arc<dyn Logind>,
    pub(super) container_manager: Arc<ContainerManager>,
    pub(super) machine: Machine,
}

/// What was read of the machine, once.
pub(super) struct Machine {
    pub(super) info: MachineInfo,
    pub(super) topology: Topology,
    /// The disk of `--root-dir`.
    pub(super) root_fs: FsStats,
    /// What is left of memory, disks and process ids, looked at again and again.
    pub(super) observer: Arc<dyn Observer>,
    /// The node's own, the one pods are told first.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) security: NodeSecurity,
}

/// Everything, made and not yet running.
pub(super) struct Parts {
    /// Agents of the node may ask for its pods.
    pub(super) pods_api: bool,
    pub(super) options: Options,
    pub(super) config: Arc<KubeletConfiguration>,
    pub(super) shutdown: Shutdown,
    pub(super) client: Option<kube::Client>,
    pub(super) clients: Option<ApiClients>,
    pub(super) registration: Registration,
    pub(super) factory: Option<Factory>,
    pub(super) network: Option<PodNetwork>,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) kubelet: Arc<Kubelet>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) channels: Channels,
    pub(super) config_updates: mpsc::Sender<PodUpdate>,
    pub(super) pleg_events: Arc<Pending<String>>,
    pub(super) drivers: Arc<csi::Drivers>,
    pub(super) logind: Arc<dyn Logind>,
    /// `None`: the machine goes down without a word to the pods.
    pub(super) node_shutdown: Option<Plan>,
}

/// # Errors
/// Records on disk, the runtime or a plugin's configuration cannot be read.
pub(super) async fn assemble(seams: Seams) -> Result<Parts, AppError> {
    let (options, config, gates) = (&seams.options, &seams.config, &seams.gates);
    let (runtime, paths) = (&seams.runtime, seams.paths.clone());
    let registration = registration(options, config, &seams.machine.info);
    let node = node_state(&seams, &registration);
    let client = seams.clients.as_ref().map(|c| c.main.clone());
    let factory = informers(&seams);
    let (recorder, (config_updates, channels)) = (recorder(&seams), channels());
    let pods = Arc::new(PodManager::default());
    let status = status_manager(&seams, &pods);
    let probes = probes(&seams, &status, &recorder, &channels);
    let objects = objects(&seams, factory.as_ref(), &node, &recorder, &channels);
    let drivers = Arc::new(csi::Drivers::new(Arc::new(metrics::observe_csi_call)));
    let volumes = volumes(&paths, options, &objects, &drivers);
    let workers = workers(&seams);
    let devices = device_manager(&seams, &paths, &workers)?;
    let claims = claims(&seams, &paths, &workers)?;
    let managers = resource_managers(&seams, &paths)?;
    let user_namespaces = Arc::new(load_user_namespaces(&paths, config, runtime).await?);
    let security = Arc::new(seams.machine.security.clone());
    let (images, image_gc) = images(&seams, &paths, &objects, &volumes, &recorder).await?;
    let runtime_manager = Arc::new(RuntimeManager::new(Dependencies {
        runtime: runtime.clone(),
        recorder: recorder.clone(),
        images,
        volumes: volumes.clone(),
        devices: devices.clone(),
        claims: claims.clone(),
        managers: managers.clone(),
        objects: objects.clone(),
        runtime_classes: Arc::new(runtime_classes(factory.as_ref())),
        container_manager: seams.container_manager.clone(),
        user_namespaces: user_namespaces.clone(),
        probes: probes.clone(),
        node: node.clone(),
        paths: paths.clone(),
        crash_loop: crash_loop(gates, config),
        config: config.clone(),
        clock: seams.clock.clone(),
        supports_rro: true,
        stop_signals: gates.enabled(CONTAINER_STOP_SIGNALS),
        supports_user_namespaces: true,
        security: security.clone(),
    }));
    let kubelet = Arc::new(Kubelet {
        node,
        pods,
        status,
        workers: workers.clone(),
        runtime: runtime_manager,
        probes,
        volumes,
        devices,
        claims,
        managers,
        pinning: Pinning::default(),
        objects,
        container_manager: seams.container_manager.clone(),
        user_namespaces,
        image_gc,
        security,
        recorder,
        config: config.clone(),
        client: client.clone(),
        clock: seams.clock.clone(),
        runtime_state: ArcSwap::default(),
        runtime_handlers: ArcSwap::default(),
        finished: channels.finished.clone(),
        gc_policy: gc_policy(options),
        allocation: Arc::new(AllocationManager::load(paths.root())),
        paths,
        declared_features: crate::features::declared(gates),
        loop_turned: ArcSwap::default(),
        sources_told: AtomicBool::default(),
        exhausted_drivers: Exhausted::default(),
        storage_error: storage_error(client.is_some()),
    });
    workers.set_syncer(kubelet.clone());
    Ok(Parts {
        pods_api: gates.enabled(PODS_API),
        pleg_events: channels.pleg.clone(),
        client,
        registration,
        factory,
        kubelet,
        channels,
        config_updates,
        drivers,
        node_shutdown: node_shutdown(config, gates),
        logind: seams.logind,
        options: seams.options,
        config: seams.config,
        shutdown: seams.shutdown,
        clients: seams.clients,
        network: seams.network,
        runtime: seams.runtime,
        addresses: seams.machine.addresses,
        observer: seams.machine.observer,
    })
}

fn node_state(seams: &Seams, registration: &Registration) -> Arc<NodeState> {
    let machine = &seams.machine;
    let capacity = allocatable::capacity(&machine.info, machine.root_fs, &seams.config);
    let allocatable = allocatable::allocatable(&capacity, &seams.config);
    let node = Arc::new(NodeState::new(
        seams.options.node_name.clone(),
        machine.info.clone(),
        capacity,
        allocatable,
        registration.initial_node(NodeStatus::default()),
    ));
    if seams.clients.is_none() && !seams.shutdown.is_triggered() {
        // There is no other than the node's own word.
        node.set_read();
    }
    node.host_ips.store(Arc::new(
        machine.addresses.iter().map(ToString::to_string).collect(),
    ));
    node
}

fn informers(seams: &Seams) -> Option<Factory> {
    let clients = seams.clients.as_ref()?;
    Some(Factory::new(clients.main.clone(), seams.shutdown.clone()))
}

fn status_manager(seams: &Seams, pods: &Arc<PodManager>) -> Arc<StatusManager> {
    let client = seams.clients.as_ref().map(|c| c.main.clone());
    let (pods, clock) = (pods.clone(), seams.clock.clone());
    Arc::new(StatusManager::new(pods, client, clock))
}

fn recorder(seams: &Seams) -> KubeletRecorder {
    let name = &seams.options.node_name;
    let events = match &seams.clients {
        Some(clients) => {
            let client = clients.events.clone();
            Recorder::core_v1_by(&seams.clock, client, "kubelet", name, &seams.shutdown)
        }
        None => Recorder::discard(),
    };
    KubeletRecorder::new(events, name)
}

fn channels() -> (mpsc::Sender<PodUpdate>, Channels) {
    let (updates, config) = mpsc::channel(CONFIG_QUEUE);
    let channels = Channels {
        config,
        pleg: Arc::default(),
        probes: Arc::default(),
        objects: Arc::default(),
        finished: Arc::default(),
    };
    (updates, channels)
}

/// Why the node takes no volumes of drivers yet: its CSINode is to be made first, but there is none without an API server.
fn storage_error(has_api: bool) -> StorageError {
    let error = has_api.then(|| "CSINode is not yet initialized".to_owned());
    Arc::new(ArcSwap::from_pointee(error))
}

fn objects(
    seams: &Seams,
    factory: Option<&Factory>,
    node: &Arc<NodeState>,
    recorder: &KubeletRecorder,
    channels: &Channels,
) -> Arc<ObjectCache> {
    let strategy = &seams.config.config_map_and_secret_change_detection_strategy;
    Arc::new(ObjectCache::new(
        factory.map(|f| from_api(seams, f, node, recorder, &channels.objects)),
        node.clone(),
        seams.paths.clone(),
        channels.objects.clone(),
        Strategy::of(strategy),
        &seams.clock,
        &seams.shutdown,
    ))
}

fn from_api(
    seams: &Seams,
    factory: &Factory,
    node: &Arc<NodeState>,
    recorder: &KubeletRecorder,
    changes: &Arc<Pending<String>>,
) -> FromApi {
    let certificates = seams.gates.enabled(POD_CERTIFICATE_REQUEST).then(|| {
        PodCertificateManager::new(
            factory.client().clone(),
            node.clone(),
            recorder.clone(),
            changes.clone(),
            seams.shutdown.clone(),
        )
    });
    if let Some(certificates) = &certificates {
        pod_certificate::register_metric(certificates);
    }
    FromApi {
        client: factory.client().clone(),
        services: factory.informer::<Service>(InformerOptions::default()),
        csi_drivers: factory.informer::<CSIDriver>(InformerOptions::default()),
        trust_bundles: seams.gates.enabled(CLUSTER_TRUST_BUNDLE_PROJECTION),
        certificates,
    }
}

fn volumes(
    paths: &Paths,
    options: &Options,
    objects: &Arc<ObjectCache>,
    drivers: &Arc<csi::Drivers>,
) -> VolumeManager {
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
    volumes
}

fn probes(
    seams: &Seams,
    status: &Arc<StatusManager>,
    recorder: &KubeletRecorder,
    channels: &Channels,
) -> Arc<ProbeManager> {
    Arc::new(ProbeManager::new(
        seams.runtime.clone(),
        status.clone(),
        recorder.clone(),
        channels.probes.clone(),
        seams.shutdown.token().clone(),
    ))
}

fn workers(seams: &Seams) -> Arc<PodWorkers> {
    let (period, token) = (
        seams.config.sync_frequency.0,
        seams.shutdown.token().clone(),
    );
    Arc::new(PodWorkers::new(period, token))
}

/// What was given out before is known from here on.
fn device_manager(
    seams: &Seams,
    paths: &Paths,
    workers: &Arc<PodWorkers>,
) -> Result<Arc<devices::Manager>, AppError> {
    let watcher = Watcher {
        workers: workers.clone(),
        tell_health: seams.gates.enabled(RESOURCE_HEALTH_STATUS),
    };
    let (dir, clock) = (paths.device_plugins(), seams.clock.clone());
    let manager = devices::Manager::load(dir, clock, Arc::new(watcher))?;
    Ok(Arc::new(manager))
}

/// What drivers prepared before is known from here on.
fn claims(
    seams: &Seams,
    paths: &Paths,
    workers: &Arc<PodWorkers>,
) -> Result<Arc<DynamicResources>, AppError> {
    let watcher = dynamic_resources::Watcher {
        workers: workers.clone(),
        tell_health: seams.gates.enabled(RESOURCE_HEALTH_STATUS),
    };
    let client = seams.clients.as_ref().map(|clients| clients.main.clone());
    let slices = client.clone().map(|client| {
        let node = seams.options.node_name.clone();
        let slices = kube::Api::all(client);
        Arc::new(ClaimSlices { slices, node }) as Arc<dyn dra::Slices>
    });
    let (root, clock) = (paths.root().to_path_buf(), seams.clock.clone());
    let manager = dra::Manager::load(root, clock, Arc::new(watcher), slices)?;
    let manager = Arc::new(manager);
    dynamic_resources::register_metric(&manager);
    Ok(Arc::new(DynamicResources {
        manager,
        claims: client.map(kube::Api::all),
        optional_node_operations: seams.gates.enabled(DRA_OPTIONAL_NODE_OPERATIONS),
        tell_health: seams.gates.enabled(RESOURCE_HEALTH_STATUS),
        tell_messages: seams.gates.enabled(RESOURCE_HEALTH_STATUS_MESSAGE),
    }))
}

/// What was given out before is known from here on.
fn resource_managers(seams: &Seams, paths: &Paths) -> Result<Arc<ResourceManagers>, AppError> {
    let machine = &seams.machine;
    let capacity = allocatable::capacity(&machine.info, machine.root_fs, &seams.config);
    let settings = settings(&seams.config, &seams.gates, &capacity);
    let (topology, counter) = (&machine.topology, Arc::new(Counter));
    let managers = ResourceManagers::start(&settings, topology, paths.root(), counter)?;
    let managers = Arc::new(managers);
    seams
        .container_manager
        .set_resource_managers(managers.clone());
    Ok(managers)
}

async fn images(
    seams: &Seams,
    paths: &Paths,
    objects: &Arc<ObjectCache>,
    volumes: &VolumeManager,
    recorder: &KubeletRecorder,
) -> Result<(Arc<ImageManager>, Arc<ImageGcManager>), AppError> {
    let (gates, config, runtime) = (&seams.gates, &seams.config, &seams.runtime);
    let keyring = Arc::new(Keyring::for_node(paths.root()));
    let providers = credential_providers(gates, &seams.options, objects, volumes)?;
    let pulls = pull_manager(gates, config, paths, runtime).await?;
    let images = Arc::new(ImageManager::new(
        runtime.clone(),
        recorder.clone(),
        keyring,
        providers,
        pulls.clone(),
        config,
        seams.clock.clone(),
    ));
    let image_gc = Arc::new(ImageGcManager::new(
        runtime.clone(),
        recorder.clone(),
        pulls,
        ImageGcPolicy::from(config.as_ref()),
    ));
    Ok((images, image_gc))
}

fn runtime_classes(factory: Option<&Factory>) -> runtime_class::Manager {
    runtime_class::Manager::new(factory.map(|f| {
        (
            f.informer::<RuntimeClass>(InformerOptions::default()),
            f.client().clone(),
        )
    }))
}

fn crash_loop(gates: &FeatureGates, config: &KubeletConfiguration) -> Backoff {
    Backoff::of_crash_loops(
        gates.enabled(REDUCE_CRASH_LOOP_BACK_OFF),
        gates
            .enabled(CRASH_LOOP_BACK_OFF_MAX)
            .then(|| config.max_container_restart_period()),
    )
}

fn node_shutdown(config: &KubeletConfiguration, gates: &FeatureGates) -> Option<Plan> {
    let plan = Plan::of(config, gates);
    let asked = !config.shutdown_grace_period.0.is_zero()
        || !config.shutdown_grace_period_by_pod_priority.is_empty();
    if gates.enabled(GRACEFUL_NODE_SHUTDOWN)
        && gates.enabled(GRACEFUL_NODE_SHUTDOWN_BASED_ON_POD_PRIORITY)
    {
        // There with zeros from the first, as upstream's.
        State::default().show();
    }
    if plan.is_none() && asked {
        // Gates of the command line are not seen by the validation.
        tracing::warn!("Periods of a graceful node shutdown are given and its feature gate is off");
    }
    plan
}

fn gc_policy(options: &Options) -> GcPolicy {
    GcPolicy {
        min_age: options.minimum_container_ttl,
        max_per_container: options.max_dead_containers_per_container,
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
        node_ips: given_addresses(options),
    }
}
