//! Starts one container: image, configuration, create, start, postStart.
//!
//! Owns: the crash-loop back-off and the waiting reasons. Upstream: `startContainer`, `doBackOff`, v1.36.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use runtime::api::{ContainerState, ImageStatus, NamespaceMode};
use tokio_util::sync::CancellationToken;
use volumes::PodVolumes;

use super::{RuntimeManager, SyncResult, observe};
use crate::container_config::{
    ContainerConfigError, ContainerFacts, calc_restart_count_by_log_dir, generate_container_config,
};
use crate::environment::{NodeFacts, make_environment_variables};
use crate::events::{Type, reason};
use crate::image_manager::{ERR_IMAGE_PULL, ImageFailure};
use crate::off_thread::off_thread;
use crate::pod::{self, ContainerKind};
use crate::pod_actions::KillReason;
use crate::pod_status::PodStatus;
use crate::sandbox_config::namespaces_for_pod;
use crate::security_context::{ImageUser, SecurityDefaults, to_runtime, verify_run_as_non_root};
use crate::status::containers::StartFailure;
use crate::{device_plugins, hosts, lifecycle, metrics, termination};

/// What is the same for every container of the pod.
pub(super) struct StartContext<'a> {
    pub pod: &'a Arc<Pod>,
    pub status: &'a PodStatus,
    pub sandbox_id: &'a str,
    pub pod_ips: &'a [String],
    pub volumes: &'a PodVolumes,
    pub image_volumes: &'a HashMap<String, Result<String, ImageFailure>>,
    pub secrets: &'a [Arc<Secret>],
    pub cancel: &'a CancellationToken,
}

/// Of a container that does not start, in the status: what the pod itself says may stand in it, and a status of megabytes is never
/// written.
const MAX_MESSAGE_BYTES: usize = 4096;

struct Failure {
    reason: &'static str,
    message: String,
    retry_after: Option<Duration>,
}

fn failure(reason: &'static str, message: impl ToString) -> Failure {
    Failure {
        reason,
        message: message.to_string(),
        retry_after: None,
    }
}

impl From<ImageFailure> for Failure {
    fn from(f: ImageFailure) -> Self {
        Failure {
            reason: f.reason,
            message: f.message,
            retry_after: f.retry_after,
        }
    }
}

/// What a container's back-off hangs on: who it is, and what ends the back-off when it changes. The pod's UID comes first,
/// so that all of a pod can be forgotten. Upstream: `GetBackoffKey`.
fn back_off_key(pod: &Pod, container: &Container) -> String {
    let resources = container
        .resources
        .as_ref()
        .and_then(|resources| serde_json::to_string(resources).ok())
        .unwrap_or_default();
    format!(
        "{}/{}/{}/{}/{}/{resources}",
        pod::uid(pod),
        pod::namespace(pod),
        pod::name(pod),
        container.name,
        container.image.as_deref().unwrap_or_default(),
    )
}

/// When the container ended last. `None`: it never did.
fn last_end(status: &PodStatus, container: &Container) -> Option<Timestamp> {
    let mut instances = status.containers.iter();
    let ended = instances
        .find(|c| c.metadata.name == container.name && c.state == ContainerState::Exited)?;
    Some(ended.finished_at.unwrap_or(ended.created_at))
}

impl RuntimeManager {
    /// Returns whether the container runs.
    pub(super) async fn start(
        &self,
        context: &StartContext<'_>,
        container: &Container,
        kind: ContainerKind,
        target: Option<&str>,
        result: &mut SyncResult,
    ) -> bool {
        if context.cancel.is_cancelled() {
            return false;
        }
        let uid = pod::uid(context.pod);
        let outcome = match self.do_back_off(context, container) {
            Some(failed) => Err(failed),
            None => {
                metrics::STARTED_CONTAINERS
                    .with_label_values(&[kind.metric_label()])
                    .inc();
                let outcome = self.start_container(context, container, target).await;
                if let Err(failed) = &outcome {
                    metrics::STARTED_CONTAINERS_ERRORS
                        .with_label_values(&[kind.metric_label(), failed.reason])
                        .inc();
                }
                outcome
            }
        };
        let mut failures = self.failures();
        match outcome {
            Ok(()) => {
                if let Some(of_pod) = failures.get_mut(uid) {
                    of_pod.remove(&container.name);
                }
                true
            }
            Err(failed) => {
                let mut message = failed.message.clone();
                termination::cut(&mut message, MAX_MESSAGE_BYTES);
                // What was cut off is not kept.
                message.shrink_to_fit();
                let text = format!(
                    "failed to {:?} for {:?} with {}: {message:?}",
                    "StartContainer", container.name, failed.reason
                );
                let entry = StartFailure {
                    reason: failed.reason.to_owned(),
                    message,
                };
                failures
                    .entry(uid.to_owned())
                    .or_default()
                    .insert(container.name.clone(), entry);
                result.pull_failed |= failed.reason == ERR_IMAGE_PULL;
                result.fail(text, failed.retry_after);
                false
            }
        }
    }

