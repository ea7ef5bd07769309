//! Copying a tree with owners and modes.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Uid};

use super::walk::{Flow, Visit, walk_at};

struct Copy {
    /// Where the copy of the directory that is being visited is.
    to: OwnedFd,
    depth: usize,
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )
}

fn attributes(to: impl AsFd, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = owner(stat);
    rustix::fs::fchown(&to, uid, gid)?;
    // After the owner: a change of owner takes set-id bits away.
    Ok(rustix::fs::fchmod(&to, mode(stat))?)
}

impl Visit for Copy {
    fn enter(&mut self, _: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<Flow> {
        if !name.is_empty() {
            rustix::fs::mkdirat(&self.to, name, Mode::RWXU)?;
            self.to = rustix::fs::openat(&self.to, name, DIRECTORY, Mode::empty())?;
        }
        self.depth += 1;
        attributes(&self.to, stat)?;
        Ok(Flow::Continue)
    }

    fn file(&mut self, parent: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<Flow> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(parent, name, Vec::new())?;
                rustix::fs::symlinkat(&*target, &self.to, name)?;
                let (uid, gid) = owner(stat);
                rustix::fs::chownat(&self.to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let mut from = File::from(rustix::fs::openat(parent, name, flags, Mode::empty())?);
                if !from.metadata()?.is_file() {
                    return Ok(Flow::Continue);
                }
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let mode = Mode::RUSR | Mode::WUSR;
                let mut to = File::from(rustix::fs::openat(&self.to, name, flags, mode)?);
                io::copy(&mut from, &mut to)?;
                attributes(&to, stat)?;
            }
            _ => {}
        }
        Ok(Flow::Continue)
    }

    fn leave(&mut self, _: Option<BorrowedFd<'_>>) -> io::Result<Flow> {
        self.depth -= 1;
        // The copy is nobody's but ours as yet: its way up is the one it came down.
        if self.depth > 0 {
            self.to = rustix::fs::openat(&self.to, c"..", DIRECTORY, Mode::empty())?;
        }
        Ok(Flow::Continue)
    }
}

/// Copies what is in the directory `from` to the directory `to`, which is there and which nobody else changes, with
/// owners and modes. Devices, sockets and named pipes are left out, as is what is mounted in `from`.
///
/// # Errors
/// I/O; part of the copy is there then.
pub fn copy_tree(from: OwnedFd, to: &Path) -> io::Result<()> {
    let to = rustix::fs::openat(CWD, to, DIRECTORY, Mode::empty())?;
    walk_at(from, &mut Copy { to, depth: 0 }).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;
    use crate::tree::walk::tests::{deep, on_small_stack, quick_dir};

    #[test]
    fn a_copy_is_as_deep_as_its_original_and_looks_the_same() {
        on_small_stack(|| {
            let dir = quick_dir();
            let (from, to) = (dir.path().join("from"), dir.path().join("to"));
            fs::create_dir(&from).unwrap();
            fs::create_dir(&to).unwrap();
            deep(&from, 6_000);
            fs::write(from.join("d/d/file"), "text").unwrap();
            fs::set_permissions(from.join("d/d/file"), fs::Permissions::from_mode(0o4750)).unwrap();
            symlink("/etc", from.join("d/link")).unwrap();
            rustix::fs::mknodat(CWD, from.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
            copy_tree(File::open(&from).unwrap().into(), &to).unwrap();
            assert_eq!(fs::read_to_string(to.join("d/d/file")).unwrap(), "text");
            assert_eq!(
                fs::metadata(to.join("d/d/file")).unwrap().mode() & 0o7777,
                0o4750
            );
            assert_eq!(fs::read_link(to.join("d/link")).unwrap(), Path::new("/etc"));
            assert!(!to.join("pipe").exists());
            let inodes = crate::disk_usage(&to).unwrap().inodes;
            assert_eq!(inodes, 6_001 + 2);
            crate::remove_tree(dir.path()).unwrap();
        });
    }
}
