//! Containers: root file system, spec, start, stop, removal.
//!
//! As with containerd, `create` only prepares: libcontainer runs at `start`, and what is wrong with
//! the program then ends the container with exit code 128 and reason `StartError`.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use shim_protocol::{ContainerStart, ErrorKind, Request, Response, ShimError};

use super::record::{
    Container, ContainerPhase, ContainerRecord, Failure, RECORD_VERSION, SandboxRecord,
};
use super::shim::{self, Connection, ShimCallError};
use super::{Inner, blocking, image, io, layout, machine, mount, shim_error, volume, watch};
use crate::api::*;
use crate::spec::{self, Facts, User};

/// After SIGKILL a process is gone at once, but for one stuck in the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(120);

/// Of the image's /etc/passwd and /etc/group at most this much is read.
const MAX_USER_FILE_BYTES: u64 = 8 << 20;

pub async fn create(
    inner: &Arc<Inner>,
    sandbox_id: &str,
    config: &ContainerConfig,
) -> Result<String, RuntimeError> {
    let sandbox = inner.sandbox(sandbox_id)?;
    let sandbox_record = sandbox.record().clone();
    if sandbox.is_stopping() {
        return Err(RuntimeError::Create(format!(
            "pod sandbox {sandbox_id} is not running"
        )));
    }
    let image = inner
        .images
        .status(&config.image)
        .await
        .map_err(image::store_error)?
        .ok_or_else(|| ImageError::NotFound {
            image: config.image.clone(),
        })?;
    let id = machine::new_id().map_err(io("read random bytes"))?;
    let result = prepare(inner, &sandbox_record, config, &image, &id).await;
    match result {
        Ok(record) => {
            let container = Container::new(record, ContainerPhase::Created);
            inner.containers().insert(id.clone(), container);
            Ok(id)
        }
        Err(error) => {
            clean(inner, &id, None).await;
            Err(error)
        }
    }
}

async fn prepare(
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
        .map_err(|error| RuntimeError::Create(error.to_string()))?;
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
        shared_pid: spec.shared_pid,
        cgroup_path: facts.cgroup_path,
        log_path: sandbox.config.log_directory.join(&config.log_path),
        stop_signal: stop_signal(config, image)?,
        resources: config.resources.clone(),
        started: false,
        failure: None,
    };
    let directory = inner.layout.container(id);
    layout::write_record(&directory.join("config.json"), &spec.oci)
        .map_err(io("write config.json"))?;
    layout::write_record(&inner.layout.container_record(id), &record)
        .map_err(io("write the container's record"))?;
    Ok(record)
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
    let user_namespace = match &sandbox.config.namespaces.user {
        Some(user) => {
            let file = File::open(namespace_dir.join("user"))
                .map_err(io("open the pod's user namespace"))?;
            Some((file, user))
        }
        None => None,
    };
    let rootfs = mount_root(inner, id, lower, user_namespace.as_ref())?;
    let text = |path| read_in_root(&rootfs, path);
    let user = spec::user::resolve(
        &config.security,
        &image.user,
        &text("/etc/passwd"),
        &text("/etc/group"),
    )
    .map_err(|error| RuntimeError::Create(error.to_string()))?;
    let mount_sources = stage_mounts(
        inner,
        id,
        config,
        image_mounts,
        user_namespace.as_ref().map(|(file, _)| file),
    )?;
    let devices = if config.security.privileged {
        machine::all_devices()
    } else {
        machine::devices(&config.devices)
    }
    .map_err(|error| RuntimeError::Create(format!("devices: {error}")))?;
    let taken: Vec<String> = config
        .mounts
        .iter()
        .map(|mount| spec::clean(&mount.container_path))
        .collect();
    let volumes = inner.layout.container(id).join("volumes");
    let image_volumes = volume::prepare(&rootfs, &volumes, &image.volumes, &taken)
        .map_err(|error| RuntimeError::Create(format!("the image's volumes: {error}")))?;
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
            state_dir.join("shm")
        } else {
            "/dev/shm".into()
        },
        resolv_conf: state_dir.join("resolv.conf"),
        hostname_file: state_dir.join("hostname"),
        mount_sources,
        image_volumes,
        devices,
        user: User { ..user },
        seccomp_filter: None,
    })
}

