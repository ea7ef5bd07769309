//! The statefulset controller: pods with a name, a place in an order and volumes of their own.
//!
//! With `OrderedReady` one pod at a time: the next comes when all before it are available, the last goes first. Names are fixed, so a
//! stale cache cannot create twice: the second is refused.
//!
//! Upstream: pkg/controller/statefulset, v1.36.
// DIFFERS: a rolling update takes one pod at a time (`maxUnavailable` is behind a gate that is off upstream).

pub mod claims;
pub mod controller;
pub mod sync;

#[cfg(test)]
mod tests;

pub use controller::start;
