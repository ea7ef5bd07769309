//! The shell: one ConfigMap and the token Secrets in, one update out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::informer::{Informer, InformerOptions};
use controller_runtime::{
    Action, ApiError, Controller, Executor, ObjectKey, Watches, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use super::sync::sync;
use crate::bootstrap_token::{Expiry, NAMESPACE, SECRET_TYPE, expiry, signing_token};
use crate::context::{ControllerContext, Running, StartError};

const CONFIG_MAP_NAMESPACE: &str = "kube-public";
const CONFIG_MAP: &str = "cluster-info";

struct BootstrapSigner {
    config_maps: Informer<ConfigMap>,
    secrets: Informer<Secret>,
    executor: Executor,
    clock: Clock,
}

/// Builds the controller.
///
/// # Errors
/// When no client can be had.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let selection = InformerOptions::default().fields(format!("metadata.name={CONFIG_MAP}"));
    let config_maps: Informer<ConfigMap> = context
        .informers
        .namespaced_informer(CONFIG_MAP_NAMESPACE, selection);
    let selection = InformerOptions::default().fields(format!("type={SECRET_TYPE}"));
    let secrets: Informer<Secret> = context.informers.namespaced_informer(NAMESPACE, selection);
    let queue = context.queues.queue("bootstrap_signer_queue");
    let mut watches = Watches::new(context.shutdown.clone());
    let (first, second) = (queue.clone(), queue.clone());
    watches.on(&config_maps, move |_| {
        first.add(ObjectKey::new(CONFIG_MAP_NAMESPACE, CONFIG_MAP))
    });
    watches.on(&secrets, move |_| {
        second.add(ObjectKey::new(CONFIG_MAP_NAMESPACE, CONFIG_MAP))
    });
    let executor = context
        .executor("bootstrap-signer", "bootstrap-signer")
        .await?;
    let controller = Arc::new(BootstrapSigner {
        config_maps,
        secrets,
        executor,
        clock: context.clock.clone(),
    });
    Ok(run_controller(controller, queue, watches, 1, context.shutdown).boxed())
}

#[async_trait]
impl Controller for BootstrapSigner {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        "bootstrap-signer-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let Some(config_map) = self.config_maps.get_key(key) else {
            return Ok(None);
        };
        let now = self.clock.now();
        let secrets = self.secrets.list();
        let tokens: BTreeMap<String, String> = secrets
            .iter()
            .filter_map(|secret| signing_token(secret, now))
            .map(|(id, value)| (id.to_string(), value.to_string()))
            .collect();
        if let Some(signed) = sync(&config_map, &tokens) {
            match self.executor.execute(&Action::update(&signed)).await {
                Err(ApiError::NotFound(_)) => {}
                result => result.map(drop)?,
            }
        }
        // A signature goes with its token.
        let next = secrets
            .iter()
            .filter_map(|secret| match expiry(secret, now) {
                Expiry::In(left) => Some(left),
                _ => None,
            });
        Ok(next.min())
    }
}
