//! The shell: plugins that come and go, and what they are asked for pods.
//!
//! Owns: one connection a plugin, the turn of each resource, and the checkpoint. Decides nothing ([`State`] does).
//! Upstream: manager.go.
//!
//! **Invariant:** what a plugin agreed to is on disk before the pod is told that it may run.

mod aligned;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use component_base::clock::Clock;
use component_base::tasks::spawn_helper;
use component_helpers::resources::is_extended_resource_name;
use futures::StreamExt as _;
use resource_managers::NumaMask;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use crate::injection::{self, AnswerError, Injection};
use crate::plugin::{self, CallError, Plugin, PluginOptions};
use crate::state::{
    AllocationError, Capacity, Choice, ContainerRequest, Held, Plan, PodRequest, State,
};
use crate::v1beta1::ContainerAllocateResponse;
use crate::{checkpoint, directory, name};

pub use aligned::Given;

/// Connected at a time; each has a socket and a stream.
const MOST_PLUGINS: usize = 256;

/// Why a pod, a container or a plugin does not get what it wants.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    #[error(transparent)]
    Allocation(#[from] AllocationError),
    #[error("endpoint {0} has been stopped")]
    Stopped(String),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("device plugin GetPreferredAllocation rpc failed with err: {0}")]
    Preferred(#[source] CallError),
    #[error("device plugin PreStartContainer rpc failed with err: {0}")]
    PreStart(#[source] CallError),
    #[error(
        "no devices found allocated in local cache for pod {pod}, container {container}, resource {resource}"
    )]
    NoDevices {
        pod: String,
        container: String,
        resource: String,
    },
    #[error("device plugin of {resource}: {source}")]
    Answer {
        resource: String,
        #[source]
        source: AnswerError,
    },
    #[error("failed to write checkpoint file {:?}: {source}", checkpoint::FILE)]
    Checkpoint {
        #[source]
        source: std::io::Error,
    },
    #[error("failed to get device plugin options: {0}")]
    Options(#[source] CallError),
    #[error("device plugin already connected: {}", .0.display())]
    AlreadyConnected(PathBuf),
    #[error("{MOST_PLUGINS} device plugins are connected, which is the most there can be")]
    TooMany,
}

/// Nobody can say what was given out. Another start may.
#[derive(Debug, thiserror::Error)]
#[error("read which devices were given out from {}: {source}", path.display())]
pub struct LoadError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

/// Told of what happens; it must not block.
pub trait Observer: Send + Sync + 'static {
    /// A plugin wants to register.
    fn registered(&self, resource: &str);
    /// A plugin was asked for devices.
    fn allocated(&self, resource: &str, took: Duration);
    /// Devices of the pod are in another state than before.
    fn health_changed(&self, pod: &str);
    /// Whether statuses of pods tell how their devices are.
    fn tells_health(&self) -> bool;
}

/// A plugin that is there.
struct Connected {
    socket: PathBuf,
    plugin: Arc<dyn Plugin>,
    options: PluginOptions,
    /// Of the task that follows its devices.
    follower: Option<AbortHandle>,
}

#[derive(Default)]
struct Inner {
    state: State,
    /// By resource; the newest last, and that one is asked.
    plugins: BTreeMap<String, Vec<Connected>>,
}

/// Held for as long as nobody else may take of a resource; by its name.
type Turns = BTreeMap<String, tokio::sync::OwnedMutexGuard<()>>;

/// Shared by all that ask.
pub struct Manager {
    dir: PathBuf,
    clock: Clock,
    observer: Arc<dyn Observer>,
    inner: Mutex<Inner>,
    /// One pod at a time takes of a resource; the other resources do not wait for it.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// What the file says. Held by the write itself, which goes on when nobody waits for it any more.
    written: Arc<tokio::sync::Mutex<Option<String>>>,
    /// The Node has something new to say.
    changed: Notify,
    /// What runs was looked at: what nobody names is nobody's.
    settled: watch::Sender<bool>,
}

