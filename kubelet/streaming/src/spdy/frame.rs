//! Frames: the codec between bytes and values. No I/O.
//!
//! ```text
//! control: |1| version 15 | type 16 | flags 8 | length 24 | …      data: |0| stream 31 | flags 8 | length 24 | …
//! ```

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use super::header::{HeaderDecoder, HeaderEncoder, Headers};

const VERSION: u16 = 3;
const HEADER_BYTES: usize = 8;
/// Control frames are small; a data frame may be as long as its 24 bits say, but comes on in pieces.
///
/// DIFFERS: upstream takes 16 MiB. No client's headers of a stream have a hundredth of this.
const MAX_CONTROL_BYTES: usize = 32 * 1024;
/// Data of one frame we send.
pub(super) const MAX_DATA_BYTES: usize = 32 * 1024;

const TYPE_SYN_STREAM: u16 = 1;
const TYPE_SYN_REPLY: u16 = 2;
const TYPE_RST_STREAM: u16 = 3;
const TYPE_SETTINGS: u16 = 4;
const TYPE_PING: u16 = 6;
const TYPE_GOAWAY: u16 = 7;
const TYPE_HEADERS: u16 = 8;
const TYPE_WINDOW_UPDATE: u16 = 9;
const FLAG_FIN: u8 = 1;
const SETTINGS_INITIAL_WINDOW_SIZE: u32 = 7;

/// RST_STREAM: the stream is no longer wanted.
pub(super) const STATUS_CANCEL: u32 = 5;
/// RST_STREAM: there are too many streams.
pub(super) const STATUS_REFUSED_STREAM: u32 = 3;
/// RST_STREAM: a window grew beyond what it may.
pub(super) const STATUS_FLOW_CONTROL_ERROR: u32 = 7;
/// GOAWAY: all is well.
pub(super) const GOAWAY_OK: u32 = 0;
/// GOAWAY: the client breaks the protocol.
pub(super) const GOAWAY_PROTOCOL_ERROR: u32 = 1;

/// Why bytes are no SPDY. The connection is beyond repair.
#[derive(Debug, thiserror::Error)]
pub enum SpdyError {
    #[error("spdy: {0}")]
    Headers(&'static str),
    #[error("spdy: version {0} is not supported")]
    Version(u16),
    #[error("spdy: control frame of type {kind} has {length} bytes")]
    Length { kind: u16, length: usize },
    #[error("spdy: stream id zero")]
    StreamZero,
    #[error("spdy: stream {0} is not the client's to open, or not any more")]
    StreamId(u32),
    #[error("spdy: a window grew beyond 2^31-1")]
    Window,
    #[error("spdy: {0}")]
    Io(#[from] std::io::Error),
}

/// One frame. A long data frame comes as several, of which the last has `fin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        stream_id: u32,
        fin: bool,
        headers: Headers,
    },
    SynReply {
        stream_id: u32,
        fin: bool,
        headers: Headers,
    },
    RstStream {
        stream_id: u32,
        status: u32,
    },
    Ping {
        id: u32,
    },
    GoAway {
        last_stream_id: u32,
        status: u32,
    },
    Headers {
        stream_id: u32,
        fin: bool,
        headers: Headers,
    },
    Data {
        stream_id: u32,
        fin: bool,
        data: Bytes,
    },
    /// The client takes so many more bytes of a stream; of all, with stream zero.
    WindowUpdate {
        stream_id: u32,
        delta: u32,
    },
    /// Of the settings only the window is of a meaning here.
    Settings {
        initial_window: Option<u32>,
    },
    /// What we do not know.
    Ignored {
        kind: u16,
    },
}

/// Bytes to frames.
pub struct FrameDecoder {
    headers: HeaderDecoder,
    data: Option<DataInFlight>,
}

struct DataInFlight {
    stream_id: u32,
    fin: bool,
    remaining: usize,
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self {
            headers: HeaderDecoder::new(),
            data: None,
        }
    }
}

impl Decoder for FrameDecoder {
    type Item = Frame;
    type Error = SpdyError;

