//! Containers: root file system, spec, start, stop, removal.
//!
//! As with containerd, `create` only prepares: libcontainer runs at `start`, and what is wrong with
//! the program then ends the container with exit code 128 and reason `StartError`.

mod environment;
mod prepare;
mod rootfs;

pub use environment::{restore as restore_environment, write_record};
pub use rootfs::root_gid;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shim_protocol::{ContainerStart, ErrorKind, Request, Response, ShimError, chain};

use super::record::{Container, ContainerPhase, ContainerRecord, Failure};
use super::shim::{self, ShimCallError};
use super::{Inner, blocking, image, io, layout, machine, mount, shim_error, watch};
use crate::api::*;
use crate::spec::{self, Facts};

/// After SIGKILL a process is gone at once, but for one stuck in the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(120);

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
    let result = prepare::prepare(inner, &sandbox_record, config, &image, &id).await;
    match result {
        Ok(record) => {
            let container = Container::new(record, ContainerPhase::Created);
            inner.containers().insert(id.clone(), container);
            inner.emit(RuntimeEvent::ContainerCreated {
                sandbox_id: sandbox_id.to_owned(),
                pod_uid: sandbox_record.config.metadata.uid.clone(),
                container_id: id.clone(),
            });
            Ok(id)
        }
        Err(error) => {
            clean(inner, &id, None).await;
            Err(error)
        }
    }
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
    write_record(inner, &record).map_err(io("write the container's record"))?;
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
            let message = format!("failed to create containerd task: {}", chain(&error));
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
        dev_mount: record.dev_mount.clone(),
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
    if let Err(error) = write_record(inner, &record) {
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
    inner.emit(RuntimeEvent::ContainerRemoved {
        pod_uid: inner.pod_uid(&sandbox_id),
        sandbox_id,
        container_id: id.to_owned(),
    });
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
            let mut wanted = record.resources.clone();
            wanted.merge(resources);
            let mut changed = spec::resources(&wanted, &facts);
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
        record.resources.merge(resources);
        record.clone()
    };
    write_record(inner, &record).map_err(io("write the container's record"))
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
    let request = Request::ReopenLog {
        container: id.to_owned(),
    };
    // Within a deadline: all other logs of the node wait to be rotated meanwhile.
    shim::call(&inner.layout.sandbox_state(&sandbox_id), &request)
        .await
        .map(drop)
        .map_err(shim_error(&sandbox_id))
}
