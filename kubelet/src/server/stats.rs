//! `/stats/summary`: what the node, its pods and their containers use.
//!
//! Numbers come from the node's and pods' cgroups, from the runtime for containers and pod networks, and from the file
//! systems. Rates are taken between two looks at a counter.
//!
//! Upstream: `pkg/kubelet/server/stats`, `pkg/kubelet/stats` (CRI provider).

mod cgroup;
mod network;
mod rate;
mod summary;
mod volume;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::extract::{Query, State};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use runtime::api::{
    ContainerState, ContainerStats, ContainerStatus, FsUsage, InterfaceStats, PodSandboxStats,
};

use super::container::label;
use super::{ApiError, DriverUsages, Server, ServerContext};
use crate::cm::cgroup::CgroupManager;
use crate::cm::machine::{self, FsStats};
use crate::disk_usage::DiskUsages;
use crate::off_thread::spawn_blocking;
use crate::{hosts, pod};
pub(super) use cgroup::Usage;
use rate::Rates;
pub(super) use runtime::detail::{Detail, DeviceIo, Pressure, Throttling};
pub(super) use summary::Summary;
pub(super) use volume::{FsFigures, Volume, claim_of};

/// Looks at the node, and remembers what rates need.
pub(super) struct Stats {
    context: Arc<dyn ServerContext>,
    rates: Mutex<Rates>,
    volume_sizes: Arc<DiskUsages>,
}

/// One look.
pub(super) struct Snapshot {
    pub(super) time: Timestamp,
    pub(super) node_name: String,
    pub(super) boot_time: Timestamp,
    pub(super) node: Usage,
    pub(super) memory_capacity_bytes: u64,
    pub(super) interfaces: Vec<InterfaceStats>,
    /// The cgroup above all pods.
    pub(super) all_pods: Option<Usage>,
    pub(super) kubelet: Option<Usage>,
    pub(super) root_fs: FsStats,
    pub(super) image_fs: Option<(FsUsage, FsStats)>,
    /// The device below the images, such as `/dev/vda1`.
    pub(super) image_device: String,
    /// The cgroups between the node's and the pods', by name.
    pub(super) classes: Vec<(String, Usage)>,
    pub(super) processes: (Option<i64>, Option<i64>),
    pub(super) pods: Vec<PodSnapshot>,
}

pub(super) struct PodSnapshot {
    pub(super) pod: Arc<Pod>,
    /// When the first of its containers that run was started.
    pub(super) started_at: Option<Timestamp>,
    pub(super) cgroup: String,
    pub(super) usage: Option<Usage>,
    pub(super) sandbox: Option<PodSandboxStats>,
    pub(super) containers: Vec<ContainerSnapshot>,
    pub(super) volumes: Vec<Volume>,
    /// Of the hosts file, which its containers can write.
    pub(super) hosts_bytes: u64,
}

pub(super) struct ContainerSnapshot {
    pub(super) status: ContainerStatus,
    pub(super) stats: ContainerStats,
    pub(super) logs_bytes: u64,
    pub(super) logs_inodes: u64,
}

impl PodSnapshot {
    /// The name of a container's cgroup.
    pub(super) fn container_cgroup(&self, container: &ContainerSnapshot) -> String {
        format!("{}/{}", self.cgroup, container.status.id)
    }
}

impl Stats {
    pub(super) fn new(context: Arc<dyn ServerContext>) -> Self {
        Self {
            context,
            rates: Mutex::default(),
            volume_sizes: Arc::default(),
        }
    }

    /// Nanocores of a counter since an earlier look at it; `None` at the first.
    pub(super) fn nano_cores(&self, key: &str, time: Timestamp, nanoseconds: u64) -> Option<u64> {
        self.rates
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .observe(key, time, nanoseconds)
    }

    /// Looks at everything.
    ///
    /// `volumes`: also at what volumes hold, which is dear.
    pub(super) async fn snapshot(&self, volumes: bool) -> Result<Snapshot, ApiError> {
        let runtime = self.context.runtime().clone();
        let (containers, stats, sandboxes, image_fs) = tokio::join!(
            runtime.list_containers(),
            runtime.list_container_stats(),
            runtime.list_pod_sandbox_stats(),
            runtime.image_fs_info(),
        );
        let (containers, stats, sandboxes) = (containers?, stats?, sandboxes?);
        let context = self.context.clone();
        let image_fs = image_fs.ok();
        let sizes = volumes.then(|| self.volume_sizes.clone());
        let drivers = match volumes {
            true => context.driver_usages().await,
            false => DriverUsages::new(),
        };
        let look = move || {
            let mut snapshot = look(context.as_ref(), containers, stats, sandboxes, image_fs);
            if let Some(sizes) = sizes {
                for pod in &mut snapshot.pods {
                    let uid = pod::uid(&pod.pod);
                    let directory = |name: &str| context.claim_directory(uid, name);
                    let driver =
                        |name: &str| drivers.get(&(uid.to_owned(), name.to_owned())).copied();
                    pod.volumes =
                        volume::volumes(context.paths(), &pod.pod, &sizes, directory, driver);
                }
            }
            snapshot
        };
        spawn_blocking(look)
            .await
            .map_err(|error| ApiError::internal(error.to_string()))
    }

