//! The shell: watches Jobs, and deletes those whose time is over.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::informer::{Informer, InformerOptions};
use component_base::metrics::{exponential_buckets, make};
use controller_runtime::executor::{Action, DeleteOptions, Executor};
use controller_runtime::{ApiError, Controller, ObjectKey, Watches, run_controller};
use futures::FutureExt as _;
use k8s_openapi::api::batch::v1::Job;
use prometheus::Histogram;

use super::sync::{overdue, time_left};
use crate::context::{ControllerContext, Running, StartError};

/// Starts the controller under its own account.
///
/// # Errors
/// When it has no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let name = "ttl-after-finished-controller";
    let executor = context.executor(name, name).await?;
    let jobs = context.informers.informer(InformerOptions::default());
    let queue = context.queues.queue("ttl_jobs_to_delete");
    let mut watches = Watches::new(context.shutdown.clone());
    let keys = queue.clone();
    watches.on(&jobs, move |event| {
        keys.add(ObjectKey::of(&**event.object()))
    });
    let controller = Arc::new(TtlAfterFinished {
        jobs,
        executor,
        clock: context.clock.clone(),
        metrics: Metrics::register(&context.metrics)?,
    });
    let workers = context.options.workers("ttl-after-finished");
    Ok(run_controller(
        controller,
        queue,
        watches,
        workers,
        context.shutdown.clone(),
    )
    .boxed())
}

component_base::metrics! {
    /// Upstream: pkg/controller/ttlafterfinished/metrics, v1.37.
    struct Metrics {
        deletion_duration: Histogram = make::histogram(
            "ttl_after_finished_controller_job_deletion_duration_seconds",
            "The time it took to delete the job since it became eligible for deletion",
            exponential_buckets(0.1, 2.0, 14),
        ),
    }
}

struct TtlAfterFinished {
    jobs: Informer<Job>,
    executor: Executor,
    clock: Clock,
    metrics: Metrics,
}

#[async_trait]
impl Controller for TtlAfterFinished {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        "ttl-after-finished-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let left = |job: &Job| time_left(job, self.clock.now());
        match self.jobs.get_key(key).and_then(|job| left(&job)) {
            None => return Ok(None),
            Some(time) if !time.is_zero() => return Ok(Some(time)),
            Some(_) => {}
        }
        // Past the cache: the time may have been made longer.
        let Some(fresh) = self.executor.get::<Job>(&key.namespace, &key.name).await? else {
            return Ok(None);
        };
        match left(&fresh) {
            Some(time) if time.is_zero() => {
                let options = DeleteOptions {
                    uid: fresh.metadata.uid.clone(),
                    resource_version: fresh.metadata.resource_version.clone(),
                    propagation: Some("Foreground"),
                    ..DeleteOptions::default()
                };
                let action = Action::delete::<Job>(&key.namespace, &key.name, options);
                let deleted = self.executor.execute(&action).await?;
                if let Some(late) = overdue(&fresh, self.clock.now())
                    && !deleted.is_null()
                {
                    let metric = &self.metrics.deletion_duration;
                    metric.observe(late.as_secs_f64());
                }
                Ok(None)
            }
            later => Ok(later),
        }
    }
}
