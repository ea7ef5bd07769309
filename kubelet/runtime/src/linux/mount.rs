//! Mounts on the host's side: overlay roots, tmpfs, idmapped views, and taking them apart again.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// mount(2) takes one page of options.
const MAX_OPTION_BYTES: usize = 4095;

/// Kernels before 6.7 do not know `lowerdir+`, and say so in their log each time.
static LOWERDIR_PLUS_IS_UNKNOWN: AtomicBool = AtomicBool::new(false);

fn check(result: libc::c_long) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}

fn to_c(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "path with a NUL byte"))
}

/// Kernels before 5.10 do not know `volatile`.
static VOLATILE_IS_UNKNOWN: AtomicBool = AtomicBool::new(false);

/// An overlay on `target`: writable with `upper` and `work`, read-only without. `lower` is topmost first.
///
/// A writable one is `volatile`: nothing of it is ever synced, neither when the container asks nor when it is unmounted, which
/// would write out the whole file system below. Its layer ends with the container, and the kernel refuses to mount it a second
/// time. DIFFERS: containerd's snapshotter does so on request only.
pub fn overlay(
    target: &Path,
    lower: &[PathBuf],
    writable: Option<(&Path, &Path)>,
) -> io::Result<()> {
    if LOWERDIR_PLUS_IS_UNKNOWN.load(Ordering::Relaxed) {
        overlay_by_options(target, lower, writable)?;
    } else {
        match overlay_by_descriptor(target, lower, writable) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
                overlay_by_options(target, lower, writable)?;
                LOWERDIR_PLUS_IS_UNKNOWN.store(true, Ordering::Relaxed);
            }
            result => result?,
        }
    }
    // Nothing that is mounted inside may travel to the host.
    mount(
        None::<&str>,
        target,
        None::<&str>,
        MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .map_err(io::Error::from)
}

fn overlay_by_descriptor(
    target: &Path,
    lower: &[PathBuf],
    writable: Option<(&Path, &Path)>,
) -> io::Result<()> {
    let set = |context: &OwnedFd, key: &std::ffi::CStr, value: &Path| -> io::Result<()> {
        let value = to_c(value)?;
        // SAFETY: both strings live through the call.
        check(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                FSCONFIG_SET_STRING,
                key.as_ptr(),
                value.as_ptr(),
                0,
            )
        })
        .map(drop)
    };
    // SAFETY: the string is static; each descriptor that is returned is new and ours; the last call
    // passes two live strings.
    unsafe {
        let context = OwnedFd::from_raw_fd(check(libc::syscall(
            libc::SYS_fsopen,
            c"overlay".as_ptr(),
            FSOPEN_CLOEXEC,
        ))?);
        set(&context, c"source", Path::new("overlay"))?;
        for directory in lower {
            set(&context, c"lowerdir+", directory)?;
        }
        if let Some((upper, work)) = writable {
            set(&context, c"upperdir", upper)?;
            set(&context, c"workdir", work)?;
            // SAFETY: the string is static, the descriptor ours; the kernel takes no value.
            check(libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                FSCONFIG_SET_FLAG,
                c"volatile".as_ptr(),
                std::ptr::null::<libc::c_char>(),
                0,
            ))?;
        }
        let null = std::ptr::null::<libc::c_char>();
        check(libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            null,
            null,
            0,
        ))?;
        let attributes = if writable.is_none() {
            libc::MOUNT_ATTR_RDONLY
        } else {
            0
        };
        let mounted = OwnedFd::from_raw_fd(check(libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            FSMOUNT_CLOEXEC,
            attributes,
        ))?);
        move_mount(&mounted, target)
    }
}

fn overlay_by_options(
    target: &Path,
    lower: &[PathBuf],
    writable: Option<(&Path, &Path)>,
) -> io::Result<()> {
    // A page of options holds few paths but many descriptors; the directories are open until the mount has them.
    let open = lower
        .iter()
        .map(File::open)
        .collect::<io::Result<Vec<File>>>()?;
    let join: Vec<_> = open
        .iter()
        .map(|file| format!("/proc/self/fd/{}", file.as_raw_fd()))
        .collect();
    let mut options = format!("lowerdir={}", join.join(":"));
    if let Some((upper, work)) = writable {
        options.push_str(&format!(
            ",upperdir={},workdir={}",
            upper.display(),
            work.display()
        ));
    }
    if options.len() + ",volatile".len() > MAX_OPTION_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "an image of {} layers needs a kernel of 6.7 or newer",
                lower.len()
            ),
        ));
    }
    let flags = if writable.is_none() {
        MsFlags::MS_RDONLY
    } else {
        MsFlags::empty()
    };
    let mount_with = |options: &str| {
        mount(
            Some("overlay"),
            target,
            Some("overlay"),
            flags,
            Some(options),
        )
        .map_err(io::Error::from)
    };
    if writable.is_none() || VOLATILE_IS_UNKNOWN.load(Ordering::Relaxed) {
        return mount_with(&options);
    }
    match mount_with(&format!("{options},volatile")) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            mount_with(&options)?;
            VOLATILE_IS_UNKNOWN.store(true, Ordering::Relaxed);
            Ok(())
        }
        result => result,
    }
}

