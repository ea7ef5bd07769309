//! Which PID namespace a container is to live in, and the view of /proc that goes with it.
//!
//! libcontainer would enter a namespace that has processes already while it still stands in the node's
//! file systems, and would look its PIDs up in the node's /proc. So it is only ever asked for a new PID
//! namespace or none: for one that exists, its configuration is rewritten, and the process is born
//! there at the very end (see [`crate::launch`]). /proc then comes from a view that was mounted when
//! nobody was in the namespace yet.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::sys;

/// Name of the pod's view of /proc beside its pinned namespaces.
pub const POD_PROC: &str = "proc";

/// Where a container's processes live.
#[derive(Debug)]
pub enum PidPlan {
    /// In a new namespace, or in the node's: libcontainer's own business.
    Plain { is_new: bool },
    /// In one that exists; `proc` is a mounted view of it.
    Existing { namespace: File, proc: PathBuf },
}

/// A container's own PID namespace, for containers that will want to share it.
#[derive(Debug)]
pub struct View {
    /// Inode of the namespace.
    pub namespace: u64,
    /// A detached mount of its /proc; attached at its first use.
    pub mount: Option<OwnedFd>,
}

/// What the bundle's configuration says of PID namespaces: `None`, or the path if there is one.
pub fn wanted(bundle: &Path) -> Result<Option<Option<PathBuf>>, String> {
    let path = bundle.join("config.json");
    let text = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let config: Value =
        serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut namespaces = config["linux"]["namespaces"]
        .as_array()
        .into_iter()
        .flatten();
    let found = namespaces.find(|one| one["type"] == "pid");
    Ok(found.map(|one| one["path"].as_str().map(PathBuf::from)))
}

/// Inode of a namespace's file: equal for equal namespaces.
pub fn inode(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.ino())
}

/// Opens the namespace and finds its view: the pod's, or that of one of its containers.
///
/// # Errors
/// The namespace belongs to nothing of this pod: its process ended, and the number may be another's now.
pub fn plan<'a>(
    path: &Path,
    pins: &Path,
    mut views: impl Iterator<Item = (&'a str, &'a mut View)>,
) -> Result<PidPlan, String> {
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let number = file
        .metadata()
        .map_err(|error| format!("{}: {error}", path.display()))?
        .ino();
    let own = inode(Path::new("/proc/self/ns/pid")).map_err(|error| format!("own: {error}"))?;
    if number == own {
        return Ok(PidPlan::Plain { is_new: false });
    }
    if inode(&pins.join("pid")).is_ok_and(|pinned| pinned == number) {
        return Ok(PidPlan::Existing {
            namespace: file,
            proc: pins.join(POD_PROC),
        });
    }
    let Some((id, view)) = views.find(|(_, view)| view.namespace == number) else {
        return Err(format!(
            "{} is no PID namespace of this pod",
            path.display()
        ));
    };
    let proc = staging(pins, id);
    if let Some(mount) = view.mount.take() {
        fs::create_dir_all(&proc)
            .and_then(|()| sys::attach_mount(&mount, &proc))
            .map_err(|error| format!("mount /proc of container {id}: {error}"))?;
    }
    Ok(PidPlan::Existing {
        namespace: file,
        proc,
    })
}

fn staging(pins: &Path, id: &str) -> PathBuf {
    pins.join(format!("{POD_PROC}-{id}"))
}

/// Takes a container's view away again.
pub fn forget(pins: &Path, id: &str) {
    unmount(&staging(pins, id));
}

/// Unmounts a view and removes its directory; one that is not there is fine.
pub fn unmount(path: &Path) {
    if let Ok(c_path) = sys::path_to_c(path) {
        // SAFETY: the string lives through the call.
        unsafe { libc::umount2(c_path.as_ptr(), libc::MNT_DETACH) };
    }
    let _ = fs::remove_dir(path);
}

