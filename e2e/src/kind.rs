//! `cargo e2e kind up|down|test`: a cluster made by an unmodified kind, with podman and runc, without a network. The node image is built
//! here from the base files of kind's own module, kubeadm and our programs; the control plane runs our images.
//!
//! ```text
//! this machine ── podman ──> gantry-control-plane   gantry-worker   gantry-worker2        containers on the network gantry-kind
//!                            systemd: kubelet, gantry-cri (socket)                        as a machine each
//!                            pods: etcd, kube-apiserver (upstream's), kube-scheduler, kube-controller-manager, kube-proxy, CoreDNS
//! ```
//!
//! **Invariant:** kind, kubeadm, the units and the entrypoint of a node are upstream's, byte for byte; what is ours is named in `node_image.rs`.
//! **Invariant:** podman's storage, networks and configuration are of this command alone, below `target/e2e/kind`; `down` leaves no container,
//! volume or network.

mod checks;
pub mod kubeadm;
mod node_image;
mod podman;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};

use crate::cluster::Component;
use crate::cluster::cgroup;
use crate::debian;
use crate::images;
use crate::programs::{self, KUBERNETES_VERSION, Outputs, Profile};
use crate::step::{Steps, output};

/// The images of images.toml that kubeadm's manifests name and no other cluster has.
pub const SET: &str = "kind";
/// The cluster, and the beginning of its nodes' names.
const CLUSTER: &str = "gantry";
/// Seconds that kind waits for the control plane to be Ready.
const WAIT: &str = "180s";

