//! The verbs.

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::*;
use crate::detail::Detail;

#[async_trait]
impl Runtime for FakeRuntime {
    fn version(&self) -> (String, String) {
        (
            "gantry-fake".to_owned(),
            env!("CARGO_PKG_VERSION").to_owned(),
        )
    }

    async fn status(&self) -> Result<RuntimeStatus, RuntimeError> {
        let state = self.lock();
        Ok(RuntimeStatus {
            runtime_ready: state.runtime_ready.clone(),
            network_ready: state.network_ready.clone(),
            handlers: vec![RuntimeHandler {
                name: String::new(),
                recursive_read_only_mounts: true,
                user_namespaces: true,
            }],
        })
    }

    async fn update_pod_cidrs(&self, pod_cidrs: Vec<String>) -> Result<(), RuntimeError> {
        self.enter("update_pod_cidrs", &pod_cidrs.join(","))
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.events.subscribe()
    }

    async fn run_pod_sandbox(&self, config: &PodSandboxConfig) -> Result<String, RuntimeError> {
        self.enter("run_pod_sandbox", &config.metadata.uid)?;
        let id = {
            let mut state = self.lock();
            if state.sandboxes.values().any(|s| {
                s.config.metadata.uid == config.metadata.uid
                    && s.status.state == SandboxState::Ready
            }) {
                return Err(RuntimeError::Sandbox {
                    name: config.metadata.name.clone(),
                    reason: "a sandbox of this pod is running".to_owned(),
                });
            }
            state.next_id += 1;
            state.next_ip += 1;
            let id = format!("{:064x}", state.next_id);
            let host = config.namespaces.network == NamespaceMode::Node;
            let ip = std::net::Ipv4Addr::from(0x0a58_0000 + state.next_ip);
            let status = PodSandboxStatus {
                id: id.clone(),
                metadata: config.metadata.clone(),
                state: SandboxState::Ready,
                created_at: self.now(),
                ips: if host {
                    Vec::new()
                } else {
                    vec![ip.to_string()]
                },
                namespaces: config.namespaces.clone(),
                labels: config.labels.clone(),
                annotations: config.annotations.clone(),
                runtime_handler: config.runtime_handler.clone(),
                origin: config.origin,
            };
            state.sandboxes.insert(
                id.clone(),
                Sandbox {
                    config: config.clone(),
                    status,
                },
            );
            id
        };
        self.emit(RuntimeEvent::SandboxReady {
            sandbox_id: id.clone(),
            pod_uid: config.metadata.uid.clone(),
        });
        Ok(id)
    }

    async fn stop_pod_sandbox(&self, sandbox_id: &str) -> Result<(), RuntimeError> {
        self.enter("stop_pod_sandbox", sandbox_id)?;
        for id in self.container_ids(Some(sandbox_id)) {
            self.finish(&id, 137, "");
        }
        let stopped = self
            .lock()
            .sandboxes
            .get_mut(sandbox_id)
            .and_then(|sandbox| {
                let before = std::mem::replace(&mut sandbox.status.state, SandboxState::NotReady);
                (before == SandboxState::Ready).then(|| sandbox.config.metadata.uid.clone())
            });
        if let Some(pod_uid) = stopped {
            self.emit(RuntimeEvent::SandboxStopped {
                sandbox_id: sandbox_id.to_owned(),
                pod_uid,
            });
        }
        Ok(())
    }

    async fn remove_pod_sandbox(&self, sandbox_id: &str) -> Result<(), RuntimeError> {
        self.enter("remove_pod_sandbox", sandbox_id)?;
        self.stop_pod_sandbox(sandbox_id).await?;
        for id in self.container_ids(Some(sandbox_id)) {
            self.forget(&id);
        }
        let removed = self.lock().sandboxes.remove(sandbox_id);
        if let Some(sandbox) = removed {
            self.emit(RuntimeEvent::SandboxRemoved {
                sandbox_id: sandbox_id.to_owned(),
                pod_uid: sandbox.config.metadata.uid,
            });
        }
        Ok(())
    }

