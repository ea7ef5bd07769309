//! The life of the process: options, pages, leader election, the end. What schedules is put together by [`assemble`].
//!
//! The plugins are those of this program and those that an author brings to [`run`].
//!
//! Upstream: cmd/kube-scheduler/app/server.go, v1.36. A process that loses its lease exits with code 1.

use std::process::ExitCode;

use anyhow::Context as _;
use component_base::clock::Clock;
use component_base::events::Recorder;
use component_base::flags::Flags;
use component_base::health::{Health, Kind};
use component_base::leader_election::{LeaderElector, Leadership};
use component_base::metrics::Registry;
use component_base::process;
use component_base::shutdown::Shutdown;
use framework::{Registration, Registry as Plugins, RegistryError};

use crate::config::{self, DEFAULT_SCHEDULER_NAME};
use crate::options::{COMPONENT, Options, flag_set};
use crate::replay::command::Known;

mod assemble;
mod recorders;
pub mod testing;
#[cfg(test)]
mod tests;

pub use assemble::{Component, Decisions, Seams, assemble};

/// Runs kube-scheduler with its own plugins and `plugins`, until a signal or a failure ends it: the whole `main` of an author of plugins.
///
/// Flags, configuration, pages, metrics and subcommands are kube-scheduler's. Two plugins of one name end the process at once, with an error that names it.
pub fn run(plugins: Plugins) -> ExitCode {
    let mut args = std::env::args();
    let binary = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let code = if rest.first().is_some_and(|first| first == "replay") {
        let args = [vec![binary], rest[1..].to_vec()].concat();
        let known = Known {
            registry: &|pod_groups| registry(pod_groups, &plugins),
            kinds: plugins.kinds(),
        };
        crate::replay::command::main(args, &known)
    } else {
        process::run(&flag_set(), |flags, shutdown| {
            serve(flags, shutdown, plugins)
        })
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

async fn serve(flags: Flags, shutdown: Shutdown, plugins: Plugins) -> anyhow::Result<()> {
    let options = Options::from_flags(&flags)?;
    let all = registry_of(&options, &plugins)?;
    if let Some(path) = &options.write_config_to {
        return write_config(&options, &all, path);
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
        plugins: &plugins,
    })?;
    health.add("sched-handler-sync", Kind::Ready, component.synced());
    if let Some(elector) = &elector {
        elector.add_health_check(&health);
    }
    let configz = component.configz(all);
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

/// All plugins there are: those of the default profile, those that a configuration may name, and those that an author brings. `pod_groups`: the gate
/// `GenericWorkload` is on.
///
/// # Errors
/// Two have one name.
pub fn registry(pod_groups: bool, brought: &Plugins) -> Result<Vec<Registration>, RegistryError> {
    let mut all = match pod_groups {
        true => plugins::registry::in_tree_with_pod_groups(),
        false => plugins::registry::in_tree(),
    };
    all.extend(extra_plugins::registry::out_of_tree());
    brought.merged(all)
}

/// Those that the gates of `options` leave.
fn registry_of(options: &Options, brought: &Plugins) -> Result<Vec<Registration>, RegistryError> {
    let mut all = registry(options.pod_groups(), brought)?;
    if options.topology_aware() {
        plugins::registry::enable_topology_aware(&mut all);
    }
    Ok(all)
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

fn write_config(
    options: &Options,
    all: &[Registration],
    path: &std::path::Path,
) -> anyhow::Result<()> {
    let config = config::completed(&options.config, all);
    let text = serde_saphyr::to_string(&config).context("encoding the configuration")?;
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    tracing::info!(component = COMPONENT, path = %path.display(), "Wrote configuration");
    Ok(())
}
