//! The image store's front door: names, layers and holds, and the records of them on disk.
//!
//! State in memory mirrors the records; a record is on disk before it is in memory. An image's record says so until all
//! it stands on has reached the disk: after a power cut such an image is forgotten. A layer no record names is removed at
//! the next start.

mod gc;
mod inner;
mod open;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oci_spec::image::ImageConfiguration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::blocking::blocking;
use crate::image::{Image, Usage};
use crate::layout::{HoldRecord, ImageRecord, LayerRecord, Layout, VERSION};
use crate::reference::{Reference, is_hex_id};
use crate::registry::Registry;
use crate::unpack::{UnpackError, unpack_layer};
pub(crate) use inner::InstallError;

/// Shortest part of an id that may stand for the whole.
const MIN_ID_PREFIX: usize = 4;
/// What all unpacking of a store may take of memory at a time, in parts. A layer of gzip takes one part: a small window,
/// buffers, names, in all some 8 MiB (after bounds that only a made-up layer meets, 90 MiB). A layer of zstd takes
/// all: its window alone may be 128 MiB.
const UNPACK_PERMITS: u32 = 3;
/// Longest name of a holder.
const HOLDER_LENGTH_MAX: usize = 200;

/// How an [`ImageStore`] is set up.
#[derive(Clone, Debug)]
pub struct ImageStoreConfig {
    /// Everything the store owns lies below this directory.
    pub root: PathBuf,
    /// Mirrors and certificates by registry: `<dir>/<host>/hosts.toml`. Upstream: `/etc/containerd/certs.d`.
    pub registry_config_dir: PathBuf,
    /// Layers of one image that download at a time. Upstream: containerd's `max_concurrent_downloads`, 3.
    pub max_parallel_downloads: usize,
    pub user_agent: String,
}

impl Default for ImageStoreConfig {
    fn default() -> Self {
        Self {
            root: "/var/lib/gantry/images".into(),
            registry_config_dir: "/etc/containerd/certs.d".into(),
            max_parallel_downloads: 3,
            user_agent: format!("gantry/{}", env!("CARGO_PKG_VERSION")),
        }
    }
}

/// Why the store refused.
#[derive(Debug, thiserror::Error)]
pub enum ImageStoreError {
    #[error("image {image:?} not found")]
    NotFound { image: String },
    #[error("invalid {field} {value:?}: {reason}")]
    Invalid {
        field: &'static str,
        value: String,
        reason: String,
    },
    /// A newer program wrote this store.
    #[error("image store {path:?} has version {found:?}, this program knows {known}")]
    Version {
        path: PathBuf,
        found: String,
        known: u32,
    },
    /// Another process has this store open.
    #[error("image store {path:?} is in use by another process")]
    Locked { path: PathBuf },
    #[error("{context}: {source}")]
    Io {
        context: String,
        #[source]
        source: io::Error,
    },
}

impl ImageStoreError {
    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source }
    }
}

/// The node's images. Cheap to clone; every clone is the same store.
#[derive(Clone)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: ImageStoreConfig,
    pub(crate) layout: Layout,
    pub(crate) registry: Registry,
    /// Held by the one thread that changes records, over its disk writes. Never across an await.
    writer: Mutex<()>,
    state: Mutex<State>,
    flights: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// See [`UNPACK_PERMITS`].
    unpacking: Arc<Semaphore>,
    /// The kernel's lock on the root, for as long as the store is open.
    _lock: std::fs::File,
}

#[derive(Default)]
pub(crate) struct State {
    images: BTreeMap<String, Known>,
    layers: HashMap<String, LayerRecord>,
    holds: BTreeMap<String, HoldRecord>,
    /// Holders whose record cannot be read. While there is one, no layer is removed.
    torn_holds: BTreeSet<String>,
    /// Digests and chain ids that pulls under way need.
    leases: HashMap<String, usize>,
    /// Downloaded layers that are unpacked; the file goes when the last lease on it does.
    spent: HashSet<String>,
}

struct Known {
    record: ImageRecord,
    config: Arc<ImageConfiguration>,
}

impl Known {
    fn image(&self) -> Image {
        Image {
            id: self.record.id.clone(),
            repo_tags: self.record.repo_tags.clone(),
            repo_digests: self.record.repo_digests.clone(),
            size_bytes: self.record.size_bytes,
            config: (*self.config).clone(),
            layers: self.record.layers.clone(),
            pinned: self.record.pinned,
        }
    }
}

