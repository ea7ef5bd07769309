//! Builds the programs: Gantry's own by cargo, upstream's from the Go modules below `e2e/upstream`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::step::Steps;

/// Kubernetes' version; the Go module pins the same one.
pub const KUBERNETES_VERSION: &str = "1.37.2";

/// The API server of a cluster, and the suite that belongs to it.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    clap::ValueEnum,
    serde::Serialize,
    serde::Deserialize,
)]
pub enum Kubernetes {
    /// Of our own version.
    #[default]
    #[value(name = "1.37")]
    #[serde(rename = "1.37")]
    V1_37,
    /// Of the minor version before.
    #[value(name = "1.36")]
    #[serde(rename = "1.36")]
    V1_36,
}

impl Kubernetes {
    pub fn version(self) -> &'static str {
        match self {
            Self::V1_37 => KUBERNETES_VERSION,
            Self::V1_36 => "1.36.3",
        }
    }

    pub fn api_server(self) -> &'static str {
        match self {
            Self::V1_37 => "kube-apiserver",
            Self::V1_36 => "kube-apiserver-1.36",
        }
    }

    /// Upstream's suites.
    pub fn suites(self) -> &'static str {
        match self {
            Self::V1_37 => "e2e.test",
            Self::V1_36 => "e2e-1.36.test",
        }
    }
}

/// How our programs are built.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    clap::ValueEnum,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// As users run them; what is measured.
    #[default]
    Release,
    /// Quicker to build, with checks of overflow and debug assertions; what is tested.
    Dev,
}

impl Profile {
    /// As cargo calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dev => "dev",
        }
    }

    /// Cargo's folder of it.
    fn dir(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dev => "debug",
        }
    }
}

/// Where built things go, all below cargo's target folder.
#[derive(Clone, Debug)]
pub struct Outputs {
    pub workspace: PathBuf,
    pub target: PathBuf,
    pub profile: Profile,
}

impl Outputs {
    /// Finds the workspace that this program was built from.
    pub fn find() -> Self {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("the e2e package lies in the workspace")
            .to_path_buf();
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map(|dir| workspace.join(dir))
            .unwrap_or_else(|| workspace.join("target"));
        Self {
            workspace,
            target,
            profile: Profile::default(),
        }
    }

    pub fn with_profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    pub fn e2e(&self) -> PathBuf {
        self.target.join("e2e")
    }

    /// Upstream's programs.
    pub fn upstream_bin(&self) -> PathBuf {
        self.e2e().join("bin")
    }

    pub fn upstream(&self, program: &str) -> PathBuf {
        self.upstream_bin().join(program)
    }

    pub fn ours(&self, program: &str) -> PathBuf {
        self.target.join(self.profile.dir()).join(program)
    }

    pub fn logs(&self) -> PathBuf {
        self.e2e().join("logs")
    }

    pub fn images(&self) -> PathBuf {
        self.e2e().join("images")
    }
}

/// A program of one of the Go modules.
struct GoProgram {
    name: &'static str,
    module: &'static str,
    package: &'static str,
    kind: GoKind,
}

#[derive(Clone, Copy, PartialEq)]
enum GoKind {
    /// Carries Kubernetes' version.
    Kubernetes(Kubernetes),
    Plain,
    Containerd,
    Runc,
    /// Carries the version of Kubernetes' libraries, which charts without a cluster are rendered for; Helm 4 looks it up itself.
    Helm3,
    /// `go test -c`; carries Kubernetes' version.
    Test(Kubernetes),
    /// `go test -c`.
    PlainTest,
}

const fn go(
    name: &'static str,
    module: &'static str,
    package: &'static str,
    kind: GoKind,
) -> GoProgram {
    GoProgram {
        name,
        module,
        package,
        kind,
    }
}

