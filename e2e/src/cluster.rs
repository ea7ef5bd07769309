//! A cluster on this machine: etcd and kube-apiserver as they are, everything else ours or, on
//! request, upstream's. What is kept of it, and what is done with it while it runs; [`crate::up`]
//! makes and ends it.

pub mod addons;
pub mod cgroup;
pub mod control_plane;
pub mod lan;
pub mod layout;
pub mod pki;
pub mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::programs::{Kubernetes, Outputs, Profile};
use crate::step::output;
use layout::Layout;
use process::{Place, Process, Program};

/// The cluster's name under test; `e2e/tests` open it.
pub const TEST_CLUSTER: &str = "gantrytest";

/// A component that can be swapped for upstream's.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    /// With containerd, runc and the CNI plugins.
    Kubelet,
    KubeProxy,
    KubeScheduler,
    KubeControllerManager,
}

impl Component {
    pub const ALL: [Self; 4] = [
        Self::Kubelet,
        Self::KubeProxy,
        Self::KubeScheduler,
        Self::KubeControllerManager,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
            Self::KubeScheduler => "kube-scheduler",
            Self::KubeControllerManager => "kube-controller-manager",
        }
    }
}

/// A way to get volumes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Storage {
    /// The CSI driver of `csi-hostpath/` with every sidecar, snapshots, and the class `csi-hostpath-sc`.
    Hostpath,
    /// Rancher's provisioner of node-local folders, kind's default: the class `local-path`, the cluster's default class.
    LocalPath,
}

impl Storage {
    /// The images of images.toml that it needs.
    pub fn set(self) -> &'static str {
        match self {
            Self::Hostpath => "hostpath",
            Self::LocalPath => "local-path",
        }
    }
}

/// What `up` makes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    pub name: String,
    pub nodes: u8,
    pub with_upstream: BTreeSet<Component>,
    /// So many of the last nodes run upstream's kubelet and containerd, whatever the others run.
    #[serde(default)]
    pub upstream_nodes: u8,
    /// Of the scheduler and the controller-manager, each.
    pub replicas: u8,
    /// Each an etcd member and an API server; with several, a forwarder has the address that clients know.
    #[serde(default = "one")]
    pub control_planes: u8,
    pub max_pods: u32,
    #[serde(default)]
    pub profile: Profile,
    /// The version of the API server.
    #[serde(default)]
    pub kubernetes: Kubernetes,
    /// Where its volumes come from.
    #[serde(default)]
    pub with_csi: BTreeSet<Storage>,
    /// Further sets of images.toml that its registry serves.
    #[serde(default)]
    pub images: BTreeSet<String>,
}

fn one() -> u8 {
    1
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "gantry".to_owned(),
            nodes: 2,
            with_upstream: BTreeSet::new(),
            upstream_nodes: 0,
            replicas: 1,
            control_planes: 1,
            max_pods: 150,
            profile: Profile::Release,
            kubernetes: Kubernetes::default(),
            with_csi: BTreeSet::new(),
            images: BTreeSet::new(),
        }
    }
}

impl Options {
    /// The sets of images.toml that its registry serves.
    pub fn image_sets(&self) -> BTreeSet<&str> {
        let of_storage = self.with_csi.iter().map(|storage| storage.set());
        of_storage
            .chain(self.images.iter().map(String::as_str))
            .collect()
    }

    /// Whether the node of this number, from 1, runs upstream's kubelet.
    pub fn is_upstream_node(&self, index: u8) -> bool {
        self.with_upstream.contains(&Component::Kubelet)
            || u16::from(index) + u16::from(self.upstream_nodes) > u16::from(self.nodes)
    }
}

/// What is kept of a running cluster, on disk.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    pub options: Options,
    pub admin_port: u16,
    pub processes: BTreeMap<String, Process>,
}

/// A cluster that is, or was, up.
#[derive(Debug)]
pub struct Cluster {
    pub layout: Layout,
    pub outputs: Outputs,
    pub state: State,
}

