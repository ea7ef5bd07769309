//! Lines of a log in the CRI's format: parsing, choosing, writing. No I/O.
//!
//! ```text
//! 2016-10-06T00:17:09.669794202Z stdout P the first part, and
//! 2016-10-06T00:17:09.669794203Z stdout F  the rest of a line
//! ```

use bytes::BytesMut;
use jiff::Timestamp;

/// A line that is longer than this without an end is no log of ours.
const MAX_LINE_BYTES: usize = 1 << 20;

/// Where a process said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    timestamp: Timestamp,
    stream: Stream,
    /// With its newline, unless it is only a part of a line.
    text: &'a [u8],
    partial: bool,
}

/// Takes the bytes of a log as they come, and gives those the client wants.
pub(super) struct LineWriter {
    since: Option<Timestamp>,
    timestamps: bool,
    stream: Option<Stream>,
    remaining: Option<u64>,
    pending: Vec<u8>,
    at_start: bool,
}

impl LineWriter {
    pub(super) fn new(
        since: Option<Timestamp>,
        timestamps: bool,
        stream: Option<Stream>,
        limit_bytes: Option<u64>,
    ) -> Self {
        let pending = Vec::new();
        Self {
            since,
            timestamps,
            stream,
            remaining: limit_bytes,
            pending,
            at_start: true,
        }
    }

    /// Takes bytes and appends to `out`. `false`: the limit is reached, no more is wanted.
    pub(super) fn push(&mut self, mut bytes: &[u8], out: &mut BytesMut) -> bool {
        while let Some(end) = bytes.iter().position(|&b| b == b'\n') {
            let (line, rest) = bytes.split_at(end + 1);
            bytes = rest;
            let more = if self.pending.is_empty() {
                self.line(line, out)
            } else {
                self.pending.extend_from_slice(line);
                let line = std::mem::take(&mut self.pending);
                self.line(&line, out)
            };
            if !more {
                return false;
            }
        }
        self.pending.extend_from_slice(bytes);
        if self.pending.len() > MAX_LINE_BYTES {
            self.pending.clear();
        }
        true
    }

    /// A line cut short by a crash is not continued in the next file.
    pub(super) fn end_of_file(&mut self) {
        self.pending.clear();
    }

    fn line(&mut self, line: &[u8], out: &mut BytesMut) -> bool {
        let Some(line) = parse(line) else {
            tracing::debug!("log line is not in the CRI's format");
            return true;
        };
        let early = self.since.is_some_and(|since| line.timestamp < since);
        let other = self.stream.is_some_and(|stream| line.stream != stream);
        if early || other {
            return true;
        }
        if self.timestamps && self.at_start {
            let prefix = format!("{:.9} ", line.timestamp);
            if !self.write(prefix.as_bytes(), out) {
                return false;
            }
        }
        self.at_start = !line.partial;
        self.write(line.text, out)
    }

    fn write(&mut self, bytes: &[u8], out: &mut BytesMut) -> bool {
        let Some(remaining) = &mut self.remaining else {
            out.extend_from_slice(bytes);
            return true;
        };
        let count = usize::try_from(*remaining)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        out.extend_from_slice(&bytes[..count]);
        *remaining -= count as u64;
        *remaining > 0
    }
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let word = |bytes: &[u8]| bytes.iter().position(|&b| b == b' ');
    let end = word(line)?;
    let timestamp = std::str::from_utf8(&line[..end]).ok()?.parse().ok()?;
    let rest = &line[end + 1..];
    let end = word(rest)?;
    let stream = match &rest[..end] {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let rest = &rest[end + 1..];
    let end = word(rest)?;
    // Tags to come are parted by colons.
    let partial = rest[..end].split(|&b| b == b':').next() == Some(b"P");
    let mut text = &rest[end + 1..];
    if partial {
        text = text.strip_suffix(b"\n").unwrap_or(text);
    }
    Some(Line {
        timestamp,
        stream,
        text,
        partial,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2016-10-06T00:17:09.669794202Z stdout P one, \n\
        2016-10-06T00:17:09.669794203Z stdout F two\n\
        2016-10-06T00:17:10Z stderr F three\n\
        nonsense\n\
        2016-10-06T00:17:11.5Z stdout F:x \n";

    fn check(mut writer: LineWriter, expect: &str) {
        for step in [1, 7, LOG.len()] {
            let mut copy = LineWriter {
                pending: Vec::new(),
                ..writer
            };
            let mut out = BytesMut::new();
            for piece in LOG.as_bytes().chunks(step) {
                if !copy.push(piece, &mut out) {
                    break;
                }
            }
            assert_eq!(
                std::str::from_utf8(&out).unwrap(),
                expect,
                "in pieces of {step}"
            );
        }
        writer.end_of_file();
    }

    #[test]
    fn lines() {
        let writer = |since: Option<&str>, timestamps, stream, limit| {
            LineWriter::new(
                since.map(|text| text.parse().unwrap()),
                timestamps,
                stream,
                limit,
            )
        };
        check(writer(None, false, None, None), "one, two\nthree\n\n");
        check(
            writer(None, true, None, None),
            "2016-10-06T00:17:09.669794202Z one, two\n2016-10-06T00:17:10.000000000Z three\n\
             2016-10-06T00:17:11.500000000Z \n",
        );
        check(writer(None, false, Some(Stream::Stderr), None), "three\n");
        check(
            writer(Some("2016-10-06T00:17:10Z"), false, None, None),
            "three\n\n",
        );
        check(writer(None, false, None, Some(7)), "one, tw");
    }
}
