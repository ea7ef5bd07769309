//! The drivers that are here.
//!
//! Upstream: plugin/dra_plugin_manager.go.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::AbortHandle;

use crate::plugin::Plugin;

/// Connected at a time; each has a socket, and one more for its health.
pub(crate) const MOST_PLUGINS: usize = 256;

/// Why a driver cannot register.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    #[error(
        "invalid supported gRPC versions of DRA driver plugin {driver} at endpoint {}: {why}", endpoint.display()
    )]
    Versions {
        driver: String,
        endpoint: PathBuf,
        why: String,
    },
    #[error("endpoint {} already registered for DRA driver plugin {driver}", endpoint.display())]
    AlreadyRegistered { driver: String, endpoint: PathBuf },
    #[error("{MOST_PLUGINS} plugins of DRA drivers are registered, which is the most there can be")]
    TooMany,
}

/// One of a driver's plugins: more than one while it is replaced.
pub(crate) struct Registered {
    pub(crate) endpoint: PathBuf,
    pub(crate) plugin: Arc<dyn Plugin>,
    /// Of the tasks that follow it.
    pub(crate) followers: Vec<AbortHandle>,
}

impl Registered {
    fn is_connected(&self) -> bool {
        *self.plugin.connections().borrow() > 0
    }
}

#[derive(Default)]
pub(crate) struct Plugins {
    /// By driver, the newest last.
    pub(crate) by_driver: BTreeMap<String, Vec<Registered>>,
    /// Of drivers that are away.
    pub(crate) wipes: BTreeMap<String, AbortHandle>,
}

impl Plugins {
    /// The newest that is connected, or the newest. Upstream: `get`.
    pub(crate) fn get(&self, driver: &str) -> Option<Arc<dyn Plugin>> {
        let all = self.by_driver.get(driver)?;
        let connected = all.iter().rev().find(|one| one.is_connected());
        connected.or(all.last()).map(|one| one.plugin.clone())
    }

    pub(crate) fn is_usable(&self, driver: &str) -> bool {
        let mut all = self.by_driver.get(driver).into_iter().flatten();
        all.any(Registered::is_connected)
    }

    /// Whether another plugin of the driver tells how its devices are.
    pub(crate) fn others_tell(&self, driver: &str, endpoint: &Path) -> bool {
        let mut all = self.by_driver.get(driver).into_iter().flatten();
        all.any(|one| one.endpoint != endpoint && one.plugin.tells_health() && one.is_connected())
    }
}
