//! Publishes the CA that verifies the API server as ClusterTrustBundle of signer `kubernetes.io/kube-apiserver-serving`.
//!
//! Upstream: pkg/controller/certificates/clustertrustbundlepublisher, v1.37.

mod controller;
mod sync;

pub use controller::{CLUSTER_TRUST_BUNDLE, start};
