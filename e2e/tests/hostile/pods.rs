//! What a pod can touch: processes and files of the node, its memory and disk; and what becomes of a pod that grows without end.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::cluster::Cluster;
use e2e::probe::{Namespace, cluster, wait_until};
use e2e::step::output;

use crate::sound::Sound;

const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.66.1";
const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-2";

/// A pod on node-1 by its spec, without what every one of them has.
fn pod(name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: node-1, terminationGracePeriodSeconds: 1, {}}}}}",
        spec.replace("AGNHOST", AGNHOST).replace("BUSYBOX", BUSYBOX)
    )
}

/// Runs a shell command on the node.
fn on_node(cluster: &Cluster, script: &str) -> Result<String> {
    output(
        cluster
            .node_place("node-1")
            .command("sh")
            .args(["-c", script]),
    )
}

/// A pod's phase and reason.
fn phase(ns: &Namespace<'_>, pod: &str) -> Result<String> {
    ns.kubectl(&[
        "get",
        "pod",
        pod,
        "-o",
        "jsonpath={.status.phase} {.status.reason}",
    ])
}

fn wait_phase(ns: &Namespace<'_>, pod: &str, expected: &str, seconds: u64) -> Result<()> {
    wait_until(
        &format!("{pod} to be {expected}"),
        Duration::from_secs(seconds),
        || {
            let now = phase(ns, pod)?;
            if now.trim() == expected {
                return Ok(true);
            }
            anyhow::bail!("{pod} is {now}: {}", ns.kubectl(&["describe", "pod", pod])?)
        },
    )
}

#[test]
fn a_debugger_in_a_shared_process_namespace_sees_nothing_of_the_node() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "hostile-ptrace")?;
    on_node(
        &cluster,
        "echo secret > /run/of-the-node; echo secret > /var/lib/misc/of-the-node",
    )?;
    ns.apply(&pod(
        "ptrace",
        "shareProcessNamespace: true, containers: [{name: app, image: AGNHOST, command: [sleep, '36000']}, \
         {name: tool, image: AGNHOST, command: [sleep, '36001'], securityContext: {capabilities: {add: [SYS_PTRACE]}}}]",
    ))?;
    ns.wait_ready("pod/ptrace", 60)?;
    let tool =
        |script: &str| ns.kubectl(&["exec", "ptrace", "-c", "tool", "--", "sh", "-c", script]);
    // While processes of ours come and go in the pod.
    let mut storm = ns
        .command()
        .args(["exec", "ptrace", "-c", "tool", "--", "sh", "-c"])
        .arg(
            "end=$(($(date +%s)+12)); while [ $(date +%s) -lt $end ]; do for p in /proc/[0-9]*; do \
             cat $p/root/run/of-the-node $p/root/var/lib/misc/of-the-node $p/cwd/run/of-the-node $p/cwd/of-the-node 2>/dev/null; done; done; true",
        )
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    for _ in 0..20 {
        ns.kubectl(&["exec", "ptrace", "-c", "app", "--", "true"])?;
        let _ = ns.kubectl(&["exec", "ptrace", "-c", "app", "--", "/no/such/program"]);
    }
    ns.kubectl(&[
        "exec",
        "ptrace",
        "-c",
        "tool",
        "--",
        "sh",
        "-c",
        "kill -9 $(pgrep -x -f 'sleep 36000')",
    ])?;
    let status = storm.wait()?;
    let mut seen = String::new();
    std::io::Read::read_to_string(storm.stdout.as_mut().expect("piped"), &mut seen)?;
    ensure!(
        status.success() || seen.is_empty(),
        "the look itself failed: {status}"
    );
    ensure!(seen.is_empty(), "files of the node were read: {seen:?}");

    for (script, what) in [
        (
            "ls /proc/1/root/ 2>/dev/null | head -3",
            "the root of PID 1",
        ),
        (
            "ls -d /proc/1/root/etc /proc/1/root/var /proc/1/cwd/etc 2>/dev/null",
            "folders of PID 1",
        ),
        (
            "tr '\\0' '\\n' < /proc/1/cmdline | grep / | grep -e /var/lib -e /run/ ",
            "paths in the command line of PID 1",
        ),
        (
            "tr '\\0' '\\n' < /proc/1/environ 2>/dev/null",
            "the environment of PID 1",
        ),
        (
            "ls -l /proc/1/fd 2>/dev/null | grep -e /var/lib -e /run/",
            "files that PID 1 has open",
        ),
    ] {
        let said = tool(&format!("{script} || true"))?;
        ensure!(said.trim().is_empty(), "{what}: {said:?}");
    }
    let capabilities = tool("grep -E '^Cap(Prm|Eff|Amb)' /proc/1/status")?;
    ensure!(
        capabilities
            .lines()
            .all(|line| line.ends_with("0000000000000000")),
        "PID 1 has capabilities: {capabilities}"
    );
    // Other containers of the pod may be looked into: that is what sharing is for.
    let shell = tool(
        "for p in /proc/[0-9]*; do [ \"$(tr '\\0' ' ' <$p/cmdline 2>/dev/null)\" = 'sleep 36000 ' ] && ls -d $p/root/agnhost; done; true",
    )?;
    ensure!(
        shell.contains("/root/agnhost"),
        "the other container is out of sight: {shell:?}"
    );
    on_node(&cluster, "rm -f /run/of-the-node /var/lib/misc/of-the-node")?;
    ns.delete()
}

