//! The shell: watches Services, Pods and Endpoints, and carries out what [`super::sync`] decides.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::events::EventType;
use component_base::informer::{Factory, Informer, InformerEvent, InformerOptions};
use component_base::shutdown::Shutdown;
use component_helpers::labels::is_subset;
use controller_runtime::executor::{Action, DeleteOptions, Executor};
use controller_runtime::{ApiError, Controller, ObjectKey, Watches, WorkQueue, run_controller};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};

use super::sync::{self, Write};
use super::{CONTROLLER_NAME, MANAGED_BY};
use crate::context::{ControllerContext, Running, StartError};
use crate::endpointslice::controller::{pod_endpoints_changed, selector, services_of};
use crate::endpointslice::trigger_time::TriggerTimes;

const MAX_RETRIES: u32 = 15;

/// Starts the controller under its own account.
///
/// # Errors
/// When it has no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let executor = context
        .executor("endpoint-controller", CONTROLLER_NAME)
        .await?;
    let workers = context.options.workers("endpoint");
    let (controller, queue, watches) =
        EndpointsController::new(&context.informers, executor, &context.shutdown);
    Ok(run_controller(
        controller,
        queue,
        watches,
        workers,
        context.shutdown.clone(),
    )
    .boxed())
}

/// Reconciles Services by key.
pub struct EndpointsController {
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
    trigger_times: TriggerTimes,
    executor: Executor,
}

impl EndpointsController {
    /// The controller, its queue, and the watches that fill it; run them with [`controller_runtime::run_controller`].
    pub fn new(
        factory: &Factory,
        executor: Executor,
        shutdown: &Shutdown,
    ) -> (Arc<Self>, WorkQueue, Watches) {
        let controller = Arc::new(Self {
            services: factory.informer(InformerOptions::default()),
            pods: factory.informer(InformerOptions::default()),
            endpoints: factory.informer(InformerOptions::default()),
            trigger_times: TriggerTimes::default(),
            executor,
        });
        let queue = WorkQueue::new("endpoint");
        let mut watches = Watches::new(shutdown.clone());
        let keys = queue.clone();
        watches.on(&controller.services, move |event| {
            keys.add(ObjectKey::of(&**event.object()))
        });
        let (handler, keys) = (controller.clone(), queue.clone());
        watches.on(&controller.pods, move |event| handler.on_pod(&keys, &event));
        let (handler, keys) = (controller.clone(), queue.clone());
        watches.on(&controller.endpoints, move |event| {
            let key = ObjectKey::of(&**event.object());
            // Ours that someone deleted come back; ours without a Service go.
            let deleted = matches!(event, InformerEvent::Deleted(_));
            if deleted || (handler.services.get_key(&key).is_none() && is_managed(event.object())) {
                keys.add(key);
            }
        });
        (controller, queue, watches)
    }

    fn on_pod(&self, queue: &WorkQueue, event: &InformerEvent<Pod>) {
        let services = match event {
            InformerEvent::Added(pod) | InformerEvent::Deleted(pod) => {
                services_of(&self.services, &pod.metadata)
            }
            InformerEvent::Updated { old, new } => {
                let of = |pod: &Pod| services_of(&self.services, &pod.metadata);
                match pod_endpoints_changed(old, new) {
                    (false, false) => return,
                    (true, false) => of(new),
                    (_, true) => &of(new) | &of(old),
                }
            }
        };
        services.into_iter().for_each(|service| queue.add(service));
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), ApiError> {
        if let Some(endpoints) = self.endpoints.get_key(key).filter(|e| is_managed(e)) {
            let options = DeleteOptions {
                uid: endpoints.metadata.uid.clone(),
                ..DeleteOptions::default()
            };
            let action = Action::delete::<Endpoints>(&key.namespace, &key.name, options);
            self.executor.execute(&action).await?;
        }
        Ok(())
    }
}

fn is_managed(endpoints: &Endpoints) -> bool {
    let labels = endpoints.metadata.labels.as_ref();
    labels
        .and_then(|l| l.get(MANAGED_BY))
        .is_some_and(|by| by == CONTROLLER_NAME)
}

#[async_trait]
impl Controller for EndpointsController {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        "endpoints-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let Some(service) = self.services.get_key(key) else {
            self.trigger_times.delete_service(key);
            return self.delete(key).await.map(|()| None);
        };
        let Some(wanted) = selector(&service) else {
            return Ok(None);
        };
        let pods: Vec<_> = self
            .pods
            .list_namespace(&key.namespace)
            .into_iter()
            .filter(|p| is_subset(wanted, &p.metadata.labels))
            .collect();
        let trigger_time = self.trigger_times.compute(key, &service, &pods);
        let current = self.endpoints.get_key(key);
        let (result, reason) = match sync::sync(&service, &pods, current.as_deref(), trigger_time) {
            None => return Ok(None),
            Some(Write::Create(endpoints)) => (
                self.executor.create(&*endpoints).await,
                "FailedToCreateEndpoint",
            ),
            // A stale cache shows as a conflict, and the retry finds a newer one.
            Some(Write::Update(endpoints)) => (
                self.executor.update(&*endpoints).await,
                "FailedToUpdateEndpoint",
            ),
        };
        match result {
            Ok(_) | Err(ApiError::NamespaceTerminating(_)) => Ok(None),
            Err(error) => {
                let message = format!("Failed to write endpoints for service {key}: {error}");
                let event = Action::event(&*service, EventType::Warning, reason, message);
                // Recording only queues; it has no failure that anyone could act on.
                let _ = self.executor.execute(&event).await;
                Err(error)
            }
        }
    }

    fn max_retries(&self) -> Option<u32> {
        Some(MAX_RETRIES)
    }
}
