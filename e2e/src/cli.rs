//! The command line: `cargo e2e COMMAND`.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::cluster::{Cluster, Component, Options};
use crate::programs::{Kubernetes, Outputs, Profile};
use crate::step::Steps;
use crate::{
    bench, compare, compatibility, conformance, critest, csi, deb, forward, fuzz, images, kind,
    layers, metrics, protobuf, snapshot, test_run, tidy, vm,
};

/// The cluster's name where `--name` is not given.
const DEFAULT_NAME: &str = "gantry";

#[derive(Parser)]
#[command(
    name = "cargo e2e",
    about = "Brings a Gantry cluster up on this machine, tests it, measures it"
)]
struct Cli {
    /// The cluster to work on; several may run side by side.
    #[arg(long, global = true, default_value = DEFAULT_NAME, value_parser = cluster_name)]
    name: String,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Brings a cluster up: etcd, kube-apiserver, our control loops, nodes with our kubelet and kube-proxy.
    Up(Up),
    /// Ends the cluster and removes everything it made.
    Down,
    /// Lists the programs and the nodes.
    Status,
    /// Prints a program's log (`status` lists the names).
    Logs {
        component: String,
        /// Follow it.
        #[arg(short, long)]
        follow: bool,
    },
    /// Runs kubectl as the cluster's admin.
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Opens a shell on a node, or runs a command there.
    Enter {
        node: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Starts a program that ended, as it was.
    Restart { component: String },
    /// Writes what the cluster's etcd holds to a file.
    Snapshot(snapshot::SnapshotOptions),
    /// Brings the cluster back to a snapshot, on a fresh etcd; containers go on.
    Restore(snapshot::RestoreOptions),
    /// Runs every test: tidy, unit tests, then the black-box tests on a fresh cluster.
    Test(test_run::TestOptions),
    /// Runs upstream's conformance suite, or a part of it.
    Conformance(conformance::ConformanceOptions),
    /// Measures ours and upstream's side by side.
    Bench(bench::BenchOptions),
    /// Runs csi-test's suite against the CSI driver of `--with-csi hostpath`.
    CsiSanity(csi::SanityOptions),
    /// Runs cri-tools' suite against our server of the Container Runtime Interface.
    Critest(critest::CritestOptions),
    /// Unpacks made-up stacks of layers with our image store and with containerd's applier, and compares.
    Layers(layers::LayersOptions),
    /// Reads and writes made-up objects of every kind with our protobuf and with upstream's, and compares.
    Protobuf(protobuf::ProtobufOptions),
    /// Compares the pages of metrics of our kubelet and of upstream's, in one cluster.
    Metrics(metrics::MetricsOptions),
    /// Runs the same pods on our kubelet and on upstream's, in one cluster, and compares what users see of them.
    Compare(compare::CompareOptions),
    /// Installs programs that people have on clusters, sees them do their job, and removes them: e2e/COMPATIBILITY.md.
    Compatibility(compatibility::CompatibilityOptions),
    /// Runs the fuzz targets of `fuzz/`, each for a while.
    Fuzz(fuzz::FuzzOptions),
    /// Builds the images of images.toml, or those of our own programs.
    Images {
        /// kube-scheduler, kube-controller-manager, kube-proxy, cloud-controller-manager and virtual-kubelet, as OCI layouts.
        #[arg(long)]
        ours: bool,
        /// How our programs are built.
        #[arg(long, value_enum, default_value = "release")]
        profile: Profile,
    },
    /// Builds the Debian package of a node, installs it in a root of its own, and removes it again.
    Deb(deb::DebOptions),
    /// Runs a real kind cluster whose nodes and control loops are ours.
    Kind(kind::KindOptions),
    /// Runs kubeadm init, join, upgrade node and reset on machines that are containers, twice in a row.
    Kubeadm(kind::kubeadm::KubeadmOptions),
    /// Boots Debian's kernel with cgroup v2 in a virtual machine: the runtime's tests and kubeadm there.
    Vm(vm::VmOptions),
    /// Holds the crates' dependencies to the plan of the house.
    Tidy,
    /// Forwards a port into a network namespace.
    #[command(hide = true)]
    Forward {
        listen: String,
        netns: String,
        #[arg(required = true)]
        targets: Vec<String>,
    },
}

#[derive(Args)]
struct Up {
    /// How many nodes.
    #[arg(long, default_value_t = 2)]
    nodes: u8,
    /// Upstream's program in the place of ours: it finds out who is to blame for a difference.
    #[arg(long, value_enum, value_delimiter = ',')]
    with_upstream: Vec<Component>,
    /// So many of the last nodes run upstream's kubelet and containerd, beside ours.
    #[arg(long, default_value_t = 0)]
    upstream_nodes: u8,
    /// Of the scheduler and the controller-manager, each; one leads.
    #[arg(long, default_value_t = 1)]
    replicas: u8,
    /// Each an etcd member, an API server, a scheduler and a controller-manager.
    #[arg(long, default_value_t = 1, conflicts_with = "replicas")]
    control_planes: u8,
    /// Pods a node takes.
    #[arg(long, default_value_t = 150)]
    max_pods: u32,
    /// How our programs are built.
    #[arg(long, value_enum, default_value = "release")]
    profile: Profile,
    /// The version of the API server; everything else is of ours.
    #[arg(long, value_enum, default_value = "1.37")]
    kubernetes: Kubernetes,
    /// Volumes: a CSI driver with its sidecars and snapshots, or folders of the nodes.
    #[arg(long, value_enum, value_delimiter = ',')]
    with_csi: Vec<csi::Storage>,
    /// Sets of images.toml that its registry serves besides those of every cluster, such as `suites`.
    #[arg(long, value_name = "SET", value_delimiter = ',')]
    with_images: Vec<String>,
}

/// Runs the command that the process was started with.
///
/// # Errors
/// The command failed; the text is for people.
pub fn run() -> Result<ExitCode> {
    let cli = Cli::parse();
    match cli.command {
        Verb::Up(up) => {
            let cluster = Cluster::up(Options {
                name: cli.name,
                nodes: up.nodes,
                with_upstream: up.with_upstream.into_iter().collect(),
                upstream_nodes: up.upstream_nodes,
                replicas: up.replicas.max(up.control_planes),
                control_planes: up.control_planes,
                max_pods: up.max_pods,
                profile: up.profile,
                kubernetes: up.kubernetes,
                with_csi: up.with_csi.into_iter().collect(),
                images: up.with_images.into_iter().collect(),
                ..Options::default()
            })?;
            println!("{}", cluster.hints());
        }
        Verb::Down => Cluster::down(&cli.name)?,
        Verb::Status => print!("{}", Cluster::open(&cli.name)?.status()),
        Verb::Logs { component, follow } => {
            return logs(&Cluster::open(&cli.name)?, &component, follow);
        }
        Verb::Kubectl { args } => {
            return replace(Cluster::open(&cli.name)?.kubectl_command().args(args));
        }
        Verb::Enter { node, command } => return enter(&Cluster::open(&cli.name)?, &node, &command),
        Verb::Restart { component } => Cluster::open(&cli.name)?.restart(&component)?,
        Verb::Snapshot(options) => snapshot::save(&cli.name, &options)?,
        Verb::Restore(options) => snapshot::restore(&cli.name, &options)?,
        Verb::Test(options) => return test_run::run(&options),
        Verb::Conformance(options) => {
            // The cluster that a user works in is not taken down for a run.
            let name = Some(cli.name.as_str()).filter(|name| *name != DEFAULT_NAME);
            return conformance::run(name, &options);
        }
        Verb::Bench(options) => bench::run(&options)?,
        Verb::CsiSanity(options) => csi::sanity(&options)?,
        Verb::Critest(options) => critest::run(&options)?,
        Verb::Layers(options) => layers::run(&options)?,
        Verb::Protobuf(options) => protobuf::run(&options)?,
        Verb::Metrics(options) => metrics::run(&options)?,
        Verb::Compare(options) => compare::run(&options)?,
        Verb::Compatibility(options) => compatibility::run(&options)?,
        Verb::Fuzz(options) => fuzz::run(&options)?,
        Verb::Images { ours, profile } => {
            let outputs = Outputs::find().with_profile(profile);
            let steps = Steps::new(outputs.logs())?;
            if ours {
                let all: Vec<&str> = images::ours::OURS.iter().map(|one| one.program).collect();
                let made = images::ours::build(&steps, &outputs, &all, &[])?;
                print!("{}", images::ours::table(&made));
                println!("OCI layouts in {}", outputs.images().join("ours").display());
            } else {
                images::build(&steps, &outputs)?;
            }
        }
        Verb::Deb(options) => deb::run(&options)?,
        Verb::Kind(options) => kind::run(&options)?,
        Verb::Kubeadm(options) => kind::kubeadm::run(&options)?,
        Verb::Vm(options) => vm::run(&options)?,
        Verb::Tidy => tidy::check(&Outputs::find())?,
        Verb::Forward {
            listen,
            netns,
            targets,
        } => forward::run(&listen, &netns, &targets)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn logs(cluster: &Cluster, component: &str, follow: bool) -> Result<ExitCode> {
    let path = cluster.layout.log(component);
    if !path.exists() {
        cluster.process(component)?;
    }
    let mut command = Command::new("tail");
    command.args(["-n", "+1"]);
    if follow {
        command.arg("-f");
    }
    replace(command.arg(path))
}

fn enter(cluster: &Cluster, node: &str, command: &[String]) -> Result<ExitCode> {
    if !cluster.nodes().iter().any(|name| name == node) {
        bail!(
            "no node {node:?}; there are: {}",
            cluster.nodes().join(", ")
        );
    }
    let (program, args) = match command.split_first() {
        Some((program, args)) => (program.as_str(), args),
        None => ("bash", &[] as &[String]),
    };
    replace(cluster.node_place(node).command(program).args(args))
}

/// Becomes the command: its terminal, signals and exit code are then its own.
fn replace(command: &mut Command) -> Result<ExitCode> {
    let err = command.exec();
    Err(err).with_context(|| format!("start {:?}", command.get_program()))
}

/// It ends up in names of namespaces, links and folders.
fn cluster_name(text: &str) -> Result<String, String> {
    let fits = !text.is_empty()
        && text.len() <= 20
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if fits {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 20 lower-case letters and digits, a letter first".to_owned())
    }
}
