//! Service accounts and their tokens, from the TokenRequest API.

use std::sync::Arc;

use k8s_openapi::api::authentication::v1::{
    BoundObjectReference, TokenRequest as ApiTokenRequest, TokenRequestSpec,
};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use volumes::{ServiceAccountToken, SourceError, TokenRequest};

use super::{ObjectCache, REFUSAL_PATIENCE, REFUSAL_RETRY, asked, no_client};

impl ObjectCache {
    /// The account itself, asked for each time: it is needed with tokens alone. `Ok(None)`: it does not exist.
    ///
    /// # Errors
    /// The API server refused or did not answer, or there is none.
    pub async fn service_account(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<ServiceAccount>>, SourceError> {
        let Some(api) = &self.api else {
            return Err(no_client("serviceaccount", namespace, name));
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(api.client.clone(), namespace);
        asked("serviceaccount", namespace, name, || accounts.get_opt(name)).await
    }
}

/// A new one, bound to the pod.
///
/// # Errors
/// The API server refused, or did not answer.
pub(super) async fn request(
    client: &kube::Client,
    request: &TokenRequest,
) -> Result<ServiceAccountToken, SourceError> {
    let (namespace, name) = (&request.namespace, &request.service_account);
    let body = ApiTokenRequest {
        metadata: ObjectMeta {
            uid: request.service_account_uid.clone(),
            ..ObjectMeta::default()
        },
        spec: Some(TokenRequestSpec {
            audiences: Some(request.audiences.clone()).filter(|a| !a.is_empty()),
            expiration_seconds: request.expiration_seconds,
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(request.pod_name.clone()),
                uid: Some(request.pod_uid.clone()),
            }),
            ..TokenRequestSpec::default()
        }),
        ..ApiTokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let begin = tokio::time::Instant::now();
    let answer = loop {
        match accounts
            .create_token_request(name, &PostParams::default(), &body)
            .await
        {
            Ok(answer) => break answer,
            Err(kube::Error::Api(status))
                if status.code == 403 && begin.elapsed() < REFUSAL_PATIENCE =>
            {
                tokio::time::sleep(REFUSAL_RETRY).await;
            }
            Err(kube::Error::Api(status)) => {
                return Err(SourceError::Refused {
                    code: status.code,
                    message: format!("failed to fetch token: {}", status.message),
                });
            }
            Err(error) => {
                return Err(SourceError::Transport {
                    resource: "serviceaccount token",
                    namespace: namespace.clone(),
                    name: name.clone(),
                    source: Box::new(error),
                });
            }
        }
    };
    let no_token = || SourceError::Refused {
        code: 0,
        message: "the API server answered a token request without a token".to_owned(),
    };
    let status = answer.status.ok_or_else(no_token)?;
    Ok(ServiceAccountToken {
        token: status.token.ok_or_else(no_token)?,
        expires_at: status.expiration_timestamp.ok_or_else(no_token)?.0,
        expiration_seconds: answer.spec.and_then(|s| s.expiration_seconds),
    })
}