impl Manager {
    /// `dir`: `<root-dir>/device-plugins`. Reads the checkpoint; blocking.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn load(
        dir: PathBuf,
        clock: Clock,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, LoadError> {
        let read = directory::read(&dir);
        let (pods, registered) = read.map_err(|source| LoadError {
            path: dir.join(checkpoint::FILE),
            source,
        })?;
        let state = State::restored(pods, registered, clock.monotonic());
        Ok(Self {
            dir,
            clock,
            observer,
            inner: Mutex::new(Inner {
                state,
                plugins: BTreeMap::new(),
            }),
            turns: Mutex::default(),
            written: Arc::default(),
            changed: Notify::new(),
            settled: watch::Sender::new(false),
        })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn observer(&self) -> &dyn Observer {
        self.observer.as_ref()
    }

    /// Resolves once the Node has something new to say; for one waiter. Cancel-safe.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// May a plugin that was found by its socket register? Upstream: `ValidatePlugin`.
    ///
    /// # Errors
    /// Why not.
    pub fn validate(&self, resource: &str, versions: &[String]) -> Result<(), String> {
        name::validate(resource, versions)
    }

    /// The plugin of the resource listens on the socket.
    ///
    /// # Errors
    /// It does not answer, or is here already.
    pub async fn connect(
        self: &Arc<Self>,
        resource: &str,
        socket: &Path,
    ) -> Result<(), DevicesError> {
        let plugin = plugin::connect(socket).await?;
        self.plugin_came(resource, socket, plugin).await
    }

    /// As [`Manager::connect`], for a plugin that is reached otherwise. `socket`: what it is told from others by.
    ///
    /// # Errors
    /// It does not answer, or is here already.
    pub async fn plugin_came(
        self: &Arc<Self>,
        resource: &str,
        socket: &Path,
        plugin: Arc<dyn Plugin>,
    ) -> Result<(), DevicesError> {
        let options = plugin.options().await.map_err(DevicesError::Options)?;
        let connected = Connected {
            socket: socket.to_owned(),
            plugin: plugin.clone(),
            options,
            follower: None,
        };
        self.enter(resource, connected)?;
        tracing::info!(resource, socket = %socket.display(), "Device plugin connected");
        let (this, name) = (self.clone(), resource.to_owned());
        let follower = spawn_helper("devices of a plugin", async move {
            this.follow(&name, plugin.as_ref()).await;
            this.leave(&name, |c| Arc::ptr_eq(&c.plugin, &plugin));
        });
        let mut inner = self.inner();
        let all = inner.plugins.get_mut(resource);
        if let Some(entry) = all.and_then(|all| all.iter_mut().find(|c| c.socket == socket)) {
            entry.follower = Some(follower.abort_handle());
        }
        drop(inner);
        self.changed.notify_one();
        Ok(())
    }

    fn enter(&self, resource: &str, connected: Connected) -> Result<(), DevicesError> {
        let mut inner = self.inner();
        if inner.plugins.values().map(Vec::len).sum::<usize>() >= MOST_PLUGINS {
            return Err(DevicesError::TooMany);
        }
        let all = inner.plugins.entry(resource.to_owned()).or_default();
        if all.iter().any(|c| c.socket == connected.socket) {
            return Err(DevicesError::AlreadyConnected(connected.socket));
        }
        all.push(connected);
        inner.state.plugin_came(resource);
        Ok(())
    }

    /// The plugin's socket is gone.
    pub fn disconnect(&self, resource: &str, socket: &Path) {
        self.leave(resource, |c| c.socket == socket);
    }

    fn leave(&self, resource: &str, is: impl Fn(&Connected) -> bool) {
        let mut inner = self.inner();
        let Some(all) = inner.plugins.get_mut(resource) else {
            return;
        };
        let Some(at) = all.iter().position(is) else {
            return;
        };
        let gone = all.remove(at);
        tracing::info!(resource, socket = %gone.socket.display(), "Device plugin disconnected");
        if all.is_empty() {
            inner.plugins.remove(resource);
            let now = self.clock.monotonic();
            inner.state.plugins_gone(resource, now);
            tracing::info!(resource, "Mark all resources Unhealthy for resource");
        }
        drop(inner);
        if let Some(follower) = gone.follower {
            follower.abort();
        }
        self.changed.notify_one();
    }

    /// Until the plugin ends.
    async fn follow(&self, resource: &str, plugin: &dyn Plugin) {
        let mut reports = match plugin.list_and_watch().await {
            Ok(reports) => reports,
            Err(error) => {
                tracing::error!(resource, %error, "ListAndWatch ended unexpectedly for device plugin");
                return;
            }
        };
        while let Some(report) = reports.next().await {
            let devices = match report {
                Ok(devices) => devices,
                Err(error) => {
                    tracing::error!(resource, %error, "ListAndWatch ended unexpectedly for device plugin");
                    return;
                }
            };
            let count = devices.len();
            let listed = self.inner().state.list(resource, devices);
            if listed.counts_changed {
                tracing::info!(resource, count, "Processed device updates for resource");
                self.changed.notify_one();
            } else {
                // Some plugins list the same again and again.
                tracing::debug!(resource, count, "Processed device updates for resource");
            }
            for pod in listed.pods {
                self.observer.health_changed(&pod);
            }
            if let Err(error) = self.write().await {
                tracing::error!(%error, "Writing checkpoint encountered");
            }
        }
        tracing::error!(
            resource,
            "ListAndWatch ended unexpectedly for device plugin"
        );
    }

    /// What the Node says now.
    pub async fn capacity(&self) -> Capacity {
        let (capacity, forgotten) = {
            let now = self.clock.monotonic();
            self.inner().state.capacity(now)
        };
        if forgotten && let Err(error) = self.write().await {
            tracing::error!(%error, "Failed to write checkpoint file");
        }
        capacity
    }

    /// The Node says what [`Manager::capacity`] did of removed resources. Upstream forgets them when it is asked.
    pub fn removal_is_told(&self, names: &BTreeSet<String>) {
        self.inner().state.removal_is_told(names);
    }

    /// Whether the resource is for this manager to give out.
    pub fn is_of_plugin(&self, resource: &str) -> bool {
        self.inner().state.is_of_plugin(resource)
    }

    /// Whether anything the pod wants is for this manager to give out.
    pub fn concerns(&self, pod: &PodRequest) -> bool {
        let limits = pod.containers.iter().flat_map(|c| &c.limits);
        let wanted = limits.filter(|(_, n)| **n > 0).map(|(name, _)| name);
        let wanted: Vec<&String> = wanted.filter(|n| is_extended_resource_name(n)).collect();
        if wanted.is_empty() {
            // Who wants no devices waits for nobody who does.
            return false;
        }
        let inner = self.inner();
        wanted.iter().any(|name| inner.state.is_of_plugin(name))
    }

    /// Every container of the pod gets its devices. Without them all it gets none but those it had.
    ///
    /// # Errors
    /// The first container that cannot have its own: the pod is rejected for good, as upstream.
    pub async fn allocate_pod(&self, pod: &PodRequest) -> Result<(), DevicesError> {
        // Kept until what cannot be kept is given back: who waits finds what is free then.
        let turns = self.turns(&pod.containers).await;
        let mut given = Vec::new();
        let outcome = self.allocate_all(pod, &turns, &mut given).await;
        if outcome.is_err() && !given.is_empty() {
            for (container, resource) in given {
                let mut inner = self.inner();
                inner.state.pods.remove(&pod.uid, container, resource);
            }
            self.write_or_tell().await;
        }
        outcome
    }

    async fn allocate_all<'a>(
        &self,
        pod: &'a PodRequest,
        turns: &Turns,
        given: &mut Vec<(&'a str, &'a str)>,
    ) -> Result<(), DevicesError> {
        for container in &pod.containers {
            self.allocate_container(pod, container, turns, None, given)
                .await?;
        }
        self.write().await
    }

