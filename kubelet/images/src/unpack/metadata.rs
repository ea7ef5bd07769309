//! What an archive says about a file besides its content, set on what was made of it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::tar_stream::{Header, Time};
use super::tree::{file_type, stat, through_fd};

/// Owner, attributes, mode and times, in upstream's order: a new owner drops setuid bits and capabilities.
pub(super) fn apply(parent: &OwnedFd, name: &[u8], header: &Header) -> io::Result<()> {
    let os_name = OsStr::from_bytes(name);
    let (uid, gid) = (id("uid", header.uid)?, id("gid", header.gid)?);
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(
        parent,
        os_name,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        nofollow,
    )?;
    // Of a hard link the other name decides.
    let kind = stat(parent, name)?.map_or(FileType::Unknown, |stat| file_type(&stat));
    let plain = matches!(kind, FileType::RegularFile | FileType::Directory);
    let path = through_fd(parent, name);
    for (key, value) in &header.xattrs {
        // What steers overlayfs itself is never an archive's to say.
        if key.starts_with(b"trusted.") || key.starts_with(b"user.overlay.") {
            continue;
        }
        let key_name = OsStr::from_bytes(key);
        match rustix::fs::lsetxattr(&path, key_name, value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            // user.* is refused on symlinks and devices; the archive may carry it all the same.
            Err(Errno::PERM) if key.starts_with(b"user.") && !plain => {}
            Err(errno) => {
                let key = String::from_utf8_lossy(key);
                return Err(io::Error::new(
                    io::Error::from(errno).kind(),
                    format!("extended attribute {key}: {errno}"),
                ));
            }
        }
    }
    if kind != FileType::Symlink {
        rustix::fs::chmodat(
            parent,
            os_name,
            Mode::from_raw_mode(header.mode),
            AtFlags::empty(),
        )?;
    }
    rustix::fs::utimensat(parent, os_name, &times(header), nofollow)?;
    Ok(())
}

/// An owner: 32 bits. All ones would mean "as it is" to the kernel.
fn id(what: &str, value: i64) -> io::Result<u32> {
    u32::try_from(value)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{what} {value} is no owner"),
            )
        })
}

pub(super) fn times(header: &Header) -> Timestamps {
    let access = header.atime.unwrap_or(header.mtime).max(header.mtime);
    Timestamps {
        last_access: timespec(access.bounded()),
        last_modification: timespec(header.mtime.bounded()),
    }
}

fn timespec(time: Time) -> Timespec {
    Timespec {
        tv_sec: time.seconds,
        tv_nsec: time.nanoseconds.into(),
    }
}
