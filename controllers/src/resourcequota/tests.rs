use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ResourceQuota;
use serde_json::json;

use super::devices::Devices;
use super::sync::{Observed, is_charged, sync};

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

#[test]
fn a_pod_that_does_not_go_counts_until_its_time_is_over() {
    let quota: ResourceQuota = serde_json::from_value(
        json!({"spec": {"hard": {"pods": "9", "count/pods": "9", "cpu": "9"}}}),
    )
    .unwrap();
    for (deletion, grace, pods, cpu) in [
        (None, None, "1", "1"),
        (Some("2026-01-01T00:59:30Z"), Some(30), "1", "1"),
        (Some("2026-01-01T00:59:29Z"), Some(30), "0", "0"),
        (Some("2026-01-01T00:59:29Z"), None, "1", "1"),
    ] {
        let pod = json!({
            "metadata": {"deletionTimestamp": deletion, "deletionGracePeriodSeconds": grace},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
            "status": {"phase": "Running"},
        });
        let observed = Observed {
            pods: vec![Arc::new(serde_json::from_value(pod).unwrap())],
            ..Observed::default()
        };
        let used = sync(&quota, &observed, now()).unwrap().used;
        assert_eq!(
            serde_json::to_value(used).unwrap(),
            json!({"pods": pods, "count/pods": "1", "cpu": cpu}),
            "{deletion:?} {grace:?}"
        );
    }
}

#[test]
fn pods_of_other_namespaces_are_asked_for_by_terms_alone() {
    let check = |affinity: serde_json::Value, pods: &str| {
        let pod = json!({"spec": {"containers": [{"name": "c"}], "affinity": affinity}});
        let observed = Observed {
            pods: vec![Arc::new(serde_json::from_value(pod).unwrap())],
            ..Observed::default()
        };
        let quota: ResourceQuota = serde_json::from_value(json!({
            "metadata": {"name": "q"},
            "spec": {"hard": {"pods": "9"}, "scopeSelector": {"matchExpressions": [
                {"scopeName": "CrossNamespacePodAffinity", "operator": "Exists"}]}},
        }))
        .unwrap();
        let used = sync(&quota, &observed, now()).unwrap().used.unwrap();
        assert_eq!(used["pods"].0, pods, "{affinity}");
    };
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    for kind in ["podAffinity", "podAntiAffinity"] {
        let terms = [
            (json!({"topologyKey": "k", "namespaces": ["n"]}), "1"),
            (json!({"topologyKey": "k", "namespaceSelector": {}}), "1"),
            (json!({"topologyKey": "k", "namespaces": []}), "0"),
            (
                json!({"topologyKey": "k", "labelSelector": {"matchLabels": {"namespaces": "n"}}}),
                "0",
            ),
            (json!({"topologyKey": "namespaceSelector"}), "0"),
        ];
        for (term, pods) in terms {
            check(json!({kind: {required: [term]}}), pods);
            let weighted = json!({"weight": 1, "podAffinityTerm": term});
            check(json!({kind: {preferred: [weighted]}}), pods);
        }
    }
    check(json!({}), "0");
    let expression = json!({"key": "namespaces", "operator": "Exists"});
    check(
        json!({"nodeAffinity": {required: {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}}),
        "0",
    );
}

#[test]
fn usage_by_kind_and_scope() {
    let quota =
        |spec| serde_json::from_value(json!({"metadata": {"name": "q"}, "spec": spec})).unwrap();
    let pod = |phase: &str, cpu: &str| {
        Arc::new(
            serde_json::from_value(json!({"spec": {"containers": [{"name": "c",
        "resources": {"requests": {"cpu": cpu}}}]}, "status": {"phase": phase}}))
            .unwrap(),
        )
    };
    let service = json!({"spec": {"type": "NodePort", "ports": [{"port": 1}, {"port": 2}]}});
    let claim = json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}}});
    let observed = Observed {
        pods: vec![
            pod("Running", "500m"),
            pod("Running", "1"),
            pod("Succeeded", "9"),
        ],
        services: vec![Arc::new(serde_json::from_value(service).unwrap())],
        claims: vec![Arc::new(serde_json::from_value(claim).unwrap())],
        devices: None,
        counts: vec![("secrets".into(), 3), ("replicasets.apps".into(), 2)],
    };
    let hard = json!({"pods": "9", "count/pods": "9", "cpu": "9", "requests.cpu": "9", "services.nodeports": "9", "secrets": "9",
        "requests.storage": "9Gi", "gold.storageclass.storage.k8s.io/requests.storage": "9Gi", "count/widgets.example.com": "9", "count/gadgets.example.com": "9",
        "count/replicasets.apps": "9"});
    let mut counted: ResourceQuota = quota(json!({"hard": hard}));
    let status = sync(&counted, &observed, now()).unwrap();
    assert_eq!(
        serde_json::to_value(&status.used).unwrap(),
        json!({"pods": "2", "count/pods": "3", "cpu": "1500m", "requests.cpu": "1500m",
        "services.nodeports": "2", "secrets": "3", "count/replicasets.apps": "2", "requests.storage": "1Gi", "gold.storageclass.storage.k8s.io/requests.storage": "1Gi"})
    );
    counted.status = Some(status);
    assert_eq!(sync(&counted, &observed, now()), None);
    // A kind that nobody can count just now keeps what was counted before.
    let used = counted.status.as_mut().unwrap().used.as_mut().unwrap();
    used.insert(
        "count/gadgets.example.com".into(),
        serde_json::from_value(json!("4")).unwrap(),
    );
    assert_eq!(sync(&counted, &observed, now()), None);
    for (scope, pods) in [
        ("BestEffort", "0"),
        ("NotBestEffort", "2"),
        ("Terminating", "0"),
        ("NotTerminating", "2"),
    ] {
        let status = sync(
            &quota(json!({"hard": {"pods": "9"}, "scopes": [scope]})),
            &observed,
            now(),
        )
        .unwrap();
        assert_eq!(status.used.unwrap()["pods"].0, pods, "{scope}");
    }
}

