//! Several images in one archive, as `ctr images import` and `kind load image-archive` take them: an OCI layout with names.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::layer::Tar;

/// Writes the images of the layouts, each under its name, and gives the size in bytes. The same images give the same bytes.
///
/// # Errors
/// A layout cannot be read.
pub fn write(images: &BTreeMap<String, PathBuf>, to: &Path) -> Result<u64> {
    let mut descriptors = Vec::new();
    let mut blobs: BTreeMap<String, PathBuf> = BTreeMap::new();
    for (name, layout) in images {
        let index = layout.join("index.json");
        let text =
            fs::read_to_string(&index).with_context(|| format!("read {}", index.display()))?;
        let index: Value = serde_json::from_str(&text)?;
        let mut descriptor = index["manifests"][0].clone();
        descriptor["annotations"] = json!({
            "io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": name.rsplit(':').next().unwrap_or_default(),
        });
        descriptors.push(descriptor);
        for blob in fs::read_dir(layout.join("blobs/sha256"))? {
            let blob = blob?;
            blobs.insert(blob.file_name().to_string_lossy().into_owned(), blob.path());
        }
    }
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": descriptors,
    });
    if let Some(above) = to.parent() {
        fs::create_dir_all(above)?;
    }
    let half = to.with_extension("half");
    let file = fs::File::create(&half).with_context(|| format!("make {}", half.display()))?;
    let mut tar = Tar::to(file);
    tar.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    tar.file("index.json", 0o644, index.to_string().as_bytes())?;
    for (name, path) in &blobs {
        tar.file(&format!("blobs/sha256/{name}"), 0o644, &fs::read(path)?)?;
    }
    let file = tar.into_inner()?;
    let bytes = file.metadata()?.len();
    fs::rename(&half, to)?;
    Ok(bytes)
}
