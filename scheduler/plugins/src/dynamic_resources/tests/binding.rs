//! What is written before a pod is bound, and what is waited for.

use super::*;

#[test]
fn a_claim_is_allocated_and_reserved() {
    let bed = Bed::new(&[class("c"), slice("a", one_device()), claim("c"), claim("e")]);
    let p = pod("p", &["c"]).info();
    let mut state = bed.reserved(&p, "a");
    assert_eq!(bed.bind(&state, &p, "a"), Some(Status::success()));
    assert_eq!(
        bed.server.log(),
        [
            "finalizers 1 default/c",
            "status [\"d\"] for [\"p\"] default/c"
        ]
    );
    let written = bed.server.stored("default/c").expect("there");
    let status = written.status.as_ref().expect("written");
    let allocation = status.allocation.as_ref().expect("allocated");
    assert_eq!(
        allocation
            .allocation_timestamp
            .as_ref()
            .map(|t| t.0.to_string())
            .as_deref(),
        Some("2026-06-01T12:00:00Z")
    );
    assert!(allocation.node_selector.is_some());
    bed.check(
        "and stays taken",
        &pod("q", &["e"]).info(),
        cannot(),
        cannot(),
    );
    let again = pod("r", &["c"]).info();
    let second = bed.reserved(&again, "a");
    assert_eq!(
        bed.bind(&second, &again, "a"),
        Some(Status::success()),
        "a second user"
    );
    assert_eq!(
        bed.server.log(),
        ["status [\"d\"] for [\"p\", \"r\"] default/c"]
    );
    bed.plugin.unreserve(&mut state, &p, "a");
    assert_eq!(bed.server.log(), ["unreserve c of uid-p"]);
}

#[test]
fn writes_that_meet_others() {
    let check = |what: &str, before: Value, now: Value, expect: Result<&[&str], &str>| {
        let bed = Bed::new(&[class("c"), slice("a", one_device()), before]);
        let p = pod("p", &["c"]).info();
        let handle = FakeHandle {
            time_is_up: true,
            ..FakeHandle::default()
        };
        let state = bed.reserved(&p, "a");
        let object = storage_object(&now);
        bed.server
            .put((**object.resource_claim().expect("a claim")).clone());
        // Waits between two tries are over at once.
        let plugin = DynamicResources {
            handle: Arc::new(FakeHandle {
                api: Arc::clone(&bed.handle.api),
                ..handle
            }),
            ..DynamicResources {
                handle: Arc::clone(&bed.plugin.handle),
                ..bed.plugin
            }
        };
        let mut bound = plugin.pre_bind(&state, &p, "a");
        let done = bound.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(status) = done else {
            panic!("{what}: waits")
        };
        match expect {
            Ok(log) => assert_eq!(
                (status, bed.server.log()),
                (
                    Status::success(),
                    log.iter().map(ToString::to_string).collect()
                ),
                "{what}"
            ),
            Err(error) => assert!(
                status.is_error() && status.message().contains(error),
                "{what}: {status:?}"
            ),
        }
    };
    let labelled = || {
        let mut claim = claim("c");
        claim["metadata"]["labels"] = json!({"x": "y"});
        claim
    };
    check(
        "a label",
        claim("c"),
        labelled(),
        Ok(&[
            "conflict default/c",
            "finalizers 1 default/c",
            "status [\"d\"] for [\"p\"] default/c",
        ]),
    );
    check(
        "an allocation",
        claim("c"),
        allocated("c", "b"),
        Err("claim default/c got allocated elsewhere in the meantime"),
    );
    let mut deleted = claim("c");
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    check(
        "deletion",
        claim("c"),
        deleted,
        Err("claim default/c got deleted in the meantime"),
    );
    check(
        "deallocation",
        allocated("c", "a"),
        claim("c"),
        Err("claim default/c got deallocated elsewhere in the meantime"),
    );
}

/// A device that has to be made ready.
fn conditional() -> Value {
    json!([{"name": "d", "bindingConditions": ["ready"], "bindingFailureConditions": ["failed"]}])
}

fn with_condition(claim: &ResourceClaim, kind: &str) -> ResourceClaim {
    let mut claim = claim.clone();
    let devices = json!([{"driver": DRIVER, "pool": "a", "device": "d",
        "conditions": [{"type": kind, "status": "True", "reason": "Because", "message": "so", "lastTransitionTime": "2026-06-01T12:00:00Z"}]}]);
    claim.status.get_or_insert_default().devices =
        serde_json::from_value(devices).expect("devices");
    claim
}

