//! Upstream's feature gates that decide something here, and the features that the node declares.
//!
//! Owns: the list of gates, and [`declared`], pure. Names and states: `pkg/features/kube_features.go`,
//! `k8s.io/component-helpers/nodedeclaredfeatures`, v1.37.

use component_base::features::{Feature, FeatureGates};
use component_helpers::quantity::Amount;
use k8s_openapi::api::core::v1::Pod;

use crate::pod;

/// The node says in `status.declaredFeatures` what it can do.
pub const NODE_DECLARED_FEATURES: &str = "NodeDeclaredFeatures";
/// Container restart rules may restart the whole pod in place.
pub const RESTART_ALL_CONTAINERS: &str = "RestartAllContainersOnContainerExits";
/// `spec.resources` may change in place.
pub const POD_LEVEL_RESIZE: &str = "InPlacePodLevelResourcesVerticalScaling";
/// Resources of init containers that are no sidecars may change in place.
pub const INIT_CONTAINER_RESIZE: &str = "InPlacePodVerticalScalingInitContainers";
/// The API server may pass WebSockets on as they are.
pub const WEBSOCKETS: &str = "ExtendWebSocketsToKubelet";

/// A private image is for the pods that can open it.
pub const ENSURE_SECRET_PULLED_IMAGES: &str = "KubeletEnsureSecretPulledImages";
/// Credential providers may be given tokens of the pods' service accounts.
pub const ACCOUNT_TOKENS_FOR_CREDENTIAL_PROVIDERS: &str =
    "KubeletServiceAccountTokenForCredentialProviders";
/// `crashLoopBackOff.maxContainerRestartPeriod` counts.
pub const CRASH_LOOP_BACK_OFF_MAX: &str = "KubeletCrashLoopBackOffMax";
/// The back-off of containers begins with a second and ends with a minute.
pub const REDUCE_CRASH_LOOP_BACK_OFF: &str = "ReduceDefaultCrashLoopBackOffDecay";

/// Projected volumes may hold the anchors of ClusterTrustBundles.
pub const CLUSTER_TRUST_BUNDLE_PROJECTION: &str = "ClusterTrustBundleProjection";
/// Projected volumes may hold a certificate of the pod's own.
pub const POD_CERTIFICATE_REQUEST: &str = "PodCertificateRequest";

/// Agents of the node may ask for its pods on a socket.
pub const PODS_API: &str = "PodsAPI";

/// Memory is protected and made dear as the configuration asks (cgroup v2).
pub const MEMORY_QOS: &str = "MemoryQoS";

/// Pods end before the machine does.
pub const GRACEFUL_NODE_SHUTDOWN: &str = "GracefulNodeShutdown";
/// They do so in the order of their priorities, and when is told.
pub const GRACEFUL_NODE_SHUTDOWN_BASED_ON_POD_PRIORITY: &str =
    "GracefulNodeShutdownBasedOnPodPriority";

/// Statuses of pods tell how the devices of their containers are.
pub const RESOURCE_HEALTH_STATUS: &str = "ResourceHealthStatus";

/// They tell what a driver says of them, too.
pub const RESOURCE_HEALTH_STATUS_MESSAGE: &str = "ResourceHealthStatusMessage";
/// Claims may say that the driver of their devices needs not be called.
pub const DRA_OPTIONAL_NODE_OPERATIONS: &str = "DRAOptionalNodeOperations";
/// Alpha options of the CPU manager's policy may be used.
pub const CPU_MANAGER_ALPHA_OPTIONS: &str = "CPUManagerPolicyAlphaOptions";
/// Beta options of the CPU manager's policy may be used.
pub const CPU_MANAGER_BETA_OPTIONS: &str = "CPUManagerPolicyBetaOptions";

/// Containers may name the signal that stops them, and statuses tell it.
pub const CONTAINER_STOP_SIGNALS: &str = "ContainerStopSignals";

