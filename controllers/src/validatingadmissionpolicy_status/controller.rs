//! The shell: policies in, documents of the API server looked up, one write of the status.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use controller_runtime::{ApiError, Controller, Executor, ObjectKey, Watches, run_controller};
use futures::FutureExt as _;
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use kube::Client;
use serde_json::Value;

use super::cel::Type;
use super::schema::object_type;
use super::sync::{
    GroupVersionKind, Warning, apply_status, is_due, kinds_to_check, params_kind, warnings,
};
use crate::context::{ControllerContext, Running, StartError};
use crate::discovery::{ApiResources, Discovery};

const NAME: &str = "validatingadmissionpolicy-status-controller";
/// The checker recurses as deep as an expression is nested.
const STACK_BYTES: usize = 16 << 20;

/// Where schemas come from; a fake in tests.
#[async_trait]
trait Documents: Send + Sync + 'static {
    /// The OpenAPI v3 document at a path.
    async fn document(&self, path: &str) -> Result<Value, ApiError>;
}

#[async_trait]
impl Documents for Client {
    async fn document(&self, path: &str) -> Result<Value, ApiError> {
        let request = http::Request::get(path)
            .header("accept", "application/json")
            .body(Vec::new())
            .map_err(|e| ApiError::Decode(e.to_string()))?;
        Ok(self.request(request).await?)
    }
}

/// Why a policy's status was not written; a retry may help.
#[derive(Debug, thiserror::Error)]
enum StatusError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("no thread for the type checker: {0}")]
    Thread(#[source] std::io::Error),
    #[error("the type checker ended without an answer")]
    NoAnswer,
}

struct StatusController {
    policies: Informer<ValidatingAdmissionPolicy>,
    executor: Executor,
    discovery: Arc<dyn Discovery>,
    documents: Arc<dyn Documents>,
    /// What was last discovered; looked up again when a policy names what is not in it.
    known: Mutex<Arc<ApiResources>>,
}

/// Builds the controller.
///
/// # Errors
/// When it gets no client.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let executor = context.executor(NAME, NAME).await?;
    let client = context.client(NAME).await?;
    let controller = Arc::new(StatusController {
        policies: context.informers.informer(InformerOptions::default()),
        executor,
        discovery: Arc::new(client.clone()),
        documents: Arc::new(client),
        known: Mutex::default(),
    });
    let queue = context.queues.queue("validatingadmissionpolicy-status");
    let mut watches = Watches::new(context.shutdown.clone());
    let keys = queue.clone();
    watches.on(&controller.policies, move |event| {
        if !matches!(event, InformerEvent::Deleted(_)) && is_due(event.object()) {
            keys.add(ObjectKey::of(&**event.object()));
        }
    });
    let workers = context
        .options
        .workers("validating-admission-policy-status");
    Ok(run_controller(controller, queue, watches, workers, context.shutdown).boxed())
}

impl StatusController {
    /// The kinds a policy matches; asks the API server once more when it names what is not known.
    async fn kinds(&self, policy: &ValidatingAdmissionPolicy) -> Vec<GroupVersionKind> {
        let known = self.known.lock().expect("nobody panics with it").clone();
        let (kinds, all_known) = kinds_to_check(policy, &known);
        if all_known {
            return kinds;
        }
        match self.discovery.resources().await {
            Ok(found) => {
                let found = Arc::new(found);
                *self.known.lock().expect("nobody panics with it") = found.clone();
                kinds_to_check(policy, &found).0
            }
            Err(error) => {
                tracing::warn!(%error, "Kinds of a policy could not be discovered");
                kinds
            }
        }
    }

    /// The types of kinds; those without a schema are left out.
    async fn types(&self, kinds: &[&GroupVersionKind]) -> HashMap<GroupVersionKind, Type> {
        let mut paths: HashMap<String, Vec<&GroupVersionKind>> = HashMap::new();
        for kind in kinds {
            paths.entry(kind.document_path()).or_default().push(kind);
        }
        let mut types = HashMap::new();
        for (path, kinds) in paths {
            let document = match self.documents.document(&path).await {
                Ok(document) => document,
                Err(error) => {
                    if !error.is_not_found() {
                        tracing::warn!(path, %error, "schema resolution failure");
                    }
                    continue;
                }
            };
            for kind in kinds {
                if let Some(of) = object_type(&document, kind) {
                    types.insert(kind.clone(), of);
                }
            }
        }
        types
    }
}

