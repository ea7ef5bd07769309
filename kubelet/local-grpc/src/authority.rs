//! The frames of an HTTP/2 client, with another authority in them; pure.
//!
//! Header blocks are compressed (RFC 7541) by a table that both sides keep. An entry that becomes shorter only makes the reader's table
//! hold more than the writer refers to, so the rest of a block stays as it is, and no table is needed here.

/// Not longer than what it takes the place of, for the table's sake.
const NAME: &[u8] = b"k";
/// `:authority` in the static table.
const AUTHORITY: usize = 1;

/// What a client says first.
const PREFACE: usize = 24;
const HEAD: usize = 9;
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// The longest frame that is looked into: what a server allows that says nothing else.
const LONGEST: usize = 16 << 10;

#[derive(Debug)]
enum Reading {
    /// So many bytes go on as they are.
    Past(usize),
    Head(Vec<u8>),
    /// The frame's head, its payload so far, and how long that is to be.
    Headers(Vec<u8>, Vec<u8>, usize),
}

/// Follows one connection.
#[derive(Debug)]
pub(crate) struct Filter(Reading);

impl Default for Filter {
    fn default() -> Self {
        Self(Reading::Past(PREFACE))
    }
}

impl Filter {
    /// Takes what came and gives what may go on.
    pub(crate) fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            match &mut self.0 {
                Reading::Past(left) => {
                    let some = take(&mut bytes, *left);
                    *left -= some.len();
                    out.extend_from_slice(some);
                    if *left == 0 {
                        self.0 = Reading::Head(Vec::with_capacity(HEAD));
                    }
                }
                Reading::Head(head) => {
                    head.extend_from_slice(take(&mut bytes, HEAD - head.len()));
                    if head.len() == HEAD {
                        let head = std::mem::take(head);
                        self.begin(head, out);
                    }
                }
                Reading::Headers(head, payload, length) => {
                    payload.extend_from_slice(take(&mut bytes, *length - payload.len()));
                    if payload.len() == *length {
                        let (head, payload) = (std::mem::take(head), std::mem::take(payload));
                        emit(&head, payload, out);
                        self.0 = Reading::Head(Vec::with_capacity(HEAD));
                    }
                }
            }
        }
    }

    fn begin(&mut self, head: Vec<u8>, out: &mut Vec<u8>) {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let whole = head[3] == HEADERS && head[4] & END_HEADERS != 0;
        if whole && (1..=LONGEST).contains(&length) {
            self.0 = Reading::Headers(head, Vec::with_capacity(length), length);
            return;
        }
        out.extend_from_slice(&head);
        self.0 = match length {
            0 => Reading::Head(Vec::with_capacity(HEAD)),
            _ => Reading::Past(length),
        };
    }

    /// What is held back when the client ends in the middle of a frame.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        match &mut self.0 {
            Reading::Past(_) => {}
            Reading::Head(head) => out.append(head),
            Reading::Headers(head, payload, _) => {
                out.append(head);
                out.append(payload);
            }
        }
    }
}

fn take<'a>(bytes: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (some, rest) = bytes.split_at(most.min(bytes.len()));
    *bytes = rest;
    some
}

/// A frame of headers, with another authority if it has one that can be told.
fn emit(head: &[u8], payload: Vec<u8>, out: &mut Vec<u8>) {
    let payload = renamed(head[4], &payload).unwrap_or(payload);
    // Shorter than it was, or as long.
    let [_, high, middle, low] = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    out.extend_from_slice(&[high, middle, low]);
    out.extend_from_slice(&head[3..]);
    out.extend_from_slice(&payload);
}

fn renamed(flags: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let padded = flags & PADDED != 0;
    let padding = if padded {
        usize::from(*payload.first()?)
    } else {
        0
    };
    let begin = usize::from(padded) + if flags & PRIORITY != 0 { 5 } else { 0 };
    let end = payload.len().checked_sub(padding)?;
    let block = payload.get(begin..end)?;
    let mut out = payload[..begin].to_vec();
    let mut done = 0;
    let mut values = Vec::new();
    let mut at = 0;
    while at < block.len() {
        at = field(block, at, &mut values)?;
    }
    for value in values {
        out.extend_from_slice(&block[done..value.start]);
        out.push(u8::try_from(NAME.len()).ok()?);
        out.extend_from_slice(NAME);
        done = value.end;
    }
    out.extend_from_slice(&block[done..]);
    out.extend_from_slice(&payload[end..]);
    Some(out)
}

