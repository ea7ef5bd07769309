//! What the tests of plugins share, in tree and in `extra-plugins` (feature `testing`): a scheduler that answers from lists, and numbers that look random but repeat.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use framework::{
    ApiWriteError, ApiWriter, BoxFuture, ClaimWriter, CycleState, DeviceCache, EventRecord, Handle,
    Listers, NodeInfo, NominatingInfo, Plugin, PodGroupCache, PodInfo, Status, VolumeCache,
    WaitingPod,
};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Node, PersistentVolume, PersistentVolumeClaim, Pod, PodCondition, ReplicationController,
    Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

/// A linear congruential generator (Knuth's MMIX constants).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// A scheduler without a cluster: what plugins ask for is in its fields, what they do is noted in them.
#[derive(Default)]
pub struct FakeHandle {
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    pub budgets: Vec<Arc<PodDisruptionBudget>>,
    pub services: Vec<Arc<Service>>,
    pub replica_sets: Vec<Arc<ReplicaSet>>,
    pub pods: Mutex<Vec<Arc<Pod>>>,
    pub nominated: Vec<Arc<PodInfo>>,
    /// Run for the filters and extensions that preemption asks for.
    pub plugins: Vec<Arc<dyn Plugin>>,
    pub api: Arc<FakeApi>,
    pub events: Mutex<Vec<String>>,
    pub activated: Mutex<Vec<String>>,
    pub volumes: VolumeCache,
    pub devices: DeviceCache,
    pub pod_groups: PodGroupCache,
    pub nodes: Mutex<Vec<Arc<Node>>>,
    /// Pods that a Permit plugin lets wait.
    pub waiting: Mutex<Vec<Arc<dyn WaitingPod>>>,
    /// Nodes that were touched.
    pub touched: Mutex<Vec<String>>,
    /// All sleep is over at once; else it never ends.
    pub time_is_up: bool,
    /// The time of day; `None`: the machine's.
    pub wall_time: Option<Timestamp>,
}

/// An API that takes everything, but the deletion of the pods in `undeletable`.
#[derive(Default)]
pub struct FakeApi {
    pub undeletable: Vec<String>,
    pub claims: Option<Box<dyn ClaimWriter>>,
    pub writes: Mutex<Vec<String>>,
}

impl FakeApi {
    fn note(&self, text: String) -> BoxFuture<'_, Result<(), ApiWriteError>> {
        self.writes.lock().unwrap().push(text);
        Box::pin(async { Ok(()) })
    }
}

impl FakeApi {
    /// What is written gets the version 100.
    fn versioned(&self, text: String) -> BoxFuture<'_, Result<String, ApiWriteError>> {
        self.writes.lock().unwrap().push(text);
        Box::pin(async { Ok("100".to_owned()) })
    }
}

/// A scheduler that knows these objects of storage (JSON with a `kind`).
pub fn handle_with(objects: &[serde_json::Value]) -> Arc<FakeHandle> {
    let handle = FakeHandle::default();
    for object in objects {
        let object = framework::testing::storage_object(object);
        handle.volumes.apply(None, Some(&object));
    }
    Arc::new(handle)
}

/// An empty scheduler, which knows of groups of pods.
pub fn handle() -> Arc<dyn Handle> {
    Arc::new(FakeHandle {
        pod_groups: PodGroupCache::new(true).with_topology_aware(true),
        ..FakeHandle::default()
    })
}

fn is<T>(
    meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    namespace: &str,
    name: &str,
    object: &Arc<T>,
) -> Option<Arc<T>> {
    (meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref() == Some(name))
        .then(|| Arc::clone(object))
}