    fn decode(&mut self, source: &mut BytesMut) -> Result<Option<Frame>, SpdyError> {
        if let Some(data) = &mut self.data {
            if source.is_empty() {
                return Ok(None);
            }
            let piece = source.split_to(data.remaining.min(source.len())).freeze();
            data.remaining -= piece.len();
            let (stream_id, last) = (data.stream_id, data.remaining == 0);
            let fin = data.fin && last;
            if last {
                self.data = None;
            }
            return Ok(Some(Frame::Data {
                stream_id,
                fin,
                data: piece,
            }));
        }
        if source.len() < HEADER_BYTES {
            return Ok(None);
        }
        let mut head = &source[..HEADER_BYTES];
        let first = head.get_u32();
        let rest = head.get_u32();
        let (flags, length) = ((rest >> 24) as u8, (rest & 0x00ff_ffff) as usize);
        let fin = flags & FLAG_FIN != 0;
        if first & 0x8000_0000 == 0 {
            if first == 0 {
                return Err(SpdyError::StreamZero);
            }
            source.advance(HEADER_BYTES);
            if length == 0 {
                return Ok(Some(Frame::Data {
                    stream_id: first,
                    fin,
                    data: Bytes::new(),
                }));
            }
            self.data = Some(DataInFlight {
                stream_id: first,
                fin,
                remaining: length,
            });
            return self.decode(source);
        }
        let version = ((first >> 16) & 0x7fff) as u16;
        let kind = (first & 0xffff) as u16;
        if version != VERSION {
            return Err(SpdyError::Version(version));
        }
        if length > MAX_CONTROL_BYTES {
            return Err(SpdyError::Length { kind, length });
        }
        if source.len() < HEADER_BYTES + length {
            source.reserve(HEADER_BYTES + length - source.len());
            return Ok(None);
        }
        source.advance(HEADER_BYTES);
        let body = source.split_to(length).freeze();
        self.control(kind, fin, body).map(Some)
    }
}

impl FrameDecoder {
    fn control(&mut self, kind: u16, fin: bool, mut body: Bytes) -> Result<Frame, SpdyError> {
        let length = body.len();
        let least = match kind {
            TYPE_SYN_STREAM => 10,
            TYPE_SYN_REPLY | TYPE_HEADERS | TYPE_PING => 4,
            TYPE_RST_STREAM | TYPE_GOAWAY | TYPE_WINDOW_UPDATE => 8,
            TYPE_SETTINGS => 4,
            _ => 0,
        };
        if length < least {
            return Err(SpdyError::Length { kind, length });
        }
        let mut id = || body.get_u32() & 0x7fff_ffff;
        Ok(match kind {
            TYPE_SYN_STREAM => {
                let stream_id = stream(id())?;
                // The stream it belongs to, its priority and slot: of no meaning here.
                body.advance(6);
                Frame::SynStream {
                    stream_id,
                    fin,
                    headers: self.headers.decode(&body)?,
                }
            }
            TYPE_SYN_REPLY => {
                let stream_id = stream(id())?;
                Frame::SynReply {
                    stream_id,
                    fin,
                    headers: self.headers.decode(&body)?,
                }
            }
            TYPE_HEADERS => {
                let stream_id = stream(id())?;
                Frame::Headers {
                    stream_id,
                    fin,
                    headers: self.headers.decode(&body)?,
                }
            }
            TYPE_RST_STREAM => {
                let stream_id = stream(id())?;
                Frame::RstStream {
                    stream_id,
                    status: body.get_u32(),
                }
            }
            TYPE_PING => Frame::Ping { id: body.get_u32() },
            TYPE_GOAWAY => Frame::GoAway {
                last_stream_id: id(),
                status: body.get_u32(),
            },
            TYPE_WINDOW_UPDATE => Frame::WindowUpdate {
                stream_id: id(),
                delta: body.get_u32() & 0x7fff_ffff,
            },
            TYPE_SETTINGS => Frame::Settings {
                initial_window: initial_window(&mut body)
                    .ok_or(SpdyError::Length { kind, length })?,
            },
            other => Frame::Ignored { kind: other },
        })
    }
}

/// Outer `None`: there are not as many settings as are announced.
fn initial_window(body: &mut Bytes) -> Option<Option<u32>> {
    let count = body.get_u32() as usize;
    if count.checked_mul(8)? != body.len() {
        return None;
    }
    let mut window = None;
    while body.has_remaining() {
        let (id, value) = (body.get_u32() & 0x00ff_ffff, body.get_u32());
        if id == SETTINGS_INITIAL_WINDOW_SIZE {
            window = Some(value);
        }
    }
    Some(window)
}

fn stream(id: u32) -> Result<u32, SpdyError> {
    if id == 0 {
        Err(SpdyError::StreamZero)
    } else {
        Ok(id)
    }
}

/// Frames to bytes.
pub struct FrameEncoder {
    headers: HeaderEncoder,
}

impl Default for FrameEncoder {
    fn default() -> Self {
        Self {
            headers: HeaderEncoder::new(),
        }
    }
}

impl Encoder<Frame> for FrameEncoder {
    type Error = SpdyError;