/// Mounts a view of a PID namespace at `target`, by a process born there.
///
/// Only for a namespace that nobody but us is in: that process stands in the node's file systems.
pub fn mount_proc(namespace: &Path, target: &Path) -> Result<(), String> {
    fs::create_dir_all(target).map_err(|error| format!("{}: {error}", target.display()))?;
    let file =
        File::open(namespace).map_err(|error| format!("{}: {error}", namespace.display()))?;
    let (ours, theirs) = sys::pipe().map_err(|error| format!("pipe: {error}"))?;
    let outer = sys::fork().map_err(|error| format!("fork: {error}"))?;
    if outer == 0 {
        drop(ours);
        let result = sys::set_namespace(&file, libc::CLONE_NEWPID)
            .and_then(|()| sys::fork())
            .and_then(|inner| match inner {
                0 => sys::mount_proc(target),
                inner => sys::wait_for(inner).map(drop),
            });
        if let Err(error) = result {
            let _ = sys::write(&theirs, error.to_string().as_bytes());
        }
        sys::exit_now(0);
    }
    drop(theirs);
    let mut buffer = [0u8; 256];
    let count = sys::read(&ours, &mut buffer);
    let _ = sys::wait_for(outer);
    match count {
        Ok(0) => Ok(()),
        Ok(count) => Err(format!(
            "mount {}: {}",
            target.display(),
            String::from_utf8_lossy(&buffer[..count])
        )),
        Err(error) => Err(format!("mount {}: {error}", target.display())),
    }
}

/// Writes the bundle that libcontainer gets instead: without the PID namespace, with /proc bound from
/// `proc`. Masks and read-only paths stay as they are; they lie on top.
pub fn rewrite(bundle: &Path, proc: &Path, target: &Path) -> Result<(), String> {
    let path = bundle.join("config.json");
    let text = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut config: Value =
        serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let root = PathBuf::from(config["root"]["path"].as_str().unwrap_or_default());
    // As libcontainer has it for a /proc of its own: a link must not lead the masks elsewhere.
    if fs::symlink_metadata(root.join("proc")).is_ok_and(|data| !data.is_dir()) {
        return Err("filesystem proc must be mounted on ordinary directory".to_owned());
    }
    change(&mut config, proc);
    fs::create_dir_all(target)
        .and_then(|()| fs::write(target.join("config.json"), config.to_string()))
        .map_err(|error| format!("{}: {error}", target.display()))
}

fn change(config: &mut Value, proc: &Path) {
    if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|one| one["type"] != "pid");
    }
    for mount in config["mounts"].as_array_mut().into_iter().flatten() {
        if mount["type"] == "proc" {
            let mut options = vec![json!("bind")];
            options.extend(mount["options"].as_array().into_iter().flatten().cloned());
            mount["type"] = json!("bind");
            mount["source"] = json!(proc);
            mount["options"] = Value::Array(options);
        }
    }
}

/// A detached copy of the /proc we see, to be kept for others.
pub fn detach_own() -> io::Result<OwnedFd> {
    let fd = sys::clone_mount(Path::new("/proc"))?;
    // SAFETY: `stat` is live, the descriptor open.
    let magic = unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        sys::check(libc::fstatfs(fd.as_raw_fd(), &mut stat))?;
        stat.f_type as i64
    };
    if magic != libc::PROC_SUPER_MAGIC as i64 {
        return Err(io::Error::other("/proc is no procfs"));
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_lose_their_pid_namespace_and_bind_proc() {
        let mut config = json!({
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"] },
                { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"] },
            ],
            "linux": { "namespaces": [{ "type": "mount" }, { "type": "pid", "path": "/x" }], "maskedPaths": ["/proc/kcore"] },
        });
        change(&mut config, Path::new("/state/proc"));
        assert_eq!(
            config,
            json!({
                "mounts": [
                    { "destination": "/proc", "type": "bind", "source": "/state/proc", "options": ["bind", "nosuid"] },
                    { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"] },
                ],
                "linux": { "namespaces": [{ "type": "mount" }], "maskedPaths": ["/proc/kcore"] },
            })
        );
    }

    #[test]
    fn a_namespace_of_nobody_here_is_refused() {
        // The namespaces of another kind serve as ones that are not ours.
        let path = Path::new("/proc/self/ns/net");
        let error = plan(path, Path::new("/nowhere"), std::iter::empty()).unwrap_err();
        assert!(error.contains("no PID namespace of this pod"), "{error}");
        let own = plan(
            Path::new("/proc/self/ns/pid"),
            Path::new("/nowhere"),
            std::iter::empty(),
        );
        assert!(
            matches!(own, Ok(PidPlan::Plain { is_new: false })),
            "{own:?}"
        );
    }
}
