//! Exec, attach and port-forward: clients that send more than is read, and read less than is sent.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, layout};
use e2e::probe::{Namespace, busybox_pod, cluster, wait_until};

use crate::attacker::{Identity, long};
use crate::sound::Sound;

/// What each client has to say.
const INPUT_BYTES: u64 = 1 << 30;
/// A WebSocket's largest message.
const MESSAGE_BYTES: usize = 32 << 20;
/// What may lie between a client and a process that reads nothing: pipes and sockets of kubectl, API server and kubelet.
const ON_THE_WAY: u64 = 64 << 20;

/// Ends the child when the test does.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A client that sends without end, and what was taken of it so far.
struct Sender {
    name: String,
    taken: Arc<AtomicU64>,
    _client: Ended,
}

impl Sender {
    /// Starts the command, and writes `piece` to its stdin again and again.
    fn begin(
        name: &str,
        mut command: Command,
        head: Vec<u8>,
        piece: &Arc<Vec<u8>>,
    ) -> Result<Self> {
        let mut child = Ended(
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .with_context(|| format!("start {name}"))?,
        );
        let stdin = child.0.stdin.take().context("stdin is piped")?;
        let taken = Arc::new(AtomicU64::new(0));
        let (counted, piece) = (taken.clone(), piece.clone());
        std::thread::spawn(move || send(stdin, &head, &piece, &counted));
        Ok(Self {
            name: name.to_owned(),
            taken,
            _client: child,
        })
    }
}

/// Ends when all is sent, or the client does.
fn send(mut stdin: ChildStdin, head: &[u8], piece: &[u8], taken: &AtomicU64) {
    if stdin.write_all(head).is_err() {
        return;
    }
    while taken.load(Ordering::Relaxed) < INPUT_BYTES {
        for part in piece.chunks(32 * 1024) {
            if stdin.write_all(part).is_err() {
                return;
            }
            taken.fetch_add(part.len() as u64, Ordering::Relaxed);
        }
    }
}

/// A WebSocket to the kubelet itself, by TLS and by hand, as the API server's client.
fn websocket(cluster: &Cluster, path: &str) -> (Command, Vec<u8>) {
    let Identity::Certificate { certificate, key } =
        Identity::of_cluster(cluster, "apiserver-kubelet-client")
    else {
        unreachable!("the cluster made a certificate");
    };
    let mut command = cluster.control_plane().command("openssl");
    command
        .args(["s_client", "-quiet", "-connect"])
        .arg(format!("{}:10250", layout::node_ip(1)))
        .arg("-cert")
        .arg(certificate)
        .arg("-key")
        .arg(key);
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: node-1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
    );
    (command, head.into_bytes())
}

/// One message of a client's, masked with zeros, to channel 0.
fn message(bytes: usize) -> Vec<u8> {
    let mut frame = vec![0x82, 0xff];
    frame.extend((bytes as u64).to_be_bytes());
    frame.extend([0; 4]);
    frame.resize(frame.len() + bytes, 0);
    frame
}

/// kubectl exec, all the way by SPDY or by a WebSocket to the API server.
fn exec(ns: &Namespace<'_>, websockets: bool, arguments: &[&str]) -> Command {
    let mut command = ns.command();
    command
        .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets.to_string())
        .args(["exec", "-i", "deaf", "--"])
        .args(arguments);
    command
}

/// The kubelet stays small and answers, so long.
fn stays_sound(sound: &Sound<'_>, ns: &Namespace<'_>, time: Duration) -> Result<()> {
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        // The rhythm of the looks, not a wait for something.
        std::thread::sleep(Duration::from_secs(1));
        sound.check()?;
        let began = Instant::now();
        let said = ns.kubectl(&["exec", "deaf", "--", "echo", "here"])?;
        ensure!(said == "here\n", "exec said {said:?}");
        let took = began.elapsed();
        ensure!(took < Duration::from_secs(10), "exec took {took:?}");
    }
    Ok(())
}

#[test]
fn input_that_nobody_reads_is_held_back() -> Result<()> {
    let cluster = cluster()?;
    let sound = Sound::begin(&cluster, "node-1")?;
    let ns = Namespace::create(&cluster, "hostile-input")?;
    // Its own stdin is open and not read, either.
    let deaf = busybox_pod("deaf", "node-1", "sleep 3600");
    ns.apply(&deaf.replace("    command:", "    stdin: true\n    command:"))?;
    ns.wait_ready("pod/deaf", 60)?;
    let before = sound.resident()?;

    let sleep = ["sleep", "3600"];
    let zeros = Arc::new(vec![0; 1 << 20]);
    // As large as messages may be, and small ones.
    let messages = [
        Arc::new(message(MESSAGE_BYTES)),
        Arc::new(message(2).repeat(10_000)),
    ];
    let mut senders = vec![
        Sender::begin("exec by SPDY", exec(&ns, false, &sleep), vec![], &zeros)?,
        Sender::begin("exec by WebSocket", exec(&ns, true, &sleep), vec![], &zeros)?,
    ];
    let mut attach = ns.command();
    attach.args(["attach", "-i", "deaf"]);
    senders.push(Sender::begin("attach", attach, vec![], &zeros)?);
    let path = format!(
        "/exec/{}/deaf/main?command=sleep&command=3600&input=1&output=1",
        ns.name
    );
    let clients = if long() { 8 } else { 2 };
    for index in 0..clients {
        // Small ones cost processor time: two are enough to see that they cost no memory.
        let few = if index < 2 { 2 } else { 1 };
        for piece in &messages[..few] {
            let (command, head) = websocket(&cluster, &path);
            let name = format!("WebSocket {index} with pieces of {}", piece.len());
            senders.push(Sender::begin(&name, command, head, piece)?);
        }
    }
    // More than the pipe to its client holds: it has come as far as the kubelet.
    wait_until("all to send", Duration::from_secs(60), || {
        let sends = |sender: &Sender| sender.taken.load(Ordering::Relaxed) > 512 * 1024;
        Ok(senders.iter().all(sends))
    })?;
    stays_sound(
        &sound,
        &ns,
        Duration::from_secs(if long() { 60 } else { 15 }),
    )?;
    for sender in &senders {
        let taken = sender.taken.load(Ordering::Relaxed);
        ensure!(
            taken < ON_THE_WAY,
            "{} MiB were taken of {}",
            taken >> 20,
            sender.name
        );
    }
    drop(senders);
    stays_sound(&sound, &ns, Duration::from_secs(5))?;
    let after = sound.resident()?;
    ensure!(
        after < before + (64 << 20),
        "{} MiB before, {} MiB when all had gone",
        before >> 20,
        after >> 20
    );
    ns.delete()
}

