//! The shell: namespaces and ServiceAccounts in, creations out.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use controller_runtime::{ApiError, Controller, Executor, ObjectKey, Watches, run_controller};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};

use super::sync::{ACCOUNTS, sync};
use crate::context::{ControllerContext, Running, StartError};

struct ServiceAccountController {
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
    executor: Executor,
}

/// Builds the controller.
///
/// # Errors
/// When it gets no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let namespaces: Informer<Namespace> = context.informers.informer(InformerOptions::default());
    let accounts: Informer<ServiceAccount> = context.informers.informer(InformerOptions::default());
    let queue = context.queues.queue("serviceaccount");
    let mut watches = Watches::new(context.shutdown.clone());
    let add = queue.clone();
    watches.on(&namespaces, move |event| {
        if !matches!(event, InformerEvent::Deleted(_)) {
            add.add(ObjectKey::of(&**event.object()));
        }
    });
    let add = queue.clone();
    watches.on(&accounts, move |event| {
        if let InformerEvent::Deleted(account) = event
            && account
                .metadata
                .name
                .as_deref()
                .is_some_and(|name| ACCOUNTS.contains(&name))
        {
            add.add(ObjectKey::new(
                "",
                account.metadata.namespace.clone().unwrap_or_default(),
            ));
        }
    });
    let executor = context
        .executor("service-account-controller", "service-account-controller")
        .await?;
    let controller = Arc::new(ServiceAccountController {
        namespaces,
        accounts,
        executor,
    });
    Ok(run_controller(controller, queue, watches, 1, context.shutdown).boxed())
}

#[async_trait]
impl Controller for ServiceAccountController {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        "serviceaccount-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let Some(namespace) = self.namespaces.get_key(key) else {
            return Ok(None);
        };
        let plan = sync(&namespace, |name| {
            self.accounts.get(&key.name, name).is_some()
        });
        for action in &plan.actions {
            match self.executor.execute(action).await {
                Ok(_)
                | Err(
                    ApiError::AlreadyExists(_)
                    | ApiError::NotFound(_)
                    | ApiError::NamespaceTerminating(_),
                ) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(plan.requeue_after)
    }
}