    fn encode(&mut self, frame: Frame, target: &mut BytesMut) -> Result<(), SpdyError> {
        match frame {
            Frame::Data {
                stream_id,
                fin,
                data,
            } => {
                target.reserve(HEADER_BYTES + data.len());
                target.put_u32(stream_id);
                target.put_u32((u32::from(fin) << 24) | data.len() as u32);
                target.put_slice(&data);
            }
            Frame::SynStream {
                stream_id,
                fin,
                headers,
            } => {
                let block = self.headers.encode(&headers);
                control(target, TYPE_SYN_STREAM, fin, 10 + block.len());
                target.put_u32(stream_id);
                target.put_u32(0);
                target.put_u16(0);
                target.put_slice(&block);
            }
            Frame::SynReply {
                stream_id,
                fin,
                headers,
            } => {
                let block = self.headers.encode(&headers);
                control(target, TYPE_SYN_REPLY, fin, 4 + block.len());
                target.put_u32(stream_id);
                target.put_slice(&block);
            }
            Frame::Headers {
                stream_id,
                fin,
                headers,
            } => {
                let block = self.headers.encode(&headers);
                control(target, TYPE_HEADERS, fin, 4 + block.len());
                target.put_u32(stream_id);
                target.put_slice(&block);
            }
            Frame::RstStream { stream_id, status } => {
                control(target, TYPE_RST_STREAM, false, 8);
                target.put_u32(stream_id);
                target.put_u32(status);
            }
            Frame::Ping { id } => {
                control(target, TYPE_PING, false, 4);
                target.put_u32(id);
            }
            Frame::GoAway {
                last_stream_id,
                status,
            } => {
                control(target, TYPE_GOAWAY, false, 8);
                target.put_u32(last_stream_id);
                target.put_u32(status);
            }
            Frame::WindowUpdate { stream_id, delta } => {
                control(target, TYPE_WINDOW_UPDATE, false, 8);
                target.put_u32(stream_id);
                target.put_u32(delta);
            }
            Frame::Settings { initial_window } => {
                let length = if initial_window.is_some() { 12 } else { 4 };
                control(target, TYPE_SETTINGS, false, length);
                target.put_u32(u32::from(initial_window.is_some()));
                if let Some(value) = initial_window {
                    target.put_u32(SETTINGS_INITIAL_WINDOW_SIZE);
                    target.put_u32(value);
                }
            }
            Frame::Ignored { .. } => {}
        }
        Ok(())
    }
}

