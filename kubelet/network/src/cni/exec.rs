//! One call of one plugin.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::pod_link::POD_LINK;
use crate::{NetworkError, SandboxNetwork};

/// Upstream's kubelet gives a sandbox 2 minutes by its runtime request timeout.
const TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Add,
    Delete,
}

impl Command {
    fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Delete => "DEL",
        }
    }
}

pub struct Call<'a> {
    pub command: Command,
    pub plugin: &'a Value,
    pub input: Value,
    pub sandbox: &'a SandboxNetwork,
    pub bin_dirs: &'a [PathBuf],
}

fn kind(plugin: &Value) -> &str {
    plugin
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The plugin's program; `None`: it is in none of the directories.
pub fn program(plugin: &Value, bin_dirs: &[PathBuf]) -> Option<PathBuf> {
    let kind = kind(plugin);
    bin_dirs
        .iter()
        .map(|dir| dir.join(kind))
        .find(|path| path.is_file())
}

/// Runs the plugin. Its result for ADD, null for DEL.
pub async fn run(call: &Call<'_>) -> Result<Value, NetworkError> {
    let kind = kind(call.plugin);
    let command = call.command.as_str();
    let failed = |code: u32, message: String| NetworkError::Cni {
        plugin: kind.to_owned(),
        command,
        code,
        message,
    };

    let Some(program) = program(call.plugin, call.bin_dirs) else {
        let dirs: Vec<_> = call
            .bin_dirs
            .iter()
            .map(|dir| dir.display().to_string())
            .collect();
        return Err(failed(
            0,
            format!("failed to find plugin {kind:?} in path {dirs:?}"),
        ));
    };
    let path: Vec<_> = call
        .bin_dirs
        .iter()
        .map(|dir| dir.display().to_string())
        .collect();
    // A namespace that is gone is told as none, so that DEL can free the rest.
    let netns = if call.command == Command::Add || call.sandbox.netns.exists() {
        call.sandbox.netns.clone()
    } else {
        PathBuf::new()
    };
    let mut child = tokio::process::Command::new(&program)
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", &call.sandbox.sandbox_id)
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", POD_LINK)
        .env("CNI_PATH", path.join(":"))
        .env("CNI_ARGS", arguments(call.sandbox))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| NetworkError::io(format!("run {}", program.display()), e))?;
    let stdin = child.stdin.take();
    let input = call.input.to_string();
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // A plugin may end without reading everything; its own message says why.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = match tokio::time::timeout(TIMEOUT, both).await {
        Ok(output) => {
            output.map_err(|e| NetworkError::io(format!("run {}", program.display()), e))?
        }
        Err(_) => return Err(failed(0, format!("no answer within {TIMEOUT:?}"))),
    };
    if output.status.success() {
        return match call.command {
            Command::Delete => Ok(Value::Null),
            Command::Add => serde_json::from_slice(&output.stdout)
                .map_err(|e| failed(0, format!("its result is no JSON: {e}"))),
        };
    }
    let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let code = told
        .get("code")
        .and_then(Value::as_u64)
        .and_then(|code| code.try_into().ok())
        .unwrap_or(0);
    let part = |name: &str| told.get(name).and_then(Value::as_str).unwrap_or_default();
    let message = match (part("msg"), part("details")) {
        ("", _) => format!(
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ),
        (message, "") => message.to_owned(),
        (message, details) => format!("{message}; {details}"),
    };
    Err(failed(code, message))
}

/// Upstream: containerd's and dockershim's arguments, which plugins such as Calico read.
fn arguments(sandbox: &SandboxNetwork) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        sandbox.namespace, sandbox.name, sandbox.sandbox_id, sandbox.uid
    )
}