#[test]
fn devices_of_claims_are_measured() {
    let claim = |name: &str, requests: serde_json::Value, pod: Option<&str>| {
        let owner = json!([{ "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": pod, "controller": true }]);
        let metadata = match pod {
            Some(_) => json!({ "name": name, "ownerReferences": owner,
                "annotations": { "resource.kubernetes.io/extended-resource-claim": "true" } }),
            None => json!({ "name": name }),
        };
        let claim =
            json!({ "metadata": metadata, "spec": { "devices": { "requests": requests } } });
        Arc::new(serde_json::from_value(claim).unwrap())
    };
    let class = |name: &str, resource: Option<&str>| {
        let class =
            json!({ "metadata": { "name": name }, "spec": { "extendedResourceName": resource } });
        Arc::new(serde_json::from_value(class).unwrap())
    };
    let exactly = |class: &str, mode: &str, count: Option<i64>| json!([{ "name": "r", "exactly": { "deviceClassName": class, "allocationMode": mode, "count": count } }]);
    let either = json!([{ "name": "r", "firstAvailable": [
        { "name": "a", "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2 },
        { "name": "b", "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 4 },
        { "name": "c", "deviceClassName": "nic", "allocationMode": "ExactCount", "count": 1 },
    ] }]);
    let pod = json!({
        "metadata": { "name": "p", "uid": "pod" },
        "spec": { "containers": [{ "name": "c", "resources": { "requests": {
            "example.com/gpu": "3", "deviceclass.resource.kubernetes.io/nic": "1",
        } } }] },
    });
    let devices = Devices {
        claims: vec![
            claim("one", exactly("gpu", "ExactCount", Some(2)), None),
            claim("all", exactly("nic", "All", None), None),
            claim("either", either, None),
            // The pod is charged for three of these already.
            claim("pods", exactly("gpu", "ExactCount", Some(3)), Some("pod")),
        ],
        classes: vec![class("gpu", Some("example.com/gpu")), class("nic", None)],
    };
    let mut observed = Observed {
        pods: vec![Arc::new(serde_json::from_value(pod).unwrap())],
        devices: Some(devices),
        ..Observed::default()
    };
    let hard = json!({
        "gpu.deviceclass.resource.k8s.io/devices": "99", "nic.deviceclass.resource.k8s.io/devices": "99",
        "none.deviceclass.resource.k8s.io/devices": "99", "requests.example.com/gpu": "99",
        "requests.deviceclass.resource.kubernetes.io/nic": "99",
    });
    let mut quota: ResourceQuota =
        serde_json::from_value(json!({ "spec": { "hard": hard } })).unwrap();
    let used = |quota: &ResourceQuota, observed: &Observed| {
        let used = sync(quota, observed, now()).unwrap().used;
        serde_json::to_value(used).unwrap()
    };
    assert_eq!(
        used(&quota, &observed),
        json!({
            "gpu.deviceclass.resource.k8s.io/devices": "9", "nic.deviceclass.resource.k8s.io/devices": "33",
            "none.deviceclass.resource.k8s.io/devices": "0", "requests.example.com/gpu": "9",
            "requests.deviceclass.resource.kubernetes.io/nic": "34",
        })
    );
    // Only what a quota is about is looked at; without the API nothing can be said.
    observed.devices = None;
    let before = json!({ "gpu.deviceclass.resource.k8s.io/devices": "5" });
    quota.status = serde_json::from_value(json!({ "used": before })).unwrap();
    assert_eq!(
        used(&quota, &observed),
        json!({
            "gpu.deviceclass.resource.k8s.io/devices": "5", "requests.example.com/gpu": "3",
            "requests.deviceclass.resource.kubernetes.io/nic": "1",
        })
    );
}

#[test]
fn a_claim_uses_what_it_was_given_if_that_is_more() {
    let quota: ResourceQuota =
        serde_json::from_value(json!({"spec": {"hard": {"requests.storage": "9Ti"}}})).unwrap();
    for (asked, given, used) in [
        ("10Gi", json!({}), "10Gi"),
        ("10Gi", json!({"storage": "100Gi"}), "100Gi"),
        ("10Gi", json!({"storage": "5Gi"}), "10Gi"),
    ] {
        let claim = json!({
            "spec": {"resources": {"requests": {"storage": asked}}},
            "status": {"allocatedResources": given},
        });
        let observed = Observed {
            claims: vec![Arc::new(serde_json::from_value(claim).unwrap())],
            ..Observed::default()
        };
        let status = sync(&quota, &observed, now()).unwrap();
        assert_eq!(status.used.unwrap()["requests.storage"].0, used, "{given}");
    }
}

#[test]
fn claims_have_the_scope_of_their_attributes() {
    let claim = |spec: Option<&str>, current: Option<&str>, target: Option<&str>| {
        let modify = target
            .map(|name| json!({"status": "Pending", "targetVolumeAttributesClassName": name}));
        let claim = json!({
            "spec": {"volumeAttributesClassName": spec},
            "status": {"currentVolumeAttributesClassName": current, "modifyVolumeStatus": modify},
        });
        Arc::new(serde_json::from_value(claim).unwrap())
    };
    let observed = Observed {
        claims: vec![
            claim(None, None, None),
            claim(Some("gold"), None, None),
            claim(Some("silver"), Some("gold"), Some("silver")),
            claim(Some("silver"), Some("silver"), None),
        ],
        ..Observed::default()
    };
    for (operator, values, claims) in [
        ("In", json!(["gold"]), "2"),
        ("In", json!(["gold", "silver"]), "3"),
        ("In", json!(["lead"]), "0"),
        ("NotIn", json!(["gold"]), "3"),
        ("Exists", json!([]), "3"),
        ("DoesNotExist", json!([]), "1"),
    ] {
        let scope =
            json!({"scopeName": "VolumeAttributesClass", "operator": operator, "values": values});
        let quota: ResourceQuota = serde_json::from_value(json!({"spec": {
            "hard": {"persistentvolumeclaims": "9", "pods": "9"},
            "scopeSelector": {"matchExpressions": [scope]},
        }}))
        .unwrap();
        let used = sync(&quota, &observed, now()).unwrap().used;
        assert_eq!(
            serde_json::to_value(used).unwrap(),
            json!({"persistentvolumeclaims": claims, "pods": "0"}),
            "{operator} {values}"
        );
    }
}

#[test]
fn a_charge_is_more_of_anything() {
    let used = |used: &serde_json::Value| {
        serde_json::from_value(json!({"status": {"used": used}})).unwrap()
    };
    for (old, new, expected) in [
        (json!({"pods": "1"}), json!({"pods": "2"}), true),
        (
            json!({"pods": "2", "cpu": "1"}),
            json!({"pods": "1", "cpu": "1001m"}),
            true,
        ),
        (json!({}), json!({"pods": "1"}), true),
        (json!({"pods": "2"}), json!({"pods": "1"}), false),
        (json!({"cpu": "1"}), json!({"cpu": "1000m"}), false),
        (json!({"pods": "2"}), json!({}), false),
    ] {
        assert_eq!(
            is_charged(&used(&old), &used(&new)),
            expected,
            "{old} {new}"
        );
    }
}
