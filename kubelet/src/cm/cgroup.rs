//! cgroup directories, version 1 and 2, driver cgroupfs.
//!
//! Owns: creating, setting and removing directories below the hierarchies that are mounted. Never mounts or unmounts
//! one, and never touches a directory above its root. Upstream: `pkg/kubelet/cm/cgroup_manager_linux.go`, v1.36.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::resources::{ResourceConfig, cpu_shares_to_weight};

/// Why a cgroup could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("no cgroup hierarchy is mounted")]
    NotMounted,
    #[error("the {0} cgroup controller is not available")]
    NoController(&'static str),
    #[error("{action} {path}: {source}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_path_buf();
    move |source| CgroupError::Io {
        action,
        path,
        source,
    }
}

/// The hierarchies of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hierarchies {
    /// Controller (or `name=systemd`) -> mount point.
    V1(BTreeMap<String, PathBuf>),
    V2(PathBuf),
}

/// The v1 controllers that a pod's directory is made in.
const V1_CONTROLLERS: &[&str] = &[
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "pids",
    "hugetlb",
    "devices",
    "freezer",
    "blkio",
    "net_cls",
    "net_prio",
    "perf_event",
    "name=systemd",
];

/// Reads `/proc/self/mountinfo`. Version 2 only where no v1 hierarchy carries cpu or memory.
pub fn parse_mountinfo(text: &str) -> Option<Hierarchies> {
    let mut v1 = BTreeMap::new();
    let mut v2 = None;
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let Some(mount_point) = left.split(' ').nth(4) else {
            continue;
        };
        let mut right = right.split(' ');
        let (kind, options) = (
            right.next().unwrap_or_default(),
            right.nth(1).unwrap_or_default(),
        );
        match kind {
            "cgroup" => {
                for option in options.split(',').filter(|o| V1_CONTROLLERS.contains(o)) {
                    v1.entry(option.to_owned())
                        .or_insert_with(|| PathBuf::from(mount_point));
                }
            }
            "cgroup2" => v2 = v2.or(Some(PathBuf::from(mount_point))),
            _ => {}
        }
    }
    if v1.contains_key("memory") || v1.contains_key("cpu") {
        return Some(Hierarchies::V1(v1));
    }
    v2.map(Hierarchies::V2)
}

/// Counts how long an operation takes, until it is dropped.
fn timer(operation: &str) -> prometheus::HistogramTimer {
    crate::metrics::CGROUP_MANAGER_DURATION
        .with_label_values(&[operation])
        .start_timer()
}

/// Makes and removes directories below one root, e.g. `/` or `/kubelet`.
#[derive(Clone, Debug)]
pub struct CgroupManager {
    hierarchies: Hierarchies,
}