/// The overlay the container runs on. In a user namespace the layers are seen through an idmapped
/// view, and the writable layer belongs to the namespace's root.
fn mount_root(
    inner: &Inner,
    id: &str,
    lower: &[PathBuf],
    user_namespace: Option<&(File, &UserNamespace)>,
) -> Result<PathBuf, RuntimeError> {
    let directory = inner.layout.container(id);
    let (upper, work) = (directory.join("upper"), directory.join("work"));
    let rootfs = inner.layout.rootfs(id);
    for path in [&upper, &work, &rootfs] {
        fs::create_dir_all(path).map_err(io(format!("create {}", path.display())))?;
    }
    copy_attributes(&lower[0], &upper).map_err(io("set the writable layer's attributes"))?;
    let Some((namespace, mapping)) = user_namespace else {
        mount::overlay(&rootfs, lower, Some((&upper, &work)))
            .map_err(io("mount the root file system"))?;
        return Ok(rootfs);
    };
    let host_id = |maps: &[IdMapping]| {
        maps.iter()
            .find(|map| map.container_id == 0)
            .map_or(0, |map| map.host_id)
    };
    for path in [&upper, &work] {
        std::os::unix::fs::chown(
            path,
            Some(host_id(&mapping.uids)),
            Some(host_id(&mapping.gids)),
        )
        .map_err(io(format!("chown {}", path.display())))?;
    }
    let staging = inner.layout.container_state(id).join("lower");
    let mut staged = Vec::new();
    let mut result = Ok(());
    for (index, layer) in lower.iter().enumerate() {
        let target = staging.join(index.to_string());
        fs::create_dir_all(&target).map_err(io(format!("create {}", target.display())))?;
        result = mount::idmapped(layer, &target, namespace).map_err(|error| {
            RuntimeError::Create(format!(
                "user namespaces need a file system that supports idmapped mounts: {}: {error}",
                layer.display()
            ))
        });
        staged.push(target);
        if result.is_err() {
            break;
        }
    }
    let result = result.and_then(|()| {
        mount::overlay(&rootfs, &staged, Some((&upper, &work)))
            .map_err(io("mount the root file system"))
    });
    // The overlay keeps the views it was made from.
    for target in &staged {
        let _ = mount::unmount(target);
    }
    let _ = layout::remove_tree(&staging);
    result.map(|()| rootfs)
}

/// The root of the merged view is the writable layer's: it must look as the image's.
fn copy_attributes(from: &Path, to: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let data = fs::metadata(from)?;
    std::os::unix::fs::chown(to, Some(data.uid()), Some(data.gid()))?;
    fs::set_permissions(to, data.permissions())
}

