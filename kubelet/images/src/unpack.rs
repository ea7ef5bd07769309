//! Unpacking a layer into a directory of its own, in the form overlayfs reads.
//!
//! What comes out, seen together with the layers below, is what containerd makes of the same archives when it applies
//! them one after the other: paths, whiteouts and hard links mean what they mean in the whole tree, not in the one
//! layer. `bin/tool` over a base whose `bin` is a symlink to `usr/bin` lands in `usr/bin`.
//!
//! Whatever the archive says, nothing is written outside the directory (`tree`), no name, map or list of it takes more
//! memory than is said beside its bound (`tar_stream`, `tree`), and no more is written than the file system can spare
//! (`budget`). A layer costs at most the window of its compression (128 MiB of zstd, 32 KiB of gzip), twice
//! [`tar_stream::MAX_SPECIAL_BYTES`] and a few buffers; the store lets only so many be unpacked at a time.
//!
//! Upstream: containerd's `pkg/archive`, applied to one directory.
//!
//! DIFFERS: containerd's overlayfs snapshotter applies a layer to its own directory alone, so that there the example
//! above hides the base's programs; times of directories that the archive does not list stay as they were below,
//! where upstream leaves the time of unpacking; old GNU sparse files and contiguous files are taken, which upstream
//! refuses.

mod budget;
mod copy;
mod decompress;
mod metadata;
mod resolve;
pub(crate) mod tar_stream;
mod times;
mod tree;

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::digest::{Hasher, HashingReader};
use budget::Metered;
pub(crate) use decompress::{Compression, decompress};
use resolve::{Names, clean, resolve, split};
pub use tar_stream::TarError;
use tar_stream::{Header, Kind, TarStream};
use times::Kind as TimesKind;
use tree::{Tree, make_node};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
const COPY_BUFFER_BYTES: usize = 128 * 1024;
/// What a file occupies is counted in blocks of this size.
const BLOCK_BYTES: u64 = 4096;
/// Entries of one layer; far above any real one, it bounds the time that a small archive can take.
const MAX_ENTRIES: u64 = 10_000_000;
/// What may follow behind an archive's end, where archivers pad to their record.
const MAX_TRAILING_BYTES: u64 = 64 << 20;
/// Archives that the fuzz target makes are no longer.
#[cfg(any(test, fuzzing))]
pub(crate) const MAX_FUZZED_BYTES: usize = 1 << 20;
/// How much of a name an error shows.
const SHOWN_BYTES: usize = 256;

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
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
    Archive(#[source] TarError),
    #[error("layer archive: more than {MAX_ENTRIES} entries")]
    Entries,
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

impl From<TarError> for UnpackError {
    fn from(error: TarError) -> Self {
        Self::Archive(error)
    }
}

fn archive(error: io::Error) -> UnpackError {
    UnpackError::Archive(error.into())
}

/// Unpacks `layers`, lowest first, into `<directory>/<index>` each, without a store and without checking digests: for
/// tools that look at what unpacking makes of an archive. Answers the directories, topmost first.
///
/// # Errors
/// See [`UnpackError`].
pub fn unpack_stack(layers: &[PathBuf], directory: &Path) -> Result<Vec<PathBuf>, UnpackError> {
    let mut below: Vec<PathBuf> = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let target = directory.join(index.to_string());
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| UnpackError::Directory { path, source }
        };
        std::fs::create_dir(&target).map_err(at(&target))?;
        let file = File::open(layer).map_err(at(layer))?;
        unpack(decompress(file).map_err(archive)?, &target, &below)?;
        below.insert(0, target);
    }
    Ok(below)
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
    let plain = decompress(file).map_err(archive)?;
    let hasher = Hasher::of(diff_id).ok_or_else(|| UnpackError::DiffId {
        expected: diff_id.to_owned(),
        found: "an algorithm that is not supported".to_owned(),
    })?;
    let mut reader = HashingReader::new(plain, hasher);
    let unpacked = unpack(&mut reader, target, parents)?;
    let found = reader.finish();
    if found != diff_id {
        return Err(UnpackError::DiffId {
            expected: diff_id.to_owned(),
            found,
        });
    }
    Ok(unpacked)
}

