//! Small readers over the Pod API object that every part of the kubelet shares.
//!
//! Owns: names of annotations and labels, where a pod came from (API server, file, HTTP), lookup of
//! containers by name. Never changes a pod. Upstream: `pkg/kubelet/types`, `pkg/api/v1/pod`, v1.36.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{
    Container, ContainerRestartRule, ContainerStatus, EphemeralContainer, Pod,
};

/// Where a pod was read from: `api`, `file` or `http`.
pub const CONFIG_SOURCE_ANNOTATION: &str = "kubernetes.io/config.source";
/// On a mirror pod: the hash of the static pod it mirrors.
pub const CONFIG_MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// The hash of the source of a static pod.
pub const CONFIG_HASH_ANNOTATION: &str = "kubernetes.io/config.hash";
/// When the kubelet first saw a static pod.
pub const CONFIG_FIRST_SEEN_ANNOTATION: &str = "kubernetes.io/config.seen";

/// Labels and annotations on sandboxes and containers, by which a restarted kubelet finds its pods again.
pub mod label {
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
    /// What a container began with of the resources whose change restarts it. Ours.
    pub const CONTAINER_RESTARTING_RESOURCES: &str = "gantry.io/container.restartingResources";
    pub const CONTAINER_RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    pub const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
    pub const TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    pub const CONTAINER_PRE_STOP_HANDLER: &str = "io.kubernetes.container.preStopHandler";
    pub const CONTAINER_PORTS: &str = "io.kubernetes.container.ports";
    pub const POD_DELETION_GRACE_PERIOD: &str = "io.kubernetes.pod.deletionGracePeriod";
    pub const POD_TERMINATION_GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
}

/// The UID under which the kubelet works on a pod; empty only for a pod never given one.
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

/// Whether a volume of it may be of a driver that has yet to come.
pub fn may_need_driver(pod: &Pod) -> bool {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let may = |v: &k8s_openapi::api::core::v1::Volume| {
        v.csi.is_some() || v.ephemeral.is_some() || v.persistent_volume_claim.is_some()
    };
    volumes.into_iter().any(may)
}

/// `name_namespace`: what links a static pod and its mirror.
pub fn full_name(pod: &Pod) -> String {
    format!("{}_{}", name(pod), namespace(pod))
}

/// `name_namespace(uid)`, as upstream words pods in messages.
pub fn format(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

pub fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(key))
        .map(String::as_str)
}

/// A pod that came from a file or an HTTP address and not from the API server.
pub fn is_static(pod: &Pod) -> bool {
    matches!(annotation(pod, CONFIG_SOURCE_ANNOTATION), Some(source) if source != "api")
}

/// The API server's image of a static pod.
pub fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, CONFIG_MIRROR_ANNOTATION).is_some()
}

/// The annotation that links a mirror pod to the version of the static pod it shows.
pub fn mirror_hash(pod: &Pod) -> Option<&str> {
    annotation(pod, CONFIG_MIRROR_ANNOTATION)
}

pub fn config_hash(pod: &Pod) -> Option<&str> {
    annotation(pod, CONFIG_HASH_ANNOTATION)
}

pub fn containers(pod: &Pod) -> &[Container] {
    pod.spec
        .as_ref()
        .map(|s| s.containers.as_slice())
        .unwrap_or_default()
}

pub fn init_containers(pod: &Pod) -> &[Container] {
    pod.spec
        .as_ref()
        .and_then(|s| s.init_containers.as_deref())
        .unwrap_or_default()
}

pub fn ephemeral_containers(pod: &Pod) -> &[EphemeralContainer] {
    pod.spec
        .as_ref()
        .and_then(|s| s.ephemeral_containers.as_deref())
        .unwrap_or_default()
}

