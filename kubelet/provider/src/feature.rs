//! Optional fields of pods: which of them a provider understands, and which a pod has. Pure.

use std::collections::BTreeSet;
use std::str::FromStr;

use k8s_openapi::api::core::v1::{
    Container, PodSecurityContext, PodSpec, SecurityContext as ContainerSecurity,
};

/// A kind of field that a provider may not understand. Names, images, commands, arguments, plain variables, resources, the pod's
/// restart policy and its grace period are no options; what only the scheduler and the API server look at is none, either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum PodFeature {
    /// `initContainers` that run to their end.
    InitContainers,
    /// `initContainers` with `restartPolicy: Always`.
    Sidecars,
    /// `ephemeralContainers`.
    EphemeralContainers,
    /// `livenessProbe`, `readinessProbe`, `startupProbe`.
    Probes,
    /// `lifecycle`.
    LifecycleHooks,
    /// `hostNetwork`, `hostPID`, `hostIPC`.
    HostNamespaces,
    /// `hostUsers: false`.
    UserNamespaces,
    /// `ports[].hostPort`.
    HostPorts,
    /// `volumes`; the token of the service account, which every pod gets unasked, needs none.
    Volumes,
    /// `envFrom` and `env[].valueFrom`.
    VariableSources,
    /// `securityContext` of pod or container with anything in it.
    SecurityContext,
    /// `resourceClaims`.
    ResourceClaims,
    /// `runtimeClassName`.
    RuntimeClass,
    /// `hostAliases`, `dnsConfig`, `dnsPolicy: None`, `hostname`, `hostnameOverride`, `subdomain`, `setHostnameAsFQDN`.
    Names,
    /// `shareProcessNamespace`.
    SharedProcesses,
    /// `activeDeadlineSeconds`.
    ActiveDeadline,
    /// `imagePullSecrets`.
    ImagePullSecrets,
    /// `stdin`, `stdinOnce`, `tty`.
    Terminals,
    /// `workingDir`.
    WorkingDirectory,
    /// `restartPolicy` and `restartPolicyRules` of a container, but for sidecars' `Always`.
    RestartRules,
    /// `terminationMessagePath` and `terminationMessagePolicy` that are not the API's defaults.
    TerminationMessages,
}

use PodFeature::*;

const ALL: &[(PodFeature, &str)] = &[
    (InitContainers, "InitContainers"),
    (Sidecars, "Sidecars"),
    (EphemeralContainers, "EphemeralContainers"),
    (Probes, "Probes"),
    (LifecycleHooks, "LifecycleHooks"),
    (HostNamespaces, "HostNamespaces"),
    (UserNamespaces, "UserNamespaces"),
    (HostPorts, "HostPorts"),
    (Volumes, "Volumes"),
    (VariableSources, "VariableSources"),
    (SecurityContext, "SecurityContext"),
    (ResourceClaims, "ResourceClaims"),
    (RuntimeClass, "RuntimeClass"),
    (Names, "Names"),
    (SharedProcesses, "SharedProcesses"),
    (ActiveDeadline, "ActiveDeadline"),
    (ImagePullSecrets, "ImagePullSecrets"),
    (Terminals, "Terminals"),
    (WorkingDirectory, "WorkingDirectory"),
    (RestartRules, "RestartRules"),
    (TerminationMessages, "TerminationMessages"),
];

/// The API's defaults, which every container has.
const TERMINATION_MESSAGE_PATH: &str = "/dev/termination-log";
const TERMINATION_MESSAGE_POLICY: &str = "File";

/// A feature nobody knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown pod feature {0:?}")]
pub struct UnknownFeature(pub String);

impl PodFeature {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        let found = ALL.iter().find(|(feature, _)| *feature == self);
        found.expect("every feature has a name").1
    }
}

impl FromStr for PodFeature {
    type Err = UnknownFeature;

    fn from_str(text: &str) -> Result<Self, UnknownFeature> {
        let found = ALL.iter().find(|(_, name)| *name == text);
        found
            .map(|(feature, _)| *feature)
            .ok_or_else(|| UnknownFeature(text.to_owned()))
    }
}

/// What a provider understands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features(BTreeSet<PodFeature>);

impl Features {
    /// Nothing optional.
    pub fn none() -> Self {
        Self::default()
    }

    /// Everything, also what is added to the list later: for providers that run nothing.
    pub fn all() -> Self {
        Self(ALL.iter().map(|(feature, _)| *feature).collect())
    }

    /// This one, too.
    #[must_use]
    pub fn with(mut self, feature: PodFeature) -> Self {
        self.0.insert(feature);
        self
    }

    /// Whether it is understood.
    pub fn has(&self, feature: PodFeature) -> bool {
        self.0.contains(&feature)
    }
}

/// A field that a pod has and its provider does not understand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsupportedField {
    /// As `spec.containers[0].livenessProbe`.
    pub path: String,
    /// What would have to be understood.
    pub feature: PodFeature,
}

