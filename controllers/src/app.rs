//! The life of the process: flags, health and metrics pages, leader election, the end. The controllers are put together by [`assemble`].
//!
//! Upstream: cmd/kube-controller-manager/app/controllermanager.go, v1.36. A process that loses its lease exits with code 1.

use std::sync::Arc;

use anyhow::Context as _;
use component_base::client::ClientConfig;
use component_base::clock::Clock;
use component_base::events::Recorder;
use component_base::flags::Flags;
use component_base::health::Health;
use component_base::leader_election::{LeaderElector, Leadership};
use component_base::memory;
use component_base::metrics::{self, Registry};
use component_base::options::{LeaderElectionOptions, ServingOptions};
use component_base::process;
use component_base::shutdown::Shutdown;
use component_base::zpages;
use controller_runtime::accounts::Accounts;

use crate::configz;
use crate::explain;
use crate::options::{COMPONENT, Options, flag_set};

mod assemble;
#[cfg(test)]
mod tests;

pub use crate::context::Seams;
pub use assemble::{Component, assemble, features};

/// More have not been seen to be busy.
const MOST_WORKERS: usize = 4;

/// Runs the process; returns its exit code.
pub fn main() -> i32 {
    let mut words = std::env::args().skip(1).peekable();
    if words.next_if(|word| word == explain::COMMAND).is_some() {
        return explain::main(words.collect());
    }
    memory::set_up();
    process::run_on(workers(), &flag_set(), run)
}

/// Threads that carry the controllers. What they do is short and waits for answers most of the time: threads that have little to do spend
/// more on waking each other than on the work, and the processors are the API server's and etcd's, too.
fn workers() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (processors / 2).clamp(1, MOST_WORKERS)
}

async fn run(flags: Flags, shutdown: Shutdown) -> anyhow::Result<()> {
    let serving = ServingOptions::from_flags(&flags, COMPONENT)?;
    let election = LeaderElectionOptions::from_flags(&flags)?;
    let options = Arc::new(Options::from_flags(&flags, crate::registry::validate)?);
    let features = Arc::new(features(&options)?);
    tracing::info!(version = component_base::version::GIT_VERSION, "Starting");
    let giving_back = memory::run(shutdown.token().clone());
    shutdown.spawn_guarded("memory", giving_back);

    let (health, own_metrics) = (Health::new(), Registry::new());
    metrics::init();
    features.record_metrics();

    // DIFFERS: upstream's caches share 20 requests a second, so that after an outage the last of some fifty kinds is listed
    // seconds after the first, and rollouts wait for it. Each asks little, and only by a watch: they are not held up here.
    let caches = ClientConfig {
        qps: 0.0,
        ..options.client.with_component("shared-informers")
    };
    let client = caches.build().await?;
    let root_ca = root_ca(&options).await?;
    serving
        .serve(
            pages(&health, own_metrics.clone(), &flags),
            shutdown.clone(),
        )
        .await?;

    let component = |leadership: Leadership, shutdown: Shutdown| {
        assemble(Seams {
            options: options.clone(),
            features: features.clone(),
            client: client.clone(),
            accounts: Accounts::new(
                options.client.clone(),
                client.clone(),
                options.use_service_account_credentials,
                shutdown.clone(),
            ),
            leadership,
            clock: Clock::real(),
            metrics: own_metrics.clone(),
            health: health.clone(),
            shutdown,
            root_ca: root_ca.clone(),
        })
    };
    if !election.enabled {
        let component = component(Leadership::always(), shutdown.clone());
        return component?.run().await;
    }
    let recorder = |client| Recorder::core_v1(client, COMPONENT, "", &shutdown);
    let elector = LeaderElector::connect(&options.client, election.config, recorder).await?;
    elector.add_health_check(&health);
    let leadership = elector.leadership();
    elector
        .run_work(&shutdown, |leading| {
            let component = component(leadership, leading);
            async move { component?.run().await }
        })
        .await
}

/// `/healthz`, `/livez`, `/readyz`, `/metrics`, `/configz`, `/flagz`.
fn pages(health: &Health, own_metrics: Registry, flags: &Flags) -> axum::Router {
    zpages::router(
        COMPONENT,
        flags,
        configz::GROUP,
        configz::configuration(flags),
    )
    .merge(health.router())
    .merge(metrics::router_with(own_metrics))
}

/// The CA bundle workloads verify the API server with.
async fn root_ca(options: &Options) -> anyhow::Result<Option<Vec<u8>>> {
    if let Some(path) = &options.root_ca_file {
        let pem = std::fs::read(path)
            .with_context(|| format!("error reading root-ca-file at {}", path.display()))?;
        component_base::tls::certificates("root-ca-file", &pem)?;
        return Ok(Some(pem));
    }
    let config = options.client.load().await?;
    let from_file = config
        .root_cert_file
        .as_ref()
        .and_then(|path| std::fs::read(path).ok());
    Ok(from_file.or_else(|| config.root_cert.map(|certs| to_pem(&certs).into_bytes())))
}

fn to_pem(certificates: &[Vec<u8>]) -> String {
    use base64::Engine as _;
    let mut text = String::new();
    for der in certificates {
        text += "-----BEGIN CERTIFICATE-----\n";
        let encoded = base64::engine::general_purpose::STANDARD.encode(der);
        for line in encoded.as_bytes().chunks(64) {
            text += &String::from_utf8_lossy(line);
            text.push('\n');
        }
        text += "-----END CERTIFICATE-----\n";
    }
    text
}
