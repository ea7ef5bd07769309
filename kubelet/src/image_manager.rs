//! Makes sure that an image is there before a container is made of it.
//!
//! Owns: pull policies, back-off, how many pulls run at once, who may use what is here already, and the events about all
//! that. The bytes are the runtime's. Upstream: `pkg/kubelet/images/image_manager.go`, v1.36.
//!
//! ```text
//! on the node? ── no ──────────────────────> pull (policy Never: ErrImageNeverPull)
//!      └─ yes ─> records: may this pod? ─ no ─┘
//!                     └─ yes ─> use it
//! ```

pub mod credential_provider;
pub mod credentials;
pub mod pull_manager;
pub mod pull_record;
pub mod verification;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use component_base::client::TokenBucket;
use component_base::clock::Clock;
use images::Reference;
use k8s_openapi::api::core::v1::{Pod, Secret};
use runtime::api::{ImageError, ImageStatus, Runtime, RuntimeError};
use tokio::sync::{OnceCell, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::configuration::KubeletConfiguration;
use crate::events::{KubeletRecorder, Type, reason};
use crate::off_thread::spawn_blocking;
use crate::{metrics, pod};
use credential_provider::CredentialProviders;
use credentials::{CredentialSource, Keyring, TrackedAuth};
use pull_manager::{PodCredentials, PullManager};
use pull_record::ImagePullCredentials;

/// Why a container waits: its image was asked for and could not be had.
pub const ERR_IMAGE_PULL: &str = "ErrImagePull";
/// Upstream: `imageBackOffPeriod`, `MaxImageBackOff`.
const INITIAL_BACKOFF: Duration = Duration::from_secs(10);
const MAX_BACKOFF: Duration = Duration::from_secs(300);

/// Why there is no image: the waiting reason of the container and its message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct ImageFailure {
    pub reason: &'static str,
    pub message: String,
    /// When a retry makes sense; `None`: as for any failure.
    pub retry_after: Option<Duration>,
}

/// Shared by the workers.
pub struct ImageManager {
    runtime: Arc<dyn Runtime>,
    recorder: KubeletRecorder,
    keyring: Arc<Keyring>,
    providers: CredentialProviders,
    backoff: Backoff,
    /// Why the last pull failed, by back-off key.
    previous_error: Mutex<HashMap<String, String>>,
    parallel: Option<Semaphore>,
    rate: Option<TokenBucket>,
    /// `None`: the gate KubeletEnsureSecretPulledImages is off, and what is here is everybody's.
    pulls: Option<Arc<PullManager>>,
    clock: Clock,
}

/// What happens to a request for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// It is here, and the pod may use it.
    Use,
    Pull,
    /// `ErrImageNeverPull`: it is not here, or not for this pod; which of both is not told.
    Refuse,
}

/// `present`: the image is on the node; `accessible`: this pod may use it as it is, asked only if it matters.
fn next(policy: &str, present: bool, accessible: impl FnOnce() -> bool) -> Next {
    match (policy, present) {
        ("Always", _) => Next::Pull,
        (_, true) if accessible() => Next::Use,
        ("Never", _) => Next::Refuse,
        _ => Next::Pull,
    }
}

/// Upstream: `trackedToImagePullCreds`.
fn to_pull_credentials(used: Option<&TrackedAuth>) -> ImagePullCredentials {
    let mut credentials = ImagePullCredentials::default();
    match used.map(|tracked| tracked.source.clone()) {
        None | Some(CredentialSource::Node) => credentials.node_pods_accessible = true,
        Some(CredentialSource::Secret(secret)) => credentials.kubernetes_secrets = vec![secret],
        Some(CredentialSource::ServiceAccount(account)) => {
            credentials.kubernetes_service_accounts = vec![account];
        }
    }
    credentials
}

/// What the pod can show of its own. Upstream: `getPodCredentials`.
fn to_pod_credentials(found: &[TrackedAuth]) -> PodCredentials {
    let mut credentials = PodCredentials::default();
    for tracked in found {
        match &tracked.source {
            CredentialSource::Node => {}
            CredentialSource::Secret(secret) => credentials.secrets.push(secret.clone()),
            // A pod has one account, whatever the audiences of its tokens.
            CredentialSource::ServiceAccount(account) => {
                credentials
                    .service_account
                    .get_or_insert_with(|| account.clone());
            }
        }
    }
    credentials
}

/// What may open the image for the pod: looked up when it is first asked for, and once for a request.
struct PodKeyring<'a> {
    manager: &'a ImageManager,
    pod: &'a Pod,
    image: &'a str,
    secrets: &'a [Arc<Secret>],
    found: OnceCell<Vec<TrackedAuth>>,
}

