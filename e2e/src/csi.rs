//! Storage of a cluster that is brought up `--with-csi`: the images, the objects, and what `down` must give back. And csi-test's suite
//! against the driver alone.
//!
//! The objects are upstream's own, read from the Go modules that the programs are built from (Kubernetes' `testing-manifests`,
//! external-snapshotter, local-path-provisioner); what this cluster cannot have is taken out of them by name.

mod sanity;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::Cluster;
pub use crate::cluster::Storage;
use crate::cluster::layout::Layout;
use crate::programs::{self, Outputs};
use crate::step::{Steps, output};

pub use sanity::{SanityOptions, run as sanity};

/// Applies the objects and waits until their pods run.
///
/// # Errors
/// kubectl fails, or a pod does not run.
pub fn apply(cluster: &Cluster, steps: &Steps) -> Result<()> {
    for storage in &cluster.state.options.with_csi {
        let step = steps.start(&format!("storage {}", storage.set()), None)?;
        let workloads: &[(&str, &str)] = match storage {
            Storage::Hostpath => {
                apply_hostpath(cluster)?;
                &[
                    ("kube-system", "deployment/snapshot-controller"),
                    ("default", "statefulset/csi-hostpathplugin"),
                ]
            }
            Storage::LocalPath => {
                apply_local_path(cluster)?;
                &[("local-path-storage", "deployment/local-path-provisioner")]
            }
        };
        for (namespace, workload) in workloads {
            step.message(&format!("wait for {workload}"));
            let wait = [
                "-n",
                namespace,
                "rollout",
                "status",
                workload,
                "--timeout=180s",
            ];
            cluster.kubectl(&wait)?;
        }
        step.done();
    }
    Ok(())
}

/// What no image here holds: they are in git only.
const NOT_TO_BE_HAD: &[&str] = &[
    "csi-external-health-monitor-controller",
    "csi-snapshot-metadata",
];

/// A volume of the latter.
const ITS_VOLUME: &str = "csi-snapshot-metadata-server-certs";

const CLASS: &str = "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: csi-hostpath-sc}
provisioner: hostpath.csi.k8s.io
reclaimPolicy: Delete
volumeBindingMode: Immediate
allowVolumeExpansion: true
";

fn apply_hostpath(cluster: &Cluster) -> Result<()> {
    let snapshots = module_dir(
        &cluster.outputs,
        "csi",
        "github.com/kubernetes-csi/external-snapshotter/client/v8",
    )?
    .join("config/crd");
    let mut crds: Vec<PathBuf> = fs::read_dir(&snapshots)
        .with_context(|| format!("read {}", snapshots.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name != "kustomization.yaml")
        })
        .collect();
    crds.sort();
    for crd in &crds {
        let path = crd.to_string_lossy();
        // Too large for the annotation of a client's apply.
        cluster.kubectl(&["apply", "--server-side", "-f", &path])?;
    }
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all"])?;

    let controller = module_dir(
        &cluster.outputs,
        "csi",
        "github.com/kubernetes-csi/external-snapshotter/v8",
    )?
    .join("deploy/kubernetes/snapshot-controller");
    let storage = module_dir(&cluster.outputs, "", "k8s.io/kubernetes")?
        .join("test/e2e/testing-manifests/storage-csi");
    let files = [
        controller.join("rbac-snapshot-controller.yaml"),
        controller.join("setup-snapshot-controller.yaml"),
        storage.join("external-attacher/rbac.yaml"),
        storage.join("external-provisioner/rbac.yaml"),
        storage.join("external-resizer/rbac.yaml"),
        storage.join("external-snapshotter/csi-snapshotter/rbac-csi-snapshotter.yaml"),
        storage.join("hostpath/hostpath/csi-hostpath-driverinfo.yaml"),
        storage.join("hostpath/hostpath/csi-hostpath-plugin.yaml"),
        storage.join("hostpath/hostpath/csi-hostpath-snapshotclass.yaml"),
    ];
    for file in &files {
        apply_adapted(cluster, file)?;
    }
    cluster.apply(CLASS)
}

/// Applies a file's objects as this cluster can have them.
fn apply_adapted(cluster: &Cluster, file: &Path) -> Result<()> {
    let path = file.to_string_lossy();
    let text = cluster.kubectl(&["create", "--dry-run=client", "-o", "json", "-f", &path])?;
    let mut adapted = String::new();
    for object in serde_json::Deserializer::from_str(&text).into_iter::<Value>() {
        let mut object = object.with_context(|| format!("read kubectl's JSON of {path}"))?;
        adapt(&mut object);
        adapted += &format!("---\n{object}\n");
    }
    ensure!(!adapted.is_empty(), "{path} holds no object");
    cluster
        .apply(&adapted)
        .with_context(|| format!("apply {path}"))
}

/// One node's cluster needs one controller; what cannot be had goes; accounts without a namespace get their binding's, or `default`.
fn adapt(object: &mut Value) {
    // By pointer: an index that is not there would be made.
    if let Some(items) = array(object, "/items") {
        return items.iter_mut().for_each(adapt);
    }
    // A binding's accounts are of its own namespace.
    let namespace = object
        .pointer("/metadata/namespace")
        .and_then(Value::as_str);
    let namespace = namespace.unwrap_or("default").to_owned();
    if let Some(subjects) = array(object, "/subjects") {
        for subject in subjects {
            if subject["kind"] == "ServiceAccount" && subject["namespace"].is_null() {
                subject["namespace"] = namespace.as_str().into();
            }
        }
    }
    if object["kind"] == "Deployment" {
        object["spec"]["replicas"] = 1.into();
        object["spec"]["minReadySeconds"] = 0.into();
    }
    if let Some(containers) = array(object, "/spec/template/spec/containers") {
        containers.retain(|container| {
            let name = container["name"].as_str().unwrap_or_default();
            !NOT_TO_BE_HAD.contains(&name)
        });
    }
    if let Some(volumes) = array(object, "/spec/template/spec/volumes") {
        volumes.retain(|volume| volume["name"] != ITS_VOLUME);
    }
}

