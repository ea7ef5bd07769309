//! Drivers of volumes.
//!
//! Owns: who is told that one came.

use std::sync::Arc;

use component_base::informer::{Factory, InformerOptions};
use csi::registration::Registrations;
use k8s_openapi::api::storage::v1::CSIDriver;
use tokio::sync::Notify;

use super::assemble::Parts;
use super::clients::ApiClients;
use crate::csi_node::NodeInfoManager;

impl Parts {
    /// Drivers of volumes: what they say of the node is written down, and pods that wait for one are told that it came.
    pub(super) fn start_drivers(
        &self,
        clients: &ApiClients,
        factory: &Factory,
        changed: &Arc<Notify>,
    ) {
        let kubelet = self.kubelet.clone();
        let came = {
            let kubelet = kubelet.clone();
            move || {
                for pod in kubelet.pods.pods() {
                    if crate::pod::may_need_driver(&pod) {
                        kubelet.workers.wake(crate::pod::uid(&pod));
                    }
                }
            }
        };
        let name = self.options.node_name.clone();
        let manager = Arc::new(NodeInfoManager::new(clients.main.clone(), name, came));
        let registry = kubelet.paths.plugins_registry();
        let registrations = Registrations::new(registry, self.drivers.clone(), manager.clone());
        let limits = manager.clone().follow_limits(
            self.drivers.clone(),
            factory.informer::<CSIDriver>(InformerOptions::default()),
            kubelet.exhausted_drivers.clone(),
            self.shutdown.token().clone(),
        );
        self.essential("limits of CSI drivers", limits);
        let (shutdown, changed) = (self.shutdown.clone(), changed.clone());
        self.essential("CSI drivers", async move {
            let work = async {
                kubelet.node.until_read().await;
                manager
                    .initialize(kubelet.storage_error.clone(), &changed)
                    .await;
                registrations.run().await;
            };
            // `None`: the kubelet ends; drivers stay registered.
            let _ = shutdown.run_until(work).await;
        });
    }
}
