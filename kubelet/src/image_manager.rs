//! Makes sure that an image is there before a container is made of it.
//!
//! Owns: pull policies, back-off, how many pulls run at once, and the events about them. The bytes are the runtime's.
//! Upstream: `pkg/kubelet/images/image_manager.go`, v1.36.

pub mod credentials;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use component_base::client::TokenBucket;
use images::Reference;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Secret};
use runtime::api::{ImageError, ImageStatus, Runtime, RuntimeError};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::configuration::KubeletConfiguration;
use crate::events::{KubeletRecorder, Type, reason};
use crate::pod;
use credentials::Keyring;

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
    backoff: Backoff,
    /// Why the last pull failed, by back-off key.
    previous_error: Mutex<HashMap<String, String>>,
    parallel: Option<Semaphore>,
    rate: Option<TokenBucket>,
    policy_never_verifies: bool,
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
        config: &KubeletConfiguration,
    ) -> Self {
        let qps = config.registry_pull_qps;
        Self {
            runtime,
            recorder,
            keyring,
            backoff: Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF),
            previous_error: Mutex::default(),
            parallel: config.parallel_image_pulls().map(Semaphore::new),
            rate: (qps > 0).then(|| {
                TokenBucket::new(
                    f64::from(qps),
                    u32::try_from(config.registry_burst).unwrap_or(1),
                )
            }),
            policy_never_verifies: config.image_pull_credentials_verification_policy
                == "NeverVerify",
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
        if policy != "Always" {
            let found = self.runtime.image_status(&image).await.map_err(|e| {
                let message = format!("Failed to inspect image {requested:?}: {e}");
                event(Type::Warning, reason::INSPECT_FAILED, message.clone());
                failure("ImageInspectError", message)
            })?;
            if let Some(found) = found {
                let suffix = if self.policy_never_verifies {
                    ""
                } else {
                    " and can be accessed by the pod"
                };
                event(
                    Type::Normal,
                    reason::PULLED,
                    format!("Container image {requested:?} already present on machine{suffix}"),
                );
                return Ok(found);
            }
            if policy == "Never" {
                let message = format!(
                    "Container image {requested:?} is not present with pull policy of Never"
                );
                event(Type::Warning, reason::ERR_IMAGE_NEVER_PULL, message.clone());
                return Err(failure("ErrImageNeverPull", message));
            }
        }
        self.pull_image(pod, requested, &image, secrets, cancel, &event)
            .await
    }

    async fn pull_image(
        &self,
        pod: &Pod,
        requested: &str,
        image: &str,
        secrets: &[Arc<Secret>],
        cancel: &CancellationToken,
        event: &(dyn Fn(Type, &str, String) + Sync),
    ) -> Result<ImageStatus, ImageFailure> {
        let key = format!("{}_{requested}", pod::uid(pod));
        if let Some(wait) = self.backoff.remaining_since_update(&key, Timestamp::now()) {
            let mut message = format!("Back-off pulling image {requested:?}");
            event(Type::Normal, reason::BACK_OFF, message.clone());
            if let Some(previous) = self.errors().get(&key) {
                message = format!("{message}: {previous}");
            }
            return Err(ImageFailure {
                reason: "ImagePullBackOff",
                message,
                retry_after: Some(wait),
            });
        }
        self.errors().remove(&key);
        event(
            Type::Normal,
            reason::PULLING,
            format!("Pulling image {requested:?}"),
        );
        let begin = Instant::now();
        let cancelled = || failure("ErrImagePull", "pod is being terminated".to_owned());

        let pull = async {
            if let Some(rate) = &self.rate {
                rate.acquire().await;
            }
            // Closed never: the semaphore lives as long as the manager.
            let _permit = match &self.parallel {
                Some(semaphore) => semaphore.acquire().await.ok(),
                None => None,
            };
            let auths = self.keyring.lookup(image, secrets);
            let begin = Instant::now();
            let id = self.runtime.pull_image(image, &auths).await?;
            let status = self.runtime.image_status(&id).await?;
            Ok::<_, RuntimeError>((id, status, begin.elapsed()))
        };
        let outcome = tokio::select! {
            () = cancel.cancelled() => return Err(cancelled()),
            outcome = pull => outcome,
        };
        let total = begin.elapsed();
        match outcome {
            Ok((id, status, took)) => {
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
                crate::metrics::observe_image_pull(status.size_bytes, total);
                self.backoff.gc(Timestamp::now());
                Ok(status)
            }
            Err(error) => {
                event(
                    Type::Warning,
                    reason::FAILED,
                    format!("Failed to pull image {requested:?}: {error}"),
                );
                self.backoff.next(&key, Timestamp::now());
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

fn eval_pull_error(image: &str, error: &RuntimeError) -> ImageFailure {
    match error {
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
        other => failure("ErrImagePull", other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_tags() {
        assert_eq!(
            apply_default_image_tag("busybox").unwrap(),
            "busybox:latest"
        );
        assert_eq!(
            apply_default_image_tag("registry.k8s.io/pause:3.10").unwrap(),
            "registry.k8s.io/pause:3.10"
        );
        assert!(apply_default_image_tag("UPPER//bad:::x").is_err());
    }
}
