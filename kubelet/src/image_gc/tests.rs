use super::*;

use runtime::fake::FakeRuntime;

const POLICY: ImageGcPolicy = ImageGcPolicy {
    high_threshold_percent: 85,
    low_threshold_percent: 80,
    min_age: Duration::from_secs(60),
    max_age: Duration::ZERO,
};

fn t(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

#[test]
fn the_least_recently_used_goes_first() {
    let image = |id: &str| ImageStatus {
        id: id.into(),
        size_bytes: 10,
        pinned: id == "pinned",
        ..Default::default()
    };
    let images = ["a", "b", "c", "pinned"].map(image);
    let record = |used| Record {
        first_detected: t(0),
        last_used: used,
    };
    let records = [
        ("a", record(Some(t(5)))),
        ("b", record(None)),
        ("c", record(Some(t(1)))),
        ("pinned", record(None)),
    ]
    .map(|(k, v)| (k.to_owned(), v))
    .into();
    let check = |in_use: &[&str], expect: &[&str]| {
        let in_use = in_use.iter().map(|s| (*s).to_owned()).collect();
        let got: Vec<String> = candidates(&images, &in_use, &records)
            .into_iter()
            .map(|c| c.id)
            .collect();
        assert_eq!(got, expect);
    };
    check(&[], &["b", "c", "a"]);
    check(&["b"], &["c", "a"]);
    check(&["a", "b", "c"], &[]);
}

#[test]
fn ages() {
    let policy = |max| ImageGcPolicy {
        max_age: Duration::from_secs(max),
        ..POLICY
    };
    let check = |max, began, used: Option<i64>, now, expect| {
        let candidate = Candidate {
            id: String::new(),
            size_bytes: 0,
            first_detected: t(0),
            last_used: used.map(t),
        };
        assert_eq!(candidate.is_old(&policy(max), t(began), t(now)), expect);
    };
    check(0, 0, None, 10_000, false);
    check(100, 0, None, 101, true);
    check(100, 0, None, 100, false);
    check(100, 0, Some(50), 101, false);
    check(100, 0, Some(50), 151, true);
    // A kubelet that began lately knows nothing of who used what before.
    check(100, 10_000, Some(50), 10_100, false);
    check(100, 10_000, Some(50), 10_101, true);
    let candidate = Candidate {
        id: String::new(),
        size_bytes: 0,
        first_detected: t(100),
        last_used: None,
    };
    assert!(candidate.is_young(&POLICY, t(159)));
    assert!(!candidate.is_young(&POLICY, t(160)));
}

/// Figures of upstream's own integer arithmetic.
#[test]
fn percentages() {
    let check = |capacity, available, expect| {
        assert_eq!(
            excess(&POLICY, capacity, available),
            expect,
            "{capacity} {available}"
        );
    };
    check(1000, 160, (84, None));
    check(1000, 151, (85, Some(49)));
    check(1000, 150, (85, Some(50)));
    check(1000, 0, (100, Some(200)));
    // What is free is rounded down: 84.1% in use count as 85.
    check(1000, 159, (85, Some(41)));
    check(1000, 2000, (0, None));
    check(u64::MAX, u64::MAX / 2, (51, None));
}

#[test]
fn sizes() {
    for (bytes, expect) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (10 << 20, "10.0 MiB"),
        (3 << 30, "3.0 GiB"),
        (5 << 50, "5120.0 TiB"),
    ] {
        assert_eq!(format_size(bytes), expect);
    }
}

#[test]
fn messages() {
    let error = ImageGcError::Insufficient {
        percent: 91,
        capacity: format_size(100 << 30),
        freed: 12,
    };
    assert_eq!(
        error.to_string(),
        "Insufficient free disk space on the node's image filesystem (91% of 100.0 GiB used). Failed to free sufficient space by deleting unused images (freed 12 bytes). Investigate disk usage, as it could be used by active images, logs, volumes, or other data."
    );
    assert_eq!(
        ImageGcError::NoCapacity.to_string(),
        "invalid capacity 0 on image filesystem"
    );
}

/// Eviction frees by the same history: what is young or used stays; the records of pulls go with the images.
#[tokio::test]
async fn eviction_and_the_task_are_one() {
    let dir = tempfile::tempdir().unwrap();
    let fake = FakeRuntime::new();
    let pulls = crate::image_manager::pull_manager::PullManager::open(
        dir.path(),
        10,
        crate::image_manager::verification::Verification::NeverPreloaded,
    )
    .unwrap();
    let pulls = Arc::new(pulls);
    let id = fake.pull_image("r.io/a:1", &[]).await.unwrap();
    pulls.begin("r.io/a:1", None).unwrap();
    pulls.pulled("r.io/a:1", &id, &Default::default());
    let recorder = KubeletRecorder::new(component_base::events::Recorder::discard(), "n");
    let gc = |min_age| {
        ImageGcManager::new(
            Arc::new(fake.clone()),
            recorder.clone(),
            Some(pulls.clone()),
            ImageGcPolicy { min_age, ..POLICY },
        )
    };
    let records = || {
        let files = std::fs::read_dir(dir.path().join("image_manager/pulled")).unwrap();
        files.count()
    };
    let careful = gc(Duration::from_secs(60));
    assert_eq!(careful.delete_unused_images().await.unwrap(), 0);
    assert_eq!(records(), 1);
    let now = gc(Duration::ZERO);
    // A record's time has whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(now.delete_unused_images().await.unwrap(), 1 << 20);
    assert_eq!(records(), 0);
}
