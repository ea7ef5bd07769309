//! Promise: a claim of a CSI driver's class becomes a volume, its data outlive pods, and it is gone with its claim. On a cluster that was
//! brought up `--with-csi hostpath`: `cargo e2e test csi`.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::probe::{Namespace, cluster, wait_until};

const SOON: Duration = Duration::from_secs(120);
const IMAGE: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-2";
const CLASS: &str = "csi-hostpath-sc";

fn claim(name: &str, more: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: {name}}}, spec: {{storageClassName: {CLASS}, accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 64Mi}}}}{more}}}}}"
    )
}

/// A pod that runs `script` on the claim at /data and ends.
fn pod(name: &str, claim: &str, script: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{restartPolicy: Never, terminationGracePeriodSeconds: 1, containers: [{{name: c, image: {IMAGE}, command: [sh, -ec, '{script}'], volumeMounts: [{{name: data, mountPath: /data}}]}}], volumes: [{{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}]}}}}"
    )
}

fn field(ns: &Namespace<'_>, what: &str, path: &str) -> Result<String> {
    ns.kubectl(&["get", what, "-o", &format!("jsonpath={{{path}}}")])
}

fn becomes(ns: &Namespace<'_>, what: &str, path: &str, value: &str) -> Result<()> {
    wait_until(&format!("{what}: {path} is {value:?}"), SOON, || {
        Ok(field(ns, what, path)? == value)
    })
}

/// Runs a pod to its end and takes it away.
fn run(ns: &Namespace<'_>, name: &str, claim: &str, script: &str) -> Result<String> {
    ns.apply(&pod(name, claim, script))?;
    becomes(ns, &format!("pod/{name}"), ".status.phase", "Succeeded")?;
    let said = ns.kubectl(&["logs", name])?;
    ns.kubectl(&["delete", "pod", name, "--wait=true", "--timeout=60s"])?;
    Ok(said.trim().to_owned())
}

/// The driver's own list: the volumes whose data are on its node.
fn volumes_on_disk(ns: &Namespace<'_>) -> Result<Vec<String>> {
    let list = ns.kubectl(&[
        "exec",
        "-n",
        "default",
        "csi-hostpathplugin-0",
        "-c",
        "hostpath",
        "--",
        "ls",
        "/csi-data-dir/volumes",
    ])?;
    Ok(list.split_whitespace().map(str::to_owned).collect())
}

fn deleted(ns: &Namespace<'_>, volume: &str, handle: &str) -> Result<()> {
    wait_until(&format!("{volume} and its data are gone"), SOON, || {
        let object = ns.kubectl(&["get", "pv", volume, "--ignore-not-found"])?;
        let on_disk = volumes_on_disk(ns)?;
        Ok(object.is_empty() && !on_disk.iter().any(|one| one == handle))
    })?;
    let attachments = ns.kubectl(&["get", "volumeattachments", "-o", "yaml"])?;
    ensure!(!attachments.contains(volume), "{volume} is still attached");
    Ok(())
}

#[test]
#[ignore = "needs a cluster with CSI: cargo e2e test csi"]
fn data_outlive_their_pods_and_end_with_their_claim() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "csi-claims")?;
    ns.apply(&claim("data", ""))?;
    becomes(&ns, "pvc/data", ".status.phase", "Bound")?;
    let volume = field(&ns, "pvc/data", ".spec.volumeName")?;
    let handle = field(&ns, &format!("pv/{volume}"), ".spec.csi.volumeHandle")?;
    ensure!(
        volumes_on_disk(&ns)?.contains(&handle),
        "{handle} is not on disk"
    );
    run(&ns, "writer", "data", "echo kept > /data/file")?;
    let said = run(&ns, "reader", "data", "cat /data/file")?;
    ensure!(said == "kept", "the second pod read {said:?}");
    ns.kubectl(&["delete", "pvc", "data", "--wait=true", "--timeout=60s"])?;
    deleted(&ns, &volume, &handle)
}

