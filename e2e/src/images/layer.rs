//! Layers: entries of images.toml to a tar, and the tar to a compressed blob with its digests.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use flate2::{Compression, GzBuilder};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::base;
use crate::programs::{KUBERNETES_VERSION, Outputs};
use crate::step::output;

/// One file, link or directory of a layer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Ends in `/` for a directory.
    pub path: String,
    /// 0755 where none is given.
    pub mode: Option<u32>,
    pub program: Option<String>,
    /// One of our own programs that are whole in themselves.
    pub ours: Option<String>,
    pub built: Option<String>,
    pub module: Option<String>,
    pub text: Option<String>,
    pub append: Option<String>,
    pub link: Option<String>,
    pub registry: Option<String>,
}

/// A layer as it is pushed.
#[derive(Clone)]
pub struct Blob {
    pub compressed: Vec<u8>,
    /// Of the compressed bytes.
    pub digest: String,
    /// Of the tar.
    pub diff_id: String,
}

impl Blob {
    /// # Errors
    /// The file cannot be read.
    pub fn from_tar(path: &Path) -> Result<Self> {
        let mut tar = Vec::new();
        fs::File::open(path)
            .with_context(|| format!("open {}", path.display()))?
            .read_to_end(&mut tar)?;
        Self::from_bytes(&tar)
    }

    fn from_bytes(tar: &[u8]) -> Result<Self> {
        let mut gzip = GzBuilder::new()
            .mtime(0)
            .write(Vec::new(), Compression::fast());
        gzip.write_all(tar)?;
        let compressed = gzip.finish()?;
        Ok(Self {
            digest: digest(&compressed),
            diff_id: digest(tar),
            compressed,
        })
    }
}

/// The manifest, config and layers of an image built earlier.
pub type Parts<'a> = (&'a [u8], &'a [u8], &'a [Blob]);

/// Makes a layer; `image` finds an earlier image for the fake registry.
///
/// # Errors
/// A source is missing.
pub fn build<'a>(
    outputs: &Outputs,
    entries: &[Entry],
    image: impl Fn(&str) -> Result<Parts<'a>>,
) -> Result<Blob> {
    let mut tar = Tar::default();
    for entry in entries {
        let mode = entry.mode.unwrap_or(0o755);
        if let Some(name) = &entry.registry {
            let (manifest, config, layers) = image(name)?;
            fake_registry(&mut tar, &entry.path, manifest, config, layers)?;
        } else if let Some(target) = &entry.link {
            tar.link(&entry.path, target)?;
        } else if let Some(content) = content(outputs, entry)? {
            tar.file(&entry.path, mode, &content)?;
        } else if entry.path.ends_with('/') {
            tar.directory(&entry.path, mode)?;
        } else {
            bail!(
                "images.toml: {:?} has no content; a directory ends in '/'",
                entry.path
            );
        }
    }
    tar.finish()
}

fn content(outputs: &Outputs, entry: &Entry) -> Result<Option<Vec<u8>>> {
    let path = if let Some(program) = &entry.program {
        outputs.upstream(program)
    } else if let Some(program) = &entry.ours {
        outputs.ours(program)
    } else if let Some(program) = &entry.built {
        base::built(outputs, program)
    } else if let Some(file) = &entry.module {
        let cache = output(Command::new("go").args(["env", "GOMODCACHE"]))?;
        Path::new(cache.trim())
            .join(format!("k8s.io/kubernetes@v{KUBERNETES_VERSION}"))
            .join(file)
    } else if let Some(text) = &entry.append {
        let mut below = base::debian_file(outputs, &entry.path)?;
        below.extend_from_slice(text.as_bytes());
        return Ok(Some(below));
    } else {
        return Ok(entry.text.as_ref().map(|text| text.clone().into_bytes()));
    };
    fs::read(&path)
        .map(Some)
        .with_context(|| format!("images.toml: {:?}: read {}", entry.path, path.display()))
}

/// Lays an image out as the on-disk store that `agnhost fake-registry-server` serves.
fn fake_registry(
    tar: &mut Tar,
    root: &str,
    manifest: &[u8],
    config: &[u8],
    layers: &[Blob],
) -> Result<()> {
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(manifest),
            "size": manifest.len(), "platform": {"architecture": "amd64", "os": "linux"}}],
    })
    .to_string();
    let repository = format!("{root}pause/");
    let data = |kind: &str, bytes: &[u8]| {
        let hex = hex(&Sha256::digest(bytes));
        format!("{repository}{kind}/sha256/{}/{hex}/data", &hex[..2])
    };
    for directory in [
        root.to_owned(),
        repository.clone(),
        format!("{repository}manifests/"),
        format!("{repository}blobs/"),
    ] {
        tar.directory(&directory, 0o755)?;
    }
    tar.file(
        &data("manifests", index.as_bytes()),
        0o644,
        index.as_bytes(),
    )?;
    tar.file(
        &format!("{repository}manifests/testing"),
        0o644,
        format!("{}\n", digest(index.as_bytes())).as_bytes(),
    )?;
    tar.file(&data("manifests", manifest), 0o644, manifest)?;
    tar.file(&data("blobs", config), 0o644, config)?;
    for layer in layers {
        tar.file(&data("blobs", &layer.compressed), 0o644, &layer.compressed)?;
    }
    Ok(())
}

/// A tar whose every entry has the same age and belongs to root.
pub struct Tar<W: Write = Vec<u8>> {
    builder: tar::Builder<W>,
}

impl Default for Tar {
    fn default() -> Self {
        Self::to(Vec::new())
    }
}

impl Tar {
    pub fn finish(self) -> Result<Blob> {
        Blob::from_bytes(&self.into_inner()?)
    }
}

impl<W: Write> Tar<W> {
    pub fn to(target: W) -> Self {
        Self {
            builder: tar::Builder::new(target),
        }
    }

    fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_700_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(size);
        header
    }

    pub fn directory(&mut self, path: &str, mode: u32) -> Result<()> {
        let mut header = Self::header(tar::EntryType::Directory, mode, 0);
        Ok(self
            .builder
            .append_data(&mut header, path, std::io::empty())?)
    }

    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = Self::header(tar::EntryType::Regular, mode, content.len() as u64);
        Ok(self.builder.append_data(&mut header, path, content)?)
    }

    pub fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let mut header = Self::header(tar::EntryType::Symlink, 0o777, 0);
        Ok(self.builder.append_link(&mut header, path, target)?)
    }

    /// The end of the archive, and what it was written to.
    pub fn into_inner(self) -> Result<W> {
        Ok(self.builder.into_inner()?)
    }
}

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
