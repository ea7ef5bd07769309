//! ConfigMaps and Secrets of the pods on this node, each watched alone, or asked for.
//!
//! Owns: one informer an object for as long as a pod refers to it (a node may read no others), and the news that
//! an object changed; with `configMapAndSecretChangeDetectionStrategy` `Cache` or `Get` no watch, but a look now and then.
//! Trust bundles and certificates of pods, which volumes are made of too, are in `trust_bundles` and
//! `crate::pod_certificate`. Upstream: `pkg/kubelet/util/manager/{watch,cache}_based_manager.go`, v1.36.

mod tokens;
mod trust_bundles;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::Clock;
use component_base::informer::{Informer, InformerEvent, InformerOptions, Object};
use component_base::shutdown::Shutdown;
use component_base::tasks::spawn_vital;
use component_helpers::pod::references::{config_map_names, secret_names};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::{
    ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service,
};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{Api, Patch, PatchParams};
use serde::de::DeserializeOwned;
use volumes::{
    ObjectSource, PodCertificate, PodCertificateKey, ServiceAccountToken, SourceError, TokenRequest,
};

use self::trust_bundles::TrustBundles;

use crate::environment::{EnvironmentError, Objects};
use crate::node::NodeState;
use crate::off_thread::off_thread;
use crate::pending::Pending;
use crate::pod;
use crate::pod_certificate::PodCertificateManager;

/// How long a reader waits for an object that the API server refuses yet: the node authorizer learns of a new pod a
/// moment after the kubelet does.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(5);
const REFUSAL_RETRY: Duration = Duration::from_millis(100);
/// Of a file with variables (`fileKeyRef`). Source: ours; upstream reads whatever there is.
const MAX_ENV_FILE_BYTES: u64 = 64 << 10;

/// How long `Cache` trusts what it read, unless the Node says otherwise; upstream: `defaultTTL`. Without watches, pods are told to
/// look at their objects as often.
const TTL: Duration = Duration::from_secs(60);
/// The Node's word on it, in seconds; the TTL controller writes it by the size of the cluster.
const TTL_ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";

/// How long a reader waits for the first list of CSI drivers.
const DRIVERS_PATIENCE: Duration = Duration::from_secs(5);

/// `configMapAndSecretChangeDetectionStrategy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    Watch,
    /// What was read is good for a while; a new pod has it read anew.
    Cache,
    /// Every reader asks the API server.
    Get,
}

impl Strategy {
    /// By the configuration's word, which was validated.
    pub fn of(word: &str) -> Self {
        match word {
            "Cache" => Self::Cache,
            "Get" => Self::Get,
            _ => Self::Watch,
        }
    }
}

type Key = (String, String);

struct Entry<K: Object> {
    pods: HashSet<String>,
    /// With `Watch` alone.
    informer: Option<Informer<K>>,
    /// What was read, and when by the clock; with `Cache` alone.
    read: Option<(Duration, Option<Arc<K>>)>,
}

/// Objects of one kind.
struct Store<K: Object> {
    resource: &'static str,
    client: kube::Client,
    shutdown: Shutdown,
    strategy: Strategy,
    node: Arc<NodeState>,
    clock: Clock,
    entries: Mutex<HashMap<Key, Entry<K>>>,
    changes: Arc<Pending<String>>,
}

