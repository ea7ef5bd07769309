//! Who may use which image: pull records, and plugins that know credentials.

use std::sync::Arc;

use ::runtime::api::Runtime;
use async_trait::async_trait;
use component_base::features::FeatureGates;
use k8s_openapi::api::core::v1::ServiceAccount;
use volumes::{SourceError, TokenRequest, VolumeManager};

use super::AppError;
use super::features::{ACCOUNT_TOKENS_FOR_CREDENTIAL_PROVIDERS, ENSURE_SECRET_PULLED_IMAGES};
use crate::configuration::KubeletConfiguration;
use crate::image_manager::credential_provider::{Accounts, CredentialProviders};
use crate::image_manager::pull_manager::PullManager;
use crate::image_manager::verification::Verification;
use crate::object_cache::ObjectCache;
use crate::options::Options;
use crate::paths::Paths;

/// Accounts as the API server knows them, tokens as the pods' volumes have them.
struct ApiAccounts {
    objects: Arc<ObjectCache>,
    volumes: VolumeManager,
}

#[async_trait]
impl Accounts for ApiAccounts {
    async fn service_account(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<ServiceAccount>>, SourceError> {
        self.objects.service_account(namespace, name).await
    }

    async fn token(&self, request: &TokenRequest) -> Result<String, SourceError> {
        Ok(self.volumes.service_account_token(request).await?.token)
    }
}

/// The plugins of the command line.
///
/// # Errors
/// Their configuration is refused, or a program is missing.
pub(super) fn credential_providers(
    gates: &FeatureGates,
    options: &Options,
    objects: &Arc<ObjectCache>,
    volumes: &VolumeManager,
) -> Result<CredentialProviders, AppError> {
    let Some(plugins) = &options.image_credential_provider else {
        return Ok(CredentialProviders::default());
    };
    let accounts = Arc::new(ApiAccounts {
        objects: objects.clone(),
        volumes: volumes.clone(),
    });
    let tokens = gates.enabled(ACCOUNT_TOKENS_FOR_CREDENTIAL_PROVIDERS);
    let (config, bin_dir) = (&plugins.config, &plugins.bin_dir);
    Ok(CredentialProviders::load(
        config, bin_dir, tokens, accounts,
    )?)
}

/// The records of pulls, read and in step with the images that are here. `None`: their gate is off.
pub(super) async fn pull_manager(
    gates: &FeatureGates,
    config: &KubeletConfiguration,
    paths: &Paths,
    runtime: &Arc<dyn Runtime>,
) -> Result<Option<Arc<PullManager>>, AppError> {
    if !gates.enabled(ENSURE_SECRET_PULLED_IMAGES) {
        return Ok(None);
    }
    let verification = Verification::new(
        &config.image_pull_credentials_verification_policy,
        &config.preloaded_images_verification_allowlist,
    )?;
    // Upstream: `pullRecordsCacheSize`, at most 2000.
    let limit = usize::try_from(config.max_pods).unwrap_or(110) * 5;
    let pulls = PullManager::open(paths.root(), limit.clamp(1, 2000), verification)?;
    match runtime.list_images().await {
        Ok(images) => pulls.adopt(&images),
        Err(error) => tracing::warn!(%error, "cannot list images: interrupted pulls stay noted"),
    }
    Ok(Some(Arc::new(pulls)))
}
