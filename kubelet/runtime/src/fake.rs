//! A runtime in memory, for the kubelet's tests and for virtual nodes.
//!
//! Owns: the same state machine a real provider shows (sandboxes, containers, events), without
//! a process behind it. A container runs until [`FakeRuntime::exit`] ends it, until it is
//! stopped, or at once if its [`Behaviour`] says so. Never touches the machine.

mod runtime;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{broadcast, oneshot};

use crate::api::*;

/// What the fake does with a container at its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// Runs until it is stopped or [`FakeRuntime::exit`] is called.
    #[default]
    Run,
    /// Starts and exits at once with this code.
    Exit(i32),
    /// `start_container` fails with this message (exit code 128, reason `StartError`).
    StartError(String),
    /// `create_container` fails with this message.
    CreateError(String),
    /// Ignores the stop signal: a stop takes its whole grace period, and exits 137.
    IgnoreStop,
}

type BehaviourFn = dyn Fn(&PodSandboxConfig, &ContainerConfig) -> Behaviour + Send + Sync;
type NowFn = dyn Fn() -> jiff::Timestamp + Send + Sync;
type ExecFn =
    dyn Fn(&ContainerConfig, &[String]) -> Result<ExecSyncResponse, RuntimeError> + Send + Sync;

struct Sandbox {
    config: PodSandboxConfig,
    status: PodSandboxStatus,
}

struct Container {
    config: ContainerConfig,
    behaviour: Behaviour,
    status: ContainerStatus,
    waiters: Vec<oneshot::Sender<i32>>,
}

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<String, Sandbox>,
    containers: BTreeMap<String, Container>,
    images: HashMap<String, ImageStatus>,
    unpullable: HashMap<String, ImageError>,
    private: HashMap<String, ImageAuth>,
    next_id: u64,
    next_ip: u32,
    calls: Vec<String>,
    broken: HashSet<String>,
    runtime_ready: Option<(String, String)>,
    network_ready: Option<(String, String)>,
}

impl State {
    fn works(&self, verb: &str, argument: &str) -> Result<(), RuntimeError> {
        if self.broken.contains(verb) {
            return Err(RuntimeError::Shim {
                id: argument.to_owned(),
                reason: format!("{verb} is broken"),
            });
        }
        Ok(())
    }
}

/// See the module's documentation. Cheap to clone; clones share their state.
#[derive(Clone)]
pub struct FakeRuntime {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<RuntimeEvent>,
    behaviour: Arc<Mutex<Arc<BehaviourFn>>>,
    exec: Arc<Mutex<Arc<ExecFn>>>,
    now: Arc<Mutex<Arc<NowFn>>>,
}

