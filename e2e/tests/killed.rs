//! Promise: no crash of ours hurts a container or a connection: `kill -9` of the kubelet at any moment, of kube-proxy, of a leader.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::Cluster;
use e2e::probe::{
    Holdings, Namespace, assert_nothing_left, busybox_pod, cluster, pids_of, wait_until,
};
use nix::sys::signal::Signal;

/// How often the kubelet is killed.
const KILLS: u32 = 50;
const STEADY: [&str; 3] = ["steady-1", "steady-2", "steady-3"];

/// `kill -9` and start again, as an init system does.
fn kill_and_restart(cluster: &mut Cluster, name: &str) -> Result<()> {
    let process = cluster.process(name)?.clone();
    process.signal(Signal::SIGKILL)?;
    ensure!(
        process.wait_gone(Duration::from_secs(10)),
        "{name} does not die"
    );
    cluster.restart(name)
}

/// The PID of each steady pod's shell, found by the name it was given.
fn steady_pids(cluster: &Cluster) -> Result<BTreeMap<String, u32>> {
    let group = cluster.layout.node_cgroup("node-1");
    let mut found = BTreeMap::new();
    for pid in e2e::cluster::cgroup::processes(&group)? {
        let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if let Some(name) = STEADY
            .iter()
            .find(|name| line.contains(&format!("I am {name};")))
        {
            // The first: a child that was just forked has the same command line for a moment.
            found.entry((*name).to_owned()).or_insert(pid);
        }
    }
    Ok(found)
}

/// Numbers below `bound` that look random; the seed makes a run repeatable.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

#[test]
fn kubelet_killed_fifty_times_under_churn_hurts_nothing() -> Result<()> {
    let mut cluster = cluster()?;
    let kubelet = "kubelet-node-1";
    let before = Holdings::of(&cluster, "node-1")?;
    let layout = Cluster::open(&cluster.state.options.name)?;
    let ns = Namespace::create(&layout, "killed-kubelet")?;
    for name in STEADY {
        ns.apply(&busybox_pod(
            name,
            "node-1",
            &format!(": I am {name}; i=0; while true; do i=$((i+1)); echo $i; sleep 0.1; done"),
        ))?;
    }
    for name in STEADY {
        ns.wait_ready(&format!("pod/{name}"), 60)?;
    }
    let pids = steady_pids(&cluster)?;
    ensure!(pids.len() == STEADY.len(), "found only {pids:?}");

    let mut random = Random(u64::from(std::process::id()));
    let mut short_lived = Vec::new();
    for round in 0..KILLS {
        // Churn: a pod a round that writes three lines and fails with a code of its own; every third is deleted in mid-life.
        let (name, code) = (format!("short-{round}"), 1 + round % 100);
        ns.apply(&busybox_pod(
            &name,
            "node-1",
            &format!(
                "echo a; sleep 0.{}; echo b; echo c; exit {code}",
                random.below(9)
            ),
        ))?;
        if round % 3 == 0 {
            ns.kubectl(&["delete", "pod", &name, "--wait=false"])?;
        } else {
            short_lived.push((name, code));
        }
        std::thread::sleep(Duration::from_millis(random.below(1200)));
        kill_and_restart(&mut cluster, kubelet)?;
    }
    // The last one has only just begun.
    wait_until("the kubelet to answer", Duration::from_secs(15), || {
        let healthz = "/api/v1/nodes/node-1/proxy/healthz";
        Ok(ns.kubectl(&["get", "--raw", healthz]).is_ok())
    })?;

    for (name, code) in &short_lived {
        ns.kubectl(&[
            "wait",
            "--for=jsonpath={.status.phase}=Failed",
            &format!("pod/{name}"),
            "--timeout=120s",
        ])
        .with_context(|| ns.kubectl(&["describe", "pod", name]).unwrap_or_default())?;
        let status = ns.json(&["get", "pod", name])?["status"]["containerStatuses"][0].clone();
        ensure!(
            status["state"]["terminated"]["exitCode"] == *code,
            "{name}: {status}"
        );
        ensure!(
            status["restartCount"] == 0,
            "{name} was started twice: {status}"
        );
        let logs = ns.kubectl(&["logs", name])?;
        ensure!(logs == "a\nb\nc\n", "{name} logged {logs:?}");
    }
    ensure!(
        steady_pids(&cluster)? == pids,
        "a steady container has another process"
    );
    for name in STEADY {
        let pod = ns.json(&["get", "pod", name])?;
        ensure!(
            pod["status"]["containerStatuses"][0]["restartCount"] == 0,
            "{name} was restarted"
        );
        let logs = ns.kubectl(&["logs", name])?;
        let lines: Vec<&str> = logs.lines().collect();
        ensure!(
            lines.len() > 100,
            "{name} logged only {} lines",
            lines.len()
        );
        for (expected, line) in (1..).zip(&lines) {
            ensure!(
                *line == expected.to_string(),
                "{name}: line {expected} is {line:?}"
            );
        }
    }
    ns.delete()?;
    assert_nothing_left(&cluster, "node-1", &before, Duration::from_secs(60))
}

