//! The Linux provider: one shim a pod, libcontainer inside it, images and network beside it.
//!
//! Owns sandboxes and containers on this node: their records on disk, their mounts, and the watch
//! over their shims. Never runs libcontainer itself (threads), never decides what should run.
//!
//! **Invariant:** what runs is what the shims say; records only tell what things were made from.
//! **Invariant:** every call can be repeated: cleanup goes on past errors, and what could not be
//! cleaned is found again at the next start.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use images::ImageStore;
use network::PodNetwork;
use tokio::sync::broadcast;

use crate::api::*;
use crate::detail::Detail;

pub use shim_protocol::OpenFiles;

mod adopt;
mod apparmor;
pub mod cgroup;
mod container;
mod image;
mod layout;
mod machine;
mod mount;
mod owner;
mod record;
mod sandbox;
mod session;
mod shim;
mod stats;
mod stream;
mod volume;
mod watch;

use layout::Layout;
pub use owner::{Handover, Ownership};
use record::{Container, Sandbox};
use shim::{ShimCallError, ShimProgram};

/// How the node names cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupDriver {
    #[default]
    Cgroupfs,
    /// Slices and scopes made by systemd. Not supported yet: `open` refuses it.
    Systemd,
}

/// What a [`LinuxRuntime`] is opened with.
#[derive(Clone, Debug)]
pub struct LinuxRuntimeConfig {
    /// Survives a reboot.
    pub root_dir: PathBuf,
    /// Does not: sockets, pinned namespaces, mount points. A tmpfs, usually.
    pub state_dir: PathBuf,
    /// The `gantry-shim` program; `None`: next to the running program.
    pub shim_path: Option<PathBuf>,
    pub cgroup_driver: CgroupDriver,
    /// A cgroup for the shims, in every hierarchy that a service manager may kill by; `None`: they stay in this process's,
    /// which must then not be killed as a whole (systemd: `KillMode=process`).
    pub shim_cgroup: Option<String>,
    /// RuntimeClass handlers that name this runtime, besides the empty one.
    pub handlers: Vec<String>,
    /// How many files a container may have open: what this process was started with, if it raised its
    /// own limit since. `None`: as this process has it.
    pub open_files: Option<OpenFiles>,
    /// Kept for as long as anything of the runtime is alive. `None`: nobody else is about.
    pub ownership: Option<Arc<Ownership>>,
    /// Where files tell of CDI devices; the later counts.
    pub cdi_spec_dirs: Vec<PathBuf>,
}

impl Default for LinuxRuntimeConfig {
    fn default() -> Self {
        Self {
            root_dir: "/var/lib/gantry".into(),
            state_dir: "/run/gantry".into(),
            shim_path: None,
            cgroup_driver: CgroupDriver::default(),
            shim_cgroup: None,
            handlers: vec!["runc".to_owned()],
            open_files: None,
            ownership: None,
            cdi_spec_dirs: cdi::DEFAULT_DIRS.map(PathBuf::from).to_vec(),
        }
    }
}

/// The usual name of the shims' cgroup, below the root of the pods'.
pub const SHIM_CGROUP: &str = "/gantry-shims";

/// Events that wait for a slow receiver; a receiver that falls further behind re-lists.
const EVENT_CAPACITY: usize = 4096;

/// The runtime. Cheap to clone; every clone is the same.
#[derive(Clone)]
pub struct LinuxRuntime {
    inner: Arc<Inner>,
}

struct Inner {
    config: LinuxRuntimeConfig,
    layout: Layout,
    images: ImageStore,
    network: PodNetwork,
    cgroups: Box<dyn cgroup::Cgroups>,
    shim: ShimProgram,
    available_capabilities: u64,
    events: broadcast::Sender<RuntimeEvent>,
    sandboxes: Mutex<HashMap<String, Arc<Sandbox>>>,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    layer_usage: Mutex<HashMap<String, stats::LayerUsage>>,
    /// Ends with the runtime: whoever follows a shim then lets go of it.
    alive: tokio::sync::watch::Sender<()>,
}

