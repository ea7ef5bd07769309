//! When the node last shut down.
//!
//! Owns: one file below the kubelet's root, as upstream's, and the metrics that outlive a restart by it. Upstream: `pkg/kubelet/nodeshutdown/storage.go`, v1.37.

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::metrics;

/// Below the kubelet's root directory. Upstream: `localStorageStateFile`.
pub const FILE: &str = "graceful_node_shutdown_state";

/// What Go writes for no time.
const ZERO: &str = "0001-01-01T00:00:00Z";

/// `None`: never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub start: Option<Timestamp>,
    pub end: Option<Timestamp>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    start_time: String,
    end_time: String,
}

/// Why the file was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("{text:?}: {source}")]
    Time {
        text: String,
        #[source]
        source: jiff::Error,
    },
}

impl State {
    /// What the file holds; nothing if there is none.
    ///
    /// # Errors
    /// It cannot be read or understood.
    pub fn load(path: &Path) -> Result<Self, StateError> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(error.into()),
        };
        let written: Written = serde_json::from_slice(&text)?;
        Ok(Self {
            start: parse(written.start_time)?,
            end: parse(written.end_time)?,
        })
    }

    /// # Errors
    /// I/O; the old file stands.
    pub fn store(self, path: &Path) -> Result<(), StateError> {
        let text =
            |time: Option<Timestamp>| time.map_or_else(|| ZERO.to_owned(), |t| t.to_string());
        let written = Written {
            start_time: text(self.start),
            end_time: text(self.end),
        };
        let bytes = serde_json::to_vec(&written)?;
        Ok(host::atomic_file::write(path, &bytes)?)
    }

    /// A shutdown that is under way has no end yet.
    pub fn show(self) {
        let seconds = |time: Option<Timestamp>| time.map_or(0, Timestamp::as_second);
        metrics::GRACEFUL_SHUTDOWN_START_TIME.set(seconds(self.start));
        metrics::GRACEFUL_SHUTDOWN_END_TIME.set(seconds(self.end));
    }
}

fn parse(text: String) -> Result<Option<Timestamp>, StateError> {
    if text == ZERO || text.is_empty() {
        return Ok(None);
    }
    match text.parse() {
        Ok(time) => Ok(Some(time)),
        Err(source) => Err(StateError::Time { text, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_file_is_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        assert_eq!(State::load(&path).unwrap(), State::default());
        let start: Timestamp = "2026-01-02T03:04:05.123456789Z".parse().unwrap();
        let began = State {
            start: Some(start),
            end: None,
        };
        began.store(&path).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            r#"{"startTime":"2026-01-02T03:04:05.123456789Z","endTime":"0001-01-01T00:00:00Z"}"#
        );
        assert_eq!(State::load(&path).unwrap(), began);
        // Of another zone, as Go writes it.
        let text = r#"{"startTime":"2026-01-02T05:04:05.123456789+02:00","endTime":"2026-01-02T05:04:06+02:00"}"#;
        std::fs::write(&path, text).unwrap();
        let read = State::load(&path).unwrap();
        assert_eq!(read.start, Some(start));
        assert_eq!(read.end.unwrap().as_second(), start.as_second() + 1);
        for (torn, expect) in [
            ("{\"startTime\":", "EOF"),
            (r#"{"startTime":"noon","endTime":""}"#, "\"noon\""),
        ] {
            std::fs::write(&path, torn).unwrap();
            let error = State::load(&path).unwrap_err().to_string();
            assert!(error.starts_with(expect), "{error}");
        }
    }
}
