use super::*;

use std::sync::Mutex;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;

use crate::pod;

/// What the server says, and the values of the header `a` it was sent.
#[derive(Clone, Default)]
struct Said {
    answer: Arc<Mutex<(u16, String)>>,
    headers: Arc<Mutex<Vec<String>>>,
}

impl Said {
    fn say(&self, status: u16, body: impl Into<String>) {
        *self.answer.lock().unwrap() = (status, body.into());
    }
}

async fn answer(State(said): State<Said>, headers: HeaderMap) -> (StatusCode, String) {
    let sent = headers
        .get_all("a")
        .iter()
        .map(|v| v.to_str().unwrap().to_owned());
    *said.headers.lock().unwrap() = sent.collect();
    let (status, body) = said.answer.lock().unwrap().clone();
    (StatusCode::from_u16(status).unwrap(), body)
}

async fn serve(said: &Said) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = Router::new()
        .route("/pods", get(answer))
        .with_state(said.clone());
    let routes = routes.route(
        "/elsewhere",
        get(|| async { axum::response::Redirect::temporary("https://127.0.0.1:1/pods") }),
    );
    let routes = routes.route(
        "/moved",
        get(|| async { axum::response::Redirect::temporary("/pods") }),
    );
    tokio::spawn(async move { axum::serve(listener, routes).await });
    format!("http://{address}")
}

fn source(url: &str) -> UrlSource {
    let headers = [("a".to_owned(), vec!["1".to_owned(), "2".to_owned()])].into();
    UrlSource::new(url, &headers, Duration::from_millis(10), "n").unwrap()
}

fn manifest(name: &str) -> String {
    format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{containers: [{{name: c, image: 'nginx:1'}}]}}}}")
        .replacen('{', "---\n{", 1)
}

/// `+name` and `-name`.
fn names(updates: Option<Vec<PodUpdate>>) -> Option<Vec<String>> {
    let name = |update: &PodUpdate| match update {
        PodUpdate::Set(p) => format!("+{}", pod::name(p)),
        PodUpdate::Removed(p) => format!("-{}", pod::name(p)),
        PodUpdate::Ready(source) => format!("{source:?}"),
    };
    Some(updates?.iter().map(name).collect())
}

#[tokio::test]
async fn what_an_answer_changes() {
    let said = Said::default();
    let url = serve(&said).await;
    let mut source = source(&format!("{url}/pods"));
    for (status, body, expect, error) in [
        (500, manifest("a"), None, "/pods: 500"),
        (200, "kind: [".to_owned(), None, "couldn't parse as pod"),
        (200, manifest("a"), Some(vec!["+a-n"]), ""),
        (200, manifest("a"), None, ""),
        (404, String::new(), None, "/pods: 404"),
        (200, "kind: Other".to_owned(), None, "couldn't parse as pod"),
        (200, manifest("b"), Some(vec!["-a-n", "+b-n"]), ""),
        (
            200,
            String::new(),
            Some(vec!["-b-n"]),
            "zero-length data received from",
        ),
        (200, manifest("b"), Some(vec!["+b-n"]), ""),
        (
            200,
            "x".repeat(ANSWER_BYTES_MAX + 1),
            None,
            "the answer is longer than",
        ),
    ] {
        said.say(status, body.clone());
        let (updates, outcome) = source.poll().await;
        let got = outcome.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(
            got.contains(error) && got.is_empty() == error.is_empty(),
            "{error}: {got}"
        );
        let expect = expect.map(|e| e.into_iter().map(str::to_owned).collect());
        assert_eq!(names(updates), expect, "{status} {error}");
    }
    assert_eq!(*said.headers.lock().unwrap(), ["1", "2"]);
}

#[tokio::test]
async fn ready_once_something_was_told() {
    let said = Said::default();
    said.say(503, "");
    let url = serve(&said).await;
    let (out, mut updates) = mpsc::channel(10);
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(source(&format!("{url}/pods")).run(out, shutdown.clone()));
    // It asks, and has nothing to tell.
    while said.headers.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(updates.try_recv().is_err());
    said.say(200, manifest("a"));
    let first = updates.recv().await.unwrap();
    let second = updates.recv().await.unwrap();
    assert_eq!(names(Some(vec![first, second])).unwrap(), ["+a-n", "Http"]);
    said.say(200, "");
    let third = updates.recv().await.unwrap();
    assert_eq!(names(Some(vec![third])).unwrap(), ["-a-n"]);
    shutdown.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn redirected_within_a_scheme_alone() {
    let said = Said::default();
    said.say(200, manifest("a"));
    let url = serve(&said).await;
    let (updates, outcome) = source(&format!("{url}/moved")).poll().await;
    outcome.unwrap();
    assert_eq!(names(updates).unwrap(), ["+a-n"]);
    let (_, outcome) = source(&format!("{url}/elsewhere")).poll().await;
    assert!(
        matches!(&outcome, Err(PollError::Request(e)) if e.is_redirect()),
        "{outcome:?}"
    );
}

#[test]
fn what_cannot_be_asked() {
    let of = |url: &str, header: (&str, &str)| {
        let headers = [(header.0.to_owned(), vec![header.1.to_owned()])].into();
        let made = UrlSource::new(url, &headers, TIMEOUT, "n");
        made.err().map(|e| e.to_string()).unwrap_or_default()
    };
    let fine = ("a", "b");
    assert!(of("pods", fine).starts_with("staticPodURL: Invalid value: \"pods\": "));
    assert!(of("file:///etc/pods", fine).ends_with("must be of http or https"));
    for header in [("a b", "c"), ("a", "secret\n")] {
        let error = of("http://h/", header);
        assert!(
            error.starts_with("staticPodURLHeader: Invalid value: ") && !error.contains("secret")
        );
    }
    assert_eq!(of("http://h/", fine), "");
}

#[tokio::test]
async fn of_two_of_one_name_the_first_counts() {
    let said = Said::default();
    let item = |image: &str| {
        format!("{{metadata: {{name: a}}, spec: {{containers: [{{name: c, image: {image}}}]}}}}")
    };
    let list = format!(
        "---\n{{apiVersion: v1, kind: PodList, items: [{}, {}]}}",
        item("'x:1'"),
        item("'x:2'")
    );
    said.say(200, list);
    let url = serve(&said).await;
    let mut source = source(&format!("{url}/pods"));
    let (updates, outcome) = source.poll().await;
    outcome.unwrap();
    assert_eq!(names(updates).unwrap(), ["+a-n"]);
    let image = &source.pods[0].spec.as_ref().unwrap().containers[0].image;
    assert_eq!(image.as_deref(), Some("x:1"));
}
