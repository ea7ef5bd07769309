//! Requests against the routes, over a runtime in memory and real log files.

use std::collections::BTreeMap;
use std::io::Write as _;

use axum::body::Body;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use runtime::api::{
    ContainerConfig, ContainerMetadata, ExecSyncResponse, PodSandboxConfig, PodSandboxMetadata,
};
use runtime::fake::FakeRuntime;
use tower::ServiceExt as _;

use super::*;
use crate::cm::cgroup::{CgroupManager, Hierarchies};
use crate::configuration::KubeletConfiguration;
use crate::pod::label;

struct TestContext {
    runtime: Arc<dyn Runtime>,
    pod: Arc<Pod>,
    paths: Paths,
    manager: ContainerManager,
    system_logs: std::path::PathBuf,
}

impl ServerContext for TestContext {
    fn node_name(&self) -> &str {
        "node"
    }
    fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.runtime
    }
    fn pods(&self) -> Vec<Arc<Pod>> {
        vec![self.pod.clone()]
    }
    fn pod_by_name(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        (namespace == "ns" && name == "web").then(|| self.pod.clone())
    }
    fn sync_loop_health(&self) -> Result<(), String> {
        Err("sync loop took longer than expected".to_owned())
    }
    fn configz(&self) -> serde_json::Value {
        serde_json::json!({ "maxPods": 110 })
    }
    fn paths(&self) -> &Paths {
        &self.paths
    }
    fn container_manager(&self) -> &ContainerManager {
        &self.manager
    }
    fn claim_directory(&self, _: &str, _: &str) -> Option<std::path::PathBuf> {
        None
    }
    fn driver_usages(&self) -> futures::future::BoxFuture<'_, crate::server::DriverUsages> {
        Box::pin(async { crate::server::DriverUsages::new() })
    }
    fn system_log_directory(&self) -> &Path {
        &self.system_logs
    }
}

struct Fixture {
    router: Router,
    runtime: FakeRuntime,
    container: String,
    log: std::path::PathBuf,
    _directory: tempfile::TempDir,
}

/// A pod `ns/web` with a running container `main` and a log of three lines.
async fn fixture(options: ServerOptions) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let fake = FakeRuntime::new();
    fake.pull_image("img", &[]).await.unwrap();
    let labels = BTreeMap::from([
        (label::POD_NAME.to_owned(), "web".to_owned()),
        (label::POD_NAMESPACE.to_owned(), "ns".to_owned()),
        (label::POD_UID.to_owned(), "u1".to_owned()),
        (label::CONTAINER_NAME.to_owned(), "main".to_owned()),
    ]);
    let sandbox = PodSandboxConfig {
        metadata: PodSandboxMetadata {
            name: "web".into(),
            uid: "u1".into(),
            namespace: "ns".into(),
            attempt: 0,
        },
        log_directory: root.join("pods/ns_web_u1"),
        labels: labels.clone(),
        ..PodSandboxConfig::default()
    };
    let sandbox_id = fake.run_pod_sandbox(&sandbox).await.unwrap();
    let config = ContainerConfig {
        metadata: ContainerMetadata {
            name: "main".into(),
            attempt: 0,
        },
        image: fake.list_images().await.unwrap()[0].id.clone(),
        user_specified_image: "img".into(),
        log_path: "main/0.log".into(),
        labels,
        ..ContainerConfig::default()
    };
    let container = fake.create_container(&sandbox_id, &config).await.unwrap();
    fake.start_container(&container).await.unwrap();
    let log = root.join("pods/ns_web_u1/main/0.log");
    std::fs::create_dir_all(log.parent().unwrap()).unwrap();
    std::fs::write(
        &log,
        "2026-01-01T00:00:01Z stdout F one\n2026-01-01T00:00:02Z stderr F two\n2026-01-01T00:00:03Z stdout F three\n",
    )
    .unwrap();
    let pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "u1"},
        "spec": {"containers": [{"name": "main", "image": "img"}, {"name": "slow", "image": "img"}]},
        "status": {"containerStatuses": [
            {"name": "main", "image": "img", "imageID": "", "ready": true, "restartCount": 0,
             "containerID": format!("youki://{container}"), "state": {"running": {}}},
            {"name": "slow", "image": "img", "imageID": "", "ready": false, "restartCount": 0,
             "state": {"waiting": {"reason": "ContainerCreating"}}},
        ]},
    }))
    .unwrap();
    let cgroups = CgroupManager::with_hierarchies(Hierarchies::V2(root.join("cgroup")));
    let context = TestContext {
        runtime: Arc::new(fake.clone()),
        pod: Arc::new(pod),
        paths: Paths::new(root.join("kubelet"), root.join("pods")),
        manager: ContainerManager::new(&KubeletConfiguration::default(), cgroups, true),
        system_logs: root.to_owned(),
    };
    let router = router(Arc::new(context), options, CancellationToken::new());
    Fixture {
        router,
        runtime: fake,
        container,
        log,
        _directory: directory,
    }
}

