//! The life of the process: flags, the pools' file, caches, pages, the loop.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use cloud_provider::ConfigError;
use cloud_provider::gantry::pools::Pools;
use component_base::client::{ClientConfig, ClientError};
use component_base::clock::Clock;
use component_base::events::Recorder;
use component_base::health::Health;
use component_base::informer::{Factory, InformerOptions};
use component_base::serving::{ServingError, listen, serve_insecure};
use component_base::shutdown::Shutdown;
use futures::stream::{Stream, StreamExt as _};
use inotify::{Inotify, WatchMask};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;

use crate::controller::{Announcer, Caches, Inputs};
use crate::lease::{LABEL, Writer};
use crate::link;
use crate::metrics::METRICS;
use crate::options::{COMPONENT, InvalidOptions, Options, flag_set};
use crate::socket::Sockets;
use crate::wanted::SERVICE_NAME;

/// What writing a Lease may take: less than the time in which others would find this node gone.
const WRITE_TIMEOUT: Duration = Duration::from_millis(1000);

/// Why the process ended.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The command line.
    #[error(transparent)]
    Options(#[from] InvalidOptions),
    /// The pools' file.
    #[error("--cloud-config: {0}")]
    Config(#[from] ConfigError),
    /// No client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// No pages.
    #[error(transparent)]
    Serving(#[from] ServingError),
    /// The kernel says no.
    #[error("{context}: {source}")]
    Io {
        /// To what.
        context: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A task died.
    #[error(transparent)]
    Task(#[from] component_base::tasks::TaskError),
    /// A cache ended before it was filled.
    #[error("the cache of {0} ended before it was filled")]
    Informer(&'static str),
}

fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> AppError {
    let context = context.into();
    move |source| AppError::Io { context, source }
}

/// The program.
pub fn main() -> ExitCode {
    let flags = flag_set().parse_or_exit();
    if let Err(error) = flags.init_logs() {
        eprintln!("Error: {error}");
        return ExitCode::FAILURE;
    }
    let run = || {
        let options = Options::from_flags(&flags)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(io("start the runtime"))?;
        let ended = runtime.block_on(async {
            let shutdown = Shutdown::on_signals().map_err(io("handle signals"))?;
            shutdown.supervise(run(options, shutdown.clone())).await
        });
        runtime.shutdown_timeout(Duration::from_secs(1));
        ended
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "{COMPONENT} ended");
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Names of a directory that were written to or moved into it: a mounted ConfigMap changes by a rename beside its files.
fn file_changes(path: &Path) -> Result<impl Stream<Item = ()> + use<>, AppError> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    let directory = parent.unwrap_or(Path::new(".")).to_owned();
    let watch = || {
        let inotify = Inotify::init()?;
        let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE;
        inotify.watches().add(&directory, mask)?;
        inotify.into_event_stream([0; 4096])
    };
    let stream = watch().map_err(io(format!("watch {}", directory.display())))?;
    Ok(stream.map(|_| ()))
}

async fn serve_pages(options: &Options, shutdown: &Shutdown) -> Result<(), AppError> {
    component_base::metrics::init();
    std::sync::LazyLock::force(&METRICS);
    if let Some(address) = options.pages_address {
        let router = component_base::metrics::router().merge(Health::new().router());
        let listener = listen(address).await?;
        let serve = serve_insecure(listener, router, shutdown.clone());
        shutdown.spawn_guarded("server of pages", serve);
    }
    Ok(())
}

async fn run(options: Options, shutdown: Shutdown) -> Result<(), AppError> {
    let node_name = options.node_name.clone();
    tracing::info!(version = component_base::version::GIT_VERSION, node = %node_name, "Starting");
    let changes = file_changes(&options.cloud_config)?;
    let pools = Pools::load(&options.cloud_config)?;
    serve_pages(&options, &shutdown).await?;

    // Caches and events, and writes of leases: neither waits for the other's connections or tokens.
    let caches = ClientConfig {
        qps: 0.0,
        ..options.client.with_component("shared-informers")
    };
    let client = caches.build().await?;
    let events = options.client.build().await?;
    let writes = ClientConfig {
        qps: 0.0,
        timeout: Some(WRITE_TIMEOUT),
        ..options.client.with_component("leases")
    };
    let leases = Api::namespaced(writes.build().await?, &options.lease_namespace);
    let recorder = Recorder::events_v1(events, COMPONENT, &shutdown);

    let factory = Factory::new(client, shutdown.clone());
    let named = InformerOptions::default().fields(format!("metadata.name={node_name}"));
    let all = InformerOptions::default;
    let caches = Caches {
        services: factory.informer::<Service>(all()),
        slices: factory.informer::<EndpointSlice>(all()),
        nodes: factory.informer::<Node>(named),
    };
    let held = factory.namespaced_informer::<Lease>(&options.lease_namespace, all().labels(LABEL));
    caches
        .slices
        .add_index(SERVICE_NAME, |slice: &EndpointSlice| {
            crate::controller::service_of(slice).into_iter().collect()
        });
    let (sockets, heard) = Sockets::new(&shutdown).map_err(io("make a socket"))?;
    let links = link::changes().map_err(io("watch links"))?;
    let inputs = Inputs {
        services: caches.services.subscribe(),
        slices: caches.slices.subscribe(),
        nodes: caches.nodes.subscribe(),
        leases: held.subscribe(),
        heard,
        links: links.boxed(),
        file: changes.boxed(),
    };
    for (what, synced) in [
        ("services", caches.services.wait_for_sync().await),
        ("endpoint slices", caches.slices.wait_for_sync().await),
        ("nodes", caches.nodes.wait_for_sync().await),
        ("leases", held.wait_for_sync().await),
    ] {
        if !synced {
            return match shutdown.is_triggered() {
                true => Ok(()),
                false => Err(AppError::Informer(what)),
            };
        }
    }
    let writer = Writer::new(leases, &node_name);
    let announcer = Announcer::new(
        options,
        pools,
        caches,
        sockets,
        writer,
        recorder,
        Clock::real(),
    );
    announcer.run(inputs, &shutdown).await;
    Ok(())
}
