//! The PersistentVolumeClaims of a StatefulSet's pods: what they are called, and whom they go with. Pure.
//!
//! ```text
//! whenDeleted  whenScaled   owner of the claim
//! Retain       Retain       nobody
//! Delete       Retain       the set
//! Retain       Delete       the pod, once it is beyond the replicas
//! Delete       Delete       the set; the pod, once it is beyond the replicas
//! ```
//!
//! Upstream: pkg/controller/statefulset/stateful_set_utils.go, v1.36.

use component_helpers::owner_ref::{get_controller_of, new_controller_ref};
use k8s_openapi::Resource;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::sync::ordinal;

/// The claims of the pod of this name as they are made, with the name of the volume each is for.
pub fn claims_of(set: &StatefulSet, pod_name: &str) -> Vec<(String, PersistentVolumeClaim)> {
    let spec = &set.spec;
    let templates = spec.volume_claim_templates.iter().flatten();
    templates
        .map(|template| {
            let volume = template.metadata.name.clone().unwrap_or_default();
            let mut claim = PersistentVolumeClaim {
                status: None,
                ..template.clone()
            };
            claim.metadata.name = Some(format!("{volume}-{pod_name}"));
            claim.metadata.namespace = set.metadata.namespace.clone();
            claim
                .metadata
                .labels
                .get_or_insert_default()
                .extend(spec.selector.match_labels.clone().unwrap_or_default());
            if when_deleted(set) {
                claim.metadata.owner_references =
                    Some(vec![new_controller_ref::<StatefulSet>(&set.metadata)]);
            }
            (volume, claim)
        })
        .collect()
}

/// Whether a pod of the set, of whatever ordinal, has a claim of this name.
pub fn is_claim_of(set: &StatefulSet, claim_name: &str) -> bool {
    let set_name = set.metadata.name.as_deref().unwrap_or_default();
    let templates = set.spec.volume_claim_templates.iter().flatten();
    templates
        .filter_map(|template| template.metadata.name.as_deref())
        .filter_map(|volume| claim_name.strip_prefix(volume)?.strip_prefix('-'))
        .any(|pod_name| ordinal(set_name, pod_name).is_some())
}

/// Whether the claim belongs to a former pod of this name, and goes with it: a new pod must wait for that. `pod`: the one
/// there is now, if any.
pub fn is_stale(claim: &PersistentVolumeClaim, pod_name: &str, pod: Option<&Pod>) -> bool {
    let uid = pod.and_then(|p| p.metadata.uid.as_deref());
    owners(claim).any(|owner| {
        owner.kind == Pod::KIND && owner.name == pod_name && Some(owner.uid.as_str()) != uid
    })
}

/// The owners the claim should have; `None`: those it has. `scaled_down`: the pod is beyond the replicas.
pub fn reowned(
    claim: &PersistentVolumeClaim,
    set: &StatefulSet,
    pod: &Pod,
    scaled_down: bool,
) -> Option<Vec<OwnerReference>> {
    let ours = [
        new_controller_ref::<StatefulSet>(&set.metadata),
        new_controller_ref::<Pod>(&pod.metadata),
    ];
    let is_namesake = |owner: &OwnerReference| {
        ours.iter().any(|our| {
            our.api_version == owner.api_version && our.kind == owner.kind && our.name == owner.name
        })
    };
    let is_ours = |owner: &OwnerReference| ours.iter().any(|our| our.uid == owner.uid);
    // Of a former set or pod: the garbage collector's, not ours.
    if owners(claim).any(|owner| is_namesake(owner) && !is_ours(owner)) {
        return None;
    }
    let [of_set, of_pod] = ours.clone();
    let foreign = get_controller_of(&claim.metadata).is_some_and(|owner| !is_ours(owner));
    let wanted = match (when_scaled(set) && scaled_down, when_deleted(set)) {
        // Another controller's claim gets none on top.
        _ if foreign => None,
        (true, _) => Some(of_pod),
        (false, true) => Some(of_set),
        (false, false) => None,
    };
    let mut refs: Vec<_> = owners(claim).filter(|o| !is_ours(o)).cloned().collect();
    refs.extend(wanted);
    let order = |refs: &[OwnerReference]| {
        let mut refs = refs.to_vec();
        refs.sort_by(|a, b| a.uid.cmp(&b.uid));
        refs
    };
    let have: Vec<_> = owners(claim).cloned().collect();
    (order(&have) != order(&refs)).then_some(refs)
}

/// Whether a retention policy that deletes meets a claim of another controller, or of a former set or pod of the same name.
pub fn has_unexpected_controller(
    claim: &PersistentVolumeClaim,
    set: &StatefulSet,
    pod: &Pod,
) -> bool {
    if !when_scaled(set) && !when_deleted(set) {
        return false;
    }
    let ours = [
        new_controller_ref::<StatefulSet>(&set.metadata),
        new_controller_ref::<Pod>(&pod.metadata),
    ];
    owners(claim).any(|owner| {
        let namesake = ours.iter().find(|our| {
            our.api_version == owner.api_version && our.kind == owner.kind && our.name == owner.name
        });
        match namesake {
            Some(our) => our.uid != owner.uid,
            None => owner.controller == Some(true),
        }
    })
}