impl Fixture {
    async fn request(&self, method: Method, path: &str) -> (StatusCode, String) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(Body::empty())
            .unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn check(&self, path: &str, status: u16, expect: &str) {
        let (got, text) = self.request(Method::GET, path).await;
        assert_eq!((got.as_u16(), text.as_str()), (status, expect), "{path}");
    }
}

#[tokio::test]
async fn logs() {
    let fixture = fixture(ServerOptions::default()).await;
    let base = "/containerLogs/ns/web/main";
    fixture.check(base, 200, "one\ntwo\nthree\n").await;
    fixture
        .check(&format!("{base}?tailLines=1"), 200, "three\n")
        .await;
    fixture
        .check(&format!("{base}?tail=all&limitBytes=5"), 200, "one\nt")
        .await;
    fixture
        .check(&format!("{base}?stream=Stderr"), 200, "two\n")
        .await;
    let since = format!("{base}?sinceTime=2026-01-01T00:00:03Z&timestamps=true");
    fixture
        .check(&since, 200, "2026-01-01T00:00:03.000000000Z three\n")
        .await;
    fixture
        .check(
            &format!("{base}?tailLines=x"),
            400,
            r#"{"message": "Unable to decode query."}"#,
        )
        .await;
    fixture
        .check(
            &format!("{base}?limitBytes=0"),
            422,
            r#"{"message": "Invalid request."}"#,
        )
        .await;
    let text = "previous terminated container \"main\" in pod \"web\" not found";
    fixture
        .check(&format!("{base}?previous=true"), 400, text)
        .await;
    let text = "container \"slow\" in pod \"web\" is waiting to start: ContainerCreating";
    fixture.check("/containerLogs/ns/web/slow", 400, text).await;
    fixture
        .check(
            "/containerLogs/ns/web/no",
            404,
            "container \"no\" not found in pod \"web\"",
        )
        .await;
    fixture
        .check(
            "/containerLogs/ns/no/main",
            404,
            "pod \"no\" does not exist",
        )
        .await;
    // The runtime may forget a container before its log is removed.
    fixture
        .runtime
        .stop_container(&fixture.container, Duration::ZERO)
        .await
        .unwrap();
    fixture
        .runtime
        .remove_container(&fixture.container)
        .await
        .unwrap();
    fixture.check(base, 200, "one\ntwo\nthree\n").await;
    std::fs::remove_file(&fixture.log).unwrap();
    let (status, text) = fixture.request(Method::GET, base).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
}

#[tokio::test]
async fn logs_followed_over_a_rotation_to_the_end() {
    let fixture = fixture(ServerOptions::default()).await;
    let request = Request::builder()
        .uri("/containerLogs/ns/web/main?follow=true&tailLines=1")
        .body(Body::empty())
        .unwrap();
    let mut body = fixture
        .router
        .clone()
        .oneshot(request)
        .await
        .unwrap()
        .into_body();
    let mut text = String::new();
    let mut wait_for = async |what: &str, end: bool| {
        let wait = async {
            while end || !text.contains(what) {
                match body.frame().await {
                    Some(frame) => {
                        let data = frame.unwrap().into_data().unwrap();
                        text.push_str(std::str::from_utf8(&data).unwrap());
                    }
                    None => break,
                }
            }
            assert!(text.contains(what), "{what} in {text}");
        };
        tokio::time::timeout(Duration::from_secs(10), wait)
            .await
            .expect("nothing came");
    };
    wait_for("three\n", false).await;
    let append = |text: &str| {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&fixture.log)
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    append("2026-01-01T00:00:04Z stdout F fo");
    append("ur\n");
    wait_for("four\n", false).await;
    append("2026-01-01T00:00:05Z stdout F five\n");
    std::fs::rename(
        &fixture.log,
        fixture.log.with_extension("log.20260101-000005"),
    )
    .unwrap();
    append("2026-01-01T00:00:06Z stdout F six\n");
    wait_for("six\n", false).await;
    append("2026-01-01T00:00:07Z stdout F last words\n");
    fixture.runtime.exit(&fixture.container, 0);
    wait_for("last words\n", true).await;
    assert_eq!(text, "three\nfour\nfive\nsix\nlast words\n");
}

