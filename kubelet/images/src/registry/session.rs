//! One pull's talk with the hosts that may have the image: names, documents, blobs.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Method, StatusCode};
use reqwest::{Response, Url};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::body::{self, BodyError};
use super::error::{RegistryError, chain, error_text, shown, unavailable};
use super::{Endpoint, MAX_DOCUMENT_BYTES, auth};
use crate::digest::{self, Hasher};
use crate::image::Auth;
use crate::manifest::{self, Descriptor};
use crate::reference::Reference;

/// Tries of one blob at one host that brought nothing new.
const BLOB_ATTEMPTS: u32 = 5;
const RETRY_BASE: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What a name leads to.
pub(crate) struct Resolved {
    pub(crate) digest: String,
    /// The document, if it came along already.
    pub(crate) body: Option<Bytes>,
}

/// One image's hosts and one credential. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Session {
    inner: Arc<SessionInner>,
}

struct SessionInner {
    reference: Reference,
    auth: Auth,
    endpoints: Vec<Endpoint>,
}

impl Session {
    pub(super) fn new(reference: Reference, auth: Auth, endpoints: Vec<Endpoint>) -> Self {
        Self {
            inner: Arc::new(SessionInner {
                reference,
                auth,
                endpoints,
            }),
        }
    }

    /// Which digest the session's name has now, by the word of a registry that knows this credential. A digest is asked
    /// for too: that its content is here says nothing about who may have it.
    pub(crate) async fn resolve(&self) -> Result<Resolved, RegistryError> {
        let object = self.inner.reference.object();
        // As containerd: who may serve content may be asked whether it has a digest.
        let by_digest = self.inner.reference.digest().is_some();
        let mut tries = Tries::new(&self.inner, if by_digest { "pull" } else { "resolve" });
        for endpoint in self
            .inner
            .endpoints
            .iter()
            .filter(|endpoint| match by_digest {
                true => endpoint.host.pull,
                false => endpoint.host.resolve,
            })
        {
            match self.resolve_at(endpoint, object).await {
                Ok(resolved) => return Ok(resolved),
                Err(error) => tries.failed(endpoint, error)?,
            }
        }
        Err(tries.last)
    }

    async fn resolve_at(
        &self,
        endpoint: &Endpoint,
        object: &str,
    ) -> Result<Resolved, RegistryError> {
        let url = self.url(endpoint, "manifests", object);
        match self
            .send(endpoint, Method::HEAD, &url, &[(ACCEPT, manifest::ACCEPT)])
            .await
        {
            Ok(response) => {
                let wanted = self.inner.reference.digest();
                let named = response
                    .headers()
                    .get("docker-content-digest")
                    .and_then(|value| value.to_str().ok())
                    .filter(|digest| crate::reference::validate_digest(digest).is_ok());
                if let Some(digest) = named.filter(|digest| wanted.is_none_or(|w| w == *digest)) {
                    return Ok(Resolved {
                        digest: digest.to_owned(),
                        body: None,
                    });
                }
            }
            Err(error @ (RegistryError::Unavailable { .. } | RegistryError::NotFound { .. })) => {
                return Err(error);
            }
            // Some registries answer HEAD with an odd status; GET tells more.
            Err(_) => {}
        }
        let body = self
            .document(endpoint, "manifests", object, MAX_DOCUMENT_BYTES)
            .await?;
        let digest = match self.inner.reference.digest() {
            Some(wanted) if digest::matches(&body, wanted) => wanted.to_owned(),
            Some(wanted) => {
                return Err(RegistryError::Content {
                    what: format!("manifests {wanted}"),
                    reason: format!("came with digest {}", digest::sha256(&body)),
                });
            }
            None => digest::sha256(&body),
        };
        Ok(Resolved {
            digest,
            body: Some(body),
        })
    }

    /// The manifest or index of this digest.
    pub(crate) async fn manifest(&self, digest: &str) -> Result<Bytes, RegistryError> {
        self.small("manifests", digest, MAX_DOCUMENT_BYTES).await
    }

