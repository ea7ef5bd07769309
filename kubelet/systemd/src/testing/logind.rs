//! A logind in this process.

use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::bus::BusError;
use crate::logind::{Event, Logind, LogindError, Session};

/// What logind's own default is.
const DELAY: Duration = Duration::from_secs(5);

/// Cheap to clone; all clones are the same.
#[derive(Clone, Debug)]
pub struct FakeLogind {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    delay: Duration,
    conf: Option<Duration>,
    heeds_conf: bool,
    is_there: bool,
    preparing: bool,
    sessions: Vec<mpsc::UnboundedSender<Event>>,
    /// The other ends of the locks.
    locks: Vec<UnixStream>,
    connections: usize,
}

impl Default for FakeLogind {
    fn default() -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                delay: DELAY,
                conf: None,
                heeds_conf: true,
                is_there: true,
                preparing: false,
                sessions: vec![],
                locks: vec![],
                connections: 0,
            })),
        }
    }
}

fn refusal(text: &str) -> BusError {
    zbus::Error::Failure(text.to_owned()).into()
}

impl FakeLogind {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long it heeds locks at most.
    pub fn delay(&self) -> Duration {
        self.lock().delay
    }

    /// It reads its configuration when told to (as it does at first), or has better things to do.
    pub fn set_heeds_conf(&self, heeds: bool) {
        self.lock().heeds_conf = heeds;
    }

    /// How many locks are held.
    pub fn locks(&self) -> usize {
        let mut state = self.lock();
        state.locks.retain_mut(|lock| {
            let read = lock.read(&mut [0]);
            read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        });
        state.locks.len()
    }

    /// How often somebody connected.
    pub fn connections(&self) -> usize {
        self.lock().connections
    }

    /// The machine is to go down, or is not after all.
    pub fn prepare_for_shutdown(&self, begins: bool) {
        self.lock().preparing = begins;
        self.tell(Event::PrepareForShutdown(begins));
    }

    /// As [`Self::prepare_for_shutdown`], and nobody hears of it.
    pub fn prepare_in_silence(&self, begins: bool) {
        self.lock().preparing = begins;
    }

    /// It ends: its configuration is what it reads when it begins again.
    pub fn stop(&self) {
        self.lock().is_there = false;
        self.tell(Event::Gone);
    }

    /// It begins again.
    pub fn start(&self) {
        {
            let mut state = self.lock();
            state.is_there = true;
            state.delay = state.conf.unwrap_or(DELAY);
        }
        self.tell(Event::Back);
    }

    /// The bus ends, and with it every session.
    pub fn cut(&self) {
        self.lock().sessions.clear();
    }

    fn tell(&self, event: Event) {
        self.lock()
            .sessions
            .retain(|session| session.send(event).is_ok());
    }
}

#[async_trait]
impl Logind for FakeLogind {
    async fn connect(&self) -> Result<Box<dyn Session>, LogindError> {
        let mut state = self.lock();
        state.connections += 1;
        if !state.is_there {
            let why = refusal("The name org.freedesktop.login1 was not provided");
            return Err(LogindError::Connect(why));
        }
        let (tell, events) = mpsc::unbounded_channel();
        state.sessions.push(tell);
        Ok(Box::new(FakeSession {
            logind: self.clone(),
            events,
        }))
    }
}

struct FakeSession {
    logind: FakeLogind,
    events: mpsc::UnboundedReceiver<Event>,
}

impl FakeSession {
    fn there(&self, property: &'static str) -> Result<MutexGuard<'_, State>, LogindError> {
        let state = self.logind.lock();
        match state.is_there {
            true => Ok(state),
            false => Err(LogindError::Property {
                property,
                source: refusal("no reply"),
            }),
        }
    }
}

#[async_trait]
impl Session for FakeSession {
    async fn inhibit_delay_max(&self) -> Result<Duration, LogindError> {
        Ok(self.there("InhibitDelayMaxUSec")?.delay)
    }

    async fn preparing_for_shutdown(&self) -> Result<bool, LogindError> {
        Ok(self.there("PreparingForShutdown")?.preparing)
    }

    async fn inhibit_shutdown(&self) -> Result<OwnedFd, LogindError> {
        let mut state = self.logind.lock();
        if !state.is_there || state.preparing {
            let why = "The operation inhibition has been requested for is already running";
            return Err(LogindError::Inhibit(refusal(why)));
        }
        let pair = UnixStream::pair().and_then(|(ours, theirs)| {
            ours.set_nonblocking(true)?;
            Ok((ours, theirs))
        });
        let (ours, theirs) =
            pair.map_err(|error| LogindError::Inhibit(refusal(&error.to_string())))?;
        state.locks.push(ours);
        Ok(theirs.into())
    }

    async fn override_inhibit_delay(&self, delay: Duration) -> Result<(), LogindError> {
        self.logind.lock().conf = Some(delay);
        Ok(())
    }

    async fn reload_conf(&self) -> Result<(), LogindError> {
        let mut state = self.logind.lock();
        if let (true, Some(delay)) = (state.heeds_conf, state.conf) {
            state.delay = delay;
        }
        Ok(())
    }

    async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}
