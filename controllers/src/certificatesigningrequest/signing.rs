//! The signing controller: approved requests of our signers get their certificate, or a `Failed` condition.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::informer::{Informer, InformerEvent, InformerOptions};
use component_base::shutdown::Shutdown;
use component_base::tls::watch_files;
use controller_runtime::work_queue::RateLimit;
use controller_runtime::{
    Action, ApiError, Controller, Executor, ObjectKey, Watches, run_controller,
};
use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::authority::{Authority, AuthorityError, duration};
use super::request::{Request, RequestError, has_condition, is_issued, validate};
use super::{
    KUBE_APISERVER_CLIENT, KUBE_APISERVER_CLIENT_KUBELET, KUBELET_SERVING, LEGACY_UNKNOWN,
};
use crate::context::{ControllerContext, Running, StartError};
use crate::options::CaFiles;

/// How long a failed request waits first; upstream's is longer than other controllers'.
pub(super) const RATE_LIMIT: RateLimit = RateLimit {
    base: Duration::from_millis(200),
    max: Duration::from_secs(1000),
    qps: 10.0,
    burst: 100,
};

/// Why a request was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    #[error("error auto signing csr: {0}")]
    Sign(String),
    #[error("error updating csr: {0}")]
    Api(#[from] ApiError),
}

struct SigningController {
    requests: Informer<CertificateSigningRequest>,
    authorities: BTreeMap<&'static str, Arc<ArcSwap<Authority>>>,
    max_duration: Duration,
    executor: Executor,
    clock: Clock,
}

/// Builds the controller.
///
/// # Errors
/// When a CA cannot be loaded, or no client be had.
pub async fn start(context: ControllerContext) -> Result<Running, StartError> {
    let signing = &context.options.signing;
    let mut authorities = BTreeMap::new();
    for (signer, flag, files) in [
        (
            KUBELET_SERVING,
            "cluster-signing-kubelet-serving-cert-file",
            &signing.kubelet_serving,
        ),
        (
            KUBE_APISERVER_CLIENT_KUBELET,
            "cluster-signing-kubelet-client-cert-file",
            &signing.kubelet_client,
        ),
        (
            KUBE_APISERVER_CLIENT,
            "cluster-signing-kube-apiserver-client-cert-file",
            &signing.kube_apiserver_client,
        ),
        (
            LEGACY_UNKNOWN,
            "cluster-signing-legacy-unknown-cert-file",
            &signing.legacy_unknown,
        ),
    ] {
        let Some(files) = files else {
            tracing::info!(signer, "Skipping CSR signer, it has no certificate and key");
            continue;
        };
        let file_error = |message: String| StartError::File {
            flag,
            path: files.cert_file.clone(),
            message,
        };
        let authority = Authority::load(files).map_err(|e| file_error(e.to_string()))?;
        let authority = Arc::new(ArcSwap::from_pointee(authority));
        follow(files.clone(), authority.clone(), context.shutdown.clone())
            .map_err(|e| file_error(e.to_string()))?;
        authorities.insert(signer, authority);
    }
    let requests: Informer<CertificateSigningRequest> =
        context.informers.informer(InformerOptions::default());
    let queue = context.queues.queue_with("csrsigning", RATE_LIMIT);
    let mut watches = Watches::new(context.shutdown.clone());
    let add = queue.clone();
    watches.on(&requests, move |event| {
        if !matches!(event, InformerEvent::Deleted(_)) {
            add.add(ObjectKey::of(&**event.object()));
        }
    });
    let executor = context
        .executor("certificate-controller", "certificate-controller")
        .await?;
    let max_duration = signing.duration;
    let controller = Arc::new(SigningController {
        requests,
        authorities,
        max_duration,
        executor,
        clock: context.clock.clone(),
    });
    Ok(run_controller(controller, queue, watches, 5, context.shutdown).boxed())
}

/// Reloads a CA when its files change.
fn follow(
    files: CaFiles,
    authority: Arc<ArcSwap<Authority>>,
    shutdown: Shutdown,
) -> Result<(), AuthorityError> {
    let paths = [files.cert_file.clone(), files.key_file.clone()];
    let Some(mut changes) = watch_files(&paths)? else {
        return Ok(());
    };
    let owner = shutdown.clone();
    owner.spawn_guarded("signing CA files", async move {
        while let Some(Some(())) = shutdown.run_until(changes.recv()).await {
            match Authority::load(&files) {
                Ok(changed) => authority.store(Arc::new(changed)),
                Err(error) => {
                    tracing::warn!(%error, "The changed CA cannot be used, the old one stays")
                }
            }
        }
    });
    Ok(())
}

/// Makes the certificate; a `RequestError` is for good (a request never changes), an `AuthorityError` may go away.
pub(super) fn sign(
    csr: &CertificateSigningRequest,
    authority: &Authority,
    max: Duration,
    now: Timestamp,
    serial: [u8; 16],
) -> Result<Result<String, RequestError>, SigningError> {
    let usages = csr.spec.usages.clone().unwrap_or_default();
    let request = match Request::parse(&csr.spec.request.0) {
        Ok(request) => request,
        Err(refused) => return Ok(Err(refused)),
    };
    let permitted = match validate(&csr.spec.signer_name, &request, &usages) {
        Ok(permitted) => permitted,
        Err(refused) => return Ok(Err(refused)),
    };
    let lifetime = duration(csr.spec.expiration_seconds, max);
    authority
        .sign(permitted, lifetime, now, serial)
        .map(Ok)
        .map_err(|e| SigningError::Sign(e.to_string()))
}

#[async_trait]
impl Controller for SigningController {
    type Key = ObjectKey;
    type Error = SigningError;

    fn name(&self) -> &'static str {
        "certificatesigningrequest-signing-controller"
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, SigningError> {
        let Some(csr) = self.requests.get_key(key) else {
            return Ok(None);
        };
        if is_issued(&csr)
            || !has_condition(&csr, "Approved")
            || has_condition(&csr, "Denied")
            || has_condition(&csr, "Failed")
        {
            return Ok(None);
        }
        let Some(authority) = self.authorities.get(csr.spec.signer_name.as_str()) else {
            return Ok(None);
        };
        let now = self.clock.now();
        // The top bit stays clear, so that the serial is positive in 16 bytes.
        let serial = (rand::random::<u128>() >> 1).max(1).to_be_bytes();
        let result = sign(&csr, &authority.load(), self.max_duration, now, serial)?;
        let mut changed = (*csr).clone();
        let status = changed.status.get_or_insert_default();
        match result {
            Ok(certificate) => status.certificate = Some(ByteString(certificate.into_bytes())),
            Err(refused) => {
                status
                    .conditions
                    .get_or_insert_default()
                    .push(CertificateSigningRequestCondition {
                        type_: "Failed".into(),
                        status: "True".into(),
                        reason: Some("SignerValidationFailure".into()),
                        message: Some(refused.to_string()),
                        last_update_time: Some(Time(now)),
                        last_transition_time: None,
                    })
            }
        }
        self.executor
            .execute(&Action::update_status(&changed))
            .await?;
        Ok(None)
    }
}
