//! Framing: a header of eight bytes (length of the JSON that follows, number of descriptors that
//! came with it, both little-endian `u32`), then JSON. Descriptors travel with the header.
//!
//! The functions are synchronous and work on non-blocking sockets: `WouldBlock` is handed up.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A frame longer than this is an error: nothing sensible is, and a length must not eat the memory.
pub const MAX_FRAME_BYTES: usize = 8 << 20;

/// Descriptors with one message.
pub const MAX_FDS: usize = 4;

const HEADER_BYTES: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("message cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    #[error("frame of {0} bytes is longer than {MAX_FRAME_BYTES}")]
    TooLong(usize),
    #[error("message announces {wanted} descriptors, {found} came")]
    Descriptors { wanted: usize, found: usize },
}

/// One message as bytes; `fd_count` descriptors go with its first byte.
pub fn encode<T: Serialize>(message: &T, fd_count: usize) -> Result<Vec<u8>, WireError> {
    let mut frame = vec![0; HEADER_BYTES];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - HEADER_BYTES;
    if length > MAX_FRAME_BYTES {
        return Err(WireError::TooLong(length));
    }
    frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
    frame[4..8].copy_from_slice(&(fd_count as u32).to_le_bytes());
    Ok(frame)
}

/// Collects what comes from a socket and hands out whole messages.
#[derive(Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Decoder {
    /// Receives once. `Ok(0)` is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is there; anything else ends the connection.
    pub fn receive(&mut self, socket: &impl AsRawFd) -> io::Result<usize> {
        let mut chunk = [0u8; 16 * 1024];
        let count = recv_with_fds(socket.as_raw_fd(), &mut chunk, &mut self.fds)?;
        self.buffer.extend_from_slice(&chunk[..count]);
        Ok(count)
    }

    /// Bytes that came from no socket.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn received(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message with its descriptors, if one is here.
    pub fn take<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Vec<OwnedFd>)>, WireError> {
        let Some(header) = self.buffer.get(..HEADER_BYTES) else {
            return Ok(None);
        };
        let number =
            |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        let (length, wanted) = (number(&header[..4]), number(&header[4..8]));
        if length > MAX_FRAME_BYTES {
            return Err(WireError::TooLong(length));
        }
        let Some(body) = self.buffer.get(HEADER_BYTES..HEADER_BYTES + length) else {
            return Ok(None);
        };
        let message = serde_json::from_slice(body);
        self.buffer.drain(..HEADER_BYTES + length);
        if self.buffer.is_empty() {
            self.buffer = Vec::new();
        }
        if wanted > self.fds.len() {
            return Err(WireError::Descriptors {
                wanted,
                found: self.fds.len(),
            });
        }
        let fds = self.fds.drain(..wanted).collect();
        Ok(Some((message?, fds)))
    }
}

/// Sends a part of `bytes`, with `fds` on its first byte. Returns how much went.
pub fn send_with_fds(socket: RawFd, bytes: &[u8], fds: &[RawFd]) -> io::Result<usize> {
    assert!(
        fds.len() <= MAX_FDS,
        "a message never carries more descriptors than MAX_FDS"
    );
    let mut space = [0u64; 8];
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr() as *mut libc::c_void,
        iov_len: bytes.len(),
    };
    // SAFETY: an all-zero msghdr is a valid empty one.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &mut iov;
    header.msg_iovlen = 1;
    if !fds.is_empty() {
        let payload = size_of_val(fds) as u32;
        header.msg_control = space.as_mut_ptr().cast();
        // SAFETY: `space` (64 bytes, aligned) holds CMSG_SPACE of four descriptors (32 bytes), and
        // the first header lies inside it.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(payload) as usize;
            let control = libc::CMSG_FIRSTHDR(&header);
            (*control).cmsg_level = libc::SOL_SOCKET;
            (*control).cmsg_type = libc::SCM_RIGHTS;
            (*control).cmsg_len = libc::CMSG_LEN(payload) as usize;
            std::ptr::copy_nonoverlapping(
                fds.as_ptr().cast::<u8>(),
                libc::CMSG_DATA(control),
                payload as usize,
            );
        }
    }
    // SAFETY: `header` points to live buffers of the lengths it states.
    let sent = unsafe { libc::sendmsg(socket, &header, libc::MSG_NOSIGNAL) };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(sent as usize)
    }
}

fn recv_with_fds(
    socket: RawFd,
    buffer: &mut [u8],
    fds: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [0u64; 16];
    let mut iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: an all-zero msghdr is a valid empty one.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &mut iov;
    header.msg_iovlen = 1;
    header.msg_control = space.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&space);
    // SAFETY: `header` points to live buffers of the lengths it states.
    let count = unsafe { libc::recvmsg(socket, &mut header, libc::MSG_CMSG_CLOEXEC) };
    if count < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel filled `header`'s control part; the CMSG macros stay inside it, and each
    // descriptor in an SCM_RIGHTS message is new and ours.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(&header);
        while !control.is_null() {
            if (*control).cmsg_level == libc::SOL_SOCKET && (*control).cmsg_type == libc::SCM_RIGHTS
            {
                let bytes = (*control).cmsg_len - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(control).cast::<RawFd>();
                for index in 0..bytes / size_of::<RawFd>() {
                    fds.push_back(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            control = libc::CMSG_NXTHDR(&header, control);
        }
    }
    Ok(count as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Request, Response};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn messages_and_descriptors_arrive_whole_and_in_order() {
        let (left, right) = UnixStream::pair().unwrap();
        let (mut far, near) = UnixStream::pair().unwrap();
        let kill = Request::Kill {
            container: "c".into(),
            signal: 9,
            all: false,
        };
        let first = encode(&kill, 0).unwrap();
        let second = encode(
            &Request::Attach {
                container: "c".into(),
                stdin: false,
                stdout: true,
                stderr: false,
            },
            1,
        )
        .unwrap();
        for byte in &first {
            assert_eq!(send_with_fds(left.as_raw_fd(), &[*byte], &[]).unwrap(), 1);
        }
        assert_eq!(
            send_with_fds(left.as_raw_fd(), &second, &[near.as_raw_fd()]).unwrap(),
            second.len()
        );
        drop(near);
        let mut decoder = Decoder::default();
        let mut seen = Vec::new();
        while seen.len() < 2 {
            assert!(decoder.receive(&right).unwrap() > 0);
            while let Some((request, fds)) = decoder.take::<Request>().unwrap() {
                seen.push((request, fds));
            }
        }
        assert_eq!(seen[0].0, kill);
        assert!(seen[0].1.is_empty());
        let fd = seen.pop().unwrap().1.pop().unwrap();
        UnixStream::from(fd).write_all(b"hi").unwrap();
        let mut text = [0; 2];
        far.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hi");
    }

    #[test]
    fn unknown_messages_are_read_as_unknown() {
        assert_eq!(
            serde_json::from_str::<Request>(r#"{"type":"fly"}"#).unwrap(),
            Request::Unknown
        );
        assert_eq!(
            serde_json::from_str::<Response>(r#"{"type":"fly","a":1}"#).unwrap(),
            Response::Unknown
        );
    }

    #[test]
    fn a_mad_length_is_refused() {
        let mut decoder = Decoder {
            buffer: vec![0xff; 8],
            fds: VecDeque::new(),
        };
        assert!(matches!(
            decoder.take::<Request>(),
            Err(WireError::TooLong(_))
        ));
    }
}
