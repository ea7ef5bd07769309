//! ClusterTrustBundles, watched as a whole from the first pod that wants one on: few clusters' pods do, and an older API
//! server has none. Upstream: `LazyInformerManager` of pkg/kubelet/clustertrustbundle, v1.37.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use component_base::informer::{Informer, InformerOptions};
use component_base::shutdown::Shutdown;
use component_base::tasks::spawn_vital;
use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use volumes::SourceError;

use crate::pending::Pending;
use crate::pod;

/// How long a first reader waits for the list. Upstream: `ensureManagerSet`.
const SYNC_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct TrustBundles {
    client: kube::Client,
    shutdown: Shutdown,
    /// The pods whose objects changed.
    changes: Arc<Pending<String>>,
    /// Pods that want some.
    pods: Arc<Mutex<HashSet<String>>>,
    informer: OnceLock<Informer<ClusterTrustBundle>>,
}

impl TrustBundles {
    pub fn new(client: kube::Client, changes: Arc<Pending<String>>, shutdown: &Shutdown) -> Self {
        Self {
            client,
            shutdown: shutdown.clone(),
            changes,
            pods: Arc::default(),
            informer: OnceLock::new(),
        }
    }

    /// Tells the pod of changes, if it wants trust bundles.
    pub fn register(&self, pod: &Pod) {
        if wants(pod) {
            self.pods().insert(pod::uid(pod).to_owned());
            self.informer();
        }
    }

    pub fn unregister(&self, pod_uid: &str) {
        self.pods().remove(pod_uid);
    }

    fn pods(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.pods.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn informer(&self) -> &Informer<ClusterTrustBundle> {
        self.informer.get_or_init(|| {
            let api: Api<ClusterTrustBundle> = Api::all(self.client.clone());
            let informer = Informer::start(api, &InformerOptions::default(), &self.shutdown);
            let mut events = informer.subscribe();
            let (pods, changes) = (self.pods.clone(), self.changes.clone());
            // Ends with the informer.
            spawn_vital("changes of trust bundles", async move {
                while events.recv().await.is_some() {
                    let pods = pods.lock().unwrap_or_else(|e| e.into_inner()).clone();
                    pods.into_iter().for_each(|uid| changes.add(uid));
                }
            });
            informer
        })
    }

    async fn synced(&self) -> Result<&Informer<ClusterTrustBundle>, SourceError> {
        let informer = self.informer();
        let wait = tokio::time::timeout(SYNC_TIMEOUT, informer.wait_for_sync());
        if !informer.has_synced() && !wait.await.unwrap_or(false) {
            return Err(SourceError::NotSynced {
                resource: "clustertrustbundle",
            });
        }
        Ok(informer)
    }

    pub async fn get(&self, name: &str) -> Result<Option<Arc<ClusterTrustBundle>>, SourceError> {
        Ok(self.synced().await?.get("", name))
    }

    pub async fn of_signer(
        &self,
        signer: &str,
    ) -> Result<Vec<Arc<ClusterTrustBundle>>, SourceError> {
        let mut bundles = self.synced().await?.list();
        bundles.retain(|bundle| bundle.spec.signer_name.as_deref() == Some(signer));
        Ok(bundles)
    }
}

fn wants(pod: &Pod) -> bool {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let mut sources = volumes
        .flat_map(|v| &v.projected)
        .flat_map(|p| p.sources.iter().flatten());
    sources.any(|source| source.cluster_trust_bundle.is_some())
}