#[test]
fn containers_start_whatever_the_numbers_of_processes_have_come_to() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "hostile-pids")?;
    ns.apply(&pod(
        "forker",
        "shareProcessNamespace: true, containers: [{name: app, image: AGNHOST, command: [sleep, '36000']}, \
         {name: other, image: BUSYBOX, command: [sh, -c, \"trap 'exit 1' TERM; sleep 36001 & wait\"]}]",
    ))?;
    ns.wait_ready("pod/forker", 60)?;
    for round in 1..=2 {
        ns.kubectl(&[
            "exec",
            "forker",
            "-c",
            "app",
            "--",
            "sh",
            "-c",
            "for i in $(seq 600); do /bin/true; done; pkill -TERM -f '[t]rap .exit 1. TERM' || true",
        ])?;
        wait_until("other to be restarted", Duration::from_secs(60), || {
            let said = ns.kubectl(&[
                "get", "pod", "forker", "-o",
                "jsonpath={.status.containerStatuses[?(@.name==\"other\")].restartCount} {.status.containerStatuses[?(@.name==\"other\")].ready}",
            ])?;
            Ok(said == format!("{round} true"))
        })?;
    }
    ns.kubectl(&[
        "debug",
        "forker",
        &format!("--image={BUSYBOX}"),
        "--target=app",
        "-c",
        "looks",
        "--",
        "sleep",
        "100",
    ])?;
    wait_until("the debug container", Duration::from_secs(30), || {
        let said = ns.kubectl(&[
            "get",
            "pod",
            "forker",
            "-o",
            "jsonpath={.status.ephemeralContainerStatuses[0].state.running.startedAt}",
        ])?;
        Ok(!said.is_empty())
    })?;
    ns.delete()
}

#[test]
fn a_number_is_a_number_and_never_a_name() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "hostile-ids")?;
    let image = "registry.k8s.io/gantry-test/numbers:1";
    // In this image's passwd a user *named* 1000 is root, and the user of the image is 4294967295.
    ns.apply(&pod(
        "by-number",
        &format!("restartPolicy: Never, securityContext: {{runAsUser: 1000}}, containers: [{{name: c, image: '{image}', command: [id, -u]}}]"),
    ))?;
    ns.apply(&pod(
        "of-image",
        &format!(
            "restartPolicy: Never, containers: [{{name: c, image: '{image}', command: [id, -u]}}]"
        ),
    ))?;
    wait_phase(&ns, "by-number", "Succeeded", 60)?;
    let said = ns.kubectl(&["logs", "by-number"])?;
    ensure!(said.trim() == "1000", "runs as {said:?}");
    wait_until(
        "a refusal that names the value",
        Duration::from_secs(60),
        || {
            let said = ns.kubectl(&["describe", "pod", "of-image"])?;
            Ok(said.contains("4294967295"))
        },
    )?;
    let ran = ns.kubectl(&["get", "pod", "of-image", "-o", "jsonpath={.status.phase}"])?;
    ensure!(ran != "Succeeded" && ran != "Running", "of-image is {ran}");
    ns.delete()
}

