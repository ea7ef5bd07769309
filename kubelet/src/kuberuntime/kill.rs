//! Ends containers and pods.
//!
//! Owns: grace periods, preStop hooks, the order in which sidecars go. Upstream: `killContainer`,
//! `killPodWithSyncResult`, `kuberuntime_termination_order.go`, v1.36.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Lifecycle, Pod, PodSpec};
use runtime::api::{ContainerState, ContainerStatus, RuntimeError, SandboxState};
use tokio::sync::watch;

use super::{RuntimeManager, observe};
use crate::events::{Type, reason};
use crate::lifecycle;
use crate::pod::{self, label};
use crate::pod_actions::KillReason;
use crate::pod_status::PodStatus;

/// A container always gets that long to end by itself; upstream: `minimumGracePeriodInSeconds`.
const MINIMUM_GRACE_PERIOD_SECONDS: i64 = 2;

/// Why a pod still runs.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    #[error("failed to kill container {name:?}: {source}")]
    Container {
        name: String,
        #[source]
        source: RuntimeError,
    },
    #[error("failed to stop pod sandbox {id}: {source}")]
    Sandbox {
        id: String,
        #[source]
        source: RuntimeError,
    },
    #[error("failed to get container spec {name:?} in pod {pod:?}")]
    NoSpec { name: String, pod: String },
}

/// Sidecars end after every regular container, in the reverse of the order they started in.
pub(super) struct TerminationOrdering {
    /// Whom a container waits for.
    predecessors: BTreeMap<String, Vec<String>>,
    ended: watch::Sender<HashSet<String>>,
}

impl TerminationOrdering {
    fn new(pod: &Pod, running: &[String]) -> Self {
        let regular: Vec<String> = pod::containers(pod)
            .iter()
            .map(|c| c.name.clone())
            .filter(|n| running.contains(n))
            .collect();
        let mut predecessors = BTreeMap::new();
        let mut before = regular;
        for sidecar in pod::init_containers(pod)
            .iter()
            .rev()
            .filter(|c| pod::is_restartable_init(c))
        {
            if running.contains(&sidecar.name) {
                predecessors.insert(sidecar.name.clone(), before.clone());
                before.push(sidecar.name.clone());
            }
        }
        Self {
            predecessors,
            ended: watch::Sender::new(HashSet::new()),
        }
    }

    async fn wait_for_turn(&self, name: &str, grace: Duration) {
        let Some(waits_for) = self.predecessors.get(name) else {
            return;
        };
        let mut ended = self.ended.subscribe();
        let all = ended.wait_for(|set| waits_for.iter().all(|n| set.contains(n)));
        // The grace period is over, or everyone has gone: either way it is this one's turn.
        let _ = tokio::time::timeout(grace, all).await;
    }

    fn container_terminated(&self, name: &str) {
        self.ended.send_modify(|set| {
            set.insert(name.to_owned());
        });
    }
}

/// What is left of a pod that no source names any longer: enough to end it well.
pub fn restore_pod_from_labels(status: &PodStatus) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.name = Some(status.name.clone());
    pod.metadata.namespace = Some(status.namespace.clone());
    pod.metadata.uid = Some(status.uid.clone());
    let mut spec = PodSpec::default();
    for c in &status.containers {
        let annotation = |key: &str| c.annotations.get(key);
        let seconds = |key: &str| annotation(key).and_then(|v| v.parse::<i64>().ok());
        spec.termination_grace_period_seconds = spec
            .termination_grace_period_seconds
            .or(seconds(label::POD_TERMINATION_GRACE_PERIOD));
        pod.metadata.deletion_grace_period_seconds = pod
            .metadata
            .deletion_grace_period_seconds
            .or(seconds(label::POD_DELETION_GRACE_PERIOD));
        if spec.containers.iter().any(|s| s.name == c.metadata.name) {
            continue;
        }
        let pre_stop = annotation(label::CONTAINER_PRE_STOP_HANDLER)
            .and_then(|t| serde_json::from_str(t).ok());
        spec.containers.push(Container {
            name: c.metadata.name.clone(),
            ports: annotation(label::CONTAINER_PORTS).and_then(|t| serde_json::from_str(t).ok()),
            lifecycle: pre_stop.map(|handler| Lifecycle {
                pre_stop: Some(handler),
                ..Lifecycle::default()
            }),
            ..Container::default()
        });
    }
    pod.spec = Some(spec);
    pod
}

