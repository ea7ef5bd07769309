//! The shell: pods in, requests out, answers back to the pods.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use component_base::events::EventType;
use component_base::informer::{Informer, InformerOptions};
use component_base::shutdown::Shutdown;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{PodCertificateRequest, PodCertificateRequestSpec};
use k8s_openapi::api::core::v1::{Pod, PodCertificateProjection, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, PostParams};
use volumes::{CertificateStateError, PodCertificate, PodCertificateKey};

use super::key::{self, KeyError};
use super::state::{News, State, Step};
use crate::events::{KubeletRecorder, reason};
use crate::node::NodeState;
use crate::off_thread::{OffThreadError, off_thread};
use crate::pending::Pending;
use crate::pod;

/// All pods are looked at so often; up to as much again is added, so that nodes stay apart. Upstream: `Run`.
const PASS: Duration = Duration::from_secs(60);
/// Requests and renewals of equal pods are spread over so long. Upstream: `jitterDuration`.
const JITTER_SECONDS: u32 = 5 * 60;
/// After a request that could not be made; doubled each time.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// One source of one pod.
struct Record {
    pod: Arc<Pod>,
    source: PodCertificateProjection,
    state: State,
    /// Requests in a row that could not be made.
    failures: u32,
    not_before: Option<tokio::time::Instant>,
}

type Records = BTreeMap<PodCertificateKey, Record>;

/// Cheap to clone.
#[derive(Clone)]
pub struct PodCertificateManager {
    shared: Arc<Shared>,
}

struct Shared {
    client: kube::Client,
    node: Arc<NodeState>,
    recorder: KubeletRecorder,
    /// The pods whose certificates changed.
    changes: Arc<Pending<String>>,
    shutdown: Shutdown,
    records: Mutex<Records>,
    /// UIDs of pods to look at.
    looks: Pending<String>,
    /// Watched from the first pod that wants a certificate on: an older API server has none.
    requests: OnceLock<Informer<PodCertificateRequest>>,
}

/// Why a request could not be made. A retry may help.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("while fetching service account: {0}")]
    ServiceAccount(#[source] kube::Error),
    #[error("while getting node object from local cache: it was not seen yet")]
    NoNode,
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("while generating keypair: {0}")]
    OffThread(#[from] OffThreadError),
    #[error("while creating on API: {0}")]
    Create(#[source] kube::Error),
}

impl PodCertificateManager {
    /// `changes` is told of pods whose certificates changed.
    pub fn new(
        client: kube::Client,
        node: Arc<NodeState>,
        recorder: KubeletRecorder,
        changes: Arc<Pending<String>>,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                client,
                node,
                recorder,
                changes,
                shutdown,
                records: Mutex::default(),
                looks: Pending::default(),
                requests: OnceLock::new(),
            }),
        }
    }

    /// Begins to get certificates for the pod. Idempotent.
    pub fn track(&self, pod: &Pod) {
        let wanted = sources(pod);
        if wanted.is_empty() {
            return;
        }
        let pod = Arc::new(pod.clone());
        let mut records = self.shared.lock();
        for (key, source) in wanted {
            let record = records.entry(key).or_insert_with(|| Record {
                pod: pod.clone(),
                source,
                state: State::default(),
                failures: 0,
                not_before: None,
            });
            record.pod = pod.clone();
        }
        drop(records);
        self.shared.begin();
        self.shared.looks.add(pod::uid(&pod).to_owned());
    }

    /// Keys and certificates of the pod are gone.
    pub fn forget(&self, pod_uid: &str) {
        self.shared.lock().retain(|key, _| key.pod_uid != pod_uid);
    }

    /// # Errors
    /// Why there is none yet, or never will be.
    pub fn certificate(
        &self,
        of: &PodCertificateKey,
    ) -> Result<PodCertificate, CertificateStateError> {
        match self.shared.lock().get(of) {
            Some(record) => record.state.certificate(),
            None => Err(CertificateStateError::NotIssued),
        }
    }

    /// Sources by signer and state, for the metric.
    pub fn report(&self) -> BTreeMap<(String, &'static str), usize> {
        let now = Timestamp::now();
        let mut counts = BTreeMap::new();
        for record in self.shared.lock().values() {
            let label = record.state.label(now);
            *counts
                .entry((record.source.signer_name.clone(), label))
                .or_default() += 1;
        }
        counts
    }
}

