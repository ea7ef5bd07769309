//! What a controller is built from: the cloud, shared informers, a client under its own account, the settings.

use std::sync::Arc;

use cloud_provider::Cloud;
use component_base::clock::Clock;
use component_base::informer::Factory;
use component_base::leader_election::Leadership;
use component_base::metrics::{RegisterError, Registry};
use component_base::shutdown::Shutdown;
use controller_runtime::accounts::{AccountError, Accounts};
use controller_runtime::{Executor, Queues};
use futures::future::BoxFuture;

use crate::options::Options;

/// A controller at work: ends at shutdown.
pub type Running = BoxFuture<'static, ()>;

/// Why a controller cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No client.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// Settings that contradict each other.
    #[error("{0}")]
    Settings(String),
    /// Another controller has metrics of these names.
    #[error("metrics: {0}")]
    Metrics(#[from] RegisterError),
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// The settings.
    pub options: Arc<Options>,
    /// The cloud.
    pub cloud: Arc<dyn Cloud>,
    /// The shared informers.
    pub informers: Factory,
    /// Whether this process leads.
    pub leadership: Leadership,
    /// What time it is.
    pub clock: Clock,
    /// Makes the controllers' queues.
    pub queues: Queues,
    /// Where the metrics of controllers are read.
    pub metrics: Registry,
    /// Ends the controllers.
    pub shutdown: Shutdown,
    /// Clients by account.
    pub accounts: Accounts,
}

impl Context {
    /// The executor of a controller: writes as `account`, records events as `component`.
    ///
    /// # Errors
    /// When no client can be made, or no token be had.
    pub async fn executor(&self, account: &str, component: &str) -> Result<Executor, StartError> {
        let client = self.accounts.client(account, (1.0, 1)).await?;
        let leadership = self.leadership.clone();
        Ok(self.accounts.executor(client, component, leadership))
    }

    /// A controller that has nothing to do here, and waits for the end.
    pub fn nothing_to_do(&self, name: &'static str, why: &str) -> Running {
        tracing::warn!(controller = name, "Skipping the controller: {why}");
        let shutdown = self.shutdown.clone();
        Box::pin(async move { shutdown.triggered().await })
    }
}
