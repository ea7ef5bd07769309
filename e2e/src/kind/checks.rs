//! What people do with a kind cluster, done once each on one that is up. The first that does not work ends the run.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{CLUSTER, Kind};
use crate::conformance;
use crate::images;
use crate::step::output;

const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.66.1";
const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-2";
/// How often a worker's kubelet is restarted.
const RESTARTS: u32 = 10;
const PATIENCE: Duration = Duration::from_secs(60);

/// Three servers on the first worker, and a client on the second.
const PODS: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      nodeSelector: {kubernetes.io/hostname: SERVER_NODE}
      containers:
      - name: web
        image: AGNHOST
        imagePullPolicy: Never
        args: [netexec, --http-port=8080]
        readinessProbe: {httpGet: {path: /hostname, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  nodeSelector: {kubernetes.io/hostname: CLIENT_NODE}
  containers:
  - name: client
    image: BUSYBOX
    command: [sh, -c, 'echo hello; exec sleep 36000']
";

/// A claim of the default class, and who writes to it.
const CLAIM: &str = "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: writer}
spec:
  containers:
  - name: writer
    image: BUSYBOX
    command: [sh, -c, 'echo kept > /data/file; exec sleep 36000']
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
";

type Check = fn(&Kind, &Nodes) -> Result<String>;

const CHECKS: &[(&str, Check)] = &[
    ("nodes and their runtime", nodes_are_ours),
    ("kind load image-archive", load_image),
    ("a Deployment, its Service from another node", service),
    ("kubectl logs, exec and port-forward", streams),
    ("a claim of the default class", claim),
    ("crictl on a node", crictl),
    ("systemctl restart kubelet", restart_kubelet),
    ("kind export logs", export_logs),
];

/// The nodes by their part in the checks.
struct Nodes {
    all: Vec<String>,
    server: String,
    client: String,
}

/// Runs all of them.
///
/// # Errors
/// One does not work.
pub fn run(kind: &Kind) -> Result<()> {
    let all = kind.nodes()?;
    ensure!(
        all.len() >= 3,
        "the checks need two workers, there are the nodes {all:?}"
    );
    let nodes = Nodes {
        server: all[1].clone(),
        client: all[2].clone(),
        all,
    };
    for (name, check) in CHECKS {
        let step = kind.steps.start(&format!("kind: {name}"), None)?;
        let said = check(kind, &nodes).with_context(|| format!("kind: {name}"))?;
        step.done();
        println!("      {said}");
    }
    Ok(())
}

/// Upstream's fast specs, with the images of every cluster loaded first.
///
/// # Errors
/// A spec did not pass.
pub fn smoke(kind: &Kind) -> Result<()> {
    let step = kind.steps.start("kind: the suite's images", None)?;
    let names = images::names(images::BASE)?;
    let layouts = names
        .into_iter()
        .map(|name| (name.clone(), images::layout(&kind.outputs, &name)))
        .collect();
    let archive = kind.dir().join("suite.tar");
    images::archive::write(&layouts, &archive)?;
    load(kind, &archive)?;
    fs::remove_file(&archive)?;
    step.done();
    let dir = kind.dir().join("smoke");
    let (passed, others) =
        conformance::smoke_at(&kind.steps, &kind.outputs, &kind.kubeconfig(), &dir)?;
    println!("      {passed} of upstream's fast specs passed");
    ensure!(
        others.is_empty(),
        "did not pass:\n{}\nsee {}",
        others.join("\n"),
        dir.display()
    );
    Ok(())
}

fn load(kind: &Kind, archive: &Path) -> Result<()> {
    output(
        kind.kind()
            .args(["load", "image-archive", "--name", CLUSTER])
            .arg(archive),
    )
    .map(drop)
}

fn get(kind: &Kind, what: &[&str]) -> Result<Value> {
    let words: Vec<&str> = ["get", "-o", "json"]
        .into_iter()
        .chain(what.iter().copied())
        .collect();
    Ok(serde_json::from_str(&kind.kubectl_output(&words)?)?)
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

fn apply(kind: &Kind, text: &str) -> Result<()> {
    let mut child = kind
        .kubectl(&["apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    child
        .stdin
        .take()
        .expect("stdin is piped")
        .write_all(text.as_bytes())?;
    ensure!(child.wait()?.success(), "kubectl apply failed");
    Ok(())
}

/// Asks again until it works, for a while.
fn eventually<T>(mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(300)),
        }
    }
}

fn nodes_are_ours(kind: &Kind, nodes: &Nodes) -> Result<String> {
    let listed = get(kind, &["nodes"])?;
    ensure!(
        items(&listed).len() == nodes.all.len(),
        "another number of nodes"
    );
    let mut versions = Vec::new();
    for node in items(&listed) {
        let info = &node["status"]["nodeInfo"];
        let runtime = info["containerRuntimeVersion"].as_str().unwrap_or_default();
        ensure!(runtime.starts_with("youki://"), "the runtime is {runtime}");
        versions.push(format!(
            "{} {}",
            info["kubeletVersion"].as_str().unwrap_or_default(),
            runtime
        ));
    }
    versions.dedup();
    // Whoever waits for a node waits for its pods, too.
    let wait = [
        "wait",
        "--for=condition=Ready",
        "pods",
        "--all",
        "-A",
        "--timeout=120s",
    ];
    kind.kubectl_output(&wait)?;
    Ok(format!(
        "{} nodes: {}",
        nodes.all.len(),
        versions.join(", ")
    ))
}

fn load_image(kind: &Kind, nodes: &Nodes) -> Result<String> {
    let archive = kind.dir().join("images/agnhost.tar");
    let layout = images::layout(&kind.outputs, AGNHOST);
    let bytes = images::archive::write(&BTreeMap::from([(AGNHOST.to_owned(), layout)]), &archive)?;
    let started = Instant::now();
    load(kind, &archive)?;
    Ok(format!(
        "{} MiB to {} nodes in {:.1} s",
        bytes >> 20,
        nodes.all.len(),
        started.elapsed().as_secs_f64()
    ))
}

fn service(kind: &Kind, nodes: &Nodes) -> Result<String> {
    let text = PODS
        .replace("AGNHOST", AGNHOST)
        .replace("BUSYBOX", BUSYBOX)
        .replace("SERVER_NODE", &nodes.server)
        .replace("CLIENT_NODE", &nodes.client);
    apply(kind, &text)?;
    let started = Instant::now();
    kind.kubectl_output(&["rollout", "status", "deployment/web", "--timeout=120s"])?;
    let wait = [
        "wait",
        "--for=condition=Ready",
        "pod/client",
        "--timeout=120s",
    ];
    kind.kubectl_output(&wait)?;
    let ready = started.elapsed().as_secs_f64();
    let mut answered: BTreeMap<String, u32> = BTreeMap::new();
    let name = "http://web.default.svc.cluster.local/hostname";
    for _ in 0..12 {
        // The first may come before kube-proxy on that node has heard of the Service.
        let host = eventually(|| {
            let ask = ["exec", "client", "--", "wget", "-qO-", "-T", "5", name];
            kind.kubectl_output(&ask)
        })?;
        *answered.entry(host).or_default() += 1;
    }
    ensure!(
        answered.len() > 1,
        "one server answered everything: {answered:?}"
    );
    for node in &nodes.all {
        let url = format!("http://{}:30080/hostname", node_address(kind, node)?);
        eventually(|| output(&mut kind.on_node(node, &["curl", "-sf", "-m", "5", &url])))
            .with_context(|| format!("the node port on {node}"))?;
    }
    Ok(format!(
        "Ready after {ready:.1} s; {} servers answered by name, every node's port works",
        answered.len()
    ))
}

fn node_address(kind: &Kind, node: &str) -> Result<String> {
    let path = r#"jsonpath={.status.addresses[?(@.type=="InternalIP")].address}"#;
    kind.kubectl_output(&["get", "node", node, "-o", path])
}

fn streams(kind: &Kind, _: &Nodes) -> Result<String> {
    let logs = kind.kubectl_output(&["logs", "client"])?;
    ensure!(logs == "hello\n", "the log is {logs:?}");
    let said = kind.kubectl_output(&["exec", "client", "--", "sh", "-c", "echo out; exit 0"])?;
    ensure!(said == "out\n", "exec said {said:?}");
    // Port 0: kubectl chooses one and says which.
    let mut forward = kind
        .kubectl(&["port-forward", "service/web", "0:80"])
        .stdout(Stdio::piped())
        .spawn()?;
    let answer = forwarded(&mut forward);
    let _ = forward.kill();
    let _ = forward.wait();
    let answer = answer?;
    ensure!(answer.starts_with("web-"), "port-forward said {answer:?}");
    Ok("logs, exec and port-forward answered".to_owned())
}

fn forwarded(forward: &mut std::process::Child) -> Result<String> {
    use std::io::{BufRead as _, BufReader};
    let said = forward.stdout.take().context("its output")?;
    let mut line = String::new();
    // Kept open: kubectl ends when it has nobody to tell of its other addresses.
    let mut said = BufReader::new(said);
    said.read_line(&mut line)?;
    // `Forwarding from 127.0.0.1:PORT -> 8080`
    let address = line
        .split(' ')
        .nth(2)
        .with_context(|| format!("kubectl said {line:?}"))?;
    output(std::process::Command::new("curl").args([
        "-sf",
        "-m",
        "10",
        &format!("http://{address}/hostname"),
    ]))
}

fn claim(kind: &Kind, _: &Nodes) -> Result<String> {
    apply(kind, &CLAIM.replace("BUSYBOX", BUSYBOX))?;
    let started = Instant::now();
    let wait = [
        "wait",
        "--for=condition=Ready",
        "pod/writer",
        "--timeout=120s",
    ];
    kind.kubectl_output(&wait)?;
    eventually(|| {
        let read = kind.kubectl_output(&["exec", "writer", "--", "cat", "/data/file"])?;
        ensure!(read == "kept\n", "the file holds {read:?}");
        Ok(())
    })?;
    kind.kubectl_output(&["delete", "pod/writer", "pvc/data", "--wait", "--now"])?;
    eventually(|| {
        let volumes = get(kind, &["pv"])?;
        ensure!(items(&volumes).is_empty(), "the volume stays");
        Ok(())
    })?;
    Ok(format!(
        "bound, written and removed in {:.1} s",
        started.elapsed().as_secs_f64()
    ))
}

fn crictl(kind: &Kind, nodes: &Nodes) -> Result<String> {
    let pods = output(&mut kind.on_node(&nodes.server, &["crictl", "pods", "-o", "json"]))?;
    let pods: Value = serde_json::from_str(&pods)?;
    let number = pods["items"].as_array().map_or(0, Vec::len);
    ensure!(number >= 3, "crictl knows {number} pods");
    for words in [
        &["crictl", "ps"] as &[&str],
        &["crictl", "images"],
        &["crictl", "info"],
    ] {
        output(&mut kind.on_node(&nodes.server, words))?;
    }
    Ok(format!("crictl knows {number} pods"))
}

/// Of every container on the node: its id, and how often its like was started anew.
fn containers(kind: &Kind, node: &str) -> Result<BTreeMap<String, u64>> {
    let selector = format!("spec.nodeName={node}");
    let pods = get(kind, &["pods", "-A", "--field-selector", &selector])?;
    let statuses = items(&pods)
        .iter()
        .filter_map(|pod| pod["status"]["containerStatuses"].as_array())
        .flatten();
    Ok(statuses
        .map(|status| {
            let id = status["containerID"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            (id, status["restartCount"].as_u64().unwrap_or_default())
        })
        .collect())
}

/// With the kill mode of upstream's packaged unit, which names none: systemd ends everything in the unit's cgroup.
fn restart_kubelet(kind: &Kind, nodes: &Nodes) -> Result<String> {
    let node = &nodes.server;
    let before = containers(kind, node)?;
    ensure!(before.len() >= 4, "{node} has few containers: {before:?}");
    let script = "mkdir -p /etc/systemd/system/kubelet.service.d && \
                  printf '[Service]\\nKillMode=control-group\\n' > /etc/systemd/system/kubelet.service.d/99-killmode.conf && systemctl daemon-reload";
    output(&mut kind.on_node(node, &["sh", "-c", script]))?;
    let mode = output(&mut kind.on_node(
        node,
        &["systemctl", "show", "--property=KillMode", "kubelet"],
    ))?;
    ensure!(mode.trim() == "KillMode=control-group", "{mode}");
    let started = Instant::now();
    for number in 1..=RESTARTS {
        output(&mut kind.on_node(node, &["systemctl", "restart", "kubelet"]))?;
        let healthy = ["curl", "-sf", "-m", "5", "http://127.0.0.1:10248/healthz"];
        eventually(|| output(&mut kind.on_node(node, &healthy)))
            .with_context(|| format!("the kubelet after restart {number}"))?;
    }
    let taken = started.elapsed().as_secs_f64();
    let wait = [
        "wait",
        "--for=condition=Ready",
        "pods",
        "-l",
        "app=web",
        "--timeout=60s",
    ];
    kind.kubectl_output(&wait)?;
    let after = containers(kind, node)?;
    ensure!(
        before == after,
        "containers were started anew: {before:?}, then {after:?}"
    );
    Ok(format!(
        "{RESTARTS} times in {taken:.1} s with KillMode=control-group: {} containers, none started anew",
        after.len()
    ))
}

fn export_logs(kind: &Kind, nodes: &Nodes) -> Result<String> {
    let to = kind.dir().join("exported");
    kind.export_logs(&to)?;
    for node in &nodes.all {
        for file in ["kubelet.log", "containerd.log", "images.log"] {
            let path = to.join(node).join(file);
            let length = fs::metadata(&path).map_or(0, |data| data.len());
            if length == 0 {
                bail!("{} is empty or not there", path.display());
            }
        }
    }
    let words = "in the kubelet's log of the first worker";
    let log = fs::read_to_string(to.join(&nodes.server).join("kubelet.log"))?;
    let panics = log
        .lines()
        .filter(|line| line.contains("panicked at"))
        .count();
    ensure!(panics == 0, "{panics} panics {words}");
    Ok(format!(
        "{} nodes' logs in {}",
        nodes.all.len(),
        to.display()
    ))
}
