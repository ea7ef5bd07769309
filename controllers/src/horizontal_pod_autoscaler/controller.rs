//! The shell: autoscalers in; scales, pods and metrics read; a scale and a status written.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::events::{EventType, object_reference};
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use component_helpers::labels::Selector;
use controller_runtime::executor::Target as ApiTarget;
use controller_runtime::transport::Verb;
use controller_runtime::{
    ApiError, Controller, Executor, ObjectKey, Resource, Watches, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, MetricSpec, MetricStatus};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use super::behavior::History;
use super::calculator::Target;
use super::evaluate::{Failure, Proposal, evaluate};
use super::metrics_api::MetricsApi;
use super::monitor::{self, Monitor};
use super::reader::Reader;
use super::sync::{
    ABLE_TO_SCALE, First, SCALED_TO_ZERO, SCALING_ACTIVE, Settings, combine, decide, first,
    remove_condition, set_condition, set_status, tolerances,
};
use crate::context::{ControllerContext, Running, StartError};
use crate::discovery::Discovery;

const NAME: &str = "horizontal-pod-autoscaler-controller";
const ACCOUNT: &str = "horizontal-pod-autoscaler";
/// Gate: the target may be scaled to zero and back.
pub const SCALE_TO_ZERO: &str = "HPAScaleToZero";
/// Gate: the API server counts generations.
pub const GENERATION: &str = "HPAGeneration";
/// Gate: a sync waits until the cache has what was written.
pub const CONSISTENCY: &str = "StaleControllerConsistencyHPA";
/// A sync on a stale cache is put off for this time.
const STALE_PAUSE: Duration = Duration::from_secs(1);

/// What went wrong in a sync.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct SyncError {
    pub(super) message: String,
    /// Whether the specification is to blame.
    is_spec: bool,
}

pub(super) fn internal(message: String) -> SyncError {
    SyncError {
        message,
        is_spec: false,
    }
}

/// The scale of a target.
pub(super) struct Scale {
    pub(super) resource: Resource,
    pub(super) object: Value,
}

impl Scale {
    fn number(&self, part: &str) -> i32 {
        let number = self.object[part]["replicas"].as_i64().unwrap_or(0);
        i32::try_from(number).unwrap_or(i32::MAX)
    }

    fn selector(&self) -> &str {
        self.object["status"]["selector"]
            .as_str()
            .unwrap_or_default()
    }
}

/// What is remembered of an autoscaler.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) history: History,
    /// The selector of its target, once known.
    selector: Option<Selector>,
    /// The version of the last status that was written.
    pub(super) written: Option<u64>,
}

pub(super) struct Autoscalers {
    pub(super) autoscalers: Informer<HorizontalPodAutoscaler>,
    pub(super) pods: Informer<Pod>,
    pub(super) executor: Executor,
    reader: Reader,
    pub(super) settings: Settings,
    pub(super) clock: Clock,
    monitor: Monitor,
    memory: Mutex<HashMap<ObjectKey, Memory>>,
}

