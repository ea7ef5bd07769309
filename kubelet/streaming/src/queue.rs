//! Bytes on their way from a connection's reading task to the reader of one stream: bounded, and copied together so that many
//! small pieces cost no more than one large one.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncBufRead, AsyncRead, ReadBuf};

use crate::memory::{STREAM_BYTES, Share};

/// Bytes kept in one piece.
const CHUNK_BYTES: usize = 32 * 1024;

/// A new queue of a connection.
pub(crate) fn queue(share: Arc<Share>) -> (Inlet, Outlet) {
    let shared = Arc::new(Shared {
        share,
        state: Mutex::default(),
    });
    let outlet = Outlet {
        shared: shared.clone(),
        current: Vec::new(),
        at: 0,
    };
    (Inlet { shared }, outlet)
}

struct Shared {
    share: Arc<Share>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    chunks: VecDeque<Vec<u8>>,
    /// In `chunks`, and what the reader took of them and has not used.
    held: usize,
    /// Nothing comes any more.
    ended: bool,
    /// Nobody reads any more.
    gone: bool,
    reader: Option<Waker>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    Taken,
    /// Nobody reads it, or the stream has ended: dropped, as upstream does.
    Dropped,
    /// There is no room now.
    Full,
}

/// Where the connection puts what came.
pub(crate) struct Inlet {
    shared: Arc<Shared>,
}

impl Inlet {
    /// Takes all of it or nothing.
    pub(crate) fn try_push(&self, mut data: &[u8]) -> Pushed {
        let mut state = self.shared.state();
        if state.gone || state.ended {
            return Pushed::Dropped;
        }
        let room = state.held == 0 || state.held + data.len() <= STREAM_BYTES;
        if !room || !self.shared.share.take(data.len()) {
            return Pushed::Full;
        }
        state.held += data.len();
        if let Some(last) = state.chunks.back_mut() {
            let fits = data.len().min(CHUNK_BYTES.saturating_sub(last.len()));
            last.extend_from_slice(&data[..fits]);
            data = &data[fits..];
        }
        for chunk in data.chunks(CHUNK_BYTES) {
            state.chunks.push_back(chunk.to_vec());
        }
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        Pushed::Taken
    }

    /// As [`Self::try_push`], waiting for room. A connection's one reading task may wait, nobody else.
    pub(crate) async fn push(&self, data: &[u8]) -> Pushed {
        loop {
            // Told before we look: the word is kept for us.
            match self.try_push(data) {
                Pushed::Full => self.shared.share.given.notified().await,
                done => return done,
            }
        }
    }

    /// Nothing more comes; what is here may still be read.
    pub(crate) fn end(&self) {
        let mut state = self.shared.state();
        state.ended = true;
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.shared.state().ended
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        self.end();
    }
}

/// Where a stream is read. Its memory is free again once it was read, or the outlet is dropped.
pub(crate) struct Outlet {
    shared: Arc<Shared>,
    current: Vec<u8>,
    at: usize,
}

impl AsyncBufRead for Outlet {
    fn poll_fill_buf(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if this.at == this.current.len() {
            let mut state = this.shared.state();
            match state.chunks.pop_front() {
                Some(chunk) => {
                    drop(state);
                    (this.current, this.at) = (chunk, 0);
                }
                None => {
                    let ended = state.ended;
                    if !ended {
                        state.reader = Some(context.waker().clone());
                    }
                    drop(state);
                    (this.current, this.at) = (Vec::new(), 0);
                    if !ended {
                        return Poll::Pending;
                    }
                }
            }
        }
        Poll::Ready(Ok(&this.current[this.at..]))
    }

    fn consume(self: Pin<&mut Self>, count: usize) {
        let this = self.get_mut();
        let count = count.min(this.current.len() - this.at);
        this.at += count;
        this.shared.state().held -= count;
        this.shared.share.give(count);
    }
}

impl AsyncRead for Outlet {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let data = ready!(self.as_mut().poll_fill_buf(context))?;
        let count = data.len().min(buffer.remaining());
        buffer.put_slice(&data[..count]);
        self.consume(count);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.gone = true;
        let held = std::mem::take(&mut state.held);
        state.chunks = VecDeque::new();
        drop(state);
        self.shared.share.give(held);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _};

    use super::*;
    use crate::memory::{OWN_BYTES, Pool};

    fn share(pool: usize) -> Arc<Share> {
        Share::new(Pool::new(pool))
    }

    #[tokio::test]
    async fn bytes_come_out_in_order_and_small_pieces_grow_together() {
        let (inlet, mut outlet) = queue(share(0));
        let sent: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
        for piece in sent.chunks(7) {
            assert_eq!(inlet.try_push(piece), Pushed::Taken);
        }
        assert_eq!(
            outlet.shared.state().chunks.len(),
            sent.len().div_ceil(CHUNK_BYTES)
        );
        inlet.end();
        assert_eq!(inlet.try_push(b"late"), Pushed::Dropped);
        let mut got = Vec::new();
        outlet.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, sent);
        assert_eq!(outlet.shared.state().held, 0);
    }

    #[tokio::test]
    async fn a_full_queue_waits_for_its_reader() {
        let (inlet, mut outlet) = queue(share(10 * STREAM_BYTES));
        let piece = vec![0; CHUNK_BYTES];
        let mut pushed = 0;
        while inlet.try_push(&piece) == Pushed::Taken {
            pushed += piece.len();
        }
        assert_eq!(pushed, STREAM_BYTES);
        let waiting = tokio::spawn(async move { inlet.push(&[1; CHUNK_BYTES]).await });
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(!waiting.is_finished());
        // Taken is not used: the room is there when it is.
        let length = outlet.fill_buf().await.unwrap().len();
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(!waiting.is_finished());
        outlet.consume(length);
        assert_eq!(waiting.await.unwrap(), Pushed::Taken);
    }

    #[tokio::test]
    async fn one_connection_has_one_bound_for_all_its_streams() {
        let share = share(0);
        let (one, mut one_out) = queue(share.clone());
        let (other, other_out) = queue(share.clone());
        assert_eq!(one.try_push(&vec![0; OWN_BYTES]), Pushed::Taken);
        assert_eq!(other.try_push(b"x"), Pushed::Full);
        one_out.fill_buf().await.unwrap();
        one_out.consume(1);
        assert_eq!(other.try_push(b"x"), Pushed::Taken);
        assert_eq!(other.try_push(b"x"), Pushed::Full);
        // A reader that goes gives back all it held, and wakes who waits for room.
        let waiting = tokio::spawn(async move { other.push(b"y").await });
        tokio::time::sleep(Duration::from_millis(10)).await;
        drop(one_out);
        assert_eq!(waiting.await.unwrap(), Pushed::Taken);
        assert_eq!(one.try_push(b"z"), Pushed::Dropped);
        drop(other_out);
        assert!(share.take(OWN_BYTES));
    }
}
