//! Upstream's feature gates that decide something here, and the features that the node declares.
//!
//! Owns: the list of gates, and [`declared`], pure. Names and states: `pkg/features/kube_features.go`,
//! `k8s.io/component-helpers/nodedeclaredfeatures`, v1.36.

use component_base::features::{Feature, FeatureGates, Stage};
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
/// `crashLoopBackOff.maxContainerRestartPeriod` counts.
pub const CRASH_LOOP_BACK_OFF_MAX: &str = "KubeletCrashLoopBackOffMax";
/// The back-off of containers begins with a second and ends with a minute.
pub const REDUCE_CRASH_LOOP_BACK_OFF: &str = "ReduceDefaultCrashLoopBackOffDecay";

const fn beta(name: &'static str) -> Feature {
    Feature {
        name,
        default: true,
        stage: Stage::Beta,
    }
}

/// All that is known; others are named in a warning.
pub const FEATURES: &[Feature] = &[
    beta(NODE_DECLARED_FEATURES),
    beta(RESTART_ALL_CONTAINERS),
    beta(POD_LEVEL_RESIZE),
    beta(INIT_CONTAINER_RESIZE),
    beta(WEBSOCKETS),
    beta(ENSURE_SECRET_PULLED_IMAGES),
    beta(CRASH_LOOP_BACK_OFF_MAX),
    Feature {
        name: REDUCE_CRASH_LOOP_BACK_OFF,
        default: false,
        stage: Stage::Alpha,
    },
];

/// What the node declares, sorted: API server and scheduler ask it before they let a pod use one of them.
///
/// `UserNamespacesHostNetworkSupport` is not among them: its gate is off in 1.36, and the runtime cannot do it.
pub fn declared(gates: &FeatureGates) -> Vec<String> {
    if !gates.enabled(NODE_DECLARED_FEATURES) {
        return vec![];
    }
    let mut names: Vec<String> = [
        WEBSOCKETS,
        POD_LEVEL_RESIZE,
        INIT_CONTAINER_RESIZE,
        RESTART_ALL_CONTAINERS,
    ]
    .into_iter()
    .filter(|name| gates.enabled(name))
    .map(str::to_owned)
    .collect();
    names.sort();
    names
}

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
    ];
    wanted
        .into_iter()
        .filter(|(name, needed)| *needed && !declared.iter().any(|d| d == name))
        .map(|(name, _)| name)
        .collect()
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
        assert!(with(&[(NODE_DECLARED_FEATURES, "false")]).is_empty());
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
    }
}
