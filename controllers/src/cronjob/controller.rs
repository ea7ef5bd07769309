//! The shell: watches CronJobs and their Jobs, and carries out what [`super::sync`] decides.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::events::{EventType, object_reference};
use component_base::informer::{Factory, Informer, InformerEvent, InformerOptions};
use component_base::metrics::{exponential_buckets, make};
use component_base::shutdown::Shutdown;
use component_helpers::owner_ref::is_controlled_by;
use controller_runtime::executor::{Action, DeleteOptions, Executor};
use controller_runtime::{
    ApiError, Controller, ObjectKey, Queues, Watches, WorkQueue, run_controller,
};
use futures::FutureExt as _;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use prometheus::Histogram;

use super::sync::{self, Start};
use crate::context::{ControllerContext, Running, StartError};
use crate::controller_ref::{controlled_by, index_by_controller};
use crate::controller_ref_manager::resolve;

component_base::metrics! {
    pub(super) struct Metrics {
        creation_skew: Histogram = make::histogram(
            "cronjob_controller_job_creation_skew_duration_seconds",
            "Time between when a cronjob is scheduled to be run, and when the corresponding job is created",
            exponential_buckets(1.0, 2.0, 10),
        ),
    }
}

/// Starts the controller under its own account.
///
/// # Errors
/// When it has no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let name = "cronjob-controller";
    let executor = context.executor(name, name).await?;
    let workers = context.options.workers("cron-job");
    let (controller, queue, watches) = CronJobController::new(
        &context.queues,
        &context.informers,
        executor,
        Metrics::register(&context.metrics)?,
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

/// Reconciles CronJobs by key.
pub struct CronJobController {
    cron_jobs: Informer<CronJob>,
    jobs: Informer<Job>,
    executor: Executor,
    clock: Clock,
    metrics: Metrics,
    /// Of schedules that name none.
    zone: TimeZone,
}

impl CronJobController {
    /// The controller, its queue, and the watches that fill it; run them with [`controller_runtime::run_controller`].
    fn new(
        queues: &Queues,
        factory: &Factory,
        executor: Executor,
        metrics: Metrics,
        clock: Clock,
        shutdown: &Shutdown,
    ) -> (Arc<Self>, WorkQueue, Watches) {
        let cron_jobs = factory.informer(InformerOptions::default());
        let jobs = factory.informer(InformerOptions::default());
        Self::over(queues, cron_jobs, jobs, executor, metrics, clock, shutdown)
    }

    pub(super) fn over(
        queues: &Queues,
        cron_jobs: Informer<CronJob>,
        jobs: Informer<Job>,
        executor: Executor,
        metrics: Metrics,
        clock: Clock,
        shutdown: &Shutdown,
    ) -> (Arc<Self>, WorkQueue, Watches) {
        let controller = Arc::new(Self {
            cron_jobs,
            jobs,
            executor,
            clock,
            metrics,
            zone: TimeZone::system(),
        });
        index_by_controller(&controller.jobs);
        let queue = queues.queue("cronjob");
        let mut watches = Watches::new(shutdown.clone());
        let (handler, keys) = (controller.clone(), queue.clone());
        watches.on(&controller.cron_jobs, move |event| {
            handler.on_cron_job(&keys, &event)
        });
        let (handler, keys) = (controller.clone(), queue.clone());
        watches.on(&controller.jobs, move |event| handler.on_job(&keys, &event));
        (controller, queue, watches)
    }

    fn on_cron_job(&self, queue: &WorkQueue, event: &InformerEvent<CronJob>) {
        let key = ObjectKey::of(&**event.object());
        if let InformerEvent::Updated { old, new } = event {
            let (before, now) = (&old.spec, &new.spec);
            // A new schedule begins with its next time, not with those that it would have had.
            if (before.schedule != now.schedule || before.time_zone != now.time_zone)
                && let Some(wait) = sync::until_next_schedule(new, self.clock.now(), &self.zone)
            {
                return queue.add_after(key, wait);
            }
        }
        queue.add(key);
    }

    fn on_job(&self, queue: &WorkQueue, event: &InformerEvent<Job>) {
        let old = match event {
            InformerEvent::Updated { old, .. } => Some(old),
            _ => None,
        };
        for job in old.into_iter().chain([event.object()]) {
            if let Some(owner) = resolve(&self.cron_jobs, &job.metadata) {
                queue.add(ObjectKey::of(&*owner));
            }
        }
    }

    /// Deletes a Job and tells so.
    async fn delete_job(
        &self,
        cron_job: &CronJob,
        name: &str,
        uid: Option<&str>,
    ) -> Result<(), ApiError> {
        let options = DeleteOptions {
            uid: uid.map(str::to_owned),
            propagation: Some("Background"),
            ..DeleteOptions::default()
        };
        let namespace = cron_job.metadata.namespace.as_deref().unwrap_or_default();
        let action = Action::delete::<Job>(namespace, name, options);
        match self.executor.execute(&action).await {
            Ok(_) => {
                let message = format!("Deleted job {name}");
                self.record(cron_job, EventType::Normal, "SuccessfulDelete", message)
                    .await
            }
            // A namesake: ours is gone.
            Err(error) if error.is_conflict() => Ok(()),
            Err(error) => {
                let message = format!("Deleted job: {error}");
                self.record(cron_job, EventType::Warning, "FailedDelete", message)
                    .await?;
                Err(error)
            }
        }
    }

    async fn record(
        &self,
        cron_job: &CronJob,
        event_type: EventType,
        reason: &'static str,
        message: String,
    ) -> Result<(), ApiError> {
        let event = Action::event(cron_job, event_type, reason, message);
        self.executor.execute(&event).await.map(drop)
    }

    /// UIDs of the active Jobs that are neither in the cache nor in the API.
    async fn gone(
        &self,
        cron_job: &CronJob,
        jobs: &[Arc<Job>],
    ) -> Result<HashSet<String>, ApiError> {
        let mut gone = HashSet::new();
        for reference in sync::unseen(cron_job, jobs) {
            let (namespace, name) = (
                reference.namespace.as_deref().unwrap_or_default(),
                reference.name.as_deref().unwrap_or_default(),
            );
            let found = self.executor.get::<Job>(namespace, name).await?;
            if found.is_none_or(|job| job.metadata.uid != reference.uid) {
                gone.extend(reference.uid);
            }
        }
        Ok(gone)
    }

    /// Makes room for a Job and makes it; what was done is in the status of `cron_job` even after a failure.
    async fn start(&self, cron_job: &mut CronJob, start: &Start) -> Result<(), ApiError> {
        for old in &start.replace {
            let name = old.name.as_deref().unwrap_or_default();
            self.delete_job(cron_job, name, old.uid.as_deref()).await?;
            sync::forget(cron_job, old.uid.as_deref());
        }
        if let Some(job) = self.create_job(cron_job, start).await? {
            sync::started(cron_job, job, start.scheduled);
        }
        Ok(())
    }

    /// `None`: there will be none, or it is somebody else's.
    async fn create_job(
        &self,
        cron_job: &CronJob,
        start: &Start,
    ) -> Result<Option<ObjectReference>, ApiError> {
        let error = match self.executor.create(&start.job).await {
            Ok(created) => {
                if let Some(at) = &created.metadata.creation_timestamp {
                    let skew = at.0.duration_since(start.scheduled);
                    self.metrics.creation_skew.observe(skew.as_secs_f64());
                }
                let name = created.metadata.name.as_deref().unwrap_or_default();
                let message = format!("Created job {name}");
                self.record(cron_job, EventType::Normal, "SuccessfulCreate", message)
                    .await?;
                return Ok(Some(object_reference(&created)));
            }
            Err(error) => error,
        };
        match error {
            // Nothing can be created there any more, and nobody wants to hear of it.
            ApiError::NamespaceTerminating(_) => Ok(None),
            // Ours, if its status was not written.
            ApiError::AlreadyExists(_) => {
                let key = ObjectKey::of(&start.job);
                let found = self.executor.get::<Job>(&key.namespace, &key.name).await?;
                let uid = cron_job.metadata.uid.as_deref().unwrap_or_default();
                Ok(found
                    .filter(|job| is_controlled_by(&job.metadata, uid))
                    .map(|job| object_reference(&job)))
            }
            error => {
                let message = format!("Error creating job: {error}");
                self.record(cron_job, EventType::Warning, "FailedCreate", message)
                    .await?;
                Err(error)
            }
        }
    }
}

#[async_trait]
impl Controller for CronJobController {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        "cronjob-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let Some(cached) = self.cron_jobs.get_key(key) else {
            return Ok(None);
        };
        let uid = cached.metadata.uid.as_deref().unwrap_or_default();
        let jobs = controlled_by(&self.jobs, uid);
        let mut cron_job = (*cached).clone();
        if sync::has_stranger(&cron_job, &jobs) {
            // Past the cache: the status may know it by now.
            let fresh = self
                .executor
                .get::<CronJob>(&key.namespace, &key.name)
                .await?;
            match fresh.filter(|f| f.metadata.uid == cached.metadata.uid) {
                Some(fresh) => cron_job = fresh,
                None => return Ok(None),
            }
        }
        let before = cron_job.status.clone();
        let gone = self.gone(&cron_job, &jobs).await?;
        let events = sync::take_in(&mut cron_job, &jobs, &gone);
        self.executor.execute_all(&events).await?;
        for job in sync::excess(&cron_job, &jobs) {
            let name = job.metadata.name.as_deref().unwrap_or_default();
            let uid = job.metadata.uid.as_deref();
            // Told in an event; the next time tries again.
            let _ = self.delete_job(&cron_job, name, uid).await;
        }
        let decision = sync::decide(&cron_job, self.clock.now(), &self.zone);
        self.executor.execute_all(&decision.events).await?;
        let result = match &decision.start {
            Some(start) => self.start(&mut cron_job, start).await,
            None => Ok(()),
        };
        if cron_job.status != before {
            match self.executor.update_status(&cron_job).await {
                Ok(_) => {}
                Err(ApiError::NotFound(_)) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        result.map(|()| decision.requeue_after)
    }
}
