//! Taking over from an earlier run: its sandboxes live on, what is dead or unknown is taken apart.
//!
//! The state directory is the truth of what was; the shims are the truth of what runs. Nothing here
//! fails the start: a problem costs the one sandbox it is about, and is logged.
//!
//! **Invariant:** what has no readable record, nor a copy of it, is taken apart wholly: nothing runs
//! that the kubelet cannot be told of, and nothing of it is left.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shim_protocol::{ErrorKind, Request};

use super::layout::Found;
use super::record::{
    Container, ContainerPhase, ContainerRecord, Sandbox, SandboxPhase, SandboxRecord,
};
use super::shim::{self, ShimCallError};
use super::{Inner, container, layout, mount, sandbox, watch};
use crate::api::NamespaceMode;

/// A killed container is reaped at once, but for one stuck in the kernel.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(30);
const REMOVE_INTERVAL: Duration = Duration::from_millis(50);

pub async fn adopt(inner: &Arc<Inner>) {
    for id in names(&inner.layout.sandboxes(), &inner.layout.sandbox_states()) {
        if let Some(record) = find_sandbox(inner, &id).await {
            inner.sandboxes().insert(id, Sandbox::new(record));
        }
    }
    for id in names(&inner.layout.containers(), &inner.layout.container_states()) {
        let (path, copy) = (
            inner.layout.container_record(&id),
            inner.layout.container_copy(&id),
        );
        match layout::find_record::<ContainerRecord>(&path, &copy) {
            Found::Whole(record) => adopt_container(inner, record).await,
            Found::Copy(record, reason) => {
                tracing::warn!(container = %id, %reason, "a container's record is read from its copy");
                if let Err(error) = inner.layout.write_container(&id, &record) {
                    tracing::warn!(container = %id, %error, "cannot write a container's record");
                }
                adopt_container(inner, record).await;
            }
            // What may still run of these, the shims know: see `end_unknown`.
            Found::Torn(reason) => {
                tracing::error!(container = %id, %reason, "a container's record cannot be read: it is taken apart");
            }
            Found::Nothing => {}
        }
    }
    let sandboxes: Vec<_> = inner.sandboxes().values().cloned().collect();
    for sandbox in sandboxes {
        adopt_sandbox(inner, &sandbox).await;
    }
    for id in layout::entries(&inner.layout.containers()) {
        if inner.container(&id).is_err() {
            let cgroup_path = cgroup_path(inner, &id);
            container::clean(inner, &id, cgroup_path).await;
        }
    }
    remove_leftovers(inner).await;
}

/// The names in both directories.
fn names(one: &std::path::Path, other: &std::path::Path) -> BTreeSet<String> {
    [one, other].into_iter().flat_map(layout::entries).collect()
}

/// The sandbox's record, or its copy. Without either everything of it is taken apart: its shim ends what
/// runs, and what it left in the kernel and on disk goes.
async fn find_sandbox(inner: &Arc<Inner>, id: &str) -> Option<SandboxRecord> {
    let (path, copy) = (
        inner.layout.sandbox_record(id),
        inner.layout.sandbox_copy(id),
    );
    match layout::find_record::<SandboxRecord>(&path, &copy) {
        Found::Whole(record) => return Some(record),
        Found::Copy(record, reason) => {
            tracing::warn!(sandbox = %id, %reason, "a sandbox's record is read from its copy");
            let (worker, written, name) = (inner.clone(), record.clone(), id.to_owned());
            let write = move || {
                std::fs::create_dir_all(worker.layout.sandbox(&name))
                    .and_then(|()| worker.layout.write_sandbox(&name, &written))
            };
            if let Err(error) = tokio::task::spawn_blocking(write)
                .await
                .unwrap_or_else(|panicked| Err(panicked.into()))
            {
                tracing::warn!(sandbox = %id, %error, "cannot write a sandbox's record");
            }
            return Some(record);
        }
        Found::Torn(reason) => {
            tracing::error!(sandbox = %id, %reason, "a sandbox's record cannot be read: it is taken apart");
        }
        // Died before its record was written: nothing of it was started yet.
        Found::Nothing => {}
    }
    let state_dir = inner.layout.sandbox_state(id);
    match shim::call(&state_dir, &Request::Shutdown).await {
        Ok(_) | Err(ShimCallError::Connect { .. } | ShimCallError::HungUp) => {}
        Err(error) => tracing::warn!(sandbox = %id, %error, "cannot end a sandbox's shim"),
    }
    if let Err(error) = inner.network.teardown(id).await {
        tracing::warn!(sandbox = %id, %error, "cannot take a sandbox's network down");
    }
    if let Err(error) = mount::unmount_below(&state_dir) {
        tracing::warn!(sandbox = %id, %error, "cannot unmount what a sandbox had");
    }
    sandbox::forget(inner, id);
    None
}

/// Where the container's cgroup is, by what libcontainer was given.
fn cgroup_path(inner: &Inner, id: &str) -> Option<PathBuf> {
    let path = inner.layout.container(id).join("config.json");
    let config: serde_json::Value = layout::read_record(&path).ok()??;
    let path = PathBuf::from(config["linux"]["cgroupsPath"].as_str()?);
    // It names this container, whatever else the file says.
    (path.file_name()? == id).then_some(path)
}

