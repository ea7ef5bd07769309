//! Mirror pods: static pods, shown to the API server.
//!
//! Owns: making and deleting them. Upstream: `pkg/kubelet/pod/mirror_client.go`, v1.36.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};

use crate::node::NodeState;
use crate::pod::{self, CONFIG_MIRROR_ANNOTATION};

/// Why the mirror is not as it should be; a retry helps.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error("the Node object is not known yet")]
    NoNode,
    #[error(transparent)]
    Api(#[from] kube::Error),
}

/// Makes the mirror of a static pod. One that is there already, under the same hash, is fine.
///
/// # Errors
/// See [`MirrorError`].
pub async fn create_mirror_pod(
    client: &kube::Client,
    node: &NodeState,
    pod: &Pod,
) -> Result<(), MirrorError> {
    let node_object = node.node.load();
    let node_uid = node_object
        .as_ref()
        .as_ref()
        .and_then(|n| n.metadata.uid.clone())
        .ok_or(MirrorError::NoNode)?;
    let mut mirror = pod.clone();
    mirror.metadata.uid = None;
    mirror.metadata.resource_version = None;
    mirror.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.name.clone(),
        uid: node_uid,
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    let hash = pod::config_hash(pod).unwrap_or_default().to_owned();
    mirror
        .metadata
        .annotations
        .get_or_insert_default()
        .insert(CONFIG_MIRROR_ANNOTATION.to_owned(), hash);
    mirror.status = None;
    if let Some(spec) = mirror.spec.as_mut() {
        // The API server computes it from the class.
        spec.priority = None;
    }
    let api: Api<Pod> = Api::namespaced(client.clone(), pod::namespace(pod));
    match api.create(&PostParams::default(), &mirror).await {
        Ok(_) => {
            crate::metrics::MIRROR_PODS_CREATED.inc();
            Ok(())
        }
        Err(kube::Error::Api(e)) if e.code == 409 => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Deletes exactly this mirror pod at once.
///
/// # Errors
/// See [`MirrorError`].
pub async fn delete_mirror_pod(client: &kube::Client, mirror: &Pod) -> Result<(), MirrorError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), pod::namespace(mirror));
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: mirror.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api.delete(pod::name(mirror), &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(e)) if e.code == 404 || e.code == 409 => Ok(()),
        Err(e) => Err(e.into()),
    }
}
