//! Carries out one probe: exec, HTTP, TCP or gRPC.
//!
//! Owns: the three tries after an error, and the events. Upstream: `pkg/kubelet/prober/prober.go`, `pkg/probe`, v1.36.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use runtime::api::{Runtime, RuntimeError};
use tokio::net::TcpStream;

use super::ProbeType;
use super::grpc::GrpcError;
use super::http::{self, HttpError, HttpGet};
use crate::environment::expansion::{MAX_BYTES, TooLong, expand};
use crate::events::{KubeletRecorder, Type, reason};
use crate::rlimit::is_shortage;
use crate::status::manager::StatusManager;

/// Upstream: `maxProbeRetries`.
const MAX_TRIES: usize = 3;
/// Bytes of a command's output that are kept. Upstream: `maxReadLength` of `pkg/probe/exec`.
const MAX_OUTPUT: usize = 10 * 1024;

pub(super) struct Context {
    pub runtime: Arc<dyn Runtime>,
    pub status: Arc<StatusManager>,
    pub recorder: KubeletRecorder,
}

/// What one try gave.
enum Answer {
    Success,
    /// Counts as success; the event says why it is odd.
    Warning(String),
    Failure(String),
    /// The probe itself went wrong.
    Error(String),
}

pub(super) enum Outcome {
    Success,
    Failure,
    Error,
}

impl Context {
    pub async fn probe(
        &self,
        probe_type: ProbeType,
        spec: &Probe,
        pod: &Pod,
        container: &Container,
        id: &str,
        pod_ip: &str,
    ) -> Outcome {
        let mut answer = Answer::Error(String::new());
        for _ in 0..MAX_TRIES {
            answer = self.run(spec, container, id, pod_ip).await;
            if !matches!(answer, Answer::Error(_)) {
                break;
            }
        }
        let name = probe_type.as_str();
        let event = |reason: &str, message: String| {
            self.recorder
                .container(pod, &container.name, Type::Warning, reason, message);
        };
        match answer {
            Answer::Success => Outcome::Success,
            Answer::Warning(output) => {
                event(
                    reason::PROBE_WARNING,
                    format!("{name} probe warning: {output}"),
                );
                Outcome::Success
            }
            Answer::Failure(output) => {
                event(reason::UNHEALTHY, format!("{name} probe failed: {output}"));
                Outcome::Failure
            }
            Answer::Error(error) => {
                event(
                    reason::UNHEALTHY,
                    format!("{name} probe errored and resulted in unknown state: {error}"),
                );
                Outcome::Error
            }
        }
    }

    async fn run(&self, spec: &Probe, container: &Container, id: &str, pod_ip: &str) -> Answer {
        let timeout = Duration::from_secs(
            u64::try_from(spec.timeout_seconds.unwrap_or(1))
                .unwrap_or(1)
                .max(1),
        );
        if let Some(exec) = &spec.exec {
            let command = exec.command.as_deref().unwrap_or_default();
            return match expand_command(command, container) {
                Ok(command) => self.exec(id, &command, timeout).await,
                Err(error) => Answer::Error(format!("the probe's command has {error}")),
            };
        }
        if let Some(get) = &spec.http_get {
            return match HttpGet::new(get, container, pod_ip, "probe") {
                Ok(request) => http_probe(request, timeout).await,
                Err(error) => Answer::Error(error.to_string()),
            };
        }
        if let Some(tcp) = &spec.tcp_socket {
            let host = tcp
                .host
                .as_deref()
                .filter(|h| !h.is_empty())
                .unwrap_or(pod_ip);
            return match http::resolve_container_port(&tcp.port, container) {
                Ok(port) => tcp_probe(host, port, timeout).await,
                Err(error) => Answer::Error(error.to_string()),
            };
        }
        if let Some(grpc) = &spec.grpc {
            let Ok(port) = u16::try_from(grpc.port) else {
                return Answer::Error(format!("invalid port {}", grpc.port));
            };
            let service = grpc.service.as_deref().unwrap_or_default();
            return match super::grpc::check(pod_ip, port, service, timeout).await {
                Ok(()) => Answer::Success,
                Err(error @ GrpcError::Shortage { .. }) => unknown(&error),
                Err(error) => Answer::Failure(error.to_string()),
            };
        }
        Answer::Error(format!("missing probe handler for {}", container.name))
    }

