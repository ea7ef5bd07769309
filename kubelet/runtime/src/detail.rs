//! What metrics tell of a cgroup beyond its usage: throttling, caches, block devices, threads, pressure.
//!
//! Read only when somebody asks for them: `/metrics/cadvisor`, and the CRI's metrics. Upstream: cadvisor's `container/libcontainer/handler.go`, v0.56.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// cgroup v1 says "no limit" with a number near 2^63, rounded to pages.
const NO_LIMIT_BYTES: u64 = 1 << 60;

/// Where the counters of one cgroup are: directories of its controllers, all the same one with v2.
#[derive(Clone, Debug)]
pub struct Directories {
    pub cpu: PathBuf,
    pub cpuacct: PathBuf,
    pub memory: PathBuf,
    pub blkio: PathBuf,
    pub pids: PathBuf,
    pub is_v2: bool,
}

/// The counters of one cgroup. `None`: this kernel or hierarchy does not count it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    pub cpu_user_nanoseconds: Option<u64>,
    pub cpu_system_nanoseconds: Option<u64>,
    pub throttling: Option<Throttling>,
    pub limits: Limits,
    pub memory: Memory,
    /// By the device's name, such as `/dev/vda`.
    pub devices: BTreeMap<String, DeviceIo>,
    pub oom_kills: Option<u64>,
    pub processes: Processes,
    pub pressure: Option<Pressure>,
}

/// Periods of the CPU controller: counted only where a quota is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttling {
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_nanoseconds: u64,
    pub burst_periods: u64,
    pub burst_nanoseconds: u64,
}

/// What the cgroup is held to. `None`: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub cpu_shares: Option<u64>,
    pub cpu_quota_us: Option<u64>,
    pub cpu_period_us: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub memory_and_swap_bytes: Option<u64>,
    pub memory_reservation_bytes: Option<u64>,
}

/// Bytes, but for the counts of failures and faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub cache: Option<u64>,
    pub kernel: Option<u64>,
    pub mapped_file: Option<u64>,
    pub swap: Option<u64>,
    pub fail_count: Option<u64>,
    pub max_usage: Option<u64>,
    pub active_file: Option<u64>,
    pub inactive_file: Option<u64>,
    /// Of this cgroup alone, and of all below it.
    pub page_faults: (Option<u64>, Option<u64>),
    pub major_page_faults: (Option<u64>, Option<u64>),
}

/// Counts and bytes of one block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Major and minor.
    pub number: (u32, u32),
    pub reads: u64,
    pub writes: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    pub count: u64,
    pub threads: Option<u64>,
    /// `None`: no limit.
    pub threads_max: Option<u64>,
    pub descriptors: u64,
    pub sockets: u64,
    /// The soft limit of open files of the first process.
    pub open_files_limit: Option<u64>,
}

/// Time stalled, in microseconds: `some` is waiting, `full` is stalled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub cpu: (u64, u64),
    pub memory: (u64, u64),
    pub io: (u64, u64),
}

/// A process with more descriptors than this is counted up to here: the page must not stall on it.
const MAX_DESCRIPTORS: usize = 10_000;
/// Processes of one cgroup that are looked at.
const MAX_PROCESSES: usize = 1_000;

/// Reads a cgroup. What is not there is left out.
pub fn read(at: &Directories) -> Detail {
    let mut detail = if at.is_v2 {
        version_2(&at.memory)
    } else {
        version_1(&at.cpu, &at.cpuacct, &at.memory, &at.blkio)
    };
    detail.processes = processes(&at.memory, &at.pids);
    detail
}

/// A value of a `key value` file.
pub fn value(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
        .and_then(|value| value.trim().parse().ok())
}

/// The name of a block device by its number `8:1`; the number itself where the kernel knows no such device.
pub fn device_name(number: &str) -> String {
    let event = std::fs::read_to_string(Path::new("/sys/dev/block").join(number).join("uevent"));
    event
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))
        .map_or_else(|| number.to_owned(), |name| format!("/dev/{name}"))
}

fn text(path: PathBuf) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn number(path: PathBuf) -> Option<u64> {
    text(path).trim().parse().ok()
}

