//! The whole store against a registry in this process.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;

use super::*;
use crate::image::Auth;
use crate::pull::PullError;

mod registry;
mod resume;
mod shapes;

use registry::{Fake, layer, publish, start};

async fn open(root: &Path) -> ImageStore {
    ImageStore::open(ImageStoreConfig {
        root: root.join("images"),
        registry_config_dir: root.join("certs.d"),
        ..ImageStoreConfig::default()
    })
    .await
    .unwrap()
}

fn noise(seed: u64, bytes: usize) -> String {
    let mut state = seed;
    (0..bytes)
        .map(|_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            char::from(b'a' + ((state >> 33) % 26) as u8)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_holds_removes() {
    let dir = tempfile::tempdir().unwrap();
    let base = layer(&[("etc/base", "base"), ("x", "old")]);
    let top = layer(&[("x", "new")]);
    let other = layer(&[("y", "other")]);
    let mut fake = Fake::default();
    let id = publish(&mut fake, "team/app", "v1", &[base.clone(), top]);
    let other_id = publish(&mut fake, "team/other", "v1", &[base, other]);
    let fake = start(fake).await;
    let name = format!("{}/team/app:v1", fake.address);
    let other_name = format!("{}/team/other:v1", fake.address);

    let store = open(dir.path()).await;
    let image = store.pull(&name, &[]).await.unwrap();
    assert_eq!(image.id, id);
    assert_eq!(image.repo_tags, std::slice::from_ref(&name));
    assert_eq!(image.repo_digests.len(), 1);
    assert_eq!(image.layers.len(), 2);
    assert!(image.size_bytes > 500);
    assert_eq!(
        image
            .config
            .config()
            .as_ref()
            .unwrap()
            .cmd()
            .as_ref()
            .unwrap(),
        &["v1"]
    );
    for text in [
        &name,
        &id,
        &id[7..].to_owned(),
        &id[7..20].to_owned(),
        &image.repo_digests[0],
    ] {
        assert_eq!(
            store.status(text).await.unwrap().map(|image| image.id),
            Some(id.clone())
        );
    }
    assert!(store.status("busybox").await.unwrap().is_none());
    assert!(store.usage().await.unwrap().used_bytes > 0);
    assert_eq!(
        std::fs::read_dir(dir.path().join("images/ingest"))
            .unwrap()
            .count(),
        0
    );

    // A second pull asks which digest it is and needs no more.
    fake.requests.lock().unwrap().clear();
    store.pull(&name, &[]).await.unwrap();
    assert_eq!(fake.requests.lock().unwrap().len(), 1);

    // A shared layer is not fetched again.
    fake.requests.lock().unwrap().clear();
    store.pull(&other_name, &[]).await.unwrap();
    let blobs = fake
        .requests
        .lock()
        .unwrap()
        .iter()
        .filter(|r| r.contains("/blobs/"))
        .count();
    assert_eq!(blobs, 2, "the config and one layer");

    let lower = store.hold(&id, "c1").await.unwrap();
    assert_eq!(lower.len(), 2);
    assert_eq!(std::fs::read_to_string(lower[0].join("x")).unwrap(), "new");
    assert_eq!(
        std::fs::read_to_string(lower[1].join("etc/base")).unwrap(),
        "base"
    );
    assert_eq!(store.hold(&id, "c1").await.unwrap(), lower);
    assert!(store.hold(&id, "../c1").await.is_err());
    assert!(store.hold("nothing", "c2").await.is_err());

    // A store is one process's.
    let again = ImageStore::open(store.inner.config.clone()).await;
    assert!(matches!(again, Err(ImageStoreError::Locked { .. })));

    // The image goes, the held layers stay, also over a restart.
    store.remove(&name).await.unwrap();
    assert!(store.status(&name).await.unwrap().is_none());
    drop(store);
    let store = open(dir.path()).await;
    assert_eq!(store.holders(), ["c1"]);
    assert!(lower[0].join("x").exists());
    store.release("c1").await.unwrap();
    assert!(!lower[0].exists());
    assert!(lower[1].exists(), "the other image stands on it");
    store.remove(&other_id).await.unwrap();
    assert!(!lower[1].exists());
    assert_eq!(store.usage().await.unwrap().used_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn refuses_what_does_not_match() {
    let dir = tempfile::tempdir().unwrap();
    let good = layer(&[("a", "a")]);
    let mut fake = Fake::default();
    publish(&mut fake, "bad", "layer", std::slice::from_ref(&good));
    let mut evil = good.0.to_vec();
    let end = evil.len() - 1;
    evil[end] ^= 1;
    fake.documents
        .insert(format!("bad/blobs/{}", good.1), evil.into());
    let wrong_diff = (
        good.0.clone(),
        good.1.clone(),
        format!("sha256:{}", "1".repeat(64)),
    );
    publish(&mut fake, "diff", "x", &[wrong_diff]);
    let fake = start(fake).await;
    let store = open(dir.path()).await;
    for name in ["bad:layer", "diff:x"] {
        let result = store.pull(&format!("{}/{name}", fake.address), &[]).await;
        assert!(
            matches!(result, Err(PullError::Verification { .. })),
            "{result:?}"
        );
    }
    let missing = store.pull(&format!("{}/none:x", fake.address), &[]).await;
    let text = missing.unwrap_err().to_string();
    assert!(text.contains("not found"), "{text}");
    assert!(matches!(
        store.pull("UPPER", &[]).await,
        Err(PullError::InvalidName { .. })
    ));
    // Nobody listens on port 1.
    let nobody = store.pull("127.0.0.1:1/x:y", &[]).await;
    assert!(
        matches!(nobody, Err(PullError::Unavailable { .. })),
        "{nobody:?}"
    );
    assert!(store.list().await.unwrap().is_empty());
    store.collect_garbage().await.unwrap();
    let left = std::fs::read_dir(dir.path().join("images/layers"))
        .unwrap()
        .count();
    assert_eq!(left, 1, "only the empty layer");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_and_mirrors() {
    let dir = tempfile::tempdir().unwrap();
    let mut fake = Fake {
        credential: Some("me:secret".into()),
        ..Fake::default()
    };
    let id = publish(&mut fake, "private", "v1", &[layer(&[("a", "a")])]);
    let fake = start(fake).await;
    let store = open(dir.path()).await;
    let name = format!("{}/private:v1", fake.address);
    assert!(matches!(
        store.pull(&name, &[]).await,
        Err(PullError::Refused { .. })
    ));
    let image = store
        .pull(&name, &[auth("wrong"), auth("secret")])
        .await
        .unwrap();
    assert_eq!(image.id, id);

    // A mirror stands in for a registry that is not there, and is told for whom.
    let mut mirror = Fake::default();
    let id = publish(&mut mirror, "library/web", "v1", &[layer(&[("b", "b")])]);
    let mirror = start(mirror).await;
    let folder = dir.path().join("certs.d/gone.example");
    std::fs::create_dir_all(&folder).unwrap();
    let file = format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        mirror.address
    );
    std::fs::write(folder.join("hosts.toml"), file).unwrap();
    let image = store
        .pull("gone.example/library/web:v1", &[])
        .await
        .unwrap();
    assert_eq!(image.id, id);
    assert_eq!(image.repo_tags, ["gone.example/library/web:v1"]);
    assert!(
        mirror
            .requests
            .lock()
            .unwrap()
            .iter()
            .all(|r| r.contains("ns=gone.example"))
    );
}

fn auth(password: &str) -> Auth {
    Auth {
        username: "me".into(),
        password: password.into(),
        ..Auth::default()
    }
}

/// What lies here already is no permission: the registry that the name says is asked, whatever the name is made of.
#[tokio::test(flavor = "multi_thread")]
async fn every_pull_is_the_registrys_word() {
    let dir = tempfile::tempdir().unwrap();
    let mut fake = Fake {
        credential: Some("me:secret".into()),
        ..Fake::default()
    };
    let id = publish(&mut fake, "private", "v1", &[layer(&[("a", "secret")])]);
    let fake = start(fake).await;
    // It knows the digest and nothing else, and says yes to everybody.
    let mut liar = Fake::default();
    let store = open(dir.path()).await;
    let name = format!("{}/private:v1", fake.address);
    let image = store.pull(&name, &[auth("secret")]).await.unwrap();
    let digest = image.repo_digests[0].split_once('@').unwrap().1.to_owned();
    liar.claims = Some(digest.clone());
    let liar = start(liar).await;

    let by_digest = format!("{}/private@{digest}", fake.address);
    let both = format!("{}/private:v1@{digest}", fake.address);
    for name in [&name, &by_digest, &both] {
        for auths in [vec![], vec![auth("wrong")]] {
            let refused = store.pull(name, &auths).await;
            assert!(
                matches!(refused, Err(PullError::Refused { .. })),
                "{name}: {refused:?}"
            );
        }
        let again = store.pull(name, &[auth("secret")]).await.unwrap();
        assert_eq!(again.id, id, "{name}");
    }
    let before = fake.requests.lock().unwrap().len();
    store.pull(&by_digest, &[auth("secret")]).await.unwrap();
    let asked = fake.requests.lock().unwrap()[before..].join("\n");
    assert!(
        asked.contains("HEAD /v2/private/manifests/sha256:"),
        "{asked}"
    );
    assert!(
        !asked.contains("GET /v2/"),
        "what the repository served before does not come again: {asked}"
    );
    let elsewhere = format!("nowhere.invalid/x@{digest}");
    store.pull(&elsewhere, &[auth("secret")]).await.unwrap_err();
    for name in [
        format!("{}/x:v1", liar.address),
        format!("{}/x@{digest}", liar.address),
    ] {
        store.pull(&name, &[]).await.unwrap_err();
        assert!(store.status(&name).await.unwrap().is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_at_once_do_not_share_credentials() {
    let dir = tempfile::tempdir().unwrap();
    let mut fake = Fake {
        credential: Some("me:secret".into()),
        ..Fake::default()
    };
    publish(&mut fake, "private", "v1", &[layer(&[("a", "secret")])]);
    let fake = start(fake).await;
    let store = open(dir.path()).await;
    let name = format!("{}/private:v1", fake.address);
    let (right, wrong) = ([auth("secret")], [auth("wrong")]);
    let (good, bad, nobody) = tokio::join!(
        store.pull(&name, &right),
        store.pull(&name, &wrong),
        store.pull(&name, &[]),
    );
    good.unwrap();
    bad.unwrap_err();
    nobody.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn survives_torn_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut fake = Fake::default();
    let a = publish(&mut fake, "a", "v1", &[layer(&[("a", "a")])]);
    let b = publish(&mut fake, "b", "v1", &[layer(&[("b", "b")])]);
    let fake = start(fake).await;
    let store = open(dir.path()).await;
    for name in ["a", "b"] {
        store
            .pull(&format!("{}/{name}:v1", fake.address), &[])
            .await
            .unwrap();
    }
    let lower = store.hold(&a, "c1").await.unwrap();
    let layout = Layout::new(dir.path().join("images"));
    drop(store);
    // A record cut in half, a stray layer, a stray temporary file, a hold cut in half.
    let half = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    };
    half(&layout.image(&a));
    half(&layout.hold("c1"));
    std::fs::create_dir_all(layout.layers().join("0123456789abcdef/fs")).unwrap();
    std::fs::write(layout.tmp().join("junk"), "x").unwrap();

    let store = open(dir.path()).await;
    let ids: Vec<String> = store
        .list()
        .await
        .unwrap()
        .into_iter()
        .map(|image| image.id)
        .collect();
    assert_eq!(ids, std::slice::from_ref(&b));
    assert!(
        lower[0].join("a").exists(),
        "a container may still stand on it"
    );
    assert_eq!(store.holders(), ["c1"]);
    store.release("c1").await.unwrap();
    assert!(!lower[0].exists());
    assert!(!layout.layers().join("0123456789abcdef").exists());
    assert!(!layout.tmp().join("junk").exists());

    // An image whose layers had not reached the disk when the machine went down.
    drop(store);
    let mut record: crate::layout::ImageRecord =
        crate::layout::read_json(&layout.image(&b)).unwrap();
    record.unsynced_boot = Some("another boot".into());
    layout.write_json(&layout.image(&b), &record).unwrap();
    let store = open(dir.path()).await;
    assert!(store.list().await.unwrap().is_empty());

    std::fs::write(layout.version(), "99").unwrap();
    drop(store);
    let newer = ImageStore::open(ImageStoreConfig {
        root: dir.path().join("images"),
        ..ImageStoreConfig::default()
    })
    .await;
    assert!(matches!(newer, Err(ImageStoreError::Version { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_moves_and_archives_come_in() {
    let dir = tempfile::tempdir().unwrap();
    let mut fake = Fake::default();
    let first = publish(&mut fake, "a", "v1", &[layer(&[("a", "1")])]);
    let second = publish(&mut fake, "a", "v2", &[layer(&[("a", "2")])]);
    let documents = fake.documents.clone();
    let fake = start(fake).await;
    let store = open(dir.path()).await;
    let name = |tag: &str| format!("{}/a:{tag}", fake.address);
    store.pull(&name("v1"), &[]).await.unwrap();
    store.pull(&name("v2"), &[]).await.unwrap();
    store.tag(&second, &name("v1")).await.unwrap();
    assert_eq!(store.status(&name("v1")).await.unwrap().unwrap().id, second);
    let old = store.status(&first).await.unwrap().unwrap();
    assert!(old.repo_tags.is_empty() && !old.repo_digests.is_empty());
    store.remove(&second).await.unwrap();
    assert!(store.status(&name("v2")).await.unwrap().is_none());

    // The same image as an OCI archive.
    let path = dir.path().join("image.tar");
    let mut builder = tar::Builder::new(std::fs::File::create(&path).unwrap());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes).unwrap();
    };
    for (path, bytes) in &documents {
        let digest = crate::digest::sha256(bytes).replacen(':', "/", 1);
        if !path.ends_with("/v1") {
            add(&format!("blobs/{digest}"), bytes);
        }
    }
    let top = &documents["a/manifests/v2"];
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": crate::digest::sha256(top), "size": top.len(),
        "annotations": {"io.containerd.image.name": "docker.io/library/a:loaded"},
    }]});
    add("index.json", &serde_json::to_vec(&index).unwrap());
    builder.finish().unwrap();
    drop(builder);
    let images = store.import(&path).await.unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].id, second);
    assert_eq!(images[0].repo_tags, ["docker.io/library/a:loaded"]);
    assert_eq!(store.status("a:loaded").await.unwrap().unwrap().id, second);
    let lower = store.hold(&second, "c").await.unwrap();
    assert_eq!(std::fs::read_to_string(lower[0].join("a")).unwrap(), "2");
    // A record that is being written may stand there for a moment.
    let tmp = dir.path().join("images/tmp");
    let began = std::time::Instant::now();
    while std::fs::read_dir(&tmp).unwrap().count() > 0 {
        assert!(began.elapsed() < std::time::Duration::from_secs(30));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    std::fs::write(&path, b"junk").unwrap();
    assert!(store.import(&path).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_read_up_to_a_bound_and_secrets_stay_out_of_errors() {
    let dir = tempfile::tempdir().unwrap();
    let image = layer(&[("a", "a")]);
    let mut fake = Fake {
        credential: Some("me:secret".into()),
        token_junk: 64 << 20,
        ..Fake::default()
    };
    publish(&mut fake, "x", "v1", std::slice::from_ref(&image));
    let fake = start(fake).await;
    let store = open(dir.path()).await;
    let error = store
        .pull(&format!("{}/x:v1", fake.address), &[])
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("is larger than 1048576 bytes"), "{error}");

    let mut fake = Fake::default();
    publish(&mut fake, "x", "v1", std::slice::from_ref(&image));
    for (tag, size) in [("v1", 5 << 20), ("large", 64 << 20)] {
        let junk: Bytes = vec![b' '; size].into();
        let digest = crate::digest::sha256(&junk);
        for name in [tag, &digest] {
            fake.documents
                .insert(format!("x/manifests/{name}"), junk.clone());
        }
    }
    let fake = start(fake).await;
    for tag in ["v1", "large"] {
        let error = store
            .pull(&format!("{}/x:{tag}", fake.address), &[])
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("is larger than 4194304 bytes"), "{error}");
    }

    let mut fake = Fake {
        signed: true,
        ..Fake::default()
    };
    publish(&mut fake, "x", "v1", &[image]);
    let fake = start(fake).await;
    let error = store
        .pull(&format!("{}/x:v1", fake.address), &[])
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("refused"), "{error}");
    assert!(!error.contains("hush"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_version_1_gets_whole_names() {
    let dir = tempfile::tempdir().unwrap();
    let mut fake = Fake::default();
    publish(&mut fake, "x", "v1", &[layer(&[("a", "a")])]);
    let fake = start(fake).await;
    let store = open(dir.path()).await;
    let image = store
        .pull(&format!("{}/x:v1", fake.address), &[])
        .await
        .unwrap();
    let held = store.hold(&image.id, "c").await.unwrap();
    let name = held[0].parent().unwrap().file_name().unwrap();
    assert_eq!(
        format!("sha256:{}", name.to_str().unwrap()),
        image.layers[0]
    );
    let layout = &store.inner.layout;
    std::fs::rename(
        layout.layer(&image.layers[0]),
        layout.old_layer(&image.layers[0]),
    )
    .unwrap();
    std::fs::write(layout.version(), "1\n").unwrap();
    drop(store);
    let store = open(dir.path()).await;
    assert_eq!(store.hold(&image.id, "c").await.unwrap(), held);
    assert!(held[0].join("a").exists());
    assert_eq!(
        std::fs::read_to_string(store.inner.layout.version()).unwrap(),
        "2\n"
    );
}