impl CgroupManager {
    /// # Errors
    /// When no hierarchy is mounted; no retry helps.
    pub fn detect() -> Result<Self, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        let text = std::fs::read_to_string(path).map_err(io_error("read", path))?;
        let hierarchies = parse_mountinfo(&text).ok_or(CgroupError::NotMounted)?;
        Ok(Self { hierarchies })
    }

    /// On given hierarchies; for tests in a directory.
    pub fn with_hierarchies(hierarchies: Hierarchies) -> Self {
        Self { hierarchies }
    }

    pub fn is_v2(&self) -> bool {
        matches!(self.hierarchies, Hierarchies::V2(_))
    }

    /// # Errors
    /// Names the controller a kubelet cannot do without.
    pub fn require_controllers(&self) -> Result<(), CgroupError> {
        match &self.hierarchies {
            Hierarchies::V1(map) => {
                for name in ["cpu", "cpuset", "memory"] {
                    if !map.contains_key(name) {
                        return Err(CgroupError::NoController(name));
                    }
                }
            }
            Hierarchies::V2(root) => {
                let path = root.join("cgroup.controllers");
                let text = std::fs::read_to_string(&path).map_err(io_error("read", &path))?;
                for name in ["cpu", "cpuset", "memory"] {
                    if !text.split_whitespace().any(|c| c == name) {
                        return Err(CgroupError::NoController(name));
                    }
                }
            }
        }
        Ok(())
    }

    /// The directory of `name` (an absolute cgroup path) in every hierarchy; the controller it belongs to.
    fn directories(&self, name: &str) -> Vec<(String, PathBuf)> {
        let relative = name.trim_start_matches('/');
        match &self.hierarchies {
            Hierarchies::V1(map) => map
                .iter()
                .map(|(c, mount)| (c.clone(), mount.join(relative)))
                .collect(),
            Hierarchies::V2(root) => vec![(String::new(), root.join(relative))],
        }
    }

    /// The directory that holds memory accounting for `name`.
    pub fn memory_path(&self, name: &str) -> PathBuf {
        self.controller_path(&["memory"], name)
    }

    /// The memory limit of `name`, if it has one, and what is used of it, in bytes. `None`: it cannot be read.
    pub fn memory(&self, name: &str) -> (Option<i64>, Option<u64>) {
        /// v1 writes "no limit" as the greatest multiple of a page; no machine has as much.
        const UNLIMITED: i64 = 1 << 60;
        let dir = self.memory_path(name);
        let (limit, usage) = if self.is_v2() {
            ("memory.max", "memory.current")
        } else {
            ("memory.limit_in_bytes", "memory.usage_in_bytes")
        };
        let read = |file: &str| std::fs::read_to_string(dir.join(file)).ok();
        // "max" is no number.
        let limit = read(limit).and_then(|t| t.trim().parse::<i64>().ok());
        let usage = read(usage).and_then(|t| t.trim().parse().ok());
        (limit.filter(|l| *l < UNLIMITED), usage)
    }

    /// Of the memory that `name` uses what the kernel cannot simply take back, in bytes. `None`: it cannot be read.
    ///
    /// Upstream: cAdvisor's working set.
    pub fn working_set(&self, name: &str) -> Option<u64> {
        let stat = std::fs::read_to_string(self.memory_path(name).join("memory.stat")).ok()?;
        let inactive = if self.is_v2() {
            "inactive_file"
        } else {
            "total_inactive_file"
        };
        let (_, usage) = self.memory(name);
        let inactive = runtime::detail::value(&stat, inactive).unwrap_or(0);
        Some(usage?.saturating_sub(inactive))
    }

    /// The directory that counts CPU time for `name`.
    pub fn cpu_path(&self, name: &str) -> PathBuf {
        self.controller_path(&["cpuacct", "cpu"], name)
    }

    /// The directory of `name` where the first mounted one of `controllers` is; an empty path where none is.
    pub fn controller_path(&self, controllers: &[&str], name: &str) -> PathBuf {
        let relative = name.trim_start_matches('/');
        match &self.hierarchies {
            Hierarchies::V1(map) => controllers
                .iter()
                .find_map(|controller| map.get(*controller))
                .map_or_else(PathBuf::new, |mount| mount.join(relative)),
            Hierarchies::V2(root) => root.join(relative),
        }
    }

    pub fn exists(&self, name: &str) -> bool {
        self.directories(name).iter().all(|(_, dir)| dir.is_dir())
    }

    /// Makes the directory in every hierarchy, with its parents, and sets it.
    ///
    /// # Errors
    /// The first directory or file that refuses.
    pub fn ensure(&self, name: &str, config: &ResourceConfig) -> Result<(), CgroupError> {
        let _timer = timer("create");
        for (controller, dir) in self.directories(name) {
            self.make_dir(&controller, &dir)?;
        }
        self.update(name, config)
    }

    fn mount_of(&self, controller: &str) -> PathBuf {
        match &self.hierarchies {
            Hierarchies::V1(map) => map.get(controller).cloned().unwrap_or_default(),
            Hierarchies::V2(root) => root.clone(),
        }
    }

    fn make_dir(&self, controller: &str, dir: &Path) -> Result<(), CgroupError> {
        let mount = self.mount_of(controller);
        let mut missing: Vec<PathBuf> = vec![];
        for ancestor in dir
            .ancestors()
            .take_while(|a| *a != mount && !a.as_os_str().is_empty())
        {
            missing.push(ancestor.to_path_buf());
        }
        for path in missing.into_iter().rev() {
            match std::fs::create_dir(&path) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(io_error("create cgroup", &path)(e)),
            }
            if controller == "cpuset" {
                copy_cpuset(&path)?;
            }
            if let (Hierarchies::V2(_), Some(parent)) = (&self.hierarchies, path.parent()) {
                delegate(parent);
            }
        }
        Ok(())
    }

    /// Sets what `config` names; the rest is left as it is.
    ///
    /// # Errors
    /// The first file that refuses.
    pub fn update(&self, name: &str, config: &ResourceConfig) -> Result<(), CgroupError> {
        let _timer = timer("update");
        for (controller, dir) in self.directories(name) {
            for (file, value) in files(&controller, config) {
                let path = dir.join(&file);
                // A controller that is not there has no file to write to.
                if path.exists() {
                    std::fs::write(&path, &value).map_err(io_error("write", &path))?;
                }
            }
        }
        Ok(())
    }

    /// Removes the directory and everything below it. What does not exist is fine. Processes left in it are killed.
    ///
    /// # Errors
    /// What could not be removed after a second; the next cleanup finds it again.
    pub async fn destroy(&self, name: &str) -> Result<(), CgroupError> {
        let _timer = timer("destroy");
        let mut first = Ok(());
        for (_, dir) in self.directories(name) {
            if let Err(error) = remove_tree(&dir).await
                && first.is_ok()
            {
                first = Err(error);
            }
        }
        first
    }

    /// Names of the directories directly below `name`.
    pub fn children(&self, name: &str) -> Vec<String> {
        let mut all: Vec<String> = self
            .directories(name)
            .iter()
            .filter_map(|(_, dir)| std::fs::read_dir(dir).ok())
            .flatten()
            .filter_map(|entry| {
                let entry = entry.ok()?;
                entry
                    .file_type()
                    .ok()?
                    .is_dir()
                    .then(|| entry.file_name().to_string_lossy().into_owned())
            })
            .collect();
        all.sort();
        all.dedup();
        all
    }
}

