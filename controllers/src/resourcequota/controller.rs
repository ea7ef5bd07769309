//! The shell: watches ResourceQuotas and what they measure.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::informer::{Factory, Informer, InformerEvent, InformerOptions, Object};
use component_base::shutdown::Shutdown;
use component_helpers::pod::is_terminal;
use controller_runtime::executor::Executor;
use controller_runtime::{
    ApiError, Controller, ObjectKey, Queues, Watches, WorkQueue, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{
    ContainerStatus, PersistentVolumeClaim, Pod, ResourceQuota, ResourceRequirements, Service,
};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};

use super::devices::Devices;
use super::monitors::{Counts, Less, Monitors, OnLess};
use super::sync::{self, Observed};
use crate::context::{ControllerContext, Running, StartError};
use crate::volume_protection::sync::classes_of_claim;

/// The service account it acts as.
const ACCOUNT: &str = "resourcequota-controller";

/// After admission charged a quota, when what it charged for is in the caches or was not created at all.
///
/// DIFFERS: upstream looks again with its next full round, after five minutes: an object that was charged for and gone again before
/// the charge was seen here counts as long.
const CHARGE_SETTLES: Duration = Duration::from_secs(10);

/// Starts the controller under its own account.
///
/// # Errors
/// When it has no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let executor = context.executor(ACCOUNT, ACCOUNT).await?;
    let discovery = Arc::new(context.client(ACCOUNT).await?);
    let workers = context.options.workers("resource-quota");
    let with_devices = context.serves::<ResourceClaim>().await?;
    let counts = Counts::default();
    let (controller, queue, watches) = ResourceQuotaController::new(
        &context.queues,
        &context.informers,
        executor,
        counts.clone(),
        with_devices,
        context.options.resource_quota_sync_period,
        context.clock.clone(),
        &context.shutdown,
    );
    let (quotas, keys) = (controller.quotas.clone(), queue.clone());
    let on_less: OnLess = Arc::new(move |less| concerned(&quotas, less, &keys));
    let shutdown = context.shutdown.clone();
    let mut monitors = Monitors::new(
        context.informers.clone(),
        discovery,
        counts,
        on_less,
        shutdown.clone(),
    );
    Ok(async move {
        if monitors.start().await {
            let control = run_controller(controller, queue, watches, workers, shutdown);
            tokio::join!(monitors.run(), control);
        }
    }
    .boxed())
}

/// Brings back the quotas that limit a kind of which there is less, or which can be counted at last.
fn concerned(quotas: &Informer<ResourceQuota>, less: Less<'_>, queue: &WorkQueue) {
    let (name, candidates) = match less {
        Less::Gone { name, namespace } => (name, quotas.list_namespace(namespace)),
        Less::Known { name } => (name, quotas.list()),
    };
    candidates
        .iter()
        .filter(|q| sync::limits_count_of(q, name))
        .for_each(|q| queue.add(ObjectKey::of(&**q)));
}

struct DeviceInformers {
    claims: Informer<ResourceClaim>,
    classes: Informer<DeviceClass>,
}

/// Reconciles ResourceQuotas by key.
pub struct ResourceQuotaController {
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
    /// `None` where the API server has none.
    devices: Option<DeviceInformers>,
    counts: Counts,
    sync_period: Duration,
    executor: Executor,
    clock: Clock,
}