    async fn pod_sandbox_status(&self, sandbox_id: &str) -> Result<PodSandboxStatus, RuntimeError> {
        let state = self.lock();
        state
            .sandboxes
            .get(sandbox_id)
            .map(|s| s.status.clone())
            .ok_or_else(|| sandbox_not_found(sandbox_id))
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandboxStatus>, RuntimeError> {
        Ok(self
            .lock()
            .sandboxes
            .values()
            .map(|s| s.status.clone())
            .collect())
    }

    async fn create_container(
        &self,
        sandbox_id: &str,
        config: &ContainerConfig,
    ) -> Result<String, RuntimeError> {
        self.enter("create_container", &config.metadata.name)?;
        let decide = self.behaviour.lock().expect("no holder panics").clone();
        let mut state = self.lock();
        let sandbox = state
            .sandboxes
            .get(sandbox_id)
            .ok_or_else(|| sandbox_not_found(sandbox_id))?;
        let behaviour = decide(&sandbox.config, config);
        if let Behaviour::CreateError(message) = behaviour {
            return Err(RuntimeError::Create(message));
        }
        let log_path = sandbox.config.log_directory.join(&config.log_path);
        let image = state
            .images
            .values()
            .find(|i| i.id == config.image || i.repo_tags.contains(&config.image))
            .cloned()
            .ok_or_else(|| ImageError::NotFound {
                image: config.image.clone(),
            })?;
        state.next_id += 1;
        let id = format!("{:064x}", state.next_id);
        let status = ContainerStatus {
            id: id.clone(),
            sandbox_id: sandbox_id.to_owned(),
            metadata: config.metadata.clone(),
            state: ContainerState::Created,
            created_at: self.now(),
            started_at: None,
            finished_at: None,
            exit_code: 0,
            signal: None,
            reason: String::new(),
            message: String::new(),
            image: config.user_specified_image.clone(),
            image_id: image.id,
            image_ref: image.repo_digests.first().cloned().unwrap_or_default(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            log_path,
            pid: None,
            resources: config.resources.clone(),
            user: Some((config.security.run_as_user.unwrap_or(0), 0, Vec::new())),
            stop_signal: config
                .stop_signal
                .clone()
                .unwrap_or_else(|| "SIGTERM".to_owned()),
            mounts: config.mounts.clone(),
            origin: config.origin,
        };
        let container = Container {
            config: config.clone(),
            behaviour,
            status,
            waiters: Vec::new(),
        };
        let pod_uid = sandbox_uid(&state, sandbox_id);
        state.containers.insert(id.clone(), container);
        drop(state);
        self.emit(RuntimeEvent::ContainerCreated {
            sandbox_id: sandbox_id.to_owned(),
            pod_uid,
            container_id: id.clone(),
        });
        Ok(id)
    }

    async fn start_container(&self, container_id: &str) -> Result<(), RuntimeError> {
        self.enter("start_container", container_id)?;
        let (behaviour, event) = {
            let mut state = self.lock();
            let container = state
                .containers
                .get_mut(container_id)
                .ok_or_else(|| container_not_found(container_id))?;
            if container.status.state != ContainerState::Created {
                return Err(RuntimeError::Start(format!(
                    "container {container_id} is in state {:?}",
                    container.status.state
                )));
            }
            let behaviour = container.behaviour.clone();
            if !matches!(behaviour, Behaviour::StartError(_)) {
                container.status.state = ContainerState::Running;
                container.status.started_at = Some(self.now());
                container.status.pid = Some(1);
            }
            let sandbox_id = container.status.sandbox_id.clone();
            let pod_uid = state
                .sandboxes
                .get(&sandbox_id)
                .map(|s| s.config.metadata.uid.clone())
                .unwrap_or_default();
            let event = RuntimeEvent::ContainerStarted {
                sandbox_id,
                pod_uid,
                container_id: container_id.to_owned(),
            };
            (behaviour, event)
        };
        match behaviour {
            Behaviour::StartError(message) => {
                if let Some(container) = self.lock().containers.get_mut(container_id) {
                    container.status.message.clone_from(&message);
                }
                self.finish(container_id, 128, "StartError");
                Err(RuntimeError::Start(message))
            }
            Behaviour::Exit(code) => {
                self.emit(event);
                self.finish(container_id, code, "");
                Ok(())
            }
            Behaviour::Run | Behaviour::IgnoreStop | Behaviour::CreateError(_) => {
                self.emit(event);
                Ok(())
            }
        }
    }

    async fn stop_container(
        &self,
        container_id: &str,
        timeout: Duration,
    ) -> Result<(), RuntimeError> {
        self.enter("stop_container", container_id)?;
        let waits = {
            let state = self.lock();
            match state.containers.get(container_id) {
                None => return Ok(()),
                Some(c) => {
                    c.behaviour == Behaviour::IgnoreStop
                        && c.status.state == ContainerState::Running
                }
            }
        };
        if waits && !timeout.is_zero() {
            tokio::time::sleep(timeout).await;
        }
        self.finish(
            container_id,
            if waits || timeout.is_zero() { 137 } else { 143 },
            "",
        );
        Ok(())
    }

    async fn remove_container(&self, container_id: &str) -> Result<(), RuntimeError> {
        self.enter("remove_container", container_id)?;
        self.finish(container_id, 137, "");
        self.forget(container_id);
        Ok(())
    }

    async fn container_status(&self, container_id: &str) -> Result<ContainerStatus, RuntimeError> {
        let state = self.lock();
        state
            .containers
            .get(container_id)
            .map(|c| c.status.clone())
            .ok_or_else(|| container_not_found(container_id))
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        let state = self.lock();
        state.works("list_containers", "")?;
        Ok(state
            .containers
            .values()
            .map(|c| c.status.clone())
            .collect())
    }

    async fn update_container_resources(
        &self,
        container_id: &str,
        resources: &Resources,
    ) -> Result<(), RuntimeError> {
        self.enter("update_container_resources", container_id)?;
        let mut state = self.lock();
        let container = state
            .containers
            .get_mut(container_id)
            .ok_or_else(|| container_not_found(container_id))?;
        container.status.resources.merge(resources);
        Ok(())
    }

    async fn reopen_container_log(&self, container_id: &str) -> Result<(), RuntimeError> {
        self.enter("reopen_container_log", container_id)?;
        self.running(container_id).map(drop)
    }

    async fn exec_sync(
        &self,
        container_id: &str,
        command: &[String],
        _timeout: Option<Duration>,
        limit: usize,
    ) -> Result<ExecSyncResponse, RuntimeError> {
        self.enter("exec_sync", container_id)?;
        let config = self.running(container_id)?;
        let mut response = self.answer(&config, command)?;
        response.stdout.truncate(limit);
        response.stderr.truncate(limit);
        Ok(response)
    }

    async fn exec(
        &self,
        container_id: &str,
        command: &[String],
        options: &StreamOptions,
    ) -> Result<Session, RuntimeError> {
        self.enter("exec", container_id)?;
        let config = self.running(container_id)?;
        let response = self.answer(&config, command)?;
        let (exit, receiver) = oneshot::channel();
        let _ = exit.send(Ok(response.exit_code));
        Ok(Session {
            stdin: options.stdin.then(|| Box::new(tokio::io::sink()) as Writer),
            stdout: options
                .stdout
                .then(|| Box::new(std::io::Cursor::new(response.stdout)) as Reader),
            stderr: (options.stderr && !options.tty)
                .then(|| Box::new(std::io::Cursor::new(response.stderr)) as Reader),
            resize: options.tty.then(|| mpsc::channel(1).0),
            detaches_with_stdin: false,
            exit: receiver,
        })
    }

    async fn attach(
        &self,
        container_id: &str,
        options: &StreamOptions,
    ) -> Result<Session, RuntimeError> {
        self.enter("attach", container_id)?;
        self.running(container_id)?;
        let (exit, receiver) = oneshot::channel();
        let (waiter, exited) = oneshot::channel();
        if let Some(container) = self.lock().containers.get_mut(container_id) {
            container.waiters.push(waiter);
        }
        tokio::spawn(async move {
            let _ = exit.send(
                exited
                    .await
                    .map_err(|_| RuntimeError::Unsupported("attach to a removed container")),
            );
        });
        Ok(Session {
            stdin: options.stdin.then(|| Box::new(tokio::io::sink()) as Writer),
            stdout: options
                .stdout
                .then(|| Box::new(tokio::io::empty()) as Reader),
            stderr: (options.stderr && !options.tty)
                .then(|| Box::new(tokio::io::empty()) as Reader),
            resize: options.tty.then(|| mpsc::channel(1).0),
            detaches_with_stdin: false,
            exit: receiver,
        })
    }

    async fn port_forward(
        &self,
        sandbox_id: &str,
        _port: u16,
    ) -> Result<Box<dyn Duplex>, RuntimeError> {
        self.enter("port_forward", sandbox_id)?;
        Err(RuntimeError::Unsupported("port forwarding"))
    }

    async fn list_container_stats(&self) -> Result<Vec<ContainerStats>, RuntimeError> {
        let state = self.lock();
        Ok(state
            .containers
            .values()
            .filter(|c| c.status.state == ContainerState::Running)
            .map(|c| ContainerStats {
                id: c.status.id.clone(),
                sandbox_id: c.status.sandbox_id.clone(),
                name: c.config.metadata.name.clone(),
                timestamp: self.now(),
                ..ContainerStats::default()
            })
            .collect())
    }

    async fn list_pod_sandbox_stats(&self) -> Result<Vec<PodSandboxStats>, RuntimeError> {
        let containers = self.list_container_stats().await?;
        let state = self.lock();
        Ok(state
            .sandboxes
            .keys()
            .map(|id| PodSandboxStats {
                id: id.clone(),
                containers: containers
                    .iter()
                    .filter(|c| c.sandbox_id == *id)
                    .cloned()
                    .collect(),
                ..PodSandboxStats::default()
            })
            .collect())
    }

    async fn list_container_details(&self) -> Result<BTreeMap<String, Detail>, RuntimeError> {
        self.enter("list_container_details", "")?;
        // As of a cgroup that counts nothing.
        Ok(self
            .lock()
            .containers
            .values()
            .filter(|container| container.status.state == ContainerState::Running)
            .map(|container| (container.status.id.clone(), Detail::default()))
            .collect())
    }

    async fn pull_image(&self, image: &str, auths: &[ImageAuth]) -> Result<String, RuntimeError> {
        self.enter("pull_image", image)?;
        let mut state = self.lock();
        if let Some(error) = state.unpullable.get(image) {
            return Err(copy_image_error(error).into());
        }
        if let Some(auth) = state.private.get(image)
            && !auths.contains(auth)
        {
            return Err(ImageError::Pull {
                image: image.to_owned(),
                reason: "pull access denied".to_owned(),
            }
            .into());
        }
        // A stable id from the name: FNV-1a, 64 bits.
        let hash = image.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let id = format!("sha256:{hash:064x}");
        state
            .images
            .entry(image.to_owned())
            .or_insert_with(|| ImageStatus {
                id: id.clone(),
                repo_tags: vec![image.to_owned()],
                repo_digests: vec![format!("{}@{id}", image.split('@').next().unwrap_or(image))],
                size_bytes: 1 << 20,
                ..ImageStatus::default()
            });
        Ok(id)
    }

    async fn image_status(&self, image: &str) -> Result<Option<ImageStatus>, RuntimeError> {
        let state = self.lock();
        Ok(state
            .images
            .values()
            .find(|i| {
                i.id == image
                    || i.repo_tags
                        .iter()
                        .chain(&i.repo_digests)
                        .any(|name| name == image)
            })
            .cloned())
    }

    async fn list_images(&self) -> Result<Vec<ImageStatus>, RuntimeError> {
        Ok(self.lock().images.values().cloned().collect())
    }

    async fn remove_image(&self, image: &str) -> Result<(), RuntimeError> {
        self.enter("remove_image", image)?;
        self.lock()
            .images
            .retain(|name, status| name != image && status.id != image);
        Ok(())
    }

    async fn image_fs_info(&self) -> Result<FsUsage, RuntimeError> {
        let state = self.lock();
        Ok(FsUsage {
            mountpoint: "/".into(),
            used_bytes: state.images.values().map(|i| i.size_bytes).sum(),
            inodes_used: state.images.len() as u64,
        })
    }
}
