//! Owner, mode, times and extended attributes: read from an archive's entry, set on a file.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::through_fd;

const PAX_XATTR_PREFIX: &str = "SCHILY.xattr.";

/// What an archive says about a file besides its content.
pub(super) struct Meta {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
    pub(super) times: Timestamps,
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
}

pub(super) fn uid(meta: &Meta) -> Uid {
    Uid::from_raw(meta.uid)
}

pub(super) fn gid(meta: &Meta) -> Gid {
    Gid::from_raw(meta.gid)
}

pub(super) fn mode(meta: &Meta) -> Mode {
    Mode::from_raw_mode(meta.mode & 0o7777)
}

/// Owner, mode, extended attributes and (but for directories) times of a fresh entry.
pub(super) fn apply_meta(
    parent: &OwnedFd,
    name: &OsStr,
    kind: tar::EntryType,
    meta: &Meta,
) -> io::Result<()> {
    rustix::fs::chownat(
        parent,
        name,
        Some(uid(meta)),
        Some(gid(meta)),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    if !kind.is_symlink() {
        rustix::fs::chmodat(parent, name, mode(meta), AtFlags::empty())?;
    }
    for (key, value) in &meta.xattrs {
        let set = rustix::fs::lsetxattr(through_fd(parent, name), key, value, XattrFlags::empty());
        // user.* is refused on symlinks and devices; the archive may carry it all the same.
        if set == Err(Errno::PERM) && key.starts_with("user.") && !kind.is_dir() {
            continue;
        }
        ignore_unsupported(set)?;
    }
    if !kind.is_dir() {
        rustix::fs::utimensat(parent, name, &meta.times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

pub(super) fn ignore_unsupported(result: Result<(), Errno>) -> io::Result<()> {
    match result {
        Err(Errno::OPNOTSUPP) | Ok(()) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

pub(super) fn read_meta<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Meta> {
    let header = entry.header();
    let id = |value: u64| {
        u32::try_from(value)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("owner {value}")))
    };
    // Some builders leave fields blank; that means zero.
    let fields = header.as_old();
    let blank = |field: &[u8]| field.iter().all(|b| matches!(b, 0 | b' '));
    let mtime = if blank(&fields.mtime) {
        0
    } else {
        header.mtime()?
    };
    let mut meta = Meta {
        uid: if blank(&fields.uid) {
            0
        } else {
            id(header.uid()?)?
        },
        gid: if blank(&fields.gid) {
            0
        } else {
            id(header.gid()?)?
        },
        mode: if blank(&fields.mode) {
            0
        } else {
            header.mode()?
        },
        times: Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            last_modification: Timespec {
                tv_sec: i64::try_from(mtime).unwrap_or(0),
                tv_nsec: 0,
            },
        },
        xattrs: Vec::new(),
    };
    let mut access = None;
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            let Ok(key) = extension.key() else { continue };
            let text = extension.value().unwrap_or_default();
            match key {
                "uid" => meta.uid = text.parse().unwrap_or(meta.uid),
                "gid" => meta.gid = text.parse().unwrap_or(meta.gid),
                "mtime" => {
                    if let Some(time) = parse_time(text) {
                        meta.times.last_modification = time;
                    }
                }
                "atime" => access = parse_time(text),
                _ => {
                    // What steers overlayfs itself is never an archive's to say.
                    if let Some(name) = key.strip_prefix(PAX_XATTR_PREFIX)
                        && !name.starts_with("trusted.")
                        && !name.starts_with("user.overlay.")
                    {
                        meta.xattrs
                            .push((name.to_owned(), extension.value_bytes().to_vec()));
                    }
                }
            }
        }
    }
    meta.times.last_access = access.unwrap_or(meta.times.last_modification);
    Ok(meta)
}

/// `seconds[.fraction]`, maybe negative.
pub(super) fn parse_time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut tv_sec: i64 = seconds.parse().ok()?;
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let mut tv_nsec: i64 = digits.parse().ok()?;
    if seconds.starts_with('-') && tv_nsec > 0 {
        tv_sec -= 1;
        tv_nsec = 1_000_000_000 - tv_nsec;
    }
    Some(Timespec {
        tv_sec,
        tv_nsec: tv_nsec as _,
    })
}
