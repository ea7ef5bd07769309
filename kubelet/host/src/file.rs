//! Opening and reading a file that a container can change.
//!
//! A file is looked at before it is opened for reading (`O_PATH`, `fstat`, then the same inode anew through
//! `/proc/self/fd`): opening a FIFO would wait for its writer, opening a device may do whatever the device does.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Why a file was not opened or not read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// No retry helps: somebody put something else in the file's place.
    #[error("{} is {kind}, not a regular file", path.display())]
    NotRegular { path: PathBuf, kind: &'static str },
    #[error("{} has more than {limit} bytes", path.display())]
    TooLarge { path: PathBuf, limit: u64 },
}

impl FileError {
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl From<FileError> for io::Error {
    fn from(error: FileError) -> Self {
        let kind = match &error {
            FileError::Io { source, .. } => source.kind(),
            FileError::NotRegular { .. } => io::ErrorKind::InvalidInput,
            FileError::TooLarge { .. } => io::ErrorKind::FileTooLarge,
        };
        io::Error::new(kind, error)
    }
}

/// Which symbolic links may stand on the way to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// None at all.
    Refused,
    /// Those that do not lead out of the root.
    Beneath,
}

/// A directory that files are opened beneath. The way to it is trusted, what is in it is not.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

impl Root {
    /// # Errors
    /// There is no such directory.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(at(path))?;
        Ok(Self {
            fd,
            path: path.to_owned(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens `path`, relative to the root, for reading.
    ///
    /// # Errors
    /// It is not there, is no regular file, or leads out of the root.
    pub fn open_regular(&self, path: &Path, links: Links) -> Result<File, FileError> {
        let seen = self.look(path, links)?;
        reopen_regular(&seen, &self.path.join(path))
    }

    /// Opens the directory `path`, relative to the root; `.` and the empty path are the root itself.
    ///
    /// # Errors
    /// It is not there, is no directory, or leads out of the root.
    pub fn open_directory(&self, path: &Path, links: Links) -> Result<Root, FileError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let fd = self.open_beneath(path, links, flags)?;
        Ok(Root {
            fd,
            path: self.path.join(path),
        })
    }

    /// What stands at `path`.
    ///
    /// # Errors
    /// It is not there or leads out of the root.
    pub fn file_type(&self, path: &Path, links: Links) -> Result<FileType, FileError> {
        let seen = self.look(path, links)?;
        let stat = rustix::fs::fstat(&seen).map_err(at(&self.path.join(path)))?;
        Ok(FileType::from_raw_mode(stat.st_mode))
    }

    /// Names of the entries, sorted, at most `limit` of them, and whether each is a directory (links are not followed).
    ///
    /// # Errors
    /// It cannot be read.
    pub fn entries(&self, limit: usize) -> Result<Vec<(std::ffi::OsString, bool)>, FileError> {
        // The root itself is open for nothing but the way through it.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&self.fd, c".", flags, Mode::empty())
            .and_then(rustix::fs::Dir::new)
            .map_err(at(&self.path))?;
        let mut found = Vec::new();
        for entry in dir {
            let entry = entry.map_err(at(&self.path))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if found.len() == limit {
                break;
            }
            let kind = super::tree::kind_of(self.fd.as_fd(), &entry);
            let name = std::os::unix::ffi::OsStrExt::from_bytes(name.to_bytes());
            found.push((
                std::ffi::OsStr::to_owned(name),
                kind == Some(FileType::Directory),
            ));
        }
        found.sort();
        Ok(found)
    }

    /// Makes a new file in the root itself: neither what is there already nor the target of a link is touched.
    ///
    /// # Errors
    /// There is something of that name.
    pub fn create_new(&self, name: &Path, mode: u32) -> Result<File, FileError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(mode))
            .map(File::from)
            .map_err(at(&self.path.join(name)))
    }

    /// Gives an entry of the root itself another name there; whatever had that name is gone.
    ///
    /// # Errors
    /// I/O.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError> {
        rustix::fs::renameat(&self.fd, from, &self.fd, to).map_err(at(&self.path.join(from)))
    }

    /// Removes a file or link of the root itself; one that is gone is fine.
    ///
    /// # Errors
    /// I/O, or it is a directory.
    pub fn remove_file(&self, name: &Path) -> Result<(), FileError> {
        match rustix::fs::unlinkat(&self.fd, name, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(at(&self.path.join(name))(errno)),
        }
    }

    fn look(&self, path: &Path, links: Links) -> Result<OwnedFd, FileError> {
        let last = match links {
            // The link itself is looked at, and refused for what it is.
            Links::Refused => OFlags::NOFOLLOW,
            Links::Beneath => OFlags::empty(),
        };
        self.open_beneath(path, links, OFlags::PATH | last)
    }

    fn open_beneath(&self, path: &Path, links: Links, flags: OFlags) -> Result<OwnedFd, FileError> {
        let resolve = match links {
            Links::Refused => ResolveFlags::NO_SYMLINKS,
            Links::Beneath => ResolveFlags::empty(),
        };
        let path_or_dot = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        open_resolved(self.fd.as_fd(), path_or_dot, flags, resolve)
            .map_err(at(&self.path.join(path)))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// openat2 beneath `root`. EAGAIN: a rename elsewhere made the kernel unsure about a `..`; a bounded number of tries.
fn open_resolved(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let resolve = resolve | ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC;
    for _ in 0..32 {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens a regular file for reading. The directories on the way are trusted; the last name may be no link.
///
/// # Errors
/// It is not there or no regular file.
pub fn open_regular(path: &Path) -> Result<File, FileError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let seen = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(at(path))?;
    reopen_regular(&seen, path)
}

fn reopen_regular(seen: &OwnedFd, path: &Path) -> Result<File, FileError> {
    let stat = rustix::fs::fstat(seen).map_err(at(path))?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let same = format!("/proc/self/fd/{}", seen.as_raw_fd());
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            return rustix::fs::openat(CWD, same, flags, Mode::empty())
                .map(File::from)
                .map_err(at(path));
        }
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a named pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "of an unknown kind",
    };
    Err(FileError::NotRegular {
        path: path.to_owned(),
        kind,
    })
}

