//! Taking over from an earlier run: its sandboxes live on, what is dead or unknown is taken apart.
//!
//! The state directory is the truth of what was; the shims are the truth of what runs. Nothing here
//! fails the start: a problem costs the one sandbox it is about, and is logged.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::record::{
    Container, ContainerPhase, ContainerRecord, Sandbox, SandboxPhase, SandboxRecord,
};
use super::{Inner, container, layout, mount, sandbox, watch};
use crate::api::NamespaceMode;

pub async fn adopt(inner: &Arc<Inner>) {
    for id in layout::entries(&inner.layout.sandboxes()) {
        match layout::read_record::<SandboxRecord>(&inner.layout.sandbox_record(&id)) {
            Ok(Some(record)) => {
                inner.sandboxes().insert(id, Sandbox::new(record));
            }
            // Died before its record was written: nothing of it was started yet.
            Ok(None) => sandbox::forget(inner, &id),
            Err(error) => {
                tracing::error!(sandbox = %id, %error, "cannot read a sandbox's record; it is left alone")
            }
        }
    }
    for id in layout::entries(&inner.layout.containers()) {
        match layout::read_record::<ContainerRecord>(&inner.layout.container_record(&id)) {
            Ok(Some(record)) => adopt_container(inner, record).await,
            Ok(None) => container::clean(inner, &id, None).await,
            Err(error) => {
                tracing::error!(container = %id, %error, "cannot read a container's record; it is left alone");
            }
        }
    }
    let sandboxes: Vec<_> = inner.sandboxes().values().cloned().collect();
    for sandbox in sandboxes {
        adopt_sandbox(inner, &sandbox).await;
    }
    remove_leftovers(inner).await;
}

async fn adopt_container(inner: &Arc<Inner>, record: ContainerRecord) {
    let id = record.id.clone();
    if inner.sandbox(&record.sandbox_id).is_err() {
        return container::clean(inner, &id, Some(record.cgroup_path)).await;
    }
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
        // A record that cannot be read may belong to a sandbox that runs.
        if known_sandboxes.contains(&id) || inner.layout.sandbox(&id).exists() {
            continue;
        }
        let directory = inner.layout.sandbox_state(&id);
        let _ = super::shim::call(&directory, &shim_protocol::Request::Shutdown).await;
        drop_directory(&directory);
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
