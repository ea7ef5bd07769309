//! Promise: `crictl` and `ctr` on a node show and do what they do with containerd, whether or not the kubelet runs; pods of the CRI's
//! clients and pods of the kubelet leave each other alone.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::Cluster;
use e2e::probe::{Namespace, busybox_pod, cluster, wait_until};
use e2e::programs;
use e2e::step::Steps;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const NODE: &str = "node-1";
const SOCKET: &str = "/run/gantry-cri-test.sock";
const IMAGE: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-2";
const SOON: Duration = Duration::from_secs(30);

/// One socket, and one kubelet to kill: the tests take turns.
static TURN: Mutex<()> = Mutex::new(());

/// `gantry-cri` on a node of the cluster; ends with its handle, after the pods that its clients made.
struct Server<'a> {
    cluster: &'a Cluster,
    program: Child,
    folder: tempfile::TempDir,
}

impl<'a> Server<'a> {
    fn start(cluster: &'a Cluster) -> Result<Self> {
        let steps = Steps::new(cluster.outputs.logs())?;
        programs::build_upstream(&steps, &cluster.outputs, &["crictl"])?;
        programs::build_ours(&steps, &cluster.outputs, &["cri"])?;
        let folder = tempfile::tempdir()?;
        let log = fs::File::create(cluster.outputs.logs().join("gantry-cri.log"))?;
        let program = cluster
            .node_place(NODE)
            .command(cluster.outputs.ours("gantry-cri"))
            .arg(format!("--listen={SOCKET}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start gantry-cri")?;
        let server = Self {
            cluster,
            program,
            folder,
        };
        let deadline = Instant::now() + SOON;
        while server.crictl(&["version"]).is_err() {
            ensure!(Instant::now() < deadline, "gantry-cri does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    fn command(&self, args: &[&str]) -> Command {
        let crictl = self.cluster.outputs.upstream("crictl");
        let mut command = self.cluster.node_place(NODE).command(crictl);
        command
            .arg(format!("--runtime-endpoint=unix://{SOCKET}"))
            .arg("--timeout=20s")
            .args(args);
        command
    }

    fn crictl(&self, args: &[&str]) -> Result<String> {
        e2e::step::output(&mut self.command(args)).with_context(|| format!("crictl {args:?}"))
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        let text = self.crictl(args)?;
        serde_json::from_str(&text).with_context(|| format!("crictl {args:?} gave {text:?}"))
    }

    /// What a refusal says.
    fn refused(&self, args: &[&str]) -> Result<String> {
        let output = self.command(args).output()?;
        ensure!(!output.status.success(), "crictl {args:?} succeeded");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn ctr(&self, args: &[&str]) -> Result<String> {
        let program = self.cluster.outputs.ours("gantry-ctr");
        let mut command = self.cluster.node_place(NODE).command(program);
        command.args(["ctr", "--namespace=k8s.io"]);
        command.arg(format!("--address={SOCKET}")).args(args);
        e2e::step::output(&mut command).with_context(|| format!("ctr {args:?}"))
    }

    fn write(&self, name: &str, value: &Value) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        fs::write(&path, value.to_string())?;
        Ok(path)
    }

    /// The ids of a list, one a line.
    fn ids(&self, args: &[&str]) -> Result<Vec<String>> {
        Ok(self
            .crictl(args)?
            .split_whitespace()
            .map(str::to_owned)
            .collect())
    }

    /// A pod of a client's, with one container that runs `script`: (pod, container).
    fn run(&self, name: &str, script: &str) -> Result<(String, String)> {
        let pod = self.write(&format!("{name}-pod.json"), &self.pod(name))?;
        let container = self.write(&format!("{name}.json"), &container_config(script))?;
        let (pod, container) = (text(&pod), text(&container));
        let sandbox = self.crictl(&["runp", pod])?.trim().to_owned();
        let made = self.crictl(&["create", "--with-pull", &sandbox, container, pod])?;
        let made = made.trim().to_owned();
        self.crictl(&["start", &made])?;
        Ok((sandbox, made))
    }

    fn pod(&self, name: &str) -> Value {
        json!({
            "metadata": {"name": name, "namespace": "clients", "uid": format!("client-{name}"), "attempt": 0},
            "hostname": name,
            "log_directory": self.folder.path().join("logs").join(name),
            "labels": {"test": "cri"},
            "linux": {"cgroup_parent": format!("/{}/clients", self.cluster.layout.node_cgroup(NODE))},
        })
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        for pod in self
            .ids(&["pods", "-q", "--label", "test=cri"])
            .unwrap_or_default()
        {
            if let Err(error) = self.crictl(&["rmp", "-f", &pod]) {
                eprintln!("a pod is left behind: {error:#}");
            }
        }
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours is text")
}

fn container_config(script: &str) -> Value {
    json!({
        "metadata": {"name": "main", "attempt": 0},
        "image": {"image": IMAGE},
        "command": ["sh", "-c", script],
        "log_path": "main.log",
        "linux": {"resources": {"memory_limit_in_bytes": 64 << 20}},
    })
}

#[test]
fn crictl_shows_the_kubelets_pods_and_reaches_into_them() -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "cri-kubelet")?;
    let pod = busybox_pod("seen", NODE, "echo hello; sleep 3600");
    ns.apply(&pod.replace("restartPolicy: Never", "restartPolicy: Always"))?;
    ns.wait_ready("pod/seen", 60)?;
    let server = Server::start(&cluster)?;
    let pods = server.json(&["pods", "--namespace", "cri-kubelet", "-o", "json"])?;
    ensure!(pods["items"][0]["metadata"]["name"] == "seen", "{pods}");
    let pod = pods["items"][0]["id"].as_str().context("id")?.to_owned();
    let containers = server.ids(&["ps", "-q", "--pod", &pod])?;
    ensure!(containers.len() == 1, "{containers:?}");
    let container = &containers[0];
    ensure!(server.crictl(&["logs", container])? == "hello\n", "logs");
    let said = server.crictl(&["exec", "--sync", container, "echo", "sync"])?;
    ensure!(said.trim() == "sync", "exec --sync: {said:?}");
    let said = server.crictl(&["exec", container, "echo", "streamed"])?;
    ensure!(said.trim() == "streamed", "exec: {said:?}");
    let inspected = server.json(&["inspect", container])?;
    ensure!(
        inspected["status"]["state"] == "CONTAINER_RUNNING",
        "{inspected}"
    );
    // A container that a client stops is the kubelet's to start again.
    server.crictl(&["stop", "--timeout", "0", container])?;
    wait_until("the kubelet starts it again", SOON, || {
        let path = "jsonpath={.status.containerStatuses[0].restartCount}";
        Ok(ns.kubectl(&["get", "pod", "seen", "-o", path])? == "1")
    })?;
    drop(server);
    ns.delete()
}

#[test]
fn a_clients_pod_lives_through_kubelets() -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut cluster = cluster()?;
    let (pod, started) = {
        let server = Server::start(&cluster)?;
        let (pod, container) = server.run("kept", "sleep 3600")?;
        let status = server.json(&["inspect", &container])?;
        // Its pod is to be there when the next server comes: this one's end must not remove it.
        let started = status["status"]["startedAt"].clone();
        let mut server = std::mem::ManuallyDrop::new(server);
        server.program.kill()?;
        server.program.wait()?;
        (pod, started)
    };
    let kubelet = format!("kubelet-{NODE}");
    let process = cluster.process(&kubelet)?.clone();
    process.signal(Signal::SIGKILL)?;
    ensure!(
        process.wait_gone(Duration::from_secs(10)),
        "{kubelet} does not die"
    );
    cluster.restart(&kubelet)?;
    let ns = Namespace::create(&cluster, "cri-round")?;
    // A pod that comes and goes: the kubelet's rounds and its cleanup have been through.
    ns.apply(&busybox_pod("passing", NODE, "sleep 3600"))?;
    ns.wait_ready("pod/passing", 90)?;
    ns.kubectl(&["delete", "pod", "passing", "--wait=true", "--timeout=60s"])?;
    let server = Server::start(&cluster)?;
    let containers = server.ids(&["ps", "-q", "--pod", &pod])?;
    ensure!(containers.len() == 1, "the pod is gone: {containers:?}");
    let status = server.json(&["inspect", &containers[0]])?;
    ensure!(
        status["status"]["startedAt"] == started,
        "it was started again"
    );
    drop(server);
    ns.delete()
}

#[test]
fn every_command_of_crictl_does_its_work() -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = cluster()?;
    let server = Server::start(&cluster)?;
    let version = server.crictl(&["version"])?;
    ensure!(version.contains("RuntimeApiVersion:  v1"), "{version}");
    let info = server.json(&["info"])?;
    ensure!(
        info["status"]["conditions"]
            .as_array()
            .is_some_and(|all| all.iter().all(|one| one["status"] == true)),
        "{info}"
    );
    let config = server.crictl(&["runtime-config"])?;
    ensure!(config.to_lowercase().contains("cgroupfs"), "{config}");
    server.crictl(&["pull", IMAGE])?;
    let images = server.json(&["images", "-o", "json"])?;
    ensure!(images.to_string().contains(IMAGE), "{images}");
    let image = server.json(&["inspecti", IMAGE])?;
    let id = image["status"]["id"].as_str().context("id")?.to_owned();
    ensure!(
        image["info"]["imageSpec"]["config"]["Cmd"] == json!(["sh"]),
        "{image}"
    );
    let usage = server.json(&["imagefsinfo"])?;
    ensure!(usage.to_string().contains("usedBytes"), "{usage}");

