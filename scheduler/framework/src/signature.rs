//! Pod signatures: pods of one signature get the same answer from every plugin, so the answer is kept.
//!
//! A plugin says which [`Fragments`] of a pod its Filter and Score depend on, and what else (its [`Scope`]). The runtime joins
//! them and takes the exact bytes of those fragments as the key: no hashing, so no collision can place a pod wrongly. Upstream: KEP-5598 (SignPod), wider.

use std::ops::{BitOr, BitOrAssign};

use k8s_openapi::api::core::v1::{Container, PodSpec};
use serde::Serialize;

use crate::pod_info::PodInfo;

/// Parts of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Fragments(u32);

impl Fragments {
    /// None.
    pub const NONE: Fragments = Fragments(0);
    /// Resource requests, with and without the non-zero floor.
    pub const REQUESTS: Fragments = Fragments(1);
    /// `spec.nodeSelector` and `spec.affinity.nodeAffinity`.
    pub const NODE_AFFINITY: Fragments = Fragments(1 << 1);
    /// `spec.tolerations`.
    pub const TOLERATIONS: Fragments = Fragments(1 << 2);
    /// Host ports.
    pub const HOST_PORTS: Fragments = Fragments(1 << 3);
    /// `spec.nodeName`.
    pub const NODE_NAME: Fragments = Fragments(1 << 4);
    /// The images of all containers.
    pub const IMAGES: Fragments = Fragments(1 << 5);
    /// The namespace.
    pub const NAMESPACE: Fragments = Fragments(1 << 6);
    /// All labels.
    pub const LABELS: Fragments = Fragments(1 << 7);
    /// `spec.affinity.podAffinity` and `podAntiAffinity`.
    pub const POD_AFFINITY: Fragments = Fragments(1 << 8);
    /// `spec.topologySpreadConstraints`.
    pub const TOPOLOGY_SPREAD: Fragments = Fragments(1 << 9);
    /// The controlling owner.
    pub const OWNER: Fragments = Fragments(1 << 10);
    /// The priority.
    pub const PRIORITY: Fragments = Fragments(1 << 11);
    /// `spec.os`, and what of the spec declares needed node features: host namespaces, user namespaces, pod-level resources, restart policies.
    pub const NODE_FEATURES: Fragments = Fragments(1 << 12);
    /// `spec.volumes`.
    pub const VOLUMES: Fragments = Fragments(1 << 13);
    /// What the plugin itself writes by [`crate::plugin::Plugin::sign_more`]: what it looks up for the pod elsewhere.
    pub const MORE: Fragments = Fragments(1 << 14);

    /// Are all of `other` in?
    pub const fn contains(self, other: Fragments) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Fragments {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Fragments(self.0 | other.0)
    }
}

impl BitOrAssign for Fragments {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// What a plugin's verdict on one node depends on, besides the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Scope {
    /// That node (and its pods) alone. The verdict stays until the node changes.
    #[default]
    Node,
    /// Other nodes or pods too. The plugin must have an [`crate::plugin::Incremental`] form, or is asked again about all nodes for each pod.
    Cluster,
}

/// A plugin's declaration for one pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Sign {
    /// The parts of the pod it reads.
    pub fragments: Fragments,
    /// What else it reads.
    pub scope: Scope,
    /// A digest of cluster-wide inputs that seldom change (say, on how many nodes an image is). When it differs, everything kept for
    /// the signature is computed anew. Zero for none.
    pub inputs: u64,
}

impl Sign {
    /// Depends on these fragments and the node.
    pub const fn node(fragments: Fragments) -> Self {
        Sign {
            fragments,
            scope: Scope::Node,
            inputs: 0,
        }
    }

    /// Depends on these fragments and the whole cluster.
    pub const fn cluster(fragments: Fragments) -> Self {
        Sign {
            fragments,
            scope: Scope::Cluster,
            inputs: 0,
        }
    }
}

