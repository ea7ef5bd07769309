//! The shell: counts nodes, and annotates them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use controller_runtime::{
    Action, ApiError, Controller, Executor, ObjectKey, Watches, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use super::sync::{OBJECT_TTL_ANNOTATION, Step, needs_update};
use crate::context::{ControllerContext, Running, StartError};

const WORKERS: usize = 5;

struct Ttl {
    nodes: Informer<Node>,
    step: Mutex<Step>,
    executor: Executor,
}

/// Builds the controller.
///
/// # Errors
/// When it gets no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let executor = context.executor("ttl-controller", "ttl-controller").await?;
    let controller = Arc::new(Ttl {
        nodes: context.informers.informer(InformerOptions::default()),
        step: Mutex::default(),
        executor,
    });
    let queue = context.queues.queue("ttlcontroller");
    let mut watches = Watches::new(context.shutdown.clone());
    let (handler, keys) = (controller.clone(), queue.clone());
    watches.on(&controller.nodes, move |event| {
        let counted = !matches!(event, InformerEvent::Updated { .. });
        if counted && handler.count() {
            // DIFFERS: upstream waits for each node's next update.
            for node in handler.nodes.list() {
                keys.add(ObjectKey::of(&*node));
            }
        }
        if !matches!(event, InformerEvent::Deleted(_)) {
            keys.add(ObjectKey::of(&**event.object()));
        }
    });
    Ok(run_controller(controller, queue, watches, WORKERS, context.shutdown).boxed())
}

impl Ttl {
    /// Whether the cluster has come to another step.
    fn count(&self) -> bool {
        let mut step = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        let old = *step;
        *step = old.next(self.nodes.len());
        *step != old
    }
}

#[async_trait]
impl Controller for Ttl {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        "ttl-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let step = *self.step.lock().unwrap_or_else(PoisonError::into_inner);
        let ttl_seconds = step.ttl_seconds();
        if self
            .nodes
            .get_key(key)
            .is_none_or(|node| !needs_update(&node, ttl_seconds))
        {
            return Ok(None);
        }
        let annotations = json!({OBJECT_TTL_ANNOTATION: ttl_seconds.to_string()});
        let patch = json!({"metadata": {"annotations": annotations}});
        let action = Action::strategic_patch::<Node>("", &key.name, patch);
        match self.executor.execute(&action).await {
            Err(ApiError::NotFound(_)) => Ok(None),
            result => result.map(|_| None),
        }
    }
}
