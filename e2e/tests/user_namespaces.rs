//! Promise: pods with `hostUsers: false` run with ids that nobody else has, and everything a pod can do works in them:
//! volumes of every kind, tokens, subPath, fsGroup, termination messages, exec, cp, debug, restarts, deletion.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::probe::{Holdings, Namespace, assert_nothing_left, cluster, wait_until};
use nix::sys::signal::Signal;

const IMAGE: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-2";
const NODE: &str = "node-1";

/// Name, spec without what all have in common, words that its log must hold.
const PODS: &[(&str, &str, &[&str])] = &[
    (
        "plain",
        "containers: [{name: c, image: IMAGE, command: [sh, -c, 'id; hostname; echo shm > /dev/shm/x; sleep 3600']}]",
        &["uid=0(root) gid=0(root)", "plain"],
    ),
    (
        "volumes",
        "securityContext: {runAsUser: 1000, runAsGroup: 2000, fsGroup: 3000}, \
         volumes: [{name: e, emptyDir: {}}, {name: m, emptyDir: {medium: Memory}}, \
           {name: d, downwardAPI: {items: [{path: podname, fieldRef: {fieldPath: metadata.name}}]}}, \
           {name: cm, configMap: {name: settings}}, {name: s, secret: {secretName: hush, defaultMode: 256}}, \
           {name: p, projected: {sources: [{configMap: {name: settings}}, {secret: {name: hush}}, \
             {serviceAccountToken: {path: token, audience: other}}]}}, \
           {name: i, image: {reference: IMAGE}}, {name: h, hostPath: {path: /var/lib/userns-test, type: DirectoryOrCreate}}], \
         containers: [{name: c, image: IMAGE, command: [sh, -c, 'id; touch /e/x /m/x && ls -ln /e/x /m/x; cat /d/podname; echo; \
           cat /cm/key /s/key /p/key; wc -c < /p/token; wc -c < /var/run/secrets/kubernetes.io/serviceaccount/token; touch /sub/y && stat -c \"sub %u %g\" /sub/y; \
           stat -c \"image %u\" /i/bin/busybox; ls -d /h; cat /one; grep -c volumes /etc/hosts; cat /etc/resolv.conf; echo all done; sleep 3600'], \
           volumeMounts: [{name: e, mountPath: /e}, {name: m, mountPath: /m}, {name: d, mountPath: /d}, {name: cm, mountPath: /cm}, \
             {name: s, mountPath: /s}, {name: p, mountPath: /p}, {name: i, mountPath: /i}, {name: h, mountPath: /h}, \
             {name: e, mountPath: /sub, subPath: a/b}, {name: cm, mountPath: /one, subPath: key}]}]",
        &[
            "uid=1000 gid=2000 groups=2000,3000",
            "1000     3000",
            "value of the map",
            "value of the secret",
            "sub 1000 3000",
            "image 0",
            "nameserver",
            "all done",
        ],
    ),
    (
        "unmasked",
        "containers: [{name: c, image: IMAGE, securityContext: {procMount: Unmasked}, \
         command: [sh, -c, 'cat /proc/keys > /dev/null && grep -c \" /proc/sys \" /proc/mounts; echo seen; sleep 3600']}]",
        &["0\n", "seen"],
    ),
    (
        "many",
        "shareProcessNamespace: true, initContainers: [{name: first, image: IMAGE, command: [sh, -c, 'echo init > /e/from-init'], volumeMounts: [{name: e, mountPath: /e}]}], \
         volumes: [{name: e, emptyDir: {}}], \
         containers: [{name: c, image: IMAGE, command: [sh, -c, 'cat /e/from-init; sleep 3600'], volumeMounts: [{name: e, mountPath: /e}]}, \
           {name: other, image: IMAGE, tty: true, stdin: true, command: [sh]}]",
        &["init"],
    ),
];

