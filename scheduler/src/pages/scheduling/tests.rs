//! The page's data, who may read it, what a browser is told, and what becomes of slow readers.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::routing::post;
use backend::queue::{PodInQueue, QueueCounts, WaitingPod};
use component_base::client::ClientConfig;
use component_base::serving::{
    AccessControl, Authorization, DelegatedAuthentication, DelegatedAuthorization, SecureServer,
    listen,
};
use component_base::shutdown::Shutdown;
use component_base::tls::{ServerTls, TlsOptions};
use framework::testing::{make_node, make_pod};
use http_body_util::BodyExt as _;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::decisions::{Decision, KEPT, Outcome};
use crate::testing::Bed;

mod browser;

fn pages_of(bed: &Bed) -> Pages {
    Pages {
        scheduler: Arc::clone(&bed.scheduler),
        active: Arc::new(AtomicBool::new(true)),
        turn: Arc::new(Semaphore::new(1)),
    }
}

async fn serve(router: Router) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, router).await });
    port
}

fn client(url: &str, change: impl FnOnce(&mut kube::Config)) -> kube::Client {
    let mut config = kube::Config::new(url.parse().unwrap());
    change(&mut config);
    ClientConfig::new("test").build_from(config).unwrap()
}

struct Answer {
    code: u16,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{}", self.body))
    }
}

