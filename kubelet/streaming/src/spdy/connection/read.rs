//! The task that reads: frames to streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio_util::codec::FramedRead;
use tokio_util::sync::CancellationToken;

use super::{IncomingStream, MAX_STREAMS, Shared, StreamState};
use crate::life::LINGER;
use crate::memory::Share;
use crate::queue::{Pushed, queue};
use crate::spdy::flow::Overflow;
use crate::spdy::frame::{MAX_DATA_BYTES, STATUS_FLOW_CONTROL_ERROR, STATUS_REFUSED_STREAM};
use crate::spdy::{Frame, FrameDecoder, Headers, SpdyError};

/// Whether to go on.
enum Next {
    Read,
    End,
}

pub(super) struct ReadTask {
    pub(super) shared: Arc<Shared>,
    pub(super) accept: mpsc::Sender<IncomingStream>,
    pub(super) share: Arc<Share>,
    pub(super) idle_timeout: Duration,
    /// The last stream the client opened.
    pub(super) last_id: u32,
}

impl ReadTask {
    pub(super) async fn run<R: AsyncRead + Unpin>(mut self, read: R) {
        let shared = self.shared.clone();
        let life = &shared.life;
        let mut frames = FramedRead::with_capacity(read, FrameDecoder::default(), MAX_DATA_BYTES);
        loop {
            let frame = tokio::select! {
                frame = frames.next() => frame,
                () = life.idle(self.idle_timeout) => {
                    tracing::debug!(idle_timeout = ?self.idle_timeout, "closing an idle streaming connection");
                    life.gone.cancel();
                    break;
                }
                () = life.closing.cancelled() => break,
                () = life.closed.cancelled() => break,
            };
            let handled = match frame {
                Some(Ok(frame)) => {
                    life.touch();
                    self.handle(frame).await
                }
                Some(Err(error)) => Err(error),
                None => Ok(Next::End),
            };
            match handled {
                Ok(Next::Read) => continue,
                Ok(Next::End) if life.closing.is_cancelled() => {}
                Ok(Next::End) => life.gone.cancel(),
                Err(SpdyError::Io(error)) => {
                    tracing::debug!(%error, "streaming connection broke");
                    life.gone.cancel();
                }
                Err(error) => {
                    tracing::warn!(%error, "closing a streaming connection");
                    shared.urgent.break_off();
                }
            }
            break;
        }
        life.closed.cancel();
        // Readers see their end, writers that nobody reads.
        for state in shared.streams().values() {
            state.reset.cancel();
            state.inlet.end();
        }
        shared.wake_writers();
        let Self { accept, share, .. } = self;
        drop((accept, share));
        // Drained until the client hangs up: unread bytes would make the kernel reset what we wrote last.
        life.closing.cancelled().await;
        let _ = tokio::time::timeout(LINGER, async {
            let mut rest = frames.into_inner();
            let _ = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await;
        })
        .await;
    }

    async fn handle(&mut self, frame: Frame) -> Result<Next, SpdyError> {
        let shared = self.shared.clone();
        match frame {
            Frame::SynStream {
                stream_id,
                fin,
                headers,
            } => return self.open(stream_id, fin, headers).await,
            Frame::Data {
                stream_id,
                fin,
                data,
            } => return Ok(self.data(stream_id, fin, &data).await),
            Frame::Headers { stream_id, fin, .. } | Frame::SynReply { stream_id, fin, .. } => {
                let state = shared.streams().get(&stream_id).cloned();
                if let Some(state) = state.filter(|_| fin) {
                    close_remote(&shared, stream_id, &state);
                }
            }
            Frame::RstStream { stream_id, .. } => {
                if let Some(state) = shared.forget(stream_id) {
                    state.finished.store(true, Ordering::Release);
                    state.inlet.end();
                    state.reset.cancel();
                    shared.wake_writers();
                }
            }
            // An even one answers ours.
            Frame::Ping { id } if id % 2 == 0 => {}
            Frame::Ping { id } => {
                if !shared.urgent.pong(id) {
                    return Ok(self.send(Frame::Ping { id }).await);
                }
            }
            Frame::GoAway { .. } => return Ok(Next::End),
            Frame::WindowUpdate { stream_id, delta } => {
                let updated = shared.flow().update(stream_id, delta);
                if updated == Err(Overflow::Stream) {
                    return Ok(self.refuse(stream_id, STATUS_FLOW_CONTROL_ERROR).await);
                }
                updated.map_err(|_| SpdyError::Window)?;
                shared.wake_writers();
            }
            Frame::Settings { initial_window } => {
                let set = shared.flow().settings(initial_window);
                set.map_err(|_| SpdyError::Window)?;
                shared.wake_writers();
            }
            Frame::Ignored { .. } => {}
        }
        Ok(Next::Read)
    }