fn manifest(name: &str, restart: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{hostUsers: false, nodeName: {NODE}, \
         terminationGracePeriodSeconds: 1, restartPolicy: {restart}, {}}}}}",
        spec.replace("IMAGE", IMAGE)
    )
}

/// (inside, outside, count) of the pod's only mapping.
fn uid_map(ns: &Namespace<'_>, pod: &str) -> Result<(u64, u64, u64)> {
    let text = ns.kubectl(&["exec", pod, "-c", "c", "--", "cat", "/proc/self/uid_map"])?;
    let numbers: Vec<u64> = text
        .split_whitespace()
        .map(|word| word.parse().context("a number"))
        .collect::<Result<_>>()?;
    let [inside, outside, count] = numbers[..] else {
        anyhow::bail!("{pod}: uid_map is {text:?}");
    };
    Ok((inside, outside, count))
}

#[test]
fn pods_run_in_user_namespaces() -> Result<()> {
    let held = cluster()?;
    let before = Holdings::of(&held, NODE)?;
    let ns = Namespace::create(&held, "userns")?;
    ns.kubectl(&[
        "create",
        "configmap",
        "settings",
        "--from-literal=key=value of the map",
    ])?;
    ns.kubectl(&[
        "create",
        "secret",
        "generic",
        "hush",
        "--from-literal=key=value of the secret",
    ])?;
    for (name, spec, _) in PODS {
        ns.apply(&manifest(name, "Always", spec))?;
    }
    let mut blocks = BTreeSet::new();
    for (name, _, words) in PODS {
        ns.wait_ready(&format!("pod/{name}"), 90)?;
        for words in *words {
            let mut text = String::new();
            wait_until(
                &format!("{name}: {words:?}"),
                Duration::from_secs(20),
                || {
                    text = ns.kubectl(&["logs", name, "-c", "c"])?;
                    Ok(text.contains(words))
                },
            )
            .with_context(|| text.clone())?;
        }
        let (inside, outside, count) = uid_map(&ns, name)?;
        ensure!(
            inside == 0 && count == 65_536,
            "{name}: {inside} {outside} {count}"
        );
        ensure!(
            outside > 0 && outside % 65_536 == 0 && outside + count <= u64::from(u32::MAX),
            "{name} has {count} ids from {outside} on"
        );
        ensure!(
            blocks.insert(outside),
            "{name} shares its ids with another pod"
        );
    }
    execs_copies_and_debugging(&ns)?;
    ends_and_restarts(&ns)?;

    // A record that a crash tore: its ids stay the pod's.
    let uid = ns.kubectl(&["get", "pod", "plain", "-o", "jsonpath={.metadata.uid}"])?;
    let record = held
        .layout
        .node_dir(NODE)
        .join("lib/kubelet/pods")
        .join(uid.trim())
        .join("userns");
    ensure!(record.exists(), "{} is missing", record.display());
    std::fs::write(&record, "{\"uidMappings\":[{\"hostI")?;
    let plain = uid_map(&ns, "plain")?;
    let mut cluster = cluster()?;
    let kubelet = format!("kubelet-{NODE}");
    let process = cluster.process(&kubelet)?.clone();
    process.signal(Signal::SIGKILL)?;
    ensure!(
        process.wait_gone(Duration::from_secs(10)),
        "{kubelet} does not die"
    );
    cluster.restart(&kubelet)?;
    for index in 0..3 {
        let name = format!("later-{index}");
        ns.apply(&manifest(
            &name,
            "Always",
            "containers: [{name: c, image: IMAGE, command: [sleep, '3600']}]",
        ))?;
        ns.wait_ready(&format!("pod/{name}"), 60)?;
        ensure!(
            blocks.insert(uid_map(&ns, &name)?.1),
            "{name} shares its ids"
        );
    }
    ensure!(uid_map(&ns, "plain")? == plain, "the pod runs on as it was");
    ensure!(
        ns.kubectl(&[
            "get",
            "pods",
            "-o",
            "jsonpath={.items[*].status.containerStatuses[*].restartCount}"
        ])?
        .split_whitespace()
        .all(|count| count == "0" || count == "1"),
        "the kubelet's restart restarted containers"
    );
    ns.delete()?;
    assert_nothing_left(&held, NODE, &before, Duration::from_secs(60))
}

