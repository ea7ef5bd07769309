//! Exec, attach, port-forward, run: requests to streams, the runtime's sessions to the far ends of them.
//!
//! Upstream: `getExec`, `getAttach`, `getRun`, `getPortForward` of `pkg/kubelet/server/server.go`.

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use cri::session::process;
use runtime::api::StreamOptions;
use serde::Deserialize;
use streaming::{PortForwardOptions, RemoteCommand, RemoteCommandOptions, StreamConfig};

use super::{ApiError, Server};
use crate::pod;

/// The variable parts of a path.
#[derive(Deserialize)]
pub(super) struct Target {
    namespace: String,
    pod: String,
    uid: Option<String>,
    #[serde(default)]
    container: String,
}

/// What `/run` answers with, of each output: it is collected before the first byte is sent, for the sake of the exit code.
///
/// DIFFERS: upstream takes 16 MiB, the limit of its CRI's messages. Exec has no limit.
const MAX_RUN_OUTPUT: usize = 1 << 20;

type QueryPairs = Query<Vec<(String, String)>>;

impl Server {
    fn stream_config(&self) -> StreamConfig {
        StreamConfig {
            idle_timeout: self.options.streaming_idle_timeout,
            pool: self.stream_memory.clone(),
            shutdown: self.shutdown.clone(),
            ..StreamConfig::default()
        }
    }
}

/// `/exec/<namespace>/<pod>[/<uid>]/<container>?command=…`
pub(super) async fn exec(
    State(server): State<Server>,
    Path(target): Path<Target>,
    Query(query): QueryPairs,
    request: Request,
) -> Result<Response, ApiError> {
    let options = options(&request)?;
    let command: Vec<String> = query
        .into_iter()
        .filter(|(key, _)| key == "command")
        .map(|(_, value)| value)
        .collect();
    if command.is_empty() {
        return Err(ApiError::bad_request(
            "you must specify at least one command",
        ));
    }
    let pod = server.pod(&target.namespace, &target.pod, target.uid.as_deref())?;
    let container = server.running_container(&pod, &target.container).await?;
    let runtime = server.context.runtime().clone();
    let start = move || async move {
        let session = runtime
            .exec(&container.id, &command, &stream_options(options))
            .await;
        session.map(process).map_err(|error| error.to_string())
    };
    let config = server.stream_config();
    let response =
        streaming::serve_remote_command(request, RemoteCommand::Exec, options, config, start);
    Ok(response.map(Body::new))
}

/// `/attach/<namespace>/<pod>[/<uid>]/<container>`
pub(super) async fn attach(
    State(server): State<Server>,
    Path(target): Path<Target>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut options = options(&request)?;
    let pod = server.pod(&target.namespace, &target.pod, target.uid.as_deref())?;
    let container = server.running_container(&pod, &target.container).await?;
    // Whether there is a terminal was decided when the container was made, not now.
    let tty = pod::find_container(&pod, &target.container)
        .is_some_and(|(spec, _)| spec.tty.unwrap_or(false));
    let runtime = server.context.runtime().clone();
    let attached = StreamOptions {
        tty,
        stderr: options.stderr && !tty,
        ..stream_options(options)
    };
    options.tty &= tty;
    let start = move || async move {
        let session = runtime.attach(&container.id, &attached).await;
        session.map(process).map_err(|error| error.to_string())
    };
    let config = server.stream_config();
    let response =
        streaming::serve_remote_command(request, RemoteCommand::Attach, options, config, start);
    Ok(response.map(Body::new))
}

/// `/portForward/<namespace>/<pod>[/<uid>]`
pub(super) async fn port_forward(
    State(server): State<Server>,
    Path(target): Path<Target>,
    request: Request,
) -> Result<Response, ApiError> {
    let options = PortForwardOptions::from_request(&request).map_err(ApiError::bad_request)?;
    let pod = server.pod(&target.namespace, &target.pod, target.uid.as_deref())?;
    let sandbox = server.sandbox(&pod).await?;
    let runtime = server.context.runtime().clone();
    let connect = move |port: u16| {
        let (runtime, sandbox) = (runtime.clone(), sandbox.clone());
        async move {
            runtime
                .port_forward(&sandbox, port)
                .await
                .map_err(|error| error.to_string())
        }
    };
    let name = format!("{}, uid {}", pod::name(&pod), pod::uid(&pod));
    let config = server.stream_config();
    let response = streaming::serve_port_forward(request, name, options, config, connect);
    Ok(response.map(Body::new))
}

/// `/run/<namespace>/<pod>[/<uid>]/<container>?cmd=…`: the output once the command has ended.
pub(super) async fn run(
    State(server): State<Server>,
    Path(target): Path<Target>,
    Query(query): QueryPairs,
) -> Result<Response, ApiError> {
    let command = query
        .iter()
        .find(|(key, _)| key == "cmd")
        .map_or("", |(_, value)| value);
    let command: Vec<String> = command.split(' ').map(str::to_owned).collect();
    let pod = server.pod(&target.namespace, &target.pod, target.uid.as_deref())?;
    let container = server.container(&pod, &target.container).await?;
    let mut result = server
        .context
        .runtime()
        .exec_sync(&container.id, &command, None, MAX_RUN_OUTPUT)
        .await?;
    if result.exit_code != 0 {
        return Err(ApiError::internal(format!(
            "command '{}' exited with {}: {}",
            command.join(" "),
            result.exit_code,
            String::from_utf8_lossy(&result.stderr)
        )));
    }
    result.stdout.append(&mut result.stderr);
    Ok(result.stdout.into_response())
}

/// `/checkpoint/<namespace>/<pod>/<container>`
pub(super) async fn checkpoint(
    State(server): State<Server>,
    Path(target): Path<Target>,
) -> Result<Response, ApiError> {
    let pod = server.pod(&target.namespace, &target.pod, None)?;
    let name = &target.container;
    if pod::find_container(&pod, name).is_none() {
        return Err(ApiError::not_found(format!(
            "container {name} does not exist"
        )));
    }
    Err(ApiError::internal(format!(
        "checkpointing of {}/{}/{name} failed (not supported by this runtime)",
        target.namespace, target.pod
    )))
}

fn options(request: &Request) -> Result<RemoteCommandOptions, ApiError> {
    RemoteCommandOptions::from_query(request.uri().query().unwrap_or_default())
        .map_err(ApiError::bad_request)
}

fn stream_options(options: RemoteCommandOptions) -> StreamOptions {
    StreamOptions {
        stdin: options.stdin,
        stdout: options.stdout,
        stderr: options.stderr,
        tty: options.tty,
    }
}
