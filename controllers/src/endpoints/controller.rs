//! The shell: watches Services, Pods and Endpoints, and carries out what [`super::sync`] decides.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::events::EventType;
use component_base::informer::{Factory, Informer, InformerEvent, InformerOptions};
use component_base::shutdown::Shutdown;
use controller_runtime::executor::{Action, DeleteOptions, Executor};
use controller_runtime::{
    ApiError, Controller, ObjectKey, Queues, Watches, WorkQueue, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};

use super::sync::{self, Write};
use super::written::Written;
use super::{CONTROLLER_NAME, MANAGED_BY};
use crate::context::{ControllerContext, Running, StartError};
use crate::endpointslice::controller::concerned;
use crate::endpointslice::trigger_time::TriggerTimes;
use crate::gathering::Gathering;
use crate::selected::{index_pods, index_services, pods_of, selector};

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
    let (controller, queue, watches) = EndpointsController::new(
        &context.queues,
        &context.informers,
        executor,
        context.clock.clone(),
        &context.shutdown,
    );
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
    gathering: Gathering,
    written: Written,
    executor: Executor,
}

impl EndpointsController {
    /// The controller, its queue, and the watches that fill it; run them with [`controller_runtime::run_controller`].
    pub fn new(
        queues: &Queues,
        factory: &Factory,
        executor: Executor,
        clock: Clock,
        shutdown: &Shutdown,
    ) -> (Arc<Self>, WorkQueue, Watches) {
        let services = factory.informer(InformerOptions::default());
        let pods = factory.informer(InformerOptions::default());
        let endpoints = factory.informer(InformerOptions::default());
        Self::over(
            queues,
            (services, pods, endpoints),
            executor,
            clock,
            shutdown,
        )
    }

    pub(super) fn over(
        queues: &Queues,
        (services, pods, endpoints): (Informer<Service>, Informer<Pod>, Informer<Endpoints>),
        executor: Executor,
        clock: Clock,
        shutdown: &Shutdown,
    ) -> (Arc<Self>, WorkQueue, Watches) {
        let controller = Arc::new(Self {
            services,
            pods,
            endpoints,
            trigger_times: TriggerTimes::default(),
            gathering: Gathering::new(clock.clone()),
            written: Written::new(clock),
            executor,
        });
        index_pods(&controller.pods);
        index_services(&controller.services);
        let queue = queues.queue("endpoint");
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
            match deleted {
                true => handler.written.remove(&key),
                false => handler.written.seen(&key, event.object()),
            }
            if deleted || (handler.services.get_key(&key).is_none() && is_managed(event.object())) {
                keys.add(key);
            }
        });
        (controller, queue, watches)
    }

    fn on_pod(&self, queue: &WorkQueue, event: &InformerEvent<Pod>) {
        for service in concerned(&self.services, event) {
            let wait = self.gathering.wait(&service);
            queue.add_after(service, wait);
        }
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
            self.gathering.forget(key);
            self.written.remove(key);
            return self.delete(key).await.map(|()| None);
        };
        let Some(wanted) = selector(&service) else {
            return Ok(None);
        };
        let pods = pods_of(&self.pods, &key.namespace, wanted);
        let trigger_time = self.trigger_times.compute(key, &service, &pods);
        let current = self.written.newest(key, self.endpoints.get_key(key));
        let Some(write) = sync::sync(&service, &pods, current.as_deref(), trigger_time) else {
            return Ok(None);
        };
        self.gathering.written(key);
        let (result, reason) = match write {
            Write::Create(endpoints) => (
                self.executor.create(&*endpoints).await,
                "FailedToCreateEndpoint",
            ),
            Write::Update(endpoints) => (
                self.executor.update(&*endpoints).await,
                "FailedToUpdateEndpoint",
            ),
        };
        let error = match result {
            Ok(answer) => {
                let cached = self.endpoints.get_key(key);
                self.written.add(key, answer, cached.as_deref());
                return Ok(None);
            }
            Err(ApiError::NamespaceTerminating(_)) => return Ok(None),
            Err(error) => error,
        };
        // Someone else wrote or deleted them: the retry goes by the cache.
        self.written.remove(key);
        let message = format!("Failed to write endpoints for service {key}: {error}");
        let event = Action::event(&*service, EventType::Warning, reason, message);
        // Recording only queues; it has no failure that anyone could act on.
        let _ = self.executor.execute(&event).await;
        Err(error)
    }

    fn max_retries(&self) -> Option<u32> {
        Some(MAX_RETRIES)
    }
}

#[cfg(test)]
mod tests;
