//! The shell: watches Services, Pods, Nodes and EndpointSlices, and carries out what [`super::sync`] decides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::events::EventType;
use component_base::informer::{Factory, Informer, InformerEvent, InformerOptions};
use component_base::shutdown::Shutdown;
use component_helpers::pod::{is_pod_ready, node_name, pod_ips};
use controller_runtime::executor::{Action, DeleteOptions, Executor};
use controller_runtime::work_queue::RateLimit;
use controller_runtime::{
    ApiError, Controller, ObjectKey, Queues, Watches, WorkQueue, run_controller,
};
use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::endpoint::should_pod_be_in_endpoints;
use super::plan::Plan;
use super::sync::{self, Observed};
use super::tracker::{Tracker, service_key};
use super::trigger_time::TriggerTimes;
use super::{CONTROLLER_NAME, TRIGGER_TIME, label};
use crate::context::{ControllerContext, Running, StartError};
use crate::gathering::Gathering;
use crate::selected::{index_pods, index_services, pods_of, selector, services_of};

/// A change of a slice that we did not make waits at least so long: often more follow.
const SLICE_CHANGE_MIN_SYNC_DELAY: Duration = Duration::from_secs(1);
/// The first retry waits a second: one sync can mean many writes.
const SYNC_BACK_OFF: RateLimit = RateLimit {
    base: Duration::from_secs(1),
    max: Duration::from_secs(1000),
    qps: 10.0,
    burst: 100,
};
const MAX_RETRIES: u32 = 15;

/// The index of slices by Service.
const BY_SERVICE: &str = "service";

/// Starts the controller under its own account.
///
/// # Errors
/// When it has no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let executor = context
        .executor("endpointslice-controller", "endpoint-slice-controller")
        .await?;
    let settings = Settings {
        max_endpoints_per_slice: context.options.max_endpoints_per_slice,
        updates_batch_period: context.options.endpointslice_updates_batch_period,
    };
    let workers = context.options.workers("service-endpoint");
    let (controller, queue, watches) = EndpointSliceController::new(
        &context.queues,
        &context.informers,
        executor,
        settings,
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

/// The controller's flags.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `--max-endpoints-per-slice`.
    pub max_endpoints_per_slice: usize,
    /// `--endpointslice-updates-batch-period`.
    pub updates_batch_period: Duration,
}

/// Why one pass failed; a retry may help.
#[derive(Debug, thiserror::Error)]
pub enum EndpointSliceError {
    #[error("failed to {verb} EndpointSlice {slice} for Service {service}: {source}")]
    Write {
        verb: &'static str,
        slice: String,
        service: ObjectKey,
        #[source]
        source: ApiError,
    },
    #[error("skipping Pods {pods:?} for Service {service}: Node Not Found")]
    NodeNotFound {
        pods: Vec<String>,
        service: ObjectKey,
    },
}

/// Reconciles Services by key.
pub struct EndpointSliceController {
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    tracker: Tracker,
    trigger_times: TriggerTimes,
    gathering: Gathering,
    executor: Executor,
    settings: Settings,
}

impl EndpointSliceController {
    /// The controller, its queue, and the watches that fill it; run them with [`controller_runtime::run_controller`].
    pub fn new(
        queues: &Queues,
        factory: &Factory,
        executor: Executor,
        settings: Settings,
        clock: Clock,
        shutdown: &Shutdown,
    ) -> (Arc<Self>, WorkQueue, Watches) {
        let controller = Arc::new(Self {
            services: factory.informer(InformerOptions::default()),
            pods: factory.informer(InformerOptions::default()),
            nodes: factory.informer(InformerOptions::default()),
            slices: factory.informer(InformerOptions::default()),
            tracker: Tracker::default(),
            trigger_times: TriggerTimes::default(),
            gathering: Gathering::new(clock),
            executor,
            settings,
        });
        index_pods(&controller.pods);
        index_services(&controller.services);
        controller.slices.add_index(BY_SERVICE, |slice| {
            service_key(slice)
                .map(|key| key.to_string())
                .into_iter()
                .collect()
        });
        let queue = queues.queue_with("endpoint_slice", SYNC_BACK_OFF);
        let mut watches = Watches::new(shutdown.clone());
        let keys = queue.clone();
        watches.on(&controller.services, move |event| {
            keys.add(ObjectKey::of(&**event.object()))
        });
        let (handler, keys) = (controller.clone(), queue.clone());
        watches.on(&controller.pods, move |event| handler.on_pod(&keys, &event));
        let (handler, keys) = (controller.clone(), queue.clone());
        watches.on(&controller.slices, move |event| {
            handler.on_slice(&keys, &event)
        });
        watches.wait_for(&controller.nodes);
        (controller, queue, watches)
    }