    let mut events = server
        .command(&["events"])
        .stdout(Stdio::piped())
        .spawn()
        .context("crictl events")?;
    let script = "echo begin; trap 'exit 7' TERM; while :; do sleep 0.1; done";
    let (pod, container) = server.run("worked", script)?;
    let told = events.stdout.take().context("its output")?;
    // Indented JSON, over many lines.
    let mut lines = BufReader::new(told).lines().map_while(Result::ok);
    ensure!(lines.any(|line| line.contains(&pod)), "events");
    events.kill()?;
    events.wait()?;

    let inspected = server.json(&["inspectp", &pod])?;
    ensure!(
        inspected["status"]["state"] == "SANDBOX_READY",
        "{inspected}"
    );
    let stats = server.json(&["stats", "-o", "json", "--id", &container])?;
    ensure!(
        stats["stats"][0]["memory"]["workingSetBytes"]["value"] != "0",
        "{stats}"
    );
    let stats = server.json(&["statsp", "-o", "json", "--id", &pod])?;
    ensure!(stats.to_string().contains(&pod), "{stats}");
    let described = server.crictl(&["metricdescs"])?;
    let measured = server.crictl(&["metricsp"])?;
    for name in ["container_memory_working_set_bytes", "container_processes"] {
        ensure!(described.contains(name), "metricdescs: {described}");
        ensure!(measured.contains(name), "metricsp: {measured}");
    }
    server.crictl(&["update", "--memory", "100000000", &container])?;
    let status = server.json(&["inspect", &container])?;
    let limit = &status["status"]["resources"]["linux"]["memoryLimitInBytes"];
    ensure!(*limit == "100000000", "{limit}");
    server.crictl(&["update", "--cpuset-cpus", "0", &container])?;
    let seen = server.crictl(&[
        "exec",
        &container,
        "grep",
        "Cpus_allowed_list",
        "/proc/self/status",
    ])?;
    ensure!(seen.trim_end().ends_with("\t0"), "{seen}");
    let refused = server.refused(&["update", "--cpuset-cpus", "0-", &container])?;
    ensure!(refused.contains("linux.resources.cpuset_cpus"), "{refused}");
    let refused = server.refused(&["checkpoint", "--export=/tmp/x.tar", &container])?;
    ensure!(refused.contains("checkpointing"), "{refused}");
    let refused = server.refused(&["update-runtime-config", "-p", "10.1.0.0/24"])?;
    ensure!(refused.contains("the kubelet runs"), "{refused}");