    async fn open(
        &mut self,
        stream_id: u32,
        fin: bool,
        headers: Headers,
    ) -> Result<Next, SpdyError> {
        // DIFFERS: upstream resets such a stream and goes on; which of the two that have the id then?
        if stream_id.is_multiple_of(2) || stream_id <= self.last_id {
            return Err(SpdyError::StreamId(stream_id));
        }
        self.last_id = stream_id;
        let shared = self.shared.clone();
        if shared.streams().len() >= MAX_STREAMS {
            return Ok(self.refuse(stream_id, STATUS_REFUSED_STREAM).await);
        }
        let (inlet, outlet) = queue(self.share.clone());
        if fin {
            inlet.end();
        }
        let state = Arc::new(StreamState {
            inlet,
            finished: AtomicBool::new(false),
            reset: CancellationToken::new(),
        });
        shared.flow().open(stream_id);
        shared.streams().insert(stream_id, state.clone());
        let incoming = IncomingStream {
            id: stream_id,
            headers,
            outlet,
            state,
            shared: shared.clone(),
        };
        let accepted = self.accept.send(incoming);
        let accepted = shared
            .life
            .while_held_back(accepted, self.idle_timeout, || shared.urgent.probe())
            .await;
        Ok(match accepted {
            Some(Ok(())) => Next::Read,
            _ => Next::End,
        })
    }

    async fn data(&self, stream_id: u32, fin: bool, data: &[u8]) -> Next {
        let shared = &self.shared;
        let update = shared.flow().received(stream_id, data.len());
        if let Some(update) = update {
            shared.urgent.update(update);
        }
        let Some(state) = shared.streams().get(&stream_id).cloned() else {
            return Next::Read;
        };
        if !data.is_empty() {
            let mut pushed = state.inlet.try_push(data);
            if pushed == Pushed::Full {
                let room = state.inlet.push(data);
                let held = shared
                    .life
                    .while_held_back(room, self.idle_timeout, || shared.urgent.probe());
                match held.await {
                    Some(done) => pushed = done,
                    None => return Next::End,
                }
            }
            if pushed == Pushed::Dropped {
                shared.used(stream_id, data.len());
            }
        }
        if fin {
            close_remote(shared, stream_id, &state);
        }
        Next::Read
    }

    async fn refuse(&self, stream_id: u32, status: u32) -> Next {
        if let Some(state) = self.shared.forget(stream_id) {
            state.finished.store(true, Ordering::Release);
            state.inlet.end();
            state.reset.cancel();
            self.shared.wake_writers();
        }
        self.send(Frame::RstStream { stream_id, status }).await
    }

    /// A client that does not read what it makes us say is not read either.
    async fn send(&self, frame: Frame) -> Next {
        let shared = &self.shared;
        let sent = shared
            .life
            .while_held_back(shared.out.send(frame), self.idle_timeout, || {
                shared.urgent.probe()
            });
        match sent.await {
            Some(Ok(())) => Next::Read,
            _ => Next::End,
        }
    }
}

fn close_remote(shared: &Shared, stream_id: u32, state: &StreamState) {
    state.inlet.end();
    if state.finished.load(Ordering::Acquire) {
        shared.forget(stream_id);
    }
}
