//! The drivers that registered, by name.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

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
}

impl Drivers {
    /// `observer` is told of every call of a driver.
    pub fn new(observer: Observer) -> Self {
        Self {
            list: RwLock::default(),
            observer,
        }
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
