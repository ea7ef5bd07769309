//! `cargo e2e compatibility`: programs that people install on clusters, unmodified, by the manifests that their own modules carry, on a
//! cluster of ours. Each is installed, does its job, is removed, and leaves nothing; `COMPATIBILITY.md` is the table of it.

mod checks;

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::cluster::{Cluster, Options};
use crate::csi::module_dir;
use crate::probe::{Holdings, assert_nothing_left, wait_until};
use crate::programs::{Outputs, Profile};
use crate::step::output;

const CLUSTER: &str = "compatible";
/// Their images, in images.toml.
const IMAGES: &str = "compatibility";

#[derive(Args, Clone)]
pub struct CompatibilityOptions {
    /// Only these programs.
    programs: Vec<String>,
    /// Leave the cluster up, or use the one that is.
    #[arg(long)]
    keep: bool,
    /// How our programs are built; the table is of release.
    #[arg(long, value_enum, default_value = "release")]
    profile: Profile,
}

/// Where a module's manifests are.
enum Manifests {
    /// A folder that `kubectl kustomize` reads.
    Kustomize(&'static str),
    File(&'static str),
}

/// A program and what is asked of it.
struct Program {
    name: &'static str,
    /// Below `e2e/upstream`.
    folder: &'static str,
    module: &'static str,
    manifests: Manifests,
    /// What is not as in the manifests: images of this cluster, and what a test cannot wait for. Each is there, or it is an error.
    replace: &'static [(&'static str, &'static str)],
    /// Its namespace, which is made where the manifests do not.
    namespace: &'static str,
    /// The manifests say of each object what namespace it is in; else all of them go to that one.
    placed: bool,
    deployment: &'static str,
    does: &'static str,
    check: fn(&Cluster) -> Result<String>,
}

impl Program {
    /// kubectl's words for where its objects go.
    fn place(&self) -> Vec<&'static str> {
        match self.placed {
            true => Vec::new(),
            false => vec!["-n", self.namespace],
        }
    }
}

const PROGRAMS: &[Program] = &[
    Program {
        name: "metrics-server",
        folder: "metricsserver",
        module: "sigs.k8s.io/metrics-server",
        manifests: Manifests::Kustomize("manifests/base"),
        replace: &[
            (
                "gcr.io/k8s-staging-metrics-server/metrics-server:master",
                "registry.k8s.io/gantry-test/metrics-server:v0.9.0",
            ),
            // The nodes' serving certificates are their own, as in kind.
            (
                "- --cert-dir=/tmp\n",
                "- --cert-dir=/tmp\n        - --kubelet-insecure-tls\n",
            ),
        ],
        namespace: "kube-system",
        placed: true,
        deployment: "metrics-server",
        does: "`kubectl top` tells of nodes and pods; an autoscaler follows the load of its pods up and down",
        check: checks::metrics_server,
    },
    Program {
        name: "descheduler",
        folder: "descheduler",
        module: "sigs.k8s.io/descheduler",
        manifests: Manifests::Kustomize("kubernetes/deployment"),
        replace: &[
            (
                "registry.k8s.io/descheduler/descheduler:v0.36.0",
                "registry.k8s.io/gantry-test/descheduler:v0.36.0",
            ),
            ("- 5m\n", "- 10s\n"),
        ],
        namespace: "kube-system",
        placed: true,
        deployment: "descheduler",
        does: "the second of two replicas on one node is evicted, and placed on the other",
        check: checks::descheduler,
    },
    Program {
        name: "kueue",
        folder: "kueue",
        module: "sigs.k8s.io/kueue",
        manifests: Manifests::Kustomize("config/default"),
        replace: &[
            (
                "us-central1-docker.pkg.dev/k8s-staging-images/kueue/kueue:main",
                "registry.k8s.io/gantry-test/kueue:v0.17.0",
            ),
            ("cpu: 500m", "cpu: 100m"),
        ],
        namespace: "kueue-system",
        placed: true,
        deployment: "kueue-controller-manager",
        does: "of two Jobs that want more than the quota together the second is suspended until the first has ended",
        check: checks::kueue,
    },
    Program {
        name: "prometheus-operator",
        folder: "prometheusoperator",
        module: "github.com/prometheus-operator/prometheus-operator",
        manifests: Manifests::File("bundle.yaml"),
        replace: &[
            (
                "image: quay.io/prometheus-operator/prometheus-operator:v0.85.0",
                "image: registry.k8s.io/gantry-test/prometheus-operator:v0.85.0",
            ),
            (
                "quay.io/prometheus-operator/prometheus-config-reloader:v0.85.0",
                "registry.k8s.io/gantry-test/prometheus-config-reloader:v0.85.0",
            ),
        ],
        namespace: "default",
        placed: true,
        deployment: "prometheus-operator",
        does: "a Prometheus object becomes a StatefulSet whose Prometheus scrapes both kubelets, with cAdvisor's metrics",
        check: checks::prometheus_operator,
    },
    Program {
        name: "argo-rollouts",
        folder: "rollouts",
        module: "github.com/argoproj/argo-rollouts",
        manifests: Manifests::Kustomize("manifests/cluster-install"),
        replace: &[(
            "quay.io/argoproj/argo-rollouts:latest",
            "registry.k8s.io/gantry-test/argo-rollouts:v1.10.1",
        )],
        namespace: "argo-rollouts",
        placed: false,
        deployment: "argo-rollouts",
        does: "a canary takes half, waits, and takes all; the ReplicaSet before it is scaled to nothing",
        check: checks::argo_rollouts,
    },
];

/// What came of one.
struct Outcome {
    program: &'static Program,
    version: String,
    seconds: f64,
    said: Result<String>,
}

/// # Errors
/// The cluster does not come up, no program is called that, or one does not do its job or leaves something.
pub fn run(options: &CompatibilityOptions) -> Result<()> {
    for name in &options.programs {
        ensure!(
            PROGRAMS.iter().any(|program| program.name == name),
            "no program {name:?}; there are: {}",
            PROGRAMS
                .iter()
                .map(|program| program.name)
                .collect::<Vec<_>>()
                .join(", ")
        );
    }
    let cluster = match Cluster::open(CLUSTER) {
        Ok(cluster) if options.keep && cluster.is_running() => cluster,
        _ => {
            Cluster::down(CLUSTER)?;
            Cluster::up(Options {
                name: CLUSTER.to_owned(),
                profile: options.profile,
                images: [IMAGES.to_owned()].into(),
                ..Options::default()
            })?
        }
    };
    let chosen = PROGRAMS.iter().filter(|program| {
        options.programs.is_empty() || options.programs.iter().any(|name| name == program.name)
    });
    let mut outcomes = Vec::new();
    for program in chosen {
        let began = Instant::now();
        let said = whole_life(&cluster, program);
        let outcome = Outcome {
            program,
            version: version(&cluster.outputs, program)?,
            seconds: began.elapsed().as_secs_f64(),
            said,
        };
        match &outcome.said {
            Ok(said) => eprintln!(
                "  ok  {:<22} {:>6.1} s  {said}",
                program.name, outcome.seconds
            ),
            Err(err) => eprintln!(
                "FAILED {:<21} {:>6.1} s  {err:#}",
                program.name, outcome.seconds
            ),
        }
        outcomes.push(outcome);
    }
    if !options.keep {
        Cluster::down(CLUSTER)?;
    }
    let failed = outcomes.iter().filter(|one| one.said.is_err()).count();
    if options.programs.is_empty() && options.profile == Profile::Release {
        let path = cluster.outputs.workspace.join("e2e/COMPATIBILITY.md");
        fs::write(&path, page(&outcomes)).with_context(|| path.display().to_string())?;
    }
    ensure!(failed == 0, "{failed} of {} failed", outcomes.len());
    Ok(())
}

/// Installed, checked, removed, nothing left.
fn whole_life(cluster: &Cluster, program: &Program) -> Result<String> {
    let before = holdings(cluster)?;
    let manifests = manifests(cluster, program)?;
    let own_namespace = cluster
        .kubectl(&["get", "namespace", program.namespace])
        .is_err();
    if own_namespace {
        cluster.kubectl(&["create", "namespace", program.namespace])?;
    }
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), &manifests)?;
    let path = file.path().to_string_lossy();
    // Its definitions are larger than the annotation of a client-side apply may be.
    let mut apply = vec!["apply", "--server-side", "--force-conflicts", "-f", &path];
    apply.extend(program.place());
    let said = cluster
        .kubectl(&apply)
        .context("install")
        .and_then(|_| is_ready(cluster, program))
        .and_then(|()| (program.check)(cluster).context("its job"));
    let removed = remove(cluster, program, &path, own_namespace);
    let said = said?;
    removed?;
    for (node, before) in &before {
        assert_nothing_left(cluster, node, before, Duration::from_secs(60))?;
    }
    Ok(said)
}

