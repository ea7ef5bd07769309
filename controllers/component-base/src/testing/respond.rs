//! Answers of HTTP: an object, a list, a stream of events, or a `Status`.

use std::borrow::Cow;
use std::convert::Infallible;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use kube::client::Body;
use serde::Serialize;
use serde_json::{Value, json};

use super::request::{Call, Verb};
use super::store::{Store, Told, Watch};
use super::{ApiServer, Noted, Refusal, discovery, status};

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// One request, one answer; a watch's goes on until it is dropped or the server ends it.
pub(super) async fn respond(
    server: ApiServer,
    request: Request<Body>,
) -> Result<Answer, kube::Error> {
    let (head, body) = request.into_parts();
    if let Some(page) = discovery::page(&head) {
        return Ok(whole(200, &page));
    }
    let body = body.collect().await?.to_bytes();
    let metadata = head
        .headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("as=PartialObjectMetadata"));
    let outcome = Call::parse(&head, &body).and_then(|call| carry_out(&server, call, metadata));
    Ok(outcome.unwrap_or_else(|refusal| whole(refusal.code, &status(&refusal))))
}

fn carry_out(server: &ApiServer, call: Call, metadata: bool) -> Result<Answer, Refusal> {
    let now = server.clock.now();
    let mut state = server.lock();
    let failing = state.failures.iter().find(|f| (f.matches)(&call));
    let failing = failing.map(|f| (f.with.clone(), f.carried_out));
    let outcome = match failing {
        Some((refusal, false)) => Err(refusal),
        Some((refusal, true)) => {
            answer_of(&mut state.store, &call, now, metadata).and(Err(refusal))
        }
        None => answer_of(&mut state.store, &call, now, metadata),
    };
    state.calls.push(Noted {
        at: now,
        call,
        refused: outcome.as_ref().err().cloned(),
    });
    outcome
}

fn answer_of(
    store: &mut Store,
    call: &Call,
    now: Timestamp,
    metadata: bool,
) -> Result<Answer, Refusal> {
    match call.verb {
        Verb::Watch => {
            let watch = store.watch(call)?;
            Ok(stream(watch, metadata))
        }
        Verb::List => {
            let items = store.list(call);
            let items = items
                .iter()
                .map(|item| shown(item, metadata).into_owned())
                .collect();
            let list: Value = list(call, store.version(), items, metadata);
            Ok(whole(200, &list))
        }
        verb => {
            let object = store.answer(call, now)?;
            let code = if verb == Verb::Create { 201 } else { 200 };
            Ok(whole(code, &shown(&object, metadata)))
        }
    }
}

fn list(call: &Call, version: u64, items: Vec<Value>, metadata: bool) -> Value {
    let (api_version, kind) = match metadata {
        true => ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadataList"),
        false => (call.api_version(), "List"),
    };
    json!({
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"resourceVersion": version.to_string()},
        "items": items,
    })
}

/// The object, or as much of it as was asked for.
fn shown(object: &Value, metadata: bool) -> Cow<'_, Value> {
    match metadata {
        true => Cow::Owned(json!({
            "apiVersion": "meta.k8s.io/v1",
            "kind": "PartialObjectMetadata",
            "metadata": object["metadata"],
        })),
        false => Cow::Borrowed(object),
    }
}

fn encoded(object: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(object).expect("what was read as JSON is written as JSON")
}

fn whole(code: u16, body: &Value) -> Answer {
    let body = Full::new(Bytes::from(encoded(body)));
    answer(code, body.boxed_unsync())
}

/// An event as it is sent.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    object: Cow<'a, Value>,
}

fn stream(watch: Watch, metadata: bool) -> Answer {
    let Watch { first, next } = watch;
    let line = move |(kind, object): Told| {
        let object = shown(&object, metadata && kind != "BOOKMARK");
        let mut line = encoded(&Line { kind, object });
        line.push(b'\n');
        Ok::<_, Infallible>(Frame::data(Bytes::from(line)))
    };
    let next = futures::stream::unfold(next, |mut next| async move {
        next.recv().await.map(|event| (event, next))
    });
    let events = futures::stream::iter(first).chain(next).map(line);
    answer(200, StreamBody::new(events).boxed_unsync())
}

fn answer(code: u16, body: UnsyncBoxBody<Bytes, Infallible>) -> Answer {
    Response::builder()
        .status(code)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body)
        .expect("a status, a header and a body")
}