#[test]
fn output_that_nobody_reads_is_held_back() -> Result<()> {
    let cluster = cluster()?;
    let sound = Sound::begin(&cluster, "node-1")?;
    let ns = Namespace::create(&cluster, "hostile-output")?;
    ns.apply(&busybox_pod("deaf", "node-1", "sleep 3600"))?;
    // A probe that says more than anybody wants to know, and a hook.
    ns.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: loud}}, spec: {{nodeName: node-1, terminationGracePeriodSeconds: 1, containers: \
         [{{name: main, image: '{BUSYBOX}', command: [sleep, '3600'], lifecycle: {{postStart: {{exec: {{command: {LOUD}}}}}}}, \
         readinessProbe: {{periodSeconds: 1, timeoutSeconds: 10, exec: {{command: {LOUD}}}}}}}]}}}}"
    ))?;
    ns.wait_ready("pod/deaf", 60)?;
    ns.wait_ready("pod/loud", 60)?;
    let mut clients = Vec::new();
    for index in 0..if long() { 16 } else { 4 } {
        let mut command = exec(&ns, index % 2 == 0, &["cat", "/dev/zero"]);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        clients.push(Ended(child));
    }
    stays_sound(
        &sound,
        &ns,
        Duration::from_secs(if long() { 60 } else { 15 }),
    )?;
    // What was held back is not lost: it comes when it is read.
    let stdout = clients[0].0.stdout.as_mut().context("stdout is piped")?;
    let mut some = vec![0; 16 << 20];
    stdout.read_exact(&mut some)?;
    ensure!(some.iter().all(|byte| *byte == 0), "something else came");
    drop(clients);
    let events = ns.kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"])?;
    ensure!(!events.contains("Unhealthy"), "{events}");
    ns.delete()
}

const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-2";
const LOUD: &str = "[dd, if=/dev/zero, bs=1M, count=100]";

#[test]
fn a_forwarded_port_that_is_not_read_holds_back_its_client() -> Result<()> {
    let cluster = cluster()?;
    let sound = Sound::begin(&cluster, "node-1")?;
    let ns = Namespace::create(&cluster, "hostile-forward")?;
    ns.apply(&busybox_pod(
        "deaf",
        "node-1",
        "nc -lk -p 81 -e sleep 3600 & exec nc -lk -p 80 -e cat",
    ))?;
    ns.wait_ready("pod/deaf", 60)?;
    // From the machine's own network: a listener on loopback that this test can reach.
    let mut command = Command::new(cluster.outputs.upstream("kubectl"));
    command
        .env("KUBECONFIG", cluster.layout.admin_kubeconfig())
        .args(["-n", &ns.name, "port-forward", "pod/deaf", ":80", ":81"])
        .stdout(Stdio::piped());
    let mut child = Ended(command.spawn()?);
    // Held to the end: kubectl writes a line a connection and would die of a closed pipe.
    let mut said = BufReader::new(child.0.stdout.take().context("stdout is piped")?);
    let mut ports = Vec::new();
    while ports.len() < 2 {
        let mut line = String::new();
        ensure!(said.read_line(&mut line)? > 0, "kubectl ended");
        let port = line
            .strip_prefix("Forwarding from 127.0.0.1:")
            .and_then(|rest| rest.split(' ').next());
        if let Some(port) = port {
            ports.push(port.parse::<u16>()?);
        }
    }
    let connect = |port: u16| -> Result<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_write_timeout(Some(Duration::from_secs(3)))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(stream)
    };
    // A connection beside it, that is answered as long as the slow one has room of its own.
    let mut quick = connect(ports[0])?;
    let mut slow = connect(ports[1])?;
    let piece = vec![0; 64 * 1024];
    for _ in 0..8 {
        slow.write_all(&piece)?;
    }
    quick.write_all(b"hello")?;
    let mut text = [0; 5];
    quick.read_exact(&mut text)?;
    ensure!(&text == b"hello", "the other connection said {text:?}");
    let mut taken = 0u64;
    while taken < INPUT_BYTES && slow.write_all(&piece).is_ok() {
        taken += piece.len() as u64;
    }
    ensure!(taken < ON_THE_WAY, "{} MiB were taken", taken >> 20);
    stays_sound(&sound, &ns, Duration::from_secs(5))?;
    drop((slow, quick, child, said));
    ns.delete()
}
