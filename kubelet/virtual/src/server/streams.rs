//! Exec, attach, port-forward: requests to streams, the provider's processes and connections to the far ends of them.
//!
//! What the provider has not is refused before the connection is upgraded, where that can be known: by asking for it first.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::response::Response;
use futures::FutureExt as _;
use http::StatusCode;
use kubelet_provider::{AttachOptions, Process, ProviderError, TerminalSize};
use serde::Deserialize;
use streaming::{PortForwardOptions, RemoteCommand, RemoteCommandOptions, StreamConfig};
use tokio::sync::mpsc;

use super::{Refused, Server};
use crate::metrics;

/// Sizes of a terminal on their way.
const SIZES: usize = 8;

/// The variable parts of a path.
#[derive(Deserialize)]
pub(super) struct Target {
    namespace: String,
    pod: String,
    uid: Option<String>,
    #[serde(default)]
    container: String,
}

impl Server {
    fn stream_config(&self) -> StreamConfig {
        StreamConfig {
            idle_timeout: self.streaming_idle_timeout,
            pool: self.stream_memory.clone(),
            shutdown: self.shutdown.clone(),
            ..StreamConfig::default()
        }
    }
}

fn bad_request(text: impl Into<String>) -> Refused {
    Refused(StatusCode::BAD_REQUEST, text.into())
}

fn options(request: &Request) -> Result<RemoteCommandOptions, Refused> {
    RemoteCommandOptions::from_query(request.uri().query().unwrap_or_default()).map_err(bad_request)
}

fn wanted(options: RemoteCommandOptions) -> AttachOptions {
    AttachOptions {
        stdin: options.stdin,
        stdout: options.stdout,
        stderr: options.stderr,
        tty: options.tty,
    }
}

/// The provider's process as the protocols know one.
fn process(process: Process) -> streaming::Process {
    let resize = process.resize.map(|to| {
        let (sender, mut sizes) = mpsc::channel::<streaming::TerminalSize>(SIZES);
        component_base::tasks::spawn_helper("terminal size", async move {
            while let Some(size) = sizes.recv().await {
                let size = TerminalSize {
                    width: size.width,
                    height: size.height,
                };
                if to.send(size).await.is_err() {
                    return;
                }
            }
        });
        sender
    });
    streaming::Process {
        stdin: process.stdin,
        stdout: process.stdout,
        stderr: process.stderr,
        resize,
        detaches_with_stdin: false,
        exit: process
            .exit
            .map(|exit| exit.map_err(|error| error.to_string()))
            .boxed(),
    }
}

/// Only an upgrade can become a stream: a process is not begun for anything else.
fn is_upgrade(request: &Request) -> bool {
    let extensions = request.extensions();
    request.headers().contains_key(http::header::UPGRADE)
        && extensions.get::<hyper::upgrade::OnUpgrade>().is_some()
}

/// `/exec/<namespace>/<pod>[/<uid>]/<container>?command=…`
pub(super) async fn exec(
    State(server): State<Server>,
    Path(target): Path<Target>,
    Query(query): Query<Vec<(String, String)>>,
    request: Request,
) -> Result<Response, Refused> {
    let options = options(&request)?;
    let commands = query.into_iter().filter(|(key, _)| key == "command");
    let command: Vec<String> = commands.map(|(_, value)| value).collect();
    if command.is_empty() {
        return Err(bad_request("you must specify at least one command"));
    }
    let found = server.pod(&target.namespace, &target.pod, target.uid.as_deref())?;
    server.container(&found, &target.container)?;
    let provider = server.provider.clone();
    let (id, container) = (found.id, target.container);
    let began = Instant::now();
    let started = async move {
        provider
            .exec(&id, &container, &command, &wanted(options))
            .await
    };
    serve(
        &server,
        request,
        RemoteCommand::Exec,
        options,
        "exec",
        began,
        started,
    )
    .await
}

/// `/attach/<namespace>/<pod>[/<uid>]/<container>`
pub(super) async fn attach(
    State(server): State<Server>,
    Path(target): Path<Target>,
    request: Request,
) -> Result<Response, Refused> {
    let options = options(&request)?;
    let found = server.pod(&target.namespace, &target.pod, target.uid.as_deref())?;
    server.container(&found, &target.container)?;
    let provider = server.provider.clone();
    let (id, container) = (found.id, target.container);
    let began = Instant::now();
    let started = async move { provider.attach(&id, &container, &wanted(options)).await };
    serve(
        &server,
        request,
        RemoteCommand::Attach,
        options,
        "attach",
        began,
        started,
    )
    .await
}

/// The provider is asked first, so that its refusal has a status of its own; a client that is then not upgraded hangs up on the
/// process by that.
async fn serve(
    server: &Server,
    request: Request,
    command: RemoteCommand,
    options: RemoteCommandOptions,
    call: &'static str,
    began: Instant,
    started: impl Future<Output = Result<Process, ProviderError>>,
) -> Result<Response, Refused> {
    let config = server.stream_config();
    if !is_upgrade(&request) {
        let never = || async { Err("no stream was asked for".to_owned()) };
        let refusal = streaming::serve_remote_command(request, command, options, config, never);
        return Ok(refusal.map(Body::new));
    }
    let outcome = started.await;
    metrics::called(call, began, outcome.is_ok());
    let far = process(outcome?);
    let start = move || async move { Ok(far) };
    let response = streaming::serve_remote_command(request, command, options, config, start);
    Ok(response.map(Body::new))
}

/// `/portForward/<namespace>/<pod>[/<uid>]`
pub(super) async fn port_forward(
    State(server): State<Server>,
    Path(target): Path<Target>,
    request: Request,
) -> Result<Response, Refused> {
    let options = PortForwardOptions::from_request(&request).map_err(bad_request)?;
    let found = server.pod(&target.namespace, &target.pod, target.uid.as_deref())?;
    let name = format!("{}, uid {}", found.id.name, found.id.uid);
    let (provider, id) = (server.provider.clone(), Arc::new(found.id));
    let connect = move |port: u16| {
        let (provider, id) = (provider.clone(), id.clone());
        async move {
            let began = Instant::now();
            let connection = provider.port_forward(&id, port).await;
            metrics::called("port_forward", began, connection.is_ok());
            connection.map_err(|error| error.to_string())
        }
    };
    let config = server.stream_config();
    let response = streaming::serve_port_forward(request, name, options, config, connect);
    Ok(response.map(Body::new))
}
