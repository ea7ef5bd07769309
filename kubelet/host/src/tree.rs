//! Trees a container can grow: as deep and as wide as its disk allows, and changed while they are looked at.
//!
//! Every step is relative to an open directory and goes down one name that is no link and no mount point. Nothing
//! recurses, no path is built, and the number of open descriptors is bounded, so neither the stack nor `PATH_MAX` nor
//! `RLIMIT_NOFILE` is a limit.

mod copy;
mod remove;
mod usage;
pub mod walk;

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, DirEntry, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

pub use copy::{Repeats, copy_tree};
pub use remove::{RemoveError, remove_tree, remove_tree_at};
pub use usage::{DiskUsage, disk_usage};

/// Opens the directory `name` of `parent`; never a link, never a mount point (EXDEV).
fn open_child(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags =
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_XDEV
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..32 {
        match rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Entries but `.` and `..`.
fn entries(dir: BorrowedFd<'_>) -> Result<impl Iterator<Item = Result<DirEntry, Errno>>, Errno> {
    let real = |entry: &Result<DirEntry, Errno>| {
        entry
            .as_ref()
            .map_or(true, |e| !matches!(e.file_name().to_bytes(), b"." | b".."))
    };
    Ok(Dir::read_from(dir)?.filter(real))
}

/// What an entry is, links not followed; `None`: it is gone.
pub(crate) fn kind_of(dir: BorrowedFd<'_>, entry: &DirEntry) -> Option<FileType> {
    match entry.file_type() {
        FileType::Unknown => rustix::fs::statat(dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
            .ok()
            .map(|stat| FileType::from_raw_mode(stat.st_mode)),
        known => Some(known),
    }
}