    /// It is not the container's time yet. Nothing is told of it.
    pub(super) fn backs_off(&self, pod: &Pod, status: &PodStatus, container: &Container) -> bool {
        let key = back_off_key(pod, container);
        let remaining = |finished| {
            let loops = &self.d.crash_loop;
            loops.remaining_since(&key, finished, self.d.clock.now())
        };
        last_end(status, container).and_then(remaining).is_some()
    }

    /// A container that ended lately must wait before it starts again.
    fn do_back_off(&self, context: &StartContext<'_>, container: &Container) -> Option<Failure> {
        let pod = context.pod;
        let finished = last_end(context.status, container)?;
        let key = back_off_key(pod, container);
        if let Some(wait) = self
            .d
            .crash_loop
            .remaining_since(&key, finished, self.d.clock.now())
        {
            self.d.recorder.container(
                pod,
                &container.name,
                Type::Warning,
                reason::BACK_OFF,
                format!(
                    "Back-off restarting failed container {} in pod {}",
                    container.name,
                    pod::format(pod)
                ),
            );
            let backoff = component_base::duration::format(self.d.crash_loop.get(&key));
            return Some(Failure {
                reason: "CrashLoopBackOff",
                message: format!(
                    "back-off {backoff} restarting failed container={} pod={}",
                    container.name,
                    pod::format(pod)
                ),
                retry_after: Some(wait),
            });
        }
        self.d.crash_loop.next(&key, finished, self.d.clock.now());
        None
    }

    /// One more than before; without a record of the last one, by its logs.
    fn restart_count(&self, context: &StartContext<'_>, name: &str) -> u32 {
        if let Some(previous) = context.status.find_container_status_by_name(name) {
            return previous.metadata.attempt + 1;
        }
        let pod = context.pod;
        let (namespace, pod_name, uid) = (pod::namespace(pod), pod::name(pod), pod::uid(pod));
        let logs = self.d.paths.pod_log_directory(namespace, pod_name, uid);
        calc_restart_count_by_log_dir(&logs.join(name))
    }

    async fn start_container(
        &self,
        context: &StartContext<'_>,
        container: &Container,
        target: Option<&str>,
    ) -> Result<(), Failure> {
        let pod = context.pod;
        let name = container.name.as_str();
        let failed_event = |message: &str| {
            self.d.recorder.container(
                pod,
                name,
                Type::Warning,
                reason::FAILED,
                format!("Error: {message}"),
            );
        };
        let (image_volumes, failures) = image_volumes(context, container);
        for failed in &failures {
            failed_event(failed.reason);
        }
        if let Some(failed) = failures.last() {
            return Err((*failed).clone().into());
        }
        let image = self
            .d
            .images
            .ensure_image_exists(
                pod,
                name,
                container.image.as_deref().unwrap_or_default(),
                container.image_pull_policy.as_deref(),
                context.secrets,
                context.cancel,
            )
            .await
            .map_err(|failed| {
                failed_event(failed.reason);
                Failure::from(failed)
            })?;
        if context.cancel.is_cancelled() {
            return Err(failure(ERR_IMAGE_PULL, "pod is being terminated"));
        }

        let restart_count = self.restart_count(context, name);
        let config = match self
            .config(
                context,
                container,
                &image,
                &image_volumes,
                restart_count,
                target,
            )
            .await
        {
            Ok(config) => config,
            Err(error) => {
                let text = error.to_string();
                failed_event(&text);
                return Err(failure("CreateContainerConfigError", text));
            }
        };
        let runtime = &self.d.runtime;
        let id = match observe(
            "create_container",
            runtime.create_container(context.sandbox_id, &config),
        )
        .await
        {
            Ok(id) => id,
            Err(error) => {
                failed_event(&error.to_string());
                return Err(failure("CreateContainerError", error));
            }
        };
        let event = |reason: &str, message: &str| {
            self.d
                .recorder
                .container(pod, name, Type::Normal, reason, message)
        };
        event(reason::CREATED, "Container created");
        if !pod::init_containers(pod).is_empty() {
            let (managers, pod, name) = (self.d.managers.clone(), pod.clone(), name.to_owned());
            let added = off_thread(move || managers.add_container(&pod, &name)).await;
            if let Err(error) = added {
                tracing::error!(uid = pod::uid(context.pod), %error, "memory of init containers is not free yet");
            }
        }
        if let Err(error) = observe("start_container", runtime.start_container(&id)).await {
            failed_event(&error.to_string());
            return Err(failure("RunContainerError", error));
        }
        event(reason::STARTED, "Container started");
        self.link_log(pod, name, &id, &config.log_path);
        self.post_start(context, container, &id).await
    }

