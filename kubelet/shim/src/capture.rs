//! What libcontainer logs of its failures.
//!
//! Its processes tell each other only the outermost words of an error; errno and path are in what they
//! log. So errors logged in the helper and its clones are caught in a pipe and go into the answer.

use std::fmt::Write;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Id, Level, Metadata, Subscriber, span};

use crate::sys;

/// Of the causes at most this much is told.
const MAX_BYTES: usize = 2048;

/// Words that only say once more that it failed.
const WRAPPERS: [&str; 6] = [
    "failed to initialize container process",
    "failed to run intermediate process",
    "failed to wait for init ready",
    "failed to run container process",
    "failed to remove cgroup manager",
    "error in sending intermediate error message",
];

/// The catching end.
pub struct Capture {
    pipe: OwnedFd,
    /// Kept open for as long as errors are to be caught.
    _listener: OwnedFd,
}

impl Capture {
    /// Catches from now on, here and in every clone. Once a process.
    pub fn begin() -> std::io::Result<Self> {
        let (pipe, listener) = sys::pipe()?;
        // Whoever logs must never wait for whoever reads.
        sys::set_nonblocking(&pipe)?;
        sys::set_nonblocking(&listener)?;
        let subscriber = Listener(listener.as_raw_fd());
        // It fails if there is one already: then that one catches.
        let _ = tracing::subscriber::set_global_default(subscriber);
        Ok(Self {
            pipe,
            _listener: listener,
        })
    }

    /// An error's own words, with what was logged of its causes.
    pub fn explain(&self, words: String) -> String {
        let mut text = Vec::new();
        let mut buffer = [0u8; 4096];
        while let Ok(count @ 1..) = sys::read(&self.pipe, &mut buffer) {
            text.extend_from_slice(&buffer[..count]);
        }
        join(words, &String::from_utf8_lossy(&text))
    }
}

/// Innermost first, as they were logged; nothing twice.
fn join(words: String, logged: &str) -> String {
    let mut whole = words;
    let mut told = Vec::new();
    for line in logged.lines() {
        let new = !line.is_empty() && !told.contains(&line) && !whole.contains(line);
        if new && !WRAPPERS.iter().any(|wrapper| line.starts_with(wrapper)) {
            told.push(line);
        }
    }
    for (index, line) in told.iter().enumerate() {
        if whole.len() + line.len() > MAX_BYTES {
            break;
        }
        whole.push_str(if index == 0 { ": " } else { "; " });
        whole.push_str(line);
    }
    whole
}

struct Listener(RawFd);

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::ERROR)
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let line = format!("{}{}", text.message, text.fields).replace('\n', " ");
        let _ = sys::write_fd(self.0, format!("{line}\n").as_bytes());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// `message: name=value name=value`
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name if self.fields.is_empty() => write!(self.fields, ": {name}={value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once_and_in_order() {
        let logged = "failed to mount /x: syscall\nfailed to prepare rootfs: err=Mount(Syscall(Nix(EINVAL)))\n\
                      failed to initialize container process: failed to prepare rootfs\nfailed to mount /x: syscall\n";
        assert_eq!(
            join("failed to create container".to_owned(), logged),
            "failed to create container: failed to mount /x: syscall; failed to prepare rootfs: err=Mount(Syscall(Nix(EINVAL)))"
        );
        assert_eq!(join("alone".to_owned(), ""), "alone");
        assert!(join("a".to_owned(), &"b".repeat(9000)).len() <= MAX_BYTES);
    }

    #[test]
    fn what_is_logged_comes_with_its_fields() {
        let capture = Capture::begin().unwrap();
        tracing::info!("not this");
        tracing::error!(err = ?std::io::Error::from_raw_os_error(libc::EINVAL), "failed to mount {:?}", "/x");
        let text = capture.explain("failed".to_owned());
        assert!(
            text.starts_with("failed: failed to mount \"/x\": err=Os { code: 22"),
            "{text}"
        );
    }
}