/// The part of an ephemeral container that it shares with every other container.
pub fn ephemeral_as_container(c: &EphemeralContainer) -> Container {
    Container {
        name: c.name.clone(),
        image: c.image.clone(),
        image_pull_policy: c.image_pull_policy.clone(),
        command: c.command.clone(),
        args: c.args.clone(),
        working_dir: c.working_dir.clone(),
        env: c.env.clone(),
        env_from: c.env_from.clone(),
        resources: c.resources.clone(),
        volume_mounts: c.volume_mounts.clone(),
        volume_devices: c.volume_devices.clone(),
        security_context: c.security_context.clone(),
        stdin: c.stdin,
        stdin_once: c.stdin_once,
        tty: c.tty,
        termination_message_path: c.termination_message_path.clone(),
        termination_message_policy: c.termination_message_policy.clone(),
        lifecycle: c.lifecycle.clone(),
        liveness_probe: c.liveness_probe.clone(),
        readiness_probe: c.readiness_probe.clone(),
        startup_probe: c.startup_probe.clone(),
        ports: c.ports.clone(),
        restart_policy: c.restart_policy.clone(),
        restart_policy_rules: c.restart_policy_rules.clone(),
        resize_policy: c.resize_policy.clone(),
    }
}

/// What part of the pod a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ContainerKind {
    Init,
    /// An init container with `restartPolicy: Always`.
    Sidecar,
    Regular,
    Ephemeral,
}

impl ContainerKind {
    /// The value of the `container_type` label of upstream's metrics.
    pub fn metric_label(self) -> &'static str {
        match self {
            ContainerKind::Init | ContainerKind::Sidecar => "init_container",
            ContainerKind::Regular => "container",
            ContainerKind::Ephemeral => "ephemeral_container",
        }
    }
}

/// The container of that name, whatever its kind.
pub fn find_container<'a>(pod: &'a Pod, name: &str) -> Option<(Cow<'a, Container>, ContainerKind)> {
    if let Some(c) = containers(pod).iter().find(|c| c.name == name) {
        return Some((Cow::Borrowed(c), ContainerKind::Regular));
    }
    if let Some(c) = init_containers(pod).iter().find(|c| c.name == name) {
        let kind = if is_restartable_init(c) {
            ContainerKind::Sidecar
        } else {
            ContainerKind::Init
        };
        return Some((Cow::Borrowed(c), kind));
    }
    ephemeral_containers(pod)
        .iter()
        .find(|c| c.name == name)
        .map(|c| {
            (
                Cow::Owned(ephemeral_as_container(c)),
                ContainerKind::Ephemeral,
            )
        })
}

/// The `fieldPath` of events about one container, as `kubectl describe` shows it.
pub fn field_path(pod: &Pod, container: &str) -> Option<String> {
    let field = match find_container(pod, container)?.1 {
        ContainerKind::Regular => "containers",
        ContainerKind::Init | ContainerKind::Sidecar => "initContainers",
        ContainerKind::Ephemeral => "ephemeralContainers",
    };
    Some(format!("spec.{field}{{{container}}}"))
}

/// A sidecar: an init container with `restartPolicy: Always`.
pub fn is_restartable_init(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub fn has_sidecar(pod: &Pod) -> bool {
    init_containers(pod).iter().any(is_restartable_init)
}

/// `Always`, `OnFailure` or `Never`; upstream's default is `Always`.
pub fn restart_policy(pod: &Pod) -> &str {
    pod.spec
        .as_ref()
        .and_then(|s| s.restart_policy.as_deref())
        .unwrap_or("Always")
}

pub fn is_host_network(pod: &Pod) -> bool {
    pod.spec
        .as_ref()
        .and_then(|s| s.host_network)
        .unwrap_or(false)
}

pub fn is_deleted(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

pub fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .unwrap_or_default()
}

/// `Succeeded` or `Failed`.
pub fn is_terminal_phase(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

/// The action of a restart rule that starts the whole pod over.
pub const RESTART_ALL_CONTAINERS: &str = "RestartAllContainers";

/// The first restart rule of the container that an exit with `exit_code` meets.
pub fn matching_restart_rule(
    container: &Container,
    exit_code: i32,
) -> Option<&ContainerRestartRule> {
    let rules = container.restart_policy_rules.iter().flatten();
    rules.into_iter().find(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let hit = codes.values.iter().flatten().any(|v| *v == exit_code);
            match codes.operator.as_str() {
                "In" => hit,
                "NotIn" => !hit,
                _ => false,
            }
        })
    })
}