async fn get_path(client: &kube::Client, path: &str) -> Answer {
    let request = http::Request::get(path)
        .body(kube::client::Body::empty())
        .unwrap();
    let (parts, body) = client.send(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer {
        code: parts.status.as_u16(),
        headers: parts.headers,
        body: String::from_utf8(body.to_vec()).unwrap(),
    }
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn the_state_in_rows() {
    let gpu = make_node("b")
        .capacity(&[
            ("cpu", "4"),
            ("memory", "1Gi"),
            ("pods", "10"),
            ("x.io/gpu", "2"),
        ])
        .taint("gpu", "yes", "NoSchedule")
        .taint("new", "", "NoExecute")
        .unschedulable(true)
        .info([make_pod("p")
            .uid("p")
            .req(&[("cpu", "1500m"), ("x.io/gpu", "1")])
            .info()]);
    let plain = make_node("a").capacity(&[("cpu", "2"), ("pods", "10")]);
    let gone = framework::NodeInfo::imaginary("gone");
    let nodes = [gpu, plain.info([]), gone].map(Arc::new).to_vec();
    let condition = |pod: &mut k8s_openapi::api::core::v1::Pod| {
        let condition = json!({"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"});
        let status = pod.status.get_or_insert_default();
        status.conditions = Some(vec![serde_json::from_value(condition).unwrap()]);
    };
    let waiting = |name: &str, seconds, queued| WaitingPod {
        pod: make_pod(name).uid(name).with(condition).info(),
        queued,
        waited: Duration::from_secs(seconds),
    };
    let rejected = PodInQueue {
        place: "unschedulable",
        attempts: 3,
        rejected_by: vec!["NodeResourcesFit"],
        ..PodInQueue::default()
    };
    let backs_off = PodInQueue {
        place: "backoff",
        attempts: 1,
        backoff: Some(Duration::from_millis(1500)),
        ..PodInQueue::default()
    };
    let waiting = vec![waiting("new", 1, backs_off), waiting("old", 60, rejected)];
    let counts = QueueCounts {
        backoff: 1,
        unschedulable: 4,
        in_flight_pods: 2,
        ..QueueCounts::default()
    };
    let now = at("2026-11-30T12:00:00Z");
    let state = state::state(now, vec!["default".into()], nodes, waiting, counts);
    let want = json!({
        "time": "2026-11-30T12:00:00Z",
        "profiles": ["default"],
        "resources": [
            {"name": "cpu", "unit": "milli"}, {"name": "memory", "unit": "bytes"}, {"name": "ephemeral-storage", "unit": "bytes"},
            {"name": "pods", "unit": "count"}, {"name": "x.io/gpu", "unit": "count"},
        ],
        "nodes": [
            {"name": "a", "allocatable": [2000, 0, 0, 10, null], "requested": [0, 0, 0, 0, 0]},
            {"name": "b", "allocatable": [4000, 1 << 30, 0, 10, 2], "requested": [1500, 0, 0, 1, 1],
             "unschedulable": true, "taints": ["gpu=yes:NoSchedule", "new:NoExecute"]},
        ],
        "nodesOmitted": 0,
        "queue": {"active": 0, "backoff": 1, "unschedulable": 4, "gated": 0, "inFlight": 2},
        "waiting": [
            {"namespace": "default", "name": "old", "queue": "unschedulable", "since": "2026-11-30T11:59:00Z", "attempts": 3,
             "rejectedBy": ["NodeResourcesFit"], "message": "0/2 nodes are available"},
            {"namespace": "default", "name": "new", "queue": "backoff", "since": "2026-11-30T11:59:59Z", "attempts": 1,
             "rejectedBy": [], "backoffMilliseconds": 1500, "message": "0/2 nodes are available"},
        ],
        "waitingOmitted": 3,
    });
    assert_eq!(serde_json::to_value(state).unwrap(), want);
}

#[test]
fn decisions_in_rows() {
    let (now, instant) = (at("2026-11-30T12:00:00Z"), Instant::now());
    let row = |outcome| {
        let decision = Decision {
            sequence: 7,
            began: instant,
            took: Duration::from_micros(90),
            namespace: "default".into(),
            name: "p".into(),
            outcome,
        };
        let later = instant + Duration::from_secs(2);
        serde_json::to_value(state::decision_row(decision, (now, later))).unwrap()
    };
    let placed = Outcome::Node {
        node: "n".into(),
        score: Some(301),
        feasible_nodes: Some(4),
    };
    assert_eq!(
        row(placed),
        json!({"sequence": 7, "time": "2026-11-30T11:59:58Z", "microseconds": 90, "namespace": "default", "name": "p",
            "result": "node", "node": "n", "score": 301, "feasibleNodes": 4})
    );
    let failed = |error| Outcome::Failed {
        error,
        plugins: vec!["NodeName"],
        message: "no".into(),
    };
    let rejected = row(failed(false));
    assert_eq!(
        (&rejected["result"], &rejected["rejectedBy"]),
        (&json!("rejected"), &json!(["NodeName"]))
    );
    assert_eq!(row(failed(true))["result"], "error");
}

/// A node with a pod, and a pod that is too large.
async fn bed() -> Bed {
    let pods = [
        make_pod("large").uid("large").req(&[("cpu", "4")]).info(),
        make_pod("placed").uid("placed").req(&[("cpu", "1")]).info(),
    ];
    let mut bed = Bed::new(&pods);
    let node = make_node("n")
        .label("zone", "a")
        .capacity(&[("cpu", "1"), ("pods", "10")]);
    bed.scheduler.cache.add_node(node.build());
    for pod in pods.into_iter().rev() {
        bed.scheduler.queue.add(pod);
        bed.settle().await;
    }
    bed
}

#[tokio::test]
async fn the_data_is_the_schedulers() {
    let bed = bed().await;
    let pages = pages_of(&bed);
    let active = Arc::clone(&pages.active);
    let port = serve(router(pages)).await;
    let client = client(&format!("http://127.0.0.1:{port}"), |_| {});
    let state = get_path(&client, "/debug/scheduling/state").await.json();
    assert_eq!(state["nodes"][0]["requested"][0], 1000, "{state}");
    assert_eq!(state["waiting"][0]["name"], "large", "{state}");
    assert_eq!(state["waiting"][0]["rejectedBy"][0], "NodeResourcesFit");
    let node = get_path(&client, "/debug/scheduling/nodes/n").await.json();
    let want = json!({"name": "n", "labels": {"kubernetes.io/hostname": "n", "zone": "a"}, "pods": [
        {"namespace": "default", "name": "placed", "priority": 0, "milliCpu": 1000, "memory": 0}]});
    assert_eq!(node["pods"], want["pods"]);
    assert_eq!(node["labels"]["zone"], "a");
    let nobody = get_path(&client, "/debug/scheduling/nodes/m").await;
    let error = json!({"error": "node \"m\" not found"});
    assert_eq!((nobody.code, nobody.json()), (404, error));
    let why = get_path(&client, "/debug/scheduling/why/default/large").await;
    assert_eq!(why.json()["groups"][0]["plugin"], "NodeResourcesFit");

    active.store(false, Ordering::Release);
    for path in ["state", "events", "nodes/n", "why/default/large"] {
        let answer = get_path(&client, &format!("/debug/scheduling/{path}")).await;
        assert_eq!(answer.code, 503, "{path}");
        assert!(answer.body.contains("does not schedule now"), "{path}");
    }
    // The document says so itself.
    let document = get_path(&client, "/debug/scheduling").await;
    assert_eq!(document.code, 200);
}

#[tokio::test]
async fn a_browser_is_told_to_trust_nothing_else() {
    let bed = bed().await;
    let port = serve(router(pages_of(&bed))).await;
    let client = client(&format!("http://127.0.0.1:{port}"), |_| {});
    for (path, code, kind) in [
        ("", 200, "text/html; charset=utf-8"),
        ("/page.js", 200, "text/javascript; charset=utf-8"),
        ("/page.css", 200, "text/css; charset=utf-8"),
        ("/state", 200, "application/json"),
        ("/nodes/m", 404, "application/json"),
        ("/", 308, ""),
    ] {
        let answer = get_path(&client, &format!("/debug/scheduling{path}")).await;
        assert_eq!(answer.code, code, "{path}");
        let header = |name| answer.headers.get(name).map_or("", |v| v.to_str().unwrap());
        assert_eq!(header("content-type"), kind, "{path}");
        assert_eq!(header("content-security-policy"), POLICY, "{path}");
        assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(header("referrer-policy"), "no-referrer", "{path}");
        assert_eq!(header("cache-control"), "no-store", "{path}");
    }
    assert!(POLICY.starts_with("default-src 'none';") && !POLICY.contains("unsafe"));
}

#[test]
fn the_document_stands_alone() {
    let [html, js, css] = [
        include_str!("page.html"),
        include_str!("page.js"),
        include_str!("page.css"),
    ];
    for (name, text) in [("html", html), ("js", js), ("css", css)] {
        for outside in ["http:", "https:", "//cdn", "@import", "url("] {
            assert!(!text.contains(outside), "{name}: {outside}");
        }
    }
    for inline in [" style=", "<style", " onclick", " onload"] {
        assert!(!html.contains(inline), "{inline}");
    }
    for markup in [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
    ] {
        assert!(!js.contains(markup), "{markup}");
    }
}

/// An API server that knows two tokens, and lets one user get what is at or below the page; what it was asked about.
fn reviewer(asked: Arc<Mutex<Vec<String>>>) -> Router {
    let tokens = async |Json(mut review): Json<Value>| {
        let user = match review["spec"]["token"].as_str() {
            Some("janes") => "jane",
            Some("bobs") => "bob",
            _ => "",
        };
        review["status"] =
            json!({"authenticated": !user.is_empty(), "user": {"username": user, "groups": []}});
        Json(review)
    };
    let access = move |Json(mut review): Json<Value>| {
        let asked = Arc::clone(&asked);
        async move {
            let spec = &review["spec"];
            let what = &spec["nonResourceAttributes"];
            let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            let (user, verb, path) = (
                text(&spec["user"]),
                text(&what["verb"]),
                text(&what["path"]),
            );
            let below = path == "/debug/scheduling" || path.starts_with("/debug/scheduling/");
            let allowed = user == "jane" && verb == "get" && below;
            asked.lock().unwrap().push(format!("{user} {verb} {path}"));
            review["status"] = json!({ "allowed": allowed });
            Json(review)
        }
    };
    Router::new()
        .route("/apis/authentication.k8s.io/v1/tokenreviews", post(tokens))
        .route(
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            post(access),
        )
}

#[tokio::test]
async fn those_alone_may_look_whom_the_api_server_lets() {
    let bed = bed().await;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let api = serve(reviewer(Arc::clone(&asked))).await;
    let api = client(&format!("http://127.0.0.1:{api}"), |_| {});
    let second = Duration::from_secs(1);
    let access = AccessControl::new(
        Some(DelegatedAuthentication::new(api.clone(), second)),
        true,
        Authorization::Delegated(DelegatedAuthorization::new(api, second, second)),
    );
    let tls = TlsOptions {
        names: vec!["127.0.0.1".into()],
        ..TlsOptions::default()
    };
    let server = SecureServer {
        listener: listen("127.0.0.1:0".parse().unwrap()).await.unwrap(),
        tls: ServerTls::new(tls, None).unwrap(),
        access,
    };
    let url = format!("https://{}", server.listener.local_addr().unwrap());
    let shutdown = Shutdown::new();
    tokio::spawn(server.serve(router(pages_of(&bed)), shutdown.clone()));
    let of = |token: &str| {
        client(&url, |config| {
            config.accept_invalid_certs = true;
            config.auth_info.token = Some(token.to_owned().into());
        })
    };
    let paths = [
        "",
        "/",
        "/page.js",
        "/page.css",
        "/state",
        "/events",
        "/nodes/n",
        "/why/default/large",
    ];
    let stranger = client(&url, |config| config.accept_invalid_certs = true);
    for path in paths {
        let path = format!("/debug/scheduling{path}");
        for (client, code) in [(&of("nobodys"), 401), (&of("bobs"), 403), (&stranger, 403)] {
            let answer = get_path(client, &path).await;
            assert_eq!(answer.code, code, "{path}: {}", answer.body);
            // A refusal tells nothing of the cluster.
            assert!(!answer.body.contains("NodeResourcesFit"), "{path}");
        }
    }
    let state = get_path(&of("janes"), "/debug/scheduling/state").await;
    assert_eq!(state.code, 200, "{}", state.body);
    let asked = asked.lock().unwrap().clone();
    for line in [
        "jane get /debug/scheduling/state",
        "bob get /debug/scheduling/events",
        "system:anonymous get /debug/scheduling",
    ] {
        assert!(asked.iter().any(|a| a == line), "{line}: {asked:?}");
    }
    shutdown.trigger();
}

const QUICK: Limits = Limits {
    period: Duration::from_millis(5),
    patience: Duration::from_millis(100),
    lifetime: Duration::from_secs(60),
    buffer: 1,
};

fn permit() -> tokio::sync::OwnedSemaphorePermit {
    Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap()
}

fn decide(bed: &Bed, name: &str) {
    let pod = make_pod(name).uid(name).info();
    let now = Instant::now();
    let decisions = bed.scheduler.shared.decisions();
    decisions.chose(&pod, &"n".into(), (None, None), (now, now));
}

async fn next_text(body: &mut axum::body::Body) -> String {
    let frame = tokio::time::timeout(Duration::from_secs(20), body.frame()).await;
    let frame = frame.expect("in time").expect("not over").expect("good");
    String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn decisions_come_as_they_are_made() {
    let bed = bed().await;
    let response = stream::follow(Arc::clone(&bed.scheduler), 0, QUICK, permit());
    let kind = response.headers()[header::CONTENT_TYPE].to_str().unwrap();
    assert_eq!(kind, "text/event-stream");
    let mut body = response.into_body();
    let first = next_text(&mut body).await;
    for words in [
        "event: decisions\n",
        "id: 2\n",
        "\"missed\":0",
        "\"name\":\"placed\"",
        "\"node\":\"n\"",
        "\"feasibleNodes\":1",
        "\"score\":",
        "\"result\":\"rejected\"",
        "Insufficient cpu",
    ] {
        assert!(first.contains(words), "{words} in {first}");
    }
    decide(&bed, "later");
    let second = next_text(&mut body).await;
    assert!(
        second.contains("\"name\":\"later\"") && !second.contains("placed"),
        "{second}"
    );
    bed.scheduler.shared.end().cancel();
    let end = next_text(&mut body).await;
    assert!(
        end.contains("event: end\n") && end.contains("the scheduler is ending"),
        "{end}"
    );
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn a_slow_reader_is_dropped_and_told() {
    let bed = bed().await;
    let places = Arc::new(Semaphore::new(1));
    let place = Arc::clone(&places).try_acquire_owned().unwrap();
    let response = stream::follow(Arc::clone(&bed.scheduler), 0, QUICK, place);
    // Nobody reads; new ones come all the time.
    let began = Instant::now();
    while places.available_permits() == 0 {
        assert!(began.elapsed() < Duration::from_secs(20), "never dropped");
        decide(&bed, "p");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    assert_eq!(body.matches("event: decisions").count(), QUICK.buffer);
    let end = body
        .split("event: end\n")
        .nth(1)
        .expect("a word at the end");
    assert!(
        end.contains("decisions came faster than they were read"),
        "{end}"
    );
}

#[tokio::test]
async fn streams_end_in_time_and_are_few() {
    let bed = bed().await;
    let limits = Limits {
        lifetime: Duration::from_millis(30),
        ..QUICK
    };
    let response = stream::follow(Arc::clone(&bed.scheduler), 2, limits, permit());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    assert!(body.contains("ask again to go on"), "{body}");

    let router = with_limits(pages_of(&bed), LIMITS, 1);
    let client = client(&format!("http://127.0.0.1:{}", serve(router).await), |_| {});
    let request = || {
        http::Request::get("/debug/scheduling/events")
            .body(kube::client::Body::empty())
            .unwrap()
    };
    let first = client.send(request()).await.unwrap();
    assert_eq!(first.status(), 200);
    let second = get_path(&client, "/debug/scheduling/events").await;
    assert_eq!(second.code, 429);
    assert!(second.body.contains("too many follow"), "{}", second.body);
    // Who leaves makes room.
    drop(first);
    let began = Instant::now();
    loop {
        let again = client.send(request()).await.unwrap();
        if again.status() == 200 {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "no room");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn who_comes_back_goes_on_and_hears_what_was_missed() {
    let bed = bed().await;
    for _ in 0..KEPT {
        decide(&bed, "p");
    }
    let response = stream::follow(Arc::clone(&bed.scheduler), 1, QUICK, permit());
    let first = next_text(&mut response.into_body()).await;
    assert!(first.contains("\"missed\":1"), "{}", &first[..200]);
    assert_eq!(first.matches("\"sequence\"").count(), KEPT);
}
