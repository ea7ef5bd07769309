//! Pulling: resolve, fetch, verify, unpack.
//!
//! ```text
//! name -> (hosts, credential) -> digest -> [index -> … -> this platform's] manifest -> config
//!      -> layers: downloads side by side, unpacked in order as they come -> record
//! ```

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use crate::blocking::blocking;
use crate::config::{self, Config};
use crate::digest;
use crate::image::{Auth, Image};
use crate::layout::{ImageRecord, VERSION};
use crate::manifest::{Descent, DescentError, Document, Manifest, Platform};
use crate::reference::{Reference, ReferenceError};
use crate::registry::{RegistryError, Session};
use crate::store::{ImageStore, ImageStoreError, Inner, InstallError};
use crate::unpack::UnpackError;

/// Why a pull failed.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The name is malformed. No retry helps. Upstream reason: `InvalidImageName`.
    #[error("failed to parse image name {image:?}: {source}")]
    InvalidName {
        image: String,
        #[source]
        source: ReferenceError,
    },
    /// No registry host could be asked (no connection, 5xx, 429). A retry may help.
    #[error("failed to pull and unpack image {image:?}: {reason}")]
    Unavailable { image: String, reason: String },
    /// The registry said no: unknown name or tag, or no permission. A retry helps only after a change.
    #[error("failed to pull and unpack image {image:?}: {reason}")]
    Refused { image: String, reason: String },
    /// Something that came does not match its digest or is no valid manifest, config or layer.
    #[error("failed to pull and unpack image {image:?}: {reason}")]
    Verification { image: String, reason: String },
    /// The image has no variant for this machine.
    #[error(
        "failed to pull and unpack image {image:?}: no match for platform in manifest {platform}: not found"
    )]
    NoMatchingPlatform { image: String, platform: String },
    #[error("failed to pull and unpack image {image:?}: {source}")]
    Unpack {
        image: String,
        #[source]
        source: UnpackError,
    },
    #[error("failed to pull and unpack image {image:?}: {source}")]
    Store {
        image: String,
        #[source]
        source: ImageStoreError,
    },
}

impl ImageStore {
    /// Makes the image present and unpacked, after the registry that it names agreed. `auths` are tried in order; none:
    /// anonymously.
    ///
    /// # Errors
    /// See [`PullError`].
    pub async fn pull(&self, image: &str, auths: &[Auth]) -> Result<Image, PullError> {
        pull(self, image, auths).await
    }
}