/// Builds the controller.
///
/// # Errors
/// When it gets no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let executor = context.executor(ACCOUNT, ACCOUNT).await?;
    let client = context.client(ACCOUNT).await?;
    let options = &context.options.autoscaler;
    let settings = Settings {
        sync_period: options.sync_period,
        downscale_stabilization: options.downscale_stabilization,
        tolerance: options.tolerance,
        cpu_initialization_period: options.cpu_initialization_period,
        initial_readiness_delay: options.initial_readiness_delay,
        scale_to_zero: context.features.enabled(SCALE_TO_ZERO),
        generation: context.features.enabled(GENERATION),
        consistency: context.features.enabled(CONSISTENCY),
    };
    let controller = Arc::new(Autoscalers::new(
        context.informers.informer(InformerOptions::default()),
        context.informers.informer(InformerOptions::default()),
        executor,
        Arc::new(client.clone()),
        Arc::new(client),
        settings,
        context.clock.clone(),
        Monitor::register(&context.metrics)?,
    ));
    let queue = context.queues.queue("horizontalpodautoscaler");
    let mut watches = Watches::new(context.shutdown.clone());
    let (handler, keys) = (controller.clone(), queue.clone());
    watches.on(&controller.autoscalers, move |event| {
        let key = ObjectKey::of(&**event.object());
        match &event {
            InformerEvent::Added(_) => {
                handler.memory().entry(key.clone()).or_default();
                keys.add(key);
            }
            // Without another generation it is our own status, and the next sync is due anyway.
            InformerEvent::Updated { old, new } => {
                if handler.settings.generation && old.metadata.generation != new.metadata.generation
                {
                    keys.add(key);
                }
            }
            InformerEvent::Deleted(_) => {
                handler.memory().remove(&key);
                handler.monitor.forget(&key.namespace, &key.name);
            }
        }
        handler.monitor.count(handler.memory().len());
    });
    watches.wait_for(&controller.pods);
    let workers = context.options.workers("horizontal-pod-autoscaler");
    Ok(run_controller(controller, queue, watches, workers, context.shutdown).boxed())
}

impl Autoscalers {
    pub(super) fn new(
        autoscalers: Informer<HorizontalPodAutoscaler>,
        pods: Informer<Pod>,
        executor: Executor,
        discovery: Arc<dyn Discovery>,
        metrics: Arc<dyn MetricsApi>,
        settings: Settings,
        clock: Clock,
        monitor: Monitor,
    ) -> Self {
        Self {
            autoscalers,
            pods,
            executor,
            reader: Reader::new(discovery, metrics),
            settings,
            clock,
            monitor,
            memory: Mutex::default(),
        }
    }

