//! Mount points inside a volume. A read-only volume with another mounted below it needs the directory to be there
//! first. Upstream: pkg/volume/util/nested_volumes.go.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, VolumeMount};

/// The directories, relative to volume `name`, below which containers of `pod` mount other volumes; only the
/// topmost ones.
pub(crate) fn nested_mount_points(name: &str, pod: &Pod) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for mounts in volume_mounts(pod) {
        let all: BTreeSet<PathBuf> = mounts.iter().map(|m| clean(&m.mount_path)).collect();
        for mine in mounts
            .iter()
            .filter(|m| m.name == name)
            .map(|m| clean(&m.mount_path))
        {
            let mut previous: Option<&Path> = None;
            // Sorted by component: what is below a path follows it at once. A pod may have ten thousands.
            let from: (Bound<PathBuf>, Bound<PathBuf>) =
                (Bound::Excluded(mine.clone()), Bound::Unbounded);
            for path in all.range(from) {
                let Ok(relative) = path.strip_prefix(&mine) else {
                    break;
                };
                if previous.is_some_and(|p| path.starts_with(p)) {
                    continue;
                }
                previous = Some(path);
                found.insert(relative.to_owned());
            }
        }
    }
    found
}

/// The mounts of each container: init, regular, ephemeral.
pub(crate) fn volume_mounts(pod: &Pod) -> impl Iterator<Item = &[VolumeMount]> {
    let spec = pod.spec.as_ref();
    let init = spec
        .and_then(|s| s.init_containers.as_deref())
        .unwrap_or_default();
    let regular = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
    let ephemeral = spec
        .and_then(|s| s.ephemeral_containers.as_deref())
        .unwrap_or_default();
    init.iter()
        .chain(regular)
        .map(|c| c.volume_mounts.as_deref().unwrap_or_default())
        .chain(
            ephemeral
                .iter()
                .map(|c| c.volume_mounts.as_deref().unwrap_or_default()),
        )
}

/// The names of the volumes that containers get as devices.
pub(crate) fn volume_devices(pod: &Pod) -> impl Iterator<Item = &str> {
    let spec = pod.spec.as_ref();
    let init = spec
        .into_iter()
        .flat_map(|s| s.init_containers.iter().flatten());
    let regular = spec.into_iter().flat_map(|s| &s.containers);
    let ephemeral = spec
        .into_iter()
        .flat_map(|s| s.ephemeral_containers.iter().flatten());
    let devices = init.chain(regular).map(|c| c.volume_devices.as_ref());
    let devices = devices.chain(ephemeral.map(|c| c.volume_devices.as_ref()));
    devices
        .flatten()
        .flatten()
        .map(|device| device.name.as_str())
}

/// Without `.` and with `..` resolved by name; it cannot climb above the root.
fn clean(path: &str) -> PathBuf {
    let mut out = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_topmost_of_what_is_below() {
        let pod: Pod = serde_json::from_value(
            serde_json::json!({"spec": {"containers": [{"name": "c", "volumeMounts": [
                {"name": "v", "mountPath": "/dir"},
                {"name": "a", "mountPath": "/dir/nested/"},
                {"name": "b", "mountPath": "/dir/nested/double"},
                {"name": "c", "mountPath": "/dir/nested-vol"},
                {"name": "d", "mountPath": "/dir/x/../y/z"},
                {"name": "e", "mountPath": "/directory"},
                {"name": "f", "mountPath": "/dir/../../etc"},
            ]}]}}),
        )
        .unwrap();
        let dirs: Vec<_> = nested_mount_points("v", &pod).into_iter().collect();
        assert_eq!(dirs, ["nested", "nested-vol", "y/z"].map(PathBuf::from));
        assert!(nested_mount_points("e", &pod).is_empty());
    }

    #[test]
    fn many_mounts_take_no_longer_than_few() {
        let mount = |n: u32| VolumeMount {
            name: "v".to_owned(),
            mount_path: format!("/m{n}"),
            ..VolumeMount::default()
        };
        let inner = VolumeMount {
            name: "w".to_owned(),
            mount_path: "/m7/in".to_owned(),
            ..VolumeMount::default()
        };
        let mounts: Vec<_> = (0..30_000).map(mount).chain([inner]).collect();
        let mut pod: Pod =
            serde_json::from_value(serde_json::json!({"spec": {"containers": [{"name": "c"}]}}))
                .unwrap();
        pod.spec.as_mut().unwrap().containers[0].volume_mounts = Some(mounts);
        let begun = std::time::Instant::now();
        let dirs: Vec<_> = nested_mount_points("v", &pod).into_iter().collect();
        assert_eq!(dirs, [PathBuf::from("in")]);
        assert!(begun.elapsed() < std::time::Duration::from_secs(10));
    }
}
