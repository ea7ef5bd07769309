//! Claims: which volume they get, and what they are told.

use super::{World, check, check_unchanged};

const BOUND: &str = "pvc c 1Gi Bound volume=a by-controller completed has=1Gi";

#[test]
fn a_claim_takes_a_volume_that_fits() {
    for (volume, claim) in [
        ("pv a 1Gi Available", "pvc c 1Gi Pending"),
        ("pv a 1Gi Available label=x", "pvc c 1Gi Pending select=x"),
        ("pv a 1Gi Available modes=RWX,RWO,ROX", "pvc c 1Gi Pending"),
        (
            "pv a 1Gi Available modes=RWOP",
            "pvc c 1Gi Pending modes=RWOP",
        ),
        ("pv a 1Gi Available block", "pvc c 1Gi Pending block"),
        ("pv a 1Gi Available", "pvc c 1Gi -"),
    ] {
        check(
            &[volume, claim],
            "c",
            &["pv a 1Gi Bound claim=c/uid-c by-controller", BOUND],
            &[],
        );
    }
    // Of a class, the class must be the same, by the field or by the annotation.
    check(
        &[
            "pv a 1Gi Available beta-class=gold",
            "pvc c 1Gi Pending class=gold",
        ],
        "c",
        &[
            "pv a 1Gi Bound claim=c/uid-c by-controller",
            "pvc c 1Gi Bound volume=a by-controller completed class=gold has=1Gi",
        ],
        &[],
    );
}

#[test]
fn a_claim_leaves_what_does_not_fit() {
    let waits = ["Normal FailedBinding"];
    for (volume, claim) in [
        ("pv a 1Gi Available", "pvc c 2Gi Pending"),
        ("pv a 1Gi Available class=gold", "pvc c 1Gi Pending"),
        ("pv a 1Gi Available label=y", "pvc c 1Gi Pending select=x"),
        ("pv a 1Gi Available", "pvc c 1Gi Pending select=x"),
        ("pv a 1Gi Available", "pvc c 1Gi Pending modes=RWX"),
        ("pv a 1Gi Available", "pvc c 1Gi Pending modes=RWOP"),
        ("pv a 1Gi Available block", "pvc c 1Gi Pending"),
        ("pv a 1Gi Available", "pvc c 1Gi Pending block"),
        ("pv a 1Gi Available attributes=fast", "pvc c 1Gi Pending"),
        ("pv a 1Gi Available", "pvc c 1Gi Pending attributes=fast"),
        ("pv a 1Gi Available deleted", "pvc c 1Gi Pending"),
        ("pv a 1Gi Released claim=b/uid-b", "pvc c 1Gi Pending"),
        ("pv a 1Gi Available claim=b", "pvc c 1Gi Pending"),
        // Not called available yet: it will be, or it will not.
        ("pv a 1Gi Pending", "pvc c 1Gi Pending"),
        ("pv a 1Gi Failed", "pvc c 1Gi Pending"),
        // Set aside for a claim of this name that is gone.
        ("pv a 1Gi Released claim=c/uid-old", "pvc c 1Gi Pending"),
    ] {
        check_unchanged(&[volume, claim], "c", &waits);
    }
    // What it had is taken from its status.
    check(
        &["pvc c 1Gi Lost has=1Gi has-attributes=fast"],
        "c",
        &["pvc c 1Gi Pending"],
        &waits,
    );
}

