//! The drivers that registered, by name.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::watch;

use crate::client::{Client, Observer};
use crate::version::Version;

/// A driver is wanted that is not there. It may come: a retry helps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("driver name {0} not found in the list of registered CSI drivers")]
pub struct NotRegistered(pub String);

#[derive(Clone, Debug)]
pub(crate) struct Driver {
    pub endpoint: PathBuf,
    pub version: Version,
}

/// Bounded by the sockets in `plugins_registry`.
pub struct Drivers {
    list: RwLock<HashMap<String, Driver>>,
    observer: Observer,
    /// Whoever was here when the kubelet started had its chance to register.
    settled: watch::Sender<bool>,
}

/// While one lives, drivers that were here before the kubelet are being registered.
pub(crate) struct Settling(Arc<Drivers>);

impl Drop for Settling {
    fn drop(&mut self) {
        self.0.settled.send_replace(true);
    }
}

impl Drivers {
    /// `observer` is told of every call of a driver.
    pub fn new(observer: Observer) -> Self {
        Self {
            list: RwLock::default(),
            observer,
            settled: watch::Sender::new(true),
        }
    }

    pub(crate) fn settling(self: &Arc<Self>) -> Arc<Settling> {
        self.settled.send_replace(false);
        Arc::new(Settling(self.clone()))
    }

    /// Resolves once every driver that was here before the kubelet has registered or failed to; cancel-safe. A driver that is
    /// not found then has yet to come.
    pub async fn until_settled(&self) {
        // The sender is ours.
        let _ = self.settled.subscribe().wait_for(|settled| *settled).await;
    }

    /// A client of the driver; it connects with the first call.
    ///
    /// # Errors
    /// The driver is not registered (yet).
    pub fn client(&self, name: &str) -> Result<Client, NotRegistered> {
        let driver = self
            .get(name)
            .ok_or_else(|| NotRegistered(name.to_owned()))?;
        Ok(Client::new(name, &driver.endpoint, self.observer.clone()))
    }

    /// Sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.read().keys().cloned().collect();
        names.sort();
        names
    }

    pub(crate) fn get(&self, name: &str) -> Option<Driver> {
        self.read().get(name).cloned()
    }

    pub(crate) fn set(&self, name: &str, driver: Driver) {
        self.write().insert(name.to_owned(), driver);
    }

    pub(crate) fn remove(&self, name: &str) {
        self.write().remove(name);
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<String, Driver>> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<String, Driver>> {
        self.list.write().unwrap_or_else(PoisonError::into_inner)
    }
}
