//! The garbage collector: deletes objects whose owners are all gone, and carries foreground deletion and orphaning out.
//!
//! [`graph`] holds who owns whom, fed by metadata-only watches over every kind that can be deleted. It is only a hint:
//! before anything is deleted the object and its owners are read from the API server, and the deletion names the UID
//! and version that were judged. So a lagging graph costs a request, never an object.
//!
//! ```text
//! watches -> graph -> attempt to delete: owners all absent       -> delete, as the object's own finalizers say
//!                                        owners wait for it      -> delete in the foreground
//!                                        some owner there        -> drop the other references
//!                                        itself waits, all gone  -> finalizer off
//!                  -> attempt to orphan: references off the dependents, then the finalizer off
//! ```
//!
//! Upstream: pkg/controller/garbagecollector, v1.36.

mod absent_owners;
pub mod collector;
pub mod controller;
pub mod decide;
pub mod graph;
mod monitors;

#[cfg(test)]
mod tests;

pub use controller::start;

/// Of an object that waits for its dependents to be deleted.
pub const FINALIZER_DELETE_DEPENDENTS: &str = "foregroundDeletion";
/// Of an object that waits for its dependents to be released.
pub const FINALIZER_ORPHAN_DEPENDENTS: &str = "orphan";
