//! Side-loading an archive: `docker save`, `ctr images export`, OCI layouts as a tar.
//!
//! Names in the archive never become paths on the disk: members are copied to numbered files.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Deserialize;

use crate::blocking::blocking;
use crate::config;
use crate::digest;
use crate::image::Image;
use crate::manifest::{Descent, DescentError, Descriptor, Document, Manifest, Platform};
use crate::pull::{self, Names, PullError, Source};
use crate::reference::Reference;
use crate::store::ImageStore;
use crate::unpack::decompress;
use crate::unpack::tar_stream::{Kind, TarStream};

/// The containerd exporter's full name of an image.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// OCI's: a full name or only a tag.
const OCI_REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Members of one archive; of every image a few tens.
const MAX_MEMBERS: usize = 100_000;
const MAX_NAME_BYTES: usize = 4096;
const COPY_BUFFER_BYTES: usize = 128 * 1024;

/// Why an archive could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("image archive {path:?}: {reason}")]
    Invalid { path: PathBuf, reason: String },
    #[error("image archive {path:?}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("image archive {path:?}: {source}")]
    Install {
        path: PathBuf,
        #[source]
        source: Box<PullError>,
    },
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// The members of an archive, copied out; the directory goes with it.
struct Members {
    directory: PathBuf,
    files: HashMap<String, PathBuf>,
}

impl Drop for Members {
    fn drop(&mut self) {
        if let Err(error) = crate::layout::remove_any(&self.directory) {
            tracing::warn!(path = %self.directory.display(), %error, "could not clear an import away");
        }
    }
}

impl ImageStore {
    /// Imports an OCI archive or a `docker save` archive, whole or compressed; of several platforms, this machine's.
    ///
    /// # Errors
    /// See [`ImportError`].
    pub async fn import(&self, archive: &Path) -> Result<Vec<Image>, ImportError> {
        import(self, archive).await
    }
}

/// Imports every image of the archive that runs on this machine.
async fn import(store: &ImageStore, archive: &Path) -> Result<Vec<Image>, ImportError> {
    let path = archive.to_owned();
    let directory = store.inner.layout.fresh_tmp();
    let permit = store.inner.may_unpack(archive).await;
    let members = blocking(move || {
        let _permit = permit;
        extract(&path, directory)
    })
    .await
    .map_err(|source| ImportError::Io {
        path: archive.to_owned(),
        source,
    })?;
    let importer = Importer {
        store,
        archive,
        members,
    };
    if importer.members.files.contains_key("index.json") {
        importer.oci().await
    } else if importer.members.files.contains_key("manifest.json") {
        importer.docker().await
    } else {
        Err(importer.invalid("has neither index.json nor manifest.json"))
    }
}

/// Copies the regular members to numbered files.
fn extract(archive: &Path, directory: PathBuf) -> std::io::Result<Members> {
    let reader = decompress(std::fs::File::open(archive)?)?;
    std::fs::create_dir(&directory)?;
    let mut members = Members {
        directory,
        files: HashMap::new(),
    };
    let mut links = Vec::new();
    let mut buffer = vec![0; COPY_BUFFER_BYTES];
    let mut room = room(&members.directory)?;
    let mut stream = TarStream::new(reader);
    let mut number = 0usize;
    while let Some(header) = stream.next().map_err(std::io::Error::other)? {
        number += 1;
        if number > MAX_MEMBERS || header.name.len() > MAX_NAME_BYTES {
            return Err(std::io::Error::other(format!(
                "more than {MAX_MEMBERS} members, or a name of more than {MAX_NAME_BYTES} bytes"
            )));
        }
        let name = String::from_utf8_lossy(&header.name)
            .trim_start_matches("./")
            .trim_end_matches('/')
            .to_owned();
        match header.kind {
            Kind::File => {
                room = room.checked_sub(header.size).ok_or_else(|| {
                    std::io::Error::new(
                        std::io::ErrorKind::StorageFull,
                        "larger than what the image store has room for",
                    )
                })?;
                let target = members.directory.join(number.to_string());
                let file = std::fs::File::create(&target)?;
                while let Some((at, count)) =
                    stream.data(&mut buffer).map_err(std::io::Error::other)?
                {
                    file.write_all_at(&buffer[..count], at)?;
                }
                file.set_len(header.size)?;
                members.files.insert(name, target);
            }
            Kind::Symlink | Kind::HardLink => {
                // Old `docker save` links equal layers: `<id>/layer.tar -> ../<other>/layer.tar`.
                let link = String::from_utf8_lossy(&header.link).into_owned();
                links.push((name, link, header.kind == Kind::Symlink));
            }
            _ => {}
        }
    }
    for (name, link, relative) in links {
        let target = if relative {
            let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
            normalise(&format!("{parent}/{link}"))
        } else {
            normalise(&link)
        };
        if let Some(file) = members.files.get(&target).cloned() {
            members.files.insert(name, file);
        }
    }
    Ok(members)
}