fn execs_copies_and_debugging(ns: &Namespace<'_>) -> Result<()> {
    let exec =
        |pod: &str, script: &str| ns.kubectl(&["exec", pod, "-c", "c", "--", "sh", "-c", script]);
    ensure!(exec("plain", "id -u")?.trim() == "0");
    ensure!(exec("volumes", "id -u")?.trim() == "1000");
    ensure!(
        exec(
            "plain",
            "[ $(readlink /proc/self/ns/user) = $(readlink /proc/1/ns/user) ] && echo same"
        )?
        .trim()
            == "same",
        "an exec is in the container's user namespace"
    );
    let directory = tempfile::tempdir()?;
    let (there, back) = (
        directory.path().join("there"),
        directory.path().join("back"),
    );
    std::fs::write(&there, "carried\n")?;
    ns.kubectl(&[
        "cp",
        "-c",
        "c",
        &there.to_string_lossy(),
        "volumes:/e/carried",
    ])?;
    ns.kubectl(&[
        "cp",
        "-c",
        "c",
        "volumes:/e/carried",
        &back.to_string_lossy(),
    ])?;
    ensure!(std::fs::read_to_string(&back)? == "carried\n");

    ns.kubectl(&[
        "debug",
        "plain",
        &format!("--image={IMAGE}"),
        "--target=c",
        "-c",
        "dbg",
        "--attach=false",
        "--",
        "sh",
        "-c",
        "cat /proc/self/uid_map; ps | grep 'sleep 3600' | head -n 1; echo looked; sleep 3600",
    ])?;
    let mut text = String::new();
    wait_until(
        "the debugging container's log",
        Duration::from_secs(60),
        || {
            text = ns.kubectl(&["logs", "plain", "-c", "dbg"])?;
            Ok(text.contains("looked"))
        },
    )
    .with_context(|| {
        ns.kubectl(&["describe", "pod", "plain"])
            .unwrap_or_default()
    })?;
    let outside = uid_map(ns, "plain")?.1.to_string();
    ensure!(
        text.contains(&outside) && text.contains("sleep 3600"),
        "{text}"
    );
    Ok(())
}

fn ends_and_restarts(ns: &Namespace<'_>) -> Result<()> {
    ns.apply(&manifest(
        "says",
        "Never",
        "containers: [{name: c, image: IMAGE, securityContext: {runAsUser: 1000}, command: [sh, -c, 'echo last words > /dev/termination-log; exit 3']}]",
    ))?;
    ns.apply(&manifest(
        "again",
        "Always",
        "volumes: [{name: e, emptyDir: {}}], containers: [{name: c, image: IMAGE, \
         command: [sh, -c, 'test -e /e/been && sleep 3600; touch /e/been; exit 1'], volumeMounts: [{name: e, mountPath: /e, subPath: below}]}]",
    ))?;
    let status = "jsonpath={.status.phase} {.status.containerStatuses[0].state.terminated.exitCode} {.status.containerStatuses[0].state.terminated.message}";
    let mut text = String::new();
    wait_until("the termination message", Duration::from_secs(60), || {
        text = ns.kubectl(&["get", "pod", "says", "-o", status])?;
        Ok(text.trim() == "Failed 3 last words")
    })
    .with_context(|| text.clone())?;
    wait_until("the second start", Duration::from_secs(60), || {
        let count = ns.kubectl(&["get", "pod", "again", "-o", "jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}"])?;
        Ok(count == "1 true")
    })
    .with_context(|| ns.kubectl(&["describe", "pod", "again"]).unwrap_or_default())
}
