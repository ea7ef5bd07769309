//! The D-Bus half, with a small logind on a bus of its own.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use zbus::connection::Connection;

use super::{Event, Logind, LogindError, Session, SystemLogind, conf};
use crate::testing::PrivateBus;

const PATH: &str = "/org/freedesktop/login1";
const INTERFACE: &str = "org.freedesktop.login1.Manager";
const NAME: &str = "org.freedesktop.login1";
const PATIENCE: Duration = Duration::from_secs(20);

/// What it knows, whichever of its processes does.
#[derive(Clone, Default)]
struct Known {
    delay_micros: Arc<AtomicU64>,
    preparing: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<[String; 4]>>>,
    locks: Arc<Mutex<Vec<UnixStream>>>,
}

impl Known {
    fn held(&self) -> usize {
        let mut locks = self.locks.lock().unwrap();
        locks.retain_mut(|lock| {
            let read = lock.read(&mut [0]);
            read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        });
        locks.len()
    }
}

struct Manager(Known);

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Manager {
    fn inhibit(
        &self,
        what: String,
        who: String,
        why: String,
        mode: String,
    ) -> zbus::fdo::Result<zbus::OwnedFd> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        self.0.locks.lock().unwrap().push(ours);
        self.0.asked.lock().unwrap().push([what, who, why, mode]);
        Ok(std::os::fd::OwnedFd::from(theirs).into())
    }

    #[zbus(property, name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max_usec(&self) -> u64 {
        self.0.delay_micros.load(Ordering::Relaxed)
    }

    #[zbus(property)]
    fn preparing_for_shutdown(&self) -> bool {
        self.0.preparing.load(Ordering::Relaxed)
    }
}

/// It passes SIGHUP on, at which logind reads its configuration.
struct Systemd {
    known: Known,
    conf: PathBuf,
}

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Systemd {
    fn kill_unit(&self, unit: String, who: String, signal: i32) -> zbus::fdo::Result<()> {
        if (unit.as_str(), who.as_str(), signal) != ("systemd-logind.service", "all", 1) {
            let text = format!("{unit} {who} {signal}");
            return Err(zbus::fdo::Error::InvalidArgs(text));
        }
        let text = std::fs::read_to_string(self.conf.join("99-kubelet.conf")).unwrap();
        let seconds = text.trim().rsplit('=').next().unwrap();
        let micros = seconds.parse::<u64>().unwrap() * 1_000_000;
        self.known.delay_micros.store(micros, Ordering::Relaxed);
        Ok(())
    }
}

struct Machine {
    bus: PrivateBus,
    dir: tempfile::TempDir,
    known: Known,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let known = Known::default();
        known.delay_micros.store(5_000_000, Ordering::Relaxed);
        Self {
            bus: PrivateBus::start(dir.path()),
            dir,
            known,
        }
    }

    fn conf(&self) -> PathBuf {
        self.dir.path().join("etc/logind.conf.d")
    }

    async fn start_logind(&self) -> Connection {
        let connection = self.bus.address().connect().await.unwrap();
        let server = connection.object_server();
        server.at(PATH, Manager(self.known.clone())).await.unwrap();
        connection.request_name(NAME).await.unwrap();
        connection
    }

    async fn start_systemd(&self) -> Connection {
        let connection = self.bus.address().connect().await.unwrap();
        let (known, conf) = (self.known.clone(), self.conf());
        let server = connection.object_server();
        let systemd = Systemd { known, conf };
        server
            .at("/org/freedesktop/systemd1", systemd)
            .await
            .unwrap();
        connection
            .request_name("org.freedesktop.systemd1")
            .await
            .unwrap();
        connection
    }

    async fn connect(&self) -> Result<Box<dyn Session>, LogindError> {
        let logind = SystemLogind::on(self.bus.address(), &self.conf());
        logind.connect().await
    }
}

async fn signal(from: &Connection, begins: bool) {
    let member = "PrepareForShutdown";
    from.emit_signal(None::<&str>, PATH, INTERFACE, member, &(begins,))
        .await
        .unwrap();
}

async fn next(session: &mut Box<dyn Session>) -> Option<Event> {
    tokio::time::timeout(PATIENCE, session.next())
        .await
        .expect("an event in time")
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect(what);
}

