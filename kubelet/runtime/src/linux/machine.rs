//! Facts of the machine: capabilities, devices, ids.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::api::Device;
use crate::spec::DeviceNode;
use crate::spec::cdi::HostNode;

/// The bounding set of this process: what containers may be given at most.
pub fn available_capabilities() -> u64 {
    fs::read_to_string("/proc/self/status")
        .unwrap_or_default()
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapBnd:")?.trim(), 16).ok())
        .unwrap_or(0)
}

/// 64 hexadecimal digits, as container ids are written.
pub fn new_id() -> io::Result<String> {
    let mut bytes = [0u8; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn node(host: &Path, container_path: String, access: &str) -> io::Result<DeviceNode> {
    let data = fs::metadata(host)?;
    let kind = if data.file_type().is_char_device() {
        'c'
    } else if data.file_type().is_block_device() {
        'b'
    } else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} is not a device", host.display()),
        ));
    };
    Ok(DeviceNode {
        container_path,
        host_path: host.to_owned(),
        kind,
        major: nix::sys::stat::major(data.rdev()) as u32,
        minor: nix::sys::stat::minor(data.rdev()) as u32,
        mode: data.mode() & 0o7777,
        uid: data.uid(),
        gid: data.gid(),
        access: access.to_owned(),
    })
}

/// The devices asked for; a directory gives every device in it.
pub fn devices(wanted: &[Device]) -> io::Result<Vec<DeviceNode>> {
    let mut found = Vec::new();
    for device in wanted {
        let access = if device.permissions.is_empty() {
            "rwm"
        } else {
            &device.permissions
        };
        if device.host_path.is_dir() {
            collect(
                &device.host_path,
                &device.container_path,
                access,
                &mut found,
            )?;
        } else {
            found.push(node(
                &device.host_path,
                device.container_path.clone(),
                access,
            )?);
        }
    }
    Ok(found)
}

/// What a CDI device is made from. A link is none, as upstream has it.
///
/// # Errors
/// There is nothing, or something else than a node. In words for an event.
pub fn host_node(path: &Path) -> Result<HostNode, String> {
    let data = fs::symlink_metadata(path).map_err(|error| error.to_string())?;
    let found = data.file_type();
    let kind = match () {
        () if found.is_char_device() => 'c',
        () if found.is_block_device() => 'b',
        () if found.is_fifo() => 'p',
        () => return Err("not a device node".to_owned()),
    };
    Ok(HostNode {
        kind,
        major: nix::sys::stat::major(data.rdev()) as u32,
        minor: nix::sys::stat::minor(data.rdev()) as u32,
        mode: data.mode() & 0o7777,
    })
}

/// Every device of the machine, for privileged containers. As containerd, without those a container
/// has of its own.
pub fn all_devices() -> io::Result<Vec<DeviceNode>> {
    let mut found = Vec::new();
    collect(Path::new("/dev"), "/dev", "rwm", &mut found)?;
    Ok(found)
}

fn collect(
    directory: &Path,
    container: &str,
    access: &str,
    found: &mut Vec<DeviceNode>,
) -> io::Result<()> {
    const SKIPPED: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];
    const OWN: [&str; 9] = [
        "console", "ptmx", "tty", "null", "zero", "full", "random", "urandom", "core",
    ];
    for entry in fs::read_dir(directory)?.flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        let path = format!("{}/{name}", container.trim_end_matches('/'));
        if kind.is_dir() {
            if !SKIPPED.contains(&name.as_str()) {
                collect(&entry.path(), &path, access, found)?;
            }
        } else if (kind.is_char_device() || kind.is_block_device()) && !OWN.contains(&name.as_str())
        {
            // A device that vanished meanwhile is no error.
            found.extend(node(&entry.path(), path, access).ok());
        }
    }
    Ok(())
}

/// The number of a signal by its name (`SIGTERM`, `TERM`, `15`, `RTMIN+3`).
pub fn signal_number(name: &str) -> Option<i32> {
    let bare = name.trim().to_ascii_uppercase();
    let bare = bare.strip_prefix("SIG").unwrap_or(&bare);
    if let Ok(number) = bare.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let offset = |rest: &str, sign: char| -> Option<i32> {
        if rest.is_empty() {
            Some(0)
        } else {
            rest.strip_prefix(sign)?.parse().ok()
        }
    };
    // The numbers the C library leaves to programs.
    if let Some(rest) = bare.strip_prefix("RTMIN") {
        return Some(34 + offset(rest, '+')?);
    }
    if let Some(rest) = bare.strip_prefix("RTMAX") {
        return Some(64 - offset(rest, '-')?);
    }
    format!("SIG{bare}")
        .parse::<nix::sys::signal::Signal>()
        .ok()
        .map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_many_names() {
        for (name, expected) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("SIGRTMAX-1", Some(63)),
            ("SIGRTMIN", Some(34)),
            ("SIGFLY", None),
            ("65", None),
        ] {
            assert_eq!(signal_number(name), expected, "{name}");
        }
    }

    #[test]
    fn ids_are_long_and_new() {
        let (one, two) = (new_id().unwrap(), new_id().unwrap());
        assert_eq!(one.len(), 64);
        assert_ne!(one, two);
    }
}
