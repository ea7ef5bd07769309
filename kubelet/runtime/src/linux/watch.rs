//! Watching a sandbox's shim: exits are pushed, nothing is polled.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use shim_protocol::{ContainerExit, Event, Request, Response, ShimState};

use super::record::{ContainerPhase, Failure, Sandbox, SandboxPhase};
use super::shim::{Connection, ShimCallError};
use super::{Inner, container, layout};
use crate::api::RuntimeEvent;

/// A shim that does not answer a subscription by then is as good as dead.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a start that an earlier runtime asked for may take. As a rule it takes some 20 ms.
const DECISION_TIMEOUT: Duration = Duration::from_secs(10);

/// Subscribes and takes over what the shim knows; a task of its own then follows the events until the
/// shim hangs up or the runtime is dropped. Starts that are under way are waited for, so that nobody takes their
/// containers for new ones. Returns the IDs of the containers the shim had.
pub async fn begin(
    inner: &Arc<Inner>,
    sandbox: &Arc<Sandbox>,
) -> Result<BTreeSet<String>, ShimCallError> {
    let id = sandbox.record().id.clone();
    let mut connection = Connection::open(&inner.layout.sandbox_state(&id))?;
    connection.send(&Request::Subscribe, &[]).await?;
    let answer = tokio::time::timeout(SUBSCRIBE_TIMEOUT, connection.answer()).await;
    let state = match answer
        .map_err(|_| ShimCallError::Silent(SUBSCRIBE_TIMEOUT))??
        .0
    {
        Response::State(state) => state,
        other => return Err(ShimCallError::Unexpected(format!("{other:?}"))),
    };
    let starting = take_over(inner, &state);
    let decided = decide(inner, &mut connection, starting);
    match tokio::time::timeout(DECISION_TIMEOUT, decided).await {
        Ok(result) => result?,
        Err(_) => tracing::warn!(sandbox = %id, "a container's start is under way for too long"),
    }
    tokio::spawn(follow(
        Arc::downgrade(inner),
        sandbox.clone(),
        id,
        connection,
    ));
    Ok(state.containers.into_iter().map(|info| info.id).collect())
}

/// Returns the containers whose start is under way.
fn take_over(inner: &Inner, state: &ShimState) -> BTreeSet<String> {
    let mut starting = BTreeSet::new();
    for info in &state.containers {
        match &info.exit {
            Some(exit) => exited(inner, exit.clone()),
            None if info.pid > 0 => started(inner, &info.id, info.pid, info.started_at_ns),
            None => {
                starting.insert(info.id.clone());
            }
        }
    }
    starting
}

async fn decide(
    inner: &Inner,
    connection: &mut Connection,
    mut starting: BTreeSet<String>,
) -> Result<(), ShimCallError> {
    while !starting.is_empty() {
        let (Response::Event(event), _) = connection.receive().await? else {
            continue;
        };
        let container = match &event {
            Event::ContainerStarted { container, .. }
            | Event::ContainerFailed { container, .. } => container,
            Event::ContainerExited(exit) => &exit.id,
            Event::Unknown => continue,
        };
        starting.remove(container);
        if let Event::ContainerFailed { container, error } = &event
            && let Ok(container) = inner.container(container)
        {
            container::fail_start(inner, &container, container::start_message(error));
        }
        observe(inner, event);
    }
    Ok(())
}

fn observe(inner: &Inner, event: Event) {
    match event {
        Event::ContainerStarted {
            container,
            pid,
            started_at_ns,
        } => started(inner, &container, pid, started_at_ns),
        Event::ContainerExited(exit) => exited(inner, exit),
        // Who asked for the start writes it down.
        Event::ContainerFailed { .. } | Event::Unknown => {}
    }
}

