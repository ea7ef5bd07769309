//! The shell: watches Endpoints, Services and EndpointSlices, and carries out what [`super::sync`] decides.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::events::EventType;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use controller_runtime::executor::{Action, DeleteOptions, Executor};
use controller_runtime::work_queue::RateLimit;
use controller_runtime::{ApiError, Controller, ObjectKey, Watches, WorkQueue, run_controller};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::sync::{Plan, has_selector, is_managed, should_mirror, sync};
use crate::context::{ControllerContext, Running, StartError};
use crate::endpointslice::tracker::{Tracker, service_key};

/// The first retry waits a second: one sync can mean many writes.
const SYNC_BACK_OFF: RateLimit = RateLimit {
    base: Duration::from_secs(1),
    max: Duration::from_secs(100),
    qps: 10.0,
    burst: 100,
};
const MAX_RETRIES: u32 = 15;
/// The index of our slices by Service.
const BY_SERVICE: &str = "mirrored-service";

/// Starts the controller under its own account.
///
/// # Errors
/// When it has no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let executor = context
        .executor(
            "endpointslicemirroring-controller",
            "endpoint-slice-mirroring-controller",
        )
        .await?;
    let controller = Arc::new(EndpointSliceMirroring {
        endpoints: context.informers.informer(InformerOptions::default()),
        services: context.informers.informer(InformerOptions::default()),
        slices: context.informers.informer(InformerOptions::default()),
        tracker: Tracker::default(),
        executor,
        max_endpoints: context.options.mirroring_max_endpoints_per_subset,
        batch_period: context.options.mirroring_endpointslice_updates_batch_period,
    });
    controller.slices.add_index(BY_SERVICE, |slice| {
        let key = service_key(slice).filter(|_| is_managed(slice));
        key.map(|key| key.to_string()).into_iter().collect()
    });
    let queue = context
        .queues
        .queue_with("endpoint_slice_mirroring", SYNC_BACK_OFF);
    let mut watches = Watches::new(context.shutdown.clone());
    let keys = queue.clone();
    watches.on(&controller.endpoints, move |event| {
        let mirrored = match &event {
            InformerEvent::Updated { old, new } => should_mirror(old) || should_mirror(new),
            InformerEvent::Added(one) | InformerEvent::Deleted(one) => should_mirror(one),
        };
        if mirrored {
            keys.add(ObjectKey::of(&**event.object()));
        }
    });
    let keys = queue.clone();
    watches.on(&controller.services, move |event| {
        let relevant = match &event {
            InformerEvent::Updated { old, new } => has_selector(old) != has_selector(new),
            InformerEvent::Added(one) | InformerEvent::Deleted(one) => !has_selector(one),
        };
        if relevant {
            keys.add(ObjectKey::of(&**event.object()));
        }
    });
    let (handler, keys) = (controller.clone(), queue.clone());
    watches.on(&controller.slices, move |event| {
        handler.on_slice(&keys, &event)
    });
    let workers = context.options.workers("mirroring-service-endpoint");
    Ok(run_controller(controller, queue, watches, workers, context.shutdown).boxed())
}

/// Why one pass failed; a retry may help.
#[derive(Debug, thiserror::Error)]
#[error("failed to {verb} EndpointSlice {slice} for Endpoints {endpoints}: {source}")]
pub struct MirrorError {
    verb: &'static str,
    slice: String,
    endpoints: ObjectKey,
    #[source]
    source: ApiError,
}

impl MirrorError {
    fn new(
        verb: &'static str,
        slice: &EndpointSlice,
        endpoints: &ObjectKey,
        source: ApiError,
    ) -> Self {
        let meta = &slice.metadata;
        let name = meta.name.as_ref().or(meta.generate_name.as_ref());
        Self {
            verb,
            slice: name.cloned().unwrap_or_default(),
            endpoints: endpoints.clone(),
            source,
        }
    }
}

/// Reconciles Endpoints by key.
struct EndpointSliceMirroring {
    endpoints: Informer<Endpoints>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    tracker: Tracker,
    executor: Executor,
    max_endpoints: usize,
    batch_period: Duration,
}

