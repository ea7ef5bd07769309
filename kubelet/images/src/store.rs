//! The image store's front door.

use std::path::PathBuf;
use std::sync::Arc;

use crate::image::{Auth, Image, Usage};
use crate::pull::PullError;
use crate::import::ImportError;

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
    Invalid { field: &'static str, value: String, reason: String },
    /// A newer program wrote this store.
    #[error("image store {path:?} has version {found}, this program knows {known}")]
    Version { path: PathBuf, found: u32, known: u32 },
    #[error("{context}: {source}")]
    Io { context: String, #[source] source: std::io::Error },
}

/// The node's images. Cheap to clone; every clone is the same store.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<()>,
}

impl ImageStore {
    /// Opens (or makes) the store, and clears away what a crash left half done.
    ///
    /// # Errors
    /// The directory cannot be used, or a newer program wrote it.
    pub async fn open(config: ImageStoreConfig) -> Result<Self, ImageStoreError> {
        let _ = config;
        Ok(Self { inner: Arc::new(()) })
    }

    /// Makes the image present and unpacked. `auths` are tried in order; an empty list means anonymous.
    ///
    /// # Errors
    /// See [`PullError`].
    pub async fn pull(&self, image: &str, auths: &[Auth]) -> Result<Image, PullError> {
        let _ = (auths, &self.inner);
        Err(PullError::Unavailable { image: image.to_owned(), reason: "not yet".into() })
    }

    /// The image of a name, a digest or an id (also without `sha256:`, also a unique prefix). `None`: not here.
    ///
    /// # Errors
    /// The image's config cannot be read back.
    pub async fn status(&self, image: &str) -> Result<Option<Image>, ImageStoreError> {
        let _ = image;
        Ok(None)
    }

    /// Every image, ordered by id.
    ///
    /// # Errors
    /// A config cannot be read back.
    pub async fn list(&self) -> Result<Vec<Image>, ImageStoreError> {
        Ok(Vec::new())
    }

    /// Removes the image with all its names, and every layer nobody stands on any more. Succeeds if it is not there.
    ///
    /// # Errors
    /// The disk failed.
    pub async fn remove(&self, image: &str) -> Result<(), ImageStoreError> {
        let _ = image;
        Ok(())
    }

    /// What the store occupies.
    ///
    /// # Errors
    /// The disk failed.
    pub async fn usage(&self) -> Result<Usage, ImageStoreError> {
        Ok(Usage::default())
    }

    /// The directories of the unpacked image, topmost first, for overlayfs `lowerdir`; never empty. They stay until
    /// `release(holder)`, also over restarts and the image's removal. All lie at `<root>/layers/<16 hex>/fs`, so
    /// that a mount of many layers may name them relative to `<root>/layers`.
    /// Holding again under the same name answers the same directories.
    ///
    /// # Errors
    /// No such image, or `holder` is no plain file name.
    pub async fn hold(&self, image_id: &str, holder: &str) -> Result<Vec<PathBuf>, ImageStoreError> {
        let _ = holder;
        Err(ImageStoreError::NotFound { image: image_id.to_owned() })
    }

    /// Lets the layers of `holder` go. Succeeds if it holds none.
    ///
    /// # Errors
    /// The disk failed.
    pub async fn release(&self, holder: &str) -> Result<(), ImageStoreError> {
        let _ = holder;
        Ok(())
    }

    /// Who holds layers now: after a restart, compare with the containers that exist and release the rest.
    pub fn holders(&self) -> Vec<String> {
        Vec::new()
    }

    /// Gives the image `source` the further name `target`. Upstream: `ctr images tag --force`.
    ///
    /// # Errors
    /// `source` is not here, or `target` is malformed.
    pub async fn tag(&self, source: &str, target: &str) -> Result<(), ImageStoreError> {
        let _ = target;
        Err(ImageStoreError::NotFound { image: source.to_owned() })
    }

    /// Imports an OCI archive or a `docker save` archive.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub async fn import(&self, archive: &std::path::Path) -> Result<Vec<Image>, ImportError> {
        Err(ImportError::Invalid { path: archive.to_owned(), reason: "not yet".into() })
    }
}
