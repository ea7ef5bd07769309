//! Who gets through the local page, and what.

use std::sync::Mutex;

use axum::routing::get;
use component_base::client::ClientConfig;
use http::HeaderValue;
use http_body_util::BodyExt as _;

use super::*;

fn clients(url: &str) -> Arc<Clients> {
    let client = || {
        let config = kube::Config::new(url.parse().expect("a URL"));
        let client = ClientConfig::new("test").build_from(config);
        client.expect("a client")
    };
    Arc::new(Clients {
        api: client(),
        scheduler: client(),
        namespace: "default".to_owned(),
    })
}

async fn serve(router: Router) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move { axum::serve(listener, router).await });
    port
}

#[tokio::test]
async fn strangers_are_sent_away() {
    let local = Local {
        word: "secret".to_owned(),
        ..Local::new(clients("http://127.0.0.1:1"), 4000)
    };
    let check = |method: Method, path: &str, headers: &[(&'static str, &'static str)]| {
        let mut all = HeaderMap::new();
        for (name, value) in headers {
            all.insert(*name, HeaderValue::from_static(value));
        }
        local
            .admitted(&method, path, &all)
            .map(str::to_owned)
            .map_err(|(code, _)| code.as_u16())
    };
    let own = [("host", "127.0.0.1:4000")].as_slice();
    let page = "/secret/debug/scheduling";
    assert_eq!(check(Method::GET, page, own), Ok(PAGE.to_owned()));
    let state = check(Method::GET, "/secret/debug/scheduling/state", own);
    assert_eq!(state, Ok("/debug/scheduling/state".to_owned()));
    let localhost = [("host", "localhost:4000"), ("sec-fetch-site", "none")];
    assert_eq!(check(Method::GET, page, &localhost), Ok(PAGE.to_owned()));
    // A name that leads here, another port, none.
    for host in ["evil.example:4000", "127.0.0.1:4001", "127.0.0.1"] {
        assert_eq!(check(Method::GET, page, &[("host", host)]), Err(421));
    }
    assert_eq!(check(Method::GET, page, &[]), Err(421));
    for site in ["cross-site", "same-site"] {
        let headers = [("host", "127.0.0.1:4000"), ("sec-fetch-site", site)];
        assert_eq!(check(Method::GET, page, &headers), Err(403));
    }
    for path in [
        "/",
        "/debug/scheduling",
        "/secre/debug/scheduling",
        "/Secret/debug/scheduling",
        "/secret",
        "/secret/metrics",
        "/secret/debug/schedulings",
        "/secret/debug/scheduling/../../metrics",
        "/secret/debug/scheduling/%2E%2e/metrics",
        "/sécret/debug/scheduling",
    ] {
        assert_eq!(check(Method::GET, path, own), Err(404), "{path}");
    }
    for method in [Method::POST, Method::HEAD, Method::OPTIONS] {
        assert_eq!(check(method, page, own), Err(405));
    }
}

#[test]
fn the_word_is_random_and_long() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _guard = runtime.enter();
    let [a, b] = [1, 2].map(|_| Local::new(clients("http://127.0.0.1:1"), 1).word);
    assert_eq!((a.len(), b.len()), (32, 32));
    assert_ne!(a, b);
}

#[tokio::test]
async fn what_is_passed_on() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    let events = move |headers: HeaderMap| async move {
        let mut names: Vec<String> = headers.keys().map(ToString::to_string).collect();
        names.retain(|name| name != "host");
        names.sort();
        noted.lock().expect("no panic").extend(names);
        let answer = [
            ("content-security-policy", "default-src 'none'"),
            ("set-cookie", "a=b"),
            ("content-type", "text/event-stream"),
        ];
        (answer, "event: decisions\n\n")
    };
    let forbidden = (
        StatusCode::FORBIDDEN,
        axum::Json(serde_json::json!({"message": "Forbidden (user=x)"})),
    );
    let scheduler = Router::new()
        .route("/debug/scheduling/events", get(events))
        .route("/debug/scheduling", get(async || forbidden));
    let scheduler = serve(scheduler).await;
    let scheduler = clients(&format!("http://127.0.0.1:{scheduler}"));
    // The user is told before a browser is.
    let refused = may_look(&scheduler).await.expect_err("forbidden");
    assert_eq!(refused.to_string(), "Forbidden (user=x)");

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let local = Local::new(scheduler, listener.local_addr().expect("bound").port());
    let url = local.url();
    let base = url.strip_suffix(PAGE).expect("the page").to_owned();
    let word = base.rsplit('/').next().expect("the word").to_owned();
    let port = local.port;
    tokio::spawn(async move { axum::serve(listener, local.router()).await });
    let request = Request::get(format!("/{word}{PAGE}/events"))
        .header("cookie", "a=b")
        .header("authorization", "Bearer stolen")
        .header("last-event-id", "7")
        .body(kube::client::Body::empty())
        .expect("a request");
    let browser = clients(&format!("http://127.0.0.1:{port}"));
    let answer = browser.scheduler.send(request).await.expect("answered");
    assert_eq!(answer.status(), StatusCode::OK);
    let policy = answer.headers().get("content-security-policy");
    assert_eq!(policy.expect("passed on"), "default-src 'none'");
    assert!(!answer.headers().contains_key("set-cookie"));
    let body = answer.into_body().collect().await.expect("read").to_bytes();
    assert_eq!(&body[..], b"event: decisions\n\n");
    let seen = seen.lock().expect("no panic").clone();
    assert!(seen.contains(&"last-event-id".to_owned()), "{seen:?}");
    for name in ["cookie", "authorization"] {
        assert!(!seen.contains(&name.to_owned()), "{seen:?}");
    }
}
