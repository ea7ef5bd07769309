//! What must hold whatever stands in a container's log; see `crate::fuzz`.

use std::io::Cursor;

use bytes::BytesMut;

use super::line::{LineWriter, Stream};
use super::tail::find_tail_start;

/// The first two bytes choose how it is asked for, the rest is the log. Pieces give the same as the whole, no more comes
/// out than was asked for or than the log holds, and the last lines begin where a line begins.
pub(crate) fn container_log(data: &[u8]) {
    let Some(([how, number], log)) = data.split_first_chunk::<2>() else {
        return;
    };
    let (limit, timestamps) = (how & 1 != 0, how & 2 != 0);
    let limit = limit.then_some(u64::from(*number));
    let stream =
        [None, Some(Stream::Stdout), Some(Stream::Stderr), None][usize::from(how >> 2) % 4];
    let since = (how & 16 != 0).then(|| jiff::Timestamp::UNIX_EPOCH);
    let read = |step: usize| {
        let mut writer = LineWriter::new(since, timestamps, stream, limit);
        let mut out = BytesMut::new();
        for piece in log.chunks(step) {
            if !writer.push(piece, &mut out) {
                break;
            }
        }
        writer.end_of_file();
        out
    };
    let whole = read(log.len().max(1));
    assert_eq!(whole, read(1 + usize::from(*number)), "pieces differ");
    if let Some(limit) = limit {
        assert!(whole.len() as u64 <= limit);
    }
    if !timestamps {
        assert!(whole.len() <= log.len());
    }
    let lines = u64::from(*number % 8);
    let start = find_tail_start(&mut Cursor::new(log), lines).expect("memory can be read");
    let start = usize::try_from(start).expect("it is in memory");
    let begins = |at: usize| at == 0 || log[at - 1] == b'\n' || (lines == 0 && at == log.len());
    assert!(start <= log.len() && begins(start));
    let count = log[start..].split_inclusive(|b| *b == b'\n').count() as u64;
    let all = log.split_inclusive(|b| *b == b'\n').count() as u64;
    assert_eq!(count, lines.min(all));
}
