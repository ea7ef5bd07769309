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
        return match http::get(&request).await {
            Ok(_) => Ok(()),
            Err(HttpError::HttpResponseToHttps) => {
                request.https = false;
                request
                    .headers
                    .retain(|(name, _)| !name.eq_ignore_ascii_case("Authorization"));
                http::get(&request).await.map_err(fail)?;
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