impl PodKeyring<'_> {
    /// The pod's secrets first, then the node's files, then the plugins'.
    async fn get(&self) -> &[TrackedAuth] {
        let look_up = || async {
            let (keyring, secrets) = (self.manager.keyring.clone(), self.secrets.to_vec());
            let image = self.image.to_owned();
            let known = spawn_blocking(move || keyring.lookup(&image, &secrets));
            let mut found = known.await.unwrap_or_default();
            let plugins = &self.manager.providers;
            found.extend(plugins.lookup(self.image, self.pod).await);
            found
        };
        self.found.get_or_init(look_up).await
    }
}

fn cancelled() -> ImageFailure {
    failure(ERR_IMAGE_PULL, "pod is being terminated".to_owned())
}

fn failure(reason: &'static str, message: String) -> ImageFailure {
    ImageFailure {
        reason,
        message,
        retry_after: None,
    }
}

/// `image` with a tag: `latest` unless it has a tag or digest.
///
/// # Errors
/// When it is no image name.
pub fn apply_default_image_tag(image: &str) -> Result<String, String> {
    Reference::parse(image).map_err(|e| e.to_string())?;
    // The host may have a port; a tag stands in the last part.
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains([':', '@']) {
        return Ok(image.to_owned());
    }
    Ok(format!("{image}:latest"))
}

