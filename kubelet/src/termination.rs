//! What a container left behind when it ended.
//!
//! Owns: reading the termination message from the file, or from the tail of the log. Upstream:
//! `getTerminationMessage` in `pkg/kubelet/kuberuntime/kuberuntime_container.go`, v1.36.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use runtime::api::{ContainerState, ContainerStatus};

use crate::pod::label;

/// Upstream: `MaxContainerTerminationMessageLength`, `…LogLength`, `…LogLines`.
const MAX_MESSAGE_LEN: u64 = 4096;
const MAX_LOG_LEN: usize = 2048;
const MAX_LOG_LINES: usize = 80;
/// All containers of a pod together; upstream: `MaxPodTerminationMessageLogLength`.
pub const MAX_POD_MESSAGE_LEN: usize = 12 * 1024;

fn tail(path: &Path, max: u64) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(max)))?;
    let mut out = vec![];
    file.take(max).read_to_end(&mut out)?;
    Ok(out)
}

/// The last lines of a log in the CRI format, without time and stream.
fn last_log_lines(path: &Path) -> String {
    let Ok(bytes) = tail(path, 64 * 1024) else {
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

/// Fills `status.message` of an ended container, as its pod asked for.
pub fn fill_message(status: &mut ContainerStatus) {
    if status.state != ContainerState::Exited {
        return;
    }
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
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => {
                message = format!(
                    "Error on reading termination log {}: {e}",
                    mount.host_path.display()
                );
                check_logs = false;
            }
        }
    }
    if check_logs {
        message = last_log_lines(&status.log_path);
    }
    if !message.is_empty() {
        if !status.message.is_empty() {
            status.message.push_str(": ");
        }
        status.message.push_str(&message);
    }
}

/// Holds the messages of a whole pod to their limit, evenly.
pub fn limit_pod(messages: &mut [&mut String]) {
    let total: usize = messages.iter().map(|m| m.len()).sum();
    if total <= MAX_POD_MESSAGE_LEN || messages.is_empty() {
        return;
    }
    let each = MAX_POD_MESSAGE_LEN / messages.len();
    for message in messages.iter_mut().filter(|m| m.len() > each) {
        let mut cut = each;
        while !message.is_char_boundary(cut) {
            cut -= 1;
        }
        message.truncate(cut);
    }
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
        assert_eq!(last_log_lines(&path), "one\ntwo\n");
    }

    #[test]
    fn a_pods_messages_share_a_limit() {
        let (mut a, mut b) = ("x".repeat(10_000), "y".repeat(10_000));
        limit_pod(&mut [&mut a, &mut b]);
        assert_eq!((a.len(), b.len()), (6144, 6144));
    }
}
