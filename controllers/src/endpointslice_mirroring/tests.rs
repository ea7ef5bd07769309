use std::sync::Arc;

use k8s_openapi::api::core::v1::Endpoints;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::repack::repack_subsets;
use super::sync::*;

fn endpoints(subsets: Value) -> Endpoints {
    serde_json::from_value(
        json!({"subsets": subsets, "metadata": {"name": "svc", "namespace": "ns", "uid": "e1",
        "labels": {"team": "x"}, "annotations": {"note": "n",
            "endpoints.kubernetes.io/last-change-trigger-time": "t",
            "kubectl.kubernetes.io/last-applied-configuration": "{}"}}}),
    )
    .unwrap()
}

fn addresses(ips: &[&str]) -> Value {
    ips.iter().map(|ip| json!({"ip": ip})).collect()
}

fn port(name: &str, number: i32) -> Value {
    json!({"name": name, "port": number, "protocol": "TCP"})
}

/// What the API server makes of the plan's slices.
fn stored(plan: &Plan) -> Vec<Arc<EndpointSlice>> {
    let mut count = 0;
    let slices = plan.create.iter().chain(&plan.update).cloned();
    slices
        .map(|mut slice| {
            count += 1;
            let name = format!("svc-{count}");
            slice.metadata.name.get_or_insert(name.clone());
            slice.metadata.uid = Some(name);
            Arc::new(slice)
        })
        .collect()
}

/// Per slice: family, ports, `address` or `!address`.
fn show(slices: &[EndpointSlice]) -> Vec<String> {
    let mut shown: Vec<String> = slices
        .iter()
        .map(|slice| {
            let ports = slice
                .ports
                .iter()
                .flatten()
                .map(|p| p.port.unwrap().to_string());
            let found = slice.endpoints.iter().flatten().map(|e| {
                let ready = e.conditions.as_ref().unwrap().ready.unwrap();
                format!("{}{}", if ready { "" } else { "!" }, e.addresses[0])
            });
            let (ports, found): (Vec<_>, Vec<_>) = (ports.collect(), found.collect());
            format!(
                "{} {} {}",
                slice.address_type,
                ports.join(","),
                found.join(",")
            )
        })
        .collect();
    shown.sort();
    shown
}

#[test]
fn first_pass_and_idle_second() {
    for (subsets, expect) in [
        (json!([]), vec![]),
        (
            json!([{"addresses": addresses(&["10.0.0.1", "10.0.0.2"]), "ports": [port("a", 80)]}]),
            vec!["IPv4 80 10.0.0.1,10.0.0.2"],
        ),
        // not ready, both families, an irregular form
        (
            json!([{"addresses": addresses(&["fd00::0:1", "010.0.0.1"]),
                    "notReadyAddresses": addresses(&["10.0.0.3"]), "ports": [port("a", 80)]}]),
            vec!["IPv4 80 10.0.0.1,!10.0.0.3", "IPv6 80 fd00::1"],
        ),
        // the same ports in two subsets, the same addresses in two subsets
        (
            json!([{"addresses": addresses(&["10.0.0.1"]), "ports": [port("a", 80)]},
                   {"addresses": addresses(&["10.0.0.2"]), "ports": [port("a", 80)]}]),
            vec!["IPv4 80 10.0.0.1,10.0.0.2"],
        ),
        (
            json!([{"addresses": addresses(&["10.0.0.1"]), "ports": [port("a", 80)]},
                   {"addresses": addresses(&["10.0.0.1"]), "ports": [port("b", 81)]}]),
            vec!["IPv4 80,81 10.0.0.1"],
        ),
        // without ports
        (
            json!([{"addresses": addresses(&["10.0.0.1"])}]),
            vec!["IPv4  10.0.0.1"],
        ),
    ] {
        let endpoints = endpoints(subsets.clone());
        let plan = sync(&endpoints, &[], 1000);
        assert_eq!(show(&plan.create), expect, "{subsets}");
        let again = sync(&endpoints, &stored(&plan), 1000);
        assert_eq!(again, Plan::default(), "{subsets}");
    }
}