fn read_in_root(root: &Path, path: &str) -> String {
    let mut text = Vec::new();
    if let Ok(file) = mount::open_in_root(root, path, libc::O_RDONLY | libc::O_NONBLOCK)
        && file.metadata().is_ok_and(|data| data.is_file())
    {
        let _ = file.take(MAX_USER_FILE_BYTES).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The host path behind each mount: as given, an idmapped view of it, or an image's root.
fn stage_mounts(
    inner: &Inner,
    id: &str,
    config: &ContainerConfig,
    image_mounts: &[(usize, Vec<PathBuf>)],
    user_namespace: Option<&File>,
) -> Result<Vec<PathBuf>, RuntimeError> {
    let state = inner.layout.container_state(id);
    let mut sources = Vec::with_capacity(config.mounts.len());
    for (index, wanted) in config.mounts.iter().enumerate() {
        let layers = image_mounts
            .iter()
            .find(|(at, _)| *at == index)
            .map(|(_, layers)| layers);
        let source = match (layers, user_namespace) {
            (Some(layers), _) => {
                let target = state.join("images").join(index.to_string());
                fs::create_dir_all(&target).map_err(io(format!("create {}", target.display())))?;
                mount_image(layers, &target).map_err(|error| {
                    RuntimeError::Create(format!("mount image {:?}: {error}", wanted.image))
                })?;
                sub_path(&target, &wanted.image_sub_path)?
            }
            (None, Some(namespace)) if wanted.idmap => {
                let target = state.join("volumes").join(index.to_string());
                let data = fs::metadata(&wanted.host_path).map_err(|error| {
                    RuntimeError::Create(format!("{}: {error}", wanted.host_path.display()))
                })?;
                let made = if data.is_dir() {
                    fs::create_dir_all(&target)
                } else {
                    fs::create_dir_all(state.join("volumes"))
                        .and_then(|()| File::create(&target).map(drop))
                };
                made.map_err(io(format!("create {}", target.display())))?;
                match mount::idmapped(&wanted.host_path, &target, namespace) {
                    Ok(()) => target,
                    // Not every file system can (tmpfs before 6.3, NFS): as containerd with uid mapping off.
                    Err(error) => {
                        return Err(RuntimeError::Create(format!(
                            "failed to set MOUNT_ATTR_IDMAP on {}: {error} (maybe the filesystem used doesn't support idmap mounts on this kernel?)",
                            wanted.host_path.display()
                        )));
                    }
                }
            }
            (None, _) => {
                if !wanted.host_path.exists() {
                    // containerd makes a missing source as a directory.
                    fs::create_dir_all(&wanted.host_path).map_err(|error| {
                        RuntimeError::Create(format!(
                            "failed to mkdir {:?}: {error}",
                            wanted.host_path
                        ))
                    })?;
                }
                if wanted.propagation != MountPropagation::Private {
                    check_propagation(wanted)?;
                }
                wanted.host_path.clone()
            }
        };
        sources.push(source);
    }
    Ok(sources)
}

fn mount_image(layers: &[PathBuf], target: &Path) -> std::io::Result<()> {
    if layers.len() > 1 {
        return mount::overlay(target, layers, None);
    }
    // A read-only overlay wants two layers.
    let empty = target.with_extension("empty");
    fs::create_dir_all(&empty)?;
    let both = [layers, std::slice::from_ref(&empty)].concat();
    mount::overlay(target, &both, None)
}

/// A path below an image's root, whose links cannot lead out of it.
fn sub_path(root: &Path, sub_path: &str) -> Result<PathBuf, RuntimeError> {
    if sub_path.is_empty() {
        return Ok(root.to_owned());
    }
    let bad = |reason: String| RuntimeError::Invalid {
        field: "subPath",
        value: sub_path.to_owned(),
        reason,
    };
    let file = mount::open_in_root(root, sub_path, libc::O_PATH)
        .map_err(|error| bad(format!("failed to find it in the image: {error}")))?;
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    fs::read_link(link).map_err(|error| bad(error.to_string()))
}

/// The host's side must be shared (or a slave) for the propagation asked for, as runc and upstream say.
fn check_propagation(wanted: &Mount) -> Result<(), RuntimeError> {
    let path = fs::canonicalize(&wanted.host_path).unwrap_or_else(|_| wanted.host_path.clone());
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(io("read mountinfo"))?;
    let flags = table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let end = fields.iter().position(|field| *field == "-")?;
            let point = Path::new(fields.get(4)?);
            path.starts_with(point)
                .then(|| (point.components().count(), fields[6..end].join(" ")))
        })
        // Of two mounts on one point the later one is on top.
        .max_by_key(|(depth, _)| *depth)
        .map(|(_, flags)| flags)
        .unwrap_or_default();
    let shared = flags.contains("shared:");
    let fits = match wanted.propagation {
        MountPropagation::Bidirectional => shared,
        MountPropagation::HostToContainer => shared || flags.contains("master:"),
        MountPropagation::Private => true,
    };
    if fits {
        return Ok(());
    }
    let kind = if wanted.propagation == MountPropagation::Bidirectional {
        "shared"
    } else {
        "shared or slave"
    };
    Err(RuntimeError::Create(format!(
        "path {:?} is mounted on a mount that is not a {kind} mount",
        wanted.host_path.display().to_string()
    )))
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
                .map_err(|error| RuntimeError::Create(error.to_string()))?;
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
    layout::write_atomically(&source, &profile).map_err(io("write a seccomp profile"))?;
    inner
        .shim
        .run(&[
            "compile-seccomp".as_ref(),
            source.as_os_str(),
            filter.as_os_str(),
        ])
        .await
        .map_err(|error| RuntimeError::Create(format!("seccomp profile: {error}")))?;
    Ok(Some(filter))
}

pub async fn start(inner: &Arc<Inner>, id: &str) -> Result<(), RuntimeError> {
    let container = inner.container(id)?;
    if container.phase() != ContainerPhase::Created {
        return Err(RuntimeError::Start(format!(
            "container {id} is in state {:?}, it can be started once",
            container.phase().state()
        )));
    }
    let record = {
        let mut record = container.record();
        record.started = true;
        record.clone()
    };
    layout::write_record(&inner.layout.container_record(id), &record)
        .map_err(io("write the container's record"))?;
    let request = Request::Start(Box::new(start_request(inner, &record)));
    let state_dir = inner.layout.sandbox_state(&record.sandbox_id);
    let answer = shim::call(&state_dir, &request).await;
    match answer {
        Ok(Response::Started { pid, started_at_ns }) => {
            watch::started(inner, id, pid, started_at_ns);
            Ok(())
        }
        Ok(other) => Err(fail_start(
            inner,
            &container,
            ShimCallError::Unexpected(format!("{other:?}")).to_string(),
        )),
        Err(ShimCallError::Refused(error)) => {
            Err(fail_start(inner, &container, start_message(&error)))
        }
        Err(error) => {
            let message = format!("failed to create containerd task: {error}");
            Err(fail_start(inner, &container, message))
        }
    }
}