#[test]
#[ignore = "needs a cluster with CSI: cargo e2e test csi"]
fn a_snapshot_becomes_a_volume_that_holds_what_was() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "csi-snapshots")?;
    ns.apply(&claim("first", ""))?;
    run(&ns, "before", "first", "echo before > /data/file")?;
    ns.apply("{apiVersion: snapshot.storage.k8s.io/v1, kind: VolumeSnapshot, metadata: {name: taken}, spec: {volumeSnapshotClassName: csi-hostpath-snapclass, source: {persistentVolumeClaimName: first}}}")?;
    becomes(&ns, "volumesnapshot/taken", ".status.readyToUse", "true")?;
    run(&ns, "after", "first", "echo after > /data/file")?;
    let of = |kind: &str, group: &str, name: &str| {
        format!(", dataSource: {{kind: {kind}, apiGroup: {group}, name: {name}}}")
    };
    let snapshot = of("VolumeSnapshot", "snapshot.storage.k8s.io", "taken");
    ns.apply(&claim("restored", &snapshot))?;
    ns.apply(&claim(
        "cloned",
        &of("PersistentVolumeClaim", "\"\"", "first"),
    ))?;
    for (name, expected) in [("restored", "before"), ("cloned", "after")] {
        let said = run(&ns, &format!("read-{name}"), name, "cat /data/file")?;
        ensure!(said == expected, "{name} holds {said:?}");
    }
    ns.kubectl(&[
        "delete",
        "volumesnapshot",
        "taken",
        "--wait=true",
        "--timeout=60s",
    ])?;
    ns.kubectl(&["delete", "pvc", "--all", "--wait=true", "--timeout=60s"])
        .map(drop)
}

#[test]
#[ignore = "needs a cluster with CSI: cargo e2e test csi"]
fn a_claim_grows_while_its_pod_runs() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "csi-growth")?;
    ns.apply(&claim("data", ""))?;
    ns.apply(&pod("user", "data", "sleep 3600"))?;
    becomes(&ns, "pod/user", ".status.phase", "Running")?;
    let more = "{\"spec\":{\"resources\":{\"requests\":{\"storage\":\"128Mi\"}}}}";
    ns.kubectl(&["patch", "pvc", "data", "-p", more])?;
    becomes(&ns, "pvc/data", ".status.capacity.storage", "128Mi")?;
    ns.kubectl(&["delete", "pod", "user", "--wait=true", "--timeout=60s"])?;
    ns.kubectl(&["delete", "pvc", "data", "--wait=true", "--timeout=60s"])
        .map(drop)
}

#[test]
#[ignore = "needs a cluster with CSI: cargo e2e test csi"]
fn an_inline_volume_and_a_generic_one_live_as_long_as_their_pod() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "csi-ephemeral")?;
    let before = volumes_on_disk(&ns)?.len();
    ns.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: user}}, spec: {{restartPolicy: Never, terminationGracePeriodSeconds: 1, containers: [{{name: c, image: {IMAGE}, command: [sh, -ec, 'echo x > /inline/x; echo y > /generic/y; sleep 3600'], volumeMounts: [{{name: inline, mountPath: /inline}}, {{name: generic, mountPath: /generic}}]}}], volumes: [{{name: inline, csi: {{driver: hostpath.csi.k8s.io}}}}, {{name: generic, ephemeral: {{volumeClaimTemplate: {{spec: {{storageClassName: {CLASS}, accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 32Mi}}}}}}}}}}}}]}}}}"
    ))?;
    becomes(&ns, "pod/user", ".status.phase", "Running")?;
    let during = volumes_on_disk(&ns)?.len();
    ensure!(during == before + 2, "{before} volumes became {during}");
    ns.kubectl(&["delete", "pod", "user", "--wait=true", "--timeout=60s"])?;
    wait_until("both volumes are gone", SOON, || {
        Ok(volumes_on_disk(&ns)?.len() == before)
    })
}

#[test]
#[ignore = "needs a cluster with CSI: cargo e2e test csi"]
fn a_block_volume_is_a_device_of_its_size() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "csi-block")?;
    ns.apply(&claim("raw", ", volumeMode: Block"))?;
    let pod = |name: &str, script: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{restartPolicy: Never, terminationGracePeriodSeconds: 1, containers: [{{name: c, image: {IMAGE}, command: [sh, -ec, '{script}'], volumeDevices: [{{name: raw, devicePath: /dev/raw}}]}}], volumes: [{{name: raw, persistentVolumeClaim: {{claimName: raw}}}}]}}}}"
        )
    };
    ns.apply(&pod(
        "writer",
        "echo kept > /dev/raw; sync; blockdev --getsize64 /dev/raw",
    ))?;
    becomes(&ns, "pod/writer", ".status.phase", "Succeeded")?;
    let size = ns.kubectl(&["logs", "writer"])?;
    ensure!(size.trim() == "67108864", "the device has {size:?} bytes");
    ns.kubectl(&["delete", "pod", "writer", "--wait=true", "--timeout=60s"])?;
    ns.apply(&pod("reader", "head -c 4 /dev/raw"))?;
    becomes(&ns, "pod/reader", ".status.phase", "Succeeded")?;
    let said = ns.kubectl(&["logs", "reader"])?;
    ensure!(said == "kept", "the device holds {said:?}");
    ns.kubectl(&["delete", "pod", "reader", "--wait=true", "--timeout=60s"])?;
    ns.kubectl(&["delete", "pvc", "raw", "--wait=true", "--timeout=60s"])
        .map(drop)
}