const GO_PROGRAMS: &[GoProgram] = &[
    go("etcd", "", "go.etcd.io/etcd/server/v3", GoKind::Plain),
    go(
        "etcdctl",
        "etcd",
        "go.etcd.io/etcd/etcdctl/v3",
        GoKind::Plain,
    ),
    go(
        "etcdutl",
        "etcd",
        "go.etcd.io/etcd/etcdutl/v3",
        GoKind::Plain,
    ),
    go(
        "kube-apiserver",
        "",
        "k8s.io/kubernetes/cmd/kube-apiserver",
        GoKind::Kubernetes(Kubernetes::V1_37),
    ),
    go(
        "kubectl",
        "",
        "k8s.io/kubernetes/cmd/kubectl",
        GoKind::Kubernetes(Kubernetes::V1_37),
    ),
    go(
        "kube-scheduler",
        "",
        "k8s.io/kubernetes/cmd/kube-scheduler",
        GoKind::Kubernetes(Kubernetes::V1_37),
    ),
    go(
        "kube-controller-manager",
        "",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
        GoKind::Kubernetes(Kubernetes::V1_37),
    ),
    go(
        "kubelet",
        "",
        "k8s.io/kubernetes/cmd/kubelet",
        GoKind::Kubernetes(Kubernetes::V1_37),
    ),
    go(
        "kube-proxy",
        "",
        "k8s.io/kubernetes/cmd/kube-proxy",
        GoKind::Kubernetes(Kubernetes::V1_37),
    ),
    go(
        "agnhost",
        "",
        "k8s.io/kubernetes/test/images/agnhost",
        GoKind::Plain,
    ),
    go(
        "regression-issue-74839",
        "",
        "k8s.io/kubernetes/test/images/regression-issue-74839",
        GoKind::Plain,
    ),
    go(
        "resource-consumer",
        "",
        "k8s.io/kubernetes/test/images/resource-consumer",
        GoKind::Plain,
    ),
    go(
        "consume-cpu",
        "",
        "k8s.io/kubernetes/test/images/resource-consumer/consume-cpu",
        GoKind::Plain,
    ),
    go(
        "sample-device-plugin",
        "",
        "k8s.io/kubernetes/test/images/sample-device-plugin",
        GoKind::Plain,
    ),
    go(
        "dra-test-driver",
        "",
        "k8s.io/kubernetes/test/e2e/dra/test-driver",
        GoKind::Plain,
    ),
    go(
        "kube-apiserver-1.36",
        "v1.36",
        "k8s.io/kubernetes/cmd/kube-apiserver",
        GoKind::Kubernetes(Kubernetes::V1_36),
    ),
    go(
        "e2e.test",
        "",
        "k8s.io/kubernetes/test/e2e",
        GoKind::Test(Kubernetes::V1_37),
    ),
    go(
        "e2e-1.36.test",
        "v1.36",
        "k8s.io/kubernetes/test/e2e",
        GoKind::Test(Kubernetes::V1_36),
    ),
    go(
        "ginkgo",
        "",
        "github.com/onsi/ginkgo/v2/ginkgo",
        GoKind::Plain,
    ),
    go(
        "sample-apiserver",
        "",
        "k8s.io/sample-apiserver",
        GoKind::Plain,
    ),
    go(
        "schedulerbench",
        "",
        "./schedulerbench",
        GoKind::Kubernetes(Kubernetes::V1_37),
    ),
    go(
        "controllersbench",
        "",
        "./controllersbench",
        GoKind::Kubernetes(Kubernetes::V1_37),
    ),
    go("protobuf", "", "./protobuf", GoKind::Plain),
    go(
        "crane",
        "addons",
        "github.com/google/go-containerregistry/cmd/crane",
        GoKind::Plain,
    ),
    go("coredns", "addons", "./coredns", GoKind::Plain),
    go(
        "kubeadm",
        "",
        "k8s.io/kubernetes/cmd/kubeadm",
        GoKind::Kubernetes(Kubernetes::V1_37),
    ),
    go("kind", "kind", "sigs.k8s.io/kind", GoKind::Plain),
    go(
        "containerd",
        "node",
        "github.com/containerd/containerd/v2/cmd/containerd",
        GoKind::Containerd,
    ),
    go(
        "containerd-shim-runc-v2",
        "node",
        "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
        GoKind::Containerd,
    ),
    go(
        "ctr",
        "node",
        "github.com/containerd/containerd/v2/cmd/ctr",
        GoKind::Containerd,
    ),
    go("layerpeer", "node", "./layerpeer", GoKind::Plain),
    go(
        "runc",
        "node",
        "github.com/opencontainers/runc",
        GoKind::Runc,
    ),
    go(
        "cni/bridge",
        "node",
        "github.com/containernetworking/plugins/plugins/main/bridge",
        GoKind::Plain,
    ),
    go(
        "cni/loopback",
        "node",
        "github.com/containernetworking/plugins/plugins/main/loopback",
        GoKind::Plain,
    ),
    go(
        "cni/host-local",
        "node",
        "github.com/containernetworking/plugins/plugins/ipam/host-local",
        GoKind::Plain,
    ),
    go(
        "cni/portmap",
        "node",
        "github.com/containernetworking/plugins/plugins/meta/portmap",
        GoKind::Plain,
    ),
    go(
        "csi-provisioner",
        "csi",
        "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner",
        GoKind::Plain,
    ),
    go(
        "csi-attacher",
        "csi",
        "github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher",
        GoKind::Plain,
    ),
    go(
        "csi-resizer",
        "csi",
        "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer",
        GoKind::Plain,
    ),
    go(
        "csi-snapshotter",
        "csi",
        "github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter",
        GoKind::Plain,
    ),
    go(
        "snapshot-controller",
        "csi",
        "github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller",
        GoKind::Plain,
    ),
    go(
        "csi-sanity",
        "csi",
        "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity",
        GoKind::Plain,
    ),
    go(
        "crictl",
        "cri",
        "sigs.k8s.io/cri-tools/cmd/crictl",
        GoKind::Plain,
    ),
    go(
        "critest",
        "cri",
        "sigs.k8s.io/cri-tools/cmd/critest",
        GoKind::PlainTest,
    ),
    go("helm-3", "helm", "helm.sh/helm/v3/cmd/helm", GoKind::Helm3),
    go("helm-4", "helm", "helm.sh/helm/v4/cmd/helm", GoKind::Plain),
    go(
        "metrics-server",
        "metricsserver",
        "sigs.k8s.io/metrics-server/cmd/metrics-server",
        GoKind::Plain,
    ),
    go(
        "descheduler",
        "descheduler",
        "sigs.k8s.io/descheduler/cmd/descheduler",
        GoKind::Plain,
    ),
    go(
        "kueue",
        "kueue",
        "sigs.k8s.io/kueue/cmd/kueue",
        GoKind::Plain,
    ),
    go(
        "prometheus-operator",
        "prometheusoperator",
        "github.com/prometheus-operator/prometheus-operator/cmd/operator",
        GoKind::Plain,
    ),
    go(
        "prometheus-config-reloader",
        "prometheusoperator",
        "github.com/prometheus-operator/prometheus-operator/cmd/prometheus-config-reloader",
        GoKind::Plain,
    ),
    go(
        "prometheus",
        "prometheus",
        "github.com/prometheus/prometheus/cmd/prometheus",
        GoKind::Plain,
    ),
    go(
        "argo-rollouts",
        "rollouts",
        "github.com/argoproj/argo-rollouts/cmd/rollouts-controller",
        GoKind::Plain,
    ),
    go(
        "local-path-provisioner",
        "localpath",
        "github.com/rancher/local-path-provisioner",
        GoKind::Plain,
    ),
];