impl LinuxRuntime {
    /// Opens the runtime: finds every sandbox of an earlier run again, connects to their shims and
    /// takes apart what is dead or unknown.
    ///
    /// # Errors
    /// The directories or the shim's program cannot be used. What cannot be cleaned is only logged.
    pub async fn open(
        config: LinuxRuntimeConfig,
        images: ImageStore,
        network: PodNetwork,
    ) -> Result<Self, RuntimeError> {
        if config.cgroup_driver == CgroupDriver::Systemd {
            return Err(RuntimeError::Unsupported("the systemd cgroup driver"));
        }
        let layout = Layout {
            root: config.root_dir.clone(),
            state: config.state_dir.clone(),
        };
        layout
            .create()
            .map_err(io("prepare the runtime's directories"))?;
        let shim_path = match &config.shim_path {
            Some(path) => path.clone(),
            None => std::env::current_exe()
                .map_err(io("find the running program"))?
                .with_file_name("gantry-shim"),
        };
        let shim =
            ShimProgram::load(&shim_path).map_err(io(format!("load {}", shim_path.display())))?;
        let inner = Arc::new(Inner {
            config,
            layout,
            images,
            network,
            cgroups: cgroup::detect(),
            shim,
            available_capabilities: machine::available_capabilities(),
            events: broadcast::channel(EVENT_CAPACITY).0,
            sandboxes: Mutex::default(),
            containers: Mutex::default(),
            layer_usage: Mutex::default(),
            alive: tokio::sync::watch::Sender::new(()),
        });
        let missing = shim_protocol::capability::ALL & !inner.available_capabilities;
        if missing != 0 {
            tracing::warn!(
                capabilities = ?shim_protocol::capability::names(missing),
                "this process lacks capabilities; no container can be given them"
            );
        }
        adopt::adopt(&inner).await;
        Ok(Self { inner })
    }

    /// The pod network, to be fed with pod CIDRs and peers.
    pub fn network(&self) -> &PodNetwork {
        &self.inner.network
    }

    pub fn images(&self) -> &ImageStore {
        &self.inner.images
    }
}

impl Inner {
    fn sandboxes(&self) -> MutexGuard<'_, HashMap<String, Arc<Sandbox>>> {
        self.sandboxes.lock().expect("no holder panics")
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.containers.lock().expect("no holder panics")
    }

    fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, RuntimeError> {
        self.sandboxes()
            .get(id)
            .cloned()
            .ok_or_else(|| RuntimeError::SandboxNotFound { id: id.to_owned() })
    }

    fn container(&self, id: &str) -> Result<Arc<Container>, RuntimeError> {
        self.containers()
            .get(id)
            .cloned()
            .ok_or_else(|| RuntimeError::ContainerNotFound { id: id.to_owned() })
    }

    fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        self.containers()
            .values()
            .filter(|container| container.record().sandbox_id == sandbox)
            .cloned()
            .collect()
    }

    fn emit(&self, event: RuntimeEvent) {
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }

    fn pod_uid(&self, sandbox: &str) -> String {
        self.sandboxes()
            .get(sandbox)
            .map(|sandbox| sandbox.record().config.metadata.uid.clone())
            .unwrap_or_default()
    }
}

/// Adds what was being done to an I/O error.
fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> RuntimeError {
    let context = context.into();
    move |source| RuntimeError::Io { context, source }
}

fn shim_error(sandbox: &str) -> impl FnOnce(ShimCallError) -> RuntimeError {
    let id = sandbox.to_owned();
    move |error| RuntimeError::Shim {
        id,
        reason: shim_protocol::chain(&error),
    }
}

/// Runs what blocks off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(RuntimeError::Io {
            context: "blocking task".to_owned(),
            source: std::io::Error::other(error),
        }),
    }
}

/// Runs what must not stop half-way, even if the caller is dropped meanwhile.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, RuntimeError>> + Send + 'static,
) -> Result<T, RuntimeError> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(RuntimeError::Io {
            context: "runtime task".to_owned(),
            source: std::io::Error::other(error),
        }),
    }
}

#[async_trait]
impl Runtime for LinuxRuntime {
    fn version(&self) -> (String, String) {
        (
            RUNTIME_NAME.to_owned(),
            env!("CARGO_PKG_VERSION").to_owned(),
        )
    }

    async fn status(&self) -> Result<RuntimeStatus, RuntimeError> {
        let network_ready = match self.inner.network.ready().await {
            Ok(()) => None,
            Err(error) => Some(("NetworkPluginNotReady".to_owned(), error.to_string())),
        };
        let handler = |name: &str| RuntimeHandler {
            name: name.to_owned(),
            recursive_read_only_mounts: true,
            user_namespaces: true,
        };
        let named = self.inner.config.handlers.iter().map(|name| handler(name));
        Ok(RuntimeStatus {
            runtime_ready: None,
            network_ready,
            handlers: std::iter::once(handler("")).chain(named).collect(),
        })
    }

