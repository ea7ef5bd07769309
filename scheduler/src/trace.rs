//! [`Trace`]: what a scheduler was told, in order, as a file of one JSON object a line.
//!
//! ```text
//! {"format":"gantry-scheduler-trace","version":1,"time":"2026-11-30T04:38:32.000000Z"}
//! {"time":"…","type":"ADDED","object":{"apiVersion":"v1","kind":"Node",…}}
//! {"time":"…","type":"SYNCED"}                      what is above was there when the trace began
//! {"time":"…","type":"MODIFIED","object":{…}}
//! {"time":"…","type":"TRUNCATED","message":"…"}     what came later is not in it
//! ```
//!
//! [`object`] is what is in it, trimmed of what is nobody's business; [`recorder`] writes one while the scheduler works. Never here: what a trace is good for (`replay`).
//!
//! - **Invariant:** what is recorded has no environment, command or argument of a container, and no annotation that copies a whole object.

use std::io::{BufRead, Write};

use framework::ObjectKind;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub mod object;
pub mod recorder;
mod trim;

use object::{FieldError, Kind, TraceObject, read};

/// What the first line says the file is.
pub const FORMAT: &str = "gantry-scheduler-trace";
/// The version this program reads and writes.
pub const VERSION: u32 = 1;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Change {
    /// It is new.
    Added,
    /// It is another now.
    Modified,
    /// It is gone; the object is its last state.
    Deleted,
}

/// One line.
#[derive(Debug, Clone)]
pub struct TraceEvent {
    /// When the scheduler was told.
    pub time: Timestamp,
    /// What happened.
    pub change: Change,
    /// To what.
    pub object: TraceObject,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// In order; times never go back.
    pub events: Vec<TraceEvent>,
    /// So many of them, from the first, tell of what was there when the trace began.
    pub initial: usize,
    /// Why it ends before its time, if it does.
    pub truncated: Option<String>,
}

/// Why a trace cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// A line is not what it should be.
    #[error("line {line}: {error}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong.
        error: FieldError,
    },
    /// The file.
    #[error("line {line}: {source}")]
    Io {
        /// The line that was to be read or written.
        line: usize,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    format: String,
    version: u32,
    time: String,
}

#[derive(Deserialize)]
struct Line {
    time: String,
    #[serde(rename = "type")]
    change: String,
    #[serde(default)]
    object: Option<Value>,
    #[serde(default)]
    message: Option<String>,
}

fn time_of(text: &str) -> Result<Timestamp, FieldError> {
    let parsed: Result<Timestamp, _> = text.parse();
    parsed.map_err(|error| FieldError::new("time", format!("Invalid value: {text:?}: {error}")))
}

enum Read {
    Event(Box<TraceEvent>),
    Synced,
    Truncated(String),
}

fn line(text: &str, custom: &[ObjectKind]) -> Result<Read, FieldError> {
    let value: Value =
        serde_json::from_str(text).map_err(|error| FieldError::new("(line)", error.to_string()))?;
    let line: Line = match serde_path_to_error::deserialize(value) {
        Ok(line) => line,
        Err(error) => {
            let path = error.path().to_string();
            return Err(FieldError::new(path, error.inner().to_string()));
        }
    };
    let time = time_of(&line.time)?;
    let change = match line.change.as_str() {
        "ADDED" => Change::Added,
        "MODIFIED" => Change::Modified,
        "DELETED" => Change::Deleted,
        "SYNCED" => return Ok(Read::Synced),
        "TRUNCATED" => return Ok(Read::Truncated(line.message.unwrap_or_default())),
        other => {
            let message = format!(
                "Unsupported value: {other:?}: supported values: \"ADDED\", \"MODIFIED\", \"DELETED\", \"SYNCED\", \"TRUNCATED\""
            );
            return Err(FieldError::new("type", message));
        }
    };
    let Some(object) = line.object else {
        return Err(FieldError::new("object", "Required value"));
    };
    let field = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (field("apiVersion"), field("kind"));
    let Some(kind) = Kind::of(api_version, kind, custom) else {
        let message = format!(
            "Unsupported value: {kind:?} of {api_version:?}: the scheduler reads no such objects"
        );
        return Err(FieldError::new("object.kind", message));
    };
    let object = kind.decode("object", object)?;
    if object.name().is_empty() {
        return Err(FieldError::new("object.metadata.name", "Required value"));
    }
    if object.pod().is_some() && object.uid().is_empty() {
        return Err(FieldError::new("object.metadata.uid", "Required value"));
    }
    Ok(Read::Event(Box::new(TraceEvent {
        time,
        change,
        object,
    })))
}

fn header(text: &str) -> Result<(), FieldError> {
    let value: Value =
        serde_json::from_str(text).map_err(|error| FieldError::new("(line)", error.to_string()))?;
    let header: Header = read("(line)", value)?;
    if header.format != FORMAT {
        let message = format!("Invalid value: {:?}: must be {FORMAT:?}", header.format);
        return Err(FieldError::new("format", message));
    }
    if header.version != VERSION {
        let message = format!(
            "Unsupported value: {}: supported values: {VERSION}",
            header.version
        );
        return Err(FieldError::new("version", message));
    }
    time_of(&header.time).map(|_| ())
}

