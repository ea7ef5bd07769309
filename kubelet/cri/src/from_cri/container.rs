//! `CreateContainerRequest`.

use std::path::{Component, PathBuf};

use cri_spec::v1;
use runtime::{ContainerConfig, ContainerMetadata, Device, Mount, MountPropagation, Origin};

use super::security::security_context;
use super::{NodeFacts, resources};
use crate::error::FieldError;

/// `sandbox_config` of the request is a copy of what the sandbox was made with: what the sandbox was made with is what counts.
///
/// # Errors
/// A field is missing, wrong or not built.
pub fn container_config(
    config: Option<&v1::ContainerConfig>,
    node: NodeFacts,
) -> Result<ContainerConfig, FieldError> {
    let config = config.ok_or(FieldError::Missing("config"))?;
    let metadata = config
        .metadata
        .as_ref()
        .ok_or(FieldError::Missing("config.metadata"))?;
    if metadata.name.is_empty() {
        return Err(FieldError::Missing("config.metadata.name"));
    }
    // An image is the same for every handler; annotations of an image are for those who read them back.
    let image = config.image.clone().unwrap_or_default();
    if image.image.is_empty() {
        return Err(FieldError::Missing("config.image.image"));
    }
    if config.windows.is_some() {
        return Err(FieldError::NotBuilt {
            field: "config.windows",
            why: "this is Linux",
        });
    }
    if let Some(device) = config.cdi_devices.iter().find(|d| d.name.is_empty()) {
        return Err(FieldError::invalid(
            "config.CDI_devices.name",
            &device.name,
            "must be vendor/class=device",
        ));
    }
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    let pod_user = security
        .namespace_options
        .as_ref()
        .and_then(|options| options.userns_options.clone())
        .unwrap_or_default();
    if let Some(mount) = config.mounts.iter().find(|mount| {
        (!mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty())
            && (mount.uid_mappings != pod_user.uids || mount.gid_mappings != pod_user.gids)
    }) {
        return Err(FieldError::invalid(
            "config.mounts.uidMappings",
            &mount.container_path,
            "a mount's mappings must be those of the container's userns_options",
        ));
    }
    Ok(ContainerConfig {
        metadata: ContainerMetadata {
            name: metadata.name.clone(),
            attempt: metadata.attempt,
        },
        user_specified_image: match image.user_specified_image.as_str() {
            "" => image.image.clone(),
            named => named.to_owned(),
        },
        image: image.image,
        command: config.command.clone(),
        args: config.args.clone(),
        working_dir: config.working_dir.clone(),
        envs: config
            .envs
            .iter()
            .map(environment)
            .collect::<Result<_, _>>()?,
        mounts: config
            .mounts
            .iter()
            .map(|wanted| mount(wanted, node))
            .collect::<Result<_, _>>()?,
        devices: config
            .devices
            .iter()
            .map(device)
            .collect::<Result<_, _>>()?,
        cdi_devices: config.cdi_devices.iter().map(|d| d.name.clone()).collect(),
        labels: config.labels.clone().into_iter().collect(),
        annotations: config.annotations.clone().into_iter().collect(),
        log_path: log_path(&config.log_path)?,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        resources: resources(&linux.resources.unwrap_or_default())?,
        security: security_context(&security, node)?,
        stop_signal: stop_signal(config.stop_signal)?,
        origin: Origin::Cri,
    })
}

/// The runtime keeps text: an environment that is none would be passed on as something else.
fn environment(pair: &v1::KeyValue) -> Result<(String, String), FieldError> {
    if pair.key.is_empty() || pair.key.contains('=') {
        return Err(FieldError::invalid(
            "config.envs.key",
            &pair.key,
            "must be a name without '='",
        ));
    }
    match String::from_utf8(pair.value.to_vec()) {
        Ok(value) => Ok((pair.key.clone(), value)),
        Err(_) => Err(FieldError::invalid(
            "config.envs.value",
            &pair.key,
            "the variable's value is not UTF-8",
        )),
    }
}

