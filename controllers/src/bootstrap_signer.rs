//! Signs ConfigMap `cluster-info` in `kube-public` with every bootstrap token that may sign, so that a joining node can tell that the
//! information comes from who gave it the token.
//!
//! Off by default; kubeadm asks for it. Upstream: pkg/controller/bootstrap/bootstrapsigner.go, v1.36.

mod controller;
mod sync;

pub use controller::start;
