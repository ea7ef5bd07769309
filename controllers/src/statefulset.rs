//! The statefulset controller: pods with a name, a place in an order and volumes of their own.
//!
//! With `OrderedReady` one pod at a time: the next comes when all before it are available, the last goes first. Names are fixed, so a
//! stale cache cannot create twice: the second is refused.
//!
//! Upstream: pkg/controller/statefulset, v1.37.

pub mod claims;
pub mod controller;
pub(crate) mod metrics;
pub mod sync;
mod text;

#[cfg(test)]
mod tests;

pub use controller::start;
