//! Messages to channels and back. The first byte of a message says for which one it is. Pure.
//!
//! Upstream: `k8s.io/streaming/pkg/httpstream/wsstream`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Buf as _, Bytes, BytesMut};

use super::frame::Message;

/// v5: the next byte names a channel the client has ended.
const CLOSE_SIGNAL: u8 = 255;
/// Characters of base64 that are whole.
const QUAD: usize = 4;

/// How channels are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Codec {
    /// Text messages of base64, with the channel as a digit.
    pub(crate) base64: bool,
    /// The client may end a channel.
    pub(crate) close_signal: bool,
}

/// What a piece of a message says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    Data(u8, Bytes),
    End(u8),
    Nothing,
    Broken(&'static str),
}

/// Where the message under way goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// Its first byte has not come.
    Unknown,
    Channel(u8),
    /// The channel that ends has not come.
    Signal,
    /// The channel came: nothing may follow.
    Signalled(u8),
    /// What is left of a message that cannot be read. As upstream: the message is lost, the connection is not.
    Lost,
}

/// Reads messages piece by piece.
pub(super) struct Demux {
    codec: Codec,
    target: Target,
    /// Characters of base64 that are not four yet.
    rest: Vec<u8>,
    /// The padding came: nothing may follow.
    padded: bool,
}

impl Demux {
    pub(super) fn new(codec: Codec) -> Self {
        Self {
            codec,
            target: Target::Unknown,
            rest: Vec::new(),
            padded: false,
        }
    }

    pub(super) fn piece(&mut self, first: bool, last: bool, mut data: Bytes) -> Incoming {
        if first {
            self.target = Target::Unknown;
            self.rest.clear();
            self.padded = false;
        }
        if self.target == Target::Unknown && data.has_remaining() {
            let number = data.get_u8();
            self.target = match (self.codec.close_signal, self.codec.base64) {
                (true, _) if number == CLOSE_SIGNAL => Target::Signal,
                (_, true) => Target::Channel(number.wrapping_sub(b'0')),
                (_, false) => Target::Channel(number),
            };
        }
        if self.target == Target::Signal && data.has_remaining() {
            self.target = Target::Signalled(data.get_u8());
        }
        match self.target {
            Target::Unknown | Target::Lost => Incoming::Nothing,
            Target::Signal if last => Incoming::Broken("one channel must follow the close signal"),
            Target::Signal => Incoming::Nothing,
            Target::Signalled(_) if data.has_remaining() => {
                Incoming::Broken("one channel must follow the close signal")
            }
            Target::Signalled(number) if last => Incoming::End(number),
            Target::Signalled(_) => Incoming::Nothing,
            Target::Channel(number) if self.codec.base64 => self.text(number, &data),
            Target::Channel(_) if data.is_empty() => Incoming::Nothing,
            Target::Channel(number) => Incoming::Data(number, data),
        }
    }

    /// DIFFERS: upstream drops a message that is no base64; here what came before the fault stays read.
    fn text(&mut self, number: u8, data: &[u8]) -> Incoming {
        // Only the end is padded.
        if self.padded && !data.is_empty() {
            self.target = Target::Lost;
            return Incoming::Nothing;
        }
        let mut text = std::mem::take(&mut self.rest);
        text.extend_from_slice(data);
        self.rest = text.split_off(text.len() / QUAD * QUAD);
        self.padded = text.last() == Some(&b'=');
        match BASE64.decode(&text) {
            Ok(decoded) if decoded.is_empty() => Incoming::Nothing,
            Ok(decoded) => Incoming::Data(number, decoded.into()),
            Err(_) => {
                self.target = Target::Lost;
                Incoming::Nothing
            }
        }
    }
}