impl Cluster {
    /// Finds a cluster that `up` made.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn open(name: &str) -> Result<Self> {
        let layout = Layout::new(name);
        let text = fs::read_to_string(layout.state())
            .with_context(|| format!("no cluster {name:?} here; `cargo e2e up` makes one"))?;
        let state: State = serde_json::from_str(&text)
            .with_context(|| format!("read {}", layout.state().display()))?;
        let outputs = Outputs::find().with_profile(state.options.profile);
        Ok(Self {
            layout,
            outputs,
            state,
        })
    }

    /// Whether an etcd or a kube-apiserver lives.
    pub fn is_running(&self) -> bool {
        (0..self.state.options.control_planes).any(|member| {
            ["etcd", "kube-apiserver"].iter().any(|name| {
                let name = control_plane::replica_name(name, member);
                self.state
                    .processes
                    .get(&name)
                    .is_some_and(Process::is_running)
            })
        })
    }

    /// Starts a program and remembers it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&mut self, program: Program) -> Result<()> {
        let process = Process::start(&self.layout, program)?;
        self.state
            .processes
            .insert(process.program.name.clone(), process);
        self.save()
    }

    /// The process called `name`, as `status` lists it.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn process(&self, name: &str) -> Result<&Process> {
        self.state.processes.get(name).with_context(|| {
            format!(
                "no component {name:?}; there are: {}",
                self.state
                    .processes
                    .keys()
                    .cloned()
                    .collect::<Vec<_>>()
                    .join(", ")
            )
        })
    }

    /// Starts an ended (or killed) program again, as it was.
    ///
    /// # Errors
    /// It is unknown, still runs, or cannot be started.
    pub fn restart(&mut self, name: &str) -> Result<()> {
        let process = self.process(name)?;
        if process.is_running() {
            bail!("{name} still runs (pid {})", process.pid);
        }
        let program = process.program.clone();
        self.start(program)
    }

    pub fn save(&self) -> Result<()> {
        let path = self.layout.state();
        let half = path.with_extension("half");
        fs::write(&half, serde_json::to_vec_pretty(&self.state)?)?;
        fs::rename(&half, &path).with_context(|| format!("write {}", path.display()))
    }

    /// The control plane's place.
    pub fn control_plane(&self) -> Place {
        Place {
            netns: Some(self.layout.lan_netns()),
            node: None,
        }
    }

    pub fn node_place(&self, node: &str) -> Place {
        Place {
            netns: Some(self.layout.node_netns(node)),
            node: Some(self.layout.run_dir().join("ns").join(node)),
        }
    }

    /// kubectl as the cluster's admin, in the control plane's place.
    pub fn kubectl_command(&self) -> Command {
        let mut command = self
            .control_plane()
            .command(self.outputs.upstream("kubectl"));
        command.env("KUBECONFIG", self.layout.kubeconfig("admin-inside"));
        command
    }

    /// Runs kubectl and gives what it prints.
    ///
    /// # Errors
    /// It fails: the error holds what it said.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        output(self.kubectl_command().args(args))
    }

    /// Applies a manifest from text.
    ///
    /// # Errors
    /// kubectl fails: the error holds what it said.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), manifest)?;
        let path = file.path().to_string_lossy().into_owned();
        self.kubectl(&["apply", "-f", &path]).map(drop)
    }

    pub fn nodes(&self) -> Vec<String> {
        (1..=self.state.options.nodes)
            .map(layout::node_name)
            .collect()
    }

    /// A table of the programs and whether they run.
    pub fn status(&self) -> String {
        let mut text = format!(
            "cluster {:?}, {} nodes\n",
            self.state.options.name, self.state.options.nodes
        );
        for (name, process) in &self.state.processes {
            let state = if process.is_running() {
                format!("running, pid {}", process.pid)
            } else {
                "ended".to_owned()
            };
            text.push_str(&format!("  {name:<40} {state}\n"));
        }
        if let Ok(nodes) = self.kubectl(&["get", "nodes", "-o", "wide"]) {
            text.push_str(&nodes);
        }
        text
    }

    /// What `up` prints at its end.
    pub fn hints(&self) -> String {
        let kubeconfig = self.layout.admin_kubeconfig();
        let kubectl = self.outputs.upstream("kubectl");
        format!(
            "\n{} nodes are Ready.\n\n  export KUBECONFIG={}\n  export PATH=$PATH:{}\n\nTry:\n  kubectl get nodes -o wide\n  \
             kubectl create deployment web --image=registry.k8s.io/e2e-test-images/nginx:1.28.0-2 --replicas=6\n  \
             kubectl get pods -o wide --watch\n\n`cargo e2e down` ends it.",
            self.state.options.nodes,
            kubeconfig.display(),
            kubectl
                .parent()
                .expect("a program lies in a folder")
                .display(),
        )
    }
}