/// All that is known; others are named in a warning.
pub const FEATURES: &[Feature] = &[
    Feature::locked(NODE_DECLARED_FEATURES),
    Feature::beta(RESTART_ALL_CONTAINERS),
    Feature::beta(POD_LEVEL_RESIZE),
    Feature::locked(INIT_CONTAINER_RESIZE),
    Feature::beta(WEBSOCKETS),
    Feature::beta(ENSURE_SECRET_PULLED_IMAGES),
    Feature::beta(ACCOUNT_TOKENS_FOR_CREDENTIAL_PROVIDERS),
    Feature::beta(CRASH_LOOP_BACK_OFF_MAX),
    Feature::alpha(REDUCE_CRASH_LOOP_BACK_OFF),
    Feature::ga(CLUSTER_TRUST_BUNDLE_PROJECTION),
    Feature::ga(POD_CERTIFICATE_REQUEST),
    Feature::beta(PODS_API),
    Feature::beta(MEMORY_QOS),
    Feature::beta(RESOURCE_HEALTH_STATUS),
    Feature::beta(RESOURCE_HEALTH_STATUS_MESSAGE),
    Feature::alpha(DRA_OPTIONAL_NODE_OPERATIONS),
    Feature::alpha(CPU_MANAGER_ALPHA_OPTIONS),
    Feature::beta(CPU_MANAGER_BETA_OPTIONS),
    Feature::alpha(CONTAINER_STOP_SIGNALS),
    Feature::beta(GRACEFUL_NODE_SHUTDOWN),
    Feature::beta(GRACEFUL_NODE_SHUTDOWN_BASED_ON_POD_PRIORITY),
];

/// What the node declares, sorted: API server and scheduler ask it before they let a pod use one of them.
///
/// Not among them, for their gates are off in 1.37 and nothing here does it: `UserNamespacesHostNetworkSupport`,
/// `VolumeBindMountOptions`, `InPlacePodVerticalScalingMemoryBackedVolumes`, `DRANodeAllocatableResources`.
pub fn declared(gates: &FeatureGates) -> Vec<String> {
    let mut names: Vec<String> = [
        WEBSOCKETS,
        POD_LEVEL_RESIZE,
        INIT_CONTAINER_RESIZE,
        RESTART_ALL_CONTAINERS,
        DRA_OPTIONAL_NODE_OPERATIONS,
    ]
    .into_iter()
    .filter(|name| gates.enabled(name))
    .map(str::to_owned)
    .collect();
    names.sort();
    names
}

/// Mounts of containers carry options of their own.
const BIND_MOUNT_OPTIONS: &str = "VolumeBindMountOptions";
/// The size of a volume in memory may change in place.
const MEMORY_VOLUME_RESIZE: &str = "InPlacePodVerticalScalingMemoryBackedVolumes";

/// What the pod needs of the node and the node does not declare.
pub fn missing(pod: &Pod, declared: &[String]) -> Vec<&'static str> {
    let spec = pod.spec.as_ref();
    let wanted = [
        (
            RESTART_ALL_CONTAINERS,
            pod::all_containers_could_restart(pod),
        ),
        (
            "UserNamespacesHostNetworkSupport",
            pod::is_host_network(pod) && spec.and_then(|s| s.host_users) == Some(false),
        ),
        (BIND_MOUNT_OPTIONS, has_bind_mount_options(pod)),
    ];
    wanted
        .into_iter()
        .filter(|(name, needed)| *needed && !declared.iter().any(|d| d == name))
        .map(|(name, _)| name)
        .collect()
}

/// What the change of a pod needs of the node and the node does not declare.
pub fn missing_for_update(old: &Pod, new: &Pod, declared: &[String]) -> Vec<&'static str> {
    let of_pod = |p: &Pod| p.spec.as_ref().and_then(|s| s.resources.clone());
    let of_init = |p: &Pod| -> Vec<_> {
        pod::init_containers(p)
            .iter()
            .filter(|c| !pod::is_restartable_init(c))
            .map(|c| c.resources.clone())
            .collect()
    };
    let wanted = [
        (POD_LEVEL_RESIZE, of_pod(old) != of_pod(new)),
        (INIT_CONTAINER_RESIZE, of_init(old) != of_init(new)),
        (MEMORY_VOLUME_RESIZE, memory_volumes_differ(old, new)),
    ];
    wanted
        .into_iter()
        .filter(|(name, needed)| *needed && !declared.iter().any(|d| d == name))
        .map(|(name, _)| name)
        .collect()
}