/// The fields of `spec` that `features` does not cover.
pub fn unsupported_fields(spec: &PodSpec, features: &Features) -> Vec<UnsupportedField> {
    let mut found = Vec::new();
    let mut need = |feature: PodFeature, set: bool, path: String| {
        if set && !features.has(feature) {
            found.push(UnsupportedField { path, feature });
        }
    };
    pod_fields(spec, &mut need);
    for (index, container) in spec.init_containers.iter().flatten().enumerate() {
        let path = format!("spec.initContainers[{index}]");
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        let feature = if sidecar { Sidecars } else { InitContainers };
        need(feature, true, path.clone());
        container_fields(container, &path, sidecar, &mut need);
    }
    for (index, container) in spec.containers.iter().enumerate() {
        let path = format!("spec.containers[{index}]");
        container_fields(container, &path, false, &mut need);
    }
    found
}

fn text(field: &Option<String>) -> bool {
    field.as_deref().is_some_and(|text| !text.is_empty())
}

fn some<T>(list: &Option<Vec<T>>) -> bool {
    list.iter().flatten().next().is_some()
}

/// Every field is named here: one that the API adds must be thought of before this builds again.
fn pod_fields(spec: &PodSpec, need: &mut impl FnMut(PodFeature, bool, String)) {
    let PodSpec {
        active_deadline_seconds,
        // For the scheduler and the API server.
        affinity: _,
        automount_service_account_token: _,
        eviction_responders: _,
        node_name: _,
        node_selector: _,
        overhead: _,
        preemption_policy: _,
        priority: _,
        priority_class_name: _,
        scheduler_name: _,
        scheduling_gates: _,
        scheduling_group: _,
        service_account: _,
        service_account_name: _,
        tolerations: _,
        topology_spread_constraints: _,
        // The loops see to them.
        readiness_gates: _,
        // No options. Variables of services are nothing that somebody asked for; `os` is what the node says it is.
        enable_service_links: _,
        os: _,
        resources: _,
        restart_policy: _,
        termination_grace_period_seconds: _,
        // Looked at one by one.
        containers: _,
        init_containers: _,
        ephemeral_containers,
        dns_config,
        dns_policy,
        host_aliases,
        host_ipc,
        host_network,
        host_pid,
        host_users,
        hostname,
        hostname_override,
        image_pull_secrets,
        resource_claims,
        runtime_class_name,
        security_context,
        set_hostname_as_fqdn,
        share_process_namespace,
        subdomain,
        volumes,
    } = spec;
    let yes = |flag: &Option<bool>| *flag == Some(true);
    let security = security_context.as_ref();
    for (feature, name, set) in [
        (HostNamespaces, "hostNetwork", yes(host_network)),
        (HostNamespaces, "hostPID", yes(host_pid)),
        (HostNamespaces, "hostIPC", yes(host_ipc)),
        (UserNamespaces, "hostUsers", *host_users == Some(false)),
        (Names, "hostAliases", some(host_aliases)),
        (Names, "dnsConfig", dns_config.is_some()),
        (Names, "dnsPolicy", dns_policy.as_deref() == Some("None")),
        (Names, "hostname", text(hostname)),
        (Names, "hostnameOverride", text(hostname_override)),
        (Names, "subdomain", text(subdomain)),
        (Names, "setHostnameAsFQDN", yes(set_hostname_as_fqdn)),
        (
            SharedProcesses,
            "shareProcessNamespace",
            yes(share_process_namespace),
        ),
        (
            ActiveDeadline,
            "activeDeadlineSeconds",
            active_deadline_seconds.is_some(),
        ),
        (
            ImagePullSecrets,
            "imagePullSecrets",
            some(image_pull_secrets),
        ),
        (RuntimeClass, "runtimeClassName", text(runtime_class_name)),
        (ResourceClaims, "resourceClaims", some(resource_claims)),
        (
            SecurityContext,
            "securityContext",
            security.is_some_and(|s| *s != PodSecurityContext::default()),
        ),
        (
            EphemeralContainers,
            "ephemeralContainers",
            some(ephemeral_containers),
        ),
    ] {
        need(feature, set, format!("spec.{name}"));
    }
    for (index, volume) in volumes.iter().flatten().enumerate() {
        // The admission plugin ServiceAccount adds it to every pod.
        let token = volume.name.starts_with("kube-api-access-") && volume.projected.is_some();
        need(Volumes, !token, format!("spec.volumes[{index}]"));
    }
}

