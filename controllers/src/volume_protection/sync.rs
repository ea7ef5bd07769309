//! The decisions: who needs a finalizer, who may lose it, who is used by whom. Pure.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use component_helpers::owner_ref::is_controlled_by;
use component_helpers::pod;
use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimCondition, Pod,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;

/// On PersistentVolumes.
pub const PV_PROTECTION_FINALIZER: &str = "kubernetes.io/pv-protection";
/// On PersistentVolumeClaims.
pub const PVC_PROTECTION_FINALIZER: &str = "kubernetes.io/pvc-protection";
/// On VolumeAttributesClasses.
pub const VAC_PROTECTION_FINALIZER: &str = "kubernetes.io/vac-protection";

fn has(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|f| f == finalizer)
}

/// Being deleted, and held by the finalizer.
pub fn is_deletion_candidate(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.deletion_timestamp.is_some() && has(meta, finalizer)
}

/// Not being deleted, and without the finalizer.
pub fn need_to_add_finalizer(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.deletion_timestamp.is_none() && !has(meta, finalizer)
}

/// Whether one of the two holds: else an event about the object says nothing new.
pub fn is_relevant(meta: &ObjectMeta, finalizer: &str) -> bool {
    is_deletion_candidate(meta, finalizer) || need_to_add_finalizer(meta, finalizer)
}

/// The finalizers the object should have, if others than it has. `in_use` is asked only when it matters.
pub fn finalizers(
    meta: &ObjectMeta,
    finalizer: &str,
    in_use: impl FnOnce() -> bool,
) -> Option<Vec<String>> {
    let mut list = meta.finalizers.clone().unwrap_or_default();
    if need_to_add_finalizer(meta, finalizer) {
        list.push(finalizer.to_owned());
        return Some(list);
    }
    if is_deletion_candidate(meta, finalizer) && !in_use() {
        list.retain(|f| f != finalizer);
        return Some(list);
    }
    None
}

/// Whether a claim is bound to the volume.
pub fn is_bound(volume: &PersistentVolume) -> bool {
    volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound")
}

/// The claims of one namespace that none of its pods uses, as far as `uses` goes.
pub fn unused_claims<P: Borrow<Pod>>(
    claims: &[Arc<PersistentVolumeClaim>],
    pods: &[P],
    uses: fn(&Pod, &PersistentVolumeClaim) -> bool,
) -> Vec<Arc<PersistentVolumeClaim>> {
    let name = |claim: &Arc<PersistentVolumeClaim>| claim.metadata.name.clone();
    let mut left: BTreeMap<_, _> = claims.iter().map(|c| (name(c), c)).collect();
    for pod in pods {
        let pod = pod.borrow();
        for claim in pod::volume_claim_names(pod) {
            let key = Some(claim);
            if left.get(&key).is_some_and(|claim| uses(pod, claim)) {
                left.remove(&key);
            }
        }
    }
    left.into_values().cloned().collect()
}

/// Whether the pod uses the claim as far as deletion goes: an unscheduled pod does not, for the kubelet refuses to start a pod whose
/// claim is being deleted.
pub fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    pod::node_name(pod).is_some() && names(pod, claim, !is_shut_down(pod))
}

/// Whether the pod counts as a user of the claim in its condition `Unused`: it names it, and has not ended. It need not be scheduled.
pub fn references(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    !pod::is_terminal(pod) && names(pod, claim, true)
}

/// Whether a volume of the pod is of this claim; `ephemeral`: those made for the pod alone count.
fn names(pod: &Pod, claim: &PersistentVolumeClaim, ephemeral: bool) -> bool {
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.into_iter().any(|volume| {
        let direct = volume.persistent_volume_claim.as_ref();
        direct.is_some_and(|source| source.claim_name == name)
            || volume.ephemeral.is_some()
                && ephemeral
                && format!("{}-{}", pod::name(pod), volume.name) == name
                && is_controlled_by(&claim.metadata, pod::uid(pod))
    })
}