impl ImageStore {
    /// Opens (or makes) the store, and clears away what a crash left half done.
    ///
    /// # Errors
    /// The directory cannot be used, another process has it open, or a newer program wrote it.
    pub async fn open(config: ImageStoreConfig) -> Result<Self, ImageStoreError> {
        let inner = blocking(move || open::open(config)).await?;
        let inner = Arc::new(inner);
        let unsynced: Vec<String> = inner
            .state()
            .images
            .values()
            .filter(|known| known.record.unsynced_boot.is_some())
            .map(|known| known.record.id.clone())
            .collect();
        if !unsynced.is_empty() {
            inner.sync_later(unsynced);
        }
        Ok(Self { inner })
    }

    /// The image of a name, a digest or an id (also without `sha256:`, also a unique prefix). `None`: not here.
    ///
    /// # Errors
    /// None today; the disk may be asked later.
    pub async fn status(&self, image: &str) -> Result<Option<Image>, ImageStoreError> {
        let state = self.inner.state();
        Ok(state.find(image).map(|id| state.images[&id].image()))
    }

    /// Every image, ordered by id.
    ///
    /// # Errors
    /// None today; the disk may be asked later.
    pub async fn list(&self) -> Result<Vec<Image>, ImageStoreError> {
        Ok(self
            .inner
            .state()
            .images
            .values()
            .map(Known::image)
            .collect())
    }

    /// Removes the image with all its names, and every layer nobody stands on any more. Succeeds if it is not there.
    ///
    /// Upstream: the CRI's RemoveImage, which takes every reference to the image.
    ///
    /// # Errors
    /// The disk failed.
    pub async fn remove(&self, image: &str) -> Result<(), ImageStoreError> {
        let image = image.to_owned();
        self.blocking(move |inner| {
            let _writer = inner.writer();
            let Some(id) = inner.state().find(&image) else {
                return Ok(());
            };
            let path = inner.layout.image(&id);
            crate::layout::remove_any(&path)
                .map_err(ImageStoreError::io(format!("removing {}", path.display())))?;
            inner.state().images.remove(&id);
            gc::collect(inner)
        })
        .await
    }

    /// What the store occupies.
    ///
    /// # Errors
    /// The disk failed.
    pub async fn usage(&self) -> Result<Usage, ImageStoreError> {
        self.blocking(gc::usage).await
    }

    /// The directories of the unpacked image, topmost first, for overlayfs `lowerdir`; never empty. They stay until
    /// `release(holder)`, also over restarts and the image's removal. All lie at `<root>/layers/<chain id>/fs`.
    /// Holding again under the same name answers the same directories.
    ///
    /// # Errors
    /// No such image, or `holder` is no plain file name.
    pub async fn hold(
        &self,
        image_id: &str,
        holder: &str,
    ) -> Result<Vec<PathBuf>, ImageStoreError> {
        check_holder(holder)?;
        let (image, holder) = (image_id.to_owned(), holder.to_owned());
        self.blocking(move |inner| {
            let _writer = inner.writer();
            let record = {
                let state = inner.state();
                if let Some(known) = state.holds.get(&holder) {
                    return Ok(inner.lower_dirs(&known.layers));
                }
                let id = state
                    .find(&image)
                    .ok_or_else(|| ImageStoreError::NotFound {
                        image: image.clone(),
                    })?;
                HoldRecord {
                    version: VERSION,
                    holder: holder.clone(),
                    layers: state.images[&id].record.layers.clone(),
                    image: id,
                }
            };
            let path = inner.layout.hold(&holder);
            inner
                .layout
                .write_json(&path, &record)
                .map_err(ImageStoreError::io(format!("writing {}", path.display())))?;
            let directories = inner.lower_dirs(&record.layers);
            let mut state = inner.state();
            state.torn_holds.remove(&holder);
            state.holds.insert(holder, record);
            Ok(directories)
        })
        .await
    }

    /// Lets the layers of `holder` go. Succeeds if it holds none.
    ///
    /// # Errors
    /// The disk failed.
    pub async fn release(&self, holder: &str) -> Result<(), ImageStoreError> {
        check_holder(holder)?;
        let holder = holder.to_owned();
        self.blocking(move |inner| {
            let _writer = inner.writer();
            let path = inner.layout.hold(&holder);
            crate::layout::remove_any(&path)
                .map_err(ImageStoreError::io(format!("removing {}", path.display())))?;
            let was_held = {
                let mut state = inner.state();
                let torn = state.torn_holds.remove(&holder);
                state.holds.remove(&holder).is_some() || torn
            };
            if was_held { gc::collect(inner) } else { Ok(()) }
        })
        .await
    }