fn policy(set: &StatefulSet) -> Option<&StatefulSetPersistentVolumeClaimRetentionPolicy> {
    set.spec.persistent_volume_claim_retention_policy.as_ref()
}

fn when_deleted(set: &StatefulSet) -> bool {
    policy(set).is_some_and(|p| p.when_deleted.as_deref() == Some("Delete"))
}

fn when_scaled(set: &StatefulSet) -> bool {
    policy(set).is_some_and(|p| p.when_scaled.as_deref() == Some("Delete"))
}

fn owners(claim: &PersistentVolumeClaim) -> impl Iterator<Item = &OwnerReference> {
    let ObjectMeta {
        owner_references, ..
    } = &claim.metadata;
    owner_references.iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(deleted: &str, scaled: &str) -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": {"name": "w", "namespace": "n", "uid": "set"},
            "spec": {
                "selector": {"matchLabels": {"a": "a"}}, "serviceName": "", "template": {},
                "persistentVolumeClaimRetentionPolicy": {"whenDeleted": deleted, "whenScaled": scaled},
            },
        }))
        .unwrap()
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "w-0", "uid": "pod"}})).unwrap()
    }

    fn owner(text: &str) -> Value {
        let (kind, uid) = text.split_once('/').unwrap();
        let (api_version, name) = match kind {
            "StatefulSet" => ("apps/v1", "w"),
            "Pod" => ("v1", "w-0"),
            _ => ("example.com/v1", "x"),
        };
        let controls = !uid.ends_with('?');
        json!({"apiVersion": api_version, "kind": kind, "name": name, "uid": uid.trim_end_matches('?'),
            "controller": controls, "blockOwnerDeletion": true})
    }

    fn claim(owners: &[&str]) -> PersistentVolumeClaim {
        let owners: Vec<_> = owners.iter().map(|text| owner(text)).collect();
        serde_json::from_value(json!({"metadata": {"name": "d-w-0", "ownerReferences": owners}}))
            .unwrap()
    }

    /// `expect`: the owners written; `None`: nothing is.
    fn check(policy: [&str; 2], scaled_down: bool, owners: &[&str], expect: Option<&[&str]>) {
        let set = set(policy[0], policy[1]);
        let written = reowned(&claim(owners), &set, &pod(), scaled_down);
        let written: Option<Vec<String>> = written.map(|refs| {
            refs.iter()
                .map(|r| format!("{}/{}", r.kind, r.uid))
                .collect()
        });
        let expect: Option<Vec<String>> =
            expect.map(|texts| texts.iter().map(ToString::to_string).collect());
        assert_eq!(written, expect, "{policy:?} {scaled_down} {owners:?}");
    }

    #[test]
    fn retention() {
        let (set, pod) = ("StatefulSet/set", "Pod/pod");
        check(["Retain", "Retain"], false, &[], None);
        check(["Retain", "Retain"], true, &[set], Some(&[]));
        check(["Delete", "Retain"], false, &[], Some(&[set]));
        check(["Delete", "Retain"], true, &[set], None);
        check(["Retain", "Delete"], false, &[], None);
        check(["Retain", "Delete"], true, &[], Some(&[pod]));
        check(["Retain", "Delete"], false, &[pod], Some(&[]));
        check(["Delete", "Delete"], false, &[], Some(&[set]));
        check(["Delete", "Delete"], true, &[set], Some(&[pod]));
        check(["Delete", "Delete"], false, &[pod], Some(&[set]));
    }

    #[test]
    fn others_owners_are_left_alone() {
        let (set, other) = ("StatefulSet/set", "Other/o");
        check(["Delete", "Retain"], false, &[other], None);
        check(["Delete", "Retain"], false, &[other, set], Some(&[other]));
        check(
            ["Delete", "Retain"],
            false,
            &["Other/o?"],
            Some(&["Other/o", set]),
        );
        // An owner that does not control is made to.
        check(
            ["Delete", "Retain"],
            false,
            &["StatefulSet/set?"],
            Some(&[set]),
        );
        // Of a set that was deleted and made again.
        check(["Delete", "Retain"], false, &["StatefulSet/former"], None);
        check(["Retain", "Retain"], false, &["Pod/former"], None);
    }

    #[test]
    fn a_former_pods_claim_is_stale() {
        assert!(is_stale(&claim(&["Pod/former"]), "w-0", None));
        assert!(is_stale(&claim(&["Pod/former"]), "w-0", Some(&pod())));
        assert!(!is_stale(&claim(&["Pod/pod"]), "w-0", Some(&pod())));
        assert!(!is_stale(&claim(&["StatefulSet/set"]), "w-0", None));
    }
}
