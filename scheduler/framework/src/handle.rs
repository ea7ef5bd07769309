//! [`Handle`]: what a plugin may ask of the scheduler that runs it.
//!
//! Upstream: kube-scheduler framework/interface.go (Handle), v1.36. The API is behind [`ApiWriter`] and [`Listers`]: no client type appears here.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Node, PersistentVolume, PersistentVolumeClaim, Pod, PodCondition,
    PodExtendedResourceClaimStatus, ReplicationController, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;

use crate::cycle_state::CycleState;
use crate::devices::DeviceCache;
use crate::extender::Extender;
use crate::node_info::NodeInfo;
use crate::plugin::{BoxFuture, NominatingInfo, Plugin};
use crate::pod_groups::PodGroupCache;
use crate::pod_info::PodInfo;
use crate::status::Status;
use crate::volumes::VolumeCache;

/// Cached reads. All answers may be stale.
pub trait Listers: Send + Sync {
    /// A namespace's labels; empty when it is unknown.
    fn namespace_labels(&self, namespace: &str) -> Arc<BTreeMap<String, String>>;
    /// All namespaces.
    fn namespaces(&self) -> Vec<String>;
    /// Changes whenever a namespace or its labels do.
    fn namespaces_revision(&self) -> u64;
    /// All disruption budgets.
    fn pod_disruption_budgets(&self) -> Vec<Arc<PodDisruptionBudget>>;
    /// The services of a namespace.
    fn services(&self, namespace: &str) -> Vec<Arc<Service>>;
    /// Changes whenever a service does.
    fn services_revision(&self) -> u64;
    /// A replication controller.
    fn replication_controller(
        &self,
        namespace: &str,
        name: &str,
    ) -> Option<Arc<ReplicationController>>;
    /// A replica set.
    fn replica_set(&self, namespace: &str, name: &str) -> Option<Arc<ReplicaSet>>;
    /// A stateful set.
    fn stateful_set(&self, namespace: &str, name: &str) -> Option<Arc<StatefulSet>>;
    /// The pod as last seen from the API server.
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>>;
    /// The node as last seen from the API server.
    fn node(&self, name: &str) -> Option<Arc<Node>>;
    /// Volumes, claims and classes, with what is assumed of them.
    fn volumes(&self) -> &VolumeCache;
    /// Devices, claims to them and their classes, with what is assumed of them.
    fn devices(&self) -> &DeviceCache;
    /// Groups of pods, with what is assumed of them. By default there are none: the gate `GenericWorkload` is off.
    fn pod_groups(&self) -> &PodGroupCache {
        static NONE: LazyLock<PodGroupCache> = LazyLock::new(PodGroupCache::default);
        &NONE
    }
}

/// A write that the API server did not take.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiWriteError {
    /// The object is gone.
    #[error("{0}")]
    NotFound(String),
    /// The object changed, or is not in a state that allows the write.
    #[error("{0}")]
    Conflict(String),
    /// Any other failure; a retry may help.
    #[error("{0}")]
    Failed(String),
}

/// Writes of ResourceClaims. What is written is answered as it is now.
pub trait ClaimWriter: Send + Sync {
    /// Makes a claim.
    fn create<'a>(
        &'a self,
        claim: &'a ResourceClaim,
    ) -> BoxFuture<'a, Result<ResourceClaim, ApiWriteError>>;
    /// The claim as the API server has it now.
    fn get<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<ResourceClaim, ApiWriteError>>;
    /// Writes the finalizers as given, if the claim is still of the version given.
    fn write_finalizers<'a>(
        &'a self,
        claim: &'a ResourceClaim,
    ) -> BoxFuture<'a, Result<ResourceClaim, ApiWriteError>>;
    /// Writes allocation, reservations and devices of the status as given, if the claim is still of the version given.
    fn write_status<'a>(
        &'a self,
        claim: &'a ResourceClaim,
    ) -> BoxFuture<'a, Result<ResourceClaim, ApiWriteError>>;
    /// Takes the reservation for the one with this UID off the claim, whatever its version.
    fn unreserve<'a>(
        &'a self,
        claim: &'a ResourceClaim,
        uid: &'a str,
    ) -> BoxFuture<'a, Result<ResourceClaim, ApiWriteError>>;
    /// Deletes a claim (by UID). Deleting what is gone is a success.
    fn delete<'a>(&'a self, claim: &'a ResourceClaim) -> BoxFuture<'a, Result<(), ApiWriteError>>;
    /// Writes `status.extendedResourceClaimStatus` of a pod.
    fn write_extended_status<'a>(
        &'a self,
        pod: &'a Pod,
        status: &'a PodExtendedResourceClaimStatus,
    ) -> BoxFuture<'a, Result<(), ApiWriteError>>;
}

