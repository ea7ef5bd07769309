//! Clients of the API server: by kubeconfig or from inside a Pod, with a user agent, a rate limit and upstream's metrics.
//!
//! Each client has connections ([`transport`]) and a rate limit ([`bucket`]) of its own: who must not wait for others, has
//! another client. Clients that differ in their bearer token alone may share [`Connections`]. A watch costs no token, only its
//! place among those that begin.
//! Upstream: `k8s.io/client-go/rest`. Exec plugins and auth providers are not supported.

mod bucket;
mod transport;
pub mod wire;

use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response};
use kube::client::{Body, ClientBuilder, ConfigExt as _, DynBody};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use tokio::sync::{Semaphore, SemaphorePermit};
use tower::util::BoxService;
use tower::{BoxError, ServiceBuilder, ServiceExt as _};

pub use bucket::TokenBucket;
use transport::Transport;

/// How to reach the API server.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `--kubeconfig`; `None` means in-cluster.
    pub kubeconfig: Option<PathBuf>,
    /// `--master`: overrides the kubeconfig's server. Works without a kubeconfig, too (no credentials then).
    pub master: Option<String>,
    /// Requests a second; 0 or below means no limit. Upstream's default is 5 (components set 20 to 50).
    pub qps: f32,
    /// Requests at once before `qps` holds.
    pub burst: u32,
    /// The component's name in the user agent.
    pub component: String,
    /// A bearer token that replaces the kubeconfig's credentials; re-read each minute. Used for a controller's own account.
    pub token_file: Option<PathBuf>,
    /// How long the begin of an answer may take, the wait for the rate limit included. `None`: as long as the rate limit takes,
    /// then 70 s, more than the API server takes to give up itself.
    pub timeout: Option<Duration>,
}

/// Why no client could be made. No retry helps before the configuration changes.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig cannot be read or used.
    #[error("error loading kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// Not inside a Pod, and no kubeconfig.
    #[error(
        "unable to load in-cluster configuration, KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must be defined: {0}"
    )]
    InCluster(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// `--master` is no URL.
    #[error("invalid API server address {0:?}")]
    Master(String),
    /// TLS or proxy settings cannot be used.
    #[error("building the API client: {0}")]
    Build(#[source] Box<kube::Error>),
}

/// Whether this process is in a pod of the cluster that it works for. Upstream: `rest.ErrNotInCluster`.
pub fn in_cluster() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    is_set("KUBERNETES_SERVICE_HOST") && is_set("KUBERNETES_SERVICE_PORT")
}

impl ClientConfig {
    /// In-cluster, 50 requests a second with a burst of 100.
    pub fn new(component: &str) -> Self {
        Self {
            kubeconfig: None,
            master: None,
            qps: 50.0,
            burst: 100,
            component: component.to_string(),
            token_file: None,
            timeout: None,
        }
    }

    /// The same cluster under another user agent, with its own rate limit bucket.
    pub fn with_component(&self, component: &str) -> Self {
        Self {
            component: component.to_string(),
            ..self.clone()
        }
    }

