//! [`VolumeManager`]: sets up the volumes of pods, keeps their content fresh, and takes them away.
//!
//! One pod's calls take turns; those of different pods run at the same time. Nothing is remembered that matters: after
//! a restart everything is found again on disk and in the kernel's mount table.

mod drivers;
mod failure;
mod wanted;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::claim::{self, Persistent};
use crate::csi::{self, CsiVolumes};
use crate::layout::{Layout, check_component};
use crate::location::VolumeLocation;
use crate::plugin::{Mounter, Ownership, SetUpError};
use crate::reconcile::{Action, Observed, reconcile};
use crate::source::{ObjectSource, ServiceAccountToken, SourceError, TokenRequest};
use crate::sub_path::{self, SubPathError};
use crate::tear_down::{self, Report, TearDownError};
use crate::token::TokenCache;
use crate::usage::{DiskUsage, disk_usage};
use crate::{local, nfs};

pub use self::drivers::{CsiHost, Expanded};
pub use self::failure::{SetUpFailure, VolumeError};
use self::wanted::{Wanted, desired, mounted_volumes, observe_dirs, used};

/// A volume that is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodVolume {
    pub name: String,
    /// `kubernetes.io/configmap`, …
    pub plugin: &'static str,
    pub location: VolumeLocation,
    /// Containers get it read-only whatever their mount says.
    pub read_only: bool,
}

impl PodVolume {
    /// `None` for an image and a device.
    pub fn host_path(&self) -> Option<&Path> {
        match &self.location {
            VolumeLocation::Path(path) => Some(path),
            VolumeLocation::Device(_) | VolumeLocation::Image { .. } => None,
        }
    }
}

/// The volumes of one pod that some container mounts, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodVolumes(BTreeMap<String, PodVolume>);

