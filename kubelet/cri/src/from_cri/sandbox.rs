//! `RunPodSandboxRequest`.

use std::path::PathBuf;

use cri_spec::v1;
use runtime::{
    DnsConfig, NamespaceMode, Origin, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol,
};

use super::{NodeFacts, id, ids, namespaces};
use crate::error::FieldError;

/// Where pods without a parent are. Source: containerd's.
const CGROUP_PARENT: &str = "/k8s.io";

/// # Errors
/// A field is missing, wrong or not built.
pub fn sandbox_config(
    request: &v1::RunPodSandboxRequest,
    node: NodeFacts,
) -> Result<PodSandboxConfig, FieldError> {
    let config = request
        .config
        .as_ref()
        .ok_or(FieldError::Missing("config"))?;
    let metadata = metadata(config.metadata.as_ref())?;
    if config.windows.is_some() {
        return Err(FieldError::NotBuilt {
            field: "config.windows",
            why: "this is Linux",
        });
    }
    let log_directory = PathBuf::from(&config.log_directory);
    if !config.log_directory.is_empty() && !log_directory.is_absolute() {
        return Err(FieldError::invalid(
            "config.log_directory",
            &config.log_directory,
            "must be an absolute path",
        ));
    }
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.clone().unwrap_or_default();
    // There is no process in a sandbox of ours (no pause container): `readonly_rootfs`, `run_as_user`, `run_as_group`, `seccomp` and
    // `apparmor` of the sandbox speak of that process alone. They must make sense all the same. `overhead` and `resources` tell
    // virtual machines how large to be; the cgroup is the caller's.
    for (value, field) in [
        (&security.run_as_user, "security_context.run_as_user"),
        (&security.run_as_group, "security_context.run_as_group"),
    ] {
        if let Some(value) = value {
            id(value.value, field)?;
        }
    }
    node.check_selinux(
        security.selinux_options.as_ref(),
        "linux.security_context.selinux_options",
    )?;
    let namespaces = namespaces(security.namespace_options.as_ref())?;
    if namespaces.pid == NamespaceMode::Target {
        return Err(FieldError::invalid(
            "namespace_options.pid",
            "TARGET",
            "is for containers",
        ));
    }
    let supplemental_groups = ids(
        &security.supplemental_groups,
        "security_context.supplemental_groups",
    )?;
    let cgroup_parent = match linux.cgroup_parent.as_str() {
        "" => CGROUP_PARENT.to_owned(),
        parent if parent.ends_with(".slice") => {
            return Err(FieldError::invalid(
                "linux.cgroup_parent",
                parent,
                "a systemd slice, and the cgroup driver is cgroupfs",
            ));
        }
        parent => parent.to_owned(),
    };
    Ok(PodSandboxConfig {
        metadata,
        hostname: config.hostname.clone(),
        log_directory,
        dns: config.dns_config.as_ref().map(|dns| DnsConfig {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        }),
        port_mappings: config
            .port_mappings
            .iter()
            .map(port_mapping)
            .collect::<Result<_, _>>()?,
        labels: config.labels.clone().into_iter().collect(),
        annotations: config.annotations.clone().into_iter().collect(),
        cgroup_parent,
        namespaces,
        sysctls: linux.sysctls.clone().into_iter().collect(),
        shm_size_bytes: None,
        runtime_handler: request.runtime_handler.clone(),
        privileged: security.privileged,
        supplemental_groups,
        origin: Origin::Cri,
    })
}

fn metadata(metadata: Option<&v1::PodSandboxMetadata>) -> Result<PodSandboxMetadata, FieldError> {
    let metadata = metadata.ok_or(FieldError::Missing("config.metadata"))?;
    for (value, field) in [
        (&metadata.name, "config.metadata.name"),
        (&metadata.namespace, "config.metadata.namespace"),
        (&metadata.uid, "config.metadata.uid"),
    ] {
        if value.is_empty() {
            return Err(FieldError::Missing(field));
        }
    }
    // It becomes a file's name: the lock of the pod.
    if metadata.uid.contains('/') || metadata.uid.starts_with('.') || metadata.uid.len() > 200 {
        return Err(FieldError::invalid(
            "config.metadata.uid",
            &metadata.uid,
            "must be a plain name of at most 200 bytes",
        ));
    }
    Ok(PodSandboxMetadata {
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        namespace: metadata.namespace.clone(),
        attempt: metadata.attempt,
    })
}

fn port_mapping(mapping: &v1::PortMapping) -> Result<PortMapping, FieldError> {
    let protocol = match v1::Protocol::try_from(mapping.protocol) {
        Ok(v1::Protocol::Tcp) => Protocol::Tcp,
        Ok(v1::Protocol::Udp) => Protocol::Udp,
        Ok(v1::Protocol::Sctp) => Protocol::Sctp,
        Err(_) => {
            return Err(FieldError::invalid(
                "port_mappings.protocol",
                mapping.protocol,
                "no such protocol",
            ));
        }
    };
    let port = |value: i32, field| {
        u16::try_from(value)
            .map_err(|_| FieldError::invalid(field, value, "must be from 0 to 65535"))
    };
    Ok(PortMapping {
        protocol,
        container_port: port(mapping.container_port, "port_mappings.container_port")?,
        host_port: port(mapping.host_port, "port_mappings.host_port")?,
        host_ip: mapping.host_ip.clone(),
    })
}
