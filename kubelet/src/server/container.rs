//! Finding a pod, its container and its sandbox among what the runtime has.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use runtime::api::{ContainerState, ContainerStatus, Origin, Runtime, RuntimeError, SandboxState};

use super::{ApiError, Server};
use crate::pod;

impl Server {
    /// The pod of a request's path. `uid`, if given, must be the pod's.
    pub(super) fn pod(
        &self,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
    ) -> Result<Arc<Pod>, ApiError> {
        let pod = self
            .context
            .pod_by_name(namespace, name)
            .ok_or_else(|| ApiError::not_found("pod does not exist"))?;
        match uid {
            Some(uid) if pod::uid(&pod) != uid => Err(ApiError::not_found("pod not found")),
            _ => Ok(pod),
        }
    }

    /// The container of this name that runs now, or else the newest one.
    pub(super) async fn container(
        &self,
        pod: &Pod,
        name: &str,
    ) -> Result<ContainerStatus, ApiError> {
        let found = newest(self.context.runtime().as_ref(), pod::uid(pod), name).await?;
        found.ok_or_else(|| ApiError::internal(format!("container not found ({name:?})")))
    }

    /// The container of this name, which must run. The refusal's text is containerd's.
    pub(super) async fn running_container(
        &self,
        pod: &Pod,
        name: &str,
    ) -> Result<ContainerStatus, ApiError> {
        let container = self.container(pod, name).await?;
        let state = match container.state {
            ContainerState::Running => return Ok(container),
            ContainerState::Created => "CONTAINER_CREATED",
            ContainerState::Exited => "CONTAINER_EXITED",
            ContainerState::Unknown => "CONTAINER_UNKNOWN",
        };
        Err(ApiError::internal(format!("container is in {state} state")))
    }

    /// The sandbox the pod lives in now.
    pub(super) async fn sandbox(&self, pod: &Pod) -> Result<String, ApiError> {
        let sandboxes = self.context.runtime().list_pod_sandboxes().await?;
        sandboxes
            .into_iter()
            .filter(|sandbox| {
                sandbox.metadata.uid == pod::uid(pod)
                    && sandbox.state == SandboxState::Ready
                    && sandbox.origin == Origin::Kubelet
            })
            .max_by_key(|sandbox| sandbox.metadata.attempt)
            .map(|sandbox| sandbox.id)
            .ok_or_else(|| {
                ApiError::internal(format!(
                    "failed to find sandboxID for pod {}",
                    pod::format(pod)
                ))
            })
    }
}

async fn newest(
    runtime: &dyn Runtime,
    uid: &str,
    name: &str,
) -> Result<Option<ContainerStatus>, RuntimeError> {
    let containers = runtime.list_containers().await?;
    Ok(containers
        .into_iter()
        .filter(|container| {
            container.metadata.name == name
                && label(container, pod::label::POD_UID) == uid
                && container.origin == Origin::Kubelet
        })
        .max_by_key(|container| {
            (
                container.state == ContainerState::Running,
                container.created_at,
            )
        }))
}

/// A label the kubelet gave the container; empty if it did not.
pub(super) fn label<'a>(container: &'a ContainerStatus, key: &str) -> &'a str {
    container.labels.get(key).map_or("", String::as_str)
}