#[test]
fn devices_are_made_ready_first() {
    for (kind, expect) in [
        ("ready", Status::success()),
        (
            "failed",
            Status::error("device binding failed: claim=c, reason=Because, message=\"so\""),
        ),
    ] {
        let bed = Bed::new(&[class("c"), slice("a", conditional()), claim("c")]);
        let p = pod("p", &["c"]).info();
        let state = bed.reserved(&p, "a");
        let mut bound = bed.plugin.pre_bind(&state, &p, "a");
        let mut context = Context::from_waker(Waker::noop());
        assert!(bound.as_mut().poll(&mut context).is_pending(), "{kind}");
        assert_eq!(
            *bed.handle.events.lock().unwrap(),
            ["BindingConditionsPending waiting for binding conditions for device on node a"]
        );
        let written = bed.server.stored("default/c").expect("written");
        let now = with_condition(&written, kind);
        let now = bed.server.put(now);
        let event = EventObject::ResourceClaim(Arc::new(now));
        bed.handle.devices.apply(
            Some(&EventObject::ResourceClaim(Arc::new(written))),
            Some(&event),
        );
        assert_eq!(
            bound.as_mut().poll(&mut context),
            Poll::Ready(expect),
            "{kind}"
        );
    }
}

#[test]
fn devices_that_are_never_ready() {
    let bed = Bed::with(
        &[class("c"), slice("a", conditional()), claim("c")],
        |handle| handle.time_is_up = true,
    );
    let p = pod("p", &["c"]).info();
    let state = bed.reserved(&p, "a");
    let status = bed.bind(&state, &p, "a").expect("time is up");
    assert!(
        status.is_error() && status.message().starts_with("device binding timeout"),
        "{status:?}"
    );
    let mut old = allocated("c", "a");
    old["status"]["allocation"]["allocationTimestamp"] = "2026-06-01T11:00:00Z".into();
    old["status"]["allocation"]["devices"]["results"][0]["bindingConditions"] = json!(["ready"]);
    let unavailable = Status::unresolvable(filter::NOT_AVAILABLE);
    Bed::new(&[old.clone()]).check("an hour ago", &p, unavailable.clone(), unavailable.clone());
    let mut new = old.clone();
    new["status"]["allocation"]["allocationTimestamp"] = "2026-06-01T11:55:00Z".into();
    Bed::new(&[new]).check(
        "five minutes ago",
        &p,
        Status::success(),
        unavailable.clone(),
    );
    let object = storage_object(&old);
    let failed = with_condition(object.resource_claim().expect("a claim"), "failed");
    let mut failed = serde_json::to_value(failed).expect("JSON");
    failed["status"]["allocation"]["devices"]["results"][0]["bindingFailureConditions"] =
        json!(["failed"]);
    Bed::new(&[failed]).check("failed", &p, unavailable.clone(), unavailable);
    let off = Bed::with(&[], |handle| {
        handle.devices = DeviceCache::new(Features {
            device_binding_conditions: false,
            ..Features::default()
        })
    });
    off.told(None, &old);
    off.check(
        "with the gate off",
        &p,
        Status::success(),
        Status::unresolvable(filter::NOT_AVAILABLE),
    );
}

/// Whether a write that failed was taken all the same.
#[test]
fn devices_stay_taken_until_a_write_is_certain() {
    for taken in [true, false] {
        let bed = Bed::with(
            &[class("c"), slice("a", one_device()), claim("c"), claim("e")],
            |handle| handle.time_is_up = true,
        );
        let p = pod("p", &["c"]).info();
        let mut state = bed.reserved(&p, "a");
        *bed.server.0.fails.lock().unwrap() = Some(taken);
        let status = bed.bind(&state, &p, "a").expect("does not wait");
        assert!(status.is_error(), "{status:?}");
        bed.server.log();
        // All sleep is over at once here: by its end the API server was asked.
        bed.plugin.unreserve(&mut state, &p, "a");
        let other = pod("q", &["e"]).info();
        if taken {
            assert_eq!(bed.server.log(), ["unreserve c of uid-p"]);
            bed.check(
                "somebody else's, though no event told so",
                &other,
                cannot(),
                cannot(),
            );
        } else {
            assert!(bed.server.log().is_empty());
            bed.check("free again", &other, none(), cannot());
        }
        assert_eq!(*bed.handle.activated.lock().unwrap(), ["p"]);
    }
}

#[test]
fn a_binding_that_is_cancelled_frees_nothing_before_it_is_certain() {
    let bed = Bed::new(&[class("c"), slice("a", one_device()), claim("c"), claim("e")]);
    let p = pod("p", &["c"]).info();
    let state = bed.reserved(&p, "a");
    *bed.server.0.hangs.lock().unwrap() = true;
    assert_eq!(bed.bind(&state, &p, "a"), None, "waits for the API server");
    let writing = bed
        .plugin
        .state(&state)
        .expect("has claims")
        .progress()
        .uncertain;
    assert_eq!(writing, Some(0));
    let other = pod("q", &["e"]).info();
    bed.check("taken", &other, cannot(), cannot());
}
