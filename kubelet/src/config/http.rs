//! Static pods of a URL (`staticPodURL`): a pod or a `PodList`, asked for every `httpCheckFrequency`.
//!
//! Owns: the requests, and what the last answer held. An answer that is none leaves the pods of the last good one running; an
//! empty one, as upstream, takes them away. Upstream: `pkg/kubelet/config/http.go`, v1.37.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::static_pod::{ManifestError, Origin, decode_pods};
use super::{PodUpdate, Source, changes};
use crate::pod;

/// Of one question, from the connection to the last byte. Upstream: the client's `Timeout`.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer. Upstream: `maxConfigLength`.
const ANSWER_BYTES_MAX: usize = 10 << 20;
/// So many failures in a row are told; more only to whoever debugs. Upstream: `failureLogs`.
const FAILURES_TOLD: u32 = 3;

/// Why the URL or its headers cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum UrlSourceError {
    #[error("staticPodURL: Invalid value: {url:?}: {reason}")]
    Url { url: String, reason: String },
    #[error(
        "staticPodURLHeader: Invalid value: {0:?}: is no name of a header, or has a value that none can have"
    )]
    Header(String),
    #[error("the client of staticPodURL: {0}")]
    Client(#[source] reqwest::Error),
}

/// Why a question brought no pods; the next may.
#[derive(Debug, thiserror::Error)]
enum PollError {
    #[error(transparent)]
    Request(#[from] reqwest::Error),
    #[error("{url}: {status}")]
    Status {
        url: String,
        status: http::StatusCode,
    },
    #[error("zero-length data received from {0}")]
    Empty(String),
    #[error("{0}: the answer is longer than {ANSWER_BYTES_MAX} bytes")]
    TooLong(String),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// A URL that is asked for pods.
pub struct UrlSource {
    client: reqwest::Client,
    url: String,
    headers: HeaderMap,
    period: Duration,
    node_name: String,
    /// The last answer.
    data: Vec<u8>,
    /// What it, or the last good one, held.
    pods: Vec<Arc<Pod>>,
}

impl UrlSource {
    /// `headers`: sent with each question, their values in their order. `period`: between two questions.
    ///
    /// # Errors
    /// URL or headers are none.
    pub fn new(
        url: &str,
        headers: &BTreeMap<String, Vec<String>>,
        period: Duration,
        node_name: &str,
    ) -> Result<Self, UrlSourceError> {
        let refused = |reason: String| UrlSourceError::Url {
            url: url.to_owned(),
            reason,
        };
        let parsed = reqwest::Url::parse(url).map_err(|e| refused(e.to_string()))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(refused("must be of http or https".to_owned()));
        }
        let mut map = HeaderMap::new();
        for (name, values) in headers {
            for value in values {
                // Neither is told: a value may be secret.
                let bad = || UrlSourceError::Header(name.clone());
                let key = HeaderName::try_from(name.as_str()).map_err(|_| bad())?;
                let mut value = HeaderValue::try_from(value.as_str()).map_err(|_| bad())?;
                value.set_sensitive(true);
                map.append(key, value);
            }
        }
        // Another may be installed already, and is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .timeout(TIMEOUT)
            // Plain HTTP needs no roots; asking for them would fail on a machine that has none.
            .tls_danger_accept_invalid_certs(parsed.scheme() == "http")
            .redirect(same_scheme())
            .build()
            .map_err(UrlSourceError::Client)?;
        Ok(Self {
            client,
            url: url.to_owned(),
            headers: map,
            period,
            node_name: node_name.to_owned(),
            data: vec![],
            pods: vec![],
        })
    }

    /// Asks until `shutdown`.
    pub async fn run(mut self, out: mpsc::Sender<PodUpdate>, shutdown: CancellationToken) {
        let (mut failures, mut ready) = (0_u32, false);
        loop {
            let (updates, outcome) = tokio::select! {
                () = shutdown.cancelled() => return,
                polled = self.poll() => polled,
            };
            let told = updates.is_some();
            for update in updates.into_iter().flatten() {
                if out.send(update).await.is_err() {
                    return;
                }
            }
            if told && !ready {
                ready = true;
                if out.send(PodUpdate::Ready(Source::Http)).await.is_err() {
                    return;
                }
            }
            failures = note(outcome, failures);
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(self.period) => {}
            }
        }
    }

    /// One question: what changed (`None`: nothing is known), and whether it went well.
    async fn poll(&mut self) -> (Option<Vec<PodUpdate>>, Result<(), PollError>) {
        let data = match self.ask().await {
            Ok(data) => data,
            Err(error) => return (None, Err(error)),
        };
        if data.is_empty() {
            let updates = self.replace(vec![]);
            self.data.clear();
            return (Some(updates), Err(PollError::Empty(self.url.clone())));
        }
        if data == self.data {
            return (None, Ok(()));
        }
        let text = String::from_utf8_lossy(&data).into_owned();
        self.data = data;
        match decode_pods(&text, Origin::Url(&self.url), &self.node_name) {
            Ok(pods) => {
                let pods = pods.into_iter().map(Arc::new).collect();
                (Some(self.replace(first_of_each_name(pods))), Ok(()))
            }
            Err(error) => (None, Err(error.into())),
        }
    }

    fn replace(&mut self, pods: Vec<Arc<Pod>>) -> Vec<PodUpdate> {
        let before = std::mem::replace(&mut self.pods, pods);
        changes(before, &self.pods)
    }

    async fn ask(&self) -> Result<Vec<u8>, PollError> {
        let request = self.client.get(&self.url).headers(self.headers.clone());
        let mut answer = request.send().await?;
        if answer.status() != http::StatusCode::OK {
            return Err(PollError::Status {
                url: self.url.clone(),
                status: answer.status(),
            });
        }
        let mut data = vec![];
        while let Some(piece) = answer.chunk().await? {
            if data.len() + piece.len() > ANSWER_BYTES_MAX {
                return Err(PollError::TooLong(self.url.clone()));
            }
            data.extend_from_slice(&piece);
        }
        Ok(data)
    }
}

/// Upstream: `filterInvalidPods`.
fn first_of_each_name(mut pods: Vec<Arc<Pod>>) -> Vec<Arc<Pod>> {
    let mut names = HashSet::new();
    pods.retain(|pod| {
        let name = pod::full_name(pod);
        let is_first = names.insert(name.clone());
        if !is_first {
            tracing::error!(pod = name, "duplicate pod name, ignoring all but the first");
        }
        is_first
    });
    pods
}

/// Ten at most, as Go's client; never from one scheme to another.
// DIFFERS: upstream's follows from https to http, too, and takes whatever pods somebody on the way gives it.
fn same_scheme() -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::custom(|attempt| {
        let same = attempt
            .previous()
            .last()
            .is_some_and(|from| from.scheme() == attempt.url().scheme());
        match (same, attempt.previous().len() >= 10) {
            (false, _) => attempt.error("redirected to another scheme"),
            (true, true) => attempt.error("stopped after 10 redirects"),
            (true, false) => attempt.follow(),
        }
    })
}

/// Tells how a question ended; answers how many failed in a row.
fn note(outcome: Result<(), PollError>, failures: u32) -> u32 {
    let Err(error) = outcome else {
        if failures > 0 {
            tracing::info!("Successfully read pods from URL");
        }
        return 0;
    };
    match failures < FAILURES_TOLD {
        true => tracing::warn!(%error, "Failed to read pods from URL"),
        false => tracing::debug!(%error, "Failed to read pods from URL"),
    }
    failures.saturating_add(1)
}

#[cfg(test)]
mod tests;