async fn follow(inner: Weak<Inner>, sandbox: Arc<Sandbox>, id: String, mut connection: Connection) {
    let Some(mut alive) = inner.upgrade().map(|inner| inner.alive.subscribe()) else {
        return;
    };
    let reason = loop {
        let message = tokio::select! {
            message = connection.receive() => message,
            // Nothing is ever sent: it ends with the runtime.
            _ = alive.changed() => return,
        };
        let Some(inner) = inner.upgrade() else { return };
        match message {
            Ok((Response::Event(event), _)) => observe(&inner, event),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    let Some(inner) = inner.upgrade() else { return };
    if sandbox.is_stopping() {
        return;
    }
    tracing::warn!(sandbox = %id, %reason, "lost the shim of a sandbox");
    lost(&inner, &sandbox).await;
}

pub fn started(inner: &Inner, id: &str, pid: i32, started_at_ns: i64) {
    let Ok(container) = inner.container(id) else {
        return;
    };
    if container.advance(ContainerPhase::Running { pid, started_at_ns }) {
        let sandbox_id = container.record().sandbox_id.clone();
        inner.emit(RuntimeEvent::ContainerStarted {
            pod_uid: inner.pod_uid(&sandbox_id),
            sandbox_id,
            container_id: id.to_owned(),
        });
    }
}

pub fn exited(inner: &Inner, exit: ContainerExit) {
    let id = exit.id.clone();
    ended(inner, &id, ContainerPhase::Exited(exit));
}

/// The container is over, one way or another.
pub fn ended(inner: &Inner, id: &str, phase: ContainerPhase) {
    let Ok(container) = inner.container(id) else {
        return;
    };
    let exit_code = phase.exit_code();
    if container.advance(phase) {
        let sandbox_id = container.record().sandbox_id.clone();
        inner.emit(RuntimeEvent::ContainerExited {
            pod_uid: inner.pod_uid(&sandbox_id),
            sandbox_id,
            container_id: id.to_owned(),
            exit_code,
        });
    }
}

/// The shim died unasked: its containers cannot be watched any more, so they are ended.
pub async fn lost(inner: &Arc<Inner>, sandbox: &Arc<Sandbox>) {
    sandbox.begin_stop();
    let _alone = sandbox.teardown.lock().await;
    let (id, pod_uid) = {
        let record = sandbox.record();
        (record.id.clone(), record.config.metadata.uid.clone())
    };
    if inner.sandbox(&id).is_err() {
        return;
    }
    super::sandbox::take_down(inner, sandbox).await;
    settle(inner, &id);
    super::sandbox::set_phase(inner, sandbox, SandboxPhase::Stopped);
    inner.emit(RuntimeEvent::SandboxNotReady {
        sandbox_id: id,
        pod_uid,
    });
}

/// Containers of a sandbox without a shim: what the exit records say, or that nobody knows.
pub fn settle(inner: &Inner, sandbox: &str) {
    for container in inner.containers_of(sandbox) {
        if container.phase().is_over() {
            continue;
        }
        let (id, was_started) = {
            let record = container.record();
            (record.id.clone(), record.started)
        };
        match exit_record(inner.layout.exit_file(&id)) {
            Some(exit) => ended(inner, &id, ContainerPhase::Exited(exit)),
            None if was_started => {
                let failure = Failure {
                    exit_code: 255,
                    reason: "Unknown".to_owned(),
                    message: "the container's shim is gone, and with it the exit code".to_owned(),
                    at: jiff::Timestamp::now(),
                };
                let record = {
                    let mut record = container.record();
                    record.failure = Some(failure.clone());
                    record.clone()
                };
                if let Err(error) = super::container::write_record(inner, &record) {
                    tracing::warn!(container = %id, %error, "cannot write a container's record");
                }
                ended(inner, &id, ContainerPhase::Failed(failure));
            }
            None => {}
        }
    }
}

pub fn exit_record(path: PathBuf) -> Option<ContainerExit> {
    layout::read_record(&path).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "cannot read an exit record");
        None
    })
}
