//! The shell: watches ServiceAccounts and token Secrets, and fills, deletes and unlinks.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component_base::informer::{Informer, InformerOptions};
use controller_runtime::{
    Action, ApiError, Controller, DeleteOptions, Executor, Watches, run_controller,
};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};

use super::sign::{SignError, TokenSigner};
use super::sync::{
    NAME_ANNOTATION, SECRET_TYPE, UID_ANNOTATION, annotation, is_account, is_token_of, populate,
    secret_update_needed, without_reference,
};
use crate::context::{ControllerContext, Running, StartError};

const MAX_RETRIES: u32 = 10;

/// What to look at. Carries what is needed once the object is gone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Key {
    Account(Named),
    Secret {
        secret: Named,
        account: String,
        /// Empty: any.
        account_uid: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Named {
    namespace: String,
    name: String,
    uid: String,
}

impl Named {
    fn of<K: kube::Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account(n) => write!(f, "service account {}/{}", n.namespace, n.name),
            Self::Secret { secret: n, .. } => write!(f, "secret {}/{}", n.namespace, n.name),
        }
    }
}

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
enum TokenError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Sign(#[from] SignError),
}

struct ServiceAccountTokens {
    accounts: Informer<ServiceAccount>,
    secrets: Informer<Secret>,
    signer: TokenSigner,
    root_ca: Vec<u8>,
    executor: Executor,
}

/// Builds the controller; without a private key it has nothing to do.
///
/// # Errors
/// When the key cannot be used.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let Some(path) = context.options.service_account_private_key_file.clone() else {
        tracing::info!("--service-account-private-key-file is not set");
        return Ok(context.nothing_to_do("serviceaccount-token-controller"));
    };
    let signer = TokenSigner::from_file(&path).map_err(|error| StartError::File {
        flag: "service-account-private-key-file",
        path,
        message: error.to_string(),
    })?;
    let selection = InformerOptions::default().fields(format!("type={SECRET_TYPE}"));
    let controller = Arc::new(ServiceAccountTokens {
        accounts: context.informers.informer(InformerOptions::default()),
        secrets: context.informers.informer(selection),
        signer,
        root_ca: context.root_ca.as_ref().clone().unwrap_or_default(),
        executor: context.root_executor("serviceaccount-token-controller"),
    });
    let queue = context.queues.queue("serviceaccount_tokens_service");
    let mut watches = Watches::new(context.shutdown.clone());
    let keys = queue.clone();
    watches.on(&controller.accounts, move |event| {
        keys.add(Key::Account(Named::of(&**event.object())));
        if let component_base::informer::InformerEvent::Updated { old, new } = &event
            && old.metadata.uid != new.metadata.uid
        {
            keys.add(Key::Account(Named::of(&**old)));
        }
    });
    let keys = queue.clone();
    watches.on(&controller.secrets, move |event| {
        let secret = event.object();
        let account = annotation(secret, NAME_ANNOTATION);
        if !account.is_empty() {
            keys.add(Key::Secret {
                secret: Named::of(&**secret),
                account: account.to_owned(),
                account_uid: annotation(secret, UID_ANNOTATION).to_owned(),
            });
        }
    });
    let workers = context.options.workers("serviceaccount-token");
    Ok(run_controller(controller, queue, watches, workers, context.shutdown).boxed())
}

impl ServiceAccountTokens {
    fn cached_account(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Option<Arc<ServiceAccount>> {
        let account = self.accounts.get(namespace, name);
        account.filter(|account| is_account(account, uid))
    }

    async fn delete(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ApiError> {
        let options = DeleteOptions {
            uid: Some(uid.to_owned()).filter(|uid| !uid.is_empty()),
            ..DeleteOptions::default()
        };
        let action = Action::delete::<Secret>(namespace, name, options);
        match self.executor.execute(&action).await {
            // A namesake came in between; its own event brings it here.
            Ok(_) | Err(ApiError::Conflict(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes the tokens of an account that is gone.
    async fn sync_account(&self, account: &Named) -> Result<(), ApiError> {
        let Named {
            namespace,
            name,
            uid,
        } = account;
        if self.cached_account(namespace, name, uid).is_some() {
            return Ok(());
        }
        let mut result = Ok(());
        for secret in self.secrets.list_namespace(namespace) {
            if is_token_of(&secret, name, uid) {
                let token = Named::of(&*secret);
                let deleted = self.delete(namespace, &token.name, &token.uid).await;
                result = result.and(deleted);
            }
        }
        result
    }

    async fn sync_secret(
        &self,
        key: &Named,
        account: &str,
        account_uid: &str,
    ) -> Result<(), TokenError> {
        let namespace = key.namespace.as_str();
        let secret = self.secrets.get(namespace, &key.name);
        let Some(secret) = secret.filter(|s| s.metadata.uid.as_deref() == Some(&key.uid)) else {
            if self
                .cached_account(namespace, account, account_uid)
                .is_some()
            {
                self.remove_reference(namespace, account, account_uid, &key.name)
                    .await?;
            }
            return Ok(());
        };
        let found = match self.cached_account(namespace, account, account_uid) {
            Some(account) => Some(account),
            // The cache may not have it yet.
            None => {
                let live: Option<ServiceAccount> = self.executor.get(namespace, account).await?;
                live.filter(|a| is_account(a, account_uid)).map(Arc::new)
            }
        };
        match found {
            None => Ok(self.delete(namespace, &key.name, &key.uid).await?),
            Some(account) => self.fill(&account, &secret).await,
        }
    }

    async fn fill(&self, account: &ServiceAccount, cached: &Secret) -> Result<(), TokenError> {
        if !secret_update_needed(cached, &self.root_ca).any() {
            return Ok(());
        }
        let key = Named::of(cached);
        let live: Option<Secret> = self.executor.get(&key.namespace, &key.name).await?;
        let same = |live: &Secret| {
            live.metadata.resource_version == cached.metadata.resource_version
                && live.metadata.uid == cached.metadata.uid
        };
        // A newer one brings its own event.
        let Some(live) = live.filter(same) else {
            return Ok(());
        };
        let sign = |claims: &serde_json::Value| self.signer.sign(claims);
        let Some(filled) = populate(&live, account, &self.root_ca, sign)? else {
            return Ok(());
        };
        match self.executor.execute(&Action::update(&filled)).await {
            // Its own event brings it back, or it is gone.
            Ok(_) | Err(ApiError::Conflict(_) | ApiError::NotFound(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn remove_reference(
        &self,
        namespace: &str,
        account: &str,
        account_uid: &str,
        secret: &str,
    ) -> Result<(), ApiError> {
        let live: Option<ServiceAccount> = self.executor.get(namespace, account).await?;
        let live = live.filter(|a| is_account(a, account_uid));
        let Some(changed) = live.and_then(|a| without_reference(&a, secret)) else {
            return Ok(());
        };
        match self.executor.execute(&Action::update(&changed)).await {
            Ok(_) | Err(ApiError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl Controller for ServiceAccountTokens {
    type Key = Key;
    type Error = TokenError;

    fn name(&self) -> &'static str {
        "serviceaccount-token-controller"
    }

    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, TokenError> {
        match key {
            Key::Account(account) => self.sync_account(account).await?,
            Key::Secret {
                secret,
                account,
                account_uid,
            } => self.sync_secret(secret, account, account_uid).await?,
        }
        Ok(None)
    }

    fn max_retries(&self) -> Option<u32> {
        Some(MAX_RETRIES)
    }
}
