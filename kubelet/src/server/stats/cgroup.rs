//! Reading usage from cgroups, v1 and v2, and from /proc.

use std::path::Path;

use jiff::Timestamp;
use runtime::detail::value;

use crate::cm::machine::meminfo;

/// What a cgroup (or the node, or a process) uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Usage {
    pub(in super::super) cpu_nanoseconds: Option<u64>,
    pub(in super::super) memory_bytes: Option<u64>,
    pub(in super::super) working_set_bytes: Option<u64>,
    pub(in super::super) rss_bytes: Option<u64>,
    pub(in super::super) page_faults: Option<u64>,
    pub(in super::super) major_page_faults: Option<u64>,
    /// `None`: no limit.
    pub(in super::super) memory_limit_bytes: Option<u64>,
    pub(in super::super) swap_bytes: Option<u64>,
}

/// Limits above this mean none (v1 writes a huge number).
const NO_LIMIT_BYTES: u64 = 1 << 60;

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// `None`: there is no such cgroup.
pub(super) fn read(cpu: &Path, memory: &Path) -> Option<Usage> {
    if !cpu.is_dir() && !memory.is_dir() {
        return None;
    }
    let text = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let stat = text(&memory.join("memory.stat"));
    let mut usage = Usage {
        cpu_nanoseconds: number(&cpu.join("cpuacct.usage"))
            .or_else(|| value(&text(&cpu.join("cpu.stat")), "usage_usec").map(|usec| usec * 1000)),
        page_faults: value(&stat, "total_pgfault").or_else(|| value(&stat, "pgfault")),
        major_page_faults: value(&stat, "total_pgmajfault").or_else(|| value(&stat, "pgmajfault")),
        ..Usage::default()
    };
    let inactive;
    if let Some(current) = number(&memory.join("memory.usage_in_bytes")) {
        usage.memory_bytes = Some(current);
        usage.rss_bytes = value(&stat, "total_rss");
        usage.memory_limit_bytes = number(&memory.join("memory.limit_in_bytes"));
        usage.swap_bytes = value(&stat, "total_swap");
        inactive = value(&stat, "total_inactive_file");
    } else {
        usage.memory_bytes = number(&memory.join("memory.current"));
        usage.rss_bytes = value(&stat, "anon");
        usage.memory_limit_bytes = number(&memory.join("memory.max"));
        usage.swap_bytes = number(&memory.join("memory.swap.current"));
        inactive = value(&stat, "inactive_file");
    }
    usage.memory_limit_bytes = usage
        .memory_limit_bytes
        .filter(|limit| *limit < NO_LIMIT_BYTES);
    usage.working_set_bytes = usage
        .memory_bytes
        .map(|bytes| bytes.saturating_sub(inactive.unwrap_or(0)));
    Some(usage)
}

/// The root cgroup knows little of memory: /proc says the rest.
pub(super) fn node(root: Option<Usage>) -> Usage {
    let mut usage = root.unwrap_or_default();
    usage.memory_limit_bytes = None;
    if let (Some(total), Some(free), Some(available)) = (
        meminfo("MemTotal"),
        meminfo("MemFree"),
        meminfo("MemAvailable"),
    ) {
        usage.memory_bytes = Some(total.saturating_sub(free));
        usage.working_set_bytes = Some(total.saturating_sub(available));
        usage.rss_bytes = meminfo("AnonPages").or(usage.rss_bytes);
    }
    if usage.cpu_nanoseconds.is_none() {
        usage.cpu_nanoseconds = proc_stat_nanoseconds(&read_proc("stat"));
    }
    usage.swap_bytes = match (meminfo("SwapTotal"), meminfo("SwapFree")) {
        (Some(total), Some(free)) => Some(total.saturating_sub(free)),
        _ => None,
    };
    usage
}