// linux/mount.h
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

fn move_mount(mounted: &OwnedFd, target: &Path) -> io::Result<()> {
    let target = to_c(target)?;
    // SAFETY: both strings live through the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mounted.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// A second view of `source` (and what is mounted below it) at `target`; with a user namespace its ids are mapped as
/// there: what is 0 on disk is 0 inside. As with runc, mounts below keep their own ids.
///
/// It receives what is mounted at the source later, and gives nothing back: taking it away takes nothing from the host.
pub fn view(source: &Path, target: &Path, user_namespace: Option<&File>) -> io::Result<()> {
    #[repr(C)]
    struct MountAttributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let source = to_c(source)?;
    let at = |step: &str| {
        let step = step.to_owned();
        move |error: io::Error| io::Error::new(error.kind(), format!("{step}: {error}"))
    };
    let change = |tree: &OwnedFd, flags: libc::c_int, attributes: &MountAttributes| {
        // SAFETY: a static string, and attributes that live through the call.
        check(unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                tree.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH | flags,
                attributes,
                size_of::<MountAttributes>(),
            )
        })
        .map(drop)
    };
    let flags =
        libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as libc::c_uint;
    // SAFETY: the string lives through the call; the descriptor is new and ours.
    let tree = unsafe {
        OwnedFd::from_raw_fd(
            check(libc::syscall(
                libc::SYS_open_tree,
                libc::AT_FDCWD,
                source.as_ptr(),
                flags,
            ))
            .map_err(at("open_tree"))?,
        )
    };
    let mut attributes = MountAttributes {
        set: 0,
        clear: 0,
        propagation: libc::MS_SLAVE,
        user_namespace: 0,
    };
    change(&tree, libc::AT_RECURSIVE, &attributes).map_err(at("mount_setattr"))?;
    if let Some(namespace) = user_namespace {
        attributes.set = MOUNT_ATTR_IDMAP;
        attributes.propagation = 0;
        attributes.user_namespace = namespace.as_raw_fd() as u64;
        change(&tree, 0, &attributes).map_err(at("failed to set MOUNT_ATTR_IDMAP"))?;
    }
    move_mount(&tree, target).map_err(at("move_mount"))
}

pub fn tmpfs(target: &Path, options: &str) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("shm"), target, Some("tmpfs"), flags, Some(options)).map_err(io::Error::from)
}

/// Takes a mount away; one that is not there is fine.
pub fn unmount(target: &Path) -> io::Result<()> {
    match umount2(target, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Takes away every mount at or below `directory`, the last mounted first.
pub fn unmount_below(directory: &Path) -> io::Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|point| point.starts_with(directory))
        .collect();
    points.reverse();
    let mut result = Ok(());
    for point in points {
        if let Err(error) = unmount(&point) {
            result = Err(error);
        }
    }
    result
}

/// mountinfo writes space, tab, newline and backslash in octal.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes
            .get(at + 1..at + 4)
            .filter(|_| bytes[at] == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&out))
}

/// Opens a file below `root`, whose links cannot lead out of it.
pub fn open_in_root(root: &Path, path: &str, flags: libc::c_int) -> io::Result<File> {
    let directory = File::open(root)?;
    let path = to_c(Path::new(path))?;
    #[repr(C)]
    struct OpenHow {
        flags: u64,
        mode: u64,
        resolve: u64,
    }
    let how = OpenHow {
        flags: (flags | libc::O_CLOEXEC) as u64,
        mode: 0,
        resolve: libc::RESOLVE_IN_ROOT,
    };
    // SAFETY: string and `how` live through the call; the descriptor is new and ours.
    unsafe {
        Ok(File::from_raw_fd(check(libc::syscall(
            libc::SYS_openat2,
            directory.as_raw_fd(),
            path.as_ptr(),
            &how,
            size_of::<OpenHow>(),
        ))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape(r"/a\040b\134c"), PathBuf::from(r"/a b\c"));
        assert_eq!(unescape("/plain"), PathBuf::from("/plain"));
    }
}
