use super::*;

const AA: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const BB: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn secret(name: &str, uid: &str, hash: &str) -> ImagePullSecret {
    ImagePullSecret {
        uid: uid.into(),
        namespace: "ns".into(),
        name: name.into(),
        credential_hash: hash.into(),
    }
}

fn of(secrets: &[ImagePullSecret]) -> ImagePullCredentials {
    ImagePullCredentials {
        kubernetes_secrets: secrets.to_vec(),
        ..ImagePullCredentials::default()
    }
}

fn node_wide() -> ImagePullCredentials {
    ImagePullCredentials {
        node_pods_accessible: true,
        ..ImagePullCredentials::default()
    }
}

fn record(name: &str, credentials: Option<&ImagePullCredentials>) -> ImagePulledRecord {
    let mut record = ImagePulledRecord::new("sha256:1");
    if let Some(credentials) = credentials {
        record.merge(name, credentials);
    }
    record
}

#[test]
fn who_may_use_what_is_here() {
    let image = "r.io/app:1";
    let mine = secret("s", "1", "h");
    let check = |what: &str,
                 verification: &Verification,
                 known: Option<Option<ImagePullCredentials>>,
                 pod: &[ImagePullSecret],
                 expect: Access| {
        let record = known.map(|known| record("r.io/app", known.as_ref()));
        let got = access(
            verification,
            image,
            record.is_some(),
            record.as_ref(),
            || PodCredentials {
                secrets: pod.to_vec(),
                service_account: None,
            },
        );
        assert_eq!(got, expect, "{what}");
    };
    let recorded = |remember: Option<&ImagePullSecret>| Access::Recorded {
        remember: remember.cloned(),
    };
    let preloaded = Verification::NeverPreloaded;
    check("preloaded", &preloaded, None, &[], Access::Allowed);
    check(
        "preloaded, always",
        &Verification::Always,
        None,
        std::slice::from_ref(&mine),
        Access::MustAuthenticate,
    );
    check(
        "never",
        &Verification::Never,
        Some(Some(of(std::slice::from_ref(&mine)))),
        &[],
        Access::Allowed,
    );
    for verification in [&preloaded, &Verification::Always] {
        let known = |credentials: ImagePullCredentials| Some(Some(credentials));
        let must = Access::MustAuthenticate;
        let pod = std::slice::from_ref(&mine);
        check("by nobody", verification, Some(None), pod, must.clone());
        check(
            "by all",
            verification,
            known(node_wide()),
            &[],
            recorded(None),
        );
        check("no secret", verification, known(of(pod)), &[], must.clone());
        check(
            "the same",
            verification,
            known(of(pod)),
            pod,
            recorded(None),
        );
        let other = secret("other", "2", "h");
        check(
            "another secret with the same credential",
            verification,
            known(of(pod)),
            std::slice::from_ref(&other),
            recorded(Some(&other)),
        );
        let rotated = secret("s", "1", "h2");
        check(
            "the same secret, rotated",
            verification,
            known(of(pod)),
            std::slice::from_ref(&rotated),
            recorded(Some(&rotated)),
        );
        check(
            "the same name, made anew with another credential",
            verification,
            known(of(pod)),
            &[secret("s", "2", "h2")],
            must.clone(),
        );
        check(
            "hashes that could not be made are equal to none",
            verification,
            known(of(&[secret("s", "1", "")])),
            &[secret("t", "2", "")],
            must,
        );
    }
    // Under another name the image was never opened.
    let elsewhere = record("r.io/other", Some(&node_wide()));
    assert_eq!(
        access(
            &preloaded,
            image,
            true,
            Some(&elsewhere),
            PodCredentials::default
        ),
        Access::MustAuthenticate
    );
    let account = ImagePullServiceAccount {
        uid: "u".into(),
        namespace: "ns".into(),
        name: "sa".into(),
    };
    let by_account = record(
        "r.io/app",
        Some(&ImagePullCredentials {
            kubernetes_service_accounts: vec![account.clone()],
            ..ImagePullCredentials::default()
        }),
    );
    let with = |account| PodCredentials {
        secrets: vec![],
        service_account: account,
    };
    assert_eq!(
        access(&preloaded, image, true, Some(&by_account), || with(Some(
            account.clone()
        ))),
        recorded(None)
    );
    assert_eq!(
        access(&preloaded, image, true, Some(&by_account), || with(None)),
        Access::MustAuthenticate
    );
}

#[test]
fn notes_do_not_grow_for_ever() {
    let many: Vec<ImagePullSecret> = (0..REMEMBERED_SECRETS_MAX)
        .map(|i| secret(&format!("s{i}"), "u", "h"))
        .collect();
    let full = record("r.io/app", Some(&of(&many)));
    let pod = || PodCredentials {
        secrets: vec![secret("new", "u", "h")],
        service_account: None,
    };
    assert_eq!(
        access(
            &Verification::NeverPreloaded,
            "r.io/app",
            true,
            Some(&full),
            pod
        ),
        Access::Recorded { remember: None }
    );
}

fn image(id: &str, tag: &str) -> ImageStatus {
    ImageStatus {
        id: id.into(),
        repo_tags: vec![tag.into()],
        repo_digests: vec![format!("{}@{id}", tag.split(':').next().unwrap())],
        ..ImageStatus::default()
    }
}

