//! Makes the Node object, or brings an existing one up to date.
//!
//! Owns: labels, taints and provider id of a new node. Upstream: `registerWithAPIServer`, v1.36.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, Taint};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
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
}

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
        node.metadata.annotations = Some(
            [(
                "volumes.kubernetes.io/controller-managed-attach-detach".to_owned(),
                "true".to_owned(),
            )]
            .into(),
        );
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
        let wanted = node.metadata.labels.clone().unwrap_or_default();
        let have = existing.metadata.labels.clone().unwrap_or_default();
        let missing: BTreeMap<&str, &String> = DEFAULT_LABELS
            .iter()
            .filter_map(|label| Some((*label, wanted.get(*label)?)))
            .filter(|(label, value)| have.get(*label) != Some(*value))
            .collect();
        if missing.is_empty() {
            return Ok(existing);
        }
        let patch = json!({ "metadata": { "labels": missing } });
        api.patch(&self.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
    }
}