impl Trace {
    /// Reads a trace; `custom` are the kinds that plugins know. A last line that was cut off (its writer ended) counts as the end.
    ///
    /// # Errors
    /// For the first line that cannot be read, with its number and field.
    pub fn read(mut input: impl BufRead, custom: &[ObjectKind]) -> Result<Trace, TraceError> {
        let mut trace = Trace::default();
        let mut text = String::new();
        let mut last = Timestamp::MIN;
        let mut synced = false;
        for number in 1.. {
            text.clear();
            let failed = |source| TraceError::Io {
                line: number,
                source,
            };
            if input.read_line(&mut text).map_err(failed)? == 0 {
                if number == 1 {
                    let error = FieldError::new("format", "Required value: the file is empty");
                    return Err(TraceError::Line {
                        line: number,
                        error,
                    });
                }
                break;
            }
            let failed = |error| TraceError::Line {
                line: number,
                error,
            };
            if number == 1 {
                header(text.trim_end()).map_err(failed)?;
                continue;
            }
            let event = match line(text.trim_end(), custom) {
                Ok(Read::Event(event)) => event,
                Ok(Read::Synced) => {
                    trace.initial = trace.events.len();
                    synced = true;
                    continue;
                }
                Ok(Read::Truncated(message)) => {
                    trace.truncated = Some(message);
                    break;
                }
                Err(_) if !text.ends_with('\n') => {
                    trace.truncated = Some(format!("line {number} was cut off"));
                    break;
                }
                Err(error) => return Err(failed(error)),
            };
            if event.time < last {
                let message = format!(
                    "Invalid value: {}: must not be before that of the line above, {last}",
                    event.time
                );
                return Err(failed(FieldError::new("time", message)));
            }
            last = event.time;
            trace.events.push(*event);
        }
        if !synced {
            // It ended while it began.
            trace.initial = trace.events.len();
        }
        Ok(trace)
    }

    /// Writes it.
    ///
    /// # Errors
    /// When the output does not take it.
    pub fn write(&self, output: impl Write) -> Result<(), TraceError> {
        let start = self
            .events
            .first()
            .map_or(Timestamp::UNIX_EPOCH, |event| event.time);
        let mut writer = TraceWriter::new(output, start)?;
        for (number, event) in self.events.iter().enumerate() {
            if number == self.initial {
                writer.synced(event.time)?;
            }
            writer.event(event)?;
        }
        let end = self.events.last().map_or(start, |event| event.time);
        if self.initial == self.events.len() {
            writer.synced(end)?;
        }
        if let Some(message) = &self.truncated {
            writer.truncated(end, message)?;
        }
        writer.flush()
    }

    /// When it begins and ends; `None` for an empty one.
    pub fn span(&self) -> Option<(Timestamp, Timestamp)> {
        Some((self.events.first()?.time, self.events.last()?.time))
    }
}

/// Writes a trace line by line.
pub struct TraceWriter<W: Write> {
    output: W,
    line: usize,
    bytes: u64,
}

impl<W: Write> TraceWriter<W> {
    /// Writes the first line.
    ///
    /// # Errors
    /// When the output does not take it.
    pub fn new(output: W, time: Timestamp) -> Result<Self, TraceError> {
        let mut writer = TraceWriter {
            output,
            line: 0,
            bytes: 0,
        };
        writer.write(&Header {
            format: FORMAT.to_owned(),
            version: VERSION,
            time: text_of(time),
        })?;
        Ok(writer)
    }

    /// How much was written.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn write(&mut self, line: &impl Serialize) -> Result<(), TraceError> {
        self.line += 1;
        let failed = |source| TraceError::Io {
            line: self.line,
            source,
        };
        let mut text = serde_json::to_vec(line).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        self.output.write_all(&text).map_err(failed)?;
        self.bytes += text.len() as u64;
        Ok(())
    }

    /// An event; trims its object.
    ///
    /// # Errors
    /// When the output does not take it.
    pub fn event(&mut self, event: &TraceEvent) -> Result<(), TraceError> {
        #[derive(Serialize)]
        struct Written<'a> {
            time: String,
            #[serde(rename = "type")]
            change: Change,
            object: &'a TraceObject,
        }
        self.write(&Written {
            time: text_of(event.time),
            change: event.change,
            object: &event.object.trimmed(),
        })
    }

    /// What was written so far was there when the trace began.
    ///
    /// # Errors
    /// When the output does not take it.
    pub fn synced(&mut self, time: Timestamp) -> Result<(), TraceError> {
        self.write(&serde_json::json!({"time": text_of(time), "type": "SYNCED"}))
    }

    /// What comes later is not in the trace.
    ///
    /// # Errors
    /// When the output does not take it.
    pub fn truncated(&mut self, time: Timestamp, message: &str) -> Result<(), TraceError> {
        self.write(
            &serde_json::json!({"time": text_of(time), "type": "TRUNCATED", "message": message}),
        )
    }

    /// Lets nothing wait.
    ///
    /// # Errors
    /// When the output does not take it.
    pub fn flush(&mut self) -> Result<(), TraceError> {
        let line = self.line;
        self.output
            .flush()
            .map_err(|source| TraceError::Io { line, source })
    }
}

/// To the microsecond, as watch events are not told apart closer.
fn text_of(time: Timestamp) -> String {
    format!("{time:.6}")
}