impl<K> Store<K>
where
    K: Object + DeserializeOwned + kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Entry<K>>> {
        self.entries.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn register(self: &Arc<Self>, pod_uid: &str, namespace: &str, names: &BTreeSet<&str>) {
        let mut entries = self.lock();
        // Objects a pod no longer names (never, as its spec is fixed, but for a pod of the same UID read again).
        for ((ns, name), entry) in entries.iter_mut() {
            if ns == namespace && !names.contains(name.as_str()) {
                entry.pods.remove(pod_uid);
            }
        }
        for name in names {
            let key = (namespace.to_owned(), (*name).to_owned());
            let entry = entries.entry(key.clone()).or_insert_with(|| Entry {
                pods: HashSet::new(),
                informer: (self.strategy == Strategy::Watch).then(|| self.watch(key)),
                read: None,
            });
            if entry.pods.insert(pod_uid.to_owned()) {
                entry.read = None;
            }
        }
        entries.retain(|_, e| !e.pods.is_empty());
    }

    fn watch(self: &Arc<Self>, key: Key) -> Informer<K> {
        let (namespace, name) = &key;
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let options = InformerOptions::default().fields(format!("metadata.name={name}"));
        let informer = Informer::start(api, &options, &self.shutdown);
        self.forward(key, &informer);
        informer
    }

    /// Without watches: tells every pod now and then that an object may have changed.
    fn remind(self: &Arc<Self>) {
        if self.strategy == Strategy::Watch {
            return;
        }
        let (store, shutdown) = (self.clone(), self.shutdown.clone());
        let reminding = async move {
            while shutdown
                .run_until(tokio::time::sleep(
                    TTL.mul_f64(1.0 + 0.5 * rand::random::<f64>()),
                ))
                .await
                .is_some()
            {
                let pods: HashSet<String> =
                    store.lock().values().flat_map(|e| e.pods.clone()).collect();
                for pod in pods {
                    store.changes.add(pod);
                }
            }
        };
        let name = format!("reminder of every {}", self.resource);
        self.shutdown.spawn_essential(name, reminding);
    }

    fn ttl(&self) -> Duration {
        let node = self.node.node.load();
        let annotations = node
            .as_ref()
            .as_ref()
            .and_then(|n| n.metadata.annotations.as_ref());
        annotations
            .and_then(|a| a.get(TTL_ANNOTATION))
            .and_then(|seconds| seconds.parse().ok())
            .map_or(TTL, Duration::from_secs)
    }

    /// Tells which pods an object's change concerns. Ends with the informer.
    fn forward(self: &Arc<Self>, key: Key, informer: &Informer<K>) {
        let mut events = informer.subscribe();
        let store = Arc::downgrade(self);
        spawn_vital("changes of objects", async move {
            while let Some(event) = events.recv().await {
                let Some(store) = store.upgrade() else { return };
                if matches!(event, InformerEvent::Added(_)) && !store.is_known(&key) {
                    continue;
                }
                for pod in store.lock().get(&key).into_iter().flat_map(|e| &e.pods) {
                    store.changes.add(pod.clone());
                }
            }
        });
    }

    fn is_known(&self, key: &Key) -> bool {
        self.lock().contains_key(key)
    }

    fn unregister(&self, pod_uid: &str) {
        self.lock().retain(|_, e| {
            e.pods.remove(pod_uid);
            !e.pods.is_empty()
        });
    }

    async fn get(&self, namespace: &str, name: &str) -> Result<Option<Arc<K>>, SourceError> {
        let key = (namespace.to_owned(), name.to_owned());
        let (informer, read) = match self.lock().get(&key) {
            Some(entry) => (entry.informer.clone(), entry.read.clone()),
            None => (None, None),
        };
        if let Some(informer) = informer.as_ref().filter(|i| i.has_synced()) {
            return Ok(informer.get(namespace, name));
        }
        let now = self.clock.monotonic();
        if let Some((_, object)) = read.as_ref().filter(|(at, _)| now - *at < self.ttl()) {
            return Ok(object.clone());
        }
        // With `Watch` it has not begun: ask once, so that no pod waits for it.
        let found = self.ask(namespace, name).await;
        if self.strategy != Strategy::Cache {
            return found;
        }
        match (found, read) {
            (Ok(object), _) => {
                if let Some(entry) = self.lock().get_mut(&key) {
                    entry.read = Some((self.clock.monotonic(), object.clone()));
                }
                Ok(object)
            }
            // The old one will do while the API server is away, as it does for a watch.
            (Err(SourceError::Transport { .. }), Some((_, object))) => Ok(object),
            (Err(error), _) => Err(error),
        }
    }

    async fn ask(&self, namespace: &str, name: &str) -> Result<Option<Arc<K>>, SourceError> {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let begin = tokio::time::Instant::now();
        loop {
            match api.get_opt(name).await {
                Ok(found) => return Ok(found.map(Arc::new)),
                Err(kube::Error::Api(status))
                    if status.code == 403 && begin.elapsed() < REFUSAL_PATIENCE =>
                {
                    tokio::time::sleep(REFUSAL_RETRY).await;
                }
                Err(kube::Error::Api(status)) => {
                    return Err(SourceError::Refused {
                        code: status.code,
                        message: status.message.clone(),
                    });
                }
                Err(error) => {
                    return Err(SourceError::Transport {
                        resource: self.resource,
                        namespace: namespace.to_owned(),
                        name: name.to_owned(),
                        source: Box::new(error),
                    });
                }
            }
        }
    }
}

