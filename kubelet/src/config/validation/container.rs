//! Containers and init containers.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Container, ContainerPort, EnvFromSource, EnvVar, PodSpec};

use super::field::{Errors, Path};
use super::handler::{self, Kind};
use super::names::{dns_label, env_name, no_backsteps, port_name, port_number};
use super::volume::{Volumes, mounts};
use super::{resources, security};

/// Upstream: `validateContainerRestartPolicy`.
const MAX_RESTART_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;

pub fn containers(spec: &PodSpec, volumes: &Volumes, path: &Path, errors: &mut Errors) {
    let regular = path.child("containers");
    if spec.containers.is_empty() {
        errors.required(&regular, "");
    }
    let mut names: HashSet<&str> = HashSet::new();
    let mut ports = HashSet::new();
    for (index, container) in spec.containers.iter().enumerate() {
        let path = regular.index(index);
        of_any_kind(container, spec, volumes, &path, errors);
        if !names.insert(&container.name) {
            errors.duplicate(&path.child("name"), &container.name);
        }
        probes_and_hooks(container, spec, &path, errors);
        restart_policy(container, &path, errors);
        host_ports(container, &mut ports, &path, errors);
        if spec.host_network == Some(true) {
            host_network_ports(container, &path, errors);
        }
    }
    let init = path.child("initContainers");
    for (index, container) in spec.init_containers.iter().flatten().enumerate() {
        let path = init.index(index);
        of_any_kind(container, spec, volumes, &path, errors);
        restart_policy(container, &path, errors);
        if !names.insert(&container.name) && !container.name.is_empty() {
            errors.duplicate(&path.child("name"), &container.name);
        }
        // One runs after the other.
        host_ports(container, &mut HashSet::new(), &path, errors);
        if container.restart_policy.as_deref() == Some("Always") {
            probes_and_hooks(container, spec, &path, errors);
            continue;
        }
        for (set, field) in [
            (container.lifecycle.is_some(), "lifecycle"),
            (container.liveness_probe.is_some(), "livenessProbe"),
            (container.readiness_probe.is_some(), "readinessProbe"),
            (container.startup_probe.is_some(), "startupProbe"),
        ] {
            if set {
                let text = "may not be set for init containers without restartPolicy=Always";
                errors.forbidden(&path.child(field), text);
            }
        }
    }
}

/// Upstream: `validateContainerCommon`, `validateContainerOnlyForPod`.
fn of_any_kind(
    container: &Container,
    spec: &PodSpec,
    volumes: &Volumes,
    path: &Path,
    errors: &mut Errors,
) {
    match container.name.as_str() {
        "" => errors.required(&path.child("name"), ""),
        name => dns_label(name, &path.child("name"), errors),
    }
    let image = container.image.as_deref().unwrap_or_default();
    if image.is_empty() {
        errors.required(&path.child("image"), "");
    } else if image.trim() != image {
        let text = "must not have leading or trailing whitespace";
        errors.invalid(&path.child("image"), image, text);
    }
    errors.one_of(
        &path.child("terminationMessagePolicy"),
        container.termination_message_policy.as_deref(),
        &["File", "FallbackToLogsOnError"],
    );
    ports(
        container.ports.iter().flatten(),
        &path.child("ports"),
        errors,
    );
    environment(container.env.iter().flatten(), &path.child("env"), errors);
    env_from(
        container.env_from.iter().flatten(),
        &path.child("envFrom"),
        errors,
    );
    mounts(container, volumes, path, errors);
    errors.one_of(
        &path.child("imagePullPolicy"),
        container.image_pull_policy.as_deref(),
        &["Always", "IfNotPresent", "Never"],
    );
    if let Some(of) = &container.resources {
        resources::of_container(of, &path.child("resources"), errors);
    }
    resize_policy(container, spec, &path.child("resizePolicy"), errors);
    if let Some(context) = &container.security_context {
        let host_users = spec.host_users.unwrap_or(true);
        security::of_container(context, host_users, &path.child("securityContext"), errors);
    }
}

fn ports<'a>(ports: impl Iterator<Item = &'a ContainerPort>, path: &Path, errors: &mut Errors) {
    let mut names = HashSet::new();
    for (index, port) in ports.enumerate() {
        let path = path.index(index);
        if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            let before = errors.len();
            port_name(name, &path.child("name"), errors);
            if errors.len() == before && !names.insert(name) {
                errors.duplicate(&path.child("name"), name);
            }
        }
        match port.container_port {
            0 => errors.required(&path.child("containerPort"), ""),
            number => port_number(number, &path.child("containerPort"), errors),
        }
        if let Some(number) = port.host_port.filter(|p| *p != 0) {
            port_number(number, &path.child("hostPort"), errors);
        }
        errors.one_of(
            &path.child("protocol"),
            port.protocol.as_deref(),
            &["SCTP", "TCP", "UDP"],
        );
    }
}

/// Upstream: `AccumulateUniqueHostPorts`.
fn host_ports(
    container: &Container,
    taken: &mut HashSet<String>,
    path: &Path,
    errors: &mut Errors,
) {
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let Some(number) = port.host_port.filter(|p| *p != 0) else {
            continue;
        };
        let protocol = port.protocol.as_deref().unwrap_or_default();
        let text = format!(
            "{protocol}/{}/{number}",
            port.host_ip.as_deref().unwrap_or_default()
        );
        if taken.contains(&text) {
            errors.duplicate(&path.child("ports").index(index).child("hostPort"), &text);
        }
        taken.insert(text);
    }
}

