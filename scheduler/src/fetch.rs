//! [`Fetcher`]: the questions plugins ask by HTTP, of the API server or of a URL in their arguments.
//!
//! Bounded in time and size. Redirects are not followed, and the environment's proxies are not used: the address is the one in the configuration.

use bytes::Bytes;
use component_base::client::install_crypto_provider;
use framework::{BoxFuture, Fetch, FetchError, FetchFrom};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt as _;
use serde_json::Value;

use crate::causes::with_causes;

/// An answer is at most this large: the metrics of a hundred thousand nodes.
const MAX_ANSWER: usize = 128 << 20;

/// See the module.
#[derive(Clone)]
pub struct Fetcher {
    client: kube::Client,
}

impl Fetcher {
    /// `client` is for questions to the API server.
    pub fn new(client: kube::Client) -> Self {
        Fetcher { client }
    }

    /// Asks.
    pub fn fetch(&self, fetch: Fetch) -> BoxFuture<'static, Result<Value, FetchError>> {
        let this = self.clone();
        Box::pin(async move {
            let Fetch { from, timeout } = fetch;
            let place = match &from {
                FetchFrom::ApiServer(path) => path.clone(),
                FetchFrom::Url { url, .. } => url.clone(),
            };
            let answer = async {
                match from {
                    FetchFrom::ApiServer(path) => this.of_api_server(&path).await,
                    FetchFrom::Url {
                        url,
                        token,
                        insecure_skip_verify,
                    } => of_url(&url, &token, insecure_skip_verify).await,
                }
            };
            let answer = tokio::time::timeout(timeout, answer).await;
            let answer = answer.unwrap_or_else(|_| {
                let timeout = component_base::duration::format(timeout);
                Err(format!("no answer within {timeout}"))
            });
            answer.map_err(|error| FetchError(format!("Get {place:?}: {error}")))
        })
    }

    async fn of_api_server(&self, path: &str) -> Result<Value, String> {
        let request = http::Request::get(path).body(Vec::new());
        let request = request.map_err(|error| error.to_string())?;
        let answer = self.client.request(request).await;
        answer.map_err(|error| with_causes(&error))
    }
}

async fn of_url(url: &str, token: &str, insecure_skip_verify: bool) -> Result<Value, String> {
    install_crypto_provider();
    let uri: http::Uri = url
        .parse()
        .map_err(|e: http::uri::InvalidUri| e.to_string())?;
    let plain = uri.scheme_str() == Some("http");
    let mut config = kube::Config::new(uri);
    // Without TLS the machine's certificates are not looked for.
    config.accept_invalid_certs = insecure_skip_verify || plain;
    let connector = config.rustls_https_connector();
    let connector = connector.map_err(|error| with_causes(&error))?;
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let mut request = http::Request::get(url).header(http::header::ACCEPT, "application/json");
    if !token.is_empty() {
        request = request.header(http::header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Empty::new());
    let request = request.map_err(|error| error.to_string())?;
    let response = client.request(request).await;
    let response = response.map_err(|error| with_causes(&error))?;
    let code = response.status();
    if code != http::StatusCode::OK {
        return Err(format!("the answer has the code {}", code.as_u16()));
    }
    let body = Limited::new(response.into_body(), MAX_ANSWER);
    let body = body.collect().await.map_err(|error| error.to_string())?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| format!("no JSON: {error}"))
}
