//! cgroups as the runtime needs them, v1 and v2 behind one trait: making parents, counting, changing
//! limits of a running container, removing what is left over.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::api::Resources;
use crate::detail::Directories;

const ROOT: &str = "/sys/fs/cgroup";

/// Those that libcontainer makes a container's cgroup in. Source: `libcgroups::v1::controller_type::CONTROLLERS`, 0.7.
const V1_CONTROLLERS: [&str; 12] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "hugetlb",
    "memory",
    "pids",
    "perf_event",
    "blkio",
    "net_prio",
    "net_cls",
    "freezer",
];

/// What is counted of one cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_nanoseconds: u64,
    pub memory_bytes: u64,
    pub memory_working_set_bytes: u64,
    pub memory_rss_bytes: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub processes: u64,
}

pub trait Cgroups: Send + Sync {
    fn is_unified(&self) -> bool;
    /// Directories of the v1 controllers mounted here in which containers have cgroups of their own.
    fn v1_controllers(&self) -> Vec<String>;
    fn hugetlb(&self) -> bool;
    fn swap_accounting(&self) -> bool;
    /// Makes the cgroup in every hierarchy, fit to have children.
    fn ensure(&self, path: &Path) -> io::Result<()>;
    /// Removes the cgroup and those below; what is not there is fine.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// SIGKILLs everything in the cgroup and below.
    fn kill(&self, path: &Path);
    fn usage(&self, path: &Path) -> io::Result<Usage>;
    fn directories(&self, path: &Path) -> Directories;
    fn update(&self, path: &Path, resources: &Resources) -> io::Result<()>;
}

/// What this machine has.
pub fn detect() -> Box<dyn Cgroups> {
    if Path::new(ROOT).join("cgroup.controllers").exists() {
        Box::new(Unified { root: ROOT.into() })
    } else {
        Box::new(Legacy { root: ROOT.into() })
    }
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn number(path: &Path) -> io::Result<u64> {
    fs::read_to_string(path)?
        .trim()
        .parse()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix(' ')?
                .trim()
                .parse()
                .ok()
        })
        .unwrap_or(0)
}

fn put(path: PathBuf, value: &str) -> io::Result<()> {
    fs::write(&path, value).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("write {value:?} to {}: {error}", path.display()),
        )
    })
}

/// Where its processes run and have their memory. `at`: the folder of the controller.
fn put_cpuset(at: &Path, resources: &Resources) -> io::Result<()> {
    for (name, set) in [
        ("cpuset.cpus", &resources.cpuset_cpus),
        ("cpuset.mems", &resources.cpuset_mems),
    ] {
        if !set.is_empty() {
            put(at.join(name), set)?;
        }
    }
    Ok(())
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Ok(());
    };
    let mut result = Ok(());
    for entry in entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
    {
        result = result.and(remove_tree(&entry.path()));
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => result,
    }
}

fn processes(directory: &Path, found: &mut Vec<i32>) {
    found.extend(
        fs::read_to_string(directory.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.parse::<i32>().ok())
            .filter(|pid| *pid > 0),
    );
    if let Ok(entries) = fs::read_dir(directory) {
        for entry in entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        {
            processes(&entry.path(), found);
        }
    }
}

fn kill_tree(directory: &Path) {
    // Again until nothing new was forked meanwhile.
    for _ in 0..16 {
        let mut pids = Vec::new();
        processes(directory, &mut pids);
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }
}

struct Legacy {
    root: PathBuf,
}

impl Legacy {
    fn hierarchies(&self) -> impl Iterator<Item = (String, PathBuf)> {
        super::layout::entries(&self.root)
            .into_iter()
            .map(|name| (name.clone(), self.root.join(name)))
            // Links (`cpu,cpuacct`) would come twice; `unified` and `systemd` are not ours.
            .filter(|(name, path)| {
                name != "unified"
                    && name != "systemd"
                    && fs::symlink_metadata(path).is_ok_and(|data| data.is_dir())
            })
            .filter(|(_, path)| path.join("cgroup.procs").exists())
            .collect::<Vec<_>>()
            .into_iter()
    }
}

