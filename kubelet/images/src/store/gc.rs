//! Garbage: layers and blobs that no image, no holder and no pull under way needs.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::{ImageStoreError, Inner};
use crate::image::Usage;

/// Removes garbage, going on past errors; the first is told. The caller holds the writer.
pub(super) fn collect(inner: &Inner) -> Result<(), ImageStoreError> {
    let (live_paths, dead_chains) = {
        let mut state = inner.state();
        if !state.torn_holds.is_empty() {
            return Ok(());
        }
        let chains: HashSet<&String> = state
            .images
            .values()
            .flat_map(|known| &known.record.layers)
            .chain(state.holds.values().flat_map(|hold| &hold.layers))
            .chain(state.leases.keys())
            .collect();
        let mut live: HashSet<PathBuf> = chains
            .iter()
            .map(|chain_id| inner.layout.layer(chain_id))
            .collect();
        live.extend(
            state
                .images
                .values()
                .flat_map(|known| &known.record.blobs)
                .chain(state.leases.keys())
                .map(|digest| inner.layout.blob(digest)),
        );
        let dead: Vec<String> = state
            .layers
            .keys()
            .filter(|chain_id| !chains.contains(*chain_id))
            .cloned()
            .collect();
        for chain_id in &dead {
            state.layers.remove(chain_id);
        }
        (live, dead)
    };
    if !dead_chains.is_empty() {
        tracing::debug!(count = dead_chains.len(), "removing unused layers");
    }
    let mut first = None;
    let mut sweep = |directory: &Path| {
        let Ok(entries) = std::fs::read_dir(directory) else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            if live_paths.contains(&path) || path.file_name().is_some_and(|name| name == "empty") {
                continue;
            }
            // A pull may have taken a lease and written its file since we looked.
            if in_use(inner, &path) {
                continue;
            }
            if let Err(source) = inner.layout.discard(&path) {
                let context = format!("removing {}", path.display());
                first.get_or_insert(ImageStoreError::Io { context, source });
            }
        }
    };
    sweep(&inner.layout.layers());
    sweep(&inner.layout.blobs().join("sha256"));
    sweep(&inner.layout.blobs().join("sha512"));
    first.map_or(Ok(()), Err)
}

fn in_use(inner: &Inner, path: &Path) -> bool {
    let state = inner.state();
    state
        .leases
        .keys()
        .any(|key| inner.layout.layer(key) == path || inner.layout.blob(key) == path)
}

/// Adds up records; only the small directories are walked.
pub(super) fn usage(inner: &Inner) -> Result<Usage, ImageStoreError> {
    use std::os::unix::fs::MetadataExt as _;
    let mut usage = Usage {
        mountpoint: inner.layout.root().to_owned(),
        ..Usage::default()
    };
    for layer in inner.state().layers.values() {
        usage.used_bytes += layer.size_bytes;
        usage.inodes_used += layer.inodes;
    }
    for directory in [
        inner.layout.blobs().join("sha256"),
        inner.layout.blobs().join("sha512"),
        inner.layout.ingest(),
        inner.layout.images(),
        inner.layout.holds(),
    ] {
        let entries = std::fs::read_dir(&directory)
            .map_err(ImageStoreError::io(directory.display().to_string()))?;
        for entry in entries.flatten() {
            // One that vanished meanwhile weighs nothing.
            if let Ok(meta) = entry.metadata() {
                usage.used_bytes += meta.blocks() * 512;
                usage.inodes_used += 1;
            }
        }
    }
    Ok(usage)
}
