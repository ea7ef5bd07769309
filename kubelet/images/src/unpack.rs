//! Unpacking a layer into a directory of its own, in the form overlayfs reads.
//!
//! Whatever the archive says, nothing is written outside the directory: every path is resolved by
//! the kernel with `RESOLVE_IN_ROOT`, and what is already there is replaced, never followed.
//!
//! Upstream: containerd's `pkg/archive` with overlay whiteouts. A directory the archive forgot takes owner
//! and mode from the layers below.

mod metadata;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, CWD, Dev, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;

use crate::digest::{Hasher, HashingReader};
use metadata::{Meta, apply_meta, gid, ignore_unsupported, mode, read_meta, uid};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const WHITEOUT_META_PREFIX: &[u8] = b".wh..wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
const OVERLAY_OPAQUE_XATTR: &str = "trusted.overlay.opaque";
const COPY_BUFFER_BYTES: usize = 128 * 1024;
/// What a file occupies is counted in blocks of this size.
const BLOCK_BYTES: u64 = 4096;

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive tries to write outside its root.
    #[error("layer entry {entry:?}: path leads outside the layer")]
    Breakout { entry: String },
    #[error("layer entry {entry:?}: hard link target {target:?}: {source}")]
    HardLink {
        entry: String,
        target: String,
        #[source]
        source: io::Error,
    },
    #[error("layer entry {entry:?}: unsupported type {kind:?}")]
    Unsupported { entry: String, kind: u8 },
    #[error("layer entry {entry:?}: {source}")]
    Entry {
        entry: String,
        #[source]
        source: io::Error,
    },
    #[error("layer archive: {0}")]
    Archive(#[source] io::Error),
    /// The unpacked bytes are not those the image's config names.
    #[error("layer has diff id {found}, the image says {expected}")]
    DiffId { expected: String, found: String },
    #[error("{path:?}: {source}")]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What a layer occupies once unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    pub(crate) size_bytes: u64,
    pub(crate) inodes: u64,
}

/// Unpacks the layer in `blob` (plain, gzip or zstd) into `target`, an empty directory. `parents` are the layers
/// below, topmost first. The uncompressed bytes must hash to `diff_id`.
pub(crate) fn unpack_layer(
    blob: &Path,
    target: &Path,
    parents: &[PathBuf],
    diff_id: &str,
) -> Result<Unpacked, UnpackError> {
    let file = File::open(blob).map_err(|source| UnpackError::Directory {
        path: blob.to_owned(),
        source,
    })?;
    let plain = decompress(BufReader::with_capacity(COPY_BUFFER_BYTES, file))
        .map_err(UnpackError::Archive)?;
    let hasher = Hasher::of(diff_id).ok_or_else(|| UnpackError::DiffId {
        expected: diff_id.to_owned(),
        found: "an algorithm that is not supported".to_owned(),
    })?;
    let mut reader = HashingReader::new(plain, hasher);
    let unpacked = unpack(&mut reader, target, parents)?;
    // The padding behind the archive's end belongs to its digest.
    io::copy(&mut reader, &mut io::sink()).map_err(UnpackError::Archive)?;
    let found = reader.finish();
    if found != diff_id {
        return Err(UnpackError::DiffId {
            expected: diff_id.to_owned(),
            found,
        });
    }
    Ok(unpacked)
}

/// Tells the compression by the first bytes, as media types of old registries lie.
fn decompress<'a>(mut blob: BufReader<File>) -> io::Result<Box<dyn Read + 'a>> {
    use std::io::BufRead as _;
    let magic = blob.fill_buf()?;
    Ok(if magic.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(blob))
    } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::stream::read::Decoder::with_buffer(blob)?)
    } else {
        Box::new(blob)
    })
}

