//! Who gets which address, over restarts, releases and wishes.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::{Node, Service};
use serde_json::{Value, from_value, json};

use super::Gantry;
use super::allocate::{AllocateError, Ledger, Pending, allocate};
use super::pools::{CLASS, Pools};
use super::service::{ADDRESSES, POOL, is_ours};
use crate::{Cloud as _, CloudError, Instances as _, LoadBalancer as _};

const FILE: &str = "pools:
- {name: lan, addresses: [192.0.2.1-192.0.2.2, 'fd00::1-fd00::2']}
- {name: more, addresses: [192.0.2.9], namespaces: [shop]}
- {name: asked, addresses: [198.51.100.1], autoAssign: false}
";

/// A Service of namespace `ns`; `age` is when it was made.
fn service(name: &str, age: u32, change: Value) -> Service {
    let mut object = json!({
        "metadata": { "namespace": "ns", "name": name, "uid": name, "creationTimestamp": format!("2026-01-01T00:00:{age:02}Z") },
        "spec": { "type": "LoadBalancer", "ipFamilies": ["IPv4"] } });
    merge(&mut object, change);
    from_value(object).unwrap()
}

fn merge(into: &mut Value, change: Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change,
    }
}

fn with(ips: &[&str]) -> Value {
    let ingress: Vec<_> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
    json!({ "status": { "loadBalancer": { "ingress": ingress } } })
}

fn annotated(name: &str, value: &str) -> Value {
    json!({ "metadata": { "annotations": { name: value } } })
}

/// What a Service gets beside others.
fn check(others: &[Service], service: &Service) -> Result<Vec<String>, AllocateError> {
    let mut all: Vec<_> = others.iter().cloned().map(Arc::new).collect();
    all.push(Arc::new(service.clone()));
    let ledger = Ledger::read(&all, &Pending::default());
    let given = allocate(&Pools::parse(FILE).unwrap(), &ledger, service)?;
    Ok(given.iter().map(ToString::to_string).collect())
}

fn given(others: &[Service], service: &Service) -> Vec<String> {
    check(others, service).unwrap()
}

#[test]
fn the_first_free_address_of_the_first_pool() {
    let a = service("a", 1, with(&["192.0.2.1"]));
    let b = service("b", 2, with(&["192.0.2.2"]));
    let new = service("c", 3, json!({}));
    assert_eq!(given(&[], &new), ["192.0.2.1"]);
    assert_eq!(given(&[a.clone()], &new), ["192.0.2.2"]);
    let error = check(&[a.clone(), b.clone()], &new)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "no IPv4 address is left in pool lan");
    // Another pool is for another namespace.
    let shop = service("c", 3, json!({ "metadata": { "namespace": "shop" } }));
    assert_eq!(given(&[a, b], &shop), ["192.0.2.9"]);
}

#[test]
fn an_address_is_kept_and_the_older_of_two_keeps_it() {
    let old = service("old", 1, with(&["192.0.2.2"]));
    assert_eq!(given(&[], &old), ["192.0.2.2"]);
    // Somebody wrote an address into a status that is another's: it is worth nothing.
    let forged = service("forged", 2, with(&["192.0.2.2"]));
    assert_eq!(given(&[old.clone()], &forged), ["192.0.2.1"]);
    assert_eq!(given(&[forged], &old), ["192.0.2.2"]);
    // One of no pool is not kept.
    let foreign = service("f", 1, with(&["203.0.113.1"]));
    assert_eq!(given(&[], &foreign), ["192.0.2.1"]);
}

#[test]
fn services_of_others_hold_nothing() {
    let other = json!({ "spec": { "loadBalancerClass": "example.com/x" } });
    let mut theirs = with(&["192.0.2.1"]);
    merge(&mut theirs, other);
    let theirs = service("x", 1, theirs);
    assert!(!is_ours(&theirs));
    assert!(is_ours(&service(
        "y",
        1,
        json!({ "spec": { "loadBalancerClass": CLASS } })
    )));
    assert!(!is_ours(&service(
        "z",
        1,
        json!({ "spec": { "type": "NodePort" } })
    )));
    assert_eq!(given(&[theirs], &service("a", 2, json!({}))), ["192.0.2.1"]);
}

