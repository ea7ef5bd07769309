//! Drivers that come and go, and the slices of those that stay away.
//!
//! Upstream: plugin/dra_plugin_manager.go.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use component_base::tasks::spawn_helper;
use futures::StreamExt as _;
use tokio::task::AbortHandle;
use tonic::Code;

use crate::manager::Manager;
use crate::plugin::{Client, Plugin};
use crate::plugins::{MOST_PLUGINS, RegisterError, Registered};
use crate::service::{HealthService, Service, choose};

/// How long a driver may be away before nobody is given its devices any more. Upstream: `defaultWipingDelay`.
const WIPING_DELAY: Duration = Duration::from_secs(30);
/// Upstream: the backoff of `wipeResourceSlices`.
const FIRST_WIPE_RETRY: Duration = Duration::from_secs(1);
const LAST_WIPE_RETRY: Duration = Duration::from_secs(300);
/// Upstream: the period of the health stream's `wait.UntilWithContext`.
const HEALTH_RETRY: Duration = Duration::from_secs(5);
/// Between reports of one driver that are looked at; what comes meanwhile waits in its connection.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

fn service_of(
    driver: &str,
    endpoint: &Path,
    services: &[String],
) -> Result<Service, RegisterError> {
    choose(driver, services).map_err(|why| RegisterError::Versions {
        driver: driver.to_owned(),
        endpoint: endpoint.to_owned(),
        why,
    })
}

impl Manager {
    /// May a driver that was found by its socket register? Upstream: `ValidatePlugin`.
    ///
    /// # Errors
    /// Why not.
    pub fn validate(
        &self,
        driver: &str,
        endpoint: &Path,
        services: &[String],
    ) -> Result<(), RegisterError> {
        service_of(driver, endpoint, services).map(drop)
    }

    /// The driver listens on the socket, or will.
    ///
    /// # Errors
    /// It cannot be called, or is here already.
    pub fn register(
        self: &Arc<Self>,
        driver: &str,
        endpoint: &Path,
        services: &[String],
    ) -> Result<(), RegisterError> {
        let service = service_of(driver, endpoint, services)?;
        let chosen = (service, HealthService::choose(services));
        let client = Client::open(driver, endpoint, chosen, &self.clock, &self.observer);
        self.plugin_came(driver, endpoint, Arc::new(client))
    }

    /// As [`Manager::register`], for a driver that is reached otherwise. `endpoint`: what it is told from others by.
    ///
    /// # Errors
    /// It is here already.
    pub fn plugin_came(
        self: &Arc<Self>,
        driver: &str,
        endpoint: &Path,
        plugin: Arc<dyn Plugin>,
    ) -> Result<(), RegisterError> {
        {
            let mut plugins = self.plugins();
            if plugins.by_driver.values().map(Vec::len).sum::<usize>() >= MOST_PLUGINS {
                return Err(RegisterError::TooMany);
            }
            let all = plugins.by_driver.entry(driver.to_owned()).or_default();
            if all.iter().any(|one| one.endpoint == endpoint) {
                return Err(RegisterError::AlreadyRegistered {
                    driver: driver.to_owned(),
                    endpoint: endpoint.to_owned(),
                });
            }
            all.push(Registered {
                endpoint: endpoint.to_owned(),
                plugin: plugin.clone(),
                followers: Vec::new(),
            });
        }
        tracing::info!(driver, endpoint = %endpoint.display(), "Registered DRA plugin");
        let mut followers = vec![self.follow_connection(driver, &plugin)];
        if self.observer.tells_health() && plugin.tells_health() {
            followers.push(self.follow_health(driver, endpoint, &plugin));
        }
        let mut plugins = self.plugins();
        let mut all = plugins.by_driver.get_mut(driver).into_iter().flatten();
        match all.find(|one| Arc::ptr_eq(&one.plugin, &plugin)) {
            Some(one) => one.followers = followers,
            // It went meanwhile.
            None => followers.iter().for_each(AbortHandle::abort),
        }
        drop(plugins);
        self.sync(driver);
        Ok(())
    }

