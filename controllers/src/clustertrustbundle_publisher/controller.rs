//! The shell: the signer's bundles in, writes out.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::informer::{Informer, InformerOptions};
use component_base::metrics::{exponential_buckets, make};
use controller_runtime::{ApiError, Controller, Executor, ObjectKey, Watches, run_controller};
use futures::FutureExt as _;
use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use prometheus::{HistogramVec, IntCounterVec};

use super::sync::{SIGNER, sync};
use crate::context::{ControllerContext, Running, StartError};

/// The gate this controller is behind.
pub const CLUSTER_TRUST_BUNDLE: &str = "ClusterTrustBundle";
const NAME: &str = "kube-apiserver-serving-clustertrustbundle-publisher-controller";
const ACCOUNT: &str = "kube-apiserver-serving-clustertrustbundle-publisher";

component_base::metrics! {
    struct Metrics {
        syncs: IntCounterVec = make::counters(
            "clustertrustbundle_publisher_sync_total",
            "Number of syncs that occurred in cluster trust bundle publisher.",
            &["code"],
        ),
        duration: HistogramVec = make::histograms(
            "clustertrustbundle_publisher_sync_duration_seconds",
            "The time it took to sync a cluster trust bundle.",
            &["code"],
            exponential_buckets(0.001, 2.0, 15),
        ),
    }
}

struct Publisher {
    bundles: Informer<ClusterTrustBundle>,
    ca: String,
    executor: Executor,
    clock: Clock,
    metrics: Metrics,
}

/// Builds the controller; where the gate is off, the API server has no such bundles, or no CA is known, it has nothing
/// to do.
///
/// # Errors
/// When no client can be had, or the server does not say what it has.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let ca = context.root_ca.as_ref().clone();
    let ca = ca.and_then(|pem| String::from_utf8(pem).ok());
    let Some(ca) = ca.filter(|_| context.features.enabled(CLUSTER_TRUST_BUNDLE)) else {
        return Ok(context.nothing_to_do(NAME));
    };
    if !context.serves::<ClusterTrustBundle>().await? {
        return Ok(context.nothing_to_do(NAME));
    }
    let bundles: Informer<ClusterTrustBundle> = context
        .informers
        .informer(InformerOptions::default().fields(format!("spec.signerName={SIGNER}")));
    let queue = context
        .queues
        .queue("ca_cert_publisher_cluster_trust_bundles");
    let mut watches = Watches::new(context.shutdown.clone());
    let add = queue.clone();
    // There is one thing to look at: all of them.
    watches.on(&bundles, move |_| add.add(ObjectKey::default()));
    queue.add(ObjectKey::default());
    let executor = context.executor(ACCOUNT, ACCOUNT).await?;
    let controller = Arc::new(Publisher {
        bundles,
        ca,
        executor,
        clock: context.clock.clone(),
        metrics: Metrics::register(&context.metrics)?,
    });
    Ok(run_controller(controller, queue, watches, 1, context.shutdown).boxed())
}

impl Publisher {
    /// Goes on past a deletion that failed, and reports it.
    async fn publish(&self) -> Result<(), ApiError> {
        let observed = self.bundles.list();
        let mut result = Ok(());
        for action in sync(&self.ca, observed.iter().map(|bundle| &**bundle)) {
            match self.executor.execute(&action).await {
                Ok(_) | Err(ApiError::NotFound(_)) => {}
                Err(error) => {
                    tracing::error!(%error, "failed to publish the cluster trust bundle or to remove an old one");
                    result = Err(error);
                }
            }
        }
        result
    }
}

/// The HTTP status of an answer; 500 where there was none. Upstream: `recordMetrics`.
fn code(error: &ApiError) -> u16 {
    match error {
        ApiError::NotFound(_) => 404,
        ApiError::Conflict(_) | ApiError::AlreadyExists(_) => 409,
        ApiError::Forbidden(_) | ApiError::NamespaceTerminating(_) => 403,
        ApiError::Invalid(_) => 422,
        ApiError::TooManyRequests { .. } => 429,
        ApiError::Server { code, .. } => *code,
        ApiError::Unreachable(_) | ApiError::Decode(_) | ApiError::NotLeading => 500,
    }
}

#[async_trait]
impl Controller for Publisher {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        NAME
    }

    async fn reconcile(&self, _: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let begin = self.clock.monotonic();
        let result = self.publish().await;
        let code = match &result {
            Ok(()) => "200".to_owned(),
            Err(error) => code(error).to_string(),
        };
        let took = self.clock.monotonic().saturating_sub(begin);
        let Metrics { syncs, duration } = &self.metrics;
        duration
            .with_label_values(&[code.as_str()])
            .observe(took.as_secs_f64());
        syncs.with_label_values(&[code.as_str()]).inc();
        result.map(|()| None)
    }
}