fn termination_grace_period(pod: &Pod, container: &Container, kill: KillReason) -> i64 {
    let of_probe = match kill {
        KillReason::StartupProbe => container.startup_probe.as_ref(),
        KillReason::LivenessProbe => container.liveness_probe.as_ref(),
        _ => None,
    };
    if let Some(seconds) = pod.metadata.deletion_grace_period_seconds {
        return seconds;
    }
    of_probe
        .and_then(|p| p.termination_grace_period_seconds)
        .or_else(|| {
            pod.spec
                .as_ref()
                .and_then(|s| s.termination_grace_period_seconds)
        })
        .unwrap_or(MINIMUM_GRACE_PERIOD_SECONDS)
}

fn seconds(n: i64) -> Duration {
    Duration::from_secs(u64::try_from(n).unwrap_or(0))
}

impl RuntimeManager {
    /// Ends every container and every sandbox of the pod. `pod`: `None` for one that only the runtime knows.
    ///
    /// # Errors
    /// The first failure, after everything was tried.
    pub async fn kill_pod(
        &self,
        pod: Option<&Pod>,
        status: &PodStatus,
        grace_override: Option<i64>,
    ) -> Result<(), KillError> {
        let restored;
        let pod = match pod {
            Some(pod) => pod,
            None => {
                restored = restore_pod_from_labels(status);
                &restored
            }
        };
        let live: Vec<&ContainerStatus> = status
            .containers
            .iter()
            .filter(|c| matches!(c.state, ContainerState::Running | ContainerState::Unknown))
            .collect();
        let names: Vec<String> = live.iter().map(|c| c.metadata.name.clone()).collect();
        let ordering =
            pod::has_sidecar(pod).then(|| Arc::new(TerminationOrdering::new(pod, &names)));
        let kills = live.iter().map(|c| {
            let ordering = ordering.clone();
            async move {
                self.kill_container(
                    pod,
                    &c.id,
                    &c.metadata.name,
                    "",
                    KillReason::Other,
                    grace_override,
                    ordering.as_deref(),
                )
                .await
            }
        });
        let mut first = futures::future::join_all(kills)
            .await
            .into_iter()
            .find(Result::is_err)
            .unwrap_or(Ok(()));
        for sandbox in &status.sandboxes {
            if first.is_err() && sandbox.state == SandboxState::Ready {
                // A container is still there; its sandbox must not go first.
                break;
            }
            let stopped = observe(
                "stop_podsandbox",
                self.d.runtime.stop_pod_sandbox(&sandbox.id),
            )
            .await;
            if let Err(source) = stopped
                && !matches!(source, RuntimeError::SandboxNotFound { .. })
                && first.is_ok()
            {
                first = Err(KillError::Sandbox {
                    id: sandbox.id.clone(),
                    source,
                });
            }
        }
        first
    }

