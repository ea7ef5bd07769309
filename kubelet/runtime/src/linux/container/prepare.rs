//! From a config to a container's record and OCI spec: everything that can be wrong before its start.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use shim_protocol::chain;

use super::environment;
use super::rootfs::{PodUser, check_ordinary, mount_root, read_in_root, stage, stage_mounts};
use crate::api::*;
use crate::linux::record::{ContainerRecord, RECORD_VERSION, SandboxRecord};
use crate::linux::{Inner, apparmor, blocking, image, io, layout, machine, volume};
use crate::spec::cdi::Injected;
use crate::spec::{self, DeviceNode, Facts, User};

/// Mounts the container's files and writes its record and spec.
///
/// # Errors
/// What was made stays; `clean` takes it away.
pub async fn prepare(
    inner: &Arc<Inner>,
    sandbox: &SandboxRecord,
    config: &ContainerConfig,
    image: &images::Image,
    id: &str,
) -> Result<ContainerRecord, RuntimeError> {
    let lower = inner
        .images
        .hold(&image.id, id)
        .await
        .map_err(image::store_error)?;
    let mut image_mounts = Vec::new();
    for (index, wanted) in config.mounts.iter().enumerate() {
        if let Some(name) = &wanted.image {
            let layers = inner
                .images
                .hold(name, &image_holder(id, index))
                .await
                .map_err(image::store_error)?;
            image_mounts.push((index, layers));
        }
    }
    let target = target_namespace(inner, &config.security.namespaces)?;
    let facts = {
        let (inner, sandbox, config, id) = (
            inner.clone(),
            sandbox.clone(),
            config.clone(),
            id.to_owned(),
        );
        let facts = image::facts(image);
        blocking(move || {
            gather(
                &inner,
                &sandbox,
                &config,
                &id,
                &lower,
                &image_mounts,
                &facts,
            )
        })
        .await?
    };
    let mut facts = Facts {
        target_pid_namespace: target,
        ..facts
    };
    facts.seccomp_filter =
        seccomp_filter(inner, &config.security, facts.available_capabilities).await?;
    let spec = spec::container_spec(&sandbox.config, config, &image::facts(image), &facts)
        .map_err(|error| RuntimeError::Create(chain(&error)))?;
    let record = ContainerRecord {
        version: RECORD_VERSION,
        id: id.to_owned(),
        sandbox_id: sandbox.id.clone(),
        config: config.clone(),
        image_id: image.id.clone(),
        image_ref: image.repo_digests.first().unwrap_or(&image.id).clone(),
        created_at: jiff::Timestamp::now(),
        process: spec.process,
        device_rules: spec.device_rules,
        private_mounts: spec.private_mounts,
        dev_mount: spec.dev_mount,
        shared_pid: spec.shared_pid,
        cgroup_path: facts.cgroup_path,
        log_path: log_path(&sandbox.config, config),
        stop_signal: stop_signal(config, image)?,
        resources: config.resources.clone(),
        started: false,
        failure: None,
    };
    let directory = inner.layout.container(id);
    layout::write_record(&directory.join("config.json"), &spec.oci)
        .map_err(io("write config.json"))?;
    environment::keep(inner, &record).map_err(io("write the container's environment"))?;
    environment::write_record(inner, &record).map_err(io("write the container's record"))?;
    Ok(record)
}

/// Empty, which is no log, unless both halves are given. Upstream: containerd's "Logging will be disabled due to empty log paths".
fn log_path(sandbox: &PodSandboxConfig, config: &ContainerConfig) -> PathBuf {
    let halves = [&sandbox.log_directory, &config.log_path];
    match halves.iter().any(|half| half.as_os_str().is_empty()) {
        true => PathBuf::new(),
        false => sandbox.log_directory.join(&config.log_path),
    }
}

fn image_holder(id: &str, index: usize) -> String {
    format!("{id}-image-{index}")
}

fn stop_signal(config: &ContainerConfig, image: &images::Image) -> Result<String, RuntimeError> {
    let name = config
        .stop_signal
        .clone()
        .or_else(|| image::stop_signal(image))
        .unwrap_or_else(|| "SIGTERM".to_owned());
    match machine::signal_number(&name) {
        Some(_) => Ok(name),
        // As containerd: an image's odd signal is no reason not to run it.
        None if config.stop_signal.is_none() => Ok("SIGTERM".to_owned()),
        None => Err(RuntimeError::Invalid {
            field: "stopSignal",
            value: name,
            reason: "not a signal of this machine".to_owned(),
        }),
    }
}