    /// Who holds layers now: after a restart, compare with the containers that exist and release the rest.
    pub fn holders(&self) -> Vec<String> {
        let state = self.inner.state();
        state
            .holds
            .keys()
            .chain(&state.torn_holds)
            .cloned()
            .collect()
    }

    /// Gives the image `source` the further name `target`. Upstream: `ctr images tag --force`.
    ///
    /// # Errors
    /// `source` is not here, or `target` is malformed.
    pub async fn tag(&self, source: &str, target: &str) -> Result<(), ImageStoreError> {
        let reference = Reference::parse(target).map_err(|error| ImageStoreError::Invalid {
            field: "image name",
            value: target.to_owned(),
            reason: error.to_string(),
        })?;
        let source = source.to_owned();
        self.blocking(move |inner| {
            let (mut record, config) = {
                let state = inner.state();
                let id = state
                    .find(&source)
                    .ok_or_else(|| ImageStoreError::NotFound {
                        image: source.clone(),
                    })?;
                let known = &state.images[&id];
                (known.record.clone(), known.config.clone())
            };
            match reference.digest() {
                Some(_) => record.repo_digests.push(reference.to_string()),
                None => record.repo_tags.push(reference.to_string()),
            }
            inner.commit(record, config)
        })
        .await
    }

    /// Keeps the kubelet's garbage collection away from the image, or lets it.
    ///
    /// # Errors
    /// The image is not here, or the disk failed.
    pub async fn pin(&self, image: &str, pinned: bool) -> Result<(), ImageStoreError> {
        let image = image.to_owned();
        self.blocking(move |inner| {
            let _writer = inner.writer();
            let mut record = {
                let state = inner.state();
                let id = state
                    .find(&image)
                    .ok_or_else(|| ImageStoreError::NotFound {
                        image: image.clone(),
                    })?;
                state.images[&id].record.clone()
            };
            record.pinned = pinned;
            inner.write_image(&record)?;
            if let Some(known) = inner.state().images.get_mut(&record.id) {
                known.record = record;
            }
            Ok(())
        })
        .await
    }

    /// A path that nobody uses, on the store's disk and emptied with the next start: for an archive that is to be imported.
    pub fn scratch(&self) -> PathBuf {
        self.inner.layout.fresh_tmp()
    }

    /// Removes what no image and no holder needs. Runs by itself after `remove` and `release`.
    ///
    /// # Errors
    /// Something could not be removed; the rest is.
    pub async fn collect_garbage(&self) -> Result<(), ImageStoreError> {
        self.blocking(|inner| {
            let _writer = inner.writer();
            gc::collect(inner)
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, ImageStoreError> + Send + 'static,
    ) -> Result<T, ImageStoreError> {
        let inner = self.inner.clone();
        blocking(move || work(&inner)).await
    }
}

fn check_holder(holder: &str) -> Result<(), ImageStoreError> {
    let plain = !holder.is_empty()
        && holder.len() <= HOLDER_LENGTH_MAX
        && !holder.starts_with('.')
        && holder
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if plain {
        return Ok(());
    }
    Err(ImageStoreError::Invalid {
        field: "holder",
        value: holder.to_owned(),
        reason: "must be letters, digits, '-', '_' and '.'".to_owned(),
    })
}

impl State {
    /// The id of the image a text means.
    fn find(&self, image: &str) -> Option<String> {
        if self.images.contains_key(image) {
            return Some(image.to_owned());
        }
        if is_hex_id(image) {
            let id = format!("sha256:{image}");
            return self.images.contains_key(&id).then_some(id);
        }
        if let Ok(reference) = Reference::parse(image) {
            let name = reference.to_string();
            let named = self.images.values().find(|known| {
                known.record.repo_tags.contains(&name) || known.record.repo_digests.contains(&name)
            });
            if let Some(known) = named {
                return Some(known.record.id.clone());
            }
        }
        let prefix = image.strip_prefix("sha256:").unwrap_or(image);
        if prefix.len() < MIN_ID_PREFIX || !prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut matching = self
            .images
            .keys()
            .filter(|id| id.trim_start_matches("sha256:").starts_with(prefix));
        match (matching.next(), matching.next()) {
            (Some(id), None) => Some(id.clone()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
