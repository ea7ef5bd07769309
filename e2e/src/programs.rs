//! Builds the programs: Gantry's own by cargo, upstream's from the Go modules below `e2e/upstream`.

mod go;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use go::{GO_PROGRAMS, GoKind, GoProgram};
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
