//! Plugins make themselves known by a socket in `plugins_registry`: one that comes is asked who it is, one that goes is forgotten.
//!
//! ```text
//! socket comes -> GetInfo -> PluginHandler of its type: validate, register -> NotifyRegistrationStatus
//! socket goes  -> PluginHandler::deregister            made anew: both, in this order
//! CSI drivers: register: NodeGetInfo -> Handler::install; deregister: Handler::uninstall
//! ```
//!
//! The kernel tells of changes (inotify). Each socket has a task of its own, so that one that does not answer holds up no other.
//! Upstream: pkg/kubelet/pluginmanager, `RegistrationHandler` in pkg/volume/csi/csi_plugin.go.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
pub use csi_spec::pluginregistration::DEVICE_PLUGIN;
use csi_spec::pluginregistration::registration_client::RegistrationClient;
use csi_spec::pluginregistration::{CSI_PLUGIN, InfoRequest, PluginInfo, RegistrationStatus};
use futures::{Stream, StreamExt};
use inotify::{Inotify, WatchMask};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::channel;
use crate::client::NodeInfo;
use crate::drivers::{Driver, Drivers, Settling};
use crate::sockets::{self, Sockets};
use crate::version::{Version, highest_supported};

/// How long a socket may take to be listened on; upstream: `dialTimeoutDuration`.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
const DIAL_RETRY: Duration = Duration::from_millis(100);
/// Upstream: the context of `GetInfo`.
const INFO_TIMEOUT: Duration = Duration::from_secs(1);
/// Upstream: `notifyTimeoutDuration`.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(5);
/// Between tries; upstream: `exponentialbackoff`.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(122);
/// A plugin makes its socket and more in one go.
const SETTLE: Duration = Duration::from_millis(10);
/// Only where inotify is not to be had.
const FALLBACK_PERIOD: Duration = Duration::from_secs(20);

/// Why a handler could not do its part.
pub type HandlerError = Box<dyn Error + Send + Sync>;

/// What the registration of a driver means for the cluster.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// The driver is here and says this of the node. Called again when it registers again.
    async fn install(&self, driver: &str, info: &NodeInfo) -> Result<(), HandlerError>;
    /// The driver is gone. Idempotent.
    async fn uninstall(&self, driver: &str) -> Result<(), HandlerError>;
}

/// What plugins of one type are for. Upstream: `PluginHandler` of pkg/kubelet/pluginmanager/cache.
#[async_trait]
pub trait PluginHandler: Send + Sync + 'static {
    /// Whether the plugin can be used here.
    ///
    /// # Errors
    /// Why not.
    fn validate(&self, name: &str, endpoint: &Path, versions: &[String]) -> Result<(), String>;
    /// It is here; `validate` took it.
    ///
    /// # Errors
    /// It is not to be used; nothing of it is left.
    async fn register(
        &self,
        name: &str,
        endpoint: &Path,
        versions: &[String],
    ) -> Result<(), HandlerError>;
    /// It is gone, or cannot be told that it is registered. Idempotent.
    async fn deregister(&self, name: &str, endpoint: &Path);
}

/// Why a plugin is not registered. A retry may help.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    #[error("RegisterPlugin error -- dial failed at socket {}, err: {source}", socket.display())]
    Dial {
        socket: PathBuf,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("RegisterPlugin error -- failed to get plugin info using RPC GetInfo at socket {}, err: {source}", socket.display())]
    Info {
        socket: PathBuf,
        #[source]
        source: Status,
    },
    #[error("RegisterPlugin error -- no handler registered for plugin type: {kind} at socket {}", socket.display())]
    Type { kind: String, socket: PathBuf },
    #[error("RegisterPlugin error -- plugin validation failed with err: {0}")]
    Validation(String),
    #[error("RegisterPlugin error -- plugin registration failed with err: {source}")]
    Install {
        #[source]
        source: HandlerError,
    },
    #[error("RegisterPlugin error -- failed to send registration status at socket {}, err: {source}", socket.display())]
    Notify {
        socket: PathBuf,
        #[source]
        source: Status,
    },
}