/// Writes to the API.
pub trait ApiWriter: Send + Sync {
    /// Writes ResourceClaims; `None` where there are none.
    fn claims(&self) -> Option<&dyn ClaimWriter> {
        None
    }
    /// Sets a condition of a group of pods. By default nothing is written.
    fn patch_pod_group<'a>(
        &'a self,
        group: &'a PodGroup,
        condition: Condition,
    ) -> BoxFuture<'a, Result<(), ApiWriteError>> {
        let _ = (group, condition);
        Box::pin(async { Ok(()) })
    }
    /// Posts a Binding.
    fn bind<'a>(
        &'a self,
        pod: &'a Pod,
        node_name: &'a str,
    ) -> BoxFuture<'a, Result<(), ApiWriteError>>;
    /// Deletes a pod (by UID). Deleting what is gone is a [`ApiWriteError::NotFound`].
    fn delete_pod<'a>(&'a self, pod: &'a Pod) -> BoxFuture<'a, Result<(), ApiWriteError>>;
    /// Writes `spec.claimRef` and the annotations of a volume as given, if it is still of the version given; the new version.
    fn bind_volume<'a>(
        &'a self,
        volume: &'a PersistentVolume,
    ) -> BoxFuture<'a, Result<String, ApiWriteError>>;
    /// Writes the annotations of a claim as given, if it is still of the version given; the new version.
    fn annotate_claim<'a>(
        &'a self,
        claim: &'a PersistentVolumeClaim,
    ) -> BoxFuture<'a, Result<String, ApiWriteError>>;
    /// Patches `/status`: sets the condition (if it differs) and the nomination. Does nothing when nothing would change.
    fn patch_pod_status<'a>(
        &'a self,
        pod: &'a Pod,
        condition: Option<PodCondition>,
        nominating: NominatingInfo,
    ) -> BoxFuture<'a, Result<(), ApiWriteError>>;
}

/// An events.k8s.io/v1 Event to be.
#[derive(Debug, Clone)]
pub struct EventRecord {
    /// The pod it is about.
    pub regarding: Arc<Pod>,
    /// A second pod involved.
    pub related: Option<Arc<Pod>>,
    /// A warning, or normal?
    pub warning: bool,
    /// `Scheduled`, `FailedScheduling`, `Preempted`, …
    pub reason: &'static str,
    /// `Binding`, `Scheduling`, `Preempting`, …
    pub action: &'static str,
    /// The text.
    pub note: String,
}

/// Where to read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchFrom {
    /// The API server, with the scheduler's own credentials: a path, as `/apis/metrics.k8s.io/v1beta1/nodes`.
    ApiServer(String),
    /// Any URL, `http` or `https`.
    Url {
        /// The URL.
        url: String,
        /// Sent as a bearer token; empty for none.
        token: String,
        /// Whether the server's certificate is taken unseen.
        insecure_skip_verify: bool,
    },
}

/// A question for JSON by HTTP GET.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// Where.
    pub from: FetchFrom,
    /// How long the answer may take.
    pub timeout: Duration,
}

/// Why there is no answer; the same question may be answered later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FetchError(pub String);