/// Everything of the API that containers and volumes are made of.
pub struct ObjectCache {
    api: Option<Watched>,
    node: Arc<NodeState>,
    volumes: std::sync::OnceLock<volumes::VolumeManager>,
    paths: crate::paths::Paths,
}

struct Watched {
    client: kube::Client,
    config_maps: Arc<Store<ConfigMap>>,
    secrets: Arc<Store<Secret>>,
    services: Informer<Service>,
    csi_drivers: Informer<CSIDriver>,
    /// `None`: the gate is off.
    trust_bundles: Option<TrustBundles>,
    /// `None`: the gate is off.
    certificates: Option<PodCertificateManager>,
}

/// What pods' objects come from, besides what is watched one by one.
pub struct FromApi {
    pub client: kube::Client,
    pub services: Informer<Service>,
    pub csi_drivers: Informer<CSIDriver>,
    /// Gate ClusterTrustBundleProjection.
    pub trust_bundles: bool,
    /// Gate PodCertificateRequest.
    pub certificates: Option<PodCertificateManager>,
}

impl ObjectCache {
    /// `changes`: the pods whose objects changed. Without a client, nothing is there but what static pods bring.
    pub fn new(
        api: Option<FromApi>,
        node: Arc<NodeState>,
        paths: crate::paths::Paths,
        changes: Arc<Pending<String>>,
        strategy: Strategy,
        clock: &Clock,
        shutdown: &Shutdown,
    ) -> Self {
        let api = api.map(|api| {
            let watched = Watched {
                trust_bundles: api
                    .trust_bundles
                    .then(|| TrustBundles::new(api.client.clone(), changes.clone(), shutdown)),
                certificates: api.certificates,
                config_maps: Arc::new(Store {
                    resource: "configmap",
                    client: api.client.clone(),
                    shutdown: shutdown.clone(),
                    strategy,
                    node: node.clone(),
                    clock: clock.clone(),
                    entries: Mutex::default(),
                    changes: changes.clone(),
                }),
                secrets: Arc::new(Store {
                    resource: "secret",
                    client: api.client.clone(),
                    shutdown: shutdown.clone(),
                    strategy,
                    node: node.clone(),
                    clock: clock.clone(),
                    entries: Mutex::default(),
                    changes,
                }),
                client: api.client,
                services: api.services,
                csi_drivers: api.csi_drivers,
            };
            watched.config_maps.remind();
            watched.secrets.remind();
            watched
        });
        Self {
            api,
            node,
            volumes: std::sync::OnceLock::new(),
            paths,
        }
    }

    /// Where `fileKeyRef` reads; once, when the volume manager is made.
    pub fn set_volumes(&self, volumes: volumes::VolumeManager) {
        // Set once by the wiring.
        let _ = self.volumes.set(volumes);
    }

    /// Begins to watch what the pod refers to. Idempotent.
    pub fn register_pod(&self, pod: &Pod) {
        if let Some(api) = &self.api {
            let (uid, namespace) = (pod::uid(pod), pod::namespace(pod));
            api.config_maps
                .register(uid, namespace, &config_map_names(pod));
            api.secrets.register(uid, namespace, &secret_names(pod));
            if let Some(bundles) = &api.trust_bundles {
                bundles.register(pod);
            }
            if let Some(certificates) = &api.certificates {
                certificates.track(pod);
            }
        }
    }

    pub fn unregister_pod(&self, uid: &str) {
        if let Some(api) = &self.api {
            api.config_maps.unregister(uid);
            api.secrets.unregister(uid);
            if let Some(bundles) = &api.trust_bundles {
                bundles.unregister(uid);
            }
            if let Some(certificates) = &api.certificates {
                certificates.forget(uid);
            }
        }
    }