fn version_1(cpu: &Path, cpuacct: &Path, memory: &Path, blkio: &Path) -> Detail {
    let stat = text(memory.join("memory.stat"));
    let of = |key| value(&stat, key);
    Detail {
        cpu_user_nanoseconds: number(cpuacct.join("cpuacct.usage_user")),
        cpu_system_nanoseconds: number(cpuacct.join("cpuacct.usage_sys")),
        throttling: throttling(
            &text(cpu.join("cpu.stat")),
            "throttled_time",
            "burst_time",
            1,
        ),
        limits: limits_v1(cpu, memory),
        memory: Memory {
            cache: of("total_cache"),
            kernel: number(memory.join("memory.kmem.usage_in_bytes")),
            mapped_file: of("total_mapped_file"),
            swap: of("total_swap"),
            fail_count: number(memory.join("memory.failcnt")),
            max_usage: number(memory.join("memory.max_usage_in_bytes")),
            active_file: of("total_active_file"),
            inactive_file: of("total_inactive_file"),
            page_faults: (of("pgfault"), of("total_pgfault")),
            major_page_faults: (of("pgmajfault"), of("total_pgmajfault")),
        },
        devices: by_name(blkio_v1(
            &text(blkio.join("blkio.throttle.io_serviced_recursive")),
            &text(blkio.join("blkio.throttle.io_service_bytes_recursive")),
        )),
        oom_kills: value(&text(memory.join("memory.oom_control")), "oom_kill"),
        processes: Processes::default(),
        pressure: None,
    }
}

fn version_2(at: &Path) -> Detail {
    let stat = text(at.join("memory.stat"));
    let cpu = text(at.join("cpu.stat"));
    let of = |key| value(&stat, key);
    let nanoseconds = |key| value(&cpu, key).map(|microseconds| microseconds * 1000);
    let events = text(at.join("memory.events"));
    let pressure = |name: &str| pressure(&text(at.join(name)));
    Detail {
        cpu_user_nanoseconds: nanoseconds("user_usec"),
        cpu_system_nanoseconds: nanoseconds("system_usec"),
        throttling: throttling(&cpu, "throttled_usec", "burst_usec", 1000),
        limits: limits_v2(at),
        memory: Memory {
            cache: of("file"),
            kernel: of("kernel").or_else(|| {
                Some(of("kernel_stack")? + of("slab")? + of("pagetables").unwrap_or(0))
            }),
            mapped_file: of("file_mapped"),
            swap: number(at.join("memory.swap.current")),
            fail_count: value(&events, "max"),
            max_usage: number(at.join("memory.peak")),
            active_file: of("active_file"),
            inactive_file: of("inactive_file"),
            page_faults: (of("pgfault"), of("pgfault")),
            major_page_faults: (of("pgmajfault"), of("pgmajfault")),
        },
        devices: by_name(io_stat_v2(&text(at.join("io.stat")))),
        oom_kills: value(&events, "oom_kill"),
        processes: Processes::default(),
        pressure: (|| {
            Some(Pressure {
                cpu: pressure("cpu.pressure")?,
                memory: pressure("memory.pressure")?,
                io: pressure("io.pressure")?,
            })
        })(),
    }
}

fn limits_v1(cpu: &Path, memory: &Path) -> Limits {
    let bytes = |name: &str| number(memory.join(name)).filter(|bytes| *bytes < NO_LIMIT_BYTES);
    Limits {
        cpu_shares: number(cpu.join("cpu.shares")),
        // -1: none.
        cpu_quota_us: number(cpu.join("cpu.cfs_quota_us")),
        cpu_period_us: number(cpu.join("cpu.cfs_period_us")),
        memory_bytes: bytes("memory.limit_in_bytes"),
        memory_and_swap_bytes: bytes("memory.memsw.limit_in_bytes"),
        memory_reservation_bytes: bytes("memory.soft_limit_in_bytes"),
    }
}

fn limits_v2(at: &Path) -> Limits {
    let max = text(at.join("cpu.max"));
    let mut max = max.split_whitespace().map(|word| word.parse().ok());
    let memory = number(at.join("memory.max"));
    Limits {
        cpu_shares: number(at.join("cpu.weight")).map(shares_of_weight),
        cpu_quota_us: max.next().flatten(),
        cpu_period_us: max.next().flatten(),
        memory_bytes: memory,
        memory_and_swap_bytes: memory
            .and_then(|memory| Some(memory + number(at.join("memory.swap.max"))?)),
        memory_reservation_bytes: number(at.join("memory.low")).filter(|low| *low > 0),
    }
}