    pub(super) fn memory(&self) -> MutexGuard<'_, HashMap<ObjectKey, Memory>> {
        self.memory.lock().expect("nobody panics with it")
    }

    pub(super) fn tell(
        &self,
        autoscaler: &HorizontalPodAutoscaler,
        kind: EventType,
        reason: &str,
        message: &str,
    ) {
        let reference = object_reference(autoscaler);
        self.executor
            .recorder()
            .event(&reference, kind, reason, reason, message);
    }

    pub(super) fn warn(&self, autoscaler: &HorizontalPodAutoscaler, reason: &str, message: &str) {
        self.tell(autoscaler, EventType::Warning, reason, message);
    }

    /// Whether the cache has not seen what was written last.
    fn is_stale(&self, key: &ObjectKey, autoscaler: &HorizontalPodAutoscaler) -> bool {
        let version = autoscaler
            .metadata
            .resource_version
            .as_deref()
            .unwrap_or_default();
        let written = self.memory().get(key).and_then(|memory| memory.written);
        match (version.parse::<u64>(), written) {
            (Ok(version), Some(written)) => self.settings.consistency && version < written,
            _ => false,
        }
    }

    /// One sync: what is told and written; what it did, for metrics.
    pub(super) async fn sync(
        &self,
        key: &ObjectKey,
        shared: &HorizontalPodAutoscaler,
    ) -> Result<(), SyncError> {
        let begin = self.clock.monotonic();
        let mut action = "none";
        let result = self.reconcile_autoscaler(key, shared, &mut action).await;
        let error = monitor::error(result.as_ref().err().map(|e| e.is_spec));
        self.monitor
            .reconciled(action, error, self.clock.monotonic().saturating_sub(begin));
        result
    }

    async fn reconcile_autoscaler(
        &self,
        key: &ObjectKey,
        shared: &HorizontalPodAutoscaler,
        action: &mut &'static str,
    ) -> Result<(), SyncError> {
        let mut autoscaler = shared.clone();
        let reference = {
            let target = &autoscaler.spec.scale_target_ref;
            format!("{}/{}/{}", target.kind, key.namespace, target.name)
        };
        let mut scale = self
            .target(key, shared, &mut autoscaler, &reference)
            .await?;
        let now = self.clock.now();
        let current = scale.number("spec");
        if let Some(memory) = self.memory().get_mut(key) {
            memory.history.begin(current, self.clock.monotonic());
        }
        let mut statuses = Vec::new();
        let mut left = Ok(());
        let (desired, reason) = match first(&autoscaler, current, &self.settings) {
            First::Disabled => {
                self.disable(&mut autoscaler);
                (current, String::new())
            }
            First::Bound(replicas, reason) => (replicas, reason.to_owned()),
            First::Metrics => {
                let wanted = self
                    .by_metrics(key, &mut autoscaler, &scale, &mut statuses)
                    .await;
                let (wanted, metric, error) = match wanted {
                    Ok(wanted) => wanted,
                    Err(error) => {
                        let desired = autoscaler.status.as_ref().map_or(0, |s| s.desired_replicas);
                        let numbers = (current, desired);
                        set_status(
                            &mut autoscaler,
                            numbers,
                            statuses,
                            false,
                            &self.settings,
                            now,
                        );
                        self.update_status_and_log(shared, &autoscaler).await;
                        self.warn(&autoscaler, "FailedComputeMetricsReplicas", &error.message);
                        let message = format!(
                            "failed to compute desired number of replicas based on listed metrics for {reference}: {error}"
                        );
                        return Err(SyncError { message, ..error });
                    }
                };
                // Some metrics say enough; what others lack is told at the end.
                left = error.map_or(Ok(()), Err);
                let mut memory = self.memory();
                let history = &mut memory.entry(key.clone()).or_default().history;
                let times = (self.clock.monotonic(), now);
                let wanted = (wanted, metric.as_str());
                let decision = decide(
                    &mut autoscaler,
                    history,
                    wanted,
                    current,
                    &self.settings,
                    times,
                );
                (decision.replicas, decision.reason)
            }
        };
        let rescale = desired != current;
        if rescale {
            let objects = (&mut autoscaler, &mut scale);
            self.rescale(key, shared, objects, (current, desired), &reason, &statuses)
                .await
                .map_err(|e| internal(format!("failed to rescale {reference}: {e}")))?;
            *action = monitor::action(current, desired);
        }
        let numbers = (current, desired);
        set_status(
            &mut autoscaler,
            numbers,
            statuses,
            rescale,
            &self.settings,
            now,
        );
        self.monitor.desired(&key.namespace, &key.name, desired);
        self.update_status(shared, &autoscaler).await?;
        left
    }

    /// The target's scale; sets AbleToScale.
    async fn target(
        &self,
        key: &ObjectKey,
        shared: &HorizontalPodAutoscaler,
        autoscaler: &mut HorizontalPodAutoscaler,
        reference: &str,
    ) -> Result<Scale, SyncError> {
        let now = self.clock.now();
        match self.scale(autoscaler, &key.namespace).await {
            Ok(scale) => {
                let text = "the HPA controller was able to get the target's current scale";
                let status = autoscaler.status.get_or_insert_default();
                set_condition(status, ABLE_TO_SCALE, true, "SucceededGetScale", text, now);
                Ok(scale)
            }
            Err((message, is_spec)) => {
                self.warn(autoscaler, "FailedGetScale", &message);
                let text = format!(
                    "the HPA controller was unable to get the target's current scale: {message}"
                );
                let status = autoscaler.status.get_or_insert_default();
                set_condition(status, ABLE_TO_SCALE, false, "FailedGetScale", &text, now);
                self.update_status_and_log(shared, autoscaler).await;
                let message =
                    format!("failed to query scale subresource for {reference}: {message}");
                Err(SyncError { message, is_spec })
            }
        }
    }

    /// Somebody set the target to zero.
    fn disable(&self, autoscaler: &mut HorizontalPodAutoscaler) {
        let text = "scaling is disabled since the replica count of the target is zero";
        let status = autoscaler.status.get_or_insert_default();
        let now = self.clock.now();
        set_condition(status, SCALING_ACTIVE, false, "ScalingDisabled", text, now);
        if !self.settings.scale_to_zero {
            remove_condition(status, SCALED_TO_ZERO);
        }
    }

    /// The target's scale, or why not and whether the specification is to blame.
    async fn scale(
        &self,
        autoscaler: &HorizontalPodAutoscaler,
        namespace: &str,
    ) -> Result<Scale, (String, bool)> {
        let target = &autoscaler.spec.scale_target_ref;
        let api_version = target.api_version.as_deref().unwrap_or_default();
        if api_version.split('/').count() > 2 {
            return Err((
                format!("unexpected GroupVersion string: {api_version}"),
                true,
            ));
        }
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let found = self.reader.resources_of(group, &target.kind).await;
        let resources = found.map_err(|e| (e.to_string(), false))?;
        let mut error = None;
        for resource in resources {
            match self.read_scale(&resource, namespace, &target.name).await {
                Ok(object) => return Ok(Scale { resource, object }),
                Err(e) => drop(error.get_or_insert(e.to_string())),
            }
        }
        let none = || format!("no matches for kind {:?} in group {group:?}", target.kind);
        Err((error.unwrap_or_else(none), false))
    }

    pub(super) async fn read_scale(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Value, ApiError> {
        let target = scale_target(resource, namespace, name);
        self.executor
            .send(Verb::Get, &target, Vec::new(), Value::Null)
            .await
    }

    /// What all metrics ask for, the one that asks for most, and what the others lack; sets ScalingActive.
    async fn by_metrics(
        &self,
        key: &ObjectKey,
        autoscaler: &mut HorizontalPodAutoscaler,
        scale: &Scale,
        statuses: &mut Vec<MetricStatus>,
    ) -> Result<(i32, String, Option<SyncError>), SyncError> {
        let selector = self.selector(key, autoscaler, scale.selector())?;
        let pods = self.selected(&key.namespace, &selector);
        let specs = autoscaler.spec.metrics.clone().unwrap_or_default();
        let current = autoscaler.status.as_ref().and_then(|s| s.current_replicas);
        let mut proposals = Vec::with_capacity(specs.len());
        for spec in &specs {
            let begin = self.clock.monotonic();
            let readings = self.reader.read(spec, &key.namespace, &selector).await;
            let target = Target {
                pods: &pods,
                spec_replicas: scale.number("spec"),
                status_replicas: scale.number("status"),
                tolerances: tolerances(autoscaler, self.settings.tolerance),
                now: self.clock.now(),
                cpu_initialization_period: self.settings.cpu_initialization_period,
                initial_readiness_delay: self.settings.initial_readiness_delay,
            };
            let proposal = evaluate(spec, readings, &target, &key.namespace);
            if let Err(failure) = &proposal {
                self.warn(autoscaler, failure.reason, &failure.message);
            }
            let took = self.clock.monotonic().saturating_sub(begin);
            measure(&self.monitor, spec, &proposal, current.unwrap_or(0), took);
            proposals.push(proposal);
        }
        let combined = combine(proposals, scale.number("spec"));
        *statuses = combined.statuses;
        let is_active = combined.replicas.is_some();
        let status = autoscaler.status.get_or_insert_default();
        set_condition(
            status,
            SCALING_ACTIVE,
            is_active,
            combined.reason,
            &combined.message,
            self.clock.now(),
        );
        let error = combined
            .error
            .map(|(message, is_spec)| SyncError { message, is_spec });
        match (combined.replicas, error) {
            (Some(replicas), error) => Ok((replicas, combined.name, error)),
            (None, error) => Err(error.unwrap_or_else(|| internal("no metrics".to_owned()))),
        }
    }

    fn selected(&self, namespace: &str, selector: &Selector) -> Vec<Arc<Pod>> {
        let mut pods = self.pods.list_namespace(namespace);
        pods.retain(|pod| selector.matches(&pod.metadata.labels));
        pods
    }

    /// The target's selector, if it is one and its pods are not another autoscaler's too. Upstream: `validateAndParseSelector`.
    fn selector(
        &self,
        key: &ObjectKey,
        autoscaler: &mut HorizontalPodAutoscaler,
        text: &str,
    ) -> Result<Selector, SyncError> {
        let mut refuse = |event: &str, reason: &str, condition: &str, message: String| {
            self.warn(autoscaler, event, &message);
            let status = autoscaler.status.get_or_insert_default();
            set_condition(
                status,
                SCALING_ACTIVE,
                false,
                reason,
                condition,
                self.clock.now(),
            );
            internal(message)
        };
        if text.is_empty() {
            let condition = "the HPA target's scale is missing a selector";
            let message = "selector is required".to_owned();
            return Err(refuse(
                "SelectorRequired",
                "InvalidSelector",
                condition,
                message,
            ));
        }
        let selector = Selector::parse(text).map_err(|error| {
            let message = format!(
                "couldn't convert selector into a corresponding internal selector object: {error}"
            );
            refuse(
                "InvalidSelector",
                "InvalidSelector",
                &message.clone(),
                message,
            )
        })?;
        let others = {
            let mut memory = self.memory();
            let Some(own) = memory.get_mut(key) else {
                let (namespace, name) = (&key.namespace, &key.name);
                return Err(internal(format!(
                    "HPA {namespace}/{name} was deleted during reconciliation"
                )));
            };
            own.selector = Some(selector.clone());
            let others = memory
                .iter()
                .filter(|(k, _)| k.namespace == key.namespace && *k != key);
            let others = others.filter_map(|(k, m)| Some((k.clone(), m.selector.clone()?)));
            others.collect::<Vec<_>>()
        };
        let pods = self.selected(&key.namespace, &selector);
        let shared = others
            .iter()
            .find(|(_, other)| pods.iter().any(|pod| other.matches(&pod.metadata.labels)));
        if let Some((other, _)) = shared {
            let mut both = [key.to_string(), other.to_string()];
            both.sort();
            let message = format!(
                "pods by selector {text} are controlled by more than one HPA (e.g. [{}])",
                both.join(" ")
            );
            return Err(refuse(
                "AmbiguousSelector",
                "AmbiguousSelector",
                &message.clone(),
                message,
            ));
        }
        Ok(selector)
    }
}

