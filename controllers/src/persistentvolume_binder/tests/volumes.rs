//! Volumes: what becomes of them with and without their claims.

use super::super::sync::{Purpose, is_released};
use super::{World, check, check_unchanged, pv, pvc};

#[test]
fn a_volume_without_a_bound_claim_is_available() {
    for given in ["pv a 1Gi -", "pv a 1Gi Pending", "pv a 1Gi Failed"] {
        check(&[given], "a", &["pv a 1Gi Available"], &[]);
    }
    check(
        &["pv a 1Gi Pending claim=c", "pvc c 1Gi Pending"],
        "a",
        &["pv a 1Gi Available claim=c", "pvc c 1Gi Pending"],
        &[],
    );
}

#[test]
fn a_volume_is_bound_when_its_claim_says_so() {
    check(
        &[
            "pv a 1Gi Available claim=c/uid-c",
            "pvc c 1Gi Bound volume=a completed",
        ],
        "a",
        &[
            "pv a 1Gi Bound claim=c/uid-c",
            "pvc c 1Gi Bound volume=a completed",
        ],
        &[],
    );
    // The claim's own pass completes a binding.
    for by in ["", " by-controller"] {
        let volume = format!("pv a 1Gi Bound claim=c/uid-c{by}");
        check_unchanged(&[&volume, "pvc c 1Gi Pending"], "a", &["sync c"]);
    }
    // It never will if one is a device.
    check_unchanged(
        &[
            "pv a 1Gi Available claim=c/uid-c block",
            "pvc c 1Gi Pending",
        ],
        "a",
        &["Warning VolumeMismatch", "Warning VolumeMismatch"],
    );
}

#[test]
fn a_volume_is_released_when_its_claim_is_gone() {
    // Gone, or a namesake has come.
    for claims in [&[][..], &["pvc c 1Gi Pending uid=new"][..]] {
        let mut given = vec!["pv a 1Gi Bound claim=c/uid-c by-controller"];
        given.extend(claims);
        let mut expect = vec!["pv a 1Gi Released claim=c/uid-c by-controller"];
        let printed: Vec<String> = World::new(claims).print();
        expect.extend(printed.iter().map(String::as_str));
        check(&given, "a", &expect, &[]);
    }
    // Failed stays for people to see.
    check_unchanged(&["pv a 1Gi Failed claim=c/uid-c"], "a", &[]);
}

#[test]
fn a_volume_whose_claim_has_another() {
    let claim = "pvc c 1Gi Bound volume=b completed";
    // Bound by the controller: free again.
    check(
        &["pv a 1Gi Bound claim=c/uid-c by-controller", claim],
        "a",
        &["pv a 1Gi Available", claim],
        &[],
    );
    // Set aside by a user: still set aside.
    check(
        &["pv a 1Gi Bound claim=c/uid-c", claim],
        "a",
        &["pv a 1Gi Available claim=c", claim],
        &[],
    );
    // Made for the claim, and too much: it goes, by us or by whoever made it.
    check(
        &[
            "pv a 1Gi Bound claim=c/uid-c by-controller provisioned-by=kubernetes.io/host-path policy=Delete finalizer=kubernetes.io/pv-controller host-path=/tmp/a",
            claim,
        ],
        "a",
        &[
            "pv a 1Gi Released claim=c/uid-c by-controller provisioned-by=kubernetes.io/host-path finalizer=kubernetes.io/pv-controller",
            claim,
        ],
        &["delete-a[uid-a]"],
    );
    check(
        &[
            "pv a 1Gi Bound claim=c/uid-c by-controller provisioned-by=vendor.com/x policy=Delete csi",
            claim,
        ],
        "a",
        &[
            "pv a 1Gi Released claim=c/uid-c by-controller provisioned-by=vendor.com/x",
            claim,
        ],
        &[],
    );
    // Made for the claim, but to be kept.
    check(
        &[
            "pv a 1Gi Bound claim=c/uid-c by-controller provisioned-by=vendor.com/x csi",
            claim,
        ],
        "a",
        &["pv a 1Gi Available provisioned-by=vendor.com/x", claim],
        &[],
    );
}