impl ApiWriter for FakeApi {
    fn claims(&self) -> Option<&dyn ClaimWriter> {
        self.claims.as_deref()
    }
    fn bind<'a>(
        &'a self,
        pod: &'a Pod,
        node_name: &'a str,
    ) -> BoxFuture<'a, Result<(), ApiWriteError>> {
        self.note(format!(
            "bind {} {node_name}",
            component_helpers::pod::name(pod)
        ))
    }
    fn delete_pod<'a>(&'a self, pod: &'a Pod) -> BoxFuture<'a, Result<(), ApiWriteError>> {
        let name = component_helpers::pod::name(pod).to_owned();
        if self.undeletable.contains(&name) {
            return Box::pin(
                async move { Err(ApiWriteError::Failed(format!("cannot delete {name}"))) },
            );
        }
        self.note(format!("delete {name}"))
    }
    fn bind_volume<'a>(
        &'a self,
        volume: &'a PersistentVolume,
    ) -> BoxFuture<'a, Result<String, ApiWriteError>> {
        let claim = component_helpers::persistent_volume::claim_ref(volume);
        let claim = claim.and_then(|c| c.name.clone()).unwrap_or_default();
        let name = volume.metadata.name.clone().unwrap_or_default();
        self.versioned(format!("volume {name} to {claim}"))
    }
    fn annotate_claim<'a>(
        &'a self,
        claim: &'a PersistentVolumeClaim,
    ) -> BoxFuture<'a, Result<String, ApiWriteError>> {
        let name = claim.metadata.name.clone().unwrap_or_default();
        let annotations = claim.metadata.annotations.clone().unwrap_or_default();
        self.versioned(format!("claim {name} {annotations:?}"))
    }
    fn patch_pod_status<'a>(
        &'a self,
        pod: &'a Pod,
        condition: Option<PodCondition>,
        nominating: NominatingInfo,
    ) -> BoxFuture<'a, Result<(), ApiWriteError>> {
        let condition = condition.map_or(String::new(), |c| {
            format!(" {}={} {}", c.type_, c.status, c.reason.unwrap_or_default())
        });
        self.note(format!(
            "patch {}{condition} {nominating:?}",
            component_helpers::pod::name(pod)
        ))
    }
}

impl Listers for FakeHandle {
    fn namespace_labels(&self, namespace: &str) -> Arc<BTreeMap<String, String>> {
        Arc::new(self.namespaces.get(namespace).cloned().unwrap_or_default())
    }
    fn namespaces(&self) -> Vec<String> {
        self.namespaces.keys().cloned().collect()
    }
    fn namespaces_revision(&self) -> u64 {
        1
    }
    fn pod_disruption_budgets(&self) -> Vec<Arc<PodDisruptionBudget>> {
        self.budgets.clone()
    }
    fn services(&self, namespace: &str) -> Vec<Arc<Service>> {
        self.services
            .iter()
            .filter(|service| service.metadata.namespace.as_deref() == Some(namespace))
            .cloned()
            .collect()
    }
    fn services_revision(&self) -> u64 {
        1
    }
    fn replication_controller(
        &self,
        _namespace: &str,
        _name: &str,
    ) -> Option<Arc<ReplicationController>> {
        None
    }
    fn replica_set(&self, namespace: &str, name: &str) -> Option<Arc<ReplicaSet>> {
        self.replica_sets
            .iter()
            .find_map(|set| is(&set.metadata, namespace, name, set))
    }
    fn stateful_set(&self, _namespace: &str, _name: &str) -> Option<Arc<StatefulSet>> {
        None
    }
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.pods
            .lock()
            .unwrap()
            .iter()
            .find_map(|pod| is(&pod.metadata, namespace, name, pod))
    }
    fn node(&self, name: &str) -> Option<Arc<Node>> {
        let nodes = self.nodes.lock().unwrap();
        let found = nodes
            .iter()
            .find(|n| n.metadata.name.as_deref() == Some(name));
        found.cloned()
    }
    fn volumes(&self) -> &VolumeCache {
        &self.volumes
    }
    fn devices(&self) -> &DeviceCache {
        &self.devices
    }
    fn pod_groups(&self) -> &PodGroupCache {
        &self.pod_groups
    }
}