    /// The pull secrets of the pod that exist, and the names of those that do not.
    pub async fn pull_secrets(&self, pod: &Pod) -> (Vec<Arc<Secret>>, Vec<String>) {
        let (mut found, mut missing) = (vec![], vec![]);
        for reference in pod
            .spec
            .iter()
            .flat_map(|s| s.image_pull_secrets.iter().flatten())
        {
            let name = &reference.name;
            match self.secret_of(pod::namespace(pod), name).await {
                Ok(Some(secret)) => found.push(secret),
                _ if name.is_empty() => {}
                _ => missing.push(name.clone()),
            }
        }
        (found, missing)
    }

    fn trust_bundles(&self) -> Result<&TrustBundles, SourceError> {
        let bundles = self.api.as_ref().and_then(|api| api.trust_bundles.as_ref());
        bundles.ok_or_else(|| unsupported("ClusterTrustBundle projection"))
    }

    async fn secret_of(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Secret>>, SourceError> {
        match &self.api {
            Some(api) => api.secrets.get(namespace, name).await,
            None => Err(no_client("secret", namespace, name)),
        }
    }

    async fn config_map_of(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<ConfigMap>>, SourceError> {
        match &self.api {
            Some(api) => api.config_maps.get(namespace, name).await,
            None => Err(no_client("configMap", namespace, name)),
        }
    }
}

fn unsupported(what: &str) -> SourceError {
    SourceError::Refused {
        code: 0,
        message: format!(
            "{what} is not supported in static kubelet mode or without its feature gate"
        ),
    }
}

fn no_client(kind: &str, namespace: &str, name: &str) -> SourceError {
    SourceError::Refused {
        code: 0,
        message: format!("couldn't get {kind} {namespace}/{name}, no kubeClient defined"),
    }
}

#[async_trait]
impl Objects for ObjectCache {
    async fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<ConfigMap>>, SourceError> {
        self.config_map_of(namespace, name).await
    }

    async fn secret(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Secret>>, SourceError> {
        self.secret_of(namespace, name).await
    }

    fn services(&self) -> Option<Vec<Arc<Service>>> {
        match &self.api {
            Some(api) => api.services.has_synced().then(|| api.services.list()),
            None => Some(vec![]),
        }
    }

    async fn volume_file(
        &self,
        pod_uid: &str,
        volume: &str,
        path: &str,
    ) -> Result<String, EnvironmentError> {
        // `fileKeyRef` only reads emptyDir volumes.
        let dir = self
            .paths
            .pod(pod_uid)
            .join("volumes/kubernetes.io~empty-dir")
            .join(volume);
        let (dir, path, volume) = (dir, std::path::PathBuf::from(path), volume.to_owned());
        let read = off_thread(move || {
            let root = host::Root::open(&dir).map_err(|_| EnvironmentError::NoVolume(volume))?;
            let read = root
                .open_regular(&path, host::Links::Beneath)
                .and_then(|file| host::file::read_whole(&file, &path, MAX_ENV_FILE_BYTES));
            match read {
                Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
                Err(error) => {
                    tracing::error!(%error, "failed to read env file");
                    Err(EnvironmentError::EnvFile)
                }
            }
        });
        read.await.unwrap_or(Err(EnvironmentError::EnvFile))
    }
}

#[async_trait]
impl ObjectSource for ObjectCache {
    async fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<ConfigMap>>, SourceError> {
        self.config_map_of(namespace, name).await
    }

    async fn secret(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Secret>>, SourceError> {
        self.secret_of(namespace, name).await
    }

    async fn service_account_token(
        &self,
        request: &TokenRequest,
    ) -> Result<ServiceAccountToken, SourceError> {
        let Some(api) = &self.api else {
            let (namespace, name) = (&request.namespace, &request.service_account);
            return Err(no_client("serviceaccount token", namespace, name));
        };
        tokens::request(&api.client, request).await
    }

    async fn claim(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<PersistentVolumeClaim>>, SourceError> {
        let Some(api) = &self.api else {
            return Err(no_client("persistentvolumeclaim", namespace, name));
        };
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(api.client.clone(), namespace);
        asked("persistentvolumeclaim", namespace, name, || {
            claims.get_opt(name)
        })
        .await
    }

    async fn persistent_volume(
        &self,
        name: &str,
    ) -> Result<Option<Arc<PersistentVolume>>, SourceError> {
        let Some(api) = &self.api else {
            return Err(no_client("persistentvolume", "", name));
        };
        let volumes: Api<PersistentVolume> = Api::all(api.client.clone());
        asked("persistentvolume", "", name, || volumes.get_opt(name)).await
    }

    fn node(&self) -> Option<Arc<Node>> {
        self.node.node.load().as_ref().clone()
    }

    async fn patch_claim_status(
        &self,
        namespace: &str,
        name: &str,
        patch: &serde_json::Value,
    ) -> Result<(), SourceError> {
        let Some(api) = &self.api else {
            return Err(no_client("persistentvolumeclaim", namespace, name));
        };
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(api.client.clone(), namespace);
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        let patched = || async { claims.patch_status(name, &params, &patch).await.map(Some) };
        asked("persistentvolumeclaim", namespace, name, patched)
            .await
            .map(drop)
    }

    async fn until_node(&self, condition: &(dyn for<'a> Fn(&'a Node) -> bool + Send + Sync)) {
        self.node.until(condition).await;
    }

    async fn csi_driver(&self, name: &str) -> Result<Option<Arc<CSIDriver>>, SourceError> {
        let Some(api) = &self.api else {
            return Err(no_client("CSIDriver", "", name));
        };
        let drivers = &api.csi_drivers;
        if !drivers.has_synced() {
            let wait = tokio::time::timeout(DRIVERS_PATIENCE, drivers.wait_for_sync());
            if !wait.await.unwrap_or(false) {
                return Err(SourceError::NotSynced {
                    resource: "CSIDriver",
                });
            }
        }
        Ok(drivers.get("", name))
    }

    async fn volume_attachment(
        &self,
        name: &str,
    ) -> Result<Option<Arc<VolumeAttachment>>, SourceError> {
        let Some(api) = &self.api else {
            return Err(no_client("volumeattachment", "", name));
        };
        let attachments: Api<VolumeAttachment> = Api::all(api.client.clone());
        asked("volumeattachment", "", name, || attachments.get_opt(name)).await
    }

    async fn cluster_trust_bundle(
        &self,
        name: &str,
    ) -> Result<Option<Arc<ClusterTrustBundle>>, SourceError> {
        self.trust_bundles()?.get(name).await
    }

    async fn cluster_trust_bundles(
        &self,
        signer: &str,
    ) -> Result<Vec<Arc<ClusterTrustBundle>>, SourceError> {
        self.trust_bundles()?.of_signer(signer).await
    }

    async fn pod_certificate(&self, of: &PodCertificateKey) -> Result<PodCertificate, SourceError> {
        let certificates = self.api.as_ref().and_then(|api| api.certificates.as_ref());
        let certificates = certificates.ok_or_else(|| unsupported("PodCertificate projection"))?;
        Ok(certificates.certificate(of)?)
    }

    fn node_allocatable(&self) -> Result<BTreeMap<String, Quantity>, SourceError> {
        Ok(self.node.allocatable.load().as_ref().clone())
    }
}

/// The API server's authorizer of nodes learns by watches of its own what a pod needs, perhaps after this kubelet did: so long
/// it is asked again before a refusal counts. The pod's next round asks again after that.
const REFUSALS_MILLIS: [u64; 5] = [50, 100, 200, 400, 800];

/// What the API server says of an object that is asked for once.
async fn asked<K, F: Future<Output = Result<Option<K>, kube::Error>>>(
    resource: &'static str,
    namespace: &str,
    name: &str,
    ask: impl Fn() -> F,
) -> Result<Option<Arc<K>>, SourceError> {
    let mut patience = REFUSALS_MILLIS.into_iter().map(Duration::from_millis);
    loop {
        let error = match ask().await {
            Ok(found) => return Ok(found.map(Arc::new)),
            Err(error) => error,
        };
        let kube::Error::Api(status) = &error else {
            return Err(SourceError::Transport {
                resource,
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                source: Box::new(error),
            });
        };
        match patience.next().filter(|_| status.code == 403) {
            Some(wait) => tokio::time::sleep(wait).await,
            None => {
                return Err(SourceError::Refused {
                    code: status.code,
                    message: status.message.clone(),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests;
