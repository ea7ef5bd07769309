//! WebSocket frames (RFC 6455), a server's side: the codec between bytes and values. No I/O.
//!
//! A message is handed on as its bytes come, never collected: its length is whatever the client says.

use std::io::Cursor;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{
    CloseCode, Control, Data as DataCode, OpCode,
};
use tokio_util::codec::{Decoder, Encoder};

/// Largest frame taken. Upstream: `golang.org/x/net/websocket`'s `DefaultMaxPayloadBytes`, 32 MiB.
const MAX_FRAME_BYTES: u64 = 32 << 20;
/// Of a ping, pong or close. RFC 6455, 5.5.
const MAX_CONTROL_BYTES: u64 = 125;
/// What a frame's header has at most.
const MAX_HEADER_BYTES: usize = 14;

/// Why bytes are no WebSocket of a client's. The connection is beyond repair.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WebSocketError {
    #[error("websocket: {0}")]
    Protocol(&'static str),
    #[error("websocket: frame of {0} bytes is too long")]
    TooLong(u64),
    #[error("websocket: {0}")]
    Io(#[from] std::io::Error),
}

impl WebSocketError {
    /// What the client is told.
    pub(crate) fn code(&self) -> CloseCode {
        match self {
            Self::Protocol(_) => CloseCode::Protocol,
            Self::TooLong(_) => CloseCode::Size,
            Self::Io(_) => CloseCode::Normal,
        }
    }
}

/// What comes from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A piece of a message, text or binary.
    Piece {
        first: bool,
        last: bool,
        data: Bytes,
    },
    Ping(Bytes),
    Pong,
    Close,
}

/// Bytes to events.
#[derive(Default)]
pub(crate) struct FrameDecoder {
    /// A message of several frames is under way.
    fragmented: bool,
    /// No piece of the message was handed on yet.
    fresh: bool,
    payload: Option<Payload>,
}

/// A data frame of which more is to come.
struct Payload {
    remaining: u64,
    mask: [u8; 4],
    /// The frame is its message's last.
    ends: bool,
}

impl Decoder for FrameDecoder {
    type Item = Event;
    type Error = WebSocketError;

    fn decode(&mut self, source: &mut BytesMut) -> Result<Option<Event>, WebSocketError> {
        if self.payload.is_none() {
            match self.header(source)? {
                Header::Short => return Ok(None),
                Header::Control(event) => return Ok(Some(event)),
                Header::Data(payload) => self.payload = Some(payload),
            }
        }
        let Some(payload) = &mut self.payload else {
            return Ok(None);
        };
        if source.is_empty() && payload.remaining > 0 {
            return Ok(None);
        }
        let count = source.len().min(payload.remaining as usize);
        let mut data = source.split_to(count);
        unmask(&mut data, payload.mask);
        payload.mask.rotate_left(count % 4);
        payload.remaining -= count as u64;
        let last = payload.remaining == 0 && payload.ends;
        if payload.remaining == 0 {
            self.payload = None;
        }
        Ok(Some(Event::Piece {
            first: std::mem::take(&mut self.fresh),
            last,
            data: data.freeze(),
        }))
    }
}

enum Header {
    /// More bytes are needed.
    Short,
    Control(Event),
    Data(Payload),
}