/// Pulls with each credential in turn; without one, if there is none.
async fn pull(store: &ImageStore, image: &str, auths: &[Auth]) -> Result<Image, PullError> {
    let reference = Reference::parse(image).map_err(|source| PullError::InvalidName {
        image: image.to_owned(),
        source,
    })?;
    let anonymous = Auth::default();
    let mut refused = None;
    let auths = if auths.is_empty() {
        std::slice::from_ref(&anonymous)
    } else {
        auths
    };
    for auth in auths {
        match pull_with(store, &reference, auth).await {
            Ok(pulled) => return Ok(pulled),
            Err(error @ PullError::Refused { .. }) => {
                refused.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(refused.expect("the loop ran at least once"))
}

async fn pull_with(
    store: &ImageStore,
    reference: &Reference,
    auth: &Auth,
) -> Result<Image, PullError> {
    let name = reference.to_string();
    let fail = |stage: &str, error: RegistryError| registry_error(&name, stage, error);
    let content = |reason: String| PullError::Verification {
        image: name.clone(),
        reason,
    };
    let no_match = |platform: &Platform| PullError::NoMatchingPlatform {
        image: name.clone(),
        platform: platform.to_string(),
    };
    let inner = &store.inner;

    let session = inner
        .registry
        .session(reference, auth)
        .await
        .map_err(|error| fail("", error))?;
    let resolved = session
        .resolve()
        .await
        .map_err(|error| fail(&format!("failed to resolve reference {name:?}: "), error))?;
    let top = resolved.digest;
    // Having a document is no proof that this repository has it: it must serve it once. After that its word is enough.
    let digest_name = reference.with_digest(&top).to_string();
    let known = inner.has_digest_name(&digest_name);

    let top_bytes = match resolved.body {
        Some(bytes) => bytes,
        None => manifest_bytes(inner, &session, &top, known)
            .await
            .map_err(|error| fail("", error))?,
    };
    let host = Platform::host();
    let mut descent = Descent::default();
    let mut documents = vec![(top.clone(), top_bytes.clone())];
    let mut bytes = top_bytes;
    let manifest = loop {
        match Document::parse(&bytes).map_err(|error| content(error.to_string()))? {
            Document::Manifest(manifest) => break manifest,
            Document::Index(entries) => {
                let digest = descent
                    .choose(&host, &entries)
                    .map_err(|error| match error {
                        DescentError::NoMatchingPlatform(_) => no_match(&host),
                        error => content(format!("index {top} {error}")),
                    })?;
                bytes = manifest_bytes(inner, &session, &digest, known)
                    .await
                    .map_err(|error| fail("", error))?;
                documents.push((digest, bytes.clone()));
            }
        }
    };
    let manifest_size = bytes.len();
    let config_bytes = match known_blob(inner, &manifest.config.digest, known).await {
        Some(bytes) => bytes,
        None => session
            .config(&manifest.config)
            .await
            .map_err(|error| fail("", error))?,
    };
    documents.push((manifest.config.digest.clone(), config_bytes.clone()));
    let config = config::parse(&config_bytes).map_err(|error| content(error.to_string()))?;
    let size_bytes = manifest_size as u64
        + manifest.config.size
        + manifest.layers.iter().map(|layer| layer.size).sum::<u64>();

    if !descent.takes(&host, &config.platform) {
        return Err(no_match(&host));
    }
    if host.rank(&config.platform).is_none() {
        tracing::warn!(image = name, platform = %config.platform, %host, "The image is of another platform");
    }
    let names = Names {
        tags: reference.tag().map(|_| name.clone()).into_iter().collect(),
        digests: vec![digest_name],
    };
    install(
        store,
        &name,
        config,
        &manifest,
        documents,
        size_bytes,
        names,
        &Source::Registry(session),
    )
    .await
}

/// Where layers come from.
pub(crate) enum Source {
    Registry(Session),
    /// The file of each layer of the manifest, in order.
    Files(Vec<PathBuf>),
}

/// The names an image gets.
pub(crate) struct Names {
    pub(crate) tags: Vec<String>,
    pub(crate) digests: Vec<String>,
}

/// Brings an image's layers in and makes it known. `documents` are verified.
#[expect(clippy::too_many_arguments, reason = "all of them are the image")]
pub(crate) async fn install(
    store: &ImageStore,
    name: &str,
    config: Config,
    manifest: &Manifest,
    documents: Vec<(String, Bytes)>,
    size_bytes: u64,
    names: Names,
    source: &Source,
) -> Result<Image, PullError> {
    let inner = &store.inner;
    let image = name.to_owned();
    if config.diff_ids.len() != manifest.layers.len() {
        return Err(PullError::Verification {
            image,
            reason: format!(
                "mismatched image rootfs and manifest layers: {} and {}",
                config.diff_ids.len(),
                manifest.layers.len()
            ),
        });
    }
    let chain_ids = digest::chain_ids(&config.diff_ids);
    let _lease = inner.lease(
        chain_ids
            .iter()
            .cloned()
            .chain(documents.iter().map(|(digest, _)| digest.clone()))
            .chain(manifest.layers.iter().map(|layer| layer.digest.clone())),
    );
    layers(inner, name, &config, manifest, &chain_ids, source).await?;

    let id = manifest.config.digest.clone();
    let record = ImageRecord {
        version: VERSION,
        id: id.clone(),
        repo_tags: names.tags,
        repo_digests: names.digests,
        blobs: documents.iter().map(|(digest, _)| digest.clone()).collect(),
        size_bytes,
        layers: chain_ids,
        pinned: false,
        unsynced_boot: Some(crate::layout::boot_id()),
    };
    let worker = inner.clone();
    blocking(move || {
        for (digest, bytes) in &documents {
            worker.put_blob(digest, bytes)?;
        }
        worker.commit(record, Arc::new(config.image))?;
        worker.sync_later(vec![id.clone()]);
        worker
            .image(&id)
            .ok_or(ImageStoreError::NotFound { image: id })
    })
    .await
    .map_err(|source| PullError::Store { image, source })
}

/// Downloads what is missing, side by side, and unpacks it in order.
async fn layers(
    inner: &Arc<Inner>,
    name: &str,
    config: &Config,
    manifest: &Manifest,
    chain_ids: &[String],
    source: &Source,
) -> Result<(), PullError> {
    let permits = Arc::new(Semaphore::new(inner.config.max_parallel_downloads.max(1)));
    let mut downloads = Vec::with_capacity(chain_ids.len());
    for (layer, chain_id) in manifest.layers.iter().zip(chain_ids) {
        let Source::Registry(session) = source else {
            downloads.push(None);
            continue;
        };
        if inner.has_layer(chain_id) {
            downloads.push(None);
            continue;
        }
        let (inner, session, layer, chain_id, permits) = (
            inner.clone(),
            session.clone(),
            layer.clone(),
            chain_id.clone(),
            permits.clone(),
        );
        downloads.push(Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let _permit = permits.acquire_owned().await.expect("never closed");
            let _flight = inner.flight(&layer.digest).await;
            if inner.has_layer(&chain_id) {
                return Ok(());
            }
            session
                .blob(&layer, &inner.layout.ingest_blob(&layer.digest))
                .await
        }))));
    }
    for (index, download) in downloads.into_iter().enumerate() {
        let layer = &manifest.layers[index];
        if let Some(download) = download {
            match download.await {
                Ok(result) => result.map_err(|error| registry_error(name, "", error))?,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(error) => {
                        return Err(PullError::Unavailable {
                            image: name.to_owned(),
                            reason: error.to_string(),
                        });
                    }
                },
            }
        }
        let flight = inner.flight(&chain_ids[index]).await;
        if !inner.has_layer(&chain_ids[index]) {
            let blob = match source {
                Source::Registry(_) => inner.layout.ingest_blob(&layer.digest),
                Source::Files(files) => files[index].clone(),
            };
            let permit = inner.may_unpack(&blob).await;
            let worker = inner.clone();
            let (chain, diff_id) = (chain_ids.to_vec(), config.diff_ids[index].clone());
            blocking(move || {
                // Kept until the work is done, even if nobody waits for it any more.
                let (_flight, _permit) = (flight, permit);
                worker.install_layer(&chain, index, &diff_id, &blob)
            })
            .await
            .map_err(|error| install_error(name, &layer.digest, error))?;
        }
        inner.mark_spent(&layer.digest);
    }
    Ok(())
}

