//! `/pods`: what should run here. `/runningpods`: what does.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
use runtime::api::{ContainerState, Origin};

use super::container::label;
use super::{ApiError, Server};
use crate::pod::label as labels;

fn list(pods: Vec<Pod>) -> Json<List<Pod>> {
    Json(List {
        items: pods,
        metadata: ListMeta::default(),
    })
}

/// The pods the kubelet runs, with their newest statuses.
pub(super) async fn pods(State(server): State<Server>) -> Json<List<Pod>> {
    let pods = server.context.pods().into_iter().map(Arc::unwrap_or_clone);
    list(pods.collect())
}

/// The pods that have a running container, as the runtime knows them.
pub(super) async fn running_pods(
    State(server): State<Server>,
) -> Result<Json<List<Pod>>, ApiError> {
    let mut pods: BTreeMap<String, Pod> = BTreeMap::new();
    for container in server.context.runtime().list_containers().await? {
        if container.state != ContainerState::Running || container.origin != Origin::Kubelet {
            continue;
        }
        let uid = label(&container, labels::POD_UID).to_owned();
        let pod = pods.entry(uid.clone()).or_insert_with(|| Pod {
            metadata: ObjectMeta {
                name: Some(label(&container, labels::POD_NAME).to_owned()),
                namespace: Some(label(&container, labels::POD_NAMESPACE).to_owned()),
                uid: Some(uid),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec::default()),
            status: None,
        });
        if let Some(spec) = &mut pod.spec {
            spec.containers.push(Container {
                name: container.metadata.name,
                image: Some(container.image),
                ..Container::default()
            });
        }
    }
    Ok(list(pods.into_values().collect()))
}