impl ImageManager {
    pub fn new(
        runtime: Arc<dyn Runtime>,
        recorder: KubeletRecorder,
        keyring: Arc<Keyring>,
        providers: CredentialProviders,
        pulls: Option<Arc<PullManager>>,
        config: &KubeletConfiguration,
        clock: Clock,
    ) -> Self {
        let qps = config.registry_pull_qps;
        Self {
            runtime,
            recorder,
            keyring,
            providers,
            backoff: Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF),
            previous_error: Mutex::default(),
            parallel: config.parallel_image_pulls().map(Semaphore::new),
            rate: (qps > 0).then(|| {
                TokenBucket::new(
                    f64::from(qps),
                    u32::try_from(config.registry_burst).unwrap_or(1),
                )
            }),
            pulls,
            clock,
        }
    }

    /// The image, pulled if the policy asks for it. `container`: whose events these are.
    ///
    /// # Errors
    /// The waiting reason and message; all are tried again by the worker.
    pub async fn ensure_image_exists(
        &self,
        pod: &Pod,
        container: &str,
        requested: &str,
        policy: Option<&str>,
        secrets: &[Arc<Secret>],
        cancel: &CancellationToken,
    ) -> Result<ImageStatus, ImageFailure> {
        let event = |kind: Type, reason: &str, message: String| {
            self.recorder
                .container(pod, container, kind, reason, message);
        };
        let image = apply_default_image_tag(requested).map_err(|e| {
            let message = format!(
                "Failed to apply default image tag {requested:?}: couldn't parse image name {requested:?}: {e}"
            );
            event(Type::Warning, reason::INSPECT_FAILED, message.clone());
            failure("InvalidImageName", message)
        })?;
        let policy = policy.unwrap_or(if image.ends_with(":latest") {
            "Always"
        } else {
            "IfNotPresent"
        });
        let count = |present: &str, pull: &str| {
            metrics::ENSURE_IMAGE_REQUESTS
                .with_label_values(&[policy.to_lowercase().as_str(), present, pull])
                .inc();
        };
        let found = match policy {
            "Always" => None,
            _ => self.runtime.image_status(&image).await.map_err(|e| {
                let message = format!("Failed to inspect image {requested:?}: {e}");
                event(Type::Warning, reason::INSPECT_FAILED, message.clone());
                count("unknown", "unknown");
                failure("ImageInspectError", message)
            })?,
        };
        let keyring = PodKeyring {
            manager: self,
            pod,
            image: &image,
            secrets,
            found: OnceCell::new(),
        };
        let accessible = match &found {
            // A plugin may take its time, and a pod that is deleted does not wait for it.
            Some(found) => tokio::select! {
                () = cancel.cancelled() => return Err(cancelled()),
                accessible = self.accessible(requested, found, &keyring) => accessible,
            },
            None => false,
        };
        let present = match (policy, &found) {
            ("Always", _) => "unknown",
            (_, found) => bool_label(found.is_some()),
        };
        match next(policy, found.is_some(), || accessible) {
            Next::Use => {
                count(present, "false");
                let suffix = match self.pulls {
                    Some(_) => " and can be accessed by the pod",
                    None => "",
                };
                event(
                    Type::Normal,
                    reason::PULLED,
                    format!("Container image {requested:?} already present on machine{suffix}"),
                );
                return found.ok_or_else(|| failure("ImageInspectError", String::new()));
            }
            Next::Refuse => {
                count(present, if found.is_some() { "true" } else { "unknown" });
                let message = format!(
                    "Container image {requested:?} is not present with pull policy of Never"
                );
                event(Type::Warning, reason::ERR_IMAGE_NEVER_PULL, message.clone());
                return Err(failure("ErrImageNeverPull", message));
            }
            Next::Pull => count(present, "true"),
        }
        self.pull_image(pod, requested, &keyring, cancel, &event)
            .await
    }

    /// Whether the pod may use what is here, by the records and its credentials.
    async fn accessible(
        &self,
        requested: &str,
        found: &ImageStatus,
        keyring: &PodKeyring<'_>,
    ) -> bool {
        let Some(pulls) = self.pulls.clone() else {
            return true;
        };
        let (name, status) = (requested.to_owned(), found.clone());
        let records = pulls.clone();
        let asks = spawn_blocking(move || records.asks_for_credentials(&name, &status));
        let credentials = match asks.await {
            Ok(true) => to_pod_credentials(keyring.get().await),
            Ok(false) => PodCredentials::default(),
            Err(_) => return false,
        };
        let (name, status) = (requested.to_owned(), found.clone());
        let asked = spawn_blocking(move || {
            // Records that were written meanwhile may ask for what was not looked up: then the registry decides.
            !pulls.must_attempt_pull(&name, &status, || credentials)
        });
        // A panic in there must not open the image.
        asked.await.unwrap_or(false)
    }

    /// With each credential in turn, or anonymously if there is none. Answers the one that opened it.
    async fn pull_with_each(
        &self,
        image: &str,
        credentials: &[TrackedAuth],
    ) -> Result<(String, Option<TrackedAuth>), PullFailure> {
        if credentials.is_empty() {
            let id = self.runtime.pull_image(image, &[]).await?;
            return Ok((id, None));
        }
        let mut failure: Option<PullFailure> = None;
        for tracked in credentials {
            let auth = std::slice::from_ref(&tracked.auth);
            match self.runtime.pull_image(image, auth).await {
                Ok(id) => return Ok((id, Some(tracked.clone()))),
                Err(error) => match &mut failure {
                    Some(failure) => failure.add(&error),
                    None => failure = Some(error.into()),
                },
            }
        }
        Err(failure.expect("there was a credential, and it failed"))
    }

    /// Notes in the records what became of a pull.
    async fn note(&self, note: impl FnOnce(&PullManager) + Send + 'static) {
        if let Some(pulls) = self.pulls.clone()
            && let Err(error) = spawn_blocking(move || note(&pulls)).await
        {
            tracing::error!(%error, "failed to note an image pull");
        }
    }

    /// Notes that a pull begins, before anything of it can come.
    async fn begin(&self, requested: &str, image: &str) -> Result<(), String> {
        let Some(pulls) = self.pulls.clone() else {
            return Ok(());
        };
        let present = self.runtime.image_status(image).await;
        let present = present.map_err(|e| e.to_string())?.map(|found| found.id);
        let name = requested.to_owned();
        spawn_blocking(move || pulls.begin(&name, present.as_deref()))
            .await
            .map_err(|e| e.to_string())?
            .map_err(|e| e.to_string())
    }

    fn check_back_off(
        &self,
        key: &str,
        requested: &str,
        event: &(dyn Fn(Type, &str, String) + Sync),
    ) -> Result<(), ImageFailure> {
        let Some(wait) = self.backoff.remaining_since_update(key, self.clock.now()) else {
            return Ok(());
        };
        let mut message = format!("Back-off pulling image {requested:?}");
        event(Type::Normal, reason::BACK_OFF, message.clone());
        if let Some(previous) = self.errors().get(key) {
            message = format!("{message}: {previous}");
        }
        Err(ImageFailure {
            reason: "ImagePullBackOff",
            message,
            retry_after: Some(wait),
        })
    }

    async fn pull_image(
        &self,
        pod: &Pod,
        requested: &str,
        keyring: &PodKeyring<'_>,
        cancel: &CancellationToken,
        event: &(dyn Fn(Type, &str, String) + Sync),
    ) -> Result<ImageStatus, ImageFailure> {
        let image = keyring.image;
        let key = format!("{}_{requested}", pod::uid(pod));
        self.check_back_off(&key, requested, event)?;
        self.errors().remove(&key);
        event(
            Type::Normal,
            reason::PULLING,
            format!("Pulling image {requested:?}"),
        );
        self.begin(requested, image).await.map_err(|error| {
            let message = format!(
                "Failed to record image pull intent for container image {requested:?}: {error}"
            );
            event(Type::Warning, reason::FAILED, message.clone());
            failure(ERR_IMAGE_PULL, message)
        })?;
        let begin = self.clock.monotonic();

        let pull = async {
            // Before its turn: a plugin that takes its time keeps no other pull waiting.
            let credentials = keyring.get().await;
            if let Some(rate) = &self.rate {
                rate.acquire().await;
            }
            // Closed never: the semaphore lives as long as the manager.
            let _permit = match &self.parallel {
                Some(semaphore) => semaphore.acquire().await.ok(),
                None => None,
            };
            let begin = self.clock.monotonic();
            let (id, used) = self.pull_with_each(image, credentials).await?;
            Ok::<_, PullFailure>((id, used, self.clock.monotonic() - begin))
        };
        let outcome = tokio::select! {
            () = cancel.cancelled() => {
                let name = requested.to_owned();
                self.note(move |pulls| pulls.abandoned(&name)).await;
                return Err(cancelled());
            }
            outcome = pull => outcome,
        };
        let total = self.clock.monotonic() - begin;
        let name = requested.to_owned();
        match outcome {
            Ok((id, used, took)) => {
                let (credentials, noted) = (to_pull_credentials(used.as_ref()), id.clone());
                self.note(move |pulls| pulls.pulled(&name, &noted, &credentials))
                    .await;
                let status = self.runtime.image_status(&id).await.ok().flatten();
                let status = status.unwrap_or(ImageStatus {
                    id,
                    ..ImageStatus::default()
                });
                event(
                    Type::Normal,
                    reason::PULLED,
                    format!(
                        "Successfully pulled image {requested:?} in {} ({} including waiting). Image size: {} bytes.",
                        millis(took),
                        millis(total),
                        status.size_bytes
                    ),
                );
                metrics::observe_image_pull(status.size_bytes, total);
                self.backoff.gc(self.clock.now());
                Ok(status)
            }
            Err(error) => {
                self.note(move |pulls| pulls.failed(&name)).await;
                event(
                    Type::Warning,
                    reason::FAILED,
                    format!("Failed to pull image {requested:?}: {error}"),
                );
                let now = self.clock.now();
                self.backoff.next(&key, now, now);
                let mut failed = eval_pull_error(image, &error);
                failed.retry_after = Some(self.backoff.get(&key));
                self.errors()
                    .insert(key, format!("{}: {}", failed.reason, failed.message));
                Err(failed)
            }
        }
    }

    fn errors(&self) -> std::sync::MutexGuard<'_, HashMap<String, String>> {
        self.previous_error
            .lock()
            .unwrap_or_else(|e| e.into_inner())
    }

    /// The pod is gone: its back-off, too.
    pub fn forget_pod(&self, pod_uid: &str) {
        let prefix = format!("{pod_uid}_");
        self.errors().retain(|key, _| !key.starts_with(&prefix));
        self.backoff.forget_prefix(&prefix);
    }
}

