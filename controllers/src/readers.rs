//! What of the objects in the caches has readers. Nothing else is kept: a Pod as people write it is ten times what controllers look at.
//!
//! **Invariant:** Pods and Nodes are written by patches alone, never whole from a cache; a field that a controller begins to read is
//! taken off these lists.

use std::sync::LazyLock;

use component_base::informer::{Keep, Keeps, View};
use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, Node, Pod, Volume};

/// What the informers of this process keep.
pub fn keeps() -> Keeps {
    Keeps::default().with::<Pod>(of_pods()).with::<Node>(Keep {
        view: &NODE,
        trim: |_| {},
    })
}

fn of_pods() -> Keep<Pod> {
    Keep {
        view: &POD,
        trim: trim_pod,
    }
}

/// How containers are run: kubelets' business. Of the environment only Secrets are looked at (legacy tokens).
const CONTAINER: &[&str] = &[
    "image",
    "command",
    "args",
    "workingDir",
    "resizePolicy",
    "volumeDevices",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "imagePullPolicy",
    "stdin",
    "stdinOnce",
    "tty",
];

static POD: LazyLock<View> = LazyLock::new(|| {
    View::without(&[
        ("core.v1.Container", CONTAINER),
        ("core.v1.EphemeralContainerCommon", CONTAINER),
        ("core.v1.EnvVar", &["value"]),
        (
            "core.v1.EnvVarSource",
            &[
                "fieldRef",
                "resourceFieldRef",
                "configMapKeyRef",
                "fileKeyRef",
            ],
        ),
        ("core.v1.EnvFromSource", &["prefix", "configMapRef"]),
        (
            "core.v1.VolumeMount",
            &[
                "readOnly",
                "recursiveReadOnly",
                "mountPath",
                "subPath",
                "mountPropagation",
                "subPathExpr",
                "bindMountOptions",
            ],
        ),
        // SELinux alone is looked at.
        (
            "core.v1.SecurityContext",
            &[
                "capabilities",
                "privileged",
                "windowsOptions",
                "runAsUser",
                "runAsGroup",
                "runAsNonRoot",
                "readOnlyRootFilesystem",
                "allowPrivilegeEscalation",
                "procMount",
                "seccompProfile",
                "appArmorProfile",
            ],
        ),
        (
            "core.v1.PodSecurityContext",
            &[
                "windowsOptions",
                "runAsUser",
                "runAsGroup",
                "runAsNonRoot",
                "supplementalGroups",
                "supplementalGroupsPolicy",
                "fsGroup",
                "sysctls",
                "fsGroupChangePolicy",
                "seccompProfile",
                "appArmorProfile",
            ],
        ),
        (
            "core.v1.PodSpec",
            &[
                "terminationGracePeriodSeconds",
                "dnsPolicy",
                "serviceAccountName",
                "serviceAccount",
                "automountServiceAccountToken",
                "hostPID",
                "hostIPC",
                "shareProcessNamespace",
                "schedulerName",
                "hostAliases",
                "dnsConfig",
                "readinessGates",
                "runtimeClassName",
                "enableServiceLinks",
                "preemptionPolicy",
                "topologySpreadConstraints",
                "setHostnameAsFQDN",
                "hostUsers",
                "schedulingGates",
                "hostnameOverride",
            ],
        ),
        // What nobody attaches, protects or refers to a Secret by.
        (
            "core.v1.VolumeSource",
            &[
                "hostPath",
                "emptyDir",
                "gitRepo",
                "downwardAPI",
                "configMap",
                "image",
            ],
        ),
        (
            "core.v1.VolumeProjection",
            &[
                "downwardAPI",
                "configMap",
                "serviceAccountToken",
                "clusterTrustBundle",
                "podCertificate",
            ],
        ),
        ("core.v1.PodStatus", &["hostIP", "hostIPs"]),
        (
            "core.v1.ContainerStatus",
            &[
                "lastState",
                "image",
                "imageID",
                "containerID",
                "volumeMounts",
                "user",
                "allocatedResourcesStatus",
                "stopSignal",
            ],
        ),
        ("core.v1.ContainerStateRunning", &["startedAt"]),
        (
            "core.v1.ContainerStateTerminated",
            &["signal", "message", "startedAt", "containerID"],
        ),
        ("core.v1.ContainerStateWaiting", &["message"]),
        ("core.v1.PodCondition", &["lastProbeTime", "message"]),
    ])
});

