//! Whose volume it is, and what fits.

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateWaiting, PersistentVolumeClaimSpec,
    PersistentVolumeSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;

fn claim(name: &str, uid: &str) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            namespace: Some("ns".into()),
            name: Some(name.into()),
            uid: Some(uid.into()),
            ..Default::default()
        },
        spec: Some(PersistentVolumeClaimSpec::default()),
        ..Default::default()
    }
}

fn volume(claim: Option<(&str, &str)>) -> PersistentVolume {
    PersistentVolume {
        spec: Some(PersistentVolumeSpec {
            claim_ref: claim.map(|(name, uid)| ObjectReference {
                namespace: Some("ns".into()),
                name: Some(name.into()),
                uid: Some(uid.into()).filter(|u: &String| !u.is_empty()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[test]
fn whose_volume_it_is() {
    let claim = claim("a", "1");
    for (reference, bound) in [
        (None, false),
        (Some(("a", "")), true),
        (Some(("a", "1")), true),
        (Some(("a", "2")), false),
        (Some(("b", "1")), false),
    ] {
        let volume = volume(reference);
        assert_eq!(
            is_volume_bound_to_claim(&volume, &claim),
            bound,
            "{reference:?}"
        );
        let made = bind_volume_to_claim(&volume, &claim);
        if reference == Some(("a", "1")) {
            assert_eq!(made, None);
            continue;
        }
        let made = made.unwrap();
        assert_eq!(claim_ref(&made), Some(&claim_reference(&claim)));
        // What a user set aside stays a user's binding.
        let by_controller = has_annotation(&made.metadata, BOUND_BY_CONTROLLER);
        assert_eq!(by_controller, !bound, "{reference:?}");
        assert_eq!(bind_volume_to_claim(&made, &claim), None);
    }
}

#[test]
fn classes() {
    let mut claim = claim("a", "1");
    assert!(!claim_has_class(&claim) && claim_class(&claim).is_empty());
    claim.spec.as_mut().unwrap().storage_class_name = Some(String::new());
    assert!(claim_has_class(&claim) && claim_class(&claim).is_empty());
    claim.spec.as_mut().unwrap().storage_class_name = Some("new".into());
    assert_eq!(claim_class(&claim), "new");
    set_annotation(&mut claim.metadata, BETA_STORAGE_CLASS, "old");
    assert_eq!(claim_class(&claim), "old");
    remove_annotation(&mut claim.metadata, BETA_STORAGE_CLASS);
    assert_eq!(
        (claim_class(&claim), claim.metadata.annotations.clone()),
        ("new", None)
    );
}

#[test]
fn access_modes() {
    let modes =
        |list: &[&str]| AccessModes::new(Some(&list.iter().map(ToString::to_string).collect()));
    let all = modes(&["ReadWriteMany", "ReadOnlyMany", "ReadWriteOnce"]);
    assert!(all.contains(modes(&["ReadWriteOnce"])) && all.contains(modes(&[])));
    assert!(!all.contains(modes(&["ReadWriteOncePod"])));
    assert!(!modes(&["ReadWriteOncePod"]).contains(modes(&["ReadWriteOnce"])));
    assert!(modes(&["ReadWriteOncePod"]) < all && modes(&["ReadWriteOnce"]) < all);
    assert_eq!(
        modes(&["ReadWriteOnce", "ReadWriteOnce"]),
        modes(&["ReadWriteOnce"])
    );
}

#[test]
fn when_a_pod_is_done_with_its_volumes() {
    let pod = |phase: &str, deleted: bool, state: Option<ContainerState>| {
        let mut pod = Pod::default();
        pod.metadata.deletion_timestamp = deleted.then(|| Time(Default::default()));
        let statuses = state.map(|state| {
            vec![ContainerStatus {
                state: Some(state),
                ..Default::default()
            }]
        });
        pod.status = Some(PodStatus {
            phase: Some(phase.into()),
            container_statuses: statuses,
            ..Default::default()
        });
        pod
    };
    let running = ContainerState {
        running: Some(ContainerStateRunning::default()),
        ..Default::default()
    };
    let waiting = ContainerState {
        waiting: Some(ContainerStateWaiting::default()),
        ..Default::default()
    };
    assert!(!is_pod_terminated(&pod("Running", false, None)));
    assert!(is_pod_terminated(&pod(
        "Succeeded",
        false,
        Some(running.clone())
    )));
    assert!(is_pod_terminated(&pod("Running", true, None)));
    assert!(is_pod_terminated(&pod("Running", true, Some(waiting))));
    assert!(!is_pod_terminated(&pod("Running", true, Some(running))));
}
