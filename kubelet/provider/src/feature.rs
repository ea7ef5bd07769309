//! Optional fields of pods: which of them a provider understands, and which a pod has. Pure.

use std::collections::BTreeSet;
use std::str::FromStr;

use k8s_openapi::api::core::v1::{
    Container, PodSecurityContext, PodSpec, SecurityContext as ContainerSecurity,
};

/// A kind of field that a provider may not understand. Names, images, commands, arguments, plain variables, resources, restart policy
/// and grace period are no options; what only the scheduler and the API server look at is none, either.
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
    /// `hostAliases`, `dnsConfig`, `dnsPolicy: None`, `subdomain`, `setHostnameAsFQDN`.
    Names,
    /// `shareProcessNamespace`.
    SharedProcesses,
    /// `activeDeadlineSeconds`.
    ActiveDeadline,
    /// `imagePullSecrets`.
    ImagePullSecrets,
}

use PodFeature::*;

const ALL: &[(PodFeature, &str)] = &[
    (InitContainers, "InitContainers"),
    (Sidecars, "Sidecars"),
    (EphemeralContainers, "EphemeralContainers"),
    (Probes, "Probes"),
    (LifecycleHooks, "LifecycleHooks"),
    (HostNamespaces, "HostNamespaces"),
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
];

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
    let yes = |flag: Option<bool>| flag == Some(true);
    let text = |field: &Option<String>| field.as_deref().is_some_and(|t| !t.is_empty());
    for (name, on) in [
        ("hostNetwork", yes(spec.host_network)),
        ("hostPID", yes(spec.host_pid)),
        ("hostIPC", yes(spec.host_ipc)),
    ] {
        need(HostNamespaces, on, format!("spec.{name}"));
    }
    for (name, on) in [
        (
            "hostAliases",
            spec.host_aliases.iter().flatten().count() > 0,
        ),
        ("dnsConfig", spec.dns_config.is_some()),
        ("dnsPolicy", spec.dns_policy.as_deref() == Some("None")),
        ("subdomain", text(&spec.subdomain)),
        ("setHostnameAsFQDN", yes(spec.set_hostname_as_fqdn)),
    ] {
        need(Names, on, format!("spec.{name}"));
    }
    need(
        SharedProcesses,
        yes(spec.share_process_namespace),
        "spec.shareProcessNamespace".to_owned(),
    );
    need(
        ActiveDeadline,
        spec.active_deadline_seconds.is_some(),
        "spec.activeDeadlineSeconds".to_owned(),
    );
    need(
        ImagePullSecrets,
        spec.image_pull_secrets.iter().flatten().count() > 0,
        "spec.imagePullSecrets".to_owned(),
    );
    need(
        RuntimeClass,
        text(&spec.runtime_class_name),
        "spec.runtimeClassName".to_owned(),
    );
    need(
        ResourceClaims,
        spec.resource_claims.iter().flatten().count() > 0,
        "spec.resourceClaims".to_owned(),
    );
    let security = spec.security_context.as_ref();
    need(
        SecurityContext,
        security.is_some_and(|s| *s != PodSecurityContext::default()),
        "spec.securityContext".to_owned(),
    );
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        // The admission plugin ServiceAccount adds it to every pod.
        let token = volume.name.starts_with("kube-api-access-") && volume.projected.is_some();
        need(Volumes, !token, format!("spec.volumes[{index}]"));
    }
    for (index, container) in spec.init_containers.iter().flatten().enumerate() {
        let path = format!("spec.initContainers[{index}]");
        let feature = match container.restart_policy.as_deref() {
            Some("Always") => Sidecars,
            _ => InitContainers,
        };
        need(feature, true, path.clone());
        container_fields(container, &path, &mut need);
    }
    for (index, container) in spec.containers.iter().enumerate() {
        container_fields(container, &format!("spec.containers[{index}]"), &mut need);
    }
    let ephemeral = spec.ephemeral_containers.iter().flatten().count();
    need(
        EphemeralContainers,
        ephemeral > 0,
        "spec.ephemeralContainers".to_owned(),
    );
    found
}

fn container_fields(
    container: &Container,
    path: &str,
    need: &mut impl FnMut(PodFeature, bool, String),
) {
    for (name, set) in [
        ("livenessProbe", container.liveness_probe.is_some()),
        ("readinessProbe", container.readiness_probe.is_some()),
        ("startupProbe", container.startup_probe.is_some()),
    ] {
        need(Probes, set, format!("{path}.{name}"));
    }
    need(
        LifecycleHooks,
        container.lifecycle.is_some(),
        format!("{path}.lifecycle"),
    );
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let set = port.host_port.unwrap_or(0) > 0;
        need(HostPorts, set, format!("{path}.ports[{index}].hostPort"));
    }
    need(
        VariableSources,
        container.env_from.iter().flatten().count() > 0,
        format!("{path}.envFrom"),
    );
    for (index, variable) in container.env.iter().flatten().enumerate() {
        let set = variable.value_from.is_some();
        need(
            VariableSources,
            set,
            format!("{path}.env[{index}].valueFrom"),
        );
    }
    let security = container.security_context.as_ref();
    let set = security.is_some_and(|s| *s != ContainerSecurity::default());
    need(
        PodFeature::SecurityContext,
        set,
        format!("{path}.securityContext"),
    );
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
            "containers": [{"name": "a", "image": "i", "command": ["x"], "env": [{"name": "A", "value": "b"}]}],
            "volumes": [{"name": "kube-api-access-x7", "projected": {"sources": []}}],
            "securityContext": {}, "dnsPolicy": "ClusterFirst", "hostNetwork": false,
        });
        check(plain, Features::none(), &[]);
        let full = serde_json::json!({
            "hostPID": true, "activeDeadlineSeconds": 5, "runtimeClassName": "r",
            "securityContext": {"runAsUser": 1}, "volumes": [{"name": "v", "emptyDir": {}}],
            "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
            "containers": [{"name": "a", "livenessProbe": {}, "lifecycle": {}, "ports": [{"containerPort": 1, "hostPort": 1}],
                "env": [{"name": "A", "valueFrom": {}}], "securityContext": {"privileged": true}}],
        });
        check(
            full.clone(),
            Features::none(),
            &[
                "spec.hostPID",
                "spec.activeDeadlineSeconds",
                "spec.runtimeClassName",
                "spec.securityContext",
                "spec.volumes[0]",
                "spec.initContainers[0]",
                "spec.initContainers[1]",
                "spec.containers[0].livenessProbe",
                "spec.containers[0].lifecycle",
                "spec.containers[0].ports[0].hostPort",
                "spec.containers[0].env[0].valueFrom",
                "spec.containers[0].securityContext",
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
