//! Health checks and their pages: `/healthz`, `/livez`, `/readyz`, with `?verbose` and `?exclude=name`, and one page a check.
//!
//! Upstream: `k8s.io/apiserver/pkg/server/healthz`.

use std::sync::{Arc, RwLock};

use axum::Router;
use axum::extract::{Path, RawQuery};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;

type Check = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Where a check is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `/healthz`, `/livez` and `/readyz`.
    Always,
    /// `/healthz` and `/livez`: failing means that a restart would help.
    Live,
    /// `/readyz` only: failing means that the process should get no traffic yet.
    Ready,
}

/// The named checks of a process; cheap to clone. Checks run when a page is asked for and must not block.
#[derive(Clone, Default)]
pub struct Health {
    checks: Arc<RwLock<Vec<(String, Kind, Check)>>>,
}

impl Health {
    /// Checks with `ping` alone.
    pub fn new() -> Self {
        let health = Self::default();
        health.add("ping", Kind::Always, || Ok(()));
        health
    }

    /// Adds or replaces a check.
    pub fn add(
        &self,
        name: &str,
        kind: Kind,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) {
        let mut checks = self
            .checks
            .write()
            .expect("no panic while the lock is held");
        checks.retain(|(n, _, _)| n != name);
        checks.push((name.to_string(), kind, Arc::new(check)));
    }

    /// Routes of the three pages and of each check (`/healthz/NAME`).
    pub fn router(&self) -> Router {
        let mut router = Router::new();
        for page in ["healthz", "livez", "readyz"] {
            let (all, one) = (self.clone(), self.clone());
            router = router
                .route(
                    &format!("/{page}"),
                    get(move |RawQuery(query): RawQuery| async move { all.page(page, query) }),
                )
                .route(
                    &format!("/{page}/{{*name}}"),
                    get(move |Path(name): Path<String>| async move { one.single(&name) }),
                );
        }
        router
    }

    /// Runs the checks of a page: every name with its result.
    pub fn run(&self, page: &str) -> Vec<(String, Result<(), String>)> {
        let wanted = |kind: Kind| match page {
            "readyz" => kind != Kind::Live,
            _ => kind != Kind::Ready,
        };
        let checks: Vec<_> = {
            let checks = self.checks.read().expect("no panic while the lock is held");
            checks
                .iter()
                .filter(|(_, kind, _)| wanted(*kind))
                .cloned()
                .collect()
        };
        checks
            .into_iter()
            .map(|(name, _, check)| (name, check()))
            .collect()
    }

    fn page(&self, page: &str, query: Option<String>) -> Response {
        let query = query.unwrap_or_default();
        let pairs: Vec<(&str, &str)> = query
            .split('&')
            .map(|p| p.split_once('=').unwrap_or((p, "")))
            .collect();
        let excluded: Vec<&str> = pairs
            .iter()
            .filter(|(k, _)| *k == "exclude")
            .map(|(_, v)| *v)
            .collect();
        let verbose = pairs.iter().any(|(k, _)| *k == "verbose");
        let mut text = String::new();
        let mut failed = Vec::new();
        for (name, result) in self.run(page) {
            if excluded.contains(&name.as_str()) {
                text += &format!("[+]{name} excluded: ok\n");
                continue;
            }
            match result {
                Ok(()) => text += &format!("[+]{name} ok\n"),
                Err(reason) => {
                    text += &format!("[-]{name} failed: reason withheld\n");
                    tracing::info!(check = name, %reason, "{page} check failed");
                    failed.push(name);
                }
            }
        }
        if !failed.is_empty() {
            return (
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("{text}{page} check failed\n"),
            )
                .into_response();
        }
        if verbose {
            format!("{text}{page} check passed\n").into_response()
        } else {
            "ok".into_response()
        }
    }

    fn single(&self, name: &str) -> Response {
        let check = {
            let checks = self.checks.read().expect("no panic while the lock is held");
            checks
                .iter()
                .find(|(n, _, _)| n == name)
                .map(|(_, _, check)| check.clone())
        };
        match check.map(|check| check()) {
            Some(Ok(())) => "ok".into_response(),
            Some(Err(reason)) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("internal server error: {reason}\n"),
            )
                .into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_differ_by_kind() {
        let health = Health::new();
        health.add("leader", Kind::Live, || Err("lost".into()));
        health.add("synced", Kind::Ready, || Ok(()));
        let names = |page: &str| {
            health
                .run(page)
                .into_iter()
                .map(|(n, _)| n)
                .collect::<Vec<_>>()
        };
        assert_eq!(names("healthz"), ["ping", "leader"]);
        assert_eq!(names("readyz"), ["ping", "synced"]);
        assert_eq!(health.page("healthz", None).status(), 500);
        assert_eq!(
            health
                .page("healthz", Some("exclude=leader".into()))
                .status(),
            200
        );
        assert_eq!(health.page("readyz", Some("verbose".into())).status(), 200);
    }
}
