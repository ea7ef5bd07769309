//! Approves, signs and clears away CertificateSigningRequests of the signers Kubernetes itself owns.
//!
//! Approving: client certificates of kubelets, when a SubjectAccessReview allows them. Signing: `kubernetes.io/kubelet-serving`,
//! `kube-apiserver-client-kubelet`, `kube-apiserver-client` and `legacy-unknown`, each by its CA file. Requests of other signers are left
//! alone. Upstream: pkg/controller/certificates/{approver,signer,authority,cleaner}, pkg/apis/certificates/helpers.go, v1.36.

mod approving;
mod authority;
mod cleaning;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod request;
mod signing;
#[cfg(test)]
mod tests;

pub use approving::start as start_approving;
pub use cleaning::start as start_cleaning;
pub use signing::start as start_signing;

/// Client certificates of kubelets.
pub const KUBE_APISERVER_CLIENT_KUBELET: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Client certificates of anybody; never approved automatically.
pub const KUBE_APISERVER_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Serving certificates of kubelets; never approved automatically.
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// Anything, for who relied on it before signers had names.
pub const LEGACY_UNKNOWN: &str = "kubernetes.io/legacy-unknown";
