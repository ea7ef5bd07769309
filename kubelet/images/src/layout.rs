//! The store's files: where they lie, and how they are written so that no crash leaves half of one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version of everything on disk. A higher one is refused.
///
/// 2: a layer's directory has its whole chain id as name; 1 had the first 16 characters, see [`Layout::old_layer`].
pub(crate) const VERSION: u32 = 2;

/// One image on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) version: u32,
    /// Digest of the config.
    pub(crate) id: String,
    pub(crate) repo_tags: Vec<String>,
    pub(crate) repo_digests: Vec<String>,
    /// Index, manifest and config kept in `blobs/`.
    pub(crate) blobs: Vec<String>,
    pub(crate) size_bytes: u64,
    /// Chain ids, lowest first.
    pub(crate) layers: Vec<String>,
    #[serde(default)]
    pub(crate) pinned: bool,
    /// The machine's boot during which the layers came, until they are known to have reached the disk. After another
    /// boot they cannot be trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unsynced_boot: Option<String>,
}

/// The layers a container stands on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HoldRecord {
    pub(crate) version: u32,
    pub(crate) holder: String,
    pub(crate) image: String,
    /// Chain ids, lowest first.
    pub(crate) layers: Vec<String>,
}

/// An unpacked layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) version: u32,
    pub(crate) chain_id: String,
    pub(crate) diff_id: String,
    pub(crate) size_bytes: u64,
    pub(crate) inodes: u64,
}

/// The paths below one root.
#[derive(Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    counter: AtomicU64,
}

impl Layout {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self {
            root,
            counter: AtomicU64::new(0),
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn version(&self) -> PathBuf {
        self.root.join("version")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// `digest` must have passed validation: it becomes a path.
    pub(crate) fn blob(&self, digest: &str) -> PathBuf {
        let (algorithm, hex) = digest.split_once(':').unwrap_or(("sha256", digest));
        self.blobs().join(algorithm).join(hex)
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// Named by the whole chain id: a part of it can be met by a layer made to meet it.
    pub(crate) fn layer(&self, chain_id: &str) -> PathBuf {
        self.layers().join(match chain_id.split_once(':') {
            Some(("sha256", hex)) => hex.to_owned(),
            _ => chain_id.replace(':', "-"),
        })
    }

    /// Where version 1 had a layer.
    pub(crate) fn old_layer(&self, chain_id: &str) -> PathBuf {
        let hex = chain_id.split_once(':').map_or(chain_id, |(_, hex)| hex);
        self.layers().join(&hex[..hex.len().min(16)])
    }

    pub(crate) fn layer_fs(&self, chain_id: &str) -> PathBuf {
        self.layer(chain_id).join("fs")
    }

    /// What stands in for an image without layers.
    pub(crate) fn empty_fs(&self) -> PathBuf {
        self.layers().join("empty").join("fs")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn image(&self, id: &str) -> PathBuf {
        self.images().join(format!("{}.json", id.replace(':', "-")))
    }

    pub(crate) fn holds(&self) -> PathBuf {
        self.root.join("holds")
    }

    pub(crate) fn hold(&self, holder: &str) -> PathBuf {
        self.holds().join(format!("{holder}.json"))
    }

    pub(crate) fn ingest(&self) -> PathBuf {
        self.root.join("ingest")
    }

    pub(crate) fn ingest_blob(&self, digest: &str) -> PathBuf {
        self.ingest().join(digest.replace(':', "-"))
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// A name in `tmp/` that nobody uses.
    pub(crate) fn fresh_tmp(&self) -> PathBuf {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        self.tmp().join(format!("{}-{number}", std::process::id()))
    }

    /// Writes a file so that it is there whole or not at all, also after a power cut.
    pub(crate) fn write_atomic(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        host::atomic_file::write_by(&self.fresh_tmp(), path, bytes)
    }

    pub(crate) fn write_json(&self, path: &Path, value: &impl Serialize) -> io::Result<()> {
        let bytes = serde_json::to_vec(value).map_err(io::Error::other)?;
        self.write_atomic(path, &bytes)
    }

    /// Takes a file or directory out of sight at once, then deletes it; a crash between leaves it to the next start.
    pub(crate) fn discard(&self, path: &Path) -> io::Result<()> {
        let tmp = self.fresh_tmp();
        match std::fs::rename(path, &tmp) {
            Ok(()) => remove_any(&tmp),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Tells one boot of the machine from another; empty if the kernel does not say.
pub(crate) fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    serde_json::from_slice(&std::fs::read(path)?).map_err(io::Error::from)
}

/// Deletes a file or a whole directory; what is not there is deleted already.
pub(crate) fn remove_any(path: &Path) -> io::Result<()> {
    host::remove_tree(path)
}
