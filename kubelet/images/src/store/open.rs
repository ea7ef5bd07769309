//! Opening the store: what a crash left is found, mended or cleared away.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;

use super::{ImageStoreConfig, ImageStoreError, Inner, Known, State, gc};
use crate::layout::{HoldRecord, ImageRecord, LayerRecord, Layout, VERSION, read_json, remove_any};
use crate::registry::Registry;

/// A partial download nobody went on with for this long is given up.
const INGEST_MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// How long the store's former owner may take to let go.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Opens the store at `config.root`.
pub(super) fn open(config: ImageStoreConfig) -> Result<Inner, ImageStoreError> {
    let layout = Layout::new(config.root.clone());
    let io_at = |path: &std::path::Path| ImageStoreError::io(path.display().to_string());
    let empty_fs = layout.empty_fs();
    for directory in [
        layout.root().to_owned(),
        layout.blobs().join("sha256"),
        layout.blobs().join("sha512"),
        layout.layers(),
        empty_fs,
        layout.images(),
        layout.holds(),
        layout.ingest(),
        layout.tmp(),
    ] {
        std::fs::create_dir_all(&directory).map_err(io_at(&directory))?;
    }
    // Layers hold setuid programs and files of every mode: nobody but root walks in here.
    restrict(layout.root()).map_err(io_at(layout.root()))?;

    let lock_path = layout.lock();
    let lock = std::fs::File::create(&lock_path).map_err(io_at(&lock_path))?;
    take_lock(&lock).map_err(|_| ImageStoreError::Locked {
        path: layout.root().to_owned(),
    })?;
    let version = check_version(&layout)?;

    for leftover in entries(&layout.tmp())? {
        remove_any(&leftover).map_err(io_at(&leftover))?;
    }
    clear_old_ingest(&layout)?;

    if version < VERSION {
        rename_layers(&layout)?;
        write_version(&layout)?;
    }
    let mut state = State::default();
    read_layers(&layout, &mut state)?;
    read_holds(&layout, &mut state)?;
    read_images(&layout, &mut state)?;

    let registry = Registry::new(
        config.registry_config_dir.clone(),
        config.user_agent.clone(),
    );
    let inner = Inner {
        config,
        layout,
        registry,
        writer: Mutex::new(()),
        state: Mutex::new(state),
        flights: Mutex::new(HashMap::new()),
        unpacking: Arc::new(tokio::sync::Semaphore::new(super::UNPACK_PERMITS as usize)),
        _lock: lock,
    };
    // What no record names may not have reached the disk before a power cut.
    gc::collect(&inner)?;
    Ok(inner)
}

/// A process that just ended may hold the lock for another moment.
fn take_lock(lock: &std::fs::File) -> Result<(), rustix::io::Errno> {
    let started = std::time::Instant::now();
    loop {
        match rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if started.elapsed() < LOCK_TIMEOUT => {
                std::thread::sleep(LOCK_RETRY);
            }
            other => return other,
        }
    }
}

fn restrict(root: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o700))
}

/// The version the store has; a new one has ours.
fn check_version(layout: &Layout) -> Result<u32, ImageStoreError> {
    let path = layout.version();
    match std::fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse::<u32>() {
            Ok(found) if found <= VERSION => Ok(found),
            // An empty file is a torn one: the version is written atomically, but a disk may lie.
            _ if text.trim().is_empty() => write_version(layout).map(|()| VERSION),
            _ => Err(ImageStoreError::Version {
                path: layout.root().to_owned(),
                found: text.trim().to_owned(),
                known: VERSION,
            }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            write_version(layout).map(|()| VERSION)
        }
        Err(source) => Err(ImageStoreError::Io {
            context: path.display().to_string(),
            source,
        }),
    }
}

/// Brings the layers of version 1 under their whole names. Containers that stand on them keep what they have mounted;
/// a layer whose record is torn keeps its name and goes when nobody holds anything any more.
fn rename_layers(layout: &Layout) -> Result<(), ImageStoreError> {
    for path in entries(&layout.layers())? {
        let Ok(record) = read_json::<LayerRecord>(&path.join("layer.json")) else {
            continue;
        };
        if crate::reference::validate_digest(&record.chain_id).is_ok()
            && layout.old_layer(&record.chain_id) == path
        {
            std::fs::rename(&path, layout.layer(&record.chain_id))
                .map_err(ImageStoreError::io(path.display().to_string()))?;
        }
    }
    Ok(())
}

