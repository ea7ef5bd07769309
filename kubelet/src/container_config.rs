//! From a container of a pod to what the runtime makes of it.
//!
//! Owns: command expansion, mounts, labels, the termination message file; [`generate_container_config`]. Upstream:
//! `generateContainerConfig` in `pkg/kubelet/kuberuntime`, `makeMounts` in `kubelet_pods.go`, v1.36.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use runtime::api as cri;
use volumes::{PodVolume, PodVolumes, SubPathError, VolumeLocation, VolumeManager};

use crate::device_plugins;
use crate::environment::expansion::{ExpandError, MAX_BYTES, TooLong, expand, try_expand};
use crate::paths::Paths;
use crate::pod::{self, label};

/// Bytes of a path. Source: the kernel's `PATH_MAX`.
const MAX_PATH: usize = 4096;

/// Why the container cannot be made as the pod says; reason `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub enum ContainerConfigError {
    #[error(transparent)]
    Environment(#[from] crate::environment::EnvironmentError),
    #[error(transparent)]
    Security(#[from] crate::security_context::SecurityContextError),
    #[error(transparent)]
    Hostname(#[from] crate::hosts::HostnameError),
    #[error(transparent)]
    UserNamespace(#[from] crate::user_namespaces::UserNamespaceError),
    #[error("cannot find volume {volume:?} to mount into container {container:?}")]
    NoVolume { volume: String, container: String },
    #[error("missing value for {name:?} in subPathExpr {expression:?} of volumeMount {volume:?}")]
    SubPathExpr {
        name: String,
        expression: String,
        volume: String,
    },
    #[error("subPathExpr of volumeMount {volume:?} has {source}")]
    LongSubPath { volume: String, source: TooLong },
    #[error("{field} of container {container:?} has {source}")]
    LongCommand {
        field: &'static str,
        container: String,
        source: TooLong,
    },
    #[error(transparent)]
    SubPath(#[from] SubPathError),
    #[error("invalid MountPropagation mode: {0:?}")]
    Propagation(String),
    #[error("cannot find block volume {device:?} to map into container {container:?}")]
    NoDevice { container: String, device: String },
    #[error(
        "volume {volume:?} of container {container:?} is a device: it is named in volumeDevices, not in volumeMounts"
    )]
    Device { volume: String, container: String },
    #[error("unable to find target container {0}")]
    NoTarget(String),
    #[error(transparent)]
    Devices(#[from] ::devices::DevicesError),
    #[error(transparent)]
    Claims(#[from] crate::dynamic_resources::PrepareError),
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: std::io::Error,
    },
}

/// Everything about the container that was found out before.
pub struct ContainerFacts<'a> {
    pub restart_count: u32,
    /// What `image_status` knows the image by.
    pub image_ref: String,
    /// Those of its devices, too.
    pub envs: Vec<(String, String)>,
    /// What its devices bring along besides.
    pub injection: ::devices::Injection,
    /// Names of CDI devices, none twice: those of its claims, then those of its plugins.
    pub cdi_devices: Vec<String>,
    pub security: cri::SecurityContext,
    pub resources: cri::Resources,
    pub volumes: &'a PodVolumes,
    /// Volume name -> image id, for image volumes.
    pub image_volumes: &'a HashMap<String, String>,
    pub volume_manager: &'a VolumeManager,
    pub paths: &'a Paths,
    /// `None`: the container gets no managed hosts file.
    pub hosts_file: Option<PathBuf>,
    pub supports_rro: bool,
    /// Gate `ContainerStopSignals`.
    pub stop_signals: bool,
}

/// # Errors
/// The first thing that does not fit; a retry helps where an object or a directory was missing.
pub async fn generate_container_config(
    pod: &Pod,
    container: &Container,
    facts: ContainerFacts<'_>,
) -> Result<cri::ContainerConfig, ContainerConfigError> {
    let mut devices = device_plugins::nodes(&facts.injection);
    devices.extend(make_devices(container, facts.volumes)?);
    let lookup: HashMap<&str, &str> = facts
        .envs
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    let mut room = MAX_BYTES;
    let mut expand_all = |field, list: &Option<Vec<String>>| {
        let words = list.iter().flatten().map(|text| {
            let word = expand(text, room, |name| lookup.get(name).copied())?;
            room -= word.len();
            Ok(word)
        });
        let words: Result<Vec<String>, TooLong> = words.collect();
        words.map_err(|source| ContainerConfigError::LongCommand {
            field,
            container: container.name.clone(),
            source,
        })
    };
    let command = expand_all("command", &container.command)?;
    let args = expand_all("args", &container.args)?;
    let mut mounts = device_plugins::mounts(&facts.injection);
    mounts.extend(make_mounts(pod, container, &facts, &lookup).await?);
    if let Some(mut mount) = termination_message_mount(pod, container, facts.paths)? {
        mount.idmap = facts.security.namespaces.user.is_some();
        mounts.push(mount);
    }
    // Ours count before those.
    let mut annotations = facts.injection.annotations.clone();
    annotations.extend(new_container_annotations(
        pod,
        container,
        facts.restart_count,
    ));
    Ok(cri::ContainerConfig {
        origin: cri::Origin::Kubelet,
        metadata: cri::ContainerMetadata {
            name: container.name.clone(),
            attempt: facts.restart_count,
        },
        image: facts.image_ref,
        user_specified_image: container.image.clone().unwrap_or_default(),
        command,
        args,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        mounts,
        devices,
        cdi_devices: facts.cdi_devices,
        labels: new_container_labels(pod, container),
        annotations,
        log_path: PathBuf::from(&container.name).join(format!("{}.log", facts.restart_count)),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        resources: facts.resources,
        security: facts.security,
        stop_signal: container
            .lifecycle
            .as_ref()
            .and_then(|l| l.stop_signal.clone())
            .filter(|_| facts.stop_signals),
        envs: facts.envs,
    })
}

fn new_container_labels(pod: &Pod, container: &Container) -> cri::Labels {
    [
        (label::POD_NAME, pod::name(pod)),
        (label::POD_NAMESPACE, pod::namespace(pod)),
        (label::POD_UID, pod::uid(pod)),
        (label::CONTAINER_NAME, &container.name),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into()
}

/// What a restarted kubelet must know to stop the container well, even with the pod gone from the API.
fn new_container_annotations(
    pod: &Pod,
    container: &Container,
    restart_count: u32,
) -> cri::Annotations {
    let mut out = cri::Annotations::new();
    let mut put = |key: &str, value: String| out.insert(key.to_owned(), value);
    put(
        label::CONTAINER_HASH,
        format!("{:x}", pod::hash_container(container)),
    );
    put(label::CONTAINER_RESTART_COUNT, restart_count.to_string());
    if let Some(text) = crate::resize::restarting_resources(container) {
        put(label::CONTAINER_RESTARTING_RESOURCES, text);
    }
    put(
        label::TERMINATION_MESSAGE_PATH,
        container
            .termination_message_path
            .clone()
            .unwrap_or_default(),
    );
    put(
        label::TERMINATION_MESSAGE_POLICY,
        container
            .termination_message_policy
            .clone()
            .unwrap_or_default(),
    );
    if let Some(seconds) = pod.metadata.deletion_grace_period_seconds {
        put(label::POD_DELETION_GRACE_PERIOD, seconds.to_string());
    }
    if let Some(seconds) = pod
        .spec
        .as_ref()
        .and_then(|s| s.termination_grace_period_seconds)
    {
        put(label::POD_TERMINATION_GRACE_PERIOD, seconds.to_string());
    }
    let pre_stop = container
        .lifecycle
        .as_ref()
        .and_then(|l| l.pre_stop.as_ref());
    if let Some(text) = pre_stop.and_then(|h| serde_json::to_string(h).ok()) {
        put(label::CONTAINER_PRE_STOP_HANDLER, text);
    }
    if let Some(text) = container
        .ports
        .as_ref()
        .and_then(|p| serde_json::to_string(p).ok())
    {
        put(label::CONTAINER_PORTS, text);
    }
    out
}

fn translate_mount_propagation(
    mode: Option<&str>,
) -> Result<cri::MountPropagation, ContainerConfigError> {
    match mode {
        None | Some("None") => Ok(cri::MountPropagation::Private),
        Some("HostToContainer") => Ok(cri::MountPropagation::HostToContainer),
        Some("Bidirectional") => Ok(cri::MountPropagation::Bidirectional),
        Some(other) => Err(ContainerConfigError::Propagation(other.to_owned())),
    }
}

fn sub_path_of(
    mount: &VolumeMount,
    env: &HashMap<&str, &str>,
) -> Result<Option<String>, ContainerConfigError> {
    if let Some(expression) = mount.sub_path_expr.as_deref().filter(|e| !e.is_empty()) {
        let volume = || mount.name.clone();
        return try_expand(expression, MAX_PATH, |name| env.get(name).copied())
            // Of nothing but empty variables: the volume itself.
            .map(|path| Some(path).filter(|path| !path.is_empty()))
            .map_err(|error| match error {
                ExpandError::Unknown(name) => ContainerConfigError::SubPathExpr {
                    name,
                    expression: expression.to_owned(),
                    volume: volume(),
                },
                ExpandError::TooLong(source) => ContainerConfigError::LongSubPath {
                    volume: volume(),
                    source,
                },
            });
    }
    Ok(mount.sub_path.clone().filter(|p| !p.is_empty()))
}

async fn make_mounts(
    pod: &Pod,
    container: &Container,
    facts: &ContainerFacts<'_>,
    env: &HashMap<&str, &str>,
) -> Result<Vec<cri::Mount>, ContainerConfigError> {
    let idmap = facts.security.namespaces.user.is_some();
    let mut mounts = vec![];
    let mut own_hosts_file = false;
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        own_hosts_file |= mount.mount_path == "/etc/hosts";
        let volume =
            facts
                .volumes
                .get(&mount.name)
                .ok_or_else(|| ContainerConfigError::NoVolume {
                    volume: mount.name.clone(),
                    container: container.name.clone(),
                })?;
        let sub_path = sub_path_of(mount, env)?;
        mounts.push(
            make_mount(
                pod,
                container,
                facts,
                (index, mount),
                volume,
                sub_path,
                idmap,
            )
            .await?,
        );
    }
    if let Some(path) = facts.hosts_file.as_ref().filter(|_| !own_hosts_file) {
        mounts.push(cri::Mount {
            container_path: "/etc/hosts".to_owned(),
            host_path: path.clone(),
            readonly: false,
            idmap,
            ..cri::Mount::default()
        });
    }
    Ok(mounts)
}

/// Upstream: `makeBlockVolumes`.
fn make_devices(
    container: &Container,
    volumes: &PodVolumes,
) -> Result<Vec<cri::Device>, ContainerConfigError> {
    let devices = container.volume_devices.iter().flatten();
    let made = devices.map(|device| {
        let volume = volumes.get(&device.name);
        let Some((volume, VolumeLocation::Device(path))) = volume.map(|v| (v, &v.location)) else {
            return Err(ContainerConfigError::NoDevice {
                container: container.name.clone(),
                device: device.name.clone(),
            });
        };
        let permissions = if volume.read_only { "r" } else { "mrw" };
        Ok(cri::Device {
            container_path: device.device_path.clone(),
            host_path: path.clone(),
            permissions: permissions.to_owned(),
        })
    });
    made.collect()
}

async fn make_mount(
    pod: &Pod,
    container: &Container,
    facts: &ContainerFacts<'_>,
    (index, mount): (usize, &VolumeMount),
    volume: &PodVolume,
    sub_path: Option<String>,
    idmap: bool,
) -> Result<cri::Mount, ContainerConfigError> {
    let container_path = if mount.mount_path.starts_with('/') {
        mount.mount_path.clone()
    } else {
        format!("/{}", mount.mount_path)
    };
    let readonly = mount.read_only.unwrap_or(false) || volume.read_only;
    let recursive_read_only = match mount.recursive_read_only.as_deref() {
        Some("Enabled") => true,
        Some("IfPossible") => facts.supports_rro && mount.read_only.unwrap_or(false),
        _ => false,
    };
    let mut out = cri::Mount {
        container_path,
        readonly,
        recursive_read_only,
        propagation: translate_mount_propagation(mount.mount_propagation.as_deref())?,
        idmap,
        ..cri::Mount::default()
    };
    match &volume.location {
        VolumeLocation::Image { .. } => {
            let image = facts.image_volumes.get(&mount.name).ok_or_else(|| {
                ContainerConfigError::NoVolume {
                    volume: mount.name.clone(),
                    container: container.name.clone(),
                }
            })?;
            out.image = Some(image.clone());
            out.image_sub_path = sub_path.unwrap_or_default();
            out.readonly = true;
            out.idmap = false;
        }
        VolumeLocation::Device(_) => {
            return Err(ContainerConfigError::Device {
                volume: mount.name.clone(),
                container: container.name.clone(),
            });
        }
        VolumeLocation::Path(path) => {
            out.host_path = match sub_path {
                Some(sub_path) => {
                    facts
                        .volume_manager
                        .sub_path(pod::uid(pod), volume, &container.name, index, &sub_path)
                        .await?
                }
                None => path.clone(),
            };
        }
    }
    Ok(out)
}

/// A fresh file for each start, so that an old message is never taken for a new one.
fn termination_message_mount(
    pod: &Pod,
    container: &Container,
    paths: &Paths,
) -> Result<Option<cri::Mount>, ContainerConfigError> {
    let Some(target) = container
        .termination_message_path
        .as_deref()
        .filter(|p| !p.is_empty())
    else {
        return Ok(None);
    };
    let dir = paths.container(pod::uid(pod), &container.name);
    let make = || -> std::io::Result<PathBuf> {
        std::fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{:08x}", rand::random::<u32>()));
        std::fs::File::create(&path)?;
        use std::os::unix::fs::PermissionsExt;
        // Any user of the container may write it, whatever the umask.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
        Ok(path)
    };
    let host_path = make().map_err(|source| ContainerConfigError::Io {
        what: format!("create termination message file in {}", dir.display()),
        source,
    })?;
    Ok(Some(cri::Mount {
        container_path: target.to_owned(),
        host_path,
        ..cri::Mount::default()
    }))
}

/// One more than the newest log's number: a runtime that lost its memory must not write over old logs.
pub fn calc_restart_count_by_log_dir(dir: &Path) -> u32 {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    entries
        .filter_map(|e| {
            e.ok()?
                .file_name()
                .to_str()?
                .split('.')
                .next()?
                .parse::<u32>()
                .ok()
        })
        .max()
        .map_or(0, |n| n + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_paths_of_variables() {
        let env = HashMap::from([("POD", "web-0"), ("EMPTY", "")]);
        let check = |expression: &str, expect: Result<Option<&str>, &str>| {
            let mount = VolumeMount {
                name: "v".into(),
                sub_path_expr: Some(expression.into()),
                ..VolumeMount::default()
            };
            let got = sub_path_of(&mount, &env).map_err(|error| error.to_string());
            let expect = expect.map(|path| path.map(str::to_owned));
            assert_eq!(got, expect.map_err(str::to_owned), "{expression}");
        };
        check("logs/$(POD)", Ok(Some("logs/web-0")));
        check("$(EMPTY)", Ok(None));
        check("", Ok(None));
        check(
            "$(NONE)",
            Err("missing value for \"NONE\" in subPathExpr \"$(NONE)\" of volumeMount \"v\""),
        );
    }
}
