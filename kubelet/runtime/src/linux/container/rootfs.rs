//! A container's files: its root, and what is behind each of its mounts.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::api::*;
use crate::linux::{Inner, io, layout, mount};

/// Of the image's /etc/passwd and /etc/group at most this much is read.
const MAX_USER_FILE_BYTES: u64 = 8 << 20;

/// The overlay the container runs on. In a user namespace the layers are seen through an idmapped
/// view, and the writable layer belongs to the namespace's root.
pub fn mount_root(
    inner: &Inner,
    id: &str,
    lower: &[PathBuf],
    user_namespace: Option<&(File, &UserNamespace)>,
) -> Result<PathBuf, RuntimeError> {
    let directory = inner.layout.container(id);
    let (upper, work) = (directory.join("upper"), directory.join("work"));
    let rootfs = inner.layout.rootfs(id);
    for path in [&upper, &work, &rootfs] {
        fs::create_dir_all(path).map_err(io(format!("create {}", path.display())))?;
    }
    copy_attributes(&lower[0], &upper).map_err(io("set the writable layer's attributes"))?;
    let Some((namespace, mapping)) = user_namespace else {
        mount::overlay(&rootfs, lower, Some((&upper, &work)))
            .map_err(io("mount the root file system"))?;
        return Ok(rootfs);
    };
    let host_id = |maps: &[IdMapping]| {
        maps.iter()
            .find(|map| map.container_id == 0)
            .map_or(0, |map| map.host_id)
    };
    for path in [&upper, &work] {
        std::os::unix::fs::chown(
            path,
            Some(host_id(&mapping.uids)),
            Some(host_id(&mapping.gids)),
        )
        .map_err(io(format!("chown {}", path.display())))?;
    }
    let staging = inner.layout.container_state(id).join("lower");
    let mut staged = Vec::new();
    let mut result = Ok(());
    for (index, layer) in lower.iter().enumerate() {
        let target = staging.join(index.to_string());
        fs::create_dir_all(&target).map_err(io(format!("create {}", target.display())))?;
        result = mount::idmapped(layer, &target, namespace).map_err(|error| {
            RuntimeError::Create(format!(
                "user namespaces need a file system that supports idmapped mounts: {}: {error}",
                layer.display()
            ))
        });
        staged.push(target);
        if result.is_err() {
            break;
        }
    }
    let result = result.and_then(|()| {
        mount::overlay(&rootfs, &staged, Some((&upper, &work)))
            .map_err(io("mount the root file system"))
    });
    // The overlay keeps the views it was made from.
    for target in &staged {
        let _ = mount::unmount(target);
    }
    let _ = layout::remove_tree(&staging);
    result.map(|()| rootfs)
}

/// The root of the merged view is the writable layer's: it must look as the image's.
fn copy_attributes(from: &Path, to: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let data = fs::metadata(from)?;
    std::os::unix::fs::chown(to, Some(data.uid()), Some(data.gid()))?;
    fs::set_permissions(to, data.permissions())
}

