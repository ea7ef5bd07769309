//! The shell: namespaces and ConfigMaps in, one write out.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use controller_runtime::{ApiError, Controller, Executor, ObjectKey, Watches, run_controller};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};

use super::sync::{NAME, sync};
use crate::context::{ControllerContext, Running, StartError};

struct Publisher {
    namespaces: Informer<Namespace>,
    config_maps: Informer<ConfigMap>,
    root_ca: String,
    executor: Executor,
}

/// Builds the controller.
///
/// # Errors
/// Without a CA to publish, or when it gets no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let root_ca = context
        .root_ca
        .as_ref()
        .clone()
        .and_then(|pem| String::from_utf8(pem).ok());
    let root_ca = root_ca.ok_or_else(|| {
        StartError::Settings(
            "no CA to publish: set --root-ca-file or a CA in the kubeconfig".to_string(),
        )
    })?;
    let namespaces: Informer<Namespace> = context.informers.informer(InformerOptions::default());
    // Of all ConfigMaps, only those that are published are held.
    let config_maps: Informer<ConfigMap> = context
        .informers
        .informer(InformerOptions::default().fields(format!("metadata.name={NAME}")));
    let queue = context.queues.queue("root_ca_cert_publisher");
    let mut watches = Watches::new(context.shutdown.clone());
    let add = queue.clone();
    watches.on(&namespaces, move |event| {
        if !matches!(event, InformerEvent::Deleted(_)) {
            add.add(ObjectKey::of(&**event.object()));
        }
    });
    let add = queue.clone();
    watches.on(&config_maps, move |event| {
        if !matches!(event, InformerEvent::Added(_)) {
            add.add(ObjectKey::new(
                "",
                event
                    .object()
                    .metadata
                    .namespace
                    .clone()
                    .unwrap_or_default(),
            ));
        }
    });
    let executor = context
        .executor("root-ca-cert-publisher", "root-ca-cert-publisher")
        .await?;
    let controller = Arc::new(Publisher {
        namespaces,
        config_maps,
        root_ca,
        executor,
    });
    Ok(run_controller(controller, queue, watches, 1, context.shutdown).boxed())
}

#[async_trait]
impl Controller for Publisher {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        "root-ca-certificate-publisher-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let active = self.namespaces.get_key(key).is_some_and(|namespace| {
            namespace.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Active")
        });
        if !active {
            return Ok(None);
        }
        let observed = self.config_maps.get(&key.name, NAME);
        let Some(action) = sync(&key.name, &self.root_ca, observed.as_deref()) else {
            return Ok(None);
        };
        match self.executor.execute(&action).await {
            Ok(_) | Err(ApiError::NotFound(_) | ApiError::NamespaceTerminating(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
