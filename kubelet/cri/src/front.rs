//! The program: one socket for clients, whoever has the runtime.
//!
//! ```text
//! a connection --this process has the runtime--> its own services
//!              '--no--> the kubelet's runtime.sock: bytes go to and fro, until either side ends
//!                       '--nobody there--> take the runtime and open it, as a kubelet that starts does --> its own services
//! somebody wants the runtime --> calls under way are finished, then it is let go of
//! ```
//!
//! **Invariant:** the runtime, the image store and the pod network are open in one process at a time (`runtime::linux::Ownership`).

mod activation;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use images::{ImageStore, ImageStoreConfig, ImageStoreError};
use network::{NetworkConfig, NetworkError, PodNetwork};
use runtime::linux::{Handover, LinuxRuntime, LinuxRuntimeConfig, Ownership};
use runtime::{Runtime, RuntimeError};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::from_cri::NodeFacts;
use crate::options::Options;
use crate::serve::{Served, listen};
use crate::service::{CriService, ServiceOptions};

/// Where a kubelet that has the runtime answers for it, below the state directory.
pub const RUNTIME_SOCKET: &str = "runtime.sock";

/// A kubelet between taking the runtime and answering needs a moment, with many pods some seconds.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(50);
/// After the runtime was asked for, it is not taken back before this: whoever asked comes first.
const COURTESY: Duration = Duration::from_secs(2);

/// Why the program does not run, or cannot take the runtime.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("image store: {0}")]
    Images(#[from] ImageStoreError),
    #[error("pod network: {0}")]
    Network(#[from] NetworkError),
    #[error("container runtime: {0}")]
    Runtime(#[from] RuntimeError),
}

fn at(what: impl Into<String>) -> impl FnOnce(io::Error) -> FrontError {
    let what = what.into();
    move |source| FrontError::Io { what, source }
}

struct Front {
    options: Options,
    own: Mutex<Own>,
    shutdown: CancellationToken,
}

/// The runtime, where this process has it.
#[derive(Default)]
struct Own {
    served: Option<Arc<Served>>,
    let_go: Option<Instant>,
}

/// Serves until `shutdown`; then what is under way is finished.
///
/// # Errors
/// The socket cannot be made.
pub async fn run(options: Options, shutdown: &CancellationToken) -> Result<(), FrontError> {
    let listener = match activation::listener().map_err(at("take the service manager's socket"))? {
        Some(listener) => listener,
        None => listen(&options.listen)
            .map_err(at(format!("listen on {}", options.listen.display())))?,
    };
    tracing::info!("serving the CRI");
    let front = Arc::new(Front {
        options,
        own: Mutex::default(),
        shutdown: shutdown.clone(),
    });
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((connection, _)) => {
                tokio::spawn(front.clone().serve(connection));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    front.let_go().await;
    Ok(())
}

impl Front {
    async fn serve(self: Arc<Self>, mut connection: UnixStream) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.try_serve(connection).await {
                Ok(()) => return,
                Err(back) => connection = back,
            }
            if Instant::now() >= deadline || self.shutdown.is_cancelled() {
                tracing::warn!(
                    "another process has the runtime and does not answer: a client is sent away"
                );
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Gives the connection back if nobody could take it now.
    async fn try_serve(self: &Arc<Self>, connection: UnixStream) -> Result<(), UnixStream> {
        let mut own = self.own.lock().await;
        let mut connection = match &own.served {
            None => connection,
            Some(served) => return served.take(connection).await,
        };
        let path = self.options.runtime_state_dir.join(RUNTIME_SOCKET);
        if let Ok(mut kubelet) = UnixStream::connect(path).await {
            drop(own);
            if let Err(error) = tokio::io::copy_bidirectional(&mut connection, &mut kubelet).await {
                tracing::debug!(%error, "a client's connection to the kubelet's runtime ended");
            }
            return Ok(());
        }
        if own.let_go.is_some_and(|at| at.elapsed() < COURTESY) {
            return Err(connection);
        }
        let ownership = match Ownership::try_acquire(&self.options.runtime_root_dir) {
            Ok(Some(ownership)) => ownership,
            Ok(None) => return Err(connection),
            Err(error) => {
                tracing::error!(%error, "cannot look whether the runtime is free");
                return Ok(());
            }
        };
        match self.open(ownership).await {
            Ok(served) => {
                own.served = Some(served.clone());
                served.take(connection).await
            }
            Err(error) => {
                tracing::error!(%error, "cannot open the container runtime");
                Ok(())
            }
        }
    }

    /// Opens the runtime, and lets go of it when somebody asks.
    async fn open(self: &Arc<Self>, ownership: Ownership) -> Result<Arc<Served>, FrontError> {
        let options = &self.options;
        let mut handover = Handover::listen(&options.runtime_state_dir, &ownership)
            .map_err(at("listen for a handover"))?;
        let runtime = open_runtime(options, ownership).await?;
        let images = runtime.images().clone();
        let ending = CancellationToken::new();
        let service = CriService::new(
            Arc::new(runtime),
            images,
            service_options(options),
            ending.clone(),
        );
        let served = Arc::new(Served::start(service, ending));
        let front = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = handover.wanted() => {
                    tracing::info!("another process wants the runtime: handing it over");
                    front.let_go().await;
                }
                () = front.shutdown.cancelled() => {}
            }
        });
        tracing::info!("the runtime is this process's, until a kubelet asks for it");
        Ok(served)
    }

    async fn let_go(&self) {
        let mut own = self.own.lock().await;
        let Some(served) = own.served.take() else {
            return;
        };
        served.end().await;
        own.let_go = Some(Instant::now());
    }
}

fn service_options(options: &Options) -> ServiceOptions {
    ServiceOptions {
        node: NodeFacts::detect(),
        state_dir: options.runtime_state_dir.clone(),
        root_dir: options.runtime_root_dir.clone(),
        pod_cidrs_by_cri: true,
    }
}

async fn open_runtime(options: &Options, ownership: Ownership) -> Result<LinuxRuntime, FrontError> {
    let images = ImageStore::open(ImageStoreConfig {
        root: options.runtime_root_dir.join("images"),
        registry_config_dir: options.registry_config_dir.clone(),
        ..ImageStoreConfig::default()
    })
    .await?;
    let network = PodNetwork::open(NetworkConfig {
        state_dir: options.runtime_root_dir.join("network"),
        node_name: node_name(),
        mode: options.pod_network,
        cluster_cidrs: options.pod_network_cidr.clone(),
        ..NetworkConfig::default()
    })
    .await?;
    let config = LinuxRuntimeConfig {
        root_dir: options.runtime_root_dir.clone(),
        state_dir: options.runtime_state_dir.clone(),
        shim_path: options.shim_path.clone(),
        shim_cgroup: Some(options.shim_cgroup.clone()),
        handlers: options.runtime_handlers.clone(),
        ownership: Some(Arc::new(ownership)),
        ..LinuxRuntimeConfig::default()
    };
    let runtime = LinuxRuntime::open(config, images, network).await?;
    if !options.pod_cidrs.is_empty() && runtime.network().ready().await.is_err() {
        runtime.update_pod_cidrs(options.pod_cidrs.clone()).await?;
    }
    Ok(runtime)
}

/// For logs alone.
fn node_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// Where a kubelet serves its runtime.
pub fn runtime_socket(state_dir: &std::path::Path) -> PathBuf {
    state_dir.join(RUNTIME_SOCKET)
}
