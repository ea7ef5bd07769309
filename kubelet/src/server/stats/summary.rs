//! The summary's JSON: `k8s.io/kubelet/pkg/apis/stats/v1alpha1`.

use jiff::Timestamp;
use runtime::api::ContainerStats as RuntimeStats;
use serde::Serialize;

use super::{ContainerSnapshot, PodSnapshot, Snapshot, Stats, Usage};
use crate::cm::machine::FsStats as Statvfs;
use crate::pod;

#[derive(Serialize)]
pub(in super::super) struct Summary {
    node: NodeStats,
    pods: Vec<PodStats>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeStats {
    node_name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    system_containers: Vec<ContainerStats>,
    start_time: Time,
    cpu: CpuStats,
    memory: MemoryStats,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<NetworkStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fs: Option<FsStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<RuntimeFs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rlimit: Option<RlimitStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap: Option<SwapStats>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RuntimeFs {
    image_fs: FsStats,
    container_fs: FsStats,
}

#[derive(Serialize)]
struct RlimitStats {
    time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    maxpid: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    curproc: Option<i64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PodStats {
    pod_ref: PodReference,
    start_time: Time,
    containers: Vec<ContainerStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<CpuStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<MemoryStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<NetworkStats>,
    #[serde(rename = "volume", skip_serializing_if = "Vec::is_empty")]
    volumes: Vec<VolumeStats>,
    #[serde(rename = "ephemeral-storage", skip_serializing_if = "Option::is_none")]
    ephemeral_storage: Option<FsStats>,
    #[serde(rename = "process_stats", skip_serializing_if = "Option::is_none")]
    process_stats: Option<ProcessStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap: Option<SwapStats>,
}

#[derive(Serialize)]
struct PodReference {
    name: String,
    namespace: String,
    uid: String,
}

#[derive(Serialize)]
struct VolumeStats {
    #[serde(flatten)]
    fs: FsStats,
    name: String,
    #[serde(rename = "pvcRef", skip_serializing_if = "Option::is_none")]
    pvc_ref: Option<PvcReference>,
}

#[derive(Serialize)]
struct PvcReference {
    name: String,
    namespace: String,
}

#[derive(Serialize)]
struct ProcessStats {
    process_count: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStats {
    name: String,
    start_time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<CpuStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<MemoryStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rootfs: Option<FsStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logs: Option<FsStats>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CpuStats {
    time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_nano_cores: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_core_nano_seconds: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MemoryStats {
    time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    working_set_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rss_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    page_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    major_page_faults: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SwapStats {
    time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap_usage_bytes: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NetworkStats {
    time: Time,
    #[serde(flatten)]
    default: InterfaceStats,
    interfaces: Vec<InterfaceStats>,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct InterfaceStats {
    name: String,
    rx_bytes: u64,
    rx_errors: u64,
    tx_bytes: u64,
    tx_errors: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FsStats {
    time: Time,
    available_bytes: u64,
    capacity_bytes: u64,
    used_bytes: u64,
    inodes_free: u64,
    inodes: u64,
    inodes_used: u64,
}

/// `metav1.Time`: whole seconds.
#[derive(Clone, Copy)]
struct Time(Timestamp);

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{:.0}", self.0))
    }
}

impl Summary {
    /// `short`: CPU and memory alone.
    pub(super) fn new(snapshot: &Snapshot, stats: &Stats, short: bool) -> Self {
        let time = Time(snapshot.time);
        let mut system_containers = Vec::new();
        for (name, usage) in [("kubelet", &snapshot.kubelet), ("pods", &snapshot.all_pods)] {
            let Some(usage) = usage else { continue };
            let key = format!("system/{name}");
            system_containers.push(ContainerStats {
                name: name.to_owned(),
                start_time: Time(snapshot.boot_time),
                cpu: cpu(stats, &key, time, usage),
                memory: Some(memory(time, usage, Some(snapshot.memory_capacity_bytes))),
                rootfs: None,
                logs: None,
            });
        }
        let image_fs = || {
            let (usage, fs) = snapshot.image_fs.as_ref()?;
            Some(fs_stats(
                time,
                fs,
                Some((usage.used_bytes, usage.inodes_used)),
            ))
        };
        let long = !short;
        Self {
            node: NodeStats {
                node_name: snapshot.node_name.clone(),
                system_containers,
                start_time: Time(snapshot.boot_time),
                cpu: cpu(stats, "node", time, &snapshot.node).unwrap_or(CpuStats {
                    time,
                    usage_nano_cores: None,
                    usage_core_nano_seconds: None,
                }),
                memory: memory(time, &snapshot.node, Some(snapshot.memory_capacity_bytes)),
                network: if long {
                    network(time, &snapshot.interfaces)
                } else {
                    None
                },
                fs: long.then(|| fs_stats(time, &snapshot.root_fs, None)),
                runtime: match (long, image_fs(), image_fs()) {
                    (true, Some(image_fs), Some(container_fs)) => Some(RuntimeFs {
                        image_fs,
                        container_fs,
                    }),
                    _ => None,
                },
                rlimit: long.then_some(RlimitStats {
                    time,
                    maxpid: snapshot.processes.0,
                    curproc: snapshot.processes.1,
                }),
                swap: Some(SwapStats {
                    time,
                    swap_usage_bytes: snapshot.node.swap_bytes,
                }),
            },
            pods: snapshot
                .pods
                .iter()
                .map(|pod| pod_stats(snapshot, stats, pod, short))
                .collect(),
        }
    }
}

impl Summary {
    /// Whether an earlier look gave the node's rates.
    pub(super) fn knows_rates(&self) -> bool {
        self.node.cpu.usage_nano_cores.is_some()
    }
}

fn pod_stats(snapshot: &Snapshot, stats: &Stats, pod: &PodSnapshot, short: bool) -> PodStats {
    let time = Time(snapshot.time);
    let uid = pod::uid(&pod.pod);
    let started = pod
        .pod
        .status
        .as_ref()
        .and_then(|status| status.start_time.as_ref());
    let containers: Vec<ContainerStats> = pod
        .containers
        .iter()
        .map(|container| container_stats(snapshot, stats, container, short))
        .collect();
    let (bytes, inodes) = pod
        .containers
        .iter()
        .fold((0, 0), |(bytes, inodes), container| {
            (
                bytes + container.stats.writable_layer_used_bytes + container.logs_bytes,
                inodes + container.stats.writable_layer_inodes_used + container.logs_inodes,
            )
        });
    let (bytes, inodes) = pod.volumes.iter().filter(|volume| volume.local).fold(
        (bytes + pod.hosts_bytes, inodes),
        |(bytes, inodes), volume| (bytes + volume.used_bytes, inodes + volume.inodes_used),
    );
    let sandbox = pod.sandbox.as_ref();
    PodStats {
        pod_ref: PodReference {
            name: pod::name(&pod.pod).to_owned(),
            namespace: pod::namespace(&pod.pod).to_owned(),
            uid: uid.to_owned(),
        },
        start_time: Time(started.map_or(snapshot.boot_time, |time| time.0)),
        containers,
        cpu: pod
            .usage
            .as_ref()
            .and_then(|usage| cpu(stats, &format!("pod/{uid}"), time, usage)),
        memory: pod.usage.as_ref().map(|usage| memory(time, usage, None)),
        network: sandbox
            .filter(|_| !short && !pod::is_host_network(&pod.pod))
            .and_then(|sandbox| network(time, &sandbox.interfaces)),
        volumes: pod
            .volumes
            .iter()
            .map(|volume| VolumeStats {
                fs: fs_stats(
                    time,
                    &volume.fs,
                    Some((volume.used_bytes, volume.inodes_used)),
                ),
                name: volume.name.clone(),
                pvc_ref: volume
                    .claim
                    .clone()
                    .map(|(name, namespace)| PvcReference { name, namespace }),
            })
            .collect(),
        ephemeral_storage: (!short)
            .then(|| fs_stats(time, &snapshot.root_fs, Some((bytes, inodes)))),
        process_stats: sandbox.filter(|_| !short).map(|sandbox| ProcessStats {
            process_count: sandbox.process_count,
        }),
        swap: pod.usage.as_ref().map(|usage| SwapStats {
            time,
            swap_usage_bytes: usage.swap_bytes,
        }),
    }
}

fn container_stats(
    snapshot: &Snapshot,
    stats: &Stats,
    container: &ContainerSnapshot,
    short: bool,
) -> ContainerStats {
    let RuntimeStats {
        id,
        name,
        timestamp,
        cpu_usage_core_nanoseconds,
        ..
    } = &container.stats;
    let of = &container.stats;
    let time = Time(*timestamp);
    let limit = container
        .status
        .resources
        .memory_limit_bytes
        .and_then(|l| u64::try_from(l).ok());
    let fs = |used| (!short).then(|| fs_stats(time, &snapshot.root_fs, Some(used)));
    ContainerStats {
        name: if name.is_empty() {
            container.status.metadata.name.clone()
        } else {
            name.clone()
        },
        start_time: Time(
            container
                .status
                .started_at
                .unwrap_or(container.status.created_at),
        ),
        cpu: Some(CpuStats {
            time,
            usage_nano_cores: stats.nano_cores(
                &format!("container/{id}"),
                *timestamp,
                *cpu_usage_core_nanoseconds,
            ),
            usage_core_nano_seconds: Some(*cpu_usage_core_nanoseconds),
        }),
        memory: Some(MemoryStats {
            time,
            available_bytes: limit
                .filter(|limit| *limit > 0)
                .map(|limit| limit.saturating_sub(of.memory_working_set_bytes)),
            usage_bytes: Some(of.memory_usage_bytes),
            working_set_bytes: Some(of.memory_working_set_bytes),
            rss_bytes: Some(of.memory_rss_bytes),
            page_faults: Some(of.page_faults),
            major_page_faults: Some(of.major_page_faults),
        }),
        rootfs: fs((of.writable_layer_used_bytes, of.writable_layer_inodes_used)),
        logs: fs((container.logs_bytes, container.logs_inodes)),
    }
}

fn cpu(stats: &Stats, key: &str, time: Time, usage: &Usage) -> Option<CpuStats> {
    let nanoseconds = usage.cpu_nanoseconds?;
    Some(CpuStats {
        time,
        usage_nano_cores: stats.nano_cores(key, time.0, nanoseconds),
        usage_core_nano_seconds: Some(nanoseconds),
    })
}

fn memory(time: Time, usage: &Usage, capacity: Option<u64>) -> MemoryStats {
    let limit = usage.memory_limit_bytes.or(capacity);
    MemoryStats {
        time,
        available_bytes: match (limit, usage.working_set_bytes) {
            (Some(limit), Some(used)) => Some(limit.saturating_sub(used)),
            _ => None,
        },
        usage_bytes: usage.memory_bytes,
        working_set_bytes: usage.working_set_bytes,
        rss_bytes: usage.rss_bytes,
        page_faults: usage.page_faults,
        major_page_faults: usage.major_page_faults,
    }
}

fn network(time: Time, interfaces: &[runtime::api::InterfaceStats]) -> Option<NetworkStats> {
    let interfaces: Vec<InterfaceStats> = interfaces
        .iter()
        .map(|interface| InterfaceStats {
            name: interface.name.clone(),
            rx_bytes: interface.rx_bytes,
            rx_errors: interface.rx_errors,
            tx_bytes: interface.tx_bytes,
            tx_errors: interface.tx_errors,
        })
        .collect();
    let default = interfaces
        .iter()
        .find(|interface| interface.name == "eth0")
        .or(interfaces.first())?
        .clone();
    Some(NetworkStats {
        time,
        default,
        interfaces,
    })
}

fn fs_stats(time: Time, fs: &Statvfs, used: Option<(u64, u64)>) -> FsStats {
    let (used_bytes, inodes_used) = used.unwrap_or((
        fs.capacity_bytes.saturating_sub(fs.available_bytes),
        fs.inodes.saturating_sub(fs.inodes_free),
    ));
    FsStats {
        time,
        available_bytes: fs.available_bytes,
        capacity_bytes: fs.capacity_bytes,
        used_bytes,
        inodes_free: fs.inodes_free,
        inodes: fs.inodes,
        inodes_used,
    }
}