impl ResourceQuotaController {
    /// The controller, its queue, and the watches that fill it; run them with [`controller_runtime::run_controller`].
    pub fn new(
        queues: &Queues,
        factory: &Factory,
        executor: Executor,
        counts: Counts,
        with_devices: bool,
        sync_period: Duration,
        clock: Clock,
        shutdown: &Shutdown,
    ) -> (Arc<Self>, WorkQueue, Watches) {
        let controller = Arc::new(Self {
            quotas: factory.informer(InformerOptions::default()),
            pods: factory.informer(InformerOptions::default()),
            services: factory.informer(InformerOptions::default()),
            claims: factory.informer(InformerOptions::default()),
            devices: with_devices.then(|| DeviceInformers {
                claims: factory.informer(InformerOptions::default()),
                classes: factory.informer(InformerOptions::default()),
            }),
            counts,
            sync_period,
            executor,
            clock,
        });
        let queue = queues.queue("resourcequota_primary");
        let mut watches = Watches::new(shutdown.clone());
        let keys = queue.clone();
        watches.on(&controller.quotas, move |event| match &event {
            // Usage alone is written by admission and by us.
            InformerEvent::Updated { old, new } if old.spec == new.spec => {
                if sync::is_charged(old, new) {
                    keys.add_after(ObjectKey::of(&**new), CHARGE_SETTLES);
                }
            }
            event => keys.add(ObjectKey::of(&**event.object())),
        });
        // Not any change of the spec: on the binding of a pod the cache may lag behind what admission has counted by then.
        let less = |old: &Pod, new: &Pod| {
            is_terminal(old) != is_terminal(new)
                || has_deadline(old) != has_deadline(new)
                || !same_resources(old, new)
        };
        controller.on_less(&mut watches, &queue, &controller.pods, less);
        controller.on_less(&mut watches, &queue, &controller.services, |old, new| {
            old.spec != new.spec
        });
        controller.on_less(&mut watches, &queue, &controller.claims, |old, new| {
            let allocated = |claim: &PersistentVolumeClaim| {
                let status = claim.status.as_ref();
                status.and_then(|s| s.allocated_resources.clone())
            };
            old.spec != new.spec
                || classes_of_claim(old) != classes_of_claim(new)
                || allocated(old) != allocated(new)
        });
        if let Some(devices) = &controller.devices {
            // What a claim asks for never changes.
            controller.on_less(&mut watches, &queue, &devices.claims, |_, _| false);
            watches.wait_for(&devices.classes);
        }
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

/// Whether a pod is of the scope `Terminating`.
fn has_deadline(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    spec.is_some_and(|spec| spec.active_deadline_seconds.is_some())
}

/// Whether the containers of a pod ask for what they asked for before, and have what they had (they can be resized in place).
fn same_resources(old: &Pod, new: &Pod) -> bool {
    fn asked(pod: &Pod) -> impl Iterator<Item = (&str, &Option<ResourceRequirements>)> {
        let containers = pod.spec.iter().flat_map(|spec| {
            let init = spec.init_containers.iter().flatten();
            init.chain(&spec.containers)
        });
        containers.map(|container| (container.name.as_str(), &container.resources))
    }
    fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
        pod.status.iter().flat_map(|status| {
            let init = status.init_container_statuses.iter().flatten();
            init.chain(status.container_statuses.iter().flatten())
        })
    }
    /// What is told of for the first time is not less.
    fn same<T: PartialEq>(old: &Option<T>, new: &Option<T>) -> bool {
        old.is_none() || new.is_none() || old == new
    }
    let kept = statuses(old).all(|old| {
        let mut all = statuses(new);
        let new = all.find(|new| new.name == old.name);
        new.is_none_or(|new| {
            same(&old.resources, &new.resources)
                && same(&old.allocated_resources, &new.allocated_resources)
        })
    });
    asked(old).eq(asked(new)) && kept
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
        let mut counts = self.counts.of(ns);
        // The metadata may not have this very quota yet, and nothing would bring it back.
        counts.retain(|(name, _)| name != "resourcequotas");
        let quotas = self.quotas.list_namespace(ns).len();
        counts.push(("resourcequotas".to_owned(), quotas));
        let observed = Observed {
            pods: self.pods.list_namespace(ns),
            services: self.services.list_namespace(ns),
            claims: self.claims.list_namespace(ns),
            devices: self.devices.as_ref().map(|devices| Devices {
                claims: devices.claims.list_namespace(ns),
                classes: devices.classes.list(),
            }),
            counts,
        };
        if let Some(status) = sync::sync(&quota, &observed, self.clock.now()) {
            let updated = ResourceQuota {
                status: Some(status),
                ..(*quota).clone()
            };
            match self.executor.update_status(&updated).await {
                Ok(_) | Err(ApiError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(self.sync_period))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_pod_asks_for_what_it_asked_for() {
        let pod = |node: Option<&str>, cpu: &str| -> Pod {
            serde_json::from_value(serde_json::json!({
                "metadata": { "name": "p" },
                "spec": {
                    "nodeName": node,
                    "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }],
                },
            }))
            .expect("a pod")
        };
        assert!(same_resources(&pod(None, "1"), &pod(Some("node-1"), "1")));
        assert!(!same_resources(
            &pod(Some("node-1"), "2"),
            &pod(Some("node-1"), "1")
        ));
        // The container is made smaller after the pod was.
        let has = |cpu: &str| {
            let mut pod = pod(Some("node-1"), "1");
            let status = serde_json::json!({ "containerStatuses": [{
                "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "resources": { "requests": { "cpu": cpu } },
            }] });
            pod.status = Some(serde_json::from_value(status).expect("a status"));
            pod
        };
        assert!(same_resources(&has("1"), &has("1")) && !same_resources(&has("2"), &has("1")));
        assert!(same_resources(&pod(Some("node-1"), "1"), &has("1")));
        let mut starting = has("1");
        let statuses = starting
            .status
            .as_mut()
            .and_then(|s| s.container_statuses.as_mut());
        statuses.expect("there")[0].resources = None;
        assert!(same_resources(&starting, &has("1")), "it starts");
    }
}
