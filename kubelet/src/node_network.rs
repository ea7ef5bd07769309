//! Feeds the pod network: this node's pod CIDRs, and the other nodes'.
//!
//! Owns: two watches on Nodes (its own, and all) and what follows from them, and a look at the kernel now and then.
//! Upstream's kubelet leaves this to a CNI plugin's daemon; here it is part of the node.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use component_base::informer::{Factory, InformerOptions};
use component_helpers::node::{addresses, pod_cidrs};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::ListParams;
use network::{Peer, PodNetwork};
use runtime::api::Runtime;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::node::NodeState;

/// How often a node without the right to see the others asks again.
const PERMISSION_RETRY: Duration = Duration::from_secs(5);
/// When the node's network or its routes could not be set.
const NETWORK_RETRY: Duration = Duration::from_secs(2);
/// How often the node's own part is looked at, though nothing is known to have changed. Upstream: Monitor in
/// pkg/kubelet/kubelet_network_linux.go.
const RESYNC_PERIOD: Duration = Duration::from_secs(60);

/// Keeps the node's own object at hand and tells the runtime its pod CIDRs. `registers`: the kubelet makes the object itself.
pub async fn watch_own_node(
    factory: Factory,
    node: Arc<NodeState>,
    registers: bool,
    runtime: Arc<dyn Runtime>,
    nudge: Arc<Notify>,
    shutdown: CancellationToken,
) {
    let options = InformerOptions::default().fields(format!("metadata.name={}", node.name));
    let informer = factory.informer::<Node>(options);
    let mut events = informer.subscribe();
    if !registers {
        // A node that nobody made is none to wait for.
        let synced = tokio::select! {
            () = shutdown.cancelled() => return,
            synced = informer.wait_for_sync() => synced,
        };
        if synced && informer.is_empty() {
            node.set_read();
        }
    }
    let mut told: Option<Vec<String>> = None;
    let mut cidrs: Vec<String> = Vec::new();
    loop {
        let failed = !cidrs.is_empty() && told.as_ref() != Some(&cidrs);
        tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.recv() => {
                let Some(event) = event else { return };
                if matches!(event, component_base::informer::InformerEvent::Deleted(_)) {
                    continue;
                }
                let object = event.object().clone();
                cidrs = pod_cidrs(&object).into_iter().map(str::to_owned).collect();
                node.set_node(object);
            }
            () = tokio::time::sleep(NETWORK_RETRY), if failed => {}
        }
        if cidrs.is_empty() || told.as_ref() == Some(&cidrs) {
            continue;
        }
        match runtime.update_pod_cidrs(cidrs.clone()).await {
            Ok(()) => {
                tracing::info!(?cidrs, "updated pod CIDRs");
                told = Some(cidrs.clone());
                // The network may have become ready.
                nudge.notify_one();
            }
            Err(error) => tracing::error!(%error, ?cidrs, "failed to update pod CIDRs"),
        }
    }
}

/// What the network needs to know of another node; `None` while it has no address or no CIDR.
fn peer(node: &Node, own: &str) -> Option<Peer> {
    let name = node.metadata.name.clone()?;
    if name == own {
        return None;
    }
    let pod_cidrs: Vec<_> = pod_cidrs(node)
        .into_iter()
        .filter_map(|c| c.parse().ok())
        .collect();
    let internal_ip: IpAddr = addresses(node, "InternalIP").find_map(|a| a.parse().ok())?;
    let created = node.metadata.creation_timestamp.as_ref();
    (!pod_cidrs.is_empty()).then_some(Peer {
        node: name,
        created_unix_s: created.map_or(i64::MAX, |time| time.0.as_second()),
        internal_ip,
        pod_cidrs,
    })
}

/// The node authorizer lets a node read no Node but its own; a role must be granted for the others. Asks now and then
/// rather than watch in vain.
async fn wait_until_allowed(client: &kube::Client) {
    let api: Api<Node> = Api::all(client.clone());
    let mut told = false;
    loop {
        match api.list(&ListParams::default().limit(1)).await {
            Err(kube::Error::Api(status)) if status.code == 403 => {
                if !told {
                    told = true;
                    tracing::warn!(
                        reason = status.message,
                        "no routes to other nodes' pods: grant group system:nodes get, list and watch of nodes (ClusterRole gantry:pod-network)"
                    );
                }
            }
            Ok(_) => return,
            // An API server that is not up yet says nothing of the right.
            Err(error) => tracing::debug!(%error, "cannot ask for the other nodes yet"),
        }
        tokio::time::sleep(PERMISSION_RETRY).await;
    }
}

/// Keeps the routes to the other nodes' pods. A change that comes while routes are set waits for the next turn.
pub async fn watch_peers(
    factory: Factory,
    own: String,
    network: PodNetwork,
    shutdown: CancellationToken,
) {
    tokio::select! {
        () = shutdown.cancelled() => return,
        () = wait_until_allowed(factory.client()) => {}
    }
    let informer = factory.informer::<Node>(InformerOptions::default());
    let mut events = informer.subscribe();
    if !informer.wait_for_sync().await {
        return;
    }
    let mut told: Option<Vec<Peer>> = None;
    loop {
        // Everything that is queued makes one change.
        while events.try_recv().is_some() {}
        let mut peers: Vec<Peer> = informer
            .list()
            .iter()
            .filter_map(|n| peer(n, &own))
            .collect();
        peers.sort_by(|a, b| a.node.cmp(&b.node));
        if told.as_ref() != Some(&peers) {
            match network.set_peers(peers.clone()).await {
                Ok(()) => told = Some(peers.clone()),
                Err(error) => tracing::error!(%error, "failed to set the routes to other nodes"),
            }
        }
        let failed = told.as_ref() != Some(&peers);
        tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.recv() => if event.is_none() { return },
            () = tokio::time::sleep(NETWORK_RETRY), if failed => {}
        }
    }
}

/// Mends what others take away of the node's own part: without it pods reach nobody outside, and nobody tells.
pub async fn keep_network(network: PodNetwork, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(RESYNC_PERIOD) => {}
        }
        if let Err(error) = network.resync().await {
            tracing::error!(%error, "failed to mend the node's part of the pod network");
        }
    }
}
