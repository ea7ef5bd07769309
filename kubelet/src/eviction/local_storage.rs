//! Limits of local storage: `emptyDir.sizeLimit` and the limits of `ephemeral-storage`.
//!
//! Owns: [`violation`], pure. Upstream: `localStorageEviction` in `pkg/kubelet/eviction/eviction_manager.go`, v1.36.

use component_helpers::quantity::amount;
use component_helpers::resources::{PodResourcesOptions, pod_limits};
use k8s_openapi::api::core::v1::Pod;

use super::usage::{Parts, PodUsage, Wanted, is_local_ephemeral};

const EPHEMERAL_STORAGE: &str = "ephemeral-storage";

/// A limit that was passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// As the metric of evictions names it.
    pub signal: &'static str,
    /// Upstream's words, with the blank at the end.
    pub message: String,
}

/// What must be measured to judge the pod; `None`: it has no such limit.
pub fn wanted(pod: &Pod) -> Option<Wanted> {
    let spec = pod.spec.as_ref()?;
    let runtime = pod_limits(pod, &PodResourcesOptions::default()).contains_key(EPHEMERAL_STORAGE)
        || container_limits(pod).next().is_some();
    let sized = spec.volumes.iter().flatten().any(|volume| {
        is_local_ephemeral(volume)
            && volume.empty_dir.as_ref().is_some_and(|e| {
                e.size_limit
                    .as_ref()
                    .is_some_and(|size| amount(size).is_positive())
            })
    });
    (runtime || sized).then_some(Wanted {
        runtime,
        disks: true,
    })
}

fn container_limits(
    pod: &Pod,
) -> impl Iterator<Item = (&str, component_helpers::quantity::Amount)> {
    let sidecars = crate::pod::init_containers(pod)
        .iter()
        .filter(|container| crate::pod::is_restartable_init(container));
    let containers = crate::pod::containers(pod).iter().chain(sidecars);
    containers.filter_map(|container| {
        let limits = container.resources.as_ref()?.limits.as_ref()?;
        let limit = amount(limits.get(EPHEMERAL_STORAGE)?);
        limit
            .is_positive()
            .then_some((container.name.as_str(), limit))
    })
}

/// The first limit the pod passed: of a volume, of the pod, of a container.
///
/// `dedicated_image_fs`: writable layers are on a disk of their own and do not count against a container.
// DIFFERS: upstream measures memory volumes against their size, too; here the kernel holds them to it.
pub fn violation(pod: &Pod, usage: &PodUsage, dedicated_image_fs: bool) -> Option<Violation> {
    let passed = |bytes: u64, limit: component_helpers::quantity::Amount| {
        i128::from(bytes) > i128::from(limit.value())
    };
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    for volume in volumes {
        let size = volume
            .empty_dir
            .as_ref()
            .and_then(|e| e.size_limit.as_ref());
        let (Some(size), Some(used)) = (size, usage.volumes.get(&volume.name)) else {
            continue;
        };
        let limit = amount(size);
        if limit.is_positive() && passed(used.bytes, limit) {
            return Some(Violation {
                signal: "emptydirfs.limit",
                message: format!(
                    "Usage of EmptyDir volume {:?} exceeds the limit \"{limit}\". ",
                    volume.name
                ),
            });
        }
    }
    let of_pod = pod_limits(pod, &PodResourcesOptions::default());
    if let Some(limit) = of_pod.get(EPHEMERAL_STORAGE)
        && passed(usage.disk(Parts::ALL).bytes, *limit)
    {
        return Some(Violation {
            signal: "ephemeralpodfs.limit",
            message: format!(
                "Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "
            ),
        });
    }
    container_limits(pod).find_map(|(name, limit)| {
        let container = usage.containers.iter().find(|c| c.name == name)?;
        let mut used = container.logs;
        if !dedicated_image_fs {
            used += container.rootfs;
        }
        passed(used.bytes, limit).then(|| Violation {
            signal: "ephemeralcontainerfs.limit",
            message: format!(
                "Container {name} exceeded its local ephemeral storage limit \"{limit}\". "
            ),
        })
    })
}

#[cfg(test)]
mod tests {
    use host::DiskUsage;

    use super::super::usage::ContainerUsage;
    use super::*;

    const MI: u64 = 1 << 20;