/// Past the field that begins at `at`; if it names the authority, where its value is (with its length). `None`: it is no such block.
fn field(block: &[u8], at: usize, values: &mut Vec<std::ops::Range<usize>>) -> Option<usize> {
    let first = *block.get(at)?;
    // Indexed, or a change of the table's size.
    if first & 0x80 != 0 {
        return Some(number(block, at, 7)?.1);
    }
    if first & 0xe0 == 0x20 {
        return Some(number(block, at, 5)?.1);
    }
    // A literal that is to be remembered, or not.
    let bits = if first & 0x40 != 0 { 6 } else { 4 };
    let (name, mut at) = number(block, at, bits)?;
    if name == 0 {
        at = text(block, at)?;
    }
    let end = text(block, at)?;
    // An empty one has no room for a name, and is none that `h2` minds.
    if name == AUTHORITY && end > at + 1 {
        values.push(at..end);
    }
    Some(end)
}

/// Past a text.
fn text(block: &[u8], at: usize) -> Option<usize> {
    let (length, at) = number(block, at, 7)?;
    let end = at.checked_add(length)?;
    (end <= block.len()).then_some(end)
}

/// A number in the last `bits` of a byte and those that follow.
fn number(block: &[u8], at: usize, bits: u32) -> Option<(usize, usize)> {
    let most = (1usize << bits) - 1;
    let mut value = usize::from(*block.get(at)?) & most;
    let mut at = at + 1;
    if value < most {
        return Some((value, at));
    }
    for shift in [0, 7, 14] {
        let byte = usize::from(*block.get(at)?);
        at += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/var/lib/kubelet/device-plugins/kubelet.sock";

    fn literal(first: u8, value: &str) -> Vec<u8> {
        let mut out = vec![first, u8::try_from(value.len()).unwrap()];
        out.extend_from_slice(value.as_bytes());
        out
    }

    /// `:method: POST`, `:scheme: http`, a path, the authority, and one header more.
    fn block(authority: &[u8]) -> Vec<u8> {
        let mut out = vec![0x83, 0x86];
        out.extend(literal(0x44, "/v1beta1.Registration/Register"));
        out.extend_from_slice(authority);
        out.extend(literal(0x40, "te"));
        out.extend_from_slice(b"\x08trailers");
        out
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut out = vec![a, b, c, kind, flags, 0, 0, 0, 1];
        out.extend_from_slice(payload);
        out
    }

    fn check(sent: &[u8], expect: &[u8]) {
        let preface = [b'p'; PREFACE];
        // Whole, and byte by byte.
        for size in [sent.len(), 1] {
            let (mut filter, mut out) = (Filter::default(), Vec::new());
            filter.push(&preface, &mut out);
            for some in sent.chunks(size) {
                filter.push(some, &mut out);
            }
            filter.finish(&mut out);
            assert_eq!(out[PREFACE..], *expect);
        }
    }

    #[test]
    fn a_path_becomes_a_name() {
        for first in [0x41, 0x01, 0x11] {
            let (path, name) = (literal(first, PATH), literal(first, "k"));
            let settings = frame(4, 0, &[0, 3, 0, 0, 0, 9]);
            let data = frame(0, 1, b"\x00\x00\x00\x00\x00");
            let sent = [settings.clone(), frame(1, 4, &block(&path)), data.clone()].concat();
            let expect = [settings, frame(1, 4, &block(&name)), data].concat();
            check(&sent, &expect);
        }
        // Padding and priority stay where they are.
        let padded = |authority: &[u8]| {
            let mut payload = vec![2, 0, 0, 0, 0, 7];
            payload.extend(block(authority));
            payload.extend_from_slice(&[0, 0]);
            frame(1, END_HEADERS | PADDED | PRIORITY, &payload)
        };
        check(&padded(&literal(0x41, PATH)), &padded(&literal(0x41, "k")));
    }

    #[test]
    fn what_is_not_understood_goes_on_as_it_is() {
        let path = block(&literal(0x41, PATH));
        for sent in [
            // In several frames; of another kind; cut off; padded by more than there is.
            frame(1, 0, &path),
            frame(9, 4, &path),
            frame(1, 4, &path[..path.len() - 3]),
            frame(1, END_HEADERS | PADDED, &[200, 0x83]),
            frame(1, 4, &path)[..20].to_vec(),
            // Known by both sides: an index alone.
            frame(1, 4, &[0x83, 0x86, 0xbf, 0x3f, 0xe1, 0x1f]),
            frame(1, 4, &[0x41]),
            frame(1, 4, &[0x41, 0xff, 0xff, 0xff, 0xff, 0xff]),
            frame(0, 0, &[]),
        ] {
            check(&sent, &sent);
        }
    }
}
