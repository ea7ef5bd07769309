//! Starts an assembled kubelet, in order, and runs its loop.
//!
//! Owns: the order of the start, and which tasks a kubelet cannot do without.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use component_base::informer::{Factory, InformerOptions};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::Notify;

use super::assemble::Parts;
use super::clients::ApiClients;
use super::{AppError, servers, start_anew};
use crate::config::http::UrlSource;
use crate::config::{Source, apiserver, file};
use crate::events::{Type, reason};
use crate::node_status::{lease, report};
use crate::sync_loop::SyncLoop;
use crate::{certificate, container_log, eviction, node_network, node_shutdown, pleg};

/// Pauses between two questions of what runs, the first and the longest.
const LIST_RETRY: Duration = Duration::from_millis(100);
const MOST_LIST_RETRY: Duration = Duration::from_secs(7);

impl Parts {
    /// Whatever the kubelet cannot do its work without.
    pub(super) fn essential(&self, name: &str, task: impl Future<Output = ()> + Send + 'static) {
        self.shutdown.spawn_essential(name, task);
    }

    /// Until shutdown.
    pub(super) async fn run(self) -> Result<(), AppError> {
        let token = self.shutdown.token().clone();
        let kubelet = self.kubelet.clone();
        servers::start(&self).await?;
        let renewed = self.start_rotation();

        let (changed, nudge) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        // Subscribed before anything is asked: no exit falls between.
        let events = self.runtime.events();
        let watching = report::watch_runtime(
            kubelet.clone(),
            self.runtime.clone(),
            changed.clone(),
            nudge.clone(),
            token.clone(),
        );
        self.essential("runtime status", watching);
        let pleg = pleg::run(
            kubelet.runtime.clone(),
            events,
            self.pleg_events.clone(),
            token.clone(),
        );
        self.essential("pod lifecycle events", pleg);
        let status = kubelet.status.clone();
        self.essential(
            "pod status",
            status.run(kubelet.workers.clone(), token.clone()),
        );
        let (runtime, paths) = (self.runtime.clone(), kubelet.paths.clone());
        let logs = container_log::run(runtime, paths, self.config.clone(), token.clone());
        self.essential("container logs", logs);
        self.essential("image garbage", kubelet.image_gc.clone().run(token.clone()));
        let allocation = kubelet.allocation.clone();
        let root = kubelet.paths.root().to_path_buf();
        self.essential("resize allocation", allocation.run(root, token.clone()));
        let eviction = eviction::manager::run(
            self.observer.clone(),
            kubelet.clone(),
            changed.clone(),
            token.clone(),
        );
        self.essential("eviction", eviction);
        if kubelet.managers.has_cpu_policy() {
            let period = self.config.cpu_manager_reconcile_period.0;
            let reconcile = kubelet.clone().reconcile_cpus(period, token.clone());
            self.essential("CPUs of containers", reconcile);
        }
        if let (Some(clients), Some(factory)) = (&self.clients, &self.factory) {
            self.start_node(clients, factory, &changed, &nudge);
        } else {
            self.start_plugins_alone();
        }
        kubelet
            .recorder
            .node(Type::Normal, reason::STARTING, "Starting kubelet.");
        kubelet.container_manager.tell(&kubelet.recorder);

        if let Some(adopted) = self.adopted().await {
            tracing::info!(pods = adopted.len(), "adopted running pods");
            self.start_device_plugins().await?;
            self.start_claims();
            let sources = self.start_sources()?;
            self.start_node_shutdown(&changed);
            SyncLoop::new(kubelet, sources, adopted)
                .run(self.channels, token)
                .await;
        }
        if renewed.load(Ordering::Relaxed) {
            return Err(start_anew());
        }
        tracing::info!("kubelet ends; its pods run on");
        Ok(())
    }

    /// UIDs of the pods that run, asked for until the runtime answers: a pod of which it is not known that it runs would be admitted
    /// anew, and could be rejected. `None`: the kubelet ends.
    async fn adopted(&self) -> Option<BTreeSet<String>> {
        let mut pause = LIST_RETRY;
        loop {
            match self.kubelet.runtime.pods().await {
                Ok(pods) => {
                    let live = pods.into_iter().filter(|(_, p)| p.has_live_container());
                    return Some(live.map(|(uid, _)| uid).collect());
                }
                Err(error) => {
                    tracing::error!(%error, retry_in = ?pause, "cannot list what runs on this node")
                }
            }
            tokio::select! {
                () = self.shutdown.token().cancelled() => return None,
                () = self.kubelet.clock.sleep(pause) => {}
            }
            pause = (pause * 2).min(MOST_LIST_RETRY);
        }
    }

