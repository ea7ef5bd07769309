//! What is taken, in whichever order one hears of it; and what the queue is told.

use serde_json::{Value, json};

use super::*;
use crate::testing::storage_object;

fn claim(version: u64, device: Option<&str>) -> Value {
    let mut claim = json!({"kind": "ResourceClaim", "metadata": {"name": "c", "namespace": "ns", "uid": "u", "resourceVersion": version.to_string()}, "spec": {}});
    if let Some(device) = device {
        claim["status"] = json!({"allocation": {"devices": {"results": [{"driver": "d", "pool": "p", "device": device, "request": "r"}]}}});
    }
    claim
}

fn object(value: &Value) -> Arc<ResourceClaim> {
    Arc::clone(storage_object(value).resource_claim().expect("a claim"))
}

fn told(cache: &DeviceCache, old: Option<&Value>, new: Option<&Value>) -> Vec<DeviceEvent> {
    let (old, new) = (old.map(storage_object), new.map(storage_object));
    cache.apply(old.as_ref(), new.as_ref())
}

fn taken(cache: &DeviceCache) -> usize {
    cache.read().allocated().len()
}

#[test]
fn an_allocation_counts_once_from_reserve_to_deallocation() {
    let cache = DeviceCache::default();
    let (free, allocated) = (claim(1, None), claim(2, Some("x")));
    told(&cache, None, Some(&free));
    cache
        .begin_allocation("u", object(&claim(1, Some("x"))), false)
        .expect("free");
    assert_eq!(taken(&cache), 1, "pending");
    assert!(
        cache
            .begin_allocation("u", object(&claim(1, Some("y"))), false)
            .is_err(),
        "once at a time"
    );
    cache
        .assume(object(&allocated), false)
        .expect("newer than what is known");
    assert_eq!(taken(&cache), 1, "pending and assumed");
    assert!(cache.end_allocation("u") && !cache.end_allocation("u"));
    assert_eq!(taken(&cache), 1, "assumed");
    told(&cache, Some(&free), Some(&claim(1, None)));
    assert_eq!(taken(&cache), 1, "an old version says nothing");
    told(&cache, Some(&free), Some(&allocated));
    assert_eq!(taken(&cache), 1, "stored");
    assert!(
        cache
            .begin_allocation("u", object(&allocated), false)
            .is_err(),
        "it has one"
    );
    told(&cache, Some(&allocated), Some(&claim(3, None)));
    assert_eq!(taken(&cache), 0, "deallocated");
    told(&cache, Some(&claim(3, None)), Some(&claim(4, Some("x"))));
    told(&cache, Some(&claim(4, Some("x"))), None);
    assert_eq!(taken(&cache), 0, "gone");
    assert!(
        cache
            .begin_allocation("u", object(&allocated), false)
            .is_err(),
        "there is none"
    );
}

#[test]
fn what_is_given_up_is_free() {
    let cache = DeviceCache::default();
    told(&cache, None, Some(&claim(1, None)));
    cache
        .begin_allocation("u", object(&claim(1, Some("x"))), false)
        .expect("free");
    cache
        .assume(object(&claim(2, Some("x"))), false)
        .expect("newer");
    assert!(cache.end_allocation("u"));
    cache.restore("ns/c");
    assert_eq!(taken(&cache), 0);
    cache
        .assume(object(&claim(2, Some("x"))), false)
        .expect("newer");
    told(&cache, None, Some(&claim(5, None)));
    assert_eq!(taken(&cache), 0, "a newer version ends what was assumed");
}

#[test]
fn the_queue_hears_of_allocations_that_went_unseen() {
    let cache = DeviceCache::default();
    told(&cache, None, Some(&claim(1, None)));
    cache
        .assume(object(&claim(2, Some("x"))), false)
        .expect("newer");
    let events = told(&cache, Some(&claim(1, None)), Some(&claim(3, None)));
    let [DeviceEvent { event, old, new }] = &events[..] else {
        panic!("one event: {events:?}");
    };
    assert_eq!(event.label(), "resource.k8s.io/ResourceClaimUpdate");
    let allocated = |object: &Option<EventObject>| {
        is_allocated(
            object
                .as_ref()
                .and_then(EventObject::resource_claim)
                .expect("a claim"),
        )
    };
    assert!(allocated(old) && !allocated(new));
}

#[test]
fn taints_of_rules_come_and_go() {
    let cache = DeviceCache::default();
    let slice = json!({"kind": "ResourceSlice", "metadata": {"name": "s"}, "spec": {"driver": "d", "nodeName": "n",
        "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "devices": [{"name": "x"}]}});
    let rule = |driver: &str| {
        json!({"kind": "DeviceTaintRule", "metadata": {"name": "r"},
        "spec": {"deviceSelector": {"driver": driver}, "taint": {"key": "k", "effect": "NoSchedule"}}})
    };
    let check = |events: Vec<DeviceEvent>, expect: &[(&str, usize)]| {
        let taints = |event: &DeviceEvent| {
            let slice = event.new.as_ref().and_then(EventObject::resource_slice);
            slice.map_or(0, |s| {
                s.spec.devices.as_ref().expect("one")[0]
                    .taints
                    .as_ref()
                    .map_or(0, Vec::len)
            })
        };
        let told: Vec<(String, usize)> = events
            .iter()
            .map(|e| (e.event.label(), taints(e)))
            .collect();
        let expect: Vec<(String, usize)> = expect
            .iter()
            .map(|(label, n)| ((*label).to_owned(), *n))
            .collect();
        assert_eq!(told, expect);
    };
    check(told(&cache, None, Some(&rule("d"))), &[]);
    check(
        told(&cache, None, Some(&slice)),
        &[("resource.k8s.io/ResourceSliceAdd", 1)],
    );
    check(
        told(&cache, Some(&rule("d")), Some(&rule("other"))),
        &[("resource.k8s.io/ResourceSliceUpdate", 0)],
    );
    check(told(&cache, Some(&rule("other")), None), &[]);
    let before = cache.inventory();
    assert!(Arc::ptr_eq(&before, &cache.inventory()));
    check(
        told(&cache, Some(&slice), None),
        &[("resource.k8s.io/ResourceSliceDelete", 0)],
    );
    assert!(!Arc::ptr_eq(&before, &cache.inventory()));
    let off = DeviceCache::new(Features {
        device_taint_rules: false,
        ..Features::default()
    });
    told(&off, None, Some(&rule("d")));
    check(
        told(&off, None, Some(&slice)),
        &[("resource.k8s.io/ResourceSliceAdd", 0)],
    );
}

#[test]
fn claims_for_extended_resources_are_found_by_their_pod() {
    let cache = DeviceCache::default();
    let mut made = claim(1, None);
    made["metadata"]["annotations"] = json!({EXTENDED_RESOURCE_CLAIM_ANNOTATION: "true"});
    made["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "pod", "controller": true}]);
    told(&cache, None, Some(&made));
    assert!(cache.read().extended_claim("p", "pod").is_some());
    assert!(
        cache.read().extended_claim("q", "pod").is_none()
            && cache.read().extended_claim("p", "other").is_none()
    );
    told(&cache, Some(&made), None);
    assert!(cache.read().extended_claim("p", "pod").is_none());
}