    server.crictl(&["stop", "--timeout", "10", &container])?;
    let status = server.json(&["inspect", &container])?;
    ensure!(status["status"]["exitCode"] == 7, "{status}");
    ensure!(
        server.crictl(&["logs", &container])?.starts_with("begin\n"),
        "logs"
    );
    server.crictl(&["rm", &container])?;
    ensure!(
        server.ids(&["ps", "-a", "-q", "--pod", &pod])?.is_empty(),
        "rm"
    );
    server.crictl(&["stopp", &pod])?;
    let inspected = server.json(&["inspectp", &pod])?;
    ensure!(
        inspected["status"]["state"] == "SANDBOX_NOTREADY",
        "{inspected}"
    );
    server.crictl(&["rmp", &pod])?;
    ensure!(!server.ids(&["pods", "-q"])?.contains(&pod), "rmp");
    // `run` is runp, create and start at once.
    let pod_file = server.write("once-pod.json", &server.pod("once"))?;
    let file = server.write("once.json", &container_config("echo ran"))?;
    let made = server.crictl(&["run", text(&file), text(&pod_file)])?;
    let made = made.trim().to_owned();
    wait_until("the container has run", SOON, || {
        Ok(server.crictl(&["logs", &made])? == "ran\n")
    })?;
    ensure!(server.crictl(&["images", "-q"])?.contains(&id), "images -q");
    Ok(())
}