/// cadvisor's way back from a weight to shares. Upstream: `convertCPUWeightToCPULimit`, container/common/helpers.go, v0.56.
fn shares_of_weight(weight: u64) -> u64 {
    2 + weight.saturating_sub(1) * 262_142 / 9_999
}

/// `cpu.stat`; times there are in `unit` nanoseconds.
fn throttling(stat: &str, throttled: &str, burst: &str, unit: u64) -> Option<Throttling> {
    Some(Throttling {
        periods: value(stat, "nr_periods")?,
        throttled_periods: value(stat, "nr_throttled")?,
        throttled_nanoseconds: value(stat, throttled)? * unit,
        burst_periods: value(stat, "nr_bursts").unwrap_or(0),
        burst_nanoseconds: value(stat, burst).unwrap_or(0) * unit,
    })
}

/// Lines `8:0 Read 4096` of two files, by device number.
fn blkio_v1(serviced: &str, bytes: &str) -> BTreeMap<String, DeviceIo> {
    let mut devices: BTreeMap<String, DeviceIo> = BTreeMap::new();
    for (text, in_bytes) in [(serviced, false), (bytes, true)] {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            // The last line is a total without a device.
            let (Some(device), Some(operation), Some(Ok(count))) = (
                words.next(),
                words.next(),
                words.next().map(str::parse::<u64>),
            ) else {
                continue;
            };
            let io = devices.entry(device.to_owned()).or_default();
            match (operation, in_bytes) {
                ("Read", false) => io.reads = count,
                ("Read", true) => io.read_bytes = count,
                ("Write", false) => io.writes = count,
                ("Write", true) => io.written_bytes = count,
                _ => {}
            }
        }
    }
    devices
}

/// Lines `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`, by device number.
fn io_stat_v2(text: &str) -> BTreeMap<String, DeviceIo> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let device = words.next()?.to_owned();
            let mut io = DeviceIo::default();
            for (key, number) in words.filter_map(|word| word.split_once('=')) {
                let number = number.parse().unwrap_or(0);
                match key {
                    "rbytes" => io.read_bytes = number,
                    "wbytes" => io.written_bytes = number,
                    "rios" => io.reads = number,
                    "wios" => io.writes = number,
                    _ => {}
                }
            }
            Some((device, io))
        })
        .collect()
}

/// Device numbers become names.
fn by_name(devices: BTreeMap<String, DeviceIo>) -> BTreeMap<String, DeviceIo> {
    devices
        .into_iter()
        .map(|(number, io)| {
            let parts = number.split_once(':');
            let parsed = parts.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
            let known = DeviceIo {
                number: parsed.unwrap_or_default(),
                ..io
            };
            (device_name(&number), known)
        })
        .collect()
}

/// Totals of the lines `some …` and `full …`; a kernel before 5.13 has no `full` for CPU.
fn pressure(text: &str) -> Option<(u64, u64)> {
    let total = |kind: &str| {
        text.lines()
            .find(|line| line.starts_with(kind))?
            .rsplit_once("total=")?
            .1
            .trim()
            .parse()
            .ok()
    };
    Some((total("some")?, total("full").unwrap_or(0)))
}

fn processes(memory: &Path, pids: &Path) -> Processes {
    let mut seen = Processes {
        threads: number(pids.join("pids.current")),
        threads_max: number(pids.join("pids.max")),
        ..Processes::default()
    };
    let listed = text(memory.join("cgroup.procs"));
    seen.count = listed.lines().count() as u64;
    for (index, pid) in listed.lines().take(MAX_PROCESSES).enumerate() {
        let process = Path::new("/proc").join(pid);
        if index == 0 {
            seen.open_files_limit = open_files_limit(&text(process.join("limits")));
        }
        for descriptor in std::fs::read_dir(process.join("fd"))
            .into_iter()
            .flatten()
            .flatten()
            .take(MAX_DESCRIPTORS)
        {
            seen.descriptors += 1;
            let target = std::fs::read_link(descriptor.path());
            if target.is_ok_and(|target| target.to_string_lossy().starts_with("socket:")) {
                seen.sockets += 1;
            }
        }
    }
    seen
}