/// The kubelet is done with the pod, or it was deleted by force. Its own ephemeral claims may go: else a finalizer of the pod that
/// waits for the claim would wait forever.
fn is_shut_down(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
        && pod.metadata.deletion_grace_period_seconds == Some(0)
}

/// The condition of a claim that says whether no pod names it, and since when. Upstream: `v1.PersistentVolumeClaimUnused`.
const UNUSED: &str = "Unused";

fn condition(claim: &PersistentVolumeClaim) -> Option<&PersistentVolumeClaimCondition> {
    let conditions = claim.status.as_ref()?.conditions.as_deref()?;
    conditions
        .iter()
        .find(|condition| condition.type_ == UNUSED)
}

/// Whether the condition is kept on this claim: it is bound and stays. (Before that its status is the binder's alone.)
pub fn is_tracked(claim: &PersistentVolumeClaim) -> bool {
    claim.metadata.deletion_timestamp.is_none()
        && claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound")
}

/// Whether the claim's condition says this already.
pub fn says_unused(claim: &PersistentVolumeClaim, unused: bool) -> bool {
    condition(claim).is_some_and(|condition| (condition.status == "True") == unused)
}

/// The claim with the condition that says this.
pub fn with_unused(
    claim: &PersistentVolumeClaim,
    unused: bool,
    now: Timestamp,
) -> PersistentVolumeClaim {
    let (status, reason, message) = match unused {
        true => (
            "True",
            "NoPodsUsingPVC",
            "No pods are currently referencing this PVC",
        ),
        false => (
            "False",
            "PodUsingPVC",
            "A pod is currently referencing this PVC",
        ),
    };
    let mut claim = claim.clone();
    let conditions = claim
        .status
        .get_or_insert_default()
        .conditions
        .get_or_insert_default();
    conditions.retain(|condition| condition.type_ != UNUSED);
    conditions.push(PersistentVolumeClaimCondition {
        type_: UNUSED.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(Time(now)),
        last_probe_time: None,
    });
    claim
}

/// Whether an event of this pod may free a claim: it is gone, has ended, or is not scheduled.
pub fn may_free_claims(pod: &Pod, deleted: bool) -> bool {
    deleted || pod::is_terminal(pod) || pod::node_name(pod).is_none()
}

/// The classes a claim names: wanted, current, and on the way.
pub fn classes_of_claim(claim: &PersistentVolumeClaim) -> BTreeSet<String> {
    let spec = claim.spec.as_ref();
    let status = claim.status.as_ref();
    let modify = status.and_then(|s| s.modify_volume_status.as_ref());
    [
        spec.and_then(|s| s.volume_attributes_class_name.clone()),
        status.and_then(|s| s.current_volume_attributes_class_name.clone()),
        modify.and_then(|m| m.target_volume_attributes_class_name.clone()),
    ]
    .into_iter()
    .flatten()
    .filter(|name| !name.is_empty())
    .collect()
}

