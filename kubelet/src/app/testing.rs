//! A kubelet that takes nothing of the machine, for its own tests and for those of several programs together.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use ::runtime::fake::FakeRuntime;
use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::shutdown::Shutdown;
use resource_managers::Topology;
use systemd::logind::{Logind, LogindError, Session};

use super::AppError;
use super::assemble::{Machine, Seams, assemble};
use super::clients::ApiClients;
use super::features::feature_gates;
use crate::cm::ContainerManager;
use crate::cm::cgroup::{CgroupManager, Hierarchies};
use crate::cm::machine::{FsStats, MachineInfo};
use crate::configuration::KubeletConfiguration;
use crate::eviction::manager::Observer;
use crate::eviction::observe::Observed;
use crate::kubelet::Kubelet;
use crate::options::{Options, flag_set};
use crate::paths::Paths;
use crate::resource_managers::reserve_cpus;
use crate::security_context::NodeSecurity;

const GIB: u64 = 1 << 30;

/// What the node stands on.
pub struct Given<'a> {
    /// Its name.
    pub node: &'a str,
    /// Its address.
    pub address: IpAddr,
    /// The way to the API server.
    pub client: kube::Client,
    /// Its containers.
    pub runtime: FakeRuntime,
    /// Its time, and that of its containers.
    pub clock: Clock,
    /// Its end.
    pub shutdown: Shutdown,
    /// An empty folder.
    pub files: &'a Path,
}

/// A node of four processors and 8 GiB, ready to run until shutdown. `configure`: what its configuration says besides.
///
/// # Errors
/// As of [`super::run`].
///
/// # Panics
/// The folder cannot be written to.
pub async fn kubelet(
    given: Given<'_>,
    configure: fn(&mut KubeletConfiguration),
) -> Result<impl Future<Output = Result<(), AppError>> + Send + use<>, AppError> {
    let parts = assemble(seams(given, configure)).await?;
    Ok(parts.run())
}

/// The world's machine is short of nothing, whatever the one is that the test runs on.
struct Plenty;

#[async_trait]
impl Observer for Plenty {
    async fn observe(&self, _: &Kubelet) -> Observed {
        Observed::default()
    }
}

/// Nor does it go down.
struct NoLogind;

#[async_trait]
impl Logind for NoLogind {
    async fn connect(&self) -> Result<Box<dyn Session>, LogindError> {
        Err(LogindError::Ended)
    }
}

pub(super) fn seams(given: Given<'_>, configure: impl FnOnce(&mut KubeletConfiguration)) -> Seams {
    let Given {
        node,
        address,
        client,
        runtime,
        clock,
        shutdown,
        files: root,
    } = given;
    let now = clock.clone();
    runtime.set_now(move || now.now());
    let path = |name: &str| root.join(name).display().to_string();
    let args = [
        format!("--hostname-override={node}"),
        format!("--root-dir={}", path("kubelet")),
        format!("--cert-dir={}", path("pki")),
        format!("--node-ip={address}"),
    ];
    let flags = flag_set().parse(args).expect("flags of the test");
    let options = Options::from_flags(&flags).expect("options of the test");
    let mut config = KubeletConfiguration {
        enable_server: false,
        healthz_port: 0,
        pod_logs_dir: path("logs"),
        resolv_conf: String::new(),
        // The disk of the machine that the test runs on makes no garbage of images.
        image_gc_high_threshold_percent: 100,
        ..KubeletConfiguration::default()
    };
    configure(&mut config);
    // Two NUMA nodes of one socket.
    let topology = Topology::regular([1, 2, 2, 1], 4 * GIB);
    reserve_cpus(&mut config, &topology).expect("CPUs of the world's machine");
    let paths = Paths::new(root.join("kubelet"), root.join("logs"))
        .with_container_logs(root.join("containers"));
    super::make_directories(&paths).expect("directories");
    std::fs::create_dir(root.join("cgroup")).expect("a folder in place of a hierarchy");
    let cgroups = CgroupManager::with_hierarchies(Hierarchies::V2(root.join("cgroup")));
    let gates = feature_gates(&options, &config).expect("gates of the test");
    Seams {
        container_manager: Arc::new(ContainerManager::new(&config, cgroups, false)),
        options,
        config: Arc::new(config),
        paths,
        gates,
        clock,
        shutdown,
        clients: Some(ApiClients {
            main: client.clone(),
            heartbeat: client.clone(),
            events: client.clone(),
            reviews: client,
        }),
        runtime: Arc::new(runtime),
        network: None,
        logind: Arc::new(NoLogind),
        machine: Machine {
            topology,
            info: MachineInfo {
                cpus: 4,
                memory_capacity_bytes: 8 * GIB,
                ..MachineInfo::default()
            },
            root_fs: FsStats {
                capacity_bytes: 100 * GIB,
                available_bytes: 50 * GIB,
                inodes: 1 << 20,
                inodes_free: 1 << 19,
            },
            observer: Arc::new(Plenty),
            addresses: vec![address],
            security: NodeSecurity::default(),
        },
    }
}