/// `Max open files  1024  524288  files`.
fn open_files_limit(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            std::fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn version_1_counts() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            &[
                (
                    "cpu.stat",
                    "nr_periods 10\nnr_throttled 6\nthrottled_time 700\nnr_bursts 1\nburst_time 2\n",
                ),
                ("cpuacct.usage_user", "5\n"),
                ("cpuacct.usage_sys", "7\n"),
                (
                    "memory.stat",
                    "cache 1\ntotal_cache 11\npgfault 2\ntotal_pgfault 12\ntotal_mapped_file 3\ntotal_swap 0\ntotal_active_file 8\n",
                ),
                (
                    "memory.oom_control",
                    "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
                ),
                ("memory.failcnt", "9\n"),
                (
                    "blkio.throttle.io_serviced_recursive",
                    "259:99 Read 3\n259:99 Write 4\n259:99 Total 7\nTotal 7\n",
                ),
                (
                    "blkio.throttle.io_service_bytes_recursive",
                    "259:99 Read 4096\n259:99 Write 8192\nTotal 12288\n",
                ),
            ],
        );
        let at = dir.path();
        let detail = version_1(at, at, at, at);
        let throttling = detail.throttling.unwrap();
        assert_eq!((throttling.periods, throttling.throttled_periods), (10, 6));
        assert_eq!(throttling.throttled_nanoseconds, 700);
        assert_eq!(detail.cpu_user_nanoseconds, Some(5));
        assert_eq!(detail.memory.cache, Some(11));
        assert_eq!(detail.memory.page_faults, (Some(2), Some(12)));
        assert_eq!(detail.memory.kernel, None, "what is not there is left out");
        assert_eq!(detail.oom_kills, Some(4));
        let io = DeviceIo {
            number: (259, 99),
            reads: 3,
            writes: 4,
            read_bytes: 4096,
            written_bytes: 8192,
        };
        assert_eq!(detail.devices, BTreeMap::from([("259:99".to_owned(), io)]));
    }

    #[test]
    fn version_2_counts() {
        let dir = tempfile::tempdir().unwrap();
        let stalled = "some avg10=0.00 avg60=0.00 avg300=0.00 total=20\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=10\n";
        write(
            dir.path(),
            &[
                (
                    "cpu.stat",
                    "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 3\nnr_throttled 2\nthrottled_usec 8\n",
                ),
                (
                    "memory.stat",
                    "anon 1\nfile 2\nkernel 3\nfile_mapped 4\npgfault 5\npgmajfault 6\n",
                ),
                (
                    "memory.events",
                    "low 0\nhigh 0\nmax 7\noom 1\noom_kill 1\noom_group_kill 0\n",
                ),
                ("memory.swap.current", "0\n"),
                (
                    "io.stat",
                    "259:99 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n",
                ),
                ("cpu.pressure", stalled),
                ("memory.pressure", stalled),
                (
                    "io.pressure",
                    "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
                ),
            ],
        );
        let detail = version_2(dir.path());
        assert_eq!(detail.cpu_system_nanoseconds, Some(4000));
        assert_eq!(detail.throttling.unwrap().throttled_nanoseconds, 8000);
        assert_eq!(detail.memory.kernel, Some(3));
        assert_eq!(detail.memory.fail_count, Some(7));
        assert_eq!(detail.oom_kills, Some(1), "oom_kill, not oom_group_kill");
        assert_eq!(detail.devices["259:99"].writes, 4);
        let pressure = detail.pressure.unwrap();
        assert_eq!((pressure.cpu, pressure.io), ((20, 10), (1, 0)));
    }

    #[test]
    fn a_process_is_counted_with_its_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let _socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
        write(
            dir.path(),
            &[
                ("cgroup.procs", &format!("{}\n", std::process::id())),
                ("pids.current", "5\n"),
                ("pids.max", "max\n"),
            ],
        );
        let seen = processes(dir.path(), dir.path());
        assert_eq!(
            (seen.count, seen.threads, seen.threads_max),
            (1, Some(5), None)
        );
        assert!(seen.descriptors > 3 && seen.sockets >= 1, "{seen:?}");
        assert!(seen.open_files_limit.is_some());
    }
}
