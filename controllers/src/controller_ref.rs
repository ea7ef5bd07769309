//! Who controls what: which objects a controller owns, which orphans it should adopt and which of its own no longer
//! match and are to be released. Pure; the writes are patches that carry the object's UID, so that a namesake is safe.
//!
//! Upstream: pkg/controller/controller_ref_manager.go, v1.36.

use std::sync::Arc;

use component_base::informer::{Informer, Object};
use component_helpers::labels::Selector;
use component_helpers::owner_ref::get_controller_of;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use serde_json::{Value, json};

/// The index that [`index_by_controller`] adds.
const BY_CONTROLLER: &str = "controller";

/// Lets `informer` find objects by the UID of their controller, and orphans by their namespace.
pub fn index_by_controller<K: Object>(informer: &Informer<K>) {
    informer.add_index(BY_CONTROLLER, |object| {
        let meta = object.meta();
        vec![match get_controller_of(meta) {
            Some(controller) => controller.uid.clone(),
            None => orphans_of(meta.namespace.as_deref().unwrap_or_default()),
        }]
    });
}

/// No UID looks like it.
fn orphans_of(namespace: &str) -> String {
    format!("orphans/{namespace}")
}

/// The objects that the owner with `uid` controls. Needs [`index_by_controller`].
pub fn controlled_by<K: Object>(informer: &Informer<K>, uid: &str) -> Vec<Arc<K>> {
    informer.by_index(BY_CONTROLLER, uid)
}

/// The objects of a namespace that nobody controls. Needs [`index_by_controller`].
pub fn orphans<K: Object>(informer: &Informer<K>, namespace: &str) -> Vec<Arc<K>> {
    informer.by_index(BY_CONTROLLER, &orphans_of(namespace))
}

/// The outcome of [`claim`].
#[derive(Clone, Debug)]
pub struct Claim<K> {
    /// Controlled and selected.
    pub owned: Vec<Arc<K>>,
    /// Selected orphans. Adopt them only after a fresh read shows that the owner is not being deleted.
    pub adopt: Vec<Arc<K>>,
    /// Controlled, but not selected any more.
    pub release: Vec<Arc<K>>,
}

impl<K> Claim<K> {
    /// Whether nobody's owner has to change.
    pub fn is_settled(&self) -> bool {
        self.adopt.is_empty() && self.release.is_empty()
    }
}

/// Sorts `objects` by what `owner` has to do with them. An owner that is being deleted adopts and releases nothing.
pub fn claim<K: Resource>(
    owner: &ObjectMeta,
    selector: &Selector,
    objects: impl IntoIterator<Item = Arc<K>>,
) -> Claim<K> {
    let deleting = owner.deletion_timestamp.is_some();
    let mut claim = Claim {
        owned: Vec::new(),
        adopt: Vec::new(),
        release: Vec::new(),
    };
    for object in objects {
        let meta = object.meta();
        let selected = selector.matches(&meta.labels);
        match get_controller_of(meta) {
            Some(controller) if Some(controller.uid.as_str()) != owner.uid.as_deref() => {}
            Some(_) if selected => claim.owned.push(object),
            Some(_) if !deleting => claim.release.push(object),
            Some(_) => {}
            None => {
                let adoptable = selected
                    && !deleting
                    && meta.deletion_timestamp.is_none()
                    && meta.namespace == owner.namespace;
                if adoptable {
                    claim.adopt.push(object);
                }
            }
        }
    }
    claim
}

/// A strategic merge patch that makes `owner` the controller of the object with this UID.
pub fn adopt_patch(owner: &OwnerReference, uid: &str) -> Value {
    json!({"metadata": {"ownerReferences": [owner], "uid": uid}})
}

/// A strategic merge patch that takes the owner with `owner_uid` from the object with this UID.
pub fn release_patch(owner_uid: &str, uid: &str) -> Value {
    json!({"metadata": {"ownerReferences": [{"$patch": "delete", "uid": owner_uid}], "uid": uid}})
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    #[test]
    fn table() {
        let object = |name: &str, app: &str, owner: Option<&str>, deleting: bool| -> Arc<Pod> {
            let owners: Vec<_> = owner
                .map(|uid| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "o", "uid": uid, "controller": true}))
                .into_iter()
                .collect();
            let deletion = deleting.then_some("2026-01-01T00:00:00Z");
            let meta = json!({"name": name, "namespace": "n", "labels": {"app": app}, "ownerReferences": owners, "deletionTimestamp": deletion});
            Arc::new(serde_json::from_value(json!({ "metadata": meta })).unwrap())
        };
        let objects = || {
            vec![
                object("mine", "a", Some("me"), false),
                object("mine-going", "a", Some("me"), true),
                object("strayed", "b", Some("me"), false),
                object("orphan", "a", None, false),
                object("orphan-going", "a", None, true),
                object("other-orphan", "b", None, false),
                object("theirs", "a", Some("you"), false),
            ]
        };
        let selector = Selector::from_labels(&[("app".to_owned(), "a".to_owned())].into());
        let mut owner = ObjectMeta {
            uid: Some("me".to_owned()),
            namespace: Some("n".to_owned()),
            ..Default::default()
        };
        let names = |objects: &[Arc<Pod>]| {
            objects
                .iter()
                .map(|o| o.metadata.name.clone().unwrap())
                .collect::<Vec<_>>()
        };

        let claimed = claim(&owner, &selector, objects());
        assert_eq!(names(&claimed.owned), ["mine", "mine-going"]);
        assert_eq!(names(&claimed.adopt), ["orphan"]);
        assert_eq!(names(&claimed.release), ["strayed"]);

        owner.deletion_timestamp =
            Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
        let claimed = claim(&owner, &selector, objects());
        assert_eq!(names(&claimed.owned), ["mine", "mine-going"]);
        assert!(claimed.is_settled());
    }
}