fn target_namespace(
    inner: &Inner,
    namespaces: &NamespaceOptions,
) -> Result<Option<PathBuf>, RuntimeError> {
    if namespaces.pid != NamespaceMode::Target {
        return Ok(None);
    }
    let id = namespaces.target_id.clone().unwrap_or_default();
    let target = inner.container(&id)?;
    match target.pid() {
        Some(pid) => Ok(Some(format!("/proc/{pid}/ns/pid").into())),
        None => Err(RuntimeError::NotRunning {
            id,
            state: target.phase().state(),
        }),
    }
}

/// Mounts the root, stages the volumes, and looks up what the spec needs to know.
fn gather(
    inner: &Inner,
    sandbox: &SandboxRecord,
    config: &ContainerConfig,
    id: &str,
    lower: &[PathBuf],
    image_mounts: &[(usize, Vec<PathBuf>)],
    image: &spec::ImageFacts,
) -> Result<Facts, RuntimeError> {
    let state_dir = inner.layout.sandbox_state(&sandbox.id);
    let namespace_dir = inner.layout.namespaces(&sandbox.id);
    let pod_user = match &sandbox.config.namespaces.user {
        Some(mapping) => Some(PodUser {
            namespace: File::open(namespace_dir.join("user"))
                .map_err(io("open the pod's user namespace"))?,
            mapping,
        }),
        None => None,
    };
    let pod_user = pod_user.as_ref();
    let rootfs = mount_root(inner, id, lower, pod_user)?;
    check_ordinary(&rootfs)?;
    let text = |path| read_in_root(&rootfs, path);
    let user = spec::user::resolve(
        &config.security,
        &image.user,
        &text("/etc/passwd"),
        &text("/etc/group"),
    )
    .map_err(|error| RuntimeError::Create(chain(&error)))?;
    let mount_sources = stage_mounts(inner, id, config, image_mounts, pod_user)?;
    let (cdi_nodes, cdi) = cdi_devices(inner, id, config, &user, pod_user)?;
    let no_devices = |error| RuntimeError::Create(format!("devices: {}", chain(&error)));
    let mut devices = machine::devices(&config.devices).map_err(no_devices)?;
    if config.security.privileged {
        let all = machine::all_devices().map_err(no_devices)?;
        let asked: Vec<String> = devices
            .iter()
            .map(|d| spec::clean(&d.container_path))
            .collect();
        devices.extend(
            all.into_iter()
                .filter(|d| !asked.contains(&d.container_path)),
        );
    }
    for node in cdi_nodes {
        // The last one that wants a place has it.
        devices.retain(|d| spec::clean(&d.container_path) != node.container_path);
        devices.push(node);
    }
    let taken: Vec<String> = config
        .mounts
        .iter()
        .map(|mount| spec::clean(&mount.container_path))
        .collect();
    let volumes = inner.layout.container(id).join("volumes");
    let mut image_volumes = volume::prepare(&rootfs, &volumes, &image.volumes, &taken)
        .map_err(|error| RuntimeError::Create(format!("the image's volumes: {}", chain(&error))))?;
    for (index, (_, path)) in image_volumes.iter_mut().enumerate() {
        // Copied from the root as the namespace sees it: owned by its ids already.
        *path = stage(inner, id, &format!("image-{index}"), path, false, pod_user)?;
    }
    let pod_file = |name: &str| {
        let path = inner.layout.pod_file(&sandbox.id, name);
        stage(inner, id, name, &path, true, pod_user)
    };
    let own_ipc = sandbox.config.namespaces.ipc != NamespaceMode::Node;
    Ok(Facts {
        rootfs,
        namespace_dir,
        target_pid_namespace: None,
        cgroup_path: Path::new("/")
            .join(sandbox.config.cgroup_parent.trim_start_matches('/'))
            .join(id),
        unified_cgroups: inner.cgroups.is_unified(),
        v1_controllers: inner.cgroups.v1_controllers(),
        hugetlb: inner.cgroups.hugetlb(),
        swap_accounting: inner.cgroups.swap_accounting(),
        available_capabilities: inner.available_capabilities,
        shm_path: if own_ipc {
            // Any id may write there: it needs no mapping, which tmpfs has from Linux 6.3 on only.
            stage(inner, id, "shm", &state_dir.join("shm"), false, pod_user)?
        } else {
            "/dev/shm".into()
        },
        resolv_conf: pod_file("resolv.conf")?,
        hostname_file: pod_file("hostname")?,
        mount_sources,
        image_volumes,
        devices,
        cdi,
        user: User { ..user },
        seccomp_filter: None,
        apparmor_profile: apparmor::profile(&config.security.apparmor)
            .map_err(|error| RuntimeError::Create(error.to_string()))?,
    })
}

