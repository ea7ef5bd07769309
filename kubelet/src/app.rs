//! Puts a kubelet together and runs it.
//!
//! Owns: what is asked of the machine and done to it before there is a kubelet (`assemble` makes one of it, `start` starts that). Upstream: `cmd/kubelet/app/server.go`, v1.36.

mod assemble;
mod clients;
mod drivers;
mod features;
mod images;
mod machine;
#[cfg(test)]
mod pinning_tests;
mod runtime;
mod servers;
mod start;
pub mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod world;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::resource_managers::Topology;
use ::resource_managers::topology::discover;
use ::runtime::api::Runtime;
use component_base::clock::Clock;
use component_base::features::FeatureGates;
use component_base::shutdown::Shutdown;
use systemd::logind::SystemLogind;

use self::assemble::{Machine, Seams, assemble};
use self::clients::api_clients;
use self::features::{MEMORY_QOS, feature_gates};
use self::machine::{check_machine, node_addresses, protect_from_oom};
use self::runtime::{open_runtime, serve_cri, take_cgroup_driver};
use crate::cm::cgroup::{CgroupError, CgroupManager};
use crate::cm::machine::{MachineInfo, fs_stats};
use crate::cm::{ContainerManager, allocatable, kernel_tunables};
use crate::configuration::KubeletConfiguration;
use crate::configuration::load::{LoadError, load};
use crate::eviction::manager::OfTheMachine;
use crate::options::{Options, OptionsError, flag_set};
use crate::paths::Paths;
use crate::resource_managers::reserve_cpus;
use crate::security_context::NodeSecurity;
use crate::{metrics, rlimit};

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
    #[error("failed to run Kubelet: device plugins: {0}")]
    Devices(#[from] devices::LoadError),
    #[error("failed to run Kubelet: dynamic resources: {0}")]
    DynamicResources(#[from] dra::LoadError),
    #[error("failed to run Kubelet: {0}")]
    ReservedCpus(#[from] crate::resource_managers::ReservedCpusError),
    #[error("failed to run Kubelet: failed to start ContainerManager: {0}")]
    ResourceManagers(#[from] ::resource_managers::StartError),
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
    #[error("failed to run Kubelet: failed to start ContainerManager: device plugins: {0}")]
    DevicePlugins(#[from] devices::ServeError),
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
    let info = MachineInfo::read();
    let topology = read_topology(&info);
    reserve_cpus(&mut config, &topology)?;
    // Nothing of it is secret: headers of a URL for static pods are refused.
    let shown = serde_json::to_string(&config).unwrap_or_default();
    tracing::info!(config = shown, "Effective KubeletConfiguration");
    let config = Arc::new(config);
    let gates = feature_gates(&options, &config)?;
    let shutdown = Shutdown::on_signals().map_err(io("install signal handlers"))?;
    metrics::init(&options.node_name);
    let work = async {
        let giving_back = crate::memory::run(shutdown.token().clone());
        shutdown.spawn_essential("memory", giving_back);
        let machine = (info, topology);
        let seams = of_this_machine(options, config, gates, shutdown.clone(), machine).await?;
        assemble(seams).await?.run().await
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

fn read_topology(info: &MachineInfo) -> Topology {
    let known = discover::Known {
        cpus: usize::try_from(info.cpus).unwrap_or(1),
        memory_bytes: info.memory_capacity_bytes,
    };
    discover::read(Path::new("/sys"), known)
}

/// Makes the directories, sets the machine up and opens the runtime, then the way to the API server.
async fn of_this_machine(
    options: Options,
    config: Arc<KubeletConfiguration>,
    gates: FeatureGates,
    shutdown: Shutdown,
    (info, topology): (MachineInfo, Topology),
) -> Result<Seams, AppError> {
    let logs = PathBuf::from(&config.pod_logs_dir);
    let paths = Paths::new(options.root_dir.clone(), logs);
    make_directories(&paths)?;
    let cgroups = CgroupManager::detect()?;
    check_machine(&config, &cgroups)?;
    kernel_tunables::set_up(config.protect_kernel_defaults)?;
    let open_files = rlimit::set_num_files(config.max_open_files);
    protect_from_oom(config.oom_score_adj);

    let root_fs = fs_stats(paths.root()).map_err(|e| AppError::Io {
        what: format!("statfs {}", paths.root().display()),
        source: e.into(),
    })?;
    let memory_qos = gates.enabled(MEMORY_QOS);
    let container_manager = Arc::new(ContainerManager::new(&config, cgroups, memory_qos));
    container_manager.setup_node(&allocatable::capacity(&info, root_fs, &config))?;
    let addresses = node_addresses(&options).await;

    // The runtime first: what runs is found again whether or not the API server is there.
    let linux = open_runtime(&options, &config, open_files).await?;
    serve_cri(&options, &linux, &shutdown)?;
    if options.kubeconfig.is_none() && !config.pod_cidr.is_empty() {
        // With an API server the Node says it.
        let cidrs = config.pod_cidr.split(',').map(str::to_owned).collect();
        linux.update_pod_cidrs(cidrs).await?;
    }
    let clients = api_clients(&options, &config, &shutdown).await?;
    Ok(Seams {
        options,
        config,
        paths,
        gates,
        clock: Clock::real(),
        shutdown,
        clients,
        network: Some(linux.network().clone()),
        logind: Arc::new(SystemLogind::default()),
        runtime: Arc::new(linux),
        container_manager,
        machine: Machine {
            info,
            topology,
            root_fs,
            observer: Arc::new(OfTheMachine),
            addresses,
            security: NodeSecurity::read(),
        },
    })
}

fn make_directories(paths: &Paths) -> Result<(), AppError> {
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
    Ok(())
}
