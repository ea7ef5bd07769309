//! What a container left behind when it ended.
//!
//! Owns: reading the termination message from the file, or from the tail of the log, and how much of it a status has. Upstream:
//! `getTerminationMessage` in `pkg/kubelet/kuberuntime/kuberuntime_container.go`, v1.36.

use std::path::Path;

use host::{FileError, open_regular, read_tail};
use k8s_openapi::api::core::v1::Pod;
use runtime::api::{ContainerState, ContainerStatus};

use crate::off_thread::off_thread;
use crate::paths::Paths;
use crate::pod::{self, label};

/// Upstream: `MaxContainerTerminationMessageLength`, `…LogLength`, `…LogLines`.
const MAX_MESSAGE_LEN: u64 = 4096;
const MAX_LOG_LEN: usize = 2048;
const MAX_LOG_LINES: usize = 80;
/// Read of a log to find its last lines: their times and streams come on top.
const LOG_TAIL_BYTES: u64 = 64 * 1024;
/// All containers of a pod together; upstream: `MaxPodTerminationMessageLogLength`.
const MAX_POD_MESSAGE_LEN: usize = 12 * 1024;

/// The container may have made anything of the file: a pipe without a writer, a link to the node's files.
fn tail(path: &Path, max: u64) -> Result<Vec<u8>, FileError> {
    let file = open_regular(path)?;
    read_tail(&file, max).map_err(|source| FileError::Io {
        path: path.to_owned(),
        source,
    })
}

