//! Promise: what a pod writes to its claim is there for the next pod, wherever the volume is, and goes with the claim only as
//! its reclaim policy says.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::cluster::Cluster;
use e2e::probe::{Namespace, cluster, wait_until};

const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.37.0-2";

/// A pod that mounts `claim` at /data and runs `script`.
fn pod(name: &str, node: Option<&str>, claim: &str, script: &str) -> String {
    let node = node.map_or(String::new(), |node| format!("  nodeName: {node}\n"));
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n{node}  restartPolicy: Never\n  terminationGracePeriodSeconds: 1\n  \
         volumes: [{{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}]\n  containers:\n  - name: c\n    image: {BUSYBOX}\n    \
         command: [sh, -c, \"{script}\"]\n    volumeMounts: [{{name: data, mountPath: /data}}]\n"
    )
}

fn claim(name: &str, class: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec: {{accessModes: [ReadWriteOnce], \
         storageClassName: '{class}', resources: {{requests: {{storage: 1Mi}}}}}}\n"
    )
}

fn class(name: &str) -> String {
    format!(
        "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: {name}}}\nprovisioner: kubernetes.io/no-provisioner\n\
         volumeBindingMode: WaitForFirstConsumer\n"
    )
}

/// A volume in a directory of one node.
fn local_volume(name: &str, class: &str, node: &str, path: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {name}}}\nspec:\n  capacity: {{storage: 5Mi}}\n  \
         accessModes: [ReadWriteOnce]\n  persistentVolumeReclaimPolicy: Retain\n  storageClassName: {class}\n  local: {{path: {path}}}\n  \
         nodeAffinity: {{required: {{nodeSelectorTerms: [{{matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [{node}]}}]}}]}}}}\n"
    )
}

/// Objects without a namespace, deleted in the end.
struct Outside<'a> {
    cluster: &'a Cluster,
    objects: Vec<String>,
}

impl<'a> Outside<'a> {
    fn apply(
        ns: &Namespace<'a>,
        cluster: &'a Cluster,
        manifests: &[(&str, String)],
    ) -> Result<Self> {
        let mut outside = Self {
            cluster,
            objects: Vec::new(),
        };
        for (object, manifest) in manifests {
            outside.objects.push((*object).to_owned());
            ns.apply(manifest)?;
        }
        Ok(outside)
    }
}

impl Drop for Outside<'_> {
    fn drop(&mut self) {
        for object in &self.objects {
            let _ = self
                .cluster
                .kubectl(&["delete", object, "--ignore-not-found", "--wait=false"]);
        }
    }
}

fn on_node(cluster: &Cluster, node: &str, script: &str) -> Result<String> {
    let out = cluster
        .node_place(node)
        .command("sh")
        .args(["-c", script])
        .output()?;
    ensure!(
        out.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn wait_for(ns: &Namespace<'_>, object: &str, path: &str, expected: &str) -> Result<()> {
    let path = format!("jsonpath={path}");
    wait_until(
        &format!("{object} {expected}"),
        Duration::from_secs(60),
        || Ok(ns.kubectl(&["get", object, "-o", &path])? == expected),
    )
}

fn succeeded(ns: &Namespace<'_>, name: &str) -> Result<()> {
    wait_for(ns, &format!("pod/{name}"), "{.status.phase}", "Succeeded")
}

#[test]
fn a_claim_outlives_its_pods_and_its_volume_outlives_the_claim() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "claims-static")?;
    let path = "/var/lib/misc/claims-static";
    let volume = format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: claims-static}}\nspec:\n  capacity: {{storage: 5Mi}}\n  \
         accessModes: [ReadWriteOnce]\n  persistentVolumeReclaimPolicy: Retain\n  storageClassName: ''\n  \
         hostPath: {{path: {path}, type: DirectoryOrCreate}}\n"
    );
    let outside = Outside::apply(&ns, &cluster, &[("pv/claims-static", volume)])?;
    ns.apply(&claim("data", ""))?;
    wait_for(&ns, "pvc/data", "{.status.phase}", "Bound")?;
    ns.apply(&pod(
        "writes",
        Some("node-1"),
        "data",
        "echo kept > /data/file",
    ))?;
    succeeded(&ns, "writes")?;
    ns.kubectl(&["delete", "pod", "writes"])?;
    ns.apply(&pod("reads", Some("node-1"), "data", "cat /data/file"))?;
    succeeded(&ns, "reads")?;
    ensure!(ns.kubectl(&["logs", "reads"])? == "kept\n");
    let unused = "{.status.conditions[?(@.type==\"Unused\")].status}";
    wait_for(&ns, "pvc/data", unused, "True")?;
    // A claim that a pod uses stays until the pod has gone.
    ns.kubectl(&["delete", "pvc", "data", "--wait=false"])?;
    ns.kubectl(&["delete", "pod", "reads"])?;
    wait_for(&ns, "pv/claims-static", "{.status.phase}", "Released")?;
    ensure!(on_node(&cluster, "node-1", &format!("cat {path}/file"))? == "kept\n");
    ns.delete()?;
    drop(outside);
    on_node(&cluster, "node-1", &format!("rm -r {path}")).map(drop)
}