/// A plugin, as it said who it is.
#[derive(Clone)]
struct Known {
    handler: Arc<dyn PluginHandler>,
    name: String,
    endpoint: PathBuf,
}

/// Follows one directory.
pub struct Registrations {
    dir: PathBuf,
    /// By type.
    handlers: HashMap<&'static str, Arc<dyn PluginHandler>>,
    /// Until those that were there at the start were tried.
    settling: Mutex<Option<Arc<Settling>>>,
}

impl Registrations {
    /// `dir`: `<root-dir>/plugins_registry`. `others`: plugins that are no CSI drivers, by type.
    pub fn new(
        dir: PathBuf,
        drivers: Arc<Drivers>,
        handler: Arc<dyn Handler>,
        others: impl IntoIterator<Item = (&'static str, Arc<dyn PluginHandler>)>,
    ) -> Arc<Self> {
        let settling = Mutex::new(Some(drivers.settling()));
        let csi: Arc<dyn PluginHandler> = Arc::new(CsiPlugins { drivers, handler });
        Arc::new(Self {
            dir,
            handlers: [(CSI_PLUGIN, csi)].into_iter().chain(others).collect(),
            settling,
        })
    }

    /// Until it is dropped; the registrations stay then, as the drivers do.
    pub async fn run(self: Arc<Self>) {
        let mut tasks: HashMap<PathBuf, Registered> = HashMap::new();
        let mut known = Sockets::new();
        let (mut watches, mut events) = open_inotify();
        loop {
            let dir = self.dir.clone();
            let mut given = watches.take();
            let scan = move || {
                let found = std::fs::create_dir_all(&dir).and_then(|()| {
                    sockets::scan(&dir, &mut |dir| {
                        if let Some(watches) = &mut given {
                            watch(watches, dir);
                        }
                    })
                });
                (found, given)
            };
            // In its turn among the tasks where one thread does everything.
            let scanned = match host::alone::works_alone() {
                true => Handle::current().spawn(async move { scan() }),
                false => tokio::task::spawn_blocking(scan),
            };
            match scanned.await {
                Ok((found, given)) => {
                    watches = given;
                    self.apply(found, &mut known, &mut tasks).await;
                }
                Err(error) => tracing::error!(%error, "looking for plugins ended early"),
            }
            self.settling().take();
            wait(&mut events).await;
        }
    }

    async fn apply(
        self: &Arc<Self>,
        found: io::Result<Sockets>,
        known: &mut Sockets,
        tasks: &mut HashMap<PathBuf, Registered>,
    ) {
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(dir = %self.dir.display(), %error, "failed to traverse plugin socket path");
                return;
            }
        };
        let (gone, new) = sockets::diff(known, &found);
        *known = found;
        for path in gone {
            if let Some(task) = tasks.remove(&path) {
                task.end().await;
            }
        }
        for path in new {
            let (this, socket) = (self.clone(), path.clone());
            let (tell, told) = tokio::sync::watch::channel(None);
            let settling = self.settling().clone();
            let task = tokio::spawn(async move { this.keep(&socket, &tell, settling).await });
            tasks.insert(path, Registered { task, told });
        }
    }

    fn settling(&self) -> MutexGuard<'_, Option<Arc<Settling>>> {
        self.settling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers the plugin, however often it takes. `settling` is held for the first try.
    async fn keep(
        &self,
        socket: &Path,
        tell: &tokio::sync::watch::Sender<Option<Known>>,
        settling: Option<Arc<Settling>>,
    ) {
        let mut pause = FIRST_RETRY;
        let mut settling = settling;
        loop {
            let outcome = self.register(socket, tell).await;
            settling.take();
            match outcome {
                Ok(plugin) => {
                    tracing::info!(plugin, socket = %socket.display(), "registered plugin");
                    return;
                }
                Err(error) => {
                    tracing::error!(socket = %socket.display(), %error, "RegisterPlugin failed");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_RETRY);
        }
    }

    async fn register(
        &self,
        socket: &Path,
        tell: &tokio::sync::watch::Sender<Option<Known>>,
    ) -> Result<String, RegistrationError> {
        let mut plugin = RegistrationClient::new(dial(socket).await?);
        let mut request = Request::new(InfoRequest {});
        request.set_timeout(INFO_TIMEOUT);
        let info = plugin.get_info(request).await;
        let info = info.map_err(|source| RegistrationError::Info {
            socket: socket.to_owned(),
            source,
        })?;
        let info = info.into_inner();
        let known = match self.accept(socket, &info) {
            Ok(known) => known,
            Err(error) => {
                notify(&mut plugin, socket, Some(error.to_string())).await?;
                return Err(error);
            }
        };
        let (name, endpoint) = (&known.name, &known.endpoint);
        tracing::info!(plugin = name, endpoint = %endpoint.display(), "Register new plugin");
        // From here on its going is to be acted on.
        tell.send_replace(Some(known.clone()));
        let versions = &info.supported_versions;
        let registered = known.handler.register(name, endpoint, versions).await;
        if let Err(source) = registered {
            let error = RegistrationError::Install { source };
            tell.send_replace(None);
            notify(&mut plugin, socket, Some(error.to_string())).await?;
            return Err(error);
        }
        if let Err(error) = notify(&mut plugin, socket, None).await {
            tell.send_replace(None);
            known.handler.deregister(name, endpoint).await;
            return Err(error);
        }
        Ok(info.name)
    }

    /// Whether it is a plugin that can be used here.
    fn accept(&self, socket: &Path, info: &PluginInfo) -> Result<Known, RegistrationError> {
        let Some(handler) = self.handlers.get(info.r#type.as_str()) else {
            return Err(RegistrationError::Type {
                kind: info.r#type.clone(),
                socket: socket.to_owned(),
            });
        };
        let endpoint = match info.endpoint.as_str() {
            "" => socket.to_owned(),
            endpoint => PathBuf::from(endpoint),
        };
        let valid = handler.validate(&info.name, &endpoint, &info.supported_versions);
        valid.map_err(RegistrationError::Validation)?;
        Ok(Known {
            handler: handler.clone(),
            name: info.name.clone(),
            endpoint,
        })
    }
}