    /// A small blob, such as an image's config.
    pub(crate) async fn config(&self, descriptor: &Descriptor) -> Result<Bytes, RegistryError> {
        if descriptor.size > MAX_DOCUMENT_BYTES {
            return Err(RegistryError::Content {
                what: format!("config {}", descriptor.digest),
                reason: format!(
                    "{} bytes are more than {MAX_DOCUMENT_BYTES}",
                    descriptor.size
                ),
            });
        }
        self.small("blobs", &descriptor.digest, descriptor.size)
            .await
    }

    async fn small(&self, kind: &str, digest: &str, max: u64) -> Result<Bytes, RegistryError> {
        let mut tries = Tries::new(&self.inner, "pull");
        for endpoint in self
            .inner
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.host.pull)
        {
            match self.document(endpoint, kind, digest, max).await {
                Ok(body) if digest::matches(&body, digest) => return Ok(body),
                Ok(body) => tries.failed(
                    endpoint,
                    RegistryError::Content {
                        what: format!("{kind} {digest}"),
                        reason: format!("came with digest {}", digest::sha256(&body)),
                    },
                )?,
                Err(error) => tries.failed(endpoint, error)?,
            }
        }
        Err(tries.last)
    }

    /// Fetches a layer into `path`, going on where an earlier try stopped. The file is whole and verified on success.
    pub(crate) async fn blob(&self, layer: &Descriptor, path: &Path) -> Result<(), RegistryError> {
        let mut tries = Tries::new(&self.inner, "pull");
        for endpoint in self
            .inner
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.host.pull)
        {
            match self.blob_at(endpoint, layer, path).await {
                Ok(()) => return Ok(()),
                Err(error) => tries.failed(endpoint, error)?,
            }
        }
        Err(tries.last)
    }

    async fn blob_at(
        &self,
        endpoint: &Endpoint,
        layer: &Descriptor,
        path: &Path,
    ) -> Result<(), RegistryError> {
        let mut attempt = 0;
        loop {
            let before = file_size(path).await;
            let error = match self.blob_once(endpoint, layer, path).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if !matches!(error, RegistryError::Unavailable { .. }) {
                return Err(error);
            }
            attempt = if file_size(path).await > before {
                1
            } else {
                attempt + 1
            };
            if attempt >= BLOB_ATTEMPTS {
                return Err(error);
            }
            tracing::debug!(digest = layer.digest, %error, "layer download interrupted, going on");
            tokio::time::sleep((RETRY_BASE * 2u32.pow(attempt)).min(RETRY_MAX)).await;
        }
    }

    async fn blob_once(
        &self,
        endpoint: &Endpoint,
        layer: &Descriptor,
        path: &Path,
    ) -> Result<(), RegistryError> {
        let disk = |error: std::io::Error| RegistryError::Disk {
            path: path.display().to_string(),
            reason: error.to_string(),
        };
        let mut hasher = Hasher::of(&layer.digest).ok_or_else(|| RegistryError::Content {
            what: format!("layer {}", layer.digest),
            reason: "unsupported digest algorithm".to_owned(),
        })?;
        let mut file = tokio::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .await
            .map_err(disk)?;
        let mut have = 0u64;
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let count = file.read(&mut buffer).await.map_err(disk)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            have += count as u64;
        }
        if have > layer.size {
            hasher = restart(&mut file, &layer.digest).await.map_err(disk)?;
            have = 0;
        }
        if have < layer.size {
            room_for(path, layer.size - have).await.map_err(disk)?;
            let url = self.url(endpoint, "blobs", &layer.digest);
            let response = self.rest_of(endpoint, &url, have).await?;
            if have > 0 {
                let continues = response.status() == StatusCode::PARTIAL_CONTENT
                    && response
                        .headers()
                        .get(CONTENT_RANGE)
                        .and_then(|value| value.to_str().ok())
                        .is_some_and(|value| value.starts_with(&format!("bytes {have}-")));
                if !continues {
                    hasher = restart(&mut file, &layer.digest).await.map_err(disk)?;
                    have = 0;
                }
            }
            let mut stream = response.bytes_stream();
            while let Some(chunk) = stream.next().await {
                let chunk = match chunk {
                    Ok(chunk) => chunk,
                    Err(error) => {
                        file.flush().await.map_err(disk)?;
                        return Err(unavailable(&url, error));
                    }
                };
                have += chunk.len() as u64;
                if have > layer.size {
                    break;
                }
                hasher.update(&chunk);
                file.write_all(&chunk).await.map_err(disk)?;
            }
            file.flush().await.map_err(disk)?;
            if have < layer.size {
                return Err(RegistryError::Unavailable {
                    url: shown(&url),
                    reason: format!("ended after {have} of {} bytes", layer.size),
                });
            }
        }
        let found = hasher.finish();
        if have != layer.size || found != layer.digest {
            drop(file);
            let _ = tokio::fs::remove_file(path).await;
            return Err(RegistryError::Content {
                what: format!("layer {} of {} bytes", layer.digest, layer.size),
                reason: if have > layer.size {
                    "more bytes came".to_owned()
                } else {
                    format!("came with digest {found}")
                },
            });
        }
        Ok(())
    }

    /// What comes after the first `have` bytes, or all of it where the registry says so.
    async fn rest_of(
        &self,
        endpoint: &Endpoint,
        url: &Url,
        have: u64,
    ) -> Result<Response, RegistryError> {
        if have > 0 {
            let range = format!("bytes={have}-");
            let headers = [(RANGE, range.as_str())];
            match self.send(endpoint, Method::GET, url, &headers).await {
                // It knows no such range, or no ranges of this form.
                Err(RegistryError::Status { status, .. }) => {
                    tracing::debug!(url = shown(url), %status, "layer download begins anew");
                }
                answer => return answer,
            }
        }
        self.send(endpoint, Method::GET, url, &[]).await
    }

    fn url(&self, endpoint: &Endpoint, kind: &str, object: &str) -> Url {
        let mut url = endpoint.host.base.clone();
        let path = format!(
            "{}/{}/{kind}/{object}",
            url.path().trim_end_matches('/'),
            self.inner.reference.path()
        );
        url.set_path(&path);
        if endpoint.host.proxy {
            url.query_pairs_mut()
                .append_pair("ns", self.inner.reference.domain());
        }
        url
    }

    async fn document(
        &self,
        endpoint: &Endpoint,
        kind: &str,
        object: &str,
        max: u64,
    ) -> Result<Bytes, RegistryError> {
        let url = self.url(endpoint, kind, object);
        let accept = if kind == "manifests" {
            manifest::ACCEPT
        } else {
            "*/*"
        };
        let response = self
            .send(endpoint, Method::GET, &url, &[(ACCEPT, accept)])
            .await?;
        body::read(response, max)
            .await
            .map_err(|error| match error {
                BodyError::TooLarge { .. } => RegistryError::Content {
                    what: format!("{kind} {object}"),
                    reason: error.to_string(),
                },
                BodyError::Broken(reason) => RegistryError::Unavailable {
                    url: shown(&url),
                    reason,
                },
            })
    }

    /// One request, answering a challenge once. A response that comes back is a success.
    async fn send(
        &self,
        endpoint: &Endpoint,
        method: Method,
        url: &Url,
        headers: &[(http::HeaderName, &str)],
    ) -> Result<Response, RegistryError> {
        let mut challenged = false;
        loop {
            let mut url = url.clone();
            if endpoint.plain.load(Ordering::Relaxed) {
                // Cannot fail from https to http.
                let _ = url.set_scheme("http");
            }
            let url = &url;
            let known = endpoint
                .authorization
                .lock()
                .expect("no holder panics")
                .clone();
            let mut request = endpoint
                .client
                .request(method.clone(), url.clone())
                .headers(endpoint.host.headers.clone());
            for (name, value) in headers {
                request = request.header(name, *value);
            }
            if let Some(value) = known {
                request = request.header(AUTHORIZATION, value);
            }
            let response = match request.send().await {
                Ok(response) => response,
                Err(error) if endpoint.falls_back(url, &error) => {
                    tracing::info!(
                        url = shown(url),
                        error = chain(error),
                        "the registry does not speak TLS, asking by plain HTTP"
                    );
                    endpoint.plain.store(true, Ordering::Relaxed);
                    continue;
                }
                Err(error) => return Err(unavailable(url, error)),
            };
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && !challenged {
                challenged = true;
                let challenges: Vec<String> = response
                    .headers()
                    .get_all(WWW_AUTHENTICATE)
                    .iter()
                    .filter_map(|value| value.to_str().ok().map(str::to_owned))
                    .collect();
                drop(response);
                // Credentials for the registry go to a mirror only where nobody can listen.
                let trusted = endpoint.host.origin || url.scheme() == "https";
                let anonymous = Auth::default();
                let auth = if trusted {
                    &self.inner.auth
                } else {
                    &anonymous
                };
                if let Some(value) =
                    auth::answer(&endpoint.client, &challenges, auth, &self.inner.reference).await?
                {
                    *endpoint.authorization.lock().expect("no holder panics") = Some(value);
                    continue;
                }
                return Err(RegistryError::Denied {
                    message: "authorization failed: no basic auth credentials".to_owned(),
                });
            }
            return Err(self.refusal(&method, url, response).await);
        }
    }

    async fn refusal(&self, method: &Method, url: &Url, response: Response) -> RegistryError {
        let status = response.status();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok().map(str::to_owned));
        let text = error_text(response).await;
        match status {
            StatusCode::NOT_FOUND => RegistryError::NotFound {
                name: self.inner.reference.to_string(),
            },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Denied {
                message: format!("server message: {status}{text}"),
            },
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                RegistryError::Unavailable {
                    url: shown(url),
                    reason: match retry_after {
                        Some(after) => format!("{status}{text} (retry after {after})"),
                        None => format!("{status}{text}"),
                    },
                }
            }
            status if status.is_server_error() => RegistryError::Unavailable {
                url: shown(url),
                reason: format!("{status}{text}"),
            },
            status => RegistryError::Status {
                method: method.clone(),
                url: shown(url),
                status,
                message: text,
            },
        }
    }
}

