//! `/containerLogs`: the query is read here, the provider does the rest. Upstream: `getContainerLogs`.

use std::time::Instant;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kubelet_provider::LogOptions;
use serde::Deserialize;
use tokio_util::io::ReaderStream;

use super::{Refused, Server};
use crate::metrics;

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
) -> Result<Response, Refused> {
    let options = options(&query, Timestamp::now())?;
    let found = server.pod(&target.namespace, &target.pod, None)?;
    server.container(&found, &target.container)?;
    let began = Instant::now();
    let stream = server
        .provider
        .logs(&found.id, &target.container, &options)
        .await;
    metrics::called("logs", began, stream.is_ok());
    let ends = server.shutdown.clone();
    let pieces = futures::StreamExt::take_until(ReaderStream::new(stream?), async move {
        ends.cancelled().await;
    });
    let headers = [(http::header::CONTENT_TYPE, "text/plain")];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// What is malformed is 400, what makes no sense 422.
fn options(pairs: &[(String, String)], now: Timestamp) -> Result<LogOptions, Refused> {
    let undecodable = || {
        let text = r#"{"message": "Unable to decode query."}"#;
        Refused(StatusCode::BAD_REQUEST, text.to_owned())
    };
    let invalid = || {
        let text = r#"{"message": "Invalid request."}"#;
        Refused(StatusCode::UNPROCESSABLE_ENTITY, text.to_owned())
    };
    // As apimachinery converts booleans.
    let flag = |value: &str| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0");
    let mut options = LogOptions::default();
    let mut sinces = 0;
    for (key, value) in pairs {
        let number = || value.parse::<i64>().map_err(|_| undecodable());
        match key.as_str() {
            "follow" => options.follow = flag(value),
            "previous" => options.previous = flag(value),
            "timestamps" => options.timestamps = flag(value),
            "tailLines" => {
                options.tail_lines = Some(u64::try_from(number()?).map_err(|_| invalid())?);
            }
            "limitBytes" => {
                let limit = u64::try_from(number()?).ok().filter(|limit| *limit > 0);
                options.limit_bytes = Some(limit.ok_or_else(invalid)?);
            }
            "sinceSeconds" => {
                let seconds = Some(number()?).filter(|s| *s > 0).ok_or_else(invalid)?;
                let since = now.checked_sub(SignedDuration::from_secs(seconds));
                options.since = Some(since.map_err(|_| invalid())?);
                sinces += 1;
            }
            "sinceTime" => {
                options.since = Some(value.parse().map_err(|_| undecodable())?);
                sinces += 1;
            }
            "stream" if !matches!(value.as_str(), "" | "All") => {
                let text = "logs of one stream alone are not supported by virtual nodes";
                return Err(Refused(StatusCode::NOT_IMPLEMENTED, text.to_owned()));
            }
            _ => {}
        }
    }
    match sinces {
        0 | 1 => Ok(options),
        _ => Err(invalid()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_as_upstream_reads_them() {
        let now = Timestamp::from_second(100).unwrap();
        let read = |query: &[(&str, &str)]| {
            let pairs: Vec<_> = query
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect();
            options(&pairs, now).map_err(|refused| refused.0.as_u16())
        };
        let all = read(&[
            ("follow", "true"),
            ("tailLines", "5"),
            ("timestamps", ""),
            ("sinceSeconds", "40"),
        ])
        .unwrap();
        assert!(all.follow && all.timestamps && !all.previous);
        assert_eq!(
            (all.tail_lines, all.since),
            (Some(5), Timestamp::from_second(60).ok())
        );
        assert_eq!(read(&[("tailLines", "x")]), Err(400));
        assert_eq!(read(&[("tailLines", "-1")]), Err(422));
        assert_eq!(read(&[("limitBytes", "0")]), Err(422));
        assert_eq!(
            read(&[("sinceSeconds", "1"), ("sinceTime", "2026-01-01T00:00:00Z")]),
            Err(422)
        );
        assert_eq!(read(&[("stream", "Stderr")]), Err(501));
    }
}