/// One socket's plugin, registered or about to be.
struct Registered {
    task: JoinHandle<()>,
    /// What is registered by it.
    told: tokio::sync::watch::Receiver<Option<Known>>,
}

impl Registered {
    async fn end(self) {
        self.task.abort();
        let _ = self.task.await;
        let known = self.told.borrow().clone();
        if let Some(known) = known {
            let plugin = &known.name;
            tracing::info!(plugin, "DeRegisterPlugin: the plugin's socket is gone");
            known.handler.deregister(plugin, &known.endpoint).await;
        }
    }
}

/// Drivers of volumes.
struct CsiPlugins {
    drivers: Arc<Drivers>,
    handler: Arc<dyn Handler>,
}

impl CsiPlugins {
    fn version(&self, driver: &str, versions: &[String]) -> Result<Version, String> {
        let existing = self.drivers.get(driver).map(|d| d.version);
        validate(versions, existing.as_ref())
    }

    async fn install(&self, driver: &str) -> Result<(), HandlerError> {
        let info = self.drivers.client(driver)?.node_info().await?;
        self.handler.install(driver, &info).await
    }

    async fn forget(&self, driver: &str) {
        self.drivers.remove(driver);
        if let Err(error) = self.handler.uninstall(driver).await {
            tracing::error!(driver, %error, "Error uninstalling CSI driver");
        }
    }
}

#[async_trait]
impl PluginHandler for CsiPlugins {
    fn validate(&self, name: &str, endpoint: &Path, versions: &[String]) -> Result<(), String> {
        let version = self.version(name, versions);
        version.map(drop).map_err(|why| {
            let endpoint = endpoint.display();
            format!("validation failed for CSI Driver {name} at endpoint {endpoint}: {why}")
        })
    }