    /// The kube configuration: address, CA, credentials, user agent.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn load(&self) -> Result<kube::Config, ClientError> {
        install_crypto_provider();
        let mut config = match (&self.kubeconfig, &self.master) {
            (Some(path), _) => {
                let wrap = |source| ClientError::Kubeconfig {
                    path: path.clone(),
                    source: Box::new(source),
                };
                let kubeconfig = Kubeconfig::read_from(path).map_err(wrap)?;
                kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                    .await
                    .map_err(wrap)?
            }
            (None, Some(master)) => kube::Config::new(
                master
                    .parse()
                    .map_err(|_| ClientError::Master(master.clone()))?,
            ),
            (None, None) => {
                kube::Config::incluster().map_err(|e| ClientError::InCluster(Box::new(e)))?
            }
        };
        if let Some(master) = &self.master {
            config.cluster_url = master
                .parse()
                .map_err(|_| ClientError::Master(master.clone()))?;
        }
        if let Some(token_file) = &self.token_file {
            config.auth_info = kube::config::AuthInfo {
                token_file: Some(token_file.to_string_lossy().into_owned()),
                ..Default::default()
            };
        }
        let agent = HeaderValue::from_str(&crate::version::user_agent(&self.component))
            .unwrap_or_else(|_| HeaderValue::from_static("gantry"));
        config.headers.push((http::header::USER_AGENT, agent));
        Ok(config)
    }

    /// A client.
    ///
    /// # Errors
    /// See [`ClientError`]. An API server that is away is no error: requests fail later, one by one.
    pub async fn build(&self) -> Result<kube::Client, ClientError> {
        self.build_from(self.load().await?)
    }

    /// A client of a configuration at hand (credentials that were rotated, a token of a service account).
    ///
    /// # Errors
    /// When TLS or proxy settings cannot be used.
    pub fn build_from(&self, config: kube::Config) -> Result<kube::Client, ClientError> {
        let connections = Connections::new(&config)?;
        self.build_with(config, None, connections)
    }

    /// A client over `connections` whose bearer token is read anew for every request: for credentials that are refreshed in the
    /// process.
    ///
    /// # Errors
    /// When the settings cannot be used.
    pub fn build_with_token(
        &self,
        mut config: kube::Config,
        token: BearerToken,
        connections: &Connections,
    ) -> Result<kube::Client, ClientError> {
        config.auth_info = kube::config::AuthInfo::default();
        self.build_with(config, Some(token), connections.clone())
    }

    fn build_with(
        &self,
        config: kube::Config,
        token: Option<BearerToken>,
        connections: Connections,
    ) -> Result<kube::Client, ClientError> {
        install_crypto_provider();
        let host = config
            .cluster_url
            .authority()
            .map(ToString::to_string)
            .unwrap_or_default();
        let limiter = (self.qps > 0.0)
            .then(|| Arc::new(TokenBucket::new(f64::from(self.qps), self.burst.max(1))));
        let layer = ObserveLayer {
            limiter,
            beginning: Arc::new(Semaphore::new(BEGINNING_WATCHES)),
            timeout: self.timeout,
            host: host.into(),
            token,
        };
        let builder =
            builder(&config, connections.0).map_err(|e| ClientError::Build(Box::new(e)))?;
        Ok(builder.with_layer(&layer).build())
    }
}

type Service = BoxService<Request<Body>, Response<Box<DynBody>>, BoxError>;

/// Connections to one API server without credentials of their own; clones share them. A request never waits for another's answer: where
/// all are full, there is another connection.
#[derive(Clone)]
pub struct Connections(Transport);

impl Connections {
    /// None yet; the first request opens one.
    ///
    /// # Errors
    /// When TLS or proxy settings cannot be used.
    pub fn new(config: &kube::Config) -> Result<Self, ClientError> {
        install_crypto_provider();
        let transport = Transport::new(config).map_err(|e| ClientError::Build(Box::new(e)))?;
        Ok(Self(transport))
    }

    /// The same for clients whose bearer tokens alone say who they are: without a client certificate.
    ///
    /// # Errors
    /// When TLS or proxy settings cannot be used.
    pub fn anonymous(config: &kube::Config) -> Result<Self, ClientError> {
        let mut config = config.clone();
        config.auth_info = kube::config::AuthInfo::default();
        Self::new(&config)
    }
}

/// kube's own stack over our connections.
fn builder(
    config: &kube::Config,
    transport: Transport,
) -> Result<ClientBuilder<Service>, kube::Error> {
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(transport)
        .boxed();
    Ok(ClientBuilder::new(
        service,
        config.default_namespace.clone(),
    ))
}

