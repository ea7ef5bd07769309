//! The kubelet's port: who is answered what, and that it goes on answering the API server whatever strangers do.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, layout};
use e2e::probe::{Namespace, busybox_pod, cluster};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::attacker::{
    Answer, ELSEWHERE, Identity, ask, idle_connections, long, niced, raise_descriptor_limit,
};
use crate::sound::Sound;

/// Everything the port serves, one of each kind, and one it does not serve.
const PATHS: &[(&str, &str)] = &[
    ("GET", "/pods"),
    ("GET", "/runningpods/"),
    ("GET", "/metrics"),
    ("GET", "/metrics/cadvisor"),
    ("GET", "/metrics/resource"),
    ("GET", "/metrics/probes"),
    ("GET", "/stats/summary"),
    ("GET", "/configz"),
    ("GET", "/flagz"),
    ("GET", "/statusz"),
    ("GET", "/logs/"),
    ("GET", "/containerLogs/kube-system/none/none"),
    ("GET", "/debug/pprof/profile"),
    ("POST", "/exec/kube-system/none/none?command=id&output=1"),
    ("POST", "/attach/kube-system/none/none?output=1"),
    ("POST", "/portForward/kube-system/none"),
    ("POST", "/run/kube-system/none/none?cmd=id"),
    ("POST", "/checkpoint/kube-system/none/none"),
    ("PUT", "/debug/flags/v"),
    ("GET", "/no/such/path"),
];

fn url(path: &str) -> String {
    format!("https://{}:10250{path}", layout::node_ip(1))
}

#[test]
fn nobody_gets_an_answer_before_he_is_known_and_allowed() -> Result<()> {
    let cluster = cluster()?;
    let sound = Sound::begin(&cluster, "node-1")?;
    let ns = Namespace::create(&cluster, "hostile-server")?;
    let who: Vec<(&str, Identity, u16)> = vec![
        ("nobody", Identity::Nobody, 401),
        ("a junk token", Identity::Token("junk".to_owned()), 401),
        (
            "a token of three parts",
            Identity::Token("eyJhbGciOiJub25lIn0.eyJzdWIiOiJzeXN0ZW06YWRtaW4ifQ.".to_owned()),
            401,
        ),
        ("another node", Identity::of_node(&cluster, "node-2")?, 403),
        (
            "a service account",
            Identity::of_service_account(&cluster, &ns.name)?,
            403,
        ),
        (
            "the front proxy's certificate",
            Identity::of_cluster(&cluster, "front-proxy-client"),
            401,
        ),
    ];
    for (name, identity, expected) in &who {
        for (method, path) in PATHS {
            let (code, body) = ask(&cluster, identity, method, &url(path))?;
            ensure!(
                code == Some(*expected),
                "{name} asks {method} {path}: {code:?}, {expected} is right\n{body}"
            );
            ensure!(body.len() < 1024, "{name} is told {} bytes", body.len());
        }
    }
    let api_server = Identity::of_cluster(&cluster, "apiserver-kubelet-client");
    let (code, _) = ask(&cluster, &api_server, "GET", &url("/pods"))?;
    ensure!(code == Some(200), "the API server's client: {code:?}");
    sound.check()?;
    ns.delete()
}

#[test]
fn a_pod_gets_no_answer_from_its_node() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "hostile-pod-asks")?;
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: asks}}\nspec:\n  nodeName: node-1\n  terminationGracePeriodSeconds: 1\n  \
         containers: [{{name: c, image: '{AGNHOST}', command: [sleep, '3600']}}]\n"
    ))?;
    ns.wait_ready("pod/asks", 60)?;
    let token = "Authorization: Bearer $(cat /var/run/secrets/kubernetes.io/serviceaccount/token)";
    for (header, path, expected) in [
        ("X-Nothing: here", "/pods", "401"),
        (token, "/pods", "403"),
        (token, "/metrics", "403"),
        ("Authorization: Bearer junk", "/logs/", "401"),
        // What the front proxy may say of a user, nobody else may.
        ("X-Remote-User: kubernetes-admin", "/pods", "401"),
    ] {
        let script = format!(
            "curl -sk -o /dev/null -w '%{{http_code}}' -m 10 -H \"{header}\" {}",
            url(path)
        );
        let code = ns.kubectl(&["exec", "asks", "--", "sh", "-c", &script])?;
        ensure!(
            code == expected,
            "{header} {path}: {code}, {expected} is right"
        );
    }
    ns.delete()
}

const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.66.1";

/// How long `kubectl exec` takes, from the outside in.
///
/// # Errors
/// It fails.
pub fn exec_time(ns: &Namespace<'_>, pod: &str) -> Result<Duration> {
    // What measures is not to wait for a processor itself: the attackers have this machine, too.
    let mut command = niced(-10, &ns.command());
    command.args(["exec", pod, "--", "echo", "here"]);
    let started = Instant::now();
    let said = e2e::step::output(&mut command)?;
    ensure!(said == "here\n", "exec said {said:?}");
    Ok(started.elapsed())
}

