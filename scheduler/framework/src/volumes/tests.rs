//! Assumptions, indexes, what is touched, and who is woken.

use k8s_openapi::api::storage::v1::VolumeAttachment;

use super::*;

fn volume(name: &str, version: &str, class: &str, claim: Option<&str>) -> EventObject {
    let reference = claim.map(|claim| serde_json::json!({"namespace": "ns", "name": claim}));
    let value = serde_json::json!({
        "metadata": {"name": name, "resourceVersion": version},
        "spec": {"storageClassName": class, "claimRef": reference, "csi": {"driver": "d", "volumeHandle": name}},
    });
    EventObject::PersistentVolume(serde_json::from_value(value).expect("a volume"))
}

fn claim(name: &str, version: &str, volume: &str) -> EventObject {
    let value = serde_json::json!({
        "metadata": {"namespace": "ns", "name": name, "resourceVersion": version}, "spec": {"volumeName": volume}});
    EventObject::PersistentVolumeClaim(serde_json::from_value(value).expect("a claim"))
}

fn unclaimed(cache: &VolumeCache, class: &str) -> Vec<String> {
    let state = cache.read();
    state
        .unclaimed(class)
        .map(|v| v.name().to_owned())
        .collect()
}

fn assumed(object: &EventObject, claim: &str) -> Arc<PersistentVolume> {
    let EventObject::PersistentVolume(object) = object else {
        panic!("not a volume");
    };
    let mut object = (**object).clone();
    let spec = object.spec.get_or_insert_default();
    let reference = spec.claim_ref.get_or_insert_default();
    (reference.namespace, reference.name) = (Some("ns".into()), Some(claim.into()));
    Arc::new(object)
}

#[test]
fn an_assumption_stands_until_the_object_changes() {
    let cache = VolumeCache::new();
    let first = volume("v", "1", "local", None);
    cache.apply(None, Some(&first));
    let before = cache.read().unclaimed_revision("local");
    assert_eq!(unclaimed(&cache, "local"), ["v"]);
    cache.assume_volume(assumed(&first, "c")).expect("in sync");
    assert!(unclaimed(&cache, "local").is_empty());
    assert!(cache.read().unclaimed_revision("local") > before);
    let meant = |cache: &VolumeCache| cache.read().meant_for("ns/c").count();
    assert_eq!(meant(&cache), 1);
    assert!(
        claim_of(&cache).is_none(),
        "the API server knows nothing of it"
    );
    // The same version once more changes nothing; a newer one wins.
    cache.apply(Some(&first), Some(&first));
    assert_eq!(meant(&cache), 1);
    let second = volume("v", "2", "local", None);
    cache.apply(Some(&first), Some(&second));
    assert_eq!((meant(&cache), unclaimed(&cache, "local").len()), (0, 1));
    // What was made of the older version is refused, and taking it back does no harm to the newer.
    assert!(cache.assume_volume(assumed(&first, "c")).is_err());
    cache.assume_volume(assumed(&second, "c")).expect("in sync");
    cache.restore_volume(&assumed(&first, "c"));
    assert_eq!(meant(&cache), 1);
    cache.restore_volume(&assumed(&second, "c"));
    assert_eq!((meant(&cache), unclaimed(&cache, "local").len()), (0, 1));
    cache.apply(Some(&second), None);
    assert!(unclaimed(&cache, "local").is_empty());
    let state = cache.read();
    assert!(state.unclaimed_revision("local") > before && state.sharers("d", "v") == 0);
}

fn claim_of(cache: &VolumeCache) -> Option<String> {
    cache.read().stored_volume("v").and_then(|v| v.claim_key())
}

#[test]
fn changes_touch_the_nodes_they_matter_to() {
    let cache = VolumeCache::new();
    let attachment = |name: &str| {
        let value = serde_json::json!({"metadata": {"name": name},
            "spec": {"attacher": "d", "nodeName": "n", "source": {"persistentVolumeName": "v"}}});
        let attachment: VolumeAttachment = serde_json::from_value(value).expect("an attachment");
        EventObject::VolumeAttachment(Arc::new(attachment))
    };
    assert_eq!(cache.take_touched(), None);
    let touched = |nodes: &[&str], claims: &[&str]| {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Some(Touched {
            nodes: set(nodes),
            claims: set(claims),
            all: false,
        })
    };
    let a = attachment("a");
    cache.apply(None, Some(&a));
    assert_eq!(cache.take_touched(), touched(&["n"], &[]));
    cache.apply(Some(&a), Some(&a));
    assert_eq!(
        cache.take_touched(),
        None,
        "its status is nobody's business"
    );
    let v = volume("v", "1", "local", Some("c"));
    cache.apply(None, Some(&v));
    assert_eq!(cache.take_touched(), touched(&["n"], &["ns/c"]));
    let c = claim("c", "1", "");
    cache.apply(None, Some(&c));
    cache.take_touched();
    let bound = claim("c", "2", "v");
    cache.apply(Some(&c), Some(&bound));
    assert_eq!(cache.take_touched(), touched(&[], &["ns/c"]));
    cache.apply(Some(&bound), Some(&claim("c", "3", "v")));
    assert_eq!(cache.take_touched(), None);
    cache.apply(Some(&a), None);
    assert_eq!(cache.take_touched(), touched(&["n"], &[]));
    assert_eq!(cache.read().attachments("n").count(), 0);
}

#[test]
fn who_watches_a_claim_hears_of_it_and_of_its_volumes() {
    let cache = VolumeCache::new();
    let mut watch = cache.watch(vec!["ns/c".into()]);
    let woken = |watch: &mut crate::watch::Watch<'_>| {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut changed = std::pin::pin!(watch.changed());
        changed.as_mut().poll(&mut context).is_ready()
    };
    assert!(!woken(&mut watch));
    cache.apply(None, Some(&claim("other", "1", "")));
    assert!(!woken(&mut watch));
    cache.apply(None, Some(&claim("c", "1", "")));
    assert!(woken(&mut watch) && !woken(&mut watch));
    let v = volume("v", "1", "local", Some("c"));
    cache.apply(None, Some(&v));
    assert!(woken(&mut watch));
    // It names another claim now: the one it named hears, too.
    cache.apply(Some(&v), Some(&volume("v", "2", "local", Some("d"))));
    assert!(woken(&mut watch));
    cache.wake_all();
    assert!(woken(&mut watch));
    drop(watch);
    assert!(cache.watches.is_empty());
}
