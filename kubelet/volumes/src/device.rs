//! File systems on devices and servers, by the system's own programs: blkid, fsck, mkfs and mount.
//!
//! Upstream: `SafeFormatAndMount` of k8s.io/mount-utils, v0.37.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::mount::{MsFlags, mount};

/// Where neither the volume nor the device says otherwise.
pub(crate) const DEFAULT_FS: &str = "ext4";

/// Two pods that come at once do not both make the file system.
static FORMATS: Mutex<()> = Mutex::new(());

/// What a program of the system did not do.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("executable {program:?} not found on this node: {source}")]
    Missing {
        program: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(
        "mount failed: {status}\nMounting command: mount\nMounting arguments: {arguments}\nOutput: {output}"
    )]
    Mount {
        status: String,
        arguments: String,
        output: String,
    },
    #[error("format of disk {device:?} failed: type:({fs_type:?}) {status} output:({output})")]
    Format {
        device: String,
        fs_type: String,
        status: String,
        output: String,
    },
    #[error("failed to find out what is on {device:?}: blkid: {status}: {output}")]
    Probe {
        device: String,
        status: String,
        output: String,
    },
    #[error("a file system of type {fs_type:?} on device {device} cannot be made larger")]
    CannotGrow { device: String, fs_type: String },
    #[error("resize of device {device} failed: {status}. {program} output: {output}")]
    Grow {
        program: &'static str,
        device: String,
        status: String,
        output: String,
    },
    #[error("'fsck' found errors on device {device} but could not correct them: {output}")]
    Uncorrected { device: String, output: String },
    #[error("{field}: {value:?} is not the name of a file system")]
    FsType { field: &'static str, value: String },
    #[error("{field}: {value:?} must not begin with a dash")]
    Dash { field: &'static str, value: String },
}

/// What stands on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    Nothing,
    FileSystem(String),
    /// Partitions, or part of something larger.
    Other,
}

struct Done {
    code: Option<i32>,
    status: String,
    output: String,
}

fn run(program: &'static str, arguments: &[OsString]) -> Result<Done, ToolError> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    // Its words are read below.
    command.env("LC_ALL", "C");
    let out = command
        .output()
        .map_err(|source| ToolError::Missing { program, source })?;
    let said = [out.stdout.as_slice(), out.stderr.as_slice()].concat();
    Ok(Done {
        code: out.status.code(),
        status: out.status.to_string(),
        output: String::from_utf8_lossy(&said).trim().to_owned(),
    })
}

/// Mounts `source` at `dir`. `fs_type` and `options` come from objects of the API.
///
/// # Errors
/// `mount` is not there, or says no.
pub(crate) fn mount_by_program(
    source: &OsStr,
    dir: &Path,
    fs_type: &str,
    options: &[String],
) -> Result<(), ToolError> {
    check_fs_type(fs_type)?;
    let arguments = mount_arguments(source, dir, fs_type, options);
    let done = run("mount", &arguments)?;
    if done.code == Some(0) {
        return Ok(());
    }
    let words: Vec<_> = arguments.iter().map(|a| a.to_string_lossy()).collect();
    Err(ToolError::Mount {
        status: done.status,
        arguments: words.join(" "),
        output: done.output,
    })
}

fn mount_arguments(source: &OsStr, dir: &Path, fs_type: &str, options: &[String]) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["-t".into(), fs_type.into()];
    if !options.is_empty() {
        arguments.extend(["-o".into(), options.join(",").into()]);
    }
    // What follows is no option, whatever it looks like.
    arguments.extend(["--".into(), source.into(), dir.into()]);
    arguments
}

fn check_fs_type(fs_type: &str) -> Result<(), ToolError> {
    let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if fs_type.starts_with(|c: char| c.is_ascii_alphanumeric()) && fs_type.chars().all(good) {
        return Ok(());
    }
    Err(ToolError::FsType {
        field: "fsType",
        value: fs_type.to_owned(),
    })
}

/// Mounts a device that is a file system, after making one if nothing is on it. Blocks.
///
/// # Errors
/// There is something else on it, or a program of the system says no.
pub(crate) fn format_and_mount(
    device: &Path,
    dir: &Path,
    fs_type: Option<&str>,
    options: &[String],
    read_only: bool,
) -> Result<(), ToolError> {
    if let Some(fs_type) = fs_type {
        check_fs_type(fs_type)?;
    }
    let wanted = |content: &Content| match (content, fs_type) {
        (_, Some(fs_type)) => fs_type.to_owned(),
        (Content::FileSystem(found), None) => found.clone(),
        (_, None) => DEFAULT_FS.to_owned(),
    };
    let content = {
        // A slow check or mount holds up no other device.
        let _one = FORMATS.lock().unwrap_or_else(PoisonError::into_inner);
        let content = probe(device)?;
        if content == Content::Nothing && !read_only {
            make_file_system(device, &wanted(&content))?;
        }
        content
    };
    if matches!(content, Content::FileSystem(_)) && !read_only {
        check_file_system(device)?;
    }
    // Where something else is there, the mount says what is wrong.
    let wanted = wanted(&content);
    let mut options = options.to_vec();
    options.push("defaults".to_owned());
    mount_by_program(device.as_os_str(), dir, &wanted, &options)
}