/// What the hosts asked so far said. The last refusal is told: it is the registry's own.
struct Tries {
    last: RegistryError,
}

impl Tries {
    fn new(session: &SessionInner, capability: &'static str) -> Self {
        let registry = session.reference.domain().to_owned();
        Self {
            last: RegistryError::NoHost {
                registry,
                capability,
            },
        }
    }

    /// Notes a failure; one of our own disk ends the search.
    fn failed(&mut self, endpoint: &Endpoint, error: RegistryError) -> Result<(), RegistryError> {
        if matches!(error, RegistryError::Disk { .. }) {
            return Err(error);
        }
        tracing::debug!(host = %endpoint.host.base, %error, "registry host did not serve");
        self.last = error;
        Ok(())
    }
}

async fn file_size(path: &Path) -> u64 {
    tokio::fs::metadata(path).await.map_or(0, |meta| meta.len())
}

/// A layer that the disk cannot hold is not begun.
async fn room_for(path: &Path, bytes: u64) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(path).to_owned();
    let stat = crate::blocking::blocking(move || rustix::fs::statvfs(&directory)).await?;
    let room = stat.f_bavail.saturating_mul(stat.f_frsize);
    if bytes > room {
        return Err(std::io::Error::new(
            std::io::ErrorKind::StorageFull,
            format!("{bytes} bytes are to come, {room} are free"),
        ));
    }
    Ok(())
}

async fn restart(file: &mut tokio::fs::File, digest: &str) -> std::io::Result<Hasher> {
    use tokio::io::AsyncSeekExt as _;
    file.set_len(0).await?;
    file.rewind().await?;
    Ok(Hasher::of(digest).expect("the algorithm was known before"))
}