fn start_request(inner: &Inner, record: &ContainerRecord) -> ContainerStart {
    ContainerStart {
        id: record.id.clone(),
        bundle: inner.layout.container(&record.id),
        process: record.process.clone(),
        log_path: record.log_path.clone(),
        stdin: record.config.stdin,
        stdin_once: record.config.stdin_once,
        cgroup_path: record.cgroup_path.clone(),
        exit_file: inner.layout.exit_file(&record.id),
        shared_pid: record.shared_pid,
        unified: record.config.resources.unified.clone(),
        devices: record.device_rules.clone(),
        private_mounts: record.private_mounts.clone(),
    }
}

/// As containerd words it.
pub fn start_message(error: &ShimError) -> String {
    let prefix = match error.kind {
        ErrorKind::Exec => "unable to start container process: ",
        _ => "failed to create containerd task: ",
    };
    format!("{prefix}{error}")
}

/// Writes down that the container never ran, and why.
pub fn fail_start(inner: &Inner, container: &Container, message: String) -> RuntimeError {
    let failure = Failure {
        exit_code: 128,
        reason: "StartError".to_owned(),
        message: message.clone(),
        at: jiff::Timestamp::now(),
    };
    let record = {
        let mut record = container.record();
        record.failure = Some(failure.clone());
        record.clone()
    };
    if let Err(error) = layout::write_record(&inner.layout.container_record(&record.id), &record) {
        tracing::warn!(container = %record.id, %error, "cannot write a container's record");
    }
    watch::ended(inner, &record.id, ContainerPhase::Failed(failure));
    RuntimeError::Start(message)
}

async fn signal(
    inner: &Inner,
    container: &Container,
    signal: i32,
    all: bool,
) -> Result<(), RuntimeError> {
    let (id, sandbox_id) = {
        let record = container.record();
        (record.id.clone(), record.sandbox_id.clone())
    };
    let request = Request::Kill {
        container: id,
        signal,
        all,
    };
    match shim::call(&inner.layout.sandbox_state(&sandbox_id), &request).await {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind(), Some(ErrorKind::NotFound | ErrorKind::State)) => {
            Ok(())
        }
        // The watch sees the shim's end too, and settles its containers.
        Err(ShimCallError::Connect { .. } | ShimCallError::HungUp) => Ok(()),
        Err(error) => Err(shim_error(&sandbox_id)(error)),
    }
}

pub async fn stop(inner: &Arc<Inner>, id: &str, timeout: Duration) -> Result<(), RuntimeError> {
    let Ok(container) = inner.container(id) else {
        return Ok(());
    };
    let mut phase = container.watch();
    if !matches!(*phase.borrow(), ContainerPhase::Running { .. }) {
        return Ok(());
    }
    if !timeout.is_zero() {
        let name = container.record().stop_signal.clone();
        let number = machine::signal_number(&name).unwrap_or(libc::SIGTERM);
        signal(inner, &container, number, false).await?;
        if tokio::time::timeout(timeout, phase.wait_for(ContainerPhase::is_over))
            .await
            .is_ok()
        {
            return Ok(());
        }
    }
    signal(inner, &container, libc::SIGKILL, true).await?;
    match tokio::time::timeout(KILL_TIMEOUT, phase.wait_for(ContainerPhase::is_over)).await {
        Ok(_) => Ok(()),
        Err(_) => Err(RuntimeError::Timeout {
            what: format!("killing container {id}"),
            after: KILL_TIMEOUT,
        }),
    }
}

pub async fn remove(inner: &Arc<Inner>, id: &str) -> Result<(), RuntimeError> {
    let Ok(container) = inner.container(id) else {
        return Ok(());
    };
    stop(inner, id, Duration::ZERO).await?;
    let (sandbox_id, cgroup_path) = {
        let record = container.record();
        (record.sandbox_id.clone(), record.cgroup_path.clone())
    };
    let request = Request::Remove {
        container: id.to_owned(),
    };
    match shim::call(&inner.layout.sandbox_state(&sandbox_id), &request).await {
        Ok(_) | Err(ShimCallError::Connect { .. } | ShimCallError::HungUp) => {}
        Err(error) => return Err(shim_error(&sandbox_id)(error)),
    }
    inner.containers().remove(id);
    inner.forget_layer(id);
    clean(inner, id, Some(cgroup_path)).await;
    Ok(())
}

