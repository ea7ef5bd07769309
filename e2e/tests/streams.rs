//! Promise: `kubectl logs -f`, `exec -it`, `attach`, `cp` and `port-forward` behave as with upstream.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::probe::{Namespace, busybox_pod, cluster, wait_until};

/// Ends the child when the test does.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn logs_are_followed_to_the_end() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "streams-logs")?;
    ns.apply(&busybox_pod(
        "counter",
        "node-1",
        "for i in $(seq 1 40); do echo line $i; sleep 0.1; done; echo over >&2",
    ))?;
    ns.wait_ready("pod/counter", 60)?;
    let followed = ns.kubectl(&["logs", "-f", "counter"])?;
    let expected: String = (1..=40)
        .map(|i| format!("line {i}\n"))
        .chain(["over\n".to_owned()])
        .collect();
    ensure!(followed == expected, "logs -f gave {followed:?}");
    ensure!(
        ns.kubectl(&["logs", "--tail=2", "counter"])? == "line 40\nover\n",
        "--tail"
    );
    let stamped = ns.kubectl(&["logs", "--timestamps", "--tail=1", "counter"])?;
    ensure!(
        stamped.starts_with("20") && stamped.ends_with(" over\n"),
        "--timestamps gave {stamped:?}"
    );
    ensure!(
        ns.kubectl(&["logs", "--limit-bytes=7", "counter"])? == "line 1\n",
        "--limit-bytes"
    );
    ns.delete()
}

#[test]
fn exec_carries_streams_and_the_exit_code() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "streams-exec")?;
    ns.apply(&busybox_pod("box", "node-2", "sleep 3600"))?;
    ns.wait_ready("pod/box", 60)?;

    let out = ns
        .command()
        .args([
            "exec",
            "box",
            "--",
            "sh",
            "-c",
            "echo out; echo err >&2; exit 7",
        ])
        .output()?;
    ensure!(
        out.status.code() == Some(7),
        "exit code {:?}",
        out.status.code()
    );
    ensure!(
        out.stdout == b"out\n",
        "stdout {:?}",
        String::from_utf8_lossy(&out.stdout)
    );
    ensure!(
        String::from_utf8_lossy(&out.stderr).starts_with("err\n"),
        "stderr {:?}",
        String::from_utf8_lossy(&out.stderr)
    );

    // A megabyte in and out again: nothing lost, the end of input seen.
    let payload: Vec<u8> = (0..1 << 20)
        .map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut child = ns
        .command()
        .args(["exec", "-i", "box", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("stdin is piped")?;
    let sent = payload.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent));
    let mut echoed = Vec::new();
    child
        .stdout
        .take()
        .context("stdout is piped")?
        .read_to_end(&mut echoed)?;
    writer.join().expect("the writer does not panic")?;
    ensure!(
        child.wait()?.success() && echoed == payload,
        "cat gave back {} of {} bytes",
        echoed.len(),
        payload.len()
    );
    ns.delete()
}