    fn start_node_shutdown(&self, changed: &Arc<Notify>) {
        if let Some(plan) = self.node_shutdown.clone() {
            let (logind, kubelet) = (self.logind.clone(), self.kubelet.clone());
            let token = self.shutdown.token().clone();
            let manager =
                node_shutdown::manager::run(plan, logind, kubelet, changed.clone(), token);
            self.essential("node shutdown", manager);
        }
    }

    /// DIFFERS: upstream closes its connections and goes on with the new certificate; here the program replaces itself
    /// (same process id), which costs the pods nothing.
    fn start_rotation(&self) -> Arc<AtomicBool> {
        let renewed = Arc::new(AtomicBool::new(false));
        if let (true, Some(client), Some(kubeconfig)) = (
            self.config.rotate_certificates,
            self.client.clone(),
            self.options.kubeconfig.clone(),
        ) {
            let (options, shutdown, flag) =
                (self.options.clone(), self.shutdown.clone(), renewed.clone());
            let ends = shutdown.clone();
            ends.spawn_guarded("client certificate", async move {
                let (dir, node) = (&options.cert_dir, &options.node_name);
                if certificate::rotate_client_cert(&client, &kubeconfig, dir, node, &shutdown).await
                {
                    flag.store(true, Ordering::Relaxed);
                    shutdown.trigger();
                }
            });
        }
        renewed
    }

    fn start_sources(&self) -> Result<BTreeSet<Source>, AppError> {
        let token = self.shutdown.token().clone();
        let mut sources = BTreeSet::new();
        if let Some(factory) = &self.factory {
            sources.insert(Source::Api);
            let options = InformerOptions::default()
                .fields(format!("spec.nodeName={}", self.options.node_name));
            let informer = factory.informer::<Pod>(options);
            let source = apiserver::run(informer, self.config_updates.clone(), token.clone());
            self.essential("pods of the API server", source);
        }
        if !self.config.static_pod_path.is_empty() {
            sources.insert(Source::File);
            let path = PathBuf::from(&self.config.static_pod_path);
            let source = file::run(
                path,
                self.options.node_name.clone(),
                self.config.file_check_frequency.0,
                self.config_updates.clone(),
                token.clone(),
            );
            self.essential("pods of files", source);
        }
        let (config, node_name) = (&self.config, &self.options.node_name);
        if !config.static_pod_url.is_empty() {
            sources.insert(Source::Http);
            let (url, period) = (&config.static_pod_url, config.http_check_frequency.0);
            let source = UrlSource::new(url, &config.static_pod_url_header, period, node_name)?;
            tracing::info!(url, "Adding pod URL");
            let source = source.run(self.config_updates.clone(), token);
            self.essential("pods of a URL", source);
        }
        Ok(sources)
    }

    fn start_node(
        &self,
        clients: &ApiClients,
        factory: &Factory,
        changed: &Arc<Notify>,
        nudge: &Arc<Notify>,
    ) {
        let token = self.shutdown.token().clone();
        let (options, config, kubelet) = (&self.options, &self.config, &self.kubelet);
        let reporter = report::Reporter {
            kubelet: kubelet.clone(),
            runtime: self.runtime.clone(),
            client: clients.main.clone(),
            heartbeat: clients.heartbeat.clone(),
            config: config.clone(),
            registration: self.registration.clone(),
            addresses: self.addresses.clone(),
            recorder: kubelet.recorder.clone(),
            changed: changed.clone(),
        };
        self.essential("node status", reporter.run(token.clone()));
        let lease = lease::run(
            clients.heartbeat.clone(),
            kubelet.node.clone(),
            config.node_lease_duration_seconds,
            kubelet.clock.clone(),
            token.clone(),
        );
        self.essential("node lease", lease);
        let own_node = node_network::watch_own_node(
            factory.clone(),
            kubelet.node.clone(),
            config.register_node,
            self.runtime.clone(),
            nudge.clone(),
            token.clone(),
        );
        self.essential("own node", own_node);
        self.start_drivers(clients, factory, changed);
        if let Some(network) = self.network.clone() {
            let node_name = options.node_name.clone();
            let kept = node_network::keep_network(network.clone(), token.clone());
            self.essential("the node's part of the pod network", kept);
            let peers = node_network::watch_peers(factory.clone(), node_name, network, token);
            self.essential("routes to other nodes", peers);
        }
    }
}
