//! The data on disk: a directory or a file a volume and a snapshot, below the driver's folder.
//!
//! A volume is copied while its containers write in it: the copy goes down by directory handles and follows no link, so that it holds
//! nothing from outside the volume.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, SeekFrom as Seeking, Stat, Timespec,
    Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use thiserror::Error;

use crate::state::Access;

/// Deeper trees are not copied: each level holds two handles.
const MAX_DEPTH: usize = 400;
const COPY_BYTES: usize = 1 << 20;

/// Data could not be made, copied or removed.
#[derive(Debug, Error)]
pub enum DiskError {
    #[error("{what} {path}")]
    Path {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("copy {from} to {to}")]
    Copy {
        from: PathBuf,
        to: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Where the data lies.
#[derive(Clone, Debug)]
pub struct Disk {
    root: PathBuf,
}

impl Disk {
    /// Makes the folders.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn open(root: &Path) -> Result<Self, DiskError> {
        for part in ["volumes", "snapshots"] {
            let path = root.join(part);
            fs::create_dir_all(&path)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o750)))
                .map_err(|source| DiskError::Path {
                    what: "make",
                    path,
                    source,
                })?;
        }
        Ok(Self {
            root: root.to_owned(),
        })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `id` is one component of a path.
    pub fn volume(&self, id: &str) -> PathBuf {
        self.root.join("volumes").join(id)
    }

    /// `id` is one component of a path.
    pub fn snapshot(&self, id: &str) -> PathBuf {
        self.root.join("snapshots").join(id)
    }
}

/// Makes an empty volume; one that is there already stays.
///
/// # Errors
/// The disk refuses.
pub fn make(path: &Path, access: Access, size_bytes: i64) -> Result<(), DiskError> {
    let made = match access {
        Access::Mount => fs::create_dir(path)
            .or_else(|err| match err.kind() {
                io::ErrorKind::AlreadyExists => Ok(()),
                _ => Err(err),
            })
            // Whoever the container runs as.
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o777))),
        Access::Block => resize(path, size_bytes),
    };
    made.map_err(|source| DiskError::Path {
        what: "make",
        path: path.to_owned(),
        source,
    })
}

/// Makes a block volume's file larger, with a hole at its end; it never gets smaller.
///
/// # Errors
/// The disk refuses.
pub fn grow(path: &Path, size_bytes: i64) -> Result<(), DiskError> {
    resize(path, size_bytes).map_err(|source| DiskError::Path {
        what: "grow",
        path: path.to_owned(),
        source,
    })
}

fn resize(path: &Path, size_bytes: i64) -> io::Result<()> {
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    let wanted = size_bytes.max(0).unsigned_abs();
    if file.metadata()?.len() < wanted {
        file.set_len(wanted)?;
    }
    Ok(())
}

/// Removes a volume or snapshot; nothing there is fine.
///
/// # Errors
/// The disk refuses; a retry may help.
pub fn remove(path: &Path) -> Result<(), DiskError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(err) => Err(err),
    };
    match removed {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(DiskError::Path {
            what: "remove",
            path: path.to_owned(),
            source: err,
        }),
        _ => Ok(()),
    }
}

/// Copies what a volume or snapshot holds: into the directory, or over the file, that `to` is or will be.
///
/// # Errors
/// Something cannot be read or written; `to` is left half filled.
pub fn copy(from: &Path, to: &Path, access: Access) -> Result<(), DiskError> {
    let copied = match access {
        Access::Block => File::open(from).and_then(|from| {
            let to = fs::OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(to)?;
            copy_file(from, to)
        }),
        Access::Mount => copy_tree(from, to),
    };
    copied.map_err(|source| DiskError::Copy {
        from: from.to_owned(),
        to: to.to_owned(),
        source,
    })
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    match fs::create_dir(to) {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(err),
        _ => {}
    }
    let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let from = rustix::fs::openat(CWD, from, open, Mode::empty())?;
    let to = rustix::fs::openat(CWD, to, open, Mode::empty())?;
    let status = rustix::fs::fstat(&from)?;
    let mut seen = HashMap::new();
    let root = to.try_clone()?;
    copy_folder(from.as_fd(), to.as_fd(), b"", &root, &mut seen, 0)?;
    copy_marks(from.as_fd(), to.as_fd())?;
    set_owner_and_mode(to.as_fd(), &status)
}