/// The class a volume names.
pub fn classes_of_volume(volume: &PersistentVolume) -> BTreeSet<String> {
    let spec = volume.spec.as_ref();
    let name = spec.and_then(|s| s.volume_attributes_class_name.clone());
    name.filter(|name| !name.is_empty()).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn finalizers_come_and_go() {
        let f = PV_PROTECTION_FINALIZER;
        for (has, deleting, used, expect) in [
            (json!([]), false, false, Some(json!([f]))),
            (json!(["x"]), false, true, Some(json!(["x", f]))),
            (json!([f]), false, false, None),
            (json!(["x", f]), true, false, Some(json!(["x"]))),
            (json!([f]), true, true, None),
            (json!(["x"]), true, false, None),
        ] {
            let time = deleting.then_some("2026-01-01T00:00:00Z");
            let meta: ObjectMeta =
                serde_json::from_value(json!({"finalizers": has, "deletionTimestamp": time}))
                    .unwrap();
            let found = finalizers(&meta, f, || used);
            let expect: Option<Vec<String>> = expect.map(|e| serde_json::from_value(e).unwrap());
            assert_eq!(found, expect, "{has} {deleting} {used}");
        }
    }

    fn pod(name: &str, node: &str, volumes: Value, more: Value) -> Pod {
        let mut meta = json!({"name": name, "namespace": "ns", "uid": format!("{name}-uid")});
        meta.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        serde_json::from_value(json!({"metadata": meta,
            "spec": {"nodeName": node, "containers": [], "volumes": volumes}}))
        .unwrap()
    }

    #[test]
    fn claims_in_use() {
        let direct = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
        let ephemeral = json!([{"name": "v", "ephemeral": {}}]);
        let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "p-uid", "controller": true}]);
        let gone =
            json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0});
        let going =
            json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30});
        for (claim, owners, volumes, node, more, used) in [
            ("c", json!([]), &direct, "n", json!({}), true),
            ("d", json!([]), &direct, "n", json!({}), false),
            ("c", json!([]), &direct, "", json!({}), false),
            ("c", json!([]), &direct, "n", gone.clone(), true),
            ("p-v", owner.clone(), &ephemeral, "n", json!({}), true),
            ("p-v", json!([]), &ephemeral, "n", json!({}), false),
            ("p-v", owner.clone(), &ephemeral, "n", going, true),
            ("p-v", owner, &ephemeral, "n", gone, false),
        ] {
            let claim: PersistentVolumeClaim = serde_json::from_value(
                json!({"metadata": {"name": claim, "namespace": "ns", "ownerReferences": owners}}),
            )
            .unwrap();
            let pods = [pod("p", node, volumes.clone(), more.clone())];
            let unused = unused_claims(&[Arc::new(claim)], &pods, uses);
            assert_eq!(unused.is_empty(), used, "{volumes} {node} {more}");
        }
    }

    #[test]
    fn the_condition_of_a_claim_says_whether_a_pod_names_it() {
        let direct = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "metadata": {"name": "c", "namespace": "ns"},
            "status": {"phase": "Bound", "conditions": [{"type": "Resizing", "status": "True"}]}}))
        .unwrap();
        // An unscheduled pod counts, one that has ended does not.
        let mut waiting = pod("p", "", direct, json!({}));
        assert!(references(&waiting, &claim) && !uses(&waiting, &claim));
        waiting.status.get_or_insert_default().phase = Some("Succeeded".to_owned());
        assert!(!references(&waiting, &claim));
        assert!(is_tracked(&claim));
        assert!(!says_unused(&claim, true) && !says_unused(&claim, false));
        let now = |second| Timestamp::from_second(second).unwrap();
        let unused = with_unused(&claim, true, now(1));
        assert!(says_unused(&unused, true) && !says_unused(&unused, false));
        let used = with_unused(&unused, false, now(2));
        let conditions = used.status.as_ref().unwrap().conditions.as_ref().unwrap();
        let said: Vec<_> = conditions
            .iter()
            .map(|c| (c.type_.as_str(), c.status.as_str(), c.reason.as_deref()))
            .collect();
        assert_eq!(
            said,
            [
                ("Resizing", "True", None),
                ("Unused", "False", Some("PodUsingPVC"))
            ]
        );
        assert_eq!(conditions[1].last_transition_time, Some(Time(now(2))));
        for (phase, deleted) in [("Pending", None), ("Bound", Some(Time(now(1))))] {
            let mut claim = claim.clone();
            claim.metadata.deletion_timestamp = deleted;
            claim.status.get_or_insert_default().phase = Some(phase.to_owned());
            assert!(!is_tracked(&claim), "{phase}");
        }
    }

    #[test]
    fn classes() {
        let claim = serde_json::from_value(json!({
            "spec": {"volumeAttributesClassName": "a"},
            "status": {"currentVolumeAttributesClassName": "b",
                "modifyVolumeStatus": {"status": "Pending", "targetVolumeAttributesClassName": "a"}}}))
        .unwrap();
        assert!(classes_of_claim(&claim).iter().eq(["a", "b"]));
        let volume =
            serde_json::from_value(json!({"spec": {"volumeAttributesClassName": ""}})).unwrap();
        assert!(classes_of_volume(&volume).is_empty());
    }
}
