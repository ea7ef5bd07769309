//! Static pods: manifests as the API server would have stored them.
//!
//! Owns: decoding, defaulting and naming; pure. Where they come from is for `file` and `http`. Upstream:
//! `pkg/kubelet/config/common.go`, v1.37.

use std::fmt;
use std::path::{Path, PathBuf};

use component_helpers::names::fnv64a;
use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, Pod, PodSpec, PodStatus, Toleration, Volume,
};
use serde_json::Value;

use super::validation::{Errors, validate_pod_create};
use crate::pod::{CONFIG_FIRST_SEEN_ANNOTATION, CONFIG_HASH_ANNOTATION, CONFIG_SOURCE_ANNOTATION};

/// Where a manifest is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin<'a> {
    File(&'a Path),
    Url(&'a str),
}

impl Origin<'_> {
    /// The annotation's word. Upstream: `FileSource`, `HTTPSource`.
    fn source(self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Url(_) => "http",
        }
    }
}

impl fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Url(url) => f.write_str(url),
        }
    }
}

/// Why a manifest gives no pod.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("{path}: {source}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{origin}: couldn't parse as pod: {reason}, please check config file")]
    Parse { origin: String, reason: String },
    #[error("{origin}: invalid pod: {errors}")]
    Invalid {
        origin: String,
        #[source]
        errors: Errors,
    },
    #[error("{origin}: static pods may not reference {resource}")]
    Reference {
        origin: String,
        resource: &'static str,
    },
}

/// The one pod of a manifest.
///
/// # Errors
/// It is not that, or no static pod may be so.
pub fn decode_single(
    text: &str,
    origin: Origin<'_>,
    node_name: &str,
) -> Result<Pod, ManifestError> {
    let value = super::manifest::decode(text).map_err(parse(origin))?;
    decode_pod(value, text, origin, node_name)
}

/// The pod, or the pods of a `PodList`; all or none.
///
/// # Errors
/// It is neither, or no static pod may be so.
pub fn decode_pods(
    text: &str,
    origin: Origin<'_>,
    node_name: &str,
) -> Result<Vec<Pod>, ManifestError> {
    let mut value = super::manifest::decode(text).map_err(parse(origin))?;
    if value.get("kind").and_then(Value::as_str) != Some("PodList") {
        return Ok(vec![decode_pod(value, text, origin, node_name)?]);
    }
    if value.get("apiVersion").and_then(Value::as_str) != Some("v1") {
        let reason = "apiVersion of the PodList is not \"v1\"".to_owned();
        return Err(parse(origin)(reason));
    }
    let items = match value.get_mut("items").map(Value::take) {
        None | Some(Value::Null) => vec![],
        Some(Value::Array(items)) => items,
        Some(_) => return Err(parse(origin)("items: is no list".to_owned())),
    };
    items
        .into_iter()
        .map(|mut item| {
            // As in lists of the API, an item need not say what it is.
            if let Some(object) = item.as_object_mut() {
                object.entry("kind").or_insert_with(|| "Pod".into());
                object.entry("apiVersion").or_insert_with(|| "v1".into());
            }
            // A change of one pod leaves the others as they are.
            let text = item.to_string();
            decode_pod(item, &text, origin, node_name)
        })
        .collect()
}

fn parse(origin: Origin<'_>) -> impl Fn(String) -> ManifestError {
    let origin = origin.to_string();
    move |reason| ManifestError::Parse {
        origin: origin.clone(),
        reason,
    }
}

/// `text`: what the pod's UID is made of.
fn decode_pod(
    value: Value,
    text: &str,
    origin: Origin<'_>,
    node_name: &str,
) -> Result<Pod, ManifestError> {
    let parse = parse(origin);
    let word = |key: &str| value.get(key).and_then(|k| k.as_str());
    if word("kind") != Some("Pod") || word("apiVersion") != Some("v1") {
        return Err(parse(format!(
            "apiVersion and kind are {:?} and {:?}, not \"v1\" and \"Pod\"",
            word("apiVersion").unwrap_or_default(),
            word("kind").unwrap_or_default()
        )));
    }
    let mut pod: Pod =
        component_base::json::from_value(&value).map_err(|e| parse(e.to_string()))?;
    if pod.metadata.name.as_deref().unwrap_or_default().is_empty() {
        return Err(parse("metadata.name: Required value".to_owned()));
    }
    pod.spec.get_or_insert_default();
    apply_defaults(&mut pod, text, origin, node_name);
    validate_pod_create(&pod).map_err(|errors| ManifestError::Invalid {
        origin: origin.to_string(),
        errors,
    })?;
    if let Some(resource) = super::api_references::find(&pod) {
        return Err(ManifestError::Reference {
            origin: origin.to_string(),
            resource,
        });
    }
    Ok(pod)
}

/// Problems of the node do not evict it.
fn tolerate_everything(spec: &mut PodSpec) {
    let everything = Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    };
    let tolerations = spec.tolerations.get_or_insert_default();
    if !tolerations.contains(&everything) {
        tolerations.push(everything);
    }
}

