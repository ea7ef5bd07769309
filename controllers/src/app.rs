//! The life of the process: flags, health and metrics pages, leader election, the controllers, the end.
//!
//! Upstream: cmd/kube-controller-manager/app/controllermanager.go, v1.36. A process that loses its lease exits with code 1.

use std::sync::Arc;

use anyhow::Context as _;
use component_base::client::ClientConfig;
use component_base::events::Recorder;
use component_base::features::{Feature, FeatureGates};
use component_base::flags::Flags;
use component_base::health::{Health, Kind};
use component_base::informer::Factory;
use component_base::leader_election::{LeaderElector, Leadership};
use component_base::memory;
use component_base::metrics;
use component_base::options::{LeaderElectionOptions, ServingOptions};
use component_base::process;
use component_base::shutdown::Shutdown;
use component_base::zpages;
use tokio::task::JoinSet;

use crate::clustertrustbundle_publisher::CLUSTER_TRUST_BUNDLE;
use crate::configz;
use crate::context::{ControllerContext, Running};
use crate::device_taint_eviction::{DEVICE_TAINT_RULES, DEVICE_TAINTS};
use crate::explain;
use crate::horizontal_pod_autoscaler::{CONSISTENCY, GENERATION, SCALE_TO_ZERO};
use crate::node_lifecycle::LEASE_CIRCUIT_BREAKER;
use crate::options::{COMPONENT, Options, flag_set};
use crate::podcertificaterequest_cleaner::POD_CERTIFICATE_REQUEST;
use crate::readers;
use crate::registry::{CONTROLLERS, is_enabled};
use crate::statefulset::controller::MAX_UNAVAILABLE;
use crate::storage_version_migrator::STORAGE_VERSION_MIGRATOR;
use crate::volume_protection::UNUSED_SINCE_TIME;

/// Gates that controllers here look at.
const FEATURES: &[Feature] = &[
    Feature::ga(CLUSTER_TRUST_BUNDLE),
    Feature::locked("HPAConfigurableTolerance"),
    Feature::beta(GENERATION),
    Feature::beta(SCALE_TO_ZERO),
    Feature::beta(LEASE_CIRCUIT_BREAKER),
    Feature::locked("DRAAdminAccess"),
    Feature::ga(DEVICE_TAINT_RULES),
    Feature::ga(DEVICE_TAINTS),
    Feature::locked("DRAPrioritizedList"),
    Feature::locked("DynamicResourceAllocation"),
    Feature::beta(MAX_UNAVAILABLE),
    Feature::beta(UNUSED_SINCE_TIME),
    Feature::ga(POD_CERTIFICATE_REQUEST),
    Feature::locked("SELinuxChangePolicy"),
    Feature::locked("SeparateTaintEvictionController"),
    Feature::ga(STORAGE_VERSION_MIGRATOR),
    Feature::beta(CONSISTENCY),
];

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
    let options = Arc::new(Options::from_flags(&flags)?);
    let mut features = FeatureGates::new(FEATURES);
    features.set(&options.feature_gates)?;
    tracing::info!(version = component_base::version::GIT_VERSION, "Starting");
    let giving_back = memory::run(shutdown.token().clone());
    shutdown.spawn_guarded("memory", giving_back);

    let health = Health::new();
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
        .serve(pages(&health, &flags), shutdown.clone())
        .await?;

    let features = Arc::new(features);
    let context = |leadership: Leadership, shutdown: Shutdown| {
        let informers = Factory::keeping(client.clone(), shutdown.clone(), readers::keeps());
        let (options, features) = (options.clone(), features.clone());
        ControllerContext::new(
            options,
            features,
            informers,
            leadership,
            health.clone(),
            shutdown,
            root_ca.clone(),
        )
    };
    if !election.enabled {
        return run_controllers(context(Leadership::always(), shutdown.clone())).await;
    }
    let recorder = |client| Recorder::core_v1(client, COMPONENT, "", &shutdown);
    let elector = LeaderElector::connect(&options.client, election.config, recorder).await?;
    elector.add_health_check(&health);
    let leadership = elector.leadership();
    elector
        .run_work(&shutdown, |leading| {
            run_controllers(context(leadership, leading))
        })
        .await
}

/// `/healthz`, `/livez`, `/readyz`, `/metrics`, `/configz`, `/flagz`.
fn pages(health: &Health, flags: &Flags) -> axum::Router {
    zpages::router(
        COMPONENT,
        flags,
        configz::GROUP,
        configz::configuration(flags),
    )
    .merge(health.router())
    .merge(metrics::router())
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

/// Builds the controllers that are wanted, then runs them until shutdown.
async fn run_controllers(context: ControllerContext) -> anyhow::Result<()> {
    let missing: Vec<&str> = CONTROLLERS
        .iter()
        .filter(|d| d.constructor.is_none() && is_enabled(d, &context.options.controllers))
        .map(|d| d.name)
        .collect();
    if !missing.is_empty() {
        tracing::warn!(
            controllers = missing.join(","),
            "These controllers are not built yet and do not run"
        );
    }
    let mut running: Vec<(&'static str, Running)> = Vec::new();
    for descriptor in CONTROLLERS {
        if !is_enabled(descriptor, &context.options.controllers) {
            tracing::debug!(controller = descriptor.name, "Controller is disabled");
            continue;
        }
        let Some(constructor) = descriptor.constructor else {
            continue;
        };
        let built = tokio::select! {
            built = constructor(context.clone()) => built,
            () = context.shutdown.triggered() => return Ok(()),
        };
        running.push((
            descriptor.name,
            built.with_context(|| format!("starting controller {}", descriptor.name))?,
        ));
    }
    let mut tasks = JoinSet::new();
    for (name, controller) in running {
        tracing::debug!(controller = name, "Controller starting");
        let task = tasks.spawn(context.shutdown.essential(name, controller));
        context.health.add(name, Kind::Always, move || {
            if task.is_finished() {
                Err("the controller has ended".into())
            } else {
                Ok(())
            }
        });
        if !context.options.controller_start_interval.is_zero() {
            let pause = tokio::time::sleep(context.options.controller_start_interval);
            if context.shutdown.run_until(pause).await.is_none() {
                break;
            }
        }
    }
    context.shutdown.triggered().await;
    let all = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(context.options.controller_shutdown_timeout, all)
        .await
        .is_err()
    {
        anyhow::bail!("controller shutdown timeout reached");
    }
    Ok(())
}