#[test]
fn streams_of_crictl_go_both_ways() -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = cluster()?;
    let server = Server::start(&cluster)?;
    let (pod, container) = server.run("streamed", "echo up; nc -lk -p 8080 -e cat")?;
    for transport in ["spdy", "websocket"] {
        let mut exec = server
            .command(&["exec", "-i", "--transport", transport, &container, "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        exec.stdin
            .take()
            .context("its input")?
            .write_all(b"to and fro\n")?;
        let mut said = String::new();
        exec.stdout
            .take()
            .context("its output")?
            .read_to_string(&mut said)?;
        ensure!(
            exec.wait()?.success() && said == "to and fro\n",
            "{transport}: {said:?}"
        );
        let failed = server
            .command(&[
                "exec",
                "--transport",
                transport,
                &container,
                "sh",
                "-c",
                "exit 3",
            ])
            .output()?;
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        ensure!(
            !failed.status.success() && said.contains('3'),
            "{transport}: {said}"
        );

        let mut forward = server
            .command(&["port-forward", "--transport", transport, &pod, "18080:8080"])
            .stdout(Stdio::piped())
            .spawn()?;
        let told = forward.stdout.take().context("its output")?;
        let mut line = String::new();
        // Kept open: it goes on telling.
        let mut told = BufReader::new(told);
        told.read_line(&mut line)?;
        ensure!(line.contains("Forwarding from"), "{line}");
        // The container may not listen yet.
        let answered = wait_until("an answer through the forward", SOON, || {
            let through = cluster
                .node_place(NODE)
                .command("bash")
                .args([
                    "-c",
                    "exec 3<>/dev/tcp/127.0.0.1/18080; echo ping >&3; timeout 2 head -1 <&3",
                ])
                .output()?;
            Ok(through.stdout == b"ping\n")
        });
        forward.kill()?;
        forward.wait()?;
        answered.context(transport)?;
    }
    Ok(())
}

#[test]
fn ctr_tags_lists_and_removes() -> Result<()> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cluster = cluster()?;
    let server = Server::start(&cluster)?;
    server.crictl(&["pull", IMAGE])?;
    let image = server.json(&["inspecti", IMAGE])?;
    let id = image["status"]["id"].as_str().context("id")?.to_owned();
    let name = "registry.example/cri/tagged:1";
    server.ctr(&["images", "tag", "--force", &id, name])?;
    ensure!(
        server.ctr(&["images", "list", "-q"])?.contains(name),
        "list"
    );
    let tags = server.json(&["inspecti", &id])?;
    ensure!(
        tags["status"]["repoTags"].to_string().contains(name),
        "{tags}"
    );
    let program = cluster.outputs.ours("gantry-ctr");
    let config = e2e::step::output(Command::new(program).args(["containerd", "config", "dump"]))?;
    ensure!(config.contains("snapshotter = \"overlayfs\""), "{config}");
    Ok(())
}