fn at(path: &Path) -> impl Fn(Errno) -> FileError + '_ {
    move |errno| FileError::Io {
        path: path.to_owned(),
        source: errno.into(),
    }
}

/// The whole of an open file, if it has no more than `limit` bytes.
///
/// # Errors
/// I/O, or [`FileError::TooLarge`] before anything was read.
pub fn read_whole(file: &File, path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let io = |source| FileError::Io {
        path: path.to_owned(),
        source,
    };
    let too_large = || FileError::TooLarge {
        path: path.to_owned(),
        limit,
    };
    if file.metadata().map_err(io)?.len() > limit {
        return Err(too_large());
    }
    let mut out = Vec::new();
    // It may grow while it is read.
    file.take(limit + 1).read_to_end(&mut out).map_err(io)?;
    if out.len() as u64 > limit {
        return Err(too_large());
    }
    Ok(out)
}

/// [`open_regular`] and [`read_whole`].
///
/// # Errors
/// As those.
pub fn read_regular(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    read_whole(&open_regular(path)?, path, limit)
}

/// The last `max` bytes of an open file.
///
/// # Errors
/// I/O.
pub fn read_tail(mut file: &File, max: u64) -> io::Result<Vec<u8>> {
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(max)))?;
    let mut out = vec![];
    file.take(max).read_to_end(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn fifo(path: &Path) {
        rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0).unwrap();
    }

    #[test]
    fn regular_files_alone_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "text").unwrap();
        symlink("file", at("link")).unwrap();
        fifo(&at("fifo"));
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for (name, expect) in [
            ("file", None),
            ("link", Some("a symbolic link")),
            ("fifo", Some("a named pipe")),
            ("socket", Some("a socket")),
            (".", Some("a directory")),
        ] {
            let error = open_regular(&at(name)).err().map(|e| e.to_string());
            let expect =
                expect.map(|kind| format!("{} is {kind}, not a regular file", at(name).display()));
            assert_eq!(error, expect, "{name}");
        }
        assert!(
            open_regular(Path::new("/dev/null"))
                .unwrap_err()
                .to_string()
                .contains("a device")
        );
        assert!(open_regular(&at("none")).unwrap_err().is_not_found());
    }

    #[test]
    fn nothing_leads_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("root");
        std::fs::create_dir_all(inside.join("sub")).unwrap();
        std::fs::write(inside.join("sub/file"), "in").unwrap();
        std::fs::write(dir.path().join("secret"), "out").unwrap();
        symlink("sub/file", inside.join("good")).unwrap();
        symlink("../secret", inside.join("up")).unwrap();
        symlink(dir.path().join("secret"), inside.join("absolute")).unwrap();
        symlink("..", inside.join("parent")).unwrap();
        symlink("/proc/self/root", inside.join("magic")).unwrap();
        fifo(&inside.join("fifo"));
        let root = Root::open(&inside).unwrap();
        for (path, plain, linked) in [
            ("sub/file", true, true),
            ("good", false, true),
            ("up", false, false),
            ("absolute", false, false),
            ("parent/secret", false, false),
            ("magic/etc/passwd", false, false),
            ("../secret", false, false),
            ("/etc/passwd", false, false),
            ("fifo", false, false),
            ("sub", false, false),
        ] {
            let path = Path::new(path);
            assert_eq!(
                (
                    root.open_regular(path, Links::Refused).is_ok(),
                    root.open_regular(path, Links::Beneath).is_ok()
                ),
                (plain, linked),
                "{}",
                path.display()
            );
        }
        let names: Vec<_> = root
            .open_directory(Path::new("sub"), Links::Refused)
            .unwrap()
            .entries(10)
            .unwrap();
        assert_eq!(names, [("file".into(), false)]);
    }

    #[test]
    fn a_sparse_file_costs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        std::fs::File::create(&path)
            .unwrap()
            .set_len(3 << 30)
            .unwrap();
        assert!(matches!(
            read_regular(&path, 64 << 10),
            Err(FileError::TooLarge { limit: 65536, .. })
        ));
        assert_eq!(
            read_tail(&open_regular(&path).unwrap(), 4096).unwrap(),
            [0; 4096]
        );
        std::fs::write(&path, "1234").unwrap();
        assert_eq!(read_regular(&path, 4).unwrap(), b"1234");
        assert_eq!(read_tail(&open_regular(&path).unwrap(), 2).unwrap(), b"34");
    }

    #[test]
    fn a_new_file_is_new() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("victim"), "keep").unwrap();
        symlink("victim", dir.path().join("planted")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert!(root.create_new(Path::new("planted"), 0o600).is_err());
        assert_eq!(
            std::fs::read_to_string(dir.path().join("victim")).unwrap(),
            "keep"
        );
    }
}
