//! The way to a bus.
//!
//! Owns: which bus, the deadline of every call on it, and the error they share.

use std::time::Duration;

use zbus::connection::{self, Connection};

/// Of every call, D-Bus' own default. Upstream's client has none.
pub const DEADLINE: Duration = Duration::from_secs(25);

/// Why a call failed, in the words of the bus or of who was called. A retry may help.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BusError(#[source] Box<zbus::Error>);

impl From<zbus::Error> for BusError {
    fn from(error: zbus::Error) -> Self {
        Self(Box::new(error))
    }
}

/// Which bus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Address {
    /// `$DBUS_SYSTEM_BUS_ADDRESS`, or `/var/run/dbus/system_bus_socket`.
    #[default]
    System,
    /// As `unix:path=/…`.
    Of(String),
}

impl Address {
    /// # Errors
    /// Nobody answers there within [`DEADLINE`].
    pub async fn connect(&self) -> Result<Connection, BusError> {
        let builder = match self {
            Self::System => connection::Builder::system(),
            Self::Of(address) => connection::Builder::address(address.as_str()),
        };
        let connecting = builder.method_timeout(DEADLINE).build();
        match tokio::time::timeout(DEADLINE, connecting).await {
            Ok(connection) => Ok(connection?),
            Err(_) => {
                let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
                Err(zbus::Error::from(late).into())
            }
        }
    }
}