fn holdings(cluster: &Cluster) -> Result<Vec<(String, Holdings)>> {
    cluster
        .nodes()
        .into_iter()
        .map(|node| {
            let held = Holdings::of(cluster, &node)?;
            Ok((node, held))
        })
        .collect()
}

fn is_ready(cluster: &Cluster, program: &Program) -> Result<()> {
    let deployment = format!("deployment/{}", program.deployment);
    cluster
        .kubectl(&[
            "-n",
            program.namespace,
            "rollout",
            "status",
            &deployment,
            "--timeout=180s",
        ])
        .map(drop)
        .with_context(|| {
            cluster
                .kubectl(&["-n", program.namespace, "describe", "pods"])
                .unwrap_or_default()
        })
}

fn remove(cluster: &Cluster, program: &Program, path: &str, own_namespace: bool) -> Result<()> {
    let mut delete = vec![
        "delete",
        "--ignore-not-found",
        "--wait=true",
        "--timeout=180s",
        "-f",
        path,
    ];
    delete.extend(program.place());
    cluster.kubectl(&delete).context("remove")?;
    if own_namespace {
        cluster.kubectl(&[
            "delete",
            "namespace",
            program.namespace,
            "--ignore-not-found",
            "--timeout=180s",
        ])?;
    }
    wait_until("its pods to be gone", Duration::from_secs(60), || {
        let pods = cluster.kubectl(&["-n", program.namespace, "get", "pods", "-o", "name"])?;
        Ok(!pods.contains(program.deployment))
    })
}

