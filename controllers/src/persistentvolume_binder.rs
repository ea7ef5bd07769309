//! The persistentvolume-binder controller: binds claims to volumes, asks for volumes that are not there, and reclaims those whose claim
//! is gone.
//!
//! ```text
//! claim   Pending --bind--> Bound --its volume is gone, or another's--> Lost
//! volume  Available --bind--> Bound --claim gone--> Released --deleting failed--> Failed
//! ```
//!
//! A binding is a pair of pointers, `spec.claimRef` of the volume and `spec.volumeName` of the claim. The volume is written first, then
//! its phase, then the claim, then its phase; whoever finds a binding half done completes it, so it does not matter where a process died.
//!
//! - `sync.rs` decides what to do about a claim and about a volume; `binding.rs` writes down the four steps; `matching.rs` knows which
//!   volume serves a claim; `provisioning.rs` knows who makes and who deletes volumes; `migration.rs` the plugins that CSI drivers stand
//!   in for; `host_path.rs` what the one provisioner of our own makes.
//! - `cache.rs` holds what the controller wrote last, for the watch is late; `controller.rs` and `operations.rs` are the shell.
//!
//! Upstream: pkg/controller/volume/persistentvolume, v1.36.
// DIFFERS: nothing is recycled (deprecated since 1.14): a volume with the policy Recycle becomes Failed with upstream's event for volumes
// that have no recycler.

mod binding;
mod cache;
mod controller;
mod host_path;
mod matching;
mod metrics;
pub(crate) mod migration;
mod operations;
mod provisioning;
pub mod sync;
#[cfg(test)]
mod tests;

pub use controller::start;