#[test]
fn exec_it_is_a_real_terminal_that_resizes() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "streams-tty")?;
    ns.apply(&busybox_pod("box", "node-1", "sleep 3600"))?;
    ns.wait_ready("pod/box", 60)?;

    let size = nix::pty::Winsize {
        ws_row: 33,
        ws_col: 101,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = nix::pty::openpty(&size, None)?;
    let slave: OwnedFd = pty.slave;
    let mut command = ns.command();
    command.args(["exec", "-it", "box", "--", "sh"]);
    command
        .stdin(Stdio::from(slave.try_clone()?))
        .stdout(Stdio::from(slave.try_clone()?))
        .stderr(Stdio::from(slave.try_clone()?));
    // SAFETY: setsid and ioctl are async-signal-safe; descriptor 0 is the terminal.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            if libc_set_controlling_terminal(0) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let child = Ended(command.spawn()?);
    drop((command, slave));
    let mut terminal = File::from(pty.master);
    let mut screen = Screen::watch(terminal.try_clone()?);

    screen.wait_for("/ #")?;
    terminal.write_all(b"tty; stty size\n")?;
    screen.wait_for("/dev/pts/0")?;
    screen.wait_for("33 101")?;
    let size = nix::pty::Winsize {
        ws_row: 44,
        ws_col: 132,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the descriptor is open and the struct lives through the call.
    ensure!(
        unsafe { set_window_size(terminal.as_raw_fd(), &size) } == 0,
        "resize"
    );
    wait_until("the new size to arrive", Duration::from_secs(10), || {
        terminal.write_all(b"stty size\n")?;
        std::thread::sleep(Duration::from_millis(300));
        Ok(screen.text().contains("44 132"))
    })?;
    // Interrupts reach the foreground program, not kubectl.
    terminal.write_all(b"sleep 100\n")?;
    std::thread::sleep(Duration::from_millis(500));
    terminal.write_all(&[3])?;
    terminal.write_all(b"echo interrupted=$?\n")?;
    screen.wait_for("interrupted=130")?;
    terminal.write_all(b"exit 5\n")?;
    let mut child = child;
    wait_until("the shell's end", Duration::from_secs(10), || {
        Ok(child.0.try_wait()?.is_some())
    })?;
    ensure!(child.0.wait()?.code() == Some(5), "exit code");
    ns.delete()
}

unsafe extern "C" {
    fn ioctl(fd: i32, request: u64, ...) -> i32;
}

const TIOCSCTTY: u64 = 0x540E;
const TIOCSWINSZ: u64 = 0x5414;

unsafe fn libc_set_controlling_terminal(fd: i32) -> i32 {
    // SAFETY: the caller passes an open terminal.
    unsafe { ioctl(fd, TIOCSCTTY, 0) }
}

unsafe fn set_window_size(fd: i32, size: &nix::pty::Winsize) -> i32 {
    // SAFETY: the caller passes an open terminal.
    unsafe { ioctl(fd, TIOCSWINSZ, size) }
}

/// What a terminal showed so far, read by a thread of its own.
struct Screen {
    text: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Screen {
    fn watch(mut terminal: File) -> Self {
        let text = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
        let shown = text.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = terminal.read(&mut buffer) {
                shown
                    .lock()
                    .expect("no reader panics")
                    .push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        Self { text }
    }

    fn text(&self) -> String {
        self.text.lock().expect("no reader panics").clone()
    }

    fn wait_for(&mut self, words: &str) -> Result<()> {
        wait_until(
            &format!("the terminal to show {words:?}"),
            Duration::from_secs(10),
            || {
                let text = self.text();
                ensure!(text.contains(words), "the terminal shows {text:?}");
                Ok(true)
            },
        )
    }
}

#[test]
fn attach_reaches_the_containers_own_streams() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "streams-attach")?;
    let pod = busybox_pod(
        "box",
        "node-1",
        "while read line; do echo got $line; done; echo end of input",
    );
    ns.apply(&pod.replace(
        "    command:",
        "    stdin: true\n    stdinOnce: true\n    command:",
    ))?;
    ns.wait_ready("pod/box", 60)?;
    let mut child = Ended(
        ns.command()
            .args(["attach", "-i", "box"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?,
    );
    let mut stdin = child.0.stdin.take().context("stdin is piped")?;
    let mut lines = BufReader::new(child.0.stdout.take().context("stdout is piped")?).lines();
    // A line sent before the attachment stands is kept by kubectl, not lost.
    stdin.write_all(b"one\n")?;
    ensure!(lines.next().context("no line")?? == "got one", "first line");
    stdin.write_all(b"two\n")?;
    ensure!(
        lines.next().context("no line")?? == "got two",
        "second line"
    );
    drop(stdin);
    ensure!(
        lines.next().context("no line")?? == "end of input",
        "the end of input reaches the container"
    );
    ns.kubectl(&[
        "wait",
        "--for=jsonpath={.status.phase}=Succeeded",
        "pod/box",
        "--timeout=30s",
    ])?;
    ns.delete()
}

#[test]
fn an_attachment_ends_with_the_clients_input_where_the_container_keeps_its_own() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "streams-detach")?;
    for websockets in ["true", "false"] {
        let name = format!("open-{websockets}");
        let mut command = ns.command();
        command
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets)
            .args(["run", &name, "--restart=Never", "--attach", "--stdin"])
            .args(["--leave-stdin-open", "--pod-running-timeout=1m"])
            .arg("--image=registry.k8s.io/e2e-test-images/busybox:1.37.0-2")
            .args(["--", "sh", "-c", "cat && echo stdin closed"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = Ended(command.spawn()?);
        let mut stdin = child.0.stdin.take().context("stdin is piped")?;
        stdin.write_all(b"abcd1234\n")?;
        drop(stdin);
        wait_until("kubectl's end", Duration::from_secs(60), || {
            Ok(child.0.try_wait()?.is_some())
        })?;
        ensure!(child.0.wait()?.success(), "kubectl run failed");
        // The container runs on, has read what was sent, and can be attached to again.
        let read = |words: &str| {
            wait_until("the container to say it", Duration::from_secs(20), || {
                let logs = ns.kubectl(&["logs", &name])?;
                ensure!(!logs.contains("stdin closed"), "its stdin was closed");
                Ok(logs.contains(words))
            })
        };
        read("abcd1234")?;
        let mut attach = ns.command();
        attach
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets)
            .args(["attach", "-i", &name])
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        let mut child = Ended(attach.spawn()?);
        let mut stdin = child.0.stdin.take().context("stdin is piped")?;
        stdin.write_all(b"again\n")?;
        drop(stdin);
        wait_until("kubectl's end", Duration::from_secs(30), || {
            Ok(child.0.try_wait()?.is_some())
        })?;
        read("again")?;
        let phase = ns.kubectl(&["get", "pod", &name, "-o", "jsonpath={.status.phase}"])?;
        ensure!(phase == "Running", "{name} is {phase}");
    }
    ns.delete()
}

#[test]
fn cp_copies_both_ways() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "streams-cp")?;
    ns.apply(&busybox_pod("box", "node-2", "sleep 3600"))?;
    ns.wait_ready("pod/box", 60)?;
    let dir = tempfile::tempdir()?;
    let payload: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(dir.path().join("there"), &payload)?;
    let (there, back) = (dir.path().join("there"), dir.path().join("back"));
    ns.kubectl(&["cp", &there.to_string_lossy(), "box:/tmp/there"])?;
    ns.kubectl(&["cp", "box:/tmp/there", &back.to_string_lossy()])?;
    ensure!(std::fs::read(back)? == payload, "the copy differs");
    ns.delete()
}

