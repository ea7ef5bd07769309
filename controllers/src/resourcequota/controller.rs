//! The shell: watches ResourceQuotas and what they measure.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::informer::{Factory, Informer, InformerEvent, InformerOptions, Object};
use component_base::shutdown::Shutdown;
use component_helpers::pod::is_terminal;
use controller_runtime::executor::Executor;
use controller_runtime::{ApiError, Controller, ObjectKey, Watches, WorkQueue, run_controller};
use futures::FutureExt as _;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolumeClaim, Pod, ReplicationController, ResourceQuota, Secret, Service,
};

use super::sync::{self, Observed};
use crate::context::{ControllerContext, Running, StartError};

/// `--resource-quota-sync-period`.
const SYNC_PERIOD: Duration = Duration::from_secs(300);

/// Starts the controller under its own account.
///
/// # Errors
/// When it has no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let executor = context
        .executor("resourcequota-controller", "resourcequota-controller")
        .await?;
    let workers = context.options.workers("resource-quota");
    let (controller, queue, watches) =
        ResourceQuotaController::new(&context.informers, executor, &context.shutdown);
    Ok(run_controller(
        controller,
        queue,
        watches,
        workers,
        context.shutdown.clone(),
    )
    .boxed())
}

/// Reconciles ResourceQuotas by key.
pub struct ResourceQuotaController {
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
    secrets: Informer<Secret>,
    config_maps: Informer<ConfigMap>,
    controllers: Informer<ReplicationController>,
    replica_sets: Informer<ReplicaSet>,
    deployments: Informer<Deployment>,
    stateful_sets: Informer<StatefulSet>,
    daemon_sets: Informer<DaemonSet>,
    jobs: Informer<Job>,
    executor: Executor,
}

impl ResourceQuotaController {
    /// The controller, its queue, and the watches that fill it; run them with [`controller_runtime::run_controller`].
    pub fn new(
        factory: &Factory,
        executor: Executor,
        shutdown: &Shutdown,
    ) -> (Arc<Self>, WorkQueue, Watches) {
        let controller = Arc::new(Self {
            quotas: factory.informer(InformerOptions::default()),
            pods: factory.informer(InformerOptions::default()),
            services: factory.informer(InformerOptions::default()),
            claims: factory.informer(InformerOptions::default()),
            secrets: factory.informer(InformerOptions::default()),
            config_maps: factory.informer(InformerOptions::default()),
            controllers: factory.informer(InformerOptions::default()),
            replica_sets: factory.informer(InformerOptions::default()),
            deployments: factory.informer(InformerOptions::default()),
            stateful_sets: factory.informer(InformerOptions::default()),
            daemon_sets: factory.informer(InformerOptions::default()),
            jobs: factory.informer(InformerOptions::default()),
            executor,
        });
        let queue = WorkQueue::new("resourcequota_primary");
        let mut watches = Watches::new(shutdown.clone());
        let keys = queue.clone();
        watches.on(&controller.quotas, move |event| match &event {
            // Usage alone is written by admission and by us.
            InformerEvent::Updated { old, new } if old.spec == new.spec => {}
            event => keys.add(ObjectKey::of(&**event.object())),
        });
        let ended =
            |old: &Pod, new: &Pod| is_terminal(old) != is_terminal(new) || old.spec != new.spec;
        controller.on_less(&mut watches, &queue, &controller.pods, ended);
        controller.on_less(&mut watches, &queue, &controller.services, |old, new| {
            old.spec != new.spec
        });
        controller.on_less(&mut watches, &queue, &controller.claims, |old, new| {
            old.spec != new.spec
        });
        controller.on_less(&mut watches, &queue, &controller.secrets, |_, _| false);
        controller.on_less(&mut watches, &queue, &controller.config_maps, |_, _| false);
        controller.on_less(&mut watches, &queue, &controller.controllers, |_, _| false);
        controller.on_less(&mut watches, &queue, &controller.replica_sets, |_, _| false);
        controller.on_less(&mut watches, &queue, &controller.deployments, |_, _| false);
        controller.on_less(&mut watches, &queue, &controller.stateful_sets, |_, _| {
            false
        });
        controller.on_less(&mut watches, &queue, &controller.daemon_sets, |_, _| false);
        controller.on_less(&mut watches, &queue, &controller.jobs, |_, _| false);
        (controller, queue, watches)
    }

    /// New objects are counted by admission; counting them here from a cache that lags would let too many in.
    fn on_less<K: Object>(
        self: &Arc<Self>,
        watches: &mut Watches,
        queue: &WorkQueue,
        informer: &Informer<K>,
        changed: impl Fn(&K, &K) -> bool + Send + 'static,
    ) {
        let (quotas, keys) = (self.quotas.clone(), queue.clone());
        watches.on(informer, move |event| {
            let less = match &event {
                InformerEvent::Added(_) => false,
                InformerEvent::Updated { old, new } => changed(old, new),
                InformerEvent::Deleted(_) => true,
            };
            if less {
                let namespace = event.object().meta().namespace.clone().unwrap_or_default();
                quotas
                    .list_namespace(&namespace)
                    .iter()
                    .for_each(|q| keys.add(ObjectKey::of(&**q)));
            }
        });
    }
}

#[async_trait]
impl Controller for ResourceQuotaController {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        "resourcequota-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let Some(quota) = self.quotas.get_key(key) else {
            return Ok(None);
        };
        let ns = key.namespace.as_str();
        let observed = Observed {
            pods: self.pods.list_namespace(ns),
            services: self.services.list_namespace(ns),
            claims: self.claims.list_namespace(ns),
            counts: vec![
                ("secrets", self.secrets.list_namespace(ns).len()),
                ("configmaps", self.config_maps.list_namespace(ns).len()),
                (
                    "replicationcontrollers",
                    self.controllers.list_namespace(ns).len(),
                ),
                ("resourcequotas", self.quotas.list_namespace(ns).len()),
                (
                    "replicasets.apps",
                    self.replica_sets.list_namespace(ns).len(),
                ),
                (
                    "deployments.apps",
                    self.deployments.list_namespace(ns).len(),
                ),
                (
                    "statefulsets.apps",
                    self.stateful_sets.list_namespace(ns).len(),
                ),
                ("daemonsets.apps", self.daemon_sets.list_namespace(ns).len()),
                ("jobs.batch", self.jobs.list_namespace(ns).len()),
            ],
        };
        if let Some(status) = sync::sync(&quota, &observed) {
            let updated = ResourceQuota {
                status: Some(status),
                ..(*quota).clone()
            };
            match self.executor.update_status(&updated).await {
                Ok(_) | Err(ApiError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(SYNC_PERIOD))
    }
}
