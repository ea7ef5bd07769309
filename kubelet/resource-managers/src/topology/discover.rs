//! Reads the topology from /sys; virtual machines and containers may show little of it.
//!
//! Upstream: cadvisor's `GetNodesInfo`, `getCoresInfo` and `addCacheInfo` (github.com/google/cadvisor/lib/utils/sysinfo).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{CpuDetails, CpuInfo, CpuTopology, HugePages, NumaNode, Topology};
use crate::cpu_set::CpuSet;

/// What is known without /sys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub cpus: usize,
    pub memory_bytes: u64,
}

/// A core as the machine numbers it, unique in its socket, and its threads.
type Cores = BTreeMap<(usize, usize), Vec<usize>>;

/// Reads below `sys` (`/sys`). What is not there is made up: a machine without NUMA nodes has one, a CPU that does not say its core is
/// one itself, and a machine that shows no CPU has as many as `known` says, each a core of one socket.
///
/// DIFFERS: upstream leaves CPUs out that do not say their core, and takes sockets for NUMA nodes without memory where there are none.
pub fn read(sys: &Path, known: Known) -> Topology {
    let system = sys.join("devices/system");
    let cpu_root = system.join("cpu");
    let numbered_cpus = numbered(&cpu_root, "cpu");
    let mut nodes = Vec::new();
    let mut details: BTreeMap<usize, CpuInfo> = BTreeMap::new();
    for (id, dir) in numbered(&system.join("node"), "node") {
        let inside = numbered(&dir, "cpu");
        let cpus: Vec<usize> = inside.into_iter().map(|(cpu, _)| cpu).collect();
        details.extend(of_node(id, &cpus, &cpu_root));
        nodes.push(numa_node(id, &dir));
    }
    if nodes.is_empty() || details.is_empty() {
        let only = NumaNode {
            id: 0,
            memory_bytes: known.memory_bytes,
            huge_pages: huge_pages(&sys.join("kernel/mm/hugepages")),
            distances: vec![10],
        };
        let cpus: Vec<usize> = match numbered_cpus.is_empty() {
            true => (0..known.cpus.max(1)).collect(),
            false => numbered_cpus.into_iter().map(|(cpu, _)| cpu).collect(),
        };
        details = of_node(0, &cpus, &cpu_root);
        nodes = vec![only];
    }
    if let [only] = nodes.as_mut_slice()
        && only.memory_bytes == 0
    {
        only.memory_bytes = known.memory_bytes;
    }
    Topology {
        cpus: CpuTopology::of(details.into_iter().collect::<CpuDetails>()),
        nodes,
    }
}

/// `<name>0`, `<name>1`, … in the folder, by number.
fn numbered(dir: &Path, name: &str) -> BTreeMap<usize, PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let numbered = entries.filter_map(|entry| {
        let number = entry.file_name();
        let number = number.to_str()?.strip_prefix(name)?.parse().ok()?;
        Some((number, entry.path()))
    });
    numbered.collect()
}

fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number(path: &Path) -> Option<usize> {
    text(path)?.parse().ok()
}

/// The CPUs of a NUMA node that are on.
fn of_node(node: usize, cpus: &[usize], root: &Path) -> BTreeMap<usize, CpuInfo> {
    let mut cores = Cores::new();
    for cpu in cpus {
        let dir = root.join(format!("cpu{cpu}"));
        if text(&dir.join("online")).as_deref() == Some("0") {
            continue;
        }
        let topology = dir.join("topology");
        // Negative where the machine does not know.
        let socket = number(&topology.join("physical_package_id")).unwrap_or(0);
        // Beyond every number of a core.
        let core = number(&topology.join("core_id")).unwrap_or(usize::MAX - cpu);
        cores.entry((socket, core)).or_default().push(*cpu);
    }
    let in_node: usize = cores.values().map(Vec::len).sum();
    let mut details = BTreeMap::new();
    for ((socket, _), threads) in &cores {
        let Some(lowest) = threads.iter().min() else {
            continue;
        };
        let cache = uncore_cache(&root.join(format!("cpu{lowest}/cache")), in_node);
        for cpu in threads {
            let info = CpuInfo {
                numa_node: node,
                socket: *socket,
                core: *lowest,
                uncore_cache: cache.unwrap_or(*socket),
            };
            details.insert(*cpu, info);
        }
    }
    details
}

/// The cache above a core's own that only some of the node's CPUs share. `None`: there is none but the node's.
fn uncore_cache(dir: &Path, in_node: usize) -> Option<usize> {
    const OF_CORES: usize = 2;
    let caches = numbered(dir, "index").into_values();
    let mut uncore = caches.filter(|cache| {
        let shared = text(&cache.join("shared_cpu_list"));
        let shared = shared.and_then(|list| list.parse::<CpuSet>().ok());
        number(&cache.join("level")).is_some_and(|level| level > OF_CORES)
            && shared.is_some_and(|cpus| cpus.len() != in_node)
    });
    uncore.find_map(|cache| number(&cache.join("id")))
}

fn numa_node(id: usize, dir: &Path) -> NumaNode {
    let meminfo = fs::read_to_string(dir.join("meminfo")).unwrap_or_default();
    let total = meminfo.lines().find_map(|line| {
        let kib = line.split_once("MemTotal:")?.1;
        kib.split_whitespace().next()?.parse::<u64>().ok()
    });
    let distances = text(&dir.join("distance")).unwrap_or_default();
    NumaNode {
        id,
        memory_bytes: total.unwrap_or(0) * 1024,
        huge_pages: huge_pages(&dir.join("hugepages")),
        distances: distances
            .split_whitespace()
            .filter_map(|distance| distance.parse().ok())
            .collect(),
    }
}

/// By size of the page.
fn huge_pages(dir: &Path) -> Vec<HugePages> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let pages = entries.filter_map(|entry| {
        let size = entry.file_name();
        let size = size.to_str()?.strip_prefix("hugepages-")?;
        let size = size.strip_suffix("kB")?.parse().ok()?;
        let count = number(&entry.path().join("nr_hugepages"))?;
        Some((size, u64::try_from(count).ok()?))
    });
    let by_size: BTreeMap<u64, u64> = pages.collect();
    let pages = by_size.into_iter();
    pages
        .map(|(page_size_kib, count)| HugePages {
            page_size_kib,
            count,
        })
        .collect()
}

#[cfg(test)]
mod tests;