#[test]
fn silent_connections_close_no_port() -> Result<()> {
    raise_descriptor_limit()?;
    let cluster = cluster()?;
    let sound = Sound::begin(&cluster, "node-1")?;
    let ns = Namespace::create(&cluster, "hostile-idle")?;
    ns.apply(&busybox_pod("box", "node-1", "sleep 3600"))?;
    ns.wait_ready("pod/box", 60)?;
    let kubelet: SocketAddr = (layout::node_ip(1), 10250).into();
    let held = idle_connections(&cluster, kubelet, 4500)?;
    for _ in 0..5 {
        let took = exec_time(&ns, "box")?;
        ensure!(
            took < Duration::from_secs(5),
            "exec took {took:?} beside {} silent connections",
            held.len()
        );
    }
    sound.check()?;
    drop(held);
    ns.delete()
}

/// Requests with junk tokens, each on a connection of its own, until it is dropped.
pub struct Flood(Vec<Child>);

/// How a client of a flood asks.
#[derive(Clone, Copy)]
pub enum Pace {
    /// A process for each request, one after the other.
    Breathless,
    /// So many requests a second, by one process: what it costs to start programs is not the node's.
    ASecond(u32),
}

impl Flood {
    /// # Errors
    /// A client cannot be started.
    pub fn begin(cluster: &Cluster, clients: usize, pace: Pace) -> Result<Self> {
        let pods = url("/pods");
        let script = match pace {
            Pace::Breathless => format!(
                "i=0; while :; do i=$((i+1)); curl -sk -o /dev/null -m 5 -H \"Authorization: Bearer junk-$$-$i\" {pods}; done"
            ),
            Pace::ASecond(requests) => format!(
                "i=0; while :; do n=0; while [ $n -lt 1000 ]; do i=$((i+1)); n=$((n+1)); \
                 printf 'insecure\nhttp1.1\nsilent\nmax-time=5\noutput=/dev/null\nurl=\"%s\"\nheader=\"Connection: close\"\n\
                 header=\"Authorization: Bearer junk-%s-%s\"\nnext\n' {pods} $$ $i; done | curl --rate {requests}/s --config -; done"
            ),
        };
        (0..clients)
            .map(|_| {
                cluster
                    .control_plane()
                    .command(ELSEWHERE[0])
                    .args(&ELSEWHERE[1..])
                    .args(["sh", "-c", &script])
                    .process_group(0)
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .context("start a client")
            })
            .collect::<Result<_>>()
            .map(Self)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // What it runs goes with it.
            if let Ok(group) = i32::try_from(child.id()) {
                let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            }
            let _ = child.wait();
        }
    }
}

#[test]
fn junk_tokens_make_no_node_unready() -> Result<()> {
    let cluster = cluster()?;
    let sound = Sound::begin(&cluster, "node-1")?;
    let ns = Namespace::create(&cluster, "hostile-junk")?;
    ns.apply(&busybox_pod("box", "node-1", "sleep 3600"))?;
    ns.wait_ready("pod/box", 60)?;
    // Other tests run beside the short form: it leaves them a processor.
    let (seconds, clients) = if long() { (180, 24) } else { (45, 8) };
    let flood = Flood::begin(&cluster, clients, Pace::Breathless)?;
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < deadline {
        // The rhythm of the looks, not a wait for something.
        std::thread::sleep(Duration::from_secs(3));
        sound.check()?;
        let took = exec_time(&ns, "box")?;
        ensure!(took < Duration::from_secs(10), "exec took {took:?}");
    }
    drop(flood);
    sound.check()?;
    ns.delete()
}

#[test]
fn long_headers_and_tokens_cost_nothing() -> Result<()> {
    let cluster = cluster()?;
    let sound = Sound::begin(&cluster, "node-1")?;
    let before = sound.resident()?;
    for size in [1 << 10, 8 << 10, 15 << 10, 100 << 10] {
        for index in 0..50 {
            let token = format!("{index:04}{}", "x".repeat(size));
            let code = ask_with_long_token(&cluster, &token)?;
            ensure!(
                matches!(code, None | Some(400 | 401 | 431)),
                "a token of {size} bytes: {code:?}"
            );
        }
    }
    let grown = sound.resident()?.saturating_sub(before);
    ensure!(grown < 50 << 20, "{} MiB more than before", grown >> 20);
    sound.check()
}

/// An argument holds 128 KiB at most: a longer header comes by a file.
fn ask_with_long_token(cluster: &Cluster, token: &str) -> Result<Answer> {
    let header = tempfile::NamedTempFile::new()?;
    std::fs::write(header.path(), format!("Authorization: Bearer {token}\n"))?;
    let mut command: Command = cluster.control_plane().command("curl");
    let out = command
        .args([
            "--silent",
            "--insecure",
            "--http1.1",
            "--max-time",
            "10",
            "--output",
            "/dev/null",
        ])
        .args(["--write-out", "%{http_code}", "--header"])
        .arg(format!("@{}", header.path().display()))
        .arg(url("/pods"))
        .output()?;
    let code: u16 = String::from_utf8_lossy(&out.stdout)
        .trim()
        .parse()
        .unwrap_or(0);
    Ok((code != 0).then_some(code))
}
