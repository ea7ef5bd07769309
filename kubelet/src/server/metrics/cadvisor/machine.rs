//! The machine's own metrics.

use super::{Page, Snapshot};

pub(super) fn version(page: &mut Page) {
    let (kernel, os) = nix::sys::utsname::uname().map_or_else(
        |_| Default::default(),
        |name| (name.release().to_string_lossy().into_owned(), os()),
    );
    page.family(
        "cadvisor_version_info",
        "gauge",
        "A metric with a constant '1' value labeled by kernel version, OS version, docker version, cadvisor version & cadvisor revision.",
    )
    .sample(
        &[
            ("cadvisorRevision", ""),
            ("cadvisorVersion", ""),
            ("dockerVersion", ""),
            ("kernelVersion", &kernel),
            ("osVersion", &os),
        ],
        1.0,
        None,
    );
}

/// `PRETTY_NAME` of os-release.
fn os() -> String {
    std::fs::read_to_string("/etc/os-release")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .unwrap_or_default()
}

fn cpus() -> f64 {
    component_base::processors::online() as f64
}

/// Distinct values of a topology file of every processor.
fn topology(files: &[&str]) -> f64 {
    let mut seen = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir("/sys/devices/system/cpu")
        .into_iter()
        .flatten()
        .flatten()
    {
        let topology = entry.path().join("topology");
        let ids: Option<Vec<String>> = files
            .iter()
            .map(|file| std::fs::read_to_string(topology.join(file)).ok())
            .collect();
        seen.extend(ids);
    }
    seen.len().max(1) as f64
}

pub(super) fn render(page: &mut Page, snapshot: &Snapshot) {
    let id = |name: &str| {
        std::fs::read_to_string(name)
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    };
    let (boot, machine, system) = (
        id("/proc/sys/kernel/random/boot_id"),
        id("/etc/machine-id"),
        id("/sys/class/dmi/id/product_uuid"),
    );
    let labels = [
        ("boot_id", boot.as_str()),
        ("machine_id", machine.as_str()),
        ("system_uuid", system.as_str()),
    ];
    for (name, help, value) in [
        ("machine_cpu_cores", "Number of logical CPU cores.", cpus()),
        (
            "machine_cpu_physical_cores",
            "Number of physical CPU cores.",
            topology(&["physical_package_id", "core_id"]),
        ),
        (
            "machine_cpu_sockets",
            "Number of CPU sockets.",
            topology(&["physical_package_id"]),
        ),
        (
            "machine_memory_bytes",
            "Amount of memory installed on the machine.",
            snapshot.memory_capacity_bytes as f64,
        ),
        (
            "machine_swap_bytes",
            "Amount of swap memory available on the machine.",
            crate::cm::machine::meminfo("SwapTotal").unwrap_or(0) as f64,
        ),
    ] {
        page.family(name, "gauge", help)
            .sample(&labels, value, None);
    }
}