fn open(dir: &Path) -> PullManager {
    PullManager::open(dir, 10, Verification::NeverPreloaded).unwrap()
}

fn must(manager: &PullManager, name: &str, found: &ImageStatus, pod: &[ImagePullSecret]) -> bool {
    manager.must_attempt_pull(name, found, || PodCredentials {
        secrets: pod.to_vec(),
        service_account: None,
    })
}

#[test]
fn a_pull_is_remembered_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let found = image(AA, "r.io/app:1");
    let mine = [secret("s", "1", "h")];
    let manager = open(dir.path());
    manager.begin("r.io/app:1", None).unwrap();
    manager.pulled("r.io/app:1", AA, &of(&mine));
    for manager in [manager, open(dir.path())] {
        assert!(must(&manager, "r.io/app:1", &found, &[]));
        assert!(!must(&manager, "r.io/app:1", &found, &mine));
        // By digest it is the same repository.
        assert!(!must(&manager, &format!("r.io/app@{AA}"), &found, &mine));
        assert!(must(&manager, &format!("r.io/app@{AA}"), &found, &[]));
        assert!(must(&manager, "evil.io/app:1", &found, &mine));
        assert!(manager.state().records.intents().is_empty());
    }
    // A second pod's secret is noted as it is seen; it counts after its credential changed, too.
    let manager = open(dir.path());
    assert!(!must(
        &manager,
        "r.io/app:1",
        &found,
        &[secret("t", "2", "h")]
    ));
    assert!(!must(
        &manager,
        "r.io/app:1",
        &found,
        &[secret("t", "2", "h2")]
    ));
}

#[test]
fn a_pull_that_was_cut_opens_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let found = image(AA, "docker.io/library/app:latest");
    open(dir.path()).begin("app", None).unwrap();
    // The kubelet was killed after the image came. Neither its tag nor its digest opens it.
    let manager = open(dir.path());
    for name in ["app", &format!("docker.io/library/app@{AA}")] {
        assert!(must(&manager, name, &found, &[]), "{name}");
    }
    manager.adopt(std::slice::from_ref(&found));
    assert!(manager.state().records.intents().is_empty());
    assert!(must(&manager, "app", &found, &[]));
}

#[test]
fn pulls_under_way_open_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let found = image(AA, "r.io/app:1");
    let manager = open(dir.path());
    manager.begin("r.io/app:1", None).unwrap();
    manager.begin("r.io/app:1", Some(AA)).unwrap();
    manager.failed("r.io/app:1");
    // The image is there, its record is not yet.
    assert!(must(&manager, &format!("r.io/app@{AA}"), &found, &[]));
    manager.abandoned("r.io/app:1");
    assert!(must(&manager, "r.io/app:1", &found, &[]));
    manager.prune(std::slice::from_ref(&found), Timestamp::now());
    assert!(manager.state().pulls.is_empty());
    assert!(must(&manager, "r.io/app:1", &found, &[]));
}

#[test]
fn what_was_preloaded_stays_everybodys() {
    let dir = tempfile::tempdir().unwrap();
    let found = image(AA, "r.io/app:1");
    let manager = open(dir.path());
    assert!(!must(&manager, "r.io/app:1", &found, &[]));
    manager.begin("r.io/app:1", Some(AA)).unwrap();
    assert!(!must(&manager, "r.io/app:1", &found, &[]));
    manager.abandoned("r.io/app:1");
    manager.prune(std::slice::from_ref(&found), Timestamp::now());
    assert!(!must(&manager, "r.io/app:1", &found, &[]));
    // Another image that came under the name meanwhile is not.
    assert!(must(&manager, "r.io/app:1", &image(BB, "r.io/app:1"), &[]));
}

#[test]
fn records_go_with_their_images() {
    let dir = tempfile::tempdir().unwrap();
    let manager = open(dir.path());
    for (name, id) in [("r.io/a:1", AA), ("r.io/b:1", BB)] {
        manager.begin(name, None).unwrap();
        manager.pulled(name, id, &node_wide());
    }
    let left = [image(BB, "r.io/b:1")];
    let begun_before = Timestamp::now() - jiff::SignedDuration::from_secs(60);
    manager.prune(&left, begun_before);
    assert_eq!(manager.state().records.all_pulled().len(), 2);
    manager.prune(&left, Timestamp::now() + jiff::SignedDuration::from_secs(2));
    let ids: Vec<String> = manager
        .state()
        .records
        .all_pulled()
        .into_iter()
        .map(|r| r.image_ref)
        .collect();
    assert_eq!(ids, [BB]);
}

#[test]
fn unreadable_records_open_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let manager = open(dir.path());
    manager.begin("r.io/a:1", None).unwrap();
    manager.pulled("r.io/a:1", AA, &node_wide());
    let folder = dir.path().join("image_manager/pulled");
    let file = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap();
    std::fs::write(file.path(), "{").unwrap();
    let manager = open(dir.path());
    let found = image(AA, "r.io/a:1");
    assert!(must(&manager, "r.io/a:1", &found, &[]));
}
