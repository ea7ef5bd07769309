use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use serde_json::{Value, json};

use super::sync::{Write, sync};

fn service(spec: Value) -> Service {
    serde_json::from_value(
        json!({"metadata": {"name": "s", "namespace": "n", "labels": {"x": "y"}}, "spec": spec}),
    )
    .unwrap()
}

fn pod(name: &str, ip: &str, ready: bool) -> Arc<Pod> {
    let ready = if ready { "True" } else { "False" };
    Arc::new(serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "n", "uid": name},
        "spec": {"nodeName": "node", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": ready}]},
    })).unwrap())
}

fn written(write: Option<Write>) -> Endpoints {
    match write.unwrap() {
        Write::Create(e) | Write::Update(e) => *e,
    }
}

#[test]
fn packs_by_ports_and_readiness_and_rests_when_right() {
    let service = service(
        json!({"clusterIP": "10.0.0.1", "selector": {"a": "b"}, "ports": [
            {"name": "one", "port": 80, "targetPort": "http"}, {"name": "two", "port": 81, "targetPort": 81},
        ]}),
    );
    let mut ended = (*pod("c", "10.1.0.3", true)).clone();
    ended.status.as_mut().unwrap().phase = Some("Succeeded".into());
    let pods = [
        pod("b", "10.1.0.2", true),
        pod("a", "10.1.0.1", false),
        Arc::new(ended),
    ];
    let endpoints = written(sync(&service, &pods, None, None));
    let value = serde_json::to_value(&endpoints).unwrap();
    assert_eq!(value["subsets"].as_array().unwrap().len(), 1);
    assert_eq!(value["subsets"][0]["addresses"][0]["ip"], "10.1.0.2");
    assert_eq!(
        value["subsets"][0]["notReadyAddresses"][0]["ip"],
        "10.1.0.1"
    );
    assert_eq!(
        value["subsets"][0]["ports"],
        json!([
        {"name": "one", "port": 8080, "protocol": "TCP"}, {"name": "two", "port": 81, "protocol": "TCP"}])
    );
    assert_eq!(
        value["metadata"]["labels"],
        json!({"x": "y", "endpoints.kubernetes.io/managed-by": "endpoint-controller"})
    );
    assert_eq!(sync(&service, &pods, Some(&endpoints), None), None);
    let emptied = sync(&service, &[], Some(&endpoints), None);
    assert_eq!(written(emptied).subsets, None);
}

#[test]
fn headless_without_ports_and_over_capacity() {
    let headless = service(json!({"clusterIP": "None", "selector": {"a": "b"}}));
    let pods: Vec<_> = (0..1001)
        .map(|i| {
            pod(
                &format!("p{i}"),
                &format!("10.1.{}.{}", i / 250, i % 250 + 1),
                true,
            )
        })
        .collect();
    let endpoints = written(sync(&headless, &pods, None, None));
    let subset = &endpoints.subsets.as_ref().unwrap()[0];
    assert_eq!(
        (subset.addresses.as_ref().unwrap().len(), &subset.ports),
        (1000, &None)
    );
    assert_eq!(
        endpoints.metadata.annotations.as_ref().unwrap()["endpoints.kubernetes.io/over-capacity"],
        "truncated"
    );
    assert!(
        endpoints
            .metadata
            .labels
            .as_ref()
            .unwrap()
            .contains_key("service.kubernetes.io/headless")
    );
    assert_eq!(sync(&headless, &pods, Some(&endpoints), None), None);
}
