//! Lifecycle hooks: what a container runs after its start and before its end.
//!
//! Owns: exec, httpGet and sleep handlers. Never decides what a failure means. Upstream: `pkg/kubelet/lifecycle`, v1.36.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use runtime::api::{Runtime, RuntimeError};

use crate::events::{KubeletRecorder, Type};
use crate::pod;
use crate::prober::http::{self, HttpError, HttpGet};

/// Bytes of a command's output that are kept for the log. DIFFERS: upstream keeps 16 MiB; a probe's 10 KiB say as much.
const MAX_OUTPUT: usize = 10 * 1024;

/// Why a hook failed. The text may hold secrets: not for events.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error(
        "Exec lifecycle hook ({command:?}) for Container {container:?} in Pod {pod:?} failed - error: command exited with {exit_code}, message: {output:?}"
    )]
    Exec {
        command: Vec<String>,
        container: String,
        pod: String,
        exit_code: i32,
        output: String,
    },
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(
        "HTTP lifecycle hook ({path}) for Container {container:?} in Pod {pod:?} failed - error: {source}"
    )]
    Http {
        path: String,
        container: String,
        pod: String,
        #[source]
        source: HttpError,
    },
    #[error("the pod has no address yet")]
    NoAddress,
    #[error("Cannot run handler: invalid handler")]
    NoHandler,
}

/// Runs the handler to its end; the caller bounds the time.
///
/// # Errors
/// As the handler failed.
pub async fn run_handler(
    runtime: &dyn Runtime,
    recorder: &KubeletRecorder,
    pod: &Pod,
    container: &Container,
    container_id: &str,
    handler: &LifecycleHandler,
    pod_ip: Option<&str>,
) -> Result<(), HookError> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let response = runtime
            .exec_sync(container_id, &command, None, MAX_OUTPUT)
            .await?;
        if response.exit_code == 0 {
            return Ok(());
        }
        let mut output = response.stdout;
        output.extend(response.stderr);
        output.truncate(MAX_OUTPUT);
        return Err(HookError::Exec {
            command,
            container: container.name.clone(),
            pod: pod::format(pod),
            exit_code: response.exit_code,
            output: String::from_utf8_lossy(&output).into_owned(),
        });
    }
    if let Some(get) = &handler.http_get {
        let host = get
            .host
            .as_deref()
            .filter(|h| !h.is_empty())
            .or(pod_ip)
            .ok_or(HookError::NoAddress)?;
        let fail = |source| HookError::Http {
            path: get.path.clone().unwrap_or_default(),
            container: container.name.clone(),
            pod: pod::format(pod),
            source,
        };
        let mut request = HttpGet::new(get, container, host, "lifecycle").map_err(fail)?;
        return match http::get_following_redirects(&request).await {
            Ok(_) => Ok(()),
            Err(HttpError::HttpResponseToHttps) => {
                request.https = false;
                request
                    .headers
                    .retain(|(name, _)| !name.eq_ignore_ascii_case("Authorization"));
                http::get_following_redirects(&request)
                    .await
                    .map_err(fail)?;
                recorder.pod(
                    pod,
                    Type::Warning,
                    "LifecycleHTTPFallback",
                    format!("request to HTTPS lifecycle hook {}:{} got HTTP response, retry with HTTP succeeded", request.host, request.port),
                );
                Ok(())
            }
            Err(error) => Err(fail(error)),
        };
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(
            u64::try_from(sleep.seconds).unwrap_or(0),
        ))
        .await;
        return Ok(());
    }
    Err(HookError::NoHandler)
}

#[cfg(test)]
mod tests {
    use component_base::events::Recorder;
    use k8s_openapi::api::core::v1::HTTPGetAction;
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    use runtime::fake::FakeRuntime;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Many servers send `/stop` on to `/stop/`: the hook runs there.
    #[tokio::test]
    async fn a_hook_is_followed_to_where_it_is_sent_on_the_same_host() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let mut asked = vec![];
            for answer in [
                "HTTP/1.1 301 Moved Permanently\r\nLocation: /stop/\r\nContent-Length: 0\r\n\r\n",
                "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
            ] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 1024];
                let n = stream.read(&mut buffer).await.unwrap();
                let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
                asked.extend(text.lines().next().map(str::to_owned));
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            asked
        });
        let handler = LifecycleHandler {
            http_get: Some(HTTPGetAction {
                path: Some("/stop".into()),
                port: IntOrString::Int(port.into()),
                ..HTTPGetAction::default()
            }),
            ..LifecycleHandler::default()
        };
        let recorder = KubeletRecorder::new(Recorder::discard(), "n");
        let (runtime, pod, container) = (FakeRuntime::new(), Pod::default(), Container::default());
        let done = run_handler(
            &runtime,
            &recorder,
            &pod,
            &container,
            "id",
            &handler,
            Some("127.0.0.1"),
        );
        // What the server thinks of it is nobody's business.
        done.await.unwrap();
        let asked = server.await.unwrap();
        assert_eq!(asked, ["GET /stop HTTP/1.1", "GET /stop/ HTTP/1.1"]);
    }
}