/// May an exit of any container start the whole pod over?
pub fn all_containers_could_restart(pod: &Pod) -> bool {
    init_containers(pod)
        .iter()
        .chain(containers(pod))
        .flat_map(|c| c.restart_policy_rules.iter().flatten())
        .any(|rule| rule.action == RESTART_ALL_CONTAINERS)
}

/// Must a container that left with `exit_code` run again? Container rules go before the container's
/// policy, which goes before the pod's.
pub fn container_should_restart(container: &Container, pod: &Pod, exit_code: i32) -> bool {
    if let Some(policy) = container.restart_policy.as_deref() {
        let rule = matching_restart_rule(container, exit_code);
        if rule.is_some_and(|r| matches!(r.action.as_str(), "Restart" | RESTART_ALL_CONTAINERS)) {
            return true;
        }
        match policy {
            "Always" => return true,
            "OnFailure" => return exit_code != 0,
            "Never" => return false,
            _ => {}
        }
    }
    match restart_policy(pod) {
        "OnFailure" => exit_code != 0,
        "Never" => false,
        _ => true,
    }
}

/// The hash that decides whether a running container still is the one the pod asks for: name and
/// image, as upstream's `pickFieldsToHash`; every other field is immutable or applied in place.
pub fn hash_container(container: &Container) -> u64 {
    let mut hash: u32 = 0x811c_9dc5;
    let image = container.image.as_deref().unwrap_or_default();
    for byte in container.name.bytes().chain([0]).chain(image.bytes()) {
        hash ^= u32::from(byte);
        hash = hash.wrapping_mul(0x0100_0193);
    }
    u64::from(hash)
}

/// The status of the container of that name; no two have one. Those of regular containers are in the order of their names, and found at once.
pub fn container_status<'a>(
    statuses: &'a [ContainerStatus],
    name: &str,
) -> Option<&'a ContainerStatus> {
    let place = statuses.binary_search_by(|s| s.name.as_str().cmp(name));
    match place {
        Ok(place) => statuses.get(place),
        Err(_) => statuses.iter().find(|s| s.name == name),
    }
}

/// How long the pod may take to end: the deletion's grace period, else the spec's, else 30 s.
pub fn grace_period_seconds(pod: &Pod) -> i64 {
    pod.metadata
        .deletion_grace_period_seconds
        .or_else(|| {
            pod.spec
                .as_ref()
                .and_then(|s| s.termination_grace_period_seconds)
        })
        .unwrap_or(30)
}

/// Is the pod of a priority that the kubelet admits before all others and never evicts?
pub fn is_critical(pod: &Pod) -> bool {
    /// Upstream: `scheduling.SystemCriticalPriority`.
    const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;
    is_static(pod)
        || is_mirror(pod)
        || pod
            .spec
            .as_ref()
            .and_then(|s| s.priority)
            .is_some_and(|p| p >= SYSTEM_CRITICAL_PRIORITY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{ContainerRestartRuleOnExitCodes, PodSpec};

    #[test]
    fn restart_rules_go_before_policies() {
        let pod = Pod {
            spec: Some(PodSpec {
                restart_policy: Some("Never".into()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let plain = Container::default();
        assert!(!container_should_restart(&plain, &pod, 1));
        let ruled = Container {
            restart_policy: Some("Never".into()),
            restart_policy_rules: Some(vec![ContainerRestartRule {
                action: "Restart".into(),
                exit_codes: Some(ContainerRestartRuleOnExitCodes {
                    operator: "In".into(),
                    values: Some(vec![42]),
                }),
            }]),
            ..Default::default()
        };
        assert!(container_should_restart(&ruled, &pod, 42));
        assert!(!container_should_restart(&ruled, &pod, 1));
    }

    #[test]
    fn hash_follows_the_image_only() {
        let a = Container {
            name: "c".into(),
            image: Some("x:1".into()),
            ..Default::default()
        };
        let b = Container {
            command: Some(vec!["sh".into()]),
            ..a.clone()
        };
        let c = Container {
            image: Some("x:2".into()),
            ..a.clone()
        };
        assert_eq!(hash_container(&a), hash_container(&b));
        assert_ne!(hash_container(&a), hash_container(&c));
    }
}
