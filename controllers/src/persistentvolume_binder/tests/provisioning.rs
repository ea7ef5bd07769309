//! Claims for which no volume is there: classes, delayed binding, provisioners.

use super::super::host_path::{Refusal, delete, make, provision, refuse};
use super::super::provisioning::{PluginError, Provisioner, provisioner_of};
use super::super::sync::Purpose;
use super::{World, check, check_unchanged, print_pv, pvc, sc};

const EXTERNAL: &str = "sc gold vendor.com/x";
const WAITING: &str = "sc gold vendor.com/x wait";

#[test]
fn an_external_provisioner_is_asked() {
    let asked =
        "pvc c 1Gi Pending provisioner=vendor.com/x beta-provisioner=vendor.com/x class=gold";
    check(
        &[EXTERNAL, "pvc c 1Gi Pending class=gold"],
        "c",
        &[asked],
        &["Normal ExternalProvisioning"],
    );
    // It is said at every look, and written once.
    check_unchanged(
        &[
            EXTERNAL,
            "pvc c 1Gi Pending class=gold provisioner=vendor.com/x",
        ],
        "c",
        &["Normal ExternalProvisioning"],
    );
    // A volume that is there is taken instead.
    check(
        &[
            EXTERNAL,
            "pv a 1Gi Available class=gold",
            "pvc c 1Gi Pending class=gold",
        ],
        "c",
        &[
            "pv a 1Gi Bound claim=c/uid-c by-controller",
            "pvc c 1Gi Bound volume=a by-controller completed class=gold has=1Gi",
        ],
        &[],
    );
    let mut world = World::new(&[EXTERNAL, "pvc c 1Gi Pending class=gold"]);
    assert_eq!(
        world.sync("c"),
        Purpose::Provision("vendor.com/x".to_owned())
    );
}

#[test]
fn a_driver_stands_in_for_a_plugin() {
    let asked =
        "pvc c 1Gi Pending provisioner=ebs.csi.aws.com beta-provisioner=ebs.csi.aws.com class=gold";
    check(
        &[
            "sc gold kubernetes.io/aws-ebs",
            "pvc c 1Gi Pending class=gold",
        ],
        "c",
        &[asked],
        &["Normal ExternalProvisioning"],
    );
    // A claim from before.
    for word in ["provisioner", "beta-provisioner"] {
        let mut world = World::new(&[&format!(
            "pvc c 1Gi Bound volume=a completed {word}=kubernetes.io/cinder"
        )]);
        world.sync("c");
        assert!(world.print()[0].contains("migrated-to=cinder.csi.openstack.org"));
    }
    let mut world = World::new(&["pvc c 1Gi Pending provisioner=vendor.com/x migrated-to=old.com"]);
    world.sync("c");
    assert!(!world.print()[0].contains("migrated-to"));
}

#[test]
fn delayed_binding_waits_for_a_pod_and_a_node() {
    let claim = "pvc c 1Gi Pending class=gold";
    let free = "pv a 1Gi Available class=gold";
    check_unchanged(
        &[WAITING, free, claim],
        "c",
        &["Normal WaitForFirstConsumer"],
    );
    check_unchanged(
        &[WAITING, free, claim, "pod p"],
        "c",
        &["Normal WaitForPodScheduled"],
    );
    // Which free volume it gets is the scheduler's to say, or that one is made.
    check(
        &[WAITING, free, "pvc c 1Gi Pending class=gold selected=n"],
        "c",
        &[
            "pv a 1Gi Available",
            "pvc c 1Gi Pending provisioner=vendor.com/x beta-provisioner=vendor.com/x class=gold",
        ],
        &["Normal ExternalProvisioning"],
    );
    // One the scheduler or a user set aside for it is bound.
    check(
        &[WAITING, "pv a 1Gi Available class=gold claim=c", claim],
        "c",
        &[
            "pv a 1Gi Bound claim=c/uid-c",
            "pvc c 1Gi Bound volume=a by-controller completed class=gold has=1Gi",
        ],
        &[],
    );
    check_unchanged(
        &["sc gold vendor.com/x no-mode", claim],
        "c",
        &["error: VolumeBindingMode not set for StorageClass \"gold\""],
    );
}

#[test]
fn what_a_waiting_claim_is_told() {
    let told = |pods: &[&str]| {
        let mut given = vec![WAITING, "pvc c 1Gi Pending class=gold"];
        given.extend(pods);
        let mut world = World::new(&given);
        let view_pods = world.pods.clone();
        world.sync("c");
        (world.log.remove(0), view_pods.len())
    };
    assert_eq!(told(&[]), ("Normal WaitForFirstConsumer".to_owned(), 0));
    assert_eq!(
        told(&["pod p", "pod q"]),
        ("Normal WaitForPodScheduled".to_owned(), 2)
    );
}