fn control(target: &mut BytesMut, kind: u16, fin: bool, length: usize) {
    target.reserve(HEADER_BYTES + length);
    target.put_u16(0x8000 | VERSION);
    target.put_u16(kind);
    target.put_u32((u32::from(fin) << 24) | length as u32);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        Headers(
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn round_trips_in_any_pieces() {
        let frames = vec![
            Frame::SynStream {
                stream_id: 1,
                fin: false,
                headers: headers(&[("streamtype", "error")]),
            },
            Frame::SynStream {
                stream_id: 3,
                fin: true,
                headers: headers(&[("port", "80")]),
            },
            Frame::SynReply {
                stream_id: 1,
                fin: false,
                headers: Headers::default(),
            },
            Frame::Headers {
                stream_id: 1,
                fin: true,
                headers: headers(&[("a", "b\0c")]),
            },
            Frame::Data {
                stream_id: 1,
                fin: true,
                data: Bytes::new(),
            },
            Frame::RstStream {
                stream_id: 3,
                status: STATUS_CANCEL,
            },
            Frame::Ping { id: 7 },
            Frame::GoAway {
                last_stream_id: 3,
                status: 0,
            },
            Frame::WindowUpdate {
                stream_id: 0,
                delta: 0x7fff_ffff,
            },
            Frame::Settings {
                initial_window: Some(9),
            },
            Frame::Settings {
                initial_window: None,
            },
        ];
        let mut encoder = FrameEncoder::default();
        let mut bytes = BytesMut::new();
        for frame in &frames {
            encoder.encode(frame.clone(), &mut bytes).unwrap();
        }
        for step in [1, 3, bytes.len()] {
            let mut decoder = FrameDecoder::default();
            let mut buffer = BytesMut::new();
            let mut got = Vec::new();
            for piece in bytes.chunks(step) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
                    got.push(frame);
                }
            }
            assert_eq!(got, frames);
        }
    }

    #[test]
    fn known_bytes() {
        let check = |frame: Frame, expect: &[u8]| {
            let mut bytes = BytesMut::new();
            FrameEncoder::default()
                .encode(frame.clone(), &mut bytes)
                .unwrap();
            assert_eq!(&bytes[..], expect);
            assert_eq!(
                FrameDecoder::default().decode(&mut bytes).unwrap(),
                Some(frame)
            );
        };
        check(
            Frame::Ping { id: 1 },
            &[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1],
        );
        check(
            Frame::RstStream {
                stream_id: 5,
                status: 5,
            },
            &[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 5],
        );
        check(
            Frame::Data {
                stream_id: 5,
                fin: true,
                data: Bytes::from_static(b"hi"),
            },
            &[0, 0, 0, 5, 1, 0, 0, 2, b'h', b'i'],
        );
        check(
            Frame::GoAway {
                last_stream_id: 9,
                status: 0,
            },
            &[0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0, 0],
        );
    }

    #[test]
    fn a_block_that_spdystream_wrote() {
        // SYN_STREAM of stream 1 with "Streamtype: error", as Go's compress/zlib writes it.
        let bytes = [
            0x80, 0x03, 0x00, 0x01, 0x00, 0x00, 0x00, 0x29, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00,
            0x00, 0x00, 0x00, 0x00, 0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2, 0x62, 0x60, 0x60, 0x60,
            0x04, 0xa7, 0xb3, 0x92, 0xa2, 0xd4, 0xc4, 0x5c, 0x68, 0x51, 0xc2, 0x9a, 0x0a, 0x0a,
            0x68, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff,
        ];
        let mut buffer = BytesMut::from(&bytes[..]);
        let frame = FrameDecoder::default().decode(&mut buffer).unwrap();
        let expect = headers(&[("streamtype", "error")]);
        assert_eq!(
            frame,
            Some(Frame::SynStream {
                stream_id: 1,
                fin: false,
                headers: expect
            })
        );
    }

    #[test]
    fn a_long_data_frame_comes_in_pieces() {
        let mut buffer = BytesMut::from(&[0, 0, 0, 1, 1, 0, 0, 5, b'a', b'b'][..]);
        let mut decoder = FrameDecoder::default();
        let piece = |fin, data: &'static [u8]| {
            Some(Frame::Data {
                stream_id: 1,
                fin,
                data: Bytes::from_static(data),
            })
        };
        assert_eq!(decoder.decode(&mut buffer).unwrap(), piece(false, b"ab"));
        assert_eq!(decoder.decode(&mut buffer).unwrap(), None);
        buffer.extend_from_slice(b"cde");
        assert_eq!(decoder.decode(&mut buffer).unwrap(), piece(true, b"cde"));
    }

    #[test]
    fn junk_is_refused() {
        let check = |bytes: &[u8]| {
            let mut buffer = BytesMut::from(bytes);
            assert!(
                FrameDecoder::default().decode(&mut buffer).is_err(),
                "{bytes:x?}"
            );
        };
        check(&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]);
        check(&[0x80, 3, 0, 6, 0, 0, 0, 0]);
        check(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]);
        check(&[0, 0, 0, 0, 0, 0, 0, 0]);
        check(&[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 5]);
        // WINDOW_UPDATE and SETTINGS that are short, or say they hold more than they do.
        check(&[0x80, 3, 0, 9, 0, 0, 0, 4, 0, 0, 0, 1]);
        check(&[0x80, 3, 0, 4, 0, 0, 0, 0]);
        check(&[0x80, 3, 0, 4, 0, 0, 0, 4, 0, 0, 0, 1]);
        check(&[0x80, 3, 0, 4, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff]);
        check(&[0x80, 3, 0, 4, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
        // A frame of headers longer than any are.
        check(&[0x80, 3, 0, 8, 0, 0, 0x80, 1]);
        // GOAWAY and SYN_STREAM cut short.
        check(&[0x80, 3, 0, 7, 0, 0, 0, 4, 0, 0, 0, 1]);
        check(&[0x80, 3, 0, 1, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn what_has_no_meaning_is_passed_over() {
        let mut buffer = BytesMut::from(&[0x80, 3, 0, 10, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 9][..]);
        let frame = FrameDecoder::default().decode(&mut buffer).unwrap();
        assert_eq!(frame, Some(Frame::Ignored { kind: 10 }));
        assert!(buffer.is_empty());
    }

    #[test]
    fn windows_are_read() {
        let check = |bytes: &[u8], expect: Frame| {
            let mut buffer = BytesMut::from(bytes);
            let frame = FrameDecoder::default().decode(&mut buffer).unwrap();
            assert_eq!(frame, Some(expect));
        };
        let delta = 9;
        check(
            &[0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 9],
            Frame::WindowUpdate {
                stream_id: 1,
                delta,
            },
        );
        // Another setting first; the flags beside an id are of no meaning.
        check(
            &[
                0x80, 3, 0, 4, 0, 0, 0, 20, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 1, 1, 0, 0, 7, 0, 0,
                2, 0,
            ],
            Frame::Settings {
                initial_window: Some(512),
            },
        );
    }
}
