//! Publishes the CA that verifies the API server as ConfigMap `kube-root-ca.crt` in every active namespace.
//!
//! Upstream: pkg/controller/certificates/rootcacertpublisher, v1.36.

mod controller;
mod sync;

pub use controller::start;
