//! The life of the process: options, pages, leader election, the end. What schedules is put together by [`assemble`].
//!
//! Upstream: cmd/kube-scheduler/app/server.go, v1.36. A process that loses its lease exits with code 1.

use anyhow::Context as _;
use component_base::clock::Clock;
use component_base::events::Recorder;
use component_base::flags::Flags;
use component_base::health::{Health, Kind};
use component_base::leader_election::{LeaderElector, Leadership};
use component_base::metrics::Registry;
use component_base::process;
use component_base::shutdown::Shutdown;
use framework::Registration;

use crate::config::{self, DEFAULT_SCHEDULER_NAME};
use crate::options::{COMPONENT, Options, flag_set};

mod assemble;
mod recorders;
#[cfg(test)]
mod tests;

pub use assemble::{Component, Decisions, Seams, assemble};

/// Runs the process; returns its exit code.
pub fn main() -> i32 {
    let mut args = std::env::args();
    let binary = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    if rest.first().is_some_and(|first| first == "replay") {
        return crate::replay::command::main([vec![binary], rest[1..].to_vec()].concat(), registry);
    }
    process::run(&flag_set(), run)
}

async fn run(flags: Flags, shutdown: Shutdown) -> anyhow::Result<()> {
    let options = Options::from_flags(&flags)?;
    if let Some(path) = &options.write_config_to {
        return write_config(&options, path);
    }
    tracing::info!(
        version = component_base::version::GIT_VERSION,
        "Starting Kubernetes Scheduler"
    );
    for field in config::not_acted_on(&options.config) {
        tracing::warn!(
            field,
            "The configuration sets a field that has no effect here"
        );
    }
    let (health, metrics) = (Health::new(), Registry::new());
    component_base::metrics::init();
    options.features.record_metrics();

    let elector = elector(&options, &shutdown).await?;
    let leadership = elector
        .as_ref()
        .map_or_else(Leadership::always, LeaderElector::leadership);
    let component = assemble(Seams {
        client: options.client.build().await?,
        // Events have a rate limit of their own.
        events: options.client.build().await?,
        leadership,
        clock: Clock::real(),
        shutdown: shutdown.clone(),
        metrics: metrics.clone(),
        decisions: Decisions::OnAThread,
        options: &options,
    })?;
    health.add("sched-handler-sync", Kind::Ready, component.synced());
    if let Some(elector) = &elector {
        elector.add_health_check(&health);
    }
    let configz = component.configz(registry_of(&options));
    let pages = pages(&health, &flags, metrics, configz).merge(component.questions());
    options.serving.serve(pages, shutdown.clone()).await?;
    component.reload(&flags, &shutdown)?;
    let Some(elector) = elector else {
        return component.run(shutdown).await;
    };
    elector
        .run_work(&shutdown, |leading| component.run(leading))
        .await
}

/// The candidate for the lease, if the options want an election.
async fn elector(options: &Options, shutdown: &Shutdown) -> anyhow::Result<Option<LeaderElector>> {
    let Some(election) = options.election.clone() else {
        return Ok(None);
    };
    let recorder = |client| Recorder::events_v1(client, DEFAULT_SCHEDULER_NAME, shutdown);
    let elector = LeaderElector::connect(&options.client, election, recorder).await?;
    Ok(Some(elector))
}

/// All plugins this program knows: those of the default profile, and those that a configuration may name. `pod_groups`: the gate `GenericWorkload` is on.
pub fn registry(pod_groups: bool) -> Vec<Registration> {
    let mut all = match pod_groups {
        true => plugins::registry::in_tree_with_pod_groups(),
        false => plugins::registry::in_tree(),
    };
    all.extend(extra_plugins::registry::out_of_tree());
    all
}

/// Those that the gates of `options` leave.
fn registry_of(options: &Options) -> Vec<Registration> {
    let mut all = registry(options.pod_groups());
    if options.topology_aware() {
        plugins::registry::enable_topology_aware(&mut all);
    }
    all
}

/// `/healthz`, `/livez`, `/readyz`, `/metrics`, `/configz`, `/flagz`.
fn pages(
    health: &Health,
    flags: &Flags,
    metrics: Registry,
    config: impl Fn() -> serde_json::Value + Send + Sync + 'static,
) -> axum::Router {
    component_base::zpages::live_router(COMPONENT, flags, "kubescheduler.config.k8s.io", config)
        .merge(health.router())
        .merge(component_base::metrics::router_with(metrics))
}

fn write_config(options: &Options, path: &std::path::Path) -> anyhow::Result<()> {
    let config = config::completed(&options.config, &registry_of(options));
    let text = serde_saphyr::to_string(&config).context("encoding the configuration")?;
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    tracing::info!(component = COMPONENT, path = %path.display(), "Wrote configuration");
    Ok(())
}
