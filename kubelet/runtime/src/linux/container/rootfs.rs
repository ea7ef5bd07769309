//! A container's files: its root, and what is behind each of its mounts.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::api::*;
use crate::linux::{Inner, io, layout, mount};

/// Of the image's /etc/passwd and /etc/group at most this much is read.
const MAX_USER_FILE_BYTES: u64 = 8 << 20;

/// The pod's user namespace, as the mounts of its containers need it.
pub struct PodUser<'a> {
    pub namespace: File,
    pub mapping: &'a UserNamespace,
}

impl PodUser<'_> {
    /// (uid, gid) on the node of the namespace's root.
    fn root(&self) -> (u32, u32) {
        (
            host_id(&self.mapping.uids, 0),
            host_id(&self.mapping.gids, 0),
        )
    }
}

/// The group on the node of a user namespace's root.
pub fn root_gid(mapping: &UserNamespace) -> u32 {
    host_id(&mapping.gids, 0)
}

/// What an id of a user namespace is on the node; one that is not mapped is its root's.
fn host_id(maps: &[IdMapping], id: u32) -> u32 {
    let find = |id: u32| {
        maps.iter().find_map(|map| {
            let offset = id.checked_sub(map.container_id)?;
            (offset < map.length).then(|| map.host_id + offset)
        })
    };
    find(id).or_else(|| find(0)).unwrap_or(0)
}

/// The container's directories. Only the pod's own root may walk through the one with the mount points.
fn make_directories(
    inner: &Inner,
    id: &str,
    user: Option<&PodUser<'_>>,
) -> Result<(), RuntimeError> {
    let (directory, state) = (inner.layout.container(id), inner.layout.container_state(id));
    layout::private_directory(&directory).map_err(io(format!("create {}", directory.display())))?;
    let made = match user {
        None => layout::private_directory(&state),
        Some(user) => inner
            .layout
            .open_for_user_namespaces()
            .and_then(|()| layout::passage(&state, user.root().1)),
    };
    made.map_err(io(format!("create {}", state.display())))
}

/// The overlay the container runs on. In a user namespace the layers are seen through an idmapped
/// view, and the writable layer belongs to the namespace's root.
pub fn mount_root(
    inner: &Inner,
    id: &str,
    lower: &[PathBuf],
    user: Option<&PodUser<'_>>,
) -> Result<PathBuf, RuntimeError> {
    make_directories(inner, id, user)?;
    let directory = inner.layout.container(id);
    let (upper, work) = (directory.join("upper"), directory.join("work"));
    let rootfs = inner.layout.rootfs(id);
    for path in [&upper, &work, &rootfs] {
        fs::create_dir_all(path).map_err(io(format!("create {}", path.display())))?;
    }
    copy_attributes(&lower[0], &upper, user).map_err(io("set the writable layer's attributes"))?;
    if let Some((uid, gid)) = user.map(PodUser::root) {
        std::os::unix::fs::chown(&work, Some(uid), Some(gid))
            .map_err(io(format!("chown {}", work.display())))?;
    }
    let staging = inner.layout.container_state(id).join("lower");
    with_layers(lower, &staging, user, |lower| {
        mount::overlay(&rootfs, lower, Some((&upper, &work)))
            .map_err(io("mount the root file system"))
    })?;
    Ok(rootfs)
}

/// Hands the layers on; in a user namespace, views of them in which its ids own what they own in the image. The views
/// go again: an overlay keeps what it was made from.
fn with_layers(
    layers: &[PathBuf],
    staging: &Path,
    user: Option<&PodUser<'_>>,
    work: impl FnOnce(&[PathBuf]) -> Result<(), RuntimeError>,
) -> Result<(), RuntimeError> {
    let Some(user) = user else {
        return work(layers);
    };
    let mut staged = Vec::new();
    let mut result = Ok(());
    for (index, layer) in layers.iter().enumerate() {
        let target = staging.join(index.to_string());
        result = fs::create_dir_all(&target)
            .and_then(|()| mount::view(layer, &target, Some(&user.namespace)))
            .map_err(|error| idmap_error(layer, &error));
        staged.push(target);
        if result.is_err() {
            break;
        }
    }
    let result = result.and_then(|()| work(&staged));
    for target in &staged {
        let _ = mount::unmount(target);
        // Never what is in it: a view that stayed shows the image's own files.
        let _ = fs::remove_dir(target);
    }
    let _ = fs::remove_dir(staging);
    result
}

/// As runc words it.
fn idmap_error(path: &Path, error: &std::io::Error) -> RuntimeError {
    RuntimeError::Create(format!(
        "{}: {error} (maybe the filesystem used doesn't support idmap mounts on this kernel?)",
        path.display()
    ))
}