/// What the container's CDI devices bring: their nodes, and the rest.
fn cdi_devices(
    inner: &Inner,
    id: &str,
    config: &ContainerConfig,
    user: &User,
    pod_user: Option<&PodUser<'_>>,
) -> Result<(Vec<DeviceNode>, Injected), RuntimeError> {
    let failed = |error: &dyn std::fmt::Display| {
        RuntimeError::Create(format!("CDI device injection failed: {error}"))
    };
    let annotated = cdi::annotated_names(&config.annotations).map_err(|error| failed(&error))?;
    let names: Vec<String> = config
        .cdi_devices
        .iter()
        .cloned()
        .chain(annotated)
        .collect();
    if names.is_empty() {
        return Ok(Default::default());
    }
    let parsed = names
        .iter()
        .filter_map(|name| cdi::QualifiedName::parse(name).ok());
    let kinds: Vec<String> = parsed.map(|name| name.kind()).collect();
    let files = cdi::read(&inner.config.cdi_spec_dirs, &kinds);
    for error in &files.unreadable {
        tracing::warn!(container = %id, %error, "a file of CDI devices counts for nothing");
    }
    let parts = cdi::resolve(&files.specs, &names).map_err(|error| failed(&error))?;
    let plan = spec::cdi::plan(&parts).map_err(|error| failed(&error))?;
    let mut nodes: Vec<DeviceNode> = Vec::new();
    for (device, wanted) in &plan.nodes {
        let path = match wanted.host_path.as_str() {
            "" => Path::new(&wanted.path),
            path => Path::new(path),
        };
        let made = spec::cdi::device_node(wanted, machine::host_node(path), (user.uid, user.gid));
        nodes.push(made.map_err(|error| failed(&format!("{device}: {error}")))?);
    }
    let mut injected = plan.rest;
    for (index, mut mount) in plan.mounts.into_iter().enumerate() {
        if mount.is_bind() {
            // Unlike that of a pod's volume it is not made: what a device needs is there, or the device is not.
            let source = fs::metadata(&mount.source);
            source
                .map_err(|error| failed(&format!("mount {}: {error}", mount.source.display())))?;
            let name = format!("cdi-{index}");
            mount.source = stage(inner, id, &name, &mount.source, true, pod_user)?;
        }
        injected.mounts.push(mount);
    }
    Ok((nodes, injected))
}

/// The compiled filter of the container's profile; compiled at its first use, then kept.
async fn seccomp_filter(
    inner: &Inner,
    security: &SecurityContext,
    available: u64,
) -> Result<Option<PathBuf>, RuntimeError> {
    if security.privileged {
        return Ok(None);
    }
    let profile = match &security.seccomp {
        SecurityProfile::Unconfined => return Ok(None),
        SecurityProfile::RuntimeDefault => {
            let set = spec::capabilities(security, available)
                .map_err(|error| RuntimeError::Create(chain(&error)))?;
            spec::seccomp::default_profile(set).to_string().into_bytes()
        }
        SecurityProfile::Localhost(path) => fs::read(path).map_err(|error| {
            RuntimeError::Create(format!(
                "cannot load seccomp profile {:?}: {error}",
                path.display().to_string()
            ))
        })?,
    };
    let mut hash = Sha256::new();
    hash.update(env!("CARGO_PKG_VERSION"));
    hash.update(&profile);
    let name: String = hash
        .finalize()
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let directory = inner.layout.seccomp();
    let filter = directory.join(format!("{name}.bpf"));
    if filter.exists() {
        return Ok(Some(filter));
    }
    let source = directory.join(format!("{name}.json"));
    host::atomic_file::write(&source, &profile).map_err(io("write a seccomp profile"))?;
    inner
        .shim
        .run(&[
            "compile-seccomp".as_ref(),
            source.as_os_str(),
            filter.as_os_str(),
        ])
        .await
        .map_err(|error| RuntimeError::Create(format!("seccomp profile: {}", chain(&error))))?;
    Ok(Some(filter))
}