    /// One look with what is told of each of its cgroups beyond that, by the cgroup's name; dear, too.
    pub(super) async fn detailed(&self) -> Result<(Snapshot, HashMap<String, Detail>), ApiError> {
        let snapshot = self.snapshot(false).await?;
        let context = self.context.clone();
        let read = move || {
            let cgroups = context.container_manager().cgroups();
            let mut names = vec!["/".to_owned()];
            names.extend(snapshot.classes.iter().map(|(name, _)| name.clone()));
            for pod in &snapshot.pods {
                names.push(pod.cgroup.clone());
                names.extend(pod.containers.iter().map(|c| pod.container_cgroup(c)));
            }
            let details = names
                .into_iter()
                .map(|name| {
                    let detail = runtime::detail::read(&directories(cgroups, &name));
                    (name, detail)
                })
                .collect();
            (snapshot, details)
        };
        spawn_blocking(read)
            .await
            .map_err(|error| ApiError::internal(error.to_string()))
    }
}

/// Where a cgroup's counters are.
fn directories(cgroups: &CgroupManager, name: &str) -> runtime::detail::Directories {
    let at = |controller| cgroups.controller_path(&[controller], name);
    runtime::detail::Directories {
        cpu: at("cpu"),
        cpuacct: at("cpuacct"),
        memory: at("memory"),
        blkio: at("blkio"),
        pids: at("pids"),
        is_v2: cgroups.is_v2(),
    }
}

/// The part that reads files.
fn look(
    context: &dyn ServerContext,
    containers: Vec<ContainerStatus>,
    stats: Vec<ContainerStats>,
    sandboxes: Vec<PodSandboxStats>,
    image_fs: Option<FsUsage>,
) -> Snapshot {
    let manager = context.container_manager();
    let read = |name: &str| {
        let cgroups = manager.cgroups();
        cgroup::read(&cgroups.cpu_path(name), &cgroups.memory_path(name))
    };
    let mut stats: HashMap<String, ContainerStats> = stats
        .into_iter()
        .map(|stats| (stats.id.clone(), stats))
        .collect();
    let mut sandboxes: HashMap<String, PodSandboxStats> = sandboxes
        .into_iter()
        .map(|stats| (stats.id.clone(), stats))
        .collect();
    let mut by_pod: HashMap<String, Vec<ContainerStatus>> = HashMap::new();
    for container in containers {
        if container.state == ContainerState::Running {
            let uid = label(&container, pod::label::POD_UID).to_owned();
            by_pod.entry(uid).or_default().push(container);
        }
    }
    let mut pods = Vec::new();
    for pod in context.pods() {
        let Some(running) = by_pod.remove(pod::uid(&pod)) else {
            continue;
        };
        let sandbox = running
            .first()
            .and_then(|first| sandboxes.remove(&first.sandbox_id));
        let logs = context.paths().pod_log_directory(
            pod::namespace(&pod),
            pod::name(&pod),
            pod::uid(&pod),
        );
        let started_at = running.iter().filter_map(|status| status.started_at).min();
        let containers = running
            .into_iter()
            .filter_map(|status| {
                let stats = stats.remove(&status.id)?;
                let (logs_bytes, logs_inodes) = size_of(&logs.join(&status.metadata.name));
                Some(ContainerSnapshot {
                    status,
                    stats,
                    logs_bytes,
                    logs_inodes,
                })
            })
            .collect();
        let cgroup = manager.pod_cgroup(&pod);
        let hosts = hosts::hosts_file_path(&context.paths().pod(pod::uid(&pod)));
        pods.push(PodSnapshot {
            hosts_bytes: allocated(&hosts),
            usage: read(&cgroup),
            cgroup,
            pod,
            started_at,
            sandbox,
            containers,
            volumes: Vec::new(),
        });
    }
    let fs = |path: &std::path::Path| machine::fs_stats(path).unwrap_or_default();
    Snapshot {
        time: Timestamp::now(),
        node_name: context.node_name().to_owned(),
        boot_time: cgroup::boot_time(),
        node: cgroup::node(read("/")),
        memory_capacity_bytes: machine::meminfo("MemTotal").unwrap_or(0),
        interfaces: network::interfaces(),
        all_pods: read(&manager.kubepods()),
        kubelet: cgroup::own_process(),
        root_fs: fs(context.paths().root()),
        image_device: image_fs
            .as_ref()
            .map(|usage| machine::device_of(&usage.mountpoint))
            .unwrap_or_default(),
        classes: manager
            .classes()
            .into_iter()
            .filter_map(|name| Some((read(&name)?, name)))
            .map(|(usage, name)| (name, usage))
            .collect(),
        image_fs: image_fs.map(|usage| {
            let stats = fs(&usage.mountpoint);
            (usage, stats)
        }),
        processes: cgroup::processes(),
        pods,
    }
}

/// Bytes on the disk; a file that is not there has none.
fn allocated(file: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::symlink_metadata(file).map_or(0, |meta| meta.blocks() * 512)
}

/// Bytes and files of a flat directory.
fn size_of(directory: &std::path::Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = std::fs::read_dir(directory) else {
        return (0, 0);
    };
    entries
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .fold((0, 0), |(bytes, inodes), meta| {
            (bytes + meta.blocks() * 512, inodes + 1)
        })
}

/// `/stats/summary`, with `?only_cpu_and_memory=true` the short form.
pub(super) async fn summary(
    State(server): State<Server>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<Summary>, ApiError> {
    let short = query
        .get("only_cpu_and_memory")
        .is_some_and(|value| value == "true");
    let snapshot = server.stats.snapshot(!short).await?;
    let first = Summary::new(&snapshot, &server.stats, short);
    if first.knows_rates() {
        return Ok(Json(first));
    }
    // Nobody asked before: a rate needs two looks, and whoever asks once wants it, too. Upstream's housekeeping
    // looks all the time.
    tokio::time::sleep(rate::MIN_INTERVAL).await;
    let snapshot = server.stats.snapshot(!short).await?;
    Ok(Json(Summary::new(&snapshot, &server.stats, short)))
}
