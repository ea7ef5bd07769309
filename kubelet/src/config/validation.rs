//! What a pod must be that no API server ever looked at.
//!
//! Owns: [`validate_pod_create`], the checks that upstream's kubelet makes of a static pod; pure. It tells every fault at once, in upstream's
//! words. Of labels and annotations, the words are shorter. Not looked at: what means nothing without a scheduler (affinity, spread, gates), and
//! references to objects of the API, which `api_references` refuses whatever they name. Upstream: `ValidatePodCreate` in
//! `pkg/apis/core/validation`, v1.37.

mod container;
mod field;
mod handler;
mod names;
mod resources;
mod security;
#[cfg(test)]
mod tests;
mod volume;

use component_helpers::labels::{validate_label_key, validate_label_value};
use k8s_openapi::api::core::v1::{Pod, PodSpec};

pub use field::Errors;
use field::Path;
use names::{dns_label, dns_subdomain, in_range, ip_address};

/// Upstream: `TotalAnnotationSizeLimitB`.
const MAX_ANNOTATIONS_BYTES: usize = 256 << 10;
/// Upstream: `MaxDNSNameservers`.
const MAX_NAMESERVERS: usize = 3;
/// Upstream: `MaxDNSSearchPaths`.
const MAX_SEARCHES: usize = 32;
/// Upstream: `MaxDNSSearchListChars`.
const MAX_SEARCH_CHARS: usize = 2048;

/// Every fault of the pod; it has its defaults and its name already.
///
/// # Errors
/// All of them.
pub fn validate_pod_create(pod: &Pod) -> Result<(), Errors> {
    let mut errors = Errors::default();
    metadata(pod, &Path::new("metadata"), &mut errors);
    if let Some(spec) = &pod.spec {
        pod_spec(spec, &Path::new("spec"), &mut errors);
    }
    errors.into_result()
}

fn metadata(pod: &Pod, path: &Path, errors: &mut Errors) {
    let meta = &pod.metadata;
    match meta.name.as_deref().unwrap_or_default() {
        "" => errors.required(&path.child("name"), "name or generateName is required"),
        name => dns_subdomain(name, &path.child("name"), errors),
    }
    match meta.namespace.as_deref().unwrap_or_default() {
        "" => errors.required(&path.child("namespace"), ""),
        namespace => dns_label(namespace, &path.child("namespace"), errors),
    }
    let labels = path.child("labels");
    for (key, value) in meta.labels.iter().flatten() {
        if let Err(text) = validate_label_key(key) {
            errors.invalid(&labels, key.as_str(), &text);
        }
        if let Err(text) = validate_label_value(value) {
            errors.invalid(&labels, value.as_str(), &text);
        }
    }
    let annotations = path.child("annotations");
    let mut bytes = 0;
    for (key, value) in meta.annotations.iter().flatten() {
        bytes += key.len() + value.len();
        if let Err(text) = validate_label_key(&key.to_lowercase()) {
            errors.invalid(&annotations, key.as_str(), &text);
        }
    }
    if bytes > MAX_ANNOTATIONS_BYTES {
        let text = format!("may not be more than {MAX_ANNOTATIONS_BYTES} bytes");
        errors.too_long(&annotations, &text);
    }
}

fn pod_spec(spec: &PodSpec, path: &Path, errors: &mut Errors) {
    let volumes = volume::volumes(spec, &path.child("volumes"), errors);
    container::containers(spec, &volumes, path, errors);
    if spec.ephemeral_containers.iter().flatten().next().is_some() {
        errors.forbidden(
            &path.child("ephemeralContainers"),
            "cannot be set on create",
        );
    }
    if let Some(resources) = &spec.resources {
        resources::of_pod(resources, &path.child("resources"), errors);
    }
    errors.one_of(
        &path.child("restartPolicy"),
        spec.restart_policy.as_deref(),
        &["Always", "OnFailure", "Never"],
    );
    dns(spec, path, errors);
    if let Some(context) = &spec.security_context {
        security::of_pod(context, spec, &path.child("securityContext"), errors);
    }
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        let text = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(&path.child("shareProcessNamespace"), true, text);
    }
    if spec.host_users == Some(false) {
        for (set, field) in [(spec.host_pid, "HostPID"), (spec.host_ipc, "HostIPC")] {
            if set == Some(true) {
                errors.forbidden(&path.child(field), "when `hostUsers` is false");
            }
        }
    }
    if let Some(seconds) = spec.active_deadline_seconds
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let text = in_range(1, i64::from(i32::MAX));
        errors.invalid(&path.child("activeDeadlineSeconds"), seconds, &text);
    }
    for (name, field) in [(&spec.hostname, "hostname"), (&spec.subdomain, "subdomain")] {
        if let Some(name) = name.as_deref().filter(|n| !n.is_empty()) {
            dns_label(name, &path.child(field), errors);
        }
    }
    if let Some(name) = spec
        .priority_class_name
        .as_deref()
        .filter(|n| !n.is_empty())
    {
        dns_subdomain(name, &path.child("priorityClassName"), errors);
    }
    if let Some(name) = spec.runtime_class_name.as_deref() {
        dns_subdomain(name, &path.child("runtimeClassName"), errors);
    }
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let path = path.child("hostAliases").index(index);
        ip_address(&alias.ip, &path.child("ip"), errors);
        for (index, name) in alias.hostnames.iter().flatten().enumerate() {
            dns_subdomain(name, &path.child("hostnames").index(index), errors);
        }
    }
    if let Some(os) = &spec.os {
        let (path, name) = (path.child("os").child("name"), Some(os.name.as_str()));
        errors.one_of(&path, name, &["linux", "windows"]);
    }
}

fn dns(spec: &PodSpec, path: &Path, errors: &mut Errors) {
    let policy = spec.dns_policy.as_deref();
    errors.one_of(
        &path.child("dnsPolicy"),
        policy,
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    let path = path.child("dnsConfig");
    let servers = spec
        .dns_config
        .as_ref()
        .and_then(|c| c.nameservers.as_ref());
    if policy == Some("None") {
        if spec.dns_config.is_none() {
            return errors.required(&path, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        if servers.is_none_or(Vec::is_empty) {
            let text = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return errors.required(&path.child("nameservers"), text);
        }
    }
    let Some(config) = &spec.dns_config else {
        return;
    };
    if let Some(servers) = servers {
        let path = path.child("nameservers");
        if servers.len() > MAX_NAMESERVERS {
            let text = format!("must not have more than {MAX_NAMESERVERS} nameservers");
            errors.invalid_json(&path, servers, &text);
        }
        for (index, server) in servers.iter().enumerate() {
            ip_address(server, &path.index(index), errors);
        }
    }
    if let Some(searches) = &config.searches {
        let path = path.child("searches");
        if searches.len() > MAX_SEARCHES {
            let text = format!("must not have more than {MAX_SEARCHES} search paths");
            errors.invalid_json(&path, searches, &text);
        }
        if searches.join(" ").len() > MAX_SEARCH_CHARS {
            let text = format!(
                "must not have more than {MAX_SEARCH_CHARS} characters (including spaces) in the search list"
            );
            errors.invalid_json(&path, searches, &text);
        }
        for (index, search) in searches.iter().enumerate().filter(|(_, s)| *s != ".") {
            let search = search.strip_suffix('.').unwrap_or(search);
            names::dns_subdomain_with_underscore(search, &path.index(index), errors);
        }
    }
    for (index, option) in config.options.iter().flatten().enumerate() {
        if option.name.as_deref().unwrap_or_default().is_empty() {
            errors.required(&path.child("options").index(index), "must not be empty");
        }
    }
}