/// A manifest or index; one that the repository served before (`known`) need not come again.
async fn manifest_bytes(
    inner: &Arc<Inner>,
    session: &Session,
    digest: &str,
    known: bool,
) -> Result<Bytes, RegistryError> {
    match known_blob(inner, digest, known).await {
        Some(bytes) => Ok(bytes),
        None => session.manifest(digest).await,
    }
}

async fn known_blob(inner: &Arc<Inner>, digest: &str, known: bool) -> Option<Bytes> {
    if !known {
        return None;
    }
    let bytes = tokio::fs::read(inner.layout.blob(digest)).await.ok()?;
    digest::matches(&bytes, digest).then(|| bytes.into())
}

fn install_error(image: &str, layer: &str, error: InstallError) -> PullError {
    let image = image.to_owned();
    match error {
        InstallError::Unpack(UnpackError::DiffId { expected, found }) => PullError::Verification {
            image,
            reason: format!("layer {layer}: wrong diff id {found}, expected {expected}"),
        },
        InstallError::Unpack(source) => PullError::Unpack { image, source },
        InstallError::Store(source) => PullError::Store { image, source },
    }
}

fn registry_error(image: &str, stage: &str, error: RegistryError) -> PullError {
    let image = image.to_owned();
    let reason = format!("{stage}{error}");
    match error {
        RegistryError::Unavailable { .. } => PullError::Unavailable { image, reason },
        RegistryError::Content { .. } => PullError::Verification { image, reason },
        RegistryError::Disk { path, reason } => PullError::Store {
            image,
            source: ImageStoreError::Io {
                context: format!("writing {path}"),
                source: std::io::Error::other(reason),
            },
        },
        RegistryError::NotFound { .. }
        | RegistryError::Denied { .. }
        | RegistryError::Status { .. }
        | RegistryError::Config(_)
        | RegistryError::NoHost { .. } => PullError::Refused { image, reason },
    }
}