#[test]
fn files_a_container_writes_cost_the_node_nothing() -> Result<()> {
    let cluster = cluster()?;
    let sound = Sound::begin(&cluster, "node-1")?;
    let ns = Namespace::create(&cluster, "hostile-files")?;
    // Each container ends and is started again, so that the node reads what it left behind.
    ns.apply(&pod(
        "grows",
        "containers: [{name: hosts, image: BUSYBOX, command: [sh, -c, 'truncate -s 3G /etc/hosts; sleep 2']}, \
         {name: message, image: BUSYBOX, command: [sh, -c, 'truncate -s 3G /dev/termination-log; sleep 2']}, \
         {name: log, image: BUSYBOX, terminationMessagePolicy: FallbackToLogsOnError, command: [sh, -c, 'yes xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx | head -c 20000000; sleep 1; exit 1']}]",
    ))?;
    ns.apply(&pod(
        "deep",
        "restartPolicy: Never, volumes: [{name: v, emptyDir: {}}], containers: [{name: c, image: AGNHOST, \
         volumeMounts: [{name: v, mountPath: /v}], command: [perl, -e, 'chdir \"/v\"; for (1..60000) { mkdir \"d\" or die; chdir \"d\" or die }']}]",
    ))?;
    wait_phase(&ns, "deep", "Succeeded", 120)?;
    wait_until("restarts", Duration::from_secs(90), || {
        sound.check()?;
        let counts = ns.kubectl(&[
            "get",
            "pod",
            "grows",
            "-o",
            "jsonpath={.status.containerStatuses[*].restartCount}",
        ])?;
        Ok(counts
            .split(' ')
            .filter_map(|count| count.parse::<u32>().ok())
            .filter(|count| *count >= 1)
            .count()
            == 3)
    })?;
    sound.check()?;
    ns.kubectl(&[
        "delete",
        "pod",
        "grows",
        "deep",
        "--wait=true",
        "--timeout=120s",
    ])?;
    wait_until(
        "nothing to be left of the deep tree",
        Duration::from_secs(300),
        || {
            sound.check()?;
            Ok(on_node(
                &cluster,
                "ls -d /var/lib/kubelet/pods/*/volumes/*/v 2>/dev/null || true",
            )?
            .is_empty())
        },
    )?;
    sound.check()?;
    ns.delete()
}

#[test]
fn a_pod_that_writes_past_its_limits_is_evicted() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "hostile-disk")?;
    for (name, spec) in [
        (
            "volume",
            "volumes: [{name: v, emptyDir: {sizeLimit: 5Mi}}], containers: [{name: c, image: BUSYBOX, \
             volumeMounts: [{name: v, mountPath: /v}], command: [sh, -c, 'head -c 20000000 /dev/zero > /v/x; sleep 3600']}]",
        ),
        (
            "layer",
            "containers: [{name: c, image: BUSYBOX, resources: {limits: {ephemeral-storage: 5Mi}}, \
             command: [sh, -c, 'head -c 20000000 /dev/zero > /x; sleep 3600']}]",
        ),
    ] {
        ns.apply(&pod(name, spec))?;
    }
    for name in ["volume", "layer"] {
        wait_phase(&ns, name, "Failed Evicted", 120)?;
        let said = ns.kubectl(&[
            "get",
            "pod",
            name,
            "-o",
            "jsonpath={.status.containerStatuses[0].state}",
        ])?;
        ensure!(said.contains("terminated"), "{name}: {said}");
    }
    ns.delete()
}

#[test]
fn a_deadline_ends_a_pod() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "hostile-deadline")?;
    for (name, spec) in [
        (
            "running",
            "activeDeadlineSeconds: 8, containers: [{name: c, image: BUSYBOX, command: [sleep, '3600']}]",
        ),
        (
            "pulling",
            "activeDeadlineSeconds: 8, containers: [{name: c, image: 'registry.k8s.io/e2e-test-images/nosuch:1'}]",
        ),
        (
            "in-init",
            "activeDeadlineSeconds: 8, initContainers: [{name: i, image: BUSYBOX, command: [sleep, '3600']}], containers: [{name: c, image: BUSYBOX}]",
        ),
    ] {
        ns.apply(&pod(name, spec))?;
    }
    for name in ["running", "pulling", "in-init"] {
        wait_phase(&ns, name, "Failed DeadlineExceeded", 40)?;
    }
    ns.delete()
}

#[test]
fn nobody_on_the_node_reads_what_is_a_pods() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "hostile-modes")?;
    ns.kubectl(&[
        "create",
        "secret",
        "generic",
        "word",
        "--from-literal=word=kept-from-others",
    ])?;
    ns.apply(&pod(
        "holds",
        "volumes: [{name: s, secret: {secretName: word}}], containers: [{name: c, image: BUSYBOX, command: [sleep, '3600'], \
         volumeMounts: [{name: s, mountPath: /s}], env: [{name: WORD, valueFrom: {secretKeyRef: {name: word, key: word}}}]}]",
    ))?;
    ns.wait_ready("pod/holds", 60)?;
    // As a local user without rights; where the word is found at all, root finds it by the same command.
    let search = "grep -rslIF kept-from-others /var/lib/kubelet /var/lib/gantry /run/gantry /run/kubelet /var/log/pods 2>/dev/null || true";
    let found = on_node(
        &cluster,
        &format!("setpriv --reuid 65534 --regid 65534 --clear-groups sh -c '{search}'"),
    )?;
    ensure!(found.is_empty(), "anybody on the node reads {found}");
    let records = on_node(
        &cluster,
        "grep -rslIF kept-from-others --include=*.json /var/lib/gantry 2>/dev/null; grep -rslIF kept-from-others --include=container.json --include=config.json /run/gantry 2>/dev/null; true",
    )?;
    ensure!(
        records.is_empty(),
        "values of the environment stand in records: {records}"
    );
    ns.delete()
}