fn has_bind_mount_options(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let containers = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .flat_map(|c| c.volume_mounts.iter().flatten());
    let ephemeral = spec
        .ephemeral_containers
        .iter()
        .flatten()
        .flat_map(|c| c.volume_mounts.iter().flatten());
    containers
        .chain(ephemeral)
        .any(|mount| mount.bind_mount_options.iter().flatten().next().is_some())
}

/// The size limit of a volume in memory is another one. What may not change at all is for the API's validation.
fn memory_volumes_differ(old: &Pod, new: &Pod) -> bool {
    let limits = |pod: &Pod| -> Vec<(String, Option<String>)> {
        let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        volumes
            .map(|volume| {
                let in_memory = volume
                    .empty_dir
                    .as_ref()
                    .filter(|dir| dir.medium.as_deref() == Some("Memory"));
                let limit = in_memory.and_then(|dir| dir.size_limit.as_ref());
                (volume.name.clone(), limit.map(|limit| limit.0.clone()))
            })
            .collect()
    };
    let (old, new) = (limits(old), limits(new));
    let amount = |text: &str| text.parse::<Amount>().ok();
    old.len() == new.len()
        && old.iter().zip(&new).any(|((old_name, old), (name, new))| {
            let (Some(old), Some(new)) = (old, new) else {
                return false;
            };
            old_name == name && amount(old) != amount(new)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_declares_what_its_gates_say() {
        let with = |settings: &[(&str, &str)]| {
            let mut gates = FeatureGates::new(FEATURES);
            let settings = settings
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect();
            gates.set(&settings).unwrap();
            declared(&gates)
        };
        let all = [
            WEBSOCKETS,
            POD_LEVEL_RESIZE,
            INIT_CONTAINER_RESIZE,
            RESTART_ALL_CONTAINERS,
        ];
        assert_eq!(with(&[]), all);
        assert_eq!(with(&[(RESTART_ALL_CONTAINERS, "false")]), all[..3]);
    }

    #[test]
    fn pods_that_need_what_is_not_there() {
        let pod = |spec: serde_json::Value| -> Pod {
            serde_json::from_value(serde_json::json!({ "spec": spec })).unwrap()
        };
        let rule = serde_json::json!({"containers": [{"name": "c", "restartPolicy": "Never",
            "restartPolicyRules": [{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]}]});
        assert_eq!(missing(&pod(rule.clone()), &[]), [RESTART_ALL_CONTAINERS]);
        assert!(missing(&pod(rule), &[RESTART_ALL_CONTAINERS.to_owned()]).is_empty());
        let plain = serde_json::json!({"containers": [], "hostNetwork": true});
        assert!(missing(&pod(plain), &[]).is_empty());
        let host = serde_json::json!({"containers": [], "hostNetwork": true, "hostUsers": false});
        assert_eq!(
            missing(&pod(host), &[]),
            ["UserNamespacesHostNetworkSupport"]
        );
        for kind in ["containers", "initContainers", "ephemeralContainers"] {
            let mut bound = serde_json::json!({"containers": []});
            bound[kind] = serde_json::json!([{"name": "c",
                "volumeMounts": [{"name": "v", "mountPath": "/v", "bindMountOptions": ["noexec"]}]}]);
            assert_eq!(missing(&pod(bound), &[]), [BIND_MOUNT_OPTIONS], "{kind}");
        }
        let tmpfs = |limit: &str, medium: &str| {
            pod(serde_json::json!({"containers": [],
                "volumes": [{"name": "v", "emptyDir": {"medium": medium, "sizeLimit": limit}}]}))
        };
        let change = |old: Pod, new: Pod| missing_for_update(&old, &new, &[]);
        let grown = change(tmpfs("1Mi", "Memory"), tmpfs("2Mi", "Memory"));
        assert_eq!(grown, [MEMORY_VOLUME_RESIZE]);
        assert!(change(tmpfs("1Mi", "Memory"), tmpfs("1024Ki", "Memory")).is_empty());
        assert!(change(tmpfs("1Mi", ""), tmpfs("2Mi", "")).is_empty());
    }
}
