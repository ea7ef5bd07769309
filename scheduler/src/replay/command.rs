//! `kube-scheduler replay`: reads files, plays, writes files. The thin shell around the rest of [`super`].

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Parser;
use framework::{ObjectKind, Registration, RegistryError};

use super::audit;
use super::play::{Settings, play, recorded};
use super::plot::plots;
use super::report::{report, text};
use crate::config::{self, KubeSchedulerConfiguration};
use crate::trace::Trace;

/// Whose knowledge of the load is measured outside of what the scheduler watches.
const MEASURING: [&str; 3] = [
    extra_plugins::names::LOAD_VARIATION_RISK_BALANCING,
    extra_plugins::names::LOW_RISK_OVER_COMMITMENT,
    extra_plugins::names::TARGET_LOAD_PACKING,
];

#[derive(Parser)]
#[command(
    name = "kube-scheduler replay",
    bin_name = "kube-scheduler replay",
    version
)]
/// Decides what was recorded again, by other configurations, and shows what would have come of it. Calls nobody.
struct Cli {
    /// A trace, as `kube-scheduler --record-trace` writes it.
    #[arg(
        long,
        required_unless_present = "audit_log",
        conflicts_with = "audit_log"
    )]
    trace: Option<PathBuf>,
    /// An API server's audit log (`level: RequestResponse` for what the scheduler reads) instead of a trace.
    #[arg(long)]
    audit_log: Option<PathBuf>,
    /// What there was when the audit log began, as JSON: `kubectl get nodes,pods,pv,pvc,sc -A -o json`. May be given more than once.
    #[arg(long, requires = "audit_log")]
    objects: Vec<PathBuf>,
    /// Writes the audit log as a trace.
    #[arg(long, requires = "audit_log")]
    write_trace: Option<PathBuf>,
    /// A configuration to decide by. May be given more than once.
    #[arg(long)]
    config: Vec<PathBuf>,
    /// The feature gate `GenericWorkload` is on: groups of pods are scheduled together.
    #[arg(long)]
    generic_workload: bool,
    /// The feature gate `TopologyAwareWorkloadScheduling` is on: groups go to one domain of the topology that they name.
    #[arg(long, requires = "generic_workload")]
    topology_aware_workload_scheduling: bool,
    /// Settles which of equally good nodes is taken.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long to go on after the last event, in seconds of the trace.
    #[arg(long, default_value_t = 60)]
    after_seconds: u32,
    /// What to print: `text` or `json`.
    #[arg(long, short, default_value = "text", value_parser = ["text", "json"])]
    output: String,
    /// Writes plots (SVG) into this directory.
    #[arg(long)]
    plots: Option<PathBuf>,
}

/// What there is to decide by.
pub struct Known<'a> {
    /// The plugins there are with and without the gate `GenericWorkload`.
    pub registry: &'a dyn Fn(bool) -> Result<Vec<Registration>, RegistryError>,
    /// The kinds of objects that plugins know which are not this program's.
    pub kinds: &'a [ObjectKind],
}

/// Runs the command with these arguments, its own name first; its exit code.
pub fn main(args: impl IntoIterator<Item = String>, known: &Known<'_>) -> i32 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to the standard output, and is no error.
            let _ = error.print();
            return error.exit_code();
        }
    };
    match run(&cli, known) {
        Ok(text) => {
            print!("{text}");
            0
        }
        Err(error) => {
            eprintln!("Error: {error:#}");
            1
        }
    }
}

fn open(path: &Path) -> anyhow::Result<BufReader<File>> {
    let file = File::open(path).with_context(|| format!("{}", path.display()))?;
    Ok(BufReader::new(file))
}

