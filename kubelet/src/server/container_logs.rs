//! `/containerLogs`: what a container has said, and what it says.
//!
//! ```text
//! query -> LogQuery -> which container (by the pod's status) -> its file -> tail -> lines -> response
//!                                                                  \-- follow: inotify, rotation, until it has exited
//! ```
//!
//! Upstream: `getContainerLogs`, `validateContainerLogStatus`, `k8s.io/cri-client/pkg/logs`.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod line;
mod query;
mod reader;
mod select;
mod tail;

use std::path::PathBuf;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{ApiError, Server};
use crate::pod;
use line::LineWriter;
use query::LogQuery;

/// Pieces of log on their way to a slow client.
const QUEUE: usize = 8;

#[derive(Deserialize)]
pub(super) struct Target {
    namespace: String,
    pod: String,
    container: String,
}

/// `/containerLogs/<namespace>/<pod>/<container>?follow=…`
pub(super) async fn container_logs(
    State(server): State<Server>,
    Path(target): Path<Target>,
    Query(query): Query<Vec<(String, String)>>,
) -> Result<Response, ApiError> {
    let query = LogQuery::parse(&query)?;
    let name = &target.container;
    let pod = server
        .context
        .pod_by_name(&target.namespace, &target.pod)
        .ok_or_else(|| ApiError::not_found(format!("pod {:?} does not exist", target.pod)))?;
    if pod::find_container(&pod, name).is_none() {
        let text = format!("container {name:?} not found in pod {:?}", target.pod);
        return Err(ApiError::not_found(text));
    }
    // The statuses may still say "waiting" of a container that runs since a moment; upstream asks them, too.
    let chosen = select::container(&pod, name, query.previous).map_err(ApiError::bad_request)?;
    let runtime = server.context.runtime();
    // Before the state is looked at: no exit may fall in between.
    let events = runtime.events();
    let path = match runtime.container_status(&chosen.id).await {
        Ok(status) if status.log_path.is_absolute() => status.log_path,
        Ok(status) => log_directory(&server, &pod).join(status.log_path),
        Err(error) => {
            // The container is gone, its log may be there still.
            tracing::debug!(container = chosen.id, %error, "container is unknown to the runtime");
            log_directory(&server, &pod)
                .join(name)
                .join(format!("{}.log", chosen.restart_count))
        }
    };
    let open = tail::open(
        server.context.paths().clone(),
        path.clone(),
        query.tail_lines,
    )
    .await;
    let file = match open {
        Ok(file) => file,
        Err(source) => {
            let text = format!("failed to try resolving symlinks in path {path:?}: {source}");
            return Err(ApiError::bad_request(text));
        }
    };
    let writer = LineWriter::new(
        query.since(Timestamp::now()),
        query.timestamps,
        query.stream,
        query.limit_bytes,
    );
    let (sink, mut pieces) = mpsc::channel(QUEUE);
    let reader = reader::Reader {
        paths: server.context.paths().clone(),
        path,
        file,
        writer,
        follow: query.follow,
        runtime: runtime.clone(),
        events,
        container: chosen.id,
        shutdown: server.shutdown.clone(),
        sink,
    };
    component_base::tasks::spawn_helper("log reader", reader.run());
    let pieces = futures::stream::poll_fn(move |cx| pieces.poll_recv(cx));
    let headers = [(http::header::CONTENT_TYPE, "text/plain")];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

fn log_directory(server: &Server, pod: &k8s_openapi::api::core::v1::Pod) -> PathBuf {
    server
        .context
        .paths()
        .pod_log_directory(pod::namespace(pod), pod::name(pod), pod::uid(pod))
}