    fn disk(bytes: u64) -> DiskUsage {
        DiskUsage {
            bytes,
            ..DiskUsage::default()
        }
    }

    fn pod(size: Option<&str>, medium: &str, limit: Option<&str>) -> Pod {
        let limits = limit.map(|l| serde_json::json!({ "ephemeral-storage": l }));
        serde_json::from_value(serde_json::json!({"spec": {
            "volumes": [{"name": "disk", "emptyDir": {"medium": medium, "sizeLimit": size}}],
            "containers": [
                {"name": "c", "resources": {"limits": limits}},
                {"name": "d", "resources": {"limits": limits}},
            ],
        }}))
        .unwrap()
    }

    #[test]
    fn every_limit_is_held() {
        // rootfs and logs of c, the volume, the rest; the limits; with a disk for images.
        let cases: &[(
            &str,
            [u64; 4],
            Option<&str>,
            Option<&str>,
            bool,
            Option<&str>,
        )] = &[
            (
                "below",
                [1, 1, 5, 0],
                Some("5Mi"),
                Some("10Mi"),
                false,
                None,
            ),
            (
                "volume",
                [0, 0, 6, 0],
                Some("5Mi"),
                None,
                false,
                Some("Usage of EmptyDir volume \"disk\" exceeds the limit \"5Mi\". "),
            ),
            ("no size", [0, 0, 6, 0], Some("0"), None, false, None),
            (
                "pod",
                [1, 1, 18, 1],
                None,
                Some("10Mi"),
                false,
                Some(
                    "Pod ephemeral local storage usage exceeds the total limit of containers 20Mi. ",
                ),
            ),
            (
                "container",
                [8, 3, 0, 0],
                None,
                Some("10Mi"),
                false,
                Some("Container c exceeded its local ephemeral storage limit \"10Mi\". "),
            ),
            (
                "layers elsewhere",
                [8, 3, 0, 0],
                None,
                Some("10Mi"),
                true,
                None,
            ),
        ];
        for (name, [rootfs, logs, volume, other], size, limit, dedicated, expect) in cases {
            let usage = PodUsage {
                containers: vec![ContainerUsage {
                    name: "c".into(),
                    rootfs: disk(rootfs * MI),
                    logs: disk(logs * MI),
                    ..ContainerUsage::default()
                }],
                volumes: [("disk".to_owned(), disk(volume * MI))].into(),
                other: disk(other * MI),
                processes: 0,
            };
            let found = violation(&pod(*size, "", *limit), &usage, *dedicated);
            assert_eq!(found.map(|v| v.message).as_deref(), *expect, "{name}");
        }
    }

    #[test]
    fn sidecars_have_limits_and_other_init_containers_have_none() {
        let limits = serde_json::json!({"limits": {"ephemeral-storage": "1Mi"}});
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "initContainers": [
                {"name": "once", "resources": limits},
                {"name": "sidecar", "restartPolicy": "Always", "resources": limits},
            ],
            // Enough for the pod as a whole.
            "containers": [{"name": "c", "resources": {"limits": {"ephemeral-storage": "10Mi"}}}],
        }}))
        .unwrap();
        assert!(wanted(&pod).is_some_and(|wanted| wanted.runtime));
        for (name, passes) in [("once", false), ("sidecar", true)] {
            let usage = PodUsage {
                containers: vec![ContainerUsage {
                    name: name.into(),
                    logs: disk(2 * MI),
                    ..ContainerUsage::default()
                }],
                ..PodUsage::default()
            };
            let found = violation(&pod, &usage, true).map(|v| v.message);
            let text = format!("Container {name} exceeded its local ephemeral storage limit");
            let told = found.is_some_and(|message| message.starts_with(&text));
            assert_eq!(told, passes, "{name}");
        }
    }

    #[test]
    fn only_pods_with_limits_are_measured() {
        for (size, medium, limit, expect) in [
            (None, "", None, None),
            (Some("0"), "", None, None),
            (Some("5Mi"), "Memory", None, None),
            (Some("5Mi"), "", None, Some(false)),
            (None, "", Some("1Gi"), Some(true)),
        ] {
            let wanted = wanted(&pod(size, medium, limit)).map(|w| w.runtime);
            assert_eq!(wanted, expect, "{size:?} {medium} {limit:?}");
        }
    }
}
