//! `subPath`: one file or directory of a volume, pinned so that no container can swap it for a link to the node's files.
//!
//! The path is resolved by the kernel beneath the volume (openat2) and what was opened is bind-mounted to
//! `<pod>/volume-subpaths/<volume>/<container>/<index>`; the container gets that. Upstream: pkg/volume/util/subpath.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, mkdirat};

use crate::mountinfo;

/// Why a `subPath` was not prepared. The texts tell a user nothing about the node's files; the sources do, for logs.
#[derive(Debug, thiserror::Error)]
pub enum SubPathError {
    #[error("error SubPath `{0}` must not be an absolute path")]
    Absolute(String),
    #[error("unable to provision SubPath `{0}`: must not contain '..'")]
    Backsteps(String),
    #[error(
        "failed to create subPath directory for volumeMount {volume:?} of container {container:?}"
    )]
    Create {
        volume: String,
        container: String,
        #[source]
        source: io::Error,
    },
    #[error("failed to prepare subPath for volumeMount {volume:?} of container {container:?}")]
    Prepare {
        volume: String,
        container: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "volumeMount {volume:?} of container {container:?}: an image volume has no path on the node"
    )]
    Image { volume: String, container: String },
}

/// # Errors
/// If `sub_path` cannot be relative to a volume. No retry helps.
pub fn validate(sub_path: &str) -> Result<(), SubPathError> {
    if sub_path.starts_with('/') {
        return Err(SubPathError::Absolute(sub_path.to_owned()));
    }
    if Path::new(sub_path)
        .components()
        .any(|c| c == Component::ParentDir)
    {
        return Err(SubPathError::Backsteps(sub_path.to_owned()));
    }
    Ok(())
}

/// Makes the directories of `sub_path` that are missing below `volume`, with the volume's own mode.
pub(crate) fn safe_make_dir(volume: &Path, sub_path: &Path) -> io::Result<()> {
    let root = open_volume(volume)?;
    if open_beneath(&root, sub_path, OFlag::O_PATH).is_ok() {
        return Ok(());
    }
    let mode = fs::metadata(volume)?.mode() & 0o7777;
    let mut path = PathBuf::new();
    let mut parent = root.try_clone()?;
    for component in sub_path
        .components()
        .filter(|c| matches!(c, Component::Normal(_)))
    {
        path.push(component);
        parent = match open_beneath(&root, &path, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                match mkdirat(
                    Some(parent.as_raw_fd()),
                    component.as_os_str(),
                    Mode::S_IRWXU,
                ) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(e) => return Err(e.into()),
                }
                let made = open_beneath(
                    &root,
                    &path,
                    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW,
                )?;
                File::from(made.try_clone()?).set_permissions(Permissions::from_mode(mode))?;
                made
            }
            Err(e) => return Err(e),
        };
    }
    Ok(())
}

/// Bind-mounts what `sub_path` is to `target`. If the same file is mounted there already (a restarted container), it stays.
pub(crate) fn prepare_safe_sub_path(
    volume: &Path,
    sub_path: &Path,
    target: &Path,
) -> io::Result<()> {
    let root = open_volume(volume)?;
    let opened = open_beneath(&root, sub_path, OFlag::O_PATH)?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    let info = fs::metadata(&source)?;
    if mountinfo::at(&mountinfo::list()?, target).is_some() {
        let flags = match fs::metadata(target) {
            Ok(mounted) if (mounted.dev(), mounted.ino()) == (info.dev(), info.ino()) => {
                return Ok(());
            }
            Ok(_) => MntFlags::UMOUNT_NOFOLLOW,
            // Nobody can use it any more; what holds it there may never answer.
            Err(error) if is_corrupted(&error) => {
                tracing::warn!(target = %target.display(), %error, "the mount of a subPath is corrupted, it is made anew");
                MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH
            }
            Err(error) => return Err(error),
        };
        umount2(target, flags)?;
    }
    make_target(target, info.is_dir())?;
    mount(
        Some(&source),
        target,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?;
    Ok(())
}

/// Whether the file system behind a mount went away under it: a server of the network, the process behind FUSE.
///
/// Upstream: `IsCorruptedMnt` of k8s.io/mount-utils.
fn is_corrupted(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw);
    matches!(
        number,
        Some(
            Errno::ENOTCONN
                | Errno::ESTALE
                | Errno::EIO
                | Errno::EACCES
                | Errno::EHOSTDOWN
                | Errno::EWOULDBLOCK
        )
    )
}