#[test]
fn the_best_volume_is_chosen() {
    let chosen = |given: &[&str]| {
        let mut world = World::new(given);
        world.sync("c");
        let bound = world
            .print()
            .into_iter()
            .filter(|line| line.contains("claim=c/uid-c"));
        let names: Vec<String> = bound
            .map(|line| line.split(' ').nth(1).unwrap().to_owned())
            .collect();
        names.join(" ")
    };
    let claim = "pvc c 2Gi Pending";
    // The smallest that is large enough; sizes are numbers, however they are written.
    let sizes = [
        claim,
        "pv ten 10Gi Available",
        "pv three 3072Mi Available",
        "pv one 1Gi Available",
        "pv five 5Gi Available",
    ];
    assert_eq!(chosen(&sizes), "three");
    // Fewer access modes go before a better size.
    let modes = [
        claim,
        "pv many 2Gi Available modes=RWO,ROX",
        "pv few 9Gi Available",
    ];
    assert_eq!(chosen(&modes), "few");
    // What is set aside for the claim goes before what is free, and may be of any class, label and phase.
    let own = [
        claim,
        "pv free 2Gi Available",
        "pv mine 10Gi Released claim=c class=gold",
    ];
    assert_eq!(chosen(&own), "mine");
    let own = [
        claim,
        "pv free 2Gi Available",
        "pv mine 10Gi Bound claim=c/uid-c",
    ];
    assert_eq!(chosen(&own), "mine");
    // But not when it is too small or of the other mode.
    let own = [
        claim,
        "pv free 2Gi Available",
        "pv mine 1Gi Available claim=c",
    ];
    assert_eq!(chosen(&own), "free");
    let own = [
        claim,
        "pv free 2Gi Available",
        "pv mine 2Gi Available claim=c block",
    ];
    assert_eq!(chosen(&own), "free");
}

#[test]
fn a_binding_is_completed_wherever_it_stopped() {
    let bound = ["pv a 1Gi Bound claim=c/uid-c by-controller", BOUND];
    for (volume, claim) in [
        (
            "pv a 1Gi Available claim=c/uid-c by-controller",
            "pvc c 1Gi Pending",
        ),
        (
            "pv a 1Gi Bound claim=c/uid-c by-controller",
            "pvc c 1Gi Pending",
        ),
        (
            "pv a 1Gi Bound claim=c/uid-c by-controller",
            "pvc c 1Gi Pending volume=a by-controller completed",
        ),
        ("pv a 1Gi Bound claim=c/uid-c by-controller", BOUND),
        // The volume came unbound.
        ("pv a 1Gi Available", BOUND),
    ] {
        check(&[volume, claim], "c", &bound, &[]);
    }
}

#[test]
fn who_bound_first_is_remembered() {
    // The volume was set aside by a user.
    check(
        &["pv a 1Gi Available claim=c", "pvc c 1Gi Pending"],
        "c",
        &["pv a 1Gi Bound claim=c/uid-c", BOUND],
        &[],
    );
    // The claim names the volume.
    check(
        &["pv a 1Gi Available", "pvc c 1Gi Pending volume=a"],
        "c",
        &[
            "pv a 1Gi Bound claim=c/uid-c by-controller",
            "pvc c 1Gi Bound volume=a completed has=1Gi",
        ],
        &[],
    );
    // Both.
    for reference in ["c", "c/uid-c"] {
        check(
            &[
                &format!("pv a 1Gi Available claim={reference}"),
                "pvc c 1Gi Pending volume=a",
            ],
            "c",
            &[
                "pv a 1Gi Bound claim=c/uid-c",
                "pvc c 1Gi Bound volume=a completed has=1Gi",
            ],
            &[],
        );
    }
}

#[test]
fn a_claim_that_names_a_volume_gets_no_other() {
    check(
        &["pv b 1Gi Available", "pvc c 1Gi Bound volume=a has=1Gi"],
        "c",
        &["pv b 1Gi Available", "pvc c 1Gi Pending volume=a"],
        &[],
    );
    let mismatch = ["Warning VolumeMismatch"];
    for (volume, claim) in [
        ("pv a 1Gi Available", "pvc c 2Gi Pending volume=a"),
        (
            "pv a 1Gi Available class=gold",
            "pvc c 1Gi Pending volume=a",
        ),
        (
            "pv a 1Gi Available",
            "pvc c 1Gi Pending volume=a class=gold",
        ),
        (
            "pv a 1Gi Available attributes=x",
            "pvc c 1Gi Pending volume=a",
        ),
        ("pv a 1Gi Available block", "pvc c 1Gi Pending volume=a"),
        ("pv a 1Gi Available", "pvc c 1Gi Pending volume=a modes=RWX"),
        ("pv a 1Gi Available deleted", "pvc c 1Gi Pending volume=a"),
    ] {
        check_unchanged(&[volume, claim], "c", &mismatch);
    }
    // The selector chooses; a name has chosen.
    check(
        &[
            "pv a 1Gi Available label=y",
            "pvc c 1Gi Pending volume=a select=x",
        ],
        "c",
        &[
            "pv a 1Gi Bound claim=c/uid-c by-controller",
            "pvc c 1Gi Bound volume=a completed has=1Gi",
        ],
        &[],
    );
    // Another's.
    let volume = "pv a 1Gi Bound claim=b/uid-b";
    check_unchanged(
        &[volume, "pvc c 1Gi Pending volume=a"],
        "c",
        &["Warning FailedBinding"],
    );
    check_unchanged(
        &[volume, "pvc c 1Gi Pending volume=a by-controller"],
        "c",
        &[
            "Warning FailedBinding",
            "error: invalid binding of claim \"default/c\" to volume \"a\": volume already claimed by \"default/b\"",
        ],
    );
}