#[test]
fn what_a_slice_takes_over() {
    let endpoints =
        endpoints(json!([{"addresses": addresses(&["10.0.0.1"]), "ports": [port("a", 80)]}]));
    let slice = &sync(&endpoints, &[], 1000).create[0];
    let meta = &slice.metadata;
    assert_eq!(meta.generate_name.as_deref(), Some("svc-"));
    assert_eq!(
        serde_json::to_value(&meta.labels).unwrap(),
        json!({"team": "x", "kubernetes.io/service-name": "svc",
            "endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io"})
    );
    assert_eq!(
        serde_json::to_value(&meta.annotations).unwrap(),
        json!({"note": "n"})
    );
    let owner = &meta.owner_references.as_ref().unwrap()[0];
    assert_eq!(
        (owner.kind.as_str(), owner.uid.as_str()),
        ("Endpoints", "e1")
    );
}

#[test]
fn changes_keep_slices() {
    let one = endpoints(json!([{"addresses": addresses(&["10.0.0.1"]), "ports": [port("a", 80)]}]));
    let slices = stored(&sync(&one, &[], 1000));
    let check = |endpoints: &Endpoints, update: &[&str], deleted: usize| {
        let plan = sync(endpoints, &slices, 1000);
        assert_eq!(
            (show(&plan.update), plan.delete.len()),
            (update.iter().map(ToString::to_string).collect(), deleted)
        );
        assert!(plan.create.is_empty());
        assert!(
            plan.update
                .iter()
                .all(|s| s.metadata.name.as_deref() == Some("svc-1")
                    && s.metadata.generate_name.is_none())
        );
    };
    // an address, a port, everything gone, a label, an earlier namesake
    check(
        &endpoints(json!([{"addresses": addresses(&["10.0.0.2"]), "ports": [port("a", 80)]}])),
        &["IPv4 80 10.0.0.2"],
        0,
    );
    check(
        &endpoints(json!([{"addresses": addresses(&["10.0.0.1"]), "ports": [port("a", 81)]}])),
        &["IPv4 81 10.0.0.1"],
        0,
    );
    check(&endpoints(json!([])), &[], 1);
    let mut labelled = one.clone();
    labelled.metadata.labels = None;
    check(&labelled, &["IPv4 80 10.0.0.1"], 0);
    let mut namesake = one.clone();
    namesake.metadata.uid = Some("e2".to_owned());
    check(&namesake, &["IPv4 80 10.0.0.1"], 0);
}

#[test]
fn limits() {
    let many = endpoints(
        json!([{"addresses": addresses(&["10.0.0.1", "nonsense", "10.0.0.2", "10.0.0.3"]), "ports": [port("a", 80)]}]),
    );
    let plan = sync(&many, &[], 2);
    assert_eq!(show(&plan.create), ["IPv4 80 10.0.0.1,10.0.0.2"]);
    assert_eq!((plan.invalid, plan.skipped), (0, 2));
    let plan = sync(&many, &[], 1000);
    assert_eq!((plan.invalid, plan.skipped), (1, 1));
}

#[test]
fn not_ready_trumps() {
    let both = endpoints(
        json!([{"addresses": addresses(&["10.0.0.1"]), "ports": [port("a", 80)]},
        {"notReadyAddresses": addresses(&["10.0.0.1"]), "ports": [port("a", 80)]}]),
    );
    let repacked = repack_subsets(&both.subsets.unwrap());
    assert_eq!(repacked.len(), 1);
    assert!(!repacked[0].addresses[0].1);
}

#[test]
fn who_is_mirrored() {
    for (metadata, expect) in [
        (json!({}), true),
        (
            json!({"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}}),
            false,
        ),
        (
            json!({"labels": {"endpointslice.kubernetes.io/skip-mirror": "false"}}),
            true,
        ),
        (
            json!({"annotations": {"control-plane.alpha.kubernetes.io/leader": "{}"}}),
            false,
        ),
    ] {
        let endpoints: Endpoints = serde_json::from_value(json!({"metadata": metadata})).unwrap();
        assert_eq!(should_mirror(&endpoints), expect, "{metadata}");
    }
}