impl PodVolumes {
    pub fn get(&self, name: &str) -> Option<&PodVolume> {
        self.0.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &PodVolume> {
        self.0.values()
    }
}

/// What is known of a pod besides the disk: bounded by the pods of the node.
#[derive(Debug)]
struct PodState {
    turn: Arc<Semaphore>,
    /// Volumes without a directory of their own that were set up, with their plugin: not checked again.
    unmanaged: BTreeMap<String, (&'static str, VolumeLocation)>,
    /// What is behind the claims that its volumes name, by volume: a bound claim stays what it is.
    persistent: BTreeMap<String, Persistent>,
    /// When it was last looked whether one has grown.
    expansion_looked: Option<std::time::Instant>,
    /// Of each kind: volumes that are wanted, and those that are there.
    counts: BTreeMap<String, (u64, u64)>,
    /// What was made larger before containers had it, to be told.
    expanded: Vec<Expanded>,
}

impl Default for PodState {
    fn default() -> Self {
        Self {
            turn: Arc::new(Semaphore::new(1)),
            unmanaged: BTreeMap::new(),
            persistent: BTreeMap::new(),
            expansion_looked: None,
            counts: BTreeMap::new(),
            expanded: Vec::new(),
        }
    }
}

/// Owns the volumes below one kubelet root directory. Cheap to clone.
#[derive(Clone)]
pub struct VolumeManager {
    inner: Arc<Inner>,
}

struct Inner {
    layout: Layout,
    source: Arc<dyn ObjectSource>,
    tokens: TokenCache,
    /// Those that are in no volume: nothing here renews them.
    other_tokens: TokenCache,
    pods: Mutex<HashMap<String, PodState>>,
    observer: Observer,
    csi: Arc<CsiVolumes>,
}

/// Told of every volume that was set up or could not be: its plugin's name, whether it went well, how long it took.
pub type Observer = Arc<dyn Fn(&'static str, bool, std::time::Duration) + Send + Sync>;

impl VolumeManager {
    /// `root_dir`: the kubelet's `--root-dir`. Links in it are resolved now, if it exists: the kernel's mount table has none.
    pub fn new(root_dir: PathBuf, source: Arc<dyn ObjectSource>) -> Self {
        let host = CsiHost {
            drivers: Arc::new(::csi::Drivers::new(Arc::new(|_| {}))),
            node_name: String::new(),
        };
        Self::observed(root_dir, source, host, Arc::new(|_, _, _| {}))
    }

    /// As [`Self::new`], with the drivers of the node, and tells `observer` of what is set up. Reads what an earlier kubelet left.
    pub fn observed(
        root_dir: PathBuf,
        source: Arc<dyn ObjectSource>,
        host: CsiHost,
        observer: Observer,
    ) -> Self {
        let root_dir = std::fs::canonicalize(&root_dir)
            .or_else(|_| std::path::absolute(&root_dir))
            .unwrap_or(root_dir);
        let layout = Layout::new(root_dir);
        let csi = CsiVolumes::new(layout.clone(), source.clone(), host.drivers, host.node_name);
        let inner = Inner {
            layout,
            source,
            csi: Arc::new(csi),
            tokens: TokenCache::default(),
            other_tokens: TokenCache::default(),
            pods: Mutex::default(),
            observer,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Sets up every volume that a container of `pod` mounts, and brings live content up to date. Idempotent.
    /// A volume that fails does not hold up the others.
    ///
    /// # Errors
    /// [`VolumeError::SetUp`] with every volume that failed.
    pub async fn mount_pod(&self, pod: &Pod) -> Result<PodVolumes, VolumeError> {
        let uid = pod_uid(pod)?;
        let _turn = self.turn(uid).await;
        let mut failures = self.resolve_claims(pod, uid).await;
        let unresolved = !failures.is_empty();
        let persistent = self.persistent(uid);
        let republished = self.republished(pod, &persistent).await;
        let (desired, refused) = desired(pod, &persistent, &republished);
        failures.extend(refused);
        let actions = {
            let observed = self.observe(uid).await?;
            let wants: Vec<_> = desired.iter().map(|wanted| wanted.want.clone()).collect();
            reconcile(&wants, &observed)
        };
        if !unresolved {
            // What a claim that cannot be read stands for is not known to be stale.
            self.tear_down_stale(uid, &actions).await;
        }
        let kept: BTreeSet<&str> = actions
            .iter()
            .filter_map(|a| match a {
                Action::Keep { volume } => Some(volume.as_str()),
                _ => None,
            })
            .collect();
        let results = join_all(desired.iter().map(|wanted| {
            let keep = kept.contains(wanted.want.name.as_str());
            async move { (wanted, self.set_up(pod, uid, wanted, keep).await) }
        }))
        .await;
        let mut volumes = PodVolumes::default();
        let mut counts: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for (wanted, result) in results {
            let count = counts.entry(wanted.kind()).or_default();
            count.0 += 1;
            count.1 += u64::from(result.is_ok());
            let name = wanted.volume.name.clone();
            match result {
                Ok(location) => {
                    let persistent = wanted.persistent;
                    let own = wanted.volume.csi.as_ref();
                    let volume = PodVolume {
                        name: name.clone(),
                        plugin: wanted.plugin.name(),
                        location,
                        read_only: wanted.plugin.read_only()
                            || persistent.is_some_and(|p| p.read_only)
                            || own.is_some_and(|csi| csi.read_only == Some(true)),
                    };
                    volumes.0.insert(name, volume);
                }
                Err(source) => failures.push(wanted.failure(source)),
            }
        }
        self.pods().entry(uid.to_owned()).or_default().counts = counts;
        if failures.is_empty() {
            Ok(volumes)
        } else {
            Err(VolumeError::SetUp { failures })
        }
    }

    /// Brings the live content (configMap, secret, projected, downwardAPI) of a mounted pod up to date. What is not
    /// set up yet is left for [`mount_pod`](Self::mount_pod).
    ///
    /// # Errors
    /// [`VolumeError::SetUp`]; the old content stays.
    pub async fn refresh_pod(&self, pod: &Pod) -> Result<(), VolumeError> {
        let uid = pod_uid(pod)?;
        let _turn = self.turn(uid).await;
        let persistent = self.persistent(uid);
        let republished = self.republished(pod, &persistent).await;
        let (desired, _) = desired(pod, &persistent, &republished);
        let observed = self.observe(uid).await?;
        let wants: Vec<_> = desired.iter().map(|wanted| wanted.want.clone()).collect();
        let actions = reconcile(&wants, &observed);
        let refresh = desired
            .iter()
            .zip(&actions)
            .filter(|(_, action)| matches!(action, Action::Refresh { .. }));
        let results = join_all(refresh.map(|(wanted, _)| async move {
            self.set_up(pod, uid, wanted, false)
                .await
                .map_err(|source| wanted.failure(source))
        }))
        .await;
        let failures: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        if failures.is_empty() {
            Ok(())
        } else {
            Err(VolumeError::SetUp { failures })
        }
    }

    /// The volumes of all pods, of each kind (`kubernetes.io/secret`, `kubernetes.io/csi:DRIVER`): how many are wanted, and how
    /// many are there.
    pub fn counts(&self) -> BTreeMap<String, (u64, u64)> {
        let mut sums: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for state in self.pods().values() {
            for (kind, (wanted, there)) in &state.counts {
                let sum = sums.entry(kind.clone()).or_default();
                sum.0 += wanted;
                sum.1 += there;
            }
        }
        sums
    }

    /// When a token of this pod wants renewal: call [`refresh_pod`](Self::refresh_pod) then. `None`: it has none.
    pub fn next_refresh(&self, pod_uid: &str) -> Option<Timestamp> {
        self.inner.tokens.next_renewal(pod_uid)
    }

    /// A token of a pod that goes into no volume of it; kept and renewed as those.
    ///
    /// # Errors
    /// The API server refused or did not answer, and no token is left.
    pub async fn service_account_token(
        &self,
        request: &TokenRequest,
    ) -> Result<ServiceAccountToken, SourceError> {
        let (now, tokens) = (Timestamp::now(), &self.inner.other_tokens);
        // A pod may ask after it was forgotten.
        tokens.drop_expired(now);
        tokens.get(self.inner.source.as_ref(), request, now).await
    }

    /// Takes all volumes of a pod away; its containers must be gone. Idempotent.
    ///
    /// # Errors
    /// Everything that could not be taken away; a retry may help.
    pub async fn unmount_pod(&self, uid: &str) -> Result<(), VolumeError> {
        check_component("metadata.uid", uid).map_err(VolumeError::Pod)?;
        let turn = self.turn(uid).await;
        self.unpublish(uid).await?;
        let (inner, pod) = (self.inner.clone(), uid.to_owned());
        blocking(move || tear_down::tear_down_pod(&inner.layout, &pod)).await??;
        self.forget(uid, turn);
        Ok(())
    }

    /// Whether any volume of the pod is left on the node.
    pub async fn has_volumes(&self, uid: &str) -> Result<bool, VolumeError> {
        check_component("metadata.uid", uid).map_err(VolumeError::Pod)?;
        let (inner, uid) = (self.inner.clone(), uid.to_owned());
        blocking(move || {
            let mut report = Report::default();
            let found = !tear_down::volume_dirs(&inner.layout, &uid, &mut report).is_empty()
                || !inner.csi.block_devices(&uid).is_empty();
            report.finish().map(|()| found)
        })
        .await?
        .map_err(VolumeError::from)
    }

    /// Takes away volumes and directory of one pod that no longer exists and has no containers. Idempotent.
    ///
    /// # Errors
    /// Everything that could not be taken away; a retry may help.
    pub async fn remove_pod(&self, uid: &str) -> Result<(), VolumeError> {
        check_component("metadata.uid", uid).map_err(VolumeError::Pod)?;
        let turn = self.turn(uid).await;
        self.unpublish(uid).await?;
        let (inner, pod) = (self.inner.clone(), uid.to_owned());
        blocking(move || tear_down::remove_pod_dir(&inner.layout, &pod)).await??;
        self.forget(uid, turn);
        Ok(())
    }

    /// [`remove_pod`](Self::remove_pod) for every pod directory whose UID is not `live`, which is asked anew for
    /// each: the ones before it took their time. Returns the UIDs removed.
    ///
    /// # Errors
    /// What was left of any of them, after all were tried.
    pub async fn orphans(&self, live: impl Fn(&str) -> bool) -> Result<Vec<String>, VolumeError> {
        let inner = self.inner.clone();
        let (found, report) = blocking(move || {
            let mut report = Report::default();
            let names = tear_down::names(&inner.layout.pods(), &mut report);
            (names, report)
        })
        .await?;
        let (mut removed, mut report) = (Vec::new(), report);
        for uid in found {
            if live(&uid) {
                continue;
            }
            match self.remove_pod(&uid).await {
                Ok(()) => removed.push(uid),
                Err(VolumeError::TearDown(error)) => report.extend(error),
                Err(error) => return Err(error),
            }
        }
        let left = self.inner.csi.unstage_unused().await;
        report.extend(TearDownError { failures: left });
        report.finish()?;
        Ok(removed)
    }

    /// The path on the node of `sub_path` in a volume that is set up: created if missing, and pinned so that no
    /// container can redirect it. `index`: that of the mount in the container's `volumeMounts`.
    ///
    /// # Errors
    /// The texts are fit for events; log the sources.
    pub async fn sub_path(
        &self,
        pod_uid: &str,
        volume: &PodVolume,
        container: &str,
        index: usize,
        sub_path: &str,
    ) -> Result<PathBuf, SubPathError> {
        sub_path::validate(sub_path)?;
        let (name, container) = (volume.name.clone(), container.to_owned());
        let Some(dir) = volume.host_path().map(Path::to_owned) else {
            return Err(SubPathError::Image {
                volume: name,
                container,
            });
        };
        let target = self
            .inner
            .layout
            .sub_path(pod_uid, &name, &container, index);
        let sub_path = PathBuf::from(sub_path);
        let work = {
            let target = target.clone();
            let (name, container) = (name.clone(), container.clone());
            move || {
                sub_path::safe_make_dir(&dir, &sub_path).map_err(|source| {
                    SubPathError::Create {
                        volume: name.clone(),
                        container: container.clone(),
                        source,
                    }
                })?;
                sub_path::prepare_safe_sub_path(&dir, &sub_path, &target).map_err(|source| {
                    SubPathError::Prepare {
                        volume: name,
                        container,
                        source,
                    }
                })
            }
        };
        match crate::threads::spawn_blocking(work).await {
            Ok(result) => result.map(|()| target),
            Err(error) => Err(SubPathError::Prepare {
                volume: name,
                container,
                source: std::io::Error::other(error),
            }),
        }
    }

    /// Disk used by each volume of a pod that lives in the pod's own directory. Walks the files.
    pub async fn usage(&self, pod_uid: &str) -> Result<BTreeMap<String, DiskUsage>, VolumeError> {
        check_component("metadata.uid", pod_uid).map_err(VolumeError::Pod)?;
        let (inner, uid) = (self.inner.clone(), pod_uid.to_owned());
        blocking(move || {
            let dirs = tear_down::volume_dirs(&inner.layout, &uid, &mut Report::default());
            // What outlives the pod is not its own use.
            let own = dirs
                .into_iter()
                .filter(|(plugin, _)| ![local::NAME, nfs::NAME, csi::NAME].contains(&&**plugin));
            let usage = own.filter_map(|(plugin, volume)| {
                let usage = disk_usage(&inner.layout.volume(&uid, &plugin, &volume)).ok()?;
                Some((volume, usage))
            });
            usage.collect()
        })
        .await
    }

    /// Looks up what is behind the claims of the volumes that containers mount, once for each.
    async fn resolve_claims(&self, pod: &Pod, uid: &str) -> Vec<SetUpFailure> {
        let known = self.persistent(uid);
        let claims = mounted_volumes(pod).filter_map(|volume| {
            let claim = claim::claim_of(pod, volume)?;
            (!known.contains_key(&volume.name)).then_some((volume, claim))
        });
        let source = &*self.inner.source;
        let results = join_all(claims.map(|(volume, (name, read_only))| async move {
            let used = used(pod, &volume.name);
            let found = claim::resolve(source, pod, volume, (&name, read_only), used).await;
            (volume.name.clone(), found)
        }))
        .await;
        let mut failures = Vec::new();
        for (volume, result) in results {
            match result {
                Ok(found) => {
                    let mut pods = self.pods();
                    let state = pods.entry(uid.to_owned()).or_default();
                    if found.outgrown {
                        state.expansion_looked = None;
                    } else if state.persistent.is_empty() {
                        // It was just looked at.
                        state.expansion_looked = Some(std::time::Instant::now());
                    }
                    state.persistent.insert(volume, found);
                }
                Err(source) => failures.push(SetUpFailure {
                    name: volume.clone(),
                    block: false,
                    volume,
                    source: source.into(),
                }),
            }
        }
        failures
    }

    fn persistent(&self, uid: &str) -> BTreeMap<String, Persistent> {
        let pods = self.pods();
        pods.get(uid)
            .map_or_else(BTreeMap::new, |state| state.persistent.clone())
    }

    async fn set_up(
        &self,
        pod: &Pod,
        uid: &str,
        wanted: &Wanted<'_>,
        keep: bool,
    ) -> Result<VolumeLocation, SetUpError> {
        let inner = &*self.inner;
        let (plugin, name) = (wanted.plugin, &wanted.volume.name);
        let outgrown = wanted.persistent.filter(|behind| behind.outgrown);
        if keep && let Some(location) = self.kept(uid, wanted) {
            if let Some(behind) = outgrown {
                self.expand_first(uid, name, behind).await?;
            }
            return Ok(location);
        }
        let mounter = Mounter {
            layout: &inner.layout,
            source: &*inner.source,
            tokens: &inner.tokens,
            csi: &inner.csi,
            now: Timestamp::now(),
            pod,
            pod_uid: uid,
            volume: &wanted.volume,
            persistent: wanted.persistent,
            directory: &wanted.want.name,
            ownership: Ownership::of(pod),
        };
        let begin = std::time::Instant::now();
        let outcome = plugin.set_up(&mounter).await;
        (inner.observer)(plugin.name(), outcome.is_ok(), begin.elapsed());
        let location = outcome?;
        if let Some(behind) = outgrown {
            self.expand_first(uid, name, behind).await?;
        }
        if !wanted.managed {
            self.pods()
                .entry(uid.to_owned())
                .or_default()
                .unmanaged
                .insert(name.clone(), (plugin.name(), location.clone()));
        }
        Ok(location)
    }

    /// What is on the node of this pod.
    async fn observe(&self, uid: &str) -> Result<Vec<Observed>, VolumeError> {
        let unmanaged: Vec<_> = self
            .pods()
            .get(uid)
            .map(|p| {
                let set_up = p.unmanaged.iter();
                set_up
                    .map(|(name, (plugin, _))| (name.clone(), *plugin))
                    .collect()
            })
            .unwrap_or_default();
        let (inner, uid) = (self.inner.clone(), uid.to_owned());
        let mut observed = blocking(move || observe_dirs(&inner, &uid)).await??;
        observed.extend(unmanaged.into_iter().map(|(name, plugin)| Observed {
            name,
            plugin: plugin.to_owned(),
            ready: true,
            is_mount: false,
        }));
        Ok(observed)
    }

    /// Volumes of a kind with a directory that no container mounts any more; a failure waits for `unmount_pod`.
    async fn tear_down_stale(&self, uid: &str, actions: &[Action]) {
        for action in actions {
            let Action::TearDown { plugin, volume } = action else {
                continue;
            };
            let is_unmanaged = |state: &PodState| {
                let known = state.unmanaged.get(volume);
                known.is_some_and(|(its, _)| its == plugin)
            };
            if self.pods().get(uid).is_some_and(is_unmanaged) {
                continue;
            }
            if plugin == csi::NAME {
                let undone = self.inner.csi.unpublish(uid, volume).await;
                if let Err(error) = undone {
                    tracing::warn!(uid, %error, "a volume that is not used any more was not taken away");
                    continue;
                }
            }
            let (inner, pod) = (self.inner.clone(), uid.to_owned());
            let (plugin, volume) = (plugin.clone(), volume.clone());
            let result = blocking(move || {
                tear_down::tear_down_volume(&inner.layout, &pod, &plugin, &volume)
            })
            .await;
            match result {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(uid, %error, "a volume that is not used any more was not taken away")
                }
                Err(error) => {
                    tracing::warn!(uid, %error, "a volume that is not used any more was not taken away")
                }
            }
        }
    }

    fn pods(&self) -> MutexGuard<'_, HashMap<String, PodState>> {
        self.inner
            .pods
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other call works on this pod.
    async fn turn(&self, uid: &str) -> OwnedSemaphorePermit {
        let turn = self.pods().entry(uid.to_owned()).or_default().turn.clone();
        turn.acquire_owned()
            .await
            .expect("the semaphore is never closed")
    }

    fn forget(&self, uid: &str, turn: OwnedSemaphorePermit) {
        self.inner.tokens.forget_pod(uid);
        self.inner.other_tokens.forget_pod(uid);
        let mut pods = self.pods();
        if let Some(state) = pods.get_mut(uid) {
            state.unmanaged.clear();
            state.persistent.clear();
            state.expansion_looked = None;
            state.expanded.clear();
            state.counts.clear();
            // Two: the map's and the permit's. More: someone waits for a turn and must find the same queue.
            if Arc::strong_count(&state.turn) <= 2 {
                pods.remove(uid);
            }
        }
        drop(turn);
    }
}

fn pod_uid(pod: &Pod) -> Result<&str, VolumeError> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    check_component("metadata.uid", uid).map_err(VolumeError::Pod)?;
    Ok(uid)
}

/// File system work, off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, VolumeError> {
    crate::threads::spawn_blocking(work)
        .await
        .map_err(|error| VolumeError::Interrupted(error.to_string()))
}

#[cfg(test)]
#[path = "manager/tests.rs"]
mod tests;