/// The root of the merged view is the writable layer's: it must look as the image's.
fn copy_attributes(from: &Path, to: &Path, user: Option<&PodUser<'_>>) -> std::io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let data = fs::metadata(from)?;
    let (uid, gid) = match user {
        None => (data.uid(), data.gid()),
        Some(user) => (
            host_id(&user.mapping.uids, data.uid()),
            host_id(&user.mapping.gids, data.gid()),
        ),
    };
    std::os::unix::fs::chown(to, Some(uid), Some(gid))?;
    fs::set_permissions(to, data.permissions())
}

/// Refuses an image whose /proc or /sys is a link: the file system would be mounted where that leads, and a volume on top of it
/// there, where it is not looked for. A process then writes its AppArmor profile into the volume.
///
/// Upstream: runc's "filesystem must be mounted on ordinary directory" (CVE-2019-19921).
pub fn check_ordinary(root: &Path) -> Result<(), RuntimeError> {
    for name in ["proc", "sys"] {
        match fs::symlink_metadata(root.join(name)) {
            Ok(found) if !found.is_dir() => {
                return Err(RuntimeError::Create(format!(
                    "filesystem {name:?} must be mounted on ordinary directory"
                )));
            }
            // A directory, or it is made.
            _ => {}
        }
    }
    Ok(())
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

/// The host path behind each mount: as given, a view of it, or an image's root.
pub fn stage_mounts(
    inner: &Inner,
    id: &str,
    config: &ContainerConfig,
    image_mounts: &[(usize, Vec<PathBuf>)],
    user: Option<&PodUser<'_>>,
) -> Result<Vec<PathBuf>, RuntimeError> {
    let state = inner.layout.container_state(id);
    let mut sources = Vec::with_capacity(config.mounts.len());
    for (index, wanted) in config.mounts.iter().enumerate() {
        let layers = image_mounts
            .iter()
            .find(|(at, _)| *at == index)
            .map(|(_, layers)| layers);
        let source = match layers {
            Some(layers) => {
                let target = state.join("images").join(index.to_string());
                fs::create_dir_all(&target).map_err(io(format!("create {}", target.display())))?;
                let staging = state.join("lower");
                with_layers(layers, &staging, user, |layers| {
                    mount_image(layers, &target).map_err(|error| {
                        RuntimeError::Create(format!("mount image {:?}: {error}", wanted.image))
                    })
                })?;
                sub_path(&target, &wanted.image_sub_path)?
            }
            None => {
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
                stage(
                    inner,
                    id,
                    &index.to_string(),
                    &wanted.host_path,
                    wanted.idmap,
                    user,
                )?
            }
        };
        sources.push(source);
    }
    Ok(sources)
}

/// Where the container finds a path of the node: at its place, or, in a user namespace, at a view of it below a
/// directory that the namespace's root can walk to. What is above the path itself may be closed to it, and mostly is.
pub fn stage(
    inner: &Inner,
    id: &str,
    name: &str,
    source: &Path,
    idmap: bool,
    user: Option<&PodUser<'_>>,
) -> Result<PathBuf, RuntimeError> {
    let Some(user) = user else {
        return Ok(source.to_owned());
    };
    let mounts = inner.layout.container_state(id).join("mounts");
    let target = mounts.join(name);
    let is_directory = fs::metadata(source)
        .map_err(io(format!("stat {}", source.display())))?
        .is_dir();
    let made = if is_directory {
        fs::create_dir_all(&target)
    } else {
        fs::create_dir_all(&mounts).and_then(|()| File::create(&target).map(drop))
    };
    made.map_err(io(format!("create {}", target.display())))?;
    mount::view(source, &target, idmap.then_some(&user.namespace))
        .map_err(|error| idmap_error(source, &error))?;
    Ok(target)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_and_sys_of_an_image_are_no_links() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        assert!(check_ordinary(root.path()).is_ok(), "they are made");
        fs::create_dir(at("proc")).unwrap();
        fs::create_dir(at("data")).unwrap();
        assert!(check_ordinary(root.path()).is_ok());
        std::os::unix::fs::symlink("data", at("sys")).unwrap();
        let error = check_ordinary(root.path()).unwrap_err().to_string();
        let expect = "filesystem \"sys\" must be mounted on ordinary directory";
        assert!(error.contains(expect), "{error}");
        fs::remove_file(at("sys")).unwrap();
        fs::remove_dir(at("proc")).unwrap();
        std::os::unix::fs::symlink("/data", at("proc")).unwrap();
        assert!(check_ordinary(root.path()).is_err());
    }
}
