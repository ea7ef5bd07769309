//! The shell: looks once a day at all token Secrets in the cache.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::informer::{Informer, InformerOptions, ObjectKey};
use controller_runtime::{ApiError, Controller, Executor, Watches, run_controller};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};

use super::sync::{
    Cluster, NotTracked, TRACKING_CONFIG_MAP, pod_secret_names, sync, tracked_long_enough,
};
use crate::context::{ControllerContext, Running, StartError};
use crate::serviceaccount_token::sync::SECRET_TYPE;

const SYNC_INTERVAL: Duration = Duration::from_secs(24 * 3600);
const NAMESPACE: &str = "kube-system";

/// Why a round did not happen.
#[derive(Debug, thiserror::Error)]
enum CleanerError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    NotTracked(#[from] NotTracked),
}

struct LegacyTokenCleaner {
    accounts: Informer<ServiceAccount>,
    secrets: Informer<Secret>,
    pods: Informer<Pod>,
    executor: Executor,
    period: Duration,
    clock: Clock,
}

/// Builds the controller.
///
/// # Errors
/// When it gets no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let account = "legacy-service-account-token-cleaner";
    let executor = context.executor(account, account).await?;
    let selection = InformerOptions::default().fields(format!("type={SECRET_TYPE}"));
    let controller = Arc::new(LegacyTokenCleaner {
        accounts: context.informers.informer(InformerOptions::default()),
        secrets: context.informers.informer(selection),
        pods: context.informers.informer(InformerOptions::default()),
        executor,
        period: context.options.legacy_token_clean_up_period,
        clock: context.clock.clone(),
    });
    let queue = context.queues.queue("legacy_service_account_token_cleaner");
    // The one key stands for a round; it comes back by itself.
    queue.add(ObjectKey::new("", "tokens"));
    let mut watches = Watches::new(context.shutdown.clone());
    watches.wait_for(&controller.accounts);
    watches.wait_for(&controller.secrets);
    watches.wait_for(&controller.pods);
    Ok(run_controller(controller, queue, watches, 1, context.shutdown).boxed())
}

impl Cluster for LegacyTokenCleaner {
    fn account(&self, namespace: &str, name: &str) -> Option<Arc<ServiceAccount>> {
        self.accounts.get(namespace, name)
    }

    fn is_mounted(&self, namespace: &str, secret: &str) -> bool {
        let pods = self.pods.list_namespace(namespace);
        pods.iter()
            .any(|pod| pod_secret_names(pod).contains(secret))
    }
}

#[async_trait]
impl Controller for LegacyTokenCleaner {
    type Key = ObjectKey;
    type Error = CleanerError;

    fn name(&self) -> &'static str {
        "legacy-serviceaccount-token-cleaner-controller"
    }

    async fn reconcile(&self, _: &ObjectKey) -> Result<Option<Duration>, CleanerError> {
        let tracking: Option<ConfigMap> = self.executor.get(NAMESPACE, TRACKING_CONFIG_MAP).await?;
        let now = self.clock.now();
        if !tracked_long_enough(&tracking.ok_or(NotTracked)?, self.period, now)? {
            return Ok(Some(SYNC_INTERVAL));
        }
        let plan = sync(&self.secrets.list(), self, self.period, now);
        for action in &plan.actions {
            match self.executor.execute(action).await {
                // It has changed: the next round decides anew.
                Ok(_) | Err(ApiError::Conflict(_) | ApiError::NotFound(_)) => {}
                Err(error) => tracing::error!(%error, "Cleaning a legacy service account token"),
            }
        }
        Ok(Some(SYNC_INTERVAL))
    }
}