impl FrameDecoder {
    /// Takes a frame's header off the front; of a control frame its payload too.
    fn header(&mut self, source: &mut BytesMut) -> Result<Header, WebSocketError> {
        let mut cursor = Cursor::new(&source[..source.len().min(MAX_HEADER_BYTES)]);
        let parsed = FrameHeader::parse(&mut cursor)
            .map_err(|_| WebSocketError::Protocol("unknown opcode"))?;
        let Some((header, length)) = parsed else {
            return Ok(Header::Short);
        };
        let header_bytes = cursor.position() as usize;
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(WebSocketError::Protocol("reserved bits are set"));
        }
        let mask = header
            .mask
            .ok_or(WebSocketError::Protocol("a client's frame is not masked"))?;
        let code = match header.opcode {
            OpCode::Control(control) => {
                if !header.is_final || length > MAX_CONTROL_BYTES {
                    return Err(WebSocketError::Protocol("a control frame is too long"));
                }
                let length = length as usize;
                if source.len() < header_bytes + length {
                    return Ok(Header::Short);
                }
                source.advance(header_bytes);
                let mut data = source.split_to(length);
                unmask(&mut data, mask);
                return Ok(Header::Control(match control {
                    Control::Close => Event::Close,
                    // Its few bytes are kept: they must not keep the whole buffer.
                    Control::Ping => Event::Ping(Bytes::copy_from_slice(&data)),
                    _ => Event::Pong,
                }));
            }
            OpCode::Data(code) => code,
        };
        if length > MAX_FRAME_BYTES {
            return Err(WebSocketError::TooLong(length));
        }
        match (code, self.fragmented) {
            (DataCode::Continue, false) => {
                return Err(WebSocketError::Protocol("nothing is to be continued"));
            }
            (DataCode::Continue, true) => {}
            (_, true) => return Err(WebSocketError::Protocol("a message is not at its end")),
            (_, false) => self.fresh = true,
        }
        self.fragmented = !header.is_final;
        source.advance(header_bytes);
        Ok(Header::Data(Payload {
            remaining: length,
            mask,
            ends: header.is_final,
        }))
    }
}

fn unmask(data: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let key = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = data.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ key).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.to_ne_bytes()) {
        *byte ^= key;
    }
}

/// What we say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Binary(Bytes),
    Text(Bytes),
    Pong(Bytes),
    Close(CloseCode),
}

/// Messages to bytes: one frame each, not masked.
pub(crate) struct FrameEncoder;

impl Encoder<Message> for FrameEncoder {
    type Error = WebSocketError;

