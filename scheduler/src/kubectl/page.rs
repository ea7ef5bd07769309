//! `kubectl gantry page`: brings the scheduler's page to a browser of this machine, with the kubeconfig's credentials.
//!
//! A browser has neither the credentials nor the scheduler's CA, so this serves `/debug/scheduling` on 127.0.0.1 and asks the scheduler for each path below
//! it as [`super::ask`] does; the credentials stay here. Whoever reaches the address speaks with the user's rights, so a request has to know a random word of
//! the path (other users of the machine, other pages of the browser), and to name the address itself as its host (a name of a stranger's that leads here:
//! DNS rebinding). Nothing but `GET` below the page's path is passed on.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use clap::Args;
use component_base::serving;
use component_base::shutdown::Shutdown;
use http::{HeaderMap, HeaderName, Method, StatusCode, header};

use super::Clients;

#[cfg(test)]
mod tests;

/// The page's path at the scheduler.
const PAGE: &str = "/debug/scheduling";

/// What of a request the scheduler has to know.
const ASKED: [HeaderName; 2] = [header::ACCEPT, HeaderName::from_static("last-event-id")];

/// What of an answer the browser has to know.
const ANSWERED: [HeaderName; 9] = [
    header::CONTENT_TYPE,
    header::CONTENT_SECURITY_POLICY,
    header::X_CONTENT_TYPE_OPTIONS,
    header::X_FRAME_OPTIONS,
    header::REFERRER_POLICY,
    header::CACHE_CONTROL,
    header::LOCATION,
    header::RETRY_AFTER,
    HeaderName::from_static("cross-origin-resource-policy"),
];

/// The command.
#[derive(Args)]
pub struct Page {
    /// The port on 127.0.0.1; 0 takes one that is free.
    #[arg(long, default_value_t = 0)]
    port: u16,
}

impl Page {
    /// Serves until the process ends.
    ///
    /// # Errors
    /// The scheduler is not reached or refuses the user; the port is taken.
    pub async fn serve(&self, clients: Clients) -> anyhow::Result<()> {
        may_look(&clients).await?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let listener = serving::listen(address).await?;
        let local = Local::new(Arc::new(clients), listener.local_addr()?.port());
        println!("{}", local.url());
        eprintln!(
            "Whoever has this address looks with your rights, until this command is interrupted."
        );
        serving::serve_insecure(listener, local.router(), Shutdown::new()).await;
        Ok(())
    }
}

/// Better said here than in a browser.
async fn may_look(clients: &Clients) -> anyhow::Result<()> {
    use http_body_util::BodyExt as _;
    let request = Request::get(PAGE).body(kube::client::Body::empty())?;
    let response = clients.scheduler.send(request).await;
    let response =
        response.context("asking the scheduler (--scheduler, --insecure-skip-tls-verify)")?;
    let code = response.status();
    if code.is_success() {
        return Ok(());
    }
    let body = response.into_body().collect().await?.to_bytes();
    let told: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    match told.as_ref().and_then(|v| v.get("message")?.as_str()) {
        Some(message) => bail!("{message}"),
        None => bail!("{PAGE}: {code}"),
    }
}

/// The page as it is served here.
#[derive(Clone)]
struct Local {
    clients: Arc<Clients>,
    /// In every path.
    word: String,
    port: u16,
}

impl Local {
    fn new(clients: Arc<Clients>, port: u16) -> Self {
        let word = format!("{:032x}", rand::random::<u128>());
        Local {
            clients,
            word,
            port,
        }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/{}{PAGE}", self.port, self.word)
    }

    fn router(self) -> Router {
        Router::new().fallback(forward).with_state(self)
    }

    /// The path at the scheduler, if this may be asked.
    fn admitted<'a>(
        &self,
        method: &Method,
        path: &'a str,
        headers: &HeaderMap,
    ) -> Result<&'a str, (StatusCode, &'static str)> {
        let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let hosts = ["127.0.0.1", "localhost"].map(|host| format!("{host}:{}", self.port));
        if !value("host").is_some_and(|host| hosts.iter().any(|own| own == host)) {
            return Err((StatusCode::MISDIRECTED_REQUEST, "not the host served here"));
        }
        // Another page of the browser asks. An address that is typed or opened by a program comes from nowhere ("none").
        let from = value("sec-fetch-site").unwrap_or("none");
        if !matches!(from, "none" | "same-origin") {
            return Err((StatusCode::FORBIDDEN, "asked by another page"));
        }
        let path = path.strip_prefix('/').unwrap_or_default();
        let (word, rest) = path.split_at_checked(self.word.len()).unwrap_or_default();
        if !same(word, &self.word) {
            return Err((StatusCode::NOT_FOUND, "the address lacks its random word"));
        }
        let below = rest.strip_prefix(PAGE);
        let dots = |segment: &str| {
            let segment = segment.to_ascii_lowercase().replace("%2e", ".");
            segment == "." || segment == ".."
        };
        if !below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
            || rest.split('/').any(dots)
        {
            return Err((StatusCode::NOT_FOUND, "only the page is served here"));
        }
        if method != Method::GET {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "the page is only read"));
        }
        Ok(rest)
    }
}

/// What [`Page::serve`] serves on that port, and its address: for a browser in a test.
#[cfg(test)]
pub(crate) fn local(clients: Clients, port: u16) -> (String, Router) {
    let local = Local::new(Arc::new(clients), port);
    (local.url(), local.router())
}

/// Takes the same time however much of it is right.
fn same(a: &str, b: &str) -> bool {
    let differences = a.bytes().zip(b.bytes()).map(|(a, b)| a ^ b);
    a.len() == b.len() && differences.fold(0, |all, one| all | one) == 0
}

async fn forward(State(local): State<Local>, request: Request) -> Response {
    let (path, headers) = (request.uri().path(), request.headers());
    let path = match local.admitted(request.method(), path, headers) {
        Ok(path) => path,
        Err(refusal) => return refusal.into_response(),
    };
    let mut asked = Request::get(path);
    for name in ASKED {
        if let Some(value) = headers.get(&name) {
            asked = asked.header(name, value);
        }
    }
    let Ok(asked) = asked.body(kube::client::Body::empty()) else {
        return (StatusCode::BAD_REQUEST, "no path").into_response();
    };
    match local.clients.scheduler.send(asked).await {
        Ok(answer) => {
            let (parts, body) = answer.into_parts();
            let mut response = Response::new(Body::new(body));
            *response.status_mut() = parts.status;
            for name in ANSWERED {
                if let Some(value) = parts.headers.get(&name) {
                    response.headers_mut().insert(name, value.clone());
                }
            }
            response
        }
        Err(error) => {
            let error = format!("the scheduler is not reached: {error}");
            let body = axum::Json(serde_json::json!({ "error": error }));
            (StatusCode::BAD_GATEWAY, body).into_response()
        }
    }
}