fn array<'a>(object: &'a mut Value, pointer: &str) -> Option<&'a mut Vec<Value>> {
    object.pointer_mut(pointer)?.as_array_mut()
}

fn apply_local_path(cluster: &Cluster) -> Result<()> {
    cluster.apply(&local_path_objects(&cluster.outputs)?)
}

/// The objects of rancher's provisioner as a cluster of images of ours can have them.
///
/// # Errors
/// The module is not there, or has another form.
pub fn local_path_objects(outputs: &Outputs) -> Result<String> {
    let dir = module_dir(
        outputs,
        "localpath",
        "github.com/rancher/local-path-provisioner",
    )?;
    let file = dir.join("deploy/local-path-storage.yaml");
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    local_path(&text)
}

/// The provisioner's objects with images of this cluster, in folders that are a node's own, and with the default class.
fn local_path(text: &str) -> Result<String> {
    let mut text = text.to_owned();
    for (from, to) in [
        (
            "image: rancher/local-path-provisioner:",
            "image: registry.k8s.io/gantry-test/local-path-provisioner:",
        ),
        (
            "image: busybox\n",
            "image: registry.k8s.io/e2e-test-images/busybox:1.37.0-2\n",
        ),
        (
            "/opt/local-path-provisioner",
            "/var/lib/local-path-provisioner",
        ),
        (
            "metadata:\n  name: local-path\n",
            "metadata:\n  name: local-path\n  annotations: {storageclass.kubernetes.io/is-default-class: \"true\"}\n",
        ),
    ] {
        ensure!(
            text.contains(from),
            "local-path-storage.yaml has no {from:?}"
        );
        text = text.replace(from, to);
    }
    Ok(text)
}

/// Where the Go command keeps a module's files. `of`: the module below `e2e/upstream` that asks for it.
///
/// # Errors
/// It is not there.
pub fn module_dir(outputs: &Outputs, of: &str, module: &str) -> Result<PathBuf> {
    let dir = output(
        Command::new("go")
            .current_dir(programs::go_module(outputs, of))
            .args(["list", "-m", "-f", "{{.Dir}}", module]),
    )?;
    let dir = PathBuf::from(dir.trim());
    ensure!(dir.is_dir(), "{module} is not in Go's module cache");
    Ok(dir)
}

/// Gives back the loop devices of block volumes that a driver had no time for. Before the files go: a device is found by them.
///
/// # Errors
/// One cannot be given back.
pub fn release_loop_devices(layout: &Layout) -> Result<()> {
    let Ok(nodes) = fs::read_dir(layout.dir().join("nodes")) else {
        return Ok(());
    };
    for node in nodes.flatten() {
        let volumes = node.path().join("lib/csi-hostpath-data/volumes");
        let Ok(volumes) = fs::read_dir(volumes) else {
            continue;
        };
        for volume in volumes.flatten().map(|entry| entry.path()) {
            if !volume.is_file() {
                continue;
            }
            let list = ["--noheadings", "--output", "NAME", "--associated"];
            let devices = output(Command::new("losetup").args(list).arg(&volume))?;
            for device in devices.split_whitespace() {
                output(Command::new("losetup").args(["--detach", device]))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_cannot_be_had_is_taken_out() {
        let mut object = json!({"kind": "StatefulSet", "spec": {"replicas": 1, "template": {"spec": {
            "containers": [{"name": "hostpath"}, {"name": "csi-snapshot-metadata"}],
            "volumes": [{"name": ITS_VOLUME}, {"name": "dev-dir"}],
        }}}});
        adapt(&mut object);
        let pod = &object["spec"]["template"]["spec"];
        assert_eq!(pod["containers"], json!([{"name": "hostpath"}]));
        assert_eq!(pod["volumes"], json!([{"name": "dev-dir"}]));
        let mut binding = json!({"kind": "RoleBinding", "subjects": [
            {"kind": "ServiceAccount", "name": "a"},
            {"kind": "ServiceAccount", "name": "a", "namespace": "b"},
            {"kind": "Group", "name": "a"},
        ]});
        adapt(&mut binding);
        let namespaces = binding["subjects"].as_array().expect("it is a list").iter();
        let namespaces: Vec<&Value> = namespaces.map(|one| &one["namespace"]).collect();
        assert_eq!(namespaces, [&json!("default"), &json!("b"), &Value::Null]);
        let mut binding = json!({"kind": "RoleBinding", "metadata": {"namespace": "kube-system"},
            "subjects": [{"kind": "ServiceAccount", "name": "a"}]});
        adapt(&mut binding);
        assert_eq!(binding["subjects"][0]["namespace"], "kube-system");
        // Nothing is put in that was not there.
        let class = json!({"kind": "StorageClass", "provisioner": "a"});
        let mut adapted = class.clone();
        adapt(&mut adapted);
        assert_eq!(adapted, class);
    }

    #[test]
    fn an_unknown_form_of_the_provisioners_objects_is_told_of() {
        assert!(local_path("image: somebody/else:1\n").is_err());
    }
}