/// Takes away everything a container has on the machine. What cannot be removed now is found again at
/// the next start.
pub async fn clean(inner: &Arc<Inner>, id: &str, cgroup_path: Option<PathBuf>) {
    let worker = inner.clone();
    let container = id.to_owned();
    let result = blocking(move || {
        if let Some(path) = cgroup_path {
            worker.cgroups.kill(&path);
            if let Err(error) = worker.cgroups.remove(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove a container's cgroup");
            }
        }
        let state = worker.layout.container_state(&container);
        mount::unmount_below(&state).map_err(io(format!("unmount below {}", state.display())))?;
        layout::remove_tree(&state).map_err(io(format!("remove {}", state.display())))?;
        let directory = worker.layout.container(&container);
        layout::remove_tree(&directory).map_err(io(format!("remove {}", directory.display())))
    })
    .await;
    if let Err(error) = result {
        tracing::warn!(container = %id, %error, "cannot clean up after a container");
        return;
    }
    let images = format!("{id}-image-");
    let holders = inner.images.holders();
    for holder in holders
        .iter()
        .filter(|holder| *holder == id || holder.starts_with(&images))
    {
        if let Err(error) = inner.images.release(holder).await {
            tracing::warn!(container = %id, %error, "cannot release a container's image");
        }
    }
}

pub async fn update(
    inner: &Arc<Inner>,
    id: &str,
    resources: &Resources,
) -> Result<(), RuntimeError> {
    let container = inner.container(id)?;
    let state = container.phase().state();
    let record = container.record().clone();
    match state {
        ContainerState::Running => {
            let (worker, path, wanted) =
                (inner.clone(), record.cgroup_path.clone(), resources.clone());
            blocking(move || {
                worker
                    .cgroups
                    .update(&path, &wanted)
                    .map_err(io("update the container's cgroup"))
            })
            .await?;
        }
        ContainerState::Created => {
            let path = inner.layout.container(id).join("config.json");
            let mut config: serde_json::Value = layout::read_record(&path)
                .map_err(io("read config.json"))?
                .unwrap_or_default();
            let facts = Facts {
                hugetlb: inner.cgroups.hugetlb(),
                swap_accounting: inner.cgroups.swap_accounting(),
                ..Facts::default()
            };
            let mut changed = spec::resources(resources, &facts);
            changed["devices"] = config["linux"]["resources"]["devices"].take();
            config["linux"]["resources"] = changed;
            layout::write_record(&path, &config).map_err(io("write config.json"))?;
        }
        _ => {
            return Err(RuntimeError::NotRunning {
                id: id.to_owned(),
                state,
            });
        }
    }
    let record = {
        let mut record = container.record();
        merge(&mut record.resources, resources);
        record.clone()
    };
    layout::write_record(&inner.layout.container_record(id), &record)
        .map_err(io("write the container's record"))
}

/// Takes over what the update names, as the CRI has it.
fn merge(current: &mut Resources, update: &Resources) {
    let Resources {
        cpu_shares,
        cpu_quota_us,
        cpu_period_us,
        memory_limit_bytes,
        memory_swap_limit_bytes,
        ..
    } = update;
    current.cpu_shares = cpu_shares.or(current.cpu_shares);
    current.cpu_quota_us = cpu_quota_us.or(current.cpu_quota_us);
    current.cpu_period_us = cpu_period_us.or(current.cpu_period_us);
    current.memory_limit_bytes = memory_limit_bytes.or(current.memory_limit_bytes);
    current.memory_swap_limit_bytes = memory_swap_limit_bytes.or(current.memory_swap_limit_bytes);
    current.pids_limit = update.pids_limit.or(current.pids_limit);
    current.unified.extend(update.unified.clone());
}

pub async fn reopen_log(inner: &Arc<Inner>, id: &str) -> Result<(), RuntimeError> {
    let container = inner.container(id)?;
    let state = container.phase().state();
    if state != ContainerState::Running {
        return Err(RuntimeError::NotRunning {
            id: id.to_owned(),
            state,
        });
    }
    let sandbox_id = container.record().sandbox_id.clone();
    let mut connection = Connection::open(&inner.layout.sandbox_state(&sandbox_id))
        .map_err(shim_error(&sandbox_id))?;
    connection
        .send(
            &Request::ReopenLog {
                container: id.to_owned(),
            },
            &[],
        )
        .await
        .map_err(shim_error(&sandbox_id))?;
    connection
        .answer()
        .await
        .map(drop)
        .map_err(shim_error(&sandbox_id))
}