/// The last lines of a log in the CRI format, without time and stream.
fn last_log_lines(paths: &Paths, path: &Path) -> String {
    let bytes = crate::container_log::open(paths, path)
        .ok()
        .and_then(|file| read_tail(&file, LOG_TAIL_BYTES).ok());
    let Some(bytes) = bytes else {
        return String::new();
    };
    let text = String::from_utf8_lossy(&bytes);
    let mut content = String::new();
    for line in text.lines() {
        // `<time> <stream> <P|F> <text>`
        let mut parts = line.splitn(4, ' ');
        let (Some(_), Some(_), Some(flag)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        content.push_str(parts.next().unwrap_or_default());
        if flag != "P" {
            content.push('\n');
        }
    }
    let lines: Vec<&str> = content.split_inclusive('\n').collect();
    let mut kept = lines[lines.len().saturating_sub(MAX_LOG_LINES)..].concat();
    if kept.len() > MAX_LOG_LEN {
        let mut start = kept.len() - MAX_LOG_LEN;
        while !kept.is_char_boundary(start) {
            start += 1;
        }
        kept = kept[start..].to_owned();
    }
    kept
}

/// Fills `status.message` of every ended container, as its pod asked for. One whose files do not answer has its say
/// about that.
pub async fn fill_messages(paths: &Paths, containers: &mut [ContainerStatus]) {
    for status in containers {
        if status.state != ContainerState::Exited {
            continue;
        }
        let (paths, of) = (paths.clone(), status.clone());
        let message = match off_thread(move || message(&paths, &of)).await {
            Ok(message) => message,
            Err(error) => format!("Error on reading termination log: {error}"),
        };
        if !message.is_empty() {
            if !status.message.is_empty() {
                status.message.push_str(": ");
            }
            status.message.push_str(&message);
        }
    }
}

fn message(paths: &Paths, status: &ContainerStatus) -> String {
    let annotation = |key: &str| {
        status
            .annotations
            .get(key)
            .map(String::as_str)
            .unwrap_or_default()
    };
    let path = annotation(label::TERMINATION_MESSAGE_PATH);
    let fallback = annotation(label::TERMINATION_MESSAGE_POLICY) == "FallbackToLogsOnError"
        && (status.exit_code != 0 || status.reason == "OOMKilled");
    let mut message = String::new();
    let mut check_logs = fallback;
    if let Some(mount) = status
        .mounts
        .iter()
        .find(|m| !path.is_empty() && m.container_path == path)
    {
        match tail(&mount.host_path, MAX_MESSAGE_LEN) {
            Ok(bytes) => {
                message = String::from_utf8_lossy(&bytes).into_owned();
                check_logs = fallback && message.is_empty();
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                message = format!("Error on reading termination log {error}");
                check_logs = false;
            }
        }
    }
    if check_logs {
        message = last_log_lines(paths, &status.log_path);
    }
    message
}

/// How many bytes the message of each container of the pod may have in its status. Upstream: `normalizeStatus`.
pub fn message_share(pod: &Pod) -> usize {
    let containers = pod::containers(pod).len()
        + pod::init_containers(pod).len()
        + pod::ephemeral_containers(pod).len();
    MAX_POD_MESSAGE_LEN / containers.max(1)
}

/// At most so many bytes are left, and no half of a letter.
pub fn cut(message: &mut String, bytes: usize) {
    message.truncate(message.floor_char_boundary(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_lose_their_head() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(
            &path,
            "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stderr P tw\n2026-01-01T00:00:00Z stderr F o\n",
        )
        .unwrap();
        let paths = Paths::new(dir.path().into(), dir.path().into());
        assert_eq!(last_log_lines(&paths, &path), "one\ntwo\n");
        // A link in the place of a log is no log.
        let link = dir.path().join("1.log");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(last_log_lines(&paths, &link), "");
    }

    fn ended(log_path: std::path::PathBuf) -> ContainerStatus {
        ContainerStatus {
            id: "c".into(),
            sandbox_id: "s".into(),
            metadata: Default::default(),
            state: ContainerState::Exited,
            created_at: jiff::Timestamp::UNIX_EPOCH,
            started_at: None,
            finished_at: None,
            exit_code: 1,
            signal: None,
            reason: "Error".into(),
            message: String::new(),
            image: String::new(),
            image_id: String::new(),
            image_ref: String::new(),
            labels: Default::default(),
            annotations: Default::default(),
            log_path,
            pid: None,
            resources: Default::default(),
            user: None,
            stop_signal: String::new(),
            mounts: vec![],
            origin: Default::default(),
        }
    }

    #[tokio::test]
    async fn a_pipe_in_the_files_place_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for pipe in ["pipe", "0.log"] {
            nix::unistd::mkfifo(&at(pipe), nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        std::fs::write(at("secret"), "the node's").unwrap();
        std::os::unix::fs::symlink("secret", at("link")).unwrap();
        std::fs::write(at("said"), format!("{}end", "x".repeat(5000))).unwrap();
        std::fs::File::create(at("sparse"))
            .unwrap()
            .set_len(3 << 30)
            .unwrap();
        let paths = Paths::new(dir.path().into(), dir.path().into());
        let path = "/dev/termination-log";
        for (file, expect) in [
            ("pipe", "is a named pipe, not a regular file"),
            ("link", "is a symbolic link, not a regular file"),
            ("said", "xend"),
            ("sparse", "\0"),
            ("none", ""),
        ] {
            let mut status = ended(at("0.log"));
            let mut note = |key: &str, value: &str| {
                status.annotations.insert(key.to_owned(), value.to_owned());
            };
            note(label::TERMINATION_MESSAGE_PATH, path);
            note(label::TERMINATION_MESSAGE_POLICY, "FallbackToLogsOnError");
            status.mounts.push(runtime::api::Mount {
                container_path: path.to_owned(),
                host_path: at(file),
                ..runtime::api::Mount::default()
            });
            let mut list = [status];
            let begin = std::time::Instant::now();
            fill_messages(&paths, &mut list).await;
            assert!(
                begin.elapsed() < std::time::Duration::from_secs(2),
                "{file}"
            );
            let message = &list[0].message;
            assert!(message.ends_with(expect), "{file}: {message:.80}");
            assert!(
                message.len() <= 4096 && !message.contains("the node's"),
                "{file}"
            );
        }
    }
}
