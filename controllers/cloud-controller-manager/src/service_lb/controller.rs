//! The shell: Services and Nodes in; load balancers, finalizers and statuses out.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use cloud_provider::{Cloud, CloudError, LoadBalancer};
use component_base::clock::Clock;
use component_base::events::EventType;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use component_base::shutdown::Shutdown;
use controller_runtime::work_queue::RateLimit;
use controller_runtime::{
    Action, ApiError, Controller, Executor, ObjectKey, Watches, WorkQueue, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{LoadBalancerStatus, Node, Service};

use super::metrics::Metrics;
use super::sync::{
    Told, finalizer, has_no_address, is_target, needs_cleanup, needs_update, should_sync_node,
    status, told, wants_load_balancer,
};
use crate::context::{Context, Running, StartError};

const NAME: &str = "service-lb-controller";
/// Clouds are asked again after this. Upstream: `minRetryDelay`, `maxRetryDelay`.
const RETRY: RateLimit = RateLimit {
    base: Duration::from_secs(5),
    max: Duration::from_secs(300),
    qps: 0.0,
    burst: 0,
};
/// Names of Nodes in an event. Upstream: `maxNodeNamesToLog`.
const MAX_NAMES: usize = 20;

/// What a worker looks at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    Service(ObjectKey),
    /// Where all load balancers lead to.
    Nodes,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => write!(f, "{key}"),
            Self::Nodes => f.write_str("nodes"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum SyncError {
    #[error("failed to check if load balancer exists before cleanup: {0}")]
    Check(#[source] CloudError),
    #[error("failed to delete load balancer: {0}")]
    Delete(#[source] CloudError),
    #[error("failed to remove load balancer cleanup finalizer: {0}")]
    RemoveFinalizer(#[source] ApiError),
    #[error("failed to add load balancer cleanup finalizer: {0}")]
    AddFinalizer(#[source] ApiError),
    #[error("failed to ensure load balancer: {0}")]
    Ensure(#[source] CloudError),
    #[error("failed to update load balancer status: {0}")]
    Status(#[source] ApiError),
}

pub(super) struct Services {
    pub(super) services: Informer<Service>,
    pub(super) nodes: Informer<Node>,
    pub(super) cloud: Arc<dyn Cloud>,
    pub(super) cluster: String,
    /// Services that have or may have a load balancer, as last looked at: one that goes without a finalizer is still known here.
    pub(super) known: Mutex<HashMap<ObjectKey, Arc<Service>>>,
    /// Which Nodes each load balancer was told of.
    pub(super) told: Mutex<HashMap<ObjectKey, Told>>,
    pub(super) queue: WorkQueue<Key>,
    pub(super) executor: Executor,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
}

/// Builds the controller; a cloud without load balancers gives it nothing to do.
///
/// # Errors
/// When no client can be had.
pub async fn start(context: Context) -> Result<Running, StartError> {
    if context.cloud.load_balancer().is_none() {
        let why = "the cloud provider does not support external load balancers";
        return Ok(context.nothing_to_do(NAME, why));
    }
    let executor = context
        .executor("service-controller", "service-controller")
        .await?;
    let informers = &context.informers;
    let controller = Arc::new(Services {
        services: informers.informer(InformerOptions::default()),
        nodes: informers.informer(InformerOptions::default()),
        cloud: context.cloud.clone(),
        cluster: context.options.cluster_name.clone(),
        known: Mutex::default(),
        told: Mutex::default(),
        queue: context.queues.queue_with("service", RETRY),
        executor,
        clock: context.clock.clone(),
        metrics: Metrics::register(&context.metrics)?,
    });
    let services = controller.services.clone();
    context
        .cloud
        .use_services(Arc::new(move || services.list()));
    let watches = controller.watch(&context.shutdown);
    let queue = controller.queue.clone();
    let workers = context.options.concurrent_service_syncs;
    Ok(run_controller(controller, queue, watches, workers, context.shutdown).boxed())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while the lock is held")
}

/// Names for an event, not too many.
fn names(nodes: &[Arc<Node>]) -> String {
    let mut names: Vec<_> = nodes
        .iter()
        .take(MAX_NAMES)
        .map(|node| node.metadata.name.clone().unwrap_or_default())
        .collect();
    names.sort();
    if nodes.len() > MAX_NAMES {
        names.push(format!("<{} more>", nodes.len() - MAX_NAMES));
    }
    format!("[{}]", names.join(" "))
}

impl Services {
    pub(super) fn watch(self: &Arc<Self>, shutdown: &Shutdown) -> Watches {
        let mut watches = Watches::new(shutdown.clone());
        let this = self.clone();
        watches.on(&self.services, move |event| {
            let look = match &event {
                InformerEvent::Added(new) => this.wants(new) || needs_cleanup(new),
                InformerEvent::Updated { old, new } => {
                    needs_update(old, new, this.class()) || needs_cleanup(new)
                }
                // DIFFERS: one that goes past its finalizer leaves no load balancer behind; upstream has no event for it.
                InformerEvent::Deleted(_) => true,
            };
            if look {
                this.queue
                    .add(Key::Service(ObjectKey::of(&**event.object())));
            }
        });
        let this = self.clone();
        watches.on(&self.nodes, move |event| {
            let same = matches!(&event, InformerEvent::Updated { old, new } if !should_sync_node(old, new));
            if !same {
                this.queue.add(Key::Nodes);
            }
        });
        let freed = self.cloud.load_balancer().and_then(|b| b.freed());
        if let Some(freed) = freed {
            let this = self.clone();
            watches.on_change(freed, move || this.look_at_refused());
        }
        watches
    }

    /// The class of Services that are this cloud's, too.
    fn class(&self) -> Option<&'static str> {
        self.cloud.load_balancer().and_then(|b| b.class())
    }

    fn wants(&self, service: &Service) -> bool {
        wants_load_balancer(service, self.class())
    }

    /// Something became free: who got nothing is looked at now, and not after its pause.
    fn look_at_refused(&self) {
        for key in lock(&self.known).keys() {
            let service = self.services.get_key(key);
            if service.is_some_and(|service| self.wants(&service) && has_no_address(&service)) {
                self.queue.add(Key::Service(key.clone()));
            }
        }
    }

    fn balancer(&self) -> Result<&dyn LoadBalancer, CloudError> {
        self.cloud.load_balancer().ok_or(CloudError::NotImplemented)
    }

    fn targets(&self) -> Vec<Arc<Node>> {
        let mut nodes = self.nodes.list();
        nodes.retain(|node| is_target(node));
        nodes.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        nodes
    }

    async fn tell(
        &self,
        service: &Service,
        event_type: EventType,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        // Recording only queues; it has no failure that anyone could act on.
        let event = Action::event(service, event_type, reason, message);
        let _ = self.executor.execute(&event).await;
    }

    fn forget(&self, key: &ObjectKey) {
        lock(&self.known).remove(key);
        lock(&self.told).remove(key);
    }

    /// A Service that is gone, or whose name is another's, has no load balancer any more.
    async fn clean_up_after(&self, service: &Service) -> Result<(), SyncError> {
        if !self.wants(service) {
            return Ok(());
        }
        self.tell(
            service,
            EventType::Normal,
            "DeletingLoadBalancer",
            "Deleting load balancer",
        )
        .await;
        let deleted = match self.balancer() {
            Ok(balancer) => balancer.ensure_deleted(&self.cluster, service).await,
            Err(error) => Err(error),
        };
        if let Err(error) = deleted.or_else(elsewhere) {
            let message = format!("Error deleting load balancer: {error}");
            self.tell(
                service,
                EventType::Warning,
                "DeleteLoadBalancerFailed",
                message,
            )
            .await;
            return Err(SyncError::Delete(error));
        }
        self.tell(
            service,
            EventType::Normal,
            "DeletedLoadBalancer",
            "Deleted load balancer",
        )
        .await;
        Ok(())
    }

    async fn sync_service(&self, key: &ObjectKey) -> Result<(), SyncError> {
        let known = lock(&self.known).get(key).cloned();
        let Some(service) = self.services.get_key(key) else {
            if let Some(known) = known {
                self.clean_up_after(&known).await?;
                self.forget(key);
            }
            return Ok(());
        };
        if let Some(known) = known.filter(|known| known.metadata.uid != service.metadata.uid) {
            self.clean_up_after(&known).await?;
        }
        lock(&self.known).insert(key.clone(), service.clone());
        let result = match !self.wants(&service) || needs_cleanup(&service) {
            true => self.delete(key, &service).await,
            false => self.ensure(key, &service).await,
        };
        if let Err(error) = &result {
            let message = format!("Error syncing load balancer: {error}");
            self.tell(
                &service,
                EventType::Warning,
                "SyncLoadBalancerFailed",
                message,
            )
            .await;
        }
        result
    }

    async fn delete(&self, key: &ObjectKey, service: &Service) -> Result<(), SyncError> {
        let balancer = self.balancer().map_err(SyncError::Check)?;
        let found = balancer.get(&self.cluster, service).await;
        if found.map_err(SyncError::Check)?.is_some() {
            self.tell(
                service,
                EventType::Normal,
                "DeletingLoadBalancer",
                "Deleting load balancer",
            )
            .await;
            let deleted = balancer.ensure_deleted(&self.cluster, service).await;
            deleted.or_else(elsewhere).map_err(SyncError::Delete)?;
        }
        self.write(finalizer(service, false))
            .await
            .map_err(SyncError::RemoveFinalizer)?;
        self.tell(
            service,
            EventType::Normal,
            "DeletedLoadBalancer",
            "Deleted load balancer",
        )
        .await;
        let none = LoadBalancerStatus::default();
        self.write(status(service, &none))
            .await
            .map_err(SyncError::Status)?;
        self.forget(key);
        Ok(())
    }

    async fn ensure(&self, key: &ObjectKey, service: &Service) -> Result<(), SyncError> {
        self.tell(
            service,
            EventType::Normal,
            "EnsuringLoadBalancer",
            "Ensuring load balancer",
        )
        .await;
        // First, so that no load balancer is left behind whatever happens now.
        self.write(finalizer(service, true))
            .await
            .map_err(SyncError::AddFinalizer)?;
        let nodes = self.targets();
        if nodes.is_empty() {
            self.tell_no_nodes(service).await;
        }
        lock(&self.told).insert(key.clone(), told(&nodes));
        let balancer = self.balancer().map_err(SyncError::Ensure)?;
        let wanted = match balancer.ensure(&self.cluster, service, &nodes).await {
            Ok(wanted) => wanted,
            Err(CloudError::ImplementedElsewhere) => return Ok(()),
            Err(error) => return Err(SyncError::Ensure(error)),
        };
        self.tell(
            service,
            EventType::Normal,
            "EnsuredLoadBalancer",
            "Ensured load balancer",
        )
        .await;
        self.write(status(service, &wanted))
            .await
            .map_err(SyncError::Status)
    }

    async fn tell_no_nodes(&self, service: &Service) {
        let message = "There are no available nodes for LoadBalancer";
        self.tell(
            service,
            EventType::Warning,
            "UnAvailableLoadBalancer",
            message,
        )
        .await;
    }

    /// A Service that has just gone needs no write.
    async fn write(&self, action: Option<Action>) -> Result<(), ApiError> {
        let Some(action) = action else {
            return Ok(());
        };
        match self.executor.execute(&action).await {
            Ok(_) | Err(ApiError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Leads all load balancers to the Nodes there are now; those that fail are looked at one by one.
    async fn sync_nodes(&self) {
        let begin = self.clock.monotonic();
        let known: Vec<_> = lock(&self.known)
            .iter()
            .map(|(k, s)| (k.clone(), s.clone()))
            .collect();
        let nodes = self.targets();
        let now = told(&nodes);
        for (key, service) in known {
            if !self.wants(&service) {
                continue;
            }
            // What fails below is the Service's own retry; it must not be told twice.
            let before = lock(&self.told).insert(key.clone(), now.clone());
            if before.as_ref() != Some(&now) && self.update(&service, &nodes).await.is_err() {
                self.metrics.node_errors.inc();
                self.queue.add(Key::Service(key));
            }
        }
        let took = self.clock.monotonic().saturating_sub(begin);
        self.metrics.node_latency.observe(took.as_secs_f64());
    }

    async fn update(&self, service: &Service, nodes: &[Arc<Node>]) -> Result<(), CloudError> {
        let balancer = self.balancer()?;
        self.metrics.syncs.inc();
        let begin = self.clock.monotonic();
        let updated = balancer.update(&self.cluster, service, nodes).await;
        let took = self.clock.monotonic().saturating_sub(begin);
        self.metrics.host_latency.observe(took.as_secs_f64());
        match updated {
            Ok(()) if nodes.is_empty() => self.tell_no_nodes(service).await,
            Ok(()) => {
                let message = "Updated load balancer with new hosts";
                self.tell(service, EventType::Normal, "UpdatedLoadBalancer", message)
                    .await;
            }
            Err(CloudError::ImplementedElsewhere) => {}
            Err(error) => {
                // It is an error only where there is a load balancer.
                if let Ok(None) = balancer.get(&self.cluster, service).await {
                    return Ok(());
                }
                let message = format!(
                    "Error updating load balancer with new hosts {} [node names limited, total number of nodes: {}], error: {error}",
                    names(nodes),
                    nodes.len()
                );
                self.tell(
                    service,
                    EventType::Warning,
                    "UpdateLoadBalancerFailed",
                    message,
                )
                .await;
                return Err(error);
            }
        }
        Ok(())
    }
}

/// What another controller does is done.
fn elsewhere(error: CloudError) -> Result<(), CloudError> {
    match error {
        CloudError::ImplementedElsewhere => Ok(()),
        error => Err(error),
    }
}

#[async_trait]
impl Controller for Services {
    type Key = Key;
    type Error = SyncError;

    fn name(&self) -> &'static str {
        NAME
    }

    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, SyncError> {
        match key {
            Key::Nodes => self.sync_nodes().await,
            Key::Service(key) => match self.sync_service(key).await {
                Err(SyncError::Ensure(CloudError::RetryAfter { after, .. })) => {
                    return Ok(Some(after));
                }
                result => result?,
            },
        }
        Ok(None)
    }

    fn is_conflict(&self, error: &SyncError) -> bool {
        match error {
            SyncError::RemoveFinalizer(error)
            | SyncError::AddFinalizer(error)
            | SyncError::Status(error) => error.is_conflict(),
            _ => false,
        }
    }
}