/// Ends what the shim runs and no record tells of: it cannot be described to anybody, and left alone it
/// would be started a second time.
async fn end_unknown(inner: &Arc<Inner>, sandbox: &str, known: &BTreeSet<String>) {
    let state_dir = inner.layout.sandbox_state(sandbox);
    let parent = match inner.sandbox(sandbox) {
        Ok(sandbox) => sandbox.record().config.cgroup_parent.clone(),
        Err(_) => return,
    };
    for id in known {
        if inner.container(id).is_ok() {
            continue;
        }
        tracing::warn!(container = %id, %sandbox, "ends a container without a record");
        let kill = Request::Kill {
            container: id.clone(),
            signal: libc::SIGKILL,
            all: true,
        };
        let remove = Request::Remove {
            container: id.clone(),
        };
        let ended = async {
            shim::call(&state_dir, &kill).await?;
            loop {
                match shim::call(&state_dir, &remove).await {
                    // Not yet reaped, or its output is still being read.
                    Err(error) if error.kind() == Some(ErrorKind::State) => {
                        tokio::time::sleep(REMOVE_INTERVAL).await;
                    }
                    other => return other,
                }
            }
        };
        match tokio::time::timeout(REMOVE_TIMEOUT, ended).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(container = %id, %error, "cannot end a container without a record");
            }
            Err(_) => tracing::warn!(container = %id, "a container without a record does not end"),
        }
        let cgroup_path = std::path::Path::new("/")
            .join(parent.trim_start_matches('/'))
            .join(id);
        container::clean(inner, id, Some(cgroup_path)).await;
    }
}

async fn adopt_container(inner: &Arc<Inner>, mut record: ContainerRecord) {
    let id = record.id.clone();
    if inner.sandbox(&record.sandbox_id).is_err() {
        return container::clean(inner, &id, Some(record.cgroup_path)).await;
    }
    container::restore_environment(inner, &mut record);
    let phase = match (
        &record.failure,
        watch::exit_record(inner.layout.exit_file(&id)),
    ) {
        (_, Some(exit)) => ContainerPhase::Exited(exit),
        (Some(failure), None) => ContainerPhase::Failed(failure.clone()),
        (None, None) => ContainerPhase::Created,
    };
    inner.containers().insert(id, Container::new(record, phase));
}

async fn adopt_sandbox(inner: &Arc<Inner>, sandbox: &Arc<Sandbox>) {
    let (id, phase) = {
        let record = sandbox.record();
        (record.id.clone(), record.phase)
    };
    if phase == SandboxPhase::Ready {
        match watch::begin(inner, sandbox).await {
            Ok(known) => {
                tracing::info!(sandbox = %id, "found a running sandbox again");
                end_unknown(inner, &id, &known).await;
                return forget_never_started(inner, &id, &known).await;
            }
            Err(error) => tracing::warn!(sandbox = %id, %error, "the shim of a sandbox is gone"),
        }
    }
    sandbox.begin_stop();
    sandbox::take_down(inner, sandbox).await;
    watch::settle(inner, &id);
    if phase == SandboxPhase::Creating {
        // The caller never learnt of it, and has asked or will ask for another.
        sandbox::forget(inner, &id);
    } else if phase != SandboxPhase::Stopped {
        sandbox::set_phase(inner, sandbox, SandboxPhase::Stopped);
    }
}

/// The runtime died between a container's creation and the shim's hearing of its start. Nobody will start it any more,
/// and nothing of it ever ran: it is as if it had never been created.
async fn forget_never_started(inner: &Arc<Inner>, sandbox: &str, known: &BTreeSet<String>) {
    for container in inner.containers_of(sandbox) {
        let (id, cgroup_path) = {
            let record = container.record();
            (record.id.clone(), record.cgroup_path.clone())
        };
        if container.phase() == ContainerPhase::Created && !known.contains(&id) {
            tracing::info!(container = %id, "removed a container whose start was cut short");
            inner.containers().remove(&id);
            inner.forget_layer(&id);
            container::clean(inner, &id, Some(cgroup_path)).await;
        }
    }
}

async fn remove_leftovers(inner: &Arc<Inner>) {
    let known_sandboxes: Vec<String> = inner.sandboxes().keys().cloned().collect();
    for id in layout::entries(&inner.layout.sandbox_states()) {
        if !known_sandboxes.contains(&id) {
            drop_directory(&inner.layout.sandbox_state(&id));
        }
    }
    for id in layout::entries(&inner.layout.container_states()) {
        if inner.container(&id).is_err() && !inner.layout.container(&id).exists() {
            drop_directory(&inner.layout.container_state(&id));
        }
    }
    for holder in inner.images.holders() {
        let id = holder.split("-image-").next().unwrap_or(&holder);
        if inner.container(id).is_err()
            && !inner.layout.container(id).exists()
            && let Err(error) = inner.images.release(&holder).await
        {
            tracing::warn!(%holder, %error, "cannot release an image nobody uses");
        }
    }
    let networked: Vec<String> = inner
        .sandboxes()
        .values()
        .filter_map(|sandbox| {
            let record = sandbox.record();
            let live = record.phase == SandboxPhase::Ready
                && record.config.namespaces.network != NamespaceMode::Node;
            live.then(|| record.id.clone())
        })
        .collect();
    if let Err(error) = inner.network.reconcile(&networked).await {
        tracing::warn!(%error, "cannot reconcile the pod network");
    }
}

fn drop_directory(directory: &std::path::Path) {
    let result = mount::unmount_below(directory).and_then(|()| layout::remove_tree(directory));
    match result {
        Ok(()) => {
            tracing::info!(path = %directory.display(), "removed what an earlier run left behind")
        }
        Err(error) => {
            tracing::warn!(path = %directory.display(), %error, "cannot remove what an earlier run left")
        }
    }
}