/// Makes ring the process's crypto provider. Idempotent; every entry of this crate that needs TLS calls it.
pub fn install_crypto_provider() {
    // Err means that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[derive(Clone)]
struct ObserveLayer {
    limiter: Option<Arc<TokenBucket>>,
    /// Places of watches that were not answered yet.
    beginning: Arc<Semaphore>,
    timeout: Option<Duration>,
    host: Arc<str>,
    token: Option<BearerToken>,
}

/// A bearer token that its owner replaces; clones share it.
#[derive(Clone, Default)]
pub struct BearerToken {
    header: Arc<arc_swap::ArcSwapOption<HeaderValue>>,
}

impl BearerToken {
    /// Replaces the token. A token that cannot stand in a header is ignored.
    pub fn set(&self, token: &str) {
        if let Ok(mut header) = HeaderValue::from_str(&format!("Bearer {token}")) {
            header.set_sensitive(true);
            self.header.store(Some(Arc::new(header)));
        }
    }
}

impl<S> tower::Layer<S> for ObserveLayer {
    type Service = Observe<S>;
    fn layer(&self, inner: S) -> Observe<S> {
        Observe {
            inner,
            layer: self.clone(),
        }
    }
}

/// How long the first byte of an answer may take. The API server gives up after 60 s itself; a watch answers at once. Without
/// this, a request to a server that vanished would hold its worker for as long as TCP tries.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(70);

/// Watches of one client that begin at the same time. They cost no tokens, as they are few or a crowd that all had to begin anew:
/// when a server comes back, hundreds do so, and they are to come one group after the other.
const BEGINNING_WATCHES: usize = 50;

/// No answer came in time; the request may have been carried out.
#[derive(Debug, thiserror::Error)]
#[error("the API server did not answer within {}", crate::duration::format(*.0))]
struct NoAnswer(Duration);

impl ObserveLayer {
    /// Waits until the request may go; a watch keeps its place until it is answered.
    async fn enter(&self, watch: bool) -> Result<Option<SemaphorePermit<'_>>, NoAnswer> {
        let enter = async {
            match (watch, &self.limiter) {
                // The semaphore is never closed.
                (true, _) => self.beginning.acquire().await.ok(),
                (false, Some(limiter)) => {
                    limiter.acquire().await;
                    None
                }
                (false, None) => None,
            }
        };
        match self.timeout {
            None => Ok(enter.await),
            Some(timeout) => match tokio::time::timeout(timeout, enter).await {
                Ok(place) => Ok(place),
                Err(_) => Err(NoAnswer(timeout)),
            },
        }
    }
}

fn is_watch(request: &Request<Body>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query
        .split('&')
        .any(|pair| matches!(pair, "watch=true" | "watch=1"))
}

/// Waits for the rate limit, bounds the wait for an answer, and records `rest_client_*`.
struct Observe<S> {
    inner: S,
    layer: ObserveLayer,
}

impl<S, B> tower::Service<Request<Body>> for Observe<S>
where
    S: tower::Service<Request<Body>, Response = Response<B>, Error = tower::BoxError>,
    S::Future: Send + 'static,
    B: Send,
{
    type Response = Response<B>;
    type Error = tower::BoxError;
    type Future = BoxFuture<'static, Result<Response<B>, tower::BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), tower::BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(header) = self
            .layer
            .token
            .as_ref()
            .and_then(|token| token.header.load_full())
        {
            request
                .headers_mut()
                .insert(http::header::AUTHORIZATION, (*header).clone());
        }
        let method = request.method().clone();
        let watch = is_watch(&request);
        let layer = self.layer.clone();
        // The inner future does nothing before it is polled, so the limit holds.
        let response = self.inner.call(request);
        let start = Instant::now();
        Box::pin(async move {
            let deadline = layer.timeout.map(|timeout| start + timeout);
            let _place = match layer.enter(watch).await {
                Ok(place) => place,
                Err(late) => return Err(late.into()),
            };
            let start = Instant::now();
            let timeout = deadline.map_or(ANSWER_TIMEOUT, |at| at.duration_since(start));
            let result = match tokio::time::timeout(timeout, response).await {
                Ok(result) => result,
                Err(_) => Err(BoxError::from(NoAnswer(timeout))),
            };
            let code = match &result {
                Ok(response) => response.status().as_str().to_string(),
                Err(_) => "<error>".to_string(),
            };
            crate::metrics::observe_rest_client(
                &code,
                method.as_str(),
                &layer.host,
                start.elapsed(),
            );
            result
        })
    }
}

/// The status an API error carries, if the server answered.
pub fn api_status(error: &kube::Error) -> Option<&kube::core::Status> {
    match error {
        kube::Error::Api(status) => Some(status),
        _ => None,
    }
}
/// Whether the object is not there.
pub fn is_not_found(error: &kube::Error) -> bool {
    api_status(error).is_some_and(|s| s.code == 404)
}
/// Whether someone else wrote first.
pub fn is_conflict(error: &kube::Error) -> bool {
    api_status(error).is_some_and(|s| s.code == 409 && s.reason == "Conflict")
}
/// Whether the object is there already.
pub fn is_already_exists(error: &kube::Error) -> bool {
    api_status(error).is_some_and(|s| s.code == 409 && s.reason == "AlreadyExists")
}
/// Whether the server refuses the object.
pub fn is_invalid(error: &kube::Error) -> bool {
    api_status(error).is_some_and(|s| s.code == 422)
}
/// Whether the namespace is going (`NamespaceTerminating` cause).
pub fn is_namespace_terminating(error: &kube::Error) -> bool {
    api_status(error)
        .and_then(|s| s.details.as_ref())
        .is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating"))
}

#[cfg(test)]
mod tests;