#[tokio::test]
async fn pods_health_and_configuration() {
    let fixture = fixture(ServerOptions::default()).await;
    let json = async |path: &str| -> serde_json::Value {
        let (status, text) = fixture.request(Method::GET, path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
        serde_json::from_str(&text).unwrap()
    };
    let list = json("/pods").await;
    assert_eq!(list["kind"], "PodList");
    assert_eq!(list["items"][0]["metadata"]["uid"], "u1");
    let list = json("/runningpods/").await;
    assert_eq!(list["items"][0]["metadata"]["name"], "web");
    assert_eq!(list["items"][0]["spec"]["containers"][0]["image"], "img");
    assert_eq!(json("/configz").await["kubeletconfig"]["maxPods"], 110);
    fixture.check("/healthz/ping", 200, "ok").await;
    let text = "internal server error: sync loop took longer than expected\n";
    fixture.check("/healthz/syncloop", 500, text).await;
    assert_eq!(
        fixture.request(Method::GET, "/healthz").await.0,
        StatusCode::INTERNAL_SERVER_ERROR
    );
    fixture.check("/healthz?exclude=syncloop", 200, "ok").await;
    fixture
        .check("/healthz/no", 404, "404 page not found\n")
        .await;
}

#[tokio::test]
async fn stats_and_metrics() {
    let fixture = fixture(ServerOptions::default()).await;
    let (status, text) = fixture.request(Method::GET, "/stats/summary").await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let summary: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(summary["node"]["nodeName"], "node");
    assert!(summary["node"]["memory"]["workingSetBytes"].as_u64() > Some(0));
    assert_eq!(summary["pods"][0]["podRef"]["name"], "web");
    assert_eq!(summary["pods"][0]["containers"][0]["name"], "main");
    assert!(summary["pods"][0]["containers"][0]["logs"]["usedBytes"].as_u64() > Some(0));
    let (_, text) = fixture.request(Method::GET, "/metrics/resource").await;
    for line in [
        "container_cpu_usage_seconds_total{container=\"main\",namespace=\"ns\",pod=\"web\"} 0 ",
        "resource_scrape_error 0\n",
        "node_memory_working_set_bytes ",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    let (_, text) = fixture.request(Method::GET, "/metrics/cadvisor").await;
    assert!(
        text.contains("container_memory_working_set_bytes{container=\"main\",id=\""),
        "{text}"
    );
    assert!(text.contains("machine_cpu_cores "));
    let (_, text) = fixture.request(Method::GET, "/metrics").await;
    assert!(
        text.contains("process_") && !text.contains("prober_probe_total"),
        "{text}"
    );
    assert_eq!(
        fixture.request(Method::GET, "/metrics/probes").await.0,
        StatusCode::OK
    );
}

#[tokio::test]
async fn commands() {
    let fixture = fixture(ServerOptions::default()).await;
    fixture.runtime.set_exec(|_, command| {
        Ok(ExecSyncResponse {
            stdout: command.join("|").into_bytes(),
            stderr: b"!".to_vec(),
            exit_code: i32::from(command[0] == "false"),
        })
    });
    let run = |path: &'static str| fixture.request(Method::POST, path);
    assert_eq!(
        run("/run/ns/web/main?cmd=ls%20-l").await,
        (StatusCode::OK, "ls|-l!".into())
    );
    assert_eq!(run("/run/ns/web/u1/main?cmd=ls").await.0, StatusCode::OK);
    assert_eq!(
        run("/run/ns/web/u2/main?cmd=ls").await,
        (StatusCode::NOT_FOUND, "pod not found".into())
    );
    let (status, text) = run("/run/ns/web/main?cmd=false").await;
    assert_eq!(
        (status.as_u16(), text.as_str()),
        (500, "command 'false' exited with 1: !")
    );
    let text = "you must specify at least 1 of stdin, stdout, stderr";
    assert_eq!(
        run("/exec/ns/web/main?command=ls").await,
        (StatusCode::BAD_REQUEST, text.into())
    );
    let (status, text) = run("/exec/ns/web/gone?command=ls&output=1").await;
    assert_eq!(
        (status.as_u16(), text.as_str()),
        (500, "container not found (\"gone\")")
    );
    let (status, text) = run("/exec/ns/web/main?command=ls&output=1").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(
        text.starts_with("unable to upgrade: header X-Stream-Protocol-Version"),
        "{text}"
    );
    let (status, text) = run("/checkpoint/ns/web/main").await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(text.contains("not supported by this runtime"));
}

#[tokio::test]
async fn what_is_disabled_says_so() {
    let options = ServerOptions {
        enable_debugging_handlers: false,
        ..ServerOptions::default()
    };
    let fixture = fixture(options).await;
    for path in [
        "/containerLogs/ns/web/main",
        "/exec/ns/web/main",
        "/logs/",
        "/runningpods/",
    ] {
        fixture
            .check(path, 405, "Debug endpoints are disabled.")
            .await;
    }
    assert_eq!(
        fixture.request(Method::GET, "/pods").await.0,
        StatusCode::OK
    );
}