/// Unpacks a plain tar stream into `target`, and reads what follows the archive, which belongs to its digest.
pub(crate) fn unpack(
    reader: impl Read,
    target: &Path,
    parents: &[PathBuf],
) -> Result<Unpacked, UnpackError> {
    let tree = Tree::open(target, parents)
        .map_err(|(path, source)| UnpackError::Directory { path, source })?;
    let left = Rc::new(Cell::new(tree.budget.archive_bytes()));
    let mut stream = TarStream::new(Metered {
        inner: reader,
        left: left.clone(),
        what: "the archive is larger than what the image store has room for",
    });
    let mut unpacker = Unpacker {
        tree,
        last_parent: None,
        buffer: vec![0; COPY_BUFFER_BYTES],
        size_bytes: 0,
    };
    let mut entries = 0;
    while let Some(header) = stream.next()? {
        entries += 1;
        if entries > MAX_ENTRIES {
            return Err(UnpackError::Entries);
        }
        unpacker.entry(&header, &mut stream)?;
    }
    let mut rest = stream.into_inner();
    rest.what = "too much follows the archive's end";
    left.set(left.get().min(MAX_TRAILING_BYTES));
    io::copy(&mut rest, &mut io::sink()).map_err(archive)?;
    unpacker.finish()
}

struct Unpacker {
    tree: Tree,
    /// The last entry's directory as the archive writes it, and where it leads.
    last_parent: Option<(Vec<u8>, Names)>,
    buffer: Vec<u8>,
    size_bytes: u64,
}

impl Unpacker {
    fn entry<R: Read>(
        &mut self,
        header: &Header,
        stream: &mut TarStream<R>,
    ) -> Result<(), UnpackError> {
        let at = |source: io::Error| UnpackError::Entry {
            entry: shown(&header.name),
            source,
        };
        resolve::check(header.name.len(), 0).map_err(at)?;
        let listed = clean(&header.name);
        let (above, name) = split(&listed);
        if matches!(name, b"" | b"..") {
            // The root itself: it stays as the store made it, as upstream.
            return Ok(());
        }
        let path = self.place(above, name).map_err(at)?;
        if name.starts_with(WHITEOUT_PREFIX) {
            return self.whiteout(&path).map_err(at);
        }
        let existing = self.existing(&path).map_err(at)?;
        let merges = existing == Some(FileType::Directory) && header.kind == Kind::Directory;
        if existing.is_some() && !merges {
            self.forget();
            self.tree.remove(&path).map_err(at)?;
        }
        match header.kind {
            // Nothing is there, but it was named.
            Kind::Global => return self.tree.note_once_listed(&path).map_err(at),
            Kind::Other(kind) => {
                return Err(UnpackError::Unsupported {
                    entry: shown(&header.name),
                    kind,
                });
            }
            Kind::HardLink => {
                self.hard_link(&path, &header.link)
                    .map_err(|source| UnpackError::HardLink {
                        entry: shown(&header.name),
                        target: shown(&header.link),
                        source,
                    })?;
            }
            Kind::File => self.file(&path, header, stream).map_err(|e| match e {
                Failure::Disk(source) => at(source),
                Failure::Archive(error) => error.into(),
            })?,
            Kind::Directory => self.directory(&path, merges).map_err(at)?,
            Kind::Symlink | Kind::Fifo | Kind::CharDevice | Kind::BlockDevice => {
                self.special(&path, header).map_err(at)?;
            }
        }
        self.tree.note_listed(&path);
        let (room, name) = self.tree.room(&path).map_err(at)?;
        metadata::apply(&room, &name, header).map_err(at)?;
        if header.kind == Kind::Directory {
            let times = metadata::times(header);
            self.tree
                .times
                .push(TimesKind::Listed, &listed, times)
                .map_err(at)?;
        }
        Ok(())
    }

