//! DefaultBinder: posts the Binding.
//!
//! Upstream: plugins/defaultbinder, v1.36.

use std::sync::Arc;

use framework::{BindPlugin, BoxFuture, CycleState, Handle, Plugin, PluginError, PodInfo, Status};

use crate::names;

struct DefaultBinder {
    handle: Arc<dyn Handle>,
}

/// Makes the plugin.
///
/// # Errors
/// Never.
pub fn new(
    _args: Option<&serde_json::Value>,
    handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    Ok(Arc::new(DefaultBinder { handle }))
}

impl Plugin for DefaultBinder {
    fn name(&self) -> &'static str {
        names::DEFAULT_BINDER
    }
    fn as_bind(&self) -> Option<&dyn BindPlugin> {
        Some(self)
    }
}

impl BindPlugin for DefaultBinder {
    fn bind<'a>(
        &'a self,
        _state: &'a CycleState,
        pod: &'a Arc<PodInfo>,
        node_name: &'a str,
    ) -> BoxFuture<'a, Status> {
        Box::pin(async move {
            tracing::debug!(
                pod = pod.name(),
                namespace = pod.namespace(),
                node = node_name,
                "attempting to bind pod to node"
            );
            match self.handle.api().bind(&pod.pod, node_name).await {
                Ok(()) => Status::success(),
                Err(error) => Status::error(error),
            }
        })
    }
}
