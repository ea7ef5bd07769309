//! A cloud that answers over HTTP, so that a provider can be written in any language.
//!
//! ```yaml
//! url: https://cloud.example.com/k8s  # http only to this machine
//! caFile: /etc/cloud/ca.pem           # who signed its certificate; wanted with https
//! tokenFile: /etc/cloud/token         # if there, sent as bearer token; read for each request
//! timeoutSeconds: 30
//! ```
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET v1/provider` | | `{"name": "acme", "supports": ["instances", "zones", "loadBalancers", "routes"]}` |
//! | `POST v1/instances/exists` | `{"node": Node}` | `{"exists": true}` |
//! | `POST v1/instances/shutdown` | `{"node": Node}` | `{"shutDown": false}` |
//! | `POST v1/instances/metadata` | `{"node": Node}` | `{"metadata": InstanceMetadata}`, null for none of its business |
//! | `POST v1/zones/get` | `{"node": Node}` | `{"zone": Zone}` |
//! | `POST v1/loadbalancers/get` | `{"clusterName", "service"}` | `{"status": LoadBalancerStatus}`, null for none |
//! | `POST v1/loadbalancers/ensure` | `{"clusterName", "service", "nodes"}` | `{"status": LoadBalancerStatus}` |
//! | `POST v1/loadbalancers/update` | `{"clusterName", "service", "nodes"}` | `{}` |
//! | `POST v1/loadbalancers/delete` | `{"clusterName", "service"}` | `{}` |
//! | `POST v1/routes/list` | `{"clusterName"}` | `{"routes": [Route]}` |
//! | `POST v1/routes/create` | `{"clusterName", "nameHint", "route"}` | `{}` |
//! | `POST v1/routes/delete` | `{"clusterName", "route"}` | `{}` |
//!
//! Node, Service and LoadBalancerStatus are those of Kubernetes' API (core/v1). A failure is a status of 400 or more with
//! `{"code": …, "message": …, "retryAfterSeconds": …}`; the codes `InstanceNotFound`, `NotImplemented`, `ImplementedElsewhere` and
//! `RetryAfter` have a meaning, others are told to people.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::api::core::v1::{LoadBalancerStatus, Node, Service};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::config::{ConfigError, load};
use crate::{
    Cloud, CloudError, InstanceMetadata, Instances, LoadBalancer, Route, Routes, Zone, Zones,
};

/// As in `--cloud-provider`.
pub const NAME: &str = "http";
/// Bytes of the longest answer.
const MAX_ANSWER: usize = 16 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Config {
    url: String,
    #[serde(default)]
    ca_file: Option<PathBuf>,
    #[serde(default)]
    token_file: Option<PathBuf>,
    #[serde(default = "default_timeout")]
    timeout_seconds: u64,
}

fn default_timeout() -> u64 {
    30
}

/// What the other side can do.
#[derive(Debug, Deserialize)]
struct Provider {
    name: String,
    supports: Vec<String>,
}

/// A failure in the other side's words.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Failure {
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    retry_after_seconds: u64,
}

impl From<Failure> for CloudError {
    fn from(failure: Failure) -> Self {
        match &*failure.code {
            "InstanceNotFound" => Self::InstanceNotFound,
            "NotImplemented" => Self::NotImplemented,
            "ImplementedElsewhere" => Self::ImplementedElsewhere,
            "RetryAfter" => Self::RetryAfter {
                message: failure.message,
                after: Duration::from_secs(failure.retry_after_seconds),
            },
            code if failure.message.is_empty() => Self::Failed(code.to_owned()),
            code => Self::Failed(format!("{code}: {}", failure.message)),
        }
    }
}

/// The cloud.
pub struct HttpCloud {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// Without a slash at its end.
    url: String,
    token_file: Option<PathBuf>,
    timeout: Duration,
    provider: Provider,
}

impl HttpCloud {
    /// Reads the file and asks the other side what it can do.
    ///
    /// # Errors
    /// When the file is not right, or the other side does not answer.
    pub async fn open(path: &Path) -> Result<Self, ConfigError> {
        let config: Config = load(path)?;
        check(path, &config)?;
        let mut cloud = Self {
            client: client(path, &config)?,
            url: config.url.trim_end_matches('/').to_owned(),
            token_file: config.token_file,
            timeout: Duration::from_secs(config.timeout_seconds),
            provider: Provider {
                name: String::new(),
                supports: Vec::new(),
            },
        };
        let known = ["instances", "zones", "loadBalancers", "routes"];
        let asked = cloud.send(Method::GET, "v1/provider", Value::Null).await;
        cloud.provider =
            asked.map_err(|error| ConfigError::invalid(path, format!("url: {error}")))?;
        let mut supports = cloud.provider.supports.iter();
        if let Some(unknown) = supports.find(|s| !known.contains(&&***s)) {
            let message =
                format!("url: the provider supports {unknown:?}, which nobody here knows");
            return Err(ConfigError::invalid(path, message));
        }
        Ok(cloud)
    }

    fn supports(&self, what: &str) -> bool {
        self.provider.supports.iter().any(|s| s == what)
    }

    async fn post<T: DeserializeOwned>(&self, what: &str, body: Value) -> Result<T, CloudError> {
        self.send(Method::POST, what, body).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        what: &str,
        body: Value,
    ) -> Result<T, CloudError> {
        let asked = format!("{method} {}/{what}", self.url);
        let failed =
            |error: &dyn std::fmt::Display| CloudError::Failed(format!("{asked}: {error}"));
        let answer = tokio::time::timeout(self.timeout, self.exchange(method, what, body)).await;
        let (status, bytes) = match answer {
            Err(_) => return Err(failed(&format!("no answer in {:?}", self.timeout))),
            Ok(answer) => answer.map_err(|error| failed(&error))?,
        };
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| failed(&error));
        }
        match serde_json::from_slice::<Failure>(&bytes) {
            Ok(failure) => Err(failure.into()),
            Err(_) => Err(failed(&status)),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        what: &str,
        body: Value,
    ) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}/{what}", self.url))
            .header(header::ACCEPT, "application/json");
        if let Some(path) = &self.token_file {
            let token = tokio::fs::read_to_string(path).await;
            let token = token.map_err(|error| format!("tokenFile {}: {error}", path.display()))?;
            let value = format!("Bearer {}", token.trim());
            request = request.header(header::AUTHORIZATION, value);
        }
        let body = match body {
            Value::Null => Full::default(),
            body => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Full::from(body.to_string())
            }
        };
        let answer = self
            .client
            .request(request.body(body)?)
            .await
            .map_err(whole)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER)
            .collect()
            .await?;
        Ok((status, body.to_bytes()))
    }
}

/// An error of the client with its causes, which it does not tell by itself.
fn whole(error: hyper_util::client::legacy::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

fn check(path: &Path, config: &Config) -> Result<(), ConfigError> {
    let invalid = |message: String| Err(ConfigError::invalid(path, message));
    let url = &config.url;
    let uri: Uri = match url.parse() {
        Ok(uri) => uri,
        Err(error) => return invalid(format!("url: {url:?}: {error}")),
    };
    let host = uri.host().unwrap_or_default();
    let host = host.trim_matches(['[', ']']);
    let address = host.parse::<std::net::IpAddr>();
    let local = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    match uri.scheme_str() {
        _ if host.is_empty() || uri.query().is_some() => {
            invalid(format!("url: {url:?} is not SCHEME://HOST[:PORT][/PATH]"))
        }
        // Tokens and addresses are nobody else's business.
        Some("http") if !local => invalid(format!(
            "url: {url:?}: http is only for this machine, use https"
        )),
        Some("https") if config.ca_file.is_none() => {
            invalid("caFile: must be set with https".to_owned())
        }
        Some("http" | "https") if config.timeout_seconds == 0 => {
            invalid("timeoutSeconds: must be greater than zero".to_owned())
        }
        Some("http" | "https") => Ok(()),
        _ => invalid(format!("url: {url:?} is neither http nor https")),
    }
}

fn client(
    path: &Path,
    config: &Config,
) -> Result<Client<HttpsConnector<HttpConnector>, Full<Bytes>>, ConfigError> {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(file) = &config.ca_file {
        let invalid = |error: &dyn std::fmt::Display| {
            ConfigError::invalid(path, format!("caFile: {}: {error}", file.display()))
        };
        let certificates = CertificateDer::pem_file_iter(file).map_err(|error| invalid(&error))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| invalid(&error))?;
            roots.add(certificate).map_err(|error| invalid(&error))?;
        }
        if roots.is_empty() {
            return Err(invalid(&"no certificate in it"));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ConfigError::invalid(path, error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .build();
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}

impl Cloud for HttpCloud {
    fn name(&self) -> &str {
        &self.provider.name
    }
    fn instances(&self) -> Option<&dyn Instances> {
        self.supports("instances").then_some(self)
    }
    fn zones(&self) -> Option<&dyn Zones> {
        self.supports("zones").then_some(self)
    }
    fn load_balancer(&self) -> Option<&dyn LoadBalancer> {
        self.supports("loadBalancers").then_some(self)
    }
    fn routes(&self) -> Option<&dyn Routes> {
        self.supports("routes").then_some(self)
    }
}

/// `{}`, or whatever else says that it is done.
#[derive(Deserialize)]
struct Done {}

#[derive(Deserialize)]
struct Exists {
    exists: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ShutDown {
    shut_down: bool,
}

#[derive(Deserialize)]
struct Metadata {
    metadata: Option<InstanceMetadata>,
}

#[derive(Deserialize)]
struct InZone {
    zone: Zone,
}

#[derive(Deserialize)]
struct Status {
    status: Option<LoadBalancerStatus>,
}

#[derive(Deserialize)]
struct Listed {
    routes: Vec<Route>,
}

#[async_trait]
impl Instances for HttpCloud {
    async fn exists(&self, node: &Node) -> Result<bool, CloudError> {
        let body = json!({ "node": node });
        let answer: Exists = self.post("v1/instances/exists", body).await?;
        Ok(answer.exists)
    }

    async fn is_shut_down(&self, node: &Node) -> Result<bool, CloudError> {
        let body = json!({ "node": node });
        let answer: ShutDown = self.post("v1/instances/shutdown", body).await?;
        Ok(answer.shut_down)
    }

    async fn metadata(&self, node: &Node) -> Result<Option<InstanceMetadata>, CloudError> {
        let body = json!({ "node": node });
        let answer: Metadata = self.post("v1/instances/metadata", body).await?;
        Ok(answer.metadata)
    }
}

#[async_trait]
impl Zones for HttpCloud {
    async fn zone(&self, node: &Node) -> Result<Zone, CloudError> {
        let body = json!({ "node": node });
        let answer: InZone = self.post("v1/zones/get", body).await?;
        Ok(answer.zone)
    }
}

fn nodes(nodes: &[Arc<Node>]) -> Value {
    nodes.iter().map(|node| json!(**node)).collect()
}

#[async_trait]
impl LoadBalancer for HttpCloud {
    async fn get(
        &self,
        cluster: &str,
        service: &Service,
    ) -> Result<Option<LoadBalancerStatus>, CloudError> {
        let body = json!({ "clusterName": cluster, "service": service });
        let answer: Status = self.post("v1/loadbalancers/get", body).await?;
        Ok(answer.status)
    }

    async fn ensure(
        &self,
        cluster: &str,
        service: &Service,
        to: &[Arc<Node>],
    ) -> Result<LoadBalancerStatus, CloudError> {
        let body = json!({ "clusterName": cluster, "service": service, "nodes": nodes(to) });
        let answer: Status = self.post("v1/loadbalancers/ensure", body).await?;
        let missing = || CloudError::Failed("the provider's answer has no status".to_owned());
        answer.status.ok_or_else(missing)
    }

    async fn update(
        &self,
        cluster: &str,
        service: &Service,
        to: &[Arc<Node>],
    ) -> Result<(), CloudError> {
        let body = json!({ "clusterName": cluster, "service": service, "nodes": nodes(to) });
        let Done {} = self.post("v1/loadbalancers/update", body).await?;
        Ok(())
    }

    async fn ensure_deleted(&self, cluster: &str, service: &Service) -> Result<(), CloudError> {
        let body = json!({ "clusterName": cluster, "service": service });
        let Done {} = self.post("v1/loadbalancers/delete", body).await?;
        Ok(())
    }
}

#[async_trait]
impl Routes for HttpCloud {
    async fn list(&self, cluster: &str) -> Result<Vec<Route>, CloudError> {
        let body = json!({ "clusterName": cluster });
        let answer: Listed = self.post("v1/routes/list", body).await?;
        Ok(answer.routes)
    }

    async fn create(&self, cluster: &str, hint: &str, route: &Route) -> Result<(), CloudError> {
        let body = json!({ "clusterName": cluster, "nameHint": hint, "route": route });
        let Done {} = self.post("v1/routes/create", body).await?;
        Ok(())
    }

    async fn delete(&self, cluster: &str, route: &Route) -> Result<(), CloudError> {
        let body = json!({ "clusterName": cluster, "route": route });
        let Done {} = self.post("v1/routes/delete", body).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