#[test]
fn what_is_asked_for() {
    let asks = |change: Value| service("a", 1, change);
    let spec = asks(json!({ "spec": { "loadBalancerIP": "192.0.2.2" } }));
    assert_eq!(given(&[], &spec), ["192.0.2.2"]);
    assert_eq!(
        given(&[], &asks(annotated(ADDRESSES, " 198.51.100.1 "))),
        ["198.51.100.1"]
    );
    assert_eq!(
        given(&[], &asks(annotated(POOL, "asked"))),
        ["198.51.100.1"]
    );
    // A wish that comes later counts, too.
    let mut moved = with(&["192.0.2.1"]);
    merge(&mut moved, annotated(ADDRESSES, "192.0.2.2"));
    assert_eq!(given(&[], &asks(moved)), ["192.0.2.2"]);
    let mut moved = with(&["192.0.2.1"]);
    merge(&mut moved, annotated(POOL, "asked"));
    assert_eq!(given(&[], &asks(moved)), ["198.51.100.1"]);
}

#[test]
fn what_cannot_be_is_named() {
    let holder = service("front", 1, with(&["192.0.2.1"]));
    let mut both = json!({ "spec": { "loadBalancerIP": "192.0.2.1" } });
    merge(&mut both, annotated(ADDRESSES, "192.0.2.2"));
    let mut other_pool = annotated(ADDRESSES, "192.0.2.2");
    merge(&mut other_pool, annotated(POOL, "asked"));
    for (change, expect) in [
        (
            annotated(ADDRESSES, "192.0.2.1"),
            "the wanted address 192.0.2.1 is that of Service ns/front; sharing an address is not supported",
        ),
        (
            annotated(ADDRESSES, "192.0.2.x"),
            "loadbalancer.gantry/addresses: \"192.0.2.x\" is no IP address",
        ),
        (
            json!({ "spec": { "loadBalancerIP": "x" } }),
            "spec.loadBalancerIP: \"x\" is no IP address",
        ),
        (
            annotated(ADDRESSES, "192.0.2.1,192.0.2.2"),
            "several addresses of one IP family",
        ),
        (
            annotated(ADDRESSES, "203.0.113.1"),
            "the wanted address 203.0.113.1 is in no pool",
        ),
        (
            annotated(ADDRESSES, "fd00::1"),
            "fd00::1 is of no IP family of the Service",
        ),
        (
            annotated(ADDRESSES, "192.0.2.9"),
            "pool \"more\" is not for namespace \"ns\"",
        ),
        (annotated(POOL, "nobody"), "no pool is called \"nobody\""),
        (
            both,
            "spec.loadBalancerIP 192.0.2.1 is not among the addresses",
        ),
        (
            other_pool,
            "192.0.2.2 is not in the wanted pool \"asked\", but in \"lan\"",
        ),
        (
            json!({ "spec": { "ipFamilies": ["IPv6"] }, "metadata": { "annotations": { POOL: "asked" } } }),
            "no pool has IPv6 addresses for the Service",
        ),
    ] {
        let error = check(&[holder.clone()], &service("b", 2, change.clone()));
        let error = error.expect_err(&change.to_string()).to_string();
        assert!(error.contains(expect), "{error}");
    }
}

#[test]
fn two_families() {
    let dual = |policy: &str| json!({ "spec": { "ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": policy } });
    let a = service("a", 3, dual("RequireDualStack"));
    assert_eq!(given(&[], &a), ["fd00::1", "192.0.2.1"]);
    let full = [
        service("x", 1, with(&["192.0.2.1"])),
        service("y", 2, with(&["192.0.2.2"])),
    ];
    assert_eq!(
        given(&full, &service("a", 3, dual("PreferDualStack"))),
        ["fd00::1"]
    );
    let error = check(&full, &a).unwrap_err().to_string();
    assert_eq!(error, "no IPv4 address is left in pool lan");
    // What it has of one family stays when it gets the other.
    let mut grown = dual("RequireDualStack");
    merge(&mut grown, with(&["192.0.2.2"]));
    assert_eq!(
        given(&[], &service("a", 3, grown)),
        ["fd00::1", "192.0.2.2"]
    );
}

struct Cluster {
    cloud: Gantry,
    services: Arc<Mutex<Vec<Arc<Service>>>>,
    file: tempfile::NamedTempFile,
}

