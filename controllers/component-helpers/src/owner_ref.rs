//! Owner references: who controls an object.
//!
//! Upstream: k8s.io/apimachinery/pkg/apis/meta/v1 controller_ref.go, v1.36.

use k8s_openapi::Resource;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// The reference to the managing controller; `None` where nobody controls the object.
pub fn get_controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
}

/// The uid of the managing controller.
pub fn controller_uid(meta: &ObjectMeta) -> Option<&str> {
    get_controller_of(meta).map(|owner| owner.uid.as_str())
}

/// Whether the object with this uid controls the object with this metadata.
pub fn is_controlled_by(meta: &ObjectMeta, owner_uid: &str) -> bool {
    controller_uid(meta) == Some(owner_uid)
}

/// Whether the object with this uid is among the owners, controlling or not.
pub fn is_owned_by(meta: &ObjectMeta, owner_uid: &str) -> bool {
    meta.owner_references
        .iter()
        .flatten()
        .any(|owner| owner.uid == owner_uid)
}

/// The reference a controller object of kind `K` puts into what it makes: controlling, and blocking the owner's deletion.
pub fn new_controller_ref<K: Resource>(owner: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: K::API_VERSION.into(),
        kind: K::KIND.into(),
        name: owner.name.clone().unwrap_or_default(),
        uid: owner.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::ReplicaSet;

    #[test]
    fn controller_of() {
        let owner = ObjectMeta {
            name: Some("rs".into()),
            uid: Some("u1".into()),
            ..Default::default()
        };
        let reference = new_controller_ref::<ReplicaSet>(&owner);
        assert_eq!(
            (reference.api_version.as_str(), reference.kind.as_str()),
            ("apps/v1", "ReplicaSet")
        );
        let other = OwnerReference {
            controller: None,
            uid: "u0".into(),
            ..reference.clone()
        };
        let meta = ObjectMeta {
            owner_references: Some(vec![other, reference]),
            ..Default::default()
        };
        assert_eq!(controller_uid(&meta), Some("u1"));
        assert!(
            is_controlled_by(&meta, "u1")
                && !is_controlled_by(&meta, "u0")
                && is_owned_by(&meta, "u0")
        );
        assert!(get_controller_of(&ObjectMeta::default()).is_none());
    }
}
