//! The index of Pods by the claims they use, generic ephemeral ones among them. Upstream: pkg/controller/volume/common, v1.36.

use std::sync::Arc;

use component_base::informer::{Informer, ObjectKey};
use component_helpers::pod;
use k8s_openapi::api::core::v1::Pod;

const NAME: &str = "pod-pvc";

/// Adds the index; adding it again changes nothing.
pub fn add_index(pods: &Informer<Pod>) {
    pods.add_index(NAME, |pod| {
        let names = pod::volume_claim_names(pod).into_iter();
        names
            .map(|name| ObjectKey::new(pod::namespace(pod), name).to_string())
            .collect()
    });
}

/// The Pods that use a claim; none before [`add_index`].
pub fn users(pods: &Informer<Pod>, claim: &ObjectKey) -> Vec<Arc<Pod>> {
    pods.by_index(NAME, &claim.to_string())
}
