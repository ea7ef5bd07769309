//! Clients under controllers' own accounts.
//!
//! With `--use-service-account-credentials` each controller acts as `system:serviceaccount:kube-system:NAME`, by a token that is asked
//! for and renewed here. Upstream: `k8s.io/controller-manager/pkg/clientbuilder`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use component_base::client::{
    BearerToken, ClientConfig, ClientError, Connections, is_already_exists,
};
use component_base::clock::Clock;
use component_base::events::Recorder;
use component_base::leader_election::Leadership;
use component_base::shutdown::Shutdown;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::Mutex;

use crate::executor::Executor;
use crate::transport::ApiTransport;

/// Where controllers' accounts live.
const NAMESPACE: &str = "kube-system";
/// How long a token is asked for.
const TOKEN_SECONDS: i64 = 3600;
/// A token is renewed when this part of its life is left.
const LEEWAY: f64 = 0.25;
/// Pause after a failed renewal.
const RETRY: Duration = Duration::from_secs(10);

/// Why there is no client of an account.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// No client can be made.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// No account or token.
    #[error("credentials of service account {NAMESPACE}/{account}: {source}")]
    Credentials {
        /// The account.
        account: String,
        /// The cause.
        #[source]
        source: Box<kube::Error>,
    },
}

/// Makes clients by account and remembers them; cheap to clone.
#[derive(Clone)]
pub struct Accounts {
    inner: Arc<Inner>,
}

struct Inner {
    /// `None`: all accounts have `core`.
    config: Option<ClientConfig>,
    core: Client,
    own: bool,
    clock: Clock,
    shutdown: Shutdown,
    clients: Mutex<Clients>,
}

#[derive(Default)]
struct Clients {
    by_account: HashMap<String, Client>,
    /// Of all accounts: tokens alone tell them apart, and thirty connections would cost both sides more than one that is full.
    connections: Option<Connections>,
}

impl Accounts {
    /// Clients like `config` says; with `own`, under accounts whose tokens `core` asks for until `shutdown`.
    pub fn new(config: ClientConfig, core: Client, own: bool, shutdown: Shutdown) -> Self {
        Self::over(Some(config), core, own, Clock::real(), shutdown)
    }

    /// One client for all accounts; events are stamped by `clock`.
    pub fn of_client(client: Client, clock: Clock, shutdown: Shutdown) -> Self {
        Self::over(None, client, false, clock, shutdown)
    }

    fn over(
        config: Option<ClientConfig>,
        core: Client,
        own: bool,
        clock: Clock,
        shutdown: Shutdown,
    ) -> Self {
        let inner = Inner {
            config,
            core,
            own,
            clock,
            shutdown,
            clients: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The client of an account (`deployment-controller`); its requests may come `factors` (rate, burst) as often as others'.
    ///
    /// # Errors
    /// When no client can be made, or no token be had.
    pub async fn client(&self, account: &str, factors: (f32, u32)) -> Result<Client, AccountError> {
        let inner = &self.inner;
        let Some(config) = &inner.config else {
            return Ok(inner.core.clone());
        };
        let mut clients = inner.clients.lock().await;
        if let Some(client) = clients.by_account.get(account) {
            return Ok(client.clone());
        }
        let component = format!("{}/{account}", config.component);
        let mut config = config.with_component(&component);
        config.qps *= factors.0;
        config.burst = config.burst.saturating_mul(factors.1);
        let client = if inner.own {
            let token = BearerToken::default();
            let wrap = |source| AccountError::Credentials {
                account: account.to_string(),
                source: Box::new(source),
            };
            let renewed = renew(&inner.core, account, &token, &inner.clock).await;
            let renewing = keep_renewed(
                inner.core.clone(),
                account.to_string(),
                token.clone(),
                renewed.map_err(wrap)?,
                inner.clock.clone(),
                inner.shutdown.clone(),
            );
            let name = format!("token of {account}");
            inner.shutdown.spawn_essential(name, renewing);
            let loaded = config.load().await?;
            let connections = match &clients.connections {
                Some(connections) => connections.clone(),
                None => clients
                    .connections
                    .insert(Connections::anonymous(&loaded)?)
                    .clone(),
            };
            config.build_with_token(loaded, token, &connections)?
        } else {
            config.build().await?
        };
        clients
            .by_account
            .insert(account.to_string(), client.clone());
        Ok(client)
    }

    /// An executor with a client: writes while `leadership` holds, records events as `component`.
    pub fn executor(&self, client: Client, component: &str, leadership: Leadership) -> Executor {
        let (clock, shutdown) = (&self.inner.clock, &self.inner.shutdown);
        let recorder = Recorder::core_v1_by(clock, client.clone(), component, "", shutdown);
        Executor::new(Arc::new(ApiTransport::new(client)), leadership, recorder)
    }
}

/// Puts a fresh token in and returns when it expires.
async fn renew(
    client: &Client,
    account: &str,
    token: &BearerToken,
    clock: &Clock,
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
        .map_or_else(|| clock.now(), |time| time.0))
}

async fn keep_renewed(
    client: Client,
    account: String,
    token: BearerToken,
    mut expires: Timestamp,
    clock: Clock,
    shutdown: Shutdown,
) {
    loop {
        let left = expires.duration_since(clock.now()).as_secs_f64().max(0.0);
        let pause = Duration::from_secs_f64((left * (1.0 - LEEWAY)).max(1.0));
        if shutdown
            .run_until(tokio::time::sleep(pause))
            .await
            .is_none()
        {
            return;
        }
        match shutdown
            .run_until(renew(&client, &account, &token, &clock))
            .await
        {
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
