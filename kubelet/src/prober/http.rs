//! A small HTTP/1.1 client for probes and lifecycle hooks.
//!
//! Owns: the request of an `httpGet`, https without verification, redirects on the same host, at most 10 KiB of body.
//! A connection a request, as upstream. Upstream: `pkg/probe/http`, v1.36.

mod redirect;

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::rlimit::is_shortage;

const MAX_BODY: usize = 10 * 1024;
const MAX_REDIRECTS: usize = 10;

/// Why no response came.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("couldn't find port: {0:?}")]
    NoPort(String),
    #[error("dial tcp {address}: connect: {reason}")]
    Connect { address: String, reason: String },
    /// This node has no file or memory left for it.
    #[error("dial tcp {address}: {source}")]
    Shortage {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("http: server gave HTTP response to HTTPS client")]
    HttpResponseToHttps,
    #[error("tls: {0}")]
    Tls(#[source] std::io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("invalid request: {0}")]
    Request(#[from] ::http::Error),
    #[error("failed to parse Location header {location:?}: {reason}")]
    Location {
        location: String,
        reason: &'static str,
    },
    #[error("stopped after 10 redirects")]
    TooManyRedirects,
}

/// The kernel's words without Rust's error number.
pub fn plain_io_error(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    text.to_lowercase()
}

/// A port by number, or by the name of one of the container's ports.
///
/// # Errors
/// When the container has no port of that name, or the number is out of range.
pub fn resolve_container_port(port: &IntOrString, container: &Container) -> Result<u16, HttpError> {
    let number = match port {
        IntOrString::Int(n) => u16::try_from(*n).ok(),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref() == Some(name))
            .and_then(|p| u16::try_from(p.container_port).ok())
            .or_else(|| name.parse().ok()),
    };
    number.filter(|n| *n > 0).ok_or_else(|| {
        HttpError::NoPort(match port {
            IntOrString::Int(n) => n.to_string(),
            IntOrString::String(s) => s.clone(),
        })
    })
}

/// One request.
#[derive(Clone, Debug)]
pub struct HttpGet {
    pub https: bool,
    pub host: String,
    pub port: u16,
    /// Path and query.
    pub path: String,
    pub headers: Vec<(String, String)>,
}

/// What is kept of a response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub location: Option<String>,
    pub body: String,
}

impl HttpGet {
    /// `agent`: `probe` or `lifecycle`.
    ///
    /// # Errors
    /// When the port cannot be found.
    pub fn new(
        get: &HTTPGetAction,
        container: &Container,
        pod_ip: &str,
        agent: &str,
    ) -> Result<Self, HttpError> {
        let port = resolve_container_port(&get.port, container)?;
        let host = get
            .host
            .as_deref()
            .filter(|h| !h.is_empty())
            .unwrap_or(pod_ip)
            .to_owned();
        let mut headers: Vec<(String, String)> = get
            .http_headers
            .iter()
            .flatten()
            .map(|h| (h.name.clone(), h.value.clone()))
            .collect();
        let has = |headers: &[(String, String)], name: &str| {
            headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name))
        };
        if !has(&headers, "User-Agent") {
            headers.push(("User-Agent".to_owned(), format!("kube-{agent}/1.37")));
        }
        if has(&headers, "Accept") {
            headers.retain(|(n, v)| !(n.eq_ignore_ascii_case("Accept") && v.is_empty()));
        } else {
            headers.push(("Accept".to_owned(), "*/*".to_owned()));
        }
        let path = get.path.as_deref().unwrap_or_default();
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };
        // As Go writes a URL: a blank or an umlaut in a path is no reason to fail.
        let path = redirect::escape(path.split('#').next().unwrap_or_default());
        let https = get
            .scheme
            .as_deref()
            .is_some_and(|s| s.eq_ignore_ascii_case("https"));
        Ok(Self {
            https,
            host,
            port,
            path,
            headers,
        })
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    pub fn url(&self) -> String {
        format!(
            "{}://{}{}",
            if self.https { "https" } else { "http" },
            self.authority(),
            self.path
        )
    }
}

/// # Errors
/// No connection, no TLS, no HTTP.
pub async fn get(request: &HttpGet) -> Result<Response, HttpError> {
    let address = request.authority();
    let stream = TcpStream::connect(address.as_str())
        .await
        .map_err(|source| match is_shortage(&source) {
            true => HttpError::Shortage { address, source },
            false => HttpError::Connect {
                address,
                reason: plain_io_error(&source),
            },
        })?;
    if request.https {
        let name = ServerName::try_from(request.host.clone())
            .unwrap_or_else(|_| ServerName::try_from("invalid.host").expect("a valid DNS name"));
        let connector = tokio_rustls::TlsConnector::from(tls_config());
        let stream = connector.connect(name, stream).await.map_err(|e| {
            let inner = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
            match inner {
                Some(rustls::Error::InvalidMessage(_)) => HttpError::HttpResponseToHttps,
                _ => HttpError::Tls(e),
            }
        })?;
        exchange(request, stream).await
    } else {
        exchange(request, stream).await
    }
}

