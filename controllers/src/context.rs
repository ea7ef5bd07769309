//! What a controller is built from: shared informers, a client under its own account, an executor, the settings.
//!
//! With `--use-service-account-credentials` each controller acts as `system:serviceaccount:kube-system:NAME`, by a token that is asked
//! for and renewed here. Upstream: `ControllerContext`, `k8s.io/controller-manager/pkg/clientbuilder`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use component_base::client::{BearerToken, ClientError, is_already_exists};
use component_base::events::Recorder;
use component_base::features::FeatureGates;
use component_base::health::Health;
use component_base::informer::Factory;
use component_base::leader_election::Leadership;
use component_base::shutdown::Shutdown;
use controller_runtime::Executor;
use controller_runtime::transport::ApiTransport;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::Mutex;

use crate::options::Options;

/// A controller at work: ends at shutdown.
pub type Running = BoxFuture<'static, ()>;

/// Where controllers' accounts live.
const NAMESPACE: &str = "kube-system";
/// How long a token is asked for.
const TOKEN_SECONDS: i64 = 3600;
/// A token is renewed when this part of its life is left.
const LEEWAY: f64 = 0.25;
/// Pause after a failed renewal.
const RETRY: Duration = Duration::from_secs(10);

/// Why a controller cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// No account or token for the controller.
    #[error("credentials of service account {NAMESPACE}/{account}: {source}")]
    Credentials {
        /// The account.
        account: String,
        /// The cause.
        #[source]
        source: Box<kube::Error>,
    },
    /// A file of a flag.
    #[error("--{flag} {path}: {message}")]
    File {
        /// The flag, without dashes.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A request that starting needs.
    #[error("{what}: {source}")]
    Api {
        /// What was tried.
        what: &'static str,
        /// The cause.
        #[source]
        source: controller_runtime::ApiError,
    },
    /// Settings that contradict each other.
    #[error("{0}")]
    Settings(String),
}

/// Cheap to clone.
#[derive(Clone)]
pub struct ControllerContext {
    /// The settings.
    pub options: Arc<Options>,
    /// The feature gates.
    pub features: Arc<FeatureGates>,
    /// The shared informers.
    pub informers: Factory,
    /// Whether this process leads.
    pub leadership: Leadership,
    /// Health checks; a controller's own is added by the process.
    pub health: Health,
    /// Ends the controllers.
    pub shutdown: Shutdown,
    /// The PEM of the CA that signed the API server's certificate: `--root-ca-file`, else the client configuration's.
    pub root_ca: Arc<Option<Vec<u8>>>,
    clients: Arc<Mutex<HashMap<String, Client>>>,
}

/// Ending one namespace takes a deletion and a list for every resource there is, so its client may ask more often.
/// Upstream: `newNamespaceController` (`nsKubeconfig.QPS *= 20`, `nsKubeconfig.Burst *= 100`).
const NAMESPACE_CONTROLLER: &str = "namespace-controller";
const NAMESPACE_QPS_FACTOR: f32 = 20.0;
const NAMESPACE_BURST_FACTOR: u32 = 100;

impl ControllerContext {
    /// A context of a process that leads by `leadership`.
    pub fn new(
        options: Arc<Options>,
        features: Arc<FeatureGates>,
        informers: Factory,
        leadership: Leadership,
        health: Health,
        shutdown: Shutdown,
        root_ca: Option<Vec<u8>>,
    ) -> Self {
        Self {
            options,
            features,
            informers,
            leadership,
            health,
            shutdown,
            root_ca: Arc::new(root_ca),
            clients: Arc::default(),
        }
    }

    /// The client of a controller; `account` is its service account (`deployment-controller`).
    ///
    /// # Errors
    /// When no client can be made, or no token be had.
    pub async fn client(&self, account: &str) -> Result<Client, StartError> {
        let mut clients = self.clients.lock().await;
        if let Some(client) = clients.get(account) {
            return Ok(client.clone());
        }
        let mut config = self
            .options
            .client
            .with_component(&format!("{}/{account}", crate::options::COMPONENT));
        if account == NAMESPACE_CONTROLLER {
            config.qps *= NAMESPACE_QPS_FACTOR;
            config.burst = config.burst.saturating_mul(NAMESPACE_BURST_FACTOR);
        }
        let client = if self.options.use_service_account_credentials {
            let token = BearerToken::default();
            let core = self.informers.client().clone();
            let wrap = |source| StartError::Credentials {
                account: account.to_string(),
                source: Box::new(source),
            };
            let expires = renew(&core, account, &token).await.map_err(wrap)?;
            let renewing = keep_renewed(
                core,
                account.to_string(),
                token.clone(),
                expires,
                self.shutdown.clone(),
            );
            let name = format!("token of {account}");
            self.shutdown.spawn_essential(name, renewing);
            config.build_with_token(config.load().await?, token)?
        } else {
            config.build().await?
        };
        clients.insert(account.to_string(), client.clone());
        Ok(client)
    }