fn manifests(cluster: &Cluster, program: &Program) -> Result<String> {
    let dir = module_dir(&cluster.outputs, program.folder, program.module)?;
    let mut text = match program.manifests {
        Manifests::Kustomize(folder) => output(
            Command::new(cluster.outputs.upstream("kubectl"))
                .arg("kustomize")
                .arg(dir.join(folder)),
        )?,
        Manifests::File(file) => {
            let path = dir.join(file);
            fs::read_to_string(&path).with_context(|| path.display().to_string())?
        }
    };
    for (from, to) in program.replace {
        if !text.contains(from) {
            bail!("the manifests of {} have no {from:?}", program.name);
        }
        text = text.replace(from, to);
    }
    Ok(text)
}

fn version(outputs: &Outputs, program: &Program) -> Result<String> {
    let dir = module_dir(outputs, program.folder, program.module)?;
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    Ok(name.rsplit('@').next().unwrap_or_default().to_owned())
}

fn page(outcomes: &[Outcome]) -> String {
    let mut text = String::from(
        "# Compatibility\n\nPrograms that people install on clusters, unmodified, on a cluster of ours (two nodes): installed by the manifests of \
         their own modules, checked, removed; afterwards no process, mount, link, cgroup or rule of theirs is left on a node. Written by \
         `cargo e2e compatibility`.\n\n| program | version | what it is seen to do | result |\n|---|---|---|---|\n",
    );
    for outcome in outcomes {
        let result = match &outcome.said {
            Ok(said) => format!("passed: {said}"),
            Err(err) => format!(
                "failed: {}",
                format!("{err:#}").lines().next().unwrap_or_default()
            ),
        };
        text += &format!(
            "| {} | {} | {} | {result} |\n",
            outcome.program.name, outcome.version, outcome.program.does
        );
    }
    text += "\nNot tried: cert-manager (its programs are modules of their own that no module proxy has).\n";
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_tells_of_each_what_came_of_it() {
        let outcome = |said| Outcome {
            program: &PROGRAMS[0],
            version: "v1".to_owned(),
            seconds: 1.0,
            said,
        };
        let text = page(&[
            outcome(Ok("two rows".to_owned())),
            outcome(Err(anyhow::anyhow!("no\nmore"))),
        ]);
        assert!(text.contains("| metrics-server | v1 | "), "{text}");
        assert!(text.contains("| passed: two rows |\n"), "{text}");
        assert!(text.contains("| failed: no |\n"), "{text}");
    }
}