/// A text of the image; empty where there is none.
pub fn read_in_root(root: &Path, path: &str) -> String {
    let mut text = Vec::new();
    if let Ok(file) = mount::open_in_root(root, path, libc::O_RDONLY | libc::O_NONBLOCK)
        && file.metadata().is_ok_and(|data| data.is_file())
    {
        let _ = file.take(MAX_USER_FILE_BYTES).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The host path behind each mount: as given, an idmapped view of it, or an image's root.
pub fn stage_mounts(
    inner: &Inner,
    id: &str,
    config: &ContainerConfig,
    image_mounts: &[(usize, Vec<PathBuf>)],
    user_namespace: Option<&File>,
) -> Result<Vec<PathBuf>, RuntimeError> {
    let state = inner.layout.container_state(id);
    let mut sources = Vec::with_capacity(config.mounts.len());
    for (index, wanted) in config.mounts.iter().enumerate() {
        let layers = image_mounts
            .iter()
            .find(|(at, _)| *at == index)
            .map(|(_, layers)| layers);
        let source = match (layers, user_namespace) {
            (Some(layers), _) => {
                let target = state.join("images").join(index.to_string());
                fs::create_dir_all(&target).map_err(io(format!("create {}", target.display())))?;
                mount_image(layers, &target).map_err(|error| {
                    RuntimeError::Create(format!("mount image {:?}: {error}", wanted.image))
                })?;
                sub_path(&target, &wanted.image_sub_path)?
            }
            (None, Some(namespace)) if wanted.idmap => {
                let target = state.join("volumes").join(index.to_string());
                let data = fs::metadata(&wanted.host_path).map_err(|error| {
                    RuntimeError::Create(format!("{}: {error}", wanted.host_path.display()))
                })?;
                let made = if data.is_dir() {
                    fs::create_dir_all(&target)
                } else {
                    fs::create_dir_all(state.join("volumes"))
                        .and_then(|()| File::create(&target).map(drop))
                };
                made.map_err(io(format!("create {}", target.display())))?;
                match mount::idmapped(&wanted.host_path, &target, namespace) {
                    Ok(()) => target,
                    // Not every file system can (tmpfs before 6.3, NFS): as containerd with uid mapping off.
                    Err(error) => {
                        return Err(RuntimeError::Create(format!(
                            "failed to set MOUNT_ATTR_IDMAP on {}: {error} (maybe the filesystem used doesn't support idmap mounts on this kernel?)",
                            wanted.host_path.display()
                        )));
                    }
                }
            }
            (None, _) => {
                if !wanted.host_path.exists() {
                    // containerd makes a missing source as a directory.
                    fs::create_dir_all(&wanted.host_path).map_err(|error| {
                        RuntimeError::Create(format!(
                            "failed to mkdir {:?}: {error}",
                            wanted.host_path
                        ))
                    })?;
                }
                if wanted.propagation != MountPropagation::Private {
                    check_propagation(wanted)?;
                }
                wanted.host_path.clone()
            }
        };
        sources.push(source);
    }
    Ok(sources)
}

fn mount_image(layers: &[PathBuf], target: &Path) -> std::io::Result<()> {
    if layers.len() > 1 {
        return mount::overlay(target, layers, None);
    }
    // A read-only overlay wants two layers.
    let empty = target.with_extension("empty");
    fs::create_dir_all(&empty)?;
    let both = [layers, std::slice::from_ref(&empty)].concat();
    mount::overlay(target, &both, None)
}

/// A path below an image's root, whose links cannot lead out of it.
fn sub_path(root: &Path, sub_path: &str) -> Result<PathBuf, RuntimeError> {
    if sub_path.is_empty() {
        return Ok(root.to_owned());
    }
    let bad = |reason: String| RuntimeError::Invalid {
        field: "subPath",
        value: sub_path.to_owned(),
        reason,
    };
    let file = mount::open_in_root(root, sub_path, libc::O_PATH)
        .map_err(|error| bad(format!("failed to find it in the image: {error}")))?;
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    fs::read_link(link).map_err(|error| bad(error.to_string()))
}

/// The host's side must be shared (or a slave) for the propagation asked for, as runc and upstream say.
fn check_propagation(wanted: &Mount) -> Result<(), RuntimeError> {
    let path = fs::canonicalize(&wanted.host_path).unwrap_or_else(|_| wanted.host_path.clone());
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(io("read mountinfo"))?;
    let flags = table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let end = fields.iter().position(|field| *field == "-")?;
            let point = Path::new(fields.get(4)?);
            path.starts_with(point)
                .then(|| (point.components().count(), fields[6..end].join(" ")))
        })
        // Of two mounts on one point the later one is on top.
        .max_by_key(|(depth, _)| *depth)
        .map(|(_, flags)| flags)
        .unwrap_or_default();
    let shared = flags.contains("shared:");
    let fits = match wanted.propagation {
        MountPropagation::Bidirectional => shared,
        MountPropagation::HostToContainer => shared || flags.contains("master:"),
        MountPropagation::Private => true,
    };
    if fits {
        return Ok(());
    }
    let kind = if wanted.propagation == MountPropagation::Bidirectional {
        "shared"
    } else {
        "shared or slave"
    };
    Err(RuntimeError::Create(format!(
        "path {:?} is mounted on a mount that is not a {kind} mount",
        wanted.host_path.display().to_string()
    )))
}