#[derive(Args)]
pub struct KindOptions {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Builds the node image and brings a cluster up: one control plane, two workers.
    Up(Up),
    /// Ends the cluster and removes its containers, volumes and network.
    Down,
    /// Brings a cluster up, checks what people do with kind, and takes it away again.
    Test(Test),
    /// Runs kubectl as the cluster's admin.
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Runs kind itself with this command's podman, e.g. `cargo e2e kind run load image-archive FILE --name gantry`.
    Run {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

#[derive(Args)]
struct Up {
    /// Workers beside the control plane.
    #[arg(long, default_value_t = 2)]
    workers: u8,
    /// Upstream's program in the place of ours: kube-proxy, kube-scheduler, kube-controller-manager.
    #[arg(long, value_enum, value_delimiter = ',')]
    with_upstream: Vec<Component>,
    /// How our programs are built.
    #[arg(long, value_enum, default_value = "release")]
    profile: Profile,
}

#[derive(Args)]
struct Test {
    #[command(flatten)]
    up: Up,
    /// Leave the cluster up at the end.
    #[arg(long)]
    keep: bool,
    /// Check the cluster that is up.
    #[arg(long)]
    running: bool,
    /// Run the fast specs of upstream's conformance suite (`smoke.txt`), too.
    #[arg(long)]
    smoke: bool,
}

/// # Errors
/// The command failed; the text is for people.
pub fn run(options: &KindOptions) -> Result<()> {
    debian::require_root("run a machine as a container")?;
    match &options.verb {
        Verb::Up(up) => {
            let kind = Kind::open(up.profile)?;
            let taken = kind.up(up)?;
            println!("Ready after {taken:.1} s. Try:\n{}", kind.hints());
        }
        Verb::Down => Kind::open(Profile::default())?.down()?,
        Verb::Test(test) => return run_test(test),
        Verb::Kubectl { args } => replace(&mut Kind::open(Profile::default())?.kubectl(args))?,
        Verb::Run { args } => replace(Kind::open(Profile::default())?.kind().args(args))?,
    }
    Ok(())
}

fn run_test(test: &Test) -> Result<()> {
    let kind = Kind::open(test.up.profile)?;
    if !test.running {
        let taken = kind.up(&test.up)?;
        println!("kind create cluster: Ready after {taken:.1} s");
    }
    let checked = checks::run(&kind).and_then(|()| match test.smoke {
        true => checks::smoke(&kind),
        false => Ok(()),
    });
    if test.keep {
        println!("{}", kind.hints());
        return checked;
    }
    if let Err(error) = &checked {
        // What is known goes with the cluster.
        let logs = kind.dir().join("failed");
        let _ = kind.export_logs(&logs);
        eprintln!("{error:#}\nlogs: {}", logs.display());
    }
    kind.down()?;
    checked
}

/// Becomes the command.
fn replace(command: &mut Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let error = command.exec();
    Err(error).with_context(|| format!("start {:?}", command.get_program()))
}

/// The one kind cluster of this workspace.
pub struct Kind {
    pub(crate) outputs: Outputs,
    pub(crate) steps: Steps,
}

impl Kind {
    pub(crate) fn open(profile: Profile) -> Result<Self> {
        let outputs = Outputs::find().with_profile(profile);
        let steps = Steps::new(outputs.logs())?;
        Ok(Self { outputs, steps })
    }

    /// Everything this command keeps.
    fn dir(&self) -> PathBuf {
        self.outputs.e2e().join("kind")
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir().join("kubeconfig")
    }

    pub(crate) fn podman(&self) -> Command {
        podman::command(&self.dir(), "podman")
    }

    fn kind(&self) -> Command {
        let mut command = podman::command(&self.dir(), self.outputs.upstream("kind"));
        command
            .env("KIND_EXPERIMENTAL_PROVIDER", "podman")
            .env("KIND_EXPERIMENTAL_PODMAN_NETWORK", podman::NETWORK)
            .env("KUBECONFIG", self.kubeconfig());
        command
    }

    fn kubectl<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(self.outputs.upstream("kubectl"));
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(args);
        command
    }

    /// Kubectl's standard output.
    fn kubectl_output(&self, args: &[&str]) -> Result<String> {
        output(&mut self.kubectl(args))
    }

    /// A command on a node.
    fn on_node(&self, node: &str, words: &[&str]) -> Command {
        let mut command = self.podman();
        command.args(["exec", node]).args(words);
        command
    }

    /// Builds what is missing, creates the cluster, and says how many seconds that took from `kind create` on.
    fn up(&self, up: &Up) -> Result<f64> {
        if up.with_upstream.contains(&Component::Kubelet) {
            bail!(
                "--with-upstream kubelet: the node image holds our kubelet only; `cargo e2e up` can swap it"
            );
        }
        podman::check()?;
        podman::prepare(&self.dir())?;
        ensure!(
            !self.exists()?,
            "a cluster is up already: `cargo e2e kind down` ends it"
        );
        self.remove_leftovers()?;
        let image = self.build(&up.with_upstream)?;

        let config = self.dir().join("config.yaml");
        fs::write(&config, self.config(up, &image))?;
        self.create(&config)
    }

    /// The name of the node image, with nothing of upstream's but what kubeadm wants; built if need be, no cluster made.
    ///
    /// # Errors
    /// A program or image cannot be built.
    pub(crate) fn node_image(&self) -> Result<String> {
        podman::check()?;
        podman::prepare(&self.dir())?;
        self.build(&[])
    }

    /// Builds what is missing of programs and images, and gives the node image's name.
    fn build(&self, with_upstream: &[Component]) -> Result<String> {
        let upstream = [
            "kind", "kubeadm", "kubectl", "crictl", "etcd", "coredns", "agnhost",
        ];
        programs::build_upstream(&self.steps, &self.outputs, &upstream)?;
        images::build(&self.steps, &self.outputs)?;
        for set in [SET, crate::csi::Storage::LocalPath.set()] {
            images::build_set(&self.steps, &self.outputs, set)?;
        }
        let control_plane = ["kube-scheduler", "kube-controller-manager", "kube-proxy"];
        let made = images::ours::build(&self.steps, &self.outputs, &control_plane, with_upstream)?;
        programs::build_ours(&self.steps, &self.outputs, &["kubelet", "shim", "cri"])?;
        node_image::build(self, &made)
    }

    fn create(&self, config: &std::path::Path) -> Result<f64> {
        podman::make_network(&self.dir())?;
        let step = self.steps.start("kind create cluster", None)?;
        let started = Instant::now();
        let created = step.run(
            self.kind()
                .args(["create", "cluster", "--retain", "--name", CLUSTER])
                .args(["--wait", WAIT, "--config"])
                .arg(config),
        );
        if let Err(error) = created {
            let logs = self.dir().join("failed");
            let _ = self.export_logs(&logs);
            return Err(error.context(format!(
                "the nodes are left as they are, `cargo e2e kind down` removes them; their logs: {}",
                logs.display()
            )));
        }
        let everywhere = [
            "wait",
            "--for=condition=Ready",
            "nodes",
            "--all",
            "--timeout=120s",
        ];
        step.run(&mut self.kubectl(&everywhere))?;
        let taken = started.elapsed().as_secs_f64();
        step.done();
        Ok(taken)
    }

    fn config(&self, up: &Up, image: &str) -> String {
        let node = |role: &str| format!("- {{role: {role}, image: \"{image}\"}}\n");
        let workers = node("worker").repeat(usize::from(up.workers));
        // Upstream's iptables mode needs a program that the image does not hold; ours has the one mode.
        let mode = if up.with_upstream.contains(&Component::KubeProxy) {
            "nftables"
        } else {
            "iptables"
        };
        // Pods search the node's domains, too, and podman's (`dns.podman`) is answered by a server that, as Debian 12
        // has it, knows no TCP: a lookup over TCP would end there. Nodes find each other by their bare names.
        // A kubelet refuses cgroup v1 unless it is told otherwise, upstream's as ours.
        let v1 = !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let patches = if v1 {
            "kubeadmConfigPatches:\n- |\n  kind: KubeletConfiguration\n  failCgroupV1: false\n"
        } else {
            ""
        };
        format!(
            "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnetworking: {{kubeProxyMode: {mode}, dnsSearch: []}}\nnodes:\n{}{workers}{patches}",
            node("control-plane")
        )
    }

    fn exists(&self) -> Result<bool> {
        if !self.outputs.upstream("kind").exists() {
            return Ok(false);
        }
        let clusters = output(self.kind().args(["get", "clusters", "--quiet"]))?;
        Ok(clusters.lines().any(|name| name == CLUSTER))
    }

    /// Every node's name, the control plane first.
    fn nodes(&self) -> Result<Vec<String>> {
        let text = output(self.kind().args(["get", "nodes", "--name", CLUSTER]))?;
        let mut nodes: Vec<String> = text.lines().map(str::to_owned).collect();
        nodes.sort_by_key(|node| (!node.ends_with("control-plane"), node.clone()));
        Ok(nodes)
    }

    fn export_logs(&self, to: &std::path::Path) -> Result<()> {
        if to.exists() {
            fs::remove_dir_all(to)?;
        }
        output(
            self.kind()
                .args(["export", "logs", "--name", CLUSTER])
                .arg(to),
        )
        .map(drop)
    }

    /// Ends the cluster and everything it had.
    fn down(&self) -> Result<()> {
        podman::check()?;
        podman::prepare(&self.dir())?;
        let step = self.steps.start("kind delete cluster", None)?;
        if self.outputs.upstream("kind").exists() {
            step.run(self.kind().args(["delete", "cluster", "--name", CLUSTER]))?;
        }
        self.remove_leftovers()?;
        podman::release(&self.dir())?;
        step.done();
        Ok(())
    }

    /// What a run that was killed left: containers, volumes, the network, cgroups. All of this command's own podman.
    fn remove_leftovers(&self) -> Result<()> {
        output(
            self.podman()
                .args(["rm", "--all", "--force", "--volumes", "--time", "5"]),
        )?;
        output(self.podman().args(["volume", "prune", "--force"]))?;
        podman::remove_network(&self.dir())?;
        // Other users of podman have theirs there, too: what is busy stays.
        for top in cgroup::hierarchies()? {
            for empty in cgroup::below(&top.join(podman::CGROUP)) {
                let _ = fs::remove_dir(empty);
            }
        }
        Ok(())
    }

    fn hints(&self) -> String {
        format!(
            "  export KUBECONFIG={}\n  cargo e2e kind kubectl -- get pods -A -o wide\n  cargo e2e kind run load image-archive FILE --name {CLUSTER}\n  \
             cargo e2e kind down\n",
            self.kubeconfig().display()
        )
    }
}

/// The version as images and kubeadm have it.
pub(crate) fn version() -> String {
    format!("v{KUBERNETES_VERSION}")
}
