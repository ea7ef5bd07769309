//! The machine's logind.
//!
//! Owns: names of services, objects and members on the bus.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use zbus::Proxy;
use zbus::connection::Connection;
use zbus::proxy::{CacheProperties, OwnerChangedStream, SignalStream};

use super::{CONF_DIRECTORY, CONF_FILE, Event, Logind, LogindError, Session, conf};
use crate::bus::{Address, BusError};

const SERVICE: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";
const INTERFACE: &str = "org.freedesktop.login1.Manager";

const SYSTEMD_SERVICE: &str = "org.freedesktop.systemd1";
const SYSTEMD_PATH: &str = "/org/freedesktop/systemd1";
const SYSTEMD_INTERFACE: &str = "org.freedesktop.systemd1.Manager";
/// logind's, who reads its configuration again at SIGHUP.
const UNIT: &str = "systemd-logind.service";
const SIGHUP: i32 = 1;

/// logind on a bus.
#[derive(Clone, Debug)]
pub struct SystemLogind {
    address: Address,
    conf_directory: PathBuf,
}

impl Default for SystemLogind {
    /// On the system bus, with its configuration in `/etc`.
    fn default() -> Self {
        Self::on(Address::System, Path::new(CONF_DIRECTORY))
    }
}

impl SystemLogind {
    /// On this bus. `conf_directory`: where its configuration is.
    pub fn on(address: Address, conf_directory: &Path) -> Self {
        Self {
            address,
            conf_directory: conf_directory.to_owned(),
        }
    }
}

#[async_trait]
impl Logind for SystemLogind {
    async fn connect(&self) -> Result<Box<dyn Session>, LogindError> {
        let bus = self.address.connect().await.map_err(LogindError::Connect)?;
        let monitor = |error: zbus::Error| LogindError::Monitor(error.into());
        let manager: Proxy<'static> = proxy(&bus, SERVICE, PATH, INTERFACE)
            .await
            .map_err(LogindError::Monitor)?;
        // The bus starts a logind that is not there yet.
        let _: bool = property(&manager, "PreparingForShutdown").await?;
        Ok(Box::new(DBusSession {
            // DIFFERS: upstream watches the connection alone, and never hears of a logind that was started anew.
            owners: manager.receive_owner_changed().await.map_err(monitor)?,
            // DIFFERS: upstream takes the signal from whoever sends it.
            signals: manager
                .receive_signal("PrepareForShutdown")
                .await
                .map_err(monitor)?,
            bus,
            manager,
            conf_directory: self.conf_directory.clone(),
        }))
    }
}

async fn proxy(
    bus: &Connection,
    service: &'static str,
    path: &'static str,
    interface: &'static str,
) -> Result<Proxy<'static>, BusError> {
    let builder = zbus::proxy::Builder::<Proxy<'static>>::new(bus)
        .destination(service)
        .path(path)
        .interface(interface)
        // It changes without a word.
        .cache_properties(CacheProperties::No);
    Ok(builder.build().await?)
}

struct DBusSession {
    bus: Connection,
    manager: Proxy<'static>,
    signals: SignalStream<'static>,
    owners: OwnerChangedStream<'static>,
    conf_directory: PathBuf,
}

async fn property<T>(manager: &Proxy<'_>, property: &'static str) -> Result<T, LogindError>
where
    T: serde::de::DeserializeOwned + zbus::Type,
{
    let value = manager.get_property(property).await;
    value.map_err(|error| LogindError::Property {
        property,
        source: error.into(),
    })
}

#[async_trait]
impl Session for DBusSession {
    async fn inhibit_delay_max(&self) -> Result<Duration, LogindError> {
        let micros: u64 = property(&self.manager, "InhibitDelayMaxUSec").await?;
        Ok(Duration::from_micros(micros))
    }

    async fn preparing_for_shutdown(&self) -> Result<bool, LogindError> {
        property(&self.manager, "PreparingForShutdown").await
    }

    async fn inhibit_shutdown(&self) -> Result<OwnedFd, LogindError> {
        let (what, who, mode) = ("shutdown", "kubelet", "delay");
        let why = "Kubelet needs time to handle node shutdown";
        let lock: Result<zbus::OwnedFd, _> =
            self.manager.call("Inhibit", &(what, who, why, mode)).await;
        let lock = lock.map_err(|error| LogindError::Inhibit(error.into()))?;
        Ok(lock.into())
    }

    async fn override_inhibit_delay(&self, delay: Duration) -> Result<(), LogindError> {
        let directory = self.conf_directory.clone();
        let written = tokio::task::spawn_blocking(move || write_conf(directory, delay));
        written.await.unwrap_or(Err(LogindError::Ended))
    }

    async fn reload_conf(&self) -> Result<(), LogindError> {
        let systemd = proxy(&self.bus, SYSTEMD_SERVICE, SYSTEMD_PATH, SYSTEMD_INTERFACE)
            .await
            .map_err(LogindError::Reload)?;
        let told: Result<(), _> = systemd.call("KillUnit", &(UNIT, "all", SIGHUP)).await;
        told.map_err(|error| LogindError::Reload(error.into()))
    }

    async fn next(&mut self) -> Option<Event> {
        loop {
            tokio::select! {
                signal = self.signals.next() => {
                    match signal?.body().deserialize::<bool>() {
                        Ok(begins) => return Some(Event::PrepareForShutdown(begins)),
                        Err(error) => tracing::error!(
                            %error,
                            "Failed obtaining shutdown event, PrepareForShutdown event was not bool type as expected"
                        ),
                    }
                }
                owner = self.owners.next() => {
                    return Some(match owner? {
                        Some(_) => Event::Back,
                        None => Event::Gone,
                    });
                }
            }
        }
    }
}

fn write_conf(directory: PathBuf, delay: Duration) -> Result<(), LogindError> {
    std::fs::create_dir_all(&directory).map_err(|source| LogindError::MakeDirectory {
        path: directory.clone(),
        source,
    })?;
    let path = directory.join(CONF_FILE);
    std::fs::write(&path, conf(delay)).map_err(|source| LogindError::WriteConf { path, source })
}
