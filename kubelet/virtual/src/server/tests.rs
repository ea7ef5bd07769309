use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use component_base::clock::Clock;
use component_base::health::Health;
use component_base::serving::Attributes;
use component_base::shutdown::Shutdown;
use controller_runtime::testing::FakeApi;
use http::Request;
use http_body_util::BodyExt as _;
use kubelet_provider::Provider;
use serde_json::json;
use tower::ServiceExt as _;

use super::{Serving, attributes, router};
use crate::simulated::configuration::SimulatedConfiguration;
use crate::simulated::scripted::Scripted;
use crate::testing::{Noting, Rig, eventually, nodes, pod};

async fn rig(provider: Arc<dyn Provider>, shutdown: Shutdown) -> (Rig, axum::Router) {
    let other = pod("b", json!({}), json!({ "nodeName": "v-1" }));
    let first = vec![pod("a", json!({}), json!({})), other];
    let rig = Rig::start(FakeApi::new(), provider.clone(), shutdown, first).await;
    let pods = rig.pods.clone();
    eventually("pods are known", || pods.count().0 == 2).await;
    let serving = Serving {
        pods: rig.pods.clone(),
        nodes: nodes(&rig.api, 40),
        provider,
        health: Health::new(),
        streaming_idle_timeout: Duration::from_secs(1),
        shutdown: rig.shutdown.token().clone(),
    };
    (rig, router(serving))
}

async fn get(router: &axum::Router, path: &str) -> (u16, String) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn what_a_provider_has_not_is_a_clear_answer() {
    let (_rig, router) = rig(Arc::new(Noting::default()), Shutdown::new()).await;
    let check = async |path: &str, status: u16, text: &str| {
        let (got, body) = get(&router, path).await;
        assert_eq!(got, status, "{path}: {body}");
        assert!(body.contains(text), "{path}: {body}");
    };
    check(
        "/containerLogs/ns/a/c",
        501,
        "this provider does not support logs",
    )
    .await;
    check("/containerLogs/ns/x/c", 404, "pod \"x\" does not exist").await;
    check("/containerLogs/ns/a/x", 404, "container \"x\" not found").await;
    check("/exec/ns/a/c?output=1", 400, "at least one command").await;
    check(
        "/exec/ns/a/c?command=ls",
        400,
        "at least 1 of stdin, stdout, stderr",
    )
    .await;
    check(
        "/exec/ns/a/uid-of-b/c?command=ls&output=1",
        404,
        "pod not found",
    )
    .await;
    check("/stats/summary", 400, "?node=NAME").await;
    check("/stats/summary?node=v-7", 404, "\"v-7\"").await;
    check("/stats/summary?node=v-1", 501, "does not support stats").await;
    check("/pods", 501, "ask the API server").await;
    check("/run/ns/a/c", 501, "run").await;
    check("/healthz", 200, "ok").await;
    check("/metrics", 200, "virtual_kubelet_pods 2").await;
}

#[tokio::test]
async fn logs_are_the_scripts_and_running_pods_are_told() {
    let shutdown = Shutdown::new();
    let config = SimulatedConfiguration {
        logs: ["one", "two", "three"].map(str::to_owned).into(),
        ..SimulatedConfiguration::default()
    };
    let provider = Arc::new(Scripted::new(config, Clock::real(), shutdown.clone()));
    let (rig, router) = rig(provider, shutdown).await;
    eventually("it runs", || rig.phase("a") == "Running").await;
    assert_eq!(
        get(&router, "/containerLogs/ns/a/c?tailLines=2").await,
        (200, "two\nthree\n".to_owned())
    );
    let (_, text) = get(
        &router,
        "/containerLogs/ns/a/c?timestamps=true&limitBytes=40",
    )
    .await;
    assert_eq!(text.len(), 40);
    assert!(text.contains("Z one\n"), "{text}");
    let (_, text) = get(&router, "/runningpods").await;
    assert!(text.contains("\"uid-of-b\""), "{text}");
    // Who follows is answered until the pod ends.
    let following = tokio::spawn({
        let router = router.clone();
        async move { get(&router, "/containerLogs/ns/a/c?follow=true").await }
    });
    rig.echo("a");
    rig.delete("a", 0);
    let followed = tokio::time::timeout(Duration::from_secs(10), following).await;
    assert_eq!(
        followed.unwrap().unwrap(),
        (200, "one\ntwo\nthree\n".to_owned())
    );
}

#[tokio::test]
async fn permission_is_asked_for_at_the_pods_node() {
    let (rig, _router) = rig(Arc::new(Noting::default()), Shutdown::new()).await;
    let check = |path: &str, node: &str, expect: &[&str]| {
        let (head, ()) = Request::get(path).body(()).unwrap().into_parts();
        let got = attributes(&rig.pods, None, &head);
        let asked: Vec<(&str, &str)> = got
            .iter()
            .map(|a| match a {
                Attributes::Resource {
                    name, subresource, ..
                } => (name.as_str(), subresource.as_str()),
                Attributes::NonResource { .. } => panic!("a node's subresource was expected"),
            })
            .collect();
        let expect: Vec<(&str, &str)> = expect.iter().map(|s| (node, *s)).collect();
        assert_eq!(asked, expect, "{path}");
    };
    check("/containerLogs/ns/a/c", "v-0", &["proxy"]);
    check("/exec/ns/b/c?command=x&node=v-0", "v-1", &["proxy"]);
    check("/exec/ns/unknown/c", "", &["proxy"]);
    check("/stats/summary?node=v-1", "v-1", &["stats"]);
    check("/metrics?node=v-1", "", &["metrics"]);
    check("/runningpods/", "", &["pods", "proxy"]);
    check("//exec/ns/b/c", "", &["proxy"]);
    let (head, ()) = Request::get("/metrics").body(()).unwrap().into_parts();
    let got = attributes(&rig.pods, Some("alone"), &head);
    assert!(matches!(&got[0], Attributes::Resource { name, .. } if name == "alone"));
}
