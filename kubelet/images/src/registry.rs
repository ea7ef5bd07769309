//! The distribution API: resolving names and fetching what they lead to, from whichever host has it.
//!
//! Owns connections, credentials of one pull, and the order in which hosts are asked. Everything that comes is
//! checked against its digest before anybody sees it.
//!
//! Upstream: containerd v2 `core/remotes/docker`, distribution-spec v1.1.

mod auth;
mod body;
mod error;
mod session;

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use http::HeaderValue;
use reqwest::Client;

pub(crate) use error::RegistryError;
pub(crate) use session::Session;

use crate::image::Auth;
use crate::mirrors::{self, Host, Tls};
use crate::reference::Reference;
use error::chain;

/// Manifests and configs larger than this are refused. Upstream: distribution-spec asks registries to take 4 MiB. Read
/// as JSON it takes a few tens of times that in the worst case.
pub(crate) const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// A connection that brings nothing for this long is given up.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// What all pulls share.
pub(crate) struct Registry {
    config_dir: std::path::PathBuf,
    user_agent: String,
    plain: OnceLock<Client>,
}

impl Registry {
    pub(crate) fn new(config_dir: std::path::PathBuf, user_agent: String) -> Self {
        // Without a process-wide provider rustls panics; another part of the program may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            config_dir,
            user_agent,
            plain: OnceLock::new(),
        }
    }

    /// The hosts for one image, with one credential.
    pub(crate) async fn session(
        &self,
        reference: &Reference,
        auth: &Auth,
    ) -> Result<Session, RegistryError> {
        let dir = self.config_dir.clone();
        let domain = reference.domain().to_owned();
        let hosts = tokio::task::spawn_blocking(move || mirrors::hosts(&dir, &domain))
            .await
            .map_err(|error| RegistryError::Config(error.to_string()))??;
        let mut endpoints = Vec::with_capacity(hosts.len());
        for host in hosts {
            endpoints.push(Endpoint {
                client: self.client(&host)?,
                authorization: Mutex::new(None),
                plain: AtomicBool::new(false),
                host,
            });
        }
        Ok(Session::new(reference.clone(), auth.clone(), endpoints))
    }

    fn client(&self, host: &Host) -> Result<Client, RegistryError> {
        if host.tls == Tls::default()
            && host.base.scheme() == "https"
            && host.dial_timeout == mirrors::DIAL_TIMEOUT
        {
            if let Some(client) = self.plain.get() {
                return Ok(client.clone());
            }
            let client = build_client(host, &self.user_agent)?;
            return Ok(self.plain.get_or_init(|| client).clone());
        }
        build_client(host, &self.user_agent)
    }
}

fn build_client(host: &Host, user_agent: &str) -> Result<Client, RegistryError> {
    let config = |path: &Path, reason: &dyn std::fmt::Display| {
        RegistryError::Config(format!("{}: {reason}", path.display()))
    };
    let mut roots = Vec::new();
    for path in &host.tls.ca {
        let pem = std::fs::read(path).map_err(|e| config(path, &e))?;
        roots.extend(reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| config(path, &e))?);
    }
    let mut identity = None;
    if let Some((cert, key)) = host.tls.client.first() {
        let mut pem = std::fs::read(cert).map_err(|e| config(cert, &e))?;
        if key != cert {
            pem.push(b'\n');
            pem.extend(std::fs::read(key).map_err(|e| config(key, &e))?);
        }
        identity = Some(reqwest::Identity::from_pem(&pem).map_err(|e| config(cert, &e))?);
    }
    // Plain HTTP needs no roots; asking for them would fail on a machine that has none.
    let unchecked = host.tls.skip_verify || host.base.scheme() == "http";
    let builder = |only: bool| {
        let mut builder = Client::builder()
            .user_agent(user_agent)
            .connect_timeout(host.dial_timeout)
            .read_timeout(READ_TIMEOUT)
            .tls_danger_accept_invalid_certs(unchecked);
        if let Some(identity) = identity.clone() {
            builder = builder.identity(identity);
        }
        if !roots.is_empty() {
            builder = if only {
                builder.tls_certs_only(roots.clone())
            } else {
                builder.tls_certs_merge(roots.clone())
            };
        }
        builder.build()
    };
    match builder(false) {
        Err(_) if !roots.is_empty() => builder(true),
        other => other,
    }
    .map_err(|error| RegistryError::Config(chain(error)))
}

struct Endpoint {
    host: Host,
    client: Client,
    /// What this host's last challenge led to.
    authorization: Mutex<Option<HeaderValue>>,
    /// It turned out to know no TLS.
    plain: AtomicBool,
}

impl Endpoint {
    /// Whether the request is to be tried again by plain HTTP. Upstream: `httpFallback`, `isTLSError`, `isPortError`.
    fn falls_back(&self, url: &reqwest::Url, error: &reqwest::Error) -> bool {
        self.host.plain_fallback && url.scheme() == "https" && speaks_no_tls(error)
    }
}

/// Whether what came was no TLS record.
fn speaks_no_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return matches!(error, rustls::Error::InvalidMessage(_));
    }
    // An I/O error names what it wraps not as its source.
    if let Some(inner) = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref)
        && speaks_no_tls(inner)
    {
        return true;
    }
    error.source().is_some_and(speaks_no_tls)
}