impl Cluster {
    fn new() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), FILE).unwrap();
        let services = Arc::default();
        let cloud = Self::restarted(&file, &services);
        Self {
            cloud,
            services,
            file,
        }
    }

    fn restarted(
        file: &tempfile::NamedTempFile,
        services: &Arc<Mutex<Vec<Arc<Service>>>>,
    ) -> Gantry {
        let cloud = Gantry::open(file.path()).unwrap();
        let services = services.clone();
        cloud.use_services(Arc::new(move || services.lock().unwrap().clone()));
        cloud
    }

    fn apply(&self, service: &Service) {
        let mut all = self.services.lock().unwrap();
        all.retain(|other| other.metadata.uid != service.metadata.uid);
        all.push(Arc::new(service.clone()));
    }

    async fn ensure(&self, service: &Service) -> Result<Vec<String>, CloudError> {
        let status = self.cloud.ensure("c", service, &[]).await?;
        let all = status.ingress.unwrap();
        assert!(all.iter().all(|i| i.ip_mode.as_deref() == Some("VIP")));
        Ok(all.into_iter().filter_map(|i| i.ip).collect())
    }
}

#[tokio::test]
async fn given_addresses_outlive_the_process_and_are_free_once_given_back() {
    let mut cluster = Cluster::new();
    let (a, b, c) = (
        service("a", 1, json!({})),
        service("b", 2, json!({})),
        service("c", 3, json!({})),
    );
    for s in [&a, &b, &c] {
        cluster.apply(s);
    }
    // The caches say nothing of the first's address yet.
    assert_eq!(cluster.ensure(&a).await.unwrap(), ["192.0.2.1"]);
    assert_eq!(cluster.ensure(&b).await.unwrap(), ["192.0.2.2"]);
    let refused = cluster.ensure(&c).await.unwrap_err();
    assert_eq!(
        refused,
        CloudError::Failed("no IPv4 address is left in pool lan".into())
    );

    // Another process, which sees the newest first.
    cluster.apply(&service("b", 2, with(&["192.0.2.2"])));
    cluster.apply(&service("a", 1, with(&["192.0.2.1"])));
    cluster.cloud = Cluster::restarted(&cluster.file, &cluster.services);
    assert!(cluster.ensure(&c).await.is_err());
    let a = service("a", 1, with(&["192.0.2.1"]));
    assert_eq!(cluster.ensure(&a).await.unwrap(), ["192.0.2.1"]);

    let mut freed = cluster.cloud.freed().unwrap();
    assert!(cluster.cloud.get("c", &a).await.unwrap().is_some());
    cluster.cloud.ensure_deleted("c", &a).await.unwrap();
    assert!(freed.has_changed().unwrap());
    freed.mark_unchanged();
    assert_eq!(cluster.cloud.get("c", &a).await, Ok(None));
    assert_eq!(cluster.ensure(&c).await.unwrap(), ["192.0.2.1"]);

    // A pool that grows is told, too; a file that is not right takes nothing away.
    std::fs::write(
        cluster.file.path(),
        "pools: [{name: lan, addresses: [192.0.2.0/28]}]",
    )
    .unwrap();
    assert_eq!(cluster.ensure(&c).await.unwrap(), ["192.0.2.1"]);
    assert!(freed.has_changed().unwrap());
    std::fs::write(cluster.file.path(), "pools: []").unwrap();
    let error = cluster.ensure(&c).await.unwrap_err().to_string();
    assert!(error.contains("pools: must not be empty"), "{error}");
    assert!(cluster.cloud.get("c", &c).await.unwrap().is_some());
}

#[tokio::test]
async fn a_node_is_what_its_kubelet_says() {
    let cluster = Cluster::new();
    let node: Node = from_value(json!({
        "metadata": { "name": "n", "annotations": { "alpha.kubernetes.io/provided-node-ip": "10.0.0.1" } },
        "status": { "addresses": [{ "type": "Hostname", "address": "n" }] } }))
    .unwrap();
    let metadata = cluster.cloud.metadata(&node).await.unwrap().unwrap();
    let expect = json!({ "providerID": "gantry://n", "instanceType": "", "zone": "", "region": "", "additionalLabels": {},
        "nodeAddresses": [{ "type": "Hostname", "address": "n" }, { "type": "InternalIP", "address": "10.0.0.1" }] });
    assert_eq!(serde_json::to_value(metadata).unwrap(), expect);
    assert_eq!(cluster.cloud.exists(&node).await, Ok(true));
    assert!(cluster.cloud.routes().is_none());
}

#[test]
fn addresses_are_compared_by_value() {
    let spelled: IpAddr = "fd00:0::1".parse().unwrap();
    let wants = json!({ "spec": { "ipFamilies": ["IPv6"], "loadBalancerIP": "FD00:0:0::1" } });
    assert_eq!(given(&[], &service("a", 1, wants)), [spelled.to_string()]);
}
