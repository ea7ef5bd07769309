//! `cargo e2e kubeadm`: plain `kubeadm init`, `join`, `upgrade node` and `reset` on two machines of the node image, twice in a row, with no
//! preflight check ignored but the one that refuses cgroup v1.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::{Kind, podman, version};
use crate::debian;
use crate::programs::Profile;
use crate::step::{Step, output};

const NODES: [&str; 2] = ["gantry-kubeadm-1", "gantry-kubeadm-2"];
const POD_SUBNET: &str = "10.244.0.0/16";
/// How often everything is done.
const ROUNDS: u32 = 2;
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Args)]
pub struct KubeadmOptions {
    /// How our programs are built.
    #[arg(long, value_enum, default_value = "release")]
    profile: Profile,
    /// Leave the machines as they are when something does not work.
    #[arg(long)]
    keep: bool,
}

/// # Errors
/// A step of kubeadm does not work, or leaves something.
pub fn run(options: &KubeadmOptions) -> Result<()> {
    debian::require_root("run a machine as a container")?;
    let kind = Kind::open(options.profile)?;
    podman::check()?;
    podman::prepare(&kind.dir())?;
    ensure!(
        !kind.exists()?,
        "a kind cluster is up: `cargo e2e kind down` ends it"
    );
    kind.remove_leftovers()?;
    let image = kind.build(&[])?;
    podman::make_network(&kind.dir())?;
    let result = rounds(&kind, &image);
    if result.is_err() && options.keep {
        eprintln!("the machines are left; `cargo e2e kind down` removes them");
        return result;
    }
    kind.remove_leftovers()?;
    podman::release(&kind.dir())?;
    result
}

fn rounds(kind: &Kind, image: &str) -> Result<()> {
    let step = kind.steps.start("machines", None)?;
    for node in NODES {
        start_machine(kind, node, image)?;
    }
    step.done();
    for round in 1..=ROUNDS {
        let step = kind
            .steps
            .start(&format!("kubeadm, round {round} of {ROUNDS}"), None)?;
        let seconds = one_round(kind, &step)?;
        step.done();
        println!(
            "      init to all Ready in {seconds:.1} s; join, upgrade node and reset worked, nothing is left"
        );
    }
    Ok(())
}

/// As kind starts a node.
fn start_machine(kind: &Kind, node: &str, image: &str) -> Result<()> {
    output(kind.podman().args(["volume", "create", node]))?;
    let var = format!("{node}:/var:suid,exec,dev");
    output(
        kind.podman()
            .args(["run", "--detach", "--tty", "--privileged"])
            .args(["--cgroupns=private", "--name", node, "--hostname", node])
            .args(["--net", podman::NETWORK, "--tmpfs", "/tmp"])
            .args(["--tmpfs", "/run", "--volume", &var])
            .args(["--volume", "/lib/modules:/lib/modules:ro"])
            .arg(image),
    )?;
    let running = ["systemctl", "is-system-running", "--wait"];
    eventually(|| output(&mut kind.on_node(node, &running)).map(drop))
        .with_context(|| format!("{node} does not boot"))?;
    // Upstream's packaged unit names no kill mode: systemd ends everything in the unit's cgroup.
    let script = "printf '[Service]\\nKillMode=control-group\\n' > /etc/systemd/system/kubelet.service.d/99-killmode.conf && systemctl daemon-reload";
    output(&mut kind.on_node(node, &["sh", "-c", script])).map(drop)
}

fn eventually(mut ask: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(300)),
        }
    }
}

fn is_v1() -> bool {
    !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

fn config() -> String {
    let v1 = if is_v1() { "failCgroupV1: false\n" } else { "" };
    format!(
        "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: {}\nnetworking: {{podSubnet: {POD_SUBNET}}}\n---\n\
         apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{v1}",
        version()
    )
}

/// Init on the first machine, join on the second, a look at the cluster, upgrade, reset. Gives the seconds until all was Ready.
fn one_round(kind: &Kind, step: &Step) -> Result<f64> {
    let [first, second] = NODES;
    let on = |node: &str, words: &[&str]| step.run(&mut kind.on_node(node, words));
    let kubectl = |words: &[&str]| {
        let all: Vec<&str> = ["kubectl", "--kubeconfig=/etc/kubernetes/admin.conf"]
            .into_iter()
            .chain(words.iter().copied())
            .collect();
        output(&mut kind.on_node(first, &all))
    };
    let write = format!("cat > /kind/kubeadm.yaml <<'END'\n{}END\n", config());
    on(first, &["sh", "-c", &write])?;
    let ignore: &[&str] = if is_v1() {
        &["--ignore-preflight-errors=SystemVerification"]
    } else {
        &[]
    };
    let with = |words: &[&'static str]| -> Vec<&'static str> { [words, ignore].concat() };

    let started = Instant::now();
    step.message("kubeadm init");
    on(
        first,
        &with(&["kubeadm", "init", "--config=/kind/kubeadm.yaml"]),
    )?;
    // Inline until then: the kubelet keeps the pair, and kubeadm points there.
    let conf = output(&mut kind.on_node(first, &["cat", "/etc/kubernetes/kubelet.conf"]))?;
    ensure!(
        conf.contains("/var/lib/kubelet/pki/kubelet-client-current.pem"),
        "kubelet.conf of the first node names no certificate that is renewed"
    );
    kubectl(&["apply", "-f", "/kind/manifests/default-cni.yaml"])?;

    step.message("kubeadm join");
    let join = output(&mut kind.on_node(
        first,
        &["kubeadm", "token", "create", "--print-join-command"],
    ))?;
    let mut words: Vec<&str> = join.split_whitespace().collect();
    words.extend(ignore);
    on(second, &words)?;
    for what in ["nodes", "pods"] {
        let wait = [
            "wait",
            "--for=condition=Ready",
            what,
            "--all",
            "-A",
            "--timeout=120s",
        ];
        // Nothing to wait for is an error to kubectl.
        eventually(|| kubectl(&wait).map(drop))?;
    }
    let seconds = started.elapsed().as_secs_f64();

    step.message("kubeadm upgrade node");
    on(second, &with(&["kubeadm", "upgrade", "node"]))?;
    step.message("kubeadm reset");
    kubectl(&["drain", second, "--ignore-daemonsets", "--force"])?;
    kubectl(&["delete", "node", second])?;
    for node in [second, first] {
        on(node, &["kubeadm", "reset", "--force"])?;
        nothing_is_left(kind, node)?;
    }
    Ok(seconds)
}

/// After a reset: no shim, no container, no pod's mount.
fn nothing_is_left(kind: &Kind, node: &str) -> Result<()> {
    let script = "pgrep -l gantry-shim; crictl ps -a -q; crictl pods -q; grep -E ' /var/lib/kubelet/pods| /run/gantry/(containers|sandboxes)/' /proc/self/mounts; \
                  ls /var/lib/kubelet /etc/kubernetes/manifests; true";
    let left = output(&mut kind.on_node(node, &["sh", "-c", script]))?;
    // The two folders' names, with nothing below.
    let lines: Vec<&str> = left
        .lines()
        .filter(|line| !line.is_empty() && !line.ends_with(':'))
        .collect();
    ensure!(
        lines.is_empty(),
        "{node} has left after the reset: {lines:?}"
    );
    Ok(())
}
