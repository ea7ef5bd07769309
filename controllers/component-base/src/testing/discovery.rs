//! What kinds there are: the pages of discovery, for clients that look before they ask. Other kinds are served all the same.

use http::Method;
use http::request::Parts;
use serde_json::{Value, json};

/// Of every kind in [`KINDS`].
const VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// Plural, kind, subresources.
type Kind = (&'static str, &'static str, &'static [&'static str]);

/// Version (of the core group, or with its group), kinds in namespaces, kinds of the cluster.
type Version = (&'static str, &'static [Kind], &'static [Kind]);

const STATUS: &[&str] = &["status"];
const SCALE: &[&str] = &["scale", "status"];

const KINDS: &[Version] = &[
    (
        "v1",
        &[
            ("configmaps", "ConfigMap", &[]),
            ("endpoints", "Endpoints", &[]),
            ("events", "Event", &[]),
            ("limitranges", "LimitRange", &[]),
            ("persistentvolumeclaims", "PersistentVolumeClaim", STATUS),
            ("pods", "Pod", &["binding", "eviction", "status"]),
            ("podtemplates", "PodTemplate", &[]),
            ("replicationcontrollers", "ReplicationController", SCALE),
            ("resourcequotas", "ResourceQuota", STATUS),
            ("secrets", "Secret", &[]),
            ("serviceaccounts", "ServiceAccount", &["token"]),
            ("services", "Service", STATUS),
        ],
        &[
            ("namespaces", "Namespace", &["finalize", "status"]),
            ("nodes", "Node", STATUS),
            ("persistentvolumes", "PersistentVolume", STATUS),
        ],
    ),
    (
        "apps/v1",
        &[
            ("controllerrevisions", "ControllerRevision", &[]),
            ("daemonsets", "DaemonSet", STATUS),
            ("deployments", "Deployment", SCALE),
            ("replicasets", "ReplicaSet", SCALE),
            ("statefulsets", "StatefulSet", SCALE),
        ],
        &[],
    ),
    (
        "autoscaling/v2",
        &[(
            "horizontalpodautoscalers",
            "HorizontalPodAutoscaler",
            STATUS,
        )],
        &[],
    ),
    (
        "batch/v1",
        &[("cronjobs", "CronJob", STATUS), ("jobs", "Job", STATUS)],
        &[],
    ),
    (
        "certificates.k8s.io/v1",
        &[],
        &[(
            "certificatesigningrequests",
            "CertificateSigningRequest",
            &["approval", "status"],
        )],
    ),
    ("coordination.k8s.io/v1", &[("leases", "Lease", &[])], &[]),
    (
        "discovery.k8s.io/v1",
        &[("endpointslices", "EndpointSlice", &[])],
        &[],
    ),
    ("events.k8s.io/v1", &[("events", "Event", &[])], &[]),
    (
        "node.k8s.io/v1",
        &[],
        &[("runtimeclasses", "RuntimeClass", &[])],
    ),
    (
        "policy/v1",
        &[("poddisruptionbudgets", "PodDisruptionBudget", STATUS)],
        &[],
    ),
    (
        "scheduling.k8s.io/v1",
        &[],
        &[("priorityclasses", "PriorityClass", &[])],
    ),
    (
        "storage.k8s.io/v1",
        &[("csistoragecapacities", "CSIStorageCapacity", &[])],
        &[
            ("csidrivers", "CSIDriver", &[]),
            ("csinodes", "CSINode", &[]),
            ("storageclasses", "StorageClass", &[]),
            ("volumeattachments", "VolumeAttachment", STATUS),
        ],
    ),
];

/// The page, if the request is for one.
pub(super) fn page(head: &Parts) -> Option<Value> {
    if head.method != Method::GET {
        return None;
    }
    let parts: Vec<&str> = head.uri.path().split('/').collect();
    match parts[..] {
        ["", "api"] => Some(groups(|group| group.is_empty())),
        ["", "apis"] => Some(groups(|group| !group.is_empty())),
        ["", "api", version] => resources(version),
        ["", "apis", group, version] => resources(&format!("{group}/{version}")),
        _ => None,
    }
}

fn split(version: &str) -> (&str, &str) {
    version.split_once('/').unwrap_or(("", version))
}

/// Upstream: `apidiscovery.k8s.io/v2`. Every group has one version here.
fn groups(wanted: impl Fn(&str) -> bool) -> Value {
    let found = KINDS
        .iter()
        .filter(|(version, ..)| wanted(split(version).0));
    let items = found.map(|(version, namespaced, cluster)| {
        let (group, version) = split(version);
        let of = |kinds: &[Kind], scope: &str| -> Vec<Value> {
            let kinds = kinds.iter();
            kinds.map(|kind| aggregated(kind, scope)).collect()
        };
        let resources = [of(namespaced, "Namespaced"), of(cluster, "Cluster")].concat();
        json!({
            "metadata": {"name": group},
            "versions": [{"version": version, "resources": resources, "freshness": "Current"}],
        })
    });
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items.collect::<Vec<Value>>(),
    })
}

fn aggregated((plural, kind, subresources): &Kind, scope: &str) -> Value {
    let subresources = subresources.iter();
    let subresources = subresources.map(|name| json!({"subresource": name, "verbs": ["update"]}));
    json!({
        "resource": plural,
        "responseKind": {"group": "", "version": "", "kind": kind},
        "scope": scope,
        "singularResource": kind.to_lowercase(),
        "verbs": VERBS,
        "subresources": subresources.collect::<Vec<Value>>(),
    })
}

/// Upstream: `APIResourceList`.
fn resources(wanted: &str) -> Option<Value> {
    let (version, namespaced, cluster) = KINDS.iter().find(|(version, ..)| *version == wanted)?;
    let of = |kinds: &[Kind], namespaced: bool| -> Vec<Value> {
        let kinds = kinds.iter();
        kinds
            .map(|(plural, kind, _)| {
                json!({
                    "name": plural,
                    "singularName": kind.to_lowercase(),
                    "kind": kind,
                    "namespaced": namespaced,
                    "verbs": VERBS,
                })
            })
            .collect()
    };
    let resources = [of(namespaced, true), of(cluster, false)].concat();
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": version,
        "resources": resources,
    }))
}
