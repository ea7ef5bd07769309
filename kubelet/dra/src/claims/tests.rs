use super::*;

fn key(name: &str) -> ClaimKey {
    ClaimKey {
        namespace: "ns".to_owned(),
        name: name.to_owned(),
    }
}

/// `name=driver,driver`; an exclamation mark is for one that needs no call.
fn claim(text: &str) -> ClaimRequest {
    let (name, drivers) = text.split_once('=').unwrap();
    let driver = |text: &str| {
        let skipped = match text.strip_prefix('!') {
            Some(_) => vec![SKIP_ALL.to_owned()],
            None => Vec::new(),
        };
        (
            text.trim_start_matches('!').to_owned(),
            DriverRequest { skipped },
        )
    };
    ClaimRequest {
        key: key(name),
        uid: format!("uid-{name}"),
        drivers: drivers.split(',').map(driver).collect(),
    }
}

fn told(work: &Work) -> String {
    let batches = work.batches.iter().map(|(driver, claims)| {
        let names: Vec<_> = claims.iter().map(|key| key.name.as_str()).collect();
        format!("{driver}:{}", names.join("+"))
    });
    let mut parts: Vec<String> = batches.collect();
    parts.extend(work.skipped.iter().map(|driver| format!("!{driver}")));
    parts.join(" ")
}

#[test]
fn a_shared_claim_is_prepared_once_and_unprepared_after_its_last_pod() {
    let mut claims = Claims::default();
    let (shared, own) = (claim("shared=a,b"), claim("own=a"));
    let work = claims.attach("p1", &[shared.clone(), own]).unwrap();
    assert_eq!(told(&work), "a:shared+own b:shared");
    // Not yet through: the next one asks again.
    let work = claims.attach("p2", std::slice::from_ref(&shared)).unwrap();
    assert_eq!(told(&work), "a:shared b:shared");
    claims.set_prepared(&[key("shared"), key("own")]);
    let work = claims.attach("p3", &[shared]).unwrap();
    assert_eq!(told(&work), "");
    assert_eq!(
        claims.in_use(),
        ([("a".to_owned(), 2), ("b".to_owned(), 1)].into(), 2)
    );

    let of_pod = claims.of_pod("p1");
    assert_eq!(of_pod, [key("own"), key("shared")]);
    let work = claims.detach("p1", &of_pod);
    assert_eq!(told(&work), "a:own");
    claims.forget(&work.claims);
    assert_eq!(told(&claims.detach("p2", &[key("shared")])), "");
    // Twice, or by a pod that never had it: nothing is taken from others.
    assert_eq!(told(&claims.detach("p2", &[key("shared")])), "");
    assert_eq!(
        told(&claims.detach("p9", &[key("shared"), key("gone")])),
        ""
    );
    let work = claims.detach("p3", &[key("shared")]);
    assert_eq!(told(&work), "a:shared b:shared");
    assert_eq!(claims.of_pod("p3"), [key("shared")]);
    // Again, until every driver agreed.
    assert_eq!(claims.detach("p3", &[key("shared")]), work);
    claims.forget(&work.claims);
    assert_eq!(claims, Claims::default());
}

#[test]
fn a_claim_that_goes_or_is_another_one_is_for_nobody() {
    let mut claims = Claims::default();
    claims.attach("p1", &[claim("c=a")]).unwrap();
    claims.detach("p1", &[key("c")]);
    let before = claims.clone();
    let error = claims.attach("p2", &[claim("new=a"), claim("c=a")]);
    assert_eq!(
        error.unwrap_err().to_string(),
        "ResourceClaim c is being unprepared"
    );
    assert_eq!(claims, before, "nothing of it is noted");

    let mut claims = Claims::default();
    claims.attach("p1", &[claim("c=a")]).unwrap();
    let mut other = claim("c=a");
    other.uid = "later".to_owned();
    assert_eq!(
        claims.attach("p2", &[other]).unwrap_err().to_string(),
        "old ResourceClaim with same name c and different UID uid-c still exists (previous pod force-deleted?!)"
    );
}

#[test]
fn drivers_that_need_no_call_get_none() {
    let mut claims = Claims::default();
    let wanted = [claim("c=!a,b"), claim("d=!a")];
    assert_eq!(Claims::needed(&wanted), ["b"].into());
    let work = claims.attach("p", &wanted).unwrap();
    assert_eq!(told(&work), "b:c !a !a");
    assert_eq!(work.claims.len(), 2);
    assert_eq!(
        told(&claims.detach("p", &[key("c"), key("d")])),
        "b:c !a !a"
    );
    let mut once = claim("c=a");
    once.drivers.get_mut("a").unwrap().skipped = vec![SKIP_UNPREPARE.to_owned()];
    assert_eq!(Claims::needed(std::slice::from_ref(&once)), ["a"].into());
    let mut claims = Claims::default();
    assert_eq!(told(&claims.attach("p", &[once]).unwrap()), "a:c");
    assert_eq!(told(&claims.detach("p", &[key("c")])), "!a");
}

#[test]
fn a_request_has_its_own_devices_and_those_of_all() {
    let device = |name: &str, requests: &[&str]| Device {
        pool_name: "pool".to_owned(),
        device_name: name.to_owned(),
        request_names: requests.iter().map(|r| (*r).to_owned()).collect(),
        cdi_device_ids: vec![format!("v/c={name}"), format!("v/c={name}-more")],
        ..Device::default()
    };
    let mut claims = Claims::default();
    claims.attach("p", &[claim("c=a,b")]).unwrap();
    claims.took(&key("c"), "a", vec![device("stale", &[])]);
    claims.took(
        &key("c"),
        "a",
        vec![device("x", &["one"]), device("y", &["two", "three"])],
    );
    claims.took(&key("c"), "b", vec![device("z", &[])]);
    let of = |request: Option<&str>| -> Vec<String> {
        let info = claims.get(&key("c")).unwrap();
        let first = info
            .cdi_devices(request)
            .filter(|name| !name.ends_with("more"));
        first.cloned().collect()
    };
    assert_eq!(of(None), ["v/c=x", "v/c=y", "v/c=z"]);
    assert_eq!(of(Some("one")), ["v/c=x", "v/c=z"]);
    assert_eq!(of(Some("three")), ["v/c=y", "v/c=z"]);
    let users = claims.users_of("a");
    assert_eq!(users[&("pool", "x")], ["p"].into());
    assert_eq!(claims.stale(|pod| pod != "p"), ["p".to_owned()].into());
    assert!(claims.stale(|_| true).is_empty());
}
