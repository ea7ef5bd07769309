//! The life of the process: flags, the cloud, health and metrics pages, leader election, the controllers, the end.
//!
//! Upstream: k8s.io/cloud-provider/app, v0.37. A process that loses its lease exits with code 1.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use component_base::client::ClientConfig;
use component_base::clock::Clock;
use component_base::events::Recorder;
use component_base::features::FeatureGates;
use component_base::flags::Flags;
use component_base::health::{Health, Kind};
use component_base::informer::Factory;
use component_base::leader_election::{LeaderElector, Leadership};
use component_base::metrics::{self, Registry};
use component_base::options::{LeaderElectionOptions, ServingOptions};
use component_base::process;
use component_base::shutdown::Shutdown;
use component_base::zpages;
use controller_runtime::Queues;
use controller_runtime::accounts::Accounts;
use serde_json::{Map, Value};
use tokio::task::JoinSet;

use crate::context::{Context, Running};
use crate::options::{COMPONENT, Options, flag_set};
use crate::registry::{CONTROLLERS, is_enabled, validate};

/// The API group at `/configz`.
const GROUP: &str = "cloudcontrollermanager.config.k8s.io";
/// How long controllers may take to end.
const END: Duration = Duration::from_secs(10);

/// Runs the process; returns its exit code.
pub fn main() -> i32 {
    process::run(&flag_set(), run)
}

async fn run(flags: Flags, shutdown: Shutdown) -> anyhow::Result<()> {
    let serving = ServingOptions::from_flags(&flags, COMPONENT)?;
    let election = LeaderElectionOptions::from_flags(&flags)?;
    let options = Arc::new(Options::from_flags(&flags, validate)?);
    let mut features = FeatureGates::new(&[]);
    features.set(&options.feature_gates)?;
    tracing::info!(version = component_base::version::GIT_VERSION, "Starting");
    let cloud = cloud_provider::open(&options.cloud_provider, &options.cloud_config)
        .await
        .context("could not initialize cloud provider: --cloud-config")?;
    tracing::info!(provider = cloud.name(), "Cloud provider is there");

    let (health, own_metrics) = (Health::new(), Registry::new());
    metrics::init();
    // Each cache asks little, and only by a watch: as in kube-controller-manager they are not held up.
    let caches = ClientConfig {
        qps: 0.0,
        ..options.client.with_component("shared-informers")
    };
    let client = caches.build().await?;
    serving
        .serve(
            pages(&health, own_metrics.clone(), &flags),
            shutdown.clone(),
        )
        .await?;

    let clock = Clock::real();
    let queues = Queues::register(&own_metrics, clock.clone())?;
    let context = |leadership: Leadership, shutdown: Shutdown| Context {
        options: options.clone(),
        cloud: cloud.clone(),
        informers: Factory::new(client.clone(), shutdown.clone()),
        leadership,
        clock: clock.clone(),
        queues: queues.clone(),
        metrics: own_metrics.clone(),
        accounts: Accounts::new(
            options.client.clone(),
            client.clone(),
            options.use_service_account_credentials,
            shutdown.clone(),
        ),
        shutdown,
    };
    if !election.enabled {
        let work = context(Leadership::always(), shutdown.clone());
        return run_controllers(work, health.clone()).await;
    }
    let recorder = |client| Recorder::core_v1(client, COMPONENT, "", &shutdown);
    let elector = LeaderElector::connect(&options.client, election.config, recorder).await?;
    elector.add_health_check(&health);
    let leadership = elector.leadership();
    elector
        .run_work(&shutdown, |leading| {
            run_controllers(context(leadership, leading), health.clone())
        })
        .await
}

/// `/healthz`, `/livez`, `/readyz`, `/metrics`, `/configz`, `/flagz`.
fn pages(health: &Health, own_metrics: Registry, flags: &Flags) -> axum::Router {
    let all = flags.all().into_iter();
    let all: Map<String, Value> = all
        .map(|(name, value)| (name.into(), value.to_json()))
        .collect();
    zpages::router(COMPONENT, flags, GROUP, all.into())
        .merge(health.router())
        .merge(metrics::router_with(own_metrics))
}

/// Builds the controllers that are wanted, then runs them until shutdown.
async fn run_controllers(context: Context, health: Health) -> anyhow::Result<()> {
    let mut running: Vec<(&'static str, Running)> = Vec::new();
    for descriptor in CONTROLLERS {
        if !is_enabled(descriptor, &context.options.controllers) {
            tracing::warn!(controller = descriptor.name, "Controller is disabled");
            continue;
        }
        let built = tokio::select! {
            built = (descriptor.constructor)(context.clone()) => built,
            () = context.shutdown.triggered() => return Ok(()),
        };
        let name = descriptor.name;
        let built = built.with_context(|| format!("starting controller {name}"))?;
        running.push((name, built));
    }
    let mut tasks = JoinSet::new();
    for (name, controller) in running {
        let task = tasks.spawn(context.shutdown.essential(name, controller));
        health.add(name, Kind::Always, move || match task.is_finished() {
            true => Err("the controller has ended".into()),
            false => Ok(()),
        });
        let pause = tokio::time::sleep(context.options.controller_start_interval);
        if context.shutdown.run_until(pause).await.is_none() {
            break;
        }
    }
    context.shutdown.triggered().await;
    let all = async { while tasks.join_next().await.is_some() {} };
    let ended = tokio::time::timeout(END, all).await;
    ended.map_err(|_| anyhow::anyhow!("controller shutdown timeout reached"))
}
