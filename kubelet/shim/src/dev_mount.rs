//! A directory of the node's at a container's /dev, mounted last.
//!
//! libcontainer makes links, devices and the terminals' multiplexer in whatever is at /dev when the mounts are done. In the
//! node's own /dev that fails where one is there already, and where none is it would change the node. So /dev is covered when
//! the container's root stands and its program has not begun; what was mounted below it is mounted below it again.
//!
//! Upstream: runc leaves /dev alone if a mount of the container is there (`needsSetupDev`).

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use shim_protocol::{DevMount, Propagation};

use crate::sys;

const DEV: &str = "/dev";

/// Covers the /dev of the container whose waiting init has this PID. In a child: a thread that entered the container's
/// mounts would not find the node's again.
///
/// # Errors
/// In the words for an event: which path, and why.
pub fn cover(pid: i32, mount: &DevMount) -> Result<(), String> {
    let tree = detached(mount)
        .map_err(|error| format!("mount {} at {DEV}: {error}", mount.source.display()))?;
    let namespace = format!("/proc/{pid}/ns/mnt");
    let namespace = File::open(&namespace).map_err(|error| format!("{namespace}: {error}"))?;
    let (said, say) = sys::pipe().map_err(|error| format!("pipe: {error}"))?;
    match sys::fork().map_err(|error| format!("fork: {error}"))? {
        0 => {
            drop(said);
            let failed = enter(&namespace.into(), &tree, mount).err();
            if let Some(error) = &failed {
                let _ = io::Write::write_all(&mut File::from(say), error.as_bytes());
            }
            sys::exit_now(i32::from(failed.is_some()))
        }
        child => {
            drop(say);
            let mut error = String::new();
            let read = io::Read::read_to_string(&mut File::from(said), &mut error);
            let status = sys::wait_for(child).map_err(|error| format!("waitpid: {error}"))?;
            match (status, read) {
                (0, _) => Ok(()),
                (_, Ok(_)) if !error.is_empty() => Err(error),
                _ => Err(format!("mount at {DEV}: the helper died")),
            }
        }
    }
}

/// The mount, nowhere yet, as it shall be.
fn detached(mount: &DevMount) -> io::Result<OwnedFd> {
    let tree = clone_of(&mount.source)?;
    let (all, top) = (libc::AT_RECURSIVE, 0);
    if mount.read_only {
        let depth = if mount.recursive_read_only { all } else { top };
        set(&tree, depth, libc::MOUNT_ATTR_RDONLY, 0)?;
    }
    let propagation = match mount.propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
        // As it is on the node.
        Propagation::Shared => return Ok(tree),
    };
    set(&tree, all, 0, propagation)?;
    Ok(tree)
}

/// In the container's mounts. Nothing that can be looked up there was made by the container: its program waits.
fn enter(namespace: &OwnedFd, tree: &OwnedFd, mount: &DevMount) -> Result<(), String> {
    sys::set_namespace(namespace, libc::CLONE_NEWNS).map_err(|error| format!("setns: {error}"))?;
    let named = |what: &str, path: &str, error: io::Error| format!("{what} {path}: {error}");
    let mut below = Vec::new();
    for path in &mount.below {
        let clone = clone_of(Path::new(path)).map_err(|error| named("open_tree", path, error))?;
        let is_dir = fs::metadata(path).is_ok_and(|found| found.is_dir());
        below.push((path, clone, is_dir));
    }
    attach(tree, Path::new(DEV)).map_err(|error| named("mount at", DEV, error))?;
    for (path, clone, is_dir) in below {
        // As upstream's runtimes, a place to mount at is made where there is none.
        let made = match (fs::symlink_metadata(path), is_dir) {
            (Ok(_), _) => Ok(()),
            (Err(_), true) => fs::create_dir_all(path),
            (Err(_), false) => File::create_new(path).map(drop),
        };
        made.and_then(|()| attach(&clone, Path::new(path)))
            .map_err(|error| named("mount at", path, error))?;
    }
    Ok(())
}

fn check(result: libc::c_long) -> io::Result<RawFd> {
    match RawFd::try_from(result) {
        Ok(fd) if fd >= 0 => Ok(fd),
        _ => Err(io::Error::last_os_error()),
    }
}

fn to_c(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "path with a NUL byte"))
}

/// A copy of the mounts at and below `path`, attached nowhere.
fn clone_of(path: &Path) -> io::Result<OwnedFd> {
    let path = to_c(path)?;
    let flags =
        libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as libc::c_uint;
    // SAFETY: the path lives through the call; the descriptor is new and ours.
    unsafe {
        let fd = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags);
        check(fd).map(|fd| OwnedFd::from_raw_fd(fd))
    }
}

fn attach(tree: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = to_c(path)?;
    // SAFETY: both strings live through the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
    .map(drop)
}

fn set(tree: &OwnedFd, depth: libc::c_int, attributes: u64, propagation: u64) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation,
        userns_fd: 0,
    };
    // SAFETY: the string is static, the structure lives through the call and its size is told.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | depth,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}
