//! Drivers of volumes and plugins of devices.
//!
//! Owns: who is told that one came.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::informer::{Factory, InformerOptions};
use csi::NodeInfo;
use csi::registration::{DEVICE_PLUGIN, Handler, HandlerError, PluginHandler, Registrations};
use k8s_openapi::api::storage::v1::CSIDriver;
use tokio::sync::Notify;

use super::AppError;
use super::assemble::Parts;
use super::clients::ApiClients;
use crate::csi_node::NodeInfoManager;
use crate::device_plugins::Registry;
use crate::dynamic_resources::DriverRegistry;

/// Upstream: `defaultReconcilePeriod`.
const RECONCILE_PERIOD: Duration = Duration::from_secs(60);

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
        let drivers = self.drivers.clone();
        let registrations =
            Registrations::new(registry, drivers, manager.clone(), self.plugin_handlers());
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
                kubelet.claims.manager.wipe_at_start();
                manager
                    .initialize(kubelet.storage_error.clone(), &changed)
                    .await;
                registrations.run().await;
            };
            // `None`: the kubelet ends; drivers stay registered.
            let _ = shutdown.run_until(work).await;
        });
    }

    /// Without an API server a driver of volumes cannot be told of; plugins of devices need none.
    pub(super) fn start_plugins_alone(&self) {
        let registry = self.kubelet.paths.plugins_registry();
        let drivers = self.drivers.clone();
        let nobody = Arc::new(NoApi);
        let registrations = Registrations::new(registry, drivers, nobody, self.plugin_handlers());
        let shutdown = self.shutdown.clone();
        self.essential("plugins", async move {
            let _ = shutdown.run_until(registrations.run()).await;
        });
    }

    fn plugin_handlers(&self) -> [(&'static str, Arc<dyn PluginHandler>); 2] {
        let devices = Arc::new(Registry(self.kubelet.devices.clone()));
        let claims = Arc::new(DriverRegistry(self.kubelet.claims.manager.clone()));
        [(DEVICE_PLUGIN, devices), (dra::DRIVER_PLUGIN, claims)]
    }

    /// Claims of pods that are gone are let go of, again and again.
    pub(super) fn start_claims(&self) {
        let (kubelet, shutdown) = (self.kubelet.clone(), self.shutdown.clone());
        self.essential("claims of pods", async move {
            let work = async {
                loop {
                    kubelet.clock.sleep(RECONCILE_PERIOD).await;
                    kubelet.reconcile_claims().await;
                }
            };
            let _ = shutdown.run_until(work).await;
        });
    }

    /// Plugins of devices register from here on.
    pub(super) async fn start_device_plugins(&self) -> Result<(), AppError> {
        let ending = self.shutdown.token().clone().cancelled_owned();
        let serving = devices::serve(self.kubelet.devices.clone(), ending).await?;
        self.essential("registration of device plugins", async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "Error while serving device plugin registration grpc server");
            }
        });
        Ok(())
    }
}

struct NoApi;

#[async_trait]
impl Handler for NoApi {
    async fn install(&self, _: &str, _: &NodeInfo) -> Result<(), HandlerError> {
        Err("drivers of volumes need an API server, and this kubelet runs without one".into())
    }

    async fn uninstall(&self, _: &str) -> Result<(), HandlerError> {
        Ok(())
    }
}
