//! Requests to one extender: TLS, the time an answer may take, and how large it may be.

use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use component_base::client::install_crypto_provider;
use component_base::tls::{TlsError, certificates};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt as _;
use serde_json::Value;

use super::timeout;
use crate::causes::with_causes;
use crate::config;

/// An answer is at most this large: tens of thousands of whole nodes.
const MAX_ANSWER: usize = 256 << 20;

/// Why TLS settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsFilesError {
    /// A file cannot be read.
    #[error("tlsConfig.{field}: {path}: {source}")]
    Read {
        /// The field.
        field: &'static str,
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Data that are no base64.
    #[error("tlsConfig.{field}: illegal base64 data: {source}")]
    Base64 {
        /// The field.
        field: &'static str,
        /// Why.
        #[source]
        source: base64::DecodeError,
    },
    /// A CA beside `insecure`.
    #[error("specifying a root certificates file with the insecure flag is not allowed")]
    InsecureWithCa,
    /// A certificate without its key, or the other way round.
    #[error("tlsConfig: a certificate and its key go together")]
    HalfIdentity,
    /// The CA holds no certificates.
    #[error(transparent)]
    Ca(#[from] TlsError),
    /// What is there fits not together.
    #[error("tlsConfig: {0}")]
    Unusable(#[source] Box<kube::Error>),
    /// The URL is none.
    #[error("urlPrefix: {0}")]
    Url(#[source] http::uri::InvalidUri),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("Post {url:?}: {message}")]
    Transport { url: String, message: String },
    #[error("Post {url:?}: no answer within {}", component_base::duration::format(*.timeout))]
    Timeout { url: String, timeout: Duration },
    #[error("failed {verb} with extender at URL {url}, code {code}")]
    Code {
        verb: String,
        url: String,
        code: u16,
    },
    #[error("the answer of {url} is no JSON: {message}")]
    Json { url: String, message: String },
    #[error("the scheduler is ending")]
    End,
}

pub(super) struct HttpClient {
    prefix: String,
    timeout: Duration,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// The data of a field, or else the file's content; `None` where neither is given.
fn pem(
    (data_field, data): (&'static str, &str),
    (file_field, file): (&'static str, &str),
) -> Result<Option<Vec<u8>>, TlsFilesError> {
    if !data.is_empty() {
        let decoded = base64::engine::general_purpose::STANDARD.decode(data);
        let wrap = |source| TlsFilesError::Base64 {
            field: data_field,
            source,
        };
        return decoded.map(Some).map_err(wrap);
    }
    if file.is_empty() {
        return Ok(None);
    }
    let wrap = |source| TlsFilesError::Read {
        field: file_field,
        path: file.to_owned(),
        source,
    };
    std::fs::read(file).map(Some).map_err(wrap)
}

impl HttpClient {
    pub(super) fn new(extender: &config::Extender) -> Result<Self, TlsFilesError> {
        install_crypto_provider();
        let url: http::Uri = extender.url_prefix.parse().map_err(TlsFilesError::Url)?;
        let plain = url.scheme_str() == Some("http");
        let mut config = kube::Config::new(url);
        let tls = extender.tls_config.clone().unwrap_or_default();
        let ca = pem(("caData", &tls.ca_data), ("caFile", &tls.ca_file))?;
        // Upstream: who asks for HTTPS and names no CA does not verify.
        config.accept_invalid_certs = tls.insecure || (extender.enable_https && ca.is_none());
        if config.accept_invalid_certs && ca.is_some() {
            return Err(TlsFilesError::InsecureWithCa);
        }
        // Without TLS the machine's certificates are not looked for, either.
        config.accept_invalid_certs |= plain && ca.is_none();
        if let Some(ca) = ca {
            let certificates = certificates("tlsConfig CA", &ca)?;
            config.root_cert = Some(certificates.iter().map(|c| c.to_vec()).collect());
        }
        if !tls.server_name.is_empty() {
            config.tls_server_name = Some(tls.server_name.clone());
        }
        let cert = pem(("certData", &tls.cert_data), ("certFile", &tls.cert_file))?;
        let key = pem(("keyData", &tls.key_data), ("keyFile", &tls.key_file))?;
        match (cert, key) {
            (Some(cert), Some(key)) => {
                let text = |pem: &[u8]| base64::engine::general_purpose::STANDARD.encode(pem);
                config.auth_info.client_certificate_data = Some(text(&cert));
                config.auth_info.client_key_data = Some(text(&key).into());
            }
            (None, None) => {}
            _ => return Err(TlsFilesError::HalfIdentity),
        }
        let connector = config.rustls_https_connector();
        let connector = connector.map_err(|e| TlsFilesError::Unusable(Box::new(e)))?;
        Ok(HttpClient {
            prefix: extender.url_prefix.trim_end_matches('/').to_owned(),
            timeout: timeout(extender),
            client: Client::builder(TokioExecutor::new()).build(connector),
        })
    }

    /// Posts JSON, and reads JSON.
    pub(super) async fn call(&self, verb: &str, body: Vec<u8>) -> Result<Value, CallError> {
        let url = format!("{}/{verb}", self.prefix);
        let answer = tokio::time::timeout(self.timeout, self.post(verb, &url, body)).await;
        answer.unwrap_or(Err(CallError::Timeout {
            url,
            timeout: self.timeout,
        }))
    }

    async fn post(&self, verb: &str, url: &str, body: Vec<u8>) -> Result<Value, CallError> {
        let failed = |message: String| CallError::Transport {
            url: url.to_owned(),
            message,
        };
        let request = http::Request::post(url)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| failed(error.to_string()))?;
        let response = self.client.request(request).await;
        let response = response.map_err(|error| failed(with_causes(&error)))?;
        let code = response.status();
        if code != http::StatusCode::OK {
            return Err(CallError::Code {
                verb: verb.to_owned(),
                url: url.to_owned(),
                code: code.as_u16(),
            });
        }
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await;
        let body = body.map_err(|error| failed(error.to_string()))?;
        serde_json::from_slice(&body.to_bytes()).map_err(|error| CallError::Json {
            url: url.to_owned(),
            message: error.to_string(),
        })
    }
}