#[test]
fn kube_proxy_killed_keeps_connections() -> Result<()> {
    let mut cluster = cluster()?;
    let handle = Cluster::open(&cluster.state.options.name)?;
    let ns = Namespace::create(&handle, "killed-proxy")?;
    ns.apply(&busybox_pod(
        "server",
        "node-2",
        "while true; do nc -l -p 7000 -e sh -c 'while read l; do echo echo $l; done'; done",
    ))?;
    ns.wait_ready("pod/server", 60)?;
    ns.kubectl(&["expose", "pod", "server", "--port=7000"])?;
    ns.apply(&busybox_pod("client", "node-1", "sleep 3600"))?;
    ns.wait_ready("pod/client", 60)?;
    // A first packet sent before the rules are there would be tracked without them for minutes, with any proxy.
    wait_until(
        "the service to be reachable",
        Duration::from_secs(60),
        || {
            Ok(ns
                .kubectl(&[
                    "exec", "client", "--", "nc", "-z", "-w", "1", "server", "7000",
                ])
                .is_ok())
        },
    )?;
    // One connection for the whole test: a line a half second, through the service.
    let mut client = ns
        .command()
        .args(["exec", "client", "--", "sh", "-c"])
        .arg("until (for i in $(seq 1 30); do echo $i; sleep 0.5; done) | nc server 7000; do sleep 0.2; done")
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(client.stdout.take().context("stdout is piped")?).lines();
    ensure!(
        lines.next().context("no line")?? == "echo 1",
        "the connection does not echo"
    );
    for _ in 0..5 {
        for node in ["node-1", "node-2"] {
            kill_and_restart(&mut cluster, &format!("kube-proxy-{node}"))?;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    let rest: Vec<String> = lines.collect::<Result<_, _>>()?;
    let expected: Vec<String> = (2..=30).map(|i| format!("echo {i}")).collect();
    ensure!(
        rest == expected,
        "after the first line the client got {rest:?}"
    );
    client.wait()?;
    ns.delete()
}

/// Who holds a lease.
fn holder(cluster: &Cluster, lease: &str) -> Result<String> {
    cluster.kubectl(&[
        "-n",
        "kube-system",
        "get",
        "lease",
        lease,
        "-o",
        "jsonpath={.spec.holderIdentity}",
    ])
}

/// The replica that leads is killed; within the lease time another leads. Returns the name that was killed.
fn kill_leader(cluster: &Cluster, component: &str) -> Result<String> {
    let before = holder(cluster, component)?;
    // The log names the identity that a replica has; the one that leads says so.
    let leader = [component.to_owned(), format!("{component}-1")]
        .into_iter()
        .find(|name| {
            cluster
                .process(name)
                .and_then(|process| process.log_since_start(&cluster.layout))
                .is_ok_and(|log| {
                    log.lines()
                        .rev()
                        .any(|line| line.to_lowercase().contains("successfully acquired lease"))
                })
                && cluster
                    .process(name)
                    .is_ok_and(e2e::cluster::process::Process::is_running)
        })
        .with_context(|| format!("no replica of {component} says it leads"))?;
    cluster.process(&leader)?.signal(Signal::SIGKILL)?;
    let killed = Instant::now();
    wait_until(
        &format!("another {component} to lead"),
        Duration::from_secs(30),
        || Ok(holder(cluster, component)? != before),
    )?;
    // The lease's 15 s, seen up to one retry late and taken up to one retry late; a retry comes after 2 to 4.4 s.
    ensure!(
        killed.elapsed() < Duration::from_secs(24),
        "it took {:?}",
        killed.elapsed()
    );
    Ok(leader)
}

#[test]
fn a_killed_leader_is_followed_within_the_lease_time_and_nothing_is_done_twice() -> Result<()> {
    let mut cluster = cluster()?;
    let handle = Cluster::open(&cluster.state.options.name)?;
    let ns = Namespace::create(&handle, "killed-leader")?;
    for component in ["kube-controller-manager", "kube-scheduler"] {
        // Work under way while the leader dies.
        let name = if component == "kube-scheduler" {
            "binds"
        } else {
            "creates"
        };
        ns.kubectl(&[
            "create",
            "deployment",
            name,
            "--image=registry.k8s.io/pause:3.10.2",
            "--replicas=20",
        ])?;
        let killed = kill_leader(&cluster, component)?;
        ns.wait_rollout(&format!("deployment/{name}"), 180)?;
        let pods = ns.json(&["get", "pods", "-l", &format!("app={name}")])?;
        let count = pods["items"].as_array().map_or(0, Vec::len);
        ensure!(count == 20, "{count} pods, not 20");
        let events = ns.json(&["get", "events"])?;
        let created = events["items"]
            .as_array()
            .context("no events")?
            .iter()
            .filter(|event| {
                event["reason"] == "SuccessfulCreate"
                    && event["involvedObject"]["name"]
                        .as_str()
                        .is_some_and(|object| object.starts_with(name))
            })
            .filter_map(|event| event["count"].as_u64().or(Some(1)))
            .sum::<u64>();
        ensure!(created <= 20, "{created} pods were created for 20");
        cluster.restart(&killed)?;
    }
    ns.delete()
}

/// From the API server's return to nodes that are Ready and control loops that work.
const SETTLE_WITHIN: Duration = Duration::from_secs(15);

#[test]
fn the_api_server_away_stops_no_container() -> Result<()> {
    // Five minutes in the long run; a test a minute long otherwise.
    let away = if std::env::var_os("GANTRY_E2E_LONG").is_some() {
        300
    } else {
        40
    };
    let mut cluster = cluster()?;
    let handle = Cluster::open(&cluster.state.options.name)?;
    let ns = Namespace::create(&handle, "api-away")?;
    ns.apply(&busybox_pod(
        "steady-1",
        "node-1",
        ": I am steady-1; i=0; while true; do i=$((i+1)); echo $i; sleep 1; done",
    ))?;
    // To be restarted by policy when its process is killed.
    let restarts = busybox_pod(
        "restarts",
        "node-1",
        "date +%s >> /count/runs; exec sleep 3601",
    )
    .replace("restartPolicy: Never", "restartPolicy: Always")
    .replace(
        "    command:",
        "    volumeMounts: [{name: count, mountPath: /count}]\n    command:",
    )
    .replace(
        "  containers:",
        "  volumes: [{name: count, emptyDir: {}}]\n  containers:",
    );
    ns.apply(&restarts)?;
    ns.wait_ready("pod/steady-1", 60)?;
    ns.wait_ready("pod/restarts", 60)?;
    let pids = steady_pids(&cluster)?;
    let runs = |cluster: &Cluster| -> Result<usize> {
        let mut text = String::new();
        let mut child = cluster
            .node_place("node-1")
            .command("sh")
            .args([
                "-c",
                "cat /var/lib/kubelet/pods/*/volumes/kubernetes.io~empty-dir/count/runs",
            ])
            .stdout(std::process::Stdio::piped())
            .spawn()?;
        child
            .stdout
            .take()
            .context("stdout is piped")?
            .read_to_string(&mut text)?;
        child.wait()?;
        Ok(text.lines().count())
    };

    let ready_since = || -> Result<String> {
        handle.kubectl(&[
            "get",
            "nodes",
            "--output=jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].lastTransitionTime}",
        ])
    };
    let before = ready_since()?;
    let process = cluster.process("kube-apiserver")?.clone();
    process.stop(Duration::from_secs(90))?;
    let away_since = Instant::now();
    for pid in pids_of("sleep 3601") {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), Signal::SIGKILL)?;
    }
    let restarted = wait_until(
        "the killed container to run again",
        Duration::from_secs(30),
        || Ok(runs(&cluster)? == 2),
    );
    // The rest of the time away is for what must not happen.
    std::thread::sleep(Duration::from_secs(away).saturating_sub(away_since.elapsed()));
    ensure!(
        steady_pids(&cluster)? == pids,
        "a container was touched while the API server was away"
    );
    cluster.restart("kube-apiserver")?;
    e2e::cluster::control_plane::wait_ready(&cluster, Duration::from_secs(60))?;
    let returned = Instant::now();
    restarted?;
    cluster.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "node",
        "--all",
        "--timeout=15s",
    ])?;
    ensure!(
        returned.elapsed() < SETTLE_WITHIN,
        "the nodes took {:?} to settle",
        returned.elapsed()
    );
    ns.kubectl(&[
        "create",
        "deployment",
        "after",
        "--image=registry.k8s.io/pause:3.10.2",
        "--replicas=2",
    ])?;
    ns.wait_rollout("deployment/after", 60)?;
    println!(
        "a new deployment ran {:?} after the API server's return",
        returned.elapsed()
    );
    ensure!(
        returned.elapsed() < SETTLE_WITHIN,
        "the control loops took {:?} to settle",
        returned.elapsed()
    );
    ensure!(
        steady_pids(&cluster)? == pids,
        "a container was touched when the API server came back"
    );
    ensure!(
        ready_since()? == before,
        "a node was taken for dead because nobody could hear it"
    );
    ns.delete()
}