static NODE: LazyLock<View> = LazyLock::new(|| {
    View::without(&[(
        "core.v1.NodeStatus",
        &[
            "daemonEndpoints",
            "nodeInfo",
            "images",
            "config",
            "runtimeHandlers",
            "features",
        ],
    )])
});

/// Kubernetes' own annotations are read (the cost of a deletion, the index of a Job's Pod, mirror Pods), others are not.
fn has_readers(annotation: &str) -> bool {
    let domain = annotation.split_once('/').map_or("", |(domain, _)| domain);
    domain.ends_with("kubernetes.io") && domain != "kubectl.kubernetes.io"
}

fn trim_pod(pod: &mut Pod) {
    retain_some(&mut pod.metadata.annotations, |annotations| {
        annotations.retain(|name, _| has_readers(name));
        annotations.is_empty()
    });
    if let Some(spec) = &mut pod.spec {
        retain_some(&mut spec.volumes, |volumes| {
            volumes.retain_mut(has_source);
            volumes.shrink_to_fit();
            volumes.is_empty()
        });
        // Without a volume that is left no mount is looked for.
        let mounts = spec.volumes.is_some();
        let all = spec.containers.iter_mut();
        for container in all.chain(spec.init_containers.iter_mut().flatten()) {
            trim_environment(&mut container.env, &mut container.env_from);
            if !mounts {
                container.volume_mounts = None;
            }
        }
        for container in spec.ephemeral_containers.iter_mut().flatten() {
            trim_environment(&mut container.env, &mut container.env_from);
            if !mounts {
                container.volume_mounts = None;
            }
        }
    }
    if let Some(status) = &mut pod.status {
        let spec = pod.spec.as_ref();
        let of_spec = spec.map_or(&[][..], |spec| &spec.containers);
        for status in status.container_statuses.iter_mut().flatten() {
            // No resize is under way: the sum is the same without.
            let container = of_spec.iter().find(|c| c.name == status.name);
            let resources = container.and_then(|c| c.resources.as_ref());
            if status.resources.as_ref() == resources
                && status.allocated_resources.as_ref()
                    == resources.and_then(|r| r.requests.as_ref())
            {
                status.resources = None;
                status.allocated_resources = None;
            }
        }
    }
}

fn trim_environment(env: &mut Option<Vec<EnvVar>>, env_from: &mut Option<Vec<EnvFromSource>>) {
    retain_some(env, |env| {
        let is_secret = |var: &EnvVar| {
            let from = var.value_from.as_ref();
            from.is_some_and(|from| from.secret_key_ref.is_some())
        };
        env.retain(is_secret);
        env.shrink_to_fit();
        env.is_empty()
    });
    retain_some(env_from, |env_from| {
        env_from.retain(|from| from.secret_ref.is_some());
        env_from.shrink_to_fit();
        env_from.is_empty()
    });
}

/// Whether anything but its name was kept of a volume.
fn has_source(volume: &mut Volume) -> bool {
    if let Some(projected) = &mut volume.projected {
        let sources = projected.sources.get_or_insert_default();
        sources.retain(|source| source.secret.is_some());
        sources.shrink_to_fit();
        if sources.is_empty() {
            return false;
        }
    }
    let name = std::mem::take(&mut volume.name);
    let has = *volume != Volume::default();
    volume.name = name;
    has
}

/// `trim` says whether nothing is left.
fn retain_some<T>(field: &mut Option<T>, trim: impl FnOnce(&mut T) -> bool) {
    if field.as_mut().is_some_and(trim) {
        *field = None;
    }
}

#[cfg(test)]
mod tests {
    use component_helpers::pod::references::secret_names;
    use component_helpers::resources::{PodResourcesOptions, pod_requests};
    use serde_json::json;

    use super::*;

    fn kept(pod: &Pod) -> Pod {
        of_pods().of_object(("", "v1", "Pod"), pod).unwrap()
    }

