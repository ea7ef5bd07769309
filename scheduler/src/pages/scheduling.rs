//! `/debug/scheduling`: what the scheduler does, in a browser.
//!
//! | path | what |
//! |---|---|
//! | `/debug/scheduling` | the document; `page.js` and `page.css` below it |
//! | `…/state` | nodes with what they have and what is asked of them, pods that wait |
//! | `…/nodes/NAME` | a node's labels and pods |
//! | `…/events` | decisions as they are made ([`stream`]) |
//! | `…/why/NAMESPACE/NAME` | as `/gantry/why`, so that one rule of RBAC is enough for the page |
//!
//! Who may look is the server's to know, as with the other pages: `get` of `/debug/scheduling` and `/debug/scheduling/*`. Nothing is computed unless somebody
//! asks. The document is still: all it shows it reads from these paths, and puts names into it as text alone; the headers let a browser do nothing else.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::get;
use axum::{Json, extract::Request};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tokio::sync::Semaphore;

use super::{MAX_QUESTIONS, Pages, admit, refuse, why};
use crate::scheduler::Scheduler;
use state::MAX_PODS;
use stream::{LIMITS, Limits};

pub mod state;
pub mod stream;
#[cfg(test)]
mod tests;

/// So many may follow the decisions at a time; more are sent away.
const MAX_READERS: usize = 16;

/// Nothing but this server's own script, style and data; no markup made of text (Trusted Types), no frame around the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];

#[derive(Clone)]
struct Readers {
    pages: Pages,
    places: Arc<Semaphore>,
    limits: Limits,
}

pub(super) fn router(pages: Pages) -> Router {
    with_limits(pages, LIMITS, MAX_READERS)
}

fn with_limits(pages: Pages, limits: Limits, readers: usize) -> Router {
    let places = Arc::new(Semaphore::new(MAX_QUESTIONS));
    let data = Router::new()
        .route("/debug/scheduling/state", get(whole_state))
        .route("/debug/scheduling/nodes/{name}", get(node))
        .route("/debug/scheduling/why/{namespace}/{name}", get(why))
        .layer(from_fn_with_state(places, admit))
        .with_state(pages.clone());
    let readers = Readers {
        pages,
        places: Arc::new(Semaphore::new(readers)),
        limits,
    };
    let events = Router::new()
        .route("/debug/scheduling/events", get(events))
        .with_state(readers);
    Router::new()
        .route("/debug/scheduling", get(document))
        .route("/debug/scheduling/", get(without_slash))
        .route("/debug/scheduling/page.js", get(script))
        .route("/debug/scheduling/page.css", get(style))
        .merge(data)
        .merge(events)
        .layer(from_fn(guard))
}

/// Every answer carries the headers, refusals too.
async fn guard(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

fn file(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn document() -> Response {
    let text = include_str!("scheduling/page.html");
    file("text/html; charset=utf-8", text)
}

async fn script() -> Response {
    let text = include_str!("scheduling/page.js");
    file("text/javascript; charset=utf-8", text)
}

async fn style() -> Response {
    let text = include_str!("scheduling/page.css");
    file("text/css; charset=utf-8", text)
}

/// The document's links are relative to its path without one.
async fn without_slash() -> Redirect {
    Redirect::permanent("../scheduling")
}

async fn whole_state(State(pages): State<Pages>) -> Response {
    pages
        .answer(|scheduler| Json(state_of(scheduler)).into_response())
        .await
}

fn state_of(scheduler: &Scheduler) -> state::State {
    let (nodes, _) = scheduler.cache.dump();
    let queue = &scheduler.queue;
    let (waiting, counts) = (queue.waiting(MAX_PODS), queue.counts());
    let profiles = scheduler.profiles().keys().cloned().collect();
    let now = scheduler.shared.clock().now();
    state::state(now, profiles, nodes, waiting, counts)
}

async fn node(State(pages): State<Pages>, Path(name): Path<String>) -> Response {
    pages
        .answer(move |scheduler| {
            let (nodes, _) = scheduler.cache.dump();
            let mut nodes = nodes.iter().filter(|node| node.exists());
            match nodes.find(|node| **node.name() == *name) {
                Some(node) => Json(state::node_details(node)).into_response(),
                None => refuse(StatusCode::NOT_FOUND, format!("node {name:?} not found")),
            }
        })
        .await
}

async fn events(State(readers): State<Readers>, headers: HeaderMap) -> Response {
    let Readers {
        pages,
        places,
        limits,
    } = readers;
    if let Some(refusal) = pages.inactive() {
        return refusal;
    }
    let Ok(place) = places.try_acquire_owned() else {
        let why = "too many follow the decisions already: ask again later";
        return refuse(StatusCode::TOO_MANY_REQUESTS, why);
    };
    let last = headers.get("last-event-id");
    let last = last.and_then(|value| value.to_str().ok()?.parse().ok());
    // One that comes for the first time gets all that is kept, and has missed nothing.
    let next = last.unwrap_or_else(|| pages.scheduler.shared.decisions().oldest());
    stream::follow(pages.scheduler, next, limits, place)
}