/// One message of ours.
pub(super) fn encode(codec: Codec, number: u8, data: &[u8]) -> Message {
    if codec.base64 {
        let mut text = String::with_capacity(data.len() * 4 / 3 + 5);
        text.push(char::from(b'0' + number));
        BASE64.encode_string(data, &mut text);
        Message::Text(text.into())
    } else {
        let mut frame = BytesMut::with_capacity(data.len() + 1);
        frame.extend_from_slice(&[number]);
        frame.extend_from_slice(data);
        Message::Binary(frame.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: Codec = Codec {
        base64: false,
        close_signal: false,
    };
    const V5: Codec = Codec {
        base64: false,
        close_signal: true,
    };
    const TEXT: Codec = Codec {
        base64: true,
        close_signal: false,
    };

    /// Data of a message cut into pieces of every length, with its channel; and what else was said.
    fn read(
        codec: Codec,
        message: &'static [u8],
        step: usize,
    ) -> (Vec<(u8, Vec<u8>)>, Vec<Incoming>) {
        let (mut demux, mut got, mut other) = (Demux::new(codec), Vec::new(), Vec::new());
        let mut pieces: Vec<&'static [u8]> = message.chunks(step).collect();
        if pieces.is_empty() {
            pieces.push(b"");
        }
        let count = pieces.len();
        for (index, piece) in pieces.into_iter().enumerate() {
            match demux.piece(index == 0, index + 1 == count, Bytes::from_static(piece)) {
                Incoming::Data(number, data) => match got.last_mut() {
                    Some((same, all)) if *same == number => {
                        let all: &mut Vec<u8> = all;
                        all.extend_from_slice(&data);
                    }
                    _ => got.push((number, data.to_vec())),
                },
                Incoming::Nothing => {}
                said => other.push(said),
            }
        }
        (got, other)
    }

    #[test]
    fn messages() {
        let check = |codec, message: &'static [u8], expect: &[(u8, &[u8])]| {
            for step in 1..=message.len().max(1) {
                let (got, other) = read(codec, message, step);
                let got: Vec<_> = got.iter().map(|(n, data)| (*n, &data[..])).collect();
                assert_eq!(
                    (&got[..], &other[..]),
                    (expect, &[][..]),
                    "{message:?} by {step}"
                );
            }
        };
        check(RAW, b"\x00foo\n", &[(0, b"foo\n")]);
        check(RAW, b"", &[]);
        check(RAW, b"\x07", &[]);
        check(RAW, b"\xff\x00", &[(255, b"\0")]);
        check(TEXT, b"0Zm9vCgo=", &[(0, b"foo\n\n")]);
        check(TEXT, b"0Zm9v", &[(0, b"foo")]);
        check(TEXT, b"0Zg==", &[(0, b"f")]);
        check(TEXT, b"0", &[]);
        check(TEXT, b"0***", &[]);
        check(TEXT, b"0****", &[]);
        assert_eq!(encode(RAW, 1, b"\n"), Message::Binary("\x01\n".into()));
        assert_eq!(encode(TEXT, 1, b"\n"), Message::Text("1Cg==".into()));
    }

    #[test]
    fn what_follows_a_fault_is_lost_and_the_next_message_is_not() {
        for fault in ["0Zg==Zm9v", "0****Zm9v"] {
            for step in 1..=fault.len() {
                let (got, other) = read(TEXT, fault.as_bytes(), step);
                let all: Vec<u8> = got.into_iter().flat_map(|(_, data)| data).collect();
                assert!(all.is_empty() || all == b"f", "{fault} by {step}: {all:?}");
                assert!(other.is_empty());
            }
        }
        let mut demux = Demux::new(TEXT);
        assert_eq!(demux.piece(true, true, "0***".into()), Incoming::Nothing);
        let next = demux.piece(true, true, "0Zm9v".into());
        assert_eq!(next, Incoming::Data(0, "foo".into()));
    }

    #[test]
    fn ends_of_channels() {
        let broken = || Incoming::Broken("one channel must follow the close signal");
        for (message, expect) in [
            (&b"\xff\x00"[..], Incoming::End(0)),
            (b"\xff\x07", Incoming::End(7)),
            (b"\xff", broken()),
            (b"\xff\x00\x00", broken()),
        ] {
            for step in 1..=message.len() {
                let (got, other) = read(V5, message, step);
                assert!(got.is_empty());
                assert_eq!(
                    other,
                    [match &expect {
                        Incoming::End(number) => Incoming::End(*number),
                        _ => broken(),
                    }],
                    "{message:?} by {step}"
                );
            }
        }
    }
}