#[tokio::test]
async fn the_delay_is_read_and_raised_and_the_lock_is_held_until_it_is_closed() {
    let machine = Machine::new();
    let logind = machine.start_logind().await;
    let _systemd = machine.start_systemd().await;
    let mut session = machine.connect().await.unwrap();
    assert_eq!(
        session.inhibit_delay_max().await.unwrap(),
        Duration::from_secs(5)
    );
    let wanted = Duration::from_secs(30);
    session.override_inhibit_delay(wanted).await.unwrap();
    session.reload_conf().await.unwrap();
    assert_eq!(session.inhibit_delay_max().await.unwrap(), wanted);
    let written = std::fs::read_to_string(machine.conf().join("99-kubelet.conf")).unwrap();
    assert_eq!(
        written,
        "# Kubelet logind override\n[Login]\nInhibitDelayMaxSec=30\n"
    );

    let lock = session.inhibit_shutdown().await.unwrap();
    let why = "Kubelet needs time to handle node shutdown";
    let asked = machine.known.asked.lock().unwrap().clone();
    assert_eq!(asked, [["shutdown", "kubelet", why, "delay"]]);
    assert_eq!(machine.known.held(), 1);

    assert!(!session.preparing_for_shutdown().await.unwrap());
    machine.known.preparing.store(true, Ordering::Relaxed);
    assert!(session.preparing_for_shutdown().await.unwrap());
    for begins in [true, false, true] {
        signal(&logind, begins).await;
        assert_eq!(
            next(&mut session).await,
            Some(Event::PrepareForShutdown(begins))
        );
    }
    drop(lock);
    until("the lock is given back", || machine.known.held() == 0).await;
}

#[tokio::test]
async fn a_logind_that_goes_and_comes_back_is_heard_again() {
    let machine = Machine::new();
    let first = machine.start_logind().await;
    let mut session = machine.connect().await.unwrap();
    let _held = session.inhibit_shutdown().await.unwrap();
    first.close().await.unwrap();
    assert_eq!(next(&mut session).await, Some(Event::Gone));
    assert!(matches!(
        session.inhibit_delay_max().await,
        Err(LogindError::Property {
            property: "InhibitDelayMaxUSec",
            ..
        })
    ));
    let second = machine.start_logind().await;
    assert_eq!(next(&mut session).await, Some(Event::Back));
    let _anew = session.inhibit_shutdown().await.unwrap();
    assert_eq!(machine.known.held(), 2);
    signal(&second, true).await;
    assert_eq!(
        next(&mut session).await,
        Some(Event::PrepareForShutdown(true))
    );
}

#[tokio::test]
async fn what_others_say_in_its_name_is_not_heard() {
    let machine = Machine::new();
    let logind = machine.start_logind().await;
    let mut session = machine.connect().await.unwrap();
    let stranger = machine.bus.address().connect().await.unwrap();
    signal(&stranger, true).await;
    // Whatever the stranger said is on the bus before this.
    stranger.request_name("com.example.Stranger").await.unwrap();
    signal(&logind, false).await;
    assert_eq!(
        next(&mut session).await,
        Some(Event::PrepareForShutdown(false))
    );
    // What is no boolean is passed over.
    logind
        .emit_signal(
            None::<&str>,
            PATH,
            INTERFACE,
            "PrepareForShutdown",
            &("now",),
        )
        .await
        .unwrap();
    signal(&logind, true).await;
    assert_eq!(
        next(&mut session).await,
        Some(Event::PrepareForShutdown(true))
    );
}

#[tokio::test]
async fn a_session_ends_with_its_bus() {
    let machine = Machine::new();
    let _logind = machine.start_logind().await;
    let mut session = machine.connect().await.unwrap();
    drop(machine.bus);
    // The last of logind may be heard.
    while next(&mut session).await.is_some() {}
}

#[tokio::test]
async fn who_is_missing_is_told() {
    let machine = Machine::new();
    let error = machine.connect().await.err().unwrap().to_string();
    let begin = "failed reading PreparingForShutdown property from logind: ";
    assert!(error.starts_with(begin), "{error}");
    let _logind = machine.start_logind().await;
    let session = machine.connect().await.unwrap();
    let error = session.reload_conf().await.unwrap_err().to_string();
    assert!(
        error.starts_with("unable to reload logind conf: "),
        "{error}"
    );

    std::fs::write(machine.dir.path().join("etc"), "a file in the way").unwrap();
    let error = session.override_inhibit_delay(Duration::from_secs(1)).await;
    assert!(matches!(
        error.unwrap_err(),
        LogindError::MakeDirectory { path, .. } if path == machine.conf()
    ));
    let nowhere = crate::bus::Address::Of("unix:path=/nonexistent/bus".to_owned());
    let error = SystemLogind::on(nowhere, Path::new("/nonexistent"))
        .connect()
        .await;
    assert!(matches!(error, Err(LogindError::Connect(_))));
}

#[test]
fn seconds_are_written_whole() {
    let line = |delay| conf(delay).lines().last().unwrap().to_owned();
    assert_eq!(line(Duration::from_secs(90)), "InhibitDelayMaxSec=90");
    assert_eq!(line(Duration::from_millis(1600)), "InhibitDelayMaxSec=2");
}