/// `place` is the folder's path below `root`, for hard links.
fn copy_folder(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    place: &[u8],
    root: &OwnedFd,
    seen: &mut HashMap<(u64, u64), Vec<u8>>,
    depth: usize,
) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!(
            "the tree is deeper than {MAX_DEPTH} folders"
        )));
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        match copy_entry(from, to, name, place, root, seen, depth) {
            // It was removed under our eyes.
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    Ok(())
}

fn copy_entry(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
    place: &[u8],
    root: &OwnedFd,
    seen: &mut HashMap<(u64, u64), Vec<u8>>,
    depth: usize,
) -> io::Result<()> {
    let status = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(status.st_mode);
    let here = [place, name.to_bytes()].concat();
    if kind != FileType::Directory && status.st_nlink > 1 {
        if let Some(first) = seen.get(&(status.st_dev, status.st_ino)) {
            return Ok(rustix::fs::linkat(
                root,
                first.as_slice(),
                to,
                name,
                AtFlags::empty(),
            )?);
        }
        seen.insert((status.st_dev, status.st_ino), here.clone());
    }
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match kind {
        FileType::Directory => {
            let open = flags | OFlags::RDONLY | OFlags::DIRECTORY;
            let inner = rustix::fs::openat(from, name, open, Mode::empty())?;
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            let copy = rustix::fs::openat(to, name, open, Mode::empty())?;
            let inside = [here.as_slice(), b"/"].concat();
            copy_folder(inner.as_fd(), copy.as_fd(), &inside, root, seen, depth + 1)?;
            copy_marks(inner.as_fd(), copy.as_fd())?;
            set_owner_and_mode(copy.as_fd(), &status)
        }
        FileType::RegularFile => {
            // It may have become a pipe meanwhile, which must not block.
            let open = flags | OFlags::RDONLY | OFlags::NONBLOCK;
            let inner = rustix::fs::openat(from, name, open, Mode::empty())?;
            if FileType::from_raw_mode(rustix::fs::fstat(&inner)?.st_mode) != FileType::RegularFile
            {
                return Ok(());
            }
            let make = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let copy = rustix::fs::openat(to, name, make, Mode::RUSR | Mode::WUSR)?;
            copy_file(inner.try_clone()?.into(), copy.try_clone()?.into())?;
            copy_marks(inner.as_fd(), copy.as_fd())?;
            set_owner_and_mode(copy.as_fd(), &status)
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(target, to, name)?;
            Ok(rustix::fs::chownat(
                to,
                name,
                Some(Uid::from_raw(status.st_uid)),
                Some(Gid::from_raw(status.st_gid)),
                AtFlags::SYMLINK_NOFOLLOW,
            )?)
        }
        _ => {
            let mode = Mode::from_raw_mode(status.st_mode);
            rustix::fs::mknodat(to, name, kind, mode, status.st_rdev)?;
            rustix::fs::chownat(
                to,
                name,
                Some(Uid::from_raw(status.st_uid)),
                Some(Gid::from_raw(status.st_gid)),
                AtFlags::SYMLINK_NOFOLLOW,
            )?;
            Ok(rustix::fs::chmodat(to, name, mode, AtFlags::empty())?)
        }
    }
}

fn set_owner_and_mode(to: BorrowedFd<'_>, status: &Stat) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(status.st_uid), Gid::from_raw(status.st_gid));
    rustix::fs::fchown(to, Some(user), Some(group))?;
    // After the owner: a change of owner takes set-id bits away.
    rustix::fs::fchmod(to, Mode::from_raw_mode(status.st_mode))?;
    let moment = |seconds, nanos| Timespec {
        tv_sec: seconds,
        tv_nsec: nanos,
    };
    Ok(rustix::fs::futimens(
        to,
        &Timestamps {
            last_access: moment(status.st_atime, status.st_atime_nsec as _),
            last_modification: moment(status.st_mtime, status.st_mtime_nsec as _),
        },
    )?)
}

