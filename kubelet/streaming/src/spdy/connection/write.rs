//! The task that writes: what is urgent, then the streams' frames in turn.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::SinkExt as _;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, mpsc};
use tokio_util::codec::FramedWrite;

use super::Shared;
use crate::life::{CLOSE_TIMEOUT, LINGER};
use crate::spdy::flow::Update;
use crate::spdy::frame::GOAWAY_PROTOCOL_ERROR;
use crate::spdy::{Frame, FrameEncoder, SpdyError};

/// Answers to pings that wait for the client to read; with more the connection is not read.
const MAX_PONGS: usize = 64;

/// What the reading task has to say. It waits for nobody: reading must not depend on a client that does not read.
#[derive(Default)]
pub(super) struct Urgent {
    said: Mutex<Said>,
    news: Notify,
}

#[derive(Default)]
struct Said {
    pongs: VecDeque<u32>,
    /// By stream, so bounded by their number.
    updates: BTreeMap<u32, u32>,
    /// Our own ping: is anybody there?
    probe: bool,
    /// The id of our last ping; even, as a server's are.
    last_ping: u32,
    /// The client broke the protocol: this is the last frame.
    broken: bool,
}

impl Urgent {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a ping; `false`: too many wait.
    pub(super) fn pong(&self, id: u32) -> bool {
        let mut said = self.said();
        let room = said.pongs.len() < MAX_PONGS;
        if room {
            said.pongs.push_back(id);
        }
        drop(said);
        self.news.notify_one();
        room
    }

    pub(super) fn update(&self, (stream, delta): Update) {
        let mut said = self.said();
        let sum = said.updates.entry(stream).or_default();
        *sum = sum.saturating_add(delta).min(0x7fff_ffff);
        drop(said);
        self.news.notify_one();
    }

    /// Writes something, so that a connection that is dead shows it.
    pub(super) fn probe(&self) {
        self.said().probe = true;
        self.news.notify_one();
    }

    pub(super) fn break_off(&self) {
        self.said().broken = true;
        self.news.notify_one();
    }

    fn next(&self) -> Option<Frame> {
        let mut said = self.said();
        if said.broken {
            return Some(Frame::GoAway {
                last_stream_id: 0,
                status: GOAWAY_PROTOCOL_ERROR,
            });
        }
        if let Some(id) = said.pongs.pop_front() {
            return Some(Frame::Ping { id });
        }
        if let Some((stream_id, delta)) = said.updates.pop_first() {
            return Some(Frame::WindowUpdate { stream_id, delta });
        }
        if std::mem::take(&mut said.probe) {
            said.last_ping = (said.last_ping + 2) & 0x7fff_fffe;
            return Some(Frame::Ping {
                id: said.last_ping.max(2),
            });
        }
        None
    }
}

pub(super) async fn run<W: AsyncWrite + Unpin>(
    write: W,
    shared: Arc<Shared>,
    mut frames: mpsc::Receiver<Frame>,
) {
    let life = &shared.life;
    let mut sink = FramedWrite::new(write, FrameEncoder::default());
    let writing = async {
        loop {
            if let Some(frame) = shared.urgent.next() {
                let last = matches!(frame, Frame::GoAway { .. });
                sink.feed(frame).await?;
                if last {
                    sink.flush().await?;
                    return Ok(());
                }
                continue;
            }
            let frame = match frames.try_recv() {
                Ok(frame) => frame,
                Err(_) => {
                    sink.flush().await?;
                    tokio::select! {
                        biased;
                        frame = frames.recv() => match frame {
                            Some(frame) => frame,
                            None => return Ok(()),
                        },
                        () = shared.urgent.news.notified() => continue,
                        () = life.closing.cancelled() => return Ok(()),
                    }
                }
            };
            life.touch();
            forget_finished(&shared, &frame);
            sink.feed(frame).await?;
        }
    };
    let give_up = async {
        tokio::select! {
            () = life.gone.cancelled() => {}
            () = async {
                life.closing.cancelled().await;
                tokio::time::sleep(CLOSE_TIMEOUT).await;
            } => {}
        }
    };
    let result: Result<(), SpdyError> = tokio::select! {
        result = writing => result,
        () = give_up => Ok(()),
    };
    if let Err(error) = result {
        tracing::debug!(%error, "streaming connection broke");
    }
    life.closed.cancel();
    frames.close();
    // The client may be gone already.
    let _ = tokio::time::timeout(LINGER, sink.into_inner().shutdown()).await;
}

/// A stream both sides have ended is forgotten.
fn forget_finished(shared: &Shared, frame: &Frame) {
    let (stream_id, reset) = match frame {
        Frame::Data {
            stream_id,
            fin: true,
            ..
        } => (*stream_id, false),
        Frame::RstStream { stream_id, .. } => (*stream_id, true),
        _ => return,
    };
    let state = shared.streams().get(&stream_id).cloned();
    if state.is_some_and(|state| reset || state.inlet.is_ended()) {
        shared.forget(stream_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_urgent_is_bounded_and_in_order() {
        let urgent = Urgent::default();
        for id in 0..MAX_PONGS as u32 {
            assert!(urgent.pong(2 * id + 1));
        }
        assert!(!urgent.pong(999));
        for _ in 0..3 {
            urgent.update((5, 0x7000_0000));
            urgent.update((0, 7));
            urgent.probe();
        }
        let said: Vec<Frame> = std::iter::from_fn(|| urgent.next()).collect();
        assert_eq!(said.len(), MAX_PONGS + 3);
        assert_eq!(said[0], Frame::Ping { id: 1 });
        let (stream_id, delta) = (0, 21);
        assert_eq!(said[MAX_PONGS], Frame::WindowUpdate { stream_id, delta });
        assert_eq!(said[MAX_PONGS + 2], Frame::Ping { id: 2 });
        urgent.probe();
        assert_eq!(urgent.next(), Some(Frame::Ping { id: 4 }));
        urgent.break_off();
        assert!(matches!(
            urgent.next(),
            Some(Frame::GoAway { status: 1, .. })
        ));
    }
}