    /// Where an entry goes; its directory is there then.
    fn place(&mut self, above: &[u8], name: &[u8]) -> io::Result<Names> {
        let parent = match &self.last_parent {
            Some((known, parent)) if known == above => parent.clone(),
            _ => {
                let parent = resolve(&mut self.tree, above)?;
                self.tree.make_directories(&parent)?;
                self.last_parent = Some((above.to_vec(), parent.clone()));
                parent
            }
        };
        let mut path = parent;
        path.push(name.to_vec());
        resolve::check(path.iter().map(|name| name.len() + 1).sum(), path.len())?;
        Ok(path)
    }

    /// Paths may lead elsewhere from now on.
    fn forget(&mut self) {
        self.last_parent = None;
    }

    fn existing(&mut self, path: &[Vec<u8>]) -> io::Result<Option<FileType>> {
        let (name, parent) = path.split_last().ok_or(Errno::INVAL)?;
        let Some(node) = self.tree.directory(parent)? else {
            return Ok(None);
        };
        let found = self.tree.lookup(&node, name)?;
        Ok(found.map(|found| tree::file_type(&found.stat)))
    }

    fn whiteout(&mut self, path: &[Vec<u8>]) -> io::Result<()> {
        let (name, parent) = path.split_last().ok_or(Errno::INVAL)?;
        self.forget();
        if name == WHITEOUT_OPAQUE {
            return self.tree.make_opaque(parent);
        }
        let hidden = &name[WHITEOUT_PREFIX.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "invalid whiteout name",
            ));
        }
        let mut path = parent.to_vec();
        path.push(hidden.to_vec());
        self.tree.remove(&path)
    }

    fn directory(&mut self, path: &[Vec<u8>], merges: bool) -> io::Result<()> {
        if merges {
            return self.tree.copy_up_directory(path).map(drop);
        }
        self.size_bytes += BLOCK_BYTES;
        self.tree.make_directory(path)
    }

    fn file<R: Read>(
        &mut self,
        path: &[Vec<u8>],
        header: &Header,
        stream: &mut TarStream<R>,
    ) -> Result<(), Failure> {
        let (room, name) = self.tree.room_for_file(path)?;
        // Holes are counted as if they were filled: a file that cannot be read whole anywhere is none to keep.
        self.tree.budget.bytes(header.size)?;
        let file = File::from(create(&room, &name)?);
        let (mut written, mut end) = (0, 0);
        while let Some((offset, count)) = stream.data(&mut self.buffer).map_err(Failure::Archive)? {
            file.write_all_at(&self.buffer[..count], offset)?;
            written += count as u64;
            end = offset + count as u64;
        }
        if end < header.size {
            file.set_len(header.size)?;
        }
        self.size_bytes += written.div_ceil(BLOCK_BYTES) * BLOCK_BYTES;
        Ok(())
    }

    fn special(&mut self, path: &[Vec<u8>], header: &Header) -> io::Result<()> {
        let (room, name) = self.tree.room_for_file(path)?;
        let number = |value: i64| {
            u32::try_from(value).map_err(|_| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("device number {value} is out of range"),
                )
            })
        };
        let kind = match header.kind {
            Kind::Symlink => {
                self.forget();
                let text = OsStr::from_bytes(&header.link);
                rustix::fs::symlinkat(text, &room, OsStr::from_bytes(&name))?;
                return Ok(());
            }
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let device = match kind {
            FileType::Fifo => 0,
            _ => rustix::fs::makedev(number(header.device.0)?, number(header.device.1)?),
        };
        make_node(&room, &name, kind, device)
    }

    /// The link's own path is free already. A target of a lower layer is copied up first.
    fn hard_link(&mut self, path: &[Vec<u8>], target: &[u8]) -> io::Result<()> {
        resolve::check(target.len(), 0)?;
        let (above, last) = split(target);
        let mut target = resolve(&mut self.tree, above)?;
        match last {
            b"" | b"." => {}
            b".." => {
                target.pop();
            }
            last => target.push(last.to_vec()),
        }
        if self.existing_or_root(&target)? == FileType::Directory {
            return Err(Errno::PERM.into());
        }
        self.tree.copy_up(&target)?;
        let (from, from_name) = self.tree.room(&target)?;
        let (room, name) = self.tree.room_for_file(path)?;
        rustix::fs::linkat(
            &from,
            OsStr::from_bytes(&from_name),
            &room,
            OsStr::from_bytes(&name),
            AtFlags::empty(),
        )?;
        // It may be a symlink.
        self.forget();
        Ok(())
    }

    fn existing_or_root(&mut self, path: &[Vec<u8>]) -> io::Result<FileType> {
        if path.is_empty() {
            return Ok(FileType::Directory);
        }
        self.existing(path)?.ok_or_else(|| Errno::NOENT.into())
    }

    /// Sets the times of directories: what was copied up gets back those from below, then the archive's own say.
    fn finish(mut self) -> Result<Unpacked, UnpackError> {
        let at = |path: &[u8], source: io::Error| UnpackError::Entry {
            entry: shown(path),
            source,
        };
        let whole = |source: io::Error| at(&[], source);
        // What an entry's path leads to now may lie in a lower layer still.
        let mut list = self.tree.times.read().map_err(whole)?;
        while let Some((kind, path, _)) = list.next().map_err(whole)? {
            if kind == TimesKind::Listed {
                self.listed_place(&path)
                    .and_then(|place| place.map_or(Ok(()), |place| self.tree.copy_up(&place)))
                    .map_err(|error| at(&path, error))?;
            }
        }
        for wanted in [TimesKind::CopiedUp, TimesKind::Listed] {
            let mut list = self.tree.times.read().map_err(whole)?;
            while let Some((kind, path, times)) = list.next().map_err(whole)? {
                if kind != wanted {
                    continue;
                }
                self.set_times(kind, &path, &times)
                    .map_err(|error| at(&path, error))?;
            }
        }
        Ok(Unpacked {
            size_bytes: self.size_bytes,
            inodes: self.tree.budget.used_inodes(),
        })
    }

    /// What a listed directory's path leads to in the end; `None`: it was removed again.
    fn listed_place(&mut self, path: &[u8]) -> io::Result<Option<Names>> {
        let place = match resolve(&mut self.tree, path) {
            Ok(place) => place,
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(None),
            Err(error) => return Err(error),
        };
        if place.is_empty() {
            return Ok(Some(place));
        }
        match self.existing(&place) {
            Ok(Some(_)) => Ok(Some(place)),
            Ok(None) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn set_times(
        &mut self,
        kind: TimesKind,
        path: &[u8],
        times: &rustix::fs::Timestamps,
    ) -> io::Result<()> {
        let place = match kind {
            TimesKind::Listed => match self.listed_place(path)? {
                Some(place) => place,
                None => return Ok(()),
            },
            // Something else may have come in its place, or stand in its way.
            TimesKind::CopiedUp => match resolve(&mut self.tree, path) {
                Ok(place) if place.join(&b'/') == path => match self.existing_or_root(&place) {
                    Ok(FileType::Directory) => place,
                    _ => return Ok(()),
                },
                _ => return Ok(()),
            },
        };
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        let Some((name, parent)) = place.split_last() else {
            let root = self.tree.copy_up_directory(&[])?.upper;
            let root = root.expect("a root has an upper one");
            rustix::fs::utimensat(&root, ".", times, nofollow)?;
            return Ok(());
        };
        let upper = self.tree.directory(parent)?.and_then(|node| node.upper);
        let Some(upper) = upper else { return Ok(()) };
        match rustix::fs::utimensat(&upper, OsStr::from_bytes(name), times, nofollow) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Whose fault it is that a file could not be written.
enum Failure {
    Disk(io::Error),
    Archive(TarError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

fn create(room: &OwnedFd, name: &[u8]) -> io::Result<OwnedFd> {
    let file = rustix::fs::openat(
        room,
        OsStr::from_bytes(name),
        OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::RUSR | Mode::WUSR,
    )?;
    Ok(file)
}

fn shown(name: &[u8]) -> String {
    let cut = &name[..name.len().min(SHOWN_BYTES)];
    String::from_utf8_lossy(cut).into_owned()
}

#[cfg(test)]
pub(crate) mod tests;
