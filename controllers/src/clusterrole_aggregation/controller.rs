//! The shell: ClusterRoles in, one apply out.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::informer::{Informer, InformerOptions};
use controller_runtime::executor::Target;
use controller_runtime::{
    Action, ApiError, Controller, Executor, ObjectKey, PatchKind, Watches, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::rbac::v1::ClusterRole;
use serde_json::json;

use super::sync::sync;
use crate::context::{ControllerContext, Running, StartError};

const WORKERS: usize = 5;
const NAME: &str = "clusterrole-aggregation-controller";

struct Aggregation {
    roles: Informer<ClusterRole>,
    executor: Executor,
}

/// Builds the controller.
///
/// # Errors
/// When no client can be had.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let roles: Informer<ClusterRole> = context.informers.informer(InformerOptions::default());
    let queue = context.queues.queue("ClusterRoleAggregator");
    let mut watches = Watches::new(context.shutdown.clone());
    let (add, all) = (queue.clone(), roles.clone());
    // Any change may matter to any role that aggregates.
    watches.on(&roles, move |_| {
        all.list()
            .iter()
            .filter(|role| role.aggregation_rule.is_some())
            .for_each(|role| add.add(ObjectKey::of(&**role)));
    });
    let executor = context.executor(NAME, NAME).await?;
    let controller = Arc::new(Aggregation { roles, executor });
    Ok(run_controller(controller, queue, watches, WORKERS, context.shutdown).boxed())
}

#[async_trait]
impl Controller for Aggregation {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        NAME
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let Some(role) = self.roles.get_key(key) else {
            return Ok(None);
        };
        let Some(rules) = sync(&role, &self.roles.list()) else {
            return Ok(None);
        };
        let patch = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": key.name }, "rules": rules,
        });
        let action = Action::Patch {
            target: Target::of::<ClusterRole>("", &key.name),
            kind: PatchKind::Apply(NAME),
            patch,
        };
        self.executor.execute(&action).await.map(|_| None)
    }
}