pub(super) fn scale_target(resource: &Resource, namespace: &str, name: &str) -> ApiTarget {
    ApiTarget {
        resource: resource.clone(),
        key: ObjectKey::new(namespace, name),
        subresource: "scale",
    }
}

fn measure(
    monitor: &Monitor,
    spec: &MetricSpec,
    proposal: &Result<Proposal, Failure>,
    current: i32,
    took: Duration,
) {
    let (action, error) = match proposal {
        Ok(proposal) => (monitor::action(current, proposal.replicas), None),
        Err(failure) => ("none", Some(failure.is_spec)),
    };
    monitor.computed(action, monitor::error(error), &spec.type_, took);
}

#[async_trait]
impl Controller for Autoscalers {
    type Key = ObjectKey;
    type Error = SyncError;

    fn name(&self) -> &'static str {
        NAME
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, SyncError> {
        let Some(autoscaler) = self.autoscalers.get_key(key) else {
            self.memory().remove(key);
            tracing::info!(hpa = %key, "Horizontal Pod Autoscaler has been deleted");
            return Ok(None);
        };
        if self.is_stale(key, &autoscaler) {
            self.monitor.stale();
            return Ok(Some(STALE_PAUSE.min(self.settings.sync_period)));
        }
        self.memory().entry(key.clone()).or_default();
        // A failed sync has its turn again like every other: what it lacks is told in events and in the status.
        if let Err(error) = self.sync(key, &autoscaler).await {
            tracing::warn!(hpa = %key, %error, "Error syncing, will retry");
        }
        Ok(Some(self.settings.sync_period))
    }
}
