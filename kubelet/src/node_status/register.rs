//! Makes the Node object, or brings an existing one up to date.
//!
//! Owns: labels, annotations, taints and provider id of a new node. Upstream: `registerWithAPIServer`, v1.36.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, Taint};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

/// What a new node says of itself.
#[derive(Clone)]
pub struct Registration {
    pub name: String,
    pub hostname: String,
    pub architecture: String,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub provider_id: String,
    pub external_cloud_provider: bool,
    /// `--node-ip` is there, be it 0.0.0.0 or ::.
    pub has_node_ip: bool,
    /// The addresses that it names.
    pub node_ips: Vec<IpAddr>,
}

const ATTACH_DETACH: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
/// What a cloud's controller compares its own addresses with. Upstream: `AnnotationAlphaProvidedIPAddr`.
const PROVIDED_NODE_IP: &str = "alpha.kubernetes.io/provided-node-ip";

/// Labels the kubelet owns: an existing node gets them again.
const DEFAULT_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];

impl Registration {
    pub fn initial_node(&self, status: NodeStatus) -> Node {
        let mut node = Node::default();
        node.metadata.name = Some(self.name.clone());
        let mut labels: BTreeMap<String, String> = [
            ("kubernetes.io/hostname", self.hostname.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", &self.architecture),
            ("beta.kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", &self.architecture),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
        labels.extend(self.labels.clone());
        node.metadata.labels = Some(labels);
        node.metadata.annotations = Some(self.annotations());
        let mut taints = self.taints.clone();
        if self.external_cloud_provider {
            taints.push(Taint {
                key: "node.cloudprovider.kubernetes.io/uninitialized".to_owned(),
                value: Some("true".to_owned()),
                effect: "NoSchedule".to_owned(),
                time_added: None,
            });
        }
        node.spec = Some(NodeSpec {
            taints: (!taints.is_empty()).then_some(taints),
            provider_id: (!self.provider_id.is_empty()).then(|| self.provider_id.clone()),
            ..NodeSpec::default()
        });
        node.status = Some(status);
        node
    }

    fn annotations(&self) -> BTreeMap<String, String> {
        let mut annotations = BTreeMap::from([(ATTACH_DETACH.to_owned(), "true".to_owned())]);
        if self.external_cloud_provider && !self.node_ips.is_empty() {
            let ips: Vec<String> = self.node_ips.iter().map(ToString::to_string).collect();
            annotations.insert(PROVIDED_NODE_IP.to_owned(), ips.join(","));
        }
        annotations
    }

    /// Labels and annotations that an existing node has to get, or to lose. `None`: it has all of them.
    fn metadata_patch(&self, existing: &Node, wanted: &Node) -> Option<Value> {
        let of = |map: &Option<BTreeMap<String, String>>| map.clone().unwrap_or_default();
        let (labels, have) = (of(&wanted.metadata.labels), of(&existing.metadata.labels));
        let missing: Map<String, Value> = DEFAULT_LABELS
            .iter()
            .filter_map(|label| Some((*label, labels.get(*label)?)))
            .filter(|(label, value)| have.get(*label) != Some(*value))
            .map(|(label, value)| (label.to_owned(), value.as_str().into()))
            .collect();
        let (annotations, have) = (self.annotations(), of(&existing.metadata.annotations));
        let mut changed: Map<String, Value> = annotations
            .iter()
            .filter(|(key, value)| have.get(*key) != Some(*value))
            .map(|(key, value)| (key.clone(), value.as_str().into()))
            .collect();
        if have.contains_key(PROVIDED_NODE_IP) && !annotations.contains_key(PROVIDED_NODE_IP) {
            changed.insert(PROVIDED_NODE_IP.to_owned(), Value::Null);
        }
        let mut metadata = Map::new();
        for (field, map) in [("labels", missing), ("annotations", changed)] {
            if !map.is_empty() {
                metadata.insert(field.to_owned(), map.into());
            }
        }
        (!metadata.is_empty()).then(|| json!({ "metadata": metadata }))
    }

    /// Until the node is there, with growing pauses. `None`: the kubelet ends.
    pub async fn register(
        &self,
        client: &kube::Client,
        status: impl Fn() -> NodeStatus,
        shutdown: &CancellationToken,
    ) -> Option<Node> {
        let api: Api<Node> = Api::all(client.clone());
        let mut pause = Duration::from_millis(100);
        loop {
            let node = self.initial_node(status());
            match self.try_register(&api, &node).await {
                Ok(node) => {
                    tracing::info!(node = self.name, "successfully registered node");
                    return Some(node);
                }
                Err(error) => {
                    tracing::error!(node = self.name, %error, "unable to register node with API server")
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(Duration::from_secs(7));
        }
    }

    async fn try_register(&self, api: &Api<Node>, node: &Node) -> kube::Result<Node> {
        match api.create(&PostParams::default(), node).await {
            Err(kube::Error::Api(e)) if e.code == 409 => {}
            other => return other,
        }
        let existing = api.get(&self.name).await?;
        tracing::info!(node = self.name, "node was previously registered");
        let Some(patch) = self.metadata_patch(&existing, node) else {
            return Ok(existing);
        };
        api.patch(&self.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_existing_node_gets_what_it_lacks() {
        let registration = |external: bool, ips: &[&str]| Registration {
            name: "n".into(),
            hostname: "n".into(),
            architecture: "amd64".into(),
            labels: BTreeMap::new(),
            taints: vec![],
            provider_id: String::new(),
            external_cloud_provider: external,
            has_node_ip: !ips.is_empty(),
            node_ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        };
        let external = registration(true, &["10.0.0.1", "fd00::1"]);
        let provided = external.initial_node(NodeStatus::default());
        let annotations = provided.metadata.annotations.clone().unwrap();
        assert_eq!(annotations[PROVIDED_NODE_IP], "10.0.0.1,fd00::1");
        assert_eq!(external.metadata_patch(&provided, &provided), None);

        let plain = registration(false, &["10.0.0.1"]);
        let wanted = plain.initial_node(NodeStatus::default());
        assert_eq!(
            plain.metadata_patch(&provided, &wanted),
            Some(json!({"metadata": {"annotations": {PROVIDED_NODE_IP: null}}}))
        );
        let mut bare = wanted.clone();
        bare.metadata.annotations = None;
        let labels = bare.metadata.labels.as_mut().unwrap();
        labels.insert("kubernetes.io/arch".into(), "arm64".into());
        assert_eq!(
            plain.metadata_patch(&bare, &wanted),
            Some(json!({"metadata": {
                "labels": {"kubernetes.io/arch": "amd64"},
                "annotations": {ATTACH_DETACH: "true"},
            }}))
        );
    }
}
