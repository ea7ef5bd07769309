//! Volumes, and where containers mount them.

use std::collections::{BTreeMap, HashSet};

use component_helpers::quantity::amount;
use k8s_openapi::api::core::v1::{Container, PodSpec, Volume};

use super::field::{Errors, Path};
use super::names::{descending_path, dns_label, no_backsteps};

/// The kinds, in the order in which upstream looks at them: of several, those after the first are too many.
const KINDS: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

const HOST_PATH_TYPES: [&str; 8] = [
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];

/// The volumes that are as they should be, by name.
pub type Volumes<'a> = BTreeMap<&'a str, &'a Volume>;

pub fn volumes<'a>(spec: &'a PodSpec, path: &Path, errors: &mut Errors) -> Volumes<'a> {
    let mut good = Volumes::new();
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let path = path.index(index);
        let before = errors.len();
        source(volume, &path, errors);
        let name = path.child("name");
        match volume.name.as_str() {
            "" => errors.required(&name, ""),
            text => dns_label(text, &name, errors),
        }
        if good.contains_key(volume.name.as_str()) {
            errors.duplicate(&name, &volume.name);
        }
        if errors.len() == before {
            good.insert(&volume.name, volume);
        }
    }
    good
}

fn source(volume: &Volume, path: &Path, errors: &mut Errors) {
    if let Some(empty) = &volume.empty_dir
        && let Some(limit) = &empty.size_limit
        && amount(limit).is_negative()
    {
        let path = path.child("emptyDir").child("sizeLimit");
        errors.forbidden(&path, "SizeLimit field must be a valid resource quantity");
    }
    if let Some(host) = &volume.host_path {
        let path = path.child("hostPath");
        match host.path.as_str() {
            "" => errors.required(&path.child("path"), ""),
            text => {
                no_backsteps(text, &path.child("path"), errors);
                let kind = host.type_.as_deref().unwrap_or_default();
                if !HOST_PATH_TYPES.contains(&kind) {
                    errors.not_supported(&path.child("type"), kind, &HOST_PATH_TYPES);
                }
            }
        }
    }
    if let Some(nfs) = &volume.nfs {
        let path = path.child("nfs");
        for (value, field) in [(&nfs.server, "server"), (&nfs.path, "path")] {
            if value.is_empty() {
                errors.required(&path.child(field), "");
            }
        }
        if !nfs.path.is_empty() && !nfs.path.starts_with('/') {
            let text = "must be an absolute path";
            errors.invalid(&path.child("path"), nfs.path.as_str(), text);
        }
    }
    let set = serde_json::to_value(volume).unwrap_or_default();
    let mut kinds = KINDS.iter().filter(|kind| set.get(**kind).is_some());
    if kinds.next().is_none() {
        errors.required(path, "must specify a volume type");
    }
    for kind in kinds {
        errors.forbidden(&path.child(kind), "may not specify more than 1 volume type");
    }
}

/// What a container mounts, and the devices it gets.
pub fn mounts(container: &Container, volumes: &Volumes, path: &Path, errors: &mut Errors) {
    let devices = || container.volume_devices.iter().flatten();
    let all = path.child("volumeMounts");
    let mut points = HashSet::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let path = all.index(index);
        let (name, point) = (path.child("name"), path.child("mountPath"));
        if mount.name.is_empty() {
            errors.required(&name, "");
        }
        if !volumes.contains_key(mount.name.as_str()) {
            errors.not_found(&name, &mount.name);
        }
        if mount.mount_path.is_empty() {
            errors.required(&point, "");
        }
        if !points.insert(mount.mount_path.as_str()) {
            errors.invalid(&point, mount.mount_path.as_str(), "must be unique");
        }
        if devices().any(|d| d.name == mount.name) {
            let text = "must not already exist in volumeDevices";
            errors.invalid(&name, mount.name.as_str(), text);
        }
        if devices().any(|d| d.device_path == mount.mount_path) {
            let text = "must not already exist as a path in volumeDevices";
            errors.invalid(&point, mount.mount_path.as_str(), text);
        }
        let sub_path = mount.sub_path.as_deref().filter(|p| !p.is_empty());
        if let Some(sub_path) = sub_path {
            descending_path(sub_path, &all.child("subPath"), errors);
        }
        if let Some(expression) = mount.sub_path_expr.as_deref().filter(|p| !p.is_empty()) {
            if sub_path.is_some() {
                let text = "subPathExpr and subPath are mutually exclusive";
                errors.invalid(&path.child("subPathExpr"), expression, text);
            }
            descending_path(expression, &all.child("subPathExpr"), errors);
        }
        propagation(container, mount.mount_propagation.as_deref(), &all, errors);
        recursive_read_only(mount, &all.child("recursiveReadOnly"), errors);
    }
    volume_devices(container, volumes, &path.child("volumeDevices"), errors);
}

fn propagation(container: &Container, mode: Option<&str>, path: &Path, errors: &mut Errors) {
    let Some(mode) = mode else { return };
    let path = path.child("mountPropagation");
    let supported = ["Bidirectional", "HostToContainer", "None"];
    if !supported.contains(&mode) {
        errors.not_supported(&path, mode, &supported);
    }
    let context = container.security_context.as_ref();
    if mode == "Bidirectional" && context.and_then(|c| c.privileged) != Some(true) {
        let text = "Bidirectional mount propagation is available only to privileged containers";
        errors.forbidden(&path, text);
    }
}

fn recursive_read_only(
    mount: &k8s_openapi::api::core::v1::VolumeMount,
    path: &Path,
    errors: &mut Errors,
) {
    match mount.recursive_read_only.as_deref() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if mount.read_only != Some(true) {
                errors.forbidden(path, "may only be specified when readOnly is true");
            }
            if mount
                .mount_propagation
                .as_deref()
                .is_some_and(|p| p != "None")
            {
                let text = "may only be specified when mountPropagation is None or not specified";
                errors.forbidden(path, text);
            }
        }
        Some(other) => {
            errors.not_supported(path, other, &["Disabled", "Enabled", "IfPossible"]);
        }
    }
}

fn volume_devices(container: &Container, volumes: &Volumes, path: &Path, errors: &mut Errors) {
    let (mut names, mut paths) = (HashSet::new(), HashSet::new());
    for (index, device) in container.volume_devices.iter().flatten().enumerate() {
        let path = path.index(index);
        let (name, at) = (path.child("name"), path.child("devicePath"));
        if device.name.is_empty() {
            errors.required(&name, "");
        } else if !names.insert(device.name.as_str()) {
            errors.invalid(&name, device.name.as_str(), "must be unique");
        }
        match volumes.get(device.name.as_str()) {
            None => errors.not_found(&name, &device.name),
            Some(v) if v.persistent_volume_claim.is_none() && v.ephemeral.is_none() => {
                let text = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.invalid(&name, device.name.as_str(), text);
            }
            Some(_) => {}
        }
        if device.device_path.is_empty() {
            errors.required(&at, "");
        }
        if !paths.insert(device.device_path.as_str()) {
            errors.invalid(&at, device.device_path.as_str(), "must be unique");
        }
        if device.device_path.split('/').any(|part| part == "..") {
            let text = "can not contain backsteps ('..')";
            errors.invalid(&at, device.device_path.as_str(), text);
        }
    }
}