/// This process, as a cgroup of its own would show it.
pub(super) fn own_process() -> Option<Usage> {
    let stat = read_proc("self/stat");
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let ticks = field(11)? + field(12)?;
    let resident = meminfo_of(&read_proc("self/status"), "VmRSS:");
    Some(Usage {
        cpu_nanoseconds: Some(ticks * nanoseconds_per_tick()),
        memory_bytes: resident,
        working_set_bytes: resident,
        rss_bytes: resident,
        page_faults: field(7),
        major_page_faults: field(9),
        ..Usage::default()
    })
}

fn meminfo_of(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace()
        .next()?
        .parse::<u64>()
        .ok()
        .map(|kilobytes| kilobytes * 1024)
}

fn read_proc(name: &str) -> String {
    std::fs::read_to_string(Path::new("/proc").join(name)).unwrap_or_default()
}

fn nanoseconds_per_tick() -> u64 {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
        .ok()
        .flatten()
        .unwrap_or(100);
    1_000_000_000 / u64::try_from(ticks).unwrap_or(100).max(1)
}

/// All but idle and waiting time of all processors.
fn proc_stat_nanoseconds(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    let busy = ticks.iter().take(8).sum::<u64>() - ticks.get(3)? - ticks.get(4)?;
    Some(busy * nanoseconds_per_tick())
}

/// When the machine started.
pub(super) fn boot_time() -> Timestamp {
    let seconds = value(&read_proc("stat"), "btime").and_then(|s| i64::try_from(s).ok());
    seconds
        .and_then(|s| Timestamp::from_second(s).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The most processes there may be, and how many there are.
pub(super) fn processes() -> (Option<i64>, Option<i64>) {
    let limit = |name: &str| read_proc(name).trim().parse::<i64>().ok();
    let max = [limit("sys/kernel/pid_max"), limit("sys/kernel/threads-max")]
        .into_iter()
        .flatten()
        .min();
    // `0.00 0.01 0.05 running/total last`
    let load = read_proc("loadavg");
    let current = load
        .split_whitespace()
        .nth(3)
        .and_then(|pair| pair.split_once('/'))
        .and_then(|(_, total)| total.parse().ok());
    (max, current)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions() {
        let dir = std::env::temp_dir().join(format!("gantry-stats-{}", std::process::id()));
        let check = |name: &str, files: &[(&str, &str)], expect: Usage| {
            let group = dir.join(name);
            std::fs::create_dir_all(&group).unwrap();
            for (file, text) in files {
                std::fs::write(group.join(file), text).unwrap();
            }
            assert_eq!(read(&group, &group), Some(expect));
        };
        check(
            "v1",
            &[
                ("cpuacct.usage", "5000\n"),
                ("memory.usage_in_bytes", "1000\n"),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                (
                    "memory.stat",
                    "rss 1\ntotal_rss 300\ntotal_inactive_file 400\ntotal_pgfault 7\ntotal_pgmajfault 2\n",
                ),
            ],
            Usage {
                cpu_nanoseconds: Some(5000),
                memory_bytes: Some(1000),
                working_set_bytes: Some(600),
                rss_bytes: Some(300),
                page_faults: Some(7),
                major_page_faults: Some(2),
                ..Usage::default()
            },
        );
        check(
            "v2",
            &[
                ("cpu.stat", "usage_usec 5\nuser_usec 3\n"),
                ("memory.current", "1000\n"),
                ("memory.max", "2000\n"),
                ("memory.swap.current", "0\n"),
                (
                    "memory.stat",
                    "anon 300\ninactive_file 400\npgfault 7\npgmajfault 2\n",
                ),
            ],
            Usage {
                cpu_nanoseconds: Some(5000),
                memory_bytes: Some(1000),
                working_set_bytes: Some(600),
                rss_bytes: Some(300),
                page_faults: Some(7),
                major_page_faults: Some(2),
                memory_limit_bytes: Some(2000),
                swap_bytes: Some(0),
            },
        );
        assert_eq!(read(&dir.join("none"), &dir.join("none")), None);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_machine_is_there() {
        assert!(node(None).cpu_nanoseconds.is_some());
        assert!(own_process().is_some_and(|usage| usage.rss_bytes > Some(0)));
        assert!(boot_time() > Timestamp::UNIX_EPOCH);
    }
}