/// Unpacks a plain tar stream into `target`.
pub(crate) fn unpack(
    reader: impl Read,
    target: &Path,
    parents: &[PathBuf],
) -> Result<Unpacked, UnpackError> {
    let open = |path: &Path| {
        rustix::fs::openat(
            CWD,
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| UnpackError::Directory {
            path: path.to_owned(),
            source: errno.into(),
        })
    };
    let mut unpacker = Unpacker {
        root: Rc::new(open(target)?),
        parents: parents
            .iter()
            .map(|path| open(path))
            .collect::<Result<_, _>>()?,
        directory_times: Vec::new(),
        last_parent: None,
        buffer: vec![0; COPY_BUFFER_BYTES],
        unpacked: Unpacked::default(),
    };
    // An archive that does not list "./" leaves the root directory as it is below.
    let root = unpacker.root.clone();
    unpacker
        .copy_from_below(b"", &root, OsStr::new("."))
        .map_err(|errno| UnpackError::Directory {
            path: target.to_owned(),
            source: errno.into(),
        })?;
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries().map_err(UnpackError::Archive)? {
        unpacker.entry(entry.map_err(UnpackError::Archive)?)?;
    }
    unpacker.finish()
}

struct Unpacker {
    root: Rc<OwnedFd>,
    parents: Vec<OwnedFd>,
    /// Set last, since each file made in a directory touches it.
    directory_times: Vec<(Vec<u8>, Timestamps)>,
    last_parent: Option<(Vec<u8>, Rc<OwnedFd>)>,
    buffer: Vec<u8>,
    unpacked: Unpacked,
}

impl Unpacker {
    fn entry<R: Read>(&mut self, mut entry: tar::Entry<'_, R>) -> Result<(), UnpackError> {
        let raw = entry.path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&raw).into_owned();
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        let Some(path) = clean(&raw) else {
            return Err(UnpackError::Breakout { entry: shown });
        };
        let at = |source: io::Error| UnpackError::Entry {
            entry: shown.clone(),
            source,
        };
        let meta = read_meta(&mut entry).map_err(at)?;
        let Some((name, parent_path)) = path.split_last() else {
            // "./": the layer's root itself.
            if kind.is_dir() {
                self.set_root(&meta).map_err(at)?;
            }
            return Ok(());
        };
        let parent = self
            .open_parent(&parent_path.join(&b'/'))
            .map_err(|e| at(e.into()))?;