    async fn update_pod_cidrs(&self, pod_cidrs: Vec<String>) -> Result<(), RuntimeError> {
        let parsed = pod_cidrs
            .iter()
            .map(|text| {
                text.parse().map_err(|_| RuntimeError::Invalid {
                    field: "podCIDRs",
                    value: text.clone(),
                    reason: "not an IP network in CIDR notation".to_owned(),
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        self.inner
            .network
            .set_pod_cidrs(parsed)
            .await
            .map_err(|error| RuntimeError::Network {
                id: String::new(),
                source: Box::new(error),
            })
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.inner.events.subscribe()
    }

    async fn run_pod_sandbox(&self, config: &PodSandboxConfig) -> Result<String, RuntimeError> {
        let (inner, config) = (self.inner.clone(), config.clone());
        to_its_end(async move { sandbox::run(&inner, &config).await }).await
    }

    async fn stop_pod_sandbox(&self, sandbox_id: &str) -> Result<(), RuntimeError> {
        let (inner, sandbox_id) = (self.inner.clone(), sandbox_id.to_owned());
        to_its_end(async move { sandbox::stop(&inner, &sandbox_id).await }).await
    }

    async fn remove_pod_sandbox(&self, sandbox_id: &str) -> Result<(), RuntimeError> {
        let (inner, sandbox_id) = (self.inner.clone(), sandbox_id.to_owned());
        to_its_end(async move { sandbox::remove(&inner, &sandbox_id).await }).await
    }

    async fn pod_sandbox_status(&self, sandbox_id: &str) -> Result<PodSandboxStatus, RuntimeError> {
        self.inner
            .sandbox(sandbox_id)
            .map(|sandbox| sandbox.status())
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandboxStatus>, RuntimeError> {
        Ok(self
            .inner
            .sandboxes()
            .values()
            .map(|sandbox| sandbox.status())
            .collect())
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        config: &ContainerConfig,
    ) -> Result<String, RuntimeError> {
        let (inner, sandbox_id, config) =
            (self.inner.clone(), sandbox_id.to_owned(), config.clone());
        to_its_end(async move { container::create(&inner, &sandbox_id, &config).await }).await
    }

    async fn start_container(&self, container_id: &str) -> Result<(), RuntimeError> {
        let (inner, container_id) = (self.inner.clone(), container_id.to_owned());
        to_its_end(async move { container::start(&inner, &container_id).await }).await
    }

    async fn stop_container(
        &self,
        container_id: &str,
        timeout: Duration,
    ) -> Result<(), RuntimeError> {
        container::stop(&self.inner, container_id, timeout).await
    }

    async fn remove_container(&self, container_id: &str) -> Result<(), RuntimeError> {
        let (inner, container_id) = (self.inner.clone(), container_id.to_owned());
        to_its_end(async move { container::remove(&inner, &container_id).await }).await
    }

    async fn container_status(&self, container_id: &str) -> Result<ContainerStatus, RuntimeError> {
        self.inner
            .container(container_id)
            .map(|container| container.status())
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        Ok(self
            .inner
            .containers()
            .values()
            .map(|container| container.status())
            .collect())
    }

    async fn update_container_resources(
        &self,
        container_id: &str,
        resources: &Resources,
    ) -> Result<(), RuntimeError> {
        container::update(&self.inner, container_id, resources).await
    }

    async fn reopen_container_log(&self, container_id: &str) -> Result<(), RuntimeError> {
        container::reopen_log(&self.inner, container_id).await
    }

    async fn exec_sync(
        &self,
        container_id: &str,
        command: &[String],
        timeout: Option<Duration>,
        limit: usize,
    ) -> Result<ExecSyncResponse, RuntimeError> {
        session::exec_sync(&self.inner, container_id, command, timeout, limit).await
    }

    async fn exec(
        &self,
        container_id: &str,
        command: &[String],
        options: &StreamOptions,
    ) -> Result<Session, RuntimeError> {
        session::exec(&self.inner, container_id, command, options).await
    }

    async fn attach(
        &self,
        container_id: &str,
        options: &StreamOptions,
    ) -> Result<Session, RuntimeError> {
        session::attach(&self.inner, container_id, options).await
    }

    async fn port_forward(
        &self,
        sandbox_id: &str,
        port: u16,
    ) -> Result<Box<dyn Duplex>, RuntimeError> {
        session::port_forward(&self.inner, sandbox_id, port).await
    }

    async fn list_container_stats(&self) -> Result<Vec<ContainerStats>, RuntimeError> {
        stats::containers(&self.inner).await
    }

    async fn list_pod_sandbox_stats(&self) -> Result<Vec<PodSandboxStats>, RuntimeError> {
        stats::sandboxes(&self.inner).await
    }

    async fn list_container_details(&self) -> Result<BTreeMap<String, Detail>, RuntimeError> {
        stats::details(&self.inner).await
    }

    async fn pull_image(&self, image: &str, auths: &[ImageAuth]) -> Result<String, RuntimeError> {
        image::pull(&self.inner.images, image, auths).await
    }

    async fn image_status(&self, image: &str) -> Result<Option<ImageStatus>, RuntimeError> {
        image::status(&self.inner.images, image).await
    }

    async fn list_images(&self) -> Result<Vec<ImageStatus>, RuntimeError> {
        image::list(&self.inner.images).await
    }

    async fn remove_image(&self, image: &str) -> Result<(), RuntimeError> {
        image::remove(&self.inner.images, image).await
    }

    async fn image_fs_info(&self) -> Result<FsUsage, RuntimeError> {
        image::fs_info(&self.inner.images).await
    }
}