/// A new cpuset is empty, and nothing can run in it until it names processors and memory nodes.
fn copy_cpuset(dir: &Path) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let path = dir.join(file);
        let Ok(own) = std::fs::read_to_string(&path) else {
            continue;
        };
        if !own.trim().is_empty() {
            continue;
        }
        let from = dir.parent().unwrap_or(dir).join(file);
        let text = std::fs::read_to_string(&from).map_err(io_error("read", &from))?;
        if !text.trim().is_empty() {
            std::fs::write(&path, text.trim()).map_err(io_error("write", &path))?;
        }
    }
    Ok(())
}

/// Lets the children of a v2 directory use every controller it has.
fn delegate(parent: &Path) {
    let Ok(available) = std::fs::read_to_string(parent.join("cgroup.controllers")) else {
        return;
    };
    for controller in available.split_whitespace() {
        if let Err(error) = std::fs::write(
            parent.join("cgroup.subtree_control"),
            format!("+{controller}"),
        ) {
            tracing::debug!(parent = %parent.display(), controller, %error, "cannot delegate cgroup controller");
        }
    }
}

fn files(controller: &str, config: &ResourceConfig) -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = vec![];
    let mut put = |file: &str, value: String| out.push((file.to_owned(), value));
    let v2 = controller.is_empty();
    if controller == "cpu" || v2 {
        if let Some(shares) = config.cpu_shares {
            if v2 {
                put("cpu.weight", cpu_shares_to_weight(shares).to_string());
            } else {
                put("cpu.shares", shares.to_string());
            }
        }
        if let Some(quota) = config.cpu_quota.filter(|q| *q != 0) {
            let period = config.cpu_period.unwrap_or(100_000);
            if v2 {
                let quota = if quota < 0 {
                    "max".to_owned()
                } else {
                    quota.to_string()
                };
                put("cpu.max", format!("{quota} {period}"));
            } else {
                put("cpu.cfs_period_us", period.to_string());
                put("cpu.cfs_quota_us", quota.to_string());
            }
        }
    }
    if (controller == "memory" || v2)
        && let Some(bytes) = config.memory_bytes.filter(|b| *b != 0)
    {
        put(
            if v2 {
                "memory.max"
            } else {
                "memory.limit_in_bytes"
            },
            bytes.to_string(),
        );
    }
    if (controller == "pids" || v2)
        && let Some(limit) = config.pids_limit.filter(|l| *l > 0)
    {
        put("pids.max", limit.to_string());
    }
    if controller == "hugetlb" || v2 {
        for (size, bytes) in &config.hugepage_limits {
            let file = if v2 {
                format!("hugetlb.{size}.max")
            } else {
                format!("hugetlb.{size}.limit_in_bytes")
            };
            put(&file, bytes.to_string());
        }
    }
    if v2 {
        for (file, value) in &config.unified {
            put(file, value.clone());
        }
    }
    out
}