#[test]
fn who_deletes() {
    let deleted = |words: &str, phase: &str, log: &[&str]| {
        let mut world = World::new(&[
            &format!("pv a 1Gi Bound claim=c/uid-c policy=Delete class=gold {words}"),
            "sc gold vendor.com/x",
        ]);
        let purpose = world.sync("a");
        assert_eq!(world.log, log, "{words}");
        let printed = world.print().remove(0);
        assert!(
            printed.starts_with(&format!("pv a 1Gi {phase} ")),
            "{printed}"
        );
        match purpose {
            Purpose::Delete(deleter) => deleter,
            _ => String::new(),
        }
    };
    let ours = "kubernetes.io/host-path";
    assert_eq!(
        deleted("host-path=/tmp/x", "Released", &["delete-a[uid-a]"]),
        ours
    );
    assert_eq!(deleted("csi", "Released", &[]), "vendor.com/x");
    // The class is believed, not what somebody wrote on the volume.
    assert_eq!(
        deleted("provisioned-by=local/x host-path=/x", "Released", &[]),
        "vendor.com/x"
    );
    // A driver stands in: its provisioner does it, and nothing is counted here.
    let words = "provisioned-by=kubernetes.io/gce-pd";
    assert_eq!(deleted(words, "Released", &[]), "");
    let failed = ["Warning VolumeFailedDelete"];
    assert_eq!(deleted("nfs", "Failed", &failed), "N/A");
    assert_eq!(deleted("", "Failed", &failed), "N/A");
    assert_eq!(
        deleted("provisioned-by=kubernetes.io/gone", "Failed", &failed),
        "N/A"
    );
    assert_eq!(
        deleted("provisioned-by=kubernetes.io/nfs", "Failed", &failed),
        "N/A"
    );
    // It is said once, and tried again.
    check_unchanged(
        &["pv a 1Gi Failed claim=c/uid-c policy=Delete nfs"],
        "a",
        &[],
    );
    check_unchanged(
        &["pv a 1Gi Failed claim=c/uid-c policy=Delete host-path=/tmp/x"],
        "a",
        &["delete-a[uid-a]"],
    );
}

#[test]
fn other_policies() {
    check(
        &["pv a 1Gi Bound claim=c/uid-c policy=Burn"],
        "a",
        &["pv a 1Gi Failed claim=c/uid-c"],
        &["Warning VolumeUnknownReclaimPolicy"],
    );
    check(
        &["pv a 1Gi Bound claim=c/uid-c policy=Recycle host-path=/tmp/x"],
        "a",
        &["pv a 1Gi Failed claim=c/uid-c"],
        &["Warning VolumeFailedRecycle"],
    );
    // Not while pods use it, unless they use a namesake of its claim.
    check(
        &[
            "pv a 1Gi Bound claim=c/uid-c policy=Recycle",
            "pod default/p",
        ],
        "a",
        &["pv a 1Gi Released claim=c/uid-c"],
        &["Normal VolumeFailedRecycle"],
    );
    check(
        &[
            "pv a 1Gi Bound claim=c/uid-c policy=Recycle",
            "pvc c 1Gi Bound volume=b uid=new",
            "pod default/p",
        ],
        "a",
        &["pv a 1Gi Failed claim=c/uid-c", "pvc c 1Gi Bound volume=b"],
        &["Warning VolumeFailedRecycle"],
    );
}

#[test]
fn whether_a_volume_may_be_deleted() {
    let volume = |words: &str| pv(&format!("pv a 1Gi Released {words}"));
    assert!(!is_released(&volume(""), None));
    assert!(!is_released(&volume("claim=c"), None));
    assert!(is_released(&volume("claim=c/uid-c"), None));
    let released = |claim: &str| is_released(&volume("claim=c/uid-c"), Some(&pvc(claim)));
    assert!(!released("pvc c 1Gi Pending"));
    assert!(!released("pvc c 1Gi Bound volume=a"));
    assert!(released("pvc c 1Gi Bound volume=b"));
    assert!(released("pvc c 1Gi Bound volume=a uid=new"));
}

#[test]
fn drivers_that_stand_in_and_finalizers() {
    let becomes = |words: &str, policy: &str, expect: &str| {
        check(
            &[&format!("pv a 1Gi Available policy={policy} {words}")],
            "a",
            &[format!("pv a 1Gi Available {expect}").trim_end()],
            &[],
        );
    };
    let (ours, theirs) = (
        "finalizer=kubernetes.io/pv-controller",
        "finalizer=external-provisioner.volume.kubernetes.io/finalizer",
    );
    // In tree, still: our finalizer while we shall delete it, never theirs.
    let by = "provisioned-by=kubernetes.io/host-path";
    becomes(by, "Delete", &format!("{by} {ours}"));
    becomes(by, "Retain", by);
    becomes(
        &format!("{by} finalizer=own {ours}"),
        "Retain",
        &format!("{by} finalizer=own"),
    );
    becomes(&format!("{by} {ours}"), "Recycle", by);
    becomes(
        &format!("{by} {theirs} finalizer=own"),
        "Delete",
        &format!("{by} finalizer=own {ours}"),
    );
    becomes(&format!("{by} migrated-to=old.com"), "Retain", by);
    // A driver stands in: its finalizer, not ours.
    let by = "provisioned-by=kubernetes.io/aws-ebs";
    let to = format!("{by} migrated-to=ebs.csi.aws.com");
    becomes(by, "Delete", &to);
    becomes(
        &format!("{by} {ours} {theirs}"),
        "Delete",
        &format!("{to} {theirs}"),
    );
    becomes(&format!("{by} migrated-to=other.com"), "Delete", &to);
    // Of others', and of volumes that people made, nothing is touched.
    let by = "provisioned-by=vendor.com/x";
    becomes(
        &format!("{by} {theirs}"),
        "Delete",
        &format!("{by} {theirs}"),
    );
    becomes(
        &format!("{ours} {theirs}"),
        "Delete",
        &format!("{ours} {theirs}"),
    );
}