#[test]
fn classes_that_cannot_provision() {
    let failed = ["Warning ProvisioningFailed"];
    for class in [
        "sc other vendor.com/x",
        "sc gold kubernetes.io/no-provisioner",
        "sc gold kubernetes.io/nfs",
        "sc gold kubernetes.io/unheard-of",
    ] {
        check_unchanged(&[class, "pvc c 1Gi Pending class=gold"], "c", &failed);
    }
    let of = |name: &str| provisioner_of(&sc(&format!("sc gold {name}")));
    assert_eq!(of("kubernetes.io/host-path"), Ok(Provisioner::HostPath));
    assert_eq!(of("kubernetes.io/nfs"), Err(PluginError::NotProvisionable));
    let nobody = PluginError::UnknownName("kubernetes.io/no-provisioner".to_owned());
    assert_eq!(of("kubernetes.io/no-provisioner"), Err(nobody));
    let mut world = World::new(&[EXTERNAL, "pvc c 1Gi Pending class=gold"]);
    world.dynamic_provisioning = false;
    world.sync("c");
    assert!(world.log.is_empty() && world.print() == ["pvc c 1Gi Pending class=gold"]);
}

#[test]
fn the_default_class_is_assigned_later() {
    let classes = [
        "sc old vendor.com/x default age=100",
        "sc zeta vendor.com/x default age=5",
        "sc new vendor.com/x default age=5",
        "sc newest vendor.com/x",
    ];
    let assigned = |claim: &str, classes: &[&str]| {
        let mut given = classes.to_vec();
        given.push(claim);
        let mut world = World::new(&given);
        let purpose = world.sync("c");
        let class = world.claims[0].spec.clone().unwrap().storage_class_name;
        (class, purpose == Purpose::AssignClass)
    };
    let claim = "pvc c 1Gi Pending";
    assert_eq!(assigned(claim, &classes[3..]), (None, false));
    assert_eq!(
        assigned(claim, &classes[..1]),
        (Some("old".to_owned()), true)
    );
    // The newest, then by name.
    assert_eq!(assigned(claim, &classes), (Some("new".to_owned()), true));
    // Whoever has said what it wants, or has a volume, keeps it.
    let said = assigned("pvc c 1Gi Pending class=", &classes);
    assert_eq!(said, (Some(String::new()), false));
    assert_eq!(
        assigned("pvc c 1Gi Pending beta-class=old", &classes),
        (None, false)
    );
    let bound = assigned("pvc c 1Gi Bound volume=a completed has=1Gi", &classes);
    assert_eq!(bound, (None, false));
    // A volume without a class goes before a class.
    let mut given = classes.to_vec();
    given.extend(["pv a 1Gi Available", claim]);
    let mut world = World::new(&given);
    assert_eq!(world.sync("c"), Purpose::Bind);
}

#[test]
fn directories_as_volumes() {
    let class = sc("sc gold kubernetes.io/host-path");
    check_unchanged(
        &[
            "sc gold kubernetes.io/host-path",
            "pvc c 1Gi Pending class=gold",
        ],
        "c",
        &["provision-default/c[uid-c]"],
    );
    let claim = pvc("pvc c 1Gi Pending class=gold");
    assert_eq!(
        print_pv(&provision(&claim, &class, "/tmp/x")),
        "pv pvc-uid-c 1Gi - claim=c/uid-c by-controller provisioned-by=kubernetes.io/host-path finalizer=kubernetes.io/pv-controller"
    );
    let kept = provision(
        &claim,
        &sc("sc gold kubernetes.io/host-path policy=Retain"),
        "/tmp/x",
    );
    assert_eq!(kept.metadata.finalizers, None);
    assert_eq!(refuse(&claim, &class, true, None), None);
    assert_eq!(refuse(&claim, &class, false, None), Some(Refusal::Disabled));
    let block = refuse(
        &pvc("pvc c 1Gi Pending class=gold block"),
        &class,
        true,
        None,
    );
    assert_eq!(block, Some(Refusal::Block("gold".to_owned())));
    assert!(block.is_some_and(|refusal| refusal.reschedules()));
    let node = refuse(&claim, &class, true, Some("n")).unwrap();
    assert_eq!(
        node.to_string(),
        "Failed to get target node: node \"n\" not found"
    );
    let options = sc("sc gold kubernetes.io/host-path options=ro");
    assert_eq!(
        refuse(&claim, &options, true, None).unwrap().to_string(),
        "Mount options are not supported by the provisioner but StorageClass \"gold\" has mount options [ro]"
    );
}

#[test]
fn only_what_lies_below_tmp_is_deleted() {
    let root = tempfile::tempdir_in("/tmp").unwrap();
    let path = make(root.path()).unwrap();
    std::fs::write(format!("{path}/file"), "x").unwrap();
    delete(&path).unwrap();
    assert!(!std::path::Path::new(&path).exists());
    // Again, and what was never there.
    delete(&path).unwrap();
    delete(&format!("{path}/a/b")).unwrap();
    let outside = tempfile::tempdir_in("/var").unwrap();
    let link = root.path().join("link");
    std::os::unix::fs::symlink(outside.path(), &link).unwrap();
    let inside = outside.path().join("keep");
    std::fs::create_dir(&inside).unwrap();
    for path in [
        inside.to_str().unwrap(),
        "/tmp",
        "/tmp/..",
        "/",
        "",
        link.join("keep").to_str().unwrap(),
        &format!("/tmp/..{}", inside.display()),
    ] {
        let error = delete(path).unwrap_err().to_string();
        assert!(error.contains("only supports /tmp/.+"), "{path}: {error}");
    }
    assert!(inside.exists());
    // A link goes, not what it points to.
    delete(link.to_str().unwrap()).unwrap();
    assert!(inside.exists() && !link.exists());
}