/// A pod that a Permit plugin made wait.
pub trait WaitingPod: Send + Sync {
    /// The pod.
    fn pod(&self) -> &Arc<PodInfo>;
    /// Permit plugins that have not allowed it yet.
    fn pending_plugins(&self) -> Vec<&'static str>;
    /// A plugin allows it; when it was the last, binding goes on.
    fn allow(&self, plugin: &'static str);
    /// Declares it unschedulable; false when it was decided already.
    fn reject(&self, plugin: &'static str, message: &str) -> bool;
    /// Ends its wait to make room for another; unlike `reject` it may be tried again at once.
    fn preempt(&self, plugin: &'static str, message: &str) -> bool;
}

/// The scheduler, as its plugins see it.
pub trait Handle: Send + Sync {
    /// The profile (its `schedulerName`).
    fn profile_name(&self) -> &str;
    /// Cached reads.
    fn listers(&self) -> &dyn Listers;
    /// Writes.
    fn api(&self) -> Arc<dyn ApiWriter>;
    /// Records an event; never blocks.
    fn record(&self, event: EventRecord);
    /// Runs a future on the scheduler's runtime; it ends with the scheduler.
    fn spawn(&self, future: BoxFuture<'static, ()>);
    /// What time it is, by the clock that [`Handle::sleep`] goes by.
    fn now(&self) -> Instant;
    /// The time of day, as objects have it. May step, unlike [`Handle::now`].
    fn wall_time(&self) -> Timestamp;
    /// Ready after this time.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;

    /// Runs the profile's PreFilter `add_pod` extensions.
    fn run_pre_filter_extension_add_pod(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        to_add: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Status;
    /// Runs the profile's PreFilter `remove_pod` extensions.
    fn run_pre_filter_extension_remove_pod(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        to_remove: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Status;
    /// Runs the profile's filters on one node.
    fn run_filter_plugins(&self, state: &CycleState, pod: &Arc<PodInfo>, node: &NodeInfo)
    -> Status;
    /// The same, also as if pods nominated to the node with equal or higher priority were there.
    fn run_filter_plugins_with_nominated_pods(
        &self,
        state: &CycleState,
        pod: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Status;

    /// Reads JSON by HTTP, beside the scheduling cycle: for plugins whose knowledge is in no object that can be watched.
    fn fetch(&self, fetch: Fetch) -> BoxFuture<'static, Result<serde_json::Value, FetchError>> {
        let _ = fetch;
        Box::pin(async { Err(FetchError("this scheduler has no network".to_owned())) })
    }
    /// Something that a plugin judges the node by has changed, though not the node or its pods: what is kept about it is judged again.
    fn touch_node(&self, node_name: &str) {
        let _ = node_name;
    }

    /// All nominated pods.
    fn nominated_pods(&self) -> Vec<Arc<PodInfo>> {
        Vec::new()
    }
    /// Pods nominated to a node.
    fn nominated_pods_for_node(&self, node_name: &str) -> Vec<Arc<PodInfo>>;
    /// Nominates a pod; `Noop` keeps what its status says.
    fn add_nominated_pod(&self, pod: &Arc<PodInfo>, nominating: &NominatingInfo);
    /// Forgets a nomination.
    fn delete_nominated_pod_if_exists(&self, pod: &Pod);

    /// The profile's extenders, in the order they are asked.
    fn extenders(&self) -> Vec<Arc<dyn Extender>> {
        Vec::new()
    }

    /// A waiting pod by UID.
    fn waiting_pod(&self, uid: &str) -> Option<Arc<dyn WaitingPod>>;
    /// All waiting pods.
    fn waiting_pods(&self) -> Vec<Arc<dyn WaitingPod>>;
    /// Rejects a waiting pod; false when it does not wait.
    fn reject_waiting_pod(&self, uid: &str) -> bool;
    /// Stops the binding cycle of a pod that is in PreBind; false when it is not, or is past the point.
    fn cancel_pod_in_pre_bind(&self, uid: &str, reason: &str) -> bool;
    /// Counts a preemption for the metrics: `None` an attempt, a number the victims chosen.
    fn observe_preemption(&self, victims: Option<usize>) {
        let _ = victims;
    }
    /// Counts a failure of volume scheduling for the metrics, by its stage: `predicate`, `assume`, `bind`.
    fn observe_volume_failure(&self, stage: &'static str) {
        let _ = stage;
    }
    /// Counts, for the metrics, how long a pod waited for devices to be made ready, for each driver of a device it has; and each device that had to be.
    fn observe_binding_conditions(
        &self,
        status: &'static str,
        waited: Duration,
        drivers: &[&str],
        conditional: &[&str],
    ) {
        let _ = (status, waited, drivers, conditional);
    }
    /// Counts a claim made for extended resources for the metrics.
    fn observe_claim_creation(&self, succeeded: bool) {
        let _ = succeeded;
    }
    /// Moves pods to the active queue whatever they waited for.
    fn activate(&self, pods: Vec<Arc<Pod>>);
}

/// Why a plugin could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    /// Its arguments do not decode.
    #[error("decoding args of plugin {plugin:?}: {message}")]
    Decode {
        /// The plugin.
        plugin: &'static str,
        /// What is wrong, with the field.
        message: String,
    },
    /// Its arguments decode but do not make sense; every problem with its field path.
    #[error("invalid args of plugin {plugin:?}: [{}]", problems.join(", "))]
    Invalid {
        /// The plugin.
        plugin: &'static str,
        /// `field.path: Invalid value: …`
        problems: Vec<String>,
    },
}

impl PluginError {
    /// Arguments that decode and do not make sense, for one reason: `field.path: Invalid value: …`.
    pub fn invalid(plugin: &'static str, problem: impl Into<String>) -> Self {
        PluginError::Invalid {
            plugin,
            problems: vec![problem.into()],
        }
    }
}

/// Makes a plugin from its arguments (JSON, without `apiVersion` and `kind`; `None`: the defaults).
pub type PluginFactory = fn(
    args: Option<&serde_json::Value>,
    handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError>;

/// One line of a plugin registry.
#[derive(Clone)]
pub struct Registration {
    /// The plugin's name.
    pub name: &'static str,
    /// The weight in the default profile; 0 where it does not score.
    pub default_weight: i64,
    /// In the default profile? (In registry order, which is the order of the default `multiPoint` list.)
    pub default_enabled: bool,
    /// Makes it.
    pub factory: PluginFactory,
}