fn write_version(layout: &Layout) -> Result<(), ImageStoreError> {
    let path = layout.version();
    layout
        .write_atomic(&path, format!("{VERSION}\n").as_bytes())
        .map_err(ImageStoreError::io(path.display().to_string()))
}

fn entries(directory: &std::path::Path) -> Result<Vec<PathBuf>, ImageStoreError> {
    std::fs::read_dir(directory)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect()
        })
        .map_err(ImageStoreError::io(directory.display().to_string()))
}

fn clear_old_ingest(layout: &Layout) -> Result<(), ImageStoreError> {
    for path in entries(&layout.ingest())? {
        let fresh = std::fs::metadata(&path)
            .and_then(|meta| meta.modified())
            .is_ok_and(|at| {
                SystemTime::now()
                    .duration_since(at)
                    .is_ok_and(|age| age < INGEST_MAX_AGE)
            });
        if !fresh {
            remove_any(&path).map_err(ImageStoreError::io(path.display().to_string()))?;
        }
    }
    Ok(())
}

fn read_layers(layout: &Layout, state: &mut State) -> Result<(), ImageStoreError> {
    for path in entries(&layout.layers())? {
        if path.file_name().is_some_and(|name| name == "empty") {
            continue;
        }
        match read_json::<LayerRecord>(&path.join("layer.json")) {
            Ok(record) if layout.layer(&record.chain_id) == path => {
                state.layers.insert(record.chain_id.clone(), record);
            }
            // Its size is lost, its files are not: a container may stand on it. Garbage collection decides by path.
            other => {
                let error = other
                    .err()
                    .map_or_else(|| "names another layer".into(), |e| e.to_string());
                tracing::warn!(path = %path.display(), error, "layer record is unreadable");
            }
        }
    }
    Ok(())
}

fn read_holds(layout: &Layout, state: &mut State) -> Result<(), ImageStoreError> {
    for path in entries(&layout.holds())? {
        let Some(holder) = path
            .file_stem()
            .and_then(|name| name.to_str())
            .map(str::to_owned)
        else {
            continue;
        };
        match read_json::<HoldRecord>(&path) {
            Ok(record) => {
                state.holds.insert(holder, record);
            }
            Err(error) => {
                tracing::error!(holder, %error, "hold record is unreadable: no layer is removed until it is released");
                state.torn_holds.insert(holder);
            }
        }
    }
    Ok(())
}

fn read_images(layout: &Layout, state: &mut State) -> Result<(), ImageStoreError> {
    let mut found: Vec<(SystemTime, Known)> = Vec::new();
    for path in entries(&layout.images())? {
        match read_image(layout, state, &path) {
            Ok(known) => {
                let at = std::fs::metadata(&path)
                    .and_then(|meta| meta.modified())
                    .unwrap_or(SystemTime::UNIX_EPOCH);
                found.push((at, known));
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "image record is unusable: the image is forgotten");
                remove_any(&path).map_err(ImageStoreError::io(path.display().to_string()))?;
            }
        }
    }
    // A crash amid moving a tag leaves it at two images: the later record wins.
    found.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    let mut tags = std::collections::HashSet::new();
    for (_, mut known) in found {
        known
            .record
            .repo_tags
            .retain(|tag| tags.insert(tag.clone()));
        state.images.insert(known.record.id.clone(), known);
    }
    Ok(())
}

fn read_image(layout: &Layout, state: &State, path: &std::path::Path) -> io::Result<Known> {
    let record: ImageRecord = read_json(path)?;
    if layout.image(&record.id) != path {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "names another image",
        ));
    }
    let boot_id = crate::layout::boot_id();
    if let Some(boot) = &record.unsynced_boot
        && (boot.is_empty() || *boot != boot_id)
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the machine went down before its layers had reached the disk",
        ));
    }
    let bytes = std::fs::read(layout.blob(&record.id))?;
    if !crate::digest::matches(&bytes, &record.id) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "its config does not match its digest",
        ));
    }
    let config = crate::config::parse(&bytes).map_err(io::Error::other)?;
    if let Some(missing) = record
        .layers
        .iter()
        .find(|layer| !state.layers.contains_key(*layer))
    {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("layer {missing} is gone"),
        ));
    }
    Ok(Known {
        record,
        config: Arc::new(config.image),
    })
}
