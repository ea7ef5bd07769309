//! Deletes bootstrap tokens that have expired.
//!
//! Off by default; kubeadm asks for it. Upstream: pkg/controller/bootstrap/tokencleaner.go, v1.36.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use controller_runtime::{
    Action, ApiError, Controller, DeleteOptions, Executor, ObjectKey, Watches, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::Secret;

use crate::bootstrap_token::{Expiry, NAMESPACE, SECRET_TYPE, expiry};
use crate::context::{ControllerContext, Running, StartError};

struct TokenCleaner {
    secrets: Informer<Secret>,
    executor: Executor,
    clock: Clock,
}

/// Builds the controller.
///
/// # Errors
/// When no client can be had.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let selection = InformerOptions::default().fields(format!("type={SECRET_TYPE}"));
    let secrets: Informer<Secret> = context.informers.namespaced_informer(NAMESPACE, selection);
    let queue = context.queues.queue("token_cleaner");
    let mut watches = Watches::new(context.shutdown.clone());
    let add = queue.clone();
    watches.on(&secrets, move |event| {
        if !matches!(event, InformerEvent::Deleted(_)) {
            add.add(ObjectKey::of(&**event.object()));
        }
    });
    let executor = context.executor("token-cleaner", "token-cleaner").await?;
    let controller = Arc::new(TokenCleaner {
        secrets,
        executor,
        clock: context.clock.clone(),
    });
    Ok(run_controller(controller, queue, watches, 1, context.shutdown).boxed())
}

#[async_trait]
impl Controller for TokenCleaner {
    type Key = ObjectKey;
    type Error = ApiError;

    fn name(&self) -> &'static str {
        "token-cleaner-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ApiError> {
        let Some(secret) = self.secrets.get_key(key) else {
            return Ok(None);
        };
        match expiry(&secret, self.clock.now()) {
            Expiry::Never => Ok(None),
            Expiry::In(left) => Ok(Some(left)),
            Expiry::Expired => {
                let options = DeleteOptions {
                    uid: secret.metadata.uid.clone(),
                    ..DeleteOptions::default()
                };
                match self
                    .executor
                    .execute(&Action::delete::<Secret>(
                        &key.namespace,
                        &key.name,
                        options,
                    ))
                    .await
                {
                    // A namesake came in between; its own event brings it here.
                    Err(ApiError::Conflict(_)) => Ok(None),
                    result => result.map(|_| None),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::bootstrap_token::signing_token;
    use k8s_openapi::ByteString;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    fn token(name: &str, pairs: &[(&str, &str)]) -> Secret {
        Secret {
            metadata: ObjectMeta {
                name: Some(name.into()),
                ..ObjectMeta::default()
            },
            type_: Some(SECRET_TYPE.into()),
            data: Some(
                pairs
                    .iter()
                    .map(|(k, v)| (k.to_string(), ByteString(v.as_bytes().to_vec())))
                    .collect(),
            ),
            ..Secret::default()
        }
    }

    #[test]
    fn tokens() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let good = [
            ("token-id", "abcdef"),
            ("token-secret", "s"),
            ("usage-bootstrap-signing", "true"),
        ];
        assert_eq!(
            signing_token(&token("bootstrap-token-abcdef", &good), now),
            Some(("abcdef", "s"))
        );
        assert_eq!(
            signing_token(&token("bootstrap-token-abcdeg", &good), now),
            None
        );
        assert_eq!(
            signing_token(&token("bootstrap-token-abcdef", &good[..2]), now),
            None
        );
        let ending = |at: &str| expiry(&token("x", &[("expiration", at)]), now);
        assert_eq!(
            ending("2026-01-01T00:01:00Z"),
            Expiry::In(Duration::from_secs(60))
        );
        assert_eq!(ending("2025-01-01T00:01:00+02:00"), Expiry::Expired);
        assert_eq!(ending("nonsense"), Expiry::Expired);
        assert_eq!(expiry(&token("x", &[]), now), Expiry::Never);
    }
}