impl Handle for FakeHandle {
    fn profile_name(&self) -> &str {
        "default-scheduler"
    }
    fn listers(&self) -> &dyn Listers {
        self
    }
    fn api(&self) -> Arc<dyn ApiWriter> {
        Arc::clone(&self.api) as _
    }
    fn record(&self, event: EventRecord) {
        self.events
            .lock()
            .unwrap()
            .push(format!("{} {}", event.reason, event.note));
    }
    fn spawn(&self, mut future: BoxFuture<'static, ()>) {
        // Nothing here ever waits, so one poll carries a future to its end.
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(future.as_mut().poll(&mut context).is_ready());
    }
    fn now(&self) -> Instant {
        Instant::now()
    }
    fn wall_time(&self) -> Timestamp {
        self.wall_time.unwrap_or_else(Timestamp::now)
    }
    fn sleep(&self, _time: Duration) -> BoxFuture<'static, ()> {
        if self.time_is_up {
            Box::pin(async {})
        } else {
            Box::pin(std::future::pending())
        }
    }
    fn run_pre_filter_extension_add_pod(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        to_add: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Status {
        for extensions in self
            .plugins
            .iter()
            .filter_map(|plugin| plugin.as_pre_filter()?.extensions())
        {
            let status = extensions.add_pod(state, pod, to_add, node);
            if !status.is_success() {
                return status;
            }
        }
        Status::success()
    }
    fn run_pre_filter_extension_remove_pod(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        to_remove: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Status {
        for extensions in self
            .plugins
            .iter()
            .filter_map(|plugin| plugin.as_pre_filter()?.extensions())
        {
            let status = extensions.remove_pod(state, pod, to_remove, node);
            if !status.is_success() {
                return status;
            }
        }
        Status::success()
    }
    fn run_filter_plugins(
        &self,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Status {
        let mut statuses = self
            .plugins
            .iter()
            .filter_map(|plugin| Some((plugin.name(), plugin.as_filter()?)));
        let rejected = statuses.find_map(|(name, filter)| {
            let status = filter.filter(state, pod, node);
            (!status.is_success()).then(|| status.by(name))
        });
        rejected.unwrap_or_default()
    }
    fn run_filter_plugins_with_nominated_pods(
        &self,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Status {
        self.run_filter_plugins(state, pod, node)
    }
    fn nominated_pods_for_node(&self, node_name: &str) -> Vec<Arc<PodInfo>> {
        self.nominated
            .iter()
            .filter(|pod| pod.nominated_node_name() == node_name)
            .cloned()
            .collect()
    }
    fn add_nominated_pod(&self, _pod: &Arc<PodInfo>, _nominating: &NominatingInfo) {}
    fn delete_nominated_pod_if_exists(&self, _pod: &Pod) {}
    fn waiting_pod(&self, uid: &str) -> Option<Arc<dyn WaitingPod>> {
        let waiting = self.waiting.lock().unwrap();
        waiting.iter().find(|pod| &*pod.pod().uid == uid).cloned()
    }
    fn waiting_pods(&self) -> Vec<Arc<dyn WaitingPod>> {
        self.waiting.lock().unwrap().clone()
    }
    fn nominated_pods(&self) -> Vec<Arc<PodInfo>> {
        self.nominated.clone()
    }
    fn touch_node(&self, node_name: &str) {
        self.touched.lock().unwrap().push(node_name.to_owned());
    }
    fn reject_waiting_pod(&self, _uid: &str) -> bool {
        false
    }
    fn cancel_pod_in_pre_bind(&self, _uid: &str, _reason: &str) -> bool {
        false
    }
    fn activate(&self, pods: Vec<Arc<Pod>>) {
        self.activated.lock().unwrap().extend(
            pods.iter()
                .map(|pod| component_helpers::pod::name(pod).to_owned()),
        );
    }
}