    /// The executor of a controller: writes as `account`, records events as `component` (`deployment-controller`).
    ///
    /// # Errors
    /// As [`ControllerContext::client`].
    pub async fn executor(&self, account: &str, component: &str) -> Result<Executor, StartError> {
        let client = self.client(account).await?;
        let recorder = Recorder::core_v1(client.clone(), component, "", &self.shutdown);
        Ok(Executor::new(
            Arc::new(ApiTransport::new(client)),
            self.leadership.clone(),
            recorder,
        ))
    }

    /// Whether the API server has this kind in this version: an older one may not.
    ///
    /// # Errors
    /// When it does not say.
    pub async fn serves<K: kube::Resource<DynamicType = ()>>(&self) -> Result<bool, StartError> {
        let version = K::api_version(&());
        let plural = K::plural(&());
        let client = self.informers.client();
        match client.list_api_group_resources(&version).await {
            Ok(list) => Ok(list.resources.iter().any(|r| r.name == plural)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(StartError::Api {
                what: "ask what the API server has",
                source: error.into(),
            }),
        }
    }

    /// A controller that has nothing to do here, and waits for the end.
    pub fn nothing_to_do(&self, name: &'static str) -> Running {
        tracing::info!(
            controller = name,
            "Skipping the controller: nothing to do here"
        );
        let shutdown = self.shutdown.clone();
        Box::pin(async move { shutdown.triggered().await })
    }

    /// An executor with the process's own credentials, for the controller that makes tokens for accounts.
    pub fn root_executor(&self, component: &str) -> Executor {
        let client = self.informers.client().clone();
        let recorder = Recorder::core_v1(client.clone(), component, "", &self.shutdown);
        let transport = Arc::new(ApiTransport::new(client));
        Executor::new(transport, self.leadership.clone(), recorder)
    }
}

/// Puts a fresh token in and returns when it expires.
async fn renew(
    client: &Client,
    account: &str,
    token: &BearerToken,
) -> Result<Timestamp, kube::Error> {
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    if api.get_opt(account).await?.is_none() {
        let object = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(account.to_string()),
                namespace: Some(NAMESPACE.to_string()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        match api.create(&PostParams::default(), &object).await {
            Err(error) if !is_already_exists(&error) => return Err(error),
            _ => {}
        }
    }
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            expiration_seconds: Some(TOKEN_SECONDS),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let status = api
        .create_token_request(account, &PostParams::default(), &request)
        .await?
        .status
        .unwrap_or_default();
    token.set(status.token.as_deref().unwrap_or_default());
    // A server that does not say gets asked again soon.
    Ok(status
        .expiration_timestamp
        .map_or_else(Timestamp::now, |time| time.0))
}

async fn keep_renewed(
    client: Client,
    account: String,
    token: BearerToken,
    mut expires: Timestamp,
    shutdown: Shutdown,
) {
    loop {
        let left = expires
            .duration_since(Timestamp::now())
            .as_secs_f64()
            .max(0.0);
        let pause = Duration::from_secs_f64((left * (1.0 - LEEWAY)).max(1.0));
        if shutdown
            .run_until(tokio::time::sleep(pause))
            .await
            .is_none()
        {
            return;
        }
        match shutdown.run_until(renew(&client, &account, &token)).await {
            None => return,
            Some(Ok(until)) => expires = until,
            Some(Err(error)) => {
                tracing::warn!(account, %error, "Renewing the controller's token failed, will retry");
                if shutdown
                    .run_until(tokio::time::sleep(RETRY))
                    .await
                    .is_none()
                {
                    return;
                }
            }
        }
    }
}