    async fn config(
        &self,
        context: &StartContext<'_>,
        container: &Container,
        image: &ImageStatus,
        image_volumes: &HashMap<String, String>,
        restart_count: u32,
        target: Option<&str>,
    ) -> Result<runtime::api::ContainerConfig, ContainerConfigError> {
        let pod = context.pod;
        let image_user = ImageUser {
            uid: image.uid,
            username: image.username.clone(),
        };
        verify_run_as_non_root(pod, container, &image_user)?;

        let host_ips = self.d.node.host_ips.load();
        let allocatable = self.d.node.allocatable.load();
        let facts = NodeFacts {
            host_ips: &host_ips,
            pod_ips: context.pod_ips,
            allocatable: &allocatable,
        };
        let mut envs =
            make_environment_variables(pod, container, &facts, self.d.objects.as_ref()).await?;

        let mut namespaces = namespaces_for_pod(pod, self.user_namespace(pod)?);
        if let Some(target) = target.filter(|t| !t.is_empty()) {
            let found = context
                .status
                .find_container_status_by_name(target)
                .filter(|c| c.state == ContainerState::Running)
                .ok_or_else(|| ContainerConfigError::NoTarget(target.to_owned()))?;
            if namespaces.pid == NamespaceMode::Container {
                namespaces.pid = NamespaceMode::Target;
                namespaces.target_id = Some(found.id.clone());
            }
        }
        let seccomp_root = self.d.paths.seccomp();
        let defaults = SecurityDefaults {
            seccomp_root: &seccomp_root,
            seccomp_default: self.d.config.seccomp_default,
            node: &self.d.security,
        };
        let security = to_runtime(pod, container, &image_user, namespaces, &defaults)?;

        let (hostname, domain) =
            hosts::generate_pod_hostname_and_domain(pod, &self.d.config.cluster_domain)?;
        let pod_dir = self.d.paths.pod(pod::uid(pod));
        let wanted = hosts::hosts_file(pod, context.pod_ips, &hostname, &domain);
        let written = off_thread(move || hosts::ensure_hosts_file(&pod_dir, &wanted)).await;
        let hosts_file = written
            .map_err(std::io::Error::other)
            .and_then(|written| written)
            .map_err(|source| ContainerConfigError::Io {
                what: "write the pod's hosts file".to_owned(),
                source,
            })?;
        let injection = self
            .d
            .devices
            .container_options(
                &device_plugins::request(pod),
                &container.name,
                !context.cancel.is_cancelled(),
            )
            .await?;
        device_plugins::add_envs(&mut envs, &injection);
        let mut cdi_devices = self.d.claims.cdi_devices(pod, container).await?;
        for name in &injection.cdi_devices {
            if !cdi_devices.contains(name) {
                cdi_devices.push(name.clone());
            }
        }
        generate_container_config(
            pod,
            container,
            ContainerFacts {
                restart_count,
                image_ref: image.id.clone(),
                envs,
                injection,
                cdi_devices,
                security,
                resources: self.wanted_resources(pod, container),
                volumes: context.volumes,
                image_volumes,
                volume_manager: &self.d.volumes,
                paths: &self.d.paths,
                hosts_file: Some(hosts_file),
                supports_rro: self.d.supports_rro,
                stop_signals: self.d.stop_signals,
            },
        )
        .await
    }

