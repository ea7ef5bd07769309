//! Mounts of the node: what is mounted where, bind mounts and their flags.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use thiserror::Error;

/// A mount could not be made, unmade or understood.
#[derive(Debug, Error)]
pub enum MountError {
    #[error(
        "mount flag {0:?} is not one of a directory: ro, rw and (no)suid, dev, exec, atime, diratime, relatime"
    )]
    Flag(String),
    #[error("read /proc/thread-self/mountinfo")]
    MountInfo(#[source] io::Error),
    #[error("mount {from} at {to}")]
    Mount {
        from: PathBuf,
        to: PathBuf,
        #[source]
        source: nix::Error,
    },
    #[error("unmount {path}")]
    Unmount {
        path: PathBuf,
        #[source]
        source: nix::Error,
    },
}

/// The flags that a bind mount can have of its own.
///
/// # Errors
/// One belongs to a file system, which a directory has none of.
pub fn flags(words: &[String], read_only: bool) -> Result<MsFlags, MountError> {
    let mut flags = MsFlags::empty();
    for word in words.iter().flat_map(|words| words.split(',')) {
        let (flag, is_set) = match word {
            "" | "rw" | "defaults" | "bind" => continue,
            "ro" => (MsFlags::MS_RDONLY, true),
            "nosuid" => (MsFlags::MS_NOSUID, true),
            "suid" => (MsFlags::MS_NOSUID, false),
            "nodev" => (MsFlags::MS_NODEV, true),
            "dev" => (MsFlags::MS_NODEV, false),
            "noexec" => (MsFlags::MS_NOEXEC, true),
            "exec" => (MsFlags::MS_NOEXEC, false),
            "noatime" => (MsFlags::MS_NOATIME, true),
            "atime" => (MsFlags::MS_NOATIME, false),
            "nodiratime" => (MsFlags::MS_NODIRATIME, true),
            "diratime" => (MsFlags::MS_NODIRATIME, false),
            "relatime" => (MsFlags::MS_RELATIME, true),
            "norelatime" => (MsFlags::MS_RELATIME, false),
            _ => return Err(MountError::Flag(word.to_owned())),
        };
        flags.set(flag, is_set);
    }
    if read_only {
        flags |= MsFlags::MS_RDONLY;
    }
    Ok(flags)
}

/// Binds a file or directory over another one.
///
/// # Errors
/// The kernel refuses; nothing is left mounted.
pub fn bind(from: &Path, to: &Path, flags: MsFlags) -> Result<(), MountError> {
    let none: Option<&Path> = None;
    let failed = |source| MountError::Mount {
        from: from.to_owned(),
        to: to.to_owned(),
        source,
    };
    mount(Some(from), to, none, MsFlags::MS_BIND, none).map_err(failed)?;
    if flags.is_empty() {
        return Ok(());
    }
    // A bind mount takes its flags in a second step.
    let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags;
    mount(none, to, none, again, none).map_err(|source| {
        let _ = umount2(to, MntFlags::MNT_DETACH);
        failed(source)
    })
}

/// Takes away everything mounted at the path itself; nothing there is fine.
///
/// # Errors
/// Something keeps it busy; a retry may help.
pub fn unmount(path: &Path) -> Result<(), MountError> {
    while is_mount_point(path)? {
        umount2(path, MntFlags::empty()).map_err(|source| MountError::Unmount {
            path: path.to_owned(),
            source,
        })?;
    }
    Ok(())
}

/// Whether something is mounted at the path itself.
///
/// # Errors
/// The kernel's list cannot be read.
pub fn is_mount_point(path: &Path) -> Result<bool, MountError> {
    let list = fs::read("/proc/thread-self/mountinfo").map_err(MountError::MountInfo)?;
    Ok(is_listed(&list, path))
}

/// Whether a mountinfo has a mount at the path. Upstream: proc(5), octal escapes.
fn is_listed(mountinfo: &[u8], path: &Path) -> bool {
    mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .any(|point| unescape(point).as_bytes() == path.as_os_str().as_bytes())
}

fn unescape(point: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(point.len());
    let mut rest = point;
    while let [first, tail @ ..] = rest {
        rest = tail;
        let octal = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => bytes.push(*first),
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_is_found_by_its_whole_name() {
        let list = b"36 35 98:0 / /var/lib/a\\040b rw - ext3 /dev/root rw\n37 35 98:0 / /c rw - ext3 /dev/root rw\n";
        for (path, expected) in [
            ("/var/lib/a b", true),
            ("/c", true),
            ("/var/lib", false),
            ("/c/d", false),
        ] {
            assert_eq!(is_listed(list, Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn flags_are_those_of_a_mount_and_others_are_named() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let read: Vec<String> = words(&["nosuid,noexec", "exec", "rw"]);
        assert_eq!(flags(&read, false).unwrap(), MsFlags::MS_NOSUID);
        assert_eq!(
            flags(&read, true).unwrap(),
            MsFlags::MS_NOSUID | MsFlags::MS_RDONLY
        );
        let strange: Vec<String> = words(&["discard"]);
        assert!(
            flags(&strange, false)
                .unwrap_err()
                .to_string()
                .contains("\"discard\"")
        );
    }
}
