//! The shell: every `--route-reconciliation-period`, and when a Node's ranges or addresses change, the cloud's routes are made right.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloud_provider::{Cloud, CloudError, Routes};
use component_base::clock::Clock;
use component_base::events::EventType;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use component_base::metrics::make;
use controller_runtime::{Action, Executor, Watches};
use futures::{FutureExt as _, StreamExt as _};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use prometheus::IntCounterVec;
use tokio::sync::Notify;

use super::sync::{Missing, condition, matters, plan};
use crate::context::{Context, Running, StartError};

const NAME: &str = "node-route-controller";
/// Requests to the cloud at once. Upstream: `maxConcurrentRouteOperations`.
const AT_ONCE: usize = 200;
/// Changes of Nodes that come together are one.
const SETTLE: Duration = Duration::from_secs(1);

component_base::metrics! {
    pub(super) struct Metrics {
        syncs: IntCounterVec = make::counters(
            "route_controller_route_sync_total",
            "A metric counting the number of route reconciles with the cloud provider, labeled by the trigger (periodic or node_change) and the outcome (error if the reconcile failed, changed if at least one route was created or deleted, otherwise noop).",
            &["outcome", "trigger"],
        ),
    }
}

pub(super) struct NodeRoutes {
    pub(super) nodes: Informer<Node>,
    pub(super) cloud: Arc<dyn Cloud>,
    pub(super) cluster: String,
    pub(super) ranges: Vec<IpNet>,
    pub(super) executor: Executor,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
}

/// Builds the controller; with `--configure-cloud-routes=false`, or a cloud without routes, it has nothing to do.
///
/// # Errors
/// When no client can be had, or the ranges of the cluster are not right.
pub async fn start(context: Context) -> Result<Running, StartError> {
    if !context.options.configure_cloud_routes {
        return Ok(context.nothing_to_do(NAME, "--configure-cloud-routes is false"));
    }
    if context.cloud.routes().is_none() {
        let why = "--configure-cloud-routes is set, but cloud provider does not support routes";
        return Ok(context.nothing_to_do(NAME, why));
    }
    let ranges = context.options.cluster_cidrs.clone();
    if ranges.is_empty() {
        let message = "--cluster-cidr must be set with --configure-cloud-routes";
        return Err(StartError::Settings(message.to_owned()));
    }
    let executor = context
        .executor("route-controller", "route_controller")
        .await?;
    let controller = NodeRoutes {
        nodes: context.informers.informer(InformerOptions::default()),
        cloud: context.cloud.clone(),
        cluster: context.options.cluster_name.clone(),
        ranges,
        executor,
        clock: context.clock.clone(),
        metrics: Metrics::register(&context.metrics)?,
    };
    let changed = Arc::new(Notify::new());
    let mut watches = Watches::new(context.shutdown.clone());
    let notify = changed.clone();
    watches.on(&controller.nodes, move |event| {
        let same = matches!(&event, InformerEvent::Updated { old, new } if !matters(old, new));
        if !same {
            notify.notify_one();
        }
    });
    let (period, shutdown) = (
        context.options.route_reconciliation_period,
        context.shutdown,
    );
    Ok(async move {
        tracing::info!(controller = NAME, "Starting controller");
        if !watches.wait_for_sync().await {
            return;
        }
        let mut trigger = "periodic";
        loop {
            let round = async {
                controller.round(trigger).await;
                tokio::select! {
                    () = controller.clock.sleep(period) => "periodic",
                    () = changed.notified() => {
                        controller.clock.sleep(SETTLE).await;
                        "node_change"
                    }
                }
            };
            match shutdown.run_until(round).await {
                Some(next) => trigger = next,
                None => return,
            }
        }
    }
    .boxed())
}

impl NodeRoutes {
    pub(super) async fn round(&self, trigger: &str) {
        let outcome = match self.reconcile().await {
            Ok(true) => "changed",
            Ok(false) => "noop",
            Err(error) => {
                tracing::error!(%error, "Couldn't reconcile node routes: error listing routes");
                "error"
            }
        };
        self.metrics
            .syncs
            .with_label_values(&[outcome, trigger])
            .inc();
    }

    /// Makes all routes right; whether any was made or deleted. What fails is left to the next round.
    async fn reconcile(&self) -> Result<bool, CloudError> {
        let routes = self.cloud.routes().ok_or(CloudError::NotImplemented)?;
        let found = routes.list(&self.cluster).await?;
        let nodes = self.nodes.list();
        let plan = plan(&nodes, &found, &self.ranges);
        let (changed, failed) = (AtomicBool::new(false), Mutex::new(BTreeSet::new()));
        let (mark, fail) = (&changed, &failed);
        // What is in the way goes first: the same range cannot lead to two places.
        futures::stream::iter(plan.delete)
            .for_each_concurrent(AT_ONCE, |route| async move {
                match routes.delete(&self.cluster, &route).await {
                    Ok(()) => mark.store(true, Ordering::Relaxed),
                    Err(error) => {
                        tracing::error!(route = route.name, range = route.destination_cidr, %error, "Could not delete route");
                    }
                }
            })
            .await;
        futures::stream::iter(plan.create)
            .for_each_concurrent(AT_ONCE, |missing| async move {
                match self.create(routes, &missing).await {
                    Ok(()) => mark.store(true, Ordering::Relaxed),
                    Err(_) => {
                        let mut failed = fail.lock().expect("no panic while the lock is held");
                        failed.insert(missing.route.target_node);
                    }
                }
            })
            .await;
        let failed = failed
            .into_inner()
            .expect("no panic while the lock is held");
        for node in &nodes {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let reachable = plan.with_range.contains(name) && !failed.contains(name);
            if plan.with_range.contains(name) || plan.without_range.contains(name) {
                self.write_condition(node, name, reachable).await;
            }
        }
        Ok(changed.into_inner())
    }

    async fn create(&self, routes: &dyn Routes, missing: &Missing) -> Result<(), CloudError> {
        let (node, route) = (&missing.node, &missing.route);
        let hint = node.metadata.uid.as_deref().unwrap_or_default();
        let created = routes.create(&self.cluster, hint, route).await;
        if let Err(error) = &created {
            let message = format!(
                "Could not create route {hint} {} for node {}: {error}",
                route.destination_cidr, route.target_node
            );
            tracing::error!("{message}");
            let event = Action::event(&**node, EventType::Warning, "FailedToCreateRoute", message);
            // Recording only queues; it has no failure that anyone could act on.
            let _ = self.executor.execute(&event).await;
        }
        created
    }

    async fn write_condition(&self, node: &Node, name: &str, reachable: bool) {
        if let Some(action) = condition(node, reachable, self.clock.now())
            && let Err(error) = self.executor.execute(&action).await
        {
            tracing::error!(node = name, %error, "failed to update networking condition");
        }
    }
}