fn sandbox_uid(state: &State, sandbox_id: &str) -> String {
    state
        .sandboxes
        .get(sandbox_id)
        .map(|sandbox| sandbox.config.metadata.uid.clone())
        .unwrap_or_default()
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeRuntime {
    /// Every image can be pulled, every container runs, every exec returns 0 and no output.
    pub fn new() -> Self {
        Self {
            state: Arc::default(),
            events: broadcast::channel(4096).0,
            behaviour: Arc::new(Mutex::new(Arc::new(|_, _| Behaviour::Run))),
            exec: Arc::new(Mutex::new(Arc::new(|_, _| Ok(ExecSyncResponse::default())))),
            now: Arc::new(Mutex::new(Arc::new(jiff::Timestamp::now))),
        }
    }

    /// Decides what each container does, from its sandbox's and its own configuration.
    pub fn set_behaviour(
        &self,
        decide: impl Fn(&PodSandboxConfig, &ContainerConfig) -> Behaviour + Send + Sync + 'static,
    ) {
        *self.behaviour.lock().expect("no holder panics") = Arc::new(decide);
    }

    /// What time it is, for containers that begin and end; the machine's without it.
    pub fn set_now(&self, now: impl Fn() -> jiff::Timestamp + Send + Sync + 'static) {
        *self.now.lock().expect("no holder panics") = Arc::new(now);
    }

    fn now(&self) -> jiff::Timestamp {
        let now = self.now.lock().expect("no holder panics").clone();
        now()
    }

    /// Answers every exec.
    pub fn set_exec(
        &self,
        answer: impl Fn(&ContainerConfig, &[String]) -> Result<ExecSyncResponse, RuntimeError>
        + Send
        + Sync
        + 'static,
    ) {
        *self.exec.lock().expect("no holder panics") = Arc::new(answer);
    }

    /// Makes pulls of `image` fail with `error` until [`Self::set_pullable`].
    pub fn set_unpullable(&self, image: &str, error: ImageError) {
        self.lock().unpullable.insert(image.to_owned(), error);
    }

    pub fn set_pullable(&self, image: &str) {
        self.lock().unpullable.remove(image);
    }

    /// From now on a pull of `image` wants this credential.
    pub fn set_private(&self, image: &str, auth: ImageAuth) {
        self.lock().private.insert(image.to_owned(), auth);
    }

    /// Makes the verb (`run_pod_sandbox`, `stop_container`, …) fail until [`Self::mend`].
    pub fn break_verb(&self, verb: &str) {
        self.lock().broken.insert(verb.to_owned());
    }

    pub fn mend(&self, verb: &str) {
        self.lock().broken.remove(verb);
    }

    /// What `status` says; `None` is ready, `Some` holds reason and message.
    pub fn set_ready(&self, runtime: Option<(String, String)>, network: Option<(String, String)>) {
        let mut state = self.lock();
        state.runtime_ready = runtime;
        state.network_ready = network;
    }

    /// Ends a running container, as if its process had exited with `exit_code`.
    pub fn exit(&self, container_id: &str, exit_code: i32) {
        self.finish(container_id, exit_code, "");
    }

    /// Kills a sandbox unasked, with every container in it.
    pub fn lose_sandbox(&self, sandbox_id: &str) {
        for id in self.container_ids(Some(sandbox_id)) {
            self.finish(&id, 137, "");
        }
        let event = {
            let mut state = self.lock();
            let Some(sandbox) = state.sandboxes.get_mut(sandbox_id) else {
                return;
            };
            sandbox.status.state = SandboxState::NotReady;
            RuntimeEvent::SandboxNotReady {
                sandbox_id: sandbox_id.to_owned(),
                pod_uid: sandbox.config.metadata.uid.clone(),
            }
        };
        self.emit(event);
    }

    /// The id of the newest container of this name in the pod with this UID.
    pub fn find_container(&self, pod_uid: &str, name: &str) -> Option<String> {
        let state = self.lock();
        state
            .containers
            .values()
            .filter(|c| c.config.metadata.name == name)
            .filter(|c| {
                state
                    .sandboxes
                    .get(&c.status.sandbox_id)
                    .is_some_and(|s| s.config.metadata.uid == pod_uid)
            })
            .max_by_key(|c| (c.config.metadata.attempt, c.status.id.clone()))
            .map(|c| c.status.id.clone())
    }

    /// Every call since the last time, as `verb argument`, oldest first.
    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().calls)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn enter(&self, verb: &'static str, argument: &str) -> Result<(), RuntimeError> {
        let mut state = self.lock();
        // Virtual nodes never take the calls: keep the newest ones only.
        if state.calls.len() >= 10_000 {
            state.calls.drain(..5_000);
        }
        state.calls.push(format!("{verb} {argument}"));
        state.works(verb, argument)
    }

    fn emit(&self, event: RuntimeEvent) {
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }

    fn container_ids(&self, sandbox: Option<&str>) -> Vec<String> {
        self.lock()
            .containers
            .values()
            .filter(|c| sandbox.is_none_or(|s| c.status.sandbox_id == s))
            .map(|c| c.status.id.clone())
            .collect()
    }

    fn finish(&self, container_id: &str, exit_code: i32, reason: &str) {
        let event = {
            let mut state = self.lock();
            let Some(container) = state.containers.get_mut(container_id) else {
                return;
            };
            if container.status.state == ContainerState::Exited {
                return;
            }
            let now = self.now();
            let status = &mut container.status;
            status.state = ContainerState::Exited;
            status.exit_code = exit_code;
            status.signal = (exit_code > 128).then_some(exit_code - 128);
            status.finished_at = Some(now);
            status.started_at.get_or_insert(now);
            status.pid = None;
            status.reason = match (reason, exit_code) {
                ("", 0) => "Completed".to_owned(),
                ("", _) => "Error".to_owned(),
                (reason, _) => reason.to_owned(),
            };
            for waiter in container.waiters.drain(..) {
                let _ = waiter.send(exit_code);
            }
            let sandbox_id = container.status.sandbox_id.clone();
            let pod_uid = sandbox_uid(&state, &sandbox_id);
            RuntimeEvent::ContainerExited {
                sandbox_id,
                pod_uid,
                container_id: container_id.to_owned(),
                exit_code,
            }
        };
        self.emit(event);
    }

    /// The container is removed.
    fn forget(&self, container_id: &str) {
        let event = {
            let mut state = self.lock();
            let Some(container) = state.containers.remove(container_id) else {
                return;
            };
            let sandbox_id = container.status.sandbox_id;
            RuntimeEvent::ContainerRemoved {
                pod_uid: sandbox_uid(&state, &sandbox_id),
                sandbox_id,
                container_id: container_id.to_owned(),
            }
        };
        self.emit(event);
    }

    fn running(&self, container_id: &str) -> Result<ContainerConfig, RuntimeError> {
        let state = self.lock();
        let container =
            state
                .containers
                .get(container_id)
                .ok_or_else(|| RuntimeError::ContainerNotFound {
                    id: container_id.to_owned(),
                })?;
        if container.status.state != ContainerState::Running {
            return Err(RuntimeError::NotRunning {
                id: container_id.to_owned(),
                state: container.status.state,
            });
        }
        Ok(container.config.clone())
    }

    fn answer(
        &self,
        config: &ContainerConfig,
        command: &[String],
    ) -> Result<ExecSyncResponse, RuntimeError> {
        let answer = self.exec.lock().expect("no holder panics").clone();
        answer(config, command)
    }
}