    /// `given`: gets what the container did not have before, by container and resource.
    async fn allocate_container<'a>(
        &self,
        pod: &'a PodRequest,
        container: &'a ContainerRequest,
        turns: &Turns,
        affinity: Option<NumaMask>,
        given: &mut Vec<(&'a str, &'a str)>,
    ) -> Result<(), DevicesError> {
        for (resource, wanted) in &container.limits {
            let wanted = usize::try_from(*wanted).unwrap_or(0);
            if wanted > 0
                && turns.contains_key(resource)
                && self
                    .allocate(pod, &container.name, resource, wanted, affinity)
                    .await?
            {
                given.push((&container.name, resource));
            }
        }
        Ok(())
    }

    /// The turns of all that the containers want and that is for this manager to give out, before any plugin is asked: two
    /// pods that want the same two resources never get one each and go without the other. All pods wait in the order of the
    /// names, so none waits for one that waits for it.
    async fn turns(&self, containers: &[ContainerRequest]) -> Turns {
        let limits = containers.iter().flat_map(|c| &c.limits);
        let wanted = limits.filter(|(name, n)| **n > 0 && self.is_of_plugin(name));
        let names: BTreeSet<&String> = wanted.map(|(name, _)| name).collect();
        let mut turns = Turns::new();
        for name in names {
            let turn = self.turn(name).lock_owned().await;
            turns.insert(name.clone(), turn);
        }
        turns
    }

    /// As many as there are resources of plugins.
    fn turn(&self, resource: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody waits for those.
        turns.retain(|name, turn| name == resource || Arc::strong_count(turn) > 1);
        turns.entry(resource.to_owned()).or_default().clone()
    }

    /// Returns whether it has them from now on.
    async fn allocate(
        &self,
        pod: &PodRequest,
        container: &str,
        resource: &str,
        wanted: usize,
        affinity: Option<NumaMask>,
    ) -> Result<bool, DevicesError> {
        let choice = {
            let inner = self.inner();
            let mut reusable = inner.state.reusable(pod, container);
            let reusable = reusable.remove(resource).unwrap_or_default();
            let uid = &pod.uid;
            let plan = inner
                .state
                .plan(uid, container, resource, wanted, &reusable)?;
            match plan {
                Plan::Held => return Ok(false),
                Plan::Choose(choice) => match affinity {
                    Some(mask) => inner.state.align(choice, resource, mask),
                    None => choice,
                },
            }
        };
        let begin = self.clock.monotonic();
        let (plugin, options) = self.plugin(resource)?;
        let preferred = prefer(plugin.as_ref(), &options, &choice).await?;
        let chosen = choice.complete(&preferred);
        let answer = plugin.allocate(ids(&chosen)).await;
        let took = self.clock.monotonic() - begin;
        self.observer.allocated(resource, took);
        let answer = answer?;
        check(resource, &answer)?;
        let of = (pod.uid.as_str(), container, resource);
        self.inner().state.commit(of, &chosen, answer);
        tracing::info!(pod = pod.uid, container, resource, devices = ?chosen, "allocated devices");
        Ok(true)
    }

    fn plugin(&self, resource: &str) -> Result<(Arc<dyn Plugin>, PluginOptions), DevicesError> {
        let inner = self.inner();
        let newest = inner.plugins.get(resource).and_then(|all| all.last());
        let newest = newest.ok_or_else(|| DevicesError::Stopped(resource.to_owned()))?;
        Ok((newest.plugin.clone(), newest.options))
    }

    /// What the container that is about to start gets. `active`: its pod is not on its way out.
    ///
    /// # Errors
    /// A plugin wants to prepare its devices and cannot, or the container has none and gets none. A retry may help.
    pub async fn container_options(
        &self,
        pod: &PodRequest,
        container: &str,
        active: bool,
    ) -> Result<Injection, DevicesError> {
        let of_container = pod.containers.iter().find(|c| c.name == container);
        let limits = of_container.iter().flat_map(|c| &c.limits);
        let wanted = limits.filter(|(name, n)| **n > 0 && self.is_of_plugin(name));
        let wanted: Vec<&String> = wanted.map(|(name, _)| name).collect();
        let held = |resource: &str| {
            let inner = self.inner();
            inner.state.pods.devices(&pod.uid, container, resource)
        };
        if active && wanted.iter().any(|resource| held(resource).is_none()) {
            // It was admitted by a kubelet whose record is lost. DIFFERS: upstream prepares devices before, and fails for want of them.
            tracing::info!(
                pod = pod.uid,
                container,
                "Needs to re-allocate device plugin resources for pod"
            );
            let turns = self
                .turns(of_container.map_or(&[], std::slice::from_ref))
                .await;
            if let Some(of_container) = of_container {
                self.allocate_container(pod, of_container, &turns, None, &mut Vec::new())
                    .await?;
            }
            self.write().await?;
        }
        for resource in wanted {
            let held = held(resource);
            self.pre_start(pod, container, resource, held).await?;
        }
        let inner = self.inner();
        let held = inner.state.pods.container(&pod.uid, container);
        for (resource, allocation) in held.into_iter().flatten() {
            // A kubelet before this one may have taken what this one cannot carry out.
            check(resource, &allocation.response)?;
        }
        Ok(held.map(injection::merge).unwrap_or_default())
    }

    async fn pre_start(
        &self,
        pod: &PodRequest,
        container: &str,
        resource: &str,
        held: Option<BTreeSet<String>>,
    ) -> Result<(), DevicesError> {
        // One that is gone wants nothing.
        let Ok((plugin, options)) = self.plugin(resource) else {
            return Ok(());
        };
        if !options.pre_start_required {
            return Ok(());
        }
        let held = held.ok_or_else(|| DevicesError::NoDevices {
            pod: pod.uid.clone(),
            container: container.to_owned(),
            resource: resource.to_owned(),
        })?;
        let prepared = plugin.pre_start_container(ids(&held)).await;
        prepared.map_err(DevicesError::PreStart)
    }

    /// The health of what the container has, by resource and device; empty where nobody tells of it.
    pub fn health(&self, pod: &str, container: &str) -> BTreeMap<String, BTreeMap<String, bool>> {
        if !self.observer.tells_health() {
            return BTreeMap::new();
        }
        self.inner().state.health(pod, container)
    }

    /// What the container has.
    pub fn held(&self, pod: &str, container: &str) -> Vec<Held> {
        self.inner().state.held(pod, container)
    }

    /// Every healthy device, given out or not.
    pub fn allocatable(&self) -> Vec<Held> {
        self.inner().state.allocatable()
    }

    /// From now on what no pod has is free. Before, a pod that runs may not be known yet.
    pub fn settle(&self) {
        self.settled.send_replace(true);
    }

    pub fn is_settled(&self) -> bool {
        *self.settled.borrow()
    }

    /// Resolves once [`Manager::is_settled`]; cancel-safe.
    pub async fn until_settled(&self) {
        // The sender is ours.
        let _ = self.settled.subscribe().wait_for(|settled| *settled).await;
    }

    /// Frees what pods have that are not `live`. Upstream: `UpdateAllocatedDevices`.
    pub async fn retain(&self, live: impl Fn(&str) -> bool) {
        if self.is_settled() && self.inner().state.pods.retain(live) {
            self.write_or_tell().await;
        }
    }

    async fn write_or_tell(&self) {
        if let Err(error) = self.write().await {
            tracing::error!(%error, "Failed to write checkpoint file");
        }
    }

    /// Cancelled it is carried out all the same.
    async fn write(&self) -> Result<(), DevicesError> {
        let mut written = self.written.clone().lock_owned().await;
        let (pods, registered) = {
            let inner = self.inner();
            (inner.state.pods.clone(), inner.state.registered())
        };
        let dir = self.dir.clone();
        let done = directory::off_thread(move || {
            let text = checkpoint::encode(&pods, registered);
            if written.as_ref() == Some(&text) {
                return Ok(());
            }
            *written = None;
            directory::write(&dir, &text)?;
            *written = Some(text);
            Ok(())
        });
        let done = done.await;
        done.map_err(|source| DevicesError::Checkpoint { source })
    }
}

fn check(resource: &str, answer: &ContainerAllocateResponse) -> Result<(), DevicesError> {
    injection::check(answer).map_err(|source| DevicesError::Answer {
        resource: resource.to_owned(),
        source,
    })
}

fn ids(devices: &BTreeSet<String>) -> Vec<String> {
    devices.iter().cloned().collect()
}

/// Empty: the plugin has no opinion, or there is no choice.
async fn prefer(
    plugin: &dyn Plugin,
    options: &PluginOptions,
    choice: &Choice,
) -> Result<Vec<String>, DevicesError> {
    if choice.missing == 0 || !options.get_preferred_allocation_available {
        return Ok(Vec::new());
    }
    let available = ids(&choice.available.union(&choice.taken).cloned().collect());
    let size = choice.taken.len() + choice.missing;
    let preferred = plugin.preferred_allocation(available, ids(&choice.taken), size);
    preferred.await.map_err(DevicesError::Preferred)
}

#[cfg(test)]
mod tests;
