//! A server by script: what it was asked, and what it answers.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use futures::StreamExt as _;
use http::Response;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Resource as _;
use serde_json::{Value, json};

use super::*;

const JSON: &str = "application/json";

struct Answer {
    status: u16,
    content_type: &'static str,
    body: Vec<u8>,
}

fn client(answers: Vec<Answer>) -> (Client, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (answers, seen) = (Arc::new(Mutex::new(VecDeque::from(answers))), asked.clone());
    let service = tower::service_fn(move |request: Request<Body>| {
        let query = request.uri().query().unwrap_or_default().to_owned();
        seen.lock().unwrap().push(query);
        let answer = answers.lock().unwrap().pop_front();
        async move {
            let answer = answer.expect("one question too many");
            Response::builder()
                .status(answer.status)
                .header(header::CONTENT_TYPE, answer.content_type)
                .body(Body::from(answer.body))
        }
    });
    (Client::new(service, "default"), asked)
}

fn message() -> &'static kube_protobuf::Message {
    kube_protobuf::message("", "v1", "ConfigMap").unwrap()
}

fn map(name: &str, version: u32) -> Value {
    json!({"metadata": {"name": name, "namespace": "n", "resourceVersion": version.to_string()}})
}

fn put(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
}

/// As upstream frames it.
fn frame(kind: &str, object: &Value) -> Vec<u8> {
    let object = match kind {
        "ERROR" => {
            let status = kube_protobuf::message("", "v1", "Status").unwrap();
            kube_protobuf::to_vec(status, ("v1", "Status"), object).unwrap()
        }
        _ => kube_protobuf::to_vec(message(), ("v1", "ConfigMap"), object).unwrap(),
    };
    let (mut raw, mut event) = (Vec::new(), Vec::new());
    put(&mut raw, 0x0a, &object);
    put(&mut event, 0x0a, kind.as_bytes());
    put(&mut event, 0x12, &raw);
    let mut frame = u32::try_from(event.len()).unwrap().to_be_bytes().to_vec();
    frame.extend(event);
    frame
}

fn end_of_list(version: u32) -> Value {
    let mut mark = map("", version);
    mark["metadata"]["annotations"] = json!({INITIAL_EVENTS_END: "true"});
    mark
}

fn protobuf(events: &[(&str, Value)]) -> Answer {
    Answer {
        status: 200,
        content_type: kube_protobuf::WATCH_CONTENT_TYPE,
        body: events.iter().flat_map(|(kind, o)| frame(kind, o)).collect(),
    }
}

fn lines(events: &[(&str, Value)]) -> Answer {
    let line =
        |(kind, object): &(&str, Value)| json!({"type": kind, "object": object}).to_string() + "\n";
    Answer {
        status: 200,
        content_type: JSON,
        body: events.iter().map(line).collect::<String>().into_bytes(),
    }
}

fn told(event: Result<Event<ConfigMap>, Error>) -> String {
    let of = |o: ConfigMap| {
        format!(
            "{}@{}",
            o.metadata.name.unwrap(),
            o.metadata.resource_version.unwrap()
        )
    };
    match event {
        Ok(Event::Init) => "init".to_owned(),
        Ok(Event::InitDone) => "done".to_owned(),
        Ok(Event::InitApply(o)) => format!("={}", of(o)),
        Ok(Event::Apply(o)) => format!("+{}", of(o)),
        Ok(Event::Delete(o)) => format!("-{}", of(o)),
        Err(Error::WatchError(status)) => format!("error {}", status.code),
        Err(error) => error.to_string(),
    }
}

async fn check(answers: Vec<Answer>, events: &[&str], queries: &[&str]) {
    let (client, asked) = client(answers);
    let source = Source {
        client,
        path: ConfigMap::url_path(&(), None),
        options: InformerOptions::default().labels("a=b"),
        message: Some(message()),
        metadata: false,
        keep: Keep::default(),
    };
    let found: Vec<_> = reflect::<ConfigMap>(source)
        .take(events.len())
        .map(told)
        .collect()
        .await;
    assert_eq!(found, events);
    let asked: Vec<_> = asked
        .lock()
        .unwrap()
        .iter()
        .map(|q| {
            let known = [
                "labelSelector=a%3Db&",
                "watch=true&allowWatchBookmarks=true&timeoutSeconds=290&",
            ];
            known.iter().fold(q.clone(), |q, part| q.replace(part, ""))
        })
        .collect();
    assert_eq!(asked, queries);
}