/// As [`get`], following redirects as long as they stay on the host; another host's redirect is the answer itself.
///
/// # Errors
/// As [`get`], or more than ten redirects.
pub async fn get_following_redirects(request: &HttpGet) -> Result<Response, HttpError> {
    let mut request = request.clone();
    for _ in 0..MAX_REDIRECTS {
        let response = get(&request).await?;
        let redirect = matches!(response.status, 301 | 302 | 303 | 307 | 308);
        let Some(location) = response
            .location
            .as_deref()
            .filter(|l| redirect && !l.is_empty())
        else {
            return Ok(response);
        };
        let Some(next) = redirect::resolve(&request, location)? else {
            return Ok(response);
        };
        request = next;
    }
    Err(HttpError::TooManyRedirects)
}

async fn exchange<S>(request: &HttpGet, stream: S) -> Result<Response, HttpError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .title_case_headers(true)
        .handshake(TokioIo::new(stream))
        .await?;
    let driver = tokio::spawn(connection);
    // The connection ends with the request, answered or given up.
    let _guard = AbortOnDrop(driver);
    let host = request
        .headers
        .iter()
        .find(|(n, _)| n.eq_ignore_ascii_case("Host"))
        .map(|(_, v)| v.clone());
    let mut builder = ::http::Request::get(&request.path)
        .header(
            "Host",
            host.filter(|h| !h.is_empty())
                .unwrap_or_else(|| request.authority()),
        )
        .header("Connection", "close");
    for (name, value) in request
        .headers
        .iter()
        .filter(|(n, _)| !n.eq_ignore_ascii_case("Host"))
    {
        builder = builder.header(name, value);
    }
    let response = sender
        .send_request(builder.body(Empty::<Bytes>::new())?)
        .await?;
    let status = response.status().as_u16();
    let location = response
        .headers()
        .get("location")
        .and_then(|v| v.to_str().ok())
        .map(str::to_owned);
    let mut body = response.into_body();
    let mut bytes: Vec<u8> = vec![];
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
        }
        if bytes.len() >= MAX_BODY {
            bytes.truncate(MAX_BODY);
            break;
        }
    }
    Ok(Response {
        status,
        location,
        body: String::from_utf8_lossy(&bytes).into_owned(),
    })
}

/// Ends a task with whoever waits for it.
pub(super) struct AbortOnDrop<T>(pub(super) tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Pods have certificates that nobody signed for their address; upstream does not look at them either.
#[derive(Debug)]
struct NoVerification(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn tls_config() -> Arc<rustls::ClientConfig> {
    static CONFIG: std::sync::LazyLock<Arc<rustls::ClientConfig>> =
        std::sync::LazyLock::new(|| {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ClientConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
                .expect("ring has the default versions")
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(NoVerification(provider)))
                .with_no_client_auth();
            Arc::new(config)
        });
    CONFIG.clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn serve(answers: Vec<&'static str>) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 1024];
                let n = stream.read(&mut buffer).await.unwrap();
                assert!(
                    String::from_utf8_lossy(&buffer[..n]).contains("User-Agent: kube-probe/1.37")
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        port
    }

    fn request(port: u16) -> HttpGet {
        let get = HTTPGetAction {
            port: IntOrString::Int(port.into()),
            path: Some("/a".into()),
            ..Default::default()
        };
        HttpGet::new(&get, &Container::default(), "127.0.0.1", "probe").unwrap()
    }

    #[tokio::test]
    async fn redirects_on_the_same_host_are_followed() {
        let port = serve(vec![
            "HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 301 Moved Permanently\r\nLocation: c?d=1\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ])
        .await;
        let response = get_following_redirects(&request(port)).await.unwrap();
        assert_eq!((response.status, response.body.as_str()), (200, "ok"));
    }

    #[test]
    fn paths_are_written_as_go_writes_them() {
        let check = |path: &str, expect: &str| {
            let get = HTTPGetAction {
                port: IntOrString::Int(80),
                path: Some(path.into()),
                ..Default::default()
            };
            let request = HttpGet::new(&get, &Container::default(), "10.0.0.1", "probe").unwrap();
            assert_eq!(request.path, expect);
            assert!(::http::Uri::try_from(request.path).is_ok());
        };
        check("", "/");
        check("healthz?full=true&x=%20", "/healthz?full=true&x=%20");
        check("/not ready", "/not%20ready");
        check("/zust\u{e4}nde", "/zust%C3%A4nde");
        check("/a#b", "/a");
    }

    #[tokio::test]
    async fn redirects_to_others_are_not() {
        let port = serve(vec![
            "HTTP/1.1 302 Found\r\nLocation: http://example.invalid/\r\nContent-Length: 0\r\n\r\n",
        ])
        .await;
        assert_eq!(
            get_following_redirects(&request(port))
                .await
                .unwrap()
                .status,
            302
        );
    }

    #[tokio::test]
    async fn a_closed_port_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = get(&request(port)).await.unwrap_err().to_string();
        assert_eq!(
            error,
            format!("dial tcp 127.0.0.1:{port}: connect: connection refused")
        );
    }
}