/// Checks on a thread with a large stack.
async fn check(
    policy: Arc<ValidatingAdmissionPolicy>,
    objects: Vec<(GroupVersionKind, Type)>,
    params: Option<Type>,
) -> Result<Vec<Warning>, StatusError> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("type-checker".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            // Nobody waits any more at shutdown.
            let _ = sender.send(warnings(&policy, &objects, params));
        })
        .map_err(StatusError::Thread)?;
    receiver.await.map_err(|_| StatusError::NoAnswer)
}

#[async_trait]
impl Controller for StatusController {
    type Key = ObjectKey;
    type Error = StatusError;

    fn name(&self) -> &'static str {
        NAME
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, StatusError> {
        let Some(policy) = self.policies.get_key(key).filter(|policy| is_due(policy)) else {
            return Ok(None);
        };
        let kinds = self.kinds(&policy).await;
        let params = params_kind(&policy);
        let wanted: Vec<&GroupVersionKind> = kinds.iter().chain(&params).collect();
        let types = self.types(&wanted).await;
        let params = params.and_then(|kind| types.get(&kind).cloned());
        let objects = kinds
            .iter()
            .filter_map(|kind| Some((kind.clone(), types.get(kind)?.clone())))
            .collect();
        let warnings = check(policy.clone(), objects, params).await?;
        self.executor
            .execute(&apply_status(&policy, &warnings))
            .await?;
        Ok(None)
    }

    fn is_conflict(&self, error: &StatusError) -> bool {
        matches!(error, StatusError::Api(error) if error.is_conflict())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::Discovered;
    use crate::testing::{Feed, settle};
    use controller_runtime::testing::FakeApi;
    use serde_json::{from_value, json};

    struct OneKind;

    #[async_trait]
    impl Discovery for OneKind {
        async fn resources(&self) -> Result<ApiResources, ApiError> {
            let resource = controller_runtime::Resource {
                group: "g".into(),
                version: "v1".into(),
                kind: "Thing".into(),
                plural: "things".into(),
            };
            let resources = vec![Discovered {
                resource,
                namespaced: true,
                verbs: Vec::new(),
                preferred: true,
                subresources: Vec::new(),
            }];
            Ok(ApiResources {
                resources,
                failed: Vec::new(),
            })
        }
    }

    #[async_trait]
    impl Documents for OneKind {
        async fn document(&self, path: &str) -> Result<Value, ApiError> {
            assert_eq!(path, "/openapi/v3/apis/g/v1");
            Ok(json!({ "components": { "schemas": { "a": {
                "type": "object",
                "properties": { "size": { "type": "integer" } },
                "x-kubernetes-group-version-kind": [{ "group": "g", "version": "v1", "kind": "Thing" }],
            }}}}))
        }
    }

    #[tokio::test]
    async fn a_policy_gets_its_status() {
        let api = FakeApi::new();
        let (feed, policies) = Feed::new();
        let controller = StatusController {
            policies,
            executor: api.executor(),
            discovery: Arc::new(OneKind),
            documents: Arc::new(OneKind),
            known: Mutex::default(),
        };
        let policy: ValidatingAdmissionPolicy = from_value(json!({
            "metadata": { "name": "p", "generation": 1 },
            "spec": {
                "matchConstraints": { "resourceRules": [{
                    "apiGroups": ["g"], "apiVersions": ["v1"], "resources": ["things"], "operations": ["*"],
                }]},
                "validations": [{ "expression": "object.size > 'a'" }, { "expression": "object.size > 1" }],
            },
        }))
        .unwrap();
        api.insert(&policy);
        feed.apply(policy);
        settle().await;
        controller
            .reconcile(&ObjectKey::new("", "p"))
            .await
            .unwrap();
        let found: ValidatingAdmissionPolicy = api.get("", "p").unwrap();
        let status = found.status.unwrap();
        assert_eq!(status.observed_generation, Some(1));
        let warnings = status.type_checking.unwrap().expression_warnings.unwrap();
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].warning.contains("'(int, string)'"));
    }
}