fn apply_defaults(pod: &mut Pod, text: &str, origin: Origin<'_>, node_name: &str) {
    if pod.metadata.uid.as_deref().unwrap_or_default().is_empty() {
        // Stable for this node, this origin and this content.
        let kind = match origin {
            Origin::File(_) => "file",
            Origin::Url(_) => "url",
        };
        let seed = format!("host:{node_name}{kind}:{origin}{text}");
        let uid = format!(
            "{:016x}{:016x}",
            fnv64a(seed.as_bytes()),
            fnv64a(format!("{seed}#").as_bytes())
        );
        pod.metadata.uid = Some(uid);
    }
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    pod.metadata.name = pod
        .metadata
        .name
        .take()
        .map(|n| format!("{n}-{}", node_name.to_lowercase()));
    pod.metadata.namespace = pod
        .metadata
        .namespace
        .take()
        .filter(|n| !n.is_empty())
        .or(Some("default".to_owned()));
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(
        CONFIG_SOURCE_ANNOTATION.to_owned(),
        origin.source().to_owned(),
    );
    annotations.insert(CONFIG_HASH_ANNOTATION.to_owned(), uid);
    annotations.insert(
        CONFIG_FIRST_SEEN_ANNOTATION.to_owned(),
        jiff::Timestamp::now().to_string(),
    );
    pod.status = Some(PodStatus {
        phase: Some("Pending".to_owned()),
        ..PodStatus::default()
    });
    let Some(spec) = pod.spec.as_mut() else {
        return;
    };
    spec.node_name = Some(node_name.to_owned());
    if let Origin::File(_) = origin {
        tolerate_everything(spec);
    }
    default_word(&mut spec.restart_policy, "Always");
    default_word(&mut spec.dns_policy, "ClusterFirst");
    let grace = spec.termination_grace_period_seconds.get_or_insert(30);
    if *grace < 0 {
        *grace = 1;
    }
    spec.security_context.get_or_insert_default();
    default_word(&mut spec.scheduler_name, "default-scheduler");
    spec.enable_service_links.get_or_insert(true);
    spec.priority
        .get_or_insert(match spec.priority_class_name.as_deref() {
            Some("system-node-critical") => 2_000_001_000,
            Some("system-cluster-critical") => 2_000_000_000,
            _ => 0,
        });
    for volume in spec.volumes.iter_mut().flatten() {
        default_volume(volume);
    }
    let host_network = spec.host_network == Some(true);
    for container in spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten())
    {
        default_container(container);
        for port in container.ports.iter_mut().flatten() {
            default_word(&mut port.protocol, "TCP");
            if host_network && port.host_port.unwrap_or(0) == 0 {
                port.host_port = Some(port.container_port);
            }
        }
    }
}

/// An empty word is none.
fn default_word(word: &mut Option<String>, default: &str) {
    if word.as_deref().unwrap_or_default().is_empty() {
        *word = Some(default.to_owned());
    }
}

/// A volume of no kind is an empty directory. Upstream: `SetDefaults_Volume`.
fn default_volume(volume: &mut Volume) {
    let name = volume.name.clone();
    let none = Volume {
        name,
        ..Volume::default()
    };
    if *volume == none {
        volume.empty_dir = Some(EmptyDirVolumeSource::default());
    }
}

