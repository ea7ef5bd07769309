//! Clears away PodCertificateRequests: whatever became of one, after a quarter of an hour nobody needs it.
//!
//! Upstream: pkg/controller/certificates/cleaner/pcrcleaner.go, v1.37.

use std::time::Duration;

use component_base::informer::{Informer, InformerOptions};
use controller_runtime::{Action, ApiError, DeleteOptions};
use futures::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::PodCertificateRequest;

use crate::context::{ControllerContext, Running, StartError};

/// The gate this controller is behind.
pub const POD_CERTIFICATE_REQUEST: &str = "PodCertificateRequest";
/// Between two rounds. Upstream: `newPodCertificateRequestCleanerController`.
const PERIOD: Duration = Duration::from_secs(5 * 60);
/// As old as this, a request goes. Upstream: as above.
const THRESHOLD: SignedDuration = SignedDuration::from_mins(15);

/// Whether a request may go. Pure.
fn is_over(request: &PodCertificateRequest, now: Timestamp) -> bool {
    let made = request.metadata.creation_timestamp.as_ref().map(|t| t.0);
    made.is_some_and(|made| now.duration_since(made) >= THRESHOLD)
}

/// Builds the controller; where the gate is off or the API server has no such requests, it has nothing to do.
///
/// # Errors
/// When no client can be had, or the server does not say what it has.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    if !context.features.enabled(POD_CERTIFICATE_REQUEST)
        || !context.serves::<PodCertificateRequest>().await?
    {
        return Ok(context.nothing_to_do("podcertificaterequest-cleaner-controller"));
    }
    let requests: Informer<PodCertificateRequest> =
        context.informers.informer(InformerOptions::default());
    let executor = context
        .executor(
            "podcertificaterequestcleaner",
            "podcertificaterequestcleaner",
        )
        .await?;
    let (shutdown, clock) = (context.shutdown, context.clock.clone());
    Ok(async move {
        if shutdown.run_until(requests.wait_for_sync()).await != Some(true) {
            return;
        }
        loop {
            let round = async {
                let now = clock.now();
                for request in requests.list().iter().filter(|r| is_over(r, now)) {
                    let meta = &request.metadata;
                    let name = meta.name.as_deref().unwrap_or_default();
                    let namespace = meta.namespace.as_deref().unwrap_or_default();
                    let options = DeleteOptions {
                        uid: meta.uid.clone(),
                        ..DeleteOptions::default()
                    };
                    let action = Action::delete::<PodCertificateRequest>(namespace, name, options);
                    match executor.execute(&action).await {
                        Ok(_) | Err(ApiError::NotFound(_)) => {}
                        Err(error) => {
                            tracing::warn!(pcr = format!("{namespace}/{name}"), %error, "Error while attempting to clean PodCertificateRequest");
                        }
                    }
                }
                clock.sleep(PERIOD).await;
            };
            if shutdown.run_until(round).await.is_none() {
                return;
            }
        }
    }
    .boxed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_alone_counts() {
        let now: Timestamp = "2026-01-10T12:00:00Z".parse().unwrap();
        for (made, expect) in [
            (Some("2026-01-10T11:45:01Z"), false),
            (Some("2026-01-10T11:45:00Z"), true),
            (Some("2026-01-09T11:45:00Z"), true),
            (None, false),
        ] {
            let mut request = PodCertificateRequest::default();
            request.metadata.creation_timestamp = made.map(|at| {
                k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at.parse().unwrap())
            });
            assert_eq!(is_over(&request, now), expect, "{made:?}");
        }
    }
}