    fn encode(&mut self, message: Message, target: &mut BytesMut) -> Result<(), WebSocketError> {
        let (opcode, data) = match message {
            Message::Binary(data) => (OpCode::Data(DataCode::Binary), data),
            Message::Text(data) => (OpCode::Data(DataCode::Text), data),
            Message::Pong(data) => (OpCode::Control(Control::Pong), data),
            Message::Close(code) => (
                OpCode::Control(Control::Close),
                Bytes::copy_from_slice(&u16::from(code).to_be_bytes()),
            ),
        };
        let header = FrameHeader {
            opcode,
            ..FrameHeader::default()
        };
        target.reserve(MAX_HEADER_BYTES + data.len());
        header
            .format(data.len() as u64, &mut target.writer())
            .map_err(|_| WebSocketError::Protocol("a header cannot be written"))?;
        target.put_slice(&data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: [u8; 4] = [1, 2, 3, 4];

    /// A client's frame.
    fn frame(first: u8, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first];
        match data.len() {
            0..=125 => bytes.push(0x80 | data.len() as u8),
            126..=65535 => {
                bytes.push(0x80 | 126);
                bytes.extend((data.len() as u16).to_be_bytes());
            }
            _ => {
                bytes.push(0x80 | 127);
                bytes.extend((data.len() as u64).to_be_bytes());
            }
        }
        bytes.extend(MASK);
        bytes.extend(data.iter().zip(MASK.iter().cycle()).map(|(a, b)| a ^ b));
        bytes
    }

    fn events(bytes: &[u8], step: usize) -> Result<Vec<Event>, WebSocketError> {
        let (mut decoder, mut buffer, mut events) =
            (FrameDecoder::default(), BytesMut::new(), Vec::new());
        for piece in bytes.chunks(step) {
            buffer.extend_from_slice(piece);
            while let Some(event) = decoder.decode(&mut buffer)? {
                events.push(event);
            }
        }
        Ok(events)
    }

    /// Whole messages of events.
    fn messages(events: &[Event]) -> Vec<Vec<u8>> {
        let mut messages: Vec<Vec<u8>> = Vec::new();
        let mut open = false;
        for event in events {
            if let Event::Piece { first, last, data } = event {
                assert_eq!(*first, !open, "{events:?}");
                if *first {
                    messages.push(Vec::new());
                }
                messages.last_mut().unwrap().extend_from_slice(data);
                open = !last;
            }
        }
        assert!(!open);
        messages
    }

    #[test]
    fn messages_in_any_pieces() {
        let long: Vec<u8> = (0..70_000u32).map(|n| n as u8).collect();
        let bytes = [
            frame(0x82, b"one"),
            frame(0x81, b""),
            frame(0x02, b"of "),
            frame(0x89, b"ping"),
            frame(0x00, b""),
            frame(0x80, b"three"),
            frame(0x8a, b""),
            frame(0x82, &long),
            frame(0x88, &[3, 232]),
        ]
        .concat();
        for step in [1, 3, 1000, bytes.len()] {
            let events = events(&bytes, step).unwrap();
            let expect = [b"one".to_vec(), vec![], b"of three".to_vec(), long.clone()];
            assert_eq!(messages(&events), expect, "{step}");
            let controls: Vec<_> = events
                .iter()
                .filter(|event| !matches!(event, Event::Piece { .. }))
                .collect();
            assert_eq!(
                controls,
                [&Event::Ping("ping".into()), &Event::Pong, &Event::Close]
            );
        }
    }

    #[test]
    fn hostile_frames_are_refused_at_their_header() {
        let check = |bytes: &[u8], code: CloseCode| {
            let error = events(bytes, 1).expect_err(&format!("{bytes:x?}"));
            assert_eq!(error.code(), code, "{bytes:x?}: {error}");
        };
        let protocol = CloseCode::Protocol;
        // Not masked; reserved bits; unknown opcodes of both kinds.
        check(&[0x82, 1, b'x'], protocol);
        check(&frame(0xc2, b"x"), protocol);
        check(&frame(0x83, b"x"), protocol);
        check(&frame(0x8b, b"x"), protocol);
        // A control frame in pieces, or long.
        check(&frame(0x09, b"x"), protocol);
        check(&frame(0x89, &[0; 126]), protocol);
        // What is continued, and what should have been.
        check(&frame(0x80, b"x"), protocol);
        check(&[frame(0x02, b"x"), frame(0x82, b"y")].concat(), protocol);
        // Lengths: one byte too many, and as many as there are.
        let length = |length: u64| {
            let mut bytes = vec![0x82, 0xff];
            bytes.extend(length.to_be_bytes());
            bytes.extend(MASK);
            bytes
        };
        check(&length((32 << 20) + 1), CloseCode::Size);
        check(&length(u64::MAX), CloseCode::Size);
        assert!(events(&length(32 << 20), 1).unwrap().is_empty());
    }

    #[test]
    fn what_we_say_is_read_by_others() {
        let check = |message: Message, expect: &[u8]| {
            let mut bytes = BytesMut::new();
            FrameEncoder.encode(message, &mut bytes).unwrap();
            assert_eq!(&bytes[..], expect);
        };
        check(Message::Binary("\x01hi".into()), b"\x82\x03\x01hi");
        check(Message::Text("1".into()), b"\x81\x011");
        check(Message::Pong("x".into()), b"\x8a\x01x");
        check(Message::Close(CloseCode::Normal), &[0x88, 2, 3, 232]);
        let mut bytes = BytesMut::new();
        let long = Message::Binary(vec![0; 40_000].into());
        FrameEncoder.encode(long, &mut bytes).unwrap();
        assert_eq!(
            (bytes.len(), &bytes[..4]),
            (40_004, &[0x82, 126, 0x9c, 0x40][..])
        );
    }
}