#[test]
fn a_pod_goes_where_the_volume_of_its_claim_is() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "claims-delayed")?;
    let path = "/var/lib/misc/claims-delayed";
    on_node(&cluster, "node-2", &format!("mkdir -p {path}"))?;
    let outside = Outside::apply(
        &ns,
        &cluster,
        &[
            ("storageclass/claims-delayed", class("claims-delayed")),
            (
                "pv/claims-delayed",
                local_volume("claims-delayed", "claims-delayed", "node-2", path),
            ),
        ],
    )?;
    ns.apply(&claim("data", "claims-delayed"))?;
    // It waits for a pod, and says so.
    wait_until("the event", Duration::from_secs(30), || {
        let events = ns.kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"])?;
        Ok(events.contains("WaitForFirstConsumer"))
    })?;
    ensure!(ns.kubectl(&["get", "pvc/data", "-o", "jsonpath={.status.phase}"])? == "Pending");
    ns.apply(&pod("writes", None, "data", "echo kept > /data/file"))?;
    succeeded(&ns, "writes")?;
    let node = ns.kubectl(&["get", "pod", "writes", "-o", "jsonpath={.spec.nodeName}"])?;
    ensure!(node == "node-2", "it ran on {node}");
    ensure!(on_node(&cluster, "node-2", &format!("cat {path}/file"))? == "kept\n");
    // Nothing is left mounted, and nothing was deleted, once the pod has gone.
    let uid = ns.kubectl(&["get", "pod", "writes", "-o", "jsonpath={.metadata.uid}"])?;
    ns.kubectl(&["delete", "pod", "writes"])?;
    wait_until("the pod's directory to go", Duration::from_secs(30), || {
        on_node(
            &cluster,
            "node-2",
            &format!("test -e /var/lib/kubelet/pods/{uid} && echo there || true"),
        )
        .map(|said| said.is_empty())
    })?;
    ensure!(on_node(&cluster, "node-2", &format!("cat {path}/file"))? == "kept\n");
    ns.delete()?;
    drop(outside);
    on_node(&cluster, "node-2", &format!("rm -r {path}")).map(drop)
}

#[test]
fn a_pod_without_a_volume_for_its_claim_waits_and_says_why() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "claims-none")?;
    ns.apply(&claim("data", "no-such-class"))?;
    ns.apply(&pod("waits", None, "data", "true"))?;
    ns.apply(&pod("lost", None, "no-such-claim", "true"))?;
    wait_until("the reasons", Duration::from_secs(60), || {
        let events = ns.kubectl(&["get", "events", "-o", "jsonpath={.items[*].message}"])?;
        Ok([
            "storageclass.storage.k8s.io \"no-such-class\" not found",
            "pod has unbound immediate PersistentVolumeClaims",
            "persistentvolumeclaim \"no-such-claim\" not found",
        ]
        .iter()
        .all(|words| events.contains(words)))
    })?;
    ns.delete()
}

#[test]
fn replicas_of_a_stateful_set_have_a_volume_each_and_keep_it() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "claims-set")?;
    let (node, base) = ("node-1", "/var/lib/misc/claims-set");
    on_node(&cluster, node, &format!("mkdir -p {base}/0 {base}/1"))?;
    let outside = Outside::apply(
        &ns,
        &cluster,
        &[
            ("storageclass/claims-set", class("claims-set")),
            (
                "pv/claims-set-0",
                local_volume("claims-set-0", "claims-set", node, &format!("{base}/0")),
            ),
            (
                "pv/claims-set-1",
                local_volume("claims-set-1", "claims-set", node, &format!("{base}/1")),
            ),
        ],
    )?;
    ns.apply(&format!(
        "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: db}}\nspec:\n  replicas: 2\n  serviceName: db\n  \
         selector: {{matchLabels: {{app: db}}}}\n  template:\n    metadata: {{labels: {{app: db}}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 1\n      containers:\n      - name: c\n        image: {BUSYBOX}\n        \
         command: [sh, -c, 'echo $HOSTNAME >> /data/who; exec sleep 36000']\n        volumeMounts: [{{name: data, mountPath: /data}}]\n  \
         volumeClaimTemplates:\n  - metadata: {{name: data}}\n    spec: {{accessModes: [ReadWriteOnce], storageClassName: claims-set, \
         resources: {{requests: {{storage: 1Mi}}}}}}\n"
    ))?;
    ns.kubectl(&["rollout", "status", "statefulset/db", "--timeout=90s"])?;
    ns.kubectl(&["delete", "pod", "db-1"])?;
    ns.kubectl(&["rollout", "status", "statefulset/db", "--timeout=90s"])?;
    ensure!(ns.kubectl(&["exec", "db-0", "--", "cat", "/data/who"])? == "db-0\n");
    wait_until("the second life of db-1", Duration::from_secs(60), || {
        Ok(ns.kubectl(&["exec", "db-1", "--", "cat", "/data/who"])? == "db-1\ndb-1\n")
    })?;
    ns.delete()?;
    drop(outside);
    on_node(&cluster, node, &format!("rm -r {base}")).map(drop)
}