const STREAM: &str = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan";

#[tokio::test]
async fn a_list_streams_and_becomes_a_watch_that_is_taken_up_again() {
    let first = protobuf(&[
        ("ADDED", map("a", 1)),
        ("BOOKMARK", map("", 2)),
        ("ADDED", map("b", 2)),
        ("DELETED", map("a", 3)),
        ("BOOKMARK", end_of_list(4)),
        ("MODIFIED", map("b", 5)),
    ]);
    let second = protobuf(&[("BOOKMARK", map("", 9)), ("DELETED", map("b", 10))]);
    let gone = json!({"status": "Failure", "code": 410, "reason": "Expired", "message": "too old"});
    let third = protobuf(&[("ERROR", gone)]);
    let fourth = protobuf(&[("BOOKMARK", end_of_list(20))]);
    let events = [
        "init",
        "=a@1",
        "=b@2",
        "-a@3",
        "done",
        "+b@5",
        "-b@10",
        "error 410",
        "init",
        "done",
    ];
    check(
        vec![first, second, third, fourth],
        &events,
        &[STREAM, "resourceVersion=5", "resourceVersion=10", STREAM],
    )
    .await;
}

#[tokio::test]
async fn a_server_without_streaming_lists_is_asked_for_pages() {
    let refusal = Answer {
        status: 422,
        content_type: JSON,
        body: br#"{"kind":"Status","status":"Failure","code":422,"reason":"Invalid"}"#.to_vec(),
    };
    let page = |items: Vec<Value>, next: &str| Answer {
        status: 200,
        content_type: JSON,
        body: json!({"metadata": {"resourceVersion": "7", "continue": next}, "items": items})
            .to_string()
            .into_bytes(),
    };
    let answers = vec![
        refusal,
        page(vec![map("a", 1), map("b", 2)], "x/y"),
        page(vec![map("c", 3)], ""),
        lines(&[("ADDED", map("d", 8))]),
    ];
    check(
        answers,
        &["init", "=a@1", "=b@2", "=c@3", "done", "+d@8"],
        &[
            STREAM,
            "limit=500",
            "limit=500&continue=x%2Fy",
            "resourceVersion=7",
        ],
    )
    .await;
}

#[tokio::test]
async fn a_list_that_is_cut_off_is_no_list() {
    let cut = protobuf(&[("ADDED", map("a", 1))]);
    let mut torn = protobuf(&[("ADDED", map("a", 1))]);
    torn.body.pop();
    let refused = Answer {
        status: 403,
        content_type: JSON,
        body: br#"{"kind":"Status","status":"Failure","code":403,"reason":"Forbidden","message":"no"}"#.to_vec(),
    };
    let early = "failed to perform initial object list: ServiceError: the list ended early";
    let (client, _) = client(vec![cut, torn, refused]);
    let source = Source {
        client,
        path: ConfigMap::url_path(&(), None),
        options: InformerOptions::default(),
        message: Some(message()),
        metadata: false,
        keep: Keep::default(),
    };
    let found: Vec<_> = reflect::<ConfigMap>(source)
        .take(6)
        .map(told)
        .collect()
        .await;
    assert_eq!(found[..5], ["init", "=a@1", early, "init", early]);
    assert!(found[5].contains("no"), "{}", found[5]);
}

#[tokio::test]
async fn metadata_alone_is_asked_for() {
    let (client, _) = client(vec![]);
    let source = |message, metadata| Source::<ConfigMap> {
        client: client.clone(),
        path: "/apis/x.io/v1/things".to_owned(),
        options: InformerOptions::default(),
        message,
        metadata,
        keep: Keep::default(),
    };
    assert_eq!(source(None, false).accept(true), JSON);
    assert_eq!(
        source(Some(message()), true).accept(false),
        "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, \
         application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
    );
}
