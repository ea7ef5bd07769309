//! `fsGroup`: hands the files of a volume to a group. Upstream: pkg/volume/volume_linux.go.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use host::tree::walk::{Flow, Visit, walk};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat};

const RW_MASK: u32 = 0o660;
const RO_MASK: u32 = 0o440;
const EXEC_MASK: u32 = 0o110;
const SET_GID: u32 = 0o2000;

/// `spec.securityContext.fsGroupChangePolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChangePolicy {
    #[default]
    Always,
    /// Skip the walk if the volume's root already looks right.
    OnRootMismatch,
}

/// Gives every file below `dir`, and `dir` last, to `fs_group`, readable (and unless `read_only`,
/// writable) for it. Directories get the set-group-ID bit, so that new files are the group's too.
/// A file that refuses is logged and left; the walk goes on, as upstream's does.
///
/// # Errors
/// `dir` cannot be read. A retry may help.
pub fn change_permissions(
    dir: &Path,
    fs_group: u32,
    read_only: bool,
    policy: ChangePolicy,
) -> io::Result<()> {
    if policy == ChangePolicy::OnRootMismatch
        && !requires_permission_change(dir, fs_group, read_only)
    {
        return Ok(());
    }
    let mut hand_over = HandOver {
        group: Gid::from_raw(fs_group),
        read_only,
    };
    walk(dir, &mut hand_over).map(drop)
}

struct HandOver {
    group: Gid,
    read_only: bool,
}

impl HandOver {
    fn mode(&self, stat: &Stat) -> Mode {
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        Mode::from_raw_mode(stat.st_mode & 0o7777 | mask(is_dir, self.read_only))
    }

    /// Changes what was looked at and nothing that took its place: by an open descriptor, never by a path.
    fn change(&self, parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        rustix::fs::chownat(&file, c"", None, Some(self.group), AtFlags::EMPTY_PATH)?;
        // The mode of a link means nothing and must not reach its target.
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            return Ok(());
        }
        // An O_PATH descriptor has no fchmod of its own.
        let same = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        rustix::fs::chmod(same, self.mode(&stat))
    }
}

impl Visit for HandOver {
    fn enter(&mut self, _: BorrowedFd<'_>, _: &CStr, _: &Stat) -> io::Result<Flow> {
        Ok(Flow::Continue)
    }

    fn file(&mut self, parent: BorrowedFd<'_>, name: &CStr, _: &Stat) -> io::Result<Flow> {
        match self.change(parent, name) {
            // A file that goes away under our feet needs no owner.
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => {
                tracing::error!(file = %name.to_string_lossy(), %error, "handing a file to fsGroup failed");
            }
        }
        Ok(Flow::Continue)
    }

    fn leave(&mut self, dir: Option<BorrowedFd<'_>>) -> io::Result<Flow> {
        let Some(dir) = dir else {
            tracing::error!("a directory was moved while its volume was handed to fsGroup");
            return Ok(Flow::Continue);
        };
        let changed = rustix::fs::fstat(dir).and_then(|stat| {
            rustix::fs::fchown(dir, None, Some(self.group))?;
            rustix::fs::fchmod(dir, self.mode(&stat))
        });
        if let Err(error) = changed {
            tracing::error!(%error, "handing a directory to fsGroup failed");
        }
        Ok(Flow::Continue)
    }
}

fn mask(is_dir: bool, read_only: bool) -> u32 {
    let mask = if read_only { RO_MASK } else { RW_MASK };
    if is_dir {
        mask | SET_GID | EXEC_MASK
    } else {
        mask
    }
}

fn requires_permission_change(root: &Path, fs_group: u32, read_only: bool) -> bool {
    let Ok(info) = fs::metadata(root) else {
        return true;
    };
    if !info.is_dir() || info.gid() != fs_group {
        return true;
    }
    let wanted = mask(true, read_only);
    info.mode() & wanted != wanted
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn gives_files_to_the_group_and_keeps_other_bits() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("v");
        fs::create_dir(&root).unwrap();
        fs::set_permissions(&root, Permissions::from_mode(0o777)).unwrap();
        let file = root.join("f");
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o400)).unwrap();
        std::os::unix::fs::symlink("f", root.join("l")).unwrap();

        change_permissions(&root, 1234, true, ChangePolicy::Always).unwrap();
        assert_eq!(mode(&file), 0o440);
        assert_eq!(mode(&root), 0o2777);
        assert_eq!(fs::symlink_metadata(root.join("l")).unwrap().gid(), 1234);

        change_permissions(&root, 1234, false, ChangePolicy::OnRootMismatch).unwrap();
        assert_eq!(
            mode(&file),
            0o440,
            "the root matches: nothing below is touched"
        );
        change_permissions(&root, 1234, false, ChangePolicy::Always).unwrap();
        assert_eq!(mode(&file), 0o660);
    }

    #[test]
    fn neither_depth_nor_links_lead_astray() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let root = dir.path().join("v");
        let outside = dir.path().join("outside");
        fs::create_dir(&root).unwrap();
        fs::write(&outside, "x").unwrap();
        fs::set_permissions(&outside, Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("l")).unwrap();
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let mut at: std::os::fd::OwnedFd = fs::File::open(&root).unwrap().into();
        for _ in 0..6_000 {
            rustix::fs::mkdirat(&at, c"d", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, c"d", OFlags::RDONLY, Mode::empty()).unwrap();
        }
        let thread = std::thread::Builder::new().stack_size(128 << 10);
        let volume = root.clone();
        let changed = thread
            .spawn(move || change_permissions(&volume, 1234, false, ChangePolicy::Always))
            .unwrap();
        changed.join().unwrap().unwrap();
        let deepest = rustix::fs::fstat(&at).unwrap();
        assert_eq!((deepest.st_gid, deepest.st_mode & 0o7777), (1234, 0o2770));
        assert_eq!(mode(&root.join("pipe")), 0o660);
        assert_eq!(mode(&outside), 0o600);
        assert_ne!(fs::metadata(&outside).unwrap().gid(), 1234);
        host::remove_tree(&root).unwrap();
    }
}
