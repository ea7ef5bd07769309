//! The approving controller: client certificates of kubelets are approved when the requester may have them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use controller_runtime::executor::Target;
use controller_runtime::{
    Action, ApiError, Controller, Executor, ObjectKey, Watches, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};

use super::KUBE_APISERVER_CLIENT_KUBELET;
use super::request::{Request, RequestError, has_condition, is_issued, validate};
use super::signing::RATE_LIMIT;
use crate::context::{ControllerContext, Running, StartError};

/// Why a request was not approved.
#[derive(Debug, thiserror::Error)]
pub enum ApprovingError {
    #[error("recognized csr as {0:?} but subject access review was not approved")]
    NotAllowed(Vec<&'static str>),
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// A kind of request that may be approved: the subresource one must be allowed to create, and the words of the condition.
type Recognizer = (&'static str, &'static str);
const SELF_NODE_CLIENT: Recognizer = (
    "selfnodeclient",
    "Auto approving self kubelet client certificate after SubjectAccessReview.",
);
const NODE_CLIENT: Recognizer = (
    "nodeclient",
    "Auto approving kubelet client certificate after SubjectAccessReview.",
);

/// What a request could be approved as, most special first. Pure.
///
/// # Errors
/// When the request is not understood; it never will be, since it cannot change.
fn recognize(csr: &CertificateSigningRequest) -> Result<Vec<Recognizer>, RequestError> {
    if csr.spec.signer_name != KUBE_APISERVER_CLIENT_KUBELET {
        return Ok(Vec::new());
    }
    let request = Request::parse(&csr.spec.request.0)?;
    let usages = csr.spec.usages.clone().unwrap_or_default();
    if validate(&csr.spec.signer_name, &request, &usages).is_err() {
        return Ok(Vec::new());
    }
    let own = csr.spec.username.as_deref() == Some(request.subject.common_name());
    Ok(if own {
        vec![SELF_NODE_CLIENT, NODE_CLIENT]
    } else {
        vec![NODE_CLIENT]
    })
}

struct ApprovingController {
    requests: Informer<CertificateSigningRequest>,
    executor: Executor,
}

/// Builds the controller.
///
/// # Errors
/// When no client can be had.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let requests: Informer<CertificateSigningRequest> =
        context.informers.informer(InformerOptions::default());
    let queue = context.queues.queue_with("csrapproving", RATE_LIMIT);
    let mut watches = Watches::new(context.shutdown.clone());
    let add = queue.clone();
    watches.on(&requests, move |event| {
        if !matches!(event, InformerEvent::Deleted(_)) {
            add.add(ObjectKey::of(&**event.object()));
        }
    });
    let executor = context
        .executor("certificate-controller", "certificate-controller")
        .await?;
    let controller = Arc::new(ApprovingController { requests, executor });
    Ok(run_controller(controller, queue, watches, 5, context.shutdown).boxed())
}

impl ApprovingController {
    async fn is_allowed(
        &self,
        csr: &CertificateSigningRequest,
        subresource: &str,
    ) -> Result<bool, ApiError> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: csr.spec.username.clone(),
                uid: csr.spec.uid.clone(),
                groups: csr.spec.groups.clone(),
                extra: csr.spec.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".into()),
                    resource: Some("certificatesigningrequests".into()),
                    subresource: Some(subresource.into()),
                    verb: Some("create".into()),
                    version: Some("*".into()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = self.executor.create(&review).await?;
        Ok(answer.status.is_some_and(|s| s.allowed))
    }
}

#[async_trait]
impl Controller for ApprovingController {
    type Key = ObjectKey;
    type Error = ApprovingError;

    fn name(&self) -> &'static str {
        "certificatesigningrequest-approving-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApprovingError> {
        let Some(csr) = self.requests.get_key(key) else {
            return Ok(None);
        };
        if is_issued(&csr) || has_condition(&csr, "Approved") || has_condition(&csr, "Denied") {
            return Ok(None);
        }
        let recognized = match recognize(&csr) {
            Ok(recognized) => recognized,
            Err(error) => {
                tracing::warn!(csr = %key.name, %error, "unable to parse csr, it is not approved");
                return Ok(None);
            }
        };
        let mut tried = Vec::new();
        for (subresource, message) in recognized {
            tried.push(subresource);
            if !self.is_allowed(&csr, subresource).await? {
                continue;
            }
            let mut approved = (*csr).clone();
            approved
                .status
                .get_or_insert_default()
                .conditions
                .get_or_insert_default()
                .push(CertificateSigningRequestCondition {
                    type_: "Approved".into(),
                    status: "True".into(),
                    reason: Some("AutoApproved".into()),
                    message: Some(message.into()),
                    ..CertificateSigningRequestCondition::default()
                });
            let target =
                Target::of::<CertificateSigningRequest>("", &key.name).subresource("approval");
            let object = serde_json::to_value(&approved)
                .map_err(|e| ApiError::Decode(e.to_string()))?
                .into();
            self.executor
                .execute(&Action::Update { target, object })
                .await?;
            return Ok(None);
        }
        if tried.is_empty() {
            Ok(None)
        } else {
            Err(ApprovingError::NotAllowed(tried))
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The subresources a request is recognized for.
    pub(in super::super) fn recognized(csr: &CertificateSigningRequest) -> Vec<&'static str> {
        let recognized = recognize(csr).unwrap_or_default();
        recognized.into_iter().map(|(name, _)| name).collect()
    }
}
