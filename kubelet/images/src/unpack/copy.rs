//! Copying a file of a lower layer up into the layer under way, with all that is known of it.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::tree::{file_type, link_text, make_node, through_fd};

const BUFFER_BYTES: usize = 128 * 1024;

/// Gives an open directory the owner, mode and attributes of another; answers the other's times.
pub(super) fn directory(from: &OwnedFd, to: &OwnedFd) -> io::Result<Timestamps> {
    let stat = rustix::fs::fstat(from)?;
    rustix::fs::fchown(to, Some(uid(&stat)), Some(gid(&stat)))?;
    attributes(&through_fd(from, b"."), &through_fd(to, b"."))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    Ok(times(&stat))
}

/// Copies what is no directory from one directory into another, under the same name.
pub(super) fn file(from: &OwnedFd, to: &OwnedFd, name: &[u8], stat: &Stat) -> io::Result<()> {
    let kind = file_type(stat);
    let os_name = OsStr::from_bytes(name);
    match kind {
        FileType::Symlink => {
            let text = link_text(from, name)?;
            rustix::fs::symlinkat(OsStr::from_bytes(&text), to, os_name)?;
        }
        FileType::RegularFile => data(from, to, os_name)?,
        other => make_node(to, name, other, stat.st_rdev)?,
    }
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(to, os_name, Some(uid(stat)), Some(gid(stat)), nofollow)?;
    attributes(&through_fd(from, name), &through_fd(to, name))?;
    if kind != FileType::Symlink {
        rustix::fs::chmodat(
            to,
            os_name,
            Mode::from_raw_mode(stat.st_mode),
            AtFlags::empty(),
        )?;
    }
    rustix::fs::utimensat(to, os_name, &times(stat), nofollow)?;
    Ok(())
}

/// Holes stay holes.
fn data(from: &OwnedFd, to: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let common = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = File::from(rustix::fs::openat(
        from,
        name,
        OFlags::RDONLY | common,
        Mode::empty(),
    )?);
    let target = File::from(rustix::fs::openat(
        to,
        name,
        OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | common,
        Mode::RUSR | Mode::WUSR,
    )?);
    let size = source.metadata()?.len();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut at = 0;
    while at < size {
        at = match rustix::fs::seek(&source, SeekFrom::Data(at)) {
            Ok(at) => at,
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = rustix::fs::seek(&source, SeekFrom::Hole(at))?.min(size);
        while at < end {
            let want = (end - at).min(buffer.len() as u64) as usize;
            let count = source.read_at(&mut buffer[..want], at)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            target.write_all_at(&buffer[..count], at)?;
            at += count as u64;
        }
    }
    target.set_len(size)
}

/// All but what is the kernel's or overlayfs' own.
fn attributes(from: &std::path::Path, to: &std::path::Path) -> io::Result<()> {
    let unsupported = |errno: Errno| matches!(errno, Errno::OPNOTSUPP | Errno::NODATA);
    let mut list = match rustix::fs::llistxattr_query(from) {
        Ok(0) => return Ok(()),
        Ok(size) => vec![0u8; size],
        Err(errno) if unsupported(errno) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    let size = rustix::fs::llistxattr(from, &mut list[..])?;
    for key in list[..size].split(|&b| b == 0) {
        if key.is_empty() || key.starts_with(b"trusted.") {
            continue;
        }
        let key = OsStr::from_bytes(key);
        let mut value = vec![0u8; rustix::fs::lgetxattr_query(from, key)?];
        let size = rustix::fs::lgetxattr(from, key, &mut value[..])?;
        match rustix::fs::lsetxattr(to, key, &value[..size], XattrFlags::empty()) {
            Err(errno) if !unsupported(errno) => return Err(errno.into()),
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn times(stat: &Stat) -> Timestamps {
    let time = |sec, nsec| Timespec {
        tv_sec: sec,
        tv_nsec: nsec as _,
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

fn uid(stat: &Stat) -> Uid {
    Uid::from_raw(stat.st_uid)
}

fn gid(stat: &Stat) -> Gid {
    Gid::from_raw(stat.st_gid)
}
