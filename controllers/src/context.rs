//! What a controller is built from: shared informers, a client under its own account, an executor, the settings.
//!
//! Upstream: `ControllerContext` of cmd/kube-controller-manager/app.

use std::path::PathBuf;
use std::sync::Arc;

use component_base::clock::Clock;
use component_base::features::FeatureGates;
use component_base::health::Health;
use component_base::informer::Factory;
use component_base::leader_election::Leadership;
use component_base::metrics::{RegisterError, Registry};
use component_base::shutdown::Shutdown;
use controller_runtime::accounts::{AccountError, Accounts};
use controller_runtime::{Executor, Queues};
use futures::future::BoxFuture;
use kube::Client;

use crate::options::Options;
use crate::readers;
use crate::storage_operations::StorageOperations;

/// A controller at work: ends at shutdown.
pub type Running = BoxFuture<'static, ()>;

/// Why a controller cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No client.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// A file of a flag.
    #[error("--{flag} {path}: {message}")]
    File {
        /// The flag, without dashes.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A request that starting needs.
    #[error("{what}: {source}")]
    Api {
        /// What was tried.
        what: &'static str,
        /// The cause.
        #[source]
        source: controller_runtime::ApiError,
    },
    /// Settings that contradict each other.
    #[error("{0}")]
    Settings(String),
    /// Another controller has metrics of these names.
    #[error("metrics: {0}")]
    Metrics(#[from] RegisterError),
}

/// Everything the controllers stand on. Nothing else is taken from the machine or the process, but for files that options name.
pub struct Seams {
    /// The settings; of clients, lease and ports nothing is looked at.
    pub options: Arc<Options>,
    /// The feature gates.
    pub features: Arc<FeatureGates>,
    /// Fills the caches.
    pub client: Client,
    /// Who writes.
    pub accounts: Accounts,
    /// Every write waits for it.
    pub leadership: Leadership,
    /// What time it is.
    pub clock: Clock,
    /// Where metrics are read: of no other controller manager.
    pub metrics: Registry,
    /// Health checks.
    pub health: Health,
    /// Ends all of it.
    pub shutdown: Shutdown,
    /// See [`ControllerContext::root_ca`].
    pub root_ca: Option<Vec<u8>>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct ControllerContext {
    /// The settings.
    pub options: Arc<Options>,
    /// The feature gates.
    pub features: Arc<FeatureGates>,
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
    /// What the controllers of volumes measure.
    pub(crate) storage_operations: Arc<StorageOperations>,
    /// Health checks; a controller's own is added by the process.
    pub health: Health,
    /// Ends the controllers.
    pub shutdown: Shutdown,
    /// The PEM of the CA that signed the API server's certificate: `--root-ca-file`, else the client configuration's.
    pub root_ca: Arc<Option<Vec<u8>>>,
    accounts: Accounts,
    /// How much more often than others its clients may ask: QPS and burst.
    factors: (f32, u32),
}

/// A controller's clients, as often as `--kube-api-qps` says.
const USUAL: (f32, u32) = (1.0, 1);
/// Ending one namespace takes a deletion and a list for every resource there is, a migration a patch for every object, so their
/// clients may ask more often. Upstream: `newNamespaceController`, `newSVMController` (`QPS *= 20`, `Burst *= 100`).
const FAST: (f32, u32) = (20.0, 100);

impl ControllerContext {
    /// What controllers share, of what the process stands on.
    ///
    /// # Errors
    /// The registry has the metrics of another controller manager.
    pub fn new(seams: Seams) -> Result<Self, RegisterError> {
        let Seams {
            options,
            features,
            client,
            accounts,
            leadership,
            clock,
            metrics,
            health,
            shutdown,
            root_ca,
        } = seams;
        Ok(Self {
            informers: Factory::keeping(client, shutdown.clone(), readers::keeps()),
            options,
            features,
            leadership,
            queues: Queues::register(&metrics, clock.clone())?,
            storage_operations: Arc::new(StorageOperations::register(&metrics)?),
            metrics,
            clock,
            health,
            shutdown,
            root_ca: Arc::new(root_ca),
            accounts,
            factors: USUAL,
        })
    }

    /// The same for a controller of very many requests; to be asked for before its first client.
    pub fn fast(self) -> Self {
        Self {
            factors: FAST,
            ..self
        }
    }

    /// The client of a controller; `account` is its service account (`deployment-controller`).
    ///
    /// # Errors
    /// When no client can be made, or no token be had.
    pub async fn client(&self, account: &str) -> Result<Client, StartError> {
        Ok(self.accounts.client(account, self.factors).await?)
    }

    /// The executor of a controller: writes as `account`, records events as `component` (`deployment-controller`).
    ///
    /// # Errors
    /// As [`ControllerContext::client`].
    pub async fn executor(&self, account: &str, component: &str) -> Result<Executor, StartError> {
        let client = self.client(account).await?;
        let leadership = self.leadership.clone();
        Ok(self.accounts.executor(client, component, leadership))
    }

    /// Whether the API server has this kind in this version: an older one may not.
    ///
    /// # Errors
    /// When it does not say.
    pub async fn serves<K: kube::Resource<DynamicType = ()>>(&self) -> Result<bool, StartError> {
        let version = K::api_version(&());
        let plural = K::plural(&());
        let client = self.informers.client();
        match client.list_api_group_resources(&version).await {
            Ok(list) => Ok(list.resources.iter().any(|r| r.name == plural)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(StartError::Api {
                what: "ask what the API server has",
                source: error.into(),
            }),
        }
    }

    /// A controller that has nothing to do here, and waits for the end.
    pub fn nothing_to_do(&self, name: &'static str) -> Running {
        tracing::info!(
            controller = name,
            "Skipping the controller: nothing to do here"
        );
        let shutdown = self.shutdown.clone();
        Box::pin(async move { shutdown.triggered().await })
    }

    /// An executor with the process's own credentials, for the controller that makes tokens for accounts.
    pub fn root_executor(&self, component: &str) -> Executor {
        let client = self.informers.client().clone();
        let leadership = self.leadership.clone();
        self.accounts.executor(client, component, leadership)
    }
}