impl EndpointSliceMirroring {
    fn on_slice(&self, queue: &WorkQueue, event: &InformerEvent<EndpointSlice>) {
        let enqueue = |slice: &EndpointSlice| {
            if let Some(key) = service_key(slice) {
                queue.add_after(key, self.batch_period);
            }
        };
        match event {
            InformerEvent::Added(slice) => {
                if is_managed(slice) && self.tracker.should_sync(slice) {
                    enqueue(slice);
                }
            }
            InformerEvent::Updated { old, new } => {
                if !is_managed(old) && !is_managed(new) {
                    return;
                }
                if service_key(old) != service_key(new) {
                    enqueue(old);
                    enqueue(new);
                } else if is_managed(old) != is_managed(new) || self.tracker.should_sync(new) {
                    enqueue(new);
                }
            }
            InformerEvent::Deleted(slice) => {
                if is_managed(slice) && self.tracker.is_unexpected_deletion(slice) {
                    enqueue(slice);
                }
            }
        }
        // A sync that waits for the cache need not wait longer.
        if let Some(key) = service_key(event.object())
            && self.tracker.take_deferred(&key)
        {
            queue.add(key);
        }
    }

    /// The Endpoints object, if it and its Service want slices.
    fn mirrored(&self, key: &ObjectKey) -> Option<Arc<Endpoints>> {
        let service = self.services.get_key(key)?;
        self.endpoints
            .get_key(key)
            .filter(|e| should_mirror(e) && !has_selector(&service))
    }

    async fn delete(&self, key: &ObjectKey, slice: &EndpointSlice) -> Result<(), MirrorError> {
        let options = DeleteOptions {
            uid: slice.metadata.uid.clone(),
            ..DeleteOptions::default()
        };
        let name = slice.metadata.name.as_deref().unwrap_or_default();
        let action = Action::delete::<EndpointSlice>(&key.namespace, name, options);
        match self.executor.execute(&action).await {
            // A namesake came in between; its own event brings it here.
            Ok(_) | Err(ApiError::Conflict(_)) => Ok(()),
            Err(error) => Err(MirrorError::new("delete", slice, key, error)),
        }
    }

    async fn carry_out(&self, key: &ObjectKey, plan: Plan) -> Result<(), MirrorError> {
        for slice in &plan.create {
            match self.executor.create(slice).await {
                Ok(created) => self.tracker.written(&created),
                // Nothing can be created there any more.
                Err(ApiError::NamespaceTerminating(_)) => return Ok(()),
                Err(error) => return Err(MirrorError::new("create", slice, key, error)),
            }
        }
        for slice in &plan.update {
            match self.executor.update(slice).await {
                Ok(updated) => self.tracker.written(&updated),
                Err(error) => return Err(MirrorError::new("update", slice, key, error)),
            }
        }
        for slice in &plan.delete {
            self.delete(key, slice).await?;
            self.tracker.expect_deletion(slice);
        }
        Ok(())
    }

    async fn record(&self, endpoints: &Endpoints, plan: &Plan) {
        let mut events = Vec::new();
        if plan.invalid > 0 {
            let message = format!(
                "Skipped {} invalid IP addresses when mirroring to EndpointSlices",
                plan.invalid
            );
            events.push(("InvalidIPAddress", message));
        }
        if plan.skipped > plan.invalid {
            let message = format!(
                "A max of {} addresses can be mirrored to EndpointSlices per Endpoints subset. {} addresses were skipped",
                self.max_endpoints, plan.skipped
            );
            events.push(("TooManyAddressesToMirror", message));
        }
        for (reason, message) in events {
            let event = Action::event(endpoints, EventType::Warning, reason, message);
            // Recording only queues; it has no failure that anyone could act on.
            let _ = self.executor.execute(&event).await;
        }
    }
}

#[async_trait]
impl Controller for EndpointSliceMirroring {
    type Key = ObjectKey;
    type Error = MirrorError;

    fn name(&self) -> &'static str {
        "endpointslice-mirroring-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, MirrorError> {
        let slices = self.slices.by_index(BY_SERVICE, &key.to_string());
        let Some(endpoints) = self.mirrored(key) else {
            self.tracker.delete_service(key);
            for slice in &slices {
                self.delete(key, slice).await?;
            }
            return Ok(None);
        };
        if self.tracker.is_stale(key, slices.iter().map(|s| &**s)) {
            self.tracker.defer(key);
            // The slice's event brings it back; this is for an event that came just before.
            return Ok(Some(SYNC_BACK_OFF.base));
        }
        // Also those written before this process, so that their deletion is noticed.
        slices.iter().for_each(|s| self.tracker.written(s));
        let plan = sync(&endpoints, &slices, self.max_endpoints);
        self.record(&endpoints, &plan).await;
        self.carry_out(key, plan).await.map(|()| None)
    }

    fn max_retries(&self) -> Option<u32> {
        Some(MAX_RETRIES)
    }
}