fn make_target(target: &Path, is_dir: bool) -> io::Result<()> {
    let parent = target.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(parent)?;
    // Left by an earlier container with the other type.
    match fs::symlink_metadata(target) {
        Ok(old) if old.is_dir() == is_dir => return Ok(()),
        Ok(old) if old.is_dir() => fs::remove_dir(target)?,
        Ok(_) => fs::remove_file(target)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    if is_dir {
        fs::DirBuilder::new().mode(0o750).create(target)
    } else {
        File::create_new(target)?.set_permissions(Permissions::from_mode(0o640))
    }
}

fn open_volume(volume: &Path) -> io::Result<OwnedFd> {
    let file = fs::OpenOptions::new();
    let mut options = file;
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_PATH);
    Ok(options.read(true).open(volume)?.into())
}

/// Opens `path` with every link on the way resolved, refusing (EXDEV) what leads out of `root`.
fn open_beneath(root: &OwnedFd, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    // EAGAIN: a rename elsewhere made the kernel unsure about `..` in a link; a bounded number of tries.
    for _ in 0..32 {
        match openat2(root.as_raw_fd(), path, how) {
            // SAFETY: openat2 just returned this descriptor; nobody else owns it.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            Err(Errno::EAGAIN) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(Errno::EAGAIN.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn makes_missing_directories_with_the_volumes_mode() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        fs::create_dir(&volume).unwrap();
        fs::set_permissions(&volume, Permissions::from_mode(0o2777)).unwrap();
        safe_make_dir(&volume, Path::new("a/b")).unwrap();
        assert_eq!(
            fs::metadata(volume.join("a/b")).unwrap().mode() & 0o7777,
            0o2777
        );
        fs::write(volume.join("f"), "").unwrap();
        safe_make_dir(&volume, Path::new("f")).unwrap();
        assert!(safe_make_dir(&volume, Path::new("f/x")).is_err());
    }

    #[test]
    fn never_leaves_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        fs::create_dir_all(volume.join("in/side")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        symlink("../outside", volume.join("up")).unwrap();
        symlink("/etc", volume.join("abs")).unwrap();
        symlink("in/side", volume.join("ok")).unwrap();
        symlink("nowhere", volume.join("dangling")).unwrap();
        let root = open_volume(&volume).unwrap();
        for (path, ok) in [
            ("in", true),
            ("ok", true),
            ("up", false),
            ("abs", false),
            ("abs/passwd", false),
            ("..", false),
            (".", true),
            ("dangling", false),
        ] {
            assert_eq!(
                open_beneath(&root, Path::new(path), OFlag::O_PATH).is_ok(),
                ok,
                "{path}"
            );
        }
        for path in ["up/new", "abs/new", "dangling"] {
            assert!(safe_make_dir(&volume, Path::new(path)).is_err(), "{path}");
        }
        assert!(!dir.path().join("outside/new").exists());
        assert!(
            validate("/a").is_err() && validate("a/../b").is_err() && validate("a..b/c").is_ok()
        );
    }

    #[test]
    fn what_says_that_a_mount_is_of_no_use_any_more() {
        let check = |errno: Errno, expect| {
            let error = io::Error::from_raw_os_error(errno as i32);
            assert_eq!(is_corrupted(&error), expect, "{error}");
        };
        check(Errno::ENOTCONN, true);
        check(Errno::ESTALE, true);
        check(Errno::ENOENT, false);
        check(Errno::ENOTDIR, false);
        assert!(!is_corrupted(&io::Error::other("x")));
    }

    /// The process behind a FUSE file system died while a container had a subPath of it.
    #[test]
    fn a_corrupted_mount_is_made_anew() {
        let root = nix::unistd::geteuid().is_root();
        assert!(root, "needs root, to mount in a namespace of its own");
        let fuse = Path::new("/dev/fuse").exists();
        assert!(fuse, "needs /dev/fuse (`modprobe fuse`)");
        let work = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let (volume, target) = (dir.path().join("v"), dir.path().join("t"));
            fs::create_dir_all(volume.join("sub")).unwrap();
            fs::create_dir(&target).unwrap();
            let device = fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/fuse")
                .unwrap();
            let options = format!(
                "fd={},rootmode=40000,user_id=0,group_id=0",
                device.as_raw_fd()
            );
            mount(
                Some("fuse"),
                &target,
                Some("fuse"),
                MsFlags::empty(),
                Some(options.as_str()),
            )
            .unwrap();
            drop(device);
            assert!(is_corrupted(&fs::metadata(&target).unwrap_err()));
            prepare_safe_sub_path(&volume, Path::new("sub"), &target).unwrap();
            let inode = |path: &Path| fs::metadata(path).unwrap().ino();
            assert_eq!(inode(&target), inode(&volume.join("sub")));
            // The next container finds it as it should be.
            prepare_safe_sub_path(&volume, Path::new("sub"), &target).unwrap();
            umount2(&target, MntFlags::empty()).unwrap();
            assert!(umount2(&target, MntFlags::empty()).is_err());
        };
        std::thread::spawn(work).join().unwrap();
    }
}