/// What every cluster needs, besides its API server.
pub const CLUSTER_PROGRAMS: &[&str] = &["etcd", "kubectl", "crane", "coredns", "agnhost"];
/// The programs of `csi-hostpath/`, the driver first.
pub const CSI_HOSTPATH: &[&str] = &[
    "hostpathplugin",
    "csi-node-driver-registrar",
    "livenessprobe",
];
/// The minor version of the libraries that `upstream/helm` has, as Helm's own Makefile reads it there.
const HELM_KUBERNETES_MINOR: &str = "37";
/// Both lines of Helm that people have.
pub const HELMS: &[&str] = &["helm-3", "helm-4"];
/// The peers of our kubelet.
pub const NODE_PEERS: &[&str] = &[
    "kubelet",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "runc",
    "cni/bridge",
    "cni/loopback",
    "cni/host-local",
    "cni/portmap",
];

/// Builds the named Go programs, those that are missing or made from another version; a program in `$KUBEBUILDER_ASSETS`
/// is taken from there.
///
/// # Errors
/// Go is missing, or a build fails.
pub fn build_upstream(steps: &Steps, outputs: &Outputs, names: &[&str]) -> Result<()> {
    let bin = outputs.upstream_bin();
    // What each program was made from, beside the programs.
    let made = bin.join("made");
    for dir in [&bin, &made] {
        std::fs::create_dir_all(dir.join("cni"))?;
    }
    let mut missing: Vec<(&GoProgram, String)> = Vec::new();
    for name in names {
        let program = GO_PROGRAMS
            .iter()
            .find(|program| program.name == *name)
            .with_context(|| format!("no Go program is called {name:?}"))?;
        let inputs = inputs(outputs, program)?;
        let same = std::fs::read_to_string(made.join(name)).is_ok_and(|made| made == inputs);
        if !same || !outputs.upstream(name).exists() {
            missing.push((program, inputs));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let step = steps.start("build upstream's programs", Some(missing.len() as u64))?;
    for (program, inputs) in missing {
        let name = program.name;
        step.message(name);
        if let Some(asset) = asset(name) {
            let half = bin.join(format!("{name}.half"));
            std::fs::copy(&asset, &half).with_context(|| format!("copy {}", asset.display()))?;
            std::fs::rename(&half, outputs.upstream(name))?;
        } else {
            // Written beside and renamed: an interrupted link must not leave half a program behind.
            let half = bin.join(format!("{name}.half"));
            step.run(
                go_command(outputs, program)
                    .arg("-o")
                    .arg(&half)
                    .arg(program.package),
            )?;
            std::fs::rename(&half, outputs.upstream(name))?;
        }
        std::fs::write(made.join(name), inputs)?;
        step.advance();
    }
    step.done();
    Ok(())
}

fn asset(name: &str) -> Option<PathBuf> {
    let file = PathBuf::from(std::env::var_os("KUBEBUILDER_ASSETS")?).join(name);
    file.is_file().then_some(file)
}

fn ldflags(kind: GoKind) -> String {
    match kind {
        GoKind::Kubernetes(kubernetes) | GoKind::Test(kubernetes) => {
            let version = kubernetes.version();
            let minor = version.split('.').nth(1).unwrap_or_default();
            format!(
                "-s -w -X k8s.io/component-base/version.gitVersion=v{version} -X k8s.io/component-base/version.gitMajor=1 \
             -X k8s.io/component-base/version.gitMinor={minor} -X k8s.io/component-base/version.gitTreeState=clean \
             -X k8s.io/client-go/pkg/version.gitVersion=v{version}"
            )
        }
        GoKind::Plain | GoKind::PlainTest => "-s -w".to_owned(),
        GoKind::Containerd => {
            "-s -w -X github.com/containerd/containerd/v2/version.Version=v2.4.2".to_owned()
        }
        GoKind::Runc => "-s -w -X main.version=1.5.2".to_owned(),
        GoKind::Helm3 => {
            let variables = ["pkg/chartutil.k8sVersion", "pkg/lint/rules.k8sVersion"];
            let set = |variable: &str| {
                format!(
                    " -X helm.sh/helm/v3/{variable}Major=1 -X helm.sh/helm/v3/{variable}Minor={HELM_KUBERNETES_MINOR}"
                )
            };
            let set: String = variables.into_iter().map(set).collect();
            format!("-s -w -X helm.sh/helm/v3/internal/version.version=v3.22.0{set}")
        }
    }
}

/// What a program is made from: a change of it makes the program anew.
///
/// # Errors
/// The module's files cannot be read.
fn inputs(outputs: &Outputs, program: &GoProgram) -> Result<String> {
    if let Some(asset) = asset(program.name) {
        let meta = std::fs::metadata(&asset)?;
        return Ok(format!(
            "{} {} {:?}",
            asset.display(),
            meta.len(),
            meta.modified()?
        ));
    }
    let module = go_module(outputs, program.module);
    let mut files = vec![module.join("go.mod"), module.join("go.sum")];
    if let Some(own) = program.package.strip_prefix("./") {
        let mut sources: Vec<PathBuf> = std::fs::read_dir(module.join(own))?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        sources.sort();
        files.extend(sources);
    }
    let mut hash = Sha256::new();
    hash.update(ldflags(program.kind));
    for file in files {
        hash.update(std::fs::read(&file).with_context(|| format!("read {}", file.display()))?);
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// The folder of a Go module below `e2e/upstream`; the empty name is that folder itself.
pub fn go_module(outputs: &Outputs, name: &str) -> PathBuf {
    outputs.workspace.join("e2e/upstream").join(name)
}

fn go_command(outputs: &Outputs, program: &GoProgram) -> Command {
    let ldflags = ldflags(program.kind);
    let mut command = Command::new("go");
    command
        .current_dir(go_module(outputs, program.module))
        .env(
            "CGO_ENABLED",
            if program.kind == GoKind::Runc {
                "1"
            } else {
                "0"
            },
        )
        .env("GOFLAGS", "-buildvcs=false");
    if matches!(program.kind, GoKind::Test(_) | GoKind::PlainTest) {
        // No vet: it looks through all that the program is made of, and that is not ours.
        command.args(["test", "-c", "-vet=off"]);
    } else {
        command.arg("build");
    }
    command.args(["-trimpath", "-ldflags", &ldflags]);
    match program.kind {
        GoKind::Containerd => command.args(["-tags", "no_btrfs no_devmapper no_zfs"]),
        GoKind::Runc => command.args(["-tags", "seccomp"]),
        _ => &mut command,
    };
    command
}

/// Builds Gantry's own programs.
///
/// # Errors
/// A build fails.
pub fn build_ours(steps: &Steps, outputs: &Outputs, packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let step = steps.start("build Gantry", None)?;
    step.message(&packages.join(" "));
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(&outputs.workspace)
        .args(["build", "--profile", outputs.profile.name()]);
    for package in packages {
        command.args(["--package", package]);
    }
    step.run(&mut command)?;
    for package in packages {
        let program = match *package {
            "shim" => "gantry-shim",
            "cri" => "gantry-cri",
            package => package,
        };
        if !outputs.ours(program).is_file() {
            bail!(
                "cargo built package {package:?} but {} is not there",
                outputs.ours(program).display()
            );
        }
    }
    step.done();
    Ok(())
}

/// Builds the programs of `csi-hostpath/`: whole in themselves, for images without a C library.
///
/// # Errors
/// A build fails.
pub fn build_csi_hostpath(steps: &Steps, outputs: &Outputs) -> Result<()> {
    let step = steps.start("build the CSI driver", Some(CSI_HOSTPATH.len() as u64))?;
    for program in CSI_HOSTPATH {
        step.message(program);
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .current_dir(&outputs.workspace)
            .args(["rustc", "--profile", outputs.profile.name()])
            .args(["--package", "csi-hostpath", "--bin", program])
            .args(["--", "-C", "target-feature=+crt-static"]);
        step.run(&mut command)?;
        step.advance();
    }
    step.done();
    Ok(())
}
