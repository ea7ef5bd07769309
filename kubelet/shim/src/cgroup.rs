//! The container's cgroup as far as libcontainer leaves it to us: joining it, killing what is in
//! it, counting OOM kills, removing it. One page for v1 and v2.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use shim_protocol::DeviceRule;

use crate::devices;

const CGROUP2_MAGIC: i64 = 0x6367_7270;
const ROOT: &str = "/sys/fs/cgroup";

/// Whether the machine has the unified hierarchy only.
pub fn is_unified() -> bool {
    // SAFETY: `stat` is live and the path ends with NUL.
    unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        libc::statfs(c"/sys/fs/cgroup".as_ptr(), &mut stat) == 0
            && stat.f_type as i64 == CGROUP2_MAGIC
    }
}

/// The cgroup's directory where there is one hierarchy only.
pub fn unified_directory(path: &Path) -> PathBuf {
    Path::new(ROOT).join(path.strip_prefix("/").unwrap_or(path))
}

/// The cgroup's directory in every hierarchy that has it.
fn directories(path: &Path) -> Vec<PathBuf> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    if relative.as_os_str().is_empty() {
        return Vec::new(); // never the root itself
    }
    if is_unified() {
        return vec![Path::new(ROOT).join(relative)];
    }
    // libcontainer counts on this place too.
    let Ok(entries) = fs::read_dir(ROOT) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path().join(relative))
        .filter(|directory| directory.is_dir())
        .collect();
    found.sort();
    found
}

/// Moves the calling process into the cgroup.
pub fn join(path: &Path) -> io::Result<()> {
    for directory in directories(path) {
        let file = directory.join("cgroup.procs");
        fs::write(&file, "0").map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", file.display()))
        })?;
    }
    Ok(())
}

/// As [`join`]; where the container has made cgroups of its own below (v2), which bars processes from
/// its top, the one its first process is in.
pub fn join_running(path: &Path, init: i32) -> io::Result<()> {
    match join(path) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy && is_unified() => {
            let text = fs::read_to_string(format!("/proc/{init}/cgroup"))?;
            let own = text
                .lines()
                .find_map(|line| line.strip_prefix("0::"))
                .unwrap_or_default();
            join(Path::new(own))
        }
        result => result,
    }
}

/// OOM kills in the cgroup so far.
pub fn oom_kills(path: &Path) -> u64 {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let file = if is_unified() {
        Path::new(ROOT).join(relative).join("memory.events")
    } else {
        Path::new(ROOT)
            .join("memory")
            .join(relative)
            .join("memory.oom_control")
    };
    fs::read_to_string(file)
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        .unwrap_or(0)
}

/// Sends a signal to every process in the cgroup and below.
pub fn signal_all(path: &Path, signal: i32) {
    let directories = directories(path);
    if signal == libc::SIGKILL
        && is_unified()
        && directories
            .iter()
            .all(|directory| fs::write(directory.join("cgroup.kill"), "1").is_ok())
    {
        return;
    }
    // v1: one hierarchy holds them all; again until nothing new was forked meanwhile.
    let Some(directory) = directories
        .iter()
        .find(|directory| directory.starts_with(Path::new(ROOT).join("pids")))
        .or_else(|| directories.first())
    else {
        return;
    };
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..16 {
        let mut fresh = false;
        for pid in processes(directory) {
            fresh |= seen.insert(pid);
            let _ = crate::sys::kill(pid, signal);
        }
        if !fresh {
            return;
        }
    }
}

fn processes(directory: &Path) -> Vec<i32> {
    let mut found: Vec<i32> = fs::read_to_string(directory.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    if let Ok(entries) = fs::read_dir(directory) {
        for entry in entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        {
            found.extend(processes(&entry.path()));
        }
    }
    // Zero stands for a process of another PID namespace; kill(0) would hit ourselves.
    found.retain(|pid| *pid > 0);
    found
}

/// Removes the cgroup with everything below it. What is busy is left to the runtime's next look.
pub fn remove(path: &Path) {
    for directory in directories(path) {
        remove_tree(&directory);
    }
}

fn remove_tree(directory: &Path) {
    if let Ok(entries) = fs::read_dir(directory) {
        for entry in entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(directory);
}

/// After libcontainer made the cgroup and before the program runs: what it does not set itself.
pub fn finish_setup(
    path: &Path,
    unified: &BTreeMap<String, String>,
    rules: &[DeviceRule],
) -> Result<(), String> {
    if !is_unified() {
        return Ok(());
    }
    let directory = Path::new(ROOT).join(path.strip_prefix("/").unwrap_or(path));
    for (file, value) in unified {
        if file.contains('/') {
            return Err(format!("unified resource {file:?} is not a file name"));
        }
        fs::write(directory.join(file), value)
            .map_err(|error| format!("set {file} to {value:?}: {error}"))?;
    }
    if !rules.is_empty() {
        devices::attach(&directory, rules).map_err(|error| format!("device rules: {error}"))?;
    }
    Ok(())
}

/// Makes the cgroup, if need be, and moves the calling process there. What it starts later, containers too, is there with it
/// in those hierarchies where it has no cgroup of its own.
pub fn enter_new(path: &Path) -> io::Result<()> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let roots = if is_unified() {
        vec![PathBuf::from(ROOT)]
    } else {
        own_hierarchies(Path::new(ROOT))
    };
    for root in roots {
        fs::create_dir_all(root.join(relative))?;
    }
    join(path)
}

/// The v1 hierarchies that count what the shims use, and those that systemd kills a unit's processes by (its own, and on a
/// hybrid machine the unified one). Not cpuset, which would need its masks first.
fn own_hierarchies(root: &Path) -> Vec<PathBuf> {
    ["cpu", "cpuacct", "memory", "pids", "systemd", "unified"]
        .iter()
        .map(|name| root.join(name))
        // systemd leaves empty directories for what is not mounted.
        .filter(|directory| directory.join("cgroup.procs").exists())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_leaves_every_hierarchy_that_a_service_manager_kills_by() {
        let root = tempfile::tempdir().unwrap();
        for name in ["cpu", "memory", "systemd", "unified", "cpuset", "hugetlb"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        for name in ["cpu", "memory", "systemd", "unified", "cpuset"] {
            fs::write(root.path().join(name).join("cgroup.procs"), "").unwrap();
        }
        let entered = own_hierarchies(root.path());
        let names: Vec<_> = entered
            .iter()
            .map(|directory| directory.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, ["cpu", "memory", "systemd", "unified"]);
    }
}
