//! Plugins that are asked for registry credentials: `--image-credential-provider-config`, `--image-credential-provider-bin-dir`.
//!
//! Owns: which plugin is asked about which image, with which token of the pod's service account; answers that are still good;
//! one process for the same question at a time. Never logs a credential. Upstream: `pkg/credentialprovider/plugin`, v1.37.
//!
//! ```text
//! image ── matchImages? ── account, annotations, token (tokenAttributes) ── kept? ── the plugin ── kept by cacheKeyType
//!              no: nothing          lacking: nothing                         yes: done
//! ```

pub mod cache;
pub mod config;
pub mod image_url;
pub mod plugin;
pub mod protocol;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, join_all};
use images::Reference;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use runtime::api::ImageAuth;
use sha2::{Digest as _, Sha256};
use volumes::{SourceError, TokenRequest};

use self::cache::{AccountKey, Auth, Cache, Scope};
use self::config::{CacheType, Provider, ProviderConfigError, TokenAttributes};
use self::image_url::SchemelessUrl;
use self::plugin::{ExecError, Plugin};
use self::protocol::{AuthConfig, CacheKeyType, Request, Response, ResponseError};
use super::credentials::{CredentialSource, TrackedAuth};
use super::pull_record::ImagePullServiceAccount;
use crate::{metrics, pod};

/// Why the plugins cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum ProvidersError {
    #[error(transparent)]
    Config(#[from] ProviderConfigError),
    #[error("error inspecting binary directory {path:?}: {source}")]
    Folder {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("error inspecting binary executable {path:?}: {source}")]
    Program {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("error inspecting binary executable {0:?}: it is no file that may be executed")]
    NoProgram(PathBuf),
}

/// Why a plugin had nothing for an image. A retry of the pull asks it again.
#[derive(Debug, thiserror::Error)]
enum ProvideError {
    #[error("failed to get service account: {0}")]
    Account(#[source] SourceError),
    #[error("failed to get service account: serviceaccounts {0:?} not found")]
    NoAccount(String),
    #[error("failed to get service account token: {0}")]
    Token(#[source] SourceError),
    #[error("failed to get credential from external registry credential provider: {0}")]
    Plugin(#[source] Arc<AskError>),
}

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("error execing credential provider plugin {plugin} for image {image}: {source}")]
    Exec {
        plugin: String,
        image: String,
        #[source]
        source: ExecError,
    },
    #[error(transparent)]
    Response(#[from] ResponseError),
    #[error(
        "credential provider plugin returned the service account token as the password which is not allowed when service account cache type is not set to 'Token'"
    )]
    Echo,
    #[error("the task that asked it ended: {0}")]
    Task(#[source] tokio::task::JoinError),
}

/// What plugins are told of service accounts.
#[async_trait]
pub trait Accounts: Send + Sync + 'static {
    /// `Ok(None)`: it does not exist.
    async fn service_account(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<ServiceAccount>>, SourceError>;
    /// One that is good for a while, bound to the pod.
    async fn token(&self, request: &TokenRequest) -> Result<String, SourceError>;
}

/// The node's plugins, in the order of the configuration. Shared by the workers.
#[derive(Default)]
pub struct CredentialProviders {
    providers: Vec<Arc<PluginProvider>>,
}

struct PluginProvider {
    config: Provider,
    plugin: Plugin,
    accounts: Arc<dyn Accounts>,
    cache: Mutex<Cache>,
    /// Questions that are being asked.
    flights: Mutex<HashMap<FlightKey, Flight>>,
}

type Flight = Shared<BoxFuture<'static, Result<Auth, Arc<AskError>>>>;

/// What a plugin is asked. Upstream: `generateSingleFlightKey`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct FlightKey {
    image: String,
    /// `None`: without an account.
    token_hash: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

/// The account a plugin is asked for.
struct AccountData {
    token: String,
    token_hash: String,
    key: AccountKey,
}

impl AccountData {
    fn source(&self) -> ImagePullServiceAccount {
        ImagePullServiceAccount {
            uid: self.key.uid.clone(),
            namespace: self.key.namespace.clone(),
            name: self.key.name.clone(),
        }
    }
}

/// What of the account the plugin is to know.
#[derive(Debug, PartialEq, Eq)]
enum Subject {
    /// It is not asked.
    Nobody,
    /// It is asked without an account.
    Anonymous,
    Account,
}

/// Whom a plugin is asked for: pods without an account (static ones) are nobody where one is required.
fn subject(token: Option<&TokenAttributes>, account: &str) -> Subject {
    match token {
        None => Subject::Anonymous,
        Some(token) if account.is_empty() && token.require_service_account => Subject::Nobody,
        Some(_) if account.is_empty() => Subject::Anonymous,
        Some(_) => Subject::Account,
    }
}

/// The annotations the plugin is told; the error is one that is required and not there.
fn annotations(
    token: &TokenAttributes,
    account: &ServiceAccount,
) -> Result<BTreeMap<String, String>, String> {
    let has = |key: &String| account.metadata.annotations.as_ref()?.get(key).cloned();
    let mut out = BTreeMap::new();
    for key in &token.required_annotations {
        out.insert(key.clone(), has(key).ok_or_else(|| key.clone())?);
    }
    for key in &token.optional_annotations {
        if let Some(value) = has(key) {
            out.insert(key.clone(), value);
        }
    }
    Ok(out)
}

impl CredentialProviders {
    /// Reads the configuration and finds the programs. `tokens`: the gate `KubeletServiceAccountTokenForCredentialProviders`.
    /// Blocks on the disk.
    ///
    /// # Errors
    /// The configuration is refused, or a program is missing.
    pub fn load(
        config: &Path,
        bin_dir: &Path,
        tokens: bool,
        accounts: Arc<dyn Accounts>,
    ) -> Result<Self, ProvidersError> {
        std::fs::metadata(bin_dir).map_err(|source| ProvidersError::Folder {
            path: bin_dir.to_owned(),
            source,
        })?;
        let loaded = config::load(config, tokens)?;
        metrics::CREDENTIAL_PROVIDER_CONFIG
            .with_label_values(&[loaded.hash.as_str()])
            .set(1);
        let mut providers = vec![];
        for provider in loaded.providers {
            let plugin = Plugin {
                name: provider.name.clone(),
                path: program(bin_dir, &provider.name)?,
                args: provider.args.clone(),
                env: provider.env.clone(),
                timeout: plugin::TIMEOUT,
            };
            tracing::info!(provider = provider.name, "Registered credential provider");
            let provider = PluginProvider {
                config: provider,
                plugin,
                accounts: accounts.clone(),
                cache: Mutex::new(Cache::new(Instant::now())),
                flights: Mutex::default(),
            };
            providers.push(Arc::new(provider));
        }
        Ok(Self { providers })
    }