/// Makes a mounted file system as large as its device. One that is as large already stays as it is. Blocks.
/// Upstream: `ResizeFs` of k8s.io/mount-utils.
///
/// # Errors
/// It is of a kind that cannot grow while it is mounted, or a program of the system says no.
pub(crate) fn grow(device: &Path, dir: &Path) -> Result<(), ToolError> {
    // Pods that share it ask one after the other.
    let _one = FORMATS.lock().unwrap_or_else(PoisonError::into_inner);
    let (program, arguments): (_, Vec<OsString>) = match probe(device)? {
        Content::FileSystem(kind) => match kind.as_str() {
            "ext2" | "ext3" | "ext4" => ("resize2fs", vec![device.into()]),
            "xfs" => ("xfs_growfs", vec!["-d".into(), dir.into()]),
            "btrfs" => (
                "btrfs",
                vec![
                    "filesystem".into(),
                    "resize".into(),
                    "max".into(),
                    dir.into(),
                ],
            ),
            _ => {
                return Err(ToolError::CannotGrow {
                    device: device.display().to_string(),
                    fs_type: kind,
                });
            }
        },
        // Whoever makes a file system there later takes all of it.
        Content::Nothing | Content::Other => return Ok(()),
    };
    let done = run(program, &arguments)?;
    match done.code {
        Some(0) => Ok(()),
        _ => Err(ToolError::Grow {
            program,
            device: device.display().to_string(),
            status: done.status,
            output: done.output,
        }),
    }
}

fn probe(device: &Path) -> Result<Content, ToolError> {
    let mut arguments: Vec<OsString> = ["-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export"]
        .iter()
        .map(OsString::from)
        .collect();
    arguments.push(device.into());
    let done = run("blkid", &arguments)?;
    match done.code {
        Some(0) => Ok(content(&done.output)),
        // Nothing that it knows.
        Some(2) => Ok(Content::Nothing),
        _ => Err(ToolError::Probe {
            device: device.display().to_string(),
            status: done.status,
            output: done.output,
        }),
    }
}

/// From what blkid exports: `TYPE=ext4`, `PTTYPE=dos`.
fn content(exported: &str) -> Content {
    let value = |key: &str| {
        let mut pairs = exported.lines().filter_map(|line| line.split_once('='));
        pairs.find_map(|(name, value)| (name == key && !value.is_empty()).then_some(value))
    };
    match (value("PTTYPE"), value("TYPE")) {
        (Some(_), _) => Content::Other,
        (None, Some(fs_type)) => Content::FileSystem(fs_type.to_owned()),
        (None, None) => Content::Nothing,
    }
}

fn make_file_system(device: &Path, fs_type: &str) -> Result<(), ToolError> {
    let flags: &[&str] = match fs_type {
        // No space kept for root.
        "ext3" | "ext4" => &["-F", "-m0"],
        "xfs" => &["-f"],
        _ => &[],
    };
    let mut arguments: Vec<OsString> = vec!["-t".into(), fs_type.into()];
    arguments.extend(flags.iter().map(OsString::from));
    arguments.push(device.into());
    let done = run("mkfs", &arguments)?;
    match done.code {
        Some(0) => Ok(()),
        _ => Err(ToolError::Format {
            device: device.display().to_string(),
            fs_type: fs_type.to_owned(),
            status: done.status,
            output: done.output,
        }),
    }
}

/// `fsck -a`: what it cannot mend must not be mounted.
fn check_file_system(device: &Path) -> Result<(), ToolError> {
    let done = match run("fsck", &["-a".into(), device.into()]) {
        Ok(done) => done,
        Err(error) => {
            // A node may be without it.
            tracing::warn!(device = %device.display(), %error, "the file system is mounted unchecked");
            return Ok(());
        }
    };
    match done.code {
        Some(0) => Ok(()),
        Some(1) => {
            tracing::info!(device = %device.display(), "device has errors which were corrected by fsck");
            Ok(())
        }
        Some(4) => Err(ToolError::Uncorrected {
            device: device.display().to_string(),
            output: done.output,
        }),
        _ => {
            tracing::info!(device = %device.display(), output = done.output, "fsck failed");
            Ok(())
        }
    }
}

/// Makes a mount read-only for those who see it there. Where that fails it is taken away: writable is not what was asked for.
pub(crate) fn make_read_only(dir: &Path) -> io::Result<()> {
    let none = None::<&str>;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    if let Err(error) = mount(none, dir, none, flags, none) {
        nix::mount::umount(dir)?;
        return Err(error.into());
    }
    Ok(())
}

/// Refuses what a program could take for one of its options.
pub(crate) fn no_dash(field: &'static str, value: &str) -> Result<(), ToolError> {
    if value.starts_with('-') {
        return Err(ToolError::Dash {
            field,
            value: value.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_a_device() {
        for (exported, expected) in [
            ("", Content::Nothing),
            ("DEVNAME=/dev/x\n", Content::Nothing),
            (
                "DEVNAME=/dev/x\nTYPE=ext4\n",
                Content::FileSystem("ext4".to_owned()),
            ),
            ("TYPE=\n", Content::Nothing),
            ("PTTYPE=dos\n", Content::Other),
            ("TYPE=iso9660\nPTTYPE=PMBR\n", Content::Other),
        ] {
            assert_eq!(content(exported), expected, "{exported:?}");
        }
    }

    #[test]
    fn what_mount_is_told() {
        let of = |options: &[&str]| {
            let options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
            let arguments = mount_arguments(OsStr::new("s:/d"), Path::new("/m"), "nfs", &options);
            let words: Vec<_> = arguments
                .iter()
                .map(|a| a.to_str().unwrap().to_owned())
                .collect();
            words.join(" ")
        };
        assert_eq!(of(&[]), "-t nfs -- s:/d /m");
        assert_eq!(of(&["ro", "hard"]), "-t nfs -o ro,hard -- s:/d /m");
    }

    #[test]
    fn names_of_file_systems() {
        for (name, good) in [
            ("ext4", true),
            ("fuse.sshfs", true),
            ("", false),
            ("-o", false),
            ("a b", false),
            ("../x", false),
        ] {
            assert_eq!(check_fs_type(name).is_ok(), good, "{name:?}");
        }
    }
}