fn container_not_found(id: &str) -> RuntimeError {
    RuntimeError::ContainerNotFound { id: id.to_owned() }
}

fn sandbox_not_found(id: &str) -> RuntimeError {
    RuntimeError::SandboxNotFound { id: id.to_owned() }
}

fn copy_image_error(error: &ImageError) -> ImageError {
    match error {
        ImageError::InvalidImageName { image, reason } => ImageError::InvalidImageName {
            image: image.clone(),
            reason: reason.clone(),
        },
        ImageError::Pull { image, reason } => ImageError::Pull {
            image: image.clone(),
            reason: reason.clone(),
        },
        ImageError::RegistryUnavailable { image, reason } => ImageError::RegistryUnavailable {
            image: image.clone(),
            reason: reason.clone(),
        },
        ImageError::Verification { image, reason } => ImageError::Verification {
            image: image.clone(),
            reason: reason.clone(),
        },
        ImageError::NotFound { image } => ImageError::NotFound {
            image: image.clone(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn container(fake: &FakeRuntime, name: &str) -> (String, String) {
        let image = fake.pull_image("busybox", &[]).await.unwrap();
        let sandbox = PodSandboxConfig {
            metadata: PodSandboxMetadata {
                name: "pod".into(),
                uid: "uid".into(),
                ..Default::default()
            },
            ..Default::default()
        };
        let sandbox = fake.run_pod_sandbox(&sandbox).await.unwrap();
        let config = ContainerConfig {
            metadata: ContainerMetadata {
                name: name.into(),
                attempt: 0,
            },
            image,
            ..Default::default()
        };
        let id = fake.create_container(&sandbox, &config).await.unwrap();
        (sandbox, id)
    }

    #[tokio::test]
    async fn a_container_runs_until_it_is_told_to_exit() {
        let fake = FakeRuntime::new();
        let mut events = fake.events();
        let (sandbox, id) = container(&fake, "main").await;
        fake.start_container(&id).await.unwrap();
        assert_eq!(
            fake.container_status(&id).await.unwrap().state,
            ContainerState::Running
        );
        assert_eq!(
            fake.find_container("uid", "main").as_deref(),
            Some(id.as_str())
        );
        fake.exit(&id, 3);
        let status = fake.container_status(&id).await.unwrap();
        assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
        assert!(matches!(
            events.recv().await.unwrap(),
            RuntimeEvent::SandboxReady { .. }
        ));
        assert!(matches!(
            events.recv().await.unwrap(),
            RuntimeEvent::ContainerCreated { .. }
        ));
        assert!(matches!(
            events.recv().await.unwrap(),
            RuntimeEvent::ContainerStarted { .. }
        ));
        assert!(matches!(
            events.recv().await.unwrap(),
            RuntimeEvent::ContainerExited { exit_code: 3, .. }
        ));
        fake.remove_pod_sandbox(&sandbox).await.unwrap();
        assert!(fake.container_status(&id).await.is_err());
        assert!(matches!(
            events.recv().await.unwrap(),
            RuntimeEvent::SandboxStopped { .. }
        ));
        assert!(matches!(
            events.recv().await.unwrap(),
            RuntimeEvent::ContainerRemoved { .. }
        ));
        assert!(matches!(
            events.recv().await.unwrap(),
            RuntimeEvent::SandboxRemoved { .. }
        ));
    }

    #[tokio::test]
    async fn a_start_error_leaves_an_exited_container() {
        let fake = FakeRuntime::new();
        fake.set_behaviour(|_, _| Behaviour::StartError("no such file".into()));
        let (_, id) = container(&fake, "main").await;
        assert!(fake.start_container(&id).await.is_err());
        let status = fake.container_status(&id).await.unwrap();
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (128, "StartError")
        );
    }
}
