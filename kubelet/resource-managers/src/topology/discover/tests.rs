//! Machines made of files.

use super::*;

struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn cpu(&self, cpu: usize, socket: &str, core: &str) {
        let dir = format!("devices/system/cpu/cpu{cpu}/topology");
        self.file(&format!("{dir}/physical_package_id"), socket);
        self.file(&format!("{dir}/core_id"), core);
    }

    fn node(&self, node: usize, cpus: &[usize], kib: u64, distances: &str) {
        let dir = format!("devices/system/node/node{node}");
        self.file(
            &format!("{dir}/meminfo"),
            &format!("Node {node} MemTotal:       {kib} kB\nNode {node} MemFree:  1 kB\n"),
        );
        self.file(&format!("{dir}/distance"), distances);
        for cpu in cpus {
            self.file(&format!("{dir}/cpu{cpu}/x"), "");
        }
    }

    fn read(&self) -> Topology {
        let known = Known {
            cpus: 3,
            memory_bytes: 5 << 20,
        };
        read(self.0.path(), known)
    }
}

fn told(topology: &Topology) -> String {
    let cpus = &topology.cpus;
    let each = cpus.details.cpus();
    let each = each.iter().map(|cpu| {
        let info = cpus.details.get(cpu).unwrap();
        format!(
            "{cpu}:{}.{}.{}.{}",
            info.numa_node, info.socket, info.core, info.uncore_cache
        )
    });
    format!(
        "{} cpus, {} cores, {} sockets, {} nodes: {}",
        cpus.num_cpus,
        cpus.num_cores,
        cpus.num_sockets,
        cpus.num_numa_nodes,
        each.collect::<Vec<_>>().join(" ")
    )
}

#[test]
fn two_sockets_with_threads() {
    let machine = Machine::new();
    for cpu in 0..8usize {
        // Cores of different sockets have the same number.
        machine.cpu(cpu, &(cpu / 2 % 2).to_string(), &format!("{}\n", cpu % 2));
    }
    machine.node(0, &[0, 1, 4, 5], 1024, "10 21\n");
    machine.node(1, &[2, 3, 6, 7], 2048, "21 10\n");
    machine.file(
        "devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages",
        "7\n",
    );
    machine.file("devices/system/node/has_cpu", "0-1");
    machine.file("devices/system/cpu/cpufreq/x", "");
    let read = machine.read();
    assert_eq!(
        told(&read),
        "8 cpus, 4 cores, 2 sockets, 2 nodes: 0:0.0.0.0 1:0.0.1.0 2:1.1.2.1 3:1.1.3.1 4:0.0.0.0 5:0.0.1.0 6:1.1.2.1 7:1.1.3.1"
    );
    assert_eq!(read.cpus.cpus_per_core(), 2);
    assert_eq!(read.nodes[1].memory_bytes, 2 << 20);
    assert_eq!(read.nodes[1].distances, [21, 10]);
    let pages = HugePages {
        page_size_kib: 2048,
        count: 7,
    };
    assert_eq!(read.nodes[1].huge_pages, [pages]);
    assert!(read.nodes[0].huge_pages.is_empty());
}

#[test]
fn caches_above_cores_that_not_all_share() {
    let machine = Machine::new();
    for cpu in 0..4 {
        machine.cpu(cpu, "0", &cpu.to_string());
        let cache = |index: usize, name: &str, text: &str| {
            machine.file(
                &format!("devices/system/cpu/cpu{cpu}/cache/index{index}/{name}"),
                text,
            );
        };
        for (index, level, id, shared) in [
            (2, 2, cpu, cpu.to_string()),
            (
                3,
                3,
                8 + cpu / 2,
                if cpu < 2 { "0-1" } else { "2-3" }.to_owned(),
            ),
        ] {
            cache(index, "level", &level.to_string());
            cache(index, "id", &id.to_string());
            cache(index, "shared_cpu_list", &shared);
        }
    }
    machine.node(0, &[0, 1, 2, 3], 1024, "10");
    assert_eq!(
        told(&machine.read()),
        "4 cpus, 4 cores, 1 sockets, 1 nodes: 0:0.0.0.8 1:0.0.1.8 2:0.0.2.9 3:0.0.3.9"
    );
    // All share it: it is no cache of some.
    for cpu in 0..4 {
        machine.file(
            &format!("devices/system/cpu/cpu{cpu}/cache/index3/shared_cpu_list"),
            "0-3",
        );
    }
    assert_eq!(machine.read().cpus.num_uncore_caches, 1);
}

#[test]
fn cpus_that_are_off_and_nodes_without_any() {
    let machine = Machine::new();
    for cpu in 0..3 {
        machine.cpu(cpu, "0", &cpu.to_string());
    }
    machine.file("devices/system/cpu/cpu1/online", "0\n");
    machine.file("devices/system/cpu/cpu2/online", "1\n");
    machine.node(0, &[0, 1, 2], 1024, "10 30");
    machine.node(4, &[], 4096, "30 10");
    let read = machine.read();
    assert_eq!(
        told(&read),
        "2 cpus, 2 cores, 1 sockets, 1 nodes: 0:0.0.0.0 2:0.0.2.0"
    );
    assert_eq!(read.node_ids(), [0, 4]);
    assert_eq!(read.nodes[1].memory_bytes, 4 << 20);
}

#[test]
fn machines_that_show_little() {
    let machine = Machine::new();
    let nothing = machine.read();
    assert_eq!(
        told(&nothing),
        "3 cpus, 3 cores, 1 sockets, 1 nodes: 0:0.0.0.0 1:0.0.1.0 2:0.0.2.0"
    );
    assert_eq!(nothing.nodes[0].memory_bytes, 5 << 20);
    // CPUs, and nothing of them but one's socket, which the machine does not know.
    machine.file(
        "devices/system/cpu/cpu0/topology/physical_package_id",
        "-1\n",
    );
    machine.file("devices/system/cpu/cpu1/uevent", "");
    assert_eq!(
        told(&machine.read()),
        "2 cpus, 2 cores, 1 sockets, 1 nodes: 0:0.0.0.0 1:0.0.1.0"
    );
    // A node that tells no memory.
    machine.file("devices/system/node/node0/cpu0/x", "");
    machine.file("devices/system/node/node0/cpu1/x", "");
    let read = machine.read();
    assert_eq!(told(&read), told(&machine.read()));
    assert_eq!(read.cpus.num_cpus, 2);
    assert_eq!(read.nodes[0].memory_bytes, 5 << 20);
}

#[test]
fn this_machine_has_something() {
    let known = Known {
        cpus: 1,
        memory_bytes: 1,
    };
    let read = read(Path::new("/sys"), known);
    assert!(read.cpus.num_cpus > 0 && !read.nodes.is_empty());
    assert!(read.cpus.num_cores <= read.cpus.num_cpus);
}