    fn on_pod(&self, queue: &WorkQueue, event: &InformerEvent<Pod>) {
        for service in concerned(&self.services, event) {
            let wait = self.gathering.wait(&service);
            queue.add_after(service, wait.max(self.settings.updates_batch_period));
        }
    }

    fn on_slice(&self, queue: &WorkQueue, event: &InformerEvent<EndpointSlice>) {
        match event {
            InformerEvent::Added(slice) => {
                if is_managed(slice) && self.tracker.should_sync(slice) {
                    self.enqueue_service(queue, slice);
                }
            }
            InformerEvent::Updated { old, new } => {
                if service_key(old) != service_key(new) {
                    self.enqueue_service(queue, old);
                    self.enqueue_service(queue, new);
                } else if is_managed(old) != is_managed(new)
                    || (is_managed(new) && self.tracker.should_sync(new))
                {
                    self.enqueue_service(queue, new);
                }
            }
            InformerEvent::Deleted(slice) => {
                if is_managed(slice) && self.tracker.is_unexpected_deletion(slice) {
                    self.enqueue_service(queue, slice);
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

    fn enqueue_service(&self, queue: &WorkQueue, slice: &EndpointSlice) {
        if let Some(key) = service_key(slice) {
            queue.add_after(
                key,
                SLICE_CHANGE_MIN_SYNC_DELAY.max(self.settings.updates_batch_period),
            );
        }
    }

    /// `None`: the cache of slices lags behind what was written.
    fn observe(&self, key: &ObjectKey, service: &Service) -> Option<Observed> {
        let pods = selector(service).map_or_else(Vec::new, |wanted| {
            pods_of(&self.pods, &key.namespace, wanted)
        });
        let slices: Vec<_> = self
            .slices
            .by_index(BY_SERVICE, &key.to_string())
            .into_iter()
            .filter(|s| is_managed(s) && s.metadata.deletion_timestamp.is_none())
            .collect();
        if self.tracker.is_stale(key, slices.iter().map(|s| &**s)) {
            self.tracker.defer(key);
            return None;
        }
        let mut zones = BTreeMap::new();
        for name in pods.iter().filter_map(|p| node_name(p)) {
            if let Some(node) = self.nodes.get("", name) {
                zones.insert(
                    name.to_owned(),
                    component_helpers::node::label(&node, label::ZONE).map(str::to_owned),
                );
            }
        }
        Some(Observed {
            pods,
            slices,
            zones,
        })
    }

    async fn carry_out(
        &self,
        key: &ObjectKey,
        plan: Plan,
        trigger_time: Option<Timestamp>,
    ) -> Result<(), EndpointSliceError> {
        let failed = |verb, slice: &EndpointSlice, source| EndpointSliceError::Write {
            verb,
            slice: slice
                .metadata
                .name
                .clone()
                .or_else(|| slice.metadata.generate_name.clone())
                .unwrap_or_default(),
            service: key.clone(),
            source,
        };
        for mut slice in plan.create {
            set_trigger_time(&mut slice, trigger_time);
            match self.executor.create(&slice).await {
                Ok(created) => self.tracker.written(&created),
                // Nothing can be created there any more.
                Err(ApiError::NamespaceTerminating(_)) => return Ok(()),
                Err(error) => return Err(failed("create", &slice, error)),
            }
        }
        for mut slice in plan.update {
            set_trigger_time(&mut slice, trigger_time);
            let updated = self
                .executor
                .update(&slice)
                .await
                .map_err(|error| failed("update", &slice, error))?;
            self.tracker.written(&updated);
        }
        for slice in plan.delete {
            let options = DeleteOptions {
                uid: slice.metadata.uid.clone(),
                ..DeleteOptions::default()
            };
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            self.executor
                .execute(&Action::delete::<EndpointSlice>(
                    &key.namespace,
                    name,
                    options,
                ))
                .await
                .map_err(|error| failed("delete", &slice, error))?;
            self.tracker.expect_deletion(&slice);
        }
        match plan.skipped.is_empty() {
            true => Ok(()),
            false => Err(EndpointSliceError::NodeNotFound {
                pods: plan.skipped,
                service: key.clone(),
            }),
        }
    }
}

/// The Services that a pod's event concerns.
pub(crate) fn concerned(
    services: &Informer<Service>,
    event: &InformerEvent<Pod>,
) -> BTreeSet<ObjectKey> {
    let of = |pod: &Pod| services_of(services, &pod.metadata);
    match event {
        // Without an address it is nobody's endpoint, and most pods come so.
        InformerEvent::Added(pod) if !should_pod_be_in_endpoints(pod) => BTreeSet::new(),
        // What it was before its last state may not have been told.
        InformerEvent::Added(pod) | InformerEvent::Deleted(pod) => of(pod),
        InformerEvent::Updated { old, new } => {
            let endpoint = should_pod_be_in_endpoints(old) || should_pod_be_in_endpoints(new);
            match pod_endpoints_changed(old, new) {
                _ if !endpoint => BTreeSet::new(),
                (false, false) => BTreeSet::new(),
                (true, false) => of(new),
                (true, true) => &of(new) | &of(old),
                (false, true) => &of(new) ^ &of(old),
            }
        }
    }
}

fn is_managed(slice: &EndpointSlice) -> bool {
    slice
        .metadata
        .labels
        .as_ref()
        .and_then(|l| l.get(label::MANAGED_BY))
        .is_some_and(|by| by == CONTROLLER_NAME)
}

/// Whether the pod changed in what an endpoint shows, and in what decides whose endpoint it is.
fn pod_endpoints_changed(old: &Pod, new: &Pod) -> (bool, bool) {
    let names = |pod: &Pod| {
        pod.spec
            .as_ref()
            .map(|s| (s.hostname.clone(), s.subdomain.clone()))
    };
    let labels_changed = old.metadata.labels != new.metadata.labels || names(old) != names(new);
    let changed = old.metadata.deletion_timestamp != new.metadata.deletion_timestamp
        || is_pod_ready(old) != is_pod_ready(new)
        || pod_ips(old) != pod_ips(new)
        || node_name(old) != node_name(new)
        // A pod that ended has no endpoint, ready or not.
        || component_helpers::pod::is_terminal(old) != component_helpers::pod::is_terminal(new);
    (changed, labels_changed)
}

fn set_trigger_time(slice: &mut EndpointSlice, trigger_time: Option<Timestamp>) {
    let annotations = slice.metadata.annotations.get_or_insert_default();
    match trigger_time {
        Some(time) => annotations.insert(TRIGGER_TIME.to_owned(), time.to_string()),
        None => annotations.remove(TRIGGER_TIME),
    };
    if annotations.is_empty() {
        slice.metadata.annotations = None;
    }
}

#[async_trait]
impl Controller for EndpointSliceController {
    type Key = ObjectKey;
    type Error = EndpointSliceError;

    fn name(&self) -> &'static str {
        "endpointslice-controller"
    }

    fn is_conflict(&self, error: &EndpointSliceError) -> bool {
        matches!(error, EndpointSliceError::Write { source, .. } if source.is_conflict())
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, EndpointSliceError> {
        let Some(service) = self.services.get_key(key) else {
            self.tracker.delete_service(key);
            self.trigger_times.delete_service(key);
            self.gathering.forget(key);
            return Ok(None);
        };
        if selector(&service).is_none() {
            return Ok(None);
        }
        let Some(observed) = self.observe(key, &service) else {
            // The slice's event brings the Service back; this is for an event that came just before.
            return Ok(Some(SYNC_BACK_OFF.base));
        };
        // Also when nothing is to be written: it remembers what it saw.
        let trigger_time = self.trigger_times.compute(key, &service, &observed.pods);
        let plan = sync::sync(&service, &observed, self.settings.max_endpoints_per_slice);
        if plan.writes() {
            self.gathering.written(key);
        }
        let result = self.carry_out(key, plan, trigger_time).await;
        if let Err(error) = &result {
            let message = format!("Error updating Endpoint Slices for Service {key}: {error}");
            let event = Action::event(
                &*service,
                EventType::Warning,
                "FailedToUpdateEndpointSlices",
                message,
            );
            // Recording only queues; it has no failure that anyone could act on.
            let _ = self.executor.execute(&event).await;
        }
        result.map(|()| None)
    }

    fn max_retries(&self) -> Option<u32> {
        Some(MAX_RETRIES)
    }
}
