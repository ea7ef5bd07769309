//! Runs a plugin: one process, one request on its standard input, one answer from its standard output.
//!
//! Owns: the process, its bounds in time and bytes, and the metrics of both. It is the kubelet's child in the node's own
//! namespaces, with the kubelet's environment and what is configured, as upstream. Upstream: `ExecPlugin`,
//! `pkg/credentialprovider/plugin/plugin.go`, v1.37.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::config::EnvVar;
use crate::metrics;

/// How long a plugin may take. Upstream: the literal in `ExecPlugin`.
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// The longest answer. Source: ours; upstream reads whatever comes.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// What of its complaints is told. Source: ours.
const COMPLAINT_BYTES_MAX: usize = 8 << 10;

/// Why a plugin gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error("{path:?}: {source}")]
    Start {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("read and write its pipes: {0}")]
    Pipe(#[source] io::Error),
    #[error("it was not done after {} seconds", .0.as_secs_f32())]
    TimedOut(Duration),
    #[error("its answer is longer than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
    #[error("{status}: {complaint}")]
    Failed {
        status: std::process::ExitStatus,
        /// The begin of what it wrote to its standard error.
        complaint: String,
    },
}

/// A program and how it is called.
#[derive(Clone, Debug)]
pub struct Plugin {
    pub name: String,
    pub path: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<EnvVar>,
    pub timeout: Duration,
}

impl Plugin {
    /// Asks once. The plugin is not left running: when its time is over, or the caller is dropped, it is killed.
    ///
    /// # Errors
    /// See [`ExecError`]; a retry starts it anew.
    pub async fn ask(&self, request: &[u8]) -> Result<Vec<u8>, ExecError> {
        let begin = Instant::now();
        let outcome = self.run(request).await;
        metrics::CREDENTIAL_PLUGIN_DURATION
            .with_label_values(&[self.name.as_str()])
            .observe(begin.elapsed().as_secs_f64());
        if outcome.is_err() {
            metrics::CREDENTIAL_PLUGIN_ERRORS
                .with_label_values(&[self.name.as_str()])
                .inc();
        }
        outcome
    }

    async fn run(&self, request: &[u8]) -> Result<Vec<u8>, ExecError> {
        let child = Command::new(&self.path)
            .args(&self.args)
            .envs(self.env.iter().map(|v| (&v.name, &v.value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|source| ExecError::Start {
                path: self.path.clone(),
                source,
            })?;
        let mut group = Group(child);
        match tokio::time::timeout(self.timeout, talk(&mut group.0, request)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(ExecError::TimedOut(self.timeout)),
        }
    }
}

/// A plugin and what it started in its process group.
// DIFFERS: upstream kills the plugin alone when its time is over, and then waits for whoever still holds its output.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // `None`: it was waited for, and its number may be another's by now.
        if let Some(pid) = self.0.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It may have ended a moment ago; the runtime reaps it.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

async fn talk(child: &mut Child, request: &[u8]) -> Result<Vec<u8>, ExecError> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        let Some(mut stdin) = stdin else {
            return Ok(());
        };
        match stdin.write_all(request).await {
            // It may answer without having listened.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written.map_err(ExecError::Pipe),
        }
        // Dropped here: it reads to the end.
    };
    let answer = async {
        let mut bytes = vec![];
        if let Some(stdout) = stdout {
            let mut stdout = stdout.take(ANSWER_BYTES_MAX + 1);
            stdout
                .read_to_end(&mut bytes)
                .await
                .map_err(ExecError::Pipe)?;
        }
        match bytes.len() as u64 > ANSWER_BYTES_MAX {
            true => Err(ExecError::TooLong),
            false => Ok(bytes),
        }
    };
    let complaint = async {
        match stderr {
            Some(stderr) => read_begin(stderr).await.map_err(ExecError::Pipe),
            None => Ok(vec![]),
        }
    };
    let ((), answer, complaint) = tokio::try_join!(write, answer, complaint)?;
    let status = child.wait().await.map_err(ExecError::Pipe)?;
    match status.success() {
        true => Ok(answer),
        false => Err(ExecError::Failed {
            status,
            complaint: String::from_utf8_lossy(&complaint).into_owned(),
        }),
    }
}

/// To the end, but only the first bytes are kept.
async fn read_begin(mut from: impl AsyncRead + Unpin) -> io::Result<Vec<u8>> {
    let (mut kept, mut piece) = (vec![], vec![0; 4096]);
    loop {
        let count = from.read(&mut piece).await?;
        if count == 0 {
            return Ok(kept);
        }
        let room = COMPLAINT_BYTES_MAX - kept.len();
        kept.extend_from_slice(&piece[..count.min(room)]);
    }
}