impl Cgroups for Legacy {
    fn is_unified(&self) -> bool {
        false
    }

    fn v1_controllers(&self) -> Vec<String> {
        super::layout::entries(&self.root)
            .into_iter()
            .filter(|name| V1_CONTROLLERS.contains(&name.as_str()))
            .filter(|name| self.root.join(name).join("cgroup.procs").exists())
            .collect()
    }

    fn hugetlb(&self) -> bool {
        // systemd leaves an empty directory where the controller is not mounted.
        self.root.join("hugetlb/cgroup.procs").exists()
    }

    fn swap_accounting(&self) -> bool {
        self.root
            .join("memory/memory.memsw.limit_in_bytes")
            .exists()
    }

    fn ensure(&self, path: &Path) -> io::Result<()> {
        for (name, root) in self.hierarchies() {
            let mut current = root;
            for part in relative(path).components() {
                let parent = current.clone();
                current.push(part);
                match fs::create_dir(&current) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(error);
                    }
                    _ => {}
                }
                if name == "cpuset" {
                    // A cpuset takes no process before it has both masks.
                    for file in ["cpuset.cpus", "cpuset.mems"] {
                        if fs::read_to_string(current.join(file))?.trim().is_empty() {
                            put(
                                current.join(file),
                                fs::read_to_string(parent.join(file))?.trim(),
                            )?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if relative(path).as_os_str().is_empty() {
            return Ok(());
        }
        let mut result = Ok(());
        for (_, root) in self.hierarchies() {
            result = result.and(remove_tree(&root.join(relative(path))));
        }
        result
    }

    fn kill(&self, path: &Path) {
        if !relative(path).as_os_str().is_empty() {
            kill_tree(&self.root.join("pids").join(relative(path)));
            kill_tree(&self.root.join("memory").join(relative(path)));
        }
    }

    fn usage(&self, path: &Path) -> io::Result<Usage> {
        let at = |controller: &str| self.root.join(controller).join(relative(path));
        let stat = fs::read_to_string(at("memory").join("memory.stat"))?;
        let memory_bytes = number(&at("memory").join("memory.usage_in_bytes"))?;
        Ok(Usage {
            cpu_nanoseconds: number(&at("cpuacct").join("cpuacct.usage"))?,
            memory_bytes,
            memory_working_set_bytes: memory_bytes
                .saturating_sub(field(&stat, "total_inactive_file")),
            memory_rss_bytes: field(&stat, "total_rss"),
            page_faults: field(&stat, "total_pgfault"),
            major_page_faults: field(&stat, "total_pgmajfault"),
            processes: number(&at("pids").join("pids.current")).unwrap_or(0),
        })
    }

    fn directories(&self, path: &Path) -> Directories {
        let at = |controller: &str| self.root.join(controller).join(relative(path));
        Directories {
            cpu: at("cpu"),
            cpuacct: at("cpuacct"),
            memory: at("memory"),
            blkio: at("blkio"),
            pids: at("pids"),
            is_v2: false,
        }
    }

    fn update(&self, path: &Path, resources: &Resources) -> io::Result<()> {
        let file = |controller: &str, name: &str| {
            self.root.join(controller).join(relative(path)).join(name)
        };
        put_cpuset(&self.root.join("cpuset").join(relative(path)), resources)?;
        if let Some(shares) = resources.cpu_shares.filter(|shares| *shares > 0) {
            put(file("cpu", "cpu.shares"), &shares.to_string())?;
        }
        if let Some(period) = resources.cpu_period_us.filter(|period| *period > 0) {
            put(file("cpu", "cpu.cfs_period_us"), &period.to_string())?;
        }
        if let Some(quota) = resources.cpu_quota_us.filter(|quota| *quota != 0) {
            put(file("cpu", "cpu.cfs_quota_us"), &quota.to_string())?;
        }
        if let Some(limit) = resources.memory_limit_bytes.filter(|limit| *limit != 0) {
            let memory = file("memory", "memory.limit_in_bytes");
            let swap = file("memory", "memory.memsw.limit_in_bytes");
            let swap_limit = resources.memory_swap_limit_bytes.unwrap_or(limit);
            if self.swap_accounting() {
                // The sum must never be below the memory alone: grow it first, or shrink it last.
                let grows =
                    limit < 0 || number(&memory).is_ok_and(|current| limit as u64 > current);
                let order = if grows {
                    [(&swap, swap_limit), (&memory, limit)]
                } else {
                    [(&memory, limit), (&swap, swap_limit)]
                };
                for (path, value) in order {
                    put(path.clone(), &value.to_string())?;
                }
            } else {
                put(memory, &limit.to_string())?;
            }
        }
        if let Some(limit) = resources.pids_limit.filter(|limit| *limit != 0) {
            put(
                file("pids", "pids.max"),
                &if limit < 0 {
                    "max".to_owned()
                } else {
                    limit.to_string()
                },
            )?;
        }
        Ok(())
    }
}

struct Unified {
    root: PathBuf,
}

impl Unified {
    fn at(&self, path: &Path) -> PathBuf {
        self.root.join(relative(path))
    }
}

impl Cgroups for Unified {
    fn is_unified(&self) -> bool {
        true
    }

    fn v1_controllers(&self) -> Vec<String> {
        Vec::new()
    }

    fn hugetlb(&self) -> bool {
        fs::read_to_string(self.root.join("cgroup.controllers"))
            .is_ok_and(|text| text.split_whitespace().any(|name| name == "hugetlb"))
    }

    fn swap_accounting(&self) -> bool {
        // The root has no memory.swap.max; any child has, if the kernel does.
        Path::new("/proc/swaps").exists()
    }

    fn ensure(&self, path: &Path) -> io::Result<()> {
        let mut current = self.root.clone();
        for part in relative(path).components() {
            let available = fs::read_to_string(current.join("cgroup.controllers"))?;
            for controller in available.split_whitespace() {
                // One that cannot be enabled here (threaded, busy) is not ours to insist on.
                let _ = fs::write(
                    current.join("cgroup.subtree_control"),
                    format!("+{controller}"),
                );
            }
            current.push(part);
            match fs::create_dir(&current) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if relative(path).as_os_str().is_empty() {
            Ok(())
        } else {
            remove_tree(&self.at(path))
        }
    }

    fn kill(&self, path: &Path) {
        if !relative(path).as_os_str().is_empty()
            && fs::write(self.at(path).join("cgroup.kill"), "1").is_err()
        {
            kill_tree(&self.at(path));
        }
    }

    fn usage(&self, path: &Path) -> io::Result<Usage> {
        let at = self.at(path);
        let stat = fs::read_to_string(at.join("memory.stat"))?;
        let cpu = fs::read_to_string(at.join("cpu.stat"))?;
        let memory_bytes = number(&at.join("memory.current"))?;
        Ok(Usage {
            cpu_nanoseconds: field(&cpu, "usage_usec") * 1000,
            memory_bytes,
            memory_working_set_bytes: memory_bytes.saturating_sub(field(&stat, "inactive_file")),
            memory_rss_bytes: field(&stat, "anon"),
            page_faults: field(&stat, "pgfault"),
            major_page_faults: field(&stat, "pgmajfault"),
            processes: number(&at.join("pids.current")).unwrap_or(0),
        })
    }

    fn directories(&self, path: &Path) -> Directories {
        let at = self.at(path);
        Directories {
            cpu: at.clone(),
            cpuacct: at.clone(),
            memory: at.clone(),
            blkio: at.clone(),
            pids: at,
            is_v2: true,
        }
    }

    fn update(&self, path: &Path, resources: &Resources) -> io::Result<()> {
        let at = self.at(path);
        put_cpuset(&at, resources)?;
        if let Some(shares) = resources.cpu_shares.filter(|shares| *shares > 0) {
            put(at.join("cpu.weight"), &weight(shares).to_string())?;
        }
        let period = resources.cpu_period_us.filter(|period| *period > 0);
        if let Some(quota) = resources.cpu_quota_us.filter(|quota| *quota != 0) {
            let quota = if quota < 0 {
                "max".to_owned()
            } else {
                quota.to_string()
            };
            put(
                at.join("cpu.max"),
                &format!("{quota} {}", period.unwrap_or(100_000)),
            )?;
        }
        if let Some(limit) = resources.memory_limit_bytes.filter(|limit| *limit != 0) {
            if let Some(swap) = resources.memory_swap_limit_bytes {
                let value = if swap < 0 {
                    "max".to_owned()
                } else {
                    (swap - limit.max(0)).max(0).to_string()
                };
                if at.join("memory.swap.max").exists() {
                    put(at.join("memory.swap.max"), &value)?;
                }
            }
            put(
                at.join("memory.max"),
                &if limit < 0 {
                    "max".to_owned()
                } else {
                    limit.to_string()
                },
            )?;
        }
        if let Some(limit) = resources.pids_limit.filter(|limit| *limit != 0) {
            put(
                at.join("pids.max"),
                &if limit < 0 {
                    "max".to_owned()
                } else {
                    limit.to_string()
                },
            )?;
        }
        for (name, value) in resources
            .unified
            .iter()
            .filter(|(name, _)| !name.contains('/'))
        {
            put(at.join(name), value)?;
        }
        Ok(())
    }
}

/// v1's shares of a container as v2's weight, by the curve through 2 -> 1, 1024 -> 100 and 262144 -> 10000 by which it was
/// created: a resize must move a weight in the direction of its shares. Source: opencontainers/cgroups 20, in runc since
/// 1.3.2 and in libcontainer.
fn weight(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_as_at_creation() {
        for (shares, expected) in [
            (0, 1),
            (2, 1),
            (102, 17),
            (512, 59),
            (1024, 100),
            (2048, 174),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
        let weights: Vec<u64> = (2..300_000).map(weight).collect();
        assert!(weights.is_sorted());
    }

    #[test]
    fn a_running_container_is_moved_to_other_cpus() {
        let files = tempfile::tempdir().unwrap();
        let resources = Resources {
            cpuset_cpus: "0,2-3".to_owned(),
            cpuset_mems: "1".to_owned(),
            ..Resources::default()
        };
        let check = |cgroups: &dyn Cgroups, dir: &str| {
            let dir = files.path().join(dir);
            fs::create_dir_all(&dir).unwrap();
            cgroups.update(Path::new("/pod/c"), &resources).unwrap();
            // What is not said stays.
            let nothing = Resources::default();
            cgroups.update(Path::new("/pod/c"), &nothing).unwrap();
            for (name, expect) in [("cpuset.cpus", "0,2-3"), ("cpuset.mems", "1")] {
                assert_eq!(fs::read_to_string(dir.join(name)).unwrap(), expect);
            }
            assert_eq!(fs::read_dir(dir).unwrap().count(), 2);
        };
        let root = files.path().to_path_buf();
        check(
            &Unified {
                root: root.join("v2"),
            },
            "v2/pod/c",
        );
        check(
            &Legacy {
                root: root.join("v1"),
            },
            "v1/cpuset/pod/c",
        );
    }

    #[test]
    fn fields_are_whole_words() {
        let text = "total_rss_huge 1\ntotal_rss 2\n";
        assert_eq!(field(text, "total_rss"), 2);
        assert_eq!(field(text, "nothing"), 0);
    }
}