    fn pod() -> Pod {
        let resources = json!({"requests": {"cpu": "1", "memory": "1Gi"}});
        serde_json::from_value(json!({
            "metadata": {
                "name": "p", "namespace": "ns", "labels": {"app": "a"},
                "annotations": {
                    "controller.kubernetes.io/pod-deletion-cost": "7", "team": "blue", "example.com/x": "y",
                    "kubectl.kubernetes.io/last-applied-configuration": "{}",
                },
            },
            "spec": {
                "nodeName": "n", "restartPolicy": "Never", "imagePullSecrets": [{"name": "pull"}],
                "containers": [{
                    "name": "c", "image": "i", "args": ["x"], "resources": resources,
                    "env": [
                        {"name": "A", "value": "b"},
                        {"name": "S", "valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}},
                    ],
                    "envFrom": [{"configMapRef": {"name": "m"}}, {"secretRef": {"name": "from"}}],
                    "ports": [{"name": "http", "containerPort": 80}],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    "securityContext": {"privileged": true, "seLinuxOptions": {"level": "s0"}},
                    "livenessProbe": {"httpGet": {"port": 80}},
                }],
                "volumes": [
                    {"name": "data", "persistentVolumeClaim": {"claimName": "claim"}},
                    {"name": "scratch", "emptyDir": {}}, {"name": "map", "configMap": {"name": "m"}},
                    {"name": "s", "secret": {"secretName": "volume"}},
                    {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}},
                    {"name": "mixed", "projected": {"sources": [
                        {"configMap": {"name": "m"}}, {"secret": {"name": "projected"}},
                    ]}},
                ],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "hostIP": "10.0.0.9",
                "conditions": [{"type": "Ready", "status": "True", "message": "long"}],
                "containerStatuses": [{
                    "name": "c", "ready": true, "restartCount": 3, "image": "i", "imageID": "sha256:0",
                    "allocatedResources": {"cpu": "1", "memory": "1Gi"}, "resources": resources,
                    "state": {"terminated": {"exitCode": 7, "reason": "Error", "finishedAt": "2026-01-01T00:00:00Z"}},
                }],
            },
        }))
        .unwrap()
    }

    #[test]
    fn readers_see_the_same_in_what_is_kept() {
        let (whole, kept) = (pod(), kept(&pod()));
        assert_eq!(secret_names(&kept), secret_names(&whole));
        let options = PodResourcesOptions {
            use_status_resources: true,
            ..PodResourcesOptions::default()
        };
        assert_eq!(
            pod_requests(&kept, &options),
            pod_requests(&whole, &options)
        );
        let annotations: Vec<_> = kept.metadata.annotations.iter().flatten().collect();
        assert_eq!(annotations.len(), 1);
        let (spec, of_whole) = (kept.spec.unwrap(), whole.spec.unwrap());
        let names: Vec<_> = spec.volumes.iter().flatten().map(|v| &v.name).collect();
        assert_eq!(names, ["data", "s", "mixed"]);
        let (container, of_whole) = (&spec.containers[0], &of_whole.containers[0]);
        assert_eq!(container.ports, of_whole.ports);
        assert_eq!(container.resources, of_whole.resources);
        let selinux = |c: &k8s_openapi::api::core::v1::Container| {
            c.security_context.clone().and_then(|s| s.se_linux_options)
        };
        assert_eq!(selinux(container), selinux(of_whole));
        assert_eq!(
            (&container.image, &container.liveness_probe),
            (&None, &None)
        );
        assert_eq!(container.volume_mounts.as_ref().map(Vec::len), Some(1));
        let (status, of_whole) = (kept.status.unwrap(), whole.status.unwrap());
        assert_eq!((&status.pod_ip, &status.host_ip), (&of_whole.pod_ip, &None));
        let state = |s: &k8s_openapi::api::core::v1::PodStatus| {
            s.container_statuses.as_ref().unwrap()[0].state.clone()
        };
        assert_eq!(state(&status), state(&of_whole));
        assert_eq!(status.container_statuses.unwrap()[0].resources, None);
    }

    #[test]
    fn a_resize_under_way_is_counted() {
        let mut whole = pod();
        let statuses = whole.status.as_mut().unwrap().container_statuses.as_mut();
        let grown = serde_json::from_value(json!({"requests": {"cpu": "3"}})).unwrap();
        statuses.unwrap()[0].resources = Some(grown);
        let options = PodResourcesOptions {
            use_status_resources: true,
            ..PodResourcesOptions::default()
        };
        assert_eq!(
            pod_requests(&kept(&whole), &options),
            pod_requests(&whole, &options)
        );
    }

    #[test]
    fn views_name_fields_that_exist() {
        LazyLock::force(&NODE);
    }
}