fn mount(mount: &v1::Mount, node: NodeFacts) -> Result<Mount, FieldError> {
    if mount.container_path.is_empty() {
        return Err(FieldError::Missing("config.mounts.container_path"));
    }
    if mount.selinux_relabel && node.selinux {
        return Err(FieldError::NotBuilt {
            field: "config.mounts.selinux_relabel",
            why: "it sets no SELinux labels yet",
        });
    }
    if !mount.mount_options.is_empty() {
        return Err(FieldError::NotBuilt {
            field: "config.mounts.mount_options",
            why: "Status says so in features.mount_options",
        });
    }
    let image = mount
        .image
        .as_ref()
        .map(|image| image.image.clone())
        .filter(|image| !image.is_empty());
    if image.is_none() && mount.host_path.is_empty() {
        return Err(FieldError::Missing("config.mounts.host_path"));
    }
    if image.is_some() && !mount.host_path.is_empty() {
        return Err(FieldError::invalid(
            "config.mounts.host_path",
            &mount.host_path,
            "not together with an image",
        ));
    }
    if image.is_some() && !mount.readonly {
        return Err(FieldError::invalid(
            "config.mounts.readonly",
            false,
            "an image is mounted read-only alone",
        ));
    }
    let propagation = match v1::MountPropagation::try_from(mount.propagation) {
        Ok(v1::MountPropagation::PropagationPrivate) => MountPropagation::Private,
        Ok(v1::MountPropagation::PropagationHostToContainer) => MountPropagation::HostToContainer,
        Ok(v1::MountPropagation::PropagationBidirectional) => MountPropagation::Bidirectional,
        Err(_) => {
            return Err(FieldError::invalid(
                "config.mounts.propagation",
                mount.propagation,
                "no such propagation",
            ));
        }
    };
    if mount.recursive_read_only && !(mount.readonly && propagation == MountPropagation::Private) {
        return Err(FieldError::invalid(
            "config.mounts.recursive_read_only",
            &mount.container_path,
            "recursive read-only mounts must be readonly and of private propagation",
        ));
    }
    Ok(Mount {
        container_path: mount.container_path.clone(),
        host_path: PathBuf::from(&mount.host_path),
        readonly: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        propagation,
        image,
        image_sub_path: mount.image_sub_path.clone(),
        // The mappings themselves are the pod's, as was looked at.
        idmap: !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty(),
    })
}

fn device(device: &v1::Device) -> Result<Device, FieldError> {
    if device.host_path.is_empty() {
        return Err(FieldError::Missing("config.devices.host_path"));
    }
    if device.permissions.chars().any(|c| !"rwm".contains(c)) {
        return Err(FieldError::invalid(
            "config.devices.permissions",
            &device.permissions,
            "must be of r, w and m",
        ));
    }
    Ok(Device {
        container_path: match device.container_path.as_str() {
            "" => device.host_path.clone(),
            path => path.to_owned(),
        },
        host_path: PathBuf::from(&device.host_path),
        permissions: device.permissions.clone(),
    })
}

/// Below the sandbox's log directory, and nowhere else.
fn log_path(text: &str) -> Result<PathBuf, FieldError> {
    let path = PathBuf::from(text);
    let inside = path
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if inside {
        return Ok(path);
    }
    Err(FieldError::invalid(
        "config.log_path",
        text,
        "must be relative to the sandbox's log_directory, without '..'",
    ))
}

/// `SIGNAL_SIGRTMINPLUS3` is called `SIGRTMIN+3` elsewhere.
fn stop_signal(value: i32) -> Result<Option<String>, FieldError> {
    let signal = v1::Signal::try_from(value)
        .map_err(|_| FieldError::invalid("config.stop_signal", value, "no such signal"))?;
    if signal == v1::Signal::RuntimeDefault {
        return Ok(None);
    }
    let name = signal.as_str_name().trim_start_matches("SIGNAL_");
    Ok(Some(name.replace("PLUS", "+").replace("MINUS", "-")))
}
