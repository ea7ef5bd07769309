//! The cluster's own directories in the machine's cgroup hierarchies (v1, hybrid or v2).
//!
//! Never touches a directory it did not make.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const ROOT: &str = "/sys/fs/cgroup";

/// The mount points of every hierarchy: v1's controllers and the unified one.
pub fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let mut found: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (dir, kind) = (fields.next()?, fields.next()?);
            (matches!(kind, "cgroup" | "cgroup2") && dir.starts_with(ROOT))
                .then(|| PathBuf::from(dir))
        })
        .collect();
    found.sort();
    found.dedup();
    Ok(found)
}

/// The unified hierarchy: `/sys/fs/cgroup` itself, or `unified` below it.
pub fn unified() -> Option<PathBuf> {
    [ROOT.to_owned(), format!("{ROOT}/unified")]
        .into_iter()
        .map(PathBuf::from)
        .find(|dir| dir.join("cgroup.controllers").exists())
}

/// What the cluster weighs against one process beside it, in CPU shares; a group weighs as one process otherwise, whatever it holds.
const WEIGHT: u64 = 8 * 1024;

/// Gives the cluster at `path` its part of the processors: what is built and measured beside it takes no more than the rest.
///
/// # Errors
/// A file refuses.
pub fn weigh(path: &str) -> Result<()> {
    // The top: groups above it weigh, too.
    let Some(top) = Path::new(path).iter().next() else {
        return Ok(());
    };
    for hierarchy in hierarchies()? {
        let dir = hierarchy.join(top);
        for (file, value) in [("cpu.shares", WEIGHT), ("cpu.weight", WEIGHT * 100 / 1024)] {
            let file = dir.join(file);
            if file.exists() {
                fs::write(&file, value.to_string())
                    .with_context(|| format!("write {}", file.display()))?;
            }
        }
    }
    Ok(())
}

/// Makes `path` (relative) in every hierarchy, ready to hold pods.
///
/// # Errors
/// A directory cannot be made or prepared.
pub fn create(path: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let mut dir = hierarchy.clone();
        for part in Path::new(path) {
            let parent = dir.clone();
            dir.push(part);
            if parent.join("cgroup.controllers").exists()
                && parent.join("cgroup.type").exists() == (parent != hierarchy)
            {
                let controllers = fs::read_to_string(parent.join("cgroup.controllers"))?;
                for controller in controllers.split_whitespace() {
                    // A controller that cannot be delegated here is simply not offered below.
                    let _ = fs::write(
                        parent.join("cgroup.subtree_control"),
                        format!("+{controller}"),
                    );
                }
            }
            if !dir.exists() {
                fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
            }
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let (Ok(own), Ok(above)) = (
                    fs::read_to_string(dir.join(file)),
                    fs::read_to_string(parent.join(file)),
                ) && own.trim().is_empty()
                    && !above.trim().is_empty()
                {
                    fs::write(dir.join(file), above.trim())
                        .with_context(|| format!("write {}", dir.join(file).display()))?;
                }
            }
        }
    }
    Ok(())
}

/// Kills everything in `path` and below, in every hierarchy, and removes the directories.
///
/// # Errors
/// Something is left after 20 seconds.
pub fn destroy(path: &str) -> Result<()> {
    let own = std::process::id().to_string();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let mut left = Vec::new();
        if let Some(dir) = unified().map(|dir| dir.join(path))
            && dir.exists()
        {
            let _ = fs::write(dir.join("cgroup.kill"), "1");
        }
        for hierarchy in hierarchies()? {
            let top = hierarchy.join(path);
            for dir in below(&top) {
                let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                for pid in pids.lines().filter(|pid| *pid != own) {
                    if let Ok(pid) = pid.parse() {
                        let _ = nix::sys::signal::kill(
                            nix::unistd::Pid::from_raw(pid),
                            nix::sys::signal::Signal::SIGKILL,
                        );
                    }
                }
                // A frozen cgroup (v1) holds even the killed.
                let _ = fs::write(dir.join("freezer.state"), "THAWED");
                if fs::remove_dir(&dir).is_err() && dir.exists() {
                    left.push(dir);
                }
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("cgroups are still in use: {left:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Every process in `path` and below, in any hierarchy.
pub fn processes(path: &str) -> Result<Vec<u32>> {
    let mut pids = Vec::new();
    for hierarchy in hierarchies()? {
        for dir in below(&hierarchy.join(path)) {
            let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

/// Puts processes, and all that they start from now on, into `path` in the hierarchy that counts CPU time; makes it if need be.
///
/// # Errors
/// No hierarchy counts, or a process is gone.
pub fn count_cpu_of(path: &str, pids: &[u32]) -> Result<()> {
    for hierarchy in hierarchies()? {
        let counts = hierarchy.join("cpuacct.usage").exists()
            || hierarchy.join("cgroup.controllers").exists() && unified_counts();
        if counts {
            let dir = hierarchy.join(path);
            fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
            for pid in pids {
                fs::write(dir.join("cgroup.procs"), pid.to_string())
                    .with_context(|| format!("move process {pid} to {}", dir.display()))?;
            }
            return Ok(());
        }
    }
    bail!("no cgroup hierarchy counts CPU time")
}

/// Where v1 has the counter, the unified hierarchy has none.
fn unified_counts() -> bool {
    !Path::new(ROOT).join("cpuacct").exists()
}

/// CPU seconds that `path` and all below it have used, of processes that ended, too.
///
/// # Errors
/// No hierarchy counts them.
pub fn cpu_seconds(path: &str) -> Result<f64> {
    for hierarchy in hierarchies()? {
        let dir = hierarchy.join(path);
        if let Ok(text) = fs::read_to_string(dir.join("cpuacct.usage")) {
            return Ok(text.trim().parse::<f64>()? / 1e9);
        }
        let stat = fs::read_to_string(dir.join("cpu.stat")).unwrap_or_default();
        let usage = stat.lines().find_map(|l| l.strip_prefix("usage_usec "));
        if let Some(usage) = usage {
            return Ok(usage.trim().parse::<f64>()? / 1e6);
        }
    }
    bail!("no cgroup hierarchy counts the CPU of {path}")
}

/// `top` and all directories below it, the deepest first.
pub fn below(top: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if let Ok(entries) = fs::read_dir(top) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.extend(below(&entry.path()));
            }
        }
        found.push(top.to_path_buf());
    }
    found
}