/// Every field is named here, too. `sidecar`: that it is started again and again is a feature of its own.
fn container_fields(
    container: &Container,
    path: &str,
    sidecar: bool,
    need: &mut impl FnMut(PodFeature, bool, String),
) {
    let Container {
        // No options.
        args: _,
        command: _,
        image: _,
        image_pull_policy: _,
        name: _,
        resize_policy: _,
        resources: _,
        // There is none without the pod's volume.
        volume_mounts: _,
        volume_devices: _,
        env,
        env_from,
        lifecycle,
        liveness_probe,
        ports,
        readiness_probe,
        restart_policy,
        restart_policy_rules,
        security_context,
        startup_probe,
        stdin,
        stdin_once,
        termination_message_path,
        termination_message_policy,
        tty,
        working_dir,
    } = container;
    let yes = |flag: &Option<bool>| *flag == Some(true);
    let other = |field: &Option<String>, usual: &str| text(field) && *field != Some(usual.into());
    let security = security_context.as_ref();
    for (feature, name, set) in [
        (Probes, "livenessProbe", liveness_probe.is_some()),
        (Probes, "readinessProbe", readiness_probe.is_some()),
        (Probes, "startupProbe", startup_probe.is_some()),
        (LifecycleHooks, "lifecycle", lifecycle.is_some()),
        (Terminals, "stdin", yes(stdin)),
        (Terminals, "stdinOnce", yes(stdin_once)),
        (Terminals, "tty", yes(tty)),
        (WorkingDirectory, "workingDir", text(working_dir)),
        (
            RestartRules,
            "restartPolicy",
            !sidecar && text(restart_policy),
        ),
        (
            RestartRules,
            "restartPolicyRules",
            some(restart_policy_rules),
        ),
        (
            TerminationMessages,
            "terminationMessagePath",
            other(termination_message_path, TERMINATION_MESSAGE_PATH),
        ),
        (
            TerminationMessages,
            "terminationMessagePolicy",
            other(termination_message_policy, TERMINATION_MESSAGE_POLICY),
        ),
        (VariableSources, "envFrom", some(env_from)),
        (
            SecurityContext,
            "securityContext",
            security.is_some_and(|s| *s != ContainerSecurity::default()),
        ),
    ] {
        need(feature, set, format!("{path}.{name}"));
    }
    for (index, port) in ports.iter().flatten().enumerate() {
        let set = port.host_port.unwrap_or(0) > 0;
        need(HostPorts, set, format!("{path}.ports[{index}].hostPort"));
    }
    for (index, variable) in env.iter().flatten().enumerate() {
        let set = variable.value_from.is_some();
        let path = format!("{path}.env[{index}].valueFrom");
        need(VariableSources, set, path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::serde_json;

    fn check(spec: serde_json::Value, features: Features, expect: &[&str]) {
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let found = unsupported_fields(&spec, &features);
        let paths: Vec<&str> = found.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(paths, expect);
    }

    #[test]
    fn every_optional_field_is_named() {
        let plain = serde_json::json!({
            "containers": [{"name": "a", "image": "i", "command": ["x"], "env": [{"name": "A", "value": "b"}],
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
            "volumes": [{"name": "kube-api-access-x7", "projected": {"sources": []}}],
            "securityContext": {}, "dnsPolicy": "ClusterFirst", "hostNetwork": false,
        });
        check(plain, Features::none(), &[]);
        let full = serde_json::json!({
            "hostPID": true, "activeDeadlineSeconds": 5, "runtimeClassName": "r", "hostUsers": false, "hostname": "h",
            "securityContext": {"runAsUser": 1}, "volumes": [{"name": "v", "emptyDir": {}}],
            "initContainers": [{"name": "i", "restartPolicy": "Never"}, {"name": "s", "restartPolicy": "Always"}],
            "containers": [{"name": "a", "livenessProbe": {}, "lifecycle": {}, "ports": [{"containerPort": 1, "hostPort": 1}],
                "env": [{"name": "A", "valueFrom": {}}], "securityContext": {"privileged": true}, "tty": true,
                "workingDir": "/tmp", "terminationMessagePath": "/x", "terminationMessagePolicy": "FallbackToLogsOnError",
                "restartPolicyRules": [{"action": "Restart"}]}],
            "ephemeralContainers": [{"name": "e"}],
        });
        check(
            full.clone(),
            Features::none(),
            &[
                "spec.hostPID",
                "spec.hostUsers",
                "spec.hostname",
                "spec.activeDeadlineSeconds",
                "spec.runtimeClassName",
                "spec.securityContext",
                "spec.ephemeralContainers",
                "spec.volumes[0]",
                "spec.initContainers[0]",
                "spec.initContainers[0].restartPolicy",
                "spec.initContainers[1]",
                "spec.containers[0].livenessProbe",
                "spec.containers[0].lifecycle",
                "spec.containers[0].tty",
                "spec.containers[0].workingDir",
                "spec.containers[0].restartPolicyRules",
                "spec.containers[0].terminationMessagePath",
                "spec.containers[0].terminationMessagePolicy",
                "spec.containers[0].securityContext",
                "spec.containers[0].ports[0].hostPort",
                "spec.containers[0].env[0].valueFrom",
            ],
        );
        check(full, Features::all(), &[]);
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for (feature, name) in ALL {
            assert_eq!(feature.as_str(), *name);
            assert_eq!(name.parse(), Ok(*feature));
        }
        assert!("Probe".parse::<PodFeature>().is_err());
    }
}