/// The exact bytes of `fragments` of `pod`, appended to `out`.
pub fn encode(pod: &PodInfo, fragments: Fragments, out: &mut Vec<u8>) {
    let spec = pod.spec();
    out.extend(fragments.0.to_le_bytes());
    let has = |fragment| fragments.contains(fragment);
    if has(Fragments::REQUESTS) {
        requests(pod, out);
    }
    if has(Fragments::NODE_AFFINITY) {
        json(out, &spec.node_selector);
        json(out, &pod.affinity().and_then(|a| a.node_affinity.as_ref()));
    }
    if has(Fragments::TOLERATIONS) {
        for t in spec.tolerations.iter().flatten() {
            for part in [&t.key, &t.operator, &t.value, &t.effect] {
                text(out, part.as_deref().unwrap_or_default());
            }
            out.extend(t.toleration_seconds.unwrap_or(-1).to_le_bytes());
        }
        out.push(END);
    }
    if has(Fragments::HOST_PORTS) {
        for port in &pod.host_ports {
            text(out, &port.ip);
            text(out, &port.protocol);
            out.extend(port.port.to_le_bytes());
        }
        out.push(END);
    }
    if has(Fragments::NODE_NAME) {
        text(out, spec.node_name.as_deref().unwrap_or_default());
    }
    if has(Fragments::IMAGES) {
        for container in containers(spec) {
            text(out, container.image.as_deref().unwrap_or_default());
        }
        out.push(END);
    }
    if has(Fragments::NAMESPACE) {
        text(out, pod.namespace());
    }
    if has(Fragments::LABELS) {
        for (key, value) in pod.labels() {
            text(out, key);
            text(out, value);
        }
        out.push(END);
    }
    if has(Fragments::POD_AFFINITY) {
        let affinity = pod.affinity();
        json(out, &affinity.and_then(|a| a.pod_affinity.as_ref()));
        json(out, &affinity.and_then(|a| a.pod_anti_affinity.as_ref()));
    }
    if has(Fragments::TOPOLOGY_SPREAD) {
        json(out, &spec.topology_spread_constraints);
    }
    if has(Fragments::OWNER) {
        let mut owners = pod.pod.metadata.owner_references.iter().flatten();
        let owner = owners.find(|o| o.controller == Some(true));
        text(out, owner.map_or("", |o| o.uid.as_str()));
    }
    if has(Fragments::PRIORITY) {
        out.extend(pod.priority.to_le_bytes());
    }
    if has(Fragments::NODE_FEATURES) {
        node_features(spec, out);
    }
    if has(Fragments::VOLUMES) {
        json(out, &spec.volumes);
    }
}

/// After a list, whose length is said nowhere.
const END: u8 = 0xff;

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
}

fn requests(pod: &PodInfo, out: &mut Vec<u8>) {
    let r = &pod.requests.resource;
    for n in [
        r.milli_cpu,
        r.memory,
        r.ephemeral_storage,
        pod.requests.non_zero_milli_cpu,
        pod.requests.non_zero_memory,
    ] {
        out.extend(n.to_le_bytes());
    }
    json(out, &r.scalar);
}

fn node_features(spec: &PodSpec, out: &mut Vec<u8>) {
    text(out, spec.os.as_ref().map_or("", |os| os.name.as_str()));
    json(out, &spec.resources);
    let flags = [
        spec.host_network,
        spec.host_pid,
        spec.host_ipc,
        spec.host_users,
        spec.share_process_namespace,
    ];
    out.extend(flags.map(|flag| flag.map_or(2, u8::from)));
    for container in containers(spec) {
        text(out, container.restart_policy.as_deref().unwrap_or_default());
        json(out, &container.restart_policy_rules);
    }
    out.push(END);
}

// Length first, so that no two different sequences of texts have equal bytes.
fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn json(out: &mut Vec<u8>, value: &impl Serialize) {
    let at = out.len();
    out.extend([0; 4]);
    serde_json::to_writer(&mut *out, value).expect("API types serialise into memory");
    let length = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&length.to_le_bytes());
}
