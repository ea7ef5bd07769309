//! The CRI log: `<RFC 3339 time> <stream> <F|P> <line>`, as containerd writes it.
//!
//! Owns one container's log file and the unfinished lines of its two streams. A line longer than
//! [`MAX_LINE_BYTES`] is cut into partial (`P`) pieces; so is a last line without a newline.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// containerd's `max_container_log_line_size`.
pub const MAX_LINE_BYTES: usize = 16 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

pub struct LogWriter {
    path: PathBuf,
    /// `None`: nobody wants a log, what the container writes is dropped.
    file: Option<File>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    out: Vec<u8>,
}

impl LogWriter {
    /// An empty path: no log.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: open_wanted(path)?,
            stdout: Vec::new(),
            stderr: Vec::new(),
            out: Vec::new(),
        })
    }

    /// Goes on in a new file of the same name: the old one was renamed by a rotation.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = open_wanted(&self.path)?;
        Ok(())
    }

    /// Takes what the container wrote.
    pub fn append(&mut self, stream: Stream, mut bytes: &[u8], now_ns: i64) {
        if self.file.is_none() {
            return;
        }
        let mut pending = std::mem::take(self.pending(stream));
        while !bytes.is_empty() {
            let room = MAX_LINE_BYTES - pending.len();
            let window = &bytes[..bytes.len().min(room + 1)];
            if let Some(end) = window.iter().position(|byte| *byte == b'\n') {
                let line = &bytes[..end];
                self.entry(stream, b'F', &pending, line, now_ns);
                pending.clear();
                bytes = &bytes[end + 1..];
            } else if bytes.len() > room {
                let line = &bytes[..room];
                self.entry(stream, b'P', &pending, line, now_ns);
                pending.clear();
                bytes = &bytes[room..];
            } else {
                pending.extend_from_slice(bytes);
                bytes = &[];
            }
        }
        *self.pending(stream) = pending;
        self.write_out();
    }

    /// The stream ended: what is left of a line is written as partial, as containerd does.
    pub fn end(&mut self, stream: Stream, now_ns: i64) {
        let rest = std::mem::take(self.pending(stream));
        if !rest.is_empty() {
            self.entry(stream, b'P', &rest, &[], now_ns);
            self.write_out();
        }
    }

    fn pending(&mut self, stream: Stream) -> &mut Vec<u8> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn entry(&mut self, stream: Stream, tag: u8, start: &[u8], rest: &[u8], now_ns: i64) {
        write_timestamp(&mut self.out, now_ns);
        self.out.extend_from_slice(match stream {
            Stream::Stdout => b" stdout ",
            Stream::Stderr => b" stderr ",
        });
        self.out.push(tag);
        self.out.push(b' ');
        self.out.extend_from_slice(start);
        self.out.extend_from_slice(rest);
        self.out.push(b'\n');
    }

    fn write_out(&mut self) {
        // A full disk must not stop the container: the lines are lost, as containerd loses them.
        if let Some(file) = &mut self.file {
            let _ = file.write_all(&self.out);
        }
        self.out.clear();
        self.out.shrink_to(MAX_LINE_BYTES);
    }
}

fn open_wanted(path: &Path) -> io::Result<Option<File>> {
    match path.as_os_str().is_empty() {
        true => Ok(None),
        false => open_append(path).map(Some),
    }
}

fn open_append(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // A pod may have the logs' directory mounted: nothing it plants there is written to but a plain file.
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the log is no regular file",
        ));
    }
    Ok(file)
}

/// `2006-01-02T15:04:05.000000000Z`.
fn write_timestamp(out: &mut Vec<u8>, unix_ns: i64) {
    let (seconds, nanos) = (
        unix_ns.div_euclid(1_000_000_000),
        unix_ns.rem_euclid(1_000_000_000),
    );
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a civil date: Howard Hinnant's algorithm, eras of 400 years that start on 1 March.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 {
        month_index + 3
    } else {
        month_index - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let _ = write!(
        out,
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{nanos:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(feed: impl FnOnce(&mut LogWriter)) -> Vec<String> {
        let directory = std::env::temp_dir().join(format!(
            "shim-log-{}-{}",
            std::process::id(),
            crate::sys::now_ns()
        ));
        let path = directory.join("0.log");
        let mut log = LogWriter::open(&path).unwrap();
        feed(&mut log);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        text.lines()
            .map(|line| line.split_once(' ').unwrap().1.to_owned())
            .collect()
    }

    #[test]
    fn lines_are_whole_across_writes_and_streams() {
        let seen = lines(|log| {
            log.append(Stream::Stdout, b"one\ntw", 0);
            log.append(Stream::Stderr, b"bad\n", 0);
            log.append(Stream::Stdout, b"o\n\nthree", 0);
            log.end(Stream::Stdout, 0);
            log.end(Stream::Stderr, 0);
        });
        assert_eq!(
            seen,
            [
                "stdout F one",
                "stderr F bad",
                "stdout F two",
                "stdout F ",
                "stdout P three"
            ]
        );
    }

    #[test]
    fn nothing_planted_in_a_logs_place_is_written_to() {
        let directory = std::env::temp_dir().join(format!("gantry-planted-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let at = |name: &str| directory.join(name);
        std::fs::write(at("victim"), "keep").unwrap();
        std::os::unix::fs::symlink("victim", at("0.log")).unwrap();
        assert!(open_append(&at("0.log")).is_err());
        assert!(open_append(std::path::Path::new("/dev/null")).is_err());
        assert!(open_append(&at("1.log")).is_ok());
        assert_eq!(std::fs::read_to_string(at("victim")).unwrap(), "keep");
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn long_lines_are_cut_at_sixteen_kibibytes() {
        for pieces in [1, 1000, 1 << 20] {
            let mut text = vec![b'x'; MAX_LINE_BYTES * 2 + 5];
            text.push(b'\n');
            let seen = lines(|log| {
                for piece in text.chunks(pieces) {
                    log.append(Stream::Stdout, piece, 0);
                }
            });
            let lengths: Vec<_> = seen
                .iter()
                .map(|l| (l.as_bytes()[7], l.len() - 9))
                .collect();
            assert_eq!(
                lengths,
                [(b'P', MAX_LINE_BYTES), (b'P', MAX_LINE_BYTES), (b'F', 5)]
            );
        }
        let exact = [vec![b'y'; MAX_LINE_BYTES], b"\n".to_vec()].concat();
        let seen = lines(|log| log.append(Stream::Stdout, &exact, 0));
        assert_eq!(seen.len(), 1);
        assert!(seen[0].starts_with("stdout F y"));
    }

    #[test]
    fn timestamps_are_civil() {
        for (ns, expected) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_123_456_789, "2000-02-29T00:00:00.123456789Z"),
            (1_795_253_185_000_000_001, "2026-11-21T09:26:25.000000001Z"),
            (4_107_542_399_000_000_000, "2100-02-28T23:59:59.000000000Z"),
        ] {
            let mut out = Vec::new();
            write_timestamp(&mut out, ns);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn without_a_path_nothing_is_kept() {
        let mut log = LogWriter::open(Path::new("")).unwrap();
        log.append(Stream::Stdout, b"a line\nand more", 0);
        log.end(Stream::Stdout, 0);
        log.reopen().unwrap();
        assert!(log.stdout.is_empty() && log.out.is_empty());
    }
}
