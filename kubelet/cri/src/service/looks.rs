//! Lists and usage, for the answers that are whole and those that are streamed.

use std::collections::HashMap;

use cri_spec::v1;
use runtime::{ContainerStats, ContainerStatus};
use tonic::Status;

use super::CriService;
use crate::error::status;
use crate::to_cri::FsFacts;
use crate::{filter, to_cri};

impl CriService {
    pub(super) async fn sandboxes(
        &self,
        wanted: Option<&v1::PodSandboxFilter>,
    ) -> Result<Vec<v1::PodSandbox>, Status> {
        let all = self.runtime().list_pod_sandboxes().await.map_err(status)?;
        let mut items: Vec<_> = all
            .iter()
            .map(to_cri::sandbox)
            .filter(|item| filter::sandbox(wanted, item))
            .collect();
        items.sort_by(|a, b| (b.created_at, &a.id).cmp(&(a.created_at, &b.id)));
        Ok(items)
    }

    pub(super) async fn containers(
        &self,
        wanted: Option<&v1::ContainerFilter>,
    ) -> Result<Vec<v1::Container>, Status> {
        let all = self.runtime().list_containers().await.map_err(status)?;
        let mut items: Vec<_> = all
            .iter()
            .map(to_cri::container)
            .filter(|item| filter::container(wanted, item))
            .collect();
        items.sort_by(|a, b| (b.created_at, &a.id).cmp(&(a.created_at, &b.id)));
        Ok(items)
    }

    /// Of running containers: others use nothing.
    pub(super) async fn stats(
        &self,
        wanted: Option<&v1::ContainerStatsFilter>,
    ) -> Result<Vec<v1::ContainerStats>, Status> {
        let all = self.runtime().list_containers().await.map_err(status)?;
        let stats = self
            .runtime()
            .list_container_stats()
            .await
            .map_err(status)?;
        let by_id: HashMap<&str, &ContainerStatus> =
            all.iter().map(|c| (c.id.as_str(), c)).collect();
        self.rates().retain(|id| by_id.contains_key(id));
        let items = stats
            .iter()
            .filter_map(|stats| Some((*by_id.get(stats.id.as_str())?, stats)))
            .filter(|(of, _)| filter::container_stats(wanted, &of.id, &of.sandbox_id, &of.labels))
            .map(|(of, stats)| self.measured(of, stats))
            .collect();
        Ok(items)
    }

    /// The usage of one container, with its rate since it was last asked for: whoever is asked for once is looked at once.
    fn measured(&self, status: &ContainerStatus, stats: &ContainerStats) -> v1::ContainerStats {
        let time = to_cri::nanoseconds(stats.timestamp);
        let used = stats.cpu_usage_core_nanoseconds;
        let mountpoint = self.inner.options.root_dir.display().to_string();
        let nano_cores = self.rates().observe(&stats.id, time, used);
        to_cri::container_stats(&to_cri::StatsOf {
            status,
            stats,
            nano_cores,
            mountpoint: &mountpoint,
        })
    }

    /// Of ready sandboxes.
    pub(super) async fn sandbox_stats(
        &self,
        wanted: Option<&v1::PodSandboxStatsFilter>,
    ) -> Result<Vec<v1::PodSandboxStats>, Status> {
        let sandboxes = self.runtime().list_pod_sandboxes().await.map_err(status)?;
        let containers = self.runtime().list_containers().await.map_err(status)?;
        let all = self
            .runtime()
            .list_pod_sandbox_stats()
            .await
            .map_err(status)?;
        let by_id: HashMap<&str, &ContainerStatus> =
            containers.iter().map(|c| (c.id.as_str(), c)).collect();
        self.rates().retain(|id| by_id.contains_key(id));
        let now = to_cri::nanoseconds(jiff::Timestamp::now());
        let mut items = Vec::new();
        for stats in &all {
            let Some(sandbox) = sandboxes.iter().find(|sandbox| sandbox.id == stats.id) else {
                continue;
            };
            if !filter::sandbox_stats(wanted, &sandbox.id, &sandbox.labels) {
                continue;
            }
            let containers = stats
                .containers
                .iter()
                .filter_map(|stats| Some(self.measured(by_id.get(stats.id.as_str())?, stats)))
                .collect();
            items.push(to_cri::sandbox_stats(sandbox, stats, containers, now));
        }
        Ok(items)
    }

    pub(super) async fn sandbox_metrics(&self) -> Result<Vec<v1::PodSandboxMetrics>, Status> {
        let sandboxes = self.runtime().list_pod_sandboxes().await.map_err(status)?;
        let containers = self.runtime().list_containers().await.map_err(status)?;
        let all = self
            .runtime()
            .list_pod_sandbox_stats()
            .await
            .map_err(status)?;
        let details = self
            .runtime()
            .list_container_details()
            .await
            .map_err(status)?;
        let by_id: HashMap<&str, &ContainerStatus> =
            containers.iter().map(|c| (c.id.as_str(), c)).collect();
        let of = |id: &str| Some((*by_id.get(id)?, details.get(id)?));
        let fs = self.fs_facts();
        let now = to_cri::nanoseconds(jiff::Timestamp::now());
        Ok(all
            .iter()
            .filter_map(|stats| {
                let sandbox = sandboxes.iter().find(|sandbox| sandbox.id == stats.id)?;
                Some(to_cri::sandbox_metrics(sandbox, stats, of, fs, now))
            })
            .collect())
    }

    /// Of the file system of writable layers; nothing if it cannot be asked.
    fn fs_facts(&self) -> FsFacts {
        let root = &self.inner.options.root_dir;
        match rustix::fs::statvfs(root) {
            Ok(fs) => FsFacts {
                capacity_bytes: fs.f_blocks * fs.f_frsize,
                inodes: fs.f_files,
                inodes_free: fs.f_favail,
            },
            Err(error) => {
                tracing::warn!(path = %root.display(), %error, "cannot look at a file system");
                FsFacts::default()
            }
        }
    }
}