fn host_network_ports(container: &Container, path: &Path, errors: &mut Errors) {
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let host = port.host_port.unwrap_or(0);
        if host != port.container_port {
            let path = path.child("ports").index(index).child("hostPort");
            let text = "must match `containerPort` when `hostNetwork` is true";
            errors.invalid(&path, host, text);
        }
    }
}

fn environment<'a>(variables: impl Iterator<Item = &'a EnvVar>, path: &Path, errors: &mut Errors) {
    for (index, variable) in variables.enumerate() {
        let path = path.index(index);
        match variable.name.as_str() {
            "" => errors.required(&path.child("name"), ""),
            name => env_name(name, &path.child("name"), errors),
        }
        let Some(source) = &variable.value_from else {
            continue;
        };
        let path = path.child("valueFrom");
        if let Some(file) = &source.file_key_ref {
            let path = path.child("fileKeyRef");
            for (value, field) in [
                (&file.key, "key"),
                (&file.volume_name, "volumeName"),
                (&file.path, "path"),
            ] {
                if value.is_empty() {
                    errors.required(&path.child(field), "");
                }
            }
            env_name(&file.key, &path.child("key"), errors);
            no_backsteps(&file.path, &path.child("path"), errors);
        }
        let sources = [
            source.field_ref.is_some(),
            source.resource_field_ref.is_some(),
            source.config_map_key_ref.is_some(),
            source.secret_key_ref.is_some(),
            source.file_key_ref.is_some(),
        ];
        let text = match sources.iter().filter(|s| **s).count() {
            0 => {
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
            }
            _ if variable.value.as_deref().is_some_and(|v| !v.is_empty()) => {
                "may not be specified when `value` is not empty"
            }
            1 => continue,
            _ => "may not have more than one field specified at a time",
        };
        errors.invalid(&path, "", text);
    }
}

fn env_from<'a>(
    sources: impl Iterator<Item = &'a EnvFromSource>,
    path: &Path,
    errors: &mut Errors,
) {
    for (index, source) in sources.enumerate() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        env_name(prefix, &path.index(index).child("prefix"), errors);
        match (&source.config_map_ref, &source.secret_ref) {
            (None, None) => {
                let text = "must specify one of: `configMapRef` or `secretRef`";
                errors.invalid(path, "", text);
            }
            (Some(_), Some(_)) => {
                let text = "may not have more than one field specified at a time";
                errors.invalid(path, "", text);
            }
            _ => {}
        }
    }
}

fn resize_policy(container: &Container, spec: &PodSpec, path: &Path, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (index, policy) in container.resize_policy.iter().flatten().enumerate() {
        let (name, restart) = (
            policy.resource_name.as_str(),
            policy.restart_policy.as_str(),
        );
        if !seen.insert(name) {
            errors.duplicate(&path.index(index), name);
        }
        errors.one_of(path, Some(name), &["cpu", "memory"]);
        errors.one_of(path, Some(restart), &["NotRequired", "RestartContainer"]);
        if spec.restart_policy.as_deref() == Some("Never") && restart != "NotRequired" {
            let text = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            errors.invalid(path, restart, text);
        }
    }
}

fn probes_and_hooks(container: &Container, spec: &PodSpec, path: &Path, errors: &mut Errors) {
    let grace = spec.termination_grace_period_seconds;
    if let Some(lifecycle) = &container.lifecycle {
        let path = path.child("lifecycle");
        handler::lifecycle(lifecycle, grace, spec.os.is_some(), &path, errors);
    }
    for (probe, field, kind) in [
        (&container.liveness_probe, "livenessProbe", Kind::Liveness),
        (
            &container.readiness_probe,
            "readinessProbe",
            Kind::Readiness,
        ),
        (&container.startup_probe, "startupProbe", Kind::Startup),
    ] {
        if let Some(probe) = probe {
            handler::probe(probe, kind, grace, &path.child(field), errors);
        }
    }
}

/// Upstream: `validateContainerRestartPolicy`, `validateInitContainerRestartPolicy`.
fn restart_policy(container: &Container, path: &Path, errors: &mut Errors) {
    let own = path.child("restartPolicy");
    let rules = container
        .restart_policy_rules
        .as_deref()
        .unwrap_or_default();
    match container.restart_policy.as_deref() {
        None if rules.is_empty() => return,
        None => errors.required(
            &own,
            "must specify restartPolicy when restart rules are used",
        ),
        Some("Always" | "Never" | "OnFailure") => {}
        Some(other) => errors.not_supported(&own, other, &["Always", "Never", "OnFailure"]),
    }
    let path = path.child("restartPolicyRules");
    if rules.len() > MAX_RESTART_RULES {
        errors.too_many(&path, rules.len(), MAX_RESTART_RULES);
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = path.index(index);
        let actions = ["Restart", "RestartAllContainers"];
        if !actions.contains(&rule.action.as_str()) {
            errors.not_supported(&path.child("action"), &rule.action, &actions);
        }
        let path = path.child("exitCodes");
        let Some(codes) = &rule.exit_codes else {
            errors.required(&path, "must be specified");
            continue;
        };
        if !["In", "NotIn"].contains(&codes.operator.as_str()) {
            errors.not_supported(&path.child("operator"), &codes.operator, &["In", "NotIn"]);
        }
        let count = codes.values.as_ref().map_or(0, Vec::len);
        if count > MAX_EXIT_CODES {
            errors.too_many(&path.child("values"), count, MAX_EXIT_CODES);
        }
    }
}