fn millis(d: Duration) -> String {
    let ms = u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    component_base::duration::format(Duration::from_millis(ms))
}

fn bool_label(on: bool) -> &'static str {
    if on { "true" } else { "false" }
}

/// What every credential failed with, the first as an error and all as text.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.text())]
struct PullFailure {
    #[source]
    first: RuntimeError,
    messages: Vec<String>,
}

impl From<RuntimeError> for PullFailure {
    fn from(first: RuntimeError) -> Self {
        let messages = vec![first.to_string()];
        Self { first, messages }
    }
}

impl PullFailure {
    fn add(&mut self, error: &RuntimeError) {
        let message = error.to_string();
        if !self.messages.contains(&message) {
            self.messages.push(message);
        }
    }

    /// As upstream's aggregate: one error is itself, several stand in brackets.
    fn text(&self) -> String {
        match self.messages.as_slice() {
            [one] => one.clone(),
            all => format!("[{}]", all.join(", ")),
        }
    }
}

fn eval_pull_error(image: &str, error: &PullFailure) -> ImageFailure {
    match &error.first {
        RuntimeError::Image(ImageError::RegistryUnavailable { .. }) => failure(
            "RegistryUnavailable",
            format!("image pull failed for {image} because the registry is unavailable: {error}"),
        ),
        RuntimeError::Image(ImageError::Verification { .. }) => failure(
            "SignatureValidationFailed",
            format!(
                "image pull failed for {image} because the signature validation failed: {error}"
            ),
        ),
        RuntimeError::Image(ImageError::InvalidImageName { .. }) => {
            failure("InvalidImageName", error.to_string())
        }
        _ => failure(ERR_IMAGE_PULL, error.to_string()),
    }
}

#[cfg(test)]
mod tests;