/// Pids in the directory and below it.
fn pids(dir: &Path, out: &mut Vec<i32>) {
    if let Ok(text) = std::fs::read_to_string(dir.join("cgroup.procs")) {
        out.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()));
    }
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            pids(&entry.path(), out);
        }
    }
}

fn remove_dirs(dir: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_dirs(&entry.path())?;
        }
    }
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

async fn remove_tree(dir: &Path) -> Result<(), CgroupError> {
    let mut wait = Duration::from_millis(2);
    for _ in 0..9 {
        match remove_dirs(dir) {
            Ok(()) => return Ok(()),
            Err(_) => {
                let mut left = vec![];
                pids(dir, &mut left);
                for pid in left.into_iter().filter(|p| *p > 1) {
                    // It may be gone already; that is as good.
                    let _ = nix::sys::signal::kill(
                        nix::unistd::Pid::from_raw(pid),
                        nix::sys::signal::Signal::SIGKILL,
                    );
                }
                // A killed process leaves its cgroup a moment after the signal; the kernel tells nobody when on v1.
                tokio::time::sleep(wait).await;
                wait *= 2;
            }
        }
    }
    remove_dirs(dir).map_err(io_error("remove cgroup", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_is_v1() {
        let text = "30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                    31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                    32 23 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";
        let Some(Hierarchies::V1(map)) = parse_mountinfo(text) else {
            panic!("v1")
        };
        assert_eq!(map["cpuacct"], PathBuf::from("/sys/fs/cgroup/cpu,cpuacct"));
        let v2 = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            parse_mountinfo(v2),
            Some(Hierarchies::V2("/sys/fs/cgroup".into()))
        );
    }

    #[test]
    fn v1_and_v2_files() {
        let config = ResourceConfig {
            cpu_shares: Some(1024),
            cpu_quota: Some(5000),
            cpu_period: Some(100_000),
            memory_bytes: Some(1 << 20),
            ..Default::default()
        };
        assert_eq!(
            files("", &config),
            [
                ("cpu.weight", "39"),
                ("cpu.max", "5000 100000"),
                ("memory.max", "1048576")
            ]
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
        );
        assert_eq!(
            files("memory", &config),
            [("memory.limit_in_bytes".to_owned(), "1048576".to_owned())]
        );
        assert!(files("freezer", &config).is_empty());
    }

    #[tokio::test]
    async fn directories_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let manager = CgroupManager::with_hierarchies(Hierarchies::V2(dir.path().to_path_buf()));
        manager
            .ensure("/kubepods/burstable/podx", &ResourceConfig::default())
            .unwrap();
        assert!(manager.exists("/kubepods/burstable/podx"));
        assert_eq!(manager.children("/kubepods/burstable"), ["podx"]);
        manager.destroy("/kubepods").await.unwrap();
        assert!(!manager.exists("/kubepods"));
    }

    #[test]
    fn what_the_kernel_can_take_back_is_not_counted() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("kubepods");
        std::fs::create_dir(&dir).unwrap();
        let write = |file: &str, text: &str| std::fs::write(dir.join(file), text).unwrap();
        let v2 = CgroupManager::with_hierarchies(Hierarchies::V2(root.path().into()));
        assert_eq!(v2.working_set("/kubepods"), None);
        write("memory.current", "1000\n");
        write("memory.stat", "anon 300\ninactive_file 400\n");
        assert_eq!(v2.working_set("/kubepods"), Some(600));
        let mounts = [("memory".to_owned(), root.path().to_owned())].into();
        let v1 = CgroupManager::with_hierarchies(Hierarchies::V1(mounts));
        write("memory.usage_in_bytes", "1000\n");
        write("memory.stat", "inactive_file 1\ntotal_inactive_file 300\n");
        assert_eq!(v1.working_set("/kubepods"), Some(700));
    }
}
