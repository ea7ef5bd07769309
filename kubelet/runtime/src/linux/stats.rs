//! Usage of containers and sandboxes, from cgroups, network namespaces and writable layers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::session::in_namespace;
use super::{Inner, blocking};
use crate::api::*;
use crate::detail::{self, Detail};

/// How old a count of a writable layer may be. Source: containerd's snapshot sync period.
const LAYER_PERIOD: Duration = Duration::from_secs(10);
/// Counting takes one part in so many of the time.
const LAYER_REST: u32 = 20;

#[derive(Clone, Copy, Debug)]
pub struct LayerUsage {
    counted_at: Instant,
    /// How long the count took: one of millions of files stands the longer.
    took: Duration,
    bytes: u64,
    inodes: u64,
}

impl Inner {
    pub(super) fn forget_layer(&self, id: &str) {
        self.layer_usage
            .lock()
            .expect("no holder panics")
            .remove(id);
    }

    fn layer(&self, id: &str) -> LayerUsage {
        let known = self
            .layer_usage
            .lock()
            .expect("no holder panics")
            .get(id)
            .copied();
        if let Some(known) = known
            .filter(|known| known.counted_at.elapsed() < LAYER_PERIOD.max(known.took * LAYER_REST))
        {
            return known;
        }
        let begin = Instant::now();
        // A container without a layer of its own uses nothing.
        let counted =
            host::disk_usage(&self.layout.container(id).join("upper")).unwrap_or_default();
        let usage = LayerUsage {
            counted_at: Instant::now(),
            took: begin.elapsed(),
            bytes: counted.bytes,
            inodes: counted.inodes,
        };
        self.layer_usage
            .lock()
            .expect("no holder panics")
            .insert(id.to_owned(), usage);
        usage
    }

    fn container_stats(&self, id: &str) -> Option<ContainerStats> {
        let container = self.container(id).ok()?;
        container.pid()?;
        let record = container.record().clone();
        // One that ended meanwhile has no usage.
        let usage = self.cgroups.usage(&record.cgroup_path).ok()?;
        let layer = self.layer(id);
        Some(ContainerStats {
            id: id.to_owned(),
            sandbox_id: record.sandbox_id,
            name: record.config.metadata.name,
            timestamp: jiff::Timestamp::now(),
            cpu_usage_core_nanoseconds: usage.cpu_nanoseconds,
            memory_usage_bytes: usage.memory_bytes,
            memory_working_set_bytes: usage.memory_working_set_bytes,
            memory_rss_bytes: usage.memory_rss_bytes,
            page_faults: usage.page_faults,
            major_page_faults: usage.major_page_faults,
            writable_layer_used_bytes: layer.bytes,
            writable_layer_inodes_used: layer.inodes,
        })
    }
}

pub async fn containers(inner: &Arc<Inner>) -> Result<Vec<ContainerStats>, RuntimeError> {
    let ids: Vec<String> = inner.containers().keys().cloned().collect();
    let worker = inner.clone();
    blocking(move || {
        Ok(ids
            .iter()
            .filter_map(|id| worker.container_stats(id))
            .collect())
    })
    .await
}

pub async fn details(inner: &Arc<Inner>) -> Result<BTreeMap<String, Detail>, RuntimeError> {
    let running: Vec<_> = inner
        .containers()
        .values()
        .filter(|container| container.pid().is_some())
        .map(|container| {
            let record = container.record();
            (record.id.clone(), record.cgroup_path.clone())
        })
        .collect();
    let worker = inner.clone();
    blocking(move || {
        Ok(running
            .into_iter()
            .map(|(id, path)| (id, detail::read(&worker.cgroups.directories(&path))))
            .collect())
    })
    .await
}

pub async fn sandboxes(inner: &Arc<Inner>) -> Result<Vec<PodSandboxStats>, RuntimeError> {
    let all = containers(inner).await?;
    let worker = inner.clone();
    blocking(move || {
        let ready: Vec<_> = worker
            .sandboxes()
            .values()
            .map(|sandbox| sandbox.status())
            .filter(|status| status.state == SandboxState::Ready)
            .collect();
        Ok(ready
            .into_iter()
            .map(|status| {
                let containers: Vec<_> = all
                    .iter()
                    .filter(|stats| stats.sandbox_id == status.id)
                    .cloned()
                    .collect();
                let process_count = worker
                    .containers_of(&status.id)
                    .iter()
                    .filter_map(|container| {
                        let path = container.record().cgroup_path.clone();
                        worker
                            .cgroups
                            .usage(&path)
                            .ok()
                            .map(|usage| usage.processes)
                    })
                    .sum();
                let mut stats = PodSandboxStats {
                    id: status.id.clone(),
                    process_count,
                    containers,
                    ..PodSandboxStats::default()
                };
                if status.namespaces.network != NamespaceMode::Node {
                    let namespace = worker.layout.namespaces(&status.id).join("net");
                    let table = in_namespace(Some(namespace), || {
                        std::fs::read_to_string("/proc/thread-self/net/dev")
                    });
                    stats.interfaces = InterfaceStats::parse(&table.unwrap_or_default());
                }
                stats
            })
            .collect())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_leave_lo_out() {
        let table = "Inter-|   Receive  |  Transmit\n face |bytes packets errs\n    lo: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n  eth0: 100 2 3 4 0 0 0 0 200 5 6 7 0 0 0 0\n";
        let expect = InterfaceStats {
            name: "eth0".into(),
            rx_bytes: 100,
            rx_packets: 2,
            rx_errors: 3,
            rx_dropped: 4,
            tx_bytes: 200,
            tx_packets: 5,
            tx_errors: 6,
            tx_dropped: 7,
        };
        assert_eq!(InterfaceStats::parse(table), [expect]);
    }
}
