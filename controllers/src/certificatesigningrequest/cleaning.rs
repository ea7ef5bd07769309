//! The cleaner: old requests go, after an hour when they were answered, after a day when not, and once their certificate has expired.

use std::time::Duration;

use component_base::informer::{Informer, InformerOptions};
use controller_runtime::{Action, DeleteOptions};
use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;

use super::request::is_issued;
use crate::context::{ControllerContext, Running, StartError};

const PERIOD: Duration = Duration::from_secs(3600);
const APPROVED_SECONDS: i64 = 3600;
const DENIED_SECONDS: i64 = 3600;
const PENDING_SECONDS: i64 = 24 * 3600;

/// Whether a request may go. Pure.
fn is_over(csr: &CertificateSigningRequest, now: Timestamp) -> bool {
    let older = |at: Option<Timestamp>, seconds| {
        at.is_some_and(|at| now.as_second() - at.as_second() > seconds)
    };
    let conditions = csr
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_deref())
        .unwrap_or_default();
    if conditions.is_empty() {
        return older(
            csr.metadata.creation_timestamp.as_ref().map(|t| t.0),
            PENDING_SECONDS,
        );
    }
    conditions.iter().any(|condition| {
        let updated = condition.last_update_time.as_ref().map(|t| t.0);
        match condition.type_.as_str() {
            "Denied" | "Failed" => older(updated, DENIED_SECONDS),
            "Approved" if is_issued(csr) => {
                older(updated, APPROVED_SECONDS) || is_expired(csr, now)
            }
            "Approved" => older(updated, PENDING_SECONDS),
            _ => false,
        }
    })
}

fn is_expired(csr: &CertificateSigningRequest, now: Timestamp) -> bool {
    let pem = csr
        .status
        .as_ref()
        .and_then(|s| s.certificate.as_ref())
        .map(|c| c.0.as_slice())
        .unwrap_or_default();
    let Ok((_, block)) = x509_parser::pem::parse_x509_pem(pem) else {
        return false;
    };
    block
        .parse_x509()
        .is_ok_and(|certificate| certificate.validity().not_after.timestamp() < now.as_second())
}

/// Builds the controller.
///
/// # Errors
/// When no client can be had.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let requests: Informer<CertificateSigningRequest> =
        context.informers.informer(InformerOptions::default());
    let executor = context
        .executor("certificate-controller", "certificate-controller")
        .await?;
    let (shutdown, clock) = (context.shutdown, context.clock.clone());
    Ok(async move {
        if shutdown.run_until(requests.wait_for_sync()).await != Some(true) {
            return;
        }
        loop {
            let round = async {
                for csr in requests
                    .list()
                    .iter()
                    .filter(|csr| is_over(csr, clock.now()))
                {
                    let name = csr.metadata.name.as_deref().unwrap_or_default();
                    let options = DeleteOptions {
                        uid: csr.metadata.uid.clone(),
                        ..DeleteOptions::default()
                    };
                    let action = Action::delete::<CertificateSigningRequest>("", name, options);
                    if let Err(error) = executor.execute(&action).await {
                        tracing::warn!(csr = name, %error, "Error while attempting to clean CSR");
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
    use serde_json::json;

    fn check(condition: Option<&str>, issued: bool, age_seconds: i64, expect: bool) {
        let now: Timestamp = "2026-01-10T00:00:00Z".parse().unwrap();
        let then = Timestamp::from_second(now.as_second() - age_seconds)
            .unwrap()
            .to_string();
        let conditions: Vec<_> = condition
            .iter()
            .map(|t| json!({ "type": t, "status": "True", "lastUpdateTime": then }))
            .collect();
        let certificate = issued.then_some("eA==");
        let csr = serde_json::from_value(json!({ "metadata": { "creationTimestamp": then },
            "spec": { "request": "", "signerName": "" }, "status": { "conditions": conditions, "certificate": certificate } }));
        assert_eq!(
            is_over(&csr.unwrap(), now),
            expect,
            "{condition:?} {issued} {age_seconds}"
        );
    }

    #[test]
    fn ages() {
        check(None, false, 23 * 3600, false);
        check(None, false, 25 * 3600, true);
        check(Some("Approved"), true, 3000, false);
        check(Some("Approved"), true, 3700, true);
        check(Some("Approved"), false, 3700, false);
        check(Some("Approved"), false, 25 * 3600, true);
        check(Some("Denied"), false, 3700, true);
        check(Some("Failed"), false, 3700, true);
    }
}