/// Extended attributes: ACLs, file capabilities, labels.
fn copy_marks(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::flistxattr(from, &mut names[..]) {
        Err(Errno::NOTSUP) => return Ok(()),
        length => length?,
    };
    let mut value = vec![0; 64 << 10];
    for name in names[..length].split(|byte| *byte == 0) {
        if name.is_empty() {
            continue;
        }
        let length = match rustix::fs::fgetxattr(from, name, &mut value[..]) {
            Err(Errno::NODATA) => continue,
            length => length?,
        };
        match rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            // The kernel's own, that nobody sets.
            Err(Errno::NOTSUP | Errno::PERM) => {}
            set => set?,
        }
    }
    Ok(())
}

/// Shares the blocks where the file system can; copies what is no hole where it cannot.
fn copy_file(mut from: File, mut to: File) -> io::Result<()> {
    let size = from.metadata()?.len();
    let is_smaller = to.metadata()?.len() <= size;
    if is_smaller && rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
        return Ok(());
    }
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(&from, Seeking::Data(at)) {
            Ok(start) => start,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            Err(err) => return Err(err.into()),
        };
        let end = rustix::fs::seek(&from, Seeking::Hole(start))?;
        from.seek(SeekFrom::Start(start))?;
        to.seek(SeekFrom::Start(start))?;
        let mut part = Read::take(&mut from, end.saturating_sub(start));
        loop {
            let read = part.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            to.write_all(&buffer[..read])?;
        }
        at = end;
    }
    if to.metadata()?.len() < size {
        to.set_len(size)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt, symlink};

    use super::*;

    #[test]
    fn a_tree_is_copied_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::write(from.join("a/b/file"), "text").unwrap();
        fs::set_permissions(from.join("a/b/file"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(from.join("a"), fs::Permissions::from_mode(0o2711)).unwrap();
        fs::hard_link(from.join("a/b/file"), from.join("other")).unwrap();
        symlink("/etc", from.join("out")).unwrap();
        nix::unistd::mkfifo(&from.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let sparse = File::create(from.join("sparse")).unwrap();
        sparse.set_len(64 << 20).unwrap();
        sparse.write_all_at(b"x", 32 << 20).unwrap();

        copy(&from, &to, Access::Mount).unwrap();
        assert_eq!(fs::read_to_string(to.join("a/b/file")).unwrap(), "text");
        let status = |path: &str| fs::symlink_metadata(to.join(path)).unwrap();
        assert_eq!(status("a/b/file").mode() & 0o7777, 0o640);
        assert_eq!(status("a").mode() & 0o7777, 0o2711);
        assert_eq!(status("a/b/file").ino(), status("other").ino(), "one file");
        assert_eq!(fs::read_link(to.join("out")).unwrap(), Path::new("/etc"));
        assert_eq!(status("sparse").len(), 64 << 20);
        assert!(
            status("sparse").blocks() * 512 < 8 << 20,
            "holes stay holes"
        );
        let mut byte = [0];
        File::open(to.join("sparse"))
            .unwrap()
            .read_exact_at(&mut byte, 32 << 20)
            .unwrap();
        assert_eq!(&byte, b"x");
        remove(&to).unwrap();
        remove(&to).unwrap();
    }

    #[test]
    fn a_block_volume_keeps_its_size_under_a_smaller_copy() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, vec![7; 5000]).unwrap();
        make(&to, Access::Block, 10_000).unwrap();
        copy(&from, &to, Access::Block).unwrap();
        let bytes = fs::read(&to).unwrap();
        assert_eq!((bytes.len(), bytes[4999], bytes[5000]), (10_000, 7, 0));
        grow(&to, 12_000).unwrap();
        grow(&to, 1).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().len(), 12_000);
    }
}