#[test]
fn port_forward_carries_connections() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "streams-forward")?;
    ns.kubectl(&[
        "run",
        "web",
        "--image=registry.k8s.io/e2e-test-images/nginx:1.28.0-2",
    ])?;
    ns.wait_ready("pod/web", 90)?;
    // From the machine's own network: a listener on loopback that this test can reach.
    let mut command = std::process::Command::new(cluster.outputs.upstream("kubectl"));
    command
        .env("KUBECONFIG", cluster.layout.admin_kubeconfig())
        .args(["-n", &ns.name, "port-forward", "pod/web", ":80"]);
    let mut child = Ended(command.stdout(Stdio::piped()).spawn()?);
    let mut line = String::new();
    // Held to the end: kubectl writes a line a connection and would die of a closed pipe.
    let mut said = BufReader::new(child.0.stdout.take().context("stdout is piped")?);
    said.read_line(&mut line)?;
    let port: u16 = line
        .split("127.0.0.1:")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .and_then(|port| port.parse().ok())
        .with_context(|| format!("kubectl said {line:?}"))?;
    for _ in 0..3 {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET / HTTP/1.0\r\nHost: web\r\n\r\n")?;
        // Read up to the page, not to the end: kubectl may reset the connection once nginx closed it.
        let mut page = String::new();
        let mut buffer = [0; 4096];
        while !page.contains("Welcome to nginx!") {
            let n = stream.read(&mut buffer)?;
            ensure!(n > 0, "port-forward ended after {page:?}");
            page.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    }
    ns.delete()
}
