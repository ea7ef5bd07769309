//! Promise: a claim gets the volume that fits, says why it waits where none does, and gives its volume back as the policy says.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::probe::{Namespace, cluster, wait_until};

const SOON: Duration = Duration::from_secs(60);

fn volume(name: &str, size: &str, more: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: PersistentVolume, metadata: {{name: {name}, labels: {{suite: claims}}}}, spec: {{capacity: {{storage: {size}}}, accessModes: [ReadWriteOnce], hostPath: {{path: /var/lib/{name}}}, {more}}}}}"
    )
}

fn claim(name: &str, more: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: {name}}}, spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Gi}}}}, {more}}}}}"
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

fn told(ns: &Namespace<'_>, what: &str, words: &[&str]) -> Result<()> {
    wait_until(&format!("{what}: told {words:?}"), SOON, || {
        let text = ns.kubectl(&["describe", what])?;
        Ok(words.iter().all(|words| text.contains(words)))
    })
}

fn forget_volumes(ns: &Namespace<'_>) -> Result<()> {
    ns.kubectl(&["delete", "pv", "-l", "suite=claims", "--wait=false"])
        .map(drop)
}

#[test]
fn a_claim_gets_the_volume_that_fits_and_gives_it_back() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "claims")?;
    forget_volumes(&ns)?;
    let class = "storageClassName: claims-by-hand";
    for (name, size, policy) in [
        ("claims-large", "5Gi", "Retain"),
        ("claims-small", "2Gi", "Retain"),
        ("claims-elsewhere", "3Gi", "Delete"),
    ] {
        let more = format!("{class}, persistentVolumeReclaimPolicy: {policy}");
        ns.apply(&volume(name, size, &more))?;
        becomes(&ns, &format!("pv/{name}"), ".status.phase", "Available")?;
    }
    // The smallest that is large enough.
    ns.apply(&claim("first", class))?;
    becomes(&ns, "pvc/first", ".status.phase", "Bound")?;
    becomes(&ns, "pvc/first", ".spec.volumeName", "claims-small")?;
    becomes(&ns, "pvc/first", ".status.capacity.storage", "2Gi")?;
    becomes(&ns, "pv/claims-small", ".status.phase", "Bound")?;
    // By name, then without one.
    let by_name = format!("{class}, volumeName: claims-large");
    ns.apply(&claim("second", &by_name))?;
    becomes(&ns, "pvc/second", ".status.phase", "Bound")?;
    ns.apply(&claim("third", class))?;
    becomes(&ns, "pvc/third", ".spec.volumeName", "claims-elsewhere")?;
    // Kept, with a claim that is gone; or not to be deleted, and it says why.
    ns.kubectl(&["delete", "pvc", "first", "third", "--wait=true"])?;
    becomes(&ns, "pv/claims-small", ".status.phase", "Released")?;
    becomes(&ns, "pv/claims-elsewhere", ".status.phase", "Failed")?;
    let words = ["VolumeFailedDelete", "only supports /tmp/.+"];
    told(&ns, "pv/claims-elsewhere", &words)?;
    // A volume that goes loses its claim.
    ns.kubectl(&["delete", "pv", "claims-large", "--wait=false"])?;
    let unprotected = "{\"metadata\":{\"finalizers\":null}}";
    ns.kubectl(&["patch", "pv", "claims-large", "-p", unprotected])?;
    becomes(&ns, "pvc/second", ".status.phase", "Lost")?;
    told(&ns, "pvc/second", &["ClaimLost"])?;
    forget_volumes(&ns)?;
    ns.delete()
}

#[test]
fn a_claim_that_waits_says_why() -> Result<()> {
    let cluster = cluster()?;
    let ns = Namespace::create(&cluster, "claims-waiting")?;
    for (name, provisioner, mode) in [
        ("claims-later", "example.com/none", "WaitForFirstConsumer"),
        ("claims-now", "example.com/none", "Immediate"),
        ("claims-nobody", "kubernetes.io/no-provisioner", "Immediate"),
    ] {
        ns.apply(&format!(
            "{{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {{name: {name}}}, provisioner: {provisioner}, volumeBindingMode: {mode}}}"
        ))?;
    }
    for (name, class, words) in [
        (
            "none",
            "''",
            "FailedBinding|no persistent volumes available for this claim",
        ),
        (
            "unknown",
            "claims-unknown",
            "ProvisioningFailed|\"claims-unknown\" not found",
        ),
        (
            "nobody",
            "claims-nobody",
            "ProvisioningFailed|no volume plugin matched name",
        ),
        (
            "later",
            "claims-later",
            "WaitForFirstConsumer|waiting for first consumer",
        ),
        ("now", "claims-now", "ExternalProvisioning|example.com/none"),
    ] {
        ns.apply(&claim(name, &format!("storageClassName: {class}")))?;
        let words: Vec<&str> = words.split('|').collect();
        told(&ns, &format!("pvc/{name}"), &words)?;
        let phase = field(&ns, &format!("pvc/{name}"), ".status.phase")?;
        ensure!(phase == "Pending", "{name} is {phase}");
    }
    let key = ".metadata.annotations.volume\\.kubernetes\\.io/storage-provisioner";
    becomes(&ns, "pvc/now", key, "example.com/none")?;
    ns.kubectl(&[
        "delete",
        "sc",
        "claims-later",
        "claims-now",
        "claims-nobody",
    ])?;
    ns.delete()
}
