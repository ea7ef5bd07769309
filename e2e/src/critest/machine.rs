//! One machine without a cluster: namespaces with a network of their own, a registry in it, and `gantry-cri`.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{SET, must};
use crate::images;
use crate::programs::Outputs;
use crate::step::Steps;

/// Where clients on the machine find the CRI.
pub const SOCKET: &str = "/run/containerd/containerd.sock";
const REGISTRY: &str = "127.0.0.1:5000";
/// Addresses of the machine's pods.
const POD_CIDR: &str = "10.244.99.0/24";
/// Where its shims live, on the machine as a whole.
const SHIM_CGROUP: &str = "gantry-critest-shims";
const PATIENCE: Duration = Duration::from_secs(20);

/// As a cluster's node (`node.rs`): its own /run, /var/lib, /var/log and /etc, one link, and no way out. `$1` is its folder.
const SETUP: &str = r#"
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 gantry-run /run
mkdir -p /run/netns /run/lock /run/containerd /run/xtables
mount -t overlay -o "lowerdir=/etc,upperdir=$1/etc,workdir=$1/etc-work" gantry-etc /etc
for own in cni/net.d containerd; do mkdir -p "/etc/$own"; mount --bind "$1/etc-own/$own" "/etc/$own"; done
mount --bind "$1/log" /var/log
mount --bind "$1/lib" /var/lib
hostname critest
ip link set lo up
ip link add eth0 type veth peer name uplink
ip link set uplink up
ip addr add 172.30.99.2/24 dev eth0
ip link set eth0 up
ip route add default via 172.30.99.1
mount --make-rshared /
echo ready
exec sleep infinity
"#;

/// Ends with its handle, and everything on it.
pub struct Machine {
    folder: tempfile::TempDir,
    /// Last in, first out.
    programs: Vec<Child>,
    holder: Child,
}

impl Machine {
    /// Makes it, fills the registry and starts the CRI's server.
    ///
    /// # Errors
    /// A namespace, mount or program fails.
    pub fn start(outputs: &Outputs, steps: &Steps) -> Result<Self> {
        let step = steps.start("a machine", None)?;
        // Neither /tmp, which may be no place for an overlay, nor where the machine has its own folders.
        fs::create_dir_all(outputs.e2e())?;
        let folder = tempfile::Builder::new()
            .prefix("critest-")
            .tempdir_in(outputs.e2e())?;
        for part in [
            "etc",
            "etc-work",
            "etc-own/cni/net.d",
            "etc-own/containerd/certs.d",
            "log",
            "lib",
        ] {
            fs::create_dir_all(folder.path().join(part))?;
        }
        for host in images::hosts_of(SET)? {
            let directory = folder.path().join("etc-own/containerd/certs.d").join(host);
            fs::create_dir_all(&directory)?;
            fs::write(
                directory.join("hosts.toml"),
                format!(
                    "server = \"http://{REGISTRY}\"\n\n[host.\"http://{REGISTRY}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
                ),
            )?;
        }
        let holder = hold(folder.path())?;
        let mut machine = Self {
            folder,
            programs: Vec::new(),
            holder,
        };
        machine.start_registry(outputs)?;
        let crane = outputs.upstream("crane");
        images::push_set(outputs, SET, REGISTRY, &step, || machine.command(&crane))?;
        machine.start_cri(outputs)?;
        step.done();
        Ok(machine)
    }

    /// A folder that is the same on and off the machine.
    pub fn directory(&self) -> &Path {
        self.folder.path()
    }

    /// What `gantry-cri` said.
    pub fn log(&self) -> PathBuf {
        self.folder.path().join("gantry-cri.log")
    }

    /// A program that is to run on it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.holder.id()))
            .args(["--net", "--mount", "--uts", "--"])
            .arg(program);
        command
    }

    fn spawn(&mut self, command: &mut Command, log: &str) -> Result<()> {
        let file = fs::File::create(self.folder.path().join(log))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        self.programs.push(child);
        Ok(())
    }

    fn start_registry(&mut self, outputs: &Outputs) -> Result<()> {
        let crane = outputs.upstream("crane");
        let blobs = self.folder.path().join("registry");
        fs::create_dir_all(&blobs)?;
        let mut registry = self.command(&crane);
        registry
            .args(["registry", "serve", "--address", REGISTRY, "--disk"])
            .arg(&blobs);
        self.spawn(&mut registry, "registry.log")?;
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = must(
            self.command(&crane)
                .args(["catalog", "--insecure", REGISTRY]),
        ) {
            if Instant::now() > deadline {
                bail!("the registry does not answer: {error:#}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn start_cri(&mut self, outputs: &Outputs) -> Result<()> {
        let mut server = self.command(outputs.ours("gantry-cri"));
        server
            .arg(format!("--listen={SOCKET}"))
            .arg(format!("--pod-cidr={POD_CIDR}"))
            .arg(format!("--shim-cgroup=/{SHIM_CGROUP}"))
            .arg("--v=4");
        self.spawn(&mut server, "gantry-cri.log")?;
        // As the machine sees it.
        let socket = PathBuf::from(format!("/proc/{}/root{SOCKET}", self.holder.id()));
        let deadline = Instant::now() + PATIENCE;
        while !socket.exists() {
            let server = self.programs.last_mut().expect("it was just started");
            if let Some(status) = server.try_wait()? {
                bail!(
                    "gantry-cri ended with {status}: {}",
                    crate::step::tail(&self.folder.path().join("gantry-cri.log"), 5)
                );
            }
            ensure!(Instant::now() < deadline, "gantry-cri does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// Makes the namespaces; they are there as long as the process.
fn hold(folder: &Path) -> Result<Child> {
    let mut holder = Command::new("unshare")
        .args([
            "--net",
            "--mount",
            "--uts",
            "--propagation",
            "private",
            "--",
        ])
        .args(["sh", "-c", SETUP, "machine-setup"])
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("make namespaces")?;
    let said = holder.stdout.take().context("its output")?;
    let mut line = String::new();
    BufReader::new(said).read_line(&mut line)?;
    if line.trim() != "ready" {
        let status = holder.wait()?;
        bail!("the machine could not be made: {status}");
    }
    Ok(holder)
}

impl Machine {
    /// Pods that a client left, with all they have in the kernel.
    fn remove_pods(&self) -> Result<()> {
        let crictl = Outputs::find().upstream("crictl");
        let endpoint = format!("--runtime-endpoint=unix://{SOCKET}");
        let remove = ["--timeout=60s", "rmp", "--all", "--force"];
        must(self.command(&crictl).arg(endpoint).args(remove)).map(drop)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.remove_pods() {
            eprintln!("pods are left behind: {error:#}");
        }
        for program in self.programs.iter_mut().rev() {
            // SIGKILL: what was to be kept is on disk, and is removed.
            let _ = program.kill();
            let _ = program.wait();
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        // Those that have no pod any more.
        for hierarchy in fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            for own in ["k8s.io", SHIM_CGROUP] {
                let _ = fs::remove_dir(hierarchy.path().join(own));
            }
        }
    }
}