    /// The driver's socket is gone. Idempotent.
    pub async fn deregister(self: &Arc<Self>, driver: &str, endpoint: &Path) {
        let told = {
            let mut plugins = self.plugins();
            let Some(all) = plugins.by_driver.get_mut(driver) else {
                return;
            };
            let Some(at) = all.iter().position(|one| one.endpoint == endpoint) else {
                return;
            };
            let gone = all.remove(at);
            if all.is_empty() {
                plugins.by_driver.remove(driver);
            }
            gone.followers.iter().for_each(AbortHandle::abort);
            gone.plugin.tells_health() && !plugins.others_tell(driver, endpoint)
        };
        tracing::info!(driver, endpoint = %endpoint.display(), "Unregistered DRA plugin");
        if told {
            self.clear_health(driver).await;
        }
        self.sync(driver);
    }

    /// A driver that nobody can call has its slices taken away after a while, one that can be called keeps them. Upstream: `sync`.
    fn sync(self: &Arc<Self>, driver: &str) {
        let mut plugins = self.plugins();
        if plugins.is_usable(driver) {
            if let Some(wipe) = plugins.wipes.remove(driver) {
                wipe.abort();
            }
            return;
        }
        if self.slices.is_none() || plugins.wipes.contains_key(driver) {
            return;
        }
        let (this, name) = (self.clone(), driver.to_owned());
        let wipe = spawn_helper("ResourceSlices of a driver that went", async move {
            this.clock.sleep(WIPING_DELAY).await;
            this.wipe(Some(&name)).await;
            this.plugins().wipes.remove(&name);
        });
        plugins.wipes.insert(driver.to_owned(), wipe.abort_handle());
    }

    /// No driver is here yet, and some may not come back: until they do, nobody is to be given their devices.
    pub fn wipe_at_start(self: &Arc<Self>) {
        let this = self.clone();
        spawn_helper("ResourceSlices of the last start", async move {
            this.wipe(None).await;
        });
    }

    /// Until it is done.
    async fn wipe(&self, driver: Option<&str>) {
        let Some(slices) = &self.slices else { return };
        let mut retry = FIRST_WIPE_RETRY;
        while let Err(error) = slices.wipe(driver).await {
            tracing::info!(driver, %error, "Deleting ResourceSlice failed, retrying");
            self.clock.sleep(retry).await;
            retry = (retry * 2).min(LAST_WIPE_RETRY);
        }
        tracing::info!(driver, "Deleted ResourceSlices");
    }

    fn follow_connection(self: &Arc<Self>, driver: &str, plugin: &Arc<dyn Plugin>) -> AbortHandle {
        let (this, driver) = (self.clone(), driver.to_owned());
        let mut connections = plugin.connections();
        let task = spawn_helper("connection of a driver", async move {
            while connections.changed().await.is_ok() {
                this.sync(&driver);
            }
        });
        task.abort_handle()
    }

    fn follow_health(
        self: &Arc<Self>,
        driver: &str,
        endpoint: &Path,
        plugin: &Arc<dyn Plugin>,
    ) -> AbortHandle {
        let (this, plugin) = (self.clone(), plugin.clone());
        let (driver, endpoint) = (driver.to_owned(), endpoint.to_owned());
        let task = spawn_helper("health of a driver's devices", async move {
            while this.watch_health(&driver, &endpoint, plugin.as_ref()).await {
                this.clock.sleep(HEALTH_RETRY).await;
            }
        });
        task.abort_handle()
    }

    /// Until the stream ends. Whether another try makes sense.
    async fn watch_health(&self, driver: &str, endpoint: &Path, plugin: &dyn Plugin) -> bool {
        let ended = match plugin.watch_health().await {
            Err(error) => Some(error),
            Ok(mut reports) => {
                let ended = loop {
                    match reports.next().await {
                        None => break None,
                        Some(Err(error)) => break Some(error),
                        Some(Ok(devices)) => self.health_told(driver, devices).await,
                    }
                    self.clock.sleep(REPORT_INTERVAL).await;
                };
                if !self.plugins().others_tell(driver, endpoint) {
                    self.clear_health(driver).await;
                }
                ended
            }
        };
        tracing::debug!(
            driver,
            error = ended.as_ref().map(tracing::field::display),
            "WatchResources health stream has ended"
        );
        // It offers the service and has nothing to say: a driver that learns it registers anew.
        ended.is_none_or(|error| error.code != Code::Unimplemented)
    }
}
