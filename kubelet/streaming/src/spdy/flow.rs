//! Flow control of SPDY/3.1: who may still send how much. Pure.
//!
//! spdystream, which nearly every client is made of, knows none: it neither keeps to a window nor opens one. So what we send is
//! held to the client's windows only once it spoke of windows (WINDOW_UPDATE or SETTINGS), and ours are opened for a client until
//! it sends more than they hold. That memory stays bounded does not depend on it ([`crate::memory`]).
//!
//! DIFFERS: upstream's servers have no flow control at all; a client that keeps to the protocol would wait there after 64 KiB.

use std::collections::HashMap;

/// A window at the beginning. SPDY/3.1, 2.6.8.
const INITIAL: i64 = 64 * 1024;
/// No window may be larger.
const MOST: i64 = 0x7fff_ffff;

/// A window grew beyond what it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overflow {
    Stream,
    Session,
}

/// One stream's windows, or the session's.
#[derive(Clone, Copy, Debug)]
struct Windows {
    /// What we may send.
    send: i64,
    /// What the client may send.
    receive: i64,
    /// What was used up and is not open again yet.
    owed: i64,
}

/// WINDOW_UPDATE for a stream; zero is the session.
pub(super) type Update = (u32, u32);

/// All windows of a connection.
pub(super) struct Flow {
    /// The client spoke of windows.
    speaks: bool,
    /// The client sent more than a window held.
    ignores: bool,
    initial: i64,
    session: Windows,
    streams: HashMap<u32, Windows>,
}

impl Flow {
    pub(super) fn new() -> Self {
        Self {
            speaks: false,
            ignores: false,
            initial: INITIAL,
            session: Windows {
                send: INITIAL,
                receive: INITIAL,
                owed: 0,
            },
            streams: HashMap::new(),
        }
    }

    pub(super) fn open(&mut self, stream: u32) {
        let windows = Windows {
            send: self.initial,
            receive: INITIAL,
            owed: 0,
        };
        self.streams.insert(stream, windows);
    }

    pub(super) fn forget(&mut self, stream: u32) {
        self.streams.remove(&stream);
    }

    /// How many of `wanted` bytes may be sent now; they count as sent.
    pub(super) fn send(&mut self, stream: u32, wanted: usize) -> usize {
        let most = wanted as i64;
        let own = self.streams.get_mut(&stream);
        let count = if self.speaks {
            let open = own.as_ref().map_or(MOST, |own| own.send);
            most.min(open).min(self.session.send).max(0)
        } else {
            most
        };
        if let Some(own) = own {
            own.send -= count;
        }
        self.session.send -= count;
        count as usize
    }

    /// The client sent so many bytes. What is to be told at once: a slow stream takes nothing from the others' window.
    pub(super) fn received(&mut self, stream: u32, count: usize) -> Option<Update> {
        let count = count as i64;
        let mut beyond = false;
        if let Some(own) = self.streams.get_mut(&stream) {
            own.receive -= count;
            beyond = own.receive < 0;
        }
        self.session.receive -= count;
        self.session.owed += count;
        self.ignores |= beyond || self.session.receive < 0;
        due(&mut self.session, self.speaks, self.ignores).map(|delta| (0, delta))
    }

    /// So many bytes of a stream were read, or thrown away.
    pub(super) fn used(&mut self, stream: u32, count: usize) -> Option<Update> {
        let own = self.streams.get_mut(&stream)?;
        own.owed += count as i64;
        due(own, self.speaks, self.ignores).map(|delta| (stream, delta))
    }

    /// The client opens a window.
    pub(super) fn update(&mut self, stream: u32, delta: u32) -> Result<(), Overflow> {
        self.speaks = true;
        let (windows, overflow) = match stream {
            0 => (&mut self.session, Overflow::Session),
            _ => match self.streams.get_mut(&stream) {
                Some(own) => (own, Overflow::Stream),
                None => return Ok(()),
            },
        };
        let open = windows.send + i64::from(delta);
        if open > MOST || delta == 0 {
            return Err(overflow);
        }
        windows.send = open;
        Ok(())
    }

    /// The client says how large every stream's window is at its beginning.
    pub(super) fn settings(&mut self, initial: Option<u32>) -> Result<(), Overflow> {
        self.speaks = true;
        let Some(initial) = initial.map(i64::from) else {
            return Ok(());
        };
        let more = initial - self.initial;
        if initial > MOST || self.streams.values().any(|own| own.send + more > MOST) {
            return Err(Overflow::Session);
        }
        self.initial = initial;
        for own in self.streams.values_mut() {
            own.send += more;
        }
        Ok(())
    }
}