/// The sources of a pod.
fn sources(pod: &Pod) -> Vec<(PodCertificateKey, PodCertificateProjection)> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes
        .flat_map(|volume| {
            let projected = volume.projected.iter();
            let sources = projected.flat_map(|p| p.sources.iter().flatten());
            sources.enumerate().filter_map(|(source_index, source)| {
                let key = PodCertificateKey {
                    namespace: pod::namespace(pod).to_owned(),
                    pod_name: pod::name(pod).to_owned(),
                    pod_uid: pod::uid(pod).to_owned(),
                    volume: volume.name.clone(),
                    source_index,
                };
                Some((key, source.pod_certificate.clone()?))
            })
        })
        .collect()
}

fn jitter() -> SignedDuration {
    SignedDuration::from_secs(i64::from(rand::random_range(0..JITTER_SECONDS)))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Starts the watch and the loop, once.
    fn begin(self: &Arc<Self>) {
        self.requests.get_or_init(|| {
            let api: Api<PodCertificateRequest> = Api::all(self.client.clone());
            let options =
                InformerOptions::default().fields(format!("spec.nodeName={}", self.node.name));
            let informer = Informer::start(api, &options, &self.shutdown);
            let run = self.clone().run(informer.clone());
            self.shutdown.spawn_essential("certificates of pods", run);
            informer
        });
    }

    async fn run(self: Arc<Self>, requests: Informer<PodCertificateRequest>) {
        let mut events = requests.subscribe();
        let mut pass = tokio::time::Instant::now() + PASS;
        loop {
            let retry = self.next_retry().unwrap_or(pass).min(pass);
            tokio::select! {
                () = self.shutdown.triggered() => return,
                event = events.recv() => match event {
                    Some(event) => self.looks.add(event.object().spec.pod_uid.clone()),
                    None => return,
                },
                uid = self.looks.next() => self.look(&uid, &requests).await,
                () = tokio::time::sleep_until(retry) => {
                    let now = tokio::time::Instant::now();
                    let all = now >= pass;
                    if all {
                        pass = now + PASS.mul_f64(1.0 + rand::random::<f64>());
                    }
                    let due = |record: &Record| all || record.not_before.is_some_and(|at| at <= now);
                    for (key, _) in self.lock().iter().filter(|(_, record)| due(record)) {
                        self.looks.add(key.pod_uid.clone());
                    }
                }
            }
        }
    }

    fn next_retry(&self) -> Option<tokio::time::Instant> {
        self.lock().values().filter_map(|r| r.not_before).min()
    }

    /// One look at every source of a pod.
    async fn look(&self, uid: &str, requests: &Informer<PodCertificateRequest>) {
        let now = tokio::time::Instant::now();
        let mut changed = false;
        let mut ask = vec![];
        for (key, record) in self.lock().iter_mut().filter(|(k, _)| k.pod_uid == uid) {
            let find = |name: &str| requests.get(&key.namespace, name);
            let Step { ask: asks, news } = record.state.step(find, Timestamp::now(), jitter());
            if asks && record.not_before.is_none_or(|at| at <= now) {
                record.not_before = None;
                ask.push((key.clone(), record.pod.clone(), record.source.clone()));
            }
            for item in news {
                changed |= matches!(item, News::Issued | News::Refused(..));
                self.tell(&record.pod, &item);
            }
        }
        for (key, pod, source) in ask {
            let made = self.request(&pod, &source).await;
            let mut records = self.lock();
            // The pod may be gone by now.
            let Some(record) = records.get_mut(&key) else {
                continue;
            };
            match made {
                Ok((secret, name, at)) => {
                    record.failures = 0;
                    record.state.asked(secret.into(), name, at, jitter());
                }
                Err(error) => {
                    let wait = FIRST_RETRY
                        .saturating_mul(1 << record.failures.min(16))
                        .min(LAST_RETRY);
                    if record.failures == 0 {
                        let text =
                            format!("PodCertificateRequest of volume {}: {error}", key.volume);
                        let recorder = &self.recorder;
                        recorder.pod(&record.pod, EventType::Warning, reason::FAILED, text);
                    }
                    record.failures += 1;
                    record.not_before = Some(tokio::time::Instant::now() + wait);
                    // It is asked again.
                    tracing::warn!(
                        namespace = key.namespace, pod = key.pod_name, volume = key.volume, source = key.source_index, %error,
                        "while handling podCertificate projected volume source"
                    );
                }
            }
        }
        if changed {
            self.changes.add(uid.to_owned());
        }
    }

    /// DIFFERS: upstream's event of a refusal gives its text as an argument that its format has no place for.
    fn tell(&self, pod: &Pod, news: &News) {
        let (reason, message) = match news {
            News::Issued => return,
            News::Refused(name, CertificateStateError::Denied { reason, message }) => (
                reason::POD_CERTIFICATE_DENIED,
                format!(
                    "PodCertificateRequest {}/{name} was denied, reason={reason:?}, message={message:?}",
                    pod::namespace(pod)
                ),
            ),
            News::Refused(name, error) => {
                let (reason, message) = match error {
                    CertificateStateError::Failed { reason, message } => (&**reason, &**message),
                    _ => ("", ""),
                };
                (
                    reason::FAILED,
                    format!(
                        "PodCertificateRequest {}/{name} failed, reason={reason:?}, message={message:?}",
                        pod::namespace(pod)
                    ),
                )
            }
            News::Overdue => (
                reason::CERTIFICATE_OVERDUE_FOR_REFRESH,
                "PodCertificate refresh overdue".to_owned(),
            ),
            News::Expired => (
                reason::CERTIFICATE_EXPIRED,
                "PodCertificate expired".to_owned(),
            ),
        };
        self.recorder.pod(pod, EventType::Warning, reason, message);
    }

    /// Makes a key and asks for a certificate: the key's PEM, the request's name and time.
    async fn request(
        &self,
        pod: &Pod,
        source: &PodCertificateProjection,
    ) -> Result<(Vec<u8>, String, Timestamp), RequestError> {
        let namespace = pod::namespace(pod);
        let account = service_account(pod);
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let service_account = accounts
            .get(account)
            .await
            .map_err(RequestError::ServiceAccount)?;
        let node = self.node.node.load_full();
        let node = node.as_ref().as_ref().ok_or(RequestError::NoNode)?;
        let key_type = source.key_type.clone();
        let (secret, stub) = off_thread(move || key::generate(&key_type)).await??;
        let mut request = PodCertificateRequest {
            spec: PodCertificateRequestSpec {
                signer_name: source.signer_name.clone(),
                pod_name: pod::name(pod).to_owned(),
                pod_uid: pod::uid(pod).to_owned(),
                service_account_name: account.to_owned(),
                service_account_uid: service_account.metadata.uid.unwrap_or_default(),
                node_name: self.node.name.clone(),
                node_uid: node.metadata.uid.clone().unwrap_or_default(),
                max_expiration_seconds: source.max_expiration_seconds,
                stub_pkc_s10_request: ByteString(stub),
                unverified_user_annotations: source.user_annotations.clone(),
            },
            ..PodCertificateRequest::default()
        };
        request.metadata.generate_name = Some("req-".to_owned());
        request.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            name: pod::name(pod).to_owned(),
            uid: pod::uid(pod).to_owned(),
            ..OwnerReference::default()
        }]);
        let api: Api<PodCertificateRequest> = Api::namespaced(self.client.clone(), namespace);
        let made = api
            .create(&PostParams::default(), &request)
            .await
            .map_err(RequestError::Create)?
            .metadata;
        let at = made.creation_timestamp.map_or_else(Timestamp::now, |t| t.0);
        Ok((secret, made.name.unwrap_or_default(), at))
    }
}

fn service_account(pod: &Pod) -> &str {
    let spec = pod.spec.as_ref();
    spec.and_then(|s| s.service_account_name.as_deref())
        .filter(|name| !name.is_empty())
        .unwrap_or("default")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sources_by_their_place() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"containers": [], "volumes": [
                {"name": "none", "emptyDir": {}},
                {"name": "v", "projected": {"sources": [
                    {"configMap": {"name": "c"}},
                    {"podCertificate": {"signerName": "a.example/x", "keyType": "ED25519", "keyPath": "k"}},
                    {"podCertificate": {"signerName": "a.example/y", "keyType": "ED25519", "keyPath": "l"}},
                ]}},
            ]},
        }))
        .unwrap();
        let found: Vec<_> = sources(&pod)
            .into_iter()
            .map(|(key, source)| (key.volume, key.source_index, source.signer_name))
            .collect();
        let expect = [
            ("v".to_owned(), 1, "a.example/x".to_owned()),
            ("v".to_owned(), 2, "a.example/y".to_owned()),
        ];
        assert_eq!(found, expect);
    }
}