    async fn register(
        &self,
        name: &str,
        endpoint: &Path,
        versions: &[String],
    ) -> Result<(), HandlerError> {
        let version = self.version(name, versions)?;
        let endpoint = endpoint.to_owned();
        self.drivers.set(name, Driver { endpoint, version });
        let installed = self.install(name).await;
        if installed.is_err() {
            self.forget(name).await;
        }
        installed
    }

    async fn deregister(&self, name: &str, _: &Path) {
        self.forget(name).await;
    }
}

/// The highest version that both know. Of two of one name the newer wins, never an equal. Upstream: `validateVersions`.
fn validate(versions: &[String], existing: Option<&Version>) -> Result<Version, String> {
    if versions.is_empty() {
        return Err("Plugin returned an empty list for supported versions".to_owned());
    }
    let highest = highest_supported(versions).map_err(|why| {
        let list = versions.join(" ");
        format!("None of the versions specified [{list}] are supported. err={why}")
    })?;
    match existing {
        Some(existing) if *existing >= highest => Err(format!(
            "Another driver with the same name is already registered with a higher supported version: \"{existing}\""
        )),
        _ => Ok(highest),
    }
}

/// Waits until somebody listens.
async fn dial(socket: &Path) -> Result<Channel, RegistrationError> {
    let begin = Instant::now();
    loop {
        match channel::connect(socket).await {
            Ok(channel) => return Ok(channel),
            Err(source) if begin.elapsed() >= DIAL_TIMEOUT => {
                return Err(RegistrationError::Dial {
                    socket: socket.to_owned(),
                    source,
                });
            }
            Err(_) => tokio::time::sleep(DIAL_RETRY).await,
        }
    }
}

/// Tells the plugin how its registration went; `None`: well.
async fn notify(
    plugin: &mut RegistrationClient<Channel>,
    socket: &Path,
    failure: Option<String>,
) -> Result<(), RegistrationError> {
    let mut request = Request::new(RegistrationStatus {
        plugin_registered: failure.is_none(),
        error: failure.unwrap_or_default(),
    });
    request.set_timeout(NOTIFY_TIMEOUT);
    let sent = plugin.notify_registration_status(request).await;
    sent.map(drop).map_err(|source| RegistrationError::Notify {
        socket: socket.to_owned(),
        source,
    })
}

type Events = inotify::EventStream<Vec<u8>>;

fn open_inotify() -> (Option<inotify::Watches>, Option<Events>) {
    let opened = Inotify::init().and_then(|inotify| {
        let watches = inotify.watches();
        Ok((watches, inotify.into_event_stream(vec![0; 4096])?))
    });
    match opened {
        Ok((watches, events)) => (Some(watches), Some(events)),
        Err(error) => {
            tracing::warn!(%error, "no inotify: plugins are looked for every {} s", FALLBACK_PERIOD.as_secs());
            (None, None)
        }
    }
}

fn watch(watches: &mut inotify::Watches, dir: &Path) {
    let mask = WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::ONLYDIR;
    // A directory that went meanwhile needs no watch.
    if let Err(error) = watches.add(dir, mask)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::error!(dir = %dir.display(), %error, "failed to watch for plugins");
    }
}

/// Until something may have changed. Events that were lost are events, too.
async fn wait(events: &mut Option<Events>) {
    let next = match events {
        Some(events) => next_of(events).await,
        None => false,
    };
    if next {
        tokio::time::sleep(SETTLE).await;
    } else {
        *events = None;
        tokio::time::sleep(FALLBACK_PERIOD).await;
    }
}

async fn next_of(
    events: &mut (impl Stream<Item = io::Result<inotify::EventOwned>> + Unpin),
) -> bool {
    matches!(events.next().await, Some(Ok(_)))
}

#[cfg(test)]
mod tests;