    /// preStop, then the stop signal, then SIGKILL, all within the grace period.
    ///
    /// # Errors
    /// The runtime could not stop it; a retry may help.
    #[allow(clippy::too_many_arguments)]
    pub(super) async fn kill_container(
        &self,
        pod: &Pod,
        id: &str,
        name: &str,
        message: &str,
        kill: KillReason,
        grace_override: Option<i64>,
        ordering: Option<&TerminationOrdering>,
    ) -> Result<(), KillError> {
        let found = pod::find_container(pod, name).map(|(c, _)| c.into_owned());
        // A container of an older version of the pod is still ended, only without its hook.
        let container = found.unwrap_or_else(|| Container {
            name: name.to_owned(),
            ..Container::default()
        });
        let mut grace =
            grace_override.unwrap_or_else(|| termination_grace_period(pod, &container, kill));
        let message = if message.is_empty() {
            format!("Stopping container {name}")
        } else {
            message.to_owned()
        };
        self.d
            .recorder
            .container(pod, name, Type::Normal, reason::KILLING, message);

        if grace > 0 {
            grace -= self.execute_pre_stop_hook(pod, &container, id, grace).await;
        }
        if let Some(ordering) = ordering.filter(|_| grace > 0) {
            let begin = self.d.clock.monotonic();
            ordering.wait_for_turn(name, seconds(grace)).await;
            grace -= i64::try_from((self.d.clock.monotonic() - begin).as_secs()).unwrap_or(0);
        }
        let grace = grace.max(MINIMUM_GRACE_PERIOD_SECONDS);
        let stopped = observe(
            "stop_container",
            self.d.runtime.stop_container(id, seconds(grace)),
        )
        .await;
        if let Some(ordering) = ordering {
            ordering.container_terminated(name);
        }
        match stopped {
            Ok(())
            | Err(RuntimeError::ContainerNotFound { .. } | RuntimeError::NotRunning { .. }) => {
                Ok(())
            }
            Err(source) => Err(KillError::Container {
                name: name.to_owned(),
                source,
            }),
        }
    }

    /// Whole seconds it took.
    async fn execute_pre_stop_hook(
        &self,
        pod: &Pod,
        container: &Container,
        id: &str,
        grace: i64,
    ) -> i64 {
        let Some(handler) = container
            .lifecycle
            .as_ref()
            .and_then(|l| l.pre_stop.as_ref())
        else {
            return 0;
        };
        let begin = self.d.clock.monotonic();
        let ip = match &handler.http_get {
            Some(get) if get.host.as_deref().unwrap_or_default().is_empty() => {
                self.pod_ip(pod).await
            }
            _ => None,
        };
        let hook = lifecycle::run_handler(
            self.d.runtime.as_ref(),
            &self.d.recorder,
            pod,
            container,
            id,
            handler,
            ip.as_deref(),
        );
        match tokio::time::timeout(seconds(grace), hook).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(pod = %pod::format(pod), container = container.name, %error, "PreStop hook failed");
                // Not the error itself: it may hold secrets.
                self.d.recorder.container(
                    pod,
                    &container.name,
                    Type::Warning,
                    reason::FAILED_PRE_STOP_HOOK,
                    "PreStopHook failed",
                );
            }
            Err(_) => {
                tracing::info!(pod = %pod::format(pod), container = container.name, "PreStop hook not completed in grace period");
            }
        }
        i64::try_from((self.d.clock.monotonic() - begin).as_secs()).unwrap_or(grace)
    }

    async fn pod_ip(&self, pod: &Pod) -> Option<String> {
        if pod::is_host_network(pod) {
            return self.d.node.host_ips.load().first().cloned();
        }
        self.pod_status(pod::uid(pod))
            .await
            .ok()?
            .ips()
            .first()
            .cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, sidecar: bool) -> Container {
        Container {
            name: name.into(),
            restart_policy: sidecar.then(|| "Always".to_owned()),
            ..Default::default()
        }
    }

    #[test]
    fn sidecars_go_last_and_backwards() {
        let pod = Pod {
            spec: Some(PodSpec {
                init_containers: Some(vec![
                    named("s1", true),
                    named("i", false),
                    named("s2", true),
                ]),
                containers: vec![named("a", false)],
                ..Default::default()
            }),
            ..Default::default()
        };
        let all = ["a", "s1", "s2"].map(String::from);
        let order = TerminationOrdering::new(&pod, &all).predecessors;
        assert_eq!(order["s2"], ["a"]);
        assert_eq!(order["s1"], ["a", "s2"]);
        assert!(!order.contains_key("a"));
    }
}