        if name.starts_with(WHITEOUT_PREFIX) {
            return self.whiteout(&parent, name).map_err(|e| at(e.into()));
        }
        let name = OsStr::from_bytes(name);
        if kind.is_hard_link() {
            return self.hard_link(&entry, &parent, name, &shown);
        }
        let opaque = self
            .make_room(&parent, name, kind.is_dir())
            .map_err(|e| at(e.into()))?;
        self.unpacked.inodes += 1;
        match kind {
            tar::EntryType::Directory => {
                match rustix::fs::mkdirat(&*parent, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(at(errno.into())),
                }
                self.unpacked.size_bytes += BLOCK_BYTES;
                if opaque {
                    set_opaque(&parent, name).map_err(|e| at(e.into()))?;
                }
                self.directory_times
                    .push((path.join(&b'/'), meta.times.clone()));
            }
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                self.regular(&mut entry, &parent, name, &meta).map_err(at)?;
                return Ok(());
            }
            tar::EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                rustix::fs::symlinkat(OsStr::from_bytes(&target), &*parent, name)
                    .map_err(|e| at(e.into()))?;
                self.last_parent = None;
            }
            tar::EntryType::Char | tar::EntryType::Block | tar::EntryType::Fifo => {
                let header = entry.header();
                let (file_type, device) = if kind == tar::EntryType::Fifo {
                    (FileType::Fifo, 0)
                } else {
                    let number = |part: io::Result<Option<u32>>| part.map(|n| n.unwrap_or(0));
                    let major = number(header.device_major()).map_err(at)?;
                    let minor = number(header.device_minor()).map_err(at)?;
                    let file_type = if kind == tar::EntryType::Char {
                        FileType::CharacterDevice
                    } else {
                        FileType::BlockDevice
                    };
                    (file_type, rustix::fs::makedev(major, minor))
                };
                mknod(&parent, name, file_type, device).map_err(|e| at(e.into()))?;
            }
            other => {
                return Err(UnpackError::Unsupported {
                    entry: shown,
                    kind: other.as_byte(),
                });
            }
        }
        apply_meta(&parent, name, kind, &meta).map_err(at)
    }

    fn regular<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
        meta: &Meta,
    ) -> io::Result<()> {
        let file = rustix::fs::openat(
            parent,
            name,
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
        )?;
        let mut file = File::from(file);
        let mut size = 0u64;
        loop {
            let count = match entry.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            file.write_all(&self.buffer[..count])?;
            size += count as u64;
        }
        self.unpacked.size_bytes += size.div_ceil(BLOCK_BYTES) * BLOCK_BYTES;
        // The owner first: a chown drops the setuid bits and file capabilities.
        rustix::fs::fchown(&file, Some(uid(meta)), Some(gid(meta)))?;
        rustix::fs::fchmod(&file, mode(meta))?;
        for (key, value) in &meta.xattrs {
            ignore_unsupported(rustix::fs::fsetxattr(
                &file,
                key,
                value,
                XattrFlags::empty(),
            ))?;
        }
        rustix::fs::futimens(&file, &meta.times)?;
        Ok(())
    }

    fn hard_link<R: Read>(
        &mut self,
        entry: &tar::Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
        shown: &str,
    ) -> Result<(), UnpackError> {
        let target = entry.link_name_bytes().unwrap_or_default().into_owned();
        let shown_target = String::from_utf8_lossy(&target).into_owned();
        let failed = |source: io::Error| UnpackError::HardLink {
            entry: shown.to_owned(),
            target: shown_target.clone(),
            source,
        };
        let Some(path) = clean(&target) else {
            return Err(UnpackError::Breakout {
                entry: format!("{shown} -> {shown_target}"),
            });
        };
        let Some((target_name, target_parent)) = path.split_last() else {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        };
        let target_name = OsStr::from_bytes(target_name);
        let directory =
            open_in(&self.root, &target_parent.join(&b'/')).map_err(|e| failed(e.into()))?;
        let stat = rustix::fs::statat(&directory, target_name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed(e.into()))?;
        if let Ok(existing) = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            && (existing.st_dev, existing.st_ino) == (stat.st_dev, stat.st_ino)
        {
            return Ok(());
        }
        self.make_room(parent, name, false)
            .map_err(|e| failed(e.into()))?;
        rustix::fs::linkat(&directory, target_name, parent, name, AtFlags::empty())
            .map_err(|e| failed(e.into()))
    }

    fn whiteout(&mut self, parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
        if name == WHITEOUT_OPAQUE {
            return set_opaque(parent, OsStr::new("."));
        }
        if name.starts_with(WHITEOUT_META_PREFIX) {
            // Housekeeping of aufs; of no meaning here.
            return Ok(());
        }
        let hidden = OsStr::from_bytes(&name[WHITEOUT_PREFIX.len()..]);
        if hidden.is_empty() || hidden == "." || hidden == ".." {
            return Err(Errno::INVAL);
        }
        match rustix::fs::statat(parent, hidden, AtFlags::SYMLINK_NOFOLLOW) {
            // A whiteout hides what is below, never what its own layer brings.
            Ok(stat) if file_type(&stat) == FileType::Directory => set_opaque(parent, hidden),
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => {
                self.unpacked.inodes += 1;
                mknod(parent, hidden, FileType::CharacterDevice, 0)
            }
            Err(errno) => Err(errno),
        }
    }

    /// Removes what stands where an entry is to be made; a directory may stay for a directory. Says whether a
    /// whiteout stood there, so that a directory in its place must be opaque.
    fn make_room(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        for_directory: bool,
    ) -> Result<bool, Errno> {
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(errno),
        };
        if file_type(&stat) == FileType::Directory {
            if for_directory {
                return Ok(false);
            }
            self.last_parent = None;
            return host::remove_tree_at(parent.as_fd(), name)
                .map(|()| false)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
        }
        self.last_parent = None;
        rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
        Ok(is_whiteout(&stat))
    }

    /// The directory `path` of this layer, made if missing.
    fn open_parent(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, Errno> {
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        if let Some((known, fd)) = &self.last_parent
            && known == path
        {
            return Ok(fd.clone());
        }
        let fd = match open_in(&self.root, path) {
            Ok(fd) => Rc::new(fd),
            Err(Errno::NOENT | Errno::NOTDIR) => {
                let (above, name) = match path.iter().rposition(|&b| b == b'/') {
                    Some(slash) => (&path[..slash], &path[slash + 1..]),
                    None => (&b""[..], path),
                };
                let above = self.open_parent(above)?;
                let name = OsStr::from_bytes(name);
                let mut opaque = false;
                match rustix::fs::statat(&*above, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) if is_whiteout(&stat) => {
                        rustix::fs::unlinkat(&*above, name, AtFlags::empty())?;
                        opaque = true;
                    }
                    Ok(_) => return Err(Errno::NOTDIR),
                    Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno),
                }
                rustix::fs::mkdirat(&*above, name, Mode::from_raw_mode(0o755))?;
                self.unpacked.inodes += 1;
                self.unpacked.size_bytes += BLOCK_BYTES;
                if opaque {
                    set_opaque(&above, name)?;
                } else {
                    self.copy_from_below(path, &above, name)?;
                }
                Rc::new(open_in(&self.root, path)?)
            }
            Err(errno) => return Err(errno),
        };
        self.last_parent = Some((path.to_owned(), fd.clone()));
        Ok(fd)
    }

    /// Gives a directory the archive did not list the owner, mode and times it has in the layers below.
    fn copy_from_below(&mut self, path: &[u8], above: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
        let mut stat = None;
        for parent in &self.parents {
            if let Ok(fd) = open_in(parent, path) {
                stat = Some(rustix::fs::fstat(&fd)?);
                break;
            }
        }
        let Some(stat) = stat else {
            return rustix::fs::chmodat(above, name, Mode::from_raw_mode(0o755), AtFlags::empty());
        };
        rustix::fs::chownat(
            above,
            name,
            Some(Uid::from_raw(stat.st_uid)),
            Some(Gid::from_raw(stat.st_gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        rustix::fs::chmodat(
            above,
            name,
            Mode::from_raw_mode(stat.st_mode),
            AtFlags::empty(),
        )?;
        let time = |sec, nsec| Timespec {
            tv_sec: sec,
            tv_nsec: nsec as _,
        };
        self.directory_times.push((
            path.to_owned(),
            Timestamps {
                last_access: time(stat.st_atime, stat.st_atime_nsec),
                last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
            },
        ));
        Ok(())
    }

    fn set_root(&mut self, meta: &Meta) -> io::Result<()> {
        let root = self.root.clone();
        apply_meta(&root, OsStr::new("."), tar::EntryType::Directory, meta)?;
        self.directory_times.push((Vec::new(), meta.times.clone()));
        Ok(())
    }

    fn finish(self) -> Result<Unpacked, UnpackError> {
        for (path, times) in &self.directory_times {
            // One replaced by something else later in the archive is simply gone.
            let Ok(fd) = open_in(&self.root, path) else {
                continue;
            };
            rustix::fs::utimensat(&fd, ".", times, AtFlags::empty()).map_err(|errno| {
                UnpackError::Entry {
                    entry: String::from_utf8_lossy(path).into_owned(),
                    source: errno.into(),
                }
            })?;
        }
        Ok(self.unpacked)
    }
}

/// The path's components; `None` if `..` leads above the root.
fn clean(path: &[u8]) -> Option<Vec<&[u8]>> {
    let mut components = Vec::new();
    for component in path.split(|&b| b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop()?;
            }
            name => components.push(name),
        }
    }
    Some(components)
}

/// Opens a directory below `root`; symlinks inside resolve as if `root` were `/`.
fn open_in(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { &b"."[..] } else { path };
    rustix::fs::openat2(
        root,
        OsStr::from_bytes(path),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

/// A path of `name` that goes through the open directory, for calls that take no descriptor.
fn through_fd(parent: &OwnedFd, name: &OsStr) -> PathBuf {
    Path::new(&format!("/proc/self/fd/{}", parent.as_fd().as_raw_fd())).join(name)
}

fn mknod(parent: &OwnedFd, name: &OsStr, kind: FileType, device: Dev) -> Result<(), Errno> {
    rustix::fs::mknodat(parent, name, kind, Mode::RUSR | Mode::WUSR, device)
}

fn set_opaque(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    rustix::fs::lsetxattr(
        through_fd(parent, name),
        OVERLAY_OPAQUE_XATTR,
        b"y",
        XattrFlags::empty(),
    )
}

fn file_type(stat: &rustix::fs::Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn is_whiteout(stat: &rustix::fs::Stat) -> bool {
    file_type(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

#[cfg(test)]
mod tests;
