//! What a Node becomes by what its cloud knows. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cloud_provider::InstanceMetadata;
use k8s_openapi::api::core::v1::{Node, NodeAddress};

/// On Nodes of kubelets with `--cloud-provider=external`, until they are initialized here.
pub const UNINITIALIZED: &str = "node.cloudprovider.kubernetes.io/uninitialized";
/// The kubelet's `--node-ip`.
const PROVIDED_NODE_IP: &str = "alpha.kubernetes.io/provided-node-ip";

const INSTANCE_TYPE: &str = "node.kubernetes.io/instance-type";
const BETA_INSTANCE_TYPE: &str = "beta.kubernetes.io/instance-type";
const ZONE: &str = "topology.kubernetes.io/zone";
const BETA_ZONE: &str = "failure-domain.beta.kubernetes.io/zone";
const REGION: &str = "topology.kubernetes.io/region";
const BETA_REGION: &str = "failure-domain.beta.kubernetes.io/region";

/// Old labels and the ones in their place, which follow them.
const FOLLOWS: [(&str, &str); 3] = [
    (BETA_ZONE, ZONE),
    (BETA_REGION, REGION),
    (BETA_INSTANCE_TYPE, INSTANCE_TYPE),
];

/// Why a Node cannot be what its cloud says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The kubelet's annotation is not right.
    #[error("failed to parse node IP {text:?}: {reason}")]
    NodeIp {
        /// What it says.
        text: String,
        /// What is wrong.
        reason: String,
    },
    /// The kubelet's address is none of the instance's.
    #[error("failed to get node address from cloud provider that matches ip: {0}")]
    Foreign(IpAddr),
}

/// Whether the Node waits to be initialized.
pub fn is_uninitialized(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    taints.is_some_and(|taints| taints.iter().any(|t| t.key == UNINITIALIZED))
}

fn node_ips(text: &str) -> Result<Vec<IpAddr>, AddressError> {
    let error = |reason: String| AddressError::NodeIp {
        text: text.to_owned(),
        reason,
    };
    let mut ips: Vec<IpAddr> = Vec::new();
    for part in text.split(',') {
        let parsed = part.parse();
        ips.push(parsed.map_err(|_| error(format!("could not parse {part:?}")))?);
    }
    match ips[..] {
        [_] => Ok(ips),
        [a, b] if a.is_ipv4() != b.is_ipv4() => {
            if a.is_unspecified() || b.is_unspecified() {
                return Err(error(
                    "dual-stack node IP cannot include '0.0.0.0' or '::'".into(),
                ));
            }
            Ok(ips)
        }
        _ => Err(error(
            "must contain either a single IP or a dual-stack pair of IPs".into(),
        )),
    }
}

/// The addresses of an instance as the Node has them: with a `--node-ip`, that address alone of its type, and first.
///
/// # Errors
/// When the `--node-ip` is none of the instance's addresses.
pub fn addresses(node: &Node, known: &[NodeAddress]) -> Result<Vec<NodeAddress>, AddressError> {
    let annotations = node.metadata.annotations.as_ref();
    let Some(provided) = annotations.and_then(|a| a.get(PROVIDED_NODE_IP)) else {
        return Ok(known.to_vec());
    };
    let mut enforced: Vec<NodeAddress> = Vec::new();
    for ip in node_ips(provided)? {
        let is_ip = |address: &&NodeAddress| address.address.parse() == Ok(ip);
        let before = enforced.len();
        enforced.extend(known.iter().filter(is_ip).cloned());
        if enforced.len() == before {
            return Err(AddressError::Foreign(ip));
        }
    }
    let types: Vec<String> = enforced.iter().map(|a| a.type_.clone()).collect();
    let others = known.iter().filter(|a| !types.contains(&a.type_));
    enforced.extend(others.cloned());
    Ok(enforced)
}

/// The addresses to write for an initialized Node; `None` when it has them, or the cloud knows none. The kubelet's host name stays where
/// the cloud knows none.
///
/// DIFFERS: two addresses of one type are compared, too; upstream compares the last of each type.
///
/// # Errors
/// As [`addresses`].
pub fn new_addresses(
    node: &Node,
    known: &[NodeAddress],
) -> Result<Option<Vec<NodeAddress>>, AddressError> {
    if known.is_empty() {
        return Ok(None);
    }
    let status = node.status.as_ref();
    let current = status
        .and_then(|s| s.addresses.as_deref())
        .unwrap_or_default();
    let mut all = known.to_vec();
    if all.iter().all(|a| a.type_ != "Hostname") {
        all.extend(current.iter().filter(|a| a.type_ == "Hostname").cloned());
    }
    let wanted = addresses(node, &all)?;
    Ok(Some(wanted).filter(|wanted| *wanted != current))
}

/// Whether a label is of Kubernetes' own domains; clouds have no say in those.
fn is_kubernetes_label(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else {
        return false;
    };
    ["kubernetes.io", "k8s.io"].iter().any(|own| {
        let above = domain.strip_suffix(own);
        above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
    })
}

/// The Node, initialized: with provider id and labels, without the taint.
///
/// # Errors
/// When its addresses could not be written afterwards.
pub fn initialized(node: &Node, metadata: &InstanceMetadata) -> Result<Node, AddressError> {
    addresses(node, &metadata.node_addresses)?;
    let mut node = node.clone();
    let spec = node.spec.get_or_insert_default();
    if spec.provider_id.as_deref().unwrap_or_default().is_empty()
        && !metadata.provider_id.is_empty()
    {
        spec.provider_id = Some(metadata.provider_id.clone());
    }
    if let Some(taints) = &mut spec.taints {
        taints.retain(|taint| taint.key != UNINITIALIZED);
    }
    let labels = node.metadata.labels.get_or_insert_default();
    for (value, keys) in [
        (&metadata.instance_type, [BETA_INSTANCE_TYPE, INSTANCE_TYPE]),
        (&metadata.zone, [BETA_ZONE, ZONE]),
        (&metadata.region, [BETA_REGION, REGION]),
    ] {
        if !value.is_empty() {
            labels.extend(keys.map(|key| (key.to_owned(), value.clone())));
        }
    }
    for (key, value) in &metadata.additional_labels {
        if is_kubernetes_label(key) {
            tracing::warn!(
                label = key,
                "Discarding node label with kubernetes namespace"
            );
        } else if let Some(present) = labels.get(key) {
            if present != value {
                tracing::warn!(label = key, "Discarding node label that is already present");
            }
        } else {
            labels.insert(key.clone(), value.clone());
        }
    }
    Ok(node)
}

/// The labels of an initialized Node that must follow their old names.
pub fn stale_labels(node: &Node) -> BTreeMap<&'static str, String> {
    let mut stale = BTreeMap::new();
    let Some(labels) = &node.metadata.labels else {
        return stale;
    };
    for (old, new) in FOLLOWS {
        if let Some(value) = labels.get(old)
            && labels.get(new) != Some(value)
        {
            stale.insert(new, value.clone());
        }
    }
    stale
}
