//! logind, who holds a shutdown of the machine up for those who asked.
//!
//! Owns: the seam [`Logind`], what is written to its configuration, and the errors. Upstream: `pkg/kubelet/nodeshutdown/systemd`, v1.37.

mod dbus;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;

use crate::bus::BusError;

pub use dbus::SystemLogind;

/// What was asked of logind and not had. A retry may help with all of them.
#[derive(Debug, thiserror::Error)]
pub enum LogindError {
    #[error("connect to the system bus: {0}")]
    Connect(#[source] BusError),
    #[error("failed reading {property} property from logind: {source}")]
    Property {
        property: &'static str,
        #[source]
        source: BusError,
    },
    #[error("failed creating systemd inhibitor: {0}")]
    Inhibit(#[source] BusError),
    #[error("failed to monitor shutdown: {0}")]
    Monitor(#[source] BusError),
    #[error("unable to reload logind conf: {0}")]
    Reload(#[source] BusError),
    #[error("failed creating {} directory: {source}", path.display())]
    MakeDirectory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("failed writing logind shutdown inhibit override file {}: {source}", path.display())]
    WriteConf {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The work on files was ended with the process.
    #[error("the configuration of logind was not written: the process ends")]
    Ended,
}

/// The way to logind; [`SystemLogind`] is the machine's.
#[async_trait]
pub trait Logind: Send + Sync {
    /// What happens from now on is in the session's events.
    ///
    /// # Errors
    /// There is no bus, or no logind on it and none that the bus could start.
    async fn connect(&self) -> Result<Box<dyn Session>, LogindError>;
}

/// A connection to the bus that logind is on, or was.
#[async_trait]
pub trait Session: Send + Sync {
    /// `InhibitDelayMaxUSec`: how long a lock of mode `delay` is heeded.
    ///
    /// # Errors
    /// logind does not say.
    async fn inhibit_delay_max(&self) -> Result<Duration, LogindError>;

    /// `PreparingForShutdown`: the machine is going down, and waits for locks.
    ///
    /// # Errors
    /// logind does not say.
    async fn preparing_for_shutdown(&self) -> Result<bool, LogindError>;

    /// A lock of mode `delay` on shutdown, which ends when the descriptor is closed.
    ///
    /// # Errors
    /// logind gives none; so while a shutdown is under way already.
    async fn inhibit_shutdown(&self) -> Result<OwnedFd, LogindError>;

    /// Writes `InhibitDelayMaxSec` where logind reads it when it is told to ([`Session::reload_conf`]).
    ///
    /// # Errors
    /// The directory or the file cannot be written.
    async fn override_inhibit_delay(&self, delay: Duration) -> Result<(), LogindError>;

    /// Has logind read its configuration again. It does so some time after this returned.
    ///
    /// # Errors
    /// systemd cannot be told to.
    async fn reload_conf(&self) -> Result<(), LogindError>;

    /// The next event; cancel-safe. `None`: the bus is gone, and this session with it.
    async fn next(&mut self) -> Option<Event>;
}

/// What a session hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// `true`: the machine goes down once the locks are given back. `false`: it does not after all, or was up to now.
    PrepareForShutdown(bool),
    /// logind ended.
    Gone,
    /// A logind is there (again), which knows of no lock but those it found written down.
    Back,
}

/// Upstream: `logindConfigDirectory`, `kubeletLogindConf`.
const CONF_DIRECTORY: &str = "/etc/systemd/logind.conf.d";
const CONF_FILE: &str = "99-kubelet.conf";

/// What the file holds: whole seconds, rounded as C does.
fn conf(delay: Duration) -> String {
    let seconds = delay.as_secs_f64();
    format!("# Kubelet logind override\n[Login]\nInhibitDelayMaxSec={seconds:.0}\n")
}
