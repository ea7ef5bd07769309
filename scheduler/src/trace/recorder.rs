//! [`TraceRecorder`]: writes down what the scheduler is told, while it schedules.
//!
//! Owns a thread that encodes and writes, so that nobody waits for a disk. Bounded: at most [`MAX_UNWRITTEN`] events wait for it, and the file has a largest size. Where
//! a bound is met, or the disk is full, the trace ends with a line that says why, the log says it once, and the scheduler goes on.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread::JoinHandle;

use component_base::clock::Clock;
use component_base::informer::{InformerEvent, Object};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::object::TraceObject;
use super::{Change, TraceError, TraceEvent, TraceWriter};

/// Events that wait to be written; more mean that the disk is too slow.
pub const MAX_UNWRITTEN: usize = 65_536;
/// The largest trace where nothing is said: 1 GiB.
pub const DEFAULT_MAX_BYTES: u64 = 1 << 30;

/// Why nothing is recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be made.
    #[error("record-trace: Invalid value: {path:?}: {source}")]
    Create {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its first line cannot be written.
    #[error("record-trace: Invalid value: {path:?}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TraceError,
    },
}

enum Told {
    Event(Box<TraceEvent>),
    Synced(Timestamp),
    End(Timestamp, String),
}

/// See the module. Ends, with all written, when it is dropped.
pub struct TraceRecorder {
    told: Option<SyncSender<Told>>,
    ended: Arc<AtomicBool>,
    writing: Option<JoinHandle<()>>,
    /// Times of a trace never go back, those of the machine may: they are counted from when it began.
    clock: Clock,
    started: Timestamp,
}

impl TraceRecorder {
    /// Begins a file. One that is there already is kept as `FILE.old`.
    ///
    /// # Errors
    /// When the file cannot be written; it is for the operator to mend.
    pub fn create(path: &Path, max_bytes: u64) -> Result<Self, RecordError> {
        let failed = |source| RecordError::Create {
            path: path.to_owned(),
            source,
        };
        match std::fs::metadata(path) {
            Ok(there) if !there.is_file() => {
                return Err(failed(std::io::Error::other("is not a file")));
            }
            Ok(_) => {
                let mut old = path.as_os_str().to_owned();
                old.push(".old");
                std::fs::rename(path, old).map_err(failed)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let file = File::create_new(path).map_err(failed)?;
        let clock = Clock::real();
        let started = clock.now();
        let writer = TraceWriter::new(BufWriter::new(file), started);
        let mut writer = writer.map_err(|source| RecordError::Write {
            path: path.to_owned(),
            source,
        })?;
        writer.flush().map_err(|source| RecordError::Write {
            path: path.to_owned(),
            source,
        })?;
        let (told, events) = sync_channel(MAX_UNWRITTEN);
        let ended = Arc::new(AtomicBool::new(false));
        let writing = std::thread::Builder::new()
            .name("trace".to_owned())
            .spawn({
                let (ended, path) = (Arc::clone(&ended), path.to_owned());
                move || {
                    let written = write(&events, writer, max_bytes);
                    ended.store(true, Ordering::Release);
                    match written {
                        Ok(None) => {}
                        Ok(Some(why)) => {
                            tracing::error!(path = %path.display(), why, "The trace ends here")
                        }
                        Err(error) => {
                            tracing::error!(path = %path.display(), %error, "The trace ends here")
                        }
                    }
                }
            })
            .map_err(failed)?;
        Ok(TraceRecorder {
            told: Some(told),
            ended,
            writing: Some(writing),
            clock,
            started,
        })
    }

    fn now(&self) -> Timestamp {
        let passed = SignedDuration::try_from(self.clock.monotonic());
        let now = passed
            .ok()
            .and_then(|passed| self.started.checked_add(passed).ok());
        now.unwrap_or(Timestamp::MAX)
    }

    /// What there is when the trace begins: waits where the disk is slow.
    pub fn initial(&self, object: TraceObject) {
        let event = self.event(Change::Added, object);
        if let Some(told) = &self.told {
            // The thread has ended where nobody receives, and has said why.
            let _ = told.send(event);
        }
    }

    /// All that there is has been told.
    pub fn synced(&self) {
        if let Some(told) = &self.told {
            let _ = told.send(Told::Synced(self.now()));
        }
    }

    /// What happened. Never waits.
    pub fn told(&self, change: Change, object: TraceObject) {
        if self.ended.load(Ordering::Acquire) {
            return;
        }
        let Some(told) = &self.told else { return };
        if let Err(TrySendError::Full(_)) = told.try_send(self.event(change, object)) {
            // A trace with a hole would be a lie.
            self.ended.store(true, Ordering::Release);
            tracing::error!(
                waiting = MAX_UNWRITTEN,
                "The trace ends here: more is told than can be written"
            );
        }
    }

    /// The same of an informer's event; what is told again and has not changed is left out.
    pub fn informed<K: Object>(&self, event: &InformerEvent<K>)
    where
        TraceObject: From<Arc<K>>,
    {
        match event {
            InformerEvent::Added(new) => self.told(Change::Added, Arc::clone(new).into()),
            InformerEvent::Updated { old, new }
                if old.meta().resource_version == new.meta().resource_version => {}
            InformerEvent::Updated { new, .. } => {
                self.told(Change::Modified, Arc::clone(new).into());
            }
            InformerEvent::Deleted(old) => self.told(Change::Deleted, Arc::clone(old).into()),
        }
    }

    fn event(&self, change: Change, object: TraceObject) -> Told {
        Told::Event(Box::new(TraceEvent {
            time: self.now(),
            change,
            object,
        }))
    }
}

impl Drop for TraceRecorder {
    fn drop(&mut self) {
        let end = self.ended.load(Ordering::Acquire);
        if let Some(told) = self.told.take()
            && end
        {
            let why = "more was told than could be written".to_owned();
            let _ = told.send(Told::End(self.now(), why));
        }
        if let Some(writing) = self.writing.take() {
            // A panic there is in the log.
            let _ = writing.join();
        }
    }
}

/// Writes until nobody tells any more; why it ended before, if it did.
fn write(
    events: &Receiver<Told>,
    mut writer: TraceWriter<BufWriter<File>>,
    max_bytes: u64,
) -> Result<Option<String>, TraceError> {
    loop {
        let told = match events.try_recv() {
            Ok(told) => told,
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {
                writer.flush()?;
                match events.recv() {
                    Ok(told) => told,
                    Err(_) => break,
                }
            }
        };
        let time = match told {
            Told::Event(event) => {
                writer.event(&event)?;
                event.time
            }
            Told::Synced(time) => {
                writer.synced(time)?;
                time
            }
            Told::End(time, why) => {
                writer.truncated(time, &why)?;
                writer.flush()?;
                return Ok(None);
            }
        };
        if writer.bytes() >= max_bytes {
            let why = format!("it is as large as it may become, {max_bytes} bytes");
            writer.truncated(time, &why)?;
            writer.flush()?;
            return Ok(Some(why));
        }
    }
    writer.flush()?;
    Ok(None)
}
