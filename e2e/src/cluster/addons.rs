//! What a cluster holds from its first minute: RBAC and the bootstrap token as kubeadm makes them, and cluster DNS.

use anyhow::Result;

use super::Cluster;
use super::layout::DNS_SERVICE_IP;

/// The groups and bindings by which nodes join, as `kubeadm init` makes them.
const RBAC: &str = include_str!("addons/rbac.yaml");
const COREDNS: &str = include_str!("addons/coredns.yaml");

/// Applies RBAC and the token that kubelets bootstrap with.
///
/// # Errors
/// kubectl fails.
pub fn apply_bootstrap(cluster: &Cluster, token: &str) -> Result<()> {
    let (id, secret) = token.split_once('.').expect("a token has two parts");
    let token = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: bootstrap-token-{id}, namespace: kube-system}}\n\
         type: bootstrap.kubernetes.io/token\nstringData:\n  token-id: \"{id}\"\n  token-secret: \"{secret}\"\n  \
         usage-bootstrap-authentication: \"true\"\n  usage-bootstrap-signing: \"true\"\n  \
         auth-extra-groups: system:bootstrappers:kubeadm:default-node-token\n"
    );
    cluster.apply(&format!("{RBAC}\n---\n{token}"))
}

/// Applies CoreDNS behind the Service kube-dns.
///
/// # Errors
/// kubectl fails.
pub fn apply_dns(cluster: &Cluster) -> Result<()> {
    cluster.apply(&COREDNS.replace("DNS_SERVICE_IP", &DNS_SERVICE_IP.to_string()))
}