    /// What the plugins have for the image, the most specific first. What fails is logged, and is nothing.
    pub async fn lookup(&self, image: &str, pod: &Pod) -> Vec<TrackedAuth> {
        let Ok(reference) = Reference::parse_normalized(image) else {
            return vec![];
        };
        let name = format!("{}/{}", reference.domain(), reference.path());
        let asked = self.providers.iter().map(|p| p.provide_or_log(&name, pod));
        // DIFFERS: upstream asks one after the other; what they say stands in the same order.
        let answers = join_all(asked).await;
        let entries = answers.iter().flat_map(|(auth, account)| {
            auth.iter()
                .map(move |(repository, auth)| (repository.as_str(), (auth, account)))
        });
        image_url::lookup(entries, &name)
            .into_iter()
            .map(|(auth, account)| TrackedAuth {
                auth: ImageAuth {
                    username: auth.username.clone(),
                    password: auth.password.clone(),
                    ..ImageAuth::default()
                },
                source: match account {
                    Some(account) => CredentialSource::ServiceAccount(account.clone()),
                    None => CredentialSource::Node,
                },
            })
            .collect()
    }
}

fn program(bin_dir: &Path, name: &str) -> Result<PathBuf, ProvidersError> {
    let path = bin_dir.join(name);
    match std::fs::metadata(&path) {
        Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => Ok(path),
        Ok(_) => Err(ProvidersError::NoProgram(path)),
        Err(source) => Err(ProvidersError::Program { path, source }),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Provided = (Auth, Option<ImagePullServiceAccount>);

impl PluginProvider {
    async fn provide_or_log(self: &Arc<Self>, image: &str, pod: &Pod) -> Provided {
        self.provide(image, pod).await.unwrap_or_else(|error| {
            tracing::error!(
                provider = self.config.name,
                image,
                namespace = pod::namespace(pod),
                pod = pod::name(pod),
                uid = pod::uid(pod),
                %error,
                "Failed to provide credentials for image"
            );
            Provided::default()
        })
    }

    /// Upstream: `pluginProvider.provide`. The account: whom the credentials were given to; `None`: everybody on the node.
    async fn provide(self: &Arc<Self>, image: &str, pod: &Pod) -> Result<Provided, ProvideError> {
        let Ok(url) = SchemelessUrl::parse(image) else {
            return Ok(Provided::default());
        };
        if !self.config.match_images.iter().any(|m| m.covers(&url)) {
            return Ok(Provided::default());
        }
        let name = pod
            .spec
            .as_ref()
            .and_then(|s| s.service_account_name.as_deref());
        let name = name.unwrap_or_default();
        let account = match (
            subject(self.config.token.as_ref(), name),
            &self.config.token,
        ) {
            (Subject::Nobody, _) => return Ok(Provided::default()),
            (Subject::Account, Some(token)) => match self.account(token, pod, name).await? {
                Some(account) => Some(account),
                None => return Ok(Provided::default()),
            },
            _ => None,
        };
        let source = account.as_ref().map(AccountData::source);
        let key = account.as_ref().map(|a| &a.key);
        let kept = lock(&self.cache).get(image, key, Instant::now());
        if let Some(auth) = kept {
            return Ok((auth, source));
        }
        let answer = self.fly(image, account).await;
        Ok((answer.map_err(ProvideError::Plugin)?, source))
    }

    /// `None`: the account lacks an annotation, by which others say that they want the plugin.
    async fn account(
        &self,
        token: &TokenAttributes,
        pod: &Pod,
        name: &str,
    ) -> Result<Option<AccountData>, ProvideError> {
        let namespace = pod::namespace(pod);
        let account = self
            .accounts
            .service_account(namespace, name)
            .await
            .map_err(ProvideError::Account)?
            .ok_or_else(|| ProvideError::NoAccount(name.to_owned()))?;
        let annotations = match annotations(token, &account) {
            Ok(annotations) => annotations,
            Err(key) => {
                tracing::debug!(
                    provider = self.config.name,
                    namespace,
                    account = name,
                    key,
                    "required annotation not found: the credential provider is not asked"
                );
                return Ok(None);
            }
        };
        let uid = account.metadata.uid.clone().unwrap_or_default();
        let request = TokenRequest {
            namespace: namespace.to_owned(),
            service_account: name.to_owned(),
            service_account_uid: Some(uid.clone()),
            audiences: vec![token.audience.clone()],
            expiration_seconds: None,
            pod_name: pod::name(pod).to_owned(),
            pod_uid: pod::uid(pod).to_owned(),
        };
        let text = self.accounts.token(&request).await;
        let text = text.map_err(ProvideError::Token)?;
        let hash: String = Sha256::digest(text.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Ok(Some(AccountData {
            key: AccountKey {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                uid,
                annotations,
                token_hash: (token.cache_type == CacheType::Token).then(|| hash.clone()),
            },
            token: text,
            token_hash: hash,
        }))
    }

    /// Asks the plugin, or waits for the answer to the same question. Runs to its end whoever stops waiting.
    fn fly(self: &Arc<Self>, image: &str, account: Option<AccountData>) -> Flight {
        let key = FlightKey {
            image: image.to_owned(),
            token_hash: account.as_ref().map(|a| a.token_hash.clone()),
            annotations: account.as_ref().map(|a| a.key.annotations.clone()),
        };
        // Held until the flight is noted: it cannot land before.
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(&key) {
            return flight.clone();
        }
        let landing = Landing {
            provider: self.clone(),
            key: key.clone(),
            account,
        };
        let task = tokio::spawn(async move { landing.ask().await });
        let flight = async move {
            match task.await {
                Ok(answer) => answer.map_err(Arc::new),
                Err(error) => Err(Arc::new(AskError::Task(error))),
            }
        };
        let flight = flight.boxed().shared();
        flights.insert(key, flight.clone());
        flight
    }

    /// What an answer holds, kept for as long as it says.
    fn keep(
        &self,
        image: &str,
        account: Option<&AccountData>,
        response: Response,
    ) -> Result<Auth, AskError> {
        if let (Some(account), Some(token)) = (account, &self.config.token) {
            let echoed = |auth: &AuthConfig| auth.password == account.token;
            if token.cache_type != CacheType::Token && response.auth.values().any(echoed) {
                return Err(AskError::Echo);
            }
        }
        let auth: Auth = Arc::new(response.auth);
        let scope = match response.cache_key_type {
            CacheKeyType::Image => Scope::Image(image.to_owned()),
            CacheKeyType::Registry => Scope::Registry(cache::registry(image).to_owned()),
            CacheKeyType::Global => Scope::Global,
        };
        let duration = response
            .cache_duration
            .unwrap_or(self.config.default_cache_duration);
        let (key, now) = (account.map(|a| a.key.clone()), Instant::now());
        lock(&self.cache).put(scope, key, auth.clone(), duration, now);
        Ok(auth)
    }
}

/// A question under way; it is over when this is dropped, and its answer is kept by then.
struct Landing {
    provider: Arc<PluginProvider>,
    key: FlightKey,
    account: Option<AccountData>,
}

impl Landing {
    async fn ask(&self) -> Result<Auth, AskError> {
        let (plugin, image) = (&self.provider.plugin, &self.key.image);
        let version = self.provider.config.api_version;
        tracing::debug!(
            plugin = plugin.name,
            image,
            "Getting image credentials from external exec plugin"
        );
        let account = self.account.as_ref();
        let none = BTreeMap::new();
        let token = account.map_or("", |a| a.token.as_str());
        let annotations = account.map_or(&none, |a| &a.key.annotations);
        let request = Request::new(version, image, token, annotations).encode();
        let answer = plugin.ask(&request).await;
        let answer = answer.map_err(|source| AskError::Exec {
            plugin: plugin.name.clone(),
            image: image.clone(),
            source,
        })?;
        let response = protocol::decode(&answer, version)?;
        self.provider.keep(image, account, response)
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        lock(&self.provider.flights).remove(&self.key);
    }
}

#[cfg(test)]
pub(super) mod tests;