fn default_container(container: &mut Container) {
    let image = container.image.as_deref().unwrap_or_default();
    let latest = !image.contains('@')
        && image
            .rsplit('/')
            .next()
            .is_some_and(|n| !n.contains(':') || n.ends_with(":latest"));
    let pull_policy = if latest { "Always" } else { "IfNotPresent" };
    default_word(&mut container.image_pull_policy, pull_policy);
    let (path, policy) = ("/dev/termination-log", "File");
    default_word(&mut container.termination_message_path, path);
    default_word(&mut container.termination_message_policy, policy);
    if let Some(resources) = container.resources.as_mut()
        && let Some(limits) = resources.limits.clone()
    {
        // A limit without a request asks for as much.
        let requests = resources.requests.get_or_insert_default();
        for (name, limit) in limits {
            requests.entry(name).or_insert(limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod;

    const MANIFEST: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers: [{name: c, image: 'nginx:1'}]\n";
    const URL: Origin<'static> = Origin::Url("http://h/pods");

    fn file() -> Origin<'static> {
        Origin::File(Path::new("/m/web.yaml"))
    }

    #[test]
    fn manifests_are_defaulted() {
        let pod = decode_single(MANIFEST, file(), "node1").unwrap();
        assert_eq!(pod::full_name(&pod), "web-node1_default");
        assert_eq!(pod::uid(&pod).len(), 32);
        assert!(pod::is_static(&pod));
        assert_eq!(pod::config_hash(&pod), Some(pod::uid(&pod)));
        assert_eq!(
            pod.spec.unwrap().containers[0].image_pull_policy.as_deref(),
            Some("IfNotPresent")
        );
    }

    /// A file of two documents, with YAML 1.1's numbers and a key that comes twice.
    #[test]
    fn manifests_are_read_as_upstream_reads_them() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  terminationGracePeriodSeconds: 3e1\n  \
                    hostNetwork: yes\n  containers:\n  - name: c\n    image: old\n    image: nginx:1\n    \
                    ports: [{containerPort: 8e1}]\n    resources: {limits: {cpu: 1e0}}\n  \
                    volumes: [{name: v, downwardAPI: {defaultMode: 0440}}]\n---\nkind: ConfigMap\n";
        let pod = decode_single(text, file(), "Node1").unwrap();
        assert_eq!(pod.metadata.name.as_deref(), Some("web-node1"));
        let spec = pod.spec.unwrap();
        assert_eq!(spec.termination_grace_period_seconds, Some(30));
        assert_eq!(spec.host_network, Some(true));
        let container = &spec.containers[0];
        assert_eq!(container.image.as_deref(), Some("nginx:1"));
        assert_eq!(container.ports.as_ref().unwrap()[0].container_port, 80);
        let limits = container.resources.as_ref().unwrap().limits.as_ref();
        assert_eq!(limits.unwrap()["cpu"].0, "1");
        let volume = &spec.volumes.unwrap()[0];
        let mode = volume.downward_api.as_ref().unwrap().default_mode;
        assert_eq!(mode, Some(0o440));
        for text in ["kind: ConfigMap\n---\nkind: Pod\n", "kind: Pod\n"] {
            decode_single(text, file(), "n").unwrap_err();
        }
    }

    /// What the API server would have refused must not be run, and what it would have filled in must not be missing.
    #[test]
    fn a_manifest_is_looked_at_as_the_api_server_would() {
        let spec = |spec: &str| {
            let text = format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec: {{containers: [{{name: c, image: 'nginx:1', ports: [{{containerPort: 80}}]}}], {spec}}}\n"
            );
            decode_single(&text, file(), "n").map_err(|e| e.to_string())
        };
        assert_eq!(
            spec("restartPolicy: always, activeDeadlineSeconds: -1").unwrap_err(),
            "/m/web.yaml: invalid pod: [spec.restartPolicy: Unsupported value: \"always\": supported values: \"Always\", \"OnFailure\", \"Never\" spec.activeDeadlineSeconds: Invalid value: -1: must be between 1 and 2147483647, inclusive]"
        );
        let pod = spec(
            "restartPolicy: '', hostNetwork: true, terminationGracePeriodSeconds: -5, volumes: [{name: v}]",
        );
        let spec = pod.unwrap().spec.unwrap();
        assert_eq!(spec.restart_policy.as_deref(), Some("Always"));
        assert_eq!(spec.termination_grace_period_seconds, Some(1));
        assert!(spec.volumes.unwrap()[0].empty_dir.is_some());
        let port = &spec.containers[0].ports.as_ref().unwrap()[0];
        assert_eq!(port.protocol.as_deref(), Some("TCP"));
        assert_eq!(port.host_port, Some(80));
    }

    #[test]
    fn pods_of_a_url() {
        let pods = decode_pods(MANIFEST, URL, "node1").unwrap();
        let pod = &pods[0];
        assert_eq!(pod::full_name(pod), "web-node1_default");
        assert_eq!(pod::annotation(pod, CONFIG_SOURCE_ANNOTATION), Some("http"));
        assert!(pod::is_static(pod));
        assert_eq!(pod.spec.as_ref().unwrap().tolerations, None);
        let of_file = decode_single(MANIFEST, file(), "node1").unwrap();
        assert_ne!(pod::uid(&of_file), pod::uid(pod));
    }

    #[test]
    fn lists_of_pods() {
        let list = |image: &str| {
            let item = |name: &str, image: &str| {
                format!(
                    "{{metadata: {{name: {name}}}, spec: {{containers: [{{name: c, image: '{image}'}}]}}}}"
                )
            };
            let items = [item("a", "nginx:1"), item("b", image)].join(", ");
            let text = format!("{{apiVersion: v1, kind: PodList, items: [{items}]}}");
            let text = text.replacen('{', " \n---\n{", 1);
            decode_pods(&text, URL, "n").unwrap()
        };
        let (before, after) = (list("nginx:1"), list("nginx:2"));
        assert_eq!(before.len(), 2);
        let uids = |pods: &[Pod]| {
            pods.iter()
                .map(|p| pod::uid(p).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(uids(&before)[0], uids(&after)[0]);
        assert_ne!(uids(&before)[1], uids(&after)[1]);
        let none = decode_pods("apiVersion: v1\nkind: PodList\n", URL, "n");
        assert!(none.unwrap().is_empty());
        for (text, expect) in [
            ("kind: PodList", "apiVersion of the PodList is not \"v1\""),
            (
                "apiVersion: v1\nkind: PodList\nitems: 1",
                "items: is no list",
            ),
            (
                "apiVersion: v1\nkind: PodList\nitems: [{}]",
                "metadata.name: Required value",
            ),
            ("kind: Other", "not \"v1\" and \"Pod\""),
        ] {
            let error = decode_pods(text, URL, "n").unwrap_err().to_string();
            assert!(
                error.starts_with("http://h/pods: ") && error.contains(expect),
                "{error}"
            );
        }
    }
}