fn room(directory: &Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(directory)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Resolves `.` and `..` by text; the result is only ever looked up among members.
fn normalise(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

struct Importer<'a> {
    store: &'a ImageStore,
    archive: &'a Path,
    members: Members,
}

impl Importer<'_> {
    fn invalid(&self, reason: impl Into<String>) -> ImportError {
        ImportError::Invalid {
            path: self.archive.to_owned(),
            reason: reason.into(),
        }
    }

    fn member(&self, name: &str) -> Result<&PathBuf, ImportError> {
        self.members
            .files
            .get(name)
            .ok_or_else(|| self.invalid(format!("{name} is missing")))
    }

    async fn read(&self, name: &str) -> Result<Bytes, ImportError> {
        let path = self.member(name)?;
        let too_large = tokio::fs::metadata(path)
            .await
            .is_ok_and(|meta| meta.len() > crate::registry::MAX_DOCUMENT_BYTES);
        if too_large {
            return Err(self.invalid(format!("{name} is too large")));
        }
        tokio::fs::read(path)
            .await
            .map(Bytes::from)
            .map_err(|source| ImportError::Io {
                path: self.archive.to_owned(),
                source,
            })
    }

    fn blob_name(digest: &str) -> String {
        format!("blobs/{}", digest.replacen(':', "/", 1))
    }

    async fn blob(&self, digest: &str) -> Result<Bytes, ImportError> {
        crate::reference::validate_digest(digest)
            .map_err(|error| self.invalid(format!("digest {digest:?}: {error}")))?;
        let bytes = self.read(&Self::blob_name(digest)).await?;
        if !digest::matches(&bytes, digest) {
            return Err(self.invalid(format!("blob {digest} does not match its digest")));
        }
        Ok(bytes)
    }

    async fn oci(&self) -> Result<Vec<Image>, ImportError> {
        let bytes = self.read("index.json").await?;
        let index: Index =
            serde_json::from_slice(&bytes).map_err(|e| self.invalid(format!("index.json: {e}")))?;
        // One image may be listed under several names.
        let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for entry in &index.manifests {
            let list = names.entry(entry.digest.clone()).or_default();
            let annotations = entry.annotations.as_ref();
            let name = annotations
                .and_then(|all| all.get(CONTAINERD_NAME).or_else(|| all.get(OCI_REF_NAME)));
            // A bare tag names no repository.
            if let Some(name) = name.filter(|name| name.contains(['/', ':'])) {
                list.push(name.clone());
            }
        }
        let mut images = Vec::new();
        for (digest, tags) in names {
            if let Some(image) = self.oci_image(&digest, &tags).await? {
                images.push(image);
            }
        }
        if images.is_empty() {
            return Err(self.invalid(format!("has no image for {}", Platform::host())));
        }
        Ok(images)
    }

    /// `None`: not for this machine.
    async fn oci_image(&self, top: &str, tags: &[String]) -> Result<Option<Image>, ImportError> {
        let host = Platform::host();
        let top_bytes = self.blob(top).await?;
        let mut documents = vec![(top.to_owned(), top_bytes.clone())];
        let parse =
            |bytes: &[u8]| Document::parse(bytes).map_err(|e| self.invalid(format!("{top}: {e}")));
        let mut descent = Descent::default();
        let mut bytes = top_bytes;
        let manifest = loop {
            match parse(&bytes)? {
                Document::Manifest(manifest) => break manifest,
                Document::Index(entries) => {
                    // An export of one platform keeps the whole index: take what is in the archive.
                    let present: Vec<Descriptor> = entries
                        .into_iter()
                        .filter(|entry| {
                            self.members
                                .files
                                .contains_key(&Self::blob_name(&entry.digest))
                        })
                        .collect();
                    let digest = match descent.choose(&host, &present) {
                        Ok(digest) => digest,
                        Err(DescentError::NoMatchingPlatform(_)) => return Ok(None),
                        Err(error) => return Err(self.invalid(format!("index {top} {error}"))),
                    };
                    bytes = self.blob(&digest).await?;
                    documents.push((digest, bytes.clone()));
                }
            }
        };
        let manifest_size = bytes.len();
        let config_bytes = self.blob(&manifest.config.digest).await?;
        documents.push((manifest.config.digest.clone(), config_bytes.clone()));
        let files = manifest
            .layers
            .iter()
            .map(|layer| self.member(&Self::blob_name(&layer.digest)).cloned())
            .collect::<Result<Vec<_>, _>>()?;
        let size = manifest_size as u64
            + manifest.config.size
            + manifest.layers.iter().map(|layer| layer.size).sum::<u64>();
        let mut names = self.names(tags)?;
        let repositories: Vec<Reference> = tags
            .iter()
            .filter_map(|tag| Reference::parse(tag).ok())
            .collect();
        names
            .digests
            .extend(repositories.iter().map(|r| r.with_digest(top).to_string()));
        self.install(&config_bytes, manifest, documents, size, names, files)
            .await
    }

    async fn docker(&self) -> Result<Vec<Image>, ImportError> {
        let bytes = self.read("manifest.json").await?;
        let entries: Vec<DockerEntry> = serde_json::from_slice(&bytes)
            .map_err(|e| self.invalid(format!("manifest.json: {e}")))?;
        let mut images = Vec::new();
        for entry in entries {
            let config_bytes = self.read(&normalise(&entry.config)).await?;
            let id = digest::sha256(&config_bytes);
            let layers = entry.layers.unwrap_or_default();
            let mut files = Vec::with_capacity(layers.len());
            let mut descriptors = Vec::with_capacity(layers.len());
            for layer in &layers {
                let file = self.member(&normalise(layer))?.clone();
                let size = tokio::fs::metadata(&file)
                    .await
                    .map_or(0, |meta| meta.len());
                // There is no manifest, so the layer's compressed digest is of no meaning; its diff id is checked.
                let digest = digest::sha256(format!("{id} {layer}").as_bytes());
                descriptors.push(descriptor(digest, size));
                files.push(file);
            }
            let size =
                config_bytes.len() as u64 + descriptors.iter().map(|layer| layer.size).sum::<u64>();
            let manifest = Manifest {
                config: descriptor(id.clone(), config_bytes.len() as u64),
                layers: descriptors,
            };
            let names = self.names(&entry.repo_tags.unwrap_or_default())?;
            let documents = vec![(id, config_bytes.clone())];
            images.extend(
                self.install(&config_bytes, manifest, documents, size, names, files)
                    .await?,
            );
        }
        if images.is_empty() {
            return Err(self.invalid(format!("has no image for {}", Platform::host())));
        }
        Ok(images)
    }

    fn names(&self, tags: &[String]) -> Result<Names, ImportError> {
        let mut names = Names {
            tags: Vec::new(),
            digests: Vec::new(),
        };
        for tag in tags {
            let reference = Reference::parse(tag)
                .map_err(|error| self.invalid(format!("image name {tag:?}: {error}")))?;
            match reference.digest() {
                Some(_) => names.digests.push(reference.to_string()),
                None => names.tags.push(reference.to_string()),
            }
        }
        Ok(names)
    }

    async fn install(
        &self,
        config_bytes: &[u8],
        manifest: Manifest,
        documents: Vec<(String, Bytes)>,
        size: u64,
        names: Names,
        files: Vec<PathBuf>,
    ) -> Result<Option<Image>, ImportError> {
        let config =
            config::parse(config_bytes).map_err(|error| self.invalid(error.to_string()))?;
        if Platform::host().rank(&config.platform).is_none() {
            return Ok(None);
        }
        let name = names
            .tags
            .first()
            .unwrap_or(&manifest.config.digest)
            .clone();
        pull::install(
            self.store,
            &name,
            config,
            &manifest,
            documents,
            size,
            names,
            &Source::Files(files),
        )
        .await
        .map(Some)
        .map_err(|source| ImportError::Install {
            path: self.archive.to_owned(),
            source: Box::new(source),
        })
    }
}

fn descriptor(digest: String, size: u64) -> Descriptor {
    Descriptor {
        media_type: String::new(),
        digest,
        size,
        platform: None,
        annotations: None,
    }
}