fn run(cli: &Cli, known: &Known<'_>) -> anyhow::Result<String> {
    if cli.config.is_empty() && cli.write_trace.is_none() {
        bail!("config: Required value: give at least one configuration to decide by");
    }
    let trace = trace(cli, known.kinds)?;
    if let Some(path) = &cli.write_trace {
        let file = File::create(path).with_context(|| format!("{}", path.display()))?;
        let written = trace.write(BufWriter::new(file));
        written.with_context(|| format!("{}", path.display()))?;
    }
    if cli.config.is_empty() {
        return Ok(format!("{} events\n", trace.events.len()));
    }
    let settings = Settings {
        seed: cli.seed,
        after: Duration::from_secs(cli.after_seconds.into()),
        pod_groups: cli.generic_workload,
        topology_aware: cli.topology_aware_workload_scheduling,
    };
    // All of them are looked at before the first is played.
    let configs = cli.config.iter().map(|path| load(path));
    let configs = configs.collect::<anyhow::Result<Vec<_>>>()?;
    let mut registry = (known.registry)(cli.generic_workload)?;
    if settings.topology_aware {
        plugins::registry::enable_topology_aware(&mut registry);
    }
    let mut played = vec![recorded(&trace, settings.after)];
    for (i, (path, config)) in cli.config.iter().zip(&configs).enumerate() {
        let name = name(&cli.config, i);
        let result = play(&trace, &name, config, &registry, settings);
        played.push(result.with_context(|| format!("{}", path.display()))?);
    }
    let report = report(&trace, cli.seed, &played);
    if let Some(directory) = &cli.plots {
        std::fs::create_dir_all(directory).with_context(|| format!("{}", directory.display()))?;
        for (file, svg) in plots(&played) {
            let path = directory.join(file);
            std::fs::write(&path, svg).with_context(|| format!("{}", path.display()))?;
        }
    }
    Ok(match cli.output.as_str() {
        "json" => format!("{}\n", serde_json::to_string_pretty(&report)?),
        _ => text(&report),
    })
}

/// The file, and its number where another has the same name.
fn name(configs: &[PathBuf], number: usize) -> String {
    let file = |path: &Path| {
        let name = path.file_name().unwrap_or(path.as_os_str());
        name.to_string_lossy().into_owned()
    };
    let name = file(&configs[number]);
    let alike = configs.iter().filter(|path| file(path) == name).count();
    match alike {
        0 | 1 => name,
        _ => format!("{name} ({})", number + 1),
    }
}

/// The kinds that some plugin knows.
fn custom_kinds(brought: &[ObjectKind]) -> Vec<ObjectKind> {
    [&extra_plugins::kinds::ALL[..], brought].concat()
}

fn trace(cli: &Cli, brought: &[ObjectKind]) -> anyhow::Result<Trace> {
    let custom = custom_kinds(brought);
    if let Some(path) = &cli.trace {
        return Trace::read(open(path)?, &custom).with_context(|| format!("{}", path.display()));
    }
    let Some(path) = &cli.audit_log else {
        bail!("trace: Required value: give a trace or an audit log");
    };
    let mut before = Vec::new();
    for path in &cli.objects {
        let value = serde_json::from_reader(open(path)?);
        let value = value.with_context(|| format!("{}", path.display()))?;
        let objects = audit::objects(value, &custom);
        before.extend(objects.with_context(|| format!("{}", path.display()))?);
    }
    let converted = audit::convert(open(path)?, before, &custom);
    let converted = converted.with_context(|| format!("{}", path.display()))?;
    if converted.without_object > 0 {
        eprintln!(
            "Warning: {}: {} writes are without their objects and left out: level: RequestResponse is needed for what the scheduler reads",
            path.display(),
            converted.without_object
        );
    }
    if converted.trace.events.is_empty() {
        bail!(
            "{}: nothing in it tells of an object that the scheduler reads",
            path.display()
        );
    }
    Ok(converted.trace)
}

fn load(path: &Path) -> anyhow::Result<KubeSchedulerConfiguration> {
    // Its errors name the file.
    let mut config = config::load(path)?;
    config::set_defaults(&mut config);
    let errors = config::validate(&config);
    if !errors.is_empty() {
        bail!(
            "{}: {}",
            path.display(),
            component_base::config::aggregate(&errors)
        );
    }
    for plugin in measuring(&config) {
        eprintln!(
            "Warning: {}: {plugin} decides by measurements that no trace has: it is as if there were none",
            path.display()
        );
    }
    Ok(config)
}

/// The plugins of a configuration whose knowledge a replay lacks.
fn measuring(config: &KubeSchedulerConfiguration) -> Vec<&'static str> {
    let named = |name: &str| {
        let profiles = config.profiles.iter();
        let plugins = profiles.filter_map(|profile| profile.plugins.as_ref());
        plugins
            .flat_map(|plugins| plugins.sets())
            .flat_map(|(_, set)| &set.enabled)
            .any(|plugin| plugin.name == name)
    };
    MEASURING.into_iter().filter(|name| named(name)).collect()
}