/// What is owed, if it is time to tell. A client that spoke of windows is told in time; one that did not, only when it may be
/// waiting: frames that mean nothing to spdystream cost it something all the same.
fn due(windows: &mut Windows, speaks: bool, ignores: bool) -> Option<u32> {
    let time = if speaks {
        windows.owed >= INITIAL / 2
    } else {
        windows.receive <= 0 && windows.owed > 0
    };
    if ignores || !time {
        return None;
    }
    let owed = std::mem::take(&mut windows.owed);
    windows.receive += owed;
    Some(owed as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: usize = 1024;

    #[test]
    fn who_never_spoke_of_windows_is_sent_everything() {
        let mut flow = Flow::new();
        flow.open(1);
        assert_eq!(flow.send(1, 1000 * K), 1000 * K);
        assert_eq!(flow.send(1, 1000 * K), 1000 * K);
        // What was sent counts from the moment it speaks.
        flow.update(1, 1).unwrap();
        assert_eq!(flow.send(1, 1), 0);
    }

    #[test]
    fn sending_keeps_to_the_streams_window_and_the_sessions() {
        let mut flow = Flow::new();
        flow.settings(None).unwrap();
        flow.open(1);
        flow.open(3);
        assert_eq!(flow.send(1, 60 * K), 60 * K);
        assert_eq!(flow.send(1, 60 * K), 4 * K);
        assert_eq!(flow.send(1, 1), 0);
        assert_eq!(flow.send(3, 1), 0, "the session's window is used up");
        flow.update(0, 100).unwrap();
        assert_eq!(flow.send(1, 1), 0);
        assert_eq!(flow.send(3, 1000), 100);
        flow.update(0, 10).unwrap();
        flow.update(1, 4).unwrap();
        assert_eq!(flow.send(1, 1000), 4);
        flow.settings(Some(65536 + 2)).unwrap();
        assert_eq!(flow.send(1, 1000), 2);
        flow.settings(Some(0)).unwrap();
        flow.open(5);
        assert_eq!(flow.send(5, 1), 0);
        flow.forget(5);
        assert_eq!(flow.send(5, 1000), 4, "only the session is asked");
    }

    #[test]
    fn no_window_grows_beyond_31_bits() {
        let mut flow = Flow::new();
        flow.open(1);
        assert_eq!(flow.update(1, 0x7fff_ffff), Err(Overflow::Stream));
        assert_eq!(flow.update(0, 0x7fff_ffff), Err(Overflow::Session));
        assert_eq!(flow.update(1, 0), Err(Overflow::Stream));
        assert_eq!(flow.update(9, 0x7fff_ffff), Ok(()), "long gone");
        assert_eq!(flow.settings(Some(0xffff_ffff)), Err(Overflow::Session));
        flow.update(1, 0x7fff_0000 - 1).unwrap();
        assert_eq!(flow.settings(Some(65536 + 1)), Err(Overflow::Session));
    }

    #[test]
    fn a_client_that_keeps_to_windows_is_never_left_waiting() {
        for speaks in [false, true] {
            let mut flow = Flow::new();
            if speaks {
                flow.settings(None).unwrap();
            }
            for stream in [1, 3] {
                flow.open(stream);
            }
            // Stream 3 is never read; 1 is, and goes on for ever.
            let (mut session, mut one, mut sent) = (64 * K, 64 * K, 0);
            let apply = |update: Option<Update>, session: &mut usize, one: &mut usize| match update
            {
                Some((0, delta)) => *session += delta as usize,
                Some((1, delta)) => *one += delta as usize,
                Some(other) => panic!("{other:?}"),
                None => {}
            };
            let slow = session.min(40 * K);
            session -= slow;
            let update = flow.received(3, slow);
            apply(update, &mut session, &mut one);
            for _ in 0..1000 {
                let count = one.min(session).min(10 * K);
                assert!(count > 0, "it waits after {sent} bytes");
                one -= count;
                session -= count;
                sent += count;
                let update = flow.received(1, count);
                apply(update, &mut session, &mut one);
                let update = flow.used(1, count);
                apply(update, &mut session, &mut one);
            }
            assert!(!flow.ignores);
        }
    }

    #[test]
    fn a_client_that_knows_no_windows_is_told_of_none() {
        let mut flow = Flow::new();
        flow.open(1);
        let mut told = 0;
        for _ in 0..1000 {
            told += usize::from(flow.received(1, 32 * K).is_some());
        }
        assert!(flow.ignores);
        for _ in 0..1000 {
            told += usize::from(flow.used(1, 32 * K).is_some());
        }
        assert_eq!(told, 1);
    }
}
