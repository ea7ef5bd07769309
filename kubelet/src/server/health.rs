//! `/healthz` and `/configz`.
//!
//! Upstream: `k8s.io/apiserver/pkg/server/healthz`, `k8s.io/component-base/configz`.

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::json;

use super::{ApiError, Server};

const CHECKS: [&str; 3] = ["ping", "log", "syncloop"];

fn check(server: &Server, name: &str) -> Result<(), String> {
    match name {
        "syncloop" => server.context.sync_loop_health(),
        // Answering is the proof.
        _ => Ok(()),
    }
}

/// Every check; `?verbose` lists them, `?exclude=NAME` leaves one out.
pub(super) async fn all(State(server): State<Server>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let pairs = || {
        query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    };
    let verbose = pairs().any(|(key, _)| key == "verbose");
    let excluded: Vec<&str> = pairs()
        .filter(|(key, _)| *key == "exclude")
        .map(|(_, value)| value)
        .collect();
    let mut text = String::new();
    let mut failed = false;
    for name in CHECKS {
        if excluded.contains(&name) {
            text.push_str(&format!("[+]{name} excluded: ok\n"));
            continue;
        }
        match check(&server, name) {
            Ok(()) => text.push_str(&format!("[+]{name} ok\n")),
            Err(reason) => {
                failed = true;
                tracing::warn!(check = name, reason, "healthz check failed");
                text.push_str(&format!("[-]{name} failed: reason withheld\n"));
            }
        }
    }
    if failed {
        text.push_str("healthz check failed\n");
        return (StatusCode::INTERNAL_SERVER_ERROR, text).into_response();
    }
    if verbose {
        text.push_str("healthz check passed\n");
        return text.into_response();
    }
    "ok".into_response()
}

/// One check, `/healthz/syncloop`.
pub(super) async fn one(
    State(server): State<Server>,
    Path(name): Path<String>,
) -> Result<&'static str, ApiError> {
    if !CHECKS.contains(&name.as_str()) {
        return Err(ApiError::not_found("404 page not found\n"));
    }
    match check(&server, &name) {
        Ok(()) => Ok("ok"),
        Err(reason) => Err(ApiError::internal(format!(
            "internal server error: {reason}\n"
        ))),
    }
}

/// The configuration in effect.
pub(super) async fn configz(State(server): State<Server>) -> Json<serde_json::Value> {
    Json(json!({ "kubeletconfig": server.context.configz() }))
}