    async fn exec(&self, id: &str, command: &[String], timeout: Duration) -> Answer {
        match self
            .runtime
            .exec_sync(id, command, Some(timeout), MAX_OUTPUT)
            .await
        {
            Ok(response) => {
                let mut output = response.stdout;
                output.extend(response.stderr);
                output.truncate(MAX_OUTPUT);
                let output = String::from_utf8_lossy(&output).into_owned();
                if response.exit_code == 0 {
                    Answer::Success
                } else {
                    Answer::Failure(output)
                }
            }
            Err(RuntimeError::Timeout { .. }) => Answer::Failure(format!(
                "command timed out: {} timed out after {}",
                go_list(command),
                go_seconds(timeout)
            )),
            Err(error) => Answer::Error(error.to_string()),
        }
    }
}

/// By what is written in the pod itself: a variable of another source is empty here, and the last of two of one name counts.
/// Upstream: `ExpandContainerCommandOnlyStatic`, `v1EnvVarsToMap`.
fn expand_command(command: &[String], container: &Container) -> Result<Vec<String>, TooLong> {
    let value_of = |name: &str| {
        let mut variables = container.env.iter().flatten().rev();
        let found = variables.find(|variable| variable.name == name)?;
        Some(found.value.as_deref().unwrap_or_default())
    };
    let mut room = MAX_BYTES;
    let words = command.iter().map(|word| {
        let word = expand(word, room, value_of)?;
        room -= word.len();
        Ok(word)
    });
    words.collect()
}

/// The node could not even ask: that is no failure of the container.
///
/// DIFFERS: upstream counts it as one, and restarts containers of a node that is short of files.
fn unknown(error: &dyn std::error::Error) -> Answer {
    tracing::error!(%error, "a probe could not be carried out");
    Answer::Error(error.to_string())
}

fn go_list(command: &[String]) -> String {
    format!("{:?}", command.join(" "))
}

fn go_seconds(d: Duration) -> String {
    component_base::duration::format(d)
}

async fn http_probe(request: HttpGet, timeout: Duration) -> Answer {
    match tokio::time::timeout(timeout, http::get_following_redirects(&request)).await {
        Err(_) => Answer::Failure(format!(
            "Get {:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
            request.url()
        )),
        Ok(Err(error @ HttpError::Shortage { .. })) => unknown(&error),
        Ok(Err(error)) => Answer::Failure(format!("Get {:?}: {error}", request.url())),
        Ok(Ok(response)) => match response.status {
            200..=299 => Answer::Success,
            300..=399 => Answer::Warning(format!(
                "Probe terminated redirects, Response body: {}",
                response.body
            )),
            code => Answer::Failure(format!("HTTP probe failed with statuscode: {code}")),
        },
    }
}

async fn tcp_probe(host: &str, port: u16, timeout: Duration) -> Answer {
    let address = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    match tokio::time::timeout(timeout, TcpStream::connect(address.as_str())).await {
        Ok(Ok(_)) => Answer::Success,
        Ok(Err(error)) if is_shortage(&error) => unknown(&error),
        Ok(Err(error)) => Answer::Failure(format!(
            "dial tcp {address}: connect: {}",
            http::plain_io_error(&error)
        )),
        Err(_) => Answer::Failure(format!("dial tcp {address}: i/o timeout")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell would take what is left of `$(NAME)` for a command.
    #[test]
    fn a_probes_command_has_the_variables_that_the_pod_spells_out() {
        let container: Container = serde_json::from_value(serde_json::json!({
            "name": "c",
            "env": [
                {"name": "PORT", "value": "80"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "EMPTY"},
                {"name": "PORT", "value": "8080"},
            ],
        }))
        .unwrap();
        let check = |word: &str, expect: &str| {
            let words = expand_command(&[word.to_owned()], &container);
            assert_eq!(words.unwrap(), [expect]);
        };
        check("http://[$(IP)]:$(PORT)/$(EMPTY)", "http://[]:8080/");
        check("$(NONE) $$(PORT)", "$(NONE) $(PORT)");
    }
}
