//! Downloads that were cut.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn goes_on_after_a_cut() {
    let dir = tempfile::tempdir().unwrap();
    let big = layer(&[("big", &noise(1, 60_000))]);
    let mut fake = Fake {
        cut: AtomicUsize::new(10_000),
        ..Fake::default()
    };
    publish(&mut fake, "big", "v1", &[big]);
    let fake = start(fake).await;
    let store = open(dir.path()).await;
    let image = store
        .pull(&format!("{}/big:v1", fake.address), &[])
        .await
        .unwrap();
    let lower = store.hold(&image.id, "c").await.unwrap();
    assert_eq!(
        tokio::fs::read_to_string(lower[0].join("big"))
            .await
            .unwrap(),
        noise(1, 60_000)
    );
    let requests = fake.requests.lock().unwrap();
    assert!(
        requests
            .iter()
            .any(|request| request.ends_with("bytes=10000-")),
        "{requests:?}"
    );
}

/// Some registries know ranges of one form alone, or none.
#[tokio::test(flavor = "multi_thread")]
async fn begins_anew_where_a_registry_refuses_to_go_on() {
    for refusal in [
        StatusCode::RANGE_NOT_SATISFIABLE,
        StatusCode::BAD_REQUEST,
        StatusCode::OK,
    ] {
        let dir = tempfile::tempdir().unwrap();
        let text = noise(1, 60_000);
        let big = layer(&[("big", &text)]);
        let mut fake = Fake {
            no_ranges: Some(refusal),
            ..Fake::default()
        };
        let digest = big.1.clone();
        let part = big.0.slice(..10_000);
        publish(&mut fake, "big", "v1", &[big]);
        let fake = start(fake).await;
        let store = open(dir.path()).await;
        tokio::fs::write(store.inner.layout.ingest_blob(&digest), part)
            .await
            .unwrap();
        let image = store
            .pull(&format!("{}/big:v1", fake.address), &[])
            .await
            .unwrap();
        let lower = store.hold(&image.id, "c").await.unwrap();
        assert_eq!(
            tokio::fs::read_to_string(lower[0].join("big"))
                .await
                .unwrap(),
            text
        );
    }
}