#[test]
fn a_bound_claim_is_lost_with_its_volume() {
    let lost = ["Warning ClaimLost"];
    check(
        &["pvc c 1Gi Bound completed has=1Gi"],
        "c",
        &["pvc c 1Gi Lost completed"],
        &lost,
    );
    check(
        &["pvc c 1Gi Bound volume=a completed has=1Gi"],
        "c",
        &["pvc c 1Gi Lost volume=a completed"],
        &lost,
    );
    for reference in ["b/uid-b", "c/uid-old", "c"] {
        let volume = format!("pv a 1Gi Bound claim={reference}");
        check(
            &[&volume, "pvc c 1Gi Bound volume=a completed has=1Gi"],
            "c",
            &[&volume, "pvc c 1Gi Lost volume=a completed"],
            &["Warning ClaimMisbound"],
        );
    }
    // It is told once.
    check_unchanged(&["pvc c 1Gi Lost volume=a completed"], "c", &[]);
}

#[test]
fn what_a_bound_claim_has() {
    // A claim in use keeps the size of its file system, whatever the device has.
    check_unchanged(
        &[
            "pv a 5Gi Bound claim=c/uid-c by-controller",
            "pvc c 1Gi Bound volume=a by-controller completed has=1Gi",
        ],
        "c",
        &[],
    );
    for (before, has) in [("2Gi", "2Gi"), ("many", "5Gi")] {
        check(
            &[
                &format!("pv a 5Gi Available pre-resize={before}"),
                "pvc c 1Gi Pending",
            ],
            "c",
            &[
                "pv a 5Gi Bound claim=c/uid-c by-controller",
                &format!("pvc c 1Gi Bound volume=a by-controller completed has={has}"),
            ],
            &[],
        );
    }
    // The attributes are the volume's when the claim is bound, and the resizer's afterwards.
    check(
        &[
            "pv a 1Gi Available attributes=fast",
            "pvc c 1Gi Pending attributes=fast",
        ],
        "c",
        &[
            "pv a 1Gi Bound claim=c/uid-c by-controller",
            "pvc c 1Gi Bound volume=a by-controller completed has=1Gi has-attributes=fast",
        ],
        &[],
    );
    check_unchanged(
        &[
            "pv a 1Gi Bound claim=c/uid-c attributes=fast",
            "pvc c 1Gi Bound volume=a completed attributes=faster has=1Gi has-attributes=slow",
        ],
        "c",
        &[],
    );
    check(
        &["pv a - Available", "pvc c 0 Pending volume=a"],
        "c",
        &[
            "pv a - Bound claim=c/uid-c by-controller",
            "pvc c 0 Pending volume=a completed",
        ],
        &["error: PersistentVolume \"a\" is without a storage capacity"],
    );
}

#[test]
fn selectors_that_are_none() {
    let mut world = World::new(&["pv a 1Gi Available", "pvc c 1Gi Pending select=not/a/value"]);
    world.sync("c");
    assert!(world.log[0].starts_with("error: error finding PV for claim \"default/c\""));
}