    /// The old place of container logs, where collectors look.
    fn link_log(&self, pod: &Pod, container: &str, id: &str, log_path: &std::path::Path) {
        let (namespace, name) = (pod::namespace(pod), pod::name(pod));
        let log = self
            .d
            .paths
            .pod_log_directory(namespace, name, pod::uid(pod))
            .join(log_path);
        let link = self.d.paths.legacy_log_link(namespace, name, container, id);
        if let Some(dir) = link.parent()
            && let Err(error) =
                std::fs::create_dir_all(dir).and_then(|()| std::os::unix::fs::symlink(&log, &link))
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            tracing::warn!(link = %link.display(), %error, "failed to create legacy symbolic link");
        }
    }

    async fn post_start(
        &self,
        context: &StartContext<'_>,
        container: &Container,
        id: &str,
    ) -> Result<(), Failure> {
        let pod = context.pod;
        let Some(handler) = container
            .lifecycle
            .as_ref()
            .and_then(|l| l.post_start.as_ref())
        else {
            return Ok(());
        };
        let ip = context.pod_ips.first().map(String::as_str);
        let hook = lifecycle::run_handler(
            self.d.runtime.as_ref(),
            &self.d.recorder,
            pod,
            container,
            id,
            handler,
            ip,
        );
        // A container that is to end does not wait for its beginning.
        let outcome = tokio::select! {
            outcome = hook => outcome,
            () = context.cancel.cancelled() => return Ok(()),
        };
        let Err(error) = outcome else { return Ok(()) };
        tracing::error!(pod = %pod::format(pod), container = container.name, %error, "failed to execute PostStartHook");
        // Not the error itself: it may hold secrets.
        self.d.recorder.container(
            pod,
            &container.name,
            Type::Warning,
            reason::FAILED_POST_START_HOOK,
            "PostStartHook failed",
        );
        let killed = self
            .kill_container(
                pod,
                id,
                &container.name,
                "FailedPostStartHook",
                KillReason::FailedPostStartHook,
                None,
                None,
            )
            .await;
        if let Err(error) = killed {
            tracing::error!(pod = %pod::format(pod), container = container.name, %error, "failed to kill container");
        }
        Err(failure("PostStartHookError", error))
    }
}

/// The images of the volumes that the container mounts, by volume, and what came in the way of others.
fn image_volumes<'a>(
    context: &'a StartContext<'_>,
    container: &Container,
) -> (HashMap<String, String>, Vec<&'a ImageFailure>) {
    let mut images = HashMap::new();
    let mut failures = vec![];
    for mount in container.volume_mounts.iter().flatten() {
        match context.image_volumes.get(&mount.name) {
            Some(Ok(image)) => drop(images.insert(mount.name.clone(), image.clone())),
            Some(Err(failed)) => failures.push(failed),
            None => {}
        }
    }
    (images, failures)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A new image or new resources may be the cure: such a container is not kept waiting.
    #[test]
    fn what_ends_a_back_off() {
        let pod = Pod {
            metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                uid: Some("u".into()),
                ..Default::default()
            },
            ..Default::default()
        };
        let container = |change: &str| -> Container {
            let mut json = serde_json::json!({
                "name": "c", "image": "i:1", "resources": {"limits": {"memory": "1Mi"}}, "args": ["a"],
            });
            match change {
                "image" => json["image"] = "i:2".into(),
                "resources" => json["resources"]["limits"]["memory"] = "2Mi".into(),
                "args" => json["args"] = serde_json::json!(["b"]),
                _ => {}
            }
            serde_json::from_value(json).unwrap()
        };
        let before = back_off_key(&pod, &container(""));
        assert!(before.starts_with("u/"));
        for (change, same) in [("args", true), ("image", false), ("resources", false)] {
            let after = back_off_key(&pod, &container(change));
            assert_eq!(after == before, same, "{change}");
        }
    }
}
