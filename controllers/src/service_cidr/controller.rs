//! The shell: watches ServiceCIDRs and IPAddresses, and carries out what [`super::sync`] decides.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::events::EventType;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use controller_runtime::{
    Action, ApiError, Controller, Executor, ObjectKey, Watches, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};

use super::sync::{FIELD_MANAGER, contains_address, overlap, service_address, sync};
use crate::context::{ControllerContext, Running, StartError};

const MAX_RETRIES: u32 = 15;
const WORKERS: usize = 5;

struct ServiceCidrController {
    cidrs: Informer<ServiceCIDR>,
    addresses: Informer<IPAddress>,
    executor: Executor,
    clock: Clock,
}

/// Builds the controller.
///
/// # Errors
/// When it gets no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let executor = context
        .executor("service-cidrs-controller", FIELD_MANAGER)
        .await?;
    let controller = Arc::new(ServiceCidrController {
        cidrs: context.informers.informer(InformerOptions::default()),
        addresses: context.informers.informer(InformerOptions::default()),
        executor,
        clock: context.clock.clone(),
    });
    let queue = context.queues.queue("ipaddresses");
    let mut watches = Watches::new(context.shutdown.clone());
    let (handler, keys) = (controller.clone(), queue.clone());
    watches.on(&controller.cidrs, move |event| {
        let cidr = event.object();
        keys.add(ObjectKey::of(&**cidr));
        if matches!(event, InformerEvent::Added(_)) {
            // It may be the parent that a deletion waits for.
            for other in handler.cidrs.list().iter().filter(|o| overlap(o, cidr)) {
                keys.add(ObjectKey::of(&**other));
            }
        }
    });
    let (handler, keys) = (controller.clone(), queue.clone());
    watches.on(&controller.addresses, move |event| {
        let Some(ip) = service_address(event.object()) else {
            return;
        };
        if !matches!(event, InformerEvent::Updated { .. }) {
            for cidr in handler
                .cidrs
                .list()
                .iter()
                .filter(|c| contains_address(c, ip))
            {
                keys.add(ObjectKey::of(&**cidr));
            }
        }
    });
    Ok(run_controller(controller, queue, watches, WORKERS, context.shutdown).boxed())
}

#[async_trait]
impl Controller for ServiceCidrController {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        "service-cidr-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let Some(cidr) = self.cidrs.get_key(key) else {
            return Ok(None);
        };
        // Addresses matter to what is being deleted alone.
        let addresses = match cidr.metadata.deletion_timestamp {
            Some(_) => self.addresses.list(),
            None => Vec::new(),
        };
        let plan = sync(&cidr, &self.cidrs.list(), &addresses, self.clock.now());
        match self.executor.carry_out(&plan).await {
            Err(ApiError::NotFound(_)) => Ok(None),
            Err(error) if cidr.metadata.deletion_timestamp.is_none() => {
                let message = "The ServiceCIDR Status can not be set to Ready=True";
                let reason = "KubernetesServiceCIDRError";
                let event = Action::event(&*cidr, EventType::Warning, reason, message);
                // Recording only queues; it has no failure that anyone could act on.
                let _ = self.executor.execute(&event).await;
                Err(error)
            }
            result => result,
        }
    }

    fn max_retries(&self) -> Option<u32> {
        Some(MAX_RETRIES)
    }
}
