//! What the HTTP server asks its kubelet.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use runtime::api::Runtime;

use super::Kubelet;
use crate::cm::ContainerManager;
use crate::paths::Paths;
use crate::pod;
use crate::server::{DriverUsages, ServerContext};

/// The sync loop turns at least at every housekeeping; upstream tolerates twice its period.
const LOOP_IS_STUCK_AFTER: Duration = Duration::from_secs(120);

impl Kubelet {
    fn with_newest_status(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        match self.status.get_pod_status(pod::uid(pod)) {
            Some(status) => {
                let mut pod = (**pod).clone();
                pod.status = Some(status);
                Arc::new(pod)
            }
            None => pod.clone(),
        }
    }
}

impl ServerContext for Kubelet {
    fn node_name(&self) -> &str {
        &self.node.name
    }

    fn runtime(&self) -> &Arc<dyn Runtime> {
        self.runtime.runtime()
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods
            .pods()
            .iter()
            .map(|p| self.with_newest_status(p))
            .collect()
    }

    fn pod_by_name(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods
            .get_pod_by_name(namespace, name)
            .map(|p| self.with_newest_status(&p))
    }

    fn sync_loop_health(&self) -> Result<(), String> {
        let turned = **self.loop_turned.load();
        let since = turned.map(|at| self.clock.monotonic().saturating_sub(at));
        match since.filter(|since| *since > LOOP_IS_STUCK_AFTER) {
            Some(since) => Err(format!("sync Loop took longer than expected: {since:?}")),
            None => Ok(()),
        }
    }

    fn configz(&self) -> serde_json::Value {
        serde_json::to_value(self.config.as_ref()).unwrap_or_default()
    }

    fn paths(&self) -> &Paths {
        &self.paths
    }

    fn container_manager(&self) -> &ContainerManager {
        &self.container_manager
    }

    fn claim_directory(&self, pod_uid: &str, volume: &str) -> Option<PathBuf> {
        self.volumes.claim_directory(pod_uid, volume)
    }

    fn driver_usages(&self) -> BoxFuture<'_, DriverUsages> {
        Box::pin(async move {
            let pods = self.pods.pods();
            let pods = pods.iter().filter(|pod| pod::may_need_driver(pod));
            let usages = futures::future::join_all(pods.map(|pod| async move {
                let uid = pod::uid(pod);
                (uid, self.volumes.driver_usage(uid).await)
            }));
            let usages = usages.await.into_iter();
            usages
                .flat_map(|(uid, of_pod)| {
                    of_pod
                        .into_iter()
                        .map(move |(volume, usage)| ((uid.to_owned(), volume), usage))
                })
                .collect()
        })
    }
}
