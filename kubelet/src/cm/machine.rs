//! The machine: processors, memory, ids, file systems.
//!
//! Owns: reading /proc and /sys. Decides nothing. Upstream: cadvisor's machine info, v1.36.

use std::path::Path;

use serde::Serialize;

/// What does not change while the kubelet runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MachineInfo {
    pub cpus: u64,
    pub memory_capacity_bytes: u64,
    pub swap_capacity_bytes: u64,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel_version: String,
    pub os_image: String,
    pub architecture: String,
    /// (`2Mi`, pages of that size reserved)
    pub hugepages: Vec<(String, u64)>,
    /// The kubelet is root of a user namespace only.
    pub in_user_namespace: bool,
}

/// Whether the ids of this process are not all of the machine's. Upstream: `userns.RunningInUserNS` of moby/sys.
fn in_user_namespace(uid_map: &str) -> bool {
    let mut lines = uid_map.lines();
    let first: Vec<&str> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    // No file, or an empty one: there are no user namespaces, or nothing is mapped yet.
    if first.is_empty() {
        return !uid_map.is_empty();
    }
    first != ["0", "0", "4294967295"]
}

fn first_line(path: &str) -> String {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .lines()
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// A value in kB of /proc/meminfo, as bytes.
pub fn meminfo(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.split(':').next() == Some(key))?;
    let kb: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kb * 1024)
}

impl MachineInfo {
    pub fn read() -> Self {
        let machine_id = [
            first_line("/etc/machine-id"),
            first_line("/var/lib/dbus/machine-id"),
        ]
        .into_iter()
        .find(|id| !id.is_empty())
        .unwrap_or_default();
        let uuid = first_line("/sys/class/dmi/id/product_uuid");
        let kernel = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned());
        Self {
            cpus: component_base::processors::online(),
            memory_capacity_bytes: meminfo("MemTotal").unwrap_or(0),
            swap_capacity_bytes: meminfo("SwapTotal").unwrap_or(0),
            system_uuid: if uuid.is_empty() {
                machine_id.clone()
            } else {
                uuid
            },
            machine_id,
            boot_id: first_line("/proc/sys/kernel/random/boot_id"),
            kernel_version: kernel.unwrap_or_default(),
            os_image: os_image(),
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            }
            .to_owned(),
            hugepages: hugepages(),
            in_user_namespace: in_user_namespace(
                &std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default(),
            ),
        }
    }
}

fn os_image() -> String {
    let text = std::fs::read_to_string("/etc/os-release")
        .or_else(|_| std::fs::read_to_string("/usr/lib/os-release"))
        .unwrap_or_default();
    text.lines()
        .find_map(|l| l.strip_prefix("PRETTY_NAME="))
        .map_or_else(|| "Linux".to_owned(), |v| v.trim_matches('"').to_owned())
}

fn hugepages() -> Vec<(String, u64)> {
    let Ok(dir) = std::fs::read_dir("/sys/kernel/mm/hugepages") else {
        return vec![];
    };
    let mut out: Vec<(String, u64)> = dir
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let kb: u64 = path
                .file_name()?
                .to_str()?
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()?;
            let count = std::fs::read_to_string(path.join("nr_hugepages"))
                .ok()?
                .trim()
                .parse()
                .ok()?;
            let size = if kb.is_multiple_of(1 << 20) {
                format!("{}Gi", kb >> 20)
            } else if kb.is_multiple_of(1024) {
                format!("{}Mi", kb >> 10)
            } else {
                format!("{kb}Ki")
            };
            Some((size, count))
        })
        .collect();
    out.sort();
    out
}

/// The size of a page of memory.
pub fn page_bytes() -> i64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .unwrap_or(4096)
}

/// Is any swap on?
pub fn swap_is_on() -> bool {
    std::fs::read_to_string("/proc/swaps")
        .is_ok_and(|text| text.lines().skip(1).any(|l| !l.trim().is_empty()))
}

/// Space and inodes of a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsStats {
    pub capacity_bytes: u64,
    pub available_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// The device that holds a path, such as `/dev/vda1`; its number where the kernel names none, as for tmpfs.
pub fn device_of(path: &Path) -> String {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(data) = std::fs::metadata(path) else {
        return String::new();
    };
    let (major, minor) = (
        nix::sys::stat::major(data.dev()),
        nix::sys::stat::minor(data.dev()),
    );
    runtime::detail::device_name(&format!("{major}:{minor}"))
}

/// # Errors
/// When the path does not exist.
pub fn fs_stats(path: &Path) -> nix::Result<FsStats> {
    let s = nix::sys::statvfs::statvfs(path)?;
    let block = s.fragment_size();
    Ok(FsStats {
        capacity_bytes: s.blocks() * block,
        available_bytes: s.blocks_available() * block,
        inodes: s.files(),
        inodes_free: s.files_available(),
    })
}

#[cfg(test)]
mod tests {
    use super::in_user_namespace;

    #[test]
    fn user_namespaces_by_their_map() {
        for (map, expect) in [
            ("         0          0 4294967295\n", false),
            ("", false),
            ("         0     100000      65536\n", true),
            ("0 0 65536\n65536 65536 1\n", true),
        ] {
            assert_eq!(in_user_namespace(map), expect, "{map:?}");
        }
    }
}
