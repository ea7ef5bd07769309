//! Copying a tree with owners and modes.

use std::collections::HashSet;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Uid};

use super::walk::{Flow, Visit, walk_at};

/// What an entry of a directory counts besides what is in it: a page.
const ENTRY_BYTES: u64 = 4096;

/// How much may be copied again that was copied before: a tree that is named twice, and files with several names in it. A tree that nobody
/// copied yet is as large as it is.
#[derive(Debug)]
pub struct Repeats {
    most: u64,
    left: u64,
    /// Device and inode of files with several names.
    seen: HashSet<(u64, u64)>,
    /// All that comes was copied before.
    again: bool,
}

impl Repeats {
    /// `bytes`: in all, an entry without content being counted as a page.
    pub fn within(bytes: u64) -> Self {
        Self {
            most: bytes,
            left: bytes,
            seen: HashSet::new(),
            again: false,
        }
    }

    /// Whether the trees that are copied from here on were copied before.
    pub fn set_again(&mut self, again: bool) {
        self.again = again;
    }

    fn count(&mut self, stat: &Stat, is_file: bool) -> io::Result<()> {
        let many = is_file && stat.st_nlink > 1;
        let known = many && !self.seen.insert((stat.st_dev, stat.st_ino));
        if !self.again && !known {
            return Ok(());
        }
        let content = if is_file { stat.st_size } else { 0 };
        let bytes = ENTRY_BYTES.saturating_add(u64::try_from(content).unwrap_or(0));
        let Some(left) = self.left.checked_sub(bytes) else {
            let text = format!("more than {} bytes would be copied again", self.most);
            return Err(io::Error::other(text));
        };
        self.left = left;
        Ok(())
    }
}

struct Copy<'a> {
    /// Where the copy of the directory that is being visited is.
    to: OwnedFd,
    depth: usize,
    repeats: &'a mut Repeats,
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

impl Visit for Copy<'_> {
    fn enter(&mut self, _: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<Flow> {
        self.repeats.count(stat, false)?;
        if !name.is_empty() {
            rustix::fs::mkdirat(&self.to, name, Mode::RWXU)?;
            self.to = rustix::fs::openat(&self.to, name, DIRECTORY, Mode::empty())?;
        }
        self.depth += 1;
        attributes(&self.to, stat)?;
        Ok(Flow::Continue)
    }

    fn file(&mut self, parent: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<Flow> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        self.repeats.count(stat, kind == FileType::RegularFile)?;
        match kind {
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
/// I/O, or more than `repeats` allows; part of the copy is there then.
pub fn copy_tree(from: OwnedFd, to: &Path, repeats: &mut Repeats) -> io::Result<()> {
    let to = rustix::fs::openat(CWD, to, DIRECTORY, Mode::empty())?;
    let mut copy = Copy {
        to,
        depth: 0,
        repeats,
    };
    walk_at(from, &mut copy).map(drop)
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
            let source = File::open(&from).unwrap();
            copy_tree(source.into(), &to, &mut Repeats::within(0)).unwrap();
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

    /// A hundred thousand names of one large file are a layer of a few kilobytes.
    #[test]
    fn names_of_one_file_are_copied_within_a_bound() {
        let dir = quick_dir();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::write(from.join("a"), [7; 1000]).unwrap();
        for name in ["b", "c"] {
            fs::hard_link(from.join("a"), from.join(name)).unwrap();
        }
        let copy = |bytes: u64| {
            let _ = fs::remove_dir_all(&to);
            fs::create_dir(&to).unwrap();
            let source = File::open(&from).unwrap().into();
            copy_tree(source, &to, &mut Repeats::within(bytes)).map_err(|e| e.to_string())
        };
        assert_eq!(copy(2 * (4096 + 1000)), Ok(()));
        assert_eq!(fs::read(to.join("c")).unwrap(), [7; 1000]);
        let refused = "more than 10191 bytes would be copied again";
        assert_eq!(copy(2 * (4096 + 1000) - 1), Err(refused.to_owned()));
    }
}
