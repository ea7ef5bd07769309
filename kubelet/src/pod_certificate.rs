//! Certificates of pods: for each `podCertificate` source of a projected volume a key is made here, a
//! PodCertificateRequest asks the signer, and the answer is renewed before it expires.
//!
//! Owns: keys and certificates in memory (a restart asks anew; the old files stay until then), and the requests. Keys
//! leave the node's memory only as files of the pod. Never writes files: `volumes` does. Upstream:
//! pkg/kubelet/podcertificate, v1.37.
//!
//! ```text
//! initial ──> wait ──> fresh <──> wait for the renewal
//!              └──> denied, failed <──┘   (for good)
//! ```

mod collector;
mod key;
mod manager;
mod state;

pub use collector::register as register_metric;
pub use manager::PodCertificateManager;
